"""labelTxt, Task 1 files, class lists and image files: identities both ways, and every message."""

import os
import warnings
import zipfile

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from rgfl.boxes import to_quads
from rgfl.detections import Detections
from rgfl.dota import labels
from rgfl.dota.images import ImageError, find_images, read_image
from rgfl.dota.labels import CLASSES, LabelError, LabelWarning, Objects

NAMES = ("plane", "ship")
QUAD = "0 0 10 0 10 5 0 5"
ONE = np.array([[0.0, 0, 10, 0, 10, 5, 0, 5]])

coordinates = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: value + 0.0)


@st.composite
def objects_of(draw):
    count = draw(st.integers(0, 5))
    quads = draw(st.lists(st.lists(coordinates, min_size=8, max_size=8), min_size=count, max_size=count))
    numbers = st.lists(st.integers(0, 2), min_size=count, max_size=count)
    label = st.lists(st.integers(0, len(NAMES) - 1), min_size=count, max_size=count)
    return Objects(
        np.array(quads, np.float64).reshape(-1, 8),
        np.array(draw(label), np.int32),
        np.array(draw(numbers), np.int32),
    )


def written(tmp_path, text, name="P0001.txt"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def found(boxes, scores, classes):
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 5), np.array(scores, np.float32), np.array(classes, np.int32)
    )


# ---- class lists


def test_class_lists_are_the_official_ones():
    assert [len(CLASSES[version]) for version in ("1.0", "1.5", "2.0")] == [15, 16, 18]
    assert CLASSES["2.0"][:15] == CLASSES["1.0"]
    assert CLASSES["1.0"][0] == "plane"
    assert CLASSES["2.0"][-3:] == ("container-crane", "airport", "helipad")


def test_class_lists_as_users_name_them(tmp_path):
    assert labels.read_classes("1.5") == CLASSES["1.5"]
    assert labels.read_classes("v2.0") == CLASSES["2.0"]
    assert labels.read_classes("plane, ship") == NAMES
    assert labels.read_classes("plane") == ("plane",)
    file = written(tmp_path, b"\xef\xbb\xbf# mine\r\nplane\r\n\r\nship \r\n", "classes.txt")
    assert labels.read_classes(str(file)) == NAMES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3.0", r"'3.0': neither a DOTA version \(1.0, 1.5, 2.0\) nor a file that exists"),
        ("no/such.txt", "neither a DOTA version"),
        (",", "no class names"),
        ("plane,plane", "plane named more than once"),
        ("small vehicle,ship", "'small vehicle' has white space"),
        ("../plane,ship", "'../plane' has a slash"),
        ("ship,#plane", "'#plane' would be a comment in a file of class names"),
    ],
)
def test_class_lists_refused(text, message):
    with pytest.raises(ValueError, match=message):
        labels.read_classes(text)


def test_a_class_file_holds_one_name_a_line(tmp_path):
    file = written(tmp_path, "plane,ship\n", "classes.txt")
    with pytest.raises(
        ValueError, match=r"classes.txt: class name 'plane,ship' has a comma; .* one name a line"
    ):
        labels.read_classes(str(file))


def test_names_from_elsewhere_are_held_to_the_same_rules():
    assert labels.checked_names(["ship", "747"], "data.yaml") == ("ship", "747")
    with pytest.raises(ValueError, match=r"data.yaml: class name '' is empty; labelTxt needs it in one word"):
        labels.checked_names(["ship", ""], "data.yaml")
    with pytest.raises(ValueError, match=r"data.yaml: class name 'a/b' has a slash"):
        labels.checked_names(["a/b"], "data.yaml")
    with pytest.raises(ValueError, match=r"class name 'a\\x00b' has characters that cannot be printed"):
        labels.checked_names(["a\0b"], "data.yaml")


def test_class_names_in_order():
    assert labels.in_order({"ship", "bridge", "helipad"}) == ("bridge", "ship", "helipad")
    assert labels.in_order({"ship", "bridge", "aardvark"}) == ("aardvark", "bridge", "ship")
    assert labels.in_order(()) == ()


def test_a_class_file_may_lie_anywhere(tmp_path):
    """A path with a comma is a list of names to those who type it, and a path to those who have it."""
    (tmp_path / "a,b").mkdir()
    file = written(tmp_path / "a,b", "plane\nship\n", "classes.txt")
    assert labels.read_class_file(file) == NAMES


