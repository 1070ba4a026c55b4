"""Images that are to be seen turned, as cameras write them: EXIF's orientation, of every kind of file."""

from __future__ import annotations

import contextlib
import io
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how a TIFF begins, the last two of BigTIFF
TAG = 274


def of_file(path: Path) -> int:
    """1…8 as in EXIF; 1 where the file says nothing, or nothing that can be read."""
    with path.open("rb") as file:
        if file.read(4) in TIFF:
            return _of_tiff(file)
    from PIL import Image

    with contextlib.suppress(Exception), Image.open(path) as image:  # of any kind, as damaged headers have it
        return of_exif(image.info.get("exif", b""))
    return 1


def of_exif(block: bytes) -> int:
    """1…8 of an EXIF block, which is a TIFF without an image."""
    return _of_tiff(io.BytesIO(block.removeprefix(b"Exif\0\0")))


def _of_tiff(file: BinaryIO) -> int:
    file.seek(0)
    head = file.read(16)
    order, big = "<" if head[:2] == b"II" else ">", b"+" in head[2:4]
    count, entry = ("Q", "HHQ8s") if big else ("H", "HHI4s")
    try:
        (start,) = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)
        file.seek(start)
        (entries,) = struct.unpack(order + count, file.read(struct.calcsize(order + count)))
        table = file.read(struct.calcsize(order + entry) * min(entries, 1 << 12))
        for tag, _, _, value in struct.iter_unpack(order + entry, table):
            if tag == TAG:
                (number,) = struct.unpack_from(order + "H", value)
                return number if 1 <= number <= 8 else 1
    except (struct.error, OSError, OverflowError):  # a broken directory: reading it says so
        pass
    return 1


def turned(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """(H, W, 3) pixels as they are to be seen."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)
