"""Whole runs as a user starts them: artefacts, resuming bit for bit, signals, several processes, bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from pretrain import train
from sslight.core.checkpoint import read_backbone_file
from sslight.core.errors import InputError
from tests.conftest import ROOT

SMALL = [
    "METHOD",
    "swav",
    "MODEL.BACKBONE_ARCH",
    "resnet18",
    "VIEWS.GLOBAL_SIZE",
    32,
    "VIEWS.LOCAL_SIZE",
    16,
    "VIEWS.LOCAL_NUMBER",
    2,
    "SWAV.PROTOTYPES",
    16,
    "SWAV.QUEUE_LENGTH",
    48,
    "SWAV.EPOCH_QUEUE_STARTS",
    0,
    "SWAV.HIDDEN_SIZE",
    64,
    "SWAV.OUTPUT_DIM",
    16,
    "SOLVER.TOTAL_EPOCHS",
    2,
    "SOLVER.WARMUP_EPOCHS",
    1,
    "TRAIN.BATCH_SIZE",
    16,
    "TRAIN.LOG_PERIOD",
    1,
    "DATA.WORKERS",
    1,
]
VIT = [
    "METHOD",
    "dino",
    "MODEL.BACKBONE_ARCH",
    "vit_tiny",
    "VIEWS.GLOBAL_SIZE",
    32,
    "VIEWS.LOCAL_SIZE",
    16,
    "VIEWS.LOCAL_NUMBER",
    1,
    "DINO.HEAD_BN",
    False,
    "DINO.OUTPUT_DIM",
    64,
    "DINO.HIDDEN_SIZE",
    64,
    "DINO.NORM_LAST_LAYER",
    False,
    "DINO.BOTTLENECK_DIM",
    16,
    "SOLVER.OPTIMIZER",
    "LARS",
    "SOLVER.TOTAL_EPOCHS",
    1,
    "SOLVER.WARMUP_EPOCHS",
    0,
    "DINO.FREEZE_LAST_LAYER_EPOCHS",
    0,
    "TRAIN.LOG_PERIOD",
    1,
    "DATA.WORKERS",
    1,
    "KNN.PERIOD",
    0,
]


def main(*arguments: object) -> None:
    """The command in this process."""
    train.main([str(argument) for argument in arguments])


def model_of(out_dir) -> dict:
    return torch.load(out_dir / "checkpoints" / "last.pth", weights_only=True)["model"]


def losses(out_dir) -> list[float]:
    return [
        line["loss"] for line in map(json.loads, (out_dir / "metrics.jsonl").read_text().splitlines()) if "loss" in line
    ]


@pytest.fixture(scope="module")
def finished(image_folder, tmp_path_factory, run):
    """An uninterrupted run with the joint probe."""
    out_dir = tmp_path_factory.mktemp("uninterrupted") / "run"
    done = run(
        "-m",
        "pretrain",
        *SMALL,
        "TRAIN.JOINT_LINEAR_PROBE",
        True,
        "DATA.PATH_TO_DATA_DIR",
        image_folder,
        "OUTPUT_DIR",
        out_dir,
    )
    return out_dir, done


def test_a_run_leaves_what_it_promises(finished):
    out_dir, done = finished
    for name in (
        "config.yaml",
        "log.txt",
        "metrics.jsonl",
        "checkpoints/last.pth",
        "checkpoints/epoch_0002.pth",
        "backbone.safetensors",
    ):
        assert (out_dir / name).is_file(), name
    assert any((out_dir / "tensorboard").iterdir())
    plain = [line for line in done.stdout.splitlines() if line.startswith("pretrain: ")]  # LOG_PERIOD is 1
    assert len(plain) == 12 and all(word in plain[-1] for word in ("12/12 step", "s left", "loss", "images", "wait"))
    assert len(losses(out_dir)) == 12 and "waited" in done.stdout and "sslight convert" in done.stdout
    lines = [json.loads(line) for line in (out_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "knn_top1" in line] == [1, 2]
    assert all(0 <= line["probe_top1"] <= 1 for line in lines if "loss" in line)
    tensors, header = read_backbone_file(out_dir / "backbone.safetensors")
    assert header["arch"] == "resnet18" and header["method"] == "swav" and header["preprocess"]["size"] == 32
    model = model_of(out_dir)
    assert all(torch.equal(model[f"network.backbone.{key}"], value) for key, value in tensors.items())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_continues_bit_for_bit(finished, image_folder, tmp_path, run, number):
    """Stopped in the middle of an epoch, by a polite signal (saves, exits 75) or by SIGKILL (loses up to a second).

    A terminal's Ctrl-C reaches the loader worker, too.
    """
    out_dir = tmp_path / "run"
    command = [
        *map(
            str,
            [
                "-m",
                "pretrain",
                *SMALL,
                "TRAIN.JOINT_LINEAR_PROBE",
                True,
                "DATA.PATH_TO_DATA_DIR",
                image_folder,
                "OUTPUT_DIR",
                out_dir,
                "TRAIN.SAVE_SECONDS",
                0.0,
            ],
        )
    ]
    process = start(*command, stdout=subprocess.DEVNULL)
    wait_for_losses(out_dir, 8)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    assert process.wait(60) == (-9 if number == signal.SIGKILL else 75)
    assert len(losses(out_dir)) < 12, "the run was over before it could be stopped"
    ends_as(finished, run(*command), out_dir)


SLOW_SAVE = """
import sys, time
from pretrain import train
from sslight.core.processes import run_command

