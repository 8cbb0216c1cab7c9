"""What a part will cost: the time of an equal evaluation if there is one, else its images at a speed measured here."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from benchmarks.deployment.measure import times
from benchmarks.evaluation import Work
from benchmarks.suite.parts import Part
from pretrain.backbones import build_backbone
from sslight.core import devices
from sslight.core.errors import InputError
from sslight.core.result import read_result

HOW = (
    "A measured time is that of the last start of the same evaluation of the same architecture in this folder. The "
    "others count images through the backbone at the speed that a random one has on this machine right now, a "
    "training pass as three, a detector's images by their pixels: decoding and a detector's heads come on top."
)


def estimate(part: Part, work: Work, processes: int, results: Iterable[Path]) -> tuple[float, str]:
    """Seconds, and in a few words where they come from. `results`: files, perhaps one of an equal evaluation."""
    for path in results:
        try:
            result = read_result(path)
        except InputError:
            continue
        if path.parent.name == part.entry.name and result["checkpoint"]["arch"] == part.network.arch:
            return result["seconds"], f"as {path.parent.parent.name} took"
    if work.seconds:
        return work.seconds, "by its settings"
    side = min(224, round(math.sqrt(work.pixels)))
    seconds = work.passes * seconds_per_image(work.arch, side) * work.pixels / side**2 / processes
    return seconds, f"{work.passes:,.0f} passes of {math.sqrt(work.pixels):.0f} px"


@functools.cache
def seconds_per_image(arch: str, side: int, seconds: float = 1.0) -> float:
    """Seconds of a forward pass per image of `side` px on this machine, measured for about so many seconds."""
    devices.prepare()
    device = devices.own_device()
    count = 64 if device.type == "cuda" else max(1, 64 * 64 // side**2)
    images = torch.randn(count, 3, side, side, device=device)
    return float(np.median(times(build_backbone(arch).eval().to(device), images, seconds))) / count


def spell(seconds: float) -> str:
    """A duration with its natural unit."""
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"
