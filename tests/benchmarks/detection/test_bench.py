"""`sslight bench coco` on real JPEGs: train, checkpoint, be killed, resume, evaluate; and every fault in one line."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.detection import coco as evaluation, preflight as preflight
from benchmarks.detection.command import EVALUATION
from benchmarks.detection.framework import FRAMEWORKS
from benchmarks.evaluation import main as run_evaluation
from pretrain.backbones import build_backbone
from sslight.core.checkpoint import save_backbone
from sslight.core.errors import InputError
from sslight.core.result import read_result
from tests.benchmarks.detection.coco_sets import write_set
from tests.benchmarks.detection.coco_tiny import ROOT, tiny_detectron2, tiny_mmdet, tiny_retinanet

pytest.importorskip("mmdet", reason="comes with the mmdet extra")
PREPROCESS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "color_order": "RGB", "size": 224}
TASKS = {"faster": "det", "mask": "seg"}


def main(words):
    return run_evaluation(EVALUATION, words)


def configure(words):
    return evaluation.configure(EVALUATION.check(words))


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("coco") / "set")


def backbone(folder, arch):
    torch.manual_seed(3)
    file = folder / f"{arch}.safetensors"
    network = build_backbone(arch)
    save_backbone(file, network.state_dict(), arch=network.arch, method="dino", preprocess=PREPROCESS)
    return file


def start(arguments):
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.coco", *map(str, arguments)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(path, process, seconds=240):
    for _ in range(seconds * 10):
        if path.exists() and path.stat().st_size:
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    raise AssertionError(f"{path} did not appear")


MARK = 1000.0


def momentum_of_anchor_scores(saved):
    """The momentum [3] of the bias of the anchors' scores; None under AdamW."""
    optimizer = saved["optimizer"] if "optimizer" in saved else saved["trainer"]["_trainer"]["optimizer"]
    buffers = [state.get("momentum_buffer") for state in optimizer["state"].values()]
    return next((buffer for buffer in buffers if buffer is not None and buffer.shape == (3,)), None)


def mark_momentum(file):
    """Write a momentum into a checkpoint of which 0.9^k is left after k steps, if it is read back and only then."""
    saved = torch.load(file, weights_only=True)
    momentum = momentum_of_anchor_scores(saved)
    if momentum is not None:
        momentum.fill_(MARK)
        torch.save(saved, file)


def check_momentum(saved, steps):
    momentum = momentum_of_anchor_scores(saved)
    assert momentum is None or momentum.tolist() == pytest.approx([MARK * 0.9**steps] * 3, rel=0.02)


def learning_rates(out):
    """{iteration: learning rate} over all parts of an mmdet run."""
    rows = [
        json.loads(line)
        for file in sorted(out.glob("*/vis_data/scalars.json"))
        for line in file.read_text().splitlines()
    ]
    return {row["iter"]: row["lr"] for row in rows if "lr" in row}


@pytest.mark.parametrize(
    "name, arch",
    [
        ("mask_rcnn_r18_fpn_1x", "resnet18"),
        ("faster_rcnn_r18_fpn_1x", "resnet18"),
        ("mask_rcnn_mobilenetv2_fpn_1x", "mobilenet_v2"),
        ("faster_rcnn_mobilenetv2_p4p6_1x", "mobilenet_v2"),
    ],
)
def test_mmdet_trains_is_killed_resumes_and_evaluates(name, arch, coco, tmp_path):
    out, task = tmp_path / "out", TASKS[name.split("_")[0]]
    arguments = [
        "--framework",
        "mmdet",
        "--task",
        task,
        "--config",
        str(tiny_mmdet(name, tmp_path)),
        "--weights",
        str(backbone(tmp_path, arch)),
        "--show",
        "2",
        "DATA.PATH_TO_DATA_DIR",
        str(coco),
        "OUTPUT_DIR",
        str(out),
        "SOLVER.CHECKPOINT_PERIOD",
        "3",
        "LOG_PERIOD",
        "1",
        "EVAL.BOOTSTRAP",
        "20",
    ]
    process = start(arguments)
    wait_for(out / "last_checkpoint", process)
    process.kill()
    log = process.communicate()[0]
    assert "tensors equal to" in log and not (out / "result.json").exists()
    saved = Path((out / "last_checkpoint").read_text())
    assert saved.name in ("iter_3.pth", "iter_6.pth")
    from benchmarks.detection.in_mmdet.parts import readable_checkpoints

    with readable_checkpoints():
        mark_momentum(saved)

    assert main(arguments) == 0
    result = read_result(out)
    assert result["iterations"] == 8 and result["checkpoint"]["method"] == "dino"
    assert learning_rates(out) == pytest.approx(
        {1: 2e-6, 2: 2e-3, 3: 2e-3, 4: 2e-3, 5: 2e-3, 6: 2e-3, 7: 2e-4, 8: 2e-4}
    )
    done = int(saved.stem.split("_")[1])
    with readable_checkpoints():
        saved = torch.load(out / "iter_8.pth", weights_only=True)
    assert saved["meta"]["iter"] == 8
    check_momentum(saved, 8 - done)
    # mmengine's schedulers stand still on the last step of their range: [0, 2) of the warm-up, [0, 8) of the milestones
    assert [scheduler["last_step"] for scheduler in saved["param_schedulers"]] == [1, 7]
    kinds = ["mask", "box"] if task == "seg" else ["box"]
    assert [metric.split("_")[0] for metric in result["metrics"]][0] == kinds[0]
    assert set(result["per_category"]) == set(kinds) == set(result["detections"][0])
    for kind in kinds:
        named = [key for key in (*result["metrics"], *result["undefined"]) if key.startswith(kind)]
        assert len(named) == 12
    assert len(result["pictures"]) == 2 and all((out / picture).is_file() for picture in result["pictures"])


