"""Engines without a GPU: stand-ins for CUDA and TensorRT, and the NMS kernels on the CPU emulator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stand_ins import VERSIONS, HostCuda, StreamNms, TensorRT

from rgfl.plugins import launcher
from rgfl.trt_runtime import engine, tensorrt_api
from rgfl.trt_runtime import machine as hardware
from rgfl.trt_runtime.machine import Gpu
from rgfl.trt_runtime.tensorrt_api import Api


class Machine:
    """A GPU that is not there, with both TensorRTs installed."""

    def __init__(self, kernels: Path, monkeypatch: pytest.MonkeyPatch, order: str) -> None:
        self.cuda = HostCuda(order)
        self.trt = TensorRT(self.cuda, kernels)
        plugin = kernels.with_name("librgfl_plugins.so")
        if not plugin.exists():
            plugin.symlink_to(kernels)

        def open_api(backend: Any, gpu: Any) -> Api:
            return Api(backend, self.trt, VERSIONS[backend], "stands in")

        monkeypatch.setattr(hardware, "find_gpu", lambda: Gpu("NVIDIA H200", (9, 0)))
        monkeypatch.setattr(tensorrt_api, "open_api", open_api)
        monkeypatch.setattr(engine, "Cuda", lambda: self.cuda)
        monkeypatch.setattr("rgfl.plugins.library", lambda: plugin)
        monkeypatch.setattr(launcher, "RotatedNms", lambda: StreamNms(kernels, self.cuda))


@pytest.fixture
def machine(emulated_kernels: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    """Makes the machine, with the order in which its streams run."""

    def make(order: str = "all late") -> Machine:
        return Machine(emulated_kernels, monkeypatch, order)

    return make
