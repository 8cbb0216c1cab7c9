"""What a device runs: a network's form without its training branches, and the multiply-adds of one image."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from timm.utils import reparameterize_model
from torch import Tensor, nn

TOLERANCE = 1e-4  # of the largest feature
PRODUCTS = ("conv", "linear", "addmm", "mm", "matmul", "bmm", "einsum", "scaled_dot_product_attention")


@dataclass(frozen=True)
class Deployed:
    """A network as a device runs it.

    `form`: `deployed`, branches and norms folded by timm; `training`, where that was not possible (`note` says why);
    `single`, of a network that has one form only. `difference`: of the folded features, relative to the largest.
    """

    network: nn.Module
    form: str
    note: str = ""
    difference: float = 0.0


@torch.no_grad()
def deployed_form(
    network: nn.Module,
    images: Tensor,
    outputs: Callable[[nn.Module, Tensor], Sequence[Tensor]] = lambda network, images: [network(images)],
) -> Deployed:
    """Fold a copy of a network in eval mode (MobileOne, FastViT, RepViT, RepVGG, ...), if `outputs` stay the same.

    images [N, 3, H, W]; `outputs` gives what is compared, to 1e-4 of each one's largest magnitude.
    """
    try:
        folded = reparameterize_model(network)
        if _shapes(folded) == _shapes(network):
            return Deployed(network, "single")
        pairs = zip(outputs(network, images), outputs(folded, images), strict=True)
        difference = max(float((b - a).abs().max() / a.abs().max().clamp_min(1e-12)) for a, b in pairs)
    except Exception as error:  # noqa: BLE001 - whatever a network's own folding raises, it has its training form
        why = " ".join(str(error).split())[:200]
        return Deployed(network, "training", f"timm cannot fold it ({type(error).__name__}: {why})")
    if not difference <= TOLERANCE:
        return Deployed(network, "training", f"folded by timm, its features differ by {difference:.2g} of the largest")
    return Deployed(folded, "deployed", difference=difference)


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in network.state_dict().items()}


def multiply_adds(network: nn.Module, images: Tensor) -> int:
    """Multiply-adds of a network in eval mode on images [N, 3, H, W]: a multiplication and its addition are one.

    fvcore's count over convolutions and matrix products (linear layers, attention's two), fused attention included.
    Biases, norms, activations, pooling and element-wise arithmetic are not in it, as in papers; of norms a device folds
    most into the convolutions.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing a ViT turns sizes into constants, as is meant here
        analysis = FlopCountAnalysis(network, images).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.set_op_handle("aten::scaled_dot_product_attention", _attention)
        counts = analysis.by_operator()
    return int(sum(counts[name] for name in PRODUCTS))


def _attention(inputs: list, outputs: list) -> int:
    """Queries [..., T, d] by keys [..., S, d], and the scores by values [..., S, e]."""
    *leading, tokens, width = get_shape(inputs[0])
    *_, seen, value_width = get_shape(inputs[2])
    return int(torch.Size(leading).numel()) * tokens * seen * (width + value_width)
