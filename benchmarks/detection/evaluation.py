"""COCO's matching of detections with objects, kept per image, so that AP of any weighting of the images is cheap.

The evaluation libraries compute AP of the whole set only. A bootstrap needs it for hundreds of samples of the images:
here the matches are made once, by COCO's rule (area "all", 100 detections an image and class), and AP is a weighted
cumulative sum over them.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.detection.data import corners, object_area, outlines
from sslight.core.errors import InputError

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
    detections = _grouped(evaluator.cocoDt.anns.values())
    images = list(evaluator.params.imgIds)
    classes = []
    for category in evaluator.params.catIds:
        numbers = np.zeros(len(images))
        places, scores, true, counted = [], [], [], []
        for place, image in enumerate(images):
            there = objects.get((image, category), [])
            ignored = np.array([bool(o.get("iscrowd", 0) or o.get("ignore", 0)) for o in there], dtype=bool)
            numbers[place] = (~ignored).sum()
            ranked = sorted(detections.get((image, category), []), key=lambda entry: -entry["score"])[:MAX_DETECTIONS]
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
        classes.append(
            Matches(
                np.asarray(places, dtype=np.int64)[order],
                np.concatenate([none, *true], 1)[:, order],
                np.concatenate([none, *counted], 1)[:, order],
                numbers,
            )
        )
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
    for matches in classes:
        objects = matches.objects @ weights
        if objects:
            values.append(_class_precision(matches, weights[matches.image], objects))
    return np.mean(values, axis=0) if values else np.full(len(IOU_THRESHOLDS), np.nan)


def _class_precision(matches: Matches, weight: np.ndarray, objects: float) -> np.ndarray:
    hits = np.cumsum(matches.true * weight, axis=1)
    misses = np.cumsum((matches.counted & ~matches.true) * weight, axis=1)
    precision = hits / np.maximum(hits + misses, np.finfo(np.float64).tiny)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = hits / objects
    values = np.zeros(len(recall))
    for t in range(len(recall)):
        at = np.searchsorted(recall[t], RECALLS, side="left")
        inside = at < recall.shape[1]
        values[t] = precision[t, at[inside]].sum() / len(RECALLS)
    return values


KINDS = {"box": "bbox", "mask": "segm"}
BACKENDS = ("faster", "pycocotools")
THRESHOLDS = {"": None, "50": 0.5, "75": 0.75}
AREAS = {"": "all", "s": "small", "m": "medium", "l": "large"}
PAIRS = 500_000  # of an image and a category; the libraries hold some 500 bytes of each


@dataclass
class Evaluation:
    """Numbers of one kind (box or mask) for one set of detections.

    `numbers` maps AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl to percent, NaN where the ground
    truth has no object of that size; `per_category` maps a class name to its AP; `matches` serves the bootstrap.
    """

    numbers: dict[str, float]
    per_category: dict[str, float]
    matches: list[Matches] = field(repr=False, default_factory=list)


def evaluate(
    truth: dict, detections: Sequence[dict], kind: str, backend: str = "faster", keep_matches: bool = True
) -> Evaluation:
    """Evaluate detections (COCO result entries) of `kind` "box" or "mask" against a COCO ground truth.

    truth: as `benchmarks.detection.data.read_annotations` returns it, which refuses what would crash the libraries.
    Raises InputError for detections of unknown images or categories.
    """
    if backend not in BACKENDS:
        raise InputError(f"EVAL.BACKEND '{backend}' is none of {', '.join(BACKENDS)}")
    _check(truth, detections)
    truth, detections = _renumbered(completed(truth), detections)
    entries = [_as_result(entry, kind) for entry in detections]
    if not entries:  # neither library reads an empty list; precision is 0 wherever there is an object
        return _without_detections(truth, kind, keep_matches)
    parts, matches = [], []
    for evaluator in _evaluated(truth, entries, KINDS[kind], backend):
        parts.append((evaluator.eval["precision"], evaluator.eval["recall"]))
        matches += match_images(evaluator) if keep_matches else []
    precision, recall = (np.concatenate(arrays, axis=-3) for arrays in zip(*parts, strict=True))
    names = [category["name"] for category in sorted(truth["categories"], key=lambda category: category["id"])]
    per_category = {name: _mean(precision[:, :, k, 0, -1]) for k, name in enumerate(names)}
    return Evaluation(
        _twelve(evaluator.params, precision, recall),
        {name: value for name, value in per_category.items() if np.isfinite(value)},
        matches,
    )


def bootstrap(runs: Sequence[Evaluation], draws: int, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95% percentile intervals of AP and AP50, the mean over `runs`, over images drawn with replacement.

    Runs are evaluations of differently seeded detectors on the same images; where there are several they are drawn
    with replacement, too. An empty dict for no draws.
    """
    if draws <= 0:
        return {}
    rng = np.random.default_rng(seed)
    images = max((matches.images for run in runs for matches in run.matches), default=0)
    values = np.empty((draws, len(runs), 2))
    for i in range(draws):
        weights = np.bincount(rng.integers(images, size=images), minlength=images).astype(np.float64)
        for j, run in enumerate(runs):
            by_threshold = average_precision(run.matches, weights)
            values[i, j] = 100 * np.nanmean(by_threshold), 100 * by_threshold[0]
        values[i] = values[i, rng.integers(len(runs), size=len(runs))]
    low, high = np.nanpercentile(values.mean(1), (2.5, 97.5), axis=0)
    intervals = {}
    for k, name in enumerate(("AP", "AP50")):
        value = float(np.mean([run.numbers[name] for run in runs]))
        intervals[name] = (min(float(low[k]), value), max(float(high[k]), value))
    return intervals


