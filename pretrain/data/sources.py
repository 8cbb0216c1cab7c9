"""Where images come from: the formats of a split, recognised by looking. Imports nothing heavy."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sslight.core.errors import InputError, nearest_file
from sslight.core.registry import Registry

if TYPE_CHECKING:
    from pretrain.data.index import Source


class Packer:
    """Writes one split into `work`, a directory inside `dst`, in steps that a crash can interrupt.

    `add` is called for every image in order, in between `flush`; then `read_back`, `name_classes` and `finish`.
    """

    flush_every = 256  # images
    layout = ""  # what else decides the files: a conversion is only continued with the same

    def __init__(self, dst: Path, split: str, work: Path, shard_images: int):
        self.dst, self.split, self.work, self.shard_images = dst, split, work, shard_images
        self.pending = 0

    def finished(self) -> bool:
        """Whether the split has its place in `dst`."""
        raise NotImplementedError

    def resume(self, done: int) -> int:
        """How many of the `done` images that were flushed before a crash are still there."""
        return done

    def add(self, i: int, name: str, data: bytes, label: int | None) -> None:
        """Write image number `i`, `class/file` where there are classes."""
        raise NotImplementedError

    def flush(self, last: bool) -> bool:
        """Called after every image, the last one included: whether all images so far would survive a crash."""
        self.pending += 1
        if not last and self.pending < self.flush_every:
            return False
        self.pending = 0
        return True

    def close(self) -> None:
        """Called when writing ends, also by an error."""

    def read_back(self, names: Iterable[str]) -> Iterator[bytes]:
        """What was written under these names, all of them, in the order of writing."""
        raise NotImplementedError

    def name_classes(self, classes: list[str]) -> None:
        """Record the classes, also those without an image."""

    def finish(self) -> None:
        """Move the split to its place; may be repeated after a crash."""
        raise NotImplementedError


class DataFormat(Protocol):
    """How a split's images lie in files.

    pattern: of a split's files in its data directory; a folder's ends with `/`.
    packer: the class that writes this format.
    """

    pattern: str
    packer: type[Packer]

    def recognise(self, where: str | Path, split: str) -> list[Path]:
        """The split's files of this format at `where`, a data directory or a URL; none where it has another format."""
        pattern = self.pattern.format(split=glob.escape(split))
        return sorted(path for path in Path(where).glob(pattern.rstrip("/")) if path.is_dir() == pattern.endswith("/"))

    def index(self, files: list[Path], split: str, labels: bool) -> Source:
        """The images in the files that `recognise` returned; `Source.read` reads them. labels: as of `open_source`."""
        ...


FORMATS: Registry[DataFormat] = Registry(
    "format",
    {
        "folder": ("class folders", "pretrain.data.folder:FORMAT"),
        "h5": ("HDF5 files, the published layout", "pretrain.data.hdf5:FORMAT"),
        "shards": ("WebDataset shards", "pretrain.data.shards:FORMAT"),
    },
)


def is_url(path: str | Path) -> bool:
    return "://" in str(path) or str(path).startswith("pipe:")


def open_source(path: str | Path, split: str, labels: bool = True, max_value: float | None = None) -> Source:
    """The images of one split of a data directory.

    Parameters
    ----------
    path: a directory that holds the split in one of `FORMATS`; or the URL of a place with shards.
    split: usually train or val.
    labels: whether labels will be asked for; without, they are never read and class folders are not needed.
    max_value: DATA.MAX_VALUE, for whom the images are to be decoded (see `decode_reference`).

    Raises InputError if there is nothing, nothing of this split, or more than one format of it; where images are to be
    decoded, also if some of up to 100 cannot be without a guess.
    """
    if not str(path):
        raise InputError("no data directory given: set DATA.PATH_TO_DATA_DIR to one that holds train/ and val/")
    if not is_url(path) and not Path(path).is_dir():
        raise InputError(f"data directory not found: {path}{nearest_file(path)}")
    files = {name: there for name, data in FORMATS.items() if (there := data.recognise(path, split))}
    patterns = {name: data.pattern.format(split=split) for name, data in FORMATS.items()}
    if not files:
        root, (*others, last) = Path(path), patterns.values()
        there = ", ".join(sorted(entry.name for entry in os.scandir(root))[:8]) or "nothing"
        within = f"; name the directory that it lies in, {root.parent}" * (root.name in ("train", "val"))
        raise InputError(
            f"no split '{split}' in {path}: it needs {', '.join(others)} or {last}; it holds {there}{within}"
        )
    if len(files) > 1:
        several = " and ".join(patterns[name] for name in files)
        raise InputError(f"split '{split}' is there more than once in {path} ({several}): keep one")
    [name] = files
    source = FORMATS[name].index(files[name], split, labels)
    source.kind = name
    if max_value is not None:
        source.max_value = max_value
        source.check_ranges()
    return source
