"""Take an image file apart, and put it together again without what is damaged and not needed to show the image."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Literal

PNG_START, JPEG_START, TIFF_STARTS = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", (b"II*\0", b"MM\0*")
JPEG_SCAN, JPEG_END = b"\xff\xda", b"\xff\xd9"  # These markers begin the pixels and end the picture.
PNG_NEEDED = (b"IHDR", b"PLTE", b"IDAT", b"IEND")  # The rest does not show in the picture,
PNG_ANIMATION = (b"acTL", b"fcTL", b"fdAT")  # but these hold further frames,
PNG_USEFUL = (b"tRNS", b"iCCP", b"eXIf")  # and these change what is seen, if they are whole.
WEBP_NEEDED = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
WEBP_EXTRAS = 0x20 | 0x08 | 0x04  # These bits of the VP8X chunk announce a colour profile, EXIF data and XMP data.
JPEG_NEEDED = (0xE0, 0xEE)  # Of the segments APP0 to APP15, JFIF and Adobe say how colours are coded.
JPEG_USEFUL = (0xE1, 0xE2)  # EXIF orientations and colour profiles stand in these.
TIFF_NEEDED = (
    254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338,
    339, 347, 512, 513, 514, 515, 517, 519, 520, 521, 529, 530, 531, 532, 34675,
)  # fmt: skip


def can_be_salvaged(head: bytes) -> bool:
    """Whether `salvaged` knows the format of a file that starts with these bytes."""
    return head.startswith((PNG_START, JPEG_START, *TIFF_STARTS)) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def was_cut_off(data: bytes) -> bool:
    """Whether an animated WebP file is shorter than it says, and so lacks frames."""
    return data[8:12] == b"WEBP" and b"ANIM" in data[:64] and int.from_bytes(data[4:8], "little") + 8 > len(data)


def lacks_jpeg_end(data: bytes) -> bool:
    """Whether no end marker follows the pixels of a JPEG file."""
    return data.rfind(JPEG_END) < data.rfind(JPEG_SCAN)


def salvaged(data: bytes) -> Iterator[bytes]:
    """Copies of an image file of such a format, each with less beside the picture itself."""
    if data.startswith(PNG_START):
        for useful in (PNG_USEFUL, PNG_USEFUL[:1], ()):
            yield _png(data, PNG_NEEDED + PNG_ANIMATION + useful)
        yield _png(data, PNG_NEEDED)
    elif data.startswith(JPEG_START):
        for kept in (JPEG_NEEDED + JPEG_USEFUL, JPEG_NEEDED + JPEG_USEFUL[:1], JPEG_NEEDED):
            yield _jpeg(data, kept)
    elif data.startswith(TIFF_STARTS):
        yield _tiff(data)
    else:
        yield _webp(data)


def _png(data: bytes, kept: tuple[bytes, ...]) -> bytes:
    """A PNG file with some kinds of chunks only; those that are merely useful must have the right checksum."""
    parts, at = [PNG_START], len(PNG_START)
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        kind, end = data[at + 4 : at + 8], at + 12 + size
        is_whole = zlib.crc32(data[at + 4 : end - 4]).to_bytes(4, "big") == data[end - 4 : end]
        if kind in kept and (is_whole or kind not in PNG_USEFUL):
            parts.append(data[at:end])
        if kind == b"IEND":
            break
        at = end
    return b"".join(parts)


def _jpeg(data: bytes, kept: tuple[int, ...]) -> bytes:
    """A JPEG file that has of its application segments and comments only some kinds."""
    parts, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        kind, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        is_extra = 0xE0 <= kind <= 0xEF or kind == 0xFE
        if kind in kept or not is_extra:
            parts.append(data[at:end])
        at = end
    return b"".join([*parts, data[at:]])


def _webp(data: bytes) -> bytes:
    """A WebP file without profile, EXIF and XMP data, without what follows it, and without a frame that was cut off."""
    parts, at = [], 12
    while at + 8 <= len(data):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        end = at + 8 + size + size % 2
        if kind == b"VP8X":
            parts.append(data[at : at + 8] + bytes([data[at + 8] & ~WEBP_EXTRAS]) + data[at + 9 : end])
        elif kind in WEBP_NEEDED and (kind != b"ANMF" or end <= len(data)):  # The last frame may have been cut off.
            parts.append(data[at:end])
        at = end
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _tiff(data: bytes) -> bytes:
    """A TIFF file in whose directories only the tags remain that say how the pixels are stored."""
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    result = bytearray(data)
    at, seen = int.from_bytes(data[4:8], order), set()
    while 8 <= at < len(data) - 2 and at not in seen:  # The directories of a damaged file may form a circle.
        seen.add(at)
        count = int.from_bytes(data[at : at + 2], order)
        end = at + 2 + 12 * count
        entries = [data[start : start + 12] for start in range(at + 2, end, 12)]
        kept = [entry for entry in entries if int.from_bytes(entry[:2], order) in TIFF_NEEDED]
        following = data[end : end + 4].ljust(4, b"\0")
        block = len(kept).to_bytes(2, order) + b"".join(kept) + following
        result[at : at + len(block)] = block
        at = int.from_bytes(following, order)
    return bytes(result)
