"""Aerial-like scenes with exact oriented labels, for the demo, the tests and controlled experiments.

    python -m rgfl.dota.synthetic --out DIR --train 400 --val 100 --size 512 --difficulty easy

writes DIR/{train,val}/{images,labelTxt}, DIR/large/… for large scenes, and DIR/classes.txt.

A label is exact because the shape is drawn from its box: every silhouette lives in the box's frame,
u along the length and v across, and touches u = ±1 and v = ±1. Coordinates are continuous, the
pixel in column i covers [i, i + 1).

A scene depends on the settings, its split and its number only, never on the other scenes: any number
of workers writes the same bytes, and an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from rgfl import atomic
from rgfl.boxes import canonical, to_quads
from rgfl.dota import labels

Colour = tuple[float, float, float]
Points = NDArray[np.float64]

CLASSES = labels.CLASSES["1.0"]
EASY_CLASSES = ("plane", "small-vehicle", "large-vehicle", "ship", "tennis-court", "storage-tank")
SPLITS = ("train", "val", "large")
ROUND = ("storage-tank", "roundabout")  # labelled by upright squares, as in DOTA
LONGEST = 300.0  # pixels, the longest side of any object
TINY = 10.0  # pixels: an object whose longer side is below is difficult
HIDDEN = 0.5  # an object of which more is covered is difficult
VISIBLE = 0.75  # objects of which less lies inside the image are not drawn
FORMAT = 2  # raise it when the same settings no longer give the same files


class SyntheticError(ValueError):
    """The settings make no sense, or the folder holds something else."""


# --------------------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class Difficulty:
    """What makes a set hard.

    Attributes:
        pixels_per_metre: range of the scale.
        opacity: range of the objects' contrast against the ground.
        occlusion: share of the objects on land that a tree covers in part.
        distractors: clutter that resembles objects, relative to the number of object groups.
        blur: range of the Gaussian blur in pixels.
        noise: range of the grain in grey levels.
        shade: range of the overall brightness.
        van_like: 1 makes vehicle lengths of both classes meet, 0 keeps them apart.
    """

    pixels_per_metre: tuple[float, float]
    opacity: tuple[float, float]
    occlusion: float
    distractors: float
    blur: tuple[float, float]
    noise: tuple[float, float]
    shade: tuple[float, float]
    van_like: float


DIFFICULTIES = {
    "easy": Difficulty((6.0, 8.0), (1.0, 1.0), 0.04, 0.3, (0.0, 0.5), (2, 5), (0.9, 1.1), 0.0),
    "medium": Difficulty((2.6, 5.0), (0.8, 1.0), 0.10, 0.8, (0.3, 0.9), (4, 9), (0.75, 1.15), 0.5),
    "hard": Difficulty((1.9, 4.5), (0.45, 0.95), 0.20, 1.4, (0.5, 1.3), (6, 14), (0.55, 1.2), 1.0),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that a scene's pixels depend on, besides its split and number.

    Attributes:
        seed: one integer ≥ 0; equal seeds give equal files.
        size: (height, width) of the train and val scenes.
        large_size: (height, width) of the large scenes.
        density: factor on the number of objects.
        difficulty: a key of DIFFICULTIES.
        classes: names to draw and label; nothing of another class is drawn.
        jpeg: JPEG files of quality 92 instead of PNG.
    """

    seed: int = 0
    size: tuple[int, int] = (512, 512)
    large_size: tuple[int, int] = (3000, 4000)
    density: float = 1.0
    difficulty: str = "easy"
    classes: tuple[str, ...] = EASY_CLASSES
    jpeg: bool = False

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise SyntheticError(f"--seed: expected an integer ≥ 0, got {self.seed}")
        for flag, size in (("--size", self.size), ("--large-size", self.large_size)):
            if min(size) < 128 or max(size) > 16384:
                found = f"{size[0]}x{size[1]}"
                raise SyntheticError(f"{flag}: expected sides of 128 to 16384 pixels, got {found}")
        if not 0 < self.density <= 4:
            raise SyntheticError(f"--objects: expected a factor above 0 and up to 4, got {self.density}")
        if self.difficulty not in DIFFICULTIES:
            raise SyntheticError(f"--difficulty: expected one of {[*DIFFICULTIES]}, got {self.difficulty!r}")
        if unknown := [name for name in self.classes if name not in CLASSES]:
            raise SyntheticError(f"--classes: {unknown} are not among the drawn ones: {', '.join(CLASSES)}")
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise SyntheticError(f"--classes: expected distinct names, got {list(self.classes)}")


@dataclass(frozen=True)
class Scene:
    """A rendered scene and its labels.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        boxes: (N, 5) float64, canonical as in rgfl.boxes.
        labels: (N,) int32 indices into the settings' classes.
        difficult: (N,) int32, 1 for tiny or mostly hidden objects.
        gsd: metres per pixel.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int32]
    difficult: NDArray[np.int32]
    gsd: float


# --------------------------------------------------------------------------------------- geometry


def _turn(points: ArrayLike, angle: float) -> Points:
    """Points (…, 2) turned by `angle`, x towards y."""
    c, s = math.cos(angle), math.sin(angle)
    return np.asarray(points, np.float64) @ np.array([[c, s], [-s, c]])


def _corners(box: Sequence[float] | NDArray[np.float64]) -> Points:
    """(4, 2) corners of one box: rgfl.boxes.to_quads without its checks, which take longer than the sum."""
    cx, cy, w, h, angle = (float(value) for value in box)
    half = np.array([[-w, -h], [w, -h], [w, h], [-w, h]]) / 2
    return _turn(half, angle) + np.array([cx, cy])


def _apart(box: NDArray[np.float64], others: NDArray[np.float64]) -> bool:
    """True if the rotated rectangle `box` (5,) meets none of `others` (M, 5)."""
    reach = np.hypot(box[2], box[3]) / 2 + np.hypot(others[:, 2], others[:, 3]) / 2
    others = others[np.hypot(others[:, 0] - box[0], others[:, 1] - box[1]) < reach]
    if not len(others):
        return True
    # Separating axes: along each axis of either box, half extents against the distance of centres.
    delta = others[:, :2] - box[:2]
    cos, sin = np.abs(np.cos(others[:, 4] - box[4])), np.abs(np.sin(others[:, 4] - box[4]))
    separated = np.zeros(len(others), bool)
    for turn in (0.0, math.pi / 2):
        own, side = (box[2], box[3])[turn > 0] / 2, (cos, sin) if turn == 0 else (sin, cos)
        along = delta[:, 0] * math.cos(box[4] + turn) + delta[:, 1] * math.sin(box[4] + turn)
        separated |= np.abs(along) > own + others[:, 2] / 2 * side[0] + others[:, 3] / 2 * side[1]
        theirs = others[:, 4] + turn
        along = delta[:, 0] * np.cos(theirs) + delta[:, 1] * np.sin(theirs)
        w, h = (box[2], box[3]) if turn == 0 else (box[3], box[2])
        own_half = (others[:, 2] if turn == 0 else others[:, 3]) / 2
        separated |= np.abs(along) > own_half + w / 2 * cos + h / 2 * sin
    return bool(separated.all())


_GRID = np.stack(np.meshgrid(np.arange(-0.95, 1, 0.1), np.arange(-0.95, 1, 0.1)), -1).reshape(-1, 2)


def _samples(box: NDArray[np.float64]) -> Points:
    """(400, 2) points spread evenly over the box."""
    return _turn(_GRID * box[2:4] / 2, float(box[4])) + box[:2]


def _visible(box: NDArray[np.float64], height: int, width: int) -> float:
    """Share of the box's area inside the image."""
    corners = _corners(box)
    if (corners >= 0).all() and (corners <= (width, height)).all():
        return 1.0
    points = _samples(box)
    return float(((points >= 0) & (points < (width, height))).all(1).mean())


# ---------------------------------------------------------------------------------------- drawing


def _arc(
    u: float, v: float, ru: float, rv: float, start: float = 0, stop: float = 360, count: int = 0
) -> Points:
    """Points of an elliptic arc, degrees."""
    count = count or max(5, int(abs(stop - start) / 9) + 1)
    t = np.radians(np.linspace(start, stop, count))
    return np.stack([u + ru * np.cos(t), v + rv * np.sin(t)], -1)


def _mirrored(half: Sequence[tuple[float, float]]) -> Points:
    """The outline of a shape symmetric in v, from its points with v ≥ 0."""
    return np.array([*half, *((u, -v) for u, v in reversed(half))], np.float64)


def _bar(u0: float, v0: float, u1: float, v1: float) -> Points:
    return np.array([[u0, v0], [u1, v0], [u1, v1], [u0, v1]], np.float64)


class _Brush:
    """Draws in the frame of one box, supersampled, into a premultiplied RGBA patch."""

    def __init__(self, box: NDArray[np.float64], margin: int = 1) -> None:
        corners = _corners(box)
        low = np.floor(corners.min(0)).astype(int) - margin
        high = np.ceil(corners.max(0)).astype(int) + margin
        self.x, self.y = int(low[0]), int(low[1])
        self.size = (int(high[0] - low[0]), int(high[1] - low[1]))
        longest = max(box[2], box[3])
        self.scale = 4 if longest < 60 else 3 if longest < 130 else 2
        self.half = np.array([box[2], box[3]], np.float64) / 2
        self.angle = float(box[4])
        self.origin = (np.asarray(box[:2], np.float64) - low) * self.scale - 0.5
        self.rgba = np.zeros((self.size[1] * self.scale, self.size[0] * self.scale, 4), np.uint8)

    def _place(self, uv: ArrayLike) -> NDArray[np.int32]:
        points = _turn(np.asarray(uv, np.float64) * self.half, self.angle) * self.scale + self.origin
        return np.rint(points * 16).astype(np.int32)

    def fill(self, uv: ArrayLike, colour: Colour) -> None:
        """Polygon (N, 2) in u, v."""
        cv2.fillPoly(self.rgba, [self._place(uv)], (*_clip(colour), 255), shift=4)

    def line(self, uv: ArrayLike, colour: Colour, width: float = 1.0, closed: bool = False) -> None:
        """Polyline `width` pixels thick; it must stay inside the silhouette."""
        thickness = max(1, round(width * self.scale))
        cv2.polylines(
            self.rgba, [self._place(uv)], closed, (*_clip(colour), 255), thickness=thickness, shift=4
        )

    def patch(self) -> NDArray[np.uint8]:
        """(h, w, 4) at the scale of the image."""
        return cv2.resize(self.rgba, self.size, interpolation=cv2.INTER_AREA).astype(np.uint8)


