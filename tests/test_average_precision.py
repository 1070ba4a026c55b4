"""The evaluation against golden cases worked out by hand, and against a slow twin of the official rules."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from shapely.geometry import Polygon

from rgfl.detections import Detections
from rgfl.dota import average_precision
from rgfl.dota.average_precision import (
    RECALL_GRID,
    THRESHOLDS,
    EvaluationError,
    area_under,
    eleven_points,
    evaluate,
    evaluate_detections,
)
from rgfl.dota.labels import (
    CLASSES,
    LabelError,
    Objects,
    Task1Class,
    read_label_folder,
    read_task1,
    write_task1,
)
from rgfl.dota.tiling import clip_objects, windows

Quad = tuple[float, ...]


def square(x: float, y: float = 0.0, width: float = 10.0, height: float = 10.0) -> Quad:
    return (x, y, x + width, y, x + width, y + height, x, y + height)


def truth_of(*objects: tuple[Quad, int] | tuple[Quad, int, int]) -> Objects:
    """Objects from (quad, label) or (quad, label, difficult)."""
    return Objects(
        np.array([row[0] for row in objects], np.float64).reshape(-1, 8),
        np.array([row[1] for row in objects], np.int32),
        np.array([row[2] if len(row) > 2 else 0 for row in objects], np.int32),
    )


def found(*detections: tuple[str, float, Quad]) -> Task1Class:
    """Detections of one class from (image, score, quad)."""
    return Task1Class(
        [row[0] for row in detections],
        np.array([row[1] for row in detections], np.float64),
        np.array([row[2] for row in detections], np.float64).reshape(-1, 8),
    )


def ap_of(
    objects: list, detections: list, *, version: str = "1.0", thresholds=(0.5,), image="a"
) -> list[float]:
    """AP of one class in one image, by threshold; objects (quad[, difficult]), detections (score, quad)."""
    truth = {image: truth_of(*((row[0], 0, *row[1:]) for row in objects))}
    task1 = {"ship": found(*((image, score, quad) for score, quad in detections))}
    return evaluate(task1, truth, ["ship"], version=version, thresholds=thresholds).ap[0].tolist()


# ---------------------------------------------------------------------------------------------
# Golden cases


def test_perfect_detections_have_ap_1_at_every_threshold():
    quads = [square(100.0 * k) for k in range(5)]
    ap = ap_of([(q,) for q in quads], [(0.9 - k / 10, q) for k, q in enumerate(quads)], thresholds=THRESHOLDS)
    assert ap == pytest.approx([1.0] * 10, abs=1e-15)


def test_hit_miss_hit():
    # Precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1: six grid points see 1, five see 2/3.
    objects = [(square(0),), (square(100),)]
    detections = [(0.9, square(0)), (0.8, square(500)), (0.7, square(100))]
    assert ap_of(objects, detections) == [pytest.approx((6 + 5 * 2 / 3) / 11, abs=1e-15)]


@pytest.mark.parametrize(
    ("hits", "points"),
    [(1, 2), (2, 3), (3, 3), (4, 5), (5, 6), (6, 6), (7, 7), (8, 9), (9, 10), (10, 11)],
)
def test_recall_of_3_6_and_7_tenths_misses_its_grid_point(hits, points):
    objects = [(square(100.0 * k),) for k in range(10)]
    detections = [(1 - k / 20, square(100.0 * k)) for k in range(hits)]
    assert ap_of(objects, detections) == [pytest.approx(points / 11, abs=1e-15)]


def test_the_grid_is_the_official_one():
    assert len(RECALL_GRID) == 11
    assert [k for k in range(11) if RECALL_GRID[k] > k / 10] == [3, 6, 7]


def test_an_iou_equal_to_the_threshold_is_a_miss():
    objects, detections = [(square(0),)], [(0.9, square(0, height=5))]
    assert ap_of(objects, detections, thresholds=(0.499999, 0.5)) == [pytest.approx(1.0), 0.0]


def test_second_detection_of_an_object_is_a_miss():
    # Hit, miss, hit on two objects, as above.
    objects = [(square(0),), (square(100),)]
    detections = [(0.9, square(0)), (0.8, square(0, 0.5)), (0.7, square(100))]
    assert ap_of(objects, detections) == [pytest.approx((6 + 5 * 2 / 3) / 11)]


def test_no_second_choice_when_the_best_object_is_taken():
    # Both detections prefer the left object; the right one overlaps the second by 0.6 and stays unfound.
    left, right = square(0), square(2)
    second = square(0.5)
    assert ap_of([(left,), (right,)], [(0.9, left), (0.8, second)]) == [pytest.approx(6 / 11)]


def test_the_worse_scored_but_better_placed_detection_does_not_take_the_object():
    assert ap_of([(square(0),)], [(0.9, square(0, 2)), (0.8, square(0))]) == [pytest.approx(1.0)]


def test_of_equal_objects_the_first_is_matched():
    # One polygon labelled twice: both detections go to the first label, so recall stays 1/2.
    assert ap_of([(square(0),), (square(0),)], [(0.9, square(0)), (0.8, square(0))]) == [
        pytest.approx(6 / 11)
    ]
    # In v1.0 a difficult first one swallows both, whatever the second is; a difficult second one nothing.
    assert ap_of([(square(0), 1), (square(0),)], [(0.9, square(0))]) == [0.0]
    assert ap_of([(square(0),), (square(0), 1)], [(0.9, square(0))]) == [pytest.approx(1.0)]


def test_difficult_objects_are_ignored_by_v1_0_alone():
    objects = [(square(0), 1), (square(100),)]
    on_difficult_twice = [(0.9, square(0)), (0.8, square(0, 0.5))]
    assert ap_of(objects, on_difficult_twice) == [0.0]
    assert ap_of(objects, [*on_difficult_twice, (0.7, square(100))]) == [pytest.approx(1.0)]
    for version in ("1.5", "2.0"):
        assert ap_of(objects, on_difficult_twice, version=version) == [pytest.approx(6 / 11)]
        assert ap_of(objects, [*on_difficult_twice, (0.7, square(100))], version=version) == [
            pytest.approx((6 + 5 * 2 / 3) / 11)
        ]


@pytest.mark.parametrize("version", CLASSES)
def test_what_a_tile_cut_away_is_ignored_by_every_version(version):
    """Difficult 2 is no official file's: v1.5 and v2.0 missed slivers that no detector could find."""
    objects = [(square(0), 2), (square(100),)]
    on_sliver_twice = [(0.9, square(0)), (0.8, square(0, 0.5))]
    tile = "P1__1__0___0"
    assert ap_of(objects, on_sliver_twice, version=version, image=tile) == [0.0]
    rows = [*on_sliver_twice, (0.7, square(100))]
    assert ap_of(objects, rows, version=version, image=tile) == [pytest.approx(1.0)]
    truth = {tile: truth_of((square(0), 0, 2), (square(100), 0))}
    result = evaluate({"ship": found((tile, 0.7, square(100)))}, truth, ["ship"], version=version)
    assert result.ap50 == pytest.approx(1.0)
    assert result.counts["ship"] == {"ground_truth": 1, "difficult": 1, "detections": 1}


