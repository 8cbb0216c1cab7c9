"""mmpretrain 1.2: algorithms and classifiers by its registry, saved by mmengine's Runner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.convert.peers.case import Case, Made, check, every, fill, image


def pooled(network: nn.Module, images: Tensor) -> Tensor:
    """A CNN's pooled feature."""
    return network(images)[-1].mean((2, 3))


def class_token(network: nn.Module, images: Tensor) -> Tensor:
    """What a ViT returns by default."""
    return network(images)[-1]


def both_tokens(network: nn.Module, images: Tensor) -> Tensor:
    """The mean of the class and distillation token: mmpretrain's head averages what it makes of them, as DeiT does."""
    tokens = network(images)[-1]
    return (tokens[0] + tokens[1]) / 2


def mae_token(network: nn.Module, images: Tensor) -> Tensor:
    """The class token of all patches, none masked."""
    return network(images, mask=None)[-1][:, 0]


def mmpretrain(
    model: dict,
    feature: Callable[[nn.Module, Tensor], Tensor] = pooled,
    size: int = 64,
    ema: bool = False,
    plain: bool = False,
) -> Callable[[Path], Made]:
    """`Case.make`: the model of a config, saved by a Runner's checkpoint hook (`plain`: its state dict alone)."""

    def make(folder: Path) -> Made:
        from convert.targets.mmcv_ops import install

        install()
        from mmengine.config import Config
        from mmengine.runner import Runner
        from mmpretrain.utils import register_all_modules

        register_all_modules()
        parts: dict[str, Any] = {
            "model": model,
            "work_dir": str(folder),
            "train_cfg": {"by_epoch": True, "max_epochs": 1},
            "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9}},
            "param_scheduler": {"type": "MultiStepLR", "milestones": [1]},
            "custom_hooks": [{"type": "EMAHook"}] if ema else [],
            "default_scope": "mmpretrain",
            "log_level": "ERROR",
        }
        config = Config({**parts, "data_preprocessor": PREPROCESSOR})
        runner = Runner(
            **parts,
            data_preprocessor=PREPROCESSOR,
            train_dataloader=torch.utils.data.DataLoader([0]),
            experiment_name=f"{folder}",
            cfg=config,
        )
        network = runner.model
        fill(network)
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
        if ema:
            [hook] = [hook for hook in runner.hooks if type(hook).__name__ == "EMAHook"]
            hook.before_run(runner)
            network = hook.ema_model.module
            fill(hook.ema_model)
        runner.save_checkpoint(str(folder), "epoch_1.pth", save_optimizer=True, save_param_scheduler=True)
        path = folder / "epoch_1.pth"
        if plain:
            torch.save(network.backbone.state_dict(), path)
        images = image(size)
        with torch.no_grad():
            return Made(path, images, feature(network.backbone, images))

    return make


PREPROCESSOR = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "to_rgb": True}


def classifier(backbone: dict, **more: Any) -> dict:
    """A classifier's config, as mmpretrain's configs write it."""
    return {
        "type": "ImageClassifier",
        "backbone": backbone,
        "neck": {"type": "GlobalAveragePooling"},
        "head": {"type": "LinearClsHead", "num_classes": 10, "in_channels": 512},
        **more,
    }


def vit(**more: Any) -> dict:
    """A ViT's config for 32 px images."""
    return {"type": "VisionTransformer", "img_size": 32, "patch_size": 16, **more}


def vit_classifier(backbone: dict) -> dict:
    """A ViT's classifier."""
    head = {"type": "VisionTransformerClsHead", "num_classes": 10, "in_channels": 384}
    return classifier(backbone, neck=None, head=head)


