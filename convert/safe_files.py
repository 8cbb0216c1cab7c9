"""From bytes to safe content, flat keys and plain tensors: nothing that a stranger's file holds is ever executed.

`read_file` reads a file by its first bytes; `flatten_content` gives dotted keys without wrappers; `plain_tensors` makes
of the chosen ones what every framework holds. Settings are looked up as plain data (`Flat.setting`): foreign objects
are inert stand-ins.

Pickles of arrays and plain values (detectron2's `.pkl`) go through an unpickler that can build nothing else: numpy's
own unpickling functions are not called, an array is rebuilt from its recorded shape, type name and bytes.
"""

from __future__ import annotations

import ast
import functools
import io
import pickle
import re
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from sslight.core import compat
from sslight.core.checkpoint import check_archive
from sslight.core.errors import InputError

_NUMERIC = "fiub"  # floats, signed and unsigned integers, booleans


def load_array_pickle(path: Path | str) -> object:
    """The content of a pickle file, arrays as tensors. Raises InputError if it holds anything but data."""
    try:
        with open(path, "rb") as file:
            return _finish(_Unpickler(file).load(), 0)
    except Exception as error:  # noqa: BLE001 - a parser of untrusted bytes: any failure means a bad file
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(f"not a readable checkpoint: {path} ({reason})") from None


class _DType:
    """Stands for numpy.dtype: its type code and byte order."""

    def __init__(self, code="", *flags):
        self.code = code
        self.order: Any = "="

    def __setstate__(self, state):
        self.order = state[1]

    def numpy(self) -> np.dtype:
        """The real type, numbers only."""
        code = self.code.decode("latin1") if isinstance(self.code, bytes) else self.code
        dtype = np.dtype(str(code))
        if dtype.kind not in _NUMERIC or self.order not in ("<", ">", "=", "|"):
            raise ValueError(f"an array of type '{code}' is not numbers")
        return dtype.newbyteorder(self.order)


class _Array:
    """Stands for numpy.ndarray: filled by `__setstate__` with shape, type, order and bytes."""

    state: Any = None

    def __setstate__(self, state):
        self.state = state

    def tensor(self) -> Tensor:
        """The array as a tensor."""
        _, shape, dtype, fortran, data = self.state
        data = data.encode("latin1") if isinstance(data, str) else data
        array = np.frombuffer(data, dtype=dtype.numpy()).reshape(shape, order="F" if fortran else "C")
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


class _Scalar:
    def __init__(self, dtype, data):
        self.value = np.frombuffer(data, dtype=dtype.numpy())[0].item()


class _Unpickler(pickle.Unpickler):
    """Resolves the few names that arrays need to stand-ins made for this one load, and refuses all others."""

    def __init__(self, file):
        super().__init__(file, encoding="latin1")
        # Fresh classes for every load: whatever a file sets on them does not outlive the load.
        array, dtype, scalar = (type(base.__name__, (base,), {}) for base in (_Array, _DType, _Scalar))
        self._known = {
            ("numpy", "ndarray"): array,
            ("numpy", "dtype"): dtype,
            ("collections", "OrderedDict"): OrderedDict,
            ("_codecs", "encode"): _encode,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch.storage", "_load_from_bytes"): _load_storage,
        }
        for core in ("numpy.core.multiarray", "numpy._core.multiarray"):
            self._known[core, "_reconstruct"] = lambda *arguments: array()
            self._known[core, "scalar"] = scalar

    def find_class(self, module, name):
        """The stand-in for a name; everything unknown is refused."""
        if (module, name) not in self._known:
            raise pickle.UnpicklingError(f"it holds an object of {module}.{name}, which is code and not data")
        return self._known[module, name]

    def persistent_load(self, identifier):
        """Refuse references outside the file."""
        raise pickle.UnpicklingError("it refers to data outside of the file")


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Python 2 wrote bytes as text to be encoded."""
    if encoding not in ("latin1", "latin-1", "ascii", "utf-8"):
        raise ValueError(f"unknown encoding {encoding!r}")
    return text.encode(encoding)


def _load_storage(data: bytes):
    """A tensor's storage, itself a small file of torch."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _rebuild_tensor(storage, offset, size, stride, *_) -> Tensor:
    """A view of the storage; torch checks that it lies inside."""
    base = torch.empty(0, dtype=storage.dtype)
    return base.set_(compat.untyped(storage), offset, tuple(size), tuple(stride)).clone()


