"""What the flags of a command must be, asked before its work begins: paths that exist or can be written to,
numbers in their range. Nothing is created here."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from rgfl.errors import InputError


def existing_directory(path: Path, flag: str) -> Path:
    """`path`, which must be a directory; `flag` is named in the error."""
    if not path.exists():
        raise InputError(f"{flag} {path}: no such directory")
    if not path.is_dir():
        raise InputError(f"{flag} {path}: expected a directory, this is a file")
    return path


def new_file(path: Path, flag: str, keep: Iterable[Path] = ()) -> Path:
    """`path`, under which a file can be written; asked before hours of work, not after.

    Args:
        keep: files that the command reads, or writes besides: `path` must be none of them.
    """
    if path.is_dir():
        raise InputError(f"{flag} {path}: expected a file, this is a directory")
    new_directory(path.parent, flag)
    return none_of(path, flag, keep)


def none_of(path: Path, flag: str, keep: Iterable[Path]) -> Path:
    """Return `path`; an error if it is one of `keep`, by any spelling or through a link."""
    for other in keep:
        linked = path.exists() and other.exists() and path.samefile(other)
        if linked or os.path.realpath(path) == os.path.realpath(other):
            raise InputError(
                f"{flag} {path}: the same file as {other}, which this command reads or writes too; "
                "choose another name"
            )
    return path


def cache_file(path: Path, flag: str, keep: Iterable[Path] = ()) -> Path:
    """Return `path` if it is a file or can become one; an error if it is one of `keep`."""
    return none_of(path, flag, keep) if path.is_file() else new_file(path, flag, keep)


def new_directory(path: Path, flag: str) -> Path:
    """Return `path` if it is a directory or can become one."""
    for folder in (path, *path.parents):
        if folder.exists():
            if not folder.is_dir():
                raise InputError(f"{flag} {path}: {folder} is a file, expected a directory")
            if not os.access(folder, os.W_OK):
                raise InputError(f"{flag} {path}: {folder} cannot be written to")
            break
    return path


def picture_directory(path: Path, flag: str, images: Mapping[str, Path]) -> Path:
    """`path`, a directory for pictures NAME.jpg, of which none may replace an image.

    Args:
        images: files that are read, by the names that their pictures get.
    """
    folders = {os.path.realpath(folder) for folder in {file.parent for file in images.values()}}
    read = {os.path.realpath(file) for file in images.values()}
    written = {os.path.realpath(path / f"{name}.jpg") for name in images}
    if os.path.realpath(path) in folders or read & written:
        raise InputError(
            f"{flag} {path}: the images lie there, and pictures could replace them; choose another"
        )
    return new_directory(path, flag)


def zero_to_one(text: str) -> float:
    """A flag's number from 0 to 1, as argparse's `type`: 30 is no score."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 0 to 1, such as 0.3")
    return value


def positive_integers(text: str, flag: str) -> list[int]:
    """[1, 4] from "1,4"."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = [0]
    if min(values) < 1:
        raise InputError(f"{flag} {text}: expected whole numbers ≥ 1 separated by commas, such as 1,4")
    return values
