"""What each part of Generalized Focal Loss brings: the same data, seed and schedule, one change at a time.

    python benchmarks/ablation.py --recipe gfl_r50_dota_1x --data DIR --out RUNS --seeds 3 --record benchmarks
    python benchmarks/ablation.py --recipe demo --data DIR --out RUNS -- --epochs 4 --backbone-lr 0.5

What stands behind `--` goes to every training as it is. Each training is a run of rgfl.train in
RUNS/VARIANT-seedN with one evaluation, at its end, on all of val by the official AP: no best of several is
picked. Stopped at any moment, the same command goes on in the middle of the training it was at; trainings
that are done are read and not repeated. One under the same name with other settings or data is an error.
"""

from __future__ import annotations

import argparse
import datetime
import json
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rgfl import train
from rgfl.recipes import Recipe

# All that a variant changes of the base recipe. Both modes name each field in which their papers differ, so
# that the base recipe's own mode decides nothing.
INTEGRAL = {"mode": "integral", "reg_max": 8, "anchor_scale": 4.0, "iou_loss_weight": 1.0, "quality": False}
GFL = {
    "mode": "gfl",
    "reg_max": 16,
    "anchor_scale": 8.0,
    "iou_loss_weight": 2.0,
    "quality": False,
    "dfl_loss_weight": 0.25,
    "angle_loss_weight": 0.25,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "integral": ("the published row: GFL's regression, focal loss", INTEGRAL),
    "gfl": ("full GFL: quality focal loss, DFL, circular angle", GFL),
    "gfl-quality": ("gfl with GFLv2's quality predictor", {**GFL, "quality": True}),
    "gfl-no-dfl": (
        "gfl whose distributions get no loss of their own",
        {**GFL, "dfl_loss_weight": 0.0, "angle_loss_weight": 0.0},
    ),
}
BY_DEFAULT = ("integral", "gfl", "gfl-quality")
MEASURES = {"ap50": "AP50", "ap75": "AP75", "map": "mAP"}


class AblationError(ValueError):
    """The trainings cannot be compared; one line that says why and what to do."""


@dataclass(frozen=True)
class Training:
    """One cell of the plan."""

    variant: str
    seed: int
    out: Path
    command: list[str]  # arguments of rgfl.train
    recipe: Recipe  # what they mean


def plan(arguments: argparse.Namespace) -> list[Training]:
    """Every training in order: seed by seed, so that a run cut short compares what it has."""
    trainings = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for variant in arguments.variants:
            out = arguments.out / f"{variant}-seed{seed}"
            command = ["--recipe", arguments.recipe, "--data", str(arguments.data), "--out", str(out)]
            command += arguments.flags
            epochs = train.parse(command)[0].schedule.epochs
            # Last, so that they win over the flags that are the same for all.
            fixed = {**VARIANTS[variant][1], "seed": seed, "eval_every": epochs, "eval_images": 0}
            command += [flag for name, value in fixed.items() for flag in as_flag(name, value)]
            trainings.append(Training(variant, seed, out, command, train.parse(command)[0]))
    return trainings


def as_flag(name: str, value: Any) -> list[str]:
    """The command line's words for a field of a recipe."""
    words = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{words}" if value else f"--no-{words}"]
    return [f"--{words}", str(value)]


def outcome(training: Training, data: str) -> dict[str, Any] | None:
    """What a training came to, from its log; None if it is not done.

    Raises:
        AblationError: it is of other settings or data.
    """
    path = training.out / "log.jsonl"
    if not path.is_file():
        return None
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break  # the line that was being written when the run was killed
    begun = next((record for record in reversed(records) if record["kind"] == "run"), None)
    if begun is None:
        return None
    wanted = {**training.recipe.result_fields(), "data": data}
    if other := [name for name, value in wanted.items() if begun.get(name) != value]:
        raise AblationError(
            f"{training.out}: a training of other {', '.join(other[:4])}; give the same flags and data, or "
            "another --out"
        )
    evaluations = [record for record in records if record["kind"] == "eval"]
    if not evaluations:  # the only one is at the end
        return None
    steps = [record for record in records if record["kind"] == "step"]
    last = evaluations[-1]
    return {
        "variant": training.variant,
        "seed": training.seed,
        **{name: last[name] for name in MEASURES},
        "classes": last["classes"],
        "images": last["images"],
        "steps": last["step"],
        "step_seconds": statistics.median(record["step_s"] for record in steps),
        "device": begun["device"],
    }


