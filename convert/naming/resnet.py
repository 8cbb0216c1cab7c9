"""Namings of ResNets. torchvision's is timm's."""

from __future__ import annotations

from convert.naming.rules import CNN_HEAD, HEAD, Layout, Rule

_RESNET = [("conv1.weight", "conv1.weight"), ("bn1.{norm}", "bn1.{norm}")]


def _resnet(stem: list[tuple[str, str]], block: str, conv: str, norm: str, shortcut: str, shortcut_norm: str) -> tuple:
    """Rules of a ResNet naming: `block` is the template of a block's prefix, the rest are its members."""
    timm = "layer{s:1-4}.{b}."
    return tuple(
        Rule(*pair)
        for pair in [
            *stem,
            (block + conv, timm + "conv{n:1-3}.weight"),
            (block + norm, timm + "bn{n:1-3}.{norm}"),
            (block + shortcut, timm + "downsample.0.weight"),
            (block + shortcut_norm, timm + "downsample.1.{norm}"),
        ]
    )


RESNET_TIMM = _resnet(
    _RESNET, "layer{s}.{b}.", "conv{n}.weight", "bn{n}.{norm}", "downsample.0.weight", "downsample.1.{norm}"
)
RESNET_SEQUENTIAL = _resnet(
    [("0.weight", "conv1.weight"), ("1.{norm}", "bn1.{norm}")],
    "{s+3}.{b}.",
    "conv{n}.weight",
    "bn{n}.{norm}",
    "downsample.0.weight",
    "downsample.1.{norm}",
)
RESNET_DETECTRON2 = _resnet(
    [("stem.conv1.weight", "conv1.weight"), ("stem.conv1.norm.{norm}", "bn1.{norm}")],
    "res{s+1}.{b}.",
    "conv{n}.weight",
    "conv{n}.norm.{norm}",
    "shortcut.weight",
    "shortcut.norm.{norm}",
)


def _deep_stem(convs: tuple[str, ...], norms: tuple[str, ...]) -> tuple[Rule, ...]:
    """OpenMMLab's ResNetV1c and V1d: three convolutions in `stem`, the rest as timm's."""
    pairs = zip((*convs, *norms), ("conv1.0", "conv1.3", "conv1.6", "conv1.1", "conv1.4", "bn1"), strict=True)
    stem = (Rule(f"stem.{own}.{{norm}}", f"{timm}.{{norm}}") for own, timm in pairs)
    return (*stem, Rule("layer{s:1-4}.{rest}", "layer{s}.{rest}"))


def _clip() -> tuple[Rule, ...]:
    """CLIP's ResNets: three convolutions in the stem, an attention pool, which timm's network keeps as its head."""
    pairs = [(f"conv{n}.weight", f"stem.conv{n}.conv.weight") for n in (1, 2, 3)]
    pairs += [(f"bn{n}.{{norm}}", f"stem.conv{n}.bn.{{norm}}") for n in (1, 2, 3)]
    own, timm = "layer{s+1}.{b}.", "stages.{s:0-3}.{b}."
    for n, conv in ((1, "conv1_1x1"), (2, "conv2_kxk"), (3, "conv3_1x1")):
        pairs += [
            (f"{own}conv{n}.weight", f"{timm}{conv}.conv.weight"),
            (f"{own}bn{n}.{{norm}}", f"{timm}{conv}.bn.{{norm}}"),
        ]
    pairs += [
        (own + "downsample.0.weight", timm + "shortcut.conv.conv.weight"),
        (own + "downsample.1.{norm}", timm + "shortcut.conv.bn.{norm}"),
        ("attnpool.positional_embedding", "head.pos_embed"),
        *((f"attnpool.{name}_proj.{{wb}}", f"head.{name}.{{wb}}") for name in "qkv"),
    ]
    return tuple(Rule(*pair) for pair in pairs)


RESNET_CLIP = _clip()
_BLOCK = ("layer1.0.conv1.weight",)
RESNET_V1D_MMPRETRAIN = _deep_stem(("0.conv", "1.conv", "2.conv"), ("0.bn", "1.bn", "2.bn"))
RESNET_V1D_MMDET = _deep_stem(("0", "3", "6"), ("1", "4", "7"))

LAYOUTS = (
    Layout("torchvision/timm ResNet", "resnet", "layer1.0.conv1.weight", RESNET_TIMM, CNN_HEAD),
    Layout("ResNet's children in a Sequential", "resnet", "4.0.conv1.weight", RESNET_SEQUENTIAL),
    Layout("mmpretrain ResNetV1c/d", "resnet", "stem.0.conv.weight", RESNET_V1D_MMPRETRAIN, signs=_BLOCK),
    Layout("mmdet ResNetV1c/d", "resnet", "stem.0.weight", RESNET_V1D_MMDET, signs=_BLOCK),
    Layout(
        "CLIP ResNet",
        "timm",
        "attnpool.q_proj.weight",
        RESNET_CLIP,
        (("projection to the space shared with texts", r"attnpool\.c_proj\..+"),),
        signs=_BLOCK,
    ),
    Layout(
        "detectron2 ResNet",
        "resnet",
        "res2.0.conv1.weight",
        RESNET_DETECTRON2,
        ((HEAD, r"linear\..+"),),
    ),
)
