"""Mutated images through both decoders and the evaluation's transform: an error that says why, or a right picture."""

from __future__ import annotations

import functools
import io
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from pretrain.data.decode import FULL_RANGE, CorruptImage, decode_reference
from pretrain.data.fast_views import decode_fast
from pretrain.data.loading import center_crop
from tests.convert.mutations import flipped, inserted, overwritten, swapped_blocks, truncated
from tests.faults.sandbox import attempts, row_of
from tests.faults.table import Row
from tests.pretrain.data.photos import photos

BLIND = (flipped, truncated, swapped_blocks, overwritten, inserted)  # know no format
MAX_PIXELS = Image.MAX_IMAGE_PIXELS
CROP = center_crop(256, 224)


def _saved(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@functools.cache
def originals() -> dict[str, bytes]:
    """One small valid file of every flavour of the four formats."""
    photo = photos()[0].resize((100, 75))
    deep = Image.fromarray(np.random.default_rng(0).integers(0, 65535, (75, 100), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [photo.rotate(90), photo.rotate(180)]}
    return {
        "plain.jpg": _saved(photo, "JPEG", quality=90),
        "progressive.jpg": _saved(photo, "JPEG", progressive=True),
        "gray.jpg": _saved(photo.convert("L"), "JPEG"),
        "cmyk.jpg": _saved(photo.convert("CMYK"), "JPEG"),
        "turned.jpg": _saved(photo, "JPEG", exif=exif),
        "rgb.png": _saved(photo, "PNG"),
        "deep.png": _saved(deep, "PNG"),
        "palette.png": _saved(photo.quantize(32), "PNG", transparency=bytes(range(32))),
        "moving.png": _saved(photo, "PNG", **frames),
        "lossy.webp": _saved(photo, "WEBP", quality=80, exif=exif),
        "lossless.webp": _saved(photo.convert("RGBA"), "WEBP", lossless=True),
        "moving.webp": _saved(photo, "WEBP", **frames),
        "raw.tif": _saved(photo, "TIFF"),
        "lzw.tif": _saved(photo, "TIFF", compression="tiff_lzw"),
        "deflate.tif": _saved(photo, "TIFF", compression="tiff_deflate", tiffinfo={0x0112: 6}),
        "jpeg.tif": _saved(photo, "TIFF", compression="jpeg"),
        "deep.tif": _saved(deep, "TIFF"),
        "pages.tif": _saved(photo, "TIFF", **frames),
    }


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """(type, content) of every chunk."""
    found, at = [], 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4])
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG of these chunks, with right checksums."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def jpeg_segments(data: bytes) -> list[bytes]:
    """The segments up to the first scan, and the rest."""
    found, at = [data[:2]], 2
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        found.append(data[at:end])
        at = end
    return [*found, data[at:]]


def riff_chunks(data: bytes) -> list[bytes]:
    """WebP's chunks, their headers included."""
    found, at = [], 12
    while at < len(data):
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        found.append(data[at : end + end % 2])
        at = end + end % 2
    return found


def riff(chunks: list[bytes]) -> bytes:
    body = b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _shuffled(parts: list, chance: random.Random) -> list:
    """Two parts exchanged, one left out, one doubled, or one moved."""
    parts = list(parts)
    one, other = chance.randrange(len(parts)), chance.randrange(len(parts))
    kind = chance.randrange(4)
    if kind == 0:
        parts[one], parts[other] = parts[other], parts[one]
    elif kind == 1:
        del parts[one]
    elif kind == 2:
        parts.insert(other, parts[one])
    else:
        parts.insert(other, parts.pop(one))
    return parts


