"""What a training folder holds, what is wrong with it, which tiles come out, and who makes them."""

import dataclasses
import math
import multiprocessing
import pickle
import struct
import time
import warnings
import zlib
from collections import Counter
from multiprocessing import resource_sharer
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiff_bytes import tiff_bytes
from tiny_training import PATIENCE

from rgfl import boxes
from rgfl import data as rgfl_data
from rgfl.data import (
    GROUP_PIXELS,
    Batch,
    DataError,
    Loader,
    Picture,
    Tiles,
    Window,
    _Sent,
    _visible,
    batches,
    collate,
    list_windows,
    read_dataset,
    steps_per_epoch,
)
from rgfl.dota.images import ImageError, read_image
from rgfl.dota.labels import LabelError, Objects, read_labels, write_labels
from rgfl.dota.tiling import TileSettings, split, windows
from rgfl.nn.assign import Assigner, Targets
from rgfl.recipes import AugmentConfig, DataConfig, RunConfig
from rgfl.train import parse

PLAIN = AugmentConfig()
SMALL = DataConfig(tile_size=128, stride=64)
GRID = DataConfig(tile_size=128, stride=64, windows="grid", empty_share=0.0)
ASSIGN = Assigner(strides=(8, 16, 32, 64, 128), offset=0.5, anchor_scale=8.0, topk=9)
SQUARE = "10 10 40 10 40 30 10 30"


