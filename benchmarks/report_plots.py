"""The report's pictures, each a self-contained `data:` address with a caption. Plots are SVG, drawn by matplotlib."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path

from matplotlib import rc_context

from benchmarks import report_cost, report_training
from benchmarks.comparison import Entry, Row, alike
from benchmarks.report_drawing import (
    MOST_BARS,
    MOST_LINES,
    MOST_PICTURES,
    OTHERS,
    OURS,
    RANDOM,
    STYLE,
    Picture,
    first,
    legend,
    new_axes,
    plot,
    short,
)

PICTURE_BYTES = 4_000_000
SIGNATURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
SIZES = {"s": "small", "m": "medium", "l": "large"}


def draw_all(report) -> list[Picture]:
    """The plots for which the results hold figures, then the example pictures that lie beside results and runs."""
    rows, entries = report.rows, report.entries
    with rc_context(STYLE):
        pictures = [*_headlines(rows, report.against), *first(report_cost.pareto(rows, report.costs)),
                    *first(map(_over_k, alike([entry for entry in entries if len(_ks(entry)) > 1]))),
                    *first(map(report_training.run_curves, report.runs)),
                    *first(map(report_training.benchmark_curves, report_training.with_curves(entries))),
                    *first(map(report_training.sweep, entries)),
                    *first(map(_by_size, rows)), *first(map(_by_class, rows))]
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
        for value, interval, colour, offset in ((row.value, row.interval, RANDOM if row.entry.random else OURS, -0.13),
                                                (row.base_value, row.base_interval, RANDOM, 0.13)):
            if value is None:
                continue
            error = [[value - interval[0]], [interval[1] - value]] if interval else None
            axes.errorbar(value, i + offset, xerr=error, fmt="o", color=colour, capsize=3, markersize=5)
    axes.set_yticks(range(len(shown)),
                    [short(_title(row), 28) + f"\n{short(row.entry.label, 28)}" * several
                     + " *" * bool(row.entry.departures) for row in shown], fontsize=8)
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
    legend(figure)
    more = f" {len(group) - MOST_LINES} more are in the table." if len(group) > MOST_LINES else ""
    caption = f"k-NN accuracy over k ({group[0].result['protocol']}), 95% interval shaded.{more}"
    return [plot(figure, caption)]


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
    figure, axes = new_axes(1.0 + 0.2 * len(names))
    places = range(len(names))
    axes.barh([i - 0.2 for i in places], [ours[name] for name in names], 0.4, color=OURS, label=short(row.entry.label))
    if theirs:
        axes.barh([i + 0.2 for i in places], [theirs.get(name, math.nan) for name in names], 0.4, color=RANDOM,
                  label=short(row.baseline.label))
    axes.set_yticks(places, [short(name, 18) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("percent")
    legend(figure)
    some = f"the {len(names)} lowest and highest of {len(ours)} classes" if len(names) < len(ours) else "every class"
    return [plot(figure, f"{_title(row)}: {some}.")]


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
            yield from _embedded(entry.path.parent, str(name),
                                 f"{entry.label} {entry.framework}: {Path(str(name)).stem}{what}")


def _embedded(folder: Path, name: str, caption: str) -> Iterator[Picture]:
    """The PNG or JPEG of that name, if there is one inside the folder."""
    path = (folder / name).resolve()
    if path.is_relative_to(folder.resolve()) and path.is_file() and path.stat().st_size <= PICTURE_BYTES:
        content = path.read_bytes()
        kind = next((kind for start, kind in SIGNATURES.items() if content.startswith(start)), None)
        if kind:
            yield Picture("example", f"data:{kind};base64,{base64.b64encode(content).decode()}", caption)
