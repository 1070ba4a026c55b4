"""Work over many images that a kill may interrupt: what is finished is written down, one JSON line each."""

from __future__ import annotations

import base64
import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rgfl import atomic
from rgfl.detections import Detections
from rgfl.dota import rasters
from rgfl.errors import UserError

SHOWN = 10  # errors in a message


def stamp(path: Path) -> list[int]:
    """Bytes and time of change (ns) of a file and of a VRT's sources: an entry holds them, to know what was
    replaced."""
    found = [file.stat() for file in (path, *rasters.sources(path))]
    return [number for status in found for number in (status.st_size, status.st_mtime_ns)]


def read_journal(journal: Path, kinds: Mapping[str, type] | None = None) -> list[dict[str, Any]]:
    """The head of `journal` and its entries {"image": key, …}, as far as it is whole: a run that was killed
    may have left half a line, a crash of the machine any bytes.

    Args:
        kinds: what else an entry must hold.
    """
    return list(_lines(journal, {"image": str, **(kinds or {})}))


def read_head(journal: Path) -> dict[str, Any]:
    """The head alone; empty where there is none."""
    return next(_lines(journal, {}), {}) if journal.is_file() else {}


def _lines(journal: Path, kinds: Mapping[str, type]) -> Iterator[dict[str, Any]]:
    """Head and entries, up to the first line that is none."""
    with journal.open("rb") as lines:
        for number, line in enumerate(lines):
            try:
                entry = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError):  # of the encoding or of JSON
                return
            if not isinstance(entry, dict):
                return
            if number and any(type(entry.get(name)) is not kind for name, kind in kinds.items()):
                return
            yield entry


def write_journal(journal: Path, head: dict[str, Any], entries: Iterable[dict[str, Any]]) -> None:
    """A journal of these entries, whole or not at all."""
    atomic.write_text(journal, "".join(json.dumps(entry) + "\n" for entry in (head, *entries)))


def resume(
    journal: Path, head: dict[str, Any], states: Mapping[str, Any], whole: Callable[[str], bool]
) -> dict[str, dict[str, Any]]:
    """Entries of the images that a run before this one has finished, each with `packed` detections; the
    journal is left with these.

    Args:
        head: what decides what is found. A journal of another head counts for nothing.
        states: by image, the "state" of its entry, unless it was replaced.
        whole: of an image's name, whether all that was written of it is there.
    """
    entries = read_journal(journal) if journal.is_file() else []
    done = {
        entry["image"]: entry
        for entry in (entries[1:] if entries[:1] == [head] else [])
        if (name := entry["image"]) in states and entry.get("state") == states[name] and whole(name)
        if _is_packed(entry)
    }
    write_journal(journal, head, done.values())
    return done


def packed(detections: Detections) -> dict[str, str]:
    """For an entry: the very bits."""
    return {name: base64.b64encode(values.tobytes()).decode() for name, values in vars(detections).items()}


def unpacked(entry: Mapping[str, str]) -> Detections:
    """What `packed` made an entry of."""

    def values(name: str, kind: type[np.generic]) -> Any:
        return np.frombuffer(base64.b64decode(entry[name]), kind)

    boxes = values("boxes", np.float32).reshape(-1, 5)
    return Detections(boxes, values("scores", np.float32), values("labels", np.int32))


def _is_packed(entry: Mapping[str, Any]) -> bool:
    try:
        unpacked(entry)
    except (LookupError, TypeError, ValueError):
        return False
    return True


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


def expect_inside(folder: Path, out: Path) -> None:
    """
    Raises:
        UserError: a link leads `folder` out of `out`: what lies there is of others, and not to be replaced or
            removed.
    """
    if not (place := folder.resolve()).is_relative_to(out.resolve()):
        raise UserError(
            f"{folder}: expected a folder in {out}, got a link to {place}; link {out} itself instead"
        )


def failure(errors: Sequence[str], total: int) -> str:
    """What to tell of images that failed: the first errors, and how many there are."""
    shown = "\n".join(errors[:SHOWN])
    more = f"\n… and {len(errors) - SHOWN} more" if len(errors) > SHOWN else ""
    full = any(os.strerror(errno.ENOSPC) in error for error in errors)
    remedy = "make room" if full else "repair or replace them"
    return f"{shown}{more}\n{len(errors)} of {total} images failed; {remedy} and run again"
