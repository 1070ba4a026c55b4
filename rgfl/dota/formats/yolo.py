"""YOLO-OBB: `class x1 y1 … x4 y4`, corners as shares of the sides; classes number the names of data.yaml."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from rgfl.dota.formats.dataset import (
    ConvertError,
    Dataset,
    Item,
    Size,
    fail,
    one_word,
    parse_number,
    read_name_file,
    renamed,
    text_of,
)
from rgfl.dota.formats.shapes import polygon_corners
from rgfl.dota.images import IMAGE_SUFFIXES, find_images, left_out, with_subfolders
from rgfl.dota.labels import DIFFICULT_CUT, YOLO_RANGE, Objects, quad_areas
from rgfl.dota.tiling import clip_objects

NO_LABELS = ("classes.txt", "readme")  # what tools leave beside label files


def read_yolo(data: Path, classes: Sequence[str] | None = None, *, polygons: bool = False) -> Dataset:
    """A YOLO-OBB data set with its data.yaml, or folders of the usual names with classes.txt or `classes`.

    Args:
        classes: of the names that the data set gives those to take, in this order; without such names, what
            the numbers mean.
        polygons: take those of other than four points, by the rectangle of least area around each.
    """
    config = _yolo_config(data)
    if data.is_file():  # data.yaml itself, as Ultralytics' commands take it
        data = data.parent
    numbered = _yolo_names(config, data) or classes
    if numbered is None:
        raise ConvertError(
            f"{data}: no data.yaml with `names`, and no classes.txt; give the folder that holds one, or name "
            "the classes by --classes, in their order"
        )
    words = dict(zip(numbered, one_word(numbered, data), strict=True))
    numbered = tuple(words.values())
    names = numbered if classes is None else one_word(classes, "--classes")
    if unknown := [name for name in names if name not in numbered]:
        raise ConvertError(
            f"--classes: {', '.join(unknown)}: no such class in {data}; expected of {', '.join(numbered)}"
        )
    folders, notes = _yolo_folders(data, config)
    labels = _LabelFiles()
    items = [
        Item(split, image, labels.of(image))
        for split, places in folders.items()
        for image in _images_of(places)
    ]
    roots = [place for places in folders.values() for place in places if place.is_dir()]
    notes += [*_unread(roots), *renamed(words, words.__getitem__)]
    if not items:
        expected = f"{data}: no images found; expected images/train …, train/images … or data.yaml"
        raise ConvertError("; ".join([expected, *notes]))
    without = [item.image for item in items if item.label is None]
    if len(without) == len(items):
        raise ConvertError(
            f"{data}: no label file for any of {len(items)} images; expected {_yolo_label(items[0].image)}"
        )
    if without:
        notes.append(
            f"{len(without)} of {len(items)} images have no label file: taken as images without objects, "
            f"such as {without[0]}"
        )
    used = {item.label for item in items}
    if others := [path for path in labels.below(roots) if path not in used]:
        notes.append(f"{len(others)} label files have no image, such as {others[0]}")
    # From the file's numbers to ours; −1 where it is none of them.
    table = np.array([names.index(name) if name in names else -1 for name in numbered], np.int32)

    def read(item: Item, size: Size) -> Objects:
        if item.label is None:
            return Objects.empty()
        found = parse_yolo(item.label, len(numbered), size, polygons)
        return Objects(found.quads, table[found.labels], found.difficult)

    return Dataset(names, items, read, tuple(notes), numbered if numbered != names else (), known=numbered)


def parse_yolo(path: Path, classes: int, size: Size, polygons: bool = False) -> Objects:
    """Objects of one YOLO-OBB label file; with `polygons` also those of other than four points.

    Raises:
        ConvertError: `file:line: ` and what is wrong there.
    """
    rows, labels, lines = [], [], []
    for number, line in enumerate(text_of(path).splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 9 and not (polygons and _is_polygon(fields)):
            fail(path, number, f"expected `class x1 y1 … x4 y4`, got {_other_line(fields)}")
        label = parse_number(fields[0])
        if label is None or label != int(label) or not 0 <= label < classes:
            fail(path, number, f"class must be a whole number in 0…{classes - 1}, got {fields[0]!r}")
        corners = []
        for place, field in enumerate(fields[1:]):
            name, value = f"{'xy'[place % 2]}{place // 2 + 1}", parse_number(field)
            if value is None:
                fail(path, number, f"{name} must be a finite number, got {field!r}")
            if not YOLO_RANGE[0] <= value <= YOLO_RANGE[1]:
                fail(
                    path,
                    number,
                    f"{name} must be a share of the image's side (0…1), got {field}; is it in pixels?",
                )
            corners.append(value)
        rows.append(corners)
        labels.append(int(label))
        lines.append(number)
    if not rows:
        return Objects.empty()
    sides = np.array(size(), np.float64)
    quads = []
    for number, row in zip(lines, rows, strict=True):
        points = np.array(row).reshape(-1, 2) * sides
        quads.append(points.reshape(8) if len(points) == 4 else polygon_corners(f"{path}:{number}", points))
    return Objects(np.array(quads), np.array(labels, np.int32), np.zeros(len(labels), np.int32))


def _is_polygon(fields: Sequence[str]) -> bool:
    return len(fields) % 2 == 1 and len(fields) >= 7


def _other_line(fields: Sequence[str]) -> str:
    """What a line is that is not YOLO-OBB's, and what to do with it."""
    count = len(fields)
    if fields[0] == "YOLO_OBB":
        return "the heading of labelImg_OBB's own format (centre, size and angle); export corners instead"
    if any("," in field for field in fields):
        return f"{' '.join(fields)[:80]!r}; white space separates the fields, not commas"
    said = f"{count} fields"
    if count == 5:
        return f"{said}; this is a horizontal box of YOLO's detection format"
    if count == 6:
        return (
            f"{said}; this is a box with its angle (class cx cy w h angle, as of labelImg_OBB) or its score "
            "(predictions); export corners: YOLOv8 OBB in Label Studio, Ultralytics YOLO Oriented Bounding "
            "Boxes in CVAT"
        )
    if count == 10 and parse_number(fields[8]) is None:
        return f"{said}; this is a line of DOTA's labelTxt, see --from dota"
    if count == 10:
        return f"{said}; corners and a score are predictions, not labels; save them without (save_conf=False)"
    if _is_polygon(fields):
        return (
            f"{said}, a polygon of {count // 2} points, as of segmentation; --polygons takes the rectangle "
            "of least area around it"
        )
    return said


