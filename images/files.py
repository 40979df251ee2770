"""Open image files of many formats, which their content tells and not their names, and decode them upright."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError, features

from images.colours import is_readable_profile, to_plain_srgb
from images.salvage import JPEG_END, JPEG_START, can_be_salvaged, lacks_jpeg_end, salvaged, was_cut_off
from images.stated_colours import state_colours

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM")  # HEIF comes from a package.
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".avif",
    ".avifs", ".heic", ".heif", ".hif", ".heics", ".heifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ppm",
    ".pgm", ".pbm", ".pnm", ".mpo",
)  # fmt: skip
ORIENTATION = 0x0112  # This EXIF tag says how to turn an image upright:
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SUBFILE_TYPE = 254  # The first bit of this TIFF tag marks a smaller copy of another image, the third bit a mask.
MAX_PIXELS = 89_478_485  # Training refuses images with more pixels.
AVIF_BRANDS = (b"avif", b"avis")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
COMMON_BRANDS = (b"mif1", b"mif2", b"msf1")  # Files of both kinds may carry these.
Source = str | os.PathLike[str] | IO[bytes]


class LeftOut(UserWarning):
    """Warns that something in an image file that the picture does not need cannot be read."""


class Refused(ValueError):
    """An image that is whole, but not one that we want."""


def may_be_image(file: Path) -> bool:
    """Whether a file may be an image: it has the suffix of one, or its content is one, whatever its name."""
    if file.suffix.lower() in IMAGE_SUFFIXES:
        return True
    if not file.is_file():  # Reading from a pipe would block for ever.
        return False
    try:
        with file.open("rb") as opened:
            if _is_heif(_first_bytes(opened)):
                return True
        with warnings.catch_warnings(action="ignore"), _without_pillows_limit(), _open(file, _accept):
            return True
    except Exception:  # Decoders may raise any exception on a file that is not for them.
        return False


def _accept(image: Image.Image) -> None:
    """Accept every image."""


@contextmanager
def opened_image(
    source: Source, *, min_side: int = 1, max_pixels: int = MAX_PIXELS, notes: list[str] | None = None
) -> Iterator[Image.Image]:
    """Open an image file at its first frame, which `decode` then decodes.

    What is damaged but not needed, such as EXIF values, text and colour profiles, is left out.

    Args:
        source: a path or a binary file; its format is recognised by its content, not by its name.
        min_side: refuse images with a shorter side than this, px.
        max_pixels: refuse images with more pixels than this.
        notes: what has been left out is appended to this, one phrase each.

    Raises:
        OSError, ValueError, SyntaxError: the file is not an image of a format that we read, is damaged, too small or
            too large. Pillow has no common exception for bad data, and some decoders raise yet others.
    """

    def check(image: Image.Image) -> None:
        if image.width * image.height > max_pixels:
            raise Refused(f"too large: {image.width}x{image.height} px, over {max_pixels} pixels")
        if min(image.size) < min_side:
            raise Refused(f"too small: {image.width}x{image.height} px, under {min_side} px")
        if image.format == "TIFF" and subfile_type(image) & 1:
            raise Refused("a camera's raw file: only its preview could be read; develop it to JPEG or TIFF")
        _state_colours(image)
        if image.format == "PNG":  # Only then has Pillow read what follows the pixels.
            _warn_of_depth(image)
            image.load()

    with warnings.catch_warnings(record=True) as caught, _without_pillows_limit():
        warnings.simplefilter("always")
        with _open(source, check) as image:
            yield image
    if notes is not None:
        notes += dict.fromkeys(_phrase(item.message) for item in caught if issubclass(item.category, UserWarning))


def _state_colours(image: Image.Image) -> None:
    """`state_colours`, with a warning where what the file says makes no sense."""
    try:
        state_colours(image)
    except Exception:  # Damaged data have no common exception.
        warnings.warn("what the file says about its colours, which makes no sense", LeftOut, stacklevel=2)


def _phrase(message: Warning | str) -> str:
    """What a warning says has been left out."""
    text = str(message).strip() or "unknown"
    return text if isinstance(message, LeftOut) else f"damaged metadata ({text.splitlines()[0].rstrip('.')})"


def subfile_type(image: Image.Image) -> int:
    """What a page of a TIFF is for (see SUBFILE_TYPE); 0 for ordinary pages and other formats."""
    value = image.tag_v2.get(SUBFILE_TYPE, 0) if isinstance(image, TiffImagePlugin.TiffImageFile) else 0
    return value if isinstance(value, int) else 0


def decode(image: Image.Image) -> Image.Image:
    """Decode the current frame of an opened image fully, to detect truncated files, and turn it upright.

    Returns:
        An image in the file's mode, or I;16 for all 16-bit grey; it may be the opened image itself. HDR becomes sRGB,
        with a warning. A colour profile that cannot be used is removed from its `info`, with a warning.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile) and TiffImagePlugin.ICCPROFILE not in image.tag_v2:
        image.info.pop("icc_profile", None)  # Pillow keeps that of the page before.
        _state_colours(image)
    _warn_of_depth(image)
    image.load()
    if image.info.get("hdr"):
        warnings.warn("the light of HDR beyond ordinary white", LeftOut, stacklevel=2)
        return turn_upright(to_plain_srgb(image))
    profile = image.info.get("icc_profile", b"")
    if profile is None or (profile and not is_readable_profile(profile)):  # Pillow puts None for an incomplete one.
        warnings.warn("a damaged colour profile", LeftOut, stacklevel=2)
        del image.info["icc_profile"]
    upright = turn_upright(image)
    has_known_range = image.mode == "I" and image.format == "PPM"  # Pillow scales these to 0 to 65535.
    if has_known_range or (image.mode.startswith("I;16") and image.mode != "I;16"):
        grey = Image.fromarray(np.asarray(upright).astype(np.uint16))
        grey.info = upright.info
        return grey
    return upright


