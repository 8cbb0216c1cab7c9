"""The renaming tables: golden names, bit-identical round trips, every fault named, wrong rules caught by features."""

from __future__ import annotations

import dataclasses
import json

import pytest
import timm
import torch

from convert import verify
from convert.convert_ckpt import convert
from convert.naming import LAYOUTS, mobilenet, resnet
from convert.naming.rules import Rule, apply_table
from convert.reader import read_checkpoint, read_content
from convert.targets import rename
from sslight.core.errors import InputError
from tests.convert.family_files import GOLDEN, sslight
from tests.convert.own_networks import features_own, timm_own, torchvision_own

CNNS = ("resnet18", "resnet34", "resnet50", "mobilenetv2_100")


def _saved(path, content):
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {arch: _saved(folder / f"{arch}.pth", sslight(timm_own(arch))) for arch in CNNS}


@pytest.mark.parametrize(
    "arch, to, prefix, golden",
    [
        ("resnet18", "detectron2", "backbone.bottom_up.", "detectron2_state_dict/mask_rcnn_R_18_FPN"),
        ("resnet34", "detectron2", "backbone.bottom_up.", "detectron2_state_dict/mask_rcnn_R_34_FPN"),
        ("resnet50", "detectron2", "backbone.bottom_up.", "detectron2_state_dict/mask_rcnn_R_50_FPN"),
        ("resnet18", "mmdet", "backbone.", "mmdet_state_dict/mask-rcnn_resnet18_fpn"),
        ("resnet34", "mmdet", "backbone.", "mmdet_state_dict/mask-rcnn_resnet34_fpn"),
        ("resnet50", "mmdet", "backbone.", "mmdet_state_dict/mask-rcnn_resnet50_fpn"),
        ("mobilenetv2_100", "mmdet", "backbone.", "mmdet_state_dict/mask-rcnn_mobilenetv2_fpn"),
        ("mobilenetv2_100", "mmdet", "backbone.", "mmdet_state_dict/mask-rcnn_mobilenetv2_out7_fpn"),
    ],
)
def test_names_and_shapes_are_the_golden_ones(files, arch, to, prefix, golden):
    shapes = json.loads((GOLDEN / f"{golden}.json").read_text())
    expected = {key: shape for key, shape in shapes.items() if key.startswith(prefix)}
    made = rename(read_checkpoint(files[arch]), to, prefix=prefix if to == "mmdet" else "").tensors
    assert {key: list(value.shape) for key, value in made.items()} == expected


@pytest.mark.parametrize(
    "arch",
    [
        arch if arch in ("resnet18", "resnet50", "mobilenetv2_100") else pytest.param(arch, marks=pytest.mark.slow)
        for arch in CNNS
    ],
)
@pytest.mark.parametrize(
    "to, suffix, options",
    [
        ("torchvision", ".pth", {}),
        ("mmdet", ".pth", {}),
        ("mmdet", ".pth", {"prefix": "backbone."}),
        ("detectron2", ".pth", {}),
        ("detectron2", ".pkl", {}),
        ("timm", ".safetensors", {}),
    ],
)
def test_round_trips_are_bit_identical(files, arch, to, suffix, options, tmp_path):
    """timm -> framework -> timm, through files."""
    there, back = tmp_path / f"there{suffix}", tmp_path / "back.safetensors"
    convert(files[arch], to, there, verify=False, **options)
    convert(there, "timm", back, verify=False)
    source, returned = read_checkpoint(files[arch]), read_checkpoint(back)
    assert returned.arch == arch
    assert source.state.keys() == returned.state.keys()
    assert all(torch.equal(source.state[key], returned.state[key]) for key in source.state)


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout.kind == "mobilenetv2"], ids=lambda x: x.name)
def test_mobilenet_tables_are_one_to_one(layout):
    keys = list(timm_own("mobilenetv2_100").state)
    foreign = apply_table(layout.table, keys, to_timm=False, where="test").keys
    assert len(set(foreign.values())) == len(keys)
    assert apply_table(layout.table, foreign.values(), to_timm=True, where="test").keys == {
        value: key for key, value in foreign.items()
    }


