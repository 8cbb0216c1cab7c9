"""detectron2: ResNets in its own names, ViTs for ViTDet, other pyramids of timm as the registered backbone.

Loaded through detectron2's own checkpointer, which would only warn about what it cannot use.
"""

from __future__ import annotations

import logging
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.families import Checkpoint
from convert.naming import resnet
from convert.naming.rules import Rule, kind_of
from convert.targets import Outgoing, Target, origin, pixels, refuse_options, refuse_vit_extras, renamed, writing
from sslight.core import compat
from sslight.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

# Models, and where in the detector the source network's tensors lie (the neck's are not in the file).
MODELS = {"fpn": ("backbone.bottom_up.",), "c4": ("backbone.", "roi_heads.res5."), "vitdet": ("backbone.net.",)}
_VITDET = "ViTDet (--model vitdet): class token and final norm dropped; no extra tokens, no layer scale"


class Detectron2(Target):
    name = "detectron2"
    suffixes = (".pth", ".pkl")
    options = ("model",)
    matrix = {
        "ResNet18/34/50/101/152": "own names, --model fpn or c4",
        "MobileNetV2": "registered backbone, --model fpn",
        "MobileNetV2, deeper": "registered backbone, --model fpn",
        "ViT-B": _VITDET,
        "ViT-Ti/S": _VITDET,
        "other timm network": "registered backbone, if it has a pyramid of stages",
    }

    def defaults(self, arch):
        return {"model": "vitdet" if kind_of(arch) == "vit" else "fpn"}

    def rename(self, checkpoint, model):
        arch, kind = checkpoint.arch, checkpoint.kind
        fits = {"fpn": kind != "vit", "c4": kind == "resnet", "vitdet": kind == "vit"}
        if model not in fits:
            raise InputError(f"unknown --model '{model}': use one of {', '.join(MODELS)}")
        if not fits[model]:
            needs = {
                "fpn": "a pyramid of stages; use vitdet",
                "c4": "a ResNet, whose last stage is its box head",
                "vitdet": "a plain ViT",
            }
            raise InputError(f"{arch} cannot go to detectron2's {model}: it needs {needs[model]}")
        start = MODELS[model][0]
        if model == "vitdet":
            return _vitdet_names(checkpoint)
        if kind != "resnet":
            return renamed(checkpoint, (Rule(start + "model.{rest}", "{rest}"),))
        refuse_options(checkpoint, "detectron2's ResNet")
        last = "roi_heads." if model == "c4" else start  # C4 keeps the last stage in the box head
        return renamed(
            checkpoint, resnet.RESNET_DETECTRON2, lambda name: (last if name.startswith("res5.") else start) + name
        )

    def save(self, path, outgoing, checkpoint, picture):
        """`.pkl`: arrays under `model`, and the `__author__` without which the file is taken for Caffe2's."""
        if path.suffix != ".pkl":
            return super().save(path, outgoing, checkpoint, picture)
        import numpy as np

        arrays = {key: np.asarray(value.numpy(), order="C") for key, value in outgoing.tensors.items()}
        with writing(path), open(path, "wb") as file:
            pickle.dump({"model": arrays, "__author__": "sslight"}, file, protocol=4)

    def tensors(self, content):
        return content.get("model", content)

    def expected(self, checkpoint, model):
        return _bottom_up(build(checkpoint, model), model)

    def features(self, path, checkpoint, images, model):
        import torch
        from detectron2.checkpoint import DetectionCheckpointer

        from convert.safe_files import read_file
        from convert.verify import check_loaded

        holder = build(checkpoint, model)
        logging.getLogger("fvcore.common.checkpoint").setLevel(logging.ERROR)  # it lists the neck as missing, rightly
        DetectionCheckpointer(holder).load(str(path))
        check_loaded("detectron2's checkpointer", _bottom_up(holder, model), self.tensors(read_file(path)[0]))
        with torch.no_grad():
            maps = _forward(holder.eval(), checkpoint, model, images)
        return maps, f"loaded by detectron2's DetectionCheckpointer ({model})"

    def reference(self, checkpoint, images, model):
        if model != "vitdet":
            return None
        from convert.verify import TIMM

        return vitdet_features(checkpoint, images), f"{TIMM}, without the class token"

    def snippet(self, out, checkpoint, model):
        """YAML for detectron2's CNNs, Python for ViTDet's LazyConfig."""
        if model == "vitdet":
            return _vitdet_snippet(out, checkpoint), ".py"
        return _yaml_snippet(out, checkpoint, model), ".yaml"


