"""CUDA and TensorRT on host memory, for tests of the code that drives them.

Everything is computed: a copy moves bytes, an engine runs its ONNX file in ONNX Runtime, NMS is the CUDA
kernels on the CPU emulator. Only *when* is up to the stand-in: what is enqueued on a stream may run as
late, or as early, as the waits between streams and events allow, so that a wait that is missing gives
wrong detections, and not only on a bad day.
"""

from __future__ import annotations

import ctypes
import enum
import json
import random
import threading
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rgfl.plugins.launcher import Outputs, RotatedNms, Settings
from rgfl.trt_runtime.cuda_calls import CudaError, host_view

VERSIONS = {"tensorrt": (10, 16, 1, 11), "rtx": (1, 7, 1, 116)}

# Which streams run as soon as they may; the others only when somebody waits for them.
ORDERS: dict[str, Callable[[int], bool]] = {
    "all late": lambda index: False,
    "all early": lambda index: True,
    "copies early": lambda index: index % 2 == 0,  # a runner makes its copy stream first
    "compute early": lambda index: index % 2 == 1,
    "random": lambda index: random.random() < 0.5,
}


def aligned(array: np.ndarray, offset: int = 0) -> np.ndarray:
    """A copy at an address such as cudaMalloc gives, or so many bytes behind one."""
    memory = np.empty(array.nbytes + 256 + offset, np.uint8)
    start = -memory.ctypes.data % 256 + offset
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class HostCuda:
    """`rgfl.trt_runtime.cuda_calls.Cuda` on host memory."""

    device = 0

    def __init__(self, order: str = "all late") -> None:
        self._early = ORDERS[order]
        self._lock = threading.RLock()
        self._next = 1000
        self.live: dict[int, str] = {}  # handle or address -> what it is
        self.memory: dict[int, np.ndarray] = {}
        self._freed: list[np.ndarray] = []  # kept, so that no address comes twice
        self.streams: dict[int, deque[Callable[[], bool]]] = {}
        self._stream_of: dict[int, int] = {}  # ticket -> stream
        self._passed: dict[int, float] = {0: 0.0}  # ticket -> when
        self._event: dict[int, int] = {}  # event -> its last ticket
        self._clock = 0.0
        self.captured: dict[int, list[Callable[[], None]]] = {}
        self._capturing: dict[int, tuple[int, list[Callable[[], None]]]] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.foreign: dict[int, int] = {}  # address of borrowed memory -> device
        self._failures: dict[str, int] = {}

    # --- what tests ask for

    def fail(self, name: str, after: int = 0) -> None:
        """The call after `after` more calls of `name` fails."""
        self._failures[name] = after

    def count(self, name: str) -> int:
        return sum(call[0] == name for call in self.calls)

    # --- handles

    def _called(self, name: str, *arguments: Any) -> None:
        self.calls.append((name, *arguments))
        if name in self._failures:
            self._failures[name] -= 1
            if self._failures[name] < 0:
                del self._failures[name]
                raise CudaError(f"{name}: out of memory (made to fail)")

    def _new(self, what: str) -> int:
        self._next += 1
        self.live[self._next] = what
        return self._next

    def _destroy(self, handle: int, what: str) -> None:
        assert self.live.pop(handle, None) == what, f"{handle} is no {what}, or was destroyed before"

    def start(self) -> None:
        self._called("start")

    # --- memory

    def _allocate(self, what: str, size: int) -> int:
        with self._lock:
            self._called(what, size)
            assert threading.get_ident() not in {who for who, _ in self._capturing.values()}
            block = aligned(np.full(size, 0xA5, np.uint8))
            address = block.ctypes.data
            self.memory[address] = block
            self.live[address] = what
            return address

    def _release(self, what: str, address: int) -> None:
        with self._lock:
            self._destroy(address, what)
            block = self.memory.pop(address)
            block[:] = 0x5A
            self._freed.append(block)

    def allocate(self, size: int) -> int:
        return self._allocate("allocate", size)

    def free(self, address: int) -> None:
        self._release("allocate", address)

    def allocate_pinned(self, size: int) -> int:
        return self._allocate("allocate_pinned", size)

    def free_pinned(self, address: int) -> None:
        self._release("allocate_pinned", address)

    def check(self, address: int, size: int) -> None:
        """No byte of it was freed, and it does not end outside its block."""
        for block in self._freed:
            assert not block.ctypes.data <= address < block.ctypes.data + len(block), "freed memory is used"
        for start, block in self.memory.items():
            if start <= address < start + len(block):
                assert address + size <= start + len(block), "beyond the end of its block"

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        self._called("copy", to, source, size, stream)

        def move() -> None:
            self.check(to, size)
            self.check(source, size)
            ctypes.memmove(to, source, size)

        self.enqueue(stream, move)

    def device_of(self, address: int) -> int | None:
        if address in self.foreign:
            return self.foreign[address]
        return 0 if self.live.get(address) == "allocate" else None

    # --- streams and events

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        with self._lock:
            if stream in self._capturing:
                thread, ops = self._capturing[stream]
                assert thread == threading.get_ident(), "another thread enqueued into a capture"
                ops.append(work)
                return

            def run() -> bool:
                work()
                return True

            self.streams[stream].append(run)
            self._advance()

    def _advance(self) -> None:
        """Run what may run early, as far as it does not wait."""
        moved = True
        while moved:
            moved = False
            for index, ops in enumerate(self.streams.values()):
                while ops and self._early(index) and ops[0]():
                    ops.popleft()
                    moved = True

    def _drain(self, stream: int, ticket: int | None = None) -> None:
        """Run `stream` to its end, or until `ticket` has passed, and what it waits for."""
        ops = self.streams[stream]
        while ops and (ticket is None or ticket not in self._passed):
            if not ops[0]():
                self._pass(ops[0].waits_for)  # type: ignore[attr-defined]
                continue
            ops.popleft()

    def _pass(self, ticket: int) -> None:
        if ticket not in self._passed:
            self._drain(self._stream_of[ticket], ticket)

    def stream(self) -> int:
        self._called("stream")
        handle = self._new("stream")
        self.streams[handle] = deque()
        return handle

    def destroy_stream(self, stream: int) -> None:
        assert not self.streams.pop(stream), "work was left on the stream"
        self._destroy(stream, "stream")

    def synchronize(self, stream: int) -> None:
        with self._lock:
            self._called("synchronize", stream)
            assert stream not in self._capturing
            self._drain(stream)

    def event(self) -> int:
        self._called("event")
        handle = self._new("event")
        self._event[handle] = 0
        return handle

    def destroy_event(self, event: int) -> None:
        self._destroy(event, "event")

    def record(self, event: int, stream: int) -> None:
        with self._lock:
            self._called("record", event, stream)
            assert self.live.get(event) == "event"
            assert stream not in self._capturing, "an event would become part of the graph"
            ticket = self._next = self._next + 1
            self._event[event] = ticket
            if stream not in self.streams:  # of another library: all is done there
                self._passed[ticket] = self._clock
                return
            self._stream_of[ticket] = stream

            def passed() -> bool:
                self._clock += 1
                self._passed[ticket] = self._clock
                return True

            self.streams[stream].append(passed)
            self._advance()

    def wait(self, stream: int, event: int) -> None:
        with self._lock:
            self._called("wait", stream, event)
            assert stream not in self._capturing, "a wait would become part of the graph"
            ticket = self._event[event]

            def waited() -> bool:
                return ticket in self._passed

            waited.waits_for = ticket  # type: ignore[attr-defined]
            self.streams[stream].append(waited)
            self._advance()

    def wait_on_host(self, event: int) -> None:
        with self._lock:
            self._pass(self._event[event])

    def milliseconds(self, start: int, end: int) -> float:
        first, second = self._event[start], self._event[end]
        assert min(first, second) > 0, "an event that was never recorded"
        return self._passed[second] - self._passed[first]

    # --- graphs

    def begin_capture(self, stream: int) -> None:
        self._called("begin_capture", stream)
        self._capturing[stream] = (threading.get_ident(), [])

    def end_capture(self, stream: int) -> int:
        ops = self._capturing.pop(stream)[1]
        self._called("end_capture", stream)
        handle = self._new("graph")
        self.captured[handle] = ops
        return handle

    def launch(self, graph: int, stream: int) -> None:
        self._called("launch", graph, stream)
        for work in self.captured[graph]:
            self.enqueue(stream, work)

    def destroy_graph(self, graph: int) -> None:
        del self.captured[graph]
        self._destroy(graph, "graph")


