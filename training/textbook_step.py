"""One training step in the order of the CycleGAN paper's reference implementation, written independently of train.py.

It is plain and slow on purpose: real, translated and identity images pass through the networks one after another, and
no network is frozen. The tests compare the results of train.py's step with it, and benchmark.py compares the speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generator_model import InstanceNorm

BLUR_PROB = 0.5  # The discriminators see blurred images in this fraction of the steps.
BLUR_REACH = 3  # A Gaussian is cut off at this many times the largest standard deviation.
SOURCE_WEIGHT = 0.5  # A real image of the other domain weighs this much; a translated one weighs 1.


@dataclass(frozen=True)
class Terms:
    """What one step minimises; by default what the paper does.

    Attributes:
        lambda_cycle: the weight of the cycle loss.
        lambda_identity: the weight of the identity loss, relative to `lambda_cycle`.
        lambda_pair: the weight of the distance from the other image, which is the true translation.
        sigmoid: apply a sigmoid to the discriminators' scores before the squared error.
        disc_first: update the discriminators before the generators.
        logistic: the cross-entropy of the scores in place of their squared error.
        source_negatives: the discriminators also reject real images of the other domain.
        max_blur: the discriminators see blurred images in half the steps, with a sigma of up to this, px.
        r1_gamma: the weight of the discriminators' gradient penalty in this very step.
    """

    lambda_cycle: float = 10.0
    lambda_identity: float = 0.5
    lambda_pair: float = 0.0
    sigmoid: bool = False
    disc_first: bool = False
    logistic: bool = False
    source_negatives: bool = False
    max_blur: float = 0.0
    r1_gamma: float = 0.0

    def distance(self, scores: Tensor, target: float) -> Tensor:
        """How far scores of any shape are from their target, 0 or 1; a scalar."""
        if self.logistic:
            return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, target))
        scores = 1 / (1 + (-scores).exp()) if self.sigmoid else scores
        return ((scores - target) ** 2).mean()


@dataclass(frozen=True)
class Textbook:
    """What the steps change.

    Attributes:
        nets: gen_ab, gen_ba, disc_a and disc_b.
        opt_gen, opt_disc: the optimisers of both generators and of both discriminators.
        pools: the image pools "a" and "b", each with a method `query`.
    """

    nets: dict[str, nn.Module]
    opt_gen: torch.optim.Optimizer
    opt_disc: torch.optim.Optimizer
    pools: dict[str, Any]


def textbook_step(textbook: Textbook, real_a: Tensor, real_b: Tensor, *, terms: Terms) -> dict[str, Tensor]:
    """Update the generators and the discriminators once.

    Args:
        textbook: networks, optimisers and pools, all of which it changes.
        real_a, real_b: images (N, 3, H, W) in [-1, 1] of domains a and b.
        terms: what the step minimises.

    Returns:
        The losses by name, detached scalars.
    """
    nets, losses = textbook.nets, dict[str, Tensor]()
    blurred = draw_blur(terms.max_blur)
    fake_b = nets["gen_ab"](real_a)
    rec_a = nets["gen_ba"](fake_b)
    fake_a = nets["gen_ba"](real_b)
    rec_b = nets["gen_ab"](fake_a)

    def update_generators() -> None:
        losses["identity_b"] = losses["identity_a"] = real_a.new_zeros(())
        if terms.lambda_identity > 0:
            losses["identity_b"] = (nets["gen_ab"](real_b) - real_b).abs().mean()
            losses["identity_a"] = (nets["gen_ba"](real_a) - real_a).abs().mean()
        losses["pair_b"] = losses["pair_a"] = real_a.new_zeros(())
        if terms.lambda_pair > 0:
            losses["pair_b"] = (fake_b - real_b).abs().mean()
            losses["pair_a"] = (fake_a - real_a).abs().mean()
        losses["gan_ab"] = terms.distance(nets["disc_b"](blurred(fake_b)), 1)
        losses["gan_ba"] = terms.distance(nets["disc_a"](blurred(fake_a)), 1)
        losses["cycle_a"] = (rec_a - real_a).abs().mean()
        losses["cycle_b"] = (rec_b - real_b).abs().mean()
        losses["gen"] = (
            losses["gan_ab"]
            + losses["gan_ba"]
            + terms.lambda_cycle * losses["cycle_a"]
            + terms.lambda_cycle * losses["cycle_b"]
            + terms.lambda_cycle * terms.lambda_identity * losses["identity_a"]
            + terms.lambda_cycle * terms.lambda_identity * losses["identity_b"]
            + terms.lambda_pair * losses["pair_a"]
            + terms.lambda_pair * losses["pair_b"]
        )
        textbook.opt_gen.zero_grad()
        losses["gen"].backward()  # type: ignore[no-untyped-call]
        textbook.opt_gen.step()

    def update_discriminators() -> None:
        textbook.opt_disc.zero_grad()
        for domain, real, fake, source in (("a", real_a, fake_a, real_b), ("b", real_b, fake_b, real_a)):
            disc, old_fake = nets[f"disc_{domain}"], textbook.pools[domain].query(fake)
            loss_real = terms.distance(disc(blurred(real)), 1)
            loss_fake = terms.distance(disc(blurred(old_fake)), 0)
            if terms.source_negatives:
                loss_fake = loss_fake + SOURCE_WEIGHT * terms.distance(disc(blurred(source)), 0)
            losses[f"disc_{domain}"] = 0.5 * (loss_real + loss_fake)
            losses[f"disc_{domain}"].backward()  # type: ignore[no-untyped-call]
            if terms.r1_gamma:
                add_gradient_penalty(disc, blurred(real), terms.r1_gamma)
        textbook.opt_disc.step()

    if terms.disc_first:
        update_discriminators()
        update_generators()
    else:
        update_generators()
        update_discriminators()
    return {name: value.detach() for name, value in losses.items()}


def add_gradient_penalty(disc: nn.Module, real: Tensor, r1_gamma: float) -> None:
    """Add the gradients of R1 (Mescheder et al. 2018, Eq. 9), halved like the adversarial loss, image by image."""
    for image in real:
        image = image[None].clone().requires_grad_()  # (1, 3, H, W)
        (slope,) = torch.autograd.grad(disc(image).mean(), image, create_graph=True)  # (1, 3, H, W)
        (r1_gamma / 4 * (slope**2).sum() / len(real)).backward()  # type: ignore[no-untyped-call]


def draw_blur(max_sigma: float) -> Callable[[Tensor], Tensor]:
    """A Gaussian blur of images (N, C, H, W) with a random sigma, px, by one dense matrix for each axis."""
    chance, size = torch.rand(2).tolist() if max_sigma else (1.0, 0.0)
    sigma, reach = size * max_sigma, math.ceil(BLUR_REACH * max_sigma)
    if chance >= BLUR_PROB or not sigma:
        return lambda images: images

    @cache
    def matrix(side: int) -> Tensor:
        """(side, side), with a Gaussian in each row that is folded back at both ends."""
        rows = np.zeros((side, side))
        heights = {offset: math.exp(-(offset**2) / (2 * sigma**2)) for offset in range(-reach, reach + 1)}
        for row in range(side):
            for offset, height in heights.items():
                column = abs(row + offset)
                column = 2 * (side - 1) - column if column >= side else column
                rows[row, column] += height / sum(heights.values())
        return torch.from_numpy(rows)

    def blurred(images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        return matrix(height).to(images) @ images @ matrix(width).to(images).T  # (N, C, H, W)

    return blurred


def plain_networks(nets: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Replace our instance norm by torch's own in networks, which change in place; returns them."""
    sequences = [layer for net in nets.values() for layer in net.modules() if isinstance(layer, nn.Sequential)]
    for layers in sequences:
        for index, layer in enumerate(layers):
            if isinstance(layer, InstanceNorm):
                layers[index] = nn.InstanceNorm2d(int(layers[index - 1].out_channels))  # type: ignore[arg-type]
    return nets
