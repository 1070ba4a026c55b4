"""Annotation tools' files become labelTxt: golden numbers in their written forms, nothing lost, errors with
their place."""

import cmath
import json
import math
import shutil
import unicodedata

import cv2
import numpy as np
import pytest

from rgfl.dota.convert import READERS, main
from rgfl.dota.formats.coco import read_coco
from rgfl.dota.formats.dataset import ConvertError
from rgfl.dota.formats.shapes import polygon_corners
from rgfl.dota.labels import read_labels

WIDTH, HEIGHT = 200, 100
# A box of 40 × 20 pixels around (100, 50), turned by a quarter: worked out by hand.
QUARTER = [110, 30, 110, 70, 90, 70, 90, 30]


def image(path, width=WIDTH, height=HEIGHT, orientation=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((height, width, 3), 90, np.uint8)
    if orientation is None:
        path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())
        return
    Image = pytest.importorskip("PIL.Image")
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def dump(path, content):
    text(path, json.dumps(content, ensure_ascii=False))


def turned(cx, cy, w, h, theta):
    """Corners of a box turned clockwise on the screen, by complex numbers."""
    corners = [
        complex(cx, cy) + complex(x, y) * cmath.exp(1j * theta)
        for x, y in ((-w / 2, -h / 2), (w / 2, -h / 2), (w / 2, h / 2), (-w / 2, h / 2))
    ]
    return [value for corner in corners for value in (corner.real, corner.imag)]


def converted(kind, data, tmp_path, *options):
    """Run the command; the labels of each image by split/name, and the class names."""
    out = tmp_path / "out"
    arguments = ["--from", kind, "--data", data, "--out", out, *options]
    assert main([str(argument) for argument in arguments]) == 0
    classes = (out / "classes.txt").read_text(encoding="utf-8").split()
    found = {
        path.relative_to(out).as_posix().replace("labelTxt/", "").removesuffix(".txt"): read_labels(
            path, classes
        )
        for path in sorted(out.rglob("labelTxt/*.txt"))
    }
    for name in found:
        split, _, stem = name.rpartition("/")
        assert list((out / split / "images").glob(f"{stem}.*"))
    return found, classes


def message(kind, data, classes=None):
    with pytest.raises(ConvertError) as error:
        READERS[kind](data, classes)
    return str(error.value)


# ---------------------------------------------------------------------------------------------
# COCO


def coco(*annotations, categories=None, images=None, **more):
    if categories is None:
        categories = [{"id": 1, "name": "ship", "supercategory": ""}]
    if images is None:
        images = [{"id": 1, "width": WIDTH, "height": HEIGHT, "file_name": "a.png", "license": 0}]
    annotations = [
        {"id": place, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 8.0} | annotation
        for place, annotation in enumerate(annotations, start=1)
    ]
    return {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": "", "date_created": "", "description": "", "url": "", "version": ""},
        "categories": categories,
        "images": images,
        "annotations": annotations,
        **more,
    }


def cvat_box(rotation, *, bbox=(80.0, 40.0, 40.0, 20.0), **attributes):
    """As CVAT's `COCO 1.0` writes a rectangle: the box before it was turned, and the angle."""
    attributes = {"occluded": False, **attributes, "rotation": rotation}
    return {"segmentation": [], "bbox": list(bbox), "attributes": attributes}


def test_coco_of_cvat(tmp_path):
    data = tmp_path / "data"
    annotations = [cvat_box(90.0), cvat_box(0.0, difficult=True), cvat_box(330.5, bbox=(10.5, 20, 31, 7.25))]
    dump(data / "annotations/instances_default.json", coco(*annotations))
    image(data / "images/default/a.png")
    found, classes = converted("coco", data, tmp_path)
    assert classes == ["ship"]
    quads = found["a"].quads
    np.testing.assert_allclose(quads[0], QUARTER, atol=1e-12)
    np.testing.assert_array_equal(quads[1], [80, 40, 120, 40, 120, 60, 80, 60])
    np.testing.assert_allclose(quads[2], turned(26, 23.625, 31, 7.25, math.radians(330.5)), atol=1e-12)
    assert found["a"].difficult.tolist() == [0, 1, 0]


