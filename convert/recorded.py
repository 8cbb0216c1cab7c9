"""What a file records of its training that shapes do not show: attention heads, preprocessing, strides.

The settings are looked up in plain data: mmengine's config text is parsed and its literals taken, never run; foreign
objects are the inert stand-ins of `convert.safe_files`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from convert.families import Family
from convert.flat import Flat
from convert.names import Layout
from convert.safe_files import Inert
from sslight.core.errors import InputError

IMAGENET: dict[str, Any] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "color_order": "RGB"}
AS_TIMM = 0  # for a number of heads: timm's of the same width

# mmpretrain's names of its plain ViTs, in small letters.
_MMPRETRAIN_HEADS = {
    "mocov3-s": 12,
    "mocov3-small": 12,
    "s": 8,
    "small": 8,
    "deit-t": 3,
    "deit-tiny": 3,
    "dinov2-s": 6,
    "dinov2-small": 6,
    "deit-s": 6,
    "deit-small": 6,
    "b": 12,
    "base": 12,
    "deit-b": 12,
    "deit-base": 12,
}
_LONGEST_CONFIG = 1_000_000  # characters


@dataclass
class Recorded:
    """`heads`: number of a ViT's attention heads, AS_TIMM, or None where nothing tells; `preprocess`: mean and std of
    images in [0, 1] and color_order, or None; `assumed`: what was assumed instead, by topic.
    """

    heads: int | None = None
    preprocess: dict | None = None
    assumed: dict[str, str] = field(default_factory=dict)


def recorded(
    content: object, flat: Flat, family: Family, layout: Layout, state: Mapping[str, Tensor], source: str
) -> Recorded:
    """What the file says, or else its family's own code, of the network `state` (timm's names).

    Raises InputError for a ResNet whose strides timm's has not.
    """
    found = Recorded()
    config = _mm_config(content)
    if layout.kind == "resnet":
        _strides(content, config, layout, family, state, found, source)
    else:
        found.heads = _heads(content, config, family)
    _preprocess(content, flat, config, family, found)
    return found


def spelled(assumed: Mapping[str, str], option: str) -> list[str]:
    """The assumptions as lines for a terminal, with how to say otherwise: `option` takes num_heads=12."""
    ways = {
        "num_heads": f": {option} num_heads=12"
        if "MoCo" in assumed.get("num_heads", "")
        else f"; for another number: {option} num_heads=N"
    }
    return [text + ways.get(topic, "") for topic, text in assumed.items()]


def look(value: object, *path: str) -> object:
    """What lies under a path of keys in dicts, Namespaces and OmegaConf containers; None if nothing does."""
    for key in path:
        value = _plain(value)
        value = value.get(key) if isinstance(value, Mapping) else None
    return _plain(value)


def _plain(value: object) -> object:
    """A stand-in's own content: a Namespace's attributes, what an OmegaConf node holds."""
    for _ in range(4):  # a node in a node, and no longer: a stranger's file may hold circles
        if not isinstance(value, Inert):
            break
        kept = value.kept if isinstance(value.kept, dict) else {}
        value = kept.get("_content", kept.get("_val")) if "_metadata" in kept else kept
    return None if isinstance(value, Inert) else value


def _heads(content: object, config: Mapping, family: Family) -> int | None:
    given = look(config, "model", "backbone", "arch")
    in_config = _MMPRETRAIN_HEADS.get(given.lower()) if isinstance(given, str) else look(given, "num_heads")
    for number in (in_config, look(content, "args", "model_kwargs", "num_heads"), *_lightning_heads(content)):
        if type(number) is int:
            return number
    return family.vit_heads


def _lightning_heads(content: object) -> Iterator[object]:
    """solo-learn's settings, flat or under `cfg`: its MoCo v3 has ViTs of its own, the other methods have timm's."""
    settings = look(content, "hyper_parameters")
    for root in (settings, look(settings, "cfg")):
        for arguments in (look(root, "backbone", "kwargs"), look(root, "backbone_args")):
            yield look(arguments, "num_heads")
        method = look(root, "method")
        if isinstance(method, str):
            yield 12 if method.lower() == "mocov3" else AS_TIMM


def _strides(
    content: object,
    config: Mapping,
    layout: Layout,
    family: Family,
    state: Mapping[str, Tensor],
    found: Recorded,
    source: str,
) -> None:
    """Refuse recorded strides that no timm ResNet has; name the assumption where nothing is recorded."""
    backbone, resnets = look(config, "model", "backbone"), look(content, "cfg", "MODEL", "RESNETS")
    bottleneck = any(".conv3." in key for key in state)
    wrong = []
    if bottleneck and look(backbone, "style") == "caffe":
        wrong.append("style='caffe' (the 1x1 convolution strides)")
    if bottleneck and look(resnets, "STRIDE_IN_1X1") is True:
        wrong.append("STRIDE_IN_1X1 True (the 1x1 convolution strides)")
    for name, usual in (("strides", (1, 2, 2, 2)), ("dilations", (1, 1, 1, 1))):
        given = look(backbone, name)
        if isinstance(given, list | tuple) and tuple(given) != usual[: len(given)]:
            wrong.append(f"{name}={tuple(given)}")
    if look(resnets, "RES5_DILATION") not in (None, 1):
        wrong.append(f"RES5_DILATION {look(resnets, 'RES5_DILATION')}")
    if wrong:
        raise InputError(
            f"{source}: its recorded settings say {' and '.join(wrong)}; timm's ResNet, through which "
            "every conversion goes, cannot have such strides, and its features would be others"
        )
    detectron2 = layout.name == "detectron2 ResNet"
    if bottleneck and (
        look(resnets, "STRIDE_IN_1X1") is None if detectron2 else family.name == "mmdet-detector" and not backbone
    ):
        other = "detectron2's default, STRIDE_IN_1X1 True," if detectron2 else "mmdet's style='caffe'"
        found.assumed["strides"] = (
            "strides are not recorded in the file: in the 3x3 convolutions assumed (timm's, "
            f"torchvision's); {other} puts them in the 1x1, which timm's ResNet cannot"
        )


def _preprocess(content: object, flat: Flat, config: Mapping, family: Family, found: Recorded) -> None:
    """mean, std and colour order in the network's own order of channels, of images in [0, 1]."""
    if family.name.startswith("detectron2"):
        mean, std = (
            _numbers(flat.values.get(f"pixel_{name}"))
            or _numbers(look(content, "cfg", "MODEL", f"PIXEL_{name.upper()}"))
            for name in ("mean", "std")
        )
        order = look(content, "cfg", "INPUT", "FORMAT")
        if mean and std and order not in ("RGB", "BGR"):
            order = "BGR" if mean[0] <= mean[2] else "RGB"
            usual = [255 * value for value in IMAGENET["mean"]][:: -1 if order == "BGR" else 1]
            if any(abs(value - known) > 2 for value, known in zip(mean, usual, strict=True)):
                found.assumed["color_order"] = (
                    f"colour order is not recorded in the file: {order} assumed, by the order of its pixel means {mean}"
                )
    else:
        mean, std, order = _mm_preprocess(config)
    if mean and std:
        found.preprocess = {
            "mean": [value / 255 for value in mean],
            "std": [value / 255 for value in std],
            "color_order": order,
        }
        return
    found.assumed["preprocess"] = "preprocessing is not recorded in the file: ImageNet mean and std, RGB assumed" + (
        "; detectron2's default is BGR, mean 103.53, 116.28, 123.675, std 1" * (family.name == "detectron2-detector")
    )


