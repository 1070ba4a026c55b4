"""What FP16 and INT8 cost in accuracy and gain in time, on one detector and without a GPU.

    python benchmarks/bench_precision.py MODEL.onnx --calib IMAGES --work DIR --out benchmarks

One FP32 file of export/to_onnx.py becomes four: FP32, FP16 by rounding (export/graph.py), INT8 as engines
compute it, with FP16 elsewhere, by rounding too, and INT8 for ONNX Runtime's kernels (export/quantize.py).
All four look at the same held-out scenes, by default synthetic ones of a seed that no training uses, as many
as hold 10,000 objects. Written down: AP and its change, the share of detections found again (same class,
IoU ≥ .9, both ways), sizes, and the time of the network on one tile, interleaved. Detections are kept in
--work, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from rgfl import errors
from rgfl.detections import Detections
from rgfl.dota import synthetic
from rgfl.dota.average_precision import evaluate_detections
from rgfl.dota.labels import Objects, read_label_folder, version_of
from rgfl.export import onnx_file, quantize
from rgfl.export.fp16 import to_rounded
from rgfl.matching import match_detections
from rgfl.trt_runtime import bench, machine
from rgfl.trt_runtime.runners import load_runner
from rgfl.trt_runtime.scenes import find_scenes
from rgfl.trt_runtime.streaming import stream

OBJECTS = 10_000
SEED = 2026  # not that of `make demo`
MATCHED_SCORE, MATCHED_IOU = 0.3, 0.9
NAMES = {
    "fp32": "FP32",
    "fp16": "FP16, by rounding",
    "int8": "INT8 and FP16, as in engines",
    "int8-cpu": "INT8, for ONNX Runtime",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="FP32, of export/to_onnx.py")
    parser.add_argument(
        "--calib", type=Path, required=True, metavar="DIR", help="images to calibrate INT8 on"
    )
    parser.add_argument("--calib-images", type=int, default=48, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="models, scenes, detections")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="look at these and not at synthetic scenes"
    )
    parser.add_argument("--labels", type=Path, metavar="DIR", help="their label files")
    parser.add_argument(
        "--density", type=float, default=1.6, metavar="X", help="of synthetic scenes (%(default)s)"
    )
    parser.add_argument("--repeat", type=int, default=40, metavar="N", help="timed calls (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="of ONNX Runtime (%(default)s)")
    parser.add_argument("--name", default="precision", help="of the result files (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write a dated JSON and Markdown file there")
    arguments = parser.parse_args()
    return errors.run("bench_precision", lambda: run(arguments))


def run(arguments: argparse.Namespace) -> int:
    if (arguments.images is None) != (arguments.labels is None):
        raise errors.InputError("--images and --labels go together")
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    models = make_models(arguments.model, arguments.calib, arguments.calib_images, work)
    spec = onnx_file.read_spec(onnx_file.load(models["fp32"]))
    images, labels = arguments.images, arguments.labels
    if images is None:
        images, labels = make_scenes(work / "scenes", spec.classes, arguments.density)
    truth = read_label_folder(labels, spec.classes)

    found = {name: detect(path, images, truth, arguments.threads, work) for name, path in models.items()}
    rows = [describe(name, models, found, truth, spec.classes) for name in models]
    for row, timed in zip(rows, measure(models, arguments.threads, arguments.repeat, images), strict=True):
        row["network_ms"] = timed["parts_ms"]["network"]
    record = {
        **machine.circumstances(),
        "threads": arguments.threads,
        "source": machine.file_facts(arguments.model),
        "calibration_images": arguments.calib_images,
        "images": len(truth),
        "objects": sum(map(len, truth.values())),
        "rows": rows,
    }
    text = markdown(record)
    print(text)
    if arguments.out:
        print(f"written: {machine.write_record(arguments.out, arguments.name, record, text)} and .md")
    return 0


def make_models(source: Path, calibration: Path, count: int, work: Path) -> dict[str, Path]:
    """The four files; quantised anew each time, from cached histograms."""
    paths = {name: work / f"{source.stem}-{name}.onnx" for name in NAMES}
    model = onnx_file.load(source)
    onnx_file.save(model, paths["fp32"])
    onnx_file.save(to_rounded(model)[0], paths["fp16"])
    quantised = work / f"{source.stem}-quantised.onnx"
    report = quantize.quantize(
        paths["fp32"],
        quantised,
        calibration,
        images=count,
        cache=work / "calibration.npz",
        cpu_variant_path=paths["int8-cpu"],
    )
    print(report.text(), file=sys.stderr)
    onnx_file.save(to_rounded(onnx_file.load(quantised))[0], paths["int8"])
    return paths


def make_scenes(folder: Path, classes: tuple[str, ...], density: float) -> tuple[Path, Path]:
    """Synthetic scenes with at least OBJECTS objects that count."""
    settings = synthetic.Settings(seed=SEED, density=density, classes=classes)
    images, labels = folder / "val" / "images", folder / "val" / "labelTxt"
    count, objects = 0, 0
    while objects < OBJECTS:
        count += 100
        try:
            synthetic.generate(folder, train=0, val=count, settings=settings)
        except synthetic.SyntheticError as error:
            raise errors.InputError(f"{error}; or give --images and --labels") from error
        objects = sum(int((one.difficult == 0).sum()) for one in read_label_folder(labels, classes).values())
    return images, labels


def detect(
    path: Path, images: Path, truth: dict[str, Objects], threads: int, work: Path
) -> dict[str, Detections]:
    """Detections of each image with labels; read back where this very model has seen these images."""
    from tqdm import tqdm

    scenes = {name: file for name, file in find_scenes(images).items() if name in truth}
    if missing := sorted(truth.keys() - scenes.keys()):
        raise errors.InputError(f"--images {images}: no image for the label file {missing[0]}.txt")
    seen = hashlib.sha256(machine.file_facts(path)["sha256"].encode())
    for name, file in scenes.items():
        seen.update(name.encode() + machine.file_facts(file)["sha256"].encode())
    store = work / f"{path.stem}-{seen.hexdigest()[:16]}.npz"
    if store.is_file():
        with np.load(store, allow_pickle=False) as kept:
            ends = np.cumsum(kept["counts"])[:-1]
            parts = [np.split(kept[name], ends) for name in ("boxes", "scores", "labels")]
        return dict(zip(scenes, map(Detections, *parts), strict=True))
    found = {}
    with (
        load_runner(path, device="cpu", threads=threads) as runner,
        contextlib.closing(stream(runner, scenes)) as done,
    ):
        for scene in tqdm(done, total=len(scenes), unit="image", desc=path.stem):
            found[scene.name] = scene.detections
    found = {name: found[name] for name in scenes}
    columns = {
        name: np.concatenate([getattr(one, name) for one in found.values()])
        for name in ("boxes", "scores", "labels")
    }
    partial = store.with_suffix(".partial.npz")
    np.savez(partial, counts=[len(one) for one in found.values()], **columns)
    partial.replace(store)
    return found


def describe(
    name: str,
    models: dict[str, Path],
    found: dict[str, dict[str, Detections]],
    truth: dict[str, Objects],
    classes: tuple[str, ...],
) -> dict[str, Any]:
    """AP of one model, and how many of its detections and of FP32's the other has too."""
    result = evaluate_detections(found[name], truth, classes, version=version_of(classes))
    # Each direction: of the detections above the score, the share that the other has at any score.
    shares = []
    for mine, other in ((found[name], found["fp32"]), (found["fp32"], found[name])):
        asked = matched = 0
        for image, detections in mine.items():
            likely = detections[detections.scores > MATCHED_SCORE]
            asked += len(likely)
            matched += len(match_detections(likely, other[image], MATCHED_IOU))
        shares.append(matched / max(asked, 1))
    return {
        "name": name,
        **machine.file_facts(models[name]),
        "ap50": result.ap50,
        "ap75": result.ap75,
        "map": result.map,
        "detections": sum(int((one.scores > MATCHED_SCORE).sum()) for one in found[name].values()),
        "of_these_in_fp32": shares[0],
        "of_fp32_in_these": shares[1],
    }


