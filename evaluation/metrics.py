"""What a translation is worth: errors, similarities and distances, with the doubt that few images leave."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils import denormalize

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # px (Wang et al. 2004)
BOOTSTRAP_ROUNDS = 1000


def mean_absolute_error(images: Tensor, truth: Tensor) -> float:
    """Mean |difference| of two batches (N, 3, H, W) in [-1, 1], on the scale of images in [0, 1]: 0 to 1."""
    return (denormalize(images) - denormalize(truth)).abs().mean().item() / 255


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


@dataclass(frozen=True)
class Estimate:
    """A mean over `count` images, and the interval that holds the true one with 95 % confidence."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def bootstrap(values: np.ndarray) -> Estimate | None:
    """The mean of one number an image, with its percentile bootstrap interval (Efron 1979); None for no images.

    Args:
        values: (N,) float; NaN where an image has no number.
    """
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return None
    draws = np.random.default_rng(0).integers(0, len(values), (BOOTSTRAP_ROUNDS, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), (0.025, 0.975))
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def absolute_errors(images: Tensor, truth: Tensor) -> np.ndarray:
    """Mean |difference| of each image, (N,), on the scale of images in [0, 1]; both (N, 3, H, W) in [-1, 1]."""
    differences = (denormalize(images) - denormalize(truth)) / 255
    errors: np.ndarray = differences.abs().mean(dim=(1, 2, 3)).cpu().numpy()
    return errors


def ssim(images: Tensor, truth: Tensor) -> np.ndarray:
    """Structural similarity of each image to its truth, (N,), 1 for equal ones (Wang et al. 2004, Eq. 13).

    Args:
        images, truth: (N, 3, H, W) in [-1, 1], at least SSIM_WINDOW px a side.
    """
    x, y = denormalize(images) / 255, denormalize(truth) / 255
    offsets = torch.arange(SSIM_WINDOW, dtype=x.dtype, device=x.device) - SSIM_WINDOW // 2
    bell = torch.exp(-offsets.square() / (2 * SSIM_SIGMA**2))
    window = torch.outer(bell, bell) / bell.sum() ** 2

    def blur(image: Tensor) -> Tensor:
        return F.conv2d(image, window.expand(3, 1, -1, -1), groups=3)

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    per_image: np.ndarray = similarity.mean(dim=(1, 2, 3)).cpu().numpy()
    return per_image


def kernel_distance(features: np.ndarray, reference: np.ndarray) -> Estimate | None:
    """How differently two sets of features are distributed: squared maximum mean discrepancy (Gretton et al. 2012).

    With the kernel (x . y / d + 1)^3 and features of Inception this is KID (Binkowski et al. 2018). It has no bias, so
    that it may be a little below 0 for equal distributions. The interval is of the bootstrap over `features`.

    Args:
        features: (N, d) and
        reference: (M, d), floating point.

    Returns:
        None for fewer than two of either.
    """
    n, m = len(features), len(reference)
    if min(n, m) < 2:
        return None
    d = features.shape[1]
    own = (features @ features.T / d + 1) ** 3
    cross = (features @ reference.T / d + 1) ** 3
    others = (reference @ reference.T / d + 1) ** 3
    constant = (others.sum() - np.trace(others)) / (m * (m - 1))

    def distance(weights: np.ndarray) -> float:
        """Of the features drawn `weights` times each; a feature is not compared with its own copies."""
        pairs = weights @ own @ weights - weights**2 @ np.diag(own)
        num_pairs = n * n - (weights**2).sum()
        return float(pairs / num_pairs + constant - 2 * (weights @ cross.sum(axis=1)) / (n * m))

    random = np.random.default_rng(0)
    weights = random.multinomial(n, [1 / n] * n, BOOTSTRAP_ROUNDS // 5).astype(np.float64)
    draws = [distance(drawn) for drawn in weights if drawn.max() < n]  # of n equal features nothing can be said
    low, high = np.quantile(draws, (0.025, 0.975))
    return Estimate(distance(np.ones(n)), float(low), float(high), n)
