"""Foreign labels become labelTxt: golden numbers, round trips, errors with their place, nothing expanded."""

import json
import math
import os
import shutil
from pathlib import Path
from unicodedata import normalize
from xml.sax.saxutils import escape

import cv2
import numpy as np
import pytest
import rasterio

from rgfl.dataset import read_dataset
from rgfl.dota import convert as module
from rgfl.dota import georeference
from rgfl.dota.convert import main
from rgfl.dota.formats import dataset, dota, hrsc_dior
from rgfl.dota.formats import fair1m as fair1m_reader
from rgfl.dota.formats.dataset import ConvertError, parse_xml
from rgfl.dota.formats.hrsc_dior import parse_hrsc
from rgfl.dota.formats.items import placed, with_val
from rgfl.dota.formats.yolo import parse_yolo, seen_objects
from rgfl.dota.labels import Objects, read_classes, read_labels, write_labels

YAML = "path: .\ntrain: images/train\nval: images/val\nnames:\n  0: plane\n  1: storage tank\n"
# Ten lists, each of ten times the one before it.
BOMB = "b0: &b0 [x]\n" + "".join(f"b{n}: &b{n} [{','.join([f'*b{n - 1}'] * 10)}]\n" for n in range(1, 10))


def image(path, width=40, height=20, value=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), value, np.uint8))


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture
def yolo(tmp_path):
    data = tmp_path / "yolo"
    text(data / "data.yaml", YAML)
    image(data / "images/train/a.png")
    image(data / "images/train/empty.png")
    image(data / "images/val/a.png", 100, 100)
    text(data / "labels/train/a.txt", "1 0.25 0.5 0.5 0.5 0.5 0.75 0.25 0.75\n\n0 0 0 1 0 1 1 0 1.1\n")
    text(data / "labels/val/a.txt", "0 0.1 0.2 0.3 0.2 0.3 0.4 0.1 0.4\n")
    return data


