"""A pickle of arrays and plain values (detectron2's `.pkl`), read by an unpickler that can build nothing else.

numpy's own unpickling functions are not called: an array is rebuilt from its recorded shape, type name and bytes.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

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
        # Fresh classes for every load: whatever a file sets on them is gone with it.
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
    return base.set_(storage._untyped_storage, offset, tuple(size), tuple(stride)).clone()


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
