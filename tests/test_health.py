"""Each known failure brings its own warning, and only that; a healthy run brings none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Tiny, make_image, train_here
from torch import Tensor

import train
from training.health import WINDOW, symptoms_in_images, symptoms_in_losses
from utils import image_to_tensor

Translate = Callable[[Tensor], Tensor]
NOISE = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def pictures(count: int = 4, first: int = 0) -> Tensor:
    """Smooth pictures, away from black and white."""
    return torch.stack([image_to_tensor(make_image(first + i, (32, 32))) for i in range(count)]) * 0.7


def names(there: Translate, back: Translate, progress: float = 1.0) -> list[str]:
    """The names of the signs in generators that translate x to there(x), and back(there(x)) back."""
    real = pictures()
    fake = there(real)
    return [sign.name for sign in symptoms_in_images("a to b", real, fake, back(fake), progress)]


def row(**values: float) -> dict[str, float]:
    return {"loss/disc_a": 0.2, "loss/disc_b": 0.2, "loss/gen": 3.0, **values}


def test_healthy_translations_bring_no_warning() -> None:
    assert names(lambda x: x * 0.8 + 0.1 + 0.02 * NOISE, lambda x: (x - 0.1) / 0.8) == []


def test_translations_that_do_nothing() -> None:
    assert names(lambda x: x + 0.001, lambda x: x) == ["a to b does nothing"]
    assert names(lambda x: x + 0.001, lambda x: x, progress=0.4) == []  # generators begin as the identity


def test_translations_that_all_look_alike() -> None:
    assert names(lambda x: x.mean(dim=0, keepdim=True).expand_as(x) + 0.02 * NOISE, lambda x: x) == [
        "a to b has collapsed"
    ]


def test_translations_that_invert() -> None:
    assert names(lambda x: -x, lambda x: -x) == ["a to b inverts"]


def test_translations_that_hide_their_input() -> None:
    assert names(lambda x: x + 0.05 * NOISE, lambda x: x - 0.05 * NOISE) == ["a to b hides its input"]


def test_one_sample_cannot_show_a_collapse() -> None:
    real = pictures(1)
    assert list(symptoms_in_images("a to b", real, real * 0.8 + 0.1, real, 1.0)) == []


def test_healthy_losses_bring_no_warning() -> None:
    assert list(symptoms_in_losses([row(**{"loss/gen": 3 + 0.01 * i}) for i in range(9)])) == []


def test_a_discriminator_that_has_won() -> None:
    rows = [row(**{"loss/disc_b": 0.001, "loss/gen": 3 + 0.01 * i}) for i in range(WINDOW)]
    assert [sign.name for sign in symptoms_in_losses(rows)] == ["disc_b has won"]
    assert list(symptoms_in_losses(rows[1:])) == []
    assert list(symptoms_in_losses([*rows[1:], row()])) == []


def test_losses_that_stand_still() -> None:
    assert [sign.name for sign in symptoms_in_losses([row()] * WINDOW)] == ["losses stand still"]


def test_every_warning_is_one_line_with_a_remedy() -> None:
    real = pictures()
    signs = [
        *symptoms_in_losses([row(**{"loss/disc_a": 0.0})] * WINDOW),
        *symptoms_in_images("a to b", real, -real, real, 1),
    ]
    assert len(signs) == 3
    for sign in signs:
        assert str(sign).startswith("warning: ")
        assert "\n" not in str(sign)
        assert "--" in sign.remedy


def test_a_run_that_learns_nothing_is_warned_once(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny(learning_rate=1e-9, num_epochs=3, num_decay_epochs=1, sample_every_steps=4)
    assert train_here(config) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2  # one a direction
    assert "european to asian equal their inputs" in warnings[0]
    assert warnings[0].endswith("(step 12)")


@pytest.mark.parametrize("inverted", [True, False])
def test_what_the_generators_do_reaches_the_terminal_and_tensorboard(
    inverted: bool, tiny: Tiny, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sign = -1.0 if inverted else 0.8
    real = pictures()
    views = [real, sign * real + 0.1, real, real, 0.8 * real + 0.1, real]
    monkeypatch.setattr(train, "translate_samples", lambda *arguments: views)
    config = tiny(num_epochs=1, num_decay_epochs=0)
    assert train_here(config) == 0
    assert ("warning: translations european to asian turn dark" in capsys.readouterr().out) is inverted
    (events,) = Path(config.runs_dir, config.run_name).glob("events*")
    assert (b"turn dark into bright" in events.read_bytes()) is inverted
