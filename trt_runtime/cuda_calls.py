"""Every call to CUDA that running an engine makes, behind one small class.

Addresses and handles are plain integers, so that TensorRT, ctypes and NumPy take them as they are, and
a test can stand in for the class on host memory. One device: the first that CUDA_VISIBLE_DEVICES leaves.

Not run on a GPU yet. Without one, the tests call each function with real arguments and see CUDA refuse
for want of a driver, which checks names and types against the installed cuda-bindings.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rgfl.errors import ModelError

OLDER = "JetPack 6 and drivers before R580: pip install 'cuda-bindings<13'"
LEGACY_STREAM = 1  # the default stream by name; 0 may mean another under per-thread default streams


class CudaError(ModelError):
    """CUDA refused a call; a ModelError, so that commands end with its one line."""


class Cuda:
    """CUDA's runtime on one device.

    Raises:
        CudaError: from every method, with the call, CUDA's reason and what to do.
    """

    device = 0

    def __init__(self) -> None:
        try:
            from cuda.bindings import __version__, runtime
        except ImportError as error:
            missing = f"an engine needs cuda-bindings ({error}): pip install cuda-bindings"
            raise CudaError(f"{missing}; {OLDER}") from error
        self._runtime: Any = runtime
        driver = "R535 or newer" if str(__version__) < "13" else f"R580 or newer; {OLDER}"
        self._remedies = {  # what to do about an error, by its name
            "cudaErrorMemoryAllocation": "build the engine with a smaller --max-batch",
            "cudaErrorInsufficientDriver": f"cuda-bindings {__version__} needs a driver of {driver}",
        }

    def _call(self, name: str, *arguments: Any) -> Any:
        """The result of a function of CUDA, whose first return value is its status."""
        status, *results = getattr(self._runtime, name)(*arguments)
        if int(status) != 0:
            _, text = self._runtime.cudaGetErrorString(status)
            self._runtime.cudaGetLastError()  # or the next launch would report it again
            remedy = f"; {self._remedies[status.name]}" if status.name in self._remedies else ""
            raise CudaError(f"{name}: {text.decode()} ({status.name}){remedy}")
        return results[0] if results else None

    def start(self) -> None:
        """Make the device's context, the one that all libraries share; TensorRT for RTX asks for it."""
        self._call("cudaSetDevice", self.device)

    # --- memory

    def allocate(self, size: int) -> int:
        """Address of `size` bytes on the device, aligned to 256."""
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def allocate_pinned(self, size: int) -> int:
        """Address of `size` bytes on the host that copies reach without a detour."""
        return int(self._call("cudaHostAlloc", size, 0))

    def free_pinned(self, address: int) -> None:
        self._call("cudaFreeHost", address)

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        """Enqueue a copy of `size` bytes; both addresses may be of device or pinned memory."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDefault
        self._call("cudaMemcpyAsync", to, source, size, kind, stream)

    def device_of(self, address: int) -> int | None:
        """The device that holds `address`; None for host memory."""
        attributes = self._call("cudaPointerGetAttributes", address)
        kinds = self._runtime.cudaMemoryType
        on_device = attributes.type in (kinds.cudaMemoryTypeDevice, kinds.cudaMemoryTypeManaged)
        return int(attributes.device) if on_device else None

    # --- streams and events

    def stream(self) -> int:
        """A stream that does not wait for the default stream."""
        return int(self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking))

    def destroy_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def event(self) -> int:
        """An event that keeps its time; waiting for it lets the CPU sleep."""
        return int(self._call("cudaEventCreateWithFlags", self._runtime.cudaEventBlockingSync))

    def destroy_event(self, event: int) -> None:
        self._call("cudaEventDestroy", event)

    def record(self, event: int, stream: int) -> None:
        self._call("cudaEventRecord", event, stream)

    def wait(self, stream: int, event: int) -> None:
        """Let what is enqueued on `stream` from now on wait for `event`; one never recorded has passed."""
        self._call("cudaStreamWaitEvent", stream, event, 0)

    def wait_on_host(self, event: int) -> None:
        self._call("cudaEventSynchronize", event)

    def milliseconds(self, start: int, end: int) -> float:
        """Between two events that have passed."""
        return float(self._call("cudaEventElapsedTime", start, end))

    # --- graphs

    def begin_capture(self, stream: int) -> None:
        """Record what this thread enqueues on `stream` from now on; other threads may go on copying."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> int:
        """What was recorded, ready to launch."""
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return int(self._call("cudaGraphInstantiate", graph, 0))
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: int, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call("cudaGraphExecDestroy", graph)


def host_view(address: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Host memory at `address` as an array, which does not own it."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape)
