# sslight bench coco --framework mmdet --task seg --arch mobilenet_v2 --neck fpn --weights CKPT \
#     DATA.PATH_TO_DATA_DIR COCO OUTPUT_DIR OUT
# 90k iterations of 16 images on 8 GPUs; no published number.
_base_ = "./_base_/mask_rcnn_fpn.py"
model = dict(
    backbone=dict(
        _delete_=True, type="MobileNetV2", out_indices=(1, 2, 4, 6), norm_cfg=dict(type="SyncBN", requires_grad=True)
    ),
    neck=dict(in_channels=[24, 32, 96, 320]),
)
find_unused_parameters = True  # the last 1x1 convolution is built but feeds no level
