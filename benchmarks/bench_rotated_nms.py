"""Latency of RotatedNMS on a GPU beside what it replaces, after all GPU tests; writes a dated result file.

    python -m rgfl.plugins.build && python benchmarks/bench_rotated_nms.py

Rows of one run, on the same tensors:

  ours      the launcher on a stream, and replayed from a CUDA graph as an engine runs it
  mask      the algorithm of mmcv's CUDA operator (reference_nms.cu): mask of all pairs, walked on the host
  ProbIoU   pairwise ProbIoU and one matrix comparison in PyTorch, as YOLO detectors do it: not exact

Times are medians of CUDA events from the scores to the kept indices. The references include the host's
part, because they cannot do without. Needs a GPU and PyTorch, and nvcc for the mask.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rgfl.geometry import rotated_nms
from rgfl.plugins.build import BuildError, find_nvcc, library_folders
from rgfl.plugins.launcher import Outputs, RotatedNms, Settings

HERE = Path(__file__).resolve().parent
CLASSES = 15
SETTINGS = Settings(score_threshold=0.05, iou_threshold=0.1, max_detections=2000)


@dataclass(frozen=True)
class Scene:
    """One input: `survivors` of `points` points score above the threshold, in one class each."""

    name: str
    points: int
    survivors: int
    objects: int  # the survivors crowd around so many centres; 0: anywhere
    classes_used: int = CLASSES
    target_us: float | None = None  # of batch 1

    def tensors(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng(0)
        boxes = np.empty((batch, self.points, 5), np.float32)
        scores = rng.uniform(0, 0.04, (batch, self.points, CLASSES)).astype(np.float32)
        for image in range(batch):
            if self.objects:
                of = rng.integers(self.objects, size=self.points)
                centre = rng.uniform(0, 1024, (self.objects, 2))[of]
                size = rng.uniform(12, 60, (self.objects, 2))[of]
                angle = rng.uniform(-np.pi / 4, 3 * np.pi / 4, self.objects)[of]
                label = rng.integers(self.classes_used, size=self.objects)[of]
                spread = 0.15
            else:
                centre = rng.uniform(0, 1024, (self.points, 2))
                size = rng.uniform(4, 16, (self.points, 2))
                angle = rng.uniform(-np.pi / 4, 3 * np.pi / 4, self.points)
                label = rng.integers(self.classes_used, size=self.points)
                spread = 0.0
            boxes[image, :, :2] = centre + rng.normal(0, 1, centre.shape) * spread * size
            boxes[image, :, 2:4] = size * np.exp(rng.normal(0, spread, size.shape))
            boxes[image, :, 4] = angle + rng.normal(0, 0.1, self.points)
            above = rng.permutation(self.points)[: self.survivors]
            scores[image, above, label[above]] = rng.uniform(0.06, 1, self.survivors)
        return torch.from_numpy(boxes).cuda(), torch.from_numpy(scores).cuda()


SCENES = [
    Scene("deployed graph, 1024²", 5344, 2000, objects=120, target_us=60),
    Scene("all points, 1024²", 21824, 20000, objects=400, target_us=300),
    Scene("all points, one class", 21824, 20000, objects=400, classes_used=1),
    Scene("all points, nothing crowded", 21824, 20000, objects=0),
]


# ---- ours ------------------------------------------------------------------------------------------------


def ours(boxes: torch.Tensor, scores: torch.Tensor) -> tuple[Callable[[], None], dict[str, torch.Tensor]]:
    """A function that enqueues our NMS, and what it fills."""
    launch = RotatedNms()
    B, P, C = scores.shape
    K = SETTINGS.max_detections
    workspace = torch.empty(launch.workspace_size((B, P, C)), dtype=torch.uint8, device="cuda")
    out = {
        "num_detections": torch.empty(B, 1, dtype=torch.int32, device="cuda"),
        "boxes": torch.empty(B, K, 5, device="cuda"),
        "scores": torch.empty(B, K, device="cuda"),
        "labels": torch.empty(B, K, dtype=torch.int32, device="cuda"),
        "indices": torch.empty(B, K, dtype=torch.int32, device="cuda"),
    }
    outputs = Outputs(**{name: tensor.data_ptr() for name, tensor in out.items()})

    def enqueue() -> None:
        launch(
            (B, P, C),
            SETTINGS,
            boxes=boxes.data_ptr(),
            scores=scores.data_ptr(),
            outputs=outputs,
            workspace=workspace.data_ptr(),
            stream=torch.cuda.current_stream().cuda_stream,
        )

    return enqueue, out


def captured(enqueue: Callable[[], None]) -> Callable[[], None]:
    """The same work as one CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        enqueue()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        enqueue()
    return graph.replay


