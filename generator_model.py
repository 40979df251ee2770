"""The generator, which translates an image into the other domain, and the instance norm that all networks share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Padding = Literal["reflect", "zero", "reflect-all"]
Upsampling = Literal["transposed", "resize"]
SKIP_LIMIT = 0.999  # |x| is clamped to this before atanh, which costs an eighth of one 8-bit grey level at most.
NORM_EPSILON = 1e-5  # Instance norm adds this to the variance, as torch's own does.
MAX_SHIFT = 0.1  # An appearance flow takes a pixel from at most this far away, in sides of the image.
MAX_STRENGTH = 3.0  # Translations that are exaggerated further than this only gain artefacts.


class Generator(nn.Module):
    """Johnson et al.'s network as the CycleGAN paper uses it (Zhu et al. 2017, section 7.2).

    c7s1-64, d128, d256, R256 x num_residuals, u128, u64, c7s1-3, tanh

    c7s1-k is a 7x7 convolution, d-k a 3x3 convolution of stride 2, R-k a residual block, u-k a 3x3 transposed
    convolution of stride 2. Every layer but the last is followed by instance norm, without affine parameters or
    running statistics, and ReLU; a residual block has no ReLU after its sum.

    With `global_skip` the network f predicts the change to its input: tanh(atanh(x) + f(x)), with x clamped just
    inside (-1, 1) and f's last layer starting at zero, so that an untrained generator returns its input. This departs
    from the paper, because a recognisable translation is learned much sooner from few images and steps.

    With `appearance_flow` besides, a convolution behind the residual blocks predicts from how far away each pixel
    comes, and the output is tanh(atanh(moved(x, shift)) + f(x)), with shifts that start at zero (Zhou et al. 2016,
    arXiv 1605.03557). This departs from the paper, too: what changes its place or outline, as a brow or a chin, is
    moved instead of being erased in one place and drawn in another.

    With upsampling "resize" u-k is nearest-neighbour resizing by 2 and a 3x3 convolution of stride 1. This departs from
    the paper, whose transposed convolutions reach some pixels through four of their weights and others through one,
    which shows as stripes and checkerboards (Odena et al. 2016, https://distill.pub/2016/deconv-checkerboard).

    Args:
        num_residuals: residual blocks; the paper uses 9 for 256 px and 6 for 128 px.
        base_channels: channels of the first layer (64 in the paper).
        padding: "reflect" as in the paper's reference implementation, where only the strided convolutions are padded
            with zeros; "reflect-all", reflection in these too; or "zero" everywhere.
        global_skip: predict the change to the input.
        appearance_flow: with `global_skip`, predict how the pixels of the input move as well.
        upsampling: "transposed" convolutions as in the paper, or "resize".
        norm_first: whether instance norm follows the first layer.
        init_std: standard deviation of the initial weights, with zero biases; 0 keeps PyTorch's initialisation.
        recompute: keep only the residual blocks' inputs for the backward pass and recompute the rest in it (Chen et al.
            2016, arXiv 1604.06174). This changes memory and time, not the result.
    """

    def __init__(
        self,
        num_residuals: int = 9,
        base_channels: int = 64,
        *,
        padding: Padding = "reflect",
        global_skip: bool = False,
        appearance_flow: bool = False,
        upsampling: Upsampling = "transposed",
        norm_first: bool = True,
        init_std: float = 0.02,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        c, self.global_skip, self.recompute = base_channels, global_skip, recompute
        strided: Literal["reflect", "zeros"] = "reflect" if padding == "reflect-all" else "zeros"
        self.stem = nn.Sequential(
            *padded_conv(3, c, 7, padding, normed=norm_first), *([InstanceNorm()] if norm_first else []), nn.ReLU(True)
        )
        self.down = nn.Sequential(
            NormedConv2d(c, 2 * c, 3, stride=2, padding=1, padding_mode=strided),
            InstanceNorm(), nn.ReLU(True),
            NormedConv2d(2 * c, 4 * c, 3, stride=2, padding=1, padding_mode=strided),
            InstanceNorm(), nn.ReLU(True),
        )  # fmt: skip
        self.residuals = nn.Sequential(*(ResidualBlock(4 * c, padding) for _ in range(num_residuals)))
        self.flow = nn.Conv2d(4 * c, 2, 3, padding=1) if global_skip and appearance_flow else None
        self.up = nn.Sequential(
            upsampling_conv(4 * c, 2 * c, upsampling),
            InstanceNorm(), nn.ReLU(True),
            upsampling_conv(2 * c, c, upsampling),
            InstanceNorm(), nn.ReLU(True),
        )  # fmt: skip
        self.last = nn.Sequential(*padded_conv(c, 3, 7, padding, normed=False))

        for layer in self.modules():
            if init_std and isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.normal_(layer.weight, 0.0, init_std)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        if global_skip:
            for parameter in chain(self.last.parameters(), self.flow.parameters() if self.flow else ()):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Translate images (N, 3, H, W) in [-1, 1] to the same, see `edit`."""
        return self.edit(x)[0]

    def edit(self, x: Tensor, strength: float | Tensor = 1.0) -> tuple[Tensor, Tensor | None]:
        """Translate images, and tell how their pixels have moved: `predict`, then `apply_to`."""
        return self.apply_to(x, *self.predict(x), strength)

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the layers say of images: how their colours change, and how their pixels move.

        Args:
            x: (N, 3, H, W) float32 or float64 in [-1, 1]; H and W multiples of 4.

        Returns:
            f(x), (N, 3, H, W). And with an appearance flow the shifts (N, 2, H, W) that `moved` takes, else None. Both
            are of x's dtype, also under autocast.

        Raises:
            ValueError: H or W is not a multiple of 4, so that the output would have another size.
        """
        if x.shape[-2] % 4 or x.shape[-1] % 4:
            raise ValueError(f"the generator needs sides that are multiples of 4, got {x.shape[-1]}x{x.shape[-2]} px")
        y = self.stem(x)  # (N, c, H, W), c = base_channels
        y = self.down(y)  # (N, 4c, H/4, W/4)
        for block in self.residuals:
            y = recomputed(block, y) if self.recompute else block(y)  # (N, 4c, H/4, W/4)
        shift = None
        if self.flow:
            coarse = MAX_SHIFT * torch.tanh(self.flow(y).to(x.dtype))  # (N, 2, H/4, W/4)
            shift = F.interpolate(coarse, x.shape[2:], mode="bilinear")  # (N, 2, H, W)
        y = self.up(y)  # (N, c, H, W)
        return self.last(y).to(x.dtype), shift  # (N, 3, H, W)

    def apply_to(
        self, x: Tensor, change: Tensor, shift: Tensor | None, strength: float | Tensor = 1.0
    ) -> tuple[Tensor, Tensor | None]:
        """Move and recolour images as `predict` says.

        Args:
            x: (N, 3, H, W) in [-1, 1].
            change, shift: what `predict` returns for x.
            strength: a scalar by which both are multiplied. It means what `edit_at_strength` says only with
                `global_skip`.

        Returns:
            The translations (N, 3, H, W) in [-1, 1], and the shifts at this strength; None where nothing moves.
        """
        y = strength * change  # (N, 3, H, W)
        if shift is not None:
            shift = strength * shift
            x = moved(x, shift)
        if self.global_skip:
            y = y + torch.atanh(x.clamp(-SKIP_LIMIT, SKIP_LIMIT))
        return torch.tanh(y), shift


def moved(x: Tensor, shift: Tensor) -> Tensor:
    """Each pixel is what x shows at a distance of `shift` from it.

    Interpolation is bicubic, because bilinear interpolation softens; on Apple's GPUs, which lack it, bilinear.

    Args:
        x: (N, C, H, W) in [-1, 1]; beyond its border it goes on with the border's pixels.
        shift: (N, 2, H, W), to the right and down, in sides of x.

    Returns:
        (N, C, H, W) in [-1, 1].
    """
    right, down = ((torch.arange(side, dtype=x.dtype, device=x.device) + 0.5) / side for side in x.shape[:1:-1])
    places = torch.stack(torch.meshgrid(right, down, indexing="xy")) + shift  # (N, 2, H, W), in sides from the corner
    grid = 2 * places.permute(0, 2, 3, 1).nan_to_num() - 1  # At NaN grid_sample's gradient would crash the program.
    mode = "bilinear" if x.device.type == "mps" else "bicubic"
    return F.grid_sample(x, grid, mode, padding_mode="border", align_corners=False).clamp(-1, 1)


def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """block(x), whose activations are computed again in the backward pass; it draws no random numbers to repeat."""
    y: Tensor = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
    return y


class ResidualBlock(nn.Module):
    """R-k: two 3x3 convolutions with instance norm, ReLU between them, and the input added to the result."""

    def __init__(self, channels: int, padding: Padding) -> None:
        super().__init__()
        self.block = nn.Sequential(
            *padded_conv(channels, channels, 3, padding, normed=True), InstanceNorm(), nn.ReLU(True),
            *padded_conv(channels, channels, 3, padding, normed=True), InstanceNorm(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.block(x)  # (N, k, H, W)
        return y


class NormedConv2d(nn.Conv2d):
    """A convolution with instance norm behind it, which subtracts whatever its bias adds: the bias is not computed.

    It stays among the weights, so that files of weights have the entries that the paper's code gives them.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight, None)  # type: ignore[no-any-return]


class NormedConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution with instance norm behind it, see `NormedConv2d`."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return F.conv_transpose2d(x, self.weight, None, self.stride, self.padding, self.output_padding)  # type: ignore[arg-type]


class ResizeConv(nn.Conv2d):
    """Nearest-neighbour resizing by 2, then the 3x3 convolution, in 4/9 of the work: as one transposed convolution.

    Resizing by repetition is a transposed convolution of stride 2 with a 2x2 kernel of ones, so both in a row are one
    whose 4x4 kernel is the convolution of the two kernels. Instance norm follows, see `NormedConv2d`.
    """

    def forward(self, x: Tensor) -> Tensor:
        kernel = 4 * F.avg_pool2d(F.pad(self.weight.flip(2, 3), [1] * 4), 2, stride=1)  # (out, in, 4, 4)
        return F.conv_transpose2d(x, kernel.transpose(0, 1), stride=2, padding=1)  # (N, out, 2H, 2W)


def upsampling_conv(in_channels: int, out_channels: int, upsampling: Upsampling) -> nn.Module:
    """A 3x3 convolution that doubles the sides, as one layer, so that its weights have the same names either way."""
    if upsampling == "resize":
        return ResizeConv(in_channels, out_channels, 3, padding=1)
    return NormedConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1)


