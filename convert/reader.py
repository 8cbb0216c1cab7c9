"""A checkpoint of any family in, one network's checked backbone out.

One record, `Checkpoint`, passes through the steps of `read_content`:

    bytes -> safe content -> flat keys   read_file, flatten_content (`convert.safe_files`)
    -> family                            recognise (`convert.families`): whose file it is
    -> network, in timm's names          choose: every complete backbone in it (`convert.finding`, with the tables of
                                         `convert.naming` and the networks of `convert.identify`), and the one to read
    -> checked record                    settle, check: what shapes do not show (`convert.recorded`), every tensor
                                         accounted for
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor

from convert.families import AS_TIMM, FAMILIES, IMAGENET, PLAIN, Checkpoint, Family, brief, compiled, of_run, recognise
from convert.finding import Known, dropped_keys, networks_of, pick
from convert.hub_config import HubConfig
from convert.identify import FOREIGN, Identity, mismatches
from convert.naming.rules import Layout, kind_of
from convert.recorded import hub_config, own_settings, recorded, recorded_arch
from convert.safe_files import COUNTER, Flat, flatten_content, plain_tensors
from convert.sources import SUPERVISED, Source, locate
from convert.vits import image_size, vit_heads
from pretrain.backbones import POS_RESIZE, Backbone, backbone_shapes, build_backbone, canonical_arch, check_options
from sslight.core.errors import InputError, listed


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
    path: a file, or what else `convert.sources` names. `family`, `arch`, `network` override what is recognised.
    from_detector: take the backbone out of a trained detector, which is otherwise refused.
    options: build options of the timm network that shapes do not show, such as num_heads; they come before the file's.
    mapped: leave tensors on the disk until they are used; for a short life, while nobody writes into the file.

    Raises InputError if the file is unsafe, unreadable, of no known layout, if its settings record what timm's network
    cannot do, or if any tensor is missing, unexpected or mis-shaped, naming the first ones.
    """
    source = locate(path, arch)
    hashing = ThreadPoolExecutor(1).submit(_digest, source)  # beside all that follows: it takes as long as the rest
    content, header = source.read(mapped=mapped)
    if family is None and "arch" in header and "preprocess" in header:
        checkpoint = _read_backbone_file(content, header, arch, options or {}, str(path))
    else:
        checkpoint = read_content(
            content,
            path,
            family=family,
            arch=arch,
            network=network,
            from_detector=from_detector,
            options=options,
            beside=source.beside,
        )
    if not mapped:
        hashing.result()  # the file is the caller's again
    method = "supervised" if source.word == SUPERVISED else checkpoint.method
    revision = source.revision or header.get("source_revision", "")
    return replace(checkpoint, hashing=hashing, method=method, revision=revision)


def _digest(source: Source) -> str:
    """The weights' hash, "" if they cannot be read, which reading reports."""
    try:
        return source.sha256()
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
    beside: Mapping | None = None,
) -> Checkpoint:
    """The steps from what a file holds to a checked record, as `read_checkpoint`.

    `path` is for messages; `beside` as of `Flat`.
    """
    source = str(path)
    flat = replace(flatten_content(content, source), beside=beside or {})
    entry = recognise(flat.values, family)
    if entry.detector and not from_detector:
        raise InputError(
            f"{source} is a trained detector ({entry.rule}); to take its fine-tuned backbone, add --from-detector"
        )
    hub = hub_config(flat)
    known = Known(canonical_arch(arch) if arch else "", {**(hub.options if hub else {}), **(options or {})})
    if known.arch:
        check_options(known.arch, known.options)
    if family and entry.networks and not entry.has_networks(flat.tensors):
        raise InputError(
            f"{source} is not of the family {entry.name} ({entry.rule}); "
            "without --family it is recognised from its keys"
        )
    checkpoint, identity, layout = choose(entry, flat, network, known, source)
    checkpoint = settle(checkpoint, identity, entry, flat, layout, known, hub)
    assumed = {topic: text for topic, text in checkpoint.assumed.items() if topic not in (options or {})}
    return check(_in_order(replace(checkpoint, assumed=assumed)))


def choose(
    family: Family, flat: Flat, network: str | None, known: Known, source: str
) -> tuple[Checkpoint, Identity, Layout]:
    """The tensors of the backbone to read, in timm's names, and what became of every other key.

    Raises InputError if no network is complete, or no rule says which of several.
    """
    own_arch = recorded_arch(flat)
    preprocess: object = None
    assumed: dict[str, str] = {}
    if not family.networks:
        family, preprocess = of_run(family, flat.content, source), flat.setting("preprocess")
        known = replace(known, arch=known.arch or own_arch)
        options, assumed = _own_record(
            flat.setting("options") or {}, flat.setting("start", "assumed") or {}, known.arch, source
        )
        known = replace(known, options={**options, **known.options})
    found = networks_of(family, flat, source, known)
    if own_arch and not known.arch and not any(one.complete for one in found.values()):
        as_said = networks_of(family, flat, source, replace(known, arch=own_arch))
        found = as_said if any(one.complete for one in as_said.values()) else found
    if family.framework == "detectron2" and any(
        "blocks.0.attn.qkv.weight" in one.state and "cls_token" not in one.state for one in found.values()
    ):
        raise InputError(
            f"{source} is a ViTDet backbone: it has no 'cls_token' and no final norm, so it is no whole ViT "
            "any more; convert the checkpoint that it was trained from"
        )
    name = pick(found, family, network, source)
    one = found[name]
    state, notes = plain_tensors(one.state, f"{source} as {one.layout.name}")
    dropped = dropped_keys(family, flat, found, name)
    if FOREIGN in dropped:
        shown = listed(dropped[FOREIGN], most=4, between=", ")
        notes.append(f"{len(dropped[FOREIGN])} tensors that belong to no backbone are left out: {shown}")
    methods, head_prefix = dict(family.method), dict(family.heads).get(name)
    checkpoint = Checkpoint(
        source,
        family.name,
        family.rule,
        name,
        methods.get(name) or methods.get("*") or "unknown",
        own_arch,
        preprocess=preprocess,
        state=state,
        layout=one.layout.name,
        body=one.body,
        head=_dino_head(flat, head_prefix) if head_prefix else None,
        dropped=dropped,
        counts=one.counts,
        notes=[*notes, *one.notes],
        assumed=assumed,
    )
    return checkpoint, one.identity, one.layout


