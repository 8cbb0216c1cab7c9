"""Pickles of strangers as plain data: nothing of theirs is imported, called or built.

A pickle is a small program. `Interpreter` runs it on names alone: whatever the file would import is a `Name`, whatever
it would call or build is an `Inert` that keeps what was handed over, under any name, so that no list of allowed names
is needed. The names that tensors, arrays and plain containers are written with (`_BUILDERS`) have functions of this
module for them, which build from checked numbers. No object that the file can change outlives the load.

`load_torch_zip`, `load_torch_legacy` and `load_pickle` read the three formats that are pickles; torch.load, torch.jit,
tarfile and the pickle module's own way of building objects have no part in it.
"""

from __future__ import annotations

import io
import math
import re
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from sslight.core import compat

_NUMERIC = "fiub"  # of numpy: floats, signed and unsigned integers, booleans
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
    "QInt8Storage": torch.int8,
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
}
_Find = Callable[[str, torch.dtype, int], Tensor]
_SPARE = 2**28  # bytes that a small file's tensors may take beyond eight times the file, e.g. expanded ones
_LONGEST_INTEGER = 8192  # bits
_MOST_AXES = 64
_LONGEST_KEY = 200  # of a dict, where it is no text
_RENAMED = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "numpy._core.multiarray": "numpy.core.multiarray",
    "numpy._core.numeric": "numpy.core.numeric",
    "pathlib._local": "pathlib",
    "torch.tensor": "torch._tensor",
}


class Name(str):
    """What a file would import, as `module.name`: a class, a function, a type of numbers."""


class Inert:
    """What a file would call or build, as data: `name` of the class or function and what was handed to it.

    `arguments`, `named`: of the constructor or call; `entries`, `items`: appended and set; `state`: the attributes.
    """

    __slots__ = ("arguments", "entries", "items", "name", "named", "state")

    def __init__(self, name: str, arguments: tuple = (), named: dict | None = None):
        self.name, self.arguments, self.named = name, arguments, named
        self.items: dict | None = None
        self.entries: list | None = None
        self.state: object = None

    @property
    def attributes(self) -> dict:
        """The attributes by name, of `__slots__`, too."""
        states = self.state if isinstance(self.state, tuple) and len(self.state) == 2 else (self.state,)
        return {key: value for state in states if isinstance(state, dict) for key, value in state.items()}

    @property
    def content(self) -> object:
        """What the object stands for: its items, entries or attributes, an enum's or wrapper's value; else None."""
        attributes = self.attributes
        if "_metadata" in attributes:  # OmegaConf
            return attributes.get("_content", attributes.get("_val"))
        if self.name == "functools.partial" and isinstance(self.state, tuple) and len(self.state) == 4:
            function, _, named, _ = self.state
            return {"func": function, **(named if isinstance(named, dict) else {})}
        if self.items or self.entries or attributes:
            return self.items or self.entries or attributes
        if self.name == "builtins.getattr" and len(self.arguments) == 2:  # a member of an enum, by its name
            return self.arguments[1]
        return self.arguments[0] if len(self.arguments) == 1 else self.named

    @property
    def module_tensors(self) -> dict | None:
        """Of a pickled `nn.Module`, its parameters, persistent buffers and submodules by name; None of all else."""
        for body in (self.attributes, *self.arguments[:1]):  # the argument: a torch.fx.GraphModule's
            names = ("_parameters", "_buffers", "_modules") if isinstance(body, dict) else ()
            held = [body[name] for name in names if isinstance(body.get(name), dict)]
            if len(held) == 3:
                hidden = body.get("_non_persistent_buffers_set")
                absent = set(hidden) if isinstance(hidden, list) and all(isinstance(key, str) for key in hidden) else ()
                buffers = {key: value for key, value in held[1].items() if key not in absent}
                tensors = {**held[0], **buffers, **held[2]}
                return {key: value for key, value in tensors.items() if value is not None}
        return None


