"""Namings of MobileNetV2."""

from __future__ import annotations

from convert.naming.rules import CNN_HEAD, Layout, Rule

# Blocks per stage; in torchvision's flat list `features.1` is the first one.
MOBILENET_BLOCKS = (1, 2, 3, 4, 3, 3, 1)


def _conv_norm(foreign_conv: str, foreign_norm: str, timm_conv: str, timm_norm: str) -> list[Rule]:
    return [
        Rule(f"{foreign_conv}.weight", f"{timm_conv}.weight"),
        Rule(f"{foreign_norm}.{{norm}}", f"{timm_norm}.{{norm}}"),
    ]


def _mobilenet_torchvision(prefix: str) -> tuple[Rule, ...]:
    """torchvision's flat list of blocks under `prefix` ("features." or "" for a bare nn.Sequential)."""
    rules = _conv_norm(f"{prefix}0.0", f"{prefix}0.1", "conv_stem", "bn1")
    first = f"{prefix}1.conv."
    rules += _conv_norm(first + "0.0", first + "0.1", "blocks.0.0.conv_dw", "blocks.0.0.bn1")
    rules += _conv_norm(first + "1", first + "2", "blocks.0.0.conv_pw", "blocks.0.0.bn2")
    start = 1
    for stage, count in enumerate(MOBILENET_BLOCKS):
        if stage:
            block = prefix + f"{{j+{start}}}.conv."
            timm = f"blocks.{stage}.{{j:0-{count - 1}}}."
            rules += _conv_norm(block + "0.0", block + "0.1", timm + "conv_pw", timm + "bn1")
            rules += _conv_norm(block + "1.0", block + "1.1", timm + "conv_dw", timm + "bn2")
            rules += _conv_norm(block + "2", block + "3", timm + "conv_pwl", timm + "bn3")
        start += count
    return tuple(rules + _conv_norm(f"{prefix}18.0", f"{prefix}18.1", "conv_head", "bn2"))


def _mobilenet_tonylins() -> tuple[Rule, ...]:
    """The flat list with every block's layers in one Sequential, activations counted."""
    rules = _conv_norm("features.0.0", "features.0.1", "conv_stem", "bn1")
    first = "features.1.conv."
    rules += _conv_norm(first + "0", first + "1", "blocks.0.0.conv_dw", "blocks.0.0.bn1")
    rules += _conv_norm(first + "3", first + "4", "blocks.0.0.conv_pw", "blocks.0.0.bn2")
    start = 1
    for stage, count in enumerate(MOBILENET_BLOCKS):
        if stage:
            block, timm = f"features.{{j+{start}}}.conv.", f"blocks.{stage}.{{j:0-{count - 1}}}."
            for number, conv in enumerate(("conv_pw", "conv_dw", "conv_pwl")):
                place = 3 * number
                rules += _conv_norm(f"{block}{place}", f"{block}{place + 1}", timm + conv, f"{timm}bn{number + 1}")
        start += count
    return tuple(rules + _conv_norm("features.18.0", "features.18.1", "conv_head", "bn2"))


def _mobilenet_timm(stem: str, norm1: str, blocks: str, head: str, norm2: str) -> tuple[Rule, ...]:
    first, later, timm = f"{blocks}.0.{{j}}.", f"{blocks}.{{s}}.{{j}}.", "blocks.{s:1-6}.{j}."
    rules = _conv_norm(stem, norm1, "conv_stem", "bn1")
    rules += _conv_norm(first + "conv_dw", first + "bn1", "blocks.0.{j}.conv_dw", "blocks.0.{j}.bn1")
    rules += _conv_norm(first + "conv_pw", first + "bn2", "blocks.0.{j}.conv_pw", "blocks.0.{j}.bn2")
    for number, conv in enumerate(("conv_pw", "conv_dw", "conv_pwl"), start=1):
        rules += _conv_norm(later + conv, later + f"bn{number}", timm + conv, timm + f"bn{number}")
    return tuple(rules + _conv_norm(head, norm2, "conv_head", "bn2"))


