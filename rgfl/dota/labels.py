"""DOTA's text files, both ways: labelTxt (what is there) and Task 1 (what was found).

labelTxt, one file an image, optionally headed by `imagesource:` and `gsd:` lines:

    x1 y1 x2 y2 x3 y3 x4 y4 class [difficult]

Task 1, one file `Task1_<class>.txt` a class:

    image score x1 y1 x2 y2 x3 y3 x4 y4

Coordinates are pixels of the full image. Readers take Windows line ends, a byte-order mark and
stray white space. Every error names file and line, and says what was expected and what came.
"""

from __future__ import annotations

import errno
import io
import math
import re
import stat
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path, PurePosixPath
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from rgfl import atomic
from rgfl.boxes import to_quads
from rgfl.detections import Detections
from rgfl.dota.nearby import CONVERT, nearby
from rgfl.errors import UserError
from rgfl.spec import unfit_name

_V1_0 = (
    "plane",
    "baseball-diamond",
    "bridge",
    "ground-track-field",
    "small-vehicle",
    "large-vehicle",
    "ship",
    "tennis-court",
    "basketball-court",
    "storage-tank",
    "soccer-ball-field",
    "roundabout",
    "harbor",
    "swimming-pool",
    "helicopter",
)
# Official order; each version appends to the one before.
CLASSES: dict[str, tuple[str, ...]] = {
    "1.0": _V1_0,
    "1.5": (*_V1_0, "container-crane"),
    "2.0": (*_V1_0, "container-crane", "airport", "helipad"),
}
# Images of each version's test sets; those of v2.0 are test-dev and test-challenge.
TEST_IMAGES = {"1.0": (937,), "1.5": (937,), "2.0": (2792, 6053)}
_DIFFICULT = {"0": 0, "1": 1, "2": 2}
DIFFICULT_CUT = 2  # what tiling writes; the evaluation of full images takes it for 1
HORIZONTAL_QUADS = 50  # from so many on, all of them along the axes is no chance
# Coordinates of YOLO-OBB: shares of an image's side. Objects may reach out of it; pixels lie far beyond.
YOLO_RANGE = (-1.0, 2.0)
YOLO_TO_DOTA = f"{CONVERT} --from yolo-obb --data DIR --out DIR"
# Pixels by which edges of a quad must cross to count: a thin object's do by less where corners are rounded.
LEAST_CROSSING = 1.0
# Task 1 coordinates are rounded to this many decimals of a pixel, in files and in memory alike.
TASK1_DECIMALS = 4
# Bytes of a zip of Task 1 files: 18 classes of a large test set take less. Read, they take ten times as much.
LARGEST_UNPACKED = 1 << 28


class LabelError(UserError):
    """A line that breaks the grammar; the message begins with `file:line: `."""


class UnknownClassError(LabelError):
    """A label's class is not among those that were asked for."""

    def __init__(self, place: str, name: str, classes: Collection[str]) -> None:
        super().__init__(
            f"{place}: unknown class {name!r}, expected one of {', '.join(classes)}; name every class that "
            "the labels have; training and evaluation leave the others out with --ignore-unknown"
        )
        self.place = place


class LabelWarning(UserWarning):
    """What is likely not meant: a line that looks like a label and is none, corners that do not go round."""


@dataclass(frozen=True)
class Objects:
    """Labelled objects of one image.

    Attributes:
        quads: (N, 8) float64, x1 y1 … x4 y4 in pixels of the image.
        labels: (N,) int32, indices into the class list they were read with.
        difficult: (N,) int32: 0 no, 1 yes, `DIFFICULT_CUT` where a tile's border left too little.
    """

    quads: NDArray[np.float64]
    labels: NDArray[np.int32]
    difficult: NDArray[np.int32]

    def __post_init__(self) -> None:
        count = len(self.quads)
        if self.quads.shape != (count, 8) or not (self.labels.shape == self.difficult.shape == (count,)):
            raise ValueError(
                "expected quads (N, 8), labels (N,), difficult (N,), got "
                f"{self.quads.shape}, {self.labels.shape}, {self.difficult.shape}"
            )

    @classmethod
    def empty(cls) -> Objects:
        """No objects."""
        return cls(np.zeros((0, 8)), np.zeros(0, np.int32), np.zeros(0, np.int32))

    @classmethod
    def concatenate(cls, parts: Sequence[Objects]) -> Objects:
        """All of `parts`, one at least, in their order."""
        columns = zip(*((part.quads, part.labels, part.difficult) for part in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))

    def __len__(self) -> int:
        return len(self.quads)

    def __getitem__(self, index: NDArray | slice) -> Objects:
        return Objects(self.quads[index], self.labels[index], self.difficult[index])