def test_classes_that_differ_in_case_alone_are_told(tmp_path):
    written(tmp_path, f"{QUAD} ship 0\n{QUAD} Plane 0\n{QUAD} plane\n")
    with pytest.warns(LabelWarning, match="classes 'Plane' and 'plane' differ in case alone; taken for two"):
        assert labels.find_classes(tmp_path) == ("Plane", "plane", "ship")


@pytest.mark.parametrize("kind", ["folder", "device"])
def test_what_is_no_readable_file_is_told(kind, tmp_path):
    if kind == "folder":
        (tmp_path / "P0001.txt").mkdir()
    else:
        (tmp_path / "P0001.txt").symlink_to(os.devnull)  # /dev/zero has no end
    with pytest.raises(LabelError, match=r"P0001.txt: cannot be read: expected a file, got a folder,"):
        labels.find_classes(tmp_path)


def test_classes_found_can_name_a_file(tmp_path):
    written(tmp_path, "gsd:1\n0 0 1 0 1 1 0 1 car/truck 0\n")
    with pytest.raises(LabelError, match=r"P0001.txt:2: class name 'car/truck' has a slash"):
        labels.find_classes(tmp_path)


def test_find_classes_in_official_order_else_sorted(tmp_path):
    written(tmp_path, f"{QUAD} ship 0\n{QUAD} plane 0\n", "a.txt")
    written(tmp_path, f"gsd:0.1\n{QUAD} bridge\n", "b.txt")
    assert labels.find_classes(tmp_path) == ("plane", "bridge", "ship")
    written(tmp_path, f"{QUAD} aardvark\n", "c.txt")
    assert labels.find_classes(tmp_path) == ("aardvark", "bridge", "plane", "ship")


# ---- labelTxt


@given(objects=objects_of())
@settings(max_examples=50, deadline=None)
def test_write_then_read_is_identity(tmp_path_factory, objects):
    path = tmp_path_factory.mktemp("labels") / "P0001.txt"
    labels.write_labels(path, objects, NAMES)
    again = labels.read_labels(path, NAMES)
    assert np.array_equal(again.quads, objects.quads)
    assert np.array_equal(again.labels, objects.labels)
    assert np.array_equal(again.difficult, objects.difficult)
    assert (again.quads.dtype, again.labels.dtype, again.difficult.dtype) == (np.float64, np.int32, np.int32)
    assert sorted(file.name for file in path.parent.iterdir()) == ["P0001.txt"]


@pytest.mark.parametrize(
    "text",
    [
        f"{QUAD} ship 1\n",
        f"{QUAD} ship 1",
        f"imagesource:GoogleEarth\ngsd:0.146\n{QUAD} ship 1\n",
        f"imagesource:GoogleEarth\r\ngsd:null\r\n{QUAD} ship 1\r\n",
        f"\ufeff{QUAD} ship 1\n",
        "  0.0\t0 1e1 0 10 5 0.00 5   ship  1 \t \n\n\n",
        f"# by hand\r{QUAD} ship 1\r",
    ],
)
def test_spellings_of_one_label(tmp_path, text):
    objects = labels.read_labels(written(tmp_path, text), NAMES)
    assert np.array_equal(objects.quads, ONE)
    assert objects.labels.tolist() == [1]
    assert objects.difficult.tolist() == [1]


def test_nine_fields_are_not_difficult(tmp_path):
    assert labels.read_labels(written(tmp_path, f"{QUAD} plane\n"), NAMES).difficult.tolist() == [0]


@pytest.mark.parametrize("text", ["", "\n \n", "imagesource:x\ngsd:1\n", "\ufeff"])
def test_files_without_objects(tmp_path, text):
    assert len(labels.read_labels(written(tmp_path, text), NAMES)) == 0


def test_a_cut_off_label_is_skipped_with_a_warning(tmp_path):
    path = written(tmp_path, f"{QUAD} ship 1\n0 0 10 0 10\n")
    with pytest.warns(LabelWarning, match=r"P0001.txt:2: 5 fields, a label has 9 or 10"):
        assert len(labels.read_labels(path, NAMES)) == 1


