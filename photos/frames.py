"""The pixels of a video's frames, upright and in the colours that players show, and back to frames.

Codes of colours are those of ITU-T H.273, which FFmpeg, MP4 and WebM share.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from images.light import HLG, PQ, from_hdr, from_srgb, to_hdr, to_srgb
from photos.photo import Pixels

UNKNOWN = 2  # In H.273 this code says that a primary, transfer or matrix is not specified.
RESERVED = (0, 3)  # These have no meaning as primaries or transfer; some encoders refuse them.
LIMITED, FULL = 1, 2  # FFmpeg's codes of the range: 8-bit black and white are 16 and 235, or 0 and 255.
BT709, BT601, BT2020 = 1, 6, 9  # These are the usual matrices. BT2020 stands for the primaries, too.
HD_HEIGHT = 720  # Players show videos without a matrix by BT.709 from this height, px, and by BT.601 below.
SWSCALE_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}  # H.273 to the numbers by which swscale knows its matrices.
BT2020_TO_BT709 = ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187))  # BT.2087
DeepPixels = np.ndarray  # A frame, (H, W, 3) uint16 RGB, 0 to 65535.


@dataclass(frozen=True)
class Colours:
    """How the numbers of a frame become colours.

    Attributes:
        matrix: how red, green and blue are mixed; UNKNOWN if the frame does not say.
        range: LIMITED, FULL, or 0 if the frame does not say.
        primaries: which red, green and blue these are; UNKNOWN if the frame does not say.
        transfer: how much light a value stands for; UNKNOWN if the frame does not say.
        swscale_matrix: the matrix by which swscale converts, in its own numbers.
        swscale_range: the range by which swscale converts: LIMITED or FULL.
    """

    matrix: int
    range: int
    primaries: int
    transfer: int
    swscale_matrix: int
    swscale_range: int

    @property
    def is_hdr(self) -> bool:
        """Whether the values reach far above the white of ordinary video."""
        return self.transfer in (PQ, HLG)


def read_colours(frame: Any) -> Colours:
    """The colours in which a copy of a frame, as YUV, is to be converted and labelled.

    What a frame does not say stays unsaid, and is taken as players take it. swscale does not know a few rare matrices;
    for them, too, the usual one is taken, in both directions, so that unchanged pixels keep their values.
    """
    usual = BT709 if frame.height >= HD_HEIGHT else BT601
    matrix = int(frame.colorspace)
    color_range = int(frame.color_range)
    if frame.format.is_rgb or frame.format.has_palette:  # They have no matrix, but their copies do.
        matrix, color_range = usual, LIMITED
    elif frame.format.name.startswith("yuvj"):
        color_range = FULL
    return Colours(
        matrix=UNKNOWN if matrix in RESERVED else matrix,
        range=color_range,
        primaries=UNKNOWN if frame.color_primaries in RESERVED else int(frame.color_primaries),
        transfer=UNKNOWN if frame.color_trc in RESERVED else int(frame.color_trc),
        swscale_matrix=SWSCALE_MATRICES.get(matrix, SWSCALE_MATRICES[usual]),
        swscale_range=color_range or LIMITED,
    )


def is_deep(frame: Any) -> bool:
    """Whether 8 bits a channel are too few for a frame: it has more, or is HDR."""
    return max(component.bits for component in frame.format.components) > 8 or read_colours(frame).is_hdr


def read_pixels(frame: Any, *, width: int, height: int, deep: bool) -> Pixels | DeepPixels:
    """A frame's pixels, resized to these sides, px, and turned upright: uint16 if deep, otherwise uint8."""
    colours = read_colours(frame)
    rgb = frame.reformat(
        width, height, "rgb48le" if deep else "rgb24", src_colorspace=colours.swscale_matrix,
        src_color_range=FULL if frame.format.is_rgb else colours.swscale_range, dst_color_range=FULL,
    )  # fmt: skip
    return turn_upright(rgb.to_ndarray(), frame)


