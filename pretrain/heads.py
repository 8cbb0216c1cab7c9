"""Projection heads of the three methods, with the parameter names of the published checkpoints.

A head maps pooled features [N, in_dim] to a unit-length embedding (`project`) and, for DINO and SwAV, on to the logits
of its prototypes (`forward`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import init


def mlp(
    in_dim: int, hidden: int, out_dim: int, layers: int, *, norm: bool, activation: type[nn.Module]
) -> nn.Sequential:
    """`layers` linear layers, each but the last followed by batch norm (if `norm`) and the activation."""
    widths = [in_dim] + [hidden] * (layers - 1) + [out_dim]
    modules: list[nn.Module] = []
    for index in range(layers):
        modules.append(nn.Linear(widths[index], widths[index + 1]))
        if index < layers - 1:
            modules += [nn.BatchNorm1d(hidden), activation()] if norm else [activation()]
    return nn.Sequential(*modules)


def unit(x: Tensor) -> Tensor:
    """Rows of unit length, in float32 also under autocast: their products are the losses' cosine similarities."""
    return F.normalize(x.float(), dim=-1)


def init_linear(module: nn.Module, std: float) -> None:
    """Normal weights, zero biases.

    DINO's and MoCo's published "truncated normal" cuts at 2, a hundred standard deviations away; torch's sampler of it
    returns the cut itself about once in 2**24 draws, so that a large head would start with a weight of 2.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                init.zeros_(layer.bias)


class WeightNormLinear(nn.Module):
    """A linear layer without bias whose rows are `weight_g * weight_v / |weight_v|` (Salimans and Kingma, 2016)."""

    def __init__(self, in_dim: int, out_dim: int, learn_scale: bool):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_dim, 1), requires_grad=learn_scale)
        self.weight_v = nn.Parameter(nn.Linear(in_dim, out_dim, bias=False).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_v * (self.weight_g / self.weight_v.norm(dim=1, keepdim=True)))


class DINOHead(nn.Module):
    """DINO (Caron et al., 2021, appendix C): MLP with GELU, unit-length bottleneck, weight-normed prototypes."""

    def __init__(
        self, in_dim: int, hidden: int, bottleneck: int, out_dim: int, layers: int, *, norm: bool, learn_scale: bool
    ):
        super().__init__()
        self.mlp = mlp(in_dim, hidden, bottleneck, layers, norm=norm, activation=nn.GELU)
        init_linear(self, std=0.02)
        self.last_layer = WeightNormLinear(bottleneck, out_dim, learn_scale)

    def project(self, features: Tensor) -> Tensor:
        return unit(self.mlp(features))

    def forward(self, embedding: Tensor) -> Tensor:
        return self.last_layer(embedding)


class Projection(nn.Module):
    """An MLP with ReLU onto the unit sphere: MoCo-v2's head, and the first part of SwAV's."""

    def __init__(self, in_dim: int, hidden: int, out_dim: int, layers: int, *, norm: bool):
        super().__init__()
        self.mlp = mlp(in_dim, hidden, out_dim, layers, norm=norm, activation=nn.ReLU)
        init_linear(self, std=0.02)

    def project(self, features: Tensor) -> Tensor:
        return unit(self.mlp(features))


class SwAVHead(nn.Module):
    """SwAV (Caron et al., 2020): projection and bias-free prototypes; every linear layer starts as N(0, 0.01)."""

    def __init__(self, in_dim: int, hidden: int, out_dim: int, prototypes: int, layers: int, *, norm: bool):
        super().__init__()
        self.projection = Projection(in_dim, hidden, out_dim, layers, norm=norm)
        self.prototypes = nn.Linear(out_dim, prototypes, bias=False)
        init_linear(self, std=0.01)

    def project(self, features: Tensor) -> Tensor:
        return self.projection.project(features)

    def forward(self, embedding: Tensor) -> Tensor:
        return self.prototypes(embedding)