@pytest.mark.detectron2
@pytest.mark.parametrize(
    "name, arch",
    [
        ("mask_rcnn_r18_fpn_1x", "resnet18"),
        ("mask_rcnn_r18_c4_1x", "resnet18"),
        ("faster_rcnn_mobilenetv2_p4p6_1x", "mobilenet_v2"),
        ("mask_rcnn_vit_tiny_vitdet_1x", "vit_tiny"),
    ],
)
def test_detectron2_trains_is_killed_resumes_and_evaluates(name, arch, coco, tmp_path):
    out, task = tmp_path / "out", TASKS[name.split("_")[0]]
    arguments = [
        "--framework",
        "detectron2",
        "--task",
        task,
        "--config",
        str(tiny_detectron2(name, tmp_path)),
        "--weights",
        str(backbone(tmp_path, arch)),
        "DATA.PATH_TO_DATA_DIR",
        str(coco),
        "OUTPUT_DIR",
        str(out),
        "SOLVER.CHECKPOINT_PERIOD",
        "3",
        "EVAL.BOOTSTRAP",
        "0",
    ]
    process = start(arguments)
    wait_for(out / "last_checkpoint", process)
    process.kill()
    assert "tensors equal to" in process.communicate()[0]
    saved = out / (out / "last_checkpoint").read_text()
    done = torch.load(saved, weights_only=True)["iteration"] + 1
    mark_momentum(saved)
    assert main(arguments) == 0
    result = read_result(out)
    assert result["iterations"] == 8
    saved = torch.load(out / "model_final.pth", weights_only=True)
    assert saved["iteration"] == 7 and saved["trainer"]["hooks"]["LRScheduler"]["last_epoch"] == 8
    check_momentum(saved, 8 - done)


@pytest.mark.detectron2
def test_detectron2_killed_between_its_two_last_checkpoints_writes_the_second(coco, tmp_path):
    out = tmp_path / "out"
    arguments = [
        "--framework",
        "detectron2",
        "--task",
        "det",
        "--config",
        str(tiny_detectron2("faster_rcnn_r18_fpn_1x", tmp_path)),
        "--weights",
        "random",
        "--arch",
        "resnet18",
        "DATA.PATH_TO_DATA_DIR",
        str(coco),
        "OUTPUT_DIR",
        str(out),
        "SOLVER.CHECKPOINT_PERIOD",
        "4",
        "EVAL.BOOTSTRAP",
        "0",
    ]
    assert main(arguments) == 0
    whole = torch.load(out / "model_final.pth", weights_only=True)
    (out / "result.json").unlink()
    (out / "model_final.pth").unlink()
    (out / "last_checkpoint").write_text("model_0000007.pth")
    assert main(arguments) == 0
    again = torch.load(out / "model_final.pth", weights_only=True)
    assert read_result(out)["iterations"] == 8 and again["iteration"] == 7
    assert again["trainer"]["hooks"] == whole["trainer"]["hooks"]
    assert all(torch.equal(again["model"][key], value) for key, value in whole["model"].items())


