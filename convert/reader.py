"""A checkpoint of any family in, one network's checked backbone out.

One record, `Checkpoint`, passes through the steps of `read_content`, each a pure function:

    bytes -> safe content -> flat keys   read_file, flatten_content (`convert.safe_files`)
    -> family -> network                 recognise, choose (`convert.families`): the tensors in the file's own names
    -> names                             rename (tables of `convert.names`): the tensors in timm's names
    -> checked record                    identify, check: which timm network it is, every tensor accounted for
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from convert.families import (
    AS_TIMM,
    FAMILIES,
    IMAGENET,
    Checkpoint,
    Family,
    brief,
    choose,
    recognise,
    recorded,
)
from convert.names import (
    DINOV2_LAYOUT,
    TIMM_LAYOUT,
    Layout,
    apply_table,
    fold_class_position,
    kind_of,
    recognised_layouts,
)
from convert.safe_files import COUNTER, Flat, flatten_content, plain_tensors, read_file
from pretrain.backbones import (
    POS_RESIZE,
    Backbone,
    backbone_shapes,
    build_backbone,
    canonical_arch,
    check_options,
    meta_backbone,
)
from sslight.core.checkpoint import sha256
from sslight.core.errors import InputError


def load_network(
    path: Path | str,
    *,
    family: str | None = None,
    arch: str | None = None,
    network: str | None = None,
    from_detector: bool = False,
    options: Mapping | None = None,
) -> tuple[Backbone, Checkpoint]:
    """The timm network of a checkpoint, loaded strictly, in train mode, and what was read.

    Arguments and errors as of `read_checkpoint`.
    """
    checkpoint = read_checkpoint(
        path, family=family, arch=arch, network=network, from_detector=from_detector, options=options
    )
    return network_of(checkpoint), checkpoint


def network_of(checkpoint: Checkpoint, **build_options) -> Backbone:
    """The timm network holding a checkpoint's tensors."""
    own_options = {"pos_resize": checkpoint.preprocess.get("pos_resize", "timm"), **checkpoint.options}
    module = build_backbone(checkpoint.arch, **{**own_options, **build_options})
    module.load_state_dict(checkpoint.state, strict=True)
    return module


def read_checkpoint(
    path: Path | str,
    *,
    family: str | None = None,
    arch: str | None = None,
    network: str | None = None,
    from_detector: bool = False,
    options: Mapping | None = None,
    mapped: bool = False,
) -> Checkpoint:
    """Read one network's backbone from a checkpoint of any family.

    Parameters
    ----------
    path: the file. `family`, `arch`, `network` override what is recognised from the keys.
    from_detector: take the backbone out of a trained detector, which is otherwise refused.
    options: build options of the timm network that shapes do not show, such as num_heads; they come before the file's.
    mapped: leave tensors on the disk until they are used; for a short life, while nobody writes into the file.

    Raises InputError if the file is unsafe, unreadable, of no known layout, if its settings record what timm's network
    cannot do, or if any tensor is missing, unexpected or mis-shaped, naming every one.
    """
    hashing = ThreadPoolExecutor(1).submit(_digest, path)  # beside all that follows: it takes as long as the rest
    content, header = read_file(path, mapped=mapped)
    if family is None and "arch" in header and "preprocess" in header:
        checkpoint = _read_backbone_file(content, header, arch, options or {}, str(path))
    else:
        checkpoint = read_content(
            content, path, family=family, arch=arch, network=network, from_detector=from_detector, options=options
        )
    if not mapped:
        hashing.result()  # the file is the caller's again
    return replace(checkpoint, hashing=hashing)


def _digest(path: Path | str) -> str:
    """The file's hash, "" if it cannot be read, which reading reports."""
    try:
        return sha256(path)
    except OSError:
        return ""


def read_content(
    content: object,
    path: Path | str,
    *,
    family: str | None = None,
    arch: str | None = None,
    network: str | None = None,
    from_detector: bool = False,
    options: Mapping | None = None,
) -> Checkpoint:
    """The steps from what a file holds to a checked record, as `read_checkpoint`; `path` is for messages."""
    source = str(path)
    flat = flatten_content(content, source)
    entry = recognise(flat.values, family)
    if entry.detector and not from_detector:
        raise InputError(
            f"{source} is a trained detector ({entry.rule}); to take its fine-tuned backbone, add --from-detector"
        )
    checkpoint = choose(entry, flat, network, source)
    checkpoint, layout = rename(checkpoint, entry, arch)
    checkpoint = identify(checkpoint, entry, flat, layout, arch, options or {})
    return check(checkpoint)


