"""Images for evaluation: deterministic resizing and cropping, and the plain training crop of linear probes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pretrain.decode import CorruptImage, UnclearImage
from pretrain.errors import InputError
from pretrain.fast_views import decode_fast, render_fast, resize_fast
from pretrain.index import Source
from pretrain.loader import batch_loader, empty_images
from pretrain.views import UNIFORMS, View, draw, uniforms

LONGEST = 32  # times the shorter side: of a longer image the rest goes first, or resizing it could fill the memory

Transform = Callable[[np.ndarray, int, np.ndarray], None]  # (RGB image, its index, where to write the result)


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
            image = image[top:top + LONGEST * short, left:left + LONGEST * short]
            height, width = image.shape[:2]
        new = np.empty((self.resize * height // short, self.resize * width // short, 3), dtype=np.uint8)
        resize_fast(np.ascontiguousarray(image), new)
        top, left = (round((side - self.size) / 2) for side in new.shape[:2])
        out[:] = new[top:top + self.size, left:left + self.size]


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
    """The training transform of linear and semi-supervised evaluation, anew for every epoch."""
    return RandomResizedCrop(size, seed, epoch)


def eval_batches(source: Source, indices: Sequence[int] | np.ndarray, transform: Transform, *, batch_size: int,
                 workers: int, corrupt: list[tuple[str, str]] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of uint8 images [B, 3, size, size] and their indices [B], in the order of `indices`, the last batch short.

    A corrupt image is left out of its batch and, if `corrupt` is given, appended to it as (name, reason); otherwise
    it is an InputError. A batch that would be empty is not yielded.
    """
    indices = np.asarray(indices, dtype=np.int64)
    requests = [indices[k:k + batch_size] for k in range(0, len(indices), batch_size)]
    batch_bytes = max(map(len, requests), default=0) * 3 * transform.size ** 2
    for batch in batch_loader(_EvalBatches(source, transform), requests, workers, len(requests), batch_bytes):
        if isinstance(batch, InputError):  # raised here, it is one line; through the loader it would be a traceback
            raise batch
        images, used, found = batch
        if found and corrupt is None:
            name, reason = found[0]
            raise InputError(f"corrupt image in {source.where}: {name} ({reason}); mend or remove it")
        if found:
            corrupt.extend(found)
        if len(used):
            yield images, used


class _EvalBatches(Dataset):
    def __init__(self, source: Source, transform: Transform):
        self.source, self.transform = source, transform

    def __getitem__(self, indices: np.ndarray) -> tuple[Tensor, Tensor, list[tuple[str, str]]] | InputError:
        out, used, corrupt = empty_images(len(indices), self.transform.size), [], []
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
        return out[:len(used)].permute(0, 3, 1, 2), torch.tensor(used, dtype=torch.int64), corrupt
