"""Latency of RotatedNMS on a GPU beside what it replaces; writes a dated result file, anew after every row.

    python -m rgfl.plugins.build && python benchmarks/bench_rotated_nms.py
    python benchmarks/bench_rotated_nms.py --sanitizer        compute-sanitizer alone, into a file of its own

On the same tensors, in turn:

  ours      the launcher, replayed from a CUDA graph as an engine runs it, and on a stream
  mask      the algorithm of mmcv's CUDA operator (reference_nms.cu): mask of all pairs, walked on the host
  ProbIoU   pairwise ProbIoU and one matrix comparison in PyTorch, as YOLO detectors do it: not exact

Ours is the time of the GPU, by CUDA events around ten calls that were enqueued while it was kept busy, so it
never waits for the host, whose time for a call is told apart. The references cannot do without the host:
theirs is from the scores to the kept indices, host included. All are medians.

After the rows come the tests that need a GPU, of the engine runner too; without TensorRT most of them run.
Rows and tests are processes of their own: where one dies or hangs, the other still runs and the file says so.
The command ends within ten minutes, and what it has measured is in the file at any moment. Needs a GPU and
PyTorch, and nvcc for the mask. The steps on a machine that one has for half an hour: plugins/README.md.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rgfl.geometry import rotated_nms
from rgfl.plugins import library
from rgfl.plugins.build import BuildError, find_nvcc, library_folders
from rgfl.plugins.launcher import Outputs, RotatedNms, Settings
from rgfl.trt_runtime import machine

HERE = Path(__file__).resolve().parent
CLASSES = 15
SETTINGS = Settings(score_threshold=0.05, iou_threshold=0.1, max_detections=2000)
CALLS = 10  # between two events
ROUNDS = 5  # in which the contenders take turns
RATIO = 3.0  # target: batch 8 takes at most so many times as long as batch 1
LIMIT_S = 560  # of the whole command; then the tests are stopped
ROWS_S = 300  # no row begins later, so that the tests have time
ROW_S = 120  # a row that is not done by then hangs, and the process ends
TESTS = ["tests/plugins", "tests/trt_runtime/test_engine.py", "tests/test_train_scale.py"]
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")


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
    torch.cuda.synchronize()  # two calls at once on one workspace would wait for each other for ever
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
    command += [*(f"-L{folder}" for folder in library_folders(nvcc)), HERE / "reference_nms.cu", "-o", output]
    if subprocess.run(list(map(str, command)), check=False).returncode != 0:
        print("the mask is not measured: nvcc failed", file=sys.stderr)
        return None
    return ctypes.CDLL(str(output))


def by_mask(reference: ctypes.CDLL, boxes: torch.Tensor, scores: torch.Tensor) -> list[torch.Tensor]:
    """mmcv's way: the mask of all pairs on the GPU, the walk on the host, image after image."""
    kept = []
    for image in range(len(boxes)):
        apart, index = candidates(boxes[image], scores[image])
        n = len(apart)
        words = (n + 63) // 64
        mask = torch.empty(n, words, dtype=torch.int64, device="cuda")
        stream = torch.cuda.current_stream().cuda_stream
        code = reference.reference_mask(
            n,
            ctypes.c_float(SETTINGS.iou_threshold),
            ctypes.c_void_p(apart.data_ptr()),
            ctypes.c_void_p(mask.data_ptr()),
            ctypes.c_void_p(stream),
        )
        assert code == 0, f"CUDA error {code}"
        host = mask.cpu().numpy()
        removed, found = np.zeros(words, np.int64), np.empty(n, np.int32)
        count = reference.reference_walk(
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


class GpuClock:
    """Times calls on the GPU without the gaps in which it would wait for the host."""

    def __init__(self) -> None:
        self.cycles = 1_000_000  # that the GPU spins meanwhile: half a millisecond, doubled where too short
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self, call: Callable[[], object]) -> tuple[float, float]:
        """Microseconds of a call on the GPU, and on the host."""
        while True:
            torch.cuda.synchronize()
            torch.cuda._sleep(self.cycles)
            self.start.record()
            before = time.perf_counter()
            for _ in range(CALLS):
                call()
            host = time.perf_counter() - before
            self.end.record()
            in_time = not self.start.query()  # all was enqueued before the first call began
            torch.cuda.synchronize()
            if in_time:
                return self.start.elapsed_time(self.end) * 1e3 / CALLS, host * 1e6 / CALLS
            if self.cycles > 1 << 32:
                raise RuntimeError(
                    "the GPU's time cannot be told from the host's: the calls wait for the GPU"
                )
            self.cycles *= 2

    def with_host(self, call: Callable[[], object]) -> float:
        """Microseconds of one call that waits for the host."""
        torch.cuda.synchronize()
        self.start.record()
        call()
        self.end.record()
        torch.cuda.synchronize()
        return float(self.start.elapsed_time(self.end)) * 1e3