# --- NMS -------------------------------------------------------------------------------------------------


class StreamNms:
    """The launcher of the emulated kernels, whose calls run when the stream does."""

    def __init__(self, library: Path, cuda: HostCuda) -> None:
        self._launch, self._cuda = RotatedNms(library), cuda

    def workspace_size(self, shape: tuple[int, int, int]) -> int:
        return self._launch.workspace_size(shape)

    def __call__(self, shape: tuple[int, int, int], settings: Settings, *, stream: int, **named: Any) -> None:
        def work() -> None:
            self._cuda.check(named["workspace"], self.workspace_size(shape))
            self._launch(shape, settings, **named)

        self._cuda.enqueue(stream, work)


# --- TensorRT --------------------------------------------------------------------------------------------


class _Name(enum.Enum):
    UINT8 = 1
    FLOAT = 2
    INT32 = 3
    HALF = 4


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class TensorRT:
    """The module, as far as a runner uses it. Engines are files of `write_engine`."""

    class ILogger:
        Severity = Severity

    class ExecutionContextAllocationStrategy(enum.Enum):
        USER_MANAGED = 2

    class DynamicShapesKernelSpecializationStrategy(enum.Enum):
        EAGER = 1

    def __init__(self, cuda: HostCuda, kernels: Path) -> None:
        self.cuda, self.kernels = cuda, kernels
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self.contexts: weakref.WeakSet[Context] = weakref.WeakSet()
        self.capturable = True
        self.loaded: list[str] = []
        self.compiled: set[int] = set()

    def Runtime(self, log: Any) -> Runtime:
        return Runtime(self, log)


