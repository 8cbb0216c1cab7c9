"""mmdet: its own ResNet and MobileNetV2, other pyramids of timm as the registered `TimmBackbone`.

Loaded through mmdet's own `Pretrained` init, which would only warn about what it cannot use.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from convert.naming import mobilenet, resnet
from convert.naming.rules import Rule, kind_of
from convert.targets import Target, origin, pixels, refuse_options, renamed

if TYPE_CHECKING:
    from torch import nn

_NO_VIT = "no: mmdet has no plain ViT"


class Mmdet(Target):
    name = "mmdet"
    suffixes = (".pth", ".pt")
    options = ("prefix",)
    matrix = {
        "ResNet18/34/50/101/152": "own names",
        "MobileNetV2": "own names",
        "MobileNetV2, deeper": "registered backbone",
        "ViT-B": _NO_VIT,
        "ViT-Ti/S": _NO_VIT,
        "other timm network": "registered backbone, if it has a pyramid of stages",
    }

    def rename(self, checkpoint, prefix=""):
        if _own(checkpoint.arch, checkpoint.kind):
            refuse_options(checkpoint, "mmdet's own network")
            tables = {"resnet": resnet.RESNET_TIMM, "mobilenetv2": mobilenet.MOBILENET_OPENMMLAB}
            table = tables[checkpoint.kind]
        else:
            table = (Rule("model.{rest}", "{rest}"),)
        return renamed(checkpoint, table, lambda name: prefix + name)

    def content(self, tensors):
        return {"state_dict": tensors}

    def tensors(self, content):
        return content["state_dict"]

    def expected(self, checkpoint, prefix=""):
        return build(checkpoint.arch, options=checkpoint.options).state_dict()

    def features(self, path, checkpoint, images, prefix=""):
        import torch

        from convert.verify import check_loaded, timm_features

        arch = checkpoint.arch
        init = {"type": "Pretrained", "checkpoint": str(path), **({"prefix": prefix} if prefix else {})}
        backbone: Any = build(arch, init, checkpoint.options)
        with quiet():
            backbone.init_weights()
        tensors = self.tensors(torch.load(path, map_location="cpu", weights_only=True))
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
        check_loaded("mmdet's Pretrained init", backbone.state_dict(), tensors)
        backbone.eval()  # mmdet's eval() returns None on some backbones: no chaining
        how = f"loaded by mmdet's {type(backbone).__name__} through init_cfg=dict(type='Pretrained', ...)"
        if not _own(arch, checkpoint.kind):
            return timm_features(backbone.model, images), how
        mobilenet = [*(f"blocks.{number}" for number in range(7)), "last conv"]
        stages = [f"layer{number}" for number in range(1, 5)] if checkpoint.kind == "resnet" else mobilenet
        with torch.no_grad():
            return dict(zip(stages, backbone(images), strict=True)), how

    def snippet(self, out, checkpoint, prefix=""):
        mean, std = pixels(checkpoint)
        arch, kind = checkpoint.arch, checkpoint.kind
        imports = ""
        if not _own(arch, kind):
            imports = "custom_imports = dict(imports=['convert.targets.mmdet_backbones'], allow_failed_imports=False)\n"
            lines = [f"type='TimmBackbone', arch='{arch}', out_indices=(1, 2, 3, 4)", "norm_cfg=dict(type='SyncBN')"]
            lines += [f"options={checkpoint.options}"] if checkpoint.options else []
        else:
            lines = ["frozen_stages=-1, norm_eval=False, norm_cfg=dict(type='SyncBN', requires_grad=True)"]
            if kind == "resnet":
                depth = int(arch.removeprefix("resnet"))
                lines.insert(0, f"type='ResNet', depth={depth}, num_stages=4, style='pytorch'")
                lines.insert(1, "out_indices=(0, 1, 2, 3)")
            else:
                lines.insert(0, f"type='MobileNetV2', widen_factor={int(arch[-3:]) / 100}, out_indices=(1, 2, 4, 7)")
        start = f", prefix='{prefix}'" if prefix else ""
        lines.append(f"init_cfg=dict(type='Pretrained', checkpoint='{out.resolve()}'{start})")
        backbone = "".join(f"        {line},\n" for line in lines)
        text = f"""# {origin(checkpoint)} for mmdet: a whole config; name your own recipe as `_base_`, or paste from it.
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
{imports}model = dict(
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean={mean}, std={std},
        bgr_to_rgb={checkpoint.preprocess["color_order"] == "RGB"}, pad_mask=True, pad_size_divisor=32),
    backbone=dict(
        _delete_=True,
{backbone}    ),
    neck=dict(in_channels={_pyramid_channels(checkpoint)}))
"""
        return text, ".py"


def _own(arch: str, kind: str | None) -> bool:
    """Whether mmdet itself has this network; others go to the registered timm backbone."""
    return kind in ("resnet", "mobilenetv2") and not arch.endswith("d")


def backbone_config(arch: str, options: dict) -> dict:
    """mmdet's config of the backbone: every stage returned, nothing frozen, batch norm in train mode."""
    from pretrain.backbones import build_backbone

    kind = kind_of(arch)
    if not _own(arch, kind):
        stages = len(build_backbone(arch, **options).feature_info)
        return {"type": "TimmBackbone", "arch": arch, "out_indices": tuple(range(stages)), "options": options}
    shared = {"frozen_stages": -1, "norm_cfg": {"type": "BN"}, "norm_eval": False}
    if kind == "resnet":
        return {
            "type": "ResNet",
            "depth": int(arch.removeprefix("resnet")),
            "out_indices": (0, 1, 2, 3),
            "style": "pytorch",
            **shared,
        }
    return {"type": "MobileNetV2", "widen_factor": int(arch[-3:]) / 100, "out_indices": tuple(range(8)), **shared}


def build(arch: str, init: dict | None = None, options: dict | None = None) -> nn.Module:
    """mmdet's backbone of an architecture; `options` are timm's, of a registered one."""
    from convert.targets.mmcv_ops import install

    install()
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules

    from convert.targets import mmdet_backbones  # noqa: F401 - registers TimmBackbone

    register_all_modules(init_default_scope=True)
    return MODELS.build({**backbone_config(arch, options or {}), "init_cfg": init})


@contextmanager
def quiet() -> Iterator[None]:
    """mmengine prints one line per initialised tensor."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _pyramid_channels(checkpoint) -> list[int]:
    """Channels of the four maps that the snippet's `out_indices` choose."""
    from pretrain.backbones import build_backbone

    state, kind = checkpoint.state, checkpoint.kind
    if not _own(checkpoint.arch, kind):
        return [info["num_chs"] for info in build_backbone(checkpoint.arch, **checkpoint.options).feature_info][1:5]
    if kind == "resnet":
        last = "conv3" if "layer1.0.conv3.weight" in state else "conv2"
        return [state[f"layer{stage}.0.{last}.weight"].shape[0] for stage in range(1, 5)]
    maps = [f"blocks.{stage}.0.conv_pwl.weight" for stage in (1, 2, 4)]
    return [state[key].shape[0] for key in (*maps, "conv_head.weight")]


TARGET = Mmdet()