def turn_upright(pixels: np.ndarray, frame: Any) -> np.ndarray:
    """Turn and mirror (H, W, C) pixels as players do: phones store upright videos sideways, and selfies mirrored.

    The frame's display matrix maps (x, y) to (a x + c y, b x + d y); it is rounded to the nearest quarter turn.
    """
    if swaps_sides(frame):
        _, b, c, _ = _display_matrix(frame)
        pixels, flip_x, flip_y = pixels.swapaxes(0, 1), c < 0, b < 0
    else:
        a, _, _, d = _display_matrix(frame)
        flip_x, flip_y = a < 0, d < 0
    return np.ascontiguousarray(pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


def swaps_sides(frame: Any) -> bool:
    """Whether a frame's width becomes its height when it is turned upright."""
    a, b, c, d = _display_matrix(frame)
    return abs(b) + abs(c) > abs(a) + abs(d)


def _display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """The numbers a, b, c, d of a frame's display matrix, in units of 1/65536."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32).tolist()
    return a, b, c, d


def write_pixels(pixels: Pixels | DeepPixels, like: Any, *, colours: Colours, format: str) -> Any:
    """A frame of this pixel format from upright (H, W, 3) pixels, uint8 or uint16; `like` is any other frame."""
    rgb = type(like).from_ndarray(
        np.ascontiguousarray(pixels), format="rgb24" if pixels.dtype == np.uint8 else "rgb48le"
    )
    frame = rgb.reformat(
        format=format, src_color_range=FULL,
        dst_colorspace=colours.swscale_matrix, dst_color_range=colours.swscale_range,
    )  # fmt: skip
    frame.colorspace, frame.color_range = colours.matrix, colours.range
    frame.color_primaries, frame.color_trc = colours.primaries, colours.transfer
    return frame


def hdr_options(frame: Any) -> str:
    """What libx265 has to be told of a frame's HDR, if the frame says it.

    This is the light of the screen that the video was made on, and the most light of a pixel and of a frame.
    """
    options = ""
    data = frame.side_data.get("MASTERING_DISPLAY_METADATA")
    if data is not None:  # AVMasteringDisplayMetadata: ten fractions, and whether the colours and the light are given
        *numbers, has_colours, has_light = np.frombuffer(bytes(data), np.int32)[:22].tolist()
        if has_colours and has_light and all(numbers[1::2]):
            values = [
                numerator / denominator for numerator, denominator in zip(numbers[::2], numbers[1::2], strict=True)
            ]
            red, green, blue, white = (
                f"({round(x * 50_000)},{round(y * 50_000)})" for x, y in zip(values[:8:2], values[1:8:2], strict=True)
            )
            darkest, brightest = (round(light * 10_000) for light in values[8:])
            options += f":master-display=G{green}B{blue}R{red}WP{white}L({brightest},{darkest})"
    data = frame.side_data.get("CONTENT_LIGHT_LEVEL")
    if data is not None:
        options += ":max-cll={},{}".format(*np.frombuffer(bytes(data), np.uint32)[:2].tolist())
    return options


# --- Deep pixels as a generator sees them, and its changes to them


def ordinary_view(pixels: DeepPixels, colours: Colours) -> Pixels:
    """Deep pixels as ordinary ones, uint8 of the same shape: HDR in sRGB, in which all beyond white is white."""
    if not colours.is_hdr:
        return np.asarray((pixels.astype(np.uint32) + 128) // 257, np.uint8)
    light = _light_table(colours.transfer)[pixels]
    if colours.primaries == BT2020:
        light = light @ np.array(BT2020_TO_BT709, np.float32).T
    return np.asarray(_srgb_table()[(light.clip(0, 1) * 65535).astype(np.uint16)])


def apply_change(pixels: DeepPixels, colours: Colours, *, before: Pixels, after: Pixels) -> DeepPixels:
    """Add the change between two versions of the ordinary view to the deep pixels; the others keep their values."""
    changed = (before != after).any(axis=-1)
    values = [_deep_values(view[changed], colours) for view in (before, after)]
    result = pixels.copy()
    result[changed] = np.rint(pixels[changed] + (values[1] - values[0])).clip(0, 65535)
    return result


def _deep_values(view: np.ndarray, colours: Colours) -> np.ndarray:
    """The deep values, float32, 0 to 65535, that look like these ordinary ones, (N, 3) uint8."""
    if not colours.is_hdr:
        return view.astype(np.float32) * 257
    light = from_srgb(view / np.float32(255))
    if colours.primaries == BT2020:
        light = light @ np.linalg.inv(np.array(BT2020_TO_BT709)).T
    return np.asarray(to_hdr(light.clip(0, None), colours.transfer) * 65535, np.float32)


@cache
def _light_table(transfer: int) -> np.ndarray:
    """The light, 1 for white, of each 16-bit value with PQ or HLG: (65536,) float32."""
    return np.asarray(from_hdr(np.arange(65536) / 65535, transfer), np.float32)


@cache
def _srgb_table() -> np.ndarray:
    """The sRGB value of each amount of light from 0 to 1 in steps of 1/65535: (65536,) uint8."""
    return np.asarray(np.rint(255 * to_srgb(np.arange(65536) / 65535)), np.uint8)
