"""What a part will cost: as long as its like took, else its images through the backbone at a speed measured here."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fvcore.common.config import CfgNode

from benchmarks.classification.weights import Subject
from benchmarks.deployment.measure import times
from benchmarks.detection.data import CocoData
from benchmarks.suite.parts import Part
from pretrain.backbones import build_backbone
from sslight.core import devices
from sslight.core.errors import InputError
from sslight.core.result import read_result

TRAINING = 3  # forward passes that a training pass counts as: the backward one costs about two
HOW = (
    "A measured time is that of the last start of the same evaluation of the same architecture in this folder. The "
    "others count images through the backbone at the speed that a random one has on this machine right now, a "
    "training pass as three, a detector's images by their pixels: decoding and a detector's heads come on top."
)


@dataclass(frozen=True)
class Work:
    """Forward passes of a backbone over images of so many pixels, and seconds that are known beforehand."""

    arch: str
    passes: float = 0.0
    pixels: float = 1.0
    seconds: float = 0.0


def classification_work(benchmark: str, cfg: CfgNode, train: int, val: int, subject: Subject) -> Work:
    """The work of a k-NN, linear or semi-supervised evaluation on so many images."""
    if benchmark == "knn":
        passes = val if cfg.KNN.LEAVE_ONE_OUT else train + val
    elif benchmark == "linear" and cfg.PROBE.CACHED:
        passes = (1 + cfg.PROBE.FLIPS) * train + val
    else:
        epochs, shown = cfg.SOLVER.TOTAL_EPOCHS, train
        if benchmark == "semisup":
            shown = TRAINING * cfg.LABELS.FRACTION * train
        passes = len(cfg.SEEDS) * (epochs * shown + math.ceil(epochs / cfg.TRAIN.EVAL_PERIOD) * val)
    return Work(subject.about["arch"], passes, cfg.DATA.SIZE**2)


def detection_work(arch: str, side: int, schedule: dict, data: CocoData, trials: int) -> Work:
    """The work of training and testing detectors on images whose shorter side is `side`, of COCO's usual shape."""
    passes = trials * (TRAINING * schedule["max_iter"] * schedule["batch"] + data.val.image_count)
    return Work(arch, passes, side**2 * 4 / 3)


def estimate(part: Part, work: Work, processes: int, results: Iterable[Path]) -> tuple[float, str]:
    """Seconds, and in a few words how they were found. `results`: the result files that may hold the part's like."""
    for path in results:
        try:
            result = read_result(path)
        except InputError:
            continue
        if path.parent.name == part.evaluation.name and result["checkpoint"]["arch"] == part.network.arch:
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
