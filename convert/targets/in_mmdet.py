"""mmdet itself loads the file, through its own `Pretrained` init, which would only warn about what it cannot use."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convert.features import timm_features
from convert.reader import Checkpoint
from convert.support import kind_of
from convert.targets.mmcv_ops import install
from convert.targets.names import openmmlab_names
from pretrain.backbones import build_backbone


def backbone_config(arch: str, options: dict) -> dict:
    """mmdet's config of the backbone: every stage returned, nothing frozen, batch norm in train mode."""
    if not openmmlab_names(arch):
        stages = len(build_backbone(arch, **options).feature_info)
        return {"type": "TimmBackbone", "arch": arch, "out_indices": tuple(range(stages)), "options": options}
    shared = {"frozen_stages": -1, "norm_cfg": {"type": "BN"}, "norm_eval": False}
    if kind_of(arch) == "resnet":
        return {
            "type": "ResNet",
            "depth": int(arch.removeprefix("resnet")),
            "out_indices": (0, 1, 2, 3),
            "style": "pytorch",
            **shared,
        }
    return {"type": "MobileNetV2", "widen_factor": int(arch[-3:]) / 100, "out_indices": tuple(range(8)), **shared}


def build(arch: str, init: dict | None = None, options: dict | None = None) -> torch.nn.Module:
    """mmdet's backbone of an architecture; `options` are timm's, of a registered one."""
    install()
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules

    from convert.targets import mmdet_backbones  # noqa: F401 - registers TimmBackbone

    register_all_modules(init_default_scope=True)
    return MODELS.build({**backbone_config(arch, options or {}), "init_cfg": init})


@contextmanager
def quiet() -> Iterator[None]:
    """mmengine prints one line per initialised tensor."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def expected_list(checkpoint: Checkpoint, model: str | None) -> dict[str, tuple]:
    """Names and shapes of mmdet's backbone."""
    state = build(checkpoint.arch, options=checkpoint.options).state_dict()
    return {key: tuple(value.shape) for key, value in state.items()}


def features(
    path: Path, checkpoint: Checkpoint, images: Tensor, *, prefix: str = "", **_
) -> tuple[dict[str, Tensor], str]:
    """Stage features of mmdet's backbone after `init_weights()` from the file, and what was done."""
    from convert.verify import check_loaded

    init = {"type": "Pretrained", "checkpoint": str(path), **({"prefix": prefix} if prefix else {})}
    backbone: Any = build(checkpoint.arch, init, checkpoint.options)
    with quiet():
        backbone.init_weights()
    tensors = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    check_loaded(
        "mmdet's Pretrained init",
        backbone.state_dict(),
        {key.removeprefix(prefix): value for key, value in tensors.items()},
    )
    backbone.eval()  # mmdet's eval() returns None on some backbones: no chaining
    with torch.no_grad():
        maps = _forward(backbone, checkpoint.arch, images)
    return maps, f"loaded by mmdet's {type(backbone).__name__} through init_cfg=dict(type='Pretrained', ...)"


def _forward(backbone: Any, arch: str, images: Tensor) -> dict[str, Tensor]:
    if not openmmlab_names(arch):
        return timm_features(backbone.model, images)
    mobilenet = [*(f"blocks.{number}" for number in range(7)), "last conv"]
    names = [f"layer{number}" for number in range(1, 5)] if kind_of(arch) == "resnet" else mobilenet
    return dict(zip(names, backbone(images), strict=True))
