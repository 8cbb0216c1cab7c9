"""The kinds of run that are killed: how each starts, what it must have kept at any instant, how it must end."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sslight.core.checkpoint import check_archive, load_checkpoint, read_backbone_file
from tests.benchmarks.detection.coco_sets import write_set
from tests.benchmarks.detection.coco_tiny import tiny_detectron2, tiny_mmdet
from tests.faults.tiny_runs import linear, pretrain, semisup, write_images

TIMINGS = ("images_per_second", "data_wait")


@dataclass
class Kind:
    """One kind of run.

    command: output directory -> arguments of Python. working: a word of its log when the first step is near.
    kept: what is unreadable or lost in a directory that was left at any instant, "" if nothing.
    end: what a finished directory holds, to be equal to the uninterrupted run's.
    """

    name: str
    command: Callable[[Path], Sequence[object]]
    working: str
    kept: Callable[[Path], str]
    end: Callable[[Path], dict]


DETECTION = ("mmdet", *(["detectron2"] if all(map(importlib.util.find_spec, ("detectron2", "omegaconf"))) else []))
NAMES = ("pretrain", "linear", "semisup", *DETECTION)


def kinds(place: Path, names: Sequence[str] = NAMES, epochs: int = 8) -> list[Kind]:
    """The kinds with their data under `place`. Every step saves, so that any kill may fall into a write."""
    images = write_images(place / "images")
    often = {"SOLVER.TOTAL_EPOCHS": epochs, "TRAIN.SAVE_SECONDS": 0, "TRAIN.LOG_PERIOD": 1}
    made = {
        "pretrain": lambda: Kind(
            "pretrain", lambda out: pretrain(images, out, **often), "global batch", pretrain_kept, pretrain_end
        ),
        "linear": lambda: Kind(
            "linear", lambda out: linear(images, out, **often), "train and", trained_kept, trained_end
        ),
        "semisup": lambda: Kind(
            "semisup", lambda out: semisup(images, out, **often), "images labelled", trained_kept, trained_end
        ),
        "mmdet": lambda: Kind(
            "mmdet", coco("mmdet", tiny_mmdet, place, 3 * epochs), "Checkpoints will be saved", mmdet_kept, mmdet_end
        ),
        "detectron2": lambda: Kind(
            "detectron2",
            coco("detectron2", tiny_detectron2, place, 3 * epochs),
            "Starting training",
            detectron2_kept,
            detectron2_end,
        ),
    }
    return [made[name]() for name in names]


def pretrain_kept(out: Path) -> str:
    """The checkpoints are whole, and hold every step but the one under way."""
    for path in (out / "checkpoints").glob("*.pth"):
        step = load_checkpoint(path)["step"]
        if path.name == "last.pth" and step < steps_logged(out):
            return f"last.pth is of step {step}, {steps_logged(out)} were logged"
    if (out / "backbone.safetensors").exists():
        read_backbone_file(out / "backbone.safetensors")
    return ""


def steps_logged(folder: Path) -> int:
    """Steps that were certainly followed by a save: the next one was logged."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if '"loss"' in line), default=0)


def pretrain_end(out: Path) -> dict:
    last = load_checkpoint(out / "checkpoints" / "last.pth")
    return {
        **{key: last[key] for key in ("step", "epoch", "model", "optimizer", "rng")},
        "kept": sorted(path.name for path in (out / "checkpoints").iterdir()),
        "backbone": read_backbone_file(out / "backbone.safetensors")[0],
        "metrics": metrics(out),
    }


