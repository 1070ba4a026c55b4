"""The comparison itself: what it forgives, and what it must not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rgfl.export import verify
from rgfl.export.verify import Level, compare, corner_distance
from rgfl.spec import DetectorSpec


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


def test_corners_are_compared_in_any_cyclic_order() -> None:
    box = np.array([[50.0, 40.0, 30.0, 20.0, 0.3]])
    turned = np.array([[50.0, 40.0, 20.0, 30.0, 0.3 + np.pi / 2]])
    opposite = box + np.array([0, 0, 0, 0, np.pi])
    np.testing.assert_allclose(corner_distance(box, turned), 0, atol=1e-12)
    np.testing.assert_allclose(corner_distance(box, opposite), 0, atol=1e-12)
    np.testing.assert_allclose(corner_distance(box, box + np.array([3.0, 4.0, 0, 0, 0])), 5)


def test_another_order_within_a_level_is_no_error() -> None:
    boxes, scores = some_points()
    order = np.random.default_rng(1).permutation(40)
    found = compare((boxes, scores), (boxes[:, order], scores[:, order]), [Level(40, cut=True)])
    assert (found.worst_corner, found.worst_score, found.exchanged) == (0, 0, 0)


def test_one_moved_box_is_found() -> None:
    boxes, scores = some_points()
    moved = boxes.copy()
    moved[0, 17, 0] += 0.5
    found = compare((boxes, scores), (moved, scores), [Level(40, cut=False)])
    assert found.worst_corner == pytest.approx(0.5, abs=1e-4)
    assert (found.corners > 0.01).sum() == 1


def test_one_changed_score_is_found() -> None:
    boxes, scores = some_points()
    changed = scores.copy()
    changed[0, 5, 1] += 1e-3
    found = compare((boxes, scores), (boxes, changed), [Level(40, cut=False)])
    assert found.worst_score == pytest.approx(1e-3, rel=1e-3)


def test_only_at_the_cut_may_a_point_be_another() -> None:
    boxes, scores = some_points()
    scores[0, 39] = 0.05  # the least of the level
    other = boxes.copy()
    other[0, 39, :2] += 100.0  # rounding chose another point with the same score
    cut = compare((boxes, scores), (other, scores), [Level(40, cut=True)])
    whole = compare((boxes, scores), (other, scores), [Level(40, cut=False)])
    assert (cut.exchanged, cut.worst_corner) == (1, 0)
    assert (whole.exchanged, whole.worst_corner) == (0, pytest.approx(100 * 2**0.5))
    other = boxes.copy()
    best = int(scores[0].max(1).argmax())
    other[0, best, :2] += 100.0
    assert compare((boxes, scores), (other, scores), [Level(40, cut=True)]).worst_corner > 100


def test_nan_is_never_equal() -> None:
    boxes, scores = some_points()
    broken = boxes.copy()
    broken[0, 3, 2] = np.nan
    report = verify.Report(batches={1: compare((boxes, scores), (broken, scores), [Level(40, cut=False)])})
    assert not report.passed


def test_where_nothing_is_seen_a_few_boxes_in_a_thousand_may_turn() -> None:
    boxes, scores = some_points(2000)
    scores[0, :1000] *= 0.01  # below the threshold
    other = boxes.copy()
    other[0, 7:12, 4] += 0.5
    levels = [Level(2000, cut=False)]
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
