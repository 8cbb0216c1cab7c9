"""Every backbone in a file: where one may lie, what its tensors are called, whether it is complete.

What decides is whether one complete, known backbone can be found; every other tensor is accounted for.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from convert.families import ALWAYS_DROPPED, Family, compiled
from convert.identify import FOREIGN, Identity, identify
from convert.naming import LAYOUTS
from convert.naming.rules import COMPUTED, Layout, kind_of, match
from convert.safe_files import Flat
from convert.timm_index import index
from sslight.core.errors import InputError, listed, nearest

TIMM = Layout("timm", "timm", "", drops=(COMPUTED,))


@dataclass(frozen=True)
class Found:
    """A backbone in a file, or what is nearest to one.

    layout: the naming. body: its tensors in that naming; state: the same in timm's names; counts: keys per renaming
    rule; identity: the timm network. keys: where its tensors lie in the file (flat, unwrapped); beside: reason -> such
    keys of tensors that lie among them and are none of its own.
    """

    layout: Layout
    body: dict[str, Tensor]
    state: dict[str, Tensor]
    counts: dict[str, int]
    identity: Identity
    keys: frozenset[str]
    beside: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether it is one whole network of timm's."""
        return bool(self.identity.archs) and not self.identity.problems

    @property
    def exact(self) -> bool:
        """Whether it is a network of timm's by its name, of whatever image size, and no variant of one."""
        return self.complete and not self.identity.options.keys() - {"img_size"}

    @property
    def telling(self) -> tuple:
        """Orders what was found from the least to the most telling."""
        named = len(self.state) - 3 * len(self.identity.problems)
        return (self.complete, bool(self.identity.archs), len(self.layout.signs), self.exact, named)


@dataclass(frozen=True)
class Known:
    """What is known beforehand of a network: timm's name, or "", and build options."""

    arch: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


def examine(places: Mapping[str, str], tensors: Mapping[str, Tensor], where: str, known: Known) -> Found | None:
    """The backbone at a place of a file, in any naming; None if there is no sign of any.

    `places`: name in the network -> key of `tensors`. `where` says in messages whose keys these are. Raises InputError
    where a table finds two tensors for one place.
    """
    layouts = [layout for layout in LAYOUTS if layout.anchor in places and all(sign in places for sign in layout.signs)]
    kind = kind_of(known.arch) if known.arch else ""
    if kind:
        layouts = [layout for layout in layouts if layout.kind == kind] or [TIMM]
    elif kind is None:  # a network that is in no table of its own, but may be named as others are
        layouts.append(TIMM)
    found = [_read_as(layout, places, tensors, where, known) for layout in layouts]
    if not known.arch and not any(one.exact for one in found) and any(name in places for name in index().anchors):
        found.append(_read_as(TIMM, places, tensors, where, known))
    return max(found, key=lambda one: one.telling, default=None)


def _read_as(
    layout: Layout, places: Mapping[str, str], tensors: Mapping[str, Tensor], where: str, known: Known
) -> Found:
    body = {name: tensors[key] for name, key in places.items()}
    notes: list[str] = []
    if layout.prepare:
        body, notes = layout.prepare(body)
    drops = [(reason, compiled(pattern).fullmatch) for reason, pattern in layout.drops]
    beside: dict[str, list[str]] = {}
    for name in list(body):
        reason = next((reason for reason, fits in drops if fits(name)), None)
        if reason:
            beside.setdefault(reason, []).append(name)
            del body[name]
    renamed, rest = match(layout.table, body, to_timm=True, where=f"{where} as {layout.name}")
    state = {timm: body[name] for name, timm in renamed.keys.items()}
    if layout.finish:
        state, finished = layout.finish(state)
        notes = notes + finished
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    identity = identify(layout.kind, shapes, known.arch, known.options)
    identity = replace(identity, options={**layout.options, **identity.options})
    meant = tuple(alike for alike in identity.archs if compiled(layout.twin).search(alike[0]))
    identity = replace(identity, archs=meant or identity.archs)
    modules = {name.split(".", 1)[0] for name in renamed.keys}
    inside = [name for name in rest if name.split(".", 1)[0] in modules]
    if inside:  # parts of its modules that it has no place for: it is another network
        identity = replace(identity, problems=[*identity.problems, *(f"'{name}' is no part of it" for name in inside)])
    foreign = {timm: name for name, timm in renamed.keys.items()}
    for reason, names in {FOREIGN: [], **identity.beside}.items():
        beside.setdefault(reason, []).extend(foreign.get(name, name) for name in names)
    beside[FOREIGN] += [name for name in rest if name not in inside]
    outside = {name for names in identity.beside.values() for name in names}
    own = [name for name, timm in renamed.keys.items() if timm not in outside]
    strangers = {name for names in beside.values() for name in names}
    return Found(
        layout,
        {name: tensors[key] for name, key in places.items() if name not in strangers},
        {name: value for name, value in state.items() if name not in outside},
        dict(Counter(renamed.rules[name] for name in own)),
        identity,
        frozenset(key for name, key in places.items() if name not in strangers),
        {reason: [places.get(name, name) for name in names] for reason, names in beside.items() if names},
        notes,
    )


