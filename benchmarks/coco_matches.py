"""COCO's matching of detections with objects, kept per image, so that AP of any weighting of the images is cheap.

The evaluation libraries compute AP of the whole set only. A bootstrap needs it for hundreds of samples of the images:
here the matches are made once, by COCO's rule (area "all", 100 detections an image and class), and AP is a weighted
cumulative sum over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MAX_DETECTIONS = 100


@dataclass(frozen=True)
class Matches:
    """One class: its detections by falling score, and its objects.

    image [D]: position of the detection's image; true [T, D]: matched an object; counted [T, D]: not matched to an
    ignored one (a crowd); objects [I]: objects that count, per image; images: I.
    """

    image: np.ndarray
    true: np.ndarray
    counted: np.ndarray
    objects: np.ndarray

    @property
    def images(self) -> int:
        return len(self.objects)


def match_images(evaluator) -> list[Matches]:
    """The matches of every class of an evaluated COCOeval (either library's), from its overlaps."""
    objects = _grouped(evaluator.cocoGt.anns.values())
    found = _grouped(evaluator.cocoDt.anns.values())
    images = list(evaluator.params.imgIds)
    classes = []
    for category in evaluator.params.catIds:
        numbers = np.zeros(len(images))
        places, scores, true, counted = [], [], [], []
        for place, image in enumerate(images):
            there = objects.get((image, category), [])
            ignored = np.array([bool(o.get("iscrowd", 0) or o.get("ignore", 0)) for o in there], dtype=bool)
            numbers[place] = (~ignored).sum()
            ranked = sorted(found.get((image, category), []), key=lambda entry: -entry["score"])[:MAX_DETECTIONS]
            if not ranked:
                continue
            overlaps = np.asarray(evaluator.ious[image, category], dtype=np.float64)
            hit, ignore = _match(overlaps.reshape(len(ranked), len(there)), ignored)
            places += [place] * len(ranked)
            scores += [entry["score"] for entry in ranked]
            true.append(hit & ~ignore)
            counted.append(~ignore)
        order = np.argsort(-np.asarray(scores), kind="mergesort")
        none = np.zeros((len(IOU_THRESHOLDS), 0), dtype=bool)
        classes.append(Matches(np.asarray(places, dtype=np.int64)[order], np.concatenate([none, *true], 1)[:, order],
                               np.concatenate([none, *counted], 1)[:, order], numbers))
    return classes


def _grouped(annotations) -> dict[tuple, list[dict]]:
    groups: dict[tuple, list[dict]] = {}
    for annotation in annotations:
        groups.setdefault((annotation["image_id"], annotation["category_id"]), []).append(annotation)
    return groups


def _match(overlaps: np.ndarray, ignored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """COCO's greedy rule for one image and class, at all thresholds at once.

    overlaps [D, G] with detections by falling score. Each takes the free object of the largest overlap, of equal ones
    the last; ignored objects only where no other reaches the threshold, and any number of times.
    Returns hit [T, D] and whether the object hit was an ignored one [T, D].
    """
    count, objects = overlaps.shape
    thresholds = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
    hit = np.zeros((len(thresholds), count), dtype=bool)
    ignore = np.zeros_like(hit)
    rows = np.arange(len(thresholds))
    free = np.repeat(~ignored[None], len(thresholds), 0)
    for d in range(count if objects else 0):
        if overlaps[d].max() < thresholds[0]:
            continue
        usable = np.where(free, overlaps[d], -1.0)
        best = objects - 1 - usable[:, ::-1].argmax(1)
        reached = usable[rows, best] >= thresholds
        free[rows[reached], best[reached]] = False
        crowd = ~reached & (np.where(ignored, overlaps[d], -1.0).max() >= thresholds)
        hit[:, d], ignore[:, d] = reached | crowd, crowd
    return hit, ignore


def average_precision(classes: Sequence[Matches], weights: np.ndarray) -> np.ndarray:
    """AP [T] at every threshold, the mean over classes with objects, with image i counted `weights[i]` times."""
    values = []
    for found in classes:
        objects = found.objects @ weights
        if objects:
            values.append(_class_precision(found, weights[found.image], objects))
    return np.mean(values, axis=0) if values else np.full(len(IOU_THRESHOLDS), np.nan)


def _class_precision(found: Matches, weight: np.ndarray, objects: float) -> np.ndarray:
    hits = np.cumsum(found.true * weight, axis=1)
    misses = np.cumsum((found.counted & ~found.true) * weight, axis=1)
    precision = hits / np.maximum(hits + misses, np.finfo(np.float64).tiny)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = hits / objects
    values = np.zeros(len(recall))
    for t in range(len(recall)):
        at = np.searchsorted(recall[t], RECALLS, side="left")
        inside = at < recall.shape[1]
        values[t] = precision[t, at[inside]].sum() / len(RECALLS)
    return values
