"""A classifier of domains: how many translations does it assign to the target?"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from training.diff_augment import blur, cut_out, draw_blur
from utils import UserError

NUM_NETWORKS = 3  # The logits of this many networks are averaged, because each errs where its seed led it.
SIDE = 64  # Inputs are resized to this side, px.
CHANNELS = 24  # A network's first layer has this many channels.
NUM_STEPS = 1600  # Each network is trained for this many steps,
MAX_EPOCHS = 100  # but for no more passes over the larger domain than this,
BATCH_SIZE = 32  # on batches of this many images, half of them from each domain,
LEARNING_RATE = 2e-3  # with AdamW at this learning rate, which falls linearly to zero in the second half,
WEIGHT_DECAY = 0.01  # and this weight decay.
MAX_ROTATION = math.radians(10)  # Training images are rotated by up to this, radians,
MAX_ZOOM = 0.12  # their size changes by up to this fraction,
MAX_SHIFT = 0.06  # they move by up to this fraction of their sides,
MAX_CONTRAST = 0.3  # their contrast changes by up to this fraction,
MAX_BRIGHTNESS = 0.2  # their brightness by up to this, for images in [-1, 1],
MAX_TINT = 0.1  # each colour by up to this besides,
MAX_BLUR = 1.0  # half of the batches are blurred, with a sigma of up to this, px,
CUT_SIDE = 0.3  # and a square with this fraction of the sides is cut out of each image.
HELD_OUT = 5  # Every fifth training image is held out to measure the accuracy.


class DomainClassifier(nn.Module):
    """Small convolutional networks that predict an image's domain, and whose logits are averaged."""

    def __init__(self, num_networks: int = NUM_NETWORKS) -> None:
        super().__init__()
        self.networks = nn.ModuleList(DomainNetwork() for _ in range(num_networks))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N,) of images (N, 3, H, W) in [-1, 1], each with its mirror image; a positive one predicts b."""
        small = resize(images)  # (N, 3, SIDE, SIDE)
        logits = [network(view) for network in self.networks for view in (small, small.flip(3))]
        return torch.stack(logits).mean(dim=0)  # (N,)

    @torch.no_grad()
    def embed(self, images: Tensor) -> np.ndarray:
        """The first network's features (N, d), float64, of images (N, 3, H, W) in [-1, 1], computed in batches."""
        first = self.networks[0]
        assert isinstance(first, DomainNetwork)
        features = torch.cat([first.pooled(resize(batch)) for batch in torch.split(images, BATCH_SIZE)])
        return features.double().cpu().numpy()


class DomainNetwork(nn.Module):
    """One network of the classifier; it takes images (N, 3, SIDE, SIDE) in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, CHANNELS, 2 * CHANNELS, 4 * CHANNELS, 4 * CHANNELS]
        layers: list[nn.Module] = []
        for in_channels, out_channels in pairwise(widths):
            layers.append(nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1))
            layers.append(nn.GroupNorm(8, out_channels))
            layers.append(nn.ReLU(True))
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear(widths[-1], 1)

    def pooled(self, small: Tensor) -> Tensor:
        """The features (N, d), averaged over all positions."""
        features: Tensor = self.layers(small).mean(dim=(2, 3))  # (N, d)
        return features

    def forward(self, small: Tensor) -> Tensor:
        """The logits (N,)."""
        logits: Tensor = self.last(self.pooled(small))[:, 0]  # (N,)
        return logits


def resize(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) with sides of SIDE px."""
    return F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)


