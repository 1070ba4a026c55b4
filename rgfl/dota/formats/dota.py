"""DOTA itself: as its archives unpack, or as the trainer takes it, images/ and labelTxt/ in each split."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from rgfl.dota.formats.dataset import ConvertError, Dataset, Item, Size, check_folder, read_name_file
from rgfl.dota.images import find_images, subfolders, with_subfolders
from rgfl.dota.labels import CLASSES, Objects, find_classes, in_order, read_labels
from rgfl.dota.nearby import NOT_ORIENTED, ORIENTED, VERSION, packed

TESTS = ("test", "test-dev", "test-challenge")  # published without labels


def read_dota(data: Path, classes: Sequence[str] | None = None, *, version: str | None = None) -> Dataset:
    """DOTA in train/, val/, test/ …, or in `data` itself.

    Images are those of images/ with the folders in it (part1/images …), or of the split's other folders.
    Labels are those in labelTxt/, else in the one folder whose path names a version (labelTxt-v1.0/labelTxt,
    labelTxt-v1.5/DOTA-v1.5_train …) and does not say that its boxes are horizontal. With `version` they are
    those of the folder that names it, else those of a labelTxt/ that names none.

    Args:
        classes: those to take; None: of classes.txt, of the version of the labels, else all that occur.
        version: whose labels to take where there are those of several.
    """
    splits = _splits(data)
    labels = {split: _label_folder(folder, version) for split, folder in splits.items()}
    versions = {
        _version(folder, splits[split]) or version or "" for split, folder in labels.items() if folder
    }
    if len(versions) > 1:
        shown = ", ".join(str(folder) for folder in labels.values() if folder)
        raise ConvertError(
            f"{data}: expected labels of one version in all splits, got {shown}; unpack those of one version "
            "in each, then choose by --version"
        )
    official = CLASSES.get(version or next(iter(versions), ""))
    occurring: set[str] = set()
    if classes is None and (listed := data / "classes.txt").is_file():
        classes = read_name_file(listed)
    elif classes is None and official:
        classes = official
    else:
        occurring = {name for folder in labels.values() if folder for name in find_classes(folder)}
    names = in_order(occurring) if classes is None else tuple(classes)
    known = (*names, *sorted(occurring.difference(names)))  # the others get label −1
    items: list[Item] = []
    notes = []
    for split, folder in splits.items():
        images = _images(folder)
        if label_folder := labels[split]:
            items += _labelled(split, images, label_folder, folder, whole=not official)
        elif images:
            items += [Item(split, image, None, annotated=False, bare=True) for image in images.values()]
        else:
            notes.append(f"{folder}: no images, left out{packed(folder)}")
    if not items:
        raise ConvertError(f"{data}: expected images, got none; {'; '.join(notes)}")

    def read(item: Item, _: Size) -> Objects | None:
        if item.label is None:
            return None
        found = read_labels(item.label, known)
        labels = np.where(found.labels < len(names), found.labels, -1)
        return Objects(found.quads, labels, found.difficult)

    return Dataset(names, items, read, tuple(notes), known=known)


def _splits(data: Path) -> dict[str, Path]:
    check_folder(data)
    if (data / "labelTxt").is_dir():
        return {"": data}
    known = ("train", "val", *TESTS)
    folders = subfolders(data)
    for path in folders:
        if (lower := path.name.lower()) in known and path.name != lower:
            raise ConvertError(f"{path}: expected {lower}/, got {path.name}/; rename it")
    found = {path.name: path for path in folders if path.name in known or (path / "labelTxt").is_dir()}
    return found or {"": data}


def _label_folder(split: Path, version: str | None) -> Path | None:
    """Where the oriented labels of a split are; None for a test set, which has none."""
    plain = split / "labelTxt"
    if not version and plain.is_dir() and _text_files(plain) and _is_oriented(plain, split):
        return plain
    below = with_subfolders(split, passed=lambda path: _no_labels(path, split))
    found = [folder for folder in below if _text_files(folder)]
    oriented = {folder: _version(folder, split) for folder in found if _is_oriented(folder, split)}
    choice = [folder for folder, named in oriented.items() if named and version in (None, named)]
    choice = choice or [f for f in oriented if not version or (f == plain and not f.is_symlink())]
    if len(choice) == 1:
        return choice[0]
    if choice:
        shown = ", ".join(f"{_within(folder, split)}/" for folder in choice)
        several = len({oriented[folder] for folder in choice}) > 1
        todo = "choose by --version" if several else "put the others away"
        raise ConvertError(f"{split}: expected one folder of labels, got {shown}; {todo}")
    if split.absolute().name in TESTS and not oriented:
        return None
    expected = f"labelTxt-v{version}/ …" if version else "labelTxt/ or, as published, labelTxt-v1.0/ …"
    shown = ", ".join(f"{_within(folder, split)}/" for folder in found) or "no .txt file"
    raise ConvertError(f"{split}: no oriented labels; expected {expected}, found {shown}{packed(split)}")


def _no_labels(path: Path, split: Path) -> bool:
    """Whether a folder is of images, or a link to what is not named as labels are, as to a whole disk."""
    return path.name == "images" or (path.is_symlink() and not _is_oriented(path, split))


def _is_oriented(folder: Path, split: Path) -> bool:
    """Whether a folder is named as oriented labels are."""
    place = _within(folder, split)
    named = folder.name == "labelTxt" or ORIENTED.search(place)
    return bool(named) and not NOT_ORIENTED.search(place)


def _version(folder: Path, split: Path) -> str:
    """The version that the folder's path below the split names; "" if it names none."""
    named = VERSION.search(_within(folder, split))
    return named[1] if named else ""


def _within(folder: Path, split: Path) -> str:
    """The path below the split of what a link leads to; beyond the split its name."""
    place, root = Path(os.path.realpath(folder)), Path(os.path.realpath(split))
    return place.relative_to(root).as_posix() if place.is_relative_to(root) else place.name


def _text_files(folder: Path) -> list[Path]:
    """The label files in a folder, sorted."""
    return sorted(path for path in folder.glob("*.txt") if not path.name.lower().startswith((".", "readme")))


def _images(split: Path) -> dict[str, Path]:
    """All images of a split by stem, whatever parts they come in."""
    root = split / "images"
    found: dict[str, Path] = {}
    for folder in with_subfolders(root if root.is_dir() else split):
        for stem, image in find_images(folder).items():
            if (other := found.setdefault(stem, image)) is not image:
                raise ConvertError(f"{image}: {other} has the same name; remove one of the two")
    return found


def _labelled(
    split: str, images: dict[str, Path], labels: Path, folder: Path, *, whole: bool
) -> Iterable[Item]:
    """Items of the images with their label files.

    Args:
        whole: every image must have one; else images without are left out, as those of later versions.
    """
    files = {path.stem: path for path in _text_files(labels)}
    if others := [path for stem, path in files.items() if stem not in images]:
        raise ConvertError(
            f"{others[0]}: no image of this name in {folder / 'images'}, as for {len(others)} of "
            f"{len(files)} label files; unpack all parts of the images, v1.0's for v2.0 too{packed(folder)}"
        )
    for stem, image in images.items():
        label = files.get(stem)
        if label is None and whole:
            raise ConvertError(f"{labels / stem}.txt: missing; an image without objects needs an empty file")
        yield Item(split, image, label, annotated=label is not None)
