"""timm itself loads the file: `create_model(arch, num_classes=0, checkpoint_path=...)`, strictly."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from convert.features import timm_features
from convert.reader import Checkpoint


def features(path: Path, checkpoint: Checkpoint, images: Tensor, **_) -> tuple[dict[str, Tensor], str]:
    """Stage features of timm's network built from the file, and what was done."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = timm.create_model(checkpoint.arch, num_classes=0, checkpoint_path=str(path), **checkpoint.options)
    model.arch = checkpoint.arch
    return timm_features(model, images), "loaded by timm.create_model, strictly"
