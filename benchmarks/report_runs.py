"""What the trained benchmarks make of their runs: metrics over the seeds, and the file that holds them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.metrics import accuracy_metrics


def seed_metrics(ranked: Sequence[np.ndarray], labels: np.ndarray, suffix: str = "") -> dict[str, dict]:
    """`accuracy_metrics` of the runs, with a suffix to every name."""
    return {name + suffix: value for name, value in accuracy_metrics(ranked, labels).items()}


def per_seed(seeds: Sequence[int], runs: dict[str, Sequence[np.ndarray]], labels: np.ndarray, /,
             **further: Sequence) -> list[dict]:
    """One dict a seed: every metric's plain value in that run (`runs` maps a suffix to the runs' predictions)."""
    rows = []
    for i, seed in enumerate(seeds):
        row: dict = {"seed": seed}
        for suffix, ranked in runs.items():
            row |= {name: value["value"] for name, value in seed_metrics([ranked[i]], labels, suffix).items()}
        rows.append(row | {key: values[i] for key, values in further.items()})
    return rows
