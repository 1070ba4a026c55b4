"""Where files are that are not where they should be: DOTA's archives unpack into folders of their own, and
other data sets are laid out in other ways."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

DEPTH = 3  # train/labelTxt-v1.5/DOTA-v1.5_train, images/part1/images
ARCHIVES = (".zip", ".tar.gz", ".tgz")
NAMED = 3  # folders in a message at most
CONVERT = "python -m rgfl.dota.convert"
# DOTA's folders of horizontal labels (Train_Task2_gt/trainset_reclabelTxt, DOTA-v1.5_train_hbb) and of none
NOT_ORIENTED = re.compile(r"hbb|task2|reclabel|\bmeta\b", re.IGNORECASE)
VERSION = re.compile(r"v(1\.0|1\.5|2\.0)", re.IGNORECASE)
ORIENTED = re.compile(rf"labeltxt|{VERSION.pattern}", re.IGNORECASE)


def nearby(folder: Path, suffixes: Sequence[str]) -> str:
    """The end of an error message about a `folder` that is missing or holds no file with one of `suffixes`.

    Names folders below it, or below the one that it should be in, that do hold some (of labels: oriented
    ones), with the command that puts them in its place; and an archive. Empty where there is nothing of the
    kind.
    """
    root = folder if folder.is_dir() else folder.parent
    found = []
    for place, files in _folders(root, DEPTH):
        count = sum(file.lower().endswith(tuple(suffixes)) for file in files)
        if count and place != folder and not NOT_ORIENTED.search(str(place.relative_to(root))):
            found.append((place, count))
    hint = ""
    if found:
        named = ", ".join(f"{place.relative_to(root)}/ ({count} files)" for place, count in found[:NAMED])
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        hint = f"; found in {root}: {named}{more}"
        only = found[0][0]
        if len(found) == 1 and not folder.exists() and not VERSION.search(str(only.relative_to(root))):
            hint += f"; to take them: ln -s {os.path.relpath(only, folder.parent)} {folder}"
        elif folder.name in ("images", "labelTxt"):
            split = folder.parent
            data = split.parent if split.name.startswith(("train", "val", "test")) else split
            hint += f"; DOTA as published: {CONVERT} --from dota --data {data} --out DIR"
    return hint + packed(root)


def packed(root: Path) -> str:
    """The end of an error message about what is missing in `root`: an archive below it; else empty."""
    for place, files in _folders(root, DEPTH):
        if archives := [file for file in files if file.lower().endswith(ARCHIVES)]:
            return f"; {place / archives[0]} is not unpacked"
    return ""


def other_layout(root: Path) -> str:
    """The end of an error message about a data set that is not laid out as train/ and val/, each with images/
    and labelTxt/: what makes it so if it is YOLO's, the folder or its data.yaml, or not split; else empty.
    """
    data = root
    if root.suffix.lower() in (".yaml", ".yml") and root.is_file():
        root = root.parent
    if (root / "train" / "labelTxt").is_dir():
        return ""
    labels = (root / "labels", root / "train" / "labels")
    known = (data, root / "data.yaml", root / "data.yml", root / "dataset.yaml")
    if any(folder.is_dir() for folder in labels) or any(path.is_file() for path in known):
        return f"; this looks like YOLO-OBB: {CONVERT} --from yolo-obb --data {data} --out DIR"
    if (root / "images").is_dir() and (root / "labelTxt").is_dir():
        return (
            f"; images/ and labelTxt/ of {root} are not split: {CONVERT} --from dota --data {root} --out DIR "
            "--val-share 0.2 splits them, --train-splits . --eval-every 0 learns from all"
        )
    return ""


def _folders(root: Path, depth: int) -> Iterator[tuple[Path, list[str]]]:
    """Folders to this depth, sorted, hidden ones left out, each with the names of its files."""
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError:
        return
    shown = [entry for entry in entries if not entry.name.startswith(".")]
    yield root, [entry.name for entry in shown if entry.is_file()]
    if depth:
        for entry in shown:
            if entry.is_dir():
                yield from _folders(root / entry.name, depth - 1)
