"""Losses by hand, and the image pool against its description."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch

from training.losses import ImagePool, cycle_loss, discriminator_loss, gan_loss, identity_loss, pair_loss, r1_penalty


def test_the_adversarial_loss_is_the_mean_squared_distance_to_one_or_zero() -> None:
    scores = torch.tensor([0.0, 0.5, 2.0])
    assert gan_loss(scores, True).item() == pytest.approx((1 + 0.25 + 1) / 3)
    assert gan_loss(scores, False).item() == pytest.approx((0 + 0.25 + 4) / 3)


def test_a_sigmoid_comes_before_the_squared_error() -> None:
    assert gan_loss(torch.zeros(4), True, sigmoid=True).item() == pytest.approx(0.25)
    assert gan_loss(torch.full((4,), 30.0), True, sigmoid=True).item() == pytest.approx(0.0)


def test_the_discriminators_loss_is_halved() -> None:
    assert discriminator_loss(torch.zeros(5), torch.ones(5)).item() == 1.0
    assert discriminator_loss(torch.ones(5), torch.zeros(5)).item() == 0.0


def test_the_logistic_loss_is_the_cross_entropy_of_log_odds() -> None:
    scores = torch.tensor([-3.0, 0.0, 5.0])
    chance = 1 / (1 + (-scores).exp())
    assert gan_loss(scores, True, kind="logistic").item() == pytest.approx(-chance.log().mean().item())
    assert gan_loss(scores, False, kind="logistic").item() == pytest.approx(-(1 - chance).log().mean().item(), rel=1e-4)


def test_the_logistic_loss_neither_overflows_nor_saturates_for_a_generator() -> None:
    score = torch.tensor(-1000.0, requires_grad=True)
    loss = gan_loss(score, True, kind="logistic")
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 1000
    assert score.grad is not None
    assert score.grad.item() == -1


@pytest.mark.parametrize(("kind", "of_a_guess"), [("lsgan", 0.25), ("logistic", 0.6931472)])
def test_a_real_image_of_the_other_domain_weighs_half_as_much_as_a_fake(
    kind: Literal["lsgan", "logistic"], of_a_guess: float
) -> None:
    scores = torch.full((5,), 0.5 if kind == "lsgan" else 0.0)
    assert discriminator_loss(scores, scores, kind=kind).item() == pytest.approx(of_a_guess)
    assert discriminator_loss(scores, scores, scores, kind=kind).item() == pytest.approx(1.25 * of_a_guess)


class Plane(torch.nn.Module):
    """A discriminator whose scores, two heads of 3x3, all equal the product of slope and image."""

    def __init__(self, slope: torch.Tensor) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (self.slope * images).sum(dim=(1, 2, 3), keepdim=True).expand(-1, 2, 3, 3)


def test_the_gradient_penalty_of_a_plane_is_half_its_squared_slope() -> None:
    slope = torch.randn(1, 3, 8, 8, requires_grad=True)
    penalty = r1_penalty(Plane(slope), torch.randn(4, 3, 8, 8))
    assert penalty.item() == pytest.approx(slope.square().sum().item() / 2, rel=1e-5)
    penalty.backward()  # type: ignore[no-untyped-call]
    assert slope.grad is not None
    torch.testing.assert_close(slope.grad, slope.detach())


def test_the_gradient_penalty_is_computed_in_full_precision_and_leaves_its_input_alone() -> None:
    real = torch.randn(1, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        penalty = r1_penalty(torch.nn.Conv2d(3, 1, 3), real)
    assert penalty.dtype == torch.float32
    assert not real.requires_grad


@pytest.mark.parametrize("loss", [cycle_loss, identity_loss, pair_loss])
def test_cycle_identity_and_pair_loss_are_mean_absolute_differences(loss: Callable[..., torch.Tensor]) -> None:
    assert loss(torch.tensor([1.0, -1.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])).item() == pytest.approx(1.0)


def numbered(first: int, count: int = 1) -> torch.Tensor:
    return torch.arange(first, first + count).float().reshape(-1, 1, 1, 1)


def test_a_pool_first_fills_and_then_swaps_half_of_its_inputs() -> None:
    pool = ImagePool(50, seed=0)
    assert all(pool.query(numbered(i)).item() == i for i in range(50))
    returned = [int(pool.query(numbered(i)).item()) for i in range(50, 4050)]
    old = [number for i, number in zip(range(50, 4050), returned, strict=True) if number != i]
    assert 0.47 < len(old) / 4000 < 0.53  # four standard deviations around one half
    assert len(set(old)) == len(old), "an image left the pool twice"
    held = [int(image.item()) for image in pool.images]
    assert sorted(old + held) == sorted(set(range(4050)) - set(returned) | set(old)), "an image was lost"


def test_a_pool_of_size_zero_returns_its_input() -> None:
    pool = ImagePool(0, seed=0)
    assert torch.equal(pool.query(numbered(0, 5)), numbered(0, 5))


def test_a_pool_detaches_and_copies() -> None:
    images = torch.zeros(2, 1, 1, 1, requires_grad=True)
    pool = ImagePool(2, seed=0)
    assert not pool.query(images).requires_grad
    with torch.no_grad():
        images += 1
    assert all(image.item() == 0 for image in pool.images)


def test_a_restored_pool_continues_as_the_first() -> None:
    pool = ImagePool(4, seed=1)
    pool.query(numbered(0, 9))
    copy = ImagePool(4, seed=99)
    copy.load_state_dict(pool.state_dict())
    assert torch.equal(pool.query(numbered(9, 30)), copy.query(numbered(9, 30)))


def test_a_pool_restored_on_the_cpu_serves_another_device() -> None:
    pool = ImagePool(2, seed=0)
    pool.query(numbered(0, 2))
    assert all(pool.query(numbered(i).to("meta")).device.type == "meta" for i in range(9))
