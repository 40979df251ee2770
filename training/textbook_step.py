"""One training step in the order of the CycleGAN paper's reference implementation, written independently of train.py.

It is plain and slow on purpose: real, translated and identity images pass through the networks one after another, and
no network is frozen. The tests compare the results of train.py's step with it, and benchmark.py compares the speed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from generator_model import InstanceNorm


def textbook_step(
    nets: dict[str, nn.Module],
    opt_gen: torch.optim.Optimizer,
    opt_disc: torch.optim.Optimizer,
    pools: dict[str, Any],
    real_a: Tensor,
    real_b: Tensor,
    lambda_cycle: float = 10.0,
    lambda_identity: float = 0.5,
    sigmoid: bool = False,
    disc_first: bool = False,
) -> dict[str, Tensor]:
    """Update the generators and the discriminators once.

    Args:
        nets: gen_ab, gen_ba, disc_a and disc_b.
        opt_gen, opt_disc: the optimisers of both generators and of both discriminators.
        pools: the image pools "a" and "b", each with a method `query`.
        real_a, real_b: images (N, 3, H, W) in [-1, 1] of domains a and b.
        lambda_cycle: the weight of the cycle loss.
        lambda_identity: the weight of the identity loss, relative to `lambda_cycle`.
        sigmoid: apply a sigmoid to the discriminators' scores.
        disc_first: update the discriminators before the generators.

    Returns:
        The losses by name, detached scalars.
    """
    fake_b = nets["gen_ab"](real_a)
    rec_a = nets["gen_ba"](fake_b)
    fake_a = nets["gen_ba"](real_b)
    rec_b = nets["gen_ab"](fake_a)
    losses: dict[str, Tensor] = {}

    def update_generators() -> None:
        losses["identity_b"] = losses["identity_a"] = real_a.new_zeros(())
        if lambda_identity > 0:
            losses["identity_b"] = (nets["gen_ab"](real_b) - real_b).abs().mean()
            losses["identity_a"] = (nets["gen_ba"](real_a) - real_a).abs().mean()
        losses["gan_ab"] = squared_error(nets["disc_b"](fake_b), 1, sigmoid=sigmoid)
        losses["gan_ba"] = squared_error(nets["disc_a"](fake_a), 1, sigmoid=sigmoid)
        losses["cycle_a"] = (rec_a - real_a).abs().mean()
        losses["cycle_b"] = (rec_b - real_b).abs().mean()
        losses["gen"] = (
            losses["gan_ab"]
            + losses["gan_ba"]
            + lambda_cycle * losses["cycle_a"]
            + lambda_cycle * losses["cycle_b"]
            + lambda_cycle * lambda_identity * losses["identity_a"]
            + lambda_cycle * lambda_identity * losses["identity_b"]
        )
        opt_gen.zero_grad()
        losses["gen"].backward()  # type: ignore[no-untyped-call]
        opt_gen.step()

    def update_discriminators() -> None:
        opt_disc.zero_grad()
        for domain, real, fake in (("a", real_a, fake_a), ("b", real_b, fake_b)):
            disc, old_fake = nets[f"disc_{domain}"], pools[domain].query(fake)
            loss_real = squared_error(disc(real), 1, sigmoid=sigmoid)
            loss_fake = squared_error(disc(old_fake), 0, sigmoid=sigmoid)
            losses[f"disc_{domain}"] = 0.5 * (loss_real + loss_fake)
            losses[f"disc_{domain}"].backward()  # type: ignore[no-untyped-call]
        opt_disc.step()

    if disc_first:
        update_discriminators()
        update_generators()
    else:
        update_generators()
        update_discriminators()
    return {name: value.detach() for name, value in losses.items()}


def squared_error(scores: Tensor, target: float, *, sigmoid: bool) -> Tensor:
    """The mean squared error of scores of any shape to their target, a scalar; `sigmoid` maps the scores first."""
    scores = 1 / (1 + (-scores).exp()) if sigmoid else scores
    return ((scores - target) ** 2).mean()


def plain_networks(nets: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Replace our instance norm by torch's own in networks, which change in place; returns them."""
    sequences = [layer for net in nets.values() for layer in net.modules() if isinstance(layer, nn.Sequential)]
    for layers in sequences:
        for index, layer in enumerate(layers):
            if isinstance(layer, InstanceNorm):
                layers[index] = nn.InstanceNorm2d(int(layers[index - 1].out_channels))  # type: ignore[arg-type]
    return nets
