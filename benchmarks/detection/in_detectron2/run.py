"""detectron2 as a `benchmarks.detection.framework.DetectionFramework`."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from benchmarks.detection.data import CocoData
from benchmarks.detection.framework import Recipe, Weights
from benchmarks.detection.in_detectron2.parts import Trainer, left_out, register
from benchmarks.detection.weights import prove
from convert.safe_files import read_file
from convert.targets.detectron2_backbones import add_config
from pretrain.backbones import canonical_arch, write_options
from pretrain.data.loading import check_shared_memory
from sslight.core import distributed
from sslight.core.config import find_config, flatten, read_settings
from sslight.core.errors import InputError, nearest_key
from sslight.core.rundir import StopSignal

MODELS = {
    "build_resnet_fpn_backbone": "fpn",
    "build_timm_fpn_backbone": "fpn",
    "build_mobilenetv2_p4p6_backbone": "fpn",
    "build_retinanet_resnet_fpn_backbone": "fpn",
    "build_resnet_backbone": "c4",
    "build_vitdet_backbone": "vitdet",
}
STATE_KEY = "model"
DETECTORS = ("GeneralizedRCNN", "RetinaNet")  # those whose number of classes is set here
BACKBONES = {"fpn": ("backbone.bottom_up.",), "c4": ("backbone.", "roi_heads.res5."), "vitdet": ("backbone.net.",)}
PREPROCESS = ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "INPUT.FORMAT")
ADDED = ("roi_heads.res5.norm.", ".rel_pos_")  # what a detector adds to the pre-trained network


def load_config(file: Path | str) -> CfgNode:
    """A YAML recipe over detectron2's defaults and our keys. Raises InputError for a file that is none."""
    cfg = get_cfg()
    add_config(cfg)
    file = find_config(file)
    read_settings(file)  # refuses what detectron2 would unfold, fetch or wait for without end
    with _one_line(f"cannot read detectron2 config {file}"):
        cfg.merge_from_file(str(file), allow_unsafe=False)  # its default runs what the file's tags say
    return cfg


def override(cfg: CfgNode, options: Sequence[str]) -> None:
    """Set `KEY VALUE` pairs by detectron2's own keys. Raises InputError for unknown ones."""
    known = dict(flatten(cfg))
    for key in options[::2]:
        if key not in known:
            raise InputError(f"unknown key '{key}' of detectron2's config{nearest_key(key, known)}")
    with _one_line("cannot set keys of detectron2's config"):
        cfg.merge_from_list(list(options))


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    """detectron2's error about a config as an InputError."""
    try:
        yield
    except (KeyError, ValueError, TypeError, AttributeError, AssertionError, OSError, yaml.YAMLError) as error:
        raise InputError(f"{what}: {' '.join(str(error).split())[:300]}") from None


def recipe_of(cfg: CfgNode) -> Recipe:
    """Raises InputError for another backbone or detector than those of configs/detectron2."""
    name, solver = cfg.MODEL.BACKBONE.NAME, cfg.SOLVER
    if name not in MODELS:
        raise InputError(f"MODEL.BACKBONE.NAME '{name}' is none of {', '.join(MODELS)}")
    if cfg.MODEL.META_ARCHITECTURE not in DETECTORS:
        raise InputError(f"MODEL.META_ARCHITECTURE '{cfg.MODEL.META_ARCHITECTURE}' is none of {', '.join(DETECTORS)}")
    resnet = "resnet" in name
    return {
        "arch": f"resnet{cfg.MODEL.RESNETS.DEPTH}" if resnet else canonical_arch(cfg.MODEL.TIMM.ARCH),
        "model": MODELS[name],
        "mask": cfg.MODEL.MASK_ON,
        "batch": solver.IMS_PER_BATCH,
        "lr": solver.BASE_LR,
        "max_iter": solver.MAX_ITER,
        "steps": list(solver.STEPS),
        "warmup": solver.WARMUP_ITERS,
        "norm": cfg.MODEL.RESNETS.NORM if resnet else "LN" if MODELS[name] == "vitdet" else cfg.MODEL.TIMM.NORM,
        "mean": list(cfg.MODEL.PIXEL_MEAN),
        "std": list(cfg.MODEL.PIXEL_STD),
        "color_order": cfg.INPUT.FORMAT,
        "side": cfg.INPUT.MIN_SIZE_TEST,
        "left_out": left_out,
    }


def set_schedule(cfg: CfgNode, *, batch: int, lr: float, max_iter: int, steps: list[int], warmup: int) -> None:
    """Write one schedule into the config: total batch, peak learning rate, and iterations."""
    solver = cfg.SOLVER
    solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER = batch, lr, max_iter
    solver.STEPS, solver.WARMUP_ITERS = tuple(step for step in steps if step < max_iter), warmup


def set_preprocess(cfg: CfgNode, preprocess: dict) -> None:
    """Feed images as the backbone was trained: `preprocess` as of a checkpoint."""
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = ([255 * value for value in preprocess[key]] for key in ("mean", "std"))
    cfg.INPUT.FORMAT = preprocess["color_order"]


