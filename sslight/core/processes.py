"""How a process starts, is stopped by signals, and ends: exit codes, one-line errors. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import io
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from sslight.core.arguments import Parser
from sslight.core.compat import option_strings
from sslight.core.errors import (
    EXIT_BAD_INPUT,
    EXIT_BUG,
    EXIT_DONE,
    EXIT_STOPPED,
    MAKE_ROOM,
    NO_ROOM,
    InputError,
    Interrupted,
    Stopped,
)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # what clusters send before they kill, and Ctrl-C
# What helps a GPU whose memory is too small, by the key or option of a command that does it.
LESS_MEMORY = {
    "TRAIN.BATCH_SIZE": "lower TRAIN.BATCH_SIZE",
    "TRAIN.ACCUMULATE": "raise TRAIN.ACCUMULATE by as much to keep the global batch",
    "FEATURES.BATCH_SIZE": "lower FEATURES.BATCH_SIZE",
    "--batch-size": "lower --batch-size",
    "SOLVER.IMS_PER_BATCH": "lower SOLVER.IMS_PER_BATCH (with --scale-lr)",
    "--num-gpus": "raise --num-gpus",
    "TRAIN.AMP": "turn on TRAIN.AMP",
    "FEATURES.AMP": "turn on FEATURES.AMP",
}


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command's `main` and leave the process with the project's exit codes.

    0 done, 2 bad input, a full disk or too small a memory (one line on stderr), 75 stopped after saving; 1 a lost
    process group (one line, too), or anything unforeseen, with its traceback. A second Ctrl-C is 130, as shells count
    a death by SIGINT.
    """
    _keep_signals_from_workers()
    _answering.append(_COMMAND)
    for number in STOP_SIGNALS:
        signal.signal(number, stop_at_once)
    threading.excepthook = _thread_failed
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show is no reason to stop
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with _what_stopped_it():
            code = main() or EXIT_DONE
    except InputError as error:
        code = _say("error", error, EXIT_BAD_INPUT)
    except Stopped as stop:
        for number in (signal.SIGALRM, *STOP_SIGNALS):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGINT else signal.SIG_IGN)
        code = _say("stopped", stop, EXIT_STOPPED)
        if not isinstance(stop, Interrupted):
            _end_restarts(os.environ)
    except (OSError, RuntimeError) as error:
        line = _limit(error)
        if line:
            code = _say("error", line, EXIT_BAD_INPUT)
        elif _lost_contact(error):
            code = _say(
                "error",
                f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}, on {socket.gethostname()}, "
                f"has lost contact with the others ({str(error).splitlines()[0]}): one of them died, or was "
                "silent for longer than SSLIGHT_TIMEOUT seconds; see what the others said, then start the same "
                "command again to go on from the last checkpoint",
                EXIT_BUG,
            )
        else:
            raise
    except KeyboardInterrupt:
        code = 130
    finally:
        _answering.pop()
        signal.setitimer(signal.ITIMER_REAL, 0)  # of `stop_at_once`; Python's own end is not to be cut short
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler takes the end of a worker for a crash
        for child in multiprocessing.active_children():  # loader workers, which no signal to stop reaches
            child.kill()
    sys.exit(code)


CALLED: ContextVar[list[str] | None] = ContextVar("CALLED", default=None)  # words after `sslight`: see `as_function`


@contextlib.contextmanager
def as_function(*words: str) -> Iterator[None]:
    """Around the work of the command `sslight WORDS` in somebody else's process: what `run_command` is to a command.

    What a command answers in one line is raised: InputError or Stopped. Signals to stop count only while there is
    something to save (`StopSignal`); a second Ctrl-C raises KeyboardInterrupt. Afterwards signal handlers, the timer
    and forks are as before. In another thread than the main one no signal is answered: Python has handlers in the main
    thread alone.
    """
    _keep_signals_from_workers()
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGALRM)} if main else {}
    _answering.append(_FUNCTION)
    token = CALLED.set(list(words))
    try:
        with _what_stopped_it():
            yield
    except (OSError, RuntimeError) as error:
        line = _limit(error)
        if line:
            raise InputError(line) from error
        raise
    except SystemExit as ended:  # one of several processes
        raise InputError(f"another process of `sslight {words[0]}` refused its input, and said why") from ended
    finally:
        CALLED.reset(token)
        _answering.pop()
        if _asked:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            if handler is not None:  # not one of Python's
                signal.signal(number, handler)


