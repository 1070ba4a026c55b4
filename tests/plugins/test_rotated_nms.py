"""The CUDA kernels keep exactly what the CPU core keeps.

Each test runs with the kernels emulated on the CPU, on any machine (threads, warps and blocks in shuffled
orders, see emulator/cuda_runtime.h; every access to memory checked, see emulator/checker.cpp), once as g++
compiles them and thrice as nvcc does (see emulator/ptx.py); and on the GPU where there is one.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from plugin_libraries import skip_without_gpu

from rgfl.geometry import rotated_nms
from rgfl.plugins.launcher import LaunchError, Outputs, RotatedNms, Settings

KERNELS = ("collect", "sort", "merge", "suppress", "emit")  # in the order in which they run


@dataclass
class Result:
    num_detections: NDArray[np.int32]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int32]
    indices: NDArray[np.int32]


class Emulated:
    """The kernels on the CPU, every access checked; device memory is the arrays themselves."""

    def __init__(self, library: Path) -> None:
        self.launch = RotatedNms(library)
        self.checker = ctypes.CDLL(str(library))
        self.red_zone = ctypes.c_size_t.in_dll(self.checker, "emulator_red_zone").value  # bytes
        self.checker.emulator_unwritten.restype = ctypes.c_size_t
        self.checker.emulator_findings.restype = ctypes.c_char_p
        self.checker.emulator_adds.restype = ctypes.c_uint64

    def __call__(self, boxes: NDArray[Any], scores: NDArray[Any], settings: Settings) -> Result:
        result, findings = self.checked(boxes, scores, settings)
        assert not findings, findings
        return result

    def checked(
        self, boxes: NDArray[Any], scores: NDArray[Any], settings: Settings, poison: int = 0xA5
    ) -> tuple[Result, str]:
        """The result, and what the checker has found."""
        shape, K = scores.shape, settings.max_detections
        fresh = {
            "num_detections": np.empty((shape[0], 1), np.int32),
            "boxes": np.empty((shape[0], K, 5), np.float32),
            "scores": np.empty((shape[0], K), np.float32),
            "labels": np.empty((shape[0], K), np.int32),
            "indices": np.empty((shape[0], K), np.int32),
        }
        for array in fresh.values():
            # Nothing may depend on what the memory held before.
            array.view(np.uint8)[...] = poison
        outputs = {name: self._watch(f"output {name}", array) for name, array in fresh.items()}
        size = self.launch.workspace_size(shape)
        workspace = self._watch("workspace", np.full(size, poison, np.uint8))
        box, score = (
            self._watch("boxes", boxes, read_only=True),
            self._watch("scores", scores, read_only=True),
        )
        try:
            self.launch(
                shape,
                settings,
                boxes=box.ctypes.data,
                scores=score.ctypes.data,
                score_type="float16" if scores.dtype == np.float16 else "float32",
                outputs=Outputs(**{name: array.ctypes.data for name, array in outputs.items()}),
                workspace=workspace.ctypes.data,
            )
            findings = [
                f"output {name}: {words} words not written"
                for name, array in outputs.items()
                if (words := self.checker.emulator_unwritten(ctypes.c_void_p(array.ctypes.data)))
            ]
        finally:  # the memory may be another array's next time
            seen = self.checker.emulator_findings().decode()
        return Result(**outputs), "\n".join([*findings, seen]).strip()

    def adds(self, kernel: str) -> int:
        """Atomic additions by a kernel of the last call."""
        return int(self.checker.emulator_adds(KERNELS.index(kernel)))

    def _watch(self, name: str, array: NDArray[Any], *, read_only: bool = False) -> NDArray[Any]:
        """A copy of the array that the checker watches, with unused memory on both sides."""
        room = np.zeros(array.nbytes + 2 * self.red_zone + 256, np.uint8)
        begin = (
            self.red_zone + -(room.ctypes.data + self.red_zone) % 256
        )  # aligned as CUDA's allocator aligns
        copy = room[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        address, bytes_ = ctypes.c_void_p(copy.ctypes.data), ctypes.c_size_t(copy.nbytes)
        self.checker.emulator_watch(name.encode(), address, bytes_, ctypes.c_bool(read_only))
        return copy


class OnGpu:
    """The kernels on the GPU, on PyTorch's memory and stream."""

    def __init__(self, library: Path) -> None:
        import torch

        self.torch = torch
        self.launch = RotatedNms(library)

    def prepare(self, boxes: NDArray[Any], scores: NDArray[Any], settings: Settings) -> tuple[Any, Any]:
        """A function that enqueues one NMS on the current stream, and the tensors that it fills."""
        torch = self.torch
        shape, K = scores.shape, settings.max_detections
        box, score = torch.from_numpy(boxes).cuda(), torch.from_numpy(scores).cuda()
        workspace = torch.full((self.launch.workspace_size(shape),), 0xA5, dtype=torch.uint8, device="cuda")
        out = {
            name: torch.full(size, 99, dtype=dtype, device="cuda")
            for name, size, dtype in (
                ("num_detections", (shape[0], 1), torch.int32),
                ("boxes", (shape[0], K, 5), torch.float32),
                ("scores", (shape[0], K), torch.float32),
                ("labels", (shape[0], K), torch.int32),
                ("indices", (shape[0], K), torch.int32),
            )
        }

        def enqueue() -> None:
            self.launch(
                shape,
                settings,
                boxes=box.data_ptr(),
                scores=score.data_ptr(),
                score_type="float16" if scores.dtype == np.float16 else "float32",
                outputs=Outputs(**{name: tensor.data_ptr() for name, tensor in out.items()}),
                workspace=workspace.data_ptr(),
                stream=torch.cuda.current_stream().cuda_stream,
            )

        return enqueue, out

    def __call__(self, boxes: NDArray[Any], scores: NDArray[Any], settings: Settings) -> Result:
        enqueue, out = self.prepare(boxes, scores, settings)
        enqueue()
        self.torch.cuda.synchronize()
        return Result(**{name: tensor.cpu().numpy() for name, tensor in out.items()})


