"""Schedules, parameter groups, optimizers and the moving average against golden numbers and slow versions."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from pretrain.backbones import build_backbone
from pretrain.methods import build_method
from pretrain.optim import (
    OPTIMIZERS,
    build_optimizer,
    cosine,
    ema_update,
    linear,
    parameter_groups,
    scaled_learning_rate,
    set_hyperparameters,
    warmup_cosine,
)
from sslight.core.errors import InputError
from tests.pretrain.golden import golden, relative_error
from tests.pretrain.tiny import config
from tools.plain_methods import PlainAdamW, PlainLARS, plain_ema


def golden_model() -> nn.ParameterList:
    return nn.ParameterList([torch.tensor(golden()[f"lars_init_{j}"]) for j in range(4)])


def test_lars_equals_the_published_one():
    """Also where a weight is all zero (3) and where a gradient is (1 in step 1)."""
    data, model = golden(), golden_model()
    optimizer = build_optimizer(config("dino"), model)
    for i, lr in enumerate((0.24, 0.12, 0.3)):
        for j, parameter in enumerate(model):
            parameter.grad = torch.tensor(data[f"lars_grad_{i}_{j}"])
        set_hyperparameters(optimizer, lr, 0.1)
        optimizer.step()
        for j, parameter in enumerate(model):
            assert relative_error(parameter, data[f"lars_param_{i}_{j}"]) < 1e-5, (i, j)


@pytest.mark.parametrize(("name", "plain"), [("LARS", PlainLARS), ("AdamW", PlainAdamW)])
@pytest.mark.parametrize(
    ("layout", "gradient_layout"), [("contiguous", "contiguous"), ("last", "last"), ("last", "contiguous")]
)
def test_optimizers_equal_the_one_parameter_at_a_time_versions(name, plain, layout, gradient_layout):
    """6 steps on MobileNetV2 with the same gradients; one parameter has none in the first two.

    With mixed layouts the strides of a parameter, its gradient and its state differ.
    """
    torch.manual_seed(0)
    model = build_backbone("mobilenet_v2")
    slow = copy.deepcopy(model)
    if layout == "last":
        model = model.to(memory_format=torch.channels_last)
    optimizer, slow_optimizer = build_optimizer(config("dino", SOLVER__OPTIMIZER=name), model), plain(slow)
    for step in range(6):
        for index, (p, q) in enumerate(zip(model.parameters(), slow.parameters(), strict=True)):
            q.grad = None if index == 3 and step < 2 else torch.randn_like(q)
            if gradient_layout == layout and q.grad is not None:
                p.grad = torch.empty_like(p).copy_(q.grad)
            else:
                p.grad = None if q.grad is None else q.grad.clone()
        lr, decay = 0.1 / (step + 1), 0.05 * (step + 1)
        set_hyperparameters(optimizer, lr, decay)
        optimizer.step()
        slow_optimizer.step(lr, decay)
    for (key, p), q in zip(model.named_parameters(), slow.parameters(), strict=True):
        assert relative_error(p, q) < 1e-5, key


def test_sgd_equals_torchs_over_all_parameters():
    """6 steps on MobileNetV2: weight decay on every parameter, and a rate of its own for those that keep theirs."""
    torch.manual_seed(0)
    model = build_backbone("mobilenet_v2")
    slow = copy.deepcopy(model)
    optimizer = build_optimizer(config("dino", SOLVER__OPTIMIZER="SGD"), model, model.conv_head.parameters())
    kept = {id(parameter) for parameter in slow.conv_head.parameters()}
    groups = [[p for p in slow.parameters() if (id(p) in kept) == constant] for constant in (False, True)]
    plain = torch.optim.SGD([{"params": group} for group in groups], lr=0.0, momentum=0.9)
    for step in range(6):
        for p, q in zip(model.parameters(), slow.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        set_hyperparameters(optimizer, 0.1 / (step + 1), 0.05 * (step + 1), constant_lr=0.2)
        for group, lr in zip(plain.param_groups, (0.1 / (step + 1), 0.2), strict=True):
            group.update(lr=lr, weight_decay=0.05 * (step + 1))
        optimizer.step()
        plain.step()
    for (key, p), q in zip(model.named_parameters(), slow.named_parameters(), strict=True):
        assert relative_error(p, q[1]) < 1e-6, key


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resuming_an_optimizer_is_exact(name):
    model, cfg = golden_model(), config("dino", SOLVER__OPTIMIZER=name)
    models, optimizers = [model, copy.deepcopy(model)], []
    for m in models:
        optimizers.append(build_optimizer(cfg, m, [m[1]]))

    def steps(m, optimizer, first, last):
        for i in range(first, last):
            for j, parameter in enumerate(m):
                parameter.grad = torch.tensor(golden()[f"lars_grad_{i}_{j}"])
            set_hyperparameters(optimizer, 0.3, 0.1, 0.2)
            optimizer.step()

    steps(models[0], optimizers[0], 0, 3)
    steps(models[1], optimizers[1], 0, 2)
    resumed = build_optimizer(cfg, models[1], [models[1][1]])
    resumed.load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    steps(models[1], resumed, 2, 3)
    assert all(torch.equal(a, b) for a, b in zip(*models, strict=True))


def test_parameter_groups_are_the_published_ones():
    """By name, on networks that have every kind of parameter."""
    vit = build_method(config("dino", DINO__NORM_LAST_LAYER=False))
    names = {id(parameter): name for name, parameter in vit.named_parameters()}
    groups = {group["name"]: {names[id(p)] for p in group["params"]} for group in parameter_groups(vit)}
    assert set(groups) == {"decayed", "vectors"}
    for name in ("backbone.cls_token", "backbone.pos_embed", "head.last_layer.weight_g", "head.mlp.0.weight"):
        assert f"student.{name}" in groups["decayed"]
    assert {name for name in groups["vectors"] if not name.endswith((".bias", "norm1.weight", "norm2.weight"))} == {
        "student.backbone.norm.weight"
    }
    assert not any(name.startswith("teacher.") for group in groups.values() for name in group)

    cnn = nn.ModuleDict({"backbone": build_backbone("mobilenet_v2"), "classifier": nn.Linear(4, 3)})
    sizes = {group["name"]: len(group["params"]) for group in parameter_groups(cnn)}
    convs = [module for module in cnn.modules() if isinstance(module, nn.Conv2d)]
    assert sizes["depthwise"] == sum(module.groups > 1 for module in convs) == 17
    assert sizes["decayed"] == sum(module.groups == 1 for module in convs) + 1  # the joint classifier's weight
    assert sizes["vectors"] == 2 * sum(isinstance(module, nn.BatchNorm2d) for module in cnn.modules()) + 1


def test_group_factors_are_respected():
    optimizer = build_optimizer(config("dino"), build_backbone("mobilenet_v2"))
    set_hyperparameters(optimizer, 0.3, 0.1)
    assert {group["name"]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups} == {
        "decayed": (0.3, 0.1),
        "depthwise": (0.3, 0.0),
        "vectors": (0.3, 0.0),
    }


def test_a_constant_rate_has_groups_of_its_own_behind_the_others():
    model = build_backbone("mobilenet_v2")
    optimizer = build_optimizer(config("dino"), model, model.conv_head.parameters())
    set_hyperparameters(optimizer, 0.3, 0.1, constant_lr=0.5)
    assert [(group["name"], group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [
        ("decayed", 0.3, 0.1),
        ("depthwise", 0.3, 0.0),
        ("vectors", 0.3, 0.0),
        ("decayed, constant rate", 0.5, 0.1),
    ]
    assert optimizer.param_groups[-1]["params"] == list(model.conv_head.parameters())


def test_frozen_scale_is_not_trained():
    method = build_method(config("dino", DINO__NORM_LAST_LAYER=True))
    trained = {id(p) for group in parameter_groups(method) for p in group["params"]}
    assert id(method.student.head.last_layer.weight_g) not in trained
    assert method.student.head.last_layer.weight_g.eq(1).all()


def test_moving_average():
    average, values = nn.Linear(5, 3), nn.Linear(5, 3)
    slow = copy.deepcopy(average)
    ema_update(average.parameters(), values.parameters(), 0.996)
    plain_ema(slow, values, 0.996)
    for ours, expected in zip(average.parameters(), slow.parameters(), strict=True):
        assert relative_error(ours, expected) < 1e-6


def test_unknown_optimizer_is_refused():
    with pytest.raises(InputError, match="SOLVER.OPTIMIZER 'AdamX' .did you mean 'AdamW'.*LARS, AdamW, SGD"):
        build_optimizer(config("dino", SOLVER__OPTIMIZER="AdamX"), nn.Linear(1, 1))


def test_learning_rate_equals_the_published_one():
    expected = golden()["lr_schedule_epochs20_iters5_warmup2"]
    ours = [warmup_cosine(step, 100, 10, 0.0, 0.24, 0.0048) for step in range(100)]
    assert relative_error(ours, expected) < 1e-5


def test_momentum_equals_the_published_one():
    ours = [cosine(step, 100, 0.996, 1.0) for step in range(100)]
    assert relative_error(ours, golden()["momentum_schedule_epochs20_iters5"]) < 1e-5


def test_warmup_includes_both_ends_and_the_peak_occurs_twice():
    ours = [warmup_cosine(step, 30, 10, 0.075, 1.2, 0.0048) for step in range(30)]
    assert ours[:10] == pytest.approx(np.linspace(0.075, 1.2, 10))
    assert ours[9] == ours[10] == 1.2
    assert 0.0048 < ours[-1] < ours[-2]


def test_teacher_temperature_is_a_linspace_then_constant():
    ours = [linear(epoch, 50, 0.04, 0.07) for epoch in range(60)]
    assert ours == pytest.approx([*np.linspace(0.04, 0.07, 50), *[0.07] * 10])


@pytest.mark.parametrize(("total", "expected"), [(0, 0.07), (1, 0.04)])
def test_degenerate_warmups(total, expected):
    assert linear(0, total, 0.04, 0.07) == expected
    assert warmup_cosine(0, 5, 0, 0.0, 0.3, 0.0) == 0.3


def test_learning_rate_scales_with_the_global_batch():
    assert scaled_learning_rate(0.48, 1024) == pytest.approx(1.92)