def test_yolo_golden(yolo, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--from", "yolo-obb", "--data", yolo, "--out", out) == 0
    assert (out / "train/labelTxt/a.txt").read_text() == (
        "10.0 10.0 20.0 10.0 20.0 15.0 10.0 15.0 storage-tank 0\n"
        "0.0 0.0 40.0 0.0 40.0 20.0 0.0 22.0 plane 0\n"
    )
    assert (out / "train/labelTxt/empty.txt").read_text() == ""
    assert (out / "classes.txt").read_text() == "plane\nstorage-tank\n"
    assert (out / "val/images/a.png").read_bytes() == (yolo / "images/val/a.png").read_bytes()
    assert "3 images, 3 objects of 2 classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    "names",
    ["names: [plane, storage tank]", "names:\n- plane\n- storage tank", "names: {1: storage tank, 0: plane}"],
)
def test_yolo_names_in_every_form_and_folders_of_other_habits(names, tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    text(data / "data.yaml", f"train: ../train/images\nval: ../valid/images\nnc: 2\n{names}\n")
    for split in ("train", "valid"):
        image(data / split / "images/b.jpg")
        text(data / split / "labels/b.txt", "1 0 0 1 0 1 1 0 1\n")
    assert run("--from", "yolo-obb", "--data", data, "--out", out) == 0
    assert "storage-tank" in (out / "val/labelTxt/b.txt").read_text()


def test_data_yaml_itself_is_taken_and_a_class_that_is_renamed_is_told(yolo, tmp_path, capsys):
    """As Ultralytics' commands take it; GeoJSON later has the new name."""
    text(yolo / "data.yaml", "train: images/train\nval: images/val\nnames: [Flugzeug groß, ship]\n")
    out = tmp_path / "out"
    assert run("--from", "yolo-obb", "--data", yolo / "data.yaml", "--out", out) == 0
    assert (out / "classes.txt").read_text().split() == ["Flugzeug-groß", "ship"]
    assert "class 'Flugzeug groß' is written Flugzeug-groß" in capsys.readouterr().err


def test_yolo_lists_of_images_and_classes_by_hand(yolo, tmp_path):
    text(yolo / "data.yaml", "train: train.txt\n")
    text(yolo / "train.txt", "./images/train/a.png\n")
    out = tmp_path / "out"
    assert run("--from", "yolo-obb", "--data", yolo, "--out", out, "--classes", "x,y") == 0
    assert [path.name for path in (out / "train/images").iterdir()] == ["a.png"]
    text(yolo / "train.txt", "images/train/a.png\nimages/train/no.png\n")
    with pytest.raises(ConvertError, match=r"train\.txt:2: no such image"):
        module.read_yolo(yolo, ["x", "y"])
    text(yolo / "train.txt", "images/train/a.png\n../id_rsa\n")
    text(tmp_path / "id_rsa", "secret")
    with pytest.raises(ConvertError, match=r"train\.txt:2: expected an image \(.png, .*, got .*id_rsa"):
        module.read_yolo(yolo, ["x", "y"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2 0.1", "expected `class x1 y1 … x4 y4`, got 5 fields; this is a horizontal box"),
        ("0 0.5 0.5 0.2 0.1 45", "got 6 fields; this is a box with its angle (class cx cy w h angle, as of"),
        ("0 0 0 1 0 1 1 0 1 0.9", "got 10 fields; corners and a score are predictions, not labels"),
        ("1 2 3 4 5 6 7 8 ship 0", "got 10 fields; this is a line of DOTA's labelTxt, see --from dota"),
        ("0 0 0 1 0 1 1 0 1 0.5 0.5", "got 11 fields, a polygon of 5 points, as of segmentation; --polygons"),
        ("0 0 0 1 0 1 1", "got 7 fields, a polygon of 3 points"),
        ("0 0 0 1 0 1 1 0", "got 8 fields"),
        ("YOLO_OBB", "got the heading of labelImg_OBB's own format"),
        ("0,0,0,1,0,1,1,0,1", "got '0,0,0,1,0,1,1,0,1'; white space separates the fields, not commas"),
        ("2 0 0 1 0 1 1 0 1", "class must be a whole number in 0…1, got '2'"),
        ("0.5 0 0 1 0 1 1 0 1", "class must be a whole number in 0…1, got '0.5'"),
        ("0 0 0 1 nan 1 1 0 1", "y2 must be a finite number, got 'nan'"),
        ("0 0 0 1 0 345 1 0 1", "x3 must be a share of the image's side (0…1), got 345; is it in pixels?"),
    ],
)
def test_yolo_errors_name_file_and_line(line, message, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(f"0 0 0 1 0 1 1 0 1\n{line}\n")
    with pytest.raises(ConvertError) as error:
        parse_yolo(path, 2, lambda: (10, 10))
    assert str(error.value).startswith(f"{path}:2: ")
    assert message in str(error.value)


def test_one_bad_file_is_named_and_the_others_are_finished(yolo, tmp_path, capsys):
    out = tmp_path / "out"
    (yolo / "labels/train/a.txt").write_text("0 1 2\n")
    assert run("--from", "yolo-obb", "--data", yolo, "--out", out) == 2
    shown = capsys.readouterr().err
    assert "labels/train/a.txt:1: expected" in shown
    assert "1 of 3 images failed" in shown
    assert (out / "val/labelTxt/a.txt").is_file()
    assert not (out / "train/labelTxt/a.txt").exists()
    (yolo / "labels/train/a.txt").write_text("0 0 0 1 0 1 1 0 1\n")
    assert run("--from", "yolo-obb", "--data", yolo, "--out", out) == 0


def test_resume_converts_only_what_changed_and_removes_what_is_gone(yolo, tmp_path, monkeypatch):
    out, command = tmp_path / "out", ("--from", "yolo-obb", "--data", yolo, "--out", tmp_path / "out")
    assert run(*command) == 0
    worked = []
    original = module._convert_image
    monkeypatch.setattr(
        module, "_convert_image", lambda item, *rest: worked.append(item.key) or original(item, *rest)
    )
    assert run(*command) == 0
    assert worked == []
    text(yolo / "labels/train/empty.txt", "0 0 0 1 0 1 1 0 1\n")
    os.remove(yolo / "images/val/a.png")
    image(yolo / "images/val/b.png")
    (out / "train/labelTxt/a.txt").unlink()
    with (out / module.JOURNAL).open("a") as journal:
        journal.write('{"image": "train/a", "sou')  # a kill while this line was written
    assert run(*command) == 0
    assert sorted(worked) == ["train/a", "train/empty", "val/b"]
    assert sorted(path.name for path in (out / "val/images").iterdir()) == ["b.png"]
    assert sorted(path.name for path in (out / "val/labelTxt").iterdir()) == ["b.txt"]
    assert not list(out.rglob("*.partial"))


def test_foreign_folders_and_other_settings_are_refused(yolo, tmp_path, capsys):
    out = tmp_path / "out"
    text(out / "mine.txt", "")
    assert run("--from", "yolo-obb", "--data", yolo, "--out", out) == 2
    assert "holds files that were not converted here" in capsys.readouterr().err
    assert run("--from", "yolo-obb", "--data", yolo, "--out", tmp_path / "o") == 0
    others = "storage tank,plane"
    assert run("--from", "yolo-obb", "--data", yolo, "--out", tmp_path / "o", "--classes", others) == 2
    assert "another --to or other classes" in capsys.readouterr().err
    assert run("--from", "yolo-obb", "--data", yolo, "--out", yolo) == 2
    for flags in (("--from", "yolo-obb", "--to", "yolo-obb"), ("--from", "yolo-obb", "--version", "1.0")):
        with pytest.raises(SystemExit):
            run(*flags, "--data", yolo, "--out", out)


def test_images_are_links_or_copies(yolo, tmp_path):
    assert run("--from", "yolo-obb", "--data", yolo, "--out", tmp_path / "linked") == 0
    assert run("--from", "yolo-obb", "--data", yolo, "--out", tmp_path / "copied", "--no-link") == 0
    source = yolo / "images/val/a.png"
    assert os.path.samefile(source, tmp_path / "linked/val/images/a.png")
    assert not os.path.samefile(source, tmp_path / "copied/val/images/a.png")


@pytest.mark.parametrize("to", ["dota", "yolo-obb"])
def test_images_keep_their_place_on_earth(to, tmp_path, monkeypatch):
    """World file, .prj and .aux.xml go with the image, under its new name; changes are seen."""
    data, out = tmp_path / "data", tmp_path / "out"
    wkt = rasterio.CRS.from_epsg(32632).to_wkt()
    for folder, suffix in ((data / "images/north 1", ".jpg"), (data / "images/south", ".PNG")):
        image(folder / f"IMG (2){suffix}")
    text(data / "images/north 1/IMG (2).JGW", "0.5\n0\n0\n-0.5\n500000.25\n5299999.75\n")
    text(data / "images/north 1/IMG (2).prj", wkt)
    text(data / "images/north 1/IMG (3).jgw", "of another image")
    text(
        data / "images/south/IMG (2).PNG.aux.xml",
        f"<PAMDataset><SRS>{escape(wkt)}</SRS><GeoTransform>7, 1, 0, 9, 0, -1</GeoTransform></PAMDataset>",
    )
    text(data / "labels/north 1/IMG (2).txt", "0 0 0 1 0 1 1 0 1\n")
    command = ("--from", "yolo-obb", "--classes", "a,b", "--data", data, "--out", out)
    command += ("--to", to, "--val-share", "0.5") if to == "yolo-obb" else ()
    assert run(*command) == 0
    written = {path.name: path for path in out.rglob("*IMG*") if path.suffix != ".txt"}
    stems = ("north_1__IMG_(2)", "south__IMG_(2)")
    ends = ((".jpg", ".JGW", ".prj"), (".PNG", ".PNG.aux.xml"))
    assert set(written) == {stem + end for stem, some in zip(stems, ends, strict=True) for end in some}
    for stem, source in zip(stems, ("north 1/IMG (2).jpg", "south/IMG (2).PNG"), strict=True):
        there = georeference.find(data / "images" / source)
        here = georeference.find(written[stem + Path(source).suffix])
        assert here.code == there.code == "EPSG:32632"
        np.testing.assert_array_equal(here.affine, there.affine)
    assert os.path.samefile(written["north_1__IMG_(2).prj"], data / "images/north 1/IMG (2).prj")

    worked = []
    original = module._convert_image
    monkeypatch.setattr(
        module, "_convert_image", lambda place, *rest: worked.append(place.key) or original(place, *rest)
    )
    assert run(*command) == 0
    assert worked == []
    written["south__IMG_(2).PNG.aux.xml"].unlink()
    (data / "images/north 1/IMG (2).JGW").unlink()
    assert run(*command) == 0
    assert len(worked) == 2
    assert written["south__IMG_(2).PNG.aux.xml"].is_file()
    assert not written["north_1__IMG_(2).JGW"].exists()
    assert written["north_1__IMG_(2).prj"].is_file()


def test_dota_to_yolo_and_back(tmp_path):
    rng = np.random.default_rng(0)
    classes = read_classes("1.0")
    data = tmp_path / "dota"
    truth = {}
    for split, width, height in (("train", 113, 57), ("val", 64, 301)):
        image(data / split / "images/P1.png", width, height)
        count = 20
        truth[split] = Objects(
            rng.uniform(0, 1, (count, 8)) * np.tile([width, height], 4),
            rng.integers(0, 15, count).astype(np.int32),
            (np.arange(count) % 3).astype(np.int32),
        )
        (data / split / "labelTxt").mkdir()
        write_labels(data / split / "labelTxt/P1.txt", truth[split], classes)
    middle, back = tmp_path / "yolo", tmp_path / "back"
    # Their order of classes is theirs to choose; ours is official.
    assert run("--from", "dota", "--to", "yolo-obb", "--data", data, "--out", middle, "--classes", "1.0") == 0
    assert (
        (middle / "data.yaml")
        .read_text()
        .startswith('train: images/train\nval: images/val\nnames:\n  0: "plane"')
    )
    assert run("--from", "yolo-obb", "--data", middle, "--out", back) == 0
    for split, objects in truth.items():
        kept = objects[objects.difficult != 2]
        found = read_labels(back / split / "labelTxt/P1.txt", classes)
        np.testing.assert_allclose(found.quads, kept.quads, rtol=1e-14, atol=1e-12)
        np.testing.assert_array_equal(found.labels, kept.labels)
        assert not found.difficult.any()


@pytest.mark.parametrize("listed", [True, False])
def test_dota_labels_are_searched_for_names_only_without_a_list(tmp_path, monkeypatch, listed):
    data = tmp_path / "dota"
    image(data / "train/images/P1.png")
    text(data / "train/labelTxt/P1.txt", "0 0 4 0 4 4 0 4 ship 0\n")
    searched = []
    monkeypatch.setattr(dota, "find_classes", lambda folder: searched.append(folder) or ("ship",))
    if listed:
        text(data / "classes.txt", "plane\nship\n")
    assert module.read_dota(data).classes == (("plane", "ship") if listed else ("ship",))
    assert searched == ([] if listed else [data / "train/labelTxt"])


# ---------------------------------------------------------------------------------------------
# DOTA as its archives unpack

V1 = "0 0 4.50 0 4 4 0 4 ship 1\n1 1 9 1 9 9 1 9 plane 0\n"
V1_5 = f"{V1}0 0 9 0 9 9 0 9 container-crane\n"
ORIENTED = {
    "1.0": "labelTxt-v1.0/labelTxt",
    "1.5": "labelTxt-v1.5/DOTA-v1.5_{split}",
    "2.0": "labelTxt-v2.0/DOTA-v2.0_{split}",
}
HORIZONTAL = {
    "1.0": "labelTxt-v1.0/{Split}_Task2_gt/{split}set_reclabelTxt",
    "1.5": "labelTxt-v1.5/DOTA-v1.5_{split}_hbb",
    "2.0": "labelTxt-v2.0/DOTA-v2.0_{split}_hbb",
}


def published(data, *versions, places=("images/part1/images", "images/part2/images")):
    """P0 and P1 in train, P2 and P3 in val, P4 and P5 in test; one in each place."""
    for number, (split, place) in enumerate((s, p) for s in ("train", "val", "test") for p in places):
        image(data / split / place / f"P{number}.png", value=number)
        text(data / split / f"meta/P{number}.txt", "gsd:null\n")
        for version in versions if split != "test" else ():
            for kind, content in ((ORIENTED, V1 if version == "1.0" else V1_5), (HORIZONTAL, "no label\n")):
                folder = data / split / kind[version].format(split=split, Split=split.capitalize())
                text(folder / f"P{number}.txt", f"imagesource:GoogleEarth\ngsd:null\n{content}")
    return data


@pytest.mark.parametrize(
    ("versions", "version"), [(["1.0", "1.5"], "1.0"), (["1.0", "1.5"], "1.5"), (["2.0"], "")]
)
@pytest.mark.parametrize("first", ["images/part1/images", "part1/images", "images/images", "images"])
def test_dota_as_published(versions, version, first, tmp_path, capsys):
    places = (first, first.replace("part1", "part2").replace("images/images", "images"))
    data, out = published(tmp_path / "DOTA", *versions, places=places[: len(set(places))]), tmp_path / "out"
    count = len(set(places))
    flags = ("--version", version) if version else ()
    assert run("--from", "dota", *flags, "--data", data, "--out", out) == 0
    said = capsys.readouterr().out
    objects = 2 * count * (2 if version == "1.0" else 3)
    classes = read_classes(version or "2.0")
    assert f"{3 * count} images, {objects} objects of {len(classes)} classes, {2 * count} difficult" in said
    assert f"{count} images without labels, of a test set" in said
    for number in range(3 * count):
        split = ("train", "val", "test")[number // count]
        [source] = data.rglob(f"P{number}.png")
        assert os.path.samefile(source, out / split / f"images/P{number}.png")
    assert sorted(path.name for path in (out / "test").iterdir()) == ["images"]
    assert read_dataset(out).classes == classes
    lines = (out / "train/labelTxt/P0.txt").read_text().splitlines()
    assert lines[:2] == ["0.0 0.0 4.5 0.0 4.0 4.0 0.0 4.0 ship 1", "1.0 1.0 9.0 1.0 9.0 9.0 1.0 9.0 plane 0"]
    # A kill before the last image: the same command goes on, and an image without labels is whole.
    (out / "train/labelTxt/P0.txt").unlink()
    before = (out / "test/images" / f"P{2 * count}.png").stat().st_ctime_ns
    assert run("--from", "dota", *flags, "--data", data, "--out", out) == 0
    assert (out / "train/labelTxt/P0.txt").is_file()
    assert (out / "test/images" / f"P{2 * count}.png").stat().st_ctime_ns == before


def test_which_labels_of_dota(tmp_path):
    data = published(tmp_path / "DOTA", "1.0", "1.5")
    several = r"train: expected one folder of labels, got labelTxt-v1.0/labelTxt/, labelTxt-v1.5/.*_train/; "
    with pytest.raises(ConvertError, match=f"{several}choose by --version"):
        dota.read_dota(data)
    none = (
        r"train: no oriented labels; expected labelTxt-v2.0/ …, found labelTxt-v1.0/Train_Task2_gt/\S+, lab"
    )
    with pytest.raises(ConvertError, match=none):
        dota.read_dota(data, version="2.0")
    (data / "train/labelTxt").symlink_to("labelTxt-v1.5/DOTA-v1.5_train")  # as one would put it in order
    assert dota.read_dota(data, version="1.5").classes == read_classes("1.5")
    (data / "val/labelTxt").symlink_to("labelTxt-v1.0/labelTxt")
    with pytest.raises(
        ConvertError, match=r"labels of one version in all splits, got .* then choose by --version"
    ):
        dota.read_dota(data)
    (data / "val/labelTxt").unlink()
    (data / "train/labelTxt").unlink()
    shutil.rmtree(data / "train/labelTxt-v1.0")
    shutil.rmtree(data / "val/labelTxt-v1.0")
    assert dota.read_dota(data).classes == read_classes("1.5")
    assert dota.read_dota(data, ["ship"]).classes == ("ship",)
    (data / "train/labelTxt-v1.5").rename(tmp_path / "task2-v1.5")
    elsewhere = tmp_path / "task2-v1.5/DOTA-v1.5_train"
    (data / "train/labelTxt").symlink_to(elsewhere)  # of a link only the folder's own name counts
    assert dota.read_dota(data).items[2].label == data / "train/labelTxt/P0.txt"
    assert [item.split for item in dota.read_dota(data / "val").items] == ["", ""]
    shutil.rmtree(data / "val/labelTxt-v1.5/DOTA-v1.5_val")
    text(data / "val/labelTxt-v1.5/DOTA-v1.5_val.zip", "")
    with pytest.raises(ConvertError, match=r"found labelTxt-v1.5/\S+_hbb/, meta/; \S+_val.zip is not"):
        dota.read_dota(data)


def test_own_labels_in_labeltxt_are_of_any_version_and_those_of_a_test_set_are_never_dropped(tmp_path):
    data = published(tmp_path / "DOTA", "1.0")
    own = data / "test/labelTxt"
    for number in (4, 5):
        text(own / f"P{number}.txt", V1)
    with pytest.raises(ConvertError, match=r"one version in all splits, got \S+/test/labelTxt, .*--version"):
        dota.read_dota(data)
    read = dota.read_dota(data, version="1.0")
    assert {item.label.parent for item in read.items if item.split == "test"} == {own}
    assert not any(item.bare for item in read.items)
    other = r"test: no oriented labels; expected labelTxt-v1.0/ …, found "
    own = own.rename(data / "test/labelTxt-v1.5")
    with pytest.raises(ConvertError, match=f"{other}labelTxt-v1.5/"):
        dota.read_dota(data, version="1.0")
    (data / "test/labelTxt").symlink_to(own.rename(tmp_path / "elsewhere"))  # of whatever version
    with pytest.raises(ConvertError, match=f"{other}elsewhere/"):
        dota.read_dota(data, version="1.0")
    assert dota.read_dota(data / "test").items[0].label == data / "test/labelTxt/P4.txt"


def test_what_lies_beside_labels_of_dota(tmp_path, monkeypatch):
    data = published(tmp_path / "DOTA", "1.5")
    text(data / "train/labelTxt-v1.5/readme.txt", "v1.5\n")
    text(data / "test/ReadMe.txt", "no labels\n")
    (data / "train/disk").symlink_to(published(tmp_path / "disk", "1.5"))  # not gone into
    assert len(dota.read_dota(data).items) == 6
    shutil.copytree(data / "train/labelTxt-v1.5", data / "train/again/labelTxt-v1.5")
    for version in (None, "1.5"):
        with pytest.raises(ConvertError, match=r"train: expected one folder .*; put the others away"):
            dota.read_dota(data, version=version)
    text(data / "train/labelTxt/P0.txt", V1)
    text(data / "train/labelTxt/P1.txt", V1)
    monkeypatch.setattr(dota, "with_subfolders", lambda folder, **_: pytest.fail(f"went into {folder}"))
    assert dota._label_folder(data / "train", None) == data / "train/labelTxt"


def test_folders_of_dota_that_hold_nothing_or_are_called_otherwise(tmp_path, monkeypatch):
    data = published(tmp_path / "DOTA")
    monkeypatch.chdir(data / "test")
    assert [item.bare for item in dota.read_dota(Path()).items] == [True, True]
    (tmp_path / "empty/test/images").mkdir(parents=True)
    with pytest.raises(ConvertError, match=r"empty: expected images, got none; \S+/test: no images"):
        dota.read_dota(tmp_path / "empty")
    (data / "train").rename(data / "Train")
    with pytest.raises(ConvertError, match=r"DOTA/Train: expected train/, got Train/; rename it"):
        dota.read_dota(data)


def test_archives_of_dota_are_no_flights(tmp_path):
    data = tmp_path / "DOTA"
    for number in range(20):
        image(data / f"train/images/part{number % 2 + 1}/images/P{number}.png")
        text(data / f"train/labelTxt-v1.0/labelTxt/P{number}.txt", V1)
    places = with_val(placed(dota.read_dota(data).items), 0.1)
    assert sum(place.split == "val" for place in places) == 2


def test_images_of_dota_that_are_missing_twice_there_or_of_a_later_version(tmp_path, capsys):
    data = published(tmp_path / "DOTA", "1.0")
    image(data / "train/images/part4/images/P9.png")
    shutil.rmtree(data / "test/images")
    text(data / "test/images/part1.zip", "")
    assert run("--from", "dota", "--data", data, "--out", tmp_path / "out") == 0
    shown = capsys.readouterr()
    assert "4 images, 8 objects of 15 classes, 4 difficult; 1 images left out" in shown.out
    assert f"warning: {data}/test: no images, left out; {data}/test/images/part1.zip is not" in shown.err
    text(data / "train/images/part2.zip", "")
    shutil.rmtree(data / "train/images/part2")
    with pytest.raises(
        ConvertError, match=r"P1.txt: no image .* for 1 of 2 .*; unpack all .*part2.zip is not"
    ):
        dota.read_dota(data)
    image(data / "train/images/part2/images/P1.png")
    image(data / "train/images/P1.png")
    with pytest.raises(ConvertError, match=r"P1.png: .*P1.png has the same name; remove one of the two"):
        dota.read_dota(data)


def test_a_test_set_of_dota_is_not_divided(tmp_path):
    data, out = published(tmp_path / "DOTA", "1.0", places=("images",)), tmp_path / "out"
    shutil.rmtree(data / "val")
    image(data / "train/images/P7.png")
    text(data / "train/labelTxt-v1.0/labelTxt/P7.txt", V1)
    assert run("--from", "dota", "--data", data, "--out", out, "--val-share", "0.5") == 0
    counts = [len(list((out / split / "images").iterdir())) for split in ("train", "val", "test")]
    assert counts == [1, 1, 1]


# ---------------------------------------------------------------------------------------------
# Own data sets, as tools and drones leave them

SQUARE = "0 0.1 0.2 0.3 0.2 0.3 0.4 0.1 0.4\n"


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def flights(tmp_path):
    """Two flights of a drone that counts from 1 in each."""
    data = tmp_path / "flights"
    text(data / "data.yaml", "train: images/train\nnames: [car]\n")
    for flight, value in (("flight 0", 10), ("flight1", 20)):
        for number in (1, 2):
            image(data / f"images/train/{flight}/DJI_{number}.jpg", value=value)
            text(data / f"labels/train/{flight}/DJI_{number}.txt", SQUARE)
    image(data / "images/train/flight1/deep/IMG 1 (2).jpg")
    text(data / "labels/train/flight1/deep/IMG 1 (2).txt", SQUARE)
    return data


def test_yolo_folders_are_read_with_their_folders_and_equal_names_are_kept_apart(flights, tmp_path, capsys):
    out, command = tmp_path / "out", ("--from", "yolo-obb", "--data", flights, "--out", tmp_path / "out")
    assert run(*command) == 0
    names = ["IMG_1_(2)", "flight1__DJI_1", "flight1__DJI_2", "flight_0__DJI_1", "flight_0__DJI_2"]
    assert sorted(path.stem for path in (out / "train/labelTxt").iterdir()) == names
    assert sorted(path.stem for path in (out / "train/images").iterdir()) == names
    assert all(len(read_labels(out / f"train/labelTxt/{name}.txt", ["car"])) == 1 for name in names)
    source = flights / "images/train/flight 0/DJI_1.jpg"
    assert (out / "train/images/flight_0__DJI_1.jpg").read_bytes() == source.read_bytes()
    assert "5 images, 5 objects of 1 classes, 0 difficult; 5 images renamed" in capsys.readouterr().out
    # Names that are no longer equal are their own again, and what they were called is gone.
    shutil.rmtree(flights / "images/train/flight 0")
    shutil.rmtree(flights / "labels/train/flight 0")
    assert run(*command) == 0
    assert sorted(path.stem for path in (out / "train/images").iterdir()) == ["DJI_1", "DJI_2", "IMG_1_(2)"]
    assert sorted(path.stem for path in (out / "train/labelTxt").iterdir()) == ["DJI_1", "DJI_2", "IMG_1_(2)"]


def test_names_that_stay_equal_are_an_error_that_has_both(tmp_path):
    folder = tmp_path / "images"
    items = [dataset.Item("", folder / name, None) for name in ("IMG (2).jpg", "IMG_(2).jpg")]
    with pytest.raises(ConvertError, match=r"IMG \(2\)\.jpg and .*IMG_\(2\)\.jpg: both would be called IMG_"):
        placed(items)


def test_yolo_labels_and_images_without_each_other_are_counted(yolo, tmp_path, capsys):
    text(yolo / "labels/train/lost.txt", SQUARE)
    text(yolo / "labels/val/flight/lost.txt", SQUARE)
    text(yolo / "labels/train/classes.txt", "plane\n")
    text(yolo / "labels/train/._a.txt", "")
    for name in ("b.HEIC", "flight/c.dng", "._d.gif"):
        text(yolo / "images/train" / name, "")
    assert run("--from", "yolo-obb", "--data", yolo, "--out", tmp_path / "out") == 0
    shown = capsys.readouterr()
    said = [
        "2 images of kinds that are not read (.dng, .heic), such as ",
        "1 of 3 images have no label file: taken as images without objects, such as "
        f"{yolo / 'images/train/empty.png'}",
        f"2 label files have no image, such as {yolo / 'labels/train/lost.txt'}",
    ]
    for what in said:
        assert f"warning: {what}" in shown.err
        assert what in shown.out


def test_yolo_without_an_image_that_is_read_says_which_there_are(yolo):
    for path in (yolo / "images").rglob("*.png"):
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(
        ConvertError, match=r"no images found; .*; 3 images of kinds that are not read \(\.heic\)"
    ):
        module.read_yolo(yolo)


def test_yolo_labels_of_other_spellings_are_found(tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    text(data / "classes.txt", "big car\nbus\n")  # Label Studio's export
    text(data / "notes.json", "{}")
    image(data / f"images/{normalize('NFC', 'Süd')}.jpg")
    text(data / f"labels/{normalize('NFD', 'Süd')}.txt", SQUARE)
    image(data / "images/d.jpg")
    text(data / "labels/d.TXT", SQUARE)
    assert run("--from", "yolo-obb", "--data", data, "--out", out) == 0
    assert "2 images, 2 objects of 2 classes" in capsys.readouterr().out
    assert (out / "labelTxt/d.txt").read_text().split()[8] == "big-car"
    text(data / "labels/d.txt", SQUARE)
    with pytest.raises(ConvertError, match="is of the same image; remove one of the two"):
        module.read_yolo(data)


def test_yolo_folders_in_the_data_set_come_before_those_beside_it(tmp_path, monkeypatch):
    data = tmp_path / "data"
    text(data / "data.yaml", "path: ../other\ntrain: ../train/images\nval: valid/images\nnames: [car]\n")
    for folder in (tmp_path, tmp_path / "other", data):
        for split in ("train", "valid"):
            image(folder / split / "images/a.jpg")
            text(folder / split / "labels/a.txt", SQUARE)
    found = [data / "train/images/a.jpg", data / "valid/images/a.jpg"]
    assert [item.image for item in module.read_yolo(data).items] == found
    monkeypatch.chdir(data)
    relative = [item.image.resolve() for item in module.read_yolo(module.Path()).items]
    assert relative == found


def test_yolo_splits_that_are_not_there_are_told(yolo, tmp_path, capsys):
    text(yolo / "data.yaml", f"{YAML}test: ../test/images\n")
    shutil.rmtree(yolo / "images/val")
    assert run("--from", "yolo-obb", "--data", yolo, "--out", tmp_path / "out") == 0
    shown = capsys.readouterr().err
    assert f"data.yaml's `val: images/val` is not there (looked at {yolo / 'images/val'}): left out" in shown
    assert f"{yolo / 'test/images'} and {yolo / '../test/images'}): left out" in shown
    shutil.rmtree(yolo / "images/train")
    with pytest.raises(ConvertError, match="`train: images/train` is not there"):
        module.read_yolo(yolo)


def test_yolo_paths_of_windows_are_read(yolo, tmp_path):
    text(yolo / "data.yaml", "train: train.txt\nval: images\\val\nnames: [plane, tank]\n")
    text(yolo / "train.txt", "images\\train\\a.png\r\n.\\images\\train\\empty.png\r\n")
    assert sorted((item.split, item.image.name) for item in module.read_yolo(yolo).items) == [
        ("train", "a.png"), ("train", "empty.png"), ("val", "a.png")
    ]  # fmt: skip


def test_yolo_classes_choose_by_name(yolo, tmp_path, capsys):
    out = tmp_path / "out"
    command = ("--from", "yolo-obb", "--data", yolo, "--out", out, "--classes")
    assert run(*command, "storage tank,ship") == 2
    assert "ship: no such class in" in (shown := capsys.readouterr().err)
    assert "expected of plane, storage-tank" in shown
    text(tmp_path / "names.txt", "storage tank\nplane\n")
    assert run(*command, tmp_path / "names.txt") == 0
    assert (out / "classes.txt").read_text() == "storage-tank\nplane\n"
    names = [line.split()[8] for line in (out / "train/labelTxt/a.txt").read_text().splitlines()]
    assert names == ["storage-tank", "plane"]
    shutil.rmtree(out)
    assert run(*command, "storage tank") == 0
    assert "1 objects of 1 classes" in (shown := capsys.readouterr().out)
    assert "2 objects left out, of classes that --classes lacks" in shown
    assert (out / "train/labelTxt/a.txt").read_text() == (
        "10.0 10.0 20.0 10.0 20.0 15.0 10.0 15.0 storage-tank 0\n"
    )
    # The same choice of other numbers is another data set.
    text(yolo / "data.yaml", YAML.replace("0: plane", "1: plane").replace("1: storage", "0: storage"))
    assert run(*command, "storage tank") == 2


def test_yolo_polygons_by_the_rectangle_around_them(tmp_path):
    path = tmp_path / "a.txt"
    # A diamond in pixels of 200 × 100, with a point more in the middle of a side; then a quad, as it is.
    path.write_text("0 0.5 0.2 0.6 0.4 0.55 0.5 0.5 0.6 0.4 0.4\n1 0 0 1 0 1 0.5 0 0.9\n")
    found = parse_yolo(path, 2, lambda: (200, 100), polygons=True)
    corners = {tuple(corner) for corner in np.round(found.quads[0].reshape(4, 2), 3).tolist()}
    assert corners == {(100, 20), (120, 40), (100, 60), (80, 40)}
    np.testing.assert_allclose(found.quads[1], [0, 0, 200, 0, 200, 50, 0, 90])
    assert found.labels.tolist() == [0, 1]
    with pytest.raises(SystemExit):
        run("--from", "dior-r", "--data", tmp_path, "--out", tmp_path / "o", "--polygons")


def test_polygons_are_taken_on_request(yolo, tmp_path, capsys):
    text(yolo / "labels/train/a.txt", "0 0 0 1 0 1 1\n")
    command = ("--from", "yolo-obb", "--data", yolo, "--out", tmp_path / "out")
    assert run(*command) == 2
    assert "--polygons takes the rectangle of least area" in capsys.readouterr().err
    assert run(*command, "--polygons") == 0


def test_dota_labels_without_an_image_are_refused(tmp_path):
    data = tmp_path / "dota"
    image(data / "train/images/P1.png")
    for stem in ("P1", "P2"):
        text(data / f"train/labelTxt/{stem}.txt", "0 0 4 0 4 4 0 4 ship 0\n")
    with pytest.raises(
        ConvertError, match=r"P2\.txt: no image of this name in .*, as for 1 of 2 label files"
    ):
        module.read_dota(data)


def test_dota_classes_of_several_words_are_joined(tmp_path):
    data = tmp_path / "dota"
    image(data / "train/images/P1.png")
    text(data / "train/labelTxt/P1.txt", "0 0 4 0 4 4 0 4 big-car 0\n")
    text(data / "classes.txt", "# ours\nbig car\n")
    assert module.read_dota(data).classes == ("big-car",)
    assert dataset.read_names("big car") == dataset.read_names("big car,") == ("big-car",)
    assert dataset.read_names("1.0") == read_classes("1.0")


def test_written_objects_are_counted_and_the_others_with_their_reason(tmp_path, capsys):
    data = tmp_path / "dota"
    image(data / "images/P1.png", 100, 50)
    text(
        data / "labelTxt/P1.txt",
        "10 10 30 10 30 20 10 20 ship 1\n90 10 120 10 120 20 90 20 ship 0\n5 5 9 5 9 5 5 5 ship 0\n"
        "10 10 30 10 30 20 10 20 ship 2\n",
    )
    out = tmp_path / "yolo"
    assert run("--from", "dota", "--to", "yolo-obb", "--data", data, "--out", out) == 0
    assert len((out / "labels/P1.txt").read_text().splitlines()) == 1
    assert (
        "1 images, 1 objects of 1 classes, 1 difficult; "
        "1 objects left out, of which the image shows less than 0.7; "
        "1 objects left out, which have no area; "
        "1 objects left out, of difficult 2: cut away by a tile's border, or crowds\n"
    ) in capsys.readouterr().out


def test_links_of_yolo_may_lead_in_circles(yolo, tmp_path):
    (yolo / "images/train/again").symlink_to(yolo / "images", target_is_directory=True)
    (yolo / "labels/train/again").symlink_to(yolo / "labels", target_is_directory=True)
    assert run("--from", "yolo-obb", "--data", yolo, "--out", tmp_path / "out") == 0


def test_some_classes_of_dota_alone(tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    image(data / "images/a.png", 50, 50)
    text(data / "labelTxt/a.txt", "1 1 9 1 9 9 1 9 ship 0\n11 1 19 1 19 9 11 9 plane 0\n")
    command = ("--from", "dota", "--to", "yolo-obb", "--data", data, "--out", out, "--classes", "plane")
    assert run(*command) == 0
    assert "1 objects left out, of classes that --classes lacks" in capsys.readouterr().out
    assert (out / "labels/a.txt").read_text().split()[:2] == ["0", "0.22"]


def three_classes(data):
    """DOTA labels of a car, a ship, a van and a car, at 1, 11, 21 and 31 pixels from the left."""
    image(data / "images/a.png", 50, 50)
    places = [(1, "car"), (11, "ship"), (21, "van"), (31, "car")]
    lines = [f"{x} 1 {x + 8} 1 {x + 8} 9 {x} 9 {name} 0\n" for x, name in places]
    text(data / "labelTxt/a.txt", "".join(lines))


@pytest.mark.parametrize(
    ("options", "classes", "written"),
    [
        ("--rename car=vehicle,van=vehicle", "vehicle ship", "0 1 0 0"),
        ("--rename ship=car", "car van", "0 0 1 0"),  # a name that is there
        ("--rename car=van,van=car", "van ship car", "0 1 2 0"),
        ("--classes ship,van,car --rename car=vehicle,van=vehicle", "ship vehicle", "1 0 1 1"),
        ("--classes van,car --rename car=vehicle,van=vehicle", "vehicle", "0 0 0"),  # no ship
    ],
)
def test_classes_are_joined_and_renamed(options, classes, written, tmp_path):
    data, out, numbers = tmp_path / "data", tmp_path / "out", tmp_path / "numbers"
    three_classes(data)
    assert run("--from", "dota", "--data", data, "--out", out, *options.split()) == 0
    assert (out / "classes.txt").read_text().split() == classes.split()
    found = [line.split()[8] for line in (out / "labelTxt/a.txt").read_text().splitlines()]
    assert found == [classes.split()[int(number)] for number in written.split()]
    run("--from", "dota", "--to", "yolo-obb", "--data", data, "--out", numbers, *options.split())
    assert [line[0] for line in (numbers / "labels/a.txt").read_text().splitlines()] == written.split()
    assert module.read_yolo(numbers).classes == tuple(classes.split())


def test_classes_of_yolo_are_renamed_to_either_format(yolo, tmp_path):
    for to, place in (("dota", "classes.txt"), ("yolo-obb", "data.yaml")):
        command = ("--from", "yolo-obb", "--to", to, "--data", yolo, "--out", tmp_path / to)
        assert run(*command, "--rename", "storage tank=big tank") == 0
        assert "plane" in (names := (tmp_path / to / place).read_text())
        assert "big-tank" in names
        assert "storage" not in names


def test_other_names_do_not_go_on(tmp_path, capsys):
    """Both lists of classes are car, ship."""
    three_classes(data := tmp_path / "data")
    command = ("--from", "dota", "--data", data, "--out", tmp_path / "out", "--rename")
    assert run(*command, "van=car") == run(*command, "van=car") == 0
    assert run(*command, "van=ship") == 2
    assert "other classes (--column) or names (--rename); name another --out" in capsys.readouterr().err
    assert (tmp_path / "out/labelTxt/a.txt").read_text().count("car") == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--rename car", "--rename: expected OLD=NEW,OLD=NEW, got 'car'"),
        ("--rename car=a=b", "--rename: expected OLD=NEW,OLD=NEW, got 'car=a=b'"),
        ("--rename car=a,car=b", "--rename: car named more than once"),
        ("--rename car=", "--rename: class name '' is empty"),
        ("--rename cat=a,car=b,dog=a", "--rename: no class cat, dog; expected of car, ship, van (--cl"),
        ("--classes vehicle --rename car=vehicle", "--rename: no class car; expected of vehicle (--cl"),
        ("--classes car=a,van=a", "--classes: expected names, got car=a; rename by --rename car=a,van=a"),
        ("--classes cat", "--classes: no object is of cat; the data set has car, ship, van"),
    ],
)
def test_classes_that_are_not_there_leave_nothing_behind(options, message, tmp_path, capsys):
    three_classes(data := tmp_path / "data")
    assert run("--from", "dota", "--data", data, "--out", tmp_path / "out", *options.split()) == 2
    assert f"convert: error: {message}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_objects_of_the_wanted_classes_are_looked_for_in_all_images(yolo, tmp_path, capsys):
    """A file that cannot be read is told as ever; without objects nothing is missed."""
    command = ("--from", "yolo-obb", "--data", yolo, "--classes", "storage tank", "--out")
    text(yolo / "labels/val/a.txt", "0 1 2\n")
    assert run(*command, tmp_path / "first") == 2
    assert "1 of 3 images failed" in capsys.readouterr().err
    for name in ("train", "val"):
        text(yolo / f"labels/{name}/a.txt", "0 0 0 1 0 1 1 0 1\n")
    assert run(*command, tmp_path / "out") == 2
    assert "no object is of storage-tank; the data set has plane\n" in capsys.readouterr().err
    for name in ("train", "val"):
        text(yolo / f"labels/{name}/a.txt", "")
    assert run(*command, tmp_path / "out") == 0


def test_files_of_a_vanished_image_go_and_no_others(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    for stem in ("tile", "tile.2", "z"):
        image(data / f"images/{stem}.png")
        text(data / f"labels/{stem}.txt", SQUARE)
    command = ("--from", "yolo-obb", "--data", data, "--out", out, "--classes", "car")
    assert run(*command) == 0
    (data / "images/tile.png").rename(tmp_path / "tile.png")
    (data / "labels/tile.txt").unlink()
    image(data / "images/z.jpg")  # the same image in another format
    (data / "images/z.png").unlink()
    assert run(*command) == 0
    assert files(out) == [
        ".lock", "classes.txt", "convert.jsonl", "images/tile.2.png", "images/z.jpg", "labelTxt/tile.2.txt",
        "labelTxt/z.txt",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "suffix"), [("train/../../../x", ".png"), ("../x", ".png"), ("train/", "../../../x.png")]
)
def test_a_journal_of_others_removes_nothing_outside(key, suffix, yolo, tmp_path):
    out = tmp_path / "folder/out"
    command = ("--from", "yolo-obb", "--data", yolo, "--out", out)
    assert run(*command) == 0
    for name in ("x.png", "x.txt", "images/x.png", "labelTxt/x.txt"):
        text(tmp_path / "folder" / name, "mine")
    before = files(tmp_path)
    journal = out / module.JOURNAL
    entry = json.loads(journal.read_text().splitlines()[1])
    with journal.open("a") as file:
        file.write(json.dumps({**entry, "image": key, "suffix": suffix, "source": []}) + "\n")
    assert run(*command) == 0
    assert files(tmp_path) == before


@pytest.mark.parametrize("there", [False, True])
def test_links_in_a_converted_folder_remove_and_replace_nothing_elsewhere(there, yolo, tmp_path, capsys):
    out, mine = tmp_path / "out", tmp_path / "mine"
    command = ("--from", "yolo-obb", "--data", yolo, "--out", out)
    assert run(*command) == 0
    (out / "train/images").rename(mine)
    (out / "train/images").symlink_to(mine)
    if there:
        text(yolo / "labels/train/a.txt", "")  # to be converted anew
    else:
        (yolo / "images/train/a.png").unlink()
    before = files(mine)
    assert run(*command) == 2
    told = capsys.readouterr().err
    assert (
        f"{out}/train/images: expected a folder in {out}, got a link to {mine}; link {out} itself instead"
        in told
    )
    assert files(mine) == before == ["a.png", "empty.png"]


def test_links_bring_nothing_into_the_set_that_is_no_image(yolo, tmp_path, capsys):
    out, secret = tmp_path / "out", tmp_path / "secret"
    secret.write_text("secret")
    (yolo / "images/train/key.png").symlink_to(secret)  # without labels, so that nobody needs its size
    (yolo / "images/train/a.prj").symlink_to(secret)
    (yolo / "images/train/link.png").symlink_to("a.png")
    with pytest.warns(
        UserWarning, match=r"1 links are left out that would say where images lie .*/a\.prj; put"
    ):
        assert run("--from", "yolo-obb", "--data", yolo, "--out", out) == 2
    assert f"{yolo}/images/train/key.png: not an image" in capsys.readouterr().err
    assert files(out / "train/images") == ["a.png", "empty.png", "link.png"]


@pytest.mark.parametrize(
    "damage", [{"source": None}, {"unlabelled": None}, {"suffix": 3}, {"images": "x"}, {"flat": 1.5}]
)
def test_an_entry_that_lacks_what_it_needs_is_converted_anew(damage, yolo, tmp_path):
    command = ("--from", "yolo-obb", "--data", yolo, "--out", tmp_path / "out")
    assert run(*command) == 0
    journal = tmp_path / "out" / module.JOURNAL
    head, *entries = journal.read_text().splitlines()
    first = json.loads(entries[0])
    journal.write_text("\n".join([head, json.dumps({**first, **damage}), *entries[1:], ""]))
    assert run(*command) == 0
    assert sorted(journal.read_text().splitlines()[1:]) == sorted(entries)


# ---------------------------------------------------------------------------------------------
# --val-share


def places_of(*names):
    return placed([dataset.Item("", module.Path("images") / name, None) for name in names])


def val_of(places):
    return {place.name for place in places if place.split == "val"}


def test_a_share_of_the_images_validates_the_same_in_every_run():
    places = places_of(*(f"{number}.jpg" for number in range(40)))
    chosen = val_of(with_val(places, 0.2))
    assert len(chosen) == 8
    assert chosen == val_of(with_val(places[::-1], 0.2))
    assert chosen != val_of(with_val(places, 0.2, seed=1))
    assert {place.split for place in with_val(places, 0.2)} == {"train", "val"}
    assert len(val_of(with_val(places, 0.001))) == 1
    assert len(val_of(with_val(places, 0.999))) == 39


def test_flights_and_tiles_of_an_image_stay_together():
    places = places_of(*(f"flight{number // 5}/{number}.jpg" for number in range(50)))
    chosen = val_of(with_val(places, 0.3))
    assert len(chosen) == 15
    assert len({int(name) // 5 for name in chosen}) == 3
    tiles = places_of(*(f"P{number}__1__{x}___0.png" for number in range(4) for x in (0, 824)))
    chosen = val_of(with_val(tiles, 0.25))
    assert len(chosen) == 2
    assert len({name.split("__")[0] for name in chosen}) == 1


def test_val_share_needs_one_split_and_a_share(flights, yolo, tmp_path, capsys):
    out = tmp_path / "out"
    command = ("--from", "yolo-obb", "--out", out, "--data")
    assert run(*command, yolo, "--val-share", 0.2) == 2
    assert "expected a data set of one split, train, got train, val" in capsys.readouterr().err
    assert run(*command, flights, "--val-share", 20) == 2
    assert "expected a share between 0 and 1, got 20" in capsys.readouterr().err
    with pytest.raises(ConvertError, match="nothing to divide"):
        with_val(places_of("a.jpg"), 0.5)
    # A val that is train is none: it is what tools write that have no other.
    text(flights / "data.yaml", "train: images/train\nval: images/train\nnames: [car]\n")
    assert run(*command, flights, "--val-share", 0.5) == 0
    stems = {split: {path.stem for path in (out / split / "images").iterdir()} for split in ("train", "val")}
    assert sorted(stems["train"] | stems["val"]) == [
        "IMG_1_(2)", "flight1__DJI_1", "flight1__DJI_2", "flight_0__DJI_1", "flight_0__DJI_2"
    ]  # fmt: skip
    assert not stems["train"] & stems["val"]
    before = files(out)
    assert run(*command, flights, "--val-share", 0.5) == 0
    assert before == files(out)


# ---------------------------------------------------------------------------------------------
# XML


def hrsc(*objects, annotated=1):
    body = "".join(
        f"<HRSC_Object><Object_ID>{7 + i}</Object_ID><difficult>{difficult}</difficult>"
        f"<mbox_cx>{cx}</mbox_cx><mbox_cy>{cy}</mbox_cy><mbox_w>{w}</mbox_w><mbox_h>{h}</mbox_h>"
        f"<mbox_ang>{angle}</mbox_ang></HRSC_Object>\n"
        for i, (cx, cy, w, h, angle, difficult) in enumerate(objects)
    )
    head = f"<HRSC_Image>\n<Annotated>{annotated}</Annotated>\n"
    return f"{head}<HRSC_Objects>\n{body}</HRSC_Objects>\n</HRSC_Image>\n"


def test_hrsc_golden(tmp_path):
    data, out = tmp_path / "HRSC", tmp_path / "out"
    root = data / "FullDataSet"
    # Turned by +30° the bow of the long side points right and down on the screen.
    text(root / "Annotations/1001.xml", hrsc((20, 10, 16, 4, math.pi / 6, 0), (5, 5, 4, 2, 0, 1)))
    text(root / "Annotations/1002.xml", hrsc())
    text(root / "Annotations/1003.xml", hrsc(annotated=0))
    for stem in ("1001", "1002", "1003"):
        image(root / f"AllImages/{stem}.bmp")
    text(data / "ImageSets/train.txt", "1001\n1003\n")
    text(data / "ImageSets/trainval.txt", "1001\n1002\n")
    text(data / "ImageSets/test.txt", "1002\n")
    assert run("--from", "hrsc2016", "--data", data, "--out", out) == 0
    found = read_labels(out / "train/labelTxt/1001.txt", ["ship"])
    c, s = math.cos(math.pi / 6), 0.5
    expected = [20 - 8 * c + 2 * s, 10 - 8 * s - 2 * c, 20 + 8 * c + 2 * s, 10 + 8 * s - 2 * c]
    np.testing.assert_allclose(found.quads[0, :4], expected, rtol=1e-12)
    assert found.quads[0, 3] > found.quads[0, 1]  # y grows along the long side
    np.testing.assert_allclose(found.quads[1], [3, 4, 7, 4, 7, 6, 3, 6])
    assert found.difficult.tolist() == [0, 1]
    assert (out / "test/labelTxt/1002.txt").read_text() == ""
    assert not (out / "train/labelTxt/1003.txt").exists()  # nobody looked: it may be full of ships
    assert not (out / "trainval").exists()


def test_hrsc_angle_is_opencv_s(tmp_path):
    text(tmp_path / "a.xml", hrsc((30, 40, 20, 6, -0.7, 0)))
    ours = parse_hrsc(tmp_path / "a.xml").quads.reshape(4, 2)
    theirs = cv2.boxPoints(((30, 40), (20, 6), -0.7 * 180 / math.pi))
    distance = np.linalg.norm(ours[:, None] - theirs[None], axis=-1)
    assert distance.min(1).max() < 1e-4


def test_hrsc_in_train_and_test_folders(tmp_path):
    data = tmp_path / "HRSC"
    for split in ("Train", "Test"):
        text(data / split / "Annotations/1.xml", hrsc((5, 5, 4, 2, 0, 0)))
        image(data / split / "AllImages/1.bmp")
    assert run("--from", "hrsc2016", "--data", data, "--out", tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["test", "train"]


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ("robndbox><cx>1</cx></robndbox", "no HRSC_Objects, but objects of roLabelImg"),
        ("robndbox><x_left_top>1</x_left_top></robndbox", "objects of DIOR-R; convert them by --from dior-r"),
        ("bndbox><xmin>1</xmin></bndbox", "objects of Pascal VOC, which has no turned boxes"),
    ],
)
def test_hrsc_is_not_what_other_tools_write(box, message, tmp_path):
    text(tmp_path / "a.xml", f"<annotation><object><name>ship</name><{box}></object></annotation>")
    with pytest.raises(ConvertError, match=message):
        parse_hrsc(tmp_path / "a.xml")


def dior(name="Storagetank", difficult=0, **changes):
    corners = {
        "x_left_top": 1, "y_left_top": 2, "x_right_top": 11, "y_right_top": 3, "x_right_bottom": 10.5,
        "y_right_bottom": 8, "x_left_bottom": 0.5, "y_left_bottom": 7, **changes,
    }  # fmt: skip
    inner = "".join(f"<{key}>{value}</{key}>" for key, value in corners.items() if value is not None)
    return (
        "<annotation><filename>00001.jpg</filename>\n<object>\n<name>Ship</name><difficult>0</difficult>"
        "<robndbox><x_left_top>0</x_left_top><y_left_top>0</y_left_top><x_right_top>9</x_right_top>"
        "<y_right_top>0</y_right_top><x_right_bottom>9</x_right_bottom><y_right_bottom>4</y_right_bottom>"
        "<x_left_bottom>0</x_left_bottom><y_left_bottom>4</y_left_bottom></robndbox></object>\n"
        f"<object><name>{name}</name><difficult>{difficult}</difficult><robndbox>{inner}</robndbox></object>"
        "</annotation>"
    )


def test_some_classes_of_dior_alone(tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    text(data / "Annotations/Oriented Bounding Boxes/00001.xml", dior())
    image(data / "JPEGImages-trainval/00001.jpg")
    assert run("--from", "dior-r", "--data", data, "--out", out, "--classes", "ship") == 0
    assert "1 objects of 1 classes, 0 difficult; 1 objects left out, of" in capsys.readouterr().out
    assert (out / "labelTxt/00001.txt").read_text().split()[8] == "ship"
    assert run("--from", "dior-r", "--data", data, "--out", tmp_path / "none", "--classes", "boat") == 2
    assert "no object is of boat; the data set has airplane, airport, " in capsys.readouterr().err


def test_dior_golden(tmp_path):
    data, out = tmp_path / "DIOR-R", tmp_path / "out"
    text(data / "Annotations/Oriented Bounding Boxes/00001.xml", dior(difficult=1))
    text(data / "Annotations/Oriented Bounding Boxes/00002.xml", dior())
    text(data / "Annotations/Horizontal Bounding Boxes/00001.xml", "<annotation/>")
    image(data / "JPEGImages-trainval/00001.jpg")
    image(data / "JPEGImages-test/00002.jpg")
    text(data / "ImageSets/Main/train.txt", "00001\n")
    text(data / "ImageSets/Main/test.txt", "00002\n")
    assert run("--from", "dior-r", "--data", data, "--out", out) == 0
    assert (out / "train/labelTxt/00001.txt").read_text() == (
        "0.0 0.0 9.0 0.0 9.0 4.0 0.0 4.0 ship 0\n1.0 2.0 11.0 3.0 10.5 8.0 0.5 7.0 storagetank 1\n"
    )
    assert (out / "test/images/00002.jpg").is_file()
    assert len((out / "classes.txt").read_text().split()) == 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (dior(x_left_top=None), "object 2 (storagetank): x_left_top must be a finite number, it is missing"),
        (dior(y_right_top="inf"), "object 2 (storagetank): y_right_top must be a finite number, got 'inf'"),
        (dior(name="submarine"), "object 2 (submarine): unknown class, expected one of airplane, "),
        (dior(difficult=3), "object 2 (storagetank): difficult must be 0 or 1, got '3'"),
        (
            dior().replace("robndbox", "bndbox"),
            "object 1 (ship): no element robndbox; this is the data set's",
        ),
        (dior().replace("</object>\n", "</objekt>\n"), "a.xml:3: not XML: mismatched tag"),
    ],
)
def test_xml_errors_name_file_and_element(content, message, tmp_path):
    text(tmp_path / "a.xml", content)
    with pytest.raises(ConvertError) as error:
        hrsc_dior.parse_dior(tmp_path / "a.xml", dict.fromkeys(hrsc_dior.DIOR_CLASSES, 0))
    assert str(error.value).startswith(f"{tmp_path / 'a.xml'}:")
    assert message in str(error.value)


def test_hrsc_errors_name_the_object(tmp_path):
    text(tmp_path / "a.xml", hrsc((1, 1, "wide", 1, 0, 0)))
    with pytest.raises(ConvertError, match=r"HRSC_Object 7: mbox_w must be a finite number, got 'wide'"):
        parse_hrsc(tmp_path / "a.xml")
    text(tmp_path / "a.xml", hrsc((1, 1, 1, 1, 0, 0), (1, 1, -2, 1, 0, 0)))
    with pytest.raises(ConvertError, match=r"HRSC_Object 8: mbox_w and mbox_h must not be negative"):
        parse_hrsc(tmp_path / "a.xml")


def fair1m(*objects, unit="pixel"):
    body = "".join(
        f"<object><coordinate>{unit}</coordinate><type>rectangle</type><description>None</description>"
        f"<possibleresult><name>{name}</name></possibleresult><points>"
        + "".join(f"<point>{point}</point>" for point in points.split())
        + "</points></object>\n"
        for name, points in objects
    )
    return (
        "<annotation><source><filename>1.tif</filename><origin>GF2/GF3</origin></source>\n"
        f"<size><width>40</width><height>20</height></size>\n<objects>{body}</objects></annotation>"
    )


def test_fair1m_golden(tmp_path):
    data, out = tmp_path / "FAIR1M", tmp_path / "out"
    closed = "1.0,2.0 11.0,3.0 10.5,8.0 0.5,7.0 1.0,2.0"
    for part, name in (("train/part1", "labelXml"), ("train/part2", "labelXmls")):
        text(data / part / name / "1.xml", fair1m(("Dry Cargo Ship", closed)))
        image(data / part / "images/1.tif")
    text(data / "validation/labelXml/1.xml", fair1m(("A220", closed), ("Bus", "0,0 9,0 9,4 0,4 0,0")))
    text(data / "validation/labelXml/2.xml", fair1m())
    for place in ("validation/images/1.tif", "validation/images/2.tif", "test/images/7.tif"):
        image(data / place)
    assert run("--from", "fair1m", "--data", data, "--out", out) == 0
    ship = "1.0 2.0 11.0 3.0 10.5 8.0 0.5 7.0 Dry-Cargo-Ship 0\n"
    assert (out / "train/labelTxt/part1__1.txt").read_text() == ship
    assert (out / "train/labelTxt/part2__1.txt").read_text() == ship
    found = read_labels(out / "val/labelTxt/1.txt", fair1m_reader.CLASSES)
    assert [fair1m_reader.CLASSES[label] for label in found.labels] == ["A220", "Bus"]
    assert (out / "val/labelTxt/2.txt").read_text() == ""
    assert (out / "test/images/7.tif").is_file()
    assert not (out / "test/labelTxt").exists()
    assert len((out / "classes.txt").read_text().split()) == 37


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (fair1m(("Bus", "1,2 3,4")), "object 1 (Bus): expected a polygon of 3 or more points, got 2"),
        (fair1m(("Bus", "1,2 3,4 5")), "object 1 (Bus): expected a point `x,y`, got '5'"),
        (fair1m(("Bus", "1,2 3,4 5,x")), "object 1 (Bus): expected a coordinate as a finite number, got 'x'"),
        (fair1m(("Bus", "1,2 3,4 5,6"), unit="geographic"), "expected coordinates in pixels, got geographic"),
    ],
)
def test_fair1m_errors_name_the_object(content, message, tmp_path):
    text(tmp_path / "a.xml", content)
    with pytest.raises(ConvertError) as error:
        fair1m_reader.parse_fair1m(tmp_path / "a.xml")
    assert str(error.value).startswith(f"{tmp_path / 'a.xml'}: ")
    assert message in str(error.value)


def test_fair1m_images_without_a_file_are_counted_and_what_was_converted_is_no_part_of_it(tmp_path, capsys):
    data = tmp_path / "FAIR1M"
    text(data / "train/part1/labelXml/1.xml", fair1m(("Bus", "0,0 9,0 9,4 0,4 0,0")))
    for place in ("train/part1/images/1", "train/part1/images/2", "train/part2/images/3", "test/images/4"):
        image(data / f"{place}.tif")
    command = ("--from", "fair1m", "--data", data, "--out", data / "out")
    for _ in range(2):
        assert run(*command) == 0
        told = capsys.readouterr().out
        assert "2 images, 1 objects" in told
        assert "1 images without labels, of a test set; 2 images left out, which nobody annotated" in told


def test_fair1m_that_lacks_images_or_labels(tmp_path):
    text(tmp_path / "train/part1/labelXml/1.xml", fair1m())
    image(tmp_path / "train/part1/images/2.tif")
    with pytest.raises(ConvertError, match="no image for 1 of 1 annotated images, the first is 1 of"):
        fair1m_reader.read_fair1m(tmp_path)
    shutil.rmtree(tmp_path / "train/part1/labelXml")
    with pytest.raises(ConvertError, match="expected folders images with labelXml beside them"):
        fair1m_reader.read_fair1m(tmp_path)


def test_what_has_no_end_is_not_read(yolo, tmp_path):
    for path in (yolo / "labels/train/a.txt", yolo / "a.xml"):
        path.unlink(missing_ok=True)
        path.symlink_to(os.devnull)  # as /dev/zero, but that a test without the mend ends
    text(yolo / "data.yaml", YAML.replace("images/val", os.devnull))
    for read in (lambda: module.read_yolo(yolo), lambda: parse_xml(yolo / "a.xml")):
        with pytest.raises(OSError, match="expected a file, got a folder, a pipe or a device"):
            read()
    with pytest.raises(OSError, match="expected a file, got a folder, a pipe or a device"):
        parse_yolo(yolo / "labels/train/a.txt", 2, lambda: (40, 20))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused_before_anything_is_expanded(encoding, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    bombs = {
        "laughs": '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;">]><a>&y;</a>',
        "file": f'<!DOCTYPE a [<!ENTITY x SYSTEM "file://{secret}">]><a>&x;</a>',
        "dtd": f'<!DOCTYPE a SYSTEM "file://{secret}"><a/>',
    }
    for name, bomb in bombs.items():
        path = tmp_path / f"{name}.xml"
        path.write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>{bomb}'.encode(encoding))
        with pytest.raises(ConvertError, match="DOCTYPE") as error:
            parse_xml(path)
        assert "secret\n" not in str(error.value)


def test_what_is_missing_is_named(tmp_path, capsys):
    data = tmp_path / "d"
    assert run("--from", "dior-r", "--data", data, "--out", tmp_path / "o") == 2
    assert "no such folder" in capsys.readouterr().err
    data.mkdir()
    assert run("--from", "hrsc2016", "--data", data, "--out", tmp_path / "o") == 2
    assert "no folder Annotations with .xml files" in capsys.readouterr().err
    assert run("--from", "yolo-obb", "--data", data, "--out", tmp_path / "o") == 2
    assert "no data.yaml with `names`" in capsys.readouterr().err
    text(data / "Annotations/5.xml", hrsc())
    assert run("--from", "hrsc2016", "--data", data, "--out", tmp_path / "o") == 2
    assert "no image for 1 of 1 annotations, the first is 5" in capsys.readouterr().err
    text(data / "ImageSets/train.txt", "5\n6\n")
    assert run("--from", "hrsc2016", "--data", data, "--out", tmp_path / "o") == 2
    assert "train.txt:2: no " in capsys.readouterr().err
    text(data / "data.yaml", "names: [a\n")
    assert run("--from", "yolo-obb", "--data", data, "--out", tmp_path / "o") == 2
    assert "data.yaml:2: not YAML" in capsys.readouterr().err


@pytest.mark.parametrize("kind", sorted(module.READERS.keys() - {"yolo-obb"}))
def test_a_file_in_place_of_a_folder_is_told(kind, tmp_path, capsys):
    text(file := tmp_path / "labels.json", "{}")
    assert run("--from", kind, "--data", file, "--out", tmp_path / "o") == 2
    said = (
        f"--data {file}: expected a folder, got a file; give the one that holds it and the images, such as "
    )
    assert said + str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("names: [2026-13-45]", r"data.yaml: not YAML: month must be in 1..12"),
        (f"names: [{'9' * 5000}]", r"data.yaml: not YAML: Exceeds the limit"),
        ("[" * 5000, r"data.yaml: not YAML: maximum recursion depth"),
        (f"{BOMB}names: [*b9]", r"expected text in `names` of data.yaml, got list"),
        (f"{BOMB}names: [a]\ntrain: [*b9]", r"expected text in `train` of data.yaml, got list"),
        (f"{BOMB}names: [a]\npath: *b9", r"expected text in `path` of data.yaml, got list"),
        ("names: [a]\ntrain: 5", r"data.yaml's `train: 5` is not there"),
    ],
)
def test_values_of_data_yaml(content, message, tmp_path):
    text(tmp_path / "data.yaml", content)
    with pytest.raises(ConvertError, match=message):
        module.read_yolo(tmp_path)


