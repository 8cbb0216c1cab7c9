"""The naming of Swin in its authors' code, which EsViT and iBOT share: timm's, but a stage ends with its merging."""

from __future__ import annotations

from convert.naming.rules import COMPUTED, HEAD, Layout, Rule

SWIN = tuple(
    Rule(*pair)
    for pair in (
        ("patch_embed.{rest}",) * 2,
        ("layers.{s}.blocks.{rest}",) * 2,
        ("layers.{s-1}.downsample.{rest}", "layers.{s:1-3}.downsample.{rest}"),
        ("norm.{wb}",) * 2,
    )
)

LAYOUTS = (
    Layout(
        "Swin",
        "timm",
        "layers.0.blocks.0.attn.relative_position_bias_table",
        SWIN,
        (
            (HEAD, r"head(_dense)?\..+"),
            COMPUTED,
            ("mask token of masked-image training", r"mask(ed)?_(token|embed)"),
        ),
        signs=("layers.0.downsample.reduction.weight",),
    ),
)
