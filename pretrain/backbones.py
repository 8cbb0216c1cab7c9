"""The only place where a backbone is defined: timm's networks, with the published initialisation.

Everything else (pre-training, conversion, evaluation, the detectors' registered backbones) asks here for a network,
its feature width and its stage outputs, and speaks timm's names.
"""

from __future__ import annotations

import warnings

import timm
import torch
from timm.models import is_model, list_models, model_entrypoint
from torch import Tensor, nn

from pretrain.errors import InputError, nearest

# The published system's names, and short ones for the ViT family.
ALIASES = {
    "mobilenet_v2": "mobilenetv2_100",
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
}

# Per timm module: what makes its networks start, and accept image sizes, as the published ones do.
_OPTIONS = {
    "resnet": {"zero_init_last": False},  # torchvision's initialisation keeps the residual branch's last norm at 1
    "vision_transformer": {"dynamic_img_size": True},  # multi-crop feeds several image sizes
    "deit": {"dynamic_img_size": True},
}


def canonical_arch(name: str) -> str:
    """timm's name for `name`, an alias or a timm name. Raises InputError naming the nearest known one."""
    arch = ALIASES.get(name, name)
    if not is_model(arch):
        known = [*ALIASES, *list_models()]
        raise InputError(f"unknown backbone '{name}'{nearest(name, known)}: use one of {', '.join(ALIASES)}, "
                         "resnet18, resnet34, resnet50, or any name of timm.list_models()")
    return arch


def build_backbone(arch: str, drop_path_rate: float = 0.0, **options) -> nn.Module:
    """A randomly initialised network without classifier: images [N, 3, H, W] -> pooled features [N, feature_dim].

    Parameters
    ----------
    arch: an alias or a timm name.
    drop_path_rate: stochastic depth, rising linearly over the blocks (ViT).
    options: further arguments of the timm network.

    Raises InputError for an unknown name or a network that has no pooled feature. The result carries
    `arch` (timm's name) and `feature_dim` (int).
    """
    arch = canonical_arch(arch)
    model = _create(arch, **(options | {"drop_path_rate": drop_path_rate} if drop_path_rate else options))
    if arch.startswith("mobilenetv2"):
        _init_mobilenet_v2(model)
    model.arch = arch
    model.feature_dim = _pooled_width(model, arch)
    return model


def backbone_shapes(arch: str, num_classes: int = 0, **options) -> dict[str, tuple[int, ...]]:
    """Every name and shape of a backbone's state dict, in its order; nothing is allocated or computed.

    `num_classes` above 0: of the network with its classifier. Raises InputError for an unknown name.
    """
    with torch.device("meta"):
        state = _create(canonical_arch(arch), num_classes, **options).state_dict()
    return {key: tuple(value.shape) for key, value in state.items()}


def _create(arch: str, num_classes: int = 0, **options) -> nn.Module:
    """timm's network, with the options that its module gets here."""
    module = model_entrypoint(arch).__module__.rsplit(".", 1)[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm announces renamed variants; the name in use is written to every file
        return timm.create_model(arch, pretrained=False, num_classes=num_classes,
                                 **{**_OPTIONS.get(module, {}), **options})


def _init_mobilenet_v2(model: nn.Module) -> None:
    """Kaiming fan-out convolutions and zero biases, as torchvision's; timm divides the fan-out by the groups."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@torch.no_grad()
def _pooled_width(model: nn.Module, arch: str) -> int:
    """Width of the pooled feature, seen on the network's own output."""
    state = torch.get_rng_state()  # looking must not change what is initialised next
    size = model.default_cfg.get("input_size", (3, 224, 224))
    try:
        feature = model.eval()(torch.zeros(1, *size))
    finally:
        model.train()
        torch.set_rng_state(state)
    if not isinstance(feature, Tensor) or feature.ndim != 2:
        shape = list(feature.shape) if isinstance(feature, Tensor) else type(feature).__name__
        raise InputError(f"backbone '{arch}' has no pooled feature (its output is {shape}, not [N, width]): "
                         "choose a network with global pooling")
    return feature.shape[1]


def stage_features(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Feature maps of every stage, [N, C, h, w], from high to low resolution (ViT: of every block, before the norm)."""
    return model.forward_intermediates(images, intermediates_only=True)
