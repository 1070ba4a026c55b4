"""Rotated ATSS against a slow loop, its edges, and the targets that it gives."""

import pickle

import numpy as np
import pytest
import torch

from rgfl.geometry import rotated_iou
from rgfl.nn.assign import INSIDE, Assigner, Level, atss, distances, nearest_cells
from rgfl.nn.decode import grid

LEVELS = [Level(256 // stride, 256 // stride, stride) for stride in (8, 16, 32, 64, 128)]


def grids(offset: float) -> torch.Tensor:
    return torch.cat([grid(level.height, level.width, level.stride, offset) for level in LEVELS])


def random_objects(count: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    columns = (
        rng.uniform(-10, 266, count),
        rng.uniform(-10, 266, count),
        rng.uniform(8, 120, count),
        rng.uniform(4, 60, count),
        rng.uniform(-0.78, 2.35, count),
    )
    return torch.tensor(np.stack(columns, 1), dtype=torch.float32)


def slow_atss(boxes: torch.Tensor, offset: float, scale: float, topk: int) -> dict[int, int]:
    """One image, one object and one level after another: point → object."""
    points = grids(offset)
    sides = torch.cat([torch.full((level.height * level.width,), scale * level.stride) for level in LEVELS])
    best: dict[int, tuple[float, int]] = {}
    for target, box in enumerate(boxes):
        candidates, first = [], 0
        for level in LEVELS:
            size = level.height * level.width
            distance = (points[first : first + size] - box[:2]).norm(dim=1)
            candidates += (distance.argsort(stable=True)[:topk] + first).tolist()
            first += size
        anchors = torch.stack([torch.tensor([*points[i], sides[i], sides[i], 0.0]) for i in candidates])
        ious = rotated_iou(anchors.double().numpy(), box[None].double().numpy())[:, 0]
        threshold = ious.mean() + ious.std(ddof=1)
        for index, iou in zip(candidates, ious, strict=True):
            inside = distances(points[index], box).min() > INSIDE
            if iou >= threshold and inside and (index not in best or iou > best[index][0]):
                best[index] = (iou, target)
    return {index: target for index, (_, target) in best.items()}


@pytest.mark.parametrize(("offset", "scale", "topk"), [(0.0, 4.0, 9), (0.5, 8.0, 9), (0.5, 8.0, 5)])
def test_equals_the_slow_loop(offset: float, scale: float, topk: int) -> None:
    images = [random_objects(25, 0), torch.zeros(0, 5), random_objects(40, 1), random_objects(1, 2)]
    found = atss(images, LEVELS, grids(offset), offset=offset, anchor_scale=scale, topk=topk)
    start = 0
    for image, boxes in enumerate(images):
        of_image = found.image == image
        ours = dict(
            zip(found.point[of_image].tolist(), (found.target[of_image] - start).tolist(), strict=True)
        )
        assert ours == slow_atss(boxes, offset, scale, topk)
        start += len(boxes)
    assert len(found.image) > 100


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_nearest_cells_equal_a_full_search(offset: float) -> None:
    rng = np.random.default_rng(3)
    centres = torch.tensor(rng.uniform(-600, 900, (200, 2)), dtype=torch.float32)  # mostly outside
    centres[:50] = centres[:50].remainder(256).round()
    for level in (*LEVELS, Level(6, 20, 8)):
        points = grid(level.height, level.width, level.stride, offset)
        count = min(9, len(points))
        index = nearest_cells(centres, level, offset, count)
        expected = torch.cdist(centres.double(), points.double()).sort(dim=1, stable=True).values[:, :count]
        actual = (points[index] - centres[:, None]).double().norm(dim=-1)
        torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize("count", [2, 9, 14])
def test_nearest_cells_are_those_of_a_stable_sort(offset: float, count: int) -> None:
    """Equal distances go to the lower index: with centres on points, edges and corners most are equal."""
    rng = np.random.default_rng(count)
    centres = torch.tensor(rng.uniform(-300, 600, (400, 2)), dtype=torch.float32)
    centres[:200] = (centres[:200] / 4).round() * 4
    for level in LEVELS:
        some = min(count, level.height * level.width)
        index = nearest_cells(centres, level, offset, some)
        # In cells, as a multiple of the stride rounds otherwise.
        x, y = torch.arange(level.width), torch.arange(level.height)
        away = centres / level.stride - offset
        squares = (y - away[:, 1:]).square()[:, :, None] + (x - away[:, :1]).square()[:, None]
        ranked = squares.flatten(1).sort(dim=1, stable=True)
        assert torch.equal(index, ranked.indices[:, :some])


def test_centres_beyond_all_bounds_have_cells_of_the_level_too() -> None:
    centres = torch.tensor([[torch.nan, 50.0], [1e30, 50.0], [50.0, -torch.inf]])
    for level in LEVELS:
        size = level.height * level.width
        index = nearest_cells(centres, level, 0.5, min(9, size))
        assert ((index >= 0) & (index < size)).all()


def test_nothing_to_assign() -> None:
    for boxes in ([], [torch.zeros(0, 5)], [torch.zeros(0, 5)] * 3):
        found = atss(boxes, LEVELS, grids(0.5), offset=0.5, anchor_scale=8, topk=9)
        assert [len(part) for part in found] == [0, 0, 0]


def test_degenerate_objects_get_no_point_and_do_no_harm() -> None:
    good = random_objects(5, 4)
    bad = torch.tensor(
        [[50.0, 50, 0, 0, 0], [float("nan")] * 5, [1e30, 50, 10, 10, 0], [50, 50, 1e-20, 5, 1]]
    )
    alone = atss([good], LEVELS, grids(0.5), offset=0.5, anchor_scale=8, topk=9)
    mixed = atss([torch.cat((good, bad))], LEVELS, grids(0.5), offset=0.5, anchor_scale=8, topk=9)
    for first, second in zip(alone, mixed, strict=True):
        assert torch.equal(first, second)


def test_equal_objects_tie_to_the_first() -> None:
    box = torch.tensor([[100.0, 100.0, 60.0, 40.0, 0.4]])
    found = atss([box.repeat(3, 1)], LEVELS, grids(0.5), offset=0.5, anchor_scale=8, topk=9)
    assert len(found.point) > 0
    assert (found.target == 0).all()


def test_distances_are_the_sides() -> None:
    box = torch.tensor([10.0, 20.0, 8.0, 4.0, 0.7])
    torch.testing.assert_close(distances(box[:2], box), torch.tensor([4.0, 2.0, 4.0, 2.0]))
    along = box[:2] + torch.stack((torch.cos(box[4]), torch.sin(box[4])))
    torch.testing.assert_close(distances(along, box), torch.tensor([5.0, 2.0, 3.0, 2.0]))


ASSIGNER = Assigner(strides=(8, 16, 32, 64, 128), offset=0.5, anchor_scale=8.0, topk=9)


def some_images() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    boxes = [random_objects(25, 0), torch.zeros(0, 5), random_objects(40, 1), random_objects(1, 2)]
    return boxes, [torch.arange(len(box)) + 100 * image for image, box in enumerate(boxes)]


def test_targets_are_what_the_objects_of_the_points_hold() -> None:
    boxes, labels = some_images()
    assigned = atss(boxes, LEVELS, grids(0.5), offset=0.5, anchor_scale=8, topk=9)
    targets = ASSIGNER(boxes, labels, (256, 256))
    assert torch.equal(targets.image, assigned.image)
    assert torch.equal(targets.point, assigned.point)
    assert torch.equal(targets.box, torch.cat(boxes)[assigned.target])
    assert torch.equal(targets.label, torch.cat(labels)[assigned.target])
    assert torch.equal(targets.place[:, :2], grids(0.5)[assigned.point])
    # An object's label says its image; a point lies inside its object.
    assert torch.equal(targets.label // 100, targets.image)
    assert (distances(targets.place[:, :2], targets.box).amin(-1) > INSIDE).all()
    ends = torch.tensor([level.height * level.width for level in LEVELS]).cumsum(0)
    level = torch.searchsorted(ends, targets.point, right=True)
    assert torch.equal(targets.place[:, 2], torch.tensor([8.0, 16.0, 32.0, 64.0, 128.0])[level])
    assert targets.counts == tuple(int((targets.image == image).sum()) for image in range(4))
    assert targets.counts[1] == 0


def test_targets_of_some_images_are_those_made_of_them_alone() -> None:
    boxes, labels = some_images()
    whole = ASSIGNER(boxes, labels, (256, 256))
    for first, last in ((0, 4), (0, 2), (1, 2), (1, 4), (3, 4)):
        part, alone = (
            whole.of_images(first, last),
            ASSIGNER(boxes[first:last], labels[first:last], (256, 256)),
        )
        assert part.counts == alone.counts
        for a, b in zip(part[:-1], alone[:-1], strict=True):
            assert torch.equal(a, b)


def test_targets_of_nothing() -> None:
    targets = ASSIGNER([torch.zeros(0, 5)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2, (128, 256))
    assert [tuple(part.shape) for part in targets[:-1]] == [(0,), (0,), (0, 3), (0, 5), (0,)]
    assert [part.dtype for part in targets[:-1]] == [
        torch.int64, torch.int64, torch.float32, torch.float32, torch.int64,
    ]  # fmt: skip
    assert targets.counts == (0, 0)


def test_targets_do_not_depend_on_the_threads_of_a_process() -> None:
    """A loader's worker has one; where there is no worker, they are as many as the network's."""
    assigner = pickle.loads(pickle.dumps(ASSIGNER))
    objects = [random_objects(600, 7), random_objects(300, 8)]
    labels = [torch.zeros(len(part), dtype=torch.int64) for part in objects]
    one = ASSIGNER(objects, labels, (256, 256))
    torch.set_num_threads(2)
    two = assigner(objects, labels, (256, 256))
    assert len(one.point) > 500
    assert one.counts == two.counts
    for a, b in zip(one[:-1], two[:-1], strict=True):
        assert torch.equal(a, b)
