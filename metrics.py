"""What a translation is worth."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def mean_absolute_error(images: Tensor, truth: Tensor) -> float:
    """Mean |difference| of two batches of images in [-1, 1], on the scale of images in [0, 1]: 0 to 1."""
    return (images - truth).abs().mean().item() / 2


@torch.no_grad()
def translate_batch(generator: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """Translate (N, 3, H, W) images in [-1, 1], `batch_size` at a time; the result is on the images' device."""
    device = next(generator.parameters()).device
    return torch.cat([generator(batch.to(device)).to(images.device) for batch in torch.split(images, batch_size)])


def paired_report(gen_ab: nn.Module, gen_ba: nn.Module, images_a: Tensor, images_b: Tensor) -> str:
    """How far translations are from the truth, beside doing nothing, in three lines.

    Args:
        gen_ab, gen_ba: the generators of both directions.
        images_a, images_b: (N, 3, H, W) in [-1, 1]; images of one index are true translations of each other.
    """
    nothing = mean_absolute_error(images_a, images_b)
    error_ab = mean_absolute_error(translate_batch(gen_ab, images_a, batch_size=8), images_b)
    error_ba = mean_absolute_error(translate_batch(gen_ba, images_b, batch_size=8), images_a)
    return (
        f"mean absolute error to the truth on {len(images_a)} held-out pairs, images in [0, 1]:\n"
        f"  doing nothing {nothing:.4f}\n"
        f"  a to b        {error_ab:.4f}, {error_ab / nothing:.2f} of doing nothing\n"
        f"  b to a        {error_ba:.4f}, {error_ba / nothing:.2f} of doing nothing"
    )
