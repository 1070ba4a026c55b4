"""Evaluation while training: images are those that the labels were read for, and one is held at a time."""

import dataclasses
import weakref

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs PyTorch: pip install 'rgfl[train]'")

from rgfl.dataset import Picture
from rgfl.detections import Detections
from rgfl.dota import images
from rgfl.dota.images import ImageError
from rgfl.dota.labels import Objects
from rgfl.evenly import evenly
from rgfl.recipes import EvaluationConfig
from rgfl.spec import DetectorSpec
from rgfl.validate import find, over_labels

SPEC = DetectorSpec(classes=("plane",), image_size=(128, 128))
CONFIG = EvaluationConfig(test_size=128, test_stride=128)


def nothing(tiles):
    return [Detections.empty() for _ in tiles]


def picture(folder, name="P1", height=60, width=80):
    path = folder / f"{name}.png"
    assert cv2.imwrite(str(path), np.full((height, width, 3), 9, np.uint8))
    return Picture(name, path, height, width, Objects.empty())


def test_an_image_of_another_size_than_its_labels_is_an_error(tmp_path):
    """It was evaluated, against labels of other pixels."""
    replaced = picture(tmp_path)
    assert find(nothing, [replaced], SPEC, CONFIG)["P1"] is not None
    assert cv2.imwrite(str(replaced.path), np.zeros((80, 60, 3), np.uint8))
    for look in (
        lambda: find(nothing, [replaced], SPEC, CONFIG),
        lambda: over_labels(replaced, Detections.empty(), SPEC.classes),
    ):
        with pytest.raises(ImageError, match=r"its header says 60 × 80 .*, its pixels are 80 × 60"):
            look()


def test_images_are_looked_at_at_all_scales(tmp_path):
    """Objects longer than a tile are seen in a smaller picture, while training too."""
    seen = []

    def infer(tiles):
        seen.extend(len(np.unique(tile.reshape(-1, 3), axis=0)) for tile in tiles)
        return [Detections([[30, 20, 8, 4, 0]], [0.9], [0]) for _ in tiles]

    config = dataclasses.replace(CONFIG, test_scales=(0.5, 1.0))
    found = find(infer, [picture(tmp_path)], SPEC, config)["P1"]
    assert len(seen) == 2
    assert sorted(np.round(found.boxes[:, 0]).tolist()) == [30, 60]


def test_some_of_many_are_evenly_spaced():
    chosen = {count: "".join(evenly("0123456789", count)) for count in (0, 1, 2, 4, 5, 10, 99)}
    every = "0123456789"
    assert chosen == {0: "", 1: "0", 2: "09", 4: "0369", 5: "02479", 10: every, 99: every}
    assert evenly([], 4) == []


def test_one_image_is_held_at_a_time(tmp_path, monkeypatch):
    """A scene of 20,000 × 20,000 pixels is 1.2 GB, and the one before it lay beside it."""
    seen: list[weakref.ref] = []
    held = []
    read = images.read_image

    class Pixels(np.ndarray):
        pass

    def counted(path):
        held.append(sum(one() is not None for one in seen))
        pixels = read(path).view(Pixels)
        seen.append(weakref.ref(pixels))
        return pixels

    monkeypatch.setattr("rgfl.dataset.read_image", counted)
    find(nothing, [picture(tmp_path, name) for name in ("P1", "P2", "P3")], SPEC, CONFIG)
    assert held == [0, 0, 0]


def test_a_stop_is_heard_between_two_tiles_of_one_image(tmp_path):
    asked = []

    def stopped():
        asked.append(True)
        return len(asked) == 3

    large = picture(tmp_path, height=128 * 5, width=128 * 5)
    assert find(nothing, [large], SPEC, CONFIG, stopped) is None
    assert len(asked) == 3
    asked[:] = [True] * 3
    assert set(find(nothing, [large, picture(tmp_path, "P2")], SPEC, CONFIG, stopped)) == {"P1", "P2"}
