"""BatchNorm of a training whose step is computed in parts, twice, or by several processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def training_batchnorms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Those that take their statistics from the batch: neither frozen nor kept at ImageNet's."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.training
    }


@contextlib.contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """What is computed in the block leaves the running statistics alone; its results are the same.

    For a forward pass that is not the one of the step: each step must move the statistics once.
    """
    # Momentum 0, and not `track_running_stats` off: what recomputes must save the tensors that the first did.
    kept = [
        (module, module.momentum, module.num_batches_tracked)
        for module in training_batchnorms(model).values()
    ]
    try:
        for module, _, counter in kept:
            module.momentum = 0.0
            if counter is not None:  # one to throw away: torch's SyncBatchNorm insists on having it
                module.num_batches_tracked = counter.clone()
        yield
    finally:
        for module, momentum, counter in kept:
            module.momentum, module.num_batches_tracked = momentum, counter


def synchronise(model: nn.Module) -> None:
    """Let every BatchNorm that trains see the tiles of all processes; parameters and names stay."""
    for name, module in training_batchnorms(model).items():
        parent, _, child = name.rpartition(".")
        # timm's conversion and not torch's, which would lose the activation inside timm's BatchNormAct2d.
        setattr(model.get_submodule(parent), child, convert_sync_batchnorm(module))
