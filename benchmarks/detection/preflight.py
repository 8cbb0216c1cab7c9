"""Checks before the first step: faults stop the run, doubts warn, each one line saying what to change."""

from __future__ import annotations

import math
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.detection import images as coco_images
from benchmarks.detection.data import CocoData, Split
from sslight.core.errors import InputError

BYTES_PER_CHECKPOINT = 600e6  # a Mask R-CNN R50-FPN with its momentum is about 350 MB
KEPT = 3  # checkpoints on the disk at once, at most
FEW = 0.5  # of a file's objects: if fewer train, something may be wrong with the rest
RELATIVE = 1.01  # the largest coordinate in relative units, with some rounding
LEAST_SIDE = 4  # pixels: on images as small as this, boxes may be so, too


def check(
    data: CocoData,
    recipe: dict,
    schedule: dict,
    preprocess: dict | None,
    out_dir: Path,
    processes: int,
    *,
    quiet: bool = False,
    remember: bool = True,
) -> list[str]:
    """Run every check, print what was seen and doubted unless `quiet`; returns the doubts. Faults raise InputError.

    preprocess: the checkpoint's; None where it is not known. remember: note in `out_dir` what need not be read again.
    """
    splits = data.train, data.val
    for split in splits:
        if recipe["mask"]:
            masks_present(split)
        absolute(split, recipe["mask"])
    objects, few = trainable(data.train, recipe["left_out"], schedule["batch"])
    countable(data.val)
    coco_images.check(splits, out_dir if remember else None)
    doubts = [
        *few,
        *(preprocessing(recipe, preprocess) if preprocess else ()),
        *solver(recipe, schedule, processes),
        *(line for split in splits for line in shapes(split)),
        *disk(schedule, recipe, out_dir),
    ]
    if quiet:
        return doubts
    images = data.train.image_count
    print(
        f"data: {images} train and {data.val.image_count} val images, {len(data.classes)} classes; "
        f"trained on: {objects}"
    )
    print(
        f"images: {recipe['color_order']}, mean {[round(value, 3) for value in recipe['mean']]}, "
        f"std {[round(value, 3) for value in recipe['std']]}"
    )
    print(
        f"schedule: {schedule['max_iter']} iterations of {schedule['batch']} images "
        f"({schedule['max_iter'] * schedule['batch'] / images:.1f} epochs), learning rate {schedule['lr']:g} "
        f"({schedule['lr'] / schedule['batch']:.3g} an image), steps {schedule['steps']}, "
        f"warm-up {schedule['warmup']}"
    )
    for line in doubts:
        print(f"warning: {line}", file=sys.stderr)
    return doubts


def amp_possible(wanted: bool) -> None:
    """Mixed precision needs a GPU in both frameworks. Raises InputError where it is wanted and there is none."""
    if wanted and not torch.cuda.is_available():
        raise InputError(
            "mixed precision (--amp, TRAIN.AMP, SOLVER.AMP.ENABLED) needs a GPU, and this machine has "
            "none: leave it out"
        )


def masks_present(split: Split) -> None:
    """Instance segmentation needs a segmentation in every annotation."""
    without = [a["id"] for a in split.content["annotations"] if not a.get("segmentation") and not a.get("iscrowd")]
    if without:
        raise InputError(
            f"{len(without)} annotations of {split.json} have no segmentation (first: id {without[0]}): "
            "use --task det, or add the polygons"
        )


def absolute(split: Split, masks: bool) -> None:
    """Coordinates are pixels. Raises InputError where none of any box (or polygon, with `masks`) is above 1."""
    annotations = split.content["annotations"]
    width, height = (max(image[side] for image in split.content["images"]) for side in ("width", "height"))
    boxes = max(max(x + w, y + h) for x, y, w, h in (annotation["bbox"] for annotation in annotations))
    polygons = max(
        (
            max(polygon)
            for a in annotations
            if masks and isinstance(a.get("segmentation"), list)
            for polygon in a["segmentation"]
            if polygon
        ),
        default=math.inf,
    )
    for what, largest in (("boxes", boxes), ("polygons", polygons)):
        if largest <= RELATIVE and max(width, height) > LEAST_SIDE:
            raise InputError(
                f"the {what} of {split.json} are in relative units (no coordinate is above 1, on images "
                f"of up to {width}x{height} pixels): multiply them by the width and height of their image"
            )


