"""The disk fills up under a run, and the run may be killed on top of it: one line says so, what was saved before is
intact, and with room again the run goes on to the end that it would have had."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from pretrain.errors import EXIT_BAD_INPUT
from tests.faults.kinds import Kind, difference, kinds
from tests.faults.processes import begin, kill_group, wait_until
from tests.faults.table import Row, Unavailable

TIMES = {"short": {"pretrain": (1, 0)},  # (the run meets the full disk, and is killed on it)
         "long": {"pretrain": (10, 10), "linear": (10, 10), "semisup": (10, 10), "coco": (5, 5)}}
SIZE = {"pretrain": "64m", "linear": "64m", "semisup": "64m", "coco": "600m"}


def rows(size: str, place: Path) -> Iterator[Row]:
    for kind in kinds(place, tuple(TIMES[size]), epochs=8 if size == "long" else 3):
        met, killed = TIMES[size][kind.name]
        with small_disk(place / kind.name, SIZE[kind.name]) as disk:
            yield from filled(kind, place, disk, met, killed)


@contextlib.contextmanager
def small_disk(where: Path, size: str) -> Iterator[Path]:
    """A file system of its own. Raises Unavailable without the right to mount one."""
    where.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", where], capture_output=True,
                          text=True)
    if made.returncode:
        raise Unavailable(f"mounting a small tmpfs needs root: {made.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", where], check=True)


def filled(kind: Kind, place: Path, disk: Path, met: int, kill: int) -> Iterator[Row]:
    says = Row(f"{kind.name}: the disk fills up: one clear line, the last checkpoint intact")
    dies = Row(f"{kind.name}: SIGKILL while the disk is full: the last checkpoint intact")
    whole, out, log = place / f"{kind.name}-whole", disk / "out", place / f"{kind.name}.txt"
    process = begin(*kind.command(whole), log=place / f"{kind.name}-whole.txt")
    assert process.wait() == 0, (place / f"{kind.name}-whole.txt").read_text()[-2000:]
    expected = kind.end(whole)
    draw, filler = random.Random(kind.name), disk / "filler"
    for turn in range(met + kill):
        already = log.read_text().count(kind.working) if log.exists() else 0
        process = begin(*kind.command(out), log=log)
        wait_until(lambda: log.exists() and log.read_text().count(kind.working) > already,  # noqa: B023
                   process=process)
        time.sleep(draw.uniform(0, 1.0))
        fill(filler)
        if turn < met:
            if not wait_until(lambda: process.poll() is not None, seconds=60):  # noqa: B023
                kill_group(process)
            code, last = process.wait(), log.read_text().splitlines()[-1]
            clear = code == EXIT_BAD_INPUT and last.startswith("error: cannot write") and "No space left" in last
            filler.unlink()
            if code == 0:  # it had nothing left to write
                says.note = "the run ended before"
            else:
                says.attempt(clear and not kind.kept(out), f"exit {code}: {kind.kept(out)} {log.read_text()[-700:]}")
        else:
            time.sleep(draw.uniform(0, 0.5))
            kill_group(process)
            process.wait()
            filler.unlink()
            dies.attempt(not kind.kept(out), kind.kept(out))
    code = begin(*kind.command(out), log=log).wait()
    wrong = f"exit {code}: {log.read_text()[-700:]}" if code else difference(kind.end(out), expected)
    if wrong:
        says.failures.append(f"with room again: {wrong}")
    says.note = "with room again it ends as the uninterrupted run" if not wrong else ""
    yield says
    if kill:
        yield dies


def fill(path: Path) -> None:
    """Take all that is left of the file system."""
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        for block in (2**20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(os.urandom(block) if block == 1 else bytes(block))