def write_split(folder, images):
    """images: {name: (size or array, label text or None)}"""
    for kind in ("images", "labelTxt"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for name, (pixels, text) in images.items():
        if isinstance(pixels, tuple):
            pixels = np.random.default_rng(len(name)).integers(0, 256, (*pixels, 3), dtype=np.uint8)
        assert cv2.imwrite(str(folder / "images" / f"{name}.png"), pixels[..., ::-1])
        if text is not None:
            (folder / "labelTxt" / f"{name}.txt").write_text(text)


@pytest.fixture
def folder(tmp_path):
    write_split(
        tmp_path / "train",
        {
            "small": ((60, 80), f"{SQUARE} ship 0\n"),
            "tile": ((128, 128), f"{SQUARE} plane 0\n50 50 90 60 80 100 40 90 ship 1\n"),
            "large": ((300, 400), "200 200 260 200 260 230 200 230 plane 0\n"),
        },
    )
    write_split(tmp_path / "val", {"v": ((128, 128), "")})
    return tmp_path


def tiles_of(folder, data=SMALL, augment=PLAIN, seed=0):
    dataset = read_dataset(folder)
    return Tiles(dataset.train, dataset.classes, data, augment, seed, cache_mb=1)


def test_reads_both_splits_with_classes_in_official_order(folder):
    dataset = read_dataset(folder)
    assert dataset.classes == ("plane", "ship")
    assert [(p.name, p.height, p.width, len(p.objects)) for p in dataset.train] == [
        ("large", 300, 400, 1),
        ("small", 60, 80, 1),
        ("tile", 128, 128, 2),
    ]
    assert [len(p.objects) for p in dataset.val] == [0]


def test_classes_from_argument_then_file_then_labels(folder):
    assert read_dataset(folder, "ship,plane").classes == ("ship", "plane")
    (folder / "classes.txt").write_text("plane\nship\nharbor\n")
    assert read_dataset(folder).classes == ("plane", "ship", "harbor")
    assert len(read_dataset(folder, "1.0").classes) == 15


def test_one_class(folder):
    for name in ("tile", "large"):
        (folder / f"train/labelTxt/{name}.txt").write_text("")
    dataset = read_dataset(folder)
    assert dataset.classes == ("ship",)


def test_no_object_at_all(folder):
    for path in (folder / "train/labelTxt").glob("*.txt"):
        path.write_text("")
    with pytest.raises(DataError, match="no object in any label file"):
        read_dataset(folder)


def test_no_object_of_the_classes_that_are_asked_for(folder):
    """It trained on nothing, with a warning."""
    (folder / "classes.txt").write_text("plane\nship\n")
    for path in (folder / "train/labelTxt").glob("*.txt"):
        path.write_text("")
    with pytest.raises(DataError, match=r"labelTxt: no object of plane, ship, so there is nothing to learn$"):
        read_dataset(folder)


@pytest.mark.parametrize("missing", ["train", "train/images", "val/labelTxt"])
def test_a_missing_folder_is_named(folder, missing):
    (folder / missing).rename(folder / "away")
    with pytest.raises(DataError, match="no such folder; training data hold") as error:
        read_dataset(folder)
    assert missing in str(error.value)


def test_labels_of_an_archive_are_found(folder):
    (folder / "train/labelTxt-v1.0").mkdir()
    (folder / "train/labelTxt").rename(folder / "train/labelTxt-v1.0/labelTxt")
    with pytest.raises(
        DataError, match=r": labelTxt-v1.0/labelTxt/ \(3 files\); DOTA as .*convert --from dota"
    ):
        read_dataset(folder)
    (folder / "train/labelTxt").symlink_to("labelTxt-v1.0/labelTxt")
    assert len(read_dataset(folder).train) == 3
    (folder / "data.yaml").touch()  # DOTA's layout beside YOLO's
    (folder / "val/labelTxt").rename(folder / "val/labels")
    with pytest.raises(DataError, match=r"found in .*/val: labels/ \(1 files\); to take them: ln -s"):
        read_dataset(folder)


@pytest.mark.parametrize("layout", ["images/train labels/train", "train/images train/labels", "data.yaml"])
def test_a_yolo_data_set_is_told_how_to_be_converted(tmp_path, layout):
    for name in layout.split():
        if name == "data.yaml":
            (tmp_path / name).write_text("names: [car]\n")
        else:
            (tmp_path / name).mkdir(parents=True)
            (tmp_path / name / "1.txt").write_text("0 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2\n")
    with pytest.raises(DataError) as error:
        read_dataset(tmp_path)
    command = f"python -m rgfl.dota.convert --from yolo-obb --data {tmp_path} --out DIR"
    assert str(error.value).endswith(f"labelTxt/; this looks like YOLO-OBB: {command}")


def test_a_data_set_that_is_not_split_is_told_what_splits_it(folder):
    with pytest.raises(
        DataError, match=r"--data \S+/train --out DIR --val-share 0\.2 splits them, "
    ) as error:
        read_dataset(folder / "train")
    assert str(error.value).endswith("--train-splits . --eval-every 0 learns from all")
    flags = ["--recipe", "gfl_lite", "--data", "D", "--out", "R", "--train-splits", ".", "--eval-every", "0"]
    recipe, _ = parse(flags)
    alone = read_dataset(folder / "train", with_val=False, train_splits=recipe.data.train_splits)
    assert [picture.name for picture in alone.train] == ["large", "small", "tile"]


def test_several_splits_are_learned_from(folder):
    """The published trainval row: the recipe of this name learned from train/ alone."""
    both = read_dataset(folder, with_val=False, train_splits=("train", "val"))
    assert [picture.name for picture in both.train] == ["large", "small", "tile", "v"]
    assert both.val == []
    (folder / "val/labelTxt/v.txt").write_text(f"{SQUARE} harbor 0\n")
    assert read_dataset(folder, with_val=False, train_splits=("train", "val")).classes[-1] == "harbor"
    for kind in ("images/v.png", "labelTxt/v.txt"):
        path = folder / "val" / kind
        path.rename(path.with_stem("tile"))
    with pytest.raises(DataError, match="image 'tile' is in more than one of train, val; rename one"):
        read_dataset(folder, with_val=False, train_splits=("train", "val"))


def test_images_of_both_splits_are_told(folder):
    for kind in ("images/tile.png", "labelTxt/tile.txt"):
        (folder / "val" / kind).write_bytes((folder / "train" / kind).read_bytes())
    with pytest.warns(UserWarning, match="1 of 2 validation images are training images too, such as tile"):
        read_dataset(folder)
    (folder / "val/labelTxt/tile.txt").write_text("")  # another image of that name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_dataset(folder)


def test_tiles_of_one_scene_in_both_splits_are_told(folder):
    def rename(split, old, new):
        for kind, suffix in (("images", ".png"), ("labelTxt", ".txt")):
            (folder / split / kind / f"{old}{suffix}").rename(folder / split / kind / f"{new}{suffix}")

    rename("train", "tile", "P1__1__0___0")
    rename("val", "v", "P1__1__824___0")
    with pytest.warns(UserWarning, match="share scenes, by the names of their tiles: 1, such as P1; AP"):
        read_dataset(folder)
    rename("val", "P1__1__824___0", "P1")
    with pytest.warns(UserWarning, match="such as P1; AP says"):
        read_dataset(folder)
    rename("val", "P1", "P2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_dataset(folder)


def test_without_evaluation_val_may_be_missing(folder):
    (folder / "val").rename(folder / "away")
    assert read_dataset(folder, with_val=False).val == []


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_bad_label_is_named_by_file_and_line(folder, split):
    path = next((folder / split / "labelTxt").glob("*.txt"))
    path.write_text(f"imagesource:x\n{SQUARE} ship 0\n10 10 40 10 40 ? 10 30 ship 0\n")
    with pytest.raises(LabelError, match=rf"^{path}:3: .*'\?'"):
        read_dataset(folder)


def test_images_without_labels_and_labels_without_images_are_named(folder):
    (folder / "train/labelTxt/tile.txt").rename(folder / "train/labelTxt/other.txt")
    with pytest.raises(DataError, match=r"tile.png: no label file .*tile.txt; an empty file says"):
        read_dataset(folder)
    (folder / "train/labelTxt/tile.txt").write_text("")
    with pytest.raises(DataError, match=r"other.txt: no image of this name"):
        read_dataset(folder)


def test_unreadable_images_are_named(folder):
    path = folder / "train/images/tile.png"
    whole = path.read_bytes()
    path.write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"tile\.png: not an image that OpenCV reads"):
        read_dataset(folder)
    path.write_bytes(whole[: len(whole) // 2])  # its header is whole: seen when its pixels are read
    error = collate([tiles_of(folder)[0, index] for index in range(len(tiles_of(folder)))], ASSIGN)
    assert isinstance(error, ImageError)
    assert "tile.png: the image is cut off" in str(error)


def exif(orientation, kind=3):
    """TIFF bytes of an orientation, as a number (kind 3) or, as some cameras wrote it, as text (kind 2)."""
    value = struct.pack(">HH", orientation, 0) if kind == 3 else b"%d\0\0\0" % orientation
    return b"MM\0*" + struct.pack(">IHHHI", 8, 1, 274, kind, 1 if kind == 3 else 2) + value + bytes(4)


def with_exif(image, suffix, block):
    data = cv2.imencode(suffix, image)[1].tobytes()
    if suffix == ".jpg":
        block = b"Exif\0\0" + block
        return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]
    chunk = b"eXIf" + block
    return (
        data[:33] + struct.pack(">I", len(block)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]
    )


EXIFS = {f"orientation {orientation}": exif(orientation) for orientation in (0, 1, 3, 5, 6, 8, 9)}
EXIFS |= {f"cut off after {length}": exif(6)[:length] for length in (1, 5, 9, 15, 20, 23, 28)}
EXIFS |= {"as text": exif(6, kind=2), "nothing": b"", "no TIFF": b"GIF89a" * 9}


def sizes_of(folder):
    return [(picture.height, picture.width) for picture in read_dataset(folder).train if picture.name == "t"]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("block", EXIFS.values(), ids=EXIFS)
def test_sizes_are_those_of_the_pixels_whatever_exif_says(folder, suffix, block):
    """A PNG that OpenCV turns was listed unturned; EXIF that is slightly broken ended in a TypeError."""
    for path in (folder / "train/images").glob("tile*"):
        path.unlink()
    (folder / "train/labelTxt/tile.txt").rename(folder / "train/labelTxt/t.txt")
    path = folder / f"train/images/t{suffix}"
    path.write_bytes(with_exif(np.zeros((120, 200, 3), np.uint8), suffix, block))
    assert sizes_of(folder) == [read_image(path).shape[:2]]


@pytest.mark.parametrize("orientation", [0, 1, 3, 6, 8, 9])
@pytest.mark.parametrize("samples", [1, 3, 4])
def test_sizes_of_tiffs(folder, orientation, samples):
    """Of four bands Pillow reads no header, and it swaps the sides of a turned one since version 13."""
    (folder / "train/images/tile.png").unlink()
    (folder / "train/labelTxt/tile.txt").rename(folder / "train/labelTxt/t.txt")
    path = folder / "train/images/t.tif"
    for big in (False, True):
        pixels = np.zeros((120, 200, samples), np.uint16)
        path.write_bytes(tiff_bytes(pixels, 1, big=big, tags={274: (3, [orientation])}))
        assert sizes_of(folder) == [read_image(path).shape[:2]]
        assert sizes_of(folder) == [(200, 120) if orientation in (6, 8) else (120, 200)]


def test_an_image_whose_header_no_library_reads_is_measured(folder, monkeypatch):
    monkeypatch.setattr("PIL.Image.open", lambda _path: 1 / 0)
    assert [(one.height, one.width) for one in read_dataset(folder).train] == [
        (300, 400),
        (60, 80),
        (128, 128),
    ]


def test_pixels_of_another_size_than_was_read_are_an_error(folder):
    """Windows of a wrong size miss objects, and nobody would know."""
    tiles = tiles_of(folder)
    path = folder / "train/images/small.png"
    assert cv2.imwrite(str(path), np.zeros((80, 60, 3), np.uint8))
    (error,) = (
        tile for tile in (tiles[0, index] for index in range(len(tiles))) if isinstance(tile, Exception)
    )
    assert isinstance(error, ImageError)
    assert "its header says 60 × 80 (height × width), its pixels are 80 × 60; rewrite it" in str(error)


def test_a_name_that_the_evaluation_cannot_write_is_refused_first(folder):
    (folder / "val/images/v.png").rename(folder / "val/images/v 1.png")
    (folder / "val/labelTxt/v.txt").rename(folder / "val/labelTxt/v 1.txt")
    with pytest.raises(DataError, match=r"v 1\.png: white space in an image's name"):
        read_dataset(folder)


def test_a_class_list_that_cannot_be_is_told_as_the_data_are(folder):
    with pytest.raises(DataError, match=r"'no.such': neither a DOTA version"):
        read_dataset(folder, "no.such")
    (folder / "classes.txt").write_text("plane,ship\n")
    with pytest.raises(DataError, match=r"classes.txt: class name 'plane,ship' has a comma"):
        read_dataset(folder)


def test_digest_sees_labels_and_classes_and_not_the_place(folder, tmp_path_factory):
    before = read_dataset(folder).digest()
    assert read_dataset(folder).digest() == before
    moved = tmp_path_factory.mktemp("moved") / "data"
    folder.rename(moved)
    assert read_dataset(moved).digest() == before
    assert read_dataset(moved, "ship,plane").digest() != before
    (moved / "val/labelTxt/v.txt").write_text(f"{SQUARE} ship 0\n")
    assert read_dataset(moved).digest() != before


def test_classes_that_are_not_asked_for_are_left_out_and_counted(folder):
    """A detector of ships alone could not be trained on data with planes."""
    with pytest.raises(LabelError, match="unknown class 'plane'"):
        read_dataset(folder, "ship")
    (folder / "train/labelTxt/._tile.txt").write_bytes(b"\xff\xfe")  # a Mac's own file is no label file
    (folder / "val/labelTxt/v.txt").write_bytes(b"\xef\xbb\xbf" + f"{SQUARE} car/truck 0\r\n".encode())
    ships = read_dataset(folder, "ship", ignore_unknown=True)
    assert ships.classes == ("ship",)
    assert [picture.objects.labels.tolist() for picture in ships.train] == [[], [0], [0]]
    assert [len(picture.objects) for picture in ships.val] == [0]
    assert ships.left_out == {"plane": 2, "car/truck": 1}
    assert read_dataset(folder, "ship", with_val=False, ignore_unknown=True).left_out == {"plane": 2}
    whole = read_dataset(folder, "plane,ship", with_val=False, ignore_unknown=True)
    assert whole.left_out == {}
    assert whole.digest() != ships.digest()


def test_a_class_that_no_label_has_is_no_training(folder):
    with pytest.raises(
        DataError, match=r"no object of shpi, so there is nothing to learn; the labels hold plane, ship"
    ):
        read_dataset(folder, "shpi", ignore_unknown=True)


# ------------------------------------------------------------------------------------------------ tiles


def test_random_windows_cover_each_picture_once_a_epoch(folder):
    windows = list_windows(read_dataset(folder).train, SMALL)
    assert [window.picture for window in windows] == [0] * 7 + [1, 2]  # 300·400 / 128² = 7.3


def test_grid_windows_are_those_with_objects(folder):
    pictures = read_dataset(folder).train
    held = list_windows(pictures, GRID)
    assert [window.corner for window in held if window.picture == 0] == [
        (x, y) for y in (128, 172) for x in (128, 192)
    ]
    everything = list_windows(pictures, dataclasses.replace(GRID, empty_share=1.0))
    assert len(everything) == 4 * 6 + 2
    assert len(held) == 6
    for share, count in ((0.25, 8), (0.5, 12), (0.76, 25), (0.9, 26)):
        data = dataclasses.replace(GRID, empty_share=share)
        chosen = list_windows(pictures, data, seed=3)
        assert len(chosen) == count
        assert chosen == [window for window in everything if window in chosen]  # in order, each once
        assert set(held) <= set(chosen)
        assert list_windows(pictures, data, seed=3) == chosen
    few = dataclasses.replace(GRID, empty_share=0.25)
    assert list_windows(pictures, few, seed=3) != list_windows(pictures, few, seed=4)


def test_random_windows_of_images_without_objects_are_a_share(folder):
    """Of 3,000 images 2,100 held none, and 70 % of the windows were of them."""
    objects = squares((10, 10))
    difficult = dataclasses.replace(objects, difficult=np.array([2], np.int32))
    pictures = [Picture(str(i), Path("P.png"), 256, 256, objects) for i in range(9)]
    pictures += [Picture(str(i), Path("P.png"), 256, 256, Objects.empty()) for i in range(9, 29)]
    pictures += [Picture("29", Path("P.png"), 256, 256, difficult)]  # not to be learned either
    for share, empty in ((0.0, 0), (0.25, 12), (0.5, 36), (1.0, 84)):
        data = dataclasses.replace(SMALL, empty_share=share)
        owners = [window.picture for window in list_windows(pictures, data)]
        assert owners == sorted(owners)
        assert sum(owner < 9 for owner in owners) == 36
        assert sum(owner >= 9 for owner in owners) == empty
        assert Tiles(pictures, ("a",), data, PLAIN, 0).without_objects() == (21, empty)


def test_pictures_of_rare_classes_come_more_often(folder):
    """r = max(1, √(t / f)) of the rarest class, in the mean over the windows."""
    common, rare = squares((10, 10)), squares((10, 10), (50, 50))
    rare.labels[1] = 1
    pictures = [Picture(str(i), Path("P.png"), 1280, 1280, common) for i in range(98)]
    pictures += [Picture(str(i), Path("P.png"), 1280, 1280, rare) for i in range(98, 100)]
    for kind in ("random", "grid"):
        data = DataConfig(tile_size=128, stride=128, windows=kind, empty_share=1.0, repeat_below=0.125)
        windows = list_windows(pictures, data)
        counts = Counter(window.picture for window in windows)
        assert {counts[index] for index in range(98)} == {100}
        for index in (98, 99):
            assert 200 <= counts[index] <= 300
            assert counts[index] == pytest.approx(250, abs=30)  # √(0.125 / 0.02) = 2.5
        owners = [window.picture for window in windows]
        assert owners == sorted(owners)
        assert list_windows(pictures, data) == windows
        assert len(list_windows(pictures, dataclasses.replace(data, repeat_below=0.0))) == 10_000


def test_random_windows_are_placed_around_each_class_alike_where_rare_ones_count():
    objects = squares(*[(10, y) for y in range(0, 400, 2)], (3000, 3000))
    objects.labels[-1] = 1
    picture = Picture("P", Path("P.png"), 4000, 4000, objects)
    shares = []
    for share in (0.0, 0.1):
        data = dataclasses.replace(SMALL, repeat_below=share, object_probability=1.0)
        tiles, rng = Tiles([picture], ("a", "b"), data, PLAIN, 0), np.random.default_rng(0)
        centers = [tiles._random_center(rng, picture, 128, 1.0)[0] for _ in range(400)]
        shares.append(np.mean([x > 2000 for x in centers]))
    assert shares[0] < 0.03
    assert shares[1] == pytest.approx(0.5, abs=0.1)


def squares(*corners):
    """Objects of 20 pixels a side, upper left corners given."""
    quads = np.array([[x, y, x + 20, y, x + 20, y + 20, x, y + 20] for x, y in corners], float)
    return Objects(quads, np.zeros(len(quads), np.int32), np.zeros(len(quads), np.int32))


def drawn_objects(rng, count, extent):
    """Quads of any kind in and around a picture, many with corners where windows end, some of no area."""
    corners = rng.uniform(-40, extent + 40, (count, 1, 2)) + rng.uniform(-60, 60, (count, 4, 2))
    kind = rng.integers(4, size=count)
    corners[kind == 1] = np.round(corners[kind == 1] / 16) * 16
    corners[kind == 2, 2:] = corners[kind == 2, :2]  # there and back: a line
    upright = kind == 3
    low, high = corners[upright].min(1), corners[upright].max(1)
    corners[upright] = np.stack([low, np.stack([high[:, 0], low[:, 1]], 1), high,
                                 np.stack([low[:, 0], high[:, 1]], 1)], 1)  # fmt: skip
    difficult = rng.integers(3, size=count).astype(np.int32)
    return Objects(corners.reshape(-1, 8), np.zeros(count, np.int32), difficult)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_grid_windows_are_those_in_which_clipping_leaves_an_object(seed):
    rng = np.random.default_rng(seed)
    pictures = [
        Picture(str(count), Path("P.png"), *rng.integers(40, 500, 2).tolist(), drawn_objects(rng, count, 500))
        for count in (0, 1, 3, 12)
    ]
    for cut in ("whole", "clipped"):
        for train_difficult in (True, False):
            grid = DataConfig(
                tile_size=128, stride=96, windows="grid", empty_share=0.0, cut=cut,
                train_difficult=train_difficult,
                min_visible=float(rng.choice([0.0, 0.3, 0.7, 1.0])),
            )  # fmt: skip
            expected = [
                Window(index, (x, y))
                for index, picture in enumerate(pictures)
                for x, y in windows(picture.height, picture.width, 128, 96)
                if len(_visible(picture.objects, picture.corners(), x, y, 128, grid))
            ]
            assert list_windows(pictures, grid) == expected


def test_a_window_that_holds_the_whole_of_an_object_is_not_clipped(folder, monkeypatch):
    """To list the windows of 2,000 images with 200 objects each took up to 24 s at every start."""
    clipped, honest = [], rgfl_data.clip_objects

    def clip(objects, *place, **more):
        clipped.append(len(objects))
        return honest(objects, *place, **more)

    monkeypatch.setattr(rgfl_data, "clip_objects", clip)
    everywhere = squares(*[(x, y) for x in range(0, 980, 40) for y in range(0, 980, 40)])
    for objects, held, asked in (
        (everywhere, 15 * 15, []),
        (squares((0, 0)), 1, []),
        (squares((0, 0), (50, 50)), 1, [1, 1, 1]),  # the windows at 64 hold 6 of its 20 pixels a side
    ):
        clipped.clear()
        assert len(list_windows([Picture("P", Path("P.png"), 1000, 1000, objects)], GRID)) == held
        assert clipped == asked


BESIDE = "\n".join([
    "20 20 60 20 60 50 20 50 ship 0",
    "60 10 90 10 90 40 60 40 ship 0",  # two thirds of it in the picture, 80 pixels wide
    "70 30 90 30 90 50 70 50 ship 0",  # half of it
    "85 10 125 10 125 50 85 50 ship 0",  # beside the picture: black in every tile
])  # fmt: skip


@pytest.mark.parametrize("kind", ["grid", "random"])
@pytest.mark.parametrize("turned", [PLAIN, AugmentConfig(rotate=1.0, flip_horizontal=0.5, right_angle=0.5)])
def test_what_lies_beside_the_picture_is_not_learned_as_padding(folder, kind, turned):
    """rgfl.dota.tiling leaves it out; training on the same image whole took it for an object."""
    (folder / "train/labelTxt/small.txt").write_text(BESIDE)  # 60 × 80
    data = DataConfig(tile_size=128, stride=64, windows=kind, min_visible=0.6)
    tiles = tiles_of(folder, data, turned)
    for index, window in enumerate(tiles.windows):
        tile = tiles.tile(0, index)
        if tiles.pictures[window.picture].name == "small":
            sides = np.round(tile.boxes[:, 2:4]).tolist()
            assert sides == [[40, 30], [30, 30]][: len(sides)]
            if turned is PLAIN:
                assert len(sides) == 2
    images = {"small": folder / "train/images/small.png"}
    split(
        images, folder / "train/labelTxt", folder / "cut", TileSettings(size=128, stride=64, min_visible=0.6)
    )
    (label,) = (folder / "cut/labelTxt").iterdir()
    assert [line.split()[-1] for line in label.read_text().splitlines()] == ["0", "0", "2"]


@pytest.mark.parametrize("kind", ["grid", "random"])
@pytest.mark.parametrize("turned", [PLAIN, AugmentConfig(rotate=1.0, flip_vertical=0.5)])
def test_an_object_that_the_edge_of_a_small_picture_cuts_ends_there(tmp_path, kind, turned):
    """Training's reached 20 pixels into the padding; those of tiles on disk, and the devkit's, do not."""
    label = "500 100 620 100 620 160 500 160 plane 0\n"
    write_split(tmp_path / "train", {"P": (np.zeros((600, 600, 3), np.uint8), label)})
    data = DataConfig(windows=kind, cut="clipped", boxes_from="edges")
    (picture,) = read_dataset(tmp_path, with_val=False).train
    tiles = Tiles([picture], ("plane",), data, turned, 0)
    for epoch in range(5):
        for box in tiles.tile(epoch, 0).boxes:
            np.testing.assert_allclose(box[2:4], [100, 60], atol=1e-3)
    if kind == "grid" and turned is PLAIN:
        np.testing.assert_allclose(tiles.tile(0, 0).boxes, [[550, 130, 100, 60, 0]], atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_training_sees_the_labels_that_tiles_on_disk_have(tmp_path_factory, seed):
    rng, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("data")
    cut, share = str(rng.choice(["whole", "clipped"])), float(rng.uniform(0.2, 0.9))
    sizes = {"small": (100, 90), "narrow": (260, 90), "flat": (90, 260), "large": (260, 200)}
    pictures = []
    for name, size in sizes.items():
        write_split(folder, {name: (np.zeros((*size, 3), np.uint8), "")})
        objects = drawn_objects(rng, 30, max(size))
        corners = objects.quads.reshape(-1, 4, 2)
        x, y = (corners - corners.mean(1, keepdims=True)).transpose(2, 0, 1)
        turn = np.argsort(np.arctan2(y, x))  # around the middle: where edges cross, areas are not shares
        objects.quads[:] = np.take_along_axis(corners, turn[..., None], 1).reshape(-1, 8)
        write_labels(folder / f"labelTxt/{name}.txt", objects, ("ship",))
        pictures.append(Picture(name, folder / f"images/{name}.png", *size, objects))
    split(
        {picture.name: picture.path for picture in pictures},
        folder / "labelTxt",
        folder / "cut",
        TileSettings(size=128, stride=96, cut=cut, min_visible=share),
    )
    written = {path.stem: read_labels(path, ("ship",)) for path in (folder / "cut/labelTxt").iterdir()}
    data = dataclasses.replace(GRID, stride=96, cut=cut, min_visible=share)
    tiles = Tiles(pictures, ("ship",), data, PLAIN, 0)
    assert len(tiles) == len(written)
    for window in tiles.windows:
        x, y = window.corner
        there = written[f"{pictures[window.picture].name}__1__{x}___{y}"]
        seen = tiles._render(rng, window, 128)[1]
        np.testing.assert_allclose(seen.quads, there.quads[there.difficult < 2], atol=1e-6)
    random = Tiles(pictures[:1], ("ship",), dataclasses.replace(data, windows="random"), PLAIN, 0)
    seen = random._render(rng, random.windows[0], 128)[1]
    there = written.get("small__1__0___0", Objects.empty())
    moved = (seen.quads - there.quads[there.difficult < 2]).reshape(-1, 2)
    np.testing.assert_allclose(moved, moved[:1].repeat(len(moved), 0), atol=1e-6)  # all by as much


def test_pictures_whose_objects_are_inside_are_taken_as_they_are(folder):
    pictures = read_dataset(folder).train
    tiles = Tiles(pictures, ("plane", "ship"), SMALL, PLAIN, 0)
    assert all(ours is theirs for ours, theirs in zip(tiles.pictures, pictures, strict=True))


def test_a_picture_of_the_tiles_size_is_used_unchanged(folder):
    tiles = tiles_of(folder)
    tile = tiles.tile(0, len(tiles) - 1)
    assert tile.name == "tile"
    np.testing.assert_array_equal(tile.image, cv2.imread(str(folder / "train/images/tile.png"))[..., ::-1])
    expected = boxes.from_quads(tiles.pictures[-1].objects.quads)
    np.testing.assert_allclose(tile.boxes, expected, rtol=1e-5, atol=1e-4)
    assert tile.labels.tolist() == [0, 1]


def test_a_smaller_picture_is_padded_and_keeps_its_objects(folder):
    tiles = tiles_of(folder, DataConfig(tile_size=128, pad_value=(9, 8, 7)))
    for epoch in range(5):
        tile = tiles.tile(epoch, len(tiles) - 2)
        assert (tile.image == [9, 8, 7]).all(-1).sum() >= 128 * 128 - 60 * 80
        assert len(tile.boxes) == 1


def test_difficult_objects_are_trained_on_only_if_wanted(folder):
    counts = {
        wanted: len(tiles_of(folder, DataConfig(tile_size=128, train_difficult=wanted)).tile(0, 8).boxes)
        for wanted in (True, False)
    }
    assert counts == {True: 2, False: 1}


def test_small_objects_are_dropped(folder):
    tiles = tiles_of(folder, DataConfig(tile_size=128, min_side=25.0))
    assert tiles.tile(0, 8).labels.tolist() == [1]  # the plane is 30 × 20


def test_objects_that_can_never_be_learned_are_counted(folder):
    thin, point, small = "50 50 80 50 80 51.5 50 51.5", "9 9 9 9 9 9 9 9", "5 5 6 5 6 6 5 6"
    lines = "".join(f"{quad} ship 0\n" for quad in (SQUARE, thin, point, small))
    (folder / "train/labelTxt/tile.txt").write_text(lines)
    tiles = tiles_of(folder)
    assert (tiles.outside, tiles.too_small) == ({"tile": 1}, {"tile": 2})
    assert tiles_of(folder, augment=AugmentConfig(scale=(0.5, 1.5))).too_small == {
        "tile": 1
    }  # 1.5 px grow to 2.25
    assert tiles_of(folder, DataConfig(tile_size=128, min_side=0.0)).too_small == {}


def test_labels_of_which_next_to_none_can_be_learned_are_an_error(folder):
    """A training on coordinates that are shares learned nothing, and ended as if all were well."""
    small = "100 100 101 100 101 101 100 101 ship 0\n"
    label = folder / "train/labelTxt/tile.txt"
    label.write_text(30 * small)  # beside two that are fine
    message = (
        r"tile\.txt: expected objects inside their images with sides of --min-side 2 px at least, "
        r"got 30 of 32 in train that are not \(0 outside or without area, 30 smaller\)"
    )
    with pytest.raises(DataError, match=message):
        tiles_of(folder)
    label.write_text(15 * small)
    assert tiles_of(folder).too_small == {"tile": 15}


@pytest.mark.parametrize("split", ["train", "val"])
def test_coordinates_that_are_shares_are_an_error(folder, split):
    for path in (folder / split / "labelTxt").iterdir():
        path.write_text("gsd:1\n0.37 0.79 0.42 0.79 0.42 0.81 0.37 0.81 ship 0\n")
    with pytest.raises(LabelError, match=r"\.txt:2: expected pixels, .*yolo-obb --data DIR --out DIR$"):
        read_dataset(folder)


def test_difficult_objects_alone_are_no_training(folder):
    for path in (folder / "train/labelTxt").iterdir():
        path.write_text(f"{SQUARE} ship 1\n")
    assert len(tiles_of(folder)) == 9
    with pytest.raises(DataError, match="got 3 that are all marked difficult, 1 or more"):
        tiles_of(folder, DataConfig(tile_size=128, train_difficult=False))


def test_objects_cut_by_the_border_follow_the_share_that_is_left(folder):
    (folder / "train/labelTxt/tile.txt").write_text(
        "-10 40 30 40 30 60 -10 60 ship 0\n-25 80 30 80 30 90 -25 90 ship 0\n"  # 75% and 55% inside
    )
    whole = tiles_of(folder).tile(0, 8)
    clipped = tiles_of(folder, DataConfig(tile_size=128, cut="clipped")).tile(0, 8)
    np.testing.assert_allclose(whole.boxes, [[10, 50, 40, 20, 0]], atol=1e-4)
    np.testing.assert_allclose(clipped.boxes, [[15, 50, 30, 20, 0]], atol=1e-4)


def test_a_tile_without_objects(folder):
    tiles = tiles_of(folder, DataConfig(tile_size=128, object_probability=0.0))
    empty = [tile for tile in (tiles.tile(e, 0) for e in range(20)) if not len(tile.boxes)]
    assert empty
    targets = collate(empty[:2], ASSIGN).targets
    assert targets.box.shape == (0, 5)
    assert targets.label.dtype == torch.int64
    assert targets.counts == (0, 0)


BUSY = AugmentConfig(
    flip_horizontal=0.5, flip_vertical=0.5, right_angle=0.5, rotate=0.5, scale=(0.5, 2), mosaic=0.5,
    brightness=0.2, contrast=0.2, saturation=0.3, hue=10, gray=0.1,
)  # fmt: skip


def test_tiles_are_a_function_of_seed_epoch_and_index(folder):
    first, second = tiles_of(folder, augment=BUSY), tiles_of(folder, augment=BUSY)
    second.tile(3, 1), second.tile(0, 0)  # what was drawn before must not matter
    for index in range(len(first)):
        a, b = first.tile(2, index), second.tile(2, index)
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.boxes, b.boxes)
    other = tiles_of(folder, augment=BUSY, seed=1).tile(2, 0)
    assert (other.image != first.tile(2, 0).image).any()
    assert (first.tile(1, 0).image != first.tile(2, 0).image).any()


def test_augmented_boxes_are_canonical_and_mostly_inside(folder):
    tiles, count = tiles_of(folder, augment=BUSY), 0
    for epoch in range(15):
        for index in range(len(tiles)):
            tile = tiles.tile(epoch, index)
            assert tile.image.shape == (128, 128, 3)
            w, h, theta = tile.boxes[:, 2], tile.boxes[:, 3], tile.boxes[:, 4]
            assert (w >= h).all()
            assert (h >= SMALL.min_side).all()
            assert ((theta >= -np.float32(np.pi / 4)) & (theta < np.float32(3 * np.pi / 4))).all()
            assert ((tile.boxes[:, :2] > 0) & (tile.boxes[:, :2] < 128)).all()
            count += len(tile.boxes)
    assert count > 100


def test_windows_around_objects_hold_them(folder):
    tiles = tiles_of(folder, DataConfig(tile_size=128, object_probability=1.0))
    held = [len(tiles.tile(epoch, 0).boxes) for epoch in range(40)]
    assert np.mean(held) > 0.6  # the rest are cut by the border


def test_the_cache_keeps_what_fits(folder):
    tiles = tiles_of(folder)  # 1 MB: all three
    for index in range(len(tiles)):
        tiles.tile(0, index)
    assert len(tiles._cache) == 3
    assert 10**6 - tiles._cache_left == sum(image.nbytes for image in tiles._cache.values())
    none = Tiles(tiles.pictures, ("plane", "ship"), SMALL, PLAIN, 0, cache_mb=0)
    none.tile(0, 0)
    assert not none._cache
    assert none._uncached is None  # nothing is kept, as was asked for


@pytest.fixture
def reads(monkeypatch):
    """The names of the pictures that were decoded, in their order; of pictures without files."""
    names = []

    def read(self):
        names.append(self.name)
        return np.full((self.height, self.width, 3), len(names), np.uint8)

    monkeypatch.setattr(Picture, "read", read)
    return names


def pictures_of(*sizes):
    """Pictures of (height, width) without files, an object in each."""
    square = squares((45, 45))
    return [Picture(f"P{index}", Path(f"P{index}.png"), *size, square) for index, size in enumerate(sizes)]


def test_a_picture_beyond_the_cache_leaves_what_is_there_and_stays_until_the_next(reads):
    """It emptied the cache and was then found not to fit, and was decoded anew for every window."""
    sizes = (300, 400), (300, 400), (700, 700), (9, 9)
    tiles = Tiles(pictures_of(*sizes), ("a",), SMALL, PLAIN, 0, cache_mb=1)
    for index in (0, 1, 2, 2, 2):
        tiles._pixels(index)
    assert list(tiles._cache) == [0, 1]
    assert reads == ["P0", "P1", "P2"]
    tiles._pixels(0)
    tiles._pixels(2)
    assert reads == ["P0", "P1", "P2"]
    tiles._pixels(3)
    assert reads[3:] == ["P3"]
    assert tiles._uncached is None
    assert pickle.loads(pickle.dumps(tiles))._cache_left == 10**6


def test_room_is_made_before_a_picture_is_read(monkeypatch):
    tiles = Tiles(pictures_of(*[(400, 400)] * 4), ("a",), SMALL, PLAIN, 0, cache_mb=1)  # holds two
    most = []

    def read(self):
        most.append(sum(image.nbytes for image in tiles._cache.values()) + 3 * self.height * self.width)
        return np.zeros((self.height, self.width, 3), np.uint8)

    monkeypatch.setattr(Picture, "read", read)
    for index in range(4):
        tiles._pixels(index)
    assert max(most) <= 10**6


# ------------------------------------------------------------------------------- the order of an epoch


def in_order(tiles, epoch):
    for index in tiles.order(epoch):
        tiles.tile(epoch, int(index))


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["random", "grid"])
def test_an_epoch_decodes_each_picture_once(reads, monkeypatch, kind, mosaic):
    """Windows came in an order over all pictures, and of scenes of 4000² nearly every tile decoded one."""
    monkeypatch.setattr(rgfl_data, "GROUP_PIXELS", 3 * 256 * 256)
    data = DataConfig(tile_size=128, stride=64, windows=kind, empty_share=1.0)
    tiles = Tiles(pictures_of(*[(256, 256)] * 12), ("a",), data, AugmentConfig(mosaic=mosaic), 0, cache_mb=1)
    for epoch in range(2):
        reads.clear()
        in_order(tiles, epoch)
        kept = 5 if epoch else 0  # 1 MB of the epoch before
        assert 12 - kept <= len(reads) <= 12
        assert len(set(reads)) == len(reads)


def test_a_picture_larger_than_a_group_is_decoded_once_an_epoch(reads, monkeypatch):
    monkeypatch.setattr(rgfl_data, "GROUP_PIXELS", 300_000)
    tiles = Tiles(pictures_of((700, 700), (256, 256), (256, 256), (800, 800)), ("a",), SMALL, PLAIN, 0, 1)
    in_order(tiles, 0)
    assert sorted(reads) == ["P0", "P1", "P2", "P3"]


def picture_of(tiles, order):
    return [tiles.windows[index].picture for index in order]


def test_windows_are_mixed_within_groups_that_change_from_epoch_to_epoch(monkeypatch):
    monkeypatch.setattr(rgfl_data, "GROUP_PIXELS", 3 * 256 * 256)
    tiles = Tiles(pictures_of(*[(256, 256)] * 12), ("a",), SMALL, PLAIN, 0)  # 4 windows a picture
    together = []
    for epoch in range(3):
        order = tiles.order(epoch)
        assert sorted(order) == list(range(48))
        pictures = picture_of(tiles, order)
        groups = [pictures[first : first + 12] for first in range(0, 48, 12)]
        assert all(len(set(group)) == 3 for group in groups)
        assert any(group != sorted(group, key=group.index) for group in groups)  # not picture after picture
        together.append({frozenset(group) for group in groups})
        np.testing.assert_array_equal(order, tiles.order(epoch))
    assert together[0] != together[1] != together[2]


def test_the_order_of_pictures_that_a_cache_holds_is_one_over_all_windows():
    """Runs of small data keep the order that they had before there were groups."""
    tiles = Tiles(pictures_of(*[(300, 400)] * 5, (128, 128)), ("a",), SMALL, PLAIN, 7)
    for epoch in range(3):
        np.testing.assert_array_equal(tiles.order(epoch), np.random.default_rng([7, epoch]).permutation(36))


def test_pictures_of_one_window_are_mixed_with_all(monkeypatch):
    """Tiles that were cut beforehand are decoded once an epoch in any order, and gain nothing by groups."""
    monkeypatch.setattr(rgfl_data, "GROUP_PIXELS", 256 * 256)
    cut = Tiles(pictures_of(*[(128, 128)] * 50, (256, 256)), ("a",), SMALL, PLAIN, 3)
    np.testing.assert_array_equal(cut.order(1), np.random.default_rng([3, 1]).permutation(54))
    both = Tiles(pictures_of(*[(128, 128)] * 50, *[(256, 256)] * 5), ("a",), SMALL, PLAIN, 3)
    order = both.order(0)
    assert sorted(order) == list(range(70))
    large = [picture for picture in picture_of(both, order) if picture >= 50]
    assert all(len(set(large[first : first + 4])) == 1 for first in range(0, 20, 4))
    small = [place for place, picture in enumerate(picture_of(both, order)) if picture < 50]
    assert np.ptp(small) > 60  # among the others


def test_pictures_without_a_window_are_in_no_group(monkeypatch):
    monkeypatch.setattr(rgfl_data, "GROUP_PIXELS", 256 * 256)
    pictures = pictures_of(*[(256, 256)] * 6)
    pictures[::2] = [dataclasses.replace(picture, objects=Objects.empty()) for picture in pictures[::2]]
    grid = dataclasses.replace(GRID, stride=16)
    tiles = Tiles(pictures, ("a",), grid, PLAIN, 0)
    assert {window.picture for window in tiles.windows} == {1, 3, 5}
    pictures = picture_of(tiles, tiles.order(0))
    assert len(pictures) == 48
    assert all(len(set(pictures[first : first + 16])) == 1 for first in range(0, 48, 16))


def test_the_cache_that_groups_want(monkeypatch):
    assert RunConfig().cache_mb * 10**6 > 3 * GROUP_PIXELS
    one = Tiles(pictures_of((700, 700), (128, 128)), ("a",), SMALL, PLAIN, 0)
    assert one.cache_wanted() == 2  # MB; the small picture has one window
    monkeypatch.setattr(rgfl_data, "GROUP_PIXELS", 300_000)
    assert one.cache_wanted() == 1
    assert Tiles(pictures_of((128, 128)), ("a",), SMALL, PLAIN, 0).cache_wanted() == 0


def test_how_many_pictures_are_mixed(monkeypatch):
    pictures = pictures_of(*[(300, 300)] * 8)
    tiles = Tiles(pictures, ("a",), SMALL, PLAIN, 0)
    assert tiles.pictures_mixed() == math.inf
    for pixels, mixed in ((50_000, 1), (200_000, 2), (400_000, 4)):
        monkeypatch.setattr(rgfl_data, "GROUP_PIXELS", pixels)
        assert tiles.pictures_mixed() == mixed


# -------------------------------------------------------------------------------------------- batches


def one_each(count, seed):
    """Tiles of so many windows."""
    return Tiles(pictures_of(*[(128, 128)] * count), ("a",), SMALL, PLAIN, seed)


@pytest.fixture
def grouped(monkeypatch):
    """Tiles of 11 windows in groups of some."""
    monkeypatch.setattr(rgfl_data, "GROUP_PIXELS", 256 * 256)
    return Tiles(pictures_of((256, 256), (256, 256), (128, 128), (128, 256)), ("a",), SMALL, PLAIN, 4)


def test_each_epoch_sees_every_window_once_in_a_new_order():
    keys = list(batches(one_each(10, seed=0), 5, start=0, stop=4))
    for epoch in range(2):
        seen = [key for batch in keys[2 * epoch : 2 * epoch + 2] for key in batch]
        assert sorted(seen) == [(epoch, index) for index in range(10)]
    assert [index for _, index in keys[0]] != [index for _, index in keys[2]]


def test_batches_from_the_middle_are_those_of_the_whole(grouped):
    for tiles in (one_each(11, seed=4), grouped):
        assert len(tiles) == 11
        whole = list(batches(tiles, 3, start=0, stop=20))
        for start in (1, 3, 7, 19):
            there = pickle.loads(pickle.dumps(tiles))
            assert list(batches(there, 3, start=start, stop=20)) == whole[start:]


def test_fewer_windows_than_a_batch_repeat():
    assert steps_per_epoch(3, 8) == 1
    (keys,) = batches(one_each(3, seed=0), 8, start=5, stop=6)
    assert len(keys) == 8
    assert {index % 3 for _, index in keys} == {0, 1, 2}
    assert {epoch for epoch, _ in keys} == {5}
    assert len(set(keys)) == 8  # each a tile of its own


def test_a_window_that_repeats_is_drawn_anew(folder):
    """With fewer windows than --batch, a batch held equal tiles."""
    tiles = tiles_of(folder, augment=BUSY)
    (keys,) = batches(tiles, 2 * len(tiles), start=0, stop=1)
    drawn = [tiles[key] for key in keys]
    for index, (first, again) in enumerate(zip(drawn[: len(tiles)], drawn[len(tiles) :], strict=True)):
        assert keys[index + len(tiles)] == (0, keys[index][1] + len(tiles))
        assert first.name == again.name
        assert (first.image != again.image).any()
        np.testing.assert_array_equal(again.image, tiles[keys[index + len(tiles)]].image)


@pytest.mark.parametrize("count", [11, 3])
def test_ranks_see_together_what_one_sees(count, grouped):
    for tiles in (one_each(count, seed=4), grouped):
        whole = list(batches(tiles, 6, start=2, stop=9))
        shares = [list(batches(tiles, 6, start=2, stop=9, rank=rank, ranks=3)) for rank in range(3)]
        for step, keys in enumerate(zip(*shares, strict=True)):
            assert [key for share in keys for key in share] == whole[step]


def assert_same_targets(found, expected):
    assert found.counts == expected.counts
    for a, b in zip(found[:-1], expected[:-1], strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_a_batch_comes_with_its_targets(folder):
    tiles = [tiles_of(folder)[0, index] for index in range(9)]
    batch = collate(tiles, ASSIGN)
    boxes = [torch.from_numpy(tile.boxes) for tile in tiles]
    labels = [torch.from_numpy(tile.labels) for tile in tiles]
    assert_same_targets(batch.targets, ASSIGN(boxes, labels, (128, 128)))
    assert sum(count > 0 for count in batch.targets.counts) > 1
    assert set(batch.targets.label.tolist()) == {0, 1}


def test_a_batch_in_parts(folder):
    tiles = [tiles_of(folder)[0, index] for index in range(3, 9)]
    whole = collate(tiles, ASSIGN)
    for parts in (1, 2, 3, 6):
        pieces = whole.split(parts)
        size = 6 // parts
        for index, piece in enumerate(pieces):
            alone = collate(tiles[index * size : (index + 1) * size], ASSIGN)
            assert torch.equal(piece.images, alone.images)
            assert piece.names == alone.names
            assert_same_targets(piece.targets, alone.targets)


# ------------------------------------------------------------------------------------------------ workers


@pytest.mark.parametrize("counts", [(2, 0, 3), (0, 1), (0, 0)])
def test_a_batch_travels_from_a_worker_as_one_tensor(counts):
    """It was two a tile and one: 300 tiles were too many open files, and the training waited for ever."""
    batch = Batch(
        torch.zeros((len(counts), 4, 4, 3), dtype=torch.uint8),
        Targets(
            torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)),
            torch.arange(sum(counts)),
            torch.rand(sum(counts), 3),
            torch.rand(sum(counts), 5),
            torch.arange(sum(counts)) % 2,
            counts,
        ),
        [f"P{number}" for number in range(len(counts))],
    )
    values = list(batch.__getstate__().values())
    values += [part for value in values if isinstance(value, tuple) for part in value]
    assert sum(isinstance(value, torch.Tensor) for value in values) == 1
    there = pickle.loads(pickle.dumps(batch))
    assert torch.equal(there.images, batch.images)
    assert there.names == batch.names
    assert_same_targets(there.targets, batch.targets)


