"""Namings of plain Vision Transformers."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from convert.naming.rules import HEAD, Layout, Rule
from sslight.core.errors import InputError

if TYPE_CHECKING:
    from convert.naming.rules import State

_VIT_BLOCK = [
    *((f"{name}.{{wb}}",) * 2 for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")),
    ("ls1.gamma",) * 2,
    ("ls2.gamma",) * 2,
    ("attn.q_norm.{wb}",) * 2,
    ("attn.k_norm.{wb}",) * 2,
]
_VIT_OUTSIDE = [
    ("cls_token",) * 2,
    ("pos_embed",) * 2,
    ("dist_token",) * 2,
    ("patch_embed.proj.{wb}",) * 2,
    ("norm.{wb}",) * 2,
    ("fc_norm.{wb}",) * 2,
    ("norm_pre.{wb}",) * 2,
    ("attn_pool.{rest}",) * 2,
]
_GATED = [("mlp.w12.{wb}", "mlp.fc1.{wb}"), ("mlp.w3.{wb}", "mlp.fc2.{wb}")]


def _vit(outside: list[tuple[str, str]], blocks: list[tuple[str, str]]) -> tuple[Rule, ...]:
    return tuple(Rule(*pair) for pair in [*outside, *((foreign, "blocks.{b}." + timm) for foreign, timm in blocks)])


# DeiT III's own code calls the layer scale otherwise than timm's network of the same name.
VIT_TIMM = _vit(
    [*_VIT_OUTSIDE, ("reg_token", "reg_token")],
    [("blocks.{b}." + a, b) for a, b in (*_VIT_BLOCK, *_GATED, ("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma"))],
)
# DINOv2 calls the registers otherwise; its sharded training nests the blocks in chunks (see `_unchunk`).
VIT_DINOV2 = _vit(
    [*_VIT_OUTSIDE, ("register_tokens", "reg_token")], [("blocks.{b}." + a, b) for a, b in (*_VIT_BLOCK, *_GATED)]
)
# Its successor has timm's names of another kind of ViT, with rotary positions.
VIT_DINOV3 = _vit(
    [
        ("cls_token",) * 2,
        ("storage_tokens", "reg_token"),
        ("patch_embed.proj.{wb}",) * 2,
        ("norm.{wb}",) * 2,
    ],
    [
        ("blocks.{b}." + a, b)
        for a, b in (
            *((f"{name}.{{wb}}",) * 2 for name in ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")),
            ("attn.qkv.weight",) * 2,
            ("attn.q_bias",) * 2,
            ("attn.v_bias",) * 2,
            ("ls1.gamma", "gamma_1"),
            ("ls2.gamma", "gamma_2"),
            ("mlp.w1.{wb}", "mlp.fc1_g.{wb}"),
            ("mlp.w2.{wb}", "mlp.fc1_x.{wb}"),
            ("mlp.w3.{wb}", "mlp.fc2.{wb}"),
        )
    ],
)
VIT_CLIP = _vit(
    [
        ("class_embedding", "cls_token"),
        ("positional_embedding", "pos_embed"),
        ("conv1.weight", "patch_embed.proj.weight"),
        ("ln_pre.{wb}", "norm_pre.{wb}"),
        ("ln_post.{wb}", "norm.{wb}"),
        ("attn_pool.{rest}",) * 2,  # CoCa's, which timm has not so
    ],
    [
        ("transformer.resblocks.{b}." + a, b)
        for a, b in (
            ("ln_{n}.{wb}", "norm{n:1-2}.{wb}"),
            ("ls_{n}.gamma", "ls{n:1-2}.gamma"),
            ("attn.in_proj_{wb}", "attn.qkv.{wb}"),
            ("attn.out_proj.{wb}", "attn.proj.{wb}"),
            ("mlp.c_fc.{wb}", "mlp.fc1.{wb}"),
            ("mlp.c_proj.{wb}", "mlp.fc2.{wb}"),
        )
    ],
)
VIT_TORCHVISION = _vit(
    [
        ("class_token", "cls_token"),
        ("encoder.pos_embedding", "pos_embed"),
        ("conv_proj.{wb}", "patch_embed.proj.{wb}"),
        ("encoder.ln.{wb}", "norm.{wb}"),
    ],
    [
        ("encoder.layers.encoder_layer_{b}." + a, b)
        for a, b in (
            ("ln_1.{wb}", "norm1.{wb}"),
            ("ln_2.{wb}", "norm2.{wb}"),
            ("self_attention.in_proj_{wb}", "attn.qkv.{wb}"),
            ("self_attention.out_proj.{wb}", "attn.proj.{wb}"),
            ("mlp.0.{wb}", "mlp.fc1.{wb}"),
            ("mlp.3.{wb}", "mlp.fc2.{wb}"),
        )
    ],
)
VIT_OPENMMLAB = _vit(
    [
        ("cls_token",) * 2,
        ("pos_embed",) * 2,
        ("dist_token",) * 2,
        ("patch_embed.projection.{wb}", "patch_embed.proj.{wb}"),
        ("ln1.{wb}", "norm.{wb}"),
    ],
    [
        ("layers.{b}." + a, b)
        for a, b in (
            ("ln1.{wb}", "norm1.{wb}"),
            ("ln2.{wb}", "norm2.{wb}"),
            ("attn.qkv.{wb}",) * 2,
            ("attn.proj.{wb}",) * 2,
            ("ffn.layers.0.0.{wb}", "mlp.fc1.{wb}"),
            ("ffn.layers.1.{wb}", "mlp.fc2.{wb}"),
            ("attn.gamma1.weight", "ls1.gamma"),
            ("ffn.gamma2.weight", "ls2.gamma"),
        )
    ],
)

_CHUNKED = re.compile(r"blocks\.\d+\.(\d+)\.(norm1|norm2|attn|mlp|ls1|ls2)\.(.+)")


def unchunk(state: State) -> tuple[State, list[str]]:
    """DINOv2's sharded training nests blocks as `blocks.CHUNK.BLOCK.`; BLOCK already counts through all chunks."""
    return {_CHUNKED.sub(r"blocks.\1.\2.\3", key): value for key, value in state.items()}, []


