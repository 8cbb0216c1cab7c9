"""Where images come from: what a source and a data format are, which formats there are, and how a split is opened.

The index of a source is a few flat arrays in shared memory: workers, forked or spawned, map it and never copy it, and
nothing else grows with the number of images.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pretrain.data.decode import UnclearImage, check_range
from sslight.core.errors import InputError, nearest_file
from sslight.core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

NAMED = 3  # of the files that are passed over
RANGE_SAMPLES = 100  # images whose headers are looked at
FINGERPRINT_SAMPLES = 1000  # images whose sizes are looked at
MAX_BYTES = 1 << 30  # of an encoded image: more than any takes that the decoders accept


class Source:
    """Encoded images by number. Subclasses fill `names` and know the labels if they were opened with them."""

    kind = ""  # the name of its format
    passed_over = ""  # the files among the images that are not images: how many, and some names

    def __init__(self, where: str, names: Names, labelled: bool, classes: Iterable[str] = ()):
        self.where, self.names, self.labelled, self._classes = where, names, labelled, list(classes)
        self.max_value = 0.0  # see `decode_reference`
        unprintable = [name for name in self._classes if labelled and not _is_line(name)]
        if unprintable:  # results, lists and plots will name it; an image may be called anything
            raise InputError(
                f"{where} has a class called {unprintable[0]!r}, which is not a line of UTF-8 text: rename it"
            )

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        """The image's name inside its split, `class/file` where there are classes."""
        return self.names[i]

    def read(self, i: int) -> bytes:
        """The encoded image. Raises OSError if it cannot be read."""
        raise NotImplementedError

    def size(self, i: int) -> int:
        """Length of `read(i)` in bytes."""
        raise NotImplementedError

    def close(self) -> None:
        """Close open files; the next read opens them again."""

    @property
    def note(self) -> str:
        """A line for a run's log about what was passed over; an empty string where nothing was."""
        return self.passed_over and f"passed over in {self.where}: {self.passed_over}"

    def unclear(self, i: int, reason: object) -> InputError:
        """What to raise for an image whose pixels cannot be read without a guess."""
        return InputError(
            f"{self.name(i)} in {self.where} has {reason}: set DATA.MAX_VALUE to the value that is white "
            "(e.g. 4095 of 12 bits, 65535 of 16), or convert such images to RGB of 8 bits"
        )

    def check_ranges(self) -> None:
        """Raise InputError if the pixels of an image, by the headers of some evenly spread ones, need a guess."""
        for i in np.linspace(0, len(self) - 1, min(len(self), RANGE_SAMPLES)).astype(int).tolist():
            if not self.name(i).lower().endswith((".jpg", ".jpeg")):
                try:
                    check_range(self.read(i), self.max_value)
                except UnclearImage as error:
                    raise self.unclear(i, error) from None
                except OSError:
                    pass  # counted when a loader reads it
        self.close()

    @property
    def has_labels(self) -> bool:
        """Whether every image belongs to a class, as far as the index shows."""
        return bool(self._classes) and not any("/" not in self.name(i) for i in range(len(self)))

    @property
    def labels(self) -> np.ndarray:
        """Class numbers, int64 [len(self)], indices into `classes`: here by the first part of each name."""
        self._require_labels()
        number, labels = {name: k for k, name in enumerate(self._classes)}, np.empty(len(self), dtype=np.int64)
        for i in range(len(self)):
            top, _, inside = self.name(i).partition("/")
            if not inside:
                raise InputError(f"image outside the classes in {self.where}: {top}; move or remove it")
            labels[i] = number[top]
        return labels

    @property
    def classes(self) -> list[str]:
        """Class names, in the order of their numbers."""
        self._require_labels()
        return list(self._classes)

    def fingerprint(self) -> str:
        """A short hash of all names and the sizes of up to 1,000 evenly spread images: cheap, equal across formats."""
        digest = self.names.hash()
        for i in np.linspace(0, len(self) - 1, min(len(self), FINGERPRINT_SAMPLES)).astype(int):
            try:
                digest.update(b"%d," % self.size(int(i)))
            except OSError:
                digest.update(b"unreadable,")
        self.close()
        return digest.hexdigest()[:16]

    def _require_labels(self) -> None:
        if not self.labelled:
            raise RuntimeError(f"{self.where} was opened without labels")


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
        folder, pattern = self.pattern.endswith("/"), self.pattern.format(split=glob.escape(split))
        paths = sorted(Path(where).glob(pattern.rstrip("/")))
        # a link to nothing counts as a file: a missing one must not go unnoticed
        return [path for path in paths if (path.is_dir() if folder else path.is_file() or not path.exists())]

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
    labels: whether labels are needed; without, they are never read and class folders are not needed.
    max_value: DATA.MAX_VALUE, for whom the images are to be decoded (see `decode_reference`).

    Raises InputError if there is nothing, nothing of this split, or more than one format of it; where images are to be
    decoded, also if some of up to 100 cannot be without a guess.
    """
    if not str(path):
        raise InputError("no data directory given: set DATA.PATH_TO_DATA_DIR to one that holds train/ and val/")
    if not is_url(path) and not Path(path).is_dir():
        raise InputError(f"data directory not found: {path}{nearest_file(path)}")
    files = {name: paths for name, data in FORMATS.items() if (paths := data.recognise(path, split))}
    patterns = {name: data.pattern.format(split=split) for name, data in FORMATS.items()}
    if not files:
        root, (*others, last) = Path(path), patterns.values()
        content = ", ".join(sorted(entry.name for entry in os.scandir(root))[:8]) or "nothing"
        within = f"; name the directory that it lies in, {root.parent}" * (root.name in ("train", "val"))
        raise InputError(
            f"no split '{split}' in {path}: it needs {', '.join(others)} or {last}; it holds {content}{within}"
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


class PassedOver:
    """Counts the files that are not images, and keeps the first few names."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[str] = []

    def add(self, name: str) -> None:
        self.count += 1
        if self.count <= NAMED:
            self.first.append(name if _is_line(name) else ascii(name))

    def __str__(self) -> str:
        """`3 files that are no images: a/notes.txt, b/._1.jpg, ...`, or an empty string."""
        if not self.count:
            return ""
        return (
            f"{self.count} file{'s that are no images' if self.count > 1 else ' that is no image'}: "
            f"{', '.join(self.first)}{', ...' * (self.count > NAMED)}"
        )