# nvcc holds two compilers, one for GPUs up to Hopper and one from Blackwell on, of whose PTX that for 10.3
# is another; all others of their generation get these same instructions.
PTX = ["PTX for 7.5", "PTX for 10.0", "PTX for 10.3"]


@pytest.fixture(params=["emulated", *PTX, pytest.param("gpu", marks=pytest.mark.gpu)])
def nms(request: pytest.FixtureRequest) -> Emulated | OnGpu:
    if request.param == "emulated":
        return Emulated(request.getfixturevalue("emulated_kernels"))
    if request.param.startswith("PTX"):
        architecture = int(request.param.removeprefix("PTX for ").replace(".", ""))
        return Emulated(request.getfixturevalue("ptx_kernels")(architecture))
    skip_without_gpu()
    return OnGpu(request.getfixturevalue("built_library"))


@pytest.fixture
def gpu(request: pytest.FixtureRequest) -> OnGpu:
    skip_without_gpu()
    return OnGpu(request.getfixturevalue("built_library"))


# ---- the reference, and inputs ---------------------------------------------------------------------------


def cpu_indices(boxes: NDArray[Any], scores: NDArray[Any], settings: Settings) -> list[NDArray[np.int64]]:
    """What the CPU core keeps of each image, as point · classes + class, in order of rank."""
    classes = scores.shape[2]
    kept = []
    for box, score in zip(boxes, scores.astype(np.float32), strict=True):
        flat = score.ravel()
        index = np.flatnonzero(flat > np.float32(settings.score_threshold))
        of_point = box[index // classes]
        real = np.isfinite(of_point).all(1) & (of_point[:, 2:4] > 0).all(1) & np.isfinite(flat[index])
        index = index[real]
        index = index[np.lexsort((index, -flat[index]))]
        index = index[: settings.pre_nms_topk or None]
        labels = (index % classes).astype(np.int64)
        winners = rotated_nms(box[index // classes], flat[index], settings.iou_threshold, labels)
        kept.append(index[winners][: settings.max_detections])
    return kept


def check(result: Result, boxes: NDArray[Any], scores: NDArray[Any], settings: Settings) -> None:
    """Every output, row by row, against the CPU core."""
    classes = scores.shape[2]
    for image, expected in enumerate(cpu_indices(boxes, scores, settings)):
        n = len(expected)
        assert result.num_detections[image, 0] == n
        np.testing.assert_array_equal(result.indices[image, :n], expected)
        np.testing.assert_array_equal(result.boxes[image, :n], boxes[image, expected // classes])
        np.testing.assert_array_equal(
            result.scores[image, :n], scores[image].ravel()[expected].astype(np.float32)
        )
        np.testing.assert_array_equal(result.labels[image, :n], expected % classes)
        assert not result.boxes[image, n:].any()
        assert not result.scores[image, n:].any()
        assert not result.labels[image, n:].any()
        assert (result.indices[image, n:] == -1).all()


def clustered(
    batch: int, points: int, classes: int, *, seed: int = 0, levels: int = 0, spread: float = 8
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Boxes that crowd around a few centres; scores of `levels` distinct values, so with ties (0: any)."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, 20 * np.sqrt(points), (max(1, points // 20), 2))
    centre = centres[rng.integers(len(centres), size=(batch, points))]
    boxes = np.concatenate(
        [
            centre + rng.normal(0, spread, (batch, points, 2)),
            rng.uniform(8, 40, (batch, points, 2)),
            rng.uniform(-7, 7, (batch, points, 1)),
        ],
        axis=2,
    )
    scores = rng.random((batch, points, classes))
    if levels:
        scores = np.floor(scores * levels) / levels
    return boxes.astype(np.float32), scores.astype(np.float32)


def all_in_one_class(batch: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    boxes, scores = clustered(batch, 150, 7)
    scores[..., :6] = 0
    return boxes, scores


def chain(batch: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Each box overlaps the next alone, scores falling: every second is kept, each waits for all before."""
    n = 600
    boxes = np.zeros((batch, n, 5), np.float32)
    boxes[..., 0] = np.arange(n) * 10
    boxes[..., 2:4] = 16, 8
    scores = np.linspace(0.9, 0.4, n, dtype=np.float32)[None, :, None].repeat(batch, 0)
    return boxes, np.ascontiguousarray(scores)


def none_above(batch: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    boxes, scores = clustered(batch, 50, 3)
    return boxes, scores * np.float32(0.2)


def mixed_images(batch: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Images that differ in their number of candidates, some without any."""
    boxes, scores = clustered(batch, 90, 4, levels=30)
    scores *= (np.arange(batch) % 3 / 2).astype(np.float32)[:, None, None]
    return boxes, scores


CASES = {
    "random": lambda batch: clustered(batch, 120, 3, spread=60),
    "clustered": lambda batch: clustered(batch, 160, 4),
    "tied": lambda batch: clustered(batch, 120, 3, levels=4),
    "all equal": lambda batch: (
        np.tile(np.float32([50, 50, 20, 10, 0.3]), (batch, 70, 1)),
        np.full((batch, 70, 2), 0.7, np.float32),
    ),
    "lists of several tiles": lambda batch: clustered(batch, 800, 2, levels=50),
    "nothing crowded": lambda batch: clustered(batch, 700, 1, spread=4000),
    "one point": lambda batch: clustered(batch, 1, 2),
    "no points": lambda batch: (np.zeros((batch, 0, 5), np.float32), np.zeros((batch, 0, 3), np.float32)),
    "all below": none_above,
    "one class": all_in_one_class,
    "40 classes": lambda batch: clustered(batch, 20, 40, levels=9),
    "chain": chain,
    "mixed images": mixed_images,
}
USUAL = Settings(score_threshold=0.3, iou_threshold=0.1, max_detections=300)


# ---- tests -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_keeps_what_the_cpu_keeps(nms: Emulated | OnGpu, case: str) -> None:
    batches = [2] if isinstance(nms, Emulated) else [1, 2, 8, 33]
    for batch in batches:
        boxes, scores = CASES[case](batch)
        check(nms(boxes, scores, USUAL), boxes, scores, USUAL)


@pytest.mark.parametrize("topk", [1, 5, 100, 10_000])
def test_pre_nms_topk_takes_the_best_of_all_classes(nms: Emulated | OnGpu, topk: int) -> None:
    settings = Settings(score_threshold=0.2, iou_threshold=0.2, pre_nms_topk=topk, max_detections=200)
    boxes, scores = clustered(2, 120, 3, levels=12)
    check(nms(boxes, scores, settings), boxes, scores, settings)


@pytest.mark.parametrize("topk", [1, 256, 257, 700, 1500])
def test_pre_nms_topk_ends_within_any_tile(nms: Emulated | OnGpu, topk: int) -> None:
    settings = Settings(score_threshold=0.1, iou_threshold=0.3, pre_nms_topk=topk, max_detections=900)
    boxes, scores = clustered(2, 900, 2)
    check(nms(boxes, scores, settings), boxes, scores, settings)


@pytest.mark.parametrize("capacity", [1, 7, 40])
def test_more_candidates_than_rows_keeps_the_best(nms: Emulated | OnGpu, capacity: int) -> None:
    settings = Settings(score_threshold=0.1, iou_threshold=0.3, max_detections=capacity)
    boxes, scores = clustered(2, 120, 2, levels=12)
    result = nms(boxes, scores, settings)
    assert (result.num_detections == capacity).all()
    check(result, boxes, scores, settings)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_iou_thresholds(nms: Emulated | OnGpu, threshold: float) -> None:
    settings = Settings(score_threshold=0.3, iou_threshold=threshold, max_detections=400)
    boxes, scores = clustered(1, 150, 2)
    check(nms(boxes, scores, settings), boxes, scores, settings)


def test_float16_scores_are_widened(nms: Emulated | OnGpu) -> None:
    boxes, scores = clustered(2, 130, 3)
    half = scores.astype(np.float16)
    check(nms(boxes, half, USUAL), boxes, half, USUAL)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_all_that_is_no_number_never_wins(nms: Emulated | OnGpu, dtype: Any) -> None:
    boxes, scores = clustered(2, 100, 3)
    rng = np.random.default_rng(4)
    for value in (np.nan, np.inf, -np.inf):
        spots = rng.integers(0, boxes.size, 12)
        boxes.ravel()[spots] = value
        scores.ravel()[rng.integers(0, scores.size, 12)] = value
    boxes[:, 3, 2], boxes[:, 4, 3], boxes[:, 5, 2:4] = 0, -5, 0
    scores = scores.astype(dtype)
    result = nms(boxes, scores, USUAL)
    check(result, boxes, scores, USUAL)
    assert np.isfinite(result.boxes).all()
    assert np.isfinite(result.scores).all()


def test_negative_zero_ties_with_zero(nms: Emulated | OnGpu) -> None:
    settings = Settings(score_threshold=-1, iou_threshold=0.1, max_detections=10)
    boxes = np.float32([[[10, 10, 8, 8, 0], [10, 10, 8, 8, 0]]])
    scores = np.float32([[[-0.0], [0.0]]])
    assert nms(boxes, scores, settings).indices[0].tolist()[:2] == [0, -1]


@pytest.mark.parametrize(
    ("points", "survivors"), [(5344, 2000), (21824, 20000)], ids=["deployed graph", "all points"]
)
def test_sizes_of_the_deployed_graph(nms: Emulated | OnGpu, points: int, survivors: int) -> None:
    if isinstance(nms, Emulated) and points > 5344:
        pytest.skip("takes 45 s on the emulator")
    boxes, scores = clustered(2 if isinstance(nms, Emulated) else 8, points, 15)
    scores *= (np.random.default_rng(1).random(scores.shape) < survivors / (points * 15)).astype(np.float32)
    settings = Settings(score_threshold=0.0, iou_threshold=0.1, max_detections=2000)
    check(nms(boxes, scores, settings), boxes, scores, settings)


@pytest.mark.parametrize("case", ["clustered", "tied", "chain"])
def test_every_run_gives_the_same(nms: Emulated | OnGpu, case: str) -> None:
    """Emulated: each run shuffles the threads anew."""
    boxes, scores = CASES[case](2)
    for _ in range(2 if isinstance(nms, Emulated) else 100):
        check(nms(boxes, scores, USUAL), boxes, scores, USUAL)


def test_impossible_settings_are_refused(nms: Emulated | OnGpu) -> None:
    boxes, scores = clustered(1, 4, 1)
    for settings in (
        Settings(score_threshold=0, iou_threshold=0.1, pre_nms_topk=-1),
        Settings(score_threshold=0, iou_threshold=0.1, max_detections=0),
    ):
        with pytest.raises(LaunchError, match="invalid argument"):
            nms(boxes, scores, settings)


@pytest.mark.parametrize(
    ("code", "remedy"), [(35, r"rgfl\.plugins\.build --nvcc"), (209, r"rgfl\.plugins\.build --force")]
)
def test_a_library_that_does_not_fit_the_machine_says_what_to_do(
    emulated_kernels: Path, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
) -> None:
    launch = RotatedNms(emulated_kernels)
    monkeypatch.setattr(launch, "_run", lambda *_: code)
    outputs = Outputs(num_detections=256, boxes=256, scores=256, labels=256)
    with pytest.raises(LaunchError, match=rf"\(CUDA error {code}\); .*{remedy}"):
        launch((1, 4, 1), USUAL, boxes=256, scores=256, outputs=outputs, workspace=256)


# ---- what it takes, counted on the emulator --------------------------------------------------------------


@pytest.mark.parametrize(("above", "tiles"), [(3, 1), (600, 3)])
def test_blocks_draw_no_more_often_than_there_are_tiles(
    emulated_kernels: Path, above: int, tiles: int
) -> None:
    """Three blocks run, as 600 points may make so many tiles; one that stays asks once more, in vain.

    Each tile also adds the number of its winners.
    """
    emulated = Emulated(emulated_kernels)
    boxes, scores = clustered(1, 600, 1)
    scores = np.where(np.arange(600)[:, None] < above, scores + np.float32(0.4), 0).astype(np.float32)
    check(emulated(boxes, scores, USUAL), boxes, scores, USUAL)
    assert emulated.adds("suppress") == 3 * tiles


# ---- on a GPU alone --------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_inside_a_cuda_graph(gpu: OnGpu) -> None:
    torch = gpu.torch
    boxes, scores = CASES["clustered"](8)
    enqueue, out = gpu.prepare(boxes, scores, USUAL)
    torch.cuda.synchronize()  # the workspace is filled on another stream
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        enqueue()  # loads the kernels
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        enqueue()
    for _ in range(100):
        for tensor in out.values():
            tensor.fill_(99)
        graph.replay()
        torch.cuda.synchronize()
        check(Result(**{name: tensor.cpu().numpy() for name, tensor in out.items()}), boxes, scores, USUAL)


@pytest.mark.gpu
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_compute_sanitizer_finds_nothing(gpu: OnGpu, tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    tests = "test_keeps_what_the_cpu_keeps and gpu and (clustered or tied or chain or several)"
    # A filter that is not KEY=VALUE is ignored, and then PyTorch's kernels are checked, too.
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--kernel-name", "kernel_substring=rgfl"]
    if tool == "memcheck":  # PyTorch asks CUDA for what it may lack; our own calls raise
        command += ["--report-api-errors", "no"]
    command += ["--launch-timeout", "120"]  # until CUDA's first call; PyTorch is imported meanwhile
    command += [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", __file__, "-k", tests]
    variables = {**os.environ, "RGFL_PLAIN_EXIT": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500, env=variables)
    if "Device not supported" in done.stdout + done.stderr:
        pytest.skip("compute-sanitizer does not support this machine's virtualised device")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    # Of errors or hazards. Where the tool did not reach the process there is no summary, and no error.
    assert "SUMMARY: 0 " in done.stdout, (done.stdout + done.stderr)[-4000:]
