"""Exact nearest neighbours in bounded memory, their votes, and the k-NN accuracy that is measured in training.

Where the processor multiplies bfloat16 several times faster than float32, the comparison is made on rounded rows, with
a bound on what rounding can change, and only the pairs that may pass it are multiplied in float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor

from pretrain.backbones import Backbone
from pretrain.data.loading import center_crop, image_batches, normalize
from pretrain.data.sources import Source
from sslight.core import distributed

WORD = 8  # booleans in an int64
FEW = 32  # one pair in so many, at most, is worth multiplying by itself


class Room(NamedTuple):
    """Memory for the similarities of a query and a bank block, reused: fresh memory costs more than comparing them."""

    exact: Tensor
    rough: Tensor | None  # only where the processor multiplies bfloat16
    marks: Tensor

    @classmethod
    def reserve(cls, rows: int, columns: int, device: torch.device) -> Room:
        able = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        exact, rough = torch.empty(rows, _whole_words(columns), device=device), None
        if able.get("avx512_bf16") or able.get("amx_bf16"):
            rough = torch.empty_like(exact, dtype=torch.bfloat16)
        return cls(exact, rough, torch.empty_like(exact, dtype=torch.bool))


class Rounded(NamedTuple):
    """Rows in bfloat16, the lengths of the originals and of what rounding took away: [n, D], [n, 1], [n, 1]."""

    rows: Tensor
    length: Tensor
    lost: Tensor

    @classmethod
    def of(cls, rows: Tensor, centre: Tensor | float = 0.0) -> Rounded:
        """Of `rows - centre`, some at a time: what stays in the processor's cache is far cheaper."""
        parts = []
        for part in rows.split(2048):
            exact = part - centre
            rounded = exact.bfloat16()
            length = exact.norm(dim=1, keepdim=True)
            parts.append((rounded, length, exact.sub_(rounded).norm(dim=1, keepdim=True)))
        return cls(*map(torch.cat, zip(*parts, strict=True)))