def plain(value: object) -> object:
    """The data that a value stands for: of an `Inert` its content, down to a value of plain type; else None."""
    for _ in range(4):  # an object in an object, and no longer: a stranger's file may hold circles
        if not isinstance(value, Inert):
            break
        value = value.content
    return None if isinstance(value, Inert) else value


class _Storage:
    """The numbers below tensors, flat, as `dtype`."""

    def __init__(self, flat: Tensor, dtype: torch.dtype):
        self.flat, self.dtype = flat, dtype


class _Bounded:
    """A binary file of which no more is asked for than there is: a length is the file's word, and may lie."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.size, self.readline = file, size, file.readline

    def read(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise EOFError("it is truncated")
        return self.file.read(count)


def _of_integers(load: Callable) -> Callable:
    """An instruction that makes an integer, without those that take forever to print."""

    def limited(run: Interpreter) -> None:
        load(run)
        if run.stack[-1].bit_length() > _LONGEST_INTEGER:
            raise UnpicklingError("it is damaged: an integer of thousands of digits")

    return limited


class Interpreter(compat.python_unpickler()):  # type: ignore[misc]  # torch reads with `weights_only` as slowly
    """Runs one pickle of `file`, of `size` bytes. `find_storage(key, dtype, count)` gives a storage's flat numbers.

    whole: bytes of the file that the pickle is a part of; `outer`: what reads the file in which this one lies.
    """

    def __init__(
        self,
        file: BinaryIO,
        size: int,
        find_storage: _Find | None = None,
        whole: int = 0,
        outer: Interpreter | None = None,
    ):
        super().__init__(_Bounded(file, size), encoding="latin1")
        self.find_storage, self.outer = find_storage, outer
        self.depth: int = outer.depth + 1 if outer else 0
        self.room = 8 * max(size, whole) + _SPARE
        self.unfilled: dict[int, Tensor] = {}
        self.inner: dict[int, tuple[bytes, object]] = {}

    def find_class(self, module: str, name: str) -> Name:
        """A global is its name, a module's old and new names being one."""
        self.spend(len(module) + len(name))
        return Name(f"{_RENAMED.get(module, module)}.{name}")

    def persistent_load(self, identifier: object) -> object:
        """A storage, or a class that torch's old format wrote with its source."""
        if not isinstance(identifier, tuple) or not identifier:
            raise UnpicklingError("it refers to data outside of the file")
        if identifier[0] == "module":
            return identifier[1]
        if identifier[0] != "storage" or len(identifier) < 5 or not self.find_storage:
            raise UnpicklingError("it refers to data outside of the file")
        _, kind, key, _, count, *view = identifier
        dtype = _STORAGES.get(kind.rpartition(".")[2]) if isinstance(kind, Name) else None
        if dtype is None or not isinstance(key, str) or not _sizes(count):
            raise UnpicklingError("a storage is of no known kind")
        flat = self.find_storage(key, dtype, count)
        if view and view[0]:
            _, start, length = view[0]
            if not _sizes(start, length) or start + length > flat.numel():
                raise UnpicklingError("a storage's view lies outside of it")
            flat = flat[start : start + length]
        return _Storage(flat, dtype)

    def spend(self, count: int) -> None:
        """Count bytes that are built. Raises UnpicklingError where they are absurdly many for the file."""
        if self.outer:
            self.outer.spend(count)
        self.room -= count
        if self.room < 0:
            raise UnpicklingError("its tensors would take many times the room of the file")

    def made(self, what: object, arguments: object, named: object = None) -> object:
        """What calling `what` gives: data, without calling it."""
        if not isinstance(what, Name | Inert) or not isinstance(arguments, tuple):
            raise UnpicklingError("it is damaged: it calls what is no name")
        builder = _BUILDERS.get(what) if isinstance(what, Name) else None
        if builder is None:
            name = what if isinstance(what, Name) else what.name
            return Inert(str(name), arguments, named if isinstance(named, dict) else None)
        value = builder(self, *arguments)
        self.spend(0 if isinstance(value, Tensor) else sys.getsizeof(value))
        return value

    # The instructions that would call, build or hash something. All others make numbers, texts, lists and dicts.

    def _reduce(self):
        arguments = self.stack.pop()
        self.stack[-1] = self.made(self.stack[-1], arguments)

    def _new_object_named(self):
        named, arguments = self.stack.pop(), self.stack.pop()
        self.stack[-1] = self.made(self.stack[-1], arguments, named)

    def _instantiate(self, what, arguments):  # of the instructions INST and OBJ
        self.append(self.made(what, tuple(arguments)))

    def _build(self):
        state, instance = self.stack.pop(), self.stack[-1]
        if isinstance(instance, Inert):
            instance.state = state
        elif id(instance) in self.unfilled:
            _fill(self, instance, state)
        # Else attributes of a container, such as the `_metadata` of a state dict: no part of the data.

    def _extend(self, values: list):
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.entries = target.entries if target.entries is not None else []
            target = target.entries
        if not isinstance(target, list):
            raise UnpicklingError("it is damaged: it appends to what is no list")
        target.extend(values)

    def _append(self):
        value = self.stack.pop()
        self._extend([value])

    def _appends(self):
        self._extend(self.pop_mark())

    def _set(self, pairs: list):
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.items = target.items if target.items is not None else {}
            target = target.items
        if not isinstance(target, dict):
            raise UnpicklingError("it is damaged: it sets items of what is no dict")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[_key(key, len(target))] = value

    def _set_item(self):
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _set_items(self):
        self._set(self.pop_mark())

    def _dict(self):
        pairs = self.pop_mark()
        self.append({})
        self._set(pairs)

    def _frozen_set(self):
        self.append(self.pop_mark())

    def _empty_set(self):
        self.append([])

    def _byte_array(self):
        (count,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(count))

    def _refused(self):
        raise UnpicklingError("it names classes by numbers of another program's registry")

    dispatch = {
        **compat.python_unpickler().dispatch,
        **{
            ord(code): function
            for code, function in {
                "R": _reduce,
                "\x81": _reduce,
                "\x92": _new_object_named,
                "b": _build,
                "a": _append,
                "e": _appends,
                "\x90": _appends,  # to a set
                "s": _set_item,
                "u": _set_items,
                "d": _dict,
                "\x8f": _empty_set,
                "\x91": _frozen_set,
                "\x96": _byte_array,
                "\x82": _refused,  # EXT1, EXT2, EXT4
                "\x83": _refused,
                "\x84": _refused,
            }.items()
        },
        **{ord(code): _of_integers(compat.python_unpickler().dispatch[ord(code)]) for code in "IL\x8b"},
    }


