"""What every source of images is: a compact index and a way to read the encoded bytes of image i.

The index is a few flat arrays in shared memory: workers, forked or spawned, map it and never copy it, and nothing else
grows with the number of images.
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
MAX_BYTES = 1 << 30  # of an encoded image: more than any takes that the decoders accept


def is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def inside(name: str, where: Path | str) -> str:
    """A name that a foreign file gives, as a plain relative path. Raises InputError where it leads elsewhere."""
    parts = name.split("/")
    if "" in parts or "." in parts:  # `tar c .` writes ./class/file
        parts = [part for part in parts if part not in ("", ".")]
    if name.startswith("/") or "\0" in name or ".." in parts or not parts:
        raise InputError(f"{where} holds the name {name!r}, which is none of a file inside a data directory: do not "
                         "trust the file, or write it anew")
    return "/".join(parts)


def _is_line(name: str) -> bool:
    """Whether a name can be written down: neither with line breaks nor of bytes that are no UTF-8."""
    return len(name.splitlines()) == 1 and not any("\ud800" <= letter <= "\udfff" for letter in name)


def shared(array: np.ndarray) -> torch.Tensor:
    """The array as a tensor in shared memory: sending it to another process sends a handle."""
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
        return os.fsdecode(self._data.numpy()[start:ends[i]].tobytes())

    def hash(self) -> hashlib._Hash:
        """SHA-256 over all names so far, open for more."""
        digest = hashlib.sha256(self._data.numpy().data)
        digest.update(self._ends.numpy().data)
        return digest


class Source:
    """Encoded images by number. Subclasses fill `names` and, where asked for, know the labels."""

    kind = ""

    def __init__(self, where: str, names: Names, labelled: bool, classes: Iterable[str] = ()):
        self.where, self.names, self.labelled, self._classes = where, names, labelled, list(classes)
        odd = [name for name in self._classes if labelled and not _is_line(name)]
        if odd:  # it will stand in results, lists and plots; an image may be called anything
            raise InputError(f"{where} has a class called {odd[0]!r}, which is not a line of UTF-8 text: rename it")

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
        """Let go of open files; the next read opens them again."""

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
