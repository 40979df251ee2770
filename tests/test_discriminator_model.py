"""The PatchGAN, against the paper's numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from discriminator_model import Discriminator, Norm
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


def spread_of_scores(discriminator: nn.Module) -> float:
    return float(discriminator(torch.rand(4, 3, 64, 64) * 2 - 1).std().item())


@pytest.mark.parametrize("norm", ["none", "instance"])
def test_the_signal_survives_from_the_first_layer_to_the_scores(norm: Norm) -> None:
    torch.manual_seed(0)
    assert 0.1 < spread_of_scores(Discriminator(16, norm=norm, global_side=64)) < 10


def test_without_norm_weights_with_the_papers_spread_would_let_the_signal_vanish() -> None:
    torch.manual_seed(0)
    layers = [layer for layer in Discriminator(16).patches if not isinstance(layer, InstanceNorm)]
    assert spread_of_scores(nn.Sequential(*layers)) < 0.01


def test_the_norm_can_be_left_out_and_the_names_of_the_weights_stay() -> None:
    without = Discriminator(2, norm="none", global_side=64)
    assert not [layer for layer in without.modules() if isinstance(layer, InstanceNorm)]
    assert Discriminator(2).state_dict().keys() == Discriminator(2, norm="none").state_dict().keys()


@pytest.mark.parametrize(("side", "num_strided"), [(32, 0), (64, 1), (128, 2), (256, 3), (96, 2)])
def test_the_global_head_halves_its_features_down_to_about_four_pixels(side: int, num_strided: int) -> None:
    whole = Discriminator(2, global_side=side).whole
    assert whole is not None
    assert sum(isinstance(layer, nn.Conv2d) for layer in whole.strided) == num_strided
    assert whole.strided(torch.zeros(1, 8, side // 8, side // 8)).shape[-1] in (3, 4)


def reference_global_score(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The global score (N, 1) for 64 px without norm, written with functions."""
    for name in ("patches.0", "patches.2", "patches.5", "whole.strided.0"):
        x = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride=2, padding=1)
        x = torch.where(x > 0, x, 0.2 * x)
    x = x.flatten(2)  # (N, 8c, 16)
    pooled = torch.cat([x.mean(2), x.max(2).values, x.std(2, correction=0)], dim=1)
    hidden = pooled @ state["whole.linear.0.weight"].T + state["whole.linear.0.bias"]
    hidden = torch.where(hidden > 0, hidden, 0.2 * hidden)
    return hidden @ state["whole.linear.2.weight"].T + state["whole.linear.2.bias"]


def test_the_global_score_equals_one_written_with_functions_and_stands_beside_every_patch() -> None:
    discriminator = Discriminator(4, norm="none", global_side=64).double()
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64) * 2 - 1
    state = discriminator.state_dict()
    scores, expected = discriminator(x), reference_global_score(state, x)
    assert scores.shape == (2, 2, 6, 6)
    torch.testing.assert_close(scores[:, 1], expected[:, :, None].expand(2, 6, 6), rtol=1e-3, atol=1e-3)
    patches = Discriminator(4, norm="none").double()
    patches.load_state_dict({name: weights for name, weights in state.items() if name.startswith("patches")})
    torch.testing.assert_close(scores[:, :1], patches(x))


def test_scores_are_linear_and_the_first_layer_has_no_norm() -> None:
    layers = list(Discriminator(2).patches)
    assert isinstance(layers[-1], nn.Conv2d)
    assert [type(layer).__name__ for layer in layers[:3]] == ["Conv2d", "LeakyReLU", "NormedConv2d"]
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
