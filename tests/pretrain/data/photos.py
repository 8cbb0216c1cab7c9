"""Real photos for tests: scikit-learn's two, as arrays, JPEG bytes and data directories."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images


@functools.cache
def photos(width: int = 250, height: int = 188) -> list[Image.Image]:
    images = load_sample_images().images
    return [Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC) for image in images]


def jpeg(image: Image.Image, quality: int = 90, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, **options)
    return buffer.getvalue()


def write_folder(root: Path, per_class: int = 6, splits: tuple[str, ...] = ("train", "val"), width: int = 100) -> Path:
    """A data directory of two classes, photo crops that all differ."""
    rng = np.random.default_rng(0)
    for split in splits:
        for number, name in enumerate(("cat", "dog")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for k in range(per_class):
                left, top = rng.integers(0, 60, 2)
                image = photos()[number].crop((left, top, left + width, top + width * 3 // 4))
                (folder / f"{k:03d}.jpg").write_bytes(jpeg(image))
    return root
