"""Work over many images that a kill may interrupt: what is finished is written down, one JSON line each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

SHOWN = 10  # errors in a message


def stamp(path: Path) -> list[int]:
    """Bytes and time of change (ns) of a file: an entry holds them, to know one that was replaced."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def read_journal(journal: Path) -> list[dict[str, Any]]:
    """The head of `journal` and its entries {"image": key, …}, as far as it is whole: a run that was killed
    may have left half a line, a crash of the machine any bytes."""
    entries: list[dict[str, Any]] = []
    for line in journal.read_bytes().split(b"\n"):
        try:
            entry = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):  # of the encoding or of JSON
            break
        if not isinstance(entry, dict) or (entries and not isinstance(entry.get("image"), str)):
            break
        entries.append(entry)
    return entries


def follow(
    entries: Iterable[dict[str, Any]],
    journal: Path,
    done: dict[str, dict[str, Any]],
    total: int,
    *,
    task: str,
    progress: bool,
) -> list[str]:
    """Enter each finished image into `journal` and `done` as it comes, with a progress bar.

    Args:
        entries: one an image, {"image": key, …}, or {"error": text} for one that failed.
        journal: appended to, line by line.
        done: the entries of earlier runs.
        total: images in all, finished ones included.
        task: label of the bar.

    Returns:
        The errors.
    """
    errors = []
    with (
        journal.open("a", encoding="utf-8") as log,
        tqdm(
            total=total, initial=len(done), desc=task, unit="image", disable=None if progress else True
        ) as bar,
    ):
        for entry in entries:
            bar.update()
            if "error" in entry:
                errors.append(entry["error"])
                continue
            done[entry["image"]] = entry
            log.write(json.dumps(entry) + "\n")
            log.flush()
    return errors


def failure(errors: Sequence[str], total: int) -> str:
    """What to tell of images that failed: the first errors, and how many there are."""
    shown = "\n".join(errors[:SHOWN])
    more = f"\n… and {len(errors) - SHOWN} more" if len(errors) > SHOWN else ""
    return f"{shown}{more}\n{len(errors)} of {total} images failed; mend them and run again"
