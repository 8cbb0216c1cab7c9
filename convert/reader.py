"""What this project's own files say of themselves, checked: the words of a file are as little trusted as its bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import torch
from timm.models import is_model
from torch import Tensor

from convert import architectures
from convert.families import ALWAYS_DROPPED, FAMILIES, Family, by_name, compiled, recognise
from convert.flat import Flat, flatten, plain_tensors
from convert.names import DINOV2_LAYOUT, LAYOUTS, TIMM_LAYOUT, Layout, apply_table, fold_class_position, unchunk
from convert.recorded import AS_TIMM, IMAGENET, recorded
from convert.safe_files import read_file
from convert.support import kind_of
from pretrain.backbones import POS_RESIZE, Backbone, build_backbone, canonical_arch, check_options
from sslight.core.checkpoint import FORMAT, sha256
from sslight.core.errors import InputError, nearest


def brief(found: object) -> str:
    """Whatever a file holds, short and on one line."""
    return " ".join(str(found).split())[:120]


def checked_preprocess(found: object, path: Path | str) -> dict:
    """How images are fed: mean, std (of the channels in color_order, of images in [0, 1]), color_order, size; of some
    ViTs pos_resize, too (see pretrain/backbones.py).

    Raises InputError unless it is all there and makes sense.
    """
    given = found if isinstance(found, dict) else {}
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
    raise InputError(f"{path}: its 'preprocess' is damaged: {brief(found)}")


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


@dataclass
class Checkpoint:
    """One network's backbone out of a checkpoint file, and all that is known of where it came from.

    `state` has timm's names; `body` the same tensors in the file's own naming, called `layout`; `options` are
    `build_backbone` arguments beside `arch`; `head` holds DINO's projection head (`mlp.N.*`) or None; `dropped` maps a
    reason to the file's keys; `counts` says how many keys each renaming rule took; `assumed` says by topic what neither
    the file nor the user told; `hashing` is the file's SHA-256 on its way.
    """

    state: dict[str, Tensor]
    arch: str
    family: str
    rule: str
    method: str
    network: str
    preprocess: dict
    head: dict[str, Tensor] | None
    dropped: dict[str, list[str]]
    options: dict = field(default_factory=dict)
    layout: str = "timm"
    body: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    assumed: dict[str, str] = field(default_factory=dict)
    hashing: Future[str] | None = None

    @property
    def sha256(self) -> str:
        """The file's SHA-256, hexadecimal."""
        assert self.hashing  # of every checkpoint out of a file
        return self.hashing.result()


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
    recorded = {"pos_resize": checkpoint.preprocess.get("pos_resize", "timm"), **checkpoint.options}
    module = build_backbone(checkpoint.arch, **{**recorded, **build_options})
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
        checkpoint = _from_backbone_file(path, content, header, arch, options or {})
    else:
        checkpoint = read_content(
            content, path, family=family, arch=arch, network=network, from_detector=from_detector, options=options
        )
    checkpoint.hashing = hashing
    if not mapped:
        checkpoint.hashing.result()  # the file is the caller's again
    return checkpoint


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
    """Recognise, rename and check one network of what a file holds, as `read_checkpoint`; `path` is for messages."""
    flat = flatten(content, str(path))
    entry = by_name(family) if family else recognise(flat.values)
    if entry.detector and not from_detector:
        raise InputError(
            f"{path} is a trained detector ({entry.rule}); to take its fine-tuned backbone, add --from-detector"
        )
    if entry.name == "sslight":
        picked = _pick_sslight(content, flat, network, path)
    else:
        picked = _pick(entry, flat, network, path)
    layout, body, drops = _layout(picked.body, entry, arch, picked.arch, str(path))
    for reason, keys in drops.items():
        picked.dropped.setdefault(reason, []).extend(keys)
    where = f"{path} as {layout.name}"
    if layout.kind == "vit" and entry.name.startswith("detectron2") and "cls_token" not in body:
        raise InputError(
            f"{path} is a ViTDet backbone: it has no 'cls_token' and no final norm, so it is no whole ViT "
            "any more; convert the checkpoint that it was trained from"
        )
    try:
        renamed = apply_table(layout.table, body, to_timm=True, where=where)
    except InputError as error:
        raise InputError(f"{error}; if this is another network of timm, name it with --arch") from None
    state, notes = plain_tensors({timm: body[key] for key, timm in renamed.keys.items()}, where)
    if layout is DINOV2_LAYOUT:
        state, folded = fold_class_position(state)
        notes += folded
    known = arch or (picked.arch if layout is TIMM_LAYOUT or entry.name == "sslight" else None)
    told = recorded(content, flat, entry, layout, state, str(path))
    if told.heads is None and picked.arch and layout.kind in ("vit", "timm"):
        told.heads = architectures.vit_heads(picked.arch)  # the file's own word is a name of timm's
    name, built = _architecture(layout, state, known, str(path))
    options = _with_heads(name, built, options or {}, told.heads, told.assumed)
    filled = _fill_counters(state, name, options)
    if filled:
        renamed.counts["(none) -> num_batches_tracked = 0, absent from the file"] = filled
        notes.append(f"{filled} num_batches_tracked counters were absent and set to 0")
    architectures.check_complete(state, name, options, str(path))
    state = {key: state[key] for key in architectures.expected_shapes(name, **options)}
    if picked.preprocess is None:
        picked.preprocess = {**(told.preprocess or IMAGENET), "size": _image_size(name, options, state)}
    else:
        told.assumed.pop("preprocess", None)
    preprocess = checked_preprocess(picked.preprocess, path)
    return Checkpoint(
        state,
        name,
        entry.name,
        entry.rule,
        picked.method,
        picked.network,
        preprocess,
        picked.head,
        picked.dropped,
        options,
        layout.name,
        body,
        renamed.counts,
        notes,
        told.assumed,
    )


