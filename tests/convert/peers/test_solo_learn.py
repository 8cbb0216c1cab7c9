"""solo-learn: what its methods save through Lightning. It records no settings in the file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.convert.peers.case import Case, check, every, from_record

SOLO: dict[str, Any] = {"project": "solo-learn"}
VIT: dict[str, Any] = {**SOLO, "arch": "vit_tiny_patch16_224"}
TWELVE = {"options": {"num_heads": 12}}

CASES = [
    Case(file="SimCLR, ResNet-18", make=from_record("solo_simclr_resnet18", ".ckpt"), arch="resnet18", **SOLO),
    Case(file="BYOL, ResNet-18", make=from_record("solo_byol_resnet18", ".ckpt"), arch="resnet18", **SOLO),
    Case(file="SwAV, ResNet-18", make=from_record("solo_swav_resnet18", ".ckpt"), arch="resnet18", **SOLO),
    Case(file="MoCo v2+, ResNet-50", make=from_record("solo_mocov2plus_resnet50", ".ckpt"), arch="resnet50", **SOLO),
    Case(
        file="Barlow Twins, ResNet-18 for CIFAR",
        make=from_record("solo_barlow_resnet18_cifar", ".ckpt"),
        refused="3x3 stem",
        **SOLO,
    ),
    Case(
        file="DINO, ViT-Ti",
        make=from_record("solo_dino_vit_tiny", ".ckpt"),
        options={"img_size": 32},
        assumed=frozenset({"num_heads", "preprocess"}),
        **VIT,
    ),
    Case(
        file="MoCo v3, ViT-Ti with 12 heads",
        make=from_record("solo_mocov3_vit_tiny", ".ckpt"),
        options={"img_size": 32, "num_heads": 12},
        ask=TWELVE,
        **VIT,
    ),
    Case(
        file="MoCo v3, ViT-S with 12 heads",
        make=from_record("solo_mocov3_vit_small", ".ckpt"),
        arch="vit_small_patch16_224",
        options={"img_size": 32, "num_heads": 12},
        ask=TWELVE,
        **SOLO,
    ),
    Case(
        file="MAE, ViT-Ti with 12 heads",
        make=from_record("solo_mae_vit_tiny", ".ckpt"),
        options={"img_size": 32, "num_heads": 12},
        ask=TWELVE,
        **VIT,
    ),
]


@every(CASES)
def test_reads_what_the_project_computes(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@pytest.mark.parametrize("method", ["mocov3", "mae"])
def test_the_heads_follow_from_the_args_json_that_it_writes_beside_the_file(method: str, tmp_path: Path) -> None:
    (tmp_path / "args.json").write_text(json.dumps({"method": method, "backbone": {"name": "vit_tiny", "kwargs": {}}}))
    case = Case("solo-learn", method, from_record(f"solo_{method}_vit_tiny", ".ckpt"), "vit_tiny_patch16_224")
    check(replace(case, options={"num_heads": 12}, assumed=frozenset({"preprocess"})), tmp_path)


@pytest.mark.parametrize("name", ["solo_mocov3_vit_tiny", "solo_mae_vit_tiny"])
def test_heads_that_no_file_records_are_named_as_an_assumption(name: str, tmp_path: Path) -> None:
    from convert.reader import read_checkpoint

    made = from_record(name, ".ckpt")(tmp_path)
    assert "12" in read_checkpoint(made.path).assumed["num_heads"]
