"""Whose checkpoint is this, where in it are its networks, and what does it record that shapes do not show?

One table entry per family (`FAMILIES`, the registry that commands and documentation read), recognised from the keys
alone: patterns are anchored and apply to the flat, unwrapped keys of `convert.safe_files`. Families are tried in the
table's order, which goes from telling signs to plain ones; the text of the rule that matched is part of every report.
Imports nothing heavy.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from convert.names import RESNET_DETECTRON2, Layout
from sslight.core.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from convert.safe_files import Flat

IMAGENET: dict[str, Any] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "color_order": "RGB"}
AS_TIMM = 0  # for a number of heads: timm's of the same width

# mmpretrain's names of its plain ViTs, in small letters, and their attention heads.
_MMPRETRAIN_HEADS = {
    "mocov3-s": 12,
    "mocov3-small": 12,
    "s": 8,
    "small": 8,
    "deit-t": 3,
    "deit-tiny": 3,
    "dinov2-s": 6,
    "dinov2-small": 6,
    "deit-s": 6,
    "deit-small": 6,
    "b": 12,
    "base": 12,
    "deit-b": 12,
    "deit-base": 12,
}


@dataclass(frozen=True)
class Checkpoint:
    """One network's backbone out of a checkpoint file, and all that is known of where it came from.

    The record that passes through the steps of `convert.reader`, each of which fills its fields. `source` is the path,
    for messages. `state` has timm's names; `body` the same tensors in the file's own naming, called `layout`; `arch` is
    timm's name (until the network is identified: the file's own word for it, or ""), `kind` as of `names.kind_of`,
    `options` are `build_backbone` arguments beside `arch`; `head` holds DINO's projection head (`mlp.N.*`) or None;
    `dropped` maps a reason to the file's keys; `counts` says how many keys each renaming rule took; `assumed` says by
    topic what neither the file nor the user states; `hashing` is the file's SHA-256 being computed.
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
        else f"; for another number: {option} num_heads=N"
    }
    return [text + ways.get(topic, "") for topic, text in assumed.items()]