def test_coco_of_roboflow(tmp_path):
    data = tmp_path / "data"
    categories = [
        {"id": 0, "name": "harbour-things", "supercategory": "none"},
        {"id": 1, "name": "storage tank", "supercategory": "harbour-things"},
        {"id": 2, "name": "plane", "supercategory": "harbour-things"},
    ]
    quad = [10, 10.5, 30, 5, 35, 25, 15, 30]
    closed = [*quad, 10, 10.5]
    for folder in ("train", "valid"):
        content = coco(
            {"id": 0, "segmentation": [quad], "bbox": [10, 5, 25, 25]},
            {"id": 1, "segmentation": [closed], "category_id": 2, "attributes": {"difficult": True}},
            categories=categories,
        )
        dump(data / folder / "_annotations.coco.json", content)
        image(data / folder / "a.png")
    found, classes = converted("coco", data, tmp_path)
    assert classes == ["storage-tank", "plane"]
    assert list(found) == ["train/a", "val/a"]
    np.testing.assert_array_equal(found["val/a"].quads, [quad, quad])
    assert found["val/a"].labels.tolist() == [0, 1]
    assert found["val/a"].difficult.tolist() == [0, 1]


def test_a_crowd_of_coco_is_no_object(tmp_path, capsys):
    """It was learned as one, as objects are that are difficult 1."""
    data, crowd = tmp_path / "data", {"iscrowd": 1, "segmentation": [[10, 10, 90, 10, 90, 50, 10, 50]]}
    marked = crowd | {"attributes": {"difficult": True}}
    dump(data / "a.json", coco(cvat_box(0.0), crowd, marked))
    image(data / "a.png")
    found, _ = converted("coco", data, tmp_path)
    assert found["a"].difficult.tolist() == [0, 2, 2]
    numbers = tmp_path / "yolo"
    assert main(["--from", "coco", "--to", "yolo-obb", "--data", str(data), "--out", str(numbers)]) == 0
    assert (numbers / "labels/a.txt").read_text().count("\n") == 1
    assert "2 objects left out, of difficult 2" in capsys.readouterr().out


def test_coco_outlines_become_the_rectangle_of_least_area(tmp_path):
    """Points on the sides of a turned rectangle, in one polygon and in two."""
    data = tmp_path / "data"
    corners = np.reshape(turned(100, 50, 60, 20, math.radians(25)), (4, 2))
    middles = (corners + np.roll(corners, -1, 0)) / 2
    outline = np.stack([corners, middles], axis=1).reshape(-1, 2)
    halves = [np.concatenate([outline[:4], outline[:1]]), outline[3:]]
    annotations = [
        {"segmentation": [outline.reshape(-1).tolist()]},
        {"segmentation": [half.reshape(-1).tolist() for half in halves]},
    ]
    dump(data / "labels.json", coco(*annotations))
    image(data / "images/a.png")
    found, _ = converted("coco", data, tmp_path)
    for quad in found["a"].quads.reshape(-1, 4, 2):
        distances = np.linalg.norm(quad[:, None] - corners, axis=-1)
        assert distances.min(1).max() < 1e-4
        assert sorted(distances.argmin(1)) == [0, 1, 2, 3]


def test_rectangles_around_outlines_are_least_and_exact_far_from_the_origin():
    """One side of the least rectangle runs along two of the points, so all such directions are tried."""
    rng, offset = np.random.default_rng(0), np.array([30000, 20000])
    for _ in range(50):
        points = rng.uniform(0, 30, (rng.integers(5, 12), 2))
        near = np.reshape(polygon_corners("", points), (4, 2))
        far = np.reshape(polygon_corners("", points + offset), (4, 2)) - offset
        np.testing.assert_allclose(far, near, atol=1e-3)
        edges = np.roll(near, -1, 0) - near
        to_points = points - near[:, None]
        assert (edges[:, None, 0] * to_points[..., 1] - edges[:, None, 1] * to_points[..., 0] > -1e-2).all()
        along = (points - points[:, None])[np.triu_indices(len(points), 1)]
        across = along[:, ::-1] * [1, -1]
        areas = np.ptp(points @ along.T, 0) * np.ptp(points @ across.T, 0) / (along**2).sum(1)
        assert np.prod(np.linalg.norm(edges[:2], axis=1)) == pytest.approx(areas.min(), rel=1e-4)


def test_coco_of_detectron2_turns_the_other_way(tmp_path):
    data = tmp_path / "data"
    info = {"description": "Automatically generated COCO json file for Detectron2."}
    dump(data / "labels.json", coco({"bbox": [100, 50, 40, 20, -30.0]}, info=info))
    image(data / "a.png")
    found, _ = converted("coco", data, tmp_path)
    np.testing.assert_allclose(found["a"].quads[0], turned(100, 50, 40, 20, math.pi / 6), atol=1e-12)
    dump(data / "labels.json", coco({"bbox": [100, 50, 40, 20, -30.0]}))
    assert "labels.json: annotation 1: expected corners in segmentation, got a bbox of 5" in message(
        "coco", data
    )


