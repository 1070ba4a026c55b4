"""One table, precision × AP × latency, from the JSON files of eval_dota.py and bench.py; and its plot.

    python trt_runtime/report.py --eval torch.json --eval onnx.json --bench bench.json --out report.md

An evaluation and a benchmark belong together when they ran the same file: the digest of its bytes says so.
The first evaluation is what the others are compared with.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rgfl import atomic, checks, errors
from rgfl.trt_runtime.machine import file_facts
from rgfl.trt_runtime.tensorrt_api import NAMES, read_plan, read_record

EXAMPLES = """\
examples:
  python trt_runtime/report.py --eval a.json --bench bench.json --out report.md
  python trt_runtime/report.py --eval a.json --eval b.json --bench bench.json --out report.md --plot F.png
  python trt_runtime/report.py --eval a.json --engine model.fp16.engine --out report.md   built, not yet run

exit status: 0 done, 2 bad input
"""


@dataclass(frozen=True)
class Row:
    """One model at one batch size; None where a file said nothing about it."""

    model: dict[str, Any]
    score: dict[str, Any] | None
    speed: dict[str, Any] | None

    @property
    def name(self) -> str:
        name = f"{self.model['file']} ({self.model['backend']})"
        scales = _scales(self.score) if self.score else [1.0]
        return name if scales == [1.0] else f"{name}, scales {' '.join(f'{scale:g}' for scale in scales)}"

    @property
    def built_only(self) -> bool:
        """Whether this is an engine that nobody evaluated or timed."""
        return self.score is None and self.speed is None


def merge(
    evaluations: list[dict[str, Any]],
    benchmarks: list[dict[str, Any]],
    engines: Sequence[dict[str, Any]] = (),
) -> list[Row]:
    """Rows in the order of the evaluations, then models that were only timed, then engines only built.

    An evaluation at several scales gets no speed: its AP takes more calls than were timed.
    """
    speeds = [row for benchmark in benchmarks for row in benchmark["results"]]
    rows = []
    for evaluation in evaluations:
        model = _model(evaluation)
        own = [speed for speed in speeds if _same(speed["model"], model) and _scales(evaluation) == [1.0]]
        rows += [Row(model, evaluation, speed) for speed in own] or [Row(model, evaluation, None)]
    scored = [_model(evaluation) for evaluation in evaluations if _scales(evaluation) == [1.0]]
    rows += [
        Row(speed["model"], None, speed)
        for speed in speeds
        if not any(_same(speed["model"], model) for model in scored)
    ]
    run = {row.model["sha256"] for row in rows}
    return rows + [Row(engine, None, None) for engine in engines if engine["sha256"] not in run]


def _model(evaluation: dict[str, Any]) -> dict[str, Any]:
    """What was evaluated; of Task 1 files little more than where they were is known."""
    if "source" not in evaluation:
        return evaluation["model"]
    source = evaluation["source"]
    facts = {"file": source, "sha256": source, "backend": "Task 1 files", "precision": "–"}
    return {**facts, "bytes": None, "spec_digest": None}


def _same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return all(first.get(key) == second.get(key) for key in ("sha256", "backend", "device"))


def _scales(evaluation: dict[str, Any]) -> list[float]:
    return evaluation.get("settings", {}).get("scales", [1.0])


def markdown(rows: list[Row], benchmarks: list[dict[str, Any]]) -> str:
    """The table, then where the numbers come from."""
    lines = [
        "| model | precision | AP50 | AP75 | mAP | ΔAP50 | ΔmAP | batch | p50 ms | p90 ms | images/s | MB |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    reference = next((row.score for row in rows if row.score), None)
    for row in rows:
        score = [f"{100 * row.score[key]:.2f}" if row.score else "–" for key in ("ap50", "ap75", "map")]
        if row.score is None or reference is None or row.score is reference:
            score += ["–"] * 2
        else:
            score += [f"{100 * (row.score[key] - reference[key]):+.2f}" for key in ("ap50", "map")]
        speed = ["–"] * 4
        if row.speed:
            latency = row.speed["latency_ms"]
            speed = [str(row.speed["batch"]), f"{latency['p50']:.1f}", f"{latency['p90']:.1f}"]
            speed.append(f"{row.speed['images_per_second']:.2f}")
        size = "–" if row.model["bytes"] is None else f"{row.model['bytes'] / 1e6:.1f}"
        cells = [row.name, row.model["precision"], *score, *speed, size]
        lines.append(f"| {' | '.join(map(_text, cells))} |")
    notes = []
    scores = [row.score for row in rows if row.score]
    for protocol in dict.fromkeys((score["version"], score["images"]) for score in scores):
        notes.append(
            f"AP in percent: DOTA-v{protocol[0]} Task 1, official 11-point rule, {protocol[1]} full images, "
            "tiles merged. mAP is the mean over IoU 0.50:0.05:0.95. Δ: points above the first row."
        )
    if any("rounded" in row.model["precision"] for row in rows):
        notes.append(
            "fp16-rounded: FP32 arithmetic, rounded to FP16 after each operator that is FP16 in engines: "
            "it measures FP16's AP on a CPU, and its own speed means nothing."
        )
    if any(row.built_only for row in rows):
        notes.append(
            "Engines without AP and latency were built here and did not run: that takes an NVIDIA GPU."
        )
    digests = dict.fromkeys(filter(None, (row.model["spec_digest"] for row in rows)))
    if len(digests) > 1:
        notes.append(f"The models carry different specs: {', '.join(digests)}.")
    for benchmark in benchmarks:
        hardware = ", ".join(f"{name} {value}" for name, value in benchmark["hardware"].items())
        notes.append(f"Latency of a whole call, pixels to detections, {benchmark['date'][:10]}: {hardware}.")
    return "\n".join([*lines, "", *(f"* {_text(note)}" for note in notes)]) + "\n"


def _text(text: str) -> str:
    """One line that Markdown takes for text, whatever a file is called: no cell, tag, link or image."""
    return re.sub(r"[\\|<\[]", r"\\\g<0>", " ".join(text.split()))


def plot(rows: list[Row], path: Path) -> None:
    """mAP over latency, smallest batch of each model; the line joins what nothing beats in both."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if path.suffix.lower().removeprefix(".") not in FigureCanvasAgg.get_supported_filetypes():
        raise errors.InputError(f"--plot {path}: expected a file name that ends in .png, .svg or .pdf")
    points: dict[str, tuple[float, float, int]] = {}
    for row in rows:
        if row.score and row.speed:
            point = (row.speed["latency_ms"]["p50"], 100 * row.score["map"], row.speed["batch"])
            label = f"{row.name}, {row.model['precision']}"
            if label not in points or point[2] < points[label][2]:
                points[label] = point
    if not points:
        raise errors.InputError(
            "--plot: no model was both evaluated and timed; give --eval and --bench files of the same model"
        )
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    best = float("-inf")
    front = []
    for latency, score, _ in sorted(points.values(), key=lambda point: (point[0], -point[1])):
        if score > best:
            best = score
            front.append((latency, score))
    axes.plot(*zip(*front, strict=True), color="0.7", linewidth=1, zorder=1)
    for label, (latency, score, batch) in points.items():
        axes.scatter(latency, score, s=45, zorder=2, label=f"{label}, batch {batch}")
    axes.set_xlabel("latency of a whole call, median (ms)")
    axes.set_ylabel("mAP (%)")
    axes.set_xlim(left=0)
    # At least two points of mAP from bottom to top: hundredths of a point are chance, and look like it.
    scores = [score for _, score, _ in points.values()]
    room = max(1.0, 0.75 * (max(scores) - min(scores)))
    middle = (max(scores) + min(scores)) / 2
    axes.set_ylim(middle - room, middle + room)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    data = io.BytesIO()
    figure.savefig(data, dpi=130, format=path.suffix.lower().removeprefix("."))
    pyplot.close(figure)
    atomic.write_bytes(path, data.getvalue())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="report",
        description=__doc__.split("\n\n", maxsplit=1)[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--eval", type=Path, action="append", default=[], metavar="F", help="from eval_dota.py --json"
    )
    parser.add_argument(
        "--bench", type=Path, action="append", default=[], metavar="F", help="from bench.py --json"
    )
    parser.add_argument(
        "--engine",
        type=Path,
        action="append",
        default=[],
        metavar="F.engine",
        help="from to_trt.py, its .json beside it",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="F.md", help="the table to write")
    parser.add_argument("--plot", type=Path, metavar="F.png", help="mAP over latency")
    arguments = parser.parse_args(argv)
    return errors.run("report", lambda: report(arguments))


