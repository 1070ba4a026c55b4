"""Where an image lies on earth, as GDAL knows it: by its own tags, a world file, .aux.xml or .prj beside it.

Only affine maps are used, to coordinates of the image's own reference system; nothing is reprojected. Of an
image that has ground control points or rational polynomials alone that is said: gdalwarp writes it anew.
"""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rgfl.dota import orientation, rasters
from rgfl.errors import InputError

if TYPE_CHECKING:
    from rasterio.crs import CRS

# In these coordinates x is the longitude, as everywhere in GeoJSON; EPSG:4326 says latitude first.
LONGITUDE_LATITUDE = "urn:ogc:def:crs:OGC:1.3:CRS84"


@dataclass(frozen=True)
class Georeference:
    """How pixels become coordinates.

    Attributes:
        affine: (2, 3) float64, from (x, y, 1) in pixels to the coordinates, east or longitude first. As in
            all of this package pixel 0 reaches from 0 to 1: (0, 0) is the image's upper left corner.
        code: of the reference system, such as "EPSG:32631", or nothing where it has none.
        citation: what the file calls its reference system, or nothing.
    """

    affine: NDArray[np.float64]
    code: str
    citation: str = ""

    @property
    def crs(self) -> str:
        """The reference system for people."""
        if self.code:
            return self.code
        return f"{self.citation or 'coordinates'} (no code in the file, so GeoJSON cannot name it)"

    def member(self) -> dict[str, object]:
        """GeoJSON's "crs" of 2008, which GDAL, QGIS and geopandas read; nothing where there is no code."""
        if not self.code:
            return {}
        name = f"urn:ogc:def:crs:{self.code.replace(':', '::')}"
        if self.code == "EPSG:4326":
            name = LONGITUDE_LATITUDE
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
        InputError: the world file or the .prj beside it is broken.
    """
    try:
        with rasters.opened(path) as dataset:
            affine = np.array(dataset.transform[:6]).reshape(2, 3)
            crs, others = dataset.crs, len(dataset.gcps[0]) or dataset.rpcs is not None
    except (rasters.RasterError, OSError):
        return None
    if not _is_map(affine):
        if (world := _world_file(path)) is not None:
            raise InputError(f"{world}: expected a world file of six numbers, one a line")
        if others:
            warnings.warn(
                f"{path}: ground control points or rational polynomials alone: no coordinates; write it anew "
                "with gdalwarp",
                stacklevel=2,
            )
        return None
    if orientation.of_file(path) != 1:
        warnings.warn(
            f"{path}: its orientation tag turns the image but not its georeference: no coordinates",
            stacklevel=2,
        )
        return None
    crs = crs or _projection_file(path)
    return Georeference(affine, *(_name(crs) if crs else ("", "")))


def _is_map(affine: NDArray[np.float64]) -> bool:
    """Whether it can be inverted, and is not GDAL's word for none, which maps pixels to themselves."""
    none = np.array_equal(affine, [[1, 0, 0], [0, 1, 0]])
    return bool(not none and np.isfinite(affine).all() and np.linalg.det(affine[:, :2]) != 0)


def _name(crs: CRS) -> tuple[str, str]:
    """Code of a reference system, or of its horizontal part, and what it is called."""
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    text = crs.to_wkt()
    name = re.search(r'"([^"]*)"', text)
    citation = " ".join(name[1].split()) if name and name[1] not in ("unnamed", "unknown") else ""
    authority = None
    with contextlib.suppress(CRSError):
        if text.startswith("COMPD_CS["):  # COMPD_CS["name",PROJCS[…],VERT_CS[…],…]
            crs = CRS.from_wkt(text[text.index(",") + 1 : text.rindex(",VERT_CS[")])
        authority = crs.to_authority()
    return ":".join(authority) if authority else "", citation


def _projection_file(path: Path) -> CRS | None:
    """The reference system that a .prj file beside the image names."""
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    for name in (path.with_suffix(".prj"), path.with_suffix(".PRJ")):
        if name.is_file():
            try:
                return CRS.from_wkt(name.read_text("utf-8-sig", errors="replace"))
            except CRSError as error:
                raise InputError(f"{name}: expected a reference system as WKT") from error
    return None


def _world_file(path: Path) -> Path | None:
    """A file beside the image whose name says that it is its world file."""
    kind = path.suffix[1:].lower()
    for ending in (f"{kind[:1]}{kind[-1:]}w", f"{kind}w", "wld"):
        for candidate in (path.with_suffix(f".{ending}"), path.with_suffix(f".{ending.upper()}")):
            if candidate.is_file():
                return candidate
    return None