def _clip(colour: Sequence[float]) -> tuple[int, int, int]:
    r, g, b = (int(min(255.0, max(0.0, value))) for value in colour)
    return r, g, b


def _shade(colour: Sequence[float], factor: float) -> Colour:
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def _jitter(rng: np.random.Generator, colour: Sequence[float], amount: float = 12) -> Colour:
    """A nearby colour: mostly lighter or darker, a little off in hue."""
    change = rng.normal(0, amount) + rng.normal(0, amount / 5, 3)
    return colour[0] + change[0], colour[1] + change[1], colour[2] + change[2]


def _pick(rng: np.random.Generator, colours: Sequence[Colour], amount: float = 10) -> Colour:
    return _jitter(rng, colours[int(rng.integers(len(colours)))], amount)


WHITES: tuple[Colour, ...] = ((236, 236, 232), (222, 224, 226), (212, 206, 196))
CAR_PAINTS: tuple[Colour, ...] = (
    (232, 232, 230), (232, 232, 230), (192, 195, 199), (148, 151, 156), (58, 60, 64), (36, 37, 41),
    (140, 34, 32), (38, 62, 112), (66, 84, 70), (176, 160, 128),
)  # fmt: skip
TRUCK_PAINTS: tuple[Colour, ...] = (
    (234, 234, 230), (228, 230, 232), (206, 206, 204), (158, 160, 160), (214, 168, 44), (166, 74, 48),
    (64, 92, 138), (196, 190, 176),
)  # fmt: skip
ROOFS: tuple[Colour, ...] = (
    (128, 78, 62), (104, 94, 88), (88, 86, 86), (150, 140, 128), (172, 116, 92), (78, 72, 70),
)  # fmt: skip
FLAT_ROOFS: tuple[Colour, ...] = ((186, 186, 182), (160, 160, 158), (204, 202, 196), (122, 124, 126))
COURTS: tuple[tuple[Colour, Colour], ...] = (
    ((62, 108, 72), (76, 92, 134)), ((66, 98, 76), (84, 124, 92)), ((54, 88, 118), (64, 106, 142)),
    ((150, 92, 66), (164, 104, 78)), ((74, 92, 88), (96, 116, 112)),
)  # fmt: skip


def _draw_plane(b: _Brush, rng: np.random.Generator) -> None:
    paint = _pick(rng, WHITES, 8)
    dark, light = _shade(paint, 0.72), _shade(paint, 1.12)
    body = 0.1
    kind = rng.random()
    if kind < 0.65:  # airliner: swept wings
        wing = [(0.26, 0.05), (-0.12, 1.0), (-0.24, 1.0), (-0.1, 0.05)]
        tail = [(-0.7, 0.03), (-0.92, 0.38), (-1.0, 0.38), (-0.93, 0.03)]
        engines = [(0.1, 0.34), (-0.01, 0.62)] if rng.random() < 0.4 else [(0.1, 0.36)]
    elif kind < 0.9:  # straight wings
        wing = [(0.34, 0.05), (0.26, 1.0), (0.06, 1.0), (0.0, 0.05)]
        tail = [(-0.74, 0.03), (-0.8, 0.36), (-0.98, 0.36), (-0.98, 0.03)]
        engines = [(0.36, 0.32)]
    else:  # delta
        wing = [(0.42, 0.05), (-0.62, 1.0), (-0.8, 1.0), (-0.72, 0.05)]
        tail = [(-0.72, 0.03), (-0.94, 0.34), (-1.0, 0.34), (-0.96, 0.03)]
        engines = []
        body = 0.12
    for u, v in engines:
        for side in (v, -v):
            b.fill(_arc(u, side, 0.09, 0.055), _shade(paint, 0.6))
    for shape in (wing, tail):
        b.fill(shape, _shade(paint, 0.94))
        b.fill([(u, -v) for u, v in shape], _shade(paint, 0.86))
        b.line([shape[2], shape[3]], dark, 0.6)
    hull = [(1.0, 0.0), (0.96, body * 0.5), (0.86, body * 0.9), (0.7, body), (-0.6, body), (-1.0, 0.025)]
    b.fill(_mirrored(hull), paint)
    b.fill([(0.9, 0.0), (0.7, body * 0.6), (-0.7, body * 0.45), (-0.7, 0.0)], light)
    b.fill(_bar(0.86, -body * 0.5, 0.91, body * 0.5), (52, 56, 66))
    stripe = _pick(rng, ((170, 40, 40), (40, 70, 140), (60, 60, 66), (205, 150, 40), (50, 120, 96)))
    b.fill(_bar(-0.97, -0.028, -0.66, 0.028), stripe)


def _draw_ship(b: _Brush, rng: np.random.Generator) -> None:
    hull = [(1.0, 0.0), (0.8, 0.52), (0.48, 1.0), (-0.86, 1.0), (-1.0, 0.86)]
    if max(b.half) < 45 or rng.random() < 0.3:  # boats
        paint = _pick(rng, WHITES, 8)
        b.fill(_mirrored(hull), paint)
        inner = [(0.78, 0.0), (0.6, 0.46), (0.36, 0.72), (-0.8, 0.72)]
        b.fill(_mirrored(inner), _pick(rng, ((206, 202, 190), (168, 146, 116), (190, 196, 204)), 8))
        b.fill(_bar(-0.42, -0.56, 0.3, 0.56), _shade(paint, 1.04))
        b.fill(_bar(0.16, -0.52, 0.34, 0.52), (52, 66, 86))
        if rng.random() < 0.5:
            b.fill(_bar(-0.9, -0.5, -0.5, 0.5), _pick(rng, ((110, 78, 52), (44, 70, 120), (90, 94, 98))))
    else:  # freighters: a deck with hatches and the bridge aft
        paint = _pick(rng, ((124, 56, 46), (56, 66, 78), (92, 96, 98), (60, 92, 80)))
        b.fill(_mirrored(hull), _shade(paint, 0.8))
        b.fill(_mirrored([(0.94, 0.0), (0.76, 0.44), (0.46, 0.84), (-0.94, 0.84)]), _shade(paint, 1.15))
        for start in np.arange(-0.5, 0.55, 0.26):
            b.fill(_bar(start, -0.62, start + 0.2, 0.62), _pick(rng, TRUCK_PAINTS))
        b.fill(_bar(-0.9, -0.74, -0.62, 0.74), (226, 226, 222))
        b.fill(_bar(-0.84, -0.3, -0.72, 0.3), _shade(paint, 0.7))


def _draw_car(b: _Brush, rng: np.random.Generator) -> None:
    paint = _pick(rng, CAR_PAINTS)
    body = [(1.0, 0.0), (1.0, 0.62), (0.9, 0.94), (0.7, 1.0), (-0.84, 1.0), (-1.0, 0.8)]
    b.fill(_mirrored(body), paint)
    glass = (34, 40, 48) if sum(paint) > 240 else (96, 106, 116)
    b.fill(_mirrored([(0.46, 0.7), (0.2, 0.62), (-0.52, 0.62), (-0.72, 0.7)]), glass)
    b.fill(_bar(-0.46, -0.66, 0.16, 0.66), _shade(paint, 1.1))


def _draw_truck(b: _Brush, rng: np.random.Generator) -> None:
    paint = _pick(rng, TRUCK_PAINTS)
    if rng.random() < 0.7:  # cab and trailer
        cab = _pick(rng, CAR_PAINTS)
        b.fill(_bar(0.5, -0.5, 0.8, 0.5), (40, 40, 42))
        b.fill(_mirrored([(1.0, 0.7), (0.94, 0.92), (0.68, 0.92)]), cab)
        b.fill(_bar(0.86, -0.74, 0.93, 0.74), (36, 42, 50))
        b.fill(_bar(-1.0, -1.0, 0.63, 1.0), paint)
        b.fill(_bar(-0.97, -0.9, 0.6, -0.1), _shade(paint, 1.07))
        for u in np.arange(-0.8, 0.6, 0.28):
            b.line([(u, -0.86), (u, 0.86)], _shade(paint, 0.9), 0.5)
    else:  # bus
        b.fill(_mirrored([(1.0, 0.8), (0.96, 1.0), (-0.97, 1.0), (-1.0, 0.9)]), paint)
        b.fill(_bar(0.92, -0.78, 0.97, 0.78), (40, 46, 54))
        b.fill(_bar(-0.92, -0.72, 0.84, 0.72), _shade(paint, 1.08))
        for u in (-0.6, 0.0, 0.5):
            b.fill(_bar(u, -0.34, u + 0.16, 0.34), _shade(paint, 0.78))


def _draw_tank(b: _Brush, rng: np.random.Generator) -> None:
    paint = _pick(rng, ((232, 232, 228), (214, 216, 216), (196, 192, 182), (150, 126, 108)), 8)
    b.fill(_arc(0, 0, 1, 1), _shade(paint, 0.78))
    if rng.random() < 0.6:  # cone roof: lit from one side
        b.fill(_arc(0, 0, 0.93, 0.93), paint)
        start = float(rng.uniform(0, 360))
        for step, factor in ((0, 0.9), (40, 0.84), (80, 0.9)):
            wedge = np.concatenate([[[0.0, 0.0]], _arc(0, 0, 0.92, 0.92, start + step, start + step + 40)])
            b.fill(wedge, _shade(paint, factor))
        b.fill(_arc(0, 0, 0.1, 0.1), _shade(paint, 0.7))
    else:  # floating roof: sunk, in the wall's shadow
        b.fill(_arc(0, 0, 0.9, 0.9), _shade(paint, 0.5))
        b.fill(_arc(0.1, 0.1, 0.76, 0.76), _shade(paint, 0.86))
    b.line([(0.0, 0.0), (0.66, 0.6)], _shade(paint, 0.62), 0.8)


def _draw_tennis(b: _Brush, rng: np.random.Generator) -> None:
    outside, inside = COURTS[int(rng.integers(len(COURTS)))]
    change = float(rng.uniform(0.88, 1.12))
    b.fill(_bar(-1, -1, 1, 1), _shade(outside, change))
    u, v, w = 0.7, 0.66, max(0.7, float(b.half[0]) * 0.012)
    b.fill(_bar(-u, -v, u, v), _shade(inside, change))
    white = (226, 230, 226)
    b.line(_bar(-u, -v, u, v), white, w, closed=True)
    for side in (-v * 0.75, v * 0.75):
        b.line([(-u, side), (u, side)], white, w)
    for across in (-u * 0.54, u * 0.54):
        b.line([(across, -v * 0.75), (across, v * 0.75)], white, w)
    b.line([(-u * 0.54, 0), (u * 0.54, 0)], white, w)
    b.line([(0, -v * 1.1), (0, v * 1.1)], (44, 50, 48), w * 1.2)


