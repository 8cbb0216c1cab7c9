"""Whose checkpoint is this, and what does its project call the networks in it?

One table entry per family (`FAMILIES`, the registry that commands and documentation read), recognised from the keys
alone: patterns are anchored and apply to the flat, unwrapped keys of `convert.safe_files`. Families are tried in the
table's order, which goes from telling signs to plain ones; the text of the rule that matched is part of every report.
Imports nothing heavy.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sslight.core.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import Tensor

IMAGENET: dict[str, Any] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "color_order": "RGB"}
PLAIN = "torchvision-timm"  # the family of files without any sign
AS_TIMM = 0  # for a number of heads: timm's of the same width


@dataclass(frozen=True)
class Checkpoint:
    """One network's backbone out of a checkpoint file, and all that is known of where it came from.

    The record that passes through the steps of `convert.reader`, each of which fills its fields. `source` is the path,
    for messages. `state` has timm's names; `body` the same tensors in the file's own naming, called `layout`; `arch` is
    timm's name (until the network is identified: the file's own word for it, or ""), `kind` as `rules.kind_of` says,
    `options` are `build_backbone` arguments beside `arch`; `head` holds DINO's projection head (`mlp.N.*`) or None;
    `dropped` maps a reason to the file's keys; `counts` says how many keys each renaming rule took; `assumed` says by
    topic what neither the file nor the user states; `own` maps a package to the recorded settings that its code builds
    the network from; `revision` is the commit of a hub's repository, "" of all else; `hashing` is the SHA-256 being
    computed (of shards: as of `convert.sources.Source`).
    """

    source: str
    family: str
    rule: str
    network: str
    method: str
    arch: str = ""
    kind: str | None = None
    options: dict = field(default_factory=dict)
    preprocess: dict | Any = None  # None until the network is identified
    state: dict[str, Tensor] = field(default_factory=dict)
    layout: str = "timm"
    body: dict[str, Tensor] = field(default_factory=dict)
    head: dict[str, Tensor] | None = None
    dropped: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    assumed: dict[str, str] = field(default_factory=dict)
    own: dict[str, dict] = field(default_factory=dict)
    revision: str = ""
    hashing: Future[str] | Any = None

    @property
    def sha256(self) -> str:
        """The file's SHA-256, hexadecimal."""
        return self.hashing.result()


def spelled(assumed: Mapping[str, str], option: str) -> list[str]:
    """The assumptions as lines for a terminal, with how to say otherwise: `option` takes num_heads=12."""
    ways = {
        "num_heads": f": {option} num_heads=12"
        if "MoCo" in assumed.get("num_heads", "")
        else f"; for another number: {option} num_heads=N",
        **{topic: f"; else {option} {topic}=..." for topic in ("norm_eps", "act_layer", "pad_type")},
    }
    return [text + ways.get(topic, "") for topic, text in assumed.items()]


