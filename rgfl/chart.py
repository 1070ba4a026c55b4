"""Line charts as SVG text, small enough to have a dozen on a page; colours are the page's style sheet's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 380, 222
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 8, 36  # margins around the plot
POINTS = 400  # a line is drawn through no more; of many records the least and greatest of each stretch stay
SMOOTH = 0.02  # width of the smoothing, as a share of the records


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        name: for the legend.
        colour: number of the style sheet's class `c0`, `c1`, …
        x, y: its points; those that are not finite are left out.
        kind: "noisy" is drawn faint with its trend over it, "exact" as it is, "marked" with a mark a point.
        value: to show in the legend instead of the last one.
    """

    name: str
    colour: int
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    kind: Literal["noisy", "exact", "marked"] = "noisy"
    value: float | None = None


def chart(
    title: str,
    lines: Sequence[Line],
    *,
    across: str = "step",
    log: bool = False,
    limit: float | None = None,
    ends: tuple[tuple[float, float], tuple[float, float]] | None = None,
) -> str:
    """A figure with title, legend, axes and lines.

    Args:
        across: what the horizontal axis is.
        log: for positive values; others are left out.
        limit: drawn as a level to compare with.
        ends: of the horizontal and of the vertical axis; without them what the lines need.
    """
    drawn = [_visible(line, log) for line in lines]
    drawn = [line for line in drawn if len(line.x)]
    if not drawn:
        return f'<figure class="chart"><figcaption><b>{escape(title)}</b> nothing yet</figcaption></figure>'
    # The name of a single line is the title's.
    keys = [
        f'<span class="key c{line.colour}">{escape(line.name) if len(lines) > 1 else ""} '
        f"<b>{number(float(_settled(line)[-1]) if line.value is None else line.value)}</b></span>"
        for line in drawn
    ]
    head = f"<figcaption><b>{escape(title)}</b> {' '.join(keys)}</figcaption>"

    if ends:
        (low_x, high_x), (low_y, high_y) = ends
        across_ticks, ticks = nice_ticks(low_x, high_x, 5), nice_ticks(low_y, high_y, 5)
    else:
        low_x = min(float(line.x[0]) for line in drawn)
        high_x = max(float(line.x[-1]) for line in drawn)
        across_ticks = nice_ticks(low_x, high_x, 5, least=1.0)
        low_y, high_y, ticks = _axis(drawn, log, limit)
    across_x = _Scale(low_x, high_x, LEFT, WIDTH - RIGHT)
    up_y = _Scale(low_y, high_y, HEIGHT - BOTTOM, TOP)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">']
    for tick in ticks:
        y = up_y(math.log10(tick) if log else tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in across_ticks:
        x = across_x(tick)
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{number(tick)}</text>'
        )
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{escape(across)}</text>')
    if limit is not None and low_y <= (level := math.log10(limit) if log else limit) <= high_y:
        parts.append(f'<path class="limit" d="M{LEFT} {up_y(level):.1f}H{WIDTH - RIGHT}"/>')
    for line in drawn:
        x_N, y_N = across_x.all(line.x), up_y.all(np.log10(line.y) if log else line.y)
        if line.kind == "noisy":
            parts.append(_path(f"raw c{line.colour}", *thinned(x_N, y_N)))
            settled = np.log10(_settled(line)) if log else _settled(line)
            y_N = up_y.all(settled)
        parts.append(_path(f"c{line.colour}", *thinned(x_N, y_N)))
        if line.kind != "marked" and len(x_N) > 1:
            continue
        parts += [
            f'<circle class="c{line.colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{escape(line.name)} '
            f"{number(value)} at {escape(across)} {number(place)}</title></circle>"
            for x, y, value, place in zip(x_N, y_N, line.y.tolist(), line.x.tolist(), strict=True)
        ]
    return f'<figure class="chart">{head}{"".join(parts)}</svg></figure>'


