"""Batches of views for training, with the same bits whatever the number of workers and wherever a run resumes.

The order is a pure function of (seed, epoch), every view's randomness one of (seed, epoch, position in that order).
A worker makes a whole batch at a time, straight into shared memory; all it needs to know comes with the request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.utils.data import Dataset

from pretrain import distributed
from pretrain.decode import CorruptImage, DecodedImage, UnclearImage, decode_reference, image_size
from pretrain.device_color import recolor_batch
from pretrain.errors import InputError, nearest
from pretrain.eval_data import center_crop, eval_batches, random_resized_crop
from pretrain.fast_views import decode_fast, render_fast
from pretrain.index import Source
from pretrain.loader import batch_loader, empty_images, normalize
from pretrain.views import UNIFORMS, Color, Draw, View, color_of, draw_views, place_crop, render, uniforms

PIPELINES = {"fast": (decode_fast, render_fast), "reference": (decode_reference, render)}
NO_COLOR = Color((), (1.0, 1.0, 1.0, 0.0), False, 0.0, False)
REPLACEMENT_TRIES = 32  # other samples tried for a corrupt one
# Streams of random numbers of one (seed, epoch); the epoch number fills the lower bits of the generator's key.
ORDER_STREAM, REPLACEMENT_STREAM = 1 << 62, 1 << 61

__all__ = ["Batch", "CorruptCounter", "TrainLoader", "batches_per_epoch", "center_crop", "epoch_order", "eval_batches",
           "normalize", "random_resized_crop", "to_device", "train_batches"]


@dataclass
class Batch:
    """One batch on the host.

    views: uint8 [B, 3, size, size] each, channels last in memory, one per `View`.
    indices: int64 [B], the samples really used.
    color: with DATA.COLOR_ON_DEVICE, per view the rows of `draw_views`: what is left to do; else None.
    corrupt: (name, reason) of every image that was replaced.
    """

    views: list[Tensor]
    indices: Tensor
    color: list[Tensor] | None = None
    corrupt: list[tuple[str, str]] = field(default_factory=list)

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; called by the loader's pinning thread."""
        return replace(self, views=[v.pin_memory() for v in self.views], indices=self.indices.pin_memory(),
                       color=self.color and [c.pin_memory() for c in self.color])


class CorruptCounter:
    """Counts the distinct images that could not be read and stops the run above `limit`, a fraction of all images."""

    def __init__(self, images: int, limit: float):
        self.images, self.limit = images, limit
        self.reasons: dict[str, str] = {}

    def update(self, batch: Batch) -> list[tuple[str, str]]:
        """Add a batch's corrupt images; returns those not seen before, for the log. InputError above the limit."""
        new = [(name, reason) for name, reason in dict(batch.corrupt).items() if name not in self.reasons]
        self.reasons.update(new)
        self._check()
        return new

    def gather(self) -> None:
        """At an epoch's end: pool the ranks' findings. Raises InputError above the limit, on every rank alike."""
        if distributed.world_size() > 1:
            found: list[dict[str, str] | None] = [None] * distributed.world_size()
            torch.distributed.all_gather_object(found, self.reasons)
            for reasons in found:
                self.reasons.update(reasons)
        self._check()

    def _check(self) -> None:
        if len(self.reasons) > self.limit * self.images:
            listed = "; ".join(f"{name} ({reason})" for name, reason in sorted(self.reasons.items()))
            raise InputError(f"{len(self.reasons)} of {self.images} images are corrupt, more than DATA.MAX_CORRUPT "
                             f"{self.limit:g} allows: {listed}; mend or remove them, or raise DATA.MAX_CORRUPT")


def batches_per_epoch(source: Source, cfg: CfgNode, world: int) -> int:
    """Batches of each process in an epoch, without the incomplete last one. Raises InputError if there is none."""
    number = len(source) // (cfg.TRAIN.BATCH_SIZE * world)
    if not number:
        raise InputError(f"{len(source)} images in {source.where} do not fill one batch of TRAIN.BATCH_SIZE "
                         f"{cfg.TRAIN.BATCH_SIZE} on {world} process(es): lower TRAIN.BATCH_SIZE")
    return number


