"""The labelled images of a classification benchmark: train and val of one data directory, in one class numbering."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from fvcore.common.config import CfgNode

from pretrain.errors import InputError
from pretrain.sources import Source, open_source


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
        raise InputError(f"{train.where} has {len(classes)} classes, DATA.NUM_CLASSES is {cfg.DATA.NUM_CLASSES}: "
                         "name the right data directory or number")
    number = {name: k for k, name in enumerate(classes)}
    train_labels = np.asarray(train.labels)
    filled = set(np.unique(train_labels).tolist())
    val_labels = np.asarray(val.labels)
    strange = [val.classes[k] for k in np.unique(val_labels).tolist() if number.get(val.classes[k], -1) not in filled]
    if strange:
        raise InputError(f"class '{strange[0]}' is in {val.where} but not in {train.where} ({len(strange)} such "
                         "class(es)): both must hold the same classes")
    if len(filled) < 2:
        raise InputError(f"{train.where} holds images of {len(filled)} class: a classifier needs at least two")
    renumber = np.array([number.get(name, -1) for name in val.classes], dtype=np.int64)
    return Labelled(train, train_labels, classes), Labelled(val, renumber[val_labels], classes)


def notes(train: Labelled, val: Labelled) -> list[str]:
    """Lines for the log: what lies among the images and is none."""
    return [split.source.note for split in (train, val) if split.source.note]


def describe(cfg: CfgNode, train: Labelled, val: Labelled) -> dict:
    """The `data` field of a result."""
    return {"path": str(cfg.DATA.PATH_TO_DATA_DIR), "counts": {"train": len(train), "val": len(val)},
            "classes": len(train.classes),
            "fingerprint": f"{train.source.fingerprint()}-{val.source.fingerprint()}"}
