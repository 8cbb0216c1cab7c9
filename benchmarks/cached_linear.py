"""The cached linear protocol: features of centre crops once, then logistic regression along a regularisation path."""

from __future__ import annotations

import numpy as np
import torch
from fvcore.common.config import CfgNode

from benchmarks.cache import Rows
from benchmarks.labelled import Labelled
from benchmarks.logistic import Problem, Standard, path, scores
from benchmarks.metrics import hits
from benchmarks.subsets import holdout
from pretrain.errors import Stopped
from pretrain.logs import Bar, RunLog
from pretrain.neighbours import rank_classes
from pretrain.rundir import StopSignal


class Stacked:
    """Two sets of rows of equal length, one after the other."""

    def __init__(self, first, second):
        self.pair, self.shape = (first, second), (2 * len(first), first.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(len(self))
        half = len(self) // 2
        return np.concatenate([self.pair[0][min(start, half):min(stop, half)],
                               self.pair[1][max(start - half, 0):max(stop - half, 0)]])


def needed(cfg: CfgNode, train: Labelled, val: Labelled) -> list[tuple[Labelled, bool]]:
    """The splits whose features are needed, and whether mirrored: train, perhaps train mirrored, val."""
    return [(train, False), *([(train, True)] if cfg.PROBE.FLIPS else []), (val, False)]


def fit_cached(cfg: CfgNode, rows: dict[str, list[Rows]], train: Labelled, val: Labelled, seed: int,
               device: torch.device, stop: StopSignal, log: RunLog) -> dict:
    """One seed: the feature choice and penalty that are best on a held-out part of train, refitted on all of it.

    rows: for every feature choice, the features of the `needed` splits.
    """
    fitted, held = holdout(train.labels, cfg.PROBE.HOLDOUT, seed)
    labels = np.concatenate([train.labels] * (1 + cfg.PROBE.FLIPS))
    fitted = np.concatenate([fitted, fitted + len(train)]) if cfg.PROBE.FLIPS else fitted
    found, weights = [], {}
    bar = Bar(len(rows) * len(cfg.PROBE.PENALTIES) * cfg.PROBE.STEPS, "logistic regression", "step")

    def on_step() -> None:
        bar.update()
        if stop.received:
            raise Stopped("the features are kept; start the same command again to go on")

    for choice in rows:
        data = Stacked(*rows[choice][:2]) if cfg.PROBE.FLIPS else rows[choice][0]
        problem = Problem(data, labels, len(train.classes), Standard.of(data, fitted), fitted, device)
        for penalty, weight, objective, taken in path(problem, cfg.PROBE.PENALTIES, data.shape[1],
                                                      steps=cfg.PROBE.STEPS, on_step=on_step):
            held_out = top1(rows[choice][0], weight, problem.standard, train.labels[held], held)
            found.append({"feature": choice, "penalty": penalty, "objective": objective, "steps": taken,
                          "holdout_top1": held_out})
            weights[choice, penalty] = weight
            log(f"seed {seed}, {choice}, penalty {penalty:g}: held-out top-1 {held_out:.2f}% ({taken} steps)")
    best = max(found, key=lambda row: row["holdout_top1"])  # of equals the first: the stronger penalty
    choice, penalty = best["feature"], best["penalty"]
    data = Stacked(*rows[choice][:2]) if cfg.PROBE.FLIPS else rows[choice][0]
    problem = Problem(data, labels, len(train.classes), Standard.of(data), None, device)
    weight, _, _ = problem.solve(penalty, weights[choice, penalty], steps=cfg.PROBE.STEPS, on_step=on_step)
    bar.close()
    ranked = torch.cat([rank_classes(part) for part in scores(rows[choice][-1], weight, problem.standard)])
    return {"ranked": ranked.cpu().numpy(), "head": choice, "penalty": penalty, "path": found}


def top1(rows, weight: torch.Tensor, standard: Standard, labels: np.ndarray, index: np.ndarray) -> float:
    """Top-1 of the rows in `index`, in percent."""
    ranked = torch.cat([rank_classes(part, 1) for part in scores(rows, weight, standard, index)])
    return 100 * float(hits(ranked.cpu().numpy(), labels, 1).mean())