def fold_class_position(state: State) -> tuple[State, list[str]]:
    """DINOv2 with registers adds a position to the class token; timm's network has none there, so it is added here.

    Exact: the token only ever enters as the sum. Without registers the state is returned as it is.
    """
    if "reg_token" not in state or not {"cls_token", "pos_embed"} <= state.keys():
        return state, []
    positions = state["pos_embed"]
    if positions[:, :1].shape != state["cls_token"].shape:  # the comparison with timm's list will name them
        return state, []
    folded = {**state, "cls_token": state["cls_token"] + positions[:, :1], "pos_embed": positions[:, 1:]}
    return folded, ["the class token's position was added into 'cls_token', as timm's network with registers expects"]


def with_batch(state: State) -> tuple[State, list[str]]:
    """CLIP's class token [C] and positions [L, C], as timm's [1, 1, C] and [1, L, C]."""
    axes = {"cls_token": 1, "pos_embed": 2}
    return {
        key: value.reshape(1, *(1,) * (2 - axes[key]), *value.shape) if axes.get(key) == value.ndim else value
        for key, value in state.items()
    }, []


def has_mocov3_positions(state: State) -> bool:
    """Whether a ViT's positions are MoCo v3's: fixed sines and cosines of the row, then of the column.

    Those of MAE and I-JEPA begin with the column.
    """
    import torch

    positions = state.get("pos_embed")
    if positions is None or positions.ndim != 3 or positions.shape[2] % 4 or positions.shape[1] < 5:
        return False
    side, width = math.isqrt(positions.shape[1] - 1), positions.shape[2]
    if side * side != positions.shape[1] - 1:
        return False
    turns = torch.arange(side)[:, None] / 10000 ** (torch.arange(width // 4) / (width // 4))
    rows = torch.cat([turns.sin(), turns.cos()], 1).repeat_interleave(side, 0)
    return torch.allclose(positions[0, 1:, : width // 2].float(), rows, atol=1e-3)


def as_rotary(state: State) -> tuple[State, list[str]]:
    """DINOv3's bias of queries, keys and values in three, times the mask beside it, which is 0 for keys.

    timm's network has none for keys: with rotary positions, unlike without, one would change the features. Of two final
    norms, for the class token (`cls_norm`) and for patches, that of the class token is kept, whose feature is taken.
    """
    split: State = {}
    notes = []
    if "cls_norm.weight" in state:
        own = {key.removeprefix("cls_"): value for key, value in state.items() if key.startswith("cls_norm.")}
        state = {key: value for key, value in state.items() if not key.startswith(("cls_norm.", "norm."))} | own
        notes.append("the final norm is that of the class token; patches had one of their own")
    for key, value in state.items():
        block, _, last = key.rpartition("qkv.")
        if last == "bias" and value.ndim == 1 and len(value) % 3 == 0:
            mask = state.get(key + "_mask")
            masked = value if mask is None else value.where(mask != 0, 0)
            parts = dict(zip("qkv", masked.chunk(3), strict=True))
            split |= {f"{block}{part}_bias": own for part, own in parts.items() if part != "k" or bool(own.any())}
        else:
            split[key] = value
    return split, notes


def _rotation(tensors: State, source: str) -> tuple[dict[str, Any], dict[str, str]]:
    """DINOv3's rotary positions by the periods in the file: powers of a base, which timm calls a temperature.

    Raises InputError for periods between a least and a greatest one, which timm's network cannot have.
    """
    import torch

    assumed = {
        "norm_eps": "the norms' epsilon is not recorded in the file: 1e-5 assumed, as released; the training's default "
        "is 1e-6"
    }
    stored = next(value for key, value in tensors.items() if key.endswith("rope_embed.periods"))
    periods = stored.float()
    base = float(periods[-1]) ** (len(periods) / max(len(periods) - 1, 1))
    powers = base ** (torch.arange(len(periods)) / len(periods))
    if not torch.allclose(periods, powers, rtol=0.02):
        raise InputError(f"{source}: its rotary positions have periods that are no powers of one base; timm's are")
    if stored.dtype == torch.bfloat16:
        assumed["rope"] = "the network was trained with rotary positions in bfloat16; float32 assumed, as timm computes"
    nearest = float(f"{base:.2g}") if abs(float(f"{base:.2g}") / base - 1) < 0.02 else base
    return {} if nearest == 100 else {"rope_temperature": nearest}, assumed


def _activation(tensors: State, source: str) -> tuple[dict[str, Any], dict[str, str]]:
    """OpenAI's CLIP has QuickGELU and half precision, OpenCLIP by default neither; no tensor shows an activation."""
    half = any(key.endswith("visual.conv1.weight") and value.itemsize == 2 for key, value in tensors.items())
    name, other = ("QuickGELU", "GELU (act_layer=gelu)") if half else ("GELU", "QuickGELU (act_layer=quick_gelu)")
    assumed = {"act_layer": f"activation is not recorded in the file: {name} assumed, by the precision; else {other}"}
    return {"act_layer": "quick_gelu"} if half else {}, assumed


_HEAD = (
    (HEAD, r"(head|heads|head_dist|fc|classifier|pre_logits)\..+"),
    ("mask token of masked-image training", r"mask(_token|ed_embed)"),
)

_DINOV2 = Layout("DINOv2 ViT", "vit", "blocks.0.attn.qkv.weight", VIT_DINOV2, _HEAD, finish=fold_class_position)

LAYOUTS = (
    Layout("timm/DINO ViT", "vit", "blocks.0.attn.qkv.weight", VIT_TIMM, _HEAD),
    replace(_DINOV2, signs=("register_tokens",)),
    replace(_DINOV2, name="DINOv2 ViT, blocks in chunks", anchor="blocks.0.0.attn.qkv.weight", prepare=unchunk),
    Layout(
        "torchvision ViT",
        "vit",
        "encoder.layers.encoder_layer_0.self_attention.in_proj_weight",
        VIT_TORCHVISION,
        _HEAD,
    ),
    Layout("OpenMMLab ViT", "vit", "layers.0.attn.qkv.weight", VIT_OPENMMLAB, _HEAD),
    Layout(
        "CLIP ViT",
        "vit",
        "transformer.resblocks.0.attn.in_proj_weight",
        VIT_CLIP,
        (("projection to the common space", r"proj"),),
        signs=("class_embedding",),
        finish=with_batch,
        tells=_activation,
    ),
    Layout(
        "DINOv3 ViT",
        "timm",
        "blocks.0.attn.qkv.weight",
        VIT_DINOV3,
        (
            *_HEAD,
            ("rotary positions, which are computed", r"rope_embed\.periods"),
            ("mask of the keys' bias", r".+\.bias_mask"),
            ("norm of local crops", r"local_cls_norm\..+"),
        ),
        signs=("rope_embed.periods",),
        prepare=as_rotary,
        tells=_rotation,
        options={"global_pool": "token"},
        twin="dinov3",
    ),
)
