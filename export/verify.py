"""Artifacts of one detector side by side: PyTorch, ONNX, engines, in any precision.

    python export/verify.py MODEL.onnx --reference CHECKPOINT                      before NMS, to the pixel
    python export/verify.py ROUNDED.onnx --reference MODEL.onnx --detections       after NMS, by matching

Before NMS points are matched, not paired by index: TopK orders equal scores differently from backend to
backend. A box error is the greatest distance between corresponding corners in pixels, minimised
over the cyclic order of the corners, so that a square's four descriptions count as one.

Every score is held to its tolerance, and 99.5% of the boxes that can become a detection (their best score is
above the spec's threshold); of all boxes as many to ten times it. The angle is the direction of a vector, and
where the network sees nothing, has learned little, or sees something round, its length is near zero, so that
any rounding turns it. Such a detection must still be the same to the eye: the IoU of the two boxes is at
least .95.

With --detections, for artifacts that differ in precision and for engines with NMS inside, both run to the
end. A detection above --min-score must have a match in the other model: one of its class with a rotated
IoU of at least --match-iou, whatever its score, so that one just below --min-score counts as found.

Both ways also hold each batch against its tiles alone: the batch size must not change a detection.

Polygraphy's comparator is not used here: it pairs outputs by index, which TopK reorders, and its TensorRT
runner allocates for every call. What it does well is to find the layer where two backends part:

    polygraphy run MODEL.onnx --onnxrt --trt --onnx-outputs mark all --trt-outputs mark all
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rgfl import checks, errors
from rgfl.detections import Detections
from rgfl.geometry import rotated_iou_pairwise
from rgfl.matching import angle_distance, corner_distance, match_detections
from rgfl.spec import DetectorSpec
from rgfl.trt_runtime.runners import Device, Runner, load_runner, recognise
from rgfl.trt_runtime.sample_tiles import detection_tiles, sample_tiles
from rgfl.trt_runtime.scenes import add_trust_argument

BOX_TOLERANCE = 1e-2  # px
SCORE_TOLERANCE = 1e-5
# Share of the boxes held to the pixel. Trained models on AVX-512 had 1 of 936 at .05 px where they saw
# nothing, and 1 of 1,270 that can be detections at .4 px.
HELD = 0.995
UNSEEN = 10  # times the tolerance, for boxes that are no detections: those of a detector of four steps need 2
TURNED_IOU = 0.95
TAIL = 0.01  # share of a level's points, the last ones, that may lie at TopK's cut whatever their scores
BATCHES = (1, 2, 3)
NEIGHBOURS = 8  # points with the nearest centres that a point may match
MATCH_IOU, MIN_SCORE, MIN_MATCHED = 0.9, 0.3, 0.99
TILES = 16  # compared by their detections
QUANTILES = (0.5, 0.9, 0.99, 1.0)

EXAMPLES = """\
examples:
  python export/verify.py model.onnx --reference best.pt
  python export/verify.py model.onnx --reference best.pt --images val/images --batch 1,4
  python export/verify.py rounded.onnx model-int8.onnx --reference model.onnx --detections --images val/images
  python export/verify.py model.fp16.engine --reference model.onnx --detections --min-matched .98

not run yet: engines (they need a GPU); the code that runs them is tested on stand-ins

