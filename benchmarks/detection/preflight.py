"""Checks of data, images and recipe before the first step: faults stop the run, warnings say what to change.

The header of every image is read, which takes no decoding; what a header cannot show is decoded, and so is a sample. In
a training or a test, what cannot be decoded ends the run with the file's name, in every framework.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import torch
from PIL import Image

from benchmarks.detection.data import CocoData, Split, visible
from benchmarks.detection.framework import Recipe, Schedule
from pretrain.data.decode import FORMATS, decode_reference
from sslight.core.errors import InputError
from sslight.core.files import write_atomically
from sslight.core.logs import track

BYTES_PER_CHECKPOINT = 600e6  # a Mask R-CNN R50-FPN with its momentum is about 350 MB
KEPT = 3  # checkpoints on the disk at once, at most
FEW = 0.5  # of a file's objects: if fewer train, something may be wrong with the rest
RELATIVE = 1.01  # the largest coordinate in relative units, with some rounding
LEAST_SIDE = 4  # pixels: on images as small as this, boxes may be so, too
SAMPLE = 32  # images of each split that are decoded, too
THREADS = 16  # waiting for a file system over the network is what they share
ENDS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PN": b"IEND\xaeB`\x82"}  # how a whole JPEG or PNG begins and ends
ORIENTATION, QUARTER_TURNS = 0x0112, (5, 6, 7, 8)  # EXIF
CHECKED = "images_checked.txt"
in_order: set[str] = set()  # hashes of what this process has read


def check(
    data: CocoData,
    recipe: Recipe,
    schedule: Schedule,
    preprocess: dict | None,
    out_dir: Path,
    processes: int,
    *,
    quiet: bool = False,
    remember: bool = True,
) -> list[str]:
    """Run every check; print a summary and the warnings unless `quiet`; returns the warnings. Faults raise InputError.

    preprocess: the checkpoint's; None where it is not known. remember: note in `out_dir` what need not be read again.
    """
    splits = data.train, data.val
    for split in splits:
        if recipe["mask"]:
            masks_present(split)
        absolute(split, recipe["mask"])
    objects, few = trainable(data.train, recipe["left_out"], schedule["batch"])
    countable(data.val)
    check_images(splits, out_dir if remember else None)
    lines = [
        *few,
        *(preprocessing(recipe, preprocess) if preprocess else ()),
        *solver(recipe, schedule, processes),
        *(line for split in splits for line in shapes(split)),
        *disk(out_dir),
    ]
    if quiet:
        return lines
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
    for line in lines:
        print(f"warning: {line}", file=sys.stderr)
    return lines


def amp_possible(wanted: bool) -> None:
    """Mixed precision needs a GPU in every framework. Raises InputError where it is wanted and there is none."""
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
    """How many objects the framework trains on, in words, and a warning where they are few.

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
    images = {image["id"]: image for image in split.content["images"]}
    empty = outside = polygons = 0
    for annotation in split.content["annotations"]:
        if min(annotation["bbox"][2:]) < 1:
            empty += 1
        elif not min(visible(annotation["bbox"], images[annotation["image_id"]])):
            outside += 1
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


def preprocessing(recipe: Recipe, preprocess: dict) -> Iterator[str]:
    """The recipe's colour order, mean and std against those that the checkpoint was trained with."""
    if recipe["color_order"] != preprocess.get("color_order", "RGB"):
        yield (
            f"the recipe feeds {recipe['color_order']} images, the checkpoint was trained on "
            f"{preprocess.get('color_order')}: change the recipe's colour order"
        )
    for name in ("mean", "std"):
        wanted = [255 * value for value in preprocess[name]]
        if any(abs(a - b) > 0.5 for a, b in zip(recipe[name], wanted, strict=True)):
            yield (
                f"the recipe's {name} {[round(v, 2) for v in recipe[name]]} is not the checkpoint's "
                f"{[round(v, 2) for v in wanted]}: change the recipe's pixel {name}"
            )


def solver(recipe: Recipe, schedule: Schedule, processes: int) -> Iterator[str]:
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


def disk(out_dir: Path) -> Iterator[str]:
    """Room for the checkpoints that are kept."""
    free = shutil.disk_usage(next(folder for folder in (out_dir, *out_dir.absolute().parents) if folder.exists())).free
    if free < KEPT * BYTES_PER_CHECKPOINT:
        yield (
            f"{free / 1e9:.1f} GB are free at {out_dir}, checkpoints may take "
            f"{KEPT * BYTES_PER_CHECKPOINT / 1e9:.1f}: free some or choose another OUTPUT_DIR"
        )


class UnreadableImage(InputError):
    """An image that cannot be decoded in the middle of a training or a test.

    torch raises it again in the main process with the loader worker's traceback as its message: the last line counts.
    """

    def __init__(self, message: str):
        super().__init__(message.strip().rpartition(f"{type(self).__name__}: ")[2])


