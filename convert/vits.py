"""Which plain Vision Transformer has these tensors: timm's nearest name, and the build options that make it exact.

A ViT has too many sizes for a list: width, depth, patch and image size, tokens and norms are read from the shapes.
Attention heads are in no shape; they are timm's for a width that timm has, else 64 numbers wide where that divides.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from timm.models.vision_transformer import VisionTransformer

from convert.timm_index import Shapes
from pretrain.backbones import backbone_shapes, meta_backbone
from sslight.core.errors import InputError

_ASK = "name the timm network with --arch"
_SIZE = {"embed_dim", "depth", "mlp_ratio"}  # what makes it another network than a named one, not a variant of it

# timm's names that the others are told as variants of: width, patch size, and what no option (or more than one) makes.
# Of those at the nearest width with as much in common, the first is taken.
_NEAREST: dict[str, tuple[int, int, frozenset[str]]] = {
    name: (width, patch, frozenset(marks.split()))
    for name, width, patch, marks in (
        ("vit_tiny_patch16_224", 192, 16, ""),
        ("vit_small_patch16_224", 384, 16, ""),
        ("vit_small_patch8_224", 384, 8, ""),
        ("vit_base_patch16_224", 768, 16, ""),
        ("vit_base_patch8_224", 768, 8, ""),
        ("vit_base_patch32_224", 768, 32, ""),
        ("vit_large_patch16_224", 1024, 16, ""),
        ("vit_huge_patch14_224", 1280, 14, ""),
        ("vit_giant_patch14_224", 1408, 14, ""),
        ("vit_gigantic_patch14_224", 1664, 14, ""),
        ("vit_base_patch16_gap_224", 768, 16, "patches"),
        ("vit_huge_patch14_gap_224", 1280, 14, "patches"),
        ("deit_tiny_distilled_patch16_224", 192, 16, "distilled"),
        ("deit_small_distilled_patch16_224", 384, 16, "distilled"),
        ("deit_base_distilled_patch16_224", 768, 16, "distilled"),
        ("vit_small_patch14_dinov2", 384, 14, "scaled"),
        ("vit_base_patch14_dinov2", 768, 14, "scaled"),
        ("vit_large_patch14_dinov2", 1024, 14, "scaled"),
        ("vit_giant_patch14_dinov2", 1536, 14, "scaled gated"),
        ("vit_small_patch14_reg4_dinov2", 384, 14, "scaled registers bare"),
        ("vit_base_patch14_reg4_dinov2", 768, 14, "scaled registers bare"),
        ("vit_large_patch14_reg4_dinov2", 1024, 14, "scaled registers bare"),
        ("vit_giant_patch14_reg4_dinov2", 1536, 14, "scaled registers bare gated"),
        ("deit3_small_patch16_224", 384, 16, "scaled bare"),
        ("deit3_base_patch16_224", 768, 16, "scaled bare"),
        ("deit3_large_patch16_224", 1024, 16, "scaled bare"),
        ("deit3_huge_patch14_224", 1280, 14, "scaled bare"),
        ("vit_base_patch16_clip_224", 768, 16, "pre_norm"),
        ("vit_base_patch32_clip_224", 768, 32, "pre_norm"),
        ("vit_large_patch14_clip_224", 1024, 14, "pre_norm"),
        ("vit_huge_patch14_clip_224", 1280, 14, "pre_norm"),
        ("vit_giant_patch14_clip_224", 1408, 14, "pre_norm"),
        ("vit_gigantic_patch14_clip_224", 1664, 14, "pre_norm"),
    )
}
_NEVER_AN_OPTION = {"distilled", "gated", "pre_norm"}


def infer_vit(shapes: Shapes, asked: Collection[str] = ()) -> tuple[str, dict]:
    """timm's name and build options of the plain ViT with these tensors; `asked`: names of options that the user gives.

    Raises InputError where they have no patches or positions of a square, or where nothing tells the heads.
    """
    traits = _traits(shapes)
    marks, width, patch = _marks(shapes, traits), traits["embed_dim"], traits["patch_size"]

    def distance(name: str) -> tuple:
        wide, own_patch, own = _NEAREST[name]
        return abs(math.log(max(width, 1) / wide)), len(marks - own), own_patch != patch

    fitting = [
        name
        for name, (_, _, own) in _NEAREST.items()
        if own <= marks and own & _NEVER_AN_OPTION == marks & _NEVER_AN_OPTION
    ]
    if not fitting:
        raise InputError(f"no plain ViT of timm is {' and '.join(sorted(marks))}; {_ASK}")
    arch = min(fitting, key=distance)
    options = _difference(traits, _traits(backbone_shapes(arch)))
    if "embed_dim" in options and "num_heads" not in asked:
        if width % 64:
            raise InputError(
                f"a ViT of width {width}, which no network of timm's has: nothing tells its attention heads; say how "
                "many with --set num_heads=N"
            )
        options["num_heads"] = width // 64
    return arch, options


def vit_options(arch: str, shapes: Shapes) -> dict:
    """Build options that make the ViT `arch` have these tensors' patch and image size, tokens and norms."""
    options = _difference(_traits(shapes), _traits(backbone_shapes(arch)))
    return {key: value for key, value in options.items() if key not in _SIZE}


