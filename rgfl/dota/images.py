"""Image files: which ones a folder holds, and their pixels as RGB uint8."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rgfl.dota import tiff

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


class ImageError(ValueError):
    """A file that should be an image and is not; the message is one line that begins with its path."""


class ImageWarning(UserWarning):
    """Pixels that were read as they are, and probably not as they were meant."""


def find_images(directory: Path | str) -> dict[str, Path]:
    """Image files directly in `directory`, by stem, sorted. Hidden files are no images.

    Raises:
        FileNotFoundError: there is no such folder.
        ImageError: two files share a stem, so that a label file could mean either; or a name is not UTF-8,
            as from an old archive, and can be written into no result.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such folder; expected one that holds images")
    found: dict[str, Path] = {}
    for path in sorted(directory.iterdir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith(".") or path.is_dir():
            continue
        if any("\udc80" <= character <= "\udcff" for character in path.name):  # bytes that are no text
            raise ImageError(f"{directory}: the name of {path.name!a} is not UTF-8; rename the file")
        if (other := found.get(path.stem)) is not None:
            raise ImageError(f"{path}: {other.name} has the same name; rename or remove one of the two")
        found[path.stem] = path
    return dict(sorted(found.items()))


def read_image(path: Path | str) -> NDArray[np.uint8]:
    """Pixels of an image file, (H, W, 3) uint8 RGB, turned as its EXIF orientation says.

    Grey becomes three equal channels, 0…65535 becomes 0…255, alpha is dropped: what the official
    tools see too. Three or four bands of a TIFF are red, green, blue and one that is dropped, also where
    the file calls them grey, as GDAL does unless told otherwise.

    Raises:
        ImageError: the file is missing, empty, cut off, of another kind, has signed or float pixels, or a
            number of bands that is no picture.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = bytearray(os.fstat(file.fileno()).st_size)
            del data[file.readinto(data) :]
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not data:
        raise ImageError(f"{path}: the file is empty; copy or download it again")
    if _is_cut_off(data):
        raise ImageError(f"{path}: the image is cut off after {len(data):,} bytes; copy or download it again")
    if tiff.is_tiff(data):
        return _read_tiff(path, data)
    if data.startswith(b"\x89PNG") and data[24:25] == b"\x10":  # bits a sample
        return _to_8_bit(path, _decode(path, data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH))
    return _decode(path, data, cv2.IMREAD_COLOR)


def _decode(path: Path, data: bytearray, flags: int) -> NDArray[Any]:
    """Pixels (H, W, 3) RGB, uint8, or uint16 where `flags` allow.

    Raises:
        ImageError: OpenCV does not read it.
    """
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
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
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image))


def _to_8_bit(path: Path, image: NDArray[Any]) -> NDArray[np.uint8]:
    """0…65535 as 0…255, with a warning where the pixels have fewer bits than their type."""
    if image.dtype != np.uint16:
        return np.asarray(image, np.uint8)
    highest = int(image.max(initial=0))
    if 0 < highest < 1 << 12 and not _warned_of:
        # Once a process: a data set is of one kind, and each of its workers would say it of each image.
        _warned_of.append(path)
        warnings.warn(
            f"{path}: 16 bit pixels whose highest value is {highest}: 0…65535 becomes 0…255, so this image "
            f"is almost black. If it has {highest.bit_length()} bits, convert all images of the data set by "
            f"one range: gdal_translate -of PNG -ot Byte -scale 0 {(1 << highest.bit_length()) - 1} 0 255 "
            "IN OUT (said of the first such image only)",
            ImageWarning,
            stacklevel=4,
        )
    image >>= 8
    return image.astype(np.uint8)


_warned_of: list[Path] = []


# ------------------------------------------------------------------------------------------------ TIFF


def _read_tiff(path: Path, data: bytearray) -> NDArray[np.uint8]:
    """`read_image` of a TIFF, whose directory says more than OpenCV heeds."""
    try:
        about = tiff.read(data)
        _check_tiff(path, about)
        if missing := tiff.missing_bytes(data, about):
            raise ImageError(
                f"{path}: the image is cut off, {missing:,} bytes of its pixels are missing; "
                "copy or download it again"
            )
        image = _decode_tiff(path, data, about)
    except tiff.TiffError as error:
        raise ImageError(
            f"{path}: a damaged TIFF, {error}; copy or download it again, or rewrite it (gdal_translate)"
        ) from error
    return _turned(_to_8_bit(path, image), about.orientation)


def _decode_tiff(path: Path, data: bytearray, about: tiff.Tiff) -> NDArray[Any]:
    """Pixels (H, W, 3) RGB of uint8 or uint16, not yet turned.

    OpenCV's way to 8 bit takes bands that are called grey for one band, and scrambles 16 bit grey at the
    border of tiles; its way to 16 bit scrambles bands that lie apart. So the bands are called colours, 16 bit
    samples are read at their full depth, and bands that lie apart one by one.
    """
    called_grey = about.photometric in (None, 0, 1)
    deep = about.bits[0] == 16 and (called_grey or about.photometric == 2) and about.samples != 2
    flags = cv2.IMREAD_COLOR | (cv2.IMREAD_ANYDEPTH if deep else 0)
    if deep and about.planar == 2 and about.samples > 1:
        image = _decode(path, tiff.for_decoding(data, about, 1, 0), flags)
        for band in (1, 2):
            image[:, :, band] = _decode(path, tiff.for_decoding(data, about, 1, band), flags)[:, :, 0]
        return image
    if called_grey and about.samples >= 3:
        return _decode(path, tiff.for_decoding(data, about, 2), flags)
    image = _decode(path, tiff.for_decoding(data, about, 1 if about.photometric is None else None), flags)
    # Grey of which white is zero is turned round on the way to 8 bit only.
    if image.dtype == np.uint16 and about.photometric == 0:
        np.subtract(65535, image, out=image)
    return image


def _check_tiff(path: Path, about: tiff.Tiff) -> None:
    """Raise ImageError for pixels that OpenCV would misread or refuse without a reason."""
    convert = "gdal_translate -of PNG -ot Byte -scale LOWEST HIGHEST 0 255 IN OUT"
    kinds = {2: "signed", 3: "float", 5: "complex", 6: "complex"}
    if found := [kinds[one] for one in about.formats if one in kinds]:
        raise ImageError(
            f"{path}: expected 8 or 16 bit pixels, got a {found[0]} TIFF; "
            f"convert it to 8 bit first ({convert})"
        )
    if len(set(about.bits)) > 1 or about.bits[0] not in (1, 2, 4, 8, 16):
        bits = ", ".join(str(one) for one in sorted(set(about.bits)))
        raise ImageError(
            f"{path}: expected 8 or 16 bit pixels, got {bits} bits; convert it to 8 bit first ({convert})"
        )
    # Grey with alpha is a picture; of the second of two other bands nothing would be seen. In tiles OpenCV
    # scrambles both at the right border.
    grey_alpha = about.samples == 2 and about.extra in ((1,), (2,)) and not about.tiled
    if about.samples not in (1, 3, 4) and not grey_alpha:
        choose = ("one", "-b 1") if about.samples == 2 else ("three", "-b 3 -b 2 -b 1")
        raise ImageError(
            f"{path}: {about.samples} bands; expected 1, 3 or 4; choose {choose[0]} "
            f"(gdal_translate -of PNG {choose[1]} IN OUT, with -ot Byte -scale LOWEST HIGHEST 0 255 for more "
            "than 8 bits)"
        )


def _turned(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The image as EXIF's orientation 1…8 says that it is to be seen."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


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
