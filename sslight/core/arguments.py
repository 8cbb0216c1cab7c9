"""Arguments of a command: parsing, hints, completion. Imports nothing heavy: `--help` is fast."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol

from sslight.core.compat import option_strings
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


CHECKPOINT = "a checkpoint: a file or directory, timm:NAME, hf:ORG/NAME[@REVISION], or SUPERVISED with --arch"

# One vocabulary over all commands: option -> its other spellings, the config key that says the same, and the help. A
# command has those whose key it knows; what the published system and the frameworks' scripts call a key stays a key.
# docs/options.md shows them.
OPTIONS = {
    "--weights": ((), "WEIGHTS", f"{CHECKPOINT}; or random"),
    "--arch": ((), "MODEL.BACKBONE_ARCH", "backbone, by timm's name or an alias such as resnet18"),
    "--data": ((), "DATA.PATH_TO_DATA_DIR", "the data directory"),
    "--out": (("-o",), "OUTPUT_DIR", "where everything is written"),
    "--seed": ((), "SEED", "of everything random; of several runs the first's"),
    "--trials": ((), "", "runs, of consecutive seeds"),
    "--cfg": (("--config", "--config-file"), "", "a file of settings"),
    "--set": ((), "MODEL.OPTIONS", "a build option that shapes do not show, e.g. num_heads=12; may be repeated"),
}


def words_of(settings: Mapping[str, object], **options: object) -> list[str]:
    """The command line that says what keyword arguments of Python say.

    A name in small letters without a dot is an option: `num_gpus=2` is --num-gpus 2, True the option alone, a list the
    option once for each item, and None or False nothing. Any other name is a config key. `options` come first.
    """
    words: list[str] = []
    for name, value in {**options, **settings}.items():
        option = f"--{name.replace('_', '-')}"
        if name != name.lower() or "." in name:
            words += [name, str(value)]
        elif value is True:
            words.append(option)
        elif value is not None and value is not False:
            words += [f"{option}={item}" for item in (value if isinstance(value, list | tuple) else [value])]
    return words


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
    _places: tuple[tuple[str, str, object], ...] = ()

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
        for option, (_, key, text) in OPTIONS.items():
            if key in self.keys and option not in (*option_strings(self), "--set"):
                self.add_option(
                    option,
                    action=_SetKey,
                    const=key,
                    dest="by_option",
                    metavar="VALUE",
                    default=argparse.SUPPRESS,
                    help=f"{text} (the same as {key} VALUE)",
                )

    def add_option(self, option: str, **further) -> None:
        """One of OPTIONS, under all its spellings; `further` as of `add_argument`."""
        spellings, _, text = OPTIONS[option]
        self.add_argument(option, *spellings, **{"help": text, **further})

    def add_place(self, dest: str, *options: str, metavar: str, nargs: str = "?", default=None, help: str, **further):
        """A positional argument that options of the vocabulary say, too. Required where it has no default."""
        self._places += ((dest, metavar, default),)
        spellings = [spelling for option in options for spelling in (option, *OPTIONS[option][0])]
        self.add_argument(dest, nargs=nargs, metavar=metavar, help=help, **further)
        self.add_argument(
            *spellings,
            dest=f"{dest} by option",
            action="append",
            metavar=metavar,
            default=argparse.SUPPRESS,
            help=f"the same as {metavar}",
            **further,
        )

    def _settle_places(self, args: argparse.Namespace) -> argparse.Namespace:
        for dest, metavar, default in self._places:
            value, values = getattr(args, dest), vars(args).pop(f"{dest} by option", [])
            if isinstance(value, list):  # nargs="*"
                setattr(args, dest, value + values or default)
                continue
            values = values if value is None else [value, *values]
            if len(values) > 1:
                self.error(f"{metavar} is given twice, as '{values[0]}' and '{values[1]}'")
            if not values and default is None:
                self.error(f"the following arguments are required: {metavar}")
            setattr(args, dest, values[0] if values else default)
        return args

    def parse_args(self, args=None, namespace=None):
        return self._settle_places(super().parse_args(args, namespace))

    def parse_intermixed_args(self, args=None, namespace=None):
        return self._settle_places(super().parse_intermixed_args(args, namespace))

    def add_config(self, folder: str) -> None:
        """`--cfg FILE`; `folder` is named in the help."""
        self.add_option("--cfg", metavar="FILE", help=f"YAML settings, e.g. one of {folder}")

    def add_build_options(self) -> None:
        """`--set KEY=VALUE`, collected in `options`."""
        self.add_option("--set", dest="options", action="append", default=[], metavar="KEY=VALUE")

    def add_key_flag(self, option: str, key: str, text: str) -> None:
        """A flag that sets a key to True."""
        self.add_argument(
            option, action=_SetKey, const=(key, "True"), nargs=0, dest="by_option", default=argparse.SUPPRESS, help=text
        )

    def parse_known_intermixed_args(self, args=None, namespace=None):
        """As argparse's; options that spell a key come behind the `overrides`, as if written so."""
        parsed, rest = super().parse_known_intermixed_args(args, namespace)
        if hasattr(parsed, "overrides"):
            build = ["MODEL.OPTIONS", " ".join(parsed.options)] if getattr(parsed, "options", []) else []
            parsed.overrides = [*(parsed.overrides or []), *build, *getattr(parsed, "by_option", [])]
        return parsed, rest

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            first = next((word for word in unknown.split() if word.startswith("-")), unknown).split("=")[0]
            key = first.lstrip("-").upper().replace("-", "_")
            hint = f": write {key} VALUE" if key in self.keys else nearest(first, option_strings(self))
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
