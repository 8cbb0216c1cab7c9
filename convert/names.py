"""Renaming as data: tables of anchored two-way patterns, applied to whole key sets or not at all.

A template such as `res{s+1}.{b}.conv{n}.norm.{norm}` is literal text with fields. `{norm}` is one entry of a batch
norm, `{wb}` is `weight` or `bias`, `{rest}` is anything; any other field is a number, `{s+1}` stands for the number
one above the rule's `s`, and `{s:1-6}` limits `s`. The same rule renames in both directions.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sslight.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

# Class of architectures -> pattern of timm names (first match wins), and the kind of naming tables below that hold
# them; other networks keep timm's names.
CLASSES = {
    "ResNet18/34/50/101/152": (r"resnet(18|34|50|101|152)", "resnet"),
    "MobileNetV2": (r"mobilenetv2_\d{3}", "mobilenetv2"),
    "MobileNetV2, deeper": (r"mobilenetv2_\d{3}d", "mobilenetv2"),
    "ViT-B": (
        r"vit_base_patch(8|14|16)_224|vit_base_patch14_(reg4_)?dinov2|deit_base(_distilled)?_patch16_224",
        "vit",
    ),
    "ViT-Ti/S": (
        r"vit_(tiny|small)_patch(8|14|16)_224|vit_small_patch14_(reg4_)?dinov2"
        r"|deit_(tiny|small)(_distilled)?_patch16_224",
        "vit",
    ),
    "other timm network": (r".+", None),
}


def class_of(arch: str) -> str:
    """The class of CLASSES that a timm name is of."""
    return next(name for name, (pattern, _) in CLASSES.items() if re.fullmatch(pattern, arch))


def kind_of(arch: str) -> str | None:
    """Which naming tables hold an architecture: "resnet", "mobilenetv2", "vit", or None for timm's names only."""
    return CLASSES[class_of(arch)][1]


_FIELD = re.compile(r"\{(\w+?)([+-]\d+)?(?::(\d+)-(\d+))?\}")
_TEXT_FIELDS = {
    "norm": "weight|bias|running_mean|running_var|num_batches_tracked",
    "wb": "weight|bias",
    "rest": ".+",
}


@functools.cache
def _compiled(template: str) -> tuple[re.Pattern, dict[str, tuple[int, int | None, int | None]]]:
    """The anchored pattern of a template and its number fields: name -> (offset, lowest, highest)."""
    pattern, numbers, position = "", {}, 0
    for part in _FIELD.finditer(template):
        name, offset, low, high = part.groups()
        pattern += re.escape(template[position : part.start()]) + f"(?P<{name}>{_TEXT_FIELDS.get(name, '[0-9]{1,4}')})"
        if name not in _TEXT_FIELDS:
            numbers[name] = (int(offset or 0), int(low) if low else None, int(high) if high else None)
        position = part.end()
    return re.compile(pattern + re.escape(template[position:])), numbers


@dataclass(frozen=True)
class Rule:
    """One line of a table: a foreign template and its timm counterpart, with the same fields on both sides."""

    foreign: str
    timm: str

    def rename(self, key: str, to_timm: bool) -> str | None:
        """The key on the other side, or None where this rule does not match."""
        source, target = (self.foreign, self.timm) if to_timm else (self.timm, self.foreign)
        pattern, numbers = _compiled(source)
        match = pattern.fullmatch(key)
        if not match:
            return None
        fields: dict[str, Any] = match.groupdict()
        bounds = _compiled(target)[1]
        for name, (offset, *_) in numbers.items():
            if fields[name] != str(int(fields[name])):
                return None  # '01' is another key than '1'
            fields[name] = int(fields[name]) - offset
        for side in (numbers, bounds):
            for name, (_, low, high) in side.items():
                if fields[name] < (low or 0) or (high is not None and fields[name] > high):
                    return None
        return _FIELD.sub(
            lambda field: (
                str(fields[field[1]] + int(field[2] or 0)) if field[1] not in _TEXT_FIELDS else fields[field[1]]
            ),
            target,
        )


@dataclass(frozen=True)
class Renamed:
    """What a table did: source key -> target key, and how many keys each rule took."""

    keys: dict[str, str]
    counts: dict[str, int]