def rename(checkpoint: Checkpoint, family: Family, asked: str | None) -> tuple[Checkpoint, Layout]:
    """The tensors in timm's names, by exactly one rule a key, and their naming; `asked` is the --arch of the user.

    The file's own word for its architecture decides only in this project's files, where no table's sign is seen, and
    for timm's other networks, some of which look like a MobileNetV2.
    """
    layouts, tensors = recognised_layouts(checkpoint.body)
    own_word = not family.networks or not layouts or (checkpoint.arch and kind_of(checkpoint.arch) is None)
    trusted = asked or (checkpoint.arch if own_word else None)
    if trusted and (not layouts or kind_of(canonical_arch(trusted)) != layouts[0].kind):
        layouts = [TIMM_LAYOUT]
    if len(layouts) != 1:
        shown = ", ".join(list(tensors)[:5])
        names = ", ".join(layout.name for layout in layouts)
        why = f"mixes namings ({names})" if layouts else "is in no known naming"
        raise InputError(
            f"{checkpoint.source}: the network {why}; its first keys are {shown}; "
            "if it is a timm network, name it with --arch"
        )
    [layout] = layouts
    drops: list[tuple[str, Callable]] = [(reason, re.compile(pattern).fullmatch) for reason, pattern in layout.drops]
    if layout is TIMM_LAYOUT:
        drops = [("classifier or head on the backbone", classifier_keys(trusted).__contains__)]
    body, dropped = {}, {reason: list(keys) for reason, keys in checkpoint.dropped.items()}
    for key, value in tensors.items():
        reason = next((reason for reason, fits in drops if fits(key)), None)
        if reason:
            dropped.setdefault(reason, []).append(key)
        else:
            body[key] = value
    if layout.kind == "vit" and family.framework == "detectron2" and "cls_token" not in body:
        raise InputError(
            f"{checkpoint.source} is a ViTDet backbone: it has no 'cls_token' and no final norm, so it is no whole ViT "
            "any more; convert the checkpoint that it was trained from"
        )
    where = f"{checkpoint.source} as {layout.name}"
    try:
        renamed = apply_table(layout.table, body, to_timm=True, where=where)
    except InputError as error:
        raise InputError(f"{error}; if this is another network of timm, name it with --arch") from None
    state, notes = plain_tensors({timm: body[key] for key, timm in renamed.keys.items()}, where)
    if layout is DINOV2_LAYOUT:
        state, folded = fold_class_position(state)
        notes += folded
    checkpoint = replace(
        checkpoint, state=state, layout=layout.name, body=body, dropped=dropped, counts=renamed.counts, notes=notes
    )
    return checkpoint, layout


def identify(
    checkpoint: Checkpoint, family: Family, flat: Flat, layout: Layout, asked: str | None, options: Mapping
) -> Checkpoint:
    """Which timm network it is, and how images are fed to it: from the user, the file's settings and the shapes.

    Raises InputError for what no timm network has.
    """
    state, own_arch = checkpoint.state, checkpoint.arch
    facts = recorded(family, flat, layout, checkpoint)
    heads = facts.heads
    if heads is None and own_arch and layout.kind in ("vit", "timm"):
        heads = vit_heads(own_arch)  # the file's own word is a name of timm's
    known = asked or (own_arch if layout is TIMM_LAYOUT or not family.networks else None)
    if known:
        arch = canonical_arch(known)
        built = vit_options(arch, state, checkpoint.source) if layout.kind == "vit" else {}
    else:
        arch, built = infer(layout.kind, state, checkpoint.source)
    built, heads_assumed = _with_heads(arch, built, options, heads)
    preprocess, assumed = checkpoint.preprocess, facts.assumed | heads_assumed
    if preprocess is None:
        preprocess = {**(facts.preprocess or IMAGENET), "size": _image_size(arch, built, state)}
    else:
        assumed.pop("preprocess", None)
    return _in_order(
        replace(checkpoint, arch=arch, kind=kind_of(arch), options=built, preprocess=preprocess, assumed=assumed)
    )


