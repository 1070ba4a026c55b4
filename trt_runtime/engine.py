"""Runs TensorRT engines: TensorRT 10 and 11 with NMS inside, TensorRT for RTX with our CUDA NMS behind.

    prepare   tiles → pinned memory → device      copy stream, any thread
    infer     one CUDA graph of the network [and one of NMS], results → pinned memory    compute stream
    finish    detections from the rows that count, or NMS where CUDA's is not built      any thread

While one batch is computed, `prepare` copies the next: the streams meet at events only. Buffers are
allocated once. The last copy inside the device, from where a batch arrived to where the network reads,
costs microseconds and buys fixed addresses: one graph a batch size instead of one for each buffer, and
a buffer that is free for the next batch before the network has begun.

Not run on a GPU yet. The tests run all of this on stand-ins for CUDA and TensorRT that compute on the
CPU and execute streams in the order that harms most (tests/trt_runtime/stand_ins.py).
"""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rgfl.boxes import canonical
from rgfl.detections import Detections
from rgfl.errors import ModelError, write_cache
from rgfl.plugins import launcher
from rgfl.spec import DetectorSpec, SpecError
from rgfl.trt_runtime import machine, tensorrt_api
from rgfl.trt_runtime.cuda_calls import Cuda, CudaError, host_view
from rgfl.trt_runtime.device_arrays import DeviceArray, borrow, is_on_device
from rgfl.trt_runtime.machine import Gpu
from rgfl.trt_runtime.runners import INPUT_NAME, OUTPUT_NAMES, Runner, TileArrays, normalised
from rgfl.trt_runtime.tensorrt_api import Api, Plan

OPTIONAL_OUTPUT = "uncertainty"  # of export/to_onnx.py --uncertainty; carried, not read
TYPES = {"UINT8": "uint8", "FLOAT": "float32", "INT32": "int32"}
ALIGNMENT = 256  # of every address that TensorRT is given; cudaMalloc's own