def completed(truth: dict) -> dict:
    """The ground truth with the area of every object, and an outline for each that polygons describe."""
    annotations = []
    for annotation in truth["annotations"]:
        annotation = {"iscrowd": 0, **annotation, "area": object_area(annotation)}
        polygons = annotation.get("segmentation")
        if isinstance(polygons, list):
            # of fewer than 3 points the libraries make something else or fail
            annotation["segmentation"] = outlines(polygons) or [corners(annotation["bbox"])]
        annotations.append(annotation)
    return {**truth, "annotations": annotations}


def _renumbered(truth: dict, detections: Sequence[dict]) -> tuple[dict, list[dict]]:
    """The same with images and categories numbered from 1 in the order of their ids, objects in that of the file.

    The libraries note a match by the object's id, with 0 for none, and keep the other ids as floats: whole numbers
    beyond 2^53 run together.
    """
    images, categories = (
        {old: new for new, old in enumerate(sorted(entry["id"] for entry in truth[part]), 1)}
        for part in ("images", "categories")
    )

    def of(entry: dict) -> dict:
        return {**entry, "image_id": images[entry["image_id"]], "category_id": categories[entry["category_id"]]}

    return {
        "images": [{**image, "id": images[image["id"]]} for image in truth["images"]],
        "categories": [{**category, "id": categories[category["id"]]} for category in truth["categories"]],
        "annotations": [{**of(entry), "id": number} for number, entry in enumerate(truth["annotations"], 1)],
    }, [of(entry) for entry in detections]


def _check(truth: dict, detections: Sequence[dict]) -> None:
    images = {image["id"] for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    for entry in detections:
        if entry["image_id"] not in images:
            raise InputError(
                f"detections name image {entry['image_id']}, which the ground truth does not list: "
                "they belong to another data set"
            )
        if entry["category_id"] not in categories:
            raise InputError(
                f"detections name category {entry['category_id']}, which the ground truth does not list: "
                "the detector's head has other classes than the data"
            )


def _as_result(entry: dict, kind: str) -> dict:
    """One detection for one kind: with both fields present, the libraries would take a mask's area from its box."""
    wanted = "segmentation" if kind == "mask" else "bbox"
    return {
        "image_id": entry["image_id"],
        "category_id": entry["category_id"],
        "score": entry["score"],
        wanted: copy.copy(entry[wanted]),
    }


def _evaluated(truth: dict, entries: list[dict], iou_type: str, backend: str) -> Iterator:
    """The library's evaluations of all categories, some at a time, in the order of their ids."""
    categories = sorted(category["id"] for category in truth["categories"])
    together = max(1, PAIRS // len(truth["images"]))
    with contextlib.redirect_stdout(io.StringIO()):
        if backend == "faster":
            from faster_coco_eval import COCO, COCOeval_faster as Evaluator
        else:
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval as Evaluator
        ground = COCO()
        ground.dataset = truth  # whose annotations are copies of `completed`: the library writes into them
        ground.createIndex()
        detections = ground.loadRes(entries)
    for first in range(0, len(categories), together):
        evaluator = Evaluator(ground, detections, iou_type)
        evaluator.params.maxDets, evaluator.params.catIds = [1, 10, 100], categories[first : first + together]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator.evaluate()
            evaluator.accumulate()
        yield evaluator


def _twelve(params, precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """COCO's twelve numbers from precision [T, R, K, A, M] and recall [T, K, A, M]."""
    areas = {name: params.areaRngLbl.index(label) for name, label in AREAS.items()}
    numbers = {}
    for name, threshold in THRESHOLDS.items():
        rows = slice(None) if threshold is None else np.isclose(params.iouThrs, threshold)
        numbers[f"AP{name}"] = _mean(precision[rows, :, :, 0, -1])
    for name in "sml":
        numbers[f"AP{name}"] = _mean(precision[:, :, :, areas[name], -1])
    for m, most in enumerate(params.maxDets):
        numbers[f"AR{most}"] = _mean(recall[:, :, 0, m])
    for name in "sml":
        numbers[f"AR{name}"] = _mean(recall[:, :, areas[name], -1])
    return numbers


def _mean(values: np.ndarray) -> float:
    """Mean in percent of what is defined (the libraries mark the rest with -1); NaN if nothing is."""
    values = np.asarray(values)
    values = values[values > -1]
    return float(100 * values.mean()) if values.size else float("nan")


def _without_detections(truth: dict, kind: str, keep_matches: bool) -> Evaluation:
    """An evaluation of one detection that matches nothing: a far-off box with the lowest score."""
    image, category = truth["images"][0], truth["categories"][0]
    box = [float(image["width"]), float(image["height"]), 1.0, 1.0]
    entry = {"image_id": image["id"], "category_id": category["id"], "score": 0.0, "bbox": box}
    if kind == "mask":
        from pycocotools import mask

        blank = mask.encode(np.zeros((image["height"], image["width"]), np.uint8, order="F"))
        entry["segmentation"] = {"size": blank["size"], "counts": blank["counts"].decode()}
    return evaluate(truth, [entry], kind, keep_matches=keep_matches)