@dataclass(frozen=True)
class Family:
    """The contract of a checkpoint layout. Adding one is an entry of the table below.

    name: of `--family`, of the report and of its page in docs/converting/. `rule`: its signs in words.
    architectures: whose published checkpoints are read; for `--help` and the documentation.
    needs: patterns of which each must match a key; `lacks`: patterns that no key may match.
    networks: (name, pattern of its backbone's prefix), the one to evaluate first; empty where the file itself says so.
        Backbones elsewhere in the file are found, too, after these.
    heads: (network, pattern of the prefix of its DINO head).
    drops: (reason, pattern) of keys that belong to no backbone, and are not looked for one. What no network and no
        reason takes is dropped with a note.
    method: (network, the method that trained it), "*" for all; absent where the keys do not say.
    detector: a trained detector, read only where that is asked for.
    framework: "detectron2" or "mmdet", whose settings and default strides such a file has.
    vit_heads: attention heads of the ViT-Ti/S/B that the family's own code defines, AS_TIMM for timm's numbers, None
        where files of many codes look so: no shape shows it.
    options: name of a naming -> build options that the family's own code has with it, and timm's network has not.
    preprocess: mean, std and color_order that the family's own code has; None: ImageNet's are assumed.
    """

    name: str
    rule: str
    architectures: tuple[str, ...]
    needs: tuple[str, ...]
    networks: tuple[tuple[str, str], ...]
    lacks: tuple[str, ...] = ()
    heads: tuple[tuple[str, str], ...] = ()
    drops: tuple[tuple[str, str], ...] = ()
    method: tuple[tuple[str, str], ...] = ()
    detector: bool = False
    framework: str = ""
    vit_heads: int | None = None
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    preprocess: Mapping[str, Any] | None = None

    def fits(self, keys: list[str]) -> bool:
        """Whether the keys bear all of its signs."""
        return all(_any_key(pattern, keys) for pattern in self.needs) and not any(
            _any_key(pattern, keys) for pattern in self.lacks
        )

    def has_networks(self, keys: Iterable[str]) -> bool:
        """Whether any key lies where it has a network."""
        return any(_any_start(pattern, keys) for _, pattern in self.networks)


_CNNS, _ALL = ("ResNet", "MobileNetV2"), ("ResNet", "MobileNetV2", "ViT")
_ANY = (*_ALL, "other timm network")


def _prefixes(container: str, *names: str, tail: str = "") -> tuple[tuple[str, str], ...]:
    return tuple((name, rf"{container}{name}\.{tail}") for name in names)


_STATE = r"state_dict\."
_LIGHTNING = r"(pytorch-lightning_version|hyper_parameters(\..*)?|loops(\..*)?|callbacks(\..*)?)"

# C4 detectors keep the last stage in the box head.
_DETECTRON2 = (("backbone", r"(?:backbone\.(?:bottom_up\.|net\.)?(?!fpn_|simfp)|roi_heads\.(?=res5\.))"),)

