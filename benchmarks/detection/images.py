"""The images of a detection data set before and while they are used: readable, and of the size that is annotated.

Before a run the header of every image is read, which takes no decoding; what a header cannot show is decoded, and so is
a sample. In a training or a test, what cannot be decoded ends the run with the file's name, in both frameworks.
"""

from __future__ import annotations

import hashlib
import os
import random
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from benchmarks.detection.data import Split
from pretrain.data.decode import FORMATS, decode_reference
from sslight.core.errors import InputError
from sslight.core.files import write_atomically
from sslight.core.logs import track

SAMPLE = 32  # images of each split that are decoded, too
THREADS = 16  # waiting for a file system over the network is what they share
ENDS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PN": b"IEND\xaeB`\x82"}  # how a whole JPEG or PNG begins and ends
ORIENTATION, QUARTER_TURNS = 0x0112, (5, 6, 7, 8)  # EXIF
CHECKED = "images_checked.txt"
in_order: set[str] = set()  # hashes of what this process has read


class UnreadableImage(InputError):
    """An image that cannot be decoded in the middle of a training or a test.

    torch raises it again in the main process with the loader worker's traceback as its message: the last line counts.
    """

    def __init__(self, message: str):
        super().__init__(message.strip().rpartition(f"{type(self).__name__}: ")[2])


def check(splits: Sequence[Split], out_dir: Path | None) -> None:
    """Compare every image with its entry. Raises InputError for what is unreadable, cut off or of another size.

    What was found in order is not read again in this process, nor, where there is an `out_dir`, by a run that goes on
    in it: a note there holds a hash of the files' names, sizes and times. It lies there because a run's directory
    holds all that a run leaves behind.
    """
    note = out_dir / CHECKED if out_dir else None
    known = {*in_order, *(note.read_text().split() if note and note.is_file() else ())}
    new = set()
    for split in splits:
        with ThreadPoolExecutor(THREADS) as pool:
            digest = _fingerprint(split, pool)
            if digest in known:
                continue
            _check(split, pool)
        new.add(digest)
    in_order.update(new)
    if new and note:
        write_atomically(note, lambda temporary: temporary.write_text("\n".join(sorted(known | new)) + "\n"))


def _fingerprint(split: Split, pool: ThreadPoolExecutor) -> str:
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


def _check(split: Split, pool: ThreadPoolExecutor) -> None:
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
            f"{says}, its size before its EXIF orientation turns it, which both frameworks heed: annotate the "
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
