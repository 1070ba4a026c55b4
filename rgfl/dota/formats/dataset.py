"""What every reader of a foreign format gives, and the small parts that they share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

import numpy as np

from rgfl.dota.labels import Objects, checked_names, read_classes, regular
from rgfl.errors import UserError

SPLITS = ("train", "val", "test")
JOURNAL = "convert.jsonl"  # of a folder that was written here
FARTHEST = 1e9  # pixels; no image is as large


class ConvertError(UserError):
    """A data set that cannot be converted; the message names the file, or the folder and what it lacks."""


@dataclass(frozen=True)
class Item:
    """One image of a data set.

    Attributes:
        split: "" where the data set has none.
        label: None: no objects.
        annotated: False: known to be left out, as nobody looked at it.
        bare: an image of a test set, to be written without labels.
        shared: further files with its objects, and those of other images.
    """

    split: str
    image: Path
    label: Path | None
    annotated: bool = True
    bare: bool = False
    shared: tuple[Path, ...] = ()


Size = Callable[[], tuple[int, int]]  # (width, height) of the image, looked up when asked for


@dataclass(frozen=True)
class Dataset:
    """What a reader found.

    Attributes:
        read: the objects of an item; None for an image that nobody labelled. Label −1 is an object of a class
            that was not asked for.
        notes: what was passed over, each with its count and an example.
        numbered: the names that the label files' numbers mean, where these are not `classes`.
        column: of the objects' properties the one with their classes, where it was chosen.
        known: the classes that `classes` were chosen from.
        renames: `old=new` of every class before, where some have new names.
    """

    classes: tuple[str, ...]
    items: list[Item]
    read: Callable[[Item, Size], Objects | None]
    notes: tuple[str, ...] = ()
    numbered: tuple[str, ...] = ()
    column: str = ""
    known: tuple[str, ...] = ()
    renames: tuple[str, ...] = ()


def read_names(text: str) -> tuple[str, ...]:
    """`rgfl.dota.labels.read_classes` of what --classes says, but `one_word` of names of several."""
    if "," not in text and Path(text).is_file():
        return read_name_file(Path(text))
    if "," not in text and len(text.split()) == 1:
        return read_classes(text)
    return one_word([name for name in text.split(",") if name.strip()], f"classes {text!r}")


def read_name_file(path: Path) -> tuple[str, ...]:
    """`one_word` of a file of one name a line; lines that begin with # are comments."""
    lines = [line.strip() for line in text_of(path).splitlines()]
    return one_word([line for line in lines if line and not line.startswith("#")], path)


def read_renames(text: str) -> dict[str, str]:
    """New class names by the old ones, both `one_word`, of what --rename says."""
    pairs = [pair.split("=") for pair in text.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        raise ConvertError(f"--rename: expected OLD=NEW,OLD=NEW, got {text!r}")
    olds = one_word([old for old, _ in pairs], "--rename")
    return {old: one_word([new], "--rename")[0] for old, (_, new) in zip(olds, pairs, strict=True)}


def with_new_names(dataset: Dataset, new: Mapping[str, str]) -> Dataset:
    """The data set with new class names, by the old ones; those of one name become one, where the first is.

    Raises:
        ConvertError: an old name is none of its classes.
    """
    if unknown := [old for old in new if old not in dataset.classes]:
        raise ConvertError(
            f"--rename: no class {', '.join(unknown)}; expected of {', '.join(dataset.classes)} "
            "(--classes takes old names)"
        )
    names = [new.get(old, old) for old in dataset.classes]
    classes = tuple(dict.fromkeys(names))
    table = np.array([*map(classes.index, names), -1], np.int32)  # label −1 stays

    def read(item: Item, size: Size) -> Objects | None:
        objects = dataset.read(item, size)
        return None if objects is None else replace(objects, labels=table[objects.labels])

    renames = tuple(f"{old}={name}" for old, name in zip(dataset.classes, names, strict=True))
    return replace(dataset, classes=classes, read=read, renames=renames)


def one_word(classes: Sequence[str], data: Path | str) -> tuple[str, ...]:
    """Class names as label files can hold them: white space becomes a hyphen."""
    try:
        return checked_names(["-".join(name.split()) for name in classes], str(data))
    except ValueError as error:
        raise ConvertError(str(error)) from error


def renamed(names: Iterable[str], word: Callable[[str], str]) -> list[str]:
    """A note for each class whose name is written otherwise than the data set has it."""
    return [f"class {name!r} is written {word(name)}" for name in dict.fromkeys(names) if word(name) != name]


def check_folder(data: Path) -> None:
    """
    Raises:
        ConvertError: `data` is no folder.
    """
    if data.is_file():
        raise ConvertError(
            f"--data {data}: expected a folder, got a file; give the one that holds it and the images, such "
            f"as {data.parent}"
        )
    if not data.is_dir():
        raise ConvertError(f"--data {data}: no such folder")


def parse_number(text: str) -> float | None:
    """None for what is no number, or one that no image has: areas of such would overflow."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < FARTHEST else None


def text_of(path: Path) -> str:
    try:
        return regular(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConvertError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error


class _NoDoctype(ElementTree.TreeBuilder):
    def doctype(self, *_: object) -> None:
        raise ConvertError("it has a DOCTYPE")


def parse_xml(path: Path) -> ElementTree.Element:
    """Root of an XML file without a document type: with one, entities could be expanded or fetched.

    Raises:
        ConvertError: `file:line: ` not XML, or `file: ` with a DOCTYPE.
    """
    data = regular(path).read_bytes()
    # Before parsing, so that nothing is expanded; without the zeros of UTF-16.
    if b"<!DOCTYPE" in (plain := data.replace(b"\0", b"")) or b"<!ENTITY" in plain:
        raise ConvertError(
            f"{path}: it has a DOCTYPE, which no annotation needs and which is not read; remove it"
        )
    try:
        return ElementTree.fromstring(data, ElementTree.XMLParser(target=_NoDoctype()))
    except ElementTree.ParseError as error:
        raise ConvertError(f"{path}:{error.position[0]}: not XML: {error}") from error
    except (ValueError, LookupError) as error:  # an unknown encoding, or the guard above
        raise ConvertError(f"{path}: not XML that is read: {error}") from error


def fail(path: Path, line: int, message: str) -> NoReturn:
    raise ConvertError(f"{path}:{line}: {message}")
