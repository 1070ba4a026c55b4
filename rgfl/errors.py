"""What a user can put right: one line on stderr and exit status 2, never a traceback."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rgfl import atomic


class UserError(ValueError):
    """What a user can put right: the message is all they need, so commands print it without a traceback."""


class ModelError(UserError):
    """The file is no model, or not one that this command can run."""


class InputError(UserError):
    """Images, labels or flags that do not fit together."""


class TrainingError(UserError):
    """The run cannot go on; one line that says why and what to do."""


# What a command says on Ctrl-C that goes on where it stopped.
GOES_ON = "stopped; the same command goes on from here"

# What an installation without the extra lacks, by the name that is imported.
EXTRAS = {
    "torch": "train",
    "timm": "train",
    "matplotlib": "train",
    "onnx": "export",
    "onnx_graphsurgeon": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
}


def run(program: str, command: Callable[[], int], interrupted: str = "interrupted") -> int:
    """Exit status of `command`; 2 and one line where the user can put it right, 130 on Ctrl-C.

    SIGTERM ends it like sys.exit, so that temporary files are removed.
    """
    warnings.formatwarning = lambda message, *_: f"{program}: warning: {message}\n"
    try:
        with _termination_exits():
            return command()
    except KeyboardInterrupt:
        print(f"\n{program}: {interrupted}", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in EXTRAS:
            raise
        print(
            f"{program}: error: {name} is not installed: pip install 'rgfl[{EXTRAS[name]}]'", file=sys.stderr
        )
        return 2
    except (UserError, OSError) as error:
        print(f"{program}: error: {told(error)}", file=sys.stderr)
        return 2


@contextmanager
def _termination_exits() -> Iterator[None]:
    """SIGTERM raises SystemExit in this block: left alone it ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def one_line(error: Exception) -> str:
    """The message without line breaks; an OSError says which file and why."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def told(error: Exception) -> str:
    """The message with its line breaks; an OSError in one line."""
    return one_line(error) if isinstance(error, OSError) else str(error)


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


def write_cache(path: Path, data: bytes, cost: str) -> None:
    """What saves time next time: where it cannot be written, that is a warning of the `cost`."""
    try:
        atomic.write_bytes(path, data)
    except OSError as error:
        warnings.warn(f"{cost}: {one_line(error)}", stacklevel=3)


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


def share(text: str) -> float:
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
