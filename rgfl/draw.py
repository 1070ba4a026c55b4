"""Pictures of rotated boxes: what was found, in class colours, over what is there, in white."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rgfl import atomic
from rgfl.boxes import to_quads
from rgfl.detections import Detections
from rgfl.dota.labels import Objects

LONGEST_SIDE = 4096  # larger scenes are shrunk to it: a picture is for looking at
TRUTH, DIFFICULT = (255, 255, 255), (150, 150, 150)
BACK = (30, 30, 30)  # of the legend
LABEL_SIDE = 28  # px of the picture: smaller boxes carry their colour only
LABELS_AT_MOST = 80
FONT = cv2.FONT_HERSHEY_SIMPLEX

Colour = tuple[int, int, int]


def palette(count: int) -> list[Colour]:
    """`count` RGB colours, bright and far apart: hues a golden section apart, in two brightnesses."""
    colours = []
    for index in range(count):
        hue = (0.02 + index * 0.618034) % 1.0
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.9, 1.0 if index % 2 == 0 else 0.8)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colours


def picture(
    image: NDArray[np.uint8],
    detections: Detections,
    classes: tuple[str, ...],
    *,
    truth: Objects | None = None,
    min_score: float = 0.3,
) -> NDArray[np.uint8]:
    """A copy of `image` with boxes, above a strip with the legend.

    Args:
        image: (H, W, 3) RGB.
        detections: those with at least `min_score` are drawn, in the colour of their class.
        classes: names of the labels.
        truth: ground truth, drawn below in white; thin grey if difficult.
    """
    scale = min(1.0, LONGEST_SIDE / max(image.shape[:2]))
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        canvas = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    else:
        canvas = image.copy()
    thickness = 1 if max(canvas.shape[:2]) < 1200 else 2
    colours = palette(len(classes))
    if truth is not None:
        for quad, difficult in zip(truth.quads, truth.difficult, strict=True):
            colour = DIFFICULT if difficult else TRUTH
            _outline(canvas, quad * scale, colour, 1 if difficult else thickness + 1)
    shown = detections[detections.scores >= min_score]
    shown = shown[np.argsort(shown.scores, kind="stable")]  # the best on top
    quads = to_quads(shown.boxes.astype(np.float64)).reshape(-1, 8) * scale
    for quad, label in zip(quads, shown.labels.tolist(), strict=True):
        _outline(canvas, quad, colours[label], thickness)
    if len(shown) <= LABELS_AT_MOST:
        taken = np.zeros(canvas.shape[:2], bool)
        for index in range(len(shown) - 1, -1, -1):  # the best first: it is labelled where there is no room
            corners, label = quads[index].reshape(4, 2), int(shown.labels[index])
            if np.ptp(corners, axis=0).max() >= LABEL_SIDE:
                top = corners[corners[:, 1].argmin()]
                _label(canvas, f"{classes[label]} {shown.scores[index]:.2f}", top, colours[label], taken)
    heading = f"{len(shown)} found, score >= {min_score:g}"
    return np.vstack([canvas, _legend(canvas.shape[1], heading, shown.labels, classes, colours, truth)])


def sheet(
    pictures: Sequence[tuple[NDArray[np.uint8], NDArray, NDArray]], classes: tuple[str, ...], columns: int
) -> NDArray[np.uint8]:
    """Labelled pictures of one size side by side, row by row, above one legend.

    Args:
        pictures: of each its pixels (S, S, 3) RGB, boxes (G, 5) and labels (G,).
        classes: names of the labels.
        columns: pictures in a row.
    """
    colours, drawn = palette(len(classes)), []
    for image, boxes, labels in pictures:
        canvas = image.copy()
        for quad, label in zip(to_quads(np.asarray(boxes, np.float64)), labels.tolist(), strict=True):
            _outline(canvas, quad, colours[label], 1)
        drawn.append(canvas)
    drawn += [np.zeros_like(drawn[0])] * (-len(drawn) % columns)
    rows = [np.hstack(drawn[start : start + columns]) for start in range(0, len(drawn), columns)]
    labels = np.concatenate([labels for *_, labels in pictures])
    return np.vstack([*rows, _legend(rows[0].shape[1], f"{len(labels)} labels", labels, classes, colours)])


def save(image: NDArray[np.uint8], path: Path) -> None:
    """Write RGB `image` as the suffix of `path` says, whole or not at all."""
    done, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise OSError(f"{path}: OpenCV cannot write this kind of image")
    atomic.write_bytes(path, data.tobytes())


def _outline(canvas: NDArray[np.uint8], quad: NDArray, colour: Colour, thickness: int) -> None:
    """Corners are given in 1/16 px, so that small boxes keep their shape."""
    corners = np.clip(quad.reshape(4, 1, 2), -32000, 32000)
    cv2.polylines(canvas, [np.round(corners * 16).astype(np.int32)], True, colour, thickness, cv2.LINE_AA, 4)


def _label(
    canvas: NDArray[np.uint8], text: str, at: NDArray, colour: Colour, taken: NDArray[np.bool_]
) -> None:
    """Text on a plate of the class colour, moved inside the picture; none over another plate, in `taken`."""
    (width, height), base = cv2.getTextSize(text, FONT, 0.42, 1)
    x = int(np.clip(at[0] - width / 2, 0, max(canvas.shape[1] - width - 4, 0)))
    y = int(np.clip(at[1] - 4, height + base + 2, canvas.shape[0] - 2))
    plate = taken[max(y - height - base, 0) : y + 1, x : x + width + 5]
    if plate.any():
        return
    plate[:] = True
    cv2.rectangle(canvas, (x, y - height - base), (x + width + 4, y), colour, cv2.FILLED)
    cv2.putText(canvas, text, (x + 2, y - base + 1), FONT, 0.42, _ink(colour), 1, cv2.LINE_AA)


def _legend(
    width: int,
    heading: str,
    labels: NDArray,
    classes: tuple[str, ...],
    colours: list[Colour],
    truth: Objects | None = None,
) -> NDArray[np.uint8]:
    """A strip of this width: how many there are of each class; of no height where the picture is narrow."""
    numbers = np.bincount(labels, minlength=len(classes))
    entries = [(heading, BACK)]
    entries += [(f"{name} {numbers[i]}", colours[i]) for i, name in enumerate(classes) if numbers[i]]
    if truth is not None:
        difficult = int((truth.difficult > 0).sum())
        entries.append((f"ground truth {len(truth) - difficult}", TRUTH))
        if difficult:
            entries.append((f"difficult {difficult}", DIFFICULT))
    sizes = [cv2.getTextSize(text, FONT, 0.45, 1)[0][0] + 34 for text, _ in entries]
    if max(sizes) > width:
        return np.zeros((0, width, 3), np.uint8)
    places, x, row = [], 0, 0
    for size in sizes:
        if x + size > width:
            x, row = 0, row + 1
        places.append((x, row))
        x += size
    strip = np.full((20 * (row + 1) + 6, width, 3), BACK, np.uint8)
    for (text, colour), (x, row) in zip(entries, places, strict=True):
        y = 20 * row + 18
        cv2.rectangle(strip, (x + 6, y - 9), (x + 16, y), colour, cv2.FILLED)
        cv2.putText(strip, text, (x + 22, y), FONT, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
    return strip


def _ink(colour: Colour) -> Colour:
    """Black or white, whichever reads better on `colour`."""
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return (0, 0, 0) if bright > 110 else (255, 255, 255)
