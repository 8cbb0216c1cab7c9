"""The only place where a backbone is defined: timm's networks, with the published initialisation.

Everything else (pre-training, conversion, evaluation, the detectors' registered backbones) asks here for a network,
its feature width and its stage outputs, and speaks timm's names.
"""

from __future__ import annotations

import ast
import functools
import inspect
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import FrozenBatchNormAct2d, RmsNorm, RmsNorm2d, to_2tuple
from timm.models import is_model, list_models, model_entrypoint
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from sslight.core import compat
from sslight.core.config import literal
from sslight.core.errors import InputError, nearest

if TYPE_CHECKING:

    class Backbone(nn.Module):
        """What `build_backbone` returns: timm's network, whose further members depend on the architecture."""

        arch: str
        feature_dim: int
        pos_resize: str  # of a ViT

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...

else:
    Backbone = nn.Module

# The published system's names, and short ones for the ViT family.
ALIASES = {
    "mobilenet_v2": "mobilenetv2_100",
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
}

# Per timm module: what makes its networks start, and accept image sizes, as the published ones do.
_OPTIONS = {
    "resnet": {"zero_init_last": False},  # torchvision's initialisation keeps the residual branch's last norm at 1
    "vision_transformer": {"dynamic_img_size": True},  # multi-crop feeds several image sizes
    "deit": {"dynamic_img_size": True},
    "eva": {"dynamic_img_size": True},
}
# Layers whose epsilon `norm_eps` sets, the one build option that is ours.
_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.SyncBatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    RmsNorm,
    RmsNorm2d,
    FrozenBatchNormAct2d,
)
_NOT_OPTIONS = {"num_classes", "in_chans", "device", "dtype"}  # fixed here: three channels in, features out
_MOST = 16384  # of a whole number among the options: none is larger in any network, and a million blocks take hours

# How a ViT's positions are resized for images of another size than its own.
POS_RESIZE = {
    "published": "bicubic without antialiasing, scale (n + 0.1) / own n, as DINO and SSLight train",
    "timm": "timm's antialiased bicubic",
}


def canonical_arch(name: str) -> str:
    """timm's name for `name`, an alias or a timm name. Raises InputError naming the nearest known one."""
    arch = ALIASES.get(name, name)
    if not is_model(arch):
        known = [*ALIASES, *list_models()]
        raise InputError(
            f"unknown backbone '{name}'{nearest(name, known)}: use one of {', '.join(ALIASES)}, "
            "resnet18, resnet34, resnet50, or any name of timm.list_models()"
        )
    return arch


def build_backbone(arch: str, drop_path_rate: float = 0.0, pos_resize: str = "timm", **options) -> Backbone:
    """A randomly initialised network without classifier: images [N, 3, H, W] -> pooled features [N, feature_dim].

    Parameters
    ----------
    arch: an alias or a timm name.
    drop_path_rate: stochastic depth, rising linearly over the blocks (ViT).
    pos_resize: one of POS_RESIZE (ViT).
    options: further arguments of the timm network, and `norm_eps`.

    Raises InputError for an unknown name, as `check_options` does, or for a network that has no pooled feature. The
    result carries `arch` (timm's name), `feature_dim` (int) and, for a ViT, `pos_resize`.
    """
    arch = canonical_arch(arch)
    check_options(arch, options)
    model = _create(arch, **(options | {"drop_path_rate": drop_path_rate} if drop_path_rate else options))
    if arch.startswith("mobilenetv2"):
        _init_mobilenet_v2(model)
    if isinstance(model, VisionTransformer) and model.cls_token is not None:
        nn.init.normal_(model.cls_token, std=0.02)  # as the positions; timm's starts with 1e-6
    set_pos_resize(model, pos_resize)
    model.arch = arch
    model.feature_dim = _pooled_width(arch, repr(sorted(options.items())))
    return model


def backbone_shapes(arch: str, num_classes: int = 0, **options) -> dict[str, tuple[int, ...]]:
    """Every name and shape of a backbone's state dict, in its order; nothing is allocated or computed.

    `num_classes` above 0: of the network with its classifier. Raises InputError for an unknown name or options that
    timm does not build the network with.
    """
    state = meta_backbone(arch, num_classes, **options).state_dict()
    return {key: tuple(value.shape) for key, value in state.items()}


