"""Commands of the project as processes: started in a group of their own, killed at any instant, awaited."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def environment(**extra: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **extra}


def start(*arguments: object, log: Path, prefix: tuple[str, ...] = (), **extra: str) -> subprocess.Popen:
    """`python ARGUMENTS` in a process group of its own; stdout and stderr are appended to `log`."""
    with open(log, "a") as output:
        return subprocess.Popen([*prefix, sys.executable, *map(str, arguments)], cwd=ROOT, env=environment(**extra),
                                stdout=output, stderr=subprocess.STDOUT, start_new_session=True)


def kill_group(process: subprocess.Popen, number: int = signal.SIGKILL) -> None:
    """Send a signal to the process and everything that it started, as the end of a job or of a machine does."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


def wait_until(condition: Callable[[], object], seconds: float = 120, process: subprocess.Popen | None = None) -> bool:
    """Poll until the condition holds; False after `seconds`, or when the process ends first."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        if process is not None and process.poll() is not None:
            return bool(condition())
        time.sleep(0.02)
    return False