def _finish(value: object, depth: int) -> object:
    """Arrays as tensors, in nested dicts and lists."""
    if depth > 16:
        raise ValueError("nested too deeply")
    if isinstance(value, dict):
        return {key: _finish(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finish(item, depth + 1) for item in value]
    if isinstance(value, _Array):
        return value.tensor()
    return value.value if isinstance(value, _Scalar) else value


class Inert:
    """Accepts whatever a pickle hands to a class or function, keeps only an object's attributes, and calls nothing."""

    kept: object = None

    def __new__(cls, *arguments, **named):
        return super().__new__(cls)

    def __init__(self, *arguments, **named):
        pass

    def __setstate__(self, state):
        self.kept = state


def empty_dict(*arguments) -> dict:
    """Stands for `defaultdict(factory)`: the factory is dropped, the items that follow are kept."""
    return {}


_DICTS = (
    "fvcore.common.config.CfgNode",
    "yacs.config.CfgNode",
    "detectron2.config.config.CfgNode",
    "easydict.EasyDict",
    "addict.addict.Dict",
    "mmcv.utils.config.ConfigDict",
    "mmengine.config.config.ConfigDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
)
_OMEGACONF = (
    "dictconfig.DictConfig",
    "listconfig.ListConfig",
    "base.ContainerMetadata",
    "base.Metadata",
    "base.Node",
    "base.SCMode",
    "nodes.AnyNode",
    "nodes.StringNode",
    "nodes.IntegerNode",
    "nodes.FloatNode",
    "nodes.BooleanNode",
    "nodes.BytesNode",
    "nodes.PathNode",
    "nodes.EnumNode",
    "nodes.UnionNode",
    "nodes.ValueNode",
    "nodes.InterpolationResultNode",
)
_OBJECTS = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "typing.Any",
    "builtins.getattr",
    "builtins.dict",
    "builtins.list",
    "builtins.tuple",
    "builtins.int",
    "builtins.float",
    "builtins.str",
    "builtins.bool",
    "builtins.bytes",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib.PurePosixPath",
    "pathlib.Path",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "datetime.datetime",
    "datetime.timedelta",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    *(f"numpy.{part}" for part in ("ndarray", "dtype", "bool_", "float32", "float64", "int32", "int64")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *(f"numpy.dtypes.{name}DType" for name in ("Float32", "Float64", "Int32", "Int64", "Bool", "UInt8")),
    *(f"omegaconf.{name}" for name in _OMEGACONF),
)


def allow_list() -> list[Callable | tuple[Callable, str]]:
    """(stand-in, full name) pairs for `torch.serialization.safe_globals`."""
    return [
        *((OrderedDict, name) for name in _DICTS),
        (empty_dict, "collections.defaultdict"),
        *((Inert, name) for name in _OBJECTS),
    ]


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
        if checksums:
            check_archive(path)
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    if start.startswith(b"PK"):
        return _load_torch(path, mapped), {}
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8:
        return _load_safetensors(path)
    if _TORCH_LEGACY in start[:16]:
        return _load_torch(path), {}
    if start[:1] == b"\x80":
        return load_array_pickle(path), {}
    raise InputError(
        f"not a checkpoint: {path} ({_looks_like(start)}); "
        "expected a .pth, .pth.tar, .pt, .ckpt, .pkl or .safetensors file"
    )


def _looks_like(start: bytes) -> str:
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        return "it is a web page, probably an error page saved by a download; fetch it again"
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file itself with `git lfs pull`"
    if start.isascii():
        return "it is text"
    return "unknown kind of file"


def _load_torch(path: Path, mapped: bool = False) -> object:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(allow_list()):
            warnings.simplefilter("ignore")  # old files warn of typed storages; nothing a user can act on
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # noqa: BLE001 - a parser of untrusted bytes: any failure means a bad file
        raise InputError(f"not a readable checkpoint: {path} ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    """The telling part of torch's many-line messages."""
    text = " ".join(str(error).split())
    foreign = re.search(r"[Uu]nsupported (?:global: )?GLOBAL (\S+)", text)
    if foreign:
        return f"it holds an object of {foreign[1]}, which is code and not data; re-save it as tensors only"
    return text.split("WeightsUnpickler error: ")[-1][:160] or type(error).__name__


def _load_safetensors(path: Path) -> tuple[dict, dict]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})
    except Exception as error:  # noqa: BLE001 - as above
        raise InputError(f"not a readable safetensors file: {path} ({' '.join(str(error).split())[:160]})") from None


