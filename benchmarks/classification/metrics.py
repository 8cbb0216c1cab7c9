"""Accuracy of a classifier on a set of images, with its uncertainty.

Everything starts from `ranked` predictions, int64 [images, r]: class numbers from most to least likely. Accuracies are
in percent. Every image counts exactly once; ties between scores go to the lowest class number.
"""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslight.core.files import write_atomically

DRAWS = 1000  # bootstrap samples
LEVEL = (2.5, 97.5)  # percentiles of a 95% interval


def hits(ranked: np.ndarray, labels: np.ndarray, r: int) -> np.ndarray:
    """Whether the label is among the first `r` predictions: float64 [N] of 0 and 1."""
    return (np.asarray(ranked)[:, :r] == np.asarray(labels)[:, None]).any(1).astype(np.float64)


def interval(values: np.ndarray, draws: int = DRAWS, seed: int = 0) -> list[float]:
    """95% percentile bootstrap interval of the mean of `values`, [N] or [runs, N] (the same N images in every run).

    Images are drawn with replacement, and the runs too where there are several, so that the interval covers both the
    choice of test images and the choice of seeds (Efron & Tibshirani, 1993, chapter 13).
    """
    values = np.atleast_2d(np.asarray(values, dtype=np.float64))
    runs, count = values.shape
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    for i in range(draws):
        images = rng.integers(count, size=count)
        mean = values[0] if runs == 1 else values[rng.integers(runs, size=runs)].mean(0)
        means[i] = mean[images].mean()
    low, high = np.percentile(means, LEVEL)
    mean = values.mean()  # a percentile of few draws may miss the mean of a nearly constant sample
    return [float(min(low, mean)), float(max(high, mean))]


def metric(runs: Sequence[np.ndarray]) -> dict:
    """The `value` / `interval` / `std` of a result's metric from 0/1 hits [N] of each run, in percent."""
    values = 100 * np.stack([np.asarray(run, dtype=np.float64) for run in runs])
    summary = {"value": float(values.mean()), "interval": interval(values)}
    if len(values) > 1:
        summary["std"] = float(values.mean(1).std(ddof=1))  # over runs
    return summary


def accuracy_metrics(ranked: Sequence[np.ndarray], labels: np.ndarray) -> dict[str, dict]:
    """`top1`, `top5` (where there are more than five classes) and `mean_class` metrics of the runs' predictions.

    `mean_class` is the mean over classes of each class's top-1, without interval.
    """
    metrics = {"top1": metric([hits(run, labels, 1) for run in ranked])}
    if min(np.asarray(run).shape[1] for run in ranked) >= 5 and len(np.unique(labels)) > 5:
        metrics["top5"] = metric([hits(run, labels, 5) for run in ranked])
    means = [np.mean(list(per_class(run, labels).values())) for run in ranked]
    metrics["mean_class"] = {"value": float(np.mean(means)), "interval": None}
    return metrics


def per_class(ranked: np.ndarray, labels: np.ndarray) -> dict[int, float]:
    """Top-1 of every class that has images, in percent."""
    correct, labels = hits(ranked, labels, 1), np.asarray(labels)
    hits_of_class = np.bincount(labels, weights=correct)
    count = np.bincount(labels)
    return {int(k): float(100 * hits_of_class[k] / count[k]) for k in np.flatnonzero(count)}


def confusions(ranked: np.ndarray, labels: np.ndarray, most: int = 20) -> list[tuple[int, int, int]]:
    """The most frequent (label, wrong prediction, count), ties in class order."""
    first, labels = np.asarray(ranked)[:, 0], np.asarray(labels)
    wrong = first != labels
    pairs = Counter(zip(labels[wrong].tolist(), first[wrong].tolist(), strict=True))
    return [(a, b, n) for (a, b), n in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:most]]


def detail(ranked: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> dict:
    """`per_class` and `confusions` by class name: what a result file keeps beside its metrics."""
    return {
        "per_class": {classes[k]: round(value, 4) for k, value in per_class(ranked, labels).items()},
        "confusions": [
            {"label": classes[a], "predicted": classes[b], "count": n} for a, b, n in confusions(ranked, labels)
        ],
    }


def as_ranked(predictions: Tensor | np.ndarray) -> np.ndarray:
    """Ranked predictions on the host."""
    return predictions.cpu().numpy() if isinstance(predictions, torch.Tensor) else np.asarray(predictions)


FILE = "predictions.npz"


def write_predictions(out_dir: Path | str, runs: Mapping[str, Sequence[np.ndarray]], labels: np.ndarray) -> None:
    """`predictions.npz`: for each suffix of metric names, ranked classes [runs, images, r] in the order of the data."""
    arrays: dict[str, Any] = {f"ranked{suffix}": np.stack(ranked).astype(np.int32) for suffix, ranked in runs.items()}

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, labels=labels, **arrays)

    write_atomically(Path(out_dir) / FILE, write)


def read_hits(folder: Path, metric: str) -> np.ndarray | None:
    """Whether each image counts as right for a metric such as `top5_best_epoch`: [runs, images] of 0 and 1, or None."""
    named = re.fullmatch(r"top(\d+)(_\w+)?", metric)
    if not named:
        return None
    try:
        with np.load(folder / FILE) as arrays:
            ranked, labels = arrays[f"ranked{named[2] or ''}"], arrays["labels"]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):  # absent, of another metric, or not such a file
        return None
    return np.stack([hits(run, labels, int(named[1])) for run in ranked])


def seed_metrics(ranked: Sequence[np.ndarray], labels: np.ndarray, suffix: str = "") -> dict[str, dict]:
    """`accuracy_metrics` of the runs, with a suffix to every name."""
    return {name + suffix: value for name, value in accuracy_metrics(ranked, labels).items()}


def per_seed(
    seeds: Sequence[int], runs: dict[str, Sequence[np.ndarray]], labels: np.ndarray, /, **further: Sequence
) -> list[dict]:
    """One dict a seed: every metric's plain value in that run (`runs` maps a suffix to the runs' predictions)."""
    rows = []
    for i, seed in enumerate(seeds):
        row: dict = {"seed": seed}
        for suffix, ranked in runs.items():
            row |= {name: value["value"] for name, value in seed_metrics([ranked[i]], labels, suffix).items()}
        rows.append(row | {key: values[i] for key, values in further.items()})
    return rows
