"""What annotation tools save, whatever their file format: named shapes, and which image they are drawn on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from unicodedata import normalize

import cv2
import numpy as np
from numpy.typing import ArrayLike

from rgfl.boxes import from_opencv, to_quads
from rgfl.dota.formats.dataset import (
    ConvertError,
    Dataset,
    Item,
    Size,
    check_folder,
    fail,
    one_word,
    parse_number,
    renamed,
    text_of,
)
from rgfl.dota.images import IMAGE_SUFFIXES, find_images, with_subfolders
from rgfl.dota.labels import Objects, in_order

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Shape:
    """One object: its class as the tool wrote it, corners x1 y1 … x4 y4 in pixels, difficult 0, 1 or 2."""

    name: str
    quad: Sequence[float]
    difficult: int


@dataclass(frozen=True)
class Drawing:
    """Shapes of one image. `where` begins errors; `size`: the image's (width, height) by the tool's file."""

    item: Item
    where: str
    size: tuple[float, float] | None
    shapes: Sequence[Shape]


def drawn_dataset(
    data: Path,
    drawings: Sequence[Drawing],
    declared: Iterable[str],
    classes: Sequence[str] | None,
    undrawn: Iterable[Item] = (),
) -> Dataset:
    """The data set of these drawings.

    Args:
        declared: class names in the tool's order, as far as its files list them; others follow `in_order`.
        classes: names in the order to take instead; objects of others get label −1.
        undrawn: images that nobody annotated.

    Raises:
        ConvertError: `classes` has a name that the files do not declare, or none that occurs; labelTxt cannot
            hold a name; or an image of a split has two drawings.
    """
    declared = tuple(declared)
    listed = dict.fromkeys(class_name(name) for name in declared)
    occurring = {class_name(shape.name) for drawing in drawings for shape in drawing.shapes}
    there = (*listed, *in_order(occurring - listed.keys()))
    if not there and classes is None:
        raise ConvertError(f"{data}: expected objects or a list of classes, got neither in any file")
    names = one_word(there if classes is None else [class_name(name) for name in classes], data)
    unknown = [name for name in names if name not in there]
    if unknown and (listed or (there and len(unknown) == len(names))):
        raise ConvertError(f"--classes: {data} has none of {', '.join(unknown)}; it has {', '.join(there)}")
    index = {name: number for number, name in enumerate(names)}
    found: dict[tuple[str, Path], Drawing] = {}
    for drawing in drawings:
        other = found.setdefault((drawing.item.split, drawing.item.image), drawing)
        if other is not drawing:
            raise ConvertError(f"{drawing.where}: {drawing.item.image} is annotated in {other.where} too")

    def read(item: Item, size: Size) -> Objects | None:
        if (drawing := found.get((item.split, item.image))) is None:
            return None
        if not drawing.shapes:
            return Objects.empty()
        _check_size(drawing, size)
        return Objects(
            np.array([shape.quad for shape in drawing.shapes], np.float64),
            np.array([index.get(class_name(shape.name), -1) for shape in drawing.shapes], np.int32),
            np.array([shape.difficult for shape in drawing.shapes], np.int32),
        )

    said = (*declared, *(shape.name for drawing in drawings for shape in drawing.shapes))
    items = [*(drawing.item for drawing in drawings), *undrawn]
    return Dataset(names, items, read, tuple(renamed(said, class_name)), known=there)


def _check_size(drawing: Drawing, size: Size) -> None:
    """Boxes of a resized or unturned image would all be wrong."""
    if drawing.size is None or drawing.size == (actual := size()):
        return
    hint = "use the images that were annotated"
    if drawing.size == actual[::-1]:
        hint = "if the tool ignored its EXIF orientation, remove that mark (exiftool -Orientation= FILE)"
    raise ConvertError(
        f"{drawing.where}: expected an image of {drawing.size[0]:g} × {drawing.size[1]:g} pixels, got "
        f"{actual[0]} × {actual[1]} in {drawing.item.image}; {hint}"
    )


def class_name(name: str) -> str:
    """A class name in one word, and in one of the Unicode forms that look the same."""
    return "-".join(normalize("NFC", name).split())


def split_of(words: Iterable[str]) -> str:
    """train, val or test, as the first of the words that names one says; "" if none does."""
    return next((split for word in words if (split := SPLIT_WORDS.get(word.lower()))), "")


# ---------------------------------------------------------------------------------------------
# Corners


def box_corners(where: str, cx: float, cy: float, w: float, h: float, theta: float) -> list[float]:
    """Corners of a box in pixels and radians, clockwise on the screen (rgfl/boxes.py).

    Raises:
        ConvertError: a side is negative.
    """
    if min(w, h) < 0:
        raise ConvertError(f"{where}: expected sides that are not negative, got {w:g} × {h:g}")
    return to_quads([cx, cy, w, h, theta]).tolist()


def polygon_corners(where: str, points: ArrayLike) -> list[float]:
    """The four corners of a polygon (N, 2), else those of the rectangle of least area around it.

    Raises:
        ConvertError: fewer than three points.
    """
    corners = np.asarray(points, np.float64)
    if len(corners) > 1 and (corners[0] == corners[-1]).all():  # closed by its first point
        corners = corners[:-1]
    if len(corners) < 3:
        raise ConvertError(f"{where}: expected a polygon of 3 or more points, got {len(corners)}")
    if len(corners) == 4:
        return corners.reshape(-1).tolist()
    # OpenCV computes in float32, which is exact enough around the origin.
    middle = corners.mean(0)
    (cx, cy), (w, h), degrees = cv2.minAreaRect((corners - middle).astype(np.float32))
    box = from_opencv(np.array([cx + middle[0], cy + middle[1], w, h, degrees]))
    return to_quads(box).tolist()


def refuse_others(others: Sequence[str], wanted: str) -> None:
    """
    Args:
        others: shapes of a file that have no corners, as errors name them.
        wanted: the kinds that have.

    Raises:
        ConvertError: there are any; left out, their objects would be taken for background.
    """
    if others:
        raise ConvertError(
            f"{others[0]}: expected {wanted}; {len(others)} shapes of this file are none, and would be "
            "background if left out; redraw or delete them in the tool"
        )


# ---------------------------------------------------------------------------------------------
# Fields


def read_json(path: Path) -> Any:
    """
    Raises:
        ConvertError: `file:line: ` not JSON, or `file: ` not UTF-8 text.
    """
    try:
        return json.loads(text_of(path))
    except json.JSONDecodeError as error:
        fail(path, error.lineno, f"not JSON: {error.msg}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or lists without end
        raise ConvertError(f"{path}: not JSON that is read: {error}") from error


Kind = TypeVar("Kind", str, list, dict)
_KINDS = {str: "text", list: "a list", dict: "an object"}


def field(where: str, holder: Any, name: str, kind: type[Kind]) -> Kind:
    """`holder[name]` of a JSON object.

    Raises:
        ConvertError: `holder` is no object, or has nothing of this kind there.
    """
    if not isinstance(holder, dict):
        raise ConvertError(f"{where}: expected an object with {name}, got {shown(holder)}")
    value = holder.get(name)
    if not isinstance(value, kind):
        raise ConvertError(f"{where}: expected {name} as {_KINDS[kind]}, got {shown(value)}")
    return value


def number(where: str, name: str, value: Any) -> float:
    """A number of JSON, or of the text of XML.

    Raises:
        ConvertError: it is missing, no number, or not finite.
    """
    is_number = isinstance(value, (int, float, str)) and not isinstance(value, bool)
    parsed = parse_number(str(value)) if is_number else None
    if parsed is None:
        raise ConvertError(f"{where}: expected {name} as a finite number, got {shown(value)}")
    return parsed


def declared_size(where: str, width: Any, height: Any) -> tuple[float, float] | None:
    """(width, height) as a file says it; None where it does not."""
    if width is None and height is None:
        return None
    return number(where, "the image's width", width), number(where, "the image's height", height)


def shown(value: Any) -> str:
    """A value in a message: short, and "nothing" for one that is not there."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def flag(holder: Any, name: str) -> int:
    """1 where a tool's JSON object sets `name`, else 0."""
    return int(isinstance(holder, dict) and holder.get(name) in (True, "true", "True", "1"))


