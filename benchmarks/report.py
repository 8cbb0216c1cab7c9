"""One page over many results: `sslight report DIR... -o report.html` (also .md, .csv, .json), and a table here.

Reads the `result.json` files below the directories (and, for learning curves, the `metrics.jsonl` of run directories);
measures nothing itself. Every metric stands beside the random network's under the same protocol, data and settings;
whatever is not alike is flagged instead of compared, and nothing is averaged over files.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import jinja2
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.comparison import Entry, Published, Row, load, published, rows
from pretrain.errors import InputError, Parser, run_command
from pretrain.files import write_atomically

PUBLISHED = Path(__file__).resolve().parents[1] / "configs" / "suites" / "published.yaml"
HOW = ("Intervals of values are as the result files give them: bootstrap over the test images, and over the seeds "
       "where there are several. The interval of a difference combines the two intervals in quadrature (MOVER) and "
       "treats the networks as independent; both are 95%. \"Higher\" and \"lower\" mean that it excludes zero.")
COLUMNS = ("benchmark", "metric", "network", "value", "interval", "random", "random interval", "difference",
           "difference interval", "verdict", "differs", "protocol", "framework", "file")


def parser() -> Parser:
    made = Parser("sslight report", "One page over many results, beside the published numbers.",
                  "sslight report results runs/r18 -o report.html report.csv")
    made.add_argument("places", nargs="+", metavar="DIR", help="folders with results, and run directories")
    made.add_argument("-o", "--output", nargs="+", default=[], metavar="FILE",
                        help="files to write: .html, .md, .csv or .json")
    made.add_argument("--published", default=PUBLISHED, metavar="YAML", help="published numbers to put beside ours")
    made.add_argument("--title", default="Downstream results")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    report(args.places, args.output, Path(args.published), args.title)
    return 0


def report(places: Sequence[Path | str], outputs: Sequence[Path | str], table: Path, title: str) -> None:
    """Read, print the table, and write each output by its suffix. Raises InputError before any of it is written."""
    for output in map(Path, outputs):
        if output.suffix not in WRITERS:
            raise InputError(f"cannot write a report as '{output.name}': end it in {', '.join(WRITERS)}")
        if output.is_dir():
            raise InputError(f"{output} is a directory: name a file")
    entries, faults = load(places)
    found = rows(entries)
    beside = published(found, table) if table.exists() else []
    runs = sorted({path.parent for place in map(Path, places) if place.is_dir()
                   for path in place.rglob("metrics.jsonl")})
    measured = {entry.path.parent for entry in entries}  # a benchmark's own training below it is not pre-training
    runs = [run for run in runs if not measured & {run, *run.parents}]
    for fault in faults:
        print(f"left out: {fault}")
    print_table(found)
    for output in map(Path, outputs):
        text = WRITERS[output.suffix](title, found, entries, beside, runs, faults)
        write_atomically(output, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8"))
        print(f"wrote {output}")


def number(value: float | None, sign: bool = False) -> str:
    return "" if value is None else f"{value:+.2f}" if sign else f"{value:.2f}"


def span(interval: Sequence[float] | None, sign: bool = False) -> str:
    return "" if not interval else f"[{number(interval[0], sign)}, {number(interval[1], sign)}]"


def verdict(row: Row) -> str:
    """The verdict, with what differs where that stands in the way of a comparison."""
    return f"{row.verdict}: {listed(row.differs)}" if row.differs else row.verdict


def listed(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def record(row: Row) -> dict:
    """One row as plain values, under the names of COLUMNS."""
    entry = row.entry
    return dict(zip(COLUMNS, (entry.benchmark, row.metric, entry.label, row.value, row.interval, row.base_value,
                              row.base_interval, row.difference, row.difference_interval, row.verdict, row.differs,
                              entry.result["protocol"], entry.framework, str(entry.path)), strict=True))


def print_table(found: Sequence[Row], console: Console | None = None) -> None:
    """The table in the terminal; names are printed as text, never read as markup."""
    console = console or Console()
    networks = list(dict.fromkeys(row.entry.label for row in found))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
                  title=Text(visible(f"{listed(networks)}: percent, with 95% intervals")))
    for name in ("benchmark", "metric", *["network"] * (len(networks) > 1), "value", "random", "difference", "verdict"):
        table.add_column(name, overflow="fold", no_wrap=name in ("value", "random", "difference"))
    for row in sorted(found, key=lambda row: not row.headline):
        entry = row.entry
        colour = {"higher": "green", "lower": "red", "not comparable": "yellow"}.get(row.verdict, "")
        cells = [" ".join(filter(None, (entry.benchmark, entry.framework))), row.metric,
                 *[entry.label] * (len(networks) > 1), f"{number(row.value)}\n{span(row.interval)}",
                 f"{number(row.base_value)}\n{span(row.base_interval)}",
                 f"{number(row.difference, True)}\n{span(row.difference_interval, True)}"]
        table.add_row(*(Text(visible(text).strip()) for text in cells), Text(visible(verdict(row)), style=colour),
                      style="bold" if row.headline else "")
    console.print(table)


def visible(text: str) -> str:
    """The text without control characters, which could move a terminal's cursor or hide what follows."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text)


