"""What the report's pictures share: their form, their colours, and how they become part of the page."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import RcKeyType

from benchmarks.report.comparison import Entry, Row, alike, network_of

OURS, RANDOM = "#0b6bcb", "#8a8f98"
OTHERS = (OURS, "#c2410c", "#15803d", "#7e22ce", "#be185d", "#0e7490")
MOST_BARS, MOST_LINES, MOST_PLOTS, MOST_PICTURES = 30, 8, 6, 24  # plots: of each kind; pictures: in the whole page
STYLE: dict[RcKeyType, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.hashsalt": "sslight",
    "text.parse_math": False,
}  # names are text, not formulas


@dataclass(frozen=True)
class Picture:
    """`address` is a data: URL; `kind` groups pictures in the report; `caption` says what is seen."""

    kind: str
    address: str
    caption: str


def first(drawn: Iterable[list[Picture]]) -> list[Picture]:
    """The first plots of one kind; no more than these are drawn."""
    return list(islice((picture for pictures in drawn for picture in pictures), MOST_PLOTS))


def new_axes(height: float = 2.8) -> tuple[Figure, Axes]:
    """A figure that a phone can show, with one axes."""
    figure = Figure(figsize=(4.8, height), layout="constrained")
    return figure, figure.subplots()


def legend(figure: Figure) -> None:
    """Above the axes, where it hides nothing."""
    figure.legend(loc="outside upper right", ncols=2, fontsize=8)


def plot(figure: Figure, caption: str) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return Picture("plot", "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode(), caption)


def short(text: str, most: int = 40) -> str:
    """The text, with its middle left out where it is long."""
    text = " ".join(str(text).split())
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2 - 1) :]}"


AXES = (("parameters", 1e6, "parameters, M"), ("flops", 1e9, "FLOPs, G"), ("latency_ms", 1, "latency at batch 1, ms"))


def pareto(rows: Sequence[Row], costs: Sequence[dict]) -> Iterator[list[Picture]]:
    """One picture a headline metric, image size and machine, with a panel a cost, where backbones were measured in the
    same way: a point has its accuracy and its cost at one image size."""
    machines: dict[tuple, dict[str, dict]] = {}
    for cost in costs:
        key = cost["machine"], cost["threads"], cost["image_size"]
        machines.setdefault(key, {})[network_of(cost)] = cost
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        if row.headline:
            groups.setdefault(_measurement(row), []).append(row)
    for group in groups.values():
        for (machine, threads, size), known in machines.items():
            measured = [row for row in group if row.entry.image_size == size and row.entry.network in known]
            if len({row.entry.network for row in measured if not row.entry.random}) > 1:
                yield [_panels(measured, known, f"{short(machine)}, {threads} threads, {size} px")]


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, accuracy) pairs that no other is at most as costly and at least as accurate as, by rising cost."""
    best: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or accuracy > best[-1][1]:
            best.append((cost, accuracy))
    return best


def _measurement(row: Row) -> tuple:
    """What has to agree for two networks of different architectures to be on one picture."""
    result = row.entry.result
    return (
        row.entry.benchmark,
        row.metric,
        result["protocol"],
        tuple(row.entry.departures),
        row.entry.image_size,
        result["data"]["fingerprint"],
    )


def _panels(rows: Sequence[Row], known: dict[str, dict], machine: str) -> Picture:
    figure = Figure(figsize=(4.8, 2.3 * len(AXES)), layout="constrained")
    panels = figure.subplots(len(AXES))  # one below the other
    for axes, (key, unit, label) in zip(panels, AXES, strict=True):
        points = [(known[row.entry.network][key] / unit, row.value) for row in rows]
        best = front(points)
        axes.step(*zip(*best, strict=True), where="post", color=OURS, alpha=0.4, linewidth=1)
        for row, (cost, value) in zip(rows, points, strict=True):
            error = [[value - row.interval[0]], [row.interval[1] - value]] if row.interval else None
            axes.errorbar(
                cost,
                value,
                yerr=error,
                fmt="o",
                color=RANDOM if row.entry.random else OURS,
                markersize=4,
                capsize=2,
                mfc=None if (cost, value) in best else "white",
            )
            axes.annotate(
                short(row.entry.label, 24), (cost, value), fontsize=7, xytext=(4, 3), textcoords="offset points"
            )
        axes.margins(x=0.25)
        axes.set_xlabel(label)
        axes.set_ylabel("percent")
    entry, metric = rows[0].entry, rows[0].metric
    caption = f"{entry.benchmark} {metric} against cost ({machine}). Filled: no other network here is as cheap and as"
    departs = f" All depart from {entry.result['protocol']}: {'; '.join(entry.departures)}." * bool(entry.departures)
    return plot(figure, f"{caption} accurate.{departs}")