class InstanceNorm(nn.Module):
    """Normalises each channel of each image to mean 0 and variance 1 (Ulyanov et al. 2016), without learned parameters.

    Maps (N, C, H, W) to the same shape and dtype; sums are at least float32. It is computed as group norm with one
    channel a group, the same function: torch's own instance norm is slower on a CPU, and its gradient is wrong there
    for a batch of one image whose incoming gradient is `channels_last`. The native operator is called, because autocast
    would copy the input of `F.group_norm` to float32 on a GPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        y, _, _ = torch.native_group_norm(x, None, None, n, c, h * w, c, NORM_EPSILON)  # (N, C, H, W)
        return y


def padded_conv(in_channels: int, out_channels: int, kernel: int, padding: Padding, *, normed: bool) -> list[nn.Module]:
    """A convolution of stride 1 that keeps the size, as a list of layers: reflection padding is a layer of its own.

    `normed` says whether instance norm follows.
    """
    conv = NormedConv2d if normed else nn.Conv2d
    if padding == "zero":
        return [conv(in_channels, out_channels, kernel, padding=kernel // 2)]
    return [nn.ReflectionPad2d(kernel // 2), conv(in_channels, out_channels, kernel)]


def edit_at_strength(generator: nn.Module, image: Tensor, strength: float) -> tuple[Tensor, Tensor | None]:
    """Translate images by weakening or exaggerating what a generator changes, and tell how their pixels have moved.

    With an appearance flow the change of colours and the shifts are multiplied by the strength. Any other generator is
    `blend`ed with its input, which is the same for one with a global skip.

    Args:
        generator: maps (N, 3, H, W) in [-1, 1] to the same.
        image: (N, 3, H, W) in [-1, 1].
        strength: 0 gives the image and 1 the translation, both bit for bit; more than 1 goes beyond the translation.

    Returns:
        The translations (N, 3, H, W) in [-1, 1], and the shifts (N, 2, H, W) in sides; None where nothing moves.
    """
    return edits_of(generator, image)(strength) if strength else (image, None)


def edits_of(generator: nn.Module, image: Tensor) -> Callable[[float], tuple[Tensor, Tensor | None]]:
    """`edit_at_strength` as a function of the strength alone: the generator runs once for all strengths."""
    if isinstance(generator, Generator) and generator.flow:
        apply = partial(generator.apply_to, image, *generator.predict(image))
        return lambda strength: apply(strength) if strength else (image, None)
    translation = generator(image).to(image.dtype)
    return lambda strength: (blend(image, translation, strength), None)


def blend(image: Tensor, translation: Tensor, strength: float) -> Tensor:
    """Weaken or exaggerate a translation: tanh((1 - strength) atanh(image) + strength atanh(translation)).

    A generator with `global_skip` adds its change to the input in this space; the formula works for any generator.

    Args:
        image, translation: (N, 3, H, W) in [-1, 1].
        strength: 0 gives the image and 1 the translation, both bit for bit; more than 1 goes beyond the translation.

    Returns:
        (N, 3, H, W) in [-1, 1].
    """
    if strength in (0, 1):
        return translation if strength else image
    before, after = (torch.atanh(x.clamp(-SKIP_LIMIT, SKIP_LIMIT)) for x in (image, translation))
    return torch.tanh(torch.lerp(before, after, strength))
