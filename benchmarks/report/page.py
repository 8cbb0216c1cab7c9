"""A report as data, and its numbers, intervals and verdicts in words: what every form of it shows."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.report import published
from benchmarks.report.comparison import Entry, Row


@dataclass(frozen=True)
class Report:
    """All that a report shows. `against` names the baseline that the rows stand beside."""

    title: str
    rows: list[Row]
    entries: list[Entry]
    faults: list[str]
    how: str
    against: str = "random"
    published: published.Table | None = None
    costs: list[dict] = field(default_factory=list)
    without_cost: list[tuple[str, str]] = field(default_factory=list)  # of `without_cost`
    runs: list[Path] = field(default_factory=list)

    @property
    def heading(self) -> str:
        return "Pre-trained against random" if self.against == "random" else f"Against {self.against}"


def number(value: float | None, interval: Sequence[float] | None = None, sign: bool = False) -> str:
    """A value of ours with the precision of its interval: two digits of the half-width, and at most two decimals."""
    if value is None:
        return ""
    half = (interval[1] - interval[0]) / 2 if interval else 0.0
    decimals = min(2, max(0, 1 - math.floor(math.log10(half)))) if half > 0 else 2
    value = round(value, decimals) or 0.0  # not -0.00
    return f"{value:{'+' if sign else ''}.{decimals}f}"


def span(interval: Sequence[float] | None, sign: bool = False) -> str:
    return "" if not interval else f"[{', '.join(number(bound, interval, sign) for bound in interval)}]"


def deviation(row: Row) -> str:
    """The standard deviation over the seeds, where there are several."""
    return "" if row.std is None else f"± {row.std:.2f} over {row.seeds} seeds"


def departing(entry: Entry | None) -> str:
    """What stands at a number that was not measured by its protocol as it is; "" at any other."""
    return f"departs: {listed(entry.departures)}" if entry and entry.departures else ""


def verdict(row: Row) -> str:
    """The verdict; where a difference in conditions forbids one, that difference."""
    return f"{row.verdict}: {listed(row.differs)}" if row.differs else row.verdict


def listed(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def benchmark(row: Row) -> str:
    return " ".join(filter(None, (row.entry.benchmark, row.entry.framework)))


def visible(text: str) -> str:
    """The text without control characters, which could move a terminal's cursor or hide what follows."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text)
