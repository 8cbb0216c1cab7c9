"""Which training images carry labels: a list of file names, a class-balanced draw, or a held-out part."""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from fvcore.common.config import CfgNode

from benchmarks.labelled import Labelled
from pretrain.errors import InputError
from pretrain.files import write_atomically

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
        out.append(images[:min(max(1, round(fraction * len(images))), len(images) - 1)])
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
        raise InputError(f"config key 'LABELS.FRACTION' wants a number in (0, 1], not {fraction}")
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
    found = [place.get(name, -2 if "/" in name else short.get(_stem(name), -2)) for name in names]
    absent = [name for name, i in zip(names, found, strict=True) if i == -2]
    if absent:
        raise InputError(f"label list {path} names {len(absent)} file(s) that {train.source.where} does not have, e.g. "
                         f"{absent[0]}: use the list of this data set, or LABELS.LIST '' for a balanced draw")
    vague = [name for name, i in zip(names, found, strict=True) if i == -1]
    if vague:
        raise InputError(f"label list {path}: several files of {train.source.where} are called {vague[0]}: "
                         "write class/file")
    return np.unique(found)


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[-1].split(".")[0]


def write_list(path: Path, train: Labelled, indices: Sequence[int]) -> None:
    """Write the images' names, `class/file`, one a line. Raises InputError if a run has begun there on other images."""
    text = b"".join(os.fsencode(f"{train.source.name(int(i))}\n") for i in indices)  # names need not be valid text
    if path.exists() and path.read_bytes() != text:
        raise InputError(f"{path} holds other names than LABELS.LIST gives now: choose another OUTPUT_DIR, or "
                         "bring the old list back")
    write_atomically(path, lambda temporary: temporary.write_bytes(text))
