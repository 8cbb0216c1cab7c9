"""detectron2 itself loads the file, through its own checkpointer, which would only warn about what it cannot use."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convert.architectures import vit_heads
from convert.features import outputs_of, timm_features
from convert.reader import Checkpoint
from convert.support import kind_of
from convert.targets.names import default_model


class Holder(nn.Module):
    """The parts of a detector that a backbone file fills, under the detector's own names."""

    backbone: Any
    roi_heads: Any


def build(checkpoint: Checkpoint, model: str) -> Holder:
    """detectron2's own modules for a network, randomly initialised: `backbone`, and for C4 `roi_heads.res5`."""
    if model == "vitdet":
        return _vitdet(checkpoint)
    return _resnet(checkpoint.arch, model) if kind_of(checkpoint.arch) == "resnet" else _registered(checkpoint)


def _resnet(arch: str, model: str) -> Holder:
    from detectron2.config import get_cfg
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.backbone import build_resnet_backbone
    from detectron2.modeling.backbone.fpn import build_resnet_fpn_backbone
    from detectron2.modeling.backbone.resnet import BasicBlock, ResNet
    from detectron2.modeling.roi_heads import Res5ROIHeads

    depth = int(arch.removeprefix("resnet"))
    cfg = get_cfg()
    resnets = cfg.MODEL.RESNETS
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    resnets.DEPTH, resnets.NORM, resnets.STRIDE_IN_1X1 = depth, "BN", False
    resnets.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    holder = Holder()
    if model == "fpn":
        resnets.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
        holder.backbone = build_resnet_fpn_backbone(cfg, ShapeSpec(channels=3))
        return holder
    resnets.OUT_FEATURES = ["res2", "res3", "res4"]
    holder.backbone = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    holder.roi_heads = Holder()
    if depth < 50:  # the stock C4 head knows bottleneck blocks only
        blocks = {18: 2, 34: 3}[depth]
        holder.roi_heads.res5 = nn.Sequential(
            *ResNet.make_stage(
                BasicBlock,
                blocks,
                stride_per_block=[2] + [1] * (blocks - 1),
                in_channels=256,
                out_channels=512,
                norm="BN",
            )
        )
    else:
        holder.roi_heads.res5, _ = Res5ROIHeads._build_res5_block(cfg)
    return holder


def _registered(checkpoint: Checkpoint) -> Holder:
    from detectron2.config import get_cfg
    from detectron2.layers import ShapeSpec

    from convert.targets.detectron2_backbones import add_config, build_timm_fpn_backbone
    from pretrain.backbones import build_backbone, write_options

    cfg = get_cfg()
    add_config(cfg)
    cfg.MODEL.TIMM.ARCH, cfg.MODEL.TIMM.NORM = checkpoint.arch, "BN"
    cfg.MODEL.TIMM.OPTIONS = write_options(checkpoint.options)
    strides = [info["reduction"] for info in build_backbone(checkpoint.arch, **checkpoint.options).feature_info]
    cfg.MODEL.FPN.IN_FEATURES = [f"stage{stride.bit_length() - 1}" for stride in strides if stride >= 4]
    holder = Holder()
    holder.backbone = build_timm_fpn_backbone(cfg, ShapeSpec(channels=3))
    return holder


def _vitdet(checkpoint: Checkpoint) -> Holder:
    from detectron2.modeling.backbone.vit import ViT

    state = checkpoint.state
    width, _, _, patch = state["patch_embed.proj.weight"].shape
    positions = state["pos_embed"].shape[1]
    side = int(positions**0.5)
    heads = checkpoint.options.get("num_heads") or vit_heads(checkpoint.arch)
    holder, holder.backbone = Holder(), Holder()
    holder.backbone.net = ViT(
        img_size=side * patch,
        patch_size=patch,
        embed_dim=width,
        depth=12,
        num_heads=heads,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        pretrain_img_size=side * patch,
        pretrain_use_cls_token=positions != side * side,
    )
    return holder


def _bottom_up(holder: Holder, model: str) -> dict[str, Tensor]:
    """The holder's tensors that come from the source network (the neck's are not in the file)."""
    starts = {"fpn": ("backbone.bottom_up.",), "c4": ("backbone.", "roi_heads.res5."), "vitdet": ("backbone.net.",)}[
        model
    ]
    return {key: value for key, value in holder.state_dict().items() if key.startswith(starts)}


def expected_list(checkpoint: Checkpoint, model: str | None) -> dict[str, tuple]:
    """Names and shapes of detectron2's modules."""
    model = default_model(checkpoint.arch, model)
    return {key: tuple(value.shape) for key, value in _bottom_up(build(checkpoint, model), model).items()}


def features(
    path: Path, checkpoint: Checkpoint, images: Tensor, *, model: str | None = None, **_
) -> tuple[dict[str, Tensor], str]:
    """Stage features of detectron2's modules after its checkpointer read the file, and what was done."""
    from detectron2.checkpoint import DetectionCheckpointer

    from convert.safe_files import read_file
    from convert.verify import check_loaded

    model = default_model(checkpoint.arch, model)
    holder = build(checkpoint, model)
    logging.getLogger("fvcore.common.checkpoint").setLevel(logging.ERROR)  # it lists the neck as missing, rightly
    DetectionCheckpointer(holder).load(str(path))
    content = read_file(path)[0]
    check_loaded("detectron2's checkpointer", _bottom_up(holder, model), content.get("model", content))
    with torch.no_grad():
        return _forward(
            holder.eval(), checkpoint, model, images
        ), f"loaded by detectron2's DetectionCheckpointer ({model})"


def _forward(holder: Holder, checkpoint: Checkpoint, model: str, images: Tensor) -> dict[str, Tensor]:
    if model == "vitdet":
        blocks = {f"block{number}": block for number, block in enumerate(holder.backbone.net.blocks)}
        with outputs_of(blocks) as seen:
            holder.backbone.net(images)
        return {name: feature.permute(0, 3, 1, 2) for name, feature in seen.items()}
    if kind_of(checkpoint.arch) != "resnet":
        return timm_features(holder.backbone.bottom_up.model, images)
    if model == "c4":
        maps = holder.backbone(images)
        maps["res5"] = holder.roi_heads.res5(maps["res4"])
    else:
        maps = holder.backbone.bottom_up(images)
    return {f"layer{number - 1}": maps[f"res{number}"] for number in range(2, 6)}