@dataclass(frozen=True)
class Family:
    """The contract of a checkpoint layout. Adding one is an entry of the table below.

    name: of `--family`, of the report and of its page in docs/converting/. `rule`: its signs in words.
    architectures: whose published checkpoints are read; for `--help` and the documentation.
    needs: patterns of which each must match a key; `lacks`: patterns that no key may match.
    networks: (name, pattern of its backbone's prefix), the one to evaluate first; empty where the file itself says so.
    heads: (network, pattern of the prefix of its DINO head).
    drops: (reason, pattern) of keys that belong to no backbone. A key that no network and no reason takes is an error.
    method: (network, the method that trained it), "*" for all; absent where the keys do not say.
    detector: a trained detector, read only where that is asked for.
    framework: "detectron2" or "mmdet", whose settings and default strides such a file has.
    vit_heads: attention heads of the ViT-Ti/S/B that the family's own code defines, AS_TIMM for timm's numbers, None
        where files of many codes look so: no shape shows it.
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

    def fits(self, keys: list[str]) -> bool:
        """Whether the keys bear all of its signs."""
        return all(_any_key(pattern, keys) for pattern in self.needs) and not any(
            _any_key(pattern, keys) for pattern in self.lacks
        )


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
        "moco",
        "MoCo v1/v2: 'encoder_q.' beside a 'queue'",
        architectures=_CNNS,
        needs=(rf"(?:{_STATE})?encoder_q\..+",),
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
        "VISSL: 'classy_state_dict.base_model.model.trunk'",
        architectures=("ResNet", "ViT"),
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
        architectures=_ALL,
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
        "backbone",
        "tensors under 'backbone.' and nothing else that names a family",
        architectures=_ALL,
        needs=(rf"(?:{_STATE})?backbone\..+",),
        networks=(("backbone", rf"(?:{_STATE})?backbone\."),),
    ),
    Family(
        "torchvision-timm",
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
    return next(family for family in FAMILIES.values() if family.fits(keys))


def _any_key(pattern: str, keys: list[str]) -> bool:
    match = compiled(pattern).fullmatch
    return any(match(key) for key in keys)


@functools.cache
def compiled(pattern: str) -> re.Pattern:
    """A compiled pattern, once."""
    return re.compile(pattern)


def brief(value: object) -> str:
    """Whatever a file holds, short and on one line."""
    return " ".join(str(value).split())[:120]


def choose(family: Family, flat: Flat, network: str | None, source: str) -> Checkpoint:
    """The chosen network's tensors as the file names them; every other key is dropped by a named rule or an error."""
    from timm.models import is_model  # imports torch

    if not family.networks:
        return _choose_by_record(family, flat, network, source)
    tensors = flat.tensors
    present = {
        name: pattern
        for name, pattern in family.networks
        if any(compiled(pattern + "(?=.)").match(key) and not _drop_reason(family, key) for key in tensors)
    }
    if not present:
        raise InputError(
            f"{source} is not of the family {family.name} ({family.rule}); "
            "without --family it is recognised from its keys"
        )
    chosen = network or next(iter(present))
    if chosen not in present:
        raise InputError(
            f"{source} ({family.name}) has no network '{chosen}'{nearest(chosen, present)}; it has {', '.join(present)}"
        )
    prefix = compiled(present.pop(chosen))
    body: dict[str, Tensor] = {}
    dropped: dict[str, list[str]] = {}
    unknown: list[str] = []
    for key in flat.values:
        reason = _drop_reason(family, key)
        start = prefix.match(key)
        if key not in tensors:
            reason = "not a tensor (settings and counters)"
        elif reason is None and start:
            body[key[start.end() :]] = tensors[key]
            continue
        elif reason is None:
            other = [name for name, pattern in present.items() if compiled(pattern).match(key)]
            reason = f"other network '{other[0]}'" if other else None
        if reason is None:
            unknown.append(flat.raw[key])
        else:
            dropped.setdefault(reason, []).append(flat.raw[key])
    if unknown:
        raise InputError(
            f"{source} ({family.name}): {len(unknown)} keys belong to no rule of the family: {', '.join(unknown)}"
        )
    methods, arch = dict(family.method), flat.values.get("arch")
    head_prefix = dict(family.heads).get(chosen)
    heads = {
        key[match.end() :]: value
        for key, value in tensors.items()
        if head_prefix and (match := compiled(head_prefix).match(key))
    }
    return Checkpoint(
        source,
        family.name,
        family.rule,
        chosen,
        methods.get(chosen) or methods.get("*") or "unknown",
        arch if isinstance(arch, str) and is_model(arch) else "",  # other projects' names may be none of timm's
        body=body,
        head=_only_mlp(heads),
        dropped=dropped,
    )


def _drop_reason(family: Family, key: str) -> str | None:
    return next(
        (reason for reason, pattern in (*family.drops, *ALWAYS_DROPPED) if compiled(pattern).fullmatch(key)), None
    )


def _only_mlp(head: dict[str, Tensor]) -> dict[str, Tensor] | None:
    return {key: value for key, value in head.items() if key.startswith("mlp.")} or None


