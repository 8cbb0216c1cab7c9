"""What Hugging Face's `config.json` and `preprocessor_config.json` say of a network that shapes do not show.

Two layouts of `config.json`: timm's (`architecture`, `model_args`, `pretrained_cfg`), also of transformers' wrapper
around timm's networks, and that of transformers' own networks (`model_type`). A file of transformers' names without its
config gets the values that transformers' code has as its defaults, and each is named as an assumption.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "swish": "silu"}  # timm's names of them


@dataclass(frozen=True)
class HubNetwork:
    """A network of transformers' beside timm's of the same tensors.

    types: its `model_type`s. sign: pattern of a key that its files have, from where the network begins.
    eps, act: the settings' names of the norms' epsilon and of the activation, transformers' default, timm's value.
    options: build options that it always has. sized: whether the image size must be known to build timm's network.
    refused: setting -> transformers' default, which is the only value that timm's network can have.
    """

    types: Collection[str]
    sign: str
    eps: tuple[str, float, float] | None = None
    act: tuple[str, str, str] = ("hidden_act", "gelu", "gelu")
    options: Mapping[str, Any] = field(default_factory=dict)
    sized: bool = False
    refused: Mapping[str, Any] = field(default_factory=dict)


def _act(default: str, usual: str) -> tuple[str, str, str]:
    return "hidden_act", default, usual


_EPS, _TENSORFLOW = "layer_norm_eps", {"pad_type": "same"}
# For a file without config the first counts whose sign is there.
NETWORKS = (
    HubNetwork(
        ("mobilenet_v1", "mobilenet_v2"),
        r"conv_stem\.(first_conv\.)?convolution\.weight",
        (_EPS, 1e-3, 1e-5),
        _act("relu6", "relu6"),
        _TENSORFLOW,
        refused={"output_stride": 32},
    ),
    HubNetwork(
        ("resnet",),
        r"embedder\.embedder\..+",
        act=_act("relu", "relu"),
        refused={"downsample_in_bottleneck": False, "downsample_in_first_stage": False},
    ),
    HubNetwork(("regnet",), r"(?!)", act=_act("relu", "relu"), refused={"downsample_in_first_stage": True}),
    HubNetwork(
        ("efficientnet",),
        r"encoder\.top_conv\..+",
        ("batch_norm_eps", 1e-3, 1e-3),
        _act("silu", "silu"),
    ),
    HubNetwork(
        ("convnext", "convnextv2"), r"encoder\.stages\.0\.layers\.0\.dwconv\.weight"
    ),  # its epsilon is the last norm's alone
    HubNetwork(("dinov3_convnext",), r"stages\.0\.downsample_layers\.0\.weight", (_EPS, 1e-6, 1e-6)),
    HubNetwork(("swin",), r"encoder\.layers\.0\.blocks\.0\.layernorm_before\.weight", (_EPS, 1e-5, 1e-5)),
    HubNetwork(
        ("clip_vision_model",),
        r"embeddings\.class_embedding",
        (_EPS, 1e-5, 1e-5),
        _act("quick_gelu", "gelu"),
    ),
    HubNetwork(
        ("siglip_vision_model",),
        r"embeddings\.patch_embedding\..+",
        (_EPS, 1e-6, 1e-6),
        _act("gelu_tanh", "gelu"),
        sized=True,
    ),
    HubNetwork(("dinov2", "dinov2_with_registers"), r"encoder\.layer\.\d+\.layer_scale1\..+", (_EPS, 1e-6, 1e-6)),
    HubNetwork(
        ("dinov3_vit",),
        r"layer\.\d+\.layer_scale1\..+",
        (_EPS, 1e-5, 1e-5),
        refused={"rope_theta": 100.0},
    ),
    HubNetwork(
        ("beit", "data2vec-vision"),
        r"(encoder\.layer|layers)\.0\.lambda_1",
        (_EPS, 1e-12, 1e-6),
        sized=True,
        refused={"use_mean_pooling": True},
    ),
    HubNetwork(("vit_msn",), r"(?!)", (_EPS, 1e-6, 1e-6)),
    HubNetwork(
        ("vit", "vit_mae", "deit", "ijepa"),
        r"(encoder\.layer|layers)\.0\.layernorm_before\.weight",
        (_EPS, 1e-12, 1e-6),
    ),
)


@dataclass(frozen=True)
class HubConfig:
    """What the two files say.

    arch: timm's name, or "". heads: of attention, or None. preprocess: mean, std, color_order
    and perhaps size, or None. assumed: what is assumed instead, by topic. impossible: settings that timm's network
    cannot have.
    """

    arch: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    heads: int | None = None
    preprocess: dict[str, Any] | None = None
    assumed: dict[str, str] = field(default_factory=dict)
    impossible: list[str] = field(default_factory=list)


def read_hub_config(keys: Collection[str], config: Mapping, preprocessor: Mapping) -> HubConfig | None:
    """What the files say of a network, either may be empty; None if they, and the file's `keys`, are of no such one."""
    if isinstance(config.get("architecture"), str):
        return _of_timm(config)
    vision = config.get("vision_config")
    if isinstance(vision, Mapping):  # of a network with a second tower
        config = {"model_type": f"{config.get('model_type')}_vision_model", **vision}
    entry = _entry(keys, config.get("model_type"))
    if entry is None:
        return None
    options, assumed = dict(entry.options), {}
    if not config:
        assumed = {name: _assumed(name, value) for name, value in {**options, **entry.refused}.items()}
    for topic, setting in (("norm_eps", entry.eps), ("act_layer", entry.act)):
        if not setting:
            continue
        name, default, usual = setting
        usual = "silu" if config.get("use_gated_mlp") and topic == "act_layer" else usual  # a gate's own
        value = config.get(name, default)
        value = _ACTIVATIONS.get(value, value) if isinstance(value, str) else value
        if value != usual:
            options[topic] = value
            if name not in config:
                assumed[topic] = _assumed(topic, value)
    if config.get("tf_padding") is False:
        del options["pad_type"]
    if entry.sized and isinstance(config.get("image_size"), int):
        options["img_size"] = config["image_size"]
    heads = config.get("num_attention_heads")
    return HubConfig(
        options=options,
        heads=heads if isinstance(heads, int) else None,
        preprocess=_of_processor(preprocessor),
        assumed=assumed,
        impossible=[
            f"{name}={str(config[name])[:40]}"
            for name, value in entry.refused.items()
            if config.get(name, value) != value
        ],
    )


