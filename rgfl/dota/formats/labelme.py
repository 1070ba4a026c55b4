"""LabelMe and X-AnyLabeling: one JSON file an image, with a list of shapes by their points in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rgfl.dota.formats.dataset import ConvertError, Dataset
from rgfl.dota.formats.shapes import (
    Shape,
    declared_size,
    field,
    flag,
    number,
    polygon_corners,
    read_files,
    read_json,
    refuse_others,
    shown,
)

# X-AnyLabeling's turned boxes are `rotation`, LabelMe's `oriented_rectangle`.
QUADS = ("rotation", "oriented_rectangle", "quadrilateral", "rectangle")


def read_labelme(data: Path, classes: Sequence[str] | None = None) -> Dataset:
    """JSON files as the tools save them; images without one are taken for not annotated."""
    return read_files(data, ".json", parse_labelme, classes)


def parse_labelme(path: Path) -> tuple[str, tuple[float, float] | None, list[Shape]]:
    """The image's name and size, and its shapes.

    Raises:
        ConvertError: `file: shape 3 (ship): ` and what is wrong there.
    """
    content = read_json(path)
    shapes, others = [], []
    for place, entry in enumerate(field(str(path), content, "shapes", list), start=1):
        label = field(f"{path}: shape {place}", entry, "label", str)
        where = f"{path}: shape {place} ({label})"
        kind = entry.get("shape_type") or "polygon"
        if kind != "polygon" and kind not in QUADS:
            others.append(f"{where}: a {kind}")
            continue
        difficult = flag(entry, "difficult") | flag(entry.get("flags"), "difficult")
        shapes.append(Shape(label, _corners(where, kind, field(where, entry, "points", list)), difficult))
    refuse_others(others, "a polygon, rectangle or turned box")
    size = declared_size(str(path), content.get("imageWidth"), content.get("imageHeight"))
    return str(content.get("imagePath") or ""), size, shapes


def _corners(where: str, kind: str, points: list[Any]) -> list[float]:
    if any(not isinstance(point, list) or len(point) != 2 for point in points):
        raise ConvertError(f"{where}: expected points as pairs `[x, y]`, got {shown(points)}")
    corners = [[number(where, "a coordinate", value) for value in point] for point in points]
    if kind == "rectangle" and len(corners) == 2:  # opposite corners, drawn in any direction
        (x1, x2), (y1, y2) = map(sorted, zip(*corners, strict=True))
        return [x1, y1, x2, y1, x2, y2, x1, y2]
    if kind != "polygon" and len(corners) != 4:
        raise ConvertError(f"{where}: expected 4 points of a {kind}, got {len(corners)}")
    return polygon_corners(where, corners)
