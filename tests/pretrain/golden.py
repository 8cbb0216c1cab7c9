"""The published programs' own numbers, and how closeness to them is measured."""

from functools import cache
from pathlib import Path

import numpy as np
from torch import Tensor

DATA = Path(__file__).resolve().parents[1] / "data" / "golden"


@cache
def golden() -> dict[str, np.ndarray]:
    with np.load(DATA / "methods.npz") as arrays:
        return dict(arrays)


def relative_error(ours, expected) -> float:
    """Largest difference over the expected array's largest magnitude."""
    ours, expected = (x.detach().numpy() if isinstance(x, Tensor) else np.asarray(x) for x in (ours, expected))
    assert ours.shape == expected.shape
    return float(np.abs(ours - expected).max() / np.abs(expected).max())