def test_coco_classes_come_by_category_id_and_images_by_their_names_elsewhere(tmp_path):
    """Ids as they fall, a path of Windows, a name in the Unicode form of a Mac, and empty images."""
    data = tmp_path / "data"
    composed = unicodedata.normalize("NFC", "Zürich.png")
    images = [
        {"id": 907, "file_name": f"D:\\images\\{composed}"},
        {"id": "x", "file_name": "site/b.png", "width": WIDTH, "height": HEIGHT},
    ]
    categories = [{"id": 90, "name": "plane"}, {"id": 7, "name": "ship"}, {"id": 8, "name": "tank"}]
    annotation = {"segmentation": [[1, 1, 9, 1, 9, 5, 1, 5]], "image_id": 907, "category_id": 90}
    content = json.dumps(coco(annotation, categories=categories, images=images), indent=1, ensure_ascii=False)
    text(data / "annotations/instances_train2017.json", "\ufeff" + content.replace("\n", "\r\n"))
    image(data / "train2017" / unicodedata.normalize("NFD", composed))
    image(data / "images/site/b.png")
    found, classes = converted("coco", data, tmp_path)
    assert classes == ["ship", "tank", "plane"]
    assert {name: len(objects) for name, objects in found.items()} == {
        "train/b": 0,
        f"train/{unicodedata.normalize('NFD', 'Zürich')}": 1,
    }


def test_coco_names_images_and_no_other_files(tmp_path):
    dump(tmp_path / "labels.json", coco(images=[{"id": 1, "file_name": "a.vrt"}]))
    text(tmp_path / "a.vrt", "<VRTDataset>")
    assert "no image for 1 of 1 annotated images, the first is a.vrt" in message("coco", tmp_path)


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        ({"segmentation": {"counts": "abc", "size": [9, 9]}}, "expected polygons, got a mask (RLE)"),
        ({"bbox": [1, 2, 3, 4]}, "got bbox alone: a horizontal box"),
        ({"bbox": [1, 2, 3, 4], "attributes": {"occluded": False}}, "got bbox alone: a horizontal box"),
        ({}, "expected a segmentation, or a bbox of 4 numbers, got nothing"),
        ({"segmentation": [[1, 2, 3, 4]]}, "expected a polygon `[x1, y1, x2, y2, x3, y3, …]`"),
        ({"segmentation": [1, 2, 3, 4, 5, 6]}, "in segmentation, got 1"),
        ({"segmentation": "x"}, "expected segmentation as a list, got 'x'"),
        (
            {"segmentation": [[1, 2, 3, 4, 5, None]]},
            "a coordinate of segmentation as a finite number, got nothing",
        ),
        ({"segmentation": [[1, 2, 3, 4, 5, math.inf]]}, "as a finite number, got inf"),
        ({"segmentation": [[0, 0, 1e308, 0, 1e308, 1e308, 5, 9, 0, 9]]}, "as a finite number, got 1e+308"),
        (cvat_box("steep"), "expected attributes.rotation as a finite number, got 'steep'"),
        (cvat_box(0, bbox=(1, 2, -3, 4)), "expected sides that are not negative, got -3 × 4"),
        ({"image_id": 5}, "expected image_id to be the id of an image, got 5"),
        ({"image_id": [1]}, "expected image_id to be the id of an image, got [1]"),
        ({"category_id": 9}, "expected category_id to be a category's id, got 9"),
        ({"category_id": None}, "expected category_id to be a category's id, got nothing"),
    ],
)
def test_coco_errors_name_file_and_annotation(annotation, expected, tmp_path):
    dump(tmp_path / "labels.json", coco(cvat_box(0), annotation))
    image(tmp_path / "a.png")
    found = message("coco", tmp_path)
    assert found.startswith(f"{tmp_path / 'labels.json'}: annotation 2: ")
    assert expected in found


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"images": [],\n "annotations": [,', ":2: not JSON: Expecting value"),
        ("", ":1: not JSON: Expecting value"),
        ("[" * 100_000, ": not JSON that is read: "),
        ("[]", ": expected an object with annotations, got []"),
        ('{"annotations": {}}', ": expected annotations as a list, got {}"),
        ('{"annotations": [3]}', ": annotations no. 1: expected an object, got 3"),
        (
            '{"annotations": [], "categories": [{"id": 1}]}',
            ": category 1: expected name as text, got nothing",
        ),
        (
            '{"annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            ": categories no. 2: expected an id of its own, got 1",
        ),
        (
            '{"annotations": [], "categories": [], "images": [{"id": 4}]}',
            ": image 4: expected file_name as text, got nothing",
        ),
    ],
)
def test_json_errors_name_file_and_place(content, expected, tmp_path):
    text(tmp_path / "labels.json", content)
    assert message("coco", tmp_path).startswith(f"{tmp_path / 'labels.json'}{expected}")


