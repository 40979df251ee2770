"""Find faces, align them to the crops that a generator was trained on, and paste them back.

Images are (H, W, 3) uint8 RGB arrays, upright. Positions are (x, y) in px from the image's top left corner: the centre
of the first pixel is at (0.5, 0.5).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from utils import Template

MODEL = Path(__file__).parent.parent / "assets" / "face_detection_yunet_2023mar.onnx"
MIN_SCORE = 0.5  # of YuNet, to look again: a face on its side may score as low
SURE_SCORE = 0.925  # reached only by faces that lean by less than 45 degrees
MIN_UPRIGHT_SCORE = 0.7  # in the second, upright looks, to be a face
MAX_OVERLAP = 0.3  # of two boxes, area of the intersection over that of the union
DETECTION_SIDE = 640  # px; the long side of what faces are looked for in
MIN_DETECTION_SIDE = 16  # px; no face can be found in less
MIN_INPUT_SIDE = 64  # px; with less OpenCV's YuNet reads memory that nobody wrote to: faces of 1e30 px
EYES_IN_BOX = 0.45  # distance of the eyes over the mean side of the detector's box, roughly
LOOK_SIDE, LOOK_EYES = 160, 44  # px; the second look at a face: side, and distance of the eyes in it
CLOSE_UP = 1.5  # resolution of the close-up that looks are taken from, in that of a look
NUM_LOOKS = 4  # slightly different looks whose mean steadies the landmarks
JITTER_SHIFT, JITTER_SCALE, JITTER_ANGLE = 6, 0.08, 6  # px, share and degrees, up to which looks differ
# Where landmarks are in a look, from its middle: the proportions of a face, in eye distances.
LOOK_TARGET = LOOK_EYES * np.array([[-0.5, -0.56], [0.5, -0.56], [0, 0.02], [-0.41, 0.55], [0.41, 0.55]])
MIRROR = np.array([[-1, 0, 0], [0, 1, 0], [0, 0, 1]])  # about the middle of LOOK_TARGET
SWAPPED = [1, 0, 2, 4, 3]  # landmarks of a face in the order of its mirror image's
MASK_INSIDE, MASK_OUTSIDE = 0.6, 0.94  # shares of the crop's half side between which a paste fades out
FINER, FIXED_POINT = 4, 64  # a change is enlarged smoothly by this, then linearly, in this part of a grey level
MIN_SHARE = 0.5  # of the images must show one face, for a template to mean anything


@dataclass(frozen=True, eq=False)
class Face:
    """Where a face is.

    Attributes:
        landmarks: (5, 2) float64, px: eye, eye, tip of the nose, mouth corner, mouth corner; of two, the one that is on
            the left when the face is upright comes first.
        score: how sure the detector was, 0 to 1.
    """

    landmarks: np.ndarray
    score: float

    @property
    def eye_distance(self) -> float:
        """px"""
        return float(np.linalg.norm(self.landmarks[1] - self.landmarks[0]))


def find_faces(image: np.ndarray, num_looks: int = NUM_LOOKS) -> list[Face]:
    """The faces in an image, the largest first, whichever way they are turned in the plane.

    Each face is looked at again, upright and several times slightly differently, and the mean of the landmarks is
    taken: YuNet's own jump when the image is shifted by a pixel, and are wrong where a face leans by
    more than 45 degrees.

    Args:
        image: (H, W, 3) uint8 RGB, of any size.
        num_looks: how often each face is looked at again; fewer do where no single face matters.
    """
    scale = min(1.0, DETECTION_SIDE / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = cv2.resize(image, size) if scale < 1 else image  # not smoothed: the detector does not mind
    to_image = np.diag([image.shape[1] / size[0], image.shape[0] / size[1], 1])
    faces: list[Face] = []
    for quarter_turns in range(4):  # further ones where nothing is found: YuNet may miss a face on its side
        turned = np.rot90(small, quarter_turns)
        for seen in _detect(turned):
            seen = seen.through(_quarter_turns_back(quarter_turns, small.shape))
            if seen.eyes >= LOOK_EYES:  # large enough to be looked at in the small image
                face = _look_again(small, seen, num_looks, to_image)
            else:
                face = _look_again(image, seen.through(to_image), num_looks, np.eye(3))
            if face and not any(_is_same(face, other) for other in faces):
                faces.append(face)
        if faces:
            break
    return sorted(faces, key=lambda face: -face.eye_distance)


@dataclass(frozen=True, eq=False)
class _Seen:
    """What one pass of the detector says of a face: its landmarks, and the centre and mean side of its box, px."""

    landmarks: np.ndarray
    centre: np.ndarray
    side: float
    score: float

    @property
    def eyes(self) -> float:
        """Rough distance of the eyes, px, which does not depend on the landmarks."""
        return EYES_IN_BOX * self.side

    def through(self, matrix: np.ndarray) -> _Seen:
        """The same in the positions of another picture."""
        scale = float(np.hypot(*matrix[:2, 0]))
        centre = transform(matrix, self.centre[None])[0]
        return _Seen(transform(matrix, self.landmarks), centre, self.side * scale, self.score)


@cache
def _detector() -> cv2.FaceDetectorYN:
    cv2.setNumThreads(1)  # more do not help on images this small, and do not survive a fork
    return cv2.FaceDetectorYN.create(str(MODEL), "", (LOOK_SIDE, LOOK_SIDE), MIN_SCORE, MAX_OVERLAP)


def _detect(image: np.ndarray) -> list[_Seen]:
    """One pass of YuNet over an image as it is."""
    height, width = image.shape[:2]
    if min(height, width) < MIN_DETECTION_SIDE:
        return []
    right, bottom = max(0, MIN_INPUT_SIDE - width), max(0, MIN_INPUT_SIDE - height)
    padded = cv2.copyMakeBorder(image[..., ::-1], 0, bottom, 0, right, cv2.BORDER_CONSTANT)
    detector = _detector()
    detector.setInputSize((padded.shape[1], padded.shape[0]))
    _, rows = detector.detect(padded)
    found = []
    for row in [] if rows is None else rows.astype(np.float64):
        (x, y, w, h), landmarks, score = row[:4], row[4:14].reshape(5, 2), float(row[14])
        found.append(_Seen(landmarks, np.array([x + w / 2, y + h / 2]), float(np.sqrt(w * h)), score))
    return found


def _quarter_turns_back(count: int, shape: tuple[int, ...]) -> np.ndarray:
    """The (3, 3) matrix from positions in `np.rot90(image, count)` to those in the image of this shape."""
    height, width = shape[:2]
    matrix = np.eye(3)
    for side in (width, height, width)[:count][::-1]:
        matrix = np.array([[0, -1, side], [1, 0, 0], [0, 0, 1]]) @ matrix
    return matrix


def _look_again(image: np.ndarray, seen: _Seen, num_looks: int, onward: np.ndarray) -> Face | None:
    """The face with steady landmarks, brought `onward` to other positions; None where a closer look shows none."""
    scale = min(1.0, CLOSE_UP * LOOK_EYES / seen.eyes)
    side = CLOSE_UP * LOOK_SIDE * 1.5  # a turned look still lies in it
    to_close_up = _shift((side / 2, side / 2)) @ np.diag([scale, scale, 1]) @ _shift(-seen.centre)
    close_up = warp(
        image, to_close_up, (round(side), round(side)), cv2.BORDER_CONSTANT
    )  # small: the looks at it are fast
    face = _steady(close_up, _upright(close_up, seen.through(to_close_up)), num_looks)
    return Face(transform(onward @ np.linalg.inv(to_close_up), face.landmarks), face.score) if face else None


def _upright(image: np.ndarray, seen: _Seen) -> _Seen | None:
    """A face as it looks when the picture is turned so that the detector likes it best: that is when it is upright."""
    if seen.score >= SURE_SCORE:
        return seen
    scale, middle = LOOK_EYES / seen.eyes, _shift((LOOK_SIDE / 2, LOOK_SIDE / 2))
    views = [middle @ _turn(scale, angle) @ _shift(-seen.centre) for angle in np.radians(range(0, 360, 45))]
    looks = [_look(image, view) for view in views]
    return max(filter(None, looks), key=lambda look: look.score, default=None)


def _steady(image: np.ndarray, seen: _Seen | None, num_looks: int) -> Face | None:
    """The mean of several upright looks at a face; None where one of them shows none.

    Each look is taken twice, the second time mirrored, since YuNet sees a tilt in faces that have none. It also sees
    only part of a tilt that they have: hence each look is upright by what the one before has found.
    """
    if seen is None:
        return None
    random = np.random.default_rng(0)  # the same image gives the same faces
    looks = [(seen.landmarks, 0.0)]
    for _ in range(num_looks):
        angle = np.radians(random.uniform(-JITTER_ANGLE, JITTER_ANGLE))
        scale = 1 + random.uniform(-JITTER_SCALE, JITTER_SCALE)
        shift = LOOK_SIDE / 2 + random.uniform(-JITTER_SHIFT, JITTER_SHIFT, 2)
        jitter, upright = _shift(shift) @ _turn(scale, angle), similarity(looks[-1][0], LOOK_TARGET)
        plain, mirrored = _look(image, jitter @ upright), _look(image, jitter @ MIRROR @ upright)
        if plain is None or mirrored is None:
            return None
        landmarks = (plain.landmarks + mirrored.landmarks[SWAPPED]) / 2
        looks.append((landmarks, (plain.score + mirrored.score) / 2))
    counted = looks[1:] if len(looks) == 2 else looks[2:]  # the first ones are not yet upright
    score = float(np.mean([score for _, score in counted]))
    return Face(np.mean([found for found, _ in counted], axis=0), score) if score >= MIN_UPRIGHT_SCORE else None


def _turn(scale: float, angle: float) -> np.ndarray:
    """The (3, 3) matrix that scales and turns about (0, 0), by an angle in radians."""
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def _look(image: np.ndarray, view: np.ndarray) -> _Seen | None:
    """The face in the middle of a LOOK_SIDE px wide look at an image, in px of the image; `view` leads to the look."""
    seen = _detect(cv2.warpAffine(image, _for_opencv(view), (LOOK_SIDE, LOOK_SIDE), borderMode=cv2.BORDER_CONSTANT))
    near = [face for face in seen if np.linalg.norm(face.centre - LOOK_SIDE / 2) < LOOK_EYES]
    return max(near, key=lambda face: face.score).through(np.linalg.inv(view)) if near else None


def _is_same(face: Face, other: Face) -> bool:
    distance = float(np.linalg.norm(face.landmarks.mean(axis=0) - other.landmarks.mean(axis=0)))
    return distance < min(face.eye_distance, other.eye_distance) / 2


# --- Geometry


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The turn, scale and shift that brings points nearest to others in the least-squares sense (Umeyama 1991).

    Args:
        source, target: (N, 2), N >= 2 different points.

    Returns:
        (3, 3) matrix for homogeneous coordinates.
    """
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    x, y = (source - source_mean).T
    u, v = (target - target_mean).T
    spread = max(float((x * x + y * y).sum()), 1e-12)
    cos, sin = (x * u + y * v).sum() / spread, (x * v - y * u).sum() / spread
    linear = np.array([[cos, -sin], [sin, cos]])
    matrix = np.eye(3)
    matrix[:2, :2], matrix[:2, 2] = linear, target_mean - linear @ source_mean
    return matrix


