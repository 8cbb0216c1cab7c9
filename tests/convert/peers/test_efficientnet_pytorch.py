"""efficientnet_pytorch: EfficientNet with TensorFlow's padding, and the Lite networks in the same naming."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.convert.peers.case import Case, Made, check, every, fill, image


def _network(name: str) -> nn.Module:
    from efficientnet_pytorch import EfficientNet

    return fill(EfficientNet.from_name(name))


def saved(name: str, prefix: str = "") -> Callable[[Path], Made]:
    """`Case.make`: the state dict of a network, below a prefix, and its pooled feature."""

    def make(folder: Path) -> Made:
        network: Any = _network(name)
        path = folder / f"{name}.pth"
        torch.save({prefix + key: value for key, value in network.state_dict().items()}, path)
        images = image(network._global_params.image_size)  # its padding is computed for this size
        with torch.no_grad():
            return Made(path, images, network.extract_features(images).mean((2, 3)))

    return make


PROJECT: dict[str, Any] = {"project": "efficientnet_pytorch 0.7", "package": "efficientnet_pytorch"}

CASES = [
    Case(file="EfficientNet-B0", make=saved("efficientnet-b0"), arch="tf_efficientnet_b0", **PROJECT),
    Case(
        file="EfficientNet-B0 of DataParallel",
        make=saved("efficientnet-b0", "module."),
        arch="tf_efficientnet_b0",
        **PROJECT,
    ),
    Case(file="EfficientNet-B1", make=saved("efficientnet-b1"), arch="tf_efficientnet_b1", **PROJECT),
    Case(file="EfficientNet-B2", make=saved("efficientnet-b2"), arch="tf_efficientnet_b2", **PROJECT),
]


@every(CASES)
def test_reads_what_the_project_computes(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)