_MOST_LEAVES, _DEEPEST = 500_000, 24
_WRAPPERS = {"module", "_orig_mod", "model"}
_LONGEST_CONFIG = 1_000_000  # characters


@dataclass(frozen=True)
class Flat:
    """A file's content as one dict of leaves, and its settings by path.

    `content`: as read; `values`: dotted key without wrappers -> leaf; `raw`: the same key -> the key as it stands in
    the file. `module.` (DataParallel, DDP), `_orig_mod.` (torch.compile) and `model.` (outer modules) may sit anywhere
    in a key, in any nesting: no network calls a part of itself so.
    """

    content: object
    values: dict[str, object]
    raw: dict[str, str]

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
    """Flatten nested dicts and lists. Raises InputError if the file `path` holds no tensors or is nested absurdly."""
    leaves: list[tuple[str, object]] = []
    _walk(content, "", 0, leaves, path)
    values: dict[str, object] = {}
    raw: dict[str, str] = {}
    clashes = []
    for key, value in leaves:
        plain = unwrap(key)
        if plain in raw and (isinstance(value, Tensor) or isinstance(values[plain], Tensor)):
            clashes.append(f"'{raw[plain]}' and '{key}'")
        values[plain], raw[plain] = value, key
    if clashes:
        raise InputError(f"{path}: keys that differ only in wrappers: {'; '.join(clashes)}")
    flat = Flat(content, values, raw)
    if not flat.tensors:
        raise InputError(f"not a checkpoint: {path} holds no tensors")
    return flat


def unwrap(key: str) -> str:
    """A dotted key without the wrappers that DDP, torch.compile and outer modules put around it."""
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS) or key


def _walk(value: object, key: str, depth: int, leaves: list, path: str) -> None:
    if depth > _DEEPEST or len(leaves) > _MOST_LEAVES:
        raise InputError(f"not a checkpoint: {path} is nested too deeply or holds too many entries")
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    if isinstance(value, dict | list | tuple) and value:
        for name, item in children:
            _walk(item, f"{key}.{name}" if key else str(name), depth + 1, leaves, path)
    else:
        leaves.append((key, value))


def _under(value: object, path: Iterable[str]) -> object:
    for key in path:
        value = _plain(value)
        value = value.get(key) if isinstance(value, Mapping) else None
    return _plain(value)


def _plain(value: object) -> object:
    """A stand-in's own content: a Namespace's attributes, what an OmegaConf node holds."""
    for _ in range(4):  # a node in a node, and no longer: a stranger's file may hold circles
        if not isinstance(value, Inert):
            break
        kept = value.kept if isinstance(value.kept, dict) else {}
        value = kept.get("_content", kept.get("_val")) if "_metadata" in kept else kept
    return None if isinstance(value, Inert) else value


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