YOLO = (
    "0 0.1 0.1 0.4 0.1 0.4 0.3 0.1 0.3",
    "17 0.50 -0.02 1.01 0.1 1.000000 0.7 0.5 1.000000",
    "3.0 0 1 1 1 1 0.5 0 0.5",
    "0 0.1 0.1 0.4 0.1 0.4 0.3 0.1 0.3 0.87",
)


@pytest.mark.parametrize("line", YOLO)
def test_yolo_lines_are_not_taken_for_classes_that_are_coordinates(tmp_path, line):
    """Eight shares behind a class number: they passed as eight coordinates and a class called 0.3."""
    path = written(tmp_path, f"{line}\n")
    message = r"P0001.txt:1: this looks like YOLO-OBB.*convert --from yolo-obb --data DIR --out DIR"
    with pytest.raises(LabelError, match=message):
        labels.find_classes(tmp_path)
    for unknown in ("error", "ignore"):
        with pytest.raises(LabelError, match=message):
            labels.read_labels(path, NAMES, unknown)


@pytest.mark.parametrize(
    "line",
    [
        f"{QUAD} 747 0",
        f"{QUAD} 1.5",  # a class of this name, around pixels
        "0 0 2 0 2 1 0 1 1",  # classes by number, an object of two pixels
        "0 0 2 0 2 1 0 1 1 0",
        "0.5 0.5 1.5 0.5 1.5 1.5 0.5 1.5 1",
        "0 0 1.5 0 1.5 1 0 1 v1.5",
    ],
)
def test_numbers_may_be_class_names(tmp_path, line):
    path = written(tmp_path, f"{line}\n")
    (name,) = labels.find_classes(tmp_path)
    assert labels.read_labels(path, (name,)).quads.tolist() == [[float(x) for x in line.split()[:8]]]


@pytest.mark.parametrize(
    "line",
    [
        "0,0,10,0,10,5,0,5,ship,0",
        "0;0;10;0;10;5;0;5;ship",
        "0,0 10,0 10,5 0,5 ship 0",
        "ship,0,0,10,0,10,5,0,5",
        "0,0,10,0,10,5,0,5 ship, 0",
        "0,0 10 0 10 5 0 5 ship",
    ],
)
def test_other_separators_are_told_and_not_skipped(tmp_path, line):
    """Such a line has fewer than nine fields: it was skipped like a header, and its object with it."""
    path = written(tmp_path, f"gsd:0.1\n{QUAD} ship\n{line}\n")
    message = r"P0001.txt:3: expected x1 y1 … x4 y4 class difficult, separated by white space, got "
    for read in (lambda: labels.read_labels(path, NAMES), lambda: labels.find_classes(tmp_path)):
        with pytest.raises(LabelError, match=message):
            read()


def test_headers_may_have_commas(tmp_path):
    text = f"imagesource:GoogleEarth, 2017\ngsd:0,14\nbounds: 1,2;3,4;5,6;7,8\nby A, B\n\n{QUAD} ship\n"
    assert len(labels.read_labels(written(tmp_path, text), NAMES)) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0 10 0 ten 5 0 5 ship 0", "x3 must be a finite number, got 'ten'"),
        ("0, 0, 10, 0, 10, 5, 0, 5, ship, 0", "x1 must be a finite number, got '0,'; white space separates"),
        ("0 0 10 0 10 5 0 nan ship 0", "y4 must be a finite number, got 'nan'"),
        ("0 -inf 10 0 10 5 0 5 ship 0", "y1 must be a finite number, got '-inf'"),
        (f"{QUAD} boat 0", "unknown class 'boat', expected one of plane, ship"),
        (f"{QUAD} ship 0.5", "difficult must be 0, 1 or 2, got '0.5'"),
        (f"{QUAD} ship 3", "difficult must be 0, 1 or 2, got '3'"),
        (f"{QUAD} small vehicle", "difficult must be 0, 1 or 2, got 'vehicle'; a class name is one word"),
        (f"{QUAD} small vehicle 0", "got 11 fields; a class name is one word"),
    ],
)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_bad_lines_are_named_by_file_and_line(tmp_path, line, message, ending):
    path = written(tmp_path, ending.join(["imagesource:x", f"{QUAD} ship 0", line, f"{QUAD} ship x"]))
    with pytest.raises(LabelError) as caught:
        labels.read_labels(path, NAMES)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_classes_can_be_ignored_but_not_their_errors(tmp_path):
    path = written(tmp_path, f"{QUAD} boat 0\n{QUAD} ship 2\n")
    assert labels.read_labels(path, NAMES, ignore_unknown=True).difficult.tolist() == [2]
    assert len(labels.read_labels(path, ["plane"], ignore_unknown=True)) == 0
    path = written(tmp_path, f"{QUAD} boat 0\n{QUAD} boat x\n")
    with pytest.raises(LabelError, match=r"P0001.txt:2: difficult"):
        labels.read_labels(path, NAMES, ignore_unknown=True)