def _draw_basketball(b: _Brush, rng: np.random.Generator) -> None:
    ground = _pick(rng, ((178, 132, 88), (150, 78, 62), (96, 116, 136), (122, 122, 118)))
    key = _pick(rng, ((146, 66, 54), (60, 92, 132), (84, 112, 84)))
    b.fill(_bar(-1, -1, 1, 1), ground)
    w, white = max(0.7, float(b.half[0]) * 0.014), (226, 226, 220)
    b.line(_bar(-0.92, -0.88, 0.92, 0.88), white, w, closed=True)
    b.line([(0, -0.88), (0, 0.88)], white, w)
    b.line(_arc(0, 0, 0.13, 0.24), white, w, closed=True)
    for side in (-1, 1):
        b.fill(_bar(side * 0.92, -0.3, side * 0.54, 0.3), key)
        turn = 90 if side > 0 else -90
        b.line(_arc(side * 0.8, 0, 0.42, 0.76, turn, turn + 180), white, w)


def _mow(b: _Brush, grass: Colour, u0: float, u1: float, v: float, stripes: int = 10) -> None:
    edges = np.linspace(u0, u1, stripes + 1)
    for i in range(stripes):
        b.fill(_bar(edges[i], -v, edges[i + 1], v), _shade(grass, 1.06 if i % 2 else 0.96))


def _draw_soccer(b: _Brush, rng: np.random.Generator) -> None:
    grass = _pick(rng, ((82, 118, 62), (98, 124, 70), (70, 106, 62)), 8)
    b.fill(_bar(-1, -1, 1, 1), grass)
    _mow(b, grass, -0.98, 0.98, 0.98)
    w, white = max(0.8, float(b.half[0]) * 0.007), (224, 230, 218)
    b.line(_bar(-0.96, -0.94, 0.96, 0.94), white, w, closed=True)
    b.line([(0, -0.94), (0, 0.94)], white, w)
    b.line(_arc(0, 0, 0.18, 0.28), white, w, closed=True)
    for side in (-0.96, 0.96):
        b.line(_bar(side, -0.56, side * 0.68, 0.56), white, w, closed=True)
        b.line(_bar(side, -0.26, side * 0.88, 0.26), white, w, closed=True)


def _draw_track(b: _Brush, rng: np.random.Generator) -> None:
    track = _pick(rng, ((158, 82, 62), (146, 92, 76), (96, 104, 122)), 8)
    grass = _pick(rng, ((84, 118, 62), (108, 126, 76)), 8)
    ends = float(b.half[1] / b.half[0])

    def stadium(r: float) -> Points:
        centre, ru = 1 - ends, ends * r
        return np.concatenate([_arc(centre, 0, ru, r, -90, 90), _arc(-centre, 0, ru, r, 90, 270)])

    b.fill(stadium(1.0), track)
    for r in (0.94, 0.87, 0.8):
        b.line(stadium(r), _shade(track, 1.35), 0.6, closed=True)
    b.fill(stadium(0.72), grass)
    _mow(b, grass, -(1 - ends), 1 - ends, 0.64, 8)
    b.line(_bar(-(1 - ends), -0.62, 1 - ends, 0.62), (222, 228, 216), 0.8, closed=True)


def _draw_baseball(b: _Brush, rng: np.random.Generator) -> None:
    grass = _pick(rng, ((88, 122, 64), (108, 130, 76)), 8)
    dirt = _pick(rng, ((176, 136, 98), (160, 116, 84)), 8)
    home = [[-1.0, -1.0]]
    b.fill(np.concatenate([home, _arc(-1, -1, 2, 2, 0, 90)]), grass)
    b.fill(np.concatenate([home, _arc(-1, -1, 1.05, 1.05, 0, 90)]), dirt)
    b.fill(_bar(-0.84, -0.84, -0.3, -0.3), grass)
    b.fill(_arc(-0.57, -0.57, 0.1, 0.1), dirt)
    for end in ((0.94, -0.97), (-0.97, 0.94)):
        b.line([(-0.97, -0.97), end], (226, 222, 212), 0.8)


def _draw_roundabout(b: _Brush, rng: np.random.Generator) -> None:
    asphalt = _jitter(rng, (104, 104, 102), 6)
    b.fill(_arc(0, 0, 1, 1), asphalt)
    b.line(_arc(0, 0, 0.96, 0.96), (196, 196, 190), 0.8, closed=True)
    b.fill(_arc(0, 0, 0.58, 0.58), (186, 182, 172))
    b.fill(_arc(0, 0, 0.52, 0.52), _jitter(rng, (92, 116, 66), 8))
    b.fill(_arc(0, 0, 0.2, 0.2), _jitter(rng, (60, 86, 48), 8))


def _draw_pier(b: _Brush, rng: np.random.Generator) -> None:
    deck = _pick(rng, ((176, 168, 152), (150, 132, 110), (190, 188, 182)), 8)
    b.fill(_bar(-1, -1, 1, 1), deck)
    step = 2.0 / max(6, int(b.half[0] / 4))
    for u in np.arange(-1 + step, 1 - step / 2, step):
        b.line([(u, -0.8), (u, 0.8)], _shade(deck, 0.88), 0.4)
    for v in (-0.78, 0.78):
        b.line([(-0.98, v), (0.98, v)], _shade(deck, 1.12), 0.6)


def _draw_bridge(b: _Brush, rng: np.random.Generator) -> None:
    deck = _jitter(rng, (122, 120, 116), 8)
    b.fill(_bar(-1, -1, 1, 1), _shade(deck, 1.5))
    b.fill(_bar(-1, -0.8, 1, 0.8), deck)
    for u in np.arange(-0.94, 0.94, 0.16):
        b.line([(u, 0), (u + 0.08, 0)], (214, 204, 160), 0.7)
    for u in (-0.97, 0.93):
        b.fill(_bar(u, -0.98, u + 0.04, 0.98), _shade(deck, 0.7))


def _draw_pool(b: _Brush, rng: np.random.Generator) -> None:
    water = _pick(rng, ((72, 172, 204), (96, 188, 210), (62, 150, 190)), 8)
    if rng.random() < 0.6:
        r = 0.25

        def outline(s: float) -> Points:
            return np.array([
                (s, -s + r), (s - r, -s), (-s + r, -s), (-s, -s + r),
                (-s, s - r), (-s + r, s), (s - r, s), (s, s - r),
            ])  # fmt: skip
    else:  # kidney
        t = np.linspace(0, 2 * math.pi, 40, endpoint=False)
        bean = np.stack([np.cos(t) * (1 + 0.2 * np.cos(2 * t)), np.sin(t) - 0.34 * np.cos(t) ** 2], -1)
        bean -= (bean.max(0) + bean.min(0)) / 2
        bean /= bean.max(0)

        def outline(s: float) -> Points:
            return bean * s

    b.fill(outline(1.0), (222, 216, 204))
    b.fill(outline(0.84), _shade(water, 0.86))
    b.fill(outline(0.7) + np.array([0.03, 0.04]), water)


def _draw_helicopter(b: _Brush, rng: np.random.Generator) -> None:
    paint = _pick(rng, ((70, 82, 60), (206, 206, 200), (168, 44, 40), (44, 60, 100)))
    b.fill(_bar(-0.98, -0.05, 0.2, 0.05), _shade(paint, 0.9))
    b.fill(_bar(-1.0, -0.24, -0.92, 0.24), _shade(paint, 0.8))
    b.fill(_arc(0.26, 0, 0.4, 0.24), paint)
    b.fill(_arc(0.5, 0, 0.13, 0.15), (44, 52, 62))
    blade = 0.035
    for bar in (_bar(-0.5, -blade, 1.0, blade), _bar(0.25 - blade * 0.75, -1, 0.25 + blade * 0.75, 1)):
        b.fill(bar, (46, 48, 50))
    b.fill(_arc(0.25, 0, 0.05, 0.07), (60, 62, 64))


def _draw_house(b: _Brush, rng: np.random.Generator) -> None:
    roof = _pick(rng, ROOFS)
    b.fill(_bar(-1, -1, 1, 0), _shade(roof, 1.12))
    b.fill(_bar(-1, 0, 1, 1), _shade(roof, 0.8))
    if rng.random() < 0.5:  # hipped
        b.fill([(-1, -1), (-0.55, 0), (-1, 1)], _shade(roof, 0.92))
        b.fill([(1, -1), (0.55, 0), (1, 1)], _shade(roof, 1.02))
    b.line([(-0.55, 0), (0.55, 0)], _shade(roof, 1.3), 0.6)
    b.fill(_bar(0.3, -0.55, 0.42, -0.3), _shade(roof, 0.6))


def _draw_hall(b: _Brush, rng: np.random.Generator) -> None:
    roof = _pick(rng, FLAT_ROOFS)
    b.fill(_bar(-1, -1, 1, 1), _shade(roof, 0.8))
    b.fill(_bar(-0.96, -0.95, 0.96, 0.95), roof)
    if rng.random() < 0.5:
        b.fill(_bar(-0.96, 0, 0.96, 0.95), _shade(roof, 0.9))
    for _ in range(int(rng.integers(2, 7))):
        u, v = rng.uniform(-0.8, 0.75, 2)
        b.fill(_bar(u, v, u + 0.07, v + 0.12), _shade(roof, float(rng.choice([0.6, 1.25]))))


def _draw_container(b: _Brush, rng: np.random.Generator) -> None:
    paint = _pick(rng, ((156, 72, 50), (60, 88, 132), (150, 150, 146), (96, 112, 84), (186, 140, 60)))
    b.fill(_bar(-1, -1, 1, 1), paint)
    for v in (-0.5, 0, 0.5):
        b.line([(-0.95, v), (0.95, v)], _shade(paint, 0.84), 0.5)


def _draw_panel(b: _Brush, rng: np.random.Generator) -> None:
    b.fill(_bar(-1, -1, 1, 1), (44, 54, 82))
    for u in np.arange(-0.8, 0.9, 0.2):
        b.line([(u, -0.9), (u, 0.9)], (86, 96, 120), 0.4)


def _draw_tent(b: _Brush, rng: np.random.Generator) -> None:
    b.fill(_bar(-1, -1, 1, 1), (206, 208, 204))
    b.fill(_bar(-1, -1, 1, -0.2), (228, 230, 228))