def trainable(split: Split, left_out: Callable[[dict, dict], str], batch: int) -> tuple[str, list[str]]:
    """How many objects the framework trains on, in words, and a doubt where they are few.

    left_out: why the framework leaves an object (annotation, image) out; an empty string where it does not.
    Raises InputError where none remains.
    """
    images = {image["id"]: image for image in split.content["images"]}
    reasons: Counter[str] = Counter()
    used = set()
    for annotation in split.content["annotations"]:
        reason = left_out(annotation, images[annotation["image_id"]])
        reasons[reason] += 1
        if not reason:
            used.add(annotation["image_id"])
    count, remain = len(split.content["annotations"]), reasons.pop("", 0)
    why = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common())
    words = f"{remain} of {count} objects" + (f" ({why})" if why else "")
    if not remain:
        raise InputError(
            f"no object of {split.json} would be trained on: of {count}, {why}; repair or complete the annotations"
        )
    few = remain < FEW * count or len(used) < batch
    return words, [
        f"only {words} of {split.json} are trained on, in {len(used)} images for batches of {batch}: see "
        "that this is meant"
    ] if few else []


def countable(split: Split) -> None:
    """Average precision needs an object that is no crowd."""
    if all(annotation.get("iscrowd") for annotation in split.content["annotations"]):
        raise InputError(
            f"all {len(split.content['annotations'])} objects of {split.json} are crowds (iscrowd 1): "
            "there is nothing to evaluate on"
        )


def shapes(split: Split) -> Iterator[str]:
    """Empty or degenerate boxes and polygons, and classes without objects, counted."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in split.content["images"]}
    empty = outside = polygons = 0
    for annotation in split.content["annotations"]:
        x, y, w, h = annotation["bbox"]
        width, height = sizes[annotation["image_id"]]
        empty += not (w >= 1 and h >= 1)
        outside += x + w <= 0 or y + h <= 0 or x >= width or y >= height
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, list):
            polygons += any(len(polygon) < 6 or len(polygon) % 2 for polygon in segmentation)
    for count, what in (
        (empty, "boxes smaller than a pixel"),
        (outside, "boxes outside their image"),
        (polygons, "polygons of fewer than 3 points"),
    ):
        if count:
            yield f"{split.json} has {count} {what}: remove or repair them"
    seen = {annotation["category_id"] for annotation in split.content["annotations"]}
    absent = [c["name"] for c in split.content["categories"] if c["id"] not in seen]
    if absent:
        yield (
            f"{split.json} has no object of {len(absent)} of its {len(split.content['categories'])} categories "
            f"({', '.join(absent[:5])}): drop them from the list or add images"
        )


def preprocessing(recipe: dict, preprocess: dict) -> Iterator[str]:
    """The recipe's colour order, mean and std against those that the checkpoint was trained with."""
    if recipe["color_order"] != preprocess.get("color_order", "RGB"):
        yield (
            f"the recipe feeds {recipe['color_order']} images, the checkpoint was trained on "
            f"{preprocess.get('color_order')}: change INPUT.FORMAT / bgr_to_rgb"
        )
    for name in ("mean", "std"):
        wanted = [255 * value for value in preprocess[name]]
        if any(abs(a - b) > 0.5 for a, b in zip(recipe[name], wanted, strict=True)):
            yield (
                f"the recipe's {name} {[round(v, 2) for v in recipe[name]]} is not the checkpoint's "
                f"{[round(v, 2) for v in wanted]}: change the recipe's pixel {name}"
            )


