"""The generator, against the paper's layer list."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generator_model import (
    MAX_SHIFT,
    SKIP_LIMIT,
    Generator,
    ResizeConv,
    Upsampling,
    blend,
    edit_at_strength,
    moved,
    upsampling_conv,
)


def count_from_the_layer_list(num_residuals: int, c: int = 64) -> int:
    """Weights and biases of c7s1-64, d128, d256, R256 x n, u128, u64, c7s1-3."""
    layers = [(3, c, 7), (c, 2 * c, 3), (2 * c, 4 * c, 3), *[(4 * c, 4 * c, 3)] * 2 * num_residuals]
    layers += [(4 * c, 2 * c, 3), (2 * c, c, 3), (c, 3, 7)]
    return sum(inputs * outputs * kernel**2 + outputs for inputs, outputs, kernel in layers)


@pytest.mark.parametrize(("num_residuals", "published"), [(9, 11_378_179), (8, 10_198_019), (6, 7_837_699)])
def test_parameters_are_those_of_the_layer_list(num_residuals: int, published: int) -> None:
    count = sum(parameter.numel() for parameter in Generator(num_residuals).parameters())
    assert count == published == count_from_the_layer_list(num_residuals)


def reference_forward(state: dict[str, Tensor], x: Tensor, num_residuals: int, mode: str, strided_mode: str) -> Tensor:
    """The paper's network, written with functions, on the same weights taken in order."""
    weights = iter(state.values())

    def conv(x: Tensor, pad: int, stride: int = 1) -> Tensor:
        weight, bias = next(weights), next(weights)
        if stride == 2:
            return F.conv2d(F.pad(x, [1] * 4, mode=strided_mode), weight, bias, stride=2)
        return F.conv2d(F.pad(x, [pad] * 4, mode=mode), weight, bias)

    def normalise(x: Tensor) -> Tensor:
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, unbiased=False)
        return (x - mean) / (var + 1e-5).sqrt()

    x = normalise(conv(x, 3)).relu()
    x = normalise(conv(x, 1, stride=2)).relu()
    x = normalise(conv(x, 1, stride=2)).relu()
    for _ in range(num_residuals):
        x = x + normalise(conv(normalise(conv(x, 1)).relu(), 1))
    for _ in range(2):
        up = F.conv_transpose2d(x, next(weights), next(weights), stride=2, padding=1, output_padding=1)
        x = normalise(up).relu()
    return conv(x, 3).tanh()


