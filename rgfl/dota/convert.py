"""Other data sets' labels to DOTA's labelTxt, and back to YOLO-OBB.

    python -m rgfl.dota.convert --from yolo-obb|hrsc2016|dior-r --data DIR --out DIR
    python -m rgfl.dota.convert --from dota --to yolo-obb --data DIR --out DIR

What each format says, and what becomes of it here, in pixels with y down (rgfl/boxes.py):

    yolo-obb  `class x1 y1 … x4 y4`, corners as shares of width and height; class numbers index the
              names of data.yaml. Images without a label file have no objects.
    hrsc2016  XML, mbox_cx, mbox_cy, mbox_w, mbox_h in pixels, mbox_ang in radians from x towards y: our
              convention, so corners follow. All ships are one class. Images that are marked as not
              annotated are left out.
    dior-r    XML, robndbox by its corners left_top, right_top, right_bottom, left_bottom; class names in
              lower case.

labelTxt wants class names in one word, so "storage tank" becomes "storage-tank". YOLO has no mark for
difficult objects: those are kept, and what a tile's border cut away (difficult 2) is left out.

Images are hard-linked where the file system can, else copied. Every file appears whole or not at all,
and `convert.jsonl` lists the finished images: the same command goes on after a kill, and converts anew
what changed in between.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args
from xml.etree import ElementTree

import numpy as np

from rgfl import atomic
from rgfl.dota.images import find_images, read_image
from rgfl.dota.journal import failure, follow, read_journal
from rgfl.dota.labels import (
    DIFFICULT_CUT,
    YOLO_RANGE,
    Objects,
    checked_names,
    find_classes,
    in_order,
    read_class_file,
    read_classes,
    read_labels,
    write_labels,
)
from rgfl.dota.tiling import clip_objects
from rgfl.processes import usable_cores

Source = Literal["dota", "yolo-obb", "hrsc2016", "dior-r"]
Target = Literal["dota", "yolo-obb"]
JOURNAL = "convert.jsonl"
SPLITS = ("train", "val", "test")
HRSC_CLASSES = ("ship",)
DIOR_CLASSES = (
    "airplane",
    "airport",
    "baseballfield",
    "basketballcourt",
    "bridge",
    "chimney",
    "dam",
    "expressway-service-area",
    "expressway-toll-station",
    "golffield",
    "groundtrackfield",
    "harbor",
    "overpass",
    "ship",
    "stadium",
    "storagetank",
    "tenniscourt",
    "trainstation",
    "vehicle",
    "windmill",
)


class ConvertError(ValueError):
    """A data set that cannot be converted; the message names the file, or the folder and what it lacks."""


@dataclass(frozen=True)
class Item:
    """One image of a data set. `split` is "" where the data set has none; no `label`: no objects."""

    split: str
    image: Path
    label: Path | None

    @property
    def key(self) -> str:
        return f"{self.split}/{self.image.stem}"


Size = Callable[[], tuple[int, int]]  # (width, height) of the image, decoded when asked for


@dataclass(frozen=True)
class Dataset:
    """What a reader found. `read` gives None for an image that nobody labelled."""

    classes: tuple[str, ...]
    items: list[Item]
    read: Callable[[Item, Size], Objects | None]


@dataclass(frozen=True)
class Converted:
    """What a conversion came to: `unlabelled` images were left out, `outside` objects cross the border."""

    images: int = 0
    objects: int = 0
    unlabelled: int = 0
    difficult: int = 0
    outside: int = 0


# ---------------------------------------------------------------------------------------------
# YOLO-OBB


def read_yolo(data: Path, classes: Sequence[str] | None = None) -> Dataset:
    """A YOLO-OBB data set with its data.yaml, or with `classes` and folders of the usual names."""
    config = _yolo_config(data)
    if classes is None:
        if "names" not in config:
            raise ConvertError(
                f"{data}: no data.yaml with `names`; name the classes by --classes, in their order"
            )
        classes = _yolo_names(config["names"], data)
    folders: dict[str, list[Path]] = {}
    for split, keys in (("train", ("train",)), ("val", ("val", "valid")), ("test", ("test",))):
        entries = next((config[key] for key in keys if config.get(key)), None)
        if entries is not None:
            listed = entries if isinstance(entries, list) else [entries]
            folders[split] = [_yolo_place(data, config.get("path"), str(entry), split) for entry in listed]
        else:
            usual = [place for key in keys for place in (data / "images" / key, data / key / "images")]
            folders[split] = [place for place in usual if place.is_dir()][:1]
    if not any(folders.values()) and (data / "images").is_dir():
        folders = {"": [data / "images"]}
    items = [
        Item(split, image, label if (label := _yolo_label(image)).is_file() else None)
        for split, places in folders.items()
        for image in _images_of(places)
    ]
    if not items:
        raise ConvertError(f"{data}: no images found; expected images/train …, train/images … or data.yaml")
    if not any(item.label for item in items):
        raise ConvertError(
            f"{data}: no label file for any of {len(items)} images; expected {_yolo_label(items[0].image)}"
        )
    names = _one_word(classes, data)

    def read(item: Item, size: Size) -> Objects:
        return Objects.empty() if item.label is None else parse_yolo(item.label, len(names), size)

    return Dataset(names, items, read)


def parse_yolo(path: Path, classes: int, size: Size) -> Objects:
    """Objects of one YOLO-OBB label file.

    Raises:
        ConvertError: `file:line: ` and what is wrong there.
    """
    quads, labels = [], []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 9:
            kind = {5: "; this is a horizontal box of YOLO's detection format"}.get(len(fields), "")
            _fail(path, number, f"expected `class x1 y1 … x4 y4`, got {len(fields)} fields{kind}")
        label = _number(fields[0])
        if label is None or label != int(label) or not 0 <= label < classes:
            _fail(path, number, f"class must be a whole number in 0…{classes - 1}, got {fields[0]!r}")
        corners = []
        for place, field in enumerate(fields[1:]):
            name, value = f"{'xy'[place % 2]}{place // 2 + 1}", _number(field)
            if value is None:
                _fail(path, number, f"{name} must be a finite number, got {field!r}")
            if not YOLO_RANGE[0] <= value <= YOLO_RANGE[1]:
                _fail(
                    path,
                    number,
                    f"{name} must be a share of the image's side (0…1), got {field}; is it in pixels?",
                )
            corners.append(value)
        quads.append(corners)
        labels.append(int(label))
    if not quads:
        return Objects.empty()
    scaled = np.array(quads) * np.tile(np.array(size(), np.float64), 4)
    return Objects(scaled, np.array(labels, np.int32), np.zeros(len(labels), np.int32))


def yolo_text(objects: Objects, width: int, height: int) -> str:
    """The label file of an image; full precision, corners in their order, difficult 2 left out.

    Objects are cut at the image's border, as a tile's are: Ultralytics leaves out an image with a corner
    beyond it.
    """
    seen = clip_objects(objects, 0, 0, max(width, height), extent=(width, height))
    kept = seen[seen.difficult != DIFFICULT_CUT]
    shares = np.clip(kept.quads / np.tile(np.array([width, height], np.float64), 4), 0, 1)
    return "".join(
        f"{label} {' '.join(map(repr, quad))}\n"
        for label, quad in zip(kept.labels.tolist(), shares.tolist(), strict=True)
    )


def _yolo_config(data: Path) -> dict[str, Any]:
    found = [path for name in ("data.yaml", "data.yml", "dataset.yaml") if (path := data / name).is_file()]
    if not found:
        found = sorted(path for path in data.glob("*.yaml") if not path.name.startswith("."))[:1]
    if not found:
        return {}
    try:
        import yaml
    except ImportError as error:
        raise ConvertError(f"{found[0]}: reading it needs PyYAML: pip install pyyaml") from error
    try:
        config = yaml.safe_load(_text(found[0]))
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or "nested too deeply"
        raise ConvertError(f"{found[0]}{line}: not YAML: {reason}") from error
    if not isinstance(config, dict):
        raise ConvertError(f"{found[0]}: expected `names:` and `train:`, got {type(config).__name__}")
    return config


def _yolo_names(names: Any, data: Path) -> tuple[str, ...]:
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise ConvertError(f"{data}: `names` of data.yaml must number the classes 0…{len(names) - 1}")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise ConvertError(f"{data}: `names` of data.yaml must list the classes, got {names!r}")
    return tuple(str(name) for name in names)


def _yolo_place(data: Path, root: Any, entry: str, split: str) -> Path:
    """The folder or list of images that data.yaml means; such files travel, so their root may be stale."""
    inside = entry
    while inside.startswith(("../", "./")):
        inside = inside.split("/", 1)[1]
    roots = [data / str(root), data] if root else [data]
    places = [place / way for place in roots for way in (entry, inside)]
    for place in places:
        if place.exists():
            return place
    raise ConvertError(
        f"{data}: data.yaml's `{split}: {entry}` is not there; looked at {places[0]} and {places[-1]}"
    )


def _yolo_label(image: Path) -> Path:
    """…/images/…/a.png → …/labels/…/a.txt, at the last folder of that name; beside the image without one."""
    parts = list(image.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _images_of(places: Iterable[Path]) -> list[Path]:
    images: list[Path] = []
    for place in places:
        if place.is_dir():
            images += find_images(place).values()
            continue
        for number, line in enumerate(_text(place).splitlines(), start=1):
            if not line.strip():
                continue
            image = place.parent / line.strip()
            if not image.is_file():
                _fail(place, number, f"no such image: {image}")
            images.append(image)
    return images


# ---------------------------------------------------------------------------------------------
# HRSC2016 and DIOR-R


def read_hrsc(data: Path, classes: Sequence[str] | None = None) -> Dataset:
    """HRSC2016 as published: Train/ and Test/, or FullDataSet/ with ImageSets/."""
    names = _one_word(classes or HRSC_CLASSES, data)
    if len(names) != 1:
        raise ConvertError(f"--classes: HRSC2016 is read as one class, got {', '.join(names)}")

    def read(item: Item, _: Size) -> Objects | None:
        assert item.label is not None
        return parse_hrsc(item.label)

    return Dataset(names, _xml_items(data), read)


def parse_hrsc(path: Path) -> Objects | None:
    """Objects of one HRSC2016 file, all with label 0; None where it says that nobody annotated the image."""
    from rgfl.boxes import to_quads  # the compiled core, which the other formats do not need

    root = parse_xml(path)
    if (root.findtext("Annotated") or "1").strip() == "0":
        return None
    found = list(root.iter("HRSC_Object"))
    boxes, difficult = [], []
    for place, element in enumerate(found, start=1):
        where = f"HRSC_Object {element.findtext('Object_ID') or place}"
        boxes.append([_value(path, element, where, f"mbox_{name}") for name in ("cx", "cy", "w", "h", "ang")])
        if min(boxes[-1][2:4]) < 0:
            raise ConvertError(
                f"{path}: {where}: mbox_w and mbox_h must not be negative, got {boxes[-1][2:4]}"
            )
        difficult.append(_difficult(path, element, where))
    quads = to_quads(np.array(boxes, np.float64).reshape(-1, 5)).reshape(-1, 8).astype(np.float64)
    return Objects(quads, np.zeros(len(found), np.int32), np.array(difficult, np.int32))


def read_dior(data: Path, classes: Sequence[str] | None = None) -> Dataset:
    """DIOR-R as published: Annotations/Oriented Bounding Boxes/, JPEGImages-…/ and ImageSets/Main/."""
    names = tuple(name.lower() for name in _one_word(classes or DIOR_CLASSES, data))
    index = {name: number for number, name in enumerate(names)}

    def read(item: Item, _: Size) -> Objects:
        assert item.label is not None
        return parse_dior(item.label, index)

    return Dataset(names, _xml_items(data), read)


def parse_dior(path: Path, index: Mapping[str, int]) -> Objects:
    """Objects of one DIOR-R file; `index` numbers the classes by their names in lower case."""
    quads, labels, difficult = [], [], []
    corners = ("left_top", "right_top", "right_bottom", "left_bottom")
    for place, element in enumerate(parse_xml(path).iter("object"), start=1):
        name = "-".join((element.findtext("name") or "").lower().split())
        where = f"object {place} ({name or 'no name'})"
        if name not in index:
            raise ConvertError(
                f"{path}: {where}: unknown class, expected one of {', '.join(index)}; "
                "name your own by --classes"
            )
        if (box := element.find("robndbox")) is None:
            hint = "; this is the data set's horizontal half" if element.find("bndbox") is not None else ""
            raise ConvertError(f"{path}: {where}: no element robndbox{hint}")
        quads.append([_value(path, box, where, f"{axis}_{corner}") for corner in corners for axis in "xy"])
        labels.append(index[name])
        difficult.append(_difficult(path, element, where))
    return Objects(
        np.array(quads, np.float64).reshape(-1, 8), np.array(labels, np.int32), np.array(difficult, np.int32)
    )


class _NoDoctype(ElementTree.TreeBuilder):
    def doctype(self, *_: object) -> None:
        raise ConvertError("it has a DOCTYPE")


def parse_xml(path: Path) -> ElementTree.Element:
    """Root of an XML file without a document type: with one, entities could be expanded or fetched.

    Raises:
        ConvertError: `file:line: ` not XML, or `file: ` with a DOCTYPE.
    """
    data = path.read_bytes()
    # Before parsing, so that nothing is expanded; without the zeros of UTF-16.
    if b"<!DOCTYPE" in (plain := data.replace(b"\0", b"")) or b"<!ENTITY" in plain:
        raise ConvertError(
            f"{path}: it has a DOCTYPE, which no annotation needs and which is not read; remove it"
        )
    try:
        return ElementTree.fromstring(data, ElementTree.XMLParser(target=_NoDoctype()))
    except ElementTree.ParseError as error:
        raise ConvertError(f"{path}:{error.position[0]}: not XML: {error}") from error
    except (ValueError, LookupError) as error:  # an unknown encoding, or the guard above
        raise ConvertError(f"{path}: not XML that is read: {error}") from error


def _xml_items(data: Path) -> list[Item]:
    """Images and their XML files, split as the folders or the lists of ImageSets say."""
    if not data.is_dir():
        raise ConvertError(f"--data {data}: no such folder")
    parts = {
        folder.name.lower(): folder
        for folder in sorted(data.iterdir())
        if folder.name.lower() in SPLITS and _annotations(folder) is not None
    }
    if parts:
        return [item for split, root in parts.items() for item in _xml_split(root, root, split, None)]
    root = next((place for place in (data, data / "FullDataSet") if _annotations(place) is not None), None)
    if root is None:
        raise ConvertError(
            f"{data}: no folder Annotations with .xml files, in it or in Train/, Test/ or FullDataSet/"
        )
    places = [top / way for top in (data, root) for way in ("ImageSets/Main", "ImageSets", "Main")]
    for place in places:
        lists = {
            name: place / f"{name}.txt" for name in (*SPLITS, "trainval") if (place / f"{name}.txt").is_file()
        }
        if "train" in lists:
            lists.pop("trainval", None)
        if lists:
            return [item for split, names in lists.items() for item in _xml_split(data, root, split, names)]
    return _xml_split(data, root, "", None)


def _xml_split(data: Path, root: Path, split: str, names: Path | None) -> list[Item]:
    annotations = _annotations(root)
    assert annotations is not None
    labels = {path.stem: path for path in sorted(annotations.glob("*.xml"))}
    images: dict[str, Path] = {}
    for place in sorted({*data.iterdir(), *root.iterdir()}):
        if place.is_dir() and place.name.lower().startswith(("allimages", "jpegimages", "images")):
            images.update(find_images(place))
    stems = list(labels)
    if names is not None:
        stems = []
        for number, line in enumerate(_text(names).splitlines(), start=1):
            stem = (line.split() or [""])[0]
            if stem and stem not in labels:
                _fail(names, number, f"no {annotations / stem}.xml")
            stems += [stem] if stem else []
    if missing := [stem for stem in stems if stem not in images]:
        raise ConvertError(
            f"{data}: no image for {len(missing)} of {len(stems)} annotations, the first is {missing[0]}; "
            "expected it in AllImages/, JPEGImages…/ or images/"
        )
    return [Item(split, images[stem], labels[stem]) for stem in dict.fromkeys(stems)]


def _annotations(root: Path) -> Path | None:
    """The folder of XML files below `root`: of DIOR-R's two halves the oriented one."""
    top = root / "Annotations"
    if not top.is_dir():
        return None
    oriented = [place for place in sorted(top.iterdir()) if place.is_dir() and "orient" in place.name.lower()]
    return next((place for place in (*oriented, top) if next(place.glob("*.xml"), None)), None)