def seen_objects(objects: Objects, width: int, height: int) -> tuple[Objects, dict[str, int]]:
    """The objects that YOLO's labels of an image can hold, cut at its border, and counts of the others.

    Ultralytics leaves out an image with a corner beyond it, so objects are cut there, as a tile's are. Left
    out are those that are difficult 2 (`cut_away` before, or crowds), that are `flat`, without area, and that
    are `unseen`, with less than 0.7 of their area in the image; `outside` counts those that it cuts.
    """
    whole = objects[objects.difficult != DIFFICULT_CUT]
    solid = whole[quad_areas(whole.quads) > 0]
    seen = clip_objects(solid, 0, 0, (width, height))
    seen = seen[seen.difficult != DIFFICULT_CUT]
    shares = solid.quads / _sides(width, height)
    unseen = len(solid) - len(seen)
    return seen, {
        "cut_away": len(objects) - len(whole),
        "flat": len(whole) - len(solid),
        "unseen": unseen,
        "outside": int(((shares < 0) | (shares > 1)).any(1).sum()) - unseen,
    }


def yolo_text(objects: Objects, width: int, height: int) -> str:
    """The label file of an image and of its `seen_objects`; full precision, corners in their order."""
    shares = np.clip(objects.quads / _sides(width, height), 0, 1)
    return "".join(
        f"{label} {' '.join(map(repr, quad))}\n"
        for label, quad in zip(objects.labels.tolist(), shares.tolist(), strict=True)
    )


def _sides(width: int, height: int) -> NDArray[np.float64]:
    return np.tile(np.array([width, height], np.float64), 4)


# ---------------------------------------------------------------------------------------------
# data.yaml


def _yolo_config(data: Path) -> dict[str, Any]:
    places = (data, data / "data.yaml", data / "data.yml", data / "dataset.yaml")
    found = [path for path in places if path.is_file()]
    if not found:
        found = sorted(path for path in data.glob("*.yaml") if not path.name.startswith("."))[:1]
    if not found:
        return {}
    try:
        import yaml
    except ImportError as error:
        raise ConvertError(f"{found[0]}: reading it needs PyYAML: pip install pyyaml") from error
    text = text_of(found[0])
    try:
        config = yaml.safe_load(text)
    except Exception as error:  # besides PyYAML's own those of values, such as a 13th month
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ConvertError(f"{found[0]}{line}: not YAML: {reason}") from error
    if not isinstance(config, dict):
        raise ConvertError(f"{found[0]}: expected `names:` and `train:`, got {type(config).__name__}")
    return config


def _yolo_names(config: dict[str, Any], data: Path) -> tuple[str, ...] | None:
    """The names of data.yaml, or of classes.txt; None without either."""
    if "names" not in config:
        return read_name_file(listed) if (listed := data / "classes.txt").is_file() else None
    names = config["names"]
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise ConvertError(f"{data}: `names` of data.yaml must number the classes 0…{len(names) - 1}")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise ConvertError(f"{data}: `names` of data.yaml must list the classes, got {names!r}")
    return tuple(_text(data, "names", name) for name in names)


def _text(data: Path, key: str, value: Any) -> str:
    """A value in data.yaml as text. No lists: by aliases a short file may hold one of 10^10 items."""
    if not isinstance(value, (str, int, float)):
        raise ConvertError(f"{data}: expected text in `{key}` of data.yaml, got {type(value).__name__}")
    return str(value)