exit status: 0 within the tolerances, or matched; 1 not; 2 bad input
"""


class Kept(NamedTuple):
    """Points that a level contributes to P, and whether TopK chose them from more."""

    points: int
    cut: bool


@dataclass
class Differences:
    """Differences of the matched points of one batch size.

    Attributes:
        corners: (M,) greatest corner distance of each pair, px.
        scores: (M,) greatest score difference of each pair.
        detectable: (M,) whether the point can become a detection.
        overlaps: (M,) rotated IoU of each pair; 1 where the corners agree.
        exchanged: pairs that fell on two sides of TopK's cut, because their class scores are equal within
            the tolerance; they are no error.
    """

    corners: NDArray[np.float64]
    scores: NDArray[np.float64]
    detectable: NDArray[np.bool_]
    overlaps: NDArray[np.float64]
    exchanged: int = 0

    @property
    def worst_corner(self) -> float:
        return float(self.corners.max(initial=0.0))

    @property
    def needed_corner(self) -> float:
        """The tolerance, px, that holds for 99.5% of the boxes that can become detections."""
        return _held(self.corners[self.detectable])

    @property
    def needed_of_all(self) -> float:
        """The tolerance, px, that holds for 99.5% of all boxes."""
        return _held(self.corners)

    @property
    def least_overlap(self) -> float:
        """The least IoU of a pair that can become a detection; 1 if there is none."""
        return float(self.overlaps[self.detectable].min(initial=1.0))

    @property
    def worst_score(self) -> float:
        return float(self.scores.max(initial=0.0))


def _held(values: NDArray[np.float64]) -> float:
    """The largest value after dropping the worst 0.5% (at least one value, if there are 20 or more)."""
    dropped = max(int((1 - HELD) * len(values)), int(len(values) >= 20))
    return float(np.sort(values)[: len(values) - dropped].max(initial=0.0))


@dataclass
class Report:
    """The differences by batch size, and whether all are within the tolerances."""

    box_tolerance: float = BOX_TOLERANCE
    score_tolerance: float = SCORE_TOLERANCE
    batches: dict[int, Differences] = field(default_factory=dict)
    # The file's own batches against their tiles alone:
    alone: dict[int, Differences] = field(default_factory=dict)

    @property
    def compared(self) -> list[Differences]:
        return [*self.batches.values(), *self.alone.values()]

    @property
    def passed(self) -> bool:
        return all(
            found.needed_corner <= self.box_tolerance
            and found.needed_of_all <= UNSEEN * self.box_tolerance
            and found.worst_score <= self.score_tolerance
            and found.least_overlap >= TURNED_IOU
            for found in self.compared
        )

    def text(self) -> str:
        """A line a batch size, then the tolerance that each output needs."""
        lines = [
            "                        greatest error of boxes, px    of scores   exchanged",
            "batch   points  detectable   detectable         all        (all)    at the cut",
        ]
        for batch, found in self.batches.items():
            chosen = found.corners[found.detectable]
            lines.append(
                f"{batch:5d} {len(found.corners):8d} {len(chosen):11d} {chosen.max(initial=0.0):12.1e}"
                f" {found.worst_corner:11.1e} {found.worst_score:12.1e} {found.exchanged:13d}"
            )
        for batch, found in self.alone.items():
            lines.append(
                f"{batch:5d} tiles and each alone: boxes need {found.needed_of_all:.1e} px, "
                f"scores {found.worst_score:.1e}"
            )
        seen = max(found.needed_corner for found in self.batches.values())
        every = max(found.needed_of_all for found in self.batches.values())
        scores = max(found.worst_score for found in self.batches.values())
        lines.append(
            f"boxes  need {seen:.1e} px, allowed {self.box_tolerance:.0e} px; all, of which most are no "
            f"detections, {every:.1e} px, allowed {UNSEEN * self.box_tolerance:.0e} px"
        )
        if not any(found.detectable.any() for found in self.batches.values()):
            lines.append("none of the boxes can be a detection: compare on images with objects, by --images")
        overlap = min(found.least_overlap for found in self.compared)
        if overlap < 1:
            lines.append(f"turned detections overlap by {overlap:.3f}, allowed {TURNED_IOU}")
        lines.append(f"scores need {scores:.1e}, allowed {self.score_tolerance:.0e}")
        lines.append("equal within the tolerances" if self.passed else "DIFFERENT: beyond the tolerances")
        return "\n".join(lines)


# --- matching --------------------------------------------------------------------------------------------


def compare(
    first: tuple[NDArray, NDArray],
    second: tuple[NDArray, NDArray],
    levels: Sequence[Kept],
    score_tolerance: float = SCORE_TOLERANCE,
    score_threshold: float = 0.0,
) -> Differences:
    """Match the points of two outputs `boxes (B, P, 5), scores (B, P, C)` level by level.

    Args:
        first, second: the outputs; both must have the same shapes.
        levels: in their order along P.
        score_tolerance: where TopK cut, a point may be missing on one side if its best score is this
            near to the least of its level, or if it is among the last of it: rounding then exchanged it
            with another.
        score_threshold: points above it can become detections.
    """
    (boxes_a, scores_a), (boxes_b, scores_b) = first, second
    if boxes_a.shape != boxes_b.shape or scores_a.shape != scores_b.shape:
        raise errors.ModelError(
            f"outputs of different shapes: {boxes_a.shape}, {scores_a.shape} and "
            f"{boxes_b.shape}, {scores_b.shape}; the two come from different models or settings"
        )
    total = sum(level.points for level in levels)
    if boxes_a.shape[1] != total:
        raise errors.ModelError(f"expected {total} points from the spec, got {boxes_a.shape[1]}")
    parts = []
    for image in range(len(boxes_a)):
        start = 0
        for level in levels:
            own = slice(start, start + level.points)
            one = boxes_a[image, own], scores_a[image, own]
            two = boxes_b[image, own], scores_b[image, own]
            parts.append(_compare_level(one, two, level.cut, score_tolerance, score_threshold))
            start += level.points
    return Differences(
        np.concatenate([part.corners for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.detectable for part in parts]),
        np.concatenate([part.overlaps for part in parts]),
        sum(part.exchanged for part in parts),
    )


def _compare_level(
    first: tuple[NDArray, NDArray],
    second: tuple[NDArray, NDArray],
    cut: bool,
    score_tolerance: float,
    score_threshold: float,
) -> Differences:
    (boxes_a, scores_a), (boxes_b, scores_b) = first, second
    if not all(np.isfinite(values).all() for values in (*first, *second)):
        return Differences(np.full(1, np.inf), np.full(1, np.inf), np.ones(1, bool), np.zeros(1))
    # Most points keep their place; only the others are searched for.
    corners = corner_distance(boxes_a, boxes_b)
    scores = np.abs(scores_a.astype(np.float64) - scores_b).max(axis=1)
    best_a, best_b = scores_a.max(axis=1), scores_b.max(axis=1)
    detectable = best_a > score_threshold - score_tolerance
    moved = np.flatnonzero((corners > BOX_TOLERANCE) | (scores > score_tolerance))
    overlaps = np.ones(len(corners))
    if len(moved) == 0:
        return Differences(corners, scores, detectable, overlaps)
    partner = moved[_match(boxes_a[moved], scores_a[moved], boxes_b[moved], scores_b[moved])]
    corners[moved] = corner_distance(boxes_a[moved], boxes_b[partner])
    scores[moved] = np.abs(scores_a[moved].astype(np.float64) - scores_b[partner]).max(axis=1)
    apart = corners[moved] > BOX_TOLERANCE
    turned, like = boxes_a[moved][apart].astype(np.float64), boxes_b[partner][apart].astype(np.float64)
    overlaps[moved[apart]] = rotated_iou_pairwise(turned, like)
    least = (best_a[moved] <= best_a.min() + score_tolerance) & (
        best_b[partner] <= best_b.min() + score_tolerance
    )
    # TopK goes by class scores and in their order; the quality may raise what comes last above the others.
    tail = len(corners) - math.ceil(TAIL * len(corners))
    last = (moved >= tail) & (partner >= tail)
    exchanged = moved[apart & (least | last)] if cut else moved[:0]
    kept = np.delete(np.arange(len(corners)), exchanged)
    return Differences(corners[kept], scores[kept], detectable[kept], overlaps[kept], len(exchanged))


def _match(boxes_a: NDArray, scores_a: NDArray, boxes_b: NDArray, scores_b: NDArray) -> NDArray[np.int64]:
    """(N,) index into b of each box of a, one to one, nearest pairs first; the rest as they come."""
    count = len(boxes_a)
    near = min(NEIGHBOURS, count)
    rows, columns = [], []
    for start in range(0, count, 512):  # (512, N) distances at a time
        block = slice(start, start + 512)
        gaps = np.abs(boxes_a[block, None, :2].astype(np.float64) - boxes_b[None, :, :2]).max(axis=2)
        gaps += np.abs(boxes_a[block, None, 2:4].astype(np.float64) - boxes_b[None, :, 2:4]).max(axis=2)
        candidates = np.argpartition(gaps, near - 1, axis=1)[:, :near]
        rows.append(np.repeat(np.arange(start, start + len(candidates)), near))
        columns.append(candidates.ravel())
    row, column = np.concatenate(rows), np.concatenate(columns)
    costs = corner_distance(boxes_a[row], boxes_b[column]) + np.abs(scores_a[row] - scores_b[column]).max(1)
    partner = np.full(count, -1)
    taken = np.zeros(count, bool)
    for index in np.argsort(costs, kind="stable"):
        if partner[row[index]] < 0 and not taken[column[index]]:
            partner[row[index]] = column[index]
            taken[column[index]] = True
    partner[partner < 0] = np.flatnonzero(~taken)
    return partner


# --- detections ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matches:
    """Detections of the same tiles by two models.

    Attributes:
        counts: detections above the score, of the first and of the second model.
        matched: how many of these have a match in the other model.
        corners, angles, scores: (M,) differences of the pairs of which either is above the score: px,
            radians, and of the scores.
    """

    counts: tuple[int, int]
    matched: tuple[int, int]
    corners: NDArray[np.float64]
    angles: NDArray[np.float64]
    scores: NDArray[np.float64]

    @property
    def shares(self) -> tuple[float, float]:
        """What share of each model's detections the other has, too; 1 where there are none."""
        first, second = (
            hits / count if count else 1.0 for hits, count in zip(self.matched, self.counts, strict=True)
        )
        return first, second


