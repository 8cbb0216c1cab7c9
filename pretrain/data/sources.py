"""Where images come from: class folders, HDF5 files or WebDataset shards, recognised by looking."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.data.decode import UnclearImage, check_range
from pretrain.data.index import HEAD, MAX_BYTES, Names, PassedOver, Source, extension_of, inside, is_image
from pretrain.data.shards import ShardSource, is_url, remote_shards
from sslight.core.errors import InputError, nearest_file

RANGE_SAMPLES = 100  # images whose headers are looked at

__all__ = ["FolderSource", "HDF5Source", "ShardSource", "Source", "open_source"]


class FolderSource(Source):
    """`split/class/image` files; without labels any tree of images."""

    kind = "folder"

    def __init__(self, root: Path, labels: bool):
        self.root = root
        try:
            classes = sorted(e.name for e in os.scandir(root) if e.is_dir() and not _is_hidden(e.name))
            if labels and not classes:
                raise InputError(
                    f"no class folders in {root}: put the images of each class into a folder of its own there"
                )
            passed_over = PassedOver()
            names = Names(_walk(root, passed_over))
            self.passed_over = str(passed_over)
        except OSError as error:
            raise InputError(f"cannot read {error.filename} ({error.strerror}): mend or remove it") from None
        if not len(names):
            there = f", but {self.passed_over}" * bool(self.passed_over)
            raise InputError(f"no images in {root}{there}: it needs files such as {root}/CLASS/NAME.jpg")
        super().__init__(str(root), names, labels, classes)

    def read(self, i: int) -> bytes:
        with open(self.root / self.name(i), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise OSError(f"{size} bytes are too many for an image")
            return file.read()

    def size(self, i: int) -> int:
        return (self.root / self.name(i)).stat().st_size


def _is_hidden(name: str) -> bool:
    """Of a file or folder that a system leaves beside the images."""
    return name.startswith(".") or name == "__MACOSX"


def _walk(
    root: Path, passed_over: PassedOver, inside: str = "", above: tuple[tuple[int, int], ...] = ()
) -> Iterator[str]:
    """Relative names of all images below, sorted, folder by folder; links are followed. What is none is noted.

    An image is a file with the name of one, or that begins as one does; only of other names the content is read.
    above: what the folders on the way here are to the file system. Raises InputError for a link in a circle, and for a
    pipe or a device, whose end a reader could wait for.
    """
    status = os.stat(root / inside)
    here = status.st_dev, status.st_ino
    if here in above:
        raise InputError(f"{root / inside} is a link to a folder that holds it: remove the link")
    with os.scandir(root / inside) as found:
        entries = sorted((e.name, e.is_dir(), e.is_file()) for e in found)
    for name, is_folder, is_file in entries:
        path = f"{inside}/{name}" if inside else name
        if _is_hidden(name):
            passed_over.add(f"{path}/" if is_folder else path)
        elif is_folder:
            yield from _walk(root, passed_over, path, (*above, here))
        elif is_image(name):
            if not is_file and os.path.exists(root / path):  # where nothing is, reading will say so
                raise InputError(f"{root / path} is no regular file: remove it")
            yield path
        elif is_file and extension_of(_head(root / path)):
            yield path
        else:
            passed_over.add(path)


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(HEAD)
    except OSError:
        return b""


class HDF5Source(Source):
    """The published layout: a group per class, one encoded image per dataset; without labels also loose datasets."""

    kind = "h5"

    def __init__(self, file: Path, labels: bool):
        self.file = file
        self._handle: Any = None
        self._pid: int | None = None
        classes: list[str] = []
        try:
            names = Names(inside(name, file) for name in self._list(classes))
        except InputError:
            raise
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise InputError(f"not a readable HDF5 file: {file} ({' '.join(str(error).split())})") from None
        if not len(names):
            raise InputError(f"no images in {file}: it needs a group per class with one encoded image per dataset")
        if labels and not classes:
            raise InputError(f"no class groups in {file}: put the images of each class into a group of its own")
        super().__init__(str(file), names, labels, classes)

    def _list(self, classes: list[str]) -> Iterator[str]:
        import h5py

        with self._open() as file:
            for top in self._links(file):
                if file.get(top, getclass=True) is h5py.Group:
                    classes.append(inside(top, self.file))
                    yield from (f"{top}/{name}" for name in self._links(file[top]))
                else:
                    yield top

    def _links(self, group) -> list[str]:
        """The names in a group, sorted. Raises InputError for one that leads elsewhere, perhaps out of the file."""
        import h5py

        names: list[str] = []
        links: list[str] = []
        group.id.links.iterate(
            lambda name, link: (names if link.type == h5py.h5l.TYPE_HARD else links).append(os.fsdecode(name)),
            info=True,
        )
        if links:
            raise InputError(
                f"{self.file} holds a link, {links[0]!r} in {group.name}, where a class or an image "
                "belongs: write the file anew, without links"
            )
        return sorted(names)

    def _open(self):
        import h5py

        return h5py.File(self.file, "r", locking="best-effort")

    def _dataset(self, i: int):
        """The image's dataset. Raises OSError if it is none, too large, or kept outside the file."""
        import h5py

        if self._pid != os.getpid():  # a forked worker must not read through its parent's handle
            self._handle, self._pid = self._open(), os.getpid()
        try:
            dataset = self._handle[os.fsencode(self.name(i))]
            if not isinstance(dataset, h5py.Dataset) or not dataset.size:
                raise OSError("not a dataset that holds an image")
            layout = dataset.id.get_create_plist()
            if layout.get_external_count() or layout.get_layout() == h5py.h5d.VIRTUAL:
                raise OSError("its bytes are kept in another file")
            if dataset.nbytes > MAX_BYTES or (dataset.dtype.kind == "O" and dataset.size > 1):
                raise OSError(f"{dataset.nbytes} bytes are too many for an image")
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise OSError(str(error)) from None
        return dataset

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_handle": None, "_pid": None}

    def close(self) -> None:
        if self._pid == os.getpid():
            self._handle.close()
        self._handle = self._pid = None

    def read(self, i: int) -> bytes:
        dataset = self._dataset(i)
        try:
            value = dataset[()]
        except (TypeError, ValueError, RuntimeError) as error:
            raise OSError(f"not a dataset that holds an image ({error})") from None
        return value if isinstance(value, bytes) else np.asarray(value).tobytes()

    def size(self, i: int) -> int:
        dataset = self._dataset(i)
        return len(self.read(i)) if dataset.dtype.kind == "O" else dataset.nbytes  # O: of variable length


