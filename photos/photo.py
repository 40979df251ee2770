"""Read photographs from files, cut out what a generator translates, and write the results in the same format."""

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

MAX_CROP_ASPECT = 4  # Images more than this many times as long as wide are squeezed for the network, and only there.
# This XMP packet declares that a trained model has changed the photograph. The IPTC defines its term:
# https://cv.iptc.org/newscodes/digitalsourcetype/
LABEL = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" Iptc4xmpExt:DigitalSourceType='
    '"http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"/></rdf:RDF></x:xmpmeta>'
)
Pixels = np.ndarray  # A photograph, (H, W, 3) uint8 RGB.
Crop = np.ndarray  # A generator's input or output, (h, w, 3) RGB, uint8 or float32, 0 to 255.


class Region(Protocol):
    """A part of a photograph that the generator translates."""

    def crop(self, pixels: Pixels) -> Crop:
        """The generator's input for this part."""

    def put_back(self, pixels: Pixels, *, before: Crop, after: Crop) -> None:
        """Add the change between two versions of the crop to the photograph's pixels, in place."""


@dataclass(frozen=True)
class FaceRegion:
    """A face, aligned to the template in a crop of `size` x `size` px."""

    face: Face
    template: Template
    size: int

    def crop(self, pixels: Pixels) -> Crop:
        return align(pixels, self.face, self.template, self.size)

    def put_back(self, pixels: Pixels, *, before: Crop, after: Crop) -> None:
        paste(pixels, self.face, template=self.template, before=before, after=after)


@dataclass(frozen=True)
class WholeImage:
    """The whole image, resized to a short side of `size` px."""

    size: int

    def crop(self, pixels: Pixels) -> Crop:
        """The resized image, float32; its sides are multiples of 4 px, and its aspect is at most MAX_CROP_ASPECT."""
        short = min(pixels.shape[:2])
        height, width = (min(self.size * side / short, self.size * MAX_CROP_ASPECT) for side in pixels.shape[:2])
        crop = resize(pixels, max(4, round(height / 4) * 4), max(4, round(width / 4) * 4))
        return crop.clip(0, 255)  # Bicubic interpolation overshoots.

    def put_back(self, pixels: Pixels, *, before: Crop, after: Crop) -> None:
        """Resize the change, not the image, so that the image's own detail stays sharp."""
        changed = pixels + resize(after - before, *pixels.shape[:2])
        pixels[:] = np.rint(changed, out=changed).clip(0, 255, out=changed)


@dataclass
class Photo:
    """A photograph while it is translated.

    Attributes:
        original: the image as it was opened, upright.
        pixels: the generator's input comes from these, in which transparent areas are white.
        colours: changes are added to these, which are `pixels` itself unless the original is transparent.
        alpha: the original's transparency, if it has any.
        regions: the parts that have been translated.
    """

    original: Image.Image
    pixels: Pixels
    colours: Pixels
    alpha: Image.Image | None
    regions: Sequence[Region] = ()

    @property
    def num_faces(self) -> int:
        """How many faces have been translated."""
        return sum(isinstance(region, FaceRegion) for region in self.regions)

    @property
    def result(self) -> Image.Image:
        """The translated photograph; the original itself where nothing has been translated."""
        if not self.regions:
            return self.original
        image = Image.fromarray(self.colours)
        if self.alpha:
            image.putalpha(self.alpha)
        return image


def open_photo(image: Image.Image) -> Photo:
    """Prepare a PIL image of any mode for translation.

    Raises:
        ValueError: the image has 32 bits a channel.
    """
    upright = turn_upright(image)
    pixels = np.array(to_rgb(upright))
    if not upright.has_transparency_data:
        return Photo(upright, pixels, pixels, None)
    rgba = upright.convert("RGBA")
    return Photo(upright, pixels, np.array(rgba)[..., :3].copy(), rgba.getchannel("A"))


def resize(pixels: np.ndarray, height: int, width: int) -> Crop:
    """Resize (H, W, 3) pixels to (height, width, 3) float32, without aliasing when they shrink."""
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    resized = F.interpolate(image, (height, width), mode="bicubic", antialias=True, align_corners=False)
    result: Crop = resized[0].permute(1, 2, 0).contiguous().numpy()
    return result


# --- Files


@dataclass(frozen=True)
class Storage:
    """How a file stores its image: Pillow's name of the format and its options for saving."""

    format: str
    options: dict[str, Any]


def read_photo(source: str | os.PathLike[str] | IO[bytes]) -> tuple[Photo, Storage]:
    """Read the first frame of an image file and how the file stores it; raises the errors of `utils.open_image`."""
    image = open_image(source)
    assert image.format is not None
    options: dict[str, Any] = {}
    if image.mode in ("RGB", "RGBA", "P"):
        options["icc_profile"] = image.info.get("icc_profile")
    if isinstance(image, JpegImagePlugin.JpegImageFile) and image.mode == "RGB":
        # With the same compression, the areas that are not translated hardly change.
        options |= {"qtables": image.quantization, "subsampling": JpegImagePlugin.get_sampling(image)}
    elif image.format == "JPEG":
        options["quality"] = 95
    elif image.format == "WEBP":
        options["lossless"] = True
    elif image.format == "TIFF":
        options["compression"] = "tiff_deflate"
    # Cameras write MPO files, which are JPEG files with further images appended.
    return open_photo(image), Storage("JPEG" if image.format == "MPO" else image.format, options)


def write_photo(
    photo: Photo, target: Path | io.BytesIO, storage: Storage, *, side_by_side: bool = False, label: bool = True
) -> None:
    """Write the result in the original's format, without the original's metadata, such as its place and time.

    Args:
        photo: a photograph, translated or not.
        target: the file or buffer to write to.
        storage: the format and options of the original, as `read_photo` returned them.
        side_by_side: write one image with the original on the left and the result on the right.
        label: if the photograph has been translated, declare it in the XMP metadata of a JPEG, PNG or WebP file.

    Raises:
        OSError, ValueError: the format cannot hold an image of this size or mode, or the target cannot be written.
    """
    image = place_side_by_side(photo.original, photo.result) if side_by_side else photo.result
    is_translated = bool(photo.regions)
    options = dict(storage.options)
    if label and is_translated and storage.format == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", LABEL)
    elif label and is_translated and storage.format in ("JPEG", "WEBP"):
        options["xmp"] = LABEL.encode()
    # Only an unchanged image still has the palette that its transparent colour refers to.
    is_unchanged = not is_translated and not side_by_side
    transparency = image.info.get("transparency") if is_unchanged else None
    image.info = {} if transparency is None else {"transparency": transparency}
    image.save(target, storage.format, **options)


def place_side_by_side(before: Image.Image, after: Image.Image) -> Image.Image:
    """One image with two images of the same size next to each other, in the mode of the second."""
    pair = Image.new(after.mode, (2 * after.width, after.height))
    pair.paste(before.convert(after.mode), (0, 0))
    pair.paste(after, (after.width, 0))
    return pair
