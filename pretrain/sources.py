"""Where images come from: class folders, HDF5 files or WebDataset shards, recognised by looking.

A source is an index and a way to read the encoded bytes of image i. The index is a few flat arrays in shared memory:
workers, forked or spawned, map it and never copy it, and nothing else grows with the number of images.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from pretrain.errors import InputError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif"}
FINGERPRINT_SAMPLES = 1000  # images whose sizes are looked at


def is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def shared(array: np.ndarray) -> torch.Tensor:
    """The array as a tensor in shared memory: sending it to another process sends a handle."""
    return torch.from_numpy(array).share_memory_()


class Names:
    """A list of strings as one block of bytes and the end of each."""

    def __init__(self, names: Iterable[str]):
        data, ends = bytearray(), []
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
        return os.fsdecode(self._data.numpy()[start:ends[i]].tobytes())

    def hash(self) -> hashlib._Hash:
        """SHA-256 over all names so far, open for more."""
        digest = hashlib.sha256(self._data.numpy().data)
        digest.update(self._ends.numpy().data)
        return digest


class Source:
    """Encoded images by number. Subclasses fill `names` and, where asked for, know the labels."""

    kind = ""

    def __init__(self, where: str, names: Names, labelled: bool):
        self.where, self.names, self.labelled = where, names, labelled

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

    @property
    def labels(self) -> np.ndarray:
        """Class numbers, int64 [len(self)], indices into `classes`."""
        raise NotImplementedError

    @property
    def classes(self) -> list[str]:
        """Class names, in the order of their numbers."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """A short hash of all names and the sizes of up to 1,000 evenly spread images: cheap, equal across formats."""
        digest = self.names.hash()
        for i in np.linspace(0, len(self) - 1, min(len(self), FINGERPRINT_SAMPLES)).astype(int):
            try:
                digest.update(b"%d," % self.size(int(i)))
            except OSError:
                digest.update(b"unreadable,")
        return digest.hexdigest()[:16]

    def _require_labels(self) -> None:
        if not self.labelled:
            raise RuntimeError(f"{self.where} was opened without labels")


class FolderSource(Source):
    """`split/class/image` files; without labels any tree of images."""

    kind = "folder"

    def __init__(self, root: Path, labels: bool):
        self.root = root
        self._classes = sorted(e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith("."))
        if labels and not self._classes:
            raise InputError(f"no class folders in {root}: put the images of each class into a folder of its own there")
        names = Names(_walk(root))
        if not len(names):
            raise InputError(f"no images in {root}: it needs files such as {root}/CLASS/NAME.jpg")
        super().__init__(str(root), names, labels)

    def read(self, i: int) -> bytes:
        return (self.root / self.name(i)).read_bytes()

    def size(self, i: int) -> int:
        return (self.root / self.name(i)).stat().st_size

    @property
    def labels(self) -> np.ndarray:
        self._require_labels()
        number = {name: k for k, name in enumerate(self._classes)}
        tops = (self.name(i).split("/", 1) for i in range(len(self)))
        found = (number[top[0]] if len(top) > 1 else self._stray(top[0]) for top in tops)
        return np.fromiter(found, np.int64, len(self))

    @property
    def classes(self) -> list[str]:
        self._require_labels()
        return list(self._classes)

    def _stray(self, name: str) -> int:
        raise InputError(f"image outside the class folders: {self.root / name}: move it into its class's folder")


def _walk(root: Path, inside: str = "") -> Iterator[str]:
    """Relative names of all images below, sorted, folder by folder."""
    with os.scandir(root / inside) as found:
        entries = sorted((e.name, e.is_dir()) for e in found if not e.name.startswith("."))
    for name, is_folder in entries:
        path = f"{inside}/{name}" if inside else name
        if is_folder:
            yield from _walk(root, path)
        elif is_image(name):
            yield path


def open_source(path: str | Path, split: str, labels: bool = True) -> Source:
    """The images of one split of a data directory.

    Parameters
    ----------
    path: a directory that holds `split/`, `split.h5` or `split-*.tar`; or the URL of a place with shards.
    split: usually train or val.
    labels: whether labels will be asked for; without, they are never read and class folders are not needed.

    Raises InputError if there is nothing, nothing of this split, or more than one form of it.
    """
    root = Path(path)
    if not str(path):
        raise InputError("no data directory given: set DATA.PATH_TO_DATA_DIR to one that holds train/ and val/")
    if not root.is_dir():
        raise InputError(f"data directory not found: {path}")
    if not (root / split).is_dir():
        raise InputError(f"no split '{split}' in {path}: it needs {split}/, {split}.h5 or {split}-*.tar")
    return FolderSource(root / split, labels)
