"""Where an image lies on earth: from the tags of a GeoTIFF, or from a world file beside the image.

Only affine maps are read, to coordinates of the image's own reference system; nothing is reprojected. What
neither names (.aux.xml, .prj, ground control points, rational polynomials) is not looked at: write such an
image anew with gdalwarp.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rgfl.dota import tiff
from rgfl.trt_runtime.errors import InputError

MODEL_TYPE, RASTER_TYPE, GEOGRAPHIC, PROJECTED = 1024, 1025, 2048, 3072  # keys of GeoTIFF
CITATIONS = (1026, 3073, 2049)
PIXEL_IS_POINT = 2
# In these coordinates x is the longitude, as everywhere in GeoJSON; EPSG:4326 says latitude first.
LONGITUDE_LATITUDE = "urn:ogc:def:crs:OGC:1.3:CRS84"


@dataclass(frozen=True)
class Georeference:
    """How pixels become coordinates.

    Attributes:
        affine: (2, 3) float64, from (x, y, 1) in pixels to the coordinates, east or longitude first. As in
            all of this package pixel 0 reaches from 0 to 1: (0, 0) is the image's upper left corner.
        epsg: code of the reference system, or None where the file names none.
        source: where the map comes from, for the reader of a message.
        citation: what the file calls its reference system, or nothing.
    """

    affine: NDArray[np.float64]
    epsg: int | None
    source: str
    citation: str = ""

    @property
    def crs(self) -> str:
        """The reference system for people."""
        if self.epsg is not None:
            return f"EPSG:{self.epsg}"
        return f"{self.citation or 'coordinates'} (no EPSG code in the file, so GeoJSON cannot name it)"

    def member(self) -> dict[str, object]:
        """GeoJSON's "crs" of 2008, which GDAL, QGIS and geopandas read; nothing where there is no code."""
        if self.epsg is None:
            return {}
        name = LONGITUDE_LATITUDE if self.epsg == 4326 else f"urn:ogc:def:crs:EPSG::{self.epsg}"
        return {"crs": {"type": "name", "properties": {"name": name}}}

    def rings(self, quads: NDArray[np.float64]) -> NDArray[np.float64]:
        """Corners (N, 4, 2) in pixels as corners in coordinates, to a ten-thousandth of a pixel.

        The first corner stays the first; the others follow counterclockwise, as GeoJSON wants outlines.
        """
        corners = quads @ self.affine[:, :2].T + self.affine[:, 2]
        x, y = np.moveaxis(corners - corners[:, :1], 2, 0)
        area = (x * np.roll(y, -1, 1) - np.roll(x, -1, 1) * y).sum(1)
        corners = np.where((area < 0)[:, None, None], corners[:, [0, 3, 2, 1]], corners)
        return corners.round(4 - math.floor(math.log10(np.linalg.norm(self.affine[:, :2], axis=0).min())))


def find(path: Path) -> Georeference | None:
    """The georeference of an image, or None. A file that is no image has none here, and fails when read.

    Raises:
        InputError: the world file beside it is broken.
    """
    about = None
    with contextlib.suppress(tiff.TiffError, OSError):
        about = tiff.read_file(path)
    epsg, citation, is_point = _reference_system(about) if about is not None else (None, "", False)
    affine, source = _affine(about, is_point) if about is not None else None, "GeoTIFF tags"
    if affine is None:
        world = _world_file(path)
        if world is None:
            return None
        affine, source = _read_world_file(world), world.name
    if about.orientation != 1 if about is not None else _turned_by_exif(path):
        warnings.warn(
            f"{path}: its orientation tag turns the image but not its georeference: no coordinates",
            stacklevel=2,
        )
        return None
    return Georeference(affine, epsg, source, citation)


