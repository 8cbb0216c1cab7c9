"""mmdet as a `benchmarks.detection.framework.DetectionFramework`."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner

from benchmarks.detection.command import DEFAULTS
from benchmarks.detection.data import CocoData
from benchmarks.detection.framework import Recipe, Weights
from benchmarks.detection.in_mmdet.parts import StopHook, left_out, newest_checkpoint, readable_checkpoints
from pretrain.data.loading import check_shared_memory
from sslight.core import compat, devices, distributed
from sslight.core.config import find_config, flatten
from sslight.core.errors import InputError, nearest, nearest_file, nearest_key
from sslight.core.rundir import StopSignal

LARGEST = 1333 * 800  # pixels of a training image, where a config does not say it
ARCHITECTURES = {
    "MobileNetV2": lambda backbone: "mobilenetv2_100",
    "TimmBackbone": lambda backbone: backbone.arch,
    "ResNet": lambda backbone: f"resnet{backbone.depth}",
}
STATE_KEY = "state_dict"
PREPROCESS = ("model.data_preprocessor",)


def load_config(file: Path | str) -> Config:
    """An mmdet config. Raises InputError for a file that is none."""
    file = find_config(file)
    if file.suffix != ".py":  # mmengine would run the tags of a YAML file, which nobody expects to be a program
        raise InputError(f"{file} is not an mmdet config: they are Python files, NAME.py")
    if not file.is_file():
        raise InputError(f"mmdet config not found: {file}{nearest_file(file)}")
    try:
        return Config.fromfile(str(file))
    except (FileNotFoundError, SyntaxError, KeyError, OSError, TypeError) as error:
        raise InputError(f"cannot read mmdet config {file}: {error}") from None


def override(cfg: Config, options: Sequence[str]) -> None:
    """Set `key value` pairs by mmdet's own dotted keys. Raises InputError for unknown ones."""
    changes = {}
    for key, value in zip(options[::2], options[1::2], strict=True):
        if key.isupper():  # as ours are written, and none of mmdet's
            raise InputError(f"unknown config key '{key}'{nearest_key(key, dict(flatten(DEFAULTS)))}")
        _check_known(cfg, key)
        changes[key] = compat.parse_value(value)
    cfg.merge_from_dict(changes)


def _check_known(cfg: Config, key: str) -> None:
    node = compat.config_tree(cfg)
    path: list[str] = []
    for part in key.split("."):
        known = (
            list(node)
            if isinstance(node, dict)
            else [str(i) for i in range(len(node))]
            if isinstance(node, list | tuple)
            else []
        )
        if part not in known:
            raise InputError(
                f"unknown key '{key}' of {cfg.filename}{nearest(part, known)}: "
                f"{'.'.join(path) or 'the config'} has {', '.join(known[:12])}"
            )
        node = node[part] if isinstance(node, dict) else node[int(part)]
        path.append(part)


def recipe_of(cfg: Config) -> Recipe:
    """Raises InputError for a config that is not built like those of configs/mmdet."""
    try:
        return _recipe_of(cfg)
    except (AttributeError, KeyError, TypeError, StopIteration) as error:
        why = " ".join(str(error).split()) or "its test has no Resize"
        raise InputError(
            f"{cfg.filename} is no recipe for this: {why}; begin it with _base_ = configs/mmdet/_base_/"
            "recipe.py, which trains by iterations"
        ) from None


def _recipe_of(cfg: Config) -> Recipe:
    if "max_iters" not in cfg.train_cfg:
        raise TypeError("train_cfg has no max_iters")
    other = {s.type for s in cfg.param_scheduler} - {"LinearLR", "MultiStepLR"}
    if other:
        raise TypeError(f"its schedule {', '.join(sorted(other))} is neither LinearLR nor MultiStepLR")
    if not list(class_counts(cfg.model)):
        raise TypeError("no head of its model has num_classes")
    warmup = [s for s in cfg.param_scheduler if s.type == "LinearLR"]
    steps = [s for s in cfg.param_scheduler if s.type == "MultiStepLR"]
    backbone, preprocessor = cfg.model.backbone, cfg.model.data_preprocessor
    if backbone.type not in ARCHITECTURES:
        raise InputError(f"backbone type '{backbone.type}' of the mmdet config is none of {', '.join(ARCHITECTURES)}")
    return {
        "arch": ARCHITECTURES[backbone.type](backbone),
        "mask": has_masks(cfg),
        "batch": cfg.auto_scale_lr.base_batch_size,
        "lr": cfg.optim_wrapper.optimizer.lr,
        "max_iter": cfg.train_cfg.max_iters,
        "steps": list(steps[0].milestones) if steps else [],
        "warmup": warmup[0].end if warmup else 0,
        "norm": backbone.get("norm_cfg", {}).get("type", "BN"),
        "mean": list(preprocessor.mean),
        "std": list(preprocessor.std),
        "color_order": "RGB" if preprocessor.bgr_to_rgb else "BGR",
        "side": min(next(step.scale for step in cfg.test_dataloader.dataset.pipeline if step.type == "Resize")),
        "left_out": partial(
            left_out,
            masks=has_masks(cfg),
            min_size=(cfg.train_dataloader.dataset.get("filter_cfg") or {}).get("min_size", 0),
        ),
    }


