"""Small damage to images that no person would mind: a classifier that minds it has read an artefact."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from training.diff_augment import blur
from utils import image_to_tensor, tensor_to_image

JPEG_QUALITY = 60  # Photographs on the web are saved at about this quality or better.
BLUR_SIGMA = 1 / 64  # A blur's standard deviation, as a fraction of the image's side.
SHIFT = 1 / 32  # Images move right and down by this fraction of their side.


def jpeg(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) in [-1, 1] after JPEG compression."""
    return torch.stack([_jpeg(image) for image in images]).to(images.device)


def _jpeg(image: Tensor) -> Tensor:
    """One image (3, H, W) in [-1, 1] after JPEG compression, on the CPU."""
    file = io.BytesIO()
    tensor_to_image(image).save(file, "JPEG", quality=JPEG_QUALITY)
    return image_to_tensor(Image.open(file))


def soften(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) in [-1, 1], blurred with a Gaussian."""
    sigma = BLUR_SIGMA * images.shape[-1]
    reach = math.ceil(3 * sigma)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    return blur(images, weights / weights.sum())


def move(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) in [-1, 1], moved right and down, with their border pixels repeated."""
    height, width = images.shape[-2:]
    down, right = math.ceil(SHIFT * height), math.ceil(SHIFT * width)
    return F.pad(images, (right, 0, down, 0), mode="replicate")[..., :height, :width]


DISTORTIONS: dict[str, Callable[[Tensor], Tensor]] = {"jpeg": jpeg, "blur": soften, "shift": move}