# --- the engine ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorInfo:
    """What the engine says about one of its inputs and outputs; the first axis is the batch."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:])) * np.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        return f"{self.dtype} {('B', *self.shape[1:])}".replace("'", "")


class Engine:
    """A deserialised engine. Runners share it; the last that is closed closes it.

    Attributes:
        path: its file.
        api: the TensorRT that runs it.
        spec: read from its name.
        record: how it was built, {} if unknown.
        tensors: inputs and outputs by name.
        batch: least, most frequent and greatest batch of its profile.
        nms: where NMS runs: "inside" the engine, "behind" it on the same stream, or on the "cpu".
        nms_reason: why it runs on the CPU, else "".
        kernels: launcher of the CUDA NMS, where it runs behind.
    """

    def __init__(self, path: Path, api: Api, record: dict[str, Any], cuda: Cuda) -> None:
        self.path, self.api, self.record, self.cuda = path, api, record, cuda
        self.rebuild_hint = f"build it anew with: {tensorrt_api.rebuild_command(path, record)}"
        copied = tensorrt_api.missing_record(path, record) if api.has_plugins else ""
        self._users = 0
        self._lock = threading.RLock()
        self.log = api.new_logger()
        compatible = bool(record.get("version_compatible"))
        try:
            self._runtime = tensorrt_api.new_runtime(api, self.log, version_compatible=compatible)
        except (FileNotFoundError, ModelError) as error:
            raise ModelError(f"{path}: {error}{copied}") from error
        data = path.read_bytes()
        before = len(self.log.messages)
        self._engine = self._create(
            "the engine from its file", lambda: self._runtime.deserialize_cuda_engine(data), copied
        )
        for _, message in self.log.messages[before:]:
            warnings.warn(f"{path}: {api}: {message}", stacklevel=2)
        self.spec = self._read_spec()
        self.tensors = self._read_tensors()
        self.nms: Literal["inside", "behind", "cpu"]
        self.nms, self.nms_reason = "inside" if "num_detections" in self.tensors else "behind", ""
        self._check_inputs_outputs()
        if self.nms == "behind":
            self._load_kernels()
        profile = self._engine.get_tensor_profile_shape(INPUT_NAME, 0)
        self.batch: tuple[int, ...] = tuple(int(shape[0]) for shape in profile)
        self._config: Any = None
        self._cache: Any = None
        self._cached = b""
        if api.name == "rtx":
            self._configure_rtx()

    # --- loading

    def _create(self, what: str, make: Callable[[], Any], or_else: str = "") -> Any:
        """`tensorrt_api.create`, with the engine's file and what to do in the message."""
        try:
            return tensorrt_api.create(self.api, self.log, what, make)
        except ModelError as error:
            raise ModelError(f"{self.path}: {error}; {self.rebuild_hint}{or_else}") from error

    def _load_kernels(self) -> None:
        """The CUDA NMS for behind the engine; where it was not, or cannot be, built, the CPU's takes over."""
        try:
            self.kernels = launcher.RotatedNms()
        except FileNotFoundError as error:
            self.nms, self.nms_reason = "cpu", str(error)
        except (OSError, AttributeError) as error:  # not loadable, or another library
            hint = "run: python -m rgfl.plugins.build --force"
            raise ModelError(f"{self.path}: NMS runs behind this engine, and {error}; {hint}") from error

    def _read_spec(self) -> DetectorSpec:
        try:
            return DetectorSpec.from_json(self._engine.name)
        except SpecError as error:
            lacks = f"no rgfl spec in the engine's name, as trtexec writes none ({error})"
            raise ModelError(f"{self.path}: {lacks}; {self.rebuild_hint}") from error

    def _read_tensors(self) -> dict[str, TensorInfo]:
        tensors = {}
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            kind = self._engine.get_tensor_dtype(name).name
            # The batch is a number here where the profile allows no other; `batch` says which it allows.
            shape = (-1, *map(int, self._engine.get_tensor_shape(name)[1:]))
            tensors[name] = TensorInfo(shape, TYPES.get(kind, kind.lower()))
        return tensors

    def _check_inputs_outputs(self) -> None:
        """Names, types and shapes as the contract has them, with the spec's numbers."""
        height, width = self.spec.image_size
        classes = len(self.spec.classes)
        inputs = (TensorInfo((-1, height, width, 3), "uint8"), TensorInfo((-1, 3, height, width), "float32"))
        if self.nms == "inside":
            outputs = tensorrt_api.nms_outputs(self.spec).items()
            expected = {name: TensorInfo((-1, *shape), dtype) for name, (shape, dtype) in outputs}
        else:
            boxes = self.tensors.get("boxes", TensorInfo((-1, 0, 5), "float32"))
            points = boxes.shape[1] if len(boxes.shape) == 3 else 0
            expected = {
                "boxes": TensorInfo((-1, points, 5), "float32"),
                "scores": TensorInfo((-1, points, classes), "float32"),
            }
        problems = [
            f"{name} {self.tensors.get(name, 'is missing')}, expected {tensor}"
            for name, tensor in expected.items()
            if self.tensors.get(name) != tensor or min(tensor.shape[1:]) < 1
        ]
        if self.tensors.get(INPUT_NAME) not in inputs:
            found = self.tensors.get(INPUT_NAME, "is missing")
            problems.insert(0, f"{INPUT_NAME} {found}, expected {inputs[0]} or {inputs[1]}")
        strange = set(self.tensors) - {INPUT_NAME, OPTIONAL_OUTPUT, *expected}
        if strange:
            problems.append(f"unknown {', '.join(sorted(strange))}")
        if problems:
            raise ModelError(
                f"{self.path}: not the tensors of an rgfl engine: {'; '.join(problems)}; {self.rebuild_hint}"
            )

    # --- TensorRT for RTX compiles kernels on this GPU when shapes are first seen, and keeps them here

    @property
    def cache_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.runtime-cache")

    def _configure_rtx(self) -> None:
        trt = self.api.trt
        self._config = self._engine.create_runtime_config()
        self._config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        # The default compiles in the background, and a graph captured meanwhile would keep slow kernels.
        self._config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        self._cache = self._config.create_runtime_cache()
        with suppress(OSError):
            data = self.cache_path.read_bytes()
            if self._cache.deserialize(data):  # False: of another GPU, driver or version, so it starts empty
                self._cached = data
        self._config.set_runtime_cache(self._cache)

    def save_cache(self) -> None:
        """Keep what was compiled, if anything was; a folder that cannot be written to costs time only."""
        if self._cache is None:
            return
        with self._lock:
            data = bytes(self._cache.serialize())
            if data != self._cached:
                write_cache(self.cache_path, data, "kernels are compiled anew next time")
                self._cached = data

    # --- use

    def new_context(self) -> Any:
        """An execution context without device memory of its own."""
        given = self._config
        if given is None:
            given = self.api.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        with self._lock:  # one after the other, so that what the log says is about this one
            return self._create("an execution context", lambda: self._engine.create_execution_context(given))

    def alone(self) -> AbstractContextManager[object]:
        """A lock under which no other runner makes a context: what that waits for could break a capture."""
        return self._lock

    @property
    def activation_bytes(self) -> int:
        """Device memory of a context, at the greatest batch."""
        return int(self._engine.device_memory_size_v2)

    def retain(self) -> None:
        with self._lock:
            self._users += 1

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            try:
                self.save_cache()
            finally:  # in this order: what was made first goes last
                self._engine = self._config = self._cache = self._runtime = None


