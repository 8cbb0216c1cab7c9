"""The draws are torchvision's distributions, pure functions of the sample's position."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torchvision.transforms import ColorJitter, RandomResizedCrop

from pretrain.data.views import UNIFORMS, View, color_of, draw, draw_views, place_crop, uniforms, view_set
from pretrain.settings import DEFAULTS
from sslight.core.config import load_config
from sslight.core.errors import InputError

SIGMAS = 4.5  # of the sampling error: a right implementation fails once in 100,000 comparisons


def agree(a: np.ndarray, b: np.ndarray) -> None:
    """The means of two samples, and of their squares, agree within the sampling error."""
    for x, y in ((a, b), (a**2, b**2)):
        error = math.sqrt(x.var() / len(x) + y.var() / len(y))
        assert abs(x.mean() - y.mean()) <= SIGMAS * error + 1e-12, (x.mean(), y.mean(), error)


@pytest.mark.parametrize(("scale", "height", "width"), [((0.3, 1.0), 375, 500), ((0.05, 0.3), 90, 400)])
def test_crops_are_distributed_as_torchvisions(scale, height, width):
    count = 6000
    crops, _ = draw_views([View(96, scale, True)], uniforms(0, 0, 0, count, UNIFORMS)[:, None])
    ours = np.array([place_crop(row, height, width) for row in crops[:, 0].tolist()], dtype=float)
    torch.manual_seed(0)
    image = torch.empty(3, height, width, dtype=torch.uint8)
    theirs = np.array([RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(count)], float)
    for column in range(4):
        agree(ours[:, column], theirs[:, column])
    agree(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])
    agree(ours[:, 2] / ours[:, 3], theirs[:, 2] / theirs[:, 3])


def test_an_image_too_narrow_for_any_try_gets_torchvisions_central_crop():
    image = torch.empty(3, 20, 400, dtype=torch.uint8)
    expected = RandomResizedCrop.get_params(image, [0.9, 1.0], [3 / 4, 4 / 3])
    assert draw(View(8, (0.9, 1.0), True), uniforms(0, 0, 0, 1, UNIFORMS)[0], 20, 400)[:4] == expected
    image = torch.empty(3, 400, 20, dtype=torch.uint8)
    expected = RandomResizedCrop.get_params(image, [0.9, 1.0], [3 / 4, 4 / 3])
    assert draw(View(8, (0.9, 1.0), True), uniforms(0, 0, 0, 1, UNIFORMS)[0], 400, 20)[:4] == expected


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 2)])
def test_tiny_images_have_crops_inside(size):
    for numbers in uniforms(0, 0, 0, 50, UNIFORMS):
        top, left, height, width = draw(View(8, (0.05, 0.3), False), numbers, *size)[:4]
        assert height >= 1 and width >= 1 and top >= 0 and left >= 0
        assert top + height <= size[0] and left + width <= size[1]


def test_jitter_is_distributed_as_torchvisions():
    count, view = 6000, View(96, (0.3, 1), True, jitter=(0.4, 0.3, 0.2, 0.1), jitter_prob=1.0)
    _, colors = draw_views([view], uniforms(1, 0, 0, count, UNIFORMS)[:, None])
    ours = [color_of(row) for row in colors[:, 0].tolist()]
    torch.manual_seed(0)
    jitter = ColorJitter(0.4, 0.3, 0.2, 0.1)
    ranges = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    theirs = [jitter.get_params(*ranges) for _ in range(count)]
    for op in range(4):
        agree(np.array([color.factors[op] for color in ours]), np.array([drawn[1 + op] for drawn in theirs]))
    orders = Counter(color.order for color in ours)
    expected = count / 24
    chi_squared = sum((orders[order] - expected) ** 2 / expected for order in orders)
    assert len(orders) == 24 and chi_squared < 60  # 23 degrees of freedom: p = 4e-5


def test_probabilities_are_those_of_the_view_set():
    count, views = 8000, view_set(load_config(DEFAULTS, None, ["VIEWS.LOCAL_NUMBER", "1"]))
    crops, colors = draw_views(views, uniforms(0, 3, 0, count, 3 * UNIFORMS).reshape(count, 3, UNIFORMS))
    jitter, gray, blur = (colors[..., :4] >= 0).all(-1).mean(0), colors[..., 8].mean(0), (colors[..., 9] > 0).mean(0)
    for seen, wanted in (
        (jitter, [0.8] * 3),
        (gray, [0.2] * 3),
        (blur, [1, 0.1, 0.5]),
        (colors[..., 10].mean(0), [0, 0.2, 0]),
        (crops[..., -1].mean(0), [0.5] * 3),
    ):
        error = np.sqrt(np.multiply(wanted, np.subtract(1, wanted)) / count)
        np.testing.assert_array_less(np.abs(seen - wanted), SIGMAS * error + 1e-12)
    sigma = colors[:, 0, 9]
    assert 0.1 <= sigma.min() < 0.11 and 1.99 < sigma.max() <= 2.0 and abs(sigma.mean() - 1.05) < 0.03


def test_operations_without_strength_are_left_out():
    view = View(8, (0.3, 1), True, jitter=(0.4, 0.0, 0.2, 0.0), jitter_prob=1.0)
    for numbers in uniforms(0, 0, 0, 20, UNIFORMS):
        assert set(draw(view, numbers, 50, 50).color.order) == {0, 2}


def test_numbers_depend_on_seed_epoch_and_position_alone():
    whole = uniforms(5, 2, 0, 10, UNIFORMS)
    np.testing.assert_array_equal(uniforms(5, 2, 4, 3, UNIFORMS), whole[4:7])
    assert not np.array_equal(uniforms(5, 3, 0, 10, UNIFORMS), whole)
    assert not np.array_equal(uniforms(6, 2, 0, 10, UNIFORMS), whole)
    assert len(np.unique(whole)) == whole.size


def test_view_set_has_globals_first():
    views = view_set(load_config(DEFAULTS, None, ["VIEWS.LOCAL_NUMBER", "3"]))
    assert [view.size for view in views] == [224, 224, 128, 128, 128]
    assert [view.is_global for view in views] == [True, True, False, False, False]
    assert [view.scale for view in views] == [(0.3, 1.0)] * 2 + [(0.05, 0.3)] * 3
    assert len(view_set(load_config(DEFAULTS, None, ["VIEWS.LOCAL_NUMBER", "0"]))) == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("VIEWS.GLOBAL_SCALE", "[0.5, 0.2]"),
        ("VIEWS.LOCAL_SCALE", "[0.0, 0.3]"),
        ("VIEWS.BLUR_PROB", "[1.0, 0.1]"),
        ("VIEWS.FLIP_PROB", "1.5"),
        ("VIEWS.COLOR_JITTER", "[0.4, 0.4, 0.2, 0.6]"),
        ("VIEWS.LOCAL_SIZE", "0"),
    ],
)
def test_impossible_views_are_refused_by_key(key, value):
    with pytest.raises(InputError, match=key):
        view_set(load_config(DEFAULTS, None, [key, value]))
