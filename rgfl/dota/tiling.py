"""Cutting images and their labels into square windows: on disk for training, on the fly for inference.

    python -m rgfl.dota.tiling --data DIR --out DIR [--splits train] [--size 1024] [--stride 824] [--scales 1]

The rule is the official devkit's: windows every `stride` pixels, the last of a row or column shifted
inside, small images padded right and below, tiles named `P0000__{rate}__{x}___{y}`. An object of
which less than `min_visible` of its area lies in a window stays in the label file with difficult 2:
training leaves it out, and evaluation ignores it.

What a cut object looks like is a choice, `cut`:

- "clipped" (default; the published row was trained on it): the part inside the window. If that has
  five corners, its shortest edge becomes the midpoint of it; if more, no quad comes close to it and
  the full one stays.
- "whole": the full quad, reaching out of the window, as newer frameworks keep it.

Where we differ from the devkit (ImgSplit_multi_process.py):

- Coordinates are not cut to whole pixels, those of cut objects lie in 0…size and not in 1…size, and
  cut objects keep the turning sense of their corners, where the devkit gives all the same one.
- Windows end where the image does; the devkit takes an object that reaches into the last row or
  column of pixels for cut there.
- Parts of six or more corners, or three, are not dropped while they are plain to see; 0.7 itself is
  enough.
- Images are made smaller by averaging areas, not by cubic interpolation.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from rgfl import atomic
from rgfl.dota.images import IMAGE_SUFFIXES, ImageError, find_images, read_image
from rgfl.dota.journal import expect_inside, failure, follow, read_journal, stamp, write_journal
from rgfl.dota.labels import (
    DIFFICULT_CUT,
    Objects,
    crossing,
    find_classes,
    line_of,
    quad_areas,
    read_class_file,
    read_classes,
    read_labels,
    warn_of_crossing,
    write_class_file,
    write_labels,
)
from rgfl.dota.nearby import nearby
from rgfl.errors import GOES_ON, UserError, one_line, run
from rgfl.folder_lock import lock_folder
from rgfl.processes import each, usable_cores
from rgfl.spec import LARGEST_SIDE

Cut = Literal["clipped", "whole"]
# The journal of a tiled folder: its first line the settings, then one line a finished image.
JOURNAL = "tiles.jsonl"
LEAST_SIDE = 32  # pixels of a window, and more than any scale
_TILE_NAME = re.compile(r"(?P<image>.+)__(?P<scale>\d+(\.\d+)?(e[+-]?\d+)?)__(?P<x>\d+)___(?P<y>\d+)")


class TilingError(UserError):
    """The settings or folders cannot be tiled; the message says what to change."""


@dataclass(frozen=True, kw_only=True)
class TileSettings:
    """What decides the content of the tiles.

    Attributes:
        size: side of a tile in pixels.
        stride: pixels from one window to the next; size − stride of them overlap.
        scales: factors by which the image is resized before it is cut.
        pad_value: grey levels (RGB) right of and below images that are smaller than a tile.
        min_visible: share of an object's area that a window must hold for it not to be difficult 2.
        cut: "clipped" or "whole", see the module.
        keep_empty: write tiles without a single object to learn from, too.
    """

    size: int = 1024
    stride: int = 824
    scales: tuple[float, ...] = (1.0,)
    pad_value: tuple[int, int, int] = (0, 0, 0)
    min_visible: float = 0.7
    cut: Cut = "clipped"
    keep_empty: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.size <= LARGEST_SIDE:
            raise TilingError(f"--size: expected 1…{LARGEST_SIDE} pixels, got {self.size}")
        if not 0 < self.stride <= self.size:
            raise TilingError(
                f"--stride: expected 1…{self.size} (--size), got {self.stride}; more would leave gaps"
            )
        if not self.scales or any(not (math.isfinite(scale) and scale > 0) for scale in self.scales):
            raise TilingError(f"--scales: expected positive factors, got {list(self.scales)}")
        if len(set(map(_rate, self.scales))) != len(self.scales):
            raise TilingError(f"--scales: {list(self.scales)} names a scale twice")
        if len(self.pad_value) != 3 or any(not 0 <= level <= 255 for level in self.pad_value):
            raise TilingError(f"--pad-value: expected three grey levels 0…255, got {list(self.pad_value)}")
        if not 0 < self.min_visible <= 1:
            raise TilingError(f"--min-visible: expected a share in (0, 1], got {self.min_visible}")
        if self.cut not in get_args(Cut):
            raise TilingError(f"--cut: expected one of {', '.join(get_args(Cut))}, got {self.cut!r}")


@dataclass(frozen=True)
class Tiled:
    """What a split came to; `cut_objects` are those of `objects` with difficult 2."""

    images: int
    tiles: int
    objects: int
    cut_objects: int


# ---------------------------------------------------------------------------------------------
# Windows, pixels, objects


def windows(height: int, width: int, size: int, stride: int) -> list[tuple[int, int]]:
    """Upper left corners (x, y) of the windows that cover an image, row by row.

    Every pixel is in a window. Windows leave the image only where it is smaller than they are.

    Args:
        size: side of a window, pixels.
        stride: pixels from one window to the next; 0 for `default_stride`.

    Raises:
        TilingError: an empty image, or a stride that is not in 1…size.
    """
    stride = stride or default_stride(size)
    if height <= 0 or width <= 0:
        raise TilingError(f"expected an image with pixels, got {height} × {width}")
    if not 0 < stride <= size:
        raise TilingError(f"stride: expected 1…{size} (the size), got {stride}; more would leave gaps")
    return [(x, y) for y in _starts(height, size, stride) for x in _starts(width, size, stride)]


def _starts(length: int, size: int, stride: int) -> list[int]:
    last = max(length - size, 0)
    return [*range(0, last, stride), last]


def are_tiles(names: Iterable[str]) -> bool:
    """Whether there are names, without extension, and all are those of tiles (see the module)."""
    names = list(names)
    return bool(names) and all(map(_TILE_NAME.fullmatch, names))


class TileName(NamedTuple):
    """What the name of a tile says: the image, the scale it was resized by, and the tile's corner there."""

    image: str
    scale: float
    x: int
    y: int