def has_masks(cfg: Config) -> bool:
    """Whether a detector predicts masks: of one stage, whether they are evaluated."""
    roi_head, metrics = cfg.model.get("roi_head"), cfg.test_evaluator.metric
    return roi_head.get("mask_head") is not None if roi_head else "segm" in metrics


def class_counts(part: object) -> Iterator[dict]:
    """The heads of a model and their losses: whatever has `num_classes`."""
    if isinstance(part, list | tuple):
        for item in part:
            yield from class_counts(item)
    elif isinstance(part, dict):
        if "num_classes" in part:
            yield part
        for key, value in part.items():
            if key not in ("backbone", "neck", "rpn_head"):  # an RPN knows objects and background only
                yield from class_counts(value)


def set_schedule(cfg: Config, *, batch: int, lr: float, max_iter: int, steps: list[int], warmup: int) -> None:
    """Write one schedule into the config: total batch, peak learning rate, and iterations."""
    cfg.auto_scale_lr.base_batch_size = batch
    cfg.optim_wrapper.optimizer.lr = lr
    cfg.train_cfg.max_iters, cfg.train_cfg.val_interval = max_iter, max_iter + 1
    schedulers = [s for s in cfg.param_scheduler if s.type == "MultiStepLR"]
    for scheduler in schedulers:
        scheduler.end, scheduler.milestones = max_iter, list(steps)
    ramps = [s for s in cfg.param_scheduler if s.type == "LinearLR"]
    for ramp in ramps:
        ramp.end = warmup
    cfg.param_scheduler = ([*ramps] if warmup else []) + schedulers


def set_preprocess(cfg: Config, preprocess: dict) -> None:
    """Feed images as the backbone was trained: `preprocess` as of a checkpoint."""
    cfg.model.data_preprocessor.update(
        mean=[255 * value for value in preprocess["mean"]],
        std=[255 * value for value in preprocess["std"]],
        bgr_to_rgb=preprocess["color_order"] == "RGB",
    )


def adapt(cfg: Config, settings, data: CocoData, weights: Weights, processes: int, seed: int, work_dir: Path) -> None:
    """Point the config at the data, its classes and the backbone file, and make it this run's."""
    set_batch(cfg, processes)
    set_data(cfg, data, work_dir)
    set_backbone(cfg, weights)
    if settings.DATA.WORKERS >= 0:
        for loader in (cfg.train_dataloader, cfg.test_dataloader):
            loader.num_workers, loader.persistent_workers = settings.DATA.WORKERS, settings.DATA.WORKERS > 0
    cfg.default_hooks.checkpoint.interval = settings.SOLVER.CHECKPOINT_PERIOD or cfg.default_hooks.checkpoint.interval
    cfg.default_hooks.logger.interval = settings.LOG_PERIOD
    if settings.TRAIN.AMP:
        cfg.optim_wrapper.type = "AmpOptimWrapper"
    check_workers(cfg)
    cfg.randomness, cfg.work_dir, cfg.resume = dict(seed=seed), str(work_dir), True


def set_batch(cfg: Config, processes: int) -> None:
    """Share the recipe's total batch out over the processes, so that any number of them trains the same recipe."""
    if cfg.auto_scale_lr.base_batch_size % processes:
        raise InputError(
            f"a batch of {cfg.auto_scale_lr.base_batch_size} images does not divide over {processes} "
            "processes: set SOLVER.IMS_PER_BATCH or --num-gpus"
        )
    cfg.train_dataloader.batch_size = cfg.auto_scale_lr.base_batch_size // processes
    norm = cfg.model.backbone.get("norm_cfg")
    if processes > 1 and not torch.cuda.is_available() and norm:
        norm.type = norm.type.replace("SyncBN", "BN")  # torch's SyncBN refuses the CPU


