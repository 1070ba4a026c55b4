"""Detection over large scenes: reading and cutting, the network, NMS and writing run side by side.

    python trt_runtime/pipeline.py --model model.onnx --images scenes/ --out found/

Tiles of several scenes share a batch, so small images fill it too. Decoding an image takes longer than
inferring it on a GPU, and so does drawing it: several are decoded, and several written, at a time.

Memory is bounded: the pixels of what is read ahead, of what is inferred, and of what waits to be drawn stay
below `AHEAD` each, and a scene's pixels are let go when the next scene is asked for. Of larger scenes four
are held at a time: one is read, one waits, one is inferred, one drawn. The result is that of
rgfl.dota.merge.detect.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import shlex
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rgfl import atomic, draw, errors
from rgfl.boxes import to_quads
from rgfl.detections import Detections
from rgfl.dota.images import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    ImageError,
    find_images,
    image_size,
    left_out,
    read_image,
    subfolders,
    with_subfolders,
)
from rgfl.dota.labels import fits_task1, write_task1
from rgfl.dota.merge import Part, Place, merge, places_at_scales, tile_at
from rgfl.processes import usable_cores
from rgfl.trt_runtime import georeference, machine
from rgfl.trt_runtime.georeference import Georeference
from rgfl.trt_runtime.runners import Runner, load_runner

WAITING_BATCHES = 2  # prepared and not yet inferred
WAITING_RESULTS = 8  # batches inferred: merging a large scene takes as long as some of them
AHEAD = 1 << 28  # bytes of pixels: of images read before their turn, of those inferred, of those to be drawn

Item = TypeVar("Item")
Done = TypeVar("Done")

EXAMPLES = """\
examples:
  python trt_runtime/pipeline.py --model model.onnx --images scene.png --out found
  python trt_runtime/pipeline.py --model model.onnx --images flight/*.jpg scenes/ --out found --score 0.5
  python trt_runtime/pipeline.py --model best.pt --images flights/ --recursive --out found --batch 4

writes to --out:
  geojson/NAME.geojson (boxes in pixel coordinates) and pictures/NAME.jpg, of scores from --score on,
  Task1_<class>.txt (boxes, by class, of all scores), detections.json (record of the run: model, times, how
  many of each class are in each scene's GeoJSON)
  geojson/NAME.world.geojson for a scene whose place on earth GDAL knows (GeoTIFF, world file, .aux.xml):
  polygons in the scene's own reference system, not reprojected; QGIS, geopandas and ogr2ogr read it

exit status: 0 done, 2 bad input, also if single scenes could not be read: the others are done then
"""


@dataclass
class Timing:
    """Seconds that each part of the pipeline was busy; parts overlap, so they may exceed `total`."""

    total: float = 0.0
    read: float = 0.0
    prepare: float = 0.0
    network: float = 0.0
    nms: float = 0.0
    merge: float = 0.0
    tiles: int = 0
    images: int = 0

    def record(self) -> dict[str, Any]:
        """For result files: seconds, counts, and tiles a second."""
        rate = self.tiles / self.total if self.total else 0.0
        return {**{name: round(value, 6) for name, value in vars(self).items()}, "tiles_per_second": rate}


@dataclass
class Scene:
    """One image on its way through.

    Attributes:
        name: see find_scenes.
        image: (H, W, 3) uint8 RGB; empty once the next scene is asked for.
        windows: tiles that it is cut into.
        detections: merged, in pixels of the image; set when the scene is done.
    """

    name: str
    image: NDArray[np.uint8]
    windows: int = 0
    detections: Detections = field(default_factory=Detections.empty)
    parts: list[Any] = field(default_factory=list)


# Of each tile: the scene, and the square of it that the tile shows.
_Owners = list[tuple[Scene, "Place"]]


def stream(
    runner: Runner,
    images: Mapping[str, Path],
    *,
    stride: int = 0,
    scales: Sequence[float] = (1.0,),
    batch: int = 1,
    timing: Timing | None = None,
    unreadable: dict[str, str] | None = None,
) -> Generator[Scene, None, None]:
    """Scenes with their detections, in the order of `images`, as they get done.

    Its threads use the runner: close it (`contextlib.closing`) before that, where a loop may end early.

    Args:
        runner: takes the tiles; its spec says their size and what lies outside an image.
        images: file of each scene by name.
        stride: pixels of a tile from one to the next; 0 for `rgfl.dota.tiling.default_stride`.
        scales: factors, each of which adds its tiles; at 0.5 a tile shows twice as many pixels each way.
        batch: tiles a call.
        timing: filled while the scenes come.
        unreadable: takes the scenes that cannot be read, with the reason; they are left out.

    Raises:
        ImageError: without `unreadable`, a file that is no image, when its turn comes.
    """
    size = runner.spec.tile_side
    if not 0 <= stride <= size:
        raise errors.InputError(f"--stride {stride}: expected 0…{size}, the side of the model's tile")
    timing = timing if timing is not None else Timing()
    started = time.perf_counter()
    room = _Room()

    def inferred() -> Generator[tuple[_Owners, Any], None, None]:
        batches = _batches(runner, images, stride, scales, batch, timing, unreadable, room)
        with _ahead(batches, WAITING_BATCHES, "rgfl-reader") as ready, contextlib.closing(room):
            for item in ready:
                inferring = time.perf_counter()
                outputs = runner.infer(item.feed)
                timing.network += time.perf_counter() - inferring
                item.feed = None
                yield item.owners, outputs

    try:
        with _ahead(inferred(), WAITING_RESULTS, "rgfl-network") as results, contextlib.closing(room):
            for owners, outputs in results:
                finishing = time.perf_counter()
                found = runner.finish(outputs)
                timing.nms += time.perf_counter() - finishing
                timing.tiles += len(owners)
                for (scene, place), record in zip(owners, found, strict=True):
                    scene.parts.append(Part.at(place, size, record))
                    if len(scene.parts) == scene.windows:
                        merging = time.perf_counter()
                        scene.detections = merge(scene.parts)
                        scene.parts = []
                        timing.merge += time.perf_counter() - merging
                        timing.images += 1
                        timing.total = time.perf_counter() - started
                        held = scene.image.nbytes
                        yield scene
                        scene.image = np.empty((0, 0, 3), np.uint8)  # whoever still holds the scene
                        room.give(held)
    finally:
        timing.total = time.perf_counter() - started


@dataclass
class _Batch:
    feed: Any  # what runner.prepare made of the tiles
    owners: _Owners


def _batches(
    runner: Runner,
    images: Mapping[str, Path],
    stride: int,
    scales: Sequence[float],
    batch: int,
    timing: Timing,
    unreadable: dict[str, str] | None,
    room: _Room,
) -> Generator[_Batch, None, None]:
    """The tiles of all images, in order, prepared `batch` at a time."""
    size = runner.spec.tile_side
    tiles: list[NDArray[np.uint8]] = []
    owners: _Owners = []

    def jobs() -> Iterator[tuple[int, Callable[[], tuple[NDArray[np.uint8], float]]]]:
        for path in images.values():
            height = width = 0
            with contextlib.suppress(ImageError, OSError):  # which reading tells
                height, width = image_size(path)
            yield 3 * height * width, partial(read, path)

    def read(path: Path) -> tuple[NDArray[np.uint8], float]:
        """Pixels, and how long they took."""
        reading = time.perf_counter()
        return read_image(path), time.perf_counter() - reading

    def prepared() -> _Batch:
        preparing = time.perf_counter()
        ready = _Batch(runner.prepare(tiles.copy()), owners.copy())
        timing.prepare += time.perf_counter() - preparing
        tiles.clear()
        owners.clear()
        return ready

    with contextlib.closing(_side_by_side(jobs(), "rgfl-decoder", beyond=1)) as pixels:
        for name, future in zip(images, pixels, strict=True):
            try:
                image, seconds = future.result()
            except (ImageError, OSError) as error:
                if unreadable is None:
                    raise
                unreadable[name] = errors.one_line(error)
                continue
            timing.read += seconds
            scene = Scene(name, image)
            del image, future  # only the scene holds its pixels
            if tiles and not room.fits(scene.image.nbytes):
                yield prepared()  # or it would be waited for in vain
            room.take(scene.image.nbytes)
            places = places_at_scales(*scene.image.shape[:2], size=size, stride=stride, scales=scales)
            scene.windows = len(places)
            for place in places:
                tiles.append(tile_at(scene.image, place, size, runner.spec.pad_value))
                owners.append((scene, place))
                if len(tiles) == batch:
                    yield prepared()
    if tiles:
        yield prepared()


class _Room:
    """`AHEAD` bytes for the pixels of scenes that are being inferred; one scene always fits."""

    def __init__(self) -> None:
        self._used, self._closed = 0, False
        self._changed = threading.Condition()

    def fits(self, size: int) -> bool:
        return not self._used or self._used + size <= AHEAD

    def take(self, size: int) -> None:
        """Wait until there is room, or nobody needs any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self.fits(size))
            self._used += size

    def give(self, size: int) -> None:
        with self._changed:
            self._used -= size
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _side_by_side(
    jobs: Iterable[tuple[int, Callable[[], Done]]], name: str, beyond: int = 0
) -> Generator[Future[Done], None, None]:
    """What comes of the jobs, in order: one on each core, and one more for each that waits.

    Args:
        jobs: each with the bytes of its pixels, together below `AHEAD`; asked for when there is room.
        name: of the threads.
        beyond: jobs that may run whatever they hold, besides the one whose turn it is.
    """
    cores = usable_cores()
    waiting: deque[tuple[int, Future[Done]]] = deque()
    pool = ThreadPoolExecutor(cores, name)
    try:
        for size, job in jobs:
            room = AHEAD - size
            while len(waiting) == 2 * cores or (
                len(waiting) > beyond and sum(held for held, _ in waiting) > room
            ):
                yield waiting.popleft()[1]
            waiting.append((size, pool.submit(job)))
            del job  # it may hold pixels
            while waiting and waiting[0][1].done():  # an error is told at once
                yield waiting.popleft()[1]
        while waiting:
            yield waiting.popleft()[1]
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _ahead(items: Generator[Item, None, None], count: int, name: str) -> Iterator[Iterator[Item]]:
    """The items, made by a thread of this name, up to `count` of them before they are asked for."""
    waiting: queue.Queue[Item | Exception | None] = queue.Queue(count)
    stop = threading.Event()

    def put(item: Item | Exception | None) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                return waiting.put(item, timeout=0.1)

    def work() -> None:
        try:
            with contextlib.closing(items):
                for item in items:
                    put(item)
                    if stop.is_set():
                        return
            put(None)
        except Exception as error:  # raised again where the items are asked for
            put(error)

    def received() -> Iterator[Item]:
        while (item := waiting.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    try:
        yield received()
    finally:
        stop.set()
        thread.join()


# --- output ------------------------------------------------------------------------------------------------


def geojson(
    name: str, detections: Detections, classes: tuple[str, ...], place: Georeference | None = None
) -> dict[str, Any]:
    """A FeatureCollection of polygons in pixels of the image: x right, y down, not longitude and latitude.

    With a georeference the polygons are in its coordinates instead, and the collection names them in "crs".
    The properties are in pixels always: cx, cy, width, height, and the angle in radians.
    """
    boxes = detections.boxes.astype(np.float64)
    quads = to_quads(boxes).reshape(-1, 4, 2)
    rings = quads.round(3) if place is None else place.rings(quads)
    features = []
    for ring, (cx, cy, width, height), angle, score, label in zip(
        rings.tolist(),
        boxes[:, :4].round(3).tolist(),
        boxes[:, 4].round(5).tolist(),
        detections.scores.astype(np.float64).round(4).tolist(),
        detections.labels.tolist(),
        strict=True,
    ):
        sides = {"cx": cx, "cy": cy, "width": width, "height": height}
        properties = {"class": classes[label], "score": score, **sides, "angle": angle}
        polygon = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
        features.append({"type": "Feature", "geometry": polygon, "properties": properties})
    pixels = "pixels of the image, x right, y down; angle in radians, clockwise"
    return {
        "type": "FeatureCollection",
        "name": name,
        "coordinate_system": pixels if place is None else f"{place.crs}; properties in {pixels}",
        **(place.member() if place is not None else {}),
        "features": features,
    }


def find_places(scenes: Mapping[str, Path]) -> dict[str, Georeference]:
    """Georeferences of the scenes that have one, by name.

    Raises:
        InputError: a world file is broken, or two scenes would write one file.
    """
    found = {}
    for name, path in scenes.items():
        if (place := georeference.find(path)) is None:
            continue
        if (other := scenes.get(f"{name}.world")) is not None:
            raise errors.InputError(f"{other}: {name}.world.geojson is that of {path.name} too; rename one")
        found[name] = place
    return found


def say_places(scenes: Mapping[str, Path], places: Mapping[str, Georeference]) -> None:
    """One line for each reference system: which scene is in it, or how many are."""
    systems: dict[str, list[str]] = {}
    for name, place in places.items():
        systems.setdefault(place.crs, []).append(name)
    for crs, names in systems.items():
        if len(names) == 1:
            who = scenes[names[0]].name
        else:
            who = f"{len(names)} scenes, such as {scenes[names[0]].name},"
        print(f"{who} in {crs}: polygons in these coordinates in geojson/NAME.world.geojson")


def find_scenes(*paths: Path, recursive: bool | None = None) -> dict[str, Path]:
    """Images among `paths` and in those that are folders, by name.

    A name is the file's without its suffix, with the way to it before, as in north/IMG_1, where it lies in a
    subfolder of a path.

    Args:
        recursive: go down into subfolders. None: the same as False, of a command without this flag.

    Raises:
        InputError: a path leads nowhere, or to a video or a folder without images; two images share a name;
            a name is not UTF-8.
    """
    scenes: dict[str, Path] = {}
    given = set()
    for path in paths:
        if path.is_file():
            if path.suffix.lower() in VIDEO_SUFFIXES:
                raise errors.InputError(f"--images {path}: a video, expected images; {_frames_of(path)}")
            found = {path.stem: path}
        elif path.exists():
            found = _in_folder(path, recursive)
        else:
            raise errors.InputError(f"--images {path}: no such file or directory")
        for name, file in found.items():
            if (place := os.path.abspath(file)) in given:
                continue
            given.add(place)
            if any("\udc80" <= character <= "\udcff" for character in name):  # no Task 1 file can hold it
                raise errors.InputError(f"--images: the name {name!a} is not UTF-8; rename it")
            if (other := scenes.get(name)) is not None:
                raise errors.InputError(
                    f"{file}: {other} has the same name, and so would their results; rename one of the two, "
                    "or run the command for each, with another --out"
                )
            scenes[name] = file
    return scenes


def _in_folder(root: Path, recursive: bool | None) -> dict[str, Path]:
    """Images in the folder, by name; says what of it is left out."""
    folders = list(with_subfolders(root, _is_drawn)) if recursive else [root]
    if not recursive and (others := subfolders(root)):
        names = ", ".join(path.name for path in others[:3])
        flag = "" if recursive is None else "; --recursive does it"
        print(f"note: subfolders of {root} are not looked into: {names}{flag}", file=sys.stderr)
    suffixes = ", ".join(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
    if others := [path for folder in folders for path in left_out(folder)]:
        video = others[0].suffix.lower() in VIDEO_SUFFIXES
        remedy = _frames_of(others[0]) if video else f"convert to one of {suffixes}"
        example = others[0].relative_to(root)
        print(
            f"note: {len(others)} files in {root} are left out, such as {example}; {remedy}", file=sys.stderr
        )
    images = {
        (folder.relative_to(root) / stem).as_posix(): path
        for folder in folders
        for stem, path in find_images(folder).items()
    }
    if not images:
        raise errors.InputError(f"--images {root}: no image in this folder; expected {suffixes}")
    return images


def _is_drawn(folder: Path) -> bool:
    """Whether an earlier run drew the pictures in it."""
    return folder.name == "pictures" and (folder.parent / "geojson").is_dir()


def _frames_of(video: Path) -> str:
    """What to do with it."""
    return (
        "take frames of it, here two a second: "
        f"mkdir frames && ffmpeg -i {shlex.quote(str(video))} -vf fps=2 frames/%06d.png"
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of how a model is run, the same in every command that runs one over scenes."""
    parser.add_argument("--stride", type=int, default=0, metavar="PX", help="tile to tile (824 for 1024)")
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="S",
        help="multi-scale testing: tiles of the image resized by each, such as 0.5 1 1.5 (default: 1)",
    )
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="tiles a call (default: 1)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (default: cores)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")


def check_model_arguments(arguments: argparse.Namespace) -> None:
    """InputError for values of these flags that cannot be."""
    for flag, least in (("stride", 0), ("batch", 1), ("threads", 0)):
        if getattr(arguments, flag) < least:
            raise errors.InputError(f"--{flag} {getattr(arguments, flag)}: expected {least} or more")
    for scale in arguments.scales:
        if not 0.05 <= scale <= 20:  # a tile's square of the image is held in memory before it is resized
            raise errors.InputError(f"--scales {scale:g}: expected factors from 0.05 to 20")
    if len(set(arguments.scales)) != len(arguments.scales):
        raise errors.InputError("--scales: a factor is named twice")


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
        help="go down into subfolders, but not into pictures of earlier runs; results lie in subfolders too",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where results go")
    parser.add_argument(
        "--score",
        type=errors.share,
        default=0.3,
        metavar="S",
        help="in pictures and GeoJSON, at least (default: 0.3); the model's own threshold holds too",
    )
    parser.add_argument(
        "--pictures", action=argparse.BooleanOptionalAction, default=True, help="draw (default: yes)"
    )
    add_model_arguments(parser)
    arguments = parser.parse_args(argv)
    return errors.run("pipeline", lambda: detect_scenes(arguments))


def detect_scenes(arguments: argparse.Namespace) -> int:
    """The command behind `main`, with parsed arguments."""
    check_model_arguments(arguments)
    scenes = find_scenes(*arguments.images, recursive=arguments.recursive)
    places = find_places(scenes)
    errors.new_directory(arguments.out, "--out")
    expect_no_others(arguments.out, scenes)
    pictures = errors.picture_directory(arguments.out / "pictures", "--out", scenes)

    from tqdm import tqdm

    spaced = [name for name in scenes if not fits_task1(name)]
    found: dict[str, Detections] = {}
    counts: dict[str, dict[str, int]] = {}
    timing = Timing()
    unreadable: dict[str, str] = {}
    with load_runner(arguments.model, device=arguments.device, threads=arguments.threads) as runner:
        classes, threshold = runner.spec.classes, runner.spec.score_threshold
        say_places(scenes, places)
        print(f"{runner.name}: {runner.reason}", file=sys.stderr)
        if arguments.score < threshold:
            print(
                f"note: --score {arguments.score:g}: this model keeps scores above {threshold:g} only, its "
                "spec's score_threshold; for lower ones train with --score-threshold, or see Runner.detect",
                file=sys.stderr,
            )
        score = max(arguments.score, threshold)
        started = time.perf_counter()
        done = stream(
            runner,
            scenes,
            stride=arguments.stride,
            scales=arguments.scales,
            batch=arguments.batch,
            timing=timing,
            unreadable=unreadable,
        )
        remove_results(arguments.out, scenes, arguments.pictures)

        def write(name: str, shown: Detections) -> None:
            file = arguments.out / "geojson" / f"{name}.geojson"
            atomic.write_text(file, json.dumps(geojson(name, shown, classes)))
            if (place := places.get(name)) is not None:
                collection = geojson(name, shown, classes, place)
                file = arguments.out / "geojson" / f"{name}.world.geojson"
                atomic.write_text(file, json.dumps(collection))

        def draw_picture(name: str, shown: Detections, image: NDArray[np.uint8]) -> None:
            draw.save(draw.picture(image, shown, classes, min_score=score), pictures / f"{name}.jpg")

        def writing() -> Iterator[tuple[int, Callable[[], None]]]:
            for scene in tqdm(done, total=len(scenes), unit="scene"):
                found[scene.name] = scene.detections
                shown = scene.detections[scene.detections.scores >= score]
                numbers = np.bincount(shown.labels, minlength=len(classes)).tolist()
                counts[scene.name] = {name: n for name, n in zip(classes, numbers, strict=True) if n}
                yield 0, partial(write, scene.name, shown)
                if arguments.pictures:
                    yield scene.image.nbytes, partial(draw_picture, scene.name, shown, scene.image)

        # An error of a writer must end what still runs, before the runner is closed.
        with contextlib.closing(done), contextlib.closing(_side_by_side(writing(), "rgfl-writer")) as files:
            for written in files:
                written.result()
        timing.total = time.perf_counter() - started
        if not found:
            more = f" (and {len(unreadable) - 1} more)" if len(unreadable) > 1 else ""
            raise errors.InputError(next(iter(unreadable.values())) + more)
        write_task1(arguments.out, {name: one for name, one in found.items() if name not in spaced}, classes)
        record = {
            "model": runner.describe(),
            "scales": arguments.scales,
            "score": score,
            "pictures": arguments.pictures,
            "timing": timing.record(),
            "hardware": machine.hardware(),
            "versions": machine.versions(),
            "detections": counts,
            "unreadable": unreadable,
        }
    # Written last: where it lies, all results are of one run.
    atomic.write_text(arguments.out / "detections.json", json.dumps(record, indent=2) + "\n")
    total = sum(sum(numbers.values()) for numbers in counts.values())
    print(
        f"{total} detections of score ≥ {score:g} in {timing.images} scenes ({timing.tiles} tiles, "
        f"{timing.tiles / timing.total:.1f} a second): {arguments.out}"
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


def expect_no_others(out: Path, scenes: Mapping[str, Path]) -> None:
    """Results of other scenes, or of another program, would be lost: Task 1 files hold all scenes of a run.

    Raises:
        InputError: there are some in `out`.
    """
    folder = out / "geojson"
    ours = folder.is_dir() or (out / "detections.json").is_file()
    if not ours and (others := sorted(out.glob("Task1_*.txt"))):
        raise errors.InputError(
            f"--out {out}: holds results of others, such as {others[0].name}; choose another folder, or "
            "remove them"
        )
    for file in sorted(folder.rglob("*.geojson")):
        name = file.relative_to(folder).as_posix().removesuffix(".geojson")
        if name not in scenes and name.removesuffix(".world") not in scenes:
            raise errors.InputError(
                f"--out {out}: holds results of other scenes, such as {name}; choose another folder, or "
                "remove it"
            )


def remove_results(out: Path, scenes: Mapping[str, Path], pictures: bool) -> None:
    """Remove what an earlier run wrote of these scenes.

    Args:
        pictures: this run draws. If not, pictures go only where the earlier run's record says that it drew:
            what lies there else may be the user's own.
    """
    record = out / "detections.json"
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # none, or not ours
        pictures = pictures or json.loads(record.read_text(encoding="utf-8"))["pictures"]
    record.unlink(missing_ok=True)
    for path in out.glob("Task1_*.txt"):
        path.unlink()
    for name in scenes:
        for suffix in ("geojson", "world.geojson"):
            (out / "geojson" / f"{name}.{suffix}").unlink(missing_ok=True)
        if pictures:
            (out / "pictures" / f"{name}.jpg").unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
