"""One training step as the CycleGAN paper's reference implementation orders it, written independently of train.py.

Plain and slow on purpose: real, translated and identity images go through the networks one after another, and nothing
is frozen. Tests compare the real step with it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


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
    """Change the networks by one step; returns the losses, (batch size 1 upwards)."""

    def squared_error(scores: Tensor, target: float) -> Tensor:
        scores = 1 / (1 + (-scores).exp()) if sigmoid else scores
        return ((scores - target) ** 2).mean()

    fake_b = nets["gen_ab"](real_a)
    rec_a = nets["gen_ba"](fake_b)
    fake_a = nets["gen_ba"](real_b)
    rec_b = nets["gen_ab"](fake_a)
    losses: dict[str, Tensor] = {}

    def generators() -> None:
        losses["identity_b"] = losses["identity_a"] = real_a.new_zeros(())
        if lambda_identity > 0:
            losses["identity_b"] = (nets["gen_ab"](real_b) - real_b).abs().mean()
            losses["identity_a"] = (nets["gen_ba"](real_a) - real_a).abs().mean()
        losses["gan_ab"] = squared_error(nets["disc_b"](fake_b), 1)
        losses["gan_ba"] = squared_error(nets["disc_a"](fake_a), 1)
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

    def discriminators() -> None:
        opt_disc.zero_grad()
        for domain, real, fake in (("a", real_a, fake_a), ("b", real_b, fake_b)):
            disc, old_fake = nets[f"disc_{domain}"], pools[domain].query(fake)
            loss = 0.5 * (squared_error(disc(real), 1) + squared_error(disc(old_fake), 0))
            loss.backward()  # type: ignore[no-untyped-call]
            losses[f"disc_{domain}"] = loss
        opt_disc.step()

    for update in (discriminators, generators) if disc_first else (generators, discriminators):
        update()
    return {name: value.detach() for name, value in losses.items()}