def _draw_bale(b: _Brush, rng: np.random.Generator) -> None:
    paint = _jitter(rng, (190, 170, 116), 10)
    b.fill(_arc(0, 0, 1, 1), _shade(paint, 0.85))
    b.fill(_arc(-0.1, -0.1, 0.7, 0.7), paint)


def _draw_tree(b: _Brush, rng: np.random.Generator) -> None:
    leaf = _pick(rng, ((52, 74, 38), (62, 84, 46), (74, 88, 48), (46, 66, 42)), 7)
    t = np.linspace(0, 2 * math.pi, 18, endpoint=False)
    ragged = np.stack([np.cos(t), np.sin(t)], -1) * rng.uniform(0.8, 1.0, (18, 1))
    b.fill(ragged, _shade(leaf, 0.74))
    for size, factor in ((0.72, 0.95), (0.46, 1.18), (0.24, 1.36)):
        turned = np.roll(ragged, int(rng.integers(18)), 0)
        b.fill(turned * size - (1 - size) * 0.34, _shade(leaf, factor))


_Draw = Callable[[_Brush, np.random.Generator], None]
_DRAW: dict[str, _Draw] = {
    "plane": _draw_plane,
    "baseball-diamond": _draw_baseball,
    "bridge": _draw_bridge,
    "ground-track-field": _draw_track,
    "small-vehicle": _draw_car,
    "large-vehicle": _draw_truck,
    "ship": _draw_ship,
    "tennis-court": _draw_tennis,
    "basketball-court": _draw_basketball,
    "storage-tank": _draw_tank,
    "soccer-ball-field": _draw_soccer,
    "roundabout": _draw_roundabout,
    "harbor": _draw_pier,
    "swimming-pool": _draw_pool,
    "helicopter": _draw_helicopter,
    "house": _draw_house,
    "hall": _draw_hall,
    "container": _draw_container,
    "panel": _draw_panel,
    "tent": _draw_tent,
    "bale": _draw_bale,
    "tree": _draw_tree,
}
# Metres above the ground, for the shadow; 0 where there is none.
_TALL = {
    "plane": 4.0, "small-vehicle": 1.4, "large-vehicle": 3.2, "ship": 2.0, "storage-tank": 8.0, "bridge": 5.0,
    "harbor": 1.0, "helicopter": 3.0, "house": 5.0, "hall": 8.0, "container": 2.8, "panel": 1.5, "tent": 3.0,
    "bale": 1.4, "tree": 6.0,
}  # fmt: skip


# ----------------------------------------------------------------------------------------- layout


@dataclass
class _Item:
    """One thing to draw: a class of objects or a kind of clutter, in pixels."""

    kind: str
    box: NDArray[np.float64]


@dataclass
class _Group:
    """Things that stand together, around the origin, in pixels: a car park, a marina, a tank farm."""

    width: float
    height: float
    place: str = "land"  # "land", "water" or "shore": x is seaward there and x = −width/2 the shore
    pads: list[tuple[Points, str]] = field(default_factory=list)
    marks: list[tuple[Points, Colour, float]] = field(default_factory=list)
    items: list[_Item] = field(default_factory=list)

    def add(self, kind: str, x: float, y: float, w: float, h: float, angle: float = 0.0) -> None:
        self.items.append(_Item(kind, np.array([x, y, w, h, angle])))

    def pad(self, material: str, margin: float = 0.0) -> None:
        """Ground of one material under the whole group."""
        self.pads.append((_corners((0, 0, self.width + 2 * margin, self.height + 2 * margin, 0)), material))

    def mark(self, points: ArrayLike, colour: Colour = (205, 205, 198), width: float = 1.0) -> None:
        self.marks.append((np.asarray(points, np.float64), colour, width))


# Base colour and strength of the texture of each kind of ground.
_MATERIALS: dict[str, tuple[Colour, float]] = {
    "grass": ((104, 112, 76), 26),
    "meadow": ((128, 130, 86), 26),
    "soil": ((148, 126, 98), 24),
    "forest": ((62, 78, 46), 34),
    "sand": ((186, 170, 138), 18),
    "asphalt": ((92, 93, 94), 12),
    "worn": ((122, 120, 114), 18),
    "concrete": ((172, 170, 162), 12),
    "lawn": ((98, 115, 72), 18),
    "water": ((48, 82, 88), 9),
}
_INDEX = {name: index for index, name in enumerate(_MATERIALS)}


class _World:
    """A scene in the making: what lies where, before anything is drawn."""

    def __init__(self, settings: Settings, height: int, width: int, rng: np.random.Generator) -> None:
        self.level = DIFFICULTIES[settings.difficulty]
        self.classes = settings.classes
        self.height, self.width, self.rng = height, width, rng
        low, high = self.level.pixels_per_metre
        self.ppm = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        self.axis = float(rng.uniform(0, 2 * math.pi))
        self.longest = min(LONGEST, 0.55 * min(height, width))
        self.lenient = settings.difficulty != "easy"
        self.footprints = np.zeros((0, 5))
        self.taken = np.zeros((height, width), np.uint8)
        self.room = 0.75 * min(height, width)  # the longest side of a group; it shrinks as a scene fills up
        self.ground = np.full((height, width), _INDEX["grass"], np.uint8)
        self.shore: tuple[Points, float, Callable[[Points], Points]] | None = None
        self.marks: list[tuple[Points, Colour, float]] = []
        self.items: list[_Item] = []
        self.trees: list[_Item] = []

    def metres(self, low: float, high: float) -> float:
        """A length between `low` and `high` metres, in pixels."""
        return float(self.rng.uniform(low, high)) * self.ppm

    def paint(self, polygon: Points, material: str, land_only: bool = False) -> None:
        """Ground of `material` in the polygon (N, 2)."""
        points = [np.rint((polygon - 0.5) * 16).astype(np.int32)]
        if land_only:
            before = self.ground == _INDEX["water"]
        cv2.fillPoly(self.ground, points, _INDEX[material], shift=4)
        if land_only:
            self.ground[before] = _INDEX["water"]

    def is_water(self, points: Points) -> NDArray[np.bool_]:
        """(N,) whether the points (N, 2) lie on water; outside the image the border goes on."""
        column = np.clip(points[:, 0].astype(int), 0, self.width - 1)
        row = np.clip(points[:, 1].astype(int), 0, self.height - 1)
        return self.ground[row, column] == _INDEX["water"]

    def on(self, place: str, box: NDArray[np.float64]) -> bool:
        """Whether the box lies on land or on water entirely."""
        return bool((self.is_water(_samples(box)) == (place == "water")).all())

    def claim(self, box: NDArray[np.float64]) -> None:
        """Nothing else is to be built on `box`."""
        self.footprints = np.concatenate([self.footprints, box[None]])
        cv2.fillPoly(self.taken, [np.rint(_corners(box) * 16).astype(np.int32)], 1, shift=4)

    def _poses(self, group: _Group, count: int) -> NDArray[np.float64]:
        """(count, 3) random `x, y, θ` for a group."""
        rng = self.rng
        if self.shore is not None and group.place == "shore":
            origin, angle, offset = self.shore
            reach = (self.width + self.height) / 2
            along = rng.uniform(-reach, reach, count)
            local = np.stack([along, offset(along) + group.width / 2 - 3], -1)
            return np.column_stack([_turn(local, angle) + origin, np.full(count, angle + math.pi / 2)])
        centres = rng.uniform((0, 0), (self.width, self.height), (count, 2))
        square = self.axis + math.pi / 2 * rng.integers(4, size=count)
        free = rng.uniform(0, 2 * math.pi, count)
        return np.column_stack([centres, np.where(rng.random(count) < 0.3, free, square)])

    def try_group(self, group: _Group, tries: int = 64) -> bool:
        """Put the group somewhere; False if there was no room."""
        if group.place == "shore" and self.shore is None:
            return False
        gap = 0.8 * self.ppm + 2
        pose = self._poses(group, tries)
        size = np.array([group.width + gap, group.height + gap])
        # First the centres of all poses, then a coarse grid of points; only what passes is tested exactly.
        column = np.clip(pose[:, 0].astype(np.int64), 0, self.width - 1)
        row = np.clip(pose[:, 1].astype(np.int64), 0, self.height - 1)
        likely = self.taken[row, column] == 0
        if group.place != "shore":
            likely &= (self.ground[row, column] == _INDEX["water"]) == (group.place == "water")
        pose = pose[likely]
        if not len(pose):
            return False
        cos, sin = np.cos(pose[:, 2])[:, None], np.sin(pose[:, 2])[:, None]
        u, v = (_GRID[::9] * size / 2).T
        x = (pose[:, :1] + u * cos - v * sin).astype(np.int64)
        y = (pose[:, 1:2] + u * sin + v * cos).astype(np.int64)
        seen = (x >= 0) & (x < self.width) & (y >= 0) & (y < self.height)
        np.clip(x, 0, self.width - 1, out=x)
        np.clip(y, 0, self.height - 1, out=y)
        good = ~((self.taken[y, x] > 0) & seen).any(1)
        good &= seen.mean(1) >= (0.85 if self.lenient and size.min() > 80 else 0.99)
        if group.place != "shore":
            good &= ((self.ground[y, x] == _INDEX["water"]) == (group.place == "water")).all(1)
        for k in np.flatnonzero(good):
            box = np.array([*pose[k, :2], *size, pose[k, 2]])
            exact = group.place == "shore" or self.on(group.place, box)
            if exact and _apart(box, self.footprints):
                self.claim(box)
                self._settle(group, pose[k, :2], float(pose[k, 2]))
                return True
        return False

    def _settle(self, group: _Group, centre: Points, turn: float) -> None:
        for polygon, material in group.pads:
            self.paint(_turn(polygon, turn) + centre, material)
        for points, colour, width in group.marks:
            self.marks.append((_turn(points, turn) + centre, colour, width))
        for item in group.items:
            box = item.box.copy()
            box[:2] = _turn(box[:2], turn) + centre
            box[4] = 0.0 if item.kind in ROUND else box[4] + turn
            self.items.append(_Item(item.kind, box))


def _size(world: _World, low: float, high: float, aspect: tuple[float, float]) -> tuple[float, float]:
    """Length and breadth in pixels for a length in metres and a range of length : breadth."""
    length = min(world.metres(low, high), max(world.metres(low, low), world.room), world.longest)
    return length, length / float(world.rng.uniform(*aspect))


