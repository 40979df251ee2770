"""Files that an earlier version wrote still load, and a run resumes from them as it did there.

Both files hold networks with one channel after four steps on `make_folders(3, 2)`. That version printed the expected
numbers.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_folders, train_here

from config import BEFORE_THE_KNOB, Config
from training.command_line import parse_args
from weights.load import Direction, load_generator, load_weights

FILES = Path(__file__).parent / "files"
CHECKPOINT, WEIGHTS = FILES / "earlier_checkpoint.pt", FILES / "earlier_weights.safetensors"
TEMPLATE = ((0.3, 0.3), (0.69, 0.3), (0.5, 0.52), (0.34, 0.72), (0.66, 0.72))


def response(path: Path, direction: Direction, ema: bool = True) -> tuple[float, float]:
    """The mean of a fixed image's translation, and its mean absolute difference from the image."""
    image = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    with torch.no_grad():
        translated = load_generator(path, direction, ema=ema)(image)
    return translated.mean().item(), (translated - image).abs().mean().item()


def test_an_earlier_checkpoint_translates_as_before() -> None:
    assert response(CHECKPOINT, "ab") == pytest.approx((-0.076085, 0.098270), abs=1e-5)
    assert response(CHECKPOINT, "ab", ema=False) == pytest.approx((-0.059213, 0.081718), abs=1e-5)
    assert response(CHECKPOINT, "ba") == pytest.approx((0.050723, 0.077031), abs=1e-5)
    assert response(CHECKPOINT, "ba", ema=False) == pytest.approx((0.047975, 0.080745), abs=1e-5)


def test_an_earlier_weights_file_translates_as_before() -> None:
    assert response(WEIGHTS, "ab") == pytest.approx((-0.076085, 0.098270), abs=1e-5)
    assert response(WEIGHTS, "ba") == pytest.approx((0.050723, 0.077031), abs=1e-5)


@pytest.mark.parametrize("path", [CHECKPOINT, WEIGHTS])
def test_the_configuration_and_the_template_are_read(path: Path) -> None:
    weights = load_weights(path)
    assert (weights.config.image_size, weights.config.learning_rate) == (32, 0.02)
    assert weights.template == TEMPLATE


def earlier_run(folder: Path) -> Config:
    """Put the checkpoint into a run's folder; the configuration with which its command would run today."""
    make_folders(folder / "data", 3, 2)
    (folder / "runs" / "old" / "checkpoints").mkdir(parents=True)
    shutil.copy(CHECKPOINT, folder / "runs" / "old" / "checkpoints" / "step_00000004.pt")
    return Config(
        data_dir="data", runs_dir="runs", run_name="old", image_size=32, base_channels=1, num_residuals=1, num_epochs=2,
        num_decay_epochs=1, num_workers=0, num_samples=2, pool_size=1, log_every_steps=1, sample_every_steps=100,
        checkpoint_every_steps=4, device="cpu", init_std=0.2, learning_rate=0.02,
    )  # fmt: skip


def test_an_earlier_run_resumes_and_ends_where_that_version_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("utils.has_fast_bf16", lambda device: False)  # as on the machine that printed the numbers
    assert train_here(replace(earlier_run(tmp_path), **BEFORE_THE_KNOB)) == 0
    assert response(tmp_path / "runs" / "old", "ab") == pytest.approx((-0.027896, 0.056090), abs=1e-3)
    assert response(tmp_path / "runs" / "old", "ba") == pytest.approx((0.037782, 0.073275), abs=1e-3)


def test_the_flags_that_an_earlier_run_needs_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = earlier_run(tmp_path)
    assert train_here(config) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "what an earlier version had: " in line)
    flags = parse_args(line.split("what an earlier version had: ")[1].split())
    assert train_here(replace(config, **{knob: getattr(flags, knob) for knob in BEFORE_THE_KNOB})) == 0
