"""WebDataset shards: `split-*.tar` files, on the disk or behind a URL, read at random through an index.

A sample is what shares a name up to the first dot of its last part: an image (`.jpg`, ..., or the first member that
begins as an image does) and, if labelled, its class number as text (`.cls`). Class names come from `split-classes.txt`
beside the shards, one a line; without it they are the numbers. Remote shards are fetched once, whole, into a cache
directory ($SSLIGHT_CACHE, default ~/.cache/sslight).
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import shutil
import tarfile
import urllib.request
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.data.decode import HEAD, extension_of, is_image
from pretrain.data.sources import MAX_BYTES, DataFormat, Names, Packer, PassedOver, Source, inside, is_url, shared
from sslight.core.errors import InputError

BLOCK = 512  # bytes: the unit of a tar file
MAX_HEADER = 1 << 20  # bytes of a long name or of extended fields
MAX_LABEL = 32  # bytes of a class number
MAX_CLASSES = 1_000_000


def tar_members(file: Path, passed_over: PassedOver) -> Iterator[tuple[str, int, int]]:
    """(name, offset of the content, size in bytes) of every regular file. Raises InputError if the tar is broken.

    Links, devices and the like are passed over, and noted. A tar without its end is taken for one that was cut off.
    """
    end, at, long_name, long_size = file.stat().st_size, 0, None, None
    with open(file, "rb", buffering=0) as stream:
        while (header := os.pread(stream.fileno(), BLOCK, at)) != bytes(BLOCK):
            if len(header) < BLOCK:
                raise InputError(f"shard is cut off: {file} has no end; fetch or pack it again")
            name, size, kind = _parse_header(header, file, at)
            size = size if long_size is None else long_size
            if at + BLOCK + size > end:
                raise InputError(f"shard is cut off: {file} ends inside {name!r}; fetch or pack it again")
            content = at + BLOCK
            if kind in (b"L", b"x") and size > MAX_HEADER:
                raise _damaged(file, at)
            if kind == b"L":  # GNU: the next member's long name
                long_name = os.fsdecode(os.pread(stream.fileno(), size, content).rstrip(b"\0"))
            elif kind == b"x":  # POSIX: the next member's name or size
                try:
                    fields = _pax_fields(os.pread(stream.fileno(), size, content))
                    long_size = _size(fields[b"size"], 10) if b"size" in fields else None
                except (ValueError, IndexError):
                    raise _damaged(file, at) from None
                long_name = os.fsdecode(fields[b"path"]) if b"path" in fields else long_name
            elif kind in (b"0", b"\0", b"7"):
                yield inside(long_name or name, file), content, size
                long_name = long_size = None
            elif kind != b"g":
                if kind != b"5":  # a folder
                    passed_over.add(long_name or name)
                long_name = long_size = None
            at = content + -(-size // BLOCK) * BLOCK
        while rest := os.pread(stream.fileno(), MAX_HEADER, at):  # padding; anything else was overwritten in front
            if rest.count(0) < len(rest):
                raise _damaged(file, at)
            at += len(rest)


def _damaged(file: Path, at: int) -> InputError:
    return InputError(f"not a tar file, or damaged: {file} (at byte {at}); fetch or pack it again")


def _size(digits: bytes, base: int) -> int:
    """Raises ValueError for a text that is no size."""
    size = int(digits, base)
    if size < 0:
        raise ValueError
    return size


def _parse_header(header: bytes, file: Path, at: int) -> tuple[str, int, bytes]:
    try:
        checksum = int(header[148:156].strip(b" \0"), 8)
        field = header[124:136]
        size = int.from_bytes(field[1:]) if field[0] & 0x80 else _size(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise _damaged(file, at) from None
    if checksum != sum(header[:148]) + sum(header[156:]) + 8 * 32:
        raise _damaged(file, at)
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return os.fsdecode(prefix + b"/" + name if prefix else name), size, header[156:157]


def _pax_fields(data: bytes) -> dict[bytes, bytes]:
    """The records `LENGTH KEY=VALUE`. Raises ValueError or IndexError for others."""
    fields = {}
    while data:
        length = int(data.split(b" ", 1)[0])
        if length < 1:
            raise ValueError
        key, _, value = data[: length - 1].split(b" ", 1)[1].partition(b"=")
        fields[key] = value
        data = data[length:]
    return fields


def split_key(name: str) -> tuple[str, str]:
    """A member's sample and its part of it: `a/b.tar.gz` -> (`a/b`, `tar.gz`)."""
    folder, slash, base = name.rpartition("/")
    stem, _, part = base.partition(".")
    return folder + slash + stem, part.lower()


