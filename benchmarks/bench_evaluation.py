"""Our evaluation of Task 1 against the official devkit: the same numbers, and how much sooner.

    python benchmarks/bench_evaluation.py --devkit DIR

`DIR` is your own checkout of CAPTAIN-WHU/DOTA_devkit with polyiou compiled:

    swig -c++ -python polyiou.i && python setup.py build_ext --inplace

Without `--devkit` only our own time is measured. The scenes are made up from a seed and awkward on purpose:
trapezoids, concave, self-crossing and empty quads, difficult objects, duplicates, crowds, several detections
of one object, wrong classes, images with nothing, a class without objects and one without detections. All
scores differ, since the devkit leaves the order of equal ones undefined.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import io
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from rgfl.dota.average_precision import THRESHOLDS, Result, evaluate
from rgfl.dota.labels import CLASSES, read_label_folder, read_task1
from rgfl.trt_runtime import machine

SCRIPTS = {"1.0": "dota_evaluation_task1.py", "1.5": "dota-v1.5_evaluation_task1.py"}
WITHOUT_TRUTH, WITHOUT_DETECTIONS = "helicopter", "roundabout"


def make_scene(
    folder: Path, classes: Sequence[str], images: int, detections: int, seed: int
) -> dict[str, int]:
    """Writes labelTxt/, task1/ and images.txt; returns how many of each kind of object."""
    rng = np.random.default_rng(seed)
    kinds = ("rectangle", "trapezoid", "concave", "self-crossing", "no area")
    counts = dict.fromkeys((*kinds, "difficult", "duplicate"), 0)
    truth: list[tuple[int, str, np.ndarray]] = []
    (folder / "labelTxt").mkdir(parents=True)
    (folder / "task1").mkdir()
    for image in range(images):
        lines = ["imagesource:GoogleEarth", "gsd:0.146"]
        crowd = image % 10 == 3
        count = int(rng.integers(150, 300)) if crowd else int(rng.integers(1, 40))
        for _ in range(0 if image % 25 == 7 else count):
            # A crowd is one class, close together and all one way, as on a car park.
            name = "small-vehicle" if crowd else str(rng.choice(classes))
            if name == WITHOUT_TRUTH:
                continue
            kind = str(rng.choice(kinds, p=(0.6, 0.25, 0.08, 0.06, 0.01)))
            quad = np.round(_quad(rng, kind, crowd), 1)
            difficult = int(rng.random() < 0.2)
            copies = 2 if rng.random() < 0.02 else 1
            counts[kind] += copies
            counts["difficult"] += difficult * copies
            counts["duplicate"] += copies - 1
            for _ in range(copies):
                truth.append((image, name, quad))
                lines.append(" ".join(f"{v:.1f}" for v in quad.ravel()) + f" {name} {difficult}")
        (folder / "labelTxt" / f"P{image:04d}.txt").write_text("\n".join(lines) + "\n")

    found: list[tuple[float, int, str, np.ndarray]] = []
    for _ in range(detections):
        if rng.random() < 0.85:
            image, name, quad = truth[int(rng.integers(len(truth)))]
            size = np.ptp(quad, axis=0).max() + 1
            moved, bent = rng.choice((0.005, 0.03, 0.1)), rng.choice((0.0, 0.01, 0.06))
            quad = quad + rng.normal(0, size * moved, 2) + rng.normal(0, size * bent, (4, 2))
            quad = np.roll(quad, int(rng.integers(4)), axis=0)[:: int(rng.choice((-1, 1)))]
            quality = 1 - 6 * moved - 6 * bent
            if rng.random() < 0.05:
                name = str(rng.choice(classes))
        else:
            image, name, quality = int(rng.integers(images)), str(rng.choice(classes)), 0.2
            quad = _quad(rng, str(rng.choice(kinds)), crowd=False)
        name = "ship" if name == WITHOUT_DETECTIONS else name
        found.append((quality + rng.normal(0, 0.3), image, name, quad))
    files: dict[str, list[str]] = {name: [] for name in classes}
    scores = (np.argsort(np.argsort([quality for quality, *_ in found])) + 1) / (detections + 1)
    for score, (_, image, name, quad) in zip(scores.tolist(), found, strict=True):
        files[name].append(f"P{image:04d} {score!r} " + " ".join(f"{v:.2f}" for v in quad.ravel()))
    for name, lines in files.items():
        (folder / "task1" / f"Task1_{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    (folder / "images.txt").write_text("".join(f"P{image:04d}\n" for image in range(images)))
    return counts


def _quad(rng: np.random.Generator, kind: str, crowd: bool) -> np.ndarray:
    """Corners (4, 2)."""
    centre = rng.uniform(0, 600 if crowd else 4000, 2)
    size = rng.uniform(8, 30, 2) if crowd else np.exp(rng.uniform(np.log(8), np.log(400), 2))
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]) * size
    if kind == "trapezoid":
        corners += rng.uniform(-0.2, 0.2, (4, 2)) * size
    elif kind == "concave":
        corners[2] *= rng.uniform(-0.6, -0.1)
    elif kind == "self-crossing":
        corners[[2, 3]] = corners[[3, 2]]
        corners[:2, 0] *= rng.uniform(0.2, 0.8)
    elif kind == "no area":
        corners[:, 1] = 0
    angle = 0.6 if crowd else rng.uniform(0, 2 * np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    return corners @ np.array([[cos, sin], [-sin, cos]]) + centre


def load_devkit(folder: Path, script: str) -> ModuleType:
    """The official script as a module, with what newer NumPy took from it."""
    if not (folder / script).is_file():
        raise SystemExit(f"{folder} holds no {script}: expected a checkout of CAPTAIN-WHU/DOTA_devkit")
    if not hasattr(np, "bool"):
        np.bool = bool  # type: ignore[attr-defined]
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))  # the script imports polyiou from beside itself
    spec = importlib.util.spec_from_file_location("devkit_evaluation", folder / script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise SystemExit(
            f"{script}: {error}; it needs matplotlib and a compiled polyiou, see --help"
        ) from None
    return module


def run_devkit(devkit: ModuleType, scene: Path, classes: tuple[str, ...]) -> np.ndarray:
    """AP (C, T) by the official script, which starts from the files for every class and threshold."""
    ap = np.zeros((len(classes), len(THRESHOLDS)))
    for row, name in enumerate(classes):
        for column, threshold in enumerate(THRESHOLDS):
            with contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
                try:
                    ap[row, column] = devkit.voc_eval(
                        str(scene / "task1" / "Task1_{:s}.txt"), str(scene / "labelTxt" / "{:s}.txt"),
                        str(scene / "images.txt"), name, ovthresh=threshold, use_07_metric=True,
                    )[2]  # fmt: skip
                except IndexError:  # it fails on an empty file; the AP of no detections is 0
                    if (scene / "task1" / f"Task1_{name}.txt").read_text():
                        raise
    return ap


def timed(call: Callable[[], object], repeats: int) -> float:
    """Least processor seconds of some runs after one to warm up."""
    call()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devkit", type=Path, help="checkout of the official devkit with polyiou compiled")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--detections", type=int, default=17_109)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=5, help="runs of ours, of which the quickest counts")
    parser.add_argument("--out", type=Path, help="folder for the dated result files; none by default")
    options = parser.parse_args()

    report: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "hardware": machine.hardware(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "images": options.images,
        "detections": options.detections,
        "seed": options.seed,
        "versions": {},
    }
    for version in SCRIPTS:
        with tempfile.TemporaryDirectory() as name:
            scene = Path(name)
            objects = make_scene(scene, CLASSES[version], options.images, options.detections, options.seed)
            row = measure(scene, version, options.devkit, options.repeats)
            report["versions"][version] = {"objects": objects, **row}
    text = describe(report)
    print(text)
    if options.out:
        print(f"{machine.write_record(options.out, 'evaluation', report, text)}, .md")


def measure(scene: Path, version: str, devkit: Path | None, repeats: int) -> dict[str, Any]:
    """Our numbers and times on one scene, and the devkit's."""
    classes = CLASSES[version]
    truth, task1 = read_label_folder(scene / "labelTxt", classes), read_task1(scene / "task1", classes)

    def from_files() -> Result:
        truth, task1 = read_label_folder(scene / "labelTxt", classes), read_task1(scene / "task1", classes)
        return evaluate(task1, truth, classes, version=version)

    def in_memory() -> Result:
        return evaluate(task1, truth, classes, version=version)

    result = from_files()
    row: dict[str, Any] = {
        "ap50": result.ap50,
        "ap75": result.ap75,
        "map": result.map,
        "counts": result.counts,
    }
    row["ours_seconds"] = timed(from_files, repeats)
    row["ours_in_memory_seconds"] = timed(in_memory, repeats)
    if devkit is not None:
        module = load_devkit(devkit.resolve(), SCRIPTS[version])
        start = time.process_time()
        official = run_devkit(module, scene, classes)
        row["devkit_seconds"] = time.process_time() - start
        row["ratio"] = row["devkit_seconds"] / row["ours_seconds"]
        difference = np.abs(result.ap - official)
        row["compared"] = int(difference.size)
        row["differing"] = int((difference > 0).sum())
        row["greatest_difference"] = float(difference.max())
    return row


