"""A checkpoint as one flat dict: dotted key -> value, wrappers removed.

`module.` (DataParallel, DDP), `_orig_mod.` (torch.compile) and `model.` (outer modules) may sit anywhere in a key, in
any nesting: no network calls a part of itself so. Families are recognised on what is left.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from sslight.core.errors import InputError

_MOST_LEAVES, _DEEPEST = 500_000, 24
_WRAPPERS = {"module", "_orig_mod", "model"}


@dataclass(frozen=True)
class Flat:
    """`values`: dotted key without wrappers -> leaf; `raw`: the same key -> the key as it stands in the file."""

    values: dict[str, object]
    raw: dict[str, str]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The leaves that are tensors."""
        return {key: value for key, value in self.values.items() if isinstance(value, Tensor)}


def flatten(data: object, path: str) -> Flat:
    """Flatten nested dicts and lists. Raises InputError if the file `path` holds no tensors or is nested absurdly."""
    leaves: list[tuple[str, object]] = []
    _walk(data, "", 0, leaves, path)
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
    if not any(isinstance(value, Tensor) for value in values.values()):
        raise InputError(f"not a checkpoint: {path} holds no tensors")
    return Flat(values, raw)


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
