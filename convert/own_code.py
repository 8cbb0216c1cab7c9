"""Features of a source computed by its own project's code, where that package is installed.

Everything else here compares timm's networks with timm's: that shows that a target agrees with what was read, not that
the reading is right. A checkpoint in torchvision's names runs in torchvision's network (`convert.verify`); these here
need the settings that their projects keep with the weights.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sslight.core.errors import InputError
from sslight.core.registry import load

if TYPE_CHECKING:
    from convert.families import Checkpoint


def own_feature(checkpoint: Checkpoint, images: Tensor) -> tuple[Tensor, str] | None:
    """The pooled feature [N, C] of the source in its project's own network, and what computed it, in words.

    None where no package is known or installed, or where it builds no such network from the recorded settings: then
    there is nothing to compare with. Raises InputError if the project's network does not take the source's tensors.
    """
    for package, (words, compute) in _PACKAGES.items():
        settings = checkpoint.own.get(package)
        if settings and importlib.util.find_spec(package):
            with _quiet(), torch.no_grad():
                feature = compute(checkpoint, settings, images)
            return None if feature is None else (feature, words)
    return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    said = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        warnings.simplefilter("ignore")
        yield


def _mmpretrain(checkpoint: Checkpoint, settings: Mapping[str, Any], images: Tensor) -> Tensor | None:
    from convert.targets.mmcv_ops import install

    install()
    models = load("mmpretrain.registry:MODELS")
    given = {key: value for key, value in settings.items() if key not in ("init_cfg", "frozen_stages")}
    try:
        network: nn.Module = models.build(given)
    except Exception:  # noqa: BLE001 - the settings are a stranger's, and the registry raises whatever fails
        return None
    _took_all(checkpoint, "mmpretrain", *network.load_state_dict(checkpoint.body, strict=False))
    network.eval()  # returns nothing there
    last = network(images)[-1]
    return last if last.ndim == 2 else last.mean((2, 3)) if last.ndim == 4 else None


def _transformers(checkpoint: Checkpoint, settings: Mapping[str, Any], images: Tensor) -> Tensor | None:
    from transformers import AutoConfig, AutoModel

    kind = str(settings.get("model_type"))
    pooled = _POOLED.get(kind)
    if pooled is None or checkpoint.options.get("global_pool", "token") not in ("token", ""):
        return None
    try:
        network = AutoModel.from_config(
            AutoConfig.for_model(kind, **{key: value for key, value in settings.items() if key != "model_type"})
        )
    except Exception:  # noqa: BLE001 - as above
        return None
    network, report = type(network).from_pretrained(  # which knows the names of each of its versions
        None, config=network.config, state_dict=dict(checkpoint.body), output_loading_info=True
    )
    _took_all(checkpoint, "transformers", report["missing_keys"], report["unexpected_keys"])
    return pooled(network.float().eval()(pixel_values=images))


def _class_token(output: Any) -> Tensor:
    return output.last_hidden_state[:, 0]


def _pooler(output: Any) -> Tensor:
    return output.pooler_output.flatten(1)


# `model_type` of transformers whose pooled feature timm's network gives, too.
_POOLED: dict[str, Callable[[Any], Tensor]] = {
    "vit": _class_token,
    "vit_msn": _class_token,
    "dinov2": _class_token,
    "dinov2_with_registers": _class_token,
    "dinov3_vit": _class_token,
    "resnet": _pooler,
    "regnet": _pooler,
    "mobilenet_v1": _pooler,
    "mobilenet_v2": _pooler,
    "efficientnet": _pooler,
    "convnext": _pooler,
    "convnextv2": _pooler,
    "dinov3_convnext": _pooler,
    "swin": _pooler,
}
# Heads and tokens of these networks that no feature depends on.
_SPARE = ("pooler.", "embeddings.mask_token", "num_batches_tracked")


def _took_all(checkpoint: Checkpoint, package: str, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Raise InputError unless the project's network took all of the source's tensors, and misses none."""
    lost = [key for key in missing if not any(part in key for part in _SPARE)]
    unknown = list(unexpected)
    if lost or unknown:
        raise InputError(
            f"{checkpoint.source}: {package}'s own network, built from the recorded settings, does not take the "
            f"tensors: missing {', '.join(lost[:3]) or 'none'}; unexpected {', '.join(unknown[:3]) or 'none'}"
        )


_PACKAGES: dict[str, tuple[str, Callable[[Checkpoint, Mapping[str, Any], Tensor], Tensor | None]]] = {
    "mmpretrain": ("mmpretrain's own network", _mmpretrain),
    "transformers": ("transformers' own network", _transformers),
}
