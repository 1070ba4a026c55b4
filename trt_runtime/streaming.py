"""Detections of many scenes as they get done: reading and cutting, the network and NMS run side by side.

Tiles of several scenes share a batch, so small images fill it too. Decoding an image takes longer than
inferring it on a GPU, so several are decoded at a time.

Memory is bounded: the pixels of what is read ahead and of what is inferred stay below `AHEAD` each, and a
scene's pixels are let go when the next scene is asked for. Of larger scenes three are held at a time: one is
read, one waits, one is inferred. The result is that of rgfl.dota.merge.detect, which leaves out tiles of
zeros alone, too.
"""

from __future__ import annotations

import contextlib
import queue
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

from rgfl import errors
from rgfl.detections import Detections
from rgfl.dota.images import ImageError, image_size, read_image
from rgfl.dota.merge import Part, Place, merge, pixels_at, places_at_scales, tile_at
from rgfl.processes import usable_cores
from rgfl.trt_runtime.runners import Runner, check_scene

WAITING_BATCHES = 2  # prepared and not yet inferred
WAITING_RESULTS = 8  # batches inferred: merging a large scene takes as long as some of them
AHEAD = 1 << 28  # bytes of pixels: of images read before their turn, of those inferred, of those to be drawn

Item = TypeVar("Item")
Done = TypeVar("Done")


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
        name: see rgfl.trt_runtime.scenes.find_scenes.
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
_Owners = list[tuple[Scene, Place]]


def stream(
    runner: Runner,
    images: Mapping[str, Path | NDArray[np.uint8]],
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
        images: file of each scene by name, or its pixels (H, W, 3), uint8 RGB.
        stride: pixels of a tile from one to the next; 0 for `rgfl.dota.tiling.default_stride`.
        scales: factors, each of which adds its tiles; at 0.5 a tile shows twice as many pixels each way.
        batch: tiles a call.
        timing: filled while the scenes come.
        unreadable: takes the scenes that cannot be read, with the reason; they are left out.
        progress: called with how many tiles more are done, see `count_tiles`.

    Raises:
        ImageError: without `unreadable`, a file that is no image, when its turn comes.
        ValueError: an array that is no such pixels.
    """
    for name, image in images.items():
        if isinstance(image, str):
            raise ValueError(
                f"{name}: expected a Path or pixels, got {image!r}; take pathlib.Path({image!r})"
            )
        if not isinstance(image, Path):
            check_scene(image)
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
    images: Mapping[str, Path | NDArray[np.uint8]],
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
        for image in images.values():
            height = width = 0
            with contextlib.suppress(ImageError, OSError):  # which reading tells
                height, width = image_size(image) if isinstance(image, Path) else image.shape[:2]
            yield 3 * height * width, partial(read, image)

    def read(image: Path | NDArray[np.uint8]) -> tuple[NDArray[np.uint8], float]:
        """Pixels, and how long they took."""
        reading = time.perf_counter()
        pixels = read_image(image) if isinstance(image, Path) else image
        return pixels, time.perf_counter() - reading

    def prepared() -> _Batch:
        preparing = time.perf_counter()
        ready = _Batch(runner.prepare(tiles.copy()), owners.copy())
        timing.prepare += time.perf_counter() - preparing
        tiles.clear()
        owners.clear()
        return ready

    with contextlib.closing(side_by_side(jobs(), "rgfl-decoder", beyond=1)) as pixels:
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


def side_by_side(
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
