"""Images of every format and colour are read alike, and only what shows in a picture can cost it."""

from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_image
from fuzzing import bounded
from PIL import Image, ImageCms

from dataset import scan_folder
from images.colours import to_rgb, transfer
from images.files import IMAGE_FORMATS, IMAGE_SUFFIXES, may_be_image, opened_image
from utils import read_image

P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
ADOBE = ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def gamma(power: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(power * 256)) + b"\0\0"


def make_profile(power: float, primaries: tuple[tuple[float, ...], ...] = ()) -> bytes:
    """A minimal ICC profile, for RGB with these primaries (XYZ), or for grey without."""
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"made\0" + bytes(83),
            b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1, 0.8249)}  # fmt: skip
    for name, xyz in zip((b"r", b"g", b"b"), primaries, strict=False):
        tags |= {name + b"XYZ": b"XYZ \0\0\0\0" + fixed(*xyz), name + b"TRC": gamma(power)}
    if not primaries:
        tags[b"kTRC"] = gamma(power)
    table, data, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    space = b"RGB " if primaries else b"GRAY"
    head = struct.pack(">I4sI4s4s4s", start + len(data), b"none", 0x02400000, b"mntr", space, b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + fixed(0.9642, 1, 0.8249)
    return head + bytes(128 - len(head)) + table + data


PROFILES = {"p3": make_profile(2.2, P3), "adobe": make_profile(2.2, ADOBE), "linear grey": make_profile(1.0)}


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def in_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """An sRGB image with the numbers that mean the same in another profile."""
    own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    result = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), own)
    assert result is not None
    result.info["icc_profile"] = profile
    return result


def distance(image: Image.Image, other: Image.Image) -> int:
    """The largest difference of any value of two images of one mode."""
    assert image.mode == other.mode
    return int(np.abs(np.asarray(image).astype(int) - np.asarray(other).astype(int)).max())


# --- Formats


@pytest.mark.parametrize("kind", IMAGE_FORMATS)
def test_every_format_is_read_under_any_name(kind: str, tmp_path: Path) -> None:
    image = make_image(2, (32, 24))
    for name in ("x", "x.jpg", "x.backup"):
        (tmp_path / name).write_bytes(encode(image, kind))
        assert may_be_image(tmp_path / name)
        read = read_image(tmp_path / name)
        assert read.size == (32, 24)
        assert np.abs(np.asarray(read).astype(int) - np.asarray(image)).mean() < (40 if kind == "GIF" else 6)
    assert len(scan_folder(tmp_path).files) == 3


