"""Train every method for a few tiny steps under `torchrun` or alone, and save what came of it in FILE, the argument.

Every process takes its share of the same global batch of 8, so that any number of processes does the same work.
"""

import faulthandler
import sys

import torch
from torch.nn import BatchNorm1d
from torch.nn.parallel import DistributedDataParallel

from pretrain.methods import METHODS, Progress, build_method
from pretrain.optim import build_optimizer, set_hyperparameters
from sslight.core import distributed
from tests.pretrain.tiny import config, views


def main(file: str) -> None:
    faulthandler.dump_traceback_later(200, exit=True)  # a hang leaves its traceback and no orphan
    distributed.start()
    results = {name: train(name) for name in METHODS}
    if distributed.is_main():
        torch.save(results, file)
    distributed.barrier()
    distributed.stop()


def train(name: str) -> dict:
    """Mean losses of 9 steps, and the state of every rank, stacked."""
    world, rank = distributed.world_size(), distributed.rank()
    share = 8 // world
    cfg = config(name, TRAIN__BATCH_SIZE=share, SWAV__QUEUE_LENGTH=17, MOCO__QUEUE_LENGTH=20)
    torch.manual_seed(0)
    method = build_method(cfg)
    for norm in filter(lambda module: isinstance(module, BatchNorm1d), method.modules()):
        norm.eval()  # on a CPU its statistics are each process's own
    torch.manual_seed(rank)
    model = DistributedDataParallel(method, broadcast_buffers=False) if world > 1 else method
    optimizer, losses = build_optimizer(cfg, method), []
    for step in range(9):
        progress = Progress(step, steps_per_epoch=3, total_epochs=3)
        batch = [view[rank * share : (rank + 1) * share] for view in views(step, batch=8)]
        set_hyperparameters(optimizer, 0.3, 0.01)
        optimizer.zero_grad()
        loss = model(batch, progress)["loss"]
        loss.backward()
        method.after_backward(progress)
        optimizer.step()
        method.after_step(progress)
        losses.append(distributed.all_reduce_sum(loss.detach() / distributed.world_size()))
    states = {key: distributed.all_gather(value[None]) for key, value in method.state_dict().items()}
    return {"losses": torch.stack(losses), "states": states}


if __name__ == "__main__":
    main(sys.argv[1])
