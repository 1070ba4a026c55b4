"""The convention: the drawing, the canonical form, and the conversions at its border."""

import math
import re

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgfl import boxes

PI = math.pi
LOW, HIGH = {}, {}
for kind in (np.float32, np.float64):
    LOW[kind], HIGH[kind] = kind(-PI / 4), kind(3 * PI / 4)

sides = st.floats(0.1, 1000)
box_strategy = st.tuples(
    st.floats(-2000, 2000), st.floats(-2000, 2000), sides, sides, st.floats(-50, 50)
)  # fmt: skip


def corner_sets_agree(a, b, tolerance):
    """Whether two rectangles have the same four corners, in any order."""
    a, b = np.asarray(a).reshape(4, 2), np.asarray(b).reshape(4, 2)
    distance = np.linalg.norm(a[:, None] - b[None], axis=2)
    return distance.min(axis=0).max() < tolerance and distance.min(axis=1).max() < tolerance


def test_the_drawing_in_the_docstring():
    assert boxes.to_quads([0, 0, 4, 2, 0]).tolist() == [-2, -1, 2, -1, 2, 1, -2, 1]
    assert boxes.to_quads([0, 0, 4, 2, PI / 2]) == pytest.approx([1, -2, 1, 2, -1, 2, -1, -2])
    # θ = π/4: corner 1 above the centre's left, 2 lower right, 3 at the bottom, 4 left (y down).
    x1, y1, x2, y2, x3, y3, x4, y4 = boxes.to_quads([0, 0, 4, 3, PI / 4])
    assert y1 < min(y2, y4) < max(y2, y4) < y3
    assert x2 > max(x1, x3)
    assert x4 < min(x1, x3)
    assert (x2 - x1, y2 - y1) == pytest.approx((4 / math.sqrt(2), 4 / math.sqrt(2)))


CANONICAL = {
    "already": ([1, 2, 4, 2, 0.5], [1, 2, 4, 2, 0.5]),
    "tall_box": ([1, 2, 2, 4, 0.0], [1, 2, 4, 2, PI / 2]),
    "tall_box_past_the_seam": ([1, 2, 2, 4, 1.0], [1, 2, 4, 2, 1.0 - PI / 2]),
    "half_turn": ([1, 2, 4, 2, 0.5 + PI], [1, 2, 4, 2, 0.5]),
    "many_turns": ([1, 2, 4, 2, 0.5 - 100 * PI], [1, 2, 4, 2, 0.5]),
    "lower_seam": ([0, 0, 4, 2, -PI / 4], [0, 0, 4, 2, -PI / 4]),
    "upper_seam": ([0, 0, 4, 2, 3 * PI / 4], [0, 0, 4, 2, -PI / 4]),
    "just_below_the_upper_seam": (
        [0, 0, 4, 2, np.nextafter(3 * PI / 4, 0)],
        [0, 0, 4, 2, np.nextafter(3 * PI / 4, 0)],
    ),
    "just_below_the_lower_seam": ([0, 0, 4, 2, -PI / 4 - 1e-9], [0, 0, 4, 2, 3 * PI / 4 - 1e-9]),
    "tall_box_on_the_seam": ([0, 0, 2, 4, PI / 4], [0, 0, 4, 2, -PI / 4]),
    "square": ([0, 0, 3, 3, 0.1], [0, 0, 3, 3, 0.1]),
    "square_quarter_turn": ([0, 0, 3, 3, 0.1 + PI / 2], [0, 0, 3, 3, 0.1]),
    "square_at_90_degrees": ([0, 0, 3, 3, PI / 2], [0, 0, 3, 3, 0.0]),
    "square_on_its_seam": ([0, 0, 3, 3, PI / 4], [0, 0, 3, 3, -PI / 4]),
    "square_lower_seam": ([0, 0, 3, 3, -PI / 4], [0, 0, 3, 3, -PI / 4]),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("box", "expected"), CANONICAL.values(), ids=CANONICAL)
