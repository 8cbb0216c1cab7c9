"""One recipe, two frameworks: the resolved configs agree field by field, and every one builds and takes a step."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from sslight.core.config import flatten
from tests.configs.recipe_fields import of_detectron2, of_mmdet

pytest.importorskip("mmdet", reason="comes with the mmdet extra")
from benchmarks.detection.coco import read_recipe  # noqa: E402
from benchmarks.detection.in_mmdet import run as coco_mmdet  # noqa: E402

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MMDET = sorted(path.stem for path in (CONFIGS / "mmdet").glob("*_rcnn_*x.py"))
DETECTRON2 = sorted(path.stem for path in (CONFIGS / "detectron2").glob("*.yaml"))

# What the configs cannot make equal, and why; these hold for every recipe and are visible in code, not in a field.
LEFTOVERS = {
    "resizing": "PIL's bilinear filter in detectron2, OpenCV's in mmdet",
    "mask targets": "polygons are rasterised at 28 px in detectron2; mmdet resamples the full-size bitmap by roi_align",
    "head initialisation": "fc layers Caffe2-Xavier (fan-in) against Xavier uniform; the mask heads start alike",
    "rpn loss": "divided by 256 an image in detectron2, by the anchors sampled in mmdet, fewer only on tiny images",
    "unused last convolution": "mmdet's own MobileNetV2 always runs conv2; the timm network stops at the last stage",
    "sampling": "each framework draws its own random anchors, rois and image order",
}


def is_published(fields):
    """The facts of the published recipe that every config shares."""
    assert fields["batch"] == 16 and fields["learning rate"] == 0.02 and fields["warm-up"] == (1000, 0.001)
    assert fields["optimizer"] == ("SGD", 0.9, False) and fields["weight decay"] == 1e-4
    assert fields["weight decay of norms"] == 0 and fields["backbone norm"] == "SyncBN"
    assert fields["color order"] == "RGB"
    assert fields["mean"] == [123.675, 116.28, 103.53] and fields["std"] == [58.395, 57.12, 57.375]
    assert fields["train sides"] == [640, 672, 704, 736, 768, 800] and fields["test size"] == (800, 1333)
    assert fields["frozen stages"] == 0 and not fields["norm uses running statistics in training"]
    assert (fields["iterations"], fields["steps"]) == (90000, [60000, 80000])


def test_the_set_is_the_same_in_both_frameworks():
    wanted = {
        f"{kind}_rcnn_{name}_1x"
        for kind in ("faster", "mask")
        for name in ("r18_fpn", "r34_fpn", "r50_fpn", "mobilenetv2_fpn", "mobilenetv2_p4p6")
    }
    assert set(MMDET) == wanted and wanted <= set(DETECTRON2)
    for kind in ("faster", "mask"):
        assert {f"{kind}_rcnn_{r}_c4_1x" for r in ("r18", "r34", "r50")} <= set(DETECTRON2)
    assert {"voc_faster_rcnn_r18_c4", "voc_faster_rcnn_r18_fpn", "mask_rcnn_vit_tiny_vitdet_1x"} <= set(DETECTRON2)


def test_configs_are_short_and_open_with_their_command():
    for folder, suffix in (("mmdet", ".py"), ("detectron2", ".yaml")):
        for path in (CONFIGS / folder).glob(f"*{suffix}"):
            lines = path.read_text().splitlines()
            assert lines[0].startswith(("# sslight bench coco --framework", "# python tools/train_net.py")), path
            assert "demo" in path.stem or len(lines) < 30, path


@pytest.mark.parametrize("name", MMDET)
def test_mmdet_recipes_are_the_published_one(name):
    fields = of_mmdet(coco_mmdet.load_config(CONFIGS / "mmdet" / f"{name}.py"))
    is_published(fields)
    p4p6 = "p4p6" in name
    assert fields["anchor strides"] == ([16, 32, 64] if p4p6 else [4, 8, 16, 32, 64])
    assert fields["proposals after nms"] == ((2000, 1000) if p4p6 else (1000, 1000))
    assert (fields["mask head"] is not None) == name.startswith("mask")


def without_schedule(config, keys):
    """A copy of a flat config, and what it says of the schedule."""
    return {key: value for key, value in config.items() if key not in keys}, [config[key] for key in keys]


@pytest.mark.parametrize("name", MMDET)
def test_2x_of_mmdet_is_the_published_one(name):
    """180k iterations with steps at 120k and 160k, the warm-up and all the rest as of 1x."""
    once, twice = (
        dict(flatten(coco_mmdet.to_dict(read_recipe("mmdet", f"{name[:-2]}{schedule}", [])[0])))
        for schedule in ("1x", "2x")
    )
    keys = ["train_cfg.max_iters", "train_cfg.val_interval", "param_scheduler"]
    (rest, _), (same, (iterations, interval, schedulers)) = (without_schedule(config, keys) for config in (once, twice))
    assert rest == same and (iterations, interval) == (180000, 180001)
    assert schedulers == [
        {"type": "LinearLR", "start_factor": 0.001, "by_epoch": False, "begin": 0, "end": 1000},
        {
            "type": "MultiStepLR",
            "by_epoch": False,
            "begin": 0,
            "end": 180000,
            "milestones": [120000, 160000],
            "gamma": 0.1,
        },
    ]
    cfg = coco_mmdet.load_config(CONFIGS / "mmdet" / f"{name}.py")
    words = ["train_cfg.max_iters", "180000", "param_scheduler.1.end", "180000"]  # as for tools/train_mmdet.py
    coco_mmdet.override(cfg, [*words, "param_scheduler.1.milestones", "[120000,160000]"])
    by_hand = dict(flatten(coco_mmdet.to_dict(cfg)))  # there is no validation, of which it would move the interval
    assert {**by_hand, "train_cfg.val_interval": 180001} == twice


@pytest.mark.parametrize("name", [name for name in DETECTRON2 if name.endswith("1x")])
def test_2x_of_detectron2_is_the_published_one(name):
    pytest.importorskip("detectron2", reason="not on the package index")
    from benchmarks.detection.in_detectron2.run import load_config, override, to_dict

    once, twice = (
        dict(flatten(to_dict(read_recipe("detectron2", f"{name[:-2]}{schedule}", [])[0]))) for schedule in ("1x", "2x")
    )
    keys = ["SOLVER.MAX_ITER", "SOLVER.STEPS", "SOLVER.WARMUP_ITERS"]
    (rest, _), (same, schedule) = (without_schedule(config, keys) for config in (once, twice))
    assert rest == same and schedule == [180000, [120000, 160000], 1000]
    cfg = load_config(CONFIGS / "detectron2" / f"{name}.yaml")
    override(cfg, ["SOLVER.MAX_ITER", "180000", "SOLVER.STEPS", "(120000, 160000)"])  # as for tools/train_net.py
    assert dict(flatten(to_dict(cfg))) == twice


@pytest.mark.parametrize("name", MMDET)
@pytest.mark.detectron2
def test_both_frameworks_resolve_to_the_same_recipe(name):
    from benchmarks.detection.in_detectron2 import run as coco_detectron2

    ours = of_mmdet(coco_mmdet.load_config(CONFIGS / "mmdet" / f"{name}.py"))
    theirs = of_detectron2(coco_detectron2.load_config(CONFIGS / "detectron2" / f"{name}.yaml"))
    assert ours["arch"][0] == theirs["arch"][0].removesuffix("_100").replace("mobilenetv2100", "mobilenetv2")
    assert set(ours) == set(theirs)
    for field in ours:
        one, other = (np.asarray(f[field], dtype=object).tolist() for f in (ours, theirs))
        assert one == pytest.approx(other) if _numeric(one) else one == other, field
    assert len(ours) > 50 and all(LEFTOVERS.values())


def _numeric(value):
    values = value if isinstance(value, list) else [value]
    return all(isinstance(item, int | float) and not isinstance(item, bool) for item in values)


@pytest.mark.parametrize("name", MMDET)
def test_every_mmdet_config_takes_a_training_step(name):
    """With its true hyper-parameters but for image size (64 px) and batch (1)."""
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import init_default_scope
    from mmengine.structures import InstanceData

    cfg = coco_mmdet.load_config(CONFIGS / "mmdet" / f"{name}.py")
    init_default_scope("mmdet")
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(cfg.model))
    model.init_weights()
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    sample = DetDataSample(
        metainfo=dict(
            img_shape=(64, 64), ori_shape=(64, 64), pad_shape=(64, 64), scale_factor=(1, 1), batch_input_shape=(64, 64)
        )
    )
    mask = np.zeros((1, 64, 64), np.uint8)
    mask[0, 8:48, 8:56] = 1
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[8.0, 8, 56, 48]]), labels=torch.tensor([3]), masks=BitmapMasks(mask, 64, 64)
    )
    data = {"inputs": [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)], "data_samples": [sample]}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    losses = model.train_step(data, optimizer)
    if name.startswith("mask"):  # both frameworks start with mask logits near 0: the loss of one class is ln 2
        assert float(losses["loss_mask"]) == pytest.approx(np.log(2), abs=0.02)
    assert torch.isfinite(losses["loss"]) and ("loss_mask" in losses) == name.startswith("mask")
    changed = {key.split(".")[0] for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"backbone", "neck", "rpn_head", "roi_head"}
    decays = {group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {0.0, 1e-4}


@pytest.mark.parametrize("name", DETECTRON2)
@pytest.mark.detectron2
def test_every_detectron2_config_takes_a_training_step(name):
    """As above, in detectron2; ViTDet pads to 64 px instead of 1024."""
    from detectron2.modeling import build_model
    from detectron2.structures import Boxes, Instances, PolygonMasks

    from benchmarks.detection.in_detectron2 import run as coco_detectron2
    from benchmarks.detection.in_detectron2.parts import Trainer

    cfg = coco_detectron2.load_config(CONFIGS / "detectron2" / f"{name}.yaml")
    coco_detectron2.override(cfg, ["MODEL.DEVICE", "cpu", "MODEL.VITDET.IMAGE_SIZE", "64"])
    torch.manual_seed(0)
    model = build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    target = Instances((64, 64), gt_boxes=Boxes(torch.tensor([[8.0, 8, 56, 48]])), gt_classes=torch.tensor([3]))
    target.gt_masks = PolygonMasks([[np.array([8.0, 8, 56, 8, 56, 48, 8, 48])]])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    from detectron2.utils.events import EventStorage

    with EventStorage():
        losses = model([{"image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), "instances": target}])
    assert ("loss_mask" in losses) == cfg.MODEL.MASK_ON
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    optimizer.step()
    changed = {key.split(".")[0] for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"backbone", "proposal_generator", "roi_heads"}
    assert all(
        parameter.grad is not None
        for key, parameter in model.named_parameters()
        if parameter.requires_grad and "backbone" in key
    ), "DDP would wait for these"