def swapped_chunks(data: bytes, chance: random.Random) -> bytes:
    """The format's own units in a wrong order, missing or twice, each of them intact."""
    if data.startswith(b"\x89PNG"):
        return png(_shuffled(png_chunks(data), chance))
    if data.startswith(b"\xff\xd8"):
        first, *rest = jpeg_segments(data)
        return first + b"".join(_shuffled(rest, chance))
    if data.startswith(b"RIFF"):
        return riff(_shuffled(riff_chunks(data), chance))
    at, entries = _tiff_entries(data)
    return (
        data[:at]
        + b"".join(_shuffled(entries, chance)[: len(entries)]).ljust(12 * len(entries), b"\0")
        + (data[at + 12 * len(entries) :])
    )


def _tiff_entries(data: bytes) -> tuple[int, list[bytes]]:
    """Where the first directory's entries begin, and they."""
    at = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[at : at + 2], "little")
    return at + 2, [data[k : k + 12] for k in range(at + 2, at + 2 + 12 * count, 12)]


def absurd_header(data: bytes, chance: random.Random) -> bytes:
    """Sides, depths, counts and offsets that lie, in a file that is otherwise in order."""
    sides = [chance.choice((0, 1, 2, 255, 9999, 16383, 65500, 65535)) for _ in range(2)]
    if data.startswith(b"\x89PNG"):
        chunks = png_chunks(data)
        big = [chance.choice((side, side, 2**31 - 1, 2**32 - 1)) for side in sides]
        depth, color = chunks[0][1][8:10]
        if chance.random() < 0.3:
            depth, color = chance.choice((1, 3, 8, 16, 255)), chance.choice((0, 2, 3, 4, 6, 9))
        chunks[0] = b"IHDR", struct.pack(">II", *big) + bytes((depth, color)) + chunks[0][1][10:]
        return png(chunks)
    if data.startswith(b"\xff\xd8"):
        parts = jpeg_segments(data)
        for k, part in enumerate(parts):
            if part[1] in (0xC0, 0xC1, 0xC2):
                parts[k] = part[:5] + struct.pack(">HH", *sides) + part[9:]
        return b"".join(parts)
    if data.startswith(b"RIFF"):
        at = chance.choice((12, 16, 20, 24)) + chance.randrange(12)
        return data[:at] + chance.choice((b"\0\0\0", b"\xff\xff\xff", b"\xff\x3f\xff")) + data[at + 3 :]
    at, entries = _tiff_entries(data)
    k = chance.randrange(len(entries))
    value = chance.choice((0, 1, 2**16 - 1, 2**31 - 1, 2**32 - 1, chance.randrange(2**16)))
    count = chance.choice((int.from_bytes(entries[k][4:8], "little"), 0, 2**28, 2**32 - 1))
    changed = entries[k][:4] + struct.pack("<II", count, value)
    return data[: at + 12 * k] + changed + data[at + 12 * (k + 1) :]


