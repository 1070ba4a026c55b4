"""From the network's boxes and scores to detections: threshold, class-wise rotated NMS, canonical boxes.

For every runner whose graph has no NMS inside. No torch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rgfl.boxes import canonical
from rgfl.detections import Detections
from rgfl.geometry import rotated_nms
from rgfl.spec import DetectorSpec

# Sides outside make a box degenerate: Limits<float> of plugins/core/scalar.hpp, as the CUDA kernel has it.
SIDE_RANGE = (np.float32(1e-18), np.float32(1e18))


def select(boxes: NDArray[np.float32], scores: NDArray[np.float32], spec: DetectorSpec) -> list[Detections]:
    """Detections of each image, by falling score; equal scores by point, then class.

    Args:
        boxes: (B, P, 5), w and h in any order.
        scores: (B, P, C).
        spec: score_threshold, iou_threshold, pre_nms_topk and max_detections are read.

    A score or box that is not a number never wins, nor does a degenerate box (plugins/core/rotated_iou.hpp).
    """
    if boxes.ndim != 3 or boxes.shape[2] != 5 or scores.shape != (*boxes.shape[:2], len(spec.classes)):
        raise ValueError(
            f"expected boxes (B, P, 5) and scores (B, P, {len(spec.classes)}), got {boxes.shape} and "
            f"{scores.shape}"
        )
    return [_select_one(*image, spec) for image in zip(boxes, scores, strict=True)]


def _select_one(boxes: NDArray[np.float32], scores: NDArray[np.float32], spec: DetectorSpec) -> Detections:
    flat = np.ascontiguousarray(scores, dtype=np.float32).ravel()
    candidate = np.flatnonzero(flat > np.float32(spec.score_threshold))
    point, label = np.divmod(candidate, scores.shape[1])
    box, score = np.asarray(boxes, dtype=np.float32)[point], flat[candidate]
    low, high = SIDE_RANGE
    sides = box[:, 2:4]
    valid = np.isfinite(box).all(1) & np.isfinite(score) & ((sides >= low) & (sides <= high)).all(1)
    if not valid.all():
        box, score, label = box[valid], score[valid], label[valid]
    if 0 < spec.pre_nms_topk < len(score):
        best = np.sort(np.argsort(-score, kind="stable")[: spec.pre_nms_topk])
        box, score, label = box[best], score[best], label[best]
    if not len(score):
        return Detections.empty()
    label = label.astype(np.int32)
    kept = rotated_nms(box, score, spec.iou_threshold, label)[: spec.max_detections]
    # Only now: swapping w and h before NMS would flip near-squares on rounding.
    return Detections(canonical(box[kept]).astype(np.float32), score[kept], label[kept])