def match_tiles(
    first: Sequence[Detections],
    second: Sequence[Detections],
    *,
    match_iou: float = MATCH_IOU,
    min_score: float = MIN_SCORE,
) -> Matches:
    """The `Matches` of two models' detections of each tile."""
    counts, matched = np.zeros(2, int), np.zeros(2, int)
    parts = []
    for one, two in zip(first, second, strict=True):
        pairs = match_detections(one, two, match_iou)
        for side, found in enumerate((one, two)):
            counts[side] += np.count_nonzero(found.scores > min_score)
            matched[side] += np.count_nonzero(found.scores[pairs[:, side]] > min_score)
        left, right = one[pairs[:, 0]], two[pairs[:, 1]]
        seen = np.maximum(left.scores, right.scores) > min_score
        left, right = left[seen], right[seen]
        apart = np.abs(left.scores.astype(np.float64) - right.scores)
        corners = corner_distance(left.boxes, right.boxes)
        parts.append((corners, angle_distance(left.boxes, right.boxes), apart))
    corners, angles, scores = (np.concatenate(values) for values in zip(*parts, strict=True))
    return Matches(
        (int(counts[0]), int(counts[1])), (int(matched[0]), int(matched[1])), corners, angles, scores
    )


@dataclass
class DetectionReport:
    """Matches by batch size, and whether enough of each model's detections have a match."""

    min_matched: float = MIN_MATCHED
    batches: dict[int, Matches] = field(default_factory=dict)
    # The file's own batches against their tiles alone:
    alone: dict[int, Matches] = field(default_factory=dict)

    @property
    def compared(self) -> list[Matches]:
        return [*self.batches.values(), *self.alone.values()]

    @property
    def passed(self) -> bool:
        return all(min(found.shares) >= self.min_matched for found in self.compared)

    def text(self) -> str:
        """A line a batch size, then what share of the pairs needs which tolerance."""
        lines = ["batch   reference's matched    the file's matched"]
        for batch, found in self.batches.items():
            first, second = _cells(found)
            lines.append(f"{batch:5d} {first:>21s} {second:>21s}")
        for batch, found in self.alone.items():
            lines.append(f"{batch:5d} tiles and each alone: {' and '.join(_cells(found))}")
        lines += ["", "tolerance that a share of the pairs needs"]
        lines.append("".join([f"{'':18s}", *(f"{100 * share:11.0f}%" for share in QUANTILES)]))
        for name, what, factor in (
            ("corners, px", "corners", 1.0),
            ("angle, degrees", "angles", 180 / np.pi),
            ("score", "scores", 1.0),
        ):
            values = np.concatenate([getattr(found, what) for found in self.batches.values()]) * factor
            needed = np.quantile(values, QUANTILES, method="higher") if len(values) else np.zeros(4)
            lines.append("".join([f"{name:18s}", *(f"{value:12.2g}" for value in needed)]))
        least = min(min(found.shares) for found in self.compared)
        asked = f"asked for {100 * self.min_matched:g}% (--min-matched)"
        lines.append(f"{100 * least:.2f}% of the detections are found again at least, {asked}")
        lines.append(
            "the same detections" if self.passed else "DIFFERENT: fewer are found again than asked for"
        )
        return "\n".join(lines)


