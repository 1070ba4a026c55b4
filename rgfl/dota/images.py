"""Image files: which ones a folder holds, and their pixels as RGB uint8."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rgfl.dota import orientation, rasters
from rgfl.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".jp2")
# Of pictures that `find_images` leaves out: other formats, and what cameras call raw.
OTHER_SUFFIXES = (
    ".gif", ".heic", ".heif", ".avif", ".jxl", ".jfif", ".jpe", ".j2k", ".j2c", ".jpx", ".ppm", ".pgm",
    ".tga", ".psd", ".exr", ".ntf", ".nitf", ".ecw", ".sid", ".dng", ".nef", ".cr2", ".cr3", ".arw",
    ".raf", ".rw2", ".orf", ".iiq",
)  # fmt: skip
UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\udc80-\udcff]")  # control characters, bytes that are no text
VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".m4v", ".webm")


class ImageError(UserError):
    """A file that should be an image and is not; the message is one line that begins with its path."""


class ImageWarning(UserWarning):
    """Pixels that were read as they are, and probably not as they were meant."""


def find_images(directory: Path | str) -> dict[str, Path]:
    """Image files directly in `directory`, by stem, sorted. Hidden files are no images.

    Raises:
        FileNotFoundError: there is no such folder.
        ImageError: two files share a stem, so that a label file could mean either; or a name is not UTF-8,
            as from an old archive, and can be written into no result, or would command a terminal.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such folder; expected one that holds images")
    found: dict[str, Path] = {}
    for path in sorted(directory.iterdir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        if not path.is_file() and path.exists():  # a folder; a pipe, which may have no end
            continue
        if UNFIT.search(path.name):
            wrong = "is not UTF-8 or has control characters; rename the file"
            raise ImageError(f"{directory}: the name of {path.name!a} {wrong}")
        if (other := found.get(path.stem)) is not None:
            raise ImageError(f"{path}: {other.name} has the same name; rename or remove one of the two")
        found[path.stem] = path
    return dict(sorted(found.items()))


def subfolders(directory: Path) -> list[Path]:
    """Folders directly in `directory`, sorted; no hidden ones, nor what a disk has for itself."""
    found = sorted(directory.iterdir())
    return [path for path in found if path.is_dir() and not path.name.startswith((".", "lost+found"))]


def with_subfolders(directory: Path, passed: Callable[[Path], bool] = lambda _: False) -> Iterator[Path]:
    """`directory` and the folders below it, each before those in it; links may lead in circles.

    Args:
        passed: folders that are not gone into.
    """
    seen = {os.path.realpath(directory)}

    def walk(folder: Path) -> Iterator[Path]:
        yield folder
        for path in subfolders(folder):
            if not passed(path) and (place := os.path.realpath(path)) not in seen:
                seen.add(place)
                yield from walk(path)

    return walk(directory)


def left_out(directory: Path | str) -> list[Path]:
    """Files directly in `directory` whose suffixes say pictures or videos, of kinds that are not read."""
    others = OTHER_SUFFIXES + VIDEO_SUFFIXES
    return [
        path
        for path in sorted(Path(directory).iterdir())
        if path.suffix.lower() in others and not path.name.startswith(".") and not path.is_dir()
    ]


def read_image(path: Path | str) -> NDArray[np.uint8]:
    """Pixels of an image file, (H, W, 3) uint8 RGB, turned as its EXIF orientation says.

    Grey becomes three equal channels, 0…65535 becomes 0…255, alpha is dropped: what the official
    tools see too. What `rasters.is_raster` accepts is read by GDAL, see `rasters.read`; the rest by OpenCV.

    Raises:
        ImageError: the file is missing, empty, cut off, of another kind, has signed or float pixels, or
            bands that are no picture.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if rasters.is_raster(file.read(16)):
                return _read_raster(path)
            data = bytearray(os.fstat(file.fileno()).st_size)
            file.seek(0)
            del data[file.readinto(data) :]
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not data:
        raise ImageError(f"{path}: the file is empty; copy or download it again")
    if _is_cut_off(data):
        raise ImageError(f"{path}: the image is cut off after {len(data):,} bytes; copy or download it again")
    if data.startswith(b"\x89PNG") and data[24:25] == b"\x10":  # bits a sample
        deep = _decode(path, data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
        _warn_if_dark(path, rasters.brightness(rasters.sample(deep.transpose(2, 0, 1))), 16)
        return (deep >> 8).astype(np.uint8)
    return _decode(path, data, cv2.IMREAD_COLOR)


def image_size(path: Path | str) -> tuple[int, int]:
    """(height, width) of what `read_image` gives, from the file's header where that says it.

    Raises:
        ImageError: it is no image, or its header says that `read_image` will refuse the pixels.
    """
    path = Path(path)
    with contextlib.suppress(OSError), path.open("rb") as file:
        if rasters.is_raster(file.read(16)):
            try:
                return rasters.size(path)
            except rasters.RasterError as error:
                raise ImageError(f"{path}: {error}") from error
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # satellite scenes are larger than what Pillow takes for an attack
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = orientation.of_exif(image.info.get("exif", b"")) > 4
    except Exception:  # of any kind, as a damaged header has it; the pixels decide
        height, width, _ = read_image(path).shape
        return height, width
    return (width, height) if turned else (height, width)


def _read_raster(path: Path) -> NDArray[np.uint8]:
    try:
        image, bits, bright = rasters.read(path)
    except rasters.RasterError as error:
        raise ImageError(f"{path}: {error}") from error
    _warn_if_dark(path, bright, bits)
    return image


def _decode(path: Path, data: bytearray, flags: int) -> NDArray[Any]:
    """Pixels (H, W, 3) RGB, uint8, or uint16 where `flags` allow.

    Raises:
        ImageError: OpenCV does not read it.
    """
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in str(error):
            raise ImageError(
                f"{path}: more pixels than OpenCV reads by default; "
                "set the environment variable OPENCV_IO_MAX_IMAGE_PIXELS=10000000000"
            ) from error
        raise ImageError(f"{path}: not a readable image: {' '.join(str(error).split())}") from error
    if image is None:
        for kind, mark in (("PNG", b"\x89PNG"), ("JPEG", b"\xff\xd8\xff"), ("BMP", b"BM")):
            if bytes(data[: len(mark)]) == mark:
                raise ImageError(f"{path}: a damaged {kind} file; copy or download it again")
        raise ImageError(
            f"{path}: not an image that OpenCV reads, or a damaged one (it begins with {bytes(data[:8])!r})"
        )
    # In place OpenCV copies what it is given before it begins: a few rows stay in the cache.
    for top in range(0, len(image), 64):
        rows = image[top : top + 64]
        cv2.cvtColor(rows, cv2.COLOR_BGR2RGB, dst=rows)
    return orientation.turned(np.asarray(image), orientation.of_file(path))


def _warn_if_dark(path: Path, bright: int, bits: int) -> None:
    """Tells, once a process, that the values of an image have fewer bits than its file.

    Args:
        bright: value that nearly all pixels do not exceed; 0: nothing is known.
        bits: of the values, as the file says.
    """
    # A data set is of one kind, and each of its workers would say it of each image.
    if 0 < bright < 1 << (bits - 2) and not _warned_of:
        _warned_of.append(path)
        warnings.warn(
            f"{path}: nearly all of its {bits} bit pixels are {bright} or less: 0…{(1 << bits) - 1} becomes "
            "0…255, so this image is dark. If it should not be, convert all images of the data set by one "
            f"range: gdal_translate -ot Byte -scale 0 {(1 << bright.bit_length()) - 1} 0 255 IN OUT.tif "
            "(said of the first such image only)",
            ImageWarning,
            stacklevel=4,
        )


_warned_of: list[Path] = []


# -------------------------------------------------------------------------------------------- cut off


def _is_cut_off(data: bytearray) -> bool:
    """Whether a PNG, JPEG or BMP ends before its end: the decoder would fill up with grey and say nothing."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        position = 8
        while position + 12 <= len(data):
            length = int.from_bytes(data[position : position + 4], "big")
            if data[position + 4 : position + 8] == b"IEND":
                return False
            position += 12 + length
        return True
    if data.startswith(b"\xff\xd8\xff"):
        position = 2
        while position + 4 <= len(data) and data[position] == 0xFF:
            marker = data[position + 1]
            if marker == 0xDA:  # the scan: from here on only the true end of image reads FF D9
                return data.find(b"\xff\xd9", position) < 0
            if marker == 0xFF:
                position += 1
            else:
                position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        return True
    if data.startswith(b"BM") and len(data) >= 26:
        declared = int.from_bytes(data[2:6], "little")
        return len(data) < declared
    return False
