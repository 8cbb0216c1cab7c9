"""A source in its own project's code: what is read must compute the same, and a wrong reading must not pass."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from convert.convert_ckpt import convert
from convert.own_code import own_feature
from convert.reader import read_content
from convert.verify import image_for
from sslight.core.errors import InputError
from tests.convert.peers.case import fill

CONFIG = (
    "model = dict(type='ImageClassifier', backbone=dict(type='MoCoV3ViT', arch={arch!r}, img_size=32, patch_size=16))\n"
)


@pytest.fixture(scope="module")
def content():
    """mmpretrain's ViT of MoCo v3's size, whose 12 heads no shape shows, as its runner keeps it."""
    if importlib.util.find_spec("mmpretrain") is None:
        pytest.skip("mmpretrain is not installed")
    from convert.targets.mmcv_ops import install

    install()
    from mmpretrain.registry import MODELS

    network = fill(MODELS.build({"type": "MoCoV3ViT", "arch": "mocov3-small", "img_size": 32, "patch_size": 16}))
    state = {f"backbone.{key}": value for key, value in network.state_dict().items()}
    return {"meta": {"cfg": CONFIG.format(arch="mocov3-small")}, "state_dict": state}


@pytest.mark.peers
def test_mmpretrain_computes_what_was_read(content, tmp_path):
    torch.save(content, tmp_path / "mmpretrain.pth")
    done = convert(tmp_path / "mmpretrain.pth", "timm", tmp_path / "out.safetensors")
    assert done["options"]["num_heads"] == 12
    [compared] = [found for words, found in done["differences"].items() if "mmpretrain's own network" in words]
    assert compared["pooled"] < 1e-5


@pytest.mark.peers
def test_other_heads_than_the_project_has_are_refused(content, tmp_path):
    torch.save(content, tmp_path / "mmpretrain.pth")
    with pytest.raises(
        InputError, match="other features than the source's tensors in mmpretrain's own network: pooled"
    ):
        convert(tmp_path / "mmpretrain.pth", "timm", tmp_path / "out.safetensors", options=["num_heads=6"])
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.peers
def test_settings_that_build_no_such_network_are_left(content):
    wrong = {**content, "meta": {"cfg": CONFIG.format(arch="mocov3-small").replace("MoCoV3ViT", "Nothing")}}
    checkpoint = read_content(wrong, "mmpretrain.pth", options={"num_heads": 12})
    assert own_feature(checkpoint, image_for(checkpoint)) is None
