"""Every evaluation from every backbone and data format: killed and started again, and on two processes.

All must come to the numbers of one process left alone. On two processes that holds where no batch norm is trained:
torch synchronises none on CPUs. A short form runs always, the whole matrix as slow tests.
"""

import functools
import itertools
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from benchmarks.classification import knn, linear, semisup
from benchmarks.evaluation import main
from pretrain.backbones import build_backbone
from pretrain.data import pack
from sslight.core.checkpoint import save_backbone
from sslight.core.result import read_result
from tests.benchmarks.classification.small_blocks import SIZES

ARCHS = ["mobilenet_v2", "resnet18", "resnet34", "resnet50", "vit_tiny"]
FORMATS = ["folder", "h5", "shards"]
RUNS = {
    "knn": (knn, "knn", {"KNN.K": "[1,5,20]"}),
    # SGD: LARS moves these weights by less than the tolerance
    "linear": (linear, "linear_cnn", {"SOLVER.TOTAL_EPOCHS": 2, "SOLVER.OPTIMIZER": "SGD", "SOLVER.BASE_LR": 0.5}),
    "linear_cached": (linear, "linear_cached", {"PROBE.STEPS": 20, "PROBE.PENALTIES": "[0.1]", "FEATURES.AMP": "none"}),
    "semisup": (semisup, "semi_10percent", {"SOLVER.TOTAL_EPOCHS": 2, "HEAD.HIDDEN_SIZE": 16}),
    "finetune": (semisup, "finetune", {"SOLVER.TOTAL_EPOCHS": 2, "HEAD.HIDDEN_SIZE": 16}),
}
SHORT = [("knn", "resnet18", "h5"), ("linear", "mobilenet_v2", "shards"), ("semisup", "vit_tiny", "folder")]
CELLS = [
    cell if cell in SHORT else pytest.param(*cell, marks=pytest.mark.slow)
    for cell in itertools.product(RUNS, ARCHS, FORMATS)
]


@pytest.fixture(scope="module")
def formats(image_folder, tmp_path_factory):
    """The same images in each of the three forms."""
    found = {"folder": image_folder}
    for name in FORMATS[1:]:
        found[name] = tmp_path_factory.mktemp(name) / "data"
        pack.main([str(image_folder), str(found[name]), "--to", name])
    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A function: architecture -> its backbone file, written at the first call."""

    @functools.cache
    def file_of(arch):
        torch.manual_seed(1)
        model, file = build_backbone(arch), tmp_path_factory.mktemp("weights") / f"{arch}.safetensors"
        save_backbone(
            file,
            model.state_dict(),
            arch=model.arch,
            method="dino",
            preprocess={"mean": [0.5] * 3, "std": [0.2] * 3, "color_order": "RGB", "size": 224},
        )
        return file

    return file_of


@pytest.mark.parametrize("evaluation, arch, form", CELLS)
def test_killed_and_on_two_processes(formats, weights, run, tmp_path, monkeypatch, evaluation, arch, form):
    module, cfg, extra = RUNS[evaluation]
    command = ["-m", "tests.benchmarks.classification.small_blocks", module.__name__.rsplit(".", 1)[1]]
    for owner, name, value in SIZES:
        monkeypatch.setattr(owner, name, value)
    if arch == "vit_tiny":
        cfg = "linear_vit" if cfg == "linear_cnn" else cfg
        extra = {**extra, "HEAD.BN": False} if module is semisup else extra

    def argv(out, processes=1):
        pairs = {
            "WEIGHTS": weights(arch),
            "DATA.PATH_TO_DATA_DIR": formats[form],
            "DATA.RESIZE": 36,
            "DATA.SIZE": 32,
            "DATA.WORKERS": 0,
            "FEATURES.BATCH_SIZE": 32,
            "OUTPUT_DIR": tmp_path / out,
        }
        if module is not knn:
            pairs |= {"TRAIN.BATCH_SIZE": (4 if evaluation == "semisup" else 24) // processes, "TRAIN.SAVE_SECONDS": 0}
        return ["--cfg", f"configs/classification/{cfg}.yaml", *(str(w) for p in (pairs | extra).items() for w in p)]

    def kept():  # the first thing that a killed run leaves behind
        return [*(tmp_path / "killed").glob("seed_*/state.pth"), *(tmp_path / "killed").glob("features/*/*.npy")]

    process = subprocess.Popen(
        [sys.executable, *command, *argv("killed")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while not kept() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGKILL, 0) and kept(), errors
    for name in ("killed", "whole"):
        assert main(module.EVALUATION, argv(name)) == 0
    killed, whole = read_result(tmp_path / "killed"), read_result(tmp_path / "whole")
    assert killed["metrics"] == whole["metrics"] and killed["per_seed"] == whole["per_seed"]
    assert whole["data"]["counts"]["val"] == 32 and whole["checkpoint"]["family"] == "sslight-backbone"

    if module is semisup and arch != "vit_tiny":
        return
    run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, *command, *argv("two", 2))
    two = read_result(tmp_path / "two")
    if not (tmp_path / "whole" / "seed_0" / "state.pth").exists():  # nothing but features, the same to the last bit
        assert two["metrics"] == whole["metrics"] and two["confusions"] == whole["confusions"]
        return
    one, other = (
        torch.load(tmp_path / name / "seed_0" / "state.pth", weights_only=True)["model"] for name in ("whole", "two")
    )
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, atol=1e-5, rtol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
    difference = two["metrics"]["top1"]["value"] - whole["metrics"]["top1"]["value"]
    assert abs(difference) <= 100 / 32 + 1e-9  # one borderline image of 32 at most
