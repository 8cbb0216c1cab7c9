"""A framework is a module and a line of the registry: one that nothing else knows goes through every check and plan."""

from __future__ import annotations

import sys
import types

import pytest

from benchmarks.detection import coco, framework
from benchmarks.detection.command import EVALUATION
from benchmarks.detection.framework import FRAMEWORKS, NoRecipe
from benchmarks.evaluation import EVALUATIONS, Context, main
from benchmarks.suite.settings import read_suite
from sslight.core.errors import InputError
from tests.benchmarks.detection.coco_sets import write_set

RECIPE = {
    "arch": "resnet18",
    "mask": False,
    "batch": 2,
    "lr": 0.02,
    "max_iter": 90,
    "steps": [60, 80],
    "warmup": 10,
    "norm": "BN",
    "mean": [123.675, 116.28, 103.53],
    "std": [58.395, 57.12, 57.375],
    "color_order": "RGB",
    "side": 800,
    "left_out": lambda annotation, image: "",
}


def override(cfg, options):
    for key, value in zip(options[::2], options[1::2], strict=True):
        if key not in cfg:
            raise InputError(f"unknown key '{key}'")
        cfg[key] = value


@pytest.fixture
def dummy(tmp_path, monkeypatch):
    """The framework `dummy`, whose config is a dict, with one recipe."""
    module = types.ModuleType("dummy_detectors")
    module.PREPROCESS, module.STATE_KEY = ("mean", "std", "color_order"), "state"
    module.load_config = lambda file: {**RECIPE, "width": file.read_text()}
    module.override = override
    module.recipe_of = lambda cfg: {key: cfg[key] for key in RECIPE}
    module.set_schedule = lambda cfg, **schedule: cfg.update(schedule)
    module.set_preprocess = lambda cfg, preprocess: cfg.update(preprocess)
    module.to_dict = lambda cfg: {key: value for key, value in cfg.items() if key != "left_out"}
    monkeypatch.setitem(sys.modules, "dummy_detectors", module)
    monkeypatch.setitem(FRAMEWORKS.entries, "dummy", ("pip install dummy", "dummy_detectors"))
    monkeypatch.setattr(framework, "CONFIGS", tmp_path / "configs")
    (tmp_path / "configs" / "dummy").mkdir(parents=True)
    (tmp_path / "configs" / "dummy" / "faster_rcnn_r18_fpn_1x.toml").write_text("256")
    data = write_set(tmp_path / "set", counts=(4, 2))
    words = ["--framework", "dummy", "--task", "det", "--weights", "random", "--arch", "resnet18"]
    return [*words, "DATA.PATH_TO_DATA_DIR", str(data), "OUTPUT_DIR", str(tmp_path / "out")]


def test_a_new_framework_is_checked_and_planned(dummy, tmp_path, capsys):
    assert main(EVALUATION, [*dummy, "--check"]) == 0
    assert "schedule: 90 iterations of 2 images" in capsys.readouterr().out
    plan = EVALUATION.plan(EVALUATION.check(dummy), Context(tmp_path / "out", 1, True, {}))
    assert not plan.done and plan.work.arch == "resnet18" and plan.work.passes == 3 * 90 * 2 + 2
    assert "dummy" in EVALUATIONS["coco"].frameworks
    assert [entry.name for entry in read_suite("paper", ["dummy"]) if entry.framework] == ["det_dummy", "seg_dummy"]


def test_its_overrides_and_its_2x_are_its_own(dummy):
    setup = coco.configure(EVALUATION.check([*dummy, "--schedule", "2x", "width", "64", "SOLVER.BASE_LR", "0.5"]))
    assert setup.departures == {"width": "64", "SOLVER.BASE_LR": 0.5}
    assert setup.identity.RUN.RECIPE == "faster_rcnn_r18_fpn_2x"
    assert (setup.cfg["max_iter"], setup.cfg["steps"], setup.cfg["warmup"]) == (180, [120, 160], 10)
    with pytest.raises(InputError, match="unknown key 'height'"):
        coco.configure(EVALUATION.check([*dummy, "height", "64"]))
    with pytest.raises(NoRecipe, match="for resnet18 there is: faster_rcnn_r18_fpn_1x, faster_rcnn_r18_fpn_2x"):
        coco.configure(EVALUATION.check([*dummy, "--neck", "c4"]))


def test_what_is_not_installed_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(FRAMEWORKS.entries, "nowhere", ("pip install nowhere", "nowhere.detectors"))
    with pytest.raises(InputError, match="nowhere is not installed: pip install nowhere$"):
        FRAMEWORKS["nowhere"]
    assert "nowhere" not in FRAMEWORKS.installed()
    with pytest.raises(InputError, match="unknown framework 'mmdett' .*did you mean 'mmdet'"):
        FRAMEWORKS["mmdett"]
