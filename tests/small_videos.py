"""Small videos of every kind, made with PyAV, and the facts that a player goes by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

av = pytest.importorskip("av", reason="PyAV is in requirements-extra.txt")
NUM_FRAMES = 3
SWSCALE_MATRICES = {1: 1, 5: 5, 6: 5, 9: 9}


def colour_bars(width: int, height: int) -> np.ndarray:
    """Coloured bars and, only in the upper left corner, a white area: (height, width, 3) uint8 RGB."""
    colours = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 170, 140), (30, 30, 30), (220, 220, 220)]
    pixels = np.array(colours, np.uint8)[np.arange(width) * len(colours) // width][None].repeat(height, axis=0)
    pixels[: height // 4, : width // 4] = 255
    return pixels


def write_film(
    path: Path, codec: str = "libx264", format: str = "yuv420p", *, size: tuple[int, int] = (96, 64),
    colours: tuple[int, int, int, int] = (1, 1, 1, 1), times: Sequence[int] = range(NUM_FRAMES), gop: int = 250,
    rate: int = 25, container: str | None = None, pixels: np.ndarray | None = None, tag: str | None = None,
    shape: Fraction | None = None, turn: tuple[Any, ...] = (), sounds: Sequence[str] = (), x265: str = "",
    flags: str = "", more: Callable[[Any], None] = lambda writer: None,
) -> Path:  # fmt: skip
    """Write a video; `colours` are the codes of matrix, range, primaries and transfer, `turn` is a display matrix."""
    matrix, color_range, primaries, transfer = colours
    with av.open(str(path), "w", format=container, options={"movflags": flags} if flags else {}) as writer:
        track = writer.add_stream(codec, rate=rate)
        track.options = {"crf": "6", "g": str(gop), "x265-params": f"log-level=none{x265}"}
        track.width, track.height, track.pix_fmt = *size, format
        encoder = track.codec_context
        encoder.time_base = Fraction(1, rate)
        encoder.colorspace, encoder.color_range = matrix, color_range
        encoder.color_primaries, encoder.color_trc = primaries, transfer
        if tag:
            encoder.codec_tag = tag
        if shape:
            encoder.sample_aspect_ratio = shape
        if turn:
            track.set_display_rotation(*turn)
        voices = [writer.add_stream(name, rate=48000) for name in sounds]
        more(writer)
        picture = colour_bars(*size) if pixels is None else pixels
        for time in times:
            rgb = av.VideoFrame.from_ndarray(picture, "rgb24" if picture.dtype == np.uint8 else "rgb48le")
            frame = rgb.reformat(format=format, src_color_range=2, dst_colorspace=SWSCALE_MATRICES.get(matrix, 5),
                                 dst_color_range=color_range or 1)  # fmt: skip
            frame.colorspace, frame.color_range = matrix, color_range
            frame.pts, frame.time_base = time, Fraction(1, rate)
            writer.mux(track.encode(frame))
        writer.mux(track.encode())
        for voice in voices:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 9600), np.float32), "fltp", "mono")
            silence.sample_rate = 48000
            resampler = av.AudioResampler(format=voice.codec_context.format, layout="mono", rate=48000)
            for part in resampler.resample(silence):
                writer.mux(voice.encode(part))
            writer.mux(voice.encode())
    return path


def decode(path: Path) -> list[Any]:
    """The frames of the first video track that can be read."""
    frames = []
    with av.open(str(path)) as reader:
        for packet in reader.demux(video=0):
            try:
                frames += packet.decode()
            except av.FFmpegError:
                continue
    return frames


def seen(frame: Any) -> np.ndarray:
    """A frame as a player shows it, by its matrix and range, not turned: (H, W, 3) int RGB."""
    rgb = frame.reformat(format="rgb24", src_colorspace=SWSCALE_MATRICES.get(int(frame.colorspace), 5),
                         src_color_range=int(frame.color_range) or 1, dst_color_range=2)  # fmt: skip
    return np.asarray(rgb.to_ndarray(), int)


def facts(path: Path) -> dict[str, Any]:
    """What a player reads of a video, besides its pixels."""
    frames = decode(path)
    with av.open(str(path)) as reader:
        video = reader.streams.video[0]
        first = frames[0]
        return {
            "codec": video.codec_context.codec.canonical_name,
            "tag": video.codec_context.codec_tag.strip("\0"),
            "format": first.format.name,
            "colours": tuple(map(int, (first.colorspace, first.color_range, first.color_primaries, first.color_trc))),
            "shape": video.sample_aspect_ratio or 1,
            "times": [round(float(frame.time), 3) for frame in frames],
            "duration": round(reader.duration / 1e6, 2),
            "light": {
                key: bytes(first.side_data[key])
                for key in ("MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL")
                if key in first.side_data
            },
        }


def damage(path: Path, *numbers: int) -> Path:
    """Overwrite some packets of an .mp4 or .mov file's video."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as reader:
        places = [(packet.pos, packet.size) for packet in reader.demux(video=0) if packet.size]
    for position, size in (places[number] for number in numbers):
        data[position : position + size] = b"\xff" * size
    path.write_bytes(data)
    return path
