"""A training data set on disk: its labels, read and checked, and the sizes of its images.

    DIR/train/images/*.png  DIR/train/labelTxt/*.txt      images of any size, DOTA's label files
    DIR/val/images/*.png    DIR/val/labelTxt/*.txt
    DIR/classes.txt                                       optional: one class name a line

Pixels are read only when something wants them, by `Picture.read`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rgfl.dota import labels as dota_labels
from rgfl.dota.images import IMAGE_SUFFIXES, ImageError, find_images, image_size, read_image
from rgfl.dota.labels import Objects
from rgfl.dota.nearby import nearby, other_layout
from rgfl.dota.tiling import parse_tile_name
from rgfl.errors import UserError


class DataError(UserError):
    """The training data cannot be used; the message names the file and what to do."""


@dataclass(frozen=True)
class Picture:
    """One labelled image, pixels not yet read."""

    name: str
    path: Path
    height: int
    width: int
    objects: Objects

    def corners(self) -> NDArray[np.float64]:
        """(4, 2): x, y of its corners, in turn."""
        return np.array([(0, 0), (self.width, 0), (self.width, self.height), (0, self.height)], np.float64)

    def read(self) -> NDArray[np.uint8]:
        """Pixels, (height, width, 3) uint8 RGB.

        Raises:
            ImageError: as `read_image`, or they are of another size than the windows were listed for.
        """
        image = read_image(self.path)
        if image.shape[:2] != (self.height, self.width):
            raise ImageError(
                f"{self.path}: its header says {self.height} × {self.width} (height × width), its pixels are "
                f"{image.shape[0]} × {image.shape[1]}; rewrite it without an orientation tag, or begin anew "
                "if it was replaced"
            )
        return image


@dataclass(frozen=True)
class Dataset:
    """Both splits of a training folder, every label file already read and checked."""

    classes: tuple[str, ...]
    train: list[Picture]
    val: list[Picture]
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)  # objects of ignored classes, by class

    def digest(self) -> str:
        """Twelve hex digits of classes, image names, sizes and labels: equal data give equal digits."""
        state = hashlib.sha256(repr(self.classes).encode())
        for split in (self.train, self.val):
            for picture in split:
                state.update(repr((picture.name, picture.height, picture.width)).encode())
                for array in (picture.objects.quads, picture.objects.labels, picture.objects.difficult):
                    state.update(np.ascontiguousarray(array).tobytes())
        return state.hexdigest()[:12]


def read_dataset(
    root: Path | str,
    classes: str | Sequence[str] = "",
    with_val: bool = True,
    ignore_unknown: bool = False,
    train_splits: Sequence[str] = ("train",),
) -> Dataset:
    """Read and check all labels of `root`, and the sizes of all images.

    Args:
        root: folder with train/ and val/.
        train_splits: the folders of it to learn from.
        classes: the names; or "1.0", "1.5", "2.0", a file, or names with commas; empty: root/classes.txt,
            else the names that occur in train's labels.
        with_val: False reads no val/ to evaluate on.
        ignore_unknown: leave out objects of other classes and count them in `left_out`; else they are an
            error.

    Raises:
        DataError: a folder, image or label file is missing, or train/ has no object of the classes.
        LabelError: a label is wrong; the message begins with file:line.
    """
    root = Path(root)
    splits = [root / split for split in train_splits]
    folders = dict.fromkeys([*splits, root / "val"] if with_val else splits)  # each once
    for folder in folders:
        for kind, suffixes in (("images", IMAGE_SUFFIXES), ("labelTxt", [".txt"])):
            if not (folder / kind).is_dir():
                raise DataError(
                    f"{folder / kind}: no such folder; training data hold train/ and val/, each with "
                    f"images/ and labelTxt/{'' if folder in splits else ' (--eval-every 0 needs no val/)'}"
                    f"{other_layout(root) or nearby(folder / kind, suffixes)}"
                )
    names = _class_names(root, splits, classes) if isinstance(classes, str) else tuple(classes)
    train = [picture for folder in splits for picture in _read_split(folder, names, ignore_unknown)]
    if repeated := [name for name, count in Counter(one.name for one in train).items() if count > 1]:
        raise DataError(f"image {repeated[0]!r} is in more than one of {', '.join(train_splits)}; rename one")
    val = _read_split(root / "val", names, ignore_unknown) if with_val else []
    _warn_of_leaks(train, val)
    left_out: Counter[str] = Counter()
    if ignore_unknown:
        for folder in folders:
            left_out += dota_labels.count_others(folder / "labelTxt", names)
    if not any(len(picture.objects) for picture in train):
        others = f"; the labels hold {', '.join(sorted(left_out))}" if left_out else ""
        raise DataError(
            f"{splits[0] / 'labelTxt'}: no object of {', '.join(names)}, so there is nothing to learn{others}"
        )
    return Dataset(names, train, val, dict(left_out.most_common()))


def _warn_of_leaks(train: Sequence[Picture], val: Sequence[Picture]) -> None:
    """Images of equal name, size and labels in both, or tiles of one scene."""
    learned = {picture.name: picture for picture in train}
    same = [
        one.name
        for one in val
        if (other := learned.get(one.name)) is not None
        and (one.height, one.width) == (other.height, other.width)
        and np.array_equal(one.objects.quads, other.objects.quads)
    ]
    if same:
        warnings.warn(
            f"{len(same)} of {len(val)} validation images are training images too, such as {same[0]}: their "
            "AP says how well they were learned, not what the detector is worth",
            stacklevel=3,
        )
        return
    names = learned.keys() & {picture.name for picture in val}  # other images, as was found above
    if scenes := sorted((_scenes(train) & _scenes(val)) - names):
        warnings.warn(
            f"train and val share scenes, by the names of their tiles: {len(scenes)}, such as {scenes[0]}; "
            "AP says how well they were learned, not what the detector is worth: split whole scenes",
            stacklevel=3,
        )


def _scenes(pictures: Sequence[Picture]) -> set[str]:
    """Names of the images that these are, or that they are tiles of."""
    return {tile.image if (tile := parse_tile_name(one.name)) else one.name for one in pictures}


def _class_names(root: Path, splits: Sequence[Path], classes: str) -> tuple[str, ...]:
    try:
        if classes:
            return dota_labels.read_classes(classes)
        if (root / "classes.txt").is_file():
            return dota_labels.read_class_file(root / "classes.txt")
    except dota_labels.LabelError:
        raise
    except ValueError as error:
        raise DataError(str(error)) from error
    found = {name for folder in splits for name in dota_labels.find_classes(folder / "labelTxt")}
    if names := dota_labels.in_order(found):
        return names
    raise DataError(f"{splits[0] / 'labelTxt'}: no object in any label file, so there is nothing to learn")


def _read_split(folder: Path, classes: Sequence[str], ignore_unknown: bool) -> list[Picture]:
    images = find_images(folder / "images")
    objects = dota_labels.read_label_folder(folder / "labelTxt", classes, ignore_unknown)
    if not images:
        raise DataError(f"{folder / 'images'}: no images{nearby(folder / 'images', IMAGE_SUFFIXES)}")
    if without := sorted(set(images) - set(objects)):
        raise DataError(
            f"{images[without[0]]}: no label file {folder / 'labelTxt' / without[0]}.txt"
            f"{_more(without)}; an empty file says that an image holds no object"
        )
    if without := sorted(set(objects) - set(images)):
        raise DataError(
            f"{folder / 'labelTxt' / without[0]}.txt: no image of this name in {folder / 'images'}"
            f"{_more(without)}"
        )
    return [Picture(name, path, *image_size(path), objects[name]) for name, path in images.items()]


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more like this)" if len(names) > 1 else ""
