"""Class folders: `split/class/image` files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from pretrain.data.decode import HEAD, extension_of, is_image
from pretrain.data.sources import MAX_BYTES, DataFormat, Names, Packer, PassedOver, Source
from sslight.core.errors import InputError


class FolderSource(Source):
    """`split/class/image` files; without labels any tree of images."""

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
            raise InputError(f"cannot read {error.filename} ({error.strerror}): repair or remove it") from None
        if not len(names):
            skipped = f", but {self.passed_over}" * bool(self.passed_over)
            raise InputError(f"no images in {root}{skipped}: it needs files such as {root}/CLASS/NAME.jpg")
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
    """Whether a file or folder is one that an operating system leaves beside the images."""
    return name.startswith(".") or name == "__MACOSX"


def _walk(
    root: Path, passed_over: PassedOver, inside: str = "", above: tuple[tuple[int, int], ...] = ()
) -> Iterator[str]:
    """Relative names of all images below, sorted, folder by folder; links are followed. `passed_over` gets the others.

    An image is a file with an image's extension or, under any other name, one that begins as an image does.
    above: what the folders on the way here are to the file system. Raises InputError for a link in a circle, and for a
    pipe or a device, whose end a reader could wait for.
    """
    status = os.stat(root / inside)
    here = status.st_dev, status.st_ino
    if here in above:
        raise InputError(f"{root / inside} is a link to a folder that holds it: remove the link")
    with os.scandir(root / inside) as folder:
        entries = sorted((e.name, e.is_dir(), e.is_file()) for e in folder)
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


class Folder(DataFormat):
    pattern, packer = "{split}/", FolderPacker

    def index(self, files: list[Path], split: str, labels: bool) -> FolderSource:
        return FolderSource(files[0], labels)


FORMAT = Folder()
