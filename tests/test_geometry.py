"""Rotated IoU, quad IoU and NMS against shapely, against slow twins and against their own identities."""

import math
import threading
import time

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from rgfl import _core, boxes, geometry

PAIRS = 1500


def rectangles(rows):
    return shapely.polygons(boxes.to_quads(np.asarray(rows, np.float64)).reshape(-1, 4, 2))


def iou_of_shapes(p, q):
    both = shapely.area(shapely.intersection(p, q))
    return both / (shapely.area(p) + shapely.area(q) - both)


def random_boxes(rng, count, low=2.0, high=100.0, span=60.0):
    return np.stack(
        [
            rng.uniform(0, span, count),
            rng.uniform(0, span, count),
            rng.uniform(low, high, count),
            rng.uniform(low, high, count),
            rng.uniform(-7, 7, count),
        ],
        axis=1,
    )


def moved(rows, along_w, along_h):
    """Boxes shifted in their own axes."""
    out = rows.copy()
    cos, sin = np.cos(rows[:, 4]), np.sin(rows[:, 4])
    out[:, 0] += along_w * cos - along_h * sin
    out[:, 1] += along_w * sin + along_h * cos
    return out


def random_pairs(rng):
    return random_boxes(rng, PAIRS), random_boxes(rng, PAIRS)


def identical_pairs(rng):
    a = random_boxes(rng, PAIRS)
    return a, a.copy()


def nearly_identical_pairs(rng):
    a = random_boxes(rng, PAIRS)
    return a, a + rng.uniform(-1e-5, 1e-5, a.shape)


def edge_sharing_pairs(rng):
    a = random_boxes(rng, PAIRS)
    return a, moved(a, a[:, 2], np.zeros(PAIRS))


def part_of_an_edge_shared_pairs(rng):
    a = random_boxes(rng, PAIRS)
    b = moved(a, a[:, 2] * 0.75, a[:, 3] * rng.uniform(-1, 1, PAIRS))
    b[:, 2] *= 0.5
    return a, b


def corner_touching_pairs(rng):
    a = random_boxes(rng, PAIRS)
    b = moved(a, a[:, 2] / 2, a[:, 3] / 2)
    b[:, 4] += rng.uniform(0, 6, PAIRS)
    b[:, 2:4] = rng.uniform(2, 100, (PAIRS, 2))
    return a, moved(b, b[:, 2] / 2, b[:, 3] / 2)


def nested_pairs(rng):
    a = random_boxes(rng, PAIRS)
    b = a.copy()
    b[:, 2:4] *= rng.uniform(0.05, 0.6, (PAIRS, 1))
    b[:, 4] += rng.uniform(-0.05, 0.05, PAIRS)
    return a, b


def parallel_pairs(rng):
    a = random_boxes(rng, PAIRS)
    b = moved(a, rng.uniform(-20, 20, PAIRS), rng.uniform(-20, 20, PAIRS))
    b[:, 2:4] = rng.uniform(2, 100, (PAIRS, 2))
    b[:, 4] += rng.integers(0, 4, PAIRS) * (np.pi / 2)
    return a, b


def axis_aligned_pairs(rng):
    a = np.round(random_boxes(rng, PAIRS))
    b = np.round(random_boxes(rng, PAIRS))
    a[:, 4] = rng.integers(-4, 5, PAIRS) * (np.pi / 2)
    b[:, 4] = 0.0
    return a, b


def apart_pairs(rng):
    a = random_boxes(rng, PAIRS)
    b = a.copy()
    b[:, 0] += 300
    return a, b


def thin_pairs(rng, ratio):
    a = random_boxes(rng, PAIRS)
    a[:, 2] = ratio * rng.uniform(1, 2, PAIRS)
    a[:, 3] = a[:, 2] / ratio
    a[:, :2] += rng.uniform(0, 4000, (PAIRS, 2))
    b = moved(a, rng.uniform(-0.7, 0.7, PAIRS) * a[:, 2], rng.uniform(-0.5, 0.5, PAIRS) * a[:, 3])
    b[:, 4] += rng.uniform(-2 / ratio, 2 / ratio, PAIRS)
    swap = rng.random(PAIRS) < 0.5
    b[swap] = b[swap][:, [0, 1, 3, 2, 4]] + [0, 0, 0, 0, np.pi / 2]
    return a, b


def thin_pairs_100(rng):
    return thin_pairs(rng, 100)


def thin_pairs_1000(rng):
    return thin_pairs(rng, 1000)


KINDS = [
    random_pairs,
    identical_pairs,
    nearly_identical_pairs,
    edge_sharing_pairs,
    part_of_an_edge_shared_pairs,
    corner_touching_pairs,
    nested_pairs,
    parallel_pairs,
    axis_aligned_pairs,
    apart_pairs,
    thin_pairs_100,
    thin_pairs_1000,
]


