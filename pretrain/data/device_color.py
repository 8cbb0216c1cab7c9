"""The colour work of `views.py` for a whole batch at once on the training device, each image with its own parameters.

What to do comes as a table made on the host, so that choosing the rows an operation applies to never waits for the
device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.data.fast_views import BLUR_STEPS, LUMA, blur_kernel
from pretrain.data.views import (
    BRIGHTNESS,
    CONTRAST,
    FACTORS,
    GRAY,
    HUE,
    ORDER,
    SATURATION,
    SIGMA,
    SOLARIZE,
    SOLARIZE_THRESHOLD,
)


def recolor_batch(images: Tensor, table: Tensor) -> Tensor:
    """Images uint8 [B, 3, H, W] on any device and their table on the host -> float32 0 .. 255.

    The table, float32 [B, COLOR_COLUMNS], holds the rows that `views.draw_views` draws.

    The levels are whole numbers: every operation rounds as its counterpart on bytes does.
    """
    with torch.autocast(images.device.type, enabled=False):
        x = images.float()
        for op in table[:, ORDER].unbind(1):
            x = _blend(x, op, table[:, FACTORS])
            rows = (op == HUE).nonzero()[:, 0]
            x = _apply_to(x, rows, lambda part, rows: _shift_hue(part, _column(table[rows, FACTORS.start + HUE], part)))
        x = torch.where(_column(table[:, GRAY] > 0, x), _luma(x), x)
        x = _apply_to(x, (table[:, SIGMA] > 0).nonzero()[:, 0], lambda part, rows: _blur(part, table[rows, SIGMA]))
        return torch.where(_column(table[:, SOLARIZE] > 0, x) & (x >= SOLARIZE_THRESHOLD), 255 - x, x)


def _column(values: Tensor, like: Tensor) -> Tensor:
    """One value per image, [B, 1, 1, 1] on the images' device."""
    return values.to(like.device, non_blocking=True).view(-1, 1, 1, 1)


def _apply_to(x: Tensor, rows: Tensor, operation) -> Tensor:
    """Replace some rows of `x` in place by what the operation makes of them."""
    if not len(rows):
        return x
    there = rows.to(x.device, non_blocking=True)
    return x.index_copy_(0, there, operation(x.index_select(0, there), rows))


def _luma(x: Tensor) -> Tensor:
    """Grayscale [B, 1, H, W] in whole levels."""
    return (LUMA[0] * x[:, :1] + LUMA[1] * x[:, 1:2] + LUMA[2] * x[:, 2:]).add_(0.5).floor_()


def _blend(x: Tensor, op: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast or saturation: f x + (1 - f) base; base is black, mean gray, or gray."""
    f = torch.ones_like(op)
    for which in (BRIGHTNESS, CONTRAST, SATURATION):
        f = torch.where(op == which, factors[:, which], f)
    gray = _luma(x)
    base = gray.mean((1, 2, 3), keepdim=True).add_(0.5).floor_() * _column((op == CONTRAST).float(), x)
    base = base + gray * _column((op == SATURATION).float(), x)
    # a hair above, so that whole numbers survive the cut
    return torch.lerp(base.expand_as(x), x, _column(f, x)).add_(1e-3).clamp_(0, 255).floor_()


def _shift_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Hue shifted in HSV; `turns` [B, 1, 1, 1]."""
    value, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    chroma = value - low
    red, green, blue = x.split(1, dim=1)
    unit = chroma.clamp(min=1e-6)
    hue = torch.where(value == red, (green - blue) / unit, 2 + (blue - red) / unit)
    hue = torch.where((value == blue) & (value != red) & (value != green), 4 + (red - green) / unit, hue)
    sixths = hue + 6 * (turns * 255).trunc() / 255  # torchvision shifts by whole steps of 1/255
    sectors = torch.tensor([5.0, 3.0, 1.0], device=x.device).view(1, 3, 1, 1) + sixths
    k = torch.remainder(sectors, 6)
    return (value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)).round_()


def _blur(x: Tensor, sigma: Tensor) -> Tensor:
    """PIL's Gaussian blur; `sigma` [B] on the host."""
    kernels = [torch.from_numpy(blur_kernel(round(s * BLUR_STEPS))) for s in sigma.tolist()]
    half = max(len(kernel) for kernel in kernels) // 2
    weight = torch.stack([F.pad(kernel, (half - len(kernel) // 2,) * 2) for kernel in kernels])
    weight = weight.to(x.device, non_blocking=True).repeat_interleave(3, dim=0)[:, None, None]  # [3 B, 1, 1, taps]
    count, channels, height, width = x.shape
    flat = x.reshape(1, count * channels, height, width)
    flat = F.conv2d(F.pad(flat, (half, half, 0, 0), mode="replicate"), weight, groups=count * channels)
    flat = F.conv2d(F.pad(flat, (0, 0, half, half), mode="replicate"), weight.transpose(2, 3), groups=count * channels)
    return flat.view(count, channels, height, width).round_()
