"""From raw head outputs to boxes and scores; the same formulas serve the loss and the deployed graph.

Shapes: B images, L levels, P points of all levels, C classes, R regression channels, N chosen points.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rgfl.nn.config import ModelConfig
from rgfl.nn.precision import full_precision
from rgfl.nn.quality import QualityPredictor
from rgfl.spec import DetectorSpec

SHIFT_STEP = 0.5  # strides a bin; the points of ATSS lie within two strides of the centre, at borders three


class Raw(NamedTuple):
    """What the network computes before FP32 begins; one tensor a level, finest first."""

    cls: tuple[Tensor, ...]  # (B, C, h, w) class logits
    reg: tuple[Tensor, ...]  # (B, R, h, w) logits of the distributions, bins fastest


def grid(height: int, width: int, stride: int, offset: float) -> Tensor:
    """(height·width, 2) points `x, y` in pixels, row by row: ((i + offset)·stride, (j + offset)·stride)."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float32), torch.arange(width, dtype=torch.float32), indexing="ij"
    )
    return (torch.stack((x, y), -1).reshape(-1, 2) + offset) * stride


def half_atan2(sin: Tensor, cos: Tensor) -> Tensor:
    """atan2(sin, cos) / 2 modulo π, in [−π/4, 3π/4]; 0 for a zero vector. Atan only: ONNX has no Atan2.

    tan(φ/2) = sin φ / (1 + cos φ), taken on the side where the denominator does not cancel.
    """
    length = torch.sqrt(sin * sin + cos * cos + 1e-20)
    half = torch.atan(sin / (length + cos.abs()))
    return torch.where(cos < 0, math.pi / 2 - half, half)


def reg_channels(config: ModelConfig) -> int:
    """R: logits of a point's distributions."""
    bins = config.reg_max + 1
    return 5 * bins if config.mode == "integral" else 6 * bins + config.angle_bins


