"""Two gloo processes against one with the double batch, on a ViT (no batch norm), and MoCo's shuffle."""

import pytest
import torch

from pretrain.methods import METHODS
from tests.pretrain.golden import relative_error

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)


@pytest.fixture(scope="module")
def results(tmp_path_factory, run) -> list[dict]:
    """What one process and two processes made of the same global batches, by method."""
    folder, script = tmp_path_factory.mktemp("processes"), "tests.pretrain.methods.distributed_steps"
    run("-m", script, folder / "one.pt")
    run(*TORCHRUN, "-m", script, folder / "two.pt")
    return [torch.load(folder / f"{count}.pt", weights_only=True) for count in ("one", "two")]


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_equal_one_with_the_double_batch(name, results):
    """9 steps with a moving centre, and queues that fill, are used and wrap around: 1e-5 of the largest magnitude.

    Both ranks must also end with the same state, bit for bit, so that any rank's checkpoint restores all.
    """
    one, two = (result[name] for result in results)
    assert relative_error(two["losses"], one["losses"]) < 1e-5
    for key, value in one["states"].items():
        first, second = two["states"][key]
        assert torch.equal(first, second), key
        if value.any():
            assert relative_error(first, value[0]) < 1e-5, key
        else:
            assert not first.any(), key


def test_key_images_are_shuffled_across_ranks_and_keys_come_back_in_order(tmp_path, run):
    """With a key encoder that copies its input: every rank encodes images of both, all keys return in rank order."""
    script = tmp_path / "shuffle.py"
    script.write_text("""
import sys, torch
from sslight.core import distributed
from pretrain.methods import Progress, build_method
from tests.pretrain.tiny import config

distributed.start()
rank, seen = distributed.rank(), []
method = build_method(config("moco"))
method._encode = lambda images: seen.append(images.flatten().tolist()) or images.flatten(1)
keys = [method._keys(torch.arange(4.0).view(4, 1, 1, 1) + 4 * rank, Progress(step, 3, 3)) for step in range(8)]
assert all(torch.equal(key.flatten(), torch.arange(8.0)) for key in keys)
everyone = distributed.all_gather(torch.tensor(seen)[None])
if rank == 0:
    torch.save(everyone, sys.argv[1])
distributed.stop()
""")
    run(*TORCHRUN, script, tmp_path / "seen.pt")
    seen = torch.load(tmp_path / "seen.pt", weights_only=True)  # [rank, step, image]
    for step in range(8):
        assert sorted(seen[:, step].flatten().tolist()) == list(range(8))
    assert len({tuple(order) for order in seen.transpose(0, 1).flatten(1).tolist()}) > 4  # a new order every step
    assert (seen[0] >= 4).any() and (seen[0] < 4).any()