def _key(key: object, number: int) -> Any:
    """A dict's key of plain type. Any other becomes a text: hashing and comparing it may take forever."""
    if isinstance(key, str | int | float | None):
        return key
    parts = key if isinstance(key, tuple) and len(key) <= _LONGEST_KEY else (key,)
    if all(isinstance(part, int | float | None) or _short(part) for part in parts):
        return key
    return f"<{key.name[:_LONGEST_KEY] if isinstance(key, Inert) else type(key).__name__} {number}>"


def _short(value: object) -> bool:
    return isinstance(value, str | bytes) and len(value) <= _LONGEST_KEY


def _sizes(*numbers: object) -> bool:
    return all(type(number) is int and number >= 0 for number in numbers)


def _tensor(run: Interpreter, storage, offset, size, stride, *rest, dtype: torch.dtype | None = None) -> Tensor:
    """A view of a storage, inside of it."""
    if not isinstance(storage, _Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise UnpicklingError("a tensor is damaged")
    dtype = dtype or storage.dtype
    flat = storage.flat.view(dtype)
    if not _sizes(offset, *size, *stride) or len(size) != len(stride) or len(size) > _MOST_AXES:
        raise UnpicklingError("a tensor's shape is damaged")
    count = math.prod(size)
    run.spend(count * dtype.itemsize)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if count and last >= flat.numel():
        raise UnpicklingError("a tensor lies outside of its storage")
    if not count:
        return torch.empty(size, dtype=dtype)
    base = flat.storage_offset()
    value = torch.empty(0, dtype=dtype).set_(flat.untyped_storage(), base + offset, size, stride)
    if rest[2:] and isinstance(rest[2], dict) and any(rest[2].values()):
        raise UnpicklingError("a tensor is kept as another's negative or conjugate; save its clone()")
    return value


def _tensor_3(run: Interpreter, storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None) -> Tensor:
    """Of a type that has no storage class of its own, which is named by `dtype`."""
    return _tensor(run, storage, offset, size, stride, requires_grad, hooks, metadata, dtype=_torch_type(dtype))


def _meta_tensor(run: Interpreter, dtype, size, stride, *_) -> Tensor:
    """A tensor without numbers."""
    if not isinstance(size, tuple) or not _sizes(*size) or len(size) > _MOST_AXES:
        raise UnpicklingError("a tensor's shape is damaged")
    return torch.empty(size, dtype=_torch_type(dtype), device="meta")


def _torch_type(name: object) -> torch.dtype:
    dtype = getattr(torch, name.removeprefix("torch."), None) if isinstance(name, Name) else None
    if not isinstance(dtype, torch.dtype):
        raise UnpicklingError("a tensor is of no known type")
    return dtype


def _inner_file(run: Interpreter, data: object) -> object:
    """A storage, which pickles without torch's own format hold as a file of torch within."""
    if not isinstance(data, bytes) or run.depth > 4:
        raise UnpicklingError("a storage is damaged")
    if id(data) not in run.inner:
        load = load_torch_zip if data.startswith(b"PK") else load_torch_legacy
        run.inner[id(data)] = data, load(io.BytesIO(data), len(data), outer=run)
    return run.inner[id(data)][1]


def _numpy_type(dtype: object) -> np.dtype | None:
    """The type that a pickled numpy.dtype describes; None unless it is one of numbers."""
    if not isinstance(dtype, Inert) or dtype.name != "numpy.dtype" or not dtype.arguments:
        raise UnpicklingError("an array's type is damaged")
    code, state = dtype.arguments[0], dtype.state
    code = code.decode("latin1") if isinstance(code, bytes) else code
    order: Any = state[1] if isinstance(state, tuple) and len(state) > 1 else "="
    if not isinstance(code, str) or not re.fullmatch(f"[{_NUMERIC}]\\d+", code) or order not in ("<", ">", "=", "|"):
        return None
    return np.dtype(code).newbyteorder(order)


def _array(run: Interpreter, data: object, dtype: object, shape: object, order: object) -> Tensor:
    """An array as a tensor with memory of its own. One of texts or objects is empty: no part of a network."""
    kind = _numpy_type(dtype)
    if kind is None:
        return torch.empty(0, dtype=torch.bool)
    data = data.encode("latin1") if isinstance(data, str) else data
    shape = (shape,) if isinstance(shape, int) else shape
    if not isinstance(data, bytes) or not isinstance(shape, tuple) or not _sizes(*shape):
        raise UnpicklingError("an array is damaged")
    run.spend(len(data))
    array = np.frombuffer(data, dtype=kind).reshape(shape, order="F" if order in (True, "F") else "C")
    return torch.from_numpy(np.array(array, dtype=kind.newbyteorder("="), order="C"))


def _unfilled_array(run: Interpreter, *_) -> Tensor:
    """An array, whose numbers follow as its state."""
    value = torch.empty(0, dtype=torch.bool)
    run.unfilled[id(value)] = value
    return value


def _fill(run: Interpreter, value: Tensor, state: object) -> None:
    """Give an array its numbers."""
    if not isinstance(state, tuple) or len(state) != 5:
        raise UnpicklingError("an array is damaged")
    _, shape, dtype, order, data = state
    value.data = _array(run, data, dtype, shape, order)


def _scalar(run: Interpreter, dtype, data=b"", *_) -> object:
    """A number of numpy's; None for what is none."""
    data = data.encode("latin1") if isinstance(data, str) else data
    kind = _numpy_type(dtype)
    return np.frombuffer(data, dtype=kind)[0].item() if kind and isinstance(data, bytes) else None


def _encoded(run: Interpreter, text, encoding="latin1") -> bytes:
    """Python 2 and old protocols write bytes as text to be encoded."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "ascii", "utf-8"):
        raise UnpicklingError("its bytes are damaged")
    return text.encode(encoding)


def _dict(run: Interpreter, *arguments) -> dict:
    """A dict of any class. A `defaultdict`'s factory is dropped."""
    given = arguments[-1] if arguments else ()
    if isinstance(given, dict):
        return dict(given)
    pairs = given if isinstance(given, list | tuple) else ()
    items: dict = {}
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise UnpicklingError("a dict is damaged")
        items[_key(pair[0], len(items))] = pair[1]
    return items


def _list(run: Interpreter, values=(), *_) -> list:
    return list(values) if isinstance(values, list | tuple | dict) else []


def _path(run: Interpreter, *parts) -> str:
    texts = [part for part in parts if isinstance(part, str)]
    run.spend(sum(map(len, texts)))
    return "/".join(texts).replace("//", "/", 1)


def _old_object(run: Interpreter, what, base=None, state=None, *_) -> object:
    """What protocols 0 and 1 write for an object of a class of one's own."""
    value = run.made(what, ())
    if isinstance(value, dict) and isinstance(state, dict):
        value.update(state)
    run.spend(sys.getsizeof(state))
    if isinstance(value, Inert):
        value.items = dict(state) if isinstance(state, dict) else None
        value.entries = list(state) if isinstance(state, list | tuple) else None
    return value


def _first(run: Interpreter, data, *_) -> object:
    """A tensor's subclass, or what adds nothing to its numbers."""
    return data


_BUILDERS: Mapping[str, Callable] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_3,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta_tensor,
    "torch.storage._load_from_bytes": _inner_file,
    **dict.fromkeys(
        [
            "torch._utils._rebuild_parameter",
            "torch._utils._rebuild_parameter_with_state",
            "torch._utils._rebuild_device_tensor_from_numpy",
            "torch._utils._rebuild_device_tensor_from_cpu_tensor",
            "torch._utils._rebuild_xla_tensor",
            "torch.nn.parameter.Parameter",
            "torch.nn.parameter.Buffer",
        ],
        _first,
    ),
    **dict.fromkeys(
        ["torch._tensor._rebuild_from_type", "torch._tensor._rebuild_from_type_v2"],
        lambda run, function, kind, arguments, *_: run.made(function, arguments),
    ),
    "torch.Size": lambda run, sizes=(): tuple(sizes) if isinstance(sizes, list | tuple) else (),
    "torch.device": lambda run, *parts: ":".join(str(part) for part in parts if _short(part) or type(part) is int),
    "numpy.core.multiarray._reconstruct": _unfilled_array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _array,
    "_codecs.encode": _encoded,
    "copyreg.__newobj__": lambda run, what, *arguments: run.made(what, arguments),
    "copyreg.__newobj_ex__": lambda run, what, arguments, named: run.made(what, arguments, named),
    "copyreg._reconstructor": _old_object,
    **{f"collections.{kind}": _dict for kind in ("OrderedDict", "defaultdict", "Counter")},
    "builtins.dict": _dict,
    "collections.deque": _list,
    **{f"builtins.{kind}": _list for kind in ("set", "frozenset", "list")},
    **{f"pathlib.{kind}Path": _path for kind in ("", "Pure", "Posix", "PurePosix", "Windows", "PureWindows")},
}


