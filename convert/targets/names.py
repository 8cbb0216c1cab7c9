"""A backbone in a framework's own names: which table, which prefix, what the framework has no place for."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from torch import Tensor

from convert import names as layouts
from convert.architectures import vit_heads
from convert.names import Rule, apply_table
from convert.reader import Checkpoint
from convert.support import kind_of, refusal
from pretrain.backbones import write_options
from sslight.core.errors import InputError

SUFFIXES = {
    "timm": (".safetensors",),
    "torchvision": (".pth", ".pt"),
    "detectron2": (".pth", ".pkl"),
    "mmdet": (".pth", ".pt"),
    "onnx": (".onnx",),
}
MODELS = ("fpn", "c4", "vitdet")

_PLAIN: dict[str | None, tuple] = {
    "resnet": layouts.RESNET_TIMM,
    "mobilenetv2": layouts.MOBILENET_TORCHVISION,
    "vit": layouts.VIT_TORCHVISION,
}
_DETECTRON2_PREFIX = {"fpn": "backbone.bottom_up.", "vitdet": "backbone.net."}


@dataclass(frozen=True)
class Outgoing:
    """Tensors as they will stand in the file, keys per rule, and source keys the framework has no place for."""

    tensors: dict[str, Tensor]
    counts: dict[str, int]
    dropped: dict[str, list[str]] = field(default_factory=dict)


def default_model(arch: str, model: str | None) -> str:
    """The detectron2 model a backbone goes to: `model` if given, ViTDet for a ViT, else FPN."""
    return model or ("vitdet" if kind_of(arch) == "vit" else "fpn")


def rename(checkpoint: Checkpoint, to: str, *, model: str | None = None, prefix: str = "") -> Outgoing:
    """The tensors of a checkpoint in the target's names. Raises InputError where the target has no such network."""
    arch = checkpoint.arch
    reason = refusal(arch, to)
    if reason:
        raise InputError(f"{arch} cannot go to {to}: {reason}")
    if model is not None and to != "detectron2":
        raise InputError(f"--model {model} is for --to detectron2 only")
    if prefix and to != "mmdet":
        raise InputError("--prefix is for --to mmdet only")
    makers = {"timm": _timm, "onnx": _timm, "torchvision": _torchvision, "mmdet": _mmdet}
    if to == "detectron2":
        return _detectron2(checkpoint, default_model(arch, model))
    made = makers[to](checkpoint)
    if prefix:
        made = Outgoing({prefix + key: value for key, value in made.tensors.items()}, made.counts, made.dropped)
    return made


def _renamed(
    checkpoint: Checkpoint,
    table: tuple[Rule, ...],
    place: Callable[[str], str] = str,
    state: dict[str, Tensor] | None = None,
    dropped: dict | None = None,
) -> Outgoing:
    state = checkpoint.state if state is None else state
    done = apply_table(table, state, to_timm=False, where=f"{checkpoint.arch} to the target's names")
    return Outgoing({place(name): state[key] for key, name in done.keys.items()}, done.counts, dropped or {})


def _timm(checkpoint: Checkpoint) -> Outgoing:
    return _renamed(checkpoint, layouts.IDENTITY)


def _torchvision(checkpoint: Checkpoint) -> Outgoing:
    kind, state = kind_of(checkpoint.arch), checkpoint.state
    if kind == "vit":
        _refuse_vit_extras(checkpoint, "torchvision's ViT")
        patch, positions = state["patch_embed.proj.weight"].shape[-1], state["pos_embed"].shape[1]
        if patch != 16 or positions != 197:
            raise InputError(
                f"{checkpoint.arch} cannot go to torchvision: its vit_b_16 has patch 16 and "
                f"197 positions, not patch {patch} and {positions}"
            )
    usual = kind == "vit" and checkpoint.options.get("num_heads") == vit_heads(checkpoint.arch)
    _refuse_options(checkpoint, "torchvision's network", {"num_heads"} if usual else ())
    return _renamed(checkpoint, _PLAIN[kind])


def _mmdet(checkpoint: Checkpoint) -> Outgoing:
    if openmmlab_names(checkpoint.arch):
        _refuse_options(checkpoint, "mmdet's own network")
        table = {"resnet": layouts.RESNET_TIMM, "mobilenetv2": layouts.MOBILENET_OPENMMLAB}[
            str(kind_of(checkpoint.arch))
        ]
        return _renamed(checkpoint, table)
    return _renamed(checkpoint, (Rule("model.{rest}", "{rest}"),))


def openmmlab_names(arch: str) -> bool:
    """Whether mmdet itself has this network; others go to the registered timm backbone."""
    return kind_of(arch) in ("resnet", "mobilenetv2") and not arch.endswith("d")


def _detectron2(checkpoint: Checkpoint, model: str) -> Outgoing:
    kind = kind_of(checkpoint.arch)
    fits = {"fpn": kind != "vit", "c4": kind == "resnet", "vitdet": kind == "vit"}
    if model not in fits:
        raise InputError(f"unknown --model '{model}': use one of {', '.join(MODELS)}")
    if not fits[model]:
        needs = {
            "fpn": "a pyramid of stages; use vitdet",
            "c4": "a ResNet, whose last stage is its box head",
            "vitdet": "a plain ViT",
        }
        raise InputError(f"{checkpoint.arch} cannot go to detectron2's {model}: it needs {needs[model]}")
    if model == "vitdet":
        return _vitdet(checkpoint)
    if kind == "resnet":
        _refuse_options(checkpoint, "detectron2's ResNet")

        def place(name: str) -> str:
            if model == "c4":
                return ("roi_heads." if name.startswith("res5.") else "backbone.") + name
            return _DETECTRON2_PREFIX["fpn"] + name

        return _renamed(checkpoint, layouts.RESNET_DETECTRON2, place)
    return _renamed(checkpoint, (Rule(_DETECTRON2_PREFIX["fpn"] + "model.{rest}", "{rest}"),))


def _vitdet(checkpoint: Checkpoint) -> Outgoing:
    """ViTDet keeps positions, patch embedding and blocks. It has no class token and no final norm."""
    _refuse_vit_extras(checkpoint, "ViTDet")
    _refuse_options(checkpoint, "ViTDet", {"num_heads", "patch_size", "img_size", "no_embed_class"})
    gone = [key for key in checkpoint.state if key == "cls_token" or key.startswith("norm.")]
    state = {key: value for key, value in checkpoint.state.items() if key not in gone}
    return _renamed(
        checkpoint,
        (Rule(_DETECTRON2_PREFIX["vitdet"] + "{rest}", "{rest}"),),
        state=state,
        dropped={"ViTDet has no class token and no final norm": gone},
    )


def _refuse_options(checkpoint: Checkpoint, where: str, known: Collection[str] = ()) -> None:
    others = {key: value for key, value in checkpoint.options.items() if key not in known}
    if others:
        raise InputError(f"{checkpoint.arch} with {write_options(others)} cannot go there: {where} is not built so")


def _refuse_vit_extras(checkpoint: Checkpoint, where: str) -> None:
    extras = [key for key in ("dist_token", "reg_token", "blocks.0.ls1.gamma") if key in checkpoint.state]
    if extras:
        names = {
            "dist_token": "a distillation token",
            "reg_token": "register tokens",
            "blocks.0.ls1.gamma": "layer scale",
        }
        raise InputError(f"{checkpoint.arch} has {' and '.join(names[key] for key in extras)}, which {where} lacks")
