"""Find faces in images, whichever way they are turned, with steady landmarks.

Images are (H, W, 3) uint8 RGB arrays, upright. Positions are (x, y) in px from the image's top left corner: the centre
of the first pixel is at (0.5, 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from photos.geometry import for_opencv, quarter_turns_back, shift, similarity, transform, turn, warp

MODEL = Path(__file__).parent.parent / "assets" / "face_detection_yunet_2023mar.onnx"
MIN_SCORE = 0.5  # YuNet's first pass accepts scores from here: a face on its side may score this low.
SURE_SCORE = 0.925  # Only faces that lean by less than 45 degrees score this high.
MIN_UPRIGHT_SCORE = 0.7  # The later, upright passes must score this high on average to confirm a face.
SMALL_MIN_SCORE = 0.35  # The pass over the finest copy of a large image accepts scores from here.
SMALL_MIN_UPRIGHT_SCORE = 0.88  # Faces in finer copies must be confirmed this well: more places look a little like one.
SMALL_MIN_EYES = 12  # Eyes closer than this, px, are too blurred to be translated, and often no eyes at all.
MAX_OVERLAP = 0.3  # Boxes that overlap more than this (intersection over union) are one face.
DETECTION_SIDE = 640  # The first pass runs on an image whose long side has at most this many px.
FINEST_SCALE = 0.5  # The finest copy of a large image is at most this large,
FINE_PIXELS = 4.5e6  # and has at most this many px: YuNet needs about 0.4 s for them on one CPU core.
MIN_STEP = 1.6  # An image is large if its finest copy is more than this many times finer than that of the first pass.
MAX_STEP = 2  # A copy is at most this many times finer than the one before, so that a face suits one of them.
MIN_DETECTION_SIDE = 16  # No face can be found in an image with a shorter side than this, px.
MIN_INPUT_SIDE = 64  # Smaller inputs are padded to this, px: OpenCV's YuNet reads uninitialised memory for them.
EYES_IN_BOX = 0.45  # The eyes are roughly this far apart, as a fraction of the mean side of the detector's box.
WINDOW_SIDE = 160  # The later passes run on a window around a face with this side, px.
WINDOW_EYES = 44  # The eyes in that window are this far apart, px.
CLOSE_UP = 1.5  # Windows are cut from a close-up that is this much finer than they are.
TURN_MARGIN = 1.5  # The close-up is this much larger than a window, which still fits when it is turned.
NUM_PASSES = 4  # The mean over this many slightly different windows steadies the landmarks.
JITTER_SHIFT = 6  # Windows are shifted by up to this, px,
JITTER_SCALE = 0.08  # scaled by up to this fraction,
JITTER_ANGLE = 6  # and turned by up to this, degrees.
# Where landmarks lie in a window, from its centre: the proportions of a face, in eye distances.
WINDOW_TARGET = WINDOW_EYES * np.array([[-0.5, -0.56], [0.5, -0.56], [0, 0.02], [-0.41, 0.55], [0.41, 0.55]])
MIRROR = np.array([[-1, 0, 0], [0, 1, 0], [0, 0, 1]])  # This mirrors a window about its centre.
SWAPPED = [1, 0, 2, 4, 3]  # A mirrored face's landmarks in the order of the original's.


@dataclass(frozen=True, eq=False)
class Face:
    """Where a face is.

    Attributes:
        landmarks: (5, 2) float64, px: eye, eye, tip of the nose, mouth corner, mouth corner; of each pair, the one on
            the left of the upright face comes first.
        score: the detector's confidence, 0 to 1.
    """

    landmarks: np.ndarray
    score: float

    @property
    def eye_distance(self) -> float:
        """The distance between the eyes, px."""
        return float(np.linalg.norm(self.landmarks[1] - self.landmarks[0]))


def find_faces(image: np.ndarray, num_passes: int = NUM_PASSES) -> list[Face]:
    """The faces in an image, the largest first, whichever way they are turned in the plane.

    A large image is searched in several copies, first a coarse one, then finer ones for the faces that are small in it.
    Each face is detected again, upright, in several slightly different windows, and the landmarks are averaged: YuNet's
    own jump when the image shifts by a pixel, and are wrong where a face leans by more than 45 degrees.

    Args:
        image: (H, W, 3) uint8 RGB, of any size.
        num_passes: how often each face is detected again; fewer are enough where no single face matters.
    """
    faces: list[Face] = []
    for copy in _copies(image):
        for quarter_turns in range(4):  # YuNet may miss a face on its side; once there is one, it says which turns help
            if quarter_turns in ({_turns_to_upright(face) for face in faces} or range(copy.num_turns)):
                faces += _new_faces(image, copy, quarter_turns, faces, num_passes)
    return sorted(faces, key=lambda face: -face.eye_distance)


@dataclass(frozen=True, eq=False)
class _Copy:
    """A smaller copy of an image, in which faces are searched for, and what counts as a face there.

    Attributes:
        pixels: (h, w, 3) uint8 RGB.
        to_image: (3, 3) matrix that leads from the copy to the image.
        min_score: the score from which the pass over the copy accepts a face.
        min_upright_score: the mean score from which the later passes confirm it.
        min_eyes: the least distance between its eyes, px of the image.
        num_turns: how many quarter turns of the copy are searched as long as there is no face.
    """

    pixels: np.ndarray
    to_image: np.ndarray
    min_score: float
    min_upright_score: float
    min_eyes: float
    num_turns: int


def _copies(image: np.ndarray) -> Iterator[_Copy]:
    """The copies of an image to search one after the other, each finer than the one before."""
    scales = _scales(*image.shape[:2])
    for number, scale in enumerate(scales):
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        # Aliasing does not bother the detector in the first copy, whose faces are large.
        filtering = cv2.INTER_LINEAR if number == 0 else cv2.INTER_AREA
        pixels = cv2.resize(image, size, interpolation=filtering) if scale < 1 else image
        to_image = np.diag([image.shape[1] / size[0], image.shape[0] / size[1], 1])
        if number == 0:
            yield _Copy(pixels, to_image, MIN_SCORE, MIN_UPRIGHT_SCORE, 0, 4)
        elif number < len(scales) - 1:
            yield _Copy(pixels, to_image, MIN_SCORE, SMALL_MIN_UPRIGHT_SCORE, SMALL_MIN_EYES, 4)
        else:  # this pass takes too long to turn the copy in vain
            yield _Copy(pixels, to_image, SMALL_MIN_SCORE, SMALL_MIN_UPRIGHT_SCORE, SMALL_MIN_EYES, 1)


def _scales(height: int, width: int) -> list[float]:
    """The scales of the copies: one for an image of moderate size, more for a large photograph or a panorama."""
    first = min(1.0, DETECTION_SIDE / max(height, width))
    finest = min(FINEST_SCALE, math.sqrt(FINE_PIXELS / (height * width)))
    if finest <= MIN_STEP * first:
        return [first]
    num_steps = math.ceil(math.log(finest / first, MAX_STEP))
    return [first * (finest / first) ** (step / num_steps) for step in range(num_steps + 1)]


def _new_faces(
    image: np.ndarray, copy: _Copy, quarter_turns: int, known: Sequence[Face], num_passes: int
) -> list[Face]:
    """The faces that a copy shows after some quarter turns, without those that are known from the copies before."""
    faces: list[Face] = []
    for found in _detect(np.rot90(copy.pixels, quarter_turns), copy.min_score):
        in_copy = found.through(quarter_turns_back(quarter_turns, copy.pixels.shape))
        in_image = in_copy.through(copy.to_image)
        if in_image.eyes < copy.min_eyes or any(_is_part(in_image, face) for face in known):
            continue
        if in_copy.eyes >= WINDOW_EYES:  # the copy has enough detail
            face = _refine(copy.pixels, in_copy, num_passes, copy.to_image)
        else:
            face = _refine(image, in_image, num_passes, np.eye(3))
        if face is None or face.score < copy.min_upright_score:
            continue
        if not any(_is_same(face, other) for other in (*known, *faces)):
            faces.append(face)
    return faces


@dataclass(frozen=True, eq=False)
class _Detection:
    """What one pass of the detector says about a face: its landmarks, and the centre and mean side of its box, px."""

    landmarks: np.ndarray
    centre: np.ndarray
    side: float
    score: float

    @property
    def eyes(self) -> float:
        """Rough distance between the eyes, px, which does not depend on the landmarks."""
        return EYES_IN_BOX * self.side

    def through(self, matrix: np.ndarray) -> _Detection:
        """The same face in another image's coordinates."""
        scale = float(np.hypot(*matrix[:2, 0]))
        centre = transform(matrix, self.centre[None])[0]
        return _Detection(transform(matrix, self.landmarks), centre, self.side * scale, self.score)