def _value(path: Path, element: ElementTree.Element, where: str, name: str) -> float:
    text = element.findtext(name)
    value = None if text is None else _number(text)
    if value is None:
        came = "it is missing" if text is None else f"got {text.strip()!r}"
        raise ConvertError(f"{path}: {where}: {name} must be a finite number, {came}")
    return value


def _difficult(path: Path, element: ElementTree.Element, where: str) -> int:
    text = (element.findtext("difficult") or "0").strip()
    if text not in ("0", "1"):
        raise ConvertError(f"{path}: {where}: difficult must be 0 or 1, got {text!r}")
    return int(text)


# ---------------------------------------------------------------------------------------------
# DOTA


def read_dota(data: Path, classes: Sequence[str] | None = None) -> Dataset:
    """DOTA's own layout: images/ and labelTxt/, in train/, val/ … or in `data` itself."""
    if not data.is_dir():
        raise ConvertError(f"--data {data}: no such folder")
    splits = {folder.name: folder for folder in sorted(data.iterdir()) if (folder / "labelTxt").is_dir()}
    if (data / "labelTxt").is_dir():
        splits = {"": data}
    if not splits:
        raise ConvertError(f"{data}: expected labelTxt/ and images/, in it or in train/, val/ …")
    if classes is None and (listed := data / "classes.txt").is_file():
        classes = read_class_file(listed)
    elif classes is None:
        classes = in_order({name for folder in splits.values() for name in find_classes(folder / "labelTxt")})
    names = tuple(classes)
    items = []
    for split, folder in splits.items():
        for stem, image in find_images(folder / "images").items():
            label = folder / "labelTxt" / f"{stem}.txt"
            if not label.is_file():
                raise ConvertError(f"{label}: missing; an image without objects needs an empty file")
            items.append(Item(split, image, label))

    def read(item: Item, _: Size) -> Objects:
        assert item.label is not None
        return read_labels(item.label, names)

    return Dataset(names, items, read)