def _choose_by_record(family: Family, flat: Flat, network: str | None, source: str) -> Checkpoint:
    """A run checkpoint says itself where its networks are."""
    from sslight.core.checkpoint import FORMAT  # imports torch

    content: dict[str, Any] = flat.content if isinstance(flat.content, dict) else {}
    if content.get("format") != FORMAT:
        raise InputError(f"{source} has format '{brief(content.get('format'))}'; this version reads '{FORMAT}'")
    model: Any = content.get("model")
    networks: Any = content.get("networks")
    method = brief(content.get("method"))
    usable = isinstance(model, dict) and isinstance(networks, dict) and networks
    if not usable or not all(isinstance(text, str) for text in (*model, *networks, *networks.values())):
        raise InputError(f"not a readable checkpoint: {source} lacks a usable 'model' or 'networks'")
    chosen = network or next(iter(networks))
    if chosen not in networks:
        raise InputError(f"{source} has no network '{chosen}'{nearest(chosen, networks)}; it has {', '.join(networks)}")
    prefix = networks[chosen]
    head_prefix = prefix.removesuffix("backbone.") + "head."
    body: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    dropped: dict[str, list[str]] = {}
    for key, value in model.items():
        other = next((name for name, start in networks.items() if name != chosen and key.startswith(start)), None)
        if key.startswith(prefix):
            body[key[len(prefix) :]] = value
            continue
        if key.startswith(head_prefix):
            head[key[len(head_prefix) :]] = value
        reason = f"other network '{other}'" if other else "heads, prototypes, queues and centres of the method"
        dropped.setdefault(reason, []).append(f"model.{key}")
    for key in flat.values:
        if not flat.raw[key].startswith("model."):
            dropped.setdefault("settings and trainer state", []).append(flat.raw[key])
    tensors = {flat.raw[key] for key in flat.tensors}
    if not body or not all(f"model.{prefix}{key}" in tensors for key in body):
        raise InputError(f"not a readable checkpoint: {source} has no tensors under '{prefix}'")
    return Checkpoint(
        source,
        family.name,
        family.rule,
        chosen,
        method,
        brief(content.get("arch")),
        preprocess=content.get("preprocess"),
        body=body,
        head=_only_mlp(head) if method.startswith("dino") else None,
        dropped=dropped,
    )


@dataclass
class Recorded:
    """`heads`: number of a ViT's attention heads, AS_TIMM, or None if unknown; `preprocess`: mean and std (of images in
    [0, 1], in the network's own order of channels) and color_order, or None; `assumed`: what is assumed instead, by
    topic.
    """

    heads: int | None
    preprocess: dict | None
    assumed: dict[str, str]


def recorded(family: Family, flat: Flat, layout: Layout, checkpoint: Checkpoint) -> Recorded:
    """What the file's settings, or else its family's own code, say of the network that shapes do not show.

    Raises InputError for a ResNet whose strides timm's has not.
    """
    resnet = layout.kind == "resnet"
    strides = _strides(family, flat, layout, checkpoint) if resnet else {}
    preprocess, assumed = _preprocess(family, flat)
    return Recorded(None if resnet else _heads(family, flat), preprocess, strides | assumed)


def _heads(family: Family, flat: Flat) -> int | None:
    name = flat.openmmlab_setting("model", "backbone", "arch")
    config = _MMPRETRAIN_HEADS.get(name.lower()) if isinstance(name, str) else None
    for number in (
        config or flat.openmmlab_setting("model", "backbone", "arch", "num_heads"),
        flat.setting("args", "model_kwargs", "num_heads"),
        *_lightning_heads(flat),
    ):
        if type(number) is int:
            return number
    return family.vit_heads


def _lightning_heads(flat: Flat) -> Iterator[object]:
    """solo-learn's settings, flat or under `cfg`: its MoCo v3 has ViTs of its own, the other methods have timm's."""
    for root in (("hyper_parameters",), ("hyper_parameters", "cfg")):
        for arguments in (("backbone", "kwargs"), ("backbone_args",)):
            yield flat.setting(*root, *arguments, "num_heads")
        method = flat.setting(*root, "method")
        if isinstance(method, str):
            yield 12 if method.lower() == "mocov3" else AS_TIMM


