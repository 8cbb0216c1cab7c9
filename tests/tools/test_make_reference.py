"""The generated reference holds every key, option, family, target and evaluation of the code, and the site builds."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest

from convert.support import FAMILIES, MATRIX, TARGETS
from sslight import cli
from sslight.core.config import flatten
from tests.docs.pages import ROOT
from tools import make_reference


@pytest.fixture(scope="module")
def pages():
    return make_reference.generated()


def test_every_key_stands_there_with_its_default_and_comment(pages):
    page = pages["reference/settings.md"]
    for _, module, name in make_reference.SETTINGS:
        for key, value in flatten(getattr(importlib.import_module(module), name)):
            assert f"| `{key}` |" in page and f"`{value!r}`" in page
    assert "| `SOLVER.BASE_LR` | float | `0.48` | per 256 images of the global batch |" in page
    assert "| `MODEL.INIT_SEED` | int | `0` | of random weights |" in page
    assert "| `LOSS.WEIGHTS` | list of float | `[0.4, 0.6]` | of the mean global-global and" in page


def test_comments_are_those_beside_the_key():
    source = 'A = {\n    "X": {  # of all\n        "Y": [\n            1,\n        ],  # last line\n        "Z": 2,\n    },\n}\n'
    assert make_reference.comments(source) == {"X": "of all", "X.Y": "last line"}


def test_every_command_family_target_and_evaluation_stands_there(pages):
    for name in {**cli.COMMANDS, **{f"bench {name}": None for name in cli.BENCHMARKS}}:
        if name != "bench":
            assert f"\n## sslight {name}\n" in pages["reference/commands.md"]
    assert "| `--framework` | mmdet, detectron2 |" in pages["reference/commands.md"]
    for name in (*FAMILIES, *MATRIX, *TARGETS):
        assert name in pages["reference/conversion.md"]
    for name in ("knn", "linear", "semisup", "coco", "cost", "Suite paper", "Suite demo"):
        assert name in pages["reference/evaluations.md"]


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("material", reason="comes with the docs extra")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for page in ("index.html", "reference/settings.html", "converting/index.html"):
        assert "fonts.googleapis" not in (tmp_path / page).read_text()