READERS: dict[str, Callable[[Path, Sequence[str] | None], Dataset]] = {
    "dota": read_dota,
    "yolo-obb": read_yolo,
    "hrsc2016": read_hrsc,
    "dior-r": read_dior,
}


# ---------------------------------------------------------------------------------------------
# Writing


def convert(
    dataset: Dataset,
    out: Path,
    to: Target = "dota",
    *,
    link: bool = True,
    workers: int = 1,
    progress: bool = False,
) -> Converted:
    """Write `dataset` into `out`, taking up where a killed run left off.

    Raises:
        ConvertError: `out` holds something else, or images failed (the message has their errors; the
            others are finished).
    """
    keys = [item.key for item in dataset.items]
    if (
        repeated := next((key for key in keys if keys.count(key) > 1), None)
        if len(set(keys)) < len(keys)
        else None
    ):
        raise ConvertError(f"two images are called {repeated.strip('/')}; rename one of them")
    for item in dataset.items:
        if len(item.image.stem.split()) != 1:
            raise ConvertError(f"{item.image}: Task 1 files need image names without white space; rename it")
    done = _open_journal(out, to, dataset)
    waiting = [item for item in dataset.items if item.key not in done]

    def work(item: Item) -> dict[str, Any]:
        try:
            return _convert_image(item, dataset, out, to, link)
        except (ValueError, OSError) as error:
            return {"error": " ".join(str(error).split())}

    def entries() -> Generator[dict[str, Any], None, None]:
        with ThreadPoolExecutor(max(workers, 1)) as pool:
            try:
                yield from pool.map(work, waiting)
            except BaseException:  # the reader stopped: so do the images that have not begun
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    with closing(entries()) as finished:
        errors = follow(finished, out / JOURNAL, done, len(keys), task="converting", progress=progress)
    if errors:
        raise ConvertError(failure(errors, len(keys)))
    if to == "yolo-obb":
        atomic.write_text(out / "data.yaml", _yolo_yaml(dataset))
    else:
        atomic.write_text(out / "classes.txt", "".join(f"{name}\n" for name in dataset.classes))
    totals = {name: sum(entry[name] for entry in done.values()) for name in Converted.__dataclass_fields__}
    return Converted(**totals)