def kept_by_the_cpu(boxes: torch.Tensor, scores: torch.Tensor) -> np.ndarray:
    flat, box = scores.cpu().numpy().ravel(), boxes.cpu().numpy()
    index = np.flatnonzero(flat > np.float32(SETTINGS.score_threshold))
    winners = rotated_nms(box[index // CLASSES], flat[index], SETTINGS.iou_threshold, index % CLASSES)
    return index[winners][: SETTINGS.max_detections]


def by_kernel(enqueue: Callable[[], None]) -> dict[str, float]:
    """Microseconds of each of our kernels in a call, by PyTorch's profiler; {} where it cannot run."""
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            for _ in range(CALLS):
                enqueue()
            torch.cuda.synchronize()
    except RuntimeError as error:
        print(f"not measured kernel by kernel: {error}", file=sys.stderr)
        return {}
    times = {}
    for event in profiler.key_averages():
        if found := re.search(r"rgfl::kernels::(\w+)", event.key):
            times[found[1]] = event.self_device_time_total / CALLS
    return times


def measure(scene: Scene, batch: int, reference: ctypes.CDLL | None, repeats: int) -> dict[str, Any]:
    """One row; `repeats` samples of ours, a twentieth of the references."""
    boxes, scores = scene.tensors(batch)
    enqueue, out = ours(boxes, scores)
    enqueue()
    replay = captured(enqueue)
    rivals: dict[str, Callable[[], list[torch.Tensor]]] = {"probiou": lambda: by_probiou(boxes, scores)}
    if reference is not None:
        rivals["mask"] = lambda: by_mask(reference, boxes, scores)
    clock = GpuClock()
    times: dict[str, list[float]] = {
        name: [] for name in ("ours", "ours_graph", "host", "host_graph", "mask", "probiou")
    }
    rival_kept = {}
    for name in list(rivals):  # warm; they are other functions, and how far apart is part of the record
        try:
            rival_kept[name] = sum(map(len, rivals[name]()))
        except torch.OutOfMemoryError:
            del rivals[name]
            torch.cuda.empty_cache()
    for _ in range(ROUNDS):
        for _ in range(max(1, repeats // ROUNDS)):
            for key, host_key, call in (("ours", "host", enqueue), ("ours_graph", "host_graph", replay)):
                gpu_us, host_us = clock(call)
                times[key].append(gpu_us)
                times[host_key].append(host_us)
        for name, rival in rivals.items():
            for _ in range(max(1, repeats // ROUNDS // 20)):
                times[name].append(clock.with_host(rival))
    exact = True  # of the last replay
    for image in range(batch):
        n, expected = int(out["num_detections"][image]), kept_by_the_cpu(boxes[image], scores[image])
        exact &= np.array_equal(out["indices"][image, :n].cpu().numpy(), expected)
    return {
        "scene": scene.name,
        "points": scene.points,
        "survivors": scene.survivors,
        "batch": batch,
        "kept": int(out["num_detections"].sum()),
        "indices_equal_cpu": exact,
        **{f"{name}_us": statistics.median(values) if values else None for name, values in times.items()},
        **{f"{name}_kept": rival_kept.get(name) for name in ("mask", "probiou")},
        "target_us": scene.target_us if batch == 1 else None,
    }


def measure_rows(options: argparse.Namespace) -> None:
    """All rows, each printed as a line of JSON. Ends the process where a row hangs."""
    started = time.monotonic()
    reference = compile_reference()
    done = []
    for scene, batch in itertools.product(SCENES, options.batch or [1, 8]):
        if time.monotonic() - started > ROWS_S:
            print(json.dumps({"left_out": f"{scene.name}, batch {batch}"}), flush=True)
            continue
        faulthandler.dump_traceback_later(ROW_S, exit=True)
        print(json.dumps(measure(scene, batch, reference, options.repeats)), flush=True)
        done.append((scene, batch))
        faulthandler.cancel_dump_traceback_later()
    faulthandler.dump_traceback_later(ROW_S, exit=True)
    for scene, batch in done:  # last: the profiler might slow what comes after it
        enqueue, _ = ours(*scene.tensors(batch))
        row = {"scene": scene.name, "batch": batch, "kernels_us": by_kernel(enqueue)}
        print(json.dumps(row), flush=True)
    faulthandler.cancel_dump_traceback_later()


def targets(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What was aimed at, a line each, of what is measured: times in a CUDA graph."""

    def line(what: str, value: float, limit: float, unit: str) -> str:
        return f"{what}: {value:.1f} {unit}, aim ≤ {limit:g}: {'met' if value <= limit else 'MISSED'}"

    alone = {row["scene"]: row for row in rows if row["batch"] == 1}
    for row in rows:
        first = alone.get(row["scene"])
        if row["target_us"]:
            yield line(f"{row['scene']}, batch 1", row["ours_graph_us"], row["target_us"], "µs")
        if row["batch"] == 8 and first is not None:
            ratio = row["ours_graph_us"] / first["ours_graph_us"]
            yield line(f"{row['scene']}, batch 8 / batch 1", ratio, RATIO, "times")


# ---- the tests that need a GPU ---------------------------------------------------------------------------


def run(command: Sequence[str], limit_s: float) -> Iterator[str]:
    """The lines that a process prints, then how it ended. After `limit_s` it is killed, and its children."""
    process = subprocess.Popen(
        command,
        cwd=HERE.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    stopped = threading.Event()

    def stop() -> None:
        stopped.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(limit_s, stop)
    timer.start()
    assert process.stdout is not None
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            yield line.rstrip()
    except BaseException:
        stop()
        raise
    finally:
        timer.cancel()
        process.stdout.close()
        status = process.wait()
    yield f"stopped after {limit_s:.0f} s" if stopped.is_set() else f"exit code {status}"


def pytest(arguments: Sequence[str], limit_s: float) -> dict[str, Any]:
    """pytest's last line, and what it says of failures and skips; of a test that hangs, its name."""
    command = [sys.executable, "-m", "pytest", "-v", "-rfEs", "--color=no", "-o", "faulthandler_timeout=60"]
    *lines, ended = run([*command, *arguments], limit_s)
    details = [line for line in lines if line.startswith(("FAILED", "ERROR", "SKIPPED"))]
    if ended.startswith("exit code"):
        result = next((line for line in reversed(lines) if line), "no output").strip("= ")
    else:
        result = ended
        details.append(
            next((f"in {line}" for line in reversed(lines) if "::" in line), "before the first test")
        )
    return {"passed": ended == "exit code 0", "result": result, "details": details}


# ---- the record ------------------------------------------------------------------------------------------


def new_record() -> dict[str, Any]:
    return {
        **machine.circumstances(),
        "command": " ".join(["python", "benchmarks/bench_rotated_nms.py", *sys.argv[1:]]),
        "cuda": torch.version.cuda,
        "compute_capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "library": machine.file_facts(library()),
        "gpu_state": {"before": machine.gpu_state()},
    }


def heading(record: dict[str, Any], title: str) -> list[str]:
    lines = [
        f"# {title}, {record['date'][:10]}",
        "",
        f"{record['hardware'].get('gpu', 'no GPU')}, compute capability {record['compute_capability']}; CUDA "
        f"{record['cuda']}, "
        + ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        + f". Made by `{record['command']}`.",
    ]
    for when, state in record["gpu_state"].items():
        if state:
            lines += ["", f"GPU {when}: " + ", ".join(f"{name} {value}" for name, value in state.items())]
    return lines


def outcome(name: str, tests: dict[str, Any]) -> list[str]:
    return ["", f"{name}: {tests['result']}", *(f"- {line}" for line in tests["details"])]


def table(record: dict[str, Any]) -> str:
    """The result file, in Markdown."""

    def time_of(value: float | None, missing: str = "") -> str:
        return missing if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"

    lines = [
        *heading(record, "Rotated NMS"),
        "",
        f"Medians in µs; {CLASSES} classes, IoU threshold {SETTINGS.iou_threshold}. Ours: time of the GPU.",
        "",
        "| scene | batch | points | survivors | kept | ours, CUDA graph | ours, stream | its host time "
        "| mask + host walk | ProbIoU | indices = CPU |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in record["rows"]:
        lines.append(
            f"| {row['scene']} | {row['batch']} | {row['points']:,} | {row['survivors']:,} | {row['kept']:,} "
            f"| {time_of(row['ours_graph_us'])} | {time_of(row['ours_us'])} | {time_of(row['host_us'])} "
            f"| {time_of(row['mask_us'], 'no nvcc')} | {time_of(row['probiou_us'], 'out of memory')} "
            f"| {'yes' if row['indices_equal_cpu'] else 'NO'} |"
        )
    lines += ["", *(f"- {line}" for line in targets(record["rows"]))]
    lines += [f"- {name}: left out for want of time" for name in record["left_out"]]
    lines += [f"- the rows ended early: {line}" for line in record["ended_early"]]
    kernels = list(dict.fromkeys(name for row in record["by_kernel"] for name in row["kernels_us"]))
    if kernels:
        lines += ["", "Kernel by kernel, on a stream, by PyTorch's profiler:", ""]
        lines += [f"| scene | batch | {' | '.join(kernels)} |", f"| --- | {' ---: |' * (len(kernels) + 1)}"]
        for row in record["by_kernel"]:
            times = " | ".join(time_of(row["kernels_us"].get(name)) for name in kernels)
            lines.append(f"| {row['scene']} | {row['batch']} | {times} |")
    return "\n".join([*lines, *outcome("Tests on the GPU", record["tests"])]) + "\n"


def save(folder: Path, record: dict[str, Any]) -> Path:
    record["gpu_state"]["after"] = machine.gpu_state()
    return machine.write_record(folder, "rotated-nms", record, table(record))


def benchmark(options: argparse.Namespace) -> bool:
    """All rows, then the tests; whether all is well."""
    started = time.monotonic()
    record = {
        **new_record(),
        "rows": [],
        "by_kernel": [],
        "left_out": [],
        "ended_early": [],
        "tests": {"passed": True, "result": "not run", "details": []},
    }
    command = [
        sys.executable,
        str(HERE / "bench_rotated_nms.py"),
        "--rows",
        "--repeats",
        str(options.repeats),
    ]
    command += [word for batch in options.batch or [] for word in ("--batch", str(batch))]
    said: deque[str] = deque(maxlen=12)  # the last lines that are no row; then how it ended
    for line in run(command, ROWS_S + ROW_S):
        if not line.startswith("{"):
            said.append(line)
            continue
        row = json.loads(line)
        if "left_out" in row:
            record["left_out"].append(row["left_out"])
        elif "kernels_us" in row:
            record["by_kernel"].append(row)
        else:
            record["rows"].append(row)
        save(options.out, record)
    if said[-1] != "exit code 0":
        record["ended_early"] = list(said)
    print(table(record), flush=True)
    if not options.no_tests:
        arguments = ["-m", "gpu", "-k", "not sanitizer", *TESTS]
        record["tests"] = pytest(arguments, LIMIT_S - (time.monotonic() - started))
    path = save(options.out, record)
    print("\n".join(targets(record["rows"])))
    print(f"{path}, .md")
    complete = bool(record["rows"]) and not record["left_out"] and not record["ended_early"]
    return (
        complete
        and bool(record["tests"]["passed"])
        and all(row["indices_equal_cpu"] for row in record["rows"])
    )


def sanitize(folder: Path) -> bool:
    """compute-sanitizer over the kernels, tool by tool; whether all is well."""
    started = time.monotonic()
    record: dict[str, Any] = {**new_record(), "tools": {}}
    for tool in TOOLS:
        arguments = ["-m", "gpu", "-k", f"sanitizer and {tool}", TESTS[0]]
        record["tools"][tool] = pytest(arguments, LIMIT_S - (time.monotonic() - started))
        lines = heading(record, "compute-sanitizer over RotatedNMS")
        for name, tests in record["tools"].items():
            lines += outcome(name, tests)
        path = machine.write_record(folder, "rotated-nms-sanitizer", record, "\n".join(lines))
    print(f"{path}, .md")
    return all(tests["passed"] for tests in record["tools"].values())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the result files")
    parser.add_argument("--repeats", type=int, default=200, help="samples of ours, of ten calls each")
    parser.add_argument("--batch", type=int, action="append", help="batch sizes (default: 1 and 8)")
    parser.add_argument("--rows", action="store_true", help="print the rows as JSON, and write nothing")
    parser.add_argument("--no-tests", action="store_true", help="only measure")
    parser.add_argument("--sanitizer", action="store_true", help="run compute-sanitizer, and nothing else")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: this benchmark needs an NVIDIA GPU that PyTorch can see", file=sys.stderr)
        return 1
    try:
        library()  # before the work
        if options.rows:
            measure_rows(options)
            return 0
        good = sanitize(options.out) if options.sanitizer else benchmark(options)
    except FileNotFoundError as error:  # the library is not built, or of other sources
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