def check_workers(cfg: Config, key: str = "DATA.WORKERS") -> None:
    """Raise InputError where the shared memory is too small for the training images that workers have under way."""
    loader = cfg.train_dataloader
    scales = [
        scale
        for step in loader.dataset.get("pipeline", ())
        for scale in (step.get("scales") or [step.get("scale")])
        if isinstance(scale, tuple | list)
    ]
    pixels = max((scale[0] * scale[1] for scale in scales), default=LARGEST)
    check_shared_memory(loader.num_workers, 3 * pixels * loader.batch_size, key=key)


def set_data(cfg: Config, data: CocoData, work_dir: Path) -> None:
    """Train and test on `data`, with as many classes as it has; detections go into `work_dir`."""
    for loader, split in ((cfg.train_dataloader, data.train), (cfg.test_dataloader, data.val)):
        loader.dataset.update(
            data_root="",
            ann_file=str(split.ready),
            data_prefix=dict(img=f"{split.images}/"),
            metainfo=dict(classes=data.classes),
        )
    cfg.test_evaluator.update(ann_file=str(data.val.ready), outfile_prefix=str(work_dir / "detections"))
    for part in class_counts(cfg.model):
        part["num_classes"] = len(data.classes)


def set_backbone(cfg: Config, weights: Weights) -> None:
    """Start from the backbone file, and prove before the first step that this happened."""
    cfg.model.backbone.init_cfg = dict(type="Pretrained", checkpoint=str(weights.file))
    if weights.options:  # of a TimmBackbone: mmdet's own networks are not built with any
        cfg.model.backbone.options = dict(weights.options)
    cfg.custom_hooks = [*cfg.get("custom_hooks", []), dict(type="BackboneProofHook", file=str(weights.file))]


def train_and_test(cfg: Config, stop: StopSignal) -> int:
    """Train (or go on) to the end and write the detections of the test set; returns the iterations done.

    Raises Stopped after saving when a signal asked for it.
    """
    return run(cfg, stop, "pytorch" if distributed.world_size() > 1 else "none").iter


def run(cfg: Config, stop: StopSignal, launcher: str = "none", test: bool = True) -> Runner:
    """One process's part of training and testing a finished config."""
    cfg = copy.deepcopy(cfg)
    cfg.launcher = launcher
    if not torch.cuda.is_available():
        cfg.env_cfg.dist_cfg = dict(backend="gloo")
        cfg.model_wrapper_cfg = dict(  # mmengine names a GPU to it, which it refuses for a model on the CPU
            type="MMDistributedDataParallel",
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get("find_unused_parameters", False),
        )
    cfg.experiment_name = f"{Path(cfg.work_dir).name}_{os.getpid()}_{id(cfg)}"  # mmengine keeps globals by this name
    cfg.visualizer = ConfigDict(
        type="DetLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")], name=cfg.experiment_name
    )
    if cfg.resume and not cfg.load_from:
        cfg.load_from = newest_checkpoint(cfg.work_dir)
    level, cfg.log_level = cfg.log_level, "WARNING"  # the config and every parameter's options lie in the work dir
    with readable_checkpoints(), _device_as_local_rank():
        runner = Runner.from_cfg(cfg)
        for part in (runner.logger, *runner.logger.handlers) if distributed.is_main() else ():
            part.setLevel(level)
        runner.logger.addFilter(lambda record: not record.getMessage().startswith("paramwise_options"))
        runner.register_hook(StopHook(stop))
        runner.train()
        if test:
            runner.test()
    return runner


@contextlib.contextmanager
def _device_as_local_rank() -> Iterator[None]:
    """mmengine takes LOCAL_RANK for the number of this process's GPU, also where it sees one alone."""
    before, device = os.environ.get("LOCAL_RANK"), devices.current()
    if before and device:
        os.environ["LOCAL_RANK"] = str(device[0])
    try:
        yield
    finally:
        if before:
            os.environ["LOCAL_RANK"] = before


def detections(work_dir: Path, mask: bool) -> dict[str, Path]:
    """The COCO-format result files that a test wrote, by kind."""
    files = {"box": work_dir / "detections.bbox.json"}
    if mask:
        files["mask"] = work_dir / "detections.segm.json"
    return files


def to_dict(cfg: Config) -> dict:
    return cfg.to_dict()