def _turned_by_exif(path: Path) -> bool:
    """Whether a JPEG's or PNG's EXIF turns it when it is read."""
    import cv2

    data = path.read_bytes()
    if b"Exif\0\0" not in data[: 1 << 17] and b"eXIf" not in data:
        return False
    kept, turned = (
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_4 | flag)
        for flag in (cv2.IMREAD_IGNORE_ORIENTATION, 0)
    )
    return kept is not None and turned is not None and not np.array_equal(kept, turned)


def _affine(about: tiff.Tiff, is_point: bool) -> NDArray[np.float64] | None:
    """(2, 3) map of a GeoTIFF from pixels, or None where its tags give no affine one."""
    scale, ties, matrix = (
        about.values.get(tag, ()) for tag in (tiff.PIXEL_SCALE, tiff.TIEPOINT, tiff.TRANSFORMATION)
    )
    found = []
    if len(scale) >= 2 and len(ties) >= 6:
        # y goes down in pixels and up on earth. Some files write a negative scale and mean the same.
        sx, sy = scale[0], -abs(scale[1])
        i, j, _, x, y, _ = ties[:6]
        found.append(np.array([[sx, 0, x - sx * i], [0, sy, y - sy * j]]))
    if len(matrix) == 16:
        found.append(np.array(matrix).reshape(4, 4)[:2, [0, 1, 3]])
    affine = next((one for one in found if _invertible(one)), None)
    return _from_centres(affine) if affine is not None and is_point else affine


def _from_centres(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """The map for pixels that begin at 0 from that for pixels whose middle is at 0."""
    return np.column_stack([affine[:, :2], affine[:, 2] - affine[:, :2].sum(1) / 2])


def _invertible(affine: NDArray[np.float64]) -> bool:
    return bool(np.isfinite(affine).all() and np.linalg.det(affine[:, :2]) != 0)


def _reference_system(about: tiff.Tiff) -> tuple[int | None, str, bool]:
    """EPSG code, name, and whether coordinates are of the pixels' middles, from the keys of a GeoTIFF."""
    directory = [int(value) for value in about.values.get(tiff.GEO_KEYS, ())]
    text = about.texts.get(tiff.GEO_TEXT, "")
    numbers: dict[int, int] = {}
    names: dict[int, str] = {}
    for place in range(4, len(directory) - 3, 4):
        key, location, count, value = directory[place : place + 4]
        if location == 0:
            numbers[key] = value
        elif location == tiff.GEO_TEXT:
            names[key] = text[value : value + count].strip("|").strip()
    # A projected system of its own (32767) stands on a geographic one, whose code is not that of the image.
    projected = numbers.get(MODEL_TYPE) == 1 or PROJECTED in numbers
    code = numbers.get(PROJECTED if projected else GEOGRAPHIC, 0)
    citation = next((" ".join(names[key].split()) for key in CITATIONS if names.get(key)), "")
    return code if 1024 <= code < 32767 else None, citation, numbers.get(RASTER_TYPE) == PIXEL_IS_POINT


def _world_file(path: Path) -> Path | None:
    """The world file of an image: .tfw, .tifw or .wld for .tif, and so on."""
    kind = path.suffix[1:].lower()
    for ending in (f"{kind[:1]}{kind[-1:]}w", f"{kind}w", "wld"):
        for candidate in (path.with_suffix(f".{ending}"), path.with_suffix(f".{ending.upper()}")):
            if candidate.is_file():
                return candidate
    return None


def _read_world_file(path: Path) -> NDArray[np.float64]:
    """(2, 3) map from pixels; the file gives it for their middles, column by column."""
    try:
        numbers = [float(field) for field in path.read_text("utf-8-sig", errors="replace").split()]
    except ValueError as error:
        raise InputError(f"{path}: expected a world file of six numbers, one a line: {error}") from error
    if len(numbers) != 6 or not _invertible(affine := np.array(numbers).reshape(3, 2).T):
        raise InputError(f"{path}: expected a world file of six numbers, one a line; got {numbers[:8]}")
    return _from_centres(affine)