def test_coco_files_must_be_one_a_split(tmp_path):
    assert "no such folder" in message("coco", tmp_path / "none")
    assert "expected annotations/instances_train.json" in message("coco", tmp_path)
    for name in ("labels.json", "others.json"):
        dump(tmp_path / name, coco())
    assert "expected one .json file a split, got labels.json, others.json" in message("coco", tmp_path)


# ---------------------------------------------------------------------------------------------
# CVAT


def cvat(*shapes, labels="<label><name>ship</name><type>any</type></label>", attributes="", name="a.png"):
    """As CVAT writes a task."""
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n  <meta>\n'
        f"    <job>\n      <labels>{labels}</labels>\n    </job>\n"
        "    <dumped>2026-11-29 08:00:00+00:00</dumped>\n  </meta>\n"
        f'  <image id="0" name="{name}" {attributes} width="{WIDTH}" height="{HEIGHT}">\n'
        f"    {''.join(shapes)}\n  </image>\n</annotations>\n"
    )


def xml_box(rotation="", label="ship", inside=""):
    return (
        f'<box label="{label}" source="manual" occluded="0" xtl="80.00" ytl="40.00" xbr="120.00" ybr="60.00" '
        f'{rotation} z_order="0">{inside}</box>'
    )


def test_cvat_task(tmp_path):
    data = tmp_path / "data"
    labels = "".join(
        f"<label><name>{name}</name><color>#fff</color><type>{kind}</type><attributes></attributes>{more}</label>"
        for name, kind, more in (
            ("storage tank", "rectangle", ""),
            ("night", "tag", ""),
            ("bow", "points", "<parent>ship</parent>"),
            ("ship", "any", ""),
        )
    )
    shapes = [
        xml_box('rotation="90.00"'),
        xml_box(),
        xml_box('rotation="333.30"', "storage tank", '<attribute name="difficult">true</attribute>'),
        '<polygon label="ship" source="manual" occluded="0" points="1.5,2;9,2;9,7;1.5,7" z_order="0"/>',
        '<tag label="night" source="manual"></tag>',
    ]
    text(data / "annotations.xml", "\ufeff" + cvat(*shapes, labels=labels).replace("\n", "\r\n"))
    image(data / "images/a.png")
    found, classes = converted("cvat", data, tmp_path)
    assert classes == ["storage-tank", "ship"]
    quads = found["a"].quads
    np.testing.assert_allclose(quads[0], QUARTER, atol=1e-12)
    np.testing.assert_array_equal(quads[1], [80, 40, 120, 40, 120, 60, 80, 60])
    np.testing.assert_allclose(quads[2], turned(100, 50, 40, 20, math.radians(333.3)), atol=1e-12)
    np.testing.assert_array_equal(quads[3], [1.5, 2, 9, 2, 9, 7, 1.5, 7])
    assert found["a"].labels.tolist() == [1, 1, 0, 1]
    assert found["a"].difficult.tolist() == [0, 0, 1, 0]


def test_cvat_subsets_and_folders(tmp_path):
    data = tmp_path / "data"
    text(
        data / "annotations.xml",
        cvat(xml_box(), attributes='subset="Validation" task_id="3"', name="x/a.png"),
    )
    image(data / "images/Validation/x/a.png")
    found, _ = converted("cvat", data, tmp_path)
    assert list(found) == ["val/a"]
    (data / "annotations.xml").unlink()
    text(data / "test/annotations.xml", cvat(xml_box()))
    image(data / "test/images/a.png")
    assert [item.split for item in READERS["cvat"](data, None).items] == ["test"]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (
            '<box label="ship" xtl="1" ytl="2" xbr="3"/>',
            "box 1 (ship): expected ybr as a finite number, got nothing",
        ),
        ('<box label="ship" xtl="1" ytl="2" xbr="3" ybr="x"/>', "expected ybr as a finite number, got 'x'"),
        (
            '<box label="ship" xtl="5" ytl="2" xbr="3" ybr="4"/>',
            "expected sides that are not negative, got -2 × 2",
        ),
        (xml_box('rotation="nan"'), "expected rotation as a finite number, got 'nan'"),
        (
            '<polygon label="ship" points="1,2;3,4"/>',
            "polygon 1 (ship): expected a polygon of 3 or more points, got 2",
        ),
        ('<polygon label="ship" points="1,2;3"/>', "expected points `x,y;x,y;…`, got '1,2;3'"),
    ],
)
def test_cvat_errors_name_file_image_and_shape(shape, expected, tmp_path):
    text(tmp_path / "annotations.xml", cvat(shape))
    image(tmp_path / "a.png")
    found = message("cvat", tmp_path)
    assert found.startswith(f"{tmp_path / 'annotations.xml'}: image a.png: ")
    assert expected in found


