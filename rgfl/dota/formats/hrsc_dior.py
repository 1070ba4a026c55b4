"""HRSC2016 and DIOR-R: XML files of ships by centre, size and angle, and of objects by their corners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from rgfl.boxes import to_quads
from rgfl.dota.formats.dataset import (
    SPLITS,
    ConvertError,
    Dataset,
    Item,
    Size,
    check_folder,
    fail,
    one_word,
    parse_number,
    parse_xml,
    text_of,
)
from rgfl.dota.images import find_images
from rgfl.dota.labels import Objects

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


def read_hrsc(data: Path, classes: Sequence[str] | None = None) -> Dataset:
    """HRSC2016 as published: Train/ and Test/, or FullDataSet/ with ImageSets/."""
    names = one_word(classes or HRSC_CLASSES, data)
    if len(names) != 1:
        raise ConvertError(f"--classes: HRSC2016 is read as one class, got {', '.join(names)}")

    def read(item: Item, _: Size) -> Objects | None:
        assert item.label is not None
        return parse_hrsc(item.label)

    return Dataset(names, _xml_items(data), read)


def parse_hrsc(path: Path) -> Objects | None:
    """Objects of one HRSC2016 file, all with label 0; None where it says that nobody annotated the image."""
    root = parse_xml(path)
    if (root.findtext("Annotated") or "1").strip() == "0":
        return None
    found = list(root.iter("HRSC_Object"))
    if not found and root.find("HRSC_Objects") is None and (other := root.find("object")) is not None:
        raise ConvertError(f"{path}: no HRSC_Objects, but {_kind(other)}")
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


def _kind(element: ElementTree.Element) -> str:
    """Whose `object` this is, and what to do with it."""
    if (box := element.find("robndbox")) is not None:
        if box.find("x_left_top") is not None:
            return "objects of DIOR-R; convert them by --from dior-r"
        return "objects of roLabelImg; convert them by --from rolabelimg"
    return "objects of Pascal VOC, which has no turned boxes"


def read_dior(data: Path, classes: Sequence[str] | None = None) -> Dataset:
    """DIOR-R as published: Annotations/Oriented Bounding Boxes/, JPEGImages-…/ and ImageSets/Main/."""
    names = tuple(name.lower() for name in one_word(classes or DIOR_CLASSES, data))
    index = dict.fromkeys(DIOR_CLASSES, -1) | {name: number for number, name in enumerate(names)}

    def read(item: Item, _: Size) -> Objects:
        assert item.label is not None
        return parse_dior(item.label, index)

    return Dataset(names, _xml_items(data), read, known=tuple(index))


def parse_dior(path: Path, index: Mapping[str, int]) -> Objects:
    """Objects of one DIOR-R file; `index` has the labels of the classes, by their names in lower case."""
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


def _xml_items(data: Path) -> list[Item]:
    """Images and their XML files, split as the folders or the lists of ImageSets say."""
    check_folder(data)
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
        for number, line in enumerate(text_of(names).splitlines(), start=1):
            stem = (line.split() or [""])[0]
            if stem and stem not in labels:
                fail(names, number, f"no {annotations / stem}.xml")
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
    value = None if text is None else parse_number(text)
    if value is None:
        came = "it is missing" if text is None else f"got {text.strip()!r}"
        raise ConvertError(f"{path}: {where}: {name} must be a finite number, {came}")
    return value


def _difficult(path: Path, element: ElementTree.Element, where: str) -> int:
    text = (element.findtext("difficult") or "0").strip()
    if text not in ("0", "1"):
        raise ConvertError(f"{path}: {where}: difficult must be 0 or 1, got {text!r}")
    return int(text)
