"""Recipes shrunk for tests: the shipped configs at 64 px, two images a step and narrow heads."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def tiny_mmdet(name: str, folder: Path, iterations: int = 8) -> Path:
    """`configs/mmdet/NAME.py`, shrunk, written to `folder`."""
    from convert.targets.mmcv_ops import install

    install()
    from mmengine.config import Config

    cfg = Config.fromfile(ROOT / "configs" / "mmdet" / f"{name}.py")
    model, head = cfg.model, cfg.model.roi_head
    model.neck.out_channels = model.rpn_head.in_channels = model.rpn_head.feat_channels = 32
    for part in ("bbox_roi_extractor", "mask_roi_extractor"):
        if part in head:
            head[part].out_channels = 32
    head.bbox_head.update(in_channels=32, fc_out_channels=32)
    if "mask_head" in head:
        head.mask_head.update(in_channels=32, num_convs=1, conv_out_channels=16)
    model.train_cfg.rpn_proposal.max_per_img = 32
    model.train_cfg.rcnn.sampler.num = 16
    model.test_cfg.rpn.max_per_img = 16
    pipelines = [cfg.train_dataloader.dataset.pipeline, cfg.test_dataloader.dataset.pipeline]
    pipelines[0][2].scales = [(64, 64)]
    pipelines[1][1].scale = (64, 64)
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    cfg.optim_wrapper.optimizer.lr = 0.002
    cfg.train_cfg.update(max_iters=iterations, val_interval=iterations + 1)
    cfg.param_scheduler[0].end = 2
    cfg.param_scheduler[1].update(end=iterations, milestones=[iterations - 2])
    cfg.auto_scale_lr.base_batch_size = 2
    file = folder / f"{name}.py"
    cfg.dump(file)
    return file


TINY_DETECTRON2 = """
_BASE_: "{base}"
MODEL:
  FPN: {{OUT_CHANNELS: 32}}
  RPN: {{POST_NMS_TOPK_TRAIN: 32, POST_NMS_TOPK_TEST: 16}}
  ROI_HEADS: {{BATCH_SIZE_PER_IMAGE: 16}}
  ROI_BOX_HEAD: {{FC_DIM: 32, CONV_DIM: 32}}
  ROI_MASK_HEAD: {{NUM_CONV: 1, CONV_DIM: 16}}
  VITDET: {{IMAGE_SIZE: 64, WINDOW_SIZE: 2}}
INPUT: {{MIN_SIZE_TRAIN: [64], MAX_SIZE_TRAIN: 64, MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 64}}
SOLVER: {{IMS_PER_BATCH: 2, BASE_LR: {lr}, MAX_ITER: {iterations}, STEPS: [{step}], WARMUP_ITERS: 2}}
DATALOADER: {{NUM_WORKERS: 0}}
TEST: {{PRECISE_BN: {{NUM_ITER: 2}}}}
"""


def tiny_detectron2(name: str, folder: Path, iterations: int = 8) -> Path:
    """`configs/detectron2/NAME.yaml`, shrunk, written to `folder`."""
    file = folder / f"{name}.yaml"
    file.write_text(
        TINY_DETECTRON2.format(
            base=ROOT / "configs" / "detectron2" / f"{name}.yaml",
            step=iterations - 2,
            lr=1e-4 if "vit" in name else 0.002,
            iterations=iterations,
        )
    )
    return file


RETINANET_MMDET = """
_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', '{root}/configs/mmdet/_base_/recipe.py']
model = dict(
    backbone=dict(depth=18, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32, stacked_convs=1))
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[1].update(with_mask=False)
train_pipeline[2].update(scales=[(64, 64)])
test_pipeline[1].update(scale=(64, 64))
train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=train_pipeline))
test_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline))
test_evaluator = dict(metric=['bbox'])
auto_scale_lr = dict(base_batch_size=2)
optim_wrapper = dict(optimizer=dict(lr=0.001))
"""
RETINANET_DETECTRON2 = """
_BASE_: "{root}/configs/detectron2/_base_/recipe.yaml"
MODEL:
  META_ARCHITECTURE: RetinaNet
  BACKBONE: {{NAME: build_retinanet_resnet_fpn_backbone}}
  RESNETS: {{DEPTH: 18, RES2_OUT_CHANNELS: 64, OUT_FEATURES: [res3, res4, res5]}}
  FPN: {{IN_FEATURES: [res3, res4, res5], OUT_CHANNELS: 32}}
  ANCHOR_GENERATOR: {{SIZES: [[32], [64], [128], [256], [512]]}}
  RETINANET: {{NUM_CONVS: 1}}
INPUT: {{MIN_SIZE_TRAIN: [64], MAX_SIZE_TRAIN: 64, MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 64}}
SOLVER: {{IMS_PER_BATCH: 2, BASE_LR: 0.001}}
DATALOADER: {{NUM_WORKERS: 0}}
"""


def tiny_retinanet(framework: str, folder: Path) -> Path:
    """A recipe of a user's own for a one-stage detector, written to `folder`."""
    text, suffix = (RETINANET_MMDET, ".py") if framework == "mmdet" else (RETINANET_DETECTRON2, ".yaml")
    file = folder / f"retinanet{suffix}"
    file.write_text(text.format(root=ROOT))
    return file
