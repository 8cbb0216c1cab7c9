"""What a run tells a person and keeps for later: plain log lines, a progress bar, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from sslight.core import compat, distributed
from sslight.core.files import write_atomically


class RunLog:
    """Lines to the terminal and to `log.txt`; silent on every rank but the first."""

    def __init__(self, out_dir: Path | None):
        self.file = None
        if out_dir and distributed.is_main():
            self.file = open(out_dir / "log.txt", "a", buffering=1, encoding="utf-8", errors="backslashreplace")

    def __call__(self, text: str) -> None:
        if distributed.is_main():
            from tqdm import tqdm

            tqdm.write(text, file=sys.stdout)  # does not tear a bar that is on the screen
            sys.stdout.flush()
        if self.file:
            self.file.write(time.strftime("%Y-%m-%d %H:%M:%S ") + text + "\n")


class Bar:
    """Progress of something long: a bar when a person watches, plain lines now and then when not.

    total, initial: units of work in all and already done. `update(n, loss=0.5)` shows further figures beside it.
    line_every: units between plain lines; 0: one every `line_seconds`.
    """

    def __init__(
        self,
        total: int,
        label: str,
        unit: str = "it",
        initial: int = 0,
        line_seconds: float = 15.0,
        line_every: int = 0,
    ):
        self.total, self.label, self.unit, self.done, self.initial = total, label, unit, initial, initial
        self.line_seconds, self.started, self.last_line = line_seconds, time.monotonic(), time.monotonic()
        self.line_every = line_every
        self.bar = None
        notebook = "ipykernel" in sys.modules
        if distributed.is_main() and (notebook or sys.stderr.isatty()):
            if notebook:
                from tqdm.auto import tqdm
            else:
                from tqdm import tqdm

            self.bar = tqdm(total=total, desc=label, unit=unit, initial=initial, dynamic_ncols=True, leave=False)
            compat.set_clock(self.bar, time.monotonic)

    def update(self, n: int = 1, **figures: float) -> None:
        self.done += n
        if self.bar is not None:
            if figures:
                self.bar.set_postfix({key: f"{value:.4g}" for key, value in figures.items()}, refresh=False)
            self.bar.update(n)
        elif distributed.is_main() and self._line_due(n):
            self.last_line = time.monotonic()
            rate = (self.done - self.initial) / max(self.last_line - self.started, 1e-9)
            left = (self.total - self.done) / max(rate, 1e-9)
            extra = "".join(f", {key} {value:.4g}" for key, value in figures.items())
            print(
                f"{self.label}: {self.done}/{self.total} {self.unit}, {rate:.1f} {self.unit}/s, "
                f"{left:.0f} s left{extra}",
                flush=True,
            )

    def _line_due(self, n: int) -> bool:
        if self.line_every:
            return self.done // self.line_every > (self.done - n) // self.line_every
        return time.monotonic() - self.last_line >= self.line_seconds

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def track(items: Iterable, total: int, label: str, unit: str = "it") -> Iterator:
    """Iterate with a `Bar`."""
    bar = Bar(total, label, unit)
    try:
        for item in items:
            yield item
            bar.update()
    finally:
        bar.close()


class Meter:
    """Images per second and the share of time spent waiting for data, over one epoch."""

    def __init__(self) -> None:
        self.started, self.waited, self.images = time.monotonic(), 0.0, 0

    @contextlib.contextmanager
    def waiting(self):
        begun = time.monotonic()
        yield
        self.waited += time.monotonic() - begun

    def rate(self) -> float:
        return self.images / max(time.monotonic() - self.started, 1e-9)

    def wait_share(self) -> float:
        return self.waited / max(time.monotonic() - self.started, 1e-9)


class MetricsLog:
    """`metrics.jsonl` (one object a line, each with `step`) and the same scalars in `tensorboard/`.

    `step` is where the run (re)starts: what an interrupted run wrote beyond it is dropped, so that a resumed run's
    file equals an uninterrupted one's. `measured`: whether the state after `step` steps has been measured already.
    """

    def __init__(self, out_dir: Path, step: int = 0, measured: bool = True):
        self.path, self.writer = Path(out_dir) / "metrics.jsonl", None
        if not distributed.is_main():
            return
        kept = [
            line
            for line in _lines(self.path)
            if line["step"] < step or (line["step"] == step and measured and line.get("end"))
        ]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(self.path, lambda temporary: temporary.write_text(text))
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(Path(out_dir) / "tensorboard"), purge_step=step)

    def write(self, step: int, end: bool = False, /, **scalars: float) -> None:
        """One line. `end` marks figures of the state after `step` steps (an epoch's end), kept when resuming there."""
        if self.writer is None:
            return
        with open(self.path, "a") as file:
            file.write(json.dumps({"step": step, **({"end": True} if end else {}), **scalars}) + "\n")
        for key, value in scalars.items():
            if isinstance(value, int | float):
                self.writer.add_scalar(key, value, step)

    def image(self, name: str, picture, step: int) -> None:
        """A uint8 [3, H, W] picture for TensorBoard."""
        if self.writer is not None:
            self.writer.add_image(name, picture, step)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def last_metrics(out_dir: Path) -> dict[str, float]:
    """The last value of every scalar in a run's `metrics.jsonl`."""
    merged = {key: value for line in _lines(out_dir / "metrics.jsonl") for key, value in line.items()}
    return {key: value for key, value in merged.items() if key not in ("step", "end")}


def _lines(path: Path) -> list[dict]:
    """The readable lines of a metrics file; a line cut off by a crash is left out."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines
