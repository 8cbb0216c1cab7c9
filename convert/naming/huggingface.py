"""Namings of Hugging Face's transformers: those of its files, and since version 5 those of its networks in memory.

Files (`save_pretrained`) keep version 4's names; `torch.save(model.state_dict())` of version 5 writes the newer ones.
A table holds both. Attention has a layer each for query, key and value, timm one for all three: `joined` puts them
together before a table is applied.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from convert.naming.mobilenet import MOBILENET_BLOCKS
from convert.naming.rules import Layout, Rule
from convert.naming.vit import fold_class_position

if TYPE_CHECKING:
    from torch import Tensor

State = dict[str, "Tensor"]
_PART = re.compile(r"(.+\.)(query|key|value|q_proj|k_proj|v_proj)\.(weight|bias)")
_PARTS = {"query": "q", "q_proj": "q", "key": "k", "k_proj": "k", "value": "v", "v_proj": "v"}


def joined(state: State) -> State:
    """Query, key and value of each layer as one `qkv`; where the key has no bias, `q_bias` and `v_bias` stay apart."""
    import torch

    result: State = {}
    layers: dict[tuple[str, str], State] = {}
    for name, value in state.items():
        part = _PART.fullmatch(name)
        if part:
            layers.setdefault((part[1], part[3]), {})[_PARTS[part[2]]] = value
        else:
            result[name] = value
    for (layer, kind), parts in layers.items():
        if parts.keys() == {"q", "k", "v"} and _alike(*parts.values()):
            result[f"{layer}qkv.{kind}"] = torch.cat([parts["q"], parts["k"], parts["v"]])
        else:
            result |= {f"{layer}{part}_{kind}": value for part, value in parts.items()}
    return result


def _alike(*tensors: Tensor) -> bool:
    """Whether tensors have one shape, and can be put together: a damaged file's are left for the comparison to name."""
    return len({value.shape for value in tensors}) == 1 and tensors[0].ndim > 0


def _vit(state: State) -> tuple[State, list[str]]:
    """As `joined`; CLIP's and SigLIP's tokens and positions get timm's axes, SigLIP's pooling its two layers.

    In gated layers `up_proj` is what the gate multiplies, in others the first layer. DINOv2's are one layer in timm.
    """
    import torch

    state = joined(state)
    for gate in [name for name in state if ".mlp.gate_proj." in name]:
        multiplied = state.pop(gate.replace("gate_proj", "up_proj"), None)
        if multiplied is not None and gate.startswith("encoder.") and _alike(state[gate], multiplied):
            state[gate.replace("gate_proj", "weights_in")] = torch.cat([state.pop(gate), multiplied])
        elif multiplied is not None:
            state[gate.replace("gate_proj", "gated_proj")] = multiplied
    for name, axes in (("embeddings.class_embedding", 1), ("embeddings.position_embedding.weight", 2)):
        if name in state and state[name].ndim == axes:
            state[name] = state[name][(None,) * (3 - axes)]
    for kind in ("weight", "bias"):
        both = state.get(f"head.attention.in_proj_{kind}")
        if both is not None and both.ndim:
            del state[f"head.attention.in_proj_{kind}"]
            width = len(both) // 3
            state |= {f"head.attention.q.{kind}": both[:width], f"head.attention.kv.{kind}": both[width:]}
    return state, []


def _swin(state: State) -> tuple[State, list[str]]:
    return joined(state), []


def _convnext(state: State) -> tuple[State, list[str]]:
    """timm's response norms (GRN) are flat, and the pointwise layers of its smallest ConvNeXt V2 are convolutions."""
    state, stem = dict(state), state.get("embeddings.patch_embeddings.weight")
    convolutions = (
        stem is not None and stem.ndim and len(stem) in (40, 48, 64, 80) and any(".grn." in name for name in state)
    )
    for name, value in state.items():
        if ".grn." in name:
            state[name] = value.flatten()
        elif convolutions and value.ndim == 2 and re.search(r"\.pwconv\d\.weight$", name):
            state[name] = value[:, :, None, None]
    return state, []


# Blocks per stage of EfficientNet B0 to B7, by their sum. In transformers they form one list.
_EFFICIENTNETS = {
    sum(counts): counts
    for counts in (
        (1, 2, 2, 3, 3, 4, 1),
        (2, 3, 3, 4, 4, 5, 2),
        (2, 3, 3, 5, 5, 6, 2),
        (2, 4, 4, 6, 6, 8, 2),
        (3, 5, 5, 7, 7, 9, 3),
        (3, 6, 6, 8, 8, 11, 3),
        (4, 7, 7, 10, 10, 13, 4),
    )
}
_FLAT_BLOCK = re.compile(r"encoder\.blocks\.(\d+)\.(.+)")


def _efficientnet(state: State) -> tuple[State, list[str]]:
    """Blocks numbered by stage."""
    numbers = {int(block[1]) for block in map(_FLAT_BLOCK.fullmatch, state) if block}
    places = [f"{s}.{b}" for s, count in enumerate(_EFFICIENTNETS.get(len(numbers), ())) for b in range(count)]
    if numbers != set(range(len(places))):
        return state, []
    return {_FLAT_BLOCK.sub(lambda b: f"encoder.blocks.{places[int(b[1])]}.{b[2]}", k): v for k, v in state.items()}, []


def _pairs(foreign: str, timm: str, pairs: dict[str, str]) -> list[Rule]:
    return [Rule(foreign + a, timm + b) for a, b in pairs.items()]


def _conv_norm(foreign: str, conv: str, norm: str) -> list[Rule]:
    """transformers' convolution with its norm, timm's two layers."""
    return [
        Rule(f"{foreign}.convolution.weight", f"{conv}.weight"),
        Rule(f"{foreign}.normalization.{{norm}}", f"{norm}.{{norm}}"),
    ]


_BLOCK = "encoder.stages.{s}.layers.{b}."
RESNET = (
    *_conv_norm("embedder.embedder", "conv1", "bn1"),
    *_conv_norm(_BLOCK + "layer.{n}", "layer{s+1}.{b}.conv{n+1}", "layer{s+1}.{b}.bn{n+1}"),
    *_conv_norm(_BLOCK + "shortcut", "layer{s+1}.{b}.downsample.0", "layer{s+1}.{b}.downsample.1"),
)
_REGNET_BLOCK = "s{s+1}.b{b+1}."
REGNET = (
    *_conv_norm("embedder.embedder", "stem.conv", "stem.bn"),
    *_conv_norm(_BLOCK + "layer.{n:0-2}", _REGNET_BLOCK + "conv{n+1}.conv", _REGNET_BLOCK + "conv{n+1}.bn"),
    *_conv_norm(_BLOCK + "layer.3", _REGNET_BLOCK + "conv3.conv", _REGNET_BLOCK + "conv3.bn"),  # 2 is the attention
    *_conv_norm(_BLOCK + "shortcut", _REGNET_BLOCK + "downsample.conv", _REGNET_BLOCK + "downsample.bn"),
    Rule(_BLOCK + "layer.2.attention.0.{wb}", _REGNET_BLOCK + "se.fc1.{wb}"),
    Rule(_BLOCK + "layer.2.attention.2.{wb}", _REGNET_BLOCK + "se.fc2.{wb}"),
)


def _mobilenet_v2() -> tuple[Rule, ...]:
    rules = [
        *_conv_norm("conv_stem.first_conv", "conv_stem", "bn1"),
        *_conv_norm("conv_stem.conv_3x3", "blocks.0.0.conv_dw", "blocks.0.0.bn1"),
        *_conv_norm("conv_stem.reduce_1x1", "blocks.0.0.conv_pw", "blocks.0.0.bn2"),
        *_conv_norm("conv_1x1", "conv_head", "bn2"),
    ]
    start = 0
    for stage, count in enumerate(MOBILENET_BLOCKS[1:], start=1):
        block, timm = f"layer.{{j+{start}}}.", f"blocks.{stage}.{{j:0-{count - 1}}}."
        for n, (name, conv) in enumerate(
            {"expand_1x1": "conv_pw", "conv_3x3": "conv_dw", "reduce_1x1": "conv_pwl"}.items(), start=1
        ):
            rules += _conv_norm(block + name, timm + conv, f"{timm}bn{n}")
        start += count
    return tuple(rules)


MOBILENET_V2 = _mobilenet_v2()


def _mobilenet_v1() -> tuple[Rule, ...]:
    places = [f"blocks.{stage}.{block}." for stage, count in enumerate((1, 2, 2, 6, 2)) for block in range(count)]
    rules = _conv_norm("conv_stem", "conv_stem", "bn1")
    for number, timm in enumerate(places):
        rules += _conv_norm(f"layer.{2 * number}", timm + "conv_dw", timm + "bn1")
        rules += _conv_norm(f"layer.{2 * number + 1}", timm + "conv_pw", timm + "bn2")
    return tuple(rules)


def _efficientnet_table() -> tuple[Rule, ...]:
    rules = _pairs(
        "",
        "",
        {
            "embeddings.convolution.weight": "conv_stem.weight",
            "embeddings.batchnorm.{norm}": "bn1.{norm}",
            "encoder.top_conv.weight": "conv_head.weight",
            "encoder.top_bn.{norm}": "bn2.{norm}",
            "encoder.blocks.{s}.{b}.squeeze_excite.reduce.{wb}": "blocks.{s}.{b}.se.conv_reduce.{wb}",
            "encoder.blocks.{s}.{b}.squeeze_excite.expand.{wb}": "blocks.{s}.{b}.se.conv_expand.{wb}",
        },
    )
    depthwise, last = (
        ("depthwise_conv.depthwise_conv", "depthwise_conv.depthwise_norm"),
        (
            "projection.project_conv",
            "projection.project_bn",
        ),
    )
    first = {depthwise: ("conv_dw", "bn1"), last: ("conv_pw", "bn2")}  # the first stage does not expand
    later = {
        ("expansion.expand_conv", "expansion.expand_bn"): ("conv_pw", "bn1"),
        depthwise: ("conv_dw", "bn2"),
        last: ("conv_pwl", "bn3"),
    }
    for stage, layers in (("0", first), ("{s:1-6}", later)):
        for (conv, norm), (timm_conv, timm_norm) in layers.items():
            foreign, timm = f"encoder.blocks.{stage}.{{b}}.", f"blocks.{stage}.{{b}}."
            rules += [
                Rule(f"{foreign}{conv}.weight", f"{timm}{timm_conv}.weight"),
                Rule(f"{foreign}{norm}.{{norm}}", f"{timm}{timm_norm}.{{norm}}"),
            ]
    return tuple(rules)


CONVNEXT = (
    *_pairs(
        "",
        "",
        {
            "embeddings.patch_embeddings.{wb}": "stem.0.{wb}",
            "embeddings.layernorm.{wb}": "stem.1.{wb}",
            "encoder.stages.{s}.downsampling_layer.{n}.{wb}": "stages.{s}.downsample.{n}.{wb}",
            "layernorm.{wb}": "head.norm.{wb}",
        },
    ),
    *_pairs(
        _BLOCK,
        "stages.{s}.blocks.{b}.",
        {
            "dwconv.{wb}": "conv_dw.{wb}",
            "layernorm.{wb}": "norm.{wb}",
            "pwconv1.{wb}": "mlp.fc1.{wb}",
            "grn.{wb}": "mlp.grn.{wb}",
            "pwconv2.{wb}": "mlp.fc2.{wb}",
            "layer_scale_parameter": "gamma",
        },
    ),
)
DINOV3_CONVNEXT = (
    *_pairs(
        "",
        "",
        {
            "stages.0.downsample_layers.{n}.{wb}": "stem.{n}.{wb}",
            "stages.{s:1-3}.downsample_layers.{n}.{wb}": "stages.{s}.downsample.{n}.{wb}",
            "layer_norm.{wb}": "head.norm.{wb}",
        },
    ),
    *_pairs(
        "stages.{s}.layers.{b}.",
        "stages.{s}.blocks.{b}.",
        {
            "depthwise_conv.{wb}": "conv_dw.{wb}",
            "layer_norm.{wb}": "norm.{wb}",
            "pointwise_conv1.{wb}": "mlp.fc1.{wb}",
            "pointwise_conv2.{wb}": "mlp.fc2.{wb}",
            "gamma": "gamma",
        },
    ),
)
_SWIN_BLOCK = {
    "layernorm_before.{wb}": "norm1.{wb}",
    "layernorm_after.{wb}": "norm2.{wb}",
    "attention.output.dense.{wb}": "attn.proj.{wb}",
    "attention.o_proj.{wb}": "attn.proj.{wb}",
    "intermediate.dense.{wb}": "mlp.fc1.{wb}",
    "mlp.fc1.{wb}": "mlp.fc1.{wb}",
    "output.dense.{wb}": "mlp.fc2.{wb}",
    "mlp.fc2.{wb}": "mlp.fc2.{wb}",
}
_RELATIVE = "relative_position_bias_table"
SWIN = (
    *_pairs(
        "",
        "",
        {
            "embeddings.patch_embeddings.projection.{wb}": "patch_embed.proj.{wb}",
            "embeddings.norm.{wb}": "patch_embed.norm.{wb}",
            "encoder.layers.{s}.downsample.reduction.weight": "layers.{s+1}.downsample.reduction.weight",
            "encoder.layers.{s}.downsample.norm.{wb}": "layers.{s+1}.downsample.norm.{wb}",
            "layernorm.{wb}": "norm.{wb}",
        },
    ),
    *_pairs(
        "encoder.layers.{s}.blocks.{b}.",
        "layers.{s}.blocks.{b}.",
        {
            **_SWIN_BLOCK,
            "attention.self.qkv.{wb}": "attn.qkv.{wb}",
            "attention.qkv.{wb}": "attn.qkv.{wb}",
            f"attention.self.{_RELATIVE}": f"attn.{_RELATIVE}",
            f"attention.relative_position_bias.{_RELATIVE}": f"attn.{_RELATIVE}",
        },
    ),
)

