"""Detection over large scenes: reading and cutting, the network, NMS and writing run side by side.

    python trt_runtime/pipeline.py --model model.onnx --images scenes/ --out found/

Tiles of several scenes share a batch, so small images fill it too. Decoding an image takes longer than
inferring it on a GPU, and so does drawing it: several are decoded, and several written, at a time.

Memory is bounded: the pixels of what is read ahead, of what is inferred, and of what waits to be drawn stay
below `AHEAD` each, and a scene's pixels are let go when the next scene is asked for. Of larger scenes four
are held at a time: one is read, one waits, one is inferred, one drawn. The result is that of
rgfl.dota.merge.detect, which leaves out tiles of zeros alone, too.

What is found in finished scenes is kept in `JOURNAL` until all is written: after a kill the same command goes
on.
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
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from rgfl import atomic, draw, errors
from rgfl.boxes import to_quads
from rgfl.detections import Detections
from rgfl.dota import georeference
from rgfl.dota.georeference import Georeference
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
from rgfl.dota.journal import follow, packed, resume, stamp, unpacked
from rgfl.dota.labels import fits_task1, write_task1
from rgfl.dota.merge import Part, Place, merge, pixels_at, places_at_scales, tile_at
from rgfl.folder_lock import lock_folder
from rgfl.processes import usable_cores
from rgfl.trt_runtime import machine
from rgfl.trt_runtime.runners import Runner, load_runner

WAITING_BATCHES = 2  # prepared and not yet inferred
WAITING_RESULTS = 8  # batches inferred: merging a large scene takes as long as some of them
JOURNAL = ".journal"  # in --out; its first line says what decides the results, then one line a finished scene
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
  map/NAME.geojson for a scene whose place on earth GDAL knows (GeoTIFF, world file, .aux.xml): polygons in
  the scene's own reference system; QGIS, geopandas and ogr2ogr read it
  map.geojson: all scenes with a reference system as one layer, in longitude and latitude; of each object the
  image, class, score, length and width in metres

After a kill or Ctrl-C, or once a scene that could not be read is mended, the same command goes on; times in
detections.json are then those of the scenes that were left.

exit status: 0 done, 2 bad input, also if single scenes could not be read: the others are done then
"""


@dataclass
class Timing:
    """Seconds that each part of the pipeline was busy; parts overlap, so they may exceed `total`.

    `tiles` are those that went through the network, `blank` those that were left out.
    """

    total: float = 0.0
    read: float = 0.0
    prepare: float = 0.0
    network: float = 0.0
    nms: float = 0.0
    merge: float = 0.0
    tiles: int = 0
    blank: int = 0
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
        windows: tiles of it that the network sees.
        blank: tiles of zeros alone, which are left out.
        detections: merged, in pixels of the image; set when the scene is done.
    """

    name: str
    image: NDArray[np.uint8]
    windows: int = 0
    blank: int = 0
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
    progress: Callable[[int], object] = lambda tiles: None,
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
        progress: called with how many tiles more are done, see `count_tiles`.

    Raises:
        ImageError: without `unreadable`, a file that is no image, when its turn comes.
    """
    size = runner.spec.tile_side
    expect_stride(stride, size)
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
                progress(len(owners))
                for (scene, place), record in zip(owners, found, strict=True):
                    scene.parts.append(Part.at(place, size, record))
                    if len(scene.parts) == scene.windows:
                        merging = time.perf_counter()
                        scene.detections = merge(scene.parts)
                        scene.parts = []
                        timing.merge += time.perf_counter() - merging
                        timing.images += 1
                        timing.blank += scene.blank
                        progress(scene.blank)
                        timing.total = time.perf_counter() - started
                        held = scene.image.nbytes
                        yield scene
                        scene.image = np.empty((0, 0, 3), np.uint8)  # whoever still holds the scene
                        room.give(held)
    finally:
        timing.total = time.perf_counter() - started


def expect_stride(stride: int, size: int) -> None:
    """InputError for a stride that does not fit tiles of `size` pixels."""
    if not 0 <= stride <= size:
        raise errors.InputError(f"--stride {stride}: expected 0…{size}, the side of the model's tile")


