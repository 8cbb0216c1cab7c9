"""Backbones and the detectors around them: mmdet's own Pretrained init, detectron2's stock models, and back again."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from convert.convert_ckpt import convert
from convert.reader import read_checkpoint
from convert.targets import in_mmdet
from sslight.core.errors import InputError
from tests.convert.family_files import sslight
from tests.convert.own_networks import randomised, timm_own


@pytest.fixture(scope="module")
def run_file(tmp_path_factory):
    """A function: architecture -> a run checkpoint of it."""
    folder, made = tmp_path_factory.mktemp("runs"), {}

    def make(arch):
        if arch not in made:
            made[arch] = folder / f"{arch}.pth"
            torch.save(sslight(timm_own(arch)), made[arch])
        return made[arch]

    return make


@pytest.mark.parametrize(
    "arch, prefix", [("resnet18", ""), ("resnet18", "backbone."), ("mobilenetv2_100", ""), ("efficientnet_b0", "")]
)
def test_mmdet_loads_the_file_itself(run_file, arch, prefix, tmp_path):
    pytest.importorskip("mmdet")
    report = convert(run_file(arch), "mmdet", tmp_path / "out.pth", prefix=prefix)
    assert report["differences"]["mmdet from the file"]
    assert max(report["differences"]["mmdet from the file"].values()) <= 1e-5
    assert any("Pretrained" in step for step in report["verified"])


def test_the_mmdet_snippet_is_a_config_that_builds_and_loads(run_file, tmp_path):
    pytest.importorskip("mmdet")
    from mmdet.registry import MODELS
    from mmengine.config import Config

    from convert.targets.mmcv_ops import install

    install()
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    convert(run_file("resnet18"), "mmdet", tmp_path / "r18.pth", verify=False)
    config = Config.fromfile(tmp_path / "r18.py")
    assert config.model.neck.in_channels == [64, 128, 256, 512]
    assert config.model.data_preprocessor.bgr_to_rgb and config.model.data_preprocessor.mean[0] == 123.675
    backbone = MODELS.build(config.model.backbone)
    backbone.init_weights()
    expected = read_checkpoint(run_file("resnet18")).state
    assert all(torch.equal(backbone.state_dict()[key], value) for key, value in expected.items())


def test_a_detector_is_refused_unless_asked_for(tmp_path):
    pytest.importorskip("mmdet")
    backbone = randomised(in_mmdet.build("resnet18"))
    state = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    path = tmp_path / "epoch_12.pth"
    torch.save(
        {"meta": {}, "state_dict": {**state, "neck.conv.weight": torch.ones(2), "rpn_head.conv.weight": torch.ones(2)}},
        path,
    )
    with pytest.raises(InputError, match="--from-detector"):
        convert(path, "timm", tmp_path / "out.safetensors")
    report = convert(path, "timm", tmp_path / "out.safetensors", from_detector=True)
    assert report["source"]["family"] == "mmdet-detector"
    made = read_checkpoint(tmp_path / "out.safetensors").state
    assert all(torch.equal(made[key], value) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50"])
@pytest.mark.parametrize("model", ["fpn", "c4"])
@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
@pytest.mark.detectron2
def test_detectron2_loads_resnets_itself(run_file, arch, model, suffix, tmp_path):
    report = convert(run_file(arch), "detectron2", tmp_path / f"out{suffix}", model=model)
    assert len(report["differences"]["detectron2 from the file"]) == 4
    assert max(report["differences"]["detectron2 from the file"].values()) <= 1e-5


@pytest.mark.parametrize(
    "arch, config, model",
    [
        ("resnet18", "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", "fpn"),
        ("resnet34", "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", "fpn"),
        ("resnet50", "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", "fpn"),
        ("resnet18", "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml", "c4"),
        ("resnet34", "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml", "c4"),
        ("resnet50", "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml", "c4"),
    ],
)
@pytest.mark.detectron2
def test_stock_detectron2_models_take_file_and_snippet(run_file, arch, config, model, tmp_path):
    """As stock tools/train_net.py does it: the zoo's config, the snippet, build_model, the checkpointer; and back."""
    import detectron2
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    importlib.import_module("convert.targets.detectron2_backbones")  # registers the C4 head of R18/34
    recipes = Path(detectron2.__file__).parents[1] / "configs"
    if not recipes.is_dir():
        pytest.skip("detectron2's configs are not beside its package")
    convert(run_file(arch), "detectron2", tmp_path / "out.pth", model=model, verify=False)
    cfg = get_cfg()
    cfg.merge_from_file(str(recipes / config))
    cfg.merge_from_file(str(tmp_path / "out.yaml"))
    cfg.MODEL.DEVICE, cfg.MODEL.RESNETS.NORM = "cpu", "BN"
    detector = build_model(cfg)
    missed = DetectionCheckpointer(detector).resume_or_load(cfg.MODEL.WEIGHTS, resume=False)
    assert not missed.get("incompatible")
    written = torch.load(tmp_path / "out.pth", weights_only=True)
    loaded = detector.state_dict()
    assert len(written) == {"resnet18": 120, "resnet34": 216, "resnet50": 318}[arch]
    assert all(torch.equal(loaded[key], value) for key, value in written.items())
    assert cfg.INPUT.FORMAT == "RGB" and cfg.MODEL.BACKBONE.FREEZE_AT == 0

    trainer = {
        "hooks": {"LRScheduler": {"last_epoch": 9}},
        "_trainer": {"optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}}},
    }
    torch.save({"model": loaded, "trainer": trainer, "iteration": 9}, tmp_path / "model_final.pth")
    with pytest.raises(InputError, match="--from-detector"):
        read_checkpoint(tmp_path / "model_final.pth")
    back = read_checkpoint(tmp_path / "model_final.pth", from_detector=True)
    extra = [key for key in loaded if key.startswith("roi_heads.res5.norm.")]
    dropped = back.dropped.get("norm that a C4 head adds after res5", [])
    assert sorted(dropped) == sorted(f"model.{key}" for key in extra)
    assert bool(extra) == (model == "c4" and arch != "resnet50")
    source = read_checkpoint(run_file(arch)).state
    assert back.arch == arch and all(torch.equal(back.state[key], value) for key, value in source.items())


@pytest.mark.parametrize("arch", ["mobilenetv2_100", "vit_tiny_patch16_224"])
@pytest.mark.detectron2
def test_detectron2_loads_other_backbones_itself(run_file, arch, tmp_path):
    report = convert(run_file(arch), "detectron2", tmp_path / "out.pth")
    assert max(report["differences"]["detectron2 from the file"].values()) <= 1e-5


def test_vitdet_files_do_not_come_back(run_file, tmp_path):
    """ViTDet has no class token, so its backbone is no whole ViT: refused by name, not filled with random numbers."""
    convert(run_file("vit_tiny_patch16_224"), "detectron2", tmp_path / "vit.pth", verify=False)
    written = torch.load(tmp_path / "vit.pth", weights_only=True)
    assert not [key for key in written if "cls_token" in key or key.endswith(("net.norm.weight", "net.norm.bias"))]
    with pytest.raises(InputError, match="'cls_token'"):
        read_checkpoint(tmp_path / "vit.pth")
