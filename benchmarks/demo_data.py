"""The demo's data, made from what scikit-learn's wheel carries: 1,797 real handwritten digits and two photos.

`python -m benchmarks.demo_data OUT` writes real files in the layouts that the project reads everywhere else:

    train/<digit>/*.jpg, val/<digit>/*.jpg                    class folders: one digit a picture
    train2017/, val2017/, annotations/instances_*2017.json    COCO: scenes of several digits, polygons and boxes
    demo_data.json                                            what was made, and a fingerprint of it

A glyph (one of the 1,797 writings) belongs to either `train` or `val` in both sets, so nothing is tested on a writing
that was trained on; scene backgrounds come from separate parts of the photos. Place, size, colour and noise are drawn
without looking at the label. The same seed gives the same bytes.

Tuning: `--tuning` leaves the val glyphs out altogether and splits the *train* glyphs instead, in the same layout.
Whatever was chosen for the demo (data, method, schedule) was chosen there; val is only for the demo's own numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_digits, load_sample_images

from sslight.core.arguments import Parser
from sslight.core.errors import InputError
from sslight.core.files import write_json
from sslight.core.processes import run_command

VERSION = 1  # part of the fingerprint: raise it whenever the same settings give other pictures
MARKER = "demo_data.json"
VAL_SHARE = 0.25  # of each digit's glyphs
PAPER, INK, NOISE = 175, 85, 45  # brightness of 255, and its standard deviation at every pixel and colour
LEAST_SIDE = 0.6  # of the picture's side: the smallest digits
MIN_VISIBLE = 0.5  # of a digit in a scene, after occlusion
OUTLINE_SCALE = 4  # outlines are traced on masks this much finer, so that they keep to the pixels' edges


def make(
    out_dir: Path | str,
    *,
    seed: int = 0,
    size: int = 20,
    renderings: int = 4,
    scene_size: int = 128,
    scenes: tuple[int, int] = (400, 100),
    tuning: bool = False,
) -> dict:
    """Write both data sets into `out_dir`, or find them complete there; returns the content of the marker.

    Parameters
    ----------
    seed: of every random choice.
    size: side of a class picture, in pixels.
    renderings: pictures of each glyph, each with its own place, size and noise.
    scene_size: side of a scene, in pixels.
    scenes: number of scenes in train and val.
    tuning: use the train glyphs only, a quarter of them as `val`.

    The folder appears complete or not at all. Raises InputError where `out_dir` holds anything else.
    """
    out_dir = Path(out_dir)
    settings = {
        "version": VERSION,
        "seed": seed,
        "size": size,
        "renderings": renderings,
        "scene_size": scene_size,
        "scenes": list(scenes),
        "tuning": tuning,
    }
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        return _existing(out_dir, settings)
    partial = out_dir.with_name(f".{out_dir.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what an interrupted call left
    try:
        glyphs = split_glyphs(seed, tuning)
        counts = {}
        for part, (split, indices) in enumerate(glyphs.items()):
            rng = np.random.default_rng([seed, part])
            counts[split] = _write_pictures(partial / split, indices, size, renderings, rng)
            counts[f"{split}2017"] = _write_scenes(partial, split, indices, scenes[part], scene_size, rng)
        marker = {"settings": settings, "counts": counts, "glyphs": glyphs, "fingerprint": _fingerprint(partial)}
        write_json(partial / MARKER, marker)
        if out_dir.exists():
            out_dir.rmdir()
        os.replace(partial, out_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return marker


def split_glyphs(seed: int, tuning: bool = False) -> dict[str, list[int]]:
    """Glyph numbers (positions in scikit-learn's `load_digits`) of `train` and `val`, the same share of each digit."""
    labels = _digits()[1]
    rng = np.random.default_rng(seed)
    train, val = _halve(np.arange(len(labels)), labels, rng)
    if tuning:
        train, val = _halve(train, labels, rng)
    return {"train": train.tolist(), "val": val.tolist()}


def _halve(glyphs: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The glyphs without, and with, a `VAL_SHARE` of each digit."""
    val = []
    for digit in range(10):
        own = rng.permutation(glyphs[labels[glyphs] == digit])
        val.extend(own[: round(VAL_SHARE * len(own))].tolist())
    return np.setdiff1d(glyphs, val), np.sort(val)


def _existing(out_dir: Path, settings: dict) -> dict:
    """The marker of a folder that is already complete."""
    try:
        marker = json.loads((out_dir / MARKER).read_text())
        written, fingerprint = marker["settings"], marker["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{out_dir} is not empty and holds no demo data: choose another folder") from None
    if written != settings:
        raise InputError(f"{out_dir} holds demo data made with other settings: delete it or choose another folder")
    if fingerprint != _fingerprint(out_dir):
        raise InputError(f"{out_dir} holds demo data that was changed after it was made: delete it to make it again")
    return marker


def _fingerprint(folder: Path) -> str:
    """SHA-256 over the names and sizes of every file but the marker, and over the annotations' bytes."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MARKER:
            digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())
            if path.suffix == ".json":
                digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Writings [1797, 8, 8] with values 0..16, and their labels [1797]."""
    digits = load_digits()
    return digits.images, digits.target


@cache
def _photos() -> list[np.ndarray]:
    return load_sample_images().images


def glyph_ink(glyph: np.ndarray, side: int, angle: float = 0.0) -> np.ndarray:
    """Opacity in [0, 1], [side, side], of an 8 x 8 writing with values 0..16, turned by `angle` degrees."""
    padded = np.pad(glyph.astype(np.float32) / 16, 1)
    scale = side / padded.shape[0]
    turn: np.ndarray = cv2.getRotationMatrix2D((4.5, 4.5), angle, scale)
    turn[:, 2] += (side - 1) / 2 - 4.5
    smooth = cv2.warpAffine(padded, turn, (side, side), flags=cv2.INTER_CUBIC)
    return np.clip((smooth - 0.3) / 0.3, 0, 1)


def _write_pictures(folder: Path, glyphs: list[int], size: int, renderings: int, rng: np.random.Generator) -> int:
    """One dark digit on plain light paper under strong noise, as from a poor scanner; returns the number of pictures.

    Place, size and noise are what an untrained network is easily misled by, and what cropped views teach to ignore.
    """
    images, labels = _digits()
    for glyph in glyphs:
        target = folder / str(labels[glyph])
        target.mkdir(parents=True, exist_ok=True)
        for rendering in range(renderings):
            ink = np.zeros((size, size, 1), np.float32)
            side = int(rng.integers(round(LEAST_SIDE * size), size + 1))
            top, left = rng.integers(0, size - side + 1, 2)
            ink[top : top + side, left : left + side, 0] = glyph_ink(images[glyph], side, rng.uniform(-10, 10))
            picture = PAPER + ink * (INK - PAPER) + rng.normal(0, NOISE, (size, size, 3))
            _write_jpeg(target / f"glyph{glyph:04d}_{rendering}.jpg", picture)
    return len(glyphs) * renderings


def _two_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two RGB colours whose brightness differs enough for the eye."""
    while True:
        first, second = rng.uniform(20, 235, (2, 3))
        if abs(first.mean() - second.mean()) > 70:
            return first, second


def _write_scenes(root: Path, split: str, glyphs: list[int], count: int, size: int, rng: np.random.Generator) -> int:
    """Scenes and their COCO annotations; returns the number of annotated digits."""
    name = f"{split}2017"
    (root / name).mkdir(parents=True)
    labels = _digits()[1]
    images: list[dict] = []
    annotations: list[dict] = []
    for image_id in range(1, count + 1):
        picture, masks = _scene(_background(size, split, rng), glyphs, rng)
        file_name = f"{image_id:012d}.jpg"
        _write_jpeg(root / name / file_name, picture)
        images.append({"id": image_id, "file_name": file_name, "width": size, "height": size})
        for glyph, mask in masks:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "iscrowd": 0,
                    "category_id": int(labels[glyph]) + 1,
                    **_outline(mask),
                }
            )
    categories = [{"id": digit + 1, "name": str(digit), "supercategory": "digit"} for digit in range(10)]
    write_json(
        root / "annotations" / f"instances_{name}.json",
        {
            "info": {"description": "handwritten digits on photos"},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": categories,
        },
    )
    return len(annotations)


