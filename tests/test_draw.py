"""Pictures: boxes where they belong, in colours that can be told apart, and nothing that breaks on edges."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from rgfl import draw
from rgfl.detections import Detections
from rgfl.dota.labels import Objects


def one_box(label: int = 0, score: float = 0.9) -> Detections:
    box = np.array([[150, 100, 60, 30, 0.0]], np.float32)
    return Detections(box, np.array([score], np.float32), np.array([label], np.int32))


def test_the_outline_has_the_colour_of_its_class() -> None:
    image = np.full((400, 400, 3), 90, np.uint8)
    classes = ("plane", "ship")
    drawn = draw.picture(image, one_box(1), classes)
    np.testing.assert_allclose(drawn[115, 150], draw.palette(2)[1], atol=20)  # the lower edge, smoothed
    assert (image == 90).all()  # a copy
    assert (drawn[300:400] == 90).all()  # the legend is below, and hides nothing
    assert drawn.shape[0] > 400


def test_low_scores_are_left_out_and_truth_is_white() -> None:
    image = np.zeros((400, 400, 3), np.uint8)
    truth = Objects(
        np.array([[200.0, 200, 300, 200, 300, 300, 200, 300]]), np.zeros(1, np.int32), np.zeros(1, np.int32)
    )
    drawn = draw.picture(image, one_box(0, 0.1), ("plane",), truth=truth)
    assert (drawn[115, 150] == 0).all()
    np.testing.assert_allclose(drawn[300, 250], draw.TRUTH, atol=20)


def test_of_plates_that_would_overlap_the_better_stays() -> None:
    """Their colours tell which: the second box hides under the first plate, the third is free."""
    boxes = np.array([[100, 100, 60, 30, 0], [110, 104, 60, 30, 0], [300, 300, 60, 30, 0]], np.float32)
    found = Detections(boxes, np.array([0.6, 0.9, 0.7], np.float32), np.array([0, 1, 2], np.int32))
    classes = ("plane", "ship", "tank")
    drawn = draw.picture(np.zeros((400, 400, 3), np.uint8), found, classes)[:400]
    plates = [(drawn == colour).all(axis=2).sum() for colour in draw.palette(3)]
    assert plates[1] > 300
    assert plates[2] > 300
    assert plates[0] < 100  # its outline alone


def test_the_legend_wraps_and_names_every_class_found() -> None:
    classes = tuple(f"class-of-objects-{i}" for i in range(6))
    boxes = np.array([[50 * i + 20, 30, 20, 10, 0] for i in range(6)], np.float32)
    found = Detections(boxes, np.full(6, 0.9, np.float32), np.arange(6, dtype=np.int32))
    narrow, wide = (draw.picture(np.zeros((60, w, 3), np.uint8), found, classes)[60:] for w in (320, 1400))
    assert narrow.shape[0] > wide.shape[0] > 0
    for strip in (narrow, wide):
        for colour in draw.palette(6):
            assert (strip == colour).all(axis=2).sum() >= 100, "a square of its colour"


def test_colours_differ() -> None:
    colours = np.array(draw.palette(18), float)
    gaps = np.linalg.norm(colours[:, None] - colours[None], axis=2) + 1e3 * np.eye(18)
    assert gaps.min() > 30


@pytest.mark.parametrize("size", [(1, 1), (8, 5000), (40, 40), (9000, 1), (1, 9000)])
def test_any_size_of_image(size: tuple[int, int]) -> None:
    drawn = draw.picture(np.zeros((*size, 3), np.uint8), one_box(), ("plane",))
    assert max(drawn.shape) <= draw.LONGEST_SIDE + 60  # with the legend


def test_a_large_scene_is_not_copied_to_be_shrunk() -> None:
    image = np.zeros((2 * draw.LONGEST_SIDE, 1000, 3), np.uint8)
    tracemalloc.start()
    try:
        draw.picture(image, one_box(), ("plane",))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < image.nbytes