# --- Rotated IoU --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_float64_iou_is_shapelys(kind):
    a, b = kind(np.random.default_rng(1))
    expected = iou_of_shapes(rectangles(a), rectangles(b))
    assert np.abs(geometry.rotated_iou_pairwise(a, b) - expected).max() < 1e-10


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_float32_iou_is_the_float64_one_of_the_same_numbers(kind):
    a, b = (rows.astype(np.float32) for rows in kind(np.random.default_rng(2)))
    expected = geometry.rotated_iou_pairwise(a.astype(np.float64), b.astype(np.float64))
    got = geometry.rotated_iou_pairwise(a, b)
    assert got.dtype == np.float32
    assert np.abs(got - expected).max() < (1e-4 if kind is thin_pairs_1000 else 1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_matrix_pairwise_and_single_pairs_agree_bit_by_bit(dtype):
    rng = np.random.default_rng(3)
    a, b = random_boxes(rng, 37).astype(dtype), random_boxes(rng, 1043).astype(dtype)
    matrix = geometry.rotated_iou(a, b)
    assert matrix.shape == (37, 1043)
    assert matrix.dtype == dtype
    rows = geometry.rotated_iou_pairwise(np.repeat(a, len(b), axis=0), np.tile(b, (len(a), 1)))
    assert np.array_equal(matrix.reshape(-1), rows)
    assert all(geometry.rotated_iou(a[i : i + 1], b[i : i + 1])[0, 0] == matrix[i, i] for i in range(37))


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_every_instruction_set_gives_the_same_bits(name):
    rng = np.random.default_rng(4)
    for kind in KINDS:
        a, b = (rows[:200].astype(name) for rows in kind(rng))
        a[::17, 2] = 0
        b[::19, 0] = np.nan
        matrices = [
            getattr(_core, f"rotated_iou_{name}")(a, b, instruction_set)
            for instruction_set in _core.instruction_sets()
        ]
        for other in matrices[1:]:
            assert np.array_equal(matrices[0], other)


def test_an_instruction_set_that_is_not_there_is_refused():
    box = np.ones((1, 5), np.float32)
    with pytest.raises(ValueError, match="no instruction set 'mmx'"):
        _core.rotated_iou_float32(box, box, "mmx")


coordinates = st.floats(-1000, 1000, width=32)
sides = st.floats(0.5, 500, width=32)
angles = st.floats(-20, 20, width=32)
box_strategy = st.tuples(coordinates, coordinates, sides, sides, angles)
# Near enough to overlap often.
pair_strategy = st.tuples(
    box_strategy, st.floats(-200, 200, width=32), st.floats(-200, 200, width=32), sides, sides, angles
).map(lambda t: (t[0], (t[0][0] + t[1], t[0][1] + t[2], t[3], t[4], t[5])))


def iou(a, b, dtype=np.float64):
    return geometry.rotated_iou_pairwise(np.array([a], dtype), np.array([b], dtype))[0]


@given(pair_strategy)
@settings(max_examples=300, deadline=None)
def test_iou_is_symmetric_and_in_range(pair):
    a, b = pair
    assert abs(iou(a, b) - iou(b, a)) < 1e-11
    assert abs(iou(a, b, np.float32) - iou(b, a, np.float32)) < 1e-4
    for dtype in (np.float32, np.float64):
        assert 0 <= iou(a, b, dtype) <= 1


@given(pair_strategy, st.floats(-math.pi, math.pi), coordinates, coordinates)
@settings(max_examples=300, deadline=None)
def test_iou_does_not_change_when_both_boxes_move_and_turn(pair, angle, dx, dy):
    def turned(box):
        cx, cy, w, h, theta = box
        cos, sin = math.cos(angle), math.sin(angle)
        return cx * cos - cy * sin + dx, cx * sin + cy * cos + dy, w, h, theta + angle

    a, b = pair
    assert abs(iou(a, b) - iou(turned(a), turned(b))) < 1e-9


@given(pair_strategy, st.integers(-5, 5))
@settings(max_examples=300, deadline=None)
def test_iou_does_not_see_how_a_rectangle_is_written(pair, turns):
    a, b = pair
    cx, cy, w, h, theta = b
    expected = iou(a, b)
    assert abs(iou(a, (cx, cy, w, h, theta + turns * math.pi)) - expected) < 1e-10
    assert abs(iou(a, (cx, cy, h, w, theta + math.pi / 2)) - expected) < 1e-10
    assert abs(iou(a, boxes.canonical(np.array([b], np.float64))[0]) - expected) < 1e-10


@given(box_strategy)
@settings(max_examples=200, deadline=None)
def test_iou_of_a_box_with_itself_is_1(box):
    assert abs(iou(box, box) - 1) < 1e-12
    # Half a unit in the last place of sine and cosine, times the aspect ratio.
    assert abs(iou(box, box, np.float32) - 1) < 2e-6


def test_boxes_apart_have_exactly_zero():
    a = np.array([[0, 0, 10, 4, 0.3]])
    b = np.array([[20, 0, 8, 4, -0.4], [0, 1e30, 1, 1, 0], [1e300, 1e300, 5, 5, 1]])
    assert (geometry.rotated_iou(a, b) == 0).all()
    assert (geometry.rotated_iou(a.astype("f"), b[:2].astype("f")) == 0).all()


NAMED_PAIRS = {
    "unit_squares_half_shifted": ([0, 0, 1, 1, 0], [0.5, 0, 1, 1, 0], 1 / 3),
    "cross": ([0, 0, 4, 2, 0], [0, 0, 4, 2, math.pi / 2], 4 / 12),
    "square_and_itself_by_45_degrees": (
        [0, 0, 2, 2, 0],
        [0, 0, 2, 2, math.pi / 4],
        # A regular octagon of in-radius 1: area 8·tan(π/8).
        8 * math.tan(math.pi / 8) / (8 - 8 * math.tan(math.pi / 8)),
    ),
    "same_rectangle_other_sides_first": ([5, 5, 6, 2, 0.2], [5, 5, 2, 6, 0.2 + math.pi / 2], 1.0),
    "nested": ([0, 0, 4, 4, 0], [0, 0, 2, 1, 0.1], 2 / 16),
    "sharing_an_edge": ([0, 0, 2, 2, 0], [2, 0, 2, 2, 0], 0.0),
    "touching_at_a_corner": ([0, 0, 2, 2, 0], [2, 2, 2, 2, 0], 0.0),
    "clockwise_is_positive": ([1, 1, 4, 0.1, math.pi / 4], [-1, 1, 1, 1, 0], 0.0),
}


@pytest.mark.parametrize(("a", "b", "expected"), NAMED_PAIRS.values(), ids=NAMED_PAIRS)
def test_named_pairs(a, b, expected):
    assert iou(a, b) == pytest.approx(expected, abs=1e-14)
    assert iou(a, b, np.float32) == pytest.approx(expected, abs=5e-7)


DEGENERATE = {
    "nan_centre": [math.nan, 0, 2, 2, 0],
    "infinite_centre": [0, -math.inf, 2, 2, 0],
    "nan_width": [0, 0, math.nan, 2, 0],
    "infinite_width": [0, 0, math.inf, 2, 0],
    "zero_width": [0, 0, 0, 2, 0],
    "zero_height": [0, 0, 2, 0, 0],
    "zero_sides": [0, 0, 0, 0, 0],
    "negative_width": [0, 0, -2, 2, 0],
    "negative_sides": [0, 0, -2, -2, 0],
    "nan_angle": [0, 0, 2, 2, math.nan],
    "infinite_angle": [0, 0, 2, 2, math.inf],
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("box", DEGENERATE.values(), ids=DEGENERATE)
def test_a_degenerate_box_has_iou_0_with_everything(box, dtype):
    a = np.array([box], dtype)
    others = np.array([[0, 0, 2, 2, 0], [0, 0, 100, 100, 1], box], dtype)
    assert (geometry.rotated_iou(a, others) == 0).all()
    assert (geometry.rotated_iou(others, a) == 0).all()


@pytest.mark.parametrize(("dtype", "least", "most"), [("f", 1e-18, 1e18), ("d", 1e-150, 1e150)])
def test_extreme_sides_are_either_measured_or_zero_but_never_nan(dtype, least, most):
    sizes = [least / 2, least * 1.01, 1e-9, 1.0, 1e9, most * 0.99, most * 2]
    rows = np.array([[0, 0, w, h, t] for w in sizes for h in sizes for t in (0, 0.5, np.pi / 2)], dtype)
    values = geometry.rotated_iou(rows, rows)
    assert np.isfinite(values).all()
    assert (values >= 0).all()
    assert (values <= 1).all()
    inside = ((rows[:, 2:4] > least) & (rows[:, 2:4] < most)).all(axis=1)
    assert (np.diag(values)[~inside] == 0).all()
    same_size = inside & (rows[:, 2] == rows[:, 3])
    assert np.abs(np.diag(values)[same_size] - 1).max() < 1e-5


def test_sine_and_cosine_of_any_finite_angle():
    rng = np.random.default_rng(5)
    values = np.concatenate(
        [
            rng.uniform(-10, 10, 3000),
            rng.uniform(-2e6, 2e6, 3000),
            10.0 ** rng.uniform(-300, 308, 3000) * rng.choice([-1, 1], 3000),
            np.arange(-40, 41) * (np.pi / 4),
            np.array([0.0, 5e-324, 1e6, -1e6, np.nextafter(1e6, 0), 1.7976931348623157e308]),
            # The double nearest to a multiple of π/2 (Kahan): all 61 leading digits cancel.
            np.array([6381956970095103.0 * 2.0**797]),
        ]
    )
    for angle in values.tolist():
        sine, cosine = _core._sin_cos(angle)
        assert abs(sine - math.sin(angle)) < 3e-16, angle
        assert abs(cosine - math.cos(angle)) < 3e-16, angle


# --- Quads --------------------------------------------------------------------------------------


def cells_of_two_quads(p, q):
    """Slow reference: cut the plane into the convex cells of all edge lines; sum area × winding products."""

    def winding(corners, x, y):
        count = 0
        for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            if (y0 <= y) != (y1 <= y):
                crosses = x0 + (y - y0) / (y1 - y0) * (x1 - x0) > x
                count += (1 if y1 > y0 else -1) * crosses
        return count

    def directed_area(corners):
        x, y = corners.T
        return 0.5 * float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))

    p, q = p.reshape(4, 2), q.reshape(4, 2)
    lines = [
        shapely.LineString([s, e]) for c in (p, q) for s, e in zip(c, np.roll(c, -1, axis=0), strict=True)
    ]
    both = 0.0
    for cell in shapely.get_parts(shapely.polygonize([shapely.unary_union(lines)])):
        inside = cell.representative_point()
        both += cell.area * winding(p, inside.x, inside.y) * winding(q, inside.x, inside.y)
    area_p, area_q = directed_area(p), directed_area(q)
    both *= (1 if area_p >= 0 else -1) * (1 if area_q >= 0 else -1)
    return both / (abs(area_p) + abs(area_q) - both)


