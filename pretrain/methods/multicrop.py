"""What the methods share: the forward over many crops and the weighted loss over pairs of crops."""

from __future__ import annotations

from itertools import groupby
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Head = TypeVar("Head", bound=nn.Module)


class Network(nn.Module, Generic[Head]):
    """A backbone with its projection head."""

    def __init__(self, backbone: nn.Module, head: Head):
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


def multicrop_cross_entropy(targets: Tensor, logits: Tensor, temperature: float, alpha: float, beta: float) -> Tensor:
    """Weighted mean of the cross-entropies H(targets[t], softmax(logits[v] / temperature)) over `pair_weights`.

    Parameters
    ----------
    targets: probabilities of the two global views, [2, N, K], without gradient.
    logits: predictions of all views, [V, N, K], float32.
    """
    return _WeightedCrossEntropy.apply(targets, logits, temperature, pair_weights(len(logits), alpha, beta, logits))


class _WeightedCrossEntropy(torch.autograd.Function):
    """Value and gradient of all pairs in one sweep over the logits.

    A target q sums to 1, so H(q, softmax(z)) = logsumexp(z) - q.z, and the gradient for z is softmax(z) - q: each view
    takes one softmax however many targets it is compared with, and all pairs of an image are two small matrix
    products. A loop over pairs takes a log-softmax, a product and their backward passes for each.
    """

    @staticmethod
    def forward(ctx, targets: Tensor, logits: Tensor, temperature: float, weights: Tensor) -> Tensor:
        views, batch, outputs = logits.shape
        gradient = torch.empty_like(logits)  # first holds z, then exp(z - max), then the gradient
        loss = logits.new_zeros(())
        # a CPU keeps the views of an image or so in its cache from one line to the next
        at_once = max(1, 2**20 // (views * outputs)) if logits.device.type == "cpu" else batch
        for start in range(0, batch, at_once):
            images = slice(start, start + at_once)
            z = torch.div(logits[:, images], temperature, out=gradient[:, images]).transpose(0, 1)  # [n, V, K]
            q = targets[:, images].transpose(0, 1)  # [n, 2, K]
            products = torch.bmm(q, z.transpose(1, 2))  # [n, 2, V]
            largest = z.amax(-1, keepdim=True)
            total = z.sub_(largest).exp_().sum(-1, keepdim=True)
            normaliser = (largest + total.log()).transpose(1, 2)  # [n, 1, V]
            loss += (weights * (normaliser - products)).sum()
            z.mul_(weights.sum(0).view(1, -1, 1) / total)
            z.baddbmm_(weights.T.expand(len(q), -1, -1), q, alpha=-1)
        ctx.gradient = gradient
        ctx.scale = 1.0 / (temperature * batch)
        return loss / batch

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple:
        if ctx.gradient is None:
            raise RuntimeError("this loss keeps one gradient, used up by the first backward pass")
        gradient, ctx.gradient = ctx.gradient, None
        return None, gradient.mul_(grad_output * ctx.scale), None, None


@torch.no_grad()
def spread(embedding: Tensor) -> Tensor:
    """How much unit-length rows [N, D] differ: standard deviation over the batch, scaled by sqrt(D).

    1 for directions spread over the whole sphere, 0 when all rows are equal (collapse).
    """
    return embedding.float().std(0, correction=0).mean() * embedding.shape[1] ** 0.5
