"""Errors that a command answers in one line, and its exit codes. Imports nothing heavy."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable

EXIT_DONE, EXIT_BUG, EXIT_BAD_INPUT, EXIT_PARTS_FAILED, EXIT_STOPPED = 0, 1, 2, 3, 75
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
MAKE_ROOM = "what was saved before is intact: make room and start the same command again to go on"


class InputError(ValueError):
    """Bad input or configuration. The message is one line: what is wrong, where, and what to do about it."""


class Stopped(Exception):
    """The run was asked to stop by a signal and has saved its state; the same command continues it."""


class Interrupted(Stopped):
    """The same, where nothing had to be saved. Raised in one process, without asking the others of its group."""


def nearest(name: str, known: Iterable[str], where: str = "") -> str:
    """`" (did you mean 'x'?)"` for the closest known name, behind `where`, or an empty string."""
    closest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{os.path.join(where, closest[0])}'?)" if closest else ""


def listed(items: Iterable[str], most: int = 8, between: str = "; ") -> str:
    """The first items, and how many more there are: a message is read, not scrolled."""
    items = list(items)
    more = f"{between}and {len(items) - most} more" if len(items) > most else ""
    return between.join(items[:most]) + more


def nearest_file(path: str | os.PathLike) -> str:
    """`nearest` for a file or folder that is not there, among what lies beside its place."""
    folder, name = os.path.split(os.path.normpath(path))
    return nearest(name, os.listdir(folder or "."), folder) if os.path.isdir(folder or ".") else ""


def nearest_key(key: str, known: Iterable[str]) -> str:
    """`nearest` for a dotted key: its last part counts most, for people forget in which section a key stands."""
    if "=" in key:
        return ": write KEY VALUE, with a space between them"
    alike = difflib.SequenceMatcher
    scores = {
        name: alike(None, key.rpartition(".")[2], name.rpartition(".")[2]).ratio()
        + 0.5 * alike(None, key, name).ratio()
        for name in known
    }
    best = max(scores, key=scores.__getitem__, default="")
    return f" (did you mean '{best}'?)" if scores.get(best, 0) > 0.8 else ""
