# sslight bench coco --framework mmdet --task seg --config configs/mmdet/demo_mask_rcnn_r18_fpn.py --weights CKPT \
#     DATA.PATH_TO_DATA_DIR SCENES
# The Mask R-CNN recipe for a demonstration on a CPU: 128 px scenes, small heads, 4 images a step, a short schedule.
_base_ = "./mask_rcnn_r18_fpn_1x.py"
norm_cfg = dict(type="BN", requires_grad=True)
model = dict(
    backbone=dict(norm_cfg=norm_cfg),
    neck=dict(out_channels=128),
    rpn_head=dict(in_channels=128, feat_channels=128, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=128),
        bbox_head=dict(in_channels=128, fc_out_channels=256),
        mask_roi_extractor=dict(out_channels=128),
        mask_head=dict(in_channels=128, num_convs=2, conv_out_channels=64),
    ),
    train_cfg=dict(rpn_proposal=dict(max_per_img=200), rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100), rcnn=dict(max_per_img=20)),
)
train_pipeline = _base_.train_pipeline
train_pipeline[2].update(scales=[(128, 128)])
train_pipeline[3].update(prob=0.0)  # a mirrored digit is another shape
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=(128, 128))
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(pipeline=train_pipeline))
test_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline))
train_cfg = dict(max_iters=180, val_interval=181)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=40),
    dict(type="MultiStepLR", by_epoch=False, begin=0, end=180, milestones=[135, 170], gamma=0.1),
]
optim_wrapper = dict(optimizer=dict(lr=0.01))
auto_scale_lr = dict(base_batch_size=4)