_ATTENTIONS = ("attention.attention.", "attention.")
_TOKENS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.distillation_token": "dist_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.patch_embeddings.projection.{wb}": "patch_embed.proj.{wb}",
    "layernorm.{wb}": "norm.{wb}",
}
_VIT_BLOCK = {
    **_SWIN_BLOCK,
    "norm1.{wb}": "norm1.{wb}",
    "norm2.{wb}": "norm2.{wb}",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.weights_in.{wb}": "mlp.fc1.{wb}",
    "mlp.weights_out.{wb}": "mlp.fc2.{wb}",
    "mlp.down_proj.{wb}": "mlp.fc2.{wb}",
    f"relative_position_bias.{_RELATIVE}": f"attn.{_RELATIVE}",
    "lambda_1": "gamma_1",
    "lambda_2": "gamma_2",
}
for _attention in _ATTENTIONS:
    _VIT_BLOCK |= {
        f"{_attention}qkv.{{wb}}": "attn.qkv.{wb}",
        f"{_attention}q_bias": "attn.q_bias",
        f"{_attention}v_bias": "attn.v_bias",
        f"{_attention}relative_position_bias.{_RELATIVE}": f"attn.{_RELATIVE}",
    }


def _vit_table(block: str) -> tuple[Rule, ...]:
    outside = {**_TOKENS, "pooler.layernorm.{wb}": "fc_norm.{wb}"}
    return (*_pairs("", "", outside), *_pairs(block, "blocks.{b}.", _VIT_BLOCK))


DINOV3_VIT = (
    *_pairs(
        "",
        "",
        {
            "embeddings.cls_token": "cls_token",
            "embeddings.register_tokens": "reg_token",
            "embeddings.patch_embeddings.{wb}": "patch_embed.proj.{wb}",
            "norm.{wb}": "norm.{wb}",
        },
    ),
    *_pairs(
        "layer.{b}.",
        "blocks.{b}.",
        {
            "norm1.{wb}": "norm1.{wb}",
            "norm2.{wb}": "norm2.{wb}",
            "attention.qkv.{wb}": "attn.qkv.{wb}",
            "attention.q_bias": "attn.q_bias",
            "attention.v_bias": "attn.v_bias",
            "attention.o_proj.{wb}": "attn.proj.{wb}",
            "layer_scale1.lambda1": "gamma_1",
            "layer_scale2.lambda1": "gamma_2",
            "mlp.up_proj.{wb}": "mlp.fc1.{wb}",
            "mlp.gate_proj.{wb}": "mlp.fc1_g.{wb}",
            "mlp.gated_proj.{wb}": "mlp.fc1_x.{wb}",
            "mlp.down_proj.{wb}": "mlp.fc2.{wb}",
        },
    ),
)
CLIP = (
    *_pairs(
        "",
        "",
        {
            "embeddings.class_embedding": "cls_token",
            "embeddings.position_embedding.weight": "pos_embed",
            "embeddings.patch_embedding.{wb}": "patch_embed.proj.{wb}",
            "pre_layrnorm.{wb}": "norm_pre.{wb}",
            "post_layernorm.{wb}": "norm.{wb}",
            "head.probe": "attn_pool.latent",
            "head.attention.q.{wb}": "attn_pool.q.{wb}",
            "head.attention.kv.{wb}": "attn_pool.kv.{wb}",
            "head.attention.out_proj.{wb}": "attn_pool.proj.{wb}",
            "head.layernorm.{wb}": "attn_pool.norm.{wb}",
            "head.mlp.fc1.{wb}": "attn_pool.mlp.fc1.{wb}",
            "head.mlp.fc2.{wb}": "attn_pool.mlp.fc2.{wb}",
        },
    ),
    *_pairs(
        "encoder.layers.{b}.",
        "blocks.{b}.",
        {
            "layer_norm1.{wb}": "norm1.{wb}",
            "layer_norm2.{wb}": "norm2.{wb}",
            "self_attn.qkv.{wb}": "attn.qkv.{wb}",
            "self_attn.out_proj.{wb}": "attn.proj.{wb}",
            "mlp.fc1.{wb}": "mlp.fc1.{wb}",
            "mlp.fc2.{wb}": "mlp.fc2.{wb}",
        },
    ),
)

