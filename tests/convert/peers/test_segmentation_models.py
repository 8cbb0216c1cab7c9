"""segmentation_models_pytorch: the encoder of a segmentation network, saved as a state dict or by save_pretrained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.convert.peers.case import Case, Made, check, every, fill, image


def pooled(encoder: Any, images: Tensor) -> Tensor:
    """The pooled last feature map."""
    return encoder(images)[-1].mean((2, 3))


def with_head(encoder: Any, images: Tensor) -> Tensor:
    """An EfficientNet's feature: the encoder holds the last convolution, but leaves it out for the decoder."""
    return encoder._swish(encoder._bn1(encoder._conv_head(encoder(images)[-1]))).mean((2, 3))


def segmentation(
    encoder: str, feature: Callable[[Any, Tensor], Tensor] = pooled, lightning: bool = False, alone: bool = False
) -> Callable[[Path], Made]:
    """`Case.make`: a Unet's state dict; `lightning`: as a LightningModule with `self.model` has it."""

    def make(folder: Path) -> Made:
        import segmentation_models_pytorch as smp

        network = fill(smp.Unet(encoder, encoder_weights=None, decoder_channels=(16, 16, 8, 8, 8)))
        path = folder / "unet.pth"
        state = (network.encoder if alone else network).state_dict()
        torch.save(
            {"state_dict": {f"model.{key}": value for key, value in state.items()}} if lightning else state, path
        )
        images = image(64)
        with torch.no_grad():
            return Made(path, images, feature(network.encoder, images))

    return make


PROJECT: dict[str, Any] = {"project": "segmentation_models_pytorch 0.6", "package": "segmentation_models_pytorch"}

CASES = [
    Case(file="Unet with resnet18", make=segmentation("resnet18"), arch="resnet18", **PROJECT),
    Case(
        file="Unet with resnet18, Lightning", make=segmentation("resnet18", lightning=True), arch="resnet18", **PROJECT
    ),
    Case(file="the encoder resnet18 alone", make=segmentation("resnet18", alone=True), arch="resnet18", **PROJECT),
    Case(file="Unet with resnet50", make=segmentation("resnet50"), arch="resnet50", **PROJECT),
    Case(file="Unet with mobilenet_v2", make=segmentation("mobilenet_v2"), arch="mobilenetv2_100", **PROJECT),
    Case(
        file="Unet with efficientnet-b0",
        make=segmentation("efficientnet-b0", with_head),
        arch="tf_efficientnet_b0",
        **PROJECT,
    ),
    Case(file="Unet with tu-resnet18 (timm's)", make=segmentation("tu-resnet18"), arch="resnet18", **PROJECT),
    Case(
        file="Unet with tu-mobilenetv3_small_100 (timm's, without its last convolution)",
        make=segmentation("tu-mobilenetv3_small_100"),
        refused="conv_head",
        **PROJECT,
    ),
    Case(file="Unet with mit_b0", make=segmentation("mit_b0"), refused="no backbone in it", **PROJECT),
]


@every(CASES)
def test_reads_what_the_project_computes(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)
