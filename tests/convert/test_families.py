"""Every family and architecture: a file in its exact layout, every target, its own forward's features.

What follows reading depends on the architecture alone, so the targets are tried once per architecture, and ONNX in
tests/convert/test_conversion.py; the slow tests try every family with every target.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from convert.families import FAMILIES, Checkpoint
from convert.naming.rules import class_of
from convert.reader import network_of, read_checkpoint, read_content
from convert.targets import REFUSED, TARGETS, rename
from convert.verify import differences, fixed_image, verify_file
from sslight.core.errors import InputError
from tests.convert.family_files import CASES
from tests.convert.own_networks import Own

TOLERANCE = 1e-5  # of the largest feature
HEAVY = {
    "mocov3 vit-b",
    "sslight resnet101",
    "moco resnet50",
    "vissl resnet50",
    "swav resnet50",
    "openmmlab resnet50",
    "solo-learn old resnet50",
    "mocov3 resnet50",
}
CHOSEN = [pytest.param(name, marks=pytest.mark.slow) if name in HEAVY else name for name in CASES]
OPTIONAL = {
    "detectron2": "detectron2 is not on the package index",
    "mmdet": "comes with the mmdet extra",
    "onnx": "comes with the onnx extra",
}
_seen: set[tuple[str, str]] = set()


@dataclass
class Case:
    """A checkpoint file's layout, the network in it, what was read from the file, and the network's own feature."""

    family: str
    layout: Callable[[Own], dict]
    own: Own
    checkpoint: Checkpoint
    images: Tensor
    expected: Tensor


@pytest.fixture(scope="module", params=CHOSEN)
def case(request, tmp_path_factory):
    family, layout, build = CASES[request.param]
    own = build()
    path = tmp_path_factory.mktemp("family") / "checkpoint.pth"
    torch.save(layout(own), path)
    checkpoint = read_checkpoint(path, from_detector="detector" in family)
    path.unlink()
    images = fixed_image(own.size, own.size)
    return Case(family, layout, own, checkpoint, images, own.pooled(images))


def _relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def test_reads_the_family_and_network(case):
    assert (case.checkpoint.family, case.checkpoint.arch) == (case.family, case.own.arch)
    with torch.no_grad():
        assert _relative(network_of(case.checkpoint).eval()(case.images), case.expected) < TOLERANCE


def test_every_fault_is_refused_by_name(case):
    """Four keys spread over the backbone: one unknown, one renamed; one missing, one of another shape."""

    def read(state):
        content = case.layout(dataclasses.replace(case.own, state=state))
        return read_content(content, "faulty.pth", from_detector="detector" in case.family)

    timm = {value.data_ptr(): key for key, value in read(case.own.state).state.items()}  # memory tells who became whom
    usable = [key for key, value in case.own.state.items() if value.ndim and value.data_ptr() in timm]
    extra, renamed, missing, misshaped = (usable[len(usable) * part // 5] for part in (1, 2, 3, 4))
    names = {key: f"'{timm[case.own.state[key].data_ptr()]}'" for key in (missing, misshaped)}

    unknown = {**case.own.state, f"{extra}_surplus": torch.zeros(3)}
    unknown[f"{renamed}_old"] = unknown.pop(renamed)
    with pytest.raises(InputError) as raised:
        read(unknown)
    for name in (f"{extra.split('.')[-1]}_surplus'", f"{renamed.split('.')[-1]}_old'"):
        assert name in str(raised.value)

    damaged = {**case.own.state, misshaped: case.own.state[misshaped][:-1]}
    del damaged[missing]
    with pytest.raises(InputError) as raised:
        read(damaged)
    assert f"missing {names[missing]}" in str(raised.value)
    assert f"{names[misshaped]} has shape {list(damaged[misshaped].shape)} instead of" in str(raised.value)


@pytest.mark.parametrize("to", list(TARGETS))
def test_goes_to_every_target(case, to, tmp_path):
    variant = _variant(case, to)
    if variant in _seen or to == "onnx" or case.own.arch in ("resnet50", "vit_base_patch14_dinov2"):
        pytest.skip("tried elsewhere, or heavy: a slow test tries all")
    _seen.add(variant)
    goes(case, to, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("to", TARGETS)
def test_every_family_goes_to_every_target(case, to, tmp_path):
    variant = _variant(case, to)
    if to == "onnx" and variant in _seen:
        pytest.skip("tried with another family")
    _seen.add(variant)
    goes(case, to, tmp_path)


def _variant(case, to):
    return f"{case.own.arch} {sorted(case.checkpoint.options.items())}", to


def goes(case, to, tmp_path):
    """The file written for a target gives the network's own feature, or the target refuses the architecture."""
    checkpoint, own, images, expected = case.checkpoint, case.own, case.images, case.expected
    if to in OPTIONAL:
        pytest.importorskip(to if to != "onnx" else "onnxscript", reason=OPTIONAL[to])
    target = TARGETS[to]
    if target.matrix[class_of(own.arch)].startswith(REFUSED):
        with pytest.raises(InputError, match="cannot go to"):
            rename(checkpoint, to)
        return
    try:
        outgoing = rename(checkpoint, to)
    except InputError as error:
        assert {"dist_token", "reg_token", "blocks.0.ls1.gamma"} & checkpoint.state.keys() or "positions" in str(error)
        return
    out, options = tmp_path / f"out{'' if target.files else target.suffixes[0]}", outgoing.options
    target.save(out, outgoing, checkpoint, None)
    if to == "onnx":
        session = importlib.import_module("onnxruntime").InferenceSession(str(out))
        assert _relative(torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), expected) < 1e-4
        return
    verify_file(target, out, outgoing)
    found, _ = target.features(out, checkpoint, images, **options)
    reference = target.reference(checkpoint, images, **options)
    if "pooled" in found:
        assert _relative(found["pooled"], expected) < TOLERANCE
    elif reference:
        assert max(differences(reference[0], found).values()) < TOLERANCE
    else:  # a detection backbone returns maps: its last one, pooled, is the feature
        last = found["layer4"] if "layer4" in found else found["last conv"]
        assert _relative(last.mean((2, 3)), expected) < TOLERANCE


def test_every_family_of_the_matrix_is_tried():
    words = {"ResNet": "resnet", "MobileNetV2": "mobilenet", "ViT": "vit", "other timm network": "efficientnet"}
    tried = {family: " ".join(name for name, (other, _, _) in CASES.items() if other == family) for family in FAMILIES}
    missing = {
        name for name, family in FAMILIES.items() for arch in family.architectures if words[arch] not in tried[name]
    }
    elsewhere = {"detectron2", "detectron2-detector"}  # tried in test_tables.py and test_detectors.py
    by_peers = {
        "clip",
        "dinov3",
        "esvit",
        "fcmae",
        "huggingface",
        "ibot",
        "ijepa",
        "lightly",
        "lightly-train",
        "mae",
        "mae-lite",
        "msn",
    }
    assert missing == elsewhere | by_peers