def test_two_rules_for_one_key_are_refused_by_name():
    table = (Rule("conv{n}.weight", "conv{n}.weight"), Rule("conv1.{wb}", "first.{wb}"))
    with pytest.raises(InputError, match=r"'conv1.weight' matches several rules"):
        apply_table(table, ["conv1.weight", "conv2.weight", "other.bias"], to_timm=True, where="test")


def test_a_target_filled_twice_is_refused_by_name():
    table = (Rule("a.weight", "x.weight"), Rule("b.weight", "x.weight"))
    with pytest.raises(InputError, match="'b.weight' and 'a.weight' both lead to 'x.weight'"):
        apply_table(table, ["a.weight", "b.weight"], to_timm=True, where="test")


FAULTS = {
    "missing": lambda state, key: state.pop(key),
    "extra": lambda state, key: state.__setitem__(f"{key.split('.')[0]}.0.surplus.weight", torch.zeros(3)),
    "renamed": lambda state, key: state.__setitem__(key + "_old", state.pop(key)),
    "mis-shaped": lambda state, key: state.__setitem__(key, state[key][:-1]),
    "not finite": lambda state, key: state.__setitem__(key, torch.full_like(state[key], float("nan"))),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "arch, key",
    [
        ("resnet18", "layer2.0.downsample.1.running_var"),
        ("resnet18", "conv1.weight"),
        ("mobilenetv2_100", "features.14.conv.1.1.bias"),
        ("mobilenetv2_100", "features.18.0.weight"),
    ],
)
def test_every_faulty_key_is_named(fault, arch, key, tmp_path):
    own = torchvision_own(arch)
    state = {name: value.clone() for name, value in own.state.items()}
    FAULTS[fault](state, key)
    if fault == "extra":
        named = f"{key.split('.')[0]}.0.surplus.weight"
    elif fault == "missing" and arch.startswith("mobilenet"):
        named = {"features.14.conv.1.1.bias": "blocks.5.0.bn2.bias", "features.18.0.weight": "conv_head.weight"}[key]
    elif fault in ("mis-shaped", "not finite") and arch.startswith("mobilenet"):
        named = {"features.14.conv.1.1.bias": "blocks.5.0.bn2.bias", "features.18.0.weight": "conv_head.weight"}[key]
    else:
        named = key
    path, out = _saved(tmp_path / "faulty.pth", state), tmp_path / "out.pth"
    with pytest.raises(InputError, match=named.replace(".", r"\.")):
        convert(path, "torchvision", out)
    assert list(tmp_path.iterdir()) == [path]


def _swapped(table, one, other):
    """The table with the timm sides of two rules exchanged: their tensors have equal shapes."""

    def side(rule):
        return {one: other, other: one}.get(rule.timm, rule.timm)

    assert {one, other} <= {rule.timm for rule in table}
    return tuple(Rule(rule.foreign, side(rule)) for rule in table)


def test_a_wrong_rule_of_a_target_is_caught_by_features(files, monkeypatch, tmp_path):
    pytest.importorskip("mmdet")
    wrong = _swapped(mobilenet.MOBILENET_OPENMMLAB, "blocks.{s:1-6}.{j}.bn1.{norm}", "blocks.{s:1-6}.{j}.bn2.{norm}")
    monkeypatch.setattr(mobilenet, "MOBILENET_OPENMMLAB", wrong)
    out = tmp_path / "out.pth"
    with pytest.raises(InputError, match=r"other features than [^:]+: blocks\.1 "):
        convert(files["mobilenetv2_100"], "mmdet", out)
    assert not list(tmp_path.iterdir())


def test_a_wrong_rule_of_a_source_is_caught_by_features(monkeypatch, tmp_path):
    path = _saved(tmp_path / "source.pth", features_own("mobilenetv2_100").state)
    layout = next(layout for layout in LAYOUTS if "features in a Sequential" in layout.name)
    wrong = _swapped(layout.table, "blocks.2.{j:0-2}.bn1.{norm}", "blocks.2.{j:0-2}.bn2.{norm}")
    monkeypatch.setattr(
        "convert.finding.LAYOUTS",
        tuple(dataclasses.replace(layout, table=wrong) if other is layout else other for other in LAYOUTS),
    )
    out = tmp_path / "out.safetensors"
    with pytest.raises(InputError, match=r"other features than [^:]+: blocks\.2 "):
        convert(path, "timm", out)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.detectron2
