"""Fine-tuning the whole network on few or all labels: `sslight bench semisup --cfg FILE KEY VALUE...`.

With LABELS.FRACTION 1 it is plain fine-tuning and its result's benchmark is `finetune`.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from fvcore.common.config import CfgNode

from benchmarks.classification.linear import over_fits, single
from benchmarks.classification.runner import Classification, Measured, Run, training_passes
from benchmarks.classification.settings import TRAINING, defaults
from sslight.core.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from benchmarks.classification.heads import Classifier
    from benchmarks.classification.labelled import Labelled
    from benchmarks.classification.weights import Subject

TRAINED = 3  # forward passes that an image of training counts as where the whole network trains


class SemiSupervised(Classification):
    """Top-1 of the fine-tuned network."""

    name = "semisup"
    description = "Fine-tune on few or all labels"
    config = "semi_1percent.yaml"
    frozen = False
    settings = defaults(
        TRAINING,
        {
            "LABELS": {
                "FRACTION": 0.1,  # of the training images; 1: fine-tuning on all
                "LIST": "standard",  # a file of names; standard: the field's ImageNet lists, elsewhere a balanced draw
            },
            "HEAD": {
                "KIND": "mlp",  # mlp (published) or linear
                "FROM_DINO": True,  # hidden layers from DINO's projection head where the checkpoint has it
                "HIDDEN_SIZE": 2048,  # without one
                "LAYERS": 3,
                "BN": True,
            },
        },
    )

    def validate(self, cfg: CfgNode) -> None:
        if cfg.HEAD.KIND not in ("mlp", "linear"):
            raise InputError(f"config key 'HEAD.KIND' expects mlp or linear, not {cfg.HEAD.KIND!r}")

    def prepare(self, cfg: CfgNode, train: Labelled, val: Labelled, subject: Subject) -> list[tuple[np.ndarray, str]]:
        """Per seed the labelled images and where they come from; too few for a step are refused."""
        from benchmarks.classification.labelled import labelled_subset
        from benchmarks.classification.training import global_batch

        subsets = [labelled_subset(cfg, train, seed) for seed in cfg.SEEDS]
        model, _ = build(cfg, subject, len(train.classes), cfg.SEEDS[0])
        global_batch(cfg, model, min(len(part) for part, _ in subsets))
        return subsets

    def passes(self, cfg: CfgNode, train: int, val: int) -> float:
        return training_passes(cfg, TRAINED * cfg.LABELS.FRACTION * train, val)

    def describe(self, prepared: list[tuple[np.ndarray, str]]) -> tuple[str, dict]:
        images, origin = prepared[0]
        return f", {len(images)} train images labelled ({origin})", {"labelled": len(images)}

    def measure(self, run: Run) -> Measured:
        from benchmarks.classification.labelled import write_list
        from sslight.core import distributed

        for seed, (indices, _) in zip(run.cfg.SEEDS, run.prepared, strict=True):
            if distributed.is_main():
                write_list(run.out_dir / f"seed_{seed}" / "labels.txt", run.train, indices)
        fits = [fine_tune(run, seed, *subset) for seed, subset in zip(run.cfg.SEEDS, run.prepared, strict=True)]
        measured = over_fits(run, fits, "last epoch", ("best_epoch", "labels", "images", "head", "curve"))
        whole = run.cfg.LABELS.FRACTION == 1 and fits[0]["labels"] == "all labels"
        return Measured(**vars(measured) | {"benchmark": "finetune" if whole else "semisup"})


def fine_tune(run: Run, seed: int, indices: np.ndarray, origin: str) -> dict:
    """Train backbone and head of one seed on the labelled images."""
    from benchmarks.classification.training import FitJob, fit

    model, head_origin = build(run.cfg, run.subject, len(run.train.classes), seed)
    factor = run.cfg.SOLVER.BACKBONE_LR_FACTOR
    groups = [{"module": model.backbone, "lr_factor": factor}, {"module": model.head, "lr_factor": 1.0}]
    folder = run.out_dir / f"seed_{seed}"
    job = FitJob(model, groups, run.train, indices, run.val, run.subject.preprocess, seed, folder)
    outcome = fit(run.cfg, job, run.device, run.stop, run.log)
    return single(outcome, "classifier") | {"labels": origin, "images": len(indices), "head": head_origin}


def build(cfg: CfgNode, subject: Subject, classes: int, seed: int) -> tuple[Classifier, str]:
    """Backbone and head of one run, and where the head's hidden layers came from."""
    from benchmarks.classification.heads import Classifier, linear_head, semi_head
    from sslight.core import distributed

    backbone = copy.deepcopy(subject.backbone).requires_grad_(True)
    width = backbone.feature_dim
    if cfg.HEAD.KIND == "linear":
        head: nn.Module = linear_head(width, classes, seed)
        origin = "linear"
    else:
        dino = subject.head if cfg.HEAD.FROM_DINO else None
        size, layers, norm = cfg.HEAD.HIDDEN_SIZE, cfg.HEAD.LAYERS, cfg.HEAD.BN
        head, origin = semi_head(width, classes, dino, hidden=size, layers=layers, norm=norm, seed=seed)
    return distributed.convert_sync_batchnorm(Classifier(backbone, head)), origin


EVALUATION = SemiSupervised()
