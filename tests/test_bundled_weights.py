"""The weights that come with the repository translate faces that they have never seen."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from torch import Tensor

import translate
from dataset import DEMO_ZIP
from evaluation.metrics import absolute_errors, translate_in_batches
from utils import image_to_tensor
from weights.load import BUNDLED_WEIGHTS, Direction, load_weights

PHOTOS = ROOT / "assets" / "photos"
MAX_BYTES = 16e6
NAMES: dict[Direction, tuple[str, str]] = {"ab": ("european", "asian"), "ba": ("asian", "european")}


def faces_of(domain: str, count: int = 8) -> Tensor:
    """The first test faces of a domain, (N, 3, 128, 128) in [-1, 1]; those of the other domain are their true pairs."""
    with zipfile.ZipFile(DEMO_ZIP) as archive:
        names = [f"test/{domain}/{number:04d}.jpg" for number in range(count)]
        return torch.stack([image_to_tensor(Image.open(archive.open(name)).convert("RGB")) for name in names])


def test_the_file_is_small_and_holds_both_directions() -> None:
    assert BUNDLED_WEIGHTS.stat().st_size <= MAX_BYTES
    weights = load_weights(BUNDLED_WEIGHTS)
    assert weights.config.image_size == 128
    assert weights.template is not None
    assert set(weights.generators) == {"ab", "ba"}


@pytest.mark.parametrize("direction", NAMES)
def test_translations_of_rendered_faces_are_nearer_to_the_truth_than_their_inputs(direction: Direction) -> None:
    source, target = (faces_of(domain) for domain in NAMES[direction])
    fake = translate_in_batches(load_weights(BUNDLED_WEIGHTS).generator(direction), source)
    errors, unchanged = absolute_errors(fake, target), absolute_errors(source, target)
    assert errors.mean() < 0.75 * unchanged.mean()


def test_without_a_run_the_program_translates_its_own_photographs_and_says_with_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert translate.main([str(PHOTOS)]) == 0
    printed = capsys.readouterr()
    assert "translated 2 files, 2 faces" in printed.out
    assert "weights_rendered_128.safetensors" in printed.err
    for photo in sorted(PHOTOS.iterdir()):
        before, after = (
            np.asarray(Image.open(path)).astype(int) for path in (photo, tmp_path / "translated" / photo.name)
        )
        change = np.abs(after - before).max(axis=2)
        assert 0.01 < (change > 8).mean() < 0.2  # the face, and little else
