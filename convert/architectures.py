"""Which network is this? Inferred from the shapes of timm-named tensors; the full list of names and shapes decides.

Shapes do not tell everything: `options` carries what `build_backbone` needs besides the name (image size, patch size,
registers). Attention heads do not show in any shape: see `convert.recorded`.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from pretrain.backbones import backbone_shapes, meta_backbone
from sslight.core.errors import InputError

_RESNETS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
}
_MOBILENETS = {
    "mobilenetv2_035": 0.35,
    "mobilenetv2_050": 0.5,
    "mobilenetv2_075": 0.75,
    "mobilenetv2_100": 1.0,
    "mobilenetv2_140": 1.4,
}
_VIT_NAMES = {192: "tiny", 384: "small", 768: "base"}
_ASK = "name the timm network with --arch"


def infer(kind: str, state: dict[str, Tensor], source: str) -> tuple[str, dict]:
    """timm's name and build options of the network whose tensors these are. Raises InputError if no shape rule fits."""
    infers = {"resnet": _infer_resnet, "mobilenetv2": _infer_mobilenet, "vit": infer_vit}
    if kind not in infers:
        raise InputError(
            f"{source}: cannot tell the architecture from these tensors (e.g. '{next(iter(state))}'); {_ASK}"
        )
    return infers[kind](state, source)


def _infer_resnet(state: dict[str, Tensor], source: str) -> tuple[str, dict]:
    blocks: Counter[int] = Counter()
    for key in state:
        parts = key.split(".")
        if parts[0].startswith("layer"):
            stage = int(parts[0][5:])
            blocks[stage] = max(blocks[stage], int(parts[1]) + 1)
    counts = tuple(blocks[stage] for stage in range(1, 5))
    block = "bottleneck" if any(".conv3." in key for key in state) else "basic"
    if (block, counts) not in _RESNETS:
        raise InputError(f"{source}: a ResNet with {block} blocks {list(counts)} is none of ResNet18/34/50/101; {_ASK}")
    return _RESNETS[block, counts], {}


def _infer_mobilenet(state: dict[str, Tensor], source: str) -> tuple[str, dict]:
    depth = max((int(key.split(".")[2]) + 1 for key in state if key.startswith("blocks.3.")), default=0)
    votes: Counter[str] = Counter()
    for stage, channels in enumerate((16, 24, 32, 64, 96, 160, 320)):
        found = _size(state, f"blocks.{stage}.0.conv_pw{'l' if stage else ''}.weight", 0)
        for arch, width in (_deeper(depth) or _MOBILENETS).items():
            if found == _round_to_8(channels * width):
                votes[arch] += 1
    if not votes:
        raise InputError(f"{source}: a MobileNetV2 of a width that timm does not have; {_ASK}")
    return votes.most_common(1)[0][0], {}


def _size(state: dict[str, Tensor], key: str, axis: int) -> int:
    """Length of an axis of a tensor that may be missing or of any shape; then 0."""
    shape = state[key].shape if key in state else ()
    return shape[axis] if -len(shape) <= axis < len(shape) else 0


def _deeper(depth: int) -> dict[str, float]:
    """timm's two deeper variants, by the blocks of the fourth stage."""
    return {5: {"mobilenetv2_110d": 1.1}, 6: {"mobilenetv2_120d": 1.2}}.get(depth, {})


def _round_to_8(channels: float) -> int:
    """Width rule of MobileNetV2: the nearest multiple of 8, never less than 90% of the wish."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _patch_size(state: dict[str, Tensor], source: str) -> int:
    """The side of a ViT's patches in pixels. Raises InputError if it or the positions have no such shape."""
    for key, axes in (("patch_embed.proj.weight", 4), ("pos_embed", 3)):
        if key not in state or state[key].ndim != axes:
            raise InputError(f"{source}: a ViT without a usable '{key}'; {_ASK}")
    return state["patch_embed.proj.weight"].shape[-1]


def infer_vit(state: dict[str, Tensor], source: str) -> tuple[str, dict]:
    """ViT-Ti/S/B of depth 12, patch 8/14/16, with registers or a distillation token."""
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    widths = Counter(_size(state, key, 0) for key in state if key.endswith("norm1.weight"))
    width = (widths or Counter([_size(state, "pos_embed", 2)])).most_common(1)[0][0]
    patch = _patch_size(state, source)
    if depth != 12 or width not in _VIT_NAMES or patch not in (8, 14, 16):
        raise InputError(
            f"{source}: a ViT of width {width}, depth {depth}, patch {patch} is none of ViT-Ti/S/B at "
            f"patch 8/14/16; {_ASK}"
        )
    registers = _size(state, "reg_token", 1)
    arch = _vit_arch(_VIT_NAMES[width], patch, "dist_token" in state, registers, "blocks.0.ls1.gamma" in state)
    return arch, vit_options(arch, state, source)


