"""A detection data set in COCO's format: where it lies, its classes, and the faults that must stop a run at once."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from benchmarks.coco_faults import fault
from pretrain.errors import InputError

SPLITS = ("train", "val")


@dataclass(frozen=True)
class Split:
    """One annotation file, the folder of its images and its content."""

    json: Path
    images: Path
    content: dict

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
            raise InputError("no data set: add DATA.PATH_TO_DATA_DIR PATH (annotations/, train2017/, val2017/), or "
                             "DATA.TRAIN_JSON, DATA.TRAIN_IMAGES, DATA.VAL_JSON and DATA.VAL_IMAGES")
        root = Path(cfg.DATA.PATH_TO_DATA_DIR)
        splits[name] = read_split(Path(files) if files else root / "annotations" / f"instances_{name}2017.json",
                                  Path(images) if images else root / f"{name}2017")
    categories = [[(c["id"], c["name"]) for c in splits[name].content["categories"]] for name in SPLITS]
    if categories[0] != categories[1]:
        odd = next(iter(set(categories[0]) ^ set(categories[1])), None)
        what = f"category {odd[0]} '{odd[1]}' is in one of them only" if odd else "their order differs"
        raise InputError(f"{splits['train'].json} and {splits['val'].json} list different categories ({what}): "
                         "write the same list into both")
    return CocoData(splits["train"], splits["val"], tuple(name for _, name in categories[0]))


def read_split(file: Path, images: Path) -> Split:
    """Read one annotation file and see that every image it lists lies in the folder."""
    if not file.is_file():
        raise InputError(f"COCO annotation file not found: {file}; DATA.PATH_TO_DATA_DIR needs annotations/"
                         "instances_train2017.json and instances_val2017.json (or set DATA.*_JSON)")
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"not a COCO annotation file: {file} is not JSON ({error})") from None
    what = fault(content)
    if what:
        raise InputError(f"not a COCO annotation file: {file} {what}")
    if not images.is_dir():
        raise InputError(f"image folder not found: {images} (for {file})")
    present = _files_below(images)
    absent = [image["file_name"] for image in content["images"] if os.path.normpath(image["file_name"]) not in present
              and not os.path.isfile(images / image["file_name"])]  # links to folders are not walked
    if absent:
        raise InputError(f"{len(absent)} of {len(content['images'])} images listed in {file} are absent from {images}, "
                         f"first {absent[0]}: complete the folder or remove them from the file")
    return Split(file, images, content)


def _files_below(folder: Path) -> set[str]:
    found = set()
    for path, _, files in os.walk(folder):
        inside = os.path.relpath(path, folder)
        found.update(name if inside == "." else os.path.join(inside, name) for name in files)
    return found
