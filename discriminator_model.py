"""The discriminator, which scores how much the patches of an image look like its domain."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from generator_model import InstanceNorm


class Discriminator(nn.Module):
    """The 70x70 PatchGAN of the CycleGAN paper (Zhu et al. 2017, section 7.2).

    C64-C128-C256-C512-C1

    C-k is a 4x4 convolution, instance norm and LeakyReLU(0.2), of stride 2 except for the last two. The first has no
    norm; the last has neither norm nor activation, because least squares needs linear scores.

    Args:
        base_channels: channels of the first layer (64 in the paper).
        init_std: standard deviation of the initial weights, with zero biases; 0 keeps PyTorch's initialisation.
        spectral: divide each layer's weights by their largest singular value (Miyato et al. 2018, arXiv 1802.05957).
    """

    def __init__(self, base_channels: int = 64, *, init_std: float = 0.02, spectral: bool = False) -> None:
        super().__init__()
        c = base_channels
        self.patches = nn.Sequential(
            nn.Conv2d(3, c, 4, stride=2, padding=1), nn.LeakyReLU(0.2, True),
            nn.Conv2d(c, 2 * c, 4, stride=2, padding=1), InstanceNorm(), nn.LeakyReLU(0.2, True),
            nn.Conv2d(2 * c, 4 * c, 4, stride=2, padding=1), InstanceNorm(), nn.LeakyReLU(0.2, True),
            nn.Conv2d(4 * c, 8 * c, 4, stride=1, padding=1), InstanceNorm(), nn.LeakyReLU(0.2, True),
            nn.Conv2d(8 * c, 1, 4, stride=1, padding=1),
        )  # fmt: skip
        for layer in self.patches:
            if init_std and isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, init_std)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
            if spectral and isinstance(layer, nn.Conv2d):
                spectral_norm(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Score the patches of images.

        Args:
            x: (N, 3, H, W) float32 or float64 in [-1, 1]; at least 24 px a side.

        Returns:
            (N, 1, H/8 - 2, W/8 - 2), rounded down, of x's dtype also under autocast: near 1 where a patch of 70x70 px
            looks real, near 0 where it looks translated.
        """
        scores: Tensor = self.patches(x)  # (N, 1, H/8 - 2, W/8 - 2)
        return scores.to(x.dtype)
