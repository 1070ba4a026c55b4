"""What a training folder holds, and what is wrong with it."""

import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
from tiff_bytes import tiff_bytes
from tiny_dataset import SQUARE, make_folder

from rgfl.dataset import DataError, read_dataset
from rgfl.dota.images import ImageError, read_image
from rgfl.dota.labels import LabelError
from rgfl.train import parse


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path)


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


def test_classes_are_read_from_a_folder_with_a_comma_and_taken_as_they_are(tmp_path):
    root = tmp_path / "a,b"
    for kind in ("images", "labelTxt"):
        (root / "train" / kind).mkdir(parents=True)
    cv2.imwrite(str(root / "train/images/1.png"), np.zeros((8, 8, 3), np.uint8))
    (root / "train/labelTxt/1.txt").write_text("0 0 4 0 4 4 0 4 car.v2 0\n")
    (root / "classes.txt").write_text("bus\ncar.v2\n")
    assert read_dataset(root, with_val=False).classes == ("bus", "car.v2")
    assert read_dataset(root, ("car.v2",), with_val=False).classes == ("car.v2",)


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


@pytest.mark.parametrize("name", ["data.yaml", "ships.YML"])
def test_the_file_of_a_yolo_data_set_is_told_how_to_be_converted(tmp_path, name):
    (tmp_path / name).write_text("names: [car]\n")
    with pytest.raises(DataError) as error:
        read_dataset(tmp_path / name)
    command = f"python -m rgfl.dota.convert --from yolo-obb --data {tmp_path / name} --out DIR"
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


@pytest.mark.parametrize("split", ["train", "val"])
def test_coordinates_that_are_shares_are_an_error(folder, split):
    for path in (folder / split / "labelTxt").iterdir():
        path.write_text("gsd:1\n0.37 0.79 0.42 0.79 0.42 0.81 0.37 0.81 ship 0\n")
    with pytest.raises(LabelError, match=r"\.txt:2: expected pixels, .*yolo-obb --data DIR --out DIR$"):
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
    with pytest.raises(ImageError, match=r"tile\.png: the image is cut off"):
        read_dataset(folder).train[-1].read()


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
    """A PNG that is turned was listed unturned; EXIF that is slightly broken ended in a TypeError."""
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
