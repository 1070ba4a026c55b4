"""Official DOTA Task 1 evaluation of a model on full images, or of any detector's result files.

    python trt_runtime/eval_dota.py --model model.onnx --images val/images --labels val/labelTxt
    python trt_runtime/eval_dota.py --task1 results/ --labels val/labelTxt --version 1.0

Images are tiled on the fly, detections merged with rotated NMS, and scored as the official devkit
does (rgfl.dota.average_precision). Every model, whatever its backend, goes through the same code.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rgfl import atomic, checks, draw, errors
from rgfl.detections import Detections
from rgfl.dota import average_precision, mistakes
from rgfl.dota.average_precision import Result, evaluate_detections
from rgfl.dota.journal import follow, packed, resume, stamp, unpacked
from rgfl.dota.labels import (
    CLASSES,
    TEST_IMAGES,
    Objects,
    UnknownClassError,
    count_others,
    find_classes,
    fits_task1,
    read_classes,
    read_label_folder,
    read_task1,
    task1_names,
    version_of,
    write_submission,
)
from rgfl.dota.merge import MERGE_IOU
from rgfl.dota.tiling import are_tiles, default_stride
from rgfl.folder_lock import lock_file
from rgfl.screen import lasting
from rgfl.trt_runtime import machine
from rgfl.trt_runtime.runners import Runner
from rgfl.trt_runtime.scenes import (
    add_model_arguments,
    check_model_arguments,
    find_scenes,
    journal_head,
    open_runner,
)
from rgfl.trt_runtime.streaming import Timing, stream

OUTPUTS = ("json", "submission", "mistakes")  # flags that name a file
EXAMPLES = """\
examples:
  python trt_runtime/eval_dota.py --model best.pt    --images val/images --labels val/labelTxt --json F.json
  python trt_runtime/eval_dota.py --model model.onnx --images val/images --labels val/labelTxt --draw found
  python trt_runtime/eval_dota.py --model best.pt --images train/images --labels train/labelTxt \\
      --mistakes F.csv
  python trt_runtime/eval_dota.py --model model.onnx --images test/images --submission Task1.zip
  python trt_runtime/eval_dota.py --model best.pt --images test/images --submission ms.zip --scales 0.5 1 1.5
  python trt_runtime/eval_dota.py --task1 results --labels val/labelTxt --version 1.5
  python trt_runtime/eval_dota.py --task1 results --labels val/labelTxt --classes plane,ship

A model does not hold the --test-stride of its training: give the same as --stride here.

With --json F (or --submission F, --mistakes F), what is found in finished images is kept in .F.journal beside
it until all is written: after a kill, or once an image that could not be read is mended, the same command
goes on. Times in the JSON are then those of the images that were left. Two such commands at once: the second
is refused.

