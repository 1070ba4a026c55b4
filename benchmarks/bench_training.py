"""What a crowded tile costs a training step, 1,000 objects against 10, and a tile of large scenes in the
order of training, as ratios measured in one run.

    python benchmarks/bench_training.py --out benchmarks

The heads and losses are those of the recipes named, on a light backbone so that what depends on the objects
weighs more. Steps with few and with many objects alternate, because a machine's pace drifts, and the ratio is
the median over neighbours. A step is all that a tile's objects cost: their assignment to points, then
network, losses and optimiser. A training does the assignment in the processes that prepare tiles, on one
thread of the CPU each, while the device computes; here it runs before the rest, on one thread too, and is
counted in. "Losses" is forward and backward to the head's outputs.

Tiles of large scenes are made as one worker makes them, with the default cache, in the order of training,
which mixes windows within groups of scenes, and in one that mixes the windows of all.
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from rgfl import boxes
from rgfl.dataset import read_dataset
from rgfl.dota.synthetic import Settings, generate
from rgfl.nn.assign import Targets
from rgfl.nn.detector import Detector, build_detector
from rgfl.recipes import RECIPES
from rgfl.tiles import GROUP_PIXELS, Tiles, list_windows
from rgfl.trt_runtime import machine

FEW, MANY, LIMIT = 10, 1000, 2.0
CLASSES = tuple(f"class-{index}" for index in range(15))  # as many as DOTA 1.0 has
RECIPE_NAMES = ("rgfl_r50_dota_1x", "gfl_r50_dota_1x")
SCENE = 4000  # pixels a side
TILED = ("gfl_r50_dota_1x", "gfl_lite")  # the grid's windows, and random ones with mosaics


def crowd(count: int, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Objects of 8 to 60 pixels anywhere in a tile, as vehicles and ships are."""
    random = np.random.default_rng(seed)
    rows = random.uniform([0, 0, 8, 8, -np.pi], [size, size, 60, 60, np.pi], (count, 5))
    labels = torch.from_numpy(random.integers(0, len(CLASSES), count))
    return torch.from_numpy(boxes.canonical(rows)).float(), labels


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Seconds(NamedTuple):
    """Of one step on one tile."""

    step: float  # with the assignment
    assignment: float
    losses: float


