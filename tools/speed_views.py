"""`tools/speed.py views`: what one worker core makes of JPEG photos, our data path against the PIL / torchvision one.

Both sides make whole batches of `pretrain.data.loading` with the same random draws. A round times every variant once on
the same images; ratios are medians over rounds, so that what slows the machine slows both sides. Times are the
thread's own CPU time, which other processes disturb least. "copy" is one pass of the finished views into the batch's
memory.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from pretrain.data.fast_views import decode_fast
from pretrain.data.loading import BatchRequest, TrainBatches, start_worker
from pretrain.data.sources import Names, Source
from pretrain.data.views import view_set
from pretrain.settings import DEFAULTS
from sslight.core.config import load_config

PHOTO_SIZE = (500, 375)  # pixels, ImageNet's typical
PHOTO_BYTES = 100_000
BASELINE = ["VIEWS.LOCAL_SIZE", "96", "VIEWS.GLOBAL_SCALE", "[0.14, 1.0]", "VIEWS.LOCAL_SCALE", "[0.05, 0.14]"]
VIEW_SETS = {"2x224 + 6x128": [], "2x224 + 6x96": BASELINE, "2x224 + 10x128": ["VIEWS.LOCAL_NUMBER", "10"]}
NO_BLUR = ["VIEWS.BLUR_PROB", "[0.0, 0.0, 0.0]"]
NO_COLOR = [*NO_BLUR, "VIEWS.COLOR_JITTER_PROB", "0", "VIEWS.GRAYSCALE_PROB", "0", "VIEWS.SOLARIZE_PROB", "[0.0, 0.0]"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=31, help="paired runs (default 31)")
    parser.add_argument("--batch", type=int, default=8, help="images per run (default 8)")


def run(args: argparse.Namespace) -> dict[str, float]:
    """Print the tables; the ratios of the first view set are `all_cpu` and `worker_only`."""
    start_worker()
    photos = MemorySource([encode(photo) for photo in load_sample_images().images])
    print(
        f"photos of {PHOTO_SIZE[0]}x{PHOTO_SIZE[1]}, {', '.join(f'{len(p) / 1000:.0f} KB' for p in photos.encoded)}; "
        f"medians of {args.rounds} paired runs of {args.batch} images, one thread's CPU time\n"
    )
    print(f"{'views':<16}{'reference':>11}{'all CPU':>17}{'worker only':>17}{'decoding alone':>17}")
    tables: list[tuple[str, dict[str, float]]] = []
    ratios: dict[str, float] = {}
    for number, (name, overrides) in enumerate(VIEW_SETS.items()):
        times = measure(photos, overrides, args.rounds, args.batch)
        gains = {key: statistics.median(np.divide(times["reference"], times[key])) for key in times}
        cost = {key: statistics.median(values) for key, values in times.items()}
        print(
            f"{name:<16}{cost['reference']:>8.2f} ms"
            + "".join(f"{cost[key]:>8.2f} ms{gains[key]:>5.1f}x" for key in ("all_cpu", "worker_only", "decode"))
        )
        suffix = "" if number == 0 else "_" + name.split(" + ")[1]
        ratios |= {key + suffix: gains[key] for key in ("all_cpu", "worker_only", "decode")}
        tables.append((name, cost))
    print(f"\n{'per image':<16}" + "".join(f"{part:>14}" for part in shares(tables[0][1])) + f"{'images/s':>12}")
    for name, cost in tables:
        line = "".join(f"{value:>8.2f}{value / cost['all_cpu']:>6.0%}" for value in shares(cost).values())
        print(f"{name:<16}{line}{1000 / cost['all_cpu']:>12.0f}")
    return ratios


class MemorySource(Source):
    """Encoded images held in memory: disks are not what is measured."""

    def __init__(self, encoded: list[bytes]):
        super().__init__("memory", Names(map(str, range(len(encoded)))), labelled=False)
        self.encoded = encoded

    def read(self, i: int) -> bytes:
        return self.encoded[i]


def encode(photo: np.ndarray) -> bytes:
    """The photo at PHOTO_SIZE as the JPEG whose length comes nearest to PHOTO_BYTES."""
    small, best = Image.fromarray(photo).resize(PHOTO_SIZE, Image.Resampling.BICUBIC), b""
    for quality in range(70, 101):
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=quality)
        best = min(best, buffer.getvalue(), key=lambda data: abs(len(data) - PHOTO_BYTES))
    return best


def measure(photos: MemorySource, overrides: list[str], rounds: int, batch: int) -> dict[str, list[float]]:
    """Milliseconds per image of every variant in every round."""
    variants = {
        "reference": ["DATA.PIPELINE", "reference"],
        "all_cpu": [],
        "worker_only": ["DATA.COLOR_ON_DEVICE", "True"],
        "no_blur": NO_BLUR,
        "no_color": NO_COLOR,
    }
    makers = {name: _maker(photos, [*overrides, *extra]) for name, extra in variants.items()}
    made = makers["no_color"](BatchRequest(0, 0, np.zeros(batch, dtype=np.int64))).views
    work: dict[str, Callable[[BatchRequest], object]] = {
        **makers,
        "decode": lambda request: [decode_fast(photos.read(i)) for i in request.indices.tolist()],
        "copy": lambda request: [view.clone() for view in made],
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    for number in range(-1, rounds):  # the first is for warming up
        request = BatchRequest(0, (number + 1) * batch, np.arange(batch, dtype=np.int64) % len(photos))
        for name, make in work.items():
            start = time.thread_time()
            make(request)
            milliseconds = (time.thread_time() - start) / batch * 1000
            if number >= 0:
                times[name].append(milliseconds)
    return times


def _maker(photos: MemorySource, overrides: list[str]) -> Callable[[BatchRequest], Any]:
    cfg = load_config(DEFAULTS, None, overrides)
    return TrainBatches(photos, view_set(cfg), cfg).__getitem__


def shares(cost: dict[str, float]) -> dict[str, float]:
    """Milliseconds of each part of the all-CPU path, from variants that leave parts out."""
    return {
        "decode": cost["decode"],
        "crop": cost["no_color"] - cost["decode"] - cost["copy"],
        "colour": cost["no_blur"] - cost["no_color"],
        "blur": cost["all_cpu"] - cost["no_blur"],
        "copy": cost["copy"],
    }