_FAMILIES = (
    Family(
        "sslight",
        "this project's run checkpoint: top-level 'format' beside 'arch', 'networks' or 'method'",
        architectures=_ANY,
        needs=(r"format", r"(arch|networks|method)(\..*)?"),
        networks=(),
        vit_heads=AS_TIMM,
    ),
    Family(
        "sslight-original",
        "'state_dict' with '{student,teacher,network,encoder_q,encoder_k}.backbone.'",
        architectures=_ALL,
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
        vit_heads=AS_TIMM,
    ),
    Family(
        "mae-lite",
        "MAE-Lite: a ViT beside 'best_top1_epoch'",
        architectures=("ViT",),
        needs=(r"best_top1_epoch", r"blocks\.0\.attn\.qkv\.weight"),
        networks=(("encoder", r"(?=[a-z])(?!decoder_|mask_token)"),),
        drops=(("decoder", r"(decoder_.+|mask_token)"),),
        method=(("*", "mae"),),
        vit_heads=12,
    ),
    Family(
        "mae",
        "MAE: a ViT beside 'decoder_embed.' and 'decoder_blocks.'",
        architectures=("ViT",),
        needs=(r"decoder_embed\.weight", r"decoder_blocks\.0\..+", r"blocks\.0\.attn\.qkv\.weight"),
        networks=(("encoder", r"(?=[a-z])(?!decoder_|mask_token)"),),
        drops=(("decoder", r"(decoder_.+|mask_token)"),),
        method=(("*", "mae"),),
    ),
    Family(
        "fcmae",
        "ConvNeXt V2's pre-training: 'encoder.' beside 'decoder.' and 'mask_token'",
        architectures=("other timm network",),
        needs=(r"encoder\.downsample_layers\.0\.0\.weight", r"decoder\.0\.dwconv\..+", r"mask_token"),
        networks=(("encoder", r"encoder\."),),
        drops=(("decoder", r"((decoder|proj|pred)\..+|mask_token)"),),
        method=(("*", "fcmae"),),
    ),
    Family(
        "msn",
        "MSN: 'target_encoder.' and 'encoder.' beside 'prototypes'",
        architectures=("ViT",),
        needs=(r"target_encoder\.blocks\..+", r"encoder\.blocks\..+", r"prototypes"),
        networks=_prefixes("", "target_encoder", "encoder"),
        drops=(("projection head or prototypes", r"((target_)?encoder\.(fc|pred)\..+|prototypes)"),),
        method=(("*", "msn"),),
        vit_heads=AS_TIMM,
    ),
    Family(
        "ijepa",
        "I-JEPA: 'target_encoder.' and 'encoder.' beside 'predictor.predictor_embed.'",
        architectures=("ViT",),
        needs=(r"target_encoder\.blocks\..+", r"predictor\.predictor_embed\.weight"),
        networks=_prefixes("", "target_encoder", "encoder"),
        drops=(("predictor", r"predictor\..+"),),
        method=(("*", "ijepa"),),
        vit_heads=AS_TIMM,
    ),
    Family(
        "clip",
        "CLIP or OpenCLIP: 'visual.' beside a tower for texts",
        architectures=("ViT",),
        needs=(
            rf"(?:{_STATE})?visual\.(class_embedding|trunk\..+|attnpool\..+)",
            rf"(?:{_STATE})?(logit_scale|text\..+)",
        ),
        networks=(("visual", rf"(?:{_STATE})?visual\.(?:trunk\.)?"),),
        drops=(
            (
                "tower for texts",
                rf"(?:{_STATE})?((transformer|token_embedding|ln_final|text)\..+|positional_embedding|text_projection)",
            ),
            ("scale of the loss", rf"(?:{_STATE})?logit_(scale|bias)"),
        ),
        method=(("*", "clip"),),
        vit_heads=AS_TIMM,
        preprocess={
            "mean": [0.48145466, 0.4578275, 0.40821073],
            "std": [0.26862954, 0.26130258, 0.27577711],
            "color_order": "RGB",
        },
    ),
    Family(
        "dinov3",
        "DINOv3: a ViT with 'rope_embed.periods', or a ConvNeXt with 'norms.3.'",
        architectures=("other timm network",),
        needs=(r"((teacher|student|backbone)\.)*(rope_embed\.periods|norms\.3\.weight)",),
        networks=(*_prefixes("", "teacher", "student", tail=r"backbone\."), ("model", r"(?!teacher\.|student\.)")),
        heads=(("teacher", r"teacher\.dino_head\."), ("student", r"student\.dino_head\.")),
        drops=(
            ("projection head", r"(teacher|student)\.(dino_head|ibot_head)\..+"),
            ("loss centre", r"(dino_loss|ibot_patch_loss|koleo_loss|gram\w*)\..+"),
        ),
        method=(("*", "dinov3"),),
        vit_heads=AS_TIMM,
    ),
    Family(
        "dinov2",
        "DINOv2: 'teacher' with 'backbone.' and a 'dino_head.' or a mask token; or flat with a mask token",
        architectures=("ViT",),
        needs=(r"(teacher\.(dino_head|ibot_head)\..+|(teacher\.backbone\.)?(mask_token|register_tokens))",),
        lacks=(_STATE + r".+",),
        networks=(*_prefixes("", "teacher", "student", tail=r"backbone\."), ("model", r"(?!teacher\.|student\.)")),
        heads=(("teacher", r"teacher\.dino_head\."), ("student", r"student\.dino_head\.")),
        drops=(
            ("projection head", r"(teacher|student)\.(dino_head|ibot_head)\..+"),
            ("loss centre", r"(dino_loss|ibot_patch_loss)\..+"),
        ),
        method=(("*", "dinov2"),),
        vit_heads=AS_TIMM,
    ),
    Family(
        "ibot",
        "iBOT: 'student' and 'teacher' with 'backbone.' beside 'ibot_loss'",
        architectures=("ViT", "other timm network"),
        needs=(r"(student|teacher)\.backbone\..+", r"ibot_loss\..+"),
        networks=_prefixes("", "teacher", "student", tail=r"backbone\."),
        heads=(("teacher", r"teacher\.head\."), ("student", r"student\.head\.")),
        drops=(("projection head", r"(student|teacher)\.head\..+"), ("loss centre", r"ibot_loss\..+")),
        method=(("*", "ibot"),),
        vit_heads=AS_TIMM,
        options={"Swin": {"norm_eps": 1e-6}},
    ),
    Family(
        "esvit",
        "EsViT: 'student' and 'teacher', each with blocks and 'head.mlp.'",
        architectures=("ViT", "other timm network"),
        needs=(r"(student|teacher)\.head\.mlp\..+", r"(student|teacher)\.(blocks|layers)\..+"),
        networks=_prefixes("", "teacher", "student"),
        heads=(("teacher", r"teacher\.head\."), ("student", r"student\.head\.")),
        drops=(("projection head", r"(student|teacher)\.head(_dense)?\..+"), ("loss centre", r"dino_loss\..+")),
        method=(("*", "esvit"),),
        vit_heads=AS_TIMM,
        options={"Swin": {"norm_eps": 1e-6}},
    ),
    Family(
        "dino",
        "DINO: 'student' or 'teacher' with 'backbone.'",
        architectures=_ALL,
        needs=(r"(student|teacher)\.backbone\..+",),
        networks=_prefixes("", "teacher", "student", tail=r"backbone\."),
        heads=(("teacher", r"teacher\.head\."), ("student", r"student\.head\.")),
        drops=(("projection head", r"(student|teacher)\.head\..+"), ("loss centre", r"dino_loss\..+")),
        method=(("*", "dino"),),
        vit_heads=AS_TIMM,
    ),
    Family(
        "byol",
        "BYOL: 'online_encoder.net.' beside 'target_encoder.', or 'online_network_state_dict.encoder.'",
        architectures=("ResNet",),
        needs=(r"(online_encoder\.net|online_network_state_dict\.encoder)\..+",),
        networks=(
            ("online", r"(?:online_encoder\.net|online_network_state_dict\.encoder)\."),
            ("target", r"(?:target_encoder\.net|target_network_state_dict\.encoder)\."),
        ),
        drops=(
            (
                "projection and prediction heads",
                r"((online|target)_encoder\.projector|online_predictor|(online|target)_network_state_dict\.projetion)\..+",
            ),
            ("optimizer", r"optimizer_state_dict\..+"),
        ),
        method=(("*", "byol"),),
    ),
    Family(
        "distillation",
        "a student beside its teacher: 'student.' and 'teacher.' with a 'queue' (SEED), 'encoder_q.' and "
        "'teacher_encoder_q.' (DisCo) or 'encoder_t.' (SimReg)",
        architectures=_CNNS,
        needs=(
            rf"(?:{_STATE})?(student|encoder_q)\..+",
            rf"(?:{_STATE})?(teacher|teacher_encoder_q|encoder_t)\..+",
            rf"(?:{_STATE})?(queue|predict_q\..+)",
        ),
        networks=_prefixes(
            rf"(?:{_STATE})?", "student", "encoder_q", "encoder_k", "teacher", "teacher_encoder_q", "encoder_t"
        ),
        drops=(
            ("queue", rf"(?:{_STATE})?queue(_ptr)?"),
            ("prediction head", rf"(?:{_STATE})?predict_q\..+"),
            ("momentum teacher", rf"(?:{_STATE})?teacher_encoder_k\..+"),
        ),
        method=(("student", "distillation"), ("encoder_q", "distillation"), ("encoder_k", "distillation")),
    ),
    Family(
        "ressl",
        "ReSSL: 'encoder_q.net.' beside 'encoder_q.head.'",
        architectures=("ResNet",),
        needs=(rf"(?:{_STATE})?encoder_q\.net\..+", rf"(?:{_STATE})?encoder_q\.head\..+"),
        networks=_prefixes(rf"(?:{_STATE})?", "encoder_q", "encoder_k", tail=r"net\."),
        drops=(
            ("projection head", rf"(?:{_STATE})?encoder_[qk]\.head\..+"),
            ("queue", rf"(?:{_STATE})?queue(_ptr)?"),
        ),
        method=(("*", "ressl"),),
    ),
    Family(
        "moco",
        "MoCo v1/v2: 'encoder_q.' beside a 'queue'",
        architectures=_CNNS,
        needs=(rf"(?:{_STATE})?encoder_q\..+",),
        lacks=(_STATE + r"backbone\..+",),  # OpenMMLab's
        networks=_prefixes(rf"(?:{_STATE})?", "encoder_q", "encoder_k"),
        drops=(("queue", rf"(?:{_STATE})?queue(_ptr)?"),),
        method=(("*", "moco"),),
    ),
    Family(
        "mocov3",
        "MoCo v3: 'base_encoder.' and 'momentum_encoder.'",
        architectures=("ResNet", "ViT"),
        needs=(rf"(?:{_STATE})?base_encoder\..+",),
        networks=_prefixes(rf"(?:{_STATE})?", "base_encoder", "momentum_encoder"),
        drops=(("predictor", rf"(?:{_STATE})?predictor\..+"),),
        method=(("*", "mocov3"),),
        vit_heads=12,
    ),
    Family(
        "vissl",
        "VISSL: 'classy_state_dict.base_model.model.trunk', or 'model_state_dict._feature_blocks.'",
        architectures=("ResNet", "ViT"),
        needs=(r"(classy_state_dict\.base_model\.trunk|model_state_dict\._feature_blocks)\..+",),
        networks=(("trunk", r"(?:classy_state_dict\.base_model\.trunk|model_state_dict)\.(?:_feature_blocks\.)?"),),
        drops=(
            ("head", r"classy_state_dict\.base_model\.heads\..+"),
            ("loss, optimizer and counters", r"classy_state_dict\.(?!base_model\.(trunk|heads)\.).+"),
        ),
    ),
    Family(
        "swav",
        "SwAV: ResNet names beside 'projection_head.' or 'prototypes.'",
        architectures=("ResNet",),
        needs=(rf"(?:{_STATE})?(projection_head|prototypes)\..+", rf"(?:{_STATE})?layer\d\.\d+\..+"),
        networks=(("model", rf"(?:{_STATE})?"),),
        drops=(("projection head or prototypes", rf"(?:{_STATE})?(projection_head|prototypes)(\..+)?"),),
        method=(("*", "swav"),),
    ),
    Family(
        "mmdet-detector",
        "an mmdet detector: 'backbone.' beside 'rpn_head.', 'bbox_head.', 'mask_head.' or 'roi_head.'",
        architectures=_CNNS,
        needs=(_STATE + r"backbone\..+", _STATE + r"(rpn_head|roi_head|bbox_head|mask_head)\..+"),
        networks=(("backbone", rf"{_STATE}(?:backbone\.|roi_head\.shared_head\.)"),),
        drops=(
            ("neck and heads", _STATE + r"(neck|rpn_head|roi_head|bbox_head|mask_head|data_preprocessor)\..+"),
            ("averaged copy (EMA)", r"(ema_state_dict|ema)\..+"),
            ("message hub", r"message_hub\..+"),
        ),
        detector=True,
        framework="mmdet",
    ),
    Family(
        "detectron2-detector",
        "a detectron2 detector: 'backbone.' beside 'proposal_generator.' or 'roi_heads.'",
        architectures=_CNNS,
        needs=(r"backbone\..+", r"(proposal_generator\..+|roi_heads\.(?!res5\.).+)"),
        networks=_DETECTRON2,
        drops=(
            ("neck and heads", r"(backbone\.(fpn_|simfp).+|proposal_generator\..+|roi_heads\.(?!res5\.).+)"),
            ("norm that a C4 head adds after res5", r"roi_heads\.res5\.norm\..+"),
            ("pixel mean and std", r"pixel_(mean|std)"),
            ("averaged copy (EMA)", r"ema_state\..+"),
        ),
        detector=True,
        framework="detectron2",
    ),
    Family(
        "detectron2",
        "a backbone for detectron2: 'backbone.bottom_up.', 'backbone.net.' or 'backbone.stem.'",
        architectures=_CNNS,
        needs=(r"backbone\.(bottom_up|net|stem|res\d)\..+",),
        networks=_DETECTRON2,
        framework="detectron2",
    ),
    Family(
        "solo-learn",
        "solo-learn: Lightning 'state_dict' with 'backbone.' or 'encoder.' beside 'projector.' or 'classifier.'",
        architectures=("ResNet", "ViT"),
        needs=(
            _STATE + r"(backbone|encoder)\..+",
            _LIGHTNING,
            _STATE + r"(projector|classifier|momentum_backbone|momentum_encoder|predictor|prototypes)\..+",
        ),
        lacks=(_STATE + r"(backbone\.(\d+|vit)|projection_head|target_encoder)\..+",),
        networks=_prefixes(_STATE, "backbone", "encoder", "momentum_backbone", "momentum_encoder"),
        drops=(
            ("heads of the method", _STATE + r"(momentum_)?(projector|classifier|predictor|prototypes|head)(\..+)?"),
            ("queue", _STATE + r".*queue.*"),
            ("loss centre", _STATE + r".*loss.*"),
        ),
    ),
    Family(
        "lightly-train",
        "lightly-train: 'embedding_model.wrapped_model.', alone or as teacher's and student's",
        architectures=_ANY,
        needs=(_STATE + r"(\w+_)?embedding_model\.wrapped_model\..+",),
        # What it exports: in DINO and DINOv2 the teacher; distillation leaves its teacher out of the file.
        networks=_prefixes(
            _STATE,
            "embedding_model",
            "teacher_embedding_model",
            "student_embedding_model",
            tail=r"wrapped_model\.(?:_model|_features)\.",
        ),
        drops=(
            ("heads of the method", _STATE + r"(?!\w*embedding_model)\w*head\w*(\..+)?"),
            ("loss and queue", _STATE + r"(criterion|\w+_loss|\w*queue\w*)(\..+)?"),
            ("the trained modules, pickled, and settings", r"lightly_train(\..*)?"),
        ),
    ),
    Family(
        "lightly",
        "lightly: '[teacher_|student_]backbone.' in a Lightning file, or beside a second one or a head",
        architectures=_ANY,
        needs=(
            rf"(?:{_STATE})?(((student|teacher|online)_)?backbone|target_encoder\.encoder)\..+",
            rf"{_LIGHTNING}|(?:{_STATE})?(projection_head|\w+_backbone|backbone_momentum|backbone\.vit|target_encoder)\..+",
        ),
        # What lightly's own benchmarks evaluate: `backbone`, in DINO the teacher; where there is none, the teacher.
        networks=(
            *_prefixes(
                rf"(?:{_STATE})?",
                "backbone",
                "teacher_backbone",
                "online_backbone",
                "student_backbone",
                "backbone_momentum",
                "momentum_backbone",
                "key_backbone",
                "anchor_backbone",
                tail=r"(?:vit\.)?",
            ),
            *_prefixes(rf"(?:{_STATE})?", "target_encoder", "encoder"),
        ),
        drops=(
            (
                "heads of the method",
                rf"(?:{_STATE})?(?!(\w+_)?backbone|backbone_)"
                r"(\w*(head|projector|predictor|prototypes|classifier|decoder)\w*)(\..+)?",
            ),
            ("mask token of masked-image training", rf"(?:{_STATE})?(\w+_)?backbone\.mask_token"),
            ("queue or memory bank", rf"(?:{_STATE})?.*(queue|bank|criterion|loss).*"),
        ),
    ),
    Family(
        "openmmlab",
        "mmselfsup or mmpretrain: 'state_dict' with 'backbone.' beside 'meta'",
        architectures=_ALL,
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
        "pixpro",
        "PixPro: 'encoder.' and 'encoder_k.' beside 'projector_k.'",
        architectures=("ResNet",),
        needs=(r"encoder\..+", r"encoder_k\..+", r"projector_k\..+"),
        networks=_prefixes("", "encoder", "encoder_k"),
        drops=(("heads of the method", r"(projector\w*|predictor|value_transform)\..+"),),
        method=(("*", "pixpro"),),
    ),
    Family(
        "simsiam",
        "SimSiam: 'encoder.' beside 'predictor.'",
        architectures=("ResNet",),
        needs=(rf"(?:{_STATE})?encoder\.fc\.6\.weight", rf"(?:{_STATE})?predictor\..+"),
        networks=_prefixes(rf"(?:{_STATE})?", "encoder"),
        drops=(("prediction head", rf"(?:{_STATE})?predictor\..+"),),
        method=(("*", "simsiam"),),
    ),
    Family(
        "barlowtwins",
        "Barlow Twins: 'backbone.' beside 'projector.' and the norm 'bn.' of the projections",
        architectures=("ResNet",),
        needs=(r"backbone\..+", r"projector\..+", r"bn\.running_mean"),
        networks=_prefixes("", "backbone"),
        drops=(("projection head and its norm", r"(projector|bn)\..+"),),
        method=(("*", "barlowtwins"),),
    ),
    Family(
        "vicreg",
        "VICReg: 'backbone.' beside 'projector.', an MLP with biases and norms",
        architectures=("ResNet",),
        needs=(r"backbone\..+", r"projector\.0\.bias", r"projector\.1\.running_mean"),
        networks=_prefixes("", "backbone"),
        drops=(("projection head", r"projector\..+"),),
        method=(("*", "vicreg"),),
    ),
    Family(
        "simclr",
        "SimCLR: 'backbone.' with an MLP 'backbone.fc.', or 'encoder.' beside a 'projector.' without norms",
        architectures=("ResNet",),
        needs=(rf"(?:{_STATE})?(backbone\.(?=fc)|encoder\.).+", rf"(?:{_STATE})?(backbone\.fc|projector)\.2\.weight"),
        lacks=(rf"(?:{_STATE})?(projector\.\d+\.running_mean|(predictor|encoder_k|momentum_\w+|head)\..+)",),
        networks=(("encoder", rf"(?:{_STATE})?(?:backbone|encoder)\."),),
        drops=(("projection head", rf"(?:{_STATE})?projector\..+"),),
        method=(("*", "simclr"),),
    ),
    Family(
        "backbone",
        "tensors under 'backbone.' and nothing else that names a family",
        architectures=_ALL,
        needs=(rf"(?:{_STATE})?backbone\..+",),
        networks=(("backbone", rf"(?:{_STATE})?backbone\."),),
    ),
    Family(
        "huggingface",
        "transformers: its names of layers in 'embeddings.', 'embedder.', 'conv_stem.' or 'downsample_layers.'",
        architectures=_ANY,
        needs=(
            r"(.+\.)?(embeddings\.(patch_embeddings?\.(projection\.)?|convolution\.)|embedder\.embedder\.convolution\."
            r"|conv_stem\.(first_conv\.)?convolution\.|stages\.0\.downsample_layers\.0\.)weight",
        ),
        networks=(
            (
                "model",
                r"(?:(?:vit|deit|dinov2(?:_with_registers)?|beit|data2vec_vision|swin|convnext(?:v2)?|resnet|regnet"
                r"|mobilenet_v[12]|efficientnet|vision_model)\.)?",
            ),
        ),
    ),
    Family(
        PLAIN,
        "a plain network: torchvision's or timm's own names",
        architectures=_ANY,
        needs=(r".+",),
        networks=(("model", rf"(?!state_dict|model_ema\.)|{_STATE}"), ("ema", r"(?:state_dict_ema|model_ema)\.")),
    ),
)
FAMILIES = {family.name: family for family in _FAMILIES}

