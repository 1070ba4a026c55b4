"""Latency and throughput of models, part by part, measured side by side in one process.

    python trt_runtime/bench.py --model best.pt --model model.onnx --batch 1,4

Each repetition runs every model once, so that a busy machine slows all of them alike. Engines also tell
what the GPU was busy with, by CUDA events: copies, network, and NMS where it runs behind the engine.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rgfl import atomic, checks, errors
from rgfl.trt_runtime import machine
from rgfl.trt_runtime.runners import CompiledTorchRunner, Runner, TorchRunner
from rgfl.trt_runtime.sample_tiles import sample_tiles
from rgfl.trt_runtime.scenes import add_runner_arguments, open_runner

PARTS = ("preprocess", "network", "nms")  # by the clock of the host: prepare, infer, finish
DEVICE_PARTS = ("copy_in", "network", "nms", "copy_out")  # of engines, by CUDA events

EXAMPLES = """\
examples:
  python trt_runtime/bench.py --model best.pt --model model.onnx --json bench.json
  python trt_runtime/bench.py --model model.onnx --batch 1,2,4,8 --threads 4 --markdown bench.md
  python trt_runtime/bench.py --model model.onnx --images val/images   NMS depends on what is seen
  python trt_runtime/bench.py --model best.pt --compile --model model.fp16.engine --batch 1,8

latency is that of a whole call, pixels in memory to detections

not run yet: engines (they need a GPU); the code that runs and times them is tested on stand-ins