def parse_tile_name(name: str) -> TileName | None:
    """The parts of a tile's name; None if it is not one.

    In the scale's place mmrotate writes the window's side, and does not resize.
    """
    tile = _TILE_NAME.fullmatch(name)
    if tile is None:
        return None
    scale = float(tile["scale"])
    return TileName(tile["image"], scale if scale < LEAST_SIDE else 1.0, int(tile["x"]), int(tile["y"]))


def default_stride(size: int) -> int:
    """824 for 1024, as the published rows, and the same share of overlap for other sizes."""
    return size - round(size * 200 / 1024)


def crop(
    image: Any,
    x: int,
    y: int,
    size: int,
    pad_value: int | Sequence[int] = (0, 0, 0),
    *,
    copy: bool = True,
) -> NDArray[np.uint8]:
    """The window at (x, y) as a new (size, size, 3) array, padded where it leaves the image.

    `image` is whatever has a shape (H, W, 3) and gives uint8 pixels when sliced: an array, an
    np.memmap, a raster reader. Only the window is read. Without `copy` one that lies inside is what slicing
    gives: a view of an array.
    """
    height, width = image.shape[:2]
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + size, width), min(y + size, height)
    if left >= right or top >= bottom:
        raise TilingError(f"the window at ({x}, {y}) of {size} px misses the {width} × {height} image")
    pixels = np.asarray(image[top:bottom, left:right])
    if pixels.dtype != np.uint8 or pixels.shape != (bottom - top, right - left, 3):
        raise TilingError(
            f"expected uint8 pixels (H, W, 3), got {pixels.dtype} {pixels.shape}; read_image gives these"
        )
    if pixels.shape[:2] == (size, size):
        return pixels.copy() if copy else pixels
    tile = np.empty((size, size, 3), np.uint8)
    tile[:] = pad_value
    tile[top - y : bottom - y, left - x : right - x] = pixels
    return tile


