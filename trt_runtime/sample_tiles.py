"""Tiles to run a network on: from a folder of images, or made up where nobody gives any."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rgfl.dota.images import IMAGE_SUFFIXES, find_images, read_image
from rgfl.dota.nearby import nearby
from rgfl.dota.tiling import crop, windows
from rgfl.errors import InputError
from rgfl.spec import DetectorSpec


def sample_tiles(spec: DetectorSpec, count: int, images: Path | None = None) -> NDArray[np.uint8]:
    """(count, H, W, 3) tiles of `images`, or patterned ones without it."""
    if images is None:
        return patterned_tiles(spec.image_size, count)
    return image_tiles(images, spec.image_size, spec.pad_value, count)


def patterned_tiles(size: tuple[int, int], count: int, seed: int = 0) -> NDArray[np.uint8]:
    """(count, H, W, 3) tiles with what a detector reacts to: texture, shading, bright rotated rectangles."""
    random = np.random.default_rng(seed)
    height, width = size
    tiles = np.empty((count, height, width, 3), np.uint8)
    for index in range(count):
        coarse = random.uniform(40, 160, (height // 32 + 2, width // 32 + 2, 3)).astype(np.float32)
        ground = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        tile = np.clip(ground + random.normal(0, 6, ground.shape), 0, 255).astype(np.uint8)
        for _ in range(24):
            centre = random.uniform(0, [width, height]).tolist()
            sides = random.uniform(6, max(8, min(size) / 6), 2).tolist()
            corners = cv2.boxPoints((centre, sides, float(random.uniform(0, 180))))
            colour = random.integers(0, 256, 3).tolist()
            cv2.fillPoly(tile, [np.round(corners).astype(np.int32)], colour, cv2.LINE_AA)
        tiles[index] = tile
    return tiles


def image_tiles(
    directory: Path, size: tuple[int, int], pad_value: Sequence[int], count: int
) -> NDArray[np.uint8]:
    """(count, H, W, 3): the first window of each image in `directory`, repeated if there are too few."""
    paths = _first_images(directory, count)
    tiles = np.empty((count, *size, 3), np.uint8)
    tiles[:] = pad_value
    for index in range(len(paths)):
        corner = read_image(paths[index])[: size[0], : size[1]].copy()  # the scene itself is let go
        tiles[index, : corner.shape[0], : corner.shape[1]] = corner
    return tiles[np.arange(count) % len(paths)]


def detection_tiles(spec: DetectorSpec, count: int, images: Path | None) -> NDArray[np.uint8]:
    """At most `count` tiles, spread over the images of the folder; made up without it."""
    if images is None:
        return patterned_tiles(spec.image_size, count)
    size, paths = spec.tile_side, _first_images(images, count)
    cut: list[NDArray[np.uint8]] = []
    for index, path in enumerate(paths):
        image = read_image(path)
        places = windows(image.shape[0], image.shape[1], size, 0)
        share = -(-(count - len(cut)) // (len(paths) - index))  # of what is left, rounded up
        cut += [crop(image, x, y, size, spec.pad_value) for x, y in places[:share]]
        del image  # before the next one is read
    return np.stack(cut)


def _first_images(directory: Path, count: int) -> list[Path]:
    if found := list(find_images(directory).values()):
        return found[:count]
    raise InputError(f"--images {directory}: no image in this folder{nearby(directory, IMAGE_SUFFIXES)}")
