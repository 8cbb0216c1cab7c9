"""From bytes to safe content, flat keys and plain tensors: nothing that a stranger's file holds is ever executed.

`read_file` reads a file by its first bytes; `flatten_content` gives dotted keys without wrappers; `plain_tensors` makes
of the chosen ones what every framework holds. Pickles, torch's among them, are read by `convert.pickled`.
Settings are looked up as plain data (`Flat.setting`), whatever objects hold them.
"""

from __future__ import annotations

import ast
import functools
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from convert.pickled import Inert, load_pickle, load_torch_legacy, load_torch_zip, plain
from sslight.core.checkpoint import check_archive
from sslight.core.errors import InputError

_TORCH_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number of torch's old format, as pickled


def read_file(path: Path | str, *, mapped: bool = False, checksums: bool = True) -> tuple[Any, dict]:
    """The content of a checkpoint file (nested dicts of CPU tensors and plain values) and its safetensors header.

    `mapped` leaves a zip file's tensors on the disk until they are used: nobody may write into the file meanwhile.
    `checksums=False` is for a file just written, whose every bit is compared anyway.

    Raises InputError if the file is missing, empty, a directory, corrupt, truncated, no checkpoint, or holds objects
    that are not data.
    """
    path = Path(path)
    try:
        _refuse_torchscript(path)
        if checksums:
            check_archive(path)
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    size = path.stat().st_size
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8:
        return _load_safetensors(path)
    load: Callable
    if start.startswith(b"PK"):
        load = functools.partial(load_torch_zip, mapped=path if mapped else None)
    elif _TORCH_LEGACY in start[:16]:
        load = load_torch_legacy
    elif start[:1] == b"\x80":
        load = load_pickle
    else:
        raise InputError(
            f"not a checkpoint: {path} ({_looks_like(start)}); "
            "expected a .pth, .pth.tar, .pt, .ckpt, .pkl or .safetensors file"
        )
    try:
        with open(path, "rb") as file:
            return load(file, size), {}
    except Exception as error:  # noqa: BLE001 - a parser of untrusted bytes: any failure means a bad file
        raise InputError(f"not a readable checkpoint: {path} ({_reason(error)})") from None


def _refuse_torchscript(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return  # no zip file, or a broken one, which is reported by its kind
    if any(name.endswith("/constants.pkl") for name in names):
        raise InputError(
            f"{path} is TorchScript, a program and not weights alone; where you trust it, export its weights in "
            f"Python: torch.save(torch.jit.load('{path.name}').state_dict(), 'weights.pth')"
        )


def _looks_like(start: bytes) -> str:
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        return "it is a web page, probably an error page saved by a download; fetch it again"
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file itself with `git lfs pull`"
    if start[257:262] == b"ustar":
        return "it is a tar archive; unpack it, or save it again with torch.save where torch 0.1 wrote it"
    if start.startswith(b"\x89HDF"):
        return "it is HDF5, probably of Keras, whose layers this project does not know"
    if start.isascii():
        return "it is text"
    return "unknown kind of file"


def _reason(error: Exception) -> str:
    """A parser's complaint as part of a line."""
    damaged = isinstance(error, LookupError | AttributeError | TypeError | struct.error | AssertionError)
    text = "" if damaged else " ".join(str(error).split())
    return text[:160] if text.isprintable() and text else f"it is damaged: {type(error).__name__}"


def _load_safetensors(path: Path) -> tuple[dict, dict]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})
    except Exception as error:  # noqa: BLE001 - as above
        raise InputError(f"not a readable safetensors file: {path} ({' '.join(str(error).split())[:160]})") from None


_MOST_LEAVES, _DEEPEST, _LONGEST_PATH = 500_000, 64, 10_000
_WRAPPERS = {"module", "_orig_mod", "model", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_LONGEST_CONFIG = 1_000_000  # characters


@dataclass(frozen=True)
class Flat:
    """A file's content as one dict of leaves, and its settings by path.

    `content`: as read; `values`: dotted key without wrappers -> leaf; `raw`: the same key -> the key as it stands in
    the file; `beside`: what the settings files beside it say, by their names.

    `module.` (DataParallel, DDP), `_orig_mod.` (torch.compile), `model.` (outer modules), and the wrappers of FSDP and
    of activation checkpointing may sit anywhere in a key, in any nesting: no network calls a part of itself so. Where
    keys differ in wrappers alone, those that come first in the file have the plain keys, others keep theirs.
    """

    content: object
    values: dict[str, object]
    raw: dict[str, str]
    beside: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The leaves that are tensors."""
        return {key: value for key, value in self.values.items() if isinstance(value, Tensor)}

    def setting(self, *path: str) -> object:
        """What lies under a path of keys in dicts, Namespaces and OmegaConf containers; None if nothing does."""
        return _under(self.content, path)

    def openmmlab_setting(self, *path: str) -> object:
        """The same in the config that mmengine (`meta.cfg`) and mmcv (`meta.config`) keep as Python text."""
        return _under(self._openmmlab_config, path)

    @functools.cached_property
    def _openmmlab_config(self) -> Mapping:
        """The config's text parsed and its literals taken, never run."""
        text = self.setting("meta", "cfg") or self.setting("meta", "config")
        if isinstance(text, Mapping):
            return text
        if not isinstance(text, str) or len(text) > _LONGEST_CONFIG:
            return {}
        try:
            body = ast.parse(text).body
            return {
                line.targets[0].id: _literal(line.value)
                for line in body
                if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name)
            }
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return {}


