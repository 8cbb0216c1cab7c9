"""Many attempts at something hostile, in a child process whose crash, hang, memory and traces outside are all seen.

An attempt is a numbered call of a task. The child is forked, so it starts in no time, and goes from number to number
until it dies; then another goes on behind the number that killed it. What Python does in it is watched by an audit
hook: a started program, an opened connection or a changed file outside the attempts' folder is a failure.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.table import Row

GB = 1e9
PATIENCE = 20  # times an attempt's CPU seconds: a machine may be busy, and what waits for nothing uses none
STARTS = {
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.forkpty",
    "os.spawn",
    "subprocess.Popen",
    "pty.spawn",
    "socket.connect",
}
ONE_PATH = {"os.mkdir", "os.remove", "os.rmdir", "os.chmod"}  # a path first, the descriptor of its start last
TWO_PATHS = {"os.rename", "os.link", "os.symlink"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass
class Outcomes:
    """`seen`: how often attempts ended well, by how; `failed`: (number, what happened) of the others.

    peak: the most memory that one attempt took beyond what its process held before, GB; slowest: the longest one, s of
    CPU.
    """

    seen: Counter = field(default_factory=Counter)
    failed: list[tuple[int, str]] = field(default_factory=list)
    peak: float = 0.0
    slowest: float = 0.0

    @property
    def tried(self) -> int:
        return self.seen.total() + len(self.failed)


def attempts(
    task: Callable[[int], str], numbers: Sequence[int], folder: Path, *, seconds: float = 20, gigabytes: float = 2
) -> Outcomes:
    """Call `task(number)` for all numbers in children that may write below `folder` only.

    The task returns in a word how it ended well, and raises whatever it likes where it did not. Dying, taking longer
    than `seconds` of CPU over one attempt, or more than `gigabytes` of memory, is a failure.
    """
    context, outcomes, left = multiprocessing.get_context("fork"), Outcomes(), list(numbers)
    while left:
        here, there = context.Pipe()
        child = context.Process(target=_work, args=(task, left, folder.resolve(), there, gigabytes), daemon=True)
        child.start()
        there.close()
        _listen(here, child, left, outcomes, seconds)
    return outcomes


def row_of(what: str, outcomes: Outcomes, name: Callable[[int], str]) -> Row:
    """The table's row of some outcomes; `name(number)` says what an attempt was."""
    ends = ", ".join(f"{count} {word}" for word, count in outcomes.seen.most_common())
    return Row(
        what,
        outcomes.tried,
        [f"{name(number)} ({number}): {text}" for number, text in outcomes.failed],
        f"{ends}; at most {outcomes.peak:.2f} GB and {outcomes.slowest:.1f} CPU s",
    )


def _listen(reports, child, left: list[int], outcomes: Outcomes, seconds: float) -> None:
    """Take the child's reports, each for the first number of `left`, until it ends or hangs."""
    hung = False
    while left and not hung:
        started, used = time.monotonic(), _cpu_seconds(child.pid)
        while not (hung or reports.poll(0.5)):
            hung = (_cpu_seconds(child.pid) - used > seconds) or (time.monotonic() - started > PATIENCE * seconds)
        try:
            report = (False, f"took more than {seconds:g} s", 0.0, seconds) if hung else reports.recv()
        except EOFError:
            child.join()
            report, hung = (False, f"killed its process (exit code {child.exitcode})", 0.0, 0.0), True
        well, text, peak, took = report
        outcomes.peak, outcomes.slowest = max(outcomes.peak, peak), max(outcomes.slowest, took)
        number = left.pop(0)
        if well:
            outcomes.seen[text] += 1
        else:
            outcomes.failed.append((number, text))
    child.kill()
    child.join()
    reports.close()


def _cpu_seconds(process: int) -> float:
    """Time of all cores that a process has had: what an attempt takes on a busy machine, too."""
    with open(f"/proc/{process}/stat") as fields:
        user, system = fields.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _work(task: Callable[[int], str], numbers: list[int], folder: Path, reports, gigabytes: float) -> None:
    """The child: every number's outcome into `reports`."""
    trespasses: list[str] = []
    _limit_memory(gigabytes)
    sys.addaudithook(lambda event, arguments: _watch(event, arguments, f"{folder}/", trespasses))
    sink = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # what commands say, and the libraries' own complaints
        os.dup2(sink, stream)
    for number in numbers:
        before, started = _resident(reset=True), time.process_time()
        trespasses.clear()
        try:
            well, text = True, task(number)
        except BaseException as error:  # noqa: BLE001  whatever escapes is the finding
            well, text = False, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if trespasses:
            well, text = False, f"trespassed: {trespasses[0]}"
        reports.send((well, text, (_resident() - before) / GB, time.process_time() - started))


def _watch(event: str, arguments: tuple, folder: str, trespasses: list[str]) -> None:
    """Note what the audit event `event` does outside `folder`."""
    if event in STARTS:
        trespasses.append(f"{event} {arguments!r:.200}")
    elif event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
        _judge(event, arguments[0], -1, folder, trespasses)
    elif event in ONE_PATH:
        _judge(event, arguments[0], arguments[-1], folder, trespasses)
    elif event in TWO_PATHS:
        _judge(event, arguments[1], -1, folder, trespasses)


def _judge(event: str, name: object, base: int, folder: str, trespasses: list[str]) -> None:
    if isinstance(name, int):  # an open file, judged when it was opened
        return
    start = os.readlink(f"/proc/self/fd/{base}") if base >= 0 else os.getcwd()
    place = os.path.normpath(os.path.join(start, os.fsdecode(name)))
    if not f"{place}/".startswith((folder, "/dev/", "/proc/")):
        trespasses.append(f"{event} {place}")


def _limit_memory(gigabytes: float) -> None:
    with open("/proc/self/statm") as sizes:
        now = int(sizes.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + int(gigabytes * GB), resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _resident(reset: bool = False) -> int:
    """Peak of resident memory since the last reset, bytes; a reset sets it to what is held now."""
    if reset:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
