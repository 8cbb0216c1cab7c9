"""Converting a ResNet50 checkpoint without framework verification, against reading and writing it.

Two sources: a plain torchvision file (one network alone), and a run checkpoint as DINO pre-training leaves it (student,
teacher, heads, momentum). Two references. `bare`: `torch.load(weights_only=True)` of the file and `torch.save` of the
network, flushed to the disk. `checked`: the same with what any trusted conversion owes: CRCs of the source checked,
source and result hashed, the result read back and compared bit for bit. Ours does all of that, and accounts for every
tensor by name, shape and finiteness. `cold` drops the source from the page cache first, as a file is found that another
machine wrote. The first conversion of a process is timed apart.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from convert.convert_ckpt import convert
from pretrain.backbones import build_backbone
from sslight.core.checkpoint import FORMAT, check_archive, save_checkpoint, sha256

PREFIX = "student.backbone."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tools/speed.py convert`."""
    parser.add_argument("--runs", type=int, default=9, help="paired runs")


def run(args: argparse.Namespace) -> dict[str, float]:
    """Print and return the ratios, a reference's time divided by ours, per source, target and reference."""
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, make in (("plain", _plain_source), ("run", _run_source)):
            source = make(Path(folder) / f"{kind}.pth")
            print(f"{kind}: {source.stat().st_size / 1e6:.0f} MB")
            for to, out, cold in (
                ("torchvision", "out.pth", False),
                ("torchvision", "out.pth", True),
                ("detectron2", "out.pth", False),
                ("timm", "out.safetensors", False),
            ):
                speeds = _ratios(source, to, Path(folder) / out, args.runs, cold)
                ratios |= {f"{kind}_{to}{'_cold' * cold}_vs_{name}": ratio for name, ratio in speeds.items()}
    return ratios


def _plain_source(path: Path) -> Path:
    torch.save(torchvision.models.resnet50().state_dict(), path)
    return path


def _run_source(path: Path) -> Path:
    state = build_backbone("resnet50").state_dict()
    head = {
        "mlp.0.weight": torch.randn(2048, 2048),
        "mlp.3.weight": torch.randn(2048, 2048),
        "mlp.6.weight": torch.randn(256, 2048),
        "last_layer.weight": torch.randn(4096, 256),
    }
    model = {
        f"{network}.{part}.{key}": value.clone()
        for network in ("student", "teacher")
        for part, tensors in (("backbone", state), ("head", head))
        for key, value in tensors.items()
    }
    trained = [value for key, value in model.items() if key.startswith("student.") and value.ndim]
    momentum = {number: {"momentum_buffer": torch.randn_like(value)} for number, value in enumerate(trained)}
    save_checkpoint(
        path,
        {
            "format": FORMAT,
            "method": "dino",
            "arch": "resnet50",
            "epoch": 1,
            "step": 1,
            "model": model,
            "optimizer": {"state": momentum},
            "rng": {},
            "config": {},
            "networks": {name: f"{name}.backbone." for name in ("student", "teacher")},
            "preprocess": {
                "mean": [0.485, 0.456, 0.406],
                "std": [0.229, 0.224, 0.225],
                "color_order": "RGB",
                "size": 224,
            },
        },
    )
    return path


def _forget(file: Path) -> None:
    """Drop a file from the page cache."""
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())  # what is not yet on the disk cannot be dropped
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _ratios(source: Path, to: str, out: Path, runs: int, cold: bool) -> dict[str, float]:
    sides = {
        "bare": lambda: _bare(source, out.with_name("bare.pth")),
        "checked": lambda: _checked(source, out.with_name("checked.pth")),
        "ours": lambda: convert(source, to, out, verify=False, force=True),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(runs + 1):
        for name in sides if number % 2 else reversed(sides):
            if cold:
                _forget(source)
            started = time.perf_counter()
            sides[name]()
            times[name].append(time.perf_counter() - started)
    first = times["ours"].pop(0)
    times["bare"].pop(0), times["checked"].pop(0)
    ratios = {
        name: statistics.median(theirs / ours for theirs, ours in zip(times[name], times["ours"], strict=True))
        for name in ("bare", "checked")
    }
    middle = {name: statistics.median(values) for name, values in times.items()}
    print(
        f"  {to}{', cold' * cold}: ours {middle['ours']:.2f} s (first {first:.2f} s)",
        *(f"{name} {middle[name]:.2f} s, ratio {ratio:.2f}" for name, ratio in ratios.items()),
        sep="; ",
    )
    return ratios


def _network(content: dict) -> dict[str, Tensor]:
    """The tensors to write: the student's backbone, or all but the classifier."""
    if "model" in content:
        return {key.removeprefix(PREFIX): value for key, value in content["model"].items() if key.startswith(PREFIX)}
    return {key: value for key, value in content.items() if not key.startswith("fc.")}


def _write(state: dict[str, Tensor], out: Path) -> None:
    torch.save(state, out)
    with open(out, "rb") as file:
        os.fsync(file.fileno())


def _bare(source: Path, out: Path) -> None:
    _write(_network(torch.load(source, map_location="cpu", weights_only=True)), out)


def _checked(source: Path, out: Path) -> None:
    sha256(source)
    check_archive(source)
    state = _network(torch.load(source, map_location="cpu", weights_only=True))
    _write(state, out)
    sha256(out)
    back = torch.load(out, map_location="cpu", weights_only=True)
    assert all(torch.equal(back[key], value) for key, value in state.items())
