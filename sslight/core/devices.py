"""The device that a process computes on: a GPU of its own where there are GPUs, in true FP32, else the CPU."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from sslight.core.errors import InputError

Module = TypeVar("Module", bound=nn.Module)
CHOICES = ("auto", "cpu")  # what the key DEVICE may say: a GPU where there is one, or the CPU
HIDING = ("", "-1", "NoDevFiles")  # how CUDA_VISIBLE_DEVICES begins where it shows no GPU; the last is SLURM's
LAUNCHERS = ("LOCAL_WORLD_SIZE", "SLURM_LOCALID", "CUDA_VISIBLE_DEVICES")  # set where each process may get a GPU
CPU = "or mean the CPU: DEVICE cpu, or CUDA_VISIBLE_DEVICES= in front of a command without that key"


def check(wanted: str = "auto", processes: int = 1) -> None:
    """Look whether so many processes of this machine can compute on `wanted`, one of CHOICES; nothing is changed.

    Raises InputError where there are GPUs that torch cannot use (it only warns, and computes on the CPU), or fewer than
    processes. A machine without GPUs shares its CPU among any number.
    """
    if wanted not in CHOICES:
        raise InputError(f"DEVICE '{wanted}': use {' or '.join(CHOICES)}")
    if wanted == "cpu" or _hidden():
        return
    fault = "" if torch.cuda.is_available() else _fault()
    if fault:
        raise InputError(
            f"this machine's GPUs cannot be used: {fault}; see to the driver (this torch needs one for "
            f"CUDA {torch.version.cuda}) and to CUDA_VISIBLE_DEVICES, {CPU}"
        )
    count = torch.cuda.device_count()
    if 0 < count < processes:
        raise InputError(f"{processes} processes for {count} GPU(s): start one process per GPU, {CPU}")


def prepare(wanted: str = "auto", processes: int = 1) -> None:
    """Make this process ready for `wanted`, before it or a framework asks for a device.

    The CPU is chosen by hiding the GPUs, from the frameworks and from processes started here, too. On GPUs FP32 is
    FP32: cuDNN would round the factors of its convolutions to TF32's 10 bits. Raises InputError as `check` does.
    """
    check(wanted, processes)
    if wanted == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Afterwards what `prepare` sets is as it was before, for whatever else this process computes."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    flags: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    tf32 = [flag.allow_tf32 for flag in flags]
    try:
        yield
    finally:
        for flag, before in zip(flags, tf32, strict=True):
            flag.allow_tf32 = before
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        os.environ.update({} if hidden is None else {"CUDA_VISIBLE_DEVICES": hidden})


def channels_last(module: Module) -> Module:
    """The module itself, its convolutions' weights from now on in the memory layout [N, H, W, C]."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's annotations lack it


def own_device() -> torch.device:
    """This process's GPU, which becomes torch's current one, or the CPU where no GPU can be seen.

    GPU number LOCAL_RANK; number 0 where a launcher (srun --gpus-per-task 1) shows every process a single one, which
    `check_not_shared` then compares. Raises InputError where there are more processes than GPUs, or the GPU is too old.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() and not _hidden() else 0
    if not count:
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", 0))
    if local >= count and not (count == 1 and any(name in os.environ for name in LAUNCHERS)):
        raise InputError(
            f"process {local} (LOCAL_RANK, counted from 0) of this machine finds no GPU of its own, as it "
            f"sees {count}: start one process per GPU, e.g. torchrun --nproc_per_node {count}"
        )
    device = torch.device("cuda", local if local < count else 0)
    _check_capability(device)
    torch.cuda.set_device(device)
    return device


def current() -> list[int] | None:
    """DistributedDataParallel's `device_ids`: torch's current GPU; None on the CPU."""
    return [torch.cuda.current_device()] if torch.cuda.is_available() else None


def check_not_shared(store: dist.Store, rank: int, world: int, gpu: str) -> None:
    """Compare the GPUs of a group through its store; `gpu` is this process's UUID.

    Raises InputError in the processes that see one and the same: NCCL cannot serve them.
    """
    store.set(f"gpu/{rank}", gpu)
    same = [other for other in range(world) if store.get(f"gpu/{other}").decode() == gpu]
    store.set(f"compared/{rank}", "")
    if rank == 0:  # whose end may end the store
        store.wait([f"compared/{other}" for other in range(world)])
    if len(same) > 1 and gpu.strip("GPU-0"):  # a runtime that does not tell leaves zeros
        raise InputError(
            f"ranks {', '.join(map(str, same))} see one and the same GPU ({gpu}): start one process per "
            "GPU, or show each its own (srun --gpus-per-task 1)"
        )


def gpu_uuid() -> str:
    """The UUID of torch's current GPU."""
    return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)


def _hidden() -> bool:
    """Whether CUDA_VISIBLE_DEVICES says that no GPU is to be used."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "all").split(",")[0].strip() in HIDING


def _fault() -> str:
    """Why torch finds no GPU where there is one or a driver; an empty string where there is neither."""
    there = any(os.access(file, os.R_OK | os.W_OK) for file in glob.glob("/dev/nvidia[0-9]*"))
    try:
        torch.cuda.init()
        reason = "torch finds none"
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
        reason = str(error).splitlines()[0].split(". Please ")[0]
    absent = reason.startswith(
        (
            "Found no NVIDIA driver",
            "No CUDA GPUs",
            "Torch not compiled",
            "torch finds none",
            "Cannot re-initialize CUDA in forked",
        )
    )  # the last says nothing about GPUs
    return "" if absent and not there else reason


def _check_capability(device: torch.device) -> None:
    """Raise InputError for a GPU older than all that torch was compiled for: its first kernel would fail."""
    have = torch.cuda.get_device_capability(device)
    built = [int(name.removeprefix("sm_")) for name in torch.cuda.get_arch_list() if name.removeprefix("sm_").isdigit()]
    if built and 10 * have[0] + have[1] < min(built):
        raise InputError(
            f"{torch.cuda.get_device_name(device)} has compute capability {have[0]}.{have[1]}, and this "
            f"torch needs {min(built) / 10:g}: use a newer GPU or an older torch, {CPU}"
        )
