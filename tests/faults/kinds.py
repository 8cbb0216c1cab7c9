"""The four kinds of run that are killed: how each starts, what it must have kept at any instant, how it must end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pretrain.checkpoint import check_archive, load_backbone, load_checkpoint
from tests.benchmarks.coco_sets import write_set
from tests.benchmarks.coco_tiny import tiny_mmdet
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


def kinds(place: Path, names: Sequence[str] = ("pretrain", "linear", "semisup", "coco"), epochs: int = 8) -> list[Kind]:
    """The kinds with their data under `place`. Every step saves, so that any kill may fall into a write."""
    images = write_images(place / "images")
    often = {"SOLVER.TOTAL_EPOCHS": epochs, "TRAIN.SAVE_SECONDS": 0, "TRAIN.LOG_PERIOD": 1}
    made = {
        "pretrain": lambda: Kind("pretrain", lambda out: pretrain(images, out, **often), "global batch", pretrain_kept,
                                 pretrain_end),
        "linear": lambda: Kind("linear", lambda out: linear(images, out, **often), "train and", trained_kept,
                               trained_end),
        "semisup": lambda: Kind("semisup", lambda out: semisup(images, out, **often), "images labelled", trained_kept,
                                trained_end),
        "coco": lambda: coco(place, 3 * epochs),
    }
    return [made[name]() for name in names]


def pretrain_kept(out: Path) -> str:
    """The checkpoints are whole, and hold every step but the one under way."""
    for path in (out / "checkpoints").glob("*.pth"):
        step = load_checkpoint(path)["step"]
        if path.name == "last.pth" and step < steps_logged(out):
            return f"last.pth is of step {step}, {steps_logged(out)} were logged"
    if (out / "backbone.safetensors").exists():
        load_backbone(out / "backbone.safetensors")
    return ""


def steps_logged(folder: Path) -> int:
    """Steps that were certainly followed by a save: the next one was logged."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if '"loss"' in line), default=0)


def pretrain_end(out: Path) -> dict:
    last = load_checkpoint(out / "checkpoints" / "last.pth")
    return {**{key: last[key] for key in ("step", "epoch", "model", "optimizer", "rng")},
            "kept": sorted(path.name for path in (out / "checkpoints").iterdir()),
            "backbone": load_backbone(out / "backbone.safetensors")[0], "metrics": metrics(out)}


def metrics(folder: Path) -> list[dict]:
    return [{key: value for key, value in json.loads(line).items() if key not in TIMINGS}
            for line in (folder / "metrics.jsonl").read_text().splitlines()]


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
    return {"metrics": result["metrics"], "per_seed": result["per_seed"],
            **{path.parent.name: {**torch.load(path, weights_only=True), "log": metrics(path.parent)}
               for path in sorted(out.glob("seed_*/state.pth"))}}


def coco(place: Path, iterations: int) -> Kind:
    """Mask R-CNN in mmdet, saved every second iteration."""
    data = write_set(place / "coco data")
    config = tiny_mmdet("mask_rcnn_r18_fpn_1x", place, iterations)

    def command(out: Path) -> list[object]:
        return ["sslight.py", "bench", "coco", "--framework", "mmdet", "--task", "seg", "--config", config, "--weights",
                "random", "--arch", "resnet18", "DATA.PATH_TO_DATA_DIR", data, "OUTPUT_DIR", out,
                "SOLVER.CHECKPOINT_PERIOD", 2, "LOG_PERIOD", 1, "EVAL.BOOTSTRAP", 0, "DATA.WORKERS", 1]

    return Kind("coco", command, "Checkpoints will be saved", coco_kept, coco_end)


def coco_checkpoints(out: Path) -> list[Path]:
    return sorted(out.glob("iter_*.pth"), key=lambda path: int(path.stem[5:]))


def coco_kept(out: Path) -> str:
    """Every checkpoint is whole and the newest is of the last full interval of two iterations."""
    from benchmarks.coco_mmdet_parts import readable_checkpoints

    for path in coco_checkpoints(out):
        check_archive(path)
    if coco_checkpoints(out):
        with readable_checkpoints():
            saved = torch.load(coco_checkpoints(out)[-1], weights_only=True)
        if f"iter_{saved['meta']['iter']}.pth" != coco_checkpoints(out)[-1].name:
            return f"{coco_checkpoints(out)[-1]} says that it is of iteration {saved['meta']['iter']}"
    logged = max((json.loads(line).get("iter", 0) for path in out.glob("*/vis_data/scalars.json")
                  for line in path.read_text().split("\n")[:-1] if '"loss"' in line), default=0)
    newest = int(coco_checkpoints(out)[-1].stem[5:]) if coco_checkpoints(out) else 0
    return f"the newest checkpoint is of iteration {newest}, {logged} were logged" if newest < logged - 2 else ""


def coco_end(out: Path) -> dict:
    """Iteration, schedule and the optimizer's settings and parts; no weights, as mmdet saves no random states."""
    from benchmarks.coco_mmdet_parts import readable_checkpoints

    with readable_checkpoints():
        saved = torch.load(coco_checkpoints(out)[-1], weights_only=True)
    result = json.loads((out / "result.json").read_text())
    return {"iterations": result["iterations"], "iter": saved["meta"]["iter"], "schedule": saved["param_schedulers"],
            "groups": saved["optimizer"]["param_groups"], "metrics": sorted(result["metrics"]),
            "momentum": {key: sorted((name, tuple(value.shape)) for name, value in entry.items() if value is not None)
                         for key, entry in saved["optimizer"]["state"].items()},
            "finite": all(bool(value.isfinite().all()) for value in saved["state_dict"].values())}


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