def _strides(family: Family, flat: Flat, layout: Layout, checkpoint: Checkpoint) -> dict[str, str]:
    """What is assumed of a ResNet's strides, by topic. Raises InputError for recorded ones that no timm ResNet has."""
    bottleneck = any(".conv3." in key for key in checkpoint.state)
    resnets = ("cfg", "MODEL", "RESNETS")
    wrong = []
    if bottleneck and flat.openmmlab_setting("model", "backbone", "style") == "caffe":
        wrong.append("style='caffe' (the 1x1 convolution strides)")
    if bottleneck and flat.setting(*resnets, "STRIDE_IN_1X1") is True:
        wrong.append("STRIDE_IN_1X1 True (the 1x1 convolution strides)")
    for name, usual in (("strides", (1, 2, 2, 2)), ("dilations", (1, 1, 1, 1))):
        given = flat.openmmlab_setting("model", "backbone", name)
        if isinstance(given, list | tuple) and tuple(given) != usual[: len(given)]:
            wrong.append(f"{name}={tuple(given)}")
    dilation = flat.setting(*resnets, "RES5_DILATION")
    if dilation not in (None, 1):
        wrong.append(f"RES5_DILATION {dilation}")
    if wrong:
        raise InputError(
            f"{checkpoint.source}: its recorded settings say {' and '.join(wrong)}; timm's ResNet, through which "
            "every conversion goes, cannot have such strides, and its features would be others"
        )
    if layout.table is RESNET_DETECTRON2:
        unknown, other = flat.setting(*resnets, "STRIDE_IN_1X1") is None, "detectron2's default, STRIDE_IN_1X1 True,"
    else:
        unknown = family.framework == "mmdet" and not flat.openmmlab_setting("model", "backbone")
        other = "mmdet's style='caffe'"
    if not (bottleneck and unknown):
        return {}
    return {
        "strides": "strides are not recorded in the file: in the 3x3 convolutions assumed (timm's, "
        f"torchvision's); {other} puts them in the 1x1, which timm's ResNet cannot"
    }


def _preprocess(family: Family, flat: Flat) -> tuple[dict | None, dict[str, str]]:
    """`Recorded.preprocess`, and what is assumed of it."""
    assumed = {}
    if family.framework == "detectron2":
        mean, std = (
            _pixels(flat.tensors.get(f"pixel_{name}"))
            or _numbers(flat.setting("cfg", "MODEL", f"PIXEL_{name.upper()}"))
            for name in ("mean", "std")
        )
        order = flat.setting("cfg", "INPUT", "FORMAT")
        if mean and std and order not in ("RGB", "BGR"):
            order = "BGR" if mean[0] <= mean[2] else "RGB"
            usual = [255 * value for value in IMAGENET["mean"]][:: -1 if order == "BGR" else 1]
            if any(abs(value - known) > 2 for value, known in zip(mean, usual, strict=True)):
                assumed["color_order"] = (
                    f"colour order is not recorded in the file: {order} assumed, by the order of its pixel means {mean}"
                )
    else:
        mean, std, order = _openmmlab_preprocess(flat)
    if mean and std:
        unit = ([value / 255 for value in values] for values in (mean, std))
        return {**dict(zip(("mean", "std"), unit, strict=True)), "color_order": order}, assumed
    detectron2 = "; detectron2's default is BGR, mean 103.53, 116.28, 123.675, std 1"
    text = "preprocessing is not recorded in the file: ImageNet mean and std, RGB assumed"
    return None, {"preprocess": text + detectron2 * (family.detector and family.framework == "detectron2")}


def _openmmlab_preprocess(flat: Flat) -> tuple[list[float] | None, list[float] | None, str]:
    """OpenMMLab's `data_preprocessor`, or the older `img_norm_cfg`; images are loaded BGR."""
    for place in (("model", "data_preprocessor"), ("data_preprocessor",), ("img_norm_cfg",)):
        mean, std, *turned = (flat.openmmlab_setting(*place, name) for name in ("mean", "std", "bgr_to_rgb", "to_rgb"))
        mean, std = _numbers(mean), _numbers(std)
        if mean and std:
            return mean, std, "RGB" if any(turned) else "BGR"
    return None, None, ""


def _pixels(values: Tensor | None) -> list[float] | None:
    return _numbers(values.flatten().tolist()) if values is not None and values.numel() == 3 else None


def _numbers(values: object) -> list[float] | None:
    """Three numbers, or None."""
    if isinstance(values, list | tuple) and len(values) == 3 and all(type(value) in (int, float) for value in values):
        return [float(value) for value in values]
    return None
