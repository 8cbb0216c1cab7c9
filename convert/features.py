"""Stage features by name, and their largest relative difference: the proof that two networks are the same one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from convert.support import kind_of
from pretrain.backbones import stage_features
from pretrain.errors import InputError

TOLERANCE = 1e-5  # of the largest magnitude of a stage's features


def fixed_image(height: int, width: int) -> Tensor:
    """A deterministic normalised image [1, 3, height, width]: waves of several lengths with noise, no symmetry."""
    noise = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    rows, columns = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)[None]
    waves = torch.stack([torch.sin(9 * rows + 5 * columns), torch.cos(17 * rows - 3 * columns),
                         torch.sin(4 * rows * columns * 10)])
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
    hooks = [module.register_forward_hook(lambda _, __, output, name=name: seen.__setitem__(name, output))
             for name, module in modules.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def timm_features(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
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


def require_equal(what: str, reference: dict[str, Tensor], found: Callable[[], dict[str, Tensor]] | dict[str, Tensor],
                  tolerance: float = TOLERANCE, than: str = "the source network") -> dict[str, float]:
    """The differences, or InputError naming every stage whose difference is above the tolerance.

    `what` was found, `than` computed the reference: words for the message.
    """
    result = differences(reference, found() if callable(found) else found)
    if not result:
        raise InputError(f"{what}: no stage features to compare")
    wrong = {name: value for name, value in result.items() if not value <= tolerance}
    if wrong:
        shown = ", ".join(f"{name} {value:.2g}" for name, value in wrong.items())
        raise InputError(f"{what} gives other features than {than}: {shown} (relative, "
                         f"allowed {tolerance:g}); this is a wrong renaming rule or a damaged file: please report it")
    return result
