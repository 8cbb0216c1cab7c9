"""One COCO evaluation for both frameworks, over the COCO-format detections that each writes.

Average precision as pycocotools defines it (maxDets 1/10/100), computed by faster-coco-eval or pycocotools; the twelve
numbers, the AP of every category, and bootstrap intervals over images. All in percent.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.coco_data import corners, object_area, outlines
from benchmarks.coco_matches import Matches, average_precision, match_images
from pretrain.errors import InputError

KINDS = {"box": "bbox", "mask": "segm"}
BACKENDS = ("faster", "pycocotools")
THRESHOLDS = {"": None, "50": 0.5, "75": 0.75}
AREAS = {"": "all", "s": "small", "m": "medium", "l": "large"}
PAIRS = 500_000  # of an image and a category; the libraries hold some 500 bytes of each
CLIP = 10  # a vertex farther away than this many image sides is a fault of the file, and crashes the C code


@dataclass
class Evaluation:
    """Numbers of one kind (box or mask) for one set of detections.

    `numbers` maps AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl to percent, NaN where the ground
    truth has no object of that size; `per_category` maps a class name to its AP; `matches` serves the bootstrap.
    """

    numbers: dict[str, float]
    per_category: dict[str, float]
    matches: list[Matches] = field(repr=False, default_factory=list)


def evaluate(truth: dict, detections: Sequence[dict], kind: str, backend: str = "faster",
             keep_matches: bool = True) -> Evaluation:
    """Evaluate detections (COCO result entries) of `kind` "box" or "mask" against a COCO ground truth.

    Raises InputError for detections of unknown images or categories.
    """
    if backend not in BACKENDS:
        raise InputError(f"EVAL.BACKEND '{backend}' is none of {', '.join(BACKENDS)}")
    _check(truth, detections)
    truth, detections = _renumbered(with_sane_polygons(truth), detections)
    entries = [_as_result(entry, kind) for entry in detections]
    if not entries:  # neither library reads an empty list; nothing found is precision 0 wherever there is something
        return _nothing_found(truth, kind, keep_matches)
    parts, matches = [], []
    for evaluator in _evaluated(truth, entries, KINDS[kind], backend):
        parts.append((evaluator.eval["precision"], evaluator.eval["recall"]))
        matches += match_images(evaluator) if keep_matches else []
    precision, recall = (np.concatenate(arrays, axis=-3) for arrays in zip(*parts, strict=True))
    names = [category["name"] for category in sorted(truth["categories"], key=lambda category: category["id"])]
    per_category = {name: _mean(precision[:, :, k, 0, -1]) for k, name in enumerate(names)}
    return Evaluation(_twelve(evaluator.params, precision, recall),
                      {name: value for name, value in per_category.items() if np.isfinite(value)}, matches)


def bootstrap(runs: Sequence[Evaluation], draws: int, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95% percentile intervals of AP and AP50, the mean over `runs`, over images drawn with replacement.

    Runs are evaluations of differently seeded detectors on the same images; where there are several they are drawn
    with replacement, too. An empty dict for no draws.
    """
    if draws <= 0:
        return {}
    rng = np.random.default_rng(seed)
    images = max((found.images for run in runs for found in run.matches), default=0)
    values = np.empty((draws, len(runs), 2))
    for i in range(draws):
        weights = np.bincount(rng.integers(images, size=images), minlength=images).astype(np.float64)
        for j, run in enumerate(runs):
            by_threshold = average_precision(run.matches, weights)
            values[i, j] = 100 * np.nanmean(by_threshold), 100 * by_threshold[0]
        values[i] = values[i, rng.integers(len(runs), size=len(runs))]
    low, high = np.nanpercentile(values.mean(1), (2.5, 97.5), axis=0)
    found = {}
    for k, name in enumerate(("AP", "AP50")):
        value = float(np.mean([run.numbers[name] for run in runs]))
        found[name] = (min(float(low[k]), value), max(float(high[k]), value))
    return found


