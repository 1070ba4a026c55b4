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
import os
import shutil
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from rgfl import atomic
from rgfl.dota.formats.dataset import SPLITS, ConvertError, Dataset, Item, Size
from rgfl.dota.formats.hrsc_dior import read_dior, read_hrsc
from rgfl.dota.formats.yolo import read_yolo, yolo_text
from rgfl.dota.images import find_images, read_image
from rgfl.dota.journal import failure, follow, read_journal
from rgfl.dota.labels import (
    DIFFICULT_CUT,
    Objects,
    find_classes,
    in_order,
    read_class_file,
    read_classes,
    read_labels,
    write_labels,
)
from rgfl.processes import usable_cores

Source = Literal["dota", "yolo-obb", "hrsc2016", "dior-r"]
Target = Literal["dota", "yolo-obb"]
JOURNAL = "convert.jsonl"


@dataclass(frozen=True)
class Converted:
    """What a conversion came to: `unlabelled` images were left out, `outside` objects cross the border."""

    images: int = 0
    objects: int = 0
    unlabelled: int = 0
    difficult: int = 0
    outside: int = 0


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
