"""The methods by name."""

from __future__ import annotations

import torch

from pretrain.methods.base import Method, Progress
from pretrain.methods.dino import DINO
from pretrain.methods.moco import MoCo
from pretrain.methods.swav import SwAV
from pretrain.methods.view_sizes import check_view_sizes
from sslight.core.errors import InputError, nearest

METHODS = {"dino": DINO, "swav": SwAV, "moco": MoCo}

__all__ = ["METHODS", "Method", "Progress", "build_method"]


def build_method(cfg) -> Method:
    """The method that `cfg.METHOD` names, freshly initialised, on the CPU.

    Call it after the process group is joined: queue lengths depend on the number of processes. Raises InputError for
    an unknown method or backbone, and for views that it cannot be trained on.
    """
    if cfg.METHOD not in METHODS:
        raise InputError(f"unknown METHOD '{cfg.METHOD}'{nearest(cfg.METHOD, METHODS)}: use {', '.join(METHODS)}")
    method = METHODS[cfg.METHOD](cfg)
    sizes = {cfg.VIEWS.GLOBAL_SIZE, *[cfg.VIEWS.LOCAL_SIZE] * cfg.VIEWS.LOCAL_NUMBER}
    check_view_sizes(method.backbone, sizes, cfg.TRAIN.AMP == "bf16" and not torch.cuda.is_available())
    return method
