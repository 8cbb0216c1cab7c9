"""The one training loop of the supervised benchmarks: epochs over labelled images, exact resume, best and last epoch.

The order of the images is a function of (seed, epoch), their crops one of (seed, epoch, image), and the ranks share
every global batch evenly. The last one of an epoch is smaller and weighs as much as the others, as published. A run
that is stopped anywhere continues to the same numbers.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.classification.features import prepare
from benchmarks.classification.labelled import Labelled
from benchmarks.classification.metrics import hits
from pretrain.batch_norm import sound_batch_norm
from pretrain.data.loading import center_crop, epoch_order, image_batches, random_resized_crop
from pretrain.neighbours import rank_classes
from pretrain.optim import LARS, cosine, parameter_groups, scaled_learning_rate
from sslight.core import compat, distributed
from sslight.core.checkpoint import check_archive
from sslight.core.devices import channels_last
from sslight.core.distributed import gather_rows, my_batches
from sslight.core.errors import InputError, Stopped
from sslight.core.files import write_atomically
from sslight.core.logs import Bar, MetricsLog, RunLog
from sslight.core.rundir import StopSignal


@dataclass
class Outcome:
    """Predictions of one run, int32 [images, r] ranked classes by head: after the last epoch, and after the best.

    `best` holds per head (epoch counted from 1, top-1 in percent, ranked classes); best by val, ties to the first.
    """

    last: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, tuple[int, float, Tensor]] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)


class Heads(nn.Module):
    """Heads on a backbone: images [N, 3, H, W] -> {head: logits [N, C]}.

    names: of the heads. frozen: names of the children that do not train.
    """

    names: Sequence[str]
    frozen: Sequence[str] = ()


@dataclass(frozen=True)
class FitJob:
    """What one run trains and on what.

    groups: per optimizer group its `module` and `lr_factor`. subset: indices into train.
    preprocess: how the backbone expects its images.
    """

    model: Heads
    groups: list[dict]
    train: Labelled
    subset: np.ndarray
    val: Labelled
    preprocess: dict
    seed: int
    folder: Path


def fit(cfg: CfgNode, job: FitJob, device: torch.device, stop: StopSignal, log: RunLog) -> Outcome:
    """Train `job.model` for SOLVER.TOTAL_EPOCHS, evaluating on val; continues what `job.folder` holds.

    Raises Stopped after saving when a signal asks for it.
    """
    with stop.set(immediate=False):
        return _fit(cfg, job, device, stop, log)


def _fit(cfg: CfgNode, job: FitJob, device: torch.device, stop: StopSignal, log: RunLog) -> Outcome:
    world = distributed.world_size()
    model = channels_last(job.model.to(device))
    runner = parallel(model, device)
    optimizer = build_optimizer(cfg, job.groups)
    state = FitState(folder=job.folder)
    state.load(model, optimizer)
    batch = global_batch(cfg, model, len(job.subset))
    steps = math.ceil(len(job.subset) / batch)
    total = cfg.SOLVER.TOTAL_EPOCHS
    metrics = MetricsLog(job.folder, state.epoch * steps + state.step, measured=state.step == 0)
    peak = scaled_learning_rate(cfg.SOLVER.BASE_LR, cfg.TRAIN.BATCH_SIZE * world)
    bar = Bar(total * steps, f"train (seed {job.seed})", "step", initial=state.epoch * steps + state.step)
    saved_at = time.monotonic()
    while state.epoch < total:
        order = fill_up(job.subset[epoch_order(len(job.subset), job.seed, state.epoch)], batch, least(model))
        mine = order[state.step * batch + distributed.rank() :: world]
        transform = random_resized_crop(cfg.DATA.SIZE, job.seed, state.epoch)
        model.train()
        loss = None
        for images, used in image_batches(
            job.train.source, mine, transform, batch_size=cfg.TRAIN.BATCH_SIZE, workers=cfg.DATA.WORKERS
        ):
            at = state.epoch + state.step / steps if cfg.SOLVER.PER_STEP else state.epoch
            rate = learning_rate(cfg, at, peak)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["lr_factor"]
            labels = torch.as_tensor(job.train.labels[used.numpy()], device=device)
            share = len(used) * world / min(batch, len(order) - state.step * batch)
            loss = one_step(cfg, runner, optimizer, prepare(images, job.preprocess, device), labels, device, share)
            state.step += 1
            bar.update()
            done = state.epoch * steps + state.step
            if done % cfg.TRAIN.LOG_PERIOD == 0:
                metrics.write(done - 1, loss=check_loss(loss, done - 1), lr=rate)
            stopping = stop.requested()
            if stopping or time.monotonic() - saved_at > cfg.TRAIN.SAVE_SECONDS:
                state.save(model, optimizer)
                saved_at = time.monotonic()
            if stopping:
                metrics.close()
                raise Stopped(
                    f"saved {state.path} in epoch {state.epoch + 1} of {total} (seed {job.seed}); start the "
                    "same command again to go on"
                )
        if loss is not None:
            check_loss(loss, (state.epoch + 1) * steps - 1)
        measuring = (state.epoch + 1) % cfg.TRAIN.EVAL_PERIOD == 0 or state.epoch + 1 == total
        if measuring:
            share_buffers(model)
            state.save(model, optimizer)
            with stop.set(immediate=True):  # may take minutes; the next start would come back to here
                ranked = predict(cfg, model, job.val, None, job.preprocess, device)
        state.epoch, state.step = state.epoch + 1, 0
        if measuring:
            scores = note(state.outcome, ranked, job.val, state.epoch)
            metrics.write(state.epoch * steps, True, epoch=state.epoch, **scores)
            log(
                f"seed {job.seed}, epoch {state.epoch}/{total}: "
                + ", ".join(f"{name} {value:.2f}%" for name, value in list(scores.items())[:4])
            )
        state.save(model, optimizer)
        saved_at = time.monotonic()
    bar.close()
    metrics.close()
    return state.outcome


def global_batch(cfg: CfgNode, model: nn.Module, images: int) -> int:
    """Images of a full step over all processes.

    Raises InputError if there are too few for one step: an image a process, or two where batch norm trains.
    """
    world, needed = distributed.world_size(), least(model)
    batch = cfg.TRAIN.BATCH_SIZE * world
    if min(batch, images) < needed * world:
        raise InputError(
            f"a global batch of {min(batch, images)} training image(s) over {world} process(es): each "
            f"needs at least {needed}{' (batch norm)' if needed > 1 else ''}; raise TRAIN.BATCH_SIZE, "
            "label more images or start fewer processes"
        )
    return batch


def least(model: nn.Module) -> int:
    """Images that a process needs for a step: two where batch norm trains, else one."""
    norm = compat.batch_norm_class()
    return 2 if any(isinstance(module, norm) and module.training for module in model.train().modules()) else 1


def fill_up(order: np.ndarray, batch: int, needed: int) -> np.ndarray:
    """An epoch's images, of whose last batch (of `batch`) every process has at least `needed`.

    Where that batch has too few of them, the epoch's first images come once more: the published program would stop.
    """
    last = len(order) % batch
    missing = max(needed * distributed.world_size() - last, 0) if last else 0
    return np.concatenate([order, order[:missing]])


def one_step(
    cfg: CfgNode,
    runner: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    device: torch.device,
    share: float = 1.0,
) -> Tensor:
    """One optimizer step on this rank's part of a global batch; returns the mean loss per head.

    Heads do not share parameters, so the sum of their losses trains each as if it were alone. A loss is the mean over
    the global batch's own images, however few: DDP averages over the ranks, and `share`, this rank's images by those of
    a rank on average, makes up for parts of unlike size. (The published program's sampler repeats images instead.)
    """
    with torch.autocast(device.type, torch.bfloat16, enabled=cfg.TRAIN.AMP == "bf16"), sound_batch_norm(device):
        logits = runner(images)
    losses = [F.cross_entropy(value.float(), labels) for value in logits.values()]
    optimizer.zero_grad(set_to_none=True)
    (share * torch.stack(losses).sum()).backward()
    optimizer.step()
    return torch.stack([loss.detach() for loss in losses]).mean()


def check_loss(loss: Tensor, step: int) -> float:
    """The loss as a number. Raises InputError if it is not finite."""
    value = float(loss)
    if not math.isfinite(value):
        raise InputError(f"the loss is {value} at step {step}: lower SOLVER.BASE_LR or set TRAIN.AMP none")
    return value


def learning_rate(cfg: CfgNode, epoch: float, peak: float) -> float:
    """Learning rate at `epoch` (a fraction where the schedule is followed per step)."""
    if cfg.SOLVER.SCHEDULE == "steps":
        return peak * cfg.SOLVER.GAMMA ** sum(epoch >= milestone for milestone in cfg.SOLVER.MILESTONES)
    return cosine(epoch, cfg.SOLVER.TOTAL_EPOCHS, peak, cfg.SOLVER.MIN_LR)


def build_optimizer(cfg: CfgNode, groups: list[dict]) -> torch.optim.Optimizer:
    """SGD or LARS over groups with `module` and `lr_factor`; LARS leaves 1-d parameters undecayed and unadapted."""
    solver, made = cfg.SOLVER, []
    for group in groups:
        if solver.OPTIMIZER == "LARS":
            parts = parameter_groups(group["module"])
            made += [
                {
                    "params": part["params"],
                    "adapt": part["adapt"],
                    "lr_factor": group["lr_factor"],
                    "weight_decay": solver.WEIGHT_DECAY * part["weight_decay_factor"],
                }
                for part in parts
            ]
        else:
            made.append(
                {
                    "params": [p for p in group["module"].parameters() if p.requires_grad],
                    "weight_decay": solver.WEIGHT_DECAY,
                    "lr_factor": group["lr_factor"],
                }
            )
    if solver.OPTIMIZER == "LARS":
        return LARS(made, momentum=solver.MOMENTUM)
    return torch.optim.SGD(made, lr=0.0, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, foreach=True)


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """The model under DDP where there are several processes. Rank 0's buffers hold for all ranks."""
    if distributed.world_size() == 1:
        return model
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def share_buffers(model: nn.Module) -> None:
    """Give every rank rank 0's norm statistics: torch has no synchronised batch norm on CPUs."""
    if distributed.world_size() > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)


