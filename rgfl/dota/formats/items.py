"""Where the images of a data set go: the names that they get, and which of them validate."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from rgfl.dota.formats.dataset import SPLITS, ConvertError, Item
from rgfl.dota.georeference import world_endings
from rgfl.dota.tiling import parse_tile_name

ARCHIVE_PART = re.compile(r"part[-_]?\d+", re.IGNORECASE)


@dataclass(frozen=True)
class Placed:
    """An item, and the split and name (without extension) that it is written under.

    Attributes:
        beside: what follows the image's stem in the names of files that say where it lies on earth.
    """

    item: Item
    split: str
    name: str
    beside: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.split}/{self.name}"


def placed(items: Sequence[Item]) -> list[Placed]:
    """The items under names without white space, of which no two of a split are equal.

    `IMG (2)` becomes `IMG_(2)`; equal names of several sub-folders become `flight0__DJI_0001`, ….

    Raises:
        ConvertError: two are still equal, or some images are in a split and others in none.
    """
    if len({item.split for item in items}) > 1 and (loose := [item for item in items if not item.split]):
        raise ConvertError(
            f"{len(loose)} images are in none of the splits that others are in, such as {loose[0].image}; "
            f"put them into one of {', '.join(SPLITS)}, or move them away"
        )
    keys = [(item.split, _without_spaces(item.image.stem)) for item in items]
    counts = Counter(keys)
    found: dict[str, Placed] = {}
    for item, (split, name), folder in zip(items, keys, _sub_folders(items), strict=True):
        if counts[split, name] > 1:
            name = "__".join([*map(_without_spaces, folder), name])
        place = Placed(item, split, name)
        if (other := found.setdefault(place.key, place)) is not place:
            raise ConvertError(
                f"{other.item.image} and {item.image}: both would be called {name}; rename one"
            )
    return list(found.values())


def with_georeferences(places: Sequence[Placed]) -> list[Placed]:
    """The items with the world file, .prj and .aux.xml that lie beside their images.

    Links are left out, with a warning: nobody reads these files before they are placed, and a link may lead
    to any other.
    """
    there: dict[Path, set[str]] = {}
    links: set[Path] = set()
    for folder in {place.item.image.parent for place in places}:
        entries = list(os.scandir(folder))
        there[folder] = {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
        links |= {folder / entry.name for entry in entries if entry.is_symlink()}
    images = [place.item.image for place in places] if links else []
    files = (image.with_name(image.stem + end) for image in images for end in georeferences(image.suffix))
    if left := sorted(set(files) & links):
        warnings.warn(
            f"{len(left)} links are left out that would say where images lie on earth, such as {left[0]}; "
            "put the files themselves there",
            stacklevel=2,
        )

    def beside(image: Path) -> tuple[str, ...]:
        return tuple(end for end in georeferences(image.suffix) if image.stem + end in there[image.parent])

    return [replace(place, beside=beside(place.item.image)) for place in places]


def georeferences(suffix: str) -> tuple[str, ...]:
    """What GDAL lets follow an image's stem in names of files that say where it lies on earth.

    Args:
        suffix: the image's.
    """
    endings = (*world_endings(suffix), ".prj")
    return (*endings, *map(str.upper, endings), f"{suffix}.aux.xml")


def with_val(places: Sequence[Placed], share: float, seed: int = 0) -> list[Placed]:
    """The annotated images of a data set with one split, in train and val, by a hash of names and `seed`.

    Neighbouring frames of a flight, and overlapping tiles of an image, are too much alike to judge by:
    sub-folders stay whole where there are several, and so do the tiles of an image. The parts that an
    archive came in (part1 …) are no such folders.

    Args:
        share: of the images that go to val, in (0, 1); whole sub-folders come as near to it as they can.

    Raises:
        ConvertError: no such share; there are splits already; or nothing to divide.
    """
    if not 0 < share < 1:
        raise ConvertError(f"--val-share: expected a share between 0 and 1, got {share:g}")
    splits = sorted({place.split for place in places})
    left_out = [
        place if place.item.bare else replace(place, split="train")
        for place in places
        if not place.item.annotated
    ]
    places = [place for place in places if place.item.annotated]
    train = [place for place in places if place.split == ("train" if "train" in splits else "")]
    images = {place.item.image for place in train}  # a val that repeats train is none
    if not train or any(place.item.image not in images for place in places):
        raise ConvertError(
            f"--val-share: expected a data set of one split, train, got {', '.join(filter(None, splits))}; "
            "leave the flag out"
        )
    groups = [
        "/".join(name for name in folder if not ARCHIVE_PART.fullmatch(name))
        for folder in _sub_folders([place.item for place in train])
    ]
    if len(set(groups)) == 1:
        groups = [tile.image if (tile := parse_tile_name(place.name)) else place.name for place in train]
    sizes = Counter(groups)
    if len(sizes) < 2:
        raise ConvertError(f"--val-share: nothing to divide, all images are of {groups[0]}")
    order = sorted(sizes, key=lambda group: sha256(f"{seed} {group}".encode()).digest())
    wanted, val, count = share * len(train), set[str](), 0
    for group in order:
        nearer = abs(count + sizes[group] - wanted) < abs(count - wanted)
        if nearer and len(val) + 1 < len(sizes):
            val.add(group)
            count += sizes[group]
    val = val or {min(order, key=lambda group: sizes[group])}
    divided = [
        replace(place, split="val" if group in val else "train")
        for place, group in zip(train, groups, strict=True)
    ]
    return [*divided, *left_out]


def _without_spaces(name: str) -> str:
    return "_".join(name.split())


def _sub_folders(items: Sequence[Item]) -> list[tuple[str, ...]]:
    """Of each item the folders between its image and what all images of its split share, without images/."""
    folders = [os.path.abspath(item.image.parent) for item in items]
    by_split: dict[str, list[str]] = {}
    for item, folder in zip(items, folders, strict=True):
        by_split.setdefault(item.split, []).append(folder)
    shared = {split: os.path.commonpath(inside) for split, inside in by_split.items()}
    return [
        tuple(part for part in Path(folder).relative_to(shared[item.split]).parts if part != "images")
        for item, folder in zip(items, folders, strict=True)
    ]
