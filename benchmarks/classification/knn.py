"""k-nearest-neighbour classification of frozen features: `sslight bench knn --cfg FILE KEY VALUE...`.

Weighted vote by cosine, the validation images against the training images, every k in one pass (Wu et al., 2018); with
--loo the validation images against one another, leaving each out of its own bank (the published in-training measure).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fvcore.common.config import CfgNode

from benchmarks.classification.runner import Classification, Measured, Run
from benchmarks.classification.settings import defaults
from sslight.core.arguments import Parser
from sslight.core.errors import InputError, Stopped

if TYPE_CHECKING:
    import numpy as np
    import torch

    from benchmarks.classification.features import Rows
    from benchmarks.classification.labelled import Labelled
    from benchmarks.classification.weights import Subject
    from sslight.core.rundir import StopSignal


class KNN(Classification):
    """Weighted k-NN accuracy for every KNN.K."""

    name = "knn"
    description = "k-NN accuracy of frozen features"
    config = "knn.yaml"
    settings = defaults(
        {
            "KNN": {
                "K": [10, 20, 50, 100, 200],
                "HEADLINE_K": 20,  # whose accuracy is the result's top1: named beforehand, not the best on val
                "TEMPERATURE": 0.07,
                "LEAVE_ONE_OUT": False,  # val against val
                "FEATURE": "pooled",
            },
        }
    )

    def parser(self) -> Parser:
        parser = super().parser()
        parser.add_key_flag("--loo", "KNN.LEAVE_ONE_OUT", "leave-one-out on val, as published")
        return parser

    def validate(self, cfg: CfgNode) -> None:
        if any(not isinstance(k, int) or k < 1 for k in cfg.KNN.K):
            raise InputError(f"config key 'KNN.K' expects positive integers, not {cfg.KNN.K}")
        if not cfg.KNN.TEMPERATURE > 0:
            raise InputError(f"config key 'KNN.TEMPERATURE' expects a positive number, not {cfg.KNN.TEMPERATURE}")
        if cfg.KNN.HEADLINE_K not in cfg.KNN.K:
            raise InputError(f"config key 'KNN.HEADLINE_K' {cfg.KNN.HEADLINE_K} is not one of KNN.K {cfg.KNN.K}")

    def prepare(self, cfg: CfgNode, train: Labelled, val: Labelled, subject: Subject) -> list[int]:
        """The k that the bank can serve."""
        from benchmarks.classification.features import choices_for, find_entry

        choices_for(subject.backbone, [cfg.KNN.FEATURE])
        for split in (val,) if cfg.KNN.LEAVE_ONE_OUT else (val, train):
            find_entry(cfg, subject, split, cfg.KNN.FEATURE)
        available = len(val) - 1 if cfg.KNN.LEAVE_ONE_OUT else len(train)
        if cfg.KNN.HEADLINE_K > available:
            raise InputError(
                f"KNN.HEADLINE_K is {cfg.KNN.HEADLINE_K}, but there are only {available} neighbours: lower it"
            )
        return sorted({k for k in cfg.KNN.K if k <= available})

    def passes(self, cfg: CfgNode, train: int, val: int) -> float:
        return val if cfg.KNN.LEAVE_ONE_OUT else train + val

    def caches(self, cfg: CfgNode) -> bool:
        return True

    def runs(self, cfg: CfgNode) -> int:
        return 1

    def measure(self, run: Run) -> Measured | None:
        from benchmarks.classification.features import cached_features
        from benchmarks.classification.metrics import accuracy_metrics, as_ranked
        from sslight.core import distributed

        cfg, ks = run.cfg, run.prepared
        alone = cfg.KNN.LEAVE_ONE_OUT
        queries = cached_features(cfg, run.subject, run.val, cfg.KNN.FEATURE, run.device, run.stop)
        bank = queries if alone else cached_features(cfg, run.subject, run.train, cfg.KNN.FEATURE, run.device, run.stop)
        labels = (run.val if alone else run.train).labels
        votes = classify(queries, bank, labels, len(run.train.classes), ks, cfg, run.device, run.stop)
        if not distributed.is_main():
            return None
        ranked = {k: as_ranked(votes[k]) for k in ks}
        by_k = {k: accuracy_metrics([ranked[k]], run.val.labels) for k in ks}
        metrics = by_k[cfg.KNN.HEADLINE_K] | {f"top1_k{k}": by_k[k]["top1"] for k in ks}
        return Measured(
            {"": [ranked[cfg.KNN.HEADLINE_K]], **{f"_k{k}": [ranked[k]] for k in ks}},
            metrics,
            [{"seed": cfg.SEEDS[0], **{name: metric["value"] for name, metric in metrics.items()}}],
            f"k = {cfg.KNN.HEADLINE_K}",
            {f"top1_k{k}": f"k {k}" for k in ks},
            protocol=cfg.PROTOCOL + (" --loo" if alone else ""),
        )


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
    import torch

    from pretrain.neighbours import QUERIES, load_rows, nearest_neighbours, vote
    from sslight.core.distributed import gather_rows, my_batches
    from sslight.core.logs import Bar

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

    similarity, index = nearest_neighbours(rows, bank, max(ks), exclude=exclude, on_block=on_block)
    votes = vote(similarity, labels[index], classes, ks, cfg.KNN.TEMPERATURE)
    bar.close()
    return {k: gather_rows(votes[k]) for k in ks}


EVALUATION = KNN()