def _places(item: Item, out: Path, to: Target) -> tuple[Path, Path]:
    """Where the image and its labels go."""
    if to == "yolo-obb":
        images, labels = out / "images" / item.split, out / "labels" / item.split
    else:
        images, labels = out / item.split / "images", out / item.split / "labelTxt"
    return images / item.image.name, labels / f"{item.image.stem}.txt"


def _convert_image(item: Item, dataset: Dataset, out: Path, to: Target, link: bool) -> dict[str, Any]:
    """Write image and labels; the journal's entry."""
    stamp = _stamp(item)
    known: list[tuple[int, int]] = []

    def size() -> tuple[int, int]:
        if not known:
            height, width = read_image(item.image).shape[:2]
            known.append((width, height))
        return known[0]

    objects = dataset.read(item, size)
    counts = dict.fromkeys(Converted.__dataclass_fields__, 0)
    if objects is None:
        counts["unlabelled"] = 1
        return {"image": item.key, "source": stamp, **counts}
    image, label = _places(item, out, to)
    for folder in (image.parent, label.parent):
        folder.mkdir(parents=True, exist_ok=True)
    _place_image(item.image, image, link)
    if to == "yolo-obb":
        width, height = size()
        atomic.write_text(label, yolo_text(objects, width, height))
        objects = objects[objects.difficult != DIFFICULT_CUT]
        reach = objects.quads / np.tile(np.array([width, height], np.float64), 4)
        counts["outside"] = int(((reach < 0) | (reach > 1)).any(1).sum())
    else:
        write_labels(label, objects, dataset.classes)
    counts |= {"images": 1, "objects": len(objects), "difficult": int((objects.difficult > 0).sum())}
    return {"image": item.key, "source": stamp, **counts}


