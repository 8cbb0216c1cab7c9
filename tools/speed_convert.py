"""Converting a ResNet50 run checkpoint without framework verification, against reading and writing it.

The reference reads the source (`torch.load`) and writes the result's tensors (`torch.save`, flushed to the disk).
Ours also checks every CRC, hashes source and result, accounts for every tensor, and reads the result back.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from convert.convert_ckpt import convert
from pretrain.backbones import build_backbone
from pretrain.checkpoint import FORMAT, save_checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tools/speed.py convert`."""
    parser.add_argument("--runs", type=int, default=9, help="paired runs")


def run(args: argparse.Namespace) -> dict:
    """Print and return the ratios, reference's time divided by ours, per target."""
    with tempfile.TemporaryDirectory() as folder:
        source = _source(Path(folder))
        print(f"source: {source.stat().st_size / 1e6:.0f} MB, ResNet50 student and teacher with a DINO head")
        return {to: _ratio(source, to, Path(folder) / f"out{suffix}", args.runs)
                for to, suffix in (("torchvision", ".pth"), ("detectron2", ".pth"), ("timm", ".safetensors"))}


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


def _ratio(source: Path, to: str, out: Path, runs: int) -> float:
    ratios, ours, theirs = [], [], []
    for number in range(runs + 1):
        started = time.perf_counter()
        _read_and_write(source, out.with_name("reference.pth"))
        between = time.perf_counter()
        convert(source, to, out, verify=False, force=True)
        if number:  # the first pair fills caches
            theirs.append(between - started)
            ours.append(time.perf_counter() - between)
            ratios.append(theirs[-1] / ours[-1])
    print(f"{to}: read and write {statistics.median(theirs):.2f} s, convert {statistics.median(ours):.2f} s, "
          f"ratio {statistics.median(ratios):.2f}")
    return statistics.median(ratios)


def _read_and_write(source: Path, out: Path) -> None:
    model = torch.load(source, map_location="cpu", weights_only=True)["model"]
    start = "student.backbone."
    torch.save({key.removeprefix(start): value for key, value in model.items() if key.startswith(start)}, out)
    with open(out, "rb") as file:
        os.fsync(file.fileno())
