"""Stage features by name, and their largest relative difference: the proof that two networks are the same one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from convert.reader import Checkpoint, network_of
from convert.support import kind_of
from pretrain.backbones import Backbone, stage_features
from sslight.core.errors import InputError

TOLERANCE = 1e-5  # of the largest magnitude of a stage's features


def fixed_image(height: int, width: int) -> Tensor:
    """A deterministic normalised image [1, 3, height, width]: waves of several lengths with noise, no symmetry."""
    noise = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    rows, columns = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)[None]
    waves = torch.stack(
        [torch.sin(9 * rows + 5 * columns), torch.cos(17 * rows - 3 * columns), torch.sin(4 * rows * columns * 10)]
    )
    return waves[None] + 0.5 * noise


def image_for(arch: str, preprocess: dict, picture: Path | str | None = None) -> Tensor:
    """The image to compare features on: the fixed one, or `picture` resized and normalised as the network expects.

    A ViT gets the size its positions were trained for; a CNN 96 x 128, so that swapped axes show.
    """
    size = int(preprocess["size"])
    height, width = (size, size) if kind_of(arch) == "vit" else (96, 128) if kind_of(arch) else (size, size)
    if picture is None:
        return fixed_image(height, width)
    return _normalised(picture, height, width, preprocess)


def _normalised(picture: Path | str, height: int, width: int, preprocess: dict) -> Tensor:
    from PIL import Image
    from torchvision.transforms.functional import normalize, pil_to_tensor

    try:
        with Image.open(picture) as opened:
            image = opened.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    except Exception as error:  # noqa: BLE001  decoders raise whatever their format's parser stumbles over
        raise InputError(f"--verify-with: cannot read the image {picture} ({error})") from None
    pixels = pil_to_tensor(image).float() / 255
    if preprocess["color_order"] == "BGR":
        pixels = pixels.flip(0)
    return normalize(pixels, preprocess["mean"], preprocess["std"])[None]


@contextmanager
def outputs_of(modules: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Collect what each named module returns while the context is open."""
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: seen.__setitem__(name, output))
        for name, module in modules.items()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def timm_features(model: Backbone, images: Tensor) -> dict[str, Tensor]:
    """Every stage's features of a timm network in eval mode, by stage name, and the `pooled` feature."""
    model = model.eval()
    kind = kind_of(model.arch)
    if kind == "mobilenetv2":
        stages = {f"blocks.{number}": block for number, block in enumerate(model.blocks)}
        with outputs_of({**stages, "last conv": model.bn2}) as seen:
            pooled = model(images)
        return {**seen, "pooled": pooled}
    maps = stage_features(model, images)
    if kind == "resnet":
        named = {f"layer{number}": feature for number, feature in enumerate(maps[-4:], start=1)}
    else:
        name = "block" if kind == "vit" else "stage"
        named = {f"{name}{number}": feature for number, feature in enumerate(maps)}
    return {**named, "pooled": model(images)}


def differences(reference: dict[str, Tensor], found: dict[str, Tensor]) -> dict[str, float]:
    """Per stage, the largest absolute difference relative to the reference's largest magnitude; infinity if not finite.

    Raises InputError if a found stage is unknown or has another shape.
    """
    result = {}
    for name, feature in found.items():
        if name not in reference or reference[name].shape != feature.shape:
            expected = list(reference[name].shape) if name in reference else "no such stage"
            raise InputError(f"features of '{name}': {list(feature.shape)} instead of {expected}")
        largest = reference[name].abs().max()
        relative = float((feature - reference[name]).abs().max() / largest) if largest > 0 else float("inf")
        result[name] = relative if relative == relative else float("inf")
    return result


