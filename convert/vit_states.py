"""The two places where a ViT's tensors differ by more than their names."""

from __future__ import annotations

import re

from torch import Tensor

_CHUNKED = re.compile(r"blocks\.\d+\.(\d+)\.(norm1|norm2|attn|mlp|ls1|ls2)\.(.+)")


def unchunk(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2's sharded training nests blocks as `blocks.CHUNK.BLOCK.`; BLOCK already counts through all chunks."""
    return {_CHUNKED.sub(r"blocks.\1.\2.\3", key): value for key, value in state.items()}


def fold_class_position(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """DINOv2 with registers adds a position to the class token; timm's network has none there, so it is added here.

    Exact: the token only ever enters as the sum. Without registers the state is returned as it is.
    """
    if "reg_token" not in state or not {"cls_token", "pos_embed"} <= state.keys():
        return state, []
    positions = state["pos_embed"]
    if positions[:, :1].shape != state["cls_token"].shape:  # the comparison with timm's list will name them
        return state, []
    folded = {**state, "cls_token": state["cls_token"] + positions[:, :1], "pos_embed": positions[:, 1:]}
    return folded, ["the class token's position was added into 'cls_token', as timm's network with registers expects"]
