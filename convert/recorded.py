"""What a file's settings, or else its family's own code, say of a network that shapes do not show.

Settings are plain data (`Flat.setting`, `Flat.openmmlab_setting`, and `Flat.beside`: the config beside the file).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from convert.families import AS_TIMM, IMAGENET, Checkpoint, Family
from convert.hub_config import CONFIG, PROCESSOR, HubConfig, read_hub_config
from convert.naming.resnet import RESNET_DETECTRON2
from convert.naming.vit import has_mocov3_positions
from sslight.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from convert.naming.rules import Layout
    from convert.safe_files import Flat

# mmpretrain's names of its plain ViTs, in small letters, and their attention heads.
_MMPRETRAIN_HEADS = {
    "mocov3-s": 12,
    "mocov3-small": 12,
    "s": 8,
    "small": 8,
    "deit-t": 3,
    "deit-tiny": 3,
    "dinov2-s": 6,
    "dinov2-small": 6,
    "deit-s": 6,
    "deit-small": 6,
    "b": 12,
    "base": 12,
    "deit-b": 12,
    "deit-base": 12,
}


@dataclass
class Recorded:
    """What is recorded of a network.

    heads: number of a ViT's attention heads, AS_TIMM, or None if unknown. options: other build options.
    preprocess: mean and std (of images in [0, 1], in the network's own order of channels) and color_order, or None.
    assumed: what is assumed instead, by topic.
    """

    heads: int | None
    preprocess: dict | None
    assumed: dict[str, str]
    options: dict[str, Any] = field(default_factory=dict)


def recorded_arch(flat: Flat) -> str:
    """The file's own word for its architecture, where that is a name of timm's; else ""."""
    from timm.models import is_model  # imports torch

    config = flat.beside.get(CONFIG, {})
    words = (
        config.get("architecture"),
        flat.values.get("arch"),
        flat.setting("args", "model"),
        flat.setting("args", "arch"),
    )
    return next((word for word in words if isinstance(word, str) and is_model(word)), "")


def own_settings(flat: Flat) -> dict[str, dict]:
    """What the source's own package builds its network from: package -> settings, as recorded."""
    beside, backbone = flat.beside.get(CONFIG), flat.openmmlab_setting("model", "backbone")
    settings = {"mmpretrain": backbone, "transformers": beside}
    return {package: dict(found) for package, found in settings.items() if isinstance(found, Mapping) and found}


def hub_config(flat: Flat) -> HubConfig | None:
    """What Hugging Face's settings beside the file say, else transformers' defaults; None for other projects' files."""
    config, processor = (flat.beside.get(name, {}) for name in (CONFIG, PROCESSOR))
    return read_hub_config(flat.tensors, config, processor)


def recorded(
    family: Family, flat: Flat, layout: Layout, checkpoint: Checkpoint, hub: HubConfig | None = None
) -> Recorded:
    """What the file's settings, or else its family's own code, say of the network that shapes do not show.

    `hub`: what `hub_config` says of the file.
    Raises InputError for a network that timm's cannot be, e.g. by its strides.
    """
    preprocess, assumed = _preprocess(family, flat)
    if hub and hub.impossible:
        raise InputError(
            f"{checkpoint.source}: its {CONFIG} says {' and '.join(hub.impossible)}; timm's network, through which "
            "every conversion goes, cannot be so, and its features would be others"
        )
    if hub:
        return Recorded(hub.heads, hub.preprocess, hub.assumed | ({} if hub.preprocess else assumed), hub.options)
    resnet = layout.kind == "resnet"
    strides = _strides(family, flat, layout, checkpoint) if resnet else {}
    heads = None if resnet else _heads(family, flat, checkpoint.state)
    if heads is None and has_mocov3_positions(checkpoint.state):
        heads = 12
    told, of_naming = layout.tells(flat.tensors, checkpoint.source) if layout.tells else ({}, {})
    options = {**family.options.get(layout.name, {}), **told}
    return Recorded(heads, preprocess, strides | assumed | of_naming, options)


def _heads(family: Family, flat: Flat, state: Mapping[str, Tensor]) -> int | None:
    name = flat.openmmlab_setting("model", "backbone", "arch")
    config = _MMPRETRAIN_HEADS.get(name.lower()) if isinstance(name, str) else None
    for number in (
        config or flat.openmmlab_setting("model", "backbone", "arch", "num_heads"),
        flat.setting("args", "model_kwargs", "num_heads"),
        *_lightning_heads(family, flat, state),
    ):
        if type(number) is int:
            return number
    return family.vit_heads


def _lightning_heads(family: Family, flat: Flat, state: Mapping[str, Tensor]) -> Iterator[object]:
    """solo-learn's settings, in the file, flat or under `cfg`, or in the args.json beside it.

    Its MoCo v3 and MAE have ViTs of their own with 12 heads (L: 16), the other methods have timm's.
    """
    wide = "norm.weight" in state and len(state["norm.weight"]) > 768
    places: list[Callable[..., object]] = [
        partial(flat.setting, *root) for root in (("hyper_parameters",), ("hyper_parameters", "cfg"))
    ]
    if family.name == "solo-learn" and isinstance(beside := flat.beside.get("args.json"), Mapping):
        places.append(partial(_entry, beside))
    for setting in places:
        for arguments in (("backbone", "kwargs"), ("backbone_args",)):
            yield setting(*arguments, "num_heads")
        method = setting("method")
        if isinstance(method, str):
            yield 12 if method.lower() in ("mocov3", "mae") and not wide else AS_TIMM


def _entry(settings: object, *path: str) -> object:
    """What lies at a path in nested settings, or None."""
    for name in path:
        settings = settings.get(name) if isinstance(settings, Mapping) else None
    return settings


def _strides(family: Family, flat: Flat, layout: Layout, checkpoint: Checkpoint) -> dict[str, str]:
    """What is assumed of a ResNet's strides, by topic. Raises InputError for recorded ones that no timm ResNet has."""
    bottleneck = any(".conv3." in key for key in checkpoint.state)
    resnets = ("cfg", "MODEL", "RESNETS")
    wrong = []
    if bottleneck and flat.openmmlab_setting("model", "backbone", "style") == "caffe":
        wrong.append("style='caffe' (the 1x1 convolution strides)")
    if bottleneck and flat.setting(*resnets, "STRIDE_IN_1X1") is True:
        wrong.append("STRIDE_IN_1X1 True (the 1x1 convolution strides)")
    for name, usual in (("strides", (1, 2, 2, 2)), ("dilations", (1, 1, 1, 1))):
        given = flat.openmmlab_setting("model", "backbone", name)
        if isinstance(given, list | tuple) and tuple(given) != usual[: len(given)]:
            wrong.append(f"{name}={tuple(given)}")
    dilation = flat.setting(*resnets, "RES5_DILATION")
    if dilation not in (None, 1):
        wrong.append(f"RES5_DILATION {dilation}")
    if wrong:
        raise InputError(
            f"{checkpoint.source}: its recorded settings say {' and '.join(wrong)}; timm's ResNet, through which "
            "every conversion goes, cannot have such strides, and its features would be others"
        )
    if layout.table is RESNET_DETECTRON2:
        unknown, other = flat.setting(*resnets, "STRIDE_IN_1X1") is None, "detectron2's default, STRIDE_IN_1X1 True,"
    else:
        unknown = family.framework == "mmdet" and not flat.openmmlab_setting("model", "backbone")
        other = "mmdet's style='caffe'"
    if not (bottleneck and unknown):
        return {}
    return {
        "strides": "strides are not recorded in the file: in the 3x3 convolutions assumed (timm's, "
        f"torchvision's); {other} puts them in the 1x1, which timm's ResNet cannot"
    }


def _preprocess(family: Family, flat: Flat) -> tuple[dict | None, dict[str, str]]:
    """`Recorded.preprocess`, and what is assumed of it."""
    assumed = {}
    if family.framework == "detectron2":
        mean, std = (
            _pixels(flat.tensors.get(f"pixel_{name}"))
            or _numbers(flat.setting("cfg", "MODEL", f"PIXEL_{name.upper()}"))
            for name in ("mean", "std")
        )
        order = flat.setting("cfg", "INPUT", "FORMAT")
        if mean and std and order not in ("RGB", "BGR"):
            order = "BGR" if mean[0] <= mean[2] else "RGB"
            usual = [255 * value for value in IMAGENET["mean"]][:: -1 if order == "BGR" else 1]
            if any(abs(value - known) > 2 for value, known in zip(mean, usual, strict=True)):
                assumed["color_order"] = (
                    f"colour order is not recorded in the file: {order} assumed, by the order of its pixel means {mean}"
                )
    else:
        mean, std, order = _openmmlab_preprocess(flat)
    if mean and std:
        unit = ([value / 255 for value in values] for values in (mean, std))
        return {**dict(zip(("mean", "std"), unit, strict=True)), "color_order": order}, assumed
    detectron2 = "; detectron2's default is BGR, mean 103.53, 116.28, 123.675, std 1"
    if family.preprocess:
        return dict(family.preprocess), assumed
    text = "preprocessing is not recorded in the file: ImageNet mean and std, RGB assumed"
    return None, {"preprocess": text + detectron2 * (family.detector and family.framework == "detectron2")}


def _openmmlab_preprocess(flat: Flat) -> tuple[list[float] | None, list[float] | None, str]:
    """OpenMMLab's `data_preprocessor`, or the older `img_norm_cfg`; images are loaded BGR."""
    for place in (("model", "data_preprocessor"), ("data_preprocessor",), ("img_norm_cfg",)):
        mean, std, *turned = (flat.openmmlab_setting(*place, name) for name in ("mean", "std", "bgr_to_rgb", "to_rgb"))
        mean, std = _numbers(mean), _numbers(std)
        if mean and std:
            return mean, std, "RGB" if any(turned) else "BGR"
    return None, None, ""


def _pixels(values: Tensor | None) -> list[float] | None:
    return _numbers(values.flatten().tolist()) if values is not None and values.numel() == 3 else None


def _numbers(values: object) -> list[float] | None:
    """Three numbers, or None."""
    if isinstance(values, list | tuple) and len(values) == 3 and all(type(value) in (int, float) for value in values):
        return [float(value) for value in values]
    return None