class BoxDecoder(nn.Module):
    """Distributions at points → boxes `cx, cy, w, h, θ`.

    `integral`: five deltas against a square anchor of anchor_scale·stride at (i·stride, j·stride).
    `gfl`: from the point ((i + ½)·stride, (j + ½)·stride) distances l, t, r, b in strides, in the box's
    rotation; the centre's shift x, y along the image's axes; and a circular distribution of the angle. The
    half offset makes the grid symmetric under flips, so that objects at the right and bottom border find
    points as those at the left and top do.

    Of l and r, t and b the box takes the sums, its sides. Their differences would say where its centre is,
    but at the seam of the angle l and r change places: what no network can follow, so that boxes near
    θ = −π/4 came out at their points, not at their centres.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.mode = config.mode
        self.bins = config.reg_max + 1
        self.anchor_scale = config.anchor_scale
        self.offset = 0.0 if config.mode == "integral" else 0.5
        if config.mode == "integral":
            self.angle_bins = 0
            sides = torch.linspace(-2, 2, self.bins, dtype=torch.float64)
            angle = torch.linspace(-5, 2, self.bins, dtype=torch.float64)
            project = torch.stack((sides, sides, sides, sides, angle))  # (5, bins)
        else:
            self.angle_bins = config.angle_bins
            project = torch.arange(self.bins, dtype=torch.float64)  # (bins,)
            twice = 2 * (-math.pi / 4 + torch.arange(config.angle_bins) * math.pi / config.angle_bins)
            circle = torch.stack((torch.sin(twice), torch.cos(twice)), -1)  # (K, 2)
            self.register_buffer("circle", circle.float(), persistent=False)
            # One product for all: with a vector it is slow, and sums of ONNX Runtime depend on the batch.
            lines = torch.block_diag(*[project.unsqueeze(-1)] * 6)  # (6·bins, 6)
            self.register_buffer("project_lines", lines.float(), persistent=False)
        self.register_buffer("project", project.float(), persistent=False)
        self.quality_predictor = QualityPredictor() if config.quality and config.mode == "gfl" else None

    project: Tensor
    circle: Tensor
    project_lines: Tensor

    def forward(self, reg: Tensor, points: Tensor, strides: Tensor) -> Tensor:
        """Decode.

        Args:
            reg: (…, R) logits, any floating type.
            points: (…, 2) pixels.
            strides: (…, 1) pixels, or a shape that broadcasts.

        Returns:
            (…, 5) float32 boxes, w and h > 0 but in no order, θ in [−π/4, 3π/4].
        """
        with full_precision(reg):
            reg = reg.float()
            return (
                self._integral(reg, points, strides)
                if self.mode == "integral"
                else self._gfl(reg, points, strides)
            )

    def quality(self, reg: Tensor) -> Tensor | None:
        """(…, 1) float32 logits of a factor on the scores, from (…, R) logits; None: the config has none."""
        if self.quality_predictor is None:
            return None
        with full_precision(reg):
            lines, angle = self.split(reg.float())
            logits: Tensor = self.quality_predictor(lines.softmax(-1), angle.softmax(-1))
            return logits

    def split(self, reg: Tensor) -> tuple[Tensor, Tensor]:
        """(…, 6, bins) logits of l, t, r, b, x, y and (…, K) of the angle (`gfl`)."""
        lines = reg[..., : 6 * self.bins].unflatten(-1, (6, self.bins))
        return lines, reg[..., 6 * self.bins :]

    def shift_bins(self, centres: Tensor, points: Tensor, strides: Tensor) -> Tensor:
        """(…, 2) places among the bins of x and y (`gfl`), of centres (…, 2) in pixels."""
        return (centres - points) / (SHIFT_STEP * strides) + (self.bins - 1) / 2

    def uncertainty(self, reg: Tensor, strides: Tensor) -> Tensor:
        """How wide the distributions are (`gfl`): of cx, cy, w, h in pixels, of θ in radians.

            centre  √Σ pₖ (k − Σ pₖ k)² · step · stride        standard deviation
            side    the same of l and r, or t and b, as if these two were independent
            angle   ½ √(2 (1 − R)), R = |Σ pₖ (cos 2θₖ, sin 2θₖ)|    angular deviation on the doubled circle

        The angle's is the standard deviation where the distribution is narrow, and never more than
        1/√2 (40.5°), which says that every angle is as likely. Training aims at the two bins around the
        truth, so what is certain still has up to half a stride, and up to half a bin of angle.

        Args:
            reg: (…, R) logits, any floating type.
            strides: (…, 1) pixels, or a shape that broadcasts.

        Returns:
            (…, 5) float32, ≥ 0.

        Raises:
            ValueError: mode `integral`, whose training sees the means of its distributions only.
        """
        if self.mode != "gfl":
            raise ValueError(
                "uncertainty: only mode 'gfl' trains the shape of its distributions, "
                "'integral' nothing but their means"
            )
        with full_precision(reg):
            reg = reg.float()
            lines, angle_logits = self.split(reg)
            prob = lines.softmax(-1)
            off = self.project - torch.matmul(prob, self.project).unsqueeze(-1)  # (…, 6, bins)
            variance = (prob * off * off).sum(-1)
            centre = torch.sqrt(variance[..., 4:]) * (SHIFT_STEP * strides)
            sides = torch.sqrt(variance[..., :2] + variance[..., 2:4]) * strides
            resultant = torch.matmul(angle_logits.softmax(-1), self.circle)
            length = torch.sqrt((resultant * resultant).sum(-1, keepdim=True))
            angle = 0.5 * torch.sqrt(2 * (1 - length).clamp(min=0))
            return torch.cat((centre, sides, angle), -1)

    def _integral(self, reg: Tensor, points: Tensor, strides: Tensor) -> Tensor:
        prob = reg.unflatten(-1, (5, self.bins)).softmax(-1)
        delta = (prob * self.project).sum(-1)  # (…, 5)
        side = strides * self.anchor_scale
        centre = points + delta[..., :2] * side
        size = side * torch.exp(delta[..., 2:4])
        turns = delta[..., 4:5]
        angle = math.pi * (turns - torch.floor(turns + 0.25))
        return torch.cat((centre, size, angle), -1)

    def _gfl(self, reg: Tensor, points: Tensor, strides: Tensor) -> Tensor:
        lines, angle_logits = self.split(reg)
        # (…, 6) l, t, r, b, x, y in bins
        mean = torch.matmul(lines.softmax(-1).flatten(-2), self.project_lines)
        centre = points + (mean[..., 4:] - (self.bins - 1) / 2) * (SHIFT_STEP * strides)
        size = (mean[..., :2] + mean[..., 2:4]) * strides
        resultant = torch.matmul(angle_logits.softmax(-1), self.circle)
        return torch.cat((centre, size, half_atan2(resultant[..., :1], resultant[..., 1:])), -1)


class LevelDecoder(nn.Module):
    """All levels to `boxes (B, P, 5)` and `scores (B, P, C)`: top-k a level, then `BoxDecoder`.

    Static shapes and no branch on data, so that it can live inside a deployed graph.
    """

    def __init__(self, config: ModelConfig, spec: DetectorSpec) -> None:
        super().__init__()
        self.strides = spec.strides
        self.topk = spec.level_topk
        self.box = BoxDecoder(config)
        self._shapes = [tuple(size // stride for size in spec.image_size) for stride in spec.strides]
        for level, (height, width) in enumerate(self._shapes):
            self.register_buffer(f"places_{level}", self._make(level, height, width), persistent=False)

    def _make(self, level: int, height: int, width: int) -> Tensor:
        points = grid(height, width, self.strides[level], self.box.offset)
        return torch.cat((points, torch.full_like(points[:, :1], self.strides[level])), -1)

    def places(self, level: int, height: int, width: int) -> Tensor:
        """(height·width, 3) x, y, stride of a level's points; ready-made for the spec's image size."""
        ready: Tensor = getattr(self, f"places_{level}")
        if (height, width) == self._shapes[level]:
            return ready
        return self._make(level, height, width).to(ready.device)

    def forward(self, raw: Raw) -> tuple[Tensor, Tensor]:
        with full_precision(raw.cls[0]):
            score, reg, places = self._best(raw)
            return self.box(reg, places[..., :2], places[..., 2:]), score

    def with_uncertainty(self, raw: Raw) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes and scores of the same points, and (B, P, 5) `BoxDecoder.uncertainty`."""
        with full_precision(raw.cls[0]):
            score, reg, places = self._best(raw)
            strides = places[..., 2:]
            return self.box(reg, places[..., :2], strides), score, self.box.uncertainty(reg, strides)

    def _best(self, raw: Raw) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (B, P, C), logits (B, P, R) and places (B, P, 3) of all levels' best points."""
        levels = [self._best_of_level(*level) for level in enumerate(zip(*raw, strict=True))]
        cls, reg = (
            torch.cat([level[part] for level in levels], 2).float().transpose(1, 2) for part in (0, 1)
        )
        places = torch.cat([level[2] for level in levels], 1)
        quality = self.box.quality(reg)  # of these alone: of all points it would cost a light network a third
        score = cls.sigmoid()
        return score if quality is None else score * quality.sigmoid(), reg, places

    def _best_of_level(self, level: int, raw: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, C, k), (B, R, k) and places (B, k, 3) of the points of best class score, best first.

        A level no larger than top-k is kept whole, row by row.
        """
        cls, reg = (part.flatten(2) for part in raw)  # (B, C, P), (B, R, P)
        places = self.places(level, int(raw[0].shape[2]), int(raw[0].shape[3]))
        if not 0 < self.topk < len(places):
            return cls, reg, places.unsqueeze(0).expand(cls.shape[0], -1, -1)
        # By the logits: scores can be equal where these are not. And gathered before they are transposed.
        best = cls.amax(1).topk(self.topk, dim=1).indices  # (B, k)
        cls, reg = (part.gather(2, best.unsqueeze(1).expand(-1, part.shape[1], -1)) for part in (cls, reg))
        return cls, reg, F.embedding(best, places)
