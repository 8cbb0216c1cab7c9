"""Every evaluation from every backbone and data format, killed and started again, to the numbers of a run left alone.

A short form runs always; SSLIGHT_FULL=1 runs the whole matrix (`make test-full`).
"""

import itertools
import os
import signal
import subprocess
import sys
import time

import pytest

from benchmarks import knn, linear, semisup
from benchmarks.result import read_result
from pretrain import pack

FULL = os.environ.get("SSLIGHT_FULL") == "1"
ARCHS = ["mobilenet_v2", "resnet18", "resnet34", "resnet50", "vit_tiny"]
FORMATS = ["folder", "h5", "shards"]
RUNS = {
    "knn": (knn, "knn", {"KNN.K": "[1,5,20]"}),
    "linear": (linear, "linear_cnn", {"SOLVER.TOTAL_EPOCHS": 2}),
    "linear_cached": (linear, "linear_cached", {"PROBE.STEPS": 20, "PROBE.PENALTIES": "[0.1]", "FEATURES.AMP": "none"}),
    "semisup": (semisup, "semi_10percent", {"SOLVER.TOTAL_EPOCHS": 2, "HEAD.HIDDEN_SIZE": 16}),
    "finetune": (semisup, "finetune", {"SOLVER.TOTAL_EPOCHS": 1, "HEAD.HIDDEN_SIZE": 16}),
}
SHORT = [("knn", "resnet18", "h5"), ("linear", "mobilenet_v2", "shards"), ("semisup", "vit_tiny", "folder")]
CELLS = list(itertools.product(RUNS, ARCHS, FORMATS)) if FULL else SHORT


@pytest.fixture(scope="module")
def formats(image_folder, tmp_path_factory):
    """The same images in each of the three forms."""
    found = {"folder": image_folder}
    for name in sorted({cell[2] for cell in CELLS} - {"folder"}):
        found[name] = tmp_path_factory.mktemp(name) / "data"
        pack.main([str(image_folder), str(found[name]), "--to", name])
    return found


@pytest.mark.parametrize("evaluation, arch, form", CELLS)
def test_killed_and_started_again(formats, tmp_path, evaluation, arch, form):
    module, cfg, extra = RUNS[evaluation]

    def argv(out):
        pairs = {"WEIGHTS": "random", "MODEL.BACKBONE_ARCH": arch, "DATA.PATH_TO_DATA_DIR": formats[form],
                 "DATA.RESIZE": 36, "DATA.SIZE": 32, "DATA.WORKERS": 0, "FEATURES.BATCH_SIZE": 32, "OUTPUT_DIR": out}
        if module is not knn:
            pairs["TRAIN.BATCH_SIZE"] = 4 if evaluation == "semisup" else 24
        return ["--cfg", f"configs/classification/{cfg}.yaml", *(str(w) for p in (pairs | extra).items() for w in p)]

    def kept():  # the first thing that a killed run leaves behind
        return [*(tmp_path / "killed").glob("seed_*/state.pth"), *(tmp_path / "killed").glob("features/*/*.npy")]

    process = subprocess.Popen([sys.executable, "-m", f"benchmarks.{module.__name__.rsplit('.', 1)[1]}",
                                *argv(tmp_path / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "."})
    while not kept() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGKILL, 0) and kept(), errors
    for name in ("killed", "whole"):
        assert module.main(argv(tmp_path / name)) == 0
    killed, whole = read_result(tmp_path / "killed"), read_result(tmp_path / "whole")
    assert killed["metrics"] == whole["metrics"] and killed["per_seed"] == whole["per_seed"]
    assert whole["data"]["counts"]["val"] == 32 and whole["checkpoint"]["family"] == "random"
