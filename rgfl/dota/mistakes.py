"""What became of every detection and every object, in words: found, placed badly, confused, missed.

The judge is the official rule at IoU 0.50 (rgfl/dota/average_precision.py), so what is called a mistake here
is what costs AP50: a detection that is a false positive there, an object that counts and is not hit. A false
positive is explained by the first that holds of

    duplicate    IoU above 0.50 with an object of its class that a better-scored detection hit
    confused     IoU above 0.50 with an object of another class
    misplaced    IoU above 0.10 with an object of its class
    background   none of these

Difficult objects (v1.0, and what a tile's border cut away) are not missed, and their own class over them is
no mistake. Another class over them is one, as in AP.

Letters in array names: D detections, G ground truths.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rgfl.detections import Detections
from rgfl.dota.average_precision import Matching, match_to_truth
from rgfl.dota.labels import Objects, quad_areas

THRESHOLD = 0.5  # of the official number
NEAR = 0.1  # IoU from which a box is about an object, if badly

RIGHT, IGNORED, DUPLICATE, CONFUSED, MISPLACED, BACKGROUND = range(6)
FATES = ("right", "on a difficult object", "duplicate", "confused", "misplaced", "background")


@dataclass(frozen=True)
class Verdicts:
    """Every detection and object with its fate.

    Attributes:
        matching: the detections and objects, numbered.
        fate_D: index into `FATES`.
        about_D: the object that the fate is about, -1 for background.
        iou_D: with that object; 0 for background.
        found_by_G: the detection that hit the object, -1 if none did.
    """

    matching: Matching
    fate_D: NDArray[np.int64]
    about_D: NDArray[np.int64]
    iou_D: NDArray[np.float64]
    found_by_G: NDArray[np.int64]

    @property
    def missed_G(self) -> NDArray[np.bool_]:
        """Objects that count and were not found."""
        return (self.found_by_G < 0) & ~self.matching.difficult_G

    def false_positives(self, *fates: int) -> NDArray[np.int64]:
        """Detections of these fates, the highest score first."""
        chosen = np.flatnonzero(np.isin(self.fate_D, fates))
        return chosen[np.argsort(-self.matching.scores_D[chosen], kind="stable")]

    def missed(self) -> NDArray[np.int64]:
        """Objects that were not found, the largest first: small ones are hard for anybody."""
        chosen = np.flatnonzero(self.missed_G)
        return chosen[np.argsort(-quad_areas(self.matching.quads_G8[chosen]), kind="stable")]


def judge(
    detections: Mapping[str, Detections],
    truth: Mapping[str, Objects],
    classes: Sequence[str],
    *,
    version: str = "1.0",
) -> Verdicts:
    """The fates of all detections and objects; the arguments are those of `evaluate_detections`."""
    matching = match_to_truth(detections, truth, classes, version=version)
    hits_D = matching.hits_and_misses((THRESHOLD,))[0][0]
    own_D, own_iou_D = matching.match_D, matching.iou_D
    any_D, any_iou_D = matching.nearest()

    on_own_D = own_iou_D > THRESHOLD
    fate_D = np.select(
        [hits_D, on_own_D & matching.to_difficult_D, on_own_D, any_iou_D > THRESHOLD, own_iou_D > NEAR],
        [RIGHT, IGNORED, DUPLICATE, CONFUSED, MISPLACED],
        BACKGROUND,
    )
    about_D = np.select([fate_D == BACKGROUND, fate_D == CONFUSED], [-1, any_D], own_D)
    iou_D = np.select([fate_D == BACKGROUND, fate_D == CONFUSED], [0.0, any_iou_D], own_iou_D)
    found_by_G = np.full(len(matching.labels_G), -1, np.int64)
    found_by_G[own_D[hits_D]] = np.flatnonzero(hits_D)
    return Verdicts(matching, fate_D, about_D, iou_D, found_by_G)


COLUMNS = ("image", "mistake", "score", "detected", "labelled", "iou", "x", "y")


def to_csv(verdicts: Verdicts, classes: Sequence[str]) -> str:
    """Every false positive, the highest score first, then every missed object, the largest first, as CSV.

    A mistake of a good detector with a high score is often one of the labels. x and y are the centre, in
    pixels, of the detection or of the missed object. A name that a spreadsheet would take for a formula has
    an apostrophe before it.
    """
    matching, text = verdicts.matching, io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)

    def add(image: int, quad: NDArray[np.float64], *what: str) -> None:
        x, y = quad.reshape(4, 2).mean(axis=0)
        cells = (matching.images[image], *what)
        table.writerow((*(re.sub(r"^[=+@-]", r"'\g<0>", cell) for cell in cells), f"{x:.1f}", f"{y:.1f}"))

    for d in verdicts.false_positives(DUPLICATE, CONFUSED, MISPLACED, BACKGROUND).tolist():
        about = int(verdicts.about_D[d])
        labelled = classes[matching.labels_G[about]] if about >= 0 else ""
        found = (f"{matching.scores_D[d]:.4f}", classes[matching.labels_D[d]])
        kind, iou = FATES[verdicts.fate_D[d]], f"{verdicts.iou_D[d]:.3f}"
        add(matching.images_D[d], matching.quads_D8[d], kind, *found, labelled, iou)
    for g in verdicts.missed().tolist():
        labelled = classes[matching.labels_G[g]]
        add(matching.images_G[g], matching.quads_G8[g], "missed", "", "", labelled, "")
    return text.getvalue()
