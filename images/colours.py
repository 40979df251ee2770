"""Convert images of any mode and colour profile to sRGB, and bring a change of their sRGB colours back to them."""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image, ImageCms

SPACES = {"L": "GRAY", "I;16": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # The colour space of a profile for each mode.
ROWS = 512  # Large images are converted in strips of this many rows, which bounds the memory.


@functools.lru_cache(maxsize=16)
def is_readable_profile(profile: bytes) -> bool:
    """Whether an ICC profile can be parsed."""
    try:
        return bool(_space(profile))
    except (OSError, ImageCms.PyCMSError):
        return False


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to sRGB with 8 bits per channel: honour its colour profile, scale 16-bit grey, and
    put a white background behind transparent pixels. An opaque RGB image without a profile is returned unchanged.

    Raises:
        ValueError: the image has 32 bits per channel.
    """
    rgb = _to_srgb(opaque(image))
    if not image.has_transparency_data or image.mode.startswith("I;16"):
        return rgb
    return Image.composite(rgb, Image.new("RGB", rgb.size, "white"), alpha_of(image))


def to_plain_srgb(image: Image.Image) -> Image.Image:
    """An image of any mode in sRGB, with its transparency, if it has any, and without a profile.

    Raises:
        ValueError: the image has 32 bits per channel.
    """
    result = _to_srgb(opaque(image)).copy()
    if image.has_transparency_data:
        result.putalpha(alpha_of(image))
    kept = ("icc_profile", "transparency", "hdr")
    result.info = {key: value for key, value in image.info.items() if key not in kept}
    return result


def alpha_of(image: Image.Image) -> Image.Image:
    """The transparency of an image that has any, as an image of mode L."""
    return (image if image.mode in ("RGBA", "LA") else image.convert("RGBA")).getchannel("A")


def opaque(image: Image.Image) -> Image.Image:
    """The same image without its transparency, in one of the modes of SPACES; it may be the image itself.

    Raises:
        ValueError: the image has 32 bits per channel.
    """
    mode = image.mode
    if mode in ("I", "F"):
        raise ValueError("32-bit images are not supported: their range is unknown")
    if mode in SPACES:
        return image
    if mode.startswith("I;16"):
        result = Image.fromarray(np.asarray(image).astype(np.uint16))
    elif mode in ("1", "LA", "La"):
        result = (image.convert("LA") if mode == "La" else image).convert("L")
    elif mode == "LAB":
        return image.convert("RGB")  # Its profile does not describe these values.
    else:
        result = (image.convert("RGBA") if image.has_transparency_data else image).convert("RGB")
    result.info = {key: image.info[key] for key in ("icc_profile",) if key in image.info}
    return result


def transfer(original: Image.Image, after: np.ndarray) -> Image.Image:
    """Bring a change of an image's sRGB colours back to its own colours, mode and depth.

    The difference between both colours, each converted back through the profile, is added to the original's values, so
    that what has not changed keeps them exactly, even where they have more bits or a wider gamut than sRGB. Where all
    channels of the original are equal, the result has only the brightness of the change.

    Args:
        original: an image of any mode that `to_rgb` accepts.
        after: (H, W, 3) uint8, sRGB: the changed colours, without a background behind transparent pixels.

    Returns:
        A new image with the profile and the transparency of the original.
    """
    base = opaque(original)
    result = base.copy()
    is_grey = base.mode == "RGB" and _has_equal_channels(base)
    for top in range(0, base.height, ROWS):
        strip = base.crop((0, top, base.width, min(top + ROWS, base.height)))
        before, new = np.asarray(_to_srgb(strip)), after[top : top + ROWS]
        if (new != before).any():
            changed = np.asarray(strip) + _change_back(strip, before, new, is_grey)
            values = np.rint(changed).clip(0, 65535 if base.mode == "I;16" else 255)
            values = values.astype(np.uint16 if base.mode == "I;16" else np.uint8)
            result.paste(Image.frombytes(strip.mode, strip.size, values.tobytes()), (0, top))
    profile = base.info.get("icc_profile")
    result.info = {"icc_profile": profile} if profile else {}
    if original.mode.startswith("I;16"):
        result.info |= {key: original.info[key] for key in ("transparency",) if key in original.info}
    elif original.has_transparency_data:
        result.putalpha(alpha_of(original))
    return result


def _change_back(strip: Image.Image, before: np.ndarray, after: np.ndarray, is_grey: bool) -> np.ndarray:
    """The change between two versions of a strip, (h, w, 3) uint8 sRGB, as a change of the strip's own values."""
    mode, profile = strip.mode, strip.info.get("icc_profile")
    if mode in ("L", "I;16"):
        levels = _levels_from_srgb(mode, profile)
        moved: np.ndarray = levels[_brightness(after)] - levels[_brightness(before)]
        return moved
    transform = _transform(profile, mode, back=True) if profile else None
    if transform is None and mode == "CMYK":
        ink = 255 - np.asarray(strip)[..., 3:].astype(np.float32)  # Pillow: rgb = (255 - cmy) * (255 - k) / 255
        change = (before.astype(np.float32) - after) * 255 / np.maximum(ink, 1)
        return np.pad(change, ((0, 0), (0, 0), (0, 1)))
    if transform is not None:
        before, after = (np.asarray(transform.apply(Image.fromarray(pixels))) for pixels in (before, after))
    if is_grey:
        before, after = _brightness(before)[..., None], _brightness(after)[..., None]
    difference: np.ndarray = after.astype(np.int16) - before
    return difference


def _brightness(pixels: np.ndarray) -> np.ndarray:
    """The grey level of RGB pixels, (h, w, 3) to (h, w), uint8."""
    grey: np.ndarray = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))
    return grey


