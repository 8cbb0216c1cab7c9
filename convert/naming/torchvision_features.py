"""Namings of torchvision's EfficientNet, MobileNetV3 and ConvNeXt: everything is numbered in `features`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from convert.naming.rules import HEAD, Layout, Rule

if TYPE_CHECKING:
    from convert.naming.rules import State

_UNIT = re.compile(r"features\.(\d+)\.block\.(\d+)\.(.+)")
_HEAD = ((HEAD, r"classifier\..+"),)


def _unit(conv: str, norm: str, own: str) -> list[Rule]:
    """Rules of a convolution `own.0` and its norm `own.1`."""
    return [Rule(f"{own}.0.weight", f"{conv}.weight"), Rule(f"{own}.1.{{norm}}", f"{norm}.{{norm}}")]


def _efficientnet() -> tuple[Rule, ...]:
    rules = _unit("conv_stem", "bn1", "features.0") + _unit("conv_head", "bn2", "features.8")
    for own, timm, convs in (
        ("features.1.{b}.block.", "blocks.0.{b}.", {"0": "conv_dw", "2": "conv_pw"}),
        ("features.{s+1}.{b}.block.", "blocks.{s:1-6}.{b}.", {"0": "conv_pw", "1": "conv_dw", "3": "conv_pwl"}),
    ):
        for number, (place, conv) in enumerate(convs.items(), start=1):
            rules += _unit(timm + conv, f"{timm}bn{number}", own + place)
        squeeze = own + ("1" if len(convs) == 2 else "2")
        rules.append(Rule(squeeze + ".fc1.{wb}", timm + "se.conv_reduce.{wb}"))
        rules.append(Rule(squeeze + ".fc2.{wb}", timm + "se.conv_expand.{wb}"))
    return tuple(rules)


# Blocks per stage of timm's networks, by the number of torchvision's blocks.
_MOBILENET_V3 = {15: (1, 2, 3, 4, 2, 3), 11: (1, 2, 3, 2, 3)}
_PARTS: dict[tuple[bool, bool], dict[str, tuple[str, str] | None]] = {
    # by what a block has: (expansion, squeeze) -> torchvision's number -> timm's convolution and norm
    (False, False): {"0": ("conv_dw", "bn1"), "1": ("conv_pw", "bn2")},
    (False, True): {"0": ("conv_dw", "bn1"), "1": None, "2": ("conv_pw", "bn2")},
    (True, False): {"0": ("conv_pw", "bn1"), "1": ("conv_dw", "bn2"), "2": ("conv_pwl", "bn3")},
    (True, True): {"0": ("conv_pw", "bn1"), "1": ("conv_dw", "bn2"), "2": None, "3": ("conv_pwl", "bn3")},
}


def mobilenet_v3_stages(state: State) -> tuple[State, list[str]]:
    """Blocks numbered through become timm's, whose last convolution is the first linear layer of the classifier."""
    blocks: dict[int, dict[str, dict[str, str]]] = {}
    for key in state:
        if match := _UNIT.fullmatch(key):
            blocks.setdefault(int(match[1]), {}).setdefault(match[2], {})[match[3]] = key
    depths = _MOBILENET_V3.get(len(blocks))
    if not depths or not state.keys() >= {"classifier.0.weight", "classifier.0.bias"}:
        return state, []
    renamed = dict(state)
    places = [(stage, block) for stage, depth in enumerate(depths) for block in range(depth)]
    for number, (stage, block) in zip(sorted(blocks), places, strict=True):
        units = blocks[number]
        squeezed = any("fc1.weight" in unit for unit in units.values())
        parts = _PARTS[len(units) - squeezed == 3, squeezed]
        for unit, names in units.items():
            conv_norm = parts.get(unit)
            for rest, key in names.items():
                if conv_norm is None:
                    own = "se." + rest.replace("fc1", "conv_reduce").replace("fc2", "conv_expand")
                else:
                    own = conv_norm[int(rest[0])] + rest[1:]
                renamed[f"blocks.{stage}.{block}.{own}"] = renamed.pop(key)
    renamed["conv_head.weight"] = renamed.pop("classifier.0.weight")[:, :, None, None]
    renamed["conv_head.bias"] = renamed.pop("classifier.0.bias")
    last = len(blocks) + 1
    final = {f"features.{last}.{key}": f"blocks.{len(depths)}.0.{own}" for key, own in (("0", "conv"), ("1", "bn1"))}
    for key in list(renamed):
        start = ".".join(key.split(".")[:3])
        if start in final:
            renamed[final[start] + key[len(start) :]] = renamed.pop(key)
    return renamed, ["the classifier's first linear layer is the last convolution of timm's network"]


MOBILENET_V3 = (
    *_unit("conv_stem", "bn1", "features.0"),
    Rule("blocks.{rest}", "blocks.{rest}"),
    Rule("conv_head.{wb}", "conv_head.{wb}"),
)


def flat_scale(state: State) -> tuple[State, list[str]]:
    """torchvision's layer scale has the axes of images."""
    return {key: value.flatten() if key.endswith(".gamma") else value for key, value in state.items()}, []


CONVNEXT = tuple(
    Rule(*pair)
    for pair in (
        ("features.0.{n}.{wb}", "stem.{n:0-1}.{wb}"),
        *(
            pair
            for s in range(4)
            for pair in (
                (f"features.{2 * s + 1}.{{b}}.layer_scale", f"stages.{s}.blocks.{{b}}.gamma"),
                *(
                    (f"features.{2 * s + 1}.{{b}}.block.{own}.{{wb}}", f"stages.{s}.blocks.{{b}}.{timm}.{{wb}}")
                    for own, timm in (("0", "conv_dw"), ("2", "norm"), ("3", "mlp.fc1"), ("5", "mlp.fc2"))
                ),
            )
        ),
        *((f"features.{2 * s}.{{n}}.{{wb}}", f"stages.{s}.downsample.{{n:0-1}}.{{wb}}") for s in (1, 2, 3)),
        ("classifier.0.{wb}", "head.norm.{wb}"),
    )
)

LAYOUTS = (
    Layout(
        "torchvision EfficientNet",
        "timm",
        "features.1.0.block.1.fc1.weight",
        _efficientnet(),
        _HEAD,
        signs=("features.8.0.weight",),
        twin="^(?!tf_)",
    ),
    Layout(
        "torchvision MobileNetV3",
        "timm",
        "features.1.block.0.0.weight",
        MOBILENET_V3,
        _HEAD,
        prepare=mobilenet_v3_stages,
        options={"norm_eps": 1e-3},
        twin="^(?!tf_)",
    ),
    Layout(
        "torchvision ConvNeXt",
        "timm",
        "features.1.0.block.0.weight",
        CONVNEXT,
        ((HEAD, r"classifier\.[12]\..+"),),
        finish=flat_scale,
    ),
)
