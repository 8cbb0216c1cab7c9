"""What the methods' projection heads are made of.

A head maps pooled features [N, in_dim] to a unit-length embedding (`project`) and, where a method has prototypes, on to
their logits (`forward`).
"""

from __future__ import annotations

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


class Projection(nn.Module):
    """An MLP with ReLU onto the unit sphere: MoCo-v2's head, and the first part of SwAV's."""

    def __init__(self, in_dim: int, hidden: int, out_dim: int, layers: int, *, norm: bool):
        super().__init__()
        self.mlp = mlp(in_dim, hidden, out_dim, layers, norm=norm, activation=nn.ReLU)
        init_linear(self, std=0.02)

    def project(self, features: Tensor) -> Tensor:
        return unit(self.mlp(features))