def clip_objects(
    objects: Objects,
    x: float,
    y: float,
    extent: tuple[float, float],
    min_visible: float = 0.7,
    *,
    cut: Cut = "clipped",
    image: NDArray[np.float64] | None = None,
) -> Objects:
    """Objects of an image as the window at (x, y) sees them, in pixels of the window, in their order.

    Objects with no area, or none of it inside, are left out. Those with less than `min_visible` of
    their area inside get difficult 2. Corners keep their turning sense, and the first corner is
    where it fits the whole quad best.

    Args:
        cut: what becomes of an object that the border cuts, see the module.
        extent: (width, height) of the part of the window that shows image; the rest is padding.
        image: (4, 2) corners of the image in pixels of the window, where it may lie there in any way:
            another bound of what shows image.
    """
    right, bottom = extent
    borders = _borders(np.array([(0, 0), (right, 0), (right, bottom), (0, bottom)], np.float64))
    if image is not None:
        borders += _borders(image, slack=1e-9)  # px; what ends where the image does is not cut by rounding
    quads = objects.quads - np.tile([float(x), float(y)], 4)
    xs, ys = quads[:, 0::2], quads[:, 1::2]
    inside = np.logical_and.reduce([(nx * xs + ny * ys <= limit).all(1) for nx, ny, limit in borders])
    near = (xs.max(1) > 0) & (xs.min(1) < right) & (ys.max(1) > 0) & (ys.min(1) < bottom)
    areas = quad_areas(quads)
    kept = inside & (areas > 0)
    difficult = objects.difficult.copy()
    for row in np.flatnonzero(near & ~inside & (areas > 0)):
        polygon = _clip_polygon(list(zip(xs[row].tolist(), ys[row].tolist(), strict=True)), borders)
        visible = _polygon_area(polygon) / areas[row]
        if visible <= 0:
            continue
        kept[row] = True
        if visible < min_visible:
            difficult[row] = DIFFICULT_CUT
        if cut == "clipped":
            corners = _corners(polygon)
            if len(corners) <= 5:
                quads[row] = _fit_order(_four_corners(corners), quads[row])
    return Objects(quads[kept], objects.labels[kept], difficult[kept])


Point = tuple[float, float]
Border = tuple[float, float, float]  # (nx, ny, limit): nx · x + ny · y ≤ limit inside; n of length 1


def _borders(corners: NDArray[np.float64], slack: float = 0.0) -> list[Border]:
    """The edges of a convex polygon (K, 2) of either sense, moved outwards by `slack`."""
    others = np.roll(corners, -1, axis=0)
    dx, dy = (others - corners).T
    sense = np.sign(np.sum(corners[:, 0] * others[:, 1] - others[:, 0] * corners[:, 1]))
    normals = sense * np.stack([dy, -dx], axis=1) / np.hypot(dx, dy)[:, None]
    limits = (normals * corners).sum(1) + slack
    return [(nx, ny, limit) for (nx, ny), limit in zip(normals.tolist(), limits.tolist(), strict=True)]


def _clip_polygon(polygon: list[Point], borders: Sequence[Border]) -> list[Point]:
    """Sutherland–Hodgman: the part on the inner side of all borders."""
    for nx, ny, limit in borders:
        clipped: list[Point] = []
        for p, q in zip(polygon, polygon[1:] + polygon[:1], strict=True):
            outside_p, outside_q = nx * p[0] + ny * p[1] - limit, nx * q[0] + ny * q[1] - limit
            if outside_p <= 0:
                clipped.append(p)
            if (outside_p < 0 < outside_q) or (outside_q < 0 < outside_p):
                t = outside_p / (outside_p - outside_q)
                x, y = p[0] + t * (q[0] - p[0]), p[1] + t * (q[1] - p[1])
                rounded = nx * x + ny * y - limit  # taken back, so that x is 0 or size where the window ends
                clipped.append((x - rounded * nx, y - rounded * ny))
        polygon = clipped
    return polygon


