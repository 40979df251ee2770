"""Read how an image's colours are to be seen where it has no colour profile: PNG chunks, nclx boxes, EXIF data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO

from PIL import ExifTags, Image, PngImagePlugin

from images.light import HLG, PQ
from images.profiles import BT709, D65, ColourSpace

UNSPECIFIED = 2  # In ITU-T H.273 this code says that primaries or a transfer are not specified.
CORNERS = {  # White, red, green and blue by the code of primaries in H.273, table 2: x and y of each.
    1: BT709,
    4: (0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    8: (0.310, 0.316, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),
    9: (*D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    22: (*D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}
# Exponents by the code of a transfer in H.273, table 3. Browsers show the curves of video (1, 6, 14 and 15) as sRGB's.
EXPONENTS = {4: 2.2, 5: 2.8, 8: 1.0, 17: 2.6}
ADOBE_RGB = ColourSpace((*D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06), 563 / 256)
EXIF_ADOBE_RGB = 2  # Some programs write this as the EXIF colour space,
EXIF_ADOBE_INDEX = "R03"  # and cameras this interoperability index (DCF 2.0).
USUAL_GAMMA = 0.45455  # PNG images in sRGB state this gamma, which is near that of their curve,
GAMMA_TOLERANCE = 0.005  # and rounded differently.
GAMMAS = (0.1, 5.0)  # Other gammas than these are mistakes.
CODESTREAM = re.compile(rb"\xff\x4f\xff\x51.{38}(.)", re.DOTALL)  # It ends with the depth of the first channel.


def state_colours(image: Image.Image) -> None:
    """Put into the `info` of an opened image, which has not been decoded yet, what its file says and Pillow does not.

    These are "icc_profile", built from what else says how the colours are to be seen, if the file has none; "hdr", if
    this profile is for HDR; and "bit_depth", of AVIF and JPEG 2000.
    """
    space = _of_file(image)
    if image.info.get("icc_profile"):
        return
    space = space or _of_exif(image)
    grey = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")
    if space and not space.is_srgb(grey=grey) and image.mode not in ("CMYK", "LAB"):
        image.info["icc_profile"] = space.profile(grey=grey)
        image.info["hdr"] = bool(space.hdr)


def _of_file(image: Image.Image) -> ColourSpace | None:
    """What the file says beside its EXIF data; None if it says nothing."""
    if image.format == "HEIF" and (nclx := image.info.get("nclx_profile")):
        return _by_codes(nclx["color_primaries"], nclx["transfer_characteristics"])
    file: IO[bytes] | None = getattr(image, "fp", None)
    if file is None or image.format not in ("PNG", "AVIF", "JPEG2000"):
        return None
    start = file.tell()
    try:
        if image.format == "PNG":
            return _of_png(image, file)
        file.seek(0)
        data = memoryview(file.read())
        if image.format == "AVIF":
            return _of_avif(image, data)
        _look_into_jpeg2000(image, data)
        return None
    finally:
        file.seek(start)


def _by_codes(primaries: int, transfer: int) -> ColourSpace | None:
    """The colour space with these codes of ITU-T H.273; None if both are unspecified."""
    if primaries == transfer == UNSPECIFIED:
        return None
    hdr = transfer if transfer in (PQ, HLG) else 0
    return ColourSpace(CORNERS.get(primaries, BT709), EXPONENTS.get(transfer), hdr)


def _of_exif(image: Image.Image) -> ColourSpace | None:
    """Adobe RGB, if the EXIF data say so; all else is sRGB."""
    if isinstance(image, PngImagePlugin.PngImageFile) and "exif" not in image.info:
        return None  # Pillow would decode the image to look for it.
    try:
        exif = image.getexif()
        camera = exif.get_ifd(ExifTags.IFD.Exif)
        space = camera.get(ExifTags.Base.ColorSpace)
        # Pillow before 13 fails to read a directory that is not there.
        interoperability = exif.get_ifd(ExifTags.IFD.Interop) if ExifTags.IFD.Interop in camera else {}
        index = str(interoperability.get(ExifTags.Interop.InteropIndex, "")).strip("\0 ")
    except Exception:  # Pillow raises various exceptions on damaged EXIF data, of which `turn_upright` warns.
        return None
    return ADOBE_RGB if space == EXIF_ADOBE_RGB or (space != 1 and index == EXIF_ADOBE_INDEX) else None


# --- PNG


def _of_png(image: Image.Image, file: IO[bytes]) -> ColourSpace | None:
    """What the chunks cICP, sRGB, gAMA and cHRM say; each makes those after it void."""
    if codes := _cicp(file):
        return _by_codes(*codes[:2])
    if "srgb" in image.info:
        return ColourSpace()
    gamma, corners = image.info.get("gamma"), image.info.get("chromaticity", BT709)
    if gamma is None and corners is BT709:
        return None
    space = ColourSpace(tuple(corners))
    if gamma is None or not GAMMAS[0] <= gamma <= GAMMAS[1]:
        return space
    is_usual = abs(gamma - USUAL_GAMMA) < GAMMA_TOLERANCE and space.is_srgb(grey=False)
    return space if is_usual else ColourSpace(space.corners, 1 / gamma)


def _cicp(file: IO[bytes]) -> bytes:
    """The content of the cICP chunk, which stands before the pixels; none without one."""
    file.seek(8)
    while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
        size = int.from_bytes(head[:4], "big")
        if head[4:] == b"cICP":
            return file.read(size) if size == 4 else b""
        file.seek(size + 4, 1)
    return b""


# --- Files made of boxes (ISO/IEC 14496-12): AVIF and JPEG 2000


def _boxes(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """The kind and the content of each box, as far as they are whole."""
    while len(data) >= 8:
        size, kind, head = int.from_bytes(data[:4], "big"), bytes(data[4:8]), 8
        if size == 1:
            size, head = int.from_bytes(data[8:16], "big"), 16
        elif size == 0:
            size = len(data)
        if not head <= size <= len(data):
            return
        yield kind, data[head:size]
        data = data[size:]


def _box(data: memoryview, kind: bytes) -> memoryview:
    """The content of the first box of a kind; empty without one."""
    return next((content for name, content in _boxes(data) if name == kind), memoryview(b""))


def _of_avif(image: Image.Image, data: memoryview) -> ColourSpace | None:
    """What the nclx box of the main image says, whose depth is noted as well."""
    space = None
    for kind, content in _properties(_box(data, b"meta")[4:]):
        if kind == b"av1C" and content[2] & 0x40:
            image.info["bit_depth"] = 12 if content[2] & 0x20 else 10
        elif kind == b"colr" and bytes(content[:4]) == b"nclx":
            space = _by_codes(int.from_bytes(content[4:6], "big"), int.from_bytes(content[6:8], "big"))
    return space


def _properties(meta: memoryview) -> list[tuple[bytes, memoryview]]:
    """The properties of the main image (ISO/IEC 23008-12)."""
    main = _box(meta, b"pitm")
    wanted = int.from_bytes(main[4:], "big")
    properties = _box(meta, b"iprp")
    known, links = list(_boxes(_box(properties, b"ipco"))), _box(properties, b"ipma")
    id_size, link_size = (4 if bytes(links[:1]) == b"\1" else 2), (2 if links[3:4] and links[3] & 1 else 1)
    at = 8
    while at + id_size < len(links):
        item, count = int.from_bytes(links[at : at + id_size], "big"), links[at + id_size]
        at += id_size + 1
        if item == wanted:
            numbers = [
                int.from_bytes(links[start : start + link_size], "big") & (1 << 8 * link_size - 1) - 1
                for start in range(at, at + count * link_size, link_size)
            ]
            return [known[number - 1] for number in numbers if 1 <= number <= len(known)]
        at += count * link_size
    return []


def _look_into_jpeg2000(image: Image.Image, data: memoryview) -> None:
    """Find the depth, and the profile, which Pillow does not read."""
    if found := CODESTREAM.search(data):
        image.info["bit_depth"] = (found[1][0] & 0x7F) + 1
    colours = _box(_box(data, b"jp2h"), b"colr")
    if bytes(colours[:1]) in (b"\2", b"\3"):
        image.info["icc_profile"] = bytes(colours[3:])
