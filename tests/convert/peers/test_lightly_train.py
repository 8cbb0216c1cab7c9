"""lightly-train: its Lightning checkpoints, and the models that it exports, which are their packages' state dicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.convert.peers.case import Case, check, every, from_record

TRAIN: dict[str, Any] = {"project": "lightly-train 0.18"}

CASES = [
    Case(
        file="DINO over timm's resnet18, last.ckpt: the teacher",
        make=from_record("lightly_train_dino_timm_resnet18", ".ckpt"),
        arch="resnet18",
        **TRAIN,
    ),
    Case(
        file="SimCLR over torchvision's resnet18, last.ckpt",
        make=from_record("lightly_train_simclr_torchvision_resnet18", ".ckpt"),
        arch="resnet18",
        **TRAIN,
    ),
    Case(
        file="timm's mobilenetv3_small_050, exported_last.pt",
        make=from_record("lightly_train_export_timm_mobilenetv3", ".pt"),
        arch="mobilenetv3_small_050",
        **TRAIN,
    ),
    Case(
        file="torchvision's resnet18, exported_last.pt",
        make=from_record("lightly_train_export_torchvision_resnet18", ".pt"),
        arch="resnet18",
        **TRAIN,
    ),
    Case(
        file="DINOv2 ViT-S/14 with registers, exported_last.pt",
        make=from_record("lightly_train_export_dinov2_vits14", ".pt"),
        arch="vit_small_patch14_reg4_dinov2",
        options={"img_size": 56},
        **TRAIN,
    ),
]


@every(CASES)
def test_reads_what_the_project_computes(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)