def _background(size: int, split: str, rng: np.random.Generator) -> np.ndarray:
    """A soft piece of a photo, [size, size, 3]: of its left three fifths for `train`, of the rest for `val`."""
    photo = _photos()[rng.integers(2)]
    border = photo.shape[1] * 3 // 5
    photo = photo[:, :border] if split == "train" else photo[:, border:]
    side = int(rng.integers(size, min(photo.shape[:2]) + 1))
    top, left = (int(rng.integers(0, extent - side + 1)) for extent in photo.shape[:2])
    piece = cv2.resize(photo[top : top + side, left : left + side], (size, size), interpolation=cv2.INTER_AREA)
    piece = piece.astype(np.float32)
    return piece.mean() + 0.5 * (piece - piece.mean())


def _scene(picture: np.ndarray, glyphs: list[int], rng: np.random.Generator) -> tuple[np.ndarray, list]:
    """Put 2 to 5 digits onto `picture`, later ones over earlier ones.

    Returns the picture and, for each digit, its glyph number and the mask [size, size] of what is visible of it:
    the area inside its outer line, without the ink of later digits.
    """
    size = picture.shape[0]
    digits = _digits()[0]
    masks: list[tuple[int, np.ndarray, int]] = []
    wanted = int(rng.integers(2, 6))
    for _ in range(4 * wanted):
        if len(masks) == wanted:
            break
        glyph = int(rng.choice(glyphs))
        side = int(round(np.exp(rng.uniform(np.log(0.2 * size), np.log(0.6 * size)))))
        top, left = rng.integers(0, size - side + 1, 2)
        ink = np.zeros((size, size), np.float32)
        ink[top : top + side, left : left + side] = glyph_ink(digits[glyph], side, rng.uniform(-15, 15))
        hidden = ink > 0.5
        remaining = [(number, mask & ~hidden, whole) for number, mask, whole in masks]
        if any(mask.sum() < MIN_VISIBLE * whole for _, mask, whole in remaining):
            continue
        _, pen = _two_colours(rng)
        picture = picture + ink[..., None] * (pen - picture)
        filled = _filled(hidden)
        masks = [*remaining, (glyph, filled, int(filled.sum()))]
    return picture + rng.normal(0, 4, picture.shape), [(glyph, mask) for glyph, mask, _ in masks]


