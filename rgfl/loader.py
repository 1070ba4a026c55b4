"""Batches of tiles with their targets, made by worker processes, and how these start and end."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import pickle
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info

from rgfl.dataset import DataError
from rgfl.nn.assign import Targets
from rgfl.processes import end_with_parent, warn_in_lines
from rgfl.tiles import Tile, Tiles


def batch_keys(
    tiles: Tiles, batch: int, start: int, stop: int, rank: int = 0, ranks: int = 1
) -> Iterator[list[tuple[int, int]]]:
    """Keys of `tiles` for the steps `start` to `stop`: each epoch a new order, the last odd ones left out.

    Of `ranks` processes each gets an equal share of every batch, so that together they see what one would.
    """
    count, share = len(tiles), batch // ranks
    per_epoch = steps_per_epoch(count, batch)
    order, ordered = None, -1
    for step in range(start, stop):
        epoch, position = divmod(step, per_epoch)
        if order is None or epoch != ordered:
            order, ordered = tiles.order(epoch), epoch
        # With fewer windows than a batch holds, some come again: drawn anew, by an index beyond the last.
        first = position * batch + rank * share
        repeat, chosen = np.divmod(np.arange(first, first + share), count)
        yield [(epoch, int(index)) for index in order[chosen] + count * repeat]


def steps_per_epoch(count: int, batch: int) -> int:
    """Whole batches in `count` windows; at least one."""
    return max(1, count // batch)


# Makes the targets of images from their boxes, their labels and the images' (height, width).
Assign = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor], tuple[int, int]], Targets]


@dataclass(frozen=True)
class Batch:
    """Tiles stacked for a step, with what a detector is to learn from them."""

    images: torch.Tensor  # (B, S, S, 3) uint8 RGB
    targets: Targets
    names: list[str]

    def split(self, parts: int) -> list[Batch]:
        """The batch in so many equal parts."""
        size = len(self.names) // parts
        return [
            Batch(
                self.images[first : first + size],
                self.targets.of_images(first, first + size),
                self.names[first : first + size],
            )
            for first in range(0, parts * size, size)
        ]

    def __getstate__(self) -> dict[str, Any]:
        """For the way from a worker: one tensor, the rest as arrays, as each tensor is a file held open."""
        return {**self.__dict__, "targets": self.targets.map(torch.Tensor.numpy)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, targets=state["targets"].map(torch.from_numpy))

    def pin_memory(self) -> Batch:
        """For the DataLoader."""
        return Batch(self.images.pin_memory(), self.targets.map(torch.Tensor.pin_memory), self.names)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; the host does not wait for it."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=True)

        return Batch(move(self.images), self.targets.map(move), self.names)


def collate(tiles: Sequence[Tile | Exception], assign: Assign) -> Batch | Exception:
    """Stack tiles, in a worker into shared memory; the first error takes their place."""
    for tile in tiles:
        if isinstance(tile, Exception):
            return tile
    good = [tile for tile in tiles if isinstance(tile, Tile)]
    images = torch.from_numpy(np.stack([tile.image for tile in good]))
    if get_worker_info() is not None:
        # Here and not by the queue, in whose thread an error loses the batch and is waited for without end.
        try:
            _to_shared_memory(images, "tiles")
        except DataError as error:
            return error
    targets = assign(
        [torch.from_numpy(tile.boxes) for tile in good],
        [torch.from_numpy(tile.labels) for tile in good],
        (images.shape[1], images.shape[2]),
    )
    return Batch(images, targets, [tile.name for tile in good])


# ------------------------------------------------------------------------------------------------ workers


def _to_shared_memory(tensor: torch.Tensor, what: str) -> None:
    """Move it into shared memory.

    Raises:
        DataError: there is too little.
    """
    try:
        tensor.share_memory_()
    except RuntimeError as error:
        raise DataError(
            f"no shared memory for {tensor.nbytes / 1e6:.0f} MB of {what} ({error}): use fewer --workers, or "
            "give the container more (docker run --shm-size 16g)"
        ) from error


KILLED_WITHIN = 10.0  # seconds; only a process that the kernel cannot stop takes longer


class _Sent:
    """Tiles on their way to worker processes: pickled once, in shared memory.

    Down the pipe of a process that begins, those of a large data set would be read only after its imports,
    seconds later, and until then the next process would not begin.
    """

    def __init__(self, tiles: Tiles) -> None:
        self._tiles = tiles
        self._pickled = torch.frombuffer(bytearray(pickle.dumps(tiles)), dtype=torch.uint8)
        _to_shared_memory(self._pickled, "labels")

    def __getitem__(self, key: tuple[int, int]) -> Tile | Exception:
        return self._tiles[key]

    def __getstate__(self) -> torch.Tensor:
        return self._pickled

    def __setstate__(self, pickled: torch.Tensor) -> None:
        self._tiles = pickle.loads(pickled.numpy().tobytes())


class Loader:
    """Batches of the keys of `Tiles`, in their order, made by worker processes or, with none, here.

    Workers start afresh and are not forked: this process holds threads (OpenMP, TensorBoard, the bar), and
    a fork may copy a lock that one of them holds. They end with `close`, or with this process.
    """

    def __init__(
        self,
        tiles: Tiles,
        keys: Iterable[list[tuple[int, int]]],
        assign: Assign,
        workers: int,
        pin_memory: bool = False,
    ) -> None:
        loader: DataLoader = DataLoader(
            _Sent(tiles) if workers else tiles,  # type: ignore[arg-type]
            batch_sampler=keys,
            collate_fn=functools.partial(collate, assign=assign),
            num_workers=workers,
            worker_init_fn=_start_worker,
            pin_memory=pin_memory,
            multiprocessing_context="spawn" if workers else None,
            generator=torch.Generator(),  # its own: the loader must not draw from the model's
        )
        self._batches: Iterator[Batch | Exception] | None = None
        others = multiprocessing.active_children()
        try:
            with _signals_held_back() if workers else contextlib.nullcontext():
                self._batches = iter(loader)
        finally:
            self._workers = [child for child in multiprocessing.active_children() if child not in others]
            if self._batches is None:
                self.close()

    def __next__(self) -> Batch | Exception:
        """The next batch, or the error that stands in its place."""
        assert self._batches is not None
        return next(self._batches)

    def lost(self) -> bool:
        """Whether a worker has ended. For after an error: its pipes break a moment before."""
        return bool(self._workers and connection.wait([worker.sentinel for worker in self._workers], 1.0))

    def close(self) -> None:
        """End the workers: asked first, then killed, since one that hangs would hang Python's exit too."""
        try:
            # torch asks them when the last reference to its iterator goes, but an error's traceback holds on
            # to one. There is no public name for it; without it the workers are killed unasked.
            ask = getattr(self._batches, "_shutdown_workers", None)
            if ask is not None:
                ask()
        finally:
            for worker in self._workers:
                worker.kill()
            for worker in self._workers:
                worker.join(KILLED_WITHIN)


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP wait until the end of the block; processes that begin in it never get them.

    A worker imports torch before any line of ours runs in it, and a signal in that time would kill it.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        # Python's own process, which would not outlive SIGHUP. Its start unblocks the other two.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(_index: int) -> None:
    # Terminals and containers signal the whole group; stopping is for the loop, which then ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    cv2.setNumThreads(0)
    warn_in_lines()
    end_with_parent()  # torch looks for the parent between two tiles only, not while one hangs
