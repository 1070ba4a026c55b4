"""Which detections of one model are those of another: pairs of one class that overlap, the best first.

For models that differ in precision, whose boxes and scores are near but not equal. No ground truth, no torch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rgfl.boxes import to_quads
from rgfl.detections import Detections
from rgfl.geometry import rotated_iou


def match_detections(first: Detections, second: Detections, iou_threshold: float) -> NDArray[np.int64]:
    """Indices (M, 2) into `first` and `second` of what is the same in both, by falling IoU.

    Args:
        first, second: detections of one image.
        iou_threshold: pairs of one class with at least this rotated IoU are matched, one to one, the greatest
            IoU first; equal ones by index, so that the result does not depend on chance.
    """
    if not len(first) or not len(second):
        return np.zeros((0, 2), np.int64)
    overlap = rotated_iou(first.boxes.astype(np.float64), second.boxes.astype(np.float64))
    overlap[first.labels[:, None] != second.labels[None]] = -1.0
    rows, columns = np.nonzero(overlap >= iou_threshold)
    order = np.argsort(-overlap[rows, columns], kind="stable")
    free_rows, free_columns = np.ones(len(first), bool), np.ones(len(second), bool)
    pairs = []
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if free_rows[row] and free_columns[column]:
            free_rows[row] = free_columns[column] = False
            pairs.append((row, column))
    return np.array(pairs, np.int64).reshape(-1, 2)


def corner_distance(first: NDArray, second: NDArray) -> NDArray[np.float64]:
    """(N,) greatest distance between corners of boxes (N, 5) and (N, 5), px, over the best cyclic order."""
    one = to_quads(first.astype(np.float64)).reshape(-1, 4, 2)
    two = to_quads(second.astype(np.float64)).reshape(-1, 4, 2)
    turns = [np.linalg.norm(one - np.roll(two, turn, axis=1), axis=2).max(axis=1) for turn in range(4)]
    return np.min(turns, axis=0)


def angle_distance(first: NDArray, second: NDArray) -> NDArray[np.float64]:
    """(N,) angle between the long sides of boxes (N, 5) and (N, 5), in [0, π/2].

    A near-square has no long side that two models agree on, so there it is the angle between the nearest
    sides, in [0, π/4]: where w and h differ less than 10% in either box.
    """
    difference = np.abs(first[:, 4].astype(np.float64) - second[:, 4])

    def folded(period: float) -> NDArray[np.float64]:
        rest = difference % period
        return np.minimum(rest, period - rest)

    sides = np.stack([first[:, 2:4], second[:, 2:4]]).astype(np.float64)
    square = (sides.min(axis=2) > 0.9 * sides.max(axis=2)).any(axis=0)
    return np.where(square, folded(np.pi / 2), folded(np.pi))
