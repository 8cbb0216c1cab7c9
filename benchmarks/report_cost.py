"""Accuracy against cost: which backbones no other one beats at both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.comparison import Row, network_of
from benchmarks.report_drawing import OURS, RANDOM, Picture, new_axes, plot, short

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
    return (row.entry.benchmark, row.metric, result["protocol"], tuple(row.entry.departures), row.entry.image_size,
            result["data"]["fingerprint"])


def _panels(rows: Sequence[Row], known: dict[str, dict], machine: str) -> Picture:
    figure, panels = new_axes(2.3 * len(AXES), len(AXES))
    for axes, (key, unit, label) in zip(panels, AXES, strict=True):
        points = [(known[row.entry.network][key] / unit, row.value) for row in rows]
        best = front(points)
        axes.step(*zip(*best, strict=True), where="post", color=OURS, alpha=0.4, linewidth=1)
        for row, (cost, value) in zip(rows, points, strict=True):
            error = [[value - row.interval[0]], [row.interval[1] - value]] if row.interval else None
            axes.errorbar(cost, value, yerr=error, fmt="o", color=RANDOM if row.entry.random else OURS, markersize=4,
                          capsize=2, mfc=None if (cost, value) in best else "white")
            axes.annotate(short(row.entry.label, 24), (cost, value), fontsize=7, xytext=(4, 3),
                          textcoords="offset points")
        axes.margins(x=0.25)
        axes.set_xlabel(label)
        axes.set_ylabel("percent")
    entry, metric = rows[0].entry, rows[0].metric
    caption = f"{entry.benchmark} {metric} against cost ({machine}). Filled: no other network here is as cheap and as"
    departs = f" All depart from {entry.result['protocol']}: {'; '.join(entry.departures)}." * bool(entry.departures)
    return plot(figure, f"{caption} accurate.{departs}")
