"""Other data sets' labels to DOTA's labelTxt, and back to YOLO-OBB.

    python -m rgfl.dota.convert --from FORMAT --data DIR --out DIR
    python -m rgfl.dota.convert --from dota --version 1.5 --data DIR --out DIR
    python -m rgfl.dota.convert --from dota --to yolo-obb --data DIR --out DIR

What each format says, and what becomes of it here, in pixels with y down (rgfl/boxes.py):

    dota      DOTA as its archives unpack: the parts of images are put together, the oriented labels of one
              version taken, images of a test set written without labels. Its classes are the version's.
    yolo-obb  `class x1 y1 … x4 y4`, corners as shares of width and height; class numbers index the
              names of data.yaml, or the lines of classes.txt. Images without a label file have no objects.
              Folders are read with all that they hold. --polygons takes outlines of other than four points.
    hrsc2016  XML, mbox_cx, mbox_cy, mbox_w, mbox_h in pixels, mbox_ang in radians from x towards y: our
              convention, so corners follow. All ships are one class. Images that are marked as not
              annotated are left out.
    dior-r    XML, robndbox by its corners left_top, right_top, right_bottom, left_bottom; class names in
              lower case.
    fair1m    XML, points as corners, the name of possibleresult as class; images of test/ without labels.

and of annotation tools, as they save or export them; a polygon of other than four points becomes the
rectangle of least area around it, and shapes without corners (masks, points, circles, …) are refused:

    coco        JSON, polygons in segmentation; CVAT's bbox with attributes.rotation in degrees clockwise
                about its centre; Detectron2's bbox of centre, size and degrees counter-clockwise.
                Horizontal boxes alone are refused. iscrowd becomes difficult 2, which is never trained on.
    cvat        CVAT for images 1.1, XML: box by xtl, ytl, xbr, ybr and rotation in degrees clockwise about
                its centre; polygon. Tags of whole images are passed over.
    labelme     JSON of LabelMe and X-AnyLabeling: polygon, rectangle, rotation, oriented_rectangle.
    rolabelimg  XML, robndbox by cx, cy, w, h in pixels and angle in radians clockwise; bndbox.

and of a GIS:

    geojson     polygons in any reference system; each georeferenced image gets those whose centre it shows. A
                part of a MultiPolygon is an object. A file counts for the images of the split whose folder
                it is in, or for all; NAME.geojson for the image NAME alone, such as those that
                rgfl.trt_runtime.pipeline writes into map/. Classes are in the property class, or in --column.

Tools show images turned by their EXIF orientation, and so they are read here. An image whose size is not
the one that its label file says is an error.

labelTxt wants class names in one word, so "storage tank" becomes "storage-tank", and Task 1 files want
image names so: "IMG (2)" becomes "IMG_(2)". Images of equal names in several folders get those of the
folders, `flight0__DJI_0001`. YOLO has no mark for difficult objects: those are kept, and what is
difficult 2 (cut away by a tile's border, or a crowd) is left out, as is an object of which the image shows
too little.

Images are hard-linked where the file system can, else copied, and so are the world file, .prj and .aux.xml
beside them, unless these are links. Every file appears whole or not at all, and `convert.jsonl` lists the
finished images: the same command goes on after a kill, and converts anew what changed in between.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, get_args

from rgfl import atomic
from rgfl.dota.formats.coco import read_coco
from rgfl.dota.formats.cvat import read_cvat
from rgfl.dota.formats.dataset import (
    JOURNAL,
    SPLITS,
    ConvertError,
    Dataset,
    read_names,
    read_renames,
    with_new_names,
)
from rgfl.dota.formats.dota import read_dota
from rgfl.dota.formats.fair1m import read_fair1m
from rgfl.dota.formats.geojson import read_geojson
from rgfl.dota.formats.hrsc_dior import read_dior, read_hrsc
from rgfl.dota.formats.items import Placed, georeferences, placed, with_georeferences, with_val
from rgfl.dota.formats.labelme import read_labelme
from rgfl.dota.formats.rolabelimg import read_rolabelimg
from rgfl.dota.formats.yolo import read_yolo, seen_objects, yolo_text
from rgfl.dota.images import IMAGE_SUFFIXES, image_size
from rgfl.dota.journal import expect_inside, failure, follow, read_journal, stamp, write_journal
from rgfl.dota.labels import CLASSES, Objects, write_class_file, write_labels
from rgfl.errors import GOES_ON, UserError, one_line, run
from rgfl.folder_lock import LOCK, lock_folder
from rgfl.processes import usable_cores

Source = Literal[
    "dota", "yolo-obb", "hrsc2016", "dior-r", "fair1m", "coco", "cvat", "labelme", "rolabelimg", "geojson"
]
Target = Literal["dota", "yolo-obb"]


@dataclass(frozen=True)
class Converted:
    """What a conversion came to.

    Attributes:
        objects, difficult: as written.
        unlabelled: images that were left out.
        renamed: images that are called otherwise now.
        others: objects left out, of classes that were not asked for.
        outside, unseen, flat, cut_away: objects that YOLO's labels cut or leave out, see `seen_objects`.
    """

    images: int = 0
    objects: int = 0
    unlabelled: int = 0
    difficult: int = 0
    renamed: int = 0
    others: int = 0
    outside: int = 0
    unseen: int = 0
    flat: int = 0
    cut_away: int = 0


READERS: dict[str, Callable[[Path, Sequence[str] | None], Dataset]] = {
    "dota": read_dota,
    "yolo-obb": read_yolo,
    "hrsc2016": read_hrsc,
    "dior-r": read_dior,
    "fair1m": read_fair1m,
    "coco": read_coco,
    "cvat": read_cvat,
    "labelme": read_labelme,
    "rolabelimg": read_rolabelimg,
    "geojson": read_geojson,
}


# ---------------------------------------------------------------------------------------------
# Writing


def convert(
    dataset: Dataset,
    out: Path,
    to: Target = "dota",
    *,
    link: bool = True,
    val_share: float | None = None,
    seed: int = 0,
    workers: int = 1,
    progress: bool = False,
) -> Converted:
    """Write `dataset` into `out`, taking up where a killed run left off.

    Args:
        val_share: of the images of a data set with one split, to validate; chosen by `seed`.

    Raises:
        ConvertError: `out` holds something else, two images would have one name, or images failed (the
            message has their errors; the others are finished).
        FolderInUse: another process writes into `out`.
    """
    places = placed(dataset.items)
    if val_share is not None:
        places = with_val(places, val_share, seed)
    places = with_georeferences(places)
    if not (out / JOURNAL).is_file() and out.is_dir() and {path.name for path in out.iterdir()} - {LOCK}:
        raise ConvertError(f"{out}: holds files that were not converted here; name another --out")
    out.mkdir(parents=True, exist_ok=True)
    with lock_folder(out):
        done = _open_journal(out, to, dataset, places)
        waiting = [place for place in places if place.key not in done]

        def work(place: Placed) -> dict[str, Any]:
            try:
                return _convert_image(place, dataset, out, to, link)
            except (UserError, OSError) as error:
                return {"error": one_line(error)}

        def entries() -> Generator[dict[str, Any], None, None]:
            with ThreadPoolExecutor(max(workers, 1)) as pool:
                try:
                    yield from pool.map(work, waiting)
                except BaseException:  # the reader stopped: so do the images that have not begun
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise

        with closing(entries()) as finished:
            errors = follow(finished, out / JOURNAL, done, len(places), task="converting", progress=progress)
        if errors:
            raise ConvertError(failure(errors, len(places)))
        if to == "yolo-obb":
            atomic.write_text(
                out / "data.yaml", _yolo_yaml({place.split for place in places}, dataset.classes)
            )
        else:
            write_class_file(out / "classes.txt", dataset.classes)
    totals = {name: sum(entry[name] for entry in done.values()) for name in Converted.__dataclass_fields__}
    return Converted(**totals)


def _files(key: str, suffix: str, out: Path, to: Target) -> tuple[Path, Path]:
    """Where the image with this suffix and its labels go."""
    split, name = key.split("/", 1)
    if to == "yolo-obb":
        images, labels = out / "images" / split, out / "labels" / split
    else:
        images, labels = out / split / "images", out / split / "labelTxt"
    return images / f"{name}{suffix}", labels / f"{name}.txt"


def _convert_image(place: Placed, dataset: Dataset, out: Path, to: Target, link: bool) -> dict[str, Any]:
    """Write image and labels; the journal's entry."""
    item = place.item
    entry = {"image": place.key, "suffix": item.image.suffix, "source": _stamp(place)}
    size = cache(partial(_size, item.image))
    objects = dataset.read(item, size)
    counts = dict.fromkeys(Converted.__dataclass_fields__, 0)
    if objects is None and not item.bare:
        counts["unlabelled"] = 1
        return entry | counts
    width, height = size()  # no link to what is no image gets into the data set
    image, label = _files(place.key, item.image.suffix, out, to)
    for source, target in zip(_beside(item.image, place.beside), _beside(image, place.beside), strict=True):
        atomic.place(source, target, link)
    atomic.place(item.image, image, link)
    counts |= {"images": 1, "renamed": int(place.name != item.image.stem)}
    if objects is None:
        return entry | counts
    counts["others"] = int((objects.labels < 0).sum())
    objects = objects[objects.labels >= 0]
    if to == "yolo-obb":
        objects, left_out = seen_objects(objects, width, height)
        counts |= left_out
        atomic.write_text(label, yolo_text(objects, width, height))
    else:
        write_labels(label, objects, dataset.classes)
    counts |= {"objects": len(objects), "difficult": int((objects.difficult > 0).sum())}
    return entry | counts


