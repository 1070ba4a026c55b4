"""Detection over large scenes, to GeoJSON, Task 1 files, pictures and labels.

    python trt_runtime/pipeline.py --model model.onnx --images scenes/ --out found/

Reading, inferring and writing run side by side, see rgfl.trt_runtime.streaming. Drawing an image takes longer
than inferring it on a GPU: several are written at a time, and the pixels of those that wait stay below
`streaming.AHEAD`. What is found in finished scenes is kept in `JOURNAL`: after a kill the same command goes
on, and where scenes were added or replaced since, it does those alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from rgfl import atomic, checks, draw, errors
from rgfl.boxes import to_quads
from rgfl.detections import Detections
from rgfl.dota import georeference
from rgfl.dota.georeference import Georeference
from rgfl.dota.images import IMAGE_SUFFIXES
from rgfl.dota.journal import follow, packed, read_head, resume, stamp, unpacked
from rgfl.dota.labels import Objects, fits_task1, write_class_file, write_labels, write_task1
from rgfl.folder_lock import lock_folder
from rgfl.screen import lasting
from rgfl.trt_runtime import machine
from rgfl.trt_runtime.geojson import geojson, write_map
from rgfl.trt_runtime.runners import Runner, recognise
from rgfl.trt_runtime.scenes import (
    add_model_arguments,
    check_model_arguments,
    find_scenes,
    journal_head,
    open_runner,
)
from rgfl.trt_runtime.streaming import Timing, count_tiles, expect_stride, side_by_side, stream

JOURNAL = ".journal"  # in --out; its first line says what decides the results, then one line a finished scene
LABELLED = "labelled"  # in --out: the data set that --labels writes

EXAMPLES = """\
examples:
  python trt_runtime/pipeline.py --model model.onnx --images scene.png --out found
  python trt_runtime/pipeline.py --model model.onnx --images flight/*.jpg scenes/ --out found --score 0.5
  python trt_runtime/pipeline.py --model best.pt --images flights/ --recursive --out found --batch 4
  python trt_runtime/pipeline.py --model best.pt --images new/ --out found --labels
  python -m rgfl.dota.convert --from dota --to yolo-obb --data found/labelled --out to_correct

writes to --out:
  geojson/NAME.geojson (boxes in pixel coordinates) and pictures/NAME.jpg, of scores from --score on,
  Task1_<class>.txt (boxes, by class, of all scores), detections.json (record of the run: model, times, how
  many of each class are in each scene's GeoJSON)
  map/NAME.geojson for a scene whose place on earth GDAL knows (GeoTIFF, world file, .aux.xml): polygons in
  the scene's own reference system; QGIS, geopandas and ogr2ogr read it
  map.geojson: all scenes with a reference system as one layer, in longitude and latitude; of each object the
  image, class, score, length and width in metres
  with --labels labelled/: images (hard links, or copies), labelTxt/NAME.txt with boxes of scores from --score
  on, classes.txt; rgfl.dota.convert --from dota takes it. north/a becomes north__a. Label files that are
  there may have been corrected: no run replaces them

After a kill or Ctrl-C, once a scene that could not be read is mended, or with more scenes than before, the
same command does what is left; times in detections.json are then those of these scenes. With another model
or other flags all is done anew, and replaces what is in --out, but not where there is labelled/.

exit status: 0 done, 2 bad input, also if single scenes could not be read: the others are done then
"""


def say_places(scenes: Mapping[str, Path], places: Mapping[str, Georeference]) -> None:
    """One line for each reference system: which scene is in it, or how many are."""
    systems: dict[str, list[str]] = {}
    for name, place in places.items():
        systems.setdefault(place.crs, []).append(name)
    for crs, names in systems.items():
        first = scenes[names[0]]
        who = first.name if len(names) == 1 else f"{len(names)} scenes, such as {first.name},"
        print(f"{who} in {crs}: polygons in these coordinates in map/NAME.geojson")
        if not places[names[0]].member():
            print(
                "note: GIS will take such a layer for EPSG:4326: set its reference system by hand, or give "
                f"the image one and run again: gdal_edit.py -a_srs EPSG:… {shlex.quote(str(first))}",
                file=sys.stderr,
            )


@lasting()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="pipeline",
        description=__doc__.split("\n\n", maxsplit=1)[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model",
        type=Path,
        required=True,
        metavar="MODEL",
        help=".pt, .onnx or .engine (engines: not run on a GPU yet)",
    )
    parser.add_argument(
        "--images",
        type=Path,
        required=True,
        nargs="+",
        metavar="PATH",
        help="images, .vrt files, and folders of images",
    )
    parser.add_argument(
        "--recursive",
        action="store_true",
        help="go down into subfolders, but not into those of earlier runs; results lie in subfolders too",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where results go")
    parser.add_argument(
        "--score",
        nargs="+",
        default=["0.3"],
        metavar="S",
        help="least score in pictures, GeoJSON and labels (default: 0.3), if above the model's own "
        "threshold; classes may have their own, as in --score 0.3 ship=0.5 (a training's page.html says "
        "which are best), one class alone is --score 1 ship=0.3; with other scores than before all is done "
        "anew",
    )
    parser.add_argument(
        "--across",
        type=checks.zero_to_one,
        metavar="IOU",
        help="of objects of several classes that overlap by more, show only the best, such as with 0.5 "
        "(default: each class by itself); Task 1 files keep all",
    )
    parser.add_argument(
        "--labels", action="store_true", help="write what is shown as labels, too, to correct and train with"
    )
    parser.add_argument(
        "--pictures", action=argparse.BooleanOptionalAction, default=True, help="draw (default: yes)"
    )
    add_model_arguments(parser)
    arguments = parser.parse_args(argv)
    return errors.run("pipeline", lambda: detect_scenes(arguments), interrupted=errors.GOES_ON)


def detect_scenes(arguments: argparse.Namespace) -> int:
    """The command behind `main`, with parsed arguments."""
    check_model_arguments(arguments)
    scenes = find_scenes(*arguments.images, recursive=arguments.recursive)
    if arguments.labels:
        expect_labels_fit(scenes)
    recognise(arguments.model)  # before each scene is opened
    places = {name: place for name, path in scenes.items() if (place := georeference.find(path)) is not None}
    checks.new_directory(arguments.out, "--out")
    expect_no_others(arguments.out, scenes)
    checks.picture_directory(arguments.out / "pictures", "--out", scenes)
    with open_runner(arguments.model, arguments) as runner:
        threshold = runner.spec.score_threshold
        scores = class_scores(arguments.score, runner.spec.classes)
        expect_stride(arguments.stride, runner.spec.tile_side)
        print(f"{runner.name}: {runner.reason}", file=sys.stderr)
        if min(scores) < threshold:
            print(
                f"note: --score {min(scores):g}: this model keeps scores above {threshold:g} only, its "
                "spec's score_threshold; for lower ones: python -m rgfl.checkpoint spec best.pt "
                "--score-threshold 0.01 --out other.pt, and export that",
                file=sys.stderr,
            )
        arguments.score = [max(score, threshold) for score in scores]
        arguments.out.mkdir(parents=True, exist_ok=True)
        with lock_folder(arguments.out):
            return _detect_scenes(runner, scenes, places, arguments)


def _detect_scenes(
    runner: Runner,
    scenes: Mapping[str, Path],
    places: Mapping[str, Georeference],
    arguments: argparse.Namespace,
) -> int:
    """Find, write, and say what there is; exit status."""
    out, classes, model = arguments.out, runner.spec.classes, runner.describe()
    timing = Timing()
    unreadable: dict[str, str] = {}
    started = time.perf_counter()
    head = journal_head(model, arguments, ("score", "across", "pictures"))
    found = _find(runner, scenes, places, arguments, head, timing, unreadable)
    timing.total = time.perf_counter() - started
    if not found:
        more = f" (and {len(unreadable) - 1} more)" if len(unreadable) > 1 else ""
        raise errors.InputError(next(iter(unreadable.values())) + more)
    spaced = [name for name in scenes if not fits_task1(name)]
    write_task1(out, {name: one for name, one in found.items() if name not in spaced}, classes)
    shown = {name: _shown(one, arguments) for name, one in found.items()}
    if arguments.labels:
        write_labelled(out / LABELLED, scenes, shown, classes)
    places = {name: place for name, place in places.items() if name in found}
    on_map = {name: place for name, place in places.items() if place.system}
    beyond = 0
    if on_map:
        beyond = write_map(out / "map.geojson", ((name, shown[name]) for name in on_map), on_map, classes)
    one_score = len(set(arguments.score)) == 1
    least = f"{min(arguments.score):g}" + ("" if one_score else f" to {max(arguments.score):g}, by class,")
    counts = {name: np.bincount(one.labels, minlength=len(classes)).tolist() for name, one in shown.items()}
    record = {
        "model": model,
        "scales": arguments.scales,
        "score": arguments.score[0] if one_score else dict(zip(classes, arguments.score, strict=True)),
        "across": arguments.across,
        "pictures": arguments.pictures,
        "timing": timing.record(),
        "hardware": machine.hardware(),
        "versions": machine.versions(),
        "detections": {
            name: {kind: count for kind, count in zip(classes, numbers, strict=True) if count}
            for name, numbers in counts.items()
        },
        "unreadable": unreadable,
    }
    # Written last: where it lies, all results are of one run.
    atomic.write_text(out / "detections.json", json.dumps(record, indent=2) + "\n")
    say_places(scenes, places)
    if on_map:
        print(f"{len(on_map)} scenes as one layer, in longitude and latitude: {out / 'map.geojson'}")
    if beyond:
        print(
            f"note: {beyond} objects are not in map.geojson, as they have no longitude and latitude",
            file=sys.stderr,
        )
    if arguments.labels:
        print(f"labels to correct and train with, which no run replaces: {out / LABELLED}")
    blank = f" and {timing.blank} blank ones left out" if timing.blank else ""
    print(
        f"{sum(map(len, shown.values()))} detections of score ≥ {least} in {len(found)} scenes "
        f"({timing.tiles} tiles{blank}, {timing.tiles / timing.total:.1f} a second): {out}"
    )
    if spaced:
        print(
            f"note: {len(spaced)} names with white space, such as {spaced[0]!r}, are not in the "
            "Task 1 files, which cannot hold them",
            file=sys.stderr,
        )
    for reason in unreadable.values():
        print(f"pipeline: error: left out: {reason}", file=sys.stderr)
    return 2 if unreadable else 0


def _find(
    runner: Runner,
    scenes: Mapping[str, Path],
    places: Mapping[str, Georeference],
    arguments: argparse.Namespace,
    head: dict[str, Any],
    timing: Timing,
    unreadable: dict[str, str],
) -> dict[str, Detections]:
    """What is in each scene, in their order; GeoJSON is written and pictures are drawn on the way.

    Args:
        head: of the journal.
        timing, unreadable: see `stream`; of the scenes that an earlier run has not finished.
    """
    out, pictures, classes = arguments.out, arguments.pictures, runner.spec.classes
    states = {name: _state(path, places.get(name)) for name, path in scenes.items()}  # before they are read

    def is_whole(name: str) -> bool:
        files = scene_files(out, name, name in places, pictures)
        return all(path.is_file() and path.stat().st_size for path in files)  # a crash may leave it empty

    finished = (out / "detections.json").is_file()
    before = read_head(out / JOURNAL)
    drew = pictures or before.get("pictures") == "True"
    told = "another model, other flags, versions or scenes"
    expect_labels_of(out, scenes if before == head else (), told)  # before the journal is written anew
    done = resume(out / JOURNAL, head, states, is_whole)
    expect_labels_of(out, done, "its image has changed, or its results are missing")
    left = {name: path for name, path in scenes.items() if name not in done}
    remove_results(out, left, drew)
    if done:
        print(f"pipeline: {len(done)} of {len(scenes)} scenes are done, by {out / JOURNAL}", file=sys.stderr)
    elif finished:
        print(
            f"note: what was in {out} is replaced: it is of another model, other flags, versions or scenes",
            file=sys.stderr,
        )

    def write(name: str, found: Detections, image: NDArray[np.uint8] | None) -> dict[str, Any]:
        """The scene's files; its entry in the journal."""
        shown = _shown(found, arguments)
        file = f"{name}.geojson"
        atomic.write_text(out / "geojson" / file, json.dumps(geojson(name, shown, classes)))
        if (place := places.get(name)) is not None:
            atomic.write_text(out / "map" / file, json.dumps(geojson(name, shown, classes, place)))
        if image is not None:
            picture = draw.picture(image, shown, classes, min_score=0.0)
            draw.save(picture, out / "pictures" / f"{name}.jpg")
        return {"image": name, "state": states[name], **packed(found)}

    cut = {"stride": arguments.stride, "scales": arguments.scales}
    with (
        tqdm(
            total=count_tiles(left.values(), runner.spec.tile_side, **cut),
            unit="tile",
            mininterval=0.1 if sys.stderr.isatty() else 60,  # seconds; a log gets a line a minute
        ) as bar,
        # An error of a writer must end what still runs, before the runner is closed.
        contextlib.closing(
            stream(
                runner,
                left,
                **cut,
                batch=arguments.batch,
                timing=timing,
                unreadable=unreadable,
                progress=bar.update,
            )
        ) as streamed,
    ):

        def jobs() -> Iterator[tuple[int, Callable[[], dict[str, Any]]]]:
            for number, scene in enumerate(streamed, len(done) + 1):
                bar.set_postfix_str(f"{number} of {len(scenes)} scenes", refresh=False)
                if pictures:
                    yield scene.image.nbytes, partial(write, scene.name, scene.detections, scene.image)
                else:
                    yield 0, partial(write, scene.name, scene.detections, None)

        with contextlib.closing(side_by_side(jobs(), "rgfl-writer")) as written:
            entries = (entry.result() for entry in written)
            follow(entries, out / JOURNAL, done, len(scenes), task="", progress=False)
    return {name: unpacked(done[name]) for name in scenes if name in done}


def class_scores(words: Sequence[str], classes: Sequence[str]) -> list[float]:
    """What --score says, for each class: `0.3`, `ship=0.5`, or both.

    Raises:
        InputError: no score from 0 to 1, no such class, or one that is named twice.
    """
    said: dict[str, float] = {}
    for word in words:
        name, _, value = word.rpartition("=")
        try:
            score = checks.zero_to_one(value)
        except (argparse.ArgumentTypeError, ValueError) as error:
            raise errors.InputError(f"--score {word}: {error}") from error
        if name and name not in classes:
            raise errors.InputError(f"--score {word}: no such class; this model knows {', '.join(classes)}")
        if name in said:
            raise errors.InputError(f"--score {word}: {name or 'a score for all classes'} is named twice")
        said[name] = score
    return [said.get(name, said.get("", 0.3)) for name in classes]


def _shown(found: Detections, arguments: argparse.Namespace) -> Detections:
    """What GeoJSON, pictures and labels have of it."""
    likely = found.at_least(arguments.score)
    return likely if arguments.across is None else likely.across(arguments.across)


def _state(path: Path, place: Georeference | None) -> list[Any] | None:
    """What tells a scene that was replaced, or lies elsewhere on earth now; None: it cannot be read."""
    try:
        where = [place.affine.tolist(), place.code, place.system] if place is not None else []
        return [*stamp(path), *where]
    except OSError:
        return None


def scene_files(out: Path, name: str, on_map: bool, pictures: bool) -> list[Path]:
    """Files of one scene alone that a run writes."""
    files = [out / "geojson" / f"{name}.geojson"]
    if on_map:
        files.append(out / "map" / f"{name}.geojson")
    if pictures:
        files.append(out / "pictures" / f"{name}.jpg")
    return files


def expect_no_others(out: Path, scenes: Mapping[str, Path]) -> None:
    """Results of other scenes, or of another program, would be lost: Task 1 files hold all scenes of a run.

    Raises:
        InputError: there are some in `out`.
    """
    folder = out / "geojson"
    ours = folder.is_dir() or (out / "detections.json").is_file()
    if not ours and (others := [*sorted(out.glob("Task1_*.txt")), *out.glob("map.geojson")]):
        raise errors.InputError(
            f"--out {out}: holds results of others, such as {others[0].name}; choose another folder, or "
            "remove them"
        )
    for file in sorted(folder.rglob("*.geojson")):
        name = file.relative_to(folder).as_posix().removesuffix(".geojson")
        if name not in scenes:
            raise errors.InputError(
                f"--out {out}: holds results of other scenes, such as {name}; choose another folder, or "
                "remove it"
            )


def label_name(name: str) -> str:
    """What the scene is called in LABELLED, where labels lie in one folder: as rgfl.dota.convert would."""
    return "_".join(name.replace("/", "__").split())


def expect_labels_fit(scenes: Mapping[str, Path]) -> None:
    """
    Raises:
        InputError: a scene is no image that data sets are made of, or two would have one label file.
    """
    named: dict[str, Path] = {}
    for name, path in scenes.items():
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise errors.InputError(
                f"--labels: {path}: expected one of {', '.join(IMAGE_SUFFIXES)}, as data sets have; "
                "convert it, or leave it out"
            )
        if (other := named.setdefault(label_name(name), path)) is not path:
            raise errors.InputError(
                f"--labels: {other} and {path}: both would be called {label_name(name)}; rename one"
            )


def expect_labels_of(out: Path, scenes: Collection[str], why: str) -> None:
    """Labels may have been corrected by hand: they are not replaced, and not left beside other results.

    Raises:
        InputError: in `out` there are some of others than these scenes.
    """
    names = set(map(label_name, scenes))
    for file in sorted((out / LABELLED / "labelTxt").glob("*.txt")):
        if file.stem not in names:
            raise errors.InputError(
                f"{file}: labels of an earlier run, which may have been corrected, are not replaced by new "
                f"ones ({why}); move {out / LABELLED} away, or choose another --out"
            )


def write_labelled(
    folder: Path, scenes: Mapping[str, Path], shown: Mapping[str, Detections], classes: Sequence[str]
) -> None:
    """A data set of the scenes, labelled with what is shown of them; label files that are there stay.

    Images of a subfolder stay together, so that --val-share of rgfl.dota.convert does not divide a flight.
    """
    if not any((folder / "labelTxt").glob("*.txt")):
        write_class_file(folder / "classes.txt", classes)
    for name, found in shown.items():
        label = folder / "labelTxt" / f"{label_name(name)}.txt"
        if label.exists():
            continue
        image = folder / "images" / Path(name).with_name(f"{label.stem}{scenes[name].suffix}")
        atomic.place(scenes[name], image)
        quads = np.round(to_quads(found.boxes.astype(np.float64)).reshape(-1, 8), 2)
        write_labels(label, Objects(quads, found.labels, np.zeros(len(found), np.int32)), classes)


def remove_results(out: Path, scenes: Collection[str], pictures: bool) -> None:
    """Remove what an earlier run wrote of these scenes, and of all of its scenes together, or left half.

    Args:
        pictures: theirs, too, as this run or the earlier one draws; else what lies there is the user's own.
    """
    halves = f".*{atomic.TEMPORARY_SUFFIX}"
    found = [out / "detections.json", out / "map.geojson", *out.glob("Task1_*.txt"), *out.glob(halves)]
    for folder in ("geojson", "map", "pictures", LABELLED):
        found += (out / folder).rglob(halves)
    for name in scenes:
        found += scene_files(out, name, on_map=True, pictures=pictures)
    for path in found:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
