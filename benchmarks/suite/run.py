"""Evaluations as processes of this machine: one after the other, each logged, and told to save when we are stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sslight.core.processes import STOP_SIGNALS, end_with_parent, second_ends


def start(words: Sequence[str], **options) -> subprocess.Popen:
    """A process that is told to stop (SIGTERM) also when this one dies, and that ignores SIGUSR2 with all its children.

    SIGUSR2 is what submitit asks SLURM for: it may reach every process of a job, and would end them unsaved.
    """
    return subprocess.Popen(words, env={**os.environ, "PYTHONUNBUFFERED": "1"}, preexec_fn=_in_child, **options)


def _in_child() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # which `run_command` keeps from what is forked
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    end_with_parent()


class Runner:
    """Runs commands while it is entered; SIGTERM, SIGUSR1 and Ctrl-C end the running one, which saves.

    signals: those that came; `forwarded` counts those that the command has got. A second Ctrl-C ends both at once.
    """

    def __enter__(self) -> Runner:
        self.signals: list[int] = []
        self.forwarded = 0
        self.process: subprocess.Popen | None = None
        self.previous = {number: signal.signal(number, self._stop) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: object) -> None:
        again = number == signal.SIGINT and number in self.signals
        self.signals.append(number)
        self._pass_on()
        if again:
            second_ends(number)
            os.kill(os.getpid(), number)

    def _pass_on(self) -> None:
        """Each signal to the command once: a Ctrl-C as that, any other as SIGTERM, for torchrun dies of SIGUSR1."""
        while self.process and self.forwarded < len(self.signals):
            self.forwarded += 1
            number = self.signals[self.forwarded - 1]
            self.process.send_signal(number if number == signal.SIGINT else signal.SIGTERM)

    def run(self, words: Sequence[str], log: Path) -> int:
        """Run a command to its end; returns its exit code. What it prints goes to `log` and from there here."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as written, open(log, "rb") as read:
            read.seek(0, os.SEEK_END)
            return self.run_here(words, lambda: _copy(read), stdout=written, stderr=subprocess.STDOUT)

    def run_here(self, words: Sequence[str], meanwhile: Callable[[], None] = lambda: None, **options) -> int:
        """Run a command to its end, calling `meanwhile` now and then; returns its exit code. It prints where we print.

        It is a session of its own: a terminal's Ctrl-C reaches it through us, once.
        """
        process = self.process = start(words, stdin=subprocess.DEVNULL, start_new_session=True, **options)
        self._pass_on()
        while process.poll() is None:
            time.sleep(0.1)
            meanwhile()
        meanwhile()
        self.process = None
        return process.returncode


def _copy(file) -> None:
    """What was added to the file, to standard output."""
    sys.stdout.write(file.read().decode(errors="replace"))
    sys.stdout.flush()
