"""Linear classification of frozen features: `python -m benchmarks.linear --cfg FILE KEY VALUE...`.

Three protocols, by configuration. Trained on augmented images (the published one: best epoch on val and last epoch,
each named); many heads in one pass, chosen by a held-out part of train (PROBE.HOLDOUT > 0); and PROBE.CACHED: logistic
regression on centre-crop features extracted once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from fvcore.common.config import CfgNode

from benchmarks.classification.features import Features, cached_features, choices_for, find_entry, widths
from benchmarks.classification.heads import LinearProbes
from benchmarks.classification.labelled import Labelled, describe, holdout, notes, open_splits
from benchmarks.classification.logistic import fit_cached, needed
from benchmarks.classification.metrics import detail, hits, per_seed, seed_metrics, write_predictions
from benchmarks.classification.settings import FREE_KEYS, parse
from benchmarks.classification.settings import LINEAR as DEFAULTS
from benchmarks.classification.settings import linear as command_line
from benchmarks.classification.training import Job, Outcome, fit, predict
from benchmarks.classification.weights import Subject, check_frozen, freeze, identity, load_subject, state_hash
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
    """The configuration of a command line, and what in it departs from its protocol's file.

    Raises InputError for settings that contradict each other.
    """
    cfg, departures = parse(command_line(), DEFAULTS, argv)
    if not 0 <= cfg.PROBE.HOLDOUT < 1:
        raise InputError(f"config key 'PROBE.HOLDOUT' wants a number in [0, 1), not {cfg.PROBE.HOLDOUT}")
    if any(not rate > 0 for rate in [*cfg.PROBE.LEARNING_RATES, cfg.SOLVER.BASE_LR]):
        raise InputError("config keys 'PROBE.LEARNING_RATES' and 'SOLVER.BASE_LR' want positive numbers")
    if cfg.PROBE.CACHED and (not cfg.PROBE.PENALTIES or any(p < 0 for p in cfg.PROBE.PENALTIES)):
        raise InputError(f"config key 'PROBE.PENALTIES' wants non-negative numbers, not {cfg.PROBE.PENALTIES}")
    if cfg.PROBE.CACHED and not cfg.PROBE.HOLDOUT:
        raise InputError("PROBE.CACHED chooses the penalty on a held-out part of train: set PROBE.HOLDOUT, e.g. 0.1")
    return cfg, departures


def ready(cfg: CfgNode, train: Labelled, val: Labelled, subject: Subject) -> tuple[list[str], list[float]]:
    """Feature choices and learning rates of the heads. Raises InputError where settings and network do not agree."""
    choices = choices_for(subject.backbone, cfg.PROBE.FEATURES)
    rates = list(cfg.PROBE.LEARNING_RATES) or [cfg.SOLVER.BASE_LR]
    if len(choices) * len(rates) > 1 and not cfg.PROBE.HOLDOUT and not cfg.PROBE.CACHED:
        raise InputError("several heads need PROBE.HOLDOUT, the part of train that chooses among them, e.g. 0.1")
    for choice in choices if cfg.PROBE.CACHED else []:
        for split, flip in needed(cfg, train, val):
            find_entry(cfg, subject, split, choice, flip=flip)
    return choices, rates


def run(cfg: CfgNode, departures: dict, device: torch.device) -> None:
    started = time.monotonic()
    train, val = open_splits(cfg)
    subject = load_subject(cfg)
    choices, rates = ready(cfg, train, val, subject)
    about_data = describe(cfg, train, val)
    run_is = identity(cfg, subject, about_data["fingerprint"], distributed.world_size())
    freeze(subject.backbone)
    before = state_hash(subject.backbone)
    with open_run(run_is, FREE_KEYS) as out_dir, StopSignal(immediate=True) as stop:
        log = RunLog(out_dir)
        for line in notes(train, val):
            log(line)
        log(
            f"{cfg.PROTOCOL}: {subject.about['arch']} ({subject.about['family']}), {len(train)} train and "
            f"{len(val)} val images of {len(train.classes)} classes, features {', '.join(choices)}"
        )
        runs, rows = [], {}
        if cfg.PROBE.CACHED:
            rows = {
                choice: [
                    cached_features(cfg, subject, split, choice, device, stop, flip=flip)
                    for split, flip in needed(cfg, train, val)
                ]
                for choice in choices
            }
        for seed in cfg.SEEDS:
            if not cfg.PROBE.CACHED:
                runs.append(fit_probes(cfg, subject, train, val, choices, rates, seed, out_dir, device, stop, log))
            elif distributed.is_main():  # every rank has extracted its part; the rest is for one
                runs.append(fit_cached(cfg, rows, train, val, seed, device, stop, log))
        check_frozen(subject.backbone, before)
        if distributed.is_main():
            write(cfg, departures, out_dir, subject, about_data, val, runs, time.monotonic() - started, log)


def fit_probes(
    cfg: CfgNode,
    subject: Subject,
    train: Labelled,
    val: Labelled,
    choices: list[str],
    rates: list[float],
    seed: int,
    out_dir: Path,
    device: torch.device,
    stop: StopSignal,
    log: RunLog,
) -> dict:
    """Train all heads of one seed; returns the run's predictions by name, and what chose them."""
    features = Features(subject.backbone, choices).to(device)
    model = LinearProbes(
        features, widths(features, cfg.DATA.SIZE), len(train.classes), rates, seed, amp=cfg.FEATURES.AMP == "bf16"
    )
    fitted, held = np.arange(len(train)), None
    if cfg.PROBE.HOLDOUT:
        fitted, held = holdout(train.labels, cfg.PROBE.HOLDOUT, seed)
    job = Job(
        model, model.groups(cfg.SOLVER.BASE_LR), train, fitted, val, subject.preprocess, seed, out_dir / f"seed_{seed}"
    )
    outcome = fit(cfg, job, device, stop, log)
    if held is None:
        return single(outcome, model.names[0])
    ranked = predict(cfg, model, train, held, subject.preprocess, device)
    return chosen(
        outcome,
        {name: 100 * float(hits(value.numpy(), train.labels[held], 1).mean()) for name, value in ranked.items()},
        val,
    )