@cache
def _detector() -> cv2.FaceDetectorYN:
    cv2.setNumThreads(1)  # more threads do not help on images this small, and do not survive a fork
    return cv2.FaceDetectorYN.create(str(MODEL), "", (WINDOW_SIDE, WINDOW_SIDE), MIN_SCORE, MAX_OVERLAP)


def _detect(image: np.ndarray, min_score: float = MIN_SCORE) -> list[_Detection]:
    """One pass of YuNet over an image as it is."""
    height, width = image.shape[:2]
    if min(height, width) < MIN_DETECTION_SIDE:
        return []
    right, bottom = max(0, MIN_INPUT_SIDE - width), max(0, MIN_INPUT_SIDE - height)
    bgr = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR)
    padded = cv2.copyMakeBorder(bgr, 0, bottom, 0, right, cv2.BORDER_CONSTANT)
    detector = _detector()
    detector.setScoreThreshold(min_score)
    detector.setInputSize((padded.shape[1], padded.shape[0]))
    _, rows = detector.detect(padded)
    detections = []
    for row in [] if rows is None else rows.astype(np.float64):
        (x, y, w, h), landmarks, score = row[:4], row[4:14].reshape(5, 2), float(row[14])
        detections.append(_Detection(landmarks, np.array([x + w / 2, y + h / 2]), float(np.sqrt(w * h)), score))
    return detections


