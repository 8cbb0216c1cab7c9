"""Namings of ConvNeXt (V1, V2) in the code of its authors, which DINOv3 shares; timm's is its own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from convert.naming.rules import HEAD, Layout, Rule

if TYPE_CHECKING:
    from torch import Tensor

    from convert.naming.rules import State

_BLOCK = "stages.{s}.{b}.", "stages.{s}.blocks.{b}."
CONVNEXT = tuple(
    Rule(*pair)
    for pair in (
        ("downsample_layers.0.{n}.{wb}", "stem.{n:0-1}.{wb}"),
        ("downsample_layers.{s}.{n}.{wb}", "stages.{s:1-3}.downsample.{n:0-1}.{wb}"),
        *(
            (_BLOCK[0] + foreign, _BLOCK[1] + timm)
            for foreign, timm in (
                ("dwconv.{wb}", "conv_dw.{wb}"),
                ("norm.{wb}",) * 2,
                ("pwconv{n}.{wb}", "mlp.fc{n:1-2}.{wb}"),
                ("gamma",) * 2,
                ("grn.gamma", "mlp.grn.weight"),
                ("grn.beta", "mlp.grn.bias"),
            )
        ),
        ("norm.{wb}", "head.norm.{wb}"),
    )
)
_DROPS = ((HEAD, r"head\..+"), ("norms of other stages' outputs", r"norms\..+"))
_NORM = "head.norm.weight"


def as_timms(state: State) -> tuple[State, list[str]]:
    """V2's response normalisation has the axes of images; timm's narrow V2 have convolutions for linear layers.

    The pre-training has no final norm: one with weight 1 and bias 0 is put there, with which fine-tuning begins.
    """
    state = {key: value.flatten() if ".mlp.grn." in key else value for key, value in state.items()}
    if "stem.0.weight" in state and len(state["stem.0.weight"]) < 96:
        linear = {key for key, value in state.items() if ".mlp.fc" in key and value.ndim == 2}
        state |= {key: state[key][:, :, None, None] for key in linear}
    last = state.get("stages.3.blocks.0.mlp.grn.weight")
    if last is None or _NORM in state or "head.norm.bias" in state or last.numel() % 4:
        return state, []
    width = last.numel() // 4
    state |= {_NORM: last.new_ones(width), "head.norm.bias": last.new_zeros(width)}
    return state, [
        "the file has no final norm, as of pre-training: one that changes nothing but the scale is put there"
    ]


def densify(state: State) -> tuple[State, list[str]]:
    """V2 pre-trains with sparse convolutions (MinkowskiEngine), whose tensors have other names and axes."""
    dense = {}
    for key, value in state.items():
        name = key.replace(".linear.", ".").replace(".ln.", ".")
        if name.endswith(".kernel"):
            name, value = name.removesuffix("kernel") + "weight", _convolution(value)
        dense[name] = value.flatten() if name.endswith(".bias") else value
    return dense, []


def _convolution(kernel: Tensor) -> Tensor:
    """[k * k, in, out] or depthwise [k * k, channels], columns first, as a convolution's weight [out, in, k, k]."""
    side = math.isqrt(len(kernel))
    channels = kernel if kernel.ndim == 3 else kernel[:, None]
    if channels.ndim != 3 or side * side != len(kernel):
        return kernel  # the comparison with timm's list will name it
    return channels.permute(2, 1, 0).unflatten(2, (side, side)).transpose(2, 3).contiguous()


_ANCHOR = "downsample_layers.0.0.weight"
LAYOUTS = (
    Layout("ConvNeXt", "timm", _ANCHOR, CONVNEXT, _DROPS, ("stages.0.0.dwconv.weight",), finish=as_timms),
    Layout(
        "sparse ConvNeXt V2",
        "timm",
        _ANCHOR,
        CONVNEXT,
        _DROPS,
        ("stages.0.0.dwconv.kernel",),
        prepare=densify,
        finish=as_timms,
    ),
)
