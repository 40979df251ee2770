"""The discriminator, which scores how much the patches of an image, and the image as a whole, look like its domain."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from generator_model import InstanceNorm, NormedConv2d

Norm = Literal["instance", "none"]
LEAK = 0.2  # LeakyReLU's slope below zero (paper section 7.2).
SHARED_LAYERS = 8  # The global head branches off behind C256, after so many layers of `patches`.
GLOBAL_SIDE = 4  # The global head halves the sides of its features down to this, px.
EPSILON = 1e-5  # Added to a variance before its square root, whose slope at zero is infinite.


class Discriminator(nn.Module):
    """The 70x70 PatchGAN of the CycleGAN paper (Zhu et al. 2017, section 7.2), with an optional global head.

    C64-C128-C256-C512-C1

    C-k is a 4x4 convolution, instance norm and LeakyReLU(0.2), of stride 2 except for the last two. The first has no
    norm; the last has neither norm nor activation.

    Two options depart from the paper. Without instance norm the discriminator also sees how strong a pattern is. The
    global head sees the whole face, not only a patch of 70 px: behind C256 it has 4x4 convolutions of stride 2 down to
    4 px, then mean, maximum and standard deviation over space, and two linear layers to one score.

    Args:
        base_channels: channels of the first layer (64 in the paper).
        init_std: standard deviation of the initial weights, with zero biases; 0 keeps PyTorch's initialisation.
        norm: "instance", or "none", which initialises the weights as He et al. (2015) do: others let the signal vanish.
        global_side: side in px of the images that the global head is built for; 0: no such head.
        spectral: divide each layer's weights by their largest singular value (Miyato et al. 2018, arXiv 1802.05957).
    """

    def __init__(
        self,
        base_channels: int = 64,
        *,
        init_std: float = 0.02,
        norm: Norm = "instance",
        global_side: int = 0,
        spectral: bool = False,
    ) -> None:
        super().__init__()
        c, inner = base_channels, inner_conv(norm)
        self.patches = nn.Sequential(
            nn.Conv2d(3, c, 4, stride=2, padding=1), nn.LeakyReLU(LEAK, True),
            inner(c, 2 * c, 4, stride=2, padding=1), norm_layer(norm), nn.LeakyReLU(LEAK, True),
            inner(2 * c, 4 * c, 4, stride=2, padding=1), norm_layer(norm), nn.LeakyReLU(LEAK, True),
            inner(4 * c, 8 * c, 4, stride=1, padding=1), norm_layer(norm), nn.LeakyReLU(LEAK, True),
            nn.Conv2d(8 * c, 1, 4, stride=1, padding=1),
        )  # fmt: skip
        self.whole = GlobalHead(4 * c, side=global_side // 8, norm=norm) if global_side else None
        for layer in [layer for layer in self.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]:
            initialise(layer, init_std, norm)
            if spectral:
                spectral_norm(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Score the patches of images, and the images as a whole.

        Args:
            x: (N, 3, H, W) float32 or float64 in [-1, 1]; at least 24 px a side.

        Returns:
            (N, 1, H/8 - 2, W/8 - 2), rounded down, of x's dtype also under autocast: high where a patch of 70x70 px
            looks real (1 with least squares), low where it looks translated (0 with least squares). With a global head
            (N, 2, H/8 - 2, W/8 - 2): the global score stands beside each patch's, so that a mean over all of them is
            the mean of both heads.
        """
        shared = self.patches[:SHARED_LAYERS](x)  # (N, 4c, H/8, W/8), c = base_channels
        scores: Tensor = self.patches[SHARED_LAYERS:](shared)  # (N, 1, H/8 - 2, W/8 - 2)
        if self.whole is not None:
            scores = torch.cat([scores, self.whole(shared).expand_as(scores)], dim=1)  # (N, 2, H/8 - 2, W/8 - 2)
        return scores.to(x.dtype)


class GlobalHead(nn.Module):
    """One score for each image, from features (N, channels, side, side)."""

    def __init__(self, channels: int, *, side: int, norm: Norm) -> None:
        super().__init__()
        k, width = channels, 2 * channels
        layers: list[nn.Module] = []
        for _ in range(max(0, round(math.log2(side / GLOBAL_SIDE)))):
            layers.append(inner_conv(norm)(k, width, 4, stride=2, padding=1))
            layers += [InstanceNorm()] if norm == "instance" else []
            layers.append(nn.LeakyReLU(LEAK, True))
            k = width
        self.strided = nn.Sequential(*layers)
        self.linear = nn.Sequential(nn.Linear(3 * k, width), nn.LeakyReLU(LEAK, True), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, side, side) to (N, 1, 1, 1)."""
        y = self.strided(x)  # (N, k, 4, 4)
        std = (y.var(dim=(2, 3), correction=0) + EPSILON).sqrt()  # (N, k)
        pooled = torch.cat([y.mean(dim=(2, 3)), y.amax(dim=(2, 3)), std], dim=1)  # (N, 3k)
        score: Tensor = self.linear(pooled)[:, :, None, None]  # (N, 1, 1, 1)
        return score


def inner_conv(norm: Norm) -> type[nn.Conv2d]:
    """The class of a convolution in front of `norm_layer`."""
    return NormedConv2d if norm == "instance" else nn.Conv2d


def norm_layer(norm: Norm) -> nn.Module:
    """The layer behind an inner convolution."""
    return InstanceNorm() if norm == "instance" else nn.Identity()


def initialise(layer: nn.Conv2d | nn.Linear, init_std: float, norm: Norm) -> None:
    """Draw a layer's initial weights, see `Discriminator`."""
    if norm == "none":
        nn.init.kaiming_normal_(layer.weight, a=LEAK)
    elif init_std:
        nn.init.normal_(layer.weight, 0.0, init_std)
    if norm == "none" or init_std:
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
