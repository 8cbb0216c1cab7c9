"""From `--weights` to a file that the framework loads: a checkpoint, a seeded random network, or supervised weights.

Conversions are kept under `OUTPUT_DIR/weights`, named by the source's hash, and made once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.detection.framework import FRAMEWORKS, Weights
from convert.families import IMAGENET, Checkpoint
from convert.reader import read_checkpoint
from convert.sources import RANDOM, SUPERVISED
from convert.targets import rename
from pretrain.backbones import build_backbone, canonical_arch, check_options, read_options
from sslight.core.checkpoint import save_backbone, sha256
from sslight.core.errors import InputError
from sslight.core.files import write_atomically


def find_source(weights: str, arch: str | None, seed: int, out_dir: Path, options: str = "") -> Checkpoint:
    """The backbone that `weights` names, in timm's names.

    weights: "random", or a checkpoint as `convert.sources` names it. "SUPERVISED" is written into the run's directory.
    arch: required for the last two; otherwise the checkpoint's own, and an error if it differs.
    options: build options that the checkpoint does not tell, as `num_heads=12`.
    """
    given = read_options(options.split())
    if weights in (RANDOM, SUPERVISED):
        if not arch:
            raise InputError(f"--weights {weights} needs --arch, e.g. --arch resnet18")
        arch = canonical_arch(arch)
        check_options(arch, given)
        name = "_".join([weights.lower(), arch, *options.split(), f"seed{seed}"])
        file = out_dir / "weights" / f"{name}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        if weights == RANDOM:
            state, preprocess = _random(arch, seed, given)
        else:
            read = read_checkpoint(SUPERVISED, arch=arch, options=given)
            state, preprocess = read.state, read.preprocess
        save_backbone(
            file,
            state,
            arch=arch,
            method=weights.lower(),
            preprocess=preprocess,
            converted=f"made by --weights {weights}",
            options=given,
        )
        return read_checkpoint(file)
    source = read_checkpoint(weights, options=given)
    if arch and canonical_arch(arch) != source.arch:
        raise InputError(
            f"{weights} holds a {source.arch}, but --arch or the recipe asks for {canonical_arch(arch)}: "
            "choose the checkpoint or the recipe of the same architecture"
        )
    return source


def prepare(weights: str, source: Checkpoint, framework: str, model: str | None, out_dir: Path) -> Weights:
    """Write `source` in the framework's names, unless that was done before, and return what was written.

    weights: what named the source. model: `Recipe`'s, None where it has none.
    """
    tensors = rename(source, framework, model=model).tensors
    parts = [source.arch, source.sha256[:16], source.network, framework, model]
    file = out_dir / "weights" / f"{'_'.join(part for part in parts if part)}.pth"
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.is_file():
        content = {FRAMEWORKS[framework].STATE_KEY: tensors}
        write_atomically(file, lambda temporary: torch.save(content, temporary))
    described = {
        "path": str(weights),
        "sha256": source.sha256,
        **({"revision": source.revision} if source.revision else {}),
        "arch": source.arch,
        "method": source.method,
        "family": str(weights).lower() if weights in (RANDOM, SUPERVISED) else source.family,
        "network": source.network,
        "options": source.options,
        "assumed": list(source.assumed.values()),
        "converted": {"file": str(file), "sha256": sha256(file)},
    }
    return Weights(file, tensors, source.arch, source.preprocess, described, source.options)


def _random(arch: str, seed: int, options: dict) -> tuple[dict[str, Tensor], dict]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_backbone(arch, **options).state_dict(), {**IMAGENET, "size": 224}


SHOWN = 12  # differences spelled out in the error; the rest is counted


def prove(
    built: Mapping[str, Tensor], expected: Mapping[str, Tensor], file: Path | str, new: tuple[str, ...] = ()
) -> int:
    """Compare a detector's backbone with the tensors of the file it was loaded from; returns how many are equal.

    built, expected: state dicts under the same names. Batch norms' `num_batches_tracked` may be absent from either.
    new: parts of names that the detector adds to the pre-trained network (ViTDet's relative positions).
    Raises InputError with the list of differences.
    """
    faults = []
    for key in sorted(built.keys() | expected.keys()):
        if key not in expected:
            if not key.endswith("num_batches_tracked") and not any(part in key for part in new):
                faults.append(f"{key} is not in the file")
        elif key not in built:
            if not key.endswith("num_batches_tracked"):
                faults.append(f"{key} is not in the backbone")
        elif built[key].shape != expected[key].shape:
            faults.append(f"{key} has shape {list(built[key].shape)}, in the file {list(expected[key].shape)}")
        elif not torch.equal(built[key].detach().cpu(), expected[key].cpu().to(built[key].dtype)):
            faults.append(f"{key} has other values than in the file")
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise InputError(
            f"the detector's backbone is not that of {file}: {'; '.join(faults[:SHOWN])}{more}; "
            "the recipe's architecture must be the checkpoint's"
        )
    return len(built.keys() & expected.keys())
