"""One object at a time, drawn in the frame of its box: u along the length, v across, each from −1 to 1.

Every silhouette touches u = ±1 and v = ±1, so that the box is its exact label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Colour = tuple[float, float, float]
Points = NDArray[np.float64]


# --- boxes and points ---


def rotated(points: ArrayLike, angle: float) -> Points:
    """Points (…, 2) turned by `angle`, x towards y."""
    c, s = math.cos(angle), math.sin(angle)
    return np.asarray(points, np.float64) @ np.array([[c, s], [-s, c]])


def corners_of(box: Sequence[float] | NDArray[np.float64]) -> Points:
    """(4, 2) corners of one box: rgfl.boxes.to_quads without its checks, which take longer than the sum."""
    cx, cy, w, h, angle = (float(value) for value in box)
    half = np.array([[-w, -h], [w, -h], [w, h], [-w, h]]) / 2
    return rotated(half, angle) + np.array([cx, cy])


def are_apart(box: NDArray[np.float64], others: NDArray[np.float64]) -> bool:
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


GRID = np.stack(np.meshgrid(np.arange(-0.95, 1, 0.1), np.arange(-0.95, 1, 0.1)), -1).reshape(-1, 2)


def samples(box: NDArray[np.float64]) -> Points:
    """(400, 2) points spread evenly over the box."""
    return rotated(GRID * box[2:4] / 2, float(box[4])) + box[:2]


def visible_share(box: NDArray[np.float64], height: int, width: int) -> float:
    """Share of the box's area inside the image."""
    corners = corners_of(box)
    if (corners >= 0).all() and (corners <= (width, height)).all():
        return 1.0
    points = samples(box)
    return float(((points >= 0) & (points < (width, height))).all(1).mean())


# --- drawing ---


