"""The config beside the file that feeds the network right: colours, mean and std, strides, norms, frozen stages."""

from __future__ import annotations

from pathlib import Path

from convert.architectures import vit_heads
from convert.reader import Checkpoint
from convert.support import kind_of
from convert.targets.names import default_model, openmmlab_names
from pretrain.backbones import build_backbone, write_options

SUFFIX = {"timm": ".py", "torchvision": ".py", "mmdet": ".py", "onnx": ".py"}


def snippet_path(out: Path, to: str, arch_is_vit: bool) -> Path:
    """The snippet's file: beside `out`, with the same stem. YAML for detectron2's CNNs, Python otherwise."""
    return out.with_suffix(SUFFIX.get(to, ".py" if arch_is_vit else ".yaml"))


def snippet(out: Path, checkpoint: Checkpoint, to: str, model: str | None = None, prefix: str = "") -> str:
    """The text of the config snippet for the file `out`."""
    if to == "detectron2":
        model = default_model(checkpoint.arch, model)
        return _vitdet(out, checkpoint) if model == "vitdet" else _detectron2(out, checkpoint, model)
    return {"timm": _timm, "torchvision": _torchvision, "mmdet": _mmdet, "onnx": _onnx}[to](out, checkpoint, prefix)


def _pixels(checkpoint: Checkpoint) -> tuple[list[float], list[float]]:
    """Mean and std on the 0..255 scale of both detection frameworks, in the network's order of channels."""
    preprocess = checkpoint.preprocess
    mean, std = ([round(255 * value, 4) for value in preprocess[name]] for name in ("mean", "std"))
    return mean, std


def _origin(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.arch}, {checkpoint.method} ({checkpoint.family}, network {checkpoint.network})"


def _detectron2(out: Path, checkpoint: Checkpoint, model: str) -> str:
    mean, std = _pixels(checkpoint)
    lines = [
        f"# {_origin(checkpoint)} for detectron2 ({model}).",
        f"# Paste it into a COCO recipe ({model.upper()}) below its `_BASE_`, or name this file as the `_BASE_` "
        "of one that sets no WEIGHTS.",
        "MODEL:",
        f'  WEIGHTS: "{out.resolve()}"',
        f"  PIXEL_MEAN: {mean}",
        f"  PIXEL_STD: {std}",
        "  BACKBONE:",
        "    FREEZE_AT: 0",
    ]
    if kind_of(checkpoint.arch) == "resnet":
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


def _vitdet(out: Path, checkpoint: Checkpoint) -> str:
    mean, std = _pixels(checkpoint)
    width, _, _, patch = checkpoint.state["patch_embed.proj.weight"].shape
    positions = checkpoint.state["pos_embed"].shape[1]
    side = int(positions**0.5)
    heads = checkpoint.options.get("num_heads") or vit_heads(checkpoint.arch)
    return f'''# {_origin(checkpoint)} for ViTDet: paste into a LazyConfig after its `model` is defined.
model.backbone.net.update(
    patch_size={patch}, embed_dim={width}, depth=12, num_heads={heads},
    pretrain_img_size={side * patch}, pretrain_use_cls_token={positions != side * side},
)
model.pixel_mean = {mean}
model.pixel_std = {std}
model.input_format = "{checkpoint.preprocess["color_order"]}"
train.init_checkpoint = "{out.resolve()}"
'''


