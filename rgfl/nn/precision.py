"""Where the network may round and where it must not."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

# torch before 2.7 cannot tell exporting from compiling.
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def full_precision(like: Tensor) -> AbstractContextManager:
    """Autocast off on the device of `like`; nothing at all while a graph is being exported."""
    if _is_exporting() or torch.onnx.is_in_onnx_export():
        return nullcontext()
    return torch.autocast(like.device.type, enabled=False)
