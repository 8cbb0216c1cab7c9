"""Real files for tests: a small class-folder data set drawn from scikit-learn's handwritten digits."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
MISSING = {
    "detectron2": None if importlib.util.find_spec("detectron2") else "detectron2 is not installed",
    "browser": None if shutil.which("chromium") else "Debian's chromium is not installed",
}


def pytest_collection_modifyitems(items):
    """Tests marked as needing something skip where that is missing."""
    for item in items:
        for name, reason in MISSING.items():
            if reason and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Fixtures and tests draw the same numbers alone and in any order; SSLIGHT_TEST_SEED chooses others."""
    seed = int(os.environ.get("SSLIGHT_TEST_SEED", 0))
    for draw_from in (random.seed, np.random.seed, torch.manual_seed):
        draw_from(seed)


pytest_runtest_call = pytest_runtest_setup  # whether or not a shared fixture was made for this test


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """`train/` (96 images) and `val/` (32) of 4 classes, 40 px JPEGs of coloured digits."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("digits")
    for label in range(4):
        glyphs = digits.images[digits.target == label]
        for split, chosen in (("train", glyphs[:24]), ("val", glyphs[24:32])):
            folder = root / split / f"digit {label}"
            folder.mkdir(parents=True)
            for i, glyph in enumerate(chosen):
                ink, paper = rng.integers(0, 256, (2, 3))
                mask = np.kron(glyph / 16, np.ones((5, 5)))[..., None]
                Image.fromarray((mask * ink + (1 - mask) * paper).astype(np.uint8)).save(folder / f"{i:03d}.jpg")
    return root


@pytest.fixture(scope="session")
def run():
    """Run a command of the project as a user would: `run("-m", "pretrain", ...)` returns the finished process."""

    def call(*arguments: object, expect: int | None = 0, timeout: float = 300, **environment: str):
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
            **environment,
        }
        done = subprocess.run(
            [sys.executable, *map(str, arguments)], cwd=ROOT, env=env, text=True, timeout=timeout, capture_output=True
        )
        if expect is not None:
            assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return call