def handle_stop_signals(handler: Callable[[int, object], None]) -> dict[int, Any]:
    """Have STOP_SIGNALS call `handler`; returns their handlers before. In another thread than the main one: nothing."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in STOP_SIGNALS}


# What a second Ctrl-C does, by what runs: nothing of ours, a command, a function. Left to the system in a command,
# because a handler of Python's would wait for the end of a call into C.
_COMMAND, _FUNCTION = signal.SIG_DFL, signal.default_int_handler
_answering: list = []
_asked: list[Interrupted] = []  # what `stop_at_once` has raised


@contextlib.contextmanager
def _what_stopped_it() -> Iterator[None]:
    """What fails after a signal to stop comes of that: an import, say, may swallow it and fail later."""
    _asked.clear()
    try:
        yield
    except Exception as error:
        if _asked and not isinstance(error, Stopped):
            raise _asked[0] from None
        raise


@functools.cache
def _keep_signals_from_workers() -> None:
    """Have every process that is forked while a command runs, whoever forks it, start with the stop signals blocked.

    One that reaches the whole process group is the main process's to answer. A loader worker that died of it, at any
    instant from its very fork, would be taken for a crash.
    """
    os.register_at_fork(
        before=lambda: _answering and signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS),
        after_in_parent=lambda: _answering and signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS),
    )


def stop_at_once(number: int, frame: object = None) -> None:
    """Signal handler for where nothing needs saving: unwind, so that temporary files go, and leave with 75.

    Python ignores what is raised within a finalizer or an at-fork hook: it is raised again until the command has ended.
    """
    second_ends(number)
    signal.signal(signal.SIGALRM, lambda *_: stop_at_once(number))
    signal.setitimer(signal.ITIMER_REAL, 1)
    _asked.append(
        Interrupted(f"saved already when {signal.Signals(number).name} came; start the same command again to go on")
    )
    raise _asked[-1]


def second_ends(number: int) -> None:
    """After a Ctrl-C, have the next one end this command at once, whatever it does; other signals change nothing."""
    if number == signal.SIGINT:
        signal.signal(number, _answering[-1] if _answering else _COMMAND)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """What a thread's death prints: nothing where the disk is full, for the main thread says so."""
    if not isinstance(failure.exc_value, OSError) or failure.exc_value.errno not in NO_ROOM:
        threading.__excepthook__(failure)


def _say(kind: str, text: object, code: int) -> int:
    print(f"{kind}: {' '.join(str(text).split())}", file=sys.stderr)
    return code


def _limit(error: OSError | RuntimeError) -> str:
    """Which limit of the system the error is about, and what to do about it; an empty string where it is none."""
    if isinstance(error, RuntimeError):
        return _too_small(error)
    if error.errno == errno.ENAMETOOLONG:
        return f"{error.strerror}: {error.filename!s:.100}..."
    if error.errno in NO_ROOM:
        return f"cannot write{' ' * bool(error.filename)}{error.filename or ''}: {error.strerror}; {MAKE_ROOM}"
    return ""


def _too_small(error: RuntimeError) -> str:
    """Which memory was too small, and what to do about it; an empty string where that is not the fault.

    Told by the words: torch's class for it is its allocator's alone, not that of CUDA's libraries and loader workers.
    """
    said = str(error)
    if "shared memory" in said:
        return (
            f"the shared memory is too small ({said.splitlines()[0]:.120}): start the container with more of it "
            "(docker --shm-size=8g); with DATA.WORKERS 0 loading needs none"
        )
    if not any(words in said for words in ("CUDA out of memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")):
        return ""
    known = [*Parser.last.keys, *option_strings(Parser.last)] if Parser.last else []
    tried = re.search(r"Tried to allocate ([\d.]+ \w+)", said)
    size = f" (it tried to allocate {tried[1]})" if tried else ""
    ways = ", ".join(text for name, text in LESS_MEMORY.items() if name in known) or "lower the batch size"
    return f"GPU out of memory{size}: {ways}, or end what else runs on the GPU (nvidia-smi lists it)"


def _lost_contact(error: OSError | RuntimeError) -> bool:
    """Whether the processes of a group no longer hear from each other: torch tells it by the class or gloo's words."""
    dist: Any = sys.modules.get("torch.distributed")
    heard = isinstance(error, RuntimeError) and dist is not None and "RANK" in os.environ
    return heard and (isinstance(error, dist.DistError) or "gloo" in str(error))


def _end_restarts(environment: Mapping[str, str]) -> None:
    """Under `torchrun --max-restarts`: a stop that was asked for must not be taken for a crash and restarted."""
    left = int(environment.get("TORCHELASTIC_MAX_RESTARTS", 0)) - int(environment.get("TORCHELASTIC_RESTART_COUNT", 0))
    if left > 0 and environment["LOCAL_RANK"] == "0":
        os.kill(os.getppid(), signal.SIGTERM)


PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PRCTL = getattr(ctypes.CDLL(None), "prctl", None)  # Linux's; looked up here because a forked child may load nothing


def end_with_parent() -> None:
    """Have this process told to stop (SIGTERM) when its parent dies, where the system can."""
    if _PRCTL:
        _PRCTL(PR_SET_PDEATHSIG, signal.SIGTERM)
