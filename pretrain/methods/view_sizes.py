"""Whether a backbone can be trained on views of the sizes asked for."""

from __future__ import annotations

import torch
from torch import nn

from pretrain.backbones import Backbone
from sslight.core.errors import InputError


@torch.no_grad()
def check_view_sizes(backbone: Backbone, sizes: set[int], bf16_on_cpu: bool) -> None:
    """Raise InputError if the backbone refuses images of one of these sizes, in pixels, or would train on garbage.

    Garbage is what torch's bfloat16 kernels on a CPU leave in the weight gradient of a convolution (kernel above 1)
    that strides over a 1x1 map: partly uninitialised memory, often finite, so that no later check would see it.
    """
    found: list[str] = []

    def look(name: str):
        def hook(module: nn.Conv2d, inputs: tuple) -> None:
            if max(module.kernel_size) > 1 and max(module.stride) > 1 and max(inputs[0].shape[-2:]) == 1:
                found.append(name)

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
                own = backbone.default_cfg["input_size"][-1]
                raise InputError(
                    f"backbone '{backbone.arch}' does not take views of {size} px ({error}): choose one "
                    f"that takes any image size, or set VIEWS.GLOBAL_SIZE and VIEWS.LOCAL_SIZE to {own}"
                ) from None
            if found and bf16_on_cpu:
                raise InputError(
                    f"TRAIN.AMP bf16 on a CPU gives wrong weight gradients in '{found[0]}' of "
                    f"{backbone.arch} for views of {size} px (a strided convolution over 1x1 maps): use "
                    "larger views or no AMP"
                )
    finally:
        for hook in hooks:
            hook.remove()
        backbone.train(training)
        torch.set_rng_state(state)
