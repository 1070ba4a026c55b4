"""Fates of detections and objects: hand-made scenes with each, and random ones against the official AP."""

import numpy as np
import pytest

from rgfl.boxes import to_quads
from rgfl.detections import Detections
from rgfl.dota import mistakes
from rgfl.dota.average_precision import evaluate_detections
from rgfl.dota.labels import Objects
from rgfl.dota.mistakes import FATES, judge

CLASSES = ("plane", "ship")


def objects(*rows):
    """From rows (cx, cy, w, h, label, difficult), upright."""
    table = np.array(rows, float).reshape(-1, 6)
    quads = to_quads(np.column_stack([table[:, :4], np.zeros(len(table))])).reshape(-1, 8)
    return Objects(quads, table[:, 4].astype(np.int32), table[:, 5].astype(np.int32))


def detections(*rows):
    """From rows (cx, cy, w, h, label, score)."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    boxes = np.column_stack([table[:, :4], np.zeros(len(table), np.float32)])
    return Detections(boxes, table[:, 5], table[:, 4].astype(np.int32))


def told(found, truth, version="1.0"):
    """{score: (fate, number of the object)} and the numbers of the missed, the largest first."""
    verdicts = judge({"P1": found}, {"P1": truth}, CLASSES, version=version)
    fates = {
        round(float(score), 2): (FATES[fate], int(about))
        for score, fate, about in zip(
            verdicts.matching.scores_D, verdicts.fate_D, verdicts.about_D, strict=True
        )
    }
    return fates, verdicts.missed().tolist()


TRUTH = objects(
    (50, 50, 40, 20, 0, 0),  # found, and found again
    (150, 50, 40, 20, 0, 0),  # its box is beside it
    (250, 50, 40, 20, 1, 0),  # called a plane
    (50, 150, 60, 30, 1, 0),  # nothing there
    (150, 150, 40, 20, 0, 1),  # difficult, called by its name
    (250, 150, 40, 20, 1, 1),  # difficult, called a plane
    (350, 150, 40, 20, 1, 1),  # difficult, nothing there
)
FOUND = detections(
    (51, 50, 40, 20, 0, 0.90),
    (50, 51, 40, 20, 0, 0.80),
    (170, 50, 40, 20, 0, 0.70),  # IoU 1/3
    (250, 50, 40, 22, 0, 0.60),
    (400, 300, 40, 20, 0, 0.50),
    (150, 151, 40, 20, 0, 0.40),
    (250, 150, 40, 22, 0, 0.30),
)


def test_each_fate_has_its_case():
    fates, missed = told(FOUND, TRUTH)
    assert fates == {
        0.9: ("right", 0),
        0.8: ("duplicate", 0),
        0.7: ("misplaced", 1),
        0.6: ("confused", 2),
        0.5: ("background", -1),
        0.4: ("on a difficult object", 4),
        0.3: ("confused", 5),  # a false positive of the official rule too
    }
    assert missed == [3, 1, 2]  # no difficult one; the largest first, equals in order


def test_versions_without_difficult_objects_count_them_all():
    fates, missed = told(FOUND, TRUTH, version="1.5")
    assert fates[0.4] == ("right", 4)
    assert sorted(missed) == [1, 2, 3, 5, 6]


def test_the_box_of_the_own_class_explains_before_another():
    """An IoU above one half with its own object, taken already, is a duplicate, however well a ship fits."""
    truth = objects((50, 50, 40, 20, 0, 0), (53, 50, 40, 20, 1, 0))
    fates, _ = told(detections((50, 50, 40, 20, 0, 0.9), (53, 50, 40, 20, 0, 0.8)), truth)
    assert fates[0.8] == ("duplicate", 0)
    # And one below one half does not.
    truth = objects((50, 50, 40, 20, 0, 0), (70, 50, 40, 20, 1, 0))
    fates, _ = told(detections((70, 50, 40, 20, 0, 0.8)), truth)
    assert fates[0.8] == ("confused", 1)


def test_exactly_one_half_is_not_found():
    fates, missed = told(detections((50, 50, 40, 10, 0, 0.9)), objects((50, 50, 40, 20, 0, 0)))
    assert fates[0.9] == ("misplaced", 0)
    assert missed == [0]


@pytest.mark.parametrize("version", ["1.0", "1.5"])
@pytest.mark.parametrize("seed", range(5))
def test_random_scenes_agree_with_the_official_counts(seed, version):
    rng = np.random.default_rng(seed)
    truth, found = {}, {}
    for image in range(6):
        count = int(rng.integers(0, 12))
        boxes = np.column_stack([
            rng.uniform(0, 200, (count, 2)), rng.uniform(8, 40, (count, 2)), rng.uniform(-1, 2, count)
        ])  # fmt: skip
        labels = rng.integers(0, 2, count).astype(np.int32)
        difficult = (rng.random(count) < 0.3).astype(np.int32)
        truth[f"P{image}"] = Objects(to_quads(boxes).reshape(-1, 8), labels, difficult)
        again = np.repeat(np.arange(count), 3)
        moved = boxes[again] + rng.normal(0, 1, (3 * count, 5)) * [3, 3, 2, 2, 0.1]
        moved[:, 2:4] = np.maximum(moved[:, 2:4], 1)
        said = np.where(rng.random(3 * count) < 0.3, 1 - labels[again], labels[again]).astype(np.int32)
        scores = np.round(rng.random(3 * count), 1).astype(np.float32)  # with ties
        found[f"P{image}"] = Detections(moved.astype(np.float32), scores, said)
    verdicts = judge(found, truth, CLASSES, version=version)
    result = evaluate_detections(found, truth, CLASSES, version=version)
    matching = verdicts.matching
    for label, record in enumerate(result.by_class):
        fate_D = verdicts.fate_D[matching.labels_D == label]
        np.testing.assert_array_equal(fate_D == mistakes.RIGHT, record.hits[0])
        np.testing.assert_array_equal(fate_D > mistakes.IGNORED, record.misses[0])
        missed = verdicts.missed_G[matching.labels_G == label].sum()
        assert missed == record.ground_truth - record.hits[0].sum()
    hit = verdicts.found_by_G >= 0
    np.testing.assert_array_equal(verdicts.about_D[verdicts.found_by_G[hit]], np.flatnonzero(hit))
    assert (np.diff(matching.scores_D[verdicts.false_positives(mistakes.BACKGROUND)]) <= 0).all()
    assert set(verdicts.fate_D) >= {mistakes.RIGHT, mistakes.CONFUSED, mistakes.MISPLACED}


def test_nothing_found_and_nothing_there():
    fates, missed = told(detections(), objects())
    assert (fates, missed) == ({}, [])


def test_the_table_of_mistakes_names_every_one_with_its_place():
    verdicts = judge({"P1": FOUND}, {"P1": TRUTH}, CLASSES)
    rows = mistakes.to_csv(verdicts, CLASSES).splitlines()
    assert rows == [
        "image,mistake,score,detected,labelled,iou,x,y",
        "P1,duplicate,0.8000,plane,plane,0.905,50.0,51.0",
        "P1,misplaced,0.7000,plane,plane,0.333,170.0,50.0",
        "P1,confused,0.6000,plane,ship,0.909,250.0,50.0",
        "P1,background,0.5000,plane,,0.000,400.0,300.0",
        "P1,confused,0.3000,plane,ship,0.909,250.0,150.0",
        "P1,missed,,,ship,,50.0,150.0",
        "P1,missed,,,plane,,150.0,50.0",
        "P1,missed,,,ship,,250.0,50.0",
    ]


def test_a_spreadsheet_takes_no_name_for_a_formula():
    names = ("=HYPERLINK(0)", "@ship")
    verdicts = judge({"-P1": FOUND}, {"-P1": TRUTH}, names)
    rows = mistakes.to_csv(verdicts, names).splitlines()
    assert rows[1].startswith("'-P1,duplicate,0.8000,'=HYPERLINK(0),'=HYPERLINK(0),")
    assert rows[3].startswith("'-P1,confused,0.6000,'=HYPERLINK(0),'@ship,")
