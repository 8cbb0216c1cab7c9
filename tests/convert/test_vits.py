"""Plain ViTs are told by their shapes: timm's own, variants of them, and those that cannot be told."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from convert.naming.vit import has_mocov3_positions
from convert.reader import read_checkpoint
from convert.vits import infer_vit
from pretrain.backbones import backbone_shapes, meta_backbone
from sslight.core.errors import InputError
from tests.convert.peers.test_mocov3 import positions

TIMMS = (
    "vit_tiny_patch16_224",
    "vit_small_patch8_224",
    "vit_base_patch32_224",
    "vit_base_patch16_gap_224",
    "vit_base_patch16_clip_224",
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "deit_small_distilled_patch16_224",
    "deit3_small_patch16_224",
)
VARIANTS = (
    ("vit_tiny_patch16_224", {"depth": 2, "num_heads": 6, "mlp_ratio": 3.0, "qkv_bias": False, "img_size": 48}),
    ("vit_tiny_patch16_224", {"depth": 1, "qk_norm": True, "reg_tokens": 2, "no_embed_class": True}),
    ("vit_tiny_patch16_224", {"depth": 1, "class_token": False, "global_pool": "avg", "fc_norm": True}),
    ("vit_tiny_patch16_224", {"depth": 1, "class_token": False, "global_pool": "avg", "fc_norm": False}),
    ("vit_tiny_patch16_224", {"depth": 1, "class_token": False, "global_pool": "map", "fc_norm": False}),
    ("vit_small_patch16_224", {"depth": 1, "embed_dim": 320, "num_heads": 5, "patch_size": 7, "img_size": 28}),
    ("vit_giant_patch14_dinov2", {"depth": 1, "embed_dim": 192, "num_heads": 3, "img_size": 28}),
)


@pytest.mark.parametrize("arch", TIMMS)
def test_a_network_of_timms_is_told_by_its_own_name(arch):
    assert infer_vit(backbone_shapes(arch)) == (arch, {})


@pytest.mark.parametrize(("arch", "options"), VARIANTS)
def test_a_variant_is_built_with_the_same_shapes_tokens_and_pooling(arch, options):
    shapes = backbone_shapes(arch, **options)
    told, built = infer_vit(shapes)
    assert backbone_shapes(told, **built) == shapes
    ours, theirs = meta_backbone(told, **built), meta_backbone(arch, **options)
    for name in ("global_pool", "num_prefix_tokens", "no_embed_class"):
        assert getattr(ours, name) == getattr(theirs, name)


def test_heads_of_a_width_that_timm_has_not_are_64_numbers_wide_or_asked_for():
    shapes = backbone_shapes("vit_tiny_patch16_224", embed_dim=320, num_heads=5, depth=1)
    assert infer_vit(shapes)[1]["num_heads"] == 5
    odd = backbone_shapes("vit_tiny_patch16_224", embed_dim=200, num_heads=5, depth=1)
    with pytest.raises(InputError, match="width 200.*--set num_heads=N"):
        infer_vit(odd)
    assert "num_heads" not in infer_vit(odd, {"num_heads": 4})[1]


def test_a_missing_norm_is_no_network_without_norm():
    shapes = {key: shape for key, shape in backbone_shapes("vit_tiny_patch16_224").items() if key[:5] != "norm."}
    arch, options = infer_vit(shapes)
    assert backbone_shapes(arch, **options).keys() - shapes.keys() == {"norm.weight", "norm.bias"}


def test_mocov3s_positions_are_told_from_those_that_begin_with_the_column():
    fixed = positions(torch.Size([1, 17, 192]))
    halves = fixed.chunk(2, 2)
    assert has_mocov3_positions({"pos_embed": fixed})
    assert not has_mocov3_positions({"pos_embed": torch.cat(halves[::-1], 2)})
    assert not has_mocov3_positions({"pos_embed": fixed[:, :-1]})
    assert not has_mocov3_positions({"pos_embed": fixed[:, :1]}) and not has_mocov3_positions({})


def test_jaxs_arrays_are_refused_by_name(tmp_path):
    np.savez(tmp_path / "ViT-B_16.npz", **{"cls": np.zeros((1, 1, 4)), "Transformer/encoder_norm/bias": np.zeros(4)})
    with pytest.raises(InputError, match=r"NumPy arrays \(.npz\)"):
        read_checkpoint(tmp_path / "ViT-B_16.npz")
