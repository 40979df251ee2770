"""Videos keep all but their faces, survive damage, and say what they lost; the landmarks of still faces are steady."""

from __future__ import annotations

import io
import os
import re
import struct
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_videos import av, colour_bars, damage, decode, facts, seen, write_film
from test_translate import TEMPLATE, Brighter, photograph

from photos.faces import Face
from photos.label import is_labelled
from photos.picture_file import write_picture
from photos.smoothing import FaceSmoother
from photos.translator import Translator
from photos.video import result_name, translate_video
from translate import translate_files
from utils import UserError

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
        frames = list(reader.decode(video=0))
        rate = reader.streams.video[0].average_rate
    times = [frame.time for frame in frames]
    return [frame.to_ndarray(format="rgb24") for frame in frames], times, sound_of(path), rate


def sound_of(path: Path) -> list[bytes]:
    """The packets of the sound."""
    with av.open(str(path)) as reader:
        return [bytes(packet) for packet in reader.demux(audio=0)] if reader.streams.audio else []


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


# --- How a video is meant to be seen


def keep(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts of a video and of its copy with unchanged frames."""
    copy = path.parent / "out" / path.name
    report = translate_video(path, copy, change=lambda pixels: pixels)
    assert str(report) == ""
    for before, after in zip(decode(path), decode(copy), strict=True):
        assert np.abs(seen(before) - seen(after)).mean() < 4
    return facts(path), facts(copy)


HLG, PQ = (9, 1, 9, 18), (9, 1, 9, 16)
SCREEN = ":master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1):max-cll=1000,400"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hd.mp4", {}),
        ("full_range.mp4", {"colours": (1, 2, 1, 1)}),
        ("untold.mp4", {"colours": (2, 0, 2, 2)}),
        ("old.mov", {"colours": (5, 1, 5, 6)}),
        ("wide_pixels.mp4", {"shape": Fraction(4, 3)}),
        ("phone.mov", {"codec": "libx265", "tag": "hvc1"}),
        ("phone_hlg.mp4", {"codec": "libx265", "tag": "hvc1", "format": "yuv420p10le", "colours": HLG}),
        ("film_pq.mp4", {"codec": "libx265", "tag": "hvc1", "format": "yuv420p10le", "colours": PQ, "x265": SCREEN}),
        ("ten_bits.mp4", {"format": "yuv420p10le"}),
        ("fine_colours.mp4", {"format": "yuv422p"}),
        ("studio.mov", {"codec": "prores_ks", "format": "yuv422p10le"}),
        ("web.webm", {"codec": "libvpx-vp9"}),
        ("web_hlg.webm", {"codec": "libsvtav1", "format": "yuv420p10le", "colours": HLG}),
        ("varying.mp4", {"times": (0, 2, 3, 10), "rate": 30}),
        ("late.mp4", {"times": (5, 6, 7)}),
    ],
)
def test_a_video_is_shown_as_before(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    before, after = keep(write_film(tmp_path / name, **options))
    assert after == before


def test_hevc_is_written_so_that_quicktime_plays_it(tmp_path: Path) -> None:
    before, after = keep(write_film(tmp_path / "a.mp4", "libx265"))
    assert (before["tag"], after["tag"]) == ("hev1", "hvc1")


@pytest.mark.parametrize(("codec", "format"), [("png", "rgb24"), ("mjpeg", "yuvj422p"), ("mpeg4", "yuv420p")])
def test_other_codecs_become_h264_with_the_same_colours(codec: str, format: str, tmp_path: Path) -> None:
    before, after = keep(write_film(tmp_path / "a.mov", codec, format, colours=(2, 0, 2, 2)))
    assert (before["codec"], after["codec"]) == (codec, "h264")


def test_hdr_keeps_more_steps_than_8_bits_have(tmp_path: Path) -> None:
    ramp = np.linspace(20_000, 40_000, 512)[None, :, None].repeat(64, axis=0).repeat(3, axis=2).astype(np.uint16)
    path = write_film(tmp_path / "a.mp4", "libx265", "yuv420p10le", size=(512, 64), colours=HLG, pixels=ramp)
    keep(path)
    steps = [len(np.unique(np.frombuffer(bytes(decode(file)[0].planes[0]), np.uint16)))
             for file in (path, tmp_path / "out" / "a.mp4")]  # fmt: skip
    assert min(steps) > 240  # of 267 steps; 8 bits have 67 in this range


@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
def test_a_turned_video_of_wide_pixels_comes_out_upright_with_high_pixels(name: str, tmp_path: Path) -> None:
    path = write_film(tmp_path / name, shape=Fraction(4, 3), turn=(90, True))
    translate_video(path, tmp_path / "out" / name, change=lambda pixels: pixels)
    frame = decode(tmp_path / "out" / name)[0]
    assert (frame.width, frame.height, frame.rotation) == (64, 96, 0)
    assert facts(tmp_path / "out" / name)["shape"] == Fraction(3, 4)
    expected = np.fliplr(np.rot90(colour_bars(96, 64)))
    assert np.abs(seen(frame) - expected).mean() < 12


def test_wide_pixels_become_square_in_webm(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mp4", shape=Fraction(4, 3))
    translate_video(path, tmp_path / "a.webm", change=lambda pixels: pixels)
    frame = decode(tmp_path / "a.webm")[0]
    assert (frame.width, frame.height) == (128, 64)


def test_a_hidden_screen_size_does_not_make_pixels_absurd(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mp4", shape=Fraction(1000, 1))
    translate_video(path, tmp_path / "a.webm", change=lambda pixels: pixels)
    assert decode(tmp_path / "a.webm")[0].width == 96


@pytest.mark.parametrize(
    ("name", "codec", "sound", "container"),
    [
        ("a.mkv", "libx264", "libopus", "matroska"),
        ("a.m4v", "libx264", "aac", "mp4"),
        ("a.avi", "libx264", "pcm_s16le", "avi"),
        ("a.mpg", "mpeg2video", "mp2", "mpeg"),
        ("a.vob", "mpeg2video", "mp2", "vob"),
        ("a.m2ts", "libx264", "aac", "mpegts"),
        ("a.ts", "libx264", "aac", "mpegts"),
        ("a.3gp", "libx264", "aac", "3gp"),
        ("a.wmv", "wmv2", "mp2", "asf"),
        ("a.asf", "wmv2", "mp2", "asf"),
        ("a.flv", "flv", "aac", "flv"),
    ],
)
def test_a_video_of_every_common_kind_is_translated(
    name: str, codec: str, sound: str, container: str, tmp_path: Path
) -> None:
    path = write_film(tmp_path / name, codec, sounds=[sound], container=container, times=range(12), size=(176, 144))
    target = tmp_path / "out" / result_name(Path(name))
    summary = translate_files(Translator(Brighter(0), 64), [(path, target)], write=write_picture)
    is_read_only = container not in ("matroska", "mp4")
    assert str(summary) == "translated 1 file" + f"\nnotes:\n  {path}: written as Matroska" * is_read_only
    assert target.suffix == (".mkv" if is_read_only else path.suffix)
    assert np.abs(seen(decode(target)[5]) - seen(decode(path)[5])).mean() < 3
    assert len(sound_of(target)) == len(sound_of(path)) > 1
    assert np.diff(facts(target)["times"]) == pytest.approx([0.04] * 11, abs=0.002)


@pytest.mark.parametrize(
    ("name", "codec", "format"), [("a.webm", "libvpx-vp9", "yuva420p"), ("a.mov", "prores_ks", "yuva444p10le")]
)
def test_transparency_is_said_to_be_left_out(name: str, codec: str, format: str, tmp_path: Path) -> None:
    path = write_film(tmp_path / name, codec, format)
    assert str(translate_video(path, tmp_path / "out" / name, change=lambda pixels: pixels)) == "transparency"


def test_interlacing_is_said_to_be_left_out(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mpg"), "w") as writer:
        track = writer.add_stream("mpeg2video", rate=25)
        track.width, track.height, track.pix_fmt, track.options = 96, 64, "yuv420p", {"flags": "+ilme+ildct"}
        writer.mux(track.encode(av.VideoFrame.from_ndarray(colour_bars(96, 64), "rgb24").reformat(format="yuv420p")))
        writer.mux(track.encode())
    report = translate_video(tmp_path / "a.mpg", tmp_path / "out" / "a.mkv", change=lambda pixels: pixels)
    assert str(report) == "interlacing"


def test_a_video_is_not_written_in_a_format_that_is_only_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be written as \.avi: choose another name with --out"):
        translate_video(tmp_path / "a.mp4", tmp_path / "b.avi", change=lambda pixels: pixels)


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.webm", "a.mkv"])
def test_a_video_carries_a_label_by_which_a_rerun_replaces_it(name: str, tmp_path: Path) -> None:
    path = write_film(tmp_path / name, "libvpx-vp9" if name == "a.webm" else "libx264")
    jobs = [(path, tmp_path / "out" / name)]
    assert not is_labelled(path)
    for label, num_written in ((True, 1), (False, 1), (True, 0)):
        summary = translate_files(Translator(Brighter(0), 64), jobs, write=write_picture, label=label)
        assert summary.num_written == num_written
        assert is_labelled(jobs[0][1]) is (label and num_written == 1)


# --- Before and after


@pytest.mark.parametrize(("options", "size"), [({}, (192, 64)), ({"turn": (90,)}, (128, 96)),
    ({"codec": "libx265", "format": "yuv420p10le", "colours": HLG}, (192, 64))])  # fmt: skip
def test_side_by_side_shows_each_frame_before_and_after(
    options: dict[str, Any], size: tuple[int, int], tmp_path: Path
) -> None:
    path = write_film(tmp_path / "a.mp4", **options)
    translate_video(path, tmp_path / "b.mp4", change=lambda pixels: pixels // 2, side_by_side=True)
    frames = decode(tmp_path / "b.mp4")
    assert [(frame.width, frame.height) for frame in frames] == [size] * 3
    left, right = np.split(seen(frames[0]), 2, axis=1)
    assert np.abs(left - np.rot90(seen(decode(path)[0]), bool(options.get("turn")))).mean() < 8
    assert right.mean() < 0.75 * left.mean()


def test_the_flag_side_by_side_applies_to_videos(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", "libx264")
    translator = Translator(Brighter(), 64, template=TEMPLATE)
    translate_files(translator, [(path, tmp_path / "b.mp4")], write=write_picture, side_by_side=True)
    assert decode(tmp_path / "b.mp4")[0].width == 2 * 480


# --- Damage, and what does not fit


@pytest.mark.parametrize(("damaged", "lost"), [((7,), 1), ((0,), 5), ((4, 5), 5), ((11,), 1)])
def test_damaged_frames_are_left_out_and_counted(damaged: tuple[int, ...], lost: int, tmp_path: Path) -> None:
    path = damage(write_film(tmp_path / "a.mp4", times=range(12), gop=5, sounds=["aac"]), *damaged)
    frames = decode(path)
    report = translate_video(path, tmp_path / "b.mp4", change=lambda pixels: pixels)
    assert report.num_frames == len(frames) == len(decode(tmp_path / "b.mp4"))
    assert report.num_frames + report.num_damaged == 12
    # Without what it is built upon, a frame may come too late for its time stamp.
    times = np.maximum.accumulate([frame.time for frame in frames])
    assert [frame.time for frame in decode(tmp_path / "b.mp4")] == pytest.approx(times, abs=0.001)
    assert sound_of(tmp_path / "b.mp4") == sound_of(path) != []


def test_a_video_that_was_cut_off_is_kept_as_far_as_it_goes(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mp4", times=range(12), gop=5, flags="faststart")
    with av.open(str(path)) as reader:
        end = [packet.pos for packet in reader.demux(video=0) if packet.size][8]
    path.write_bytes(path.read_bytes()[:end])
    report = translate_video(path, tmp_path / "b.mp4", change=lambda pixels: pixels)
    assert report.num_frames == len(decode(path)) >= 6
    assert report.num_frames + report.num_damaged == 12


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.avi", "mjpeg"), ("a.flv", "libx264"), ("a.flv", "flv1")],
)
def test_a_file_that_was_cut_off_says_how_much_of_it_is_missing(name: str, codec: str, tmp_path: Path) -> None:
    format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write_film(tmp_path / name, codec, format, times=range(50), gop=1)
    assert str(translate_video(path, tmp_path / "b.mkv", change=lambda pixels: pixels)) == ""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    report = translate_video(path, tmp_path / "b.mkv", change=lambda pixels: pixels)
    missing = re.search(r"the last (\d\.\d) s, which the file lacks", str(report))
    assert missing
    lost = 50 - report.num_frames - report.num_damaged
    assert float(missing[1]) == pytest.approx(lost / 25, abs=0.11)  # two frames, and rounding to a digit


def test_sound_that_goes_on_after_the_last_frame_is_no_missing_end(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.flv", "flv1", times=range(2), sounds=["aac"])
    with av.open(str(path)) as reader:
        assert reader.duration / av.time_base > 2 * 2 / 25
    assert str(translate_video(path, tmp_path / "b.mkv", change=lambda pixels: pixels)) == ""


def test_a_video_that_is_over_before_it_is_seen_is_refused(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mp4")
    data = bytearray(path.read_bytes())
    struct.pack_into(">I", data, data.index(b"mdhd") + 16, 16_790_016)  # damage: so many time stamps a second
    path.write_bytes(data)
    with pytest.raises(UserError, match="3 frames in less than a millisecond"):
        translate_video(path, tmp_path / "b.mp4", change=lambda pixels: pixels)
    assert not (tmp_path / "b.mp4").exists()


@pytest.mark.parametrize("name", ["b.mkv", "b.mp4"])
def test_a_video_of_one_deep_frame_is_written(name: str, tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mkv", "ffv1", "yuv420p10le", times=[0])
    for _ in range(3):  # libx265 leaves the time at which a lone frame is decoded to chance.
        translate_video(path, tmp_path / name, change=lambda pixels: pixels)
        assert [(frame.pts, frame.format.name) for frame in decode(tmp_path / name)] == [(0, "yuv420p10le")]


def test_the_summary_says_what_was_left_out(tmp_path: Path) -> None:
    path = damage(write_film(tmp_path / "a.mp4", times=range(6), gop=3), 5)
    translator = Translator(Brighter(), 64, template=None)
    summary = translate_files(translator, [(path, tmp_path / "b.mp4")], write=write_picture)
    assert str(summary) == f"translated 1 file\nnotes:\n  {path}: left out: 1 damaged frame"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: damage(path, 0, 1, 2), "not one frame can be read"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz")), "its codec is unknown"),
        (lambda path: path.write_bytes(b""), "not a readable video"),
    ],
)
def test_a_video_without_a_readable_frame_is_an_error_that_says_so(
    spoil: Callable[[Path], Any], reason: str, tmp_path: Path
) -> None:
    spoil(write_film(tmp_path / "a.mp4"))
    with pytest.raises(UserError, match=reason):
        translate_video(tmp_path / "a.mp4", tmp_path / "out" / "a.mp4", change=lambda pixels: pixels)
    assert not (tmp_path / "out").exists()


def test_absurd_sizes_in_a_header_are_an_error_and_allocate_nothing(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mov", "png", "rgb24")
    data = path.read_bytes().replace(struct.pack(">HH", 96, 64), b"\xff\xff\xff\xff")
    path.write_bytes(data.replace(struct.pack(">II", 96, 64), struct.pack(">II", 1 << 30, 1 << 30)))
    with pytest.raises(UserError, match=r"too large: 65535x65535 px|not one frame can be read"):
        translate_video(path, tmp_path / "b.mov", change=lambda pixels: pixels)


def test_a_sound_track_of_an_unknown_codec_is_left_out_and_the_others_stay(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mov", sounds=["aac", "pcm_s16le"])
    path.write_bytes(path.read_bytes().replace(b"sowt", b"zzzz"))
    report = translate_video(path, tmp_path / "b.mov", change=lambda pixels: pixels)
    assert str(report) == "audio track 2 (unknown codec)"
    assert kinds(tmp_path / "b.mov") == ["video h264", "audio aac"]


def kinds(path: Path) -> list[str]:
    """The kind and codec of each track."""
    with av.open(str(path)) as reader:
        return [f"{stream.type} {stream.codec_context.codec.canonical_name}" for stream in reader.streams]


def add_subtitle(writer: Any) -> None:
    """Add a track with one line, as MP4 files store it."""
    track = writer.add_stream("mov_text")
    track.metadata["language"] = "deu"
    names = "Name Fontname Fontsize PrimaryColour SecondaryColour OutlineColour BackColour Bold Italic Underline"
    names += (
        " StrikeOut ScaleX ScaleY Spacing Angle BorderStyle Outline Shadow Alignment MarginL MarginR MarginV Encoding"
    )
    values = "Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,0"
    head = f"[V4+ Styles]\nFormat: {', '.join(names.split())}\nStyle: {values}\n"
    track.codec_context.subtitle_header = head.encode()
    packet = av.Packet(b"\0\5Hallo")
    packet.stream, packet.pts, packet.dts, packet.duration, packet.time_base = track, 0, 0, 100, Fraction(1, 1000)
    writer.mux(packet)


def test_subtitles_and_languages_stay(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mp4", sounds=["aac"], more=add_subtitle)
    assert str(translate_video(path, tmp_path / "b.mp4", change=lambda pixels: pixels)) == ""
    assert kinds(tmp_path / "b.mp4") == kinds(path)
    with av.open(str(tmp_path / "b.mp4")) as reader:
        assert reader.streams[2].language == "deu"
        assert b"Hallo" in b"".join(bytes(packet) for packet in reader.demux(subtitles=0))


def test_attachments_covers_and_what_the_container_cannot_hold_are_left_out(tmp_path: Path) -> None:
    cover = io.BytesIO()
    Image.new("RGB", (8, 8)).save(cover, "PNG")

    def attach(writer: Any) -> None:
        writer.add_attachment("cover.png", "image/png", cover.getvalue())
        writer.add_attachment("a.ttf", "application/x-truetype-font", b"123")

    path = write_film(tmp_path / "a.webm", "libvpx-vp9", sounds=["libopus", "aac"], container="matroska", more=attach)
    report = translate_video(path, tmp_path / "b.webm", change=lambda pixels: pixels)
    assert str(report) == "audio track 2 (aac does not fit into webm), cover picture, attachment track 1"
    assert kinds(tmp_path / "b.webm") == ["video vp9", "audio opus"]


@pytest.mark.parametrize("name", ["b.mov", "b.webm"])
def test_time_codes_and_further_videos_are_left_out(name: str, tmp_path: Path) -> None:
    def add_more(writer: Any) -> None:
        writer.streams.video[0].metadata["timecode"] = "01:00:00:00"
        second = writer.add_stream("mpeg4", rate=25)
        second.width, second.height = 32, 32
        writer.mux(second.encode(av.VideoFrame(32, 32, "yuv420p")))
        writer.mux(second.encode())

    path = write_film(tmp_path / "a.mov", more=add_more)
    report = translate_video(path, tmp_path / name, change=lambda pixels: pixels)
    assert str(report) == "video track 2, data track 1"
    assert len(kinds(tmp_path / name)) == 1


def test_sound_whose_time_stamps_go_backwards_loses_only_the_packets_in_question(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.webm", "libvpx-vp9", sounds=["libopus"])
    with av.open(str(path)) as reader:
        time = [packet.pts for packet in reader.demux(audio=0) if packet.size][3]
    time += 7  # The file counts from before the encoder's delay of 6.5 ms.
    early, late = (b"\x82" + struct.pack(">h", ms) + b"\x80" for ms in (time, time + 70))  # heads of track 2's blocks
    data = path.read_bytes()
    assert data.count(early) == 1
    path.write_bytes(data.replace(early, late))
    report = translate_video(path, tmp_path / "b.mp4", change=lambda pixels: pixels)
    assert str(report) == f"{report.num_lost} packets of sound"
    assert len(sound_of(tmp_path / "b.mp4")) == len(sound_of(path)) - report.num_lost


# --- Interruptions


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, ZeroDivisionError])
def test_an_interrupted_translation_leaves_no_file(error: type[BaseException], tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mp4", times=range(100), sounds=["aac"])
    calls = []

    def fail(pixels: np.ndarray) -> np.ndarray:
        calls.append(1)
        if len(calls) > 90:  # By then the encoder has delivered packets, and the file has been begun.
            raise error
        return pixels

    with pytest.raises(error):
        translate_video(path, tmp_path / "out" / "a.mp4", change=fail)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_a_full_disk_is_an_error_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_film(tmp_path / "a.mp4")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f".b.mp4.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"could not write .*No space left"):
        translate_video(path, tmp_path / "out" / "b.mp4", change=lambda pixels: pixels)
    assert list((tmp_path / "out").iterdir()) == []