def _cells(found: Matches) -> list[str]:
    """How many of each model's detections are matched, as text."""
    return [
        f"{hits} of {count} ({100 * share:.2f}%)"
        for hits, count, share in zip(found.matched, found.counts, found.shares, strict=True)
    ]


# --- files -------------------------------------------------------------------------------------------------


def compare_files(
    reference: Path,
    candidate: Path,
    *,
    images: Path | None = None,
    batches: Sequence[int] = BATCHES,
    box_tolerance: float = BOX_TOLERANCE,
    score_tolerance: float = SCORE_TOLERANCE,
    trust_engine: bool = False,
) -> Report:
    """Run both files on the same tiles, at each batch size, and the candidate on each tile alone; all but
    engines on the CPU.

    Raises:
        ModelError: a file is no model, or the two carry different specs.
    """
    report = Report(box_tolerance, score_tolerance)
    with _open(reference, trust_engine) as first, _open(candidate, trust_engine) as second:
        _check_specs(first, second)
        spec = first.spec
        levels = level_sizes(spec)
        for batch in batches:
            tiles = sample_tiles(spec, batch, images)
            given = second.raw(tiles)
            report.batches[batch] = compare(
                first.raw(tiles), given, levels, score_tolerance, spec.score_threshold
            )
            if batch > 1:
                alone = zip(*(second.raw(tiles[index : index + 1]) for index in range(batch)), strict=True)
                boxes, scores = (np.concatenate(parts) for parts in alone)
                report.alone[batch] = compare(
                    (boxes, scores), given, levels, score_tolerance, spec.score_threshold
                )
    return report


