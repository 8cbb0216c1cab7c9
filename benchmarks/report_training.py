"""Pictures of training: pre-training's and the benchmarks' learning curves, and the sweep of a probe's heads."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from matplotlib.ticker import MaxNLocator

from benchmarks.comparison import Entry, alike
from benchmarks.report_drawing import MOST_LINES, OTHERS, OURS, RANDOM, Picture, legend, new_axes, plot, short


def run_curves(run: Path) -> list[Picture]:
    """Loss over steps, and what was measured at epochs' ends, from a run's `metrics.jsonl`."""
    pictures = []
    lines = read_metrics(run / "metrics.jsonl")
    for name, label in (("loss", "loss"), ("knn_top1", "k-NN top-1, percent"),
                        ("probe_top1", "joint probe top-1, percent")):
        points = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), int | float)]
        points = [(step, value) for step, value in points if math.isfinite(value)]
        if len(points) < 2:
            continue
        figure, axes = new_axes(2.4)
        steps, values = zip(*points, strict=True)
        factor = 100 if label.endswith("percent") else 1
        axes.plot(steps, [factor * value for value in values], color=OURS, linewidth=1)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        pictures.append(plot(figure, f"Pre-training, {label} ({run.name})."))
    return pictures


def read_metrics(path: Path) -> list[dict]:
    """The readable lines of a run's metrics, those with a `step`; a line cut off by a crash is left out."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            item = json.loads(line)
        except ValueError:
            continue
        if isinstance(item, dict) and isinstance(item.get("step"), int):
            found.append(item)
    return found


def with_curves(entries: Sequence[Entry]) -> list[list[Entry]]:
    """The results that hold a curve of several epochs, in groups of alike ones."""
    return alike([entry for entry in entries if len(_curve(entry)) > 1])


def benchmark_curves(group: Sequence[Entry]) -> list[Picture]:
    """Top-1 on val over the epochs of a probe or of fine-tuning, of each network's first seed."""
    figure, axes = new_axes(2.4)
    colours = cycle(OTHERS)
    for entry in group[:MOST_LINES]:
        epochs, values = zip(*_curve(entry), strict=True)
        axes.plot(epochs, values, color=RANDOM if entry.random else next(colours), label=short(entry.label))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("top-1 on val, percent")
    legend(figure)
    return [plot(figure, f"{group[0].benchmark} ({group[0].result['protocol']}): top-1 over the epochs, first seed.")]


def _curve(entry: Entry) -> list[tuple[float, float]]:
    """(epoch, top-1) of the first seed: of the chosen head where there are many, of the only one otherwise."""
    run = (entry.result["per_seed"] or [{}])[0]
    points = []
    for line in _dicts(run.get("curve")):
        heads = {name: value for name, value in line.items() if name != "epoch"}
        value = heads.get(str(run.get("head")), next(iter(heads.values()), None) if len(heads) == 1 else None)
        if _numbers(value, line.get("epoch")):
            points.append((line["epoch"], value))
    return points


def _dicts(items: object) -> list[dict]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _numbers(*values: object) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def sweep(entry: Entry) -> list[Picture]:
    """Accuracy on the held-out part of train of every head of the first seed, over its learning rate or penalty."""
    run = (entry.result["per_seed"] or [{}])[0]
    points = _heads(run.get("heads"), "holdout_top1") or _penalties(run.get("path"))
    if len(points) < 2:
        return []
    figure, axes = new_axes()
    for feature, colour in zip(dict.fromkeys(feature for feature, _, _ in points), cycle(OTHERS)):
        line = sorted((x, y) for name, x, y in points if name == feature)
        axes.plot(*zip(*line, strict=True), "o-", color=colour, markersize=4, label=short(feature))
    feature, x, y = max(points, key=lambda point: point[2])
    axes.plot(x, y, "o", color="black", fillstyle="none", markersize=10)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("learning rate per 256 images" if run.get("heads") else "penalty")
    axes.set_ylabel("held-out top-1, percent")
    legend(figure)
    return [plot(figure, f"{entry.benchmark} of {entry.label} ({entry.result['protocol']}): every head by the held-out "
                         "part of train, the best one ringed.")]


def _heads(heads: object, score: str) -> list[tuple[str, float, float]]:
    """(feature, learning rate, percent) of heads named like `pooled lr 0.1`."""
    points = []
    for name, about in heads.items() if isinstance(heads, dict) else ():
        named = re.fullmatch(r"(.+) lr (\d+\.?\d*(?:e[+-]?\d+)?)", name)
        if named and isinstance(about, dict) and _numbers(about.get(score)):
            points.append((named[1], float(named[2]), about[score]))
    return points


def _penalties(path: object) -> list[tuple[str, float, float]]:
    """(feature, penalty, percent) of a regularisation path."""
    return [(str(row.get("feature")), row["penalty"], row["holdout_top1"]) for row in _dicts(path)
            if _numbers(row.get("penalty"), row.get("holdout_top1")) and row["penalty"] > 0]
