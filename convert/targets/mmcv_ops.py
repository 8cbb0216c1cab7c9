"""mmcv's compiled operators from torchvision, so that mmdet trains and predicts with wheels alone (mmcv-lite).

R-CNN detectors call three of mmcv's 112 compiled operators: `nms`, `roi_align_forward` and `roi_align_backward`.
`install()` puts a module with these three under the name `mmcv._ext` where no compiled one exists; every other
operator raises NotImplementedError with its name when it is called. CPU and CUDA, forward and backward.
Call it before anything imports `mmcv.ops` (importing mmdet does).
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import torch
from torch import Tensor
from torchvision.ops import nms as torchvision_nms, roi_align as torchvision_roi_align

from sslight.core import compat

NAME = "mmcv._ext"
AVERAGE = 1  # mmcv's pool_mode; 0 is max


def install(*, replace: bool = False) -> bool:
    """Make `mmcv._ext` importable; True if it is this stand-in, False if mmcv's compiled operators are there.

    replace: use the stand-in even there, to compare the two.
    """
    loaded = sys.modules.get(NAME)
    if loaded is None:
        if importlib.util.find_spec(NAME) is not None and not replace:
            return False
        loader = _Loader()
        loaded = importlib.util.module_from_spec(ModuleSpec(NAME, loader, origin=__file__))
        loader.exec_module(loaded)
        sys.modules[NAME] = loaded
        compat.import_mmpretrain()
    return isinstance(loaded, _StandIn)


class _StandIn(ModuleType):
    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)

        def unavailable(*_args, **_kwargs):
            raise NotImplementedError(
                f"mmcv operator '{name}' needs mmcv's compiled operators, which mmcv-lite lacks; install mmcv 2.1.0 "
                "(pip install 'setuptools<82' && pip install --no-build-isolation mmcv==2.1.0) or choose another model"
            )

        return unavailable


class _Loader(importlib.abc.Loader):
    """mmcv asks `pkgutil` whether the module can be found, so it needs a spec with a loader."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name, __doc__)

    def exec_module(self, module: ModuleType) -> None:
        for operator in (nms, roi_align_forward, roi_align_backward, get_compiler_version, get_compiling_cuda_version):
            setattr(module, operator.__name__, operator)


def get_compiler_version() -> str:
    return "none (torchvision's operators)"


def get_compiling_cuda_version() -> str:
    return torch.version.cuda or "not available"


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes [N, 4] that are kept, best score first.

    With `offset` 1 a box covers x2 - x1 + 1 pixels, which is the plain rule on boxes whose far corner lies 1 further.
    """
    boxes = boxes.to(_precise(boxes))
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return torchvision_nms(boxes, scores.to(boxes.dtype), iou_threshold)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill `output` [K, C, h, w] with the features `input` [N, C, H, W] averaged in the bins of `rois` [K, 5]."""
    _only_average(pool_mode)
    dtype = _precise(input)
    output.copy_(
        torchvision_roi_align(
            input.to(dtype), rois.to(dtype), (aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned
        )
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add to `grad_input` [N, C, H, W] the gradient that `grad_output` [K, C, h, w] sends to the features."""
    _only_average(pool_mode)
    dtype = _precise(grad_output)
    grad_input.add_(
        compat.roi_align_backward()(
            grad_output.to(dtype),
            rois.to(dtype),
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        ).to(grad_input.dtype)
    )


def _precise(tensor: Tensor) -> torch.dtype:
    """Half types are computed in float32: sums over bins would lose bits, and not every device has the half kernel."""
    return torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.dtype


def _only_average(pool_mode: int) -> None:
    if pool_mode != AVERAGE:
        raise NotImplementedError(
            "mmcv operator 'roi_align' with max pooling needs mmcv's compiled operators; "
            "install mmcv 2.1.0 or use pool_mode 'avg'"
        )
