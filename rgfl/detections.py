"""The record that crosses folders: what was found in one image or tile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rgfl.geometry import rotated_nms


@dataclass(frozen=True)
class Detections:
    """Rotated boxes of one image, in its pixels.

    Given as NumPy arrays, lists or CPU tensors; kept as NumPy arrays of these types.

    Attributes:
        boxes: (N, 5) float32, `cx, cy, w, h, θ` as in rgfl.boxes.
        scores: (N,) float32 in [0, 1].
        labels: (N,) int32, indices into the spec's classes.

    Raises:
        ValueError: shapes disagree, or labels are not whole numbers.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int32]

    def __post_init__(self) -> None:
        boxes, scores = np.asarray(self.boxes, np.float32), np.asarray(self.scores, np.float32)
        labels = _class_ids(self.labels)
        if boxes.shape == (0,):  # an empty list has no second axis
            boxes = boxes.reshape(0, 5)
        count = boxes.size // 5
        if boxes.shape != (count, 5) or scores.shape != (count,) or labels.shape != (count,):
            raise ValueError(
                "expected boxes (N, 5), scores (N,), labels (N,), got "
                f"{boxes.shape}, {scores.shape}, {labels.shape}"
            )
        for name, values in (("boxes", boxes), ("scores", scores), ("labels", labels)):
            object.__setattr__(self, name, values)

    @classmethod
    def empty(cls) -> Detections:
        """No detections."""
        return cls(np.zeros((0, 5), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))

    @classmethod
    def concatenate(cls, parts: Sequence[Detections]) -> Detections:
        """All of `parts`, in their order."""
        if not parts:
            return cls.empty()
        return cls(
            np.concatenate([part.boxes for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.labels for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: NDArray | slice) -> Detections:
        return Detections(self.boxes[index], self.scores[index], self.labels[index])

    def at_least(self, scores: ArrayLike) -> Detections:
        """Those of the least score of their class, or more; `scores` (C,), or one for all classes."""
        least = np.asarray(scores, np.float32)
        return self[self.scores >= (least[self.labels] if least.ndim else least)]

    def across(self, iou: float) -> Detections:
        """The best of those that overlap by more than `iou` in [0, 1], whatever their classes; best first."""
        return self[rotated_nms(self.boxes, self.scores, iou)]


def _class_ids(labels: ArrayLike) -> NDArray[np.int32]:
    given = np.asarray(labels)
    if given.dtype.kind in "iuf":
        with np.errstate(invalid="ignore"):  # NaN becomes some number, and differs from it
            ids = given.astype(np.int32, copy=False)
        if ids is given or np.array_equal(ids, given):
            return ids
    raise ValueError(
        "labels: expected whole numbers, indices into the classes, got "
        f"{given.dtype} {given.ravel()[:5].tolist()}"
    )


# What merging and evaluation ask of a model: uint8 RGB tiles (B, H, W, 3) to one record a tile.
Infer = Callable[[NDArray[np.uint8]], list[Detections]]