def test_canonical_golden(box, expected, dtype):
    got = boxes.canonical(np.array([box], dtype))[0]
    assert got.dtype == dtype
    if dtype == np.float32 and abs(expected[4] - 3 * PI / 4) < 1e-6:
        assert got[4] == pytest.approx(-PI / 4)  # rounds to the seam, which belongs to the lower end
    else:
        assert got == pytest.approx(expected, abs=2e-5 if dtype == np.float32 else 1e-13)


@given(box_strategy, st.sampled_from([np.float32, np.float64]))
@settings(max_examples=400, deadline=None)
def test_canonical_is_in_range_the_same_rectangle_and_idempotent(box, dtype):
    given_box = np.array([box], dtype)
    once = boxes.canonical(given_box)
    _, _, w, h, theta = once[0]
    assert w >= h
    assert LOW[dtype] <= theta < (dtype(PI / 4) if w == h else HIGH[dtype])
    assert np.array_equal(boxes.canonical(once), once)
    size = 1 + max(box[2:4])
    tolerance = size * (1e-4 if dtype == np.float32 else 1e-11)
    corners = boxes.to_quads(given_box.astype(np.float64)), boxes.to_quads(once.astype(np.float64))
    assert corner_sets_agree(*corners, tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_canonical_near_every_multiple_of_the_seam(dtype):
    angles = np.array([k * PI / 4 for k in range(-40, 41)], dtype)
    for _ in range(3):
        angles = np.unique(
            np.concatenate([angles, np.nextafter(angles, dtype(-99)), np.nextafter(angles, dtype(99))])
        )
    for w, h, end in ((4, 2, 3 * PI / 4), (2, 4, 3 * PI / 4), (3, 3, PI / 4)):
        rows = np.zeros((len(angles), 5), dtype)
        rows[:, 2], rows[:, 3], rows[:, 4] = w, h, angles
        once = boxes.canonical(rows)
        assert (once[:, 4] >= dtype(-PI / 4)).all()
        assert (once[:, 4] < dtype(end)).all()
        assert np.array_equal(boxes.canonical(once), once)


def test_canonical_leaves_its_argument_alone_and_takes_one_box():
    row = np.array([0, 0, 2, 4, 9.0])
    before = row.copy()
    assert boxes.canonical(row).shape == (5,)
    assert np.array_equal(row, before)
    assert boxes.canonical([]).shape == (0, 5)
    assert boxes.to_quads([]).shape == (0, 8)


@pytest.mark.parametrize("theta", [1.2e6, -1.2e9, 1.2e12, 1e15, 1e30])
def test_canonical_is_the_same_rectangle_after_many_turns(theta):
    for sides in ((10, 4), (4, 10)):
        found = boxes.canonical(np.array([0, 0, *sides, theta]))
        long = theta if sides[0] > sides[1] else math.atan2(math.cos(theta), -math.sin(theta))
        assert math.sin(found[4] - math.atan2(math.sin(long), math.cos(long))) == pytest.approx(0, abs=1e-12)


def test_canonical_of_an_infinite_angle_is_nan():
    assert np.isnan(boxes.canonical([0, 0, 2, 1, math.inf])[4])


@given(box_strategy)
@settings(max_examples=300, deadline=None)
def test_quads_and_boxes_round_trip(box):
    row = np.array([box])
    quads = boxes.to_quads(row)
    tolerance = 1e-9 * (1 + np.abs(row).max())
    for back in (boxes.from_quads(quads), boxes.from_quads_by_edges(quads)):
        assert corner_sets_agree(boxes.to_quads(back), quads, tolerance)
        assert np.array_equal(boxes.canonical(back), back)


def test_from_quads_is_the_minimum_area_rectangle_and_by_edges_is_not():
    trapezium = [[0, 0, 10, 0, 8, 4, 2, 4]]
    assert boxes.from_quads(trapezium)[0] == pytest.approx([5, 2, 10, 4, 0])
    # First two edges: 10 along x, √(2² + 4²) = √20; centre (p1 + p3)/2.
    assert boxes.from_quads_by_edges(trapezium)[0] == pytest.approx([4, 2, 10, math.sqrt(20), 0])
    # The longer edge is the second: θ follows the side across from it, p1 to p4.
    second = [0, 0, 10, 0, 13, 20, 0, 20]
    assert boxes.from_quads_by_edges([second])[0] == pytest.approx(
        [6.5, 10, math.hypot(3, 20), 10, math.pi / 2]
    )
    # Equal edges: that of p1p4 too, 53.13°, which for a square is −36.87°.
    rhombus = [0, 0, 5, 0, 8, 4, 3, 4]
    assert boxes.from_quads_by_edges([rhombus])[0] == pytest.approx([4, 2, 5, 5, math.atan2(-3, 4)])


def test_from_quads_has_opencvs_area():
    rng = np.random.default_rng(0)
    quads = rng.uniform(0, 100, (300, 8))
    rows = boxes.from_quads(quads)
    for quad, row in zip(quads, rows, strict=True):
        (_, (w, h), _) = cv2.minAreaRect(quad.reshape(4, 2).astype(np.float32))
        assert row[2] * row[3] == pytest.approx(w * h, rel=2e-4, abs=0.05)


@given(box_strategy)
@settings(max_examples=200, deadline=None)
def test_le90_round_trip(box):
    row = boxes.canonical(np.array([box]))
    there = boxes.to_le90(row)
    assert (there[:, 2] >= there[:, 3]).all()
    assert ((there[:, 4] >= -PI / 2) & (there[:, 4] < PI / 2)).all()
    assert corner_sets_agree(boxes.to_quads(there), boxes.to_quads(row), 1e-8)
    assert corner_sets_agree(boxes.to_quads(boxes.from_le90(there)), boxes.to_quads(row), 1e-8)


@given(box_strategy)
@settings(max_examples=200, deadline=None)
def test_opencv_round_trip(box):
    row = boxes.canonical(np.array([box]))
    there = boxes.to_opencv(row)
    assert 0 < there[0, 4] <= 90
    assert corner_sets_agree(boxes.to_quads(boxes.from_opencv(there)), boxes.to_quads(row), 1e-7)
    cx, cy, w, h, degrees = there[0].tolist()
    corners = cv2.boxPoints(((cx, cy), (w, h), degrees))
    assert corner_sets_agree(corners, boxes.to_quads(row), 1e-3 * (1 + np.abs(row).max()) / 10)


@pytest.mark.parametrize("convert", [boxes.to_quads, boxes.canonical])
def test_float32_is_rounded_once(convert):
    rng = np.random.default_rng(0)
    rows = rng.uniform([0, 0, 1, 1, -50], [20_000, 20_000, 99, 99, 50], (1000, 5)).astype(np.float32)
    rows[::2, 4] *= 1e6  # many turns
    exact = convert(rows.astype(np.float64)).astype(np.float32)
    inside = np.abs(exact[:, -1] - convert(rows)[:, -1]) < 1  # not across a seam
    np.testing.assert_array_equal(convert(rows)[inside], exact[inside])
    assert inside.mean() > 0.99


@pytest.mark.parametrize(
    "call", [boxes.canonical, boxes.to_quads, boxes.to_le90, boxes.to_opencv, boxes.from_opencv]
)
@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 5)])
def test_a_wrong_shape_is_named(call, shape):
    with pytest.raises(ValueError, match=rf"boxes: expected .* \(N, 5\), got {re.escape(str(shape))}"):
        call(np.zeros(shape))


def test_a_wrong_quad_shape_is_named():
    for call in (boxes.from_quads, boxes.from_quads_by_edges):
        with pytest.raises(ValueError, match=r"quads: expected .* \(N, 8\), got \(2, 5\)"):
            call(np.zeros((2, 5)))
