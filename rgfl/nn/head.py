"""The dense head: two towers shared over the levels, class logits and distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rgfl.nn.config import ModelConfig
from rgfl.nn.decode import Raw, reg_channels

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


class Head(nn.Module):
    """Pyramid → `Raw`."""

    def __init__(self, config: ModelConfig, num_classes: int, levels: int) -> None:
        super().__init__()
        width = config.head_channels
        arguments = (config.neck_channels, width, config.head_convs, config.head_norm, levels)
        self.cls_tower = Tower(*arguments)
        self.reg_tower = Tower(*arguments)
        in_channels = width if config.head_convs else config.neck_channels
        self.cls = nn.Conv2d(in_channels, num_classes, 3, padding=1)
        self.reg = nn.Conv2d(in_channels, reg_channels(config), 3, padding=1)
        self.scales = nn.Parameter(torch.ones(levels)) if config.mode == "gfl" else None
        self.checkpointed = False  # towers keep their input alone for the backward pass
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        assert self.cls.bias is not None
        nn.init.constant_(self.cls.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, pyramid: Sequence[Tensor]) -> Raw:
        cls, reg = [], []
        for level, feature in enumerate(pyramid):
            cls.append(self.cls(self._run(self.cls_tower, feature, level)))
            distribution = self.reg(self._run(self.reg_tower, feature, level))
            if self.scales is not None:
                distribution = distribution * self.scales[level]
            reg.append(distribution)
        return Raw(tuple(cls), tuple(reg))

    def _run(self, tower: nn.Module, feature: Tensor, level: int) -> Tensor:
        if self.checkpointed and torch.is_grad_enabled():
            out: Tensor = checkpoint(tower, feature, level, use_reentrant=False)
            return out
        return tower(feature, level)
