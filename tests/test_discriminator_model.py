"""The PatchGAN, against the paper's numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from discriminator_model import Discriminator


def test_parameters_are_those_of_the_layer_list() -> None:
    layers = [(3, 64), (64, 128), (128, 256), (256, 512), (512, 1)]
    from_list = sum(inputs * outputs * 4**2 + outputs for inputs, outputs in layers)
    assert sum(parameter.numel() for parameter in Discriminator().parameters()) == from_list == 2_764_737


def test_a_score_sees_a_patch_of_70_pixels() -> None:
    """By the gradient of one score, without the norms, which let every pixel see all others."""
    discriminator = Discriminator(2, init_std=0).double()
    for index, layer in enumerate(discriminator.patches):
        if isinstance(layer, nn.InstanceNorm2d):
            discriminator.patches[index] = nn.Identity()
    x = torch.randn(1, 3, 256, 256, dtype=torch.float64, requires_grad=True)
    discriminator(x)[0, 0, 15, 15].backward()
    assert x.grad is not None
    rows, columns = x.grad.abs().sum((0, 1)).nonzero().T
    assert rows.max() - rows.min() + 1 == 70
    assert columns.max() - columns.min() + 1 == 70


@pytest.mark.parametrize(("size", "scores"), [(256, 30), (64, 6), (32, 2)])
def test_scores_per_image_size(size: int, scores: int) -> None:
    assert Discriminator(2)(torch.zeros(2, 3, size, size)).shape == (2, 1, scores, scores)


def test_scores_are_linear_and_the_first_layer_has_no_norm() -> None:
    layers = list(Discriminator(2).patches)
    assert isinstance(layers[-1], nn.Conv2d)
    assert [type(layer).__name__ for layer in layers[:3]] == ["Conv2d", "LeakyReLU", "Conv2d"]
    assert sum(isinstance(layer, nn.InstanceNorm2d) for layer in layers) == 3
