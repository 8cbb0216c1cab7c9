"""What training and evaluation share: workers, the memory that they fill, normalisation, a picture of a batch."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from fvcore.common.config import CfgNode
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torchvision.utils import make_grid

from pretrain.data.decode import CorruptImage, DecodedImage, UnclearImage, decode_reference, image_size
from pretrain.data.device_color import recolor_batch
from pretrain.data.fast_views import decode_fast, render_fast, resize_fast
from pretrain.data.sources import Source, open_source
from pretrain.data.views import (
    UNIFORMS,
    Color,
    Draw,
    View,
    color_of,
    draw,
    draw_views,
    place_crop,
    render,
    uniforms,
    view_set,
)
from sslight.core import compat, distributed
from sslight.core.config import to_dict
from sslight.core.errors import InputError, nearest
from sslight.core.files import write_atomically

PREFETCH = 2  # batches per worker
HELD = 2  # batches that the process itself holds while it takes the next one: the last one, and the one taken
SHARED = "/dev/shm"  # where Linux keeps shared memory


def batch_loader(
    dataset: Dataset, requests: Sequence, workers: int, batches: int, batch_bytes: int, persistent: bool = False
) -> DataLoader:
    """A loader whose items are whole batches: `dataset[request]` for each of `requests`, in order.

    At most `batches` of `batch_bytes` each. Raises InputError as `check_shared_memory` does.
    """
    check_shared_memory(workers, batch_bytes, most=batches)
    options: dict[str, Any] = {"prefetch_factor": PREFETCH, "persistent_workers": persistent} if workers else {}
    return DataLoader(
        dataset,
        sampler=requests,
        batch_size=None,
        num_workers=workers,
        worker_init_fn=start_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
        **options,
    )


def check_shared_memory(
    workers: int,
    item_bytes: int,
    *,
    held: int = HELD,
    most: int | None = None,
    processes: int | None = None,
    key: str = "DATA.WORKERS",
) -> None:
    """Raise InputError where what loader workers have under way does not fit into the shared memory.

    A worker that finds it full dies of a bus error. Containers have 64 MB by default.
    Items of `item_bytes` lie there, PREFETCH for each worker and `held` with the process, `most` at most; `processes`
    of this machine do the same (default: as the launcher says). `key` sets the number of workers.
    """

    def needed(workers: int) -> int:
        items = PREFETCH * workers + held
        return item_bytes * (items if most is None else min(items, most)) if workers else 0

    try:
        memory = os.statvfs(SHARED)
    except OSError:
        return
    processes = processes or int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    room = min(memory.f_blocks // processes, memory.f_bavail) * memory.f_frsize
    if needed(workers) <= room:
        return
    fitting = next(fewer for fewer in range(workers - 1, -1, -1) if needed(fewer) <= room)
    total = processes * needed(workers)
    raise InputError(
        f"{SHARED} has {room * processes / 1e6:.0f} MB of shared memory to spare, and {key} {workers} in "
        f"{processes} process(es) fills up to {total / 1e6:.0f} MB: start the container with more (docker "
        f"--shm-size={-(-2 * total // 2**30)}g), or set {key} {fitting}"
    )


def start_worker(_: int = 0) -> None:
    """Make this process a loader worker: one thread, since the other workers need the other cores."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def empty_images(count: int, size: int) -> Tensor:
    """Uninitialised uint8 [count, size, size, 3]; in a worker in shared memory, which saves the copy on its way out."""
    shape = (count, size, size, 3)
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = compat.shared_storage(count * size * size * 3)
    return torch.tensor([], dtype=torch.uint8).set_(storage, 0, shape, ())


def normalize(
    images: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    *,
    channels_last: bool = False,
) -> Tensor:
    """uint8 [N, 3, H, W] -> (images / 255 - mean) / std, float32 on the device."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    scale, shift = _constants(tuple(mean), tuple(std), torch.device(device))
    images = images.to(device, non_blocking=True)
    return images.to(torch.float32, memory_format=layout).mul_(scale).sub_(shift)


@functools.cache
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Factor and offset of the normalisation, [1, 3, 1, 1], kept on the device."""
    centre, spread = (torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1) for values in (mean, std))
    return (1 / (255 * spread)).to(device), (centre / spread).to(device)


LONGEST = 32  # times the shorter side: of a longer image the rest goes first, or resizing it could fill the memory


