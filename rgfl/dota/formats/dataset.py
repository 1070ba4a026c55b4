"""What every reader of a foreign format gives, and the small parts that they share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from rgfl.dota.labels import Objects, checked_names

SPLITS = ("train", "val", "test")


class ConvertError(ValueError):
    """A data set that cannot be converted; the message names the file, or the folder and what it lacks."""


@dataclass(frozen=True)
class Item:
    """One image of a data set. `split` is "" where the data set has none; no `label`: no objects."""

    split: str
    image: Path
    label: Path | None

    @property
    def key(self) -> str:
        return f"{self.split}/{self.image.stem}"


Size = Callable[[], tuple[int, int]]  # (width, height) of the image, decoded when asked for


@dataclass(frozen=True)
class Dataset:
    """What a reader found. `read` gives None for an image that nobody labelled."""

    classes: tuple[str, ...]
    items: list[Item]
    read: Callable[[Item, Size], Objects | None]


def one_word(classes: Sequence[str], data: Path) -> tuple[str, ...]:
    """Class names as label files can hold them: white space becomes a hyphen."""
    try:
        return checked_names(["-".join(name.split()) for name in classes], str(data))
    except ValueError as error:
        raise ConvertError(str(error)) from error


def parse_number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConvertError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error


def fail(path: Path, line: int, message: str) -> NoReturn:
    raise ConvertError(f"{path}:{line}: {message}")
