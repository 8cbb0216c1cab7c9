"""Parts by name: a registry for each kind of part, whose entries are imported when they are first used."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import TypeVar

from sslight.core.errors import InputError, nearest

P = TypeVar("P")


def load(where: str):
    """The object that `module:attribute` names, or the module alone."""
    name, _, attribute = where.partition(":")
    module = importlib.import_module(name)
    return getattr(module, attribute) if attribute else module


class Registry(Mapping[str, P]):
    """The parts of one kind: `registry[name]` imports and returns a part; names and texts need no import.

    entries: name -> (one line for help and documentation, where as in `load`). Raises InputError for an unknown name,
    naming the nearest.
    """

    def __init__(self, kind: str, entries: Mapping[str, tuple[str, str]]):
        self.kind, self.entries = kind, dict(entries)

    def __getitem__(self, name: str) -> P:
        if name not in self.entries:
            known = ", ".join(self.entries)
            raise InputError(f"unknown {self.kind} '{name}'{nearest(str(name), self.entries)}: use one of {known}")
        return load(self.entries[name][1])

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def text(self, name: str) -> str:
        """One line on a part."""
        return self.entries[name][0]
