"""What a method is, which there are, and how one is built. The training loop knows no method by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.backbones import Backbone, build_backbone, own_size, read_options
from sslight.core.errors import InputError
from sslight.core.registry import Registry


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
    """Networks and loss of one self-supervised method, built from the whole configuration (`METHODS[name](cfg)`).

    Its own settings are the section of its name in capitals (`pretrain/settings.py`). The loop calls, per step:
    `forward` for every batch, `after_backward`, the optimizer, `after_step`.
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

    def constant_rate(self) -> Iterable[nn.Parameter]:
        """Trained parameters whose learning rate stays at the schedule's peak."""
        return ()

    def init_probe(self, classifier: nn.Linear) -> None:
        """Initialise the joint linear probe's weights, where the method's original starts them otherwise than torch."""

    def after_backward(self, progress: Progress) -> None:
        """Called when the step's gradients are complete, before the optimizer."""

    def after_step(self, progress: Progress) -> None:
        """Called after the optimizer's step."""

    def start_from(self, state: dict[str, Tensor]) -> None:
        """Give each of the networks these backbone weights, in timm's names; heads stay as they are."""
        for prefix in self.networks.values():
            self.get_submodule(prefix.rstrip(".")).load_state_dict(state, strict=True)

    @property
    def backbone(self) -> Backbone:
        """The network that is evaluated (state dict prefix: the first of `networks`)."""
        backbone: Any = self.get_submodule(next(iter(self.networks.values())).rstrip("."))
        return backbone


METHODS: Registry[type[Method]] = Registry(
    "METHOD",
    {
        "dino": ("a student predicts what its momentum teacher sees in other views", "pretrain.methods.dino:DINO"),
        "swav": ("views predict each other's assignments to prototypes", "pretrain.methods.swav:SwAV"),
        "moco": ("views find their image's key in a queue of others (MoCo-v2)", "pretrain.methods.moco:MoCo"),
        "simsiam": ("views predict each other's projections, nothing else", "pretrain.methods.simsiam:SimSiam"),
    },
)


def new_backbone(cfg, drop_path_rate: float) -> Backbone:
    """The backbone that `cfg.MODEL` describes, freshly initialised."""
    model = cfg.MODEL
    return build_backbone(model.BACKBONE_ARCH, drop_path_rate, model.POS_RESIZE, **read_options(model.OPTIONS.split()))


def build_method(cfg) -> Method:
    """The method that `cfg.METHOD` names, freshly initialised, on the CPU.

    Call it after the process group is joined: queue lengths depend on the number of processes. Raises InputError for
    an unknown method or backbone, and for views that it cannot be trained on.
    """
    method = METHODS[cfg.METHOD](cfg)
    sizes = {cfg.VIEWS.GLOBAL_SIZE, *[cfg.VIEWS.LOCAL_SIZE] * cfg.VIEWS.LOCAL_NUMBER}
    check_view_sizes(method.backbone, sizes, cfg.TRAIN.AMP == "bf16" and not torch.cuda.is_available())
    return method


@torch.no_grad()
def check_view_sizes(backbone: Backbone, sizes: set[int], bf16_on_cpu: bool) -> None:
    """Raise InputError if the backbone refuses images of one of these sizes, in pixels, or would train on garbage.

    Garbage is what torch's bfloat16 kernels on a CPU leave in the weight gradient of a convolution (kernel above 1)
    that strides over a 1x1 map: partly uninitialised memory, often finite, so that no later check would see it.
    """
    strided: list[str] = []  # convolutions that do so

    def look(name: str):
        def hook(module: nn.Conv2d, inputs: tuple) -> None:
            if max(module.kernel_size) > 1 and max(module.stride) > 1 and max(inputs[0].shape[-2:]) == 1:
                strided.append(name)

        return hook

    training, state = backbone.training, torch.get_rng_state()
    hooks = [
        module.register_forward_pre_hook(look(name))
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        backbone.eval()
        for size in sorted(sizes):
            try:
                backbone(torch.zeros(1, 3, size, size))
            except (AssertionError, RuntimeError, ValueError) as error:  # each of timm's families has its own way
                dynamic = getattr(backbone, "dynamic_img_size", False)  # of a ViT
                fitting = f"multiples of {backbone.patch_embed.patch_size[0]}" if dynamic else own_size(backbone)[-1]
                raise InputError(
                    f"backbone '{backbone.arch}' does not take views of {size} px ({error}): choose one "
                    f"that takes any image size, or set VIEWS.GLOBAL_SIZE and VIEWS.LOCAL_SIZE to {fitting}"
                ) from None
            if strided and bf16_on_cpu:
                raise InputError(
                    f"TRAIN.AMP bf16 on a CPU gives wrong weight gradients in '{strided[0]}' of "
                    f"{backbone.arch} for views of {size} px (a strided convolution over 1x1 maps): use "
                    "larger views or no AMP"
                )
    finally:
        for hook in hooks:
            hook.remove()
        backbone.train(training)
        torch.set_rng_state(state)