class Transform(Protocol):
    """Writes an RGB image [height, width, 3], of this index in its source, into `out` [size, size, 3]."""

    @property
    def size(self) -> int: ...

    def __call__(self, image: np.ndarray, index: int, out: np.ndarray) -> None: ...


@dataclass(frozen=True)
class CenterCrop:
    """torchvision's Resize(resize, bicubic) and CenterCrop(size)."""

    resize: int
    size: int

    def __call__(self, image: np.ndarray, index: int, out: np.ndarray) -> None:
        height, width = image.shape[:2]
        short = min(height, width)
        if max(height, width) > LONGEST * short:
            top, left = (max(0, side - LONGEST * short) // 2 for side in (height, width))
            image = image[top : top + LONGEST * short, left : left + LONGEST * short]
            height, width = image.shape[:2]
        new = np.empty((self.resize * height // short, self.resize * width // short, 3), dtype=np.uint8)
        resize_fast(np.ascontiguousarray(image), new)
        top, left = (round((side - self.size) / 2) for side in new.shape[:2])
        out[:] = new[top : top + self.size, left : left + self.size]


@dataclass(frozen=True)
class RandomResizedCrop:
    """torchvision's RandomResizedCrop(size, scale, bicubic) and flip, a pure function of (seed, epoch, index)."""

    size: int
    seed: int
    epoch: int
    scale: tuple[float, float] = (0.08, 1.0)

    def __call__(self, image: np.ndarray, index: int, out: np.ndarray) -> None:
        view = View(self.size, self.scale, True, jitter_prob=0, grayscale_prob=0, blur_prob=0)
        numbers = uniforms(self.seed, self.epoch, index, 1, UNIFORMS)
        render_fast(image, view, draw(view, numbers[0], *image.shape[:2]), out)


def center_crop(resize: int, size: int) -> CenterCrop:
    """The evaluation transform: shorter side to `resize` pixels, central `size` x `size`; `size` <= `resize`."""
    if not 0 < size <= resize:
        raise InputError(f"a central crop of {size} pixels does not fit into {resize}: size must be at most resize")
    return CenterCrop(resize, size)


def random_resized_crop(size: int, seed: int, epoch: int) -> RandomResizedCrop:
    """The training transform of linear and semi-supervised evaluation, drawn again in every epoch."""
    return RandomResizedCrop(size, seed, epoch)


def image_batches(
    source: Source,
    indices: Sequence[int] | np.ndarray,
    transform: Transform,
    *,
    batch_size: int,
    workers: int,
    corrupt: list[tuple[str, str]] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of uint8 images [B, 3, size, size] and their indices [B], in the order of `indices`, the last batch short.

    A corrupt image is left out of its batch and, if `corrupt` is given, appended to it as (name, reason); otherwise
    it is an InputError. A batch that would be empty is not yielded.
    """
    indices = np.asarray(indices, dtype=np.int64)
    requests = [indices[k : k + batch_size] for k in range(0, len(indices), batch_size)]
    batch_bytes = max(map(len, requests), default=0) * 3 * transform.size**2
    for batch in batch_loader(_ImageBatches(source, transform), requests, workers, len(requests), batch_bytes):
        if isinstance(batch, InputError):  # raised here, it is one line; through the loader it would be a traceback
            raise batch
        images, used, unreadable = batch
        if unreadable:
            if corrupt is None:
                name, reason = unreadable[0]
                raise InputError(f"corrupt image in {source.where}: {name} ({reason}); repair or remove it")
            corrupt.extend(unreadable)
        if len(used):
            yield images, used


class _ImageBatches(Dataset):
    def __init__(self, source: Source, transform: Transform):
        self.source, self.transform = source, transform

    def __getitem__(self, indices: np.ndarray) -> tuple[Tensor, Tensor, list[tuple[str, str]]] | InputError:
        out = empty_images(len(indices), self.transform.size)
        used: list[int] = []
        corrupt: list[tuple[str, str]] = []
        for index in indices.tolist():
            try:
                image = decode_fast(self.source.read(index), self.source.max_value)
            except UnclearImage as error:
                return self.source.unclear(index, error)
            except (CorruptImage, OSError) as error:
                corrupt.append((self.source.name(index), str(error)))
                continue
            self.transform(image, index, out[len(used)].numpy())
            used.append(index)
        return out[: len(used)].permute(0, 3, 1, 2), torch.tensor(used, dtype=torch.int64), corrupt


PIPELINES: dict[str, tuple[Decode, Render]] = {
    "fast": (decode_fast, render_fast),
    "reference": (decode_reference, render),
}
NO_COLOR = Color((), (1.0, 1.0, 1.0, 0.0), False, 0.0, False)
REPLACEMENT_TRIES = 32  # other samples tried for a corrupt one
# Streams of random numbers of one (seed, epoch); the epoch number fills the lower bits of the generator's key.
ORDER_STREAM, REPLACEMENT_STREAM = 1 << 62, 1 << 61


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
        return replace(
            self,
            views=[v.pin_memory() for v in self.views],
            indices=self.indices.pin_memory(),
            color=self.color and [c.pin_memory() for c in self.color],
        )


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
        """At an epoch's end: pool the ranks' corrupt images. Raises InputError above the limit, on every rank alike."""
        if distributed.world_size() > 1:
            gathered: list[dict[str, str] | None] = [None] * distributed.world_size()
            torch.distributed.all_gather_object(gathered, self.reasons)
            for reasons in gathered:
                self.reasons.update(reasons or {})
        self._check()

    def _check(self) -> None:
        if len(self.reasons) > self.limit * self.images:
            listed = "; ".join(f"{name} ({reason})" for name, reason in sorted(self.reasons.items()))
            raise InputError(
                f"{len(self.reasons)} of {self.images} images are corrupt, more than DATA.MAX_CORRUPT "
                f"{self.limit:g} allows: {listed}; repair or remove them, or raise DATA.MAX_CORRUPT"
            )


def batches_per_epoch(source: Source, cfg: CfgNode, world: int) -> int:
    """Batches of each process in an epoch, without the incomplete last one. Raises InputError if there is none."""
    number = len(source) // (cfg.TRAIN.BATCH_SIZE * world)
    if not number:
        raise InputError(
            f"{len(source)} images in {source.where} do not fill one batch of TRAIN.BATCH_SIZE "
            f"{cfg.TRAIN.BATCH_SIZE} on {world} process(es): lower TRAIN.BATCH_SIZE"
        )
    return number


def epoch_order(images: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch goes through the samples, int64 [images]."""
    bits = np.random.Philox(key=(seed & (2**64 - 1)) | (epoch | ORDER_STREAM) << 64)
    return np.random.Generator(bits).permutation(images)


@dataclass(frozen=True)
class BatchRequest:
    """What a worker loads: the samples at positions `first`, `first` + 1, ... of an epoch."""

    epoch: int
    first: int
    indices: np.ndarray


class TrainLoader:
    """Batches epoch by epoch; workers stay alive from one epoch to the next."""

    def __init__(self, source: Source, views: list[View], cfg: CfgNode, *, rank: int = 0, world: int = 1):
        self.source, self.rank, self.world = source, rank, world
        self.seed, self.batch_size = cfg.SEED, cfg.TRAIN.BATCH_SIZE
        self.batches = batches_per_epoch(source, cfg, world)
        self._requests: list[BatchRequest] = []
        dataset = TrainBatches(source, views, cfg)
        batch_bytes = cfg.TRAIN.BATCH_SIZE * sum(3 * view.size**2 for view in views)
        self._loader = batch_loader(
            dataset, self._requests, cfg.DATA.WORKERS, self.batches, batch_bytes, persistent=True
        )

    def epoch(self, epoch: int, first_batch: int = 0) -> Generator[Batch, None, None]:
        """The batches of one epoch, from number `first_batch` on."""
        order = epoch_order(len(self.source), self.seed, epoch)
        self._requests.clear()
        for number in range(first_batch, self.batches):
            # ranks take neighbouring slices: N processes see what one process with the N-fold batch would
            first = (number * self.world + self.rank) * self.batch_size
            self._requests.append(BatchRequest(epoch, first, order[first : first + self.batch_size]))
        for batch in self._loader:
            if isinstance(batch, InputError):  # raised here, it is one line; through the loader it would be a traceback
                raise batch
            yield batch


Decode = Callable[[bytes, float], Any]  # gives the DecodedImage that its Render takes
Render = Callable[[Any, View, Draw, np.ndarray], None]


def pipeline(name: str) -> tuple[Decode, Render]:
    """Decoder and renderer of DATA.PIPELINE. Raises InputError for an unknown name."""
    if name not in PIPELINES:
        raise InputError(f"unknown DATA.PIPELINE '{name}'{nearest(name, PIPELINES)}: use {' or '.join(PIPELINES)}")
    return PIPELINES[name]


class TrainBatches(Dataset):
    """`BatchRequest` -> `Batch`."""

    def __init__(self, source: Source, views: list[View], cfg: CfgNode):
        self.source, self.views, self.seed = source, views, cfg.SEED
        self.color_later = cfg.DATA.COLOR_ON_DEVICE
        self.decode, self.render = pipeline(cfg.DATA.PIPELINE)

    def __getitem__(self, request: BatchRequest) -> Batch | InputError:
        try:
            return self._make(request)
        except InputError as error:
            return error

    def _make(self, request: BatchRequest) -> Batch:
        count = len(request.indices)
        numbers = uniforms(self.seed, request.epoch, request.first, count, len(self.views) * UNIFORMS)
        numbers = numbers.reshape(count, len(self.views), UNIFORMS)
        out = [empty_images(count, view.size) for view in self.views]
        crops, colors = draw_views(self.views, numbers)
        places = [images.numpy() for images in out]
        used = request.indices.copy()
        corrupt: list[tuple[str, str]] = []
        for i in range(count):
            used[i], image = self._decode(request, i, corrupt)
            height, width = image_size(image)
            rows = zip(self.views, places, crops[i].tolist(), colors[i].tolist(), strict=True)
            for view, place, crop, color in rows:
                todo = NO_COLOR if self.color_later else color_of(color)
                self.render(image, view, Draw(*place_crop(crop, height, width), crop[-1] > 0, todo), place[i])
        color = list(torch.from_numpy(colors).float().unbind(1)) if self.color_later else None
        return Batch([images.permute(0, 3, 1, 2) for images in out], torch.from_numpy(used), color, corrupt)

    def _decode(self, request: BatchRequest, i: int, corrupt: list[tuple[str, str]]) -> tuple[int, DecodedImage]:
        """The sample at place `i` of the request, or the replacement that its position alone decides."""
        for index in self._candidates(request, i):
            try:
                return index, self.decode(self.source.read(index), self.source.max_value)
            except UnclearImage as error:
                raise self.source.unclear(index, error) from None
            except (CorruptImage, OSError) as error:
                corrupt.append((self.source.name(index), str(error)))
        raise InputError(
            f"{REPLACEMENT_TRIES + 1} images in a row are corrupt in {self.source.where}: "
            f"{'; '.join(f'{name} ({reason})' for name, reason in corrupt)}"
        )

    def _candidates(self, request: BatchRequest, i: int) -> Iterator[int]:
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


def views_picture(views: list[Tensor], cfg: CfgNode) -> Tensor:
    """A uint8 [3, H, W] grid of normalised views: a row per image, a column per view, smaller views padded."""
    size = max(view.shape[-1] for view in views)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (cfg.DATA.MEAN, cfg.DATA.STD))
    canvas = torch.zeros(len(views[0]), len(views), 3, size, size)
    for column, view in enumerate(views):
        canvas[:, column, :, : view.shape[-2], : view.shape[-1]] = view.cpu().float() * std + mean
    grid = make_grid(canvas.flatten(0, 1), nrow=len(views), padding=2, pad_value=1.0)
    return (grid.clamp(0, 1) * 255).round().byte()


def first_views(cfg: CfgNode, source: Source, images: int = 8) -> Tensor:
    """The picture of the first images of epoch 0."""
    small = CfgNode(to_dict(cfg))
    small.merge_from_list(["TRAIN.BATCH_SIZE", min(images, len(source)), "DATA.WORKERS", 0])
    with contextlib.closing(TrainLoader(source, view_set(small), small).epoch(0)) as batches:
        return views_picture(to_device(next(batches), small, torch.device("cpu")), small)


def save_picture(picture: Tensor, path: str | Path) -> None:
    """Write a uint8 [3, H, W] picture as PNG."""
    image = Image.fromarray(np.ascontiguousarray(picture.permute(1, 2, 0).numpy()))
    write_atomically(path, lambda temporary: image.save(temporary, format="PNG"))


def write_views(cfg: CfgNode, path: str) -> None:
    """Write the picture of the first batch's views to `path` (.png), without training."""
    if Path(path).suffix.lower() != ".png":
        raise InputError(f"--show-views writes a PNG: name a file that ends in .png, not {path}")
    source = open_source(cfg.DATA.PATH_TO_DATA_DIR, "train", labels=False, max_value=cfg.DATA.MAX_VALUE)
    save_picture(first_views(cfg, source), path)
    print(f"one row per image, one column per view: {path}")