def open_engine(path: Path, *, trusted: bool = False) -> tuple[Engine, str]:
    """The engine in `path`, and which TensorRT runs it and why, in one line.

    Args:
        trusted: one that carries code for this machine's CPU may run it.

    Raises:
        ModelError: it cannot run here; one line with the reason and the command that builds it anew.
    """
    plan = tensorrt_api.read_plan(path)
    gpu = machine.find_gpu()
    if gpu is None:
        raise ModelError(
            f"{path}: an engine needs an NVIDIA GPU, and CUDA's driver finds none here; "
            "run the .onnx it was built from"
        )
    api = _api_for(path, plan, gpu)
    record = tensorrt_api.check_engine(path, api, gpu)
    if record.get("version_compatible") and not trusted:  # says a file that came with it
        raise ModelError(
            f"{path}: built with --version-compatible, so it carries libraries that would run here; if you "
            "built it, or trust it like a program, give --trust-engine (trust_engine=True of load_runner)"
        )
    cuda = Cuda()
    cuda.start()
    engine = Engine(path, api, record, cuda)
    nms = {
        "inside": "inside the engine",
        "behind": "behind the engine, on the same stream",
        "cpu": f"behind the engine, on the CPU, as {engine.nms_reason}",
    }
    return engine, f"{api}, which wrote the file, on {gpu}; NMS {nms[engine.nms]}"


def _api_for(path: Path, plan: Plan, gpu: Gpu) -> Api:
    """The TensorRT that wrote the file, whichever else is installed."""
    try:
        return tensorrt_api.open_api(plan.backend, gpu)
    except ValueError as error:
        record = tensorrt_api.read_record(path)
        raise ModelError(
            f"{path}: an engine of {plan}: {error}; or build it anew for what is installed: "
            f"{tensorrt_api.rebuild_command(path, record)}"
        ) from error


# --- what is on its way ----------------------------------------------------------------------------------


@dataclass
class _Slot:
    """Pinned and device memory of one batch, and the events that order their use."""

    host: int
    device: int
    started: int  # the copy began
    arrived: int  # the copy is done: the pinned memory is free, the network may read
    free: int  # the network's input is copied on: the device memory is free


@dataclass
class _Part:
    """Tiles of one run of the engine, on the device or on their way to it."""

    count: int
    address: int
    arrived: int
    slot: _Slot | None = None
    owner: Any = None  # keeps borrowed memory alive


