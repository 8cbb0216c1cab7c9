"""How each form of a split is written, in steps that a crash can interrupt, and read back for the proof."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from pretrain.command_line import FORMATS
from pretrain.errors import InputError
from pretrain.shards import ShardSource


class Packer:
    """Writes one split into `work`, a directory inside `dst`, and moves it to its place when asked.

    `add` is called for every image in order; `flush(last)` says whether all images so far would survive a crash of
    this process; `resume(done)` how many of the `done` images that were once flushed are still there.
    """

    flush_every = 256  # images

    def __init__(self, dst: Path, split: str, work: Path, shard_images: int):
        self.dst, self.split, self.work, self.shard_images = dst, split, work, shard_images
        self.pending = 0

    def finished(self) -> bool:
        """Whether the split has its place in `dst`."""
        raise NotImplementedError

    def resume(self, done: int) -> int:
        return done

    def add(self, i: int, name: str, data: bytes, label: int | None) -> None:
        raise NotImplementedError

    def flush(self, last: bool) -> bool:
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


class FolderPacker(Packer):
    """`split/class/file`."""

    def finished(self) -> bool:
        return (self.dst / self.split).is_dir()

    def add(self, i: int, name: str, data: bytes, label: int | None) -> None:
        file = self.work / self.split / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    def read_back(self, names: Iterable[str]) -> Iterator[bytes]:
        return ((self.work / self.split / name).read_bytes() for name in names)

    def name_classes(self, classes: list[str]) -> None:
        for name in classes:
            (self.work / self.split / name).mkdir(exist_ok=True)

    def finish(self) -> None:
        if (self.work / self.split).exists():
            os.replace(self.work / self.split, self.dst / self.split)


class HDF5Packer(Packer):
    """`split.h5`: a group per class, one encoded image per dataset.

    HDF5 has no journal: a kill while it overwrites its own metadata may cost the file. So metadata stays in memory from
    one flush to the next, which closes the file and opens it anew to forget it; images only ever append.
    """

    def __init__(self, *args):
        super().__init__(*args)
        self.file, self.handle = self.work / f"{self.split}.h5", None

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
        name = os.fsencode(name)  # need not be valid text
        with contextlib.suppress(KeyError):  # it is there if it was written, but not flushed, before a crash
            del self.handle[name]
        self.handle.create_dataset(name, data=np.frombuffer(data, dtype=np.uint8))

    def flush(self, last: bool) -> bool:
        due = super().flush(last)
        if due:
            self.handle.close()
            self.handle = self._open("a")
        return due

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


class ShardPacker(Packer):
    """`split-NNNNNN.tar` of `shard_images` images each, and `split-classes.txt`."""

    def __init__(self, *args):
        super().__init__(*args)
        self.tar, self.temporary = None, self.work / "shard.tmp"

    def _file(self, number: int) -> Path:
        return self.work / f"{self.split}-{number:06d}.tar"

    def finished(self) -> bool:
        return any(self.dst.glob(f"{self.split}-*.tar"))

    def resume(self, done: int) -> int:
        whole = done // self.shard_images
        return next((k for k in range(whole) if not self._file(k).exists()), whole) * self.shard_images

    def add(self, i: int, name: str, data: bytes, label: int | None) -> None:
        self.number = i // self.shard_images
        if self.tar is None:
            self.tar = tarfile.open(self.temporary, "w")
        stem, extension = os.path.splitext(_member(name))
        self._put(stem + extension, data)
        if label is not None:
            self._put(stem + ".cls", str(label).encode())
        self.in_shard = i % self.shard_images + 1

    def _put(self, name: str, data: bytes) -> None:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        self.tar.addfile(entry, io.BytesIO(data))
        self.tar.members.clear()  # tarfile keeps every entry otherwise

    def flush(self, last: bool) -> bool:
        if not last and self.in_shard < self.shard_images:
            return False
        self.tar.close()
        self.tar = None
        os.replace(self.temporary, self._file(self.number))
        return True

    def close(self) -> None:
        if self.tar:
            self.tar.close()
        self.temporary.unlink(missing_ok=True)

    def read_back(self, names: Iterable[str]) -> Iterator[bytes]:
        source = ShardSource(sorted(self.work.glob(f"{self.split}-*.tar")), self.split, labels=False)
        for i, name in enumerate(names):
            if i >= len(source) or source.name(i) != _member(name):
                raise OSError(f"no member {_member(name)}")
            yield source.read(i)

    def name_classes(self, classes: list[str]) -> None:
        if any(len(name.splitlines()) != 1 for name in classes):
            raise InputError("a class name with a line break, or an empty one, cannot go into shards: rename it")
        text = "".join(f"{name}\n" for name in classes)
        (self.work / f"{self.split}-classes.txt").write_text(text, encoding="utf-8")

    def finish(self) -> None:
        for file in sorted(self.work.glob(f"{self.split}-*")):
            os.replace(file, self.dst / file.name)


def _member(name: str) -> str:
    """The name in a shard, where a sample's name ends at the first dot."""
    folder, slash, base = name.rpartition("/")
    stem, extension = os.path.splitext(base)
    return folder + slash + stem.replace(".", "%2E") + extension


PACKERS = dict(zip(FORMATS, (FolderPacker, HDF5Packer, ShardPacker), strict=True))