@pytest.mark.parametrize("version", ["1.5", "2.0"])
def test_difficult_2_of_a_full_image_counts_as_every_object(version):
    """It is no border's there; such objects vanished from the count."""
    objects = [(square(0), 2), (square(100),)]
    assert ap_of(objects, [(0.9, square(0)), (0.8, square(100))], version=version) == [pytest.approx(1.0)]
    assert ap_of(objects, [(0.8, square(100))], version=version) == [pytest.approx(6 / 11)]


@pytest.mark.parametrize("version", CLASSES)
def test_a_perfect_detector_is_perfect_on_tiles(version):
    """Of what training sees there, which leaves out what the border cut away. It scored 0.85 by v1.5."""
    corners = np.mgrid[0:300:50, 0:300:50].reshape(2, -1).T
    whole = truth_of(*((square(x + 5.0, y + 5.0, 35, 20), 0) for x, y in corners))
    corners = windows(300, 300, 128, 103)
    truth = {f"P1__1__{x}___{y}": clip_objects(whole, x, y, (128, 128)) for x, y in corners}
    assert any((objects.difficult == 2).any() for objects in truth.values())
    rows = [
        (name, 0.9, quad)
        for name, objects in truth.items()
        for quad in objects.quads[objects.difficult < 2].tolist()
    ]
    result = evaluate({"ship": found(*rows)}, truth, ["ship"], version=version)
    assert result.map == pytest.approx(1.0)
    assert result.unit == "tile"


def test_a_difficult_match_below_the_threshold_is_a_miss():
    objects = [(square(0), 1), (square(100),)]
    detections = [(0.9, square(0, 5)), (0.8, square(100))]  # IoU 1/3 with the difficult object
    assert ap_of(objects, detections, thresholds=(0.3, 0.5)) == [pytest.approx(1.0), pytest.approx(0.5)]


def test_equal_scores_keep_the_order_of_the_file():
    hit, miss = (0.5, square(0)), (0.5, square(500))
    assert ap_of([(square(0),)], [hit, miss]) == [pytest.approx(1.0)]
    assert ap_of([(square(0),)], [miss, hit]) == [pytest.approx(0.5)]