def _polygon_area(polygon: list[Point]) -> float:
    if len(polygon) < 3:
        return 0.0
    x0, y0 = polygon[0]
    sides = pairwise(polygon[1:])
    return abs(sum((px - x0) * (qy - y0) - (qx - x0) * (py - y0) for (px, py), (qx, qy) in sides)) / 2


def _corners(polygon: list[Point]) -> list[Point]:
    """The polygon without points that are no corners."""
    corners = list(polygon)
    scale = max(abs(value) for point in polygon for value in point) or 1.0
    place = 0
    while len(corners) > 3 and place < len(corners):
        (ax, ay), (bx, by), (cx, cy) = (
            corners[place - 1],
            corners[place],
            corners[(place + 1) % len(corners)],
        )
        bend = (bx - ax) * (cy - by) - (by - ay) * (cx - bx)
        longest = max(math.hypot(bx - ax, by - ay), math.hypot(cx - bx, cy - by))
        if abs(bend) <= 1e-9 * scale * longest:  # b is within a billionth of the line, or equal to a or c
            del corners[place]
            place = max(place - 1, 0)
        else:
            place += 1
    return corners


def _four_corners(corners: list[Point]) -> list[Point]:
    """Four of three to five corners."""
    if len(corners) == 3:  # a quad two of whose corners coincide
        return [*corners, corners[-1]]
    if len(corners) == 4:
        return corners
    edges = [math.dist(p, q) for p, q in zip(corners, corners[1:] + corners[:1], strict=True)]
    shortest = edges.index(min(edges))
    turned = corners[shortest:] + corners[:shortest]
    (px, py), (qx, qy) = turned[:2]
    return [((px + qx) / 2, (py + qy) / 2), *turned[2:]]


def _fit_order(corners: list[Point], quad: NDArray[np.float64]) -> NDArray[np.float64]:
    """(8,) the same corners in the same turning sense, begun where they lie nearest to those of `quad`."""
    points = np.array(corners)
    turns = [np.roll(points, -shift, axis=0).reshape(8) for shift in range(4)]
    return turns[int(np.argmin([np.sum((turn - quad) ** 2) for turn in turns]))]


# ---------------------------------------------------------------------------------------------
# On disk


def split(
    images: Mapping[str, Path],
    labels: Path | None,
    out: Path,
    settings: TileSettings | None = None,
    *,
    classes: Sequence[str] | None = None,
    workers: int = 1,
    progress: bool = False,
) -> Tiled:
    """Tile `images` into `out/images` and `out/labelTxt`, taking up where a killed run left off.

    A finished image is entered in `out/tiles.jsonl` with the size and date of its sources; the next
    run skips it if these are unchanged and its tiles are all there, and removes what other images left.

    Args:
        images: image files by stem, as `find_images` gives them.
        labels: folder with one labelTxt file an image; None writes every tile and no labels.
        out: folder that is new, or was made here with the same settings.
        classes: names the labels may have; None takes all that occur.
        workers: processes; 1 works in this one.

    Raises:
        TilingError: `out` holds something else, label files are missing, or images failed (the
            message has their errors; the others are finished).
        FolderInUse: another process writes into `out`.
        ChildProcessError: a worker was killed.
    """
    settings = settings or TileSettings()
    if not images:
        raise TilingError(f"{out}: no images to tile; expected files like P0000.png in the images folder")
    if labels is not None:
        _check_labels(images, labels)
        if classes is None:
            classes = find_classes(labels)
    journal = out / JOURNAL
    jobs = {}
    for stem, image in images.items():
        label = labels / f"{stem}.txt" if labels is not None else None
        source = [part for path in (image, label) if path is not None for part in stamp(path)]
        jobs[stem] = _Job(image, label, out, settings, tuple(classes or ()), source)
    head = json.loads(json.dumps({"tiling": 1, "labels": labels is not None, **asdict(settings)}))
    _expect_no_others(out)
    out.mkdir(parents=True, exist_ok=True)
    with lock_folder(out):
        done = _finished(journal, head, jobs)
        _remove_others(out, done)
        for kind in ("images", "labelTxt") if labels is not None else ("images",):
            (out / kind).mkdir(parents=True, exist_ok=True)
        write_journal(journal, head, done.values())
        waiting = [job for stem, job in jobs.items() if stem not in done]
        entries = each(_tile_image, waiting, workers)
        errors = follow(entries, journal, done, len(jobs), task=f"tiling {out.name}", progress=progress)
        if errors:
            raise TilingError(failure(sorted(errors), len(jobs)))
    if wrong := [entry for entry in done.values() if entry.get("crossing")]:  # none: no such key
        first = min(wrong, key=lambda entry: entry["image"])
        label = jobs[first["image"]].label
        assert label is not None
        warn_of_crossing(label, first["crossing_line"], sum(entry["crossing"] for entry in wrong))
    return _sum(done.values())