def metrics(folder: Path) -> list[dict]:
    return [
        {key: value for key, value in json.loads(line).items() if key not in TIMINGS}
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


def trained_kept(out: Path) -> str:
    for path in out.glob("seed_*/state.pth"):
        check_archive(path)
        state = torch.load(path, weights_only=True)
        steps = 6 * state["epoch"] + state["step"]
        if steps < steps_logged(path.parent):
            return f"{path.parent.name}/state.pth is of step {steps}, {steps_logged(path.parent)} were logged"
    if (out / "result.json").exists():
        json.loads((out / "result.json").read_text())
    return ""


def trained_end(out: Path) -> dict:
    result = json.loads((out / "result.json").read_text())
    return {
        "metrics": result["metrics"],
        "per_seed": result["per_seed"],
        **{
            path.parent.name: {**torch.load(path, weights_only=True), "log": metrics(path.parent)}
            for path in sorted(out.glob("seed_*/state.pth"))
        },
    }


def coco(framework: str, tiny: Callable[..., Path], place: Path, iterations: int) -> Callable[[Path], Sequence[object]]:
    """The command of a Mask R-CNN with a loader worker, saved every second iteration."""
    data = place / "coco data"
    if not data.exists():
        write_set(data)
    config = tiny("mask_rcnn_r18_fpn_1x", place, iterations)
    return lambda out: [
        "-m",
        "sslight",
        "bench",
        "coco",
        "--framework",
        framework,
        "--task",
        "seg",
        "--config",
        config,
        "--weights",
        "random",
        "--arch",
        "resnet18",
        "DATA.PATH_TO_DATA_DIR",
        data,
        "OUTPUT_DIR",
        out,
        "SOLVER.CHECKPOINT_PERIOD",
        2,
        "LOG_PERIOD",
        1,
        "EVAL.BOOTSTRAP",
        0,
        "DATA.WORKERS",
        1,
    ]


def mmdet_checkpoints(out: Path) -> list[Path]:
    return sorted(out.glob("iter_*.pth"), key=lambda path: int(path.stem[5:]))


def mmdet_kept(out: Path) -> str:
    """Every checkpoint is whole and the newest is of the last full interval of two iterations."""
    from benchmarks.detection.in_mmdet.parts import readable_checkpoints

    for path in mmdet_checkpoints(out):
        check_archive(path)
    if mmdet_checkpoints(out):
        with readable_checkpoints():
            saved = torch.load(mmdet_checkpoints(out)[-1], weights_only=True)
        if f"iter_{saved['meta']['iter']}.pth" != mmdet_checkpoints(out)[-1].name:
            return f"{mmdet_checkpoints(out)[-1]} says that it is of iteration {saved['meta']['iter']}"
    logged = max(
        (
            json.loads(line).get("iter", 0)
            for path in out.glob("*/vis_data/scalars.json")
            for line in path.read_text().split("\n")[:-1]
            if '"loss"' in line
        ),
        default=0,
    )
    newest = int(mmdet_checkpoints(out)[-1].stem[5:]) if mmdet_checkpoints(out) else 0
    return f"the newest checkpoint is of iteration {newest}, {logged} were logged" if newest < logged - 2 else ""


def mmdet_end(out: Path) -> dict:
    """Iteration, schedule and the optimizer's settings and parts; no weights, as mmdet saves no random states."""
    from benchmarks.detection.in_mmdet.parts import readable_checkpoints

    with readable_checkpoints():
        saved = torch.load(mmdet_checkpoints(out)[-1], weights_only=True)
    result = json.loads((out / "result.json").read_text())
    return {
        "iterations": result["iterations"],
        "iter": saved["meta"]["iter"],
        "schedule": saved["param_schedulers"],
        "groups": saved["optimizer"]["param_groups"],
        "metrics": sorted(result["metrics"]),
        "momentum": {
            key: sorted((name, tuple(value.shape)) for name, value in entry.items() if value is not None)
            for key, entry in saved["optimizer"]["state"].items()
        },
        "finite": all(bool(value.isfinite().all()) for value in saved["state_dict"].values()),
    }


def detectron2_kept(out: Path) -> str:
    """Every checkpoint is whole, `last_checkpoint` names one, and that is of the last full interval of two."""
    newest = -1
    for path in out.glob("model_*.pth"):
        check_archive(path)
        torch.load(path, weights_only=True)
    if (out / "last_checkpoint").exists():
        name = (out / "last_checkpoint").read_text()
        newest = torch.load(out / name, weights_only=True)["iteration"]
    log = (out / "metrics.json").read_text() if (out / "metrics.json").exists() else ""  # with lines cut off
    logged = max(map(int, re.findall(r'"iteration": (\d+), "loss', log)), default=-1)
    return f"the newest checkpoint is of iteration {newest}, {logged} were logged" if newest < logged - 2 else ""


def detectron2_end(out: Path) -> dict:
    """As in mmdet: no weights, as detectron2 saves no random states either."""
    saved = torch.load(out / "model_final.pth", weights_only=True)
    trainer, result = saved["trainer"], json.loads((out / "result.json").read_text())
    optimizer = trainer["_trainer"]["optimizer"]
    return {
        "iterations": result["iterations"],
        "iteration": saved["iteration"],
        "schedule": trainer["hooks"],
        "groups": optimizer["param_groups"],
        "metrics": sorted(result["metrics"]),
        "classes": saved["classes"],
        "momentum": {
            key: sorted((name, tuple(value.shape)) for name, value in entry.items() if value is not None)
            for key, entry in optimizer["state"].items()
        },
        "finite": all(bool(value.isfinite().all()) for value in saved["model"].values()),
    }


def difference(found: object, expected: object, where: str = "") -> str:
    """Where two results differ, "" if they are equal to the last bit."""
    if isinstance(expected, torch.Tensor):
        return "" if isinstance(found, torch.Tensor) and torch.equal(found, expected) else where
    if isinstance(expected, dict) and isinstance(found, dict):
        if found.keys() != expected.keys():
            return f"{where}: {sorted(map(str, found.keys() ^ expected.keys()))[:4]}"
        return next(filter(None, (difference(found[key], expected[key], f"{where}.{key}") for key in expected)), "")
    if isinstance(expected, list | tuple) and isinstance(found, list | tuple):
        if len(found) != len(expected):
            return f"{where}: {len(found)} instead of {len(expected)} entries"
        pairs = enumerate(zip(found, expected, strict=True))
        return next(filter(None, (difference(one, other, f"{where}[{i}]") for i, (one, other) in pairs)), "")
    return "" if found == expected or (found != found and expected != expected) else f"{where}: {found} != {expected}"
