"""Exact nearest neighbours in bounded memory, and their weighted vote.

The bank may be any size and live on disk: it is read in blocks, and only one block of similarities and the k best
neighbours found so far are held. Once k neighbours are known, a later block matters only where it is strictly more
similar than the k-th of them (an equal one has a higher index and loses), which few are: one comparison over the block
replaces selecting from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.similarity import FEW, Room, Rounded, above, above_by_bound, product

QUERIES = 1024  # rows of one query block; fixed, so that results do not depend on the number of processes
BANK = 16384  # rows of one bank block


def load_rows(rows: Tensor | np.ndarray, start: int, stop: int, device: torch.device) -> Tensor:
    """Rows [start, stop) as float32, L2-normalised, on the device."""
    part = rows[start:stop]
    part = torch.from_numpy(np.array(part)) if isinstance(part, np.ndarray) else part  # a copy: maps are read-only
    return F.normalize(part.to(device, torch.float32), dim=1)


def nearest(queries: Tensor, bank: Tensor | np.ndarray, k: int, *, exclude: Tensor | None = None,
            normalise: bool = True, on_block: Callable[[int], None] | None = None) -> tuple[Tensor, Tensor]:
    """The k most similar bank rows of every query: similarity [N, k] and index [N, k], most similar first.

    queries [N, D], bank [M, D], both compared by dot product (after L2-normalising the bank's rows if `normalise`;
    queries are taken as they are). exclude [N]: a bank row that each query may not choose (itself, for leave-one-out).
    Among equal similarities the lowest index comes first. Works on the queries' device;
    ValueError if k > M. `on_block` is told the number of rows of every bank block that is done.
    """
    available = len(bank) - (exclude is not None)
    if not 0 < k <= available:
        raise ValueError(f"k {k} must lie between 1 and the bank's {available} rows")
    count, device = len(queries), queries.device
    best = torch.full((count, k), -torch.inf, device=device)  # in the order of their indices until the end
    index = torch.full((count, k), -1, dtype=torch.long, device=device)
    room = Room.reserve(min(QUERIES, count), min(BANK, len(bank)), device)
    crowded: set[int] = set()  # query blocks with too many neighbours within the bound
    stop = 0
    while stop < len(bank):
        # Small blocks first, doubling: selecting from all of a block is dear, and a first threshold spares the rest.
        start, stop = stop, min(stop + min(BANK, max(stop, BANK // 8, 1)), len(bank))
        block = load_rows(bank, start, stop, device) if normalise else torch.as_tensor(bank[start:stop], device=device)
        if start == 0:
            centre = block.mean(0)
        rounded = Rounded.of(block, centre) if room.rough is not None and start >= 2 * FEW * k else None
        for first in range(0, count, QUERIES):
            part = slice(first, first + QUERIES)
            own = None if exclude is None else exclude[part] - start
            if start == 0:  # nothing is known yet
                similarity = product(queries[part], block, own, room.exact)[:, :len(block)]
                _merge(best[part], index[part], similarity, None, start)
                continue
            known, pairs = best[part].amin(1, keepdim=True), None
            if rounded and first not in crowded:
                pairs = above_by_bound(queries[part], block, rounded, centre, known, own, room)
                if pairs is None:
                    crowded.add(first)
            if pairs is None:
                pairs = above(queries[part], block, known, own, room)
            _merge(best[part], index[part], *_as_rows(*pairs, len(known)), start)
        if on_block:
            on_block(stop - start)
    order = best.sort(dim=1, descending=True, stable=True).indices
    return best.gather(1, order), index.gather(1, order)


def _as_rows(row: Tensor, column: Tensor, values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Pairs in the order of their rows as values and columns [count, c]; shorter rows are filled up with -inf."""
    counts = torch.bincount(row, minlength=count)
    longest = int(counts.max())
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    padded = values.new_full((count, longest), -torch.inf)
    found = torch.zeros(count, longest, dtype=torch.long, device=row.device)
    padded[row, place] = values
    found[row, place] = column
    return padded, found


def _merge(best: Tensor, index: Tensor, values: Tensor, found: Tensor | None, offset: int) -> None:
    """Bring the better ones of further values into best and index [n, k]; both stay in the order of the indices.

    `found` are the values' columns in a block whose first column is bank row `offset`; None: all of them in order.
    """
    k = best.shape[1]
    if found is not None:
        if not values.shape[1]:
            return
        values, found = torch.cat([best, values], dim=1), torch.cat([index, found + offset], dim=1)
    elif values.shape[1] < k:  # fewer rows than k in the block: keep placeholders
        found = torch.arange(values.shape[1], device=values.device).expand_as(values)
        values, found = torch.cat([best, values], dim=1), torch.cat([index, found], dim=1)
    values, column = _select(values, k)
    best.copy_(values)
    index.copy_(column if found is None else found.gather(1, column))


def _select(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best entries of every row in column order; where the k-th is tied, those of the lowest columns."""
    values, found = similarity.topk(min(k, similarity.shape[1]), dim=1, sorted=False)
    least = values.amin(1, keepdim=True)
    tied = ((similarity == least).sum(1) > (values == least).sum(1)).nonzero().squeeze(1)
    if len(tied):  # topk may have left out a lower column
        exact = similarity[tied].sort(dim=1, descending=True, stable=True)
        values[tied], found[tied] = exact.values[:, :found.shape[1]], exact.indices[:, :found.shape[1]]
    found, order = found.sort(dim=1)
    return values.gather(1, order), found


def vote(similarity: Tensor, labels: Tensor, classes: int, ks: Sequence[int], temperature: float,
         r: int = 5) -> dict[int, Tensor]:
    """Ranked classes [N, min(r, classes)] by weighted vote of the first k neighbours, for every k in one pass.

    similarity [N, K] and labels [N, K] of the neighbours, most similar first; each votes for its class with
    exp(similarity / temperature) (Wu et al., 2018, section 3.4).
    """
    ranked: dict[int, list[Tensor]] = {k: [] for k in sorted(ks)}
    for first in range(0, max(len(similarity), 1), QUERIES):  # one block's votes for all classes at a time
        weights = (similarity[first:first + QUERIES].double() / temperature).exp()
        chosen, votes, done = labels[first:first + QUERIES], weights.new_zeros(len(weights), classes), 0
        for k, blocks in ranked.items():
            for column in range(done, k):  # in order: the sum does not depend on which other k are asked for
                votes.scatter_add_(1, chosen[:, column:column + 1], weights[:, column:column + 1])
            done = k
            blocks.append(rank_classes(votes, r))
    return {k: torch.cat(blocks) for k, blocks in ranked.items()}


def rank_classes(scores: Tensor, r: int = 5) -> Tensor:
    """The `r` best classes of every row of scores [N, C], best first, ties in class order: int64 [N, min(r, C)]."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :r]