def test_tiles_of_groups_are_the_same_in_a_worker(reads, grouped):
    """A mosaic's partners come from the group of its window, which a worker finds by itself."""
    mosaics = Tiles(grouped.pictures, ("a",), SMALL, AugmentConfig(mosaic=1.0), 4, cache_mb=1)
    mosaics.tile(0, 0)
    there = pickle.loads(pickle.dumps(mosaics))
    for key in [(3, 10), (0, 1), (3, 2), (3, 13)]:
        np.testing.assert_array_equal(mosaics.tile(*key).boxes, there.tile(*key).boxes)


def test_tiles_travel_to_a_worker_without_pixels_and_are_the_same_there(folder):
    for data in (SMALL, DataConfig(tile_size=128, stride=64, windows="grid")):
        here = tiles_of(folder, data, augment=BUSY)
        first = here.tile(0, 0)
        assert here._cache
        there = pickle.loads(pickle.dumps(here))
        assert not there._cache
        assert there._cache_left == 10**6
        assert there.windows == here.windows
        assert there.pictures[0].path == here.pictures[0].path
        np.testing.assert_array_equal(there.tile(0, 0).image, first.image)
        np.testing.assert_array_equal(there.tile(0, 0).boxes, first.boxes)
        assert len(here._cache) > 0  # those of this process stay