def _refine(image: np.ndarray, detection: _Detection, num_passes: int, onward: np.ndarray) -> Face | None:
    """The face with steady landmarks, in the coordinates that `onward` leads to; None where later passes find none."""
    scale = min(1.0, CLOSE_UP * WINDOW_EYES / detection.eyes)
    side = round(CLOSE_UP * WINDOW_SIDE * TURN_MARGIN)
    to_close_up = shift((side / 2, side / 2)) @ np.diag([scale, scale, 1]) @ shift(-detection.centre)
    close_up = warp(image, to_close_up, (side, side), cv2.BORDER_CONSTANT)  # small, so that the passes are fast
    face = _average_passes(close_up, _upright(close_up, detection.through(to_close_up)), num_passes)
    return Face(transform(onward @ np.linalg.inv(to_close_up), face.landmarks), face.score) if face else None


def _upright(image: np.ndarray, detection: _Detection) -> _Detection | None:
    """The detection that scores highest in eight windows, each turned by 45 degrees: there the face is upright."""
    if detection.score >= SURE_SCORE:
        return detection
    scale, centre = WINDOW_EYES / detection.eyes, shift((WINDOW_SIDE / 2, WINDOW_SIDE / 2))
    windows = [centre @ turn(scale, angle) @ shift(-detection.centre) for angle in np.radians(range(0, 360, 45))]
    detections = [_detect_in_window(image, window) for window in windows]
    return max(filter(None, detections), key=lambda found: found.score, default=None)


def _average_passes(image: np.ndarray, detection: _Detection | None, num_passes: int) -> Face | None:
    """The mean of several upright detections of a face; None where one of them fails.

    Each pass runs twice, the second time mirrored, because YuNet sees a tilt in faces that have none. It also sees only
    part of a tilt that they have, so each window is made upright by the landmarks of the pass before.
    """
    if detection is None:
        return None
    random = np.random.default_rng(0)  # the same image gives the same faces
    passes = [(detection.landmarks, 0.0)]
    for _ in range(num_passes):
        angle = np.radians(random.uniform(-JITTER_ANGLE, JITTER_ANGLE))
        scale = 1 + random.uniform(-JITTER_SCALE, JITTER_SCALE)
        centre = WINDOW_SIDE / 2 + random.uniform(-JITTER_SHIFT, JITTER_SHIFT, 2)
        jitter, upright = shift(centre) @ turn(scale, angle), similarity(passes[-1][0], WINDOW_TARGET)
        plain = _detect_in_window(image, jitter @ upright)
        mirrored = _detect_in_window(image, jitter @ MIRROR @ upright)
        if plain is None or mirrored is None:
            return None
        landmarks = (plain.landmarks + mirrored.landmarks[SWAPPED]) / 2
        passes.append((landmarks, (plain.score + mirrored.score) / 2))
    counted = passes[1:] if len(passes) == 2 else passes[2:]  # the first windows are not yet upright
    score = float(np.mean([score for _, score in counted]))
    return Face(np.mean([found for found, _ in counted], axis=0), score)


def _detect_in_window(image: np.ndarray, to_window: np.ndarray) -> _Detection | None:
    """The face in the middle of a window, in the image's coordinates; `to_window` leads from the image to it."""
    size = (WINDOW_SIDE, WINDOW_SIDE)
    detections = _detect(cv2.warpAffine(image, for_opencv(to_window), size, borderMode=cv2.BORDER_CONSTANT))
    near = [found for found in detections if np.linalg.norm(found.centre - WINDOW_SIDE / 2) < WINDOW_EYES]
    return max(near, key=lambda found: found.score).through(np.linalg.inv(to_window)) if near else None


def _is_same(face: Face, other: Face) -> bool:
    """Whether two faces are closer than half the smaller one's eye distance."""
    distance = float(np.linalg.norm(face.landmarks.mean(axis=0) - other.landmarks.mean(axis=0)))
    return distance < min(face.eye_distance, other.eye_distance) / 2


def _is_part(detection: _Detection, face: Face) -> bool:
    """Whether a detection lies in the middle of a face, and so is this face or a part of it."""
    return float(np.linalg.norm(detection.centre - face.landmarks.mean(axis=0))) < face.eye_distance


def _turns_to_upright(face: Face) -> int:
    """The quarter turns of the image to the left, 0 to 3, after which a face leans by 45 degrees or less."""
    x, y = face.landmarks[1] - face.landmarks[0]
    return round(math.atan2(y, x) / (math.pi / 2)) % 4