@dataclass
class _Picked:
    """One network's tensors as the file names them."""

    body: dict[str, Tensor]
    network: str
    method: str
    head: dict[str, Tensor] | None
    dropped: dict[str, list[str]]
    arch: str | None = None
    preprocess: dict | None = None


def _pick(family: Family, flat: Flat, network: str | None, path: Path | str) -> _Picked:
    """The chosen network's tensors; every other key is dropped by a named rule or an error."""
    tensors = flat.tensors
    present = {
        name: pattern
        for name, pattern in family.networks
        if any(compiled(pattern + "(?=.)").match(key) and not _reason(family, key) for key in tensors)
    }
    if not present:
        raise InputError(
            f"{path} is not of the family {family.name} ({family.rule}); "
            "without --family it is recognised from its keys"
        )
    chosen = network or next(iter(present))
    if chosen not in present:
        raise InputError(
            f"{path} ({family.name}) has no network '{chosen}'{nearest(chosen, present)}; it has {', '.join(present)}"
        )
    prefix = compiled(present.pop(chosen))
    body: dict[str, Tensor] = {}
    dropped: dict[str, list[str]] = {}
    unknown: list[str] = []
    for key, value in flat.values.items():
        reason = _reason(family, key)
        found = prefix.match(key)
        if not isinstance(value, Tensor):
            reason = "not a tensor (settings and counters)"
        elif reason is None and found:
            body[key[found.end() :]] = value
            continue
        elif reason is None:
            other = [name for name, pattern in present.items() if compiled(pattern).match(key)]
            reason = f"other network '{other[0]}'" if other else None
        if reason is None:
            unknown.append(flat.raw[key])
        else:
            dropped.setdefault(reason, []).append(flat.raw[key])
    if unknown:
        raise InputError(
            f"{path} ({family.name}): {len(unknown)} keys belong to no rule of the family: {', '.join(unknown)}"
        )
    recorded = flat.values.get("arch")
    known = isinstance(recorded, str) and is_model(recorded)  # other projects' names may be none of timm's
    return _Picked(
        body,
        chosen,
        family.method_of(chosen) or "unknown",
        _head(family, chosen, tensors),
        dropped,
        str(recorded) if known else None,
    )


