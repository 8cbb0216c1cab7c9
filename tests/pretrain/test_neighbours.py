"""Exact neighbours and votes against plain NumPy and plain Python, ties included."""

import math

import numpy as np
import pytest
import torch

from pretrain import neighbours
from pretrain.neighbours import nearest_neighbours, vote


def brute_force(queries, bank, k, exclude=None):
    """The k best columns of every row: by falling similarity, then by rising index."""
    similarity = queries.astype(np.float64) @ bank.astype(np.float64).T
    found = []
    for i, row in enumerate(similarity):
        order = np.lexsort((np.arange(len(row)), -row))
        if exclude is not None:
            order = order[order != exclude[i]]
        found.append(order[:k])
    index = np.stack(found)
    return np.take_along_axis(similarity, index, 1), index


@pytest.fixture(params=[(7, 16), (64, 50), (1024, 16384)], ids=str)
def block_sizes(request, monkeypatch):
    monkeypatch.setattr(neighbours, "QUERIES", request.param[0])
    monkeypatch.setattr(neighbours, "BANK", request.param[1])


@pytest.mark.parametrize("k", [1, 10, 20, 50, 100, 200])
@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_neighbours_of_exactly_representable_features(block_sizes, k, levels):
    rng = np.random.default_rng(k + levels)  # few levels: nearly everything is tied
    bank = rng.integers(-levels, levels, (211, 5)).astype(np.float32)
    bank[100:130] = bank[3]
    queries = rng.integers(-levels, levels, (37, 5)).astype(np.float32)
    value, index = nearest_neighbours(torch.from_numpy(queries), torch.from_numpy(bank), k, normalise=False)
    expected_value, expected_index = brute_force(queries, bank, k)
    np.testing.assert_array_equal(index.numpy(), expected_index)
    np.testing.assert_array_equal(value.numpy(), expected_value)


@pytest.mark.parametrize("k", [1, 20, 46])
def test_leave_one_out(block_sizes, k):
    rng = np.random.default_rng(k)
    bank = rng.integers(-2, 2, (47, 4)).astype(np.float32)
    value, index = nearest_neighbours(
        torch.from_numpy(bank), torch.from_numpy(bank), k, exclude=torch.arange(47), normalise=False
    )
    np.testing.assert_array_equal(index.numpy(), brute_force(bank, bank, k, np.arange(47))[1])
    assert torch.isfinite(value).all()


@pytest.fixture
def bounds(monkeypatch):
    """How many pairs every call of the search by bound in bfloat16 gave (None: too many), on any processor."""
    found, search = [], neighbours.above_by_bound

    def spied(*arguments):
        pairs = search(*arguments)
        found.append(None if pairs is None else len(pairs[0]))
        return pairs

    monkeypatch.setattr(neighbours, "above_by_bound", spied)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(neighbours, "QUERIES", 16)
    monkeypatch.setattr(neighbours, "BANK", 1000)
    return found


@pytest.mark.parametrize("exclude", [None, np.arange(4000, 4200)], ids=["all", "leave one out"])
@pytest.mark.parametrize("offset", [0, 200])
@pytest.mark.parametrize("query, row", [(1000, 1000), (1000, 100), (100, 1000)])
def test_the_bound_in_bfloat16_loses_no_neighbour(bounds, query, row, offset, exclude):
    """Whole numbers, of which bfloat16 keeps eight bits: all, if below 100. Their products are exact in float32."""
    rng = np.random.default_rng(query + row)
    half = rng.integers(-row, row, (5_000, 3)).astype(np.float32)
    bank = np.stack([half, -half], axis=1).reshape(-1, 3) + offset  # every block has the same centre
    bank[3000:3100] = bank[:100]
    queries = rng.integers(-query, query, (200, 3)).astype(np.float32)
    value, index = nearest_neighbours(
        torch.from_numpy(queries),
        torch.from_numpy(bank),
        15,
        normalise=False,
        exclude=exclude if exclude is None else torch.from_numpy(exclude),
    )
    expected_value, expected_index = brute_force(queries, bank, 15, exclude)
    np.testing.assert_array_equal(index.numpy(), expected_index)
    np.testing.assert_array_equal(value.numpy(), expected_value)
    assert any(bounds)


def test_rows_too_close_for_bfloat16_are_compared_in_float32(bounds):
    rng = np.random.default_rng(0)
    bank = rng.normal(size=(6000, 8)).astype(np.float32)
    bank[:1000] *= 1e-4  # what the centre is taken of
    bank[1000:] = bank[0] + 100 + 1e-3 * bank[1000:]
    queries = rng.normal(size=(40, 8)).astype(np.float32)
    index = nearest_neighbours(torch.from_numpy(queries), torch.from_numpy(bank), 10, normalise=False)[1]
    similarity = torch.from_numpy(queries) @ torch.from_numpy(bank).T
    reached = similarity.gather(1, index).double()
    assert (reached >= similarity.sort(1, descending=True).values[:, :10].double() - 1e-4).all()
    assert bounds == [None] * 3, "each of the three query blocks tries once"


def test_a_bank_on_disk_is_normalised_and_equal_to_one_in_memory(tmp_path):
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(300, 8)).astype(np.float32), rng.normal(size=(20, 8)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    np.save(tmp_path / "bank.npy", bank)
    on_disk = nearest_neighbours(torch.from_numpy(queries), np.load(tmp_path / "bank.npy", mmap_mode="r"), 10)
    in_memory = nearest_neighbours(torch.from_numpy(queries), torch.from_numpy(bank), 10)
    assert torch.equal(on_disk[0], in_memory[0]) and torch.equal(on_disk[1], in_memory[1])
    value, index = brute_force(queries, bank / np.linalg.norm(bank, axis=1, keepdims=True), 10)
    np.testing.assert_array_equal(in_memory[1].numpy(), index)
    np.testing.assert_allclose(in_memory[0].numpy(), value, atol=1e-6)


def test_more_neighbours_than_rows_is_refused():
    rows = torch.ones(5, 2)
    with pytest.raises(ValueError, match="between 1 and"):
        nearest_neighbours(rows, rows, 6)
    with pytest.raises(ValueError, match="between 1 and"):
        nearest_neighbours(rows, rows, 5, exclude=torch.arange(5))


def test_votes_of_every_k_against_a_plain_loop():
    rng = np.random.default_rng(1)
    similarity = np.sort(rng.uniform(-1, 1, (40, 60)))[:, ::-1].copy()
    labels, ks = rng.integers(0, 7, (40, 60)), [1, 10, 20, 50, 60]
    ranked = vote(torch.from_numpy(similarity), torch.from_numpy(labels), 7, ks, 0.07)
    assert list(ranked) == ks
    for k in ks:
        for row in range(40):
            votes = [0.0] * 7
            for s, c in zip(similarity[row, :k], labels[row, :k], strict=True):
                votes[c] += math.exp(s / 0.07)
            expected = sorted(range(7), key=lambda c, votes=votes: (-votes[c], c))[:5]
            assert ranked[k][row].tolist() == expected


def test_tied_votes_go_to_the_lowest_class():
    similarity = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    assert vote(similarity, torch.tensor([[3, 1, 1, 3]]), 4, [2, 4], 0.07)[4].tolist() == [[1, 3, 0, 2]]
