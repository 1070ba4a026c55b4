"""Detections as GeoJSON: a scene in pixels or in its own reference system, or many as one layer of a map."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rgfl import atomic
from rgfl.boxes import to_quads
from rgfl.detections import Detections
from rgfl.dota import georeference
from rgfl.dota.georeference import Georeference


def geojson(
    name: str, detections: Detections, classes: tuple[str, ...], place: Georeference | None = None
) -> dict[str, Any]:
    """A FeatureCollection of polygons in pixels of the image: x right, y down, not longitude and latitude.

    With a georeference the polygons are in its coordinates instead, and the collection names them in "crs".
    The properties are in pixels always: cx, cy, width, height, and the angle in radians.
    """
    quads = _quads(detections)
    rings = quads.round(3) if place is None else place.rings(quads)
    boxes = detections.boxes.astype(np.float64)
    properties = [
        {**known, "cx": cx, "cy": cy, "width": width, "height": height, "angle": angle}
        for known, (cx, cy, width, height), angle in zip(
            _known(detections, classes),
            boxes[:, :4].round(3).tolist(),
            boxes[:, 4].round(5).tolist(),
            strict=True,
        )
    ]
    pixels = "pixels of the image, x right, y down; angle in radians, clockwise"
    return {
        "type": "FeatureCollection",
        "name": name,
        "coordinate_system": pixels if place is None else f"{place.crs}; properties in {pixels}",
        **(place.member() if place is not None else {}),
        "features": list(_features(rings, properties)),
    }


def write_map(
    path: Path,
    scenes: Iterable[tuple[str, Detections]],
    places: Mapping[str, Georeference],
    classes: tuple[str, ...],
) -> int:
    """Write what is found in all scenes as one layer in longitude and latitude, as RFC 7946 has GeoJSON.

    Properties of an object are image, class, score, and length and width in metres on the ground, see
    `georeference.metres`.

    Args:
        scenes: names and detections, taken one at a time.
        places: georeferences that have a system.

    Returns:
        How many objects are not in it: they lie where the scene's system has no longitude and latitude.
    """
    beyond, separator = 0, "\n"
    with atomic.whole(path) as hidden, hidden.open("w", encoding="utf-8", newline="\n") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for name, detections in scenes:
            rings = places[name].degrees(_quads(detections))
            properties = [
                {"image": name, **known, "length": length, "width": width}
                for known, (length, width) in zip(
                    _known(detections, classes), georeference.metres(rings).round(2).tolist(), strict=True
                )
            ]
            features = list(_features(rings, properties))
            beyond += len(rings) - len(features)
            for feature in features:
                file.write(separator + json.dumps(feature))
                separator = ",\n"
        file.write("\n]}\n")
    return beyond


def _quads(detections: Detections) -> NDArray[Any]:
    """Corners (N, 4, 2) in pixels."""
    return to_quads(detections.boxes.astype(np.float64)).reshape(-1, 4, 2)


def _known(detections: Detections, classes: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Class and score of each."""
    scores = detections.scores.astype(np.float64).round(4).tolist()
    for label, score in zip(detections.labels.tolist(), scores, strict=True):
        yield {"class": classes[label], "score": score}


def _features(rings: NDArray[np.float64], properties: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """GeoJSON's features of rings (N, 4, 2), but for those with a corner that is not finite."""
    for ring, values in zip(rings, properties, strict=True):
        if np.isfinite(ring).all():
            ring = ring.tolist()
            polygon = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
            yield {"type": "Feature", "geometry": polygon, "properties": values}
