"""Video files frame by frame, through PyAV (requirements-extra.txt): same size, rate, number of frames and sound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from photos.faces import Face
from utils import UserError, atomic_write, printable

VIDEO_SUFFIXES = (".mp4", ".mov", ".webm")
ENCODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9", "av1": "libsvtav1", "hevc": "libx265"}  # all others become H.264
QUALITY = {"crf": "18"}  # nearly without visible loss
SAME_FACE = 1.0  # eye distances that a face may move from one frame to the next
STILL_FACE = 0.02  # A face that moves less than this, in eye distances a frame, is smoothed most.
MOVING_FACE = 0.2  # A face that moves more than this, in eye distances a frame, is not smoothed.
STEADIEST = 0.2  # share of the newest landmarks in a face that stands still


class FaceSmoother:
    """Steadies landmarks over the frames of a video: the less a face moves, the more earlier frames count."""

    def __init__(self) -> None:
        self.faces: list[Face] = []

    def __call__(self, faces: Sequence[Face]) -> list[Face]:
        """The faces of the next frame, each drawn towards where it was in the last one."""
        self.faces = [self._steady(face) for face in faces]
        return self.faces

    def _steady(self, face: Face) -> Face:
        moves = [(mean_move(face, before), before) for before in self.faces]
        move, before = min(moves, key=lambda pair: pair[0], default=(np.inf, face))
        if move > SAME_FACE:
            return face
        share = np.clip(STEADIEST + (1 - STEADIEST) * (move - STILL_FACE) / (MOVING_FACE - STILL_FACE), STEADIEST, 1)
        return Face(share * face.landmarks + (1 - share) * before.landmarks, face.score)


def mean_move(face: Face, before: Face) -> float:
    """How far the landmarks are from those of another face, in eye distances."""
    return float(np.linalg.norm(face.landmarks - before.landmarks, axis=1).mean() / face.eye_distance)


def translate_video(source: Path, target: Path, change: Callable[[np.ndarray], np.ndarray]) -> int:
    """Write a video with every frame changed; its time stamps and its sound are those of the source.

    Args:
        source, target: paths that end in one of VIDEO_SUFFIXES.
        change: takes and gives an upright frame, (H, W, 3) uint8 RGB.

    Returns:
        The number of frames.

    Raises:
        UserError: PyAV is not installed, or the file has no video that it can read.
    """
    try:
        import av
    except ImportError:
        raise UserError("videos need PyAV: pip install -r requirements-extra.txt") from None
    try:
        with av.open(str(source)) as reader:
            height, width = upright(next(reader.decode(video=0))).shape[:2]
        with atomic_write(target) as temporary, av.open(str(source)) as reader:
            kind = target.suffix.lower().removeprefix(".")
            with av.open(str(temporary), "w", format=kind) as writer:
                encoder = _add_encoder(writer, reader.streams.video[0], width, height)
                return _convert(reader, writer, encoder, change, printable(source.name))
    except (av.FFmpegError, IndexError, StopIteration) as error:
        raise UserError(f"no video that can be read: {str(error) or 'it has no frames'}") from error


def _convert(reader: Any, writer: Any, encoder: Any, change: Callable[[np.ndarray], np.ndarray], name: str) -> int:
    """Decode, change and encode the first video stream; pass the packets of the sound on as they are."""
    video = reader.streams.video[0]
    video.thread_type = "AUTO"
    sound = {stream.index: writer.add_stream_from_template(stream) for stream in reader.streams.audio}
    count = 0
    with tqdm(total=video.frames or None, desc=name, unit=" frames", leave=False, disable=None) as bar:
        for packet in reader.demux(video, *reader.streams.audio):
            if packet.stream.index not in sound:
                for frame in packet.decode():
                    writer.mux(encoder.encode(_as_frame(frame, change(upright(frame)))))
                    count += 1
                    bar.update()
            elif packet.dts is not None:  # else the empty packet that ends a stream
                packet.stream = sound[packet.stream.index]
                writer.mux(packet)
    writer.mux(encoder.encode())
    return count


def upright(frame: Any) -> np.ndarray:
    """A frame's pixels, (H, W, 3) uint8 RGB, turned as players turn it: telephones film on their side."""
    pixels: np.ndarray = np.rot90(frame.to_ndarray(format="rgb24"), round(getattr(frame, "rotation", 0) / 90))
    return np.ascontiguousarray(pixels)


def _add_encoder(writer: Any, video: Any, width: int, height: int) -> Any:
    """An output stream like the input: codec where it can be written, rate, time base; size as the upright frames."""
    name = ENCODERS.get(video.codec_context.name, "libvpx-vp9" if writer.format.name == "webm" else "libx264")
    encoder = writer.add_stream(name, rate=video.average_rate or video.guessed_rate, options=QUALITY)
    encoder.width, encoder.height = width, height
    encoder.pix_fmt = "yuv420p" if width % 2 == height % 2 == 0 else "yuv444p"  # the first halves the sides
    encoder.codec_context.time_base = video.time_base
    return encoder


def _as_frame(like: Any, pixels: np.ndarray) -> Any:
    """A video frame of these pixels with another frame's time stamp."""
    frame = type(like).from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    frame.pts, frame.time_base = like.pts, like.time_base
    return frame