def test_scores_rank_over_all_images():
    truth = {"a": truth_of((square(0), 0)), "b": truth_of()}
    task1 = {"ship": found(("a", 0.2, square(0)), ("b", 0.9, square(0)), ("b", 0.1, square(0)))}
    assert evaluate(task1, truth, ["ship"]).ap50 == pytest.approx(0.5)


def test_other_images_and_classes_do_not_match():
    truth = {"a": truth_of((square(0), 0)), "b": truth_of((square(0), 1))}
    task1 = {"ship": found(("b", 0.9, square(0))), "plane": found(("a", 0.9, square(0)))}
    assert evaluate(task1, truth, ["ship", "plane"]).map == 0.0


def test_classes_without_objects_or_detections_have_ap_0_and_count_in_the_mean():
    truth = {"a": truth_of((square(0), 0), (square(0), 1), (square(50), 3, 1))}
    task1 = {"ship": found(("a", 0.9, square(0))), "plane": found(), "car": found(), "bridge": found()}
    task1["car"] = found(("a", 0.9, square(0)))
    task1["bridge"] = found(("a", 0.9, square(50)))  # its only object is difficult
    result = evaluate(task1, truth, ["ship", "plane", "car", "bridge"], thresholds=(0.5,))
    assert result.ap[:, 0].tolist() == [pytest.approx(1.0), 0.0, 0.0, 0.0]
    assert result.ap50 == pytest.approx(0.25)
    assert any("car, bridge" in note and "AP 0" in note for note in result.notes)
    assert result.counts["bridge"] == {"ground_truth": 0, "difficult": 1, "detections": 1}


def test_corner_order_and_direction_do_not_matter():
    corners = np.array(square(0)).reshape(4, 2)
    for start in range(4):
        for turned in (corners, corners[::-1]):
            quad = tuple(np.roll(turned, start, axis=0).ravel())
            assert ap_of([(square(0),)], [(0.9, quad)], thresholds=(0.95,)) == [pytest.approx(1.0)]


def test_a_concave_object_is_not_its_hull():
    # A square with one corner folded to its middle has half the area.
    concave = (0, 0, 10, 0, 5, 5, 0, 10)
    thresholds = (0.49, 0.51)
    assert ap_of([(concave,)], [(0.9, square(0))], thresholds=thresholds) == [pytest.approx(1.0), 0.0]
    assert ap_of([(concave,)], [(0.9, concave)], thresholds=thresholds) == [pytest.approx(1.0)] * 2


def test_a_self_crossing_object_has_the_devkits_numbers():
    # Lobes of winding +1 (area 16, below) and -1 (area 4): signed area 12.
    crossing = (-4, 0, 4, 0, -2, 6, 2, 6)
    lower, upper = (-4, 0, 4, 0, 0, 4, -2, 2), (0, 4, 2, 6, 0, 6, -2, 6)
    assert ap_of([(crossing,)], [(0.9, crossing)], thresholds=(0.95,)) == [pytest.approx(1.0)]  # 20 / 4
    assert ap_of([(crossing,)], [(0.9, lower)], thresholds=(0.95,)) == [pytest.approx(1.0)]  # 16 / 12
    assert ap_of([(crossing,)], [(0.9, upper)], thresholds=(0.0,)) == [0.0]  # -4 / 20


def test_quads_without_area_match_nothing():
    flat = (0, 0, 10, 0, 10, 0, 0, 0)
    assert ap_of([(flat,)], [(0.9, flat)], thresholds=(0.0,)) == [0.0]
    assert ap_of([(square(0),)], [(0.9, flat)], thresholds=(0.0,)) == [0.0]
    assert ap_of([(flat,), (square(0),)], [(0.9, square(0))]) == [pytest.approx(6 / 11)]


# ---------------------------------------------------------------------------------------------
# The slow twin: the official procedure, one detection at a time


def slow_ap(
    detections: list[tuple[str, float, Quad]],
    objects: dict[str, list[tuple[Quad, int]]],
    threshold: float,
    version: str,
) -> float:
    """AP of one class: the rules of the module's docstring as plain loops, polygons by shapely."""
    counted = {
        (image, place): difficult == 0 or version != "1.0"
        for image, rows in objects.items()
        for place, (_, difficult) in enumerate(rows)
    }
    total = sum(counted.values())
    taken: set[tuple[str, int]] = set()
    hits = misses = 0
    points = []
    for image, _, quad in sorted(detections, key=lambda detection: -detection[1]):
        best, owner = -math.inf, None
        for place, (other, _) in enumerate(objects[image]):
            if boxes_touch(quad, other) and (overlap := polygon_iou(quad, other)) > best:
                best, owner = overlap, (image, place)
        if owner is None or not best > threshold:
            misses += 1
        elif counted[owner]:
            if owner in taken:
                misses += 1
            else:
                taken.add(owner)
                hits += 1
        points.append((hits / total if total else 0.0, hits / (hits + misses) if hits + misses else 0.0))
    if not total:
        return 0.0
    grid = np.arange(0, 1.1, 0.1).tolist()
    return math.fsum(max((p for r, p in points if r >= t), default=0.0) for t in grid) / 11


