"""What the host does beside the GPU, in milliseconds a tile: pinned memory, results, merging, files.

    python benchmarks/bench_host.py --out benchmarks

The engine runner as it is, on an engine that answers at once: calls to CUDA do nothing, and in every tile of
1024² it finds `--boxes` objects, made up from a seed. `Runner.detect` runs on one thread; merge is what is
left of it beside its stages. Files of 4000², JPEG and PNG in turn, go through pipeline.py: its parts overlap,
so they may add up to more than the whole, and read is the codecs' part.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import cv2
import numpy as np

from rgfl import errors
from rgfl.dota.labels import CLASSES
from rgfl.dota.merge import places_at_scales
from rgfl.spec import DetectorSpec
from rgfl.trt_runtime import machine, pipeline, tensorrt_api
from rgfl.trt_runtime.engine import EngineRunner, TensorInfo

SIZE, MOST, REPEAT = 1024, 8, 20  # side of a tile, greatest batch, calls that are timed
STAGES = {"prepare": "prepare", "infer": "network", "finish": "nms"}  # and their names in pipeline.py


class InstantCuda:
    """`rgfl.trt_runtime.cuda_calls.Cuda`: memory is the host's, every other call does nothing."""

    def __init__(self) -> None:
        self.blocks: list[np.ndarray] = []

    def allocate(self, size: int) -> int:
        self.blocks.append(np.zeros(size, np.uint8))
        return int(self.blocks[-1].ctypes.data)

    allocate_pinned = allocate

    def __getattr__(self, name: str) -> Any:
        return lambda *_: 1


class InstantRunner(EngineRunner):
    """Finds so many boxes in a tile, others at each place of a batch; `seconds` are those of its stages."""

    def __init__(self, boxes: int) -> None:
        spec = DetectorSpec(classes=CLASSES["1.0"], image_size=(SIZE, SIZE))
        outputs = tensorrt_api.nms_outputs(spec).items()
        tensors = {name: TensorInfo((-1, *shape), dtype) for name, (shape, dtype) in outputs}
        tensors["images"] = TensorInfo((-1, SIZE, SIZE, 3), "uint8")
        engine = MagicMock(cuda=InstantCuda(), tensors=tensors, batch=(1, 1, MOST), nms="inside")
        engine.path, engine.spec, engine.record, engine.activation_bytes = Path(__file__), spec, {}, 0
        engine.api.name = "tensorrt"
        super().__init__(engine, "answers at once")
        self.seconds = np.zeros(len(STAGES))
        rng, count = np.random.default_rng(0), (MOST, spec.max_detections)
        length, angle = rng.uniform(10, 80, count), rng.uniform(-0.7, 2.3, count)
        box = [*rng.uniform(0, SIZE, (2, *count)), length, length * rng.uniform(0.2, 1, count), angle]
        values = (boxes, np.stack(box, axis=-1), rng.uniform(0.05, 1, count), rng.integers(0, 15, count))
        for buffer, found in zip(self._results.values(), values, strict=True):
            buffer.array[:] = found

    def __call__(self, tiles: Any) -> Any:
        marks = [time.perf_counter()]
        for name in STAGES:
            tiles = getattr(self, name)(tiles)
            marks.append(time.perf_counter())
        self.seconds += np.diff(marks)
        return tiles


def of_detect(runner: InstantRunner, shape: tuple[int, int], batch: int) -> dict[str, float]:
    """Of `runner.detect`, ms a tile: the medians of some calls."""
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    rows = []
    for _ in range(REPEAT + 1):
        runner.seconds[:] = 0
        start = time.perf_counter()
        runner.detect(image, score=0.3, batch=batch)
        whole = time.perf_counter() - start
        rows.append([*runner.seconds, whole - runner.seconds.sum(), whole])
    values = 1e3 * np.median(rows[1:], axis=0) / len(places_at_scales(*shape, size=SIZE))
    return dict(zip((*STAGES, "merge", "whole"), values.tolist(), strict=True))


def of_files(folder: str, flag: str) -> dict[str, float]:
    """Of pipeline.py over the images in the folder, ms a tile."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        pipeline.main(["--model=instant", f"--images={folder}", f"--out={folder}/found", flag])
    times = {"whole": time.perf_counter() - start}
    times |= json.loads(Path(folder, "found", "detections.json").read_text())["timing"]
    names = {"read": "read", **STAGES, "merge": "merge", "whole": "whole"}
    return {part: 1e3 * times[name] / times["tiles"] for part, name in names.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--boxes", type=int, default=200, metavar="N", help="a tile (default: %(default)s)")
    parser.add_argument("--files", type=int, default=8, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write a dated JSON and Markdown file there")
    arguments = parser.parse_args()
    return errors.run("bench_host", lambda: run(arguments))


def run(arguments: argparse.Namespace) -> int:
    runner, rows = InstantRunner(arguments.boxes), {}
    for name, shape in (("scene of 4000²", (4000, 4000)), ("frame of 1080p", (1080, 1920))):
        for batch in (1, MOST):
            rows[f"{name}, batch {batch}"] = of_detect(runner, shape, batch)
    random = np.random.default_rng(0)
    pipeline.load_runner = lambda *_, **__: InstantRunner(arguments.boxes)
    with tempfile.TemporaryDirectory() as folder:
        for index in range(arguments.files):
            coarse = cv2.resize(random.integers(0, 240, (250, 250, 3), np.uint8), (4000, 4000))
            image = coarse + random.integers(0, 16, coarse.shape, np.uint8)
            cv2.imwrite(f"{folder}/S{index}.{('jpg', 'png')[index % 2]}", image)
        for flag in ("--no-pictures", "--pictures"):
            rows[f"{arguments.files} files, {flag}"] = of_files(folder, flag)
    record = {**machine.circumstances(), "boxes": arguments.boxes, "ms": rows}
    print(text := markdown(record))
    if arguments.out:
        print(f"written: {machine.write_record(arguments.out, 'host', record, text)} and .md")
    return 0


def markdown(record: dict[str, Any]) -> str:
    facts, columns = record["hardware"], ("read", *STAGES, "merge", "whole")
    lines = [
        f"# The host beside a GPU that answers at once, {record['date'][:10]}\n",
        f"{facts['cpu']}, {facts['cores']} cores, load average {facts.get('load_average', '?')}; "
        f"{record['boxes']} boxes a tile. Milliseconds a tile, and share of the whole.\n",
        f"| what | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}",
    ]
    for name, row in record["ms"].items():
        cells = [f"{row[c]:.2f} ({row[c] / row['whole']:.0%})" if c in row else "–" for c in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(__doc__ or "").strip().split("\n\n")[-1:], ""])


if __name__ == "__main__":
    sys.exit(main())
