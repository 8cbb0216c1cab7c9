"""What a view is, how its parameters are drawn, and the PIL / torchvision pipeline that defines the augmentation.

A view set is a list of `View`s; nothing else knows about crops. Drawing the parameters is separate from rendering, so
that the fast paths (`fast_views`, `device_color`) can be held against this one given the same draw. The augmentation
is that of SwAV, MoCo-v2 and DINO: random resized crop, flip, colour jitter, grayscale, Gaussian blur, solarize.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from fvcore.common.config import CfgNode
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import InterpolationMode, functional as F

from sslight.core.errors import InputError

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
BLUR_RADIUS = (0.1, 2.0)  # pixels: PIL's radius, the standard deviation of the Gaussian
SOLARIZE_THRESHOLD = 128
CROP_TRIES = 10
LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))
# Columns of a colour's row: the operations in order, their factors (the hue's in turns), and whether or how much
ORDER, FACTORS, GRAY, SIGMA, SOLARIZE = slice(0, 4), slice(4, 8), 8, 9, 10
COLOR_COLUMNS = 11
NO_OPERATION = -1
# Uniform numbers of one view: 4 per try of the crop, then as `draw_views` consumes them. A multiple of 4, so that a
# counter-based generator can jump to any sample.
UNIFORMS = 4 * CROP_TRIES + 16


@dataclass(frozen=True)
class View:
    """One view of an image: `size` pixels square, cropped from `scale` of the area, then recoloured."""

    size: int
    scale: tuple[float, float]
    is_global: bool
    flip_prob: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation, hue
    jitter_prob: float = 0.8
    grayscale_prob: float = 0.2
    blur_prob: float = 0.5
    solarize_prob: float = 0.0


class Color(NamedTuple):
    """The drawn point operations and blur of one view, in the order in which they apply."""

    order: tuple[int, ...]  # of the four jitter operations; empty: no jitter
    factors: tuple[float, float, float, float]  # brightness, contrast, saturation; hue in turns
    gray: bool
    sigma: float  # pixels; 0: no blur
    solarize: bool


class Draw(NamedTuple):
    """Everything random about one view."""

    top: int
    left: int
    height: int
    width: int
    flip: bool
    color: Color


def view_set(cfg: CfgNode) -> list[View]:
    """The views of `cfg.VIEWS`: two global ones, then the local ones. Raises InputError for values out of range."""
    v = cfg.VIEWS
    lengths = {"GLOBAL_SCALE": 2, "LOCAL_SCALE": 2, "COLOR_JITTER": 4, "BLUR_PROB": 3, "SOLARIZE_PROB": 2}
    for key, length in lengths.items():
        if len(v[key]) != length:
            raise InputError(f"config key 'VIEWS.{key}' expects {length} numbers, not {v[key]}")
    for key in ("GLOBAL_SCALE", "LOCAL_SCALE"):
        low, high = v[key]
        if not 0 < low <= high <= 1:
            raise InputError(f"config key 'VIEWS.{key}' expects 0 < low <= high <= 1, not {v[key]}")
    for key in ("FLIP_PROB", "COLOR_JITTER_PROB", "GRAYSCALE_PROB", "BLUR_PROB", "SOLARIZE_PROB"):
        values = v[key] if isinstance(v[key], list) else [v[key]]
        if not all(0 <= p <= 1 for p in values):
            raise InputError(f"config key 'VIEWS.{key}' expects probabilities between 0 and 1, not {v[key]}")
    if min(v.COLOR_JITTER) < 0 or v.COLOR_JITTER[HUE] > 0.5:
        raise InputError(
            f"config key 'VIEWS.COLOR_JITTER' expects strengths >= 0, the hue's at most 0.5, not {v.COLOR_JITTER}"
        )
    if v.GLOBAL_SIZE < 1 or v.LOCAL_SIZE < 1 or v.LOCAL_NUMBER < 0:
        raise InputError(
            "config keys 'VIEWS.GLOBAL_SIZE' and 'VIEWS.LOCAL_SIZE' expect pixels >= 1, "
            "'VIEWS.LOCAL_NUMBER' expects 0 or more"
        )
    common = {
        "flip_prob": v.FLIP_PROB,
        "jitter": tuple(v.COLOR_JITTER),
        "jitter_prob": v.COLOR_JITTER_PROB,
        "grayscale_prob": v.GRAYSCALE_PROB,
    }
    views = [
        View(
            v.GLOBAL_SIZE,
            tuple(v.GLOBAL_SCALE),
            True,
            blur_prob=v.BLUR_PROB[i],
            solarize_prob=v.SOLARIZE_PROB[i],
            **common,
        )
        for i in range(2)
    ]
    local = View(v.LOCAL_SIZE, tuple(v.LOCAL_SCALE), False, blur_prob=v.BLUR_PROB[2], **common)
    return views + [local] * v.LOCAL_NUMBER


def uniforms(seed: int, epoch: int, first: int, count: int, width: int) -> np.ndarray:
    """Uniform numbers in [0, 1) for `count` samples from position `first` of an epoch, [count, width] float64.

    A pure function of (seed, epoch, position): a counter-based generator jumps to the position. `width` is a
    multiple of 4, the generator's block.
    """
    assert width % 4 == 0
    bits = np.random.Philox(key=(seed & (2**64 - 1)) | (epoch & (2**64 - 1)) << 64)
    bits.advance(first * (width // 4))
    return np.random.Generator(bits).random((count, width))


def draw_views(views: Sequence[View], numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Uniforms [B, V, UNIFORMS] of B samples -> (crops [B, V, 4 CROP_TRIES + 1], colours [B, V, COLOR_COLUMNS]).

    Everything that does not depend on the image's size, for a whole batch at once. A crop's row holds per try its
    width and height for an image of area 1 and its place in [0, 1), and at the end whether to flip; `place_crop` goes
    on from there. A colour's row is read by `color_of`.
    """
    tries, rest = numbers[..., : 4 * CROP_TRIES], numbers[..., 4 * CROP_TRIES :]
    crops = np.concatenate([tries, rest[..., 13:14] < np.array([[view.flip_prob] for view in views])], axis=-1)
    low, high = np.array([view.scale for view in views]).T[..., None]
    area = low + (high - low) * tries[..., 0::4]
    ratio = np.exp(LOG_RATIO[0] + (LOG_RATIO[1] - LOG_RATIO[0]) * tries[..., 1::4])
    crops[..., 0:-1:4], crops[..., 1:-1:4] = np.sqrt(area * ratio), np.sqrt(area / ratio)

    colors = np.empty((*numbers.shape[:2], COLOR_COLUMNS))
    strength = np.array([view.jitter for view in views])
    order = rest[..., 1:5].argsort(axis=-1)
    acts = np.take_along_axis(np.broadcast_to(strength > 0, order.shape), order, axis=-1)
    acts &= rest[..., 0:1] < np.array([[view.jitter_prob] for view in views])
    colors[..., ORDER] = np.where(acts, order, NO_OPERATION)
    low = np.maximum(0, 1 - strength)
    colors[..., FACTORS] = low + (1 + strength - low) * rest[..., 5:9]
    colors[..., FACTORS.start + HUE] = strength[:, HUE] * (2 * rest[..., 8] - 1)
    colors[..., GRAY] = rest[..., 9] < [view.grayscale_prob for view in views]
    radius = BLUR_RADIUS[0] + (BLUR_RADIUS[1] - BLUR_RADIUS[0]) * rest[..., 11]
    colors[..., SIGMA] = np.where(rest[..., 10] < [view.blur_prob for view in views], radius, 0)
    colors[..., SOLARIZE] = rest[..., 12] < [view.solarize_prob for view in views]
    return crops, colors