def _size(image: Path) -> tuple[int, int]:
    """(width, height)."""
    height, width = image_size(image)
    return width, height


def _beside(image: Path, endings: Iterable[str]) -> list[Path]:
    """Files whose names are the image's stem and these endings."""
    return [image.with_name(image.stem + ending) for ending in endings]


def _yolo_yaml(found: Iterable[str], classes: Sequence[str]) -> str:
    splits = sorted(found, key=lambda name: (*SPLITS, name).index(name))
    lines = [f"{split or 'train'}: {f'images/{split}' if split else 'images'}\n" for split in splits]
    if not any(line.startswith("val:") for line in lines):
        lines.append(f"val: {lines[0].split(': ')[1].strip()}  # there is no other\n")
    # JSON strings are YAML strings, whatever is in them.
    names = [f"  {index}: {json.dumps(name, ensure_ascii=False)}\n" for index, name in enumerate(classes)]
    return "".join([*lines, "names:\n", *names])


def _stamp(place: Placed) -> list[int]:
    """Sizes and times of all files that an image and its labels are made from."""
    item = place.item
    paths = (item.image, item.label, *item.shared, *_beside(item.image, place.beside))
    return [number for path in paths if path is not None for number in stamp(path)]


def _open_journal(
    out: Path, to: Target, dataset: Dataset, places: Sequence[Placed]
) -> dict[str, dict[str, Any]]:
    """Entries of images that need no work; files of images that are gone or changed are removed.

    Raises:
        UserError: a link leads a folder of the images or labels, here or by the journal, out of `out`.
    """
    journal = out / JOURNAL
    head: dict[str, Any] = {
        "convert": 3,
        "to": to,
        "classes": list(dataset.classes),
        "numbered": list(dataset.numbered),
    }
    if dataset.column:
        head["column"] = dataset.column
    if dataset.renames:
        head["renames"] = list(dataset.renames)
    done: dict[str, dict[str, Any]] = {}
    by_key = {place.key: place for place in places}
    _expect_inside(by_key, out, to)
    if journal.is_file():
        entries = read_journal(
            journal, {"suffix": str, "source": list, **dict.fromkeys(Converted.__dataclass_fields__, int)}
        )
        if not entries or entries[0] != head:
            raise ConvertError(
                f"{out}: was converted by another version, or with another --to or other classes (--column) "
                "or names (--rename); name another --out, or remove it"
            )
        fresh: list[dict[str, Any]] = []
        stale: list[dict[str, Any]] = []
        for entry in filter(_is_ours, entries[1:]):
            place = by_key.get(entry["image"])
            (fresh if place and entry["source"] == _stamp(place) else stale).append(entry)
        _expect_inside((entry["image"] for entry in stale), out, to)
        gone = {entry["image"] for entry in stale} - by_key.keys()
        if gone and not fresh:
            raise ConvertError(
                f"{out}: holds {len(gone)} other images, such as {min(gone)}; name another --out, or "
                "remove it"
            )
        for entry in stale:  # first, as names that differ in case alone may be one file
            image, label = _files(entry["image"], entry["suffix"], out, to)
            for path in (image, label, *_beside(image, georeferences(image.suffix))):
                path.unlink(missing_ok=True)
        for entry in fresh:
            image, label = _files(entry["image"], entry["suffix"], out, to)
            place = by_key[entry["image"]]
            parts = [image, *_beside(image, place.beside)]
            whole = all(path.is_file() for path in parts) and (place.item.bare or label.is_file())
            if entry["unlabelled"] or whole:
                done[entry["image"]] = entry
    write_journal(journal, head, done.values())
    return done