@dataclass(frozen=True)
class _Job:
    image: Path
    label: Path | None
    out: Path
    settings: TileSettings
    classes: tuple[str, ...]
    source: list[int]


def _tile_image(job: _Job) -> dict[str, Any]:
    """Write the tiles of one image; its journal entry, or the error that kept them from being written."""
    try:
        image = read_image(job.image)
        objects = read_labels(job.label, job.classes) if job.label is not None else None
    except (UserError, OSError) as error:
        return {"error": one_line(error)}
    settings, stem = job.settings, job.image.stem
    counts = {"tiles": 0, "objects": 0, "cut_objects": 0}
    if objects is not None and len(wrong := np.flatnonzero(crossing(objects.quads))):
        assert job.label is not None
        counts |= {"crossing": len(wrong), "crossing_line": line_of(job.label, int(wrong[0]), job.classes)}
    for scale in settings.scales:
        pixels = image
        if min(image.shape[:2]) * scale < 1:
            return {
                "error": f"{job.image}: nothing is left of {_extent(image)} pixels at scale {_rate(scale)}"
            }
        if scale != 1:
            shrink = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
            # With fx and no size OpenCV samples at exactly this scale, so that labels × scale fit.
            pixels = np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=shrink), np.uint8)
        height, width = pixels.shape[:2]
        scaled = replace(objects, quads=objects.quads * scale) if objects is not None else None
        for x, y in windows(height, width, settings.size, settings.stride):
            name = f"{stem}__{_rate(scale)}__{x}___{y}"
            if scaled is not None:
                seen = clip_objects(
                    scaled,
                    x,
                    y,
                    (min(settings.size, width - x), min(settings.size, height - y)),
                    settings.min_visible,
                    cut=settings.cut,
                )
                cut_away = int((seen.difficult == DIFFICULT_CUT).sum())
                if cut_away == len(seen) and not settings.keep_empty:
                    continue
                counts["objects"] += len(seen)
                counts["cut_objects"] += cut_away
                write_labels(job.out / "labelTxt" / f"{name}.txt", seen, job.classes)
            tile = crop(pixels, x, y, settings.size, settings.pad_value)
            _write_png(job.out / "images" / f"{name}.png", tile)
            counts["tiles"] += 1
    return {"image": stem, "source": job.source, **counts}


def _write_png(path: Path, tile: NDArray[np.uint8]) -> None:
    encoded, data = cv2.imencode(".png", cv2.cvtColor(tile, cv2.COLOR_RGB2BGR))
    if not encoded:
        raise ImageError(f"{path}: OpenCV could not encode the tile")
    atomic.write_bytes(path, data.tobytes())


def _extent(image: NDArray[np.uint8]) -> str:
    return f"{image.shape[1]} × {image.shape[0]}"


def _rate(scale: float) -> str:
    """The scale as tile names have it: 1, 0.5, 1.5."""
    return f"{scale:g}"


def _check_labels(images: Mapping[str, Path], labels: Path) -> None:
    if not labels.is_dir():
        raise TilingError(f"{labels}: no such folder; expected one labelTxt file an image")
    if missing := [stem for stem in images if not (labels / f"{stem}.txt").is_file()]:
        raise TilingError(
            f"{labels}: no label file for {len(missing)} of {len(images)} images, the first is "
            f"{missing[0]}.txt; an image without objects needs an empty file"
        )


