"""What YAML configs of detectron2 need beyond its own builders: timm pyramids, ViTDet, and C4 heads for R18/34.

Importing this module registers them; `add_config(cfg)` adds their keys to detectron2's defaults:
`build_timm_fpn_backbone`, `build_mobilenetv2_p4p6_backbone` and `build_vitdet_backbone` (backbones),
`Res5ROIHeadsExtraNorm` (MoCo's C4 head: a norm after res5; basic blocks for depth 18 and 34).
A pyramid's timm network lies under `backbone.bottom_up.model.`, the ViT under `backbone.net.`.
"""

from __future__ import annotations

from functools import partial

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone, SimpleFeaturePyramid, ViT
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicBlock, ResNet
from detectron2.modeling.roi_heads import Res5ROIHeads
from torch import Tensor, nn

from convert.targets.timm_stages import FINAL_CONV, build_stages, forward_stages
from pretrain.backbones import build_backbone, read_options
from sslight.core import compat
from sslight.core.errors import InputError

R18_R34_RES5_BLOCKS = {18: 2, 34: 3}


def add_config(cfg: CfgNode) -> None:
    """Add the keys that our YAML files use beside detectron2's own, with defaults, to its `get_cfg()`."""
    cfg.MODEL.TIMM = CfgNode(
        {
            "ARCH": "mobilenetv2_100",  # an alias of pretrain.backbones or a timm name
            "NORM": "SyncBN",  # or BN
            "OPTIONS": "",  # further arguments of the timm network, such as "num_heads=12"
        }
    )
    cfg.MODEL.VITDET = CfgNode(
        {
            "IMAGE_SIZE": 1024,  # pixels; images are padded to this square
            "WINDOW_SIZE": 14,  # patches; of the blocks without global attention
            "GLOBAL_BLOCKS": 4,  # evenly spaced, the last block among them
            "DROP_PATH_RATE": 0.1,
            "USE_REL_POS": True,
        }
    )
    cfg.SOLVER.OPTIMIZER = "SGD"  # or AdamW
    cfg.SOLVER.LAYER_DECAY = 1.0  # AdamW: factor of the learning rate from one ViT block to the one before it


def _options(cfg: CfgNode) -> dict:
    return read_options(cfg.MODEL.TIMM.OPTIONS.split())


class TimmBottomUp(Backbone):
    """A timm network whose stage of stride 2**n is the feature `stage{n}`; images [N, 3, H, W] -> a dict of maps."""

    def __init__(self, arch: str, stages: list[int], names: list[str], norm: str, options: dict | None = None):
        super().__init__()
        self.stages = stages
        self.model, shapes = build_stages(arch, stages, norm, options)
        self.names = names
        compat.set_outputs(self, names, *zip(*shapes, strict=True))
        true_names = [f"stage{stride.bit_length() - 1}" for _, stride in shapes]
        if true_names != names:
            raise InputError(f"MODEL.FPN.IN_FEATURES must be {true_names} for backbone '{arch}', not {names}")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.names, forward_stages(self.model, images, self.stages), strict=True))


def _pyramid(cfg: CfgNode, stages: list[int]) -> FPN:
    bottom_up = TimmBottomUp(
        cfg.MODEL.TIMM.ARCH, stages, list(cfg.MODEL.FPN.IN_FEATURES), cfg.MODEL.TIMM.NORM, _options(cfg)
    )
    return FPN(
        bottom_up,
        cfg.MODEL.FPN.IN_FEATURES,
        cfg.MODEL.FPN.OUT_CHANNELS,
        cfg.MODEL.FPN.NORM,
        LastLevelMaxPool(),
        cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """FPN over the stages named in MODEL.FPN.IN_FEATURES (stage2..stage5: strides 4 to 32) of any timm pyramid."""
    probe = build_backbone(cfg.MODEL.TIMM.ARCH, **_options(cfg))
    reductions = [info["reduction"] for info in probe.feature_info]
    stages = []
    for name in cfg.MODEL.FPN.IN_FEATURES:
        stride = 2 ** int(name.removeprefix("stage")) if name.removeprefix("stage").isdigit() else 0
        if stride not in reductions:
            raise InputError(
                f"MODEL.FPN.IN_FEATURES: backbone '{cfg.MODEL.TIMM.ARCH}' has no feature '{name}'; "
                f"it has {', '.join(f'stage{r.bit_length() - 1}' for r in reductions)}"
            )
        stages.append(reductions.index(stride))
    return _pyramid(cfg, stages)


@BACKBONE_REGISTRY.register()
def build_mobilenetv2_p4p6_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The published MobileNetV2 pyramid: stride 16 (96 channels) and stride 32 (1280, after the last 1x1), p4 to p6."""
    return _pyramid(cfg, [3, FINAL_CONV])


@BACKBONE_REGISTRY.register()
def build_vitdet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SimpleFeaturePyramid:
    """ViTDet's simple feature pyramid over detectron2's ViT, in the shape of the timm ViT MODEL.TIMM.ARCH."""
    arch, options = cfg.MODEL.TIMM.ARCH, cfg.MODEL.VITDET
    model = build_backbone(arch, **_options(cfg))
    if not all(hasattr(model, name) for name in ("blocks", "pos_embed", "patch_embed")):
        raise InputError(f"MODEL.TIMM.ARCH '{arch}' is not a plain ViT: use build_timm_fpn_backbone for pyramids")
    depth, block = len(model.blocks), model.blocks[0]
    every = max(1, depth // options.GLOBAL_BLOCKS)
    net = ViT(
        img_size=options.IMAGE_SIZE,
        patch_size=model.patch_embed.patch_size[0],
        embed_dim=model.embed_dim,
        depth=depth,
        num_heads=block.attn.num_heads,
        drop_path_rate=options.DROP_PATH_RATE,
        mlp_ratio=block.mlp.fc1.out_features / model.embed_dim,
        qkv_bias=block.attn.qkv.bias is not None,
        norm_layer=partial(nn.LayerNorm, eps=block.norm1.eps),
        window_size=options.WINDOW_SIZE,
        window_block_indexes=[i for i in range(depth) if (i + 1) % every],
        use_rel_pos=options.USE_REL_POS,
        pretrain_img_size=model.patch_embed.img_size[0],
        pretrain_use_cls_token=not model.no_embed_class,
    )
    return SimpleFeaturePyramid(
        net,
        "last_feat",
        cfg.MODEL.FPN.OUT_CHANNELS,
        (4.0, 2.0, 1.0, 0.5),
        LastLevelMaxPool(),
        "LN",
        square_pad=options.IMAGE_SIZE,
    )


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """detectron2's C4 head with a norm after res5 (MoCo, appendix) and, for depth 18 and 34, basic blocks."""

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        resnets = cfg.MODEL.RESNETS
        if resnets.DEPTH in R18_R34_RES5_BLOCKS:
            blocks, width = R18_R34_RES5_BLOCKS[resnets.DEPTH], 8 * resnets.RES2_OUT_CHANNELS
            res5 = nn.Sequential(
                *ResNet.make_stage(
                    BasicBlock,
                    blocks,
                    stride_per_block=[2] + [1] * (blocks - 1),
                    in_channels=width // 2,
                    out_channels=width,
                    norm=resnets.NORM,
                )
            )
        else:
            res5, width = compat.res5_block(super(), cfg)
        res5.add_module("norm", get_norm(resnets.NORM, width))
        return res5, width
