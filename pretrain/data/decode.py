"""Encoded bytes to RGB images, every kind of file the same way: grayscale, CMYK, palette, 16-bit, rotated by EXIF.

Alpha is left out, as PIL and torchvision do. What cannot be RGB of 8 bits without a guess is refused: samples of more
bits of which the file does not say how many are used, and channels that are neither colour nor alpha.
"""

from __future__ import annotations

import io
import math
import os
import re
import warnings
import zlib
from typing import Any

import numpy as np
from PIL import Image as PILImage, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")  # one of PIL's others runs programs
MAX_SCANS = 100  # of a JPEG: each goes over the whole picture again, however few bytes it takes

DEEP_MODES = ("I;16", "I;16B", "I;16L", "I", "F")  # of one channel, which PIL reads as it is
FULL_RANGE = 65535.0  # of 16 bits
# tags of TIFF and EXIF
BITS_PER_SAMPLE, ORIENTATION, SAMPLES_PER_PIXEL, MAX_SAMPLE_VALUE, EXTRA_SAMPLES = 258, 274, 277, 281, 338
UNSPECIFIED = 0  # extra sample

EXTENSIONS = {
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".mpo",
    ".png",
    ".bmp",
    ".gif",
    ".webp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".jp2",
    ".avif",
}
# How the kinds of image that the decoders accept begin, each with an extension of theirs.
SIGNATURES = {
    extension: re.compile(start, re.DOTALL)
    for extension, start in {
        ".jpg": rb"\xff\xd8\xff",
        ".png": rb"\x89PNG\r\n\x1a\n",
        ".gif": rb"GIF8[79]a",
        ".webp": rb"RIFF....WEBP",
        ".bmp": rb"BM.{12}[\x0c\x10(48@lm|]\0\0\0",
        ".tif": rb"II[*+]\0|MM\0[*+]",
        ".ppm": rb"P[1-6]\s+[#\d]",
        ".jp2": rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n",
        ".avif": rb"....ftyp(?:avif|avis|mif1|msf1)",
    }.items()
}
HEAD = 32  # bytes in which all of them show

DecodedImage = PILImage.Image | np.ndarray  # as PIL has it, or uint8 [height, width, 3]


def is_image(name: str) -> bool:
    """Whether a file is an image by its name. One that is not may be one by its content (`extension_of`)."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def extension_of(head: bytes) -> str:
    """The extension that fits an image which begins with these bytes, at least HEAD of them; "" for no image."""
    return next((extension for extension, start in SIGNATURES.items() if start.match(head)), "")


class CorruptImage(Exception):
    """An image that cannot be decoded; the message says why."""


class UnclearImage(CorruptImage):
    """An image that cannot be RGB of 8 bits a channel without a guess; the message says what it has."""


def decode_reference(data: bytes, max_value: float = 0.0) -> PILImage.Image:
    """The image as PIL reads it, upright, RGB.

    max_value: the value that is white in images of 16 bits a channel or of floats, whose files do not say; 0: refuse
    them. A range that a file records (a maximum, or fewer bits than 16) goes before it.
    Raises CorruptImage, also beyond PIL's limit of 89 million pixels; UnclearImage for what cannot be RGB of 8 bits
    without a guess, and for values outside 0 to `max_value`.
    """
    if not data:
        raise CorruptImage("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unusual metadata would warn in every epoch
            warnings.simplefilter("error", PILImage.DecompressionBombWarning)
            image: PILImage.Image = PILImage.open(io.BytesIO(data), formats=FORMATS)
            white = _white(image, data, max_value)
            jpeg = image.format in ("JPEG", "MPO") or image.info.get("compression") in ("jpeg", "tiff_jpeg")
            if jpeg and _scans(data) > MAX_SCANS:
                raise CorruptImage(f"a JPEG of more than {MAX_SCANS} scans")
            if image.format == "PNG" and not _png_intact(data):
                raise CorruptImage("the checksum of its pixels is wrong")
            if white and image.mode not in DEEP_MODES:  # PIL would keep the upper 8 bits
                image = _scaled_colors(image, data, white)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image, white)
    except (MemoryError, CorruptImage):
        raise
    except Exception as error:  # noqa: BLE001  decoders raise whatever their format's parser stumbles over
        raise CorruptImage(" ".join(f"{type(error).__name__}: {error}".split())[:160]) from None


def check_range(data: bytes, max_value: float) -> None:
    """Raise UnclearImage where `decode_reference` would do so by the header; other images pass, also broken ones."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _white(PILImage.open(io.BytesIO(data), formats=FORMATS), data, max_value)
    except UnclearImage:
        raise
    except Exception:  # noqa: BLE001  as in `decode_reference`, which will say so
        pass


