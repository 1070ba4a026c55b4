"""Files that are whole or absent: a killed process leaves no half-written one under its final name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

TEMPORARY_SUFFIX = ".partial"


@contextmanager
def whole(path: Path | str) -> Iterator[Path]:
    """A hidden file beside `path`, in a folder that is made if missing. What the block writes there becomes
    `path` at its end: readers see all of it or none. After an error `path` is as it was."""
    path = Path(path)
    # Of a name so long that none longer is allowed, its digest.
    name = path.name if len(path.name.encode()) < 230 else sha256(path.name.encode()).hexdigest()
    hidden = path.with_name(f".{name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden.unlink(missing_ok=True)  # it may be a link to elsewhere
        yield hidden
        os.replace(hidden, path)
    except OSError as error:
        if error.filename not in (str(hidden), None):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # the file that was asked for
    finally:
        hidden.unlink(missing_ok=True)  # os.replace of two links to one file leaves both


def place(source: Path, target: Path, link: bool = True) -> None:
    """A file as `target`, too: a hard link where the file system can and it is wanted, else a copy."""
    with whole(target) as hidden:
        try:
            if not link:
                raise OSError
            os.link(source.resolve(), hidden)
        except OSError:  # another file system, or one without links
            shutil.copy2(source, hidden)


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with whole(path) as hidden:
        hidden.write_bytes(data)


def write_text(path: Path | str, text: str) -> None:
    """`write_bytes` of UTF-8 with `\\n` line ends on every platform."""
    write_bytes(path, text.encode())
