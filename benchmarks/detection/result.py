"""The result of a run: numbers with their intervals, and pictures of predictions beside the ground truth."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as rle

from benchmarks.detection.data import CocoData, Split
from benchmarks.detection.evaluation import Evaluation, bootstrap, evaluate
from benchmarks.detection.framework import Schedule, Weights
from benchmarks.detection.preflight import unreadable
from pretrain.data.decode import CorruptImage, decode_reference
from sslight.core.config import to_dict
from sslight.core.result import write_result

LEAST_SCORE = 0.3
MOST = 30  # objects drawn a picture
LEAST_SIDE = 320  # pixels; smaller images are enlarged so that the labels can be read
GAP = 8


def write_pictures(folder: Path, split: Split, detections: list[dict], count: int) -> list[Path]:
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
        predicted = [d for d in detections if d["image_id"] == image["id"] and d["score"] >= LEAST_SCORE]
        predicted = sorted(predicted, key=lambda entry: -entry["score"])[:MOST]
        halves = [_drawn(picture, truth[:MOST], names), _drawn(picture, predicted, names)]
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


def _mask(segmentation: Any, height: int, width: int) -> np.ndarray | None:
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
    hue = np.array([[[int(category * 111.25) % 180, 220, 255]]], np.uint8)
    blue, green, red = cv2.cvtColor(hue, cv2.COLOR_HSV2BGR)[0, 0].tolist()
    return blue, green, red


@dataclass(frozen=True)
class Run:
    """One training with one seed: the iterations done and the result files by kind."""

    seed: int
    iterations: int
    files: dict[str, Path]


def write(
    out_dir: Path,
    args,
    settings,
    data: CocoData,
    weights: Weights,
    runs: list[Run],
    schedule: Schedule,
    framework_config: dict,
    protocol: str,
    departures: dict,
    seconds: float,
) -> Path:
    """Evaluate every run, write `result.json` and the pictures asked for, print the headline; returns the path."""
    kinds = ("mask", "box") if args.task == "seg" else ("box",)
    evaluations = {
        kind: [
            evaluate(
                data.val.content,
                read_detections(run.files[kind]),
                kind,
                settings.EVAL.BACKEND,
                keep_matches=settings.EVAL.BOOTSTRAP > 0,
            )
            for run in runs
        ]
        for kind in kinds
    }
    metrics, undefined = {}, []
    for kind in kinds:
        intervals = bootstrap(evaluations[kind], settings.EVAL.BOOTSTRAP, settings.SEED)
        for name in evaluations[kind][0].numbers:
            values = [evaluation.numbers[name] for evaluation in evaluations[kind]]
            if math.isnan(values[0]):
                undefined.append(f"{kind}_{name}")
                continue
            metric = {"value": float(np.mean(values)), "interval": list(intervals[name]) if name in intervals else None}
            if len(values) > 1:
                metric["std"] = float(np.std(values, ddof=1))
            metrics[f"{kind}_{name}"] = metric
    per_seed = [
        {
            "seed": run.seed,
            "iterations": run.iterations,
            **{
                f"{kind}_{name}": value
                for kind in kinds
                for name, value in evaluations[kind][i].numbers.items()
                if not math.isnan(value)
            },
        }
        for i, run in enumerate(runs)
    ]
    pictures = write_pictures(out_dir / "pictures", data.val, read_detections(runs[0].files[kinds[0]]), args.show)
    config = {
        "settings": to_dict(settings),
        "schedule": schedule,
        "framework": args.framework,
        "task": args.task,
        "framework_config": json.loads(json.dumps(framework_config, default=str)),
    }
    if args.proxy:
        protocol = f"{protocol} (proxy {args.proxy:g})"
    named = {"name": settings.NAME} if settings.NAME else {}
    path = write_result(
        out_dir,
        benchmark="coco",
        protocol=protocol,
        checkpoint={**weights.checkpoint, **named},
        data={
            "path": settings.DATA.PATH_TO_DATA_DIR or str(data.train.json.parent),
            "fingerprint": data.fingerprint(),
            "counts": {"train": data.train.image_count, "val": data.val.image_count},
        },
        metrics=metrics,
        per_seed=per_seed,
        config=config,
        seconds=seconds,
        framework=args.framework,
        task=args.task,
        departures=departures,
        undefined=undefined,
        iterations=runs[0].iterations,
        proxy=args.proxy or None,
        schedule=schedule,
        per_category={kind: _mean_per_category(evaluations[kind]) for kind in kinds},
        detections=[{kind: str(file.relative_to(out_dir)) for kind, file in run.files.items()} for run in runs],
        pictures=[str(picture.relative_to(out_dir)) for picture in pictures],
    )
    if len(runs) > 1:
        for run in per_seed:
            print(
                f"seed {run['seed']}: "
                + ", ".join(f"{kind} AP {run.get(f'{kind}_AP', math.nan):.2f}" for kind in kinds)
            )
    for kind in kinds:
        print(f"{kind} AP {_shown(metrics, f'{kind}_AP')}, AP50 {_shown(metrics, f'{kind}_AP50')}")
    print(f"written: {path}")
    return path


def read_detections(file: Path) -> list[dict]:
    """Entries of a COCO result file."""
    return json.loads(file.read_text())


def _mean_per_category(evaluations: list[Evaluation]) -> dict[str, float]:
    return {
        name: round(float(np.mean([e.per_category[name] for e in evaluations])), 4)
        for name in evaluations[0].per_category
    }


def _shown(metrics: dict, name: str) -> str:
    if name not in metrics:
        return "undefined"
    metric = metrics[name]
    return (
        f"{metric['value']:.2f}"
        + (f" +- {metric['std']:.2f}" if "std" in metric else "")
        + (f" [{metric['interval'][0]:.2f}, {metric['interval'][1]:.2f}]" if metric["interval"] else "")
    )
