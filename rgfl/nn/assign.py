"""Rotated ATSS: which points answer for which object, and what they are to predict.

Boxes and grids decide it, no prediction does. So it is done on the CPU by the processes that make tiles,
and nothing here needs the network.

Shapes: B images, G objects of the whole batch, P points of one image, K candidates an object, N positive
points of the whole batch. No loop runs over objects or images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rgfl.nn.decode import grid
from rgfl.nn.iou import rotated_iou_pairwise

INSIDE = 0.01  # pixels: a positive point lies deeper than this inside its object


class Level(NamedTuple):
    """The grid of one pyramid level."""

    height: int
    width: int
    stride: int


class Assignment(NamedTuple):
    """The positive points, ordered by image, then point."""

    image: Tensor  # (N,) int64
    point: Tensor  # (N,) int64, index over the points of all levels
    target: Tensor  # (N,) int64, index over the objects of the batch


class Targets(NamedTuple):
    """What the positive points of a batch are to predict, ordered by image, then point."""

    image: Tensor  # (N,) int64
    point: Tensor  # (N,) int64, index over the points of all levels
    place: Tensor  # (N, 3) float32 x, y, stride of the point, pixels
    box: Tensor  # (N, 5) float32 canonical, pixels
    label: Tensor  # (N,) int64
    counts: tuple[int, ...]  # positive points of each of the B images; numbers of the host on any device

    def map(self, change: Callable[[Any], Any]) -> Targets:
        """The same with each tensor changed, as by a move to a device."""
        image, point, place, box, label, counts = self
        return Targets(change(image), change(point), change(place), change(box), change(label), counts)

    def of_images(self, first: int, last: int) -> Targets:
        """Those of the images `first` to `last` − 1, as a batch of their own."""
        start, stop = sum(self.counts[:first]), sum(self.counts[:last])
        part = self.map(lambda tensor: tensor[start:stop])
        return part._replace(image=part.image - first, counts=self.counts[first:last])


@dataclass(frozen=True)
class Assigner:
    """Rotated ATSS with the constants of one detector: a few numbers that travel to any process."""

    strides: tuple[int, ...]  # of the levels, finest first
    offset: float  # of the points in cells, 0 or ½
    anchor_scale: float  # anchor side in strides
    topk: int  # candidates a level

    def __call__(self, boxes: Sequence[Tensor], labels: Sequence[Tensor], size: tuple[int, int]) -> Targets:
        """Targets of B images of one size.

        Args:
            boxes: one (G_i, 5) an image, canonical, pixels, on the CPU; may be empty.
            labels: one (G_i,) an image.
            size: height and width of the images, pixels.
        """
        levels = [Level(size[0] // stride, size[1] // stride, stride) for stride in self.strides]
        points = torch.cat([grid(*level, self.offset) for level in levels])  # (P, 2)
        strides = torch.cat(
            [torch.full((level.height * level.width, 1), float(level.stride)) for level in levels]
        )
        image, point, target = atss(
            boxes, levels, points, offset=self.offset, anchor_scale=self.anchor_scale, topk=self.topk
        )
        return Targets(
            image,
            point,
            torch.cat((points[point], strides[point]), 1),
            torch.cat([box.reshape(-1, 5) for box in boxes]).float()[target],
            torch.cat([label.reshape(-1) for label in labels]).long()[target],
            tuple(torch.bincount(image, minlength=len(boxes)).tolist()),
        )


def distances(points: Tensor, boxes: Tensor) -> Tensor:
    """(…, 4) l, t, r, b in pixels from points (…, 2) to the sides of boxes (…, 5), in the boxes' rotation."""
    shift = points - boxes[..., :2]
    cos, sin = torch.cos(boxes[..., 4]), torch.sin(boxes[..., 4])
    u = shift[..., 0] * cos + shift[..., 1] * sin
    v = shift[..., 1] * cos - shift[..., 0] * sin
    half_w, half_h = 0.5 * boxes[..., 2], 0.5 * boxes[..., 3]
    return torch.stack((half_w + u, half_h + v, half_w - u, half_h - v), -1)


