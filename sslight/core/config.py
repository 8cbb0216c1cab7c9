"""Configuration: YAML files with `_BASE_`, trailing `KEY VALUE` overrides, and errors that name the nearest key."""

from __future__ import annotations

import ast
import errno
import io
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import yaml
from fvcore.common.config import CfgNode

from sslight.core.errors import InputError, nearest_file, nearest_key

MAX_FILE_BYTES, MAX_FILES, MAX_VALUES = 1 << 16, 20, 10_000  # of settings with their _BASE_ chain: far above any in use

# Package data, beside this package in a checkout and in site-packages alike. Found by this file's place, not by
# importing `configs`: a folder of that name where a command is started would answer to it.
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def find_config(file: str | Path) -> Path:
    """The file itself if it is there, else the shipped one where the path is `configs/...`: a user's own file wins.

    A path that is neither comes back unchanged, for the reader to complain about.
    """
    file = Path(file)
    shipped = CONFIGS.parent / file
    return shipped if file.parts[:1] == (CONFIGS.name,) and shipped.is_file() and not file.exists() else file


def load_config(
    defaults: Mapping,
    file: str | Path | None,
    overrides: Sequence[str] = (),
    translate: Callable[[dict, bool], dict] | None = None,
) -> CfgNode:
    """Defaults, then the file and its `_BASE_` chain, then `KEY VALUE` pairs. The result is frozen.

    `translate(settings, whole_file)` maps a flat {dotted key: value} dict of another spelling to ours before it is
    checked; `whole_file` tells the file from the overrides.
    Raises InputError for an unknown key (naming the nearest), a value of the wrong type, or an unreadable file.
    """
    return configure(defaults, read_given(file, overrides, translate))


def read_given(
    file: str | Path | None,
    overrides: Sequence[str] = (),
    translate: Callable[[dict, bool], dict] | None = None,
) -> list[tuple[str, object, str]]:
    """What a user has set, as (dotted key, value, where), a later one counts; arguments as of `load_config`."""
    given = []
    for settings, where in ((read_settings(file), str(file)), (_read_overrides(overrides), "command line")):
        if translate:
            settings = translate(settings, where != "command line")
        given += [(key, value, where) for key, value in settings.items()]
    return given


def configure(defaults: Mapping, given: Iterable[tuple[str, object, str]]) -> CfgNode:
    """The defaults with what `read_given` returned, frozen; raises as `load_config`."""
    cfg = CfgNode(defaults)
    for key, value, where in given:
        _set(cfg, key, value, where)
    cfg.freeze()
    return cfg


def check_numbers(
    cfg: CfgNode, positive: Collection[str], most: Mapping[str, float], lengths: Mapping[str, int]
) -> None:
    """Raise InputError for a number that cannot work: negative, 0 for a `positive` key, above its key's `most`, or in
    a list of another length than its key's."""
    for key, value in flatten(to_dict(cfg)):
        numbers = [
            number for number in (value if isinstance(value, list) else [value]) if isinstance(number, int | float)
        ]
        wanted = (
            "no negative number"
            if any(number < 0 for number in numbers)
            else "more than 0"
            if key in positive and not all(numbers)
            else f"at most {most[key]}"
            if any(number > most.get(key, number) for number in numbers)
            else f"{lengths[key]} numbers"
            if len(numbers) != lengths.get(key, len(numbers))
            else ""
        )
        if wanted:
            raise InputError(f"config key '{key}' expects {wanted}, not {value}")


def to_dict(cfg: CfgNode) -> dict:
    """The configuration as plain nested dicts, lists and scalars."""
    return {key: to_dict(value) if isinstance(value, CfgNode) else value for key, value in cfg.items()}