def open_source(path: str | Path, split: str, labels: bool = True, max_value: float | None = None) -> Source:
    """The images of one split of a data directory.

    Parameters
    ----------
    path: a directory that holds `split/`, `split.h5` or `split-*.tar`; or the URL of a place with shards.
    split: usually train or val.
    labels: whether labels will be asked for; without, they are never read and class folders are not needed.
    max_value: DATA.MAX_VALUE, for whom the images are to be decoded (see `decode_reference`).

    Raises InputError if there is nothing, nothing of this split, or more than one form of it; where images are to be
    decoded, also if some of up to 100 cannot be without a guess.
    """
    source = _open(path, split, labels)
    if max_value is not None:
        source.max_value = max_value
        _check_ranges(source)
    return source


def _check_ranges(source: Source) -> None:
    """Look at the headers of some evenly spread images, but JPEGs, for what their pixels mean."""
    for i in np.linspace(0, len(source) - 1, min(len(source), RANGE_SAMPLES)).astype(int).tolist():
        if not source.name(i).lower().endswith((".jpg", ".jpeg")):
            try:
                check_range(source.read(i), source.max_value)
            except UnclearImage as error:
                raise source.unclear(i, error) from None
            except OSError:
                pass  # counted where it is read in earnest
    source.close()


def _open(path: str | Path, split: str, labels: bool) -> Source:
    if not str(path):
        raise InputError("no data directory given: set DATA.PATH_TO_DATA_DIR to one that holds train/ and val/")
    if is_url(path):
        return ShardSource(remote_shards(str(path), split), split, labels)
    root = Path(path)
    if not root.is_dir():
        raise InputError(f"data directory not found: {path}{nearest_file(path)}")
    shards = sorted(root.glob(f"{glob.escape(split)}-*.tar"))
    known = {
        f"{split}/": (root / split).is_dir(),
        f"{split}.h5": (root / f"{split}.h5").is_file(),
        f"{split}-*.tar": bool(shards),
    }
    forms = [form for form, there in known.items() if there]
    if not forms:
        there = ", ".join(sorted(entry.name for entry in os.scandir(root))[:8]) or "nothing"
        within = f"; name the directory that it lies in, {root.parent}" * (root.name in ("train", "val"))
        raise InputError(
            f"no split '{split}' in {path}: it needs {split}/, {split}.h5 or {split}-*.tar; it holds {there}{within}"
        )
    if len(forms) > 1:
        raise InputError(f"split '{split}' is there more than once in {path} ({' and '.join(forms)}): keep one")
    if forms[0] == f"{split}/":
        return FolderSource(root / split, labels)
    return HDF5Source(root / f"{split}.h5", labels) if forms[0].endswith(".h5") else ShardSource(shards, split, labels)
