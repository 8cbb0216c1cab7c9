"""A case of the peer tests: one file as a project's own saver writes it, and what the project's own network computes.

Two kinds: built here by the project's installed package (marker `peers`, skipped without it), or built from data that
a checkout of its repository wrote down: names and shapes of all tensors, settings, and some features of its network.
Both fill tensors by a formula on whole numbers, the same on every machine and in every version of torch.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convert.reader import load_network
from sslight.core.errors import InputError

DATA = Path(__file__).parents[2] / "data" / "peers"
TOLERANCE = 1e-5  # of the largest feature


@dataclass(frozen=True)
class Made:
    """What a project's code saved, and what its own network computes.

    `features` [N, C] of `images` [N, 3, H, W] are what timm's network returns as its pooled feature, or the first
    columns of that.
    """

    path: Path
    images: Tensor
    features: Tensor


@dataclass(frozen=True)
class Case:
    """One file of one project.

    project, file: as in the table of docs/converting/README.md, e.g. "lightly 1.6" and "DINO, Lightning checkpoint".
    make: builds the project's network, fills it, saves it into the folder as its own saver does.
    arch: timm's name that must be read; `options`: build options that must be read, others may be there, too.
    ask: what the user must say, as arguments of `load_network`, e.g. {"network": "teacher"}.
    assumed: topics of which reading must say that it assumes them; None: not looked at.
    refused: a part of the line by which the file must be refused; then `make` may return anything as features.
    package: the module without which `make` cannot work; "" for recorded data.
    """

    project: str
    file: str
    make: Callable[[Path], Made]
    arch: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    ask: Mapping[str, Any] = field(default_factory=dict)
    assumed: frozenset[str] | None = None
    refused: str = ""
    package: str = ""


def every(cases: Iterable[Case]):
    """Parametrise a test over cases; those of a package that is not installed are skipped with the reason."""
    marked = []
    for case in cases:
        marks = [pytest.mark.peers] if case.package else []
        if case.package and importlib.util.find_spec(case.package) is None:
            marks.append(pytest.mark.skip(reason=f"{case.package} is not installed"))
        marked.append(pytest.param(case, id=f"{case.project}-{case.file}".replace(" ", "_"), marks=marks))
    return pytest.mark.parametrize("case", marked)


def check(case: Case, folder: Path) -> None:
    """The file is read as the project's own network computes, or refused by the line that the case gives."""
    made = case.make(folder)
    if case.refused:
        with pytest.raises(InputError) as refusal:
            load_network(made.path, **case.ask)
        assert case.refused in str(refusal.value)
        return
    network, checkpoint = load_network(made.path, **case.ask)
    assert checkpoint.arch == case.arch
    assert {key: checkpoint.options.get(key) for key in case.options} == dict(case.options)
    if case.assumed is not None:
        assert set(checkpoint.assumed) == case.assumed
    with torch.no_grad():
        features = network.eval()(made.images)[:, : made.features.shape[1]]
    error = float((features - made.features).abs().max() / made.features.abs().max())
    assert error < TOLERANCE, f"features differ by {error:.2g} of the largest"


def uniform(name: str, shape: Iterable[int]) -> Tensor:
    """Numbers in [-0.5, 0.5) that follow from a name and a shape alone (an integer hash of the position), float32."""
    shape = list(shape)
    count = int(torch.tensor(shape).prod()) if shape else 1
    bits = 0xFFFFFFFF
    value = (torch.arange(count, dtype=torch.int64) + zlib.crc32(name.encode())) * 0x9E3779B1 & bits
    value = (value ^ value >> 15) * 0x85EBCA77 & bits
    value = (value ^ value >> 13) * 0xC2B2AE3D & bits
    return ((value ^ value >> 16).double() / 2**32 - 0.5).float().reshape(shape)


def formula(name: str, shape: Iterable[int]) -> Tensor:
    """A tensor of a network by its name and shape, of a size that keeps features finite and telling."""
    shape = list(shape)
    last = name.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return torch.tensor(1000)
    value = uniform(name, shape)
    if last == "running_var" or len(shape) <= 1 and last in ("weight", "gamma"):
        return 1 + 0.5 * value
    if len(shape) >= 2 and last in ("weight", "in_proj_weight"):
        return value * (24 * shape[0] / value.numel()) ** 0.5
    return 0.2 * value


@torch.no_grad()
def fill(module: nn.Module, prefix: str = "") -> nn.Module:
    """Fill all floating-point tensors of a network's state dict by the formula; returns the network in eval mode."""
    for name, value in module.state_dict().items():
        if value.is_floating_point() or name.endswith("num_batches_tracked"):
            value.copy_(formula(prefix + name, value.shape))
    module.eval()  # returns nothing in some projects
    return module


def image(size: int, number: int = 1) -> Tensor:
    """Images [number, 3, size, size] by the formula."""
    return 4 * uniform("image", (number, 3, size, size))


def write_record(name: str, record: dict) -> None:
    """Write down a case that a project's checkout built: see `from_record` for what it holds."""
    DATA.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, separators=(",", ":"), sort_keys=True).encode()
    (DATA / f"{name}.json.gz").write_bytes(gzip.compress(text, 9, mtime=0))


def describe(content: object, name: str = "") -> object:
    """A file's content as JSON: a tensor becomes {"tensor": shape, "name": what `formula` takes, "dtype": ...}.

    Every floating-point tensor in it must hold what `formula` gives for the dotted path to it; of another one, whose
    values matter, {"values": nested lists, "dtype": ...} is written by hand.
    """
    if isinstance(content, argparse.Namespace):
        return {"namespace": describe(vars(content), name)}
    if isinstance(content, Tensor):
        return {"tensor": list(content.shape), "name": name, "dtype": str(content.dtype).removeprefix("torch.")}
    if isinstance(content, Mapping):
        return {
            "dict": [[key, describe(value, f"{name}.{key}" if name else str(key))] for key, value in content.items()]
        }
    if isinstance(content, list | tuple):
        return {"list": [describe(value, f"{name}.{i}" if name else str(i)) for i, value in enumerate(content)]}
    return {"value": content if isinstance(content, int | float | str | bool | None) else str(content)}


def rebuild(told: Any) -> Any:
    """The content that `describe` wrote down."""
    [kind] = told.keys() & {"tensor", "values", "namespace", "dict", "list", "value"}
    if kind == "tensor":
        return formula(told["name"], told["tensor"]).to(getattr(torch, told["dtype"]))
    if kind == "values":
        return torch.tensor(told["values"], dtype=getattr(torch, told["dtype"]))
    if kind == "namespace":
        return argparse.Namespace(**rebuild(told["namespace"]))
    if kind == "dict":
        return {key: rebuild(value) for key, value in told["dict"]}
    return [rebuild(value) for value in told["list"]] if kind == "list" else told["value"]


def from_record(name: str, suffix: str = ".pth") -> Callable[[Path], Made]:
    """`Case.make` from a record.

    It holds {"source": repository and commit, "code": what was called, "content": as of `describe`, "size": of the
    image, "features": the first values of what the project's own network computes for it}.
    """

    def make(folder: Path) -> Made:
        record = json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))
        path = folder / f"{name}{suffix}"
        torch.save(rebuild(record["content"]), path)
        return Made(path, image(record["size"]), torch.tensor([record["features"]]))

    return make