def epoch_order(images: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch goes through the samples, int64 [images]."""
    bits = np.random.Philox(key=(seed & (2**64 - 1)) | (epoch | ORDER_STREAM) << 64)
    return np.random.Generator(bits).permutation(images)


@dataclass(frozen=True)
class Request:
    """What a worker is asked for: the samples at positions `first`, `first` + 1, ... of an epoch."""

    epoch: int
    first: int
    indices: np.ndarray


class TrainLoader:
    """Batches epoch by epoch; workers stay alive from one epoch to the next."""

    def __init__(self, source: Source, views: list[View], cfg: CfgNode, *, rank: int = 0, world: int = 1):
        self.source, self.rank, self.world = source, rank, world
        self.seed, self.batch_size = cfg.SEED, cfg.TRAIN.BATCH_SIZE
        self.batches = batches_per_epoch(source, cfg, world)
        self._requests: list[Request] = []
        dataset = TrainBatches(source, views, cfg)
        batch_bytes = cfg.TRAIN.BATCH_SIZE * sum(3 * view.size ** 2 for view in views)
        self._loader = batch_loader(dataset, self._requests, cfg.DATA.WORKERS, self.batches, batch_bytes,
                                    persistent=True)

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from number `first_batch` on."""
        order = epoch_order(len(self.source), self.seed, epoch)
        self._requests.clear()
        for number in range(first_batch, self.batches):
            # ranks take neighbouring slices: N processes see what one process with the N-fold batch would
            first = (number * self.world + self.rank) * self.batch_size
            self._requests.append(Request(epoch, first, order[first:first + self.batch_size]))
        for batch in self._loader:
            if isinstance(batch, InputError):  # raised here, it is one line; through the loader it would be a traceback
                raise batch
            yield batch


def train_batches(source: Source, views: list[View], cfg: CfgNode, *, epoch: int, first_batch: int = 0, rank: int = 0,
                  world: int = 1) -> Iterator[Batch]:
    """The batches of one epoch of one process (see `TrainLoader`, which keeps its workers over several epochs)."""
    yield from TrainLoader(source, views, cfg, rank=rank, world=world).epoch(epoch, first_batch)


Decode = Callable[[bytes, float], DecodedImage]
Render = Callable[[DecodedImage, View, Draw, np.ndarray], None]


def pipeline(name: str) -> tuple[Decode, Render]:
    """Decoder and renderer of DATA.PIPELINE. Raises InputError for an unknown name."""
    if name not in PIPELINES:
        raise InputError(f"unknown DATA.PIPELINE '{name}'{nearest(name, PIPELINES)}: use {' or '.join(PIPELINES)}")
    return PIPELINES[name]


class TrainBatches(Dataset):
    """`Request` -> `Batch`."""

    def __init__(self, source: Source, views: list[View], cfg: CfgNode):
        self.source, self.views, self.seed = source, views, cfg.SEED
        self.color_later = cfg.DATA.COLOR_ON_DEVICE
        self.decode, self.render = pipeline(cfg.DATA.PIPELINE)

    def __getitem__(self, request: Request) -> Batch | InputError:
        try:
            return self._make(request)
        except InputError as error:
            return error

    def _make(self, request: Request) -> Batch:
        count = len(request.indices)
        numbers = uniforms(self.seed, request.epoch, request.first, count, len(self.views) * UNIFORMS)
        numbers = numbers.reshape(count, len(self.views), UNIFORMS)
        out = [empty_images(count, view.size) for view in self.views]
        crops, colors = draw_views(self.views, numbers)
        places = [images.numpy() for images in out]
        used, corrupt = request.indices.copy(), []
        for i in range(count):
            used[i], image = self._decode(request, i, corrupt)
            height, width = image_size(image)
            rows = zip(self.views, places, crops[i].tolist(), colors[i].tolist(), strict=True)
            for view, place, crop, color in rows:
                todo = NO_COLOR if self.color_later else color_of(color)
                self.render(image, view, Draw(*place_crop(crop, height, width), crop[-1] > 0, todo), place[i])
        color = list(torch.from_numpy(colors).float().unbind(1)) if self.color_later else None
        return Batch([images.permute(0, 3, 1, 2) for images in out], torch.from_numpy(used), color, corrupt)

    def _decode(self, request: Request, i: int, corrupt: list[tuple[str, str]]) -> tuple[int, DecodedImage]:
        """The sample at place `i` of the request, or the replacement that its position alone decides."""
        for index in self._candidates(request, i):
            try:
                return index, self.decode(self.source.read(index), self.source.max_value)
            except UnclearImage as error:
                raise self.source.unclear(index, error) from None
            except (CorruptImage, OSError) as error:
                corrupt.append((self.source.name(index), str(error)))
        raise InputError(f"{REPLACEMENT_TRIES + 1} images in a row are corrupt in {self.source.where}: "
                         f"{'; '.join(f'{name} ({reason})' for name, reason in corrupt)}")

    def _candidates(self, request: Request, i: int) -> Iterator[int]:
        yield int(request.indices[i])
        numbers = uniforms(self.seed, request.epoch | REPLACEMENT_STREAM, request.first + i, 1, REPLACEMENT_TRIES)
        yield from (int(u * len(self.source)) for u in numbers[0])


def to_device(batch: Batch, cfg: CfgNode, device: torch.device) -> list[Tensor]:
    """The views as normalised float32 tensors [B, 3, size, size] on the device, colour work left for it done."""
    views = []
    for number, images in enumerate(batch.views):
        if batch.color is not None:
            images = recolor_batch(images.to(device, non_blocking=True), batch.color[number])
        views.append(normalize(images, cfg.DATA.MEAN, cfg.DATA.STD, device, channels_last=cfg.TRAIN.CHANNELS_LAST))
    return views
