"""Rotated IoU, quad IoU and rotated NMS: the NumPy face of the compiled core.

Boxes are rows `cx, cy, w, h, θ` in pixels and radians as drawn in `rgfl.boxes`, with any finite θ and
either order of w and h. Quads are rows `x1, y1, … x4, y4`. NumPy arrays go in and come out; lists and CPU
tensors that need no gradient are taken too. Every function checks its shapes, releases the interpreter lock,
and runs on one core; nothing here imports torch.

A *degenerate* box has a number that is NaN or infinite, or a side that is not in [1e-18, 1e18] pixels
([1e-150, 1e150] in float64): zero and negative sides above all. Its IoU is 0 with everything, itself
included. The rules are the headers in `plugins/core`, which CUDA compiles unchanged: indices kept by NMS
are the same on both.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rgfl import _core
from rgfl.boxes import canonical

__all__ = [
    "min_area_rect",
    "quad_iou",
    "quad_iou_pairwise",
    "rotated_iou",
    "rotated_iou_pairwise",
    "rotated_nms",
]


def rotated_iou(a: ArrayLike, b: ArrayLike) -> NDArray[np.floating]:
    """IoU of every box of `a` with every box of `b`.

    Args:
        a: (N, 5) boxes, a NumPy array, list or CPU tensor; float32 or float64, integers are read as float64.
        b: (M, 5) boxes of the same type; an empty array takes the other's.

    Returns:
        (N, M) NumPy array in the type of the inputs, in [0, 1]; 0 where either box is degenerate. Accurate to
        1e-10 in float64 and 1e-5 in float32 (1e-4 where sides differ more than a hundredfold).

    Raises:
        ValueError: a shape is not (·, 5).
        TypeError: the types differ or are not real numbers.

    Area by the integral of clamped edges (plugins/core/rotated_iou.hpp).
    """
    rows_a, rows_b = _same_type(_boxes("a", a), _boxes("b", b))
    if rows_a.dtype == np.float32:
        return _core.rotated_iou_float32(rows_a, rows_b)
    return _core.rotated_iou_float64(rows_a, rows_b)


def rotated_iou_pairwise(a: ArrayLike, b: ArrayLike) -> NDArray[np.floating]:
    """IoU of each box of `a` with the box of `b` in the same row.

    Args:
        a, b: (N, 5) boxes as in `rotated_iou`.

    Returns:
        (N,): the diagonal of `rotated_iou(a, b)`, bit by bit.

    Raises:
        ValueError, TypeError: as `rotated_iou`, and where the lengths differ.
    """
    rows_a, rows_b = _same_type(_boxes("a", a), _boxes("b", b))
    _check_same_length(rows_a, rows_b)
    if rows_a.dtype == np.float32:
        return _core.rotated_iou_pairwise_float32(rows_a, rows_b)
    return _core.rotated_iou_pairwise_float64(rows_a, rows_b)


def quad_iou(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """IoU of every quad of `a` with every quad of `b`, with the numbers of the DOTA devkit.

    Args:
        a: (N, 8) quads of any shape: concave, self-crossing, clockwise or not.
        b: (M, 8) quads.

    Returns:
        (N, M) float64. The intersection is ∫ wp·wq by winding numbers, each quad turned so that its signed
        area is ≥ 0, and the union |P| + |Q| − intersection; so the quotient of self-crossing quads may leave
        [0, 1], as it does in the devkit. 0 where a coordinate is NaN, infinite or beyond 1e150, and where
        the union is 0 up to rounding (the devkit then divides noise by noise).

    Raises:
        ValueError: a shape is not (·, 8).
        TypeError: the values are not real numbers.
    """
    return _core.quad_iou(_quads("a", a), _quads("b", b))


def quad_iou_pairwise(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """IoU of each quad of `a` (N, 8) with the quad of `b` in the same row: (N,) float64, as `quad_iou`."""
    rows_a, rows_b = _quads("a", a), _quads("b", b)
    _check_same_length(rows_a, rows_b)
    return _core.quad_iou_pairwise(rows_a, rows_b)


def rotated_nms(
    boxes: ArrayLike, scores: ArrayLike, iou_threshold: float, labels: ArrayLike | None = None
) -> NDArray[np.int64]:
    """Greedy non-maximum suppression of rotated boxes.

    A box is kept unless a kept box of the same class that ranks before it overlaps it with
    `iou > iou_threshold`. Higher scores rank first, then lower indices. Boxes whose score is NaN or −∞ have
    no rank: they are dropped and suppress nothing. A degenerate box has IoU 0 with everything, so it
    suppresses nothing and is kept where its score has a rank.

    Args:
        boxes: (N, 5), as the others a NumPy array, list or CPU tensor. Geometry is computed in float32
            whatever the type, as on the GPU.
        scores: (N,), compared in float32.
        iou_threshold: in [0, 1], rounded to float32.
        labels: (N,) integer class ids, compared as numbers; None means one class.

    Returns:
        (K,) int64 NumPy array, indices of the kept boxes in order of rank.

    Raises:
        ValueError: shapes disagree or the threshold is not in [0, 1].
        TypeError: labels are not integers, or the rest are not real numbers.
    """
    rows = _boxes("boxes", boxes).astype(np.float32, copy=False)
    ranks = _numbers("scores", scores).astype(np.float32, copy=False)
    _check_count("scores", ranks, len(rows))
    if not 0.0 <= iou_threshold <= 1.0:
        raise ValueError(f"iou_threshold: expected a number in [0, 1], got {iou_threshold!r}")
    classes = None if labels is None else _class_ids(labels)
    if classes is not None:
        _check_count("labels", classes, len(rows))
    return _core.rotated_nms(rows, ranks, classes, iou_threshold)


def min_area_rect(quads: ArrayLike) -> NDArray[np.float64]:
    """The rectangle of least area around each quad.

    Args:
        quads: (N, 8) quads of any shape.

    Returns:
        (N, 5) float64 canonical boxes; a rectangle comes back as itself. Corners on one line give h = 0,
        coinciding corners w = h = θ = 0, and a coordinate that is NaN, infinite or beyond 1e150 five NaN.

    Raises:
        ValueError: the shape is not (N, 8).
        TypeError: the values are not real numbers.
    """
    return canonical(_core.min_area_rectangles(_quads("quads", quads))).astype(np.float64, copy=False)


def _numbers(name: str, values: ArrayLike) -> NDArray[np.floating]:
    """`values` as float32 where they are that, else as float64."""
    array = np.asarray(values)
    if array.dtype == np.float32 or array.dtype == np.float64:
        return array
    if array.size == 0 or np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating):
        return array.astype(np.float64)
    raise TypeError(f"{name}: expected real numbers, got an array of {array.dtype}")


def _class_ids(labels: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(labels)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"labels: expected integer class ids, got {array.dtype}")
    return array.astype(np.int64, copy=False)


def _boxes(name: str, values: ArrayLike) -> NDArray[np.floating]:
    return _rows(name, values, 5, "boxes `cx, cy, w, h, θ`")


def _quads(name: str, values: ArrayLike) -> NDArray[np.float64]:
    return _rows(name, values, 8, "quads `x1, y1, … x4, y4`").astype(np.float64, copy=False)


def _rows(name: str, values: ArrayLike, width: int, what: str) -> NDArray[np.floating]:
    array = _numbers(name, values)
    if array.shape == (0,):  # an empty list has no second axis
        array = array.reshape(0, width)
    if array.ndim != 2 or array.shape[1] != width:
        raise ValueError(f"{name}: expected {what} of shape (N, {width}), got {array.shape}")
    return np.ascontiguousarray(array)


def _same_type(
    a: NDArray[np.floating], b: NDArray[np.floating]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    if len(a) and len(b) and a.dtype != b.dtype:
        raise TypeError(f"a and b: expected one type, got {a.dtype} and {b.dtype}; convert one of them")
    kind = a.dtype if len(a) else b.dtype
    return a.astype(kind, copy=False), b.astype(kind, copy=False)


def _check_same_length(a: NDArray, b: NDArray) -> None:
    if len(a) != len(b):
        raise ValueError(f"a and b: expected as many rows in both, got {len(a)} and {len(b)}")


def _check_count(name: str, values: NDArray, count: int) -> None:
    if values.shape != (count,):
        raise ValueError(f"{name}: expected one per box, shape ({count},), got {values.shape}")
