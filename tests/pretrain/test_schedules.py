"""Schedules against the published program's own values, to 1e-5 of the largest."""

import numpy as np
import pytest

from pretrain.schedules import cosine, linear, scaled_learning_rate, warmup_cosine
from tests.pretrain.golden import golden, relative_error


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
