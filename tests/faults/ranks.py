"""One of several processes dies, hangs or lags: the others stop with a clear message in time, nothing is half written,
`torchrun --max-restarts` goes on from the last checkpoint; and a run goes on with another number of processes."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.faults.kinds import difference, metrics, pretrain_end, pretrain_kept, trained_end, trained_kept
from tests.faults.processes import begin, kill_torchrun, torchrun, wait_until, workers
from tests.faults.table import Row
from tests.faults.tiny_runs import linear, pretrain, write_images

TIMEOUT = 20  # seconds of SSLIGHT_TIMEOUT where a rank hangs or lags
LONG = {"pretrain": [2, 2, 2, 4], "linear": [2, 2]}  # numbers of processes of the trials
SHORT = {"pretrain": [2]}
Make = Callable[..., Sequence[object]]


def rows(size: str, place: Path) -> Iterator[Row]:
    images = write_images(place / "images")
    trials = LONG if size == "long" else SHORT
    dies = Row("a rank gets SIGKILL: the others say so, torchrun restarts, the end is the same")
    hangs = Row(f"a rank hangs (SIGSTOP): the others leave within SSLIGHT_TIMEOUT {TIMEOUT} s + 5")
    lags = Row("a rank lags by half the timeout: the run goes on undisturbed")
    slowest = 0.0
    for name, counts in trials.items():
        for turn, processes in enumerate(counts):

            def make(out: Path, name=name, processes=processes, **more) -> Sequence[object]:
                command = pretrain if name == "pretrain" else linear
                return command(
                    images,
                    out,
                    **{
                        "TRAIN.BATCH_SIZE": 16 // processes,
                        "TRAIN.SAVE_SECONDS": 0,
                        "SOLVER.TOTAL_EPOCHS": 4,
                        "TRAIN.LOG_PERIOD": 1,
                        **more,
                    },
                )

            here = place / f"{name}{turn}"
            here.mkdir()
            read = (pretrain_end, pretrain_kept) if name == "pretrain" else (trained_end, trained_kept)
            expected = finish(make, here / "whole", processes, read[0]) if size == "long" else None
            same = difference if processes == 2 else close
            dies.attempt(*outcome(rank_dies(make, here / "dies", processes), read, here / "dies", expected, same))
            if size == "long":
                failure, seconds = rank_hangs(make, here / "hangs", processes)
                slowest = max(slowest, seconds)
                hangs.attempt(*outcome(failure, read, here / "hangs", expected, same))
                lags.attempt(*outcome(rank_lags(make, here / "lags", processes), read, here / "lags", expected, same))
    yield dies
    if size == "long":
        hangs.note = f"at most {slowest:.1f} s"
        yield hangs
        yield lags
        yield other_number_of_processes(images, place / "other")


def finish(make: Make, out: Path, processes: int, end: Callable[[Path], dict]) -> dict:
    log = out.with_suffix(".txt")
    assert torchrun(*make(out), processes=processes, log=log).wait() == 0, log.read_text()[-3000:]
    return end(out)


def close(found: dict, expected: dict) -> str:
    """Where pre-training on more than two processes ends elsewhere; its weights to 1e-5.

    DDP regroups its buckets after the first step of every start, and with them the order in which more than two
    addends are summed.
    """
    for key, value in expected["model"].items():
        if (found["model"][key].double() - value.double()).abs().max() > 1e-5:
            return f"model.{key}"
    return difference(
        {key: found[key] for key in ("step", "epoch", "kept")},
        {key: expected[key] for key in ("step", "epoch", "kept")},
    )


def outcome(
    failure: str, read: tuple, out: Path, expected: dict | None, same: Callable[[dict, dict], str] = difference
) -> tuple[bool, str]:
    """Whether a trial kept its promises: its own failure, else what is unreadable, else where its end differs."""
    end, kept = read
    failure = failure or kept(out) or (same(end(out), expected) if expected else "")
    leftovers = [str(path) for path in out.rglob("*.tmp")]
    failure = failure or f"leaves {leftovers}" * bool(leftovers)
    return not failure, failure


def at_work(make: Make, out: Path, processes: int, **extra: str):
    """Start with restarts allowed; returns the agent, its log and its workers once steps are being made."""
    log = out.with_suffix(".txt")
    agent = torchrun(*make(out), processes=processes, restarts=3, log=log, **extra)
    if not wait_until(lambda: list(out.rglob("last.pth")) + list(out.rglob("state.pth")), process=agent):
        raise RuntimeError(log.read_text()[-2000:])
    return agent, log, workers(agent)


def rank_dies(make: Make, out: Path, processes: int) -> str:
    agent, log, ranks = at_work(make, out, processes)
    os.kill(ranks[processes - 1], signal.SIGKILL)
    code = agent.wait()
    text = log.read_text()
    if code:
        return f"exit {code}: {text[-600:]}"
    if not re.search(r"error: rank 0 of \d+, on .* lost contact with the others", text):
        return f"rank 0 does not say why it left: {text[-600:]}"
    return "" if not re.search(r"^Traceback", text, re.MULTILINE) else f"a traceback: {text[-1500:]}"


def rank_hangs(make: Make, out: Path, processes: int) -> tuple[str, float]:
    agent, log, ranks = at_work(make, out, processes, SSLIGHT_TIMEOUT=str(TIMEOUT))
    stopped = time.monotonic()
    os.kill(ranks[processes - 1], signal.SIGSTOP)
    said = wait_until(lambda: "lost contact with the others" in log.read_text(), process=agent, seconds=60)
    seconds = time.monotonic() - stopped
    # torchrun gives the frozen process 30 s before it kills it; nobody needs to wait for that here
    os.kill(ranks[processes - 1], signal.SIGKILL)
    code, text = agent.wait(), log.read_text()
    if not said or seconds > TIMEOUT + 5:
        return f"silent for {seconds:.1f} s: {text[-600:]}", seconds
    return (f"exit {code}: {text[-600:]}" if code else ""), seconds


def rank_lags(make: Make, out: Path, processes: int) -> str:
    agent, log, ranks = at_work(make, out, processes, SSLIGHT_TIMEOUT=str(TIMEOUT))
    for _ in range(2):
        os.kill(ranks[processes - 1], signal.SIGSTOP)
        time.sleep(TIMEOUT / 2)
        os.kill(ranks[processes - 1], signal.SIGCONT)
        time.sleep(0.5)
    code, text = agent.wait(), log.read_text()
    return f"exit {code}: {text[-600:]}" if code or "lost contact" in text else ""


def other_number_of_processes(images: Path, place: Path) -> Row:
    """Killed on two processes, resumed on one: the same global batch gives the same schedule, another is refused."""
    row = Row("resumed on another number of processes: the same schedule and global batch, or refused by name")
    place.mkdir()
    for name, command in (("pretrain", pretrain), ("linear", linear)):

        def make(out: Path, batch: int, command=command) -> Sequence[object]:
            return command(
                images,
                out,
                **{"TRAIN.BATCH_SIZE": batch, "TRAIN.SAVE_SECONDS": 0, "TRAIN.LOG_PERIOD": 1, "SOLVER.TOTAL_EPOCHS": 6},
            )

        whole, out, log = place / f"{name}-whole", place / name, place / f"{name}.txt"
        assert begin(*make(whole, 16), log=log).wait() == 0, log.read_text()[-2000:]
        agent = torchrun(*make(out, 8), log=log)
        wait_until(lambda: [*out.rglob("last.pth"), *out.rglob("state.pth")], process=agent)  # noqa: B023
        kill_torchrun(agent)
        code = begin(*make(out, 8), log=log).wait()
        named = re.search("global batch of 16, this start has 8|GLOBAL_BATCH 16 -> 8", log.read_text())
        row.attempt(code == 2 and bool(named), f"{name}: exit {code}: {log.read_text()[-300:]}")
        code = begin(*make(out, 16), log=log).wait()
        row.attempt(code == 0 and rates(out) == rates(whole), f"{name}: exit {code}, or another schedule")
    return row


def rates(out: Path) -> list[tuple[int, float]]:
    """(step, learning rate) of every step."""
    return [
        (line["step"], line["lr"])
        for path in sorted(out.rglob("metrics.jsonl"))
        for line in metrics(path.parent)
        if "lr" in line
    ]
