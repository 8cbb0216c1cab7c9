"""k-nearest-neighbour classification of frozen features: `python -m benchmarks.knn --cfg FILE KEY VALUE...`.

Weighted vote by cosine, the validation images against the training images, every k in one pass (Wu et al., 2018); with
--loo the validation images against one another, leaving each out of its own bank (the published in-training measure).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from fvcore.common.config import CfgNode

from benchmarks.classification.features import Rows, cached_features, choices_for, find_entry
from benchmarks.classification.labelled import Labelled, describe, notes, open_splits
from benchmarks.classification.metrics import accuracy_metrics, as_ranked, detail, write_predictions
from benchmarks.classification.settings import FREE_KEYS, parse
from benchmarks.classification.settings import KNN as DEFAULTS
from benchmarks.classification.settings import knn as command_line
from benchmarks.classification.weights import Subject, check_frozen, freeze, identity, load_subject, state_hash
from pretrain.neighbours import QUERIES, load_rows, nearest, vote
from sslight.core import distributed
from sslight.core.config import to_dict
from sslight.core.distributed import gather_rows, my_batches
from sslight.core.errors import InputError, Stopped
from sslight.core.logs import Bar, RunLog
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
    return parse(command_line(), DEFAULTS, argv)


def ready(cfg: CfgNode, train: Labelled, val: Labelled, subject: Subject) -> list[int]:
    """The k that can be served. Raises InputError where settings, data and network do not go together."""
    choices_for(subject.backbone, [cfg.KNN.FEATURE])
    for split in (val,) if cfg.KNN.LEAVE_ONE_OUT else (val, train):
        find_entry(cfg, subject, split, cfg.KNN.FEATURE)
    return usable_ks(cfg, len(val) - 1 if cfg.KNN.LEAVE_ONE_OUT else len(train))


def run(cfg: CfgNode, departures: dict, device: torch.device) -> None:
    started = time.monotonic()
    train, val = open_splits(cfg)
    subject = load_subject(cfg)
    ks = ready(cfg, train, val, subject)
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
            f"{len(val)} val images of {len(train.classes)} classes"
        )
        queries = cached_features(cfg, subject, val, cfg.KNN.FEATURE, device, stop)
        bank = queries if cfg.KNN.LEAVE_ONE_OUT else cached_features(cfg, subject, train, cfg.KNN.FEATURE, device, stop)
        check_frozen(subject.backbone, before)
        ranked = classify(
            queries, bank, (val if cfg.KNN.LEAVE_ONE_OUT else train).labels, len(train.classes), ks, cfg, device, stop
        )
        if not distributed.is_main():
            return
        found = {k: accuracy_metrics([as_ranked(ranked[k])], val.labels) for k in ks}
        metrics = found[cfg.KNN.HEADLINE_K] | {f"top1_k{k}": found[k]["top1"] for k in ks}
        write_predictions(
            out_dir,
            {"": [as_ranked(ranked[cfg.KNN.HEADLINE_K])], **{f"_k{k}": [as_ranked(ranked[k])] for k in ks}},
            val.labels,
        )
        write_result(
            out_dir,
            benchmark="knn",
            protocol=cfg.PROTOCOL + (" --loo" if cfg.KNN.LEAVE_ONE_OUT else ""),
            checkpoint=subject.about,
            data=about_data,
            metrics=metrics,
            config=to_dict(cfg),
            per_seed=[{"seed": cfg.SEEDS[0], **{name: value["value"] for name, value in metrics.items()}}],
            seconds=time.monotonic() - started,
            departures=departures,
            headline=f"k = {cfg.KNN.HEADLINE_K}",
            **detail(as_ranked(ranked[cfg.KNN.HEADLINE_K]), val.labels, val.classes),
        )
        for k in ks:
            low, high = found[k]["top1"]["interval"]
            log(f"k {k}: top-1 {found[k]['top1']['value']:.2f}% [{low:.2f}, {high:.2f}]")


def usable_ks(cfg: CfgNode, available: int) -> list[int]:
    """The asked k that the bank can serve. Raises InputError if the headline's is not among them."""
    if any(not isinstance(k, int) or k < 1 for k in cfg.KNN.K):
        raise InputError(f"config key 'KNN.K' wants positive integers, not {cfg.KNN.K}")
    if not cfg.KNN.TEMPERATURE > 0:
        raise InputError(f"config key 'KNN.TEMPERATURE' wants a positive number, not {cfg.KNN.TEMPERATURE}")
    if cfg.KNN.HEADLINE_K not in cfg.KNN.K:
        raise InputError(f"config key 'KNN.HEADLINE_K' {cfg.KNN.HEADLINE_K} is not one of KNN.K {cfg.KNN.K}")
    if cfg.KNN.HEADLINE_K > available:
        raise InputError(f"KNN.HEADLINE_K is {cfg.KNN.HEADLINE_K}, but there are only {available} neighbours: lower it")
    return sorted({k for k in cfg.KNN.K if k <= available})


def classify(
    queries: Rows,
    bank: Rows,
    bank_labels: np.ndarray,
    classes: int,
    ks: Sequence[int],
    cfg: CfgNode,
    device: torch.device,
    stop: StopSignal,
) -> dict[int, torch.Tensor]:
    """Ranked classes of every query for every k, shared over the ranks by blocks of queries."""
    labels = torch.as_tensor(bank_labels, device=device)
    mine = my_batches(len(queries), QUERIES)
    rows = (
        load_rows(queries, int(mine[0]), int(mine[-1]) + 1, device)
        if len(mine)
        else torch.zeros(0, queries.shape[1], device=device)
    )
    exclude = torch.as_tensor(mine, device=device) if cfg.KNN.LEAVE_ONE_OUT else None
    bar = Bar(len(bank), "neighbours", "row")

    def on_block(done: int) -> None:
        bar.update(done)
        if stop.requested():  # every rank, also one without queries, passes over the same blocks of the bank
            raise Stopped("the features are kept; start the same command again to go on")

    similarity, index = nearest(rows, bank, max(ks), exclude=exclude, on_block=on_block)
    found = vote(similarity, labels[index], classes, ks, cfg.KNN.TEMPERATURE)
    bar.close()
    return {k: gather_rows(found[k]) for k in ks}


if __name__ == "__main__":
    run_command(main)
