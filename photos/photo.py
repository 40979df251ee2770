"""Cut out what a generator translates in a photograph, and put the changes back into the photograph's own colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from images.colours import opaque, to_rgb, transfer
from images.files import turn_upright
from photos.crops import Edit, align, paste
from photos.faces import Face
from photos.geometry import displace
from utils import Template

MAX_CROP_ASPECT = 4  # Images more than this many times as long as wide are squeezed for the network, and only there.
Pixels = np.ndarray  # A photograph, (H, W, 3) uint8, sRGB.
Crop = np.ndarray  # A generator's input or output, (h, w, 3) RGB, uint8 or float32, 0 to 255.


class Region(Protocol):
    """A part of a photograph that the generator translates."""

    def crop(self, pixels: Pixels) -> Crop:
        """The generator's input for this part."""

    def put_back(self, pixels: Pixels, edit: Edit) -> None:
        """Do to the photograph's pixels, in place, what the generator has done to the crop."""


@dataclass(frozen=True)
class FaceRegion:
    """A face, aligned to the template in a crop of `size` x `size` px."""

    face: Face
    template: Template
    size: int

    def crop(self, pixels: Pixels) -> Crop:
        return align(pixels, self.face, self.template, self.size)

    def put_back(self, pixels: Pixels, edit: Edit) -> None:
        paste(pixels, self.face, template=self.template, edit=edit)


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

    def put_back(self, pixels: Pixels, edit: Edit) -> None:
        """Resize the change, not the image, so that the image's own detail stays sharp."""
        if edit.shift is not None:
            height, width = pixels.shape[:2]
            distance = edit.shift * np.array([width, height], np.float32)
            pixels[:] = displace(pixels, resize(distance, height, width))
        changed = pixels + resize(edit.after - edit.before, *pixels.shape[:2])
        pixels[:] = np.rint(changed, out=changed).clip(0, 255, out=changed)


@dataclass
class Photo:
    """A photograph while it is translated.

    Attributes:
        original: the image as it was opened, upright, in its own mode and colour profile.
        pixels: the generator's input comes from these, in which transparent areas are white.
        colours: changes are added to these, which are `pixels` itself unless the original is transparent.
        regions: the parts that have been translated.
    """

    original: Image.Image
    pixels: Pixels
    colours: Pixels
    regions: Sequence[Region] = ()

    @property
    def num_faces(self) -> int:
        """How many faces have been translated."""
        return sum(isinstance(region, FaceRegion) for region in self.regions)

    @property
    def result(self) -> Image.Image:
        """The translated photograph in the original's mode, depth and colours; the original itself without regions."""
        return transfer(self.original, self.colours) if self.regions else self.original


def open_photo(image: Image.Image) -> Photo:
    """Prepare a PIL image of any mode for translation.

    Raises:
        ValueError: the image has 32 bits a channel.
    """
    upright = turn_upright(image)
    pixels = np.array(to_rgb(upright))
    if not upright.has_transparency_data:
        return Photo(upright, pixels, pixels)
    return Photo(upright, pixels, np.array(to_rgb(opaque(upright))))


def resize(pixels: np.ndarray, height: int, width: int) -> Crop:
    """Resize (H, W, C) pixels to (height, width, C) float32, without aliasing when they shrink."""
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    resized = F.interpolate(image, (height, width), mode="bicubic", antialias=True, align_corners=False)
    result: Crop = resized[0].permute(1, 2, 0).contiguous().numpy()
    return result
