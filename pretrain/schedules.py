"""Schedules as pure functions of the step (or epoch), the total and the warm-up."""

from __future__ import annotations

import math


def cosine(step: float, total: int, start: float, end: float) -> float:
    """Half a cosine from `start` at step 0 towards `end`, which is approached at step `total` and not reached."""
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * step / total))


def linear(step: int, total: int, start: float, end: float) -> float:
    """Entry `step` of `total` evenly spaced values with both ends included; `end` from there on."""
    if step >= total:
        return end
    return start + (end - start) * step / max(total - 1, 1)


def warmup_cosine(step: int, total: int, warmup: int, start: float, peak: float, end: float) -> float:
    """Learning rate: linear from `start` to `peak` over `warmup` steps, both included, then cosine towards `end`.

    The cosine begins at its own first step, so the peak occurs twice. All three values are absolute.
    """
    if step < warmup:
        return linear(step, warmup, start, peak)
    return cosine(step - warmup, total - warmup, peak, end)


def scaled_learning_rate(base: float, global_batch: int) -> float:
    """The linear scaling rule: `base` is per 256 images of the global batch."""
    return base * global_batch / 256
