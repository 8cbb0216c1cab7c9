"""Where low precision is not merely less precise but wrong."""

from __future__ import annotations

import torch
from torch import nn

from pretrain.errors import InputError


@torch.no_grad()
def check_bf16_on_cpu(backbone: nn.Module, sizes: set[int]) -> None:
    """Raise InputError if the backbone strides over a 1x1 map for views of one of these sizes, in pixels.

    The weight gradient of such a convolution (kernel above 1, stride above 1) is left partly uninitialised by torch's
    bfloat16 kernels on a CPU: sometimes not finite, sometimes finite garbage, so no later check would see it.
    """
    found: list[tuple[int, str]] = []

    def look(name: str, size: int):
        def hook(module: nn.Conv2d, inputs: tuple) -> None:
            if max(module.kernel_size) > 1 and max(module.stride) > 1 and max(inputs[0].shape[-2:]) == 1:
                found.append((size, name))
        return hook

    training, state = backbone.training, torch.get_rng_state()
    backbone.eval()
    for size in sorted(sizes):
        hooks = [module.register_forward_pre_hook(look(name, size)) for name, module in backbone.named_modules()
                 if isinstance(module, nn.Conv2d)]
        backbone(torch.zeros(1, 3, size, size))
        for hook in hooks:
            hook.remove()
    backbone.train(training)
    torch.set_rng_state(state)
    if found:
        size, name = found[0]
        raise InputError(f"TRAIN.AMP bf16 on a CPU gives wrong weight gradients in '{name}' of {backbone.arch} for "
                         f"views of {size} px (a strided convolution over 1x1 maps): use larger views or no AMP")