def many_pictures():
    rng = np.random.default_rng(0)
    pictures = []
    for index in range(5000):
        objects = Objects(rng.uniform(0, 128, (4, 8)), np.zeros(4, np.int32), np.zeros(4, np.int32))
        pictures.append(Picture(f"P{index}", Path(f"/data/train/images/P{index}.png"), 128, 128, objects))
    return Tiles(pictures, ("ship",), SMALL, PLAIN, seed=0)


def test_a_large_data_set_is_a_small_pickle():
    tiles = many_pictures()
    numbers = 5000 * 4 * (8 * 8 + 4 + 4)
    assert len(pickle.dumps(tiles)) < numbers + 5000 * 100


def test_a_worker_begins_without_waiting_for_the_one_before():
    """All went down each worker's pipe, which holds 64 kB and is read after seconds of imports."""
    tiles = many_pictures()
    sent = ForkingPickler.dumps(_Sent(tiles))
    assert len(sent) < 2000
    there = ForkingPickler.loads(sent)
    resource_sharer.stop()
    assert there._tiles.windows == tiles.windows


def test_a_worker_that_finds_no_shared_memory_says_so(folder, monkeypatch):
    """Docker gives 64 MB. torch told it in a thread of the worker, and the training waited for ever."""
    good = [tiles_of(folder)[0, 0]]
    assert not collate(good, ASSIGN).images.is_shared()
    monkeypatch.setattr("rgfl.data.get_worker_info", lambda: object())
    assert collate(good, ASSIGN).images.is_shared()

    def full(_tensor):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    error = collate(good, ASSIGN)
    assert isinstance(error, DataError)
    for words in ("No space left on device", "--workers", "--shm-size"):
        assert words in str(error)
    with pytest.raises(DataError, match=r"of labels .*No space left"):  # before the first worker
        Loader(tiles_of(folder), [[(0, 0)]], ASSIGN, 1)


