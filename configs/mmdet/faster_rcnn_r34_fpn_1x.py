# sslight bench coco --framework mmdet --task det --arch resnet34 --weights CKPT \
#     DATA.PATH_TO_DATA_DIR COCO OUTPUT_DIR OUT
# 90k iterations of 16 images on 8 GPUs; reaches: DINO SSLight 38.6 box AP (published, 1x).
_base_ = "./_base_/faster_rcnn_fpn.py"
model = dict(backbone=dict(depth=34), neck=dict(in_channels=[64, 128, 256, 512]))
