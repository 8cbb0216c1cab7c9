"""Evaluations as processes of this machine: one after the other, each logged, and told to save when we are stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pretrain.errors import STOP_SIGNALS
from pretrain.parent import end_with_parent

STOPS = (*STOP_SIGNALS, signal.SIGINT)


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
    """Runs commands while it is entered; SIGTERM, SIGUSR1 and Ctrl-C end the running one, which saves (`stopped`)."""

    def __enter__(self) -> Runner:
        self.stopped, self.process = False, None
        self.previous = {number: signal.signal(number, self._stop) for number in STOPS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: object) -> None:
        self.stopped = True
        if self.process:
            self.process.terminate()

    def run(self, words: Sequence[str], log: Path) -> int:
        """Run a command to its end; returns its exit code. What it prints goes to the file `log` and from there here.

        It is a session of its own: a terminal's Ctrl-C reaches it through us, as the signal that it saves on.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as written, open(log, "rb") as read:
            read.seek(0, os.SEEK_END)
            self.process = start(words, stdin=subprocess.DEVNULL, stdout=written, stderr=subprocess.STDOUT,
                                 start_new_session=True)
            if self.stopped:
                self.process.terminate()
            while self.process.poll() is None:
                time.sleep(0.1)
                _copy(read)
            _copy(read)
        code, self.process = self.process.returncode, None
        return code


def _copy(file) -> None:
    """What was added to the file, to standard output."""
    sys.stdout.write(file.read().decode(errors="replace"))
    sys.stdout.flush()
