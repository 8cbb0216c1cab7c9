"""The report's pictures, each a self-contained `data:` address with a caption. Plots are SVG, drawn by matplotlib."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.comparison import Entry, Row, unlike

OURS, RANDOM = "#0b6bcb", "#8a8f98"
OTHERS = (OURS, "#c2410c", "#15803d", "#7e22ce", "#be185d", "#0e7490")
MOST_BARS, MOST_LINES, MOST_PLOTS, MOST_PICTURES = 30, 8, 8, 24  # plots: of each kind; pictures: in the whole page
PICTURE_BYTES = 4_000_000
SIGNATURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
SIZES = {"s": "small", "m": "medium", "l": "large"}
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3,
         "legend.frameon": False, "svg.hashsalt": "sslight", "text.parse_math": False}  # names are text, not formulas


@dataclass(frozen=True)
class Picture:
    """`address` is a data: URL; `kind` groups pictures in the report; `caption` says what is seen."""

    kind: str
    address: str
    caption: str


def draw_all(rows: Sequence[Row], entries: Sequence[Entry], runs: Sequence[Path]) -> list[Picture]:
    """The plots for which the results hold figures, then the example pictures that lie beside the results."""
    with rc_context(STYLE):
        pictures = [*_headlines(rows), *_first(map(_over_k, _sweeps(entries))), *_first(map(_learning_curves, runs)),
                    *_first(map(_by_size, rows)), *_first(map(_by_class, rows))]
    return pictures + list(islice((picture for entry in entries for picture in examples(entry)), MOST_PICTURES))


def _first(drawn: Iterable[list[Picture]]) -> list[Picture]:
    """The first plots of one kind; no more than these are drawn."""
    return list(islice((picture for pictures in drawn for picture in pictures), MOST_PLOTS))


def _axes(height: float = 2.8) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.8, height), layout="constrained")
    return figure, figure.subplots()


def _picture(kind: str, figure: Figure, caption: str) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return Picture(kind, "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode(), caption)


def _title(row: Row) -> str:
    return " ".join(filter(None, (row.entry.benchmark, row.entry.framework, row.metric)))


def _headlines(rows: Sequence[Row]) -> list[Picture]:
    """Value and 95% interval of each headline metric, the random network's below it."""
    shown = [row for row in rows if row.headline][:MOST_BARS]
    if not shown:
        return []
    figure, axes = _axes(0.8 + 0.42 * len(shown))
    for i, row in enumerate(shown):
        for value, interval, colour, offset in ((row.value, row.interval, RANDOM if row.entry.random else OURS, -0.13),
                                                (row.base_value, row.base_interval, RANDOM, 0.13)):
            if value is None:
                continue
            error = [[value - interval[0]], [interval[1] - value]] if interval else None
            axes.errorbar(value, i + offset, xerr=error, fmt="o", color=colour, capsize=3, markersize=5)
    axes.set_yticks(range(len(shown)), [short(_title(row), 28) for row in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel("percent, with 95% interval")
    axes.plot([], [], "o", color=OURS, label="measured network")
    axes.plot([], [], "o", color=RANDOM, label="random network")
    figure.legend(loc="outside upper right", ncols=2)
    return [_picture("plot", figure, "Headline metrics, with the random network under the same protocol below each.")]


def _sweeps(entries: Sequence[Entry]) -> list[list[Entry]]:
    """The k-NN results that hold several k, in groups of alike ones."""
    groups: list[list[Entry]] = []
    for entry in entries:
        if len(_ks(entry)) > 1:
            group = next((group for group in groups if not unlike(group[0], entry)), None)
            if group is None:
                groups.append([entry])
            else:
                group.append(entry)
    return groups


def _over_k(group: Sequence[Entry]) -> list[Picture]:
    """k-NN accuracy over k of one group."""
    figure, axes = _axes()
    colours = cycle(OTHERS)
    for entry in group[:MOST_LINES]:
        points = _ks(entry)
        colour = RANDOM if entry.random else next(colours)
        axes.plot(list(points), [metric["value"] for metric in points.values()], "o-", color=colour, markersize=4,
                  label=short(entry.label))
        if all(metric["interval"] for metric in points.values()):
            low, high = zip(*(metric["interval"] for metric in points.values()), strict=True)
            axes.fill_between(list(points), low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    axes.set_xticks(list(_ks(group[0])), [str(k) for k in _ks(group[0])])
    axes.minorticks_off()
    axes.set_xlabel("neighbours k")
    axes.set_ylabel("top-1, percent")
    axes.legend()
    more = f" {len(group) - MOST_LINES} more are in the table." if len(group) > MOST_LINES else ""
    caption = f"k-NN accuracy over k ({group[0].result['protocol']}), 95% interval shaded.{more}"
    return [_picture("plot", figure, caption)]


def _ks(entry: Entry) -> dict[int, dict]:
    """The metrics `top1_k<number>` of a k-NN result, by number."""
    prefix = "top1_k"
    return dict(sorted((int(name[len(prefix):]), metric) for name, metric in entry.result["metrics"].items()
                       if entry.benchmark == "knn" and name.startswith(prefix) and name[len(prefix):].isdecimal()))


def _by_class(row: Row) -> list[Picture]:
    """Accuracy or AP of every class, against the random network's where they are comparable."""
    ours = _per_class(row.entry.result, row.metric)
    if not row.headline or not ours:
        return []
    theirs = _per_class(row.baseline.result, row.metric) if row.baseline and not row.differs else {}
    names = list(ours)
    if len(names) > MOST_BARS:
        names = sorted(names, key=lambda name: ours[name])
        names = names[:MOST_BARS // 2] + names[-MOST_BARS // 2:]
    figure, axes = _axes(1.0 + 0.2 * len(names))
    places = range(len(names))
    axes.barh([i - 0.2 for i in places], [ours[name] for name in names], 0.4, color=OURS, label=short(row.entry.label))
    if theirs:
        axes.barh([i + 0.2 for i in places], [theirs.get(name, math.nan) for name in names], 0.4, color=RANDOM,
                  label="random")
    axes.set_yticks(places, [short(name, 18) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("percent")
    figure.legend(loc="outside upper right", ncols=2)
    some = f"the {len(names)} lowest and highest of {len(ours)} classes" if len(names) < len(ours) else "every class"
    return [_picture("plot", figure, f"{_title(row)}: {some}.")]


def _per_class(result: dict, metric: str) -> dict[str, float]:
    """{class: percent} of `per_class`, or of `per_category` under the metric's kind (box, mask); may be empty."""
    found = result.get("per_class") or (result.get("per_category") or {}).get(metric.split("_")[0]) or {}
    return {str(name): float(value) for name, value in found.items() if isinstance(value, int | float)}


def _by_size(row: Row) -> list[Picture]:
    """COCO's AP of small, medium and large objects."""
    metrics = row.entry.result["metrics"]
    sizes = [size for size in SIZES if f"{row.metric}{size}" in metrics]
    if row.entry.benchmark != "coco" or not row.headline or not sizes:
        return []
    figure, axes = _axes(2.4)
    parts = [(row.entry, OURS, short(row.entry.label))]
    if row.baseline and not row.differs:
        parts.append((row.baseline, RANDOM, "random"))
    for k, (entry, colour, label) in enumerate(parts):
        values = [entry.result["metrics"].get(f"{row.metric}{size}", {}).get("value", math.nan) for size in sizes]
        axes.bar([i + 0.4 * k for i in range(len(sizes))], values, 0.4, color=colour, label=label)
    axes.set_xticks([i + 0.2 * (len(parts) - 1) for i in range(len(sizes))], [SIZES[size] for size in sizes])
    axes.set_ylabel(short(f"{row.metric}, percent"))
    axes.legend()
    return [_picture("plot", figure, f"{_title(row)}: by object size.")]


def _learning_curves(run: Path) -> list[Picture]:
    """Loss over steps, and what was measured at epochs' ends, from a run's `metrics.jsonl`."""
    pictures = []
    lines = read_metrics(run / "metrics.jsonl")
    for name, label in (("loss", "loss"), ("knn_top1", "k-NN top-1, percent"),
                        ("probe_top1", "joint probe top-1, percent")):
        points = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), int | float)]
        points = [(step, value) for step, value in points if math.isfinite(value)]
        if len(points) < 2:
            continue
        figure, axes = _axes(2.4)
        steps, values = zip(*points, strict=True)
        factor = 100 if label.endswith("percent") else 1
        axes.plot(steps, [factor * value for value in values], color=OURS, linewidth=1)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        pictures.append(_picture("plot", figure, f"Pre-training, {label} ({run.name})."))
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


def examples(entry: Entry) -> list[Picture]:
    """The pictures that the result names (`pictures`: file names relative to it): PNG or JPEG inside its own folder."""
    folder = entry.path.parent.resolve()
    names = entry.result.get("pictures")
    found = []
    for name in names if isinstance(names, list) else []:
        path = (folder / str(name)).resolve()
        if not path.is_relative_to(folder) or not path.is_file() or path.stat().st_size > PICTURE_BYTES:
            continue
        content = path.read_bytes()
        kind = next((kind for start, kind in SIGNATURES.items() if content.startswith(start)), None)
        if kind:
            caption = f"{entry.label} {entry.framework}: {path.stem}"
            found.append(Picture("example", f"data:{kind};base64,{base64.b64encode(content).decode()}", caption))
    return found


def short(text: str, most: int = 40) -> str:
    """The text, with its middle left out where it is long."""
    text = " ".join(str(text).split())
    return text if len(text) <= most else f"{text[:most // 2]}…{text[-(most // 2 - 1):]}"
