"""The comparison itself: what it forgives, and what it must not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rgfl.detections import Detections
from rgfl.export import verify
from rgfl.export.verify import Kept, compare, match_tiles
from rgfl.spec import DetectorSpec
from rgfl.trt_runtime.sample_tiles import detection_tiles


def some_points(count: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    boxes = np.concatenate(
        [
            random.uniform(0, 500, (count, 2)),
            random.uniform(8, 90, (count, 2)),
            random.uniform(-0.7, 2.3, (count, 1)),
        ],
        1,
    )
    return boxes[None].astype(np.float32), random.uniform(0.1, 0.9, (1, count, 3)).astype(np.float32)


def test_another_order_within_a_level_is_no_error() -> None:
    boxes, scores = some_points()
    order = np.random.default_rng(1).permutation(40)
    found = compare((boxes, scores), (boxes[:, order], scores[:, order]), [Kept(40, cut=True)])
    assert (found.worst_corner, found.worst_score, found.exchanged) == (0, 0, 0)


def test_one_moved_box_is_found() -> None:
    boxes, scores = some_points()
    moved = boxes.copy()
    moved[0, 17, 0] += 0.5
    found = compare((boxes, scores), (moved, scores), [Kept(40, cut=False)])
    assert found.worst_corner == pytest.approx(0.5, abs=1e-4)
    assert (found.corners > 0.01).sum() == 1


def test_one_changed_score_is_found() -> None:
    boxes, scores = some_points()
    changed = scores.copy()
    changed[0, 5, 1] += 1e-3
    found = compare((boxes, scores), (boxes, changed), [Kept(40, cut=False)])
    assert found.worst_score == pytest.approx(1e-3, rel=1e-3)


def test_only_at_the_cut_may_a_point_be_another() -> None:
    boxes, scores = some_points()
    scores[0, 39] = 0.05  # the least of the level
    other = boxes.copy()
    other[0, 39, :2] += 100.0  # rounding chose another point with the same score
    cut = compare((boxes, scores), (other, scores), [Kept(40, cut=True)])
    whole = compare((boxes, scores), (other, scores), [Kept(40, cut=False)])
    assert (cut.exchanged, cut.worst_corner) == (1, 0)
    assert (whole.exchanged, whole.worst_corner) == (0, pytest.approx(100 * 2**0.5))
    other = boxes.copy()
    best = int(scores[0].max(1).argmax())
    other[0, best, :2] += 100.0
    assert compare((boxes, scores), (other, scores), [Kept(40, cut=True)]).worst_corner > 100


def test_the_last_point_of_a_level_may_be_another_whatever_its_score() -> None:
    """TopK goes by class scores, and the quality of two equal ones may differ."""
    boxes, scores = some_points()
    for index, exchanged in ((39, 1), (20, 0)):
        other = boxes.copy(), scores.copy()
        other[0][0, index, :2] += 100.0
        other[1][0, index] *= 0.5
        found = compare((boxes, scores), other, [Kept(40, cut=True)])
        assert (found.exchanged, found.worst_corner > 100) == (exchanged, not exchanged)


def test_nan_is_never_equal() -> None:
    boxes, scores = some_points()
    broken = boxes.copy()
    broken[0, 3, 2] = np.nan
    report = verify.Report(batches={1: compare((boxes, scores), (broken, scores), [Kept(40, cut=False)])})
    assert not report.passed


def test_where_nothing_is_seen_a_few_boxes_in_a_thousand_may_turn() -> None:
    boxes, scores = some_points(2000)
    scores[0, :1000] *= 0.01  # below the threshold
    other = boxes.copy()
    other[0, 7:12, 4] += 0.5
    levels = [Kept(2000, cut=False)]
    blind = compare((boxes, scores), (other, scores), levels, score_threshold=0.05)
    assert blind.worst_corner > 1
    assert verify.Report(batches={1: blind}).passed
    other[0, 12:19, 4] += 0.5  # twelve in two thousand are too many
    several = compare((boxes, scores), (other, scores), levels, score_threshold=0.05)
    assert not verify.Report(batches={1: several}).passed
    other = boxes.copy()
    other[0, 1500, 4] += 0.5  # and one that can be a detection is, too
    seen = compare((boxes, scores), (other, scores), levels, score_threshold=0.05)
    assert not verify.Report(batches={1: seen}).passed


@pytest.mark.parametrize(("moved", "passes"), [(0.02, True), (0.2, False)])
def test_boxes_that_are_no_detections_have_ten_times_the_tolerance(moved: float, passes: bool) -> None:
    """A detector of four steps, whose angles have next to no direction, was refused for .02 px."""
    boxes, scores = some_points()
    other = boxes + np.float32([moved, 0, 0, 0, 0])
    levels = [Kept(40, cut=False)]
    unseen = compare((boxes, scores), (other, scores), levels, score_threshold=2.0)
    report = verify.Report(batches={1: unseen})
    assert report.passed == passes
    assert f"all, of which most are no detections, {moved:.1e} px, allowed 1e-01 px" in report.text()
    assert "none of the boxes can be a detection" in report.text()
    seen = compare((boxes, scores), (other, scores), levels)
    assert not verify.Report(batches={1: seen}).passed


def test_a_round_detection_may_turn_and_stay_the_same_to_the_eye() -> None:
    boxes, scores = some_points(2000)
    boxes[0, 1500:1520, 2:4] = 30.0, 29.5
    levels = [Kept(2000, cut=False)]

    def turned(count: int, angle: float) -> verify.Report:
        other = boxes.copy()
        other[0, 1500 : 1500 + count, 4] += angle
        found = compare((boxes, scores), (other, scores), levels, score_threshold=0.05)
        return verify.Report(batches={1: found})

    report = turned(1, 0.03)
    assert report.batches[1].worst_corner > 0.5
    assert report.passed
    assert "turned detections overlap by 0.9" in report.text()
    assert not turned(12, 0.03).passed  # too many to be chance
    assert not turned(1, 0.3).passed  # anybody would see it


def test_levels_come_from_the_spec() -> None:
    spec = DetectorSpec(classes=("a",), image_size=(1024, 1024), level_topk=2000)
    levels = verify.level_sizes(spec)
    assert [level.points for level in levels] == [2000, 2000, 1024, 256, 64]
    assert [level.cut for level in levels] == [True, True, False, False, False]
    assert (
        sum(level.points for level in verify.level_sizes(DetectorSpec(classes=("a",), level_topk=0))) == 21824
    )


def test_exit_status_says_whether_they_agree(
    tiny_checkpoint: Path, tiny_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = [str(tiny_onnx), "--reference", str(tiny_checkpoint), "--batch", "2"]
    assert verify.main(command) == 0
    printed = capsys.readouterr().out
    assert "boxes  need" in printed
    assert "scores need" in printed
    assert verify.main([*command, "--box-tolerance", "0", "--score-tolerance", "0"]) == 1
    assert "DIFFERENT" in capsys.readouterr().out
    assert verify.main([str(tmp_path / "none.onnx"), "--reference", str(tiny_checkpoint)]) == 2
    assert verify.main([*command[:3], "--batch", "two"]) == 2
    assert "--batch two" in capsys.readouterr().err


def test_another_checkpoints_weights_are_noticed(
    tiny_onnx: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    import torch

    from rgfl import checkpoint
    from rgfl.nn.config import ModelConfig

    record = checkpoint.load(tiny_checkpoint)
    record["weights"]["head.cls.bias"] += torch.tensor([0.0, 0.01, 0.0])
    other = tmp_path / "other.pt"
    checkpoint.save(
        other, DetectorSpec.from_json(record["spec"]), ModelConfig(**record["model"]), record["weights"]
    )
    assert verify.main([str(tiny_onnx), "--reference", str(other), "--batch", "1"]) == 1


# --- detections ------------------------------------------------------------------------------------------


def some_detections(count: int = 30, seed: int = 0) -> Detections:
    """Far apart, so that each can only match itself."""
    random = np.random.default_rng(seed)
    places = np.stack(np.divmod(np.arange(count), 6), 1) * 100 + 50
    sides, angles = random.uniform(30, 50, (count, 2)), random.uniform(-0.7, 2.3, (count, 1))
    sides[:, 0] += 25
    boxes = np.concatenate([places, sides, angles], 1).astype(np.float32)
    scores = np.sort(random.uniform(0.35, 0.9, count).astype(np.float32))[::-1]
    return Detections(boxes, scores, random.integers(0, 3, count).astype(np.int32))


def test_the_same_detections_match_whatever_their_order() -> None:
    found = some_detections()
    order = np.random.default_rng(1).permutation(len(found))
    matches = match_tiles([found], [found[order]])
    assert matches.shares == (1, 1)
    assert len(matches.corners) == len(found)
    assert max(matches.corners.max(), matches.angles.max(), matches.scores.max()) == 0
    report = verify.DetectionReport(batches={1: matches})
    assert report.passed
    assert report.text().endswith("the same detections")


def test_shares_are_told_both_ways() -> None:
    found = some_detections()
    labels, boxes = found.labels.copy(), found.boxes.copy()
    labels[3] = (labels[3] + 1) % 3
    boxes[5, 0] += 20
    other = Detections(boxes, found.scores, labels)[:-4]
    matches = match_tiles([found], [other])
    assert matches.counts == (30, 26)
    assert matches.matched == (24, 24)
    assert matches.shares == (24 / 30, 24 / 26)
    assert not verify.DetectionReport(0.9, {1: matches}).passed
    assert verify.DetectionReport(0.8, {1: matches}).passed
    same = match_tiles([found], [found])
    assert not verify.DetectionReport(0.9, {2: same}, {2: matches}).passed


def test_a_score_that_falls_below_the_line_is_found_all_the_same() -> None:
    found = some_detections()
    scores = found.scores.copy()
    scores[-1] = 0.29
    other = Detections(found.boxes, scores, found.labels)
    matches = match_tiles([found], [other])
    assert matches.counts == (30, 29)
    assert matches.shares == (1, 1)
    assert matches.scores.max() == pytest.approx(float(found.scores[-1]) - 0.29, abs=1e-6)
    faint = Detections(found.boxes, np.full(30, 0.1, np.float32), found.labels)
    assert match_tiles([faint], [faint]).counts == (0, 0)


def test_differences_are_in_pixels_and_radians() -> None:
    found = some_detections()
    boxes = found.boxes.copy()
    boxes[:, 0] += 0.3
    boxes[:, 1] += 0.4
    boxes[7, 4] += 0.01
    other = Detections(boxes, found.scores - np.float32(0.02), found.labels)
    matches = match_tiles([found], [other])
    np.testing.assert_allclose(np.sort(matches.corners)[:-1], 0.5, atol=1e-4)
    assert matches.angles.max() == pytest.approx(0.01, abs=1e-5)
    np.testing.assert_allclose(matches.scores, 0.02, atol=1e-6)
    rows = {
        line[:18].strip(): line[18:].split()
        for line in verify.DetectionReport(batches={1: matches}).text().splitlines()
    }
    assert rows["corners, px"][:2] == ["0.5", "0.5"]
    assert rows["angle, degrees"] == ["0", "0", "0.57", "0.57"]
    assert rows["score"] == ["0.02"] * 4


def detections_of(*arguments: object) -> int:
    return verify.main([*map(str, arguments), "--detections", "--tiles", "6", "--batch", "1,4"])


def test_rounded_and_quantised_files_are_held_to_a_share(
    tiny_onnx: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from rgfl.export import graph

    rounded = tmp_path / "rounded.onnx"
    assert graph.main([str(tiny_onnx), "--rounding", "--out", str(rounded)]) == 0
    capsys.readouterr()
    assert detections_of(tiny_onnx, "--reference", tiny_checkpoint) == 0
    assert "100.00% of the detections are found again" in capsys.readouterr().out
    assert detections_of(rounded, tiny_onnx, "--reference", tiny_onnx, "--min-matched", 0.9) == 0
    printed = capsys.readouterr().out
    assert f"{rounded} against {tiny_onnx}" in printed
    assert printed.count("the same detections") == 2
    assert detections_of(rounded, "--reference", tiny_onnx, "--match-iou", 0.9999) == 1
    assert "DIFFERENT" in capsys.readouterr().out


def write_batch_dependent(source: Path, out: Path, shift: float) -> Path:
    """A graph that moves its boxes by `shift` px for every further tile in the batch."""
    import onnx
    from onnx import helper

    from rgfl.export import onnx_file

    model = onnx_file.load(source)
    for node in model.graph.node:
        node.output[:] = ["boxes.right" if name == "boxes" else name for name in node.output]
    constants = {
        "first": np.array([0], np.int64),
        "one": np.array([1], np.float32),
        "direction": np.array([shift, 0, 0, 0, 0], np.float32),
    }
    for name, value in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    model.graph.node.extend(
        [
            helper.make_node("Shape", ["images"], ["shape"]),
            helper.make_node("Gather", ["shape", "first"], ["count"]),
            helper.make_node("Cast", ["count"], ["tiles"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Sub", ["tiles", "one"], ["further"]),
            helper.make_node("Mul", ["further", "direction"], ["move"]),
            helper.make_node("Add", ["boxes.right", "move"], ["boxes"]),
        ]
    )
    onnx_file.save(model, out)
    return out


def test_a_batch_size_that_changes_a_detection_is_found(
    tiny_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Also where the reference has the same fault, and both agree at every batch size."""
    broken = write_batch_dependent(tiny_onnx, tmp_path / "broken.onnx", 5)
    assert verify.main([str(broken), "--reference", str(broken), "--batch", "1"]) == 0
    assert verify.main([str(broken), "--reference", str(broken), "--batch", "1,2"]) == 1
    assert "2 tiles and each alone: boxes need 5.0e+00 px" in capsys.readouterr().out
    assert detections_of(broken, "--reference", tiny_onnx) == 1
    assert "4 tiles and each alone: " in capsys.readouterr().out
    assert verify.main([str(tiny_onnx), "--reference", str(tiny_onnx), "--batch", "1,2,8"]) == 0
    assert "8 tiles and each alone: boxes need" in capsys.readouterr().out


