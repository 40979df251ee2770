"""Each known failure causes its own warning and no other; healthy training causes none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import Tiny, make_image, train_here
from torch import Tensor

import train
from training.health import MAX_PEAK, WINDOW, periodic_pattern, symptoms_in_images, symptoms_in_losses
from utils import image_to_tensor

Translate = Callable[[Tensor], Tensor]
NOISE = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def smooth_images(count: int = 4, first: int = 0) -> Tensor:
    """Smooth images, (count, 3, 32, 32), whose values stay away from -1 and 1."""
    return torch.stack([image_to_tensor(make_image(first + i, (32, 32))) for i in range(count)]) * 0.7


def symptoms_of(forward: Translate, backward: Translate, progress: float = 1.0) -> list[str]:
    """The names of the symptoms when one generator computes `forward` and the other `backward`."""
    real = smooth_images()
    fake = forward(real)
    rec = backward(fake)
    return [found.name for found in symptoms_in_images("a to b", real=real, fake=fake, rec=rec, progress=progress)]


def row(**values: float) -> dict[str, float]:
    return {"loss/disc_a": 0.2, "loss/disc_b": 0.2, "loss/gen": 3.0, **values}


def test_healthy_translations_cause_no_warning() -> None:
    assert symptoms_of(lambda x: x * 0.8 + 0.1 + 0.02 * NOISE, lambda x: (x - 0.1) / 0.8) == []


def test_translations_that_equal_their_inputs_cause_a_warning_from_half_the_run_on() -> None:
    assert symptoms_of(lambda x: x + 0.001, lambda x: x) == ["a to b does nothing"]
    assert symptoms_of(lambda x: x + 0.001, lambda x: x, progress=0.4) == []  # generators may start as the identity


def test_translations_that_all_look_alike_cause_a_warning() -> None:
    assert symptoms_of(lambda x: x.mean(dim=0, keepdim=True).expand_as(x) + 0.02 * NOISE, lambda x: x) == [
        "a to b has collapsed"
    ]


def test_translations_that_invert_colours_cause_a_warning() -> None:
    assert symptoms_of(lambda x: -x, lambda x: -x) == ["a to b inverts"]


def test_translations_that_hide_their_input_cause_a_warning() -> None:
    assert symptoms_of(lambda x: x + 0.05 * NOISE, lambda x: x - 0.05 * NOISE) == ["a to b hides its input"]


def wave(row_period: float, column_period: float, grey_levels: float, side: int = 32) -> Tensor:
    """Stripes or a grid, (side, side); an infinite period leaves that axis alone."""
    row, column = torch.arange(side)[:, None], torch.arange(side)[None, :]
    return grey_levels / 127.5 * torch.cos(2 * torch.pi * (row / row_period + column / column_period))


@pytest.mark.parametrize(
    ("row_period", "column_period", "reported"),
    [(2, float("inf"), "2.0"), (float("inf"), 4, "4.0"), (2, 2, "2.0"), (3, float("inf"), "2.9")],
)
def test_stripes_or_a_grid_in_translations_cause_a_warning_with_the_period(
    row_period: float, column_period: float, reported: str
) -> None:
    real, pattern = smooth_images(), wave(row_period, column_period, 8)
    fake = real * 0.8 + 0.1 + pattern
    (symptom,) = symptoms_in_images("a to b", real=real, fake=fake, rec=real, progress=1.0)
    assert symptom.name == "a to b has stripes"
    assert f"a period of {reported} px" in symptom.observation


def test_stripes_on_a_part_of_the_image_count_too() -> None:
    real, pattern = smooth_images(6).repeat(1, 1, 2, 2), wave(2, float("inf"), 8, side=64)
    pattern[:, :16] = pattern[:, 48:] = pattern[:16] = pattern[48:] = 0
    assert periodic_pattern(real, real + pattern)[0] > MAX_PEAK


def test_stripes_that_the_inputs_have_cause_no_warning() -> None:
    striped = smooth_images() + wave(2, float("inf"), 8)
    fake = striped * 0.8 + 0.1
    assert list(symptoms_in_images("a to b", real=striped, fake=fake, rec=striped, progress=1.0)) == []


def test_sharper_softer_and_noisier_translations_have_no_stripes() -> None:
    real = smooth_images(6) + 0.03 * torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    soft = F.avg_pool2d(F.pad(real, [1] * 4, mode="reflect"), 3, 1)
    for fake in (soft, real + (real - soft), real + 0.05 * NOISE[:1]):
        assert periodic_pattern(real, fake)[0] < MAX_PEAK


def test_a_single_sample_causes_no_warning_of_a_collapse() -> None:
    real = smooth_images(1)
    assert list(symptoms_in_images("a to b", real=real, fake=real * 0.8 + 0.1, rec=real, progress=1.0)) == []


def test_healthy_losses_cause_no_warning() -> None:
    assert list(symptoms_in_losses([row(**{"loss/gen": 3 + 0.01 * i}) for i in range(9)])) == []


def test_a_discriminator_that_is_never_wrong_causes_a_warning() -> None:
    rows = [row(**{"loss/disc_b": 0.001, "loss/gen": 3 + 0.01 * i}) for i in range(WINDOW)]
    assert [found.name for found in symptoms_in_losses(rows)] == ["disc_b has won"]
    assert list(symptoms_in_losses(rows[1:])) == []
    assert list(symptoms_in_losses([*rows[1:], row()])) == []


def test_losses_that_do_not_move_cause_a_warning() -> None:
    assert [found.name for found in symptoms_in_losses([row()] * WINDOW)] == ["losses are stuck"]


def test_every_warning_is_one_line_and_names_a_flag_to_try() -> None:
    real = smooth_images()
    symptoms = [
        *symptoms_in_losses([row(**{"loss/disc_a": 0.0})] * WINDOW),
        *symptoms_in_images("a to b", real=real, fake=-real, rec=real, progress=1.0),
    ]
    assert len(symptoms) == 3
    for symptom in symptoms:
        assert str(symptom).startswith("warning: ")
        assert "\n" not in str(symptom)
        assert "--" in symptom.remedy


def test_a_run_that_learns_nothing_causes_one_warning_per_direction(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(learning_rate=1e-9, num_epochs=3, num_decay_epochs=1, sample_every_steps=4)
    assert train_here(config) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2  # one for each direction
    assert "european to asian still equal their inputs" in warnings[0]
    assert warnings[0].endswith("(step 12)")


@pytest.mark.parametrize("inverted", [True, False])
def test_warnings_about_samples_reach_the_terminal_and_tensorboard(
    inverted: bool, tiny: Tiny, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    factor = -1.0 if inverted else 0.8
    real = smooth_images()
    columns = [real, factor * real + 0.1, real, real, 0.8 * real + 0.1, real]
    monkeypatch.setattr(train, "translate_samples", lambda *arguments: columns)
    config = tiny(num_epochs=1, num_decay_epochs=0)
    assert train_here(config) == 0
    assert ("warning: translations european to asian turn dark" in capsys.readouterr().out) is inverted
    (events,) = Path(config.runs_dir, config.run_name).glob("events*")
    assert (b"turn dark into bright" in events.read_bytes()) is inverted