# ---- references ------------------------------------------------------------------------------------------


def candidates(boxes: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One image's candidates in order of rank, classes moved apart by an offset as mmcv and YOLO do."""
    point, label = (scores > SETTINGS.score_threshold).nonzero(as_tuple=True)
    order = scores[point, label].argsort(descending=True, stable=True)
    point, label = point[order], label[order]
    apart = boxes[point].clone()
    apart[:, :2] += (label * 4096).to(apart.dtype)[:, None]
    return apart, point * scores.shape[1] + label


def compile_reference() -> ctypes.CDLL | None:
    """The library of reference_nms.cu; None, and the reason told, where there is no compiler."""
    major, minor = torch.cuda.get_device_capability()
    folder = Path(tempfile.mkdtemp())
    output = folder / "libreference.so"
    try:
        nvcc = find_nvcc()
    except BuildError as error:
        print(f"the mask is not measured: {str(error).splitlines()[0]}", file=sys.stderr)
        return None
    command = [nvcc, "-shared", "-O3", "-Xcompiler=-fPIC", f"-arch=sm_{major}{minor}"]
    command += [f"-L{folder}" for folder in library_folders(nvcc)]
    subprocess.run([*map(str, command), str(HERE / "reference_nms.cu"), "-o", str(output)], check=True)
    return ctypes.CDLL(str(output))


def by_mask(library: ctypes.CDLL, boxes: torch.Tensor, scores: torch.Tensor) -> list[torch.Tensor]:
    """mmcv's way: the mask of all pairs on the GPU, the walk on the host, image after image."""
    kept = []
    for image in range(len(boxes)):
        apart, index = candidates(boxes[image], scores[image])
        n = len(apart)
        words = (n + 63) // 64
        mask = torch.empty(n, words, dtype=torch.int64, device="cuda")
        stream = torch.cuda.current_stream().cuda_stream
        code = library.reference_mask(
            n,
            ctypes.c_float(SETTINGS.iou_threshold),
            ctypes.c_void_p(apart.data_ptr()),
            ctypes.c_void_p(mask.data_ptr()),
            ctypes.c_void_p(stream),
        )
        assert code == 0, f"CUDA error {code}"
        host = mask.cpu().numpy()
        removed, found = np.zeros(words, np.int64), np.empty(n, np.int32)
        count = library.reference_walk(
            n,
            *(ctypes.c_void_p(array.ctypes.data) for array in (host, removed, found)),
        )
        kept.append(index[torch.from_numpy(found[:count]).cuda().long()][: SETTINGS.max_detections])
    return kept


def probiou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """ProbIoU of (N, 5) with (M, 5): boxes as Gaussians, 1 − Hellinger distance (arXiv 2106.06072)."""

    def gaussian(box: torch.Tensor) -> tuple[torch.Tensor, ...]:
        cos, sin = box[:, 4].cos(), box[:, 4].sin()
        w, h = box[:, 2].square() / 12, box[:, 3].square() / 12
        return w * cos**2 + h * sin**2, w * sin**2 + h * cos**2, (w - h) * cos * sin

    (a1, b1, c1), (a2, b2, c2) = ([v[:, None] for v in gaussian(a)], [v[None] for v in gaussian(b)])
    dx, dy = a[:, None, 0] - b[None, :, 0], a[:, None, 1] - b[None, :, 1]
    det = (a1 + a2) * (b1 + b2) - (c1 + c2).square()
    t1 = ((a1 + a2) * dy.square() + (b1 + b2) * dx.square()) / (det + 1e-7) / 4
    t2 = (c1 + c2) * -dx * dy / (det + 1e-7) / 2
    own = ((a1 * b1 - c1.square()).clamp(0) * (a2 * b2 - c2.square()).clamp(0)).sqrt()
    distance = (t1 + t2 + (det / (4 * own + 1e-7) + 1e-7).log() / 2).clamp(1e-7, 100)
    return 1 - (1 - (-distance).exp() + 1e-7).sqrt()


def by_probiou(boxes: torch.Tensor, scores: torch.Tensor) -> list[torch.Tensor]:
    """Drops what overlaps anything of higher rank, kept or not: no loop, and not greedy NMS."""
    kept = []
    for image in range(len(boxes)):
        apart, index = candidates(boxes[image], scores[image])
        overlaps = probiou(apart, apart).triu_(1) >= SETTINGS.iou_threshold
        kept.append(index[~overlaps.any(0)][: SETTINGS.max_detections])
    return kept


# ---- measuring -------------------------------------------------------------------------------------------


def median_us(run: Callable[[], Any], repeats: int) -> float:
    for _ in range(max(3, repeats // 10)):
        run()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1000)
    return statistics.median(times)


def kept_by_the_cpu(boxes: torch.Tensor, scores: torch.Tensor) -> np.ndarray:
    flat, box = scores.cpu().numpy().ravel(), boxes.cpu().numpy()
    index = np.flatnonzero(flat > np.float32(SETTINGS.score_threshold))
    winners = rotated_nms(box[index // CLASSES], flat[index], SETTINGS.iou_threshold, index % CLASSES)
    return index[winners][: SETTINGS.max_detections]


def measure(scene: Scene, batch: int, library: ctypes.CDLL | None, repeats: int) -> dict[str, Any]:
    boxes, scores = scene.tensors(batch)
    enqueue, out = ours(boxes, scores)
    enqueue()
    torch.cuda.synchronize()
    exact = True
    for image in range(batch):
        n = int(out["num_detections"][image])
        expected = kept_by_the_cpu(boxes[image], scores[image])
        exact &= np.array_equal(out["indices"][image, :n].cpu().numpy(), expected)
    row: dict[str, Any] = {
        "scene": scene.name,
        "points": scene.points,
        "survivors": scene.survivors,
        "batch": batch,
        "kept": int(out["num_detections"].sum()),
        "indices_equal_cpu": exact,
        "ours_us": median_us(enqueue, repeats),
        "ours_graph_us": median_us(captured(enqueue), repeats),
        "mask_us": None,
        "target_us": scene.target_us if batch == 1 else None,
        "mask_kept": None,
    }
    if library is not None:
        row["mask_us"] = median_us(lambda: by_mask(library, boxes, scores), max(5, repeats // 20))
        # The references are not the same function; how far apart they are is part of the record.
        row["mask_kept"] = sum(map(len, by_mask(library, boxes, scores)))
    try:
        row["probiou_us"] = median_us(lambda: by_probiou(boxes, scores), max(5, repeats // 20))
    except torch.OutOfMemoryError:
        row["probiou_us"] = None
    return row


def run_tests() -> str:
    """The last line of pytest over everything that needs a GPU."""
    tests = HERE.parent / "tests" / "plugins"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-rs", str(tests)]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else f"exit code {done.returncode}"


def table(record: dict[str, Any]) -> str:
    """The result file, in Markdown."""

    def time(value: float | None, missing: str = "out of memory") -> str:
        return missing if value is None else f"{value:,.0f}"

    lines = [
        f"# Rotated NMS on {record['gpu']}, {record['date']}",
        "",
        f"PyTorch {record['torch']}, CUDA {record['cuda']}, medians of CUDA events in µs; {CLASSES} classes, "
        f"IoU threshold {SETTINGS.iou_threshold}. Made by `python benchmarks/bench_rotated_nms.py`.",
        "",
        f"GPU tests: {record['tests']}",
        "",
        "| scene | batch | points | survivors | ours | ours, CUDA graph | mask + host walk | ProbIoU "
        "| target | indices = CPU |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in record["rows"]:
        target = f"≤ {row['target_us']:.0f}" if row["target_us"] else ""
        lines.append(
            f"| {row['scene']} | {row['batch']} | {row['points']:,} | {row['survivors']:,} "
            f"| {time(row['ours_us'])} | {time(row['ours_graph_us'])} | {time(row['mask_us'], 'no nvcc')} "
            f"| {time(row['probiou_us'])} | {target} "
            f"| {'yes' if row['indices_equal_cpu'] else 'NO'} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the result files")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--batch", type=int, action="append", help="batch sizes (default: 1 and 8)")
    parser.add_argument("--no-tests", action="store_true", help="only measure")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: this benchmark needs an NVIDIA GPU that PyTorch can see", file=sys.stderr)
        return 1
    library = compile_reference()  # before the tests, which take minutes
    tests = "not run" if options.no_tests else run_tests()
    rows = []
    for scene in SCENES:
        for batch in options.batch or [1, 8]:
            rows.append(measure(scene, batch, library, options.repeats))
            print(json.dumps(rows[-1]), flush=True)
    record = {
        "gpu": torch.cuda.get_device_name(),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "tests": tests,
        "rows": rows,
    }
    name = re.sub(r"[^a-z0-9]+", "-", f"{record['date']}-rotated-nms-{record['gpu']}".lower())
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (options.out / f"{name}.md").write_text(table(record), encoding="utf-8")
    print(table(record))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