def compare_detections(
    reference: Path,
    candidate: Path,
    *,
    images: Path | None = None,
    tiles: int = TILES,
    batches: Sequence[int] = BATCHES,
    match_iou: float = MATCH_IOU,
    min_score: float = MIN_SCORE,
    min_matched: float = MIN_MATCHED,
    trust_engine: bool = False,
) -> DetectionReport:
    """Run both files to detections: the reference tile by tile, the candidate at each batch size.

    Raises:
        ModelError: a file is no model, or the two carry different specs.
        InputError: neither finds anything, so that nothing was compared.
    """
    report = DetectionReport(min_matched)
    with _open(reference, trust_engine) as first, _open(candidate, trust_engine) as second:
        _check_specs(first, second)
        given = detection_tiles(first.spec, tiles, images)
        expected = in_batches(first, given, 1)
        alone = in_batches(second, given, 1)
        for batch in batches:
            found = alone if batch == 1 else in_batches(second, given, batch)
            report.batches[batch] = match_tiles(expected, found, match_iou=match_iou, min_score=min_score)
            if batch > 1:
                report.alone[batch] = match_tiles(alone, found, match_iou=match_iou, min_score=min_score)
    if not any(sum(found.counts) for found in report.batches.values()):
        raise errors.InputError(
            f"neither model finds anything above {min_score:g} in {len(given)} tiles, so nothing was "
            "compared; give --images with objects on them, or a lower --min-score"
        )
    return report