def _warn_of_depth(image: Image.Image) -> None:
    """Warn if decoding an image will reduce its colours to 8 bits a channel; Pillow keeps 16 bits of grey only."""
    storage = [tile.args for tile in getattr(image, "tile", ())]
    is_deep = ";16" in str(storage) or image.info.get("bit_depth", 8) > 8
    if image.format == "PPM" and storage and isinstance(storage[0], tuple):  # It ends with the highest value.
        is_deep = storage[0][-1] > 255
    if is_deep and not image.mode.startswith("I"):
        warnings.warn("all but the first 8 bits of each colour channel", LeftOut, stacklevel=3)


def turn_upright(image: Image.Image) -> Image.Image:
    """Turn an image upright according to its EXIF orientation; an upright image is returned unchanged."""
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow raises various exceptions on damaged EXIF data.
        warnings.warn("damaged EXIF data", LeftOut, stacklevel=2)
        return image
    if turn is None:
        return image
    turned = image.transpose(turn)
    for name in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"):  # These say how to turn the original.
        turned.info.pop(name, None)
    return turned


def _open(source: Source, check: Callable[[Image.Image], None]) -> Image.Image:
    """`Image.open` for our formats; a file whose metadata keep Pillow from opening it is opened without them.

    `check` is given the image, and raises Refused if it is unwanted.
    """
    if isinstance(source, (str, os.PathLike)):
        with open(source, "rb") as file:
            head, last = _first_bytes(file), _last_bytes(file)
    else:
        head, last = _first_bytes(source), _last_bytes(source)
    formats: tuple[str, ...] = IMAGE_FORMATS
    if head.startswith(JPEG_START):
        source = source if last == JPEG_END else _with_jpeg_end(source)
    elif _is_heif(head):
        register_heif()
        formats = ("HEIF",)
    elif head[4:8] == b"ftyp" and head[8:12] in AVIF_BRANDS and not features.check("avif"):
        raise ValueError("this Pillow cannot read AVIF: pip install --upgrade pillow")
    try:
        return _open_checked(source, formats, check)
    except Refused:
        raise
    except Exception as error:  # Decoders may raise any exception on damaged data.
        if not can_be_salvaged(head):
            if isinstance(error, UnidentifiedImageError):  # Pillow's text is hardly more than the file's name.
                reason = "not an image of a format that this program reads" if head else "the file is empty"
                raise UnidentifiedImageError(reason) from error
            raise
        data = _all_bytes(source)
        for candidate in salvaged(data):
            try:
                image = _open_checked(io.BytesIO(candidate), formats, check)
            except Refused:
                raise
            except Exception:  # The next candidate has less that may be damaged.
                continue
            lost = "the frames that were cut off" if was_cut_off(data) else "damaged metadata"
            warnings.warn(lost, LeftOut, stacklevel=2)
            return image
        raise