def _yolo_folders(data: Path, config: dict[str, Any]) -> tuple[dict[str, list[Path]], list[str]]:
    """Folders and lists of images by split, and what was passed over: splits but train may be missing."""
    folders: dict[str, list[Path]] = {}
    notes: list[str] = []
    root = _text(data, "path", config.get("path") or "")
    for split, keys in (("train", ("train",)), ("val", ("val", "valid")), ("test", ("test",))):
        entries = next((config[key] for key in keys if config.get(key)), None)
        if entries is None:
            usual = [place for key in keys for place in (data / "images" / key, data / key / "images")]
            folders[split] = [place for place in usual if place.is_dir()][:1]
            continue
        folders[split] = []
        for value in entries if isinstance(entries, list) else [entries]:
            entry = _text(data, split, value)
            places = _yolo_places(data, root, entry)
            if found := next((place for place in places if place.exists()), None):
                folders[split].append(found)
                continue
            looked = " and ".join(map(str, places))
            missing = f"data.yaml's `{split}: {entry}` is not there (looked at {looked})"
            if split == "train":
                raise ConvertError(f"{data}: {missing}")
            notes.append(f"{missing}: left out")
    if not any(folders.values()) and (data / "images").is_dir():
        folders = {"": [data / "images"]}
    return folders, notes


def _yolo_places(data: Path, root: str, entry: str) -> list[Path]:
    """Where the folder or list of images may be that data.yaml names.

    Such files travel: their `path` may be stale, and Roboflow's `../train/images` means a folder beside
    data.yaml. So what lies in the data set comes first. Windows writes backslashes.
    """
    places = []
    for written in (entry, entry.replace("\\", "/")):
        inside = written
        while inside.startswith(("../", "./")):
            inside = inside.split("/", 1)[1]
        roots = [data / root, data]
        places += [place / way for place in roots for way in (written, inside)]
    home = os.path.abspath(data)
    # Before links are followed: a link in the data set is of it, wherever it leads.
    return sorted(
        dict.fromkeys(places), key=lambda place: not Path(os.path.abspath(place)).is_relative_to(home)
    )


# ---------------------------------------------------------------------------------------------
# Files


class _LabelFiles:
    """Finds the label files of images, whatever the case of their suffix and their form of Unicode."""

    def __init__(self) -> None:
        self._found: dict[Path, dict[str, Path]] = {}

    def of(self, image: Path) -> Path | None:
        label = _yolo_label(image)
        return self._in(label.parent).get(normalize("NFC", label.stem))

    def below(self, images: Iterable[Path]) -> list[Path]:
        """All label files of these folders of images and of their sub-folders, each once."""
        roots = dict.fromkeys(_yolo_label(folder / "image").parent for folder in images)
        folders = [folder for root in roots if root.is_dir() for folder in with_subfolders(root)]
        found = dict.fromkeys(path for folder in folders for path in self._in(folder).values())
        return [path for path in found if not path.name.lower().startswith(NO_LABELS)]

    def _in(self, folder: Path) -> dict[str, Path]:
        if folder not in self._found:
            found: dict[str, Path] = {}
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if path.suffix.lower() != ".txt" or path.name.startswith("."):
                    continue
                if (other := found.setdefault(normalize("NFC", path.stem), path)) is not path:
                    raise ConvertError(f"{path}: {other.name} is of the same image; remove one of the two")
            self._found[folder] = found
        return self._found[folder]


def _yolo_label(image: Path) -> Path:
    """…/images/…/a.png → …/labels/…/a.txt, at the last folder of that name; beside the image without one."""
    parts = list(image.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _images_of(places: Iterable[Path]) -> list[Path]:
    """The images of folders with their sub-folders, and of lists, each once."""
    images: list[Path] = []
    for place in places:
        if place.is_dir():
            images += [image for folder in with_subfolders(place) for image in find_images(folder).values()]
            continue
        for number, line in enumerate(text_of(place).splitlines(), start=1):
            if not line.strip():
                continue
            image = place.parent / line.strip()
            if not image.is_file():
                image = place.parent / line.strip().replace("\\", "/")
            if not image.is_file():
                fail(place, number, f"no such image: {image}")
            if image.suffix.lower() not in IMAGE_SUFFIXES:
                fail(place, number, f"expected an image ({', '.join(IMAGE_SUFFIXES)}), got {image}")
            images.append(image)
    return list(dict.fromkeys(images))


def _unread(roots: Iterable[Path]) -> list[str]:
    """A note on the images below these folders that have other suffixes than those that are read."""
    folders = dict.fromkeys(folder for root in roots for folder in with_subfolders(root))
    found = [path for folder in folders for path in left_out(folder)]
    kinds = ", ".join(sorted({path.suffix.lower() for path in found}))
    return [f"{len(found)} images of kinds that are not read ({kinds}), such as {found[0]}"] if found else []