exit status: 0 done, 2 bad input
"""


def measure(
    runners: list[Runner],
    batches: list[int],
    *,
    warmup: int,
    repeat: int,
    images: Path | None = None,
    streamed: bool = False,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """One record for each runner and batch size.

    Args:
        runners: loaded models.
        batches: tiles a call.
        warmup: calls before the first that counts.
        repeat: calls that count.
        images: where tiles come from; made up without it.
        streamed: measure throughput with the stages of a call side by side, too.
        progress: show a bar on stderr.
    """
    from tqdm import tqdm

    cases = [
        (runner, batch, sample_tiles(runner.spec, batch, images)) for batch in batches for runner in runners
    ]
    seconds = np.zeros((len(cases), warmup + repeat, len(PARTS)))
    detections = np.zeros(len(cases))
    on_device: list[list[dict[str, float]]] = [[] for _ in cases]
    for turn in tqdm(range(warmup + repeat), unit="turn", disable=not progress):
        for index, (runner, _, tiles) in enumerate(cases):
            seconds[index, turn], detections[index] = _timed_call(runner, tiles)
            if turn >= warmup and runner.device_ms:
                on_device[index].append(runner.device_ms)
    results = []
    for index, (runner, batch, tiles) in enumerate(cases):
        row = _summary(runner, batch, seconds[index, warmup:], detections[index] / batch)
        if on_device[index]:
            row["device_ms"] = {
                part: _percentiles(np.array([call[part] for call in on_device[index]]) / 1e3)
                for part in DEVICE_PARTS
                if part in on_device[index][0]
            }
        if streamed:
            _streamed_seconds(runner, tiles, 3)  # more buffers than one call at a time needs are made here
            row["streamed_images_per_second"] = batch * repeat / _streamed_seconds(runner, tiles, repeat)
        results.append(row)
    return results


def _streamed_seconds(runner: Runner, tiles: NDArray[np.uint8], calls: int) -> float:
    """How long `calls` take with their stages side by side, as the pipeline runs them."""
    start = time.perf_counter()
    with ThreadPoolExecutor(1) as before, ThreadPoolExecutor(1) as after:
        feed = before.submit(runner.prepare, tiles)
        finished: list[Future[Any]] = []
        for call in range(calls):
            ready = feed.result()
            if call + 1 < calls:
                feed = before.submit(runner.prepare, tiles)
            finished.append(after.submit(runner.finish, runner.infer(ready)))
        for future in finished:
            future.result()
    return time.perf_counter() - start


def _timed_call(runner: Runner, tiles: NDArray[np.uint8]) -> tuple[list[float], int]:
    """Seconds of each part, and how many detections came out."""
    start = time.perf_counter()
    feed = runner.prepare(tiles)
    prepared = time.perf_counter()
    outputs = runner.infer(feed)
    inferred = time.perf_counter()
    found = runner.finish(outputs)
    finished = time.perf_counter()
    return [prepared - start, inferred - prepared, finished - inferred], sum(map(len, found))


def _summary(runner: Runner, batch: int, seconds: NDArray[np.float64], detections: float) -> dict[str, Any]:
    whole = seconds.sum(axis=1)
    return {
        "model": runner.describe(),
        "batch": batch,
        "calls": len(whole),
        "latency_ms": _percentiles(whole),
        "parts_ms": {name: _percentiles(seconds[:, part]) for part, name in enumerate(PARTS)},
        "images_per_second": batch / float(np.median(whole)),
        "detections_per_tile": detections,
    }


def _percentiles(seconds: NDArray[np.float64]) -> dict[str, float]:
    values = {f"p{q}": float(np.percentile(seconds, q)) * 1e3 for q in (50, 90, 99)}
    return {**values, "mean": float(seconds.mean()) * 1e3, "least": float(seconds.min()) * 1e3}


def markdown(record: dict[str, Any]) -> str:
    """The record as a table, the machine above it."""
    hardware = record["hardware"]
    where = ", ".join(f"{name} {value}" for name, value in hardware.items())
    lines = [
        f"{record['date'][:10]}; {where}",
        "",
        "| model | precision | device | threads | batch | p50 ms | p90 ms | p99 ms | images/s "
        "| preprocess | network | NMS |",
        "|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in record["results"]:
        model, latency, parts = row["model"], row["latency_ms"], row["parts_ms"]
        lines.append(
            f"| {model['file']} ({model['backend']}) | {model['precision']} | {model['device']} "
            f"| {model.get('threads', '–')} | {row['batch']} | {latency['p50']:.1f} | {latency['p90']:.1f} "
            f"| {latency['p99']:.1f} | {row['images_per_second']:.2f} | "
            + " | ".join(f"{parts[name]['p50']:.1f}" for name in PARTS)
            + " |"
        )
    lines += _device_table(record["results"])
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines += [
        "",
        f"Parts are medians in ms. {record['results'][0]['calls']} calls each, interleaved. {versions}",
    ]
    for when, state in record.get("gpu_state", {}).items():
        if state:
            lines += ["", f"GPU {when}: " + ", ".join(f"{name} {value}" for name, value in state.items())]
    return "\n".join(lines) + "\n"


def _device_table(rows: list[dict[str, Any]]) -> list[str]:
    """What is known beyond the first table: the parts on the GPU, and streamed throughput."""
    rows = [row for row in rows if "device_ms" in row or "streamed_images_per_second" in row]
    if not rows:
        return []
    lines = [
        "",
        "| model | batch | copy in | network | NMS | copy out | images/s, streamed |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        parts = row.get("device_ms", {})
        cells = [f"{parts[name]['p50']:.3f}" if name in parts else "–" for name in DEVICE_PARTS]
        rate = row.get("streamed_images_per_second")
        cells.append(f"{rate:.2f}" if rate else "–")
        lines.append(f"| {row['model']['file']} | {row['batch']} | {' | '.join(cells)} |")
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="bench",
        description=__doc__.split("\n\n", maxsplit=1)[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model",
        type=Path,
        action="append",
        required=True,
        metavar="M",
        help=".pt, .onnx or .engine; may be repeated",
    )
    parser.add_argument("--batch", default="1", metavar="N,N", help="tiles a call (default: 1)")
    parser.add_argument("--warmup", type=int, default=5, metavar="N", help="calls first (default: 5)")
    parser.add_argument("--repeat", type=int, default=50, metavar="N", help="calls timed (default: 50)")
    parser.add_argument("--images", type=Path, metavar="DIR", help="tiles of these images (default: made up)")
    add_runner_arguments(parser)
    parser.add_argument(
        "--compile",
        action="store_true",
        help="every .pt once more under torch.compile, on a GPU in FP16: what an engine has to beat",
    )
    parser.add_argument(
        "--streamed", action="store_true", help="throughput with the stages of a call side by side, too"
    )
    parser.add_argument("--json", type=Path, metavar="F", help="write all numbers")
    parser.add_argument("--markdown", type=Path, metavar="F", help="write the table")
    arguments = parser.parse_args(argv)
    return errors.run("bench", lambda: benchmark(arguments))


def benchmark(arguments: argparse.Namespace) -> int:
    """The command behind `main`, with parsed arguments."""
    for flag, least in (("warmup", 0), ("repeat", 1), ("threads", 0)):
        if getattr(arguments, flag) < least:
            raise errors.InputError(f"--{flag} {getattr(arguments, flag)}: expected {least} or more")
    batches = checks.positive_integers(arguments.batch, "--batch")
    keep = list(arguments.model)
    for flag in ("json", "markdown"):  # told now and not after minutes of timing
        if path := getattr(arguments, flag):
            keep.append(checks.new_file(path, f"--{flag}", keep))
    if arguments.images:
        checks.existing_directory(arguments.images, "--images")
    busy = machine.hardware().get("load_average", 0.0)

    runners: list[Runner] = []
    state = {"before": machine.gpu_state()}
    try:
        for path in arguments.model:
            runners.append(open_runner(path, arguments))
            print(f"{runners[-1].name}: {runners[-1].reason}", file=sys.stderr)
            if arguments.compile and isinstance(runners[-1], TorchRunner):
                compiled = CompiledTorchRunner(path, runners[-1].reason, arguments.device, arguments.threads)
                runners.append(compiled)
        if busy > 1:
            print(f"bench: note: the machine is busy (load {busy:g} before the start)", file=sys.stderr)
        results = measure(
            runners,
            batches,
            warmup=arguments.warmup,
            repeat=arguments.repeat,
            images=arguments.images,
            streamed=arguments.streamed,
            progress=True,
        )
        state["after"] = machine.gpu_state()
    finally:
        for runner in runners:
            runner.close()
    circumstances = machine.circumstances()
    circumstances["hardware"]["load_before"] = busy
    record = {
        **circumstances,
        "gpu_state": state,
        "settings": {
            "warmup": arguments.warmup,
            "repeat": arguments.repeat,
            "tiles": str(arguments.images) if arguments.images else "made up",
        },
        "results": results,
    }
    table = markdown(record)
    print(table, end="")
    for path, text in ((arguments.json, json.dumps(record, indent=2) + "\n"), (arguments.markdown, table)):
        if path:
            atomic.write_text(path, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