def boxes_touch(a: Quad, b: Quad) -> bool:
    """Horizontal boxes that include their last pixel have a pixel in common."""
    return all(
        min(max(a[axis::2]), max(b[axis::2])) - max(min(a[axis::2]), min(b[axis::2])) + 1 > 0
        for axis in (0, 1)
    )


@cache
def polygon_iou(a: Quad, b: Quad) -> float:
    p, q = (Polygon(np.reshape(quad, (4, 2))) for quad in (a, b))
    common = p.intersection(q).area
    return common / (p.area + q.area - common)


def box_quad(cx: float, cy: float, w: float, h: float, angle: float, fold: float = 1.0) -> Quad:
    """A rectangle whose third corner is drawn towards (fold < 1) or past (fold < 0: concave) the centre."""
    corners = np.array([[-w, -h], [w, -h], [w * fold, h * fold], [-w, h]]) / 2
    cos, sin = math.cos(angle), math.sin(angle)
    return tuple((corners @ np.array([[cos, sin], [-sin, cos]]) + (cx, cy)).ravel().tolist())


SHAPES = st.tuples(
    st.integers(0, 80), st.integers(0, 80), st.integers(4, 40), st.integers(4, 40),
    st.floats(-3.2, 3.2), st.sampled_from([1.0, 1.0, 0.6, -0.3]),
)  # fmt: skip
OBJECTS = st.lists(st.tuples(SHAPES, st.integers(0, 1), st.sampled_from([0, 0, 1, 2])), max_size=7)
# Image, the object it is made from (by number, if there is one), its own shape otherwise, a shift, a score.
FOUND = st.tuples(
    st.integers(0, 2), st.integers(0, 9), SHAPES, st.integers(0, 1),
    st.floats(-4, 4), st.floats(-4, 4), st.integers(0, 30),
)  # fmt: skip


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
@given(
    scene=st.lists(OBJECTS, min_size=1, max_size=3),
    detections=st.lists(FOUND, max_size=20),
    version=st.sampled_from(["1.0", "1.5", "2.0"]),
)
def test_equals_the_slow_twin(scene, detections, version):
    names = ["ship", "plane"]
    truth = {
        f"P{number}": truth_of(*((box_quad(*shape), label, difficult) for shape, label, difficult in rows))
        for number, rows in enumerate(scene)
    }
    rows: dict[str, list[tuple[str, float, Quad]]] = {name: [] for name in names}
    for image, place, shape, label, dx, dy, score in detections:
        image %= len(scene)
        if place < len(scene[image]):
            shape, label, _ = scene[image][place]
        rows[names[label]].append(
            (f"P{image}", score / 30, box_quad(shape[0] + dx, shape[1] + dy, *shape[2:]))
        )
    result = evaluate({name: found(*rows[name]) for name in names}, truth, names, version=version)

    for label, name in enumerate(names):
        objects = {
            image: [
                (tuple(q), int(d))
                for q, c, d in zip(o.quads, o.labels, o.difficult, strict=True)
                if c == label
            ]
            for image, o in truth.items()
        }
        for image, _, quad in rows[name]:
            overlaps = sorted((polygon_iou(quad, other), other) for other, _ in objects[image])
            # Two ways of rounding may disagree on a threshold, or on the better of two all but equal objects.
            assume(all(abs(overlap - t) > 1e-9 for overlap, _ in overlaps for t in THRESHOLDS))
            assume(all(p == q or b - a > 1e-9 or b < 0.4 for (a, p), (b, q) in pairwise(overlaps)))
        for column, threshold in enumerate(THRESHOLDS):
            expected = slow_ap(rows[name], objects, threshold, version)
            assert result.ap[label, column] == pytest.approx(expected, abs=1e-12), (name, threshold)