def summarise(outcomes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a variant, in order of appearance: mean and spread of each measure over the seeds.

    `against` is the difference of mAP to the first variant, seed by seed, over the seeds that both have;
    spreads are sample standard deviations, None of fewer than two seeds.
    """
    by_variant: dict[str, dict[int, Mapping[str, Any]]] = {}
    for one in outcomes:
        by_variant.setdefault(one["variant"], {})[one["seed"]] = one
    rows: list[dict[str, Any]] = []
    for variant, by_seed in by_variant.items():
        row: dict[str, Any] = {"variant": variant, "seeds": sorted(by_seed)}
        for name in MEASURES:
            row[name] = _spread([one[name] for one in by_seed.values()])
        row["step_seconds"] = statistics.median(one["step_seconds"] for one in by_seed.values())
        first = by_variant[next(iter(by_variant))]
        if by_seed is not first:
            both = sorted(first.keys() & by_seed.keys())
            row["against"] = _spread([by_seed[seed]["map"] - first[seed]["map"] for seed in both])
        rows.append(row)
    return rows


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    return {
        "mean": statistics.fmean(values) if values else None,
        "spread": statistics.stdev(values) if len(values) > 1 else None,
    }


def shown(value: Mapping[str, float | None], sign: str = "") -> str:
    """Percent, with ± where there is a spread."""
    if value["mean"] is None:
        return "–"
    text = f"{100 * value['mean']:{sign}.2f}"
    return text if value["spread"] is None else f"{text} ± {100 * value['spread']:.2f}"


def describe(report: Mapping[str, Any]) -> str:
    """The result file: what was run, the table, and what it can and cannot say."""
    rows, data, hardware = report["rows"], report["data"], report["hardware"]
    machine = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in hardware.items())
    lines = [
        f"# Ablation, {report['date']}",
        "",
        f"{machine}. torch {report['versions'].get('torch', 'unknown')}.",
        "",
        f"    python benchmarks/ablation.py {report['command']}",
        "",
        f"{data['train']} training and {data['val']} validation images of {data['classes']} classes "
        f"({data['objects']} objects to find); {report['steps']} steps of {report['batch']} tiles of "
        f"{report['tile_size']}² each. Official 11-point AP of the last weights on full images, in percent.",
        "",
        f"| variant | what it is | AP50 | AP75 | mAP | mAP − {rows[0]['variant']} | seeds | s a step |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        cells = [row["variant"], VARIANTS[row["variant"]][0], *(shown(row[name]) for name in MEASURES)]
        cells.append(shown(row["against"], "+") if "against" in row else "")
        cells += [str(len(row["seeds"])), f"{row['step_seconds']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    most = max(len(row["seeds"]) for row in rows)
    lines += [""]
    if most > 1:
        lines += ["± is the standard deviation over the seeds; the difference is taken seed by seed.", ""]
    else:
        lines += ["One seed: how far another seed would move a number is not known from this table.", ""]
    if report["steps"] < 5000:
        lines += [
            f"It is a small run: {report['steps']} steps show that all variants train and how soon each "
            "learns, not which ends best. Recipes are not to be chosen by it.",
            "",
        ]
    for remark in report["remarks"]:
        lines += [remark, ""]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 cannot (one line says why), 128 + signal when stopped by one."""
    argv = list(sys.argv[1:] if argv is None else argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="variants:\n" + "\n".join(f"  {name:<14}{text}" for name, (text, _) in VARIANTS.items()),
    )
    parser.add_argument(
        "--recipe", required=True, metavar="NAME", help="what all variants share, as rgfl.train takes it"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="holds train/ and val/")
    parser.add_argument("--out", type=Path, required=True, metavar="RUNS", help="folder of the trainings")
    parser.add_argument(
        "--variants",
        type=lambda text: text.split(","),
        default=list(BY_DEFAULT),
        metavar="A,B,…",
        help=f"which, the first is what others are compared with [{','.join(BY_DEFAULT)}]",
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="trainings of each variant [1]")
    parser.add_argument("--first-seed", type=int, default=0, metavar="N", help="[0]")
    parser.add_argument("--record", type=Path, metavar="DIR", help="folder for the dated result files [RUNS]")
    parser.add_argument(
        "--remark", action="append", default=[], metavar="TEXT", help="a line for the result file"
    )
    arguments = parser.parse_args(argv[:cut])
    arguments.flags = argv[cut + 1 :]
    if unknown := [name for name in arguments.variants if name not in VARIANTS]:
        parser.error(f"--variants: {unknown[0]!r} is none of {', '.join(VARIANTS)}")
    if arguments.seeds < 1:
        parser.error(f"--seeds: expected 1 or more, got {arguments.seeds}")
    return run(arguments)


def run(arguments: argparse.Namespace) -> int:
    """Train what is not done yet, then write the table."""
    from rgfl.dataset import read_dataset
    from rgfl.loop import ERRORS
    from rgfl.trt_runtime import machine

    try:
        trainings = plan(arguments)
        dataset = read_dataset(arguments.data, train.parse(trainings[0].command)[1].classes)
        digest = dataset.digest()
        done = [outcome(training, digest) for training in trainings]
        for number, training in enumerate(trainings):
            title = f"[{number + 1}/{len(trainings)}] {training.variant}, seed {training.seed}"
            if done[number] is not None:
                print(f"{title}: done before")
                continue
            print(f"{title}: {training.out}", flush=True)
            code = _train(training.command)
            if code:
                print(
                    f"{title}: ended with status {code}; the same command goes on from there", file=sys.stderr
                )
                return code
            done[number] = outcome(training, digest)
            if done[number] is None:
                print(f"{title}: not at its end yet; the same command goes on from there", file=sys.stderr)
                return 1
    except (*ERRORS, AblationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1

    outcomes = [one for one in done if one is not None]
    first = trainings[0].recipe
    counted = [~(picture.objects.difficult > 0) for picture in dataset.val]
    report = {
        "date": datetime.date.today().isoformat(),
        # Without the load: this is the moment of the table, not of the trainings.
        "hardware": {k: v for k, v in machine.hardware().items() if k != "load_average"},
        "versions": machine.versions(),
        "command": " ".join(_without_places(arguments)),
        "recipe": arguments.recipe,
        "flags": arguments.flags,
        "data": {
            "digest": digest,
            "train": len(dataset.train),
            "val": len(dataset.val),
            "classes": len(dataset.classes),
            "objects": int(sum(mask.sum() for mask in counted)),
        },
        "steps": outcomes[0]["steps"],
        "batch": first.schedule.batch,
        "tile_size": first.data.tile_size,
        "variants": {name: VARIANTS[name][1] for name in arguments.variants},
        "rows": summarise(outcomes),
        "trainings": outcomes,
        "remarks": arguments.remark,
    }
    text = describe(report)
    print(f"\n{text}")
    print(f"{machine.write_record(arguments.record or arguments.out, 'ablation', report, text)}, .md")
    return 0


def _train(command: Sequence[str]) -> int:
    """Exit status of one training in a process of its own, whose bar and messages pass through."""
    process = subprocess.Popen([sys.executable, "-m", "rgfl.train", *command])
    # A training must not outlive this script, whose next call would start another in the same folder.
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue  # Ctrl-C reached the training too, which saves its step and ends
    finally:
        signal.signal(signal.SIGTERM, before)


def _without_places(arguments: argparse.Namespace) -> list[str]:
    """The command for somebody else's folders."""
    words = ["--recipe", arguments.recipe, "--data", "DIR", "--out", "RUNS"]
    words += ["--variants", ",".join(arguments.variants), "--seeds", str(arguments.seeds)]
    if arguments.first_seed:
        words += ["--first-seed", str(arguments.first_seed)]
    return [*words, *(["--", *arguments.flags] if arguments.flags else [])]


if __name__ == "__main__":
    sys.exit(main())