def _vehicle_size(world: _World, kind: str) -> tuple[float, float]:
    near = world.level.van_like
    if kind == "small-vehicle":
        return _size(world, 4.2, 5.2 + 1.8 * near, (2.1, 2.5))
    return _size(world, 9.0 - 2.2 * near, 17.0 - 2 * near, (3.2 - 0.5 * near, 5.2))


def _parking(world: _World, kind: str) -> _Group:
    """Rows of stalls, nose to nose, with an aisle between."""
    rng = world.rng
    length, breadth = _vehicle_size(world, kind)
    aisle = length * float(rng.uniform(0.9, 1.4))
    pitch = breadth * float(rng.uniform(1.3, 1.7))
    deep, wide = length * 1.18, pitch
    small = kind == "small-vehicle"
    rows = int(rng.integers(2, 5 if small else 4))
    columns = int(rng.integers(5, 15) if small else rng.integers(3, 8))
    columns = max(2, min(columns, int(world.room / wide)))
    rows = max(1, min(rows, int(world.room / (deep + aisle / 2))))
    pairs = (rows + 1) // 2
    total = rows * deep + pairs * aisle
    group = _Group(columns * wide + breadth * 2, total + breadth)
    group.pad(str(rng.choice(["asphalt", "asphalt", "worn"])))
    filled = float(rng.uniform(0.45, 0.95))
    y = -total / 2 + aisle / 2
    for row in range(rows):
        x0 = -columns * wide / 2
        for column in range(columns + 1):
            x = x0 + column * wide
            group.mark([(x, y), (x, y + deep)], (196, 196, 188), 0.7)
        for column in range(columns):
            if rng.random() < filled:
                nose = math.pi / 2 if rng.random() < 0.6 else -math.pi / 2
                w = length * float(rng.uniform(0.92, 1.04))
                h = breadth * float(rng.uniform(0.94, 1.04))
                x = x0 + (column + 0.5) * wide + float(rng.normal(0, 0.02)) * wide
                group.add(kind, x, y + deep / 2 + float(rng.normal(0, 0.02)) * deep, w, h,
                          nose + float(rng.normal(0, 0.025)))  # fmt: skip
        y += deep + (aisle if row % 2 else 0)
    return group


def _apron(world: _World) -> _Group:
    """Planes side by side on concrete, with yellow lead-in lines."""
    rng = world.rng
    span = min(world.metres(12, 30), max(world.metres(12, 12), world.room / 1.9), world.longest * 0.8)
    count = int(rng.integers(1, max(1, min(4, int(world.room / span))) + 1))
    pitch = span * 1.25
    group = _Group(count * pitch + 6, span * 1.6)
    group.pad(str(rng.choice(["concrete", "worn", "asphalt"])))
    yellow = (206, 176, 70)
    group.mark([(-group.width / 2, -span * 0.7), (group.width / 2, -span * 0.7)], yellow, 1.2)
    heading = math.pi / 2 * float(rng.choice([-1, 1]))
    for i in range(count):
        x = (i - (count - 1) / 2) * pitch
        group.mark([(x, -span * 0.7), (x, span * 0.6)], yellow, 1.0)
        if count == 1 or rng.random() < 0.85:
            length = span * float(rng.uniform(0.9, 1.12))
            breadth = length / float(rng.uniform(1.04, 1.3))
            group.add("plane", x, span * float(rng.uniform(0.02, 0.14)), length, breadth,
                      heading + float(rng.normal(0, 0.06)))  # fmt: skip
    return group


def _courts(world: _World, kind: str) -> _Group:
    """Courts side by side."""
    rng = world.rng
    if kind == "tennis-court":
        w, h = _size(world, 26, 32, (1.9, 2.15))
    else:
        w, h = _size(world, 24, 30, (1.65, 1.95))
    most = int(world.room / (h * 1.1))
    count = int(rng.integers(1, max(1, min(4, most)) + 1))
    group = _Group(w * 1.12, count * h * 1.1 + h * 0.1)
    group.pad(str(rng.choice(["worn", "lawn", "asphalt"])))
    for i in range(count):
        group.add(kind, 0, (i - (count - 1) / 2) * h * 1.1, w, h, float(rng.choice([0, math.pi])))
    return group


def _tank_farm(world: _World) -> _Group:
    rng = world.rng
    diameter = min(world.metres(8, 24), max(world.metres(8, 8), world.room / 1.6), world.longest * 0.6)
    pitch = diameter * float(rng.uniform(1.3, 1.6))
    most = max(1, int(world.room / pitch))
    columns, rows = (int(rng.integers(1, min(k, most) + 1)) for k in (5, 3))
    group = _Group(columns * pitch, rows * pitch)
    group.pad(str(rng.choice(["soil", "worn", "concrete"])))
    for i in range(columns):
        for j in range(rows):
            if columns * rows == 1 or rng.random() < 0.88:
                d = diameter * float(rng.uniform(0.7, 1.05))
                x, y = (i - (columns - 1) / 2) * pitch, (j - (rows - 1) / 2) * pitch
                group.add("storage-tank", x, y, d, d)
    group.mark([(-group.width / 2, 0), (group.width / 2, 0)], (146, 140, 130), 1.2)
    return group


def _marina(world: _World) -> _Group:
    """A pier out from the shore with ships on both sides, bows out or in."""
    rng = world.rng
    length, breadth = _size(world, 36, 80, (5.5, 8.0))
    ship, beam = _size(world, 7, 14, (2.6, 3.6))
    docked = "ship" in world.classes
    pier = "harbor" in world.classes
    deep = ship * 1.12 if docked else breadth
    group = _Group(length, breadth + 2 * deep, place="shore")
    if pier:
        group.add("harbor", 0, 0, length, breadth)
    elif docked:  # moored to a jetty that is too narrow to count
        breadth = max(2.0, 0.8 * world.ppm)
        group.mark([(-length / 2, 0), (length / 2, 0)], (168, 156, 136), breadth)
    pitch = beam * float(rng.uniform(1.25, 1.7))
    if docked:
        for side in (-1, 1):
            for x in np.arange(-length / 2 + 0.16 * length + pitch, length / 2 - pitch / 2, pitch):
                if rng.random() < 0.8:
                    size = float(rng.uniform(0.8, 1.0))
                    y = side * (breadth / 2 + 2 + ship * size / 2)
                    heading = side * math.pi / 2 * (1 if rng.random() < 0.7 else -1)
                    group.add("ship", float(x), y, ship * size, beam * size, heading)
    return group


def _at_sea(world: _World) -> _Group:
    """One ship under way, or at anchor, with its wake."""
    rng = world.rng
    length, breadth = _size(world, 8, 46, (2.8, 5.5))
    group = _Group(length * 1.3, breadth * 2.2, place="water")
    if rng.random() < 0.5:
        foam = (150, 168, 168)
        for side in (-1, 1):
            group.mark([(0.2 * length, side * breadth * 0.5), (-0.85 * length, side * breadth)], foam, 1.2)
        group.mark([(-0.5 * length, 0), (-1.1 * length, 0)], foam, breadth * 0.22)
    group.add("ship", 0, 0, length, breadth)
    return group


def _single(world: _World, kind: str) -> _Group:
    """One large thing on its own ground."""
    rng = world.rng
    sizes: dict[str, tuple[float, float, tuple[float, float], str]] = {
        "soccer-ball-field": (60, 105, (1.4, 1.7), "lawn"),
        "ground-track-field": (90, 170, (1.8, 2.3), "lawn"),
        "baseball-diamond": (34, 70, (1.0, 1.05), "meadow"),
        "helicopter": (10, 18, (1.25, 1.45), "concrete"),
        "roundabout": (24, 46, (1.0, 1.0), "grass"),
    }
    low, high, aspect, material = sizes[kind]
    w, h = _size(world, low, high, aspect)
    free = kind in ("helicopter", "roundabout")
    group = _Group(w * 1.5, w * 1.5) if free else _Group(w * 1.08, h * 1.1)
    group.pad(material)
    if kind == "helicopter":
        group.mark(_arc(0, 0, w * 0.68, w * 0.68), (222, 214, 150), 1.4)
    if kind == "roundabout":
        arms = int(rng.integers(2, 5))
        road = w * 0.26
        for k in range(arms):
            angle = k * math.pi / 2
            group.pads.append((_turn(_corners((w * 0.6, 0, w * 0.3, road, 0)), angle), "asphalt"))
    group.add(kind, 0, 0, w, h)
    return group


def _suburb(world: _World) -> _Group:
    """Houses in a row, each with a garden: a pool, a car on the drive, trees."""
    rng = world.rng
    lot, deep = 17 * world.ppm, 26 * world.ppm
    most = max(1, int(world.room / lot))
    count = int(rng.integers(1, min(5, most) + 1))
    group = _Group(count * lot, deep)
    group.pad("lawn")
    for i in range(count):
        x = (i - (count - 1) / 2) * lot
        w, h = world.metres(10, 13), world.metres(7, 9)
        group.add("house", x, -0.16 * deep, w, h, float(rng.choice([0.0, math.pi])))
        group.mark([(x - lot / 2, -deep / 2), (x - lot / 2, deep / 2)], (120, 110, 92), 0.8)
        if "swimming-pool" in world.classes and rng.random() < 0.75:
            pool, breadth = _size(world, 8, 12, (1.5, 2.2))
            pad = _corners((x, 0.27 * deep, pool * 1.25, breadth * 1.5, 0))
            group.pads.append((pad, "concrete"))
            group.add("swimming-pool", x, 0.27 * deep, pool, breadth, float(rng.choice([0, math.pi])))
        if "small-vehicle" in world.classes and rng.random() < 0.5:
            length, breadth = _vehicle_size(world, "small-vehicle")
            drive = _corners((x - lot * 0.3, -0.42 * deep, breadth * 1.6, 0.16 * deep, 0))
            group.pads.append((drive, "concrete"))
            if length < 0.16 * deep * 1.4:
                group.add("small-vehicle", x - lot * 0.3, -0.5 * deep + length * 0.56, length, breadth,
                          math.pi / 2 * float(rng.choice([-1, 1])))  # fmt: skip
    return group


def _works(world: _World) -> _Group:
    """A factory or store: one or two flat roofs on a paved yard."""
    rng = world.rng
    w, h = world.metres(14, 36), world.metres(10, 20)
    count = 2 if rng.random() < 0.4 and world.room > 2.4 * h else 1
    group = _Group(w * 1.2, count * h * 1.25)
    group.pad(str(rng.choice(["worn", "concrete", "asphalt"])))
    for i in range(count):
        part = float(rng.uniform(0.6, 1.0)) if i else 1.0
        group.add("hall", (part - 1) * w / 2, (i - (count - 1) / 2) * h * 1.25, w * part, h)
    return group