def crowd(
    seed: int, objects: int = 150, detections: int = 400
) -> tuple[dict[str, Task1Class], dict[str, Objects]]:
    rng = np.random.default_rng(seed)
    shapes = np.column_stack(
        [rng.uniform(0, 300, (objects, 2)), rng.uniform(8, 40, (objects, 2)), rng.uniform(-3, 3, objects)]
    )
    quads = [box_quad(*shape) for shape in shapes]
    chosen = rng.integers(objects, size=detections)
    moved = shapes[chosen] + rng.normal(0, 1.5, (detections, 5)) * (1, 1, 1, 1, 0.05)
    truth = {"a": truth_of(*((q, 0, int(rng.random() < 0.2)) for q in quads)), "b": truth_of()}
    rows = [
        ("a" if rng.random() < 0.95 else "b", s, box_quad(*m))
        for s, m in zip(rng.random(detections), moved, strict=True)
    ]
    return {"ship": found(*rows)}, truth


@pytest.mark.parametrize("version", ["1.0", "1.5"])
def test_a_crowd_equals_the_slow_twin(version):
    task1, truth = crowd(1)
    result = evaluate(task1, truth, ["ship"], version=version)
    objects = {
        image: [(tuple(q), int(d)) for q, d in zip(o.quads, o.difficult, strict=True)]
        for image, o in truth.items()
    }
    ship = task1["ship"]
    rows = [(i, float(s), tuple(q)) for i, s, q in zip(ship.images, ship.scores, ship.quads, strict=True)]
    for threshold in (0.5, 0.75, 0.95):
        expected = slow_ap(rows, objects, threshold, version)
        assert result.at(threshold) == pytest.approx(expected, abs=1e-12)
    assert 0.2 < result.ap50 < 0.95  # neither trivial


@pytest.mark.parametrize("seed", range(20))
def test_candidates_are_the_pairs_whose_widened_boxes_overlap(seed, monkeypatch):
    # Whole and half pixels, so that gaps of exactly 1 (apart) and ½ (touching) occur.
    rng = np.random.default_rng(seed)
    corners = [rng.integers(0, 60, (n, 1, 2)) / 2 + rng.integers(0, 12, (n, 4, 2)) / 2 for n in (60, 40)]
    a, b = (c.reshape(-1, 8) for c in corners)
    group_a, group_b = rng.integers(0, 4, 60), rng.integers(1, 5, 40)
    monkeypatch.setattr("rgfl.dota.pairs.AT_ONCE", int(rng.integers(1, 200)))
    pairs = average_precision._overlapping(a, group_a, b, group_b, 5)
    expected = [
        (i, j)
        for i in range(60)
        for j in range(40)
        if group_a[i] == group_b[j] and boxes_touch(tuple(a[i]), tuple(b[j]))
    ]
    assert list(zip(*(p.tolist() for p in pairs), strict=True)) == expected
    assert expected


def test_work_in_pieces_gives_the_same_result(monkeypatch):
    whole = evaluate(*crowd(2), ["ship"])
    monkeypatch.setattr("rgfl.dota.pairs.AT_ONCE", 50)
    assert np.array_equal(evaluate(*crowd(2), ["ship"]).ap, whole.ap)


def test_an_empty_curve_has_ap_0():
    assert eleven_points(np.zeros(0), np.zeros(0)) == area_under(np.zeros(0), np.zeros(0)) == 0.0


@given(hits=st.lists(st.booleans(), max_size=30), missed=st.integers(0, 5))
def test_area_is_vocs_integral(hits, missed):
    assume(sum(hits) + missed)
    found = np.cumsum(hits, dtype=float)
    recall, precision = found / (sum(hits) + missed), found / np.arange(1, len(hits) + 1)
    # VOC's development kit: both ends added, precision made to fall, rectangles under it added up.
    heights = [0.0, *precision, 0.0]
    for place in range(len(heights) - 1, 0, -1):
        heights[place - 1] = max(heights[place - 1], heights[place])
    steps = zip(pairwise([0.0, *recall, 1.0]), heights[1:], strict=True)
    assert area_under(recall, precision) == pytest.approx(sum((b - a) * h for (a, b), h in steps), abs=1e-14)


def test_by_area_keeps_the_matches_and_says_so():
    # Hit, miss, hit on two objects: half the recall at precision 1, half at 2/3.
    truth = {"a": truth_of((square(0), 0), (square(100), 0))}
    task1 = {"ship": found(("a", 0.9, square(0)), ("a", 0.8, square(500)), ("a", 0.7, square(100)))}
    result = evaluate(task1, truth, ["ship"])
    area = result.by_area()
    assert result.ap50 == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert area.ap50 == pytest.approx(5 / 6)
    assert area.counts == result.counts
    assert (result.record()["rule"], area.record()["rule"]) == (
        "VOC 2007, 11 points",
        "VOC 2012, area under the curve",
    )
    assert "no DOTA number" in area.table()
    assert "11-point" not in area.table()