def _reason(family: Family, key: str) -> str | None:
    return next(
        (reason for reason, pattern in (*family.drops, *ALWAYS_DROPPED) if compiled(pattern).fullmatch(key)), None
    )


def _head(family: Family, network: str, tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
    prefix = dict(family.heads).get(network)
    found = {
        key[match.end() :]: value for key, value in tensors.items() if prefix and (match := compiled(prefix).match(key))
    }
    return _only_mlp(found)


def _only_mlp(head: dict[str, Tensor]) -> dict[str, Tensor] | None:
    return {key: value for key, value in head.items() if key.startswith("mlp.")} or None


def _pick_sslight(content: object, flat: Flat, network: str | None, path: Path | str) -> _Picked:
    """A run checkpoint says itself where its networks are."""
    content = content if isinstance(content, dict) else {}
    if content.get("format") != FORMAT:
        raise InputError(f"{path} has format '{brief(content.get('format'))}'; this version reads '{FORMAT}'")
    model: Any = content.get("model")
    networks: Any = content.get("networks")
    method = brief(content.get("method"))
    usable = isinstance(model, dict) and isinstance(networks, dict) and networks
    if not usable or not all(isinstance(text, str) for text in (*model, *networks, *networks.values())):
        raise InputError(f"not a readable checkpoint: {path} lacks a usable 'model' or 'networks'")
    chosen = network or next(iter(networks))
    if chosen not in networks:
        raise InputError(f"{path} has no network '{chosen}'{nearest(chosen, networks)}; it has {', '.join(networks)}")
    prefix = networks[chosen]
    head_prefix = prefix.removesuffix("backbone.") + "head."
    body: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    dropped: dict[str, list[str]] = {}
    for key, value in model.items():
        other = next((name for name, start in networks.items() if name != chosen and key.startswith(start)), None)
        if key.startswith(prefix):
            body[key[len(prefix) :]] = value
            continue
        if key.startswith(head_prefix):
            head[key[len(head_prefix) :]] = value
        reason = f"other network '{other}'" if other else "heads, prototypes, queues and centres of the method"
        dropped.setdefault(reason, []).append(f"model.{key}")
    for key in flat.values:
        if not flat.raw[key].startswith("model."):
            dropped.setdefault("settings and trainer state", []).append(flat.raw[key])
    if not body or not all(isinstance(value, Tensor) for value in body.values()):
        raise InputError(f"not a readable checkpoint: {path} has no tensors under '{prefix}'")
    return _Picked(
        body,
        chosen,
        method,
        _only_mlp(head) if method.startswith("dino") else None,
        dropped,
        brief(content.get("arch")),
        content.get("preprocess"),
    )


def _layout(
    body: dict[str, Tensor], family: Family, asked: str | None, recorded: str | None, source: str
) -> tuple[Layout, dict[str, Tensor], dict[str, list[str]]]:
    """The naming of the body, the body without what that naming drops, and the dropped keys by reason.

    `asked` is the --arch of the user. `recorded` is the file's own word; it decides only in this project's files, where
    no table's sign is seen, and for timm's other networks, some of which look like a MobileNetV2.
    """
    body = unchunk(body)
    keys = list(body)
    found = [layout for layout in LAYOUTS if layout.recognised(keys)]
    if DINOV2_LAYOUT.recognised(keys) and found and found[0].kind == "vit":
        found = [DINOV2_LAYOUT]
    own_word = family.name == "sslight" or not found or (recorded and kind_of(recorded) is None)
    trusted = asked or (recorded if own_word else None)
    if trusted and (not found or kind_of(canonical_arch(trusted)) != found[0].kind):
        found = [TIMM_LAYOUT]
    if len(found) != 1:
        shown = ", ".join(keys[:5])
        why = f"mixes namings ({', '.join(layout.name for layout in found)})" if found else "is in no known naming"
        raise InputError(
            f"{source}: the network {why}; its first keys are {shown}; if it is a timm network, name it with --arch"
        )
    layout = found[0]
    drops: list[tuple[str, Callable]] = [(reason, compiled(pattern).fullmatch) for reason, pattern in layout.drops]
    if layout is TIMM_LAYOUT:
        drops = [("classifier or head on the backbone", architectures.classifier_keys(trusted).__contains__)]
    dropped: dict[str, list[str]] = {}
    kept = {}
    for key, value in body.items():
        reason = next((reason for reason, fits in drops if fits(key)), None)
        if reason:
            dropped.setdefault(reason, []).append(key)
        else:
            kept[key] = value
    return layout, kept, dropped


def _architecture(layout: Layout, state: dict, arch: str | None, source: str) -> tuple[str, dict]:
    """timm's name and options: `arch` if it is known, else from the shapes."""
    if not arch:
        return architectures.infer(layout.kind, state, source)
    name = canonical_arch(arch)
    return name, architectures.vit_options(name, state, source) if layout.kind == "vit" else {}


def _with_heads(arch: str, options: Mapping, asked: Mapping, heads: int | None, assumed: dict[str, str]) -> dict:
    """The build options with the user's, and for a ViT with its `heads` (see `Recorded`) or an assumption named."""
    check_options(arch, asked)
    usual = architectures.vit_heads(arch)
    if usual and heads and heads != usual:
        options = {**options, "num_heads": heads}
    if usual and heads is None and "num_heads" not in asked:
        other = "" if usual == 12 else "; MoCo v3's have 12"
        assumed["num_heads"] = f"heads are not recorded in the file: {usual} assumed (timm's {arch}){other}"
    return {**options, **asked}


def _fill_counters(state: dict[str, Tensor], arch: str, options: dict) -> int:
    """Old files and frozen norms lack every num_batches_tracked, which no feature depends on: set them to 0."""
    if any(key.endswith("num_batches_tracked") for key in state):
        return 0
    counters = [key for key in architectures.expected_shapes(arch, **options) if key.endswith("num_batches_tracked")]
    state.update({key: torch.zeros((), dtype=torch.int64) for key in counters})
    return len(counters)


def _image_size(arch: str, options: dict, state: dict[str, Tensor]) -> int:
    if "img_size" in options:
        return options["img_size"]
    if "pos_embed" in state and arch.startswith(("vit_", "deit_")):
        patch = state["patch_embed.proj.weight"].shape[-1]
        return int(state["pos_embed"].shape[1] ** 0.5) * patch
    return 224


def _from_backbone_file(
    path: Path | str, tensors: dict[str, Tensor], header: dict, arch: str | None, asked: Mapping
) -> Checkpoint:
    """A backbone file of this project: timm's names, with a header that says the rest."""
    name = canonical_arch(arch or header["arch"])
    preprocess, options, assumed = read_header(header, name, path)
    if "num_heads" in options or "num_heads" in asked:
        assumed.pop("num_heads", None)
    elif "assumed" not in header and _from_many_codes(header.get("converted", "")):  # of an earlier version
        _with_heads(name, {}, {}, None, assumed)
    check_options(name, asked)
    options |= asked
    state, notes = plain_tensors(tensors, str(path))
    architectures.check_complete(state, name, options, str(path))
    rule = "a backbone file of this project: header with 'arch', 'preprocess'"
    return Checkpoint(
        state,
        name,
        "sslight-backbone",
        rule,
        header.get("method", "unknown"),
        "backbone",
        preprocess,
        None,
        {},
        options,
        "timm",
        state,
        {"{rest} -> {rest}": len(state)},
        notes,
        assumed,
    )


def _from_many_codes(converted: str) -> bool:
    """Whether a file says that it was converted from a family whose ViTs may have other heads than timm's."""
    return any(converted.startswith(f"{family.name} (") and family.vit_heads != AS_TIMM for family in FAMILIES)