def _mm_preprocess(config: Mapping) -> tuple[list[float] | None, list[float] | None, str]:
    """OpenMMLab's `data_preprocessor`, or the older `img_norm_cfg`; images are loaded BGR."""
    for place in (("model", "data_preprocessor"), ("data_preprocessor",), ("img_norm_cfg",)):
        given = look(config, *place)
        mean, std = _numbers(look(given, "mean")), _numbers(look(given, "std"))
        if mean and std:
            turned = look(given, "bgr_to_rgb") or look(given, "to_rgb")
            return mean, std, "RGB" if turned else "BGR"
    return None, None, ""


def _numbers(values: object) -> list[float] | None:
    """Three numbers, or None."""
    values = values.flatten().tolist() if isinstance(values, Tensor) and values.numel() == 3 else values
    if isinstance(values, list | tuple) and len(values) == 3 and all(type(value) in (int, float) for value in values):
        return [float(value) for value in values]
    return None


def _mm_config(content: object) -> Mapping:
    """The config that mmengine (`meta.cfg`) and mmcv (`meta.config`) keep as Python text, as plain data."""
    text = look(content, "meta", "cfg") or look(content, "meta", "config")
    if isinstance(text, Mapping):
        return text
    if not isinstance(text, str) or len(text) > _LONGEST_CONFIG:
        return {}
    try:
        body = ast.parse(text).body
        return {
            line.targets[0].id: _value(line.value)
            for line in body
            if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name)
        }
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}


def _value(node: ast.AST) -> Any:
    """The data that an expression of `dict(...)`, lists and literals spells; None for any other."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {word.arg: _value(word.value) for word in node.keywords if word.arg}
    if isinstance(node, ast.Dict):
        return {
            key.value: _value(value)
            for key, value in zip(node.keys, node.values, strict=True)
            if isinstance(key, ast.Constant)
        }
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _value(node.operand)
        return -value if type(value) in (int, float) else None
    return node.value if isinstance(node, ast.Constant) else None