def load_pickle(file: BinaryIO, size: int) -> object:
    """The content of a pickle that no torch.save wrote, arrays as tensors."""
    return Interpreter(file, size).load()


_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def load_torch_legacy(file: BinaryIO, size: int, *, outer: Interpreter | None = None) -> object:
    """The content of a file in torch's format before zip files: pickles, then the numbers of all storages."""
    for expected in (_MAGIC, _PROTOCOL):
        if Interpreter(file, size).load() != expected:
            raise UnpicklingError("it is damaged: torch's number is missing")
    Interpreter(file, size).load()  # the machine's sizes of integers
    storages: dict[str, Tensor] = {}
    left = size

    def find(key: str, dtype: torch.dtype, count: int) -> Tensor:
        nonlocal left
        if key not in storages:
            left -= count * dtype.itemsize
            if left < 0:
                raise EOFError("it is truncated, or a storage's size is wrong")
            storages[key] = torch.empty(count, dtype=dtype)  # filled below, where the file has its numbers
        if storages[key].dtype is not dtype or storages[key].numel() != count:
            raise UnpicklingError(f"storage {key} is described in two ways")
        return storages[key]

    content = Interpreter(file, size, find, outer=outer).load()
    keys = Interpreter(file, size).load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or storages.keys() - set(keys):
        raise UnpicklingError("it lacks storages")
    for key in keys:
        (count,) = struct.unpack("<q", _Bounded(file, size).read(8))
        if key not in storages or count != storages[key].numel():
            raise UnpicklingError(f"storage {key} has another size than its tensors say")
        _read_into(file, storages[key])
    return content