def place_crop(row: Sequence[float], height: int, width: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random resized crop, as torchvision draws it: the first try that fits."""
    side = math.sqrt(height * width)
    for k in range(0, 4 * CROP_TRIES, 4):
        w, h = round(row[k] * side), round(row[k + 1] * side)
        if 0 < w <= width and 0 < h <= height:
            return int(row[k + 2] * (height - h + 1)), int(row[k + 3] * (width - w + 1)), h, w
    ratio = width / height  # no try fitted: the largest central crop of an allowed aspect ratio
    w = width if ratio <= 4 / 3 else max(1, round(height * 4 / 3))
    h = height if ratio >= 3 / 4 else max(1, round(width * 4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


def color_of(row: Sequence[float]) -> Color:
    """A row of the colours' table as a `Color`."""
    order = tuple([int(op) for op in row[ORDER] if op != NO_OPERATION])
    brightness, contrast, saturation, hue = row[FACTORS]
    return Color(order, (brightness, contrast, saturation, hue), row[GRAY] > 0, row[SIGMA], row[SOLARIZE] > 0)


def draw(view: View, numbers: np.ndarray, height: int, width: int) -> Draw:
    """The parameters of one view of a `height` x `width` image from `UNIFORMS` uniform numbers."""
    crops, colors = draw_views([view], numbers[None, None])
    row = crops[0, 0].tolist()
    return Draw(*place_crop(row, height, width), row[-1] > 0, color_of(colors[0, 0].tolist()))


def crop(image: Image.Image, view: View, d: Draw) -> Image.Image:
    """The reference's crop and flip: antialiased bicubic resizing of the crop."""
    size = [view.size, view.size]
    image = F.resized_crop(image, d.top, d.left, d.height, d.width, size, InterpolationMode.BICUBIC, antialias=True)
    return F.hflip(image) if d.flip else image


def recolor(image: Image.Image, color: Color) -> Image.Image:
    """The reference's colour work: torchvision's jitter on PIL images, PIL's grayscale, blur and solarize."""
    adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for op in color.order:
        image = adjust[op](image, color.factors[op])
    if color.gray:
        image = F.rgb_to_grayscale(image, num_output_channels=3)
    if color.sigma:
        image = image.filter(ImageFilter.GaussianBlur(radius=color.sigma))
    if color.solarize:
        image = ImageOps.solarize(image, SOLARIZE_THRESHOLD)
    return image


def render(image: Image.Image, view: View, d: Draw, out: np.ndarray) -> None:
    """Write the reference view of an RGB image into `out`, uint8 [size, size, 3]."""
    out[:] = np.asarray(recolor(crop(image, view, d), d.color))
