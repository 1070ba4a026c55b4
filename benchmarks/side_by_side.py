"""Training beside mmrotate and Ultralytics: seconds a step, and AP after equal steps, on the same tiles.

    python benchmarks/side_by_side.py step  --data DIR --work WORK --mmrotate PYTHON --ultralytics PYTHON
    python benchmarks/side_by_side.py learn --data DIR --work WORK --mmrotate PYTHON --ultralytics PYTHON
    python benchmarks/side_by_side.py report --work WORK --out benchmarks

DIR holds train/ and val/ in DOTA's format; PYTHON is the interpreter of an environment with onedl-mmrotate
(and rgfl, see mmrotate_parts.py) or ultralytics. All get the same tiles of 512², as many threads and
worker processes, and their own augmentation and losses. `step` trains each for a few steps in turn, round
after round, and compares within a round, because a machine's pace drifts. `learn` trains each once over the
same number of steps from the same ImageNet weights where the networks allow it, then finds the objects of
every val tile, merges and scores them with one code, the official evaluation. What is done is not repeated.

Of the others only that is changed which a CPU or the comparison demands. mmrotate gets rgfl's differentiable
rotated IoU, as its own is compiled for CUDA alone, warms up over 50 steps, as rgfl does here, and leaves the
tiles' size as it is. Ultralytics moves its weights after every batch (nbs), and evaluates at the end alone.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tqdm import tqdm

from rgfl import atomic, boxes, errors
from rgfl.detections import Detections
from rgfl.dota import convert, tiling
from rgfl.dota.average_precision import evaluate_detections
from rgfl.dota.images import find_images, read_image
from rgfl.dota.labels import find_classes, read_class_file, read_label_folder
from rgfl.dota.merge import Part, merge
from rgfl.loader import steps_per_epoch
from rgfl.recipes import LITE_WEIGHTS
from rgfl.trt_runtime import machine

SIZE, STRIDE = 512, 384
META = ["img_id", "ori_shape", "img_shape", "scale_factor"]
WARMUP = 50  # steps, in place of 500, of the short trainings with a step schedule
HERE = Path(__file__).parent
TILE = re.compile(r"(?P<image>.+)__1__(?P<x>\d+)___(?P<y>\d+)")


@dataclass(frozen=True)
class Place:
    """What all trainings share."""

    work: Path
    threads: int
    interpreters: Mapping[str, str]  # of the others, by name

    @property
    def tiles(self) -> Path:
        return self.work / "tiles"

    @property
    def yolo(self) -> Path:
        return self.work / "yolo"

    @cached_property
    def classes(self) -> tuple[str, ...]:
        return read_class_file(self.tiles / "classes.txt")

    @cached_property
    def train_tiles(self) -> int:
        return len(find_images(self.tiles / "train" / "images"))

    def call(self, command: list[str], log: Path) -> None:
        """Run in a process of its own; its output goes to `log`.

        Raises:
            InputError: it failed; with its last line.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        variables = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}
        variables["PYTHONPATH"] = os.pathsep.join([str(HERE), variables.get("PYTHONPATH", "")])
        with log.open("w") as file:
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=variables).returncode
        if code:
            lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
            raise errors.InputError(f"{command[0]} … ended with {code}: {lines[-1]}; all of it is in {log}")


@dataclass(frozen=True)
class Contender(ABC):
    """A detector that can be trained for so many steps and then asked what is in the val tiles."""

    name: str
    batch: int
    note: str = ""
    flags: tuple[str, ...] = ()
    group: str = field(kw_only=True)  # rows of a group are compared with its first
    needs: ClassVar[str] = ""  # whose interpreter it runs in, if not ours
    settled: ClassVar[slice] = slice(3, None)  # of `train`: the first steps allocate and compile

    @abstractmethod
    def train(self, place: Place, out: Path, steps: int) -> list[float]:
        """Train from the start in a new folder; seconds of each step, or means of some in order."""

    @abstractmethod
    def detect(self, place: Place, out: Path) -> dict[str, Detections]:
        """What the trained network finds in each val tile, by the tile's name."""


