"""After writing: is the file what was meant, has it the target's full list of tensors, does the framework agree?

The framework agrees where it has loaded the file and its stage features, by name, are those of the source network.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from convert.naming.rules import kind_of
from convert.own_code import own_feature
from convert.reader import Checkpoint, compare_shapes, network_of
from convert.safe_files import read_file
from convert.targets import Outgoing, Target, Verified
from pretrain.backbones import Backbone, meta_backbone, own_size, stage_features
from sslight.core.errors import InputError

TOLERANCE = 1e-5  # of the largest magnitude of a stage's features


def verify(
    target: Target,
    path: Path,
    outgoing: Outgoing,
    checkpoint: Checkpoint,
    picture: Path | str | None = None,
    load: bool = True,
) -> Verified:
    """Compare a written file with what was meant, and with the target's full list of tensors; `load` it, too, in the
    framework itself, and compare stage features with those of `source_features`.

    Raises InputError for any difference, of features above 1e-5 of a stage's largest; where the framework is absent, a
    step says so.
    """
    verified = Verified([verify_file(target, path, outgoing), verify_list(target, outgoing, checkpoint)])
    options = outgoing.options
    if not load:
        verified.steps.append(f"NOT verified, as asked: {target.name} has not loaded the file")
        return verified
    images = image_for(checkpoint, picture)
    reference, definition = source_features(checkpoint, images)
    if definition != TIMM:
        verified.differences["timm's network from the source's tensors"] = require_equal(
            "timm's network", reference, timm_features(network_of(checkpoint), images), than=definition
        )
    own = own_feature(checkpoint, images)
    if own:
        words = f"the source's tensors in {own[1]}"
        verified.differences[f"timm's network from {words}"] = compared = require_equal(
            "timm's network", {"pooled": own[0]}, {"pooled": reference["pooled"]}, than=words
        )
        verified.steps.append(f"pooled feature of timm's network against {words}: {compared['pooled']:.2g}")
        definition = definition.replace(NOT_OWN, f" (which computes as {own[1]})")
    if not installed(target.package or target.name):
        verified.steps.append(
            f"NOT verified: {target.name} is not installed, so it has not loaded the file; "
            "its names were checked as said above"
        )
        return verified
    features, how = target.features(path, checkpoint, images, **options)
    reference, definition = target.reference(checkpoint, images, **options) or (reference, definition)
    compared = require_equal(f"{path.name} in {target.name}", reference, features, than=definition)
    verified.differences[f"{target.name} from the file"] = compared
    verified.steps.append(
        f"{how}; {len(compared)} stages against {definition}: largest relative difference {max(compared.values()):.2g}"
    )
    return verified


def installed(framework: str) -> bool:
    """Whether a framework can be imported."""
    return importlib.util.find_spec(framework) is not None


def verify_file(target: Target, path: Path, outgoing: Outgoing) -> str:
    """Read the file back as the framework would and compare every tensor, bit for bit."""
    content, _ = read_file(path / target.weights, mapped=True, checksums=False)
    if not isinstance(content, dict):
        raise InputError(f"{path}: the file just written does not read back")
    content = target.tensors(content)
    compare_shapes(_shapes(content), _shapes(outgoing.tensors), f"{path.name} read back")
    changed = [key for key, value in outgoing.tensors.items() if not same_bits(content[key], value)]
    if changed:
        raise InputError(f"{path.name} read back differs in {', '.join(changed)}: check the disk")
    return f"read back: {len(content)} tensors, every bit equal"


def verify_list(target: Target, outgoing: Outgoing, checkpoint: Checkpoint) -> str:
    """Compare names and shapes with the target's full list: the shipped one, or the installed framework's.

    The shipped one is convert/data/TARGET[_MODEL]_ARCH.json, where there is one.
    """
    options = outgoing.options
    name = "_".join(part for part in (target.name, options.get("model"), checkpoint.arch) if part)
    shipped = resources.files("convert") / "data" / f"{name}.json"
    if shipped.is_file():
        expected = {key: tuple(shape) for key, shape in json.loads(shipped.read_text()).items()}
        source = f"the shipped list of {target.name}"
    elif installed(target.package or target.name):
        expected, source = (
            _shapes(target.expected(checkpoint, **options)),
            f"the installed {target.package or target.name}",
        )
    else:
        return "the target's full list of tensors was not compared (neither shipped nor installed)"
    prefix = options.get("prefix", "")
    shapes = {key.removeprefix(prefix): shape for key, shape in _shapes(outgoing.tensors).items()}
    compare_shapes(shapes, expected, f"{checkpoint.arch} for {target.name} against {source}")
    return f"names and shapes: all {len(expected)} as in {source}"


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple]:
    return {key: tuple(value.shape) for key, value in tensors.items()}


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same type, shape and values."""
    return one.dtype == other.dtype and torch.equal(one, other)


