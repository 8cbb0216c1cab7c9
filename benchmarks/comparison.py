"""From result files to rows: which results may be compared, and by how much they differ.

Two results are alike when benchmark, protocol, framework, architecture, data and every setting that decides a number
agree. Only alike results get a difference; of any others the row says what differs. Nothing is averaged over files.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from benchmarks.result import read_result
from pretrain.config import flatten
from pretrain.errors import InputError

# Settings which say where things lie, how fast they go, how often a run is repeated, or which network is measured.
FREE = {"weights", "output_dir", "out_dir", "out", "path_to_data_dir", "data_root", "cache_dir", "workers",
        "num_workers", "persistent_workers", "log_period", "network", "init_seed", "backbone_arch", "seeds", "seed",
        "protocol", "work_dir", "load_from", "dump_dir", "batch_size_features", "num_classes"}
WEIGHT_SUFFIXES = (".pth", ".pkl", ".safetensors")
HEADLINES = {"coco": ("box_AP", "mask_AP")}  # of the other benchmarks: the first metric
IMAGES = {"imagenet": {"val": 50_000}, "coco": {"val": 5_000}}  # by which the published data is recognised


@dataclass(frozen=True)
class Entry:
    """One result file."""

    path: Path
    result: dict

    @property
    def random(self) -> bool:
        return self.result["checkpoint"]["family"] == "random"

    @property
    def benchmark(self) -> str:
        return self.result["benchmark"]

    @property
    def framework(self) -> str:
        return str(self.result.get("framework") or "")

    @property
    def label(self) -> str:
        """What was measured, in a few words: method and architecture, or the random network."""
        checkpoint = self.result["checkpoint"]
        return f"{'random' if self.random else checkpoint['method'] or checkpoint['family']} {checkpoint['arch']}"

    @property
    def headlines(self) -> tuple[str, ...]:
        named = tuple(name for name in HEADLINES.get(self.benchmark, ()) if name in self.result["metrics"])
        return named or tuple(self.result["metrics"])[:1]

    def settings(self) -> dict[str, object]:
        """What has to agree for a comparison, as flat {name: value}."""
        result = self.result
        found = {"benchmark": self.benchmark, "protocol": result["protocol"], "framework": self.framework,
                 "architecture": result["checkpoint"]["arch"], "data": result["data"]["fingerprint"]}
        for key, value in flatten(result["config"]):
            if key.rsplit(".", 1)[-1].lower() not in FREE:
                found[f"config {key}"] = value
        return found


@dataclass(frozen=True)
class Row:
    """One metric of one result, beside the random network's. `differs` names what forbids a difference."""

    entry: Entry
    metric: str
    value: float
    interval: list[float] | None
    headline: bool
    baseline: Entry | None = None
    base_value: float | None = None
    base_interval: list[float] | None = None
    differs: list[str] = field(default_factory=list)
    difference: float | None = None
    difference_interval: list[float] | None = None

    @property
    def verdict(self) -> str:
        """`higher`, `lower`, or what stands in the way of saying so."""
        if self.differs:
            return "not comparable"
        if self.difference is None:
            return "no baseline"
        if self.difference_interval is None:
            return "no interval"
        low, high = self.difference_interval
        return "higher" if low > 0 else "lower" if high < 0 else "no clear difference"


def load(places: Sequence[Path | str]) -> tuple[list[Entry], list[str]]:
    """Every `result.json` at or below `places`, in path order, and one line for each file that is not a result.

    Raises InputError where a place does not exist or no valid result is found.
    """
    files: dict[Path, None] = {}
    for place in map(Path, places):
        if not place.exists():
            raise InputError(f"no such directory: {place}; name a folder that holds result.json files")
        for path in [place] if place.is_file() else sorted(place.rglob("result.json")):
            files[path] = None
    entries, faults = [], []
    for path in files:
        try:
            entries.append(Entry(path, read_result(path)))
        except InputError as error:
            faults.append(str(error))
    if not entries:
        where = ", ".join(map(str, places))
        raise InputError(f"no result.json in {where}; run a benchmark first" if not faults else faults[0])
    return entries, faults


def rows(entries: Sequence[Entry]) -> list[Row]:
    """All metrics of all results, each beside the random network's; a random one used as such has no row of its own."""
    baselines = [entry for entry in entries if entry.random]
    used: set[Path] = set()
    found: list[Row] = []
    for entry in entries:
        if entry.random:
            continue
        baseline, differs = _baseline(entry, baselines)
        if baseline:
            used.add(baseline.path)
        found += [_row(entry, name, baseline, differs) for name in entry.result["metrics"]]
    for entry in baselines:
        if entry.path not in used:
            found += [_row(entry, name, None, []) for name in entry.result["metrics"]]
    return found


