"""What a detector is worth on full validation images, while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from rgfl.dataset import Picture
from rgfl.detections import Detections, Infer
from rgfl.dota.average_precision import Result, evaluate_detections
from rgfl.dota.labels import version_of
from rgfl.dota.merge import NotFiniteError, detect
from rgfl.draw import picture as draw_picture
from rgfl.errors import TrainingError
from rgfl.recipes import EvaluationConfig
from rgfl.spec import DetectorSpec

LONGEST_SIDE = 1024  # pixels of a drawn picture


class _Stopped(Exception):
    pass


def find(
    infer: Infer,
    pictures: Iterable[Picture],
    spec: DetectorSpec,
    config: EvaluationConfig,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Detections] | None:
    """What is found in each full image, its tiles merged; None if `stopped`, asked after each tile, said so.

    Raises:
        TrainingError: a detection in an image is NaN or infinite.
        ImageError: an image cannot be read, or is not of the size that its labels were read for.
    """

    def go_on(_done: int, _tiles: int) -> None:
        if stopped():
            raise _Stopped

    found = {}
    for picture in pictures:
        try:
            found[picture.name] = detect(
                picture.read(),  # no variable holds the pixels: they are freed before the next image is read
                infer,
                size=config.test_size,
                stride=config.test_stride,
                pad_value=spec.pad_value,
                scales=config.test_scales,
                batch=config.test_batch,
                progress=go_on,
            )
        except _Stopped:
            return None
        except NotFiniteError as error:
            raise TrainingError(f"{picture.path}: {error}") from error
    return found


def score(
    found: dict[str, Detections],
    pictures: Sequence[Picture],
    spec: DetectorSpec,
    left_out: Iterable[str] = (),
) -> Result:
    """AP of what was found in all these images; what of the labels is left out tells DOTA's version, too."""
    truth = {picture.name: picture.objects for picture in pictures}
    ordered = {name: found[name] for name in truth}  # equal scores are ranked by the images' order
    version = version_of([*spec.classes, *left_out])
    return evaluate_detections(ordered, truth, spec.classes, version=version)


def without_truth(pictures: Sequence[Picture], spec: DetectorSpec, left_out: Iterable[str] = ()) -> list[str]:
    """Classes of which these images hold no object that counts: AP 0 whatever is found."""
    nothing = {picture.name: Detections.empty() for picture in pictures}
    counts = score(nothing, pictures, spec, left_out).counts
    return [name for name, count in counts.items() if not count["ground_truth"]]


def over_labels(picture: Picture, found: Detections, classes: Sequence[str]) -> NDArray[np.uint8]:
    """What was found over what is labelled, for a look while training: at most 1024 pixels a side."""
    drawn = draw_picture(picture.read(), found, tuple(classes), truth=picture.objects)
    scale = LONGEST_SIDE / max(drawn.shape[:2])
    if scale >= 1:
        return drawn
    size = (round(scale * drawn.shape[1]), round(scale * drawn.shape[0]))
    return np.asarray(cv2.resize(drawn, size, interpolation=cv2.INTER_AREA), np.uint8)
