"""torchvision: networks of its registry, saved as its reference scripts do or as plain state dicts."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.convert.peers.case import Case, Made, check, every, fill, image


def torchvision_file(
    name: str, size: int = 64, plain: bool = False, ema: bool = False, **options: Any
) -> Callable[[Path], Made]:
    """`Case.make`: a network of torchvision's and what its classifier is fed with, in its reference script's file."""

    def make(folder: Path) -> Made:
        import torchvision
        from torchvision.models.mobilenetv3 import MobileNetV3

        network = fill(torchvision.models.get_model(name, weights=None, **options))
        state = network.state_dict()
        content: dict[str, Any] = {
            "model": state,
            "optimizer": {},
            "lr_scheduler": {},
            "epoch": 89,
            "args": argparse.Namespace(model=name, lr=0.5, model_ema=ema),
        }
        if ema:
            averaged = torch.optim.swa_utils.AveragedModel(network)
            content["model_ema"] = fill(averaged).state_dict()
            network = averaged.module
        path = folder / "checkpoint.pth"
        torch.save(state if plain else content, path)
        # timm's last convolution is in torchvision's classifier
        taken = 2 if isinstance(network, MobileNetV3) else 0
        ends = [module for name, module in network.named_children() if name in ("fc", "classifier", "heads", "head")]
        linear = [module for module in ends[0].modules() if isinstance(module, torch.nn.Linear)]
        fed: list[torch.Tensor] = []
        linear[1 if taken else 0].register_forward_pre_hook(lambda module, inputs: fed.append(inputs[0]))
        images = image(size)
        with torch.no_grad():
            network(images)
        return Made(path, images, fed[0])

    return make


TORCHVISION: dict[str, Any] = {"project": "torchvision 0.26", "package": "torchvision"}


def _case(name: str, arch: str = "", file: str = "", refused: str = "", ask: dict | None = None, **more: Any) -> Case:
    return Case(
        file=file or f"{name}, reference script",
        make=torchvision_file(name, **more),
        arch=arch,
        refused=refused,
        ask=ask or {},
        **TORCHVISION,
    )


CASES = [
    _case("resnet18", "resnet18"),
    _case("resnet18", "resnet18", "resnet18, plain state dict", plain=True),
    _case(
        "resnet18", "resnet18", "resnet18 with model_ema: the averaged one asked for", ema=True, ask={"network": "ema"}
    ),
    _case("resnet50", "resnet50", plain=True),
    _case("resnext50_32x4d", "resnext50_32x4d", plain=True),
    _case("wide_resnet50_2", "wide_resnet50_2", plain=True),
    _case("mobilenet_v2", "mobilenetv2_100"),
    _case("mobilenet_v3_large", "mobilenetv3_large_100"),
    _case("mobilenet_v3_small", "mobilenetv3_small_100", plain=True),
    _case("efficientnet_b0", "efficientnet_b0"),
    _case("efficientnet_b1", "efficientnet_b1", plain=True),
    _case("convnext_tiny", "convnext_tiny", plain=True),
    _case("vit_b_32", "vit_base_patch32_224", plain=True, image_size=64),
    _case("densenet121", "densenet121", plain=True),
    _case("swin_t", refused="no backbone in it"),
    _case("regnet_y_400mf", refused="no backbone in it"),
    _case("shufflenet_v2_x0_5", refused="no backbone in it"),
]


@every(CASES)
def test_reads_what_the_project_computes(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)