def check_loaded(what: str, loaded: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Raise InputError naming every tensor of the file that is not in the framework's network bit for bit."""
    lost = [key for key, value in tensors.items() if key not in loaded or not same_bits(loaded[key].cpu(), value)]
    random = [key for key in loaded if key not in tensors]
    if lost or random:
        raise InputError(
            f"{what} did not take the file: not loaded {', '.join(lost) or 'none'}; "
            f"left random {', '.join(random) or 'none'}"
        )


def fixed_image(height: int, width: int) -> Tensor:
    """A deterministic normalised image [1, 3, height, width]: waves of several lengths with noise, no symmetry."""
    noise = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    rows, columns = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)[None]
    waves = torch.stack(
        [torch.sin(9 * rows + 5 * columns), torch.cos(17 * rows - 3 * columns), torch.sin(4 * rows * columns * 10)]
    )
    return waves[None] + 0.5 * noise


def image_for(checkpoint: Checkpoint, picture: Path | str | None = None) -> Tensor:
    """The image to compare features on: the fixed one, or `picture` resized and normalised as the network expects.

    A network with positions gets the size that they are of, which frameworks take without resizing them, also where it
    was trained on another one; a CNN gets 96 x 128, so that swapped axes show.
    """
    height = width = int(checkpoint.preprocess["size"])
    network = meta_backbone(checkpoint.arch, **checkpoint.options)
    if checkpoint.kind in ("resnet", "mobilenetv2"):
        height, width = 96, 128
    elif getattr(getattr(network, "patch_embed", None), "img_size", None):
        height, width = own_size(network)
    if picture is None:
        return fixed_image(height, width)
    return _normalised(picture, height, width, checkpoint.preprocess)


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


def transform(preprocess: dict) -> Callable[[object], Tensor]:
    """What makes of a PIL image what a network expects, [3, size, size]: torchvision's steps, by a central crop."""
    from torchvision.transforms import Compose, v2

    size = int(preprocess["size"])
    return Compose(  # the plain class: v2's is a module, which a network that keeps it would count as a layer
        [
            v2.RGB(),
            v2.Resize(round(size * 256 / 224), v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(size),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            *([partial(torch.flip, dims=(0,))] if preprocess["color_order"] == "BGR" else []),
            v2.Normalize(preprocess["mean"], preprocess["std"]),
        ]
    )


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


def differences(reference: dict[str, Tensor], actual: dict[str, Tensor]) -> dict[str, float]:
    """Per stage, the largest absolute difference relative to the reference's largest magnitude; infinity if not finite.

    Raises InputError if a stage is unknown or has another shape.
    """
    result = {}
    for name, feature in actual.items():
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
    actual: dict[str, Tensor],
    tolerance: float = TOLERANCE,
    than: str = "the source network",
) -> dict[str, float]:
    """The differences, or InputError naming every stage whose difference is above the tolerance.

    `what` computed the actual features, `than` the reference: words for the message.
    """
    result = differences(reference, actual)
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
NOT_OWN = " (not the project's own network)"
TIMM = f"timm's reading of the file{NOT_OWN}"


def source_features(checkpoint: Checkpoint, images: Tensor) -> tuple[dict[str, Tensor], str]:
    """Stage features of the source network, and what computed them, in words.

    A checkpoint in torchvision's naming runs in torchvision's network, loaded strictly without any table; the result is
    also what timm's network must give. Others are computed by timm's network, which is what the file was read as: that
    shows that the target agrees, not that the reading is right.
    """
    if checkpoint.layout in _LIKE_TORCHVISION and checkpoint.arch not in ("resnet152",) and not checkpoint.options:
        return _own_torchvision_features(checkpoint, images), TORCHVISION
    return timm_features(network_of(checkpoint), images), TIMM


def _own_torchvision_features(checkpoint: Checkpoint, images: Tensor) -> dict[str, Tensor]:
    body = dict(checkpoint.body)
    model, stages, view = torchvision_network(checkpoint.arch)
    holder: nn.Module = model
    if checkpoint.layout == "ResNet's children in a Sequential":
        holder = nn.Sequential(*list(model.children())[:-1])
    elif checkpoint.layout == "MobileNetV2's features in a Sequential":
        holder = model.features
    elif checkpoint.layout == "torchvision MobileNetV2's children in a Sequential":
        holder = nn.Sequential(model.features)
    counters = {key: value for key, value in holder.state_dict().items() if key.endswith("num_batches_tracked")}
    holder.load_state_dict({**counters, **body}, strict=True)
    return torchvision_features(model, stages, view, images)


@torch.no_grad()
def torchvision_features(
    model: nn.Module, stages: dict[str, nn.Module], view: Callable[[str, Tensor], Tensor], images: Tensor
) -> dict[str, Tensor]:
    """Every stage's features and the `pooled` one of what `torchvision_network` returns."""
    with outputs_of(stages) as seen:
        pooled = model.eval()(images)
    return {**{name: view(name, feature) for name, feature in seen.items()}, "pooled": pooled}


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
