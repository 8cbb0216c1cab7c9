"""Which features of a backbone are judged, from one forward: the pooled one, last blocks, last stages.

A choice is a short name. Every network has `pooled` (what it hands to a classifier). A ViT with a class token has
`cls1`, `cls4` (the token after the last or the last four blocks, each through the final norm, concatenated as in DINO)
and `cls1_avg`, `cls4_avg` (with the mean patch token of the last block appended, as in DINOv2). A network with stages
has `stage1`, `stage2`, ... counted from the end: the stage's map, averaged over its area.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from benchmarks.classification.labelled import Labelled
from benchmarks.classification.weights import Subject
from pretrain.backbones import Backbone
from pretrain.data.loading import center_crop, image_batches, normalize
from sslight.core import distributed
from sslight.core.devices import channels_last
from sslight.core.errors import InputError, Stopped, nearest
from sslight.core.files import write_atomically, write_json
from sslight.core.logs import Bar
from sslight.core.rundir import StopSignal

CLASS_TOKEN = re.compile(r"cls(\d+)(_avg)?")
STAGE = re.compile(r"stage(\d+)")


def choices_for(backbone: nn.Module, wanted: Sequence[str]) -> list[str]:
    """`wanted` with `auto` replaced by all choices that suit the network. Raises InputError for one that it lacks."""
    chosen: list[str] = []
    for name in wanted:
        for choice in _all_choices(backbone) if name == "auto" else [name]:
            if choice not in chosen:
                chosen.append(choice)
    for choice in chosen:
        _check(backbone, choice)
    if not chosen:
        raise InputError("no features chosen: name at least one, such as pooled")
    return chosen


def _blocks(backbone: nn.Module) -> int:
    """Number of transformer blocks of a network with a class token, else 0."""
    blocks = getattr(backbone, "blocks", None)
    return len(blocks) if getattr(backbone, "cls_token", None) is not None and blocks is not None else 0


def _all_choices(backbone: nn.Module) -> list[str]:
    if _blocks(backbone):
        return ["pooled", "cls1", "cls1_avg", "cls4", "cls4_avg"]
    return ["pooled", "stage1", "stage2"] if hasattr(backbone, "forward_intermediates") else ["pooled"]


def _check(backbone: nn.Module, choice: str) -> None:
    token, stage = CLASS_TOKEN.fullmatch(choice), STAGE.fullmatch(choice)
    if choice == "pooled":
        return
    if token and 1 <= int(token[1]) <= _blocks(backbone):
        return
    if stage and int(stage[1]) >= 1 and hasattr(backbone, "forward_intermediates") and not _blocks(backbone):
        return
    known = _all_choices(backbone)
    raise InputError(
        f"feature '{choice}' does not suit {getattr(backbone, 'arch', 'this backbone')}"
        f"{nearest(choice, known)}: use {', '.join(known)}, or auto for all of them"
    )


class Features(nn.Module):
    """A backbone with the chosen features: images [N, 3, H, W] -> {choice: float32 [N, width]}, in one forward."""

    def __init__(self, backbone: Backbone, choices: Sequence[str]):
        super().__init__()
        self.backbone, self.choices = backbone, list(choices)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        if self.choices == ["pooled"]:
            return {"pooled": self.backbone(images).float()}
        features = self._tokens(images) if _blocks(self.backbone) else self._stages(images)
        return {choice: features[choice].float() for choice in self.choices}

    def _tokens(self, images: Tensor) -> dict[str, Tensor]:
        depth = max([int(m[1]) for m in map(CLASS_TOKEN.fullmatch, self.choices) if m], default=1)
        last, blocks = self.backbone.forward_intermediates(
            images, indices=depth, norm=True, return_prefix_tokens=True, output_fmt="NLC"
        )
        features = {"pooled": self.backbone.forward_head(last, pre_logits=True)} if "pooled" in self.choices else {}
        for choice in self.choices:
            match = CLASS_TOKEN.fullmatch(choice)
            if match:
                parts = [prefix[:, 0] for _, prefix in blocks[-int(match[1]) :]]
                features[choice] = torch.cat(parts + ([blocks[-1][0].mean(1)] if match[2] else []), dim=1)
        return features

    def _stages(self, images: Tensor) -> dict[str, Tensor]:
        last, maps = self.backbone.forward_intermediates(images)
        features = {"pooled": self.backbone.forward_head(last, pre_logits=True)} if "pooled" in self.choices else {}
        for choice in self.choices:
            match = STAGE.fullmatch(choice)
            if match:
                if int(match[1]) > len(maps):
                    raise InputError(f"feature '{choice}': {self.backbone.arch} has {len(maps)} stages")
                features[choice] = maps[-int(match[1])].mean((2, 3))
        return features


@torch.no_grad()
def widths(features: Features, size: int) -> dict[str, int]:
    """Width of every chosen feature, seen on the network's own output for a square image of `size` pixels."""
    device = next(features.parameters()).device
    outputs = features.eval()(torch.zeros(1, 3, size, size, device=device))
    return {name: value.shape[1] for name, value in outputs.items()}


