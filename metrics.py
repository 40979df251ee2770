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