def report(arguments: argparse.Namespace) -> int:
    """The command behind `main`, with parsed arguments."""
    if not (arguments.eval or arguments.bench or arguments.engine):
        raise errors.InputError("nothing to report: give --eval and --bench files")
    keep = [*arguments.eval, *arguments.bench, *arguments.engine]
    keep.append(checks.new_file(arguments.out, "--out", keep))
    if arguments.plot:
        checks.new_file(arguments.plot, "--plot", keep)
    evaluations = [_read(path, "eval_dota.py", _evaluation) for path in arguments.eval]
    benchmarks = [_read(path, "bench.py", _benchmark) for path in arguments.bench]
    rows = merge(evaluations, benchmarks, [_engine(path) for path in arguments.engine])
    if arguments.plot:
        plot(rows, arguments.plot)
    text = markdown(rows, benchmarks)
    if arguments.plot:
        text += f"\n![mAP over latency]({_relative(arguments.plot, arguments.out)})\n"
    atomic.write_text(arguments.out, text)
    print(f"{arguments.out}: {len(rows)} rows")
    return 0


def _engine(path: Path) -> dict[str, Any]:
    """What the build record beside an engine says of it, as a runner would describe it."""
    plan, record = read_plan(path), read_record(path)
    if not record:
        raise errors.InputError(
            f"--engine {path}: no {path.name}.json of this engine; build it with to_trt.py"
        )
    keys = ("precision", "spec_digest")
    return {**file_facts(path), "backend": NAMES[plan.backend], **{key: record[key] for key in keys}}


def _relative(target: Path, document: Path) -> str:
    return Path(os.path.relpath(target, document.parent)).as_posix()


def _evaluation(record: dict[str, Any]) -> str:
    return markdown(merge([record], []), [])


def _benchmark(record: dict[str, Any]) -> str:
    return markdown(merge([], [record]), [record])


def _read(path: Path, source: str, table: Callable[[dict[str, Any]], str]) -> dict[str, Any]:
    """The record of a file, of which a `table` can be made."""
    try:
        record = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # of the encoding or of JSON
        raise errors.InputError(f"{path}: no JSON ({error}); expected what {source} --json writes") from error
    try:
        table(record)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise errors.InputError(f"{path}: expected what {source} --json writes ({reason})") from error
    return record


if __name__ == "__main__":
    sys.exit(main())