def _in_order(checkpoint: Checkpoint) -> Checkpoint:
    """The tensors in timm's order; counters, on which no feature depends, are added where a file lacks them all."""
    expected = backbone_shapes(checkpoint.arch, **checkpoint.options)
    state, counts, notes = dict(checkpoint.state), dict(checkpoint.counts), list(checkpoint.notes)
    counters = [key for key in expected if key.endswith(COUNTER)]
    if counters and not any(key.endswith(COUNTER) for key in state):
        state.update({key: torch.zeros((), dtype=torch.int64) for key in counters})
        counts[f"(none) -> {COUNTER} = 0, absent from the file"] = len(counters)
        notes.append(f"{len(counters)} {COUNTER} counters were absent and set to 0")
    ordered = {key: state.pop(key) for key in expected if key in state}
    return replace(checkpoint, state=ordered | state, counts=counts, notes=notes)


def check(checkpoint: Checkpoint) -> Checkpoint:
    """The record, whose tensors are all of the network's and nothing else.

    Raises InputError listing every missing, extra and mis-shaped tensor, and every one that is not finite.
    """
    shapes = {key: tuple(value.shape) for key, value in checkpoint.state.items()}
    expected = backbone_shapes(checkpoint.arch, **checkpoint.options)
    source = checkpoint.source
    compare_shapes(shapes, expected, f"{source} read as {checkpoint.arch}")
    # A sum is one quick pass; only where it is not finite is every number looked at.
    broken = [
        key
        for key, value in checkpoint.state.items()
        if value.is_floating_point() and not bool(value.sum().isfinite()) and not bool(torch.isfinite(value).all())
    ]
    if broken:
        raise InputError(f"{source}: not finite (NaN or infinity) in {', '.join(broken)}; the training had diverged")
    return replace(checkpoint, preprocess=checked_preprocess(checkpoint.preprocess, source))


def _read_backbone_file(
    tensors: dict[str, Tensor], header: dict, asked: str | None, options: Mapping, source: str
) -> Checkpoint:
    """A backbone file of this project: timm's names, with a header that says the rest."""
    arch = canonical_arch(asked or header["arch"])
    preprocess, own_options, assumed = read_header(header, arch, source)
    if "num_heads" in own_options or "num_heads" in options:
        assumed.pop("num_heads", None)
    elif "assumed" not in header and _from_many_codes(header.get("converted", "")):  # of an earlier version
        assumed |= _with_heads(arch, {}, {}, None)[1]
    check_options(arch, options)
    state, notes = plain_tensors(tensors, source)
    checkpoint = Checkpoint(
        source,
        "sslight-backbone",
        "a backbone file of this project: header with 'arch', 'preprocess'",
        "backbone",
        header.get("method", "unknown"),
        arch,
        kind_of(arch),
        {**own_options, **options},
        preprocess,
        state,
        body=state,
        counts={"{rest} -> {rest}": len(state)},
        notes=notes,
        assumed=assumed,
    )
    return check(checkpoint)


def _from_many_codes(converted: str) -> bool:
    """Whether a file says that it was converted from a family whose ViTs may have other heads than timm's."""
    return any(converted.startswith(f"{name} (") and family.vit_heads != AS_TIMM for name, family in FAMILIES.items())


def checked_preprocess(value: object, path: Path | str) -> dict:
    """How images are fed: mean, std (of the channels in color_order, of images in [0, 1]), color_order, size; of some
    ViTs pos_resize, too (see pretrain/backbones.py).

    Raises InputError unless it is all there and makes sense.
    """
    given = value if isinstance(value, dict) else {}
    mean, std, size, order = (given.get(key) for key in ("mean", "std", "size", "color_order"))
    positions = {"pos_resize": given["pos_resize"]} if "pos_resize" in given else {}
    if (
        _three(mean)
        and _three(std)
        and min(std) > 0
        and isinstance(size, int)
        and size > 0
        and order in ("RGB", "BGR")
        and all(value in tuple(POS_RESIZE) for value in positions.values())
    ):
        return {"mean": list(mean), "std": list(std), "color_order": order, "size": size, **positions}
    raise InputError(f"{path}: its 'preprocess' is damaged: {brief(value)}")


