"""COCO JSON: images, annotations and categories in one file a split, as CVAT and Roboflow write it."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rgfl.dota.formats.dataset import ConvertError, Dataset, Item, check_folder
from rgfl.dota.formats.shapes import (
    Drawing,
    ImageFinder,
    Shape,
    box_corners,
    declared_size,
    field,
    flag,
    number,
    polygon_corners,
    read_json,
    read_lists,
    refuse_missing,
    shown,
    split_of,
    usual_places,
)
from rgfl.dota.labels import DIFFICULT_CUT


def read_coco(data: Path, classes: Sequence[str] | None = None) -> Dataset:
    """COCO as tools write it: annotations/instances_train.json …, train/_annotations.coco.json …, or a file.

    Classes come in the order of their category ids.
    """
    return read_lists(data, _files(data), parse_coco, classes)


def parse_coco(path: Path, data: Path) -> tuple[list[str], list[Drawing]]:
    """Class names and drawings of one file of the data set in `data`.

    Raises:
        ConvertError: `file: annotation 12: ` and what is wrong there.
    """
    content = read_json(path)
    annotations = _entries(path, content, "annotations")
    names = _categories(path, content, [entry.get("category_id") for entry in annotations])
    images = _by_id(path, content, "images")
    by_detectron = "detectron2" in str(content.get("info")).lower()
    shapes = defaultdict(list)
    for place, entry in enumerate(annotations, start=1):
        where = f"{path}: annotation {entry.get('id', f'no. {place}')}"
        image, category = entry.get("image_id"), entry.get("category_id")
        if not isinstance(image, (int, str)) or image not in images:
            raise ConvertError(f"{where}: expected image_id to be the id of an image, got {shown(image)}")
        if not isinstance(category, (int, str)) or category not in names:
            raise ConvertError(f"{where}: expected category_id to be a category's id, got {shown(category)}")
        crowd = entry.get("iscrowd") in (1, True)  # an area of many objects is not to be learned as one
        difficult = DIFFICULT_CUT if crowd else flag(entry.get("attributes"), "difficult")
        shapes[image].append(Shape(names[category], _corners(where, entry, by_detectron), difficult))
    split = split_of(_words(path))
    subset = path.stem.removeprefix("instances_")
    places = [path.parent, *usual_places(data, dict.fromkeys((subset, split)))]
    finder = ImageFinder()
    drawings, missing = [], []
    for key, entry in images.items():
        name = field(where := f"{path}: image {key}", entry, "file_name", str)
        size = declared_size(where, entry.get("width"), entry.get("height"))
        if image_path := finder.by_name(name, places):
            drawings.append(Drawing(Item(split, image_path, path), where, size, shapes[key]))
        else:
            missing.append(f"{name} ({len(shapes[key])} annotations)")
    refuse_missing(path, missing, len(images), places)
    return list(names.values()), drawings


def _corners(where: str, entry: dict[str, Any], by_detectron: bool) -> list[float]:
    outline, box = entry.get("segmentation"), entry.get("bbox")
    if isinstance(outline, dict):
        raise ConvertError(f"{where}: expected polygons, got a mask (RLE) in segmentation; export polygons")
    if outline:
        if not isinstance(outline, list):
            raise ConvertError(f"{where}: expected segmentation as a list, got {shown(outline)}")
        return polygon_corners(where, np.concatenate([_points(where, polygon) for polygon in outline]))
    if not isinstance(box, list) or len(box) not in (4, 5):
        raise ConvertError(f"{where}: expected a segmentation, or a bbox of 4 numbers, got {shown(box)}")
    values = [number(where, "bbox", value) for value in box]
    if len(box) == 5:
        if not by_detectron:
            raise ConvertError(
                f"{where}: expected corners in segmentation, got a bbox of 5 numbers; tools differ in what "
                "those mean (centre or corner, degrees or radians, which direction)"
            )
        cx, cy, w, h, degrees = values
        return box_corners(where, cx, cy, w, h, -math.radians(degrees))  # theirs are counter-clockwise
    attributes = entry.get("attributes")
    if not isinstance(attributes, dict) or "rotation" not in attributes:
        raise ConvertError(
            f"{where}: expected a segmentation, got bbox alone: a horizontal box of COCO's detection format; "
            "export polygons or oriented boxes"
        )
    # CVAT turns the bbox about its centre, by degrees clockwise on the screen.
    x, y, w, h = values
    theta = math.radians(number(where, "attributes.rotation", attributes["rotation"]))
    return box_corners(where, x + w / 2, y + h / 2, w, h, theta)


def _points(where: str, polygon: Any) -> np.ndarray:
    if not isinstance(polygon, list) or len(polygon) % 2 or len(polygon) < 6:
        raise ConvertError(
            f"{where}: expected a polygon `[x1, y1, x2, y2, x3, y3, …]` in segmentation, got {shown(polygon)}"
        )
    values = [number(where, "a coordinate of segmentation", value) for value in polygon]
    return np.array(values, np.float64).reshape(-1, 2)


def _entries(path: Path, content: Any, name: str) -> list[dict[str, Any]]:
    entries = field(str(path), content, name, list)
    for place, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            raise ConvertError(f"{path}: {name} no. {place}: expected an object, got {shown(entry)}")
    return entries


def _by_id(path: Path, content: Any, name: str) -> dict[int | str, dict[str, Any]]:
    """The entries of a list of the file, by their ids."""
    by_id: dict[int | str, dict[str, Any]] = {}
    for place, entry in enumerate(_entries(path, content, name), start=1):
        key = entry.get("id")
        if not isinstance(key, (int, str)) or key in by_id:
            raise ConvertError(f"{path}: {name} no. {place}: expected an id of its own, got {shown(key)}")
        by_id[key] = entry
    return by_id


def _categories(path: Path, content: Any, used: Sequence[Any]) -> dict[int | str, str]:
    """Class names by id, in the order of the ids, without Roboflow's first row: the heading of the others."""
    entries = _by_id(path, content, "categories")
    names = {key: field(f"{path}: category {key}", entry, "name", str) for key, entry in entries.items()}
    headings = [
        entry.get("supercategory")
        for key, entry in entries.items()
        if entry.get("supercategory") != names[key]
    ]
    in_use = {key for key in used if isinstance(key, (int, str))}
    order = sorted(names, key=lambda key: (isinstance(key, str), key))
    return {key: names[key] for key in order if key in in_use or names[key] not in headings}


def _files(data: Path) -> list[Path]:
    """The annotation files, one a split."""
    check_folder(data)
    for way in ("annotations/instances_*.json", "*/_annotations.coco.json", "annotations/*.json", "*.json"):
        found = sorted(path for path in data.glob(way) if not path.name.startswith("."))
        by_split = {split_of(_words(path)): path for path in found}
        if len(by_split) < len(found):
            names = ", ".join(str(path.relative_to(data)) for path in found)
            raise ConvertError(f"{data}: expected one .json file a split, got {names}; put the others away")
        if found:
            return found
    raise ConvertError(
        f"{data}: expected annotations/instances_train.json …, train/_annotations.coco.json … or a .json file"
    )


def _words(path: Path) -> list[str]:
    """The words of a file's name that may tell the split; Roboflow's folders do."""
    if path.name == "_annotations.coco.json":
        return [path.parent.name]
    return re.split(r"[^a-z]+", path.stem.lower())