def test_cvat_refuses_what_has_no_corners(tmp_path):
    image(tmp_path / "a.png")
    shapes = ['<ellipse label="tank" cx="9" cy="9" rx="5" ry="5"/>', '<points label="bow" points="1,2"/>']
    text(tmp_path / "annotations.xml", cvat(xml_box(), *shapes))
    found = message("cvat", tmp_path)
    assert "annotations.xml: image a.png: ellipse 2 (tank): expected a box or polygon; 2 shapes" in found
    text(tmp_path / "annotations.xml", '<annotations><track id="0" label="ship"/></annotations>')
    assert "got CVAT for video 1.1; export the task as" in message("cvat", tmp_path)
    text(tmp_path / "annotations.xml", "<annotations/>")
    assert "expected elements image" in message("cvat", tmp_path)
    text(tmp_path / "annotations.xml", "<!DOCTYPE a []><annotations/>")
    assert "DOCTYPE" in message("cvat", tmp_path)


# ---------------------------------------------------------------------------------------------
# LabelMe and X-AnyLabeling


def labelme(*shapes, name="a.png", width=WIDTH, height=HEIGHT):
    return {
        "version": "5.4.1",
        "flags": {},
        "shapes": list(shapes),
        "imagePath": name,
        "imageData": "aW1hZ2U=",
        "imageHeight": height,
        "imageWidth": width,
    }


def drawn(kind, *points, label="ship", **more):
    shape = {"label": label, "points": [list(point) for point in points], "group_id": None, "description": ""}
    return shape | {"shape_type": kind, "flags": {}} | more


def test_labelme_and_x_anylabeling(tmp_path):
    data = tmp_path / "data"
    corners = [(110.0, 30.5), (110, 70), (90, 70), (90, 30.5)]
    shapes = [
        drawn("rotation", *corners, score=None, difficult=True, attributes={}, direction=math.pi / 2),
        drawn("oriented_rectangle", *corners, label="storage tank"),
        drawn("rectangle", (9, 8), (3, 2.5)),
        drawn("rectangle", (3, 2), (9, 2), (9, 8), (3, 8), difficult=False),
        drawn("polygon", *corners, flags={"difficult": True}),
        drawn("polygon", (10, 10), (30, 10), (30, 20), (20, 20), (10, 20)),
    ]
    dump(data / "train/a.json", labelme(*shapes))
    image(data / "train/a.png")
    image(data / "train/not_yet.png")
    dump(
        data / "labels/val/b.json", labelme(drawn("rectangle", (1, 1), (5, 5)), name="..\\images\\val\\b.jpg")
    )
    image(data / "images/val/b.jpg")
    found, classes = converted("labelme", data, tmp_path)
    assert classes == ["ship", "storage-tank"]
    assert list(found) == ["train/a", "val/b"]
    quads = found["train/a"].quads
    np.testing.assert_array_equal(quads[[0, 1, 4]], [np.ravel(corners)] * 3)
    np.testing.assert_array_equal(quads[2], [3, 2.5, 9, 2.5, 9, 8, 3, 8])
    np.testing.assert_array_equal(quads[3], [3, 2, 9, 2, 9, 8, 3, 8])
    np.testing.assert_allclose(
        sorted(quads[5].reshape(4, 2).tolist()), [[10, 10], [10, 20], [30, 10], [30, 20]]
    )
    assert found["train/a"].labels.tolist() == [0, 1, 0, 0, 0, 0]
    assert found["train/a"].difficult.tolist() == [1, 0, 0, 0, 1, 0]


