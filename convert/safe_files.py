"""Checkpoint files from strangers, read as plain data without executing anything.

The kind of file is seen from its first bytes, never from its name: a zip or legacy file of torch, safetensors, or a
pickle of arrays. Every failure is one InputError.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import torch
from safetensors import safe_open

from convert.array_pickle import load_array_pickle
from convert.inert import allow_list
from pretrain.checkpoint import check_archive
from pretrain.errors import InputError

_TORCH_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number of torch's old format, as pickled


def read_file(path: Path | str, *, mapped: bool = False, checksums: bool = True) -> tuple[object, dict]:
    """The content of a checkpoint file (nested dicts of CPU tensors and plain values) and its safetensors header.

    `mapped` leaves a zip file's tensors on the disk until they are used: nobody may write into the file meanwhile.
    `checksums=False` is for a file just written, whose every bit is compared anyway.

    Raises InputError if the file is missing, empty, a directory, corrupt, truncated, no checkpoint, or holds objects
    that are not data.
    """
    path = Path(path)
    try:
        if checksums:
            check_archive(path)
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    if start.startswith(b"PK"):
        return _load_torch(path, mapped), {}
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8:
        return _load_safetensors(path)
    if _TORCH_LEGACY in start[:16]:
        return _load_torch(path), {}
    if start[:1] == b"\x80":
        return load_array_pickle(path), {}
    raise InputError(f"not a checkpoint: {path} ({_looks_like(start)}); "
                     "expected a .pth, .pth.tar, .pt, .ckpt, .pkl or .safetensors file")


def _looks_like(start: bytes) -> str:
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        return "it is a web page, probably an error page saved by a download; fetch it again"
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file itself with `git lfs pull`"
    if start.isascii():
        return "it is text"
    return "unknown kind of file"


def _load_torch(path: Path, mapped: bool = False) -> object:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(allow_list()):
            warnings.simplefilter("ignore")  # old files warn of typed storages; nothing a user can act on
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # noqa: BLE001 - a parser of untrusted bytes: any failure means a bad file
        raise InputError(f"not a readable checkpoint: {path} ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    """The telling part of torch's many-line messages."""
    text = " ".join(str(error).split())
    foreign = re.search(r"[Uu]nsupported (?:global: )?GLOBAL (\S+)", text)
    if foreign:
        return f"it holds an object of {foreign[1]}, which is code and not data; re-save it as tensors only"
    return text.split("WeightsUnpickler error: ")[-1][:160] or type(error).__name__


def _load_safetensors(path: Path) -> tuple[dict, dict]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})
    except Exception as error:  # noqa: BLE001 - as above
        raise InputError(f"not a readable safetensors file: {path} ({' '.join(str(error).split())[:160]})") from None