def measure(models: dict[str, Path], threads: int, repeat: int, images: Path) -> list[dict[str, Any]]:
    """One record a model, all of them timed in turn."""
    runners = [load_runner(path, device="cpu", threads=threads) for path in models.values()]
    try:
        return bench.measure(runners, [1], warmup=5, repeat=repeat, images=images, progress=True)
    finally:
        for runner in runners:
            runner.close()


def markdown(record: dict[str, Any]) -> str:
    hardware, versions = record["hardware"], record["versions"]
    lines = [
        f"# What precision costs, {record['date'][:10]}",
        "",
        f"{hardware['cpu']}, {hardware['cores']} cores, no GPU; ONNX Runtime {versions['onnxruntime']}, "
        f"{record['threads']} threads, load average {hardware.get('load_average', '?')}. {record['images']} "
        f"images, {record['objects']:,} objects; INT8 calibrated on {record['calibration_images']} images.",
        "",
        "| precision | AP50 | AP75 | mAP | ΔAP50 | ΔmAP | found again in FP32 | FP32's found again "
        "| network, ms | times FP32 | MB | of FP32 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    first = record["rows"][0]
    for row in record["rows"]:
        speed, base = row["network_ms"]["p50"], first["network_ms"]["p50"]
        quick = row["name"] in ("fp32", "int8-cpu")
        cells = [
            NAMES[row["name"]],
            *(f"{100 * row[key]:.2f}" for key in ("ap50", "ap75", "map")),
            *(f"{100 * (row[key] - first[key]):+.2f}" for key in ("ap50", "map")),
            *(f"{100 * row[key]:.2f}%" for key in ("of_these_in_fp32", "of_fp32_in_these")),
            f"{speed:.1f}" if quick else "–",
            f"{base / speed:.2f}" if quick else "–",
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['bytes'] / first['bytes']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "AP in percent by the official 11-point rule on full images, mAP over IoU .50:.05:.95, Δ in points. "
        f"Found again: of the detections above {MATCHED_SCORE}, the share with one of the same class at IoU "
        f"≥ {MATCHED_IOU} in the other. Time: median of the network alone on one tile, the models in turn. "
        "FP16 is FP32 arithmetic rounded after every operator that is FP16 in an engine, beside INT8 too, so "
        "it has no time.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