def flatten_content(content: object, path: str) -> Flat:
    """Flatten nested dicts, lists, pickled modules and other objects' attributes.

    Raises InputError if the file `path` holds no tensors or is nested absurdly.
    """
    leaves: list[tuple[str, object]] = []
    _walk(content, "", leaves, path, (), set())
    wrapping: dict[str, str] = {}  # plain key of a tensor -> the wrappers that it first came in
    second = set()
    for key, value in leaves:
        outer = _wrapping(key)
        if isinstance(value, Tensor) and wrapping.setdefault(unwrap(key), outer) != outer:
            second.add(outer)
    values: dict[str, object] = {}
    raw: dict[str, str] = {}
    for key, value in leaves:
        plain_key = unwrap(key)
        name = key if plain_key in values or _wrapping(key) in second else plain_key
        while name in values:
            name += "'"
        values[name], raw[name] = value, key
    flat = Flat(content, values, raw)
    if not flat.tensors:
        raise InputError(f"not a checkpoint: {path} holds no tensors")
    return flat


def unwrap(key: str) -> str:
    """A dotted key without the wrappers that DDP, torch.compile and outer modules put around it."""
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS) or key


def _wrapping(key: str) -> str:
    """A dotted key down to its last wrapper."""
    parts = key.split(".")
    last = max((place for place, part in enumerate(parts) if part in _WRAPPERS), default=-1)
    return ".".join(parts[: last + 1])


def _walk(value: object, key: str, leaves: list, path: str, above: tuple[int, ...], seen: set[int]) -> None:
    """Append the (dotted key, leaf) pairs below a value. Objects that are no modules are entered once."""
    if len(leaves) > _MOST_LEAVES or len(key) > _LONGEST_PATH:
        raise InputError(f"not a checkpoint: {path} holds too many entries, or keys of thousands of letters")
    if id(value) in above or len(above) > _DEEPEST:  # a circle, or deeper than any network lies
        value = None
    children = _children(value, seen)
    if not children:
        leaves.append((key or "content", value))
    for name, item in children:
        name = name if isinstance(name, str) and name.isprintable() else ascii(name).strip("'")
        _walk(item, f"{key}.{name}" if key else name, leaves, path, (*above, id(value)), seen)


def _children(value: object, seen: set[int]) -> Sequence[tuple[object, object]]:
    if isinstance(value, Inert):
        tensors = value.module_tensors
        if tensors is None and id(value) in seen:
            return ()
        seen.add(id(value))
        value = value.content if tensors is None else tensors
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, list | tuple) and id(value) not in seen:
        if any(isinstance(item, dict | list | tuple | Tensor | Inert) for item in value):
            return list(enumerate(value))
        seen.add(id(value))  # numbers and texts alone, perhaps a million: not looked through again
    return ()


def _under(value: object, path: Iterable[str]) -> object:
    for key in path:
        value = plain(value)
        value = value.get(key) if isinstance(value, Mapping) else None
    return plain(value)


def _literal(node: ast.AST) -> Any:
    """The data that an expression of `dict(...)`, lists and literals spells; None for any other."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {word.arg: _literal(word.value) for word in node.keywords if word.arg}
    if isinstance(node, ast.Dict):
        return {
            key.value: _literal(value)
            for key, value in zip(node.keys, node.values, strict=True)
            if isinstance(key, ast.Constant)
        }
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _literal(node.operand)
        return -value if type(value) in (int, float) else None
    return node.value if isinstance(node, ast.Constant) else None


COUNTER = "num_batches_tracked"


def plain_tensors(state: dict[str, Tensor], source: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors as every framework holds them, and notes on what was not so in the file.

    Half precision widens exactly; float64 is rounded, as loading it into any of the frameworks does. Raises InputError
    naming every tensor that holds no weights: integers, complex numbers, sparse or quantised ones.
    """
    odd = [f"'{key}' ({_kind(value)})" for key, value in state.items() if not _usable(key, value)]
    if odd:
        raise InputError(f"{source}: weights are dense floating-point numbers, but not {', '.join(odd)}")
    types = Counter(
        str(value.dtype).removeprefix("torch.")
        for key, value in state.items()
        if not key.endswith(COUNTER) and value.dtype is not torch.float32
    )
    notes = [
        f"{count} tensors are {name} in the file; written as float32"
        f"{', rounded' if name == 'float64' else ', the same numbers'}"
        for name, count in sorted(types.items())
    ]
    taken: set[int] = set()
    return {
        key: _owned(value.detach().to(torch.int64 if key.endswith(COUNTER) else torch.float32), taken)
        for key, value in state.items()
    }, notes


def _usable(key: str, value: Tensor) -> bool:
    dense = value.layout is torch.strided and not value.is_quantized and value.device.type == "cpu"
    return dense and not value.is_complex() and (value.is_floating_point() or key.endswith(COUNTER))


def _kind(value: Tensor) -> str:
    layout = "" if value.layout is torch.strided else f"{str(value.layout).removeprefix('torch.')} "
    return f"{layout}{str(value.dtype).removeprefix('torch.')} on {value.device.type}"


def _owned(value: Tensor, taken: set[int]) -> Tensor:
    """The tensor alone in its memory: of a slice, torch would save the whole, and safetensors refuses shared memory."""
    value = value.contiguous()
    storage = value.untyped_storage()
    if storage.nbytes() != value.nbytes or storage.data_ptr() in taken:
        return value.clone()
    taken.add(storage.data_ptr())
    return value