# ---------------------------------------------------------------------------------------------
# Files


def read_lists(
    data: Path,
    files: Iterable[Path],
    parse: Callable[[Path, Path], tuple[list[str], list[Drawing]]],
    classes: Sequence[str] | None,
) -> Dataset:
    """A data set with files of many images each.

    Args:
        parse: of a file in `data` the class names that it lists, and its drawings.

    Raises:
        ConvertError: as `drawn_dataset`.
    """
    declared: list[str] = []
    drawings: list[Drawing] = []
    for path in files:
        names, found = parse(path, data)
        declared += names
        drawings += found
    return drawn_dataset(data, drawings, declared, classes)


def read_files(
    data: Path,
    suffix: str,
    parse: Callable[[Path], tuple[str, tuple[float, float] | None, list[Shape]]],
    classes: Sequence[str] | None,
) -> Dataset:
    """A data set with a file an image, beside it or in a folder like its own; other images are not annotated.

    Args:
        suffix: of the files, which may lie in `data` at any depth; train, val or test as a folder says.
        parse: of a file the name of its image ("": that of the file), the image's size, and the shapes.

    Raises:
        ConvertError: as `drawn_dataset`; there are no files, or no images for some.
    """
    finder = ImageFinder()
    drawings: list[Drawing] = []
    missing: list[str] = []
    places: list[Path] = []
    paths = files_below(data, suffix)
    for path in paths:
        name, size, shapes = parse(path)
        folders = path.relative_to(data).parts[:-1]
        looked = [path.parent, *usual_places(data, folders)]
        if image := finder.by_name(name, looked) or finder.by_stem(path.stem, looked):
            drawings.append(Drawing(Item(split_of(folders), image, path), str(path), size, shapes))
        else:
            places = places or looked
            missing.append(f"{name or path.stem} of {path} ({len(shapes)} objects)")
    refuse_missing(data, missing, len(paths), places)
    drawn = {drawing.item.image for drawing in drawings}
    splits = {drawing.item.image.parent: drawing.item.split for drawing in drawings}
    undrawn = [
        Item(split, image, None, annotated=False)
        for folder, split in splits.items()
        for image in find_images(folder).values()
        if image not in drawn
    ]
    return drawn_dataset(data, drawings, (), classes, undrawn)


