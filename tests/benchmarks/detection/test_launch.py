"""Several processes: what srun's environment means, faults of a wrong start, and real groups of two over gloo."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import types

import pytest
import torch

from benchmarks.detection import launch
from sslight.core.errors import InputError
from sslight.core.result import read_result
from tests.benchmarks.detection.coco_sets import write_set
from tests.benchmarks.detection.coco_tiny import ROOT, tiny_detectron2, tiny_mmdet

SRUN = {
    "SLURM_JOB_ID": "40123",
    "SLURM_PROCID": "11",
    "SLURM_NTASKS": "16",
    "SLURM_LOCALID": "3",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
}


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """SLURM's own command for expanding node lists, for the one list that is asked for here."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "scontrol").write_text("#!/bin/sh\n[ \"$3\" = 'gpu[07-08]' ] && printf 'gpu07\\ngpu08\\n'\n")
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")


def test_sruns_environment_becomes_torchruns(scontrol):
    assert launch.from_slurm(SRUN) == {
        "RANK": "11",
        "WORLD_SIZE": "16",
        "LOCAL_RANK": "3",
        "LOCAL_WORLD_SIZE": "8",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "20123",
    }
    kept = launch.from_slurm({**SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"})
    assert (kept["MASTER_ADDR"], kept["MASTER_PORT"]) == ("10.0.0.1", "29500")
    with pytest.raises(InputError, match="ntasks-per-node"):
        launch.from_slurm({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "8,7"})
    with pytest.raises(InputError, match="set MASTER_ADDR"):
        launch.from_slurm({**SRUN, "SLURM_JOB_NODELIST": "elsewhere"})


def test_a_wrong_start_is_refused(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", *SRUN):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="start the command with `torchrun --nproc_per_node"):
        launch.join("torchrun")
    with pytest.raises(InputError, match="SLURM_PROCID is not set: start the command with `srun"):
        launch.join("slurm")


@pytest.fixture
def one_gpu_each(monkeypatch):
    """Rank 3 of a machine whose launcher shows every process a single GPU, its own."""
    for name, value in {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "3",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_arch_list": [],
        "get_device_capability": (9, 0),
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def test_a_process_joins_with_the_one_gpu_that_it_sees(one_gpu_each, monkeypatch):
    monkeypatch.setattr(launch.distributed, "join_group", one_gpu_each.append)
    monkeypatch.setattr(launch.dist, "get_world_size", lambda: 4)
    assert launch.join("torchrun") == launch.join("torchrun", 4) == 4
    with pytest.raises(InputError, match="--num-gpus 3, but torchrun started 4 processes"):
        launch.join("torchrun", 3)
    assert one_gpu_each == [torch.device("cuda", 0), "nccl"] * 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="process 3 .* sees 2: start one process per GPU"):
        launch.join("torchrun")
    with pytest.raises(InputError, match="4 processes for 2 GPU"):
        launch.devices.check(processes=4)


def test_mmengine_takes_the_gpu_that_the_process_sees(one_gpu_each):
    pytest.importorskip("mmdet", reason="comes with the mmdet extra")
    from mmengine.logging import logger

    from benchmarks.detection.in_mmdet import run as coco_mmdet

    with pytest.raises(IndexError):
        logger._get_device_id()  # number 3 of a list of one
    with coco_mmdet._device_as_local_rank():
        assert logger._get_device_id() == 0 and os.environ["LOCAL_RANK"] == "0"  # which DDP is given, too
    assert os.environ["LOCAL_RANK"] == "3"


@pytest.mark.detectron2
def test_detectron2_takes_the_gpu_that_the_process_sees(one_gpu_each, monkeypatch):
    from detectron2.engine import defaults
    from detectron2.utils import comm

    from benchmarks.detection.in_detectron2 import parts as coco_detectron2_parts

    monkeypatch.setattr(comm, "get_world_size", lambda: 4)
    monkeypatch.setattr(comm, "get_local_rank", lambda: 3)
    monkeypatch.setattr(defaults, "DistributedDataParallel", lambda model, **options: options)
    monkeypatch.setattr(
        coco_detectron2_parts.DefaultTrainer,
        "__init__",
        lambda self, cfg: one_gpu_each.append(defaults.create_ddp_model(None, broadcast_buffers=False)),
    )
    with pytest.raises(AttributeError):  # the trainer that was not made
        coco_detectron2_parts.Trainer(None)
    assert one_gpu_each == [{"broadcast_buffers": False, "device_ids": [0]}]


def test_detectors_workers_need_shared_memory(monkeypatch):
    """Two workers of two batches of two images of 1333 x 800, and two batches with the process, in mmdet: 38 MB."""
    pytest.importorskip("mmdet", reason="comes with the mmdet extra")
    from benchmarks.detection.in_mmdet import run as coco_mmdet
    from pretrain.data import loading as loader

    cfg = coco_mmdet.load_config(ROOT / "configs" / "mmdet" / "mask_rcnn_r18_fpn_1x.py")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for size, enough in ((39, True), (38, False)):
        room = types.SimpleNamespace(f_frsize=10**6, f_blocks=size, f_bavail=size)
        monkeypatch.setattr(loader.os, "statvfs", lambda path, room=room: room)
        with contextlib.nullcontext() if enough else pytest.raises(InputError, match="DATA.WORKERS 2 .* 38 MB"):
            coco_mmdet.check_workers(cfg)


def check(out, log, iterations):
    result = read_result(out)
    assert result["iterations"] == iterations and result["config"]["settings"]["SOLVER"]["IMS_PER_BATCH"] == 0
    assert result["schedule"]["batch"] == 2 and log.count("120 tensors equal") >= 1
    assert "SyncBN on each of 2 CPU processes is plain BN over its 1 images" in log
    assert len(result["detections"]) == 1
    return result


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    [
        "mmdet",
        pytest.param("detectron2", marks=pytest.mark.detectron2),
        pytest.param("tools/train_net.py", marks=pytest.mark.detectron2),
    ],
)
def test_ctrl_c_has_all_processes_save_together(tmp_path, script):
    """As a terminal sends it, to the parent and to both of its processes at once."""
    pytest.importorskip("mmdet", reason="comes with the mmdet extra")
    tiny = tiny_mmdet if script == "mmdet" else tiny_detectron2
    data, config, out = write_set(tmp_path / "set"), tiny("faster_rcnn_r18_fpn_1x", tmp_path, 400), tmp_path / "out"
    words = [
        "-m",
        "benchmarks.coco",
        "--framework",
        *arguments(script, config, data, out, "--num-gpus", 2),
        "SOLVER.CHECKPOINT_PERIOD",
        2,
    ]
    if script.startswith("tools"):
        words = [
            script,
            "--config-file",
            config,
            "--num-gpus",
            2,
            "DATA.PATH_TO_DATA_DIR",
            data,
            "OUTPUT_DIR",
            out,
            "MODEL.WEIGHTS",
            "random",
            "SOLVER.CHECKPOINT_PERIOD",
            2,
        ]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", *map(str, words)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while not (out / "last_checkpoint").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    log = process.communicate(timeout=120)[0]
    assert process.returncode == 75 and log.splitlines()[-1] == "stopped: the 2 processes saved and stopped", log
    assert log.count("\nstopped: saved at iteration") == 2, log


def arguments(framework, config, data, out, *more):
    return [
        framework,
        "--task",
        "det",
        "--config",
        config,
        "--weights",
        "random",
        "--arch",
        "resnet18",
        *more,
        "DATA.PATH_TO_DATA_DIR",
        data,
        "OUTPUT_DIR",
        out,
        "EVAL.BOOTSTRAP",
        "0",
    ]


def environment(**more):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **more}


def as_srun(words, tasks=2):
    """Start the tasks as srun does, with its variables; returns their exit codes and what they printed together."""
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "benchmarks.coco",
                "--launcher",
                "slurm",
                "--framework",
                *map(str, words),
            ],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(
                SLURM_JOB_ID=str(os.getpid()),
                SLURM_PROCID=str(rank),
                SLURM_NTASKS=str(tasks),
                SLURM_LOCALID=str(rank),
                SLURM_JOB_NODELIST="localhost",
                MASTER_ADDR="127.0.0.1",
                SLURM_STEP_TASKS_PER_NODE=str(tasks),
            ),
        )
        for rank in range(tasks)
    ]
    printed = [process.communicate(timeout=400)[0] for process in started]
    return [process.returncode for process in started], "".join(printed)


