"""Align faces to the crops that a generator was trained on, and paste the translated crops back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, partial

import cv2
import numpy as np

from photos.faces import Face, find_faces
from photos.geometry import displace, shift, similarity, transform, warp
from utils import Template

# Changes are pasted in an ellipse around the face. Hair is left out: it may reach beyond the crop, and would then have
# two colours.
FACE_CENTRE = 0.45  # The ellipse's centre lies this far from the eyes to the mouth,
FACE_HEIGHT = 1.4  # its half height is this many times their distance,
FACE_WIDTH = 1.15  # and its half width this many times the distance between the eyes.
FACE_INSIDE = 0.72  # A change is pasted in full up to this fraction of the ellipse's radius. From there it fades.
BORDER = 0.04  # Nothing is pasted nearer to the crop's border than this, in half sides,
BORDER_FADE = 0.12  # and from there on a change grows over this distance.
STRIP = 512  # Changes are pasted in strips of so many rows, which bounds the memory.
UPSCALING = 4  # A change is enlarged by this with cubic interpolation, and from there on linearly.
# Where a change differs much from that of its surroundings, the photograph's own detail is of what was there before, as
# the hairs of a brow that has moved. A change of the whole skin leaves the detail of the skin as it is.
SURROUNDINGS = 0.06  # They reach this far, as the standard deviation of a Gaussian in sides of the crop.
DETAIL_STAYS = 15  # Detail stays where the difference is at most this many grey levels,
DETAIL_GOES = 60  # and is gone where it is at least this many.
FIXED_POINT = 64  # Changes are rounded to this fraction of a grey level, so that int16 can hold them.
MIN_FACE_SHARE = 0.5  # A template needs exactly one face in at least this share of the images.


@dataclass(frozen=True, eq=False)
class Edit:
    """What a generator has done to a crop: it has moved its pixels, and then changed their colours.

    Attributes:
        before: the crop with its pixels moved, (H, W, 3), uint8 or floating point, 0 to 255.
        after: the translated crop, of the same shape and range.
        shift: from how far away each pixel was taken, (H, W, 2) float32, to the right and down in sides of the crop;
            None if no pixel was moved.
    """

    before: np.ndarray
    after: np.ndarray
    shift: np.ndarray | None = None


def align(image: np.ndarray, face: Face, template: Template, size: int) -> np.ndarray:
    """Cut out the crop around a face in which its landmarks lie where the template has them.

    Args:
        image: (H, W, 3) uint8 RGB.
        face: a face in it; where the crop extends beyond the image, the image's border pixels are repeated.
        template: where the landmarks lie in the training images.
        size: side of the crop, px.

    Returns:
        (size, size, 3) uint8 RGB.
    """
    return warp(image, similarity(face.landmarks, np.array(template) * size), (size, size))


def paste(image: np.ndarray, face: Face, *, template: Template, edit: Edit) -> None:
    """Do to the image, in place, what a generator has done to the crop that was cut from it.

    The image's own pixels are moved, and only the change of colours is resized to the image's resolution. So the image
    keeps its own detail even where the face is much larger than the crop, except where the change is strong and local.
    Both fade out around the face (see `paste_mask`). Pixels outside the mask stay as they are, and so does the whole
    image if the crop has not changed.

    Args:
        image: (H, W, 3) uint8 RGB, writable.
        face: the face that `align` was given.
        template: the template that `align` was given.
        edit: what was done to the crop that `align` returned, (size, size, 3).
    """
    size = len(edit.before)
    mask = paste_mask(size, template)[..., None]
    change = (edit.after.astype(np.float32) - edit.before) * mask
    lost = _lost_detail(change)
    added = _enlarge(change * FIXED_POINT).astype(np.int16)
    smooth, fraction = (_enlarge(edit.before.astype(np.float32)), _enlarge(lost)) if lost.any() else (None, None)

    to_image = np.linalg.inv(similarity(face.landmarks, np.array(template) * size))
    corners = transform(to_image, np.array([[0, 0], [size, 0], [0, size], [size, size]], np.float64))
    left, top = np.clip(np.floor(corners.min(axis=0)), 0, image.shape[1::-1]).astype(int).tolist()
    right, bottom = np.clip(np.ceil(corners.max(axis=0)), 0, image.shape[1::-1]).astype(int).tolist()
    if right <= left:
        return
    original, distance = None, None
    if edit.shift is not None:
        original = image[top:bottom, left:right].copy()
        distance = _enlarge((edit.shift * mask * size @ to_image[:2, :2].T).astype(np.float32))  # in px of the image
    for row in range(top, bottom, STRIP):
        part = image[row : min(row + STRIP, bottom), left:right]
        to_part = shift(np.array([-left, -row])) @ to_image @ np.diag([1 / UPSCALING, 1 / UPSCALING, 1])
        fit = partial(warp, matrix=to_part, size=part.shape[1::-1], border=cv2.BORDER_CONSTANT,
                      interpolation=cv2.INTER_LINEAR)  # fmt: skip
        if original is not None and distance is not None:
            part[:] = displace(original, fit(distance), first_row=row - top)
        replaced = (part - fit(smooth)) * fit(fraction) if smooth is not None and fraction is not None else None
        part[:] = cv2.addWeighted(part, 1, fit(added), 1 / FIXED_POINT, 0, dtype=cv2.CV_8U)  # This rounds and clips.
        if replaced is not None:
            part[:] = np.rint(part - replaced).clip(0, 255)


def _lost_detail(change: np.ndarray) -> np.ndarray:
    """The fraction of the image's own detail that a change, (size, size, 3), replaces: of the same shape, 0 to 1."""
    local = change - cv2.GaussianBlur(change, (0, 0), SURROUNDINGS * len(change))
    largest = cv2.GaussianBlur(np.abs(local).max(axis=2), (0, 0), 1)  # Blurred, for fractions without edges.
    lost = np.clip((largest - DETAIL_STAYS) / (DETAIL_GOES - DETAIL_STAYS), 0, 1)
    return np.repeat(lost[..., None], 3, axis=2)


