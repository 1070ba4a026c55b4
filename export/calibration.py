"""How far INT8 must reach: histograms of activations over real tiles, and the threshold of each.

All histograms of a calibration are kept in a file, which serves only the very same model, images and rule.
"""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from rgfl import checks, errors
from rgfl.dota.images import IMAGE_SUFFIXES, ImageError, find_images, read_image
from rgfl.dota.nearby import nearby
from rgfl.dota.tiling import crop, windows
from rgfl.evenly import evenly
from rgfl.export.network import Network
from rgfl.export.qdq import LEVELS
from rgfl.spec import DetectorSpec

if TYPE_CHECKING:
    import onnx

Method = Literal["entropy", "percentile", "max"]
# Relative squared error of the logits, of `gfl_lite` on real tiles and of the demo's detector (48 images to
# calibrate, 12 tiles): percentile 99.999 .0072 and .0046, 99.99 .0087 and .0062, 99.9 .0079 and .0069,
# max .0089 and .0047, entropy .0266 and .0095 (it clips what the pyramid reads, which no ReLU bounds).
METHOD: Method = "percentile"
PERCENTILE = 99.999
TILES_PER_IMAGE = 4
BINS = 4096
PIECE = 1 << 16  # values that fit into the CPU's cache: twice as fast as all at once
LEAST = 2.0**-100  # magnitudes below count as 0: for their bins float32 does not hold 1 / width
LEAST_KEPT = 0.99  # of the values, by entropy calibration
EDGE_STRIDE = 8  # bins between two candidates of entropy calibration
CALIBRATION_FORMAT = 2  # raise it when histograms, tiles or equalisation change: older caches serve no more


