"""What a fault module reports, and the table of all of them.

A fault module is a file of this folder with `rows(size, place)`: it tries its faults in the empty folder `place` and
yields a `Row` for each kind. `size` is "short" (seconds, in `make test`) or "long" (the real counts, `make faults`).
It raises `Unavailable` where the machine lacks what it needs.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parent
HELPERS = ("__init__", "__main__", "table", "processes", "tiny_runs", "sandbox", "kinds", "preloaded")


class Unavailable(Exception):
    """This machine cannot make the fault; the message says what is missing."""


@dataclass
class Row:
    """One kind of fault: how often it was made, and what went wrong each time that the promise was not kept."""

    what: str
    tried: int = 0
    failures: list[str] = field(default_factory=list)
    note: str = ""  # figures worth keeping

    @property
    def survived(self) -> int:
        return self.tried - len(self.failures)

    def attempt(self, kept: bool, failure: str = "") -> None:
        """Count one fault; `failure` says what broke where the promise was not kept."""
        self.tried += 1
        if not kept:
            self.failures.append(failure or "promise not kept")


def modules() -> list[str]:
    """Names of the fault modules, in alphabetical order."""
    return sorted(
        path.stem for path in FOLDER.glob("*.py") if path.stem not in HELPERS and not path.stem.startswith("test_")
    )


def rows(module: str, size: str, place: Path) -> Iterator[Row]:
    """Run one fault module in the empty folder `place`."""
    assert size in ("short", "long")
    yield from importlib.import_module(f"tests.faults.{module}").rows(size, place)