R18 = {"type": "ResNet", "depth": 18, "norm_cfg": {"type": "BN"}, "zero_init_residual": False}
NECK = {
    "type": "NonLinearNeck",
    "in_channels": 512,
    "hid_channels": 64,
    "out_channels": 32,
    "num_layers": 2,
    "with_avg_pool": True,
}
PREDICTOR = {**NECK, "in_channels": 32, "with_avg_pool": False, "with_last_bn": False}
LATENT = {"type": "LatentPredictHead", "predictor": PREDICTOR, "loss": {"type": "CosineSimilarityLoss"}}
CONTRASTIVE = {"type": "ContrastiveHead", "loss": {"type": "CrossEntropyLoss"}, "temperature": 0.2}
V3_NECK = {**NECK, "in_channels": 384, "with_bias": False, "with_last_bn_affine": False, "with_avg_pool": False}
V3_HEAD = {
    "type": "MoCoV3Head",
    "predictor": {**PREDICTOR, "with_bias": False, "with_last_bn": True},
    "loss": {"type": "CrossEntropyLoss"},
}
MOCO_V2 = {
    "type": "MoCo",
    "queue_len": 64,
    "feat_dim": 32,
    "momentum": 0.001,
    "backbone": R18,
    "neck": {
        "type": "MoCoV2Neck",
        "in_channels": 512,
        "hid_channels": 64,
        "out_channels": 32,
        "with_avg_pool": True,
    },
    "head": CONTRASTIVE,
}
DENSECL = {
    "type": "DenseCL",
    "queue_len": 64,
    "feat_dim": 32,
    "backbone": R18,
    "neck": {"type": "DenseCLNeck", "in_channels": 512, "hid_channels": 64, "out_channels": 32, "num_grid": None},
    "head": CONTRASTIVE,
}
MOCO_V3 = {
    "type": "MoCoV3",
    "base_momentum": 0.01,
    "backbone": {
        "type": "MoCoV3ViT",
        "arch": "mocov3-small",
        "img_size": 32,
        "patch_size": 16,
        "stop_grad_conv1": True,
        "frozen_stages": 0,
        "norm_eval": False,
    },
    "neck": V3_NECK,
    "head": V3_HEAD,
}
SWAV = {
    "type": "SwAV",
    "backbone": R18,
    "neck": {"type": "SwAVNeck", "in_channels": 512, "hid_channels": 64, "out_channels": 32, "with_avg_pool": True},
    "head": {
        "type": "SwAVHead",
        "loss": {
            "type": "SwAVLoss",
            "feat_dim": 32,
            "epsilon": 0.05,
            "temperature": 0.1,
            "num_crops": [2, 6],
            "num_prototypes": 24,
        },
    },
}
BARLOW = {
    "type": "BarlowTwins",
    "backbone": R18,
    "neck": {**NECK, "num_layers": 3, "with_last_bn": False, "with_last_bn_affine": False},
    "head": {"type": "LatentCrossCorrelationHead", "in_channels": 32, "loss": {"type": "CrossCorrelationLoss"}},
}
MAE = {
    "type": "MAE",
    "backbone": {
        "type": "MAEViT",
        "arch": {"embed_dims": 192, "num_layers": 12, "num_heads": 12, "feedforward_channels": 768},
        "img_size": 32,
        "patch_size": 16,
        "mask_ratio": 0.75,
    },
    "neck": {
        "type": "MAEPretrainDecoder",
        "num_patches": 4,
        "patch_size": 16,
        "in_chans": 3,
        "embed_dim": 192,
        "decoder_embed_dim": 64,
        "decoder_depth": 1,
        "decoder_num_heads": 4,
    },
    "head": {
        "type": "MAEPretrainHead",
        "norm_pix": True,
        "patch_size": 16,
        "loss": {"type": "PixelReconstructionLoss", "criterion": "L2"},
    },
}

PROJECT: dict[str, Any] = {"project": "mmpretrain 1.2", "package": "mmpretrain"}
RESNET: dict[str, Any] = {**PROJECT, "arch": "resnet18"}
NOTHING: frozenset[str] = frozenset()

