"""`sslight pack`: a data directory from one format into another, byte for byte, in steps that a crash may interrupt."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pretrain import settings as command_line
from pretrain.data.decode import extension_of, is_image
from pretrain.data.sources import FORMATS, Packer, Source, is_url, open_source
from sslight.core.errors import EXIT_DONE, InputError
from sslight.core.logs import Bar
from sslight.core.processes import run_command

SPLITS = ("train", "val")
TEXT: dict[str, Any] = {
    "encoding": "utf-8",
    "errors": "surrogateescape",
    "newline": "\n",
}  # file names need not be valid text


def main(argv: Sequence[str] | None = None) -> int:
    args = command_line.pack().parse_args(argv)
    if args.shard_images < 1:
        raise InputError("--shard-images must be at least 1")
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
    opened, errors = [], []
    for split in splits or SPLITS:
        try:
            source = open_source(src, split, labels=False)
        except InputError as error:
            if splits:
                raise
            errors.append(str(error))
        else:
            opened.append((split, open_source(src, split) if source.has_labels else source))
    missing = [error for error in errors if not error.startswith("no split")]
    if missing or not opened:
        raise InputError((missing or errors)[0])
    return opened


def pack_split(source: Source, dst: Path, split: str, to: str, shard_images: int) -> None:
    """Convert one split; does nothing if it is there already. Raises InputError if DST holds another one."""
    work, sums = dst / f".{split}.partial", dst / f"{split}.sha256"
    packer = FORMATS[to].packer(dst, split, work, shard_images)
    note = f"{source.fingerprint()} {len(source)} {to} {packer.layout}\n"
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
