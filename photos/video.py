"""Translate video files frame by frame with PyAV (requirements-extra.txt), and keep the rest of them as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from photos.frames import (
    apply_change,
    hdr_options,
    is_deep,
    ordinary_view,
    read_colours,
    read_pixels,
    swaps_sides,
    write_pixels,
)
from photos.label import VIDEO_LABEL
from photos.photo import Pixels
from photos.video_files import (
    Look,
    add_copy,
    add_encoder,
    create_video,
    find_video,
    missing_seconds,
    open_video,
    read_first,
    read_parts,
    sort_tracks,
)
from utils import UserError, atomic_write, printable

CONTAINERS = {  # FFmpeg's names of the formats in which results are written
    ".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".webm": "webm", ".mkv": "matroska",
}  # fmt: skip
MIN_SECONDS = 0.001  # An .mp4 file counts in milliseconds, and players show nothing of a shorter video.
# Other formats are only read: Matroska holds their sound, and time stamps, which some of them have not.
ONLY_READ = (".avi", ".mpg", ".mpeg", ".vob", ".mts", ".m2ts", ".ts", ".3gp", ".wmv", ".asf", ".flv", ".ogv")
VIDEO_SUFFIXES = (*CONTAINERS, *ONLY_READ)
SQUARE = ("webm", "matroska")  # These can tell the shape of pixels, but PyAV cannot write it into them.
MAX_SHAPE = 4  # A pixel is at most this many times as long as wide, or the file is believed to be wrong.
FrameChange = Callable[[Pixels], Pixels]  # It maps a frame, (H, W, 3) uint8 RGB, to another of the same shape.


@dataclass
class VideoReport:
    """What became of a video.

    Attributes:
        num_frames: how many frames were read and written.
        num_damaged: how many parts of the video could not be read, usually a frame each.
        num_lost: how many packets of sound and subtitles could not be copied.
        left_out: the other parts that the result lacks, in words.
    """

    num_frames: int = 0
    num_damaged: int = 0
    num_lost: int = 0
    left_out: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """What the result lacks; an empty text if nothing."""
        parts = list(self.left_out)
        if self.num_lost:
            parts.insert(0, "1 packet of sound" if self.num_lost == 1 else f"{self.num_lost} packets of sound")
        if self.num_damaged:
            parts.insert(0, "1 damaged frame" if self.num_damaged == 1 else f"{self.num_damaged} damaged frames")
        return ", ".join(parts)


def result_name(source: Path) -> Path:
    """The name of the result of a file: its own or, for a video of a format that is only read, with .mkv added."""
    return source.with_name(f"{source.name}.mkv") if source.suffix.lower() in ONLY_READ else source


def translate_video(
    source: Path, target: Path, *, change: FrameChange, side_by_side: bool = False, label: bool = True
) -> VideoReport:
    """Write a copy of a video in which every frame is changed.

    Time stamps, colours, the shape of the pixels, sound and subtitles stay the same. Damaged frames and tracks that
    cannot be copied are left out.

    Args:
        source: the video to read.
        target: the file to write; its name ends in one of CONTAINERS.
        change: maps an upright frame, (H, W, 3) uint8 RGB, to its new content, of the same shape and dtype.
        side_by_side: write each frame with its old content on the left and its new content on the right.
        label: say in the file that a trained model may have changed it.

    Raises:
        UserError: PyAV is not installed, not one frame of the source can be read, or the target cannot be written.
    """
    try:
        import av
    except ImportError:
        raise UserError("videos need PyAV: pip install -r requirements-extra.txt") from None
    container = CONTAINERS.get(target.suffix.lower())
    if not container:
        raise UserError(f"videos cannot be written as {target.suffix}: choose another name with --out, such as a.mkv")
    try:
        first = read_first(source)
        copied, left_out = sort_tracks(source, container)
    except av.FFmpegError as error:
        raise UserError(f"not a readable video: {error.strerror}") from error
    if first.interlaced_frame:
        left_out.append("interlacing")
    report = VideoReport(left_out=left_out)
    try:
        with (
            atomic_write(target) as temporary,
            open_video(source) as reader,
            create_video(temporary, container, comment=VIDEO_LABEL if label else "") as writer,
        ):
            video = find_video(reader)
            frames = _Frames(first, video, change=change, side_by_side=side_by_side, square=container in SQUARE)
            _convert(reader, writer, frames=frames, name=printable(source.name), report=report, copied=copied)
    except av.FFmpegError as error:
        raise UserError(f"the result cannot be written as {container}: {error.strerror}") from error
    return report


class _Frames:
    """Changes the frames of a video; all results have the size, depth and colours of the first.

    Args:
        first: the first frame.
        video: its track, which knows the shape of the pixels and the unit of the time stamps.
        change: see `translate_video`; `side_by_side`, too.
        square: resize the frames so that their pixels become square.
    """

    def __init__(self, first: Any, video: Any, *, change: FrameChange, side_by_side: bool, square: bool) -> None:
        self.change = change
        self.side_by_side = side_by_side
        self.time_base: Fraction = video.time_base
        self.time: int | None = None  # the time stamp of the newest frame
        self.end = 0.0  # when the newest frame ends, s
        self.width, self.height = first.width, first.height
        shape = video.sample_aspect_ratio or Fraction(1)
        if not 1 / MAX_SHAPE <= shape <= MAX_SHAPE:
            shape = Fraction(1)
        if square:
            self.width, self.height = round(first.width * max(shape, 1)), round(first.height / min(shape, 1))
            shape = Fraction(1)
        turned = swaps_sides(first)
        width, height = (self.height, self.width) if turned else (self.width, self.height)
        self.look = Look(
            2 * width if side_by_side else width, height, shape=1 / shape if turned else shape,
            colours=read_colours(first), deep=is_deep(first), hdr_options=hdr_options(first),
        )  # fmt: skip

    def __call__(self, frame: Any, format: str) -> Any:
        """The changed frame in a pixel format."""
        pixels = read_pixels(frame, width=self.width, height=self.height, deep=self.look.deep)
        if self.look.deep:
            view = ordinary_view(pixels, self.look.colours)
            result = apply_change(pixels, self.look.colours, before=view, after=self.change(view))
        else:
            result = self.change(pixels)
        if self.side_by_side:
            result = np.concatenate([pixels, result], axis=1)
        changed = write_pixels(result, frame, colours=self.look.colours, format=format)
        changed.time_base, changed.pts, changed.duration = self.time_base, self._next_time(frame), frame.duration
        self.end = float((changed.pts + (frame.duration or 0)) * self.time_base)
        return changed

    def _next_time(self, frame: Any) -> int:
        """The frame's time stamp. After damage it may be missing, or repeat an earlier one, which encoders refuse."""
        if self.time is None:
            self.time = frame.pts or 0
        elif frame.pts is None:
            self.time += frame.duration or 1
        else:
            self.time = max(frame.pts, self.time + 1)
        return self.time


