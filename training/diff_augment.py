"""Differentiable augmentation of what a discriminator sees (DiffAugment, Zhao et al. 2020, arXiv 2006.10738).

With few images a discriminator learns them by heart. It cannot when every image, real or translated, reaches it changed
at random; and as the changes are differentiable, the generators still learn from its judgement, and do not learn to
make the changes themselves.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Policy = Literal["none", "geometry", "all"]
MAX_SHIFT = 1 / 8  # of the image's side (paper 1/8)
CUT_SIDE = 1 / 2  # of the image's side (paper 1/2)


def diff_augment(images: Tensor, policy: Policy) -> Tensor:
    """Change each image of a batch at random, on its own, with torch's global random numbers.

    Args:
        images: (N, C, H, W) in [-1, 1].
        policy: "none"; "geometry": shift and cut out; "all": change brightness, saturation and contrast, too.

    Returns:
        (N, C, H, W), differentiable in `images`; colours may leave [-1, 1].
    """
    if policy == "all":
        images = _recolour(images)
    return images if policy == "none" else _cut_out(_shift(images))


def _uniform(images: Tensor, low: float, high: float) -> Tensor:
    """One random number an image, (N, 1, 1, 1)."""
    return torch.rand(len(images), 1, 1, 1, device=images.device) * (high - low) + low


def _recolour(images: Tensor) -> Tensor:
    images = images + _uniform(images, -0.5, 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * _uniform(images, 0, 2) + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * _uniform(images, 0.5, 1.5) + mean


def _shift(images: Tensor) -> Tensor:
    """Move each image by up to MAX_SHIFT of its sides; what comes in from outside is 0."""
    height, width = images.shape[-2:]
    rows, columns = round(MAX_SHIFT * height), round(MAX_SHIFT * width)
    padded = F.pad(images, (columns, columns, rows, rows))
    tops = torch.randint(0, 2 * rows + 1, (len(images),)).tolist()
    lefts = torch.randint(0, 2 * columns + 1, (len(images),)).tolist()
    return torch.stack([image[:, top : top + height, left : left + width]
                        for image, top, left in zip(padded, tops, lefts, strict=True)])  # fmt: skip


def _cut_out(images: Tensor) -> Tensor:
    """Set a rectangle of CUT_SIDE of the sides to 0, centred anywhere, also where it reaches beyond the border."""
    height, width = images.shape[-2:]
    row = torch.arange(height, device=images.device).view(1, 1, -1, 1)
    column = torch.arange(width, device=images.device).view(1, 1, 1, -1)
    near_row = (row - _uniform(images, 0, height)).abs() < CUT_SIDE * height / 2
    near_column = (column - _uniform(images, 0, width)).abs() < CUT_SIDE * width / 2
    return images * ~(near_row & near_column)