def transform(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (N, 2) through a (3, 3) matrix of a similarity."""
    moved: np.ndarray = points @ matrix[:2, :2].T + matrix[:2, 2]
    return moved


def warp(
    image: np.ndarray,
    matrix: np.ndarray,
    size: tuple[int, int],
    border: int = cv2.BORDER_REPLICATE,
    interpolation: int = cv2.INTER_CUBIC,
) -> np.ndarray:
    """An image through a similarity, without aliasing where it shrinks.

    Args:
        image: (H, W, 3) of a type that OpenCV can resize.
        matrix: (3, 3), from the image's positions to the result's.
        size: width and height of the result, px.
        border, interpolation: OpenCV's modes: what lies outside the image, and how pixels are mixed.

    Returns:
        (height, width, 3), of the image's dtype.
    """
    corners = np.array([[0, 0], [size[0], 0], [0, size[1]], size], np.float64)
    inverse = np.linalg.inv(matrix)
    scale = float(np.hypot(*matrix[:2, 0]))
    around = transform(inverse, corners)
    margin = 2 + 2 / scale  # px of the image, for the interpolation
    low = np.clip(np.floor(around.min(axis=0) - margin), 0, np.array(image.shape[1::-1]) - 1).astype(int)
    high = np.clip(np.ceil(around.max(axis=0) + margin), low + 1, image.shape[1::-1]).astype(int)
    part = image[low[1] : high[1], low[0] : high[0]]
    matrix = matrix @ _shift(low)
    if scale < 1:
        shrunk = [max(1, round(side * scale)) for side in part.shape[1::-1]]
        matrix = matrix @ np.diag([part.shape[1] / shrunk[0], part.shape[0] / shrunk[1], 1])
        part = cv2.resize(part, shrunk, interpolation=cv2.INTER_AREA)
    return cv2.warpAffine(part, _for_opencv(matrix), size, flags=interpolation, borderMode=border)


def _for_opencv(matrix: np.ndarray) -> np.ndarray:
    """A (3, 3) matrix as the (2, 3) of warpAffine, which counts from the centre of the first pixel."""
    at_centres: np.ndarray = _shift((-0.5, -0.5)) @ matrix @ _shift((0.5, 0.5))
    return at_centres[:2]


def _shift(by: Iterable[float]) -> np.ndarray:
    matrix = np.eye(3)
    matrix[:2, 2] = [*by]
    return matrix


# --- Crops


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
    view = _shift(-low) @ to_image @ np.diag([1 / FINER, 1 / FINER, 1])
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
        faces = find_faces(image, num_looks=2)
        positions.append(faces[0].landmarks / len(image) if len(faces) == 1 else None)
    found = [position for position in positions if position is not None]
    if not found or len(found) < MIN_SHARE * len(positions):
        return None
    return tuple((round(float(x), 4), round(float(y), 4)) for x, y in np.median(found, axis=0))
