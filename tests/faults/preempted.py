"""Asked to stop: SIGTERM, SIGUSR1, Ctrl-C, to the process alone and to all that it started, as clusters send them."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from sslight.core.errors import EXIT_STOPPED
from sslight.core.processes import STOP_SIGNALS
from tests.faults.kinds import NAMES, Kind, difference, kinds
from tests.faults.processes import begin, kill_group, start, torchrun, wait_until, workers
from tests.faults.table import Row
from tests.faults.tiny_runs import linear, pretrain, write_images

PROMISED = 30  # seconds
FORWARDED = ["--standalone", "--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"]


def rows(size: str, place: Path) -> Iterator[Row]:
    for kind in kinds(place, NAMES if size == "long" else ("linear",), epochs=8 if size == "long" else 3):
        yield alone(kind, place / kind.name, size == "long")
    if size == "long":
        (place / "group").mkdir()
        images = write_images(place / "group" / "images")
        yield together(images, place / "group")
        yield orphaned(images, place / "group")


def alone(kind: Kind, place: Path, all_ways: bool) -> Row:
    """One process: every signal, early and late, to it and to its whole group; resumed until it ends by itself."""
    row = Row(f"{kind.name}: a signal to stop, then resumed")
    place.mkdir()
    whole, out, log = place / "whole", place / "out", place / "out.txt"
    assert begin(*kind.command(whole), log=place / "whole.txt").wait() == 0, (place / "whole.txt").read_text()[-2000:]
    ways = [(number, to_all) for number in STOP_SIGNALS for to_all in (False, True)]
    waits = (None, 0.0, 0.7) if all_ways else (0.3,)  # seconds after work began; None: in start-up
    slowest = 0.0
    for number, to_all in ways if all_ways else ways[1::2]:
        for wait in waits:
            already = log.read_text().count(kind.working) if log.exists() else 0
            process = (start if wait is None else begin)(*kind.command(out), log=log)
            if wait is None:
                time.sleep(1.0)  # in the midst of importing torch
            else:
                wait_until(
                    lambda: log.exists() and log.read_text().count(kind.working) > already,  # noqa: B023
                    process=process,
                )
                time.sleep(wait)
            if process.poll() is not None:
                break  # it came to its end before
            asked = time.monotonic()
            kill_group(process, number) if to_all else process.send_signal(number)
            code = process.wait()
            slowest = max(slowest, time.monotonic() - asked)
            text = log.read_text()
            stopped = code == EXIT_STOPPED and text.splitlines()[-1].startswith("stopped: ")
            row.attempt(
                stopped and slowest < PROMISED and not kind.kept(out),
                f"{signal.Signals(number).name}, to all {to_all}, after {wait} s: exit {code}: {text[-700:]}",
            )
    code = begin(*kind.command(out), log=log).wait()
    wrong = f"exit {code}" if code else difference(kind.end(out), kind.end(whole))
    if wrong:
        row.failures.append(f"resumed to its end: {wrong}")
    row.note = f"at most {slowest:.1f} s; the end equals the uninterrupted run's"
    return row


def together(images: Path, place: Path) -> Row:
    """Under torchrun with restarts allowed: the signal to torchrun, or to one worker; all save, none is restarted."""
    row = Row("under torchrun --max-restarts 3: every rank saves, leaves with 75 and is not restarted")
    slowest = 0.0
    for name, command in (("pretrain", pretrain), ("linear", linear)):
        for turn, (to, number) in enumerate((to, number) for to in ("agent", "worker") for number in STOP_SIGNALS):
            out, log = place / f"{name}{turn}", place / f"{name}{turn}.txt"
            agent = torchrun(
                *command(images, out, **{"TRAIN.BATCH_SIZE": 8, "SOLVER.TOTAL_EPOCHS": 1000, "TRAIN.SAVE_SECONDS": 2}),
                restarts=3,
                log=log,
                options=FORWARDED,
            )
            wait_until(lambda: [*out.rglob("last.pth"), *out.rglob("state.pth")], process=agent)  # noqa: B023
            asked = time.monotonic()
            os.kill(agent.pid if to == "agent" else workers(agent)[1], number)
            code = agent.wait()
            slowest = max(slowest, time.monotonic() - asked)
            text = log.read_text()
            said = len(re.findall(r"^stopped: saved ", text, re.MULTILINE))
            wrong = (
                f"torchrun exit {code}" * (code == 0)
                or f"{said} of 2 ranks saved" * (said != 2)
                or "it was restarted" * ("continuing from" in text)
                or "too slow" * (slowest > PROMISED)
            )
            row.attempt(not wrong, f"{name}, {signal.Signals(number).name} to the {to}: {wrong}: {text[-1500:]}")
    row.note = f"at most {slowest:.1f} s"
    return row


def orphaned(images: Path, place: Path) -> Row:
    """torchrun dies of a signal that it does not know; what it started saves and leaves instead of training on."""
    row = Row("torchrun itself dies (SIGKILL, SIGUSR1): its processes save and leave")
    for number in (signal.SIGKILL, signal.SIGUSR1):
        out, log = place / f"orphans{number}", place / f"orphans{number}.txt"
        agent = torchrun(
            *pretrain(images, out, **{"TRAIN.BATCH_SIZE": 8, "SOLVER.TOTAL_EPOCHS": 1000, "TRAIN.SAVE_SECONDS": 2}),
            log=log,
        )
        wait_until(lambda: [*out.rglob("last.pth")], process=agent)  # noqa: B023
        ranks = workers(agent)
        os.kill(agent.pid, number)
        agent.wait()
        gone = wait_until(
            lambda: not any(Path(f"/proc/{pid}").exists() for pid in ranks.values()),  # noqa: B023
            seconds=PROMISED,
        )
        said = len(re.findall(r"^stopped: saved ", log.read_text(), re.MULTILINE))
        row.attempt(gone and said == 2, f"gone {gone}, {said} of 2 ranks saved: {log.read_text()[-1000:]}")
    return row