def test_text_that_is_not_utf8(tmp_path):
    path = written(tmp_path, f"{QUAD} ship 0\n{QUAD} sh".encode() + b"\xff")
    with pytest.raises(LabelError, match=r"P0001.txt:2: not UTF-8 text \(byte 0xff\)"):
        labels.read_labels(path, NAMES)


def test_folder_of_labels(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no \.txt file in it"):
        labels.read_label_folder(tmp_path, NAMES)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        labels.read_label_folder(tmp_path / "labelTxt", NAMES)
    written(tmp_path, f"{QUAD} ship 0\n", "b.txt")
    written(tmp_path, "", "a.txt")
    written(tmp_path, b"\x00\x05\x16", "._b.txt")  # what macOS leaves beside files
    folder = labels.read_label_folder(tmp_path, NAMES)
    assert {name: len(objects) for name, objects in folder.items()} == {"a": 0, "b": 1}


def test_records_check_their_shapes():
    with pytest.raises(ValueError, match=r"expected quads \(N, 8\)"):
        Objects(np.zeros((2, 8)), np.zeros(1, np.int32), np.zeros(2, np.int32))
    with pytest.raises(ValueError, match="expected 1 images"):
        labels.Task1Class(["a"], np.zeros(2), np.zeros((2, 8)))
    assert len(Objects(ONE, np.array([1], np.int32), np.array([0], np.int32))[:0]) == 0


# ---- Task 1

DETECTIONS = {
    "P0002": found([[100.25, 50, 30, 10, 0.3], [20000.5, 19000.25, 12, 7, 2.0]], [0.1, 1 / 3], [1, 0]),
    "P0001": found([[5, 5, 4, 2, 0]], [np.float32(1e-8)], [1]),
    "P0003": Detections.empty(),
}


def test_task1_files_give_back_what_was_written(tmp_path):
    labels.write_task1(tmp_path, DETECTIONS, NAMES)
    again, direct = labels.read_task1(tmp_path, NAMES), labels.to_task1(DETECTIONS, NAMES)
    for name in NAMES:
        assert again[name].images == direct[name].images
        assert np.array_equal(again[name].scores, direct[name].scores)
        assert np.array_equal(again[name].quads, direct[name].quads)
    ship = again["ship"]
    assert ship.images == ["P0001", "P0002"]
    assert np.array_equal(ship.scores.astype(np.float32), np.array([1e-8, 0.1], np.float32))
    exact = to_quads(DETECTIONS["P0002"].boxes[:1].astype(np.float64))
    assert np.abs(ship.quads[1] - exact).max() <= 0.51e-4


@given(scores=st.lists(st.floats(0, 1, width=32), max_size=20))
@settings(max_examples=30, deadline=None)
def test_scores_keep_every_bit_of_float32(tmp_path_factory, scores):
    directory = tmp_path_factory.mktemp("task1")
    labels.write_task1(
        directory, {"a": found([[1, 1, 1, 1, 0]] * len(scores), scores, [0] * len(scores))}, NAMES
    )
    again = labels.read_task1(directory, NAMES)["plane"].scores.astype(np.float32)
    assert np.array_equal(again, np.array(scores, np.float32))


def test_task1_lines_are_the_official_grammar(tmp_path):
    labels.write_task1(tmp_path, {"P0001": found([[5, 5, 4, 2, 0]], [0.1], [1])}, NAMES)
    assert (tmp_path / "Task1_ship.txt").read_text() == "P0001 0.1 3.0 4.0 7.0 4.0 7.0 6.0 3.0 6.0\n"
    assert (tmp_path / "Task1_plane.txt").read_text() == ""


def test_submission_is_flat_complete_and_reproducible(tmp_path):
    labels.write_submission(tmp_path / "a.zip", DETECTIONS, CLASSES["1.0"])
    labels.write_submission(tmp_path / "b.zip", dict(reversed(DETECTIONS.items())), CLASSES["1.0"])
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    labels.write_task1(tmp_path / "files", DETECTIONS, CLASSES["1.0"])
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == [f"Task1_{name}.txt" for name in CLASSES["1.0"]]
        for name in archive.namelist():
            assert archive.read(name) == (tmp_path / "files" / name).read_bytes()


def test_task1_reads_files_of_others(tmp_path):
    written(tmp_path, f"\ufeffP0001 .5 {QUAD} \r\n\r\n0042 1 {QUAD}\r\n", "Task1_ship.txt")
    written(tmp_path, "", "Task1_plane.txt")
    task1 = labels.read_task1(tmp_path, NAMES)
    assert task1["ship"].images == ["P0001", "0042"]
    assert task1["ship"].scores.tolist() == [0.5, 1.0]
    assert len(task1["plane"]) == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"P0001 nan {QUAD}", "score must be a finite number, got 'nan'"),
        (f"P0001 high {QUAD}", "score must be a finite number, got 'high'"),
        ("P0001 0.5 0 0 10 0 10 inf 0 5", "y3 must be a finite number, got 'inf'"),
        ("P0001 0.5 0 0 10 0 10 5 0 x", "y4 must be a finite number, got 'x'"),
        ("P0001 0.5 zero 0 10 0 10 5 0 5", "x1 must be a finite number, got 'zero'"),
        ("P0001 0.5 0 0 10 0 10 5 0", "expected 10 fields `image score x1 y1 … x4 y4`, got 9"),
        (f"my image 0.5 {QUAD}", "got 11"),
    ],
)
def test_bad_task1_lines_are_named(tmp_path, line, message):
    written(tmp_path, "", "Task1_plane.txt")
    path = written(tmp_path, f"P0001 .5 {QUAD}\n\n{line}\n", "Task1_ship.txt")
    with pytest.raises(LabelError) as caught:
        labels.read_task1(tmp_path, NAMES)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert message in str(caught.value)