def smoothed(y: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    """Mean weighted by a bell of standard deviation `width` records; at the ends over what there is."""
    reach = min(math.ceil(3 * width), len(y) - 1)
    if reach < 1:
        return y
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    # "full", cut: "same" gives the longer of its two arguments.
    total, weight = (np.convolve(values, bell)[reach : reach + len(y)] for values in (y, np.ones_like(y)))
    return total / weight


def thinned(
    x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """No more than about `POINTS` points: of each stretch the least and the greatest, so that peaks stay."""
    if len(x) <= POINTS:
        return x, y
    edges = np.linspace(0, len(x), POINTS // 2 + 1).astype(int)
    kept = {0, len(x) - 1}
    for start, stop in pairwise(edges.tolist()):
        kept |= {start + int(y[start:stop].argmin()), start + int(y[start:stop].argmax())}
    order = sorted(kept)
    return x[order], y[order]


def nice_ticks(low: float, high: float, about: int, least: float = 0.0) -> list[float]:
    """Multiples of 1, 2 or 5 × 10ⁿ from low to high, about so many, no closer than `least`."""
    if not high > low:
        return [low]
    rough = max((high - low) / about, least)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((power * factor for factor in (1, 2, 5) if power * factor >= rough), 10 * power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def number(value: float) -> str:
    """For a person: three figures, thousands as k."""
    if abs(value) >= 10_000:
        return f"{value / 1000:.4g}k"
    if value == round(value) and abs(value) < 10_000:
        return str(int(value))
    if abs(value) >= 1e-3:
        return f"{value:.3g}"
    return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")


class _Scale:
    """From values to pixels."""

    def __init__(self, low: float, high: float, start: float, stop: float) -> None:
        self.low, self.start = low, start
        self.factor = (stop - start) / (high - low) if high > low else 0.0

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) * self.factor

    def all(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values beyond the ends of a vertical axis are drawn at its ends."""
        pixels = self.start + (values - self.low) * self.factor
        return np.clip(pixels, TOP, HEIGHT - BOTTOM) if self.factor < 0 else pixels


def _visible(line: Line, log: bool) -> Line:
    x, y = np.asarray(line.x, np.float64), np.asarray(line.y, np.float64)
    kept = np.isfinite(x) & np.isfinite(y) & ((y > 0) | (not log))
    return replace(line, x=x[kept], y=y[kept])


def _settled(line: Line) -> NDArray[np.float64]:
    return smoothed(line.y, max(1.0, SMOOTH * len(line.y))) if line.kind == "noisy" else line.y


def _axis(lines: Sequence[Line], log: bool, limit: float | None) -> tuple[float, float, list[float]]:
    """Low and high end (of the logarithm if `log`) and ticks. Of noisy lines the outer 1% may stick out."""
    ends = []
    for line in lines:
        settled = _settled(line)
        low, high = np.percentile(line.y, (1, 99)) if line.kind == "noisy" else (line.y.min(), line.y.max())
        ends += [float(low), float(high), float(settled.min()), float(settled.max())]
    if log:
        low, high = math.log10(min(ends)) - 0.05, math.log10(max(ends)) + 0.05
        if limit is not None and abs(math.log10(limit) - high) < 0.5:
            high = max(high, math.log10(limit) + 0.05)
        ticks = [
            factor * 10.0**power
            for power in range(math.floor(low), math.ceil(high) + 1)
            for factor in ((1, 2, 5) if high - low < 2.5 else (1,))
            if low <= math.log10(factor * 10.0**power) <= high
        ]
        return low, high, ticks
    low, high = min(ends), max(ends)
    if low > 0 and low < 0.4 * high:
        low = 0.0
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = (low if low == 0 else low - room), high + room
    return low, high, nice_ticks(low, high, 4)


def _path(style: str, x_N: NDArray[np.float64], y_N: NDArray[np.float64]) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(x_N.tolist(), y_N.tolist(), strict=True))
    return f'<polyline class="{style}" points="{points}"/>'
