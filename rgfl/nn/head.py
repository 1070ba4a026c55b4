"""The dense head: two towers shared over the levels, class logits and distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rgfl.nn.config import ModelConfig
from rgfl.nn.decode import BoxDecoder, Raw

GROUPS = 32
PRIOR = 0.01  # score of every class at every point before training


class Tower(nn.Module):
    """3×3 convolutions shared over the levels; GroupNorm shared too, or one BatchNorm a level.

    Statistics differ from level to level, so a shared BatchNorm would be wrong in training; one a level
    folds into its convolution at export, which GroupNorm never does.
    """

    def __init__(
        self, in_channels: int, channels: int, depth: int, norm: Literal["group", "batch"], levels: int
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(in_channels if index == 0 else channels, channels, 3, padding=1, bias=False)
            for index in range(depth)
        )
        copies = levels if norm == "batch" else 1
        self.norms = nn.ModuleList(
            nn.ModuleList(
                nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(GROUPS, channels)
                for _ in range(copies)
            )
            for _ in range(depth)
        )

    def forward(self, x: Tensor, level: int) -> Tensor:
        for conv, norms in zip(self.convs, self.norms, strict=True):
            assert isinstance(norms, nn.ModuleList)
            x = norms[level % len(norms)](conv(x)).relu()
        return x


class QualityPredictor(nn.Module):
    """GFLv2's distribution-guided quality: a sharp distribution means a good box.

    The four largest probabilities and their mean, of each of the seven distributions, through two 1×1
    convolutions to one logit; its sigmoid multiplies the class scores.
    """

    TOP = 4
    HIDDEN = 64

    def __init__(self, bins: int, angle_bins: int) -> None:
        super().__init__()
        self.bins, self.angle_bins = bins, angle_bins
        self.hidden = nn.Conv2d((self.TOP + 1) * 7, self.HIDDEN, 1)
        self.out = nn.Conv2d(self.HIDDEN, 1, 1)

    def forward(self, reg: Tensor) -> Tensor:
        lines = reg[:, : 6 * self.bins].unflatten(1, (6, self.bins)).softmax(2)  # (B, 6, bins, h, w)
        angle = reg[:, 6 * self.bins :].unsqueeze(1).softmax(2)  # (B, 1, K, h, w)
        top = torch.cat([prob.topk(self.TOP, dim=2).values for prob in (lines, angle)], 1)  # (B, 7, 4, h, w)
        statistics = torch.cat((top, top.mean(2, keepdim=True)), 2).flatten(1, 2)
        return self.out(self.hidden(statistics).relu())


class Head(nn.Module):
    """Pyramid → `Raw`."""

    def __init__(self, config: ModelConfig, num_classes: int, levels: int) -> None:
        super().__init__()
        width, decoder = config.head_channels, BoxDecoder(config)
        arguments = (config.neck_channels, width, config.head_convs, config.head_norm, levels)
        self.cls_tower = Tower(*arguments)
        self.reg_tower = Tower(*arguments)
        in_channels = width if config.head_convs else config.neck_channels
        self.cls = nn.Conv2d(in_channels, num_classes, 3, padding=1)
        self.reg = nn.Conv2d(in_channels, decoder.channels, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(levels)) if config.mode == "gfl" else None
        self.checkpointed = False  # towers keep their input alone for the backward pass
        self.quality = None
        if config.quality:
            self.quality = QualityPredictor(decoder.bins, decoder.angle_bins)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        assert self.cls.bias is not None
        nn.init.constant_(self.cls.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, pyramid: Sequence[Tensor]) -> Raw:
        cls, reg, quality = [], [], []
        for level, feature in enumerate(pyramid):
            cls.append(self.cls(self._run(self.cls_tower, feature, level)))
            distribution = self.reg(self._run(self.reg_tower, feature, level))
            if self.scales is not None:
                distribution = distribution * self.scales[level]
            reg.append(distribution)
            if self.quality is not None:
                quality.append(self.quality(distribution))
        return Raw(tuple(cls), tuple(reg), tuple(quality))

    def _run(self, tower: nn.Module, feature: Tensor, level: int) -> Tensor:
        if self.checkpointed and torch.is_grad_enabled():
            out: Tensor = checkpoint(tower, feature, level, use_reentrant=False)
            return out
        return tower(feature, level)
