"""Which device a process trains on, in which precision, and what it says of itself."""

from __future__ import annotations

import socket
import sys

import torch

from rgfl.errors import TrainingError
from rgfl.ranks import Ranks, SharedError, local_rank


def choose_device(name: str) -> torch.device:
    """The device of this process. With several on a machine each has a GPU of its own: the one of its
    number, or the one that its launcher lets it see.

    Raises:
        TrainingError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise TrainingError(f"--device: expected auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise TrainingError(
            f"--device {name}: torch {torch.__version__} sees no CUDA GPU here; use --device cpu"
        )
    visible = torch.cuda.device_count()
    if local_rank() and device.index is not None and visible > 1:
        raise TrainingError(f"--device {name}: several processes need a GPU each; use --device cuda")
    index = device.index
    if index is None:
        index = local_rank() if visible > 1 else 0
    if index >= visible:
        raise TrainingError(
            f"--device {name}: GPU {index} of a machine that has {visible}; start no more processes than GPUs"
        )
    return torch.device("cuda", index)


def expect_own_gpu(device: torch.device, ranks: Ranks) -> None:
    """No two processes may train on one GPU.

    Raises:
        SharedError: on all processes, if two do.
    """
    if device.type != "cuda" or ranks.alone:
        return
    gpus = ranks.gather((socket.gethostname(), str(torch.cuda.get_device_properties(device).uuid)))
    for rank, gpu in enumerate(gpus):
        if gpus.index(gpu) < rank:
            raise SharedError(
                f"processes {gpus.index(gpu)} and {rank} have the same GPU of {gpu[0]}; start no more "
                "processes than GPUs, and let each see all of them or one of its own (CUDA_VISIBLE_DEVICES)"
            )


def device_name(device: torch.device) -> str:
    """For people: the GPU's name, or the CPU's threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.get_num_threads()} threads)"


def peak_memory_mb(device: torch.device) -> int:
    """On CUDA the tensors' peak since the last call; else this process's so far, workers not counted. MB."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return round(peak / 1e6)
    if sys.platform == "win32":
        return 0
    import resource  # Unix only

    unit = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)


def mixed_precision(choice: str, device: torch.device) -> torch.dtype | None:
    """The type that --amp stands for on this device; None: float32.

    Raises:
        TrainingError: the device has no such type.
    """
    if choice == "fp16" and device.type != "cuda":
        raise TrainingError("--amp fp16 needs a CUDA GPU; on CPUs use bf16 or off")
    if choice == "auto":
        if device.type != "cuda":
            return None
        # Not torch's `is_bf16_supported`: it says yes to older GPUs too, for which cuDNN has no convolution.
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[choice]
