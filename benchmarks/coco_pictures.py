"""Pictures of predictions beside the ground truth, for eyes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as rle

from benchmarks.coco_data import Split
from benchmarks.coco_images import unreadable
from pretrain.decode import CorruptImage, decode_reference

LEAST_SCORE = 0.3
MOST = 30  # objects drawn a picture
LEAST_SIDE = 320  # pixels; smaller images are enlarged so that the labels can be read
GAP = 8


def write(folder: Path, split: Split, detections: list[dict], count: int) -> list[Path]:
    """Write `count` pictures, truth on the left and predictions on the right; the images with most objects of a spread.

    The images are chosen evenly over the file, whatever was predicted on them.
    """
    if count <= 0:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    images = split.content["images"]
    chosen = [images[i] for i in np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).astype(int))]
    names = {category["id"]: category["name"] for category in split.content["categories"]}
    paths = []
    for image in chosen:
        picture = _read(split.images / image["file_name"])
        truth = [a for a in split.content["annotations"] if a["image_id"] == image["id"]]
        found = [d for d in detections if d["image_id"] == image["id"] and d["score"] >= LEAST_SCORE]
        found = sorted(found, key=lambda entry: -entry["score"])[:MOST]
        halves = [_drawn(picture, truth[:MOST], names), _drawn(picture, found, names)]
        gap = np.full((halves[0].shape[0], GAP, 3), 255, np.uint8)
        path = folder / f"{Path(image['file_name']).stem}.jpg"
        path.write_bytes(cv2.imencode(".jpg", np.concatenate([halves[0], gap, halves[1]], 1))[1].tobytes())
        paths.append(path)
    return paths


def _read(path: Path) -> np.ndarray:
    """The picture [H, W, 3], blue first, whatever its format."""
    try:
        return np.asarray(decode_reference(path.read_bytes()))[:, :, ::-1].copy()
    except (CorruptImage, OSError) as error:
        raise unreadable(path, error) from None


def _drawn(picture: np.ndarray, entries: Iterable[dict], names: dict[int, str]) -> np.ndarray:
    """A copy of the picture [H, W, 3], enlarged if small, with masks tinted, boxes and labels."""
    scale = max(1, -(-LEAST_SIDE // min(picture.shape[:2])))
    canvas = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    for entry in entries:
        colour = _colour(entry["category_id"])
        area = _mask(entry.get("segmentation"), *picture.shape[:2])
        if area is not None:
            area = cv2.resize(area, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST).astype(bool)
            canvas[area] = (0.6 * canvas[area] + 0.4 * np.array(colour)).astype(np.uint8)
        box = entry.get("bbox") or rle.toBbox(entry["segmentation"]).tolist()
        x, y, w, h = (round(value * scale) for value in box)
        cv2.rectangle(canvas, (x, y), (x + w, y + h), colour, 2)
        label = names[entry["category_id"]] + (f" {entry['score']:.2f}" if "score" in entry else "")
        cv2.putText(canvas, label, (x + 2, max(y - 4, 12)), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)
    return canvas


def _mask(segmentation: object, height: int, width: int) -> np.ndarray | None:
    if not segmentation:
        return None
    if isinstance(segmentation, list):
        coded = rle.merge(rle.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        coded = rle.frPyObjects(segmentation, height, width)
    else:
        coded = segmentation
    return rle.decode(coded)


def _colour(category: int) -> tuple[int, int, int]:
    """A bright colour, the same for a category everywhere: hues a golden angle apart."""
    hue = np.uint8([[[int(category * 111.25) % 180, 220, 255]]])
    return tuple(int(value) for value in cv2.cvtColor(hue, cv2.COLOR_HSV2BGR)[0, 0])