def in_batches(runner: Runner, tiles: NDArray[np.uint8], batch: int) -> list[Detections]:
    """Detections of each tile, `batch` tiles a call. The last call is filled up with tiles from the start,
    whose detections are dropped, so that every call has that size."""
    found: list[Detections] = []
    for start in range(0, len(tiles), batch):
        indices = np.arange(start, start + batch) % len(tiles)
        found += runner(tiles[indices])
    return found[: len(tiles)]


def _open(path: Path, trust_engine: bool) -> Runner:
    """The runner of `path`: on the CPU, which computes FP32 the same everywhere, but for engines."""
    device: Device = "auto" if recognise(path)[0] == "engine" else "cpu"
    return load_runner(path, device=device, trust_engine=trust_engine)


def _check_specs(first: Runner, second: Runner) -> None:
    if first.spec != second.spec:
        raise errors.ModelError(
            f"{second.path.name} carries another spec ({second.spec.digest}) than {first.path.name} "
            f"({first.spec.digest}): it was exported from another checkpoint"
        )


def level_sizes(spec: DetectorSpec) -> list[Kept]:
    """What each level of the graph keeps, finest first."""
    height, width = spec.image_size
    cells = [(height // stride) * (width // stride) for stride in spec.strides]
    return [Kept(min(count, spec.level_topk or count), 0 < spec.level_topk < count) for count in cells]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="verify",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "models", type=Path, nargs="+", metavar="MODEL", help="files to check (.pt, .onnx or .engine)"
    )
    parser.add_argument(
        "--reference", type=Path, required=True, metavar="MODEL", help="what they came from, in any form"
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="compare on tiles of these images")
    parser.add_argument("--batch", default="1,2,3", metavar="N,N", help="batch sizes (default: %(default)s)")
    add_trust_argument(parser)
    points = parser.add_argument_group("before NMS")
    points.add_argument("--box-tolerance", type=float, metavar="PX", help=f"default: {BOX_TOLERANCE:g}")
    points.add_argument("--score-tolerance", type=float, metavar="X", help=f"default: {SCORE_TOLERANCE:g}")
    after = parser.add_argument_group("after NMS")
    after.add_argument("--detections", action="store_true", help="compare detections, by matching")
    after.add_argument(
        "--match-iou", type=float, metavar="IOU", help=f"least IoU of a match; default: {MATCH_IOU}"
    )
    after.add_argument(
        "--min-score",
        type=float,
        metavar="S",
        help=f"detections above this score must be matched; default: {MIN_SCORE}",
    )
    after.add_argument(
        "--min-matched",
        type=float,
        metavar="SHARE",
        help=f"least share of each model's detections with a match; default: {MIN_MATCHED}",
    )
    after.add_argument("--tiles", type=int, metavar="N", help=f"at most; default: {TILES}")
    arguments = parser.parse_args(argv)
    return errors.run("verify", lambda: check(arguments))


def check(arguments: argparse.Namespace) -> int:
    """The command behind `main`, with parsed arguments."""
    before = ("box_tolerance", "score_tolerance")
    after = ("match_iou", "min_score", "min_matched", "tiles")
    for name in before if arguments.detections else after:
        if getattr(arguments, name) is not None:
            wanted = "without" if arguments.detections else "with"
            raise errors.InputError(f"--{name.replace('_', '-')} goes {wanted} --detections")
    names = (*before, *after, "trust_engine")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    for name in ("match_iou", "min_score", "min_matched"):
        if not 0 <= given.get(name, 0.5) <= 1:
            raise errors.InputError(f"--{name.replace('_', '-')} {given[name]:g}: expected 0 to 1")
    if given.get("tiles", 1) < 1:
        raise errors.InputError(f"--tiles {given['tiles']}: expected 1 or more")
    if arguments.images:
        checks.existing_directory(arguments.images, "--images")
    batches = checks.positive_integers(arguments.batch, "--batch")
    run = compare_detections if arguments.detections else compare_files
    passed = True
    for model in arguments.models:
        report = run(arguments.reference, model, images=arguments.images, batches=batches, **given)
        if len(arguments.models) > 1:
            print(f"{model} against {arguments.reference}")
        print(report.text())
        passed = passed and report.passed
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