def _clutter(world: _World) -> _Group:
    """Something that is no object, though it may look like one."""
    rng = world.rng
    kind = str(rng.choice(["hall", "hall", "container", "panel", "tent", "bale", "house", "bare"]))
    if kind in ("hall", "house"):
        w, h = world.metres(16, 44), world.metres(11, 22)
        group = _Group(w * 1.25, h * 1.4)
        group.pad(str(rng.choice(["worn", "concrete", "asphalt", "lawn"])))
        group.add(kind, 0, 0, w, h)
        return group
    if kind == "bare":  # a court without lines
        w, h = _size(world, 20, 34, (1.5, 2.1))
        group = _Group(w, h)
        group.pad(str(rng.choice(["lawn", "soil", "concrete", "sand"])))
        return group
    w, h, material = {
        "container": (12.2, 2.5, "worn"),
        "panel": (float(rng.uniform(8, 20)), 2.2, "meadow"),
        "tent": (float(rng.uniform(14, 30)), 6.0, "soil"),
        "bale": (1.9, 1.9, "meadow"),
    }[kind]
    w, h = w * world.ppm, h * world.ppm
    columns, rows = int(rng.integers(1, 4)), int(rng.integers(2, 6))
    sparse = 4.0 if kind == "bale" else 1.15 if kind == "container" else 1.5
    group = _Group(columns * w * sparse, rows * h * sparse)
    group.pad(material, 0.4 * h)
    for i in range(columns):
        for j in range(rows):
            if rng.random() < 0.8:
                x, y = (i - (columns - 1) / 2) * w * sparse, (j - (rows - 1) / 2) * h * sparse
                group.add(kind, x, y, w, h, float(rng.normal(0, 0.02)))
    return group


_MAKERS: dict[str, Callable[[_World], _Group]] = {
    "plane": _apron,
    "baseball-diamond": lambda world: _single(world, "baseball-diamond"),
    "ground-track-field": lambda world: _single(world, "ground-track-field"),
    "small-vehicle": lambda world: _parking(world, "small-vehicle"),
    "large-vehicle": lambda world: _parking(world, "large-vehicle"),
    "ship": lambda world: _at_sea(world) if world.rng.random() < 0.6 else _marina(world),
    "tennis-court": lambda world: _courts(world, "tennis-court"),
    "basketball-court": lambda world: _courts(world, "basketball-court"),
    "storage-tank": _tank_farm,
    "soccer-ball-field": lambda world: _single(world, "soccer-ball-field"),
    "roundabout": lambda world: _single(world, "roundabout"),
    "harbor": _marina,
    "swimming-pool": _suburb,
    "helicopter": lambda world: _single(world, "helicopter"),
}

# How often a class is built, so that the classes' counts of objects do not differ too much.
_SHARE = {"plane": 3.0, "small-vehicle": 1.2, "tennis-court": 2.0, "storage-tank": 1.3, "ship": 1.5}


def _coast(world: _World) -> None:
    """Water on one side of a wavy shore."""
    rng = world.rng
    angle = float(rng.uniform(0, 2 * math.pi))
    centre = np.array([world.width, world.height]) / 2
    extent = abs(math.sin(angle)) * world.width + abs(math.cos(angle)) * world.height
    origin = centre + _turn((0, extent * float(rng.uniform(-0.16, 0.2))), angle)
    waves = [(rng.uniform(2, 7), rng.uniform(0.004, 0.016), rng.uniform(0, 6.28)) for _ in range(4)]

    def offset(x: Points) -> Points:
        return np.sum([a * np.sin(f * x + p) for a, f, p in waves], axis=0)

    reach = float(world.width + world.height)
    xs = np.arange(-reach, reach, 16)
    shore = np.stack([xs, offset(xs)], -1)
    beach = shore - np.array([0, 4 + 1.2 * world.ppm])
    for line, material in ((beach, "sand"), (shore, "water")):
        world.paint(_turn([*line, (reach, reach), (-reach, reach)], angle) + origin, material)
    world.shore = (origin, angle, offset)
    world.axis = angle


def _river(world: _World) -> None:
    """A river across the scene, and its bridges if they are among the classes."""
    rng = world.rng
    angle = float(rng.uniform(0, 2 * math.pi))
    centre = np.array([world.width, world.height]) / 2
    origin = centre + _turn((0, float(rng.uniform(-0.2, 0.2)) * world.height), angle)
    longest = min(world.longest, 46 * world.ppm)
    width = float(rng.uniform(0.35, 0.8)) * longest
    waves = [(rng.uniform(0.01, 0.04) * width, rng.uniform(0.006, 0.03), rng.uniform(0, 6.28)) for _ in "123"]
    reach = float(world.width + world.height)
    xs = np.arange(-reach, reach, 16)
    wave = sum(a * np.sin(f * xs + p) for a, f, p in waves)
    bank = 3 + 0.8 * world.ppm
    for grow, material in ((bank, "soil"), (0.0, "water")):
        upper = np.stack([xs, wave - width / 2 - grow], -1)
        lower = np.stack([xs, wave + width / 2 + grow], -1)[::-1]
        world.paint(_turn(np.concatenate([upper, lower]), angle) + origin, material)
    world.axis = angle
    if "bridge" not in world.classes:
        return
    extent = max(world.width, world.height)
    for x in np.arange(-0.42 * extent, 0.42 * extent, float(rng.uniform(0.28, 0.5)) * extent):
        x += float(rng.uniform(-0.05, 0.05)) * extent
        turn = angle + math.pi / 2 + float(rng.normal(0, 0.05))
        length = (width * 1.16 + 2 * bank) / math.cos(turn - angle - math.pi / 2) + 4
        breadth = max(length / float(rng.uniform(3.0, 8.0)), 6.0)
        centre = origin + _turn((x, 0), angle)
        box = np.array([*centre, length, breadth, turn])
        if _visible(box, world.height, world.width) < 1:
            continue
        _road(world, centre, turn, breadth * 0.84)
        world.items.append(_Item("bridge", box))


def _road(world: _World, centre: Points, angle: float, width: float, traffic: bool = True) -> None:
    """A road through `centre` across the whole scene, with marks and vehicles in its two lanes."""
    rng = world.rng
    reach = float(world.width + world.height)
    box = np.array([*centre, 2 * reach, width, angle])
    verge = np.array([*centre, 2 * reach, 1.35 * width + 3, angle])
    bridge = any(item.kind == "bridge" for item in world.items)
    world.paint(_corners(verge), str(rng.choice(["meadow", "lawn", "worn"])), land_only=True)
    world.paint(_corners(box), "asphalt", land_only=True)
    world.claim(verge)
    lines = [(0.0, (206, 190, 120), (8.0, 8.0))]
    lines += [(side * width * 0.44, (196, 196, 190), (40.0, 0.0)) for side in (-1.0, 1.0)]
    for y, colour, (dash, gap) in lines:
        for x in np.arange(-reach, reach, dash + gap):
            ends = _turn([(x, y), (x + dash, y)], angle) + centre
            middle = ends.mean(0)
            seen = 0 <= middle[0] < world.width and 0 <= middle[1] < world.height
            if seen and not world.is_water(ends).any():
                world.marks.append((ends, colour, 0.8))
    kinds = [kind for kind in ("small-vehicle", "large-vehicle") if kind in world.classes]
    if not kinds or not traffic or bridge:
        return
    for lane in (-1, 1):
        x = -reach
        while x < reach:
            kind = kinds[0] if len(kinds) == 1 or rng.random() < 0.75 else kinds[1]
            length, breadth = _vehicle_size(world, kind)
            x += length / 2 + world.metres(4, 60)
            y = lane * width * 0.22 + float(rng.normal(0, 0.02)) * width
            turn = angle + (0 if lane > 0 else math.pi) + float(rng.normal(0, 0.015))
            vehicle = np.array([*(_turn((x, y), angle) + centre), length, breadth, turn])
            x += length / 2
            on_land = not world.is_water(_corners(vehicle)).any()
            if breadth < width * 0.42 and _visible(vehicle, world.height, world.width) > 0 and on_land:
                world.items.append(_Item(kind, vehicle))


