"""The labelled images of a classification benchmark: train and val of one data directory, in one class numbering."""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fvcore.common.config import CfgNode

from pretrain.data.sources import Source, open_source
from sslight.core.errors import InputError
from sslight.core.files import write_atomically


@dataclass(frozen=True)
class Labelled:
    """One split. `labels` int64 [len(source)] index `classes`, which are train's for both splits."""

    source: Source
    labels: np.ndarray
    classes: list[str]

    def __len__(self) -> int:
        return len(self.source)


def open_splits(cfg: CfgNode) -> tuple[Labelled, Labelled]:
    """`train` and `val` of DATA.PATH_TO_DATA_DIR.

    Raises InputError where a split is missing or empty, val has a class that train lacks, or the number of classes is
    not DATA.NUM_CLASSES.
    """
    where = cfg.DATA.PATH_TO_DATA_DIR
    train, val = (open_source(where, split, max_value=cfg.DATA.MAX_VALUE) for split in ("train", "val"))
    classes = train.classes
    if cfg.DATA.NUM_CLASSES and len(classes) != cfg.DATA.NUM_CLASSES:
        raise InputError(
            f"{train.where} has {len(classes)} classes, DATA.NUM_CLASSES is {cfg.DATA.NUM_CLASSES}: "
            "name the right data directory or number"
        )
    number = {name: k for k, name in enumerate(classes)}
    train_labels = np.asarray(train.labels)
    filled = set(np.unique(train_labels).tolist())
    val_labels = np.asarray(val.labels)
    strange = [val.classes[k] for k in np.unique(val_labels).tolist() if number.get(val.classes[k], -1) not in filled]
    if strange:
        raise InputError(
            f"class '{strange[0]}' is in {val.where} but not in {train.where} ({len(strange)} such "
            "class(es)): both must hold the same classes"
        )
    if len(filled) < 2:
        raise InputError(f"{train.where} holds images of {len(filled)} class: a classifier needs at least two")
    renumber = np.array([number.get(name, -1) for name in val.classes], dtype=np.int64)
    return Labelled(train, train_labels, classes), Labelled(val, renumber[val_labels], classes)


def notes(train: Labelled, val: Labelled) -> list[str]:
    """Lines for the log: what lies among the images and is none."""
    return [split.source.note for split in (train, val) if split.source.note]


def describe(cfg: CfgNode, train: Labelled, val: Labelled) -> dict:
    """The `data` field of a result."""
    return {
        "path": str(cfg.DATA.PATH_TO_DATA_DIR),
        "counts": {"train": len(train), "val": len(val)},
        "classes": len(train.classes),
        "fingerprint": f"{train.source.fingerprint()}-{val.source.fingerprint()}",
    }


DATA = Path(__file__).resolve().parent / "data"
STANDARD = {0.01: "imagenet_1percent.txt.gz", 0.1: "imagenet_10percent.txt.gz"}


def balanced(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Sorted indices of a random subset with the same number of images from every class, at least one.

    A class smaller than its share gives all it has.
    """
    rng = np.random.default_rng(seed)
    classes = np.unique(labels)
    share = max(1, round(fraction * len(labels) / len(classes)))
    chosen = [rng.permutation(np.flatnonzero(labels == k))[:share] for k in classes]
    return np.sort(np.concatenate(chosen))


def holdout(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices (fitted, held out) of a split inside every class; no class is held out as a whole."""
    rng = np.random.default_rng(seed)
    out = []
    for k in np.unique(labels):
        images = rng.permutation(np.flatnonzero(labels == k))
        out.append(images[: min(max(1, round(fraction * len(images))), len(images) - 1)])
    held = np.sort(np.concatenate(out))
    if not len(held):
        raise InputError("no training image can be held out: every class has a single one")
    return np.setdiff1d(np.arange(len(labels)), held), held


def labelled_subset(cfg: CfgNode, train: Labelled, seed: int) -> tuple[np.ndarray, str]:
    """Sorted indices of the labelled training images, and in words where they come from.

    LABELS.LIST is a file of names; `standard` means the field's lists where the data are ImageNet-1k and a
    class-balanced draw of LABELS.FRACTION elsewhere; empty means that draw anywhere. A fraction of 1 is all.
    """
    fraction = cfg.LABELS.FRACTION
    if not 0 < fraction <= 1:
        raise InputError(f"config key 'LABELS.FRACTION' expects a number in (0, 1], not {fraction}")
    if cfg.LABELS.LIST and cfg.LABELS.LIST != "standard":
        return from_list(Path(cfg.LABELS.LIST), train), str(cfg.LABELS.LIST)
    if fraction == 1:
        return np.arange(len(train)), "all labels"
    if cfg.LABELS.LIST and fraction in STANDARD:
        file = DATA / STANDARD[fraction]
        if {name.split("_")[0] for name in read_list(file)} == set(train.classes):
            return from_list(file, train), f"standard list {file.name}"
    return balanced(train.labels, fraction, seed), f"class-balanced draw of {fraction:g}, seed {seed}"


def read_list(path: Path) -> list[str]:
    """The names in a text file, one a line, gzip or not."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    except (OSError, EOFError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"label list {path} is not readable: {error}") from None
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise InputError(f"label list {path} is empty: it needs one file name a line")
    return names


def from_list(path: Path, train: Labelled) -> np.ndarray:
    """Sorted indices of the listed images. A name is `class/file` or, where that is unique, `file`.

    A bare file's extension does not count: archives may keep none, or the one that they re-encoded to.
    """
    full = [train.source.name(i) for i in range(len(train))]
    place = {name: i for i, name in enumerate(full)}
    short: dict[str, int] = {}
    for i, name in enumerate(full):
        short_name = _stem(name)
        short[short_name] = -1 if short_name in short else i  # -1: several files of that name
    names = read_list(path)
    indices = [place.get(name, -2 if "/" in name else short.get(_stem(name), -2)) for name in names]
    absent = [name for name, i in zip(names, indices, strict=True) if i == -2]
    if absent:
        raise InputError(
            f"label list {path} names {len(absent)} file(s) that {train.source.where} does not have, e.g. "
            f"{absent[0]}: use the list of this data set, or LABELS.LIST '' for a balanced draw"
        )
    vague = [name for name, i in zip(names, indices, strict=True) if i == -1]
    if vague:
        raise InputError(
            f"label list {path}: several files of {train.source.where} are called {vague[0]}: write class/file"
        )
    return np.unique(indices)


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[-1].split(".")[0]


def write_list(path: Path, train: Labelled, indices: Sequence[int]) -> None:
    """Write the images' names, `class/file`, one a line. Raises InputError if a run has begun there on other images."""
    text = b"".join(os.fsencode(f"{train.source.name(int(i))}\n") for i in indices)  # names need not be valid text
    if path.exists() and path.read_bytes() != text:
        raise InputError(
            f"{path} holds other names than LABELS.LIST gives now: choose another OUTPUT_DIR, or "
            "bring the old list back"
        )
    write_atomically(path, lambda temporary: temporary.write_bytes(text))
