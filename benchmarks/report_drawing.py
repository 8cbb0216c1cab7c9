"""What the report's pictures share: their form, their colours, and how they become part of the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from matplotlib.axes import Axes
from matplotlib.figure import Figure

OURS, RANDOM = "#0b6bcb", "#8a8f98"
OTHERS = (OURS, "#c2410c", "#15803d", "#7e22ce", "#be185d", "#0e7490")
MOST_BARS, MOST_LINES, MOST_PLOTS, MOST_PICTURES = 30, 8, 6, 24  # plots: of each kind; pictures: in the whole page
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3,
         "legend.frameon": False, "svg.hashsalt": "sslight", "text.parse_math": False}  # names are text, not formulas


@dataclass(frozen=True)
class Picture:
    """`address` is a data: URL; `kind` groups pictures in the report; `caption` says what is seen."""

    kind: str
    address: str
    caption: str


def first(drawn: Iterable[list[Picture]]) -> list[Picture]:
    """The first plots of one kind; no more than these are drawn."""
    return list(islice((picture for pictures in drawn for picture in pictures), MOST_PLOTS))


def new_axes(height: float = 2.8, panels: int = 1) -> tuple[Figure, Axes]:
    """A figure that a phone can show, with one axes, or with an array of several, one below the other."""
    figure = Figure(figsize=(4.8, height), layout="constrained")
    return figure, figure.subplots(panels)


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
    return text if len(text) <= most else f"{text[:most // 2]}…{text[-(most // 2 - 1):]}"
