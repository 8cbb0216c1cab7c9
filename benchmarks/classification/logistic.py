"""Multinomial logistic regression on features in memory or on disk, by L-BFGS along a path of regularisations.

The objective is that of scikit-learn's LogisticRegression divided by C n: mean cross-entropy + penalty / 2 * |W|^2, the
bias free, so penalty = 1 / (C n). Features are standardised by the training rows' mean and deviation first: a change of
variables that L-BFGS needs and that the penalty is meant in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from benchmarks.classification.features import Rows
from benchmarks.classification.labelled import Labelled, holdout
from benchmarks.classification.metrics import hits
from pretrain.neighbours import rank_classes
from sslight.core.errors import Stopped
from sslight.core.logs import Bar, RunLog
from sslight.core.rundir import StopSignal

BLOCK = 16384  # rows per evaluation step
HISTORY = 10  # pairs that L-BFGS keeps


@dataclass
class Standard:
    """Column means and deviations [D]."""

    mean: Tensor
    std: Tensor

    @staticmethod
    def of(rows, index: np.ndarray | None = None) -> Standard:
        """Of the rows (of those in `index`), in double precision, read block by block."""
        total = square = torch.zeros((), dtype=torch.float64)
        count = 0
        for part, _ in blocks(rows, None, index):
            part = part.double()
            total, square, count = total + part.sum(0), square + part.square().sum(0), count + len(part)
        mean = total / count
        std = (square / count - mean.square()).clamp_min(0).sqrt()
        return Standard(mean.float(), torch.where(std > 1e-12, std, torch.ones_like(std)).float())

    def __call__(self, rows: Tensor) -> Tensor:
        return (rows - self.mean.to(rows.device)) / self.std.to(rows.device)


def blocks(rows, labels: np.ndarray | None, index: np.ndarray | None = None):
    """Pairs (float32 rows [b, D], labels [b] or None) in order; `index` are ascending row numbers."""
    for start in range(0, len(rows), BLOCK):
        stop = min(start + BLOCK, len(rows))
        part = rows[start:stop]
        part = torch.from_numpy(np.array(part)) if isinstance(part, np.ndarray) else part
        chosen = slice(None) if index is None else index[(index >= start) & (index < stop)] - start
        picked = part[chosen]
        if len(picked):
            yield picked.float(), None if labels is None else torch.from_numpy(np.asarray(labels[start:stop][chosen]))


class Problem:
    """Loss and gradient of a linear classifier [C, D + 1] (the bias last) over the given rows."""

    def __init__(
        self,
        rows,
        labels: np.ndarray,
        classes: int,
        standard: Standard,
        index: np.ndarray | None = None,
        device: torch.device | str = "cpu",
    ):
        self.rows, self.labels, self.classes, self.index, self.device = rows, labels, classes, index, device
        self.standard = standard
        self.count = len(rows) if index is None else len(index)

    def value(self, weight: Tensor, penalty: float) -> tuple[float, Tensor]:
        """Objective and its gradient [C, D + 1]."""
        loss, gradient = 0.0, torch.zeros_like(weight)
        for x, y in blocks(self.rows, self.labels, self.index):
            x, y = self.standard(x.to(self.device)), y.to(self.device)
            log_p = (x @ weight[:, :-1].T + weight[:, -1]).log_softmax(1)
            loss -= float(log_p.gather(1, y[:, None]).double().sum())
            p = log_p.exp_()
            p[torch.arange(len(y), device=p.device), y] -= 1
            gradient[:, :-1] += p.T @ x
            gradient[:, -1] += p.sum(0)
        gradient /= self.count
        gradient[:, :-1] += penalty * weight[:, :-1]
        return loss / self.count + 0.5 * penalty * float(weight[:, :-1].double().square().sum()), gradient

    def solve(
        self,
        penalty: float,
        start: Tensor,
        *,
        steps: int,
        tolerance: float = 1e-5,
        on_step: Callable[[], None] | None = None,
    ) -> tuple[Tensor, float, int]:
        """Minimiser [C, D + 1], its objective, and the number of L-BFGS steps taken from `start`.

        Stops when the largest gradient entry falls below `tolerance`, or after `steps`.
        """
        weight = start.clone().requires_grad_(True)
        solver = torch.optim.LBFGS(
            [weight],
            max_iter=1,
            max_eval=25,
            history_size=HISTORY,
            tolerance_grad=tolerance,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            loss, weight.grad = self.value(weight.detach(), penalty)
            return torch.tensor(loss, dtype=torch.float64)

        taken, last = 0, float("inf")
        while taken < steps:
            before = weight.detach().clone()
            last = float(solver.step(closure))
            taken += 1
            if on_step:
                on_step()
            assert weight.grad is not None  # the closure has set it
            if weight.grad.abs().max() <= tolerance or torch.equal(before, weight):
                break
        last, _ = self.value(weight.detach(), penalty)
        return weight.detach(), last, taken


@torch.no_grad()
def scores(rows, weight: Tensor, standard: Standard, index: np.ndarray | None = None):
    """Logits [b, C] block by block, in order."""
    for x, _ in blocks(rows, None, index):
        x = standard(x.to(weight.device))
        yield x @ weight[:, :-1].T + weight[:, -1]


def path(
    problem: Problem, penalties: Sequence[float], width: int, *, steps: int, on_step: Callable[[], None] | None = None
):
    """(penalty, weight, objective, steps taken) from the strongest penalty to the weakest, each from the one before."""
    weight = torch.zeros(problem.classes, width + 1, device=problem.device)
    for penalty in sorted(penalties, reverse=True):
        weight, objective, taken = problem.solve(penalty, weight, steps=steps, on_step=on_step)
        yield penalty, weight, objective, taken


class Stacked:
    """Two sets of rows of equal length, one after the other."""

    def __init__(self, first, second):
        self.pair, self.shape = (first, second), (2 * len(first), first.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(len(self))
        half = len(self) // 2
        return np.concatenate(
            [self.pair[0][min(start, half) : min(stop, half)], self.pair[1][max(start - half, 0) : max(stop - half, 0)]]
        )


def needed(cfg: CfgNode, train: Labelled, val: Labelled) -> list[tuple[Labelled, bool]]:
    """The splits whose features are needed, and whether mirrored: train, perhaps train mirrored, val."""
    return [(train, False), *([(train, True)] if cfg.PROBE.FLIPS else []), (val, False)]


def fit_cached(
    cfg: CfgNode,
    rows: dict[str, list[Rows]],
    train: Labelled,
    val: Labelled,
    seed: int,
    device: torch.device,
    stop: StopSignal,
    log: RunLog,
) -> dict:
    """One seed: the feature choice and penalty that are best on a held-out part of train, refitted on all of it.

    rows: for every feature choice, the features of the `needed` splits.
    """
    fitted, held = holdout(train.labels, cfg.PROBE.HOLDOUT, seed)
    labels = np.concatenate([train.labels] * (1 + cfg.PROBE.FLIPS))
    fitted = np.concatenate([fitted, fitted + len(train)]) if cfg.PROBE.FLIPS else fitted
    fits, weights = [], {}
    bar = Bar(len(rows) * len(cfg.PROBE.PENALTIES) * cfg.PROBE.STEPS, "logistic regression", "step")

    def on_step() -> None:
        bar.update()
        if stop.received:
            raise Stopped("the features are kept; start the same command again to go on")

    for choice in rows:
        data = Stacked(*rows[choice][:2]) if cfg.PROBE.FLIPS else rows[choice][0]
        problem = Problem(data, labels, len(train.classes), Standard.of(data, fitted), fitted, device)
        for penalty, weight, objective, taken in path(
            problem, cfg.PROBE.PENALTIES, data.shape[1], steps=cfg.PROBE.STEPS, on_step=on_step
        ):
            held_out = top1(rows[choice][0], weight, problem.standard, train.labels[held], held)
            fits.append(
                {
                    "feature": choice,
                    "penalty": penalty,
                    "objective": objective,
                    "steps": taken,
                    "holdout_top1": held_out,
                }
            )
            weights[choice, penalty] = weight
            log(f"seed {seed}, {choice}, penalty {penalty:g}: held-out top-1 {held_out:.2f}% ({taken} steps)")
    best = max(fits, key=lambda row: row["holdout_top1"])  # of equals the first: the stronger penalty
    choice, penalty = best["feature"], best["penalty"]
    data = Stacked(*rows[choice][:2]) if cfg.PROBE.FLIPS else rows[choice][0]
    problem = Problem(data, labels, len(train.classes), Standard.of(data), None, device)
    weight, _, _ = problem.solve(penalty, weights[choice, penalty], steps=cfg.PROBE.STEPS, on_step=on_step)
    bar.close()
    ranked = torch.cat([rank_classes(part) for part in scores(rows[choice][-1], weight, problem.standard)])
    return {"ranked": ranked.cpu().numpy(), "head": choice, "penalty": penalty, "path": fits}


def top1(rows, weight: torch.Tensor, standard: Standard, labels: np.ndarray, index: np.ndarray) -> float:
    """Top-1 of the rows in `index`, in percent."""
    ranked = torch.cat([rank_classes(part, 1) for part in scores(rows, weight, standard, index)])
    return 100 * float(hits(ranked.cpu().numpy(), labels, 1).mean())
