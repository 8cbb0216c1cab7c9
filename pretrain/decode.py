"""Encoded bytes to RGB images, every kind of file the same way: grayscale, CMYK, palette, 16-bit, rotated by EXIF."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps


class CorruptImage(Exception):
    """An image that cannot be decoded; the message says why."""


def decode_reference(data: bytes) -> Image.Image:
    """The image as PIL reads it, upright, RGB. Raises CorruptImage."""
    if not data:
        raise CorruptImage("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is no reason to speak up once per epoch
            image = Image.open(io.BytesIO(data))
            image.load()
            image = ImageOps.exif_transpose(image)
            return _to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  decoders raise whatever their format's parser stumbles over
        raise CorruptImage(" ".join(f"{type(error).__name__}: {error}".split())[:160]) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # PIL's own conversion clips at 255
        scale = 257 if image.mode.startswith("I") else 1  # 16-bit PNG and TIFF: 65535 is white
        values = np.asarray(image, dtype=np.float64) / scale
        return Image.fromarray(np.clip(values + 0.5, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
