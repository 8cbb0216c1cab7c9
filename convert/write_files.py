"""Write the result where nobody can mistake it for another: staged beside the target, verified, then renamed."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from convert.reader import Checkpoint
from convert.targets import SUFFIXES
from pretrain.checkpoint import save_backbone
from pretrain.errors import InputError


def check_output(out: Path, to: str, beside: list[Path], force: bool) -> None:
    """Raise InputError unless `out` names a new file of the right kind in a folder that can be written."""
    if out.suffix not in SUFFIXES[to]:
        raise InputError(f"-o {out}: a file for {to} ends in {' or '.join(SUFFIXES[to])}")
    for path in (out, *beside):
        if path.is_dir():
            raise InputError(f"-o {out}: {path} is a directory; name a file")
        if path.exists() and not force:
            raise InputError(f"{path} exists; give another -o, or --force to replace it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"-o {out}: cannot create the folder ({error.strerror})") from None
    if not os.access(out.parent, os.W_OK):
        raise InputError(f"-o {out}: the folder {out.parent} is not writable")


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A path of `out`'s name in a temporary folder beside it. On success all files there move beside `out`."""
    folder = out.parent / f".{out.name}.{os.getpid()}.partial"
    folder.mkdir(exist_ok=True)
    try:
        yield folder / out.name
        for path in sorted(folder.iterdir(), key=lambda path: path.name == out.name):
            os.replace(path, out.parent / path.name)  # `out` itself comes last
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write(path: Path, to: str, tensors: dict[str, Tensor], checkpoint: Checkpoint) -> None:
    """Write the tensors in the target's container and flush them to the disk."""
    if to == "timm":
        how = f"{checkpoint.family} ({checkpoint.rule}), network {checkpoint.network}"
        save_backbone(path, tensors, arch=checkpoint.arch, method=checkpoint.method, preprocess=checkpoint.preprocess,
                      source_sha256=checkpoint.sha256, converted=how, options=checkpoint.options)
        return
    if path.suffix == ".pkl":
        _write_pickle(path, tensors)
    else:
        torch.save({"state_dict": tensors} if to == "mmdet" else tensors, path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _write_pickle(path: Path, tensors: dict[str, Tensor]) -> None:
    """detectron2's `.pkl`: arrays under `model`, and the `__author__` without which it is taken for Caffe2."""
    arrays = {key: np.asarray(value.numpy(), order="C") for key, value in tensors.items()}
    with open(path, "wb") as file:
        pickle.dump({"model": arrays, "__author__": "sslight"}, file, protocol=4)
