"""Steady landmarks over the frames of a video."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from photos.faces import Face

SAME_FACE = 1.0  # Faces in successive frames are the same if they are closer than this, in eye distances.
STILL_FACE = 0.02  # A face that moves less than this, in eye distances a frame, is smoothed most.
MOVING_FACE = 0.2  # A face that moves more than this, in eye distances a frame, is not smoothed.
STILL_WEIGHT = 0.2  # The newest landmarks of a still face have this weight, those of the frame before the rest.


class FaceSmoother:
    """Steady landmarks over the frames of a video: the less a face moves, the more the earlier frames count."""

    def __init__(self) -> None:
        self.faces: list[Face] = []

    def __call__(self, faces: Sequence[Face]) -> list[Face]:
        """The faces of the next frame, each drawn towards its position in the frame before."""
        self.faces = [self._smooth(face) for face in faces]
        return self.faces

    def _smooth(self, face: Face) -> Face:
        before = min(self.faces, key=lambda other: mean_move(face, other), default=None)
        if before is None:
            return face
        move = mean_move(face, before)
        if move > SAME_FACE:
            return face
        speed = np.clip((move - STILL_FACE) / (MOVING_FACE - STILL_FACE), 0, 1)
        weight = STILL_WEIGHT + (1 - STILL_WEIGHT) * speed
        return Face(weight * face.landmarks + (1 - weight) * before.landmarks, face.score)


def mean_move(face: Face, before: Face) -> float:
    """The mean distance between the landmarks of two faces, in eye distances of the first."""
    return float(np.linalg.norm(face.landmarks - before.landmarks, axis=1).mean() / face.eye_distance)
