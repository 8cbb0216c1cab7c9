# Faster R-CNN with FPN as in detectron2's recipe: the Mask R-CNN recipe without masks.
_base_ = ["mmdet::_base_/models/faster-rcnn_r50_fpn.py", "./recipe.py"]
model = dict(
    backbone=dict(frozen_stages=-1, norm_eval=False, norm_cfg=dict(type="SyncBN", requires_grad=True), init_cfg=None)
)
train_pipeline = _base_.train_pipeline
train_pipeline[1].update(with_mask=False)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
test_evaluator = dict(metric=["bbox"])
