"""Renaming as data: tables of anchored two-way patterns, applied to whole key sets or not at all.

A template such as `res{s+1}.{b}.conv{n}.norm.{norm}` is literal text with fields. `{norm}` is one entry of a batch
norm, `{wb}` is `weight` or `bias`, `{rest}` is anything; any other field is a number, `{s+1}` stands for the number
one above the rule's `s`, and `{s:1-6}` limits `s`. The same rule renames in both directions.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass

from pretrain.errors import InputError

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
    for field in _FIELD.finditer(template):
        name, offset, low, high = field.groups()
        pattern += re.escape(template[position:field.start()]) + f"(?P<{name}>{_TEXT_FIELDS.get(name, '[0-9]{1,4}')})"
        if name not in _TEXT_FIELDS:
            numbers[name] = (int(offset or 0), low and int(low), high and int(high))
        position = field.end()
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
        found = pattern.fullmatch(key)
        if not found:
            return None
        fields = found.groupdict()
        bounds = _compiled(target)[1]
        for name, (offset, *_) in numbers.items():
            if fields[name] != str(int(fields[name])):
                return None  # '01' is another key than '1'
            fields[name] = int(fields[name]) - offset
        for side in (numbers, bounds):
            for name, (_, low, high) in side.items():
                if fields[name] < (low or 0) or (high is not None and fields[name] > high):
                    return None
        return _FIELD.sub(lambda field: str(fields[field[1]] + int(field[2] or 0))
                          if field[1] not in _TEXT_FIELDS else fields[field[1]], target)


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
    renamed, counts, owner, problems = {}, {}, {}, []
    for key in keys:
        found = [(rule, name) for rule in table if (name := rule.rename(key, to_timm)) is not None]
        if len(found) != 1:
            rules = ", ".join(f"'{rule.foreign}'" for rule, _ in found)
            problems.append(f"'{key}' matches {'several rules: ' + rules if found else 'no rule'}")
            continue
        rule, name = found[0]
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
