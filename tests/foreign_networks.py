"""Generators of other projects, rebuilt from their published lists of layers, to test the import of their weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn


class ConvBlock(nn.Module):
    """A convolution, an instance norm and a last layer, named as in the tutorial and the original project."""

    def __init__(self, layer: nn.Module, channels: int, last: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Sequential(layer, nn.InstanceNorm2d(channels), last)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


class ResidualBlock(nn.Module):
    """The residual block of the tutorial and the original project, with k channels."""

    def __init__(self, k: int, mode: str) -> None:
        super().__init__()
        first, second = (nn.Conv2d(k, k, 3, padding=1, padding_mode=mode) for _ in range(2))  # type: ignore[arg-type]
        self.block = nn.Sequential(ConvBlock(first, k, nn.ReLU()), ConvBlock(second, k, nn.Identity()))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.block(x)
        return y


class Generator(nn.Module):
    """The tutorial's generator. With other padding and without the first norm, it is the original project's.

    Args:
        c: channels after the first layer.
        n: number of residual blocks.
        mode: padding mode.
        blocks: name of the residual blocks.
        norm_first: whether a norm follows the first layer.
        channels: channels of the images.
    """

    def __init__(self, c: int, n: int, mode: str, blocks: str, norm_first: bool, channels: int = 3) -> None:
        super().__init__()
        self.blocks = blocks

        def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, padding_mode=mode)  # type: ignore[arg-type]

        def up(inputs: int, outputs: int) -> nn.ConvTranspose2d:
            return nn.ConvTranspose2d(inputs, outputs, 3, 2, 1, output_padding=1)

        norm = [nn.InstanceNorm2d(c)] if norm_first else []
        self.initial = nn.Sequential(conv(channels, c, 7), *norm, nn.ReLU())
        self.down_blocks = nn.ModuleList([ConvBlock(conv(k, 2 * k, 3, stride=2), 2 * k, nn.ReLU()) for k in (c, 2 * c)])
        setattr(self, blocks, nn.Sequential(*(ResidualBlock(4 * c, mode) for _ in range(n))))
        self.up_blocks = nn.ModuleList([ConvBlock(up(2 * k, k), k, nn.ReLU()) for k in (2 * c, c)])
        self.last = conv(c, channels, 7)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.initial, *self.down_blocks, getattr(self, self.blocks), *self.up_blocks, self.last]
        for part in parts:
            x = part(x)
        return torch.tanh(x)


class ReferenceBlock(nn.Module):
    """The residual block of the reference implementation, with k channels."""

    def __init__(self, k: int, dropout: bool) -> None:
        super().__init__()
        half = [nn.ReflectionPad2d(1), nn.Conv2d(k, k, 3), nn.InstanceNorm2d(k)]
        other = [nn.ReflectionPad2d(1), nn.Conv2d(k, k, 3), nn.InstanceNorm2d(k)]
        self.conv_block = nn.Sequential(*half, nn.ReLU(), *([nn.Dropout(0.5)] if dropout else []), *other)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.conv_block(x)
        return y


class Reference(nn.Module):
    """The reference implementation's ResNet generator, with c channels after the first layer and n residual blocks."""

    def __init__(self, c: int, n: int, dropout: bool = False, channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(channels, c, 7), nn.InstanceNorm2d(c), nn.ReLU()]
        for k in (c, 2 * c):
            layers += [nn.Conv2d(k, 2 * k, 3, 2, 1), nn.InstanceNorm2d(2 * k), nn.ReLU()]
        layers += [ReferenceBlock(4 * c, dropout) for _ in range(n)]
        for k in (2 * c, c):
            layers += [nn.ConvTranspose2d(2 * k, k, 3, 2, 1, output_padding=1), nn.InstanceNorm2d(k), nn.ReLU()]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(c, channels, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.model(x)
        return y


def randomised(network: nn.Module, seed: int) -> nn.Module:
    """Set random weights and biases, and switch to evaluation mode."""
    random = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0.0, 0.1, generator=random)
    return network.eval()


def origin(c: int = 4, n: int = 8, seed: int = 0, channels: int = 3) -> nn.Module:
    """A random generator of the original project."""
    return randomised(Generator(c, n, "zeros", "residual_blocks", norm_first=False, channels=channels), seed)


def tutorial(c: int = 4, n: int = 9, seed: int = 0, norm_first: bool = True) -> nn.Module:
    """A random generator of the tutorial."""
    return randomised(Generator(c, n, "reflect", "res_blocks", norm_first), seed)


def reference(c: int = 4, n: int = 9, seed: int = 0, dropout: bool = False, channels: int = 3) -> nn.Module:
    """A random generator of the reference implementation."""
    return randomised(Reference(c, n, dropout, channels), seed)


def save_origin(folder: Path, n: int = 8, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """Write gen_asian and gen_european as the original project does, and return them in this order, ab and ba."""
    folder.mkdir(parents=True, exist_ok=True)
    gen_ab, gen_ba = origin(n=n, seed=seed), origin(n=n, seed=seed + 1)
    for name, network in (("gen_asian", gen_ab), ("gen_european", gen_ba)):
        torch.save({"state_dict": network.state_dict(), "optimizer": {}}, folder / f"{name}.pth.tar")
    return gen_ab, gen_ba
