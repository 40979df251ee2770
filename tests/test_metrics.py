"""The metrics equal independent calculations of their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from evaluation.metrics import (
    Estimate,
    bootstrap,
    change_outside,
    kernel_distance,
    mean_absolute_error,
    rank_one,
    sharpness,
    ssim,
    translate_in_batches,
)


def test_the_mean_absolute_error_is_on_the_scale_of_images_in_zero_to_one() -> None:
    black, white = torch.full((1, 3, 4, 4), -1.0), torch.full((1, 3, 4, 4), 1.0)
    assert mean_absolute_error(black, white) == 1.0
    assert mean_absolute_error(black, black + 0.5) == pytest.approx(0.25)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_the_batch_size_does_not_change_a_translation(batch_size: int) -> None:
    images = torch.randn(5, 3, 8, 8)
    layer = nn.Conv2d(3, 3, 3, padding=1)
    torch.testing.assert_close(translate_in_batches(layer, images, batch_size=batch_size), layer(images).detach())


def interval(estimate: Estimate | None) -> tuple[float, float]:
    assert estimate is not None
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


def test_an_estimate_without_an_interval_shows_none() -> None:
    assert str(Estimate(1.5, count=9)) == "1.500"
    assert str(Estimate(1.5, 1.0, 2.0, 9)) == "1.500 (1.000 to 2.000)"


def test_the_bootstrap_interval_contains_the_true_mean_about_nineteen_times_out_of_twenty() -> None:
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        estimate = bootstrap(random.normal(3, 2, 60))
        low, high = interval(estimate)
        hits += low < 3 < high
    assert 88 <= hits <= 99


def test_images_without_a_value_do_not_count() -> None:
    estimate = bootstrap(np.array([1.0, np.nan, 3.0]))
    assert estimate is not None
    assert (estimate.value, estimate.count) == (2.0, 2)
    assert bootstrap(np.array([np.nan])) is None


def test_ssim_is_one_for_equal_images_and_falls_with_noise() -> None:
    torch.manual_seed(0)
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    assert ssim(images, images) == pytest.approx(1)
    little, much = (ssim(images, images + noise * torch.randn_like(images)).mean() for noise in (0.1, 0.5))
    assert 1 > little > much > 0


def test_ssim_equals_its_definition_on_one_window() -> None:
    random = np.random.default_rng(0)
    x, y = random.random((2, 3, 11, 11))
    bell = np.exp(-np.square(np.arange(11) - 5) / (2 * 1.5**2))
    window = np.outer(bell, bell) / np.outer(bell, bell).sum()
    expected = []
    for a, b in zip(x, y, strict=True):
        mean_a, mean_b = (window * a).sum(), (window * b).sum()
        var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
        covariance = (window * (a - mean_a) * (b - mean_b)).sum()
        expected.append((2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
                        / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)))  # fmt: skip
    found = ssim(*(torch.from_numpy(image)[None] * 2 - 1 for image in (x, y)))
    assert found[0] == pytest.approx(np.mean(expected), rel=1e-6)


def test_the_kernel_distance_equals_its_definition() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(5, 4)), random.normal(size=(6, 4)) + 1

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 4 + 1) ** 3)

    own = np.mean([kernel(x[i], x[j]) for i in range(5) for j in range(5) if i != j])
    others = np.mean([kernel(y[i], y[j]) for i in range(6) for j in range(6) if i != j])
    cross = np.mean([kernel(a, b) for a in x for b in y])
    estimate = kernel_distance(x, y)
    assert estimate is not None
    assert estimate.value == pytest.approx(own + others - 2 * cross)


def test_the_kernel_distance_is_near_zero_for_equal_distributions_and_grows_with_their_difference() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 300, 8))
    distances = [kernel_distance(x + shift, y) for shift in (0, 0.5, 1)]
    same, near, far = (distance for distance in distances if distance)
    (same_low, same_high), (near_low, near_high), (far_low, _) = map(interval, (same, near, far))
    assert same_low < 0.02
    assert abs(same.value) < 0.05
    assert same_high < near_low < near_high < far_low
    assert kernel_distance(x[:1], y) is None


def test_sharpness_grows_with_the_square_of_the_contrast() -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 3, 16, 16) - 0.5
    assert sharpness(images, images) == pytest.approx(1)
    assert sharpness(2 * images + 0.1, images) == pytest.approx(4, rel=1e-4)
    smooth = torch.nn.functional.avg_pool2d(images, 3, stride=1, padding=1)
    assert sharpness(smooth, images).max() < 0.3
    assert np.isnan(sharpness(images[:1], torch.zeros(1, 3, 16, 16))).all()


def test_the_change_outside_is_divided_by_that_inside() -> None:
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:6, 2:6] = True
    images = torch.zeros(1, 3, 8, 8)
    assert change_outside(images + 0.1 + 0.3 * inside, images, inside) == pytest.approx(0.25)
    assert change_outside(images + 0.3 * inside, images, inside) == pytest.approx(0)
    assert np.isnan(change_outside(images, images, inside)).all()


def test_rank_one_needs_the_nearest_of_all_originals() -> None:
    originals = np.eye(4)
    translations = np.array([[0.9, 0.4, 0, 0], [0.9, 0.4, 0, 0], [0, 0, 1, 0], [np.nan] * 4])
    assert rank_one(translations, originals).tolist() == [1, 0, 1, 0]
    originals[0] = np.nan  # this face was not found: nothing can be nearest to it
    right = rank_one(translations, originals)
    assert np.isnan(right[0])
    assert right[1:].tolist() == [1, 1, 0]
