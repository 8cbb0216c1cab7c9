"""What the methods share: the forward over many crops and the weighted loss over pairs of crops."""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor, nn


class Network(nn.Module):
    """A backbone with its projection head."""

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.head = head

    def features(self, views: list[Tensor]) -> Tensor:
        """Pooled features of all views, [V * N, feature_dim], stacked by view.

        One forward per resolution: neighbouring views of equal size are concatenated, as batch norm sees them so.
        """
        groups = [list(group) for _, group in groupby(views, key=lambda view: view.shape[-2:])]
        return torch.cat([self.backbone(torch.cat(group)) for group in groups])


def pair_weights(views: int, alpha: float, beta: float, like: Tensor) -> Tensor:
    """Weight of the term (target from global view t, prediction from view v), [2, V]; a view never predicts itself.

    alpha is shared by the 2 global-global terms, beta by the 2 (V - 2) global-local ones: together they are
    `alpha * mean(global-global) + beta * mean(global-local)`. Without local views the global term stands alone.
    """
    row = [alpha / 2] * 2 + [beta / (2 * max(views - 2, 1))] * (views - 2)
    weights = torch.tensor([row, row], dtype=like.dtype)
    weights[0, 0] = weights[1, 1] = 0.0
    return weights.to(like.device, non_blocking=True)


def multicrop_cross_entropy(targets: Tensor, logits: Tensor, alpha: float, beta: float) -> Tensor:
    """Weighted mean of the cross-entropies H(targets[t], softmax(logits[v])) over the pairs of `pair_weights`.

    Parameters
    ----------
    targets: probabilities of the two global views, [2, N, K], without gradient.
    logits: predictions of all views, already divided by the temperature, [V, N, K].

    Since a target sums to 1, H(q, softmax(z)) = logsumexp(z) - q.z: each view is reduced once, and all pairs of an
    image are one small matrix product, instead of a log-softmax and a product per pair.
    """
    views, batch, _ = logits.shape
    weights = pair_weights(views, alpha, beta, logits)
    products = torch.bmm(targets.transpose(0, 1), logits.permute(1, 2, 0)).sum(0)  # [2, V]
    normalisers = logits.logsumexp(-1).sum(1)  # [V]
    return (weights * (normalisers - products)).sum() / batch


@torch.no_grad()
def spread(embedding: Tensor) -> Tensor:
    """How much unit-length rows [N, D] differ: standard deviation over the batch, scaled by sqrt(D).

    1 for directions spread over the whole sphere, 0 when all rows are equal (collapse).
    """
    return embedding.float().std(0, correction=0).mean() * embedding.shape[1] ** 0.5
