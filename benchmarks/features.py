"""Which features of a backbone are judged, from one forward: the pooled one, last blocks, last stages.

A choice is a short name. Every network has `pooled` (what it hands to a classifier). A ViT with a class token has
`cls1`, `cls4` (the token after the last or the last four blocks, each through the final norm, concatenated as in DINO)
and `cls1_avg`, `cls4_avg` (with the mean patch token of the last block appended, as in DINOv2). A network with stages
has `stage1`, `stage2`, ... counted from the end: the stage's map, averaged over its area.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pretrain.data import normalize
from pretrain.errors import InputError, nearest

CLASS_TOKEN = re.compile(r"cls(\d+)(_avg)?")
STAGE = re.compile(r"stage(\d+)")


def choices_for(backbone: nn.Module, wanted: Sequence[str]) -> list[str]:
    """`wanted` with `auto` replaced by all choices that suit the network. Raises InputError for one that it lacks."""
    found: list[str] = []
    for name in wanted:
        for choice in _all_choices(backbone) if name == "auto" else [name]:
            if choice not in found:
                found.append(choice)
    for choice in found:
        _check(backbone, choice)
    if not found:
        raise InputError("no features chosen: name at least one, such as pooled")
    return found


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
    raise InputError(f"feature '{choice}' does not suit {getattr(backbone, 'arch', 'this backbone')}"
                     f"{nearest(choice, known)}: use {', '.join(known)}, or auto for all of them")


class Features(nn.Module):
    """A backbone with the chosen features: images [N, 3, H, W] -> {choice: float32 [N, width]}, in one forward."""

    def __init__(self, backbone: nn.Module, choices: Sequence[str]):
        super().__init__()
        self.backbone, self.choices = backbone, list(choices)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        if self.choices == ["pooled"]:
            return {"pooled": self.backbone(images).float()}
        found = self._tokens(images) if _blocks(self.backbone) else self._stages(images)
        return {choice: found[choice].float() for choice in self.choices}

    def _tokens(self, images: Tensor) -> dict[str, Tensor]:
        depth = max([int(m[1]) for m in map(CLASS_TOKEN.fullmatch, self.choices) if m], default=1)
        last, blocks = self.backbone.forward_intermediates(
            images, indices=depth, norm=True, return_prefix_tokens=True, output_fmt="NLC")
        found = {"pooled": self.backbone.forward_head(last, pre_logits=True)} if "pooled" in self.choices else {}
        for choice in self.choices:
            match = CLASS_TOKEN.fullmatch(choice)
            if match:
                parts = [prefix[:, 0] for _, prefix in blocks[-int(match[1]):]]
                found[choice] = torch.cat(parts + ([blocks[-1][0].mean(1)] if match[2] else []), dim=1)
        return found

    def _stages(self, images: Tensor) -> dict[str, Tensor]:
        last, maps = self.backbone.forward_intermediates(images)
        found = {"pooled": self.backbone.forward_head(last, pre_logits=True)} if "pooled" in self.choices else {}
        for choice in self.choices:
            match = STAGE.fullmatch(choice)
            if match:
                if int(match[1]) > len(maps):
                    raise InputError(f"feature '{choice}': {self.backbone.arch} has {len(maps)} stages")
                found[choice] = maps[-int(match[1])].mean((2, 3))
        return found


@torch.no_grad()
def widths(features: Features, size: int) -> dict[str, int]:
    """Width of every chosen feature, seen on the network's own output for a square image of `size` pixels."""
    device = next(features.parameters()).device
    found = features.eval()(torch.zeros(1, 3, size, size, device=device))
    return {name: value.shape[1] for name, value in found.items()}


def prepare(images: Tensor, preprocess: dict, device: torch.device) -> Tensor:
    """uint8 RGB [N, 3, H, W] as the network wants it: in its order of channels, normalised float32, channels last."""
    images = images.flip(1) if preprocess["color_order"] == "BGR" else images
    return normalize(images, preprocess["mean"], preprocess["std"], device, channels_last=True)
