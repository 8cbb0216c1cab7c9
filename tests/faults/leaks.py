"""Long runs do not leak: memory and file descriptors of the main process over thousands of steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.kinds import steps_logged
from tests.faults.processes import begin
from tests.faults.table import Row, Unavailable
from tests.faults.tiny_runs import linear, pretrain, write_images

STEPS = 2000
GROWTH = 1.02  # of the main process' memory from the second quarter of the run to the last


def rows(size: str, place: Path) -> Iterator[Row]:
    if size == "short":
        raise Unavailable("in the long form only: a leak shows over thousands of steps")
    images = write_images(place / "images")
    common = {"SOLVER.TOTAL_EPOCHS": STEPS // 6 + 1, "TRAIN.LOG_PERIOD": 1, "DATA.WORKERS": 2}
    runs = {
        "linear": (linear(images, place / "linear", SEEDS="[0]", **common), place / "linear" / "seed_0"),
        "pretrain": (pretrain(images, place / "pretrain", **common), place / "pretrain"),
    }
    for name, (command, folder) in runs.items():
        yield flat(name, command, folder, place / f"{name}.txt")


def flat(name: str, command: list[object], folder: Path, log: Path) -> Row:
    """Sample the main process every half second; compare the second quarter of the samples with the last."""
    row = Row(f"{name}: {STEPS} steps, workers restarted every epoch of 6: memory and descriptors flat")
    process = begin(*command, log=log)
    samples: list[tuple[int, int]] = []  # (resident bytes, descriptors)
    while process.poll() is None:
        time.sleep(0.5)
        if steps_logged(folder):
            samples += sample(process.pid)
    if process.wait() or len(samples) < 4:
        row.attempt(False, log.read_text()[-1000:])
        return row
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    memory = [max(rss for rss, _ in part) for part in (early, late)]
    # The least, as workers come and go with some of their own: what leaks once an epoch adds a hundred to it.
    descriptors = [min(count for _, count in part) for part in (early, late)]
    row.attempt(descriptors[1] <= descriptors[0] + 2, f"descriptors {descriptors}")
    row.attempt(memory[1] <= GROWTH * memory[0], f"memory {memory}")
    row.note = (
        f"resident {memory[0] / 1e6:.1f} -> {memory[1] / 1e6:.1f} MB, descriptors {descriptors[0]} -> "
        f"{descriptors[1]}, {len(samples)} samples"
    )
    return row


def sample(pid: int) -> list[tuple[int, int]]:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        resident = 1024 * int(status.split("VmRSS:")[1].split()[0])
        return [(resident, len(list(Path(f"/proc/{pid}/fd").iterdir())))]
    except (OSError, IndexError):  # it is just ending
        return []
