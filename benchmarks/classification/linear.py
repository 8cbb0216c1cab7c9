"""Linear classification of frozen features: `sslight bench linear --cfg FILE KEY VALUE...`.

Three protocols, by configuration. Trained on augmented images (the published one: best epoch on val and last epoch,
each named); many heads in one pass, chosen by a held-out part of train (PROBE.HOLDOUT > 0); and PROBE.CACHED: logistic
regression on centre-crop features extracted once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fvcore.common.config import CfgNode

from benchmarks.classification.runner import Classification, Measured, Run, over_seeds, training_passes
from benchmarks.classification.settings import TRAINING, defaults
from sslight.core.errors import InputError

if TYPE_CHECKING:
    from benchmarks.classification.labelled import Labelled
    from benchmarks.classification.training import Outcome
    from benchmarks.classification.weights import Subject


class Linear(Classification):
    """Top-1 of linear probes of frozen features."""

    name = "linear"
    description = "Linear probe of frozen features"
    config = "linear_cnn.yaml"
    settings = defaults(
        TRAINING,
        {
            "PROBE": {
                "FEATURES": ["pooled"],  # see benchmarks/classification/features.py; auto: all that suit the network
                "LEARNING_RATES": [],  # one head each, per 256 images; empty: SOLVER.BASE_LR alone
                "HOLDOUT": 0.0,  # part of every class of train that chooses among several heads; 0: a single head
                "CACHED": False,  # logistic regression on features extracted once, instead of training on crops
                "FLIPS": False,  # cached: mirrored images too
                "PENALTIES": [1.0, 0.1, 0.01, 0.001, 1e-4, 1e-5],  # cached: the regularisation path
                "STEPS": 200,  # cached: at most so many L-BFGS steps for each penalty
            },
        },
    )

    def validate(self, cfg: CfgNode) -> None:
        if not 0 <= cfg.PROBE.HOLDOUT < 1:
            raise InputError(f"config key 'PROBE.HOLDOUT' expects a number in [0, 1), not {cfg.PROBE.HOLDOUT}")
        if any(not rate > 0 for rate in [*cfg.PROBE.LEARNING_RATES, cfg.SOLVER.BASE_LR]):
            raise InputError("config keys 'PROBE.LEARNING_RATES' and 'SOLVER.BASE_LR' want positive numbers")
        if cfg.PROBE.CACHED and (not cfg.PROBE.PENALTIES or any(p < 0 for p in cfg.PROBE.PENALTIES)):
            raise InputError(f"config key 'PROBE.PENALTIES' expects non-negative numbers, not {cfg.PROBE.PENALTIES}")
        if cfg.PROBE.CACHED and not cfg.PROBE.HOLDOUT:
            raise InputError("PROBE.CACHED chooses the penalty on a held-out part of train: set PROBE.HOLDOUT")

    def prepare(self, cfg: CfgNode, train: Labelled, val: Labelled, subject: Subject) -> tuple[list[str], list[float]]:
        """Feature choices and learning rates of the heads."""
        from benchmarks.classification.features import choices_for, find_entry
        from benchmarks.classification.logistic import needed

        choices = choices_for(subject.backbone, cfg.PROBE.FEATURES)
        rates = list(cfg.PROBE.LEARNING_RATES) or [cfg.SOLVER.BASE_LR]
        if len(choices) * len(rates) > 1 and not cfg.PROBE.HOLDOUT and not cfg.PROBE.CACHED:
            raise InputError("several heads need PROBE.HOLDOUT, the part of train that chooses among them, e.g. 0.1")
        for choice in choices if cfg.PROBE.CACHED else []:
            for split, flip in needed(cfg, train, val):
                find_entry(cfg, subject, split, choice, flip=flip)
        return choices, rates

    def passes(self, cfg: CfgNode, train: int, val: int) -> float:
        if cfg.PROBE.CACHED:
            return (1 + cfg.PROBE.FLIPS) * train + val
        return training_passes(cfg, train, val)

    def caches(self, cfg: CfgNode) -> bool:
        return cfg.PROBE.CACHED

    def describe(self, prepared: tuple[list[str], list[float]]) -> tuple[str, dict]:
        return f", features {', '.join(prepared[0])}", {}

    def measure(self, run: Run) -> Measured | None:
        cfg = run.cfg
        fits = cached_fits(run) if cfg.PROBE.CACHED else [fit_probes(run, seed) for seed in cfg.SEEDS]
        if not fits:  # cached: the main process alone fits
            return None
        headline = (
            "logistic regression on cached centre-crop features (not the published protocol)"
            if cfg.PROBE.CACHED
            else "last epoch, head chosen on a held-out part of train"
            if cfg.PROBE.HOLDOUT
            else "last epoch"
        )
        return over_fits(run, fits, headline, ("best_epoch", "head", "heads", "curve", "penalty", "path"))


def over_fits(run: Run, fits: list[dict], headline: str, further: tuple[str, ...]) -> Measured:
    """The result of one fit a seed. `top1` is the last epoch's; the best epoch on val stands beside it by its name."""
    predictions = {"": [fit["ranked"] for fit in fits]}
    shown = {"top1": headline}
    if "best" in fits[0]:
        predictions["_best_epoch"] = [fit["best"] for fit in fits]
        shown["top1_best_epoch"] = "best epoch on val"
    values = {key: [fit[key] for fit in fits] for key in further if key in fits[0]}
    metrics, rows = over_seeds(run.cfg.SEEDS, predictions, run.val.labels, **values)
    return Measured(predictions, metrics, rows, headline, shown)


