"""Tiles back to the image: whole scenes found exactly, whatever the batch, the order and the place."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgfl import geometry
from rgfl.boxes import to_quads
from rgfl.detections import Detections
from rgfl.dota import labels, tiling
from rgfl.dota import merge as merging
from rgfl.dota.merge import Part, detect, merge


def record(boxes, scores, labels=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 5)
    labels = np.zeros(len(boxes)) if labels is None else labels
    return Detections(boxes, np.array(scores, np.float32), np.array(labels, np.int32))


class Painted:
    """A scene in which each pixel says where it is, and a detector that reads this and knows the answer."""

    def __init__(self, boxes, scores, labels, height, width):
        self.boxes, self.scores, self.labels = np.asarray(boxes, np.float64), scores, labels
        self.shape = (height, width, 3)

    def __getitem__(self, place):
        rows, columns = place
        y, x = np.mgrid[rows, columns]
        return np.stack([x % 251, y % 251, x // 251 + 16 * (y // 251)], axis=-1).astype(np.uint8)

    def infer(self, tiles):
        found = []
        for tile in tiles:
            x = int(tile[0, 0, 0]) + 251 * (int(tile[0, 0, 2]) % 16)
            y = int(tile[0, 0, 1]) + 251 * (int(tile[0, 0, 2]) // 16)
            size = len(tile)
            quads = to_quads(self.boxes) - np.tile([x, y], 4)
            seen = (quads.min(1) >= 0) & (quads.max(1) <= size)
            local = self.boxes[seen] - [x, y, 0, 0, 0]
            found.append(record(local, self.scores[seen], self.labels[seen]))
        return found


@pytest.fixture
def scene():
    rng = np.random.default_rng(1)
    grid = np.stack(np.meshgrid(np.arange(20, 600, 40), np.arange(20, 400, 40)), -1).reshape(-1, 2)
    count = len(grid)
    boxes = np.column_stack(
        [
            grid + rng.uniform(-3, 3, (count, 2)),
            rng.uniform(12, 25, (count, 2)),
            rng.uniform(-0.7, 2.3, count),
        ]
    )
    scores = rng.permutation(np.linspace(0.1, 0.9, count)).astype(np.float32)
    return Painted(boxes, scores, rng.integers(0, 3, count), 400, 600)


@pytest.mark.parametrize("batch", [1, 3, 100])
@pytest.mark.parametrize(("size", "stride"), [(128, 96), (128, 64), (1024, 824)])
def test_every_object_is_found_once(scene, batch, size, stride):
    found = detect(scene, scene.infer, size=size, stride=stride, batch=batch)
    order = np.argsort(-scene.scores)
    assert np.array_equal(found.scores, scene.scores[order])
    assert np.array_equal(found.labels, scene.labels[order])
    np.testing.assert_allclose(found.boxes, scene.boxes[order], atol=1e-4)
    assert (found.boxes.dtype, found.scores.dtype, found.labels.dtype) == (np.float32, np.float32, np.int32)


def test_batches_give_identical_records_and_progress_is_told(scene):
    told = []
    one = detect(scene, scene.infer, size=128, stride=96)
    many = detect(scene, scene.infer, size=128, stride=96, batch=4, progress=lambda *now: told.append(now))
    assert one.boxes.tobytes() == many.boxes.tobytes()
    assert told[-1] == (24, 24)
    assert [done for done, _ in told] == list(range(4, 25, 4))


def test_tiles_that_are_not_stacked_are_views_of_the_image():
    image, seen = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8), []

    def infer(tiles):
        seen.append(tiles)
        return [Detections.empty() for _ in tiles]

    detect(image, infer, size=128, stride=64, batch=3)
    detect(image, infer, size=128, stride=64, batch=3, stack=False)
    whole, views = seen[:3], seen[3:]
    assert all(np.shares_memory(tile, image) for tiles in views for tile in tiles)
    for stacked, tiles in zip(whole, views, strict=True):
        assert np.array_equal(stacked, tiles)
        assert not np.shares_memory(stacked, image)


def test_without_a_stride_tiles_overlap_as_the_published_ones(scene):
    sizes = []
    detect(scene, scene.infer, size=128, progress=lambda *now: sizes.append(now))
    assert sizes[-1][1] == len(tiling.windows(*scene.shape[:2], 128, 103))


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_windows_of_zeros_are_left_out(batch):
    """A sparse GeoTIFF of 20,000 × 20,000 pixels took 171 s, without its gaps 7 s."""
    image, sizes, told = np.zeros((400, 400, 3), np.uint8), [], []
    image[350, 10, 2] = image[10, 350, 1] = 1  # windows of 100 px: the lower left, the upper right

    def infer(tiles):
        sizes.append(len(tiles))
        return [record([[*np.argwhere(tile.any(2))[0][::-1], 4, 2, 0]], [0.5]) for tile in tiles]

    found = detect(
        image, infer, size=100, stride=100, batch=batch, pad_value=7, progress=lambda *now: told.append(now)
    )
    assert sorted(found.boxes[:, :2].tolist()) == [[10, 350], [350, 10]]
    assert sum(sizes) == 2
    assert told[-1] == (16, 16)


def test_of_a_blank_image_one_window_is_left():
    """What lies outside the image is padded, and no reason to look at a window."""
    image, seen = np.zeros((90, 250, 3), np.uint8), []
    found = detect(
        image,
        lambda tiles: [seen.append(tile) or record([[5, 5, 4, 2, 0]], [0.5]) for tile in tiles],
        size=100,
        stride=100,
        pad_value=7,
    )
    assert found.boxes[:, :2].tolist() == [[155, 5]]
    assert [(tile[:90].max(), tile[90:].min()) for tile in seen] == [(0, 7)]


def test_scales_come_back_in_pixels_of_the_image():
    """The detector sees a bright square and says where it is: both scales must say the same."""
    image = np.zeros((300, 500, 3), np.uint8)
    image[120:160, 220:260] = 255

    def infer(tiles):
        assert tiles.shape[1:] == (128, 128, 3)
        found = []
        for tile in tiles:
            ys, xs = np.nonzero(tile[..., 0] > 127)
            if len(xs) == 0 or min(xs.min(), ys.min()) == 0 or max(xs.max(), ys.max()) == 127:
                found.append(Detections.empty())
                continue
            left, top, right, bottom = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
            box = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top, 0]
            found.append(record([box], [right - left]))
        return found

    for scales in ([1.0], [0.5], [2.0], [1.5], [0.5, 1.0, 2.0]):
        found = detect(image, infer, size=128, stride=32, scales=scales)
        assert len(found) == 1, scales
        np.testing.assert_allclose(found.boxes[0], [240, 140, 40, 40, 0], atol=1)
    assert len(detect(image, infer, size=128, stride=32, scales=[4.0])) == 0


def test_tiles_are_shrunk_by_averaging_and_enlarged_smoothly():
    lines = np.zeros((64, 64, 3), np.uint8)
    lines[:, ::4] = 200
    assert (merging.tile_at(lines, merging.Place(0, 0, 64), 16) == 50).all()
    large = merging.tile_at(lines, merging.Place(0, 0, 16), 64)
    assert len(np.unique(large)) > 4


def test_memory_maps_are_read_by_windows(tmp_path):
    image = np.memmap(tmp_path / "scene", np.uint8, "w+", shape=(300, 200, 3))
    image[299, 199] = 9
    seen = []
    found = detect(
        image, lambda tiles: [seen.append(tile.max()) or Detections.empty() for tile in tiles], size=64
    )
    assert (len(found), max(seen)) == (0, 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 0}, "batch: expected 1 or more, got 0"),
        ({"size": 0}, "size: expected 1 pixel or more, got 0"),
        ({"stride": -5}, r"stride: expected 0 \(the default\) to 8 \(the size\), got -5"),
        ({"stride": 9}, r"stride: expected 0 .* to 8 .*, got 9; more would leave gaps"),
        ({"scales": [0]}, "scales: expected positive factors"),
        ({"infer": lambda tiles: []}, "infer: expected 1 records for as many tiles, got 0"),
        (
            {"infer": lambda tiles: [record([[1, np.nan, 1, 1, 0]], [1])]},
            r"tile at \(0, 0\): a detection is NaN",
        ),
        (
            {"infer": lambda tiles: [record([[1, 1, 1, 1, 0]], [np.nan])]},
            r"tile at \(0, 0\): a detection is NaN",
        ),
    ],
)
def test_what_cannot_be(arguments, message):
    good = {"size": 8, "stride": 8, "infer": lambda tiles: [Detections.empty()] * len(tiles)}
    with pytest.raises(ValueError, match=message):
        detect(np.zeros((8, 8, 3), np.uint8), **(good | arguments))


# ---- merge alone

candidates = st.lists(
    st.tuples(
        st.floats(0, 60), st.floats(0, 60), st.floats(1, 30), st.floats(1, 30), st.floats(-0.78, 2.35),
        st.sampled_from([0.1, 0.5, 0.5, 0.9]), st.integers(0, 1), st.integers(0, 2),
    ),
    max_size=25,
)  # fmt: skip


@given(rows=candidates, seed=st.integers(0, 5))
@settings(deadline=None)
def test_merging_is_nms_in_any_order(rows, seed):
    """Against one plain NMS of all boxes; shuffling tiles and their boxes changes not a bit."""
    array = np.array(rows, np.float64).reshape(-1, 8).astype(np.float32)
    parts = [
        Part(
            record(
                array[array[:, 7] == tile, :5], array[array[:, 7] == tile, 5], array[array[:, 7] == tile, 6]
            )
        )
        for tile in range(3)
    ]
    merged = merge(parts, 0.1)
    boxes, scores, labels = array[:, :5], array[:, 5], array[:, 6].astype(np.int64)
    order = np.lexsort((*boxes.T[::-1], labels, -scores))
    iou = geometry.rotated_iou(boxes, boxes)
    if not (np.abs(iou - 0.1) < 1e-4).any():
        plain = order[geometry.rotated_nms(boxes[order], scores[order], 0.1, labels[order])]
        assert np.array_equal(merged.boxes, boxes[plain])
        assert np.array_equal(merged.labels, labels[plain])
    rng = np.random.default_rng(seed)
    shuffled = []
    for place in rng.permutation(3):
        found = parts[place].detections
        shuffled.append(Part(found[rng.permutation(len(found))]))
    again = merge(shuffled, 0.1)
    assert again.boxes.tobytes() == merged.boxes.tobytes()
    assert again.scores.tobytes() == merged.scores.tobytes()


def test_classes_do_not_suppress_each_other():
    box = [50, 50, 20, 10, 0.2]
    merged = merge([Part(record([box, box], [0.9, 0.8], [0, 1])), Part(record([box], [0.7], [1]))], 0.1)
    assert merged.labels.tolist() == [0, 1]


@pytest.mark.parametrize("place", [0, 20_000, 1_000_000])
def test_far_out_boxes_are_compared_as_near_ones(place):
    """Thin boxes whose IoU is within 1e-3 of the threshold: at 20,000 px float32 alone decides wrongly."""
    rng = np.random.default_rng(0)
    count = 400
    first = np.column_stack(
        [
            rng.uniform(100, 900, (count, 2)),
            np.full(count, 30),
            np.full(count, 1.5),
            rng.uniform(0, 1.5, count),
        ]
    ).astype(np.float32)
    second = first.copy()
    second[:, :2] += rng.uniform(-0.9, 0.9, (count, 2)).astype(np.float32)
    iou = geometry.rotated_iou_pairwise(first.astype(np.float64), second.astype(np.float64))
    threshold = float(np.median(iou))
    clear = np.abs(iou - threshold) > 1e-5
    for a, b, overlap in zip(first[clear], second[clear], iou[clear], strict=True):
        parts = [Part(record([a], [0.9]), place, place), Part(record([b], [0.8]), place, place)]
        assert len(merge(parts, threshold)) == (1 if overlap > threshold else 2)


def test_tiles_of_one_object_agree_across_a_seam():
    """One object seen from two tiles at 20,000 px is one object, and lies where it does."""
    left = Part(record([[1000, 30, 12, 3, 0.3]], [0.8]), 19_000, 19_000)
    right = Part(record([[176, 30, 12, 3, 0.3]], [0.7]), 19_824, 19_000)
    merged = merge([left, right], 0.9)
    assert merged.boxes.tolist() == [[20_000, 19_030, 12, 3, np.float32(0.3)]]


def test_many_boxes_in_small_steps(monkeypatch):
    rng = np.random.default_rng(2)
    count = 600
    boxes = np.column_stack(
        [rng.uniform(0, 400, (count, 2)), rng.uniform(4, 40, (count, 2)), rng.uniform(-0.7, 2.3, count)]
    )
    found = record(boxes, rng.permutation(count) / count, rng.integers(0, 2, count))
    whole = merge([Part(found)], 0.3)
    monkeypatch.setattr("rgfl.dota.pairs.AT_ONCE", 7)
    monkeypatch.setattr(merging, "_BOXES_AT_ONCE", 5)
    steps = merge([Part(found)], 0.3)
    plain = geometry.rotated_nms(found.boxes, found.scores, 0.3, found.labels)
    assert np.array_equal(steps.boxes, whole.boxes)
    assert np.array_equal(whole.boxes, found.boxes[plain])


def test_the_published_threshold_is_the_default():
    def two(shift):  # of 10 × 10: IoU (10 − shift) / (10 + shift)
        return merge([Part(record([[50, 50, 10, 10, 0], [50 + shift, 50, 10, 10, 0]], [0.9, 0.8]))])

    assert [len(two(8)), len(two(8.5))] == [1, 2]  # 0.111, 0.081


def test_nothing_merges_to_nothing():
    assert len(merge([])) == 0
    assert len(merge([Part(Detections.empty(), 5, 5)])) == 0


# ---------------------------------------------------------------------------------- Task 1 files of tiles


@pytest.mark.parametrize(("scale", "named"), [(1.0, "1"), (1.0, "512"), (0.5, "0.5"), (1.5, "1.5")])
def test_results_of_tiles_become_those_of_images(scene, tmp_path, scale, named):
    """`named`: mmrotate writes the window's side where the devkit has the scale."""
    classes = ("plane", "ship", "harbor")
    found = {}
    boxes = scene.boxes * np.array([scale] * 4 + [1.0])
    for x, y in tiling.windows(round(400 * scale), round(600 * scale), 128, 80):
        quads = to_quads(boxes) - np.tile([x, y], 4)
        inside = (quads.min(1) >= 0) & (quads.max(1) <= 128)
        local = boxes[inside] - [x, y, 0, 0, 0]
        found[f"P0001__{named}__{x}___{y}"] = record(local, scene.scores[inside], scene.labels[inside])
    labels.write_task1(tmp_path / "tiles", found, classes)
    command = ["--task1", str(tmp_path / "tiles"), "--out", str(tmp_path / "out")]
    assert merging.main([*command, "--classes", ",".join(classes)]) == 0
    merged = labels.read_task1(tmp_path / "out", classes)
    for label, name in enumerate(classes):
        rows = np.flatnonzero(scene.labels == label)
        order = rows[np.argsort(-scene.scores[rows])]
        np.testing.assert_allclose(merged[name].scores, scene.scores[order], rtol=1e-6)
        assert set(merged[name].images) == {"P0001"}
        for quad, box in zip(merged[name].quads, scene.boxes[order], strict=True):
            corners, expected = quad.reshape(4, 2), to_quads(box[None]).reshape(4, 2)
            nearest = np.linalg.norm(corners[:, None] - expected, axis=2).min(axis=1)
            assert nearest.max() < 2e-3