def prepare(images: Tensor, preprocess: dict, device: torch.device) -> Tensor:
    """uint8 RGB [N, 3, H, W] as the network expects it: in its order of channels, normalised float32, channels last."""
    images = images.flip(1) if preprocess["color_order"] == "BGR" else images
    return normalize(images, preprocess["mean"], preprocess["std"], device, channels_last=True)


PART = 4096  # images in a part


class Rows:
    """Features [N, D] on disk, read by slices; a row index never crosses into memory before it is asked for."""

    def __init__(self, parts: list[Path]):
        self.parts = [np.load(path, mmap_mode="r") for path in parts]
        self.ends = np.cumsum([len(part) for part in self.parts])
        self.shape = (int(self.ends[-1]), self.parts[0].shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise ValueError("features are read in steps of 1")
        pieces, first = [np.empty((0, self.shape[1]), self.parts[0].dtype)], 0
        for part, end in zip(self.parts, self.ends, strict=True):
            if start < end and first < stop:
                pieces.append(part[max(start - first, 0) : stop - first])
            first = end
        return np.concatenate(pieces)


def entry_facts(cfg: CfgNode, subject: Subject, split: Labelled, choice: str, flip: bool) -> dict:
    """Everything that decides the content of a cache entry."""
    options = {"options": subject.about["options"]} if subject.about["options"] else {}
    return {
        "weights": subject.about["sha256"],
        "arch": subject.about["arch"],
        "network": subject.about["network"],
        "data": split.source.fingerprint(),
        "images": len(split),
        "feature": choice,
        "transform": {
            "resize": cfg.DATA.RESIZE,
            "size": cfg.DATA.SIZE,
            "flip": flip,
            **subject.preprocess,
            **({"max_value": cfg.DATA.MAX_VALUE} if cfg.DATA.MAX_VALUE else {}),
            **{key: subject.about[key] for key in ("pos_resize",) if key in subject.about},
        },
        "amp": cfg.FEATURES.AMP,
        "dtype": cfg.FEATURES.DTYPE,
        **options,
    }


def find_entry(
    cfg: CfgNode, subject: Subject, split: Labelled, choice: str, *, flip: bool = False
) -> tuple[Path, dict]:
    """The folder of an entry, which need not exist yet, and its facts.

    Raises InputError where the entry's index says that it holds something else.
    """
    facts = entry_facts(cfg, subject, split, choice, flip)
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    folder = Path(cfg.FEATURES.CACHE_DIR or Path(cfg.OUTPUT_DIR) / "features") / name
    if (folder / "index.json").exists():
        _check_entry(folder / "index.json", facts)
    return folder, facts


def cached_features(
    cfg: CfgNode,
    subject: Subject,
    split: Labelled,
    choice: str,
    device: torch.device,
    stop: StopSignal,
    *,
    flip: bool = False,
) -> Rows:
    """The features of a split under one choice, extracted unless they are in the cache already.

    Raises InputError where they are damaged or another's; Stopped after a signal.
    """
    folder, facts = find_entry(cfg, subject, split, choice, flip=flip)
    paths = [folder / f"{first:09d}.npy" for first in range(0, len(split), PART)]
    index = folder / "index.json"
    if not index.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _extract(cfg, subject, split, choice, flip, device, stop, paths)
        if distributed.is_main():
            write_json(index, facts)
    distributed.barrier()
    try:
        rows = Rows(paths)
    except (OSError, ValueError) as error:
        raise InputError(f"feature cache {folder} is damaged ({error}): remove that folder") from None
    if len(rows) != len(split):
        raise InputError(f"feature cache {folder} holds {len(rows)} rows for {len(split)} images: remove that folder")
    return rows


def _check_entry(index: Path, facts: dict) -> None:
    try:
        kept = json.loads(index.read_text())
        other = [key for key in facts if kept[key] != facts[key]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"feature cache index {index} is not readable ({error}): remove the folder {index.parent}"
        ) from None
    if other:
        raise InputError(
            f"feature cache {index.parent} is of other {' and '.join(other)} ({kept[other[0]]}, not "
            f"{facts[other[0]]}): remove that folder or name another FEATURES.CACHE_DIR"
        )


def _extract(
    cfg: CfgNode,
    subject: Subject,
    split: Labelled,
    choice: str,
    flip: bool,
    device: torch.device,
    stop: StopSignal,
    paths: list[Path],
) -> None:
    """Write this rank's missing parts. Parts, not images, are shared, so batches are the same for every world size."""
    missing = [i for i, path in enumerate(paths) if not path.exists()]
    distributed.barrier()  # nobody writes before everybody has looked
    mine = missing[distributed.rank() :: distributed.world_size()]
    rounds = -(-len(missing) // distributed.world_size())
    bar = Bar(sum(len(_part(i, len(split))) for i in mine), f"features {choice}", "image")
    for turn in range(rounds):
        if stop.requested():  # every rank asks in every round
            done = len(paths) - len(missing) + turn * distributed.world_size()
            raise Stopped(f"kept {done} of {len(paths)} parts of the features; start the same command again to go on")
        if turn < len(mine):
            values = np.concatenate(
                list(extract(cfg, subject, split, _part(mine[turn], len(split)), choice, device, flip=flip, bar=bar))
            )
            if not np.isfinite(values).all():
                raise InputError(
                    f"{cfg.WEIGHTS}: some features are not finite as {cfg.FEATURES.DTYPE}: the "
                    "weights are broken, or FEATURES.DTYPE is too narrow for them"
                )
            path = paths[mine[turn]]
            write_atomically(path, functools.partial(_save, values=values))
    bar.close()
    distributed.barrier()


def _part(i: int, count: int) -> np.ndarray:
    return np.arange(i * PART, min((i + 1) * PART, count))


def _save(path: Path, values: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, values)


@torch.no_grad()
def extract(
    cfg: CfgNode,
    subject: Subject,
    split: Labelled,
    indices: np.ndarray,
    choice: str,
    device: torch.device,
    *,
    flip: bool = False,
    bar: Bar | None = None,
) -> Iterator[np.ndarray]:
    """Features [b, D] of the images `indices`, batch by batch, by a centre crop (mirrored if `flip`)."""
    features = channels_last(Features(subject.backbone, [choice]).to(device)).eval()
    transform = center_crop(cfg.DATA.RESIZE, cfg.DATA.SIZE)
    for images, used in image_batches(
        split.source, indices, transform, batch_size=cfg.FEATURES.BATCH_SIZE, workers=cfg.DATA.WORKERS
    ):
        images = prepare(images.flip(3) if flip else images, subject.preprocess, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=cfg.FEATURES.AMP == "bf16"):
            out = features(images)[choice]
        if bar:
            bar.update(len(used))
        yield out.cpu().numpy().astype(cfg.FEATURES.DTYPE)
