"""Configuration: `_BASE_`, overrides, types, and errors that name the nearest key."""

from __future__ import annotations

import pytest

from pretrain.settings import DEFAULTS
from sslight.core.config import dump, load_config, to_dict
from sslight.core.errors import InputError


def test_base_chain_and_overrides_win_in_order(tmp_path):
    (tmp_path / "base.yaml").write_text("SOLVER: {BASE_LR: 1, MIN_LR: 1e-6}\nTRAIN: {BATCH_SIZE: 8}\n")
    (tmp_path / "top.yaml").write_text("_BASE_: base.yaml\nTRAIN: {BATCH_SIZE: 16}\n")
    cfg = load_config(DEFAULTS, tmp_path / "top.yaml", ["TRAIN.BATCH_SIZE", "32", "VIEWS.GLOBAL_SCALE", "(0.2, 1)"])
    assert cfg.TRAIN.BATCH_SIZE == 32
    assert cfg.SOLVER.BASE_LR == 1.0 and isinstance(cfg.SOLVER.BASE_LR, float)  # an integer where a float is due
    assert cfg.SOLVER.MIN_LR == 1e-6  # YAML 1.1 reads 1e-6 as text
    assert cfg.VIEWS.GLOBAL_SCALE == [0.2, 1.0]
    assert cfg.SOLVER.MOMENTUM == DEFAULTS["SOLVER"]["MOMENTUM"]


def test_dump_reads_back_to_the_same_configuration(tmp_path):
    cfg = load_config(DEFAULTS, None, ["SOLVER.WEIGHT_DECAY", "3e-7"])
    (tmp_path / "config.yaml").write_text(dump(cfg))
    assert to_dict(load_config(DEFAULTS, tmp_path / "config.yaml")) == to_dict(cfg)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["SOLVER.BASE_LRR", "1"], "did you mean 'SOLVER.BASE_LR'?"),
        (["TRAIN.EPOCHS", "1"], "did you mean 'SOLVER.TOTAL_EPOCHS'?"),
        (["SOLVER.BASE_LR=1", "2"], "write KEY VALUE"),
        (["SOLVER", "1"], "unknown config key 'SOLVER'"),
        (["TRAIN.BATCH_SIZE", "many"], "'TRAIN.BATCH_SIZE' (command line) expects int, not 'many'"),
        (["TRAIN.BATCH_SIZE", "1.5"], "expects int"),
        (["TRAIN.COMPILE", "1"], "expects bool"),
        (["TRAIN.BATCH_SIZE"], "has no value"),
    ],
)
def test_bad_overrides(overrides, message):
    with pytest.raises(InputError) as error:
        load_config(DEFAULTS, None, overrides)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "just words",
        "- a\n- b\n",
        "a: [1, 2",
        "SOLVER: {BASE_LR: !!python/name:os.system }",
        "_BASE_: absent.yaml\n",
        "\x00\x01",
    ],
)
def test_bad_files_are_one_line_errors(tmp_path, text):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match="bad.yaml"):
        load_config(DEFAULTS, file)


def test_missing_file():
    with pytest.raises(InputError, match="config file not found: nowhere.yaml"):
        load_config(DEFAULTS, "nowhere.yaml")