def inside(name: str, where: Path | str) -> str:
    """A name that a foreign file gives, as a plain relative path. Raises InputError where it leads elsewhere."""
    parts = name.split("/")
    if "" in parts or "." in parts:  # `tar c .` writes ./class/file
        parts = [part for part in parts if part not in ("", ".")]
    if name.startswith("/") or "\0" in name or ".." in parts or not parts:
        raise InputError(
            f"{where} holds the name {name!r}, which is not that of a file inside a data directory: "
            "do not trust the file, or write it again"
        )
    return "/".join(parts)


def _is_line(name: str) -> bool:
    """Whether a name can be written down: neither with line breaks nor of bytes that are no UTF-8."""
    return len(name.splitlines()) == 1 and not any("\ud800" <= letter <= "\udfff" for letter in name)


def shared(array: np.ndarray) -> Tensor:
    """The array as a tensor in shared memory: sending it to another process sends a handle."""
    import torch  # here, so that listing the formats needs none

    return torch.from_numpy(array).share_memory_()


class Names:
    """A list of strings as one block of bytes and the end of each."""

    def __init__(self, names: Iterable[str]):
        data = bytearray()
        ends = np.fromiter(self._fill(data, names), dtype=np.int64)
        self._data = shared(np.frombuffer(bytes(data), dtype=np.uint8).copy())
        self._ends = shared(ends)

    @staticmethod
    def _fill(data: bytearray, names: Iterable[str]) -> Iterator[int]:
        for name in names:
            data += os.fsencode(name)
            yield len(data)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> str:
        ends = self._ends.numpy()
        start = ends[i - 1] if i else 0
        return os.fsdecode(self._data.numpy()[start : ends[i]].tobytes())

    def hash(self) -> Any:
        """SHA-256 over all names so far, open for more."""
        digest = hashlib.sha256(self._data.numpy().data)
        digest.update(self._ends.numpy().data)
        return digest
