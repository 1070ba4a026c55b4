"""GFLv2's distribution-guided quality: a sharp distribution means a good box."""

from __future__ import annotations

import torch
from torch import Tensor, nn

TOP = 4
HIDDEN = 64


class QualityPredictor(nn.Module):
    """How good a box is, from the shape of its distributions (arXiv 2011.12885).

    The four largest probabilities and their mean, of each of the seven distributions, through two layers to
    one logit; its sigmoid multiplies the class scores.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(7 * (TOP + 1), HIDDEN)
        self.out = nn.Linear(HIDDEN, 1)
        for layer in (self.hidden, self.out):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, lines: Tensor, angle: Tensor) -> Tensor:
        """Logits (…, 1) from probabilities (…, 6, bins) of l, t, r, b, x, y and (…, K) of the angle."""
        top = torch.cat([prob.topk(TOP, dim=-1).values for prob in (lines, angle.unsqueeze(-2))], -2)
        statistics = torch.cat((top, top.mean(-1, keepdim=True)), -1)  # (…, 7, TOP + 1)
        logits: Tensor = self.out(self.hidden(statistics.flatten(-2)).relu())
        return logits