def test_images_without_a_file_are_counted(tmp_path, capsys):
    data = tmp_path / "data"
    dump(data / "a.json", labelme(drawn("rectangle", (1, 1), (5, 5)), name="renamed.png"))
    image(data / "a.png")
    image(data / "b.png")
    assert list(converted("labelme", data, tmp_path)[0]) == ["a"]
    assert "1 images left out, which nobody annotated" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ({"points": [[1, 2]]}, "shape 2: expected label as text, got nothing"),
        (3, "shape 2: expected an object with label, got 3"),
        ({"label": "ship"}, "shape 2 (ship): expected points as a list, got nothing"),
        (drawn("polygon", (1, 2), (3, 4)), "expected a polygon of 3 or more points, got 2"),
        (drawn("rotation", (1, 2), (3, 4)), "expected 4 points of a rotation, got 2"),
        (drawn("rectangle", (1, 2), (3, 4), (5, 6)), "expected 4 points of a rectangle, got 3"),
        (drawn("polygon", (1, 2, 3)), "expected points as pairs `[x, y]`, got [[1, 2, 3]]"),
        (
            drawn("polygon", (1, None), (3, 4), (4, 4)),
            "expected a coordinate as a finite number, got nothing",
        ),
    ],
)
def test_labelme_errors_name_file_and_shape(shape, expected, tmp_path):
    dump(tmp_path / "a.json", labelme(drawn("rectangle", (1, 1), (5, 5)), shape))
    image(tmp_path / "a.png")
    found = message("labelme", tmp_path)
    assert found.startswith(f"{tmp_path / 'a.json'}: shape 2")
    assert expected in found


def test_labelme_refuses_what_has_no_corners(tmp_path):
    shapes = [drawn("circle", (1, 2), (3, 4), label="tank"), drawn("point", (1, 2))]
    dump(tmp_path / "a.json", labelme(*shapes))
    image(tmp_path / "a.png")
    found = message("labelme", tmp_path)
    assert "shape 1 (tank): a circle: expected a polygon, rectangle or turned box; 2 shapes of" in found


# ---------------------------------------------------------------------------------------------
# roLabelImg


def rolabelimg(*objects):
    return (
        '<annotation verified="yes">\n  <folder>hsrc</folder>\n  <filename>100000002</filename>\n'
        "  <path>hsrc/100000002.bmp</path>\n  <source>\n    <database>Unknown</database>\n  </source>\n"
        f"  <size>\n    <width>{WIDTH}</width>\n    <height>{HEIGHT}</height>\n"
        f"    <depth>3</depth>\n  </size>\n  <segmented>0</segmented>\n{''.join(objects)}</annotation>\n"
    )


def robndbox(cx=100.0, cy=50.0, w=40.0, h=20.0, angle=0.0, name="ship", difficult=0):
    return (
        f"  <object>\n    <type>robndbox</type>\n    <name>{name}</name>\n    <pose>Unspecified</pose>\n"
        f"    <truncated>0</truncated>\n    <difficult>{difficult}</difficult>\n    <robndbox>\n"
        f"      <cx>{cx}</cx>\n      <cy>{cy}</cy>\n      <w>{w}</w>\n      <h>{h}</h>\n"
        f"      <angle>{angle}</angle>\n    </robndbox>\n  </object>\n"
    )


def test_rolabelimg(tmp_path):
    data = tmp_path / "data"
    bndbox = (
        "<object><type>bndbox</type><name>plane</name><difficult>1</difficult><bndbox>"
        "<xmin>3</xmin><ymin>4</ymin><xmax>33</xmax><ymax>24</ymax></bndbox></object>"
    )
    boxes = [robndbox(angle=math.pi / 2), robndbox(100.0957, 47.4731, 40.4283, 73.2257, 2.632232), bndbox]
    text(data / "Annotations/train/100000002.xml", rolabelimg(*boxes))
    image(data / "images/train/100000002.bmp")
    found, classes = converted("rolabelimg", data, tmp_path)
    assert classes == ["plane", "ship"]
    objects = found["train/100000002"]
    np.testing.assert_allclose(objects.quads[0], QUARTER, atol=1e-12)
    np.testing.assert_allclose(
        objects.quads[1], turned(100.0957, 47.4731, 40.4283, 73.2257, 2.632232), atol=1e-12
    )
    np.testing.assert_array_equal(objects.quads[2], [3, 4, 33, 4, 33, 24, 3, 24])
    assert objects.labels.tolist() == [1, 1, 0]
    assert objects.difficult.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (rolabelimg(robndbox(angle=120)), ": object 1 (ship): expected angle in radians (−2π…2π), got 120"),
        (rolabelimg(robndbox(cx="")), ": object 1 (ship): expected cx as a finite number, got ''"),
        (rolabelimg(robndbox(h=-1)), ": object 1 (ship): expected sides that are not negative, got 40 × -1"),
        (rolabelimg(robndbox(difficult=2)), ": object 1 (ship): expected difficult as 0 or 1, got '2'"),
        (
            rolabelimg("<object><name>ship</name></object>"),
            ": object 1 (ship): expected an element robndbox or bndbox, got neither",
        ),
        ("<annotations/>", ": expected an element annotation of roLabelImg, got annotations"),
        ("<annotation>\n<a></annotation>", ":2: not XML: "),
    ],
)
def test_rolabelimg_errors_name_file_and_object(content, expected, tmp_path):
    text(tmp_path / "a.xml", content)
    image(tmp_path / "a.png")
    assert message("rolabelimg", tmp_path).startswith(f"{tmp_path / 'a.xml'}{expected}")