def flatten(tree: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Pairs (dotted key, value) of nested dicts."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def dump(cfg: CfgNode) -> str:
    """The configuration as YAML."""
    return yaml.safe_dump(to_dict(cfg), sort_keys=False)


def read_yaml(file: str | Path, load: Callable[[str], object] | None = None) -> object:
    """A small YAML file as plain data: nothing in it is run, and no alias unfolds beyond bounds.

    load: the function of the file's name that reads it. Raises InputError for a file that is no such YAML.
    """
    try:
        return load(str(file)) if load else yaml.safe_load(_text(file))
    except InputError:
        raise
    except FileNotFoundError as error:
        missing = "config file" if error.filename == str(file) else f"{file}: _BASE_ file"
        raise InputError(f"{missing} not found: {error.filename}{nearest_file(error.filename)}") from None
    except Exception as error:  # noqa: BLE001  YAML's constructors raise whatever they stumble over
        reason = str(error).splitlines()[0][:200] if str(error) else repr(error)
        raise InputError(f"{file} is not a YAML file of settings: {reason}") from None


def _text(file: str | Path) -> str:
    """The content of a YAML file that is small enough, unfolded too."""
    if not Path(file).is_file():  # nor a device that never ends, nor an address on the net
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file))
    if os.path.getsize(file) > MAX_FILE_BYTES:
        raise InputError(f"{file} is not a file of settings: it is larger than {MAX_FILE_BYTES} bytes")
    text = Path(file).read_text(encoding="utf-8")
    _count(yaml.safe_load(text), MAX_VALUES, file)
    return text


def read_settings(file: str | Path | None) -> dict:
    """{dotted key: value} of a file and its `_BASE_` chain, read as `read_yaml` reads; of no file, none.

    The file is looked for by `find_config`.
    """
    if not file:
        return {}
    file = find_config(file)
    tree = read_yaml(file, _reader(file).load_yaml_with_base) or {}
    if not isinstance(tree, Mapping):
        raise InputError(
            f"{file} is not a YAML file of settings: it holds a {type(tree).__name__}, not KEY: VALUE lines"
        )
    return dict(flatten(tree))


def _reader(file: str | Path) -> type[CfgNode]:
    """fvcore's reader of a file and its `_BASE_` chain, made to look at every file first."""
    opened: list[str] = []

    class Reader(CfgNode):
        @classmethod
        def _open_cfg(cls, filename: str) -> io.StringIO:
            opened.append(filename)
            if len(opened) > MAX_FILES:
                raise InputError(
                    f"{file} with its _BASE_ files is more than {MAX_FILES}, or they name each other in a circle"
                )
            return io.StringIO(_text(filename))

    return Reader


def _count(node: object, left: int, file: str | Path) -> int:
    """`left` less the values below; a few aliases (&a, *a) can stand for more than any memory holds."""
    if left < 0:
        raise InputError(f"{file} is not a file of settings: its aliases unfold to more than {MAX_VALUES} values")
    for child in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        left = _count(child, left - 1, file)
    return left


def _read_overrides(overrides: Sequence[str]) -> dict:
    if len(overrides) % 2:
        raise InputError(f"overrides are KEY VALUE pairs; '{overrides[-1]}' has no value")
    return {key: literal(value) for key, value in zip(overrides[::2], overrides[1::2], strict=True)}


def literal(text: object) -> object:
    """The Python literal that a text is, or else the text; YAML 1.1 reads 1e-6 as text, and an override is one."""
    try:
        return ast.literal_eval(text) if isinstance(text, str) else text
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text


def _set(cfg: CfgNode, key: str, value: object, where: str) -> None:
    known = dict(flatten(cfg))
    if key not in known:
        raise InputError(f"unknown config key '{key}' ({where}){nearest_key(key, known)}")
    value = literal(value)
    try:
        fitted = _fit(known[key], value)
    except (TypeError, OverflowError):
        raise InputError(f"config key '{key}' ({where}) expects {_expected(known[key])}, not {value!r:.200}") from None
    *parents, leaf = key.split(".")
    node = cfg
    for parent in parents:
        node = node[parent]
    node[leaf] = fitted


def _fit(default: object, value: object) -> object:
    """The value in the default's type. Raises TypeError, or OverflowError, for one that does not fit."""
    if isinstance(default, list) and isinstance(value, list | tuple):
        return [_fit(default[0] if default else item if type(item) is int else 0.0, item) for item in value]
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if isinstance(default, str) and value is None:
        value = ""
    if type(value) is not type(default) or (isinstance(value, float) and not math.isfinite(value)):
        raise TypeError
    return value


def _expected(default: object) -> str:
    if isinstance(default, list):
        return f"list of {_expected(default[0]) if default else 'numbers'}" + f", such as {default}" * bool(default)
    return "finite float" if isinstance(default, float) else type(default).__name__
