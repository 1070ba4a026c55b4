"""From which score on a detector is to be believed: precision and recall, as HTML for rgfl/page.py.

Everything follows the official rule at IoU 0.50 (rgfl/dota/average_precision.py); the curves of the classes
show IoU 0.75 beside it.
"""

from __future__ import annotations

from html import escape

import numpy as np
from numpy.typing import NDArray

from rgfl.chart import Line, chart
from rgfl.dota.average_precision import Result, best_from

GRID = np.linspace(0.0, 1.0, 101)  # scores and recalls at which curves are drawn
OPEN = 20  # classes up to which the curves of each are shown unasked


def scores_and_curves(result: Result) -> str:
    """A section of the page: what each score would keep, the best score by class, the curve of each class."""
    if not any(record.hits.any() for record in result.by_class):
        return ""  # nothing was ever right
    drawn = "".join(
        _class_chart(result, name)
        for name, record in zip(result.classes, result.by_class, strict=True)
        if record.ground_truth
    )
    return (
        '<section><h2>Which score to take</h2><div class="beside">'
        f"{_pooled_chart(result)}{_best_table(result)}</div>"
        "<p><small>Of the detections from a score on, at IoU 0.50: the share that is right (precision), the "
        "share of the objects that is found (recall), and F1 = 2 · precision · recall / (precision + recall)."
        "</small></p>"
        f"<details{' open' if len(result.classes) <= OPEN else ''}><summary>Precision over recall, by class"
        "</summary><p><small>The best precision at that recall or beyond; AP is its mean over eleven "
        f'recalls.</small></p><div class="charts">{drawn}</div></details></section>'
    )


def _pooled_chart(result: Result) -> str:
    """Precision, recall and F1 of all detections together, over the score."""
    at50 = result.column(0.5)
    hits = _kept([record.scores[record.hits[at50]] for record in result.by_class])
    wrong = _kept([record.scores[record.misses[at50]] for record in result.by_class])
    with np.errstate(invalid="ignore"):
        precision = hits / (hits + wrong)  # NaN where nothing is kept: a gap
    recall = hits / sum(record.ground_truth for record in result.by_class)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(np.float64).tiny)
    best = int(np.nanargmax(f1))
    titles = (f"F1 at {GRID[best]:.2f}", "precision", "recall")
    lines = [
        Line(title, colour, GRID, 100 * values, "exact", 100 * float(values[best]))
        for colour, (title, values) in enumerate(zip(titles, (f1, precision, recall), strict=True))
    ]
    return chart("all classes, %", lines, across="score", ends=((0.0, 1.0), (0.0, 100.0)))


def _kept(scores: list[NDArray[np.float64]]) -> NDArray[np.int64]:
    """How many of these scores are at least each of the grid."""
    rising = np.sort(np.concatenate(scores))
    return len(rising) - np.searchsorted(rising, GRID)


def _best_table(result: Result) -> str:
    """The score of the best F1 of each class."""
    rows = []
    for name in result.classes:
        point = result.best_f1(name)
        cells = [f"{point.score:.2f}", *(f"{100 * v:.1f}" for v in point[1:])] if point else ["–"] * 4
        rows.append(
            f"<tr><td>{escape(name)}</td>{''.join(f'<td class=n>{cell}</td>' for cell in cells)}</tr>"
        )
    head = "".join(f"<th>{title}</th>" for title in ("class", "score", "precision", "recall", "F1"))
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _class_chart(result: Result, name: str) -> str:
    row = result.classes.index(name)
    lines = []
    for colour, (title, threshold) in enumerate((("AP50", 0.5), ("AP75", 0.75))):
        curve = result.curve(name, threshold)
        ap = float(result.ap_by_class(threshold)[row])
        lines.append(
            Line(
                title,
                colour,
                100 * GRID,
                100 * best_from(GRID, curve.recall, curve.precision),
                "exact",
                100 * ap,
            )
        )
    return chart(name, lines, across="recall, %", ends=((0.0, 100.0), (0.0, 100.0)))
