"""Optimizers over the published parameter groups, and the momentum encoder's moving average."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from sslight.core.errors import InputError


def parameter_groups(model: nn.Module) -> list[dict]:
    """Trained parameters in the three published groups; empty ones are left out.

    1-d parameters (biases, norms): no weight decay, no LARS adaptation. Depthwise convolutions (4-d, second dimension
    1): no weight decay. Everything else, tokens, positions and weight-norm scales included: decayed and adapted.
    """
    groups: dict[str, dict] = {
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
    A step uses the gradients up: the decay is added to them in place.
    """

    def __init__(self, params, lr: float = 0.0, weight_decay: float = 0.0, momentum: float = 0.9, eta: float = 0.001):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum, eta=eta, adapt=True))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            updates, momenta = [p.grad for p in params], [self._momentum(p) for p in params]
            if _fused_is_right(params, updates, momenta):
                _update_on_cpu(params, updates, momenta, group)
            else:
                _update(params, updates, momenta, group)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "mu" not in state:
            state["mu"] = torch.zeros_like(parameter)
        return state["mu"]


def _update(params: list[Tensor], updates: list[Tensor], momenta: list[Tensor], group: dict) -> None:
    """LARS in a few calls for all parameters of a group. Nothing is read back from the device."""
    if group["weight_decay"]:
        torch._foreach_add_(updates, params, alpha=group["weight_decay"])
    if group["adapt"]:
        weight_norms = torch.stack(torch._foreach_norm(params))
        update_norms = torch.stack(torch._foreach_norm(updates))
        ratios = group["eta"] * weight_norms / update_norms
        ratios = torch.where((weight_norms > 0) & (update_norms > 0), ratios, 1.0)
        torch._foreach_mul_(updates, list(ratios.unbind()))
    torch._foreach_mul_(momenta, group["momentum"])
    torch._foreach_add_(momenta, updates)
    torch._foreach_add_(params, momenta, alpha=-group["lr"])


def _update_on_cpu(params: list[Tensor], updates: list[Tensor], momenta: list[Tensor], group: dict) -> None:
    """LARS with momentum and step in one sweep: SGD's "dampening" is 1 minus the gradient's factor."""
    constants = dict(lr=group["lr"], momentum=group["momentum"], nesterov=False, maximize=False, is_first_step=False)
    if not group["adapt"]:
        torch._fused_sgd_(params, updates, momenta, dampening=0.0, weight_decay=group["weight_decay"], **constants)
        return
    for p, d, mu in zip(params, updates, momenta, strict=True):  # one by one, while its memory is in the cache
        if group["weight_decay"]:
            d.add_(p, alpha=group["weight_decay"])
        weight_norm, update_norm = (float(torch.linalg.vector_norm(x)) for x in (p, d))
        ratio = group["eta"] * weight_norm / update_norm if weight_norm > 0 and update_norm > 0 else 1.0
        torch._fused_sgd_([p], [d], [mu], dampening=1.0 - ratio, weight_decay=0.0, **constants)


def _fused_is_right(*lists: list[Tensor]) -> bool:
    """On a CPU, where reading norms costs no waiting; and fused SGD ignores strides, so these must agree."""
    return all(
        p.device.type == "cpu" and p.dtype == torch.float32 and p.stride() == d.stride() == mu.stride()
        for p, d, mu in zip(*lists, strict=True)
    )


@torch.no_grad()
def ema_update(averages: Iterable[Tensor], values: Iterable[Tensor], momentum: float) -> None:
    """averages = momentum * averages + (1 - momentum) * values, in place, one fused call for all parameters."""
    torch._foreach_lerp_(list(averages), list(values), 1.0 - momentum)