def _fields(world: _World) -> None:
    """Patches of different land under everything else."""
    rng = world.rng
    world.ground[:] = _INDEX[str(rng.choice(["grass", "meadow", "soil", "worn"], p=[0.4, 0.3, 0.15, 0.15]))]
    count = max(2, round(world.height * world.width / 512**2 * 5))
    for _ in range(count):
        box = np.array([
            rng.uniform(0, world.width), rng.uniform(0, world.height),
            rng.uniform(80, 320), rng.uniform(60, 240), world.axis,
        ])  # fmt: skip
        material = str(rng.choice(["grass", "meadow", "soil", "forest", "lawn"]))
        world.paint(_corners(box), material)
    for _ in range(max(1, count // 3)):  # winding dirt tracks
        start, heading = rng.uniform((0, 0), (world.width, world.height)), float(rng.uniform(0, 2 * math.pi))
        turns = heading + np.cumsum(rng.normal(0, 0.16, 60))
        path = start + np.cumsum(np.stack([np.cos(turns), np.sin(turns)], -1) * 14, 0)
        points = np.rint(path * 16).astype(np.int32)
        thickness = max(2, round(world.metres(1.0, 2.6)))
        cv2.polylines(world.ground, [points], False, _INDEX["soil"], thickness, shift=4)


def _wooded(world: _World) -> None:
    """Trees off the claimed ground, in clumps and alone; they are drawn over everything."""
    rng = world.rng
    blocked = np.zeros((world.height, world.width), np.uint8)
    for box in world.footprints:
        cv2.fillPoly(blocked, [np.rint(_corners(box) * 16).astype(np.int32)], 1, shift=4)
    blocked |= (world.ground == _INDEX["water"]).astype(np.uint8)
    clumps = max(2, round(world.height * world.width / 512**2 * float(rng.uniform(4, 14))))
    for _ in range(clumps):
        middle = rng.uniform((0, 0), (world.width, world.height))
        spread = world.metres(2, 9)
        for _ in range(int(rng.integers(1, 8))):
            radius = min(world.metres(1.4, 4.0), 26.0)
            x, y = middle + rng.normal(0, 1, 2) * spread
            ring = np.array([(x, y), (x - radius, y), (x + radius, y), (x, y - radius), (x, y + radius)])
            column, row = ring.T.astype(int)
            if column.min() < 0 or row.min() < 0 or column.max() >= world.width or row.max() >= world.height:
                continue
            if not blocked[row, column].any():
                world.trees.append(_Item("tree", np.array([x, y, 2 * radius, 2 * radius, rng.uniform(0, 6)])))


def _cover(world: _World) -> NDArray[np.float64]:
    """Trees that hide parts of objects on land; (N,) the hidden share of every item."""
    rng = world.rng
    hidden = np.zeros(len(world.items))
    shy = ("plane", "ship", "harbor", "bridge", "roundabout", "helicopter", "storage-tank")
    for item in world.items:
        if item.kind not in CLASSES or item.kind in shy or rng.random() >= world.level.occlusion:
            continue
        radius = float(rng.uniform(0.35, 0.75)) * min(item.box[3], 36.0)
        u, v = rng.uniform(-1, 1), float(rng.choice([-1, 1])) * rng.uniform(0.3, 1.1)
        if item.box[2] < 60 and rng.random() < 0.35:  # under the crown for the most part
            radius, u, v = 0.5 * float(item.box[2]), 0.4 * u, 0.3 * v
        centre = _turn((u * item.box[2] / 2, v * item.box[3] / 2), float(item.box[4])) + item.box[:2]
        world.trees.append(_Item("tree", np.array([*centre, 2 * radius, 2 * radius, rng.uniform(0, 6)])))
    boxes = np.array([item.box for item in world.items]).reshape(-1, 5)
    reach = np.hypot(boxes[:, 2], boxes[:, 3])
    for tree in world.trees:
        near = np.hypot(*(boxes[:, :2] - tree.box[:2]).T) < (tree.box[2] + reach) / 2
        for index in np.flatnonzero(near):
            inside = np.hypot(*(_samples(boxes[index]) - tree.box[:2]).T) < tree.box[2] / 2 * 0.9
            hidden[index] = min(1.0, hidden[index] + inside.mean())
    return hidden


def _plan(world: _World, first: int, density: float) -> None:
    """Lay out the scene; `first` is the class that is placed before all others."""
    rng = world.rng
    cycle = [world.classes[(first + k) % len(world.classes)] for k in range(len(world.classes))]
    afloat = [kind for kind in ("ship", "harbor") if kind in world.classes]
    _fields(world)
    if cycle[0] == "bridge":
        _river(world)
    elif cycle[0] in afloat or (afloat and rng.random() < 0.35):
        _coast(world)
    elif "bridge" in world.classes and rng.random() < 0.25:
        _river(world)
    area = world.height * world.width / 512**2
    whole_room = world.room
    by_class = [kind for kind in cycle if kind in _MAKERS]
    if world.shore is None:
        by_class = [kind for kind in by_class if kind not in afloat]
    wanted = max(1, round(area * density * float(rng.uniform(9, 15))))
    if cycle[0] in _MAKERS:
        for _ in range(12):
            if world.try_group(_MAKERS[cycle[0]](world)):
                break
            world.room *= 0.85
        world.room = whole_room
    road = world.metres(7, 10)
    roads = max(1, round(min(world.height, world.width) / 600)) if area > 3 or rng.random() < 0.75 else 0
    for k in range(2 * roads):
        if k % 2 and rng.random() < 0.5:
            continue
        for _ in range(6):
            centre = rng.uniform((0, 0), (world.width, world.height))
            across = k % 2 and not (world.ground == _INDEX["water"]).any()
            angle = world.axis + (math.pi / 2 if across else 0)
            lane = np.array([*centre, 2.0 * math.hypot(world.width, world.height), road * 1.5 + 3, angle])
            if _apart(lane, world.footprints) and world.on("land", lane):
                _road(world, centre, angle, road)
                break
    if by_class:
        share = np.array([_SHARE.get(kind, 1.0) for kind in by_class])
        for choice in rng.choice(len(by_class), size=wanted, p=share / share.sum()):
            kind = by_class[int(choice)]
            for _ in range(4):
                if world.try_group(_MAKERS[kind](world)):
                    break
                world.room *= 0.6
            world.room = whole_room
    for _ in range(round(wanted * world.level.distractors)):
        world.try_group(_clutter(world), tries=24)
    for _ in range(round(area * 4)):
        maker = _suburb if rng.random() < 0.7 else _works
        for _ in range(2):
            if world.try_group(maker(world), tries=24):
                break
            world.room *= 0.6
        world.room = whole_room
    _wooded(world)


# -------------------------------------------------------------------------------------- rendering


def _noise(rng: np.random.Generator, height: int, width: int, cell: float) -> NDArray[np.float32]:
    """Smooth noise of mean 0 and about unit range, with features of `cell` pixels."""
    coarse = rng.standard_normal((int(height / cell) + 3, int(width / cell) + 3), np.float32)
    large = cv2.resize(coarse, None, fx=cell, fy=cell, interpolation=cv2.INTER_CUBIC)
    return np.asarray(large[:height, :width], np.float32)


def _blend(canvas: NDArray[np.uint8], patch: NDArray[np.uint8], x: int, y: int, opacity: float) -> None:
    """A premultiplied RGBA patch onto the canvas with its upper left corner at x, y."""
    left, top = max(0, -x), max(0, -y)
    right, bottom = min(patch.shape[1], canvas.shape[1] - x), min(patch.shape[0], canvas.shape[0] - y)
    if left >= right or top >= bottom:
        return
    part = patch[top:bottom, left:right].astype(np.uint32)
    target = canvas[y + top : y + bottom, x + left : x + right]
    # In integers: weights out of 256, alpha out of 255.
    keep = round(opacity * 256)
    mixed = target * (65280 - part[..., 3:] * keep) + part[..., :3] * (keep * 255)
    target[:] = (mixed + 32640) // 65280


def _darken(
    canvas: NDArray[np.uint8], patch: NDArray[np.uint8], x: int, y: int, dx: float, dy: float, strength: float
) -> None:
    """The shadow of a patch, swept from its foot over (dx, dy) pixels."""
    pad = math.ceil(max(abs(dx), abs(dy))) + 2
    alpha = cv2.copyMakeBorder(patch[..., 3], pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=0)
    shadow = alpha
    steps = max(1, min(6, int(max(abs(dx), abs(dy)) / 3)))
    for step in range(1, steps + 1):
        move = np.array([[1, 0, dx * step / steps], [0, 1, dy * step / steps]], np.float32)
        moved = cv2.warpAffine(alpha, move, (alpha.shape[1], alpha.shape[0]))
        shadow = np.maximum(shadow, moved)
    shade = np.zeros((*shadow.shape, 4), np.uint8)
    shade[..., 3] = shadow
    shade[..., 2] = shadow // 16
    _blend(canvas, shade, x - pad, y - pad, strength)


def _terrain(world: _World) -> NDArray[np.uint8]:
    """The ground with its texture."""
    rng, height, width = world.rng, world.height, world.width
    palette = np.array([_jitter(rng, colour, 7) for colour, _ in _MATERIALS.values()], np.float32)
    if rng.random() < 0.5:
        palette[_INDEX["water"]] = _pick(rng, ((52, 76, 72), (42, 64, 92), (70, 92, 84), (34, 58, 66)), 6)
    strength = np.array([value for _, value in _MATERIALS.values()], np.float32)
    octaves = ((96, 0.35), (24, 0.2), (7, 0.16), (2.5, 0.2))
    texture = _noise(rng, height, width, octaves[0][0]) * np.float32(octaves[0][1])
    for cell, weight in octaves[1:]:
        cv2.scaleAdd(_noise(rng, height, width, cell), weight, texture, texture)
    cv2.multiply(texture, _look_up(strength, world.ground), texture)
    water = (world.ground == _INDEX["water"]).astype(np.uint8)
    shallow = None
    if water.any() and not water.all():
        shallow = np.exp(cv2.distanceTransform(water, cv2.DIST_L2, 3) / (-3 * world.ppm)) * water
    channels = []
    for c, (grained, pale) in enumerate(((1.0, 22.0), (1.0, 34.0), (0.8, 26.0))):
        channel = cv2.scaleAdd(texture, grained, _look_up(palette[:, c], world.ground))
        if shallow is not None:
            cv2.scaleAdd(shallow, pale, channel, channel)
        channels.append(_bytes(channel))
    return np.asarray(cv2.GaussianBlur(cv2.merge(channels), (3, 3), 0.7), np.uint8)


def _look_up(table: NDArray[np.float32], index: NDArray[np.uint8]) -> NDArray[np.float32]:
    """table[index] for a short table."""
    padded = np.zeros(256, np.float32)
    padded[: len(table)] = table
    return np.asarray(cv2.LUT(index, padded), np.float32)


def _bytes(values: NDArray) -> NDArray[np.uint8]:
    """Rounded and clamped to 0…255."""
    return np.asarray(cv2.addWeighted(values, 1, values, 0, 0, dtype=cv2.CV_8U), np.uint8)


def _sprite(item: _Item, rng: np.random.Generator) -> tuple[NDArray[np.uint8], int, int]:
    brush = _Brush(item.box)
    _DRAW[item.kind](brush, rng)
    return brush.patch(), brush.x, brush.y


def _photograph(canvas: NDArray[np.uint8], world: _World) -> NDArray[np.uint8]:
    """Light, lens and sensor."""
    rng, (height, width) = world.rng, canvas.shape[:2]
    blur = float(rng.uniform(*world.level.blur))
    if blur > 0.25:
        canvas = np.asarray(cv2.GaussianBlur(canvas, (0, 0), blur), np.uint8)
    cast = rng.normal(1, 0.025, 3) * rng.uniform(*world.level.shade)
    light = 1 + np.float32(0.03) * _noise(rng, height, width, max(height, width) / 3)
    grain = rng.standard_normal((height, width), np.float32) * np.float32(rng.uniform(*world.level.noise))
    channels = [
        _bytes(cv2.multiply(channel, light, scale=gain, dtype=cv2.CV_32F) + grain)
        for channel, gain in zip(cv2.split(canvas), cast.tolist(), strict=True)
    ]
    return np.asarray(cv2.merge(channels), np.uint8)


def render(settings: Settings, split: str, index: int) -> Scene:
    """Scene number `index` of a split: the same for equal arguments, whatever else is rendered.

    Args:
        settings: what the set looks like.
        split: "train", "val" or "large"; large scenes have `settings.large_size`.
        index: 0, 1, …; scene i is sure to be offered class i mod C first.
    """
    if split not in SPLITS:
        raise SyntheticError(f"split: expected one of {SPLITS}, got {split!r}")
    height, width = settings.large_size if split == "large" else settings.size
    rng = np.random.default_rng([settings.seed, SPLITS.index(split), index])
    world = _World(settings, height, width, rng)
    _plan(world, index, settings.density)
    kept = []
    inside = 1.0 if settings.difficulty == "easy" else VISIBLE
    for item in world.items:
        is_object = item.kind in CLASSES
        if not is_object or _visible(item.box, height, width) >= inside:
            kept.append(item)
    world.items = kept
    hidden = _cover(world)

    canvas = _terrain(world)
    for points, colour, line in world.marks:
        ends = np.rint((points - 0.5) * 16).astype(np.int32)
        thickness = max(1, round(line))
        cv2.polylines(canvas, [ends], False, _clip(colour), thickness, cv2.LINE_AA, shift=4)
    sun = float(rng.uniform(0, 2 * math.pi))
    reach = float(rng.uniform(0.5, 1.1)) * world.ppm
    strength = float(rng.uniform(0.35, 0.6))
    sprites = [_sprite(item, rng) for item in world.items]
    crowns = [_sprite(item, rng) for item in world.trees]
    for things, patches in ((world.items, sprites), (world.trees, crowns)):
        for item, (patch, x, y) in zip(things, patches, strict=True):
            if tall := _TALL.get(item.kind, 0.0) * reach:
                dx, dy = tall * math.cos(sun), tall * math.sin(sun)
                _darken(canvas, patch, x, y, dx, dy, strength)
        for item, (patch, x, y) in zip(things, patches, strict=True):
            opacity = float(rng.uniform(*world.level.opacity)) if item.kind in CLASSES else 1.0
            _blend(canvas, patch, x, y, opacity)
    image = _photograph(canvas, world)

    names = {name: number for number, name in enumerate(settings.classes)}
    objects = [k for k, item in enumerate(world.items) if item.kind in names]
    boxes = np.array([world.items[k].box for k in objects], np.float64).reshape(-1, 5)
    numbers = np.array([names[world.items[k].kind] for k in objects], np.int32)
    difficult = ((hidden[objects] > HIDDEN) | (boxes[:, 2:4].max(1, initial=0) < TINY)).astype(np.int32)
    return Scene(image, np.asarray(canonical(boxes), np.float64), numbers, difficult, 1 / world.ppm)


def render_one(kind: str, box: Sequence[float], size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """(H, W) coverage 0…255 of a single object alone; what the label claims can be measured on it."""
    item = _Item(kind, np.asarray(box, np.float64))
    patch, x, y = _sprite(item, np.random.default_rng(seed))
    canvas = np.zeros((*size, 3), np.uint8)
    patch = np.repeat(patch[..., 3:], 4, axis=2)
    _blend(canvas, patch, x, y, 1.0)
    return canvas[..., 0]


# ------------------------------------------------------------------------------------------ files


def label_text(scene: Scene, classes: Sequence[str]) -> str:
    """The scene's DOTA labelTxt."""
    lines = ["imagesource:synthetic", f"gsd:{scene.gsd:.6f}"]
    for quad, label, difficult in zip(to_quads(scene.boxes), scene.labels, scene.difficult, strict=True):
        corners = " ".join(f"{value:.2f}" for value in quad)
        lines.append(f"{corners} {classes[label]} {difficult}")
    return "\n".join(lines) + "\n"


def _paths(out: Path, split: str, index: int, jpeg: bool) -> tuple[Path, Path]:
    name = f"{split}_{index:05d}"
    folder = out / split
    return folder / "images" / f"{name}.{'jpg' if jpeg else 'png'}", folder / "labelTxt" / f"{name}.txt"


# Grain does not compress: matching strings would cost half the time of a scene for a tenth of its bytes.
_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY]


def _write_scene(job: tuple[str, Settings, str, int]) -> int:
    """Render and write one scene; the label file comes last and marks it complete."""
    out, settings, split, index = job
    cv2.setNumThreads(1)
    scene = render(settings, split, index)
    image_path, label_path = _paths(Path(out), split, index, settings.jpeg)
    options = [cv2.IMWRITE_JPEG_QUALITY, 92] if settings.jpeg else _PNG
    done, data = cv2.imencode(image_path.suffix, scene.image[..., ::-1], options)
    if not done:
        raise SyntheticError(f"{image_path}: OpenCV cannot encode {image_path.suffix}")
    atomic.write_bytes(image_path, data.tobytes())
    atomic.write_text(label_path, label_text(scene, settings.classes))
    return len(scene.boxes)


def _check_folder(out: Path, settings: Settings) -> None:
    """Refuse to mix two sets in one folder."""
    record = out / "synthetic.json"
    # Through JSON, so that tuples compare as the lists that come back.
    wanted = json.loads(json.dumps({"format": FORMAT, **dataclasses.asdict(settings)}))
    if record.exists():
        try:
            found = json.loads(record.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise SyntheticError(f"{record}: not JSON ({error}); give another --out") from error
        if found != wanted:
            different = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
            raise SyntheticError(
                f"{out} holds a set with other settings ({', '.join(different)}): "
                "give another --out, or remove the folder"
            )
    elif any((out / split).exists() for split in SPLITS):
        raise SyntheticError(f"{out} holds images that are not from here: give another --out")
    atomic.write_text(out / "classes.txt", "\n".join(settings.classes) + "\n")
    atomic.write_text(record, json.dumps(wanted, indent=2) + "\n")


def _run(jobs: list[tuple[str, Settings, str, int]], workers: int) -> Iterator[int]:
    if workers <= 1 or len(jobs) < 8:
        yield from map(_write_scene, jobs)
        return
    # Not fork: the caller may hold threads (torch, OpenCV).
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(_write_scene, jobs, chunksize=4)


def generate(
    out: str | Path,
    *,
    train: int = 200,
    val: int = 50,
    large: int = 0,
    settings: Settings | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> int:
    """Write a set; scenes that are already complete stay untouched, also those beyond the numbers asked for.

    Args:
        out: the folder; created if missing.
        train, val, large: numbers of scenes in the three splits.
        settings: what they look like; the default is the demo's.
        workers: processes, None for one per processor.
        progress: show a progress bar on standard error.

    Returns:
        The number of scenes written by this call.

    Raises:
        SyntheticError: the folder holds something else.
    """
    settings = settings or Settings()
    counts = {"train": train, "val": val, "large": large}
    for split, count in counts.items():
        if count < 0:
            raise SyntheticError(f"--{split}: expected a number ≥ 0, got {count}")
    if not any(counts.values()):
        raise SyntheticError("--train, --val and --large are all 0, so there is nothing to write")
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SyntheticError(f"--out {out}: cannot be made a folder: {error.strerror}") from error
    _check_folder(out, settings)
    jobs = []
    for split, count in counts.items():
        if not count and split == "large":
            continue
        for name in ("images", "labelTxt"):
            (out / split / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            if not all(path.exists() for path in _paths(out, split, index, settings.jpeg)):
                jobs.append((str(out), settings, split, index))
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    objects = 0
    with tqdm(total=len(jobs), desc="scenes", unit="scene", disable=not progress or not jobs) as bar:
        for count in _run(jobs, workers):
            objects += count
            bar.update()
            bar.set_postfix(objects=objects, refresh=False)
    return len(jobs)


def _parse_size(text: str) -> tuple[int, int]:
    """ "512" or "480x640" (height x width)."""
    try:
        sides = [int(part) for part in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2):
        raise argparse.ArgumentTypeError(f"expected H or HxW such as 512 or 480x640, got {text!r}")
    return sides[0], sides[-1]


def _parse_classes(text: str) -> tuple[str, ...]:
    if text in ("easy", "all"):
        return EASY_CLASSES if text == "easy" else CLASSES
    return tuple(name.strip() for name in text.split(",") if name.strip())


def main(arguments: Iterable[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m rgfl.dota.synthetic",
        description="Write aerial-like scenes with exact oriented labels in DOTA's layout.",
    )
    add = parser.add_argument
    add("--out", required=True, help="folder to write; an interrupted run goes on where it stopped")
    add("--train", type=int, default=200, metavar="N", help="training scenes (default: %(default)s)")
    add("--val", type=int, default=50, metavar="N", help="validation scenes (default: %(default)s)")
    add("--large", type=int, default=0, metavar="N", help="large scenes, in OUT/large (default: %(default)s)")
    add("--size", type=_parse_size, default=(512, 512), metavar="H[xW]", help="pixels (default: 512)")
    add("--large-size", type=_parse_size, default=(3000, 4000), metavar="H[xW]", help="(default: 3000x4000)")
    add("--seed", type=int, default=0, help="equal seeds give equal files (default: %(default)s)")
    add("--objects", type=float, default=1.0, metavar="FACTOR", help="density (default: %(default)s)")
    add("--difficulty", choices=[*DIFFICULTIES], default="easy", help="scale, contrast, noise, blur, "
        "occlusion, look-alikes (default: %(default)s)")  # fmt: skip
    add("--classes", type=_parse_classes, default=None, metavar="NAMES", help="names with commas, `easy` for "
        "six or `all` for the fifteen of DOTA-v1.0 (default: easy, all with another difficulty)")  # fmt: skip
    add("--jpeg", action=argparse.BooleanOptionalAction, default=False, help="JPEG instead of PNG files")
    add("--workers", type=int, default=None, metavar="N", help="processes (default: one per processor)")
    add("--progress", action=argparse.BooleanOptionalAction, default=True, help="show a progress bar")
    args = parser.parse_args(None if arguments is None else list(arguments))
    classes = args.classes or (EASY_CLASSES if args.difficulty == "easy" else CLASSES)
    try:
        settings = Settings(
            seed=args.seed,
            size=args.size,
            large_size=args.large_size,
            density=args.objects,
            difficulty=args.difficulty,
            classes=classes,
            jpeg=args.jpeg,
        )
        written = generate(
            args.out,
            train=args.train,
            val=args.val,
            large=args.large,
            settings=settings,
            workers=args.workers,
            progress=args.progress,
        )
    except (SyntheticError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    found = {split: len([*Path(args.out, split, "labelTxt").glob("*.txt")]) for split in SPLITS}
    scenes = ", ".join(f"{count} {split}" for split, count in found.items() if count)
    print(f"{args.out}: {scenes or 'no'} scenes of {len(classes)} classes, {written} written now")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