class ShardSource(Source):
    """The images of several tar files, addressed by (shard, offset, size)."""

    def __init__(self, files: list[Path], split: str, labels: bool):
        self.files, self._class_file = files, files[0].parent / f"{split}-classes.txt"
        columns = {name: array("q") for name in ("shard", "offset", "size", "label_offset", "label_size")}
        passed_over = PassedOver()
        where = f"{files[0].parent}/{split}-*.tar"
        try:
            names = Names(self._scan(columns, passed_over))
        except OSError as error:
            raise InputError(
                f"cannot read {error.filename or where} ({error.strerror}): fetch or pack it again"
            ) from None
        self.passed_over = str(passed_over)
        self._at = {name: shared(np.array(column, dtype=np.int64)) for name, column in columns.items()}
        if not len(names):
            skipped = f", but {self.passed_over}" * bool(self.passed_over)
            raise InputError(f"no images in {where}{skipped}: its samples need a .jpg, .png, ... member")
        super().__init__(where, names, labels)
        if labels and not self.has_labels:
            i = int(np.argmin(self._column("label_offset")))
            raise InputError(f"no label in {self._file(i)} for {self.name(i)}: it needs a .cls member per image")

    def _scan(self, columns: dict[str, array], passed_over: PassedOver) -> Iterator[str]:
        """Names of the images; fills the columns. Members of one sample are neighbours; one without image is noted."""
        for number, file in enumerate(self.files):
            sample: str | None = None
            members: list[tuple[str, int, int]] = []
            with open(file, "rb", buffering=0) as stream:
                for member in tar_members(file, passed_over):
                    key, _ = split_key(member[0])
                    if key != sample:
                        yield from self._emit(columns, number, members, stream.fileno(), passed_over)
                        sample, members = key, []
                    members.append(member)
                yield from self._emit(columns, number, members, stream.fileno(), passed_over)

    @staticmethod
    def _emit(
        columns: dict[str, array],
        number: int,
        members: list[tuple[str, int, int]],
        handle: int,
        passed_over: PassedOver,
    ) -> Iterator[str]:
        """A sample's image, by its name or else by its content, and its label."""
        label = (-1, 0)
        images: list[tuple[str, int, int]] = []
        others: list[tuple[str, int, int]] = []
        for member in members:
            _, part = split_key(member[0])
            if part == "cls":
                label = member[1:]
            elif "." not in part:
                (images if is_image(member[0]) else others).append(member)
        image = next(iter(images), None) or next(
            (member for member in others if extension_of(os.pread(handle, min(HEAD, member[2]), member[1]))), None
        )
        if image:
            for column, value in zip(columns.values(), (number, *image[1:], *label), strict=True):
                column.append(value)
            yield image[0]
        elif members:
            passed_over.add(members[0][0])

    def _column(self, name: str) -> np.ndarray:
        return self._at[name].numpy()

    def _file(self, i: int) -> Path:
        return self.files[self._column("shard")[i]]

    def _pread(self, i: int, offset: str, size: int) -> bytes:
        handle = os.open(self._file(i), os.O_RDONLY)
        try:
            data = os.pread(handle, size, int(self._column(offset)[i]))
        finally:
            os.close(handle)
        if len(data) != size:
            raise OSError(f"{self._file(i)} has become shorter")
        return data

    def read(self, i: int) -> bytes:
        if self.size(i) > MAX_BYTES:
            raise OSError(f"{self.size(i)} bytes are too many for an image")
        return self._pread(i, "offset", self.size(i))

    def size(self, i: int) -> int:
        return int(self._column("size")[i])

    @property
    def has_labels(self) -> bool:
        return bool((self._column("label_offset") >= 0).all())

    @property
    def labels(self) -> np.ndarray:
        self._require_labels()
        labels = np.empty(len(self), dtype=np.int64)
        for i in range(len(self)):
            text = self._pread(i, "label_offset", min(int(self._column("label_size")[i]), MAX_LABEL))
            try:
                labels[i] = number = int(text)
            except (ValueError, OverflowError):
                number = -1
            if not 0 <= number < MAX_CLASSES:
                raise InputError(f"label of {self.name(i)} in {self._file(i)} is not a class number: {text[:40]!r}")
        return labels

    @property
    def classes(self) -> list[str]:
        self._require_labels()
        number = int(self.labels.max()) + 1
        if not self._class_file.is_file():
            return [str(k) for k in range(number)]
        try:
            names = self._class_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the class names in {self._class_file} ({error})") from None
        if len(names) < number:
            raise InputError(f"{self._class_file} names {len(names)} classes, but the shards use number {number - 1}")
        return [inside(name, self._class_file) for name in names]


