"""Similarities of the plane as (3, 3) matrices, and images moved by them.

Positions are (x, y) in px from the image's top left corner: the centre of the first pixel is at (0.5, 0.5).
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np


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
    matrix = matrix @ shift(low)
    if scale < 1:
        shrunk = [max(1, round(side * scale)) for side in part.shape[1::-1]]
        matrix = matrix @ np.diag([part.shape[1] / shrunk[0], part.shape[0] / shrunk[1], 1])
        part = cv2.resize(part, shrunk, interpolation=cv2.INTER_AREA)
    return cv2.warpAffine(part, for_opencv(matrix), size, flags=interpolation, borderMode=border)


def shift(by: Iterable[float]) -> np.ndarray:
    """The (3, 3) matrix that moves points by (x, y)."""
    matrix = np.eye(3)
    matrix[:2, 2] = [*by]
    return matrix


def turn(scale: float, angle: float) -> np.ndarray:
    """The (3, 3) matrix that scales and turns about (0, 0), by an angle in radians."""
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def quarter_turns_back(count: int, shape: tuple[int, ...]) -> np.ndarray:
    """The (3, 3) matrix from positions in `np.rot90(image, count)` to those in the image of this shape."""
    height, width = shape[:2]
    matrix = np.eye(3)
    for side in (width, height, width)[:count][::-1]:
        matrix = np.array([[0, -1, side], [1, 0, 0], [0, 0, 1]]) @ matrix
    return matrix


def for_opencv(matrix: np.ndarray) -> np.ndarray:
    """A (3, 3) matrix as the (2, 3) of warpAffine, which counts from the centre of the first pixel."""
    at_centres: np.ndarray = shift((-0.5, -0.5)) @ matrix @ shift((0.5, 0.5))
    return at_centres[:2]
