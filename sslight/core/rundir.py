"""A run directory belongs to one recipe and one process at a time; signals end a run after it has saved."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import socket
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from fvcore.common.config import CfgNode

from sslight.core import distributed
from sslight.core.config import dump, flatten, read_yaml, to_dict
from sslight.core.errors import InputError
from sslight.core.files import write_atomically
from sslight.core.processes import handle_stop_signals, second_ends, stop_at_once


@contextlib.contextmanager
def open_run(cfg: CfgNode, free: Collection[str] = (), consent: str = "") -> Iterator[Path]:
    """Create or re-enter `cfg.OUTPUT_DIR`, write `config.yaml` there and hold the directory until the end.

    free: dotted keys, or "SECTION." prefixes, which may differ from the `config.yaml` that is already there because
    they do not decide the result, or where nothing has been saved yet. consent: dotted key of the flag that lets a run
    go on under another recipe.
    Raises InputError if another recipe's run or another process owns the directory.
    """
    if not cfg.OUTPUT_DIR:
        raise InputError("OUTPUT_DIR is not set: add OUTPUT_DIR PATH to say where the run is kept")
    out_dir = Path(cfg.OUTPUT_DIR)
    if out_dir.exists() and not out_dir.is_dir():
        raise InputError(f"OUTPUT_DIR {out_dir} is a file: name a directory")
    with contextlib.ExitStack() as stack:
        if distributed.is_main():
            try:
                out_dir.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_lock(out_dir))
                check_same_run(out_dir, cfg, free, consent)
                remove_leftovers(out_dir)
                write_atomically(out_dir / "config.yaml", lambda temporary: temporary.write_text(dump(cfg)))
            except OSError as error:
                raise InputError(f"cannot write to OUTPUT_DIR {out_dir}: {error.strerror}") from None
        yield out_dir


def check_same_run(out_dir: Path, cfg: CfgNode, free: Collection[str] = (), consent: str = "") -> None:
    """Raise InputError if the directory holds a run of another recipe (see `open_run`)."""
    try:
        old = read_yaml(out_dir / "config.yaml") if (out_dir / "config.yaml").exists() else None
    except InputError as error:
        raise InputError(f"{error}: remove it or choose another OUTPUT_DIR") from None
    if old is None:
        there = out_dir.iterdir() if out_dir.exists() else ()
        foreign = [
            item.name
            for item in there
            if item.suffix in (".pth", ".safetensors", ".json") or item.name == "checkpoints"
        ]
        if foreign:
            raise InputError(
                f"OUTPUT_DIR {out_dir} holds files of another run ({', '.join(sorted(foreign)[:3])}) "
                "and no config.yaml: choose an empty directory"
            )
    elif not isinstance(old, Mapping):
        raise InputError(f"{out_dir / 'config.yaml'} holds no settings: remove it or choose another OUTPUT_DIR")
    elif _saved(out_dir):
        check_same_recipe(f"OUTPUT_DIR {out_dir} belongs to a run", old, cfg, free, consent)


def _saved(out_dir: Path) -> bool:
    """Whether the directory holds more than the start of a run: a checkpoint, or a result."""
    return (out_dir / "result.json").exists() or any(
        next(out_dir.glob(f"{folder}*.pth"), None) for folder in ("", "checkpoints/", "seed_*/")
    )


def check_same_recipe(what: str, old: Mapping, cfg: CfgNode, free: Collection[str], consent: str = "") -> None:
    """Raise InputError naming the settings that differ from `old`, those of `what`; with consent, only warn of them."""
    before, now = deciding(old, free), deciding(to_dict(cfg), free)
    changed = [
        key for key in sorted(before.keys() | now.keys()) if before.get(key, "") != now.get(key, "")
    ]  # a key that came later, left empty, changes nothing
    if not changed:
        return
    named = "; ".join(f"{key} {before.get(key)!r} -> {now.get(key)!r}" for key in changed)
    text = f"{what} with another recipe ({named})"
    if not consent:
        raise InputError(f"{text}: choose another directory, or start again with the old values")
    if not dict(flatten(to_dict(cfg)))[consent]:
        raise InputError(
            f"{text}: start again with the old values, choose another directory, or go on all the same "
            f"with {consent} True"
        )
    logging.getLogger(__name__).warning("%s; going on, as %s says", text, consent)


def deciding(settings: Mapping, free: Collection[str]) -> dict[str, object]:
    """Nested settings as {dotted key: value}, but the keys `free` (or of "SECTION."), which do not decide a result."""
    return {
        key: value
        for key, value in flatten(settings)
        if not any(key == name or (name.endswith(".") and key.startswith(name)) for name in free)
    }


def in_use(out_dir: Path) -> str:
    """Who holds the directory (see `open_run`), or an empty string. Not for the process that holds it itself."""
    if not (out_dir / ".lock").exists():
        return ""
    with open(out_dir / ".lock", "a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return ""
        except (BlockingIOError, PermissionError):
            file.seek(0)
            return file.read().strip() or "another run"


def remove_leftovers(out_dir: Path) -> None:
    """Remove what killed runs had half written: nobody else writes here while this run holds the directory."""
    for folder in ("", "checkpoints/", "seed_*/"):
        for temporary in out_dir.glob(f"{folder}.*.tmp"):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _lock(out_dir: Path) -> Iterator[None]:
    """Hold `out_dir/.lock`. The system releases it when the process ends, however it ends.

    A record lock, because loader workers that outlive a killed parent for some seconds would keep an inherited flock.
    """
    with open(out_dir / ".lock", "a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise InputError(
                f"OUTPUT_DIR {out_dir} is in use by {file.read().strip() or 'another run'}: "
                "wait for it or choose another directory"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


class StopSignal:
    """Notes SIGTERM, SIGUSR1 (what clusters send before they kill) and Ctrl-C instead of dying from them.

    Use as a context around work that must save first; everywhere else `run_command` ends a command at once.
    `requested()` agrees over all ranks, so every rank must call it at the same point. `immediate`: there is nothing to
    save for now, e.g. while measuring after saving. Several processes wait even then, as they can only leave together.
    """

    def __init__(self, immediate: bool = False):
        self.immediate = immediate

    def __enter__(self) -> StopSignal:
        self.received = 0
        self.previous = handle_stop_signals(self._note)
        return self

    def _note(self, number: int, frame: object) -> None:
        self.received = number
        second_ends(number)
        self._leave_if_alone()

    def _leave_if_alone(self) -> None:
        if self.received and self.immediate and distributed.world_size() == 1:
            stop_at_once(self.received)

    def __exit__(self, *exc: object) -> None:
        for number, handler in self.previous.items():
            if signal.getsignal(number) is not signal.SIG_DFL:  # where a second Ctrl-C ends the process, it stays so
                signal.signal(number, handler)

    def requested(self) -> bool:
        return distributed.any_rank(bool(self.received))

    @contextlib.contextmanager
    def set(self, immediate: bool) -> Iterator[None]:
        """Another `immediate` for a while; a signal that came before counts, too."""
        before, self.immediate = self.immediate, immediate
        try:
            self._leave_if_alone()
            yield
        finally:
            self.immediate = before
