"""The views of `views.py`, the same distribution several times faster on one core.

Decoding by OpenCV's libjpeg-turbo, cropping by torch's antialiased bicubic kernel for bytes (a port of PIL's), colour
by OpenCV. Brightness, contrast and saturation are affine, y = p x + q gray(x) + r, so neighbours fold into one 3 x 4
transform as long as none but the last can leave [0, 255]; hue goes through OpenCV's 8-bit HSV; PIL's blur, three
box filters, is one separable filter with their composed kernel. Arrays are uint8 [height, width, 3], RGB.
"""

from __future__ import annotations

import functools
import math

import cv2
import numpy as np
import torch

from pretrain.data.decode import decode_reference, plain_jpeg
from pretrain.data.views import BRIGHTNESS, CONTRAST, HUE, SATURATION, Color, Draw, View
from sslight.core import compat

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL's and OpenCV's grayscale
TRUNCATION = 0.5  # PIL's blending cuts fractions off: half a level on average
BLUR_PASSES = 3
BLUR_STEPS = 64  # steps per pixel in which the blur's radius is rounded, to keep its kernels
_RESIZE = compat.bicubic_into()
KERNEL_UNIT = 256  # OpenCV's 8-bit filters count in 1/256


def decode_fast(data: bytes, max_value: float = 0.0) -> np.ndarray:
    """The image upright, RGB, as `decode_reference` has it, through which goes all but an intact, plain JPEG."""
    if plain_jpeg(data):
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR_RGB)
        if image is not None:
            return image
    return np.array(decode_reference(data, max_value))  # writable, as torch expects it


def render_fast(image: np.ndarray, view: View, d: Draw, out: np.ndarray) -> None:
    """Write one view into `out`, uint8 [size, size, 3], contiguous."""
    part = image[d.top : d.top + d.height, d.left : d.left + d.width]
    # the kernel expects its input contiguous: a flip costs no more than that copy, and all that follows is symmetric
    resize_fast(cv2.flip(part, 1) if d.flip else np.ascontiguousarray(part), out)
    done = recolor_fast(out, d.color, _scratch(view.size))
    if done.ndim == 2:
        cv2.cvtColor(done, cv2.COLOR_GRAY2RGB, dst=out)
    elif done is not out:
        np.copyto(out, done)


def resize_fast(image: np.ndarray, out: np.ndarray) -> None:
    """Antialiased bicubic resizing of an image of any size into `out`, both contiguous."""
    _RESIZE(_as_batch(image), out.shape[:2], False, None, None, out=_as_batch(out))


def _as_batch(image: np.ndarray) -> torch.Tensor:
    """A view [1, 3, height, width] whose strides torch takes for channels last; the kernel is slow on others."""
    height, width, channels = image.shape
    row = width * channels
    return torch.from_numpy(image).as_strided((1, channels, height, width), (height * row, 1, row, channels))


@functools.lru_cache(maxsize=16)
def _scratch(size: int) -> np.ndarray:
    return np.empty((size, size, 3), dtype=np.uint8)


def recolor_fast(image: np.ndarray, color: Color, scratch: np.ndarray) -> np.ndarray:
    """Jitter, grayscale, blur and solarize. Overwrites `image` and `scratch`; the result is one of them, or, if gray,
    an array of its own, [height, width]."""
    spare: np.ndarray | None = scratch
    if color.order:
        image, spare = _jitter(image, color, scratch)
    if color.gray:
        image, spare = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None
    if color.sigma:
        kernel = blur_kernel(round(color.sigma * BLUR_STEPS))
        blurred = cv2.sepFilter2D(image, -1, kernel, kernel, dst=spare, borderType=cv2.BORDER_REPLICATE)
        image, spare = blurred, image
    if color.solarize:
        image = cv2.min(image, cv2.bitwise_not(image, dst=spare), dst=image)  # x from 128 on becomes 255 - x
    return image


def _jitter(image: np.ndarray, color: Color, scratch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The four operations in their order, affine neighbours folded: the pending one is y = p x + q gray(x) + r."""
    p, q, r, clips, pending = 1.0, 0.0, 0.0, False, False
    for op in color.order:
        f = color.factors[op]
        if pending and (clips or op == HUE):
            image, scratch = _affine(image, p, q, r, scratch), image
            p, q, r, clips, pending = 1.0, 0.0, 0.0, False, False
        if op == HUE:
            image, scratch = _shift_hue(image, f, scratch)
            continue
        if op == CONTRAST:
            red, green, blue, _ = cv2.mean(image)
            gray = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
            p, q, r = f * p, f * q, f * r + (1 - f) * int((p + q) * gray + r + 0.5)
        elif op == BRIGHTNESS:
            p, q, r = f * p, f * q, f * r
        elif op == SATURATION:
            p, q = f * p, f * q + (1 - f) * (p + q)
        r -= TRUNCATION
        clips, pending = clips or f > 1, True
    return (_affine(image, p, q, r, scratch), image) if pending else (image, scratch)


def _affine(image: np.ndarray, p: float, q: float, r: float, out: np.ndarray) -> np.ndarray:
    a, b, c = q * LUMA[0], q * LUMA[1], q * LUMA[2]
    r += 1e-3  # whole numbers are to survive the rounding, which is to even
    matrix = np.array(((p + a, b, c, r), (a, p + b, c, r), (a, b, p + c, r)), dtype=np.float32)
    return cv2.transform(image, matrix, dst=out)


def _shift_hue(image: np.ndarray, turns: float, scratch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shift = int(turns * 255)  # torchvision's rounding
    if not shift:
        return image, scratch
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL, dst=scratch)
    rows = hsv.reshape(hsv.shape[0], -1)
    np.add(rows, _hue_row(shift % 256, hsv.shape[1]), out=rows)  # bytes wrap around, as hue does
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL, dst=image), hsv


@functools.lru_cache(maxsize=1024)
def _hue_row(shift: int, width: int) -> np.ndarray:
    row = np.zeros((width, 3), dtype=np.uint8)
    row[:, 0] = shift
    return row.reshape(-1)


@functools.lru_cache(maxsize=1024)
def blur_kernel(steps: int) -> np.ndarray:
    """PIL's Gaussian blur of radius `steps` / BLUR_STEPS as one kernel of an odd length, in units of 1/256, sum 1.

    PIL approximates the Gaussian by three box filters of a fractional width (Gwosdek et al., 2011). Rounding the
    weights here, with their sum kept, is exact for OpenCV; its own rounding would change the brightness.
    """
    variance = (steps / BLUR_STEPS) ** 2 / BLUR_PASSES
    whole = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    edge = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    box = np.array([edge, *[1.0] * (2 * whole + 1), edge]) / (2 * whole + 1 + 2 * edge)
    kernel = np.convolve(np.convolve(box, box), box)
    half = np.round(kernel[len(kernel) // 2 + 1 :] * KERNEL_UNIT).astype(int)
    half = half[: np.count_nonzero(half)]  # the weights fall off from the centre
    units = np.concatenate([half[::-1], [KERNEL_UNIT - 2 * half.sum()], half])
    return (units / KERNEL_UNIT).astype(np.float32)