def adapt(cfg: CfgNode, settings, data: CocoData, weights: Weights, processes: int, seed: int, work_dir: Path) -> None:
    """Point the config at the data, its classes and the backbone file, and make it this run's."""
    if cfg.SOLVER.IMS_PER_BATCH % processes:
        raise InputError(
            f"a batch of {cfg.SOLVER.IMS_PER_BATCH} images does not divide over {processes} processes: "
            "set SOLVER.IMS_PER_BATCH or --num-gpus"
        )
    set_data(cfg, data)
    cfg.MODEL.WEIGHTS, cfg.MODEL.TIMM.OPTIONS = str(weights.file), write_options(weights.options)
    if settings.DATA.WORKERS >= 0:
        cfg.DATALOADER.NUM_WORKERS = settings.DATA.WORKERS
    cfg.SOLVER.CHECKPOINT_PERIOD = settings.SOLVER.CHECKPOINT_PERIOD or cfg.SOLVER.CHECKPOINT_PERIOD
    cfg.SOLVER.AMP.ENABLED = settings.TRAIN.AMP
    cfg.SEED, cfg.OUTPUT_DIR = seed, str(work_dir)
    on_this_device(cfg, processes)
    check_workers(cfg, processes)
    BenchTrainer.log_period = settings.LOG_PERIOD


def on_this_device(cfg: CfgNode, processes: int) -> None:
    """Without GPUs: on the CPU, where torch's SyncBN refuses to run on several processes."""
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
        for section in (cfg.MODEL.RESNETS, cfg.MODEL.TIMM):
            if processes > 1:
                section.NORM = section.NORM.replace("SyncBN", "BN")


def check_workers(cfg: CfgNode, processes: int, here: int | None = None, key: str = "DATA.WORKERS") -> None:
    """Raise InputError where the shared memory is too small for the training images that workers have under way.

    Workers hand over single images; this process gathers them in a batch of wide and one of high ones while a third
    trains. here: as many of the processes are this machine's (default: as the launcher says).
    """
    image = 3 * max(cfg.INPUT.MIN_SIZE_TRAIN) * cfg.INPUT.MAX_SIZE_TRAIN
    check_shared_memory(
        cfg.DATALOADER.NUM_WORKERS, image, held=3 * (cfg.SOLVER.IMS_PER_BATCH // processes), processes=here, key=key
    )


def set_data(cfg: CfgNode, data: CocoData) -> None:
    """Train and test on `data`, with as many classes as it has."""
    cfg.DATASETS.TRAIN = (register("train", data.train),)
    cfg.DATASETS.TEST = (register("val", data.val),)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = len(data.classes)
    if any(isinstance(a.get("segmentation"), dict) and not a.get("iscrowd") for a in data.train.content["annotations"]):
        cfg.INPUT.MASK_FORMAT = "bitmask"  # run-length codes, which its polygon format refuses


class BenchTrainer(Trainer):
    """Only writes the detections: the result file's evaluation follows."""

    numbers = False


def train_and_test(cfg: CfgNode, stop: StopSignal) -> int:
    """Train (or go on) to the end and write the detections of the test set; returns the iterations done.

    Raises Stopped after saving when a signal asked for it, InputError if the loss is not finite.
    """
    if distributed.world_size() > 1:
        _local_group()
    with _logged(Path(cfg.OUTPUT_DIR)):
        seed_all_rng(cfg.SEED + comm.get_rank())
        BenchTrainer.signal = stop
        trainer = BenchTrainer(cfg)
        trainer.resume_or_load(resume=True)
        if trainer.start_iter == 0:
            prove_backbone(trainer.model, cfg)
        try:
            trainer.train()
        except FloatingPointError as error:
            raise InputError(diverged(error)) from None
        return trainer.max_iter


def diverged(error: FloatingPointError) -> str:
    """What to do about a loss that is not finite, in one line."""
    return f"{str(error).splitlines()[0]} Lower SOLVER.BASE_LR or lengthen SOLVER.WARMUP_ITERS"


@functools.cache  # once a process
def _local_group() -> None:
    """What detectron2's own launcher does in every process it starts, beside joining the group."""
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))


@contextlib.contextmanager
def _logged(folder: Path) -> Iterator[None]:
    """detectron2's log on the terminal, and this run's part of it in its own `log.txt`.

    Its `setup_logger` would add one more terminal for every folder: each trial's lines would appear once more.
    """
    logger = setup_logger(distributed_rank=comm.get_rank())  # remembered by detectron2: one terminal a process
    file = logging.FileHandler(folder / (f"log.txt.rank{comm.get_rank()}" if comm.get_rank() else "log.txt"))
    file.setFormatter(logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", "%m/%d %H:%M:%S"))
    logger.addHandler(file)
    try:
        yield
    finally:
        logger.removeHandler(file)
        file.close()


def prove_backbone(model: Any, cfg: CfgNode) -> int:
    """Compare every backbone tensor of a detector with the file it was loaded from."""
    model = model.module if hasattr(model, "module") else model
    prefixes = BACKBONES[MODELS[cfg.MODEL.BACKBONE.NAME]]
    built = {key: value for key, value in model.state_dict().items() if key.startswith(prefixes)}
    expected = read_file(cfg.MODEL.WEIGHTS)[0]["model"]
    count = prove(
        built, {key: value for key, value in expected.items() if key.startswith(prefixes)}, cfg.MODEL.WEIGHTS, new=ADDED
    )
    print(f"backbone proved: {count} tensors equal to {cfg.MODEL.WEIGHTS}")
    return count


def detections(work_dir: Path, mask: bool) -> dict[str, Path]:
    """The COCO-format result files that a test wrote, by kind."""
    file = work_dir / "inference" / "coco_instances_results.json"
    return {"box": file, **({"mask": file} if mask else {})}


def to_dict(cfg: CfgNode) -> dict:
    return yaml.safe_load(cfg.dump())
