# sslight bench coco --framework mmdet --task det --arch mobilenet_v2 --weights CKPT \
#     DATA.PATH_TO_DATA_DIR COCO OUTPUT_DIR OUT
# 90k iterations of 16 images on 8 GPUs; reaches: DINO SSLight 32.1 box AP (published, 1x).
_base_ = "./_base_/faster_rcnn_fpn.py"
model = dict(
    backbone=dict(
        _delete_=True, type="MobileNetV2", out_indices=(4, 7), norm_cfg=dict(type="SyncBN", requires_grad=True)
    ),
    neck=dict(in_channels=[96, 1280], num_outs=3),
    rpn_head=dict(anchor_generator=dict(scales=[2, 4, 8], strides=[16, 32, 64])),
    roi_head=dict(bbox_roi_extractor=dict(featmap_strides=[16, 32], finest_scale=224)),
    train_cfg=dict(rpn_proposal=dict(max_per_img=2000)),
)
