"""A run directory belongs to one recipe and one process at a time."""

from __future__ import annotations

import os
import signal

import pytest

from pretrain.settings import DEFAULTS
from sslight.core.config import load_config
from sslight.core.errors import InputError
from sslight.core.rundir import StopSignal, open_run


def config(out_dir, *overrides):
    return load_config(DEFAULTS, None, ["OUTPUT_DIR", str(out_dir), *overrides])


def save_something(out_dir):
    (out_dir / "checkpoints").mkdir()
    (out_dir / "checkpoints" / "last.pth").touch()


def test_the_same_recipe_comes_back_and_another_is_named(tmp_path):
    with open_run(config(tmp_path / "run"), ("DATA.WORKERS", "KNN.")) as out_dir:
        save_something(out_dir)
    with open_run(config(tmp_path / "run", "DATA.WORKERS", "2", "KNN.K", "5"), ("DATA.WORKERS", "KNN.")):
        pass
    with pytest.raises(InputError, match=r"SOLVER.BASE_LR 0.48 -> 0.1.*choose another directory"):
        with open_run(config(tmp_path / "run", "SOLVER.BASE_LR", "0.1"), ("DATA.WORKERS", "KNN.")):
            pass


def test_another_recipe_goes_on_where_the_flag_says_so(tmp_path, caplog):
    consent, flag = "TRAIN.ALLOW_CHANGES", ("TRAIN.ALLOW_CHANGES", "True")
    with open_run(config(tmp_path / "run"), (consent,), consent) as out_dir:
        save_something(out_dir)
    with pytest.raises(InputError, match=r"SOLVER.BASE_LR 0.48 -> 0.1.*TRAIN.ALLOW_CHANGES True"):
        with open_run(config(tmp_path / "run", "SOLVER.BASE_LR", "0.1"), (consent,), consent):
            pass
    with open_run(config(tmp_path / "run", "SOLVER.BASE_LR", "0.1", *flag), (consent,), consent):
        assert "SOLVER.BASE_LR 0.48 -> 0.1" in caplog.text
    with open_run(config(tmp_path / "run", "SOLVER.BASE_LR", "0.1"), (consent,), consent):  # the recipe is the new one
        pass


def test_a_run_that_saved_nothing_stands_in_nobodys_way(tmp_path):
    with open_run(config(tmp_path / "run")):
        pass
    with open_run(config(tmp_path / "run", "SOLVER.BASE_LR", "0.1")) as out_dir:
        save_something(out_dir)
    with pytest.raises(InputError, match="SOLVER.BASE_LR 0.1 -> 0.48"):
        with open_run(config(tmp_path / "run")):
            pass


def test_a_directory_with_foreign_files_and_a_file_are_refused(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"x")
    with pytest.raises(InputError, match="model.pth"):
        with open_run(config(tmp_path)):
            pass
    with pytest.raises(InputError, match="is a file"):
        with open_run(config(tmp_path / "model.pth")):
            pass
    with pytest.raises(InputError, match="OUTPUT_DIR is not set"):
        with open_run(config("")):
            pass


def test_two_runs_into_one_directory(tmp_path, run):
    with open_run(config(tmp_path / "run")):
        done = run(
            "-c",
            f"from tests.core.test_rundir import *\nwith open_run(config({str(tmp_path / 'run')!r})): pass",
            expect=1,
        )
        assert f"is in use by process {os.getpid()} on" in done.stderr
    with open_run(config(tmp_path / "run")):  # released
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_stop_signals_are_noted_and_handlers_restored(number):
    """But where Ctrl-C came: the next one is left to the system, which ends the process."""
    before = signal.getsignal(number)
    try:
        with StopSignal() as stop:
            assert not stop.requested()
            os.kill(os.getpid(), number)
            assert stop.requested()
        assert signal.getsignal(number) == (signal.SIG_DFL if number == signal.SIGINT else before)
    finally:
        signal.signal(number, before)