# What trainers store beside networks, whatever the family.
ALWAYS_DROPPED = (
    (
        "optimizer, schedule, random and trainer state",
        r"((lr_)?schedulers?|optimizers?|trainer|optimizer_states|lr_schedulers|(\w+_)?scaler|amp|amp_state|rng\w*|callbacks|loops"
        r"|hparams\w*|hyper_parameters|cuda_rng\w*|torch_rng\w*|random_state\w*|iteration|matching_heuristics)(\..*)?",
    ),
    ("centre of the loss", r"(loss|dino_loss)(\..*)?"),
)


def recognise(keys: Iterable[str], name: str | None = None) -> Family:
    """The family called `name`, else the first of the table whose signs are all among the keys; the last fits any file.

    Raises InputError for an unknown name.
    """
    if name:
        if name not in FAMILIES:
            raise InputError(f"unknown family '{name}'{nearest(name, FAMILIES)}: use one of {', '.join(FAMILIES)}")
        return FAMILIES[name]
    keys = list(keys)
    return next((family for family in FAMILIES.values() if family.fits(keys)), FAMILIES[PLAIN])


def _any_key(pattern: str, keys: list[str]) -> bool:
    match = compiled(pattern).fullmatch
    return any(match(key) for key in keys)


def _any_start(pattern: str, keys: Iterable[str]) -> bool:
    match = compiled(pattern + "(?=.)").match
    return any(match(key) for key in keys)


