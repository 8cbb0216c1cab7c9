"""Commands of the project as processes: started in a group of their own, killed at any instant, awaited.

`start` starts Python as a user does; `begin` forks from a process that has imported everything, which costs a second
less of each. From there on both are the same command with the same files, locks, workers and signals.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_SERVER = multiprocessing.get_context("forkserver")


def environment(**extra: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **extra}


def start(*arguments: object, log: Path, prefix: tuple[str, ...] = (), **extra: str) -> subprocess.Popen:
    """`python ARGUMENTS` in a process group of its own; stdout and stderr are appended to `log`."""
    with open(log, "a") as output:
        return subprocess.Popen(
            [*prefix, sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env=environment(**extra),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


class Begun:
    """A forked command, with the methods of `subprocess.Popen` that are needed here."""

    def __init__(self, words: list[str], log: Path):
        self.process = _SERVER.Process(target=_command, args=(words, str(log)))
        self.process.start()
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int:
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def begin(*arguments: object, log: Path) -> Begun:
    """The command that `start` would start, in a process that need not import torch first."""
    words = list(map(str, arguments))
    words = words[2:] if words[1] == "sslight" else words[1:]  # behind -m
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a thread pool would not survive the fork
    _SERVER.set_forkserver_preload(["tests.faults.preloaded"])
    return Begun(words, log)


def _command(words: list[str], log: str) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # of loader workers; it would be inherited from `begin`
    with open(log, "a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(ROOT)
    from sslight.cli import dispatch
    from sslight.core.processes import run_command

    run_command(lambda: dispatch(words))


def kill_group(process: subprocess.Popen | Begun, number: int = signal.SIGKILL) -> None:
    """Send a signal to the process and everything that it started, as the end of a job or of a machine does."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:  # its group is not there yet
            process.send_signal(number)


def wait_until(
    condition: Callable[[], object], seconds: float = 120, process: subprocess.Popen | Begun | None = None
) -> bool:
    """Poll until the condition holds; False after `seconds`, or when the process ends first."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        if process is not None and process.poll() is not None:
            return bool(condition())
        time.sleep(0.002)
    return False


def torchrun(
    *arguments: object,
    processes: int = 2,
    restarts: int = 0,
    options: Sequence[object] = (),
    log: Path,
    prefix: tuple[str, ...] = (),
    **extra: str,
) -> subprocess.Popen:
    """`torchrun ... ARGUMENTS` on one machine, unless `options` say otherwise."""
    return start(
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        processes,
        "--max-restarts",
        restarts,
        *(options or ["--standalone"]),
        *arguments,
        log=log,
        prefix=prefix,
        **extra,
    )


def kill_torchrun(agent: subprocess.Popen) -> None:
    """Kill torchrun and its workers, which are process groups of their own, and wait until all are gone."""
    pids = workers(agent).values()
    for pid in (agent.pid, *pids):
        os.kill(pid, signal.SIGKILL)
    agent.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def workers(agent: subprocess.Popen) -> dict[int, int]:
    """Process ids of a torchrun's living workers by rank."""
    found = {}
    for task in Path(f"/proc/{agent.pid}/task").glob("*/children"):
        for pid in map(int, task.read_text().split()):
            try:
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            found |= {int(entry[5:]): pid for entry in variables if entry.startswith(b"RANK=")}
    return found
