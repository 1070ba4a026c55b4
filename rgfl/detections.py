"""The record that crosses folders: what was found in one image or tile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Detections:
    """Rotated boxes of one image, in its pixels.

    Attributes:
        boxes: (N, 5) float32, `cx, cy, w, h, θ` as in rgfl.boxes.
        scores: (N,) float32 in [0, 1].
        labels: (N,) int32, indices into the spec's classes.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int32]

    def __post_init__(self) -> None:
        count = len(self.boxes)
        if self.boxes.shape != (count, 5) or self.scores.shape != (count,) or self.labels.shape != (count,):
            raise ValueError(
                "expected boxes (N, 5), scores (N,), labels (N,), got "
                f"{self.boxes.shape}, {self.scores.shape}, {self.labels.shape}"
            )

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


# What merging and evaluation ask of a model: uint8 RGB tiles (B, H, W, 3) to one record a tile.
Infer = Callable[[NDArray[np.uint8]], list[Detections]]
