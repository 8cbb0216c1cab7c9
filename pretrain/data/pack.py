"""How each form of a split is written, in steps that a crash can interrupt, and read back for the proof."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pretrain import settings as command_line
from pretrain.data.index import Source, extension_of, is_image
from pretrain.data.shards import ShardSource, is_url
from pretrain.data.sources import open_source
from pretrain.settings import FORMATS
from sslight.core.errors import EXIT_DONE, InputError
from sslight.core.logs import Bar
from sslight.core.processes import run_command


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
        self.tar: Any = None
        self.temporary = self.work / "shard.tmp"

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

SPLITS = ("train", "val")
TEXT: dict[str, Any] = {
    "encoding": "utf-8",
    "errors": "surrogateescape",
    "newline": "\n",
}  # file names need not be valid text


def main(argv: Sequence[str] | None = None) -> int:
    args = command_line.pack().parse_args(argv)
    if args.shard_images < 1:
        raise InputError("--shard-images wants at least 1")
    if not is_url(args.src) and Path(args.src).resolve() == args.dst.resolve():
        raise InputError(f"SRC and DST are both {args.src}: two forms of a split in one directory would be ambiguous")
    sources = _open_splits(args.src, args.splits)
    for split, source in sources:
        if source.note:
            print(source.note)
        pack_split(source, args.dst, split, args.to, args.shard_images)
    return EXIT_DONE


def _open_splits(src: str, splits: Sequence[str] | None) -> list[tuple[str, Source]]:
    """The sources of all splits, opened before any is packed; those not named may be missing, but not all."""
    found, errors = [], []
    for split in splits or SPLITS:
        try:
            source = open_source(src, split, labels=False)
        except InputError as error:
            if splits:
                raise
            errors.append(str(error))
        else:
            found.append((split, open_source(src, split) if source.has_labels else source))
    missing = [error for error in errors if not error.startswith("no split")]
    if missing or not found:
        raise InputError((missing or errors)[0])
    return found


def pack_split(source: Source, dst: Path, split: str, to: str, shard_images: int) -> None:
    """Convert one split; does nothing if it is there already. Raises InputError if DST holds another one."""
    work, sums = dst / f".{split}.partial", dst / f"{split}.sha256"
    packer = PACKERS[to](dst, split, work, shard_images)
    note = f"{source.fingerprint()} {len(source)} {to} {shard_images if to == 'shards' else ''}\n"
    if sums.exists() and not work.exists():
        if packer.finished() and _same_images(source, sums):
            print(f"{split}: already packed, {len(source)} images in {dst}")
            return
        raise InputError(f"{sums} belongs to a conversion of other images or to another form: choose another DST")
    if not work.exists():
        if packer.finished():
            raise InputError(f"split '{split}' is in {dst} already, not written by this command: choose another DST")
        _check_space(source, dst)
        work.mkdir(parents=True)
        (work / "source").write_text(note)
    elif not (work / "source").exists() or (work / "source").read_text() != note:
        raise InputError(f"{work} is a conversion of other images or to another form: remove it, or choose another DST")
    journal = work / "journal"
    if not (work / "verified").exists():
        try:
            _write(source, packer, journal, split)
        finally:
            packer.close()
        _verify(packer, journal, len(source), split)
        if source.labelled:
            packer.name_classes(source.classes)
        (work / "verified").touch()
    packer.finish()
    if journal.exists():
        os.replace(journal, sums)
    shutil.rmtree(work)
    print(f"{split}: {len(source)} images in {dst} as {to}, checksums in {sums.name}")


def _same_images(source: Source, sums: Path) -> bool:
    """Whether the checksums are those of the source, judged by their number and by up to 20 images."""
    digests = [digest for digest, _ in _lines(sums)]
    some = np.linspace(0, len(source) - 1, min(len(source), 20)).astype(int).tolist()
    return len(digests) == len(source) and all(hashlib.sha256(source.read(i)).hexdigest() == digests[i] for i in some)


def _check_space(source: Source, dst: Path) -> None:
    """Raise InputError if the images, judged by up to 1,000 of them, do not fit on the disk."""
    some = np.linspace(0, len(source) - 1, min(len(source), 1000)).astype(int)
    try:
        need = sum(source.size(int(i)) for i in some) / len(some) * len(source)
    except OSError as error:
        raise InputError(f"cannot read the images of {source.where} ({error})") from None
    source.close()
    dst.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(dst).free
    if need > free:
        raise InputError(f"{dst} has {free / 1e9:.1f} GB free, the images need about {need / 1e9:.1f} GB")


def _write(source: Source, packer: Packer, journal: Path, split: str) -> None:
    """Write what the journal does not list yet, and what a crash took back; a line is added once its image is safe."""
    done = packer.resume(sum(1 for _ in _lines(journal)))
    _keep_lines(journal, done)
    labels, classes = (source.labels, source.classes) if source.labelled else (None, [])
    bar = Bar(len(source), f"packing {split}", "images", initial=done)
    with open(journal, "a", **TEXT) as file:
        lines = []
        for i in range(done, len(source)):
            try:
                data = source.read(i)
            except OSError as error:
                raise InputError(f"cannot read {source.name(i)} of {source.where} ({error})") from None
            name = _target_name(source.name(i), None if labels is None else classes[labels[i]], data)
            try:
                packer.add(i, name, data, None if labels is None else int(labels[i]))
            except OSError as error:
                raise InputError(f"cannot write {name} into {packer.work} ({error})") from None
            lines.append(f"{hashlib.sha256(data).hexdigest()}  {name}\n")
            if packer.flush(last=i + 1 == len(source)):
                file.writelines(lines)
                file.flush()
                lines.clear()
            bar.update(1)
    bar.close()


def _verify(packer: Packer, journal: Path, images: int, split: str) -> None:
    """Read every image back. Raises InputError naming the first that differs from what was read at the source."""
    bar, written = Bar(images, f"checking {split}", "images"), packer.read_back(name for _, name in _lines(journal))
    for digest, name in _lines(journal):
        try:
            same = hashlib.sha256(next(written)).hexdigest() == digest
        except (OSError, KeyError):
            same = False
        if not same:
            raise InputError(
                f"{name} in {packer.work} is not what was read from the source (or shares its name with "
                "another image there): remove that directory and start again"
            )
        bar.update(1)
    bar.close()


def _target_name(name: str, label: str | None, data: bytes) -> str:
    """`class/file.ext`: the class in front where the source keeps it elsewhere, an extension where it has none."""
    if label is not None and not name.startswith(f"{label}/"):
        name = f"{label}/{name.replace('/', '_')}"
    if not is_image(name):
        name += extension_of(data) or ".jpg"
    if "\n" in name:
        raise InputError(f"file name with a line break: {name!r}; rename it")
    return name


def _lines(journal: Path) -> Iterator[tuple[str, str]]:
    """(SHA-256, name) of every complete line."""
    if journal.exists():
        with open(journal, **TEXT) as lines:
            for line in lines:
                if line.endswith("\n"):
                    digest, name = line[:-1].split("  ", 1)
                    yield digest, name


def _keep_lines(journal: Path, number: int) -> None:
    """Cut the journal after so many lines."""
    with open(journal, "a+b") as file:
        file.seek(0)
        for _ in range(number):
            file.readline()
        file.truncate(file.tell())


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
