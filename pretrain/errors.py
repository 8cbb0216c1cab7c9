"""How a command ends: exit codes and the one-line errors behind them. Imports nothing heavy, so `--help` stays fast."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable

EXIT_DONE, EXIT_BUG, EXIT_BAD_INPUT, EXIT_PARTS_FAILED, EXIT_STOPPED = 0, 1, 2, 3, 75


class InputError(ValueError):
    """Bad input or configuration. The message is one line: what is wrong, where, and what to do about it."""


class Stopped(Exception):
    """The run was asked to stop by a signal and has saved its state; the same command continues it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the closest known name, or an empty string."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{found[0]}'?)" if found else ""


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command's `main` and leave the process with the project's exit codes.

    0 done, 2 bad input (one line on stderr), 75 stopped after saving; anything unforeseen keeps its traceback: 1.
    """
    try:
        code = main() or EXIT_DONE
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = EXIT_BAD_INPUT
    except Stopped as stop:
        print(f"stopped: {stop}", file=sys.stderr)
        code = EXIT_STOPPED
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
