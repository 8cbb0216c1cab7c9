"""HDF5, the published layout: `split.h5` with a group per class and one encoded image per dataset."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.data.sources import MAX_BYTES, DataFormat, Names, Packer, Source, inside
from sslight.core.errors import InputError


class HDF5Source(Source):
    """The published layout: a group per class, one encoded image per dataset; without labels also loose datasets."""

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
                "belongs: write the file again, without links"
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


class HDF5Packer(Packer):
    """`split.h5`: a group per class, one encoded image per dataset.

    HDF5 has no journal: a kill while it overwrites its own metadata may cost the file. So metadata stays in memory from
    one flush to the next, which closes the file and opens it again to forget it; images only ever append.
    """

    def __init__(self, *args):
        super().__init__(*args)
        self.file = self.work / f"{self.split}.h5"
        self.handle: Any = None

    def _open(self, mode: str):
        import h5py

        file = h5py.File(self.file, mode)
        if mode == "a":
            cache = file.id.get_mdc_config()
            cache.evictions_enabled = False
            cache.incr_mode = cache.flash_incr_mode = cache.decr_mode = 0  # no evictions: no resizing either
            file.id.set_mdc_config(cache)
        return file

    def finished(self) -> bool:
        return (self.dst / f"{self.split}.h5").is_file()

    def resume(self, done: int) -> int:
        try:
            self.handle = self._open("a")
            known = sum(1 for group in self.handle.values() for _ in group) if done else 0
        except (OSError, RuntimeError, KeyError):  # killed in the middle of a flush
            known = -1
        if known < done:
            self.close()
            self.file.unlink()
            self.handle, done = self._open("a"), 0
        return done

    def add(self, i: int, name: str, data: bytes, label: int | None) -> None:
        key = os.fsencode(name)  # need not be valid text
        with contextlib.suppress(KeyError):  # it is there if it was written, but not flushed, before a crash
            del self.handle[key]
        self.handle.create_dataset(key, data=np.frombuffer(data, dtype=np.uint8))

    def flush(self, last: bool) -> bool:
        flushed = super().flush(last)
        if flushed:
            self.handle.close()
            self.handle = self._open("a")
        return flushed

    def close(self) -> None:
        if self.handle:
            self.handle.close()

    def read_back(self, names: Iterable[str]) -> Iterator[bytes]:
        with self._open("r") as file:
            for name in names:
                yield file[os.fsencode(name)][()].tobytes()

    def name_classes(self, classes: list[str]) -> None:
        with self._open("a") as file:
            for name in classes:
                file.require_group(name)

    def finish(self) -> None:
        if self.file.exists():
            os.replace(self.file, self.dst / self.file.name)


class HDF5(DataFormat):
    pattern, packer = "{split}.h5", HDF5Packer

    def index(self, files: list[Path], split: str, labels: bool) -> HDF5Source:
        return HDF5Source(files[0], labels)


FORMAT = HDF5()
