"""The kernel without TensorRT: pointers in, pointers out, on a stream of the caller.

For runners whose engine has no plugins, and for tests. The pointers are device addresses (an int, as
`tensor.data_ptr()` of PyTorch or `array.data.ptr` of CuPy gives it); nothing is copied or allocated.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rgfl.plugins import library


class LaunchError(RuntimeError):
    """CUDA refused the launch."""


REMEDIES = {  # by CUDA's error code
    35: "no NVIDIA driver, or one older than the library's CUDA; for an older one build with its nvcc: "
    "python -m rgfl.plugins.build --nvcc NVCC",
    209: "the library was built for other GPUs: python -m rgfl.plugins.build --force",
}


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in ("batch", "points", "classes")]


class _Settings(ctypes.Structure):
    _fields_ = [
        ("score_threshold", ctypes.c_float),
        ("iou_threshold", ctypes.c_float),
        ("pre_nms_topk", ctypes.c_int32),
        ("max_detections", ctypes.c_int32),
    ]


class _Inputs(ctypes.Structure):
    _fields_ = [("boxes", ctypes.c_void_p), ("scores", ctypes.c_void_p), ("score_type", ctypes.c_int32)]


class _Outputs(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p) for name in ("num_detections", "boxes", "scores", "labels", "indices")
    ]


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Where the results go, as addresses; the shapes are those of plugins/cuda/rotated_nms.hpp."""

    num_detections: int
    boxes: int
    scores: int
    labels: int
    indices: int | None = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The attributes of the plugin; see `DetectorSpec` for their meaning."""

    score_threshold: float
    iou_threshold: float
    pre_nms_topk: int = 0
    max_detections: int = 2000


class RotatedNms:
    """The launcher of one built library (by default the one that `rgfl.plugins.build` made)."""

    def __init__(self, path: Path | None = None) -> None:
        loaded = ctypes.CDLL(str(path or library()))
        self._size = loaded.rgfl_rotated_nms_workspace_size
        self._size.restype = ctypes.c_size_t
        self._size.argtypes = [ctypes.POINTER(_Shape)]
        self._run = loaded.rgfl_rotated_nms
        self._run.restype = ctypes.c_int32
        self._run.argtypes = [
            ctypes.POINTER(_Shape),
            ctypes.POINTER(_Settings),
            ctypes.POINTER(_Inputs),
            ctypes.POINTER(_Outputs),
            ctypes.c_void_p,
            ctypes.c_void_p,
        ]
        self._error = loaded.rgfl_cuda_error
        self._error.restype = ctypes.c_char_p
        self._error.argtypes = [ctypes.c_int32]

    def workspace_size(self, shape: tuple[int, int, int]) -> int:
        """Bytes of device memory, aligned to 256, for (batch, points, classes) or less."""
        return int(self._size(_Shape(*shape)))

    def __call__(
        self,
        shape: tuple[int, int, int],
        settings: Settings,
        *,
        boxes: int,
        scores: int,
        score_type: Literal["float32", "float16"] = "float32",
        outputs: Outputs,
        workspace: int,
        stream: int = 0,
    ) -> None:
        """Enqueues one NMS of (batch, points, classes) on `stream`.

        A workspace serves one call at a time: two that run at once in the same one, on different streams,
        destroy each other's state and may wait for ever.

        Raises:
            LaunchError: an impossible shape or setting, or an error of CUDA.
        """
        code = self._run(
            _Shape(*shape),
            _Settings(
                settings.score_threshold,
                settings.iou_threshold,
                settings.pre_nms_topk,
                settings.max_detections,
            ),
            _Inputs(boxes, scores, int(score_type == "float16")),
            _Outputs(outputs.num_detections, outputs.boxes, outputs.scores, outputs.labels, outputs.indices),
            workspace,
            stream,
        )
        if code != 0:
            reason = f"{self._error(code).decode()} (CUDA error {code})"
            if code in REMEDIES:
                reason += f"; {REMEDIES[code]}"
            raise LaunchError(f"rotated NMS of (batch, points, classes) = {shape} with {settings}: {reason}")
