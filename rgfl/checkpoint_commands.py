"""What `python -m rgfl.checkpoint` does.

python -m rgfl.checkpoint import epoch_12.pth --out best.pt                  of the original repository
python -m rgfl.checkpoint spec best.pt --score-threshold 0.01 --out other.pt   the same weights otherwise
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rgfl import checkpoint, checks, errors, foreign
from rgfl.checkpoint import CheckpointError
from rgfl.dota.labels import read_classes
from rgfl.nn.state import some
from rgfl.spec import DetectorSpec, SpecError

# Of a spec what is free to change: what the weights were trained for is not.
FREE = {
    "score_threshold": ("--score-threshold", float, "X", "keep only detections that score more than this"),
    "iou_threshold": ("--nms-iou", float, "X", "rotated NMS within a tile suppresses above this IoU"),
    "level_topk": (
        "--level-topk",
        int,
        "N",
        "points kept a level before NMS; 0: all; TensorRT takes 3840 at most",
    ),
    "max_detections": ("--max-detections", int, "N", "detections kept a tile"),
    "image_size": ("--test-size", int, "N", "side of the tile, pixels; a multiple of the coarsest stride"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 0, or 2 after a one-line error."""
    parser = argparse.ArgumentParser(prog="python -m rgfl.checkpoint")
    commands = parser.add_subparsers(dest="command", required=True, metavar="import | spec")
    command = commands.add_parser(
        "import",
        help="make a checkpoint of a file of the original rgfl repository",
        description="Make a checkpoint of a .pth file of the original rgfl repository (ResNet-50). "
        "No code of the file is run.",
    )
    command.add_argument("file", type=Path, metavar="FILE", help="epoch_12.pth, say")
    command.add_argument(
        "--classes",
        metavar="NAMES",
        help="1.0, 1.5, 2.0, a file of names, or a,b,c, in the model's order [the file's own]",
    )
    command.set_defaults(run=import_file)
    command = commands.add_parser(
        "spec",
        help="make a checkpoint of the same weights with other thresholds or another tile size",
        description="Make a checkpoint of the same weights whose detections are chosen otherwise, or that "
        "sees tiles of another size. What is exported from it has these settings, too.",
    )
    command.add_argument("file", type=Path, metavar="FILE", help="best.pt, say")
    for name, (flag, kind, metavar, text) in FREE.items():
        command.add_argument(flag, dest=name, type=kind, metavar=metavar, help=text)
    command.set_defaults(run=change_spec)
    for command in commands.choices.values():
        command.add_argument(
            "--out", type=Path, required=True, metavar="best.pt", help="the checkpoint to write"
        )
    options = parser.parse_args(arguments)
    return errors.run(options.command, lambda: run(options), interrupted="interrupted; nothing was written")


def run(options: argparse.Namespace) -> int:
    """The command behind `main`, with parsed arguments."""
    if options.out.suffix != ".pt":
        raise CheckpointError(f"--out {options.out}: expected a name that ends in .pt")
    checks.new_file(options.out, "--out", keep=[options.file])
    options.run(options)
    return 0


def import_file(options: argparse.Namespace) -> None:
    """What `import` does."""
    names = read_classes(options.classes) if options.classes else None
    imported = foreign.import_detector(options.file, names)
    detector = imported.detector
    checkpoint.save(options.out, detector.spec, detector.config, detector.state_dict())
    if imported.unused:
        keys = errors.printable(some(imported.unused))
        print(f"{len(imported.unused)} keys without a place here: {keys}")
    spec = detector.spec
    count = len(detector.state_dict())
    print(f"{options.out}: {count} tensors, spec {spec.digest}, classes {', '.join(spec.classes)}")


def change_spec(options: argparse.Namespace) -> None:
    """What `spec` does."""
    record = checkpoint.load(options.file)
    try:
        before = DetectorSpec.from_json(record["spec"])
        given = {name: value for name in FREE if (value := getattr(options, name)) is not None}
        if "image_size" in given:
            given["image_size"] = (given["image_size"],) * 2
        spec = replace(before, **given)
    except SpecError as error:
        raise CheckpointError(f"{options.file}: {error}") from error
    if spec == before:
        flags = ", ".join(flag for flag, *_ in FREE.values())
        raise errors.InputError(f"{options.file} is like this already; change something by {flags}")
    if spec.image_size != before.image_size and record["model"].get("head_norm") == "batch":
        print(
            f"warning: trained on tiles of {before.tile_side} px; BatchNorm's statistics on the coarsest "
            "levels, a few cells wide, fit that size only: expect false detections"
        )
    # Neither the AP, which was that of the former settings, nor what a resume needs.
    record.pop("training", None)
    checkpoint.write(options.out, {**record, "spec": spec.to_json(), "result": {}})
    for name in given:
        print(f"{name}: {getattr(before, name)} before, {getattr(spec, name)} now")
    print(f"{options.out}: spec {spec.digest}")