def count_tiles(paths: Iterable[Path], size: int, stride: int, scales: Sequence[float]) -> int:
    """Tiles of all images, blank ones included; none of a file that is no image."""
    total = 0
    for path in paths:
        with contextlib.suppress(ImageError, OSError):
            total += len(places_at_scales(*image_size(path), size=size, stride=stride, scales=scales))
    return total


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
            seen = [place for place in places if pixels_at(scene.image, place).any()] or places[-1:]
            scene.windows, scene.blank = len(seen), len(places) - len(seen)
            for place in seen:
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
    quads = _quads(detections)
    rings = quads.round(3) if place is None else place.rings(quads)
    boxes = detections.boxes.astype(np.float64)
    properties = [
        {**known, "cx": cx, "cy": cy, "width": width, "height": height, "angle": angle}
        for known, (cx, cy, width, height), angle in zip(
            _known(detections, classes),
            boxes[:, :4].round(3).tolist(),
            boxes[:, 4].round(5).tolist(),
            strict=True,
        )
    ]
    pixels = "pixels of the image, x right, y down; angle in radians, clockwise"
    return {
        "type": "FeatureCollection",
        "name": name,
        "coordinate_system": pixels if place is None else f"{place.crs}; properties in {pixels}",
        **(place.member() if place is not None else {}),
        "features": list(_features(rings, properties)),
    }


def write_map(
    path: Path,
    scenes: Iterable[tuple[str, Detections]],
    places: Mapping[str, Georeference],
    classes: tuple[str, ...],
) -> int:
    """Write what is found in all scenes as one layer in longitude and latitude, as RFC 7946 has GeoJSON.

    Properties of an object are image, class, score, and length and width in metres on the ground, see
    `georeference.metres`.

    Args:
        scenes: names and detections, taken one at a time.
        places: georeferences that have a system.

    Returns:
        How many objects are not in it: they lie where the scene's system has no longitude and latitude.
    """
    beyond, separator = 0, "\n"
    with atomic.whole(path) as hidden, hidden.open("w", encoding="utf-8", newline="\n") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for name, detections in scenes:
            rings = places[name].degrees(_quads(detections))
            properties = [
                {"image": name, **known, "length": length, "width": width}
                for known, (length, width) in zip(
                    _known(detections, classes), georeference.metres(rings).round(2).tolist(), strict=True
                )
            ]
            features = list(_features(rings, properties))
            beyond += len(rings) - len(features)
            for feature in features:
                file.write(separator + json.dumps(feature))
                separator = ",\n"
        file.write("\n]}\n")
    return beyond


def _quads(detections: Detections) -> NDArray[Any]:
    """Corners (N, 4, 2) in pixels."""
    return to_quads(detections.boxes.astype(np.float64)).reshape(-1, 4, 2)


