"""Counting and timing one backbone in FP32 inference."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from convert.deployment import deployed_form, multiply_adds
from convert.reader import load_network
from convert.sources import names_checkpoint
from pretrain.backbones import build_backbone, canonical_arch, check_options, read_options
from sslight.core import devices
from sslight.core.result import command, environment, git_state

LEAST = 3  # repetitions, however long they take


def architectures(networks: Sequence[str], words: Sequence[str] = ()) -> list[tuple[str, dict]]:
    """timm's name and build options of each network, an architecture or a checkpoint's, each once. Raises InputError.

    `words` are options such as `num_heads=12` for all of them. A checkpoint's own image size is left out: that of the
    measurement is given.
    """
    asked, seen = read_options(words), []
    for name in networks:
        if names_checkpoint(name):
            read = load_network(name, options=asked)[1]
            network = read.arch, {key: value for key, value in read.options.items() if key != "img_size"}
        else:
            network = canonical_arch(name), asked
            check_options(*network)
        if network not in seen:
            seen.append(network)
    return seen


def about(arch: str, image_size: int, batch_size: int, options: Mapping | None = None) -> dict:
    """What has to agree for two measurements to be the same."""
    here = environment()
    machine = here["device"] if torch.cuda.is_available() else f"{_processor()} ({platform.machine()})"
    return {
        "arch": arch,
        "image_size": image_size,
        "batch_size": batch_size,
        "machine": machine,
        "threads": here["threads"],
        "torch": torch.__version__,
        **({"options": dict(options)} if options else {}),
    }


def measure(arch: str, image_size: int, batch_size: int, seconds: float, options: Mapping | None = None) -> dict:
    """Parameters, FLOPs of one image, median latency in ms at batch 1 and images a second, with their provenance.

    Of the network's deployed form, where it has one that timm can fold; `form` says which was measured.
    """
    started = time.monotonic()
    device = devices.own_device()
    one = torch.randn(1, 3, image_size, image_size, device=device)
    deployed = deployed_form(build_backbone(arch, **(options or {})).eval().to(device), one)
    backbone = deployed.network
    alone = times(backbone, one, seconds)
    batch = times(backbone, one.expand(batch_size, -1, -1, -1).contiguous(), seconds)
    return {
        "form": deployed.form,
        "form_note": deployed.note,
        "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "flops": multiply_adds(backbone, one),
        "latency_ms": 1000 * float(np.median(alone)),
        "latency_ms_quartiles": [1000 * float(t) for t in np.percentile(alone, (25, 75))],
        "images_per_second": batch_size / float(np.median(batch)),
        "environment": environment(),
        "git": git_state(),
        "command": command(),
        "seconds": time.monotonic() - started,
    }


@torch.inference_mode()
def times(backbone: nn.Module, images: Tensor, seconds: float) -> list[float]:
    """Seconds of each forward, repeated for `seconds` after a tenth of that to warm up."""
    taken: list[float] = []
    begun = time.perf_counter()
    while len(taken) < LEAST or time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        backbone(images)
        if images.is_cuda:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    warm = next((i for i, total in enumerate(np.cumsum(taken)) if total > seconds / 10), 0) + 1
    return taken[min(warm, len(taken) // 2) :]


def _processor() -> str:
    """The processor's model, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "cpu"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "cpu")
