"""The PatchGAN, against the paper's numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from discriminator_model import Discriminator
from generator_model import InstanceNorm


def test_parameters_are_those_of_the_layer_list() -> None:
    layers = [(3, 64), (64, 128), (128, 256), (256, 512), (512, 1)]
    from_list = sum(inputs * outputs * 4**2 + outputs for inputs, outputs in layers)
    assert sum(parameter.numel() for parameter in Discriminator().parameters()) == from_list == 2_764_737


def test_a_score_sees_a_patch_of_70_pixels() -> None:
    """By the gradient of one score, without the norms, which let every pixel see all others."""
    discriminator = Discriminator(2, init_std=0).double()
    for index, layer in enumerate(discriminator.patches):
        if isinstance(layer, InstanceNorm):
            discriminator.patches[index] = nn.Identity()
    x = torch.randn(1, 3, 256, 256, dtype=torch.float64, requires_grad=True)
    discriminator(x)[0, 0, 15, 15].backward()
    assert x.grad is not None
    rows, columns = x.grad.abs().sum((0, 1)).nonzero().T
    assert rows.max() - rows.min() + 1 == 70
    assert columns.max() - columns.min() + 1 == 70


def reference_scores(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The paper's network, written with functions, on the same weights taken in order."""
    weights = iter(state.values())
    for index, stride in enumerate((2, 2, 2, 1, 1)):
        x = F.conv2d(x, next(weights), next(weights), stride=stride, padding=1)
        if index in (1, 2, 3):
            mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, unbiased=False)
            x = (x - mean) / (var + 1e-5).sqrt()
        if index < 4:
            x = torch.where(x > 0, x, 0.2 * x)
    return x


def test_forward_equals_the_paper_written_with_functions() -> None:
    discriminator = Discriminator(4).double()
    x = torch.rand(2, 3, 64, 48, dtype=torch.float64) * 2 - 1
    expected = reference_scores(discriminator.state_dict(), x)
    torch.testing.assert_close(discriminator(x), expected, rtol=1e-9, atol=1e-9)


def test_initial_weights_are_normal_with_a_spread_of_two_hundredths() -> None:
    torch.manual_seed(0)
    weights = {name: p for name, p in Discriminator(32).named_parameters() if name.endswith("weight")}
    assert torch.cat([p.flatten() for p in weights.values()]).std().item() == pytest.approx(0.02, rel=0.01)
    assert all((p == 0).all() for name, p in Discriminator(32).named_parameters() if name.endswith("bias"))
    assert any((p != 0).any() for name, p in Discriminator(32, init_std=0).named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize(("size", "scores"), [(256, 30), (64, 6), (32, 2)])
def test_scores_per_image_size(size: int, scores: int) -> None:
    assert Discriminator(2)(torch.zeros(2, 3, size, size)).shape == (2, 1, scores, scores)


def test_scores_are_linear_and_the_first_layer_has_no_norm() -> None:
    layers = list(Discriminator(2).patches)
    assert isinstance(layers[-1], nn.Conv2d)
    assert [type(layer).__name__ for layer in layers[:3]] == ["Conv2d", "LeakyReLU", "Conv2d"]
    assert sum(isinstance(layer, InstanceNorm) for layer in layers) == 3


def test_spectral_normalisation_bounds_every_layer() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(8, init_std=0.5, spectral=True)
    for _ in range(200):  # each pass improves the estimate of the largest singular value
        discriminator(torch.randn(1, 3, 32, 32))
    for layer in discriminator.patches:
        if isinstance(layer, nn.Conv2d):
            largest = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2).item()
            assert largest == pytest.approx(1, abs=0.05)
