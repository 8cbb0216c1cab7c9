"""What is measured and shown while a network trains: k-NN accuracy on validation features, a picture of the views."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from pretrain.backbones import Backbone
from pretrain.data.loading import TrainLoader, center_crop, image_batches, normalize, to_device
from pretrain.data.sources import Source, open_source
from pretrain.data.views import view_set
from pretrain.neighbours import nearest_neighbours, vote
from sslight.core import distributed
from sslight.core.config import to_dict
from sslight.core.errors import InputError
from sslight.core.files import write_atomically


@torch.no_grad()
def extract(backbone: Backbone, source: Source, cfg: CfgNode, device: torch.device) -> tuple[Tensor, Tensor]:
    """L2-normalised features [N, D] and labels [N] of a whole source, shared over the ranks, every image once.

    The network is put into eval mode for it and back. The centre crop keeps the published ratio 224 of 256.
    """
    rank, world = distributed.rank(), distributed.world_size()
    count = -(-len(source) // world)
    mine = np.arange(rank * count, min((rank + 1) * count, len(source)))
    size = cfg.VIEWS.GLOBAL_SIZE
    features = torch.zeros(count, backbone.feature_dim, device=device)
    was_training = backbone.training
    backbone.eval()
    done = 0
    for images, _ in image_batches(
        source,
        mine,
        center_crop(round(size * 256 / 224), size),
        batch_size=cfg.TRAIN.BATCH_SIZE,
        workers=cfg.DATA.WORKERS,
    ):
        out = backbone(normalize(images, cfg.DATA.MEAN, cfg.DATA.STD, device))
        features[done : done + len(out)] = F.normalize(out.float(), dim=1)
        done += len(out)
    backbone.train(was_training)
    return distributed.all_gather(features)[: len(source)], torch.as_tensor(source.labels, device=device)


def knn_top1(backbone: Backbone, val: Source, train: Source | None, cfg: CfgNode, device: torch.device) -> float:
    """Weighted k-NN accuracy of the validation images, as a fraction.

    Without `train` each image is judged by the other validation images (leave-one-out, the published in-training
    measure); with it by the training images.
    """
    features, labels = extract(backbone, val, cfg, device)
    bank, bank_labels = extract(backbone, train, cfg, device) if train else (features, labels)
    exclude = None if train else torch.arange(len(features), device=device)
    k = min(cfg.KNN.K, len(bank) - (train is None))
    similarity, index = nearest_neighbours(features, bank, k, exclude=exclude, normalise=False)
    ranked = vote(similarity, bank_labels[index], int(bank_labels.max()) + 1, [k], cfg.KNN.TEMPERATURE, r=1)
    return float((ranked[k][:, 0] == labels).double().mean())


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
