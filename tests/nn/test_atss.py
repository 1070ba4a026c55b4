"""Rotated ATSS against a slow loop, and its edges."""

import numpy as np
import pytest
import torch

from rgfl.geometry import rotated_iou
from rgfl.nn.assign import INSIDE, Level, atss, distances, nearest_cells
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
    for level in LEVELS:
        points = grid(level.height, level.width, level.stride, offset)
        count = min(9, len(points))
        index, exists = nearest_cells(centres, level, offset, count)
        assert exists.all()
        expected = torch.cdist(centres.double(), points.double()).sort(dim=1, stable=True).values[:, :count]
        actual = (points[index] - centres[:, None]).double().norm(dim=-1)
        torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-6)


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
