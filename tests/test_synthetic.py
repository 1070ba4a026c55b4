"""Synthetic scenes: labels exact by construction, files equal whoever writes them."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from rgfl.boxes import canonical, to_quads
from rgfl.dota import synthetic
from rgfl.dota.labels import read_label_folder, read_labels
from rgfl.dota.synthetic import (
    CLASSES,
    EASY_CLASSES,
    Settings,
    SyntheticError,
    files,
    generate,
    main,
    render,
    shapes,
)
from rgfl.dota.synthetic.settings import LONGEST, ROUND, TINY, VISIBLE
from rgfl.geometry import rotated_iou

SMALL = Settings(size=(192, 256), seed=5)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("serial") / "set"
    assert generate(out, train=10, val=3, settings=SMALL, workers=1, progress=False) == 13
    return out


@pytest.fixture(scope="module", params=["easy", "hard"])
def scenes(request: pytest.FixtureRequest) -> tuple[Settings, list[synthetic.Scene]]:
    classes = EASY_CLASSES if request.param == "easy" else CLASSES
    settings = Settings(difficulty=request.param, classes=classes, seed=2)
    return settings, [render(settings, "train", index) for index in range(len(classes) + 1)]


# ------------------------------------------------------------------------------------------ shapes


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("angle", [0.0, 0.4, math.pi / 2, 2.1, -1.0])
def test_the_box_is_the_tight_rectangle_of_the_shape(kind: str, angle: float) -> None:
    """Extents of the drawn pixels along the axes of the box reach its sides within a pixel."""
    upright = kind in ROUND
    for w, h, x in ((90.0, 41.0, 100.3), (26.0, 11.0, 99.9), (180.0, 150.0, 100.0)):
        if kind in ("plane", "helicopter", "baseball-diamond") or upright:
            h = w if upright else w / 1.2
        box = np.array([x, 100.6, w, h, 0.0 if upright else angle])
        coverage = synthetic.render_one(kind, box, (200, 200))
        rows, columns = np.nonzero(coverage > 20)
        offset = np.stack([columns, rows], -1) + 0.5 - box[:2]
        axes = np.array([[np.cos(box[4]), -np.sin(box[4])], [np.sin(box[4]), np.cos(box[4])]])
        local = offset @ axes
        if w < 180:  # larger ones leave the canvas
            np.testing.assert_allclose(local.max(0), box[2:4] / 2, atol=1.0)
            np.testing.assert_allclose(local.min(0), -box[2:4] / 2, atol=1.0)
        assert (np.abs(local) < box[2:4] / 2 + 1.0).all()


def test_corners_are_those_of_the_convention() -> None:
    boxes = np.array([[10.0, 20.0, 8.0, 3.0, 0.7], [0.0, 0.0, 5.0, 5.0, -2.0]])
    for box in boxes:
        np.testing.assert_allclose(shapes.corners_of(box).ravel(), to_quads(box[None])[0], atol=1e-12)


def test_every_class_and_clutter_is_drawn_alone_and_within_a_wide_range_of_sizes() -> None:
    for kind in shapes.DRAW:
        for w, h in ((6.0, 3.0), (12.0, 9.0), (300.0, 60.0)):
            assert synthetic.render_one(kind, (160.5, 160.5, w, h, 0.3), (320, 320)).max() > 200


def test_separation_agrees_with_the_exact_iou() -> None:
    rng = np.random.default_rng(0)
    boxes = np.column_stack(
        [rng.uniform(0, 80, (60, 2)), rng.uniform(3, 40, (60, 2)), rng.uniform(-4, 4, 60)]
    )
    iou = rotated_iou(boxes, boxes)
    for i, box in enumerate(boxes):
        for j, other in enumerate(boxes):
            assert shapes.are_apart(box, other[None]) == (iou[i, j] < 1e-9), (box, other)


# ------------------------------------------------------------------------------------------ scenes


def test_labels_are_valid(scenes: tuple[Settings, list[synthetic.Scene]]) -> None:
    settings, rendered = scenes
    for scene in rendered:
        assert scene.image.shape == (*settings.size, 3)
        assert scene.image.dtype == np.uint8
        assert len(scene.boxes) == len(scene.labels) == len(scene.difficult) > 0
        np.testing.assert_array_equal(canonical(scene.boxes), scene.boxes)
        assert scene.boxes[:, 2].max() <= LONGEST
        assert (scene.boxes[:, 2] / scene.boxes[:, 3]).max() <= 8.01
        assert set(scene.difficult.tolist()) <= {0, 1}
        tiny = scene.boxes[:, 2] < TINY
        assert (scene.difficult[tiny] == 1).all()
        inside = [shapes.visible_share(box, *settings.size) for box in scene.boxes]
        assert min(inside) >= (1.0 if settings.difficulty == "easy" else VISIBLE)


def test_objects_do_not_overlap(scenes: tuple[Settings, list[synthetic.Scene]]) -> None:
    for scene in scenes[1]:
        iou = rotated_iou(scene.boxes, scene.boxes)
        np.fill_diagonal(iou, 0)
        assert iou.max() < 0.05


def test_every_class_occurs(scenes: tuple[Settings, list[synthetic.Scene]]) -> None:
    settings, rendered = scenes
    found = np.unique(np.concatenate([scene.labels for scene in rendered]))
    assert found.tolist() == list(range(len(settings.classes)))


def test_only_the_asked_classes_are_labelled() -> None:
    settings = Settings(classes=("storage-tank",), size=(256, 256))
    assert all(len(render(settings, "val", index).boxes) for index in range(4))


def test_round_objects_have_upright_squares() -> None:
    settings = Settings(classes=("storage-tank", "roundabout"), size=(256, 256), difficulty="medium")
    boxes = np.concatenate([render(settings, "val", index).boxes for index in range(4)])
    np.testing.assert_array_equal(boxes[:, 4], 0)
    np.testing.assert_array_equal(boxes[:, 2], boxes[:, 3])


def test_a_large_scene_has_its_own_size_and_many_objects() -> None:
    settings = Settings(large_size=(900, 1200), difficulty="medium", classes=CLASSES)
    scene = render(settings, "large", 0)
    assert scene.image.shape == (900, 1200, 3)
    assert len(scene.boxes) > 40


def test_scenes_differ_between_seeds_splits_and_numbers() -> None:
    images = [
        render(SMALL, "train", 0).image,
        render(SMALL, "train", 1).image,
        render(SMALL, "val", 0).image,
        render(Settings(size=(192, 256), seed=6), "train", 0).image,
    ]
    assert len({image.tobytes() for image in images}) == 4


# ------------------------------------------------------------------------------------------- files


def test_layout_and_reading_back(folder: Path) -> None:
    assert (folder / "classes.txt").read_text().split() == list(EASY_CLASSES)
    for split, count in (("train", 10), ("val", 3)):
        objects = read_label_folder(folder / split / "labelTxt", EASY_CLASSES)
        images = sorted((folder / split / "images").glob("*.png"))
        assert [path.stem for path in images] == sorted(objects)
        assert len(images) == count
    scene = render(SMALL, "train", 0)
    objects_0 = read_labels(folder / "train/labelTxt/train_00000.txt", EASY_CLASSES)
    np.testing.assert_allclose(objects_0.quads, to_quads(scene.boxes), atol=0.006)
    np.testing.assert_array_equal(objects_0.labels, scene.labels)
    np.testing.assert_array_equal(objects_0.difficult, scene.difficult)
    picture = cv2.imread(str(folder / "train/images/train_00000.png"))[..., ::-1]
    np.testing.assert_array_equal(picture, scene.image)


def test_header_lines_name_source_and_resolution(folder: Path) -> None:
    lines = (folder / "val/labelTxt/val_00000.txt").read_text().splitlines()
    assert lines[0] == "imagesource:synthetic"
    assert 0.1 < float(lines[1].removeprefix("gsd:")) < 0.3


def test_the_number_of_workers_changes_no_byte(folder: Path, tmp_path: Path) -> None:
    generate(tmp_path / "set", train=10, val=3, settings=SMALL, workers=2, progress=False)
    assert hashes(tmp_path / "set") == hashes(folder)


def test_an_interrupted_run_goes_on(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    generate(out, train=4, settings=SMALL, val=0, workers=1, progress=False)
    # Killed while writing number 2: its picture is there, its label is not; and number 3 never began.
    (out / "train/labelTxt/train_00002.txt").unlink()
    for path in (out / "train").rglob("train_00003.*"):
        path.unlink()
    untouched = (out / "train/images/train_00000.png").stat().st_mtime_ns
    assert generate(out, train=10, val=3, settings=SMALL, workers=1, progress=False) == 2 + 6 + 3
    assert (out / "train/images/train_00000.png").stat().st_mtime_ns == untouched
    assert hashes(out) == hashes(folder)
    assert generate(out, train=10, val=3, settings=SMALL, progress=False) == 0


def test_a_folder_with_other_settings_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SyntheticError, match=r"other settings \(seed\): give another --out"):
        generate(folder, train=1, settings=Settings(size=(192, 256), seed=6), progress=False)
    (tmp_path / "train").mkdir()
    with pytest.raises(SyntheticError, match="not from here"):
        generate(tmp_path, train=1, settings=SMALL, progress=False)


# ------------------------------------------------------------------------------------ command line


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "set"
    flags = ["--train", "1", "--val", "1", "--size", "128x160", "--difficulty", "medium", "--jpeg"]
    assert main(["--out", str(out), *flags, "--workers", "1", "--no-progress"]) == 0
    assert "1 train, 1 val scenes of 15 classes, 2 written now" in capsys.readouterr().out
    assert cv2.imread(str(out / "val/images/val_00000.jpg")).shape == (128, 160, 3)
    assert json.loads((out / "synthetic.json").read_text())["difficulty"] == "medium"


def be_killed(_: object) -> None:
    os._exit(9)


def test_a_killed_worker_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended in a traceback of the pool."""
    monkeypatch.setattr(files, "_write_scene", be_killed)
    assert main(["--out", str(tmp_path / "set"), "--train", "10", "--workers", "2", "--no-progress"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("synthetic: error: a worker was killed, most likely because memory")


def test_ctrl_c_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_write_scene", interrupted)
    assert main(["--out", str(tmp_path / "set"), "--train", "1", "--val", "0", "--no-progress"]) == 130
    assert capsys.readouterr().err == "\nsynthetic: stopped; the same command goes on from here\n"


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    for flag in ("--out", "--train", "--val", "--large", "--size", "--seed", "--objects", "--difficulty"):
        assert flag in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--classes", "plane,zeppelin"], "zeppelin"),
        (["--size", "64"], "--size: expected sides of 128"),
        (["--size", "big"], "expected H or HxW"),
        (["--objects", "0"], "--objects"),
        (["--seed", "-1"], "--seed"),
        (["--train", "-1"], "--train"),
    ],
)
def test_bad_flags_are_named(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["--out", str(tmp_path / "set"), "--no-progress", *flags])
    except SystemExit as end:  # argparse's
        status = end.code
    assert status == 2
    assert message in capsys.readouterr().err
