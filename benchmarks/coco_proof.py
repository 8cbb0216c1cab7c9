"""Proof that the backbone which trains is the file's: every tensor of both compared before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pretrain.errors import InputError

SHOWN = 12  # differences spelled out in the error; the rest is counted


def prove(built: Mapping[str, Tensor], expected: Mapping[str, Tensor], file: Path | str,
          new: tuple[str, ...] = ()) -> int:
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
        raise InputError(f"the detector's backbone is not that of {file}: {'; '.join(faults[:SHOWN])}{more}; "
                         "the recipe's architecture must be the checkpoint's")
    return len(built.keys() & expected.keys())
