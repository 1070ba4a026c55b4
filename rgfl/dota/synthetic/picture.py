"""A laid-out scene as pixels, with its labels: ground, shadows, objects, light, lens and sensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from rgfl.boxes import canonical
from rgfl.dota.synthetic.layout import MATERIAL_INDEX, MATERIALS, Item, World, cover, plan
from rgfl.dota.synthetic.settings import CLASSES, HIDDEN, SPLITS, TINY, VISIBLE, Settings, SyntheticError
from rgfl.dota.synthetic.shapes import DRAW, TALL, Brush, clip_colour, jitter, pick, visible_share


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


def _terrain(world: World) -> NDArray[np.uint8]:
    """The ground with its texture."""
    rng, height, width = world.rng, world.height, world.width
    palette = np.array([jitter(rng, colour, 7) for colour, _ in MATERIALS.values()], np.float32)
    if rng.random() < 0.5:
        palette[MATERIAL_INDEX["water"]] = pick(
            rng, ((52, 76, 72), (42, 64, 92), (70, 92, 84), (34, 58, 66)), 6
        )
    strength = np.array([value for _, value in MATERIALS.values()], np.float32)
    octaves = ((96, 0.35), (24, 0.2), (7, 0.16), (2.5, 0.2))
    texture = _noise(rng, height, width, octaves[0][0]) * np.float32(octaves[0][1])
    for cell, weight in octaves[1:]:
        cv2.scaleAdd(_noise(rng, height, width, cell), weight, texture, texture)
    cv2.multiply(texture, _look_up(strength, world.ground), texture)
    water = (world.ground == MATERIAL_INDEX["water"]).astype(np.uint8)
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


def _sprite(item: Item, rng: np.random.Generator) -> tuple[NDArray[np.uint8], int, int]:
    brush = Brush(item.box)
    DRAW[item.kind](brush, rng)
    return brush.patch(), brush.x, brush.y


def _photograph(canvas: NDArray[np.uint8], world: World) -> NDArray[np.uint8]:
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
    world = World(settings, height, width, rng)
    plan(world, index, settings.density)
    kept = []
    inside = 1.0 if settings.difficulty == "easy" else VISIBLE
    for item in world.items:
        is_object = item.kind in CLASSES
        if not is_object or visible_share(item.box, height, width) >= inside:
            kept.append(item)
    world.items = kept
    hidden = cover(world)

    canvas = _terrain(world)
    for points, colour, line in world.marks:
        ends = np.rint((points - 0.5) * 16).astype(np.int32)
        thickness = max(1, round(line))
        cv2.polylines(canvas, [ends], False, clip_colour(colour), thickness, cv2.LINE_AA, shift=4)
    sun = float(rng.uniform(0, 2 * math.pi))
    reach = float(rng.uniform(0.5, 1.1)) * world.ppm
    strength = float(rng.uniform(0.35, 0.6))
    sprites = [_sprite(item, rng) for item in world.items]
    crowns = [_sprite(item, rng) for item in world.trees]
    for things, patches in ((world.items, sprites), (world.trees, crowns)):
        for item, (patch, x, y) in zip(things, patches, strict=True):
            if tall := TALL.get(item.kind, 0.0) * reach:
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
    item = Item(kind, np.asarray(box, np.float64))
    patch, x, y = _sprite(item, np.random.default_rng(seed))
    canvas = np.zeros((*size, 3), np.uint8)
    patch = np.repeat(patch[..., 3:], 4, axis=2)
    _blend(canvas, patch, x, y, 1.0)
    return canvas[..., 0]