def remote_shards(url: str, split: str) -> list[Path]:
    """Local copies of the shards behind a URL, fetched if need be.

    url: a directory of any fsspec file system that can list it; or a pattern with `{split}` and braces, such as
    `https://host/in1k/{split}-{000000..000146}.tar` or `pipe:ssh host cat in1k/{split}-{00..10}.tar`.
    """
    if "{" in url:
        import braceexpand

        urls = list(braceexpand.braceexpand(url.replace("{split}", split)))
    else:
        urls = _list_remote(url, split)
    if not urls:
        raise InputError(
            f"no split '{split}' at {url}: it needs {split}-*.tar there; a server that cannot list its "
            "files needs a pattern such as URL/{split}-{000000..000146}.tar"
        )
    classes = urls[0].rpartition("/")[0] + f"/{split}-classes.txt"
    folder = Path(os.environ.get("SSLIGHT_CACHE") or Path.home() / ".cache" / "sslight") / "shards"
    folder /= hashlib.sha256(f"{url} {split}".encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    files = [_fetch(name, folder / name.rpartition("/")[2]) for name in urls]
    if not urls[0].startswith("pipe:"):
        try:
            _fetch(classes, folder / f"{split}-classes.txt")
        except InputError:
            pass  # shards of others have none
    return files


def _list_remote(url: str, split: str) -> list[str]:
    import fsspec

    try:
        system, root = fsspec.core.url_to_fs(url)
        return sorted(system.unstrip_protocol(name) for name in system.glob(f"{root.rstrip('/')}/{split}-*.tar"))
    except Exception as error:  # noqa: BLE001  every file system has errors of its own
        raise InputError(
            f"cannot list {url} ({type(error).__name__}: {error}); name the shards instead: "
            "URL/{split}-{000000..000146}.tar"
        ) from None


def _fetch(url: str, file: Path) -> Path:
    """One file of a URL at `file`; processes that want the same one wait for the first."""
    with open(file.with_name(f".{file.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            temporary = file.with_name(f".{file.name}.partial")
            try:
                with _open_remote(url) as stream, open(temporary, "wb") as out:
                    shutil.copyfileobj(stream, out, 1 << 20)
            except Exception as error:  # noqa: BLE001  every file system has errors of its own
                temporary.unlink(missing_ok=True)
                raise InputError(f"cannot fetch {url} ({type(error).__name__}: {error})") from None
            os.replace(temporary, file)
    return file


def _open_remote(url: str):
    """A stream of the URL's bytes, by fsspec or, for what it does not know (`pipe:`), by webdataset."""
    import fsspec

    if url.startswith(("http://", "https://")):  # fsspec would want aiohttp, webdataset a curl command
        return urllib.request.urlopen(url, timeout=60)
    if url.partition(":")[0] in fsspec.available_protocols():
        return fsspec.open(url, "rb").open()
    from webdataset.gopen import gopen

    return gopen(url, "rb")


class ShardPacker(Packer):
    """`split-NNNNNN.tar` of `shard_images` images each, and `split-classes.txt`."""

    def __init__(self, *args):
        super().__init__(*args)
        self.layout = str(self.shard_images)
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


class Shards(DataFormat):
    pattern, packer = "{split}-*.tar", ShardPacker

    def recognise(self, where: str | Path, split: str) -> list[Path]:
        return remote_shards(str(where), split) if is_url(where) else super().recognise(where, split)

    def index(self, files: list[Path], split: str, labels: bool) -> ShardSource:
        return ShardSource(files, split, labels)


FORMAT = Shards()
