"""The source network in the source's own naming, where torchvision defines it: independent of every renaming table."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn

from convert.features import outputs_of, timm_features
from convert.reader import Checkpoint, network_of

# Index in torchvision's `features` after which timm's stage of that position ends.
_MOBILENET_ENDS = (1, 3, 6, 10, 13, 16, 17)
_LIKE_TORCHVISION = {"torchvision/timm ResNet", "ResNet's children in a Sequential", "torchvision MobileNetV2",
                     "MobileNetV2's features in a Sequential", "torchvision MobileNetV2's children in a Sequential",
                     "torchvision ViT"}
TORCHVISION = "the source network (torchvision's)"
TIMM = "timm's reading of the file (not the project's own network)"


def source_features(checkpoint: Checkpoint, images: Tensor) -> tuple[dict[str, Tensor], str]:
    """Stage features of the source network, and what computed them, in words.

    A checkpoint in torchvision's naming runs in torchvision's network, loaded strictly without any table; the result is
    also what timm's network must give. Others are computed by timm's network, which is what the file was read as: that
    shows that the target agrees, not that the reading is right.
    """
    if checkpoint.layout in _LIKE_TORCHVISION and checkpoint.arch not in ("resnet152",) and not checkpoint.options:
        return _torchvision_features(checkpoint, images), TORCHVISION
    return timm_features(network_of(checkpoint), images), TIMM


@torch.no_grad()
def _torchvision_features(checkpoint: Checkpoint, images: Tensor) -> dict[str, Tensor]:
    body = dict(checkpoint.body)
    model, stages, final = torchvision_network(checkpoint.arch)
    holder = model
    if checkpoint.layout == "ResNet's children in a Sequential":
        holder = nn.Sequential(*list(model.children())[:-1])
    elif checkpoint.layout == "MobileNetV2's features in a Sequential":
        holder = model.features
    elif checkpoint.layout == "torchvision MobileNetV2's children in a Sequential":
        holder = nn.Sequential(model.features)
    counters = {key: value for key, value in holder.state_dict().items() if key.endswith("num_batches_tracked")}
    holder.load_state_dict({**counters, **body}, strict=True)
    with outputs_of(stages) as seen:
        pooled = model.eval()(images)
    return {**{name: final(name, feature) for name, feature in seen.items()}, "pooled": pooled}


def torchvision_network(arch: str) -> tuple[nn.Module, dict[str, nn.Module], Callable[[str, Tensor], Tensor]]:
    """torchvision's network without classifier, its stages by timm's stage names, and how to view a stage's output."""
    def same(_: str, feature: Tensor) -> Tensor:
        return feature

    if arch.startswith("resnet"):
        model = torchvision.models.get_model(arch, weights=None)
        model.fc = nn.Identity()
        return model, {f"layer{n}": getattr(model, f"layer{n}") for n in range(1, 5)}, same
    if arch.startswith("mobilenetv2"):
        model = torchvision.models.mobilenet_v2(weights=None, width_mult=int(arch[-3:]) / 100)
        model.classifier = nn.Identity()
        stages = {f"blocks.{n}": model.features[end] for n, end in enumerate(_MOBILENET_ENDS)}
        return model, {**stages, "last conv": model.features[18]}, same
    model = torchvision.models.vit_b_16(weights=None)
    model.heads = nn.Identity()
    blocks = model.encoder.layers

    def patches(_: str, feature: Tensor) -> Tensor:
        side = int((feature.shape[1] - 1) ** 0.5)
        return feature[:, 1:].transpose(1, 2).reshape(len(feature), -1, side, side)
    return model, {f"block{n}": blocks[n] for n in range(len(blocks))}, patches
