"""Work on a list of images shared over the ranks, every image exactly once whatever the number of ranks."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pretrain import distributed


def my_batches(count: int, batch_size: int) -> np.ndarray:
    """This rank's share of 0 .. count - 1: neighbouring whole batches, the same ones for any number of ranks."""
    batches = -(-count // batch_size)
    first, last = (batches * (distributed.rank() + i) // distributed.world_size() for i in (0, 1))
    return np.arange(first * batch_size, min(last * batch_size, count))


def gather_rows(rows: Tensor) -> Tensor:
    """Every rank's rows [n_r, ...], one after the other in rank order, on every rank; the n_r may differ."""
    if distributed.world_size() == 1:
        return rows
    counts = distributed.all_gather(torch.tensor([len(rows)], device=rows.device)).tolist()
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[:len(rows)] = rows
    gathered = distributed.all_gather(padded).view(distributed.world_size(), max(counts), *rows.shape[1:])
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])
