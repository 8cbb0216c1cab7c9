"""Files of facebookresearch/moco-v3, recorded from a checkout; its ViTs have 12 heads and fixed positions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tests.convert.peers.case import Case, Made, check, every, from_record

PROJECT = "MoCo v3 (facebookresearch/moco-v3)"
SMALL = "vit_small_patch16_224"


def positions(shape: torch.Size) -> Tensor:
    """MoCo v3's fixed positions [1, 1 + n * n, C]: sines and cosines of row and column; zeros for the class token."""
    side, width = int(shape[1] ** 0.5), shape[2]
    turns = torch.arange(side).float()[:, None] / 10000 ** (torch.arange(width // 4).float() / (width // 4))
    row, column = turns.repeat_interleave(side, 0), turns.repeat(side, 1)
    patches = torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], 1)
    return torch.cat([torch.zeros(1, width), patches])[None]


def with_positions(name: str) -> Callable[[Path], Made]:
    """A record, with MoCo v3's positions in place of the formula's."""

    def make(folder: Path) -> Made:
        made = from_record(name)(folder)
        content = torch.load(made.path, weights_only=False)
        tensors = content.get("state_dict") or content["model"]
        tensors.update({key: positions(value.shape) for key, value in tensors.items() if key.endswith("pos_embed")})
        torch.save(content, made.path)
        return made

    return make


TWELVE = {"num_heads": 12, "img_size": 64}

CASES = [
    Case(PROJECT, "checkpoint, ViT-S", with_positions("mocov3_small"), SMALL, TWELVE),
    Case(
        PROJECT,
        "checkpoint, width 192, depth 4",
        with_positions("mocov3_192"),
        "vit_tiny_patch16_224",
        {**TWELVE, "depth": 4},
    ),
    Case(PROJECT, "converted to DeiT's format", with_positions("mocov3_to_deit"), SMALL, TWELVE),
    Case(PROJECT, "linear probe", with_positions("mocov3_lincls"), SMALL, TWELVE),
    Case(
        PROJECT,
        "ViT with a convolutional stem",
        from_record("mocov3_conv_small"),
        refused="patch_embed.proj.weight",
    ),
]


@every(CASES)
def test_reads_what_the_project_computes(case, tmp_path):
    check(case, tmp_path)
