"""A data set of four images, tiles of it, and pictures without files."""

from pathlib import Path

import cv2
import numpy as np

from rgfl.dataset import Picture, read_dataset
from rgfl.dota.labels import Objects
from rgfl.recipes import AugmentConfig, DataConfig
from rgfl.tiles import Tiles

PLAIN = AugmentConfig()
SMALL = DataConfig(tile_size=128, stride=64)
BUSY = AugmentConfig(
    flip_horizontal=0.5, flip_vertical=0.5, right_angle=0.5, rotate=0.5, scale=(0.5, 2), mosaic=0.5,
    brightness=0.2, contrast=0.2, saturation=0.3, hue=10, gray=0.1,
)  # fmt: skip
SQUARE = "10 10 40 10 40 30 10 30"


def write_split(folder, images):
    """images: {name: (size or array, label text or None)}"""
    for kind in ("images", "labelTxt"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for name, (pixels, text) in images.items():
        if isinstance(pixels, tuple):
            pixels = np.random.default_rng(len(name)).integers(0, 256, (*pixels, 3), dtype=np.uint8)
        assert cv2.imwrite(str(folder / "images" / f"{name}.png"), pixels[..., ::-1])
        if text is not None:
            (folder / "labelTxt" / f"{name}.txt").write_text(text)


def make_folder(root):
    """Three images to learn from, of which one is smaller and one larger than a tile, and one to evaluate."""
    write_split(
        root / "train",
        {
            "small": ((60, 80), f"{SQUARE} ship 0\n"),
            "tile": ((128, 128), f"{SQUARE} plane 0\n50 50 90 60 80 100 40 90 ship 1\n"),
            "large": ((300, 400), "200 200 260 200 260 230 200 230 plane 0\n"),
        },
    )
    write_split(root / "val", {"v": ((128, 128), "")})
    return root


def tiles_of(folder, data=SMALL, augment=PLAIN, seed=0):
    dataset = read_dataset(folder)
    return Tiles(dataset.train, dataset.classes, data, augment, seed, cache_mb=1)


def squares(*corners):
    """Objects of 20 pixels a side, upper left corners given."""
    quads = np.array([[x, y, x + 20, y, x + 20, y + 20, x, y + 20] for x, y in corners], float)
    return Objects(quads, np.zeros(len(quads), np.int32), np.zeros(len(quads), np.int32))


def pictures_of(*sizes):
    """Pictures of (height, width) without files, an object in each."""
    square = squares((45, 45))
    return [Picture(f"P{index}", Path(f"P{index}.png"), *size, square) for index, size in enumerate(sizes)]


def many_pictures():
    """Tiles of 5000 pictures without files."""
    rng = np.random.default_rng(0)
    pictures = []
    for index in range(5000):
        objects = Objects(rng.uniform(0, 128, (4, 8)), np.zeros(4, np.int32), np.zeros(4, np.int32))
        pictures.append(Picture(f"P{index}", Path(f"/data/train/images/P{index}.png"), 128, 128, objects))
    return Tiles(pictures, ("ship",), SMALL, PLAIN, seed=0)