def test_where_nothing_is_found_nothing_passes(
    tiny_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert detections_of(tiny_onnx, "--reference", tiny_onnx, "--min-score", 1) == 2
    assert "neither model finds anything above 1 in 6 tiles" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    for flags, expected in (
        (["--images", str(tmp_path / "empty")], "no image in this folder"),
        (["--min-matched", "1.5"], "--min-matched 1.5: expected 0 to 1"),
        (["--box-tolerance", "1"], "--box-tolerance goes without --detections"),
        (["--tiles", "0"], "--tiles 0: expected 1 or more"),
    ):
        command = [str(tiny_onnx), "--reference", str(tiny_onnx), "--detections", *flags]
        assert verify.main(command) == 2
        assert expected in capsys.readouterr().err
    assert verify.main([str(tiny_onnx), "--reference", str(tiny_onnx), "--min-score", "0.1"]) == 2
    assert "--min-score goes with --detections" in capsys.readouterr().err


def test_tiles_are_spread_over_the_images(tiny_scenes: SimpleNamespace) -> None:
    spec = DetectorSpec(classes=("a",), image_size=(128, 128))
    tiles = detection_tiles(spec, 6, tiny_scenes.images)  # 1, 1, 6 and 2 windows
    assert len(tiles) == 6  # one of each small image, two of the others
    assert len({tile.tobytes() for tile in tiles}) == 6
    assert len(detection_tiles(spec, 50, tiny_scenes.images)) == 10
    assert len(detection_tiles(spec, 2, tiny_scenes.images)) == 2


def test_the_polygraphy_command_of_the_help_is_one(tiny_onnx: Path) -> None:
    """As far as a machine without TensorRT gets: every tensor of the graph, run by ONNX Runtime."""
    pytest.importorskip("polygraphy", reason="needs Polygraphy: pip install 'rgfl[export]'")
    words = next(line for line in verify.__doc__.splitlines() if "polygraphy run" in line).split()
    assert words[:5] == ["polygraphy", "run", "MODEL.onnx", "--onnxrt", "--trt"]
    command = [sys.executable, str(Path(sys.executable).with_name("polygraphy")), "run", str(tiny_onnx)]
    command += ["--onnxrt", *words[5:8], "--input-shapes", "images:[1,128,128,3]"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASSED" in done.stdout