def _mobilenet_openmmlab() -> tuple[Rule, ...]:
    rules = _conv_norm("conv1.conv", "conv1.bn", "conv_stem", "bn1")
    for number, (conv, timm) in enumerate((("depthwise_conv", "conv_dw"), ("linear_conv", "conv_pw")), start=1):
        block, first = f"layer1.{{j}}.{conv}", "blocks.0.{j:0-0}."
        rules += _conv_norm(block + ".conv", block + ".bn", first + timm, first + f"bn{number}")
    names = (("expand_conv", "conv_pw"), ("depthwise_conv", "conv_dw"), ("linear_conv", "conv_pwl"))
    for number, (conv, timm) in enumerate(names, start=1):
        block, later = f"layer{{s+1}}.{{j}}.{conv}", "blocks.{s:1-6}.{j}."
        rules += _conv_norm(block + ".conv", block + ".bn", later + timm, later + f"bn{number}")
    return tuple(rules + _conv_norm("conv2.conv", "conv2.bn", "conv_head", "bn2"))


def _mobilenet_mmpretrain() -> tuple[Rule, ...]:
    """mmpretrain's: the convolutions of a block are numbered, and the first stage's blocks lack the expansion."""
    rules = _conv_norm("conv1.conv", "conv1.bn", "conv_stem", "bn1")
    for stage, names in (("1", ("conv_dw", "conv_pw")), ("{s+1}", ("conv_pw", "conv_dw", "conv_pwl"))):
        for number, timm in enumerate(names):
            block, own = f"layer{stage}.{{j}}.conv.{number}", f"blocks.{'0' if stage == '1' else '{s:1-6}'}.{{j}}."
            rules += _conv_norm(block + ".conv", block + ".bn", own + timm, f"{own}bn{number + 1}")
    return tuple(rules + _conv_norm("conv2.conv", "conv2.bn", "conv_head", "bn2"))


MOBILENET_TORCHVISION = _mobilenet_torchvision("features.")
MOBILENET_TONYLINS = _mobilenet_tonylins()
MOBILENET_SEQUENTIAL = _mobilenet_torchvision("")
MOBILENET_CHILDREN = _mobilenet_torchvision("0.")
MOBILENET_TIMM = _mobilenet_timm("conv_stem", "bn1", "blocks", "conv_head", "bn2")
MOBILENET_TIMM_CHILDREN = _mobilenet_timm("0", "1", "2", "3", "4")
MOBILENET_OPENMMLAB = _mobilenet_openmmlab()
MOBILENET_MMPRETRAIN = _mobilenet_mmpretrain()

LAYOUTS = (
    Layout("timm MobileNetV2", "mobilenetv2", "blocks.0.0.conv_dw.weight", MOBILENET_TIMM, CNN_HEAD),
    Layout("torchvision MobileNetV2", "mobilenetv2", "features.1.conv.0.0.weight", MOBILENET_TORCHVISION, CNN_HEAD),
    Layout(
        "MobileNetV2 of pytorch-mobilenet-v2", "mobilenetv2", "features.1.conv.3.weight", MOBILENET_TONYLINS, CNN_HEAD
    ),
    Layout("MobileNetV2's features in a Sequential", "mobilenetv2", "1.conv.0.0.weight", MOBILENET_SEQUENTIAL),
    Layout(
        "torchvision MobileNetV2's children in a Sequential", "mobilenetv2", "0.1.conv.0.0.weight", MOBILENET_CHILDREN
    ),
    Layout(
        "timm MobileNetV2's children in a Sequential",
        "mobilenetv2",
        "2.0.0.conv_dw.weight",
        MOBILENET_TIMM_CHILDREN,
    ),
    Layout("OpenMMLab MobileNetV2", "mobilenetv2", "layer1.0.depthwise_conv.conv.weight", MOBILENET_OPENMMLAB),
    Layout("mmpretrain MobileNetV2", "mobilenetv2", "layer1.0.conv.0.conv.weight", MOBILENET_MMPRETRAIN),
)
