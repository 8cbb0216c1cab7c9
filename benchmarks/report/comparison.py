"""From result files to rows: which results may be compared, and by how much they differ.

Two results are alike when benchmark, protocol, framework, architecture, data and every setting that decides a number
agree. Only alike results get a difference; of any others the row says what differs. Nothing is averaged over files.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from sslight.core.config import flatten
from sslight.core.errors import InputError, nearest_file
from sslight.core.result import read_result

# Settings which say where things lie, how fast they go, how often a run is repeated, or which network is measured.
FREE = {
    "weights",
    "output_dir",
    "out_dir",
    "out",
    "path_to_data_dir",
    "data_root",
    "cache_dir",
    "workers",
    "num_workers",
    "persistent_workers",
    "log_period",
    "network",
    "init_seed",
    "backbone_arch",
    "seeds",
    "seed",
    "protocol",
    "work_dir",
    "load_from",
    "dump_dir",
    "batch_size_features",
    "num_classes",
}
NAMES = ("NAME", "settings.NAME")  # of the network; a framework's own keys of that name do decide
WEIGHT_SUFFIXES = (".pth", ".pkl", ".safetensors")
COMBINED = "the two intervals combined"
HEADLINES = {"coco": ("box_AP", "mask_AP")}  # of the other benchmarks: the first metric


def network_of(described: Mapping) -> str:
    """A network as words of `bench cost`: the `arch` and `options` of a result's checkpoint, or of a cost file."""
    options = {key: value for key, value in (described.get("options") or {}).items() if key != "img_size"}
    return " ".join([described["arch"], *(f"--set {key}={options[key]}" for key in sorted(options))])


@dataclass(frozen=True)
class Entry:
    """One result file."""

    path: Path
    result: dict
    tag: str = ""  # tells networks of the same label apart

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
        """What was measured, in a few words: the name that the user gave, else method or family; and architecture."""
        checkpoint = self.result["checkpoint"]
        method = checkpoint["method"] if checkpoint["method"] != "unknown" else ""
        what = checkpoint.get("name") or ("random" if self.random else method or checkpoint["family"])
        return f"{what} {self.arch}{self.tag and f' ({self.tag})'}"

    @property
    def arch(self) -> str:
        return self.result["checkpoint"]["arch"]

    @property
    def network(self) -> str:
        """What decides its cost beside the image size: the architecture and its build options (see `network_of`)."""
        return network_of(self.result["checkpoint"])

    @property
    def image_size(self) -> int | None:
        """Pixels of the square images that the network saw; None where they vary, as a detector's do."""
        size = dict(flatten(self.result["config"])).get("DATA.SIZE")
        return size if isinstance(size, int) else None

    @property
    def departures(self) -> list[str]:
        """Where the measurement departs from the protocol that it names, each as `KEY VALUE`."""
        changed = self.result.get("departures")
        return [f"{key} {value}" for key, value in changed.items()] if isinstance(changed, dict) else []

    @property
    def headlines(self) -> tuple[str, ...]:
        named = tuple(name for name in HEADLINES.get(self.benchmark, ()) if name in self.result["metrics"])
        return named or tuple(self.result["metrics"])[:1]

    @cached_property
    def settings(self) -> dict[str, object]:
        """What has to agree for a comparison, as flat {name: value}, without what only says where a file lies."""
        result = self.result
        conditions = {
            "benchmark": self.benchmark,
            "protocol": result["protocol"],
            "framework": self.framework,
            "architecture": result["checkpoint"]["arch"],
            "data": result["data"]["fingerprint"],
        }
        for key, value in flatten(result["config"]):
            if key.rsplit(".", 1)[-1].lower() not in FREE and key not in NAMES:
                conditions[f"config {key}"] = _plain(value)
        return conditions


@dataclass(frozen=True)
class Row:
    """One metric of one result, beside that of a baseline. `differs` names what forbids a difference.

    `std` is the standard deviation over the seeds where there are several; `how` says where the difference's interval
    comes from.
    """

    entry: Entry
    metric: str
    value: float
    interval: list[float] | None
    headline: bool
    std: float | None = None
    baseline: Entry | None = None
    base_value: float | None = None
    base_interval: list[float] | None = None
    differs: list[str] = field(default_factory=list)
    difference: float | None = None
    difference_interval: list[float] | None = None
    how: str = ""

    @property
    def seeds(self) -> int:
        return len(self.entry.result["per_seed"])

    @property
    def verdict(self) -> str:
        """`higher`, `lower`, or why neither can be said."""
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
            raise InputError(
                f"no such directory: {place}{nearest_file(place)}; name a folder that holds result.json files"
            )
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
    return _told_apart(entries), faults