class Stuck:
    """Tiles of which the second never comes."""

    def __init__(self, folder):
        self.folder = folder

    def __len__(self):
        return 2

    def __getitem__(self, key):
        if key[1] == 1:
            (self.folder / "stuck").touch()
            while True:
                time.sleep(3600)
        return tiles_of(self.folder)[0, 0]


def test_a_worker_that_hangs_is_killed_at_the_end(folder):
    loader = Loader(Stuck(folder), [[(0, 0)], [(0, 1)]], ASSIGN, workers=1)
    try:
        assert isinstance(next(loader), Batch)
        deadline = time.monotonic() + PATIENCE
        while not (folder / "stuck").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        loader.close()
    assert not multiprocessing.active_children()
    loader.close()  # a second time has nothing to do


def test_classes_are_read_from_a_folder_with_a_comma_and_taken_as_they_are(tmp_path):
    root = tmp_path / "a,b"
    for kind in ("images", "labelTxt"):
        (root / "train" / kind).mkdir(parents=True)
    cv2.imwrite(str(root / "train/images/1.png"), np.zeros((8, 8, 3), np.uint8))
    (root / "train/labelTxt/1.txt").write_text("0 0 4 0 4 4 0 4 car.v2 0\n")
    (root / "classes.txt").write_text("bus\ncar.v2\n")
    assert read_dataset(root, with_val=False).classes == ("bus", "car.v2")
    assert read_dataset(root, ("car.v2",), with_val=False).classes == ("car.v2",)
