"""torchvision itself loads the file, strictly once its classifier is excluded."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from convert.features import outputs_of, torchvision_network
from convert.reader import Checkpoint


@torch.no_grad()
def features(path: Path, checkpoint: Checkpoint, images: Tensor, **_) -> tuple[dict[str, Tensor], str]:
    """Stage features of torchvision's network built from the file, and what was done."""
    network, stages, view = torchvision_network(checkpoint.arch)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
    with outputs_of(stages) as seen:
        pooled = network.eval()(images)
    maps = {name: view(name, feature) for name, feature in seen.items()}
    return {**maps, "pooled": pooled}, "loaded by torchvision's network, strictly"
