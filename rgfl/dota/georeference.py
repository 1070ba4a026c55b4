"""Where an image lies on earth, as GDAL knows it: by its own tags, a world file, .aux.xml or .prj beside it.

Only affine maps are used, to coordinates of the image's own reference system, and from there, where it is
asked for, to longitude and latitude. Of an image that has ground control points or rational polynomials alone
that is said: gdalwarp writes it anew.
"""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rgfl.dota import orientation, rasters

if TYPE_CHECKING:
    from rasterio.crs import CRS

# In these coordinates x is the longitude, as everywhere in GeoJSON; EPSG:4326 says latitude first.
LONGITUDE_LATITUDE = "urn:ogc:def:crs:OGC:1.3:CRS84"
EQUATOR, ECCENTRICITY = 6378137.0, 0.0066943799901413  # WGS 84's radius in metres, and its e²
CERTAIN = 90  # per cent: at GDAL's 70 a system without a code gets that of one 60 m away


@dataclass(frozen=True)
class Georeference:
    """How pixels become coordinates.

    Attributes:
        affine: (2, 3) float64, from (x, y, 1) in pixels to the coordinates, east or longitude first. As in
            all of this package pixel 0 reaches from 0 to 1: (0, 0) is the image's upper left corner.
        code: of the reference system, such as "EPSG:32631", or nothing where it has none.
        citation: what the file calls its reference system, or nothing.
        system: the reference system as WKT; nothing where there is none, or none that leads to longitude and
            latitude.
    """

    affine: NDArray[np.float64]
    code: str
    citation: str = ""
    system: str = ""

    @property
    def crs(self) -> str:
        """The reference system for people."""
        if self.code:
            return self.code
        if self.system:
            return f"OGC:CRS84, longitude and latitude, as {self.citation or 'its own system'} has no code"
        return "an unknown reference system" + (f" ({self.citation})" if self.citation else "")

    def member(self) -> dict[str, object]:
        """GeoJSON's "crs" of 2008, which GDAL, QGIS and geopandas read; nothing for an unknown system."""
        if not self.code and not self.system:
            return {}
        name = f"urn:ogc:def:crs:{self.code.replace(':', '::')}"
        if self.code in ("", "EPSG:4326"):
            name = LONGITUDE_LATITUDE
        return {"crs": {"type": "name", "properties": {"name": name}}}

    def rings(self, quads: NDArray[np.float64]) -> NDArray[np.float64]:
        """Corners (N, 4, 2) in pixels as corners in coordinates, to a ten-thousandth of a pixel.

        The first corner stays the first; the others follow counterclockwise, as GeoJSON wants outlines.
        Of a system without a code these are `degrees`: GeoJSON could not name it.
        """
        if self.system and not self.code:
            return self.degrees(quads)
        digits = 4 - math.floor(math.log10(np.linalg.norm(self.affine[:, :2], axis=0).min()))
        return _counterclockwise(self.coordinates(quads)).round(digits)

    def degrees(self, quads: NDArray[np.float64]) -> NDArray[np.float64]:
        """As `rings`, in longitude and latitude of WGS 84 to 1e-9 degrees; NaN for a corner without these.

        A ring over the 180th meridian goes on beyond it.
        """
        from rasterio.warp import transform

        try:
            points = transform(self.system, "OGC:CRS84", *self.coordinates(quads).reshape(-1, 2).T)
        except Exception:  # of many kinds, all rasterio's own: one point that cannot be spoils the others
            if len(quads) > 1:
                return np.concatenate([self.degrees(quad[None]) for quad in quads])
            return np.full(quads.shape, np.nan)
        rings = np.stack(points, axis=1).reshape(quads.shape)
        rings[np.isinf(rings)] = np.nan
        rings[..., 0] -= 360 * ((rings[..., 0] - rings[:, :1, 0]) / 360).round()
        return _counterclockwise(rings).round(9)

    def coordinates(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points (…, 2) in pixels as points in the image's own reference system."""
        return points @ self.affine[:, :2].T + self.affine[:, 2]

    def pixels(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points (N, 2) in the image's own reference system as points in pixels."""
        return np.linalg.solve(self.affine[:, :2], (points - self.affine[:, 2]).T).T


def metres(rings: NDArray[np.float64]) -> NDArray[np.float64]:
    """Length and width (N, 2), the longer first, of rectangles (N, 4, 2) in longitude and latitude.

    Along the ground of WGS 84's ellipsoid, not in a projection: Web Mercator at 60° stretches twofold. Each
    side is taken as straight, with the ellipsoid's radii at its middle.
    """
    steps = np.radians(rings[:, 1:3] - rings[:, :2])
    latitudes = np.radians(rings[:, 1:3, 1] + rings[:, :2, 1]) / 2
    bend = 1 - ECCENTRICITY * np.sin(latitudes) ** 2
    east = EQUATOR / np.sqrt(bend) * np.cos(latitudes) * steps[..., 0]
    north = EQUATOR * (1 - ECCENTRICITY) / bend**1.5 * steps[..., 1]
    return np.sort(np.hypot(east, north), axis=1)[:, ::-1]


def find(path: Path | str) -> Georeference | None:
    """The georeference of an image, or None. A file that is no image has none here, and fails when read.

    A broken world file or .prj is warned of, and taken as if it were not there.
    """
    path = Path(path)
    try:
        with rasters.opened(path) as dataset:
            affine = np.array(dataset.transform[:6]).reshape(2, 3)
            crs, others = dataset.crs, len(dataset.gcps[0]) or dataset.rpcs is not None
            height, width = dataset.shape
    except (rasters.RasterError, OSError):
        return None
    if not _is_map(affine):
        if (world := _world_file(path)) is not None:
            warnings.warn(
                f"{world}: expected a world file of six numbers, one a line; mend it: no coordinates",
                stacklevel=2,
            )
        elif others:
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
    place = Georeference(affine, *(_name(crs) if crs else ("", "", "")))
    image = np.array([[[0, 0], [width, 0], [width, height], [0, height]]], np.float64)
    return place if np.isfinite(place.degrees(image)).all() else replace(place, system="")


def _counterclockwise(rings: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rings (N, 4, 2) that begin where they began and turn as GeoJSON wants outlines to."""
    x, y = np.moveaxis(rings - rings[:, :1], 2, 0)
    area = (x * np.roll(y, -1, 1) - np.roll(x, -1, 1) * y).sum(1)
    return np.where((area < 0)[:, None, None], rings[:, [0, 3, 2, 1]], rings)


def _is_map(affine: NDArray[np.float64]) -> bool:
    """Whether it can be inverted, and is not GDAL's word for none, which maps pixels to themselves."""
    none = np.array_equal(affine, [[1, 0, 0], [0, 1, 0]])
    return bool(not none and np.isfinite(affine).all() and np.linalg.det(affine[:, :2]) != 0)


def _name(crs: CRS) -> tuple[str, str, str]:
    """Of a reference system, or of its horizontal part: code, what it is called, and its WKT."""
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    text = crs.to_wkt()
    name = re.search(r'"([^"]*)"', text)
    citation = " ".join(name[1].split()) if name and name[1] not in ("unnamed", "unknown") else ""
    authority = None
    with contextlib.suppress(CRSError):
        if text.startswith("COMPD_CS["):  # COMPD_CS["name",PROJCS[…],VERT_CS[…],…]
            crs = CRS.from_wkt(text[text.index(",") + 1 : text.rindex(",VERT_CS[")])
        authority = crs.to_authority(confidence_threshold=CERTAIN)
    flat = crs.is_projected or crs.is_geographic
    return ":".join(authority) if authority else "", citation, crs.to_wkt() if flat else ""


def _projection_file(path: Path) -> CRS | None:
    """The reference system that a .prj file beside the image names."""
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    for name in (path.with_suffix(".prj"), path.with_suffix(".PRJ")):
        if name.is_file():
            try:
                return CRS.from_wkt(name.read_text("utf-8-sig", errors="replace"))
            except CRSError:
                warnings.warn(f"{name}: expected a reference system as WKT; mend it", stacklevel=3)
    return None


def world_endings(suffix: str) -> tuple[str, str, str]:
    """What the names of world files end in, beside an image with this suffix; in capitals, too."""
    kind = suffix[1:].lower()
    return f".{kind[:1]}{kind[-1:]}w", f".{kind}w", ".wld"


def _world_file(path: Path) -> Path | None:
    """A file beside the image whose name says that it is its world file."""
    for ending in world_endings(path.suffix):
        for candidate in (path.with_suffix(ending), path.with_suffix(ending.upper())):
            if candidate.is_file():
                return candidate
    return None
