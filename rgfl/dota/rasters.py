"""Pixels of the files that GDAL reads and OpenCV reads wrongly or not at all: TIFF, JPEG 2000, NITF, VRT.

OpenCV gives a black image for a compression it lacks, takes bands for grey where the file calls them so, and
accepts damaged data. Pixels become 8 bit RGB strip by strip, so a scene takes the memory of that and little
more.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from rgfl.dota import orientation
from rgfl.errors import UserError

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

# What a file of each of GDAL's drivers begins with: of those that are read here…
DRIVERS = {
    "GTiff": orientation.TIFF,
    "JP2OpenJPEG": (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
    "NITF": (b"NITF", b"NSIF"),
    "HFA": (b"EHFA_HEADER_TAG",),
    "VRT": (b"<VRTDataset",),
}
# … and of those that OpenCV reads, where GDAL knows their place on earth.
OTHERS = {"PNG": (b"\x89PNG",), "JPEG": (b"\xff\xd8\xff",), "BMP": (b"BM",), "WEBP": (b"RIFF",)}
# These lead to other files, also over the network: only where the name says what it is.
SUFFIXES = {"VRT": (".vrt",), "NITF": (".ntf", ".nitf"), "HFA": (".img",)}
# GDAL opens such a file beside an image, in whatever driver.
MASKS = (".msk", ".MSK")
COLOURS = ("red", "green", "blue")
STRIP = 1 << 24  # values read at once
SAMPLE = 8  # of the rows, and of the columns, one in so many tells how bright an image is

# GDAL's complaints come as exceptions; printed as well they would stand between the tool's own lines.
logging.getLogger("rasterio").addHandler(logging.NullHandler())


class RasterError(UserError):
    """The file is damaged, or its pixels are no picture; the message names no file."""


class Pixels(NamedTuple):
    """What a file holds.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        bits: of a value in the file.
        bright: of a value that 99.5% of the image, without its black parts, do not exceed; 0 for 8 bits.
    """

    image: NDArray[np.uint8]
    bits: int
    bright: int


def is_raster(head: bytes | bytearray) -> bool:
    """Whether a file that begins with these 16 bytes or more is for this module."""
    return bytes(head[:16]).startswith(tuple(mark for marks in DRIVERS.values() for mark in marks))


@contextmanager
def opened(path: Path) -> Iterator[DatasetReader]:
    """The file, open in the driver that its first bytes name.

    Raises:
        RasterError: they name none, or one that the suffix does not; a mask beside it is no TIFF; or GDAL
            cannot read the file, there or in the block.
        OSError: it cannot be opened.
    """
    head = _head(path)
    driver = next((name for name, marks in (DRIVERS | OTHERS).items() if head.startswith(marks)), None)
    if driver is None:
        raise RasterError("not an image")
    if (suffixes := SUFFIXES.get(driver)) and path.suffix.lower() not in suffixes:
        raise RasterError(
            f"a {driver} file, which may name other files to read: expected {' or '.join(suffixes)}, got "
            f"{path.suffix or 'no suffix'}; rename it if you trust it"
        )
    for mask in (Path(f"{path}{ending}") for ending in MASKS):
        if mask.exists() and not (mask.is_file() and _head(mask).startswith(orientation.TIFF)):
            raise RasterError(f"{mask.name} beside it is no TIFF and may name other files to read; remove it")
    import rasterio  # late: --help must be quick
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    # Of most images, and no fault. Once: a new filter makes Python forget which warnings it has shown.
    if not any(category is NotGeoreferencedWarning for _, _, category, *_ in warnings.filters):
        warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    # All cores unpack its blocks, as they do those of JPEG 2000 without being asked.
    options = {"num_threads": "all_cpus"} if driver == "GTiff" else {}
    try:
        with (
            # With a list of the folder GDAL would take a mask in any spelling, such as A.tif.Msk.
            rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE"),
            # Absolute: a folder may be called "http:".
            rasterio.open(path.absolute(), driver=driver, **options) as dataset,
        ):
            yield dataset
    except RasterioError as error:
        reason = " ".join(str(error.__cause__ or error).split()).removeprefix(f"{path.name}: ")
        raise RasterError(
            f"GDAL cannot read it: {reason.rstrip('.')}; if it is damaged, copy or download it again"
        ) from error


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)


def sources(path: Path) -> list[Path]:
    """Files that a VRT takes its pixels from, as far as it can be read; of other images there are none."""
    found: list[Path] = []
    if path.suffix.lower() in SUFFIXES["VRT"]:
        with suppress(RasterError, OSError), opened(path) as dataset:
            found = [Path(name) for name in dataset.files if Path(name) != path.absolute()]
    return [file for file in found if file.is_file()]


def size(path: Path) -> tuple[int, int]:
    """(height, width) of what `read` gives, from the header.

    Raises:
        RasterError: the header is broken, or says that `read` will refuse the pixels.
    """
    with opened(path) as dataset:
        _bands(dataset)  # what is no picture is told before hours of work, not in them
        turned = orientation.of_file(path) > 4
        return (dataset.width, dataset.height) if turned else (dataset.height, dataset.width)


def read(path: Path) -> Pixels:
    """The picture in a file: colours in the order red, green, blue, whatever their order there.

    That order is what the bands are called, by their names or else their colour interpretation; of three or
    four that are called nothing it is the first three. Grey becomes three equal channels, a palette its
    colours. Alpha is dropped and multiplies nothing. Pixels that the file declares to hold no data are black.
    A TIFF is turned as its orientation tag says.

    Raises:
        RasterError: the file is damaged; its pixels are signed, float or of 32 bits; or which of its bands
            are colours is not said.
    """
    with opened(path) as dataset:
        bands = _bands(dataset)
        bits = _bits(dataset, bands[0])
        palette = _palette(dataset) if bands == [1] else None
        inverted = palette is None and dataset.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"
        height, width = dataset.height, dataset.width
        try:
            image = np.empty((height, width, 3), np.uint8)
        except (MemoryError, ValueError) as error:
            raise RasterError(f"{height} × {width} pixels, more than fit into memory") from error
        samples = [np.zeros(0, np.uint16)]
        for top, values in _strips(dataset, bands):
            _blacken(values, [dataset.nodatavals[band - 1] for band in bands])
            strip = image[top : top + values.shape[1]]
            if palette is not None:
                strip[:] = palette[values[0]]
                continue
            if bits > 8:
                samples.append(sample(values))
            cv2.merge([*_to_8_bit(values, bits)] * (3 // len(bands)), dst=strip)
            if inverted:
                np.subtract(255, strip, out=strip)
    bright = 0 if inverted else brightness(np.concatenate(samples))
    return Pixels(orientation.turned(image, orientation.of_file(path)), bits, bright)


def sample(values: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """(N,) Some of the pixels of values (bands, H, W): the highest band of each."""
    return values[:, ::SAMPLE, ::SAMPLE].max(axis=0).ravel()


def brightness(samples: NDArray[np.uint16]) -> int:
    """What 99.5% of them, those of 0 left aside, do not exceed; 0 if there are no others."""
    shown = samples[samples > 0]
    return int(np.percentile(shown, 99.5)) if len(shown) else 0


def _strips(dataset: DatasetReader, bands: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint16]]]:
    """First row, and values (bands, rows, W), of as many rows of blocks as `STRIP` holds, at least one."""
    from rasterio.windows import Window

    block = dataset.block_shapes[bands[0] - 1][0]
    rows = max(1, STRIP // (len(bands) * dataset.width * block)) * block
    for top in range(0, dataset.height, rows):
        window = Window(0, top, dataset.width, min(rows, dataset.height - top))
        yield top, dataset.read(bands, window=window)


def _bands(dataset: DatasetReader) -> list[int]:
    """Numbers, from 1, of red, green and blue, or of the only band to be seen."""
    kinds = {str(kind) for kind in dataset.dtypes}
    convert = "convert it to 8 bit first (gdal_translate -ot Byte -scale LOWEST HIGHEST 0 255 IN OUT.tif)"
    if not kinds <= {"uint8", "uint16"}:
        raise RasterError(f"expected 8 or 16 bit pixels, got {', '.join(sorted(kinds))}; {convert}")
    called = [interpretation.name for interpretation in dataset.colorinterp]
    names = [(name or "").strip().lower() for name in dataset.descriptions]
    for words in (names, called):
        if all(words.count(colour) == 1 for colour in COLOURS):
            return [words.index(colour) + 1 for colour in COLOURS]
    if dataset.count in (3, 4):
        return [1, 2, 3]
    if dataset.count == 1 or (dataset.count == 2 and called[1] == "alpha"):
        return [1]
    which = "one (gdal_translate -b 1 IN OUT.tif)"
    if dataset.count > 2:
        which = "three: red, green, blue (such as gdal_translate -b 3 -b 2 -b 1 IN OUT.tif)"
    raise RasterError(
        f"{dataset.count} bands, and which are colours is not said; expected 1, 3 or 4; choose {which}"
    )


def _bits(dataset: DatasetReader, band: int) -> int:
    """Bits of a value, which may be fewer than those of its type where the file says so."""
    whole = 8 * np.dtype(dataset.dtypes[band - 1]).itemsize
    declared = dataset.tags(band, ns="IMAGE_STRUCTURE").get("NBITS", "")
    return min(whole, int(declared)) if re.fullmatch("[1-9][0-9]?", declared) else whole


def _palette(dataset: DatasetReader) -> NDArray[np.uint8] | None:
    """(number of values, 3) RGB, or None for a band that has no palette."""
    try:
        colours = dataset.colormap(1)
    except ValueError:  # there is none
        return None
    table = np.zeros((1 << 8 * np.dtype(dataset.dtypes[0]).itemsize, 3), np.uint8)
    for value, colour in colours.items():
        table[value] = colour[:3]
    return table


def _blacken(values: NDArray[np.uint16], nodata: Sequence[float | None]) -> None:
    """Sets to 0 what is `nodata` in every band."""
    if any(nodata) and None not in nodata:
        empty = np.logical_and.reduce([band == value for band, value in zip(values, nodata, strict=True)])
        values[:, empty] = 0


def _to_8_bit(values: NDArray[np.uint16], bits: int) -> NDArray[np.uint8]:
    """The highest value of `bits` becomes 255."""
    if bits > 8:
        return (np.minimum(values, (1 << bits) - 1) >> (bits - 8)).astype(np.uint8)
    if bits < 8:
        return (np.minimum(values, (1 << bits) - 1).astype(np.uint16) * 255 // ((1 << bits) - 1)).astype(
            np.uint8
        )
    return values.astype(np.uint8, copy=False)