def _expect_no_others(out: Path) -> None:
    """
    Raises:
        TilingError: the folder holds what was not tiled here.
    """
    if not (out / JOURNAL).is_file() and _files(out):
        raise TilingError(f"{out}: holds images or labels that were not tiled here; name another --out")


def _finished(journal: Path, head: Mapping[str, Any], jobs: Mapping[str, _Job]) -> dict[str, dict[str, Any]]:
    """Entries of the images that need no work: same sources, and every tile still there.

    Raises:
        TilingError: the folder was tiled with other settings or from other images.
    """
    out = journal.parent
    if not journal.is_file():
        return {}
    entries = read_journal(journal, {"source": list, "tiles": int, "objects": int, "cut_objects": int})
    if not entries or entries[0] != head:
        found = entries[0] if entries else {}
        changed = [key for key in head if head[key] != found.get(key)]
        raise TilingError(
            f"{out}: was tiled with other settings "
            f"({', '.join(f'{key} {found.get(key)}, now {head[key]}' for key in changed)}); "
            "name another --out, or remove the folder"
        )
    gone = {entry["image"] for entry in entries[1:]} - jobs.keys()
    if gone and not any(
        entry["image"] in jobs and jobs[entry["image"]].source == entry["source"] for entry in entries[1:]
    ):
        raise TilingError(
            f"{out}: holds the tiles of {len(gone)} other images, such as {min(gone)}; name another --out, "
            "or remove the folder"
        )
    there: dict[str, dict[str, set[str]]] = defaultdict(lambda: {"images": set(), "labelTxt": set()})
    for path in _files(out):
        if image := _image_of(path):
            there[image][path.parent.name].add(path.stem)
    done = {}
    for entry in entries[1:]:
        stem = entry["image"]
        tiles, labels = there[stem]["images"], there[stem]["labelTxt"]
        whole = len(tiles) == entry["tiles"] and (tiles == labels or not head["labels"])
        if stem in jobs and jobs[stem].source == entry["source"] and whole:
            done[stem] = entry
    return done


def _remove_others(out: Path, done: Mapping[str, Any]) -> None:
    """Delete tiles of images that are not done, and files that were being written."""
    for path in _files(out):
        image = _image_of(path)
        if path.suffix == atomic.TEMPORARY_SUFFIX or (image and image not in done):
            path.unlink()


def _image_of(path: Path) -> str:
    """Name of the image whose tile, or tile's labels, the file is; "" if it is none."""
    tile = parse_tile_name(path.stem) if path.suffix in (".png", ".txt") else None
    return tile.image if tile else ""


def _files(out: Path) -> list[Path]:
    """What lies in the folders of a split.

    Raises:
        UserError: one is a link that leads out of `out`.
    """
    folders = (out / "images", out / "labelTxt")
    for folder in folders:
        expect_inside(folder, out)
    return [path for folder in folders if folder.is_dir() for path in folder.iterdir()]


def _sum(entries: Iterable[dict[str, Any]]) -> Tiled:
    entries = list(entries)
    return Tiled(
        images=len(entries),
        tiles=sum(entry["tiles"] for entry in entries),
        objects=sum(entry["objects"] for entry in entries),
        cut_objects=sum(entry["cut_objects"] for entry in entries),
    )


# ---------------------------------------------------------------------------------------------
# Command line


