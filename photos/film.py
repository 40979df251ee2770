"""A film of pictures that show how something developed, written with PyAV (requirements-extra.txt)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from photos.video_files import create_video
from utils import atomic_write, printable, read_image

MAX_PICTURES = 300  # A film shows at most this many pictures, evenly spread over all of them.
RATE = 10  # Frames a second.
MANY_FRAMES = 150  # Each picture is shown for several frames as long as the film has fewer than this,
MAX_FRAMES_EACH = 5  # and for at most this many.
FRAMES_AT_THE_END = 20  # The last picture stays for so many frames more.
MAX_SIDE = 1280  # Larger pictures are reduced to this side, px.
# At most 4 million bits a second, which makes 16 MB for 32 seconds.
ENCODING = {"preset": "veryfast", "crf": "20", "maxrate": "4M", "bufsize": "8M"}
MISSING_PYAV = "a film of the samples needs PyAV, which is not installed; run: pip install av"


def make_film(pictures: Sequence[Path], target: Path) -> str:
    """Make a film of pictures, of at most 32 seconds.

    Args:
        pictures: image files, at least one, in the order of the film. It has the size of the last one, and others are
            fitted into that on white.
        target: the .mp4 file to write; an existing one is replaced.

    Returns:
        A line that says where the film is, or why there is none.
    """
    if find_spec("av") is None:
        return MISSING_PYAV
    import av

    try:
        with atomic_write(target) as temporary:
            _write(_evenly_spread(pictures), temporary)
    except (av.FFmpegError, OSError, SyntaxError, ValueError) as error:  # a damaged picture, no encoder, a full disk
        return f"there is no film of the samples: {printable((str(error) or repr(error)).splitlines()[0])}"
    return f"the samples as a film: {printable(target)}"


def _write(pictures: Sequence[Path], target: Path) -> None:
    frames_each = max(1, min(MAX_FRAMES_EACH, MANY_FRAMES // len(pictures)))
    size = _frame_size(read_image(pictures[-1]).size)
    with create_video(target, "mp4") as writer:
        track = writer.add_stream("libx264", rate=RATE, options=ENCODING)
        track.width, track.height, track.pix_fmt = *size, "yuv420p"
        for number, picture in enumerate(pictures, 1):
            frame = _frame_of(picture, size)
            is_last = number == len(pictures)
            for _ in range(frames_each + FRAMES_AT_THE_END if is_last else frames_each):
                writer.mux(track.encode(frame))
        writer.mux(track.encode())


def _frame_of(picture: Path, size: tuple[int, int]) -> Any:
    """A picture as a frame of this size, fitted into it on white."""
    import av

    image = ImageOps.pad(read_image(picture), size, Image.Resampling.LANCZOS, color="white")
    return av.VideoFrame.from_ndarray(np.asarray(image), "rgb24")


def _evenly_spread(pictures: Sequence[Path]) -> list[Path]:
    """All of these, or MAX_PICTURES of them, the first and the last among them."""
    places = np.linspace(0, len(pictures) - 1, min(len(pictures), MAX_PICTURES))
    return [pictures[index] for index in places.round().astype(int)]


def _frame_size(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of a film, px: those of its pictures, at most MAX_SIDE and even, as the encoder requires."""
    scale = min(1.0, MAX_SIDE / max(size))
    width, height = (max(2, round(side * scale) // 2 * 2) for side in size)
    return width, height
