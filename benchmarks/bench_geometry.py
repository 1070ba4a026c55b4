"""Speed of the geometry core on one core, as ratios measured in one run: python benchmarks/bench_geometry.py

Every time is the least of several repeats, because other processes only ever add to it. `--out DIR` writes
the result as JSON in a file named after the day and the processor.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import shapely

from rgfl import _core, boxes, geometry

# Name, unit, limit and whether the limit is a floor.
LIMITS = {
    "float32_pair_ns": (6.0, "at most"),
    "times_faster_than_shapely": (500.0, "at least"),
    "nms_2000_clustered_ms": (3.0, "at most"),
    "nms_20000_scene_ms": (100.0, "at most"),
    "nms_200000_scene_ms": (2000.0, "at most"),
}


def least_seconds(function: Callable[[], object], repeats: int) -> float:
    """The shortest of several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def overlapping_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes of which nearly every pair overlaps, so that no pair is cheap."""
    rows = rng.uniform([0, 0, 20, 20, -np.pi], [40, 40, 120, 120, np.pi], (count, 5))
    return rows.astype(np.float32)


def scene_boxes(rng: np.random.Generator, count: int, side: float) -> np.ndarray:
    """Objects of 8 to 60 pixels anywhere in a square scene."""
    return rng.uniform([0, 0, 8, 8, -np.pi], [side, side, 60, 60, np.pi], (count, 5)).astype(np.float32)


def clustered_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Detections before NMS in one tile: about twenty around each of a hundred objects."""
    objects = scene_boxes(rng, 100, 1024.0)[rng.integers(0, 100, count)]
    return (objects + rng.normal(0, 1, (count, 5)) * [3, 3, 3, 3, 0.1]).astype(np.float32)


def shapely_iou_pairwise(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    both = shapely.area(shapely.intersection(a, b))
    return both / (shapely.area(a) + shapely.area(b) - both)


def measure(repeats: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    results: dict[str, float] = {}

    rows = overlapping_boxes(rng, 1000)
    pairs = len(rows) ** 2
    for name in _core.instruction_sets():
        seconds = least_seconds(lambda name=name: _core.rotated_iou_float32(rows, rows, name), repeats)
        results[f"float32_pair_{name}_ns"] = seconds / pairs * 1e9
    results["float32_pair_ns"] = (
        least_seconds(lambda: geometry.rotated_iou(rows, rows), repeats) / pairs * 1e9
    )
    wide = rows.astype(np.float64)
    results["float64_pair_ns"] = (
        least_seconds(lambda: geometry.rotated_iou(wide, wide), repeats) / pairs * 1e9
    )

    first, second = wide[:250].repeat(40, axis=0), np.tile(wide[250:290], (250, 1))
    p, q = (shapely.polygons(boxes.to_quads(side).reshape(-1, 4, 2)) for side in (first, second))
    assert np.abs(shapely_iou_pairwise(p, q) - geometry.rotated_iou_pairwise(first, second)).max() < 1e-10
    seconds = least_seconds(lambda: shapely_iou_pairwise(p, q), max(3, repeats // 4))
    results["shapely_pair_ns"] = seconds / len(p) * 1e9
    results["times_faster_than_shapely"] = results["shapely_pair_ns"] / results["float32_pair_ns"]
    results["times_faster_than_shapely_float64"] = results["shapely_pair_ns"] / results["float64_pair_ns"]

    quads = boxes.to_quads(wide[:300])
    seconds = least_seconds(lambda: geometry.quad_iou(quads, quads), repeats)
    results["quad_pair_ns"] = seconds / len(quads) ** 2 * 1e9

    for name, detections, classes in (
        ("nms_2000_clustered", clustered_boxes(rng, 2000), 1),
        ("nms_20000_scene", scene_boxes(rng, 20_000, 8000.0), 15),
        ("nms_200000_scene", scene_boxes(rng, 200_000, 30_000.0), 15),
    ):
        scores = rng.random(len(detections)).astype(np.float32)
        labels = rng.integers(0, classes, len(detections))
        arguments = detections, scores, 0.1, labels
        count = repeats if len(detections) < 100_000 else 3
        seconds = least_seconds(lambda arguments=arguments: geometry.rotated_nms(*arguments), count)
        results[f"{name}_ms"] = seconds * 1e3
        if len(detections) <= 20_000:
            quadratic = least_seconds(
                lambda a=arguments: _core._rotated_nms_quadratic(a[0], a[1], a[3], a[2]),
                2 if len(detections) > 5000 else 5,
            )
            results[f"{name}_quadratic_over_tree"] = quadratic / seconds
    return results


def processor() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20, help="runs of which the shortest counts")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--out", type=Path, help="write the result to a dated file in this folder")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a limit is missed")
    arguments = parser.parse_args()

    cores = os.cpu_count() or 1
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    results = measure(arguments.repeats)
    failed = []
    for name, value in results.items():
        line = f"{name:42} {value:12.2f}"
        if name in LIMITS:
            limit, direction = LIMITS[name]
            met = value <= limit if direction == "at most" else value >= limit
            line += f"   {direction} {limit:g}: {'met' if met else 'MISSED'}"
            if not met:
                failed.append(name)
        print(line)

    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    record = {
        "date": today,
        "processor": processor(),
        "cores": cores,
        "cores_used": 1,
        "instruction_sets": _core.instruction_sets(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "repeats": arguments.repeats,
        "statistic": "minimum",
        "results": {name: round(value, 4) for name, value in results.items()},
    }
    paths = [arguments.json] if arguments.json else []
    if arguments.out:
        hardware = re.sub(r"[^a-z0-9]+", "-", processor().lower()).strip("-")
        paths.append(arguments.out / f"{today}-geometry-{hardware}-{cores}core.json")
    for path in paths:
        path.write_text(json.dumps(record, indent=2) + "\n")
        print(f"wrote {path}", file=sys.stderr)
    return 1 if failed and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
