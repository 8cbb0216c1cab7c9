"""A pickle of arrays and plain values (detectron2's `.pkl`), read by an unpickler that can build nothing else.

numpy's own unpickling functions are not called: an array is rebuilt from its recorded shape, type name and bytes.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pretrain.errors import InputError

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
        self.code, self.order = code, "="

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

    state = None

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
        self._known = {("numpy", "ndarray"): array, ("numpy", "dtype"): dtype,
                       ("collections", "OrderedDict"): OrderedDict, ("_codecs", "encode"): _encode,
                       ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
                       ("torch.storage", "_load_from_bytes"): _load_storage}
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
