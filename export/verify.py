"""Two artifacts of one detector side by side: how far apart are their boxes and scores, before NMS?

    python export/verify.py MODEL.onnx --reference CHECKPOINT

Points are matched, not paired by index: TopK orders equal scores differently from backend to
backend. A box error is the greatest distance between corresponding corners in pixels, minimised
over the cyclic order of the corners, so that a square's four descriptions count as one.

Every score is held to its tolerance. Boxes are where the point can become a detection (its best
score is above the spec's threshold), and 99.5% of all boxes besides: where the network sees nothing, its
angle may be the direction of a vector of length zero, which any rounding turns.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rgfl.spec import DetectorSpec
from rgfl.trt_runtime import errors

BOX_TOLERANCE = 1e-2  # px
SCORE_TOLERANCE = 1e-5
HELD = 0.995  # share of all boxes; a trained model on AVX-512 had one of 936 at .049 px, where it saw nothing
BATCHES = (1, 2, 3)
NEIGHBOURS = 8  # points with the nearest centres that a point may match

EXAMPLES = """\
examples:
  python export/verify.py model.onnx --reference best.pt
  python export/verify.py model.onnx --reference best.pt --images val/images --batch 1,4

exit status: 0 within the tolerances, 1 not, 2 bad input
"""


class Level(NamedTuple):
    """Points that a level contributes to P, and whether TopK chose them from more."""

    points: int
    cut: bool


@dataclass
class Errors:
    """Differences of the matched points of one batch size.

    Attributes:
        corners: (M,) greatest corner distance of each pair, px.
        scores: (M,) greatest score difference of each pair.
        detectable: (M,) whether the point can become a detection.
        exchanged: pairs that fell on two sides of TopK's cut, because their scores are equal within
            the tolerance; they are no error.
    """

    corners: NDArray[np.float64]
    scores: NDArray[np.float64]
    detectable: NDArray[np.bool_]
    exchanged: int = 0

    @property
    def worst_corner(self) -> float:
        return float(self.corners.max(initial=0.0))

    @property
    def needed_corner(self) -> float:
        """The tolerance that these boxes need: greatest of the detectable, 99.5% of all."""
        most = float(np.quantile(self.corners, HELD, method="higher"))
        return max(most, float(self.corners[self.detectable].max(initial=0.0)))

    @property
    def worst_score(self) -> float:
        return float(self.scores.max(initial=0.0))


@dataclass
class Report:
    """The errors by batch size, and whether all are within the tolerances."""

    box_tolerance: float = BOX_TOLERANCE
    score_tolerance: float = SCORE_TOLERANCE
    batches: dict[int, Errors] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return all(
            found.needed_corner <= self.box_tolerance and found.worst_score <= self.score_tolerance
            for found in self.batches.values()
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
        boxes = max(found.needed_corner for found in self.batches.values())
        scores = max(found.worst_score for found in self.batches.values())
        lines.append(f"boxes  need {boxes:.1e} px, allowed {self.box_tolerance:.0e} px")
        lines.append(f"scores need {scores:.1e}, allowed {self.score_tolerance:.0e}")
        lines.append("equal within the tolerances" if self.passed else "DIFFERENT")
        return "\n".join(lines)


# --- matching --------------------------------------------------------------------------------------------


def corner_distance(first: NDArray, second: NDArray) -> NDArray[np.float64]:
    """(N,) greatest distance between corners of boxes (N, 5) and (N, 5), over the best cyclic order."""
    from rgfl.boxes import to_quads

    one = to_quads(first.astype(np.float64)).reshape(-1, 4, 2)
    two = to_quads(second.astype(np.float64)).reshape(-1, 4, 2)
    turns = [np.linalg.norm(one - np.roll(two, turn, axis=1), axis=2).max(axis=1) for turn in range(4)]
    return np.min(turns, axis=0)


def compare(
    first: tuple[NDArray, NDArray],
    second: tuple[NDArray, NDArray],
    levels: Sequence[Level],
    score_tolerance: float = SCORE_TOLERANCE,
    score_threshold: float = 0.0,
) -> Errors:
    """Match the points of two outputs `boxes (B, P, 5), scores (B, P, C)` level by level.

    Args:
        first, second: the outputs; both must have the same shapes.
        levels: in their order along P.
        score_tolerance: where TopK cut, a point may be missing on one side if its best score is this
            near to the least of its level: rounding then exchanged it with another.
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
    return Errors(
        np.concatenate([part.corners for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.detectable for part in parts]),
        sum(part.exchanged for part in parts),
    )