def quad_areas(quads_N8: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) absolute signed areas, px²: half the cross product of the diagonals.

    The two halves of a quad that crosses itself count against each other.
    """
    ac, bd = quads_N8[:, 4:6] - quads_N8[:, 0:2], quads_N8[:, 6:8] - quads_N8[:, 2:4]
    return np.abs(ac[:, 0] * bd[:, 1] - ac[:, 1] * bd[:, 0]) / 2


def crossing(quads_N8: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(N,) whether two edges cross, each corner more than `LEAST_CROSSING` beyond the other edge's line."""
    a, b, c, d = quads_N8.reshape(-1, 4, 2).transpose(1, 0, 2)
    return (
        _parted(a, b, c, d) & _parted(c, d, a, b)  # edges a b and c d
        | _parted(b, c, d, a) & _parted(d, a, b, c)
    )


def _parted(
    p: NDArray[np.float64], q: NDArray[np.float64], r: NDArray[np.float64], s: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """(N,) whether r and s lie on both sides of the line through p and q; points (N, 2)."""
    x, y = (q - p).T
    sides = [x * (point - p)[:, 1] - y * (point - p)[:, 0] for point in (r, s)]  # distance × length of p q
    least = LEAST_CROSSING * np.hypot(x, y)
    return (np.minimum(*sides) < -least) & (np.maximum(*sides) > least)


@dataclass(frozen=True)
class Task1Class:
    """Detections of one class over all images, in the order of its file.

    Attributes:
        images: N image names without extension.
        scores: (N,) float64.
        quads: (N, 8) float64, pixels of the full image.
    """

    images: list[str]
    scores: NDArray[np.float64]
    quads: NDArray[np.float64]

    def __post_init__(self) -> None:
        count = len(self.images)
        if self.scores.shape != (count,) or self.quads.shape != (count, 8):
            raise ValueError(
                f"expected {count} images, scores ({count},), quads ({count}, 8), got "
                f"{self.scores.shape}, {self.quads.shape}"
            )

    def __len__(self) -> int:
        return len(self.images)


# ---------------------------------------------------------------------------------------------
# Class lists


def read_classes(text: str) -> tuple[str, ...]:
    """A class list as users name it: "1.0", "1.5" or "2.0", a file of one name a line, or `a,b,c`.

    Raises:
        ValueError: no such version or file, no names, a name twice, or one that labelTxt or a file's name
            cannot hold.
    """
    text = text.strip()
    if text.removeprefix("v") in CLASSES:
        return CLASSES[text.removeprefix("v")]
    if "," not in text:
        if Path(text).is_file():
            return read_class_file(Path(text))
        if Path(text).suffix or "/" in text or "\\" in text:
            raise UserError(
                f"classes {text!r}: neither a DOTA version ({', '.join(CLASSES)}) nor a file that exists"
            )
    return checked_names([name.strip() for name in text.split(",") if name.strip()], f"classes {text!r}")


def write_class_file(path: Path | str, classes: Sequence[str]) -> None:
    """Class names, one a line: what `read_class_file` reads."""
    atomic.write_text(path, "".join(f"{name}\n" for name in classes))


def read_class_file(path: Path) -> tuple[str, ...]:
    """The names of a file with one a line; lines that begin with # are comments.

    Raises:
        ValueError: as `read_classes`.
    """
    lines = [line.strip() for line in _read_text(path).split("\n")]
    return checked_names([line for line in lines if line and not line.startswith("#")], str(path))


def checked_names(names: Sequence[str], source: str) -> tuple[str, ...]:
    """The names, each of which labelTxt, a file of class names and the name of a Task 1 file can hold.

    Args:
        source: what the message begins with: where the names come from.

    Raises:
        ValueError: no names, a name twice, or one that is `unfit_name`, has a comma, or begins with #.
    """
    if not names:
        raise UserError(f"{source}: no class names; expected one a line, or a,b,c")
    for name in names:
        if wrong := unfit_name(name):
            raise UserError(f"{source}: class name {name!r} {wrong}")
        if "," in name:
            raise UserError(f"{source}: class name {name!r} has a comma; a file holds one name a line")
        if name.startswith("#"):
            raise UserError(f"{source}: class name {name!r} would be a comment in a file of class names")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{source}: {', '.join(repeated)} named more than once")
    return tuple(names)


def version_of(classes: Sequence[str]) -> str:
    """The DOTA version whose rule for difficult objects holds for these classes, in any order: the first one
    that has them all, where they are DOTA's; "1.0" for others."""
    return next((version for version, names in CLASSES.items() if set(classes) <= set(names)), "1.0")


def in_order(names: Collection[str]) -> tuple[str, ...]:
    """Class names in the official order if all are official, else sorted."""
    official = CLASSES["2.0"]
    return tuple(sorted(names, key=official.index if set(names) <= set(official) else None))


def find_classes(directory: Path | str) -> tuple[str, ...]:
    """Names of the classes that occur in a folder of labelTxt files, `in_order`.

    Raises:
        LabelError: a line is wrong, or no file could be named after its class.
        FileNotFoundError: no such folder, or no label file in it.
    """
    names: set[str] = set()
    for path in _label_files(directory):
        for number, fields in _label_lines(path, _read_text(path)):
            _check_label(path, number, fields)
            if fields[8] not in names and (wrong := unfit_name(fields[8])):
                _fail(path, number, f"class name {fields[8]!r} {wrong}")
            names.add(fields[8])
    for name, other in pairwise(sorted(sorted(names), key=str.lower)):
        if name.lower() == other.lower():
            text = f"{directory}: classes {name!r} and {other!r} differ in case alone; taken for two"
            warnings.warn(text, LabelWarning, stacklevel=2)
    return in_order(names)


def count_others(directory: Path | str, classes: Collection[str]) -> Counter[str]:
    """Objects in a folder of labelTxt files whose class is none of these, by class.

    Raises:
        LabelError: a line has other separators than white space.
    """
    found = (
        fields[8]
        for path in _label_files(directory)
        for _, fields in _label_lines(path, _read_text(path), warn=False)
    )
    return Counter(name for name in found if name not in classes)


# ---------------------------------------------------------------------------------------------
# labelTxt


def read_labels(path: Path | str, classes: Sequence[str], ignore_unknown: bool = False) -> Objects:
    """Objects of one labelTxt file.

    Lines of fewer than 9 fields are no labels (`imagesource:`, `gsd:`), as in the official
    evaluation; one that begins with a number is skipped with a `LabelWarning`, and one whose
    fields are separated by commas or semicolons is an error. 9 fields mean difficult 0.

    Args:
        classes: names; labels are indices into them.
        ignore_unknown: leave out objects of classes that are not among them; else they are an error.

    Raises:
        LabelError: a coordinate is no finite number, difficult is not 0, 1 or 2, a class is
            unknown, a line has more than 10 fields or other separators, or is YOLO's.
        FileNotFoundError: there is no such file.
    """
    _check_sequence(classes)
    return _parse_labels(Path(path), {name: index for index, name in enumerate(classes)}, ignore_unknown)


def read_label_folder(
    directory: Path | str, classes: Sequence[str], ignore_unknown: bool = False
) -> dict[str, Objects]:
    """`read_labels` of every .txt file in a folder, by stem, sorted.

    One `LabelWarning` tells of all objects whose edges cross, one of labels that all lie along the axes.

    Raises:
        LabelError: as `read_labels`, or all coordinates are shares of an image's side.
        FileNotFoundError: no such folder, or no label file in it.
    """
    index = {name: number for number, name in enumerate(classes)}
    found = {path.stem: _parse_labels(path, index, ignore_unknown) for path in _label_files(directory)}
    quads = np.concatenate([objects.quads for objects in found.values()])
    if len(quads) and YOLO_RANGE[0] <= quads.min() and quads.max() <= YOLO_RANGE[1]:
        _fail(
            *_file_and_line(directory, found, index, 0),
            f"expected pixels, got coordinates ≤ {YOLO_RANGE[1]:g} in all {len(quads):,} objects; if these "
            "are shares of the image's sides, multiply them by the sides, or convert the YOLO-OBB data set "
            f"that they come from by {YOLO_TO_DOTA}",
        )
    if len(quads) >= HORIZONTAL_QUADS and _are_horizontal(quads):
        warnings.warn(
            f"{directory}: all {len(quads):,} boxes lie along the axes: DOTA's horizontal labels (Task 2, "
            "…_hbb, …_reclabelTxt) are not for oriented detection",
            LabelWarning,
            stacklevel=2,
        )
    if len(wrong := np.flatnonzero(crossing(quads))):
        warn_of_crossing(*_file_and_line(directory, found, index, int(wrong[0])), len(wrong))
    return found


def warn_of_crossing(path: Path, line: int, count: int) -> None:
    """Tell of `count` objects whose edges cross, the first of them at `path`:`line`."""
    more = f", and in {count - 1:,} more objects" if count > 1 else ""
    warnings.warn(
        f"{path}:{line}: edges cross here{more}: corners must go round the object. Training and evaluation, "
        "as the official one, take such corners as they are, and next to nothing matches them",
        LabelWarning,
        stacklevel=3,
    )


def line_of(path: Path, row: int, classes: Collection[str]) -> int:
    """The line of an object: of the `row`-th that `read_labels` gives, from 0."""
    lines = _label_lines(path, _read_text(path), warn=False)
    return [number for number, fields in lines if fields[8] in classes][row]


def _file_and_line(
    directory: Path | str, found: Mapping[str, Objects], classes: Collection[str], row: int
) -> tuple[Path, int]:
    """Where an object comes from: of the `row`-th among those of all files, from 0."""
    for stem, objects in found.items():
        if row < len(objects):
            path = Path(directory) / f"{stem}.txt"
            return path, line_of(path, row, classes)
        row -= len(objects)
    raise AssertionError(f"{directory}: an object was read and not found again")


def _are_horizontal(quads: NDArray[np.float64]) -> bool:
    """Whether each of the corners (N, 8) shares its x with one neighbour and its y with the other."""
    x, y = quads[:, ::2], quads[:, 1::2]
    along = (x == np.roll(x, -1, axis=1)) != (y == np.roll(y, -1, axis=1))
    return bool(along.all())


def write_labels(path: Path | str, objects: Objects, classes: Sequence[str]) -> None:
    """Write labelTxt so that `read_labels` gives back the same numbers, whole or not at all."""
    lines = [
        f"{' '.join(map(repr, quad))} {classes[label]} {difficult}\n"
        for quad, label, difficult in zip(
            objects.quads.tolist(), objects.labels.tolist(), objects.difficult.tolist(), strict=True
        )
    ]
    atomic.write_text(path, "".join(lines))


def _parse_labels(path: Path, index: Mapping[str, int], ignore_unknown: bool) -> Objects:
    text = _read_text(path)
    try:
        return _objects([fields for _, fields in _label_lines(path, text)], index)
    except (ValueError, KeyError):
        # Something is wrong, or a class is to be ignored: once more, line by line.
        kept = []
        for number, fields in _label_lines(path, text, warn=False):
            _check_label(path, number, fields)
            if fields[8] in index:
                kept.append(fields)
            elif not ignore_unknown:
                raise UnknownClassError(f"{path}:{number}", fields[8], index) from None
        return _objects(kept, index)


def _objects(rows: Sequence[list[str]], index: Mapping[str, int]) -> Objects:
    """The objects of lines that are split into fields.

    Raises:
        ValueError, KeyError: a line is no label of these classes.
    """
    numbers = map(float, chain.from_iterable(row[:8] for row in rows))
    quads = np.fromiter(numbers, np.float64, 8 * len(rows))
    labels = [index[row[8]] for row in rows]
    difficult = [_DIFFICULT[row[9]] if len(row) > 9 else 0 for row in rows]
    if any(len(row) > 10 for row in rows) or not np.isfinite(quads).all():
        raise ValueError
    return Objects(quads.reshape(-1, 8), np.array(labels, np.int32), np.array(difficult, np.int32))


def _label_lines(path: Path, text: str, warn: bool = True) -> Iterator[tuple[int, list[str]]]:
    """Number and fields of the lines that have at least the nine fields of a label."""
    for number, line in enumerate(text.split("\n"), start=1):
        fields = line.split()
        if len(fields) >= 9:
            yield number, fields
        elif _has_other_separators(line):
            expected = "expected x1 y1 … x4 y4 class difficult, separated by white space"
            _fail(path, number, f"{expected}, got {line[:80]!r}")
        elif warn and fields and _is_number(fields[0]):
            warnings.warn(
                f"{path}:{number}: {len(fields)} fields, a label has 9 or 10; skipped, as "
                "the official script does",
                LabelWarning,
                stacklevel=4,
            )


def _has_other_separators(line: str) -> bool:
    """Whether commas or semicolons keep a line with the numbers of a label from having its fields."""
    header = ":" in line  # `imagesource:`, `gsd:` and what others put there
    return not header and bool(set(line) & set(",;")) and sum(map(_is_number, re.split(r"[,;\s]", line))) >= 8


def _is_yolo(fields: Sequence[str]) -> bool:
    """Whether these are a whole number and eight shares, of which the last, a class to us, has decimals.

    Classes such as "747" and corners at whole pixels 0, 1 and 2 are none of it.
    """
    low, high = YOLO_RANGE
    return (
        "." in fields[8]
        and all(map(_is_number, fields[:9]))
        and float(fields[0]).is_integer()
        and all(low <= float(field) <= high for field in fields[1:9])
    )


def _check_label(path: Path, number: int, fields: list[str]) -> None:
    """Raise for what is wrong in a line, whatever its class."""
    if _is_yolo(fields):
        _fail(
            path,
            number,
            "this looks like YOLO-OBB, `class x1 y1 … x4 y4` in shares of the image's side; convert the data "
            f"set by {YOLO_TO_DOTA}",
        )
    for place, field in enumerate(fields[:8]):
        if not _is_number(field):
            name = f"{'xy'[place % 2]}{place // 2 + 1}"
            hint = "; white space separates the fields" if set(field) & set(",;") else ""
            _fail(path, number, f"{name} must be a finite number, got {field!r}{hint}")
    if len(fields) > 10:
        _fail(
            path,
            number,
            f"expected x1 y1 … x4 y4 class difficult, got {len(fields)} fields; a class name is one word",
        )
    if len(fields) == 10 and fields[9] not in _DIFFICULT:
        _fail(path, number, f"difficult must be 0, 1 or 2, got {fields[9]!r}; a class name is one word")


# ---------------------------------------------------------------------------------------------
# Task 1


def to_task1(detections: Mapping[str, Detections], classes: Sequence[str]) -> dict[str, Task1Class]:
    """What `write_task1` writes and `read_task1` gives back: by class, images sorted, ranks as they are.

    Corners are computed in float64 and rounded to 1e-4 px, scores are the shortest decimals that
    give back the same float32: scoring records in memory and scoring the files are one thing.
    """
    _check_sequence(classes)
    names = sorted(detections)
    parts = [detections[name] for name in names]
    found = Detections.concatenate(parts)
    if len(found) and not (found.labels.min() >= 0 and found.labels.max() < len(classes)):
        raise UserError(
            f"labels {found.labels.min()}…{found.labels.max()} do not index {len(classes)} classes: "
            "the model was trained on another class list"
        )
    for name, part in zip(names, parts, strict=True):
        if not (np.isfinite(part.boxes).all() and np.isfinite(part.scores).all()):
            raise UserError(f"image {name}: a detection is NaN or infinite; the model is broken")
    images = np.repeat(np.array(names, object), [len(part) for part in parts])
    quads = np.round(to_quads(found.boxes.astype(np.float64)).reshape(-1, 8), TASK1_DECIMALS)
    quads += 0.0  # no minus zero
    scores = found.scores.astype("U32").astype(np.float64)
    task1 = {}
    for label, name in enumerate(classes):
        rows = np.flatnonzero(found.labels == label)
        task1[name] = Task1Class(images[rows].tolist(), scores[rows], quads[rows])
    return task1


def read_task1(
    directory: Path | str, classes: Sequence[str], images: Collection[str] | None = None
) -> dict[str, Task1Class]:
    """All detections of a folder, or a zip, of `Task1_<class>.txt`, by class.

    Args:
        images: names that detections may have; None takes any.

    Raises:
        FileNotFoundError: the folder, or the file of a class, is missing (an empty file is fine).
        LabelError: a line has not 10 fields, a score or coordinate is no finite number, or the image is
            not among `images`; the zip is damaged, or has two files of a class.
    """
    _check_sequence(classes)
    directory = Path(directory)
    if directory.is_file():
        with tempfile.TemporaryDirectory() as folder:
            _unpack(directory, Path(folder), [f"Task1_{name}.txt" for name in classes])
            try:
                return read_task1(folder, classes, images)
            except (LabelError, FileNotFoundError) as error:  # of the archive, not of where it lies unpacked
                raise type(error)(str(error).replace(folder, str(directory))) from None
    if not directory.is_dir():
        raise FileNotFoundError(
            f"{directory}: no such folder; expected one, or a zip, that holds Task1_<class>.txt"
        )
    if missing := [name for name in classes if not (directory / f"Task1_{name}.txt").is_file()]:
        raise FileNotFoundError(
            f"{directory}: no Task1_<class>.txt for {', '.join(missing)}; "
            "a class without detections needs an empty file, another class list --version or --classes"
        )
    found = {}
    for name in classes:
        path = directory / f"Task1_{name}.txt"
        found[name] = _parse_task1(path)
        if images is not None and (unknown := set(found[name].images).difference(images)):
            _fail_image(path, unknown, images)
    return found


def task1_names(directory: Path | str) -> set[str]:
    """Classes of which a folder, or a zip that `read_task1` has read, holds a `Task1_<class>.txt`."""
    directory = Path(directory)
    if directory.is_file():
        with zipfile.ZipFile(directory) as entries:
            files = [PurePosixPath(name).name for name in entries.namelist()]
    else:
        files = [path.name for path in directory.iterdir()]
    return {file[6:-4] for file in files if file.startswith("Task1_") and file.endswith(".txt")}


def _unpack(archive: Path, folder: Path, names: Collection[str]) -> None:
    """Write the files of these names, in whatever folders of a zip they lie, into `folder`.

    Raises:
        LabelError: it is no zip, or a file is damaged, encrypted, too large or there twice.
    """
    place, unpacked = str(archive), 0
    try:
        with zipfile.ZipFile(archive) as entries:
            for entry in entries.infolist():
                if (name := PurePosixPath(entry.filename).name) not in names or entry.is_dir():
                    continue
                place = f"{archive}/{entry.filename}"
                if (folder / name).exists():
                    raise LabelError("there are two files of this name")
                if (unpacked := unpacked + entry.file_size) > LARGEST_UNPACKED:
                    raise LabelError(f"more than {LARGEST_UNPACKED:,} bytes; unpack it and give the folder")
                (folder / name).write_bytes(entries.read(entry))
    except Exception as error:  # zipfile has no common type; a password is a RuntimeError
        raise LabelError(f"{place}: {error}; expected a zip with one Task1_<class>.txt a class") from error


def write_task1(directory: Path | str, detections: Mapping[str, Detections], classes: Sequence[str]) -> None:
    """Write `Task1_<class>.txt` for every class; `detections` are by image name without extension."""
    directory = Path(directory)
    for name, text in _task1_files(detections, classes):
        atomic.write_text(directory / name, text)


def write_submission(path: Path | str, detections: Mapping[str, Detections], classes: Sequence[str]) -> None:
    """A flat zip of `Task1_<class>.txt` for every class, as the test server takes it.

    Equal detections give equal bytes: entries carry no date.
    """
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in _task1_files(detections, classes):
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, text)
    atomic.write_bytes(path, data.getvalue())


