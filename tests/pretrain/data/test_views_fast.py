"""The fast renderers against the PIL / torchvision reference, draw by draw and in distribution, on real photos."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from pretrain.data.device_color import recolor_batch
from pretrain.data.fast_views import BLUR_STEPS, blur_kernel, recolor_fast, render_fast, resize_fast
from pretrain.data.views import (
    BRIGHTNESS,
    COLOR_COLUMNS,
    CONTRAST,
    HUE,
    NO_OPERATION,
    SATURATION,
    UNIFORMS,
    Color,
    View,
    color_of,
    crop,
    draw,
    draw_views,
    recolor,
    render,
    uniforms,
    view_set,
)
from pretrain.settings import DEFAULTS
from sslight.core.config import load_config
from tests.pretrain.data.photos import photos

PLAIN = Color((), (1.0, 1.0, 1.0, 0.0), False, 0.0, False)
# Mean absolute difference in levels of 255 that an operation may show. 2 would be tolerable; measured are 0.0 to 0.4.
TOLERANCE = {
    "brightness": 0.05,
    "contrast": 0.4,
    "saturation": 0.5,
    "hue": 0.9,
    "grayscale": 0.05,
    "blur": 0.8,
    "solarize": 0.0,
}
OPERATIONS = {
    "brightness": [PLAIN._replace(order=(BRIGHTNESS,), factors=(f, 1, 1, 0)) for f in (0.6, 0.9, 1.1, 1.4)],
    "contrast": [PLAIN._replace(order=(CONTRAST,), factors=(1, f, 1, 0)) for f in (0.6, 0.9, 1.1, 1.4)],
    "saturation": [PLAIN._replace(order=(SATURATION,), factors=(1, 1, f, 0)) for f in (0.2, 0.8, 1.2, 1.8)],
    "hue": [PLAIN._replace(order=(HUE,), factors=(1, 1, 1, f)) for f in (-0.2, -0.07, 0.04, 0.1)],
    "grayscale": [PLAIN._replace(gray=True)],
    "blur": [PLAIN._replace(sigma=s) for s in (0.1, 0.5, 1.0, 1.5, 2.0)],
    "solarize": [PLAIN._replace(solarize=True)],
}


def cropped(size: int = 112) -> list[np.ndarray]:
    return [np.asarray(photo.crop((20, 10, 20 + size, 10 + size))) for photo in photos()]


def rgb(image: np.ndarray) -> np.ndarray:
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image


def on_device(images: list[np.ndarray], color: Color) -> list[np.ndarray]:
    order = [*color.order, *[NO_OPERATION] * (4 - len(color.order))]
    row = [*order, *color.factors, color.gray, color.sigma, color.solarize]
    assert len(row) == COLOR_COLUMNS
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    out = recolor_batch(batch, torch.tensor([row] * len(images), dtype=torch.float32))
    assert torch.equal(out, out.round()) and out.min() >= 0 and out.max() <= 255
    return list(out.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_agrees_with_the_reference(name):
    images = cropped()
    for color in OPERATIONS[name]:
        reference = [np.asarray(recolor(Image.fromarray(image), color), dtype=float) for image in images]
        changed = np.mean([np.abs(a - b).mean() for a, b in zip(reference, images, strict=True)])
        assert changed > 1 or color.sigma == 0.1, "the operation does nothing: the comparison would be empty"
        fast = [rgb(recolor_fast(image.copy(), color, np.empty_like(image))) for image in images]
        for ours in (fast, on_device(images, color)):
            for a, b in zip(ours, reference, strict=True):
                assert np.abs(a - b).mean() <= TOLERANCE[name], (name, color)


@pytest.mark.parametrize("box", [(0, 0, 250, 188), (30, 20, 140, 140), (5, 5, 40, 50)])
def test_crops_agree_with_pil(box):
    """Antialiased bicubic, down and up: mean difference at most 0.3 levels of 255 (measured 0.03), at most 2."""
    for photo in photos():
        out = np.empty((96, 96, 3), dtype=np.uint8)
        left, top, width, height = box
        resize_fast(np.ascontiguousarray(np.array(photo)[top : top + height, left : left + width]), out)
        box_of_pil = (left, top, left + width, top + height)
        expected = photo.crop(box_of_pil).resize((96, 96), Image.Resampling.BICUBIC)
        difference = np.abs(out.astype(int) - np.asarray(expected))
        assert difference.mean() <= 0.3 and difference.max() <= 2


def test_whole_views_agree_draw_by_draw():
    """Mean difference at most 1 level of 255 over all views (measured 0.45), 2.5 in the worst view."""
    views = [View(112, (0.3, 1), True, blur_prob=1.0, solarize_prob=0.2), View(64, (0.05, 0.3), False)]
    numbers = uniforms(0, 0, 0, 60, 2 * UNIFORMS).reshape(60, 2, UNIFORMS)
    differences, flips = [], 0
    for i in range(60):
        for view, u in zip(views, numbers[i], strict=True):
            photo = photos()[i % 2]
            d = draw(view, u, photo.height, photo.width)
            a, b = np.empty((2, view.size, view.size, 3), dtype=np.uint8)
            render(photo, view, d, a)
            render_fast(np.array(photo), view, d, b)
            differences.append(np.abs(a.astype(int) - b).mean())
            flips += d.flip
    assert 30 < flips < 90
    assert np.mean(differences) <= 1.0 and np.max(differences) <= 2.5


def test_device_colour_agrees_draw_by_draw():
    """Mean difference at most 0.6 levels of 255 (measured 0.25), 2 in the worst view."""
    view = View(64, (0.05, 0.3), False, solarize_prob=0.3)
    numbers = uniforms(0, 1, 0, 48, UNIFORMS)
    table = draw_views([view], numbers[:, None])[1][:, 0]
    crops = [crop(photos()[i % 2], view, draw(view, numbers[i], 188, 250)) for i in range(48)]
    out = (
        recolor_batch(
            torch.from_numpy(np.stack([np.asarray(c) for c in crops])).permute(0, 3, 1, 2),
            torch.from_numpy(table).float(),
        )
        .permute(0, 2, 3, 1)
        .numpy()
    )
    reference = np.stack([np.asarray(recolor(c, color_of(row))) for c, row in zip(crops, table.tolist(), strict=True)])
    difference = np.abs(out - reference.astype(float)).mean((1, 2, 3))
    assert difference.mean() <= 0.6 and difference.max() <= 2


def statistics(image: np.ndarray) -> list[float]:
    """Mean and standard deviation of each channel, and the energy of the gradient."""
    x = image.astype(float)
    energy = (np.diff(x, axis=0) ** 2).mean() + (np.diff(x, axis=1) ** 2).mean()
    return [*x.mean((0, 1)), *x.std((0, 1)), energy]


def test_distributions_agree_over_independent_draws():
    """Per-channel mean, standard deviation and gradient energy, fast and reference on different draws: within 4
    standard errors of the difference. On the same draws: within 0.2 levels (energy: 2%)."""
    cfg = load_config(DEFAULTS, None, ["VIEWS.LOCAL_NUMBER", "1", "VIEWS.GLOBAL_SIZE", "80", "VIEWS.LOCAL_SIZE", "48"])
    views, count = view_set(cfg), 150
    seen = {}
    for seed in (0, 1):
        numbers = uniforms(seed, 0, 0, count, 3 * UNIFORMS).reshape(count, 3, UNIFORMS)
        found = []
        for i in range(count):
            photo = photos()[i % 2]
            for view, u in zip(views, numbers[i], strict=True):
                a, b = np.empty((2, view.size, view.size, 3), dtype=np.uint8)
                d = draw(view, u, photo.height, photo.width)
                render(photo, view, d, a)
                render_fast(np.array(photo), view, d, b)
                found.append((statistics(a), statistics(b)))
        seen[seed] = np.array(found)  # [draws, 2 renderers, 7 statistics]
    reference, fast = seen[0][:, 0], seen[1][:, 1]
    error = np.sqrt((reference.var(0) + fast.var(0)) / len(fast))
    np.testing.assert_array_less(np.abs(reference.mean(0) - fast.mean(0)), 4 * error)
    same = seen[0].mean(0)
    assert np.abs(same[0, :6] - same[1, :6]).max() < 0.2
    assert math.isclose(same[0, 6], same[1, 6], rel_tol=0.02)


@pytest.mark.parametrize("radius", [0.1, 0.4, 0.9, 1.3, 1.45, 2.0])
def test_blur_kernel_is_pils_impulse_response(radius):
    """Weights within 2.5/256: PIL rounds after each of its three passes, the kernel is counted in 1/256."""
    kernel = blur_kernel(round(radius * BLUR_STEPS))
    assert kernel.sum() == 1 and len(kernel) % 2 == 1 and np.array_equal(kernel, kernel[::-1])
    line = np.zeros((31, 31), dtype=np.uint8)
    line[:, 15] = 255
    response = np.asarray(Image.fromarray(line).filter(ImageFilter.GaussianBlur(radius)))[15] / 255
    ours = np.zeros(31)
    ours[15 - len(kernel) // 2 : 16 + len(kernel) // 2] = kernel
    np.testing.assert_allclose(ours, response, atol=2.5 / 256)
    variance = (ours * (np.arange(31) - 15) ** 2).sum()
    assert math.isclose(variance, radius**2, rel_tol=0.05, abs_tol=0.025)


def test_blur_keeps_flat_images_and_edges():
    flat = np.full((20, 20, 3), 200, dtype=np.uint8)
    for sigma in np.arange(0.1, 2.0, 0.1):
        out = recolor_fast(flat.copy(), PLAIN._replace(sigma=float(sigma)), np.empty_like(flat))
        assert np.array_equal(out, flat)