def arc_points(
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


class Brush:
    """Draws in the frame of one box, supersampled, into a premultiplied RGBA patch."""

    def __init__(self, box: NDArray[np.float64], margin: int = 1) -> None:
        corners = corners_of(box)
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
        points = rotated(np.asarray(uv, np.float64) * self.half, self.angle) * self.scale + self.origin
        return np.rint(points * 16).astype(np.int32)

    def fill(self, uv: ArrayLike, colour: Colour) -> None:
        """Polygon (N, 2) in u, v."""
        cv2.fillPoly(self.rgba, [self._place(uv)], (*clip_colour(colour), 255), shift=4)

    def line(self, uv: ArrayLike, colour: Colour, width: float = 1.0, closed: bool = False) -> None:
        """Polyline `width` pixels thick; it must stay inside the silhouette."""
        thickness = max(1, round(width * self.scale))
        cv2.polylines(
            self.rgba, [self._place(uv)], closed, (*clip_colour(colour), 255), thickness=thickness, shift=4
        )

    def patch(self) -> NDArray[np.uint8]:
        """(h, w, 4) at the scale of the image."""
        return cv2.resize(self.rgba, self.size, interpolation=cv2.INTER_AREA).astype(np.uint8)


def clip_colour(colour: Sequence[float]) -> tuple[int, int, int]:
    r, g, b = (int(min(255.0, max(0.0, value))) for value in colour)
    return r, g, b


def _shade(colour: Sequence[float], factor: float) -> Colour:
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def jitter(rng: np.random.Generator, colour: Sequence[float], amount: float = 12) -> Colour:
    """A nearby colour: mostly lighter or darker, a little off in hue."""
    change = rng.normal(0, amount) + rng.normal(0, amount / 5, 3)
    return colour[0] + change[0], colour[1] + change[1], colour[2] + change[2]


def pick(rng: np.random.Generator, colours: Sequence[Colour], amount: float = 10) -> Colour:
    return jitter(rng, colours[int(rng.integers(len(colours)))], amount)


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


def _draw_plane(b: Brush, rng: np.random.Generator) -> None:
    paint = pick(rng, WHITES, 8)
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
            b.fill(arc_points(u, side, 0.09, 0.055), _shade(paint, 0.6))
    for shape in (wing, tail):
        b.fill(shape, _shade(paint, 0.94))
        b.fill([(u, -v) for u, v in shape], _shade(paint, 0.86))
        b.line([shape[2], shape[3]], dark, 0.6)
    hull = [(1.0, 0.0), (0.96, body * 0.5), (0.86, body * 0.9), (0.7, body), (-0.6, body), (-1.0, 0.025)]
    b.fill(_mirrored(hull), paint)
    b.fill([(0.9, 0.0), (0.7, body * 0.6), (-0.7, body * 0.45), (-0.7, 0.0)], light)
    b.fill(_bar(0.86, -body * 0.5, 0.91, body * 0.5), (52, 56, 66))
    stripe = pick(rng, ((170, 40, 40), (40, 70, 140), (60, 60, 66), (205, 150, 40), (50, 120, 96)))
    b.fill(_bar(-0.97, -0.028, -0.66, 0.028), stripe)


def _draw_ship(b: Brush, rng: np.random.Generator) -> None:
    hull = [(1.0, 0.0), (0.8, 0.52), (0.48, 1.0), (-0.86, 1.0), (-1.0, 0.86)]
    if max(b.half) < 45 or rng.random() < 0.3:  # boats
        paint = pick(rng, WHITES, 8)
        b.fill(_mirrored(hull), paint)
        inner = [(0.78, 0.0), (0.6, 0.46), (0.36, 0.72), (-0.8, 0.72)]
        b.fill(_mirrored(inner), pick(rng, ((206, 202, 190), (168, 146, 116), (190, 196, 204)), 8))
        b.fill(_bar(-0.42, -0.56, 0.3, 0.56), _shade(paint, 1.04))
        b.fill(_bar(0.16, -0.52, 0.34, 0.52), (52, 66, 86))
        if rng.random() < 0.5:
            b.fill(_bar(-0.9, -0.5, -0.5, 0.5), pick(rng, ((110, 78, 52), (44, 70, 120), (90, 94, 98))))
    else:  # freighters: a deck with hatches and the bridge aft
        paint = pick(rng, ((124, 56, 46), (56, 66, 78), (92, 96, 98), (60, 92, 80)))
        b.fill(_mirrored(hull), _shade(paint, 0.8))
        b.fill(_mirrored([(0.94, 0.0), (0.76, 0.44), (0.46, 0.84), (-0.94, 0.84)]), _shade(paint, 1.15))
        for start in np.arange(-0.5, 0.55, 0.26):
            b.fill(_bar(start, -0.62, start + 0.2, 0.62), pick(rng, TRUCK_PAINTS))
        b.fill(_bar(-0.9, -0.74, -0.62, 0.74), (226, 226, 222))
        b.fill(_bar(-0.84, -0.3, -0.72, 0.3), _shade(paint, 0.7))


def _draw_car(b: Brush, rng: np.random.Generator) -> None:
    paint = pick(rng, CAR_PAINTS)
    body = [(1.0, 0.0), (1.0, 0.62), (0.9, 0.94), (0.7, 1.0), (-0.84, 1.0), (-1.0, 0.8)]
    b.fill(_mirrored(body), paint)
    glass = (34, 40, 48) if sum(paint) > 240 else (96, 106, 116)
    b.fill(_mirrored([(0.46, 0.7), (0.2, 0.62), (-0.52, 0.62), (-0.72, 0.7)]), glass)
    b.fill(_bar(-0.46, -0.66, 0.16, 0.66), _shade(paint, 1.1))


def _draw_truck(b: Brush, rng: np.random.Generator) -> None:
    paint = pick(rng, TRUCK_PAINTS)
    if rng.random() < 0.7:  # cab and trailer
        cab = pick(rng, CAR_PAINTS)
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


def _draw_tank(b: Brush, rng: np.random.Generator) -> None:
    paint = pick(rng, ((232, 232, 228), (214, 216, 216), (196, 192, 182), (150, 126, 108)), 8)
    b.fill(arc_points(0, 0, 1, 1), _shade(paint, 0.78))
    if rng.random() < 0.6:  # cone roof: lit from one side
        b.fill(arc_points(0, 0, 0.93, 0.93), paint)
        start = float(rng.uniform(0, 360))
        for step, factor in ((0, 0.9), (40, 0.84), (80, 0.9)):
            wedge = np.concatenate(
                [[[0.0, 0.0]], arc_points(0, 0, 0.92, 0.92, start + step, start + step + 40)]
            )
            b.fill(wedge, _shade(paint, factor))
        b.fill(arc_points(0, 0, 0.1, 0.1), _shade(paint, 0.7))
    else:  # floating roof: sunk, in the wall's shadow
        b.fill(arc_points(0, 0, 0.9, 0.9), _shade(paint, 0.5))
        b.fill(arc_points(0.1, 0.1, 0.76, 0.76), _shade(paint, 0.86))
    b.line([(0.0, 0.0), (0.66, 0.6)], _shade(paint, 0.62), 0.8)


def _draw_tennis(b: Brush, rng: np.random.Generator) -> None:
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


def _draw_basketball(b: Brush, rng: np.random.Generator) -> None:
    ground = pick(rng, ((178, 132, 88), (150, 78, 62), (96, 116, 136), (122, 122, 118)))
    key = pick(rng, ((146, 66, 54), (60, 92, 132), (84, 112, 84)))
    b.fill(_bar(-1, -1, 1, 1), ground)
    w, white = max(0.7, float(b.half[0]) * 0.014), (226, 226, 220)
    b.line(_bar(-0.92, -0.88, 0.92, 0.88), white, w, closed=True)
    b.line([(0, -0.88), (0, 0.88)], white, w)
    b.line(arc_points(0, 0, 0.13, 0.24), white, w, closed=True)
    for side in (-1, 1):
        b.fill(_bar(side * 0.92, -0.3, side * 0.54, 0.3), key)
        turn = 90 if side > 0 else -90
        b.line(arc_points(side * 0.8, 0, 0.42, 0.76, turn, turn + 180), white, w)


def _mow(b: Brush, grass: Colour, u0: float, u1: float, v: float, stripes: int = 10) -> None:
    edges = np.linspace(u0, u1, stripes + 1)
    for i in range(stripes):
        b.fill(_bar(edges[i], -v, edges[i + 1], v), _shade(grass, 1.06 if i % 2 else 0.96))


def _draw_soccer(b: Brush, rng: np.random.Generator) -> None:
    grass = pick(rng, ((82, 118, 62), (98, 124, 70), (70, 106, 62)), 8)
    b.fill(_bar(-1, -1, 1, 1), grass)
    _mow(b, grass, -0.98, 0.98, 0.98)
    w, white = max(0.8, float(b.half[0]) * 0.007), (224, 230, 218)
    b.line(_bar(-0.96, -0.94, 0.96, 0.94), white, w, closed=True)
    b.line([(0, -0.94), (0, 0.94)], white, w)
    b.line(arc_points(0, 0, 0.18, 0.28), white, w, closed=True)
    for side in (-0.96, 0.96):
        b.line(_bar(side, -0.56, side * 0.68, 0.56), white, w, closed=True)
        b.line(_bar(side, -0.26, side * 0.88, 0.26), white, w, closed=True)


def _draw_track(b: Brush, rng: np.random.Generator) -> None:
    track = pick(rng, ((158, 82, 62), (146, 92, 76), (96, 104, 122)), 8)
    grass = pick(rng, ((84, 118, 62), (108, 126, 76)), 8)
    ends = float(b.half[1] / b.half[0])

    def stadium(r: float) -> Points:
        centre, ru = 1 - ends, ends * r
        return np.concatenate([arc_points(centre, 0, ru, r, -90, 90), arc_points(-centre, 0, ru, r, 90, 270)])

    b.fill(stadium(1.0), track)
    for r in (0.94, 0.87, 0.8):
        b.line(stadium(r), _shade(track, 1.35), 0.6, closed=True)
    b.fill(stadium(0.72), grass)
    _mow(b, grass, -(1 - ends), 1 - ends, 0.64, 8)
    b.line(_bar(-(1 - ends), -0.62, 1 - ends, 0.62), (222, 228, 216), 0.8, closed=True)


def _draw_baseball(b: Brush, rng: np.random.Generator) -> None:
    grass = pick(rng, ((88, 122, 64), (108, 130, 76)), 8)
    dirt = pick(rng, ((176, 136, 98), (160, 116, 84)), 8)
    home = [[-1.0, -1.0]]
    b.fill(np.concatenate([home, arc_points(-1, -1, 2, 2, 0, 90)]), grass)
    b.fill(np.concatenate([home, arc_points(-1, -1, 1.05, 1.05, 0, 90)]), dirt)
    b.fill(_bar(-0.84, -0.84, -0.3, -0.3), grass)
    b.fill(arc_points(-0.57, -0.57, 0.1, 0.1), dirt)
    for end in ((0.94, -0.97), (-0.97, 0.94)):
        b.line([(-0.97, -0.97), end], (226, 222, 212), 0.8)


def _draw_roundabout(b: Brush, rng: np.random.Generator) -> None:
    asphalt = jitter(rng, (104, 104, 102), 6)
    b.fill(arc_points(0, 0, 1, 1), asphalt)
    b.line(arc_points(0, 0, 0.96, 0.96), (196, 196, 190), 0.8, closed=True)
    b.fill(arc_points(0, 0, 0.58, 0.58), (186, 182, 172))
    b.fill(arc_points(0, 0, 0.52, 0.52), jitter(rng, (92, 116, 66), 8))
    b.fill(arc_points(0, 0, 0.2, 0.2), jitter(rng, (60, 86, 48), 8))


def _draw_pier(b: Brush, rng: np.random.Generator) -> None:
    deck = pick(rng, ((176, 168, 152), (150, 132, 110), (190, 188, 182)), 8)
    b.fill(_bar(-1, -1, 1, 1), deck)
    step = 2.0 / max(6, int(b.half[0] / 4))
    for u in np.arange(-1 + step, 1 - step / 2, step):
        b.line([(u, -0.8), (u, 0.8)], _shade(deck, 0.88), 0.4)
    for v in (-0.78, 0.78):
        b.line([(-0.98, v), (0.98, v)], _shade(deck, 1.12), 0.6)


def _draw_bridge(b: Brush, rng: np.random.Generator) -> None:
    deck = jitter(rng, (122, 120, 116), 8)
    b.fill(_bar(-1, -1, 1, 1), _shade(deck, 1.5))
    b.fill(_bar(-1, -0.8, 1, 0.8), deck)
    for u in np.arange(-0.94, 0.94, 0.16):
        b.line([(u, 0), (u + 0.08, 0)], (214, 204, 160), 0.7)
    for u in (-0.97, 0.93):
        b.fill(_bar(u, -0.98, u + 0.04, 0.98), _shade(deck, 0.7))


def _draw_pool(b: Brush, rng: np.random.Generator) -> None:
    water = pick(rng, ((72, 172, 204), (96, 188, 210), (62, 150, 190)), 8)
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


def _draw_helicopter(b: Brush, rng: np.random.Generator) -> None:
    paint = pick(rng, ((70, 82, 60), (206, 206, 200), (168, 44, 40), (44, 60, 100)))
    b.fill(_bar(-0.98, -0.05, 0.2, 0.05), _shade(paint, 0.9))
    b.fill(_bar(-1.0, -0.24, -0.92, 0.24), _shade(paint, 0.8))
    b.fill(arc_points(0.26, 0, 0.4, 0.24), paint)
    b.fill(arc_points(0.5, 0, 0.13, 0.15), (44, 52, 62))
    blade = 0.035
    for bar in (_bar(-0.5, -blade, 1.0, blade), _bar(0.25 - blade * 0.75, -1, 0.25 + blade * 0.75, 1)):
        b.fill(bar, (46, 48, 50))
    b.fill(arc_points(0.25, 0, 0.05, 0.07), (60, 62, 64))


def _draw_house(b: Brush, rng: np.random.Generator) -> None:
    roof = pick(rng, ROOFS)
    b.fill(_bar(-1, -1, 1, 0), _shade(roof, 1.12))
    b.fill(_bar(-1, 0, 1, 1), _shade(roof, 0.8))
    if rng.random() < 0.5:  # hipped
        b.fill([(-1, -1), (-0.55, 0), (-1, 1)], _shade(roof, 0.92))
        b.fill([(1, -1), (0.55, 0), (1, 1)], _shade(roof, 1.02))
    b.line([(-0.55, 0), (0.55, 0)], _shade(roof, 1.3), 0.6)
    b.fill(_bar(0.3, -0.55, 0.42, -0.3), _shade(roof, 0.6))


def _draw_hall(b: Brush, rng: np.random.Generator) -> None:
    roof = pick(rng, FLAT_ROOFS)
    b.fill(_bar(-1, -1, 1, 1), _shade(roof, 0.8))
    b.fill(_bar(-0.96, -0.95, 0.96, 0.95), roof)
    if rng.random() < 0.5:
        b.fill(_bar(-0.96, 0, 0.96, 0.95), _shade(roof, 0.9))
    for _ in range(int(rng.integers(2, 7))):
        u, v = rng.uniform(-0.8, 0.75, 2)
        b.fill(_bar(u, v, u + 0.07, v + 0.12), _shade(roof, float(rng.choice([0.6, 1.25]))))


def _draw_container(b: Brush, rng: np.random.Generator) -> None:
    paint = pick(rng, ((156, 72, 50), (60, 88, 132), (150, 150, 146), (96, 112, 84), (186, 140, 60)))
    b.fill(_bar(-1, -1, 1, 1), paint)
    for v in (-0.5, 0, 0.5):
        b.line([(-0.95, v), (0.95, v)], _shade(paint, 0.84), 0.5)


def _draw_panel(b: Brush, rng: np.random.Generator) -> None:
    b.fill(_bar(-1, -1, 1, 1), (44, 54, 82))
    for u in np.arange(-0.8, 0.9, 0.2):
        b.line([(u, -0.9), (u, 0.9)], (86, 96, 120), 0.4)


def _draw_tent(b: Brush, rng: np.random.Generator) -> None:
    b.fill(_bar(-1, -1, 1, 1), (206, 208, 204))
    b.fill(_bar(-1, -1, 1, -0.2), (228, 230, 228))


def _draw_bale(b: Brush, rng: np.random.Generator) -> None:
    paint = jitter(rng, (190, 170, 116), 10)
    b.fill(arc_points(0, 0, 1, 1), _shade(paint, 0.85))
    b.fill(arc_points(-0.1, -0.1, 0.7, 0.7), paint)


def _draw_tree(b: Brush, rng: np.random.Generator) -> None:
    leaf = pick(rng, ((52, 74, 38), (62, 84, 46), (74, 88, 48), (46, 66, 42)), 7)
    t = np.linspace(0, 2 * math.pi, 18, endpoint=False)
    ragged = np.stack([np.cos(t), np.sin(t)], -1) * rng.uniform(0.8, 1.0, (18, 1))
    b.fill(ragged, _shade(leaf, 0.74))
    for size, factor in ((0.72, 0.95), (0.46, 1.18), (0.24, 1.36)):
        turned = np.roll(ragged, int(rng.integers(18)), 0)
        b.fill(turned * size - (1 - size) * 0.34, _shade(leaf, factor))


_Draw = Callable[[Brush, np.random.Generator], None]
DRAW: dict[str, _Draw] = {
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
TALL = {
    "plane": 4.0, "small-vehicle": 1.4, "large-vehicle": 3.2, "ship": 2.0, "storage-tank": 8.0, "bridge": 5.0,
    "harbor": 1.0, "helicopter": 3.0, "house": 5.0, "hall": 8.0, "container": 2.8, "panel": 1.5, "tent": 3.0,
    "bale": 1.4, "tree": 6.0,
}  # fmt: skip
