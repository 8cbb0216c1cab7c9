"""Killed anywhere: runs of every kind die by SIGKILL at random instants, in start-up, steps, writes, epoch ends and the
export, are started again, and end as if nothing had happened."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.kinds import NAMES, Kind, difference, kinds
from tests.faults.processes import Begun, begin, kill_group, start, wait_until
from tests.faults.table import Row

KILLS = {"short": {"pretrain": 3, "linear": 1}, "long": dict.fromkeys(NAMES, 50)}
START_UP = 0.15  # of the kills fall anywhere in the first seconds of Python
IN_WRITE = 0.25  # of the kills wait for a checkpoint that is being written


def rows(size: str, place: Path) -> Iterator[Row]:
    for kind in kinds(place, tuple(KILLS[size]), epochs=8 if size == "long" else 3):
        yield killed(kind, place / kind.name, KILLS[size][kind.name])


def killed(kind: Kind, place: Path, kills: int) -> Row:
    """Chains of kill and resume, each until its run ends by itself, until `kills` were made."""
    place.mkdir()
    row = Row(f"{kind.name}: SIGKILL at a random instant, then resumed")
    draw = random.Random(kind.name)
    whole = place / "whole"
    work = uninterrupted(kind, whole, place / "whole.txt")
    expected = kind.end(whole)
    writes = chains = 0
    while row.tried < kills:
        chains += 1
        out, log = place / f"chain{chains}", place / f"chain{chains}.txt"
        while True:
            died = in_write = False
            cold = row.tried < kills and draw.random() < START_UP
            process = (start if cold else begin)(*kind.command(out), log=log)
            if cold:
                time.sleep(draw.uniform(0, 6))  # Python imports, then opens what the run needs
                died, in_write = kill(process, out)
            elif row.tried < kills:
                wait_for_instant(process, kind, out, log, work, draw)
                died, in_write = kill(process, out)
            if not died:
                code = process.wait()
                break
            writes += in_write
            row.attempt(*verdict(kind, out))
        wrong = f"exit {code}: {log.read_text()[-500:]}" if code else difference(kind.end(out), expected)
        if wrong:
            row.failures.append(f"chain {chains}, once resumed to its end, differs: {wrong}")
        if leftovers := list(out.rglob("*.tmp")):
            row.failures.append(f"chain {chains} leaves {leftovers[:3]}")
    row.note = f"{writes} in a write; {chains} resumed runs equal to the uninterrupted one"
    return row


def uninterrupted(kind: Kind, out: Path, log: Path) -> float:
    """Run to the end; returns the seconds from its first step to its last."""
    process = begin(*kind.command(out), log=log)
    wait_until(lambda: log.exists() and kind.working in log.read_text(), process=process)
    working = time.monotonic()
    assert process.wait() == 0, log.read_text()[-2000:]
    return time.monotonic() - working


def wait_for_instant(process: Begun, kind: Kind, out: Path, log: Path, work: float, draw: random.Random) -> None:
    """Until something is being written, or any time from the first step on."""
    already = log.read_text().count(kind.working) if log.exists() else 0
    wait_until(lambda: log.exists() and log.read_text().count(kind.working) > already, process=process)
    if draw.random() < IN_WRITE:
        wait_until(lambda: half_written(out), process=process)
    else:
        time.sleep(draw.uniform(0, work / 3))


def kill(process: Begun | subprocess.Popen, out: Path) -> tuple[bool, bool]:
    """Kill the whole process group; returns whether it still lived, and whether a file was half written."""
    alive = process.poll() is None
    kill_group(process)
    process.wait()
    return alive, alive and half_written(out)


def half_written(out: Path) -> bool:
    return any(next(out.glob(f"{folder}.*.tmp"), None) for folder in ("", "checkpoints/", "seed_*/"))


def verdict(kind: Kind, out: Path) -> tuple[bool, str]:
    try:
        lost = kind.kept(out)
    except Exception as error:
        lost = f"{type(error).__name__}: {error}"
    return not lost, lost
