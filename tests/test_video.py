"""Videos keep their size, frame rate, number of frames and sound; the landmarks of still faces are steady."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_translate import TEMPLATE, Brighter, photograph

from photos.faces import Face
from photos.picture_file import write_picture
from photos.smoothing import FaceSmoother
from photos.translator import Translator
from photos.video import translate_video
from translate import translate_files
from utils import UserError

av = pytest.importorskip("av", reason="PyAV is in requirements-extra.txt")
NUM_FRAMES = 10
LANDMARKS = np.array(TEMPLATE) * 100


def make_video(path: Path, codec: str, size: tuple[int, int] = (480, 272), sound: str | None = None) -> Path:
    """Write a video of a face that moves to the right at 25 frames a second, with or without a hum."""
    image = photograph(1, (700, 400))
    with av.open(str(path), "w") as writer:
        stream = writer.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        hum = writer.add_stream(sound, rate=48000) if sound else None
        for number in range(NUM_FRAMES):
            picture = image.crop((20 - 2 * number, 60, 500 - 2 * number, 332)).resize(size)
            writer.mux(stream.encode(av.VideoFrame.from_image(picture)))
            if hum:
                wave = np.sin(np.arange(1920) / 10 + 1920 * number / 10).astype(np.float32)[None]
                frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 48000, 1920 * number
                writer.mux(hum.encode(frame))
        for end in filter(None, (stream, hum)):
            writer.mux(end.encode())
    return path


def contents(path: Path) -> tuple[list[np.ndarray], list[float], list[bytes], Any]:
    """The frames, their times in s, the packets of the sound, and the frame rate."""
    with av.open(str(path)) as reader:
        sound = [bytes(packet) for packet in reader.demux(audio=0)] if reader.streams.audio else []
    with av.open(str(path)) as reader:
        frames = list(reader.decode(video=0))
        rate = reader.streams.video[0].average_rate
    return [frame.to_ndarray(format="rgb24") for frame in frames], [frame.time for frame in frames], sound, rate


@pytest.mark.parametrize(
    ("name", "codec", "sound"),
    [
        ("a.mp4", "libx264", "aac"),
        ("a.mov", "mpeg4", "aac"),
        ("a.webm", "libvpx-vp9", "libopus"),
        ("b.mp4", "libx264", None),
    ],
)
def test_only_the_faces_in_a_video_change(name: str, codec: str, sound: str | None, tmp_path: Path) -> None:
    source, target = make_video(tmp_path / name, codec, sound=sound), tmp_path / "out" / name
    translator = Translator(Brighter(), 64, template=TEMPLATE)
    summary = translate_files(translator, [(source, target)], write=write_picture)
    assert str(summary) == "translated 1 file, 1 face"
    frames, times, sound_packets, rate = contents(source)
    new_frames, new_times, new_sound_packets, new_rate = contents(target)
    assert len(new_frames) == len(frames) == NUM_FRAMES
    assert new_times == pytest.approx(times, abs=0.001)
    assert new_rate == rate == Fraction(25)
    assert new_sound_packets == sound_packets
    for frame, new_frame in zip(frames, new_frames, strict=True):
        change = new_frame.astype(int) - frame
        assert change[100:160, 60:160].mean() > 15
        assert np.abs(change[:, 300:]).mean() < 3
    assert translator.generator.input_shapes == [(1, 3, 64, 64)] * NUM_FRAMES


def test_a_video_keeps_an_odd_size(tmp_path: Path) -> None:
    source = make_video(tmp_path / "a.webm", "libvpx-vp9", (161, 91))
    assert translate_video(source, tmp_path / "b.mp4", change=lambda pixels: pixels).num_frames == NUM_FRAMES
    assert contents(tmp_path / "b.mp4")[0][0].shape == (91, 161, 3)


def test_a_file_that_is_not_a_video_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"not a video")
    with pytest.raises(UserError, match="not a readable video"):
        translate_video(tmp_path / "a.mp4", tmp_path / "out" / "a.mp4", change=lambda pixels: pixels)
    assert not (tmp_path / "out").exists()


def test_without_pyav_the_error_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"pip install -r requirements-extra\.txt"):
        translate_video(tmp_path / "a.mp4", tmp_path / "b.mp4", change=lambda pixels: pixels)


def test_the_landmarks_of_a_still_face_are_smoothed() -> None:
    random = np.random.default_rng(0)
    noisy = [LANDMARKS + random.normal(0, 0.3, (5, 2)) for _ in range(60)]
    smoother = FaceSmoother()
    smooth = [smoother([Face(landmarks, 1.0)])[0].landmarks for landmarks in noisy]
    assert np.std(smooth[10:], axis=0).mean() < 0.5 * np.std(noisy[10:], axis=0).mean()


def test_a_moving_face_is_followed_without_delay() -> None:
    smoother = FaceSmoother()
    for number in range(20):
        where = LANDMARKS + 8 * number
        (face,) = smoother([Face(where, 1.0)])
    assert np.abs(face.landmarks - where).max() < 1


def test_several_faces_are_smoothed_apart_and_a_new_one_not_at_all() -> None:
    smoother = FaceSmoother()
    smoother([Face(LANDMARKS, 1.0), Face(LANDMARKS + 300, 1.0)])
    moved = smoother([Face(LANDMARKS + by, 1.0) for by in (301, -1, 150)])
    assert np.allclose(moved[0].landmarks, LANDMARKS + 300.5, atol=0.5)
    assert np.allclose(moved[1].landmarks, LANDMARKS - 0.5, atol=0.5)
    assert np.allclose(moved[2].landmarks, LANDMARKS + 150)
