"""Translate video files frame by frame with PyAV (requirements-extra.txt), and keep their sound and time stamps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from photos.faces import Face
from utils import UserError, atomic_write, printable

VIDEO_SUFFIXES = (".mp4", ".mov", ".webm")
# Videos with other codecs are written as H.264, or as VP9 in .webm files.
ENCODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9", "av1": "libsvtav1", "hevc": "libx265"}
QUALITY = {"crf": "18"}  # At this constant rate factor the loss is hardly visible.
SAME_FACE = 1.0  # Faces in successive frames are the same if they are closer than this, in eye distances.
STILL_FACE = 0.02  # A face that moves less than this, in eye distances a frame, is smoothed most.
MOVING_FACE = 0.2  # A face that moves more than this, in eye distances a frame, is not smoothed.
STILL_WEIGHT = 0.2  # The newest landmarks of a still face have this weight, those of the frame before the rest.

FrameChange = Callable[[np.ndarray], np.ndarray]  # It maps a frame, (H, W, 3) uint8 RGB, to another of the same shape.


class FaceSmoother:
    """Steady landmarks over the frames of a video: the less a face moves, the more the earlier frames count."""

    def __init__(self) -> None:
        self.faces: list[Face] = []

    def __call__(self, faces: Sequence[Face]) -> list[Face]:
        """The faces of the next frame, each drawn towards its position in the frame before."""
        self.faces = [self._smooth(face) for face in faces]
        return self.faces

    def _smooth(self, face: Face) -> Face:
        before = min(self.faces, key=lambda other: mean_move(face, other), default=None)
        if before is None:
            return face
        move = mean_move(face, before)
        if move > SAME_FACE:
            return face
        speed = np.clip((move - STILL_FACE) / (MOVING_FACE - STILL_FACE), 0, 1)
        weight = STILL_WEIGHT + (1 - STILL_WEIGHT) * speed
        return Face(weight * face.landmarks + (1 - weight) * before.landmarks, face.score)


def mean_move(face: Face, before: Face) -> float:
    """The mean distance between the landmarks of two faces, in eye distances of the first."""
    return float(np.linalg.norm(face.landmarks - before.landmarks, axis=1).mean() / face.eye_distance)


def translate_video(source: Path, target: Path, *, change: FrameChange) -> int:
    """Write a copy of a video in which every frame is changed; time stamps and sound stay the same.

    Args:
        source: the video to read.
        target: the file to write; its name ends in one of VIDEO_SUFFIXES.
        change: maps an upright frame, (H, W, 3) uint8 RGB, to its new content, of the same shape and dtype.

    Returns:
        The number of frames.

    Raises:
        UserError: PyAV is not installed, the source is not a readable video, or the target cannot be written.
    """
    try:
        import av
    except ImportError:
        raise UserError("videos need PyAV: pip install -r requirements-extra.txt") from None
    try:
        with av.open(str(source)) as reader:
            height, width = upright(next(reader.decode(video=0))).shape[:2]
        with atomic_write(target) as temporary, av.open(str(source)) as reader:
            container = target.suffix.lower().removeprefix(".")
            with av.open(str(temporary), "w", format=container) as writer:
                encoder = _add_encoder(writer, reader.streams.video[0], width, height)
                return _convert(reader, writer, encoder, change, printable(source.name))
    except (av.FFmpegError, IndexError, StopIteration) as error:
        raise UserError(f"not a readable video: {str(error) or 'it has no frames'}") from error


def _convert(reader: Any, writer: Any, encoder: Any, change: FrameChange, name: str) -> int:
    """Decode, change and encode the first video stream, and copy the sound packet by packet; return the frame count."""
    video = reader.streams.video[0]
    video.thread_type = "AUTO"
    sound = {stream.index: writer.add_stream_from_template(stream) for stream in reader.streams.audio}
    num_frames = 0
    with tqdm(total=video.frames or None, desc=name, unit=" frames", leave=False, disable=None) as bar:
        for packet in reader.demux(video, *reader.streams.audio):
            if packet.stream.index not in sound:
                for frame in packet.decode():
                    writer.mux(encoder.encode(_as_frame(frame, change(upright(frame)))))
                    num_frames += 1
                    bar.update()
            elif packet.dts is not None:  # An empty packet without a time stamp ends each stream.
                packet.stream = sound[packet.stream.index]
                writer.mux(packet)
    writer.mux(encoder.encode())
    return num_frames


def upright(frame: Any) -> np.ndarray:
    """A frame's pixels, (H, W, 3) uint8 RGB, rotated as players rotate them: phones store upright videos sideways."""
    pixels: np.ndarray = np.rot90(frame.to_ndarray(format="rgb24"), round(getattr(frame, "rotation", 0) / 90))
    return np.ascontiguousarray(pixels)


def _add_encoder(writer: Any, video: Any, width: int, height: int) -> Any:
    """Add a video stream of this size, px, with the frame rate, time base and, if possible, codec of the input."""
    name = ENCODERS.get(video.codec_context.name, "libvpx-vp9" if writer.format.name == "webm" else "libx264")
    encoder = writer.add_stream(name, rate=video.average_rate or video.guessed_rate, options=QUALITY)
    encoder.width = width
    encoder.height = height
    has_even_sides = width % 2 == 0 and height % 2 == 0
    encoder.pix_fmt = "yuv420p" if has_even_sides else "yuv444p"  # yuv420p halves the sides of the colour planes.
    encoder.codec_context.time_base = video.time_base
    return encoder


def _as_frame(like: Any, pixels: np.ndarray) -> Any:
    """A video frame with these pixels and another frame's time stamp."""
    frame = type(like).from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    frame.pts = like.pts
    frame.time_base = like.time_base
    return frame
