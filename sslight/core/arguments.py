"""Arguments of a command: parsing, hints, completion. Imports nothing heavy: `--help` is fast."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol

from sslight.core.errors import InputError, nearest
from sslight.core.registry import load


class Command(Protocol):
    """A command: one line on it, its arguments (quick to import: `--help` and completion), and what runs it."""

    @property
    def text(self) -> str: ...

    def arguments(self) -> Parser: ...

    def run(self, argv: Sequence[str]) -> int | None: ...


@dataclass(frozen=True)
class Imported:
    """A `Command` by the names, `module:function`, of its `main(argv)` and of the function that makes its parser."""

    text: str
    main: str
    parser: str

    def arguments(self) -> Parser:
        return load(self.parser)()

    def run(self, argv: Sequence[str]) -> int | None:
        return load(self.main)(argv)


# One vocabulary over all commands: option -> its other spellings, the config key that says the same, and the help. A
# command has those whose key it knows; what the published system and the frameworks' scripts call a key stays a key.
OPTIONS = {
    "--weights": ((), "WEIGHTS", "a checkpoint that `sslight convert` reads, or random"),
    "--arch": ((), "MODEL.BACKBONE_ARCH", "backbone, by timm's name or an alias such as resnet18"),
    "--data": ((), "DATA.PATH_TO_DATA_DIR", "the data directory"),
    "--out": (("-o",), "OUTPUT_DIR", "where everything is written"),
    "--seed": ((), "SEED", "of everything random"),
}
CONFIG_OPTIONS = ("--cfg", "--config", "--config-file")


class _SetKey(argparse.Action):
    """An option that is another spelling of a config key."""

    def __call__(self, parser, namespace, value, option_string=None):
        pair = self.const if self.nargs == 0 else (self.const, value)
        namespace.by_option = [*getattr(namespace, "by_option", []), *pair]


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
        overrides.completer = (  # type: ignore[attr-defined]  # argcomplete looks for it there
            lambda prefix, parsed_args, **_: _next_words(defaults, parsed_args.overrides, prefix)
        )
        self.keys = _keys(defaults)
        for option, (spellings, key, text) in OPTIONS.items():
            if key in self.keys and option not in self._option_string_actions:
                self.add_argument(
                    *spellings,
                    option,
                    action=_SetKey,
                    const=key,
                    dest="by_option",
                    metavar="VALUE",
                    default=argparse.SUPPRESS,
                    help=f"{text} (the same as {key} VALUE)",
                )

    def add_config(self, folder: str) -> None:
        """`--cfg FILE` under its spellings; `folder` is named in the help."""
        self.add_argument(*CONFIG_OPTIONS, dest="cfg", metavar="FILE", help=f"YAML settings, e.g. one of {folder}")

    def add_key_flag(self, option: str, key: str, text: str) -> None:
        """A flag that sets a key to True."""
        self.add_argument(
            option, action=_SetKey, const=(key, "True"), nargs=0, dest="by_option", default=argparse.SUPPRESS, help=text
        )

    def parse_known_intermixed_args(self, args=None, namespace=None):
        """As argparse's; options that spell a key come behind the `overrides`, as if written so."""
        parsed, rest = super().parse_known_intermixed_args(args, namespace)
        if hasattr(parsed, "overrides"):
            parsed.overrides = [*(parsed.overrides or []), *getattr(parsed, "by_option", [])]
        return parsed, rest

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
