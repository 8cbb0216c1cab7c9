"""Files that appear whole or not at all. Imports nothing heavy, for commands that only write a page."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from sslight.core.errors import MAKE_ROOM, NO_ROOM, InputError

_UMASK = os.umask(0o022)
os.umask(_UMASK)


def write_atomically(path: Path | str, write: Callable[[Path], object]) -> None:
    """Call `write(temporary)`, flush to the disk and rename to `path`: readers see the old file or the new one.

    Raises InputError where there is no room; the old file is then still there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            write(temporary)
        except Exception:
            reason = _no_room(temporary)
            if not reason:
                raise
            raise InputError(f"cannot write {path}: {reason}; {MAKE_ROOM}") from None
        temporary.chmod(0o666 & ~_UMASK)  # safetensors writes files that only their owner reads
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _no_room(path: Path) -> str:
    """What the system says to one more megabyte: torch and safetensors hide a full disk behind errors of their own."""
    try:
        with open(path, "ab") as file:
            file.write(bytes(2**20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or "" if error.errno in NO_ROOM else ""
    return ""


def write_text(path: Path | str, text: str) -> None:
    """Write `text` in UTF-8, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path | str, data: object) -> None:
    """Write `data` as indented JSON, atomically."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")