def fits_task1(image: str) -> bool:
    """Whether Task 1 files, whose fields white space parts, can hold the name of an image."""
    return len(image.split()) == 1


def _task1_files(detections: Mapping[str, Detections], classes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Name and text of the `Task1_<class>.txt` of each class.

    Raises:
        UserError: before the first, as `to_task1`, or an image's name has white space.
    """
    for image in detections:
        if not fits_task1(image):
            raise UserError(f"image name {image!r} has white space; Task 1 files need it in one word")
    for name, found in to_task1(detections, classes).items():
        rows = zip(found.images, found.scores.tolist(), found.quads.tolist(), strict=True)
        lines = (f"{image} {score!r} {' '.join(map(repr, quad))}\n" for image, score, quad in rows)
        yield f"Task1_{name}.txt", "".join(lines)


def _parse_task1(path: Path) -> Task1Class:
    text = _read_text(path)
    rows = [fields for line in text.split("\n") if (fields := line.split())]
    if not rows:
        return Task1Class([], np.zeros(0), np.zeros((0, 8)))
    try:
        if set(map(len, rows)) != {10}:
            raise ValueError
        values = map(float, chain.from_iterable(row[1:] for row in rows))
        numbers = np.fromiter(values, np.float64, 9 * len(rows))
        if not np.isfinite(numbers).all():
            raise ValueError
    except ValueError:
        _fail_task1(path, text)
    numbers = numbers.reshape(-1, 9)
    return Task1Class([row[0] for row in rows], numbers[:, 0].copy(), numbers[:, 1:].copy())


def _fail_image(path: Path, unknown: Collection[str], images: Collection[str]) -> NoReturn:
    """Raise for the first line of a good Task 1 file that has an unknown image."""
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        fields = line.split()
        if fields and fields[0] in unknown:
            hint = "; names have no extension" if Path(fields[0]).stem in images else ""
            if fields[0].split("__")[0] in images:
                hint = "; it is a tile's name: merge first (python -m rgfl.dota.merge)"
            count = f"there are {len(images)}, {min(images)} … {max(images)}" if images else "there are none"
            _fail(path, number, f"image {fields[0]!r} has no label file ({count}){hint}")
    raise AssertionError(f"{path}: an unknown image was seen and not found again")


def _fail_task1(path: Path, text: str) -> NoReturn:
    """Raise for the first bad line of a Task 1 file that has one."""
    for number, line in enumerate(text.split("\n"), start=1):
        fields = line.split()
        if fields and len(fields) != 10:
            _fail(path, number, f"expected 10 fields `image score x1 y1 … x4 y4`, got {len(fields)}")
        for place, field in enumerate(fields[1:]):
            if not _is_number(field):
                name = "score" if place == 0 else f"{'yx'[place % 2]}{(place + 1) // 2}"
                _fail(path, number, f"{name} must be a finite number, got {field!r}")
    raise AssertionError(f"{path}: a bad line was seen and not found again")


# ---------------------------------------------------------------------------------------------
# Files


def _label_files(directory: Path | str) -> list[Path]:
    directory = Path(directory)
    if not directory.is_dir():
        hint = nearby(directory, [".txt"])
        raise FileNotFoundError(f"{directory}: no such folder; expected one that holds labelTxt files{hint}")
    files = sorted(path for path in directory.glob("*.txt") if not path.name.startswith("."))
    if not files:
        hint = nearby(directory, [".txt"])
        raise FileNotFoundError(f"{directory}: no .txt file in it; expected one labelTxt file an image{hint}")
    return files


def regular(path: Path) -> Path:
    """`path` itself.

    Raises:
        OSError: it is not there, or is no file: a pipe or a device may have no end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "expected a file, got a folder, a pipe or a device", str(path))
    return path


def _read_text(path: Path) -> str:
    try:
        data = regular(path).read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise LabelError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        _fail(path, line, f"not UTF-8 text (byte {data[error.start]:#04x}); save the file as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _is_number(field: str) -> bool:
    try:
        return math.isfinite(float(field))
    except ValueError:
        return False


def _check_sequence(classes: Sequence[str]) -> None:
    if isinstance(classes, str):  # a sequence of letters
        raise ValueError(f"classes: expected a sequence of names; pass read_classes({classes!r})")


def _fail(path: Path, line: int, message: str) -> NoReturn:
    raise LabelError(f"{path}:{line}: {message}")