def apply_table(table: Iterable[Rule], keys: Iterable[str], *, to_timm: bool, where: str) -> Renamed:
    """Rename every key by exactly one rule, filling each target key once.

    Raises InputError listing every key that no rule, or more than one rule, matches, and every target filled twice.
    `where` says in the message whose keys these are.
    """
    table = tuple(table)
    renamed: dict[str, str] = {}
    counts: dict[str, int] = {}
    owner: dict[str, str] = {}
    problems: list[str] = []
    for key in keys:
        matches = [(rule, name) for rule in table if (name := rule.rename(key, to_timm)) is not None]
        if len(matches) != 1:
            rules = ", ".join(f"'{rule.foreign}'" for rule, _ in matches)
            problems.append(f"'{key}' matches {'several rules: ' + rules if matches else 'no rule'}")
            continue
        rule, name = matches[0]
        if name in owner:
            problems.append(f"'{key}' and '{owner[name]}' both lead to '{name}'")
            continue
        owner[name] = key
        renamed[key] = name
        text = f"{rule.foreign} -> {rule.timm}" if to_timm else f"{rule.timm} -> {rule.foreign}"
        counts[text] = counts.get(text, 0) + 1
    if problems:
        raise InputError(f"{where}: {len(problems)} keys cannot be renamed: {'; '.join(problems)}")
    return Renamed(renamed, counts)


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


MOBILENET_TORCHVISION = _mobilenet_torchvision("features.")
MOBILENET_SEQUENTIAL = _mobilenet_torchvision("")
MOBILENET_CHILDREN = _mobilenet_torchvision("0.")
MOBILENET_TIMM = _mobilenet_timm("conv_stem", "bn1", "blocks", "conv_head", "bn2")
MOBILENET_TIMM_CHILDREN = _mobilenet_timm("0", "1", "2", "3", "4")
MOBILENET_OPENMMLAB = _mobilenet_openmmlab()

