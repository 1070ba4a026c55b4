"""Synthetic sets on disk, and their command line."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
from tqdm import tqdm

from rgfl import atomic, errors
from rgfl.boxes import to_quads
from rgfl.dota import labels
from rgfl.dota.synthetic.picture import Scene, render
from rgfl.dota.synthetic.settings import (
    CLASSES,
    DIFFICULTIES,
    EASY_CLASSES,
    FORMAT,
    SPLITS,
    Settings,
    SyntheticError,
)
from rgfl.processes import each, usable_cores

FEW = 8  # scenes that are drawn sooner than worker processes begin


def label_text(scene: Scene, classes: Sequence[str]) -> str:
    """The scene's DOTA labelTxt."""
    lines = ["imagesource:synthetic", f"gsd:{scene.gsd:.6f}"]
    for quad, label, difficult in zip(to_quads(scene.boxes), scene.labels, scene.difficult, strict=True):
        corners = " ".join(f"{value:.2f}" for value in quad)
        lines.append(f"{corners} {classes[label]} {difficult}")
    return "\n".join(lines) + "\n"


def _paths(out: Path, split: str, index: int, jpeg: bool) -> tuple[Path, Path]:
    name = f"{split}_{index:05d}"
    folder = out / split
    return folder / "images" / f"{name}.{'jpg' if jpeg else 'png'}", folder / "labelTxt" / f"{name}.txt"


# Grain does not compress: matching strings would cost half the time of a scene for a tenth of its bytes.
_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY]


def _write_scene(job: tuple[str, Settings, str, int]) -> int:
    """Render and write one scene; the label file comes last and marks it complete."""
    out, settings, split, index = job
    cv2.setNumThreads(1)
    scene = render(settings, split, index)
    image_path, label_path = _paths(Path(out), split, index, settings.jpeg)
    options = [cv2.IMWRITE_JPEG_QUALITY, 92] if settings.jpeg else _PNG
    done, data = cv2.imencode(image_path.suffix, scene.image[..., ::-1], options)
    if not done:
        raise SyntheticError(f"{image_path}: OpenCV cannot encode {image_path.suffix}")
    atomic.write_bytes(image_path, data.tobytes())
    atomic.write_text(label_path, label_text(scene, settings.classes))
    return len(scene.boxes)