@dataclass(eq=False)
class Feed:
    """What `prepare` gives and `infer` takes, once: parts of at most the engine's greatest batch.

    Only the first is copied by `prepare`; each other one while the one before is computed, so that a
    call of any size needs two buffers.
    """

    runner: EngineRunner
    waiting: deque[TileArrays | DeviceArray]
    parts: deque[_Part] = field(default_factory=deque)

    def advance(self) -> None:
        """Start the copy of the next part."""
        if self.waiting:
            self.parts.append(self.runner._send(self.waiting.popleft()))

    def release(self) -> None:
        """Give back the buffers of what was not inferred."""
        self.waiting.clear()
        while self.parts:
            self.runner._give_back(self.parts.popleft())

    def __del__(self) -> None:
        self.release()


@dataclass
class _BatchContext:
    """One batch size: a context whose shape and addresses never change, and its graphs.

    TensorRT leaves undefined what a graph does after its context was changed, hence one for each; since
    version 10 contexts may share the engine's one profile.
    """

    context: Any
    graphs: list[int]  # one a stage; none where capture was refused


@dataclass(frozen=True)
class _Buffer:
    """A result: its memory on the device, in pinned memory, and the latter as an array."""

    device: int
    host: int
    array: NDArray[Any]
    row_bytes: int


# As tensorrt_api.nms_outputs, or OUTPUT_NAMES where NMS is still to be done.
Results = tuple[NDArray[Any], ...]