@pytest.mark.parametrize(
    ("padding", "mode", "strided_mode"),
    [("reflect", "reflect", "constant"), ("zero", "constant", "constant"), ("reflect-all", "reflect", "reflect")],
)
def test_forward_equals_the_paper_written_with_functions(padding: str, mode: str, strided_mode: str) -> None:
    generator = Generator(2, 8, padding=padding).double()  # type: ignore[arg-type]
    x = torch.rand(2, 3, 32, 40, dtype=torch.float64) * 2 - 1
    expected = reference_forward(generator.state_dict(), x, 2, mode, strided_mode)
    torch.testing.assert_close(generator(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("upsampling", ["transposed", "resize"])
def test_biases_in_front_of_instance_norm_change_nothing_and_stay_as_they_are(upsampling: Upsampling) -> None:
    generator = Generator(1, 4, upsampling=upsampling)
    biases = {name: p for name, p in generator.named_parameters() if name.endswith("bias")}
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    before = generator(x)
    before.mean().backward()
    assert [name for name, bias in biases.items() if bias.grad is not None] == ["last.1.bias"]
    for name, bias in biases.items():
        if name != "last.1.bias":
            nn.init.normal_(bias)
    assert torch.equal(generator(x), before)


def test_resizing_and_convolving_equals_the_two_in_turn() -> None:
    """It is computed as one transposed convolution."""
    layer = ResizeConv(5, 3, 3, padding=1).double()
    x = torch.randn(2, 5, 6, 8, dtype=torch.float64)
    resized = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    expected = F.conv2d(resized, layer.weight, padding=1)  # The bias is left out: instance norm follows.
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_both_kinds_of_upsampling_have_weights_of_the_same_names_and_number() -> None:
    transposed, resize = Generator(1, 4).state_dict(), Generator(1, 4, upsampling="resize").state_dict()
    assert {name: weights.numel() for name, weights in transposed.items()} == {
        name: weights.numel() for name, weights in resize.items()
    }


@pytest.mark.parametrize(("upsampling", "is_flat"), [("resize", True), ("transposed", False)])
def test_resizing_treats_every_pixel_alike_and_a_transposed_convolution_does_not(
    upsampling: Upsampling, is_flat: bool
) -> None:
    torch.manual_seed(0)
    made = upsampling_conv(16, 8, upsampling)(torch.ones(1, 16, 9, 9))[:, :, 2:-2, 2:-2]  # without the border
    spread = made.std(dim=(2, 3))
    assert (spread.max() < 1e-6) if is_flat else (spread.min() > 1e-3)


def test_strength_zero_is_the_image_and_one_the_translation_bit_for_bit() -> None:
    x, y = torch.rand(2, 1, 3, 8, 8) * 2 - 1
    assert torch.equal(blend(x, y, 0), x)
    assert torch.equal(blend(x, y, 1), y)


@pytest.mark.parametrize("strength", [0.5, 2.0, 3.0])
def test_the_strength_multiplies_the_change_before_tanh(strength: float) -> None:
    x, y = torch.rand(2, 1, 3, 8, 8, dtype=torch.float64) * 2 - 1
    x[..., 0], y[..., 1] = 1.0, -1.0  # where atanh is infinite
    before, after = (torch.atanh(image.clamp(-SKIP_LIMIT, SKIP_LIMIT)) for image in (x, y))
    blended = blend(x, y, strength)
    torch.testing.assert_close(blended, torch.tanh(before + strength * (after - before)))
    assert blended.abs().max() <= 1


@pytest.mark.parametrize("appearance_flow", [False, True])
def test_with_a_global_skip_an_untrained_generator_returns_every_grey_level(appearance_flow: bool) -> None:
    greys = torch.arange(256).float() / 127.5 - 1
    x = greys.reshape(1, 1, 16, 16).repeat(1, 3, 2, 2)
    returned = Generator(1, 4, padding="zero", global_skip=True, appearance_flow=appearance_flow)(x)
    assert torch.equal(((returned + 1) * 127.5).round(), ((x + 1) * 127.5).round())


def test_with_a_global_skip_white_and_black_still_learn() -> None:
    generator = Generator(1, 4, padding="zero", global_skip=True)
    generator(torch.ones(1, 3, 32, 32)).mean().backward()
    gradient = generator.last[-1].bias.grad  # type: ignore[union-attr]
    assert isinstance(gradient, Tensor)
    assert torch.isfinite(gradient).all()
    assert (gradient > 0).all()


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, 2), (-1, -5)])
def test_a_shift_takes_each_pixel_from_so_far_away_and_repeats_the_border(right: int, down: int) -> None:
    x = torch.rand(2, 3, 12, 20, dtype=torch.float64)
    shift = torch.tensor([right / 20, down / 12], dtype=torch.float64).view(1, 2, 1, 1).expand(2, 2, 12, 20)
    rows, columns = (torch.arange(12) + down).clamp(0, 11), (torch.arange(20) + right).clamp(0, 19)
    torch.testing.assert_close(moved(x, shift), x[:, :, rows][..., columns])


def test_between_pixels_a_shift_interpolates_as_opencv_does_and_stays_in_range() -> None:
    x = torch.where(torch.rand(1, 3, 12, 20) < 0.5, -1.0, 1.0)
    rows, columns = np.mgrid[:12, :20].astype(np.float32)
    expected = cv2.remap(x[0].permute(1, 2, 0).numpy(), columns + 0.5, rows - 1.25, cv2.INTER_CUBIC,
                         borderMode=cv2.BORDER_REPLICATE)  # fmt: skip
    shift = torch.tensor([0.5 / 20, -1.25 / 12]).view(1, 2, 1, 1).expand(1, 2, 12, 20)
    assert np.abs(expected).max() > 1.1
    np.testing.assert_allclose(moved(x, shift)[0].permute(1, 2, 0).numpy(), expected.clip(-1, 1), rtol=0, atol=1e-4)