# ---------------------------------------------------------------------------------------------
# In memory, from files, on tiles


def records(seed: int) -> tuple[dict[str, Detections], dict[str, Objects]]:
    rng = np.random.default_rng(seed)
    detections, truth = {}, {}
    for image in ("P1", "P0", "P2"):
        shapes = np.column_stack(
            [rng.uniform(0, 400, (20, 2)), rng.uniform(10, 60, (20, 2)), rng.uniform(-3, 3, 20)]
        )
        labels = rng.integers(0, 2, 20)
        truth[image] = truth_of(*((box_quad(*s), int(c)) for s, c in zip(shapes, labels, strict=True)))
        if image == "P2":
            continue  # nothing was found there
        boxes = (shapes + rng.normal(0, 1.0, shapes.shape) * (1, 1, 1, 1, 0.02)).astype(np.float32)
        scores = rng.random(20).astype(np.float32).round(1)  # ties
        detections[image] = Detections(boxes, scores, labels.astype(np.int32))
    return detections, truth


def test_memory_and_files_give_the_same_numbers(tmp_path):
    detections, truth = records(3)
    memory = evaluate_detections(detections, truth, ["ship", "plane"])
    write_task1(tmp_path, detections, ["ship", "plane"])
    files = evaluate(read_task1(tmp_path, ["ship", "plane"]), truth, ["ship", "plane"])
    assert np.array_equal(memory.ap, files.ap)
    assert memory.counts == files.counts
    assert 0.2 < memory.ap50 < 1


def test_tiles_are_named_so():
    detections, truth = records(4)
    images = evaluate_detections(detections, truth, ["ship", "plane"])
    assert images.unit == "image"
    assert not any("tile" in note for note in images.notes)
    detections = {f"{name}__1__0___0": record for name, record in detections.items()}
    truth = {f"{name}__1__0___0": record for name, record in truth.items()}
    tiles = evaluate_detections(detections, truth, ["ship", "plane"])
    assert np.array_equal(tiles.ap, images.ap)
    assert tiles.table().startswith("tile AP")
    assert any(note.startswith("tile AP") for note in tiles.notes)
    assert json.loads(tiles.to_json())["unit"] == "tile"


def test_no_detections_at_all_is_ap_0():
    _, truth = records(5)
    assert evaluate_detections({}, truth, ["ship", "plane"]).map == 0.0


# ---------------------------------------------------------------------------------------------
# What comes out


def test_json_holds_the_agreed_keys_unrounded():
    result = evaluate(*crowd(6), ["ship"])
    record = json.loads(result.to_json())
    assert record["ap50"] == result.ap50 == result.ap[0, 0]
    assert record["ap75"] == result.ap75 == result.ap[0, 5]
    assert record["map"] == result.map == result.ap.mean()
    assert list(record["classes"]["ship"]) == [f"0.{k}" for k in range(50, 100, 5)]
    assert list(record["classes"]["ship"].values()) == result.ap[0].tolist()
    assert record["counts"]["ship"]["detections"] == 400
    assert record["version"] == "1.0"


def test_thresholds_of_numpys_arange_are_recognised():
    result = evaluate(*crowd(6), ["ship"], thresholds=np.arange(0.5, 1.0, 0.05).tolist())
    assert np.array_equal(result.ap, evaluate(*crowd(6), ["ship"]).ap)
    assert list(json.loads(result.to_json())["classes"]["ship"]) == [f"0.{k}" for k in range(50, 100, 5)]
    assert not any("not 0.50" in note for note in result.notes)


def test_fewer_thresholds_leave_out_what_was_not_evaluated():
    result = evaluate(*crowd(6), ["ship"], thresholds=(0.5,))
    assert "ap75" not in result.record()
    assert "AP75" not in result.table().splitlines()[2]
    assert any("not 0.50:0.05:0.95" in note for note in result.notes)
    with pytest.raises(ValueError, match=r"0\.75 was not evaluated, only 0\.50"):
        _ = result.ap75


@pytest.mark.parametrize(("version", "count"), [("1.0", 15), ("1.5", 16), ("2.0", 18)])
def test_notes_say_what_is_assumed(version, count):
    classes = CLASSES[version]
    truth = {"a": truth_of(*((square(20.0 * k), k) for k in range(count)))}
    task1 = {name: found(("a", 0.5, square(20.0 * k))) for k, name in enumerate(classes)}
    result = evaluate(task1, truth, classes, version=version)
    assert result.map == pytest.approx(1.0)
    assumed = [note for note in result.notes if note.startswith("Assumed")]
    assert any("AP75" in note and "11-point" in note for note in assumed)
    assert any("v2.0" in note for note in assumed) == (version == "2.0")
    assert len(result.notes) == len(assumed)
    assert f"DOTA-v{version}" in result.table()