def is_convex(quads):
    corners = quads.reshape(-1, 4, 2)
    edges = np.roll(corners, -1, axis=1) - corners
    following = np.roll(edges, -1, axis=1)
    turns = edges[..., 0] * following[..., 1] - edges[..., 1] * following[..., 0]
    return (turns > 0).all(axis=1) | (turns < 0).all(axis=1)


def test_quad_iou_of_simple_quads_is_shapelys():
    rng = np.random.default_rng(6)
    a, b = rng.uniform(0, 50, (2, 6000, 8))
    p, q = (shapely.polygons(quads.reshape(-1, 4, 2)) for quads in (a, b))
    simple = shapely.is_valid(p) & shapely.is_valid(q)
    concave = simple & ~is_convex(a)
    assert simple.sum() > 1000
    assert concave.sum() > 300
    got = geometry.quad_iou_pairwise(a, b)
    assert np.abs(got[simple] - iou_of_shapes(p[simple], q[simple])).max() < 1e-10


def test_quad_iou_of_self_crossing_quads_is_the_product_of_winding_numbers():
    rng = np.random.default_rng(7)
    a, b = rng.uniform(0, 50, (2, 400, 8))
    crossing = ~shapely.is_valid(shapely.polygons(a.reshape(-1, 4, 2)))
    assert crossing.sum() > 100
    expected = np.array([cells_of_two_quads(p, q) for p, q in zip(a, b, strict=True)])
    assert np.allclose(geometry.quad_iou_pairwise(a, b), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_quad_iou_of_rectangles_is_rotated_iou(kind):
    a, b = kind(np.random.default_rng(8))
    expected = geometry.rotated_iou_pairwise(a, b)
    assert np.abs(geometry.quad_iou_pairwise(boxes.to_quads(a), boxes.to_quads(b)) - expected).max() < 1e-9


def test_quad_iou_does_not_depend_on_direction_or_first_corner():
    rng = np.random.default_rng(9)
    a, b = rng.uniform(0, 50, (2, 500, 4, 2))
    expected = geometry.quad_iou_pairwise(a.reshape(-1, 8), b.reshape(-1, 8))
    # Where |P| + |Q| − intersection nearly vanishes, the quotient of crossing quads has no digits.
    stable = np.abs(expected) < 10
    for other in (a[:, ::-1], np.roll(a, 1, axis=1), np.roll(a[:, ::-1], 2, axis=1)):
        got = geometry.quad_iou_pairwise(np.ascontiguousarray(other).reshape(-1, 8), b.reshape(-1, 8))
        assert np.allclose(got[stable], expected[stable], rtol=1e-9, atol=1e-11)
    swapped = geometry.quad_iou_pairwise(b.reshape(-1, 8), a.reshape(-1, 8))
    assert np.allclose(swapped[stable], expected[stable], rtol=1e-9, atol=1e-11)


NAMED_QUADS = {
    "unit_squares_half_shifted": ([0, 0, 1, 0, 1, 1, 0, 1], [0.5, 0, 1.5, 0, 1.5, 1, 0.5, 1], 1 / 3),
    "opposite_directions": ([0, 0, 2, 0, 2, 2, 0, 2], [0, 0, 0, 2, 2, 2, 2, 0], 1.0),
    # The arrow head misses the notch of 1 below (1, 1).
    "concave_arrow_in_its_hull": ([0, 0, 1, 1, 2, 0, 1, 3], [0, 0, 2, 0, 1, 3, 1, 3], 2 / 3),
    # Its lobes count with opposite signs; None: the number of the slow reference.
    "bow_tie_in_a_square": ([0, 0, 3, 2, 3, -2, 0, 1], [-9, -9, 9, -9, 9, 9, -9, 9], None),
    "collinear_corners": ([0, 0, 1, 1, 2, 2, 3, 3], [0, 0, 2, 0, 2, 2, 0, 2], 0.0),
    "a_point": ([1, 1, 1, 1, 1, 1, 1, 1], [0, 0, 2, 0, 2, 2, 0, 2], 0.0),
    "two_points": ([1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1], 0.0),
    # ∫ w² is 9 and each signed area 4.5.
    "a_crossing_quad_whose_union_vanishes": ([4, 7, 1, 1, 1, 4, 7, 4], [4, 7, 1, 1, 1, 4, 7, 4], 0.0),
    "nan": ([math.nan, 0, 2, 0, 2, 2, 0, 2], [0, 0, 2, 0, 2, 2, 0, 2], 0.0),
    "infinite": ([math.inf, 0, 2, 0, 2, 2, 0, 2], [0, 0, 2, 0, 2, 2, 0, 2], 0.0),
}


@pytest.mark.parametrize(("a", "b", "expected"), NAMED_QUADS.values(), ids=NAMED_QUADS)
def test_named_quads(a, b, expected):
    if expected is None:
        expected = cells_of_two_quads(np.array(a, float), np.array(b, float))
    assert geometry.quad_iou([a], [b])[0, 0] == pytest.approx(expected, abs=1e-14)
    assert geometry.quad_iou([b], [a])[0, 0] == pytest.approx(expected, abs=1e-14)


def test_halves_that_cancel_are_rounded_as_the_devkit_does():
    """Rectangles with two corners swapped, to a tenth of a pixel: their area is 0 and its sign is rounding.

    The expected numbers are those of the devkit's compiled polyiou.
    """
    crossing = np.array(
        [
            [609.3, 651.2, 570.1, 687.8, 605.6, 691.1, 573.8, 647.9],
            [409.4, 240.3, 401.2, 290.0, 427.5, 277.2, 383.1, 253.1],
            [696.0, 864.2, 685.8, 897.1, 705.8, 889.3, 676.0, 872.0],
            [279.1, 719.9, 249.7, 762.5, 281.2, 760.9, 247.6, 721.5],
        ]
    )
    found = np.array(
        [
            [606.8, 658.6, 604.2, 678.4, 567.6, 673.6, 570.2, 653.7],
            [414.8, 253.2, 423.0, 271.8, 396.4, 283.5, 388.2, 265.0],
            [694.9, 867.2, 701.0, 879.6, 682.3, 888.8, 676.2, 876.4],
            [279.4, 732.9, 280.3, 752.3, 250.2, 753.7, 249.3, 734.2],
        ]
    )
    devkit = [-0.12908573872562543, -0.1309968621605521, 0.3558153790151336, 0.11935874605040081]
    assert geometry.quad_iou_pairwise(crossing, found) == pytest.approx(devkit, abs=1e-9)
    assert geometry.quad_iou_pairwise(found, crossing) == pytest.approx(devkit, abs=1e-9)


def test_quad_iou_keeps_its_digits_far_from_the_origin():
    square = np.array([[0, 0, 10, 0, 10, 10, 0, 10]], float)
    far = 2.0**30
    assert geometry.quad_iou(square + far, square + far + 5)[0, 0] == pytest.approx(25 / 175, abs=1e-14)


def test_quad_matrix_is_the_pairwise_one():
    rng = np.random.default_rng(10)
    a, b = rng.uniform(0, 80, (7, 8)), rng.uniform(0, 80, (9, 8))
    matrix = geometry.quad_iou(a, b)
    assert matrix.shape == (7, 9)
    assert all(matrix[i, j] == geometry.quad_iou_pairwise(a[i : i + 1], b[j : j + 1])[0]
               for i in range(7) for j in range(9))  # fmt: skip


def test_min_area_rect_is_shapelys():
    rng = np.random.default_rng(11)
    quads = rng.uniform(0, 50, (800, 8))
    shapes = shapely.polygons(quads.reshape(-1, 4, 2))
    rows = geometry.min_area_rect(quads)
    expected = shapely.area(shapely.minimum_rotated_rectangle(shapes))
    assert np.allclose(rows[:, 2] * rows[:, 3], expected, rtol=1e-10)
    grown = rows + np.array([0, 0, 1e-9, 1e-9, 0])
    points = shapely.points(quads.reshape(-1, 2))
    assert shapely.covers(np.repeat(rectangles(grown), 4), points).all()


def test_min_area_rect_of_degenerate_quads():
    rows = geometry.min_area_rect(
        [[3, 4] * 4, [0, 0, 1, 1, 2, 2, 3, 3], [0, 0, 0, 0, 0, 2, 0, 2], [np.nan, 0, 1, 0, 1, 1, 0, 1]]
    )
    assert rows[0] == pytest.approx([3, 4, 0, 0, 0])
    assert rows[1] == pytest.approx([1.5, 1.5, math.sqrt(18), 0, math.pi / 4])
    assert rows[2] == pytest.approx([0, 1, 2, 0, math.pi / 2])
    assert np.isnan(rows[3]).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e151])
