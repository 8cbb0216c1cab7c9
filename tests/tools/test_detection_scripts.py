"""`tools/train_mmdet.py` and `tools/train_net.py`: the frameworks' own habits, from any checkpoint, never from none."""

import importlib.util

import pytest
import torch

from pretrain.backbones import build_backbone
from tests.benchmarks.coco_sets import write_set
from tests.benchmarks.coco_tiny import tiny_detectron2, tiny_mmdet

pytest.importorskip("mmdet", reason="comes with the mmdet extra")
CONFIG = "configs/mmdet/faster_rcnn_r18_fpn_1x.py"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scripts")
    write_set(folder / "set")
    torch.save(build_backbone("resnet18").state_dict(), folder / "r18.pth")
    return folder


def test_mmdet_script_trains_and_evaluates(run, files, tmp_path):
    config = tiny_mmdet("faster_rcnn_r18_fpn_1x", tmp_path, iterations=4)
    done = run("tools/train_mmdet.py", config, "--weights", files / "r18.pth", "--data", files / "set", "--work-dir",
               tmp_path / "out", "--cfg-options", "optim_wrapper.optimizer.lr=0.001")
    assert "120 tensors equal to" in done.stdout + done.stderr and "box: AP " in done.stdout
    assert (tmp_path / "out" / "iter_4.pth").is_file()
    made = next((tmp_path / "out" / "weights").glob("resnet18_*_mmdet.pth"))
    assert torch.equal(torch.load(made)["state_dict"]["conv1.weight"], torch.load(files / "r18.pth")["conv1.weight"])


def test_scripts_refuse_to_start_from_nothing(run, files, tmp_path):
    done = run("tools/train_mmdet.py", CONFIG, "--work-dir", tmp_path, expect=2)
    assert "no weights for the backbone" in done.stderr.splitlines()[-1]
    if importlib.util.find_spec("detectron2") is None:
        done = run("tools/train_net.py", "--config-file", "configs/detectron2/mask_rcnn_r18_fpn_1x.yaml", expect=2)
        assert "detectron2 is not installed: pip install" in done.stderr.splitlines()[-1]


@pytest.mark.skipif(importlib.util.find_spec("detectron2") is None, reason="detectron2 is not on the package index")
def test_detectron2_script_trains_resumes_and_evaluates(run, files, tmp_path):
    config, out = tiny_detectron2("mask_rcnn_r18_c4_1x", tmp_path, iterations=3), tmp_path / "out"
    options = ["DATA.PATH_TO_DATA_DIR", files / "set", "OUTPUT_DIR", out]
    done = run("tools/train_net.py", "--config-file", config, *options, expect=2)
    assert "MODEL.WEIGHTS is empty" in done.stderr.splitlines()[-1]
    done = run("tools/train_net.py", "--config-file", config, "MODEL.WEIGHTS", files / "r18.pth", *options)
    assert "120 tensors equal to" in done.stdout and "segm: AP " in done.stdout
    done = run("tools/train_net.py", "--config-file", config, "--eval-only", "MODEL.WEIGHTS", out / "model_final.pth",
               *options)
    assert "bbox: AP " in done.stdout
