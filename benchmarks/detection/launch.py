"""A detector's training on several processes, one per GPU: of this machine, or of many under torchrun or srun.

`--num-gpus N` spreads one machine's processes itself. On many machines the same command is started once per GPU:

    torchrun --nnodes 2 --nproc_per_node 8 ... -m sslight bench coco --launcher torchrun ...
    srun --nodes 2 --ntasks-per-node 8 --gpus-per-node 8 sslight bench coco --launcher slurm ...

mmengine ("pytorch", "slurm") and detectron2 (its process groups) take over the group that `join` forms. Without GPUs
the processes talk through gloo.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist

from sslight.core import devices, distributed
from sslight.core.errors import EXIT_BAD_INPUT, EXIT_STOPPED, InputError, Stopped
from sslight.core.processes import handle_stop_signals, run_command, second_ends

NEEDED = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    "slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_JOB_NODELIST"),
}
START = {"torchrun": "torchrun --nproc_per_node GPUS", "slurm": "srun --ntasks-per-node GPUS"}
FIRST_PORT, PORTS = 20000, 20000  # a job's port is drawn from these by its number


def join(launcher: str, num_gpus: int = 1) -> int:
    """Join the process group that the launcher's environment describes; returns its size (1 for "none").

    num_gpus: the option of that name, which must not contradict the launcher.
    """
    if launcher == "none":
        return 1
    distributed.end_with_launcher()
    missing = [name for name in NEEDED[launcher] if name not in os.environ]
    if missing:
        raise InputError(
            f"--launcher {launcher}, but {missing[0]} is not set: start the command with "
            f"`{START[launcher]} ...`, one process per GPU, or use --num-gpus on one machine"
        )
    if launcher == "slurm":
        os.environ.update(from_slurm(os.environ))
    if not dist.is_initialized():
        distributed.join_group("nccl" if devices.own_device().type == "cuda" else "gloo")
    size = dist.get_world_size()
    if num_gpus not in (1, size):
        raise InputError(f"--num-gpus {num_gpus}, but {launcher} started {size} processes: leave --num-gpus out")
    return size


def from_slurm(env) -> dict[str, str]:
    """What torchrun would have set, out of what srun sets. MASTER_ADDR and MASTER_PORT of the caller's stay.

    Raises InputError where the machines run different numbers of tasks.
    """
    shares = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE") or env["SLURM_NTASKS"]
    share = re.fullmatch(r"(\d+)(\(x\d+\))?", shares)  # "8(x2)": 8 on each of 2 machines
    if not share:
        raise InputError(f"srun started unequal numbers of tasks ({shares}): use --ntasks-per-node with --nodes")
    port = FIRST_PORT + int(env.get("SLURM_JOB_ID", 0)) % PORTS
    return {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": env["SLURM_NTASKS"],
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": share.group(1),
        "MASTER_PORT": env.get("MASTER_PORT", str(port)),
        "MASTER_ADDR": env.get("MASTER_ADDR") or _first_host(env["SLURM_JOB_NODELIST"]),
    }


def _first_host(nodes: str) -> str:
    try:
        listed = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
        return listed.stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        raise InputError(
            f"scontrol does not resolve SLURM's node list '{nodes}': set MASTER_ADDR to the first machine's name"
        ) from None


def spread(command: Callable[[Sequence[str]], int], argv: Sequence[str], processes: int) -> None:
    """Run `command([*argv, "--launcher", "torchrun"])` in several processes of this machine, as `one_group`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with one_group(processes):
        torch.multiprocessing.start_processes(
            _one, args=(command, list(argv), processes, port), nprocs=processes, start_method="spawn"
        )


@contextlib.contextmanager
def one_group(processes: int) -> Iterator[None]:
    """Around torch.multiprocessing's start and wait: a signal to stop is passed on to the processes that were started.

    Raises Stopped when they saved and stopped, and leaves with exit code 2 when one of them refused its input (it has
    printed why).
    """

    def pass_on(number: int, frame: object) -> None:
        second_ends(number)
        for child in multiprocessing.active_children():
            child.terminate()

    previous = handle_stop_signals(pass_on)
    try:
        yield
    except torch.multiprocessing.ProcessExitedException as ended:
        if ended.exit_code == EXIT_STOPPED:
            raise Stopped(f"the {processes} processes saved and stopped") from None
        if ended.exit_code == EXIT_BAD_INPUT:
            sys.exit(EXIT_BAD_INPUT)
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _one(local_rank: int, command: Callable, argv: list[str], processes: int, port: int) -> None:
    os.environ.update(
        RANK=str(local_rank),
        LOCAL_RANK=str(local_rank),
        WORLD_SIZE=str(processes),
        LOCAL_WORLD_SIZE=str(processes),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    run_command(lambda: command([*argv, "--launcher", "torchrun"]))