class Runtime:
    engine_host_code_allowed = False

    def __init__(self, module: TensorRT, log: Any) -> None:
        self.module, self.log = module, log
        module.alive.add(self)

    def get_plugin_registry(self) -> Runtime:
        return self

    def load_library(self, path: str) -> object | None:
        self.module.loaded.append(path)
        return object()

    def get_creator(self, name: str, version: str, namespace: str) -> object | None:
        return object()

    def deserialize_cuda_engine(self, data: bytes) -> EngineStandIn | None:
        try:
            length = int.from_bytes(data[28:32], "little")
            facts = json.loads(data[32 : 32 + length])
            assert len(data) == facts["bytes"] + 32 + length
            return EngineStandIn(self.module, self.log, facts, data[32 + length :])
        except (ValueError, KeyError, AssertionError):
            self.log.log(Severity.ERROR, "the plan is damaged")
            return None


def write_engine(
    path: Path,
    onnx: Path,
    *,
    backend: str = "tensorrt",
    version: tuple[int, ...] = (),
    batch: tuple[int, int, int] = (1, 1, 4),
    **facts: Any,
) -> Path:
    """An engine of the stand-in: the head of a real one, facts that tests may bend, the ONNX file."""
    data = onnx.read_bytes()
    record = {"batch": batch, "nms": backend == "tensorrt", "bytes": len(data), **facts}
    text = json.dumps(record).encode()
    magic, current = {"tensorrt": b"ftrt", "rtx": b"vtrt"}[backend], VERSIONS[backend]
    version = version or current
    path.write_bytes(magic + bytes(20) + bytes(version) + len(text).to_bytes(4, "little") + text + data)
    return path