@functools.cache
def _vit_arch(size: str, patch: int, distilled: bool, registers: int, scaled: bool) -> str:
    """The timm network nearest to these parts; `vit_options` adds what differs."""
    if distilled:
        return f"deit_{size}_distilled_patch16_224"
    if scaled and size != "tiny":
        return f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2"
    return f"vit_{size}_patch8_224" if patch == 8 and size != "tiny" else f"vit_{size}_patch16_224"


def vit_options(arch: str, state: dict[str, Tensor], source: str) -> dict:
    """Build options that make the ViT `arch` have this state's patch size, image size and extra tokens."""
    shapes = expected_shapes(arch)
    options: dict[str, Any] = {}
    patch = _patch_size(state, source)
    if patch != shapes["patch_embed.proj.weight"][-1]:
        options["patch_size"] = patch
    registers = _size(state, "reg_token", 1)
    if registers != shapes.get("reg_token", (1, 0))[1]:
        options["reg_tokens"] = registers
    if "blocks.0.ls1.gamma" in state and "blocks.0.ls1.gamma" not in shapes:
        options["init_values"] = 1e-5
    length = _size(state, "pos_embed", 1)
    extra = 1 + ("dist_token" in state) + registers
    grids = {extra: math.isqrt(max(length - extra, 0)), 0: math.isqrt(length)}
    fitting = [tokens for tokens in (extra, 0) if grids[tokens] ** 2 == length - tokens and grids[tokens] > 0]
    if not fitting:
        raise InputError(
            f"{source}: 'pos_embed' has {length} positions, which is no square image with {extra} extra tokens"
        )
    if fitting[0] == 0 and shapes["pos_embed"][1] != length:
        options["no_embed_class"] = True
    size = grids[fitting[0]] * patch
    if options.keys() - {"init_values"} or shapes["pos_embed"][1] != length:
        options["img_size"] = size
    return options


def expected_shapes(arch: str, **options) -> dict[str, tuple[int, ...]]:
    """Every name and shape of a backbone's state dict; nothing is allocated."""
    return backbone_shapes(arch, **options)


def vit_heads(arch: str) -> int | None:
    """Attention heads of timm's plain ViT `arch`; None for another network."""
    network = meta_backbone(arch)
    if not isinstance(network, VisionTransformer):
        return None
    block: Any = network.blocks[0]
    return block.attn.num_heads


@functools.cache
def classifier_keys(arch: str) -> frozenset[str]:
    """Names in timm's network with its classifier that it lacks without: what a plain timm file may hold beside."""
    return frozenset(backbone_shapes(arch, num_classes=1000).keys() - backbone_shapes(arch).keys())


def check_complete(state: dict[str, Tensor], arch: str, options: dict, source: str) -> None:
    """Raise InputError listing every missing, extra and mis-shaped tensor, and every one that is not finite."""
    compare_shapes(
        {key: tuple(value.shape) for key, value in state.items()},
        expected_shapes(arch, **options),
        f"{source} read as {arch}",
    )
    # A sum is one quick pass; only where it is not finite is every number looked at.
    broken = [
        key
        for key, value in state.items()
        if value.is_floating_point() and not bool(value.sum().isfinite()) and not bool(torch.isfinite(value).all())
    ]
    if broken:
        raise InputError(f"{source}: not finite (NaN or infinity) in {', '.join(broken)}; the training had diverged")


def compare_shapes(found: dict[str, tuple], expected: dict[str, tuple], what: str) -> None:
    """Raise InputError listing every difference between two lists of names and shapes."""
    problems = [f"missing '{key}' {list(expected[key])}" for key in expected if key not in found]
    problems += [f"unexpected '{key}' {list(found[key])}" for key in found if key not in expected]
    problems += [
        f"'{key}' has shape {list(found[key])} instead of {list(expected[key])}"
        for key in expected
        if key in found and tuple(found[key]) != tuple(expected[key])
    ]
    if problems:
        raise InputError(f"{what}: {len(problems)} tensors do not fit: {'; '.join(problems)}")