def _assumed(name: str, value: object) -> str:
    return f"{name} is not recorded in the file: {value} assumed (transformers' default)"


def _entry(keys: Collection[str], kind: object) -> HubNetwork | None:
    if kind:
        return next((entry for entry in NETWORKS if kind in entry.types), None)
    signs = [re.compile(rf"(.+\.)?{entry.sign}") for entry in NETWORKS]
    return next(
        (entry for entry, sign in zip(NETWORKS, signs, strict=True) if any(sign.fullmatch(key) for key in keys)), None
    )


def _of_timm(config: Mapping) -> HubConfig:
    """timm's own layout."""
    options, cfg = config.get("model_args"), config.get("pretrained_cfg")
    options = {
        name: value
        for name, value in (options.items() if isinstance(options, Mapping) else ())
        if name not in ("num_classes", "in_chans") and value is not None  # shapes show these two
    }
    cfg = cfg if isinstance(cfg, Mapping) else config  # older files have no such part
    size = cfg.get("input_size")
    for name, value in options.items():  # timm's ViTs write sizes as two numbers
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            options[name] = value[0]
    if "bn_eps" in options:
        options["norm_eps"] = options.pop("bn_eps")
    return HubConfig(
        arch=config["architecture"],
        options=options,
        preprocess=_preprocess(cfg.get("mean"), cfg.get("std"), size[-1] if isinstance(size, list) and size else None),
    )


def _of_processor(preprocessor: Mapping) -> dict[str, Any] | None:
    """transformers' image processor."""
    mean, std = preprocessor.get("image_mean"), preprocessor.get("image_std")
    if preprocessor.get("do_normalize") is False:
        mean, std = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]
    size = (preprocessor.get("do_center_crop") is not False and preprocessor.get("crop_size")) or preprocessor.get(
        "size"
    )
    if isinstance(size, Mapping):
        size = size.get("height", size.get("shortest_edge"))
    return _preprocess(mean, std, size)


def _preprocess(mean: Any, std: Any, size: object) -> dict[str, Any] | None:
    if not all(isinstance(values, list | tuple) and len(values) == 3 for values in (mean, std)):
        return None
    sized = {"size": size} if type(size) is int else {}
    return {"mean": list(mean), "std": list(std), "color_order": "RGB", **sized}
