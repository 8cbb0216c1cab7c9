"""A picture of what the network sees: a row per image, a column per view."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import torch
from fvcore.common.config import CfgNode
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from pretrain.data.index import Source
from pretrain.data.loading import TrainLoader, to_device
from pretrain.data.sources import open_source
from pretrain.data.views import view_set
from sslight.core.config import to_dict
from sslight.core.errors import InputError
from sslight.core.files import write_atomically


def views_picture(views: list[Tensor], cfg: CfgNode) -> Tensor:
    """A uint8 [3, H, W] grid of normalised views; smaller views are padded, not enlarged."""
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