def train_domain_classifier(
    images_a: Tensor, images_b: Tensor, *, seed: int = 0, num_networks: int = NUM_NETWORKS
) -> tuple[DomainClassifier, float]:
    """Train a classifier that separates domains a and b on real images, and measure it on held-out ones.

    The same images and seed give the same classifier, and torch's global random state does not change.

    Args:
        images_a, images_b: training images (N, 3, H, W) in [-1, 1] of domains a and b, at least two of each.
        seed: seeds the weights, the batches and the augmentation.
        num_networks: how many networks to average.

    Returns:
        The classifier, frozen and in evaluation mode, and its accuracy on held-out images: the mean of both domains'.

    Raises:
        UserError: a domain has fewer than two images.
    """
    if min(len(images_a), len(images_b)) < 2:
        raise UserError(
            f"the domain classifier needs at least two training images of each domain, found {len(images_a)} and "
            f"{len(images_b)}; add images, or train without --evaluate-every-epochs"
        )
    train_a, train_b = (images[torch.arange(len(images)) % HELD_OUT != 0] for images in (images_a, images_b))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too, which are not restored
        classifier = DomainClassifier(num_networks).to(images_a.device)
        for network in tqdm(classifier.networks, "domain classifier", unit=" networks", leave=False, disable=None):
            _train_network(network, resize(train_a), resize(train_b))
    classifier.eval().requires_grad_(False)
    accuracy_a = 1 - predicts_b(classifier, images_a[::HELD_OUT]).mean()
    accuracy_b = predicts_b(classifier, images_b[::HELD_OUT]).mean()
    return classifier, float((accuracy_a + accuracy_b) / 2)


def _train_network(network: nn.Module, small_a: Tensor, small_b: Tensor) -> None:
    """Train a network on random images of both domains, equally many in each batch."""
    half = BATCH_SIZE // 2
    labels = torch.cat([torch.zeros(half), torch.ones(half)]).to(small_a.device)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps_per_epoch = math.ceil(max(len(small_a), len(small_b)) / half)
    num_steps = min(NUM_STEPS, MAX_EPOCHS * steps_per_epoch)
    for step in range(num_steps):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, 2 * (1 - step / num_steps))
        batch = torch.cat([images[torch.randint(len(images), (half,))] for images in (small_a, small_b)])
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(network(_augment(batch)), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _augment(images: Tensor) -> Tensor:
    """Change images (N, 3, H, W) at random, so that the networks do not learn trivial differences of the folders.

    The blur is drawn once for the batch, everything else for each image.
    """
    images = blur(_recolour(_transform(images)), draw_blur(MAX_BLUR))
    row, column = torch.rand(2, len(images), 1, 1, 1).to(images.device)
    return cut_out(images, row, column, CUT_SIDE)


def _transform(images: Tensor) -> Tensor:
    """Flip, rotate, zoom and shift each image; what comes in from beyond the border is its reflection."""
    count = len(images)
    angle, zoom, right, down = (2 * torch.rand(4, count) - 1).to(images.device)
    mirror = 1 - 2 * torch.randint(0, 2, (count,)).to(images.device)
    scale = 1 + MAX_ZOOM * zoom
    cos, sin = scale * torch.cos(MAX_ROTATION * angle), scale * torch.sin(MAX_ROTATION * angle)
    shift = 2 * MAX_SHIFT  # an image is 2 wide in the coordinates of grid_sample
    matrix = torch.stack([mirror * cos, -sin, shift * right, mirror * sin, cos, shift * down], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)  # (N, H, W, 2)
    transformed: Tensor = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    return transformed


def _recolour(images: Tensor) -> Tensor:
    """Change the contrast, the brightness and the tint of each image."""
    contrast, brightness = (2 * torch.rand(2, len(images), 1, 1, 1) - 1).to(images.device)
    tint = (2 * torch.rand(len(images), 3, 1, 1) - 1).to(images.device)
    recoloured: Tensor = images * (1 + MAX_CONTRAST * contrast) + MAX_BRIGHTNESS * brightness + MAX_TINT * tint
    return recoloured


@torch.no_grad()
def predicts_b(classifier: DomainClassifier, images: Tensor) -> np.ndarray:
    """1 for each image (N, 3, H, W) in [-1, 1] that the classifier assigns to domain b, else 0; (N,) float64."""
    logits = torch.cat([classifier(batch) for batch in torch.split(images, BATCH_SIZE)])
    return (logits > 0).double().cpu().numpy()
