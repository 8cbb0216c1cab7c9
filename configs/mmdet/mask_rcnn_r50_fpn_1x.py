# sslight bench coco --framework mmdet --task seg --arch resnet50 --weights CKPT \
#     DATA.PATH_TO_DATA_DIR COCO OUTPUT_DIR OUT
# 90k iterations of 16 images on 8 GPUs; no published number.
_base_ = "./_base_/mask_rcnn_fpn.py"
