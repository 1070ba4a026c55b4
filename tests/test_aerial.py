"""Real aerial images: their labels, their pixels, and the way from tiles to AP without a network.

The images may be used for academic work only, so they are not in the repository. RGFL_AERIAL names their
folder (train/, val/ and unlabelled/); beside a checkout it may also lie in ../shared/data/aerial.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rgfl import boxes
from rgfl.detections import Detections
from rgfl.dota import labels, merge
from rgfl.dota.average_precision import evaluate_detections
from rgfl.dota.images import find_images, read_image
from rgfl.dota.tiling import clip_objects, windows

FOLDER = Path(os.environ.get("RGFL_AERIAL", Path(__file__).parents[2] / "shared/data/aerial"))
pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no aerial images in {FOLDER}: set RGFL_AERIAL"),
]


@pytest.mark.parametrize(("split", "images", "objects"), [("train", 58, 829), ("val", 16, 210)])
def test_every_label_and_image_is_read(split: str, images: int, objects: int) -> None:
    names = labels.find_classes(FOLDER / split / "labelTxt")
    truth = labels.read_label_folder(FOLDER / split / "labelTxt", names)
    files = find_images(FOLDER / split / "images")
    assert set(files) == set(truth)
    assert len(files) == images
    assert sum(len(found) for found in truth.values()) == objects
    assert set(names) <= set(labels.CLASSES["1.0"])
    for name, path in files.items():
        height, width, _ = read_image(path).shape
        found = boxes.from_quads(truth[name].quads)
        assert np.isfinite(found).all()
        assert (found[:, 2:4] > 0).all()
        assert (found[:, :2] > 0).all()
        assert (found[:, :2] < (width, height)).all()


def test_labels_found_tile_by_tile_merge_to_full_ap() -> None:
    """A perfect detector on tiles of 512² is perfect on the images: nothing is lost or doubled by merging."""
    names = labels.find_classes(FOLDER / "val/labelTxt")
    truth = labels.read_label_folder(FOLDER / "val/labelTxt", names)
    size, stride = 512, 256
    found = {}
    for name, path in find_images(FOLDER / "val/images").items():
        image, objects = read_image(path), truth[name]
        corners = iter(windows(*image.shape[:2], size, stride))

        def infer(tiles: NDArray[np.uint8], corners=corners, objects=objects) -> list[Detections]:
            parts = []
            for _ in tiles:
                seen = clip_objects(objects, *next(corners), (size, size), 0.7, cut="whole")
                seen = seen[seen.difficult < 2]
                boxed = boxes.from_quads(seen.quads).astype(np.float32)
                parts.append(Detections(boxed, np.ones(len(seen), np.float32), seen.labels))
            return parts

        found[name] = merge.detect(
            image, infer, size=size, stride=stride, pad_value=(0, 0, 0), iou_threshold=0.5
        )
    result = evaluate_detections(found, truth, names, version="1.0")
    assert result.ap50 == pytest.approx(1.0)
    assert result.ap75 > 0.97  # quads of the labels are not all rectangles