def test_task1_names_of_digits_do_not_hide_a_shifted_line(tmp_path):
    """9 and 11 fields add up to 20, and with numeric names every field is a number."""
    written(tmp_path, "", "Task1_plane.txt")
    path = written(tmp_path, f"1 0.5 0 0 1 0 1 1 0\n2 0.5 {QUAD} 7\n", "Task1_ship.txt")
    with pytest.raises(LabelError) as caught:
        labels.read_task1(tmp_path, NAMES)
    assert str(caught.value).startswith(f"{path}:1: expected 10 fields")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("P9", r"Task1_ship.txt:3: image 'P9' has no label file \(there are 2, P1 … P2\)$"),
        ("P1.png", r"Task1_ship.txt:3: image 'P1.png' has no label file .*; names have no extension$"),
    ],
)
def test_an_unknown_image_is_named_by_file_and_line(tmp_path, name, message):
    written(tmp_path, "", "Task1_plane.txt")
    written(tmp_path, f"P1 .5 0 0 1 0 1 1 0 1\r\n\r\n{name} .5 0 0 1 0 1 1 0 1\r\n", "Task1_ship.txt")
    assert len(labels.read_task1(tmp_path, NAMES)["ship"]) == 2
    with pytest.raises(LabelError, match=message):
        labels.read_task1(tmp_path, NAMES, images={"P1": 0, "P2": 0})


def test_a_missing_class_file_is_named(tmp_path):
    written(tmp_path, "", "Task1_plane.txt")
    with pytest.raises(FileNotFoundError) as caught:
        labels.read_task1(tmp_path, NAMES)
    assert str(tmp_path) in str(caught.value)
    assert "no Task1_<class>.txt for ship" in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        labels.read_task1(tmp_path / "results", NAMES)