def _dino_head(flat: Flat, prefix: str) -> dict[str, Tensor] | None:
    start = compiled(prefix + r"(?=mlp\.)").match
    return {key[hit.end() :]: value for key, value in flat.tensors.items() if (hit := start(key))} or None


def settle(
    checkpoint: Checkpoint,
    identity: Identity,
    family: Family,
    flat: Flat,
    layout: Layout,
    known: Known,
    hub: HubConfig | None,
) -> Checkpoint:
    """What shapes do not show: which of several networks with these tensors, how it is built, how images are fed to it.

    Raises InputError for what no timm network has, and where nothing tells which network it is.
    """
    facts = recorded(family, flat, layout, checkpoint, hub)
    arch, assumed = _among_twins(checkpoint, identity, family)
    heads = facts.heads
    if heads is None and checkpoint.arch and kind_of(arch) in ("vit", None):
        heads = vit_heads(checkpoint.arch)  # the file's own word is a name of timm's
    built, heads_assumed = _with_heads(arch, {**identity.options, **facts.options}, known.options, heads)
    assumed = checkpoint.assumed | facts.assumed | heads_assumed | assumed
    preprocess = checkpoint.preprocess
    if preprocess is None:
        shapes = {key: tuple(value.shape) for key, value in checkpoint.state.items()}
        preprocess = {"size": image_size(arch, built, shapes), **(facts.preprocess or IMAGENET)}
    else:
        assumed.pop("preprocess", None)
    return replace(
        checkpoint,
        arch=arch,
        kind=kind_of(arch),
        options=built,
        preprocess=preprocess,
        assumed=assumed,
        own=own_settings(flat),
    )


def _among_twins(checkpoint: Checkpoint, identity: Identity, family: Family) -> tuple[str, dict[str, str]]:
    """Which of the networks with these tensors, and what is assumed of that."""
    alike = identity.archs
    if any(checkpoint.arch in archs for archs in alike):
        return checkpoint.arch, {}
    arch, *others = (archs[0] for archs in alike)
    if not others:
        return arch, {}
    if kind_of(arch) is None:
        raise InputError(
            f"{checkpoint.source}: {', '.join([arch, *others])} have tensors of the same names and shapes, but compute "
            "differently (strides, padding, activation): say which it is with --arch"
        )
    if family.name != PLAIN:
        return arch, {}
    return arch, {"arch": f"{arch} assumed: {' and '.join(others)} have the same tensors"}


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

    Raises InputError naming missing, extra and mis-shaped tensors, and every one that is not finite.
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
    return checked_preprocess(preprocess, path), *_own_record(options, assumed, arch, path)


def _own_record(options: object, assumed: object, arch: str, path: Path | str) -> tuple[dict, dict]:
    """The build options, and what was assumed, by topic, that a file of this project records.

    Raises InputError for what no command of it writes.
    """
    if not isinstance(options, dict):
        raise InputError(f"{path}: it records options that this project never writes: {brief(options)}")
    try:
        check_options(arch, options)
    except InputError as error:
        raise InputError(f"{path}: it records options that this project never writes: {error}") from None
    if not isinstance(assumed, dict) or not all(
        isinstance(text, str) and text.isprintable() and len(text) < 500 for text in assumed.values()
    ):
        raise InputError(f"{path}: its record is damaged (assumed: {brief(assumed)})")
    return options, assumed


def _with_heads(arch: str, options: Mapping, asked: Mapping, heads: int | None) -> tuple[dict, dict[str, str]]:
    """Build options with the user's, for a ViT with its `heads` (of `recorded_heads`), and what is assumed of these."""
    usual, assumed = vit_heads(arch) and options.get("num_heads", vit_heads(arch)), {}
    if usual and heads and heads != usual:
        options = {**options, "num_heads": heads}
    if usual and heads is None and "num_heads" not in asked:
        other = "" if usual >= 12 else "; MoCo v3's and MAE-Lite's have 12"
        why = "64 numbers each" if "num_heads" in options else f"timm's {arch}"
        assumed["num_heads"] = f"heads are not recorded in the file: {usual} assumed ({why}){other}"
    return {**options, **asked}, assumed


def compare_shapes(actual: Mapping[str, tuple], expected: Mapping[str, tuple], what: str) -> None:
    """Raise InputError naming differences between two lists of names and shapes."""
    problems = mismatches(actual, expected)
    if problems:
        raise InputError(f"{what}: {len(problems)} tensors do not fit: {listed(problems)}")
