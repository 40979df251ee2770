"""Images that state their colours otherwise than by a profile are seen as stated, and so are the results."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from conftest import make_image
from PIL import Image
from test_images import PROFILES, encode, in_profile, make_profile

from images.light import HLG, PQ, from_srgb, to_hdr
from images.profiles import ColourSpace
from images.stated_colours import ADOBE_RGB
from photos.picture_file import read_picture, write_picture
from utils import read_image

SEEN = Image.blend(make_image(4), Image.new("RGB", (40, 40), "grey"), 0.4)
LINEAR = Image.fromarray(np.rint(255 * from_srgb(np.asarray(SEEN) / 255)).astype(np.uint8))
NOTE = "left out: the light of HDR beyond ordinary white"


def in_space(name: str) -> Image.Image:
    """SEEN, with the numbers that mean the same in a profile, but without the profile."""
    image = in_profile(SEEN, PROFILES[name])
    image.info = {}
    return image


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def gamma(exponent: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(100_000 / exponent)))


def corners(*numbers: float) -> bytes:
    return chunk(b"cHRM", struct.pack(">8I", *(round(100_000 * number) for number in numbers)))


def cicp(primaries: int, transfer: int) -> bytes:
    return chunk(b"cICP", bytes((primaries, transfer, 0, 1)))


ADOBE_CORNERS = corners(0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)


def png(image: Image.Image, *chunks: bytes, **options: Any) -> bytes:
    """A PNG file with these chunks behind its header."""
    data = encode(image, "PNG", **options)
    return data[:33] + b"".join(chunks) + data[33:]


def exif(space: int, index: str = "") -> bytes:
    """EXIF data with a colour space and an interoperability index."""
    data = Image.Exif()
    data.get_ifd(0x8769)[0xA001] = space
    if index:
        data.get_ifd(0x8769)[0xA005] = {1: index}
    return data.tobytes()


def with_primaries(data: bytes, code: int, transfer: int = 13) -> bytes:
    """An AVIF or HEIF file whose nclx box states other primaries and another transfer."""
    assert b"nclx\0\1\0\r" in data
    return data.replace(b"nclx\0\1\0\r", b"nclx" + struct.pack(">HH", code, transfer))


def distance(data: bytes, other: Image.Image = SEEN) -> float:
    """The mean difference of what is read to what should be seen, of 255."""
    return float(np.abs(np.asarray(read_image(io.BytesIO(data))).astype(int) - np.asarray(other)).mean())


def rewritten(data: bytes) -> bytes:
    written = io.BytesIO()
    write_picture(read_picture(io.BytesIO(data)), written)
    return written.getvalue()


STATED = {
    "gamma and corners": lambda: png(in_space("adobe"), gamma(2.2), ADOBE_CORNERS),
    "linear gamma": lambda: png(LINEAR, gamma(1)),
    "linear with transparency": lambda: png(LINEAR.convert("RGBA"), gamma(1)),
    "cICP": lambda: png(in_space("p3"), cicp(12, 4), gamma(1)),
    "JPEG of a camera": lambda: encode(in_space("adobe"), "JPEG", exif=exif(0xFFFF, "R03"), quality=100, subsampling=0),
    "WebP": lambda: encode(in_space("adobe"), "WEBP", exif=exif(2), lossless=True),
    "PNG with EXIF data": lambda: encode(in_space("adobe"), "PNG", exif=exif(0xFFFF, "R03")),
}


@pytest.mark.parametrize("name", STATED)
def test_colours_are_seen_as_stated_before_and_after(name: str) -> None:
    data = STATED[name]()
    assert distance(data) < 1
    assert distance(rewritten(data)) < 1
    assert Image.open(io.BytesIO(rewritten(data))).info["icc_profile"]


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_the_primaries_of_an_nclx_box_are_seen_before_and_after(kind: str) -> None:
    options: dict[str, Any] = {"subsampling": "4:4:4"} if kind == "AVIF" else {"chroma": 444}
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    data = with_primaries(encode(in_space("p3"), kind, quality=100, **options), 12, 4)
    assert distance(data) < 2  # These formats are lossy; unseen, the distance would be above 4.
    assert distance(rewritten(data)) < 2


def test_every_frame_of_an_animation_is_seen_as_stated() -> None:
    frames = [LINEAR.rotate(90 * turn) for turn in range(3)]
    data = rewritten(png(frames[0], gamma(1), save_all=True, append_images=frames[1:], duration=100))
    for turn, photo in enumerate(read_picture(io.BytesIO(data)).photos):
        assert np.abs(photo.pixels.astype(int) - np.asarray(SEEN.rotate(90 * turn))).mean() < 1


def test_grey_gets_a_grey_profile() -> None:
    written = Image.open(io.BytesIO(rewritten(png(LINEAR.convert("L"), gamma(1)))))
    assert written.mode == "L"
    assert written.info["icc_profile"][16:20] == b"GRAY"
    assert (
        distance(
            rewritten(png(LINEAR.convert("L"), gamma(1))), read_image(io.BytesIO(png(LINEAR.convert("L"), gamma(1))))
        )
        == 0
    )


@pytest.mark.parametrize(
    "data",
    [
        png(SEEN, gamma(2.2)),
        png(SEEN, chunk(b"sRGB", b"\0"), gamma(1)),
        png(SEEN, cicp(1, 13), gamma(1)),
        png(SEEN, cicp(2, 2)),
        encode(SEEN, "JPEG", exif=exif(1, "R03"), quality=100, subsampling=0),
        encode(SEEN, "JPEG", exif=exif(0xFFFF, "R98"), quality=100, subsampling=0),
    ],
)
def test_what_amounts_to_srgb_gets_no_profile(data: bytes) -> None:
    assert "icc_profile" not in Image.open(io.BytesIO(rewritten(data))).info
    assert distance(data) < 1


def test_a_profile_wins() -> None:
    profile = PROFILES["adobe"]
    data = encode(in_space("adobe"), "WEBP", lossless=True, icc_profile=profile, exif=exif(1))
    assert distance(data) < 1
    assert Image.open(io.BytesIO(rewritten(data))).info["icc_profile"] == profile


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_hdr_is_seen_and_written_in_ordinary_colours_and_that_is_said(transfer: int) -> None:
    signal = np.rint(255 * to_hdr(from_srgb(np.asarray(SEEN) / 255), transfer)).astype(np.uint8)
    data = png(Image.fromarray(signal), cicp(1, transfer))
    assert distance(data) < 1
    assert distance(rewritten(data)) < 1
    assert read_picture(io.BytesIO(data)).notes == [NOTE]


@pytest.mark.parametrize(
    "bad", [corners(*[0] * 8), corners(0.3, 0.3, *[0.6, 0.3] * 2, 0.1, 0.06), chunk(b"cICP", b"\1")]
)
def test_statements_that_make_no_sense_cost_nothing(bad: bytes) -> None:
    assert distance(png(SEEN, bad)) == 0


def test_a_built_profile_means_the_same_as_one_that_others_made() -> None:
    ours = in_profile(SEEN, ADOBE_RGB.profile(grey=False))
    theirs = in_profile(SEEN, make_profile(563 / 256, ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087),
                                                       (0.14919, 0.06322, 0.74457))))  # fmt: skip
    assert np.abs(np.asarray(ours).astype(int) - np.asarray(theirs)).max() <= 1
    srgb = in_profile(SEEN, ColourSpace().profile(grey=False))
    assert np.abs(np.asarray(srgb).astype(int) - np.asarray(SEEN)).max() <= 1


def test_a_page_of_a_tiff_does_not_take_the_profile_of_the_page_before() -> None:
    wide = in_profile(SEEN, PROFILES["p3"])
    data = encode(wide, "TIFF", save_all=True, append_images=[SEEN.copy()])
    pages = read_picture(io.BytesIO(data)).photos
    assert [bool(page.original.info.get("icc_profile")) for page in pages] == [True, False]
    assert np.abs(pages[1].pixels.astype(int) - np.asarray(SEEN)).max() == 0


@pytest.mark.parametrize("kind", ["jp2", "ppm", "avif"])
def test_further_formats_are_said_to_lose_their_depth(kind: str) -> None:
    cv2 = pytest.importorskip("cv2")
    deep = np.arange(64 * 64 * 3, dtype=np.uint16).reshape(64, 64, 3)
    options = [getattr(cv2, "IMWRITE_AVIF_DEPTH", 0), 10] if kind == "avif" else []
    try:
        data = cv2.imencode(f".{kind}", deep >> (6 if kind == "avif" else 0), options)[1].tobytes()
    except cv2.error:
        pytest.skip(f"this OpenCV cannot write {kind}")
    assert read_picture(io.BytesIO(data)).notes == ["left out: all but the first 8 bits of each colour channel"]


def test_jpeg_2000_with_a_profile_becomes_srgb_and_that_is_said() -> None:
    data = encode(in_space("p3"), "JPEG2000")
    box = b"colr\2\0\0" + PROFILES["p3"]
    start = data.index(b"colr") - 4
    header = data.index(b"jp2h") - 4
    size = int.from_bytes(data[header : header + 4], "big") + len(box) + 4 - 15
    boxed = struct.pack(">I", len(box) + 4) + box
    data = data[:header] + struct.pack(">I", size) + data[header + 4 : start] + boxed + data[start + 15 :]
    assert distance(data) < 1
    assert distance(rewritten(data)) < 1
    picture = read_picture(io.BytesIO(data))
    write_picture(picture, io.BytesIO())
    assert picture.notes == ["the colours become sRGB: JPEG2000 is written without a colour profile"]
