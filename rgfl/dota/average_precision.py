"""Average precision as the official DOTA evaluation of Task 1 computes it.

The rules, each of which moves the number. Polygons are as labelled, in float64, never rectangles fitted to
them.

- The images are those with a label file. A detection on any other image is an error.
- A detection belongs to the ground truth of its image and class with the greatest polygon IoU (the first of
  equals), looked for among those whose horizontal boxes, one pixel wider than drawn, overlap its own. There
  is no second choice: if that object is taken already, the detection is a false positive.
- The match counts if its IoU is *strictly* greater than the threshold. Where they are equal the devkit's
  polygon arithmetic, whose noise is 1e-9, decides either way; ours, of 1e-13, gives no match.
- Detections of a class come by falling score over all images; equal scores keep the order of the file.
- v1.0: a match with a difficult object is neither hit nor miss, and such objects are not missed either.
  v1.5 and v2.0 count every object. No official file holds the difficult 2 of a tile's border
  (rgfl/dota/tiling.py), which is ignored so in every version: nobody can find what has been cut away.
- AP is VOC 2007's: the mean over 11 recalls k/10 of the best precision at that recall or beyond. The grid is
  `np.arange(0, 1.1, .1)`, whose .3, .6 and .7 are a rounding error greater than 3/10, 6/10 and 7/10: a recall
  of exactly 3/10 does not reach it.
- A class without ground truth, or without detections, has AP 0 and counts in the mean.

HRSC2016's tables have VOC 2012's AP beside it, under the same rules of matching: `Result.by_area`.

Where all images are tiles by their names, the same rules hold and the result says so: objects in overlaps
count more than once, so the number is good for following a training and no other.

Letters in array names: D detections, G ground truths, K candidate pairs of both, C classes, T thresholds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rgfl import geometry
from rgfl.detections import Detections
from rgfl.dota.labels import CLASSES, DIFFICULT_CUT, Objects, Task1Class, to_task1
from rgfl.dota.pairs import in_ranges
from rgfl.dota.tiling import are_tiles
from rgfl.errors import UserError

THRESHOLDS: tuple[float, ...] = tuple(percent / 100 for percent in range(50, 100, 5))
RECALL_GRID = np.arange(0.0, 1.1, 0.1)
ELEVEN_POINTS, AREA = "VOC 2007, 11 points", "VOC 2012, area under the curve"
# Above this share of equal scores within a class the notes say so: the official order of ties is undefined.
_TIES_WORTH_A_NOTE = 0.01
_ASSUMED_RULE = (
    "Assumed: AP75 and mAP use the 11-point rule of AP50, as the server seems to; "
    "the official script computes IoU 0.50 alone."
)


class EvaluationError(UserError):
    """Detections and ground truth do not fit together; the message names the place."""


class Curve(NamedTuple):
    """Precision and recall of one class at one threshold, after each detection in order of rank."""

    scores: NDArray[np.float64]
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]


class OperatingPoint(NamedTuple):
    """Precision and recall if only detections of at least this score are kept."""

    score: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class ClassResult:
    """What became of the detections of one class.

    Attributes:
        ground_truth: objects that can be found or missed.
        difficult: objects left out because they are difficult; in v1.5 and v2.0 those cut by a tile alone.
        scores: (D,) falling.
        hits, misses: (T, D) true and false positives; a match with a difficult object is neither.
    """

    ground_truth: int
    difficult: int
    scores: NDArray[np.float64]
    hits: NDArray[np.bool_]
    misses: NDArray[np.bool_]

    def recall_precision(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Both (T, D), after each detection."""
        hits = np.cumsum(self.hits, axis=1, dtype=np.float64)
        misses = np.cumsum(self.misses, axis=1, dtype=np.float64)
        recall = hits / self.ground_truth if self.ground_truth else np.zeros_like(hits)
        return recall, hits / np.maximum(hits + misses, np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Matching:
    """All detections by class, then rank, each with the object that the official rule gives it.

    Attributes:
        images: names, which `images_D` and `images_G` number.
        labels_D, images_D, scores_D, quads_D8: the detections.
        match_D: number of the object among G, -1 where none of the class is near.
        iou_D: with that object; -inf where there is none.
        labels_G, images_G, quads_G8: the objects.
        difficult_G: neither to be found nor missed; in v1.5 and v2.0 only what a tile's border cut away.
    """

    images: tuple[str, ...]
    labels_D: NDArray[np.int64]
    images_D: NDArray[np.int64]
    scores_D: NDArray[np.float64]
    quads_D8: NDArray[np.float64]
    match_D: NDArray[np.int64]
    iou_D: NDArray[np.float64]
    labels_G: NDArray[np.int64]
    images_G: NDArray[np.int64]
    quads_G8: NDArray[np.float64]
    difficult_G: NDArray[np.bool_]

    @property
    def to_difficult_D(self) -> NDArray[np.bool_]:
        """Whether the object of `match_D` is a difficult one."""
        found = np.zeros(len(self.match_D), bool)
        found[self.match_D >= 0] = self.difficult_G[self.match_D[self.match_D >= 0]]
        return found

    def hits_and_misses(self, thresholds: Sequence[float]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """True and false positives, (T, D) each; a match with a difficult object is neither."""
        match_D, to_difficult_D = self.match_D, self.to_difficult_D
        above_TD = self.iou_D > np.asarray(thresholds)[:, None]
        hits_TD = np.zeros_like(above_TD)
        for hits_D, above_D in zip(hits_TD, above_TD, strict=True):
            claims = np.flatnonzero(above_D & ~to_difficult_D)
            # An object is hit by its best-scored claim.
            _, first = np.unique(match_D[claims], return_index=True)
            hits_D[claims[first]] = True
        return hits_TD, ~hits_TD & ~(above_TD & to_difficult_D)

    def nearest(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """`match_D` and `iou_D` among the objects of *all* classes, for explaining a mistake."""
        return _match(self.quads_D8, self.images_D, self.quads_G8, self.images_G, len(self.images))


@dataclass(frozen=True)
class Result:
    """The AP of every class at every threshold, and where it came from.

    Attributes:
        ap: (C, T), from 0 to 1.
        classes: C names.
        thresholds: T IoU thresholds.
        version: of DOTA, whose rule for difficult objects was used.
        images: number of images scored.
        by_class: C records: counts, and the fate of each detection.
        notes: what a reader of the numbers should know, one sentence each.
        unit: "image", or "tile" where all names are those of unmerged tiles.
        rule: how an AP is made of a curve.
    """

    ap: NDArray[np.float64]
    classes: tuple[str, ...]
    thresholds: tuple[float, ...]
    version: str
    images: int
    by_class: tuple[ClassResult, ...]
    notes: tuple[str, ...]
    unit: str = "image"
    rule: str = ELEVEN_POINTS

    def by_area(self) -> Result:
        """The same matches by VOC 2012's AP, the AP12 of HRSC2016's tables. DOTA's own is VOC 2007's."""
        return replace(
            self,
            ap=_ap(self.by_class, len(self.thresholds), area_under),
            notes=(
                "AP is the area under the curve (VOC 2012), no DOTA number.",
                *(note for note in self.notes if note != _ASSUMED_RULE),
            ),
            rule=AREA,
        )

    @property
    def ap50(self) -> float:
        """Mean over the classes at IoU 0.50."""
        return self.at(0.5)

    @property
    def ap75(self) -> float:
        """Mean over the classes at IoU 0.75."""
        return self.at(0.75)

    @property
    def map(self) -> float:
        """Mean over the classes and all thresholds evaluated (by default 0.50:0.05:0.95)."""
        return float(self.ap.mean())

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Objects and detections of each class."""
        return {
            name: {
                "ground_truth": record.ground_truth,
                "difficult": record.difficult,
                "detections": len(record.scores),
            }
            for name, record in zip(self.classes, self.by_class, strict=True)
        }

    def ap_by_class(self, threshold: float) -> NDArray[np.float64]:
        """(C,) at one of the thresholds evaluated."""
        return self.ap[:, self.column(threshold)]

    def at(self, threshold: float) -> float:
        """Mean over the classes at one of the thresholds evaluated."""
        return float(self.ap_by_class(threshold).mean())

    def curve(self, name: str, threshold: float = 0.5) -> Curve:
        """The precision-recall curve of a class at one of the thresholds evaluated."""
        record, column = self._record(name), self.column(threshold)
        recall, precision = record.recall_precision()
        return Curve(record.scores, recall[column], precision[column])

    def best_f1(self, name: str, threshold: float = 0.5) -> OperatingPoint | None:
        """The score from which on detections have the greatest F1; None if nothing was ever hit."""
        scores, recall, precision = self.curve(name, threshold)
        f1 = 2 * recall * precision / np.maximum(recall + precision, np.finfo(np.float64).tiny)
        if not f1.any():
            return None
        f1[:-1][scores[1:] == scores[:-1]] = -1.0  # no score parts equals
        best = int(f1.argmax())
        return OperatingPoint(*(float(values[best]) for values in (scores, precision, recall, f1)))

    def record(self) -> dict[str, Any]:
        """What `to_json` writes, as a dictionary, to be merged into a larger one."""
        record: dict[str, Any] = {}
        for key, threshold in (("ap50", 0.5), ("ap75", 0.75)):
            if self._find(threshold) is not None:
                record[key] = self.at(threshold)
        record |= {
            "map": self.map,
            "classes": {
                name: {_key(t): float(ap) for t, ap in zip(self.thresholds, row, strict=True)}
                for name, row in zip(self.classes, self.ap, strict=True)
            },
            "counts": self.counts,
            "images": self.images,
            "unit": self.unit,
            "version": self.version,
            "rule": self.rule,
            "thresholds": list(self.thresholds),
            "notes": list(self.notes),
        }
        return record

    def to_json(self) -> str:
        """All numbers, unrounded: `{"ap50", "ap75", "map", "classes": {name: {"0.50": ap, …}}, …}`."""
        return json.dumps(self.record(), indent=2)

    def table(self) -> str:
        """Percentages and counts, a class a line, the mean below, then the notes."""
        columns = [
            (name, self.ap[:, column])
            for name, threshold in (("AP50", 0.5), ("AP75", 0.75))
            if (column := self._find(threshold)) is not None
        ]
        columns.append(("mAP", self.ap.mean(axis=1)))
        width = max(len("all classes"), *(len(name) for name in self.classes))
        first = self.thresholds[0]
        title = f"DOTA-v{self.version} Task 1, {self.images} {self.unit}{'s' if self.images != 1 else ''}"
        if self.unit == "tile":
            title = f"tile AP (unmerged): {title}"
        head = "class".ljust(width) + "".join(f"{name:>8}" for name, _ in columns)
        head += f"{'#gt':>8}{'#diff':>7}{'#det':>8}{'prec':>9}{'recall':>8}{'score':>8}"
        lines = [title, "", head, "-" * len(head)]
        for row, (name, record) in enumerate(zip(self.classes, self.by_class, strict=True)):
            line = name.ljust(width) + "".join(f"{100 * values[row]:8.2f}" for _, values in columns)
            line += f"{record.ground_truth:8d}{record.difficult:7d}{len(record.scores):8d}"
            if point := self.best_f1(name, first):
                line += f"{100 * point.precision:9.1f}{100 * point.recall:8.1f}{point.score:8.3f}"
            else:
                line += f"{'–':>9}{'–':>8}{'–':>8}"
            lines.append(line)
        line = "all classes".ljust(width) + "".join(f"{100 * values.mean():8.2f}" for _, values in columns)
        for key, size in (("ground_truth", 8), ("difficult", 7), ("detections", 8)):
            line += f"{sum(count[key] for count in self.counts.values()):{size}d}"
        lines += ["-" * len(head), line]
        lines += [
            "",
            f"AP, precision and recall in %; prec, recall, score: where F1 at IoU {_key(first)} is best.",
        ]
        if self.notes:
            lines += [f"* {note}" for note in self.notes]
        return "\n".join(lines)

    def _find(self, threshold: float) -> int | None:
        same = (column for column, evaluated in enumerate(self.thresholds) if _same(evaluated, threshold))
        return next(same, None)

    def column(self, threshold: float) -> int:
        """Where a threshold that was evaluated stands among `thresholds`."""
        column = self._find(threshold)
        if column is not None:
            return column
        have = ", ".join(map(_key, self.thresholds))
        raise ValueError(f"IoU threshold {threshold:g} was not evaluated, only {have}: pass thresholds=")

    def _record(self, name: str) -> ClassResult:
        if name not in self.classes:
            raise ValueError(f"no class {name!r} in this result, only {', '.join(self.classes)}")
        return self.by_class[self.classes.index(name)]


def evaluate(
    task1: Mapping[str, Task1Class],
    truth: Mapping[str, Objects],
    classes: Sequence[str],
    *,
    version: str = "1.0",
    thresholds: Sequence[float] = THRESHOLDS,
) -> Result:
    """The official evaluation of Task 1 files, as read by `rgfl.dota.labels.read_task1`.

    Args:
        task1: for each class its detections on merged, full images.
        truth: for each image its objects, whose labels index `classes`.
        classes: the mean is over these.
        version: "1.0", "1.5" or "2.0": the rule for difficult objects.
        thresholds: of IoU, each from 0 to below 1.

    Raises:
        EvaluationError: a class or image that is missing or unknown, a score or corner that is not finite.
    """
    _check(truth, classes, version, thresholds)
    unknown = [name for name in task1 if name not in classes]
    if unknown:
        raise EvaluationError(f"Task1_{unknown[0]}.txt: no such class; evaluated are {', '.join(classes)}")
    for name in classes:
        if name not in task1:
            raise EvaluationError(
                f"Task1_{name}.txt is missing: every class needs a file, an empty one if nothing was found"
            )
        for place, image in enumerate(task1[name].images, start=1):
            if image not in truth:
                raise EvaluationError(
                    f"Task1_{name}.txt, detection {place}: image {image!r} has no label file "
                    f"(there are {len(truth)}, {min(truth)} … {max(truth)})"
                )
        _check_finite(f"Task1_{name}.txt", task1[name].scores, task1[name].quads)
    return _evaluate(task1, truth, classes, version, thresholds)


def evaluate_detections(
    detections: Mapping[str, Detections],
    truth: Mapping[str, Objects],
    classes: Sequence[str],
    *,
    version: str = "1.0",
    thresholds: Sequence[float] = THRESHOLDS,
) -> Result:
    """The official evaluation of detections held in memory, the same as of their Task 1 files.

    Args:
        detections: for each image, by its name without suffix, what was found: boxes `cx, cy, w, h, θ` in
            pixels of the full image and radians (rgfl.boxes converts other forms), labels that index
            `classes`. NumPy arrays, or what makes them. Images that are not among the keys had none.
        truth: for each image, by the same names, its objects, as `rgfl.dota.labels.read_label_folder` reads
            them with the same `classes`.
        classes, version, thresholds: as for `evaluate`.

    Raises:
        EvaluationError: an unknown image or label, a score or box that is not finite.
    """
    _check_detections(detections, truth, classes, version, thresholds)
    result = _evaluate(to_task1(detections, classes), truth, classes, version, thresholds)
    theta = Detections.concatenate(list(detections.values())).boxes[:, 4]
    if np.count_nonzero(np.abs(theta) > 2 * np.pi) > len(theta) / 2:
        note = "Most angles are beyond 2π: they look like degrees, θ is in radians (rgfl.boxes.from_opencv)."
        result = replace(result, notes=(*result.notes, note))
    return result


def match_to_truth(
    detections: Mapping[str, Detections],
    truth: Mapping[str, Objects],
    classes: Sequence[str],
    *,
    version: str = "1.0",
) -> Matching:
    """Which object each detection was counted for, by the rules of `evaluate_detections`.

    Raises:
        EvaluationError: as `evaluate_detections`.
    """
    _check_detections(detections, truth, classes, version, THRESHOLDS)
    return _matching(to_task1(detections, classes), truth, classes, version)


def eleven_points(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    """VOC 2007's AP of a curve whose recall never falls: the mean of the best precision from 11 recalls."""
    ap = 0.0
    for best in best_from(RECALL_GRID, recall, precision):
        ap += float(best) / 11.0  # divided one by one, as the official script does, to round as it rounds
    return ap


def area_under(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    """VOC 2012's AP of a curve whose recall never falls: its steps, each at the best precision from there."""
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * best).sum())


def _ap(
    by_class: Sequence[ClassResult],
    thresholds: int,
    rule: Callable[[NDArray[np.float64], NDArray[np.float64]], float],
) -> NDArray[np.float64]:
    """(C, T), 0 for a class without ground truth."""
    ap_CT = np.zeros((len(by_class), thresholds))
    for row, record in zip(ap_CT, by_class, strict=True):
        if record.ground_truth:
            row[:] = [rule(*curve) for curve in zip(*record.recall_precision(), strict=True)]
    return ap_CT


def best_from(
    recalls: NDArray[np.float64], recall: NDArray[np.float64], precision: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The best precision at each of `recalls` or beyond; 0 where the curve never gets there."""
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return np.append(best, 0.0)[np.searchsorted(recall, recalls)]


def _check(
    truth: Mapping[str, Objects], classes: Sequence[str], version: str, thresholds: Sequence[float]
) -> None:
    if version not in CLASSES:
        raise EvaluationError(f"version is one of {', '.join(CLASSES)}, not {version!r}")
    if isinstance(classes, str):  # a sequence of letters
        raise EvaluationError(
            f"classes: expected a sequence of names, got {classes!r}; "
            f"pass rgfl.dota.labels.read_classes({classes!r})"
        )
    if not classes or len(set(classes)) != len(classes):
        raise EvaluationError(f"expected one or more different classes, got {list(classes)}")
    if not thresholds or not all(0 <= t < 1 for t in thresholds):
        raise EvaluationError(f"IoU thresholds lie from 0 to below 1, got {list(thresholds)}")
    if not truth:
        raise EvaluationError("no label files: the images to score are those that have one")
    for image, objects in truth.items():
        _check_labels(f"ground truth of image {image!r}", objects.labels, classes)
        if not np.isfinite(objects.quads).all():
            raise EvaluationError(f"ground truth of image {image!r}: a corner is not finite")


def _check_detections(
    detections: Mapping[str, Detections],
    truth: Mapping[str, Objects],
    classes: Sequence[str],
    version: str,
    thresholds: Sequence[float],
) -> None:
    _check(truth, classes, version, thresholds)
    for image, found in detections.items():
        if image not in truth:
            raise EvaluationError(
                f"detections of image {image!r}: it has no ground truth "
                f"(there are {len(truth)} images, {min(truth)} … {max(truth)})"
            )
        _check_labels(f"detections of image {image!r}", found.labels, classes)
        _check_finite(f"image {image!r}", found.scores, found.boxes)


def _check_labels(where: str, labels: NDArray[np.integer], classes: Sequence[str]) -> None:
    if len(labels) and (labels.min() < 0 or labels.max() >= len(classes)):
        raise EvaluationError(
            f"{where}: labels from {labels.min()} to {labels.max()}, expected 0 to {len(classes) - 1} "
            f"for {len(classes)} classes"
        )


def _check_finite(where: str, scores: NDArray[np.floating], coordinates: NDArray[np.floating]) -> None:
    for what, values in (("score", scores), ("coordinates", coordinates)):
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1) if len(values) else np.ones(0, bool)
        if not finite.all():
            bad = int(np.argmin(finite))
            raise EvaluationError(f"{where}, detection {bad + 1}: {what} not finite: {values[bad]}")


def _evaluate(
    task1: Mapping[str, Task1Class],
    truth: Mapping[str, Objects],
    classes: Sequence[str],
    version: str,
    thresholds: Sequence[float],
) -> Result:
    matching = _matching(task1, truth, classes, version)
    labels_D, scores_D = matching.labels_D, matching.scores_D
    labels_G, difficult_G = matching.labels_G, matching.difficult_G
    hits_TD, misses_TD = matching.hits_and_misses(thresholds)

    bounds = np.searchsorted(labels_D, np.arange(len(classes) + 1))
    by_class = []
    for label in range(len(classes)):
        own = slice(bounds[label], bounds[label + 1])
        of_class_G = labels_G == label
        by_class.append(
            ClassResult(
                ground_truth=int((of_class_G & ~difficult_G).sum()),
                difficult=int((of_class_G & difficult_G).sum()),
                scores=scores_D[own],
                hits=hits_TD[:, own],
                misses=misses_TD[:, own],
            )
        )
    unit = "tile" if are_tiles(truth) else "image"
    return Result(
        ap=_ap(by_class, len(thresholds), eleven_points),
        classes=tuple(classes),
        thresholds=tuple(float(t) for t in thresholds),
        version=version,
        images=len(truth),
        by_class=tuple(by_class),
        notes=tuple(_notes(classes, by_class, version, thresholds, unit)),
        unit=unit,
    )


def _matching(
    task1: Mapping[str, Task1Class],
    truth: Mapping[str, Objects],
    classes: Sequence[str],
    version: str,
) -> Matching:
    numbers = {image: number for number, image in enumerate(truth)}
    parts = [task1[name] for name in classes]
    labels_D = np.repeat(np.arange(len(classes)), [len(part) for part in parts])
    images_D = np.array([numbers[image] for part in parts for image in part.images], np.int64)
    scores_D = np.concatenate([part.scores for part in parts]).astype(np.float64)
    quads_D8 = np.concatenate([part.quads for part in parts]).astype(np.float64)
    rank = np.lexsort((-scores_D, labels_D))  # by class, then score; stable
    labels_D, images_D, scores_D, quads_D8 = labels_D[rank], images_D[rank], scores_D[rank], quads_D8[rank]

    objects = Objects.concatenate(list(truth.values()))
    quads_G8, labels_G = objects.quads.astype(np.float64), objects.labels.astype(np.int64)
    images_G = np.repeat(np.arange(len(truth)), [len(part) for part in truth.values()])
    # From v1.5 on every object counts; only a tile's border takes some away.
    cut_G = (objects.difficult == DIFFICULT_CUT) & are_tiles(truth)
    difficult_G = objects.difficult > 0 if version == "1.0" else cut_G

    # Only pairs of one class and image are of interest: number those groups.
    group_D, group_G = labels_D * len(truth) + images_D, labels_G * len(truth) + images_G
    match_D, iou_D = _match(quads_D8, group_D, quads_G8, group_G, len(classes) * len(truth))
    return Matching(
        tuple(truth), labels_D, images_D, scores_D, quads_D8, match_D, iou_D,
        labels_G, images_G, quads_G8, difficult_G,
    )  # fmt: skip


def _match(
    quads_D8: NDArray[np.float64],
    group_D: NDArray[np.int64],
    quads_G8: NDArray[np.float64],
    group_G: NDArray[np.int64],
    groups: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each detection the ground truth of its group (class and image) with the greatest IoU, and that IoU.

    Without any whose horizontal box overlaps: -1 and -inf.
    """
    match_D, iou_D = np.full(len(quads_D8), -1, np.int64), np.full(len(quads_D8), -np.inf)
    detection_K, truth_K = _overlapping(quads_D8, group_D, quads_G8, group_G, groups)
    if not len(detection_K):
        return match_D, iou_D
    iou_K = geometry.quad_iou_pairwise(quads_G8[truth_K], quads_D8[detection_K])
    starts = np.flatnonzero(np.diff(detection_K, prepend=-1))
    greatest = np.maximum.reduceat(iou_K, starts)  # a NaN stays: it is not above any threshold
    greatest_K = np.repeat(greatest, np.diff(starts, append=len(detection_K)))
    best_K = np.flatnonzero(iou_K == greatest_K)
    detections, first = np.unique(detection_K[best_K], return_index=True)
    match_D[detections] = truth_K[best_K[first]]
    iou_D[detections] = iou_K[best_K[first]]
    return match_D, iou_D


def _overlapping(
    quads_D8: NDArray[np.float64],
    group_D: NDArray[np.int64],
    quads_G8: NDArray[np.float64],
    group_G: NDArray[np.int64],
    groups: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of one group whose horizontal boxes overlap with a pixel added; by detection, then ground truth.

    The boxes hold both their first and last pixel, hence the + 1. A sweep over the left edges of each group
    skips most pairs that lie apart, so a crowded image does not cost detections × objects.
    """
    nothing = np.zeros(0, np.int64)
    if not len(quads_D8) or not len(quads_G8):
        return nothing, nothing
    left_D, top_D, right_D, bottom_D = _horizontal(quads_D8)
    left_G, top_G, right_G, bottom_G = _horizontal(quads_G8)
    # One sorted key for (group, left edge) without mixing scales: edges are replaced by their rank.
    edges, base = np.sort(left_G), len(left_G) + 1
    key_G = group_G * base + np.searchsorted(edges, left_G)
    order = np.argsort(key_G, kind="stable")
    key_G = key_G[order]
    widest = np.zeros(groups)
    np.maximum.at(widest, group_G, right_G - left_G)
    # 2 pixels where the rule says 1: rounding here can only let in pairs that the exact test below refuses.
    begin_D = np.searchsorted(key_G, group_D * base + np.searchsorted(edges, left_D - widest[group_D] - 2))
    end_D = np.searchsorted(key_G, group_D * base + np.searchsorted(edges, right_D + 2, side="right"))
    kept = []
    for detection, place in in_ranges(begin_D, end_D):
        truth = order[place]
        width = np.minimum(right_D[detection], right_G[truth]) - np.maximum(left_D[detection], left_G[truth])
        height = np.minimum(bottom_D[detection], bottom_G[truth]) - np.maximum(top_D[detection], top_G[truth])
        overlap = (width + 1 > 0) & (height + 1 > 0)
        kept.append((detection[overlap], truth[overlap]))
    detection_K, truth_K = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    by_both = np.lexsort((truth_K, detection_K))
    return detection_K[by_both], truth_K[by_both]


def _horizontal(quads_N8: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    x, y = quads_N8[:, 0::2], quads_N8[:, 1::2]
    return x.min(axis=1), y.min(axis=1), x.max(axis=1), y.max(axis=1)


def _notes(
    classes: Sequence[str],
    by_class: Sequence[ClassResult],
    version: str,
    thresholds: Sequence[float],
    unit: str,
) -> Iterator[str]:
    if unit == "tile":
        yield "tile AP: unmerged tiles were scored, objects in overlaps count more than once; no DOTA number."
    if not all(_same(t, 0.5) for t in thresholds):
        yield _ASSUMED_RULE
    if version == "2.0":
        yield (
            "Assumed: v2.0 counts difficult objects, as the official v1.5 script does; "
            "no script was published for v2.0."
        )
    if len(thresholds) != len(THRESHOLDS) or not all(map(_same, thresholds, THRESHOLDS)):
        yield f"mAP is the mean over IoU {', '.join(map(_key, thresholds))}, not 0.50:0.05:0.95."
    official = CLASSES[version]
    if set(classes) != set(official):
        count = f"{len(classes)} class{'es' if len(classes) != 1 else ''}"
        yield f"The mean is over {count} evaluated, not the {len(official)} of DOTA-v{version}."
    empty = [name for name, record in zip(classes, by_class, strict=True) if not record.ground_truth]
    if empty:
        yield f"No ground truth that counts, hence AP 0 in the mean: {', '.join(empty)}."
    detections = sum(len(record.scores) for record in by_class)
    ties = sum(int((record.scores[1:] == record.scores[:-1]).sum()) for record in by_class)
    if ties > _TIES_WORTH_A_NOTE * detections:
        yield (
            f"{ties} of {detections} detections repeat a score of their class (rounded scores?): they keep "
            "the order of the input, which the official script leaves undefined."
        )


def _same(a: float, b: float) -> bool:
    return abs(a - b) < 1e-9


def _key(threshold: float) -> str:
    return f"{threshold:.2f}" if _same(threshold, round(threshold, 2)) else f"{threshold:g}"