def test_journal_counts_add_up(yolo, tmp_path):
    dataset = module.read_yolo(yolo)
    first = module.convert(dataset, tmp_path / "o", workers=2)
    assert first == module.convert(dataset, tmp_path / "o") == module.Converted(images=3, objects=3)
    head, *entries = map(json.loads, (tmp_path / "o" / module.JOURNAL).read_text().splitlines())
    assert head == {"convert": 3, "to": "dota", "classes": ["plane", "storage-tank"], "numbered": []}
    assert sorted(entry["image"] for entry in entries) == ["train/a", "train/empty", "val/a"]


def test_yolo_labels_end_at_the_border():
    """Ultralytics leaves out a whole image for one corner beyond it."""
    inside = [10, 10, 30, 10, 30, 20, 10, 20]
    beyond = [80, 40, 110, 40, 110, 60, 80, 60]  # two thirds of it inside 100 pixels
    mostly = [70, 10, 105, 10, 105, 30, 70, 30]
    outside = [120, 10, 140, 10, 140, 30, 120, 30]
    flat = [10, 10, 30, 10, 30, 10, 10, 10]
    quads = np.array([inside, beyond, mostly, outside, flat, inside], np.float64)
    objects = Objects(quads, np.arange(6, dtype=np.int32), np.array([1, 0, 0, 0, 0, 2], np.int32))
    seen, counts = seen_objects(objects, 100, 50)
    assert counts == {"cut_away": 1, "flat": 1, "unseen": 2, "outside": 1}
    assert seen.difficult.tolist() == [1, 0]
    lines = [line.split() for line in module.yolo_text(seen, 100, 50).splitlines()]
    assert [line[0] for line in lines] == ["0", "2"]  # less than .7 visible is left out, as of a tile
    assert [float(field) for field in lines[0][1:]] == [0.1, 0.2, 0.3, 0.2, 0.3, 0.4, 0.1, 0.4]
    assert [float(field) for field in lines[1][1:]] == [0.7, 0.2, 1.0, 0.2, 1.0, 0.6, 0.7, 0.6]


def test_names_that_training_refuses_are_refused_here(tmp_path):
    with pytest.raises(ConvertError, match="car/truck"):
        dataset.one_word(["plane", "car/truck"], tmp_path)


def test_images_of_another_data_set_are_not_replaced(yolo, tmp_path, capsys):
    out, other = tmp_path / "out", tmp_path / "other"
    assert run("--from", "yolo-obb", "--data", yolo, "--out", out) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    shutil.copytree(yolo, other)
    for kind in ("images", "labels"):
        for path in sorted((other / kind).glob("*/*")):
            if path.parent.name != "val":  # of a name that both have, and another image
                path.rename(path.with_name(f"other_{path.name}"))
    for path in (other / "images/val").iterdir():
        os.utime(path, (1, 1))
    capsys.readouterr()
    assert run("--from", "yolo-obb", "--data", other, "--out", out) == 2
    assert "other images, such as train/a; name another --out, or remove it" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