def _whole_words(columns: int) -> int:
    return -(-columns // WORD) * WORD


def product(queries: Tensor, block: Tensor, own: Tensor | None, room: Tensor) -> Tensor:
    """queries @ block.T in `room`, filled up with -inf to whole words; so is the column `own` of every query."""
    padded = room[: len(queries), : _whole_words(len(block))]
    similarity = padded[:, : len(block)]
    torch.mm(queries, block.T, out=similarity)
    padded[:, len(block) :] = -torch.inf
    if own is not None:
        row = ((own >= 0) & (own < len(block))).nonzero().squeeze(1)
        similarity[row, own[row]] = -torch.inf
    return padded


def above(
    queries: Tensor, block: Tensor, known: Tensor, own: Tensor | None, room: Room
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and similarities of the pairs above `known` [n, 1], all multiplied in float32."""
    similarity = product(queries, block, own, room.exact)
    row, column = _at_least(similarity, known.nextafter(known.new_tensor(torch.inf)), room.marks)
    return row, column, similarity[row, column]


def _at_least(similarity: Tensor, least: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the entries of [n, w] that reach their row's `least` [n, 1], in order."""
    mark = torch.ge(similarity, least, out=room[: len(similarity), : similarity.shape[1]])
    # Eight marks at a time: nearly all are empty, and looking through single ones would cost more than comparing.
    words = mark.view(torch.int64)
    row, word = (words != 0).nonzero(as_tuple=True)
    hit, place = words[row, word].view(torch.bool).view(-1, WORD).nonzero(as_tuple=True)
    return row[hit], word[hit] * WORD + place


def above_by_bound(
    queries: Tensor, block: Tensor, rounded: Rounded, centre: Tensor, known: Tensor, own: Tensor | None, room: Room
) -> tuple[Tensor, Tensor, Tensor] | None:
    """As `above`, by products in bfloat16 and a bound on their error; None if that leaves too many to look at.

    With b = c + r, q = q' + dq and r = r' + dr, where q' and r' are rounded: q b = q c + q' r' + q' dr + dq r. The last
    two are at most |q'| |dr| + |dq| |r|; the centre c of the bank makes r and so the bound small. Sums of D terms in
    float32 are wrong by less than D 2^-23 times the product of the lengths (Higham, Accuracy and Stability of Numerical
    Algorithms, 2002, section 3.1). The product is rounded to bfloat16, and so is what it is compared with, which keeps
    their order. Positive numbers are compared by their bits, which is faster; where what they are compared with is
    negative, too many pairs reach it anyway.
    """
    few = Rounded.of(queries)
    longest = rounded.length.amax() + centre.norm()
    bound = (
        (few.length + few.lost) * rounded.lost.amax()
        + few.lost * rounded.length.amax()
        + few.length * longest * (queries.shape[1] * 2.0**-21)
    )
    least = (known - (queries @ centre)[:, None] - bound).bfloat16()
    if least.amin() <= 0:
        return None
    assert room.rough is not None  # else there are no rounded rows
    similarity = product(few.rows, rounded.rows, own, room.rough)
    row, column = _at_least(similarity.view(torch.int16), least.view(torch.int16), room.marks)
    if len(row) * FEW > len(queries) * len(block):
        return None
    values = _dots(queries, block, row, column)
    passed = values > known[row, 0]
    return row[passed], column[passed], values[passed]


def _dots(queries: Tensor, block: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """queries[row] . block[column] for pairs in the order of their rows, without a copy of either."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse", UserWarning)  # in beta; unchecked: these are right
        starts = F.pad(torch.bincount(row, minlength=len(queries)).cumsum(0), (1, 0))
        pairs = torch.sparse_csr_tensor(
            starts, column, torch.zeros(len(row), device=row.device), (len(queries), len(block))
        )
        return torch.sparse.sampled_addmm(pairs, queries, block.T).values()


class Rows(Protocol):
    """Rows [n, D] that are read by slices: a tensor, an array, or an object that reads files."""

    @property
    def shape(self) -> Sequence[int]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Any: ...


QUERIES = 1024  # rows of one query block; fixed, so that results do not depend on the number of processes
BANK = 16384  # rows of one bank block


def load_rows(rows: Rows, start: int, stop: int, device: torch.device) -> Tensor:
    """Rows [start, stop) as float32, L2-normalised, on the device."""
    part = rows[start:stop]
    part = torch.from_numpy(np.array(part)) if isinstance(part, np.ndarray) else part  # a copy: maps are read-only
    return F.normalize(part.to(device, torch.float32), dim=1)


def nearest_neighbours(
    queries: Tensor,
    bank: Rows,
    k: int,
    *,
    exclude: Tensor | None = None,
    normalise: bool = True,
    on_block: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """The k most similar bank rows of every query: similarity [N, k] and index [N, k], most similar first.

    queries [N, D], bank [M, D], both compared by dot product (after L2-normalising the bank's rows if `normalise`;
    queries are taken as they are). exclude [N]: a bank row that each query may not choose (itself, for leave-one-out).
    Among equal similarities the lowest index comes first. Works on the queries' device;
    ValueError if k > M. `on_block` receives the number of rows of every bank block that is done.
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
                similarity = product(queries[part], block, own, room.exact)[:, : len(block)]
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
    columns = torch.zeros(count, longest, dtype=torch.long, device=row.device)
    padded[row, place] = values
    columns[row, place] = column
    return padded, columns


def _merge(best: Tensor, index: Tensor, values: Tensor, columns: Tensor | None, offset: int) -> None:
    """Bring the better ones of further values into best and index [n, k]; both stay in the order of the indices.

    `columns` are the values' columns in a block whose first column is bank row `offset`; None: all of them in order.
    """
    k = best.shape[1]
    if columns is not None:
        if not values.shape[1]:
            return
        values, columns = torch.cat([best, values], dim=1), torch.cat([index, columns + offset], dim=1)
    elif values.shape[1] < k:  # fewer rows than k in the block: keep placeholders
        columns = torch.arange(values.shape[1], device=values.device).expand_as(values)
        values, columns = torch.cat([best, values], dim=1), torch.cat([index, columns], dim=1)
    values, selected = _select(values, k)
    best.copy_(values)
    index.copy_(selected if columns is None else columns.gather(1, selected))


def _select(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best entries of every row in column order; where the k-th is tied, those of the lowest columns."""
    values, columns = similarity.topk(min(k, similarity.shape[1]), dim=1, sorted=False)
    least = values.amin(1, keepdim=True)
    tied = ((similarity == least).sum(1) > (values == least).sum(1)).nonzero().squeeze(1)
    if len(tied):  # topk may have left out a lower column
        exact = similarity[tied].sort(dim=1, descending=True, stable=True)
        values[tied], columns[tied] = exact.values[:, : columns.shape[1]], exact.indices[:, : columns.shape[1]]
    columns, order = columns.sort(dim=1)
    return values.gather(1, order), columns


def vote(
    similarity: Tensor, labels: Tensor, classes: int, ks: Sequence[int], temperature: float, r: int = 5
) -> dict[int, Tensor]:
    """Ranked classes [N, min(r, classes)] by weighted vote of the first k neighbours, for every k in one pass.

    similarity [N, K] and labels [N, K] of the neighbours, most similar first; each votes for its class with
    exp(similarity / temperature) (Wu et al., 2018, section 3.4).
    """
    ranked: dict[int, list[Tensor]] = {k: [] for k in sorted(ks)}
    for first in range(0, max(len(similarity), 1), QUERIES):  # one block's votes for all classes at a time
        weights = (similarity[first : first + QUERIES].double() / temperature).exp()
        chosen, votes, done = labels[first : first + QUERIES], weights.new_zeros(len(weights), classes), 0
        for k, blocks in ranked.items():
            for column in range(done, k):  # in order: the sum does not depend on which other k are asked for
                votes.scatter_add_(1, chosen[:, column : column + 1], weights[:, column : column + 1])
            done = k
            blocks.append(rank_classes(votes, r))
    return {k: torch.cat(blocks) for k, blocks in ranked.items()}


def rank_classes(scores: Tensor, r: int = 5) -> Tensor:
    """The `r` best classes of every row of scores [N, C], best first, ties in class order: int64 [N, min(r, C)]."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :r]


@torch.no_grad()
def extract(backbone: Backbone, source: Source, cfg: CfgNode, device: torch.device) -> tuple[Tensor, Tensor]:
    """L2-normalised features [N, D] and labels [N] of a whole source, shared over the ranks, every image once.

    The network is put into eval mode for it and back. The centre crop keeps the published ratio 224 of 256.
    """
    rank, world = distributed.rank(), distributed.world_size()
    count = -(-len(source) // world)
    mine = np.arange(rank * count, min((rank + 1) * count, len(source)))
    size = cfg.VIEWS.GLOBAL_SIZE
    features = torch.zeros(count, backbone.feature_dim, device=device)
    was_training = backbone.training
    backbone.eval()
    done = 0
    for images, _ in image_batches(
        source,
        mine,
        center_crop(round(size * 256 / 224), size),
        batch_size=cfg.TRAIN.BATCH_SIZE,
        workers=cfg.DATA.WORKERS,
    ):
        out = backbone(normalize(images, cfg.DATA.MEAN, cfg.DATA.STD, device))
        features[done : done + len(out)] = F.normalize(out.float(), dim=1)
        done += len(out)
    backbone.train(was_training)
    return distributed.all_gather(features)[: len(source)], torch.as_tensor(source.labels, device=device)


def knn_top1(backbone: Backbone, val: Source, train: Source | None, cfg: CfgNode, device: torch.device) -> float:
    """Weighted k-NN accuracy of the validation images, as a fraction.

    Without `train` each image is judged by the other validation images (leave-one-out, the published in-training
    measure); with it by the training images.
    """
    features, labels = extract(backbone, val, cfg, device)
    bank, bank_labels = extract(backbone, train, cfg, device) if train else (features, labels)
    exclude = None if train else torch.arange(len(features), device=device)
    k = min(cfg.KNN.K, len(bank) - (train is None))
    similarity, index = nearest_neighbours(features, bank, k, exclude=exclude, normalise=False)
    ranked = vote(similarity, bank_labels[index], int(bank_labels.max()) + 1, [k], cfg.KNN.TEMPERATURE, r=1)
    return float((ranked[k][:, 0] == labels).double().mean())