def test_the_threshold_is_the_callers(tmp_path):
    two = record([[3, 4, 4, 2, 0], [4, 4, 4, 2, 0]], [0.9, 0.8])  # IoU 0.6
    labels.write_task1(tmp_path / "tiles", {"P1__1__0___0": two}, ("plane",))
    command = ["--task1", str(tmp_path / "tiles"), "--classes", "plane", "--out", str(tmp_path / "out")]
    for threshold, count in ((0.5, 1), (0.7, 2)):
        found = detect(np.zeros((8, 8, 3), np.uint8), lambda _: [two], size=8, iou_threshold=threshold)
        assert len(found) == count
        assert merging.main([*command, "--iou", str(threshold)]) == 0
        assert len(labels.read_task1(tmp_path / "out", ("plane",))["plane"]) == count


def test_merging_what_is_no_tile_is_one_line(tmp_path, capsys):
    labels.write_task1(tmp_path / "a", {"P0001": record([[5, 5, 4, 2, 0]], [0.5])}, ("plane",))
    command = ["--task1", str(tmp_path / "a"), "--classes", "plane"]
    assert merging.main([*command, "--out", str(tmp_path / "b")]) == 2
    assert capsys.readouterr().err == (
        "merge: error: Task1_plane.txt: P0001 is no tile's name, P0000__<scale>__<x>___<y>\n"
    )
    assert merging.main([*command, "--out", str(tmp_path / "a")]) == 2
    assert "--out: must not be the folder of --task1" in capsys.readouterr().err


def test_a_scale_of_0_is_told(tmp_path, capsys):
    labels.write_task1(tmp_path / "tiles", {"P__0__0___0": record([[3, 4, 4, 2, 0]], [0.9])}, ("plane",))
    command = ["--task1", str(tmp_path / "tiles"), "--classes", "plane", "--out", str(tmp_path / "out")]
    assert merging.main(command) == 2
    assert "expected a positive scale" in capsys.readouterr().err