def with_sane_polygons(truth: dict) -> dict:
    """The ground truth with vertices far outside their image pulled to its border, and every object's area known."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in truth["images"]}
    annotations = []
    for annotation in truth["annotations"]:
        annotation = {"iscrowd": 0, **annotation, "area": object_area(annotation)}
        polygons = annotation.get("segmentation")
        if isinstance(polygons, list):
            width, height = sizes[annotation["image_id"]]
            # of fewer than 3 points the libraries make something else or fail; the box stands for what has no outline
            polygons = outlines(polygons) or [corners(annotation["bbox"])]
            annotation["segmentation"] = [_pulled_in(polygon, width, height) for polygon in polygons]
        annotations.append(annotation)
    return {**truth, "annotations": annotations}


def _renumbered(truth: dict, detections: Sequence[dict]) -> tuple[dict, list[dict]]:
    """The same with images and categories numbered from 1 in the order of their ids, objects in that of the file.

    The libraries note a match by the object's id, with 0 for none, and keep the other ids as floats: whole numbers
    beyond 2^53 run together.
    """
    images, categories = ({old: new for new, old in enumerate(sorted(entry["id"] for entry in truth[part]), 1)}
                          for part in ("images", "categories"))

    def of(entry: dict) -> dict:
        return {**entry, "image_id": images[entry["image_id"]], "category_id": categories[entry["category_id"]]}

    return {"images": [{**image, "id": images[image["id"]]} for image in truth["images"]],
            "categories": [{**category, "id": categories[category["id"]]} for category in truth["categories"]],
            "annotations": [{**of(entry), "id": number} for number, entry in enumerate(truth["annotations"], 1)],
            }, [of(entry) for entry in detections]


def _pulled_in(polygon: list[float], width: int, height: int) -> list[float]:
    points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
    size = np.array([width, height])
    if np.all(np.abs(points) <= CLIP * size):
        return polygon
    return np.clip(np.nan_to_num(points), 0, size).ravel().tolist()


def _check(truth: dict, detections: Sequence[dict]) -> None:
    images = {image["id"] for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    for entry in detections:
        if entry["image_id"] not in images:
            raise InputError(f"detections name image {entry['image_id']}, which the ground truth does not list: "
                             "they belong to another data set")
        if entry["category_id"] not in categories:
            raise InputError(f"detections name category {entry['category_id']}, which the ground truth does not list: "
                             "the detector's head has other classes than the data")


def _as_result(entry: dict, kind: str) -> dict:
    """One detection for one kind: with both fields present, the libraries would take a mask's area from its box."""
    wanted = "segmentation" if kind == "mask" else "bbox"
    return {"image_id": entry["image_id"], "category_id": entry["category_id"], "score": entry["score"],
            wanted: copy.copy(entry[wanted])}


def _evaluated(truth: dict, entries: list[dict], iou_type: str, backend: str) -> Iterator:
    """The library's evaluations of all categories, some at a time, in the order of their ids."""
    categories = sorted(category["id"] for category in truth["categories"])
    together = max(1, PAIRS // len(truth["images"]))
    with contextlib.redirect_stdout(io.StringIO()):
        if backend == "faster":
            from faster_coco_eval import COCO
            from faster_coco_eval import COCOeval_faster as Evaluator
        else:
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval as Evaluator
        ground = COCO()
        ground.dataset = truth  # whose annotations `with_sane_polygons` made anew: the library writes into them
        ground.createIndex()
        found = ground.loadRes(entries)
    for first in range(0, len(categories), together):
        evaluator = Evaluator(ground, found, iou_type)
        evaluator.params.maxDets, evaluator.params.catIds = [1, 10, 100], categories[first:first + together]
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


def _nothing_found(truth: dict, kind: str, keep_matches: bool) -> Evaluation:
    """An evaluation of one detection that matches nothing: a far-off box with the lowest score."""
    image, category = truth["images"][0], truth["categories"][0]
    box = [float(image["width"]), float(image["height"]), 1.0, 1.0]
    entry = {"image_id": image["id"], "category_id": category["id"], "score": 0.0, "bbox": box}
    if kind == "mask":
        from pycocotools import mask
        blank = mask.encode(np.zeros((image["height"], image["width"]), np.uint8, order="F"))
        entry["segmentation"] = {"size": blank["size"], "counts": blank["counts"].decode()}
    return evaluate(truth, [entry], kind, keep_matches=keep_matches)