class EngineRunner(Runner):
    """An engine with streams, buffers and contexts of its own.

    `prepare` and `finish` may run in other threads than `infer`; `infer` takes one call at a time. For
    several at once, give each thread a `fork()`.

    A call may hold any number of tiles: more than the engine's greatest batch are run in parts. A batch below
    the engine's minimum is padded with whatever is in the input buffer; the padded results are discarded.

    Tiles may lie on the GPU already: whatever speaks DLPack or `__cuda_array_interface__` (PyCUDA's
    GPUArray, CuPy, torch) is read where it is, in the engine's own type and order (uint8 NHWC, but for
    engines of float32 graphs). Those runs use no CUDA graph, which would hold on to the address. A view whose
    address is no multiple of 256 is copied inside the device, and runs in a graph. PyCUDA must use the
    context that all others share: `import pycuda.autoprimaryctx`, not `pycuda.autoinit`.

    The first call with a number of tiles captures its CUDA graphs: no thread may synchronise the whole device
    meanwhile (`torch.cuda.synchronize`), or that number runs without.

    NMS on the GPU drops boxes and scores that are not numbers, so there, unlike the other runners, this one
    cannot tell a broken model from one that finds nothing.

    Attributes:
        device_ms: milliseconds of the last call on the GPU, by CUDA events: copy_in, network, nms (where it
            runs behind the engine on its stream), copy_out. Where the GPU waits for the host, as with one
            call at a time, the host's launch of a part counts as its time.
        graph_note: "" where CUDA graphs are used, else why not.
    """

    device = "cuda"
    device_ms: dict[str, float]

    def __init__(self, engine: Engine, reason: str, facts: dict[str, Any] | None = None) -> None:
        super().__init__(engine.path, engine.spec, reason, facts)
        self.engine = engine
        self.backend = tensorrt_api.NAMES[engine.api.name]
        self.precision = str(engine.record.get("precision", "unknown"))
        self.graph_note = ""
        self._cuda = engine.cuda
        self._running, self._sending = threading.RLock(), threading.Lock()
        # The garbage collector may give back a feed while this very thread takes a slot.
        self._pool = threading.RLock()
        self._copies = self._compute = 0  # no stream
        self._slots: list[_Slot] = []
        self._events: list[int] = []
        self._contexts: dict[int, _BatchContext] = {}
        self._direct: tuple[Any, int, int] | None = None  # context, batch and address it is set to
        self._resources = ExitStack()
        engine.retain()
        self._resources.callback(engine.release)
        try:
            self._allocate()
        except BaseException:
            self.close()
            raise

    def fork(self) -> EngineRunner:
        """Another runner of the same engine, for another thread; to be closed like this one."""
        return EngineRunner(self.engine, self.reason, self._facts)

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "tensorrt": str(self.engine.api),
            "nms": self.engine.nms,
            "batch_sizes": list(self.engine.batch),
            "cuda_graphs": self.graph_note or "yes",
        }

    def close(self) -> None:
        """Free everything, once the calls in other threads are done. A runner that is closed twice, or was
        never whole, is no error."""
        with self._running, self._sending:
            super().close()
            for stream in filter(None, (self._copies, self._compute)):
                with suppress(CudaError):  # what failed before is reported where it failed
                    self._cuda.synchronize(stream)
            self._copies = self._compute = 0
            self._slots.clear()
            self._events.clear()
            self._resources.close()

    def _check_open(self) -> None:
        if not self._copies:
            raise ValueError(f"{self.path.name}: this runner is closed; use it inside its with block")

    # --- memory

    def _allocate(self) -> None:
        self._copies = self._keep(self._cuda.stream, self._cuda.destroy_stream)
        self._compute = self._keep(self._cuda.stream, self._cuda.destroy_stream)
        tensors, greatest = self.engine.tensors, self.engine.batch[2]
        self._input = tensors[INPUT_NAME]
        self._images = self._device_memory(greatest * self._input.row_bytes)
        self._outputs = {
            name: self._device_memory(greatest * tensor.row_bytes)
            for name, tensor in tensors.items()
            if name != INPUT_NAME
        }
        behind, shapes = self.engine.nms == "behind", tensorrt_api.nms_outputs(self.spec)
        if self.engine.nms == "cpu":
            shapes = {name: (tensors[name].shape[1:], "float32") for name in OUTPUT_NAMES}
        self._results = {
            name: self._result(name, greatest, *shape, given=not behind) for name, shape in shapes.items()
        }
        self._activations = self._device_memory(self.engine.activation_bytes)
        self._stages: list[tuple[str, Callable[[Any, int], None]]] = [("network", self._enqueue_network)]
        if behind:
            self._stages.append(("nms", self._prepare_nms(greatest)))
        self._marks = [self._event() for _ in range(len(self._stages) + 3)]
        self._resources.callback(self._drop_contexts)  # before the memory they use

    def _keep(self, make: Callable[[], int], destroy: Callable[[int], None]) -> int:
        handle = make()
        self._resources.callback(self._destroy, destroy, handle)
        return handle

    @staticmethod
    def _destroy(destroy: Callable[[int], None], handle: int) -> None:
        with suppress(CudaError):  # after a fatal error all calls fail; the first is the one to report
            destroy(handle)

    def _event(self) -> int:
        return self._keep(self._cuda.event, self._cuda.destroy_event)

    def _device_memory(self, size: int) -> int:
        return self._keep(lambda: self._cuda.allocate(max(size, 256)), self._cuda.free)

    def _pinned_memory(self, size: int) -> int:
        return self._keep(lambda: self._cuda.allocate_pinned(size), self._cuda.free_pinned)

    def _result(self, name: str, batch: int, shape: tuple[int, ...], dtype: Any, *, given: bool) -> _Buffer:
        """A buffer of what the engine gives itself, or NMS behind it."""
        row_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        device = self._outputs[name] if given else self._device_memory(batch * row_bytes)
        host = self._pinned_memory(batch * row_bytes)
        return _Buffer(device, host, host_view(host, (batch, *shape), dtype), row_bytes)

    def _prepare_nms(self, greatest: int) -> Callable[[Any, int], None]:
        """What enqueues the CUDA NMS on the outputs of the engine."""
        launch, spec = self.engine.kernels, self.spec
        settings = launcher.Settings(
            score_threshold=spec.score_threshold,
            iou_threshold=spec.iou_threshold,
            pre_nms_topk=spec.pre_nms_topk,
            max_detections=spec.max_detections,
        )
        points, classes = self.engine.tensors["scores"].shape[1:]
        workspace = self._device_memory(launch.workspace_size((greatest, points, classes)))
        outputs = launcher.Outputs(**{name: buffer.device for name, buffer in self._results.items()})

        def enqueue(_: Any, batch: int) -> None:
            try:
                launch(
                    (batch, points, classes),
                    settings,
                    boxes=self._outputs["boxes"],
                    scores=self._outputs["scores"],
                    outputs=outputs,
                    workspace=workspace,
                    stream=self._compute,
                )
            except launcher.LaunchError as error:
                raise CudaError(str(error)) from error

        return enqueue

    def _drop_contexts(self) -> None:
        self._contexts.clear()
        self._direct = None

    # --- to the device

    def prepare(self, tiles: Any) -> Feed:
        """Start the copy of tiles (B, H, W, 3), or a list of B, to the device; those that lie there stay.

        What does not fit into one run is read while it is inferred: it must not change before.
        """
        whole: TileArrays | DeviceArray
        if is_on_device(tiles):
            whole = self._borrowed(tiles)
        elif self._input.dtype == "uint8":
            self._check(tiles)
            whole = tiles
        else:
            whole = normalised(self._checked(tiles), self.spec)
        greatest = self.engine.batch[2]
        starts = range(0, len(whole), greatest)
        feed = Feed(self, deque(whole[start : start + greatest] for start in starts))
        feed.advance()
        return feed

    def _borrowed(self, tiles: Any) -> DeviceArray:
        array = borrow(tiles, self._cuda, self._copies)
        expected = self._input
        if array.dtype != expected.dtype or array.shape[1:] != expected.shape[1:] or not array.shape[0]:
            raise ValueError(
                f"{self.path.name} takes {expected}, B ≥ 1, from the device; got {array.dtype} {array.shape}"
            )
        return array

    def _send(self, tiles: TileArrays | DeviceArray) -> _Part:
        """Enqueue the copy of one part; of borrowed memory only an event, which says that it is ready."""
        cuda, copies = self._cuda, self._copies
        with self._sending:
            self._check_open()
            if isinstance(tiles, DeviceArray):
                with self._pool:
                    arrived = self._events.pop() if self._events else self._event()
                cuda.record(arrived, copies)
                return _Part(len(tiles), tiles.address, arrived, owner=tiles)
            slot = self._take_slot()
            part = _Part(len(tiles), slot.device, slot.arrived, slot)
            try:
                cuda.wait_on_host(slot.arrived)  # an abandoned feed may still be copying out of it
                pinned = host_view(slot.host, (len(tiles), *self._input.shape[1:]), self._input.dtype)
                np.stack(tiles, out=pinned)
                cuda.wait(copies, slot.free)
                cuda.record(slot.started, copies)
                cuda.copy(slot.device, slot.host, pinned.nbytes, copies)
                cuda.record(slot.arrived, copies)
            except BaseException:
                self._give_back(part)
                raise
            return part

    def _take_slot(self) -> _Slot:
        """A slot that is free; a new one while all are on their way, so callers bound their number."""
        with self._pool:
            if self._slots:
                return self._slots.pop()
            size = self.engine.batch[2] * self._input.row_bytes
            events = [self._event() for _ in range(3)]
            return _Slot(self._pinned_memory(size), self._device_memory(size), *events)

    def _give_back(self, part: _Part) -> None:
        with self._pool:
            if part.slot is not None:
                self._slots.append(part.slot)
            else:
                self._events.append(part.arrived)

    # --- on the device

    def infer(self, feed: Feed) -> Results:
        """num_detections (B, 1), boxes (B, K, 5), scores (B, K), labels (B, K) for `feed`; where NMS runs on
        the CPU, boxes (B, P, 5) and scores (B, P, C)."""
        with closing(self._runs(feed)) as runs:
            found = [self._copied_results(count) for count in runs]
        return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))

    def raw(self, tiles: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Decoded boxes and scores before NMS.

        Raises:
            ModelError: NMS is inside the engine, and they never leave it.
        """
        if self.engine.nms == "inside":
            raise ModelError(
                f"{self.path}: NMS is inside this engine, so only detections can be compared: --detections"
            )
        found: list[list[NDArray[np.float32]]] = []
        shapes = [self.engine.tensors[name].shape[1:] for name in OUTPUT_NAMES]
        with closing(self._runs(self.prepare(tiles))) as runs:
            for count in runs:
                found.append([np.empty((count, *shape), np.float32) for shape in shapes])
                for name, array in zip(OUTPUT_NAMES, found[-1], strict=True):
                    self._cuda.copy(array.ctypes.data, self._outputs[name], array.nbytes, self._compute)
                self._cuda.synchronize(self._compute)
        boxes, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return boxes, scores

    def _runs(self, feed: Feed) -> Generator[int, None, None]:
        """Run the parts of `feed`; yields how many tiles each has while its results stand in the buffers."""
        with self._running:
            self._check_open()
            if not feed.parts:
                raise ValueError("this feed was inferred already; prepare the tiles again")
            self.device_ms = {}
            try:
                while feed.parts:
                    part = feed.parts[0]
                    self._run(part, feed)
                    self._give_back(feed.parts.popleft())
                    yield part.count
            except BaseException:
                with suppress(CudaError):  # nothing may still use the buffers that are given back
                    self._cuda.synchronize(self._compute)
                raise
            finally:
                feed.release()

    def _run(self, part: _Part, feed: Feed) -> None:
        """One run of the engine, and meanwhile the copy of the next part."""
        cuda, compute, marks = self._cuda, self._compute, self._marks
        batch = max(part.count, self.engine.batch[0])
        borrowed = part.slot is None
        # Borrowed memory ends with its last tile: a padded run must not read beyond it. And a view of other
        # memory begins anywhere, where TensorRT takes multiples of 256 alone.
        in_place = borrowed and batch == part.count and part.address % ALIGNMENT == 0
        if in_place:
            prepared = _BatchContext(self._context_at(batch, part.address), [])
        else:
            prepared = self._batch_context(batch)
        cuda.wait(compute, part.arrived)
        cuda.record(marks[0], compute)
        if not in_place:
            cuda.copy(self._images, part.address, part.count * self._input.row_bytes, compute)
        if part.slot is not None:
            cuda.record(part.slot.free, compute)
        cuda.record(marks[1], compute)
        for index, (_, enqueue) in enumerate(self._stages):
            if prepared.graphs:
                cuda.launch(prepared.graphs[index], compute)
            else:
                enqueue(prepared.context, batch)
            cuda.record(marks[index + 2], compute)
        for buffer in self._results.values():
            cuda.copy(buffer.host, buffer.device, part.count * buffer.row_bytes, compute)
        cuda.record(marks[-1], compute)
        feed.advance()
        cuda.wait_on_host(marks[-1])
        self._add_times(part)

    def _add_times(self, part: _Part) -> None:
        names = ["copy_in", *(name for name, _ in self._stages), "copy_out"]
        spans = list(zip(self._marks, self._marks[1:], strict=False))
        times = [self._cuda.milliseconds(start, end) for start, end in spans]
        if part.slot is not None:
            times[0] += self._cuda.milliseconds(part.slot.started, part.slot.arrived)
        for name, value in zip(names, times, strict=True):
            self.device_ms[name] = self.device_ms.get(name, 0.0) + value

    def _enqueue_network(self, context: Any, batch: int) -> None:
        if not context.execute_async_v3(self._compute):
            raise ModelError(
                f"{self.path}: {self.engine.api} cannot run {batch} tiles: {self.engine.log.errors()}"
            )

    def _copied_results(self, count: int) -> list[NDArray[Any]]:
        return [buffer.array[:count].copy() for buffer in self._results.values()]

    # --- contexts and graphs

    def _context(self, batch: int, images: int) -> Any:
        """A new context with this shape and these addresses, on the memory that all contexts share."""
        context = self.engine.new_context()
        context.set_device_memory(self._activations, self.engine.activation_bytes)
        for name, address in self._outputs.items():
            self._done(context.set_tensor_address(name, address), f"the address of {name}")
        self._set_input(context, batch, images)
        return context

    def _set_input(self, context: Any, batch: int, images: int) -> None:
        shape = (batch, *self._input.shape[1:])
        self._done(context.set_input_shape(INPUT_NAME, shape), f"a batch of {batch}")
        self._done(context.set_tensor_address(INPUT_NAME, images), f"the address of {INPUT_NAME}")

    def _done(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise ModelError(f"{self.path}: the engine does not take {what}: {self.engine.log.errors()}")

    def _context_at(self, batch: int, images: int) -> Any:
        """The context for borrowed memory, touched only where shape or address changed."""
        if self._direct is None:
            self._direct = (self._context(batch, images), batch, images)
            self.engine.save_cache()
        context, *current = self._direct
        if current != [batch, images]:
            self._set_input(context, batch, images)
            self._direct = (context, batch, images)
        return context

    def _batch_context(self, batch: int) -> _BatchContext:
        """Context and graphs of a batch size, made when it first comes."""
        if batch not in self._contexts:
            with self.engine.alone():
                context = self._context(batch, self._images)
                # The first run with a shape settles what a graph cannot hold; RTX compiles in it.
                for _, enqueue in self._stages:
                    enqueue(context, batch)
                self._cuda.synchronize(self._compute)
                self._contexts[batch] = _BatchContext(context, self._captured(context, batch))
            self.engine.save_cache()
        return self._contexts[batch]

    def _captured(self, context: Any, batch: int) -> list[int]:
        """A graph for each stage; none, and the reason told once, where one is refused."""
        graphs: list[int] = []
        try:
            capturable = getattr(context, "is_stream_capturable", None)  # TensorRT for RTX knows beforehand
            if capturable is not None and not capturable(self._compute):
                raise ModelError(f"{self.engine.api} says that this engine cannot be captured")
            for _, enqueue in self._stages:
                graphs.append(self._capture(enqueue, context, batch))
        except ModelError as error:
            for graph in graphs:
                self._destroy(self._cuda.destroy_graph, graph)
            if not self.graph_note:
                self.graph_note = f"no, {error}"
                warnings.warn(f"{self.path.name} runs without CUDA graphs: {error}", stacklevel=2)
            return []
        for graph in graphs:
            self._resources.callback(self._destroy, self._cuda.destroy_graph, graph)
        return graphs

    def _capture(self, enqueue: Callable[[Any, int], None], context: Any, batch: int) -> int:
        self._cuda.begin_capture(self._compute)
        try:
            enqueue(context, batch)
        except BaseException:
            with suppress(CudaError):  # the stream must leave the capture, whatever it holds
                self._cuda.destroy_graph(self._cuda.end_capture(self._compute))
            raise
        return self._cuda.end_capture(self._compute)

    # --- from the device

    def finish(self, outputs: Results) -> list[Detections]:
        """Detections of each tile: the rows that count, in canonical form; or `select`'s, on the CPU."""
        if self.engine.nms == "cpu":
            return super().finish(outputs)

        counts, boxes, scores, labels = outputs
        found = []
        for tile, count in enumerate(counts[:, 0].tolist()):
            if not 0 <= count <= self.spec.max_detections:
                raise ModelError(
                    f"{self.path}: the engine counts {count} detections, expected 0 to "
                    f"{self.spec.max_detections}; {self.engine.rebuild_hint}"
                )
            kept = canonical(boxes[tile, :count]).astype(np.float32)
            found.append(Detections(kept, scores[tile, :count], labels[tile, :count]))
        return found
