"""Every family and architecture: a file in its exact layout, every target, its own forward's features.

What follows reading depends on the architecture alone, so the targets are tried once per architecture;
SSLIGHT_ALL_CASES=1 tries every family with every target (about ten minutes).
"""

from __future__ import annotations

import importlib
import os

import pytest
import torch

from convert.features import differences, fixed_image
from convert.reader import network_of, read_checkpoint
from convert.support import FAMILIES, TARGETS, kind_of, refusal
from convert.targets import rename
from convert.verify import verify_file, vitdet_features
from convert.write_files import write
from pretrain.errors import InputError
from tests.convert.family_files import CASES

TOLERANCE = 1e-5  # of the largest feature
ALL = bool(os.environ.get("SSLIGHT_ALL_CASES"))
HEAVY = {"mocov3 vit-b", "sslight resnet101", "moco resnet50", "vissl resnet50", "swav resnet50", "openmmlab resnet50",
         "solo-learn old resnet50", "mocov3 resnet50"}
CHOSEN = [name for name in CASES if ALL or name not in HEAVY]
_seen: set[tuple[str, str]] = set()


@pytest.fixture(scope="module", params=CHOSEN)
def case(request, tmp_path_factory):
    """(case's family, checkpoint as read, own network, images, its own pooled feature)."""
    family, layout, build = CASES[request.param]
    own = build()
    path = tmp_path_factory.mktemp("family") / "checkpoint.pth"
    torch.save(layout(own), path)
    checkpoint = read_checkpoint(path, from_detector="detector" in family)
    path.unlink()
    images = fixed_image(own.size, own.size)
    return family, checkpoint, own, images, own.pooled(images)


def _relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def test_reads_the_family_and_network(case):
    family, checkpoint, own, images, expected = case
    assert (checkpoint.family, checkpoint.arch) == (family, own.arch)
    with torch.no_grad():
        assert _relative(network_of(checkpoint).eval()(images), expected) < TOLERANCE


@pytest.mark.parametrize("to", [name for name in TARGETS if name != "onnx"])
def test_goes_to_every_target(case, to, tmp_path):
    _, checkpoint, own, images, expected = case
    if to == "detectron2":
        pytest.importorskip("detectron2", reason="detectron2 is not on the package index")
    variant = (f"{own.arch} {sorted(checkpoint.options.items())}", to)
    if not ALL and (variant in _seen or own.arch in ("resnet50", "vit_base_patch14_dinov2")):
        pytest.skip("tried elsewhere, or heavy; SSLIGHT_ALL_CASES=1 tries all")
    _seen.add(variant)
    if refusal(own.arch, to):
        with pytest.raises(InputError, match="cannot go to"):
            rename(checkpoint, to)
        return
    try:
        outgoing = rename(checkpoint, to)
    except InputError as error:
        assert {"dist_token", "reg_token", "blocks.0.ls1.gamma"} & checkpoint.state.keys() or "positions" in str(error)
        return
    out = tmp_path / ("out.safetensors" if to == "timm" else "out.pth")
    write(out, to, outgoing.tensors, checkpoint)
    verify_file(out, to, outgoing)
    found, _ = importlib.import_module(f"convert.in_{to}").features(out, checkpoint, images)
    if "pooled" in found:
        assert _relative(found["pooled"], expected) < TOLERANCE
    elif kind_of(own.arch) == "vit":
        assert max(differences(vitdet_features(checkpoint, images), found).values()) < TOLERANCE
    else:  # a detection backbone returns maps: its last one, pooled, is the feature
        last = found["layer4"] if "layer4" in found else found["last conv"]
        assert _relative(last.mean((2, 3)), expected) < TOLERANCE


def test_every_family_of_the_matrix_is_tried():
    words = {"ResNet": "resnet", "MobileNetV2": "mobilenet", "ViT": "vit", "other timm network": "efficientnet"}
    tried = {family: " ".join(name for name, (other, _, _) in CASES.items() if other == family) for family in FAMILIES}
    missing = {family for family, archs in FAMILIES.items() for arch in archs if words[arch] not in tried[family]}
    assert missing == {"detectron2", "detectron2-detector"}  # tried in test_tables.py and test_detectors.py
