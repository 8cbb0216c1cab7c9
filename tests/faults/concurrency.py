"""Two processes at once: into one output directory, and into one feature cache."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

from sslight.core.errors import EXIT_STOPPED
from tests.faults.processes import begin, wait_until
from tests.faults.table import Row
from tests.faults.tiny_runs import knn, pretrain, write_images


def rows(size: str, place: Path) -> Iterator[Row]:
    images = write_images(place / "images")
    yield one_directory(images, place)
    yield one_cache(images, place, 10 if size == "long" else 1)


def one_directory(images: Path, place: Path) -> Row:
    """The second run is refused by name; the first goes on undisturbed, and stops when it is asked to."""
    row = Row("two runs into one directory: the second refuses and names the first")
    command = pretrain(images, place / "one", **{"SOLVER.TOTAL_EPOCHS": 1000})
    first = begin(*command, log=place / "first.txt")
    wait_until((place / "one" / "metrics.jsonl").exists, process=first)
    second = begin(*command, log=place / "second.txt")
    code, text = second.wait(), (place / "second.txt").read_text()
    named = re.search(rf"error: .* is in use by process {first.pid} on ", text)
    row.attempt(code == 2 and bool(named), f"the second run: exit {code}: {text[-300:]}")
    first.send_signal(signal.SIGTERM)
    row.attempt(first.wait() == EXIT_STOPPED, f"the first run: {(place / 'first.txt').read_text()[-300:]}")
    return row


def one_cache(images: Path, place: Path, times: int) -> Row:
    """Both fill the cache together, both succeed, and what a third finds there gives the same numbers."""
    row = Row("two processes filling one feature cache, and a third that reads it")
    for turn in range(times):
        cache = place / f"cache{turn}"
        both = [
            begin(*knn(images, place / f"knn{turn}{who}", cache), log=place / f"knn{turn}{who}.txt") for who in "ab"
        ]
        codes = [process.wait() for process in both]
        codes.append(begin(*knn(images, place / f"knn{turn}c", cache), log=place / f"knn{turn}c.txt").wait())
        if any(codes):
            row.attempt(False, f"exits {codes}")
            continue
        metrics = [json.loads((place / f"knn{turn}{who}" / "result.json").read_text())["metrics"] for who in "abc"]
        row.attempt(metrics[0] == metrics[1] == metrics[2] and not list(cache.rglob("*.tmp")), "results differ")
    return row