def test_notes_name_a_mean_over_other_classes_and_rounded_scores():
    ties = found(*(("a", 0.5, square(0)) for _ in range(3)))
    notes = evaluate({"ship": ties}, {"a": truth_of((square(0), 0))}, ["ship"]).notes
    assert any("1 class evaluated, not the 15 of DOTA-v1.0" in note for note in notes)
    assert any("2 of 3 detections repeat a score" in note for note in notes)
    own = [f"own-{index}" for index in range(15)]  # as many as DOTA's, and others
    notes = evaluate({name: found() for name in own}, {"a": truth_of((square(0), 0))}, own).notes
    assert any("15 classes evaluated, not the 15 of DOTA-v1.0" in note for note in notes)


@pytest.mark.parametrize("unit", [1, 180 / math.pi])
def test_notes_tell_angles_in_degrees_from_radians(unit):
    detections, truth = records(8)
    given = {
        image: Detections(one.boxes * [1, 1, 1, 1, unit], one.scores, one.labels)
        for image, one in detections.items()
    }
    notes = evaluate_detections(given, truth, ["ship", "plane"]).notes
    assert any("they look like degrees, θ is in radians" in note for note in notes) == (unit > 1)


def test_table_has_a_line_for_each_class_and_lines_up():
    detections, truth = records(7)
    lines = evaluate_detections(detections, truth, ["ship", "plane"]).table().splitlines()
    rows = [line for line in lines if line.startswith(("class", "ship", "plane"))]
    assert len(rows) == 3
    assert len({len(row) for row in rows}) == 1
    assert rows[0].split() == [
        "class",
        "AP50",
        "AP75",
        "mAP",
        "#gt",
        "#diff",
        "#det",
        "prec",
        "recall",
        "score",
    ]


def test_table_holds_the_numbers_of_the_result():
    truth = {"a": truth_of((square(0), 0), (square(100), 0), (square(200), 0, 1), (square(300), 1))}
    ships = found(("a", 0.9, square(0)), ("a", 0.8, square(500)), ("a", 0.75, square(100, 1.6)))
    result = evaluate({"ship": ships, "plane": found()}, truth, ["ship", "plane"])
    rows = {line.split()[0]: line.split()[1:] for line in result.table().splitlines() if line}
    values = (*result.ap[0, [0, 5]], result.ap[0].mean())
    percent = [f"{100 * value:.2f}" for value in values]
    assert len({*percent}) == 3
    assert rows["ship"] == [*percent, "2", "1", "3", "66.7", "100.0", "0.750"]
    assert rows["plane"] == ["0.00"] * 3 + ["1", "0", "0"] + ["–"] * 3
    assert rows["all"] == ["classes", *(f"{50 * value:.2f}" for value in values), "3", "1", "3"]
    assert result.record()["images"] == 1


def test_curve_and_best_f1():
    objects = truth_of((square(0), 0), (square(100), 0))
    task1 = {"ship": found(("a", 0.9, square(0)), ("a", 0.8, square(500)), ("a", 0.7, square(100)))}
    result = evaluate(task1, {"a": objects}, ["ship"])
    curve = result.curve("ship")
    assert curve.scores.tolist() == [0.9, 0.8, 0.7]
    assert curve.recall.tolist() == [0.5, 0.5, 1.0]
    assert curve.precision.tolist() == [1.0, 0.5, 2 / 3]
    best = result.best_f1("ship")
    assert best is not None
    assert best == (0.7, pytest.approx(2 / 3), 1.0, pytest.approx(0.8))
    with pytest.raises(ValueError, match="no class 'car'"):
        result.curve("car")


def test_best_f1_does_not_part_equal_scores():
    task1 = {"ship": found(("a", 0.9, square(0)), ("a", 0.9, square(500)))}
    best = evaluate(task1, {"a": truth_of((square(0), 0))}, ["ship"]).best_f1("ship")
    assert best is not None
    assert best.precision == 0.5
    assert evaluate({"ship": found()}, {"a": truth_of((square(0), 0))}, ["ship"]).best_f1("ship") is None


# ---------------------------------------------------------------------------------------------
# What is refused, and where it says the fault is

ONE = {"P1": truth_of((square(0), 0))}


