"""INT8 as training sees it: what export/quantize.py will round is rounded in the forward pass.

The weights learn to live with it (quantisation-aware training; Jacob et al., arXiv 1712.05877). Nothing is
stored: no scale, no new key in the weights, so a checkpoint is exported and quantised like any other.

- Weights: symmetric int8, a scale an output channel, as in the export. BatchNorm behind only scales the
  channels, so that folding it there changes no step.
- Inputs: symmetric int8, one scale a tensor, from the greatest magnitude in the batch (in the part of it
  that is computed at once, under --accumulate and on several GPUs).
- Not the output convolutions (cls, reg), and not squeeze-and-excitation.

Gradients pass the rounding as if it were not there.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from rgfl.nn.detector import Detector

LEVELS = 127
LEAST = LEVELS * torch.finfo(torch.float32).tiny


def fake_int8(detector: Detector) -> list[str]:
    """Let the convolutions that the export quantises round, in place; returns their names.

    The detector's weights keep their names and values.
    """
    rounded = []
    for scope in ("backbone", "neck", "head.cls_tower", "head.reg_tower"):
        for name, module in detector.get_submodule(scope).named_modules():
            if isinstance(module, nn.Conv2d):
                module.__class__ = _rounding(type(module))  # type: ignore[arg-type]
                rounded.append(f"{scope}.{name}")
    return rounded


@cache
def _rounding(kind: type[nn.Conv2d]) -> type[nn.Conv2d]:
    """A subclass of a convolution, timm's kinds too, that rounds its input and weight."""

    class Rounding(kind):  # type: ignore[misc,valid-type]
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[2:] == (1, 1):  # squeeze-and-excitation
                return super().forward(x)
            # Found before the parameter of this name, whichever way the convolution is computed.
            self.__dict__["weight"] = round_weight(self._parameters["weight"])
            try:
                return super().forward(round_input(x))
            finally:
                del self.__dict__["weight"]

    Rounding.__name__ = Rounding.__qualname__ = f"Rounding{kind.__name__}"
    return Rounding


def round_weight(weight: Tensor) -> Tensor:
    """(O, …) on the int8 grid of each output channel."""
    greatest = weight.detach().abs().flatten(1).amax(1).float()
    scale = torch.where(greatest > LEAST, greatest, 1.0) / LEVELS
    zero = torch.zeros_like(scale)  # of integers the host would look at every one, and wait for the GPU
    return torch.fake_quantize_per_channel_affine(weight.float(), scale, zero, 0, -LEVELS, LEVELS)


def round_input(x: Tensor) -> Tensor:
    """x on the int8 grid whose last step is its greatest magnitude; in its own type."""
    greatest = x.detach().abs().amax().float()
    scale = torch.where(greatest > LEAST, greatest, 1.0) / LEVELS
    zero = torch.zeros((), dtype=torch.int32, device=x.device)
    return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, -LEVELS, LEVELS).to(x.dtype)