CASES = [
    Case(file="ResNet-18 classifier", make=mmpretrain(classifier(R18)), assumed=NOTHING, **RESNET),
    Case(file="ResNet-18 classifier, averaged (EMA)", make=mmpretrain(classifier(R18), ema=True), **RESNET),
    Case(file="ResNet-18 backbone, plain state dict", make=mmpretrain(classifier(R18), plain=True), **RESNET),
    Case(
        file="ResNet-50, caffe style",
        make=mmpretrain(classifier({**R18, "depth": 50, "style": "caffe"})),
        refused="style='caffe'",
        **PROJECT,
    ),
    Case(
        file="ResNetV1c-50",
        make=mmpretrain(classifier({"type": "ResNetV1c", "depth": 50, "style": "pytorch"})),
        arch="resnet50c",
        **PROJECT,
    ),
    Case(
        file="ResNetV1d-18",
        make=mmpretrain(classifier({"type": "ResNetV1d", "depth": 18, "style": "pytorch"})),
        arch="resnet18d",
        **PROJECT,
    ),
    Case(
        file="MobileNetV2 classifier",
        make=mmpretrain(classifier({"type": "MobileNetV2", "widen_factor": 1.0})),
        arch="mobilenetv2_100",
        assumed=NOTHING,
        **PROJECT,
    ),
    Case(
        file="MobileNetV2 of width 0.5, backbone alone",
        make=mmpretrain(classifier({"type": "MobileNetV2", "widen_factor": 0.5}), plain=True),
        arch="mobilenetv2_050",
        **PROJECT,
    ),
    Case(
        file="ViT, DeiT-Ti",
        make=mmpretrain(vit_classifier(vit(arch="deit-tiny")), class_token, 32),
        arch="vit_tiny_patch16_224",
        options={"img_size": 32},
        assumed=NOTHING,
        **PROJECT,
    ),
    Case(
        file="ViT, DeiT-S",
        make=mmpretrain(vit_classifier(vit(arch="deit-small")), class_token, 32),
        arch="vit_small_patch16_224",
        options={"img_size": 32},
        **PROJECT,
    ),
    Case(
        file="ViT-B",
        make=mmpretrain(vit_classifier(vit(arch="base")), class_token, 32),
        arch="vit_base_patch16_224",
        options={"img_size": 32},
        **PROJECT,
    ),
    Case(
        file="ViT, its arch as a dict with 12 heads",
        make=mmpretrain(vit_classifier(vit(arch=MAE["backbone"]["arch"])), class_token, 32),
        arch="vit_tiny_patch16_224",
        options={"img_size": 32, "num_heads": 12},
        assumed=NOTHING,
        **PROJECT,
    ),
    Case(
        file="distilled DeiT-Ti",
        make=mmpretrain(
            vit_classifier(
                {"type": "DistilledVisionTransformer", "arch": "deit-tiny", "img_size": 32, "patch_size": 16}
            ),
            both_tokens,
            32,
        ),
        arch="deit_tiny_distilled_patch16_224",
        options={"img_size": 32},
        **PROJECT,
    ),
    Case(
        file="DINOv2 ViT-S/14, headless",
        make=mmpretrain(
            classifier(
                vit(arch="dinov2-small", img_size=56, patch_size=14, layer_scale_init_value=1e-5), neck=None, head=None
            ),
            class_token,
            56,
        ),
        arch="vit_small_patch14_dinov2",
        options={"img_size": 56},
        assumed=NOTHING,
        **PROJECT,
    ),
    Case(file="MoCo v2, ResNet-18", make=mmpretrain(MOCO_V2), assumed=NOTHING, **RESNET),
    Case(
        file="MoCo v3, ViT-S with 12 heads",
        make=mmpretrain(MOCO_V3, class_token, 32),
        arch="vit_small_patch16_224",
        options={"img_size": 32, "num_heads": 12},
        assumed=NOTHING,
        **PROJECT,
    ),
    Case(
        file="MoCo v3, ResNet-18",
        make=mmpretrain({**MOCO_V3, "backbone": R18, "neck": {**V3_NECK, "in_channels": 512, "with_avg_pool": True}}),
        **RESNET,
    ),
    Case(
        file="SimCLR, ResNet-18",
        make=mmpretrain({"type": "SimCLR", "backbone": R18, "neck": NECK, "head": CONTRASTIVE}),
        **RESNET,
    ),
    Case(
        file="BYOL, ResNet-18",
        make=mmpretrain({"type": "BYOL", "base_momentum": 0.01, "backbone": R18, "neck": NECK, "head": LATENT}),
        **RESNET,
    ),
    Case(
        file="SimSiam, ResNet-18",
        make=mmpretrain({"type": "SimSiam", "backbone": R18, "neck": NECK, "head": LATENT}),
        **RESNET,
    ),
    Case(file="SwAV, ResNet-18", make=mmpretrain(SWAV), **RESNET),
    Case(file="Barlow Twins, ResNet-18", make=mmpretrain(BARLOW), **RESNET),
    Case(file="DenseCL, ResNet-18", make=mmpretrain(DENSECL), **RESNET),
    Case(
        file="MAE, ViT of width 192 with 12 heads",
        make=mmpretrain(MAE, mae_token, 32),
        arch="vit_tiny_patch16_224",
        options={"img_size": 32, "num_heads": 12},
        **PROJECT,
    ),
]


@every(CASES)
def test_reads_what_the_project_computes(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)