def _told_apart(entries: Sequence[Entry]) -> list[Entry]:
    """The entries, tagged where networks share a label: by what differs in path and network, else by their hashes."""

    def identity(entry: Entry) -> tuple[str, tuple[str, ...]]:
        about = entry.result["checkpoint"]
        return str(about["sha256"]), (*Path(str(about["path"])).parts, str(about.get("network") or ""))

    labelled = []
    for entry in entries:
        namesakes = {identity(other) for other in entries if other.label == entry.label and not entry.random}
        sha256, path = identity(entry)
        paths = [other for _, other in namesakes]
        start = len(os.path.commonprefix(paths))
        end = len(os.path.commonprefix([other[start:][::-1] for other in paths]))
        differing = "/".join(filter(None, path[start : len(path) - end]))
        unique = len(set(paths)) == len(paths)
        labelled.append(replace(entry, tag=(differing if unique else sha256[:8]) if len(paths) > 1 else ""))
    return labelled


def rows(entries: Sequence[Entry]) -> list[Row]:
    """All metrics of all results, each beside the random network's; a random one used as such has no row of its own."""
    baselines = [entry for entry in entries if entry.random]
    used: set[Path] = set()
    table: list[Row] = []
    for entry in entries:
        if entry.random:
            continue
        baseline, differs = _baseline(entry, baselines)
        if baseline:
            used.add(baseline.path)
        table += [row(entry, name, baseline, differs) for name in entry.result["metrics"]]
    for entry in baselines:
        if entry.path not in used:
            table += [row(entry, name, None, []) for name in entry.result["metrics"]]
    return table


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
    ours, theirs = a.settings, b.settings
    return [name for name in dict.fromkeys([*ours, *theirs]) if ours.get(name) != theirs.get(name)]


def alike(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Groups of entries that may be compared with one another, whatever their architectures."""
    groups: list[list[Entry]] = []
    for entry in entries:
        group = next((group for group in groups if set(unlike(group[0], entry)) <= {"architecture"}), None)
        if group is None:
            groups.append([entry])
        else:
            group.append(entry)
    return groups


def _plain(value: object) -> object:
    """A setting without what only says where a file lies; the data are compared by their fingerprint."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if key.lower() not in FREE}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return "(a path)" if isinstance(value, str) and ("/" in value or value.endswith(WEIGHT_SUFFIXES)) else value


def row(entry: Entry, name: str, baseline: Entry | None, differs: list[str]) -> Row:
    """One metric beside the baseline's, with a difference where nothing forbids it."""
    metric = entry.result["metrics"][name]
    own = {
        "entry": entry,
        "metric": name,
        "value": metric["value"],
        "interval": metric["interval"],
        "headline": name in entry.headlines,
        "std": metric.get("std"),
    }
    other = baseline.result["metrics"].get(name) if baseline else None
    if other is None:
        return Row(**own)
    own |= {"baseline": baseline, "base_value": other["value"], "base_interval": other["interval"], "differs": differs}
    if differs:
        return Row(**own)
    return Row(
        **own,
        difference=metric["value"] - other["value"],
        difference_interval=difference_interval(metric, other),
        how=COMBINED,
    )


def difference_interval(a: dict, b: dict) -> list[float] | None:
    """95% interval of `a - b` from the 95% intervals of two independent values, or None where one has none.

    Each half-width is combined in quadrature, so that skewed intervals stay skewed: the MOVER method (Zou & Donner,
    Statistics in Medicine 27, 2008, eq. 3). Both networks are judged on the same images, which makes their errors
    agree rather than differ: treating them as independent makes the interval too wide, never too narrow, for that.
    """
    if not a["interval"] or not b["interval"]:
        return None
    (la, ua), (lb, ub), difference = a["interval"], b["interval"], a["value"] - b["value"]
    return [
        difference - math.hypot(a["value"] - la, ub - b["value"]),
        difference + math.hypot(ua - a["value"], b["value"] - lb),
    ]
