"""Errors, similarities and distances that measure translations, each with the uncertainty of a small sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generator_model import edit_at_strength, edits_of
from utils import denormalize

# SSIM as Wang et al. 2004 define it (section III B and C).
SSIM_WINDOW = 11  # The window that SSIM compares has sides of this many px.
SSIM_SIGMA = 1.5  # The window's weights fall off as a Gaussian with this standard deviation, px.
SSIM_C1 = 0.01**2  # This keeps the quotient of the means stable where both are near 0.
SSIM_C2 = 0.03**2  # This keeps the quotient of the variances stable where both are near 0.
SSIM_BATCH = 16  # So many images are compared at a time.
BOOTSTRAP_ROUNDS = 1000  # An interval for a mean comes from this many resampled means.
KERNEL_BOOTSTRAP_ROUNDS = 200  # An interval for a kernel distance comes from fewer, because each costs more.
CONFIDENCE = (0.025, 0.975)  # A 95 % interval lies between these quantiles.


def mean_absolute_error(images: Tensor, truth: Tensor) -> float:
    """Mean |difference| of two batches (N, 3, H, W) in [-1, 1], on the scale of images in [0, 1]: 0 to 1."""
    return (denormalize(images) - denormalize(truth)).abs().mean().item() / 255


def translate_in_batches(generator: nn.Module, images: Tensor, *, batch_size: int = 8) -> Tensor:
    """Translate (N, 3, H, W) images in [-1, 1], `batch_size` at a time; the result is on the images' device."""
    return edit_in_batches(generator, images, batch_size=batch_size)[0]


@torch.no_grad()
def edit_in_batches(
    generator: nn.Module, images: Tensor, *, strength: float = 1.0, batch_size: int = 8
) -> tuple[Tensor, Tensor | None]:
    """`generator_model.edit_at_strength` of (N, 3, H, W) images, `batch_size` at a time, on the images' device."""
    device = next(generator.parameters()).device
    batches = torch.split(images, batch_size)
    return _joined((edit_at_strength(generator, batch.to(device), strength) for batch in batches), images.device)


@torch.no_grad()
def edits_in_batches(
    generator: nn.Module, images: Tensor, *, batch_size: int = 8
) -> Callable[[float], tuple[Tensor, Tensor | None]]:
    """`edit_in_batches` as a function of the strength alone: the generator runs once for all strengths.

    What it has predicted stays on its device, with an appearance flow 20 bytes a pixel of `images`.
    """
    device = next(generator.parameters()).device
    edits_of_batches = [edits_of(generator, batch.to(device)) for batch in torch.split(images, batch_size)]

    @torch.no_grad()
    def edit(strength: float) -> tuple[Tensor, Tensor | None]:
        return _joined((edit_batch(strength) for edit_batch in edits_of_batches), images.device)

    return edit


