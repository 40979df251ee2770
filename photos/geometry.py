"""Similarity transforms of the plane as (3, 3) matrices, and images warped by them.

Positions are (x, y) in px from the image's top left corner: the centre of the first pixel is at (0.5, 0.5).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import cv2
import numpy as np

TILE = 4096  # `displace` works on tiles of this side, px: OpenCV's remap takes no image of 32767 px or more.


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The similarity that maps points to others with the least squared error (Umeyama 1991): it turns, scales, shifts.

    Args:
        source: (N, 2), at least two different points.
        target: (N, 2), the points to reach, in the same order.

    Returns:
        (3, 3) float64 matrix for homogeneous coordinates.
    """
    source_mean = source.mean(axis=0)
    target_mean = target.mean(axis=0)
    x, y = (source - source_mean).T
    u, v = (target - target_mean).T
    spread = max(float((x * x + y * y).sum()), 1e-12)
    cos = (x * u + y * v).sum() / spread
    sin = (x * v - y * u).sum() / spread
    linear = np.array([[cos, -sin], [sin, cos]])
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = target_mean - linear @ source_mean
    return matrix


def transform(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply the (3, 3) matrix of a similarity to points, (N, 2) to (N, 2)."""
    moved: np.ndarray = points @ matrix[:2, :2].T + matrix[:2, 2]
    return moved


def warp(
    image: np.ndarray,
    matrix: np.ndarray,
    size: tuple[int, int],
    border: int = cv2.BORDER_REPLICATE,
    interpolation: int = cv2.INTER_CUBIC,
) -> np.ndarray:
    """Apply a similarity to an image, without aliasing when the image shrinks.

    Args:
        image: (H, W, C), of any dtype that OpenCV can resize.
        matrix: (3, 3), which maps positions in the image to positions in the result.
        size: width and height of the result, px.
        border: OpenCV's border mode, which fills the area outside the image.
        interpolation: OpenCV's interpolation mode.

    Returns:
        (height, width, C), of the image's dtype.
    """
    # Cut out the part of the image that the result needs, with a margin for the interpolation.
    corners = np.array([[0, 0], [size[0], 0], [0, size[1]], size], np.float64)
    inverse = np.linalg.inv(matrix)
    scale = float(np.hypot(*matrix[:2, 0]))
    source_corners = transform(inverse, corners)
    margin = 2 + 2 / scale
    low = np.clip(np.floor(source_corners.min(axis=0) - margin), 0, np.array(image.shape[1::-1]) - 1).astype(int)
    high = np.clip(np.ceil(source_corners.max(axis=0) + margin), low + 1, image.shape[1::-1]).astype(int)
    part = image[low[1] : high[1], low[0] : high[0]]
    matrix = matrix @ shift(low)
    # Average pixels before the warp: warpAffine only interpolates between neighbours.
    if scale < 1:
        shrunk = [max(1, round(side * scale)) for side in part.shape[1::-1]]
        matrix = matrix @ np.diag([part.shape[1] / shrunk[0], part.shape[0] / shrunk[1], 1])
        part = cv2.resize(part, shrunk, interpolation=cv2.INTER_AREA)
    return cv2.warpAffine(part, for_opencv(matrix), size, flags=interpolation, borderMode=border)


def displace(image: np.ndarray, distance: np.ndarray, first_row: int = 0) -> np.ndarray:
    """Rows of an image in which each pixel is what the image shows at a distance from it, by cubic interpolation.

    Args:
        image: (H, W, 3) uint8; beyond its border it goes on with the border's pixels.
        distance: (h, W, 2) float32, to the right and down, px.
        first_row: the first of the h rows.

    Returns:
        (h, W, 3) uint8; where the distance is 0 the pixels are the image's own.
    """
    result = np.empty((*distance.shape[:2], 3), np.uint8)
    for top, left in product(*(range(0, side, TILE) for side in distance.shape[:2])):
        part = distance[top : top + TILE, left : left + TILE]
        right = left + np.arange(part.shape[1], dtype=np.float32) + part[..., 0]
        down = first_row + top + np.arange(part.shape[0], dtype=np.float32)[:, None] + part[..., 1]
        # Cut out the part of the image that these places need, with a margin for the interpolation.
        x, y = (
            slice(int(np.clip(places.min() - 2, 0, side - 1)), int(np.clip(places.max() + 4, 1, side)))
            for places, side in ((right, image.shape[1]), (down, image.shape[0]))
        )
        result[top : top + TILE, left : left + TILE] = cv2.remap(
            image[y, x], right - x.start, down - y.start, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
        )
    return result


def shift(by: Iterable[float]) -> np.ndarray:
    """The (3, 3) matrix that shifts points by (x, y), px."""
    matrix = np.eye(3)
    matrix[:2, 2] = [*by]
    return matrix


def turn(scale: float, angle: float) -> np.ndarray:
    """The (3, 3) matrix that scales points and turns them about (0, 0) by an angle in radians, from x towards y."""
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def quarter_turns_back(count: int, shape: tuple[int, ...]) -> np.ndarray:
    """The (3, 3) matrix that maps positions in `np.rot90(image, count)`, count 0 to 3, to an image of this shape."""
    height, width = shape[:2]
    matrix = np.eye(3)
    for side in (width, height, width)[:count][::-1]:  # the last turn is undone first
        matrix = np.array([[0, -1, side], [1, 0, 0], [0, 0, 1]]) @ matrix
    return matrix


def for_opencv(matrix: np.ndarray) -> np.ndarray:
    """Convert a (3, 3) matrix to the (2, 3) of warpAffine, whose (0, 0) is the centre of the first pixel."""
    at_centres: np.ndarray = shift((-0.5, -0.5)) @ matrix @ shift((0.5, 0.5))
    return at_centres[:2]
