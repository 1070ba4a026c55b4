"""The comparison with others: equal tiles, one merge, one table. Their own packages are not needed here."""

import json
import sys

import numpy as np
import pytest
from benchmark_scripts import imported

from rgfl import train
from rgfl.detections import Detections
from rgfl.dota import synthetic
from rgfl.dota.images import find_images
from rgfl.dota.labels import find_classes

CIRCUMSTANCES = {
    "date": "2026-01-02T03:04:05+00:00",
    "hardware": {"cpu": "A CPU", "cores": 2},
    "versions": {"torch": "2.0"},
    "others": {"onedl-mmrotate": "1.0"},
    "threads": 2,
}


@pytest.fixture(scope="module")
def script():
    with imported("side_by_side") as module:
        yield module


@pytest.fixture(scope="module")
def place(script, tmp_path_factory):
    root = tmp_path_factory.mktemp("side")
    assert not synthetic.main(["--out", str(root / "data"), "--train", "2", "--val", "1", "--size", "600"])
    place = script.Place(root / "work", 2, {"mmrotate": "python"})
    script.prepare(root / "data", place)
    return place


def test_all_learn_from_the_same_tiles(script, place):
    tiles = find_images(place.tiles / "train" / "images")
    assert tiles
    assert set(tiles) == set(find_images(place.yolo / "images" / "train"))
    for name in tiles:
        lines = (place.tiles / "train" / "labelTxt" / f"{name}.txt").read_text().splitlines()
        assert lines
        assert not any(line.endswith(" 2") for line in lines)
        assert len(lines) == len((place.yolo / "labels" / "train" / f"{name}.txt").read_text().splitlines())
    assert set(find_classes(place.tiles / "train" / "labelTxt")) <= set(place.classes)
    # Every window of val is asked, with objects or not: 600² in tiles of 512² are four.
    assert len(find_images(place.tiles / "val" / "images")) == 4


def test_tiles_are_merged_where_they_lie(script):
    box = np.array([[100, 90, 40, 20, 0.5]], np.float32)
    here = Detections(box, np.array([0.9], np.float32), np.array([1], np.int32))
    same = Detections(
        box - np.float32([88, 0, 0, 0, 0]), np.array([0.8], np.float32), np.array([1], np.int32)
    )
    found = script.merged({"P1__1024__0___824__1__0___0": here, "P1__1024__0___824__1__88___0": same})
    [merged] = found.values()
    assert list(found) == ["P1__1024__0___824"]
    np.testing.assert_array_equal(merged.boxes, box)
    np.testing.assert_array_equal(merged.scores, here.scores)


def test_our_flags_are_those_of_the_trainer_and_the_first_row_of_a_group_is_another_s(script):
    for contenders in (script.STEP, script.LEARN):
        for contender in contenders:
            if isinstance(contender, script.Ours):
                recipe, _ = train.parse(["--data", "D", "--out", "O", *contender.flags])
                assert recipe.schedule.batch == contender.batch
        for _, members in script._groups(contenders):
            assert not isinstance(members[0], script.Ours)
            assert len({contender.batch for contender in members}) == 1
        assert len({script._slug(contender) for contender in contenders}) == len(contenders)


def test_the_configuration_of_mmrotate_is_what_is_compared(script, place):
    contender = script.LEARN[0]
    path = contender._config(place, place.work / "runs" / "x", 120)
    config = json.loads(path.read_text())
    assert config["model"]["bbox_head"]["num_classes"] == len(place.classes)
    assert config["train_dataloader"]["dataset"]["metainfo"]["classes"] == list(place.classes)
    assert config["param_scheduler"][1]["milestones"] == [80, 110]
    assert (place.tiles / config["train_dataloader"]["dataset"]["ann_file"]).is_dir()
    assert (place.tiles / config["test_dataloader"]["dataset"]["data_prefix"]["img_path"]).is_dir()


def test_the_table_compares_within_a_round(script, tmp_path, capsys):
    def write(contender, turn, seconds):
        record = {"name": contender.name, "seconds": seconds, "circumstances": CIRCUMSTANCES}
        record["slug"] = script._slug(contender)
        (tmp_path / f"step-{record['slug']}-{turn}.json").write_text(json.dumps(record))

    other, ours = script.STEP[:2]
    for turn, (first, second) in enumerate([(2.0, 1.0), (4.0, 2.4), (8.0, 4.8)]):
        write(other, turn, first)
        write(ours, turn, second)
    ap = {f"{threshold / 100:.2f}": threshold / 100 for threshold in range(50, 100, 5)}
    learned = {
        "name": script.LEARN[1].name, "note": "n", "slug": script._slug(script.LEARN[1]),
        "steps": 7, "batch": 2,
        "objects": {"plane": 3, "ship": 0}, "ap": {"plane": ap, "ship": dict.fromkeys(ap, 0.0)},
        "circumstances": CIRCUMSTANCES,
    }  # fmt: skip
    (tmp_path / "learn-x.json").write_text(json.dumps(learned))
    words = ["report", "--work", str(tmp_path), "--out", str(tmp_path / "out"), "--remark", "One run."]
    assert not script.main(words)
    text = (tmp_path / "out" / "2026-01-02-side-by-side-a-cpu-2-cores.md").read_text()
    assert f"| {ours.name} | 2 | {ours.note} | 2.40 | 0.60 (0.50 to 0.60) |" in text
    assert text.endswith("\nOne run.\n")
    # A class without an object in val counts for nothing.
    assert f"| {script.LEARN[1].name} | n | 50.0 | 75.0 | 72.5 | 75.0 |" in text


def test_a_failed_call_is_told_by_its_last_line(script, tmp_path):
    place = script.Place(tmp_path, 1, {})
    with pytest.raises(script.errors.InputError, match="ended with 1: ValueError: no such thing; all of it"):
        place.call([sys.executable, "-c", "raise ValueError('no such thing')"], tmp_path / "log")
