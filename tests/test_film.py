"""A film shows the pictures in their order, and is bounded in length and size."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_videos import av, decode

from photos import film
from photos.film import make_film


def make_pictures(folder: Path, count: int, size: tuple[int, int] = (62, 46)) -> list[Path]:
    """Grey pictures, each brighter than the one before."""
    paths = [folder / f"{number:04d}.png" for number in range(count)]
    for path, grey in zip(paths, np.linspace(30, 220, count), strict=True):
        Image.new("RGB", size, (int(grey),) * 3).save(path)
    return paths


def greys(path: Path) -> list[float]:
    """The mean brightness of each frame."""
    return [float(frame.to_ndarray(format="rgb24").mean()) for frame in decode(path)]


def test_few_pictures_are_shown_for_half_a_second_each_in_their_order_and_the_last_one_longer(tmp_path: Path) -> None:
    assert make_film(make_pictures(tmp_path, 3), tmp_path / "film.mp4") == f"the samples as a film: {tmp_path}/film.mp4"
    expected = [30.0] * 5 + [125.0] * 5 + [220.0] * (5 + 20)
    assert greys(tmp_path / "film.mp4") == pytest.approx(expected, abs=3)
    first = decode(tmp_path / "film.mp4")[0]
    assert (first.width, first.height) == (62, 46)
    with av.open(str(tmp_path / "film.mp4")) as reader:
        assert reader.streams.video[0].average_rate == 10


def test_many_pictures_make_a_film_of_bounded_length_from_the_first_to_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(film, "MAX_PICTURES", 4)
    monkeypatch.setattr(film, "MANY_FRAMES", 8)
    make_film(make_pictures(tmp_path, 10), tmp_path / "film.mp4")
    found = greys(tmp_path / "film.mp4")
    assert len(found) == 4 * 2 + 20
    assert found[:8:2] == pytest.approx([30, 30 + 190 / 3, 30 + 380 / 3, 220], abs=3)


def test_large_pictures_are_reduced_and_others_fitted_into_the_last_one(tmp_path: Path) -> None:
    (tall,) = make_pictures(tmp_path, 1, (20, 40))
    Image.new("RGB", (2000, 1001), "black").save(tmp_path / "wide.png")
    make_film([tall, tmp_path / "wide.png"], tmp_path / "film.mp4")
    first = decode(tmp_path / "film.mp4")[0].to_ndarray(format="rgb24")
    assert first.shape == (640, 1280, 3)  # both sides even, as the encoder requires
    assert first[:, :400].min() > 240  # white beside the tall picture
    assert first[320, 640].max() < 40


def test_a_film_that_cannot_be_made_costs_one_line_and_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = make_pictures(tmp_path, 2)
    make_film(pictures, tmp_path / "film.mp4")
    before = (tmp_path / "film.mp4").read_bytes()
    pictures[0].write_bytes(pictures[0].read_bytes()[:60])
    assert make_film(pictures, tmp_path / "film.mp4").startswith("there is no film of the samples: ")
    monkeypatch.setattr(film, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "av", None)
    assert make_film(pictures, tmp_path / "film.mp4").endswith("PyAV, which is not installed; run: pip install av")
    assert (tmp_path / "film.mp4").read_bytes() == before
