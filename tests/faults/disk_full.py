"""The disk fills up under a run, and the run may be killed on top of it: one line says so, what was saved before is
intact, and with room again the run goes on to the end that it would have had."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from sslight.core.errors import EXIT_BAD_INPUT
from tests.faults.kinds import DETECTION, NAMES, Kind, difference, kinds
from tests.faults.processes import begin, kill_group, wait_until
from tests.faults.table import Row, Unavailable

TIMES = {
    "short": {"pretrain": (1, 0)},  # (the run meets the full disk, and is killed on it)
    "long": {name: (5, 5) if name in DETECTION else (10, 10) for name in NAMES},
}


def rows(size: str, place: Path) -> Iterator[Row]:
    for kind in kinds(place, tuple(TIMES[size]), epochs=8 if size == "long" else 3):
        with small_disk(place / kind.name, "2g" if kind.name in DETECTION else "64m") as disk:
            yield from filled(kind, place, disk, *TIMES[size][kind.name])


@contextlib.contextmanager
def small_disk(where: Path, size: str) -> Iterator[Path]:
    """A file system of its own. Raises Unavailable without the right to mount one."""
    where.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", where], capture_output=True, text=True
    )
    if made.returncode:
        raise Unavailable(f"mounting a small tmpfs needs root: {made.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", where], check=True)


def filled(kind: Kind, place: Path, disk: Path, met: int, kills: int) -> Iterator[Row]:
    """Chains of a full disk and a resume, each until its run ends by itself, until it met that often enough."""
    says = Row(f"{kind.name}: the disk fills up: one clear line, the last checkpoint intact")
    dies = Row(f"{kind.name}: SIGKILL while the disk is full: the last checkpoint intact")
    whole = place / f"{kind.name}-whole"
    assert begin(*kind.command(whole), log=place / f"{kind.name}-whole.txt").wait() == 0, "the undisturbed run failed"
    expected, draw, chains = kind.end(whole), random.Random(kind.name), 0
    while says.tried < met or dies.tried < kills:
        chains += 1
        out, log, code = disk / f"out{chains}", place / f"{kind.name}{chains}.txt", None
        while code != 0:
            row = says if says.tried < met else dies if dies.tried < kills else None
            longer = draw.uniform(0, 0.5) if row is dies else None
            code = meet(kind, out, log, disk / "filler", row, draw.uniform(0, 1), longer)
            if row is None and code != 0:
                break
        wrong = f"exit {code}: {log.read_text()[-700:]}" if code else difference(kind.end(out), expected)
        if wrong:
            says.failures.append(f"chain {chains}, with room again: {wrong}")
        shutil.rmtree(out, ignore_errors=True)
    says.note = f"{chains} resumed runs equal to the undisturbed one" * (not says.failures)
    yield says
    if kills:
        yield dies


def meet(
    kind: Kind, out: Path, log: Path, filler: Path, row: Row | None, wait: float, longer: float | None
) -> int | None:
    """Start or resume a run, and fill the disk under it unless `row` is None; returns its exit code, None if killed.

    It is killed `longer` after the disk is full, or must leave by itself where that is None.
    """
    already = log.read_text().count(kind.working) if log.exists() else 0
    process = begin(*kind.command(out), log=log)
    if row is None:
        return process.wait()
    wait_until(lambda: log.exists() and log.read_text().count(kind.working) > already, process=process)
    time.sleep(wait)
    fill(filler)
    killed = not wait_until(lambda: process.poll() is not None, seconds=60 if longer is None else longer)
    if killed:
        kill_group(process)
    code, last = process.wait(), log.read_text().splitlines()[-1]
    filler.unlink()
    if longer is not None:
        if killed:
            row.attempt(not kind.kept(out), kind.kept(out))
    elif code != 0:  # else it had nothing left to write
        clear = code == EXIT_BAD_INPUT and last.startswith("error: cannot write") and "No space left" in last
        row.attempt(clear and not kind.kept(out), f"exit {code}: {kind.kept(out)} {log.read_text()[-700:]}")
    return None if killed else code


def fill(path: Path) -> None:
    """Take all that is left of the file system."""
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        for block in (2**20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(os.urandom(block) if block == 1 else bytes(block))
