"""`tools/train_mmdet.py` and `tools/train_net.py`: the frameworks' own habits, from any checkpoint, never from none."""

import importlib.util

import pytest
import torch

from convert.reader import read_checkpoint
from pretrain.backbones import build_backbone
from sslight.core.errors import InputError
from tests.benchmarks.detection.coco_sets import write_set, write_voc
from tests.benchmarks.detection.coco_tiny import tiny_detectron2, tiny_mmdet

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
    done = run(
        "tools/train_mmdet.py",
        config,
        "--weights",
        files / "r18.pth",
        "--data",
        files / "set",
        "--work-dir",
        tmp_path / "out",
        "--cfg-options",
        "optim_wrapper.optimizer.lr=0.001",
    )
    assert "120 tensors equal to" in done.stdout + done.stderr and "box: AP " in done.stdout
    assert "schedule: 4 iterations of 2 images (0.7 epochs), learning rate 0.001 " in done.stdout  # the preflight ran
    assert (tmp_path / "out" / "iter_4.pth").is_file()
    made = next((tmp_path / "out" / "weights").glob("resnet18_*_mmdet.pth"))
    assert torch.equal(torch.load(made)["state_dict"]["conv1.weight"], torch.load(files / "r18.pth")["conv1.weight"])


def test_mmdet_script_keeps_to_the_categories_it_was_trained_on(run, files, tmp_path):
    config = tiny_mmdet("faster_rcnn_r18_fpn_1x", tmp_path, iterations=2)
    other = write_set(tmp_path / "other", classes=("square", "disc", "triangle", "cat"))
    start = ["tools/train_mmdet.py", config, "--weights", "random", "--work-dir", tmp_path / "out"]
    run(*start, "--data", files / "set")
    done = run(*start, "--resume", "--data", other, "--cfg-options", "train_cfg.max_iters=4", expect=2)
    assert "the checkpointed head knows 3 categories, the data has 4" in done.stderr.splitlines()[-1]
    fewer = write_set(tmp_path / "fewer", classes=("square", "disc"))
    done = run(*start, "--resume", "--data", fewer, expect=2)
    assert "absent from the data: triangle" in done.stderr.splitlines()[-1]
    done = run(*start, "--amp", "--data", files / "set", expect=2, CUDA_VISIBLE_DEVICES="")
    assert "needs a GPU" in done.stderr.splitlines()[-1]


def test_scripts_refuse_to_start_from_nothing(run, files, tmp_path):
    done = run("tools/train_mmdet.py", CONFIG, "--work-dir", tmp_path, expect=2)
    assert "no weights for the backbone" in done.stderr.splitlines()[-1]
    if importlib.util.find_spec("detectron2") is None:
        done = run("tools/train_net.py", "--config-file", "configs/detectron2/mask_rcnn_r18_fpn_1x.yaml", expect=2)
        assert "detectron2 is not installed: pip install" in done.stderr.splitlines()[-1]


NETWORKS = [
    ("mask_rcnn_r18_fpn_1x", "resnet18", 120),
    ("mask_rcnn_r18_c4_1x", "resnet18", 120),
    ("faster_rcnn_mobilenetv2_p4p6_1x", "mobilenet_v2", 312),
    ("mask_rcnn_vit_tiny_vitdet_1x", "vit_tiny", 147),
]


@pytest.mark.detectron2
@pytest.mark.parametrize("name, arch, tensors", NETWORKS)
def test_detectron2_script_trains_resumes_and_evaluates(name, arch, tensors, run, files, tmp_path):
    config, out, weights = tiny_detectron2(name, tmp_path, iterations=3), tmp_path / "out", tmp_path / "backbone.pth"
    torch.save(build_backbone(arch).state_dict(), weights)
    command = ["tools/train_net.py", "--config-file", config]
    options = ["DATA.PATH_TO_DATA_DIR", files / "set", "OUTPUT_DIR", out]
    done = run(*command, "MODEL.WEIGHTS", weights, "SOLVER.MAX_ITER", 2, *options)
    assert f"backbone proved: {tensors} tensors equal to" in done.stdout and "bbox: AP " in done.stdout
    assert "schedule: 2 iterations of 2 images (0.3 epochs)" in done.stdout  # the preflight ran
    assert torch.load(out / "model_final.pth", weights_only=True)["iteration"] == 1
    done = run(*command, "--resume", "MODEL.WEIGHTS", weights, "SOLVER.MAX_ITER", 4, *options)
    assert "Starting training from iteration 2" in done.stdout and "backbone proved" not in done.stdout
    saved = torch.load(out / "model_final.pth", weights_only=True)
    assert saved["iteration"] == 3 and saved["trainer"]["hooks"]["LRScheduler"]["last_epoch"] == 4
    trained = done.stdout.splitlines()[-1]
    done = run(*command, "--eval-only", "MODEL.WEIGHTS", out / "model_final.pth", *options)
    assert done.stdout.splitlines()[-1] == trained and "AP " in trained  # the same numbers as after the training

    if arch == "vit_tiny":
        with pytest.raises(InputError, match="is a ViTDet backbone"):
            read_checkpoint(out / "model_final.pth", from_detector=True)
        return
    back = read_checkpoint(out / "model_final.pth", from_detector=True).state
    start, first = torch.load(weights), next(iter(back))
    [stem] = [key for key in saved["model"] if key.endswith(("stem.conv1.weight", "model.conv_stem.weight"))]
    assert back.keys() == start.keys() and torch.equal(back[first], saved["model"][stem])
    assert not torch.equal(back[first], start[first])  # the trained network, not the one it started from


