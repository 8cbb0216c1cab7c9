"""The generated reference holds every key, option, family, target and evaluation of the code."""

from __future__ import annotations

import pytest

from benchmarks.detection.framework import FRAMEWORKS
from benchmarks.evaluation import EVALUATIONS
from convert.families import FAMILIES
from convert.naming.rules import CLASSES
from convert.targets import TARGETS
from pretrain.data.sources import FORMATS
from pretrain.methods.base import METHODS
from sslight import cli
from sslight.core.config import flatten
from tools import make_reference


@pytest.fixture(scope="module")
def pages():
    return make_reference.generated()


def test_every_key_stands_there_with_its_default_and_comment(pages):
    page = pages["reference/settings.md"]
    tables = {title: defaults for title, defaults, _ in make_reference.settings()}
    assert {"Pre-training", "sslight bench knn", "sslight bench coco"} <= tables.keys()
    for defaults in tables.values():
        for key, value in flatten(defaults):
            assert f"| `{key}` |" in page and f"`{value!r}`" in page
    for line in (
        "| `SOLVER.BASE_LR` | float | `0.48` | per 256 images of the global batch |",
        "| `MODEL.INIT_SEED` | int | `0` | of random weights |",
        "| `LOSS.WEIGHTS` | list of float | `[0.4, 0.6]` | of the mean global-global and",
        "| `KNN.LEAVE_ONE_OUT` | bool | `False` | val against val |",
        "| `EVAL.BACKEND` | str | `'faster'` | faster (faster-coco-eval) or pycocotools |",
    ):
        assert line in page


def test_comments_are_those_beside_the_key():
    source = 'A = {\n "X": {  # of all\n  "Y": [\n   1,\n  ],  # last line\n  "Z": 2,\n },\n}\n'
    assert make_reference.comments(source) == {"X": "of all", "X.Y": "last line"}


def test_every_command_family_target_and_part_stands_there(pages):
    for name in (*(name for name in cli.COMMANDS if name != "bench"), *(f"bench {name}" for name in EVALUATIONS)):
        assert f"\n## sslight {name}\n" in pages["reference/commands.md"]
    assert "| `--framework` | mmdet, detectron2 |" in pages["reference/commands.md"]
    for name in (*FAMILIES, *CLASSES, *TARGETS):
        assert name in pages["reference/conversion.md"]
    for target in TARGETS.values():
        assert set(target.matrix) == set(CLASSES) and all(
            text in pages["reference/conversion.md"] for text in target.matrix.values()
        )
    for registry in (METHODS, FORMATS, TARGETS, EVALUATIONS, FRAMEWORKS):
        for name in registry:
            assert f"| `{name}` | {registry.text(name)} |" in pages["reference/parts.md"]
    for name in ("Suite paper", "Suite demo"):
        assert name in pages["reference/parts.md"]
