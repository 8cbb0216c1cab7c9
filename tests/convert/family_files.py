"""Checkpoint files of every family, in its exact layout, around a network's own tensors."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sslight.core.checkpoint import FORMAT
from tests.convert.own_networks import (
    Own,
    children_own,
    features_own,
    openmmlab_own,
    random_like,
    timm_own,
    torchvision_own,
    vit_forward,
    vit_own,
)

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
PREPROCESS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "color_order": "RGB", "size": 224}


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with a prefix on every key."""
    return {prefix + key: value for key, value in state.items()}


def _rest() -> dict:
    return {"epoch": 3, "optimizer": {"state": {0: {"momentum_buffer": torch.randn(4)}}, "param_groups": [{"lr": 0.1}]}}


def _other(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A second network of the same layout with other values."""
    return {key: value + 1 for key, value in state.items()}


def _head(width: int = 8) -> dict[str, Tensor]:
    return {
        "mlp.0.weight": torch.randn(width, width),
        "mlp.0.bias": torch.randn(width),
        "last_layer.weight_g": torch.ones(4, 1),
        "last_layer.weight_v": torch.randn(4, width),
    }


def sslight(own: Own) -> dict:
    model = {
        **under("student.backbone.", own.state),
        **under("student.head.", _head()),
        **under("teacher.backbone.", _other(own.state)),
        **under("teacher.head.", _head()),
        "center": torch.randn(1, 4),
    }
    return {
        "format": FORMAT,
        "method": "dino",
        "arch": own.arch,
        "epoch": 1,
        "step": 2,
        "model": model,
        "optimizer": _rest()["optimizer"],
        "rng": {"torch": torch.zeros(4, dtype=torch.uint8)},
        "config": {},
        "preprocess": PREPROCESS,
        "networks": {"student": "student.backbone.", "teacher": "teacher.backbone."},
    }


def original(own: Own) -> dict:
    """Own.state here is the whole golden key list."""
    return {"state_dict": own.state, "steps": 7, **_rest(), "loss": {"center": torch.randn(1, 4)}}


def dino(own: Own) -> dict:
    return {
        "student": {**under("module.backbone.", _other(own.state)), **under("module.head.", _head())},
        "teacher": {**under("backbone.", own.state), **under("head.", _head())},
        "args": argparse.Namespace(arch="x", lr=0.1),
        "dino_loss": {"center": torch.randn(1, 4)},
        "fp16_scaler": {},
        **_rest(),
    }


def dinov2_flat(own: Own) -> dict:
    return own.state


def dinov2_teacher(own: Own) -> dict:
    chunked = {}
    for key, value in own.state.items():
        parts = key.split(".")
        if parts[0] == "blocks":
            key = ".".join(["blocks", str(int(parts[1]) // 3), *parts[1:]])
        chunked[key] = value
    return {"teacher": {**under("backbone.", chunked), **under("dino_head.", _head()), **under("ibot_head.", _head())}}


def moco(own: Own) -> dict:
    fc = {"fc.0.weight": torch.randn(4, 4), "fc.0.bias": torch.randn(4), "fc.2.weight": torch.randn(4, 4)}
    return {
        "arch": "resnet50" if "layer1.0.conv3.weight" in own.state else "resnet18",
        **_rest(),
        "state_dict": {
            **under("module.encoder_q.", {**own.state, **fc}),
            **under("module.encoder_k.", {**_other(own.state), **fc}),
            "module.queue": torch.randn(4, 8),
            "module.queue_ptr": torch.zeros(1, dtype=torch.int64),
        },
    }


def _mlp(prefix: str, *numbers: int, norm: int | None = None) -> dict[str, Tensor]:
    """Layers of a projection head, with a norm in place `norm`."""
    layers = {f"{prefix}{number}.{name}": torch.randn(4) for number in numbers for name in ("weight", "bias")}
    return layers | ({} if norm is None else {f"{prefix}{norm}.running_mean": torch.randn(4)})


def byol_learner(own: Own) -> dict:
    return {
        **under("net.", own.state),
        **under("online_encoder.net.", own.state),
        **_mlp("online_encoder.projector.", 0, 3, norm=1),
        **under("target_encoder.net.", _other(own.state)),
        **_mlp("online_predictor.", 0, 3, norm=1),
    }


def byol_networks(own: Own) -> dict:
    """PyTorch-BYOL's; `projetion` is its own spelling."""
    return {
        "online_network_state_dict": {**under("encoder.", own.state), **_mlp("projetion.net.", 0, 3, norm=1)},
        "target_network_state_dict": {**under("encoder.", _other(own.state)), **_mlp("projetion.net.", 0, 3, norm=1)},
        "optimizer_state_dict": _rest()["optimizer"],
    }


def seed(own: Own) -> dict:
    networks = {**under("student.", own.state), **under("teacher.", _other(own.state))}
    state = {**networks, "queue": torch.randn(4, 8), "queue_ptr": torch.zeros(1, dtype=torch.int64)}
    return {**_rest(), "arch": "own", "state_dict": under("module.", state)}


def simreg(own: Own) -> dict:
    networks = {**under("encoder_q.module.", own.state), **under("encoder_t.module.", _other(own.state))}
    return {**_rest(), "opt": argparse.Namespace(x=1), "state_dict": {**networks, **_mlp("predict_q.module.", 0, 2)}}


def ressl(own: Own) -> dict:
    networks = {**under("encoder_q.net.", own.state), **under("encoder_k.net.", _other(own.state))}
    heads = {**_mlp("encoder_q.head.linear", 1, 2), **_mlp("encoder_k.head.linear", 1, 2)}
    return {**_rest(), "model": under("module.", {**networks, **heads, "queue": torch.randn(4, 8)})}


def pixpro(own: Own) -> dict:
    networks = {**under("encoder.", own.state), **under("encoder_k.", _other(own.state))}
    heads = {**_mlp("projector.linear", 1, 2), **_mlp("projector_k.linear", 1, 2)}
    return {**_rest(), "opt": argparse.Namespace(x=1), "model": under("module.", {**networks, **heads})}


def simsiam(own: Own) -> dict:
    state = {**under("encoder.", own.state), **_mlp("encoder.fc.", 0, 3, 6, norm=7), **_mlp("predictor.", 0, 3)}
    return {**_rest(), "arch": "own", "state_dict": under("module.", state)}


def barlowtwins(own: Own) -> dict:
    state = {**under("backbone.", own.state), **_mlp("projector.", 0, 3), "bn.running_mean": torch.randn(4)}
    return {**_rest(), "model": under("module.", state)}


def vicreg(own: Own) -> dict:
    return {**_rest(), "model": under("module.", {**under("backbone.", own.state), **_mlp("projector.", 0, norm=1)})}


def simclr(own: Own) -> dict:
    return {**_rest(), "arch": "own", "state_dict": under("backbone.", {**own.state, **_mlp("fc.", 0, 2)})}


def simclr_encoder(own: Own) -> dict:
    return {**under("encoder.", own.state), **_mlp("projector.", 0, 2)}


def mocov3(own: Own) -> dict:
    head = "head" if "cls_token" in own.state else "fc"
    mlp = {f"{head}.0.weight": torch.randn(4, 4), f"{head}.1.running_mean": torch.randn(4)}
    return {
        **_rest(),
        "scaler": {"scale": 1.0},
        "arch": "vit_small",
        "state_dict": {
            **under("module.base_encoder.", {**own.state, **mlp}),
            **under("module.momentum_encoder.", {**_other(own.state), **mlp}),
            "module.predictor.0.weight": torch.randn(4, 4),
        },
    }


def swav(own: Own) -> dict:
    return {
        **_rest(),
        "state_dict": under(
            "module.",
            {**own.state, "projection_head.0.weight": torch.randn(4, 4), "prototypes.weight": torch.randn(8, 4)},
        ),
    }


def swav_flat(own: Own) -> dict:
    return swav(own)["state_dict"]


def _lightning(state: dict[str, Tensor]) -> dict:
    return {
        "state_dict": state,
        "pytorch-lightning_version": "2.1.0",
        "hyper_parameters": {"lr": 0.3},
        "epoch": 1,
        "global_step": 3,
        "callbacks": {},
        "loops": {"fit": {"n": 1}},
        "lr_schedulers": [{"a": 1}],
        "optimizer_states": [{"state": {0: {"exp_avg": torch.randn(3)}}}],
    }


def solo_learn(own: Own) -> dict:
    return _lightning(
        {
            **under("backbone.", own.state),
            **under("momentum_backbone.", _other(own.state)),
            "projector.0.weight": torch.randn(4, 4),
            "momentum_projector.0.weight": torch.randn(4, 4),
            "predictor.0.weight": torch.randn(4, 4),
            "classifier.weight": torch.randn(4, 4),
        }
    )


def solo_learn_old(own: Own) -> dict:
    return _lightning({**under("encoder.", own.state), "projector.0.weight": torch.randn(4, 4)})


def lightly(own: Own) -> dict:
    return _lightning(
        {
            **under("backbone.", own.state),
            "projection_head.layers.0.weight": torch.randn(4, 4),
            "criterion.memory_bank.bank": torch.randn(4, 4),
        }
    )


def lightly_teacher(own: Own) -> dict:
    return _lightning(
        {
            **under("student_backbone.", _other(own.state)),
            **under("teacher_backbone.", own.state),
            "student_head.layers.0.weight": torch.randn(4, 4),
            "criterion.center": torch.randn(4),
        }
    )


def lightly_wrapped(own: Own) -> dict:
    return _lightning(under("backbone._orig_mod.model.", own.state))


def vissl(own: Own) -> dict:
    blocks = "" if "cls_token" in own.state else "_feature_blocks."
    return {
        "phase_idx": 3,
        "classy_state_dict": {
            "base_model": {
                "model": {"trunk": under(blocks, own.state), "heads": {"0.clf.0.weight": torch.randn(4, 4)}},
                "meta": {"name": "x"},
            },
            "loss": {"center": torch.randn(4)},
            "optimizer": {"state": {0: torch.randn(3)}},
            "train": True,
        },
    }


def openmmlab(own: Own) -> dict:
    return {
        "meta": {"epoch": 1, "mmcv_version": "2.0"},
        "optimizer": _rest()["optimizer"],
        "state_dict": {
            **under("backbone.", own.state),
            "neck.mlp.0.weight": torch.randn(4, 4),
            "head.predictor.weight": torch.randn(4),
            "data_preprocessor.mean": torch.zeros(3),
        },
    }


def bare_backbone(own: Own) -> dict:
    return under("module.backbone.", own.state)


def plain(own: Own) -> dict:
    return own.state


def torchvision_training(own: Own) -> dict:
    """torchvision's reference script: `model` beside optimizer and args, classifier included."""
    fc = {"fc.weight": torch.randn(10, 4), "fc.bias": torch.randn(10)}
    return {
        "model": {**own.state, **fc},
        "args": argparse.Namespace(model="x"),
        "lr_scheduler": {"last_epoch": 1},
        "model_ema": {**under("module.", _other(own.state)), "n_averaged": torch.zeros(())},
        **_rest(),
    }


def timm_training(own: Own) -> dict:
    whole = {**own.state, "classifier.weight": torch.randn(10, 4), "classifier.bias": torch.randn(10)}
    return {
        "state_dict": whole,
        "state_dict_ema": _other(whole),
        "arch": own.arch,
        "version": 2,
        "args": argparse.Namespace(model=own.arch),
        **_rest(),
    }


def compiled_ddp(own: Own) -> dict:
    return {"state_dict": under("_orig_mod.module.model.", own.state)}


def golden_own(name: str) -> Own:
    """The original's whole checkpoint from its golden key list, and its student's own forward."""
    shapes = json.loads((GOLDEN / "sslight_checkpoint_keys" / f"{name}.json").read_text())
    torch.manual_seed(2)
    # Heads are most of the file and irrelevant here: their sizes shrink, their names stay.
    state = {
        key: random_like(key, shape if ".backbone." in key else [min(size, 8) for size in shape])
        for key, shape in shapes.items()
    }
    network = next(n for n in ("student", "network", "encoder_q") if any(f"module.{n}.backbone." in k for k in shapes))
    prefix = f"module.{network}.backbone."
    body = {
        key[len(prefix) :].removeprefix("encoder."): value for key, value in state.items() if key.startswith(prefix)
    }
    if "vit" in name:
        return Own(state, lambda images: vit_forward(body, images, 3), "vit_tiny_patch16_224", 224)
    own = features_own("mobilenetv2_100") if "mobilenet" in name else children_own(name.split("_")[1])
    return Own(state, _loaded(own, body), own.arch)


def _loaded(own: Own, body: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    for key, value in body.items():
        own.state[key].copy_(value)  # a state dict shares its module's memory
    assert own.state.keys() == body.keys()
    return own.pooled


def golden_detector(name: str, arch: str) -> Own:
    """A whole mmdet detector from its golden key list, and its backbone's own forward."""
    shapes = json.loads((GOLDEN / "mmdet_state_dict" / f"{name}.json").read_text())
    torch.manual_seed(3)
    state = {
        key: random_like(key, shape if key.startswith("backbone.") else [min(size, 8) for size in shape])
        for key, shape in shapes.items()
    }
    body = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    own = openmmlab_own(arch)
    return Own(state, _loaded(own, body), arch)


def mmdet_detector(own: Own) -> dict:
    return {"meta": {"epoch": 12}, "state_dict": own.state, "message_hub": {"log": {}}, **_rest()}


def mm_vit_own() -> Own:
    """mmpretrain's names of a ViT-S/16, written out by hand, around the plain ViT."""
    own = vit_own(384, 16, 6, "vit_small_patch16_224")
    names = {"patch_embed.proj": "patch_embed.projection", "norm.": "ln1."}
    state = {}
    for key, value in own.state.items():
        if key.startswith("blocks."):
            _, number, rest = key.split(".", 2)
            for old, new in {
                "norm1": "ln1",
                "norm2": "ln2",
                "mlp.fc1": "ffn.layers.0.0",
                "mlp.fc2": "ffn.layers.1",
            }.items():
                rest = rest.replace(old, new)
            state[f"layers.{number}.{rest}"] = value
        else:
            old = next((name for name in names if key.startswith(name)), None)
            state[key.replace(old, names[old]) if old else key] = value
    return Own(state, own.pooled, own.arch, own.size)


# Name -> (family, how the file is laid out, the network in it)
def huggingface(own: Own) -> dict:
    """transformers' ResNet with its classifier, as `save_pretrained` names its tensors."""

    def renamed(key: str) -> str:
        stem = re.sub(
            r"^conv1\b", "embedder.embedder.convolution", re.sub(r"^bn1\b", "embedder.embedder.normalization", key)
        )
        place = re.match(r"layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)\.(.+)", key)
        if not place:
            return "resnet." + stem
        stage, block, layer, number, last = place.groups()
        second = layer == "bn" or (layer, number) == ("downsample.", "1")
        inner = "shortcut" if layer == "downsample." else f"layer.{int(number) - 1}"
        kind = "normalization" if second else "convolution"
        return f"resnet.encoder.stages.{int(stage) - 1}.layers.{block}.{inner}.{kind}.{last}"

    return {renamed(key): value for key, value in own.state.items()} | {"classifier.1.weight": torch.ones(2, 512)}


CASES: dict[str, tuple[str, Callable[[Own], dict], Callable[[], Own]]] = {
    **{
        f"sslight {arch}": ("sslight", sslight, lambda arch=arch: timm_own(arch))
        for arch in (
            "resnet18",
            "resnet34",
            "resnet50",
            "resnet101",
            "mobilenetv2_100",
            "vit_tiny_patch16_224",
            "efficientnet_b0",
        )
    },
    **{
        f"original {name}": ("sslight-original", original, lambda name=name: golden_own(name))
        for name in (
            "dino_resnet18",
            "dino_resnet34",
            "dino_mobilenet_v2",
            "dino_vit_tiny",
            "moco_mobilenet_v2",
            "swav_mobilenet_v2",
        )
    },
    "dino resnet50": ("dino", dino, lambda: torchvision_own("resnet50")),
    "dino mobilenetv2": ("dino", dino, lambda: torchvision_own("mobilenetv2_100")),
    "dino vit-s/16": ("dino", dino, lambda: vit_own(384, 16, 6, "vit_small_patch16_224")),
    "dino vit-s/8": ("dino", dino, lambda: vit_own(384, 8, 6, "vit_small_patch8_224", size=64)),
    "dinov2 vit-s/14": (
        "dinov2",
        dinov2_flat,
        lambda: vit_own(384, 14, 6, "vit_small_patch14_dinov2", size=112, layer_scale=True, mask_token=True),
    ),
    "dinov2 vit-s/14 registers": (
        "dinov2",
        dinov2_flat,
        lambda: vit_own(
            384, 14, 6, "vit_small_patch14_reg4_dinov2", size=112, registers=4, layer_scale=True, mask_token=True
        ),
    ),
    "dinov2 training vit-b/14": (
        "dinov2",
        dinov2_teacher,
        lambda: vit_own(768, 14, 12, "vit_base_patch14_dinov2", size=98, layer_scale=True, mask_token=True),
    ),
    "moco resnet50": ("moco", moco, lambda: torchvision_own("resnet50")),
    "moco resnet18": ("moco", moco, lambda: torchvision_own("resnet18")),
    "moco mobilenetv2": ("moco", moco, lambda: torchvision_own("mobilenetv2_100")),
    "byol resnet18": ("byol", byol_learner, lambda: torchvision_own("resnet18")),
    "byol networks resnet18": ("byol", byol_networks, lambda: children_own("resnet18")),
    "seed resnet18": ("distillation", seed, lambda: torchvision_own("resnet18")),
    "simreg mobilenetv2": ("distillation", simreg, lambda: torchvision_own("mobilenetv2_100")),
    "ressl resnet18": ("ressl", ressl, lambda: torchvision_own("resnet18")),
    "pixpro resnet18": ("pixpro", pixpro, lambda: torchvision_own("resnet18")),
    "simsiam resnet18": ("simsiam", simsiam, lambda: torchvision_own("resnet18")),
    "barlowtwins resnet18": ("barlowtwins", barlowtwins, lambda: torchvision_own("resnet18")),
    "vicreg resnet18": ("vicreg", vicreg, lambda: torchvision_own("resnet18")),
    "simclr resnet18": ("simclr", simclr, lambda: torchvision_own("resnet18")),
    "simclr encoder resnet18": ("simclr", simclr_encoder, lambda: torchvision_own("resnet18")),
    "mocov3 resnet50": ("mocov3", mocov3, lambda: torchvision_own("resnet50")),
    "mocov3 vit-s": ("mocov3", mocov3, lambda: vit_own(384, 16, 12, "vit_small_patch16_224")),
    "mocov3 vit-b": ("mocov3", mocov3, lambda: vit_own(768, 16, 12, "vit_base_patch16_224")),
    "swav resnet50": ("swav", swav, lambda: torchvision_own("resnet50")),
    "swav resnet18 flat": ("swav", swav_flat, lambda: torchvision_own("resnet18")),
    "solo-learn resnet18": ("solo-learn", solo_learn, lambda: torchvision_own("resnet18")),
    "solo-learn old resnet50": ("solo-learn", solo_learn_old, lambda: torchvision_own("resnet50")),
    "solo-learn vit-ti": ("solo-learn", solo_learn, lambda: timm_own("vit_tiny_patch16_224")),
    "lightly resnet18": ("lightly", lightly, lambda: children_own("resnet18")),
    "lightly resnet34 teacher": ("lightly", lightly_teacher, lambda: children_own("resnet34")),
    "lightly mobilenetv2": ("lightly", lightly, lambda: children_own("mobilenetv2_100")),
    "lightly timm resnet18": ("lightly", lightly_wrapped, lambda: timm_own("resnet18")),
    "lightly timm vit-ti": ("lightly", lightly, lambda: timm_own("vit_tiny_patch16_224")),
    "vissl resnet50": ("vissl", vissl, lambda: torchvision_own("resnet50")),
    "vissl vit-s": ("vissl", vissl, lambda: vit_own(384, 16, 6, "vit_small_patch16_224")),
    "openmmlab resnet50": ("openmmlab", openmmlab, lambda: openmmlab_own("resnet50")),
    "openmmlab mobilenetv2": ("openmmlab", openmmlab, lambda: openmmlab_own("mobilenetv2_100")),
    "openmmlab vit-s": ("openmmlab", openmmlab, mm_vit_own),
    "huggingface resnet18": ("huggingface", huggingface, lambda: torchvision_own("resnet18")),
    "backbone resnet18": ("backbone", bare_backbone, lambda: torchvision_own("resnet18")),
    "backbone mobilenetv2": ("backbone", bare_backbone, lambda: features_own("mobilenetv2_100")),
    "backbone vit-ti": ("backbone", bare_backbone, lambda: timm_own("vit_tiny_patch16_224")),
    **{
        f"torchvision {arch}": ("torchvision-timm", plain, lambda arch=arch: torchvision_own(arch))
        for arch in (
            "resnet34",
            "resnet101",
            "mobilenetv2_035",
            "mobilenetv2_050",
            "mobilenetv2_075",
            "mobilenetv2_140",
            "vit_base_patch16_224",
        )
    },
    "torchvision training resnet18": ("torchvision-timm", torchvision_training, lambda: torchvision_own("resnet18")),
    "timm training efficientnet_b0": ("torchvision-timm", timm_training, lambda: timm_own("efficientnet_b0")),
    "compiled and distributed resnet18": ("torchvision-timm", compiled_ddp, lambda: timm_own("resnet18")),
    **{
        f"timm {arch}": ("torchvision-timm", plain, lambda arch=arch: timm_own(arch))
        for arch in (
            "mobilenetv2_100",
            "mobilenetv2_110d",
            "mobilenetv2_120d",
            "deit_tiny_distilled_patch16_224",
            "vit_small_patch8_224",
        )
    },
    "timm vit-ti/8": (
        "torchvision-timm",
        plain,
        lambda: timm_own("vit_tiny_patch16_224", 64, patch_size=8, img_size=64),
    ),
    "timm vit-ti/14 registers": (
        "torchvision-timm",
        plain,
        lambda: timm_own("vit_tiny_patch16_224", 112, patch_size=14, img_size=112, reg_tokens=4),
    ),
    "mmdet detector resnet18": (
        "mmdet-detector",
        mmdet_detector,
        lambda: golden_detector("mask-rcnn_resnet18_fpn", "resnet18"),
    ),
    "mmdet detector mobilenetv2": (
        "mmdet-detector",
        mmdet_detector,
        lambda: golden_detector("mask-rcnn_mobilenetv2_out7_fpn", "mobilenetv2_100"),
    ),
}