def save(*arguments, **options):
    print("saving", flush=True)
    time.sleep(600)

train.save = save
run_command(lambda: train.main(sys.argv[1:]))
"""


def test_a_second_ctrl_c_ends_a_run_that_is_saving_at_once(finished, image_folder, tmp_path, run):
    """With its loader worker, and as shells know it (130, a death by SIGINT). What was saved before is intact."""
    out_dir = tmp_path / "run"
    words = [
        *map(
            str,
            [*SMALL, "TRAIN.JOINT_LINEAR_PROBE", True, "DATA.PATH_TO_DATA_DIR", image_folder, "OUTPUT_DIR", out_dir],
        )
    ]
    process = start("-c", SLOW_SAVE, *words, stdout=subprocess.PIPE, text=True)
    try:
        wait_for_losses(out_dir, 3)
        os.killpg(process.pid, signal.SIGINT)
        assert any(line == "saving\n" for line in process.stdout)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(10) == -signal.SIGINT
        wait_until(lambda: not running(process.pid), 30)
    finally:
        if running(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    ends_as(finished, run("-m", "pretrain", *words), out_dir, "steps 0 to 12")


def start(*words, **options) -> subprocess.Popen:
    """Python in a process group of its own, as a terminal starts it."""
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        start_new_session=True,
        **options,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def running(group: int) -> bool:
    """Whether a process of the group is left."""
    try:
        os.killpg(group, 0)
        return True
    except ProcessLookupError:
        return False


def wait_until(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_losses(out_dir, number: int) -> None:
    wait_until(lambda: (out_dir / "metrics.jsonl").exists() and len(losses(out_dir)) >= number, 120)


def ends_as(finished, done, out_dir, said: str = "continuing from") -> None:
    """The run that was started again, in `out_dir`, equals the uninterrupted one to the last bit."""
    assert said in done.stdout
    expected, resumed = model_of(finished[0]), model_of(out_dir)
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(resumed[key], value) for key, value in expected.items())
    assert losses(out_dir) == losses(finished[0])


def test_two_processes_equal_one_with_the_double_batch(image_folder, tmp_path, run):
    """ViT, no batch norm; gradients are averaged in another order, so to 1e-5 of the largest weight."""
    single, double = tmp_path / "single", tmp_path / "double"
    common = [*VIT, "DATA.PATH_TO_DATA_DIR", image_folder]
    main(*common, "TRAIN.BATCH_SIZE", 32, "OUTPUT_DIR", single)
    run(
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        2,
        "--standalone",
        "-m",
        "pretrain",
        *common,
        "TRAIN.BATCH_SIZE",
        16,
        "OUTPUT_DIR",
        double,
    )
    one, two = model_of(single), model_of(double)
    for key, value in one.items():
        assert (two[key] - value).abs().max() <= 1e-5 * max(value.abs().max(), 1e-3), key
    # and accumulation over two forwards reaches the same global batch, schedule and, without batch statistics, weights
    accumulated = tmp_path / "accumulated"
    main(*common, "TRAIN.BATCH_SIZE", 16, "TRAIN.ACCUMULATE", 2, "OUTPUT_DIR", accumulated)
    for key, value in one.items():
        assert (model_of(accumulated)[key] - value).abs().max() <= 1e-4 * max(value.abs().max(), 1e-3), key


def test_pretraining_without_probe_never_reads_labels(image_folder, tmp_path):
    """The same images without class folders give the same weights: nothing but pixels went in."""
    flat = tmp_path / "flat"
    (flat / "train").mkdir(parents=True)
    for i, image in enumerate(sorted((image_folder / "train").rglob("*.jpg"))):
        shutil.copy(image, flat / "train" / f"{i:04d}.jpg")
    for data, out_dir in ((image_folder, tmp_path / "a"), (flat, tmp_path / "b")):
        main(*SMALL, "SOLVER.TOTAL_EPOCHS", 1, "KNN.PERIOD", 0, "DATA.PATH_TO_DATA_DIR", data, "OUTPUT_DIR", out_dir)
    a, b = model_of(tmp_path / "a"), model_of(tmp_path / "b")
    assert all(torch.equal(b[key], value) for key, value in a.items())


def test_dry_run_prints_the_configuration_and_writes_nothing(image_folder, tmp_path, capsys):
    main("--dry-run", *SMALL, "DATA.PATH_TO_DATA_DIR", image_folder, "OUTPUT_DIR", tmp_path / "x")
    printed = capsys.readouterr().out
    assert "METHOD: swav" in printed and "6 steps an epoch" in printed
    assert not (tmp_path / "x").exists()


def test_show_views_writes_a_picture(image_folder, tmp_path):
    main("--show-views", tmp_path / "views.png", *SMALL, "DATA.PATH_TO_DATA_DIR", image_folder)
    with Image.open(tmp_path / "views.png") as picture:
        assert picture.size == (4 * 34 + 2, 8 * 34 + 2)


def test_another_recipe_or_global_batch_is_refused(finished, image_folder, run):
    common = [
        *SMALL,
        "TRAIN.JOINT_LINEAR_PROBE",
        True,
        "DATA.PATH_TO_DATA_DIR",
        image_folder,
        "OUTPUT_DIR",
        finished[0],
    ]
    done = run("-m", "pretrain", *common, "SOLVER.BASE_LR", 0.1, expect=2)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "SOLVER.BASE_LR 0.48 -> 0.1" in done.stderr
    with pytest.raises(InputError, match="global batch of 16, this start has 8"):
        main(*common, "TRAIN.BATCH_SIZE", 8)
    main(*common, "MOCO.TEMPERATURE", 0.5)  # another method's: a run outlives changes of those, and new methods


def test_a_checkpoint_from_elsewhere_starts_a_run_of_the_same_recipe(finished, image_folder, tmp_path):
    """It goes on at the checkpoint's step, with its optimizer; another recipe must be agreed to."""
    common = [
        *SMALL,
        "TRAIN.JOINT_LINEAR_PROBE",
        True,
        "DATA.PATH_TO_DATA_DIR",
        image_folder,
        "OUTPUT_DIR",
        tmp_path,
        "TRAIN.CHECKPOINT_FILE_PATH",
        finished[0] / "checkpoints" / "last.pth",
    ]
    main(*common)
    assert losses(tmp_path) == []  # it was at the end already
    assert all(torch.equal(model_of(tmp_path)[key], value) for key, value in model_of(finished[0]).items())
    longer = [*common, "OUTPUT_DIR", tmp_path / "longer", "SOLVER.TOTAL_EPOCHS", 3]
    with pytest.raises(InputError, match="SOLVER.TOTAL_EPOCHS 2 -> 3.*TRAIN.ALLOW_CHANGES True"):
        main(*longer)
    main(*longer, "TRAIN.ALLOW_CHANGES", True)
    assert len(losses(tmp_path / "longer")) == 6


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["DATA.PATH_TO_DATA_DIR", "/no/such/place"], "/no/such/place"),
        (["MODEL.BACKBONE_ARCH", "resnet81"], "unknown backbone 'resnet81' (did you mean 'resnet"),
        (["METHOD", "dinoo"], "did you mean 'dino'?"),
        (["TRAIN.BATCH_SIZE", 1000], "lower TRAIN.BATCH_SIZE"),
        (["TRAIN.AMP", "fp16"], "needs a GPU"),
        (["TRAIN.CHECKPOINT_FILE_PATH", "README.md"], "README.md"),
    ],
)
def test_bad_input_is_named_before_any_work(image_folder, tmp_path, overrides, message):
    with pytest.raises(InputError) as error:
        main(*SMALL, "DATA.PATH_TO_DATA_DIR", image_folder, "OUTPUT_DIR", tmp_path / "x", *overrides)
    assert message in str(error.value)
    assert not (tmp_path / "x" / "checkpoints").exists()


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("VIEWS.GLOBAL_SCALE", [1.0, 0.3], "low <= high"),
        ("DATA.MEAN", [0.5], "expects 3 numbers"),
        ("DATA.STD", [0.2, 0.2, 0.0], "more than 0"),
        ("DATA.WORKERS", -1, "no negative"),
        ("DATA.WORKERS", 10**6, "1024"),
        ("DATA.PIPELINE", "quick", "use fast or reference"),
        ("DATA.MAX_CORRUPT", 2, "at most 1"),
        ("LOSS.WEIGHTS", [1.0], "expects 2 numbers"),
        ("DINO.STUDENT_TEMP", 0, "more than 0"),
        ("SOLVER.TOTAL_EPOCHS", 0, "more than 0"),
        ("MODEL.DROP_PATH_RATE", 7, "at most 1"),
    ],
)
def test_a_refused_value_leaves_nothing(image_folder, tmp_path, key, value, message):
    with pytest.raises(InputError, match=message):
        main(*SMALL, "DATA.PATH_TO_DATA_DIR", image_folder, "OUTPUT_DIR", tmp_path / "x", key, value)
    assert not (tmp_path / "x").exists()


def test_missing_val_matters_only_to_knn(image_folder, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(image_folder / "train")
    common = ["--dry-run", *SMALL, "DATA.PATH_TO_DATA_DIR", tmp_path / "data"]
    with pytest.raises(InputError, match="val"):
        main(*common)
    main(*common, "KNN.PERIOD", 0)


def test_a_loss_that_is_not_finite_stops_the_run(image_folder, tmp_path):
    with pytest.raises(InputError, match="the loss is nan at step .* the last good checkpoint"):
        main(
            *SMALL,
            "DATA.PATH_TO_DATA_DIR",
            image_folder,
            "OUTPUT_DIR",
            tmp_path / "x",
            "SOLVER.OPTIMIZER",
            "AdamW",
            "SOLVER.BASE_LR",
            1e38,
            "SOLVER.WARMUP_EPOCHS",
            0,
        )
