"""A checkpoint's tensors made plain: dense float32 on the CPU (counters: int64), each in memory of its own."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from pretrain.errors import InputError

COUNTER = "num_batches_tracked"


def plain_tensors(state: dict[str, Tensor], source: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors as every framework holds them, and notes on what was not so in the file.

    Half precision widens exactly; float64 is rounded, as loading it into any of the frameworks does. Raises InputError
    naming every tensor that holds no weights: integers, complex numbers, sparse or quantised ones.
    """
    odd = [f"'{key}' ({_kind(value)})" for key, value in state.items() if not _usable(key, value)]
    if odd:
        raise InputError(f"{source}: weights are dense floating-point numbers, but not {', '.join(odd)}")
    types = Counter(str(value.dtype).removeprefix("torch.") for key, value in state.items()
                    if not key.endswith(COUNTER) and value.dtype is not torch.float32)
    notes = [f"{count} tensors are {name} in the file; written as float32"
             f"{', rounded' if name == 'float64' else ', the same numbers'}" for name, count in sorted(types.items())]
    taken: set[int] = set()
    return {key: _owned(value.detach().to(torch.int64 if key.endswith(COUNTER) else torch.float32), taken)
            for key, value in state.items()}, notes


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
