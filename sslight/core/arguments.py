"""Arguments of a command: parsing, hints, completion. Imports nothing heavy: `--help` is fast."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from typing import NoReturn

from sslight.core.errors import InputError, nearest


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line that names the nearest option or choice.

    `examples` are commands that work as they stand, given the data they name; the help ends with them. `keys` are those
    that `add_overrides` allows. `last` is the one that read its arguments last: the running command's.
    """

    keys: list[str] = []
    last: Parser | None = None

    def __init__(self, prog: str, description: str, *examples: str, **options):
        shown = "".join(f"  {example}\n" for example in examples)
        super().__init__(
            prog,
            description=description,
            epilog=f"example:\n{shown}{options.pop('epilog', '')}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,
        )

    def parse_known_args(self, *args, **options):
        Parser.last = self
        return super().parse_known_args(*args, **options)

    def add_overrides(self, defaults: Mapping) -> None:
        """Trailing KEY VALUE pairs, `overrides`; shells complete the keys of the nested dict `defaults`."""
        overrides = self.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="override configuration keys")
        overrides.completer = lambda prefix, parsed_args, **_: _next_words(defaults, parsed_args.overrides, prefix)
        self.keys = _keys(defaults)

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            first = next((word for word in unknown.split() if word.startswith("-")), unknown).split("=")[0]
            key = first.lstrip("-").upper().replace("-", "_")
            hint = f": write {key} VALUE" if key in self.keys else nearest(first, self._option_string_actions)
            message = f"unknown argument '{unknown}'{hint}"
        raise InputError(f"{message}; see {self.prog} --help")

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(
                action, f"'{value}' is unknown{nearest(str(value), names)}: use {', '.join(names)}"
            )


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
    return [
        key
        for name, value in tree.items()
        for key in (_keys(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [f"{prefix}{name}"])
    ]
