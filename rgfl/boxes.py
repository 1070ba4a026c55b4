"""The one convention for rotated boxes, and the conversions at its border.

A box is `(cx, cy, w, h, θ)`: pixels, x to the right, y down, θ in radians. A positive θ turns the x axis
towards the y axis, which on the screen is clockwise. `w` is the side along the turned x axis, `h` the other.

        0 ───────────────► x              quad: corners in this order, starting at
        │                                 (−w/2, −h/2) in the axes of the box
        │     1
        │      ╲  w                        1 → 2 runs along w, 2 → 3 along h
        │    ╱  ╲                          4 → 1 closes
        │  h╱    ╲       θ = π/4:
        │  ╱   c  ╲      the box's x axis points right and down
        │ 4        2
        ▼  ╲      ╱
        y   ╲    ╱
             ╲  ╱
              3

In numbers: the box (0, 0, 4, 2, 0) has the corners (−2, −1), (2, −1), (2, 1), (−2, 1); turned by π/2,
(0, 0, 4, 2, π/2) has (1, −2), (1, 2), (−1, 2), (−1, −2).

**Canonical form (le135).** `w ≥ h`, and θ ∈ [−π/4, 3π/4); a square has θ ∈ [−π/4, π/4), because a quarter
turn maps it to itself. So every rectangle has exactly one canonical form. The seam belongs to the lower end:
3π/4 becomes −π/4 (π/4 becomes −π/4 for squares). Geometry takes any finite θ and either order of w and h;
canonical form is for labels and for what leaves the system.

**Others' boxes.** θ turns the same way in all of these; what differs is its unit and range.

    from                                                              by
    mmrotate's oc, le90 and le135, Ultralytics' xywhr: radians        canonical
    OpenCV's minAreaRect: degrees, in its versions' several ranges    from_opencv
    corners, as in DOTA's labels                                      from_quads
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "canonical",
    "from_le90",
    "from_opencv",
    "from_quads",
    "from_quads_by_edges",
    "to_le90",
    "to_opencv",
    "to_quads",
]

PI = float(np.pi)
FAR = 1e3  # radians


def canonical(boxes: ArrayLike) -> NDArray[np.floating]:
    """The same rectangles with w ≥ h and θ ∈ [−π/4, 3π/4), [−π/4, π/4) for squares.

    Args:
        boxes: (N, 5) or (5,), float32 or float64; other numbers are read as float64.

    Returns:
        A new array of the same shape and type. Boxes already canonical come back bit by bit, so applying it
        twice changes nothing. Sides are not checked; a θ that is not finite becomes NaN.

    Raises:
        ValueError: the last axis is not 5.
    """
    rows = _columns("boxes", boxes, 5, "boxes `cx, cy, w, h, θ`").copy()
    swap = rows[..., 3] > rows[..., 2]
    w, h = rows[..., 2].copy(), rows[..., 3].copy()
    rows[..., 2], rows[..., 3] = np.where(swap, h, w), np.where(swap, w, h)
    theta = rows[..., 4].astype(np.float64)
    if (far := np.abs(theta) > FAR).any():  # whole turns of float64's π are too short by then
        with np.errstate(invalid="ignore"):
            theta = np.where(far, np.arctan2(np.sin(theta), np.cos(theta)), theta)
    theta = theta + np.where(swap, PI / 2, 0.0)
    square = rows[..., 2] == rows[..., 3]
    rows[..., 4] = _wrap(theta, -PI / 4, np.where(square, PI / 2, PI), rows.dtype)
    return rows


def to_quads(boxes: ArrayLike) -> NDArray[np.floating]:
    """Corners of boxes, in the order drawn above.

    Args:
        boxes: (N, 5) or (5,), float32 or float64; other numbers are read as float64.

    Returns:
        (N, 8) or (8,): x1, y1, … x4, y4 in the type of the boxes, computed in float64.
    """
    rows = _columns("boxes", boxes, 5, "boxes `cx, cy, w, h, θ`")
    cx, cy, w, h, theta = np.moveaxis(rows.astype(np.float64), -1, 0)
    cos, sin = np.cos(theta), np.sin(theta)
    ux, uy = w / 2 * cos, w / 2 * sin
    vx, vy = -h / 2 * sin, h / 2 * cos
    xs = [cx - ux - vx, cx + ux - vx, cx + ux + vx, cx - ux + vx]
    ys = [cy - uy - vy, cy + uy - vy, cy + uy + vy, cy - uy + vy]
    corners = [value for corner in zip(xs, ys, strict=True) for value in corner]
    return np.stack(corners, axis=-1).astype(rows.dtype)


def from_quads(quads: ArrayLike) -> NDArray[np.float64]:
    """The canonical minimum-area rectangle of each quad (N, 8): (N, 5) float64.

    DOTA's quads are drawn by hand and are not all rectangles. See `rgfl.geometry.min_area_rect`.
    """
    from rgfl.geometry import min_area_rect  # it imports this module

    return min_area_rect(quads)


def from_quads_by_edges(quads: ArrayLike) -> NDArray[np.float64]:
    """Boxes from the first two edges of each quad, as the published rgfl row read its labels.

    Centre (p1 + p3)/2, sides |p1p2| and |p2p3|, θ the direction of p1p2 where that is the longer, else of
    p1p4 (not of p2p3); canonical. Equal to `from_quads` for rectangles, another box for every other quad.
    Source: poly2obb_np_v2 of github.com/Xuyihaoby/rotate_detection, poly2obb_np_le135 of mmrotate.

    Args:
        quads: (N, 8) or (8,).

    Returns:
        (N, 5) or (5,) float64.
    """
    corners = _columns("quads", quads, 8, "quads `x1, y1, … x4, y4`").astype(np.float64)
    p1, p2, p3, p4 = (corners[..., place : place + 2] for place in (0, 2, 4, 6))
    w, h = np.linalg.norm(p2 - p1, axis=-1), np.linalg.norm(p3 - p2, axis=-1)
    along = np.where((w > h)[..., None], p2, p4) - p1
    boxes = [
        (p1[..., 0] + p3[..., 0]) / 2,
        (p1[..., 1] + p3[..., 1]) / 2,
        np.maximum(w, h),
        np.minimum(w, h),
        np.arctan2(along[..., 1], along[..., 0]),
    ]
    return canonical(np.stack(boxes, axis=-1)).astype(np.float64, copy=False)


def from_le90(boxes: ArrayLike) -> NDArray[np.floating]:
    """Canonical boxes from le90 ones: w ≥ h, θ ∈ [−π/2, π/2) radians, the same axes and direction."""
    return canonical(boxes)


def to_le90(boxes: ArrayLike) -> NDArray[np.floating]:
    """Boxes with w ≥ h and θ ∈ [−π/2, π/2) radians; squares keep θ ∈ [−π/4, π/4)."""
    rows = canonical(boxes)
    rows[..., 4] = _wrap(rows[..., 4].astype(np.float64), -PI / 2, PI, rows.dtype)
    return rows


def from_opencv(boxes: ArrayLike) -> NDArray[np.floating]:
    """Canonical boxes from rows `cx, cy, w, h, angle` of `cv2.minAreaRect` of any version, in degrees."""
    rows = _columns("boxes", boxes, 5, "rows `cx, cy, w, h, degrees`").copy()
    rows[..., 4] = np.deg2rad(rows[..., 4].astype(np.float64))
    return canonical(rows)


def to_opencv(boxes: ArrayLike) -> NDArray[np.floating]:
    """Rows `cx, cy, w, h, angle` as OpenCV ≥ 4.5.1 writes them: degrees in (0, 90], any order of w and h."""
    rows = canonical(boxes)
    # (0, 90] mirrored is [−90, 0): wrap there, then count how often a quarter turn was taken.
    degrees = np.rad2deg(rows[..., 4].astype(np.float64))
    wrapped = -_wrap(-degrees, -90.0, 90.0, rows.dtype)
    swap = np.round((degrees - wrapped) / 90.0).astype(np.int64) % 2 == 1
    w, h = rows[..., 2].copy(), rows[..., 3].copy()
    rows[..., 2], rows[..., 3] = np.where(swap, h, w), np.where(swap, w, h)
    rows[..., 4] = wrapped
    return rows


def _wrap(
    theta: NDArray[np.float64], low: float, period: NDArray[np.float64] | float, dtype: np.dtype
) -> NDArray[np.floating]:
    """θ moved by whole periods into [low, low + period), in the type asked for.

    The bounds are rounded to that type first, and values inside them are not touched: rounding may then
    neither leave the range nor move a value that was inside.
    """
    first = dtype.type(low)
    end = np.asarray(low + np.asarray(period), dtype)
    with np.errstate(invalid="ignore"):
        moved = (theta - period * np.floor((theta - low) / period)).astype(dtype)
    moved = np.where((moved < first) | (moved >= end), first, moved)
    as_given = theta.astype(dtype)
    return np.where((as_given >= first) & (as_given < end), as_given, moved)


def _columns(name: str, values: ArrayLike, width: int, what: str) -> NDArray[np.floating]:
    """`values` as float32 where they are that, else as float64, with `width` numbers on the last axis."""
    array = np.asarray(values)
    if array.shape == (0,):  # an empty list has no second axis
        array = array.reshape(0, width)
    if array.ndim not in (1, 2) or array.shape[-1] != width:
        raise ValueError(f"{name}: expected {what} of shape (N, {width}), got {array.shape}")
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