def nearest_cells(centres: Tensor, level: Level, offset: float, count: int) -> Tensor:
    """The `count` grid points nearest to each centre; equal distances go to the lower index.

    Only a window is searched: with each point all those nearer along its row or column are nearer too,
    so the count nearest lie within count − 1 cells of the centre's own (clamped) cell.

    Returns:
        (G, count) index into the level's points, of which there must be as many.
    """
    reach = count - 1
    cell = (centres / level.stride - offset).nan_to_num(0.0).clamp(-1e6, 1e6)  # (G, 2)
    last = torch.tensor([level.width - 1, level.height - 1])
    home = cell.round().long().clamp(min=torch.zeros_like(last), max=last)
    step = torch.arange(-reach, reach + 1)
    x, y = home[:, :1] + step, home[:, 1:] + step  # (G, window)
    dx = (x - cell[:, :1]).square().masked_fill((x < 0) | (x > last[0]), torch.inf)
    dy = (y - cell[:, 1:]).square().masked_fill((y < 0) | (y > last[1]), torch.inf)
    distance = (dy[:, :, None] + dx[:, None, :]).flatten(1)  # (G, window²), rows first
    index = (y[:, :, None] * level.width + x[:, None, :]).flatten(1)
    # Squares are not negative, so their bits rank as they do; with the place behind them no two keys are
    # equal, and choosing the least is quicker than sorting all.
    key = (distance.view(torch.int32).long() << 32) + torch.arange(distance.shape[1])
    chosen = key.topk(count, dim=1, largest=False).indices
    return index.gather(1, chosen)


@torch.no_grad()
def atss(
    boxes: Sequence[Tensor],
    levels: Sequence[Level],
    points: Tensor,
    *,
    offset: float,
    anchor_scale: float,
    topk: int,
) -> Assignment:
    """Assign points to objects.

    Of each level the `topk` points nearest to the object's centre are candidates; those whose square
    anchor has IoU ≥ mean + standard deviation (unbiased) of the candidates' IoUs and which lie inside
    the rotated box are positive. A contested point goes to the greatest IoU, then to the first object.

    Args:
        boxes: one (G_i, 5) an image, on the CPU.
        levels: the grids.
        points: (P, 2) pixels, level after level, as `rgfl.nn.decode.grid` orders them.
        offset: of the points in cells, 0 or ½.
        anchor_scale: anchor side in strides.
        topk: candidates a level.
    """
    counts = torch.tensor([len(box) for box in boxes])
    if not any(len(box) for box in boxes):
        none = torch.zeros(0, dtype=torch.int64)
        return Assignment(none, none, none)
    gt = torch.cat(list(boxes)).float()  # (G, 5)
    image = torch.repeat_interleave(torch.arange(len(boxes)), counts)  # (G,)

    index_parts, side_parts, first = [], [], 0
    for level in levels:
        size = level.height * level.width
        index = nearest_cells(gt[:, :2], level, offset, min(topk, size))
        index_parts.append(index + first)
        side_parts.append(torch.full((index.shape[1],), anchor_scale * level.stride))
        first += size
    candidate = torch.cat(index_parts, 1)  # (G, K)
    side = torch.cat(side_parts).expand(candidate.shape)

    centre = points[candidate]  # (G, K, 2)
    anchor = torch.cat((centre, side[..., None], side[..., None], torch.zeros_like(side)[..., None]), -1)
    repeated = gt[:, None].expand(-1, candidate.shape[1], -1)
    iou = rotated_iou_pairwise(anchor.flatten(0, 1), repeated.flatten(0, 1)).view(candidate.shape)

    mean = iou.mean(1, keepdim=True)
    variance = (iou - mean).square().sum(1, keepdim=True) / max(iou.shape[1] - 1, 1)
    inside = distances(centre, repeated).amin(-1) > INSIDE
    positive = inside & (iou >= mean + variance.sqrt())

    target, slot = positive.nonzero(as_tuple=True)
    value = iou[target, slot]
    key = image[target] * len(points) + candidate[target, slot]
    # The winner of each key: sort by object, then by falling IoU, then by key, each stably.
    order = value.sort(descending=True, stable=True).indices
    order = order[key[order].sort(stable=True).indices]
    key, target = key[order], target[order]
    won = torch.ones_like(key, dtype=torch.bool)
    won[1:] = key[1:] != key[:-1]
    key, target = key[won], target[won]
    return Assignment(torch.div(key, len(points), rounding_mode="floor"), key % len(points), target)
