"""The contract between a method and the training loop, which knows no method by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pretrain.backbones import Backbone


@dataclass(frozen=True)
class Progress:
    """Where the run is. `step` counts optimizer steps from 0; `micro` counts the forwards inside one step."""

    step: int
    steps_per_epoch: int
    total_epochs: int
    micro: int = 0

    @property
    def epoch(self) -> int:
        return self.step // self.steps_per_epoch

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.total_epochs


class Method(nn.Module):
    """Networks and loss of one self-supervised method.

    `networks` maps the name of each of the method's networks to the prefix of its backbone in the state dict; the
    first is the one to evaluate. Parameters that are not trained by gradient have `requires_grad` False.
    """

    networks: dict[str, str]

    def forward(self, views: list[Tensor], progress: Progress) -> dict[str, Tensor]:
        """One forward on all views, each [N, 3, size, size], global ones first.

        Returns `loss` (scalar with gradient), `feature` ([N, feature_dim], detached: the backbone's feature of the
        first view that the trained network sees) and any further detached scalars worth logging.
        """
        raise NotImplementedError

    def init_probe(self, classifier: nn.Linear) -> None:
        """Initialise the joint linear probe's weights, where the method's original starts them otherwise than torch."""

    def after_backward(self, progress: Progress) -> None:
        """Called when the step's gradients are complete, before the optimizer."""

    def after_step(self, progress: Progress) -> None:
        """Called after the optimizer's step."""

    @property
    def backbone(self) -> Backbone:
        """The network that is evaluated (state dict prefix: the first of `networks`)."""
        backbone: Any = self.get_submodule(next(iter(self.networks.values())).rstrip("."))
        return backbone
