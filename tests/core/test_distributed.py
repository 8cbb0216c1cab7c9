"""Norms that are synchronised over GPUs leave a network's function as it was; nobody converts them another way."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from convert.targets.timm_stages import build_stages, forward_stages
from pretrain.backbones import build_backbone
from pretrain.methods import METHODS, Progress, build_method
from pretrain.state import Objective
from sslight.core import distributed
from tests.pretrain.golden import relative_error
from tests.pretrain.tiny import config, views

ROOT = Path(__file__).resolve().parents[2]
ARCHS = ("mobilenetv2_100", "mobilenetv3_small_100", "efficientnet_b0", "resnet18", "convnext_atto")


def stir(module: nn.Module) -> nn.Module:
    """Give every norm statistics and biases as of a trained network: with those of the start, little is cut off."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            if part.affine:
                nn.init.normal_(part.bias, std=0.5)
            nn.init.normal_(part.running_mean, std=0.1)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return module


@pytest.fixture
def convert(monkeypatch):
    """`convert_sync_batchnorm` on a copy, as one of two processes on GPUs does it."""

    def call(module: nn.Module) -> nn.Module:
        with monkeypatch.context() as patch:
            patch.setattr(distributed, "world_size", lambda: 2)
            patch.setattr(torch.cuda, "is_available", lambda: True)
            return distributed.convert_sync_batchnorm(copy.deepcopy(module))

    return call


def converted_all(plain: nn.Module, other: nn.Module) -> bool:
    count = sum(isinstance(part, _BatchNorm) for part in plain.modules())
    return (
        count == sum(isinstance(part, nn.SyncBatchNorm) for part in other.modules())
        and plain.state_dict().keys() == other.state_dict().keys()
    )


@pytest.mark.parametrize("arch", ARCHS)
def test_a_converted_backbone_computes_what_the_plain_one_does(arch, convert):
    """1e-6 of the largest entry: in eval mode both norms are the same affine map."""
    plain = stir(build_backbone(arch))
    other = convert(plain)
    assert converted_all(plain, other)
    with torch.no_grad():
        images = torch.randn(2, 3, 64, 64)
        assert relative_error(other.eval()(images), plain.eval()(images)) < 1e-6


@pytest.mark.parametrize("name", METHODS)
def test_a_converted_objective_computes_what_the_plain_one_does(name, convert):
    """With its head's one-dimensional norms and the joint probe; loss and feature to 1e-6."""
    norms = {"DINO__HEAD_BN": True, "SWAV__HEAD_BN": True}
    torch.manual_seed(0)
    method = build_method(config(name, MODEL__BACKBONE_ARCH="mobilenet_v2", **norms))
    plain = stir(Objective(method, classes=3)).eval()
    other = convert(plain)
    assert converted_all(plain, other) and any(isinstance(part, nn.SyncBatchNorm) for part in other.modules())
    found = []
    for objective in (plain, other):
        torch.manual_seed(1)
        with torch.no_grad():
            found.append(objective(views(0), torch.tensor([0, 1, 2, 0]), Progress(0, 3, 3)))
    for key in ("loss", "feature", "probe_loss"):
        assert relative_error(found[1][key], found[0][key]) < 1e-6, key


@pytest.mark.parametrize("arch", ("mobilenetv2_100", "efficientnet_b0"))
def test_a_detectors_stages_compute_the_same_with_either_norm(arch):
    plain, other = (build_stages(arch, (1, 2, 3, 4), norm)[0] for norm in ("BN", "SyncBN"))
    other.load_state_dict(stir(plain).state_dict())
    assert converted_all(plain, other)
    with torch.no_grad():
        maps = [forward_stages(model.eval(), torch.ones(1, 3, 64, 64), (1, 2, 3, 4)) for model in (plain, other)]
    assert all(relative_error(b, a) < 1e-6 for a, b in zip(*maps, strict=True))


def test_on_one_process_norms_stay_as_they_are():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    assert distributed.convert_sync_batchnorm(model) is model and type(model[1]) is nn.BatchNorm2d


@pytest.mark.parametrize("package", ("pretrain", "convert", "benchmarks", "tools"))
def test_torchs_own_converter_is_used_nowhere(package):
    """It knows batch norms alone, and not the activation that timm's hold."""
    for file in (ROOT / package).rglob("*.py"):
        assert "SyncBatchNorm.convert" not in file.read_text(), file
