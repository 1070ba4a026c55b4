"""What a detector is made of, as plain data: no torch, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rgfl.spec import HeadMode


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture and loss constants of one detector.

    Each field's comment is its `--help` text.
    """

    backbone: str = "resnet50.tv_in1k"  # timm model name
    pretrained: bool = True  # ImageNet weights from timm's hub; ignored where `weights` is given
    weights: str = ""
    # backbone weights: a file (.safetensors, .pth: read without pickle code) or an installed package with one
    frozen_stages: int = 1  # backbone: 0 freezes nothing, 1 the stem and the first stage, and so on
    norm_eval: bool = True  # backbone: BatchNorm keeps its ImageNet statistics
    neck_channels: int = 256  # channels of every FPN level
    finest_stride: int = 8  # pixels a cell of the finest level; 4: for objects of a few pixels, and slower
    head_channels: int = 256  # channels of the head's towers
    head_convs: int = 4  # 3×3 convolutions in each tower
    head_norm: Literal["group", "batch"] = "group"  # "batch": one BatchNorm a level, folded at export
    mode: HeadMode = "gfl"  # "integral": the published rgfl row; "gfl": full Generalized Focal Loss
    reg_max: int = 16  # last bin of the distance distributions
    angle_bins: int = 18  # bins of the circular angle distribution over π (gfl only)
    quality: bool = True  # GFLv2's quality predictor: sharp distributions raise a box's scores (gfl only)
    anchor_scale: float = 8.0  # ATSS anchor side in strides (the published row: 4)
    square_ratio: float = 1.2  # w/h up to which a box counts as square: θ or θ + π/2, whichever is nearer
    atss_topk: int = 9  # nearest anchors per level that ATSS considers
    cls_loss_weight: float = 1.0  # focal loss (integral) or Quality Focal Loss (gfl)
    iou_loss_weight: float = 2.0  # rotated-IoU loss (the published row: 1)
    dfl_loss_weight: float = 0.25  # Distribution Focal Loss: mean of the four distances + mean of the shifts
    angle_loss_weight: float = 0.25  # Distribution Focal Loss of the angle
