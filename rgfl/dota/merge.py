"""From tiles back to the image: run any model over the windows and join what it found.

    python -m rgfl.dota.merge --task1 TILES --out DIR      Task 1 files of any detector's tiles, merged

Precision: float32 holds 20,000.5 to 0.001 px, and NMS would see boxes that far off. So centres are
shifted in float64, and NMS gets each cluster of boxes that may overlap in coordinates of its own,
a few hundred pixels at most times: two boxes compare as they would within one tile, wherever in the
scene they lie. Clusters cannot meet, so this changes no decision but the rounding. Only the record
that leaves is float32 in scene coordinates.

Order: candidates are sorted by score and then by everything else a box has, so neither the order in
which a model lists its boxes nor the batch size decides a tie.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from rgfl import geometry
from rgfl.boxes import from_quads
from rgfl.detections import Detections
from rgfl.dota.labels import Task1Class, read_classes, read_task1, write_task1
from rgfl.dota.pairs import in_ranges
from rgfl.dota.tiling import crop, default_stride, parse_tile_name, windows
from rgfl.errors import UserError, run

# Rotated IoU above which the NMS over the tiles of an image drops a box, as in the published rows.
MERGE_IOU = 0.1
# Called with the tiles done and the tiles there are.
Progress = Callable[[int, int], None]
# Boxes given to one NMS call, unless one cluster is larger.
_BOXES_AT_ONCE = 512


class NotFiniteError(UserError):
    """A detection is NaN or infinite; the message names the tile."""


@dataclass(frozen=True)
class Part:
    """What was found in one tile.

    Attributes:
        detections: in pixels of the tile.
        x, y: the tile's upper left corner in the image.
        scale: pixels of the image per pixel of the tile.
    """

    detections: Detections
    x: float = 0.0
    y: float = 0.0
    scale: float = 1.0

    @classmethod
    def at(cls, place: Place, size: int, detections: Detections) -> Part:
        """What was found in the tile of `size` pixels that shows `place`."""
        return cls(detections, place.x, place.y, place.side / size)


class Place(NamedTuple):
    """A square of an image that one tile shows: upper left corner and side, in pixels of the image."""

    x: int
    y: int
    side: int


def places_at_scales(
    height: int, width: int, *, size: int, stride: int = 0, scales: Sequence[float] = (1.0,)
) -> list[Place]:
    """The windows of an image at every scale, see `detect`.

    Raises:
        ValueError: a scale is not positive and finite, `size` not 1 or more, `stride` not in 0…size.
    """
    if size < 1:
        raise ValueError(f"size: expected 1 pixel or more, got {size}")
    if not 0 <= stride <= size:
        raise ValueError(
            f"stride: expected 0 (the default) to {size} (the size), got {stride}; more would leave gaps"
        )
    if not scales or any(not 0 < scale < math.inf for scale in scales):
        raise ValueError(f"scales: expected positive factors, got {list(scales)}")
    stride = stride or default_stride(size)
    places = []
    for scale in scales:
        side, step = max(round(size / scale), 1), max(round(stride / scale), 1)
        places += [Place(x, y, side) for x, y in windows(height, width, side, step)]
    return places


def pixels_at(image: Any, place: Place) -> NDArray[np.uint8]:
    """What of `image` lies in `place`: a view of an array. Where all of it is zero, as in the collars of
    orthophotos and the gaps of mosaics, nothing is looked for."""
    height, width = image.shape[:2]
    right, bottom = min(place.x + place.side, width), min(place.y + place.side, height)
    return np.asarray(image[place.y : bottom, place.x : right])


def tile_at(
    image: Any, place: Place, size: int, pad_value: int | Sequence[int] = (0, 0, 0)
) -> NDArray[np.uint8]:
    """The tile (size, size, 3) that shows `place`, resized to it; `pad_value` lies outside the image.

    A view of `image` where nothing need be padded or resized.
    """
    tile = crop(image, place.x, place.y, place.side, pad_value, copy=False)
    if place.side == size:
        return tile
    interpolation = cv2.INTER_AREA if place.side > size else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(tile, (size, size), interpolation=interpolation), np.uint8)


def detect(
    image: Any,
    infer: Callable[[Any], list[Detections]],
    *,
    size: int = 1024,
    stride: int = 0,
    pad_value: int | Sequence[int] = (0, 0, 0),
    iou_threshold: float = MERGE_IOU,
    scales: Sequence[float] = (1.0,),
    batch: int = 1,
    stack: bool = True,
    progress: Progress | None = None,
) -> Detections:
    """Run `infer` over all windows of an image, at every scale, and merge.

    Windows of zeros alone are left out, but for the last of an image that has no others.

    Args:
        image: shape (H, W, 3), uint8 pixels when sliced: an array, an np.memmap, a raster reader.
            Only windows of it are read.
        infer: uint8 tiles (B, size, size, 3) to one record a tile; the last batch may be smaller.
        size: pixels a side of a tile.
        stride: pixels of a tile from one window to the next, at most `size`; 0 for `default_stride`.
        iou_threshold: NMS drops a box above this rotated IoU with a better one of its class.
        scales: factors; at 0.5 a tile shows twice as many pixels of the image each way. The source
            window is whole pixels, so the true factor may differ by half a pixel in `size`.
        stack: without it `infer` takes a list of B tiles (size, size, 3), views of the image where they can
            be, to copy them itself to where they are needed.
        progress: called with (tiles done or left out, tiles) after each batch.

    Raises:
        ValueError: the arguments do not fit, or `infer` gives other than one finite record a tile.
    """
    if batch < 1:
        raise ValueError(f"batch: expected 1 or more, got {batch}")
    places = places_at_scales(*image.shape[:2], size=size, stride=stride, scales=scales)
    parts: list[Part] = []
    chunk: list[Place] = []
    tiles: list[NDArray[np.uint8]] = []
    for done, place in enumerate(places, 1):
        pixels = pixels_at(image, place)
        if pixels.any() or (done == len(places) and not chunk and not parts):
            chunk.append(place)
            tiles.append(tile_at(pixels, Place(0, 0, place.side), size, pad_value))
        if len(chunk) < batch and done < len(places):
            continue
        if chunk:
            found = infer(np.stack(tiles) if stack else tiles)
            if len(found) != len(chunk):
                raise ValueError(f"infer: expected {len(chunk)} records for as many tiles, got {len(found)}")
            parts += [Part.at(place, size, record) for place, record in zip(chunk, found, strict=True)]
            chunk, tiles = [], []
        if progress is not None:
            progress(done, len(places))
    return merge(parts, iou_threshold)


def merge(parts: Sequence[Part], iou_threshold: float = MERGE_IOU) -> Detections:
    """Detections of the whole image, best first: shift, then rotated NMS within each class.

    The result does not depend on the order of `parts` or of the boxes in them.

    Raises:
        NotFiniteError: a box or score is not finite.
    """
    for part in parts:
        record = part.detections
        if not (np.isfinite(record.boxes).all() and np.isfinite(record.scores).all()):
            raise NotFiniteError(
                f"tile at ({part.x:g}, {part.y:g}): a detection is NaN or infinite; the model is broken"
            )
    # (N, 5) float64: coordinates of a tile have 24 bits, so that the shift is exact.
    shifted = [
        part.detections.boxes * np.array([part.scale] * 4 + [1.0]) + np.array([part.x, part.y, 0, 0, 0])
        for part in parts
    ]
    boxes = np.concatenate([np.zeros((0, 5)), *shifted])
    record = Detections.concatenate([part.detections for part in parts])
    order = np.lexsort((*boxes.T[::-1], record.labels, -record.scores))
    boxes, scores, labels = boxes[order], record.scores[order], record.labels[order]
    clusters, origins = _clusters(boxes, labels)
    local = boxes.copy()
    local[:, :2] -= origins
    kept = _nms_by_cluster(local.astype(np.float32), scores, clusters, iou_threshold)
    return Detections(boxes[kept].astype(np.float32), scores[kept], labels[kept])


def _nms_by_cluster(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    clusters: NDArray[np.int64],
    iou_threshold: float,
) -> NDArray[np.int64]:
    """Kept indices, ascending, of boxes in order of rank: NMS over a few clusters at a time, so that its
    cost grows with their number and not with its square."""
    rows = np.argsort(clusters, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(clusters[rows])) + 1, len(rows))
    kept = [np.zeros(0, np.int64)]
    start = 0
    while start < len(rows):
        cut = int(np.searchsorted(ends, start + _BOXES_AT_ONCE))
        stop = int(ends[min(cut, len(ends) - 1)])
        some = rows[start:stop]
        kept.append(some[geometry.rotated_nms(boxes[some], scores[some], iou_threshold, clusters[some])])
        start = stop
    return np.sort(np.concatenate(kept))


def _clusters(
    boxes: NDArray[np.float64], labels: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Which boxes may touch, directly or through others of their class.

    Returns:
        clusters: (N,) int64, equal for boxes of one cluster; boxes of two classes never share one.
        origins: (N, 2) whole pixels, one point for all boxes of a cluster.
    """
    count = len(boxes)
    cos, sin = np.abs(np.cos(boxes[:, 4])), np.abs(np.sin(boxes[:, 4]))
    half_x = (boxes[:, 2] * cos + boxes[:, 3] * sin) / 2 + 1e-3
    half_y = (boxes[:, 2] * sin + boxes[:, 3] * cos) / 2 + 1e-3
    parent = np.arange(count)
    for a, b in _touching(boxes[:, 0], half_x, boxes[:, 1], half_y, labels):
        while True:  # hook the greater root under the smaller, then halve the paths, until nothing moves
            root_a, root_b = parent[a], parent[b]
            open_ = root_a != root_b
            if not open_.any():
                break
            a, b = a[open_], b[open_]
            low = np.minimum(root_a, root_b)[open_]
            np.minimum.at(parent, np.maximum(root_a, root_b)[open_], low)
            while not np.array_equal(parent, above := parent[parent]):
                parent = above
    return parent.astype(np.int64), np.floor(boxes[parent, :2])