class EngineStandIn:
    device_memory_size_v2 = 4096

    def __init__(self, module: TensorRT, log: Any, facts: dict[str, Any], onnx: bytes) -> None:
        import onnxruntime

        from rgfl.spec import METADATA_KEY, DetectorSpec

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(onnx, options, ["CPUExecutionProvider"])
        self.module, self.log, self.batch = module, log, facts["batch"]
        text = self.session.get_modelmeta().custom_metadata_map[METADATA_KEY]
        self.name = facts.get("name", text)
        self.spec = DetectorSpec.from_json(text)
        height, width = self.spec.image_size
        rows, classes = self.spec.max_detections, len(self.spec.classes)
        takes_uint8 = self.session.get_inputs()[0].type == "tensor(uint8)"
        self.points = self.session.get_outputs()[0].shape[1]
        self.tensors: dict[str, tuple[tuple[int, ...], str]] = {
            "images": ((-1, height, width, 3), "UINT8") if takes_uint8 else ((-1, 3, height, width), "FLOAT"),
        }
        self.nms = RotatedNms(module.kernels) if facts["nms"] else None
        if facts["nms"]:
            self.tensors |= {
                "num_detections": ((-1, 1), "INT32"),
                "boxes": ((-1, rows, 5), "FLOAT"),
                "scores": ((-1, rows), "FLOAT"),
                "labels": ((-1, rows), "INT32"),
            }
        else:
            self.tensors |= {
                "boxes": ((-1, self.points, 5), "FLOAT"),
                "scores": ((-1, self.points, classes), "FLOAT"),
            }
        for name, (shape, kind) in facts.get("tensors", {}).items():
            self.tensors[name] = (tuple(shape), kind)
        module.alive.add(self)

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        least, _, most = self.batch
        shape = self.tensors[name][0]  # TensorRT makes an axis a number where a profile leaves no choice
        return (least, *shape[1:]) if least == most else shape

    def get_tensor_dtype(self, name: str) -> _Name:
        return _Name[self.tensors[name][1]]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(size, *self.tensors[name][0][1:]) for size in self.batch]

    def create_execution_context(self, given: Any) -> Context:
        return Context(self)

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig(self.module)

    def run(self, batch: int, addresses: dict[str, int]) -> None:
        """Reads and writes memory, as the engine's kernels do."""
        kinds = {"UINT8": np.uint8, "FLOAT": np.float32, "INT32": np.int32}
        views = {}
        for name, (shape, kind) in self.tensors.items():
            whole = (batch, *shape[1:])
            self.module.cuda.check(addresses[name], int(np.prod(whole)) * np.dtype(kinds[kind]).itemsize)
            views[name] = host_view(addresses[name], whole, kinds[kind])
        boxes, scores = self.session.run(["boxes", "scores"], {"images": views["images"].copy()})
        if self.nms is None:
            views["boxes"][:], views["scores"][:] = boxes, scores
            return
        shape = scores.shape
        workspace = np.empty(self.nms.workspace_size(shape), np.uint8)
        settings = Settings(
            score_threshold=self.spec.score_threshold,
            iou_threshold=self.spec.iou_threshold,
            pre_nms_topk=self.spec.pre_nms_topk,
            max_detections=self.spec.max_detections,
        )
        self.nms(
            shape,
            settings,
            boxes=boxes.ctypes.data,
            scores=scores.ctypes.data,
            outputs=Outputs(**{name: views[name].ctypes.data for name in views if name != "images"}),
            workspace=workspace.ctypes.data,
        )


class RuntimeConfig:
    dynamic_shapes_kernel_specialization_strategy: Any = None

    def __init__(self, module: TensorRT) -> None:
        self.module = module
        module.alive.add(self)

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        assert strategy is TensorRT.ExecutionContextAllocationStrategy.USER_MANAGED

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self.module)

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        return True


class RuntimeCache:
    def __init__(self, module: TensorRT) -> None:
        self.module = module
        module.alive.add(self)

    def deserialize(self, data: bytes) -> bool:
        assert self.module.cuda.count("start"), "there is no CUDA context to compare with"
        if not data.startswith(b"kernels "):
            return False
        self.module.compiled |= set(json.loads(data[8:]))
        return True

    def serialize(self) -> bytes:
        return b"kernels " + json.dumps(sorted(self.module.compiled)).encode()


class Context:
    def __init__(self, engine: EngineStandIn) -> None:
        self.engine, self.batch = engine, 0
        self.addresses: dict[str, int] = {}
        self.touched = 0  # calls that changed it
        self.ready = False  # ran once since its shape changed
        self.memory = 0
        engine.module.alive.add(self)
        engine.module.contexts.add(self)

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self.engine.device_memory_size_v2
        self.memory = address

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.touched += 1
        self.ready = self.ready and self.batch == shape[0]
        self.batch = shape[0]
        return self.engine.batch[0] <= self.batch <= self.engine.batch[2]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.touched += 1
        self.addresses[name] = address
        if address % 256:
            self.engine.log.log(Severity.ERROR, "the address is not aligned to 256 bytes")
        return name in self.engine.tensors and address % 256 == 0

    def is_stream_capturable(self, stream: int) -> bool:
        return self.engine.module.capturable

    def execute_async_v3(self, stream: int) -> bool:
        cuda = self.engine.module.cuda
        capturing = stream in cuda._capturing
        if capturing and (not self.ready or not self.engine.module.capturable):
            self.engine.log.log(Severity.ERROR, "operation not permitted when stream is capturing")
            return False
        self.ready = True
        self.engine.module.compiled.add(self.batch)
        cuda.calls.append(("execute", self.batch, self.addresses["images"], capturing))
        batch, addresses, touched, memory = self.batch, dict(self.addresses), self.touched, self.memory
        assert set(addresses) == set(self.engine.tensors)

        def work() -> None:
            assert not capturing or touched == self.touched, "a context was changed after its graph was made"
            cuda.check(memory, self.engine.device_memory_size_v2)
            self.engine.run(batch, addresses)

        cuda.enqueue(stream, work)
        return True
