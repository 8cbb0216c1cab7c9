"""The methods' mathematics as the papers' pseudo-code has it: loops over pairs, samples and parameters.

Slow and obvious on purpose, and sharing nothing with `pretrain`: the tests' independent reference, and the other side
of `tools/speed.py step`. All logits are lists by view of [N, K]; the first two views are the global ones.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def weighted(terms_global: list[Tensor], terms_local: list[Tensor], alpha: float, beta: float) -> Tensor:
    loss: Any = alpha * sum(terms_global) / len(terms_global)
    if terms_local:
        loss = loss + beta * sum(terms_local) / len(terms_local)
    return loss


def pairwise_cross_entropy(
    targets: list[Tensor], logits: list[Tensor], temperature: float, alpha: float, beta: float
) -> Tensor:
    """DINO's and SwAV's loss: every (target, other view) pair on its own."""
    terms_global: list[Tensor] = []
    terms_local: list[Tensor] = []
    for t, target in enumerate(targets):
        for v, logit in enumerate(logits):
            if v == t:
                continue
            term = torch.sum(-target * F.log_softmax(logit / temperature, dim=-1), dim=-1).mean()
            (terms_global if v < 2 else terms_local).append(term)
    return weighted(terms_global, terms_local, alpha, beta)


def dino_targets(teacher: list[Tensor], center: Tensor, temperature: float) -> list[Tensor]:
    return [F.softmax((logit - center) / temperature, dim=-1).detach() for logit in teacher]


def dino_center(center: Tensor, teacher: list[Tensor], momentum: float) -> Tensor:
    return center * momentum + torch.cat(teacher).mean(dim=0, keepdim=True) * (1 - momentum)


def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """SwAV's pseudo-code: Q is [K, N] and sums to 1."""
    q = torch.exp(scores / epsilon).t()
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(dim=1, keepdim=True) / q.shape[0]
        q = q / q.sum(dim=0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).t()


class SwAVQueue:
    """The published queue: one [length, width] per global crop, newest rows first, in use once its last row is set."""

    def __init__(self, length: int, width: int):
        self.rows = torch.zeros(2, length, width)
        self.in_use = False

    def targets(
        self, embedding: list[Tensor], logits: list[Tensor], prototypes: Tensor, epsilon: float, iterations: int
    ) -> list[Tensor]:
        targets = []
        for crop in range(2):
            scores, batch = logits[crop].detach(), len(embedding[crop])
            if self.in_use or not torch.all(self.rows[crop, -1] == 0):
                self.in_use = True
                scores = torch.cat([self.rows[crop] @ prototypes.t(), scores])
            self.rows[crop, batch:] = self.rows[crop, :-batch].clone()
            self.rows[crop, :batch] = embedding[crop].detach()
            targets.append(sinkhorn(scores, epsilon, iterations)[-batch:])
        return targets


def moco_loss(
    queries: list[Tensor], key: Tensor, queue: Tensor, temperature: float, alpha: float, beta: float
) -> Tensor:
    """InfoNCE of every query view; `queue` is [D, L], the first query is the global one."""
    terms = []
    for query in queries:
        positive = torch.einsum("nc,nc->n", query, key).unsqueeze(-1)
        logits = torch.cat([positive, query @ queue], dim=1) / temperature
        terms.append(F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device)))
    return weighted(terms[:1], terms[1:], alpha, beta)


class PlainLARS:
    """LARS over named (parameter, decayed, adapted) triples, one parameter at a time."""

    def __init__(self, model: nn.Module, momentum: float = 0.9, eta: float = 0.001):
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.momentum, self.eta = momentum, eta
        self.mu = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, lr: float, weight_decay: float) -> None:
        for p, mu in zip(self.parameters, self.mu, strict=True):
            if p.grad is None:
                continue
            d = p.grad
            depthwise = p.ndim == 4 and p.shape[1] == 1
            if p.ndim > 1:
                if not depthwise:
                    d = d.add(p, alpha=weight_decay)
                weight_norm, update_norm = torch.norm(p), torch.norm(d)
                if weight_norm > 0 and update_norm > 0:
                    d = d.mul(self.eta * weight_norm / update_norm)
            mu.mul_(self.momentum).add_(d)
            p.add_(mu, alpha=-lr)


class PlainAdamW:
    """AdamW (Loshchilov and Hutter, 2019, algorithm 2), one parameter at a time."""

    def __init__(self, model: nn.Module, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.betas, self.eps = betas, eps
        self.state: list[list[Any]] = [[0, torch.zeros_like(p), torch.zeros_like(p)] for p in self.parameters]

    @torch.no_grad()
    def step(self, lr: float, weight_decay: float) -> None:
        for p, state in zip(self.parameters, self.state, strict=True):
            if p.grad is None:
                continue
            state[0] += 1
            state[1] = self.betas[0] * state[1] + (1 - self.betas[0]) * p.grad
            state[2] = self.betas[1] * state[2] + (1 - self.betas[1]) * p.grad**2
            first, second = (state[1 + i] / (1 - beta ** state[0]) for i, beta in enumerate(self.betas))
            decay = weight_decay if p.ndim > 1 and not (p.ndim == 4 and p.shape[1] == 1) else 0.0
            p.sub_(lr * (first / (second.sqrt() + self.eps) + decay * p))


@torch.no_grad()
def plain_ema(average: nn.Module, values: nn.Module, momentum: float) -> None:
    for k, q in zip(average.parameters(), values.parameters(), strict=True):
        k.data = k.data * momentum + q.data * (1.0 - momentum)


def cosine_table(start: float, end: float, steps: int) -> list[float]:
    return [end + 0.5 * (start - end) * (1 + math.cos(math.pi * i / steps)) for i in range(steps)]
