"""Modules that are commands, those of the demo's steps among them, can be started."""

from pathlib import Path

import pytest

from benchmarks.demo import steps
from benchmarks.evaluation import EVALUATIONS

STEPS = {command[1] for _, command in steps(Path("out")) if command[0] == "-m"}


@pytest.mark.parametrize(
    "module", sorted({*STEPS, *(f"benchmarks.{name}" for name in EVALUATIONS), "benchmarks.suite"})
)
def test_a_module_is_a_command(module, run):
    assert "usage: " in run("-m", module, "--help").stdout