def files_below(data: Path, *suffixes: str) -> list[Path]:
    """Files in `data` and in all its folders, links to folders too, sorted; no hidden ones.

    Raises:
        ConvertError: there are none; the message names the first suffix.
    """
    check_folder(data)
    found = [
        path
        for folder in with_subfolders(data)
        for path in folder.iterdir()
        if path.name.lower().endswith(suffixes) and not path.name.startswith(".") and not path.is_dir()
    ]
    if not found:
        raise ConvertError(
            f"{data}: expected {suffixes[0]} files beside the images or in folders of their own"
        )
    return sorted(found)


def usual_places(data: Path, subsets: Iterable[str]) -> list[Path]:
    """Folders where data sets of several subsets have their images, the likeliest first."""
    ways = [way for name in subsets if name for way in (f"images/{name}", f"{name}/images", name)]
    return [data / way for way in (*ways, "images", "JPEGImages", "")]


class ImageFinder:
    """Finds images by the names that tools wrote down, on other systems and in either Unicode form."""

    def __init__(self) -> None:
        self._names: dict[Path, dict[str, Path]] = {}
        self._stems: dict[Path, dict[str, Path]] = {}

    def by_name(self, name: str, places: Sequence[Path]) -> Path | None:
        """The image of this name in the first of the places that has it, with its folders or else without."""
        parts = [part for part in normalize("NFC", name).replace("\\", "/").split("/") if part.strip(".")]
        for way in (parts, parts[-1:]) if parts else ():
            for place in places:
                path: Path | None = place
                for part in way:
                    path = path and self._inside(path).get(part)
                if path and path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
                    return path
        return None

    def by_stem(self, stem: str, places: Sequence[Path]) -> Path | None:
        """The image of this name, with any suffix, in the first of the places that has it."""
        for place in places:
            if place not in self._stems:
                images = find_images(place) if place.is_dir() else {}
                self._stems[place] = {normalize("NFC", key): path for key, path in images.items()}
            if found := self._stems[place].get(normalize("NFC", stem)):
                return found
        return None

    def _inside(self, folder: Path) -> dict[str, Path]:
        if folder not in self._names:
            inside = folder.iterdir() if folder.is_dir() else ()
            self._names[folder] = {normalize("NFC", path.name): path for path in inside}
        return self._names[folder]


def refuse_missing(source: Path, missing: Sequence[str], total: int, places: Iterable[Path]) -> None:
    """
    Args:
        source: the file or folder of the annotations.
        missing: images that were not found, as errors name them.
        places: where the first of them was looked for.

    Raises:
        ConvertError: there are any.
    """
    if missing:
        looked = ", ".join(dict.fromkeys(str(place) for place in places if place.is_dir()))
        raise ConvertError(
            f"{source}: no image for {len(missing)} of {total} annotated images, the first is {missing[0]}; "
            f"looked in {looked}"
        )
