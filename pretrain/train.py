"""Pre-training, top to bottom: configuration -> objects -> steps -> `backbone.safetensors`."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pretrain import settings as command_line
from pretrain.batch_norm import sound_batch_norm
from pretrain.data.loading import (
    Batch,
    CorruptCounter,
    TrainLoader,
    batches_per_epoch,
    first_views,
    save_picture,
    to_device,
    write_views,
)
from pretrain.data.sources import Source, open_source
from pretrain.data.views import view_set
from pretrain.methods import METHODS, Progress, build_method
from pretrain.neighbours import knn_top1
from pretrain.optim import build_optimizer, global_batch, hyperparameters, peak_learning_rate, set_hyperparameters
from pretrain.original import translate
from pretrain.settings import DEFAULTS, LENGTHS, MOST, POSITIVE
from pretrain.start import AT_RANDOM, Start, begin
from pretrain.state import Objective, State, export_backbone, last_checkpoint, resume, save
from sslight.core import distributed
from sslight.core.config import check_numbers, configure, dump, read_given
from sslight.core.devices import channels_last
from sslight.core.errors import InputError, Stopped
from sslight.core.logs import Bar, Meter, MetricsLog, RunLog
from sslight.core.rundir import StopSignal, open_run

CONSENT = "TRAIN.ALLOW_CHANGES"
# Keys that may change between the starts of one run: where things lie, how often it reports, how fast it goes.
# Batch size, processes and accumulation may trade places as long as their product, the global batch, stays.
FREE_KEYS = (
    "OUTPUT_DIR",
    "DEVICE",
    "MODEL.INIT_WEIGHTS",  # MODEL.INIT_SHA256 says what it holds
    "DATA.PATH_TO_DATA_DIR",
    "DATA.WORKERS",
    "DATA.MAX_CORRUPT",
    "KNN.",
    "TRAIN.COMPILE",
    "TRAIN.AUTO_RESUME",
    "TRAIN.CHECKPOINT_FILE_PATH",
    "TRAIN.CHECKPOINT_PERIOD",
    "TRAIN.SAVE_SECONDS",
    "TRAIN.LOG_PERIOD",
    "TRAIN.BATCH_SIZE",
    "TRAIN.ACCUMULATE",
    CONSENT,
)

COLLAPSED = 0.01  # std of unit-length outputs times sqrt(width): 1 spread over the sphere, 0 constant


def main(argv: Sequence[str] | None = None) -> int:
    args = command_line.pretrain().parse_intermixed_args(argv)
    given = read_given(args.cfg, args.overrides, translate)
    cfg = configure(DEFAULTS, given)
    if args.show_views:
        write_views(cfg, args.show_views)
        return 0
    device = distributed.start(cfg.DEVICE)
    try:
        cfg, start = begin(cfg, {key for key, *_ in given})
        if args.dry_run:
            dry_run(cfg, device, start)
        else:
            train(cfg, device, start)
        distributed.barrier()  # a rank that leaves early can strand the others in their last collective
    finally:
        distributed.stop()
    return 0


def build(cfg: CfgNode, device: torch.device, start: Start = AT_RANDOM) -> tuple[State, Source, Source | None, int]:
    """(state, train source, validation source or None, optimizer steps per epoch), after every check of the input."""
    check(cfg, device)
    where, max_value = cfg.DATA.PATH_TO_DATA_DIR, cfg.DATA.MAX_VALUE
    source = open_source(where, "train", labels=needs_train_labels(cfg), max_value=max_value)
    try:
        val = open_source(where, "val", max_value=max_value) if cfg.KNN.PERIOD else None
    except InputError as error:
        raise InputError(f"{error}; or set KNN.PERIOD 0 to train without k-NN") from None
    if val is not None and cfg.KNN.MODE == "train" and val.classes != source.classes:
        raise InputError(
            f"{val.where} and {source.where} hold different classes: KNN.MODE train needs the same ones, loo does not"
        )
    if val is not None and cfg.KNN.MODE == "loo" and len(val) < 2:
        raise InputError(f"{val.where} holds a single image, which has no neighbours: add more, or set KNN.PERIOD 0")
    world = distributed.world_size()
    steps_per_epoch = batches_per_epoch(source, cfg, world) // cfg.TRAIN.ACCUMULATE
    if steps_per_epoch == 0:
        raise InputError(
            f"{len(source)} images in {cfg.DATA.PATH_TO_DATA_DIR} do not fill one global batch of "
            f"{global_batch(cfg)}: lower TRAIN.BATCH_SIZE"
        )
    torch.manual_seed(cfg.SEED)  # the same initial weights on every rank
    method = build_method(cfg)
    if start.state:
        method.start_from(start.state)
    classes = len(source.classes) if cfg.TRAIN.JOINT_LINEAR_PROBE else 0
    objective = Objective(method, classes).to(device)
    if cfg.TRAIN.CHANNELS_LAST:
        channels_last(objective)
    objective = distributed.convert_sync_batchnorm(objective)
    optimizer = build_optimizer(cfg, objective, method.constant_rate())
    scaler = torch.amp.GradScaler(device.type, enabled=cfg.TRAIN.AMP == "fp16")
    torch.manual_seed(cfg.SEED + distributed.rank())
    return State(objective, optimizer, scaler, start=start.about), source, val, steps_per_epoch


def check(cfg: CfgNode, device: torch.device) -> None:
    """Raise InputError for values that cannot work."""
    if not cfg.DATA.PATH_TO_DATA_DIR:
        raise InputError(
            "DATA.PATH_TO_DATA_DIR is not set: add DATA.PATH_TO_DATA_DIR DIR, a directory with train/ "
            "(and val/ for k-NN)"
        )
    if cfg.TRAIN.AMP not in ("none", "bf16", "fp16"):
        raise InputError(f"TRAIN.AMP '{cfg.TRAIN.AMP}': use none, bf16 or fp16")
    if cfg.TRAIN.AMP == "fp16" and device.type != "cuda":
        raise InputError("TRAIN.AMP fp16 needs a GPU: use bf16 or none")
    if cfg.KNN.MODE not in ("loo", "train"):
        raise InputError(f"KNN.MODE '{cfg.KNN.MODE}': use loo (val against val) or train (val against train)")
    check_numbers(cfg, POSITIVE, MOST, LENGTHS)
    if not 0 <= cfg.SOLVER.WARMUP_EPOCHS <= cfg.SOLVER.TOTAL_EPOCHS:
        raise InputError(
            f"SOLVER.WARMUP_EPOCHS {cfg.SOLVER.WARMUP_EPOCHS} must lie between 0 and SOLVER.TOTAL_EPOCHS "
            f"{cfg.SOLVER.TOTAL_EPOCHS}"
        )


def needs_train_labels(cfg: CfgNode) -> bool:
    return cfg.TRAIN.JOINT_LINEAR_PROBE or bool(cfg.KNN.PERIOD and cfg.KNN.MODE == "train")


def train(cfg: CfgNode, device: torch.device, start: Start = AT_RANDOM) -> None:
    """Run, or go on with, the whole recipe. Raises Stopped after saving when a signal asks for it."""
    state, source, val, steps_per_epoch = build(cfg, device, start)
    knn_bank = source if cfg.KNN.MODE == "train" else None
    views, corrupt = view_set(cfg), CorruptCounter(len(source), cfg.DATA.MAX_CORRUPT)
    loader = TrainLoader(source, views, cfg, rank=distributed.rank(), world=distributed.world_size())
    free = (*FREE_KEYS, *(f"{name.upper()}." for name in METHODS if name != cfg.METHOD))  # other methods' settings
    with open_run(cfg, free, CONSENT) as out_dir, StopSignal() as stop:
        log = RunLog(out_dir)
        resume(cfg, state, out_dir, log, free, CONSENT)
        for line in start.lines if state.step == 0 else ():
            log(line)
        for split in (source, *([val] if val else [])):
            if split.note:
                log(split.note)
        metrics = MetricsLog(out_dir, state.step, measured=not state.epoch_open)
        if state.step == 0 and distributed.is_main():
            picture = first_views(cfg, source)
            metrics.image("views", picture, 0)
            save_picture(picture, out_dir / "views.png")
        method = state.objective.method
        model = parallel(state.objective, device)
        if cfg.TRAIN.COMPILE:
            for prefix in method.networks.values():
                method.get_submodule(prefix.rstrip(".")).compile()
        total = cfg.SOLVER.TOTAL_EPOCHS * steps_per_epoch
        log(
            f"{cfg.METHOD} on {method.backbone.arch}: {len(source)} images ({source.kind}), {len(views)} views, "
            f"global batch {global_batch(cfg)}, steps {state.step} to {total}, {distributed.world_size()} process(es) "
            f"on {device.type}"
        )
        bar = Bar(total, "pretrain", "step", initial=state.step, line_every=cfg.TRAIN.LOG_PERIOD)
        saved_at = time.monotonic()
        if state.epoch_open:
            end_epoch(cfg, state, val, knn_bank, out_dir, metrics, steps_per_epoch, log, stop)
        while state.step < total:
            epoch, in_epoch = divmod(state.step, steps_per_epoch)
            meter, figures = Meter(), {"loss": 0.0}
            batches = read(loader.epoch(epoch, in_epoch * cfg.TRAIN.ACCUMULATE), corrupt, meter, log)
            with contextlib.closing(batches):
                for _ in range(in_epoch, steps_per_epoch):
                    statistics = one_step(cfg, state, model, batches, source, steps_per_epoch, device)
                    state.step += 1
                    state.epoch_open = state.step % steps_per_epoch == 0
                    stopping = stop.requested()
                    save_now = distributed.any_rank(time.monotonic() - saved_at > cfg.TRAIN.SAVE_SECONDS)
                    logging = state.step % cfg.TRAIN.LOG_PERIOD == 0 or state.epoch_open
                    if device.type == "cpu" or logging or save_now or stopping:  # reading a figure makes a GPU wait
                        figures = {key: float(value) for key, value in statistics.items()}
                        check_finite(figures, state.step - 1, last_checkpoint(out_dir))
                    bar.update(1, loss=figures["loss"], images=meter.rate(), wait=meter.wait_share())
                    if logging:
                        metrics.write(
                            state.step - 1,
                            **figures,
                            **hyperparameters(cfg, state.step - 1, steps_per_epoch),
                            images_per_second=meter.rate(),
                            data_wait=meter.wait_share(),
                        )
                    if stopping or (save_now and not state.epoch_open):
                        save(cfg, state, out_dir, steps_per_epoch)
                        saved_at = time.monotonic()
                    if stopping:
                        raise Stopped(
                            f"saved {last_checkpoint(out_dir)} at step {state.step} of {total}; "
                            "start the same command again to go on"
                        )
            corrupt.gather()
            log(
                f"epoch {epoch + 1}/{cfg.SOLVER.TOTAL_EPOCHS}: {describe(figures)}, {meter.rate():.0f} images/s, "
                f"waited {meter.wait_share():.0%} for data"
            )
            if figures["feature_std"] < COLLAPSED:
                log(
                    f"warning: the outputs have nearly collapsed (feature_std {figures['feature_std']:.2g}; it is 1 "
                    "over the whole sphere): lower SOLVER.BASE_LR, or check the views and the temperatures"
                )
            end_epoch(cfg, state, val, knn_bank, out_dir, metrics, steps_per_epoch, log, stop)
            saved_at = time.monotonic()
        bar.close()
        metrics.close()
        if distributed.is_main():
            log(export_backbone(out_dir))


def end_epoch(
    cfg: CfgNode,
    state: State,
    val: Source | None,
    knn_bank: Source | None,
    out_dir: Path,
    metrics: MetricsLog,
    steps_per_epoch: int,
    log: RunLog,
    stop: StopSignal,
) -> None:
    """Measure k-NN accuracy and save. Also the first thing after a stop between an epoch's last step and this."""
    epoch = state.step // steps_per_epoch
    final = epoch == cfg.SOLVER.TOTAL_EPOCHS
    if val is not None and (epoch % cfg.KNN.PERIOD == 0 or final):
        save(cfg, state, out_dir, steps_per_epoch)
        with stop.set(immediate=True):  # may take minutes
            knn = knn_top1(
                state.objective.method.backbone, val, knn_bank, cfg, next(state.objective.parameters()).device
            )
        metrics.write(state.step, True, epoch=epoch, knn_top1=knn)
        log(f"epoch {epoch}/{cfg.SOLVER.TOTAL_EPOCHS}: k-NN top-1 {knn:.2%}")
    state.epoch_open = False
    save(cfg, state, out_dir, steps_per_epoch, keep=final or epoch % cfg.TRAIN.CHECKPOINT_PERIOD == 0)


