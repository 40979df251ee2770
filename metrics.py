"""What a translation is worth."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def mean_absolute_error(images: Tensor, truth: Tensor) -> float:
    """Mean |difference| of two batches (N, 3, H, W) in [-1, 1], on the scale of images in [0, 1]: 0 to 1."""
    return (images - truth).abs().mean().item() / 2


@torch.no_grad()
def translate_in_batches(generator: nn.Module, images: Tensor, batch_size: int = 8) -> Tensor:
    """Translate (N, 3, H, W) images in [-1, 1], `batch_size` at a time; the result is on the images' device."""
    device = next(generator.parameters()).device
    return torch.cat([generator(batch.to(device)).to(images.device) for batch in torch.split(images, batch_size)])


def paired_report(
    gen_ab: nn.Module, gen_ba: nn.Module, images_a: Tensor, images_b: Tensor, name_a: str, name_b: str
) -> str:
    """How far translations are from the truth, beside leaving the images alone, as text.

    Args:
        gen_ab, gen_ba: the generators of both directions.
        images_a, images_b: (N, 3, H, W) in [-1, 1]; images of one index are true translations of each other.
        name_a, name_b: what to call the domains.
    """
    nothing = max(mean_absolute_error(images_a, images_b), 1e-12)  # pairs may be equal
    error_ab = mean_absolute_error(translate_in_batches(gen_ab, images_a), images_b)
    error_ba = mean_absolute_error(translate_in_batches(gen_ba, images_b), images_a)
    return (
        f"mean absolute error to the truth on {len(images_a)} held-out pairs, images in [0, 1]:\n"
        f"  doing nothing {nothing:.4f}\n"
        f"  {name_a} to {name_b} {error_ab:.4f}, {error_ab / nothing:.2f} of doing nothing\n"
        f"  {name_b} to {name_a} {error_ba:.4f}, {error_ba / nothing:.2f} of doing nothing"
    )
