"""Build ICC profiles from the corners of a colour space and the curve of its values."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from images.light import HLG, PQ, from_hdr

D50 = (0.9642, 1.0, 0.8249)  # the white of all profiles, XYZ
D65 = (0.3127, 0.3290)
BT709 = (*D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # White, red, green and blue of sRGB as well: x and y of each.
BRADFORD = ((0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367), (0.0389, -0.0685, 1.0296))  # ICC.1, annex E
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)  # IEC 61966-2-1, in the order of ICC.1, 10.18
TABLE_SIZE = 4096  # A curve without a formula is given by this many values.
SAME = 0.002  # Corners that differ by no more than this are the same: files round them.


@dataclass(frozen=True)
class ColourSpace:
    """What the values of an image mean.

    Attributes:
        corners: the chromaticities x and y of white, red, green and blue.
        curve: the exponent that turns values into light; None for the curve of sRGB.
        hdr: PQ or HLG instead of a curve; 0 for ordinary images.
    """

    corners: tuple[float, ...] = BT709
    curve: float | None = None
    hdr: int = 0

    def is_srgb(self, *, grey: bool) -> bool:
        """Whether a viewer shows an image in this space as if it were in sRGB."""
        return self.curve is None and not self.hdr and (grey or np.abs(np.subtract(self.corners, BT709)).max() < SAME)

    def profile(self, *, grey: bool) -> bytes:
        """An ICC profile for images in this space, RGB or grey. In HDR, all beyond ordinary white is white.

        Raises:
            ValueError: the corners are not those of a triangle around the white.
        """
        adaptation = _adaptation(_xyz(*self.corners[:2]))
        tags = {b"desc": _text("stated by the image"), b"cprt": _text("CC0"), b"wtpt": _xyz_tag(D50),
                b"chad": b"sf32\0\0\0\0" + _fixed(*adaptation.ravel())}  # fmt: skip
        if grey:
            tags[b"kTRC"] = self._curve_tag()
        else:
            for name, xyz in zip((b"r", b"g", b"b"), (adaptation @ _primaries(self.corners)).T, strict=True):
                tags |= {name + b"XYZ": _xyz_tag(xyz), name + b"TRC": self._curve_tag()}
        return _file(tags, b"GRAY" if grey else b"RGB ")

    def _curve_tag(self) -> bytes:
        if self.hdr in (PQ, HLG):
            light = from_hdr(np.arange(TABLE_SIZE) / (TABLE_SIZE - 1), self.hdr).clip(0, 1)
            values: bytes = np.rint(light * 65535).astype(">u2").tobytes()
            return b"curv\0\0\0\0" + struct.pack(">I", TABLE_SIZE) + values
        kind, numbers = (3, SRGB_CURVE) if self.curve is None else (0, (self.curve,))
        return b"para\0\0\0\0" + struct.pack(">HH", kind, 0) + _fixed(*numbers)


def _xyz(x: float, y: float) -> np.ndarray:
    """The colour of this chromaticity and of luminance 1, XYZ."""
    if y <= 0:
        raise ValueError(f"a chromaticity y of {y:g}")
    return np.array([x / y, 1, (1 - x - y) / y])


def _primaries(corners: tuple[float, ...]) -> np.ndarray:
    """XYZ of red, green and blue, as columns, so that their sum is the white."""
    white, *colours = (_xyz(*corners[start : start + 2]) for start in range(0, 8, 2))
    matrix = np.stack(colours, axis=1)
    if abs(np.linalg.det(matrix)) < SAME:
        raise ValueError("primaries on one line")
    amounts = np.linalg.solve(matrix, white)
    if (amounts <= 0).any():
        raise ValueError("a white outside its primaries")
    result: np.ndarray = matrix * amounts
    return result


def _adaptation(white: np.ndarray) -> np.ndarray:
    """The matrix that maps XYZ seen beside this white to XYZ seen beside D50."""
    cones = np.array(BRADFORD)
    result: np.ndarray = np.linalg.inv(cones) @ np.diag((cones @ D50) / (cones @ white)) @ cones
    return result


# --- The file, as in ICC.1:2022


def _fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)


def _xyz_tag(xyz: tuple[float, ...] | np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(*xyz)


def _text(text: str) -> bytes:
    data = text.encode("utf-16-be")
    return b"mluc\0\0\0\0" + struct.pack(">II4sII", 1, 12, b"enUS", len(data), 28) + data


def _file(tags: dict[bytes, bytes], space: bytes) -> bytes:
    start = 128 + 4 + 12 * len(tags)
    table, data = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(data), bytes(4), 0x04300000, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _fixed(*D50)
    return head + bytes(128 - len(head)) + table + data
