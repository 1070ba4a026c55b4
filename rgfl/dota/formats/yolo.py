"""YOLO-OBB: `class x1 y1 … x4 y4`, corners as shares of the sides; classes number the names of data.yaml."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rgfl.dota.formats.dataset import ConvertError, Dataset, Item, Size, fail, one_word, parse_number, text_of
from rgfl.dota.images import find_images
from rgfl.dota.labels import DIFFICULT_CUT, YOLO_RANGE, Objects
from rgfl.dota.tiling import clip_objects


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
    names = one_word(classes, data)

    def read(item: Item, size: Size) -> Objects:
        return Objects.empty() if item.label is None else parse_yolo(item.label, len(names), size)

    return Dataset(names, items, read)


def parse_yolo(path: Path, classes: int, size: Size) -> Objects:
    """Objects of one YOLO-OBB label file.

    Raises:
        ConvertError: `file:line: ` and what is wrong there.
    """
    quads, labels = [], []
    for number, line in enumerate(text_of(path).splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 9:
            kind = {5: "; this is a horizontal box of YOLO's detection format"}.get(len(fields), "")
            fail(path, number, f"expected `class x1 y1 … x4 y4`, got {len(fields)} fields{kind}")
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
        config = yaml.safe_load(text_of(found[0]))
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
        for number, line in enumerate(text_of(place).splitlines(), start=1):
            if not line.strip():
                continue
            image = place.parent / line.strip()
            if not image.is_file():
                fail(place, number, f"no such image: {image}")
            images.append(image)
    return images
