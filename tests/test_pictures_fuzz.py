"""Pictures of every format with random damage are translated, or skipped for a reason that a person can read."""

from __future__ import annotations

import io
import os
import tempfile
import zlib
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_image
from fuzzing import assert_sentence, bounded, damaged, fuzz
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_images import PROFILES, encode
from test_translate import Brighter

from photos.picture_file import read_picture
from photos.translator import Translator
from translate import translate_files

pytestmark = pytest.mark.slow
MAX_MEGAPIXELS = 1.0
SUFFIXES = ("", ".png", ".jpg", ".gif", ".webp", ".tif", ".avif", ".ppm", ".jp2", ".bmp", ".heic")
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF/></x:xmpmeta>'


def exif() -> bytes:
    """EXIF data with an orientation, a text, a fraction and a directory of its own."""
    tags = Image.Exif()
    tags[0x0112], tags[0x010E], tags[0x011A] = 6, "a description", 72.5
    tags.get_ifd(0x8769)[0x9003] = "2001:01:01 00:00:00"
    return tags.tobytes()


@cache
def seeds() -> dict[str, bytes]:
    """Whole files of every format, with and without what may come with a picture."""
    rgb, other = make_image(1, (24, 20)), make_image(2, (24, 20))
    clear = rgb.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize((24, 20)))
    deep = Image.fromarray(np.arange(480, dtype=np.uint16).reshape(20, 24) * 130)
    more: dict[str, Any] = {"icc_profile": PROFILES["p3"], "exif": exif()}
    film: dict[str, Any] = {"save_all": True, "append_images": [other, rgb], "duration": [40, 80, 120]}
    return {
        "JPEG": encode(rgb, "JPEG", **more, xmp=XMP, comment="hello"),
        "JPEG in ink": encode(rgb.convert("CMYK"), "JPEG"),
        "JPEG, progressive and grey": encode(rgb.convert("L"), "JPEG", progressive=True, exif=exif()),
        "MPO": encode(rgb, "MPO", save_all=True, append_images=[other]),
        "PNG": encode(clear, "PNG", **more),
        "PNG of 16 bits": encode(deep, "PNG", icc_profile=PROFILES["linear grey"]),
        "PNG with a palette": encode(rgb.quantize(8), "PNG", transparency=3),
        "APNG": encode(rgb, "PNG", **film, disposal=[0, 2, 1], blend=[0, 1, 0]),
        "WEBP": encode(rgb, "WEBP", **more, xmp=XMP),
        "WEBP animation": encode(clear, "WEBP", **film),
        "TIFF": encode(rgb, "TIFF", **more),
        "TIFF of two pages": encode(deep, "TIFF", save_all=True, append_images=[rgb]),
        "TIFF in ink": encode(rgb.convert("CMYK"), "TIFF", compression="jpeg"),
        "GIF": encode(rgb, "GIF", comment=b"hello"),
        "GIF animation": encode(rgb.quantize(8), "GIF", **film, loop=3, disposal=2, transparency=0),
        "AVIF": encode(rgb, "AVIF", **more, xmp=XMP),
        "AVIF animation": encode(rgb, "AVIF", **film),
        "BMP": encode(rgb, "BMP"),
        "BMP with a palette": encode(rgb.quantize(8), "BMP"),
        "PPM": encode(rgb, "PPM"),
        "PGM of 16 bits": b"P5 24 20 65535 " + np.asarray(deep).byteswap().tobytes(),
        "PPM as text": b"P3 2 2 255 # hello\n" + b"1 2 3 " * 4,
        "JPEG 2000": encode(rgb, "JPEG2000"),
        "JPEG 2000 without a box": encode(clear, "JPEG2000", no_jp2=True),
    }


def with_checksums(data: bytes) -> bytes:
    """A PNG file whose chunks all have the right checksum, so that damage reaches what is behind it."""
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        parts += [data[at:end], zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")]
        at = end + 4
    return b"".join(parts) + data[at:]


@st.composite
def pictures(draw: st.DrawFn) -> bytes:
    name = draw(st.sampled_from(sorted(seeds())))
    data = draw(damaged(seeds()[name]))
    return with_checksums(data) if "PNG" in name and draw(st.booleans()) else data


def translate(data: bytes, suffix: str, folder: Path) -> list[str]:
    """Translate a file, to one whose name ends so; why it was skipped, if it was."""
    source, target = folder / "x", folder / "out" / f"x{suffix}"
    source.write_bytes(data)
    with bounded():
        summary = translate_files(Translator(Brighter(), 32), [(source, target)],
                                  read=partial(read_picture, max_megapixels=MAX_MEGAPIXELS))  # fmt: skip
    return [line.removeprefix(f"  {source}: ") for line in summary.skipped]


@fuzz(400)
@given(pictures(), st.sampled_from(SUFFIXES))
def test_a_damaged_picture_is_translated_or_skipped_for_a_reason(data: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        skipped = translate(data, suffix, folder)
        written = os.listdir(folder / "out") if (folder / "out").exists() else []
        assert len(written) == (0 if skipped else 1)
        for reason in skipped:
            assert_sentence(reason)
        for file in written:
            with Image.open(io.BytesIO((folder / "out" / file).read_bytes())) as result:
                result.load()