def test_heic_is_read_with_its_package(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    image = make_image(2, (32, 24))
    (tmp_path / "x").write_bytes(encode(image, "HEIF", quality=90))
    assert may_be_image(tmp_path / "x")
    assert np.abs(np.asarray(read_image(tmp_path / "x")).astype(int) - np.asarray(image)).mean() < 12


def test_heic_without_its_package_is_left_out_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for name in ("a.HEIC", "b"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
    folder = scan_folder(tmp_path)
    assert not folder.files
    assert len(folder.left_out) == 2
    assert all("pip install -r requirements-extra.txt" in reason for _, reason in folder.left_out)


def test_only_names_and_contents_of_images_may_be_images(tmp_path: Path) -> None:
    for suffix in (*IMAGE_SUFFIXES, ".JFIF"):
        assert may_be_image(tmp_path / f"x{suffix}")
    contents = (b"", b"hello", b"P6 is how this text begins\n", b"BM is how this one begins, and it goes on.", b"II*\0")
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.txt").write_bytes(content)
        assert not may_be_image(tmp_path / f"{number}.txt")
    os.mkfifo(tmp_path / "pipe")
    assert not may_be_image(tmp_path / "pipe")
    assert not may_be_image(tmp_path)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG2000", "PPM"])
def test_sixteen_bit_grey_of_every_format_is_scaled(kind: str) -> None:
    levels = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    read = np.asarray(read_image(io.BytesIO(encode(Image.fromarray(levels), kind))))
    assert np.array_equal(read[..., 1], levels // 257)


def test_the_preview_of_a_cameras_raw_file_is_not_taken_for_the_photograph() -> None:
    data = encode(make_image(1), "TIFF", tiffinfo={254: 1})
    with pytest.raises(ValueError, match="a camera's raw file"):
        read_image(io.BytesIO(data))


def test_pillows_limit_is_neither_in_the_way_nor_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    make_image(1, (40, 40)).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png").size == (40, 40)
    with pytest.raises(ValueError, match="too large: 40x40 px, over 500 pixels"):
        opened_image(tmp_path / "x.png", max_pixels=500).__enter__()
    assert Image.MAX_IMAGE_PIXELS == 100


# --- Salvage


def chunk(kind: bytes, body: bytes, *, is_whole: bool = True) -> bytes:
    checksum = zlib.crc32(kind + body) ^ (not is_whole)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


LONG_TEXT = zlib.compress(bytes(100_000_000))
CHUNKS = [
    chunk(b"tEXt", b"a\0b", is_whole=False), chunk(b"zTXt", b"a\0\0" + LONG_TEXT), chunk(b"zTXt", b"a\0\0nonsense"),
    chunk(b"zTXt", b"a\0\7nonsense"), chunk(b"iTXt", b"a\0\1\0\0\0nonsense"), chunk(b"iCCP", b"a\0\7nonsense"),
    chunk(b"iCCP", b"a\0\0" + LONG_TEXT), chunk(b"iCCP", b"a\0\0" + zlib.compress(b"nonsense")),
    chunk(b"gAMA", b"a"), chunk(b"pHYs", b"a"), chunk(b"sRGB", b""), chunk(b"eXIf", b"nonsense"),
    chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff"),
]  # fmt: skip
SEGMENTS = [
    segment(0xE1, b"Exif\0\0"), segment(0xE1, b"Exif\0\0nonsense"), segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff"),
    segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\2\x01\x12\0\3\0\0\0\1\xff\xff\0\0\x87\x69\0\4\0\0\0\1\xff\xff\xff\xff"),
    segment(0xE2, b"MPF\0nonsense"), segment(0xE2, b"MPF\0II*\0\x08\0\0\0\3\0"), segment(0xE2, b"ICC_PROFILE\0"),
    segment(0xE2, b"ICC_PROFILE\0\1\1nonsense"), segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CHUNKS)))
def test_a_damaged_chunk_does_not_cost_a_png(number: int) -> None:
    whole = encode(make_image(1), "PNG")
    for at in (33, len(whole) - 12):  # after the header, and before the end
        read = read_image(io.BytesIO(whole[:at] + CHUNKS[number] + whole[at:]))
        assert distance(read, make_image(1)) == 0


@pytest.mark.parametrize("number", range(len(SEGMENTS)))
def test_a_damaged_segment_does_not_cost_a_jpeg(number: int) -> None:
    whole = encode(make_image(1), "JPEG")
    read = read_image(io.BytesIO(whole[:2] + SEGMENTS[number] + whole[2:]))
    assert distance(read, read_image(io.BytesIO(whole))) == 0


@pytest.mark.parametrize("kind", IMAGE_FORMATS)
@pytest.mark.parametrize("tail", [bytes(1000), b"not part of the picture " * 50])
def test_data_after_the_picture_does_not_cost_it(kind: str, tail: bytes) -> None:
    whole = encode(make_image(1), kind)
    assert distance(read_image(io.BytesIO(whole + tail)), read_image(io.BytesIO(whole))) == 0


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF", "GIF", "BMP", "JPEG2000", "PPM"])
def test_a_truncated_picture_is_an_error_all_the_same(kind: str) -> None:
    whole = encode(make_image(1, (200, 200)), kind)
    with pytest.raises((OSError, ValueError, SyntaxError)):
        read_image(io.BytesIO(whole[: len(whole) * 2 // 3]))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_missing_end_marker_does_not_cost_a_jpeg_but_missing_pixels_do(progressive: bool, tmp_path: Path) -> None:
    whole = encode(make_image(1, (200, 200)), "JPEG", progressive=progressive)
    path = tmp_path / "x.jpg"
    path.write_bytes(whole[:-2])
    for source in (path, io.BytesIO(whole[:-2]), io.BytesIO(whole[:-1])):
        assert distance(read_image(source), read_image(io.BytesIO(whole))) == 0
    for length in (len(whole) * 2 // 3, len(whole) - 30, 3, 2):
        with pytest.raises((OSError, ValueError, SyntaxError)):
            read_image(io.BytesIO(whole[:length]))


def test_a_jpeg_without_end_marker_is_not_decoded_at_the_size_that_it_claims() -> None:
    data = bytearray(encode(make_image(1, (200, 200)), "JPEG")[:-2])
    at = data.index(b"\xff\xc0") + 5  # the height and the width follow
    data[at : at + 4] = b"\xff\x00" * 2
    with bounded(), pytest.raises(ValueError, match="too large"):
        read_image(io.BytesIO(data))


def test_a_head_that_claims_an_absurd_length_is_damage_and_not_a_full_memory(tmp_path: Path) -> None:
    start = b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 \0\0\0\0jp2 "
    (tmp_path / "x.jp2").write_bytes(start + struct.pack(">I4sQ", 1, b"jp2h", 2**50) + bytes(40))
    with pytest.raises(OSError, match="damaged: its head claims to be larger"):
        read_image(tmp_path / "x.jp2")
    ((_, reason),) = scan_folder(tmp_path).left_out
    assert "its head claims" in reason


def test_what_was_left_out_is_noted() -> None:
    notes: list[str] = []
    whole = encode(make_image(1), "PNG")
    with opened_image(io.BytesIO(whole[:33] + CHUNKS[0] + whole[33:]), notes=notes):
        pass
    assert notes == ["damaged metadata"]


# --- Colours


@pytest.mark.parametrize("name", ["p3", "adobe"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF"])
def test_a_wide_gamut_is_read_as_a_viewer_shows_it(name: str, kind: str) -> None:
    image = Image.blend(make_image(4), Image.new("RGB", (40, 40), "grey"), 0.4)
    options: dict[str, dict[str, Any]] = {
        "WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}, "AVIF": {"quality": 100},
    }  # fmt: skip
    wide = in_profile(image, PROFILES[name])
    assert np.abs(np.asarray(wide).astype(int) - np.asarray(image)).mean() > 3
    read = read_image(io.BytesIO(encode(wide, kind, icc_profile=PROFILES[name], **options.get(kind, {}))))
    assert np.abs(np.asarray(read).astype(int) - np.asarray(image)).mean() < 2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_linear_grey_is_read_as_a_viewer_shows_it(dtype: type) -> None:
    top = np.iinfo(dtype).max
    image = Image.fromarray((np.arange(256) / 255 * top).astype(dtype).reshape(16, 16))
    image.info["icc_profile"] = PROFILES["linear grey"]
    light = np.arange(256) / 255
    expected = np.where(light < 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    assert np.abs(np.asarray(to_rgb(image))[..., 0].ravel() - expected).max() < 1.5


def test_an_srgb_profile_changes_no_pixel() -> None:
    image = make_image(1)
    image.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert to_rgb(image) is image


@pytest.mark.parametrize("profile", [b"nonsense", PROFILES["linear grey"]])
def test_a_profile_that_does_not_fit_is_ignored(profile: bytes) -> None:
    image = make_image(1)
    image.info["icc_profile"] = profile
    assert distance(to_rgb(image), make_image(1)) == 0


def brighter(image: Image.Image, by: int = 20) -> np.ndarray:
    """The image's sRGB colours, brighter in a square."""
    colours = np.array(to_rgb(image)).astype(int)
    colours[10:20, 10:20] += by
    return colours.clip(0, 255).astype(np.uint8)


MODES = ["L", "LA", "RGB", "RGBA", "CMYK", "I;16", "p3", "adobe", "linear grey", "grey RGB", "linear I;16"]


def image_like(mode: str) -> Image.Image:
    soft = Image.blend(make_image(6), Image.new("RGB", (40, 40), "grey"), 0.5)
    if mode.endswith("I;16"):
        levels = np.asarray(soft.convert("L")).astype(np.uint16) * 257 + np.arange(40, dtype=np.uint16)
        image = Image.fromarray(levels)
    elif mode in PROFILES:
        return in_profile(soft, PROFILES[mode]) if "grey" not in mode else with_profile(soft.convert("L"), mode)
    else:
        image = soft.convert("L").convert("RGB") if mode == "grey RGB" else soft.convert(mode)
    return with_profile(image, "linear grey") if mode.startswith("linear") else image


def with_profile(image: Image.Image, name: str) -> Image.Image:
    image.info["icc_profile"] = PROFILES[name]
    return image


@pytest.mark.parametrize("mode", MODES)
def test_a_change_reaches_the_original_colours_and_touches_nothing_else(mode: str) -> None:
    image = image_like(mode)
    result = transfer(image, brighter(image))
    assert result.mode == image.mode
    assert result.info.get("icc_profile") == image.info.get("icc_profile")
    outside = np.asarray(result).astype(int) - np.asarray(image).astype(int)
    outside[10:20, 10:20] = 0
    assert not outside.any()
    seen = np.asarray(to_rgb(result)).astype(int) - np.asarray(to_rgb(image))
    assert np.abs(seen[10:20, 10:20] - 20).max() <= (9 if mode == "linear grey" else 3)
    assert np.abs(seen[10:20, 10:20].mean() - 20) < 1


def test_a_black_and_white_photograph_stays_black_and_white() -> None:
    image = image_like("grey RGB")
    colours = brighter(image)
    colours[12:18, 12:18] = (200, 90, 10)
    result = np.asarray(transfer(image, colours))
    assert (result[..., :2] == result[..., 1:]).all()
    assert (result[12:18, 12:18] == np.asarray(Image.new("RGB", (1, 1), (200, 90, 10)).convert("L"))).all()


def test_colours_outside_srgb_survive_beside_and_below_the_change() -> None:
    red = Image.new("RGB", (40, 40), (255, 30, 30))
    red.info["icc_profile"] = PROFILES["p3"]
    result = np.asarray(transfer(red, brighter(red, -10)))
    assert (result[0, 0] == (255, 30, 30)).all()
    change = result[15, 15].astype(int) - (255, 30, 30)
    assert -12 <= change[0] <= -6
    assert np.abs(change[1:]).max() <= 4
