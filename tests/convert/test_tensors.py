"""Tensors and headers of strangers: types widened or refused by name, memory of its own, options only of ours."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from convert.convert_ckpt import convert
from convert.reader import read_checkpoint
from convert.safe_files import plain_tensors
from sslight.core.errors import InputError
from tests.convert.own_networks import timm_own

ARCH = "mobilenetv2_035"


@pytest.fixture(scope="module")
def state():
    return timm_own(ARCH).state


@pytest.mark.parametrize("dtype, said", [(torch.bfloat16, "the same numbers"), (torch.float64, "rounded")])
def test_other_precisions_become_float32_in_every_format(state, dtype, said, tmp_path):
    stored = {
        key: value.to(dtype) if value.is_floating_point() else value.to(torch.int32) for key, value in state.items()
    }
    torch.save(stored, tmp_path / "source.pth")
    for to, out in (("torchvision", "net.pth"), ("timm", "net.safetensors"), ("detectron2", "net.pkl")):
        report = convert(tmp_path / "source.pth", to, tmp_path / out, verify=to == "torchvision", force=True)
        assert any(said in note and str(dtype).removeprefix("torch.") in note for note in report["notes"])
    made = read_checkpoint(tmp_path / "net.safetensors").state
    assert all(torch.equal(made[key], value.to(made[key].dtype)) for key, value in stored.items())
    assert {value.dtype for value in made.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x.to(torch.int8),
        lambda x: x.to(torch.complex64),
        lambda x: x.to_sparse(),
        lambda x: x.to("meta"),
        lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    ],
)
def test_what_holds_no_weights_is_refused_by_name(wrong):
    tensors = {"a.weight": torch.ones(2, 2), "b.weight": wrong(torch.ones(2, 2))}
    with pytest.raises(InputError, match=r"here: weights are dense floating-point numbers, but not 'b\.weight' \("):
        plain_tensors(tensors, "here")


def test_slices_and_shared_memory_become_tensors_of_their_own(tmp_path):
    """As flattened parameters lie in a file: torch would save the whole for each, safetensors refuses them."""
    flat = torch.randn(1000)
    made, _ = plain_tensors({"a": flat[:10], "b": flat[10:20].view(2, 5), "c": flat, "d": flat}, "here")
    assert [made[key].untyped_storage().nbytes() for key in "ab"] == [40, 40]
    save_file(made, tmp_path / "x.safetensors")
    assert torch.equal(made["b"], flat[10:20].view(2, 5)) and torch.equal(made["d"], flat)


GOOD = {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "color_order": "RGB", "size": 224}


@pytest.mark.parametrize(
    "header, words",
    [
        ({"preprocess": "{"}, "header is damaged"),
        ({"preprocess": "3"}, "'preprocess' is damaged"),
        ({"preprocess": json.dumps({**GOOD, "std": [0, 1, 1]})}, "'preprocess' is damaged"),
        ({"options": '{"checkpoint_path": "other.pth"}'}, "options that this project never writes"),
        ({"options": '{"num_heads": 7}'}, "no build option 'num_heads'"),
        ({"arch": "resnet19"}, "did you mean"),
    ],
)
def test_a_headers_words_are_checked(header, words, state, tmp_path):
    path = tmp_path / "backbone.safetensors"
    save_file(state, path, metadata={"arch": ARCH, "preprocess": json.dumps(GOOD), **header})
    with pytest.raises(InputError, match=words):
        read_checkpoint(path)
