"""FAIR1M: XML files of objects by their corners, in folders labelXml beside those of the images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from rgfl.dota.formats.dataset import JOURNAL, ConvertError, Dataset, Item, check_folder, parse_xml
from rgfl.dota.formats.shapes import (
    Drawing,
    Shape,
    class_name,
    drawn_dataset,
    number,
    polygon_corners,
    refuse_missing,
    shown,
    split_of,
)
from rgfl.dota.images import find_images, with_subfolders

CLASSES = (
    "Boeing737", "Boeing747", "Boeing777", "Boeing787", "C919", "A220", "A321", "A330", "A350", "ARJ21",
    "other-airplane", "Passenger-Ship", "Motorboat", "Fishing-Boat", "Tugboat", "Engineering-Ship",
    "Liquid-Cargo-Ship", "Dry-Cargo-Ship", "Warship", "other-ship", "Small-Car", "Bus", "Cargo-Truck",
    "Dump-Truck", "Van", "Trailer", "Tractor", "Excavator", "Truck-Tractor", "other-vehicle",
    "Basketball-Court", "Tennis-Court", "Football-Field", "Baseball-Field", "Intersection", "Roundabout",
    "Bridge",
)  # fmt: skip


def read_fair1m(data: Path, classes: Sequence[str] | None = None) -> Dataset:
    """train/part1/, train/part2/, validation/ and test/, each with images/ and, but for test/, labelXml/.

    Images without a file are taken for not annotated.
    """
    check_folder(data)
    drawings: list[Drawing] = []
    undrawn: list[Item] = []
    missing: list[str] = []
    folders = with_subfolders(data, lambda folder: (folder / JOURNAL).is_file())
    places = [folder for folder in folders if folder.name == "images"]
    for place in places:
        split = split_of(place.relative_to(data).parts)
        images = find_images(place)
        beside = [place.parent / name for name in ("labelXml", "labelXmls") if (place.parent / name).is_dir()]
        labels = sorted(path for folder in beside for path in folder.glob("*.xml"))
        for path in labels:
            shapes = parse_fair1m(path)
            if image := images.get(path.stem):
                drawings.append(Drawing(Item(split, image, path), str(path), None, shapes))
            else:
                missing.append(f"{path.stem} of {path} ({len(shapes)} objects)")
        bare = split == "test" and not labels
        labelled = {path.stem for path in labels}
        undrawn += [
            Item(split, image, None, annotated=False, bare=bare)
            for stem, image in images.items()
            if stem not in labelled
        ]
    refuse_missing(data, missing, len(drawings) + len(missing), places)
    if not drawings:
        raise ConvertError(
            f"{data}: expected folders images with labelXml beside them, as FAIR1M's archives unpack"
        )
    return drawn_dataset(data, drawings, CLASSES, classes, undrawn)


def parse_fair1m(path: Path) -> list[Shape]:
    """Objects of one file.

    Raises:
        ConvertError: `file: object 3 (Bus): ` and what is wrong there.
    """
    shapes = []
    for place, element in enumerate(parse_xml(path).iterfind("objects/object"), start=1):
        name = class_name(element.findtext("possibleresult/name") or "")
        where = f"{path}: object {place} ({name or 'no name'})"
        if (unit := (element.findtext("coordinate") or "pixel").strip()) != "pixel":
            raise ConvertError(f"{where}: expected coordinates in pixels, got {unit}")
        shapes.append(Shape(name, polygon_corners(where, _points(where, element)), 0))
    return shapes


def _points(where: str, element: ElementTree.Element) -> list[list[float]]:
    points = []
    for point in element.iterfind("points/point"):
        values = (point.text or "").split(",")
        if len(values) != 2:
            raise ConvertError(f"{where}: expected a point `x,y`, got {shown(point.text)}")
        points.append([number(where, "a coordinate", value) for value in values])
    return points