@torch.no_grad()
def predict(
    cfg: CfgNode, model: Heads, split: Labelled, indices: np.ndarray | None, preprocess: dict, device: torch.device
) -> dict[str, Tensor]:
    """Ranked classes [images, r] of every head on centre crops of `indices` (None: all), shared over ranks."""
    indices = np.arange(len(split)) if indices is None else indices
    mine = indices[my_batches(len(indices), cfg.TRAIN.BATCH_SIZE)]
    was_training = model.training
    model.eval()
    ranked: dict[str, list[Tensor]] = {}
    bar = Bar(len(mine), "evaluate", "image")
    for images, _ in image_batches(
        split.source,
        mine,
        center_crop(cfg.DATA.RESIZE, cfg.DATA.SIZE),
        batch_size=cfg.TRAIN.BATCH_SIZE,
        workers=cfg.DATA.WORKERS,
    ):
        with torch.autocast(device.type, torch.bfloat16, enabled=cfg.TRAIN.AMP == "bf16"):
            logits = model(prepare(images, preprocess, device))
        for name, value in logits.items():
            ranked.setdefault(name, []).append(rank_classes(value.float()))
        bar.update(len(images))
    bar.close()
    model.train(was_training)
    none = torch.zeros(0, min(5, len(split.classes)), dtype=torch.long, device=device)
    return {name: gather_rows(torch.cat(ranked.get(name, [none]))).cpu().int() for name in model.names}


