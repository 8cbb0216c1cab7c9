"""Every kind of image file becomes the same upright RGB picture, by either decoder; broken ones say why."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from pretrain.data.decode import CorruptImage, UnclearImage, check_range, decode_reference, plain_jpeg
from pretrain.data.fast_views import decode_fast
from tests.pretrain.data.photos import jpeg, photos


def both(data: bytes, max_value: float = 0.0) -> np.ndarray:
    """The decoded image, after checking that both decoders give exactly the same."""
    check_range(data, max_value)
    reference, fast = np.asarray(decode_reference(data, max_value)), decode_fast(data, max_value)
    assert fast.dtype == np.uint8 and fast.ndim == 3 and fast.shape[2] == 3
    np.testing.assert_array_equal(fast, reference)
    return fast


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def near(a: np.ndarray, b: Image.Image, levels: float) -> None:
    assert np.abs(a.astype(float) - np.asarray(b.convert("RGB"))).mean() <= levels


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 2, "quality": 40}])
def test_jpeg(options):
    data = jpeg(photos()[0], **{"quality": 92, **options})
    assert plain_jpeg(data)
    near(both(data), photos()[0], 12)


def test_grayscale_jpeg():
    data = jpeg(photos()[0].convert("L"))
    assert plain_jpeg(data)
    near(both(data), photos()[0].convert("L"), 4)


def test_cmyk_jpeg():
    data = jpeg(photos()[0].convert("CMYK"))
    assert not plain_jpeg(data)
    near(both(data), photos()[0], 6)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_png_modes(mode):
    image = photos()[1].convert(mode)
    near(both(saved(image, "PNG")), image, 0)


def test_palette_with_transparency():
    image = photos()[1].quantize(32)
    near(both(saved(image, "PNG", transparency=bytes(range(32)))), image, 1)


def ramp(white: int) -> np.ndarray:
    """uint16 [64, 64], every level from black to white, or evenly spread ones."""
    return np.linspace(0, white, 64 * 64).round().reshape(64, 64).astype(np.uint16)


def encoded(values: np.ndarray, extension: str) -> bytes:
    """By OpenCV, whose encoders take 16 bits of several channels."""
    return cv2.imencode(extension, values)[1].tobytes()


def refuse(data: bytes, words: str, max_value: float = 0.0) -> None:
    for decode in (decode_reference, decode_fast):
        with pytest.raises(UnclearImage, match=words):
            decode(data, max_value)


@pytest.mark.parametrize("white", [4095, 65535])
@pytest.mark.parametrize("extension", [".png", ".tif", ".jp2", ".pgm"])
def test_16_bits_are_scaled_by_the_setting_and_refused_without(extension, white):
    """A picture of 12 bits in 16 keeps all of its 256 levels, to half a level, gray or in colours that differ."""
    values = ramp(white)
    colors = np.stack([values, values[::-1], values.T], axis=-1)  # BGR
    cases = [(values, values[..., None])] + [(colors, colors[..., ::-1])] * (extension != ".pgm")
    for content, rgb in cases:
        data = encoded(content, extension)
        refuse(data, "^16 bits a channel, and the file does not say which value is white$")
        with pytest.raises(UnclearImage):
            check_range(data, 0.0)
        decoded = both(data, white)
        assert len(np.unique(decoded[..., 0])) == 256
        np.testing.assert_allclose(decoded, np.broadcast_to(rgb * (255 / white), decoded.shape), atol=0.501)
        if white == 65535:
            refuse(data, "^values from 0 to 65535, where 0 is black and 4095 white$", 4095.0)


def test_alpha_of_16_bits_is_left_out_as_that_of_8(tmp_path):
    values = np.dstack([ramp(4095)] * 3 + [np.zeros((64, 64), np.uint16)])
    np.testing.assert_allclose(both(encoded(values, ".png"), 4095)[..., 0], ramp(4095) * (255 / 4095), atol=0.501)


def test_a_range_that_the_file_records_needs_no_setting():
    tagged = saved(Image.fromarray(ramp(4095)), "TIFF", tiffinfo={281: 4095})
    portable = b"P5\n64 64\n4095\n" + ramp(4095).astype(">u2").tobytes()
    colors = b"P6\n64 64\n4095\n" + np.dstack([ramp(4095)] * 3).astype(">u2").tobytes()
    for data in (tagged, portable, colors):
        for max_value in (0.0, 65535.0):
            decoded = both(data, max_value)
            np.testing.assert_allclose(decoded[..., 1], ramp(4095) * (255 / 4095), atol=0.51)


def test_floats_need_the_value_of_white():
    values = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    data = saved(Image.fromarray(values), "TIFF")
    refuse(data, "^32 bits a channel")
    np.testing.assert_allclose(both(data, 1.0)[..., 0], values * 255, atol=0.501)
    for odd in (-1.0, np.nan, 2.0):
        refuse(saved(Image.fromarray(values * odd), "TIFF"), "^values from ", 1.0)


def test_orientation_of_16_bits_in_colour():
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.dstack([ramp(4095)] * 3)[:40]
    data = encoded(values, ".png")
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    data = data[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]
    np.testing.assert_allclose(both(data, 4095)[..., 0], np.rot90(ramp(4095)[:40], -1) * (255 / 4095), atol=0.501)


def test_channels_that_are_neither_colour_nor_alpha_are_refused():
    """A fourth band that the file calls unspecified; the same file that calls it alpha is read."""
    image = photos()[1].convert("RGBA")
    near(both(saved(image, "TIFF")), image, 0)
    data = saved(image, "TIFF")
    entry = struct.pack("<HHI", 338, 3, 1)
    at = data.index(entry) + len(entry)
    refuse(data[:at] + struct.pack("<H", 0) + data[at + 2 :], "^4 channels, some of them neither colour nor alpha$")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(photos()[0], quality=95, exif=exif)
    image = both(data)
    assert image.shape[:2] == ((188, 250) if orientation < 5 else (250, 188))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(image, np.asarray(upright))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2)])
def test_tiny(size):
    image = photos()[0].resize(size)
    assert both(jpeg(image)).shape == (*size[::-1], 3)
    near(both(saved(image, "PNG")), image, 0)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"<!DOCTYPE html><html></html>",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n" + bytes(40),
        jpeg(photos()[0])[:3000],
        saved(photos()[0], "PNG")[:5000],
        jpeg(photos()[0])[:400] + bytes(3000),
        jpeg(photos()[0])[:300] + b"\xff\xd9",
    ],
    ids=lambda data: f"{len(data)} bytes",
)
def test_corrupt_files_raise_with_a_reason(data):
    for decode in (decode_reference, decode_fast):
        with pytest.raises(CorruptImage, match="."):
            decode(data)


def test_random_damage_never_escapes_as_another_error():
    """Both decoders give the same image or raise CorruptImage. The one exception, seen in 0.5% of such files: a stream
    that libjpeg gives up halfway, of which OpenCV returns the part it has."""
    rng, good, trials = np.random.default_rng(0), jpeg(photos()[0].resize((60, 45))), 400
    corrupt = partial = 0
    for _ in range(trials):
        data = bytearray(good[: rng.integers(2, len(good) + 1)] if rng.random() < 0.3 else good)
        for place in rng.integers(0, len(data), rng.integers(0, 6)):
            data[place] = rng.integers(0, 256)
        try:
            reference = np.asarray(decode_reference(bytes(data)))
        except CorruptImage as error:
            corrupt += 1
            try:
                decode_fast(bytes(data))
            except CorruptImage:
                continue
            assert "broken data stream" in str(error)
            partial += 1
        else:
            np.testing.assert_array_equal(decode_fast(bytes(data)), reference)
    assert 50 < corrupt < 350 and partial <= 0.02 * trials
