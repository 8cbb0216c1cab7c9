# Mask R-CNN with FPN as in detectron2's recipe: backbone trained whole with SyncBN, no norm in neck and heads.
_base_ = ["mmdet::_base_/models/mask-rcnn_r50_fpn.py", "./recipe.py"]
model = dict(
    backbone=dict(frozen_stages=-1, norm_eval=False, norm_cfg=dict(type="SyncBN", requires_grad=True), init_cfg=None),
    roi_head=dict(mask_head=dict(type="MatchedMaskHead")),
    train_cfg=dict(rcnn=dict(assigner=dict(match_low_quality=False))),
)
