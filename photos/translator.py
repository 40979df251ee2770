"""Translate the faces in photographs, or whole images, with a trained generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from generator_model import edit_at_strength, moved
from photos.crops import Edit
from photos.faces import Face, find_faces
from photos.photo import FaceRegion, Photo, Pixels, Region, WholeImage, open_photo
from photos.picture_file import Picture
from photos.smoothing import FaceSmoother
from utils import Template, denormalize, fast_layout, has_fast_bf16, normalize

FaceFinder = Callable[[Pixels], Sequence[Face]]  # It finds the faces in (H, W, 3) uint8 RGB pixels.


class Translator:
    """Translates the faces in photographs, or whole images, in bfloat16 where the hardware supports it.

    Args:
        generator: maps (N, 3, H, W) in [-1, 1] to the same, for H and W that are multiples of 4; moved to `device`.
        image_size: side of the images that the generator was trained on, px.
        template: where the landmarks lie in these (see `photos.crops.measure_template`); None translates whole images.
        device: the device to run on.
        batch_size: the generator translates at most this many crops at a time.
        strength: how much of the change to apply: 0 nothing, 1 what the generator gives (see `edit_at_strength`).
    """

    def __init__(
        self,
        generator: nn.Module,
        image_size: int,
        *,
        template: Template | None = None,
        device: torch.device | str = "cpu",
        batch_size: int = 8,
        strength: float = 1.0,
    ) -> None:
        self.device = torch.device(device)
        self.bf16 = has_fast_bf16(self.device)
        layout = fast_layout(self.device, self.bf16)
        self.generator = generator.to(self.device).to(memory_format=layout).eval()  # type: ignore[call-overload]
        self.image_size = image_size
        self.template = template
        self.batch_size = batch_size
        self.strength = strength

    def __call__(self, image: Image.Image) -> Image.Image:
        """Translate an image of any size; the result is upright. An image without a face is returned unchanged.

        Raises:
            ValueError: the image has 32 bits a channel, and so an unknown range.
        """
        photo = open_photo(image)
        self.translate([photo])
        return photo.result

    def translate(self, photos: Sequence[Photo], find: FaceFinder = find_faces) -> None:
        """Translate photographs in place, with crops of the same shape in common batches; `find` finds their faces."""
        for photo in photos:
            photo.regions = self._find_regions(photo.pixels, find)
        jobs = [(photo, region, region.crop(photo.pixels)) for photo in photos for region in photo.regions]
        for shape in sorted({crop.shape for *_, crop in jobs}):
            same_shape = [job for job in jobs if job[2].shape == shape]
            for start in range(0, len(same_shape), self.batch_size):
                batch = same_shape[start : start + self.batch_size]
                edits = self._run(np.stack([crop for *_, crop in batch]))
                for (photo, region, _), edit in zip(batch, edits, strict=True):
                    region.put_back(photo.colours, edit)

    def _find_regions(self, pixels: Pixels, find: FaceFinder) -> Sequence[Region]:
        if self.template is None:
            return [WholeImage(self.image_size)]
        return [FaceRegion(face, self.template, self.image_size) for face in find(pixels)]

    @torch.inference_mode()
    def _run(self, crops: np.ndarray) -> list[Edit]:
        """Run the generator on (N, H, W, 3) crops, 0 to 255."""
        images = normalize(torch.from_numpy(crops).permute(0, 3, 1, 2).to(self.device))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            translated, shifts = edit_at_strength(self.generator, images, self.strength)
        after = to_numpy(denormalize(translated.float()))
        if shifts is None:
            return [Edit(*crops) for crops in zip(crops, after, strict=True)]
        before = to_numpy(denormalize(moved(images, shifts)))
        return [Edit(*edit) for edit in zip(before, after, to_numpy(shifts), strict=True)]


def to_numpy(images: Tensor) -> np.ndarray:
    """Images (N, C, H, W) as (N, H, W, C) on the CPU."""
    array: np.ndarray = images.permute(0, 2, 3, 1).cpu().numpy()
    return array


def translate_pictures(translator: Translator, pictures: Sequence[Picture]) -> None:
    """Translate stills and pages together, and animations frame by frame, with steady faces like those of a video."""
    translator.translate([photo for picture in pictures if not picture.is_animation for photo in picture.photos])
    for picture in pictures:
        if picture.is_animation:
            _translate_animation(translator, picture.photos)


def _translate_animation(translator: Translator, frames: Sequence[Photo]) -> None:
    smoother = FaceSmoother()

    def find_steady_faces(pixels: Pixels) -> Sequence[Face]:
        return smoother(find_faces(pixels))

    for start in range(0, len(frames), translator.batch_size):
        translator.translate(frames[start : start + translator.batch_size], find_steady_faces)