def assign(model: Detector, truth: torch.Tensor, labels: torch.Tensor, size: int) -> tuple[Targets, float]:
    """The targets of one tile and the seconds they took, as in a process that prepares tiles."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.perf_counter()
    targets = model.assigner([truth], [labels], (size, size))
    seconds = time.perf_counter() - start
    torch.set_num_threads(threads)
    return targets, seconds


def seconds_of_step(
    model: Detector,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    objects: int,
    size: int,
    seed: int,
) -> Seconds:
    """A whole step, and two parts of it, on one tile with so many objects."""
    device = images.device
    targets, assignment = assign(model, *crowd(objects, size, seed), size)
    synchronise(device)
    start = time.perf_counter()
    targets = targets.map(lambda tensor: tensor.to(device))
    raw = model(images)
    # The losses end at the head's outputs, whose gradients then go on through the network.
    heads = [level for levels in raw for level in levels]
    ends = [level.detach().requires_grad_() for level in heads]
    cut = iter(ends)
    loose = type(raw)(*(tuple(next(cut) for _ in levels) for levels in raw))
    synchronise(device)
    before = time.perf_counter()
    torch.stack(list(model.losses(loose, targets).values())).sum().backward()
    synchronise(device)
    losses = time.perf_counter() - before
    torch.autograd.backward(heads, [level.grad for level in ends])
    torch.nn.utils.clip_grad_norm_(model.parameters(), 35.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    synchronise(device)
    return Seconds(assignment + time.perf_counter() - start, assignment, losses)


def measure(name: str, backbone: str, size: int, repeats: int, device: torch.device) -> dict[str, Any]:
    recipe = RECIPES[name]().replace(backbone=backbone, pretrained=False, weights="", test_size=size)
    torch.manual_seed(0)
    model = build_detector(recipe.model, recipe.spec(CLASSES)).to(device).train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-6)
    images = torch.randn(1, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    times: dict[int, list[Seconds]] = {FEW: [], MANY: []}
    for seed in range(-1, repeats):
        for objects in (FEW, MANY):
            took = seconds_of_step(model, optimizer, images, objects, size, abs(seed))
            if seed >= 0:  # the first of each warms up
                times[objects].append(took)
    middle = {
        objects: Seconds(*(statistics.median(column) for column in zip(*rows, strict=True)))
        for objects, rows in times.items()
    }
    # A step with many over the one with few right before it.
    ratios = [round(many.step / few.step, 3) for few, many in zip(times[FEW], times[MANY], strict=True)]
    return {
        "recipe": name,
        "step_ms": {str(objects): round(row.step * 1e3, 1) for objects, row in middle.items()},
        "assignment_ms": {str(objects): round(row.assignment * 1e3, 1) for objects, row in middle.items()},
        "losses_ms": {str(objects): round(row.losses * 1e3, 1) for objects, row in middle.items()},
        "step_ratio": round(statistics.median(ratios), 3),
        "ratios": ratios,
    }


def write_scenes(folder: Path, count: int) -> None:
    """Training data of so many large scenes, all of them one file: what a tile costs is the same."""
    generate(folder, train=0, val=0, large=1, settings=Settings(large_size=(SCENE, SCENE)), progress=False)
    for kind in ("images", "labelTxt"):
        (scene,) = (folder / "large" / kind).iterdir()
        (folder / "train" / kind).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            os.link(scene, folder / "train" / kind / f"{index}{scene.suffix}")


def measure_tiles(name: str, folder: Path, scenes: int) -> dict[str, Any]:
    """Milliseconds a tile, over a group of scenes in the order of training and in one over all windows."""
    recipe, dataset = RECIPES[name](), read_dataset(folder, with_val=False)
    cv2.setNumThreads(1)

    def milliseconds(over_all: bool, skipped: int, count: int) -> float:
        tiles = Tiles(
            dataset.train,
            dataset.classes,
            recipe.data,
            recipe.augment,
            recipe.schedule.seed,
            recipe.run.cache_mb,
        )
        order = np.random.default_rng(0).permutation(len(tiles)) if over_all else tiles.order(0)
        start = 0.0
        for place, index in enumerate(order[: skipped + count].tolist()):
            start = time.perf_counter() if place == skipped else start
            tiles.tile(0, index)
        return 1e3 * (time.perf_counter() - start) / count

    # All of a group, from an empty cache; of the other order, tiles once the cache is full.
    windows = len(list_windows(dataset.train, recipe.data)) // scenes * (GROUP_PIXELS // SCENE**2)
    groups, over_all = milliseconds(False, 0, windows), milliseconds(True, 20, 40)
    return {
        "recipe": name,
        "groups_ms": round(groups, 1),
        "all_ms": round(over_all, 1),
        "ratio": round(over_all / groups, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="tf_efficientnet_lite0", help="timm model name")
    parser.add_argument("--size", type=int, default=1024, help="side of the tile, a multiple of 128")
    parser.add_argument(
        "--repeats", type=int, default=7, help="steps of each kind, of which the median counts"
    )
    parser.add_argument(
        "--scenes", type=int, default=24, help=f"scenes of {SCENE}² to time tiles of; 0: none"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="folder for the dated result files; none by default")
    parser.add_argument("--check", action="store_true", help=f"exit with 1 where a ratio exceeds {LIMIT:g}")
    options = parser.parse_args()

    device = torch.device(options.device)
    results = [
        measure(name, options.backbone, options.size, options.repeats, device) for name in RECIPE_NAMES
    ]
    with tempfile.TemporaryDirectory() as folder:
        tiles = []
        if options.scenes:
            write_scenes(Path(folder), options.scenes)
            tiles = [measure_tiles(name, Path(folder), options.scenes) for name in TILED]
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    hardware, versions = machine.hardware(), machine.versions()
    report = {
        "date": today,
        "command": " ".join(["python", "benchmarks/bench_training.py", *sys.argv[1:]]),
        "device": options.device,
        "threads": torch.get_num_threads(),
        "hardware": hardware,
        "versions": versions,
        "backbone": options.backbone,
        "tile": options.size,
        "objects": [FEW, MANY],
        "statistic": f"median of {options.repeats} steps of each kind, interleaved, after one to warm up",
        "results": results,
        "scenes": options.scenes,
        "tiles": tiles,
    }
    text = "\n".join(
        [
            f"# Training step by number of objects, {today}",
            "",
            f"{hardware['gpu'] if device.type == 'cuda' else hardware['cpu']}, {hardware['cores']} cores, "
            f"{torch.get_num_threads()} threads, load average {hardware.get('load_average', 'unknown')}; "
            f"Python {versions['python']}, torch {versions['torch']}.",
            f"One tile of {options.size}², {len(CLASSES)} classes, head and losses of the recipe on "
            f"{options.backbone}, FP32; {report['statistic']}.",
            "",
            f"| recipe's head | step, {FEW} objects | step, {MANY:,} | ratio "
            f"| assignment, {FEW} | assignment, {MANY:,} | losses, {FEW} | losses, {MANY:,} |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            *(
                f"| `{row['recipe']}` "
                f"| {row['step_ms'][str(FEW)]:,.0f} ms | {row['step_ms'][str(MANY)]:,.0f} ms "
                f"| {row['step_ratio']:.2f} "
                f"| {row['assignment_ms'][str(FEW)]:.0f} ms | {row['assignment_ms'][str(MANY)]:.0f} ms "
                f"| {row['losses_ms'][str(FEW)]:.0f} ms | {row['losses_ms'][str(MANY)]:.0f} ms |"
                for row in results
            ),
            "",
            "Ratio of steps: median over neighbouring steps. Assignment and losses (forward and backward to",
            "the head's outputs) are parts of the step. A training does the assignment in the processes that",
            "prepare tiles, on one thread of the CPU each, while the device computes; here it is counted in.",
            *(
                [
                    "",
                    f"Tiles of {options.scenes} scenes of {SCENE}² by one process, with the default cache:",
                    "",
                    "| recipe | windows mixed over all scenes | within groups, as in training | ratio |",
                    "| --- | ---: | ---: | ---: |",
                    *(
                        f"| `{row['recipe']}` | {row['all_ms']:,.0f} ms a tile "
                        f"| {row['groups_ms']:,.0f} ms a tile | {row['ratio']:.1f} |"
                        for row in tiles
                    ),
                ]
                if tiles
                else []
            ),
        ]
    )
    print(text)
    if options.out:
        print(f"{machine.write_record(options.out, 'training', report, text)}, .md")
    return 1 if options.check and any(row["step_ratio"] > LIMIT for row in results) else 0


if __name__ == "__main__":
    sys.exit(main())