def test_a_wrong_rule_for_detectron2_is_caught_by_features(files, monkeypatch, tmp_path):
    kept = tuple(rule for rule in resnet.RESNET_DETECTRON2 if "bn{n:1-3}" not in rule.timm)
    wrong = (
        Rule("res{s+1}.{b}.conv1.norm.{norm}", "layer{s:1-4}.{b}.bn2.{norm}"),
        Rule("res{s+1}.{b}.conv2.norm.{norm}", "layer{s:1-4}.{b}.bn1.{norm}"),
    )
    monkeypatch.setattr(resnet, "RESNET_DETECTRON2", kept + wrong)
    for model in ("fpn", "c4"):
        with pytest.raises(InputError, match=r"other features than [^:]+: layer1 .*layer4 "):
            convert(files["resnet18"], "detectron2", tmp_path / "out.pth", model=model)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda key: {"state_dict": f"model._orig_mod.module.encoder_q.model.module.{key}"},
        lambda key: {"model": f"module.model.encoder_q._orig_mod.{key}"},
        lambda key: {"state_dict": f"encoder_q.{key.replace('layer1.0', '_orig_mod.layer1.0.module')}"},
    ],
)
def test_wrappers_are_read_past_wherever_they_stand(wrap):
    own = torchvision_own("resnet18")
    content: dict = {"epoch": 1}
    for key, value in own.state.items():
        [(container, name)] = wrap(key).items()
        content.setdefault(container, {})[name] = value
    checkpoint = read_content(content, "wrapped.pth")
    assert checkpoint.family == "moco" and checkpoint.arch == "resnet18"
    assert all(torch.equal(checkpoint.state[key], value) for key, value in own.state.items())


def test_features_that_are_not_finite_are_a_difference():
    one = {"stage": torch.ones(1, 2)}
    with pytest.raises(InputError, match="other features"):
        verify.require_equal("test", one, {"stage": torch.full((1, 2), float("nan"))})


@pytest.mark.parametrize("arch", ["regnety_002", "resnet26", "levit_128s"])
def test_other_networks_are_read_as_timm_saves_them(arch):
    """With their classifier, whatever it is called, and without --arch."""
    state = timm.create_model(arch).state_dict()
    checkpoint = read_content(state, "plain.pth")
    assert checkpoint.arch == arch
    backbone = timm.create_model(arch, num_classes=0)
    backbone.load_state_dict(checkpoint.state, strict=True)
    assert set(checkpoint.dropped["classifier or head on the backbone"]) == state.keys() - backbone.state_dict().keys()


def test_old_files_without_counters_are_read_and_said_so(tmp_path):
    own = torchvision_own("resnet18")
    state = {key: value for key, value in own.state.items() if not key.endswith("num_batches_tracked")}
    checkpoint = read_checkpoint(_saved(tmp_path / "old.pth", state))
    assert int(checkpoint.state["bn1.num_batches_tracked"]) == 0
    assert any("num_batches_tracked" in note for note in checkpoint.notes)


def test_networks_and_heads_are_chosen_by_name(tmp_path):
    own = timm_own("resnet18")
    path = _saved(tmp_path / "run.pth", sslight(own))
    student, teacher = read_checkpoint(path), read_checkpoint(path, network="teacher")
    assert student.network == "student" and torch.equal(student.state["conv1.weight"], own.state["conv1.weight"])
    assert torch.equal(teacher.state["conv1.weight"], own.state["conv1.weight"] + 1)
    assert set(student.head) == {"mlp.0.weight", "mlp.0.bias"}
    with pytest.raises(InputError, match="no network 'momentum'; it has student, teacher"):
        read_checkpoint(path, network="momentum")
    dropped = [key for keys in student.dropped.values() for key in keys]
    assert len(dropped) == len(set(dropped)) and "model.center" in dropped
    assert sum(student.counts.values()) == len(student.state)