def _white(image: Any, data: bytes, max_value: float) -> float:
    """The value that is white where an opened image has more than 8 bits a channel; 0 where PIL sees to it itself.

    PIL brings JPEG 2000 and PPM of fewer bits than 16 to their full range. Raises UnclearImage.
    """
    recorded, bits = 0.0, 8
    if image.format == "PNG":
        bits = data[data.index(b"IHDR") + 12]
    elif image.format == "TIFF":
        tags = image.tag_v2
        bits, extra = int(np.max(tags.get(BITS_PER_SAMPLE, 1))), np.atleast_1d(tags.get(EXTRA_SAMPLES, ()))
        channels = int(tags.get(SAMPLES_PER_PIXEL, 1))
        if channels > 5 or (extra == UNSPECIFIED).any() or len(extra) > 1:
            raise UnclearImage(f"{channels} channels, some of them neither colour nor alpha")
        if bits > 8 and MAX_SAMPLE_VALUE in tags:
            recorded = float(np.max(tags[MAX_SAMPLE_VALUE]))
        elif 8 < bits < 16:
            recorded = 2.0**bits - 1
    elif image.format == "JPEG2000":
        bits = 1 + (data[data.index(b"\xff\x4f\xff\x51") + 42] & 0x7F)  # precision of the first component
    elif image.mode == "F":  # a portable float map
        bits = 32
    elif image.format == "PPM":
        args = image.tile[0].args  # of PIL's decoder: a raw mode, or a mode and the largest value
        bits = 16 if args == "I;16B" or args[-1] == FULL_RANGE else 8
    if recorded or bits < 16:
        return recorded
    if not max_value:
        raise UnclearImage(f"{bits} bits a channel, and the file does not say which value is white")
    return max_value


def _scaled_colors(image: PILImage.Image, data: bytes, white: float) -> PILImage.Image:
    """An opened image of several 16-bit channels in 8 bits, with the orientation that it had."""
    import cv2

    values = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise CorruptImage("its pixels cannot be decoded")
    if values.dtype != np.uint16 or values.ndim != 3 or values.shape[2] < 3:
        raise UnclearImage(f"{image.mode} of {values.dtype}, which is not supported")
    scaled = PILImage.fromarray(_scaled(values[..., 2::-1], white))
    scaled.getexif()[ORIENTATION] = image.getexif().get(ORIENTATION, 1)
    return scaled


def _scaled(values: np.ndarray, white: float) -> np.ndarray:
    """Values 0 to `white` as uint8. Raises UnclearImage for others."""
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= white):  # also where they are not numbers
        raise UnclearImage(f"values from {low:g} to {high:g}, where 0 is black and {white:g} white")
    if values.dtype == np.uint16:
        return (np.arange(high + 1) * (255 / white) + 0.5).astype(np.uint8)[values]
    values = values.astype(np.float32)
    values *= 255 / white
    values += 0.5
    return values.astype(np.uint8)


def _to_rgb(image: PILImage.Image, white: float) -> PILImage.Image:
    if image.mode in DEEP_MODES:  # PIL's own conversion clips at 255
        return PILImage.fromarray(_scaled(np.asarray(image), white or FULL_RANGE)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _png_intact(data: bytes) -> bool:
    """Whether the checksums of a PNG's pixels are right, which PIL doesn't compare."""
    at = 8  # behind the signature
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT" and zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4]):
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
        if marker == 0xE1 and b"tiff:Orientation" in data[at : at + 2 + length]:
            return False
        if marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            pixels = ((data[at + 5] << 8) + data[at + 6]) * ((data[at + 7] << 8) + data[at + 8])
            if data[at + 4] != 8 or not 0 < pixels <= (PILImage.MAX_IMAGE_PIXELS or math.inf):
                return False
            components, progressive = data[at + 9], marker > 0xC1
        at += 2 + length
    return False
