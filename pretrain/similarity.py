"""Which pairs of rows are more similar than is known already: the inner loop of exact nearest neighbours.

Where the processor multiplies bfloat16 several times faster than float32, the comparison is made on rounded rows, with
a bound on what rounding can change, and only the pairs that may pass it are multiplied in float32.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

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
    padded = room[:len(queries), :_whole_words(len(block))]
    similarity = padded[:, :len(block)]
    torch.mm(queries, block.T, out=similarity)
    padded[:, len(block):] = -torch.inf
    if own is not None:
        row = ((own >= 0) & (own < len(block))).nonzero().squeeze(1)
        similarity[row, own[row]] = -torch.inf
    return padded


def above(queries: Tensor, block: Tensor, known: Tensor, own: Tensor | None,
          room: Room) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and similarities of the pairs above `known` [n, 1], all multiplied in float32."""
    similarity = product(queries, block, own, room.exact)
    row, column = _at_least(similarity, known.nextafter(known.new_tensor(torch.inf)), room.marks)
    return row, column, similarity[row, column]


def _at_least(similarity: Tensor, least: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the entries of [n, w] that reach their row's `least` [n, 1], in order."""
    mark = torch.ge(similarity, least, out=room[:len(similarity), :similarity.shape[1]])
    # Eight marks at a time: nearly all are empty, and looking through single ones would cost more than comparing.
    words = mark.view(torch.int64)
    row, word = (words != 0).nonzero(as_tuple=True)
    hit, place = words[row, word].view(torch.bool).view(-1, WORD).nonzero(as_tuple=True)
    return row[hit], word[hit] * WORD + place


def above_by_bound(queries: Tensor, block: Tensor, rounded: Rounded, centre: Tensor, known: Tensor,
                   own: Tensor | None, room: Room) -> tuple[Tensor, Tensor, Tensor] | None:
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
    bound = (few.length + few.lost) * rounded.lost.amax() + few.lost * rounded.length.amax() \
        + few.length * longest * (queries.shape[1] * 2.0 ** -21)
    least = (known - (queries @ centre)[:, None] - bound).bfloat16()
    if least.amin() <= 0:
        return None
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
        pairs = torch.sparse_csr_tensor(starts, column, torch.zeros(len(row), device=row.device),
                                        (len(queries), len(block)))
        return torch.sparse.sampled_addmm(pairs, queries, block.T).values()