def run_curves(run: Path) -> list[Picture]:
    """Loss over steps, and what was measured at epochs' ends, from a run's `metrics.jsonl`."""
    pictures = []
    lines = read_metrics(run / "metrics.jsonl")
    for name, label in (
        ("loss", "loss"),
        ("knn_top1", "k-NN top-1, percent"),
        ("probe_top1", "joint probe top-1, percent"),
    ):
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
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            item = json.loads(line)
        except ValueError:
            continue
        if isinstance(item, dict) and isinstance(item.get("step"), int):
            kept.append(item)
    return kept


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
    points: list[tuple[float, float]] = []
    for line in _dicts(run.get("curve")):
        heads = {name: value for name, value in line.items() if name != "epoch"}
        value: Any = heads.get(str(run.get("head")), next(iter(heads.values()), None) if len(heads) == 1 else None)
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
    return [
        plot(
            figure,
            f"{entry.benchmark} of {entry.label} ({entry.result['protocol']}): every head by the held-out "
            "part of train, the best one ringed.",
        )
    ]


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
    return [
        (str(row.get("feature")), row["penalty"], row["holdout_top1"])
        for row in _dicts(path)
        if _numbers(row.get("penalty"), row.get("holdout_top1")) and row["penalty"] > 0
    ]


PICTURE_BYTES = 4_000_000
SIGNATURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
SIZES = {"s": "small", "m": "medium", "l": "large"}


def draw_all(report) -> list[Picture]:
    """The plots for which the results hold figures, then the example pictures that lie beside results and runs."""
    rows, entries = report.rows, report.entries
    with rc_context(STYLE):
        pictures = [
            *_headlines(rows, report.against),
            *first(pareto(rows, report.costs)),
            *first(map(_over_k, alike([entry for entry in entries if len(_ks(entry)) > 1]))),
            *first(map(run_curves, report.runs)),
            *first(map(benchmark_curves, with_curves(entries))),
            *first(map(sweep, entries)),
            *first(map(_by_size, rows)),
            *first(map(_by_class, rows)),
        ]
    return pictures + list(islice(_examples(entries, report.runs), MOST_PICTURES))


def _title(row: Row) -> str:
    return " ".join(filter(None, (row.entry.benchmark, row.entry.framework, row.metric)))


def _headlines(rows: Sequence[Row], against: str) -> list[Picture]:
    """Value and 95% interval of each headline metric, the baseline's below it."""
    shown = [row for row in rows if row.headline][:MOST_BARS]
    if not shown:
        return []
    several = len({row.entry.label for row in shown}) > 1
    figure, axes = new_axes(0.8 + 0.42 * len(shown))
    for i, row in enumerate(shown):
        for value, interval, colour, offset in (
            (row.value, row.interval, RANDOM if row.entry.random else OURS, -0.13),
            (row.base_value, row.base_interval, RANDOM, 0.13),
        ):
            if value is None:
                continue
            error = [[value - interval[0]], [interval[1] - value]] if interval else None
            axes.errorbar(value, i + offset, xerr=error, fmt="o", color=colour, capsize=3, markersize=5)
    axes.set_yticks(
        range(len(shown)),
        [
            short(_title(row), 28) + f"\n{short(row.entry.label, 28)}" * several + " *" * bool(row.entry.departures)
            for row in shown
        ],
        fontsize=8,
    )
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel("percent, with 95% interval")
    axes.plot([], [], "o", color=OURS, label="measured network")
    axes.plot([], [], "o", color=RANDOM, label=short(f"{against} network" if against == "random" else against))
    legend(figure)
    starred = " * departs from its protocol." * any(row.entry.departures for row in shown)
    return [plot(figure, f"Headline metrics, with {against} under the same protocol below each.{starred}")]