def _enlarge(crop: np.ndarray) -> np.ndarray:
    """Values of a crop, (size, size, C) float32, enlarged by UPSCALING."""
    side = UPSCALING * len(crop)
    enlarged: np.ndarray = cv2.resize(crop, (side, side), interpolation=cv2.INTER_CUBIC)
    return enlarged


@cache
def paste_mask(size: int, template: Template) -> np.ndarray:
    """How much of a crop's change is pasted, (size, size) float32: 1 in the face, 0 at the border and beyond the face.

    Args:
        size: side of the crop, px.
        template: where the face's landmarks lie in the crop.
    """
    right_eye, left_eye, _, right_mouth, left_mouth = np.array(template, np.float32) * size
    eyes, mouth = (right_eye + left_eye) / 2, (right_mouth + left_mouth) / 2
    eye_distance, face_length = (max(float(np.linalg.norm(x)), 1e-6) for x in (left_eye - right_eye, mouth - eyes))
    y_axis = (mouth - eyes) / face_length
    x_axis = np.array([y_axis[1], -y_axis[0]])
    centre = eyes + FACE_CENTRE * (mouth - eyes)
    across = np.arange(size, dtype=np.float32) + 0.5
    offsets = np.stack(np.meshgrid(across, across), axis=-1) - centre  # (size, size, 2), x and y
    x, y = offsets @ x_axis / (FACE_WIDTH * eye_distance), offsets @ y_axis / (FACE_HEIGHT * face_length)
    radius = np.hypot(x, y)  # 1 on the ellipse
    to_border = 1 - np.abs(2 * across / size - 1)  # in half sides
    from_border = (np.minimum.outer(to_border, to_border) - BORDER) / BORDER_FADE
    fade = np.clip(np.minimum((1 - radius) / (1 - FACE_INSIDE), from_border), 0, 1)
    mask: np.ndarray = (fade * fade * (3 - 2 * fade)).astype(np.float32)
    return mask


def measure_template(images: Iterable[np.ndarray]) -> Template | None:
    """Measure where the landmarks lie in images that are cropped alike: the median over the images.

    Args:
        images: square, (size, size, 3) uint8 RGB.

    Returns:
        Five landmarks (x, y) as fractions of the side; None where fewer than MIN_FACE_SHARE of the images show exactly
        one face.
    """
    num_images = 0
    landmarks = []
    for image in images:
        num_images += 1
        faces = find_faces(image, num_passes=2)
        if len(faces) == 1:
            landmarks.append(faces[0].landmarks / len(image))
    if not landmarks or len(landmarks) < MIN_FACE_SHARE * num_images:
        return None
    return tuple((round(float(x), 4), round(float(y), 4)) for x, y in np.median(landmarks, axis=0))