def _find_splits(data: Path, names: Sequence[str] | None = None) -> dict[str, Path]:
    """Folders of `data` that hold images/, by name, all or those of `names`; "" where `data` itself does."""
    if not data.is_dir():
        raise TilingError(f"--data: no such folder: {data}")
    if (data / "images").is_dir():
        found = {"": data}
    else:
        found = {path.name: path for path in sorted(data.iterdir()) if (path / "images").is_dir()}
    if not found:
        raise TilingError(
            f"--data: expected {data}/images or {data}/train/images, val/images …, found neither"
        )
    if lacking := sorted(set(names or ()) - set(found)):
        raise TilingError(
            f"--splits: no {data / lacking[0] / 'images'}; --data has {', '.join(found) or 'none'}"
        )
    return {name: path for name, path in found.items() if not names or name in names}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m rgfl.dota.tiling`; 0, or 2 after a one-line error."""
    defaults = TileSettings()
    parser = argparse.ArgumentParser(
        prog="python -m rgfl.dota.tiling",
        description="Cut DOTA images and labels into tiles. A killed run takes up where it left off.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        default=argparse.SUPPRESS,
        help="folder with train/, val/ …, each images/ and labelTxt/",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        default=argparse.SUPPRESS,
        help="folder for the tiles, laid out alike",
    )
    parser.add_argument(
        "--splits",
        nargs="+",
        default=argparse.SUPPRESS,
        help="which folders of --data, such as train alone (default: all)",
    )
    parser.add_argument("--size", type=int, default=defaults.size, help="side of a tile, px")
    parser.add_argument(
        "--stride",
        type=int,
        default=argparse.SUPPRESS,
        help="from window to window, px (default: 824 for 1024, the same share of other sizes)",
    )
    parser.add_argument(
        "--scales", type=float, nargs="+", default=list(defaults.scales), help="resize factors before cutting"
    )
    parser.add_argument(
        "--pad-value", type=int, nargs=3, default=list(defaults.pad_value), help="RGB beside small images"
    )
    parser.add_argument(
        "--min-visible", type=float, default=defaults.min_visible, help="less of an object: difficult 2"
    )
    parser.add_argument(
        "--cut",
        choices=get_args(Cut),
        default=defaults.cut,
        help="an object at the border: its part, or whole",
    )
    parser.add_argument("--keep-empty", action="store_true", help="also tiles with no object to learn from")
    parser.add_argument("--no-labels", action="store_true", help="train/ and val/ may lack labelTxt/")
    parser.add_argument(
        "--classes",
        default=argparse.SUPPRESS,
        help="1.0, 1.5, 2.0, a file of names, or a,b,c: refuse others (default: classes.txt in --data)",
    )
    parser.add_argument("--workers", type=int, default=usable_cores(), help="processes")
    options = parser.parse_args(arguments)
    return run("tiling", lambda: cut_all(options), interrupted=GOES_ON)


def cut_all(options: argparse.Namespace) -> int:
    """What the command does."""
    settings = TileSettings(
        size=options.size,
        stride=getattr(options, "stride", default_stride(options.size)),
        scales=tuple(options.scales),
        pad_value=tuple(options.pad_value),
        min_visible=options.min_visible,
        cut=options.cut,
        keep_empty=options.keep_empty,
    )
    given = getattr(options, "classes", "")
    classes = read_classes(given) if given else None
    if options.out.resolve() == options.data.resolve():
        raise TilingError("--out: must not be the folder of --data")
    splits = _find_splits(options.data, getattr(options, "splits", None))
    if classes is None and (options.data / "classes.txt").is_file():
        classes = read_class_file(options.data / "classes.txt")
    for name, folder in splits.items():
        labels = folder / "labelTxt" if (folder / "labelTxt").is_dir() else None
        images = find_images(folder / "images")
        if not images:
            raise TilingError(
                f"{folder / 'images'}: no image in this folder{nearby(folder / 'images', IMAGE_SUFFIXES)}"
            )
        if labels is None:
            if name in ("train", "val") and not options.no_labels:
                raise TilingError(
                    f"{folder / 'labelTxt'}: no such folder, so the tiles would have no labels; "
                    f"--no-labels wants them so{nearby(folder / 'labelTxt', ['.txt'])}"
                )
            print(f"note: {folder} has no labelTxt/: its tiles get no labels", file=sys.stderr)
        tiled = split(
            images,
            labels,
            options.out / name,
            settings,
            classes=classes,
            workers=options.workers,
            progress=True,
        )
        print(
            f"{options.out / name}: {tiled.tiles} tiles of {tiled.images} images"
            + (f", {tiled.objects} objects, {tiled.cut_objects} of them cut (difficult 2)" if labels else "")
        )
    if classes is not None:  # so that training on the tiles numbers them as training on the images does
        write_class_file(options.out / "classes.txt", classes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
