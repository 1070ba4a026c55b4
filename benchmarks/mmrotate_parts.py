"""What mmrotate is lent in `side_by_side.py`, to run on a CPU and from weights that both have.

Its differentiable rotated IoU is compiled for CUDA alone, so its rotated-IoU loss gets rgfl's IoU here. And
rgfl's backbone can be its backbone.
"""

from __future__ import annotations

from typing import Any

from mmrotate.models.losses import rotated_iou_loss
from mmrotate.registry import MODELS

from rgfl.nn.backbone import Backbone
from rgfl.nn.config import ModelConfig
from rgfl.nn.iou import rotated_iou_pairwise

rotated_iou_loss.diff_iou_rotated_2d = rotated_iou_pairwise


@MODELS.register_module()
class RgflBackbone(Backbone):
    """Features of strides 8, 16 and 32; `weights` and the rest are fields of rgfl's ModelConfig."""

    def __init__(self, name: str, init_cfg: Any = None, **fields: Any) -> None:
        super().__init__(ModelConfig(backbone=name, **fields), (8, 16, 32))

    def init_weights(self) -> None:
        """They are loaded when it is made."""
