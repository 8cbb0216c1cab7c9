"""The umbrella command: dispatch, help without heavy imports, nearest names."""

from __future__ import annotations

import pytest


def test_help_lists_every_command_and_imports_no_torch(run):
    done = run("-c", "import sys, sslight; sslight.dispatch(['--help']); assert 'torch' not in sys.modules")
    for name in ("pretrain", "convert", "bench", "report", "pack", "demo"):
        assert f"  {name} " in done.stdout


@pytest.mark.parametrize("arguments, expected", [
    (["pretrian"], "did you mean 'pretrain'?"),
    (["bench", "liner"], "did you mean 'linear'?"),
])
def test_wrong_names_are_answered_with_the_nearest(run, arguments, expected):
    done = run("-m", "sslight", *arguments, expect=2)
    assert done.stderr.startswith("error: ") and expected in done.stderr and done.stderr.count("\n") == 1