def _has_equal_channels(image: Image.Image) -> bool:
    """Whether an RGB image is black and white."""
    for top in range(0, image.height, ROWS):
        pixels = np.asarray(image.crop((0, top, image.width, min(top + ROWS, image.height))))
        if (pixels[..., :2] != pixels[..., 1:]).any():
            return False
    return True


# --- Profiles


def _to_srgb(image: Image.Image) -> Image.Image:
    """An opaque image in one of the modes of SPACES as sRGB; it may be the image itself."""
    profile = image.info.get("icc_profile")
    if image.mode in ("L", "I;16"):
        levels = _levels_to_srgb(image.mode, profile)
        return Image.fromarray(levels[np.asarray(image)]).convert("RGB")
    transform = _transform(profile, image.mode) if profile else None
    if transform is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    result: Image.Image = transform.apply(image)
    return result


@functools.lru_cache(maxsize=8)
def _levels_to_srgb(mode: str, profile: bytes | None) -> np.ndarray:
    """The sRGB level, uint8, of each level of a grey image, of which there are 256 or 65536."""
    levels = np.arange(65536, dtype=np.uint16)[None] if mode == "I;16" else np.arange(256, dtype=np.uint8)[None]
    linear = (levels // 257 if mode == "I;16" else levels).astype(np.uint8)
    space = _space(profile) if profile else ""
    transform = _transform(profile, mode if space == "GRAY" else "RGB") if profile else None
    result = Image.fromarray(linear)
    if transform and space == "GRAY":
        result = transform.apply(Image.fromarray(levels))
    elif transform:  # The image became grey after it had got a profile for colours.
        result = transform.apply(result.convert("RGB"))
    return np.asarray(result.convert("RGB"))[0, :, 1].copy()


@functools.lru_cache(maxsize=8)
def _levels_from_srgb(mode: str, profile: bytes | None) -> np.ndarray:
    """The level of a grey image, float32, for each of the 256 grey levels of sRGB."""
    # Each level of sRGB may come from several levels of the image, in whose middle it lies.
    to_srgb = _levels_to_srgb(mode, profile)
    levels = np.arange(len(to_srgb), dtype=np.float32)
    reached = np.unique(to_srgb)
    middles = [levels[to_srgb == level].mean() for level in reached]
    result: np.ndarray = np.interp(np.arange(256), reached, middles).astype(np.float32)
    return result


def _space(profile: bytes) -> str:
    """The colour space of an ICC profile: "RGB", "GRAY", "CMYK" or another."""
    return str(ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space).strip()


@functools.lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str, *, back: bool = False) -> ImageCms.ImageCmsTransform | None:
    """The transform of images from a profile to sRGB, or back; None if that changes nothing or is impossible.

    A profile cannot be used for images in another colour space, and scanners' profiles may work in one direction only.
    """
    try:
        own, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        if str(own.profile.xcolor_space).strip() != SPACES[mode]:
            return None
        flags = ImageCms.Flags.NOOPTIMIZE if SPACES[mode] == "GRAY" else ImageCms.Flags.NONE  # more exact, but slow
        if back:
            transform = ImageCms.buildTransform(srgb, own, "RGB", mode, flags=flags)
        else:
            transform = ImageCms.buildTransform(own, srgb, mode, "RGB", flags=flags)
    except (OSError, ImageCms.PyCMSError):
        return None
    return None if mode == "RGB" and _is_identity(transform) else transform


def _is_identity(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether a transform between RGB images changes no colour visibly, as that from sRGB to sRGB."""
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
    return int(np.abs(np.asarray(transform.apply(Image.fromarray(colours)), int) - colours).max()) <= 1