def _compare_level(
    first: tuple[NDArray, NDArray],
    second: tuple[NDArray, NDArray],
    cut: bool,
    score_tolerance: float,
    score_threshold: float,
) -> Errors:
    (boxes_a, scores_a), (boxes_b, scores_b) = first, second
    if not all(np.isfinite(values).all() for values in (*first, *second)):
        return Errors(np.full(1, np.inf), np.full(1, np.inf), np.ones(1, bool))
    # Most points keep their place; only the others are searched for.
    corners = corner_distance(boxes_a, boxes_b)
    scores = np.abs(scores_a.astype(np.float64) - scores_b).max(axis=1)
    best_a, best_b = scores_a.max(axis=1), scores_b.max(axis=1)
    detectable = best_a > score_threshold - score_tolerance
    moved = np.flatnonzero((corners > BOX_TOLERANCE) | (scores > score_tolerance))
    if len(moved) == 0:
        return Errors(corners, scores, detectable)
    partner = moved[_match(boxes_a[moved], scores_a[moved], boxes_b[moved], scores_b[moved])]
    corners[moved] = corner_distance(boxes_a[moved], boxes_b[partner])
    scores[moved] = np.abs(scores_a[moved].astype(np.float64) - scores_b[partner]).max(axis=1)
    apart = corners[moved] > BOX_TOLERANCE
    at_cut = (best_a[moved] <= best_a.min() + score_tolerance) & (
        best_b[partner] <= best_b.min() + score_tolerance
    )
    exchanged = moved[apart & at_cut] if cut else moved[:0]
    kept = np.delete(np.arange(len(corners)), exchanged)
    return Errors(corners[kept], scores[kept], detectable[kept], len(exchanged))


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


# --- files -------------------------------------------------------------------------------------------------


def compare_files(
    reference: Path,
    candidate: Path,
    *,
    images: Path | None = None,
    batches: Sequence[int] = BATCHES,
    box_tolerance: float = BOX_TOLERANCE,
    score_tolerance: float = SCORE_TOLERANCE,
) -> Report:
    """Run both files on the same tiles, at each batch size, on the CPU.

    Raises:
        ModelError: a file is no model, or the two carry different specs.
    """
    from rgfl.trt_runtime.runners import load_runner
    from rgfl.trt_runtime.sample_tiles import sample_tiles

    report = Report(box_tolerance, score_tolerance)
    with load_runner(reference, device="cpu") as first, load_runner(candidate, device="cpu") as second:
        if first.spec != second.spec:
            raise errors.ModelError(
                f"{candidate.name} carries another spec ({second.spec.digest}) than {reference.name} "
                f"({first.spec.digest}): it was exported from another checkpoint"
            )
        spec = first.spec
        levels = level_sizes(spec)
        for batch in batches:
            tiles = sample_tiles(spec, batch, images)
            report.batches[batch] = compare(
                first.raw(tiles), second.raw(tiles), levels, score_tolerance, spec.score_threshold
            )
    return report


def level_sizes(spec: DetectorSpec) -> list[Level]:
    """What each level of the graph keeps, finest first."""
    height, width = spec.image_size
    cells = [(height // stride) * (width // stride) for stride in spec.strides]
    return [Level(min(count, spec.level_topk or count), 0 < spec.level_topk < count) for count in cells]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="verify",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="the file to check (.onnx)")
    parser.add_argument(
        "--reference", type=Path, required=True, metavar="CHECKPOINT", help="what it came from"
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="compare on tiles of these images")
    parser.add_argument("--batch", default="1,2,3", metavar="N,N", help="batch sizes (default: %(default)s)")
    parser.add_argument(
        "--box-tolerance", type=float, default=BOX_TOLERANCE, metavar="PX", help="%(default)s"
    )
    parser.add_argument(
        "--score-tolerance", type=float, default=SCORE_TOLERANCE, metavar="X", help="%(default)s"
    )
    arguments = parser.parse_args(argv)
    return errors.run("verify", lambda: check(arguments))


def check(arguments: argparse.Namespace) -> int:
    """The command behind `main`, with parsed arguments."""
    if arguments.images:
        errors.existing_directory(arguments.images, "--images")
    report = compare_files(
        arguments.reference,
        arguments.model,
        images=arguments.images,
        batches=errors.positive_integers(arguments.batch, "--batch"),
        box_tolerance=arguments.box_tolerance,
        score_tolerance=arguments.score_tolerance,
    )
    print(report.text())
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