class Ours(Contender):
    """rgfl; `flags` are those of rgfl.train."""

    def train(self, place: Place, out: Path, steps: int) -> list[float]:
        per_epoch = steps_per_epoch(place.train_tiles, self.batch)
        epochs = steps / per_epoch
        command = [sys.executable, "-m", "rgfl.train", "--data", str(place.tiles), "--out", str(out)]
        command += ["--epochs", repr(epochs), "--batch", str(self.batch), "--workers", "1"]
        command += ["--threads", str(place.threads), "--eval-every", "0", "--log-every", "1"]
        command += ["--windows", "grid", "--stride", str(STRIDE), "--tile-size", str(SIZE)]
        command += ["--test-size", str(SIZE), "--test-stride", str(STRIDE), "--device", "cpu"]
        # The rates fall where they do in an undisturbed schedule of 12 epochs.
        command += ["--lr-steps", f"{epochs * 8 / 12},{epochs * 11 / 12}"]
        place.call([*command, *self.flags], out.with_suffix(".log"))
        records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        return [record["step_s"] for record in records if record["kind"] == "step"]

    def detect(self, place: Place, out: Path) -> dict[str, Detections]:
        from rgfl.trt_runtime.runners import load_runner

        found = {}
        with load_runner(out / "best.pt", device="cpu", threads=place.threads) as runner:
            for name, path in tqdm(find_images(place.tiles / "val" / "images").items(), unit="tile"):
                found[name] = runner(read_image(path)[None])[0]
        return found