def _three(values: object) -> TypeGuard[Sequence[float]]:
    return (
        isinstance(values, list | tuple)
        and len(values) == 3
        and all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    )


def read_header(header: dict[str, str], arch: str, path: Path | str) -> tuple[dict, dict, dict]:
    """`preprocess`, the build options, and what was assumed, by topic, in a backbone file's header.

    Raises InputError for options that timm's network `arch` does not have.
    """
    try:
        preprocess, options, assumed = (
            json.loads(header.get(key, "{}")) for key in ("preprocess", "options", "assumed")
        )
    except ValueError as error:
        raise InputError(f"{path}: its header is damaged ({error})") from None
    if not isinstance(options, dict):
        raise InputError(f"{path}: its header has options that no conversion writes: {brief(options)}")
    try:
        check_options(arch, options)
    except InputError as error:
        raise InputError(f"{path}: its header has options that no conversion writes: {error}") from None
    if not isinstance(assumed, dict) or not all(
        isinstance(text, str) and text.isprintable() and len(text) < 500 for text in assumed.values()
    ):
        raise InputError(f"{path}: its header is damaged (assumed: {brief(assumed)})")
    return checked_preprocess(preprocess, path), options, assumed


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
        actual = _size(state, f"blocks.{stage}.0.conv_pw{'l' if stage else ''}.weight", 0)
        for arch, width in (_deeper(depth) or _MOBILENETS).items():
            if actual == _round_to_8(channels * width):
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
    """Width rule of MobileNetV2: the nearest multiple of 8, never less than 90% of the width asked for."""
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
    shapes = backbone_shapes(arch)
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


def _with_heads(arch: str, options: Mapping, asked: Mapping, heads: int | None) -> tuple[dict, dict[str, str]]:
    """Build options with the user's, for a ViT with its `heads` (of `recorded_heads`), and what is assumed of these."""
    check_options(arch, asked)
    usual, assumed = vit_heads(arch), {}
    if usual and heads and heads != usual:
        options = {**options, "num_heads": heads}
    if usual and heads is None and "num_heads" not in asked:
        other = "" if usual == 12 else "; MoCo v3's have 12"
        assumed["num_heads"] = f"heads are not recorded in the file: {usual} assumed (timm's {arch}){other}"
    return {**options, **asked}, assumed


def _image_size(arch: str, options: dict, state: dict[str, Tensor]) -> int:
    """Side of the square images that the network was trained on, in pixels."""
    if "img_size" in options:
        return options["img_size"]
    if "pos_embed" in state and arch.startswith(("vit_", "deit_")):
        return int(_size(state, "pos_embed", 1) ** 0.5) * _size(state, "patch_embed.proj.weight", -1)
    return 224


def vit_heads(arch: str) -> int | None:
    """Attention heads of timm's plain ViT `arch`; None for another network."""
    network = meta_backbone(arch)
    plain = isinstance(network, VisionTransformer)
    return network.blocks[0].attn.num_heads if plain else None


@functools.cache
def classifier_keys(arch: str) -> frozenset[str]:
    """Names in timm's network with its classifier that it lacks without: what a plain timm file may hold beside."""
    return frozenset(backbone_shapes(arch, num_classes=1000).keys() - backbone_shapes(arch).keys())


def compare_shapes(actual: dict[str, tuple], expected: dict[str, tuple], what: str) -> None:
    """Raise InputError listing every difference between two lists of names and shapes."""
    problems = [f"missing '{key}' {list(expected[key])}" for key in expected if key not in actual]
    problems += [f"unexpected '{key}' {list(actual[key])}" for key in actual if key not in expected]
    problems += [
        f"'{key}' has shape {list(actual[key])} instead of {list(expected[key])}"
        for key in expected
        if key in actual and tuple(actual[key]) != tuple(expected[key])
    ]
    if problems:
        raise InputError(f"{what}: {len(problems)} tensors do not fit: {'; '.join(problems)}")
