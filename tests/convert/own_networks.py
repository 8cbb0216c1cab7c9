"""Networks in their own code and naming, with random weights and batch norm statistics: what conversions are held to.

Namings come from the very containers that projects use (`nn.Sequential` of torchvision's children, ...), never from
this project's tables. A plain-Python ViT stands for DINO's and DINOv2's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu, layer_norm, linear, scaled_dot_product_attention


@dataclass
class Own:
    """`state` in the project's naming; `pooled` is its own forward: images [N, 3, H, W] -> [N, width]."""

    state: dict[str, Tensor]
    pooled: Callable[[Tensor], Tensor]
    arch: str
    size: int = 64


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with every parameter and statistic random, scaled so that features stay of order one."""
    torch.manual_seed(seed)
    for name, value in module.state_dict().items():
        with torch.no_grad():
            value.copy_(random_like(name, value.shape))
    module.eval()  # on some of mmdet's backbones this returns None
    return module


def random_like(name: str, shape: tuple[int, ...]) -> Tensor:
    """A random tensor that suits a state dict's entry of that name."""
    if name.endswith("num_batches_tracked"):
        return torch.randint(1, 1000, ())
    if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1) or name.endswith("gamma"):
        return torch.rand(shape) + 0.5
    if len(shape) < 2:
        return torch.randn(shape) * 0.1
    fan_in = max(1, torch.Size(shape)[1:].numel())
    return torch.randn(shape) * (1.5 / fan_in) ** 0.5 if len(shape) in (2, 4) else torch.randn(shape) * 0.1


def _torchvision(arch: str) -> tuple[nn.Module, str]:
    if arch.startswith("mobilenetv2"):
        module = torchvision.models.mobilenet_v2(width_mult=int(arch[-3:]) / 100)
        return module, "classifier"
    if arch == "vit_base_patch16_224":
        return torchvision.models.vit_b_16(), "heads"
    return torchvision.models.get_model(arch), "fc"


def torchvision_own(arch: str) -> Own:
    """torchvision's network and names, its classifier removed."""
    module, head = _torchvision(arch)
    setattr(module, head, nn.Identity())
    randomised(module)
    return Own(module.state_dict(), _no_grad(module), arch, 224 if arch.startswith("vit") else 64)


def children_own(arch: str) -> Own:
    """`nn.Sequential(*children[:-1])`, as lightly's examples and the original's ResNet build it."""
    module, _ = _torchvision(arch)
    stack = randomised(nn.Sequential(*list(module.children())[:-1]))
    pool = nn.Sequential(stack, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Own(stack.state_dict(), _no_grad(pool), arch)


def features_own(arch: str) -> Own:
    """MobileNetV2's `features` alone, as the original builds it."""
    module, _ = _torchvision(arch)
    stack = randomised(module.features)
    return Own(stack.state_dict(), _no_grad(nn.Sequential(stack, nn.AdaptiveAvgPool2d(1), nn.Flatten())), arch)


def timm_own(arch: str, size: int | None = None, **options) -> Own:
    """timm's network and names."""
    module = randomised(timm.create_model(arch, num_classes=0, **options))
    return Own(module.state_dict(), _no_grad(module), arch, size or (224 if "vit" in arch or "deit" in arch else 64))


def openmmlab_own(arch: str) -> Own:
    """mmdet's backbone, its last map pooled."""
    from convert.targets.in_mmdet import build

    module = randomised(build(arch))

    def pooled(images: Tensor) -> Tensor:
        with torch.no_grad():
            return module(images)[-1].mean((2, 3))

    return Own(module.state_dict(), pooled, arch)


def _no_grad(module: nn.Module) -> Callable[[Tensor], Tensor]:
    @torch.no_grad()
    def forward(images: Tensor) -> Tensor:
        return module.eval()(images)

    return forward


def vit_own(
    width: int,
    patch: int,
    heads: int,
    arch: str,
    *,
    size: int = 224,
    registers: int = 0,
    layer_scale: bool = False,
    mask_token: bool = False,
) -> Own:
    """A ViT of depth 12 in DINO's (with registers: DINOv2's) names and plain functions."""
    torch.manual_seed(1)
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, (size // patch) ** 2 + 1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    if registers:
        shapes["register_tokens"] = (1, registers, width)
    if mask_token:
        shapes["mask_token"] = (1, width)
    for block in range(12):
        parts = {
            "norm1": (width,),
            "norm2": (width,),
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.fc1": (4 * width, width),
            "mlp.fc2": (width, 4 * width),
        }
        for name, shape in parts.items():
            shapes[f"blocks.{block}.{name}.weight"], shapes[f"blocks.{block}.{name}.bias"] = shape, shape[:1]
        if layer_scale:
            shapes[f"blocks.{block}.ls1.gamma"] = shapes[f"blocks.{block}.ls2.gamma"] = (width,)
    shapes["norm.weight"] = shapes["norm.bias"] = (width,)
    state = {name: random_like(name, shape) for name, shape in shapes.items()}
    return Own(state, lambda images: vit_forward(state, images, heads), arch, size)


@torch.no_grad()
def vit_forward(state: dict[str, Tensor], images: Tensor, heads: int) -> Tensor:
    """Class token after the final norm: Dosovitskiy et al. 2021, eq. 1-4; registers as in Darcet et al. 2024."""
    patch = state["patch_embed.proj.weight"].shape[-1]
    tokens = conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=patch)
    tokens = tokens.flatten(2).transpose(1, 2)
    tokens = torch.cat([state["cls_token"].expand(len(images), -1, -1), tokens], 1) + state["pos_embed"]
    if "register_tokens" in state:
        registers = state["register_tokens"].expand(len(images), -1, -1)
        tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], 1)
    for block in range(12):

        def part(name, block=block):
            return state[f"blocks.{block}.{name}.weight"], state[f"blocks.{block}.{name}.bias"]

        def scaled(branch, number, block=block):
            return branch * state.get(f"blocks.{block}.ls{number}.gamma", torch.ones(()))

        inner = layer_norm(tokens, tokens.shape[-1:], *part("norm1"), eps=1e-6)
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in linear(inner, *part("attn.qkv")).chunk(3, -1))
        mixed = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens = tokens + scaled(linear(mixed, *part("attn.proj")), 1)
        inner = layer_norm(tokens, tokens.shape[-1:], *part("norm2"), eps=1e-6)
        tokens = tokens + scaled(linear(gelu(linear(inner, *part("mlp.fc1"))), *part("mlp.fc2")), 2)
    return layer_norm(tokens, tokens.shape[-1:], state["norm.weight"], state["norm.bias"], eps=1e-6)[:, 0]
