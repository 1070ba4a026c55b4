"""Index pairs of a sweep, a bounded number at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

AT_ONCE = 2_000_000  # pairs; about 150 MB


def in_ranges(begins: NDArray[np.int64], ends: NDArray[np.int64]) -> Iterator[tuple[NDArray, NDArray]]:
    """(row, partner) for every partner in begins[row] … ends[row] − 1, in order, in chunks of whole rows."""
    counts = ends - begins
    totals = np.cumsum(counts)
    start = 0
    while start < len(counts):
        stop = int(np.searchsorted(totals, totals[start] - counts[start] + AT_ONCE, side="right"))
        stop = max(stop, start + 1)
        part = counts[start:stop]
        rows = np.repeat(np.arange(start, stop), part)
        yield rows, np.arange(len(rows)) + np.repeat(begins[start:stop] - np.cumsum(part) + part, part)
        start = stop
