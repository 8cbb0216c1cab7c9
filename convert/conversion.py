"""Write the result where nobody can mistake it for another: staged beside the target, verified, then renamed."""

from __future__ import annotations

import os
import pickle
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from convert import verify
from convert.families import by_name
from convert.reader import Checkpoint, read_checkpoint
from convert.recorded import spelled
from convert.support import TARGETS, kind_of
from convert.targets.names import SUFFIXES, Outgoing, default_model, rename
from convert.targets.snippets import snippet, snippet_path
from pretrain.backbones import read_options
from sslight.core.checkpoint import save_backbone, sha256
from sslight.core.errors import InputError, nearest
from sslight.core.files import write_json


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
            save_backbone(
                path,
                tensors,
                arch=checkpoint.arch,
                method=checkpoint.method,
                preprocess=checkpoint.preprocess,
                source_sha256=checkpoint.sha256,
                converted=how,
                options=checkpoint.options,
                assumed=checkpoint.assumed,
            )
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


@dataclass(frozen=True)
class Request:
    """What to convert; fields as in `convert.convert_ckpt.convert`."""

    src: Path
    to: str
    out: Path
    family: str | None
    arch: str | None
    network: str | None
    model: str | None
    prefix: str
    from_detector: bool
    stages: bool
    verify: bool
    verify_with: Path | None
    force: bool
    report: Path | None
    options: tuple[str, ...] = ()


def run(request: Request) -> dict:
    """Convert and verify. Returns the report; raises InputError, and then nothing was written."""
    if request.to not in TARGETS:
        raise InputError(
            f"unknown target '{request.to}'{nearest(request.to, TARGETS)}: use one of {', '.join(TARGETS)}"
        )
    if request.stages and request.to != "onnx":
        raise InputError("--stages is for --to onnx only")
    options = read_options(request.options)
    if request.family:
        by_name(request.family)
    started = time.monotonic()
    reports = [request.report] if request.report else []
    check_output(request.out, request.to, reports, request.force)
    checkpoint = read_checkpoint(
        request.src,
        family=request.family,
        arch=request.arch,
        network=request.network,
        from_detector=request.from_detector,
        options=options,
        mapped=True,
    )
    outgoing = rename(checkpoint, request.to, model=request.model, prefix=request.prefix)
    beside = snippet_path(request.out, request.to, kind_of(checkpoint.arch) == "vit")
    check_output(request.out, request.to, [beside, *reports], request.force)
    facts: dict = {}
    with staged(request.out) as path:
        if request.to == "onnx":
            from convert.targets.in_onnx import export

            verified, facts = export(path, checkpoint, stages=request.stages, picture=request.verify_with)
            digest = seal(path)
        else:
            write(path, request.to, outgoing.tensors, checkpoint)
            with ThreadPoolExecutor(1) as pool:
                sealed = pool.submit(seal, path)
                verified = _verify(path, checkpoint, outgoing, request)
                digest = sealed.result()
        path.with_name(beside.name).write_text(
            snippet(request.out, checkpoint, request.to, request.model, request.prefix), encoding="utf-8"
        )
        done = _report(request, checkpoint, outgoing, verified)
        done["target"] |= {"sha256": digest, "bytes": path.stat().st_size, "snippet": str(beside)}
        done |= {**facts, "seconds": round(time.monotonic() - started, 3)}
        if request.report:
            write_report(request.report, done)
    return done


def _verify(path: Path, checkpoint: Checkpoint, outgoing: Outgoing, request: Request) -> verify.Verified:
    steps = [
        verify.verify_file(path, request.to, outgoing),
        verify.verify_list(outgoing, checkpoint, request.to, request.model, request.prefix),
    ]
    if not request.verify:
        return verify.Verified([*steps, f"NOT verified, as asked: {request.to} has not loaded the file"])
    result = verify.verify_features(path, checkpoint, request.to, request.model, request.prefix, request.verify_with)
    return verify.Verified([*steps, *result.steps], result.differences)


def _report(request: Request, checkpoint: Checkpoint, outgoing: Outgoing, verified: verify.Verified) -> dict:
    return {
        "source": {
            "path": str(request.src),
            "sha256": checkpoint.sha256,
            "family": checkpoint.family,
            "rule": checkpoint.rule,
            "naming": checkpoint.layout,
            "network": checkpoint.network,
            "method": checkpoint.method,
        },
        "arch": checkpoint.arch,
        "options": checkpoint.options,
        "preprocess": checkpoint.preprocess,
        "target": {
            "framework": request.to,
            "path": str(request.out),
            "model": default_model(checkpoint.arch, request.model) if request.to == "detectron2" else None,
        },
        "rules": {"reading": checkpoint.counts, "writing": outgoing.counts},
        "dropped": {**checkpoint.dropped, **outgoing.dropped},
        "batch_norm": batch_norm_facts(checkpoint.state),
        "parameters": parameters(checkpoint.state),
        "verified": verified.steps,
        "differences": verified.differences,
        "notes": checkpoint.notes,
        "assumed": checkpoint.assumed,
    }


_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def parameters(state: dict[str, Tensor]) -> int:
    """Trainable numbers in a state dict: all but the batch norms' statistics."""
    return sum(value.numel() for key, value in state.items() if not key.endswith(_BUFFERS))


def batch_norm_facts(state: dict[str, Tensor]) -> dict:
    """How many batch norms carry running statistics, and whether these were ever updated."""
    means = [key for key in state if key.endswith("running_mean")]
    fresh = [
        key
        for key in means
        if not bool(state[key].any()) and bool((state[key.replace("running_mean", "running_var")] == 1).all())
    ]
    return {"layers": len(means), "with_statistics": len(means), "never_updated": len(fresh)}


def summary(report: dict) -> Iterator[str]:
    """The report as lines for a terminal."""
    source, target = report["source"], report["target"]
    yield f"read      {source['path']}"
    yield f"family    {source['family']}: {source['rule']}"
    options = f" with {report['options']}" if report["options"] else ""
    yield f"network   {source['network']} ({source['method']}): {report['arch']}{options}, named as {source['naming']}"
    dropped = ", ".join(f"{len(keys)} {reason}" for reason, keys in report["dropped"].items())
    yield f"tensors   {sum(report['rules']['reading'].values())} renamed; dropped: {dropped or 'none'}"
    norms = report["batch_norm"]
    never = f", {norms['never_updated']} never updated" if norms["never_updated"] else ""
    yield f"contents  {report['parameters']:,} parameters, {norms['layers']} batch norms with statistics{never}"
    for note in report["notes"]:
        yield f"note      {note}"
    for line in spelled(report["assumed"], "--set"):
        yield f"assumed   {line}"
    for step in report["verified"]:
        yield f"checked   {step}"
    if "form" in report:
        form = {"single": "", "deployed": ", deployed form", "training": ", training form"}[report["form"]]
        yield f"exported  {report['exported_parameters']:,} parameters{form}"
    for name in ("gflops", "inputs", "outputs"):
        if name in report:
            yield f"{name:<9} {report[name]}"
    yield f"wrote     {target['path']} ({target['bytes'] / 1e6:.1f} MB) and {target['snippet']}"