def solver(recipe: dict, schedule: dict, processes: int) -> Iterator[str]:
    """Norm against processes, learning rate against batch, milestones inside the schedule."""
    if recipe["norm"] == "SyncBN" and (processes == 1 or not torch.cuda.is_available()):
        where = "one process" if processes == 1 else f"each of {processes} CPU processes"
        yield (
            f"SyncBN on {where} is plain BN over its {schedule['batch'] // processes} images: the published numbers "
            "are for 16 images over 8 GPUs"
        )
    linear = recipe["lr"] * schedule["batch"] / recipe["batch"]
    if not math.isclose(schedule["lr"], linear, rel_tol=1e-6):
        yield (
            f"learning rate {schedule['lr']:g} for a batch of {schedule['batch']}: the linear rule gives "
            f"{linear:g}; add --scale-lr or SOLVER.BASE_LR"
        )
    late = [step for step in schedule["steps"] if step >= schedule["max_iter"]]
    if late:
        yield f"milestones {late} lie beyond the last iteration {schedule['max_iter']}: set SOLVER.STEPS"
    if schedule["steps"] != sorted(schedule["steps"]):
        raise InputError(f"SOLVER.STEPS {schedule['steps']} do not rise")
    if schedule["warmup"] > schedule["max_iter"]:
        yield (f"the warm-up of {schedule['warmup']} iterations is longer than the training: set SOLVER.WARMUP_ITERS")


def disk(schedule: dict, recipe: dict, out_dir: Path) -> Iterator[str]:
    """Room for the checkpoints that are kept."""
    free = shutil.disk_usage(next(folder for folder in (out_dir, *out_dir.absolute().parents) if folder.exists())).free
    if free < KEPT * BYTES_PER_CHECKPOINT:
        yield (
            f"{free / 1e9:.1f} GB are free at {out_dir}, checkpoints may take "
            f"{KEPT * BYTES_PER_CHECKPOINT / 1e9:.1f}: free some or choose another OUTPUT_DIR"
        )


def proxy(data: CocoData, schedule: dict, fraction: float, settings) -> tuple[CocoData, dict]:
    """A fixed part of the training images, the same for every backbone, and the schedule shortened to match.

    The part is stratified by category: images are taken, in a seeded order, where they bring the class that is farthest
    below its share. Warm-up is shortened no further than to a tenth of the schedule.
    """
    if not 0 < fraction < 1:
        raise InputError(f"--proxy {fraction:g} is not a fraction between 0 and 1")
    content = data.train.content
    chosen = stratified(content, max(1, round(fraction * len(content["images"]))))
    part = {
        **content,
        "images": [image for image in content["images"] if image["id"] in chosen],
        "annotations": [a for a in content["annotations"] if a["image_id"] in chosen],
    }
    shorter = {
        **schedule,
        "max_iter": max(1, round(fraction * schedule["max_iter"])),
        "steps": [max(1, round(fraction * step)) for step in schedule["steps"]],
    }
    shorter["warmup"] = min(schedule["warmup"], max(1, shorter["max_iter"] // 10))
    return replace(data, train=replace(data.train, content=part, ready=None)), shorter


def stratified(content: dict, count: int, seed: int = 0) -> set[int]:
    """Ids of `count` images whose objects are spread over the categories as the whole file's are."""
    classes: dict[int, set[int]] = {image["id"]: set() for image in content["images"]}
    for annotation in content["annotations"]:
        classes[annotation["image_id"]].add(annotation["category_id"])
    order = sorted(classes)
    random.Random(seed).shuffle(order)
    total: dict[int, int] = {}
    for present in classes.values():
        for category in present:
            total[category] = total.get(category, 0) + 1
    queues = {category: [image for image in order if category in classes[image]] for category in total}
    heads = dict.fromkeys(queues, 0)
    chosen: set[int] = set()
    have = dict.fromkeys(total, 0)
    while len(chosen) < count and queues:
        category = min(queues, key=lambda c: (have[c] / total[c], total[c], c))
        queue, head = queues[category], heads[category]
        while head < len(queue) and queue[head] in chosen:
            head += 1
        heads[category] = head
        if head == len(queue):
            del queues[category]
            continue
        chosen.add(queue[head])
        for other in classes[queue[head]]:
            have[other] += 1
    chosen.update([image for image in order if image not in chosen][: count - len(chosen)])  # images without objects
    return chosen
