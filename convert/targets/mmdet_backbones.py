"""Backbones registered for mmdet configs: any pyramid network of timm as `type='TimmBackbone'`.

mmdet's own ResNet and MobileNetV2 serve those two families. Import this module before a config is built
(`custom_imports = dict(imports=['convert.targets.mmdet_backbones'])`); it installs the operators that mmdet needs.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from convert.targets.mmcv_ops import install
from convert.targets.timm_stages import build_stages, forward_stages

install()

from mmdet.registry import MODELS  # noqa: E402
from mmengine.model import BaseModule  # noqa: E402


@MODELS.register_module()
class TimmBackbone(BaseModule):
    """Images [N, 3, H, W] -> a tuple of maps, one per index of `out_indices`; the network lies under `model`.

    Parameters
    ----------
    arch: an alias of pretrain.backbones or a timm name.
    out_indices: stages from 0, the highest resolution (timm's `feature_info` order).
    norm_cfg: `dict(type='BN')` or `dict(type='SyncBN')`.
    options: further arguments of the timm network.
    init_cfg: `dict(type='Pretrained', checkpoint=FILE)` with keys under `model.`, or None.
    """

    def __init__(
        self,
        arch: str,
        out_indices: Sequence[int] = (1, 2, 3, 4),
        norm_cfg: dict | None = None,
        init_cfg: dict | None = None,
        options: dict | None = None,
    ):
        super().__init__(init_cfg)
        self.out_indices = tuple(out_indices)
        self.model, shapes = build_stages(arch, self.out_indices, (norm_cfg or {"type": "BN"})["type"], options)
        self.out_channels = [channels for channels, _ in shapes]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(forward_stages(self.model, images, self.out_indices))