@pytest.mark.parametrize(
    "framework, number",
    [
        ("mmdet", signal.SIGTERM),
        ("mmdet", signal.SIGINT),
        pytest.param("detectron2", signal.SIGINT, marks=pytest.mark.detectron2),
    ],
)
def test_a_stop_signal_saves_and_the_next_start_goes_on(coco, tmp_path, framework, number):
    out = tmp_path / "out"
    tiny = {"mmdet": tiny_mmdet, "detectron2": tiny_detectron2}[framework]
    config = tiny("faster_rcnn_r18_fpn_1x", tmp_path, iterations=400)
    arguments = [
        "--framework",
        framework,
        "--task",
        "det",
        "--config",
        str(config),
        "--weights",
        "random",
        "--arch",
        "resnet18",
        "DATA.PATH_TO_DATA_DIR",
        str(coco),
        "OUTPUT_DIR",
        str(out),
        "SOLVER.CHECKPOINT_PERIOD",
        "2",
    ]
    process = start(arguments)
    wait_for(out / "last_checkpoint", process)
    os.killpg(process.pid, number)
    log = process.communicate(timeout=120)[0]
    assert process.returncode == 75, log
    done = int(log.rsplit("saved at iteration ", 1)[1].split()[0])
    saved = {"mmdet": f"iter_{done}.pth", "detectron2": f"model_{done - 1:07d}.pth"}[framework]
    assert (out / saved).is_file() and done < 400


def test_trials_and_proxy_are_recorded_in_the_result(coco, tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        main(
            [
                "--framework",
                "mmdet",
                "--task",
                "det",
                "--config",
                str(tiny_mmdet("faster_rcnn_r18_fpn_1x", tmp_path)),
                "--weights",
                "random",
                "--arch",
                "resnet18",
                "--trials",
                "2",
                "--proxy",
                "0.5",
                "DATA.PATH_TO_DATA_DIR",
                str(coco),
                "OUTPUT_DIR",
                str(out),
                "EVAL.BOOTSTRAP",
                "10",
                "NAME",
                "mine",
            ]
        )
        == 0
    )
    result = read_result(out)
    assert result["checkpoint"]["name"] == "mine" and result["departures"]["--proxy"] == 0.5
    assert result["departures"]["train_cfg.max_iters"] == 8  # the tiny recipe has the shipped one's name
    assert result["proxy"] == 0.5 and "proxy" in result["protocol"]
    assert result["data"]["counts"] == {"train": 6, "val": 6} and result["iterations"] == 4
    assert [run["seed"] for run in result["per_seed"]] == [0, 1] and "std" in result["metrics"]["box_AP"]
    assert result["checkpoint"]["family"] == "random"
    assert "4 iterations of 2 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "departures"),
    [
        ([], {}),
        (["SEED", "3", "DATA.WORKERS", "1", "EVAL.BOOTSTRAP", "0", "LOG_PERIOD", "1"], {}),
        (
            ["SOLVER.MAX_ITER", "9000"],
            {"SOLVER.MAX_ITER": 9000, "SOLVER.STEPS": [6000, 8000], "SOLVER.WARMUP_ITERS": 100},
        ),
        (
            ["SOLVER.IMS_PER_BATCH", "8", "--scale-lr", "--amp"],
            {"SOLVER.IMS_PER_BATCH": 8, "SOLVER.BASE_LR": 0.01, "TRAIN.AMP": True},
        ),
        (["model.rpn_head.feat_channels", "128"], {"model.rpn_head.feat_channels": 128}),
        (["--config", "copy"], {"optim_wrapper.optimizer.momentum": 0.8}),
    ],
)
def test_departures_from_a_recipe_are_recorded(coco, tmp_path, words, departures):
    """Also those of a copy that has the recipe's name; where things lie and how a run is repeated departs from none."""
    name = "faster_rcnn_r18_fpn_1x.py"
    (tmp_path / name).write_text(
        f"_base_ = '{ROOT / 'configs' / 'mmdet' / name}'\noptim_wrapper = dict(optimizer=dict(momentum=0.8))\n"
    )
    setup = configure(
        [
            "--framework",
            "mmdet",
            "--task",
            "det",
            "--weights",
            "random",
            "--arch",
            "resnet18",
            "DATA.PATH_TO_DATA_DIR",
            str(coco),
            "OUTPUT_DIR",
            str(tmp_path / "out"),
            *(str(tmp_path / name) if word == "copy" else word for word in words),
        ]
    )
    assert setup.departures == departures and setup.identity.RUN.RECIPE == "faster_rcnn_r18_fpn_1x"