def _expect_inside(keys: Iterable[str], out: Path, to: Target) -> None:
    """`expect_inside` of each folder that files of these images are in."""
    for folder in sorted({path.parent for key in keys for path in _files(key, "", out, to)}):
        expect_inside(folder, out)


def _is_ours(entry: dict[str, Any]) -> bool:
    """Whether the files that an entry names, which may be removed, are of this folder."""
    split, _, name = entry["image"].partition("/")
    return split != ".." and "/" not in name and entry["suffix"].lower() in IMAGE_SUFFIXES


# ---------------------------------------------------------------------------------------------
# Command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m rgfl.dota.convert`; 0, or 2 after an error message."""
    parser = argparse.ArgumentParser(
        prog="python -m rgfl.dota.convert",
        description="Convert the labels of other data sets to DOTA's labelTxt, or DOTA's to YOLO-OBB; or put "
        "DOTA as published in order. "
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
        help="1.0, 1.5, 2.0, a file of names, or a,b,c: the classes to take, as the data set names them, "
        "in the order to write; objects of others are left out and counted. Without names in data.yaml or "
        "classes.txt they are what the numbers of YOLO-OBB mean [all, in the data set's order]",
    )
    parser.add_argument(
        "--rename",
        metavar="OLD=NEW,…",
        help="other names for classes, of those that --classes takes where it is given; classes of one new "
        "name become one, in the place of the first",
    )
    parser.add_argument(
        "--val-share",
        type=float,
        metavar="X",
        help="put this share of the images in val and the rest in train, where the data set has one split; "
        "images of one sub-folder (a flight, but not part1 …) stay together where there are several",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another choice of --val-share [0]")
    parser.add_argument(
        "--version",
        choices=tuple(CLASSES),
        help="of dota: take this version's labels [those that are there]",
    )
    parser.add_argument(
        "--polygons",
        action="store_true",
        help="of yolo-obb: take polygons of other than four points, as of segmentation, by the rectangle of "
        "least area around each",
    )
    parser.add_argument(
        "--column",
        metavar="NAME",
        help="of geojson: the property that holds the classes [class, else the only one of text]",
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
    if options.source == options.to == "yolo-obb" and options.val_share is None and not options.rename:
        parser.error("--from yolo-obb --to yolo-obb: nothing to convert")
    if options.version and options.source != "dota":
        parser.error(f"--version: is for --from dota, got {options.source}")
    if options.polygons and options.source != "yolo-obb":
        parser.error(f"--polygons: is for --from yolo-obb, got {options.source}")
    if options.column and options.source != "geojson":
        parser.error(f"--column: is for --from geojson, got {options.source}")
    return run("convert", lambda: convert_all(options), interrupted=GOES_ON)


def convert_all(options: argparse.Namespace) -> int:
    """What the command does."""
    if options.out.resolve() == options.data.resolve():
        raise ConvertError("--out: must not be the folder of --data")
    classes = read_names(options.classes) if options.classes else None
    if pairs := [name for name in classes or () if "=" in name]:
        raise ConvertError(f"--classes: expected names, got {pairs[0]}; rename by --rename {','.join(pairs)}")
    new = read_renames(options.rename) if options.rename else {}
    reader = READERS[options.source]
    if options.version:
        reader = partial(read_dota, version=options.version)
    elif options.polygons:
        reader = partial(read_yolo, polygons=True)
    elif options.column:
        reader = partial(read_geojson, column=options.column)
    found = reader(options.data, classes)
    dataset = with_new_names(found, new) if new else found
    if classes:
        _expect_objects(found)
    for note in dataset.notes:
        print(f"warning: {note}", file=sys.stderr)
    done = convert(
        dataset,
        options.out,
        options.to,
        link=options.link,
        val_share=options.val_share,
        seed=options.seed,
        workers=options.workers,
        progress=True,
    )
    print(f"{options.out}: {'; '.join(_summary(done, dataset))}")
    return 0


def _expect_objects(dataset: Dataset) -> None:
    """
    Raises:
        ConvertError: there are objects, and none is of `dataset.classes`.
    """
    others = False
    for item in dataset.items:
        with suppress(UserError, OSError):  # told when it is converted
            objects = dataset.read(item, partial(_size, item.image)) or Objects.empty()
            if (objects.labels >= 0).any():
                return
            others |= len(objects) > 0
    if others:
        there = [name for name in dataset.known if name not in dataset.classes]
        raise ConvertError(
            f"--classes: no object is of {', '.join(dataset.classes)}; the data set has {', '.join(there)}"
        )


def _summary(done: Converted, dataset: Dataset) -> list[str]:
    """What to tell at the end; of what was not as it should be, only what there was."""
    counts = {
        "images without labels, of a test set": sum(item.bare for item in dataset.items),
        "images left out, which nobody annotated": done.unlabelled,
        "images renamed, for white space or equal names": done.renamed,
        "objects reach out of their image, and are cut at its border": done.outside,
        "objects left out, of classes that --classes lacks": done.others,
        "objects left out, of which the image shows less than 0.7": done.unseen,
        "objects left out, which have no area": done.flat,
        "objects left out, of difficult 2: cut away by a tile's border, or crowds": done.cut_away,
    }
    return [
        f"{done.images} images, {done.objects} objects of {len(dataset.classes)} classes, "
        f"{done.difficult} difficult",
        *(f"{count} {what}" for what, count in counts.items() if count),
        *dataset.notes,
    ]


if __name__ == "__main__":
    sys.exit(main())
