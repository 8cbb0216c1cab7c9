# sslight bench coco --framework mmdet --task det --arch mobilenet_v2 --neck fpn --schedule 2x --weights CKPT \
#     DATA.PATH_TO_DATA_DIR COCO OUTPUT_DIR OUT
# 180k iterations of 16 images on 8 GPUs; no published number.
_base_ = "./faster_rcnn_mobilenetv2_fpn_1x.py"
train_cfg = dict(max_iters=180000, val_interval=180001)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", by_epoch=False, begin=0, end=180000, milestones=[120000, 160000], gamma=0.1),
]
