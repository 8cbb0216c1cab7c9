"""COCO data sets: which documents are annotation files, their content as the frameworks can read it, parts of a set.

The frameworks and the evaluation's C code trust an annotation file, so every fault is found here.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from pycocotools import mask as rle

from sslight.core.errors import InputError
from sslight.core.files import write_text

WANTED = {
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "categories": {"id": int, "name": str},
    "annotations": {"id": int, "image_id": int, "category_id": int, "bbox": list},
}
DISTINCT = ("images", "categories")  # annotations are numbered again where their ids are not
KINDS = {int: "an integer", str: "a text", list: "a list"}
MAX_PIXELS = Image.MAX_IMAGE_PIXELS
CROWD, OUTSIDE, TINY, FEW_POINTS, SMALL_IMAGE = (  # why a framework leaves objects out of the training
    "crowds or to be ignored",
    "outside their image",
    "smaller than a pixel",
    "with polygons of fewer than 3 points",
    "in images smaller than the recipe's least size",
)
FAR = 10  # image sides: a vertex farther out is a fault of the file, and makes the C code fill the memory


def fault(content: object) -> str:
    """The first fault; an empty string when there is none."""
    return next(_faults(content), "")


def _faults(content: object) -> Iterator[str]:
    if not isinstance(content, dict):
        yield "holds no JSON object"
        return
    for part, fields in WANTED.items():
        yield from _entries(part, content.get(part), fields)
    names = [category["name"] for category in content["categories"]]
    if len(set(names)) < len(names):
        yield "gives two categories the same name"
    sizes = {}
    for image in content["images"]:
        width, height = image["width"], image["height"]
        if not (width > 0 and height > 0 and width * height <= MAX_PIXELS):
            yield f"says that image {image['id']} is {width}x{height} pixels"
        sizes[image["id"]] = width, height
    categories = {category["id"] for category in content["categories"]}
    for annotation in content["annotations"]:
        if annotation["image_id"] not in sizes:
            yield f"has annotation {annotation['id']} of image {annotation['image_id']}, which it does not list"
        if annotation["category_id"] not in categories:
            yield f"has annotation {annotation['id']} of category {annotation['category_id']}, which it does not list"
        what = _box(annotation) or _segmentation(annotation.get("segmentation"), *sizes[annotation["image_id"]])
        if what:
            yield f"has annotation {annotation['id']} {what}"


def visible(box: list[float], image: dict) -> tuple[float, float]:
    """Width and height of the part of a box [x, y, width, height] that lies within its image."""
    x, y, w, h = box
    return max(0, min(x + w, image["width"]) - max(x, 0)), max(0, min(y + h, image["height"]) - max(y, 0))


def _entries(part: str, entries: Any, fields: dict[str, type]) -> Iterator[str]:
    """Faults of one of the three lists, entry by entry."""
    if not isinstance(entries, list):
        yield f"has no list '{part}'"
    if not entries:
        yield f"is empty: it lists no {part}"
    for number, entry in enumerate(entries):
        for key, kind in fields.items():
            if not isinstance(entry, dict) or key not in entry:
                yield f"has no '{key}' in {part}[{number}]"
            if type(entry[key]) is not kind or (kind is str and not entry[key].isascii() and not _text(entry[key])):
                yield f"has {entry[key]!r:.60} as '{key}' in {part}[{number}], not {KINDS[kind]}"
    if part in DISTINCT and len({entry["id"] for entry in entries}) < len(entries):
        yield f"repeats an id in '{part}'"


def _text(text: str) -> bool:
    """Whether a file can hold it: JSON can spell half a letter."""
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


def _box(annotation: dict) -> str:
    box = annotation["bbox"]
    if len(box) != 4 or not _finite(box):
        return f"with the box {box!r:.80}: it takes four finite numbers"
    if box[2] < 0 or box[3] < 0:
        return f"with a box of negative size: {box}"
    if annotation.get("iscrowd", 0) not in (0, 1):
        return f"with iscrowd {annotation['iscrowd']!r:.40}, neither 0 nor 1"
    return ""


def _segmentation(value: object, width: int, height: int) -> str:
    """Faults of polygons or of run lengths; what is absent has none."""
    if isinstance(value, dict):
        return _run_lengths(value, width, height)
    if not isinstance(value, list | None):
        return f"with the segmentation {value!r:.60}: it takes polygons or run lengths"
    far_x, far_y = FAR * width, FAR * height
    for polygon in value or ():
        if not isinstance(polygon, list) or not _finite(polygon):
            return f"with the polygon {polygon!r:.60}: it takes a list of finite numbers"
        if polygon and not (
            -far_x <= min(polygon[::2])
            and max(polygon[::2]) <= far_x
            and -far_y <= min(polygon[1::2], default=0)
            and max(polygon[1::2], default=0) <= far_y
        ):
            return f"with a polygon that reaches more than {FAR} image sides out of its image"
    return ""


def _finite(numbers: list) -> bool:
    """Whether all are numbers, none infinite or NaN, and none a truth value."""
    try:
        return {int, float} >= set(map(type, numbers)) and math.isfinite(math.fsum(numbers))
    except OverflowError:
        return False


def _run_lengths(value: dict, width: int, height: int) -> str:
    counts = value.get("counts")
    if value.get("size") != [height, width]:
        return f"with run lengths for an image of another size: {value.get('size')!r:.60}"
    if isinstance(counts, str):
        counts = _uncompressed(counts)
    if (
        not isinstance(counts, list)
        or {int} != set(map(type, counts))
        or min(counts) < 0
        or (sum(counts) != width * height)
    ):
        return "with run lengths that do not fill its image"
    return ""


def _uncompressed(text: str) -> list[int] | None:
    """COCO's compressed run lengths as numbers, None if the text is none: 5 bits and a continuation bit a letter,
    least significant first, with sign; from the third on they are differences to the last but one."""
    counts: list[int] = []
    number = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                number -= 1 << shift
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number = shift = 0
    return None if shift else counts


SPLITS = ("train", "val")
# What a copy for the frameworks holds of every entry.
KEPT = {
    "images": ("id", "file_name", "width", "height"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"),
}


@dataclass(frozen=True)
class Split:
    """One annotation file, the folder of its images and its content.

    ready: a file of that content which the frameworks can read; None until `written` has written one.
    """

    json: Path
    images: Path
    content: dict
    ready: Path | None = None

    @property
    def image_count(self) -> int:
        return len(self.content["images"])


@dataclass(frozen=True)
class CocoData:
    """Both splits and the class names in the order of the files' categories."""

    train: Split
    val: Split
    classes: tuple[str, ...]

    def fingerprint(self) -> str:
        """SHA-256 over both annotation files."""
        digest = hashlib.sha256()
        for split in (self.train, self.val):
            digest.update(split.json.read_bytes())
        return digest.hexdigest()


