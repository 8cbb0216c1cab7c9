"""Fine-tuning the whole network on few or all labels: `python -m benchmarks.semisup --cfg FILE KEY VALUE...`.

With LABELS.FRACTION 1 it is plain fine-tuning and its result's benchmark is `finetune`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import nn

from benchmarks.classification.heads import Classifier, linear_head, semi_head
from benchmarks.classification.labelled import Labelled, describe, labelled_subset, notes, open_splits, write_list
from benchmarks.classification.linear import single
from benchmarks.classification.metrics import detail, per_seed, seed_metrics, write_predictions
from benchmarks.classification.settings import FREE_KEYS, parse
from benchmarks.classification.settings import SEMISUP as DEFAULTS
from benchmarks.classification.settings import semisup as command_line
from benchmarks.classification.training import Job, fit, global_batch
from benchmarks.classification.weights import Subject, identity, load_subject
from sslight.core import distributed
from sslight.core.config import to_dict
from sslight.core.errors import InputError
from sslight.core.logs import RunLog
from sslight.core.processes import run_command
from sslight.core.result import write_result
from sslight.core.rundir import StopSignal, open_run


def main(argv: Sequence[str] | None = None) -> int:
    cfg, departures = configure(argv)
    device = distributed.start(cfg.DEVICE)
    try:
        run(cfg, departures, device)
    finally:
        distributed.stop()
    return 0


def configure(argv: Sequence[str] | None = None) -> tuple[CfgNode, dict]:
    """The configuration of a command line, and what in it departs from its protocol's file."""
    cfg, departures = parse(command_line(), DEFAULTS, argv)
    if cfg.HEAD.KIND not in ("mlp", "linear"):
        raise InputError(f"config key 'HEAD.KIND' wants mlp or linear, not {cfg.HEAD.KIND!r}")
    return cfg, departures


def ready(cfg: CfgNode, train: Labelled, val: Labelled, subject: Subject) -> list[tuple[np.ndarray, str]]:
    """Per seed the labelled images and where they come from.

    Raises InputError where no such list can be made, or it is too short for a step.
    """
    subsets = [labelled_subset(cfg, train, seed) for seed in cfg.SEEDS]
    global_batch(cfg, build(cfg, subject, len(train.classes), cfg.SEEDS[0])[0], min(len(part) for part, _ in subsets))
    return subsets


def run(cfg: CfgNode, departures: dict, device: torch.device) -> None:
    started = time.monotonic()
    train, val = open_splits(cfg)
    subject = load_subject(cfg)
    subsets = ready(cfg, train, val, subject)
    about_data = describe(cfg, train, val)
    about_data["counts"]["labelled"] = len(subsets[0][0])
    run_is = identity(cfg, subject, about_data["fingerprint"], distributed.world_size())
    with open_run(run_is, FREE_KEYS) as out_dir, StopSignal(immediate=True) as stop:
        log = RunLog(out_dir)
        for line in notes(train, val):
            log(line)
        log(
            f"{cfg.PROTOCOL}: {subject.about['arch']} ({subject.about['family']}), {len(subsets[0][0])} of "
            f"{len(train)} train images labelled ({subsets[0][1]}), {len(val)} val images"
        )
        for seed, (indices, _) in zip(cfg.SEEDS, subsets, strict=True):
            if distributed.is_main():
                write_list(out_dir / f"seed_{seed}" / "labels.txt", train, indices)
        runs = []
        for seed, (indices, origin) in zip(cfg.SEEDS, subsets, strict=True):
            model, head_origin = build(cfg, subject, len(train.classes), seed)
            factor = cfg.SOLVER.BACKBONE_LR_FACTOR
            groups = [{"module": model.backbone, "lr_factor": factor}, {"module": model.head, "lr_factor": 1.0}]
            job = Job(model, groups, train, indices, val, subject.preprocess, seed, out_dir / f"seed_{seed}")
            runs.append(
                single(fit(cfg, job, device, stop, log), "classifier")
                | {"labels": origin, "images": len(indices), "head": head_origin}
            )
        if distributed.is_main():
            write(cfg, departures, out_dir, subject, about_data, val, runs, time.monotonic() - started, log)


def build(cfg: CfgNode, subject: Subject, classes: int, seed: int) -> tuple[nn.Module, str]:
    """Backbone and head of one run, and where the head's hidden layers came from."""
    backbone = copy.deepcopy(subject.backbone).requires_grad_(True)
    width = backbone.feature_dim
    if cfg.HEAD.KIND == "linear":
        head, origin = linear_head(width, classes, seed), "linear"
    else:
        head, origin = semi_head(
            width,
            classes,
            subject.head if cfg.HEAD.FROM_DINO else None,
            hidden=cfg.HEAD.HIDDEN_SIZE,
            layers=cfg.HEAD.LAYERS,
            norm=cfg.HEAD.BN,
            seed=seed,
        )
    return distributed.convert_sync_batchnorm(Classifier(backbone, head)), origin


def write(
    cfg: CfgNode,
    departures: dict,
    out_dir: Path,
    subject: Subject,
    about_data: dict,
    val: Labelled,
    runs: list[dict],
    seconds: float,
    log: RunLog,
) -> None:
    """`result.json` of all seeds. `top1` is the last epoch's; the best epoch on val stands beside it by its name."""
    predictions = {"": [run["ranked"] for run in runs], "_best_epoch": [run["best"] for run in runs]}
    metrics = {}
    for suffix, ranked in predictions.items():
        metrics |= seed_metrics(ranked, val.labels, suffix)
    further = {key: [run[key] for run in runs] for key in ("best_epoch", "labels", "images", "head", "curve")}
    write_predictions(out_dir, predictions, val.labels)
    write_result(
        out_dir,
        benchmark="finetune" if cfg.LABELS.FRACTION == 1 and runs[0]["labels"] == "all labels" else "semisup",
        protocol=cfg.PROTOCOL,
        checkpoint=subject.about,
        data=about_data,
        metrics=metrics,
        per_seed=per_seed(cfg.SEEDS, predictions, val.labels, **further),
        config=to_dict(cfg),
        seconds=seconds,
        departures=departures,
        headline="last epoch",
        **detail(runs[0]["ranked"], val.labels, val.classes),
    )
    for name, value in metrics.items():
        if name.startswith("top1"):
            low, high = value["interval"]
            what = "last epoch" if name == "top1" else "best epoch on val"
            log(f"top-1 {value['value']:.2f}% [{low:.2f}, {high:.2f}] ({what})")


if __name__ == "__main__":
    run_command(main)
