"""Whose checkpoint is this? One table entry per family, recognised from the keys alone.

Patterns are anchored and apply to the flat, unwrapped keys of `convert.flat`. Families are tried in the table's order,
which goes from telling signs to plain ones; the text of the rule that matched is part of every report.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass

from sslight.core.errors import InputError, nearest


@dataclass(frozen=True)
class Family:
    """A checkpoint layout.

    `needs`: patterns of which each must match a key; `lacks`: patterns that no key may match; `networks`: (name,
    pattern of its backbone's prefix), the one to evaluate first; `heads`: (network, prefix of its DINO head);
    `drops`: (reason, pattern) of keys that belong to no backbone; `method`: by network, "" where the keys do not tell;
    `vit_heads`: attention heads of the ViT-Ti/S/B that the family's own code defines, 0 for timm's numbers, None where
    files of many codes look so.
    """

    name: str
    rule: str
    needs: tuple[str, ...]
    networks: tuple[tuple[str, str], ...]
    lacks: tuple[str, ...] = ()
    heads: tuple[tuple[str, str], ...] = ()
    drops: tuple[tuple[str, str], ...] = ()
    method: tuple[tuple[str, str], ...] = ()
    detector: bool = False
    vit_heads: int | None = None

    def method_of(self, network: str) -> str:
        """The method that trained a network, or "" if unknown."""
        methods = dict(self.method)
        return methods.get(network, methods.get("*", ""))


def _prefixes(container: str, *names: str, tail: str = "") -> tuple[tuple[str, str], ...]:
    return tuple((name, rf"{container}{name}\.{tail}") for name in names)


_STATE = r"state_dict\."
_LIGHTNING = r"(pytorch-lightning_version|hyper_parameters(\..*)?|loops(\..*)?|callbacks(\..*)?)"

# C4 detectors keep the last stage in the box head.
_DETECTRON2 = (("backbone", r"(?:backbone\.(?:bottom_up\.|net\.)?(?!fpn_|simfp)|roi_heads\.(?=res5\.))"),)

FAMILIES = (
    Family(
        "sslight",
        "this project's run checkpoint: top-level 'format' beside 'arch', 'networks' or 'method'",
        needs=(r"format", r"(arch|networks|method)(\..*)?"),
        networks=(),
        vit_heads=0,
    ),
    Family(
        "sslight-original",
        "'state_dict' with '{student,teacher,network,encoder_q,encoder_k}.backbone.'",
        needs=(_STATE + r"(student|teacher|network|encoder_q|encoder_k)\.backbone\..+",),
        networks=_prefixes(
            _STATE, "student", "network", "encoder_q", "teacher", "encoder_k", tail=r"backbone\.(?:encoder\.)?"
        ),
        heads=(("student", _STATE + r"student\.head\."), ("teacher", _STATE + r"teacher\.head\.")),
        drops=(
            ("projection head or prototypes", _STATE + r"(student|teacher|network|encoder_[qk])\.head\..+"),
            ("classifier of the joint linear probe", _STATE + r"classifier\..+"),
            ("queue", _STATE + r"queue(_ptr)?"),
        ),
        method=(
            ("student", "dino"),
            ("teacher", "dino"),
            ("network", "swav"),
            ("encoder_q", "moco"),
            ("encoder_k", "moco"),
        ),
        vit_heads=0,
    ),
    Family(
        "dinov2",
        "DINOv2: 'teacher' with 'backbone.' and a 'dino_head.' or a mask token; or flat with a mask token",
        needs=(r"(teacher\.(dino_head|ibot_head)\..+|(teacher\.backbone\.)?(mask_token|register_tokens))",),
        lacks=(_STATE + r".+",),
        networks=(*_prefixes("", "teacher", "student", tail=r"backbone\."), ("model", r"(?!teacher\.|student\.)")),
        heads=(("teacher", r"teacher\.dino_head\."), ("student", r"student\.dino_head\.")),
        drops=(
            ("projection head", r"(teacher|student)\.(dino_head|ibot_head)\..+"),
            ("loss centre", r"(dino_loss|ibot_patch_loss)\..+"),
        ),
        method=(("*", "dinov2"),),
        vit_heads=0,
    ),
    Family(
        "dino",
        "DINO: 'student' or 'teacher' with 'backbone.'",
        needs=(r"(student|teacher)\.backbone\..+",),
        networks=_prefixes("", "teacher", "student", tail=r"backbone\."),
        heads=(("teacher", r"teacher\.head\."), ("student", r"student\.head\.")),
        drops=(("projection head", r"(student|teacher)\.head\..+"), ("loss centre", r"dino_loss\..+")),
        method=(("*", "dino"),),
        vit_heads=0,
    ),
    Family(
        "moco",
        "MoCo v1/v2: 'encoder_q.' beside a 'queue'",
        needs=(rf"(?:{_STATE})?encoder_q\..+",),
        networks=_prefixes(rf"(?:{_STATE})?", "encoder_q", "encoder_k"),
        drops=(("queue", rf"(?:{_STATE})?queue(_ptr)?"),),
        method=(("*", "moco"),),
    ),
    Family(
        "mocov3",
        "MoCo v3: 'base_encoder.' and 'momentum_encoder.'",
        needs=(rf"(?:{_STATE})?base_encoder\..+",),
        networks=_prefixes(rf"(?:{_STATE})?", "base_encoder", "momentum_encoder"),
        drops=(("predictor", rf"(?:{_STATE})?predictor\..+"),),
        method=(("*", "mocov3"),),
        vit_heads=12,
    ),
    Family(
        "vissl",
        "VISSL: 'classy_state_dict.base_model.model.trunk'",
        needs=(r"classy_state_dict\.base_model\.trunk\..+",),
        networks=(("trunk", r"classy_state_dict\.base_model\.trunk\.(?:_feature_blocks\.)?"),),
        drops=(
            ("head", r"classy_state_dict\.base_model\.heads\..+"),
            ("loss, optimizer and counters", r"classy_state_dict\.(?!base_model\.(trunk|heads)\.).+"),
        ),
    ),
    Family(
        "swav",
        "SwAV: ResNet names beside 'projection_head.' or 'prototypes.'",
        needs=(rf"(?:{_STATE})?(projection_head|prototypes)\..+", rf"(?:{_STATE})?layer\d\.\d+\..+"),
        networks=(("model", rf"(?:{_STATE})?"),),
        drops=(("projection head or prototypes", rf"(?:{_STATE})?(projection_head|prototypes)(\..+)?"),),
        method=(("*", "swav"),),
    ),
    Family(
        "mmdet-detector",
        "an mmdet detector: 'backbone.' beside 'rpn_head.', 'bbox_head.', 'mask_head.' or 'roi_head.'",
        needs=(_STATE + r"backbone\..+", _STATE + r"(rpn_head|roi_head|bbox_head|mask_head)\..+"),
        networks=(("backbone", rf"{_STATE}(?:backbone\.|roi_head\.shared_head\.)"),),
        drops=(
            ("neck and heads", _STATE + r"(neck|rpn_head|roi_head|bbox_head|mask_head|data_preprocessor)\..+"),
            ("averaged copy (EMA)", r"(ema_state_dict|ema)\..+"),
            ("message hub", r"message_hub\..+"),
        ),
        detector=True,
    ),
    Family(
        "detectron2-detector",
        "a detectron2 detector: 'backbone.' beside 'proposal_generator.' or 'roi_heads.'",
        needs=(r"backbone\..+", r"(proposal_generator\..+|roi_heads\.(?!res5\.).+)"),
        networks=_DETECTRON2,
        drops=(
            ("neck and heads", r"(backbone\.(fpn_|simfp).+|proposal_generator\..+|roi_heads\.(?!res5\.).+)"),
            ("norm that a C4 head adds after res5", r"roi_heads\.res5\.norm\..+"),
            ("pixel mean and std", r"pixel_(mean|std)"),
            ("averaged copy (EMA)", r"ema_state\..+"),
        ),
        detector=True,
    ),
    Family(
        "detectron2",
        "a backbone for detectron2: 'backbone.bottom_up.', 'backbone.net.' or 'backbone.stem.'",
        needs=(r"backbone\.(bottom_up|net|stem|res\d)\..+",),
        networks=_DETECTRON2,
    ),
    Family(
        "solo-learn",
        "solo-learn: Lightning 'state_dict' with 'backbone.' or 'encoder.' beside 'projector.' or 'classifier.'",
        needs=(
            _STATE + r"(backbone|encoder)\..+",
            _LIGHTNING,
            _STATE + r"(projector|classifier|momentum_backbone|momentum_encoder|predictor|prototypes)\..+",
        ),
        lacks=(_STATE + r"backbone\.\d+\..+",),
        networks=_prefixes(_STATE, "backbone", "encoder", "momentum_backbone", "momentum_encoder"),
        drops=(
            ("heads of the method", _STATE + r"(momentum_)?(projector|classifier|predictor|prototypes|head)(\..+)?"),
            ("queue", _STATE + r".*queue.*"),
            ("loss centre", _STATE + r".*loss.*"),
        ),
    ),
    Family(
        "lightly",
        "lightly: Lightning 'state_dict' with 'backbone.' or 'student_backbone.'",
        needs=(_STATE + r"(backbone|student_backbone|online_backbone)\..+", _LIGHTNING),
        networks=_prefixes(
            _STATE,
            "backbone",
            "student_backbone",
            "online_backbone",
            "teacher_backbone",
            "backbone_momentum",
            "momentum_backbone",
        ),
        drops=(
            (
                "heads of the method",
                _STATE + r"(?!(student_|teacher_|online_|momentum_)?backbone)"
                r"(\w*(head|projector|predictor|prototypes|classifier)\w*)(\..+)?",
            ),
            ("queue or memory bank", _STATE + r".*(queue|bank|criterion|loss).*"),
        ),
    ),
    Family(
        "openmmlab",
        "mmselfsup or mmpretrain: 'state_dict' with 'backbone.' beside 'meta'",
        needs=(_STATE + r"backbone\..+", r"meta(\..*)?"),
        networks=_prefixes(_STATE, "backbone"),
        drops=(
            ("neck and heads", _STATE + r"(neck|head|target_generator|data_preprocessor|teacher|momentum)\w*(\..+)?"),
            ("queue", _STATE + r".*queue.*"),
            ("momentum network", _STATE + r"(target_net|online_net|encoder_k|momentum_\w+)\..+"),
            ("averaged copy (EMA)", r"(ema_state_dict|ema)\..+"),
            ("message hub", r"message_hub\..+"),
        ),
    ),
    Family(
        "backbone",
        "tensors under 'backbone.' and nothing else that names a family",
        needs=(rf"(?:{_STATE})?backbone\..+",),
        networks=(("backbone", rf"(?:{_STATE})?backbone\."),),
    ),
    Family(
        "torchvision-timm",
        "a plain network: torchvision's or timm's own names",
        needs=(r".+",),
        networks=(("model", rf"(?!state_dict|model_ema\.)|{_STATE}"), ("ema", r"(?:state_dict_ema|model_ema)\.")),
    ),
)

# What trainers store beside networks, whatever the family.
ALWAYS_DROPPED = (
    (
        "optimizer, schedule, random and trainer state",
        r"((lr_)?schedulers?|optimizers?|trainer|optimizer_states|lr_schedulers|(\w+_)?scaler|amp|amp_state|rng\w*|callbacks|loops"
        r"|hparams\w*|hyper_parameters|cuda_rng\w*|torch_rng\w*|random_state\w*|iteration|matching_heuristics)(\..*)?",
    ),
    ("centre of the loss", r"(loss|dino_loss)(\..*)?"),
)


def by_name(name: str) -> Family:
    """The family called `name`. Raises InputError naming the nearest."""
    for family in FAMILIES:
        if family.name == name:
            return family
    names = [family.name for family in FAMILIES]
    raise InputError(f"unknown family '{name}'{nearest(name, names)}: use one of {', '.join(names)}")


def recognise(keys: Iterable[str]) -> Family:
    """The first family of the table whose signs are all among the keys; the last one fits every file."""
    keys = list(keys)
    return next(family for family in FAMILIES if _fits(family, keys))


def _fits(family: Family, keys: list[str]) -> bool:
    return all(_any_key(pattern, keys) for pattern in family.needs) and not any(
        _any_key(pattern, keys) for pattern in family.lacks
    )


def _any_key(pattern: str, keys: list[str]) -> bool:
    match = compiled(pattern).fullmatch
    return any(match(key) for key in keys)


@functools.cache
def compiled(pattern: str) -> re.Pattern:
    """A compiled pattern, once."""
    return re.compile(pattern)