def cached_fits(run: Run) -> list[dict]:
    """Logistic regressions on features extracted once, one a seed; every rank extracts its part, the main one fits."""
    from benchmarks.classification.features import cached_features
    from benchmarks.classification.logistic import fit_cached, needed
    from sslight.core import distributed

    cfg, (choices, _) = run.cfg, run.prepared
    rows = {
        choice: [
            cached_features(cfg, run.subject, split, choice, run.device, run.stop, flip=flip)
            for split, flip in needed(cfg, run.train, run.val)
        ]
        for choice in choices
    }
    if not distributed.is_main():
        return []
    return [fit_cached(cfg, rows, run.train, run.val, seed, run.device, run.stop, run.log) for seed in cfg.SEEDS]


def fit_probes(run: Run, seed: int) -> dict:
    """Train all heads of one seed; returns the fit's predictions by name, and what chose them."""
    import numpy as np

    from benchmarks.classification.features import Features, widths
    from benchmarks.classification.heads import LinearProbes
    from benchmarks.classification.labelled import holdout
    from benchmarks.classification.metrics import hits
    from benchmarks.classification.training import FitJob, fit, predict

    cfg, (choices, rates), train, val = run.cfg, run.prepared, run.train, run.val
    features = Features(run.subject.backbone, choices).to(run.device)
    amp = cfg.FEATURES.AMP == "bf16"
    model = LinearProbes(features, widths(features, cfg.DATA.SIZE), len(train.classes), rates, seed, amp=amp)
    fitted, held = np.arange(len(train)), None
    if cfg.PROBE.HOLDOUT:
        fitted, held = holdout(train.labels, cfg.PROBE.HOLDOUT, seed)
    preprocess = run.subject.preprocess
    groups = model.groups(cfg.SOLVER.BASE_LR)
    job = FitJob(model, groups, train, fitted, val, preprocess, seed, run.out_dir / f"seed_{seed}")
    outcome = fit(cfg, job, run.device, run.stop, run.log)
    if held is None:
        return single(outcome, model.names[0])
    ranked = predict(cfg, model, train, held, preprocess, run.device)
    held_out = {name: 100 * float(hits(value.numpy(), train.labels[held], 1).mean()) for name, value in ranked.items()}
    return chosen(outcome, held_out, val)


def single(outcome: Outcome, name: str) -> dict:
    """A fit of one head: the last epoch, and the epoch that is best on val."""
    epoch, _, best = outcome.best[name]
    return {"ranked": outcome.last[name].numpy(), "best": best.numpy(), "best_epoch": epoch, "curve": outcome.curve}


def chosen(outcome: Outcome, held_out: dict[str, float], val: Labelled) -> dict:
    """A fit of many heads: the one that is best on the held-out part of train, and every head's two accuracies."""
    from benchmarks.classification.metrics import hits

    winner = max(held_out, key=lambda name: held_out[name])
    heads = {
        name: {"holdout_top1": held_out[name], "val_top1": 100 * float(hits(value.numpy(), val.labels, 1).mean())}
        for name, value in outcome.last.items()
    }
    return {"ranked": outcome.last[winner].numpy(), "head": winner, "heads": heads, "curve": outcome.curve}


EVALUATION = Linear()
