"""A directory of results belongs to one network and one data set, wherever their files lie."""

from __future__ import annotations

import shutil

import pytest
import torch

from benchmarks.classification import knn, linear
from benchmarks.classification.weights import identity, load_subject
from benchmarks.evaluation import main
from pretrain.backbones import build_backbone
from sslight.core.checkpoint import save_backbone
from sslight.core.errors import InputError
from sslight.core.result import read_result

PREPROCESS = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "color_order": "RGB", "size": 32}


def backbone(file, seed):
    torch.manual_seed(seed)
    save_backbone(file, build_backbone("resnet18").state_dict(), arch="resnet18", method="dino", preprocess=PREPROCESS)
    return file


def test_paths_may_change_but_not_what_they_hold(tmp_path, image_folder):
    def argv(weights, data):
        return [
            "WEIGHTS",
            str(weights),
            "DATA.PATH_TO_DATA_DIR",
            str(data),
            "OUTPUT_DIR",
            str(tmp_path / "out"),
            "DATA.RESIZE",
            "36",
            "DATA.SIZE",
            "32",
            "DATA.WORKERS",
            "0",
        ]

    one, other = backbone(tmp_path / "one.safetensors", 0), backbone(tmp_path / "other.safetensors", 1)
    moved = shutil.copytree(image_folder, tmp_path / "moved")
    assert main(knn.EVALUATION, argv(one, image_folder)) == 0
    value = read_result(tmp_path / "out")["metrics"]
    assert main(knn.EVALUATION, argv(shutil.copy(one, tmp_path / "renamed.safetensors"), moved)) == 0
    assert read_result(tmp_path / "out")["metrics"] == value
    with pytest.raises(InputError, match="belongs to a run with another recipe .RUN.WEIGHTS"):
        main(knn.EVALUATION, argv(other, image_folder))
    next(moved.glob("train/*/*.jpg")).unlink()
    with pytest.raises(InputError, match="belongs to a run with another recipe .RUN.DATA"):
        main(knn.EVALUATION, argv(one, moved))


def test_the_global_batch_of_a_training_counts():
    cfg, _ = linear.EVALUATION.check(
        ["WEIGHTS", "random", "MODEL.BACKBONE_ARCH", "resnet18", "OUTPUT_DIR", "out", "TRAIN.BATCH_SIZE", "16"]
    )
    subject = load_subject(cfg)
    batches = [identity(cfg, subject, "f00d", processes).RUN.GLOBAL_BATCH for processes in (1, 4)]
    assert batches == [16, 64]
