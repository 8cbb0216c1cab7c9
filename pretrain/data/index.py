"""What every source of images is: a compact index and a way to read the encoded bytes of image i.

The index is a few flat arrays in shared memory: workers, forked or spawned, map it and never copy it, and nothing else
grows with the number of images.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from sslight.core.errors import InputError

EXTENSIONS = {
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".mpo",
    ".png",
    ".bmp",
    ".gif",
    ".webp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".jp2",
    ".avif",
}
# How the kinds of image that the decoders accept begin, each with an extension of theirs.
SIGNATURES = {
    extension: re.compile(start, re.DOTALL)
    for extension, start in {
        ".jpg": rb"\xff\xd8\xff",
        ".png": rb"\x89PNG\r\n\x1a\n",
        ".gif": rb"GIF8[79]a",
        ".webp": rb"RIFF....WEBP",
        ".bmp": rb"BM.{12}[\x0c\x10(48@lm|]\0\0\0",
        ".tif": rb"II[*+]\0|MM\0[*+]",
        ".ppm": rb"P[1-6]\s+[#\d]",
        ".jp2": rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n",
        ".avif": rb"....ftyp(?:avif|avis|mif1|msf1)",
    }.items()
}
HEAD = 32  # bytes in which all of them show
NAMED = 3  # of the files that are passed over
FINGERPRINT_SAMPLES = 1000  # images whose sizes are looked at
MAX_BYTES = 1 << 30  # of an encoded image: more than any takes that the decoders accept


def is_image(name: str) -> bool:
    """Whether a file is an image by its name. One that is not may be one by its content (`extension_of`)."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def extension_of(head: bytes) -> str:
    """The extension that fits an image which begins with these bytes, at least HEAD of them; "" for no image."""
    return next((extension for extension, start in SIGNATURES.items() if start.match(head)), "")


class PassedOver:
    """Counts what is no image, and keeps the first few names."""

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
            f"{where} holds the name {name!r}, which is none of a file inside a data directory: do not "
            "trust the file, or write it anew"
        )
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
        return os.fsdecode(self._data.numpy()[start : ends[i]].tobytes())

    def hash(self) -> hashlib._Hash:
        """SHA-256 over all names so far, open for more."""
        digest = hashlib.sha256(self._data.numpy().data)
        digest.update(self._ends.numpy().data)
        return digest


class Source:
    """Encoded images by number. Subclasses fill `names` and, where asked for, know the labels."""

    kind = ""
    passed_over = ""  # what lies among the images and is none, counted and named

    def __init__(self, where: str, names: Names, labelled: bool, classes: Iterable[str] = ()):
        self.where, self.names, self.labelled, self._classes = where, names, labelled, list(classes)
        self.max_value = 0.0  # see `decode_reference`
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
    def note(self) -> str:
        """A line for a run's log about what was passed over; an empty string where nothing was."""
        return self.passed_over and f"passed over in {self.where}: {self.passed_over}"

    def unclear(self, i: int, reason: object) -> InputError:
        """What to raise for an image whose pixels cannot be read without a guess."""
        return InputError(
            f"{self.name(i)} in {self.where} has {reason}: set DATA.MAX_VALUE to the value that is white "
            "(e.g. 4095 of 12 bits, 65535 of 16), or convert such images to RGB of 8 bits"
        )

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
