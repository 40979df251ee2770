"""Differentiable augmentation of a discriminator's inputs (DiffAugment, Zhao et al. 2020, arXiv 2006.10738).

A discriminator memorises a small training set. It cannot do so if every image that it receives, real or translated, is
changed at random. The changes are differentiable, so the generators still learn from the discriminator's scores, and
they apply to real images too, so the generators do not learn to imitate them.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Policy = Literal["none", "geometry", "all"]
MAX_SHIFT = 1 / 8  # Images move by up to this fraction of their sides (the paper's value).
CUT_SIDE = 1 / 2  # The rectangle that is cut out has this fraction of the image's sides (the paper's value).


def diff_augment(images: Tensor, policy: Policy) -> Tensor:
    """Change each image of a batch at random and independently, with torch's global random state.

    Args:
        images: (N, C, H, W) in [-1, 1], floating point.
        policy: "none" returns the images unchanged, "geometry" shifts each image and cuts a rectangle out of it, and
            "all" also changes brightness, saturation and contrast.

    Returns:
        (N, C, H, W), differentiable with respect to `images`; colours may leave [-1, 1].
    """
    if policy == "all":
        images = _recolour(images)
    return images if policy == "none" else _cut_out(_shift(images))


def _uniform(images: Tensor, low: float, high: float) -> Tensor:
    """One uniform random number per image, (N, 1, 1, 1), between `low` and `high`."""
    return torch.rand(len(images), 1, 1, 1, device=images.device) * (high - low) + low


def _recolour(images: Tensor) -> Tensor:
    """Change brightness, saturation and contrast by random amounts in the paper's ranges."""
    images = images + _uniform(images, -0.5, 0.5)  # brightness
    grey = images.mean(dim=1, keepdim=True)  # (N, 1, H, W)
    images = (images - grey) * _uniform(images, 0, 2) + grey  # saturation
    mean = images.mean(dim=(1, 2, 3), keepdim=True)  # (N, 1, 1, 1)
    return (images - mean) * _uniform(images, 0.5, 1.5) + mean  # contrast


def _shift(images: Tensor) -> Tensor:
    """Move each image by up to MAX_SHIFT of its sides, and fill the border that this opens with 0."""
    height, width = images.shape[-2:]
    rows, columns = round(MAX_SHIFT * height), round(MAX_SHIFT * width)
    padded = F.pad(images, (columns, columns, rows, rows))
    tops = torch.randint(0, 2 * rows + 1, (len(images),)).tolist()
    lefts = torch.randint(0, 2 * columns + 1, (len(images),)).tolist()
    return torch.stack([image[:, top : top + height, left : left + width]
                        for image, top, left in zip(padded, tops, lefts, strict=True)])  # fmt: skip


def _cut_out(images: Tensor) -> Tensor:
    """Set a rectangle with CUT_SIDE of the sides to 0; its centre lies anywhere, so it may reach beyond the border."""
    height, width = images.shape[-2:]
    row = torch.arange(height, device=images.device).view(1, 1, -1, 1)
    column = torch.arange(width, device=images.device).view(1, 1, 1, -1)
    near_row = (row - _uniform(images, 0, height)).abs() < CUT_SIDE * height / 2
    near_column = (column - _uniform(images, 0, width)).abs() < CUT_SIDE * width / 2
    return images * ~(near_row & near_column)
