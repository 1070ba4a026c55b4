"""What stands where: car parks, marinas, tank farms on land and water, before anything is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from rgfl.dota.synthetic.settings import CLASSES, DIFFICULTIES, LONGEST, ROUND, Settings
from rgfl.dota.synthetic.shapes import (
    GRID,
    Colour,
    Points,
    arc_points,
    are_apart,
    corners_of,
    rotated,
    samples,
    visible_share,
)


@dataclass
class Item:
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
    items: list[Item] = field(default_factory=list)

    def add(self, kind: str, x: float, y: float, w: float, h: float, angle: float = 0.0) -> None:
        self.items.append(Item(kind, np.array([x, y, w, h, angle])))

    def pad(self, material: str, margin: float = 0.0) -> None:
        """Ground of one material under the whole group."""
        self.pads.append((corners_of((0, 0, self.width + 2 * margin, self.height + 2 * margin, 0)), material))

    def mark(self, points: ArrayLike, colour: Colour = (205, 205, 198), width: float = 1.0) -> None:
        self.marks.append((np.asarray(points, np.float64), colour, width))


# Base colour and strength of the texture of each kind of ground.
MATERIALS: dict[str, tuple[Colour, float]] = {
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
MATERIAL_INDEX = {name: index for index, name in enumerate(MATERIALS)}


class World:
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
        self.ground = np.full((height, width), MATERIAL_INDEX["grass"], np.uint8)
        self.shore: tuple[Points, float, Callable[[Points], Points]] | None = None
        self.marks: list[tuple[Points, Colour, float]] = []
        self.items: list[Item] = []
        self.trees: list[Item] = []

    def metres(self, low: float, high: float) -> float:
        """A length between `low` and `high` metres, in pixels."""
        return float(self.rng.uniform(low, high)) * self.ppm

    def paint(self, polygon: Points, material: str, land_only: bool = False) -> None:
        """Ground of `material` in the polygon (N, 2)."""
        points = [np.rint((polygon - 0.5) * 16).astype(np.int32)]
        if land_only:
            before = self.ground == MATERIAL_INDEX["water"]
        cv2.fillPoly(self.ground, points, MATERIAL_INDEX[material], shift=4)
        if land_only:
            self.ground[before] = MATERIAL_INDEX["water"]

    def is_water(self, points: Points) -> NDArray[np.bool_]:
        """(N,) whether the points (N, 2) lie on water; outside the image the border goes on."""
        column = np.clip(points[:, 0].astype(int), 0, self.width - 1)
        row = np.clip(points[:, 1].astype(int), 0, self.height - 1)
        return self.ground[row, column] == MATERIAL_INDEX["water"]

    def on(self, place: str, box: NDArray[np.float64]) -> bool:
        """Whether the box lies on land or on water entirely."""
        return bool((self.is_water(samples(box)) == (place == "water")).all())

    def claim(self, box: NDArray[np.float64]) -> None:
        """Nothing else is to be built on `box`."""
        self.footprints = np.concatenate([self.footprints, box[None]])
        cv2.fillPoly(self.taken, [np.rint(corners_of(box) * 16).astype(np.int32)], 1, shift=4)

    def _poses(self, group: _Group, count: int) -> NDArray[np.float64]:
        """(count, 3) random `x, y, θ` for a group."""
        rng = self.rng
        if self.shore is not None and group.place == "shore":
            origin, angle, offset = self.shore
            reach = (self.width + self.height) / 2
            along = rng.uniform(-reach, reach, count)
            local = np.stack([along, offset(along) + group.width / 2 - 3], -1)
            return np.column_stack([rotated(local, angle) + origin, np.full(count, angle + math.pi / 2)])
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
            likely &= (self.ground[row, column] == MATERIAL_INDEX["water"]) == (group.place == "water")
        pose = pose[likely]
        if not len(pose):
            return False
        cos, sin = np.cos(pose[:, 2])[:, None], np.sin(pose[:, 2])[:, None]
        u, v = (GRID[::9] * size / 2).T
        x = (pose[:, :1] + u * cos - v * sin).astype(np.int64)
        y = (pose[:, 1:2] + u * sin + v * cos).astype(np.int64)
        seen = (x >= 0) & (x < self.width) & (y >= 0) & (y < self.height)
        np.clip(x, 0, self.width - 1, out=x)
        np.clip(y, 0, self.height - 1, out=y)
        good = ~((self.taken[y, x] > 0) & seen).any(1)
        good &= seen.mean(1) >= (0.85 if self.lenient and size.min() > 80 else 0.99)
        if group.place != "shore":
            good &= ((self.ground[y, x] == MATERIAL_INDEX["water"]) == (group.place == "water")).all(1)
        for k in np.flatnonzero(good):
            box = np.array([*pose[k, :2], *size, pose[k, 2]])
            exact = group.place == "shore" or self.on(group.place, box)
            if exact and are_apart(box, self.footprints):
                self.claim(box)
                self._settle(group, pose[k, :2], float(pose[k, 2]))
                return True
        return False

    def _settle(self, group: _Group, centre: Points, turn: float) -> None:
        for polygon, material in group.pads:
            self.paint(rotated(polygon, turn) + centre, material)
        for points, colour, width in group.marks:
            self.marks.append((rotated(points, turn) + centre, colour, width))
        for item in group.items:
            box = item.box.copy()
            box[:2] = rotated(box[:2], turn) + centre
            box[4] = 0.0 if item.kind in ROUND else box[4] + turn
            self.items.append(Item(item.kind, box))


def _size(world: World, low: float, high: float, aspect: tuple[float, float]) -> tuple[float, float]:
    """Length and breadth in pixels for a length in metres and a range of length : breadth."""
    length = min(world.metres(low, high), max(world.metres(low, low), world.room), world.longest)
    return length, length / float(world.rng.uniform(*aspect))


def _vehicle_size(world: World, kind: str) -> tuple[float, float]:
    near = world.level.van_like
    if kind == "small-vehicle":
        return _size(world, 4.2, 5.2 + 1.8 * near, (2.1, 2.5))
    return _size(world, 9.0 - 2.2 * near, 17.0 - 2 * near, (3.2 - 0.5 * near, 5.2))


def _parking(world: World, kind: str) -> _Group:
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


def _apron(world: World) -> _Group:
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


def _courts(world: World, kind: str) -> _Group:
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


def _tank_farm(world: World) -> _Group:
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


def _marina(world: World) -> _Group:
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


def _at_sea(world: World) -> _Group:
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


def _single(world: World, kind: str) -> _Group:
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
        group.mark(arc_points(0, 0, w * 0.68, w * 0.68), (222, 214, 150), 1.4)
    if kind == "roundabout":
        arms = int(rng.integers(2, 5))
        road = w * 0.26
        for k in range(arms):
            angle = k * math.pi / 2
            group.pads.append((rotated(corners_of((w * 0.6, 0, w * 0.3, road, 0)), angle), "asphalt"))
    group.add(kind, 0, 0, w, h)
    return group


def _suburb(world: World) -> _Group:
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
            pad = corners_of((x, 0.27 * deep, pool * 1.25, breadth * 1.5, 0))
            group.pads.append((pad, "concrete"))
            group.add("swimming-pool", x, 0.27 * deep, pool, breadth, float(rng.choice([0, math.pi])))
        if "small-vehicle" in world.classes and rng.random() < 0.5:
            length, breadth = _vehicle_size(world, "small-vehicle")
            drive = corners_of((x - lot * 0.3, -0.42 * deep, breadth * 1.6, 0.16 * deep, 0))
            group.pads.append((drive, "concrete"))
            if length < 0.16 * deep * 1.4:
                group.add("small-vehicle", x - lot * 0.3, -0.5 * deep + length * 0.56, length, breadth,
                          math.pi / 2 * float(rng.choice([-1, 1])))  # fmt: skip
    return group


def _works(world: World) -> _Group:
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


def _clutter(world: World) -> _Group:
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


_MAKERS: dict[str, Callable[[World], _Group]] = {
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


def _coast(world: World) -> None:
    """Water on one side of a wavy shore."""
    rng = world.rng
    angle = float(rng.uniform(0, 2 * math.pi))
    centre = np.array([world.width, world.height]) / 2
    extent = abs(math.sin(angle)) * world.width + abs(math.cos(angle)) * world.height
    origin = centre + rotated((0, extent * float(rng.uniform(-0.16, 0.2))), angle)
    waves = [(rng.uniform(2, 7), rng.uniform(0.004, 0.016), rng.uniform(0, 6.28)) for _ in range(4)]

    def offset(x: Points) -> Points:
        return np.sum([a * np.sin(f * x + p) for a, f, p in waves], axis=0)

    reach = float(world.width + world.height)
    xs = np.arange(-reach, reach, 16)
    shore = np.stack([xs, offset(xs)], -1)
    beach = shore - np.array([0, 4 + 1.2 * world.ppm])
    for line, material in ((beach, "sand"), (shore, "water")):
        world.paint(rotated([*line, (reach, reach), (-reach, reach)], angle) + origin, material)
    world.shore = (origin, angle, offset)
    world.axis = angle


def _river(world: World) -> None:
    """A river across the scene, and its bridges if they are among the classes."""
    rng = world.rng
    angle = float(rng.uniform(0, 2 * math.pi))
    centre = np.array([world.width, world.height]) / 2
    origin = centre + rotated((0, float(rng.uniform(-0.2, 0.2)) * world.height), angle)
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
        world.paint(rotated(np.concatenate([upper, lower]), angle) + origin, material)
    world.axis = angle
    if "bridge" not in world.classes:
        return
    extent = max(world.width, world.height)
    for x in np.arange(-0.42 * extent, 0.42 * extent, float(rng.uniform(0.28, 0.5)) * extent):
        x += float(rng.uniform(-0.05, 0.05)) * extent
        turn = angle + math.pi / 2 + float(rng.normal(0, 0.05))
        length = (width * 1.16 + 2 * bank) / math.cos(turn - angle - math.pi / 2) + 4
        breadth = max(length / float(rng.uniform(3.0, 8.0)), 6.0)
        centre = origin + rotated((x, 0), angle)
        box = np.array([*centre, length, breadth, turn])
        if visible_share(box, world.height, world.width) < 1:
            continue
        _road(world, centre, turn, breadth * 0.84)
        world.items.append(Item("bridge", box))


def _road(world: World, centre: Points, angle: float, width: float, traffic: bool = True) -> None:
    """A road through `centre` across the whole scene, with marks and vehicles in its two lanes."""
    rng = world.rng
    reach = float(world.width + world.height)
    box = np.array([*centre, 2 * reach, width, angle])
    verge = np.array([*centre, 2 * reach, 1.35 * width + 3, angle])
    bridge = any(item.kind == "bridge" for item in world.items)
    world.paint(corners_of(verge), str(rng.choice(["meadow", "lawn", "worn"])), land_only=True)
    world.paint(corners_of(box), "asphalt", land_only=True)
    world.claim(verge)
    lines = [(0.0, (206, 190, 120), (8.0, 8.0))]
    lines += [(side * width * 0.44, (196, 196, 190), (40.0, 0.0)) for side in (-1.0, 1.0)]
    for y, colour, (dash, gap) in lines:
        for x in np.arange(-reach, reach, dash + gap):
            ends = rotated([(x, y), (x + dash, y)], angle) + centre
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
            vehicle = np.array([*(rotated((x, y), angle) + centre), length, breadth, turn])
            x += length / 2
            on_land = not world.is_water(corners_of(vehicle)).any()
            if breadth < width * 0.42 and visible_share(vehicle, world.height, world.width) > 0 and on_land:
                world.items.append(Item(kind, vehicle))


def _fields(world: World) -> None:
    """Patches of different land under everything else."""
    rng = world.rng
    world.ground[:] = MATERIAL_INDEX[
        str(rng.choice(["grass", "meadow", "soil", "worn"], p=[0.4, 0.3, 0.15, 0.15]))
    ]
    count = max(2, round(world.height * world.width / 512**2 * 5))
    for _ in range(count):
        box = np.array([
            rng.uniform(0, world.width), rng.uniform(0, world.height),
            rng.uniform(80, 320), rng.uniform(60, 240), world.axis,
        ])  # fmt: skip
        material = str(rng.choice(["grass", "meadow", "soil", "forest", "lawn"]))
        world.paint(corners_of(box), material)
    for _ in range(max(1, count // 3)):  # winding dirt tracks
        start, heading = rng.uniform((0, 0), (world.width, world.height)), float(rng.uniform(0, 2 * math.pi))
        turns = heading + np.cumsum(rng.normal(0, 0.16, 60))
        path = start + np.cumsum(np.stack([np.cos(turns), np.sin(turns)], -1) * 14, 0)
        points = np.rint(path * 16).astype(np.int32)
        thickness = max(2, round(world.metres(1.0, 2.6)))
        cv2.polylines(world.ground, [points], False, MATERIAL_INDEX["soil"], thickness, shift=4)


def _wooded(world: World) -> None:
    """Trees off the claimed ground, in clumps and alone; they are drawn over everything."""
    rng = world.rng
    blocked = np.zeros((world.height, world.width), np.uint8)
    for box in world.footprints:
        cv2.fillPoly(blocked, [np.rint(corners_of(box) * 16).astype(np.int32)], 1, shift=4)
    blocked |= (world.ground == MATERIAL_INDEX["water"]).astype(np.uint8)
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
                world.trees.append(Item("tree", np.array([x, y, 2 * radius, 2 * radius, rng.uniform(0, 6)])))


def cover(world: World) -> NDArray[np.float64]:
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
        centre = rotated((u * item.box[2] / 2, v * item.box[3] / 2), float(item.box[4])) + item.box[:2]
        world.trees.append(Item("tree", np.array([*centre, 2 * radius, 2 * radius, rng.uniform(0, 6)])))
    boxes = np.array([item.box for item in world.items]).reshape(-1, 5)
    reach = np.hypot(boxes[:, 2], boxes[:, 3])
    for tree in world.trees:
        near = np.hypot(*(boxes[:, :2] - tree.box[:2]).T) < (tree.box[2] + reach) / 2
        for index in np.flatnonzero(near):
            inside = np.hypot(*(samples(boxes[index]) - tree.box[:2]).T) < tree.box[2] / 2 * 0.9
            hidden[index] = min(1.0, hidden[index] + inside.mean())
    return hidden


def plan(world: World, first: int, density: float) -> None:
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
            across = k % 2 and not (world.ground == MATERIAL_INDEX["water"]).any()
            angle = world.axis + (math.pi / 2 if across else 0)
            lane = np.array([*centre, 2.0 * math.hypot(world.width, world.height), road * 1.5 + 3, angle])
            if are_apart(lane, world.footprints) and world.on("land", lane):
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