def require_equal(
    what: str,
    reference: dict[str, Tensor],
    found: Callable[[], dict[str, Tensor]] | dict[str, Tensor],
    tolerance: float = TOLERANCE,
    than: str = "the source network",
) -> dict[str, float]:
    """The differences, or InputError naming every stage whose difference is above the tolerance.

    `what` was found, `than` computed the reference: words for the message.
    """
    result = differences(reference, found() if callable(found) else found)
    if not result:
        raise InputError(f"{what}: no stage features to compare")
    wrong = {name: value for name, value in result.items() if not value <= tolerance}
    if wrong:
        shown = ", ".join(f"{name} {value:.2g}" for name, value in wrong.items())
        raise InputError(
            f"{what} gives other features than {than}: {shown} (relative, "
            f"allowed {tolerance:g}); this is a wrong renaming rule or a damaged file: please report it"
        )
    return result


# Index in torchvision's `features` after which timm's stage of that position ends.
_MOBILENET_ENDS = (1, 3, 6, 10, 13, 16, 17)
_LIKE_TORCHVISION = {
    "torchvision/timm ResNet",
    "ResNet's children in a Sequential",
    "torchvision MobileNetV2",
    "MobileNetV2's features in a Sequential",
    "torchvision MobileNetV2's children in a Sequential",
    "torchvision ViT",
}
TORCHVISION = "the source network (torchvision's)"
TIMM = "timm's reading of the file (not the project's own network)"


def source_features(checkpoint: Checkpoint, images: Tensor) -> tuple[dict[str, Tensor], str]:
    """Stage features of the source network, and what computed them, in words.

    A checkpoint in torchvision's naming runs in torchvision's network, loaded strictly without any table; the result is
    also what timm's network must give. Others are computed by timm's network, which is what the file was read as: that
    shows that the target agrees, not that the reading is right.
    """
    if checkpoint.layout in _LIKE_TORCHVISION and checkpoint.arch not in ("resnet152",) and not checkpoint.options:
        return _torchvision_features(checkpoint, images), TORCHVISION
    return timm_features(network_of(checkpoint), images), TIMM


@torch.no_grad()
def _torchvision_features(checkpoint: Checkpoint, images: Tensor) -> dict[str, Tensor]:
    body = dict(checkpoint.body)
    model, stages, final = torchvision_network(checkpoint.arch)
    holder: nn.Module = model
    if checkpoint.layout == "ResNet's children in a Sequential":
        holder = nn.Sequential(*list(model.children())[:-1])
    elif checkpoint.layout == "MobileNetV2's features in a Sequential":
        holder = model.features
    elif checkpoint.layout == "torchvision MobileNetV2's children in a Sequential":
        holder = nn.Sequential(model.features)
    counters = {key: value for key, value in holder.state_dict().items() if key.endswith("num_batches_tracked")}
    holder.load_state_dict({**counters, **body}, strict=True)
    with outputs_of(stages) as seen:
        pooled = model.eval()(images)
    return {**{name: final(name, feature) for name, feature in seen.items()}, "pooled": pooled}


def torchvision_network(arch: str) -> tuple[Any, dict[str, nn.Module], Callable[[str, Tensor], Tensor]]:
    """torchvision's network without classifier, its stages by timm's stage names, and how to view a stage's output."""

    def same(_: str, feature: Tensor) -> Tensor:
        return feature

    if arch.startswith("resnet"):
        model = torchvision.models.get_model(arch, weights=None)
        model.fc = nn.Identity()
        return model, {f"layer{n}": getattr(model, f"layer{n}") for n in range(1, 5)}, same
    if arch.startswith("mobilenetv2"):
        model = torchvision.models.mobilenet_v2(weights=None, width_mult=int(arch[-3:]) / 100)
        model.classifier = nn.Identity()
        stages = {f"blocks.{n}": model.features[end] for n, end in enumerate(_MOBILENET_ENDS)}
        return model, {**stages, "last conv": model.features[18]}, same
    model = torchvision.models.vit_b_16(weights=None)
    model.heads = nn.Identity()
    blocks = model.encoder.layers

    def patches(_: str, feature: Tensor) -> Tensor:
        side = int((feature.shape[1] - 1) ** 0.5)
        return feature[:, 1:].transpose(1, 2).reshape(len(feature), -1, side, side)

    return model, {f"block{n}": blocks[n] for n in range(len(blocks))}, patches