def single(outcome: Outcome, name: str) -> dict:
    """A run of one head: the last epoch, and the epoch that is best on val."""
    epoch, _, best = outcome.best[name]
    return {"ranked": outcome.last[name].numpy(), "best": best.numpy(), "best_epoch": epoch, "curve": outcome.curve}


def chosen(outcome: Outcome, held_out: dict[str, float], val: Labelled) -> dict:
    """A run of many heads: the one that is best on the held-out part of train, and every head's two accuracies."""
    winner = max(held_out, key=held_out.get)
    heads = {
        name: {"holdout_top1": held_out[name], "val_top1": 100 * float(hits(value.numpy(), val.labels, 1).mean())}
        for name, value in outcome.last.items()
    }
    return {"ranked": outcome.last[winner].numpy(), "head": winner, "heads": heads, "curve": outcome.curve}


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
    predictions = {"": [run["ranked"] for run in runs]}
    if "best" in runs[0]:
        predictions["_best_epoch"] = [run["best"] for run in runs]
    metrics = {}
    for suffix, ranked in predictions.items():
        metrics |= seed_metrics(ranked, val.labels, suffix)
    further = {
        key: [run[key] for run in runs]
        for key in ("best_epoch", "head", "heads", "curve", "penalty", "path")
        if key in runs[0]
    }
    headline = (
        "logistic regression on cached centre-crop features (not the published protocol)"
        if cfg.PROBE.CACHED
        else "last epoch, head chosen on a held-out part of train"
        if cfg.PROBE.HOLDOUT
        else "last epoch"
    )
    write_predictions(out_dir, predictions, val.labels)
    write_result(
        out_dir,
        benchmark="linear",
        protocol=cfg.PROTOCOL,
        checkpoint=subject.about,
        data=about_data,
        metrics=metrics,
        per_seed=per_seed(cfg.SEEDS, predictions, val.labels, **further),
        config=to_dict(cfg),
        seconds=seconds,
        departures=departures,
        headline=headline,
        **detail(runs[0]["ranked"], val.labels, val.classes),
    )
    for name, value in metrics.items():
        if name.startswith("top1"):
            low, high = value["interval"]
            what = headline if name == "top1" else "best epoch on val"
            log(f"top-1 {value['value']:.2f}% [{low:.2f}, {high:.2f}] ({what})")


if __name__ == "__main__":
    run_command(main)