@functools.cache
def compiled(pattern: str) -> re.Pattern:
    """A compiled pattern, once."""
    return re.compile(pattern)


def brief(value: object) -> str:
    """Whatever a file holds, short and on one line."""
    return " ".join(str(value).split())[:120]


def of_run(family: Family, content: object, source: str) -> Family:
    """The family of this project's run checkpoints, completed by what one of them says of its networks.

    Raises InputError if it is of another format or damaged.
    """
    from sslight.core.checkpoint import FORMAT  # imports torch

    content = content if isinstance(content, dict) else {}
    if content.get("format") != FORMAT:
        raise InputError(f"{source} has format '{brief(content.get('format'))}'; this version reads '{FORMAT}'")
    model: Any = content.get("model")
    networks: Any = content.get("networks")
    method = brief(content.get("method"))
    usable = isinstance(model, dict) and isinstance(networks, dict) and networks
    if not usable or not all(isinstance(text, str) for text in (*model, *networks, *networks.values())):
        raise InputError(f"not a readable checkpoint: {source} lacks a usable 'model' or 'networks'")
    for prefix in networks.values():
        if not any(key.startswith(prefix) for key in model):
            raise InputError(f"not a readable checkpoint: {source} has no tensors under '{prefix}'")
    prefixes = {name: re.escape(prefix) for name, prefix in networks.items()}
    heads = {name: re.escape(prefix.removesuffix("backbone.") + "head.") for name, prefix in networks.items()}
    return replace(
        family,
        networks=tuple(prefixes.items()),
        heads=tuple(heads.items()) if method.startswith("dino") else (),
        drops=(("heads, optimizer and state of the method", rf"(?!{'|'.join(prefixes.values())}).+"),),
        method=(("*", method),),
    )
