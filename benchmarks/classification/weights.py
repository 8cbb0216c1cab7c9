"""The network under test: a checkpoint that `convert` reads, or a random one, and the proof that it did not change."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from convert.families import spelled
from convert.reader import load_network
from pretrain.backbones import Backbone, build_backbone, check_options, read_options, set_pos_resize
from sslight.core import distributed
from sslight.core.config import to_dict
from sslight.core.errors import InputError

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@dataclass(frozen=True)
class Subject:
    """A backbone and what is known of it.

    `about` is the `checkpoint` field of a result. `head` holds DINO's projection head (`mlp.N.weight`, ...) or None.
    mean and std are of images in [0, 1], in the network's order of channels; `bgr`: it expects blue first.
    """

    backbone: Backbone
    about: dict
    mean: list[float]
    std: list[float]
    bgr: bool
    head: dict[str, Tensor] | None

    @property
    def preprocess(self) -> dict:
        return {"mean": self.mean, "std": self.std, "color_order": "BGR" if self.bgr else "RGB"}


def load_subject(cfg: CfgNode) -> Subject:
    """The network that WEIGHTS names. Raises InputError if it cannot be read or built."""
    options = read_options(cfg.MODEL.OPTIONS.split())
    if cfg.WEIGHTS == "random":
        if not cfg.MODEL.BACKBONE_ARCH:
            raise InputError("WEIGHTS random needs a backbone: add MODEL.BACKBONE_ARCH, e.g. resnet18")
        check_options(cfg.MODEL.BACKBONE_ARCH, options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cfg.MODEL.INIT_SEED)
            backbone = build_backbone(cfg.MODEL.BACKBONE_ARCH, **options)
        about: dict[str, Any] = {
            "path": "random",
            "sha256": state_hash(backbone),
            "arch": backbone.arch,
            "method": "random",
            "family": "random",
            "network": "random",
            "options": options,
            "assumed": [],
        }
        preprocess: dict[str, Any] = {}
        head = None
    else:
        backbone, read = load_network(
            cfg.WEIGHTS, arch=cfg.MODEL.BACKBONE_ARCH or None, network=cfg.MODEL.NETWORK or None, options=options
        )
        about = {
            "path": str(cfg.WEIGHTS),
            "sha256": read.sha256,
            **({"revision": read.revision} if read.revision else {}),
            "arch": read.arch,
            "method": read.method,
            "family": read.family,
            "network": read.network,
            "options": read.options,
            "assumed": list(read.assumed.values()),
        }
        for line in spelled(read.assumed, "MODEL.OPTIONS") if distributed.is_main() else ():
            print(f"warning: {cfg.WEIGHTS}: {line}", file=sys.stderr)
        preprocess, head = read.preprocess, read.head
    if cfg.NAME:
        about["name"] = cfg.NAME
    if cfg.MODEL.POS_RESIZE:
        set_pos_resize(backbone, cfg.MODEL.POS_RESIZE)
    if hasattr(backbone, "pos_resize"):
        about["pos_resize"] = backbone.pos_resize
    bgr = preprocess.get("color_order") == "BGR"
    mean, std = (list(given)[:: -1 if bgr else 1] for given in (cfg.DATA.MEAN, cfg.DATA.STD))  # given as of RGB
    return Subject(
        backbone,
        about,
        mean or list(preprocess.get("mean", IMAGENET_MEAN)),
        std or list(preprocess.get("std", IMAGENET_STD)),
        bgr,
        head,
    )


def state_hash(module: nn.Module) -> str:
    """SHA-256 over every tensor of the state dict, statistics included, with its name, type and shape."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def freeze(backbone: Backbone) -> Backbone:
    """The backbone in eval mode and without gradients."""
    return backbone.eval().requires_grad_(False)


def check_frozen(backbone: nn.Module, before: str) -> None:
    """Raise RuntimeError unless the backbone still has the tensors whose hash is `before`."""
    if state_hash(backbone) != before:
        raise RuntimeError("the frozen backbone changed during evaluation: this is a bug, and its result is void")


def identity(cfg: CfgNode, subject: Subject, fingerprint: str, processes: int) -> CfgNode:
    """The configuration with a section RUN, as `open_run` keeps it: a directory belongs to one such combination.

    Paths may change from start to start, what they hold may not: RUN has the weights' hash and the data's fingerprint.
    """
    run = {"WEIGHTS": subject.about["sha256"], "DATA": fingerprint}
    if "TRAIN" in cfg:
        run["GLOBAL_BATCH"] = cfg.TRAIN.BATCH_SIZE * processes
    return CfgNode({**to_dict(cfg), "RUN": run})
