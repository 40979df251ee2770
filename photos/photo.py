"""Photographs as files store them, as a generator sees them, and as they are written back."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, JpegImagePlugin, PngImagePlugin

from photos.crops import align, paste
from photos.faces import Face
from utils import Template, open_image, to_rgb, turn_upright

MAX_CROP_ASPECT = 4  # of what the network sees of a whole image: longer ones are seen squeezed, and come out whole
LABEL = (  # https://cv.iptc.org/newscodes/digitalsourcetype/
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" Iptc4xmpExt:DigitalSourceType='
    '"http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"/></rdf:RDF></x:xmpmeta>'
)
Pixels = np.ndarray  # (H, W, 3) uint8 RGB
Crop = np.ndarray  # (h, w, 3) RGB, 0 to 255


class Region(Protocol):
    """A part of a photograph that the generator translates."""

    def crop(self, pixels: Pixels) -> Crop:
        """The part as the generator is given it."""

    def put_back(self, pixels: Pixels, before: Crop, after: Crop) -> None:
        """Add what changed in the crop to the photograph's pixels, in place."""


@dataclass(frozen=True)
class FaceRegion:
    """A face, aligned as the template says in a crop of `size` x `size` px."""

    face: Face
    template: Template
    size: int

    def crop(self, pixels: Pixels) -> Crop:
        return align(pixels, self.face, self.template, self.size)

    def put_back(self, pixels: Pixels, before: Crop, after: Crop) -> None:
        paste(pixels, before, after, self.face, self.template)


@dataclass(frozen=True)
class WholeImage:
    """The whole image, with a short side of `size` px in the crop."""

    size: int

    def crop(self, pixels: Pixels) -> Crop:
        """Both sides are multiples of 4 px; an image of more than MAX_CROP_ASPECT is squeezed."""
        short = min(pixels.shape[:2])
        height, width = (min(self.size * side / short, self.size * MAX_CROP_ASPECT) for side in pixels.shape[:2])
        crop = resize(pixels, max(4, round(height / 4) * 4), max(4, round(width / 4) * 4))
        return crop.clip(0, 255)  # bicubic interpolation overshoots

    def put_back(self, pixels: Pixels, before: Crop, after: Crop) -> None:
        """The change is resized, not the image: its own detail stays sharp."""
        changed = pixels + resize(after - before, *pixels.shape[:2])
        pixels[:] = np.rint(changed, out=changed).clip(0, 255, out=changed)


@dataclass
class Photo:
    """A photograph while it is translated: its own pixels, what the generator sees of it, and the result."""

    original: Image.Image  # upright
    seen: Pixels  # transparency on white
    colours: Pixels  # changes are added to these: `seen` itself, or the true colours of a transparent file
    alpha: Image.Image | None
    regions: Sequence[Region] = ()  # what was translated

    @property
    def num_faces(self) -> int:
        return sum(isinstance(region, FaceRegion) for region in self.regions)

    @property
    def result(self) -> Image.Image:
        if not self.regions:
            return self.original
        image = Image.fromarray(self.colours)
        if self.alpha:
            image.putalpha(self.alpha)
        return image


def open_photo(image: Image.Image) -> Photo:
    """A PIL image of any mode, turned upright, as the translator works on it; ValueError for 32-bit modes."""
    upright = turn_upright(image)
    seen = np.array(to_rgb(upright))
    if not upright.has_transparency_data:
        return Photo(upright, seen, seen, None)
    rgba = upright.convert("RGBA")
    return Photo(upright, seen, np.array(rgba)[..., :3].copy(), rgba.getchannel("A"))


def resize(pixels: np.ndarray, height: int, width: int) -> Crop:
    """Resize (H, W, 3) to (height, width, 3) float32, without aliasing when it shrinks."""
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    resized = F.interpolate(image, (height, width), mode="bicubic", antialias=True, align_corners=False)
    result: Crop = resized[0].permute(1, 2, 0).contiguous().numpy()
    return result


# --- Files


@dataclass(frozen=True)
class Storage:
    """How a file stored its image, so that the result is stored alike."""

    format: str
    options: dict[str, Any]


def read_photo(source: str | os.PathLike[str] | IO[bytes]) -> tuple[Photo, Storage]:
    """An image file's first frame, and how it was stored; errors as of `utils.open_image`."""
    image = open_image(source)
    assert image.format is not None
    options: dict[str, Any] = {}
    if image.mode in ("RGB", "RGBA", "P"):
        options["icc_profile"] = image.info.get("icc_profile")
    if isinstance(image, JpegImagePlugin.JpegImageFile) and image.mode == "RGB":
        # The same compression again: what is not translated hardly changes.
        options |= {"qtables": image.quantization, "subsampling": JpegImagePlugin.get_sampling(image)}
    elif image.format == "JPEG":
        options["quality"] = 95
    elif image.format == "WEBP":
        options["lossless"] = True
    elif image.format == "TIFF":
        options["compression"] = "tiff_deflate"
    # cameras' MPO is a JPEG with further pictures behind it
    return open_photo(image), Storage("JPEG" if image.format == "MPO" else image.format, options)


def write_photo(
    photo: Photo, target: Path | io.BytesIO, storage: Storage, side_by_side: bool = False, label: bool = True
) -> None:
    """Write the result as the original was stored, without the original's metadata: neither place nor time are copied.

    With `side_by_side`, the original is to the left of it. With `label`, a JPEG, PNG or WebP file says in its XMP
    metadata that a trained model has changed the photograph, if it has.
    """
    image = beside(photo.original, photo.result) if side_by_side else photo.result
    options, label = dict(storage.options), label and bool(photo.regions)
    if label and storage.format == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", LABEL)
    elif label and storage.format in ("JPEG", "WEBP"):
        options["xmp"] = LABEL.encode()
    untouched = not photo.regions and not side_by_side  # then a palette's transparent colour is what it was
    image.info = {key: image.info[key] for key in ("transparency",) if untouched and key in image.info}
    image.save(target, storage.format, **options)


def beside(before: Image.Image, after: Image.Image) -> Image.Image:
    """Two images of one size in one picture."""
    picture = Image.new(after.mode, (2 * after.width, after.height))
    picture.paste(before.convert(after.mode), (0, 0))
    picture.paste(after, (after.width, 0))
    return picture