def describe(report: dict[str, Any]) -> str:
    """The result file."""
    lines = [
        f"# Evaluation of Task 1, {report['date']}",
        "",
        f"{report['hardware']['cpu']}, {report['hardware']['cores']} cores; Python {report['python']}, "
        f"NumPy {report['numpy']}.",
        f"{report['images']} images, {report['detections']} detections (seed {report['seed']}), "
        f"{len(THRESHOLDS)} IoU thresholds.",
        "",
        "| version | devkit | ours, files | ours, memory | ratio | APs compared | differing | greatest |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for version, row in report["versions"].items():
        ours = (row["ours_seconds"], row["ours_in_memory_seconds"])
        cells = [version, "–", *(f"{1000 * seconds:.0f} ms" for seconds in ours), *["–"] * 4]
        if "ratio" in row:
            cells[1] = f"{row['devkit_seconds']:.1f} s"
            cells[4:] = [f"{row['ratio']:.0f}×", str(row["compared"]), str(row["differing"])]
            cells.append(f"{row['greatest_difference']:.1e}")
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for version, row in report["versions"].items():
        kinds = ", ".join(f"{count} {kind}" for kind, count in row["objects"].items())
        lines.append(f"Objects of the v{version} scene: {kinds}.")
    lines += [
        "",
        "Processor time of one core, waiting left out. Devkit: one run of the official script with compiled",
        "polyiou, files included, once for each class and threshold as it is written. Ours: the least of",
        "several runs, with and without reading the files. The ratio is between both from the files.",
        "A class whose file is empty stops the devkit; its AP there is taken as 0.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
