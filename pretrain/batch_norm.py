"""Batch norm in training whose sums are sound on a CPU, in the memory layout that is fast there.

torch's channels_last kernels on a CPU add all N * H * W values of a channel one after the other in float32. At
[64, 32, 112, 112] that costs the variance three digits (4e-4 relative, against 1e-7 of the contiguous kernels, which
add in float64), and the gradient of MobileNetV2 a tenth of its length and more. The same kernels are asked here for
many short sums, one per pixel of a line, and these are added in float64.
"""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

MOST_TERMS = 1024  # of a sum in float32


def sound_batch_norm(device: torch.device) -> contextlib.AbstractContextManager:
    """Within it, `F.batch_norm` is this module's where torch's sums badly. Networks keep torch's and timm's modules.

    For the forward of a training step: the backward follows from it, and evaluation takes no sums. Nothing changes on
    other devices, whose kernels sum in pieces.
    """
    return _Mode() if device.type == "cpu" else contextlib.nullcontext()


class _Mode(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.batch_norm:
            function = batch_norm
        return function(*args, **(kwargs or {}))


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm`, with its arguments and its effect on the running statistics.

    Own work is done for a channels_last [N, C, H, W] of float32, bfloat16 or float16 in training on a CPU, in float32
    and float64 whatever the input. Compiled code is left alone: Inductor's own sums are sound.
    """
    summed_badly = (
        training
        and x.device.type == "cpu"
        and x.ndim == 4
        and x.dtype != torch.float64
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous()
    )
    if not summed_badly or torch.compiler.is_compiling():
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    mean, var = _statistics(x.detach())
    if running_mean is not None and running_var is not None:
        count = x.numel() // x.shape[1]
        running_mean.lerp_(mean.to(running_mean), momentum)
        running_var.lerp_((var * (count / (count - 1))).to(running_var), momentum)
    return _BatchNorm.apply(x, weight, bias, mean, var, eps)


def _rows(x: Tensor) -> Tensor:
    """A view of channels_last [N, C, H, W] as [rows, pixels * C]: to torch's kernels every column is a channel.

    A row holds whole lines of a picture, as many as leave at most MOST_TERMS rows (or whole pictures).
    """
    images, _, height, _ = x.shape
    lines = next(
        n for n in range(1, height + 1) if height % n == 0 and (images * height // n <= MOST_TERMS or n == height)
    )
    return x.permute(0, 2, 3, 1).reshape(images * height // lines, -1)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel, float64 [C] (Chan et al., 1979: from the columns' own)."""
    rows = _rows(x)
    unused = rows.new_zeros(rows.shape[1], dtype=torch.float32)  # running statistics; float32 makes the kernel's so
    mean, var = (
        value.view(-1, x.shape[1]).double()
        for value in torch.batch_norm_update_stats(rows, unused, unused.clone(), 0.0)
    )
    return mean.mean(0), var.mean(0) + mean.var(0, correction=0)


def _affine(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """(x - mean) * scale + shift by channel, in float32 within, in x's type and layout."""
    scale, mean, shift = scale.float(), mean.float(), None if shift is None else shift.float()
    return torch.batch_norm(x, scale, shift, mean, torch.ones_like(mean), False, 0.0, 0.0, False)


class _BatchNorm(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias, with the gradient through the statistics."""

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
    ) -> Tensor:
        inverse = (var + eps).rsqrt()
        scale = inverse if weight is None else inverse * weight
        ctx.save_for_backward(x, mean, inverse, scale)
        return _affine(x, mean, scale, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        x, mean, inverse, scale = ctx.saved_tensors
        channels, count = x.shape[1], x.numel() // x.shape[1]
        grad = grad.contiguous(memory_format=torch.channels_last)
        rows = _rows(x)
        one = torch.ones(rows.shape[1])
        _, product, total = torch.ops.aten.native_batch_norm_backward(
            _rows(grad),
            rows,
            one,
            None,
            None,
            mean.float().repeat(rows.shape[1] // channels),
            one,
            True,
            0.0,
            [False, True, True],
        )  # by column: sum of grad * (x - mean), sum of grad
        product, total = (value.view(-1, channels).sum(0, dtype=torch.float64) for value in (product, total))
        product *= inverse
        # scale * (grad - total / count - normalised x * product / count)
        grad_x = _affine(x, mean, -scale * inverse * product / count, -scale * total / count)
        grad_x.addcmul_(grad, scale.to(grad).view(1, -1, 1, 1))
        weight, bias = ctx.needs_input_grad[1:3]
        return grad_x, product.float() if weight else None, total.float() if bias else None, None, None, None
