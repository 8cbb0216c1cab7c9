"""What training and evaluation share: workers, the memory that they fill, and normalisation."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from pretrain.errors import InputError

PREFETCH = 2  # batches per worker
HELD = 2  # batches that the process itself holds while it takes the next one: the last one, and the one taken
SHARED = "/dev/shm"  # where Linux keeps shared memory


def batch_loader(dataset: Dataset, requests: Sequence, workers: int, batches: int, batch_bytes: int,
                 persistent: bool = False) -> DataLoader:
    """A loader whose items are whole batches: `dataset[request]` for each of `requests`, in order.

    At most `batches` of `batch_bytes` each. Raises InputError as `check_shared_memory` does.
    """
    check_shared_memory(workers, batch_bytes, most=batches)
    options = {"prefetch_factor": PREFETCH, "persistent_workers": persistent} if workers else {}
    return DataLoader(dataset, sampler=requests, batch_size=None, num_workers=workers, worker_init_fn=start_worker,
                      pin_memory=torch.cuda.is_available(), generator=torch.Generator(), **options)


def check_shared_memory(workers: int, item_bytes: int, *, held: int = HELD, most: int | None = None,
                        processes: int | None = None, key: str = "DATA.WORKERS") -> None:
    """Raise InputError where what loader workers have under way does not fit into the shared memory.

    A worker that finds it full dies of a bus error. Containers have 64 MB unless they are told otherwise.
    Items of `item_bytes` lie there, PREFETCH for each worker and `held` with the process, `most` at most; `processes`
    of this machine do the same (default: as the launcher says). `key` sets the number of workers.
    """
    def needed(workers: int) -> int:
        items = PREFETCH * workers + held
        return item_bytes * (items if most is None else min(items, most)) if workers else 0

    try:
        memory = os.statvfs(SHARED)
    except OSError:
        return
    processes = processes or int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    room = min(memory.f_blocks // processes, memory.f_bavail) * memory.f_frsize
    if needed(workers) <= room:
        return
    fitting = next(fewer for fewer in range(workers - 1, -1, -1) if needed(fewer) <= room)
    total = processes * needed(workers)
    raise InputError(f"{SHARED} has {room * processes / 1e6:.0f} MB of shared memory to spare, and {key} {workers} in "
                     f"{processes} process(es) fills up to {total / 1e6:.0f} MB: start the container with more (docker "
                     f"--shm-size={-(-2 * total // 2**30)}g), or set {key} {fitting}")


def start_worker(_: int = 0) -> None:
    """Make this process a loader worker: one thread, as its neighbours want the other cores."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def empty_images(count: int, size: int) -> Tensor:
    """Uninitialised uint8 [count, size, size, 3]; in a worker in shared memory, which saves the copy on its way out."""
    shape = (count, size, size, 3)
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(count * size * size * 3)
    return torch.tensor([], dtype=torch.uint8).set_(storage, 0, shape)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu", *,
              channels_last: bool = False) -> Tensor:
    """uint8 [N, 3, H, W] -> (images / 255 - mean) / std, float32 on the device."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    scale, shift = _constants(tuple(mean), tuple(std), torch.device(device))
    images = images.to(device, non_blocking=True)
    return images.to(torch.float32, memory_format=layout).mul_(scale).sub_(shift)


@functools.cache
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Factor and offset of the normalisation, [1, 3, 1, 1], kept on the device."""
    mean, std = (torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1) for values in (mean, std))
    return (1 / (255 * std)).to(device), (mean / std).to(device)