def networks_of(family: Family, flat: Flat, source: str, known: Known) -> dict[str, Found]:
    """The networks that the family names, in its order, and then whatever else looks like one, by its place."""
    found: dict[str, Found] = {}
    tensors = {key: value for key, value in flat.tensors.items() if not drop_reason(family, key)}
    used: set[str] = set()
    for name, pattern in family.networks:
        start = compiled(pattern + "(?=.)").match
        places = {key[hit.end() :]: key for key in tensors if (hit := start(key))}
        one = examine(places, tensors, source, known) if places else None
        if one and one.identity.archs:
            found[name] = one
            used |= one.keys if one.complete else set()
    for prefix in _prefixes(key for key in tensors if key not in used):
        places = {key[len(prefix) :]: key for key in tensors if key.startswith(prefix) and key not in used}
        one = examine(places, tensors, source, known)
        if one and one.identity.archs and (one.complete or not any(one.keys & other.keys for other in found.values())):
            found.setdefault(prefix.rstrip(".") or "model", one)
            used |= one.keys if one.complete else set()
    _name_own(found, family, tensors)
    return found


def _name_own(found: dict[str, Found], family: Family, tensors: Mapping[str, Tensor]) -> None:
    """A network of the family's that lies deeper is called by its name; one of no known naming counts as incomplete.

    Otherwise another network of the file would be read in its place.
    """
    for name, pattern in family.networks:
        start = compiled(pattern).match
        if name in found or start(""):  # that prefix is any place
            continue
        keys = {key for key in tensors if start(key)}
        inside = [place for place, one in found.items() if one.complete and one.keys <= keys]
        if len(inside) == 1:
            found[name] = found.pop(inside[0])
        elif keys and not inside:
            found[name] = Found(TIMM, {}, {}, {}, Identity(problems=["in no known naming"]), frozenset(keys))


def dropped_keys(family: Family, flat: Flat, found: Mapping[str, Found], name: str) -> dict[str, list[str]]:
    """Every key of the file that is not of the network `name`, as it stands in the file, by reason."""
    chosen = found[name]
    reasons = {key: reason for reason, keys in chosen.beside.items() for key in keys if reason != FOREIGN}
    others = {key: other for other, one in found.items() if other != name for key in one.keys}
    dropped: dict[str, list[str]] = {}
    for key in flat.values:
        if key in chosen.keys:
            continue
        if key not in flat.tensors:
            reason = "not a tensor (settings and counters)"
        else:
            reason = reasons.get(key) or drop_reason(family, key) or FOREIGN
            if key in others and reason == FOREIGN:
                reason = f"other network '{others[key]}'"
        dropped.setdefault(reason, []).append(flat.raw[key])
    return dropped


def _prefixes(keys: Iterable[str]) -> list[str]:
    """Where a backbone may begin: before any layout's anchor, the outermost first."""
    anchors = _anchors()
    prefixes: dict[str, None] = {}
    for key in keys:
        end = -1
        while True:
            if key[end + 1 :] in anchors:
                prefixes[key[: end + 1]] = None
            end = key.find(".", end + 1)
            if end < 0:
                break
    return sorted(prefixes, key=lambda prefix: prefix.count("."))


@functools.cache
def _anchors() -> frozenset[str]:
    return index().anchors | {layout.anchor for layout in LAYOUTS}


def drop_reason(family: Family, key: str) -> str | None:
    """Why a key belongs to no backbone, by the family's rules and those for all; None if it may."""
    return next(
        (reason for reason, pattern in (*family.drops, *ALWAYS_DROPPED) if compiled(pattern).fullmatch(key)), None
    )


def pick(found: Mapping[str, Found], family: Family, network: str | None, source: str) -> str:
    """The network to read: the one asked for, else the first of the family's own, else the only complete one.

    Raises InputError if that one is not complete, if there is none, or several of which no rule says which.
    """
    own = [name for name, _ in family.networks if name in found]
    whole = [name for name, one in found.items() if one.complete]
    if network and network not in found:
        raise InputError(
            f"{source} ({family.name}) has no network '{network}'{nearest(network, found)}; it has "
            f"{listed(found, between=', ') or 'none'}"
        )
    if not found:
        raise InputError(
            f"{source} ({family.name}): no backbone in it: its keys are in no naming that is known, nor timm's; "
            "if it is a network of timm's, name it with --arch"
        )
    names = [network] if network else own[:1] or _distinct({name: found[name] for name in whole})
    if len(names) > 1:
        raise InputError(
            f"{source} holds {len(names)} complete backbones: name one with --network: {listed(names, between=', ')}"
        )
    name = names[0] if names else max(found, key=lambda name: found[name].telling)
    if not found[name].complete:
        others = f"; complete in the file: --network {' or '.join(whole)}" if whole else ""
        raise InputError(f"{source} ({family.name}): {_incomplete(name, found[name])}{others}")
    return name


def _incomplete(name: str, found: Found) -> str:
    """Why a network is not complete."""
    if not found.identity.archs:
        return (
            f"the keys of its network '{name}' are in no naming that is known, nor timm's; "
            "if it is a network of timm's, name it with --arch"
        )
    problems, arch = found.identity.problems, found.identity.archs[0][0]
    what = f"{len(problems)} tensors do not fit: {listed(problems)}" if len(problems) > 1 else problems[0]
    return f"its network '{name}', named as {found.layout.name}, read as {arch}: {what}"


def _distinct(found: Mapping[str, Found]) -> list[str]:
    """Names of those that differ in any number: many trainers keep one network under two names."""
    names: list[str] = []
    for name, one in found.items():
        if not any(_equal(one, found[other]) for other in names):
            names.append(name)
    return names


def _equal(one: Found, other: Found) -> bool:
    return one.state.keys() == other.state.keys() and all(
        torch.equal(value, other.state[key]) for key, value in one.state.items()
    )