def check_images(splits: Sequence[Split], out_dir: Path | None) -> None:
    """Compare every image with its entry. Raises InputError for what is unreadable, cut off or of another size.

    What was in order is not read again in this process, nor, where there is an `out_dir`, by a run that goes on in it:
    a note there holds a hash of the files' names, sizes and times.
    """
    note = out_dir / CHECKED if out_dir else None
    known = {*in_order, *(note.read_text().split() if note and note.is_file() else ())}
    new = set()
    for split in splits:
        with ThreadPoolExecutor(THREADS) as pool:
            digest = _stamp(split, pool)
            if digest in known:
                continue
            _check_split(split, pool)
        new.add(digest)
    in_order.update(new)
    if new and note:
        write_atomically(note, lambda temporary: temporary.write_text("\n".join(sorted(known | new)) + "\n"))


def _stamp(split: Split, pool: ThreadPoolExecutor) -> str:
    digest = hashlib.sha256(str(split.images.resolve()).encode())
    images = split.content["images"]
    for image, facts in zip(
        images, pool.map(lambda image: os.stat(split.images / image["file_name"]), images), strict=True
    ):
        digest.update(
            f"{image['file_name']}\0{image['width']}\0{image['height']}\0{facts.st_size}\0"
            f"{facts.st_mtime_ns}\n".encode()
        )
    return digest.hexdigest()


def _check_split(split: Split, pool: ThreadPoolExecutor) -> None:
    images = split.content["images"]
    sample = {image["id"] for image in random.Random(0).sample(images, min(SAMPLE, len(images)))}
    Image.init()  # not within the threads
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata, and of sizes that no entry may have
        results = pool.map(lambda image: _fault(split, image, image["id"] in sample), images)
        faults = [fault for fault in track(results, len(images), f"headers of {split.images}", "images") if fault]
    if faults:
        others = f" ({len(faults) - 1} more of the {len(images)} images are at fault)" if len(faults) > 1 else ""
        raise InputError(f"{faults[0]}{others}")


def _fault(split: Split, image: dict, decode: bool) -> str:
    """What is wrong with one image; an empty string if nothing is."""
    path = split.images / image["file_name"]
    try:
        with open(path, "rb") as file:
            stored, upright = header_sizes(file)
            if decode or not whole(file):
                file.seek(0)
                upright = decode_reference(file.read()).size
    except Exception as error:  # noqa: BLE001  formats' parsers raise whatever they stumble over
        return (
            f"image cannot be read: {path} ({' '.join(str(error).split())[:160]}); replace it or remove it from "
            f"{split.json}"
        )
    wanted = image["width"], image["height"]
    if upright == wanted:
        return ""
    says = f"{path} is {upright[0]}x{upright[1]} pixels, but {split.json} says {wanted[0]}x{wanted[1]}"
    if stored == wanted:
        return (
            f"{says}, its size before its EXIF orientation turns it, which the frameworks apply: annotate the "
            "image as it is shown, or save it without that tag"
        )
    return f"{says}: images and annotations do not belong together"


def header_sizes(file: BinaryIO) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) as stored and as shown, which EXIF may turn by 90 degrees. Raises what PIL raises."""
    with Image.open(file, formats=FORMATS) as image:
        # PNG's own getexif decodes the image, for tags that may follow it
        turned = Image.Image.getexif(image).get(ORIENTATION) in QUARTER_TURNS
        sizes = image.size, image.size[::-1] if turned else image.size
        return sizes[::-1] if image.format == "TIFF" else sizes  # of a TIFF, PIL says the size that is shown


def whole(file: BinaryIO) -> bool:
    """Whether an image file ends as its format does; True for formats that have no sign of it.

    Decoders differ in what is cut off: OpenCV fills it up with grey, PIL raises.
    """
    file.seek(0)
    end = ENDS.get(file.read(3), b"")
    file.seek(-min(len(end), file.seek(0, os.SEEK_END)), os.SEEK_END)
    return file.read() == end if end else True


def unreadable(path: str | Path, reason: object) -> UnreadableImage:
    """The error for an image of a training or a test."""
    return UnreadableImage(
        f"image cannot be read: {path} ({' '.join(str(reason).split())[:160]}); replace it or "
        "remove it from the annotation file"
    )


def other_size(path: str | Path, size: tuple[int, int], wanted: tuple[int, int]) -> UnreadableImage:
    """The error for an image (width, height) that was replaced by one of another size since it was checked."""
    return UnreadableImage(
        f"{path} is {size[0]}x{size[1]} pixels, but its entry says {wanted[0]}x{wanted[1]}: images "
        "and annotations do not belong together"
    )