def _mmdet(out: Path, checkpoint: Checkpoint, prefix: str) -> str:
    mean, std = _pixels(checkpoint)
    arch, kind = checkpoint.arch, kind_of(checkpoint.arch)
    imports = ""
    if not openmmlab_names(arch):
        imports = "custom_imports = dict(imports=['convert.targets.mmdet_backbones'], allow_failed_imports=False)\n"
        lines = [f"type='TimmBackbone', arch='{arch}', out_indices=(1, 2, 3, 4)", "norm_cfg=dict(type='SyncBN')"]
        lines += [f"options={checkpoint.options}"] if checkpoint.options else []
    else:
        lines = ["frozen_stages=-1, norm_eval=False, norm_cfg=dict(type='SyncBN', requires_grad=True)"]
        if kind == "resnet":
            lines.insert(0, f"type='ResNet', depth={int(arch.removeprefix('resnet'))}, num_stages=4, style='pytorch'")
            lines.insert(1, "out_indices=(0, 1, 2, 3)")
        else:
            lines.insert(0, f"type='MobileNetV2', widen_factor={int(arch[-3:]) / 100}, out_indices=(1, 2, 4, 7)")
    start = f", prefix='{prefix}'" if prefix else ""
    lines.append(f"init_cfg=dict(type='Pretrained', checkpoint='{out.resolve()}'{start})")
    backbone = "".join(f"        {line},\n" for line in lines)
    return f"""# {_origin(checkpoint)} for mmdet: a whole config; name your own recipe as `_base_`, or paste from it.
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


def _pyramid_channels(checkpoint: Checkpoint) -> list[int]:
    """Channels of the four maps that the snippet's `out_indices` choose."""
    state, kind = checkpoint.state, kind_of(checkpoint.arch)
    if not openmmlab_names(checkpoint.arch):
        return [info["num_chs"] for info in build_backbone(checkpoint.arch, **checkpoint.options).feature_info][1:5]
    if kind == "resnet":
        last = "conv3" if "layer1.0.conv3.weight" in state else "conv2"
        return [state[f"layer{stage}.0.{last}.weight"].shape[0] for stage in range(1, 5)]
    maps = [f"blocks.{stage}.0.conv_pwl.weight" for stage in (1, 2, 4)]
    return [state[key].shape[0] for key in (*maps, "conv_head.weight")]


def _transform(checkpoint: Checkpoint) -> str:
    preprocess = checkpoint.preprocess
    turn = "    transforms.Lambda(lambda image: image.flip(0)),  # to BGR\n" * (preprocess["color_order"] == "BGR")
    return f"""transform = transforms.Compose([
    transforms.Resize({round(preprocess["size"] * 256 / 224)}, transforms.InterpolationMode.BICUBIC),
    transforms.CenterCrop({preprocess["size"]}),
    transforms.ToTensor(),  # RGB, 0..1
{turn}    transforms.Normalize(mean={list(preprocess["mean"])}, std={list(preprocess["std"])}),
])
"""


def _timm(out: Path, checkpoint: Checkpoint, _: str) -> str:
    options = "".join(f", {key}={value!r}" for key, value in checkpoint.options.items())
    return f'''# {_origin(checkpoint)} for timm.
import timm
from torchvision import transforms

model = timm.create_model("{checkpoint.arch}", num_classes=0, checkpoint_path="{out.resolve()}"{options}).eval()
{_transform(checkpoint)}'''


def _torchvision(out: Path, checkpoint: Checkpoint, _: str) -> str:
    arch = checkpoint.arch
    if arch.startswith("mobilenetv2"):
        build, head = f"torchvision.models.mobilenet_v2(width_mult={int(arch[-3:]) / 100})", "classifier"
    elif kind_of(arch) == "vit":
        build, head = "torchvision.models.vit_b_16()", "heads"
    else:
        build, head = f"torchvision.models.{arch}()", "fc"
    return f'''# {_origin(checkpoint)} for torchvision.
import torch
import torchvision
from torchvision import transforms

model = {build}
model.{head} = torch.nn.Identity()
model.load_state_dict(torch.load("{out.resolve()}", weights_only=True), strict=True)
model.eval()
{_transform(checkpoint)}'''


def _onnx(out: Path, checkpoint: Checkpoint, _: str) -> str:
    return f'''# {_origin(checkpoint)} for onnxruntime: images [N, 3, H, W] float32, N, H and W free.
import onnxruntime
from torchvision import transforms

session = onnxruntime.InferenceSession("{out.resolve()}")
{_transform(checkpoint)}# features = session.run(["features"], {{"images": batch.numpy()}})[0]
'''