def test_an_appearance_flow_learns_from_the_first_step_and_moves_no_further_than_its_limit() -> None:
    torch.manual_seed(0)
    generator = Generator(1, 4, padding="zero", global_skip=True, appearance_flow=True)
    ramp = torch.linspace(-0.9, 0.9, 64).expand(1, 3, 64, 64)
    generator(ramp + 0.01 * torch.rand(1, 3, 64, 64)).mean().backward()
    bias = generator.get_parameter("flow.bias")
    assert bias.grad is not None
    assert bias.grad[0] != 0
    with torch.no_grad():
        bias[0] = 1e3
        distance = (generator(ramp) - ramp)[0, 0, 0, 10:50] / 1.8 * 63 / 64
    # Cubic interpolation bends ramps a little.
    torch.testing.assert_close(distance, torch.full_like(distance, MAX_SHIFT), rtol=5e-3, atol=0)


def test_what_is_not_a_number_stays_so_and_does_not_crash_the_backward_pass() -> None:
    generator = Generator(1, 4, padding="zero", global_skip=True, appearance_flow=True)
    x = torch.full((1, 3, 64, 64), float("nan"), requires_grad=True)
    generator(x).sum().backward()
    assert generator(x).isnan().all()
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    moved(x, torch.full((1, 2, 64, 64), torch.inf)).sum().backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0])
def test_the_strength_multiplies_shifts_as_well(strength: float) -> None:
    generator = Generator(1, 4, padding="zero", global_skip=True, appearance_flow=True).double()
    nn.init.constant_(generator.get_parameter("flow.bias"), 0.3)
    x = torch.rand(1, 3, 16, 16, dtype=torch.float64) * 1.4 - 0.7  # moving may overshoot
    shift = torch.full((1, 2, 16, 16), strength * MAX_SHIFT * math.tanh(0.3), dtype=torch.float64)
    torch.testing.assert_close(edit_at_strength(generator, x, strength)[0], moved(x, shift))


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.0])
def test_with_a_global_skip_alone_the_strength_blends(strength: float) -> None:
    generator = Generator(1, 4, padding="zero", global_skip=True).double()
    nn.init.normal_(generator.get_parameter("last.0.weight"), std=0.02)
    x = torch.rand(1, 3, 16, 16, dtype=torch.float64) * 1.8 - 0.9
    expected = blend(x, generator(x), strength)
    torch.testing.assert_close(edit_at_strength(generator, x, strength)[0], expected)
    torch.testing.assert_close(generator.edit(x, strength)[0], expected)


def test_without_a_global_skip_there_is_nothing_to_move() -> None:
    with_flow, without = Generator(1, 4, appearance_flow=True), Generator(1, 4)
    assert with_flow.state_dict().keys() == without.state_dict().keys()


def test_initial_weights_are_normal_with_a_spread_of_two_hundredths() -> None:
    torch.manual_seed(0)
    generator = Generator(2, 32)
    weights = torch.cat([p.flatten() for name, p in generator.named_parameters() if name.endswith("weight")])
    assert weights.std().item() == pytest.approx(0.02, rel=0.01)
    assert all((p == 0).all() for name, p in generator.named_parameters() if name.endswith("bias"))
    assert any((p != 0).any() for name, p in Generator(2, 32, init_std=0).named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize("size", [(33, 32), (32, 34)])
def test_a_side_that_would_change_is_an_error(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        Generator(1, 4)(torch.zeros(1, 3, *size))


def test_the_output_keeps_the_type_of_the_input_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert Generator(1, 4, padding="zero", global_skip=True)(torch.zeros(1, 3, 32, 32)).dtype == torch.float32


def test_bfloat16_changes_no_picture_visibly() -> None:
    torch.manual_seed(0)
    generator = Generator(6, 16).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = F.interpolate(torch.rand(1, 3, 8, 8) * 2 - 1, size=64, mode="bicubic").clamp(-1, 1)
    with torch.inference_mode():
        exact = generator(x)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = generator(x)
    assert exact.std() > 0.05  # it shows something
    assert (rounded - exact).abs().mean() < 0.01


def test_recomputing_computes_residual_blocks_twice() -> None:
    """That the result is the same is in the oracle test of the training step."""
    calls = []
    for recompute in (False, True):
        torch.manual_seed(0)
        generator = Generator(2, 4, recompute=recompute)
        count = [0]
        for block in generator.residuals:
            block.register_forward_pre_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
        generator(torch.rand(1, 3, 16, 16) * 2 - 1).mean().backward()
        calls.append(count[0])
    assert calls == [2, 4]
