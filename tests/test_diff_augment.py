"""The augmentation changes each image at random and lets gradients through."""

from __future__ import annotations

import pytest
import torch

from training.diff_augment import Policy, blur, diff_augment, draw_augmentation, draw_blur


def test_the_policy_none_returns_its_input() -> None:
    images = torch.randn(2, 3, 16, 16)
    assert diff_augment(images, "none") is images


@pytest.mark.parametrize("policy", ["geometry", "all"])
def test_each_image_is_changed_independently(policy: Policy) -> None:
    torch.manual_seed(0)
    changed = diff_augment(torch.full((8, 3, 32, 32), 0.5), policy)
    assert changed.shape == (8, 3, 32, 32)
    assert len({tuple(image.flatten().tolist()) for image in changed}) == 8


def test_geometry_shifts_and_cuts_but_keeps_all_other_values() -> None:
    torch.manual_seed(0)
    images = torch.arange(1.0, 32 * 32 + 1).view(1, 1, 32, 32).repeat(50, 3, 1, 1)
    changed = diff_augment(images, "geometry")
    for image in changed[:, 0]:
        row, column = (image > 0).nonzero()[0].tolist()
        source = image[row, column].item() - 1
        down, right = row - source // 32, column - source % 32
        assert abs(down) <= 4
        assert abs(right) <= 4
        kept = image > 0
        rows, columns = kept.nonzero().T
        expected = (rows - down) * 32 + (columns - right) + 1
        assert torch.equal(image[kept], expected.float())
    lost = (changed[:, 0] == 0).float().mean()
    assert 0.1 < lost < 0.4  # the cut covers up to a quarter of the area, and the shift adds a border


def test_all_channels_share_one_shift_and_one_cut() -> None:
    changed = diff_augment(torch.full((4, 3, 32, 32), 0.5), "geometry")
    assert torch.equal(changed[:, 0], changed[:, 1])
    assert torch.equal(changed[:, 0], changed[:, 2])


def test_the_policy_all_changes_the_colours_of_every_image() -> None:
    torch.manual_seed(0)
    images = torch.rand(20, 3, 24, 24) - 0.5
    changed = diff_augment(images, "all")
    for image, other in zip(images, changed, strict=True):
        kept = other.abs().sum(0) > 0
        assert not torch.equal(image[:, kept], other[:, kept])
        assert other.isfinite().all()


@pytest.mark.parametrize("policy", ["geometry", "all"])
def test_gradients_reach_the_kept_pixels_and_not_the_cut_ones(policy: Policy) -> None:
    torch.manual_seed(1)
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    changed = diff_augment(images, policy)
    changed.square().sum().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    assert (images.grad != 0).any()
    if policy == "geometry":
        assert (images.grad == 0).any()


def test_the_same_random_state_gives_the_same_changes() -> None:
    images = torch.rand(3, 3, 16, 16)
    torch.manual_seed(3)
    first = diff_augment(images, "all")
    torch.manual_seed(3)
    assert torch.equal(diff_augment(images, "all"), first)


def standard_deviation(kernel: torch.Tensor) -> float:
    positions = torch.arange(len(kernel)) - len(kernel) // 2
    return float((kernel * positions**2).sum() ** 0.5)


def test_a_blur_is_drawn_in_half_the_steps_with_a_sigma_up_to_the_knob() -> None:
    torch.manual_seed(0)
    kernels = [draw_blur(2.0) for _ in range(2000)]
    assert all(kernel.sum().item() == pytest.approx(1) for kernel in kernels)
    sigmas = torch.tensor([standard_deviation(kernel) for kernel in kernels])
    assert 0.45 < (sigmas < 0.1).float().mean() < 0.6  # no blur, or next to none
    assert 1.9 < sigmas.max() <= 2.0


def test_without_the_knob_nothing_is_drawn_and_nothing_is_blurred() -> None:
    before = torch.get_rng_state()
    augment = draw_augmentation("none", 0.0)
    assert torch.equal(torch.get_rng_state(), before)
    images = torch.randn(1, 3, 8, 8)
    assert augment(images) is images


def test_blur_turns_a_point_into_the_kernel_along_both_axes_and_keeps_flat_images() -> None:
    kernel = torch.tensor([0.25, 0.5, 0.25])
    point = torch.zeros(1, 2, 7, 7)
    point[0, 1, 3, 3] = 1.0
    blurred = blur(point, kernel)
    torch.testing.assert_close(blurred[0, 1, 2:5, 2:5], kernel[:, None] * kernel)
    assert blurred[0, 0].abs().max() == 0  # channels do not mix
    torch.testing.assert_close(blur(torch.ones(1, 3, 8, 8), kernel), torch.ones(1, 3, 8, 8))


def test_one_draw_blurs_all_images_of_a_step_alike_and_the_next_differs() -> None:
    torch.manual_seed(1)
    images = torch.rand(1, 3, 16, 16)
    first, second = draw_augmentation("none", 4.0), draw_augmentation("none", 4.0)
    assert torch.equal(first(images), first(images))
    assert not torch.equal(first(images), second(images))