def find(cfg) -> CocoData:
    """The data set that the DATA section names: the layout of PATH_TO_DATA_DIR, or explicit paths where they are set.

    Raises InputError for a missing or malformed annotation file, absent images, or splits of different classes.
    """
    splits = {}
    for name in SPLITS:
        files, images = getattr(cfg.DATA, f"{name.upper()}_JSON"), getattr(cfg.DATA, f"{name.upper()}_IMAGES")
        if not (cfg.DATA.PATH_TO_DATA_DIR or (files and images)):
            raise InputError(
                "no data set: add DATA.PATH_TO_DATA_DIR PATH (annotations/, train2017/, val2017/), or "
                "DATA.TRAIN_JSON, DATA.TRAIN_IMAGES, DATA.VAL_JSON and DATA.VAL_IMAGES"
            )
        root = Path(cfg.DATA.PATH_TO_DATA_DIR)
        splits[name] = read_split(
            Path(files) if files else root / "annotations" / f"instances_{name}2017.json",
            Path(images) if images else root / f"{name}2017",
        )
    for annotation in splits["train"].content["annotations"]:
        if annotation.get("ignore"):  # mmdet leaves it out, detectron2 refuses it: both leave crowds out
            annotation["iscrowd"] = 1
    categories = [[(c["id"], c["name"]) for c in splits[name].content["categories"]] for name in SPLITS]
    if categories[0] != categories[1]:
        extra = next(iter(set(categories[0]) ^ set(categories[1])), None)
        what = f"category {extra[0]} '{extra[1]}' is in one of them only" if extra else "their order differs"
        raise InputError(
            f"{splits['train'].json} and {splits['val'].json} list different categories ({what}): "
            "write the same list into both"
        )
    return CocoData(splits["train"], splits["val"], tuple(name for _, name in categories[0]))


def read_split(file: Path, images: Path) -> Split:
    """Read one annotation file and see that every image it lists lies in the folder."""
    if not file.is_file():
        raise InputError(
            f"COCO annotation file not found: {file}; DATA.PATH_TO_DATA_DIR needs annotations/"
            "instances_train2017.json and instances_val2017.json (or set DATA.*_JSON)"
        )
    content, plain = read_annotations(file)
    if not images.is_dir():
        raise InputError(f"image folder not found: {images} (for {file})")
    present = _files_below(images)
    absent = [
        image["file_name"]
        for image in content["images"]
        if os.path.normpath(image["file_name"]) not in present and not os.path.isfile(images / image["file_name"])
    ]  # links to folders are not walked
    if absent:
        raise InputError(
            f"{len(absent)} of {len(content['images'])} images listed in {file} are absent from {images}, "
            f"first {absent[0]}: complete the folder or remove them from the file"
        )
    return Split(file, images, content, file if plain else None)


