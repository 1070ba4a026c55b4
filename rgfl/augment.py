"""Random changes of a training tile: one affine map for pixels and labels, one colour matrix.

Coordinates are continuous, as in DOTA's labels: pixel (i, j) covers [i, i+1) × [j, j+1), so its centre is
at +½. Labels are mapped as quads, exactly; only then do they become boxes. Pixels are resampled once.
"""

from __future__ import annotations

from math import cos, exp, log, pi, sin
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from rgfl.recipes import AugmentConfig

LUMA = np.array([0.299, 0.587, 0.114])
# RGB to YIQ: hue is the angle in the I, Q plane.
RGB_TO_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


class Turn(NamedTuple):
    """Linear part of a random map: flips, right angles, a free turn and a magnification."""

    linear: NDArray[np.float64]  # (2, 2) all of it
    upright: NDArray[np.float64]  # (2, 2) without the free turn
    factor: float  # the magnification in both


def random_turn(rng: np.random.Generator, config: AugmentConfig) -> Turn:
    """Draw the linear part of a map."""
    turn = np.eye(2)
    if rng.random() < config.flip_horizontal:
        turn = np.diag([-1.0, 1.0]) @ turn
    if rng.random() < config.flip_vertical:
        turn = np.diag([1.0, -1.0]) @ turn
    if rng.random() < config.right_angle:
        for _ in range(rng.integers(4)):
            turn = np.array([[0.0, -1.0], [1.0, 0.0]]) @ turn
    angle = rng.uniform(-pi, pi) if rng.random() < config.rotate else 0.0
    free = np.array([[cos(angle), -sin(angle)], [sin(angle), cos(angle)]])
    low, high = config.scale
    factor = exp(rng.uniform(log(low), log(high)))
    return Turn(factor * free @ turn, factor * turn, factor)


def about(linear: NDArray[np.float64], center: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """(2, 3) map with `linear` that takes `center` to the middle of a tile of `size`."""
    middle = np.array([size / 2, size / 2])
    return np.column_stack([linear, middle - linear @ center])


def map_points(affine: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (…, 2) or quads (…, 8) through a (2, 3) map."""
    flat = points.reshape(-1, 2) @ affine[:, :2].T + affine[:, 2]
    return flat.reshape(points.shape)


def map_round(
    affine: NDArray[np.float64], upright: NDArray[np.float64], quads: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Quads (N, 8) whose centres move with the map while their sides only see its `upright` part.

    A round object looks the same after any turn, and DOTA labels it by an upright square.
    """
    corners = quads.reshape(-1, 4, 2)
    centers = corners.mean(1, keepdims=True)
    return (map_points(affine, centers) + (corners - centers) @ upright.T).reshape(-1, 8)


def map_pixels(
    image: NDArray[np.uint8],
    affine: NDArray[np.float64],
    size: int,
    pad_value: tuple[int, int, int],
    color: NDArray[np.float64] | None = None,
) -> NDArray[np.uint8]:
    """The (size, size, 3) tile that the (2, 3) map sees; `pad_value` outside the image, whatever the colour.

    Only the part of the image under the tile is touched, so a 30,000-pixel scene costs no more than a
    tile. Flips and right angles at magnification 1 move whole pixels and change none.
    """
    inverse = np.asarray(cv2.invertAffineTransform(affine), np.float64)
    corners = map_points(inverse, np.array([[0, 0], [size, 0], [size, size], [0, size]], np.float64))
    low, high = corners.min(0), corners.max(0)
    whole = _moves_whole_pixels(affine[:, :2], low)
    margin = 0 if whole else 2  # what interpolation looks at beside the tile
    height, width = image.shape[:2]
    x0, y0 = np.clip(np.floor(low).astype(int) - margin, 0, [width, height])
    x1, y1 = np.clip(np.ceil(high).astype(int) + margin, 0, [width, height])
    part = image[y0:y1, x0:x1]
    if part.size == 0:
        return np.full((size, size, 3), pad_value, np.uint8)
    if color is not None:
        part = np.asarray(cv2.transform(part, color), np.uint8)
    if whole:
        x, y = low.astype(int).tolist()
        beside = (y0 - y, y + size - y1, x0 - x, x + size - x1)
        moved = cv2.copyMakeBorder(part, *beside, borderType=cv2.BORDER_CONSTANT, value=pad_value)
        return _turned(np.asarray(moved, np.uint8), affine[:, :2])
    # OpenCV's coordinates are those of pixel centres: x_cv = x − ½, in the part and in the tile.
    shifted = affine.copy()
    shifted[:, 2] = affine[:, 2] + affine[:, :2] @ np.array([x0 + 0.5, y0 + 0.5]) - 0.5
    tile = cv2.warpAffine(
        np.ascontiguousarray(part),
        shifted,
        (size, size),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=pad_value,
    )
    return np.asarray(tile, np.uint8)


def _moves_whole_pixels(linear: NDArray[np.float64], corner: NDArray[np.float64]) -> bool:
    """Whether a map is flips and right angles alone, and the tile's `corner` in the image between pixels."""
    lengths = np.abs(linear)
    flips = np.array_equal(lengths, [[1, 0], [0, 1]]) or np.array_equal(lengths, [[0, 1], [1, 0]])
    return flips and np.array_equal(corner, np.floor(corner))


def _turned(tile: NDArray[np.uint8], linear: NDArray[np.float64]) -> NDArray[np.uint8]:
    """A square tile turned about its middle by flips and right angles, several times as fast as by a warp."""
    if linear[0, 0] == 0:
        tile = np.asarray(cv2.transpose(tile), np.uint8)
    mirrored, upside_down = linear.sum(1) < 0
    if mirrored or upside_down:
        tile = np.asarray(cv2.flip(tile, -1 if mirrored and upside_down else int(mirrored)), np.uint8)
    return tile


def random_color(rng: np.random.Generator, config: AugmentConfig) -> NDArray[np.float64] | None:
    """(3, 4) matrix of a random colour change on RGB grey levels, or None for no change."""
    brightness = 1 + rng.uniform(-config.brightness, config.brightness)
    contrast = 1 + rng.uniform(-config.contrast, config.contrast)
    saturation = 1 + rng.uniform(-config.saturation, config.saturation)
    hue = rng.uniform(-config.hue, config.hue) * pi / 180
    if rng.random() < config.gray:
        saturation = 0.0
    if brightness == contrast == saturation == 1 and hue == 0:
        return None
    gray = np.tile(LUMA, (3, 1))
    turn = np.array([[1, 0, 0], [0, cos(hue), -sin(hue)], [0, sin(hue), cos(hue)]])
    linear = np.linalg.inv(RGB_TO_YIQ) @ turn @ RGB_TO_YIQ
    linear = (saturation * np.eye(3) + (1 - saturation) * gray) @ linear
    # Contrast turns about mid-grey, brightness about black.
    return np.column_stack([brightness * contrast * linear, np.full(3, brightness * (1 - contrast) * 128)])
