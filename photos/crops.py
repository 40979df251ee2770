"""Faces aligned to the crops that a generator was trained on, and pasted back."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import cv2
import numpy as np

from photos.faces import Face, find_faces
from photos.geometry import shift, similarity, transform, warp
from utils import Template

MASK_INSIDE, MASK_OUTSIDE = 0.6, 0.94  # shares of the crop's half side between which a paste fades out
FINER, FIXED_POINT = 4, 64  # a change is enlarged smoothly by this, then linearly, in this part of a grey level
MIN_SHARE = 0.5  # of the images must show one face, for a template to mean anything


def align(image: np.ndarray, face: Face, template: Template, size: int) -> np.ndarray:
    """The crop around a face that puts its landmarks where the template has them.

    Args:
        image: (H, W, 3) uint8 RGB.
        face: a face in it; it may reach beyond the image, whose border is continued.
        template: where the landmarks of the training images are.
        size: side of the crop, px.

    Returns:
        (size, size, 3) uint8 RGB.
    """
    return warp(image, similarity(face.landmarks, np.array(template) * size), (size, size))


def paste(image: np.ndarray, before: np.ndarray, after: np.ndarray, face: Face, template: Template) -> None:
    """Add what has changed in a crop to the image that it was taken from, in place.

    The change is brought to the image's resolution and added to it, so that the image's own detail stays, however much
    larger than the crop the face is. `paste_mask` lets it fade out before the crop's border. Pixels outside the mask
    are not touched, and no change changes nothing.

    Args:
        image: (H, W, 3) uint8 RGB, writable.
        before, after: (size, size, 3), uint8 or floating point, 0 to 255: the crop of `align`, and its translation.
        face, template: as given to `align`.
    """
    size = len(before)
    change = (after.astype(np.float32) - before) * (paste_mask(size)[..., None] * FIXED_POINT)
    fine = cv2.resize(change, (FINER * size, FINER * size), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    to_image = np.linalg.inv(similarity(face.landmarks, np.array(template) * size))
    corners = transform(to_image, np.array([[0, 0], [size, 0], [0, size], [size, size]], np.float64))
    low = np.clip(np.floor(corners.min(axis=0)), 0, image.shape[1::-1]).astype(int)
    high = np.clip(np.ceil(corners.max(axis=0)), 0, image.shape[1::-1]).astype(int)
    if (high <= low).any():
        return
    part = image[low[1] : high[1], low[0] : high[0]]
    width, height = (high - low).tolist()
    view = shift(-low) @ to_image @ np.diag([1 / FINER, 1 / FINER, 1])
    moved = warp(fine, view, (width, height), cv2.BORDER_CONSTANT, cv2.INTER_LINEAR)
    part[:] = cv2.addWeighted(part, 1, moved, 1 / FIXED_POINT, 0, dtype=cv2.CV_8U)  # rounds and clips


@cache
def paste_mask(size: int) -> np.ndarray:
    """How much of a crop is pasted, (size, size) float32: 1 in a rounded square, fading to 0 before the border."""
    across = np.abs((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1)
    radius = (across[:, None] ** 4 + across[None] ** 4) ** 0.25
    fade = np.clip((MASK_OUTSIDE - radius) / (MASK_OUTSIDE - MASK_INSIDE), 0, 1)
    mask: np.ndarray = fade * fade * (3 - 2 * fade)
    return mask


def measure_template(images: Iterable[np.ndarray]) -> Template | None:
    """Where the landmarks are in images that are cropped alike: their median, as shares of the side.

    Args:
        images: square, (size, size, 3) uint8 RGB.

    Returns:
        Five (x, y); None where fewer than MIN_SHARE of the images show exactly one face: they are not of faces.
    """
    positions = []
    for image in images:
        faces = find_faces(image, num_passes=2)
        positions.append(faces[0].landmarks / len(image) if len(faces) == 1 else None)
    found = [position for position in positions if position is not None]
    if not found or len(found) < MIN_SHARE * len(positions):
        return None
    return tuple((round(float(x), 4), round(float(y), 4)) for x, y in np.median(found, axis=0))