def meta_backbone(arch: str, num_classes: int = 0, **options) -> Backbone:
    """timm's network without memory for its tensors, made once; raises as `backbone_shapes`. Not to be changed."""
    return _meta(canonical_arch(arch), num_classes, repr(sorted(options.items())))


@functools.lru_cache(maxsize=64)
def _meta(arch: str, num_classes: int, options: str) -> Backbone:
    given = dict(ast.literal_eval(options))
    try:
        with torch.device("meta"):
            return _create(arch, num_classes, **given)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - timm checks its arguments with whatever fails first
        if not given:
            raise
        raise InputError(_refusal(arch, given, error)) from None


def _refusal(arch: str, options: Mapping, error: Exception) -> str:
    having = f" with {write_options(options)}" if options else ""
    return f"timm builds no {arch}{having} ({type(error).__name__}: {' '.join(str(error).split())[:120]})"


def read_options(words: Iterable[str]) -> dict[str, Any]:
    """Build options from words such as `num_heads=12`. Raises InputError for a word that is not KEY=VALUE."""
    options = {}
    for word in words:
        key, equals, value = word.partition("=")  # an empty value is an empty word, as timm's default of pad_type
        if not (key.isidentifier() and equals) or key in options:
            raise InputError(f"'{word}' is no build option: write each once as KEY=VALUE, e.g. num_heads=12")
        options[key] = literal(value)
    return options


def write_options(options: Mapping[str, object]) -> str:
    """Build options as the words, with spaces between, that `read_options` takes."""
    return " ".join(f"{key}={value}" for key, value in options.items())


def check_options(arch: str, options: Mapping[str, Any]) -> None:
    """Raise InputError unless timm's network has each of these options, builds with these values, and takes images.

    The options of a network are the arguments of its class that are a number, a truth value or a word, and `norm_eps`.
    """
    if not options:
        return
    arch = canonical_arch(arch)
    known = {
        parameter.name: parameter.default
        for parameter in _parameters(type(meta_backbone(arch)))
        if parameter.name not in _NOT_OPTIONS
        and (parameter.default is None or isinstance(parameter.default, bool | int | float | str))
    } | {"norm_eps": 1e-5}
    for key, value in options.items():
        if key not in known:
            raise InputError(f"{arch} has no build option '{key}'{nearest(key, known)}: timm's has {', '.join(known)}")
        wanted = _wanted(value, known[key])
        if key == "pad_type" and value not in ("", "same"):
            wanted = "same (TensorFlow's) or nothing (symmetric)"  # timm would take any word for the latter
        if wanted:
            raise InputError(f"{arch} cannot be built with {key}={value}: {key} expects {wanted}")
    _pooled_width(arch, repr(sorted(options.items())))


def _parameters(network: type) -> list[inspect.Parameter]:
    """The arguments of a network's class, and of those classes that it hands the rest of its arguments on to."""
    parameters: dict[str, inspect.Parameter] = {}
    for base in network.__mro__:
        own = inspect.signature(base.__init__).parameters  # type: ignore[misc]
        parameters = {**own, **parameters}
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in own.values()):
            break
    return list(parameters.values())


def _wanted(value: object, default: object) -> str:
    """What an option of this default takes, if not this value: its type, and for numbers a usable size."""
    least = 0 if default is None or default == 0 else 1 if isinstance(default, int) else 1e-15
    if isinstance(default, bool) or default is None and isinstance(value, bool):
        return "" if isinstance(value, bool) else "True or False"
    if isinstance(default, str) or default is None and isinstance(value, str):
        return "" if isinstance(value, str) else "a word"
    whole = isinstance(default, int)
    suits = isinstance(value, int if whole else int | float) and not isinstance(value, bool) and least <= value <= _MOST
    return "" if suits else f"a {'whole ' * whole}number from {least:g} to {_MOST}"


