"""A process that does not outlive the one that started it. Imports nothing heavy."""

from __future__ import annotations

import ctypes
import signal

PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PRCTL = getattr(ctypes.CDLL(None), "prctl", None)  # Linux's; looked up here because a forked child may load nothing


def end_with_parent() -> None:
    """Have this process told to stop (SIGTERM) when its parent dies, where the system can."""
    if _PRCTL:
        _PRCTL(PR_SET_PDEATHSIG, signal.SIGTERM)
