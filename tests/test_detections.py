"""The record that crosses folders: what it is made of, and what it refuses."""

import numpy as np
import pytest

from rgfl.detections import Detections

BOXES, SCORES, LABELS = [[5, 5, 4, 2, 0.5], [9, 9, 4, 2, 1.5]], [0.5, 0.25], [1, 0]
TYPES = (np.float32, np.float32, np.int32)


def types(found):
    return found.boxes.dtype, found.scores.dtype, found.labels.dtype


def tensors():
    torch = pytest.importorskip("torch")
    return [torch.tensor(values) for values in (BOXES, SCORES, LABELS)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: (BOXES, SCORES, LABELS),
        lambda: map(np.array, (BOXES, SCORES, LABELS)),
        lambda: (BOXES, SCORES, np.array(LABELS, np.float64)),
        lambda: (BOXES, SCORES, np.array(LABELS, np.uint8)),
        tensors,
    ],
    ids=["lists", "float64", "labels as floats", "labels as bytes", "tensors"],
)
def test_it_is_of_the_documented_types_whatever_comes(make):
    found = Detections(*make())
    assert types(found) == TYPES
    assert found.boxes.tolist() == BOXES
    assert (found.scores.tolist(), found.labels.tolist()) == (SCORES, LABELS)


def test_arrays_of_these_types_are_not_copied():
    arrays = [np.array(values, kind) for values, kind in zip((BOXES, SCORES, LABELS), TYPES, strict=True)]
    found = Detections(*arrays)
    assert all(one is other for one, other in zip(vars(found).values(), arrays, strict=True))


def test_nothing_is_no_detection():
    for nothing in ([], np.array([])):
        assert Detections(nothing, nothing, nothing).boxes.shape == (0, 5)
    parts = [Detections(BOXES, SCORES, LABELS), Detections(np.zeros((0, 5)), np.zeros(0), np.zeros(0))]
    assert types(Detections.concatenate(parts)) == TYPES


def test_scores_from_one_on_or_from_one_for_each_class():
    found = Detections(BOXES, SCORES, LABELS)
    for least, kept in ((0.3, [0.5]), (0.5, [0.5]), ([0.2, 0.6], [0.25]), ([0.2, 0.2], SCORES), (0.6, [])):
        assert found.at_least(least).scores.tolist() == kept
    assert len(Detections.empty().at_least(0.3)) == 0


def test_of_an_object_that_was_found_as_two_the_better_one_stays():
    box, near, far = [5, 5, 4, 2, 0.5], [5.5, 5, 4, 2, 0.5], [9, 9, 4, 2, 0.5]
    found = Detections([box, near, far], [0.5, 0.75, 0.25], [0, 1, 2])
    assert found.across(0.5).labels.tolist() == [1, 2]
    assert found.across(0.9).labels.tolist() == [1, 0, 2]
    assert types(Detections.empty().across(0.5)) == TYPES


@pytest.mark.parametrize(
    ("labels", "got"),
    [
        ([0.4, 1.0], r"float64 \[0\.4, 1\.0\]"),
        ([0.0, np.nan], r"float64 \[0\.0, nan\]"),
        ([0, 2**40], r"int64 \[0, 1099511627776\]"),
        (["plane", "ship"], r"<U5 \['plane', 'ship'\]"),
        ([True, False], r"bool \[True, False\]"),
    ],
)
def test_labels_are_whole_numbers(labels, got):
    with pytest.raises(ValueError, match=rf"labels: expected whole numbers, indices .* got {got}"):
        Detections(BOXES, SCORES, labels)


@pytest.mark.parametrize("boxes", [np.zeros((2, 8)), np.zeros((3, 5)), np.zeros(10), np.zeros((0, 8)), 7.0])
def test_boxes_of_another_shape_are_refused(boxes):
    with pytest.raises(ValueError, match=r"expected boxes \(N, 5\), .* got \("):
        Detections(boxes, SCORES, LABELS)


@pytest.mark.parametrize("scores", [np.zeros((2, 1)), np.zeros(3), 0.5])
def test_scores_of_another_shape_are_refused(scores):
    with pytest.raises(ValueError, match=r"scores \(N,\), .* got "):
        Detections(BOXES, scores, LABELS)
