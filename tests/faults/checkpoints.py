"""Mutated and hostile checkpoints through `convert`'s reader: see tests/convert/mutations.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.convert.mutations import originals_and_states, try_one
from tests.faults.sandbox import attempts, row_of
from tests.faults.table import Row


def rows(size: str, place: Path) -> Iterator[Row]:
    files, right = originals_and_states(place)
    outcomes = attempts(
        lambda number: try_one(number, files, right, place)[-1],
        range(10_000 if size == "long" else 60),
        place,
        seconds=30,
        gigabytes=2,
    )
    yield row_of("mutated and hostile checkpoints, five formats", outcomes, str)