def to_html(title: str, found: Sequence[Row], entries: Sequence[Entry], beside: Sequence[Published],
            runs: Sequence[Path], faults: Sequence[str]) -> str:
    """The self-contained page: no script, no address but `data:` ones."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
                                     autoescape=True, trim_blocks=True, lstrip_blocks=True,
                                     undefined=jinja2.StrictUndefined)
    environment.filters |= {"number": number, "span": span, "listed": listed, "verdict": verdict,
                            "pretty": lambda value: json.dumps(value, indent=1, ensure_ascii=False, default=str)}
    from benchmarks import report_plots  # matplotlib is not needed for a table

    pictures = report_plots.draw_all(found, entries, runs)
    return environment.get_template("report.html.j2").render(
        title=title, rows=found, entries=entries, published=beside, faults=faults, how=HOW,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        plots=[picture for picture in pictures if picture.kind == "plot"],
        examples=[picture for picture in pictures if picture.kind == "example"])


def to_markdown(title: str, found: Sequence[Row], entries: Sequence[Entry], beside: Sequence[Published],
                runs: Sequence[Path], faults: Sequence[str]) -> str:
    lines = [f"# {cell(title)}", "", *grid(
        ("benchmark", "metric", "network", "value", "random", "difference", "verdict"),
        [(" ".join(filter(None, (row.entry.benchmark, row.entry.framework))), row.metric, row.entry.label,
          f"{number(row.value)} {span(row.interval)}", f"{number(row.base_value)} {span(row.base_interval)}",
          f"{number(row.difference, True)} {span(row.difference_interval, True)}", verdict(row)) for row in found]),
        "", HOW]
    if beside:
        lines += ["", "## Published numbers", "", *grid(
            ("benchmark", "published", "recipe", "value", "ours", "differs"),
            [(line.benchmark, f"{line.method} {line.arch}", line.recipe, number(line.value), number(line.ours.value),
              listed(line.differs)) for line in beside])]
    lines += ["", "## Provenance", "", *grid(
        ("result", "checkpoint", "data", "code", "seconds", "command"),
        [(str(entry.path), f"{entry.result['checkpoint']['path']} {str(entry.result['checkpoint']['sha256'])[:12]}",
          f"{entry.result['data']['path']} {str(entry.result['data']['fingerprint'])[:12]}",
          str((entry.result["git"] or {}).get("commit", ""))[:12], f"{entry.result['seconds']:.0f}",
          str(entry.result["command"])) for entry in entries])]
    lines += ["", *(f"Left out: {cell(fault)}" for fault in faults)] if faults else []
    return "\n".join(lines) + "\n"


def grid(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(header)} |", "|" + " --- |" * len(header),
            *(f"| {' | '.join(cell(text) for text in line)} |" for line in body)]


def cell(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|$~&!])", r"\\\1", visible(" ".join(str(text).split()))).replace("\\<", "&lt;")


def to_csv(title: str, found: Sequence[Row], *_: object) -> str:
    """One line a metric; intervals in two columns each."""
    wide = {name: ((f"{name} low", f"{name} high") if name.endswith("interval") else (name,)) for name in COLUMNS}
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow([column for name in COLUMNS for column in wide[name]])
    for row in found:
        line = []
        for name, value in record(row).items():
            line += (value or ["", ""]) if name.endswith("interval") else [_spreadsheet(value)]
        writer.writerow(line)
    return buffer.getvalue()


def _spreadsheet(value: object) -> object:
    """Text that a spreadsheet does not take for a formula."""
    value = "; ".join(map(str, value)) if isinstance(value, list) else "" if value is None else value
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value


def to_json(title: str, found: Sequence[Row], entries: Sequence[Entry], beside: Sequence[Published],
            runs: Sequence[Path], faults: Sequence[str]) -> str:
    return json.dumps({
        "title": title, "how": HOW, "rows": [record(row) for row in found],
        "published": [{"benchmark": line.benchmark, "metric": line.metric, "method": line.method, "arch": line.arch,
                       "recipe": line.recipe, "value": line.value, "ours": line.ours.value,
                       "file": str(line.ours.entry.path), "differs": line.differs} for line in beside],
        "results": {str(entry.path): entry.result for entry in entries}, "runs": [str(run) for run in runs],
        "left_out": list(faults)}, indent=2) + "\n"


WRITERS: dict[str, Callable[..., str]] = {".html": to_html, ".md": to_markdown, ".csv": to_csv, ".json": to_json}

if __name__ == "__main__":
    run_command(main)