def read(batches: Iterator[Batch], corrupt: CorruptCounter, meter: Meter, log: RunLog) -> Generator[Batch, None, None]:
    """The loader's batches, with the time waited for them metered and the images that could not be read named."""
    while True:
        with meter.waiting():
            batch = next(batches, None)
        if batch is None:
            return
        for name, reason in corrupt.update(batch):
            log(f"unreadable image replaced by another: {name} ({reason})")
        meter.images += len(batch.indices) * distributed.world_size()
        yield batch


def one_step(
    cfg: CfgNode,
    state: State,
    model: nn.Module,
    batches: Iterator[Batch],
    source: Source,
    steps_per_epoch: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """One optimizer step: ACCUMULATE forwards and backwards, then the update. Returns the logged statistics."""
    method, accumulate = state.objective.method, cfg.TRAIN.ACCUMULATE
    values = hyperparameters(cfg, state.step, steps_per_epoch)
    set_hyperparameters(state.optimizer, **values, constant_lr=peak_learning_rate(cfg))
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(cfg.TRAIN.AMP)
    sums: dict[str, Tensor] = {}
    for micro in range(accumulate):
        progress = Progress(state.step, steps_per_epoch, cfg.SOLVER.TOTAL_EPOCHS, micro)
        batch = next(batches)
        views = to_device(batch, cfg, device)
        labels = None
        if state.objective.classifier is not None:
            labels = torch.as_tensor(source.labels[batch.indices.numpy()], device=device)
        last = micro == accumulate - 1
        with contextlib.nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync():
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None), sound_batch_norm(device):
                result = model(views, labels, progress)
            state.scaler.scale(result["loss"] / accumulate).backward()
        for key, value in result.items():
            if value.ndim == 0:
                sums[key] = sums.get(key, 0) + value.detach() / accumulate
    method.after_backward(progress)
    if cfg.SOLVER.CLIP_GRAD:
        state.scaler.unscale_(state.optimizer)
        for parameter in method.parameters():  # each by itself, as published
            nn.utils.clip_grad_norm_(parameter, cfg.SOLVER.CLIP_GRAD)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    method.after_step(progress)
    return sums


