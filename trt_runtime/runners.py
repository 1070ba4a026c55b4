"""One interface over every backend: uint8 RGB tiles in, one record of detections a tile out.

    with load_runner("model.onnx") as runner:
        detections = runner(tiles)  # tiles (B, H, W, 3) uint8, H and W as runner.spec.image_size
        found = runner.detect(scene)  # (H, W, 3) uint8 of any size, cut into tiles and merged

A runner works in three stages, so that a benchmark can time each and a pipeline can overlap them:

    prepare  tiles -> what the network takes           (any thread)
    infer    -> what the network gives                 (one thread)
    finish   -> detections after class-wise rotated NMS (any thread)

Engines take more: tiles that lie on the GPU, and a `fork()` for each thread (rgfl.trt_runtime.engine).
"""

from __future__ import annotations

import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rgfl.checkpoint import CheckpointError, load_detector
from rgfl.detections import Detections
from rgfl.dota import merge
from rgfl.errors import ModelError, one_line
from rgfl.postprocess import select
from rgfl.spec import METADATA_KEY, DetectorSpec, SpecError
from rgfl.trt_runtime.machine import file_facts, has_vnni, physical_cores
from rgfl.trt_runtime.tensorrt_api import MAGIC

# (B, H, W, 3), or B arrays (H, W, 3), such as views of a scene.
TileArrays = NDArray[np.uint8] | Sequence[NDArray[np.uint8]]
Device = Literal["auto", "cpu", "cuda"]
Kind = Literal["torch", "onnx", "engine"]

SUFFIXES: dict[str, Kind] = {
    ".pt": "torch",
    ".pth": "torch",
    ".onnx": "onnx",
    ".engine": "engine",
    ".plan": "engine",
}
INPUT_NAME = "images"
OUTPUT_NAMES = ["boxes", "scores"]


