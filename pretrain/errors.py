"""How a command starts and ends: arguments, exit codes, one-line errors. Imports nothing heavy: `--help` is fast."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

EXIT_DONE, EXIT_BUG, EXIT_BAD_INPUT, EXIT_PARTS_FAILED, EXIT_STOPPED = 0, 1, 2, 3, 75


class InputError(ValueError):
    """Bad input or configuration. The message is one line: what is wrong, where, and what to do about it."""


class Stopped(Exception):
    """The run was asked to stop by a signal and has saved its state; the same command continues it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the closest known name, or an empty string."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{found[0]}'?)" if found else ""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line that names the nearest option or choice.

    `examples` are commands that work as they stand, given the data they name; the help ends with them. `keys` are those
    that `add_overrides` allows.
    """

    keys: list[str] = []

    def __init__(self, prog: str, description: str, *examples: str, **options):
        shown = "".join(f"  {example}\n" for example in examples)
        super().__init__(prog, description=description, epilog=f"example:\n{shown}{options.pop('epilog', '')}",
                         formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def add_overrides(self, defaults: Mapping) -> None:
        """Trailing KEY VALUE pairs, `overrides`; shells complete the keys of the nested dict `defaults`."""
        overrides = self.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="override configuration keys")
        overrides.completer = lambda prefix, parsed_args, **_: _next_words(defaults, parsed_args.overrides, prefix)
        self.keys = _keys(defaults)

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            first = unknown.split()[0].split("=")[0]
            message = f"unknown argument '{unknown}'{nearest(first, self._option_string_actions)}"
        raise InputError(f"{message}; see {self.prog} --help")

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(action, f"'{value}' is unknown{nearest(str(value), names)}: "
                                                 f"use {', '.join(names)}")


def _next_words(defaults: Mapping, given: list[str] | None, prefix: str) -> Iterable[str]:
    """What a shell offers after KEY VALUE pairs: keys, or a value of the key that stands last, which may be a file."""
    from argcomplete.completers import FilesCompleter

    if not given or len(given) % 2 == 0:
        return _keys(defaults)
    value: object = defaults
    for part in given[-1].split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return ["True", "False"] if isinstance(value, bool) else FilesCompleter()(prefix)


def _keys(tree: Mapping, prefix: str = "") -> list[str]:
    """Dotted keys of nested dicts."""
    return [key for name, value in tree.items() for key in
            (_keys(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [f"{prefix}{name}"])]


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
