"""Optimizers over the published parameter groups, and the momentum encoder's moving average."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from pretrain.errors import InputError


def parameter_groups(model: nn.Module) -> list[dict]:
    """Trained parameters in the three published groups; empty ones are left out.

    1-d parameters (biases, norms): no weight decay, no LARS adaptation. Depthwise convolutions (4-d, second dimension
    1): no weight decay. Everything else, tokens, positions and weight-norm scales included: decayed and adapted.
    """
    groups = {
        "decayed": {"params": [], "weight_decay_factor": 1.0, "adapt": True},
        "depthwise": {"params": [], "weight_decay_factor": 0.0, "adapt": True},
        "vectors": {"params": [], "weight_decay_factor": 0.0, "adapt": False},
    }
    for parameter in model.parameters():
        if parameter.requires_grad:
            name = "vectors" if parameter.ndim <= 1 else "depthwise" if _is_depthwise(parameter) else "decayed"
            groups[name]["params"].append(parameter)
    return [{"name": name, **group} for name, group in groups.items() if group["params"]]


def _is_depthwise(weight: Tensor) -> bool:
    return weight.ndim == 4 and weight.shape[1] == 1


def build_optimizer(cfg, model: nn.Module) -> Optimizer:
    """LARS or AdamW (default betas and epsilon) over `parameter_groups`; hyper-parameters are set before every step."""
    groups = parameter_groups(model)
    if cfg.SOLVER.OPTIMIZER == "LARS":
        return LARS(groups, momentum=cfg.SOLVER.MOMENTUM)
    if cfg.SOLVER.OPTIMIZER == "AdamW":
        return AdamW(groups, lr=0.0, foreach=True)  # fused on a CPU ignores strides: wrong if layouts differ
    raise InputError(f"unknown SOLVER.OPTIMIZER '{cfg.SOLVER.OPTIMIZER}': use LARS or AdamW")


def set_hyperparameters(optimizer: Optimizer, lr: float, weight_decay: float) -> None:
    """Learning rate and weight decay of the coming step, each group's own factor respected."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        group["weight_decay"] = weight_decay * group["weight_decay_factor"]


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al., 2017) in the SSL form.

    Per parameter d = gradient + weight decay * p; if the group adapts, d *= eta |p| / |d| (1 where a norm is 0);
    then mu = momentum * mu + d and p -= lr * mu: the learning rate stays outside the momentum buffer.
    """

    def __init__(self, params, lr: float = 0.0, weight_decay: float = 0.0, momentum: float = 0.9, eta: float = 0.001):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum, eta=eta, adapt=True))

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            updates = [p.grad for p in params]
            if group["weight_decay"]:
                updates = torch._foreach_add(updates, params, alpha=group["weight_decay"])
            if group["adapt"]:
                updates = torch._foreach_mul(updates, _trust_ratios(params, updates, group["eta"]))
            momenta = [self._momentum(p) for p in params]
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, updates)
            torch._foreach_add_(params, momenta, alpha=-group["lr"])

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "mu" not in state:
            state["mu"] = torch.zeros_like(parameter)
        return state["mu"]


def _trust_ratios(params: list[Tensor], updates: list[Tensor], eta: float) -> list[Tensor]:
    """eta |p| / |d| per parameter as 0-d tensors; 1 where either norm is 0. Nothing is read back from the device."""
    weight_norms = torch.stack(torch._foreach_norm(params))
    update_norms = torch.stack(torch._foreach_norm(updates))
    ratios = eta * weight_norms / update_norms
    return list(torch.where((weight_norms > 0) & (update_norms > 0), ratios, 1.0).unbind())


@torch.no_grad()
def ema_update(averages: Iterable[Tensor], values: Iterable[Tensor], momentum: float) -> None:
    """averages = momentum * averages + (1 - momentum) * values, in place, one fused call for all parameters."""
    torch._foreach_lerp_(list(averages), list(values), 1.0 - momentum)