def _vitdet_names(checkpoint: Checkpoint) -> Outgoing:
    """ViTDet keeps positions, patch embedding and blocks. It has no class token and no final norm."""
    refuse_vit_extras(checkpoint, "ViTDet")
    refuse_options(checkpoint, "ViTDet", {"num_heads", "patch_size", "img_size", "no_embed_class", "norm_eps"})
    dropped = [key for key in checkpoint.state if key == "cls_token" or key.startswith("norm.")]
    [start] = MODELS["vitdet"]
    outgoing = renamed(checkpoint, (Rule(start + "{rest}", "{rest}"),), without=dropped)
    return replace(outgoing, dropped={"ViTDet has no class token and no final norm": dropped})


def build(checkpoint: Checkpoint, model: str) -> nn.Module:
    """detectron2's own modules for a network, randomly initialised: `backbone`, and for C4 `roi_heads.res5`."""
    if model == "vitdet":
        return _vitdet(checkpoint)
    return _resnet(checkpoint.arch, model) if checkpoint.kind == "resnet" else _registered(checkpoint)


def _resnet(arch: str, model: str) -> nn.Module:
    from detectron2.config import get_cfg
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.backbone import build_resnet_backbone
    from detectron2.modeling.backbone.fpn import build_resnet_fpn_backbone
    from detectron2.modeling.backbone.resnet import BasicBlock, ResNet
    from detectron2.modeling.roi_heads import Res5ROIHeads
    from torch import nn

    depth = int(arch.removeprefix("resnet"))
    cfg = get_cfg()
    resnets = cfg.MODEL.RESNETS
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    resnets.DEPTH, resnets.NORM, resnets.STRIDE_IN_1X1 = depth, "BN", False
    resnets.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    holder = nn.Module()
    if model == "fpn":
        resnets.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
        holder.backbone = build_resnet_fpn_backbone(cfg, ShapeSpec(channels=3))
        return holder
    resnets.OUT_FEATURES = ["res2", "res3", "res4"]
    holder.backbone = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    holder.roi_heads = nn.Module()
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
        holder.roi_heads.res5, _ = compat.res5_block(Res5ROIHeads, cfg)
    return holder


def _registered(checkpoint: Checkpoint) -> nn.Module:
    from detectron2.config import get_cfg
    from detectron2.layers import ShapeSpec
    from torch import nn

    from convert.targets.detectron2_backbones import add_config, build_timm_fpn_backbone
    from pretrain.backbones import build_backbone, write_options

    cfg = get_cfg()
    add_config(cfg)
    cfg.MODEL.TIMM.ARCH, cfg.MODEL.TIMM.NORM = checkpoint.arch, "BN"
    cfg.MODEL.TIMM.OPTIONS = write_options(checkpoint.options)
    strides = [info["reduction"] for info in build_backbone(checkpoint.arch, **checkpoint.options).feature_info]
    cfg.MODEL.FPN.IN_FEATURES = [f"stage{stride.bit_length() - 1}" for stride in strides if stride >= 4]
    holder = nn.Module()
    holder.backbone = build_timm_fpn_backbone(cfg, ShapeSpec(channels=3))
    return holder


def _vitdet(checkpoint: Checkpoint) -> nn.Module:
    from detectron2.modeling.backbone.vit import ViT
    from torch import nn

    from convert.reader import vit_heads

    state = checkpoint.state
    width, _, _, patch = state["patch_embed.proj.weight"].shape
    positions = state["pos_embed"].shape[1]
    side = int(positions**0.5)
    heads = checkpoint.options.get("num_heads") or vit_heads(checkpoint.arch)
    holder, holder.backbone = nn.Module(), nn.Module()
    holder.backbone.net = ViT(
        img_size=side * patch,
        patch_size=patch,
        embed_dim=width,
        depth=12,
        num_heads=heads,
        norm_layer=partial(nn.LayerNorm, eps=checkpoint.options.get("norm_eps", 1e-6)),
        pretrain_img_size=side * patch,
        pretrain_use_cls_token=positions != side * side,
    )
    return holder


def _bottom_up(holder: nn.Module, model: str) -> dict[str, Tensor]:
    """The holder's tensors that come from the source network."""
    return {key: value for key, value in holder.state_dict().items() if key.startswith(MODELS[model])}


def _forward(holder: Any, checkpoint: Checkpoint, model: str, images: Tensor) -> dict[str, Tensor]:
    from convert.verify import outputs_of, timm_features

    if model == "vitdet":
        blocks = {f"block{number}": block for number, block in enumerate(holder.backbone.net.blocks)}
        with outputs_of(blocks) as seen:
            holder.backbone.net(images)
        return {name: feature.permute(0, 3, 1, 2) for name, feature in seen.items()}
    if checkpoint.kind != "resnet":
        return timm_features(holder.backbone.bottom_up.model, images)
    if model == "c4":
        maps = holder.backbone(images)
        maps["res5"] = holder.roi_heads.res5(maps["res4"])
    else:
        maps = holder.backbone.bottom_up(images)
    return {f"layer{number - 1}": maps[f"res{number}"] for number in range(2, 6)}


