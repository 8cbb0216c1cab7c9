"""The table of the published system with our results beside it: every published row, ours below their architecture.

A number of ours that was not measured on the published data by the published protocol stands in the table, marked, and
gets no difference. Nothing is averaged: two results of one network in one column stand there both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report.comparison import Entry, Row
from sslight.core.config import flatten, read_yaml
from sslight.core.errors import InputError

IMAGES = {"imagenet": {"val": 50_000}, "coco": {"val": 5_000}}  # by which the published data is recognised


@dataclass(frozen=True)
class Measured:
    """One number of ours in a column of the table; `differs` names what makes it another measure."""

    row: Row
    differs: list[str]


@dataclass(frozen=True)
class Line:
    """One row of the table: a published one (`numbers`, as text) or one of our networks (`ours`), by column title."""

    label: str
    recipe: str
    arch: str
    numbers: dict[str, str] = field(default_factory=dict)
    ours: dict[str, list[Measured]] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """Ours minus a published number of the same architecture and column, and the interval of ours so shifted."""

    column: str
    published: Line
    measured: Measured

    @property
    def value(self) -> float:
        return self.measured.row.value - self.number

    @property
    def number(self) -> float:
        return float(self.published.numbers[self.column])

    @property
    def interval(self) -> list[float] | None:
        own = self.measured.row.interval
        return own and [bound - self.number for bound in own]


@dataclass(frozen=True)
class Table:
    source: str
    columns: list[str]
    lines: list[Line]
    differences: list[Difference]


def beside_published(rows: Sequence[Row], file: Path | str) -> Table | None:
    """The whole table, or None if no result of ours belongs into it.

    Raises InputError if the file of published numbers is not one.
    """
    content: Any = read_yaml(file)
    try:
        columns = {column["title"]: column for column in content["columns"].values()}
        titles = {name: column["title"] for name, column in content["columns"].items()}
        lines = [
            Line(
                line["method"],
                line["recipe"],
                line["arch"],
                {titles[name]: _as_published(value) for name, value in line["numbers"].items()},
            )
            for line in content["rows"]
        ]
        ours = _our_lines(rows, columns)
        if not ours:
            return None
        archs = dict.fromkeys(line.arch for line in [*lines, *ours])
        ordered = [line for arch in archs for part in (lines, ours) for line in part if line.arch == arch]
        differences = [
            Difference(title, line, measured)
            for line in lines
            for mine in ours
            if mine.arch == line.arch
            for title in line.numbers
            for measured in mine.ours.get(title, [])
            if not measured.differs
        ]
        return Table(content["source"], list(columns), ordered, differences)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise InputError(f"{file} is not a table of published numbers: {error!r:.200}") from None


def _as_published(value: Any) -> str:
    """The digits of a number as the file has them (in quotes where they end in more than one zero)."""
    if not math.isfinite(float(value)):
        raise ValueError(f"{value} is no number")
    return str(value)


def _our_lines(rows: Sequence[Row], columns: Mapping[str, dict]) -> list[Line]:
    """One line a network that has a number in any column."""
    lines: dict[tuple, Line] = {}
    for row in rows:
        if row.entry.random or row.entry.result.get("proxy"):  # a shortened training ranks backbones, and no more
            continue
        known = dict(flatten(row.entry.result))
        for title, column in columns.items():
            if (row.entry.benchmark, row.metric) != (column["benchmark"], column["metric"]) or any(
                known.get(key) != value for key, value in column.get("where", {}).items()
            ):
                continue
            checkpoint = row.entry.result["checkpoint"]
            line = lines.setdefault(
                (row.entry.label, checkpoint["sha256"], checkpoint["path"], checkpoint.get("network")),
                Line(row.entry.label, "ours", checkpoint["arch"]),
            )
            line.ours.setdefault(title, []).append(Measured(row, _differs(row.entry, column)))
    return list(lines.values())


def _differs(entry: Entry, column: Mapping) -> list[str]:
    """What of the published measurement a result of ours departs from."""
    counts, differs = entry.result["data"]["counts"], []
    if any(counts.get(split) != number for split, number in IMAGES[column["data"]].items()):
        differs.append("data")
    if entry.result["protocol"] not in column["protocols"] or entry.result.get("departures"):
        differs.append("protocol")
    return differs
