"""The tiles that a training run sees: windows of the pictures, augmented.

Everything random about a tile is drawn from (seed, epoch, index), so neither the number of worker
processes nor a restart changes what is trained on. The order of an epoch comes from (seed, epoch) alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rgfl import boxes
from rgfl.augment import about, map_pixels, map_points, map_round, random_color, random_turn
from rgfl.dataset import DataError, Picture
from rgfl.dota.labels import DIFFICULT_CUT, Objects, quad_areas
from rgfl.dota.tiling import clip_objects, windows
from rgfl.errors import UserError
from rgfl.recipes import AugmentConfig, DataConfig

# The pixels of pictures whose windows are mixed with each other: 450 MB, which fit into the default of
# --cache-mb with small pictures in between. They do not follow that flag, which must not change a result.
GROUP_PIXELS = 150_000_000
# From this share on, objects that can never be learned are a fault of the labels, and no training.
UNUSABLE = 0.9


class Window(NamedTuple):
    """Where a tile comes from: a picture, and for the grid its corner."""

    picture: int
    corner: tuple[int, int] | None


@dataclass(frozen=True)
class Tile:
    """One training sample."""

    image: NDArray[np.uint8]  # (S, S, 3) RGB
    boxes: NDArray[np.float32]  # (G, 5) canonical
    labels: NDArray[np.int64]  # (G,)
    name: str


def list_windows(pictures: Sequence[Picture], config: DataConfig, seed: int = 0) -> list[Window]:
    """The windows of one epoch, in a fixed order.

    "grid": the devkit's split. "random": each picture as often as tiles cover its area; where, is drawn anew
    each time. Those of pictures with rare classes come more often (`repeat_below`), and of those without an
    object so many stay as make up `empty_share` of all.
    """
    size, grid, rng = config.tile_size, config.windows == "grid", np.random.default_rng(seed)
    owners, corners, holds = [], [], []
    for index, (picture, times) in enumerate(zip(pictures, _repeats(pictures, config), strict=True)):
        if grid:
            places = np.array(windows(picture.height, picture.width, size, config.stride))
            found = _hold_any(picture, places, config)
        else:
            places = np.zeros((max(1, round(picture.height * picture.width / size**2)), 2), np.int64)
            found = np.full(len(places), len(_learned(picture, config)) > 0)
        more = rng.random(len(places)) < times % 1
        chosen = np.repeat(np.arange(len(places)), int(times) + more)
        owners.append(np.full(len(chosen), index))
        corners.append(places[chosen])
        holds.append(found[chosen])
    owner, corner, kept = np.concatenate(owners), np.concatenate(corners), np.concatenate(holds)
    empty, share = np.flatnonzero(~kept), config.empty_share
    room = int(kept.sum() * share / (1 - share)) if share < 1 else len(empty)
    kept[rng.permutation(empty)[:room]] = True
    return [
        Window(index, (x, y) if grid else None)
        for index, (x, y) in zip(owner[kept].tolist(), corner[kept].tolist(), strict=True)
    ]


def _repeats(pictures: Sequence[Picture], config: DataConfig) -> list[float]:
    """How often the windows of each picture come: max(1, √(t / f)), where f is the share of pictures with the
    rarest of its classes and t `repeat_below`: the repeat factor of LVIS (Gupta et al., 2019)."""
    if not config.repeat_below:
        return [1.0] * len(pictures)
    classes = [np.unique(_learned(picture, config).labels).tolist() for picture in pictures]
    counts = Counter(label for found in classes for label in found)
    wanted = config.repeat_below * len(pictures)
    return [max([1.0, *(float(np.sqrt(wanted / counts[label])) for label in found)]) for found in classes]


def _learned(picture: Picture, config: DataConfig) -> Objects:
    """Objects of the picture that are not too difficult to be trained on."""
    return picture.objects[picture.objects.difficult < _too_difficult(config)]


def _hold_any(picture: Picture, corners: NDArray[np.int64], config: DataConfig) -> NDArray[np.bool_]:
    """(W,) whether `_visible` finds an object in the windows at `corners` (W, 2).

    Most hold the whole of one, which needs no clipping; the others are asked about the objects that reach in.
    """
    size, image = config.tile_size, picture.corners()
    objects = _learned(picture, config)
    points = objects.quads.reshape(-1, 4, 2)
    (left, top), (right, bottom) = points.min(1).T, points.max(1).T
    xs, ys = corners[:, :1], corners[:, 1:]
    reaches_in = (right > xs) & (left < xs + size) & (bottom > ys) & (top < ys + size)  # (W, N)
    # Next to no area is left to the clipping, whose rounding decides whether it is none.
    solid = quad_areas(objects.quads) > 1e-3
    ends_x, ends_y = np.minimum(xs + size, picture.width), np.minimum(ys + size, picture.height)
    whole = solid & (left >= xs) & (right <= ends_x) & (top >= ys) & (bottom <= ends_y)
    found = whole.any(1)
    config = dataclasses.replace(config, cut="whole")  # what they look like is not asked
    for row in np.flatnonzero(reaches_in.any(1) & ~found):
        x, y = corners[row].tolist()
        found[row] = len(_visible(objects[reaches_in[row]], image, x, y, size, config)) > 0
    return found


def _visible(
    objects: Objects, image: NDArray[np.float64], x: float, y: float, size: int, config: DataConfig
) -> Objects:
    """Objects to train on in the tile at (x, y), in its pixels; `image` are the corners of their picture.

    What lies beside the picture is not seen, as rgfl.dota.tiling has it: it would be learned as padding.
    """
    image = image - np.array([x, y])
    clipped = clip_objects(objects, x, y, (size, size), config.min_visible, cut=config.cut, image=image)
    return clipped[clipped.difficult < _too_difficult(config)]


def _too_difficult(config: DataConfig) -> int:
    """The least `difficult` that is not trained on."""
    return DIFFICULT_CUT if config.train_difficult else 1


def as_shown(picture: Picture) -> Picture:
    """The picture without the objects that lie outside of it or have no area."""
    width, height = picture.width, picture.height
    shown = clip_objects(picture.objects, 0, 0, (width, height), 0.0, cut="whole")
    if len(shown) == len(picture.objects):
        return picture  # and no copy of its labels
    return dataclasses.replace(picture, objects=shown)


def to_boxes(quads: NDArray[np.float64], config: DataConfig) -> NDArray[np.float64]:
    """Labelled quads (N, 8) to canonical boxes (N, 5), as the recipe says."""
    return boxes.from_quads(quads) if config.boxes_from == "min_area" else boxes.from_quads_by_edges(quads)


class Tiles:
    """The training tiles by (epoch, index); what a DataLoader reads from.

    Attributes:
        outside, too_small, too_long: how many objects of an image are never learned, by its name: those that
            lie outside of it or have no area, those with a side below `min_side` at any magnification, and
            those that are too long for a tile to show `min_visible` of them even at the smallest.

    Raises:
        DataError: there is next to nothing to learn from.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        classes: Sequence[str],
        data: DataConfig,
        augment: AugmentConfig,
        seed: int,
        cache_mb: int = 0,
    ) -> None:
        self.pictures = [as_shown(picture) for picture in pictures]
        self.data, self.augment, self.seed = data, augment, seed
        self.classes = tuple(classes)
        self.outside = {
            old.name: lost
            for old, new in zip(pictures, self.pictures, strict=True)
            if (lost := len(old.objects) - len(new.objects))
        }
        sides = to_boxes(Objects.concatenate([one.objects for one in self.pictures]).quads, data)[:, 2:4]
        least, greatest = augment.scale
        if data.windows == "grid":  # which windows there are, is decided at the images' own size
            least = 1.0
        self.too_small = self._counted(sides.min(1) * greatest < data.min_side)
        long = sides.max(1) * least * data.min_visible > data.tile_size
        self.too_long = self._counted(long)
        self._long_side = float(np.median(sides[long].max(1))) if long.any() else 0.0
        self._expect_objects()
        self._round = [label for label, name in enumerate(classes) if name in augment.round_classes]
        self.windows = list_windows(self.pictures, data, seed)
        if not self.windows:
            raise DataError("no training window holds an object; look at --tile-size and --min-visible")
        # The windows of picture p are those from _first[p] to _first[p + 1] − 1.
        self._first = np.searchsorted(
            [window.picture for window in self.windows], np.arange(len(self.pictures) + 1)
        )
        # A picture with a single window is decoded once an epoch wherever that comes, so a group has it free.
        pixels = np.array([picture.height * picture.width for picture in self.pictures])
        self._pixels_mixed = np.where(np.diff(self._first) > 1, pixels, 0)
        self._groups_of: tuple[int, list[NDArray[np.int64]]] = (-1, [])  # an epoch, and its groups
        self._cache: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()
        self._cache_size = self._cache_left = cache_mb * 10**6
        self._uncached: tuple[int, NDArray[np.uint8]] | None = None

    def _counted(self, chosen: NDArray[np.bool_]) -> dict[str, int]:
        """How many of the `chosen` objects an image has, by its name, where there are any."""
        owners = np.repeat(np.arange(len(self.pictures)), [len(picture.objects) for picture in self.pictures])
        counts = np.bincount(owners[chosen], minlength=len(self.pictures)).tolist()
        return {picture.name: count for picture, count in zip(self.pictures, counts, strict=True) if count}

    def _expect_objects(self) -> None:
        """Raise where all objects, or nearly all, can never be learned, or are too difficult."""
        outside, small = sum(self.outside.values()), sum(self.too_small.values())
        total = outside + sum(len(picture.objects) for picture in self.pictures)
        if outside + small >= max(UNUSABLE * total, 1):
            name = next(iter(self.outside | self.too_small))
            path = next(picture.path for picture in self.pictures if picture.name == name)
            raise DataError(
                f"{path.parent.parent / 'labelTxt' / name}.txt: expected objects inside their images with "
                f"sides of --min-side {self.data.min_side:g} px at least, got {outside + small:,} of "
                f"{total:,} in train that are not ({outside:,} outside or without area, {small:,} smaller), "
                "some of them here; correct the labels, which are pixels of the image and no map coordinates"
            )
        if (long := sum(self.too_long.values())) >= max(UNUSABLE * total, 1):
            raise DataError(
                f"expected objects that fit into tiles of --tile-size {self.data.tile_size}, got {long:,} of "
                f"{total:,} in train that do not; {self.fitting_scales()}"
            )
        if not any(len(_learned(picture, self.data)) for picture in self.pictures):
            limit = _too_difficult(self.data)
            raise DataError(
                f"expected objects to learn in train, got {total:,} that are all marked difficult, {limit} "
                "or more; correct the labels, or use --train-difficult if they are 1"
            )

    def fitting_scales(self) -> str:
        """What to do about `too_long`: magnifications at which half of them fit into half a tile."""
        fits = max(0.05, float(f"{self.data.tile_size / 2 / self._long_side:.2g}"))
        all_long = 2 * sum(self.too_long.values()) > sum(len(picture.objects) for picture in self.pictures)
        least, greatest = (0.7 * fits, 1.5 * fits) if all_long else (fits, max(1.0, self.augment.scale[1]))
        scales = f"{fits:g}" if all_long else f"1,{fits:g}"
        windows = "--windows random " if self.data.windows == "grid" else ""
        return (
            f"half of them are {self._long_side:,.0f} px long or more: learn from smaller pictures, by "
            f"{windows}--scale {least:.2g},{greatest:.2g} --test-scales {scales}, and later give "
            f"eval_dota.py and pipeline.py --scales {scales.replace(',', ' ')}"
        )

    def objects_by_class(self) -> dict[str, int]:
        """How many objects of each class the images hold, difficult ones included."""
        labels = np.concatenate([picture.objects.labels for picture in self.pictures])
        counts = np.bincount(labels, minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, counts, strict=True))

    def without_objects(self) -> tuple[int, int]:
        """How many images hold no object to learn, and how many windows are of them."""
        empty = np.array([not len(_learned(picture, self.data)) for picture in self.pictures])
        return int(empty.sum()), int(np.diff(self._first)[empty].sum())

    def pictures_mixed(self) -> float:
        """How many pictures a group holds, in the mean; infinite where all are one group."""
        groups = len(self._groups(np.random.default_rng(self.seed)))
        return math.inf if groups == 1 else np.count_nonzero(np.diff(self._first)) / groups

    def cache_wanted(self) -> int:
        """MB of cache with which a process decodes a picture once an epoch at most, mosaics left aside."""
        return -(-3 * min(int(self._pixels_mixed.sum()), GROUP_PIXELS) // 10**6)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Every window once: the order of this epoch.

        Windows are mixed within groups of pictures that change from epoch to epoch; pictures of which no more
        than a cache holds are one group. Mixed over all, nearly every tile would decode a picture.
        """
        rng = np.random.default_rng([self.seed, epoch])
        return np.concatenate([rng.permutation(group) for group in self._groups(rng)])

    def _groups(self, rng: np.random.Generator) -> list[NDArray[np.int64]]:
        """The windows of random groups of pictures, each group of `GROUP_PIXELS` at most or one picture."""
        if self._pixels_mixed.sum() <= GROUP_PIXELS:
            return [np.arange(len(self.windows))]
        groups: list[list[NDArray[np.int64]]] = []
        room = -1
        for picture in rng.permutation(len(self.pictures)).tolist():
            if self._pixels_mixed[picture] > room:
                groups.append([])
                room = GROUP_PIXELS
            groups[-1].append(np.arange(self._first[picture], self._first[picture + 1]))
            room -= self._pixels_mixed[picture]
        return [np.concatenate(group) for group in groups]

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes: a few large arrays in place of many small ones, and no pixels."""
        objects = Objects.concatenate([picture.objects for picture in self.pictures])
        return {
            **self.__dict__,
            "pictures": (
                [picture.name for picture in self.pictures],
                [str(picture.path) for picture in self.pictures],
                [(picture.height, picture.width, len(picture.objects)) for picture in self.pictures],
                objects,
            ),
            "windows": [(picture, *(corner or ())) for picture, corner in self.windows],
            "_groups_of": (-1, []),
            "_cache": OrderedDict(),
            "_cache_left": self._cache_size,
            "_uncached": None,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        names, paths, sizes, objects = state["pictures"]
        pictures, first = [], 0
        for name, path, (height, width, count) in zip(names, paths, sizes, strict=True):
            pictures.append(Picture(name, Path(path), height, width, objects[first : first + count]))
            first += count
        windows = [
            Window(picture, (corner[0], corner[1]) if corner else None)
            for picture, *corner in state["windows"]
        ]
        self.__dict__.update(state, pictures=pictures, windows=windows)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, key: tuple[int, int]) -> Tile | Exception:
        # Errors cross the process border as values: the user reads one line, not a worker's traceback.
        try:
            return self.tile(*key)
        except (OSError, UserError) as error:
            return error

    def tile(self, epoch: int, index: int) -> Tile:
        """The tile of this place in the epoch; equal arguments give equal tiles.

        An index from len(self) on is a repeat: the same windows once more, drawn anew.
        """
        rng = np.random.default_rng([self.seed, epoch, index])
        index %= len(self.windows)
        size = self.data.tile_size
        name = self.pictures[self.windows[index].picture].name
        if rng.random() < self.augment.mosaic:
            image, objects = self._mosaic(rng, epoch, index)
        else:
            image, objects = self._render(rng, self.windows[index], size)
        found = to_boxes(objects.quads, self.data)
        keep = found[:, 2:4].min(1, initial=np.inf) >= self.data.min_side
        return Tile(image, found[keep].astype(np.float32), objects.labels[keep].astype(np.int64), name)

    def _render(
        self, rng: np.random.Generator, window: Window, size: int
    ) -> tuple[NDArray[np.uint8], Objects]:
        """One augmented view of a window: pixels (size, size, 3) and the objects to train on in it."""
        picture = self.pictures[window.picture]
        turn = random_turn(rng, self.augment)
        color = random_color(rng, self.augment)
        if window.corner is None:
            center = self._random_center(rng, picture, size, turn.factor)
        else:
            center = np.array(window.corner) + self.data.tile_size / 2
        affine = about(turn.linear, center, size)
        image = map_pixels(self._pixels(window.picture), affine, size, self.data.pad_value, color)
        objects = picture.objects
        quads = np.where(
            np.isin(objects.labels, self._round)[:, None],
            map_round(affine, turn.upright, objects.quads),
            map_points(affine, objects.quads),
        )
        placed = dataclasses.replace(objects, quads=quads)
        return image, _visible(placed, map_points(affine, picture.corners()), 0, 0, size, self.data)

    def _random_center(
        self, rng: np.random.Generator, picture: Picture, size: int, factor: float
    ) -> NDArray[np.float64]:
        """Middle of a window that lies in the picture, or has all of it where the picture is smaller."""
        extent = size / factor  # side of the window in the picture's pixels
        room = np.array([picture.width, picture.height]) - extent
        low, high = np.minimum(room, 0), np.maximum(room, 0)
        objects = _learned(picture, self.data)
        quads, labels = objects.quads, objects.labels
        if len(quads) and rng.random() < self.data.object_probability:
            if self.data.repeat_below:  # each class alike
                quads = quads[labels == rng.choice(np.unique(labels))]
            middle = quads[rng.integers(len(quads))].reshape(4, 2).mean(0)
            start = np.clip(middle - extent * rng.uniform(0.1, 0.9, 2), low, high)
        else:
            start = rng.uniform(low, high)
        if factor == 1:
            start = np.round(start)  # whole pixels are copied, not resampled
        return start + extent / 2

    def _mosaic(self, rng: np.random.Generator, epoch: int, index: int) -> tuple[NDArray[np.uint8], Objects]:
        """Four views of half the size, this window's and three others' of its group, side by side."""
        half = self.data.tile_size // 2
        image = np.empty((2 * half, 2 * half, 3), np.uint8)
        parts = []
        group = self._group_with(epoch, index)
        others = group[rng.integers(len(group), size=3)].tolist()
        for place, window in enumerate([index, *others]):
            y, x = half * (place // 2), half * (place % 2)
            image[y : y + half, x : x + half], part = self._render(rng, self.windows[window], half)
            parts.append(dataclasses.replace(part, quads=part.quads + [x, y] * 4))
        return image, Objects.concatenate(parts)

    def _group_with(self, epoch: int, index: int) -> NDArray[np.int64]:
        """The windows that this one is mixed with in an epoch, itself among them."""
        if self._groups_of[0] != epoch:
            self._groups_of = epoch, self._groups(np.random.default_rng([self.seed, epoch]))
        return next(group for group in self._groups_of[1] if index in group)

    def _pixels(self, index: int) -> NDArray[np.uint8]:
        """Pixels of a picture, from an LRU cache by bytes.

        A picture larger than the whole cache is kept only until the next read.
        """
        if self._uncached is not None and self._uncached[0] == index:
            return self._uncached[1]
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        picture = self.pictures[index]
        # Room is made first: what goes and what comes need not be in memory together.
        self._uncached = None
        size = 3 * picture.height * picture.width
        if size > self._cache_size:
            image = picture.read()
            if self._cache_size:
                self._uncached = index, image
            return image
        while size > self._cache_left:
            self._cache_left += self._cache.popitem(last=False)[1].nbytes
        self._cache[index] = image = picture.read()
        self._cache_left -= image.nbytes
        return image
