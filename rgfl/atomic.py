"""Files that are whole or absent: a killed process leaves no half-written one under its final name."""

from __future__ import annotations

import os
from pathlib import Path

TEMPORARY_SUFFIX = ".partial"


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write `data` under a hidden name beside `path`, then rename it: readers see all of it or none."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        try:
            temporary.unlink(missing_ok=True)  # it may be a link to elsewhere
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except OSError as error:  # name the file that was asked for, not the hidden one
            raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path | str, text: str) -> None:
    """`write_bytes` of UTF-8 with `\\n` line ends on every platform."""
    write_bytes(path, text.encode())