exit status: 0 done, 2 bad input, or standard output broke: the files are written then
"""


@lasting()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="eval_dota",
        description=__doc__.split("\n\n", maxsplit=1)[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--model", type=Path, metavar="MODEL", help="run this .pt, .onnx or .engine over --images"
    )
    what.add_argument(
        "--task1", type=Path, metavar="DIR", help="score the Task1_<class>.txt files in DIR, or a zip"
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="full images (with --model)")
    parser.add_argument("--labels", type=Path, metavar="DIR", help="labelTxt files: the image set to score")
    parser.add_argument(
        "--version",
        choices=("1.0", "1.5", "2.0"),
        help="DOTA version: the rule for difficult objects and, with --task1, the classes "
        "(default: the one whose classes these are, else 1.0)",
    )
    parser.add_argument(
        "--voc",
        choices=("2007", "2012"),
        default="2007",
        help="which VOC's AP: DOTA's is 2007's, over 11 recalls; HRSC2016 is also published with 2012's, "
        "the area under the curve (default: 2007)",
    )
    parser.add_argument("--classes", metavar="A,B|FILE", help="with --task1: names, or a file of one a line")
    parser.add_argument(
        "--ignore-unknown", action="store_true", help="skip labels of classes outside the list"
    )
    parser.add_argument("--json", type=Path, metavar="F", help="write all numbers, unrounded")
    parser.add_argument(
        "--submission", type=Path, metavar="F.zip", help="write the zip that the DOTA server takes"
    )
    parser.add_argument(
        "--mistakes",
        type=Path,
        metavar="F.csv",
        help="list false positives, the highest score first, and missed objects, the largest first; on the "
        "images of the training, mistakes with high scores are often those of the labels",
    )
    parser.add_argument("--draw", type=Path, metavar="DIR", help="write pictures, ground truth in white")
    parser.add_argument(
        "--draw-score",
        type=checks.zero_to_one,
        default=0.3,
        metavar="S",
        help="draw from this score on (default: 0.3)",
    )
    parser.add_argument(
        "--draw-limit", type=int, default=50, metavar="N", help="draw the first N images (default: 50)"
    )
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="only the first N images")
    add_model_arguments(parser)
    arguments = parser.parse_args(argv)
    return errors.run("eval_dota", lambda: evaluate(arguments))


def evaluate(arguments: argparse.Namespace) -> int:
    """The command behind `main`, with parsed arguments."""
    keep = [arguments.model] if arguments.model else []
    for flag, path in _outputs(arguments):
        keep.append(checks.new_file(path, f"--{flag}", keep))
    return evaluate_files(arguments) if arguments.task1 else evaluate_model(arguments)


# --- result files of any detector --------------------------------------------------------------------------


def evaluate_files(arguments: argparse.Namespace) -> int:
    """Score Task 1 files; neither torch nor a model is loaded."""
    unset: dict[str, Any] = {"images": None, "submission": None, "mistakes": None, "draw": None, "limit": 0}
    unset |= {"stride": 0, "scales": [1.0], "batch": 1, "threads": 0, "device": "auto"}
    for flag, value in unset.items():
        if getattr(arguments, flag) != value:
            raise errors.InputError(f"--{flag} goes with --model; --task1 only scores what is there")
    if not arguments.labels:
        raise errors.InputError("--task1 needs --labels DIR, the labelTxt files of the images")
    if arguments.task1.suffix.lower() != ".zip":
        checks.existing_directory(arguments.task1, "--task1")
    if arguments.classes:
        try:
            classes = read_classes(arguments.classes)
        except ValueError as error:
            raise errors.InputError(f"--classes: {error}") from error
    else:
        classes = CLASSES[arguments.version or "1.0"]
    hint = "name the classes with --classes or --version, or skip other labels with --ignore-unknown"
    truth, left_out = read_truth(arguments, classes, hint)
    task1 = read_task1(arguments.task1, classes, images=truth)
    if not (arguments.classes or arguments.version):
        later = task1_names(arguments.task1).intersection(CLASSES["2.0"]).difference(classes)
        if later:  # another version has another rule for difficult objects
            raise errors.InputError(
                f"--task1 {arguments.task1}: Task1_{min(later)}.txt is there: "
                f"--version {version_of(list(later))}? --version 1.0 leaves it out"
            )
    version = arguments.version or version_of([*classes, *left_out])
    result = _as_asked(average_precision.evaluate(task1, truth, classes, version=version), arguments)
    files: dict[Path, Callable[[], str]] = {}
    if arguments.json:
        record = {
            **result.record(),
            "source": str(arguments.task1),
            "date": machine.now(),
            "versions": machine.versions(),
        }
        files[arguments.json] = lambda: _write_json(arguments.json, record)
    _deliver(result.table(), files)
    return 0


# --- models ------------------------------------------------------------------------------------------------


def evaluate_model(arguments: argparse.Namespace) -> int:
    """Run a model over full images, then score, write and draw what was asked for."""
    if not arguments.images:
        raise errors.InputError("--model needs --images DIR, the full images to run it on")
    if arguments.classes:
        raise errors.InputError("--classes goes with --task1; a model's file names its classes")
    if arguments.mistakes and not arguments.labels:
        raise errors.InputError("--mistakes needs --labels DIR, to know what a mistake is")
    if not (arguments.labels or arguments.submission or arguments.draw or arguments.json):
        raise errors.InputError("nothing to do: give --labels DIR to score, or --submission F.zip to write")
    if arguments.submission and arguments.submission.suffix.lower() != ".zip":
        raise errors.InputError(f"--submission {arguments.submission}: expected a name that ends in .zip")
    if arguments.limit < 0:
        raise errors.InputError(f"--limit {arguments.limit}: expected 0 (all) or more")
    if arguments.draw_limit < 0:
        raise errors.InputError(f"--draw-limit {arguments.draw_limit}: expected 0 or more")
    check_model_arguments(arguments)
    images = find_scenes(arguments.images)
    if arguments.draw:
        checks.picture_directory(arguments.draw, "--draw", images)
    if arguments.labels:
        checks.existing_directory(arguments.labels, "--labels")
    read = [*images.values(), *(arguments.labels.glob("*.txt") if arguments.labels else ())]
    for flag, path in _outputs(arguments):
        checks.none_of(path, f"--{flag}", read)
    with _alone(arguments):
        return _evaluate_images(images, arguments)


def _evaluate_images(images: dict[str, Path], arguments: argparse.Namespace) -> int:
    timing = Timing()
    with open_runner(arguments.model, arguments) as runner:
        classes = runner.spec.classes
        print(f"{runner.name}: {runner.reason}; spec {runner.spec.digest}", file=sys.stderr)
        truth: dict[str, Objects] | None = None
        left_out: list[str] = []
        if arguments.labels:
            hint = (
                f"{arguments.model.name} knows {', '.join(classes)}: use a model trained on these labels, "
                "or skip other labels with --ignore-unknown"
            )
            truth, left_out = read_truth(arguments, classes, hint)
            images = image_set(images, truth, arguments)
        if arguments.limit:
            images = dict(list(images.items())[: arguments.limit])
            truth = {name: truth[name] for name in images} if truth is not None else None
        if arguments.submission:
            _check_names(images)
        found = _detect(runner, images, truth, arguments, timing)
        model = runner.describe()
        settings = {
            "stride": arguments.stride or default_stride(runner.spec.tile_side),
            "scales": arguments.scales,
            "batch": arguments.batch,
            "score_threshold": runner.spec.score_threshold,
            "iou_threshold": runner.spec.iou_threshold,
            "merge_iou_threshold": MERGE_IOU,
            "limit": arguments.limit,
        }
    result = _score(found, truth, classes, left_out, arguments)
    if result is None:
        total = sum(len(detections) for detections in found.values())
        text = f"{total} detections in {len(found)} images; without --labels there is nothing to score"
    else:
        text = result.table()
    scales = ", ".join(f"{scale:g}" for scale in arguments.scales)
    text += f"\n* tiles at stride {settings['stride']}, scales {scales}"
    files: dict[Path, Callable[[], str]] = {}
    if arguments.json:
        record: dict[str, Any] = result.record() if result else {"images": len(found)}
        record |= {
            "model": model,
            "spec_digest": model["spec_digest"],
            "precision": model["precision"],
            "settings": settings,
            "timing": timing.record(),
            **machine.circumstances(),
        }
        files[arguments.json] = lambda: _write_json(arguments.json, record)
    if arguments.submission:
        files[arguments.submission] = lambda: _write_submission(found, classes, arguments)
    if arguments.mistakes and result:
        files[arguments.mistakes] = lambda: _write_mistakes(found, truth or {}, result, arguments.mistakes)
    _deliver(text, files, _journal(arguments))
    return 0


def read_truth(
    arguments: argparse.Namespace, classes: tuple[str, ...], hint: str
) -> tuple[dict[str, Objects], list[str]]:
    """The label files of --labels, and other classes in them, which are an error unless they are ignored."""
    labels = checks.existing_directory(arguments.labels, "--labels")
    if arguments.ignore_unknown:
        left_out = count_others(labels, classes)
        if left_out:
            counts = ", ".join(f"{count:,} {name}" for name, count in left_out.most_common())
            print(f"eval_dota: note: left out, as their classes are not evaluated: {counts}", file=sys.stderr)
        truth = read_label_folder(labels, classes, ignore_unknown=True)
        if not any(map(len, truth.values())):
            raise errors.InputError(
                f"--labels {labels}: no object of any of the classes {', '.join(classes)}; {hint}"
            )
        return truth, list(left_out)
    try:
        return read_label_folder(labels, classes), []
    except UnknownClassError as error:
        names = ", ".join(repr(name) for name in find_classes(labels) if name not in classes)
        raise errors.InputError(f"{error.place}: unknown class {names}; {hint}") from error


def image_set(
    images: Mapping[str, Path], truth: Mapping[str, Objects], arguments: argparse.Namespace
) -> dict[str, Path]:
    """The images with a label file. Officially these are the image set: a missing image is an error."""
    missing = [name for name in truth if name not in images]
    if missing and not any(name in images for name in truth):
        raise errors.InputError(
            f"--labels {arguments.labels}: no label file belongs to an image in {arguments.images} "
            f"(labels {missing[0]}.txt …, images {next(iter(images.values())).name} …)"
        )
    if missing:
        raise errors.InputError(
            f"--images {arguments.images}: no image for {len(missing)} of {len(truth)} label files "
            f"(first: {missing[0]}.txt); the official image set is the label files, so add the images "
            "or remove those labels"
        )
    if extra := [name for name in images if name not in truth]:
        print(
            f"eval_dota: note: {len(extra)} images without a label file are left out (first: {extra[0]})",
            file=sys.stderr,
        )
    return {name: images[name] for name in truth}


def _check_names(images: Mapping[str, Path]) -> None:
    """InputError for a name that a submission cannot hold: before the work, not after it."""
    for name, path in images.items():
        if not fits_task1(name):
            raise errors.InputError(
                f"{path}: white space in an image's name, which --submission cannot hold; rename it "
                f"and its label file, such as {'_'.join(name.split())}"
            )


def _detect(
    runner: Runner,
    images: Mapping[str, Path],
    truth: Mapping[str, Objects] | None,
    arguments: argparse.Namespace,
    timing: Timing,
) -> dict[str, Detections]:
    """What the model finds in each image, in their order; pictures are drawn on the way.

    Raises:
        InputError: images that cannot be read; all others are done then.
    """
    drawn = {
        name: arguments.draw / f"{name}.jpg"
        for name in (list(images)[: arguments.draw_limit] if arguments.draw else [])
    }
    journal = _journal(arguments)
    done: dict[str, dict[str, Any]] = {}
    states = {name: stamp(path) for name, path in images.items()}  # before they are read
    if journal:
        head = _head(runner, arguments, [truth[name] for name in drawn] if truth else [])
        done = resume(journal, head, states, lambda name: name not in drawn or drawn[name].is_file())
        if done:
            print(f"eval_dota: {len(done)} of {len(images)} images are done, by {journal}", file=sys.stderr)
    left = {name: path for name, path in images.items() if name not in done}
    unreadable: dict[str, str] = {}

    scenes = stream(
        runner,
        left,
        stride=arguments.stride,
        scales=arguments.scales,
        batch=arguments.batch,
        timing=timing,
        unreadable=unreadable,
    )

    def entries() -> Iterator[dict[str, Any]]:
        for scene in scenes:
            if scene.name in drawn:
                picture = draw.picture(
                    scene.image,
                    scene.detections,
                    runner.spec.classes,
                    truth=truth[scene.name] if truth else None,
                    min_score=arguments.draw_score,
                )
                draw.save(picture, drawn[scene.name])
            yield {"image": scene.name, "state": states[scene.name], **packed(scene.detections)}
        yield from ({"error": reason} for reason in unreadable.values())

    place = journal or Path(os.devnull)
    with contextlib.closing(scenes):  # an error must end what still runs, before the runner is closed
        failed = follow(entries(), place, done, len(images), task=runner.path.name, progress=True)
    if failed:
        for reason in failed:
            print(f"eval_dota: cannot be read: {reason}", file=sys.stderr)
        raise errors.InputError(
            f"{len(failed)} of {len(images)} images cannot be read (first: {failed[0]}); mend them and give "
            "the same command again"
        )
    if arguments.draw:
        print(f"pictures: {len(drawn)} of {len(images)} in {arguments.draw}", file=sys.stderr)
    return {name: unpacked(done[name]) for name in images}


@contextlib.contextmanager
def _alone(arguments: argparse.Namespace) -> Iterator[None]:
    """Of the commands that share a journal one at a time runs the block; FolderInUse for the others."""
    journal = _journal(arguments)
    if journal is None:
        yield
        return
    flag, path = next(_outputs(arguments))
    lock = journal.with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock_file(lock, path, f"--{flag}"):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _outputs(arguments: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """Files that were asked for, by their flags."""
    return ((flag, path) for flag in OUTPUTS if (path := getattr(arguments, flag)))


def _journal(arguments: argparse.Namespace) -> Path | None:
    """The file that holds what is found in finished images, until all is written; beside the first output."""
    beside = next((path for _, path in _outputs(arguments)), None)
    return beside and beside.with_name(f".{beside.name}.journal")


def _head(runner: Runner, arguments: argparse.Namespace, truth: Sequence[Objects]) -> dict[str, Any]:
    """First line of the journal: what decides what is found, and which pictures are drawn of it."""
    head = journal_head(runner.describe(), arguments, ("draw", "draw_limit", "draw_score"))
    return head | {"truth": _digest(truth)}


def _digest(truth: Sequence[Objects]) -> str:
    digest = hashlib.sha256()
    for objects in truth:
        for name, values in vars(objects).items():
            digest.update(f"{name} {values.shape}".encode() + values.tobytes())
    return digest.hexdigest()


def _score(
    found: Mapping[str, Detections],
    truth: Mapping[str, Objects] | None,
    classes: tuple[str, ...],
    left_out: list[str],
    arguments: argparse.Namespace,
) -> Result | None:
    if truth is None:
        return None
    version = arguments.version or version_of([*classes, *left_out])  # as training has it
    return _as_asked(evaluate_detections(found, truth, classes, version=version), arguments)


def _as_asked(result: Result, arguments: argparse.Namespace) -> Result:
    return result.by_area() if arguments.voc == "2012" else result


# --- what is left ------------------------------------------------------------------------------------------


def _deliver(text: str, files: Mapping[Path, Callable[[], str]], journal: Path | None = None) -> None:
    """Write the files, each whatever becomes of the others, then print.

    Args:
        text: result for the screen.
        files: what writes each of them and returns what to print of it.
        journal: removed once all are written.

    Raises:
        InputError: files that cannot be written, or standard output; the other files are there.
    """
    lines, written, failed = [text], [], []
    for path, write in files.items():
        try:
            lines.append(write())
            written.append(str(path))
        except (errors.UserError, OSError) as error:
            failed.append(errors.one_line(error))
    if journal and not failed:
        journal.unlink(missing_ok=True)
    print("\n".join(filter(None, lines)), flush=True)
    if broken := getattr(sys.stdout, "error", ""):
        failed.append(
            f"standard output: {broken} (written: {', '.join(written) or 'nothing; give --json F'})"
        )
    if failed:
        raise errors.InputError("; ".join(failed))


def _write_submission(
    found: Mapping[str, Detections], classes: tuple[str, ...], arguments: argparse.Namespace
) -> str:
    version = arguments.version or version_of(classes)
    official = CLASSES[version]
    missing = tuple(name for name in official if name not in classes)
    if not set(classes) < set(official):  # other classes are no submission to DOTA's server
        missing = ()
    write_submission(arguments.submission, found, (*classes, *missing))
    said = f"submission: {arguments.submission}, {len(classes)} classes, {len(found)} images"
    if missing:
        said += f"\neval_dota: note: empty files for what the model does not know: {', '.join(missing)}"
    wrong = []
    if are_tiles(found):
        wrong.append("the images are tiles, by their names")
    if arguments.limit:
        wrong.append(f"--limit {arguments.limit} leaves images out")
    if set(classes) == set(official) and len(found) not in TEST_IMAGES[version]:
        wrong.append(f"DOTA-v{version}'s test set has {' or '.join(map(str, TEST_IMAGES[version]))} images")
    if wrong:
        said += f"\neval_dota: note: not what the server scores: {'; '.join(wrong)}"
    return said


def _write_mistakes(
    found: Mapping[str, Detections], truth: Mapping[str, Objects], result: Result, path: Path
) -> str:
    verdicts = mistakes.judge(found, truth, result.classes, version=result.version)
    atomic.write_text(path, mistakes.to_csv(verdicts, result.classes))
    return ""


def _write_json(path: Path, record: dict[str, Any]) -> str:
    atomic.write_text(path, json.dumps(record, indent=2) + "\n")
    return ""


if __name__ == "__main__":
    sys.exit(main())
