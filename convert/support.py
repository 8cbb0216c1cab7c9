"""What converts to what: the one table behind `--help`, the documentation and every refusal. Imports nothing heavy."""

from __future__ import annotations

import re

TARGETS = ("timm", "torchvision", "detectron2", "mmdet", "onnx")

# Architecture class -> pattern of timm names, first match wins.
CLASSES = {
    "ResNet18/34/50/101/152": r"resnet(18|34|50|101|152)",
    "MobileNetV2": r"mobilenetv2_\d{3}",
    "MobileNetV2, deeper": r"mobilenetv2_\d{3}d",
    "ViT-B": r"vit_base_patch(8|14|16)_224|vit_base_patch14_(reg4_)?dinov2|deit_base(_distilled)?_patch16_224",
    "ViT-Ti/S": r"vit_(tiny|small)_patch(8|14|16)_224|vit_small_patch14_(reg4_)?dinov2"
    r"|deit_(tiny|small)(_distilled)?_patch16_224",
    "other timm network": r".+",
}

# The naming tables of `convert.names` that hold a class's names; other networks keep timm's.
KINDS = {
    "ResNet18/34/50/101/152": "resnet",
    "MobileNetV2": "mobilenetv2",
    "MobileNetV2, deeper": "mobilenetv2",
    "ViT-B": "vit",
    "ViT-Ti/S": "vit",
}

_NO_VIT_MMDET = "no: mmdet has no plain ViT"
_VITDET = "ViTDet (--model vitdet): class token and final norm dropped; no extra tokens, no layer scale"
MATRIX = {
    "ResNet18/34/50/101/152": {
        "timm": "yes",
        "torchvision": "yes",
        "detectron2": "own names, --model fpn or c4",
        "mmdet": "own names",
        "onnx": "yes",
    },
    "MobileNetV2": {
        "timm": "yes",
        "torchvision": "yes",
        "detectron2": "registered backbone, --model fpn",
        "mmdet": "own names",
        "onnx": "yes",
    },
    "MobileNetV2, deeper": {
        "timm": "yes",
        "torchvision": "no: torchvision has no depth multiplier",
        "detectron2": "registered backbone, --model fpn",
        "mmdet": "registered backbone",
        "onnx": "yes",
    },
    "ViT-B": {
        "timm": "yes",
        "torchvision": "at patch 16 and 224 px, no extra tokens, no layer scale",
        "detectron2": _VITDET,
        "mmdet": _NO_VIT_MMDET,
        "onnx": "yes",
    },
    "ViT-Ti/S": {
        "timm": "yes",
        "torchvision": "no: torchvision has no ViT-Ti or ViT-S",
        "detectron2": _VITDET,
        "mmdet": _NO_VIT_MMDET,
        "onnx": "yes",
    },
    "other timm network": {
        "timm": "yes",
        "torchvision": "no: its torchvision names are not in this project's tables",
        "detectron2": "registered backbone, if it has a pyramid of stages",
        "mmdet": "registered backbone, if it has a pyramid of stages",
        "onnx": "yes",
    },
}

_CNNS, _ALL = ("ResNet", "MobileNetV2"), ("ResNet", "MobileNetV2", "ViT")
# Family -> architectures whose published layouts are read; each goes to every target of its row above.
FAMILIES = {
    "sslight": (*_ALL, "other timm network"),
    "sslight-original": _ALL,
    "dino": _ALL,
    "dinov2": ("ViT",),
    "moco": _CNNS,
    "mocov3": ("ResNet", "ViT"),
    "swav": ("ResNet",),
    "solo-learn": ("ResNet", "ViT"),
    "lightly": _ALL,
    "vissl": ("ResNet", "ViT"),
    "openmmlab": _ALL,
    "backbone": _ALL,
    "torchvision-timm": (*_ALL, "other timm network"),
    "mmdet-detector": _CNNS,
    "detectron2": _CNNS,
    "detectron2-detector": _CNNS,
}


def class_of(arch: str) -> str:
    """The row of MATRIX for a timm name."""
    return next(name for name, pattern in CLASSES.items() if re.fullmatch(pattern, arch))


def kind_of(arch: str) -> str | None:
    """Which naming tables hold an architecture: "resnet", "mobilenetv2", "vit", or None for timm's names only."""
    return KINDS.get(class_of(arch))


def refusal(arch: str, to: str) -> str | None:
    """Why an architecture cannot go to a target, or None."""
    text = MATRIX[class_of(arch)][to]
    return text.removeprefix("no: ") if text.startswith("no: ") else None


def matrix_text() -> str:
    """Both tables as plain text, for `--help`."""
    lines = ["what converts to what (every family below goes to every target of its architecture's row):"]
    for name, row in MATRIX.items():
        lines.append(f"  {name}")
        lines += [f"    {to:<12} {text}" for to, text in row.items()]
    lines.append("families read, and the architectures in them:")
    lines += [f"  {name:<20} {', '.join(archs)}" for name, archs in FAMILIES.items()]
    return "\n".join(lines)