@pytest.mark.parametrize("place", range(8))
def test_a_quad_with_a_coordinate_out_of_range_has_iou_0_and_no_rectangle(value, place):
    quad = np.array([0, 0, 4, 0, 4, 2, 0, 2.0])
    wrong = quad.copy()
    wrong[place] = value
    assert geometry.quad_iou([wrong, quad], [quad, wrong]).tolist() == [[0, 0], [1, 0]]
    assert np.isnan(geometry.min_area_rect([wrong])).all()


# --- NMS ----------------------------------------------------------------------------------------


def brute_force_nms(rows, scores, threshold, labels):
    """The definition in shapely, in float64: greedy, by score and then index."""
    shapes = rectangles(rows)
    kept = []
    for i in sorted(range(len(rows)), key=lambda i: (-scores[i], i)):
        rivals = [k for k in kept if labels[k] == labels[i]]
        if not rivals or (iou_of_shapes(shapes[rivals], shapes[i]) <= threshold).all():
            kept.append(i)
    return np.array(kept)


def scattered(rng, count, span):
    return random_boxes(rng, count, 4, 60, span).astype(np.float32)


def clustered(rng, count, span, centres=40):
    chosen = scattered(rng, centres, span)[rng.integers(0, centres, count)]
    return (chosen + rng.normal(0, 1, (count, 5)) * [2, 2, 2, 2, 0.1]).astype(np.float32)


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("make", [scattered, clustered])
def test_nms_is_the_brute_force_of_shapely(make, threshold):
    rng = np.random.default_rng(12)
    rows = make(rng, 250, 300)
    scores = rng.random(250).astype(np.float32)
    labels = rng.integers(0, 3, 250)
    # Keep pairs away from the threshold, where float32 and float64 may differ.
    values = geometry.rotated_iou(rows.astype(np.float64), rows.astype(np.float64))
    near = (np.abs(values - threshold) < 1e-4).any(axis=1)
    rows, scores, labels = rows[~near], scores[~near], labels[~near]
    expected = brute_force_nms(rows, scores, threshold, labels)
    assert np.array_equal(geometry.rotated_nms(rows, scores, threshold, labels), expected)


