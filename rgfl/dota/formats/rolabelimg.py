"""roLabelImg: one XML file an image like Pascal VOC's, with turned boxes by centre, size and angle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from rgfl.dota.formats.dataset import ConvertError, Dataset, parse_xml
from rgfl.dota.formats.shapes import Shape, box_corners, declared_size, number, read_files


def read_rolabelimg(data: Path, classes: Sequence[str] | None = None) -> Dataset:
    """XML files as the tool saves them; images without one are taken for not annotated."""
    return read_files(data, ".xml", parse_rolabelimg, classes)


def parse_rolabelimg(path: Path) -> tuple[str, tuple[float, float] | None, list[Shape]]:
    """The image's name and size, and its shapes. The name is "": the tool pairs files by their own names.

    Raises:
        ConvertError: `file: object 3 (ship): ` and what is wrong there.
    """
    root = parse_xml(path)
    if root.tag != "annotation":
        raise ConvertError(f"{path}: expected an element annotation of roLabelImg, got {root.tag}")
    shapes = []
    for place, element in enumerate(root.iterfind("object"), start=1):
        name = (element.findtext("name") or "").strip()
        where = f"{path}: object {place} ({name})"
        difficult = (element.findtext("difficult") or "0").strip()
        if difficult not in ("0", "1"):
            raise ConvertError(f"{where}: expected difficult as 0 or 1, got {difficult!r}")
        shapes.append(Shape(name, _corners(where, element), int(difficult)))
    return "", declared_size(str(path), root.findtext("size/width"), root.findtext("size/height")), shapes


def _corners(where: str, element: ElementTree.Element) -> list[float]:
    if (box := element.find("robndbox")) is not None:
        cx, cy, w, h, angle = (
            number(where, name, box.findtext(name)) for name in ("cx", "cy", "w", "h", "angle")
        )
        if abs(angle) > 2 * math.pi + 1e-3:
            raise ConvertError(
                f"{where}: expected angle in radians (−2π…2π), got {angle:g}; is it in degrees?"
            )
        return box_corners(where, cx, cy, w, h, angle)
    if (box := element.find("bndbox")) is not None:
        left, top, right, bottom = (
            number(where, name, box.findtext(name)) for name in ("xmin", "ymin", "xmax", "ymax")
        )
        return [left, top, right, top, right, bottom, left, bottom]
    raise ConvertError(f"{where}: expected an element robndbox or bndbox, got neither")