def read_annotations(file: Path) -> tuple[dict, bool]:
    """An annotation file's content, and whether the frameworks can read the file itself.

    The file may be UTF-8 with a byte order mark, UTF-16 or UTF-32. In the content, annotation ids are distinct and
    above 0, every object has the area that `object_area` gives, and a crowd without a mask has its box as outline.
    Raises InputError for anything that is no COCO annotation file.
    """
    try:
        raw = file.read_bytes()
        content = json.loads(raw)
    except UnicodeDecodeError:
        raise InputError(f"not a COCO annotation file: {file} is no Unicode text: save it as UTF-8") from None
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"not a COCO annotation file: {file} is not JSON ({error})") from None
    what = fault(content)
    if what:
        raise InputError(f"not a COCO annotation file: {file} {what}")
    plain = json.detect_encoding(raw) == "utf-8"
    annotations = content["annotations"]
    ids = {annotation["id"] for annotation in annotations}
    renumber = len(ids) < len(annotations) or min(ids) < 1
    for number, annotation in enumerate(annotations, 1):
        changes: dict = {"id": number} if renumber else {}
        if annotation.get("area") != (area := object_area(annotation)):
            changes["area"] = area
        if annotation.get("iscrowd") and not annotation.get("segmentation"):
            changes["segmentation"] = [corners(annotation["bbox"])]
        annotation.update(changes)
        plain = plain and not changes and not annotation.get("ignore")
    return content, plain


def object_area(annotation: dict) -> float:
    """An object's area in pixels: the recorded one, by which COCO tells small objects from large, if it can be true.

    Where it is absent, below a pixel or larger than the box, the area within its polygons (COCO's own definition) or
    run lengths; the box's where there is no mask or an empty one.
    """
    width, height = annotation["bbox"][2:]
    most, recorded = (width + 1) * (height + 1), annotation.get("area")  # a box of whole pixels may end a pixel early
    if recorded is not None and type(recorded) in (int, float) and 1 <= recorded <= most:
        return recorded
    area = _mask_area(annotation.get("segmentation"))
    return area if 0 < area <= most else width * height


def _mask_area(segmentation: list | dict | None) -> float:
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        return sum(counts[1::2]) if isinstance(counts, list) else int(rle.area(segmentation))
    return sum(_polygon_area(polygon) for polygon in outlines(segmentation or []))


def _polygon_area(polygon: list[float]) -> float:
    """By the shoelace formula."""
    x, y = polygon[::2], polygon[1::2]
    return abs(sum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(len(x)))) / 2


def outlines(polygons: list[list[float]]) -> list[list[float]]:
    """The polygons that have an inside: 3 points or more, each of two coordinates."""
    return [polygon for polygon in polygons if len(polygon) >= 6 and len(polygon) % 2 == 0]


def corners(box: list[float]) -> list[float]:
    """A box [x, y, width, height] as polygon."""
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def written(data: CocoData, out_dir: Path) -> CocoData:
    """The same data with a file for the frameworks in `out_dir` for each split that has none yet."""
    splits = {}
    for name in SPLITS:
        split = getattr(data, name)
        if split.ready is None:
            ready = out_dir.resolve() / f"annotations_{name}.json"
            text = json.dumps(
                {
                    part: [{key: entry[key] for key in keys if key in entry} for entry in split.content[part]]
                    for part, keys in KEPT.items()
                }
            )
            write_text(ready, text)
            split = replace(split, ready=ready)
        splits[name] = split
    return replace(data, **splits)


def part_of(data: CocoData, fraction: float) -> CocoData:
    """A fixed part of the training images, the same for every backbone.

    It is stratified by category: images are taken, in a seeded order, where they bring the class that is farthest below
    its share.
    """
    content = data.train.content
    chosen = stratified(content, max(1, round(fraction * len(content["images"]))))
    part = {
        **content,
        "images": [image for image in content["images"] if image["id"] in chosen],
        "annotations": [a for a in content["annotations"] if a["image_id"] in chosen],
    }
    return replace(data, train=replace(data.train, content=part, ready=None))


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


def _files_below(folder: Path) -> set[str]:
    names: set[str] = set()
    for path, _, files in os.walk(folder):
        inside = os.path.relpath(path, folder)
        names.update(name if inside == "." else os.path.join(inside, name) for name in files)
    return names