def _baseline(entry: Entry, candidates: Sequence[Entry]) -> tuple[Entry | None, list[str]]:
    """The random network's result to hold against `entry`: the most alike, of equals the nearest in the folder tree."""
    same = [other for other in candidates if other.benchmark == entry.benchmark]
    if not same:
        return None, []

    def distance(other: Entry) -> tuple:
        common = os.path.commonpath([entry.path.resolve(), other.path.resolve()])
        return len(unlike(entry, other)), -len(Path(common).parts), str(other.path)

    best = min(same, key=distance)
    return best, unlike(entry, best)


def unlike(a: Entry, b: Entry) -> list[str]:
    """Names of what forbids comparing two results, the weightiest first."""
    ours, theirs = a.settings(), b.settings()
    return [name for name in dict.fromkeys([*ours, *theirs]) if _plain(ours.get(name)) != _plain(theirs.get(name))]


def _plain(value: object) -> object:
    """A setting without what only says where a file lies; the data are compared by their fingerprint."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if key.lower() not in FREE}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return "(a path)" if isinstance(value, str) and ("/" in value or value.endswith(WEIGHT_SUFFIXES)) else value


def _row(entry: Entry, name: str, baseline: Entry | None, differs: list[str]) -> Row:
    metric = entry.result["metrics"][name]
    own = {"entry": entry, "metric": name, "value": metric["value"], "interval": metric["interval"],
           "headline": name in entry.headlines}
    other = baseline.result["metrics"].get(name) if baseline else None
    if other is None:
        return Row(**own)
    own |= {"baseline": baseline, "base_value": other["value"], "base_interval": other["interval"], "differs": differs}
    if differs:
        return Row(**own)
    return Row(**own, difference=metric["value"] - other["value"],
               difference_interval=difference_interval(metric, other))


def difference_interval(a: dict, b: dict) -> list[float] | None:
    """95% interval of `a - b` from the 95% intervals of two independent values, or None where one has none.

    Each half-width is combined in quadrature, so that skewed intervals stay skewed: the MOVER method (Zou & Donner,
    Statistics in Medicine 27, 2008, eq. 3). Both networks are judged on the same images, which makes their errors
    agree rather than differ: treating them as independent makes the interval too wide, never too narrow, for that.
    """
    if not a["interval"] or not b["interval"]:
        return None
    (la, ua), (lb, ub), difference = a["interval"], b["interval"], a["value"] - b["value"]
    return [difference - math.hypot(a["value"] - la, ub - b["value"]),
            difference + math.hypot(ua - a["value"], b["value"] - lb)]


@dataclass(frozen=True)
class Published:
    """A published number, and ours of the same architecture and benchmark beside it."""

    benchmark: str
    metric: str
    arch: str
    method: str
    recipe: str
    value: float
    source: str
    ours: Row
    differs: list[str]


def published(found: Sequence[Row], file: Path | str) -> list[Published]:
    """The published numbers of every architecture and benchmark that occur in `found`, each beside every one of ours.

    Raises InputError if the file of published numbers is not one.
    """
    try:
        table = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        pairs = []
        for line in table["rows"]:
            for name, value in line["numbers"].items():
                column = table["columns"][name]
                pairs += [Published(column["title"], row.metric, line["arch"], line["method"], line["recipe"],
                                    float(value), table["source"], row, _unpublished(row.entry, line, column))
                          for row in found if _belongs(row, line, column)]
        return pairs
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{file} is not a table of published numbers: {error!r}") from None


def _belongs(row: Row, line: dict, column: dict) -> bool:
    """Whether this metric of ours goes beside this published number at all, comparable or not."""
    result = row.entry.result
    if row.entry.random or (row.entry.benchmark, row.metric) != (column["benchmark"], column["metric"]):
        return False
    known = dict(flatten(result))
    return result["checkpoint"]["arch"] == line["arch"] and all(
        known.get(key) == value for key, value in column.get("where", {}).items())


def _unpublished(entry: Entry, line: dict, column: dict) -> list[str]:
    """How our result departs from the published row: method, data, protocol."""
    differs = []
    if entry.result["checkpoint"]["method"] != line["method"]:
        differs.append(f"method {entry.result['checkpoint']['method']}")
    counts = entry.result["data"]["counts"]
    if any(counts.get(split) != number for split, number in IMAGES[column["data"]].items()):
        differs.append("data")
    if entry.result["protocol"] not in column["protocols"] or entry.result.get("departures"):
        differs.append("protocol")
    return differs