def test_two_tasks_of_srun_train_one_mmdet_detector(tmp_path):
    pytest.importorskip("mmdet", reason="comes with the mmdet extra")
    data, config = write_set(tmp_path / "set"), tiny_mmdet("faster_rcnn_r18_fpn_1x", tmp_path, iterations=3)
    codes, log = as_srun(arguments("mmdet", config, data, tmp_path / "out"))
    assert codes == [0, 0], log
    result = check(tmp_path / "out", log, 3)
    assert result["config"]["framework_config"]["train_dataloader"]["batch_size"] == 1  # of the recipe's 2
    assert log.count("written: ") == 1
    # a fault that only the main process sees ends every task
    (data / "val2017" / "000000000001.jpg").write_bytes(b"no picture")
    codes, log = as_srun(arguments("mmdet", config, data, tmp_path / "out2"))
    assert codes == [2, 2] and log.count("error: image cannot be read") == 1, log


@pytest.mark.slow
def test_two_gpus_of_one_machine_in_mmdet(run, tmp_path):
    pytest.importorskip("mmdet", reason="comes with the mmdet extra")
    data, config = write_set(tmp_path / "set"), tiny_mmdet("faster_rcnn_r18_fpn_1x", tmp_path, iterations=3)
    done = run(
        "-m", "benchmarks.coco", "--framework", *arguments("mmdet", config, data, tmp_path / "out", "--num-gpus", 2)
    )
    check(tmp_path / "out", done.stdout + done.stderr, 3)


@pytest.mark.detectron2
def test_two_processes_in_detectron2(run, tmp_path):
    data, config = write_set(tmp_path / "set"), tiny_detectron2("faster_rcnn_r18_fpn_1x", tmp_path, iterations=3)
    done = run(
        "-m",
        "benchmarks.coco",
        "--framework",
        *arguments("detectron2", config, data, tmp_path / "spread", "--num-gpus", 2),
    )
    check(tmp_path / "spread", done.stdout + done.stderr, 3)
    done = run(
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        2,
        "-m",
        "benchmarks.coco",
        "--launcher",
        "torchrun",
        "--framework",
        *arguments("detectron2", config, data, tmp_path / "torchrun"),
    )
    check(tmp_path / "torchrun", done.stdout + done.stderr, 3)