@pytest.mark.detectron2
def test_departures_from_a_recipe_of_detectron2_are_recorded(coco, tmp_path):
    words = [
        "--framework",
        "detectron2",
        "--task",
        "det",
        "--weights",
        "random",
        "--arch",
        "resnet18",
        "DATA.PATH_TO_DATA_DIR",
        str(coco),
        "OUTPUT_DIR",
        str(tmp_path / "out"),
    ]
    assert configure(words).departures == {}
    assert configure([*words, "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "64"]).departures == {
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 64
    }


def arguments_for(coco, tmp_path, config="configs/mmdet/mask_rcnn_r18_fpn_1x.py", weights="random", task="seg"):
    extra = ["--arch", "resnet18"] if weights == "random" else []
    return [
        "--framework",
        "mmdet",
        "--task",
        task,
        "--config",
        str(ROOT / config),
        "--weights",
        str(weights),
        "--check",
        *extra,
        "DATA.PATH_TO_DATA_DIR",
        str(coco),
        "OUTPUT_DIR",
        str(tmp_path / "out"),
    ]


def spoiled(coco, folder, change, split="train"):
    """A copy of the data set (images by link) whose annotation file went through `change`."""
    folder.mkdir()
    (folder / "annotations").mkdir()
    for name in ("train2017", "val2017"):
        (folder / name).symlink_to(coco / name)
        text = (coco / "annotations" / f"instances_{name}.json").read_text()
        if name.startswith(split):
            content = json.loads(text)
            text = change(content) or json.dumps(content)
        (folder / "annotations" / f"instances_{name}.json").write_text(text)
    return folder


FAULTS = {
    "is not JSON": lambda content: "{",
    "has no list 'categories'": lambda content: content.pop("categories") and None,
    "images listed in .* are absent": lambda content: content["images"].append(
        {"id": 999, "file_name": "absent.jpg", "width": 9, "height": 9}
    ),
    "do not belong together": lambda content: [image.update(width=31) for image in content["images"]] and None,
    "different categories": lambda content: content["categories"].append({"id": 99, "name": "cat"}),
    "same name": lambda content: content["categories"].append({"id": 99, "name": "disc"}),
    "which it does not list": lambda content: content["annotations"][0].update(category_id=5),
    "have no segmentation": lambda content: content["annotations"][0].pop("segmentation") and None,
    "no object of .* would be trained on": lambda content: (
        [entry.update(iscrowd=1) for entry in content["annotations"]] and None
    ),
    "in relative units": lambda content: (
        [entry.update(bbox=[0.1, 0.1, 0.5, 0.5]) for entry in content["annotations"]] and None
    ),
}


@pytest.mark.parametrize("word", FAULTS)
def test_faults_of_the_data_stop_the_run_in_one_line(word, coco, tmp_path):
    with pytest.raises(InputError, match=word) as error:
        main(arguments_for(spoiled(coco, tmp_path / "data", FAULTS[word]), tmp_path))
    assert "\n" not in str(error.value)


NUMBERS = {
    "--trials 0": "--trials",
    "--trials -1": "--trials",
    "--proxy 0": "--proxy",
    "--proxy 1.5": "--proxy",
    "--show -1": "--show",
    "--num-gpus 0": "--num-gpus",
    "LOG_PERIOD 0": "LOG_PERIOD",
    "SEED -1": "SEED",
    "SOLVER.MAX_ITER -5": "SOLVER.MAX_ITER",
    "SOLVER.BASE_LR -0.1": "SOLVER.BASE_LR",
    "SOLVER.STEPS [-3]": "SOLVER.STEPS",
    "SOLVER.WARMUP_ITERS -2": "SOLVER.WARMUP_ITERS",
    "DATA.WORKERS -2": "DATA.WORKERS",
    "DATA.WORKERS 5000": "DATA.WORKERS",
    "EVAL.BOOTSTRAP -1": "EVAL.BOOTSTRAP",
}


@pytest.mark.parametrize("words", NUMBERS)
def test_numbers_that_cannot_work_are_refused(words, coco, tmp_path):
    with pytest.raises(InputError, match=NUMBERS[words]):
        main([*arguments_for(coco, tmp_path), *words.split()])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("framework", ["mmdet", pytest.param("detectron2", marks=pytest.mark.detectron2)])
def test_a_one_stage_detector_by_config(framework, tmp_path):
    file, coco = tiny_retinanet(framework, tmp_path), write_set(tmp_path / "set", counts=(4, 2))
    arguments = [
        "--framework",
        framework,
        "--config",
        str(file),
        "--weights",
        "random",
        "--arch",
        "resnet18",
        "DATA.PATH_TO_DATA_DIR",
        str(coco),
        "OUTPUT_DIR",
        str(tmp_path / "out"),
        "SOLVER.MAX_ITER",
        "2",
        "SOLVER.STEPS",
        "[1]",
        "SOLVER.WARMUP_ITERS",
        "0",
        "EVAL.BOOTSTRAP",
        "0",
    ]
    assert main(["--task", "det", *arguments]) == 0
    result = read_result(tmp_path / "out")
    assert "box_AP" in result["metrics"] and result["protocol"] == "retinanet"
    config = result["config"]["framework_config"]
    assert (
        config["model"]["bbox_head"]["num_classes"]
        if framework == "mmdet"
        else config["MODEL"]["RETINANET"]["NUM_CLASSES"]
    ) == 3
    with pytest.raises(InputError, match="predicts boxes only, so its task is det"):
        main(["--task", "seg", *arguments])


@pytest.mark.parametrize(
    "text, words",
    [
        ("train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=12)", "train_cfg has no max_iters"),
        ("param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=False, T_max=9)]", "CosineAnnealingLR is neither"),
        ("model = dict(bbox_head=dict(_delete_=True, type='MyHead'))", "no head of its model has num_classes"),
    ],
)
def test_a_recipe_that_is_built_otherwise_is_refused_in_one_line(text, words, coco, tmp_path):
    file = tmp_path / "other.py"
    file.write_text(f"_base_ = '{tiny_retinanet('mmdet', tmp_path)}'\n{text}\n")
    with pytest.raises(InputError, match=f"other.py is no recipe for this: .*{words}.*; begin it with") as error:
        main(arguments_for(coco, tmp_path, config=file, task="det"))
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "framework, tiny",
    [("mmdet", tiny_mmdet), pytest.param("detectron2", tiny_detectron2, marks=pytest.mark.detectron2)],
)
def test_an_untidy_annotation_file_trains_and_counts_as_a_tidy_one(framework, tiny, tmp_path):
    """UTF-16, object ids that repeat and reach 0, image ids beyond 2^53, no areas: the same detections, the same AP."""

    def untidy(content):
        for image in content["images"]:
            image["id"] += 2**53
        for number, entry in enumerate(content["annotations"]):
            entry.update(id=number // 2, image_id=entry["image_id"] + 2**53)
            del entry["area"]

    coco = write_set(tmp_path / "set", counts=(6, 4))
    odd = spoiled(coco, tmp_path / "odd", untidy, split="")
    for file in (odd / "annotations").iterdir():
        file.write_bytes(file.read_text().encode("utf-16"))
    config, results, found = tiny("faster_rcnn_r18_fpn_1x", tmp_path, iterations=4), [], []
    for name, data in (("tidy", coco), ("untidy", odd)):
        assert (
            main(
                [
                    "--framework",
                    framework,
                    "--task",
                    "det",
                    "--config",
                    str(config),
                    "--weights",
                    "random",
                    "--arch",
                    "resnet18",
                    "DATA.PATH_TO_DATA_DIR",
                    str(data),
                    "OUTPUT_DIR",
                    str(tmp_path / name),
                    "EVAL.BOOTSTRAP",
                    "10",
                ]
            )
            == 0
        )
        results.append(read_result(tmp_path / name))
        found.append(json.loads((tmp_path / name / results[-1]["detections"][0]["box"]).read_text()))
    assert found[1] == [{**entry, "image_id": entry["image_id"] + 2**53} for entry in found[0]]
    assert {name for name in results[0]["metrics"] if name[-1] not in "sml"} <= set(results[1]["metrics"])
    for name, metric in results[0]["metrics"].items():
        assert results[1]["metrics"][name]["value"] == pytest.approx(metric["value"], abs=1e-9), name
    assert len(found[0]) > 10


@pytest.mark.parametrize(
    "framework, tiny, part",
    [
        ("mmdet", tiny_mmdet, "train2017"),
        pytest.param("detectron2", tiny_detectron2, "val2017", marks=pytest.mark.detectron2),
    ],
)
def test_an_image_that_breaks_within_a_run_is_named(framework, tiny, part, tmp_path, monkeypatch):
    data = write_set(tmp_path / "set", counts=(6, 3))
    file = data / part / "000000000002.jpg"
    file.write_bytes(file.read_bytes()[:-300])
    monkeypatch.setattr(preflight, "check_images", lambda splits, out_dir: None)  # it was whole when the run began
    config = tiny("faster_rcnn_r18_fpn_1x", tmp_path, iterations=4)
    with pytest.raises(InputError) as error:
        main(
            [
                "--framework",
                framework,
                "--task",
                "det",
                "--config",
                str(config),
                "--weights",
                "random",
                "--arch",
                "resnet18",
                "DATA.PATH_TO_DATA_DIR",
                str(data),
                "OUTPUT_DIR",
                str(tmp_path / "out"),
                "DATA.WORKERS",
                "1",
            ]
        )
    assert str(error.value).startswith(f"image cannot be read: {file} (") and "\n" not in str(error.value)


def test_faults_of_the_weights_stop_the_run_in_one_line(coco, tmp_path):
    with pytest.raises(InputError, match="builds a resnet18, but the weights are a resnet34"):
        main(arguments_for(coco, tmp_path, weights=backbone(tmp_path, "resnet34")))
    state = build_backbone("resnet18").state_dict()
    torch.save({key: value for key, value in state.items() if key != "layer3.1.conv2.weight"}, tmp_path / "part.pth")
    with pytest.raises(InputError, match="layer3.1.conv2.weight"):
        main(arguments_for(coco, tmp_path, weights=tmp_path / "part.pth"))
    with pytest.raises(InputError, match="so its task is seg"):
        main(arguments_for(coco, tmp_path, task="det"))
    with pytest.raises(InputError, match="not found"):
        main(arguments_for(coco, tmp_path, weights=tmp_path / "none.pth"))


def test_a_missing_framework_is_named_with_the_line_that_installs_it(coco, tmp_path, monkeypatch):
    def without_detectron2(name):
        raise ModuleNotFoundError("No module named 'detectron2'", name="detectron2")

    monkeypatch.setattr(importlib, "import_module", without_detectron2)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="detectron2 is not installed: pip install --no-build-isolation"):
        main(
            [
                "--framework",
                "detectron2",
                "--task",
                "det",
                "--weights",
                "random",
                "--arch",
                "resnet18",
                "DATA.PATH_TO_DATA_DIR",
                str(coco),
                "OUTPUT_DIR",
                str(tmp_path),
            ]
        )


