"""Encoded bytes to RGB images, every kind of file the same way: grayscale, CMYK, palette, 16-bit, rotated by EXIF."""

from __future__ import annotations

import io
import warnings
import zlib

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")  # one of PIL's others runs programs
MAX_SCANS = 100  # of a JPEG: each goes over the whole picture again, however few bytes it takes

DecodedImage = PILImage.Image | np.ndarray  # as PIL has it, or uint8 [height, width, 3]


class CorruptImage(Exception):
    """An image that cannot be decoded; the message says why."""


def decode_reference(data: bytes) -> PILImage.Image:
    """The image as PIL reads it, upright, RGB. Raises CorruptImage, also beyond PIL's limit of 89 million pixels."""
    if not data:
        raise CorruptImage("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is no reason to speak up once per epoch
            warnings.simplefilter("error", PILImage.DecompressionBombWarning)
            image = PILImage.open(io.BytesIO(data), formats=FORMATS)
            jpeg = image.format in ("JPEG", "MPO") or image.info.get("compression") in ("jpeg", "tiff_jpeg")
            if jpeg and _scans(data) > MAX_SCANS:
                raise CorruptImage(f"a JPEG of more than {MAX_SCANS} scans")
            if image.format == "PNG" and not _png_intact(data):
                raise CorruptImage("the checksum of its pixels is wrong")
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except (MemoryError, CorruptImage):
        raise
    except Exception as error:  # noqa: BLE001  decoders raise whatever their format's parser stumbles over
        raise CorruptImage(" ".join(f"{type(error).__name__}: {error}".split())[:160]) from None


def _to_rgb(image: PILImage.Image) -> PILImage.Image:
    if image.mode.startswith("I") or image.mode == "F":  # PIL's own conversion clips at 255
        values = np.array(image, dtype=np.float32)
        values /= 257 if image.mode.startswith("I") else 1  # 16-bit PNG and TIFF: 65535 is white
        values += 0.5
        return PILImage.fromarray(np.clip(values, 0, 255, out=values).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _png_intact(data: bytes) -> bool:
    """Whether the checksums of a PNG's pixels are right, which PIL doesn't compare."""
    at = 8  # behind the signature
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at:at + 4])
        if data[at + 4:at + 8] == b"IDAT" and zlib.crc32(data[at + 4:end]) != int.from_bytes(data[end:end + 4]):
            return False
        at = end + 4
    return True


def _scans(data: bytes) -> int:
    """How many scans a JPEG has: the two bytes that start one do not occur inside them."""
    return data.count(b"\xff\xda")


def image_size(image: DecodedImage) -> tuple[int, int]:
    """(height, width) in pixels."""
    return image.shape[:2] if isinstance(image, np.ndarray) else image.size[::-1]


def plain_jpeg(data: bytes) -> bool:
    """Whether the bytes are a complete JPEG of one or three 8-bit components that any decoder reads alike.

    Not so: CMYK, a missing end (OpenCV would fill up with gray where PIL raises), an orientation given in XMP only
    (PIL minds it, OpenCV does not), sizes and numbers of scans that the reference refuses, and anything between the
    segments, behind which another size could hide. Damage inside the stream is met by both with what libjpeg makes of
    it.
    """
    if not (data.startswith(b"\xff\xd8\xff") and data.endswith(b"\xff\xd9")):
        return False
    at, end, components, progressive = 2, len(data), 0, False
    while at + 9 < end and data[at] == 0xFF:
        marker, length = data[at + 1], (data[at + 2] << 8) + data[at + 3]
        if marker == 0xDA:  # start of the first scan; others follow unless it holds all components
            single = not progressive and data[at + 4] == components
            return components in (1, 3) and (single or _scans(data) <= MAX_SCANS)
        if not 0xC0 <= marker <= 0xFE or 0xD0 <= marker <= 0xD9 or length < 2:  # no segment with a length
            return False
        if marker == 0xE1 and b"tiff:Orientation" in data[at:at + 2 + length]:
            return False
        if marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            pixels = ((data[at + 5] << 8) + data[at + 6]) * ((data[at + 7] << 8) + data[at + 8])
            if data[at + 4] != 8 or not 0 < pixels <= PILImage.MAX_IMAGE_PIXELS:
                return False
            components, progressive = data[at + 9], marker > 0xC1
        at += 2 + length
    return False