def bombs(short: bool) -> dict[str, bytes]:
    """Small files that claim, or really are, images far too large, or that take far too long.

    Those "at the limit" are let through, and show what the limit costs.
    """

    def blank(width: int, height: int) -> bytes:
        packer, row = zlib.compressobj(9), bytes(1 + -(-width // 8))
        rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
        return png([(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")])

    solid = _saved(Image.new("RGBA", (64, 64), (9, 9, 9, 255)), "WEBP", lossless=True)
    at = solid.index(b"VP8L") + 9
    bits = int.from_bytes(solid[at : at + 4], "little")
    vast = solid[:at] + ((bits & ~0xFFFFFFF) | 0xFFFFFFF).to_bytes(4, "little") + solid[at + 4 :]
    baseline = jpeg_segments(originals()["plain.jpg"])
    frame = next(k for k, part in enumerate(baseline) if part[1] == 0xC0)
    huge = baseline[frame][:5] + struct.pack(">HH", 65500, 65500) + baseline[frame][9:]
    large = b"".join([*baseline[:frame], huge, *baseline[frame + 1 :]])
    decoy = baseline[frame]  # stands where a parser that takes a fill byte for a marker looks for the next one
    hidden = huge[:1] + b"\xff" + huge[1:]
    body = b"".join([*baseline[:frame], hidden, *baseline[frame + 1 :]])
    place = sum(map(len, baseline[:frame])) + 2 + int.from_bytes(hidden[2:4])
    body = body[:-2].ljust(place, b"\0") + decoy + b"\xff\xd9"
    slow = jpeg_segments(originals()["progressive.jpg"])
    tall = [part[:5] + struct.pack(">HH", 60000, 1400) + part[9:] if part[1] == 0xC2 else part for part in slow]
    scan = slow[-1][: slow[-1].index(b"\xff\xc4")] if b"\xff\xc4" in slow[-1] else slow[-1][:60]
    chunks = png_chunks(originals()["rgb.png"])

    def level(kind: type) -> bytes:
        return _saved(Image.fromarray(np.zeros((9400, 9400), kind)), "TIFF", compression="tiff_deflate")

    return {
        "square.png": blank(20_000, 20_000),
        "just too large.png": blank(10_000, 9_000),
        "a line.png": blank(65_000, 1),
        "a column.png": blank(1, 65_000),
        "vast.webp": vast,
        "large.jpg": large,
        "hidden.jpg": body,
        "scans.jpg": b"".join(tall[:-1]) + scan * 20_000 + b"\xff\xd9",
        **(
            {}
            if short
            else {
                "at the limit.png": blank(9_400, 9_500),
                "scans at the limit.jpg": b"".join(tall[:-1]) + scan * 90 + b"\xff\xd9",
                "deep at the limit.tif": level(np.uint16),
                "floats at the limit.tif": level(np.float32),
            }
        ),
        "text.png": png([chunks[0], (b"zTXt", b"x\0\0" + zlib.compress(bytes(10**8), 9)), *chunks[1:]]),
        "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\n(x) run\n%%EOF\n",
    }


MUTATIONS = (*BLIND, swapped_chunks, absurd_header)


def rows(size: str, place: Path) -> Iterator[Row]:
    files, count = originals(), 5000 if size == "long" else 150
    names = list(files)

    def mutated(number: int) -> str:
        name, chance = names[number % len(names)], random.Random(number)
        change = chance.choice(MUTATIONS)
        return decoded(change(files[name], chance), files[name], change.__name__)

    outcomes = attempts(mutated, range(count), place, seconds=20, gigabytes=2)
    yield row_of(
        "mutated images (JPEG, PNG, WebP, TIFF), both decoders and the evaluation's crop",
        outcomes,
        lambda number: names[number % len(names)],
    )
    large = bombs(size == "short")
    kinds = list(large)
    outcomes = attempts(lambda number: decoded(large[kinds[number]]), range(len(kinds)), place, seconds=30, gigabytes=2)
    yield row_of("decompression bombs, endless scans, lines, scripts as images", outcomes, kinds.__getitem__)


def decoded(data: bytes, original: bytes | None = None, change: str = "") -> str:
    """Decode by both decoders and crop; returns how it ended. AssertionError where a picture is wrong."""
    try:
        image = decode_fast(data, FULL_RANGE)
    except CorruptImage as error:
        assert str(error) and "\n" not in str(error)
        try:
            decode_reference(data, FULL_RANGE)
        except CorruptImage:
            return "refused"
        raise AssertionError("the fast decoder refuses what the reference reads") from None
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size <= 3 * MAX_PIXELS
    crop = np.empty((224, 224, 3), np.uint8)
    CROP(image, 0, crop)
    try:
        same = image.size > 10**7 or np.array_equal(np.asarray(decode_reference(data, FULL_RANGE)), image)
    except CorruptImage as error:  # libjpeg gives up halfway; OpenCV returns the part it has
        assert data.startswith(b"\xff\xd8") and "broken data stream" in str(error), f"only the reference says {error}"
        return "part of a picture, no checksum"
    assert same, "the decoders differ"
    if original is None or np.array_equal(image, decode_fast(original, FULL_RANGE)):
        return "right"
    assert not original.startswith(b"\x89PNG") or change in ("absurd_header", "swapped_chunks"), "another picture"
    return "another picture, no checksum"
