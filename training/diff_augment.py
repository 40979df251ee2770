"""Differentiable augmentation of a discriminator's inputs: DiffAugment (Zhao et al. 2020, arXiv 2006.10738), and blur.

A discriminator memorises a small training set. It cannot do so if every image that it receives, real or translated, is
changed at random. The changes are differentiable, so the generators still learn from the discriminator's scores, and
they apply to real images too, so the generators do not learn to imitate them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from training.draws import drawn

Policy = Literal["none", "geometry", "all"]
Augment = Callable[[Tensor], Tensor]  # images (N, C, H, W) to what discriminators see of them
BLUR_PROB = 0.5  # Discriminators see blurred images in this fraction of the steps.
BLUR_REACH = 3  # A Gaussian is cut off at this many standard deviations.
NO_BLUR = 1e-3  # A Gaussian with this standard deviation, px, changes nothing.
MAX_SHIFT = 1 / 8  # Images move by up to this fraction of their sides (the paper's value).
CUT_SIDE = 1 / 2  # The rectangle that is cut out has this fraction of the image's sides (the paper's value).


def draw_augmentation(policy: Policy, max_blur: float) -> Augment:
    """The augmentation of one step: one blur for all images, then changes that differ from image to image.

    Args:
        policy: as for `diff_augment`.
        max_blur: as for `draw_blur`.
    """
    kernel = drawn(lambda: draw_blur(max_blur)) if max_blur else None
    return lambda images: diff_augment(blur(images, kernel), policy)


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
    if policy == "none":
        return images
    images = _shift(images)
    return cut_out(images, _uniform(images, 0, 1), _uniform(images, 0, 1), CUT_SIDE)


def draw_blur(max_sigma: float) -> Tensor:
    """A Gaussian kernel (2 reach + 1,) whose sigma, px, is 0 or uniform in 0 to `max_sigma`, which is above 0.

    One folder's images are often softer than the other's. A discriminator that always sees them as they are learns
    "soft", and the generators blur or sharpen; one draw a step for all that it sees hides the difference.
    """
    chance, size = torch.rand(2).tolist()
    sigma = max(max_sigma * size, NO_BLUR) if chance < BLUR_PROB else NO_BLUR
    reach = math.ceil(BLUR_REACH * max_sigma)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / sigma) ** 2)
    return weights / weights.sum()


def blur(images: Tensor, kernel: Tensor | None) -> Tensor:
    """Convolve images (N, C, H, W) with a kernel (2 reach + 1,) along both axes, reflected at the borders."""
    if kernel is None:
        return images
    channels, reach = images.shape[1], len(kernel) // 2
    row = kernel.to(images).expand(channels, 1, 1, -1)  # (C, 1, 1, 2 reach + 1)
    padded = F.pad(images, [reach] * 4, mode="reflect")  # (N, C, H + 2 reach, W + 2 reach)
    with torch.autocast(images.device.type, enabled=False):  # images keep their grey levels
        blurred = F.conv2d(padded, row, groups=channels)  # (N, C, H + 2 reach, W)
        return F.conv2d(blurred, row.transpose(2, 3), groups=channels)  # (N, C, H, W)


def _uniform(images: Tensor, low: float, high: float) -> Tensor:
    """One uniform random number per image, (N, 1, 1, 1), between `low` and `high`."""
    num_images, device = len(images), images.device
    return drawn(lambda: torch.rand(num_images, 1, 1, 1, device=device)) * (high - low) + low


def _recolour(images: Tensor) -> Tensor:
    """Change brightness, saturation and contrast by random amounts in the paper's ranges."""
    images = images + _uniform(images, -0.5, 0.5)  # brightness
    grey = images.mean(dim=1, keepdim=True)  # (N, 1, H, W)
    images = (images - grey) * _uniform(images, 0, 2) + grey  # saturation
    mean = images.mean(dim=(1, 2, 3), keepdim=True)  # (N, 1, 1, 1)
    return (images - mean) * _uniform(images, 0.5, 1.5) + mean  # contrast


def _shift(images: Tensor) -> Tensor:
    """Move each image by up to MAX_SHIFT of its sides, and fill the border that this opens with 0."""
    return _shift_along(_shift_along(images, 2), 3).contiguous()


def _shift_along(images: Tensor, dim: int) -> Tensor:
    """Move each image along one axis: dimension 2, its rows, or 3, its columns."""
    num_images, side = len(images), images.shape[dim]
    reach = round(MAX_SHIFT * side)
    starts = drawn(lambda: torch.randint(0, 2 * reach + 1, (num_images,))).to(images.device)
    positions = starts[:, None] + torch.arange(side, device=images.device)  # (N, side), in the padded images
    padded = F.pad(images, (0, 0, reach, reach) if dim == 2 else (reach, reach))
    index = positions[:, None, :, None] if dim == 2 else positions[:, None, None, :]
    return padded.gather(dim, index.expand(images.shape))  # (N, C, H, W)


def cut_out(images: Tensor, row: Tensor, column: Tensor, side: float) -> Tensor:
    """Set a rectangle of each image to 0; it may reach beyond the border.

    Args:
        images: (N, C, H, W).
        row, column: the rectangles' centres as fractions of the sides, (N, 1, 1, 1).
        side: their sides as a fraction of the image's.
    """
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device).view(1, 1, -1, 1)
    columns = torch.arange(width, device=images.device).view(1, 1, 1, -1)
    near_row = (rows - row * height).abs() < side * height / 2
    near_column = (columns - column * width).abs() < side * width / 2
    return images * ~(near_row & near_column)
