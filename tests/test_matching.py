"""Detections of two models matched: one to one, by class, the best first."""

from __future__ import annotations

import numpy as np
import pytest

from rgfl.detections import Detections
from rgfl.matching import angle_distance, corner_distance, match_detections


def found(boxes: list[list[float]], labels: list[int]) -> Detections:
    scores = np.linspace(0.9, 0.5, len(boxes), dtype=np.float32)
    return Detections(np.array(boxes, np.float32).reshape(-1, 5), scores, np.array(labels, np.int32))


BOX = [50.0, 50.0, 40.0, 20.0, 0.3]


def test_each_is_matched_once_with_what_overlaps_most() -> None:
    near, nearer = [51.0, 50.0, 40.0, 20.0, 0.3], [50.2, 50.0, 40.0, 20.0, 0.3]
    assert match_detections(found([BOX], [0]), found([near, nearer], [0, 0]), 0.9).tolist() == [[0, 1]]
    pairs = match_detections(found([BOX, near], [0, 0]), found([near, nearer], [0, 0]), 0.9)
    assert pairs.tolist() == [[1, 0], [0, 1]]  # by falling IoU
    equal = match_detections(found([BOX, BOX], [0, 0]), found([BOX, BOX], [0, 0]), 0.9)
    assert equal.tolist() == [[0, 0], [1, 1]]


def test_class_and_threshold_decide() -> None:
    assert len(match_detections(found([BOX], [0]), found([BOX], [1]), 0.5)) == 0
    moved = [[54.0, 50.0, 40.0, 20.0, 0.3]]
    assert len(match_detections(found([BOX], [2]), found(moved, [2]), 0.9)) == 0
    assert len(match_detections(found([BOX], [2]), found(moved, [2]), 0.6)) == 1


def test_nothing_matches_nothing() -> None:
    for first, second in (([], [BOX]), ([BOX], []), ([], [])):
        pairs = match_detections(found(first, [0] * len(first)), found(second, [0] * len(second)), 0.9)
        assert pairs.shape == (0, 2)


def test_corners_are_compared_in_any_cyclic_order() -> None:
    box = np.array([[50.0, 40.0, 30.0, 20.0, 0.3]])
    turned = np.array([[50.0, 40.0, 20.0, 30.0, 0.3 + np.pi / 2]])
    opposite = box + np.array([0, 0, 0, 0, np.pi])
    np.testing.assert_allclose(corner_distance(box, turned), 0, atol=1e-12)
    np.testing.assert_allclose(corner_distance(box, opposite), 0, atol=1e-12)
    np.testing.assert_allclose(corner_distance(box, box + np.array([3.0, 4.0, 0, 0, 0])), 5)


@pytest.mark.parametrize(
    ("sides", "first", "second", "expected"),
    [
        ((40, 20), 0.3, 0.35, 0.05),
        ((40, 20), -np.pi / 4, 3 * np.pi / 4 - 0.01, 0.01),  # over the seam
        ((40, 20), 0.0, np.pi / 2, np.pi / 2),
        ((20, 19.5), 0.0, np.pi / 2 - 0.02, 0.02),  # a near-square
    ],
)
def test_angles(sides: tuple[float, float], first: float, second: float, expected: float) -> None:
    boxes = [np.array([[0, 0, *sides, angle]]) for angle in (first, second)]
    np.testing.assert_allclose(angle_distance(*boxes), expected, atol=1e-12)
