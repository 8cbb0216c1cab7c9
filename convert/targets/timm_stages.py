"""A timm network as a detector's bottom-up part: which stages there are, and one forward pass that returns some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor

from pretrain.backbones import Backbone, build_backbone, stage_features
from sslight.core.errors import InputError

FINAL_CONV = -1  # index of the map after MobileNetV2's and EfficientNet's last 1x1 convolution


def build_stages(
    arch: str, indices: Sequence[int], norm: str = "BN", options: Mapping | None = None
) -> tuple[Backbone, list[tuple[int, int]]]:
    """A randomly initialised network and the (channels, stride) of the stages at `indices`.

    Stages count from 0, the highest resolution; FINAL_CONV takes the wide map that some networks pool. Parameters
    that no chosen stage depends on are frozen: they get no gradient, which distributed training refuses to wait for.
    `norm` is BN or SyncBN; `options` go to `build_backbone`. Raises InputError for a stage the network lacks or a
    network without a pyramid (ViT).
    """
    model = build_backbone(arch, **(options or {}))
    images = torch.zeros(1, 3, 64, 64)
    maps = list(stage_features(model.eval(), images))
    strides = [64 // feature.shape[-1] for feature in maps]
    if len(set(strides)) < len(strides):
        raise InputError(
            f"backbone '{arch}' has no feature pyramid (every stage has stride {strides[0]}): "
            "use the ViTDet recipe for plain ViTs"
        )
    for index in indices:
        if not FINAL_CONV <= index < len(maps) or index == FINAL_CONV and not hasattr(model, "conv_head"):
            raise InputError(f"backbone '{arch}' has no stage {index}; it has 0 to {len(maps) - 1}, strides {strides}")
    chosen = forward_stages(model, images, indices)
    shapes = [(feature.shape[1], 64 // feature.shape[-1]) for feature in chosen]
    torch.stack([feature.sum() for feature in chosen]).sum().backward()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    if norm == "SyncBN":
        model = convert_sync_batchnorm(model)
    elif norm != "BN":
        raise InputError(f"norm '{norm}' of a timm backbone is neither BN nor SyncBN")
    return model.train(), shapes


def forward_stages(model: Backbone, images: Tensor, indices: Sequence[int]) -> list[Tensor]:
    """The maps [N, C, h, w] of the stages at `indices`, in that order."""
    if FINAL_CONV in indices:
        maps = stage_features(model, images)
        return [model.bn2(model.conv_head(maps[-1])) if index == FINAL_CONV else maps[index] for index in indices]
    order = sorted(indices)
    maps = model.forward_intermediates(images, indices=order, intermediates_only=True, stop_early=True)
    return [maps[order.index(index)] for index in indices]