def _create(arch: str, num_classes: int = 0, **options) -> Backbone:
    """timm's network, with the options that its module gets here, and its norms' epsilon."""
    norm_eps = options.pop("norm_eps", None)
    module = model_entrypoint(arch).__module__.rsplit(".", 1)[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm announces renamed variants; the name in use is written to every file
        network: Any = timm.create_model(
            arch, pretrained=False, num_classes=num_classes, **{**_OPTIONS.get(module, {}), **options}
        )
    if norm_eps is not None:
        set_norm_eps(network, norm_eps)
    return network


def norms_of(model: nn.Module) -> list[Any]:
    """The norm layers of a network, those that have an epsilon."""
    return [module for module in model.modules() if isinstance(module, _NORMS)]


def set_norm_eps(model: nn.Module, eps: float) -> None:
    """Give every norm layer of a network this epsilon. Raises InputError where it has none."""
    norms = norms_of(model)
    if not norms:
        raise InputError(f"a {type(model).__name__} has no norm layers: leave norm_eps out")
    for norm in norms:
        norm.eps = eps


def _init_mobilenet_v2(model: nn.Module) -> None:
    """Kaiming fan-out convolutions and zero biases, as torchvision's; timm divides the fan-out by the groups."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def set_pos_resize(model: Backbone, how: str) -> None:
    """Choose how a ViT of timm resizes its positions, one of POS_RESIZE; other networks have nothing to choose.

    Raises InputError for another name.
    """
    if how not in POS_RESIZE:
        raise InputError(
            f"MODEL.POS_RESIZE '{how}'{nearest(how, POS_RESIZE)}: use "
            + " or ".join(f"{name} ({text})" for name, text in POS_RESIZE.items())
        )
    if isinstance(model, VisionTransformer) and model.pos_embed is not None and model.dynamic_img_size:
        model.pos_resize = how
        compat.set_pos_embed(model, _add_published_positions if how == "published" else None)


def _add_published_positions(model: Backbone, patches: Tensor) -> Tensor:
    """timm's `VisionTransformer._pos_embed` with positions resized as published: [N, h, w, C] -> tokens [N, L, C]."""
    positions, grid, own = model.pos_embed, patches.shape[1:3], model.patch_embed.grid_size
    if tuple(grid) != tuple(own):
        kept = 0 if model.no_embed_class else model.num_prefix_tokens
        maps = positions[:, kept:].unflatten(1, tuple(own)).permute(0, 3, 1, 2)
        # the 0.1 is DINO's, against rounding down; it shifts the sampling a little
        maps = F.interpolate(maps, scale_factor=[(n + 0.1) / m for n, m in zip(grid, own, strict=True)], mode="bicubic")
        positions = torch.cat([positions[:, :kept], maps.permute(0, 2, 3, 1).flatten(1, 2)], 1)
    tokens = [model.cls_token, model.reg_token, getattr(model, "dist_token", None)]
    prefix = [token.expand(len(patches), -1, -1) for token in tokens if token is not None]
    patches = patches.flatten(1, 2)
    if model.no_embed_class:
        return model.pos_drop(torch.cat([*prefix, patches + positions], 1))
    return model.pos_drop(torch.cat([*prefix, patches], 1) + positions)


def own_size(model: Backbone) -> tuple[int, int]:
    """Height and width, in pixels, of the images that a network is built for: of a ViT whole patches."""
    patches = getattr(model, "patch_embed", None)  # options may differ from the default
    sides = getattr(patches, "img_size", None) or model.default_cfg.get("input_size", (3, 224, 224))[1:]
    patch = to_2tuple(getattr(patches, "patch_size", 1))
    return sides[0] - sides[0] % patch[0], sides[1] - sides[1] % patch[1]


@functools.lru_cache(maxsize=256)
@torch.no_grad()
def _pooled_width(arch: str, options: str) -> int:
    """Width of the pooled feature, seen on the output for an image of the network's own size, without its numbers.

    `options` as `_meta` takes them. Raises InputError where it has none.
    """
    model = _meta(arch, 0, options)
    try:
        with torch.device("meta"):
            feature = model.eval()(torch.zeros(1, 3, *own_size(model)))
    except Exception as error:  # noqa: BLE001 - each of timm's families has its own way
        raise InputError(_refusal(arch, ast.literal_eval(options), error)) from None
    finally:
        model.train()
    if not isinstance(feature, Tensor) or feature.ndim != 2:
        shape = list(feature.shape) if isinstance(feature, Tensor) else type(feature).__name__
        raise InputError(
            f"backbone '{arch}' has no pooled feature (its output is {shape}, not [N, width]): "
            "choose a network with global pooling"
        )
    return feature.shape[1]


def stage_features(model: Backbone, images: Tensor) -> list[Tensor]:
    """Feature maps of every stage, [N, C, h, w], from high to low resolution (ViT: of every block, before the norm)."""
    return model.forward_intermediates(images, intermediates_only=True)
