"""GeoJSON of a GIS: polygons on earth, for images on earth, in whatever reference systems."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rgfl.dota import georeference
from rgfl.dota.formats.dataset import JOURNAL, ConvertError, Dataset, Item
from rgfl.dota.formats.shapes import (
    Drawing,
    Shape,
    drawn_dataset,
    field,
    files_below,
    flag,
    polygon_corners,
    read_json,
    refuse_others,
    shown,
    split_of,
)
from rgfl.dota.georeference import Georeference
from rgfl.dota.images import find_images, image_size, with_subfolders

if TYPE_CHECKING:
    from rasterio.crs import CRS

COLUMN = "class"
LONGITUDE_LATITUDE = "OGC:CRS84"  # what a file is in that does not say (RFC 7946)
# Authority and code alone, such as EPSG:25832: other names GDAL takes for files, or fetches.
SYSTEM = re.compile(r"(urn:(x-)?ogc:def:crs:)?\w+:([\w.]*:)?\w+", re.IGNORECASE)
OTHER_LAYERS = (".shp", ".gpkg")
GRID = 21  # points along a side of an image, by which it is found in another system


@dataclass(frozen=True)
class Outline:
    """One object of a file.

    Attributes:
        where: begins errors.
        system: the name of its reference system.
        name: its class, as the file has it.
        points: (N, 2) corners, east or longitude first.
    """

    file: Path
    where: str
    system: str
    name: str
    difficult: int
    points: NDArray[np.float64]


@dataclass(frozen=True)
class Scene:
    """An image on earth, and the reference system of its place."""

    item: Item
    width: int
    height: int
    place: Georeference
    system: CRS

    def grid(self) -> NDArray[np.float64]:
        """(N, 2) points all over the image, in its reference system."""
        x, y = np.meshgrid(np.linspace(0, self.width, GRID), np.linspace(0, self.height, GRID))
        return self.place.coordinates(np.stack([x.ravel(), y.ravel()], 1))


class Layer:
    """All objects in one reference system."""

    def __init__(self, name: str, outlines: Sequence[Outline]) -> None:
        from rasterio.crs import CRS

        self.system, self.outlines = CRS.from_user_input(name), outlines
        self._low = np.array([outline.points.min(0) for outline in outlines]).T.copy()
        self._high = np.array([outline.points.max(0) for outline in outlines]).T.copy()

    def shown(self, scene: Scene, files: Container[Path]) -> Iterator[tuple[Outline, list[float]]]:
        """Objects of these files whose centres are in an image, with their corners in its pixels."""
        grid = _transformed(scene.system, self.system, scene.grid())
        if grid is None:  # the image lies where this system does not reach
            return
        low, high = grid.min(0)[:, None], grid.max(0)[:, None]
        margin = (high - low) / 10  # the image's sides are curves here, and a pole is no point of the grid
        near = (self._high >= low - margin).all(0) & (self._low <= high + margin).all(0)
        for outline in (self.outlines[index] for index in near.nonzero()[0]):
            if outline.file not in files:
                continue
            points = _transformed(self.system, scene.system, outline.points)
            if points is None:
                continue
            quad = polygon_corners(outline.where, scene.place.pixels(points))
            x, y = np.reshape(quad, (4, 2)).mean(0)
            if 0 <= x < scene.width and 0 <= y < scene.height:
                yield outline, quad


def read_geojson(data: Path, classes: Sequence[str] | None = None, *, column: str | None = None) -> Dataset:
    """Georeferenced images and .geojson files in `data` and its folders; train, val or test as a folder says.

    A file counts for the images of its split, or for all where no folder names one; a file that is called as
    an image (NAME.geojson), for this image alone. Images without a file are taken for
    not annotated.

    Args:
        column: the property with the classes; None: "class", else the only one of text.

    Raises:
        ConvertError: as `drawn_dataset`; no files or no images; an image without a georeference; all objects
            lie outside of the images.
    """
    from rasterio import Env

    files, notes = _label_files(data)
    scenes = _scenes(data)
    outlines: list[Outline] = []
    empty: list[str] = []
    for file in files:
        found, without, note = parse_geojson(file, column)
        outlines += found
        empty += without
        notes += note
    systems: dict[str, list[Outline]] = {}
    for outline in outlines:
        systems.setdefault(outline.system, []).append(outline)
    layers = [Layer(name, found) for name, found in systems.items()]
    drawings: list[Drawing] = []
    undrawn: list[Item] = []
    seen: set[int] = set()
    with Env():  # once, as each transformation would open its own
        for scene, own in zip(scenes, _own_files(data, files, scenes), strict=True):
            if not own:
                undrawn.append(replace(scene.item, annotated=False))
                continue
            shown = [pair for layer in layers for pair in layer.shown(scene, own)]
            seen.update(id(outline) for outline, _ in shown)
            shapes = [Shape(outline.name, quad, outline.difficult) for outline, quad in shown]
            item = replace(scene.item, shared=tuple(sorted(own)))
            drawings.append(Drawing(item, str(item.image), None, shapes))
    if outlines and not seen:
        raise ConvertError(_all_outside(outlines, scenes[0]))
    outside = [outline.where for outline in outlines if id(outline) not in seen]
    bare = [drawing.where for drawing in drawings if not drawing.shapes]
    for what, places in (
        (f"{len(outside)} of {len(outlines)} objects lie in no image", outside),
        (f"{len(empty)} features have no outline", empty),
        (f"{len(bare)} of {len(scenes)} images show no object", bare),
    ):
        notes += [f"{what}, such as {places[0]}"] if places else []
    dataset = drawn_dataset(data, drawings, (), classes, undrawn)
    return replace(dataset, notes=(*notes, *dataset.notes), column=column or "")


def parse_geojson(path: Path, column: str | None = None) -> tuple[list[Outline], list[str], list[str]]:
    """The objects of a file, its features without an outline, and what to tell of it.

    Raises:
        ConvertError: `file: feature 3: ` and what is wrong there, counted from 1.
    """
    content = read_json(path)
    kind = content.get("type") if isinstance(content, dict) else content
    if kind != "FeatureCollection":
        raise ConvertError(
            f"{path}: expected a FeatureCollection, got {shown(kind)}; save the layer as GeoJSON"
        )
    if str(content.get("coordinate_system")).startswith("pixels"):  # of rgfl.trt_runtime.pipeline
        raise ConvertError(
            f"{path}: expected coordinates on earth, got pixels; map/{path.name} beside its folder has these"
        )
    features = field(str(path), content, "features", list)
    rows = [(f"{path}: feature {place}", feature) for place, feature in enumerate(features, start=1)]
    properties = [_properties(where, feature) for where, feature in rows]
    column, notes = _column(path, properties, column)
    system = _system(path, content.get("crs"))
    outlines: list[Outline] = []
    empty: list[str] = []
    others: list[str] = []
    for (where, feature), values in zip(rows, properties, strict=True):
        if (geometry := feature["geometry"]) is None:
            empty.append(where)
            continue
        kind = field(where, geometry, "type", str)
        if kind not in ("Polygon", "MultiPolygon"):
            others.append(f"{where}: a {kind}")
            continue
        polygons = field(where, geometry, "coordinates", list)
        polygons = [polygons] if kind == "Polygon" else polygons
        parts = [_points(where, polygon) for polygon in polygons if polygon not in ([], [[]])]
        if not parts:
            empty.append(where)
            continue
        name = values.get(column)
        if not isinstance(name, str) or not name.strip():
            raise ConvertError(
                f"{where}: expected {column} as text, got {shown(name)}; fill it in, or name another column "
                "by --column"
            )
        difficult = flag(values, "difficult")
        outlines += [Outline(path, where, system, name, difficult, points) for points in parts]
    refuse_others(others, "a polygon")
    return outlines, empty, notes


def _properties(where: str, feature: Any) -> dict[str, Any]:
    """What the table of the GIS has of a feature."""
    if not isinstance(feature, dict) or "geometry" not in feature:
        raise ConvertError(
            f"{where}: expected an object with geometry, got {shown(feature)}; save the layer as GeoJSON anew"
        )
    return {} if feature.get("properties") is None else field(where, feature, "properties", dict)


def _column(path: Path, rows: Sequence[dict[str, Any]], column: str | None) -> tuple[str, list[str]]:
    """Which property has the classes, and what to tell of the choice."""
    wanted = column or COLUMN
    columns = list(dict.fromkeys(name for values in rows for name in values))
    if wanted in columns or not rows:
        return wanted, []
    texts = [name for name in columns if any(isinstance(values.get(name), str) for values in rows)]
    if column is None and len(texts) == 1:
        return texts[0], [f"{path}: no column {COLUMN}: the classes are those of {texts[0]}"]
    raise ConvertError(
        f"{path}: expected the classes as text in a column {wanted}, got the columns "
        f"{', '.join(columns) or '(none)'}; name one by --column"
    )


def _system(path: Path, member: Any) -> str:
    """The name of a file's reference system, by its "crs"."""
    from rasterio import Env
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    if member is None:
        return LONGITUDE_LATITUDE
    where = f"{path}: crs"
    name = field(where, field(where, member, "properties", dict), "name", str)
    try:
        if not SYSTEM.fullmatch(name):
            raise CRSError
        with Env():  # without, GDAL prints its own error
            CRS.from_user_input(name)
    except CRSError as error:
        raise ConvertError(
            f"{where}: expected a code such as urn:ogc:def:crs:EPSG::25832, got {shown(name)}; save the "
            "layer in a reference system that has one"
        ) from error
    return name