def _over_k(group: Sequence[Entry]) -> list[Picture]:
    """k-NN accuracy over k of one group."""
    figure, axes = new_axes()
    colours = cycle(OTHERS)
    for entry in group[:MOST_LINES]:
        points = _ks(entry)
        colour = RANDOM if entry.random else next(colours)
        axes.plot(
            list(points),
            [metric["value"] for metric in points.values()],
            "o-",
            color=colour,
            markersize=4,
            label=short(entry.label),
        )
        if all(metric["interval"] for metric in points.values()):
            low, high = zip(*(metric["interval"] for metric in points.values()), strict=True)
            axes.fill_between(list(points), low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    axes.set_xticks(list(_ks(group[0])), [str(k) for k in _ks(group[0])])
    axes.minorticks_off()
    axes.set_xlabel("neighbours k")
    axes.set_ylabel("top-1, percent")
    legend(figure)
    more = f" {len(group) - MOST_LINES} more are in the table." if len(group) > MOST_LINES else ""
    caption = f"k-NN accuracy over k ({group[0].result['protocol']}), 95% interval shaded.{more}"
    return [plot(figure, caption)]


def _ks(entry: Entry) -> dict[int, dict]:
    """The metrics `top1_k<number>` of a k-NN result, by number."""
    prefix = "top1_k"
    return dict(
        sorted(
            (int(name[len(prefix) :]), metric)
            for name, metric in entry.result["metrics"].items()
            if entry.benchmark == "knn" and name.startswith(prefix) and name[len(prefix) :].isdecimal()
        )
    )


def _by_class(row: Row) -> list[Picture]:
    """Accuracy or AP of every class, against the random network's where they are comparable."""
    ours = _per_class(row.entry.result, row.metric)
    if not row.headline or not ours:
        return []
    theirs = _per_class(row.baseline.result, row.metric) if row.baseline and not row.differs else {}
    names = list(ours)
    if len(names) > MOST_BARS:
        names = sorted(names, key=lambda name: ours[name])
        names = names[: MOST_BARS // 2] + names[-MOST_BARS // 2 :]
    figure, axes = new_axes(1.0 + 0.2 * len(names))
    places = range(len(names))
    axes.barh([i - 0.2 for i in places], [ours[name] for name in names], 0.4, color=OURS, label=short(row.entry.label))
    if row.baseline and theirs:
        axes.barh(
            [i + 0.2 for i in places],
            [theirs.get(name, math.nan) for name in names],
            0.4,
            color=RANDOM,
            label=short(row.baseline.label),
        )
    axes.set_yticks(places, [short(name, 18) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("percent")
    legend(figure)
    some = f"the {len(names)} lowest and highest of {len(ours)} classes" if len(names) < len(ours) else "every class"
    return [plot(figure, f"{_title(row)}: {some}.")]


def _per_class(result: dict, metric: str) -> dict[str, float]:
    """{class: percent} of `per_class`, or of `per_category` under the metric's kind (box, mask); may be empty."""
    values = result.get("per_class") or (result.get("per_category") or {}).get(metric.split("_")[0]) or {}
    return {str(name): float(value) for name, value in values.items() if isinstance(value, int | float)}


def _by_size(row: Row) -> list[Picture]:
    """COCO's AP of small, medium and large objects."""
    metrics = row.entry.result["metrics"]
    sizes = [size for size in SIZES if f"{row.metric}{size}" in metrics]
    if row.entry.benchmark != "coco" or not row.headline or not sizes:
        return []
    figure, axes = new_axes(2.4)
    parts = [(row.entry, OURS, short(row.entry.label))]
    if row.baseline and not row.differs:
        parts.append((row.baseline, RANDOM, short(row.baseline.label)))
    for k, (entry, colour, label) in enumerate(parts):
        values = [entry.result["metrics"].get(f"{row.metric}{size}", {}).get("value", math.nan) for size in sizes]
        axes.bar([i + 0.4 * k for i in range(len(sizes))], values, 0.4, color=colour, label=label)
    axes.set_xticks([i + 0.2 * (len(parts) - 1) for i in range(len(sizes))], [SIZES[size] for size in sizes])
    axes.set_ylabel(short(f"{row.metric}, percent"))
    legend(figure)
    return [plot(figure, f"{_title(row)}: by object size.")]


def _examples(entries: Sequence[Entry], runs: Sequence[Path]) -> Iterator[Picture]:
    """The views that pre-training drew, and the pictures that results name (`pictures`: file names relative to it)."""
    for run in runs:
        yield from _embedded(run, "views.png", f"Views of pre-training, a row per image ({run.name})")
    for entry in entries:
        names, what = entry.result.get("pictures"), ", truth left, detections right" * (entry.benchmark == "coco")
        for name in names if isinstance(names, list) else []:
            yield from _embedded(
                entry.path.parent, str(name), f"{entry.label} {entry.framework}: {Path(str(name)).stem}{what}"
            )


def _embedded(folder: Path, name: str, caption: str) -> Iterator[Picture]:
    """The PNG or JPEG of that name, if there is one inside the folder."""
    path = (folder / name).resolve()
    if path.is_relative_to(folder.resolve()) and path.is_file() and path.stat().st_size <= PICTURE_BYTES:
        content = path.read_bytes()
        kind = next((kind for start, kind in SIGNATURES.items() if content.startswith(start)), None)
        if kind:
            yield Picture("example", f"data:{kind};base64,{base64.b64encode(content).decode()}", caption)