def _joined(edits: Iterable[tuple[Tensor, Tensor | None]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The edits of all batches as one, each moved to the device before the next one is made."""
    moved = [(fake.to(device), shift if shift is None else shift.to(device)) for fake, shift in edits]
    shifts = [shift for _, shift in moved if shift is not None]
    return torch.cat([fake for fake, _ in moved]), torch.cat(shifts) if shifts else None


def paired_report(
    generators: tuple[nn.Module, nn.Module], images: tuple[Tensor, Tensor], *, domains: tuple[str, str]
) -> str:
    """Compare the error of both generators with the error of returning the input unchanged, as four lines of text.

    Args:
        generators: from domain a to b, and from b to a.
        images: of both domains, (N, 3, H, W) in [-1, 1]; images with the same index are translations of each other.
        domains: the names of the domains in the text.
    """
    (gen_ab, gen_ba), (images_a, images_b), (name_a, name_b) = generators, images, domains
    error_unchanged = max(mean_absolute_error(images_a, images_b), 1e-12)  # avoids 0 / 0 where the pairs are equal
    error_ab = mean_absolute_error(translate_in_batches(gen_ab, images_a), images_b)
    error_ba = mean_absolute_error(translate_in_batches(gen_ba, images_b), images_a)
    return (
        f"mean absolute error on {len(images_a)} held-out pairs, for images in [0, 1]:\n"
        f"  doing nothing {error_unchanged:.4f}\n"
        f"  {name_a} to {name_b} {error_ab:.4f}, {error_ab / error_unchanged:.2f} times the error of doing nothing\n"
        f"  {name_b} to {name_a} {error_ba:.4f}, {error_ba / error_unchanged:.2f} times the error of doing nothing"
    )


@dataclass(frozen=True)
class Estimate:
    """A quantity measured on `count` images, with its 95 % confidence interval from `low` to `high` if it is known."""

    value: float
    low: float | None = None
    high: float | None = None
    count: int = 0

    def __str__(self) -> str:
        return f"{self.value:.3f}" + ("" if self.low is None else f" ({self.low:.3f} to {self.high:.3f})")


def bootstrap(values: np.ndarray) -> Estimate | None:
    """The mean of one value per image, with its percentile bootstrap interval (Efron 1979).

    Args:
        values: (N,) float; NaN for images that have no value.

    Returns:
        None where no image has a value.
    """
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return None
    draws = np.random.default_rng(0).integers(0, len(values), (BOOTSTRAP_ROUNDS, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), CONFIDENCE)
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def absolute_errors(images: Tensor, truth: Tensor) -> np.ndarray:
    """Mean |difference| of each image, (N,), on the scale of images in [0, 1]; both (N, 3, H, W) in [-1, 1]."""
    differences = (denormalize(images) - denormalize(truth)) / 255
    errors: np.ndarray = differences.abs().mean(dim=(1, 2, 3)).cpu().numpy()
    return errors


def ssim(images: Tensor, truth: Tensor) -> np.ndarray:
    """Structural similarity of each image to its ground truth, (N,); equal images score 1 (Wang et al. 2004, Eq. 13).

    Args:
        images, truth: (N, 3, H, W) in [-1, 1], with sides of at least SSIM_WINDOW px.
    """
    pairs = zip(torch.split(images, SSIM_BATCH), torch.split(truth, SSIM_BATCH), strict=True)
    return np.concatenate([_ssim(denormalize(x) / 255, denormalize(y) / 255) for x, y in pairs])


def _ssim(x: Tensor, y: Tensor) -> np.ndarray:
    """Structural similarity of images (N, 3, H, W) in [0, 1], (N,); it needs nine times the room that they take."""
    offsets = torch.arange(SSIM_WINDOW, dtype=x.dtype, device=x.device) - SSIM_WINDOW // 2
    bell = torch.exp(-offsets.square() / (2 * SSIM_SIGMA**2))
    window = torch.outer(bell, bell) / bell.sum() ** 2  # (SSIM_WINDOW, SSIM_WINDOW)

    def blur(image: Tensor) -> Tensor:
        return F.conv2d(image, window.expand(3, 1, -1, -1), groups=3)

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    numerator = (2 * mean_x * mean_y + SSIM_C1) * (2 * covariance + SSIM_C2)
    denominator = (mean_x**2 + mean_y**2 + SSIM_C1) * (var_x + var_y + SSIM_C2)
    per_image: np.ndarray = (numerator / denominator).mean(dim=(1, 2, 3)).cpu().numpy()
    return per_image


def sharpness(images: Tensor, inputs: Tensor) -> np.ndarray:
    """The sharpness of images divided by that of their inputs, (N,): the variances of the Laplacian of grey values.

    Args:
        images, inputs: (N, 3, H, W) in [-1, 1]. An input without any detail gives NaN.
    """
    own, original = (_laplacian(batch).var(dim=(1, 2, 3)).double().cpu().numpy() for batch in (images, inputs))
    ratios: np.ndarray = np.divide(own, original, out=np.full_like(own, np.nan), where=original > 0)
    return ratios


def _laplacian(images: Tensor) -> Tensor:
    """The Laplacian (N, 1, H - 2, W - 2) of the grey values of images (N, 3, H, W)."""
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]).to(images)
    return F.conv2d(images.mean(dim=1, keepdim=True), kernel[None, None])


def change_outside(images: Tensor, inputs: Tensor, inside: Tensor) -> np.ndarray:
    """The mean |change| outside a region divided by that inside, (N,); NaN where nothing changes inside.

    Args:
        images, inputs: (N, 3, H, W) in [-1, 1].
        inside: the region, (H, W) bool.
    """
    change = (images - inputs).abs().mean(dim=1).double()  # (N, H, W)
    within, beyond = (change[:, region].mean(dim=1).cpu().numpy() for region in (inside, ~inside))
    ratios: np.ndarray = np.divide(beyond, within, out=np.full_like(within, np.nan), where=within > 0)
    return ratios


def rank_one(embeddings: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """1 where the original nearest by cosine, among all of them, has the same index, else 0; (N,) float64.

    Args:
        embeddings, originals: (N, d) of unit length, of translations and of their inputs. A row of NaN means that no
            face was found. Such a translation counts as 0; such an original is left out, and its translation gets NaN.
    """
    similarities = embeddings @ originals.T  # (N, N)
    nearest: np.ndarray = np.where(np.isnan(similarities), -np.inf, similarities).argmax(axis=1)
    has_face = ~np.isnan(embeddings[:, 0])
    right: np.ndarray = (has_face & (nearest == np.arange(len(originals)))).astype(np.float64)
    right[np.isnan(originals[:, 0])] = np.nan
    return right


def kernel_distance(features: np.ndarray, reference: np.ndarray) -> Estimate | None:
    """How differently two sets of features are distributed: squared maximum mean discrepancy (Gretton et al. 2012).

    The kernel is (x . y / d + 1)^3; with Inception's features this is KID (Binkowski et al. 2018). The estimate is
    unbiased, so it may fall slightly below 0 for equal distributions. The interval comes from resampling `features`.

    Args:
        features: (N, d), floating point.
        reference: (M, d), floating point.

    Returns:
        None where either set has fewer than two rows.
    """
    n, m = len(features), len(reference)
    if min(n, m) < 2:
        return None
    d = features.shape[1]
    own = (features @ features.T / d + 1) ** 3  # (N, N)
    cross = (features @ reference.T / d + 1) ** 3  # (N, M)
    others = (reference @ reference.T / d + 1) ** 3  # (M, M)
    mean_others = (others.sum() - np.trace(others)) / (m * (m - 1))

    def distance(counts: np.ndarray) -> float:
        """The distance when feature i is drawn counts[i] times; no feature is compared with its own copies."""
        own_sum = counts @ own @ counts - counts**2 @ np.diag(own)
        num_pairs = n * n - (counts**2).sum()
        mean_cross = (counts @ cross.sum(axis=1)) / (n * m)
        return float(own_sum / num_pairs + mean_others - 2 * mean_cross)

    random = np.random.default_rng(0)
    draws = random.multinomial(n, [1 / n] * n, KERNEL_BOOTSTRAP_ROUNDS).astype(np.float64)
    distances = [distance(counts) for counts in draws if counts.max() < n]  # n copies of one feature leave no pairs
    low, high = np.quantile(distances, CONFIDENCE)
    return Estimate(distance(np.ones(n)), float(low), float(high), n)