# ---------------------------------------------------------------------------------------------
# What all share


def one_of_each(kind, data, label="ship", name="a.png", width=WIDTH, height=HEIGHT):
    """A file of the kind, with one box in the image `name` of the size that it says."""
    if kind == "coco":
        images = [{"id": 1, "file_name": name, "width": width, "height": height}]
        dump(data / "a.json", coco(cvat_box(0), images=images, categories=[{"id": 1, "name": label}]))
    elif kind == "labelme":
        shape = drawn("rectangle", (1, 1), (5, 5), label=label)
        dump(data / "a.json", labelme(shape, name=name, width=width, height=height))
    else:
        content = (
            cvat(xml_box(label=label), name=name) if kind == "cvat" else rolabelimg(robndbox(name=label))
        )
        content = content.replace(f'width="{WIDTH}" height="{HEIGHT}"', f'width="{width}" height="{height}"')
        content = content.replace(f"<width>{WIDTH}</width>", f"<width>{width}</width>")
        content = content.replace(f"<height>{HEIGHT}</height>", f"<height>{height}</height>")
        text(data / "a.xml", content)


TOOLS = ["coco", "cvat", "labelme", "rolabelimg"]


@pytest.mark.parametrize("kind", TOOLS)
def test_sizes_must_agree(kind, tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    one_of_each(kind, data, width=400)
    image(data / "a.png")
    assert main(["--from", kind, "--data", str(data), "--out", str(out)]) == 2
    shown = capsys.readouterr().err
    assert "expected an image of 400 × 100 pixels, got 200 × 100 in" in shown
    assert "use the images that were annotated" in shown
    assert str(data / "a.") in shown


@pytest.mark.parametrize("kind", TOOLS)
def test_images_are_taken_as_they_are_shown(kind, tmp_path, capsys):
    """Stored as 100 × 200 and shown as 200 × 100, which most tools know, and others do not."""
    data, out = tmp_path / "data", tmp_path / "out"
    image(data / "a.jpg", HEIGHT, WIDTH, orientation=6)
    one_of_each(kind, data, name="a.jpg")
    assert main(["--from", kind, "--data", str(data), "--out", str(out)]) == 0
    one_of_each(kind, data, name="a.jpg", width=HEIGHT, height=WIDTH)
    assert main(["--from", kind, "--data", str(data), "--out", str(out)]) == 2
    assert "if the tool ignored its EXIF orientation, remove that mark" in capsys.readouterr().err


@pytest.mark.parametrize("kind", TOOLS)
def test_missing_images_are_named_and_counted(kind, tmp_path):
    one_of_each(kind, tmp_path, name="gone.png")
    found = message(kind, tmp_path)
    assert "no image for 1 of 1 annotated images, the first is" in found
    assert ("a.xml (1 objects)" if kind == "rolabelimg" else "gone.png") in found


@pytest.mark.parametrize("kind", TOOLS)
def test_classes_choose_which_and_the_order(kind, tmp_path):
    composed = unicodedata.normalize("NFC", "bâteau  à voile")
    one_of_each(kind, tmp_path, label=unicodedata.normalize("NFD", composed))
    image(tmp_path / "a.png")
    wanted = "-".join(composed.split())
    names = READERS[kind](tmp_path, None).classes
    assert wanted in names
    if kind in ("coco", "cvat"):  # whose files list the classes: what is not among them is misspelt
        assert READERS[kind](tmp_path, [wanted]).classes == (wanted,)
        assert f"has none of plane; it has {', '.join(names)}" in message(kind, tmp_path, ["plane", wanted])
    else:
        dataset = READERS[kind](tmp_path, ["plane", wanted])
        assert dataset.classes == ("plane", wanted)
        assert dataset.read(dataset.items[0], lambda: (WIDTH, HEIGHT)).labels.tolist() == [1]
        assert f"has none of boat; it has {wanted}" in message(kind, tmp_path, ["boat"])


def test_objects_of_other_classes_are_left_out_and_counted(tmp_path, capsys):
    image(tmp_path / "data/a.png")
    shapes = [drawn("rectangle", (1, 1), (5, 5), label=label) for label in ("ship", "buoy")]
    dump(tmp_path / "data/a.json", labelme(*shapes))
    command = ["--from", "labelme", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    assert main([*command, "--classes", "ship"]) == 0
    assert "1 images, 1 objects of 1 classes" in (told := capsys.readouterr().out)
    assert "1 objects left out, of classes that --classes lacks" in told


def test_classes_of_tools_are_joined(tmp_path):
    image(tmp_path / "data/a.png")
    shapes = [drawn("rectangle", (1, 1), (5, 5), label=label) for label in ("tug boat", "buoy", "ferry")]
    dump(tmp_path / "data/a.json", labelme(*shapes))
    found, classes = converted("labelme", tmp_path / "data", tmp_path, "--rename", "ferry=ship,tug boat=ship")
    assert classes == ["buoy", "ship"]
    assert found["a"].labels.tolist() == [1, 0, 1]


def test_a_closed_triangle_is_a_triangle(tmp_path):
    open_one, closed = [1, 1, 20, 1, 20, 20], [1, 1, 20, 1, 20, 20, 1, 1]
    image(tmp_path / "data/a.png")
    boxes = []
    for outline in (open_one, closed):
        dump(tmp_path / "data/a.json", coco({"segmentation": [outline]}))
        boxes.append(converted("coco", tmp_path / "data", tmp_path)[0]["a"].quads)
    np.testing.assert_array_equal(*boxes)


@pytest.mark.parametrize("kind", ["labelme", "rolabelimg"])
def test_hidden_folders_are_not_looked_into(kind, tmp_path):
    one_of_each(kind, tmp_path)
    image(tmp_path / "a.png")
    (tmp_path / ".trash").mkdir()
    [file] = [path for path in tmp_path.iterdir() if path.suffix in (".json", ".xml")]
    shutil.copy(file, tmp_path / ".trash")
    assert len(READERS[kind](tmp_path, None).items) == 1


@pytest.mark.parametrize("kind", ["labelme", "rolabelimg"])
def test_links_may_lead_in_circles(kind, tmp_path):
    one_of_each(kind, tmp_path)
    image(tmp_path / "a.png")
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    assert len(READERS[kind](tmp_path, None).items) == 1


def test_an_image_of_no_split_beside_others_is_refused(tmp_path, capsys):
    for folder in ("train", "val", "night"):
        image(tmp_path / f"data/{folder}/{folder}.png")
        dump(tmp_path / f"data/{folder}/{folder}.json", labelme(drawn("rectangle", (1, 1), (5, 5)), name=""))
    assert main(["--from", "labelme", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]) == 2
    assert "1 images are in none of the splits that others are in, such as" in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(6))
def test_images_that_nobody_annotated_are_not_divided(seed, tmp_path):
    for index in range(20):
        image(tmp_path / f"data/{index}.png")
    for index in range(4):
        shapes = drawn("rectangle", (1, 1), (5, 5))
        dump(tmp_path / f"data/{index}.json", labelme(shapes, name=f"{index}.png"))
    command = ["--from", "labelme", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    assert main([*command, "--val-share", "0.25", "--seed", str(seed)]) == 0
    counts = [len(list((tmp_path / "out" / split / "images").iterdir())) for split in ("train", "val")]
    assert counts == [3, 1]


def test_an_image_has_one_file(tmp_path):
    for name in ("a", "b"):
        dump(tmp_path / f"{name}.json", labelme(drawn("rectangle", (1, 1), (5, 5))))
    image(tmp_path / "a.png")
    found = message("labelme", tmp_path)
    assert found == f"{tmp_path / 'b.json'}: {tmp_path / 'a.png'} is annotated in {tmp_path / 'a.json'} too"


def test_changed_annotations_are_converted_anew(tmp_path):
    data = tmp_path / "data"
    image(data / "a.png")
    dump(data / "a.json", coco(cvat_box(0)))
    assert len(converted("coco", data, tmp_path)[0]["a"]) == 1
    dump(data / "a.json", coco(cvat_box(0), cvat_box(45)))
    assert len(converted("coco", data, tmp_path)[0]["a"]) == 2


def test_data_without_objects_and_classes_is_refused(tmp_path):
    image(tmp_path / "a.png")
    dump(tmp_path / "a.json", labelme())
    assert "expected objects or a list of classes, got neither" in message("labelme", tmp_path)
    dataset = READERS["labelme"](tmp_path, ["ship"])
    assert len(dataset.read(dataset.items[0], lambda: (WIDTH, HEIGHT))) == 0


def test_names_that_label_files_cannot_hold_are_refused(tmp_path):
    image(tmp_path / "a.png")
    one_of_each("coco", tmp_path, label="ship, large")
    with pytest.raises(ConvertError, match="has a comma"):
        read_coco(tmp_path)