_VIT_BLOCK = [
    *((f"{name}.{{wb}}",) * 2 for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")),
    ("ls1.gamma",) * 2,
    ("ls2.gamma",) * 2,
]
_VIT_OUTSIDE = [
    ("cls_token",) * 2,
    ("pos_embed",) * 2,
    ("dist_token",) * 2,
    ("patch_embed.proj.{wb}",) * 2,
    ("norm.{wb}",) * 2,
]


def _vit(outside: list[tuple[str, str]], blocks: list[tuple[str, str]]) -> tuple[Rule, ...]:
    return tuple(Rule(*pair) for pair in [*outside, *((foreign, "blocks.{b}." + timm) for foreign, timm in blocks)])


# DeiT III's own code calls the layer scale otherwise than timm's network of the same name.
VIT_TIMM = _vit(
    [*_VIT_OUTSIDE, ("reg_token", "reg_token")],
    [("blocks.{b}." + a, b) for a, b in (*_VIT_BLOCK, ("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma"))],
)
# DINOv2 calls the registers otherwise; its sharded training nests the blocks in chunks (see `_unchunk`).
VIT_DINOV2 = _vit([*_VIT_OUTSIDE, ("register_tokens", "reg_token")], [("blocks.{b}." + a, b) for a, b in _VIT_BLOCK])
VIT_TORCHVISION = _vit(
    [
        ("class_token", "cls_token"),
        ("encoder.pos_embedding", "pos_embed"),
        ("conv_proj.{wb}", "patch_embed.proj.{wb}"),
        ("encoder.ln.{wb}", "norm.{wb}"),
    ],
    [
        ("encoder.layers.encoder_layer_{b}." + a, b)
        for a, b in (
            ("ln_1.{wb}", "norm1.{wb}"),
            ("ln_2.{wb}", "norm2.{wb}"),
            ("self_attention.in_proj_{wb}", "attn.qkv.{wb}"),
            ("self_attention.out_proj.{wb}", "attn.proj.{wb}"),
            ("mlp.0.{wb}", "mlp.fc1.{wb}"),
            ("mlp.3.{wb}", "mlp.fc2.{wb}"),
        )
    ],
)
VIT_OPENMMLAB = _vit(
    [
        ("cls_token",) * 2,
        ("pos_embed",) * 2,
        ("patch_embed.projection.{wb}", "patch_embed.proj.{wb}"),
        ("ln1.{wb}", "norm.{wb}"),
    ],
    [
        ("layers.{b}." + a, b)
        for a, b in (
            ("ln1.{wb}", "norm1.{wb}"),
            ("ln2.{wb}", "norm2.{wb}"),
            ("attn.qkv.{wb}",) * 2,
            ("attn.proj.{wb}",) * 2,
            ("ffn.layers.0.0.{wb}", "mlp.fc1.{wb}"),
            ("ffn.layers.1.{wb}", "mlp.fc2.{wb}"),
        )
    ],
)

IDENTITY = (Rule("{rest}", "{rest}"),)

# A classifier or projection that some families store at the end of the backbone itself.
_CNN_HEAD = (("classifier or head on the backbone", r"(fc|head|classifier|last_linear)\..+"),)
_VIT_HEAD = (
    ("classifier or head on the backbone", r"(head|heads|head_dist|fc|classifier|pre_logits)\..+"),
    ("mask token of masked-image training", r"mask_token"),
)


@dataclass(frozen=True)
class Layout:
    """A naming: how it is recognised, its table, and what of it no backbone needs."""

    name: str
    kind: str  # "resnet", "mobilenetv2", "vit" or "timm"
    sign: str  # a key of the backbone that only this naming has
    table: tuple[Rule, ...]
    drops: tuple[tuple[str, str], ...] = field(default=())

    def recognised(self, keys: list[str]) -> bool:
        """Whether any key bears this naming's sign."""
        sign = re.compile(self.sign)
        return any(sign.fullmatch(key) for key in keys)


LAYOUTS = (
    Layout("torchvision/timm ResNet", "resnet", r"layer\d\.\d+\.conv\d\.weight", RESNET_TIMM, _CNN_HEAD),
    Layout("ResNet's children in a Sequential", "resnet", r"[4-7]\.\d+\.conv\d\.weight", RESNET_SEQUENTIAL),
    Layout(
        "detectron2 ResNet",
        "resnet",
        r"res\d\.\d+\.conv\d\.weight",
        RESNET_DETECTRON2,
        (("classifier or head on the backbone", r"linear\..+"),),
    ),
    Layout("timm MobileNetV2", "mobilenetv2", r"blocks\.\d\.\d\.conv_dw\.weight", MOBILENET_TIMM, _CNN_HEAD),
    Layout(
        "torchvision MobileNetV2",
        "mobilenetv2",
        r"features\.\d+\.conv\.\d\.0\.weight",
        MOBILENET_TORCHVISION,
        _CNN_HEAD,
    ),
    Layout("MobileNetV2's features in a Sequential", "mobilenetv2", r"\d+\.conv\.\d\.0\.weight", MOBILENET_SEQUENTIAL),
    Layout(
        "torchvision MobileNetV2's children in a Sequential",
        "mobilenetv2",
        r"0\.\d+\.conv\.\d\.0\.weight",
        MOBILENET_CHILDREN,
    ),
    Layout(
        "timm MobileNetV2's children in a Sequential",
        "mobilenetv2",
        r"2\.\d\.\d\.conv_dw\.weight",
        MOBILENET_TIMM_CHILDREN,
    ),
    Layout("OpenMMLab MobileNetV2", "mobilenetv2", r"layer\d\.\d\.depthwise_conv\.conv\.weight", MOBILENET_OPENMMLAB),
    Layout("timm/DINO ViT", "vit", r"blocks\.\d+\.attn\.qkv\.weight", VIT_TIMM, _VIT_HEAD),
    Layout(
        "torchvision ViT",
        "vit",
        r"encoder\.layers\.encoder_layer_\d+\.self_attention\.in_proj_weight",
        VIT_TORCHVISION,
        _VIT_HEAD,
    ),
    Layout("OpenMMLab ViT", "vit", r"layers\.\d+\.attn\.qkv\.weight", VIT_OPENMMLAB, _VIT_HEAD),
)
DINOV2_LAYOUT = Layout("DINOv2 ViT", "vit", r"(mask_token|register_tokens)", VIT_DINOV2, _VIT_HEAD)
TIMM_LAYOUT = Layout("timm", "timm", r".+", IDENTITY)

_CHUNKED = re.compile(r"blocks\.\d+\.(\d+)\.(norm1|norm2|attn|mlp|ls1|ls2)\.(.+)")


def recognised_layouts(body: dict[str, Tensor]) -> tuple[list[Layout], dict[str, Tensor]]:
    """The namings whose signs are among the keys, and the tensors with DINOv2's chunks of blocks undone."""
    body = _unchunk(body)
    keys = list(body)
    layouts = [layout for layout in LAYOUTS if layout.recognised(keys)]
    if DINOV2_LAYOUT.recognised(keys) and layouts and layouts[0].kind == "vit":
        layouts = [DINOV2_LAYOUT]
    return layouts, body


def _unchunk(state: dict[str, Tensor]) -> dict[str, Tensor]:
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
