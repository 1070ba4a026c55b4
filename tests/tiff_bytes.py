"""TIFF files made byte by byte: layouts and tags that OpenCV's encoder does not write."""

import struct
import zlib

import numpy as np

LETTERS = {1: "B", 2: "B", 3: "H", 4: "I", 7: "B", 11: "f", 12: "d", 16: "Q"}  # by the number of the type


def tiff_bytes(
    pixels, photometric, *, order="<", big=False, planar=1, tile=0, rows=0, extra=(), deflate=False, tags=None
):
    """The file of pixels (H, W, samples).

    `tags` {tag: (type, values)} are added, or replace those of the image; None for both leaves one out.
    """
    height, width, samples = pixels.shape
    stored = pixels.astype(pixels.dtype.newbyteorder(order))
    planes = [stored] if planar == 1 else [stored[:, :, band : band + 1] for band in range(samples)]
    blocks = []
    for plane in planes:
        if tile:
            padded = np.pad(plane, ((0, -height % tile), (0, -width % tile), (0, 0)))
            corners = [(y, x) for y in range(0, height, tile) for x in range(0, width, tile)]
            blocks += [padded[y : y + tile, x : x + tile].tobytes() for y, x in corners]
        else:
            blocks += [plane[y : y + (rows or height)].tobytes() for y in range(0, height, rows or height)]
    if deflate:
        blocks = [zlib.compress(block) for block in blocks]
    lengths = [len(block) for block in blocks]
    first = 16 if big else 8
    offsets = [first + sum(lengths[:index]) for index in range(len(blocks))]
    wide = 16 if big else 4
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    entries = {
        256: (3, [width]),
        257: (3, [height]),
        258: (3, [8 * pixels.dtype.itemsize] * samples),
        259: (3, [8 if deflate else 1]),
        262: (3, [photometric]),
        277: (3, [samples]),
        284: (3, [planar]),
        339: (3, [kind] * samples),
    }
    if tile:
        entries |= {322: (3, [tile]), 323: (3, [tile]), 324: (wide, offsets), 325: (4, lengths)}
    else:
        entries |= {273: (wide, offsets), 278: (3, [rows or height]), 279: (4, lengths)}
    if extra:
        entries[338] = (3, list(extra))
    entries |= tags or {}
    return assemble(b"".join(blocks), {tag: entry for tag, entry in entries.items() if entry}, order, big)


def assemble(body, entries, order="<", big=False):
    """A header, `body`, and the directory of `entries` {tag: (type, values)}."""
    offset, width = ("Q", 8) if big else ("I", 4)
    start = (16 if big else 8) + len(body)
    after = start + (8 if big else 2) + len(entries) * (4 + 2 * width) + width
    directory, tail = struct.pack(order + ("Q" if big else "H"), len(entries)), b""
    for tag, (kind, values) in sorted(entries.items()):
        values = values.encode() + b"\0" if isinstance(values, str) else values
        raw = struct.pack(f"{order}{len(values)}{LETTERS[kind]}", *values)
        if len(raw) > width:
            place = after + len(tail)
            tail += raw
            raw = struct.pack(order + offset, place)
        directory += struct.pack(order + "HH" + offset, tag, kind, len(values)) + raw.ljust(width, b"\0")
    mark = {"<": b"II", ">": b"MM"}[order]
    head = struct.pack(order + "HHHQ", 43, 8, 0, start) if big else struct.pack(order + "HI", 42, start)
    return mark + head + body + directory + bytes(width) + tail