def test_a_framework_without_what_it_imports_is_named(monkeypatch):
    def without_omegaconf(name):
        raise ModuleNotFoundError("No module named 'omegaconf'", name="omegaconf")

    monkeypatch.setattr(importlib, "import_module", without_omegaconf)
    with pytest.raises(InputError, match="mmdet is installed without 'omegaconf', which it imports: pip install"):
        FRAMEWORKS["mmdet"]


def test_the_command_exits_with_2_and_one_line(run, tmp_path):
    done = run(
        "-m",
        "benchmarks.coco",
        "--framework",
        "mmdet",
        "--task",
        "det",
        "--weights",
        "random",
        "--arch",
        "resnet18",
        "DATA.PATH_TO_DATA_DIR",
        tmp_path,
        "OUTPUT_DIR",
        tmp_path / "out",
        expect=2,
    )
    assert done.stderr.splitlines()[-1].startswith("error: COCO annotation file not found")


def test_a_directory_belongs_to_one_run(coco, tmp_path):
    arguments = arguments_for(coco, tmp_path)
    assert main(arguments) == 0 and not (tmp_path / "out").exists()  # only checks
    (tmp_path / "out").mkdir()
    assert main(arguments) == 0
    assert main([*arguments, "SOLVER.BASE_LR", "0.5"]) == 0 == main(arguments)  # nothing is saved yet
    (tmp_path / "out" / "iter_2.pth").touch()
    assert main([*arguments, "EVAL.BOOTSTRAP", "7"]) == 0
    with pytest.raises(InputError, match="another recipe.*SOLVER.BASE_LR"):
        main([*arguments, "SOLVER.BASE_LR", "0.5"])
    more = spoiled(coco, tmp_path / "more", lambda content: content["categories"].append({"id": 99, "name": "cat"}), "")
    with pytest.raises(InputError, match="another recipe.*RUN.CATEGORIES"):  # a started head knows other categories
        main([*arguments, "DATA.PATH_TO_DATA_DIR", str(more)])
    with pytest.raises(InputError, match="unknown config key 'MODEL.NECK'"):
        main([*arguments, "MODEL.NECK", "3"])
    with pytest.raises(InputError, match="did you mean 'EVAL.BOOTSTRAP'"):
        main([*arguments, "EVAL.BOOTSTRAPS", "3"])