def zipped(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in entries:
            archive.writestr(name, text)
    return path.read_bytes()


def test_task1_in_a_zip(tmp_path):
    line = f"P0001 .5 {QUAD}\n"
    entries = [("val/", ""), ("val/Task1_ship.txt", line), ("val/Task1_plane.txt", ""), ("Task1_x.txt", "?")]
    zipped(tmp_path / "a.zip", entries)
    task1 = labels.read_task1(tmp_path / "a.zip", NAMES)
    assert (task1["ship"].images, len(task1["plane"])) == (["P0001"], 0)


def test_zips_that_cannot_be_read_are_named(tmp_path):
    file, line = tmp_path / "a.zip", f"P0001 .5 {QUAD}\n" * 9

    def refused(data):
        file.write_bytes(data)
        with pytest.raises((LabelError, FileNotFoundError)) as caught:
            labels.read_task1(file, ["plane"])
        message = str(caught.value)
        assert message.startswith(str(file))
        return message.removeprefix(str(file))

    def changed(place, header, value):
        """Bytes at these places of the entry's header and of its central one."""
        central = good.index(b"PK\1\2") + header
        data = bytearray(good)
        for at in (place, central):
            data[at] ^= value
        return bytes(data)

    good = zipped(file, [("Task1_plane.txt", line)])
    assert len(labels.read_task1(file, ["plane"])["plane"]) == 9
    assert "File is not a zip file; expected a zip with one" in refused(good[:-10])
    assert "File is not a zip file" in refused(b"hello")
    assert refused(changed(14, 16, 255)).startswith("/Task1_plane.txt: Bad CRC-32")
    assert "is encrypted, password required" in refused(changed(6, 8, 1))
    assert "compression method is not supported" in refused(changed(8, 10, 99))
    start = 30 + len("Task1_plane.txt")
    assert refused(good[:start] + b"\xff" * 9 + good[start + 9 :]).startswith(
        "/Task1_plane.txt: Error -3 while"
    )
    twice = [("val/Task1_plane.txt", line), ("test/Task1_plane.txt", "")]
    assert refused(zipped(file, twice)).startswith("/test/Task1_plane.txt: there are two files of this name")
    assert refused(zipped(file, [("v/Task1_plane.txt", "a b")])).startswith("/Task1_plane.txt:1: expected 10")
    assert refused(zipped(file, [])).startswith(": no Task1_<class>.txt for plane")
    large = changed(25, 27, 0x10)  # of the entry's size
    assert refused(large).startswith("/Task1_plane.txt: more than 268,435,456 bytes; unpack it and give")


@pytest.mark.parametrize(
    ("detections", "message"),
    [
        ({"P0001": found([[1, 1, 1, 1, 0]], [np.nan], [0])}, "image P0001: a detection is NaN"),
        ({"P0001": found([[1, np.inf, 1, 1, 0]], [0.5], [0])}, "image P0001: a detection is NaN"),
        ({"P0001": found([[1, 1, 1, 1, 0]], [0.5], [2])}, "do not index 2 classes"),
        ({"P 1": Detections.empty()}, "image name 'P 1' has white space"),
    ],
)
def test_task1_refuses_to_write(tmp_path, detections, message):
    with pytest.raises(ValueError, match=message):
        labels.write_task1(tmp_path, detections, NAMES)
    assert not list(tmp_path.iterdir())


# ---- image files

RGB = np.dstack([np.full((6, 9), level, np.uint8) for level in (200, 100, 50)])
BGR = RGB[:, :, ::-1]


def encoded(tmp_path, name, pixels):
    path = tmp_path / name
    ok, data = cv2.imencode(path.suffix, np.ascontiguousarray(pixels))
    assert ok
    path.write_bytes(data.tobytes())
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "jpg"])
def test_colours_come_as_rgb(tmp_path, suffix):
    image = read_image(encoded(tmp_path, f"ä.{suffix}", BGR))
    assert (image.shape, image.dtype) == ((6, 9, 3), np.uint8)
    assert np.abs(image.astype(int) - RGB).max() <= (2 if suffix == "jpg" else 0)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_16_bit_and_alpha(tmp_path, suffix):
    grey = read_image(encoded(tmp_path, f"grey.{suffix}", RGB[:, :, 0]))
    assert np.array_equal(grey, np.full((6, 9, 3), 200))
    deep = read_image(encoded(tmp_path, f"deep.{suffix}", np.full((6, 9), 0xC8FF, np.uint16)))
    assert np.array_equal(deep, np.full((6, 9, 3), 0xC8))
    deep = read_image(encoded(tmp_path, f"deep3.{suffix}", BGR.astype(np.uint16) * 257))
    assert np.array_equal(deep, RGB)
    clear = read_image(encoded(tmp_path, f"alpha.{suffix}", np.dstack([BGR, np.zeros((6, 9), np.uint8)])))
    assert np.array_equal(clear, RGB)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_cut_off_images_are_errors(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
    path = encoded(tmp_path, f"P0001.{suffix}", noise)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_what_is_no_image(tmp_path):
    with pytest.raises(ImageError, match=r"P0001.png: cannot be read: No such file"):
        read_image(tmp_path / "P0001.png")
    with pytest.raises(ImageError, match=r"P0001.png: the file is empty"):
        read_image(written(tmp_path, "", "P0001.png"))
    with pytest.raises(ImageError, match=r"P0001.png: not an image that OpenCV reads"):
        read_image(written(tmp_path, "<html>404</html>", "P0001.png"))
    with pytest.raises(ImageError, match="got float32; convert it to 8 bit first"):
        read_image(encoded(tmp_path, "f.tif", np.ones((6, 9), np.float32)))


def test_find_images(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_images(tmp_path / "images")
    for name in ("b.PNG", "a.tiff", "c.jpeg", "Thumbs.db", "a.txt", "._b.png"):
        written(tmp_path, "", name)
    (tmp_path / "d.png").mkdir()
    assert list(find_images(tmp_path)) == ["a", "b", "c"]
    written(tmp_path, "", "a.png")
    with pytest.raises(ImageError, match=r"a.tiff: a.png has the same name"):
        find_images(tmp_path)


@pytest.mark.parametrize("version", ["1.0", "1.5", "2.0"])
def test_version_of_its_classes(version: str) -> None:
    assert labels.version_of(labels.CLASSES[version]) == version
    assert labels.version_of(labels.CLASSES[version][::-1]) == version
    assert labels.version_of(labels.CLASSES[version][-2:]) == version
    assert labels.version_of(("plane", "own-class")) == "1.0"


def test_horizontal_labels_are_told(tmp_path):
    """DOTA's labels for Task 2 have the same form, and trained and scored without a word."""
    upright = [
        f"{x} {y} {x + 9} {y} {x + 9} {y + 5} {x} {y + 5} plane 0\n" for x in range(8) for y in range(8)
    ]
    written(tmp_path, "".join(upright), "P0001.txt")
    with pytest.warns(LabelWarning, match="all 64 boxes lie along the axes: DOTA's horizontal labels"):
        labels.read_label_folder(tmp_path, ["plane"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written(tmp_path, "".join(upright) + "0 0 9 1 8 6 -1 5 plane 0\n", "P0001.txt")
        labels.read_label_folder(tmp_path, ["plane"])
        written(tmp_path, "".join(upright[:40]), "P0001.txt")
        labels.read_label_folder(tmp_path, ["plane"])


def told_crossing(quads):
    return labels.crossing(np.array(quads, float).reshape(-1, 8)).tolist()


BOW_TIE = "0 0 40 0 0 20 40 20"  # left top, right top, left bottom, right bottom


def test_edges_that_cross_are_found():
    bow_tie = np.array(BOW_TIE.split(), float).reshape(4, 2)
    turned = [np.roll(bow_tie, shift, axis=0)[::sense] for shift in range(4) for sense in (1, -1)]
    assert all(told_crossing(turned))
    thin = [[0, 0, 100, 1, 100, 0, 0, 1], [0, 0, 100, 1, 50, 1, 50, 0], [7, 7, 7, 7, 90, 3, 90, 3]]
    no_area = [[5, 5] * 4, [0, 0, 9, 9, 0, 0, 9, 9], [0, 0, 30, 0, 60, 0, 20, 0], [0, 0, 9, 0, 9, 9, 0, 0]]
    dented = [[0, 0, 40, 0, 10, 10, 0, 40], [0, 0, 20, 30, 40, 0, 20, 10]]
    assert not any(told_crossing([*thin, *no_area, *dented]))


@given(seed=st.integers(0, 10**6), grid=st.sampled_from([1.0, 8.0, 0.0]))
@settings(max_examples=50, deadline=None)
def test_edges_cross_where_shapely_says_so(seed, grid):
    quads = np.random.default_rng(seed).uniform(0, 100, (200, 8))
    quads = np.round(quads / grid) * grid if grid else quads
    for quad, crosses in zip(quads, told_crossing(quads), strict=True):
        ring = shapely.LinearRing(quad.reshape(4, 2))
        assert not (crosses and ring.is_simple)
        # Each part of a bow-tie is as high over the edges as they cross, if that is more than a pixel or so.
        parts = [] if ring.is_simple else shapely.polygonize([shapely.node(ring)]).geoms
        if len(parts) == 2 and all(part.buffer(-1.5).area > 0 for part in parts):
            assert crosses


def test_edges_that_cross_are_told_once_with_their_place(tmp_path):
    """Corners in rows gave AP 0 in every class, without a word."""
    written(tmp_path, f"{QUAD} ship 0\n", "a.txt")
    written(tmp_path, f"gsd:1\n{BOW_TIE} boat 0\n{QUAD} ship 0\n{BOW_TIE} ship 0\n", "b.txt")
    with pytest.warns(LabelWarning) as told:
        labels.read_label_folder(tmp_path, NAMES, "ignore")
    assert len(told) == 1
    assert str(told[0].message).startswith(f"{tmp_path}/b.txt:4: edges cross here: corners must go round")
    written(tmp_path, 3 * f"{BOW_TIE} ship 0\n", "c.txt")
    with pytest.warns(LabelWarning, match=r"b.txt:2: edges cross here, and in 4 more objects: ") as told:
        found = labels.read_label_folder(tmp_path, [*NAMES, "boat"])
    assert len(told) == 1
    assert found["c"].quads[0].tolist() == [float(field) for field in BOW_TIE.split()]  # as they are


def test_coordinates_that_are_shares_of_the_sides_are_told(tmp_path):
    """Behind them a class by name, so they passed as objects of less than a pixel."""
    written(tmp_path, "gsd:1\n0.37 0.79 1.02 0.79 1.02 0.81 0.37 0.81 ship 0\n")
    message = r"P0001.txt:2: expected pixels, got coordinates ≤ 2 in all 1 objects; if these are shares"
    with pytest.raises(LabelError, match=message):
        labels.read_label_folder(tmp_path, NAMES)
    written(tmp_path, f"{QUAD} ship\n", "P0002.txt")
    assert len(labels.read_label_folder(tmp_path, NAMES)) == 2


def test_labels_elsewhere_are_named(tmp_path):
    """As DOTA's archives unpack; horizontal labels would be learned without a word."""
    train, horizontal = tmp_path / "train", ("labelTxt-v1.0/Train_Task2_gt/trainset_reclabelTxt", "l-hbb")
    for name in ("labelTxt-v1.0/labelTxt", "labelTxt-v1.5/DOTA-v1.5_train", *horizontal):
        (train / name).mkdir(parents=True)
        written(train / name, "", "P0001.txt")
    with pytest.raises(FileNotFoundError) as error:
        labels.read_label_folder(train / "labelTxt", ["plane"])
    assert str(error.value).endswith(
        f"; found in {train}: labelTxt-v1.0/labelTxt/ (1 files), labelTxt-v1.5/DOTA-v1.5_train/ (1 files)"
        f"; DOTA as published: python -m rgfl.dota.convert --from dota --data {tmp_path} --out DIR"
    )
    (tmp_path / "val/labels").mkdir(parents=True)
    written(tmp_path / "val/labels", "", "P0001.txt")
    with pytest.raises(FileNotFoundError, match=f"; to take them: ln -s labels {tmp_path}/val/labelTxt$"):
        labels.read_label_folder(tmp_path / "val/labelTxt", ["plane"])


def test_archives_that_are_not_unpacked_are_named(tmp_path):
    written(tmp_path, "", "labelTxt.zip")
    with pytest.raises(FileNotFoundError, match=r"no \.txt file in it; .*labelTxt.zip is not unpacked"):
        labels.read_label_folder(tmp_path, ["plane"])


def test_a_string_of_classes_is_not_taken_letter_by_letter(tmp_path):
    nothing = {"P1": Detections(np.zeros((0, 5)), np.zeros(0), np.zeros(0, int))}
    for use in (
        lambda: labels.read_labels(tmp_path / "P1.txt", "plane"),
        lambda: labels.write_task1(tmp_path, nothing, "plane"),
        lambda: labels.read_task1(tmp_path, "1.0"),
    ):
        with pytest.raises(ValueError, match=r"expected a sequence of names; pass read_classes\("):
            use()