def _check_folder(out: Path, settings: Settings) -> None:
    """Refuse to mix two sets in one folder."""
    record = out / "synthetic.json"
    # Through JSON, so that tuples compare as the lists that come back.
    wanted = json.loads(json.dumps({"format": FORMAT, **dataclasses.asdict(settings)}))
    if record.exists():
        try:
            found = json.loads(record.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise SyntheticError(f"{record}: not JSON ({error}); give another --out") from error
        if found != wanted:
            different = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
            raise SyntheticError(
                f"{out} holds a set with other settings ({', '.join(different)}): "
                "give another --out, or remove the folder"
            )
    elif any((out / split).exists() for split in SPLITS):
        raise SyntheticError(f"{out} holds images that are not from here: give another --out")
    labels.write_class_file(out / "classes.txt", settings.classes)
    atomic.write_text(record, json.dumps(wanted, indent=2) + "\n")


def generate(
    out: str | Path,
    *,
    train: int = 200,
    val: int = 50,
    large: int = 0,
    settings: Settings | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> int:
    """Write a set; scenes that are already complete stay untouched, also those beyond the numbers asked for.

    Args:
        out: the folder; created if missing.
        train, val, large: numbers of scenes in the three splits.
        settings: what they look like; the default is the demo's.
        workers: processes, None for one per processor.
        progress: show a progress bar on standard error.

    Returns:
        The number of scenes written by this call.

    Raises:
        SyntheticError: the folder holds something else.
        ChildProcessError: a worker was killed.
    """
    settings = settings or Settings()
    counts = {"train": train, "val": val, "large": large}
    for split, count in counts.items():
        if count < 0:
            raise SyntheticError(f"--{split}: expected a number ≥ 0, got {count}")
    if not any(counts.values()):
        raise SyntheticError("--train, --val and --large are all 0, so there is nothing to write")
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SyntheticError(f"--out {out}: cannot be made a folder: {error.strerror}") from error
    _check_folder(out, settings)
    jobs = []
    for split, count in counts.items():
        if not count and split == "large":
            continue
        for name in ("images", "labelTxt"):
            (out / split / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            if not all(path.exists() for path in _paths(out, split, index, settings.jpeg)):
                jobs.append((str(out), settings, split, index))
    if len(jobs) < FEW:
        workers = 1
    elif workers is None:
        workers = usable_cores()
    objects = 0
    with tqdm(total=len(jobs), desc="scenes", unit="scene", disable=not progress or not jobs) as bar:
        for count in each(_write_scene, jobs, workers):
            objects += count
            bar.update()
            bar.set_postfix(objects=objects, refresh=False)
    return len(jobs)


def _parse_size(text: str) -> tuple[int, int]:
    """ "512" or "480x640" (height x width)."""
    try:
        sides = [int(part) for part in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2):
        raise argparse.ArgumentTypeError(f"expected H or HxW such as 512 or 480x640, got {text!r}")
    return sides[0], sides[-1]


def _parse_classes(text: str) -> tuple[str, ...]:
    if text in ("easy", "all"):
        return EASY_CLASSES if text == "easy" else CLASSES
    try:
        return labels.read_classes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def main(arguments: Iterable[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m rgfl.dota.synthetic",
        description="Write aerial-like scenes with exact oriented labels in DOTA's layout.",
    )
    add = parser.add_argument
    add("--out", required=True, help="folder to write; an interrupted run goes on where it stopped")
    add("--train", type=int, default=200, metavar="N", help="training scenes (default: %(default)s)")
    add("--val", type=int, default=50, metavar="N", help="validation scenes (default: %(default)s)")
    add("--large", type=int, default=0, metavar="N", help="large scenes, in OUT/large (default: %(default)s)")
    add("--size", type=_parse_size, default=(512, 512), metavar="H[xW]", help="pixels (default: 512)")
    add("--large-size", type=_parse_size, default=(3000, 4000), metavar="H[xW]", help="(default: 3000x4000)")
    add("--seed", type=int, default=0, help="equal seeds give equal files (default: %(default)s)")
    add("--objects", type=float, default=1.0, metavar="FACTOR", help="density (default: %(default)s)")
    add("--difficulty", choices=[*DIFFICULTIES], default="easy", help="scale, contrast, noise, blur, "
        "occlusion, look-alikes (default: %(default)s)")  # fmt: skip
    add("--classes", type=_parse_classes, default=None, metavar="NAMES", help="names with commas, a file of "
        "them, `easy` for six or `all` for the fifteen of DOTA-v1.0 (default: easy, all with another "
        "difficulty)")  # fmt: skip
    add("--jpeg", action=argparse.BooleanOptionalAction, default=False, help="JPEG instead of PNG files")
    add("--workers", type=int, default=None, metavar="N", help="processes (default: one per processor)")
    add("--progress", action=argparse.BooleanOptionalAction, default=True, help="show a progress bar")
    args = parser.parse_args(None if arguments is None else list(arguments))
    classes = args.classes or (EASY_CLASSES if args.difficulty == "easy" else CLASSES)
    return errors.run("synthetic", lambda: _draw(args, classes), interrupted=errors.GOES_ON)


def _draw(args: argparse.Namespace, classes: tuple[str, ...]) -> int:
    settings = Settings(
        seed=args.seed,
        size=args.size,
        large_size=args.large_size,
        density=args.objects,
        difficulty=args.difficulty,
        classes=classes,
        jpeg=args.jpeg,
    )
    written = generate(
        args.out,
        train=args.train,
        val=args.val,
        large=args.large,
        settings=settings,
        workers=args.workers,
        progress=args.progress,
    )
    found = {split: len([*Path(args.out, split, "labelTxt").glob("*.txt")]) for split in SPLITS}
    scenes = ", ".join(f"{count} {split}" for split, count in found.items() if count)
    print(f"{args.out}: {scenes or 'no'} scenes of {len(classes)} classes, {written} written now")
    return 0
