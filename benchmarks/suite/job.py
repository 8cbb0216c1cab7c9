"""A command as a SLURM job that saves when it is told to stop, is requeued, and goes on. Imports nothing heavy.

SLURM sends SIGUSR2 (submitit's choice) some minutes before the time limit and, on clusters with
`preempt_send_user_signal`, at a preemption: submitit then calls `Job.checkpoint`, which tells the command to stop by
SIGTERM (which torchrun passes on to its workers, unlike the user signals, of which it dies) and waits until it has
saved; submitit has the job requeued. A SIGTERM from SLURM itself may announce a preemption, after which SLURM requeues
the job (`--requeue` allows it), or come from `scancel`: the command saves, and the job stays until SLURM ends it,
because one that ends by itself is not requeued. However a job was ended, its script starts the same command again,
which resumes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence

from benchmarks.suite.run import start
from sslight.core.errors import EXIT_DONE, EXIT_STOPPED

LINGER = 900  # seconds in which SLURM ends a job that it has sent SIGTERM: more than a partition's grace time


class Job:
    """A command as submitit's callable; `checkpoint` makes it one that is requeued."""

    def __init__(self, words: Sequence[str]):
        self.words, self.signalled = list(words), False
        self.process: subprocess.Popen | None = None

    def __call__(self) -> None:
        """Run the command to its end. Raises RuntimeError, which marks the job as failed, unless it ended well."""
        self.process = start(self.words)
        signal.signal(signal.SIGTERM, self._tell)
        code = self.process.wait()
        if code == EXIT_STOPPED or (code and self.signalled):
            time.sleep(LINGER)
        if code != EXIT_DONE:
            raise RuntimeError(f"exit code {code}: {' '.join(self.words)}")

    def _tell(self, number: int, frame: object) -> None:
        self.signalled = True
        assert self.process  # this handles signals from its start on
        self.process.terminate()

    def checkpoint(self):
        """Called in SIGUSR2's handler: let the command save, then start it afresh in the requeued job."""
        from submitit.helpers import DelayedSubmission

        if self.process and self.process.returncode is None:
            self.process.terminate()
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)  # `wait` is held by __call__
        return DelayedSubmission(Job(self.words))

    __submitit_checkpoint__ = checkpoint  # its name in submitit's documentation; 1.5 asks for the other
