"""Feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class FeaturePyramid(nn.Module):
    """FPN: 1×1 laterals, nearest upsampling by 2, 3×3 outputs, further levels by strided convs on the output.

    Every size must halve exactly from level to level (the spec's image sizes do), so that upsampling has
    the fixed scale 2 and exports as such.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, levels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(wide, channels, 1) for wide in in_channels)
        self.outputs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        self.extras = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(levels - len(in_channels))
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        merged = [lateral(feature) for lateral, feature in zip(self.laterals, features, strict=True)]
        for level in range(len(merged) - 1, 0, -1):
            up = F.interpolate(merged[level], scale_factor=2.0, mode="nearest")
            merged[level - 1] = merged[level - 1] + up
        pyramid = [output(feature) for output, feature in zip(self.outputs, merged, strict=True)]
        for extra in self.extras:
            pyramid.append(extra(pyramid[-1]))
        return pyramid