@dataclass(frozen=True)
class Mmrotate(Contender):
    """Its Rotated ATSS by its own tools."""

    needs = "mmrotate"
    model: Mapping[str, Any] = field(kw_only=True)  # on top of the published configuration

    def train(self, place: Place, out: Path, steps: int) -> list[float]:
        config = self._config(place, out, steps)
        self._tool(place, "train", [str(config), "--work-dir", str(out)], out.with_suffix(".log"))
        [scalars] = out.glob("*/vis_data/scalars.json")
        records = [json.loads(line) for line in scalars.read_text().splitlines()]
        return [record["time"] for record in records if "loss" in record]

    def detect(self, place: Place, out: Path) -> dict[str, Detections]:
        config, [weights] = out.parent / f"{out.name}_config.json", out.glob("iter_*.pth")
        arguments = [str(config), str(weights), "--work-dir", str(out / "test")]
        self._tool(place, "test", arguments, out.parent / f"{out.name}-test.log")
        rows: dict[str, list[dict[str, Any]]] = {}
        for row in json.loads((out / "found.bbox.json").read_text()):
            rows.setdefault(row["image_id"], []).append(row)
        return {
            name: _detections(
                [row["bbox"] for row in found],
                [row["score"] for row in found],
                [row["category_id"] for row in found],
            )
            for name, found in rows.items()
        }

    def _tool(self, place: Place, name: str, arguments: list[str], log: Path) -> None:
        python = place.interpreters[self.needs]
        find = "import mmrotate, pathlib; print(pathlib.Path(mmrotate.__file__).parent / '.mim' / 'tools')"
        tools = subprocess.run([python, "-c", find], check=True, capture_output=True, text=True).stdout
        place.call([python, str(Path(tools.strip()) / f"{name}.py"), *arguments], log)

    def _config(self, place: Place, out: Path, steps: int) -> Path:
        def dataset(split: str, labels: str, steps: list[dict[str, Any]]) -> dict[str, Any]:
            return {
                "data_root": str(place.tiles),
                "ann_file": labels,
                "data_prefix": {"img_path": f"{split}/images/"},
                "metainfo": {"classes": list(place.classes)},
                "pipeline": steps,
            }

        load = {"type": "mmdet.LoadImageFromFile"}
        flip = {"type": "mmdet.RandomFlip", "prob": 0.75, "direction": ["horizontal", "vertical", "diagonal"]}
        config = {
            "_base_": "mmrotate::rotated_atss/rotated-atss-le90_r50_fpn_1x_dota.py",
            "model": {
                **self.model,
                "bbox_head": {"num_classes": len(place.classes)},
            },
            # As published, without the resizing: the tiles have one size.
            "train_dataloader": {
                "batch_size": self.batch,
                "num_workers": 1,
                "sampler": {"type": "InfiniteSampler", "shuffle": True},
                "dataset": dataset(
                    "train",
                    "train/labelTxt/",
                    [
                        load,
                        {"type": "mmdet.LoadAnnotations", "with_bbox": True, "box_type": "qbox"},
                        {"type": "ConvertBoxType", "box_type_mapping": {"gt_bboxes": "rbox"}},
                        flip,
                        {"type": "mmdet.PackDetInputs"},
                    ],
                ),
            },
            "test_dataloader": {
                "num_workers": 1,
                "dataset": dataset(
                    "val",
                    "",
                    # It divides the boxes by the factor of the resizing, so there must be one: 1.
                    [
                        load,
                        {"type": "mmdet.Resize", "scale_factor": 1.0, "keep_ratio": True},
                        {"type": "mmdet.PackDetInputs", "meta_keys": META},
                    ],
                ),
            },
            "test_evaluator": {
                "type": "DOTAMetric",
                "format_only": True,
                "outfile_prefix": str(out / "found"),
            },
            "val_dataloader": None,
            "val_evaluator": None,
            "val_cfg": None,
            "train_cfg": {"_delete_": True, "type": "IterBasedTrainLoop", "max_iters": steps},
            "param_scheduler": [
                {"type": "LinearLR", "start_factor": 0.001, "by_epoch": False, "end": min(WARMUP, steps)},
                {
                    "type": "MultiStepLR",
                    "by_epoch": False,
                    "end": steps,
                    "milestones": [steps * 8 // 12, steps * 11 // 12],
                },
            ],
            "default_hooks": {
                "logger": {"interval": 1},
                "checkpoint": {"by_epoch": False, "interval": steps, "save_optimizer": False},
            },
            "log_processor": {"window_size": 1, "by_epoch": False},
            "custom_imports": {"imports": ["mmrotate_parts"]},
            "env_cfg": {"dist_cfg": {"backend": "gloo"}},
            "randomness": {"seed": 0},
        }
        path = out.parent / f"{out.name}_config.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config, indent=2))
        return path


class Ultralytics(Contender):
    """By its command line; `flags` are its words, the model first."""

    needs = "ultralytics"
    settled = slice(1, -1)  # it tells the mean of each epoch, and validates in the last one

    def train(self, place: Place, out: Path, steps: int) -> list[float]:
        per_epoch = steps_per_epoch(place.train_tiles, self.batch)
        share = min(1.0, steps / per_epoch)  # of the tiles, where one epoch is too long
        epochs = max(3, round(steps / per_epoch))
        words = ["train", f"data={place.yolo / 'data.yaml'}", f"imgsz={SIZE}", f"batch={self.batch}"]
        words += [f"nbs={self.batch}", f"epochs={epochs}", f"fraction={share}", "device=cpu", "workers=1"]
        words += ["val=False", "plots=False", f"project={out.parent}", f"name={out.name}", "exist_ok=True"]
        self._yolo(place, [*words, *self.flags], out.with_suffix(".log"))
        with (out / "results.csv").open() as file:
            ends = [float(row["time"]) for row in csv.DictReader(file, skipinitialspace=True)]
        of_epoch = -(-int(place.train_tiles * share) // self.batch)
        return [(end - start) / of_epoch for start, end in zip([0.0, *ends], ends, strict=False)]

    def detect(self, place: Place, out: Path) -> dict[str, Detections]:
        words = ["predict", f"model={out / 'weights' / 'last.pt'}", f"imgsz={SIZE}", "device=cpu"]
        words += [f"source={place.tiles / 'val' / 'images'}", "conf=0.01", "max_det=1000", "save=False"]
        words += ["save_txt=True", "save_conf=True", f"project={out}", "name=found", "exist_ok=True"]
        self._yolo(place, words, out.parent / f"{out.name}-test.log")
        found = {}
        for path in (out / "found" / "labels").glob("*.txt"):
            rows = np.loadtxt(path, ndmin=2)
            quads = rows[:, 1:9] * SIZE
            found[path.stem] = _detections(boxes.from_quads(quads), rows[:, 9], rows[:, 0])
        return found

    def _yolo(self, place: Place, words: list[str], log: Path) -> None:
        python = place.interpreters[self.needs]
        place.call([str(Path(python).with_name("yolo")), "obb", *words], log)


def _detections(rows: Any, scores: Any, labels: Any) -> Detections:
    canonical = boxes.canonical(np.asarray(rows, np.float64).reshape(-1, 5))
    return Detections(
        canonical.astype(np.float32), np.asarray(scores, np.float32), np.asarray(labels).astype(np.int32)
    )


LITE = ("--backbone", "tf_efficientnet_lite0", "--weights", LITE_WEIGHTS, "--frozen-stages", "1")
LITE += ("--mean", "127,127,127", "--std", "128,128,128")
THEIR_R50 = {"backbone": {"init_cfg": None}}
THEIR_LITE = {
    "backbone": {
        "_delete_": True,
        "type": "RgflBackbone",
        "name": "tf_efficientnet_lite0",
        "weights": LITE_WEIGHTS,
        "frozen_stages": 1,
    },
    "neck": {"in_channels": [40, 112, 320], "start_level": 0},
    "data_preprocessor": {"mean": [127.0] * 3, "std": [128.0] * 3},
}
ROW = ("--recipe", "rgfl_r50_dota_1x", "--warmup-steps", str(WARMUP))
GFL = ("--recipe", "gfl_r50_dota_1x", "--warmup-steps", str(WARMUP))
LIGHT = ("--recipe", "gfl_lite")
YOLO = ("model=yolo11n-obb.yaml",)
NO_WEIGHTS = ("--no-pretrained", "--weights", "")

R50_GROUP = "ResNet-50, pyramid of 256 channels, heads of 4 convolutions"
LITE_GROUP = "EfficientNet-Lite0 from ImageNet, pyramid of 256 channels, heads of 4 convolutions"
LIGHT_GROUP = "light detectors"
STEP: tuple[Contender, ...] = (
    Mmrotate("mmrotate rotated ATSS R50", 2, "rotated-IoU loss", model=THEIR_R50, group=R50_GROUP),
    Ours("rgfl_r50_dota_1x", 2, "rotated-IoU loss", (*ROW, *NO_WEIGHTS), group=R50_GROUP),
    Ours("gfl_r50_dota_1x", 2, "full GFL losses", (*GFL, *NO_WEIGHTS), group=R50_GROUP),
    Ultralytics("yolo11n-obb", 8, "", YOLO, group=LIGHT_GROUP),
    Ours("gfl_lite", 8, "", LIGHT, group=LIGHT_GROUP),
)
LEARN: tuple[Contender, ...] = (
    Mmrotate("mmrotate rotated ATSS", 2, "rotated-IoU loss", model=THEIR_LITE, group=LITE_GROUP),
    Ours("gfl_r50_dota_1x", 2, "full GFL losses", (*GFL, *LITE), group=LITE_GROUP),
    Ultralytics("yolo11n-obb", 8, "random weights", YOLO, group=LIGHT_GROUP),
    Ours("gfl_lite", 8, "random weights", (*LIGHT, *NO_WEIGHTS, "--frozen-stages", "0"), group=LIGHT_GROUP),
    Ours("gfl_lite", 8, "backbone from ImageNet", LIGHT, group=LIGHT_GROUP),
)


def prepare(data: Path, place: Place) -> None:
    """The same tiles for all: what is left of objects cut by a border is taken out, as rgfl does anyway."""
    if (place.yolo / "data.yaml").is_file():
        return
    cut = place.work / "cut"
    command = ["--data", str(data), "--out", str(cut), "--size", str(SIZE), "--stride", str(STRIDE)]
    if tiling.main([*command, "--cut", "whole", "--keep-empty"]):
        raise errors.InputError(f"--data {data} cannot be tiled")
    mark = f" {tiling.DIFFICULT_CUT}"
    for split in ("train", "val"):
        for label in sorted((cut / split / "labelTxt").glob("*.txt")):
            lines = [line for line in label.read_text().splitlines() if not line.endswith(mark)]
            if split == "train" and not lines:
                continue
            image = cut / split / "images" / f"{label.stem}.png"
            for folder in ("images", "labelTxt"):
                (place.tiles / split / folder).mkdir(parents=True, exist_ok=True)
            atomic.write_text(place.tiles / split / "labelTxt" / label.name, "".join(f"{x}\n" for x in lines))
            target = place.tiles / split / "images" / image.name
            if not target.exists():
                target.hardlink_to(image)
    names = (name for split in ("train", "val") for name in find_classes(place.tiles / split / "labelTxt"))
    atomic.write_text(place.tiles / "classes.txt", "".join(f"{name}\n" for name in dict.fromkeys(names)))
    command = ["--from", "dota", "--to", "yolo-obb", "--data", str(place.tiles), "--out", str(place.yolo)]
    if convert.main(command):
        raise errors.InputError(f"{place.tiles} cannot be converted")


def step(place: Place, rounds: int, steps: int) -> None:
    """Seconds of a step, system by system and round after round."""
    for turn in range(rounds):
        for contender in _known(STEP, place):
            result = place.work / f"step-{_slug(contender)}-{turn}.json"
            if result.is_file():
                continue
            print(f"round {turn + 1} of {rounds}: {contender.name}", flush=True)
            out = place.work / "runs" / result.stem
            shutil.rmtree(out, ignore_errors=True)
            seconds = contender.train(place, out, steps)
            record = {
                "name": contender.name,
                "seconds": statistics.median(seconds[contender.settled]),
                "all": seconds,
            }
            atomic.write_text(result, json.dumps({**record, **_facts(contender, place)}))


def learn(data: Path, place: Place, steps: int) -> None:
    """AP on the full val images after so many steps."""
    truth = read_label_folder(data / "val" / "labelTxt", place.classes)
    for contender in _known(LEARN, place):
        result = place.work / f"learn-{_slug(contender)}.json"
        if result.is_file():
            continue
        print(f"{contender.name} ({contender.note}): {steps} steps", flush=True)
        out = place.work / "runs" / result.stem
        trained = out.with_suffix(".seconds.json")
        if not trained.is_file():
            shutil.rmtree(out, ignore_errors=True)  # of a call that was stopped
            atomic.write_text(trained, json.dumps(contender.train(place, out, steps)))
        seconds = json.loads(trained.read_text())
        found = contender.detect(place, out)
        score = evaluate_detections(merged(found), truth, place.classes)
        record = {
            "name": contender.name,
            "note": contender.note,
            "steps": steps,
            "batch": contender.batch,
            "step_seconds": statistics.median(seconds),
            "objects": {name: facts["ground_truth"] for name, facts in score.counts.items()},
            "ap": score.record()["classes"],
        }
        atomic.write_text(result, json.dumps({**record, **_facts(contender, place)}))


def merged(found: Mapping[str, Detections]) -> dict[str, Detections]:
    """From tiles to images, with rotated NMS in the overlaps."""
    parts: dict[str, list[Part]] = {}
    for name, detections in found.items():
        match = TILE.fullmatch(name)
        if match is None:
            raise errors.InputError(f"{name}: not the name of a tile")
        part = Part(detections, float(match["x"]), float(match["y"]))
        parts.setdefault(match["image"], []).append(part)
    return {image: merge(of_image) for image, of_image in parts.items()}


def report(work: Path, out: Path | None, remarks: Sequence[str] = ()) -> None:
    """Both tables of what has been measured so far."""
    timed = [json.loads(path.read_text()) for path in sorted(work.glob("step-*.json"))]
    learned = [json.loads(path.read_text()) for path in sorted(work.glob("learn-*.json"))]
    if not timed and not learned:
        raise errors.InputError(f"--work {work}: nothing measured yet; run `step` and `learn` first")
    record = {**(learned + timed)[-1]["circumstances"], "step": [], "learn": learned, "remarks": [*remarks]}
    for group, members in _groups(STEP):
        first: list[float] = []
        for contender in members:
            seconds = [one["seconds"] for one in timed if one["slug"] == _slug(contender)]
            if not seconds:
                continue
            first = first or seconds
            ratios = [own / other for own, other in zip(seconds, first, strict=False)]
            facts = {"seconds": seconds, "ratios": ratios, "batch": contender.batch, "note": contender.note}
            record["step"].append({"group": group, "name": contender.name, **facts})
    text = describe(record)
    print(text)
    if out:
        print(f"written: {machine.write_record(out, 'side-by-side', record, text)} and .md")


def describe(record: Mapping[str, Any]) -> str:
    """The result file."""
    hardware, versions = record["hardware"], record["versions"]
    others = ", ".join(f"{name} {version}" for name, version in record["others"].items())
    lines = [
        f"# Training side by side, {record['date'][:10]}",
        "",
        f"{hardware['cpu']}, {hardware['cores']} cores, no GPU; torch {versions['torch']}, {others}; tiles "
        f"of {SIZE}², {record['threads']} threads and one worker process each.",
        "",
        *(__doc__ or "").split("\n\n")[1].split("\n"),
        "",
        "## Seconds a step",
        "",
        "| detector | batch | | s a step | times the first of its group |",
        "|---|---:|---|---:|---:|",
    ]
    for row in record["step"]:
        ratios = f"{statistics.median(row['ratios']):.2f}"
        if len(row["ratios"]) > 1:
            ratios += f" ({min(row['ratios']):.2f} to {max(row['ratios']):.2f})"
        seconds = statistics.median(row["seconds"])
        lines.append(f"| {row['name']} | {row['batch']} | {row['note']} | {seconds:.2f} | {ratios} |")
    lines += ["", "## AP after equal steps", ""]
    for group, members in _groups(LEARN):
        rows = {one["slug"]: one for one in record["learn"]}
        present = [rows[_slug(member)] for member in members if _slug(member) in rows]
        if not present:
            continue
        named = [name for name, count in present[0]["objects"].items() if count]
        objects = ", ".join(f"{present[0]['objects'][name]} {name}" for name in named)
        lines += [
            f"**{group[0].upper()}{group[1:]}**, {present[0]['steps']} steps of {present[0]['batch']} tiles. "
            f"Val has {objects}; the means are over these classes.",
            "",
            "| detector | weights and loss | AP50 | AP75 | mAP | "
            + " | ".join(f"{n} AP75" for n in named)
            + " |",
            "|---|---|---:|---:|---:|" + "---:|" * len(named),
        ]
        for row in present:
            of_class = {name: list(row["ap"][name].values()) for name in named}
            at = {key: [row["ap"][name][key] for name in named] for key in ("0.50", "0.75")}
            means = [statistics.fmean(at["0.50"]), statistics.fmean(at["0.75"])]
            means.append(statistics.fmean(statistics.fmean(values) for values in of_class.values()))
            cells = [row["name"], row["note"], *(f"{100 * value:.1f}" for value in [*means, *at["0.75"]])]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    for text in [*(__doc__ or "").strip().split("\n\n")[2:], *record["remarks"]]:
        lines += [text, ""]
    return "\n".join(lines)


def _groups(contenders: tuple[Contender, ...]) -> list[tuple[str, list[Contender]]]:
    names = dict.fromkeys(contender.group for contender in contenders)
    return [(name, [one for one in contenders if one.group == name]) for name in names]


def _known(contenders: tuple[Contender, ...], place: Place) -> list[Contender]:
    """Those whose interpreter was given."""
    return [one for one in contenders if not one.needs or one.needs in place.interpreters]


def _slug(contender: Contender) -> str:
    return re.sub(r"[^a-z0-9]+", "-", f"{contender.name} {contender.note}".lower()).strip("-")


def _facts(contender: Contender, place: Place) -> dict[str, Any]:
    """What belongs to every measurement: who, when, on what, and the versions of all."""
    others = {}
    for name, package in (("mmrotate", "onedl-mmrotate"), ("ultralytics", "ultralytics")):
        if name in place.interpreters:
            find = f"import importlib.metadata as m; print(m.version({package!r}), m.version('torch'))"
            command = [place.interpreters[name], "-c", find]
            version, torch_version = subprocess.run(
                command, check=True, capture_output=True, text=True
            ).stdout.split()
            others[package] = f"{version} (torch {torch_version})"
    circumstances = {**machine.circumstances(), "others": others, "threads": place.threads}
    return {"slug": _slug(contender), "circumstances": circumstances}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("step", "learn", "report"))
    parser.add_argument("--data", type=Path, metavar="DIR", help="train/ and val/ in DOTA's format")
    parser.add_argument("--work", type=Path, required=True, metavar="WORK", help="tiles, runs and results")
    parser.add_argument("--mmrotate", metavar="PYTHON", help="interpreter with onedl-mmrotate and rgfl")
    parser.add_argument("--ultralytics", metavar="PYTHON", help="interpreter with ultralytics")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="of each (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of step (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="a training (default: 12 of step, 400 of learn)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="of report: dated JSON and Markdown file")
    parser.add_argument(
        "--remark", action="append", default=[], metavar="TEXT", help="of report: a line more"
    )
    arguments = parser.parse_args(argv)
    return errors.run("side_by_side", lambda: run(arguments))


def run(arguments: argparse.Namespace) -> int:
    if arguments.what == "report":
        report(arguments.work, arguments.out, arguments.remark)
        return 0
    if arguments.data is None:
        raise errors.InputError("--data DIR is missing")
    given = {"mmrotate": arguments.mmrotate, "ultralytics": arguments.ultralytics}
    interpreters = {name: python for name, python in given.items() if python}
    place = Place(arguments.work.absolute(), arguments.threads, interpreters)
    prepare(arguments.data, place)
    if arguments.what == "step":
        step(place, arguments.rounds, arguments.steps or 12)
    else:
        learn(arguments.data, place, arguments.steps or 400)
    return 0


if __name__ == "__main__":
    sys.exit(main())
