"""TensorRT whose engines run checksum_network.cu: on a GPU the real streams, copies, events and graphs around
a network are tested without TensorRT, and on the CPU the same tests run on stand-ins.
"""

from __future__ import annotations

import ctypes
import json
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stand_ins import Context, EngineStandIn, Runtime, TensorRT, write_engine

from rgfl.detections import Detections
from rgfl.postprocess import select
from rgfl.spec import DetectorSpec

POINTS, KNOWN = 96, 24


class _Output(ctypes.Structure):
    _fields_ = [("known", ctypes.c_void_p), ("rows", ctypes.c_void_p), ("row_bytes", ctypes.c_int64)]


class _Network(ctypes.Structure):
    _fields_ = [
        ("sums", ctypes.c_void_p),
        ("known", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
        ("image_bytes", ctypes.c_int64),
        ("output", _Output * 4),
    ]


@dataclass(frozen=True)
class Images:
    """Images that the network knows, and what it answers to each."""

    spec: DetectorSpec
    tiles: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    detections: list[Detections]

    def sums(self) -> NDArray[np.uint64]:
        """As the kernel sums: modulo 2⁶⁴."""
        flat = self.tiles.reshape(len(self.tiles), -1)
        weights = np.uint64(0x9E3779B97F4A7C15) * np.arange(flat.shape[1], dtype=np.uint64) | np.uint64(1)
        return np.array([((image + np.uint64(1)) * weights).sum(dtype=np.uint64) for image in flat])

    def answers(self, *, nms_inside: bool) -> dict[str, NDArray[Any]]:
        """Each output's rows."""
        if not nms_inside:
            return {"boxes": self.boxes, "scores": self.scores}
        rows = self.spec.max_detections
        tables = {
            "num_detections": np.zeros((KNOWN, 1), np.int32),
            "boxes": np.zeros((KNOWN, rows, 5), np.float32),
            "scores": np.zeros((KNOWN, rows), np.float32),
            "labels": np.zeros((KNOWN, rows), np.int32),
        }
        for index, one in enumerate(self.detections):
            tables["num_detections"][index] = len(one)
            for name in ("boxes", "scores", "labels"):
                tables[name][index, : len(one)] = getattr(one, name)
        return tables


@cache
def make_images(side: int) -> Images:
    """Noise, no two alike, and boxes of which NMS keeps some."""
    spec = DetectorSpec(
        classes=("plane", "ship", "harbor"), image_size=(side, side), strides=(8, 32), max_detections=50
    )
    rng = np.random.default_rng(5)
    tiles = rng.integers(0, 256, (KNOWN, side, side, 3), dtype=np.uint8)
    boxes = rng.uniform([0, 0, 6, 4, -0.7], [side, side, 20, 12, 2], (KNOWN, POINTS, 5)).astype(np.float32)
    scores = rng.uniform(0, 1, (KNOWN, POINTS, len(spec.classes))).astype(np.float32) ** 4
    detections = select(boxes, scores, spec)
    assert min(map(len, detections)) > 5
    return Images(spec, tiles, boxes, scores, detections)


class ChecksumTensorRT(TensorRT):
    """The module.

    Args:
        cuda: the real calls, or those on host memory.
        network: checksum_network.cu, compiled for the one or the other.
        enqueue: puts a launch on a stream.
    """

    def __init__(
        self, cuda: Any, network: Path, images: Images, enqueue: Callable[[int, Callable[[], None]], None]
    ) -> None:
        super().__init__(cuda, network)
        self.images, self.enqueue = images, enqueue
        self.launch = ctypes.CDLL(str(network)).checksum_network
        self.launch.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p]

    def Runtime(self, log: Any) -> Runtime:
        return ChecksumRuntime(self, log)


class ChecksumRuntime(Runtime):
    def deserialize_cuda_engine(self, data: bytes) -> Any:
        length = int.from_bytes(data[28:32], "little")
        return ChecksumEngine(self.module, self.log, json.loads(data[32 : 32 + length]))


def write_checksum_engine(path: Path, backend: str, batch: tuple[int, int, int]) -> Path:
    """A file that `ChecksumRuntime` reads."""
    return write_engine(path, Path("/dev/null"), backend=backend, batch=batch)


class ChecksumEngine(EngineStandIn):
    """Its tables lie on the device."""

    def __init__(self, module: Any, log: Any, facts: dict[str, Any]) -> None:
        self.module, self.log, self.batch = module, log, facts["batch"]
        images: Images = module.images
        self.name, self.image_bytes = images.spec.to_json(), images.tiles[0].nbytes
        self.tables = images.answers(nms_inside=facts["nms"])
        self.tensors = {"images": ((-1, *images.tiles.shape[1:]), "UINT8")}
        kinds = {"float32": "FLOAT", "int32": "INT32"}
        for name, table in self.tables.items():
            self.tensors[name] = ((-1, *table.shape[1:]), kinds[table.dtype.name])
        self.known = {name: self._uploaded(table) for name, table in self.tables.items()}
        self.sums = self._uploaded(images.sums())
        module.alive.add(self)

    def _uploaded(self, array: NDArray[Any]) -> int:
        cuda = self.module.cuda
        address, stream = cuda.allocate(array.nbytes), cuda.stream()
        cuda.copy(address, array.ctypes.data, array.nbytes, stream)
        cuda.synchronize(stream)
        cuda.destroy_stream(stream)
        weakref.finalize(self, cuda.free, address)
        return int(address)

    def create_execution_context(self, given: Any) -> Context:
        return ChecksumContext(self)


class ChecksumContext(Context):
    def execute_async_v3(self, stream: int) -> bool:
        engine: Any = self.engine
        network = _Network(
            sums=engine.sums, known=KNOWN, outputs=len(engine.tables), image_bytes=engine.image_bytes
        )
        for output, (name, table) in zip(network.output, engine.tables.items(), strict=False):
            output.known, output.rows, output.row_bytes = (
                engine.known[name],
                self.addresses[name],
                table[0].nbytes,
            )
        images, batch = self.addresses["images"], self.batch

        def launch() -> None:
            code = engine.module.launch(images, batch, ctypes.byref(network), stream)
            assert code == 0, f"CUDA error {code}"

        engine.module.enqueue(stream, launch)
        return True
