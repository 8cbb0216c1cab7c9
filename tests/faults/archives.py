"""Mutated and hostile HDF5 files and tar shards: opened, read and packed into a folder, or refused in one line.

A file behind a link or a traversing name must not be reached, and no image may be lost without a word. Neither format
has a checksum over its content, so a changed payload may come through: counted apart.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np

from pretrain.data.pack import main as pack
from pretrain.data.sources import open_source
from sslight.core.errors import InputError
from tests.convert.mutations import flipped, inserted, overwritten, swapped_blocks, truncated
from tests.faults.sandbox import attempts, row_of
from tests.faults.table import Row

BLIND = (flipped, flipped, truncated, swapped_blocks, overwritten, inserted)
SECRET = b"what lies outside the data directory"
CLASS_FILES = {
    f"classes {k}.tar": content
    for k, content in enumerate(
        (b"cat\n../../../evil\n", b"/tmp/evil\ndog\n", b"cat\n", b"\xff\xfe\n\xff\n", b"", b"\n\n", b"cat\n\0\n")
    )
}
IMAGES = {f"{label}/{k}.jpg": bytes([65 + k]) * (700 + 90 * k) for label in ("cat", "dog") for k in range(3)}


def rows(size: str, place: Path) -> Iterator[Row]:
    count = 3000 if size == "long" else 60
    files = originals(place / "originals")
    hostile = {**tars(place), **hdf5s(place / "hostile")}
    yield tried("mutated tar shards and HDF5 files, opened, read and packed", files, count, place, mutate=True)
    yield folders(place)
    yield tried("tar shards and HDF5 files with links, traversing names, absurd sizes", hostile, len(hostile), place)


def folders(place: Path) -> Row:
    """Class folders with what reads without end, or is not there."""
    makers = {
        "a link to itself": lambda cat: (cat / "b.jpg").symlink_to("b.jpg"),
        "nothing": lambda cat: None,
        "a link to the folder above": lambda cat: (cat / "up").symlink_to(".."),
        "a link to nowhere": lambda cat: (cat / "b.jpg").symlink_to("nowhere"),
        "a pipe": lambda cat: os.mkfifo(cat / "b.jpg"),
        "zeros": lambda cat: (cat / "b.jpg").symlink_to("/dev/zero"),
        "a large hole": lambda cat: os.truncate(cat / "a.jpg", 1 << 40),
        "a folder": lambda cat: (cat / "b.jpg").mkdir(),
        "a long road": lambda cat: (cat / "/".join("d" * 200 for _ in range(15))).mkdir(parents=True),
        "a line": lambda cat: (cat / "b\nc.jpg").write_bytes(b"x"),
        "an odd class": lambda cat: (cat.parent / os.fsdecode(b"d\xff")).mkdir(),
    }
    names = list(makers)

    def task(number: int) -> str:
        where = place / "folders"
        shutil.rmtree(where, ignore_errors=True)
        cat = where / "train" / "cat"
        cat.mkdir(parents=True)
        (cat / "a.jpg").write_bytes(b"A")
        makers[names[number]](cat)
        return _read_and_pack(where, where / "packed", {})

    return row_of(
        "class folders with links in a circle, pipes, devices, holes",
        attempts(task, range(len(names)), place, seconds=5, gigabytes=1),
        names.__getitem__,
    )


def tried(what: str, files: dict[str, bytes], count: int, place: Path, mutate: bool = False) -> Row:
    names = list(files)
    where = place / ("mutated" if mutate else "crafted")
    where.mkdir()

    def task(number: int) -> str:
        name, chance = names[number % len(names)], random.Random(number)
        change = chance.choice(BLIND) if mutate else None
        data = change(files[name], chance) if change else files[name]
        return use(name, data, where, change)

    outcomes = attempts(task, range(count), where, seconds=5, gigabytes=1)
    return row_of(what, outcomes, lambda number: names[number % len(names)])


def use(name: str, data: bytes, where: Path, change: Callable | None) -> str:
    """Open, read and pack one file; returns how it ended. AssertionError where a promise is broken."""
    source, out = where / "data", where / "packed"
    for folder in (source, out):
        shutil.rmtree(folder, ignore_errors=True)
    source.mkdir()
    kind = "train.h5" if ".h5" in name else "train-000000.tar"
    (source / kind).write_bytes(data)
    if kind.endswith(".tar"):
        (source / "train-classes.txt").write_bytes(CLASS_FILES.get(name, b"cat\ndog\n"))
    found: dict[str, bytes | None] = {}
    if _read_and_pack(source, out, found, labels=not name.startswith("bare ")) == "refused":
        return "refused"
    assert SECRET not in b"".join(filter(None, found.values())), "read what lies outside"
    assert not name.startswith("cut "), "lost what was cut off"
    if change is None or found == IMAGES:
        return "right"
    if len(found) < len(IMAGES):  # zeros to the end are how a shorter shard ends
        assert change is overwritten and kind.endswith(".tar"), f"lost images after {change.__name__}"
        return "shorter, no checksum"
    assert change is not truncated, "did not miss what was cut off"
    return "other content, no checksum"


def _read_and_pack(source: Path, out: Path, found: dict[str, bytes | None], labels: bool = True) -> str:
    """Read all images into `found`, None for one that cannot be read, and pack them into a folder."""
    try:
        opened = open_source(source, "train", labels)
        if labels:
            numbers, classes = opened.labels, opened.classes
            assert len(numbers) == len(opened) and numbers.max() < len(classes)
        for i in range(len(opened)):
            try:
                found[opened.name(i)] = opened.read(i)
            except OSError:
                found[opened.name(i)] = None  # counted and replaced in training
        opened.close()
        pack([str(source), str(out), "--to", "folder", "--splits", "train"])
    except InputError as error:
        assert "\n" not in str(error)
        return "refused"
    return "right"


def originals(place: Path) -> dict[str, bytes]:
    """Valid files: tar's three dialects, HDF5's two, opaque bytes instead of numbers."""
    place.mkdir()
    for style, name in (
        (tarfile.USTAR_FORMAT, "ustar.tar"),
        (tarfile.GNU_FORMAT, "gnu.tar"),
        (tarfile.PAX_FORMAT, "pax.tar"),
    ):
        with tarfile.open(place / name, "w", format=style) as tar:
            for image, content in IMAGES.items():
                label = str(["cat", "dog"].index(image[:3])).encode()
                for member, data in ((image, content), (image.replace(".jpg", ".cls"), label)):
                    entry = tarfile.TarInfo(member)
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
    for version, name in (("earliest", "old.h5"), ("latest", "new.h5")):
        with h5py.File(place / name, "w", libver=version) as file:
            for image, content in IMAGES.items():
                file[image] = np.void(content) if version == "latest" else np.frombuffer(content, np.uint8)
    return {path.name: path.read_bytes() for path in sorted(place.iterdir())}


def member(
    name: bytes, content: bytes = b"", kind: bytes = b"0", size: bytes | None = None, link: bytes = b""
) -> bytes:
    """One tar entry with a right checksum and whatever name, kind and size field."""
    header = bytearray(512)
    header[: len(name)] = name
    header[100:124] = b"0000644\0" + b"0000000\0" * 2
    header[124:136] = (size or b"%011o" % len(content)).ljust(12, b"\0")
    header[136:156] = b"00000000000\0" + b" " * 8
    header[156:157], header[157 : 157 + len(link)], header[257:265] = kind, link, b"ustar\x0000"
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content + bytes(-len(content) % 512)


def pax(**fields: bytes) -> bytes:
    """A POSIX header for the next entry."""
    records = b""
    for key, value in fields.items():
        body = b" %s=%s\n" % (key.encode(), value)
        length = len(body) + 1
        while len(b"%d" % length) + len(body) != length:
            length += 1
        records += b"%d" % length + body
    return member(b"pax", records, b"x")


def tars(place: Path) -> dict[str, bytes]:
    """Crafted shards. Each begins with a good sample."""
    outside = os.fsencode(place / "secret.jpg")
    (place / "secret.jpg").write_bytes(SECRET)
    good, end = member(b"cat/a.jpg", b"A" * 9) + member(b"cat/a.cls", b"0"), bytes(1024)
    evil = b"evil " * 9

    def sample(name: bytes, **options) -> bytes:
        stem = name.rpartition(b".")[0]
        return member(name, evil, **options) + member(stem + b".cls", b"1")

    entries = {
        "up": sample(b"../../../evil.jpg"),
        "inner up": sample(b"cat/../../../evil.jpg"),
        "own class up": sample(b"dog/../../../../evil.jpg"),
        "bare up": member(b"../../../evil.jpg", evil),
        "bare absolute": member(outside.replace(b"secret", b"evil")[:99], evil),
        "absolute": sample(outside.replace(b"secret", b"evil")[:99]),
        "dots": sample(b"cat/..jpg") + sample(b"cat/...jpg"),
        "here": sample(b"./cat/./b.jpg"),
        "nul": sample(b"cat/b\0.jpg"),
        "line": sample(b"cat/b\nc.jpg"),
        "long": pax(path=b"cat/" + b"n" * 300 + b".jpg") + sample(b"x.jpg"),
        "slashes": sample(b"cat//b.jpg"),
        "bytes": sample(b"cat/\xff\xfe.jpg"),
        "twice": sample(b"cat/b.jpg") * 2,
        "file and folder": sample(b"cat/b.jpg") + sample(b"cat/b.jpg/c.jpg"),
        "pax up": pax(path=b"../../../evil.jpg") + sample(b"x.jpg"),
        "pax absolute": pax(path=outside) + sample(b"x.jpg"),
        "pax size": pax(size=b"-1024") + sample(b"x.jpg"),
        "pax word": pax(size=b"many") + sample(b"x.jpg"),
        "pax huge": pax(size=b"9" * 30) + sample(b"x.jpg"),
        "pax loop": member(b"pax", b"0 a=b\n", b"x") + sample(b"x.jpg"),
        "pax negative": member(b"pax", b"-5 a=b\n", b"x") + sample(b"x.jpg"),
        "pax junk": member(b"pax", bytes(600), b"x") + sample(b"x.jpg"),
        "gnu up": member(b"L", b"../../../evil.jpg\0", b"L") + sample(b"x.jpg"),
        "gnu long": member(b"L", b"n/" * 40_000 + b"x.jpg\0", b"L") + sample(b"x.jpg"),
        "symbolic link": member(b"cat/b.jpg", kind=b"2", link=outside[:99]),
        "hard link": member(b"cat/b.jpg", kind=b"1", link=outside[:99]),
        "device": member(b"cat/b.jpg", kind=b"3"),
        "pipe": member(b"cat/b.jpg", kind=b"6"),
        "sparse": member(b"cat/b.jpg", evil, kind=b"S"),
        "unknown kind": member(b"cat/b.jpg", evil, kind=b"Z"),
        "negative size": sample(b"cat/b.jpg", size=b"-0000001000"),
        "backwards": sample(b"cat/b.jpg", size=b"-2000"),
        "base 256": sample(b"cat/b.jpg", size=b"\x80" + b"\0" * 3 + b"\xff" * 8),
        "base 256 negative": sample(b"cat/b.jpg", size=b"\xff" * 11 + b"\0"),
        "size of spaces": sample(b"cat/b.jpg", size=b" " * 11),
        "size in words": sample(b"cat/b.jpg", size=b"size"),
        "cut off": b"",
        "cut entry": sample(b"cat/b.jpg")[:700],
        "cut in two": end + sample(b"cat/b.jpg"),
        **{
            f"label {text[:12]!r}": member(b"cat/b.jpg", evil) + member(b"cat/b.cls", text)
            for text in (
                b"-1",
                b"2",
                b"9" * 12,
                b"9" * 40,
                b"9" * 5000,
                b"",
                b"cat",
                b"1.5",
                b"\xff",
                b"\xd9\xa1",
                b"1" * 200_000,
            )
        },
    }
    entries |= {name.removesuffix(".tar"): sample(b"x.jpg") for name in CLASS_FILES}
    bare = {"cut off", "cut entry"}
    return {f"{name}.tar": good + entry + (b"" if name in bare else end) for name, entry in entries.items()}


def hdf5s(place: Path) -> dict[str, bytes]:
    """Crafted HDF5 files. Each has a good image."""
    place.mkdir()
    other = place / "other.h5"
    with h5py.File(other, "w") as file:
        file["cat/secret.jpg"] = np.frombuffer(SECRET, np.uint8)
    evil = np.frombuffer(b"evil " * 9, np.uint8)
    outside = str(place.parent / "secret.jpg")

    def shaped(group, shape, dtype=np.uint8, **options):
        group.create_dataset("b.jpg", shape=shape, dtype=dtype, chunks=(1 << 20,), **options)

    def virtual(file):
        layout = h5py.VirtualLayout(shape=(len(SECRET),), dtype=np.uint8)
        layout[:] = h5py.VirtualSource(str(other), "cat/secret.jpg", shape=(len(SECRET),))
        file["cat"].create_virtual_dataset("b.jpg", layout)

    def named(name: bytes):
        def make(file):
            space = h5py.h5s.create_simple((len(evil),))
            made = h5py.h5d.create(file["cat"].id, None, h5py.h5t.NATIVE_UINT8, space)
            made.write(h5py.h5s.ALL, h5py.h5s.ALL, evil)
            h5py.h5o.link(made, file["cat"].id, name)

        return make

    def link(name, target):
        return lambda file: file.__setitem__(name, target)

    makers = {
        "outer image": link("cat/b.jpg", h5py.ExternalLink(str(other), "cat/secret.jpg")),
        "outer class": link("dog", h5py.ExternalLink(str(other), "cat")),
        "outer raw": lambda file: file["cat"].create_dataset(
            "b.jpg", shape=(len(SECRET),), dtype=np.uint8, external=[(outside, 0, len(SECRET))]
        ),
        "virtual": virtual,
        "dangling image": link("cat/b.jpg", h5py.SoftLink("/nothing")),
        "dangling class": link("dog", h5py.SoftLink("/nothing")),
        "inner link": link("dog", h5py.SoftLink("/cat")),
        "circle of links": lambda file: file.update({"dog": h5py.SoftLink("/cow"), "cow": h5py.SoftLink("/dog")}),
        "circle": lambda file: file["cat"].__setitem__("b", file["cat"]),
        "up": named(b".."),
        "here": named(b"Q"),  # Q becomes a dot below: the library makes no such link
        "up name": named(b"..\\..\\x.jpg"),
        "line": named(b"b\nc.jpg"),
        "bytes": named(b"\xff\xfe.jpg"),
        "long": named(b"n" * 300 + b".jpg"),
        "deep": lambda file: file.__setitem__("cat/sub/b.jpg", evil),
        "class up": lambda file: h5py.h5g.create(file.id, b".."),
        "empty": link("cat/b.jpg", h5py.Empty("f")),
        "unwritten": lambda file: shaped(file["cat"], (1 << 40,)),
        "blank": lambda file: shaped(file["cat"], (2_000_000_000,), compression="gzip"),
        "zipped": lambda file: shaped(file["cat"], (10**8,), compression="gzip"),
        "text": link("cat/b.jpg", "text"),
        "numbers": link("cat/b.jpg", np.arange(9.0)),
        "compound": link("cat/b.jpg", np.zeros(3, "i4,f8")),
        "matrix": link("cat/b.jpg", np.zeros((3, 4, 5), np.uint8)),
        "references": lambda file: file["cat"].create_dataset("b.jpg", data=file["cat"].ref, dtype=h5py.ref_dtype),
        "many texts": lambda file: shaped(file["cat"], (1 << 40,), h5py.string_dtype()),
        "type": link("cat/b.jpg", np.dtype("f8")),
        "loose": link("b.jpg", evil),
    }
    made = {}
    for name, make in makers.items():
        path = place / f"{len(made)}.h5"
        with h5py.File(path, "w") as file:
            file["cat/a.jpg"] = np.frombuffer(b"A" * 9, np.uint8)
            make(file)
        data = path.read_bytes()
        made[f"{name}.h5"] = data.replace(b"Q\0", b".\0") if name == "here" else data
    return made