def _difference(traits: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    options = {key: value for key, value in traits.items() if value != own[key]}
    if "global_pool" in options:  # timm's norm would else follow it
        options["fc_norm"] = traits["fc_norm"]
    return options


def _traits(shapes: Shapes) -> dict[str, Any]:
    """Arguments of timm's network that names and shapes show. Raises InputError without patches or square positions.

    A norm that is missing is never taken for a network without: it would hide that a file is incomplete.
    """
    for key, axes in (("patch_embed.proj.weight", 4), ("pos_embed", 3)):
        if len(shapes.get(key, ())) != axes:
            raise InputError(f"a ViT without a usable '{key}'; {_ASK}")
    blocks = [key for key in shapes if key.startswith("blocks.")]
    ends = {key.split(".", 2)[-1] for key in blocks}
    width = _usual(shapes[key][0] for key in blocks if key.endswith(".norm1.weight") and shapes[key])
    width = width or shapes["pos_embed"][2]
    hidden = _usual(shapes[key][0] for key in blocks if key.endswith(".mlp.fc1.weight") and shapes[key])
    patch, length = shapes["patch_embed.proj.weight"][-1], shapes["pos_embed"][1]
    registers = _size(shapes, "reg_token", 1)
    class_token = "cls_token" in shapes or math.isqrt(length) ** 2 != length
    extra = class_token + ("dist_token" in shapes) + registers
    fitting = [
        tokens for tokens in (extra, 0) if length > tokens and math.isqrt(length - tokens) ** 2 == length - tokens
    ]
    if not fitting:
        raise InputError(f"'pos_embed' has {length} positions, which is no square image with {extra} extra tokens")
    after_pooling = "fc_norm.weight" in shapes and "norm.weight" not in shapes
    pooled = any(key.startswith("attn_pool.") for key in shapes)
    return {
        "embed_dim": width,
        "depth": 1 + max((int(key.split(".")[1]) for key in blocks), default=-1),
        "patch_size": patch,
        "mlp_ratio": _ratio(hidden, width),
        "qkv_bias": "attn.qkv.bias" in ends or "attn.qkv.weight" not in ends,
        "proj_bias": "attn.proj.bias" in ends or "mlp.fc2.bias" in ends,
        "qk_norm": "attn.q_norm.weight" in ends,
        "init_values": 1e-5 if "ls1.gamma" in ends else None,
        "class_token": class_token,
        "reg_tokens": registers,
        "no_embed_class": fitting[0] == 0 and extra > 0,
        "pre_norm": "norm_pre.weight" in shapes,
        "global_pool": "map" if pooled else "token" if class_token and not after_pooling else "avg",
        "fc_norm": after_pooling,
        "img_size": math.isqrt(length - fitting[0]) * patch,
    }


def _marks(shapes: Shapes, traits: Mapping[str, Any]) -> frozenset[str]:
    """What `_NEAREST` knows of these tensors, in its words."""
    into = _usual(_size(shapes, key, 1) for key in shapes if key.endswith(".mlp.fc2.weight"))
    present = {
        "distilled": "dist_token" in shapes,
        "gated": 2 * into == round(traits["mlp_ratio"] * traits["embed_dim"]) > 0,
        "scaled": traits["init_values"] is not None,
        "registers": traits["reg_tokens"] > 0,
        "bare": traits["no_embed_class"],
        "patches": not traits["class_token"] and (traits["global_pool"], traits["fc_norm"]) == ("avg", False),
        "pre_norm": traits["pre_norm"],
    }
    return frozenset(mark for mark, there in present.items() if there)


def _ratio(hidden: int, width: int) -> float:
    """The number by which timm's multiplication gives just this many hidden numbers."""
    ratio = hidden / max(width, 1)
    return ratio if int(ratio * width) == hidden else (hidden + 0.5) / max(width, 1)


def _usual(sizes: Iterable[int]) -> int:
    """What most blocks have, so that one of another shape is the one that is wrong; 0 for no blocks."""
    return max(Counter(sizes).items(), key=lambda item: item[1], default=(0, 0))[0]


def _size(shapes: Shapes, key: str, axis: int) -> int:
    """Length of an axis of a tensor that may be missing or of any shape; then 0."""
    shape = shapes.get(key, ())
    return shape[axis] if -len(shape) <= axis < len(shape) else 0


def vit_heads(arch: str) -> int | None:
    """Attention heads of timm's plain ViT `arch`; None for another network."""
    network = meta_backbone(arch)
    plain = isinstance(network, VisionTransformer)
    return network.blocks[0].attn.num_heads if plain else None


def image_size(arch: str, options: Mapping, shapes: Shapes) -> int:
    """Side of the square images that the network was trained on, in pixels."""
    if "img_size" in options:
        return options["img_size"]
    if "pos_embed" in shapes and vit_heads(arch):
        return int(_size(shapes, "pos_embed", 1) ** 0.5) * _size(shapes, "patch_embed.proj.weight", -1)
    return 224
