"""After writing: is the file what was meant, has it the target's full list of tensors, does the framework agree?"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from convert import architectures
from convert.features import TIMM, image_for, require_equal, source_features, timm_features, torchvision_network
from convert.reader import Checkpoint, network_of
from convert.safe_files import read_file
from convert.targets.names import Outgoing, default_model
from sslight.core.errors import InputError


@dataclass
class Verified:
    """What was checked: text per step, and relative feature differences per stage of each comparison."""

    steps: list[str] = field(default_factory=list)
    differences: dict[str, dict[str, float]] = field(default_factory=dict)


def verify_file(path: Path, to: str, outgoing: Outgoing) -> str:
    """Read the file back as the framework would and compare every tensor, bit for bit."""
    content, _ = read_file(path, mapped=True, checksums=False)
    if path.suffix == ".pkl":
        content = content["model"]
    elif to == "mmdet":
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise InputError(f"{path}: the file just written does not read back")
    architectures.compare_shapes(
        {key: tuple(value.shape) for key, value in content.items()},
        {key: tuple(value.shape) for key, value in outgoing.tensors.items()},
        f"{path.name} read back",
    )
    changed = [key for key, value in outgoing.tensors.items() if not same_bits(content[key], value)]
    if changed:
        raise InputError(f"{path.name} read back differs in {', '.join(changed)}: check the disk")
    return f"read back: {len(content)} tensors, every bit equal"


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same type, shape and values."""
    return one.dtype == other.dtype and torch.equal(one, other)


def verify_list(outgoing: Outgoing, checkpoint: Checkpoint, to: str, model: str | None, prefix: str) -> str:
    """Compare names and shapes with the target's full list: the shipped one, or the installed framework's."""
    expected, origin = expected_list(checkpoint, to, model)
    if expected is None:
        return "the target's full list of tensors was not compared (neither shipped nor installed)"
    found = {key.removeprefix(prefix): tuple(value.shape) for key, value in outgoing.tensors.items()}
    architectures.compare_shapes(found, expected, f"{checkpoint.arch} for {to} against {origin}")
    return f"names and shapes: all {len(expected)} as in {origin}"


def expected_list(checkpoint: Checkpoint, to: str, model: str | None) -> tuple[dict[str, tuple] | None, str]:
    """The target's names and shapes, and where the list comes from."""
    arch = checkpoint.arch
    name = {"mmdet": f"mmdet_{arch}", "detectron2": f"detectron2_{default_model(arch, model)}_{arch}"}.get(to, "")
    shipped = resources.files("convert") / "data" / f"{name}.json"
    if name and shipped.is_file():
        listed = json.loads(shipped.read_text())
        return {key: tuple(shape) for key, shape in listed.items()}, f"the shipped list of {to}"
    if to == "timm":
        return architectures.expected_shapes(arch, **checkpoint.options), "timm"
    if to == "torchvision":
        return _torchvision_shapes(arch), "torchvision"
    if not installed(to):
        return None, ""
    return importlib.import_module(f"convert.targets.in_{to}").expected_list(checkpoint, model), f"the installed {to}"


@functools.cache
def _torchvision_shapes(arch: str) -> dict[str, tuple]:
    with torch.device("meta"):
        state = torchvision_network(arch)[0].state_dict()
    return {key: tuple(value.shape) for key, value in state.items()}


def installed(framework: str) -> bool:
    """Whether a framework can be imported."""
    return importlib.util.find_spec(framework) is not None


def verify_features(
    path: Path,
    checkpoint: Checkpoint,
    to: str,
    model: str | None = None,
    prefix: str = "",
    picture: Path | str | None = None,
) -> Verified:
    """Load the file in the framework itself and compare stage features with those of `source_features`.

    Raises InputError if a stage differs by more than 1e-5 of its largest feature; says so if the framework is absent.
    """
    result = Verified()
    images = image_for(checkpoint.arch, checkpoint.preprocess, picture)
    reference, definition = source_features(checkpoint, images)
    if definition != TIMM:
        found = timm_features(network_of(checkpoint), images)
        result.differences["timm's network from the source's tensors"] = require_equal(
            "timm's network", reference, found, than=definition
        )
    if not installed(to):
        result.steps.append(
            f"NOT verified: {to} is not installed, so it has not loaded the file; its names were checked as said above"
        )
        return result
    load = importlib.import_module(f"convert.targets.in_{to}").features
    found, how = load(path, checkpoint, images, model=model, prefix=prefix)
    if default_model(checkpoint.arch, model) == "vitdet" and to == "detectron2":
        reference, definition = vitdet_features(checkpoint, images), f"{TIMM}, without the class token"
    compared = require_equal(f"{path.name} in {to}", reference, found, than=definition)
    result.differences[f"{to} from the file"] = compared
    result.steps.append(
        f"{how}; {len(compared)} stages against {definition}: largest relative difference {max(compared.values()):.2g}"
    )
    return result


@torch.no_grad()
def vitdet_features(checkpoint: Checkpoint, images: Tensor) -> dict[str, Tensor]:
    """Block outputs of timm's ViT run without its class token, [N, C, h, w]: what ViTDet computes without windows."""
    network = network_of(checkpoint).eval()
    tokens = network.patch_embed(images).flatten(1, -2) if network.dynamic_img_size else network.patch_embed(images)
    side = images.shape[-1] // network.patch_embed.patch_size[0]
    tokens = tokens + network.pos_embed[:, -side * side :]
    features = {}
    for number, block in enumerate(network.blocks):
        tokens = block(tokens)
        features[f"block{number}"] = tokens.transpose(1, 2).reshape(len(images), -1, side, side)
    return features


def check_loaded(what: str, loaded: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Raise InputError naming every tensor of the file that is not in the framework's network bit for bit."""
    lost = [key for key, value in tensors.items() if key not in loaded or not same_bits(loaded[key].cpu(), value)]
    random = [key for key in loaded if key not in tensors]
    if lost or random:
        raise InputError(
            f"{what} did not take the file: not loaded {', '.join(lost) or 'none'}; "
            f"left random {', '.join(random) or 'none'}"
        )
