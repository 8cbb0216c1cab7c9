"""One page over many results: `sslight report DIR... -o report.html` (also .md, .csv, .json), and a table here.

Reads the `result.json` and `cost.json` files below the directories (and, for learning curves, the `metrics.jsonl` of
run directories); measures nothing itself. Every metric stands beside the random network's under the same protocol, data
and settings, or with --diff A B beside the other set's; whatever is not alike is flagged instead of compared, and
nothing is averaged over files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.deployment.cost import read_cost
from benchmarks.report import published
from benchmarks.report.comparison import Entry, Row, load, network_of, rows
from benchmarks.report.page import Report, benchmark, departing, listed, number, span, verdict, visible
from sslight.core.arguments import Parser
from sslight.core.config import CONFIGS, find_config
from sslight.core.errors import InputError
from sslight.core.files import write_text

PUBLISHED = CONFIGS / "suites" / "published.yaml"
MOST_ROWS = 80  # in the terminal; where there are more, it shows the headline metrics
SUFFIXES = (".html", ".md", ".csv", ".json")
HOW = (
    "Intervals of values are as the result files give them: bootstrap over the test images, and over the seeds "
    "where there are several; ± is the standard deviation over seeds. "
)
HOW_RANDOM = (
    "The interval of a difference combines the two intervals in quadrature (MOVER) as if the networks were "
    "independent; "
)
HOW_DIFF = (
    "The interval of a difference is bootstrapped over the images, the same draw for both sides, where a row "
    'says "paired"; elsewhere the two intervals are combined in quadrature (MOVER) as if independent; '
)
LEVEL = 'all are 95%. "Higher" and "lower" mean that the interval excludes zero.'


def parser() -> Parser:
    parser = Parser(
        "sslight report",
        "One page over many results, beside the published numbers.",
        "sslight report results runs/r18 -o report.html report.csv",
        "sslight report --diff results/mine results/random-resnet18 -o diff.html",
    )
    parser.add_argument("places", nargs="*", metavar="DIR", help="folders with results, and run directories")
    parser.add_argument("--diff", nargs=2, metavar=("A", "B"), help="paired differences of two folders or result files")
    text = f"files to write: {', '.join(SUFFIXES)}"
    parser.add_argument("-o", "--out", "--output", nargs="+", default=[], metavar="FILE", help=text)
    parser.add_argument("--published", default=PUBLISHED, metavar="YAML", help="published numbers to put beside ours")
    parser.add_argument("--title", help="heading of the page")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    report = build(args)
    for fault in report.faults:
        print(f"left out: {fault}")
    print_table(report)
    for output in args.out:
        print(f"wrote {output}")
    return 0


def build(args: argparse.Namespace) -> Report:
    """The report that the command line asks for, written to its files."""
    if bool(args.places) == bool(args.diff):
        raise InputError(
            "name the folders that hold results, e.g. sslight report results -o report.html, or two of "
            "them after --diff"
        )
    for output in map(Path, args.out):
        if output.suffix not in SUFFIXES:
            raise InputError(f"cannot write a report as '{output.name}': end it in {', '.join(SUFFIXES)}")
        if output.is_dir():
            raise InputError(f"{output} is a directory: name a file")
    report = (
        diff(args.diff[0], args.diff[1], args.title)
        if args.diff
        else gather(args.places, find_config(args.published), args.title)
    )
    for output in map(Path, args.out):
        from benchmarks.report.files import WRITERS

        write_text(output, WRITERS[output.suffix](report))
    return report


def gather(places: Sequence[Path | str], table: Path, title: str | None) -> Report:
    """The report over everything below `places`. Raises InputError where there is no result."""
    entries, faults = load(places)
    table_rows = rows(entries)
    if not table.exists():
        raise InputError(f"no such file of published numbers: {table}")
    folders = [path for path in map(Path, places) if path.is_dir()]
    runs = sorted({path.parent for folder in folders for path in folder.rglob("metrics.jsonl")})
    measured = {entry.path.parent for entry in entries}  # a benchmark's own training below it is not pre-training
    costs = []
    for file in sorted({path for folder in folders for path in folder.rglob("cost.json")}):
        try:
            costs.append(read_cost(file))
        except InputError as error:
            faults.append(str(error))
    return Report(
        title or "Downstream results",
        table_rows,
        entries,
        faults,
        HOW + HOW_RANDOM + LEVEL,
        published=published.beside_published(table_rows, table),
        costs=costs,
        without_cost=without_cost(table_rows, costs),
        runs=[run for run in runs if not measured & {run, *run.parents}],
    )


def diff(a: Path | str, b: Path | str, title: str | None) -> Report:
    """The report of A's results beside B's."""
    from benchmarks.report.paired import differences

    compared, entries, faults = differences(a, b)
    ours = {row.entry.label for row in compared}
    theirs = {row.baseline.label for row in compared if row.baseline}
    named = len(ours) == len(theirs) == 1 and ours != theirs  # else the folders tell the two apart
    one, other = (*ours, *theirs) if named else (str(a), str(b))
    return Report(title or f"{one} against {other}", compared, entries, faults, HOW + HOW_DIFF + LEVEL, against=other)


def without_cost(rows: Sequence[Row], costs: Sequence[dict]) -> list[tuple[str, str]]:
    """Which results have no place on the plots of accuracy against cost, and the command that measures what they lack.

    A cost belongs to a result of the same network at the same image size.
    """
    measured = {(network_of(cost), cost["image_size"]) for cost in costs}
    lacking: dict[tuple[int, str], dict[str, None]] = {}
    for row in rows:
        if row.entry.image_size and (row.entry.network, row.entry.image_size) not in measured:
            options = row.entry.network.removeprefix(row.entry.arch)  # a command has one set of them
            lacking.setdefault((row.entry.image_size, options), {})[row.entry.arch] = None
    notes = [
        (
            f"No accuracy against cost for {', '.join(archs)}{options} at {size} px, where no cost was measured; "
            "measure it:",
            f"sslight bench cost {' '.join(archs)}{options} --size {size} -o DIR",
        )
        for (size, options), archs in lacking.items()
    ]
    if costs and any(row.entry.benchmark == "coco" for row in rows):
        notes.append(("No accuracy against cost for detection: its images vary in size, a cost is of one size.", ""))
    return notes


def print_table(report: Report, console: Console | None = None) -> None:
    """The table in the terminal; names are printed as text, never read as markup."""
    console = console or Console(width=None if sys.stdout.isatty() else 120)
    networks = list(dict.fromkeys(row.entry.label for row in report.rows))
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=Text(visible(f"{listed(networks)}: percent, with 95% intervals")),
    )
    fixed = ("value", Path(report.against).name, "difference")
    for name in ("benchmark", "metric", *["network"] * (len(networks) > 1), *fixed, "verdict"):
        table.add_column(
            Text(visible(name)),
            overflow="fold",
            no_wrap=name in fixed,
            min_width={"benchmark": 9, "verdict": 10}.get(name),
        )
    headlines = [row for row in report.rows if row.headline]
    rest = [row for row in report.rows if not row.headline] if len(report.rows) <= MOST_ROWS else []
    for row in headlines + rest:
        colour = {"higher": "green", "lower": "red", "not comparable": "yellow"}.get(row.verdict, "")
        cells = [
            benchmark(row),
            row.metric,
            *[row.entry.label] * (len(networks) > 1),
            _value(row.entry, row.value, row.interval),
            _value(row.baseline, row.base_value, row.base_interval),
            f"{number(row.difference, row.difference_interval, True)}\n{span(row.difference_interval, True)}",
        ]
        said = verdict(row) + ", paired" * row.how.startswith("paired")
        table.add_row(
            *(Text(visible(text).strip()) for text in cells),
            Text(visible(said), style=colour),
            style="bold" if row.headline else "",
        )
    console.print(table)
    for entry in {
        entry.path: entry
        for row in headlines + rest
        for entry in (row.entry, row.baseline)
        if entry and entry.departures
    }.values():
        console.print(
            Text(visible(f"* {entry.label} departs from {entry.result['protocol']} in {listed(entry.departures)}"))
        )
    for text, command in report.without_cost if report.costs else ():
        console.print(Text(visible(f"{text} {command}".strip())))
    left = len(report.rows) - len(headlines) - len(rest)
    if left:
        console.print(f"{left} further metrics are in every file written with -o", highlight=False)


def _value(entry: Entry | None, value: float | None, interval: Sequence[float] | None) -> str:
    """A value above its interval, with a star where it departs from its protocol."""
    return f"{number(value, interval)}{' *' * bool(departing(entry))}\n{span(interval)}"
