"""Namings of EfficientNets other than timm's: efficientnet_pytorch's, which EfficientNet-Lite's ports share."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from convert.naming.rules import HEAD, Layout, Rule

if TYPE_CHECKING:
    from convert.naming.rules import State

_BLOCK = re.compile(r"_blocks\.(\d+)\.(.+)")


def stages(state: State) -> tuple[State, list[str]]:
    """Its blocks are numbered through: a stage begins where a block's width differs from the one before.

    `_blocks.N.` becomes `_blocks.STAGE.BLOCK.`
    """
    widths = {
        int(match[1]): len(value)
        for key, value in state.items()
        if (match := _BLOCK.fullmatch(key)) and match[2] == "_project_conv.weight"
    }
    places: dict[int, str] = {}
    stage = block = -1
    for number in sorted(widths):
        same = widths[number] == widths.get(number - 1)
        stage, block = (stage, block + 1) if same else (stage + 1, 0)
        places[number] = f"{stage}.{block}"
    return {
        f"_blocks.{places[int(match[1])]}.{match[2]}"
        if (match := _BLOCK.fullmatch(key)) and int(match[1]) in places
        else key: value
        for key, value in state.items()
    }, []


def _rules(foreign: str, timm: str, pairs: dict[str, str]) -> list[Rule]:
    """Rules of convolutions, norms and squeeze layers below two prefixes."""
    ends = {"_bn": "{norm}", "_se": "{wb}"}
    return [
        Rule(f"{foreign}{own}.{ends.get(own[:3], 'weight')}", f"{timm}{theirs}.{ends.get(own[:3], 'weight')}")
        for own, theirs in pairs.items()
    ]


_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LATER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
EFFICIENTNET_PYTORCH = (
    *_rules("", "", {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}),
    *_rules("_blocks.0.{b}.", "blocks.0.{b}.", {**_FIRST, **_SQUEEZE}),
    *_rules("_blocks.{s}.{b}.", "blocks.{s:1-6}.{b}.", {**_LATER, **_SQUEEZE}),
)

LAYOUTS = (
    Layout(
        "efficientnet_pytorch",
        "timm",
        "_blocks.0._depthwise_conv.weight",
        EFFICIENTNET_PYTORCH,
        ((HEAD, r"_fc\..+"),),
        prepare=stages,
        twin="^tf_",  # it pads as TensorFlow does
    ),
)
