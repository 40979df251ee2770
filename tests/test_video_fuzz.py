"""Videos with random damage are translated as far as they can be read, or refused in words."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from fuzzing import assert_sentence, bounded, damaged, fuzz
from hypothesis import given
from hypothesis import strategies as st
from small_videos import decode, write_film

from photos.video import translate_video
from utils import UserError

pytestmark = pytest.mark.slow
MAX_PIXELS = 1_000_000
FILMS = {
    "a.mp4": ("libx264", ["aac"]),
    "b.mov": ("mpeg4", []),
    "c.webm": ("libvpx-vp9", ["libopus"]),
    "d.webm": ("libvpx", []),
}


@cache
def seeds() -> dict[str, bytes]:
    """Whole small videos by name."""
    with tempfile.TemporaryDirectory() as folder:
        return {name: write_film(Path(folder, name), codec, size=(48, 32), sounds=sounds).read_bytes()
                for name, (codec, sounds) in FILMS.items()}  # fmt: skip


def brighter(pixels: np.ndarray) -> np.ndarray:
    return pixels // 2 + 100


@pytest.fixture(autouse=True, scope="module")
def small_videos_only() -> Iterator[None]:
    """Damage may enlarge the frames that a file announces; the limit for them is what keeps the memory small."""
    patch = pytest.MonkeyPatch()
    patch.setattr("photos.video_files.MAX_PIXELS", MAX_PIXELS)
    yield
    patch.undo()


@fuzz(60)
@given(st.sampled_from(sorted(FILMS)).flatmap(lambda name: st.tuples(st.just(name), damaged(seeds()[name]))))
def test_a_damaged_video_is_translated_or_refused_in_words(film: tuple[str, bytes]) -> None:
    name, data = film
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, name), Path(folder, f"result{Path(name).suffix}")
        source.write_bytes(data)
        refusal = ""
        with bounded():
            try:
                translate_video(source, target, change=brighter)
            except UserError as error:
                refusal = str(error)
        assert sorted(os.listdir(folder)) == ([name] if refusal else [name, target.name])
        if refusal:
            assert_sentence(refusal)
        else:
            assert decode(target)