@pytest.mark.detectron2
def test_detectron2_script_keeps_to_the_categories_it_was_trained_on(run, files, tmp_path):
    """From a converted `.pkl`, on run-length coded masks, which detectron2's default mask format refuses."""
    from convert.convert_ckpt import main as convert

    assert convert([str(files / "r18.pth"), "--to", "detectron2", "--no-verify", "-o", str(tmp_path / "r18.pkl")]) == 0
    start = ["tools/train_net.py", "--config-file", tiny_detectron2("mask_rcnn_r18_fpn_1x", tmp_path, iterations=3)]
    coded, out = write_set(tmp_path / "coded", run_length=True), tmp_path / "out"
    options = ["MODEL.WEIGHTS", tmp_path / "r18.pkl", "OUTPUT_DIR", out]
    assert "120 tensors equal" in run(*start, *options, "DATA.PATH_TO_DATA_DIR", coded).stdout
    for classes in (("square", "disc", "triangle", "cat"), ("square", "disc", "cat")):
        other = write_set(tmp_path / str(len(classes)), classes=classes)
        for more in (["--resume", *options], ["--eval-only", *options, "MODEL.WEIGHTS", out / "model_final.pth"]):
            done = run(*start, *more, "DATA.PATH_TO_DATA_DIR", other, expect=2)
            assert f"knows 3 categories, the data has {len(classes)}" in done.stderr.splitlines()[-1]
    assert "(absent from the data: triangle)" in done.stderr


@pytest.mark.detectron2
def test_detectron2_script_says_faults_in_one_line(run, files, tmp_path):
    config, out = tiny_detectron2("mask_rcnn_r18_c4_1x", tmp_path, iterations=3), tmp_path / "out"
    data = ["DATA.PATH_TO_DATA_DIR", files / "set", "OUTPUT_DIR", out]
    head = {"roi_heads.box_predictor.cls_score.weight": torch.zeros(81, 8), "backbone.stem.conv1.weight": torch.ones(2)}
    torch.save({"model": head}, tmp_path / "detector.pth")
    for words, options in (
        ("MODEL.WEIGHTS is empty", data),
        ("MODEL.WEIGHTS is empty", ["--resume", *data]),
        ("--eval-only needs a trained detector", ["--eval-only", "MODEL.WEIGHTS", files / "r18.pth", *data]),
        ("the head in", ["--eval-only", "MODEL.WEIGHTS", tmp_path / "detector.pth", *data]),
        ("data set 'coco_2017_train' not found", ["MODEL.WEIGHTS", files / "r18.pth", "OUTPUT_DIR", out]),
        ("needs a GPU", ["MODEL.WEIGHTS", files / "r18.pth", "SOLVER.AMP.ENABLED", "True", *data]),
    ):
        done = run("tools/train_net.py", "--config-file", config, *options, expect=2, CUDA_VISIBLE_DEVICES="")
        assert words in done.stderr.splitlines()[-1], words
    assert not out.exists()


@pytest.mark.detectron2
@pytest.mark.parametrize("name", ["voc_faster_rcnn_r18_c4", "voc_faster_rcnn_r18_fpn"])
def test_detectron2_script_trains_on_pascal_voc(name, run, files, tmp_path):
    config, out = tiny_detectron2(name, tmp_path, iterations=3), tmp_path / "out"
    write_voc(tmp_path / "sets")
    done = run(
        "tools/train_net.py",
        "--config-file",
        config,
        "MODEL.WEIGHTS",
        files / "r18.pth",
        "OUTPUT_DIR",
        out,
        DETECTRON2_DATASETS=str(tmp_path / "sets"),
    )
    assert "120 tensors equal" in done.stdout and "Evaluating voc_2007_test using 2007 metric" in done.stdout
    numbers = done.stdout.splitlines()[-1]
    assert numbers.startswith("bbox: AP ") and "AP50" in numbers and "nan" not in numbers


@pytest.mark.detectron2
def test_detectron2_script_on_two_processes(run, files, tmp_path):
    config, out = tiny_detectron2("faster_rcnn_r18_fpn_1x", tmp_path, iterations=3), tmp_path / "out"
    done = run(
        "tools/train_net.py",
        "--config-file",
        config,
        "--num-gpus",
        2,
        "--dist-url",
        "auto",
        "MODEL.WEIGHTS",
        files / "r18.pth",
        "DATA.PATH_TO_DATA_DIR",
        files / "set",
        "OUTPUT_DIR",
        out,
    )
    assert "120 tensors equal" in done.stdout and "World size: 2" in done.stdout and "bbox: AP " in done.stdout