def vitdet_features(checkpoint: Checkpoint, images: Tensor) -> dict[str, Tensor]:
    """Block outputs of timm's ViT run without its class token, [N, C, h, w]: what ViTDet computes without windows."""
    import torch

    from convert.reader import network_of

    network = network_of(checkpoint).eval()
    with torch.no_grad():
        tokens = network.patch_embed(images).flatten(1, -2) if network.dynamic_img_size else network.patch_embed(images)
        side = images.shape[-1] // network.patch_embed.patch_size[0]
        tokens = tokens + network.pos_embed[:, -side * side :]
        features = {}
        for number, block in enumerate(network.blocks):
            tokens = block(tokens)
            features[f"block{number}"] = tokens.transpose(1, 2).reshape(len(images), -1, side, side)
    return features


def _yaml_snippet(out: Path, checkpoint: Checkpoint, model: str) -> str:
    from pretrain.backbones import write_options

    mean, std = pixels(checkpoint)
    lines = [
        f"# {origin(checkpoint)} for detectron2 ({model}).",
        f"# Paste it into a COCO recipe ({model.upper()}) below its `_BASE_`, or name this file as the `_BASE_` "
        "of one that sets no WEIGHTS.",
        "MODEL:",
        f'  WEIGHTS: "{out.resolve()}"',
        f"  PIXEL_MEAN: {mean}",
        f"  PIXEL_STD: {std}",
        "  BACKBONE:",
        "    FREEZE_AT: 0",
    ]
    if checkpoint.kind == "resnet":
        depth = int(checkpoint.arch.removeprefix("resnet"))
        features = "[res2, res3, res4, res5]" if model == "fpn" else "[res4]"
        lines += [
            "  RESNETS:",
            f"    DEPTH: {depth}",
            "    NORM: SyncBN",
            "    STRIDE_IN_1X1: False",
            f"    RES2_OUT_CHANNELS: {64 if depth < 50 else 256}",
            f"    OUT_FEATURES: {features}",
        ]
        if model == "fpn":
            lines += ["  FPN:", f"    IN_FEATURES: {features}"]
        elif depth < 50:
            lines += [
                "  ROI_HEADS:",
                "    NAME: Res5ROIHeadsExtraNorm  # of convert.targets.detectron2_backbones: "
                "the stock C4 head knows bottleneck blocks only",
            ]
    else:
        name = checkpoint.arch
        published = name.startswith("mobilenetv2")
        lines[-2:] = [
            "  BACKBONE:",
            "    FREEZE_AT: 0",
            "    NAME: "
            + ("build_mobilenetv2_p4p6_backbone" if published else "build_timm_fpn_backbone")
            + "  # import convert.targets.detectron2_backbones; add_config(cfg)",
            "  TIMM:",
            f"    ARCH: {name}",
            "    NORM: SyncBN",
            *([f'    OPTIONS: "{write_options(checkpoint.options)}"'] if checkpoint.options else []),
            "  FPN:",
            f"    IN_FEATURES: {'[stage4, stage5]' if published else '[stage2, stage3, stage4, stage5]'}",
        ]
        if published:
            lines += [
                "  ANCHOR_GENERATOR:",
                "    SIZES: [[32, 64, 128], [64, 128, 256], [128, 256, 512]]",
                "  RPN:",
                "    IN_FEATURES: [p4, p5, p6]",
                "  ROI_HEADS:",
                "    IN_FEATURES: [p4, p5]",
            ]
    return "\n".join([*lines, "INPUT:", f"  FORMAT: {checkpoint.preprocess['color_order']}", ""])


def _vitdet_snippet(out: Path, checkpoint: Checkpoint) -> str:
    from convert.reader import vit_heads

    mean, std = pixels(checkpoint)
    width, _, _, patch = checkpoint.state["patch_embed.proj.weight"].shape
    positions = checkpoint.state["pos_embed"].shape[1]
    side = int(positions**0.5)
    heads = checkpoint.options.get("num_heads") or vit_heads(checkpoint.arch)
    norm, imports = "", ""
    if "norm_eps" in checkpoint.options:
        imports = "import functools\n\nimport torch\n\n"
        norm = f"    norm_layer=functools.partial(torch.nn.LayerNorm, eps={checkpoint.options['norm_eps']}),\n"
    return f'''# {origin(checkpoint)} for ViTDet: paste into a LazyConfig after its `model` is defined.
{imports}model.backbone.net.update(
    patch_size={patch}, embed_dim={width}, depth=12, num_heads={heads},
    pretrain_img_size={side * patch}, pretrain_use_cls_token={positions != side * side},
{norm})
model.pixel_mean = {mean}
model.pixel_std = {std}
model.input_format = "{checkpoint.preprocess["color_order"]}"
train.init_checkpoint = "{out.resolve()}"
'''


TARGET = Detectron2()