_MASK = ("mask token of masked-image training", r"embeddings\.mask_token")
_INDEX = ("index of relative positions", r".+\.relative_position_index")
_VIT_DROPS = (("pooler, which no feature goes through", r"pooler\.dense\..+"), _MASK, _INDEX)
_POSITIONS = ("index of positions", r"embeddings\.position_ids")


def _vits(name: str, block: str, anchor: str) -> tuple[Layout, Layout]:
    """ViT, DeiT and DINOv2, whose timm networks have one kind of names, and BEiT, whose has another."""
    vit = Layout(
        f"transformers ViT{name}",
        "vit",
        block + anchor,
        _vit_table(block + "{b}."),
        _VIT_DROPS,
        prepare=_vit,
        finish=fold_class_position,
    )
    beit = replace(
        vit,
        name=f"transformers BEiT{name}",
        kind="timm",
        anchor=block + "0.lambda_1",
        signs=(block + anchor,),
        finish=None,
    )
    return vit, beit


_FILE, _MEMORY = "0.attention.output.dense.weight", "0.attention.o_proj.weight"
LAYOUTS = (
    Layout("transformers ResNet", "resnet", "embedder.embedder.convolution.weight", RESNET),
    Layout("transformers RegNet", "timm", "embedder.embedder.convolution.weight", REGNET),
    Layout("transformers MobileNetV1", "timm", "conv_stem.convolution.weight", _mobilenet_v1()),
    Layout("transformers MobileNetV2", "mobilenetv2", "conv_stem.first_conv.convolution.weight", MOBILENET_V2),
    Layout(
        "transformers EfficientNet",
        "timm",
        "embeddings.convolution.weight",
        _efficientnet_table(),
        prepare=_efficientnet,
        twin="tf_",
    ),
    Layout("transformers ConvNeXt", "timm", "encoder.stages.0.layers.0.dwconv.weight", CONVNEXT, prepare=_convnext),
    Layout("transformers DINOv3 ConvNeXt", "timm", "stages.0.downsample_layers.0.weight", DINOV3_CONVNEXT),
    Layout(
        "transformers Swin",
        "timm",
        "encoder.layers.0.blocks.0.layernorm_before.weight",
        SWIN,
        (_MASK, _INDEX),
        prepare=_swin,
    ),
    *_vits("", "encoder.layer.", _FILE),
    *_vits(" in memory", "layers.", _MEMORY),
    *_vits(" in memory, DINOv2", "encoder.layer.", _MEMORY),
    Layout(
        "transformers DINOv3 ViT",
        "timm",
        "layer.0.layer_scale1.lambda1",
        DINOV3_VIT,
        (_MASK,),
        prepare=_vit,
        options={"global_pool": "token"},
        twin="dinov3",
    ),
    Layout("transformers CLIP's image tower", "vit", "embeddings.class_embedding", CLIP, (_POSITIONS,), prepare=_vit),
    Layout(
        "transformers SigLIP's image tower",
        "timm",
        "embeddings.patch_embedding.weight",
        CLIP,
        (_POSITIONS,),
        signs=("head.probe",),
        prepare=_vit,
    ),
)