def _place_image(source: Path, target: Path, link: bool) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}{atomic.TEMPORARY_SUFFIX}")
    temporary.unlink(missing_ok=True)
    try:
        try:
            if not link:
                raise OSError
            os.link(source.resolve(), temporary)
        except OSError:  # another file system, or one without links
            shutil.copy2(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)  # os.replace of two links to one file leaves both


def _yolo_yaml(dataset: Dataset) -> str:
    splits = sorted({item.split for item in dataset.items}, key=lambda name: (*SPLITS, name).index(name))
    lines = [f"{split or 'train'}: {f'images/{split}' if split else 'images'}\n" for split in splits]
    if not any(line.startswith("val:") for line in lines):
        lines.append(f"val: {lines[0].split(': ')[1].strip()}  # there is no other\n")
    # JSON strings are YAML strings, whatever is in them.
    names = [
        f"  {index}: {json.dumps(name, ensure_ascii=False)}\n" for index, name in enumerate(dataset.classes)
    ]
    return "".join([*lines, "names:\n", *names])


def _stamp(item: Item) -> list[int]:
    stamps = [path.stat() for path in (item.image, item.label) if path is not None]
    return [number for status in stamps for number in (status.st_size, status.st_mtime_ns)]


def _open_journal(out: Path, to: Target, dataset: Dataset) -> dict[str, dict[str, Any]]:
    """Entries of images that need no work; files of images that are gone are removed."""
    journal = out / JOURNAL
    head = {"convert": 1, "to": to, "classes": list(dataset.classes)}
    done: dict[str, dict[str, Any]] = {}
    by_key = {item.key: item for item in dataset.items}
    if journal.is_file():
        entries = read_journal(journal)
        if not entries or entries[0] != head:
            raise ConvertError(
                f"{out}: was converted with another --to or other classes; name another --out, or remove it"
            )
        gone = {entry["image"] for entry in entries[1:]} - by_key.keys()
        if gone and not any(
            (item := by_key.get(entry["image"])) and entry["source"] == _stamp(item) for entry in entries[1:]
        ):
            raise ConvertError(
                f"{out}: holds {len(gone)} other images, such as {min(gone)}; name another --out, or "
                "remove it"
            )
        for entry in entries[1:]:
            item = by_key.get(entry["image"])
            if item is None:
                split, stem = entry["image"].split("/", 1)
                image, label = _places(Item(split, Path(stem), None), out, to)
                for path in (label, *image.parent.glob(f"{escape(stem)}.*")):
                    path.unlink(missing_ok=True)
            elif entry["source"] == _stamp(item) and _is_there(entry, item, out, to):
                done[entry["image"]] = entry
    elif out.is_dir() and any(out.iterdir()):
        raise ConvertError(f"{out}: holds files that were not converted here; name another --out")
    out.mkdir(parents=True, exist_ok=True)
    atomic.write_text(journal, "".join(json.dumps(entry) + "\n" for entry in (head, *done.values())))
    return done