def _open_checked(
    source: Source, formats: tuple[str, ...], check: Callable[[Image.Image], None]
) -> ImageFile.ImageFile:
    try:
        image = Image.open(source, formats=formats)
    except MemoryError as error:  # Opening reads the head of a file; that of a JPEG 2000 file may claim any length.
        raise OSError("damaged: its head claims to be larger than any file") from error
    try:
        check(image)
    except BaseException:
        if isinstance(source, (str, os.PathLike)):  # A stream is not ours to close.
            image.close()
        raise
    return image


def _with_jpeg_end(source: Source) -> Source:
    """A JPEG file that lacks nothing but its end marker, with the marker; every other file as it is."""
    data = _all_bytes(source).removesuffix(JPEG_END[:1])
    if not lacks_jpeg_end(data):  # Other data follow the picture.
        return source
    try:
        one, other = (Image.open(io.BytesIO(data + more + JPEG_END), formats=("JPEG",)) for more in (b"", b"\x55" * 64))
        # A decoder takes what follows the data of an incomplete picture for its pixels, and skips it otherwise.
        is_whole = one.width * one.height <= MAX_PIXELS and one.tobytes() == other.tobytes()
    except Exception:  # Decoders may raise any exception on damaged data.
        return source
    return io.BytesIO(data + JPEG_END) if is_whole else source


def _all_bytes(source: Source) -> bytes:
    if isinstance(source, (str, os.PathLike)):
        return Path(source).read_bytes()
    source.seek(0)
    data = source.read()
    source.seek(0)
    return data


def _first_bytes(file: IO[bytes]) -> bytes:
    """The first bytes of a file, which is left at its start."""
    head = file.read(64)
    file.seek(0)
    return head


def _last_bytes(file: IO[bytes]) -> bytes:
    """The last two bytes of a file, which is left at its start."""
    file.seek(-min(2, file.seek(0, os.SEEK_END)), os.SEEK_END)
    last = file.read()
    file.seek(0)
    return last


def _is_heif(head: bytes) -> bool:
    """Whether a file that starts with these bytes is HEIF, and not AVIF, which is built alike."""
    if head[4:8] != b"ftyp":
        return False
    size = int.from_bytes(head[:4], "big")
    brands = [head[start : start + 4] for start in (8, *range(16, min(size, len(head)), 4))]
    if brands[0] in AVIF_BRANDS:
        return False
    return brands[0] in HEIF_BRANDS or (brands[0] in COMMON_BRANDS and not set(brands) & set(AVIF_BRANDS))


def register_heif() -> None:
    """Let Pillow open HEIF files; ValueError, which says what to do, without the optional package for this."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise ValueError("HEIC and HEIF images need pillow-heif: pip install -r requirements-extra.txt") from None
    register_heif_opener()


@contextmanager
def _without_pillows_limit() -> Iterator[None]:
    """Pillow neither warns of large images nor refuses them, since `opened_image` has a limit of its own."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        if limit is not None:  # It is None while another thread opens an image as well.
            Image.MAX_IMAGE_PIXELS = limit