@pytest.mark.parametrize(
    ("task1", "truth", "options", "message"),
    [
        ({}, ONE, {}, r"Task1_ship\.txt is missing"),
        ({"ship": found(("P1", 0.5, square(0)), ("P9", 0.5, square(0)))}, ONE, {},
         r"Task1_ship\.txt, detection 2: image 'P9' has no label file \(there are 1, P1 … P1\)"),
        ({"ship": found(("P1", 0.5, square(0)), ("P1", math.nan, square(0)))}, ONE, {},
         r"Task1_ship\.txt, detection 2: score not finite: nan"),
        ({"ship": found(("P1", 0.5, square(math.inf)))}, ONE, {},
         r"Task1_ship\.txt, detection 1: coordinates not finite"),
        ({"ship": found(), "car": found()}, ONE, {}, r"Task1_car\.txt: no such class; evaluated are ship"),
        ({"ship": found()}, {"P1": truth_of((square(0), 1))}, {},
         r"ground truth of image 'P1': labels from 1 to 1, expected 0 to 0"),
        ({"ship": found()}, {"P1": truth_of((square(0), -1))}, {}, "labels from -1 to -1, expected 0 to 0"),
        ({"ship": found()}, {"P1": truth_of((square(math.nan), 0))}, {}, "'P1': a corner is not finite"),
        ({"ship": found()}, {}, {}, "no label files"),
        ({"ship": found()}, ONE, {"version": "1.1"}, r"version is one of 1\.0, 1\.5, 2\.0, not '1\.1'"),
        ({"ship": found()}, ONE, {"thresholds": ()}, "thresholds"),
        ({"ship": found()}, ONE, {"thresholds": (50,)}, "from 0 to below 1"),
    ],
)  # fmt: skip
def test_refusals(task1, truth, options, message):
    with pytest.raises(EvaluationError, match=message):
        evaluate(task1, truth, ["ship"], **options)


def test_refusals_of_classes():
    for classes in ([], ["ship", "ship"]):
        with pytest.raises(EvaluationError, match="different classes"):
            evaluate({"ship": found()}, ONE, classes)
    for text in ("ship", "1.0"):  # sequences of letters
        with pytest.raises(EvaluationError, match=rf"got '{text}'; pass rgfl\.dota\.labels\.read_classes\("):
            evaluate({name: found() for name in text}, ONE, text)


def test_refusals_in_memory():
    def one(score: float = 0.5, label: int = 0, x: float = 5.0) -> Detections:
        return Detections(
            np.array([[x, 5, 10, 10, 0]], np.float32),
            np.array([score], np.float32),
            np.array([label], np.int32),
        )

    for detections, message in (
        ({"P9": one()}, "image 'P9': it has no ground truth"),
        ({"P1": one(label=1)}, "image 'P1': labels from 1 to 1, expected 0 to 0"),
        ({"P1": one(score=math.nan)}, "image 'P1', detection 1: score not finite"),
        ({"P1": one(x=math.inf)}, "image 'P1', detection 1: coordinates not finite"),
    ):
        with pytest.raises(EvaluationError, match=message):
            evaluate_detections(detections, ONE, ["ship"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("P1 0.5 0 0 10 0 10 10 0", r"Task1_ship\.txt:2: .*10 fields"),
        ("P1 nan 0 0 10 0 10 10 0 10", r"Task1_ship\.txt:2: score"),
        ("P1 0.5 0 0 ten 0 10 10 0 10", r"Task1_ship\.txt:2: x2"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    (tmp_path / "Task1_ship.txt").write_text(f"P1 0.5 0 0 10 0 10 10 0 10\n{line}\n")
    with pytest.raises(LabelError, match=message):
        read_task1(tmp_path, ["ship"])


def test_a_folder_is_scored_as_the_command_line_does(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "P1.txt").write_text(
        "imagesource:GoogleEarth\ngsd:0.1\n0 0 10 0 10 10 0 10 ship\n50 0 60 0 60 10 50 10 ship 1\n"
    )
    (tmp_path / "Task1_ship.txt").write_text("P1 0.5 50 0 60 0 60 10 50 10\nP1 0.4 0 0 10 0 10 10 0 10\n")
    (tmp_path / "Task1_plane.txt").write_text("")
    classes = ["ship", "plane"]
    result = evaluate(read_task1(tmp_path, classes), read_label_folder(tmp_path / "labels", classes), classes)
    assert result.ap50 == pytest.approx(0.5)


def test_the_benchmark_runs_without_the_devkit(tmp_path):
    script = Path(__file__).parent.parent / "benchmarks" / "bench_evaluation.py"
    command = [sys.executable, str(script), "--images", "8", "--detections", "100", "--repeats", "1"]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "8 images, 100 detections" in done.stdout
    (record,) = tmp_path.glob("*-evaluation-*.json")
    assert set(json.loads(record.read_text())["versions"]) == {"1.0", "1.5"}
