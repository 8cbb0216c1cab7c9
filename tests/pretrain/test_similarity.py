"""Pairs above a threshold by a bound in bfloat16, against every product in float64."""

import numpy as np
import pytest
import torch

from pretrain.neighbours import Room, Rounded, above_by_bound

QUERIES, ROWS = 50, 5001  # no whole number of words


@pytest.fixture
def room(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})  # on any processor
    return Room.reserve(QUERIES, ROWS, torch.device("cpu"))


def drawn(query: int, row: int, offset: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Whole numbers, of which bfloat16 keeps eight bits, and every product of two rows, exact."""
    rng = np.random.default_rng(query + row + offset)
    queries = rng.integers(-query, query, (QUERIES, 3)).astype(np.float32)
    block = (rng.integers(-row, row, (ROWS, 3)) + offset).astype(np.float32)
    products = queries.astype(np.float64) @ block.astype(np.float64).T
    return torch.from_numpy(queries), torch.from_numpy(block), torch.from_numpy(products)


@pytest.mark.parametrize("own", [None, torch.arange(QUERIES) * 120 - 100], ids=["all", "one hidden"])
@pytest.mark.parametrize("offset", [0, 200])
@pytest.mark.parametrize("query, row", [(1000, 1000), (1000, 100), (100, 1000)])
def test_the_pairs_are_all_that_are_above(room, query, row, offset, own):
    queries, block, products = drawn(query, row, offset)
    if own is not None:
        inside = (own >= 0) & (own < ROWS)
        products[inside, own[inside]] = -torch.inf
    known = products.sort(1, descending=True).values[:, 60:61].float()  # the value of a pair, which is not above itself
    centre = block.mean(0) if offset else torch.zeros(3)
    found = above_by_bound(queries, block, Rounded.of(block, centre), centre, known, own, room)
    row, column = (products > known.double()).nonzero(as_tuple=True)
    assert torch.equal(found[0], row) and torch.equal(found[1], column)
    assert torch.equal(found[2].double(), products[row, column])


@pytest.mark.parametrize("place", [500, -1], ids=["a tenth is above", "all are above"])
def test_too_many_pairs_are_not_looked_at(room, place):
    queries, block, products = drawn(100, 100, 0)
    centre, known = block.mean(0), products.sort(1, descending=True).values[:, place, None].float()
    assert above_by_bound(queries, block, Rounded.of(block, centre), centre, known, None, room) is None


def test_bits_of_negative_numbers_are_not_compared(room):
    queries, block, products = drawn(100, 100, 0)
    centre, known = block.mean(0), products.amax(1, keepdim=True).float()
    known[7] = products[7].median()
    assert above_by_bound(queries, block, Rounded.of(block, centre), centre, known, None, room) is None


def test_nothing_is_found_above_the_best(room):
    queries, block, products = drawn(1000, 1000, 0)
    centre, known = block.mean(0), products.amax(1, keepdim=True).float()
    found = above_by_bound(queries, block, Rounded.of(block, centre), centre, known, None, room)
    assert [len(part) for part in found] == [0, 0, 0]