def _points(where: str, polygon: Any) -> NDArray[np.float64]:
    """The outer ring of a polygon, without heights."""
    points: NDArray[np.float64] | None = None
    with contextlib.suppress(TypeError, ValueError, LookupError, OverflowError):
        points = np.array([point[:2] for point in polygon[0]], np.float64)
    if points is None or points.shape != (len(points), 2) or not np.isfinite(points).all():
        raise ConvertError(
            f"{where}: expected a polygon `[[[x, y], …], …]` of finite numbers, got {shown(polygon)}; save "
            "the layer as GeoJSON anew"
        )
    return points


def _transformed(source: CRS, target: CRS, points: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Points (N, 2) in another reference system; None if that has no place for one."""
    from rasterio.warp import transform

    try:
        moved = np.stack(transform(source, target, points[:, 0], points[:, 1]), 1)
    except Exception:  # GDAL's own, which has no public class
        return None
    return moved if np.isfinite(moved).all() else None


def _label_files(data: Path) -> tuple[list[Path], list[str]]:
    """The .geojson files, and what to tell of others."""
    found = files_below(data, ".geojson", *OTHER_LAYERS)
    others = [path for path in found if path.suffix.lower() in OTHER_LAYERS]
    notes = [
        f"{path}: not read; `ogr2ogr {path.stem}.geojson {path.name}` makes GeoJSON of it" for path in others
    ]
    if len(others) == len(found):
        raise ConvertError(f"{data}: expected .geojson files; {'; '.join(notes)}")
    return [path for path in found if path not in others], notes


def _scenes(data: Path) -> list[Scene]:
    """All images in `data`, but those of conversions that were written into it."""
    items = [
        Item(split_of(folder.relative_to(data).parts), image, None)
        for folder in with_subfolders(data, lambda folder: (folder / JOURNAL).is_file())
        for image in find_images(folder).values()
    ]
    if not items:
        raise ConvertError(f"{data}: expected georeferenced images beside the .geojson files, got none")
    scenes = [scene for item in items if (scene := _scene(item))]
    if len(scenes) < len(items):
        placed = {scene.item for scene in scenes}
        first = next(item.image for item in items if item not in placed)
        raise ConvertError(
            f"{first}: expected an image on earth (GeoTIFF, or a world file and .prj beside it), got one "
            f"without place or reference system, as {len(items) - len(scenes)} of {len(items)} images are; "
            "add them, or put the image away"
        )
    return scenes


def _scene(item: Item) -> Scene | None:
    from rasterio.crs import CRS

    height, width = image_size(item.image)
    place = georeference.find(item.image)
    if place is None or not place.system:
        return None
    return Scene(item, width, height, place, CRS.from_wkt(place.system))


def _own_files(data: Path, files: Sequence[Path], scenes: Sequence[Scene]) -> list[set[Path]]:
    """Of each scene the files that count for it."""
    stems = {scene.item.image.stem for scene in scenes}
    marks = []
    for file in files:
        split = split_of(file.relative_to(data).parts[:-1])
        marks.append((file, file.stem if file.stem in stems else "", split))
    return [
        {
            file
            for file, name, split in marks
            if name in ("", scene.item.image.stem) and split in ("", scene.item.split)
        }
        for scene in scenes
    ]


def _all_outside(outlines: Sequence[Outline], scene: Scene) -> str:
    """The likely reason is a reference system that is not the true one: the numbers show it."""
    first = outlines[0]
    (x, y), (left, top) = first.points[0], scene.grid()[0]
    return (
        f"{first.where}: expected objects in the images, got all {len(outlines)} outside: this at {x:.9g}, "
        f"{y:.9g} in {first.system}, {scene.item.image} at {left:.9g}, {top:.9g} in {scene.place.crs}; check "
        'both reference systems (a file without "crs" has longitude and latitude)'
    )
