"""Selection against its rules, spelt out in a loop."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from rgfl.boxes import canonical
from rgfl.geometry import rotated_iou
from rgfl.postprocess import select
from rgfl.spec import DetectorSpec

SPEC = DetectorSpec(classes=("a", "b"), score_threshold=0.3, iou_threshold=0.2)


def random_outputs(points: int, seed: int, batch: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    boxes = np.concatenate(
        (
            rng.uniform(0, 100, (batch, points, 2)),
            rng.uniform(5, 40, (batch, points, 2)),
            rng.uniform(-0.78, 2.35, (batch, points, 1)),
        ),
        axis=2,
    )
    return boxes.astype(np.float32), rng.uniform(0, 1, (batch, points, 2)).astype(np.float32)


def slow_select(boxes: np.ndarray, scores: np.ndarray, spec: DetectorSpec) -> list[tuple[int, int]]:
    """(point, label) kept of one image, in order."""
    ranked = sorted((-scores[p, c], p, c) for p, c in np.argwhere(scores > spec.score_threshold))
    kept: list[tuple[int, int]] = []
    for _, p, c in ranked[: spec.pre_nms_topk or None]:
        rivals = [q for q, d in kept if d == c]
        if not rivals or rotated_iou(boxes[rivals], boxes[p : p + 1]).max() <= spec.iou_threshold:
            kept.append((p, c))
    return kept[: spec.max_detections]


@pytest.mark.parametrize(
    "changes", [{}, {"pre_nms_topk": 60}, {"max_detections": 7}, {"score_threshold": 0.99}]
)
def test_equals_the_loop(changes: dict) -> None:
    spec = dataclasses.replace(SPEC, **changes)
    boxes, scores = random_outputs(120, 0)
    for image, record in enumerate(select(boxes, scores, spec)):
        kept = slow_select(boxes[image], scores[image], spec)
        points, labels = (list(part) for part in zip(*kept, strict=True))
        np.testing.assert_array_equal(record.labels, labels)
        np.testing.assert_array_equal(record.scores, scores[image][points, labels])
        np.testing.assert_array_equal(record.boxes, canonical(boxes[image][points]))


def test_the_threshold_is_strict() -> None:
    boxes, _ = random_outputs(1, 1, batch=1)
    at = np.float32([[[0.3, np.nextafter(np.float32(0.3), np.float32(1))]]])
    assert select(boxes, at, SPEC)[0].labels.tolist() == [1]


def test_what_is_no_number_never_wins() -> None:
    boxes, scores = random_outputs(50, 2, batch=1)
    expected = select(boxes[:, 12:], scores[:, 12:], SPEC)[0]
    scores[0, :5] = np.nan
    scores[0, 5:8] = np.inf
    boxes[0, 8, 4], boxes[0, 9, 2] = np.nan, np.inf
    boxes[0, 10, 2], boxes[0, 11, 3] = 0, -3  # degenerate: the CUDA kernel drops them too
    found = select(boxes, scores, SPEC)[0]
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_nothing_found_is_empty() -> None:
    boxes, scores = random_outputs(20, 3)
    for record in select(boxes, scores * 0, SPEC):
        assert len(record) == 0
        assert record.boxes.shape == (0, 5)
    assert select(boxes[:, :0], scores[:, :0], SPEC)[0].boxes.shape == (0, 5)
    assert select(boxes[:0], scores[:0], SPEC) == []


def test_shapes_are_checked() -> None:
    boxes, scores = random_outputs(4, 4)
    with pytest.raises(ValueError, match=r"\(B, P, 2\)"):
        select(boxes, scores[..., :1], SPEC)


def test_no_torch_is_imported() -> None:
    code = "import sys, rgfl.postprocess; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
