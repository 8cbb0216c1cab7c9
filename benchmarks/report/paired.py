"""Two sets of results against each other: `sslight report --diff A B`.

Where both results keep what was said of every image (`predictions.npz`, or COCO detections and the annotation file),
the difference is bootstrapped over the images, the same draw for both sides: images that are easy or hard for both
cancel. Elsewhere the two intervals are combined. Every row says which.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.classification.metrics import DRAWS, LEVEL, read_hits
from benchmarks.report.comparison import Entry, Row, load, row, unlike
from sslight.core.errors import InputError

COCO_DRAWS = 200  # each is a pass over all matches


def differences(a: Path | str, b: Path | str) -> tuple[list[Row], list[Entry], list[str]]:
    """Rows of A's results beside the most alike of B's, the entries of both, and what was left out.

    Architectures may differ: they are what is compared. Raises InputError where no benchmark is in both.
    """
    (ours, faults), (theirs, more) = load([a]), load([b])
    compared, used = [], []
    for entry in ours:
        others = [other for other in theirs if other.benchmark == entry.benchmark]
        if not others:
            faults.append(f"{entry.path}: nothing of {b} is a {entry.benchmark} result")
            continue
        other = min(others, key=lambda other: (len(_differs(entry, other)), str(other.path)))
        used += [entry, other]
        compared += _rows(entry, other)
    if not compared:
        raise InputError(f"{a} and {b} have no benchmark in common: nothing to compare")
    return compared, list(dict((entry.path, entry) for entry in used).values()), faults + more


def _differs(entry: Entry, other: Entry) -> list[str]:
    return [name for name in unlike(entry, other) if name != "architecture"]


def _rows(entry: Entry, other: Entry) -> list[Row]:
    differs = _differs(entry, other)
    plain = [row(entry, name, other, differs) for name in entry.result["metrics"]]
    if differs:
        return plain
    paired = coco_pairs(entry, other) if entry.benchmark == "coco" else {}
    lines = []
    for line in plain:
        ours, theirs = (_hits(side, line.metric) for side in (entry, other))
        difference = line.difference
        if difference is not None and ours is not None and theirs is not None:
            (low, high), images = interval(ours, theirs), ours.shape[1]
        elif difference is not None and line.metric in paired:
            (low, high), images = paired[line.metric]
        else:
            lines.append(line)
            continue
        lines.append(
            replace(
                line,
                difference_interval=[min(low, difference), max(high, difference)],
                how=f"paired over {images:,} images",
            )
        )
    return lines


def _hits(entry: Entry, metric: str) -> np.ndarray | None:
    """Right or wrong of every image and run, if kept, and if it is what the metric was counted from."""
    hits, stored = read_hits(entry.path.parent, metric), entry.result["metrics"].get(metric)
    images = entry.result["data"]["counts"].get("val")
    if hits is None or not stored or hits.shape[1] != images or abs(100 * hits.mean() - stored["value"]) > 1e-6:
        return None
    return hits


def interval(a: np.ndarray, b: np.ndarray, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """95% percentile bootstrap interval of the difference of two means in percent.

    a [runs, images], b [runs, images]: right or wrong, 0 and 1. Images are drawn for both sides together; the runs of
    each side, where there are several, apart.
    """
    rng = np.random.default_rng(seed)

    def one(runs: np.ndarray) -> np.ndarray:
        return runs[0] if len(runs) == 1 else runs[rng.integers(len(runs), size=len(runs))].mean(0)

    images = a.shape[1]
    values = [100 * (one(a) - one(b))[rng.integers(images, size=images)].mean() for _ in range(draws)]
    low, high = np.percentile(values, LEVEL)
    return float(low), float(high)


def coco_pairs(entry: Entry, other: Entry, draws: int = COCO_DRAWS, seed: int = 0) -> dict[str, tuple]:
    """{metric: ((low, high), images)} for AP and AP50, from the detections of both; empty where they are not there."""
    from benchmarks.detection.evaluation import average_precision

    truth, intervals = _truth(entry), {}
    if not truth:
        return {}
    for kind in ("box", "mask"):
        runs = [_matches(side, truth, kind) for side in (entry, other)]
        if not all(runs):
            continue
        rng, images = np.random.default_rng(seed), len(truth["images"])
        values = np.empty((draws, 2))
        for i in range(draws):
            weights = np.bincount(rng.integers(images, size=images), minlength=images).astype(np.float64)
            sides = []
            for side in runs:
                precision = np.stack([average_precision(run, weights) for run in side])
                chosen = precision[rng.integers(len(side), size=len(side))]
                sides.append(100 * np.array([np.nanmean(chosen), chosen[:, 0].mean()]))
            values[i] = sides[0] - sides[1]
        low, high = np.nanpercentile(values, LEVEL, axis=0)
        for k, name in enumerate(("AP", "AP50")):
            intervals[f"{kind}_{name}"] = (float(low[k]), float(high[k])), images
    return intervals


def _truth(entry: Entry) -> dict | None:
    """The val annotations that the result names, if the file is still there."""
    from benchmarks.detection.data import read_annotations

    data = entry.result["config"].get("settings", {}).get("DATA", {})
    folder = Path(data.get("PATH_TO_DATA_DIR") or ".")
    file = Path(data.get("VAL_JSON") or folder / "annotations" / "instances_val2017.json")
    try:
        return read_annotations(file)[0]
    except InputError:
        return None


def _matches(entry: Entry, truth: dict, kind: str) -> list:
    """The matches of every run; an empty list unless the detections are there and give the AP that was noted."""
    from benchmarks.detection.evaluation import evaluate

    matches = []
    try:
        for files, noted in zip(entry.result["detections"], entry.result["per_seed"], strict=True):
            again = evaluate(truth, json.loads((entry.path.parent / files[kind]).read_text()), kind)
            if abs(again.numbers["AP"] - noted[f"{kind}_AP"]) > 1e-6:
                return []
            matches.append(again.matches)
    except (OSError, KeyError, ValueError):
        return []
    return matches