def load_torch_zip(
    file: BinaryIO, size: int, *, mapped: Path | None = None, outer: Interpreter | None = None
) -> object:
    """The content of a zip file that torch.save wrote. `mapped`: the file's path; its tensors stay on the disk."""
    whole = torch.UntypedStorage.from_file(str(mapped), False, size) if mapped else None
    with zipfile.ZipFile(file) as archive:
        records = {info.filename: info for info in archive.infolist()}
        folder = next(iter(records), "").split("/")[0]
        if records and all(name.endswith(".npy") for name in records):
            raise UnpicklingError(
                "it holds NumPy arrays (.npz), as JAX's ViTs are released; name timm's copy as timm:NAME"
            )
        if f"{folder}/data.pkl" not in records:
            raise UnpicklingError("it is a zip file that torch.save did not write; if it is packed, unpack it")
        if records[f"{folder}/data.pkl"].compress_type != zipfile.ZIP_STORED:
            raise UnpicklingError("it is compressed, which torch.save never does")
        program = archive.read(f"{folder}/data.pkl")
        swapped = f"{folder}/byteorder" in records and archive.read(f"{folder}/byteorder") != sys.byteorder.encode()
    storages: dict[str, Tensor] = {}

    def find(key: str, dtype: torch.dtype, count: int) -> Tensor:
        if key not in storages:
            info = records[f"{folder}/data/{key}"]
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != count * dtype.itemsize:
                raise UnpicklingError(f"storage {key} has another size than its tensors say")
            file.seek(info.header_offset)
            name, extra = struct.unpack("<26x2H", file.read(30))
            start = info.header_offset + 30 + name + extra
            if whole is None or not count:
                file.seek(start)
                storages[key] = _read_into(file, torch.empty(info.file_size, dtype=torch.uint8))
            else:
                part = whole[start : start + info.file_size]
                storages[key] = torch.empty(0, dtype=torch.uint8).set_(part, 0, (info.file_size,), (1,))
            if swapped:
                storages[key] = storages[key].view(-1, dtype.itemsize).flip(1).flatten()
        return storages[key].view(dtype)

    return Interpreter(io.BytesIO(program), len(program), find, whole=size, outer=outer).load()


def _read_into(file: BinaryIO, flat: Tensor) -> Tensor:
    """Fill a flat tensor with the bytes that follow."""
    view = flat.view(torch.uint8).numpy()
    if file.readinto(view.data) != view.nbytes:  # type: ignore[attr-defined]
        raise EOFError("it is truncated")
    return flat
