"""The first directory of a TIFF file: what its pixels are and where they lie on earth. It decodes none.

OpenCV decodes, but reads many files wrongly and says nothing: it takes colours for grey where the file calls
them so, and multiplies them by alpha. `for_decoding` puts such tags right. Classic TIFF and
BigTIFF of both byte orders; every offset is checked against the file's size before it is followed.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

WIDTH, HEIGHT, BITS, PHOTOMETRIC, ORIENTATION = 256, 257, 258, 262, 274
COMPRESSION, SAMPLES, ROWS, PLANAR, EXTRA_SAMPLES, SAMPLE_FORMAT = 259, 277, 278, 284, 338, 339
STRIP_OFFSETS, STRIP_BYTES, TILE_OFFSETS, TILE_BYTES = 273, 279, 324, 325
PIXEL_SCALE, TIEPOINT, TRANSFORMATION = 33550, 33922, 34264
GEO_KEYS, GEO_DOUBLES, GEO_TEXT = 34735, 34736, 34737

READ = (
    WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION, SAMPLES, ROWS, PLANAR, EXTRA_SAMPLES,
    SAMPLE_FORMAT,
    PIXEL_SCALE, TIEPOINT, TRANSFORMATION, GEO_KEYS, GEO_DOUBLES, GEO_TEXT,
)  # fmt: skip
FRACTIONS = (PIXEL_SCALE, TIEPOINT, TRANSFORMATION, GEO_DOUBLES)  # of these; the others are whole
MOST_VALUES = 1 << 20  # of a tag that is read; even tie points are fewer, and a count may be any number

SHORT = 3
NUMPY_TYPES = {1: "u1", 2: "u1", 3: "u2", 4: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 11: "f4", 12: "f8"}
NUMPY_TYPES |= {13: "u4", 16: "u8", 17: "i8", 18: "u8"}
COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # samples that are colours, by photometric
# From here on tags are private: none matters for decoding but LERC's, and OpenCV complains of each.
PRIVATE, LERC_PARAMETERS = 32768, 50674


Buffer = bytes | bytearray | mmap.mmap


class TiffError(ValueError):
    """The bytes are no TIFF, or one whose directory leads out of the file; the message names no file."""


class Entry(NamedTuple):
    """One tag of a directory."""

    kind: int  # the number of its type
    length: int  # how many values
    position: int  # of the first of them, in the file
    raw: bytes  # as it stands in the directory


@dataclass(frozen=True)
class Tiff:
    """What the first directory says. Tags that it lacks have the standard's default.

    Attributes:
        height, width: as stored, before `orientation` turns the image.
        bits: of each sample.
        samples: values a pixel: the number of bands.
        photometric: 0 white is zero, 1 black is zero, 2 RGB, 3 palette…; None if it is not said.
        planar: 1 if a pixel's samples lie together, 2 if each band lies by itself.
        orientation: 1…8 as in EXIF.
        extra: meaning of the samples beyond the colours: 0 unspecified, 1 alpha that the colours are already
            multiplied by, 2 alpha.
        formats: of each sample: 1 unsigned, 2 signed, 3 float.
        tiled: pixels lie in tiles, not strips.
        values: tag → numbers, of all tags in READ that the file has.
        texts: the same for the tags that hold text.
        entries: tag → where its values stand, of all tags.
        size: bytes of the file.
    """

    height: int
    width: int
    bits: tuple[int, ...]
    samples: int
    photometric: int | None
    planar: int
    orientation: int
    extra: tuple[int, ...]
    formats: tuple[int, ...]
    tiled: bool
    values: Mapping[int, tuple[float, ...]]
    texts: Mapping[int, str]
    entries: Mapping[int, Entry]
    size: int


def is_tiff(head: bytes | bytearray) -> bool:
    """Whether a file that begins with these four bytes or more is a TIFF."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_file(path: Path) -> Tiff:
    """The first directory of a file, of which only the pages that hold it are read.

    Raises:
        TiffError: it is no TIFF, or a broken one.
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        if not is_tiff(file.read(4)):
            raise TiffError("not a TIFF")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return read(data)


def read(data: Buffer) -> Tiff:
    """The first directory of a TIFF.

    Raises:
        TiffError: it is no TIFF, or a broken one.
    """
    layout = _Layout.of(data)
    entries = layout.entries(data)
    values: dict[int, tuple[float, ...]] = {}
    texts: dict[int, str] = {}
    for tag in READ:
        if (entry := entries.get(tag)) is not None:
            array = layout.numbers(data, tag, entry)
            if array.dtype.kind == "f" and tag not in FRACTIONS:
                raise TiffError(f"tag {tag} holds fractions, expected whole numbers")
            if entry.kind == 2:
                texts[tag] = array.tobytes().split(b"\0")[0].decode("ascii", "replace")
            else:
                values[tag] = tuple(array.tolist())

    def whole(tag: int, default: int) -> tuple[int, ...]:
        return tuple(int(value) for value in values.get(tag, ())) or (default,)

    height, width, samples = whole(HEIGHT, 0)[0], whole(WIDTH, 0)[0], whole(SAMPLES, 1)[0]
    if height < 1 or width < 1 or samples < 1:
        raise TiffError(f"its directory says {height} × {width} pixels of {samples} samples")
    return Tiff(
        height,
        width,
        whole(BITS, 1),
        samples,
        whole(PHOTOMETRIC, 0)[0] if PHOTOMETRIC in values else None,
        whole(PLANAR, 1)[0],
        whole(ORIENTATION, 1)[0],
        tuple(int(value) for value in values.get(EXTRA_SAMPLES, ())),
        whole(SAMPLE_FORMAT, 1),
        TILE_OFFSETS in entries,
        values,
        texts,
        entries,
        len(data),
    )


def missing_bytes(data: Buffer, about: Tiff) -> int:
    """How many bytes of pixels the directory places beyond the end of the file; 0 for a whole one.

    Raises:
        TiffError: as `read`.
    """
    layout, entries = _Layout.of(data), about.entries
    end = 0
    for offsets, lengths in ((STRIP_OFFSETS, STRIP_BYTES), (TILE_OFFSETS, TILE_BYTES)):
        if offsets in entries and lengths in entries:
            starts = layout.numbers(data, offsets, entries[offsets], len(data)).astype(object)
            sizes = layout.numbers(data, lengths, entries[lengths], len(data)).astype(object)
            if offsets == STRIP_OFFSETS and (strip := _strip_bytes(about)) is not None:
                sizes = np.minimum(sizes, strip)  # some writers count more bytes than they write
            if len(starts) == len(sizes) > 0:
                end = max(end, (starts + sizes).max())
    return max(0, int(end) - len(data))


def _strip_bytes(about: Tiff) -> int | None:
    """What a strip of pixels that are not compressed holds; None for others."""
    if (about.values.get(COMPRESSION) or (1,))[0] != 1:
        return None
    rows = min(int((about.values.get(ROWS) or (about.height,))[0]), about.height)
    values = about.width * (about.samples if about.planar == 1 else 1)
    return rows * -(-values * about.bits[0] // 8)


def for_decoding(data: bytearray, about: Tiff, photometric: int | None, band: int | None = None) -> bytearray:
    """`data` with a directory of its own at the end, from which OpenCV decodes the samples as they are.

    Orientation and private tags (GeoTIFF's, GDAL's) are left out, samples beyond the colours are
    unspecified, so that nothing is multiplied by them, and there is no second image.

    Args:
        data: a TIFF, changed in place, since a copy of a large scene takes a gigabyte; it may have been
            through here before.
        about: what `read` read in it before that.
        photometric: put in place of the file's own; None keeps that.
        band: of a file whose bands lie apart, the only one to be seen.

    Raises:
        TiffError: as `read`, or a classic TIFF has no room for 4 GB and a directory.
    """
    layout, entries = _Layout.of(data), about.entries
    samples = about.samples if band is None else 1
    raws = {tag: entry.raw for tag, entry in entries.items() if tag < PRIVATE or tag == LERC_PARAMETERS}
    raws.pop(ORIENTATION, None)
    raws.pop(EXTRA_SAMPLES, None)
    if photometric is None:
        photometric = about.photometric or 0
    else:
        raws[PHOTOMETRIC] = layout.shorts(PHOTOMETRIC, [photometric])
    if samples > (colours := COLOURS.get(photometric, samples)):
        raws[EXTRA_SAMPLES] = layout.shorts(EXTRA_SAMPLES, [0] * (samples - colours))
    if band is not None:
        raws.pop(SAMPLE_FORMAT, None)
        for tag, value in ((SAMPLES, 1), (BITS, about.bits[0]), (PLANAR, 1)):
            raws[tag] = layout.shorts(tag, [value])
        for tag in entries.keys() & {STRIP_OFFSETS, STRIP_BYTES, TILE_OFFSETS, TILE_BYTES}:
            raws[tag] = layout.part(data, tag, entries[tag], band, about.samples)
    start = about.size + about.size % 2
    if not layout.big and start >= 1 << 32:
        raise TiffError("a classic TIFF of 4 GB")
    directory = layout.pack("Q" if layout.big else "H", len(raws))
    directory += b"".join(raw for _, raw in sorted(raws.items())) + bytes(layout.wide)
    place = 8 if layout.big else 4
    data[place : place + layout.wide] = layout.pack(layout.offset, start)
    data[about.size :] = bytes(start - about.size) + directory
    return data


class _Layout(NamedTuple):
    """How a TIFF writes its numbers."""

    order: Literal["<", ">"]
    big: bool  # BigTIFF: offsets and counts of 8 bytes

    @classmethod
    def of(cls, data: Buffer) -> _Layout:
        head = bytes(data[:8])
        if not is_tiff(head):
            raise TiffError("not a TIFF")
        layout = cls("<" if head[:2] == b"II" else ">", b"+" in head[2:4])
        if layout.big and head[4:8] != layout.pack("HH", 8, 0):
            raise TiffError("a BigTIFF whose offsets are not of 8 bytes")
        return layout

    @property
    def wide(self) -> int:
        """Bytes of an offset."""
        return 8 if self.big else 4

    @property
    def offset(self) -> str:
        """struct's letter for an offset."""
        return "Q" if self.big else "I"

    def pack(self, form: str, *values: int) -> bytes:
        return struct.pack(self.order + form, *values)

    def unpack(self, data: Buffer, position: int, form: str) -> tuple[int, ...]:
        """Numbers at a position.

        Raises:
            TiffError: they lie outside of the file.
        """
        size = struct.calcsize(self.order + form)
        if not 0 <= position <= len(data) - size:
            raise TiffError(f"byte {position:,} of its directory is beyond the {len(data):,} of the file")
        return struct.unpack(self.order + form, data[position : position + size])

    def entries(self, data: Buffer) -> dict[int, Entry]:
        """Entries of the first directory by tag; of a tag that comes twice, the first."""
        (start,) = self.unpack(data, 8 if self.big else 4, self.offset)
        (count,) = self.unpack(data, start, "Q" if self.big else "H")
        start += 8 if self.big else 2
        size = 4 + 2 * self.wide
        if count * size > len(data) - start:
            raise TiffError(f"its directory of {count:,} tags is beyond the {len(data):,} bytes of the file")
        found: dict[int, Entry] = {}
        for position in range(start, start + count * size, size):
            tag, kind, values = self.unpack(data, position, "HH" + self.offset)
            length = np.dtype(NUMPY_TYPES[kind]).itemsize * values if kind in NUMPY_TYPES else 0
            place = position + 4 + self.wide
            if length > self.wide:
                (place,) = self.unpack(data, place, self.offset)
            raw = bytes(data[position : position + size])
            found.setdefault(tag, Entry(kind, values, place, raw))
        return found

    def numbers(self, data: Buffer, tag: int, entry: Entry, most: int = MOST_VALUES) -> np.ndarray:
        """A tag's values, (count,) of its own type.

        Raises:
            TiffError: they lie outside of the file, or are no numbers.
        """
        if entry.kind not in NUMPY_TYPES:
            raise TiffError(f"tag {tag} is of type {entry.kind}, expected numbers")
        kind = np.dtype(NUMPY_TYPES[entry.kind]).newbyteorder(self.order)
        end = entry.position + kind.itemsize * entry.length
        if entry.length > most or end > len(data):
            raise TiffError(f"the {entry.length:,} values of tag {tag} are beyond the end of the file")
        return np.frombuffer(bytes(data[entry.position : end]), kind)

    def part(self, data: Buffer, tag: int, entry: Entry, part: int, parts: int) -> bytes:
        """An entry of the values of one of several equal parts, which stay where they are."""
        length = entry.length // parts
        if length * parts != entry.length or entry.kind not in NUMPY_TYPES:
            raise TiffError(f"{entry.length} values of tag {tag} for {parts} bands")
        size = np.dtype(NUMPY_TYPES[entry.kind]).itemsize * length
        place = entry.position + size * part
        held = data[place : place + size] if size <= self.wide else self.pack(self.offset, place)
        return self.pack("HH" + self.offset, tag, entry.kind, length) + held.ljust(self.wide, b"\0")

    def shorts(self, tag: int, values: list[int]) -> bytes:
        """An entry of small numbers, as many as fit into it."""
        packed = self.pack(f"{len(values)}H", *values).ljust(self.wide, b"\0")
        if len(packed) > self.wide:
            raise TiffError(f"{len(values)} values of tag {tag}, expected {self.wide // 2} at most")
        return self.pack("HH" + self.offset, tag, SHORT, len(values)) + packed
