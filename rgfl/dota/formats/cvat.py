"""CVAT for images 1.1: one XML file of images, with boxes by two corners and a rotation, and polygons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from rgfl.dota.formats.dataset import ConvertError, Dataset, Item, check_folder, parse_xml
from rgfl.dota.formats.shapes import (
    Drawing,
    ImageFinder,
    Shape,
    box_corners,
    declared_size,
    number,
    polygon_corners,
    read_lists,
    refuse_missing,
    refuse_others,
    split_of,
    usual_places,
)

# Labels of other types belong to shapes that are refused, or to images as a whole.
LABEL_TYPES = ("any", "rectangle", "bbox", "polygon")


def read_cvat(data: Path, classes: Sequence[str] | None = None) -> Dataset:
    """CVAT's annotations.xml of a task or a project, or one in each folder; classes in its label order."""
    return read_lists(data, _files(data), parse_cvat, classes)


def parse_cvat(path: Path, data: Path) -> tuple[list[str], list[Drawing]]:
    """Class names and drawings of one file of the data set in `data`.

    Raises:
        ConvertError: `file: image a.png: box 3 (ship): ` and what is wrong there.
    """
    root = parse_xml(path)
    if root.find("track") is not None:
        raise ConvertError(
            f"{path}: expected CVAT for images 1.1, got CVAT for video 1.1; export the task as the former"
        )
    names = [
        label.findtext("name") or ""
        for label in root.iterfind("meta//labels/label")
        if (label.findtext("type") or "any") in LABEL_TYPES and label.find("parent") is None
    ]
    finder = ImageFinder()
    drawings: list[Drawing] = []
    missing: list[str] = []
    others: list[str] = []
    places: list[Path] = []
    elements = root.findall("image")
    if not elements:
        raise ConvertError(f"{path}: expected elements image, as in CVAT for images 1.1, got none")
    for element in elements:
        name, subset = element.get("name", ""), element.get("subset", "")
        where = f"{path}: image {name or element.get('id')}"
        split = split_of((subset, path.parent.name if path.parent != data else ""))
        shapes = _shapes(where, element, others)
        size = declared_size(where, element.get("width"), element.get("height"))
        looked = [path.parent, *usual_places(path.parent, [subset]), *usual_places(data, [subset, split])]
        if image := finder.by_name(name, looked):
            drawings.append(Drawing(Item(split, image, path), where, size, shapes))
        else:
            places = places or looked
            missing.append(f"{name} ({len(shapes)} shapes)")
    refuse_others(others, "a box or polygon")
    refuse_missing(path, missing, len(elements), places)
    return names, drawings


def _shapes(where: str, image: ElementTree.Element, others: list[str]) -> list[Shape]:
    """Boxes and polygons of an image; the names of what is neither go to `others`."""
    shapes = []
    for place, element in enumerate(image, start=1):
        name = element.get("label", "")
        what = f"{where}: {element.tag} {place} ({name})"
        if element.tag == "box":
            sides = [number(what, side, element.get(side)) for side in ("xtl", "ytl", "xbr", "ybr")]
            left, top, right, bottom = sides
            # Degrees, clockwise on the screen, about the centre.
            theta = math.radians(number(what, "rotation", element.get("rotation", "0")))
            middle = (left + right) / 2, (top + bottom) / 2
            quad = box_corners(what, *middle, right - left, bottom - top, theta)
        elif element.tag == "polygon":
            quad = polygon_corners(what, _points(what, element.get("points", "")))
        else:
            if element.tag != "tag":  # a word about the whole image
                others.append(what)
            continue
        marks = [attribute.text for attribute in element if attribute.get("name") == "difficult"]
        difficult = int(any((text or "").strip().lower() in ("1", "true") for text in marks))
        shapes.append(Shape(name, quad, difficult))
    return shapes


def _points(where: str, text: str) -> list[list[float]]:
    points = [[number(where, "a coordinate", value) for value in pair.split(",")] for pair in text.split(";")]
    if any(len(point) != 2 for point in points):
        raise ConvertError(f"{where}: expected points `x,y;x,y;…`, got {text[:60]!r}")
    return points


def _files(data: Path) -> list[Path]:
    check_folder(data)
    for way in ("annotations.xml", "*/annotations.xml", "*.xml"):
        if found := sorted(path for path in data.glob(way) if not path.name.startswith(".")):
            return found
    raise ConvertError(
        f"{data}: expected annotations.xml of an export as CVAT for images 1.1, with its images"
    )
