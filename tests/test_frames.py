"""The colours of frames follow ITU-T H.273 and BT.2100, and come back; turned and mirrored frames are upright."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_videos import av, colour_bars, decode, write_film

from images.light import HLG, PQ
from photos.frames import (
    BT2020,
    FULL,
    Colours,
    apply_change,
    ordinary_view,
    read_colours,
    read_pixels,
    swaps_sides,
    write_pixels,
)

RGB = np.random.default_rng(0).integers(20, 235, (6, 8, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
WEIGHTS = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087),
           9: (0.2627, 0.0593)}  # fmt: skip
HDR = {transfer: Colours(9, 1, 9, transfer, 9, 1) for transfer in (PQ, HLG)}


def to_yuv(rgb: np.ndarray, matrix: int, color_range: int) -> np.ndarray:
    """(H, W, 3) RGB as planes, (3, H, W) uint8, by the equations 38 to 40 of ITU-T H.273."""
    red_weight, blue_weight = WEIGHTS[matrix]
    red, green, blue = np.moveaxis(rgb / 255, -1, 0)
    luma = red_weight * red + (1 - red_weight - blue_weight) * green + blue_weight * blue
    colour = np.stack([(blue - luma) / (1 - blue_weight), (red - luma) / (1 - red_weight)]) / 2
    full = color_range == FULL
    planes = [luma * 255, *(colour * 255 + 128)] if full else [16 + 219 * luma, *(128 + 224 * colour)]
    return np.rint(planes).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("color_range", [1, 2])
@pytest.mark.parametrize("matrix", WEIGHTS)
def test_pixels_are_converted_by_the_frames_own_matrix_and_range_and_back(matrix: int, color_range: int) -> None:
    planes = to_yuv(RGB, matrix, color_range)
    frame = av.VideoFrame.from_ndarray(planes, "yuv444p")
    frame.colorspace, frame.color_range = matrix, color_range
    for deep, scale in ((False, 1), (True, 257)):
        pixels = read_pixels(frame, width=64, height=48, deep=deep)
        assert np.abs(pixels / scale - RGB).max() < 3
        back = write_pixels(pixels, frame, colours=read_colours(frame), format="yuv444p")
        assert np.abs(back.to_ndarray().astype(int) - planes).max() <= 2
        assert (back.colorspace, back.color_range) == (matrix, color_range)


@pytest.mark.parametrize("matrix", [3, 8, 10, 12, 14, 15])
def test_matrices_that_swscale_does_not_know_cost_nothing(matrix: int) -> None:
    planes = to_yuv(RGB, 6, 1)
    frame = av.VideoFrame.from_ndarray(planes, "yuv444p")
    frame.colorspace = matrix
    pixels = read_pixels(frame, width=64, height=48, deep=False)
    back = write_pixels(pixels, frame, colours=read_colours(frame), format="yuv444p")
    assert np.abs(back.to_ndarray().astype(int) - planes).max() <= 2


@pytest.mark.parametrize(("height", "matrix"), [(576, 5), (720, 1)])
def test_a_frame_that_names_no_matrix_is_read_as_players_read_it(height: int, matrix: int) -> None:
    frame = av.VideoFrame(64, height, "yuv420p")
    assert read_colours(frame).swscale_matrix == matrix
    assert read_colours(frame).matrix == 2


@pytest.mark.parametrize("flips", [(), (True, False), (False, True)])
@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_turned_and_mirrored_frames_are_upright(degrees: int, flips: tuple[bool, ...], tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mp4", "mpeg4", times=[0], turn=(degrees, *flips))
    expected = np.rot90(colour_bars(96, 64), degrees // 90)
    for flip, axis in zip(flips, (1, 0), strict=False):
        expected = np.flip(expected, axis) if flip else expected
    (frame,) = decode(path)
    pixels = read_pixels(frame, width=96, height=64, deep=False)
    assert pixels.shape == expected.shape
    assert swaps_sides(frame) == (expected.shape == (96, 64, 3))
    assert np.abs(pixels.astype(int) - expected).mean() < 12


@pytest.mark.parametrize(
    ("transfer", "signal", "value"),
    # BT.2408, table 1: white is 203 cd/m2, and coded as 58 % in PQ and as 75 % in HLG; a grey card (18 %)
    # is 26 cd/m2, coded as 38 % in both. In sRGB 26 / 203 is 100, and 18 % is 118.
    [(PQ, 0.58, 255), (PQ, 0.38, 100), (PQ, 0, 0), (PQ, 1, 255), (HLG, 0.75, 255), (HLG, 0.38, 118), (HLG, 0, 0)],
)
def test_hdr_is_seen_with_its_white_and_grey_where_ordinary_videos_have_them(
    transfer: int, signal: float, value: int
) -> None:
    pixels = np.full((2, 2, 3), round(signal * 65535), np.uint16)
    assert np.abs(ordinary_view(pixels, HDR[transfer]).astype(int) - value).max() <= 2


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_a_change_of_the_view_changes_hdr_as_much_and_other_pixels_not_at_all(transfer: int) -> None:
    pixels = np.random.default_rng(1).integers(12_000, 30_000, (20, 20, 1)).repeat(3, axis=2).astype(np.uint16)
    view = ordinary_view(pixels, HDR[transfer])
    wanted = view.copy()
    wanted[:10] = np.minimum(view[:10] + np.array([30, 10, 0]), 255)
    result = apply_change(pixels, HDR[transfer], before=view, after=wanted)
    assert np.array_equal(result[10:], pixels[10:])
    assert np.abs(ordinary_view(result, HDR[transfer]).astype(int) - wanted).max() <= 2


def test_a_change_of_deep_pixels_keeps_their_finer_steps() -> None:
    colours = Colours(1, 1, 1, 1, 1, 1)
    pixels = np.arange(1000, 1300, dtype=np.uint16).reshape(10, 10, 3)
    view = ordinary_view(pixels, colours)
    assert np.array_equal(apply_change(pixels, colours, before=view, after=view + 1), pixels + 257)


@pytest.mark.parametrize("format", ["gbrp", "rgb24", "gray", "pal8", "yuvj422p", "yuva420p", "gbrp10le"])
def test_frames_of_any_format_are_read_and_become_labelled_yuv(format: str) -> None:
    frame = av.VideoFrame.from_ndarray(RGB, "rgb24")
    frame = frame.reformat(format="rgb8" if format == "pal8" else format, dst_colorspace=5)
    colours = read_colours(frame)
    pixels = read_pixels(frame, width=64, height=48, deep=False)
    back = write_pixels(pixels, frame, colours=colours, format="yuv444p")
    assert back.colorspace != 0  # which means RGB
    assert np.abs(read_pixels(back, width=64, height=48, deep=False).astype(int) - pixels).max() <= 3


def test_the_primaries_of_bt2020_are_not_those_of_ordinary_videos() -> None:
    grey, red = np.full((1, 1, 3), 30_000, np.uint16), np.array([[[30_000, 10_000, 10_000]]], np.uint16)
    assert np.ptp(ordinary_view(grey, HDR[HLG])) <= 1
    same_primaries = Colours(9, 1, 1, HLG, BT2020, 1)
    assert ordinary_view(red, HDR[HLG])[0, 0, 0] > ordinary_view(red, same_primaries)[0, 0, 0]
