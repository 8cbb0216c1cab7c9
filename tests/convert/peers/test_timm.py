"""timm: its own savers, and safetensors of many networks that must be told by their tensors alone."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.convert.peers.case import Case, Made, check, every, fill, image


def network_of(name: str, **options: Any) -> Any:
    """timm's network with a classifier, filled."""
    import timm

    return fill(timm.create_model(name, num_classes=10, **options))


def features_of(network: Any, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images, and what the network computes for them without its classifier."""
    network.reset_classifier(0)
    images = image(size)
    with torch.no_grad():
        return images, network.eval()(images)


def safetensors(name: str, size: int = 64, prefix: str = "", **options: Any) -> Callable[[Path], Made]:
    """`Case.make`: the network's state dict in a safetensors file without a header."""

    def make(folder: Path) -> Made:
        from safetensors.torch import save_file

        network = network_of(name, **options)
        path = folder / "model.safetensors"
        save_file({prefix + key: value.clone() for key, value in network.state_dict().items()}, path)
        return Made(path, *features_of(network, size))

    return make


def saver(name: str, size: int = 64, averaged: bool = False) -> Callable[[Path], Made]:
    """`Case.make`: what timm's training script keeps by CheckpointSaver, with ModelEmaV3 if `averaged`."""

    def make(folder: Path) -> Made:
        from timm.utils import CheckpointSaver, ModelEmaV3

        network = network_of(name)
        ema = ModelEmaV3(network) if averaged else None
        if ema is not None:
            fill(ema)
        keep = CheckpointSaver(
            network,
            torch.optim.SGD(network.parameters(), 0.1),
            args=argparse.Namespace(model=name, model_kwargs={}),
            model_ema=ema,
            checkpoint_dir=str(folder),
            recovery_dir=str(folder),
        )
        keep.save_checkpoint(3, metric=71.5)
        return Made(folder / "last.pth.tar", *features_of(network if ema is None else ema.module, size))

    return make


def hub_folder(name: str, size: int = 64, both: bool = False, **options: Any) -> Callable[[Path], Made]:
    """`Case.make`: the folder that timm's save_for_hf writes before it uploads it."""

    def make(folder: Path) -> Made:
        from timm.models import save_for_hf

        network = network_of(name, **options)
        save_for_hf(
            network, str(folder / "hub"), model_args=options or None, safe_serialization="both" if both else True
        )
        return Made(folder / "hub", *features_of(network, size))

    return make


TIMM: dict[str, Any] = {"project": "timm 1.0", "package": "timm"}

ALONE = {
    "resnet10t": 64,
    "resnet18d": 64,
    "mobilenetv3_small_050": 64,
    "mobilenetv4_conv_small_050": 64,
    "repvit_m0_9": 64,
    "repghostnet_050": 64,
    "ghostnet_100": 64,
    "edgenext_xx_small": 64,
    "fastvit_t8": 64,
    "convnext_atto": 64,
    "convnextv2_atto": 64,
    "efficientvit_b0": 64,
    "efficientvit_m0": 224,
    "mobileone_s0": 64,
    "mobilevit_xxs": 64,
    "regnety_002": 64,
    "tiny_vit_5m_224": 224,
    "hgnetv2_b0": 64,
    "starnet_s1": 64,
    "lcnet_035": 64,
    "semnasnet_075": 64,
    "fasternet_t0": 64,
    "efficientformerv2_s0": 224,
    "swiftformer_xs": 224,
    "vit_small_patch16_dinov3": 64,
    "densenet121": 64,
}

CASES = [
    *(
        Case(file=f"{name}, safetensors alone", make=safetensors(name, size), arch=name, **TIMM)
        for name, size in ALONE.items()
    ),
    Case(
        file="efficientnet_lite0, safetensors alone: two networks have these tensors",
        make=safetensors("efficientnet_lite0"),
        refused="say which it is with --arch",
        **TIMM,
    ),
    Case(
        file="efficientnet_lite0, safetensors alone, named",
        make=safetensors("efficientnet_lite0"),
        arch="efficientnet_lite0",
        ask={"arch": "efficientnet_lite0"},
        **TIMM,
    ),
    Case(
        file="vit_tiny_patch16_224 at 96 px, safetensors alone",
        make=safetensors("vit_tiny_patch16_224", 96, img_size=96),
        arch="vit_tiny_patch16_224",
        options={"img_size": 96},
        assumed=frozenset({"num_heads", "preprocess"}),
        **TIMM,
    ),
    Case(
        file="efficientnet_lite0, CheckpointSaver",
        make=saver("efficientnet_lite0"),
        arch="efficientnet_lite0",
        **TIMM,
    ),
    Case(
        file="tf_efficientnet_lite0, CheckpointSaver",
        make=saver("tf_efficientnet_lite0"),
        arch="tf_efficientnet_lite0",
        **TIMM,
    ),
    Case(file="mobilenetv2_100, CheckpointSaver", make=saver("mobilenetv2_100"), arch="mobilenetv2_100", **TIMM),
    Case(
        file="resnet18, CheckpointSaver with ModelEmaV3, the averaged one asked for",
        make=saver("resnet18", averaged=True),
        arch="resnet18",
        ask={"network": "ema"},
        **TIMM,
    ),
    Case(
        file="efficientnet_lite0, folder of save_for_hf",
        make=hub_folder("efficientnet_lite0"),
        arch="efficientnet_lite0",
        **TIMM,
    ),
    Case(
        file="vit_tiny_patch16_224, folder of save_for_hf with both formats",
        make=hub_folder("vit_tiny_patch16_224", 224, both=True),
        arch="vit_tiny_patch16_224",
        **TIMM,
    ),
    Case(
        file="vit_tiny_patch16_224 built with 12 heads, folder of save_for_hf",
        make=hub_folder("vit_tiny_patch16_224", 224, num_heads=12),
        arch="vit_tiny_patch16_224",
        options={"num_heads": 12},
        **TIMM,
    ),
    Case(
        file="resnet18 in a module of Lightning's (`model.`), safetensors",
        make=safetensors("resnet18", prefix="model."),
        arch="resnet18",
        **TIMM,
    ),
]


@every(CASES)
def test_reads_what_the_project_computes(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)
