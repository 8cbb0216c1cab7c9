"""Converting a ResNet50 run checkpoint without framework verification, against reading and writing it.

Two references. `bare`: `torch.load` and `torch.save`, flushed to the disk. `checked`: the same with what any trusted
conversion owes: CRCs of the source checked, source and result hashed, the result read back and compared bit for bit.
Ours does all of that, and accounts for every tensor by name, shape and finiteness.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from convert.convert_ckpt import convert
from pretrain.backbones import build_backbone
from pretrain.checkpoint import FORMAT, backbone_state, load_checkpoint, save_checkpoint, sha256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tools/speed.py convert`."""
    parser.add_argument("--runs", type=int, default=9, help="paired runs")


def run(args: argparse.Namespace) -> dict[str, float]:
    """Print and return the ratios, a reference's time divided by ours, per target and reference."""
    ratios = {}
    with tempfile.TemporaryDirectory() as folder:
        source = _source(Path(folder))
        print(f"source: {source.stat().st_size / 1e6:.0f} MB, ResNet50 student and teacher with DINO heads")
        for to, suffix in (("torchvision", ".pth"), ("detectron2", ".pth"), ("timm", ".safetensors")):
            ratios.update(_ratios(source, to, Path(folder) / f"out{suffix}", args.runs))
    return ratios


def _source(folder: Path) -> Path:
    """A run checkpoint as DINO pre-training leaves it, without optimizer state."""
    state = build_backbone("resnet50").state_dict()
    head = {"mlp.0.weight": torch.randn(2048, 2048), "mlp.3.weight": torch.randn(2048, 2048),
            "mlp.6.weight": torch.randn(256, 2048), "last_layer.weight": torch.randn(4096, 256)}
    model = {f"{network}.{part}.{key}": value for network in ("student", "teacher")
             for part, tensors in (("backbone", state), ("head", head)) for key, value in tensors.items()}
    save_checkpoint(folder / "last.pth", {
        "format": FORMAT, "method": "dino", "arch": "resnet50", "epoch": 1, "step": 1, "model": model, "optimizer": {},
        "rng": {}, "config": {}, "networks": {name: f"{name}.backbone." for name in ("student", "teacher")},
        "preprocess": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "color_order": "RGB", "size": 224}})
    return folder / "last.pth"


def _ratios(source: Path, to: str, out: Path, runs: int) -> dict[str, float]:
    sides = {"bare": lambda: _bare(source, out.with_name("bare.pth")),
             "checked": lambda: _checked(source, out.with_name("checked.pth")),
             "ours": lambda: convert(source, to, out, verify=False, force=True)}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(runs + 1):
        for name in sides if number % 2 else reversed(sides):
            started = time.perf_counter()
            sides[name]()
            if number:  # the first round fills caches
                times[name].append(time.perf_counter() - started)
    ratios = {name: statistics.median(theirs / ours for theirs, ours in zip(times[name], times["ours"], strict=True))
              for name in ("bare", "checked")}
    middle = {name: statistics.median(values) for name, values in times.items()}
    print(f"{to}: ours {middle['ours']:.2f} s; bare read and write {middle['bare']:.2f} s, ratio {ratios['bare']:.2f}; "
          f"checked read and write {middle['checked']:.2f} s, ratio {ratios['checked']:.2f}")
    return {f"{to}_vs_{name}": ratio for name, ratio in ratios.items()}


def _write(state: dict[str, Tensor], out: Path) -> None:
    torch.save(state, out)
    with open(out, "rb") as file:
        os.fsync(file.fileno())


def _bare(source: Path, out: Path) -> None:
    _write(backbone_state(torch.load(source, map_location="cpu", weights_only=True), "student"), out)


def _checked(source: Path, out: Path) -> None:
    sha256(source)
    state = backbone_state(load_checkpoint(source), "student")
    _write(state, out)
    sha256(out)
    back = torch.load(out, map_location="cpu", weights_only=True)
    assert all(torch.equal(back[key], value) for key, value in state.items())