class Runner(ABC):
    """A loaded detector.

    Attributes:
        path: the file it was loaded from.
        spec: what it was trained to see and how its outputs are read.
        reason: why this runner was chosen, in one line.
        name: "file (backend)", for tables and messages.
        device_ms: milliseconds of each part of the last call on a GPU, where the backend measures them.
    """

    backend: str = ""  # "PyTorch", "ONNX Runtime", …
    precision: str = "fp32"
    device: str = "cpu"
    device_ms: dict[str, float]
    _closed = False
    _survives_fork = False  # of the process

    def __init__(
        self, path: Path, spec: DetectorSpec, reason: str, facts: dict[str, Any] | None = None
    ) -> None:
        self.path = path
        self.spec = spec
        self.reason = reason
        self.device_ms = {}
        self._facts = facts or file_facts(path)  # now: another file may take its place
        self._process = os.getpid()

    @property
    def name(self) -> str:
        return f"{self.path.name} ({self.backend})"

    @abstractmethod
    def prepare(self, tiles: Any) -> Any:
        """What the network takes, from `TileArrays`."""

    @abstractmethod
    def infer(self, feed: Any) -> Any:
        """What the network gives for `feed`; returns when the result is there."""

    def finish(self, outputs: Any) -> list[Detections]:
        """Detections from boxes (B, P, 5) and scores (B, P, C): threshold, top-k, NMS per class."""
        boxes, scores = outputs
        # NMS would drop them without a word, and a broken model would pass for one that finds nothing.
        likely = ~(scores.max(axis=2) <= self.spec.score_threshold)  # NaN, too
        if np.isnan(scores[likely]).any() or np.isnan(boxes[likely]).any():
            raise ModelError(
                f"{self.path}: the model gives NaN; its weights are broken, or its precision is too low"
            )
        return select(boxes, scores, self.spec)

    def __call__(self, tiles: TileArrays) -> list[Detections]:
        return self.finish(self.infer(self.prepare(tiles)))

    def detect(
        self,
        scene: Any,
        *,
        score: float | Sequence[float] | None = None,
        across: float | None = None,
        stride: int = 0,
        scales: Sequence[float] = (1.0,),
        batch: int = 1,
    ) -> Detections:
        """Objects of a whole scene, in its pixels: its tiles one batch after the other, merged.

        Args:
            scene: shape (H, W, 3), uint8 RGB when sliced, of any size; see rgfl.dota.merge.detect.
            score: keeps detections of this score or more; one for all classes, or one for each. There are
                none at or below the spec's score_threshold; runners but those of engines take another spec,
                set before: runner.spec = dataclasses.replace(runner.spec, score_threshold=0.01).
            across: IoU; of those of several classes that overlap by more, only the best is kept: an object
                that was found as two. None: each class by itself.
            stride, scales, batch: as there.

        Raises:
            ValueError: the scene is of another kind, shape or type, no such score or IoU, or the runner is
                closed.
        """
        check_scene(scene)
        least = None if score is None else _by_class(score, self.spec.classes)
        if across is not None and not 0 <= across <= 1:
            raise ValueError(f"across: expected an IoU from 0 to 1, got {across!r}")
        found = merge.detect(
            scene,
            self,
            size=self.spec.tile_side,
            stride=stride,
            pad_value=self.spec.pad_value,
            scales=scales,
            batch=batch,
            stack=False,
        )
        found = found if least is None else found.at_least(least)
        return found if across is None else found.across(across)

    def raw(self, tiles: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Decoded boxes (B, P, 5) and scores (B, P, C) before NMS."""
        boxes, scores = self.infer(self.prepare(tiles))
        return boxes, scores

    def describe(self) -> dict[str, Any]:
        """What a result file says about the model."""
        return {
            **self._facts,
            "backend": self.backend,
            "precision": self.precision,
            "device": self.device,
            "chosen": self.reason,
            "spec_digest": self.spec.digest,
            "classes": list(self.spec.classes),
            "image_size": list(self.spec.image_size),
        }

    def close(self) -> None:
        """Release the backend; the runner is not used afterwards."""
        self._closed = True

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _checked(self, tiles: TileArrays) -> NDArray[np.uint8]:
        """The tiles as one array."""
        self._check(tiles)
        return np.ascontiguousarray(tiles)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"{self.path.name}: this runner is closed; use it inside its with block")

    def _check(self, tiles: TileArrays) -> None:
        self._check_open()
        if self._process != os.getpid() and not self._survives_fork:
            raise ValueError(  # the threads of its backend are not here: it would wait for them for ever
                f"{self.path.name}: loaded before this process was forked; load runners after that alone, in "
                'each process, or start processes by multiprocessing.get_context("spawn")'
            )
        expected = (*self.spec.image_size, 3)
        arrays = [tiles] if isinstance(tiles, np.ndarray) else [tile[None] for tile in tiles]
        for array in arrays or [np.empty(0, np.uint8)]:
            if array.dtype != np.uint8 or array.shape[1:] != expected or len(array) == 0:
                raise ValueError(
                    f"{self.path.name} takes uint8 tiles (B, {expected[0]}, {expected[1]}, 3), B ≥ 1; "
                    f"got {array.dtype} {array.shape}"
                )


class TorchRunner(Runner):
    """The reference row: the network as it was trained."""

    backend = "PyTorch"

    def __init__(self, path: Path, reason: str, device: Device = "auto", threads: int = 0) -> None:
        try:
            import torch
        except ImportError as error:
            raise ModelError(
                f"{path}: PyTorch is needed for a checkpoint: pip install 'rgfl[train]'"
            ) from error

        if device == "cuda" and not torch.cuda.is_available():
            raise ModelError("--device cuda: PyTorch sees no GPU here; use --device cpu")
        self._torch = torch
        self.device = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
        if threads:
            torch.set_num_threads(threads)
        # All other rows are compared with this one, and TensorFloat-32 keeps ten bits.
        torch.backends.cudnn.allow_tf32 = False
        try:
            detector = load_detector(path)
        except CheckpointError as error:
            raise ModelError(str(error)) from error
        self._detector: Any = detector.to(self.device)
        self._network: Any = lambda images: detector.decode(detector(images))
        super().__init__(path, detector.spec, reason)

    def prepare(self, tiles: NDArray[np.uint8]) -> Any:
        images = self._torch.from_numpy(self._checked(tiles)).to(self.device)
        with self._torch.inference_mode():
            return self._detector.normalise(images)

    def infer(self, feed: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        self._check_open()
        with self._torch.inference_mode():
            boxes, scores = self._network(feed)
        return boxes.float().cpu().numpy(), scores.float().cpu().numpy()

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "threads": self._torch.get_num_threads()}

    def close(self) -> None:
        super().close()
        self._detector = self._network = None  # its memory may be a GPU's


class CompiledTorchRunner(TorchRunner):
    """What an engine has to beat: torch.compile, on a GPU with CUDA graphs, in FP16 up to the decoding."""

    backend = "PyTorch, compiled"

    def __init__(self, path: Path, reason: str, device: Device = "auto", threads: int = 0) -> None:
        super().__init__(path, reason, device, threads)
        torch, on_gpu = self._torch, self.device == "cuda"
        self.precision = "fp16" if on_gpu else "fp32"
        self._type = torch.float16 if on_gpu else torch.float32
        for part in (self._detector.backbone, self._detector.neck, self._detector.head):
            part.to(dtype=self._type, memory_format=torch.channels_last)
        mode = "reduce-overhead" if on_gpu else "default"
        torch._dynamo.config.recompile_limit = 1000  # of all models and batches together; 8 by default
        self._network = torch.compile(self._network, mode=mode, dynamic=False, fullgraph=True)

    def prepare(self, tiles: NDArray[np.uint8]) -> Any:
        images = super().prepare(tiles)
        return images.to(dtype=self._type, memory_format=self._torch.channels_last)

    def infer(self, feed: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        try:
            return super().infer(feed)
        except Exception as error:  # of torch's compilers, each with classes of its own
            if not type(error).__module__.startswith("torch._"):
                raise
            raise ModelError(
                f"{self.path}: torch.compile does not get through ({_shortened(error)}); it needs a C++ "
                "compiler, and Triton for a GPU"
            ) from error


class OnnxRunner(Runner):
    """ONNX Runtime: any machine; on a GPU where its CUDA provider is installed."""

    backend = "ONNX Runtime"

    def __init__(self, path: Path, reason: str, device: Device = "auto", threads: int = 0) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ModelError(
                f"{path}: ONNX Runtime is needed for a .onnx file: pip install onnxruntime"
            ) from error
        has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        if device == "cuda" and not has_cuda:
            raise ModelError(
                "--device cuda: this ONNX Runtime has no CUDA provider; pip install onnxruntime-gpu, "
                "or use --device cpu"
            )
        providers: list[Any] = ["CPUExecutionProvider"]
        if has_cuda and device != "cpu":
            providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": 0}))  # else FP32 would keep ten bits
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Between calls its threads leave the cores to NMS, or to the next model of a benchmark.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if not has_vnni():  # INT8 kernels that do not saturate; where none do, these take twice the time
            options.add_session_config_entry("session.x64quantprecision", "1")
        # ONNX Runtime's own default, but named, so that a result file can say it.
        self._threads = threads or physical_cores()
        options.intra_op_num_threads = self._threads

        def load() -> Any:
            try:
                return onnxruntime.InferenceSession(str(path), options, providers=providers)
            except Exception as error:  # ONNX Runtime raises its own classes, one per status code
                raise ModelError(
                    f"{path}: ONNX Runtime cannot load it ({_shortened(error)}); "
                    "write it anew with export/to_onnx.py"
                ) from error

        self._session: Any = load()
        if self._session.get_modelmeta().custom_metadata_map.get("rgfl_precision") == "int8-fp16":
            # Its integer kernels get scales of FP16 wrong (ONNX Runtime 1.32: scores of .3 for .99).
            options.add_session_config_entry("session.disable_quant_qdq", "1")
            self._session = load()
        self.device = "cuda" if self._session.get_providers()[0].startswith("CUDA") else "cpu"
        if len(providers) > 1 and self.device == "cpu":  # ONNX Runtime only logs what keeps it from the GPU
            lacks = "ONNX Runtime's CUDA provider does not load here: CUDA, cuDNN or a GPU is missing"
            if device == "cuda":
                raise ModelError(f"--device cuda: {lacks}; install them, or use --device cpu")
            reason = f"{reason}; on the CPU, as {lacks}"
        metadata = self._session.get_modelmeta().custom_metadata_map
        if METADATA_KEY not in metadata:
            raise ModelError(
                f"{path}: no rgfl spec in its metadata, so its classes and normalisation are unknown; "
                "export the checkpoint with: python export/to_onnx.py CHECKPOINT --out MODEL.onnx"
            )
        try:
            spec = DetectorSpec.from_json(metadata[METADATA_KEY])
        except SpecError as error:
            raise ModelError(f"{path}: {error}") from error
        self.precision = metadata.get("rgfl_precision", "fp32")
        super().__init__(path, spec, reason)
        self._takes_uint8 = self._check_inputs_outputs()
        self._survives_fork = self.device == "cpu"

    def _check_inputs_outputs(self) -> bool:
        """Whether the input is uint8 NHWC; raises where names differ from the contract."""
        inputs = {node.name: node.type for node in self._session.get_inputs()}
        outputs = [node.name for node in self._session.get_outputs()]
        if list(inputs) != [INPUT_NAME] or outputs not in (OUTPUT_NAMES, [*OUTPUT_NAMES, "uncertainty"]):
            raise ModelError(
                f"{self.path}: expected input {INPUT_NAME!r} and outputs {OUTPUT_NAMES}, found "
                f"{list(inputs)} and {outputs}; write it anew with export/to_onnx.py"
            )
        count = {node.name: node.shape for node in self._session.get_outputs()}["scores"][-1]
        if isinstance(count, int) and count != len(self.spec.classes):
            raise ModelError(
                f"{self.path}: the graph scores {count} classes, its spec names {len(self.spec.classes)}; "
                "write it anew with export/to_onnx.py"
            )
        batch = self._session.get_inputs()[0].shape[0]
        if isinstance(batch, int):
            raise ModelError(
                f"{self.path}: its batch is fixed at {batch}, expected any size; "
                "write it anew with export/to_onnx.py"
            )
        return inputs[INPUT_NAME] == "tensor(uint8)"

    def prepare(self, tiles: TileArrays) -> NDArray:
        array = self._checked(tiles)
        return array if self._takes_uint8 else normalised(array, self.spec)

    def infer(self, feed: NDArray) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        session = self._session
        self._check_open()
        try:
            boxes, scores = session.run(OUTPUT_NAMES, {INPUT_NAME: feed})
        except Exception as error:  # for want of memory, most of the time
            raise ModelError(
                f"{self.path}: ONNX Runtime cannot run a batch of {len(feed)} ({_shortened(error)}); "
                "give a smaller --batch, or write it anew with export/to_onnx.py"
            ) from error
        batch, points, classes = len(feed), boxes.shape[1:2], len(self.spec.classes)
        if boxes.shape != (batch, *points, 5) or scores.shape != (batch, *points, classes):
            raise ModelError(
                f"{self.path}: expected boxes ({batch}, P, 5) and scores ({batch}, P, {classes}), got "
                f"{boxes.shape} and {scores.shape}; write it anew with export/to_onnx.py"
            )
        return boxes, scores

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "threads": self._threads}

    def close(self) -> None:
        super().close()
        if self._process == os.getpid():  # else it would wait for ever for threads that are not here
            self._session = None


def normalised(tiles: NDArray[np.uint8], spec: DetectorSpec) -> NDArray[np.float32]:
    """(B, 3, H, W) float32, what graphs without normalisation take, from tiles (B, H, W, 3)."""
    mean, std = (np.array(values, np.float32) for values in (spec.mean, spec.std))
    scaled = (tiles.astype(np.float32) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def load_runner(
    path: str | Path, *, device: Device = "auto", threads: int = 0, trust_engine: bool = False
) -> Runner:
    """The runner for the file at `path`.

    Args:
        path: a checkpoint (.pt), an ONNX file or a TensorRT engine (not run on a GPU yet).
        device: "auto" takes a GPU where the backend has one; an engine needs one.
        threads: CPU threads of the backend; 0 leaves its default. Those of PyTorch are the process's.
        trust_engine: an engine built with --version-compatible may run the libraries that it carries.

    Raises:
        ValueError: `device` or `threads` cannot be.
        ModelError: one line saying what is wrong with the file and what to do.
    """
    if device not in get_args(Device) or threads < 0:
        raise ValueError(
            f"expected a device of {get_args(Device)} and threads ≥ 0, got {device!r}, {threads}"
        )
    path = Path(path)
    kind, reason = recognise(path)
    if kind == "torch":
        return TorchRunner(path, reason, device, threads)
    if kind == "onnx":
        return OnnxRunner(path, reason, device, threads)
    if device == "cpu":
        raise ModelError(f"{path}: an engine runs on a GPU only; leave --device out, or run the .onnx")
    from rgfl.trt_runtime.engine import EngineRunner, open_engine

    engine, why = open_engine(path, trusted=trust_engine)
    return EngineRunner(engine, f"{reason}; {why}")


def recognise(path: Path) -> tuple[Kind, str]:
    """Which backend reads `path`, and why, in one line.

    Content that is beyond doubt must agree with the suffix; content decides where the suffix is unknown.
    """
    if path.is_dir():
        raise ModelError(f"{path}: a directory, expected a model file (.pt, .onnx or .engine)")
    if not path.exists():
        hint = ""
        if path.name == "best.pt" and (last := path.with_name("last.pt")).exists():
            hint = f"; a training writes it after its first evaluation (--eval-every); there is {last}"
        raise ModelError(f"{path}: no such file{hint}")
    if path.stat().st_size == 0:
        raise ModelError(f"{path}: the file is empty; was its export interrupted?")
    by_suffix = SUFFIXES.get(path.suffix.lower())
    by_content = _kind_of_content(path)
    if by_suffix and by_content and by_suffix != by_content:
        raise ModelError(f"{path}: the suffix says {by_suffix}, the content {by_content}; rename the file")
    if by_suffix:
        return by_suffix, f"{by_suffix}, by its suffix {path.suffix}"
    if by_content:
        return by_content, f"{by_content}, by its content"
    raise ModelError(f"{path}: no model; expected one of {', '.join(SUFFIXES)}")


def _by_class(score: float | Sequence[float], classes: Sequence[str]) -> NDArray[np.float32]:
    """(C,) least scores; ValueError for what is no score, or none for each class."""
    least = np.asarray(score, np.float32)
    if least.shape not in ((), (len(classes),)) or not ((least >= 0) & (least <= 1)).all():
        raise ValueError(
            f"score: expected a number from 0 to 1, or {len(classes)} of them (for "
            f"{', '.join(classes)}), got {score!r}"
        )
    return np.broadcast_to(least, len(classes))


def check_scene(scene: Any) -> None:
    """ValueError that tells how to make of `scene` what Runner.detect takes."""
    expected = "scene: expected uint8 pixels (H, W, 3), RGB, got"
    if scene is None:
        raise ValueError(f"{expected} None; OpenCV gives None for what it cannot read")
    if isinstance(scene, (str, os.PathLike)):
        raise ValueError(f"{expected} a path; read the file: rgfl.dota.images.read_image({str(scene)!r})")
    kind, shape = type(scene), tuple(getattr(scene, "shape", ()))
    if kind.__module__.startswith("rasterio."):
        raise ValueError(f"{expected} an open raster; read it with rgfl.dota.images.read_image(path)")
    if not shape:
        made = "scene.convert('RGB')" if kind.__module__.startswith("PIL.") else "scene"
        raise ValueError(f"{expected} {kind.__module__}.{kind.__qualname__}; take np.asarray({made})")
    dtype = str(getattr(scene, "dtype", "uint8")).removeprefix("torch.")
    if 0 in shape:
        remedy = "there are no pixels in it"
    elif len(shape) == 2:
        remedy = "repeat the grey: np.stack([scene] * 3, axis=2)"
    elif len(shape) != 3:
        remedy = "pass one image at a time"
    elif shape[2] == 3 and dtype == "uint8":
        return
    elif shape[2] == 3 and dtype.startswith("float"):
        remedy = "if its values are 0…1: (scene * 255).round().astype(np.uint8)"
    elif shape[2] == 3 and dtype == "uint16":
        remedy = "take (scene >> 8).astype(np.uint8), as read_image does"
    elif shape[2] == 3:
        remedy = "bring its values to 0…255, then .astype(np.uint8)"
    elif shape[2] == 1:
        remedy = "repeat the grey: np.repeat(scene, 3, axis=2)"
    elif shape[2] == 4:
        remedy = "drop the fourth channel: scene[:, :, :3]"
    elif shape[0] == 3:
        remedy = "put the channels last: scene.transpose(1, 2, 0)"
    else:
        remedy = "choose its red, green and blue channels, and put them last"
    raise ValueError(f"{expected} {dtype} {shape}; {remedy}")


def _kind_of_content(path: Path) -> Kind | None:
    with path.open("rb") as file:
        head = file.read(4)
    if head in MAGIC:
        return "engine"
    return "torch" if zipfile.is_zipfile(path) else None


def _shortened(error: Exception) -> str:
    text = one_line(error)
    return text[:400] + ("…" if len(text) > 400 else "")