def _known(detections: Detections, classes: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Class and score of each."""
    scores = detections.scores.astype(np.float64).round(4).tolist()
    for label, score in zip(detections.labels.tolist(), scores, strict=True):
        yield {"class": classes[label], "score": score}


def _features(rings: NDArray[np.float64], properties: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """GeoJSON's features of rings (N, 4, 2), but for those with a corner that is not finite."""
    for ring, values in zip(rings, properties, strict=True):
        if np.isfinite(ring).all():
            ring = ring.tolist()
            polygon = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
            yield {"type": "Feature", "geometry": polygon, "properties": values}


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
    return errors.run("pipeline", lambda: detect_scenes(arguments), interrupted=errors.GOES_ON)


def detect_scenes(arguments: argparse.Namespace) -> int:
    """The command behind `main`, with parsed arguments."""
    check_model_arguments(arguments)
    scenes = find_scenes(*arguments.images, recursive=arguments.recursive)
    places = {name: place for name, path in scenes.items() if (place := georeference.find(path)) is not None}
    errors.new_directory(arguments.out, "--out")
    expect_no_others(arguments.out, scenes)
    errors.picture_directory(arguments.out / "pictures", "--out", scenes)
    with load_runner(arguments.model, device=arguments.device, threads=arguments.threads) as runner:
        threshold = runner.spec.score_threshold
        expect_stride(arguments.stride, runner.spec.tile_side)
        print(f"{runner.name}: {runner.reason}", file=sys.stderr)
        if arguments.score < threshold:
            print(
                f"note: --score {arguments.score:g}: this model keeps scores above {threshold:g} only, its "
                "spec's score_threshold; for lower ones train with --score-threshold, or see Runner.detect",
                file=sys.stderr,
            )
            arguments.score = threshold
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
    head = journal_head(model, arguments, ("score", "pictures"))
    found = _find(runner, scenes, places, arguments, head, timing, unreadable)
    timing.total = time.perf_counter() - started
    if not found:
        more = f" (and {len(unreadable) - 1} more)" if len(unreadable) > 1 else ""
        raise errors.InputError(next(iter(unreadable.values())) + more)
    spaced = [name for name in scenes if not fits_task1(name)]
    write_task1(out, {name: one for name, one in found.items() if name not in spaced}, classes)
    shown = {name: one[one.scores >= arguments.score] for name, one in found.items()}
    places = {name: place for name, place in places.items() if name in found}
    on_map = {name: place for name, place in places.items() if place.system}
    beyond = 0
    if on_map:
        beyond = write_map(out / "map.geojson", ((name, shown[name]) for name in on_map), on_map, classes)
    counts = {name: np.bincount(one.labels, minlength=len(classes)).tolist() for name, one in shown.items()}
    record = {
        "model": model,
        "scales": arguments.scales,
        "score": arguments.score,
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
    if not unreadable:
        (out / JOURNAL).unlink()
    say_places(scenes, places)
    if on_map:
        print(f"{len(on_map)} scenes as one layer, in longitude and latitude: {out / 'map.geojson'}")
    if beyond:
        print(
            f"note: {beyond} objects are not in map.geojson, as they have no longitude and latitude",
            file=sys.stderr,
        )
    blank = f" and {timing.blank} blank ones left out" if timing.blank else ""
    print(
        f"{sum(map(len, shown.values()))} detections of score ≥ {arguments.score:g} in {len(found)} scenes "
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
        return all(path.is_file() for path in scene_files(out, name, name in places, pictures))

    done = resume(out / JOURNAL, head, states, is_whole)
    left = {name: path for name, path in scenes.items() if name not in done}
    remove_results(out, left, pictures)
    if done:
        print(f"pipeline: {len(done)} of {len(scenes)} scenes are done, by {out / JOURNAL}", file=sys.stderr)

    def write(name: str, found: Detections, image: NDArray[np.uint8] | None) -> dict[str, Any]:
        """The scene's files; its entry in the journal."""
        shown = found[found.scores >= arguments.score]
        file = f"{name}.geojson"
        atomic.write_text(out / "geojson" / file, json.dumps(geojson(name, shown, classes)))
        if (place := places.get(name)) is not None:
            atomic.write_text(out / "map" / file, json.dumps(geojson(name, shown, classes, place)))
        if image is not None:
            picture = draw.picture(image, shown, classes, min_score=arguments.score)
            draw.save(picture, out / "pictures" / f"{name}.jpg")
        return {"image": name, "state": states[name], **packed(found)}

    cut = {"stride": arguments.stride, "scales": arguments.scales}
    with (
        tqdm(total=count_tiles(left.values(), runner.spec.tile_side, **cut), unit="tile") as bar,
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
                bar.set_postfix_str(f"{number} of {len(scenes)} scenes")
                if pictures:
                    yield scene.image.nbytes, partial(write, scene.name, scene.detections, scene.image)
                else:
                    yield 0, partial(write, scene.name, scene.detections, None)

        with contextlib.closing(_side_by_side(jobs(), "rgfl-writer")) as written:
            entries = (entry.result() for entry in written)
            follow(entries, out / JOURNAL, done, len(scenes), task="", progress=False)
    return {name: unpacked(done[name]) for name in scenes if name in done}


def journal_head(
    model: Mapping[str, Any], arguments: argparse.Namespace, flags: Sequence[str]
) -> dict[str, Any]:
    """First line of a journal: what decides what a model finds in an image.

    Args:
        model: what Runner.describe tells.
        flags: of the command, that decide what is made of it.
    """
    facts = {name: model[name] for name in ("sha256", "backend", "precision", "device")}
    facts |= {name: str(getattr(arguments, name)) for name in ("stride", "scales", "batch", *flags)}
    return facts | {"versions": machine.versions()}


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


def remove_results(out: Path, scenes: Collection[str], pictures: bool) -> None:
    """Remove what an earlier run wrote of these scenes, and of all of its scenes together.

    Args:
        pictures: this run draws. If not, pictures go only where the earlier run's record says that it drew:
            what lies there else may be the user's own.
    """
    record = out / "detections.json"
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # none, or not ours
        pictures = pictures or json.loads(record.read_text(encoding="utf-8"))["pictures"]
    record.unlink(missing_ok=True)
    for path in [*out.glob("Task1_*.txt"), out / "map.geojson"]:
        path.unlink(missing_ok=True)
    for name in scenes:
        for path in scene_files(out, name, on_map=True, pictures=pictures):
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