def note(outcome: Outcome, ranked: dict[str, Tensor], val: Labelled, epoch: int) -> dict[str, float]:
    """Enter an epoch's predictions; returns the top-1 of every head in percent."""
    scores = {name: 100 * float(hits(value.numpy(), val.labels, 1).mean()) for name, value in ranked.items()}
    outcome.last = ranked
    for name, score in scores.items():
        if name not in outcome.best or score > outcome.best[name][1]:
            outcome.best[name] = (epoch, score, ranked[name])
    outcome.curve.append({"epoch": epoch, **scores})
    return scores


@dataclass
class FitState:
    """Where a run stands: `step` steps into `epoch`, its results so far, and the file that says so."""

    folder: Path
    epoch: int = 0
    step: int = 0
    outcome: Outcome = field(default_factory=Outcome)

    @property
    def path(self) -> Path:
        return self.folder / "state.pth"

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write the state atomically. The buffers are rank 0's (see `parallel`)."""
        if distributed.is_main():
            content = {
                "epoch": self.epoch,
                "step": self.step,
                "model": trained_state(model),
                "optimizer": optimizer.state_dict(),
                "outcome": vars(self.outcome),
            }
            write_atomically(self.path, lambda temporary: torch.save(content, temporary))

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Continue from the file, if there is one. Raises InputError if it is not of this model."""
        if not self.path.exists():
            return
        check_archive(self.path)
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            missing = set(trained_state(model)) ^ set(content["model"])
            if missing:
                raise KeyError(", ".join(sorted(missing)[:3]))
            model.load_state_dict(content["model"], strict=False)  # exactly the trained part, compared above
            optimizer.load_state_dict(content["optimizer"])
            self.epoch, self.step = content["epoch"], content["step"]
            self.outcome = Outcome(**content["outcome"])
        except (RuntimeError, KeyError, TypeError, ValueError, EOFError, OSError) as error:
            raise InputError(
                f"{self.path} is not the state of this run ({' '.join(str(error).split())[:200]}): remove "
                f"{self.folder} to start it afresh"
            ) from None


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without what is frozen."""
    frozen = tuple(f"{name}." for name in getattr(model, "frozen", ()))
    return {key: value for key, value in model.state_dict().items() if not frozen or not key.startswith(frozen)}


@contextlib.contextmanager
def seeded(seed: int):
    """Random numbers of initialisation that depend on `seed` alone, and leave the caller's alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
