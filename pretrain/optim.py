"""Schedules as pure functions, optimizers over the published parameter groups, and the moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from sslight.core import compat, distributed
from sslight.core.errors import InputError, nearest

OPTIMIZERS = ("LARS", "AdamW", "SGD")

foreach, fused_sgd_ = compat.foreach(), compat.fused_sgd()


def cosine(step: float, total: int, start: float, end: float) -> float:
    """Half a cosine from `start` at step 0 towards `end`, which is approached at step `total` and not reached."""
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * step / total))


def linear(step: int, total: int, start: float, end: float) -> float:
    """Entry `step` of `total` evenly spaced values with both ends included; `end` from there on."""
    if step >= total:
        return end
    return start + (end - start) * step / max(total - 1, 1)


def warmup_cosine(step: int, total: int, warmup: int, start: float, peak: float, end: float) -> float:
    """Learning rate: linear from `start` to `peak` over `warmup` steps, both included, then cosine towards `end`.

    The cosine begins at its own first step, so the peak occurs twice. All three values are absolute.
    """
    if step < warmup:
        return linear(step, warmup, start, peak)
    return cosine(step - warmup, total - warmup, peak, end)


def scaled_learning_rate(base: float, global_batch: int) -> float:
    """The linear scaling rule: `base` is per 256 images of the global batch."""
    return base * global_batch / 256


def global_batch(cfg: CfgNode) -> int:
    """Images per optimizer step over all processes."""
    return cfg.TRAIN.BATCH_SIZE * distributed.world_size() * cfg.TRAIN.ACCUMULATE


def hyperparameters(cfg: CfgNode, step: int, steps_per_epoch: int) -> dict[str, float]:
    """Learning rate (linear rule on the global batch) and weight decay at an optimizer step."""
    solver, total = cfg.SOLVER, cfg.SOLVER.TOTAL_EPOCHS * steps_per_epoch
    warmup, peak = solver.WARMUP_EPOCHS * steps_per_epoch, peak_learning_rate(cfg)
    return {
        "lr": warmup_cosine(step, total, warmup, solver.START_WARMUP, peak, solver.MIN_LR),
        "weight_decay": cosine(step, total, solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_END),
    }


def peak_learning_rate(cfg: CfgNode) -> float:
    """The learning rate at the end of the warm-up, and throughout where it is constant."""
    return scaled_learning_rate(cfg.SOLVER.BASE_LR, global_batch(cfg))


def parameter_groups(model: nn.Module, constant_rate: Iterable[nn.Parameter] = ()) -> list[dict]:
    """Trained parameters in the three published groups; empty ones are left out.

    1-d parameters (biases, norms): no weight decay, no LARS adaptation. Depthwise convolutions (4-d, second dimension
    1): no weight decay. Everything else, tokens, positions and weight-norm scales included: decayed and adapted.
    The parameters `constant_rate` are in groups of their own behind these, marked by that key.
    """
    kinds: dict[str, dict] = {
        "decayed": {"weight_decay_factor": 1.0, "adapt": True},
        "depthwise": {"weight_decay_factor": 0.0, "adapt": True},
        "vectors": {"weight_decay_factor": 0.0, "adapt": False},
    }
    groups = {(name, False): {"name": name, "params": [], **kind} for name, kind in kinds.items()}
    groups |= {
        (name, True): {**group, "name": f"{name}, constant rate", "params": [], "constant_rate": True}
        for (name, _), group in groups.items()
    }
    constant = {id(parameter) for parameter in constant_rate}
    for parameter in model.parameters():
        if parameter.requires_grad:
            name = "vectors" if parameter.ndim <= 1 else "depthwise" if _is_depthwise(parameter) else "decayed"
            groups[name, id(parameter) in constant]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def _is_depthwise(weight: Tensor) -> bool:
    return weight.ndim == 4 and weight.shape[1] == 1


def build_optimizer(cfg, model: nn.Module, constant_rate: Iterable[nn.Parameter] = ()) -> Optimizer:
    """LARS, AdamW (default betas and epsilon) or SGD; hyper-parameters are set before every step.

    LARS and AdamW decay as `parameter_groups` says; SGD decays every parameter, biases and norms too, as MoCo and
    SimSiam do (Chen and He, 2021, appendix A). constant_rate: parameters whose learning rate is not scheduled.
    """
    name, groups = cfg.SOLVER.OPTIMIZER, parameter_groups(model, constant_rate)
    # foreach, since fused on a CPU ignores strides: wrong if layouts differ
    if name == "LARS":
        return LARS(groups, momentum=cfg.SOLVER.MOMENTUM)
    if name == "AdamW":
        return AdamW(groups, lr=0.0, foreach=True)
    if name == "SGD":
        groups = [{**group, "weight_decay_factor": 1.0} for group in groups]
        return SGD(groups, lr=0.0, momentum=cfg.SOLVER.MOMENTUM, foreach=True)
    raise InputError(f"unknown SOLVER.OPTIMIZER '{name}'{nearest(name, OPTIMIZERS)}: use {', '.join(OPTIMIZERS)}")


def set_hyperparameters(optimizer: Optimizer, lr: float, weight_decay: float, constant_lr: float | None = None) -> None:
    """Learning rate and weight decay of the coming step, each group's own factor respected.

    constant_lr: of the groups that keep a constant learning rate (default: `lr`).
    """
    for group in optimizer.param_groups:
        group["lr"] = constant_lr if constant_lr is not None and group.get("constant_rate") else lr
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
        foreach.add_(updates, params, alpha=group["weight_decay"])
    if group["adapt"]:
        weight_norms = torch.stack(foreach.norm(params))
        update_norms = torch.stack(foreach.norm(updates))
        ratios = group["eta"] * weight_norms / update_norms
        ratios = torch.where((weight_norms > 0) & (update_norms > 0), ratios, 1.0)
        foreach.mul_(updates, list(ratios.unbind()))
    foreach.mul_(momenta, group["momentum"])
    foreach.add_(momenta, updates)
    foreach.add_(params, momenta, alpha=-group["lr"])


def _update_on_cpu(params: list[Tensor], updates: list[Tensor], momenta: list[Tensor], group: dict) -> None:
    """LARS with momentum and step in one sweep: SGD's "dampening" is 1 minus the gradient's factor."""
    constants = dict(lr=group["lr"], momentum=group["momentum"], nesterov=False, maximize=False, is_first_step=False)
    if not group["adapt"]:
        fused_sgd_(params, updates, momenta, dampening=0.0, weight_decay=group["weight_decay"], **constants)
        return
    for p, d, mu in zip(params, updates, momenta, strict=True):  # one by one, while its memory is in the cache
        if group["weight_decay"]:
            d.add_(p, alpha=group["weight_decay"])
        weight_norm, update_norm = (float(torch.linalg.vector_norm(x)) for x in (p, d))
        ratio = group["eta"] * weight_norm / update_norm if weight_norm > 0 and update_norm > 0 else 1.0
        fused_sgd_([p], [d], [mu], dampening=1.0 - ratio, weight_decay=0.0, **constants)


def _fused_is_right(*lists: list[Tensor]) -> bool:
    """On a CPU, where reading norms costs no waiting; and fused SGD ignores strides, so these must agree."""
    return all(
        p.device.type == "cpu" and p.dtype == torch.float32 and p.stride() == d.stride() == mu.stride()
        for p, d, mu in zip(*lists, strict=True)
    )


@torch.no_grad()
def ema_update(averages: Iterable[Tensor], values: Iterable[Tensor], momentum: float) -> None:
    """averages = momentum * averages + (1 - momentum) * values, in place, one fused call for all parameters."""
    foreach.lerp_(list(averages), list(values), 1.0 - momentum)
