"""Image files: which ones a folder holds, and their pixels as RGB uint8."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


class ImageError(ValueError):
    """A file that should be an image and is not; the message is one line that begins with its path."""


def find_images(directory: Path | str) -> dict[str, Path]:
    """Image files directly in `directory`, by stem, sorted. Hidden files are no images.

    Raises:
        FileNotFoundError: there is no such folder.
        ImageError: two files share a stem, so that a label file could mean either.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such folder; expected one that holds images")
    found: dict[str, Path] = {}
    for path in sorted(directory.iterdir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith(".") or path.is_dir():
            continue
        if (other := found.get(path.stem)) is not None:
            raise ImageError(f"{path}: {other.name} has the same name; rename or remove one of the two")
        found[path.stem] = path
    return dict(sorted(found.items()))


def read_image(path: Path | str) -> NDArray[np.uint8]:
    """Pixels of an image file, (H, W, 3) uint8 RGB, turned as its EXIF orientation says.

    Grey becomes three equal channels, 0…65535 becomes 0…255, alpha is dropped: what the official
    tools see too.

    Raises:
        ImageError: the file is missing, empty, cut off, of another kind, or has float pixels.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not data:
        raise ImageError(f"{path}: the file is empty; copy or download it again")
    if _is_cut_off(data):
        raise ImageError(f"{path}: the image is cut off after {len(data):,} bytes; copy or download it again")
    if _has_float_pixels(data):
        raise ImageError(f"{path}: expected 8 or 16 bit pixels, got a float TIFF; convert it to 8 bit first")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in str(error):
            raise ImageError(
                f"{path}: more pixels than OpenCV reads by default; "
                "set the environment variable OPENCV_IO_MAX_IMAGE_PIXELS=10000000000"
            ) from error
        raise ImageError(f"{path}: not a readable image: {' '.join(str(error).split())}") from error
    if image is None:
        raise ImageError(
            f"{path}: not an image that OpenCV reads, or a damaged one (it begins with {data[:8]!r})"
        )
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _is_cut_off(data: bytes) -> bool:
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


def _has_float_pixels(data: bytes) -> bool:
    """Whether the first directory of a TIFF says SampleFormat 3: clamped to 8 bit it would turn white."""
    order = {b"II*\x00": "little", b"MM\x00*": "big"}.get(data[:4])
    if order is None:
        return False

    def number(position: int, size: int) -> int:
        return int.from_bytes(data[position : position + size], order)  # type: ignore[arg-type]

    directory = number(4, 4)
    for entry in range(number(directory, 2)):
        position = directory + 2 + 12 * entry
        if number(position, 2) == 339:
            count = number(position + 4, 4)
            return number(position + 8 if count <= 2 else number(position + 8, 4), 2) == 3
    return False
