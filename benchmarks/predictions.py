"""What a classifier said of every val image, kept beside its result so that two results can be compared in pairs."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.metrics import hits
from pretrain.files import write_atomically

FILE = "predictions.npz"


def write_predictions(out_dir: Path | str, runs: Mapping[str, Sequence[np.ndarray]], labels: np.ndarray) -> None:
    """`predictions.npz`: for each suffix of metric names, ranked classes [runs, images, r] in the order of the data."""
    arrays = {f"ranked{suffix}": np.stack(ranked).astype(np.int32) for suffix, ranked in runs.items()}

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
