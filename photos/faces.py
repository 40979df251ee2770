"""Find faces in images, whichever way they are turned, with steady landmarks.

Images are (H, W, 3) uint8 RGB arrays, upright. Positions are (x, y) in px from the image's top left corner: the centre
of the first pixel is at (0.5, 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from photos.geometry import for_opencv, quarter_turns_back, shift, similarity, transform, turn, warp

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
            seen = seen.through(quarter_turns_back(quarter_turns, small.shape))
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


def _look_again(image: np.ndarray, seen: _Seen, num_looks: int, onward: np.ndarray) -> Face | None:
    """The face with steady landmarks, brought `onward` to other positions; None where a closer look shows none."""
    scale = min(1.0, CLOSE_UP * LOOK_EYES / seen.eyes)
    side = CLOSE_UP * LOOK_SIDE * 1.5  # a turned look still lies in it
    to_close_up = shift((side / 2, side / 2)) @ np.diag([scale, scale, 1]) @ shift(-seen.centre)
    close_up = warp(
        image, to_close_up, (round(side), round(side)), cv2.BORDER_CONSTANT
    )  # small: the looks at it are fast
    face = _steady(close_up, _upright(close_up, seen.through(to_close_up)), num_looks)
    return Face(transform(onward @ np.linalg.inv(to_close_up), face.landmarks), face.score) if face else None


def _upright(image: np.ndarray, seen: _Seen) -> _Seen | None:
    """A face as it looks when the picture is turned so that the detector likes it best: that is when it is upright."""
    if seen.score >= SURE_SCORE:
        return seen
    scale, middle = LOOK_EYES / seen.eyes, shift((LOOK_SIDE / 2, LOOK_SIDE / 2))
    views = [middle @ turn(scale, angle) @ shift(-seen.centre) for angle in np.radians(range(0, 360, 45))]
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
        centre = LOOK_SIDE / 2 + random.uniform(-JITTER_SHIFT, JITTER_SHIFT, 2)
        jitter, upright = shift(centre) @ turn(scale, angle), similarity(looks[-1][0], LOOK_TARGET)
        plain, mirrored = _look(image, jitter @ upright), _look(image, jitter @ MIRROR @ upright)
        if plain is None or mirrored is None:
            return None
        landmarks = (plain.landmarks + mirrored.landmarks[SWAPPED]) / 2
        looks.append((landmarks, (plain.score + mirrored.score) / 2))
    counted = looks[1:] if len(looks) == 2 else looks[2:]  # the first ones are not yet upright
    score = float(np.mean([score for _, score in counted]))
    return Face(np.mean([found for found, _ in counted], axis=0), score) if score >= MIN_UPRIGHT_SCORE else None


def _look(image: np.ndarray, view: np.ndarray) -> _Seen | None:
    """The face in the middle of a LOOK_SIDE px wide look at an image, in px of the image; `view` leads to the look."""
    seen = _detect(cv2.warpAffine(image, for_opencv(view), (LOOK_SIDE, LOOK_SIDE), borderMode=cv2.BORDER_CONSTANT))
    near = [face for face in seen if np.linalg.norm(face.centre - LOOK_SIDE / 2) < LOOK_EYES]
    return max(near, key=lambda face: face.score).through(np.linalg.inv(view)) if near else None


def _is_same(face: Face, other: Face) -> bool:
    distance = float(np.linalg.norm(face.landmarks.mean(axis=0) - other.landmarks.mean(axis=0)))
    return distance < min(face.eye_distance, other.eye_distance) / 2
