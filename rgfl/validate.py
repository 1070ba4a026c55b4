"""What a detector is worth on full validation images, while it trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from rgfl.boxes import to_quads
from rgfl.data import Picture
from rgfl.detections import Detections, Infer
from rgfl.dota.average_precision import Result, evaluate_detections
from rgfl.dota.images import read_image
from rgfl.dota.labels import CLASSES
from rgfl.dota.merge import detect
from rgfl.recipes import EvaluationConfig
from rgfl.spec import DetectorSpec

TRUTH, FOUND = (0, 255, 0), (255, 64, 64)  # RGB
DRAWN_SCORE = 0.3
LONGEST_SIDE = 1024  # pixels of a drawn picture


def validate(
    infer: Infer,
    pictures: Sequence[Picture],
    spec: DetectorSpec,
    config: EvaluationConfig,
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[Result, dict[str, Detections]] | None:
    """AP on merged full images, and what was found in each; None if `stopped` said so in between."""
    found = {}
    for picture in pictures:
        if stopped():
            return None
        found[picture.name] = detect(
            read_image(picture.path),
            infer,
            size=config.test_size,
            stride=config.test_stride,
            pad_value=spec.pad_value,
            iou_threshold=config.merge_iou,
            batch=config.test_batch,
        )
    truth = {picture.name: picture.objects for picture in pictures}
    return evaluate_detections(found, truth, spec.classes, version=version_of(spec.classes)), found


def version_of(classes: Sequence[str]) -> str:
    """The DOTA version whose rule for difficult objects holds; own classes follow 1.0."""
    return next((version for version, names in CLASSES.items() if tuple(classes) == tuple(names)), "1.0")


def draw(picture: Picture, found: Detections, classes: Sequence[str]) -> NDArray[np.uint8]:
    """The image with its labels in green and, in red with class and score, what was found (from .3)."""
    image = read_image(picture.path)
    scale = min(1.0, LONGEST_SIDE / max(image.shape[:2]))
    if scale < 1:
        size = (round(scale * image.shape[1]), round(scale * image.shape[0]))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    for quad in picture.objects.quads:
        _outline(image, quad * scale, TRUTH)
    for row in np.flatnonzero(found.scores >= DRAWN_SCORE):
        quad = to_quads(found.boxes[row : row + 1])[0] * scale
        _outline(image, quad, FOUND)
        text = f"{classes[found.labels[row]]} {found.scores[row]:.2f}"
        corner = quad.reshape(4, 2)[0].astype(int).tolist()
        cv2.putText(image, text, corner, cv2.FONT_HERSHEY_SIMPLEX, 0.35, FOUND, 1, cv2.LINE_AA)
    return image


def _outline(image: NDArray[np.uint8], quad: NDArray[np.floating], color: tuple[int, int, int]) -> None:
    points = np.round(quad.reshape(4, 2) * 8).astype(np.int32)
    cv2.polylines(image, [points], True, color, 1, cv2.LINE_AA, shift=3)