def _is_there(entry: Mapping[str, Any], item: Item, out: Path, to: Target) -> bool:
    return bool(entry["unlabelled"]) or all(path.is_file() for path in _places(item, out, to))


# ---------------------------------------------------------------------------------------------
# Small parts


def _one_word(classes: Sequence[str], data: Path) -> tuple[str, ...]:
    """Class names as label files can hold them: white space becomes a hyphen."""
    try:
        return checked_names(["-".join(name.split()) for name in classes], str(data))
    except ValueError as error:
        raise ConvertError(str(error)) from error


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConvertError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error


def _fail(path: Path, line: int, message: str) -> NoReturn:
    raise ConvertError(f"{path}:{line}: {message}")


# ---------------------------------------------------------------------------------------------
# Command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m rgfl.dota.convert`; 0, or 2 after an error message."""
    parser = argparse.ArgumentParser(
        prog="python -m rgfl.dota.convert",
        description="Convert the labels of other data sets to DOTA's labelTxt, or DOTA's to YOLO-OBB. "
        "A killed run takes up where it left off.",
    )
    parser.add_argument(
        "--from", dest="source", choices=get_args(Source), required=True, help="format of --data"
    )
    parser.add_argument("--to", choices=get_args(Target), default="dota", help="format to write [dota]")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the data set as published")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="a new folder, or one to go on with"
    )
    parser.add_argument(
        "--classes",
        metavar="NAMES",
        help="1.0, 1.5, 2.0, a file of names, or a,b,c [data.yaml's names, or those of the data set]",
    )
    parser.add_argument(
        "--link",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="hard links to the images where the file system can; --no-link copies them [on]",
    )
    cores = usable_cores()
    parser.add_argument("--workers", type=int, default=cores, metavar="N", help=f"threads [{cores}]")
    options = parser.parse_args(arguments)
    if options.source == options.to:
        parser.error(f"--from {options.source} --to {options.to}: nothing to convert")
    try:
        if options.out.resolve() == options.data.resolve():
            raise ConvertError("--out: must not be the folder of --data")
        classes = read_classes(options.classes) if options.classes else None
        dataset = READERS[options.source](options.data, classes)
        done = convert(
            dataset, options.out, options.to, link=options.link, workers=options.workers, progress=True
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    cut = ", and are cut at its border" if options.to == "yolo-obb" else ""
    print(
        f"{options.out}: {done.images} images, {done.objects} objects of {len(dataset.classes)} classes, "
        f"{done.difficult} difficult"
        + (f"; {done.unlabelled} images left out, which nobody annotated" if done.unlabelled else "")
        + (f"; {done.outside} objects reach out of their image{cut}" if done.outside else "")
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
