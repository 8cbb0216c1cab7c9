"""A report as a file: a self-contained page, Markdown, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import jinja2

from benchmarks.deployment.cost import form_of
from benchmarks.report import plots as report_plots
from benchmarks.report.comparison import Entry, Row
from benchmarks.report.page import Report, benchmark, departing, deviation, listed, number, span, verdict, visible
from benchmarks.report.published import Table

COLUMNS = (
    "benchmark",
    "metric",
    "network",
    "value",
    "interval",
    "departures",
    "std",
    "seeds",
    "baseline",
    "baseline interval",
    "baseline departures",
    "difference",
    "difference interval",
    "how",
    "verdict",
    "differs",
    "protocol",
    "framework",
    "file",
)


def record(row: Row) -> dict:
    """One row as plain values, under the names of COLUMNS."""
    entry = row.entry
    return dict(
        zip(
            COLUMNS,
            (
                entry.benchmark,
                row.metric,
                entry.label,
                row.value,
                row.interval,
                entry.departures,
                row.std,
                row.seeds,
                row.base_value,
                row.base_interval,
                row.baseline.departures if row.baseline else [],
                row.difference,
                row.difference_interval,
                row.how,
                row.verdict,
                row.differs,
                entry.result["protocol"],
                entry.framework,
                str(entry.path),
            ),
            strict=True,
        )
    )


def to_html(report: Report) -> str:
    """The self-contained page: no script, no address but `data:` ones."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "number": number,
        "span": span,
        "listed": listed,
        "verdict": verdict,
        "deviation": deviation,
        "benchmark": benchmark,
        "departing": departing,
        "form_of": form_of,
        "pretty": lambda value: json.dumps(value, indent=1, ensure_ascii=False, default=str),
    }
    pictures = report_plots.draw_all(report)
    return environment.get_template("report.html.j2").render(
        report=report,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        plots=[picture for picture in pictures if picture.kind == "plot"],
        examples=[picture for picture in pictures if picture.kind == "example"],
    )


def to_markdown(report: Report) -> str:
    lines = [
        f"# {cell(report.title)}",
        "",
        *grid(
            ("benchmark", "metric", "network", "value", report.against, "difference", "verdict"),
            [
                (
                    benchmark(row),
                    row.metric,
                    row.entry.label,
                    _measured(row),
                    f"{number(row.base_value, row.base_interval)} {span(row.base_interval)} {departing(row.baseline)}",
                    f"{number(row.difference, row.difference_interval, True)} {span(row.difference_interval, True)} "
                    f"{row.how}",
                    verdict(row),
                )
                for row in report.rows
            ],
        ),
        "",
        report.how,
    ]
    if report.published:
        lines += ["", "## Beside the published numbers", "", *_published(report.published)]
    if report.costs:
        lines += [
            "",
            "## Cost",
            "",
            *grid(
                ("backbone", "parameters", "FLOPs", "latency, ms", "images/s", "machine"),
                [
                    (
                        f"{cost['arch']} {form_of(cost)}",
                        f"{cost['parameters'] / 1e6:.2f} M",
                        f"{cost['flops'] / 1e9:.2f} G",
                        number(cost["latency_ms"], cost["latency_ms_quartiles"]),
                        f"{cost['images_per_second']:.0f}",
                        f"{cost['machine']}, {cost['threads']} threads",
                    )
                    for cost in report.costs
                ],
            ),
        ]
    for text, command in report.without_cost:
        lines += ["", f"{cell(text)} {f'`{visible(command)}`' if command else ''}".strip()]
    lines += [
        "",
        "## Provenance",
        "",
        *grid(
            ("result", "checkpoint", "data", "code", "seconds", "command"),
            [provenance(entry) for entry in report.entries],
        ),
    ]
    lines += ["", *(f"Left out: {cell(fault)}" for fault in report.faults)] if report.faults else []
    return "\n".join(lines) + "\n"


def _measured(row: Row) -> str:
    """A number of ours with all that belongs to it."""
    return " ".join(
        filter(None, (number(row.value, row.interval), deviation(row), span(row.interval), departing(row.entry)))
    )


def _published(table: Table) -> list[str]:
    def shown(line, column: str) -> str:
        if column in line.numbers:
            return line.numbers[column]
        return "; ".join(
            f"{_measured(measured.row)}{' (other ' + listed(measured.differs) + ')' if measured.differs else ''}"
            for measured in line.ours.get(column, [])
        )

    return [
        *grid(
            ("network", "recipe", *table.columns),
            [
                (
                    f"{line.label} {line.arch}" if line.numbers else line.label,
                    line.recipe,
                    *(shown(line, column) for column in table.columns),
                )
                for line in table.lines
            ],
        ),
        "",
        *grid(
            ("column", "ours", "published", "value", "difference"),
            [
                (
                    difference.column,
                    difference.measured.row.entry.label,
                    f"{difference.published.label} {difference.published.recipe}",
                    difference.published.numbers[difference.column],
                    f"{number(difference.value, difference.interval, True)} {span(difference.interval, True)}",
                )
                for difference in table.differences
            ],
        ),
    ]


def provenance(entry: Entry) -> tuple[str, ...]:
    result = entry.result
    return (
        str(entry.path),
        f"{result['checkpoint']['path']} {str(result['checkpoint']['sha256'])[:12]}",
        f"{result['data']['path']} {str(result['data']['fingerprint'])[:12]}",
        str((result["git"] or {}).get("commit", ""))[:12],
        f"{result['seconds']:.0f}",
        str(result["command"]),
    )


def grid(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [
        f"| {' | '.join(cell(text) for text in header)} |",
        "|" + " --- |" * len(header),
        *(f"| {' | '.join(cell(text) for text in line)} |" for line in body),
    ]


def cell(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|$~&!])", r"\\\1", visible(" ".join(str(text).split()))).replace("\\<", "&lt;")


def to_csv(report: Report) -> str:
    """One line a metric; intervals in two columns each."""
    wide = {name: ((f"{name} low", f"{name} high") if name.endswith("interval") else (name,)) for name in COLUMNS}
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow([column for name in COLUMNS for column in wide[name]])
    for row in report.rows:
        line: list[object] = []
        for name, value in record(row).items():
            line += (value or ["", ""]) if name.endswith("interval") else [_spreadsheet(value)]
        writer.writerow(line)
    return buffer.getvalue()


def _spreadsheet(value: object) -> object:
    """Text that a spreadsheet does not take for a formula."""
    value = "; ".join(map(str, value)) if isinstance(value, list) else "" if value is None else value
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value


def to_json(report: Report) -> str:
    table = report.published
    return (
        json.dumps(
            {
                "title": report.title,
                "how": report.how,
                "against": report.against,
                "rows": [record(row) for row in report.rows],
                "published": [
                    {
                        "column": difference.column,
                        "method": difference.published.label,
                        "arch": difference.published.arch,
                        "recipe": difference.published.recipe,
                        "value": difference.number,
                        "ours": difference.measured.row.value,
                        "difference": difference.value,
                        "interval": difference.interval,
                        "file": str(difference.measured.row.entry.path),
                    }
                    for difference in (table.differences if table else [])
                ],
                "costs": report.costs,
                "without_cost": [" ".join(words).strip() for words in report.without_cost],
                "results": {str(entry.path): entry.result for entry in report.entries},
                "runs": [str(run) for run in report.runs],
                "left_out": report.faults,
            },
            indent=2,
        )
        + "\n"
    )


WRITERS: dict[str, Callable[[Report], str]] = {".html": to_html, ".md": to_markdown, ".csv": to_csv, ".json": to_json}