def _touching(
    x: NDArray[np.float64],
    half_x: NDArray[np.float64],
    y: NDArray[np.float64],
    half_y: NDArray[np.float64],
    labels: NDArray[np.int32],
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Index pairs of boxes of one class whose upright hulls meet: a sweep over their left edges."""
    edges, places = np.unique(np.concatenate([x - half_x, x + half_x]), return_inverse=True)
    # Whole numbers that rise with the class, then with the edge: all classes are one sweep.
    left, right = places.reshape(2, -1) + labels.astype(np.int64) * len(edges)
    rows = np.argsort(left, kind="stable")
    after = np.arange(1, len(rows) + 1)
    for first, second in in_ranges(after, np.searchsorted(left[rows], right[rows], side="right")):
        a, b = rows[first], rows[second]
        meet = np.abs(y[a] - y[b]) <= half_y[a] + half_y[b]
        yield a[meet], b[meet]


# ------------------------------------------------------------------------------------- Task 1 files of tiles


def merge_task1(
    found: Mapping[str, Task1Class], iou_threshold: float = MERGE_IOU
) -> tuple[dict[str, Detections], tuple[str, ...]]:
    """Detections on full images, by image, and the classes their labels index, from Task 1 files of tiles.

    What the devkit's ResultMerge does, with the minimum-area rectangle of each quad.

    Raises:
        ValueError: an image name is not a tile's, `P0000__{scale}__{x}___{y}`.
    """
    classes = tuple(found)
    parts: dict[str, list[Part]] = {}
    for label, name in enumerate(classes):
        images = np.array(found[name].images)
        boxes = from_quads(found[name].quads).astype(np.float32)
        scores = found[name].scores.astype(np.float32)
        for text in np.unique(images).tolist():
            if (tile := parse_tile_name(text)) is None:
                raise UserError(f"Task1_{name}.txt: {text} is no tile's name, P0000__<scale>__<x>___<y>")
            if (scale := tile.scale) <= 0:
                raise UserError(f"Task1_{name}.txt: {text}: expected a positive scale, got {scale:g}")
            rows = np.flatnonzero(images == text)
            detections = Detections(boxes[rows], scores[rows], np.full(len(rows), label, np.int32))
            part = Part(detections, tile.x / scale, tile.y / scale, 1 / scale)
            parts.setdefault(tile.image, []).append(part)
    return {image: merge(parts[image], iou_threshold) for image in sorted(parts)}, classes


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m rgfl.dota.merge`; 0, or 2 after a one-line error."""
    parser = argparse.ArgumentParser(
        prog="python -m rgfl.dota.merge",
        description="Merge Task 1 files of tiles into those of full images: rotated NMS within each class.",
    )
    parser.add_argument("--task1", required=True, metavar="DIR", help="Task1_<class>.txt of tiles, or a zip")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the merged files")
    parser.add_argument("--classes", default="1.0", help="1.0, 1.5, 2.0, a file of names, or a,b,c [1.0]")
    parser.add_argument("--iou", type=float, default=MERGE_IOU, help="NMS drops above this rotated IoU [0.1]")
    options = parser.parse_args(arguments)
    return run("merge", lambda: merge_files(options))


def merge_files(options: argparse.Namespace) -> int:
    """What the command does."""
    if options.out.resolve() == Path(options.task1).resolve():
        raise UserError("--out: must not be the folder of --task1")
    if not 0 <= options.iou <= 1:
        raise UserError(f"--iou {options.iou:g}: expected 0…1")
    found = read_task1(options.task1, read_classes(options.classes))
    merged, classes = merge_task1(found, options.iou)
    write_task1(options.out, merged, classes)
    before, after = sum(map(len, found.values())), sum(map(len, merged.values()))
    print(f"{options.out}: {after} of {before} detections on {len(merged)} images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