def _convert(
    reader: Any, writer: Any, *, frames: _Frames, name: str, report: VideoReport, copied: Sequence[int]
) -> None:
    """Read, change and write all frames, and copy the packets of the other tracks."""
    import av

    video = find_video(reader)
    track = add_encoder(writer, video, frames.look)
    copies = {index: add_copy(writer, reader.streams[index]) for index in copied}
    others_end = 0.0
    with tqdm(total=video.frames or None, desc=name, unit=" frames", leave=False, disable=None) as bar:
        for part in read_parts(reader, video, *(reader.streams[index] for index in copied)):
            if isinstance(part, Exception):
                report.num_damaged += 1
            elif isinstance(part, av.Packet):
                others_end = max(others_end, float(((part.pts or 0) + (part.duration or 0)) * (part.time_base or 0)))
                part.stream = copies[part.stream_index]
                try:
                    writer.mux(part)
                except ValueError:  # FFmpeg's errors about a packet are of this class, those about the disk are not.
                    report.num_lost += 1
            else:
                writer.mux(track.encode(frames(part, track.pix_fmt)))
                report.num_frames += 1
                bar.update()
    if report.num_frames > 1 and frames.end < MIN_SECONDS:
        raise UserError(f"its time stamps make no sense: {report.num_frames} frames in less than a millisecond")
    for packet in track.encode():
        if report.num_frames == 1:  # libx265 does not set when a lone frame is to be decoded.
            packet.dts = packet.pts
        writer.mux(packet)
    if missing := missing_seconds(video, frames.end, others_end=others_end, num_damaged=report.num_damaged):
        report.left_out.append(f"the last {missing:.1f} s, which the file lacks")
