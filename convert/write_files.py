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
from safetensors import SafetensorError
from torch import Tensor

from convert.reader import Checkpoint
from convert.targets import SUFFIXES
from pretrain.checkpoint import save_backbone, sha256, write_json
from pretrain.errors import InputError


def check_output(out: Path, to: str, beside: list[Path], force: bool) -> None:
    """Raise InputError unless `out` and what lies beside it are new files, of the right kind, in writable folders."""
    if out.suffix not in SUFFIXES[to]:
        raise InputError(f"-o {out}: a file for {to} ends in {' or '.join(SUFFIXES[to])}")
    paths = [out, *beside]
    for path in paths:
        if path.is_dir():
            raise InputError(f"-o {out}: {path} is a directory; name a file")
        if path.exists() and not force:
            raise InputError(f"{path} exists; give another -o, or --force to replace it")
        if paths.count(path) > 1:
            raise InputError(f"{path} would be written twice; give --report another name")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise InputError(f"cannot write {path}: {folder} is not a folder that you can write to")


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A path of `out`'s name in a temporary folder beside it. On success all files there move beside `out`."""
    folder = out.parent / f".{out.name}.{os.getpid()}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}") from None
    try:
        yield folder / out.name
        for path in sorted(folder.iterdir(), key=lambda path: path.name == out.name):
            os.replace(path, out.parent / path.name)  # `out` itself comes last
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write(path: Path, to: str, tensors: dict[str, Tensor], checkpoint: Checkpoint) -> None:
    """Write the tensors in the target's container; `seal` makes the file last. Raises InputError if it cannot."""
    try:
        if to == "timm":
            how = f"{checkpoint.family} ({checkpoint.rule}), network {checkpoint.network}"
            save_backbone(path, tensors, arch=checkpoint.arch, method=checkpoint.method,
                          preprocess=checkpoint.preprocess, source_sha256=checkpoint.sha256, converted=how,
                          options=checkpoint.options, assumed=checkpoint.assumed)
        elif path.suffix == ".pkl":
            _write_pickle(path, tensors)
        else:
            torch.save({"state_dict": tensors} if to == "mmdet" else tensors, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch has no word for a full disk
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"cannot write {path.name}: is the disk full? ({reason})") from None


def seal(path: Path) -> str:
    """Flush a written file to the disk; returns its SHA-256."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return sha256(path)


def write_report(path: Path, report: dict) -> None:
    """Write the report as JSON. Raises InputError if it cannot."""
    try:
        write_json(path, report)
    except OSError as error:
        raise InputError(f"cannot write --report {path}: {error.strerror}") from None


def _write_pickle(path: Path, tensors: dict[str, Tensor]) -> None:
    """detectron2's `.pkl`: arrays under `model`, and the `__author__` without which it is taken for Caffe2."""
    arrays = {key: np.asarray(value.numpy(), order="C") for key, value in tensors.items()}
    with open(path, "wb") as file:
        pickle.dump({"model": arrays, "__author__": "sslight"}, file, protocol=4)
