"""The end of a run: the exported backbone, and the commands that come next."""

from __future__ import annotations

import shlex
from pathlib import Path

from pretrain.checkpoint import backbone_state, load_checkpoint, save_backbone, sha256
from pretrain.errors import InputError
from pretrain.sources import open_source
from pretrain.state import last_checkpoint

IN_MMDET = ("resnet18", "resnet34", "resnet50", "mobilenetv2_100")


def export(out_dir: Path) -> str:
    """Write `backbone.safetensors` from `last.pth`; returns what to say about it."""
    last, target = last_checkpoint(out_dir), out_dir / "backbone.safetensors"
    checkpoint = load_checkpoint(last)
    save_backbone(target, backbone_state(checkpoint), arch=checkpoint["arch"], method=checkpoint["method"],
                  preprocess=checkpoint["preprocess"], source_sha256=sha256(last), converted="exported by pretrain")
    commands = next_commands(out_dir, checkpoint["arch"], checkpoint["config"]["DATA"]["PATH_TO_DATA_DIR"])
    return f"done: {target}\nnext:\n" + "".join(f"  {shlex.join(words)}\n" for words in commands).rstrip()


def next_commands(out_dir: Path, arch: str, data: str) -> list[list[str]]:
    """Commands that work as they stand, one after the other: k-NN and the report only where the images have classes."""
    last = str(last_checkpoint(out_dir))
    target, name = ("mmdet", "mmdet.pth") if arch in IN_MMDET else ("timm", "timm.safetensors")
    convert = ["sslight", "convert", last, "--to", target, "-o", str(out_dir / name)]
    try:
        for split in ("train", "val"):
            open_source(data, split)
    except InputError:
        return [convert]
    return [["sslight", "bench", "knn", "--cfg", "configs/classification/knn.yaml", "WEIGHTS", last,
             "DATA.PATH_TO_DATA_DIR", data, "OUTPUT_DIR", str(out_dir / "results" / "knn")],
            convert, ["sslight", "report", str(out_dir), "-o", str(out_dir / "report.html")]]