def _contours(mask: np.ndarray) -> list[np.ndarray]:
    return list(cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0])


def _filled(mask: np.ndarray) -> np.ndarray:
    """The mask with its holes closed: COCO's polygons have none."""
    return cv2.drawContours(np.zeros(mask.shape, np.uint8), _contours(mask), -1, 1, cv2.FILLED).astype(bool)


def _outline(mask: np.ndarray) -> dict:
    """COCO's `segmentation` (polygons in pixels), `bbox` (x, y, width, height) and `area` of a mask."""
    fine = np.kron(mask, np.ones((OUTLINE_SCALE, OUTLINE_SCALE), bool))
    polygons = []
    for contour in _contours(fine):
        contour = cv2.approxPolyDP(contour, 1.0, True)[:, 0]
        if len(contour) >= 3:
            polygons.append(((contour + 0.5) / OUTLINE_SCALE).round(2).ravel().tolist())
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    return {
        "segmentation": polygons,
        "area": int(mask.sum()),
        "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
    }


def _write_jpeg(path: Path, picture: np.ndarray) -> None:
    """RGB values 0..255 of any float type, [height, width, 3]."""
    pixels = np.clip(picture.round(), 0, 255).astype(np.uint8)
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        95,  # and full colour resolution: halving it would smooth the noise away
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    path.write_bytes(cv2.imencode(".jpg", pixels[..., ::-1], options)[1].tobytes())


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        "python -m benchmarks.demo_data", __doc__.splitlines()[0], "python -m benchmarks.demo_data runs/demo/data"
    )
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tuning", action="store_true", help="split the train glyphs only, for choosing settings")
    args = parser.parse_args(argv)
    marker = make(args.out, seed=args.seed, tuning=args.tuning)
    print(f"{args.out}: " + ", ".join(f"{name} {count}" for name, count in marker["counts"].items()))
    return 0


if __name__ == "__main__":
    run_command(main)