def parallel(objective: Objective, device: torch.device) -> nn.Module:
    """The objective under DDP where there are several processes."""
    if distributed.world_size() == 1:
        return objective
    # Buffers stay each rank's own: norms follow SyncBN where it exists, centres and queues are equal by construction.
    return DistributedDataParallel(
        objective, device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=False
    )


def dry_run(cfg: CfgNode, device: torch.device, start: Start = AT_RANDOM) -> None:
    """Build everything, take one batch, print the resolved configuration."""
    state, source, _, steps_per_epoch = build(cfg, device, start)
    with contextlib.closing(TrainLoader(source, view_set(cfg), cfg).epoch(0)) as batches:
        views = to_device(next(batches), cfg, device)
    if distributed.is_main():
        print(dump(cfg))
        for line in start.lines:
            print(f"# {line}")
        parameters = sum(parameter.numel() for parameter in state.objective.parameters())
        print(
            f"# {len(source)} images ({source.kind}), {steps_per_epoch} steps an epoch, views "
            f"{[tuple(view.shape) for view in views]}, {parameters:,} parameters"
        )


def check_finite(figures: dict[str, float], step: int, last: Path) -> None:
    """Raise InputError, on every rank, if any rank's loss is not a finite number."""
    if distributed.any_rank(not math.isfinite(figures["loss"])):
        good = last if last.exists() else "none yet"
        raise InputError(
            f"the loss is {figures['loss']} at step {step} ({describe(figures)}); the last good "
            f"checkpoint is {good}: lower SOLVER.BASE_LR, lengthen the warm-up, clip gradients "
            "(SOLVER.CLIP_GRAD) or train without AMP"
        )


def describe(figures: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:.4g}" for key, value in figures.items())


if __name__ == "__main__":
    from sslight.core.processes import run_command

    run_command(main)
