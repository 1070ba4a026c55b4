"""Our light detector on a CPU beside ONNX files of others, in turn, on equal threads.

    python benchmarks/bench_light.py --model lite.onnx --model lite-int8-cpu.onnx --rival yolov8n-obb.onnx \\
        --images IMAGES --out benchmarks

Ours is timed whole: pixels in memory to detections, NMS included. Of a rival only the network is timed, with
noise of its input's shape, since what comes before and after is not in its file; that is in its favour.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rgfl import errors
from rgfl.trt_runtime import machine
from rgfl.trt_runtime.runners import load_runner
from rgfl.trt_runtime.sample_tiles import sample_tiles


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, action="append", required=True, metavar="F", help="of rgfl")
    parser.add_argument("--rival", type=Path, action="append", required=True, metavar="F", help="any ONNX")
    parser.add_argument("--images", type=Path, metavar="DIR", help="where our tile comes from")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=40, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write a dated JSON and Markdown file there")
    arguments = parser.parse_args()
    return errors.run("bench_light", lambda: run(arguments))


def run(arguments: argparse.Namespace) -> int:
    if arguments.repeat < 1:
        raise errors.InputError(f"--repeat {arguments.repeat}: expected 1 or more")
    rows: list[dict[str, Any]] = []
    calls: list[Callable[[], object]] = []
    for path in arguments.rival:
        shape, call = rival(path, arguments.threads)
        rows.append({"file": path.name, "what": "network alone", "input": shape})
        calls.append(call)
    for path in arguments.model:
        runner = load_runner(path, device="cpu", threads=arguments.threads)
        tiles = sample_tiles(runner.spec, 1, arguments.images)
        rows.append({"file": path.name, "what": "whole call", "input": list(tiles.shape)})
        rows[-1]["detections"] = len(runner(tiles)[0])
        calls.append(lambda runner=runner, tiles=tiles: runner(tiles))
    seconds = np.zeros((len(calls), arguments.repeat))
    for turn in tqdm(range(-3, arguments.repeat), unit="turn"):
        for index, call in enumerate(calls):
            start = time.perf_counter()
            call()
            if turn >= 0:
                seconds[index, turn] = time.perf_counter() - start
    for row, values in zip(rows, seconds, strict=True):
        row["ms"] = {name: float(np.percentile(values, q)) * 1e3 for name, q in (("p50", 50), ("p90", 90))}
        # Turn by turn against the first rival, so that a slow moment of the machine slows both.
        row["times_first"] = float(np.median(values / seconds[0]))
    record = {
        **machine.circumstances(),
        "threads": arguments.threads,
        "rows": rows,
    }
    text = markdown(record)
    print(text)
    if arguments.out:
        print(f"written: {machine.write_record(arguments.out, 'light', record, text)} and .md")
    return 0


def rival(path: Path, threads: int) -> tuple[list[int], Callable[[], object]]:
    """Shape of its input, and a call of its network."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # As in ours: threads that spin after a call would slow the one that is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own classes
        raise errors.ModelError(f"--rival {path}: {errors.one_line(error)}") from error
    given = session.get_inputs()[0]
    shape = [side if isinstance(side, int) else 1 for side in given.shape]
    if given.type != "tensor(float)" or not all(isinstance(side, int) for side in given.shape[1:]):
        raise errors.InputError(
            f"--rival {path}: expected an input of float32 and of one size, got {given.type} {given.shape}; "
            "export it so"
        )
    noise = np.random.default_rng(0).random(shape, dtype=np.float32)
    return shape, lambda: session.run(None, {given.name: noise})


def markdown(record: dict[str, Any]) -> str:
    hardware, versions = record["hardware"], record["versions"]
    lines = [
        f"# The light detector beside others, {record['date'][:10]}",
        "",
        f"{hardware['cpu']}, {hardware['cores']} cores, no GPU; ONNX Runtime {versions['onnxruntime']}, "
        f"{record['threads']} threads, load average {hardware.get('load_average', '?')}.",
        "",
        "| file | timed | input | p50, ms | p90, ms | times the first |",
        "|---|---|---|---:|---:|---:|",
    ]
    for row in record["rows"]:
        cells = [row["file"], row["what"], " × ".join(map(str, row["input"]))]
        cells += [f"{row['ms'][key]:.1f}" for key in ("p50", "p90")] + [f"{row['times_first']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(__doc__ or "").strip().split("\n\n")[-1:], ""])


if __name__ == "__main__":
    sys.exit(main())
