"""Classifiers on top of a backbone: linear probes beside one another, and the semi-supervised head.

A classifier maps images to `{name: logits}` and says its heads' `names`; `frozen` lists the children that do not train.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.classification.features import Features
from benchmarks.classification.training import Heads, seeded
from pretrain.heads import mlp
from sslight.core.errors import InputError


def linear_head(width: int, classes: int, seed: int) -> nn.Linear:
    """Linear, weights N(0, 0.01), bias 0."""
    with seeded(seed):
        head = nn.Linear(width, classes)
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)
    return head


class LinearProbes(Heads):
    """Linear classifiers on the features of a frozen backbone: one per (feature choice, learning rate)."""

    frozen = ("features",)

    def __init__(
        self, features: Features, widths: dict[str, int], classes: int, rates: list[float], seed: int, amp: bool = False
    ):
        super().__init__()
        self.amp = amp  # bf16 in the frozen forward; the heads stay in float32
        self.features = features.requires_grad_(False)
        self.members = [(choice, rate) for choice in features.choices for rate in rates]
        self.names = [f"{choice} lr {rate:g}" for choice, rate in self.members]
        # every head starts as it would alone
        self.heads = nn.ModuleList(linear_head(widths[choice], classes, seed) for choice, _ in self.members)

    def train(self, mode: bool = True) -> LinearProbes:
        super().train(mode)
        self.features.eval()
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16, enabled=self.amp):
            features = self.features(images)
        return {
            name: head(features[choice])
            for name, head, (choice, _) in zip(self.names, self.heads, self.members, strict=True)
        }

    def groups(self, base_rate: float) -> list[dict]:
        """Optimizer groups: every head at its own rate, as a factor of `base_rate`."""
        return [
            {"module": head, "lr_factor": rate / base_rate}
            for head, (_, rate) in zip(self.heads, self.members, strict=True)
        ]


class Classifier(Heads):
    """A backbone and a head on its pooled feature, both trained."""

    names = ("classifier",)

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"classifier": self.head(self.backbone(images))}


def semi_head(
    width: int, classes: int, projection: dict[str, Tensor] | None, *, hidden: int, layers: int, norm: bool, seed: int
) -> tuple[nn.Sequential, str]:
    """The published semi-supervised head, and where its hidden layers came from.

    fc - BN - GELU for every hidden layer, then fc to the classes at torch's default initialisation. `projection` is
    DINO's head (`mlp.N.*`): its hidden layers, BN parameters and statistics included, become this head's; the shape
    follows it. Without one the hidden layers start as DINO's do (`pretrain.heads.init_linear`): normal 0.02, bias 0.

    Raises InputError if the projection head is not for features of `width`.
    """
    projection = projection or {}
    layout = _projection_layout(projection, width)
    if layout:
        hidden, layers, norm = layout
    with seeded(seed):
        head = mlp(width, hidden, classes, layers, norm=norm, activation=nn.GELU)
        for module in list(head)[:-1]:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
    if not layout:
        return head, "random"
    own = {key: value for key, value in head.state_dict().items() if not key.startswith(f"{len(head) - 1}.")}
    missing = [key for key in own if f"mlp.{key}" not in projection or projection[f"mlp.{key}"].shape != own[key].shape]
    if missing:
        raise InputError(
            f"the checkpoint's DINO head does not fit: {', '.join(missing[:3])} missing or of another "
            "shape: set HEAD.FROM_DINO False"
        )
    head.load_state_dict({key: projection[f"mlp.{key}"] for key in own}, strict=False)  # all but the last layer
    return head, "DINO head"


def _projection_layout(projection: dict[str, Tensor], width: int) -> tuple[int, int, bool] | None:
    """Hidden width, number of linear layers and use of BN of a DINO head; None where it has no hidden layer."""
    weights = {
        key: value
        for key, value in projection.items()
        if key.startswith("mlp.") and key.endswith(".weight") and value.ndim == 2 and key.count(".") == 2
    }
    if len(weights) < 2:
        return None
    first = weights[min(weights, key=lambda key: int(key.split(".")[1]))]
    if first.shape[1] != width:
        raise InputError(
            f"the checkpoint's DINO head takes features of width {first.shape[1]}, its backbone gives "
            f"{width}: set HEAD.FROM_DINO False"
        )
    return first.shape[0], len(weights), any(key.endswith("running_mean") for key in projection)
