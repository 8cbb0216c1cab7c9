"""The diffs of docs/extending/ apply to this tree and do what their pages say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestCentroid

from tests.convert.family_files import CASES, under
from tests.docs.pages import ROOT, blocks

FOLDERS = ("sslight", "pretrain", "convert", "benchmarks", "configs", "tests")


@pytest.fixture
def extended(tmp_path):
    """A function: page -> a copy of the project with the page's diff applied; it runs commands there."""

    def make(page: str):
        tree = tmp_path / "tree"
        for name in FOLDERS:
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        [diff] = blocks(ROOT / "docs" / "extending" / f"{page}.md", "diff")
        subprocess.run(["git", "apply", "-"], cwd=tree, input=diff, text=True, check=True)
        env = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}

        def run(*words):
            done = subprocess.run([sys.executable, *map(str, words)], cwd=tree, env=env, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        return run

    return make


def test_the_new_method_trains_and_converts(extended, image_folder, tmp_path):
    run, out = extended("method"), tmp_path / "out"
    run(
        "-m",
        "pretrain",
        "--cfg",
        "configs/pretrain/simclr_cnn.yaml",
        "MODEL.BACKBONE_ARCH",
        "resnet18",
        "DATA.PATH_TO_DATA_DIR",
        image_folder,
        "OUTPUT_DIR",
        out,
        "VIEWS.GLOBAL_SIZE",
        "40",
        "TRAIN.BATCH_SIZE",
        "8",
        "SOLVER.TOTAL_EPOCHS",
        "1",
        "SOLVER.WARMUP_EPOCHS",
        "0",
        "SIMCLR.HIDDEN_SIZE",
        "32",
        "KNN.PERIOD",
        "0",
        "DATA.WORKERS",
        "0",
    )
    assert (out / "backbone.safetensors").exists()
    said = run(
        "-m", "sslight", "convert", out / "checkpoints" / "last.pth", "--to", "torchvision", "-o", tmp_path / "r18.pth"
    )
    assert "network (simclr): resnet18" in said


def test_the_new_family_is_recognised_and_its_heads_are_dropped_by_name(extended, tmp_path):
    state = CASES["torchvision training resnet18"][2]().state
    weights = {
        **under("module.trunk_ema.", {key: value + 1 for key, value in state.items()}),
        **under("module.trunk.", state),
        "module.rotation_head.weight": torch.randn(4, 4),
    }
    torch.save({"epoch": 1, "weights": weights}, tmp_path / "checkpoint.pth")
    said = extended("family")(
        "-m", "sslight", "convert", tmp_path / "checkpoint.pth", "--to", "timm", "-o", tmp_path / "backbone.safetensors"
    )
    assert "rotnet: " in said and "network   trunk (rotnet)" in said and "difference 0" in said
    assert "1 classifier of rotations" in said and "other network 'trunk_ema'" in said


def test_the_new_framework_gets_its_file_and_its_snippet(extended, tmp_path):
    state = CASES["torchvision training resnet18"][2]().state
    torch.save(state, tmp_path / "r18.pth")
    extended("framework")(
        "-m", "sslight", "convert", tmp_path / "r18.pth", "--to", "mmseg", "-o", tmp_path / "mmseg.pth"
    )
    written = torch.load(tmp_path / "mmseg.pth", weights_only=True)
    assert all(torch.equal(written[key], value) for key, value in state.items())
    assert "type='ResNet', depth=18" in (tmp_path / "mmseg.py").read_text()


def test_the_new_benchmark_measures_what_its_name_says(extended, image_folder, tmp_path):
    """Top-1 equals that of scikit-learn's class means on the features which the run left in its cache, exactly.

    A suite that lists it estimates its time, runs it, and the report shows it.
    """
    run, out = extended("benchmark"), tmp_path / "out"
    assert "class_means" in run("-m", "sslight", "bench", "--help")
    run(
        "-m",
        "sslight",
        "bench",
        "class_means",
        "--cfg",
        "configs/classification/class_means.yaml",
        "WEIGHTS",
        "random",
        "MODEL.BACKBONE_ARCH",
        "resnet18",
        "DATA.PATH_TO_DATA_DIR",
        image_folder,
        "OUTPUT_DIR",
        out,
        "DATA.RESIZE",
        "36",
        "DATA.SIZE",
        "32",
        "DATA.WORKERS",
        "0",
    )
    parts = {len(part): part for part in map(np.load, out.glob("features/*/*.npy"))}
    train, val = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (parts[96], parts[32]))
    labels = np.repeat(np.arange(4), 24)
    means = NearestCentroid().fit(train, labels).centroids_
    guessed = (val @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T).argmax(1)
    expected = 100 * (guessed == np.repeat(np.arange(4), 8)).mean()
    assert json.loads((out / "result.json").read_text())["metrics"]["top1"]["value"] == expected

    (tmp_path / "suite.yaml").write_text(
        f"""evaluations:
  means: {{benchmark: class_means, config: {tmp_path}/tree/configs/classification/class_means.yaml}}
settings: {{DATA.RESIZE: 36, DATA.SIZE: 32, DATA.WORKERS: 0}}
"""
    )
    words = ["bench", "all", "--suite", tmp_path / "suite.yaml", "--weights", "random", "--arch", "resnet18"]
    words += ["DATA.PATH_TO_DATA_DIR", image_folder, "OUTPUT_DIR", tmp_path / "all"]
    planned = run("-m", "sslight", *words, "--dry-run")
    [estimate] = [line for line in planned.splitlines() if "random-resnet18/means" in line]
    assert re.search(r"\d+ (s|min)\b", estimate), planned
    run("-m", "sslight", *words)
    [result] = (tmp_path / "all").rglob("result.json")
    assert json.loads(result.read_text())["metrics"]["top1"]["value"] == expected
    assert f"{expected:.2f}" in run("-m", "sslight", "report", tmp_path / "all", "-o", tmp_path / "report.md")
