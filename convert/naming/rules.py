"""Renaming as data: tables of anchored two-way patterns, applied to whole key sets or not at all.

A template such as `res{s+1}.{b}.conv{n}.norm.{norm}` is literal text with fields. `{norm}` is one entry of a batch
norm, `{wb}` is `weight` or `bias`, `{rest}` is anything; any other field is a number, `{s+1}` stands for the number
one above the rule's `s`, and `{s:1-6}` limits `s`. The same rule renames in both directions.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sslight.core.errors import InputError, listed

if TYPE_CHECKING:
    from torch import Tensor

    State = dict[str, Tensor]
    Step = Callable[[State], tuple[State, list[str]]]

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
    """What a table did: source key -> target key, and source key -> the rule that took it, in words."""

    keys: dict[str, str]
    rules: dict[str, str]

    @property
    def counts(self) -> dict[str, int]:
        """How many keys each rule took."""
        return dict(Counter(self.rules.values()))


def match(table: Iterable[Rule], keys: Iterable[str], *, to_timm: bool, where: str) -> tuple[Renamed, list[str]]:
    """Rename every key that a rule matches, filling each target key once; also the keys that no rule matches.

    Raises InputError for a key that several rules match and for a target filled twice: the table is wrong, or the file.
    `where` says in the message whose keys these are.
    """
    table = tuple(table)
    renamed: dict[str, str] = {}
    rules: dict[str, str] = {}
    owner: dict[str, str] = {}
    rest: list[str] = []
    problems: list[str] = []
    for key in keys:
        matches = [(rule, name) for rule in table if (name := rule.rename(key, to_timm)) is not None]
        if not matches:
            rest.append(key)
            continue
        rule, name = matches[0]
        if len(matches) > 1:
            problems.append(f"'{key}' matches several rules: " + ", ".join(f"'{rule.foreign}'" for rule, _ in matches))
        elif name in owner:
            problems.append(f"'{key}' and '{owner[name]}' both lead to '{name}'")
        else:
            owner[name] = key
            renamed[key] = name
            rules[key] = f"{rule.foreign} -> {rule.timm}" if to_timm else f"{rule.timm} -> {rule.foreign}"
    if problems:
        raise InputError(f"{where}: {listed(problems)}")
    return Renamed(renamed, rules), rest


def apply_table(table: Iterable[Rule], keys: Iterable[str], *, to_timm: bool, where: str) -> Renamed:
    """Rename every key by exactly one rule, filling each target key once.

    Raises InputError naming keys that no rule, or more than one rule, matches, and targets filled twice.
    """
    renamed, rest = match(table, keys, to_timm=to_timm, where=where)
    if rest:
        shown = listed(f"'{key}' matches no rule" for key in rest)
        raise InputError(f"{where}: {len(rest)} keys cannot be renamed: {shown}")
    return renamed


IDENTITY = (Rule("{rest}", "{rest}"),)
HEAD = "classifier or head on the backbone"
COMPUTED = ("computed from the window size", r".+\.(relative_position_index|relative_coords_table|attn_mask)")
CNN_HEAD = ((HEAD, r"(fc|head|classifier|last_linear)\..+"),)


@dataclass(frozen=True)
class Layout:
    """A naming of the tensors of one kind of network.

    name: for reports. kind: "resnet", "mobilenetv2", "vit", or "timm" for any network in timm's names.
    anchor: a key that every network of this naming has: wherever it ends a file's key, such a network may begin.
    signs: further keys that must be there.
    table: the rules. drops: (reason, pattern) of what the naming stores in the network itself and no backbone needs.
    prepare: from tensors in foreign names to such as the table knows, with notes: joined or renumbered.
    finish: from tensors in timm's names to those of timm's network, with notes.
    tells: from all tensors of the file and its name, for messages, build options that other numbers than shapes show,
        and what is assumed, by topic.
    options: build options that timm's network needs to compute what such a one does.
    twin: a pattern in the name of the network that is meant, where several of timm's have the same tensors.
    """

    name: str
    kind: str
    anchor: str
    table: tuple[Rule, ...] = IDENTITY
    drops: tuple[tuple[str, str], ...] = ()
    signs: tuple[str, ...] = ()
    prepare: Step | None = None
    finish: Step | None = None
    tells: Callable[[State, str], tuple[dict[str, Any], dict[str, str]]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    twin: str = ""
