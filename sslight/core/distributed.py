"""One process or many, the same code: every function here degrades to a no-op on one process."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from sslight.core import devices
from sslight.core.devices import Module
from sslight.core.errors import EXIT_BAD_INPUT
from sslight.core.processes import end_with_parent


def timeout() -> timedelta:
    """How long a process waits for the others before it gives up: SSLIGHT_TIMEOUT seconds, 600 by default."""
    return timedelta(seconds=float(os.environ.get("SSLIGHT_TIMEOUT", 600)))


def start(wanted: str = "auto") -> torch.device:
    """Join the process group that `torchrun` describes in the environment, if any; return this process's device.

    wanted: as the key DEVICE says. Raises InputError as sslight/core/devices.py does.
    """
    end_with_launcher()
    devices.prepare(wanted)
    device = devices.own_device()
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ and not dist.is_initialized():
        # gloo beside nccl: flags of the host travel without touching the device
        join_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return device


def join_group(backend: str) -> None:
    """Form the process group that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe.

    Raises InputError where two of its processes see one and the same GPU.
    """
    store, rank, world = next(dist.rendezvous("env://", timeout=timeout()))
    store.set_timeout(timeout())
    part = _own_part(store, rank, world)
    if "nccl" in backend:
        devices.check_not_shared(part, rank, world, devices.gpu_uuid())
    dist.init_process_group(backend, store=part, rank=rank, world_size=world, timeout=timeout())


def _own_part(store: dist.Store, rank: int, world: int) -> dist.Store:
    """A part of the store that only this start of the processes uses.

    After a restart by torchrun the addresses of the processes before still stand in the store, and whoever reads one
    before it is overwritten fails to connect. So rank 0 names a part, and tells each living process under a name that
    this process has just made up.
    """
    if rank:
        name = uuid.uuid4().hex
        store.set(f"request/{rank}", name)
        part = store.get(f"answer/{name}").decode()  # waits for rank 0
        store.set(f"seen/{part}/{rank}", "")
        return dist.PrefixStore(part, store)
    part, silent, end = uuid.uuid4().hex, set(range(1, world)), time.monotonic() + timeout().total_seconds()
    while silent:
        if time.monotonic() > end:
            raise dist.DistStoreError(f"ranks {sorted(silent)} did not come within {timeout().total_seconds():g} s")
        for other in sorted(silent):
            if store.check([f"request/{other}"]):
                store.set(f"answer/{store.get(f'request/{other}').decode()}", part)
        silent = {other for other in silent if not store.check([f"seen/{part}/{other}"])}
        time.sleep(0.02)
    return dist.PrefixStore(part, store)


def end_with_launcher() -> None:
    """Have this process told to stop (SIGTERM) when its `torchrun` dies: else it would train on, holding the run.

    Called by every process of a group at its start.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and talks to the person."""
    return rank() == 0


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum over all ranks, in place, without gradient."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def all_gather(tensor: Tensor) -> Tensor:
    """Concatenation over all ranks along the first dimension, in rank order, without gradient; equal shapes."""
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank (through host memory, without device synchronisation, but for NCCL alone)."""
    if world_size() == 1:
        return flag
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return bool(all_reduce_sum(torch.tensor(int(flag), device=device)).item())


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """The main process runs the body, which leaves files, before the others do; where it fails, they leave."""
    if is_main():
        failed = True
        try:
            yield
            failed = False
        finally:
            any_rank(failed)
    else:
        if any_rank(False):
            sys.exit(EXIT_BAD_INPUT)  # the main process says why
        yield


def convert_sync_batchnorm(module: Module) -> Module:
    """SyncBN where torch supports it: several processes on GPUs. Elsewhere the module is returned as it is.

    By timm's converter: torch's own replaces timm's norms with activation by norms without.
    """
    if world_size() > 1 and torch.cuda.is_available():
        from timm.layers import convert_sync_batchnorm  # takes a second to import, which few users of this module need

        converted: Any = convert_sync_batchnorm(module)
        return converted
    return module


def my_batches(count: int, batch_size: int) -> np.ndarray:
    """This rank's share of 0 .. count - 1: neighbouring whole batches, the same ones for any number of ranks."""
    batches = -(-count // batch_size)
    first, last = (batches * (rank() + i) // world_size() for i in (0, 1))
    return np.arange(first * batch_size, min(last * batch_size, count))


def gather_rows(rows: Tensor) -> Tensor:
    """Every rank's rows [n_r, ...], one after the other in rank order, on every rank; the n_r may differ."""
    if world_size() == 1:
        return rows
    counts = all_gather(torch.tensor([len(rows)], device=rows.device)).tolist()
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = all_gather(padded).view(world_size(), max(counts), *rows.shape[1:])
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])
