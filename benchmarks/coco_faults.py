"""What makes a JSON document no COCO annotation file, in words; the frameworks and the evaluation's C code trust it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from PIL import Image

WANTED = {"images": {"id": int, "file_name": str, "width": int, "height": int},
          "categories": {"id": int, "name": str},
          "annotations": {"id": int, "image_id": int, "category_id": int, "bbox": list}}
DISTINCT = ("images", "categories")  # annotations are numbered again where their ids are not
DUE = {int: "an integer", str: "a text", list: "a list"}
MAX_PIXELS = Image.MAX_IMAGE_PIXELS
CROWD, OUTSIDE, TINY, FEW_POINTS, SMALL_IMAGE = (  # why a framework leaves objects out of the training
    "crowds or to be ignored", "outside their image", "smaller than a pixel",
    "with polygons of fewer than 3 points", "in images smaller than the recipe's least size")
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


def _entries(part: str, entries: object, fields: dict[str, type]) -> Iterator[str]:
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
                yield f"has {entry[key]!r:.60} as '{key}' in {part}[{number}]: {DUE[kind]} is due"
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
        return f"with the box {box!r:.80}: four finite numbers are due"
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
        return f"with the segmentation {value!r:.60}: polygons or run lengths are due"
    far_x, far_y = FAR * width, FAR * height
    for polygon in value or ():
        if not isinstance(polygon, list) or not _finite(polygon):
            return f"with the polygon {polygon!r:.60}: a list of finite numbers is due"
        if polygon and not (-far_x <= min(polygon[::2]) and max(polygon[::2]) <= far_x
                            and -far_y <= min(polygon[1::2], default=0) and max(polygon[1::2], default=0) <= far_y):
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
    if not isinstance(counts, list) or {int} != set(map(type, counts)) or min(counts) < 0 or (
            sum(counts) != width * height):
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
