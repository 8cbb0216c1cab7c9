"""Heads: names and shapes of the published checkpoints, initialisation, and torch's own weight norm."""

import json

import pytest
import torch
from torch import nn

from pretrain.heads import unit
from pretrain.methods import build_method
from pretrain.methods.dino import WeightNormLinear
from pretrain.settings import DEFAULTS
from sslight.core.config import load_config
from tests.conftest import ROOT
from tests.pretrain.golden import DATA
from tests.pretrain.tiny import config

CONFIGS = {
    "dino_mobilenet_v2": "dino_cnn_sslight",
    "dino_resnet18": "dino_cnn_sslight",
    "dino_resnet34": "dino_cnn_baseline",
    "dino_vit_tiny": "dino_vit_sslight",
    "swav_mobilenet_v2": "swav_cnn_sslight",
    "moco_mobilenet_v2": "moco_cnn_sslight",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_names_and_shapes_outside_the_backbone_are_the_published_ones(name):
    """Every head key and buffer; the published MoCo keeps the queue in the state dict, SwAV and DINO elsewhere."""
    arch = name.split("_", 1)[1]
    cfg = load_config(DEFAULTS, ROOT / "configs" / "pretrain" / f"{CONFIGS[name]}.yaml", ["MODEL.BACKBONE_ARCH", arch])
    published = json.loads((DATA / "sslight_checkpoint_keys" / f"{name}.json").read_text())
    expected = {key.removeprefix("module."): tuple(shape) for key, shape in published.items()}
    expected = {key: shape for key, shape in expected.items() if ".head." in key or key.startswith("queue")}
    with torch.device("meta") if name != "moco_mobilenet_v2" else torch.device("cpu"):
        state = build_method(cfg).state_dict()
    ours = {key: tuple(value.shape) for key, value in state.items() if ".backbone." not in key}
    extra = {"dino": {"center"}, "swav": {"queue", "queue_filled"}, "moco": set()}[cfg.METHOD]
    assert ours.keys() - expected.keys() == extra
    assert {key: ours.get(key) for key in expected} == expected


def test_weight_norm_equals_torchs():
    ours = WeightNormLinear(6, 5, learn_scale=True)
    with torch.no_grad():
        ours.weight_g.uniform_(0.5, 2.0)
    theirs = nn.utils.parametrizations.weight_norm(nn.Linear(6, 5, bias=False))
    theirs.parametrizations.weight.original0.data.copy_(ours.weight_g)
    theirs.parametrizations.weight.original1.data.copy_(ours.weight_v)
    x, weights = torch.randn(4, 6), torch.randn(4, 5)
    for layer in (ours, theirs):
        (layer(x) * weights).sum().backward()
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.weight_g.grad, theirs.parametrizations.weight.original0.grad)
    torch.testing.assert_close(ours.weight_v.grad, theirs.parametrizations.weight.original1.grad)


@pytest.mark.parametrize(
    ("method", "prefix", "std"),
    [("dino", "student.head.mlp", 0.02), ("moco", "encoder_q.head.mlp", 0.02), ("swav", "network.head", 0.01)],
)
def test_initialisation(method, prefix, std):
    """Linear weights by their standard deviation (to 5%) and largest value, biases zero."""
    wide = {f"{m}__HIDDEN_SIZE": 512 for m in ("DINO", "SWAV", "MOCO")}
    module = build_method(config(method, SWAV__PROTOTYPES=300, **wide)).get_submodule(prefix)
    linears = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    assert len(linears) == {"dino": 3, "swav": 3, "moco": 2}[method]
    for layer in linears:
        assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
        assert layer.weight.abs().max() < 7 * std
        assert layer.bias is None or not layer.bias.any()


def test_last_layer_starts_at_torchs_default():
    torch.manual_seed(0)
    layer = WeightNormLinear(64, 100, learn_scale=True)
    assert layer.weight_v.abs().max().item() == pytest.approx(1 / 8, rel=0.01)  # uniform within 1 / sqrt(fan in)
    assert layer.weight_v.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.02)


def test_unit_stays_float32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = unit(torch.randn(4, 8).bfloat16())
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(4))