class Histogram:
    """Counts of |x| in BINS equal bins over [0, 2^e), with the least e that holds all values seen.

    As the range is a power of two, the result is exactly the same in whatever order tiles come.
    """

    def __init__(self, counts: NDArray[np.int64] | None = None, peak: float = 0.0) -> None:
        self.counts = np.zeros(BINS, np.int64) if counts is None else counts
        self.peak = peak

    @property
    def width(self) -> float:
        """Of a bin."""
        return 2.0 ** _exponent(self.peak) / BINS

    def add(self, values: NDArray[np.floating]) -> None:
        """Count `values`, which must be finite."""
        flat = values.ravel()
        peak = float(max(flat.max(initial=0.0), -flat.min(initial=0.0)))
        if not math.isfinite(peak):
            raise ValueError("not finite")
        if peak > max(self.peak, LEAST):
            if self.peak > 0:
                for _ in range(min(_exponent(peak) - _exponent(self.peak), 64)):
                    merged = self.counts.reshape(-1, 2).sum(1)
                    self.counts = np.concatenate((merged, np.zeros(BINS // 2, np.int64)))
            self.peak = peak
        if self.peak == 0:
            self.counts[0] += flat.size
            return
        for begin in range(0, flat.size, PIECE):
            size = np.abs(flat[begin : begin + PIECE])
            size *= np.float32(1 / self.width)
            self.counts += np.bincount(size.astype(np.intp), minlength=BINS)

    def threshold(self, method: Method, percentile: float = PERCENTILE) -> float:
        """The magnitude that becomes 127; never above the greatest seen."""
        if self.peak == 0:
            return 1.0  # all zeros: any scale is exact
        if method == "max":
            return self.peak
        if method == "percentile":
            share = np.cumsum(self.counts) / self.counts.sum()
            edge = int(np.searchsorted(share, percentile / 100)) + 1
        else:
            edge = entropy_edge(self.counts)
        return min(edge * self.width, self.peak)


def _exponent(peak: float) -> int:
    """The least e with peak < 2^e."""
    return math.frexp(peak)[1]


def entropy_edge(counts: NDArray[np.int64]) -> int:
    """The number of bins to keep so that 128 equal steps over them lose the least information.

    For each candidate, P is the histogram with what lies beyond in its last bin, Q what is left of it after
    quantisation; the least Kullback-Leibler divergence of Q from P wins, the greater of equals. The
    first bin counts as its neighbour: after ReLU it holds mostly zeros, which any scale keeps. At least
    LEAST_KEPT of the values are kept: where few lie near 0, P and Q agree on a histogram of outliers.
    """
    levels = LEVELS + 1
    histogram = counts.astype(np.float64)
    histogram[0] = histogram[1]
    last = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 0
    if last <= levels or not histogram.any():
        return max(last, 1)
    best, best_edge = math.inf, last
    kept = int(np.searchsorted(np.cumsum(counts), LEAST_KEPT * counts.sum())) + 1
    for edge in [*range(max(levels, kept), last, EDGE_STRIDE), last]:
        inside = histogram[:edge]
        p = inside.copy()
        p[-1] += histogram[edge:].sum()
        group = np.arange(edge) * levels // edge
        occupied = inside > 0
        mass = np.bincount(group, inside, levels)
        members = np.bincount(group, occupied, levels)
        q = np.where(occupied, (mass / np.maximum(members, 1))[group], 0.0)
        if not q.any():
            continue
        p, q = p / p.sum(), q / q.sum()
        known = p > 0
        q = np.maximum(q, 1e-12)  # outliers alone in the last bin: Q has nothing there
        divergence = float(np.sum(p[known] * np.log(p[known] / q[known])))
        if divergence <= best:
            best, best_edge = divergence, edge
    return best_edge


def find_calibration_images(directory: Path, count: int) -> dict[str, Path]:
    """At most `count` images, evenly spaced over the sorted names."""
    found = list(find_images(checks.existing_directory(directory, "--calib")).items())
    if not found:
        raise errors.InputError(
            f"--calib {directory}: no image in this folder{nearby(directory, IMAGE_SUFFIXES)}"
        )
    return dict(evenly(found, count))


def tiles_of(
    images: Mapping[str, Path], spec: DetectorSpec, per_image: int = TILES_PER_IMAGE
) -> Iterator[NDArray[np.uint8]]:
    """(1, H, W, 3) tiles, at most `per_image` of an image, evenly spaced over its windows.

    With one of each it is the first window of the first image, and so on to the last of the last.
    """
    side = spec.tile_side
    for number, path in enumerate(images.values()):
        image = read_image(path)
        places = windows(image.shape[0], image.shape[1], side, side)
        chosen = evenly(places, per_image)
        if per_image == 1:
            chosen = [places[round(number * (len(places) - 1) / max(1, len(images) - 1))]]
        for x, y in chosen:
            yield crop(image, x, y, side, spec.pad_value)[None]


def spread_tiles(images: Mapping[str, Path], spec: DetectorSpec, count: int) -> list[NDArray[np.uint8]]:
    """At most `count` tiles (1, H, W, 3), evenly from evenly spaced images; all at once in memory."""
    chosen = dict(evenly(list(images.items()), count))
    return evenly(list(tiles_of(chosen, spec, -(-count // len(chosen)))), count)


def collect(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    tiles: Iterator[NDArray[np.uint8]],
    spec: DetectorSpec,
) -> tuple[dict[str, Histogram], int]:
    """Histograms of `tensors` over `tiles`, and how many tiles those were; one tile in memory at a time."""
    from tqdm import tqdm

    network = Network(model, tensors, spec)
    histograms = {name: Histogram() for name in tensors}
    count = 0
    with tqdm(unit="tile", desc="calibrate", disable=None) as bar:
        for tile in tiles:
            for name, values in zip(tensors, network(tile), strict=True):
                try:
                    histograms[name].add(values)
                except ValueError as error:
                    raise errors.ModelError(
                        f"tensor {name!r} is not finite on tile {count}: the FP32 model is broken"
                    ) from error
            count += 1
            bar.update()
    return histograms, count


# --- the cache ----------------------------------------------------------------------------------------------


def calibration_key(model_bytes: bytes, images: Mapping[str, Path], tensors: Sequence[str]) -> str:
    """Digest of all that decides the histograms: model, image files, tensors, rule."""
    digest = hashlib.sha256(f"{CALIBRATION_FORMAT} {BINS} {TILES_PER_IMAGE} {list(tensors)}".encode())
    digest.update(hashlib.sha256(model_bytes).digest())
    for name, path in images.items():
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from error
        digest.update(name.encode() + hashlib.sha256(content).digest())
    return digest.hexdigest()


def load_cache(path: Path, key: str) -> tuple[dict[str, Histogram], int] | None:
    """Histograms of exactly this calibration, or None: another one, damaged or absent.

    Raises:
        InputError: the file is none of `save_cache`, which would replace it.
    """
    try:
        with path.open("rb") as file:
            ours = file.read(2) in (b"PK", b"")
        if ours:
            with np.load(path, allow_pickle=False) as stored:
                ours = "key" in stored
                if ours and str(stored["key"]) == key:
                    rows = zip(stored["names"], stored["counts"], stored["peaks"], strict=True)
                    return {str(n): Histogram(c, float(p)) for n, c, p in rows}, int(stored["tiles"])
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    if not ours:
        raise errors.InputError(f"{path}: no cache of export/quantize.py; give --cache another name")
    return None


def save_cache(path: Path, key: str, histograms: Mapping[str, Histogram], tiles: int) -> None:
    """Write what `load_cache` reads; a warning where that cannot be done."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        key=np.array(key),
        names=np.array(list(histograms)),
        counts=np.array([one.counts for one in histograms.values()]),
        peaks=np.array([one.peak for one in histograms.values()]),
        tiles=np.array(tiles),
    )
    errors.write_cache(path, buffer.getvalue(), "calibration starts anew next time")