def mixed_sizes(rng, count, span):
    rows = scattered(rng, count, span)
    rows[::10, 2:4] *= 20
    rows[::7, 3] = 0.5
    return rows


def one_place(rng, count, span):
    rows = scattered(rng, count, span)
    rows[:, :2] = 5
    return rows


def huge_coordinates(rng, count, span):
    rows = clustered(rng, count, span)
    rows[:, :2] += rng.choice(np.array([0, 1e7, -1e12, 3e38], np.float32), (count, 2))
    rows[::5, 2:4] *= np.float32(1e8)
    return rows


def on_a_lattice(rng, count, span):
    """Touching, equal and edge-sharing boxes throughout."""
    rows = np.zeros((count, 5), np.float32)
    rows[:, :2] = rng.integers(0, 12, (count, 2)) * 10
    rows[:, 2:4] = rng.choice([10, 20], (count, 2))
    rows[:, 4] = rng.integers(-2, 3, count) * np.float32(np.pi / 2)
    return rows


def with_degenerate_boxes(rng, count, span):
    rows = clustered(rng, count, span)
    flat = rows.reshape(-1)
    flat[rng.integers(0, flat.size, count // 3)] = rng.choice([0, -1, np.nan, np.inf, -np.inf], count // 3)
    return rows


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "make",
    [scattered, clustered, mixed_sizes, one_place, huge_coordinates, on_a_lattice, with_degenerate_boxes],
)
def test_the_tree_keeps_what_the_quadratic_definition_keeps(make, tied):
    for seed in range(12):
        rng = np.random.default_rng(seed)
        count = int(rng.integers(1, 900))
        rows = make(rng, count, float(rng.choice([50, 300, 2000])))
        scores = rng.random(count).astype(np.float32)
        if tied:
            scores = np.round(scores * 3) / 3
        scores[rng.random(count) < 0.02] = np.nan
        labels = rng.choice([-5, 0, 3, 2**40], count) if seed % 2 else None
        for threshold in (0.0, 0.1, 0.5, 1.0):
            expected = _core._rotated_nms_quadratic(rows, scores, labels, threshold)
            for name in _core.instruction_sets():
                got = _core.rotated_nms(rows, scores, labels, threshold, name)
                assert np.array_equal(got, expected), (seed, threshold, name)


def test_nms_keeps_nothing_that_another_kept_box_suppresses():
    rng = np.random.default_rng(13)
    rows, scores = clustered(rng, 1500, 400), rng.random(1500).astype(np.float32)
    kept = geometry.rotated_nms(rows, scores, 0.3)
    assert (np.diff(scores[kept]) <= 0).all()
    values = np.triu(geometry.rotated_iou(rows[kept], rows[kept]), 1)
    assert (values <= np.float32(0.3)).all()
    dropped = np.setdiff1d(np.arange(1500), kept)
    over = geometry.rotated_iou(rows[kept], rows[dropped]) > np.float32(0.3)
    before = scores[kept][:, None] >= scores[dropped][None]
    assert (over & before).any(axis=0).all()


SQUARE = [10, 10, 4, 4, 0]
SHIFTED = [11, 10, 4, 4, 0]  # IoU with SQUARE: 12 / 20 = 0.6
AWAY = [30, 10, 4, 4, 0]
NAMED_NMS = {
    # boxes, scores, labels, threshold, kept
    "empty": ([], [], None, 0.5, []),
    "empty_of_classes": ([], [], [], 0.5, []),
    "one_box": ([SQUARE], [0.9], None, 0.5, [0]),
    "in_order_of_rank": ([SQUARE, AWAY], [0.1, 0.9], None, 0.5, [1, 0]),
    "identical_boxes_keep_the_first": ([SQUARE] * 4, [0.5] * 4, None, 0.5, [0]),
    "identical_boxes_keep_the_best": ([SQUARE] * 3, [0.5, 0.7, 0.6], None, 0.5, [1]),
    "suppressed_above_the_threshold": ([SQUARE, SHIFTED], [0.9, 0.8], None, 0.59, [0]),
    "kept_below_the_threshold": ([SQUARE, SHIFTED], [0.9, 0.8], None, 0.61, [0, 1]),
    # IoU exactly 1/2 in any arithmetic: the rule is strict.
    "kept_at_the_threshold": ([[0, 0, 4, 4, 0], [1, 0, 2, 4, 0]], [0.9, 0.8], None, 0.5, [0, 1]),
    "threshold_1_suppresses_nothing": ([SQUARE] * 2, [0.9, 0.8], None, 1.0, [0, 1]),
    "threshold_0_keeps_what_only_touches": ([SQUARE, [14, 10, 4, 4, 0]], [0.9, 0.8], None, 0.0, [0, 1]),
    "a_suppressed_box_suppresses_nothing": (
        [SQUARE, [11.5, 10, 4, 4, 0], [13, 10, 4, 4, 0]],
        [0.9, 0.8, 0.7],
        None,
        0.4,
        [0, 2],
    ),
    "other_classes_are_not_compared": ([SQUARE] * 3, [0.9, 0.8, 0.7], [0, 1, 0], 0.5, [0, 1]),
    "classes_are_numbers_not_offsets": ([SQUARE] * 2, [0.9, 0.8], [2**53, 2**53 + 1], 0.5, [0, 1]),
    "classes_have_64_bits": ([SQUARE] * 2, [0.9, 0.8], [1, 1 + 2**32], 0.5, [0, 1]),
    "tied_scores_go_by_index": ([AWAY, SQUARE, SHIFTED], [0.5] * 3, None, 0.5, [0, 1]),
    "minus_zero_ties_with_zero": ([SQUARE, SQUARE], [-0.0, 0.0], None, 0.5, [0]),
    "nan_score_never_wins": ([SQUARE, SQUARE], [math.nan, 0.1], None, 0.5, [1]),
    "only_nan_scores": ([SQUARE, AWAY], [math.nan, math.nan], None, 0.5, []),
    "minus_infinity_has_no_rank": ([SQUARE, AWAY], [-math.inf, 0.1], None, 0.5, [1]),
    "plus_infinity_ranks_first": ([SQUARE, SQUARE], [0.9, math.inf], None, 0.5, [1]),
    "negative_scores_have_a_rank": ([SQUARE, SQUARE], [-2.0, -1.0], None, 0.5, [1]),
    "a_degenerate_box_is_kept_and_suppresses_nothing": (
        [[10, 10, 0, 4, 0], SQUARE, [10, 10, 0, 4, 0]],
        [0.9, 0.8, 0.7],
        None,
        0.0,
        [0, 1, 2],
    ),
    "quarter_turns_and_swapped_sides_are_the_same_box": (
        [[0, 0, 6, 2, 0.3], [0, 0, 2, 6, 0.3 + math.pi / 2], [0, 0, 6, 2, 0.3 - math.pi]],
        [0.9, 0.8, 0.7],
        None,
        0.99,
        [0],
    ),
    "a_cross_overlaps_by_a_third": ([[0, 0, 4, 2, 0], [0, 0, 2, 4, 0]], [0.9, 0.8], None, 0.34, [0, 1]),
}


@pytest.mark.parametrize(("rows", "scores", "labels", "threshold", "kept"), NAMED_NMS.values(), ids=NAMED_NMS)
def test_named_nms(rows, scores, labels, threshold, kept):
    assert geometry.rotated_nms(rows, scores, threshold, labels).tolist() == kept


def test_nms_computes_in_float32_whatever_comes():
    rng = np.random.default_rng(14)
    rows, scores = clustered(rng, 500, 200), rng.random(500).astype(np.float32)
    kept = geometry.rotated_nms(rows, scores, 0.3)
    assert np.array_equal(kept, geometry.rotated_nms(rows.astype(np.float64), scores.astype(np.float64), 0.3))
    assert kept.dtype == np.int64


def test_nms_reads_arrays_that_are_not_contiguous():
    rng = np.random.default_rng(15)
    wide = np.zeros((300, 10), np.float32)
    wide[:, ::2] = clustered(rng, 300, 200)
    scores = rng.random(600).astype(np.float32)
    expected = geometry.rotated_nms(wide[:, ::2].copy(), scores[::2].copy(), 0.3)
    assert np.array_equal(geometry.rotated_nms(wide[:, ::2], scores[::2], 0.3), expected)


# --- The face: shapes, types, errors ------------------------------------------------------------


@pytest.mark.parametrize("function", [geometry.rotated_iou, geometry.quad_iou])
def test_empty_inputs_give_empty_matrices(function):
    width = 5 if function is geometry.rotated_iou else 8
    some = np.ones((3, width))
    assert function([], some).shape == (0, 3)
    assert function(some, np.zeros((0, width))).shape == (3, 0)
    assert function([], []).shape == (0, 0)


@pytest.mark.parametrize("empty", [[], np.zeros((0, 5)), np.zeros((0, 5), np.float32)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_empty_array_takes_the_others_type(empty, dtype):
    some = np.ones((3, 5), dtype)
    for iou, shape in (
        (geometry.rotated_iou(some, empty), (3, 0)),
        (geometry.rotated_iou(empty, some), (0, 3)),
        (geometry.rotated_iou_pairwise(some[:0], empty), (0,)),
    ):
        assert iou.shape == shape
    assert geometry.rotated_iou(some, empty).dtype == geometry.rotated_iou(empty, some).dtype == dtype


def test_tensors_go_in_and_arrays_come_out():
    torch = pytest.importorskip("torch")
    rows = random_boxes(np.random.default_rng(18), 20).astype(np.float32)
    boxes, scores = torch.from_numpy(rows), torch.linspace(0, 1, 20)
    iou, kept = geometry.rotated_iou(boxes, boxes), geometry.rotated_nms(boxes, scores, 0.1)
    assert type(iou) is type(kept) is np.ndarray
    assert np.array_equal(iou, geometry.rotated_iou(rows, rows))
    assert np.array_equal(kept, geometry.rotated_nms(rows, scores.numpy(), 0.1))


@pytest.mark.parametrize("dtype", [int, np.float16, np.longdouble])
def test_other_numbers_are_read_as_float64(dtype):
    iou = geometry.rotated_iou(np.array([[0, 0, 2, 2, 0]], dtype), np.array([[1, 0, 2, 2, 0]], dtype))
    assert iou.dtype == np.float64
    assert iou[0, 0] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda b: geometry.rotated_iou(b[:, :4], b),
            ValueError,
            r"a: expected boxes .*\(N, 5\), got \(2, 4\)",
        ),
        (lambda b: geometry.rotated_iou(b, b[0]), ValueError, r"b: expected .* got \(5,\)"),
        (lambda b: geometry.rotated_iou(b, b.astype("f")), TypeError, "one type, got float64 and float32"),
        (lambda b: geometry.rotated_iou(b, b * 1j), TypeError, "b: expected real numbers, got .*complex128"),
        (lambda b: geometry.rotated_iou_pairwise(b, b[:1]), ValueError, "as many rows in both, got 2 and 1"),
        (lambda b: geometry.quad_iou(b, b), ValueError, r"a: expected quads .*\(N, 8\), got \(2, 5\)"),
        (lambda b: geometry.min_area_rect(b), ValueError, r"quads: expected quads .*\(2, 5\)"),
        (lambda b: geometry.rotated_nms(b, [1.0], 0.5), ValueError, r"scores: .* shape \(2,\), got \(1,\)"),
        (lambda b: geometry.rotated_nms(b, [1, 2], 0.5, [1]), ValueError, r"labels: .* got \(1,\)"),
        (lambda b: geometry.rotated_nms(b, [1, 2], 0.5, [1.0, 2.0]), TypeError, "labels: expected integer"),
        (lambda b: geometry.rotated_nms(b, [1, 2], 1.5), ValueError, r"iou_threshold: .*\[0, 1\], got 1.5"),
        (lambda b: geometry.rotated_nms(b, [1, 2], math.nan), ValueError, "iou_threshold: .* got nan"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(call, error, message):
    with pytest.raises(error, match=message):
        call(np.ones((2, 5)))


def test_the_interpreter_lock_is_released():
    rows = random_boxes(np.random.default_rng(16), 4000).astype(np.float32)
    thread = threading.Thread(target=geometry.rotated_iou, args=(rows, rows))
    ticks = 0
    thread.start()
    while thread.is_alive():
        ticks += 1
        time.sleep(0.001)
    assert ticks > 5
