"""Labels of a GIS on images on earth: pixels found again from any reference system, nothing lost unsaid."""

import json
import math

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine
from rasterio.warp import transform

from rgfl.boxes import from_quads
from rgfl.detections import Detections
from rgfl.dota import convert, georeference
from rgfl.dota.convert import main
from rgfl.dota.formats.dataset import ConvertError
from rgfl.dota.formats.geojson import read_geojson
from rgfl.dota.labels import read_labels
from rgfl.trt_runtime.geojson import geojson

WIDTH, HEIGHT = 400, 300
UTM = Affine(0.5, 0, 500000, 0, -0.5, 5300000)
TURNED = Affine(0.4, 0.3, 500000, 0.3, -0.4, 5300000)
OWN = "+proj=tmerc +lat_0=47.8 +lon_0=3 +x_0=-5 +datum=WGS84"  # a system that has no code
DEGREES = Affine(6e-6, 0, 9.0, 0, -4.5e-6, 47.85)
BOX = [(120.0, 80.0), (180.0, 110.0), (170.0, 130.0), (110.0, 100.0)]


def scene(path, affine=UTM, crs="EPSG:32632", size=(HEIGHT, WIDTH), driver="GTiff"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((3, *size), 90, np.uint8)
    with rasterio.open(
        path,
        "w",
        driver=driver,
        width=size[1],
        height=size[0],
        count=3,
        dtype="uint8",
        crs=crs,
        transform=affine,
    ) as dataset:
        dataset.write(pixels)
    return path


def moved(affine, x, y):
    """That of an image which begins at this pixel."""
    a, b, c, d, e, f, *_ = affine
    return Affine(a, b, a * x + b * y + c, d, e, d * x + e * y + f)


def ring(pixels, affine=UTM, crs="EPSG:32632", to="EPSG:32632"):
    """A closed ring in another reference system, of corners in pixels of an image."""
    a, b, c, d, e, f, *_ = affine
    x, y = zip(*((a * x + b * y + c, d * x + e * y + f) for x, y in pixels), strict=True)
    corners = [list(corner) for corner in zip(*transform(crs, to, x, y), strict=True)]
    return [*corners, corners[0]]


def feature(*rings, kind="Polygon", **properties):
    coordinates = [[part] for part in rings] if kind == "MultiPolygon" else list(rings)
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "properties": properties, "geometry": geometry}


def named(name, *coordinates, **geometry):
    """A feature with this in its column class, of a ring of these coordinates, or another geometry."""
    geometry = {"type": "Polygon", "coordinates": [list(coordinates or ring(BOX))], **geometry}
    return {"type": "Feature", "properties": {"class": name}, "geometry": geometry}


def collection(path, *features, crs="urn:ogc:def:crs:EPSG::32632"):
    member = {"crs": {"type": "name", "properties": {"name": crs}}} if crs else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"type": "FeatureCollection", **member, "features": list(features)}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def run(data, out, *options):
    arguments = ["--from", "geojson", "--data", data, "--out", out, *options]
    return main([str(argument) for argument in arguments])


def written(out, name):
    """Quads and class names of an image's labels."""
    classes = (out / "classes.txt").read_text(encoding="utf-8").split()
    folder, _, stem = name.rpartition("/")
    objects = read_labels(out / folder / "labelTxt" / f"{stem}.txt", classes)
    return objects.quads, [classes[label] for label in objects.labels]


def message(data, classes=None, **options):
    with pytest.raises(ConvertError) as error:
        read_geojson(data, classes, **options)
    return str(error.value)


@pytest.mark.parametrize(
    ("affine", "crs"),
    [
        (UTM, "EPSG:32632"),
        (TURNED, "EPSG:32632"),
        (DEGREES, "EPSG:4326"),
        (TURNED, "EPSG:3857"),
        (TURNED, OWN),
    ],
)
@pytest.mark.parametrize(
    ("system", "name"),
    [
        ("OGC:CRS84", None),
        ("OGC:CRS84", "urn:ogc:def:crs:OGC:1.3:CRS84"),
        ("EPSG:4326", "EPSG:4326"),  # longitude first, as all write it whatever EPSG says
        ("EPSG:3857", "urn:ogc:def:crs:EPSG::3857"),
        ("EPSG:25833", "urn:ogc:def:crs:EPSG::25833"),
        ("EPSG:32632", "urn:ogc:def:crs:EPSG::32632"),
    ],
)
def test_pixels_are_found_again_from_any_system_in_any(affine, crs, system, name, tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    scene(data / "a.tif", affine, crs)
    rng = np.random.default_rng(0)
    boxes = [[(x + dx, y + dy) for dx, dy in BOX] for x, y in rng.uniform(-80, 120, (20, 2))]
    collection(
        data / "labels.geojson",
        *(feature(ring(box, affine, crs, system), **{"class": "ship"}) for box in boxes),
        crs=name,
    )
    assert run(data, out) == 0
    quads, classes = written(out, "a")
    assert set(classes) == {"ship"}
    np.testing.assert_allclose(quads.reshape(-1, 4, 2), boxes, atol=0.01)


def test_what_the_runtime_writes_comes_back(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    found = Detections(
        np.array([[100, 80, 60, 20, 0.4], [200, 150, 30, 30, 2.0]], np.float32),
        np.array([0.9, 0.8], np.float32),
        np.array([1, 0], np.int32),
    )
    for name, affine in (("a", TURNED), ("b", moved(TURNED, 10, 5))):  # both show both objects
        place = georeference.find(scene(data / f"images/{name}.tif", affine))
        content = geojson(name, found, ("plane", "ship"), place)
        (data / "map").mkdir(exist_ok=True)
        (data / f"map/{name}.geojson").write_text(json.dumps(content))
    assert run(data, out) == 0
    pixels = data / "a.geojson"
    pixels.write_text(json.dumps(geojson("a", found, ("plane", "ship"))))
    assert "a.geojson: expected coordinates on earth, got pixels; map/a.geojson beside" in message(data)
    for name in "ab":
        quads, classes = written(out, name)
        assert classes == ["ship", "plane"]
        np.testing.assert_allclose(from_quads(quads)[:, :2], found.boxes[:, :2], atol=0.01)
        np.testing.assert_allclose(from_quads(quads)[0], found.boxes[0], atol=0.01)


def test_parts_are_objects_heights_are_dropped_and_outlines_become_rectangles(tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    scene(data / "images/a.tif")
    high = [[*corner, 431.5] for corner in ring(BOX)]
    circle = [(300 + 20 * math.cos(t), 200 + 20 * math.sin(t)) for t in np.linspace(0, 2 * math.pi, 64)]
    labels = (
        feature(high, ring([(10, 10), (20, 10), (20, 20)]), kind="MultiPolygon", **{"class": "Öltank groß"}),
        feature(ring(circle), ring(BOX), **{"class": "ship", "difficult": 1}),  # the second is a hole
        feature(**{"class": "ship"}),
        feature([], **{"class": None}),
        {"type": "Feature", "properties": None, "geometry": None},
    )
    collection(data / "labels.geojson", *labels)
    assert run(data, out) == 0
    quads, classes = written(out, "a")
    assert classes == ["Öltank-groß", "Öltank-groß", "ship"]
    np.testing.assert_allclose(quads[0].reshape(4, 2), BOX, atol=1e-6)
    assert from_quads(quads[1:2])[0, 2:4].tolist() == pytest.approx([10, 10], abs=1e-3)
    assert from_quads(quads[2:])[0, :4].tolist() == pytest.approx([300, 200, 40, 40], abs=0.2)
    said = capsys.readouterr().err
    assert f"3 features have no outline, such as {data / 'labels.geojson'}: feature 3" in said
    assert "class 'Öltank groß' is written Öltank-groß" in said
    assert (out / "labelTxt/a.txt").read_text(encoding="utf-8").endswith(" ship 1\n")


def test_an_object_goes_to_the_images_that_show_its_centre_and_those_outside_are_counted(tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    right = moved(UTM, WIDTH - 150, 0)  # overlaps the left one by 150 pixels
    scene(data / "train/images/left.tif")
    scene(data / "train/images/right.tif", right)
    scene(data / "val/images/north.tif", moved(UTM, 0, -HEIGHT))
    scene(
        data / "val/images/far.tif", Affine(0.5, 0, 500000, 0, -0.5, 200), "EPSG:32647"
    )  # where the labels' system does not reach
    boxes = {"left": 100, "both": 200, "right": 260, "none": 3000}  # left.tif ends at 400
    labels = [feature(ring([(x + dx, y) for x, y in BOX]), **{"class": name}) for name, dx in boxes.items()]
    collection(data / "labels.geojson", *labels)
    assert run(data, out) == 0
    assert written(out, "train/left")[1] == ["left", "both"]
    assert written(out, "train/right")[1] == ["both", "right"]
    assert written(out, "val/north")[1] == written(out, "val/far")[1] == []
    said = capsys.readouterr().err
    assert f"1 of 4 objects lie in no image, such as {data / 'labels.geojson'}: feature 4" in said
    assert f"2 of 4 images show no object, such as {data / 'val/images/far.tif'}" in said


def test_which_file_counts_for_which_image(tmp_path, capsys):
    """Of its split, of all, or of the image that it is called as."""
    data, out = tmp_path / "data", tmp_path / "out"
    for name in ("train/a", "train/b", "val/c"):
        scene(data / f"{name}.tif")  # all of one place
    collection(data / "train/a.geojson", feature(ring(BOX), **{"class": "one"}))
    collection(data / "train/site.geojson", feature(ring(BOX), **{"class": "split"}))
    assert run(data, out) == 0
    assert written(out, "train/a")[1] == ["one", "split"]
    assert written(out, "train/b")[1] == ["split"]
    assert "1 images left out, which nobody annotated" in capsys.readouterr().out
    collection(data / "all.geojson", feature(ring(BOX), **{"class": "split"}))
    assert run(data, out) == 0
    assert written(out, "val/c")[1] == ["split"]
    assert sorted(written(out, "train/a")[1]) == ["one", "split", "split"]


def test_an_image_at_the_pole_and_one_over_the_date_line(tmp_path):
    """There the longitudes and latitudes of an image's points are not those between them."""
    data, out = tmp_path / "data", tmp_path / "out"
    pole = Affine(10, 0, -10 * (WIDTH / 2 + 10), 0, -10, 10 * (HEIGHT / 2 + 7))
    line = Affine(10, 0, 832000, 0, -10, 1000)
    scene(data / "pole.tif", pole, "EPSG:3413")
    scene(data / "line.tif", line, "EPSG:32660")
    bear = [(WIDTH / 2 + 10 + x, HEIGHT / 2 + 7 + y) for x, y in ((-2, -2), (2, -2), (2, 2), (-2, 2))]
    west, east = ([(x + dx, y) for x, y in BOX] for dx in (-90, 200))
    asia = Affine(1e-5, 0, 87, 0, -1e-5, 0)  # where zone 60 does not reach
    labels = [
        feature(ring(bear, pole, "EPSG:3413", "OGC:CRS84"), **{"class": "bear"}),
        feature(ring(west, line, "EPSG:32660", "OGC:CRS84"), **{"class": "ship"}),
        feature(ring(east, line, "EPSG:32660", "OGC:CRS84"), **{"class": "ship"}),
        feature(ring(BOX, asia, "EPSG:4326", "OGC:CRS84"), **{"class": "tank"}),
    ]
    collection(data / "labels.geojson", *labels, crs=None)
    assert run(data, out) == 0
    assert written(out, "pole")[1] == ["bear"]
    quads, classes = written(out, "line")
    assert classes == ["ship", "ship"]
    np.testing.assert_allclose(quads.reshape(2, 4, 2), [west, east], atol=0.01)


def test_a_reference_system_is_never_read_from_a_file(tmp_path):
    scene(tmp_path / "a.tif")
    (tmp_path / "a.wkt").write_text(rasterio.CRS.from_epsg(32632).to_wkt())
    collection(tmp_path / "labels.geojson", named("ship"), crs=str(tmp_path / "a.wkt"))
    assert "crs: expected a code such as urn:ogc:def:crs:EPSG::25832, got '" in message(tmp_path)


def test_all_outside_is_an_error_that_shows_both_places(tmp_path):
    scene(tmp_path / "a.tif")
    collection(
        tmp_path / "labels.geojson", feature(ring(BOX), **{"class": "ship"}), crs=None
    )  # UTM for degrees
    said = message(tmp_path)
    assert (
        f"{tmp_path / 'labels.geojson'}: feature 1: expected objects in the images, got all 1 outside" in said
    )
    assert "this at 500060, 5299960 in OGC:CRS84" in said
    assert f"{tmp_path / 'a.tif'} at 500000, 5300000 in EPSG:32632; check both reference systems" in said


def test_the_column_of_the_classes(tmp_path, capsys):
    data = tmp_path / "data"
    scene(data / "a.tif")
    collection(data / "labels.geojson", feature(ring(BOX), id=1, art="ship"))
    assert run(data, tmp_path / "one") == 0
    assert (
        f"{data / 'labels.geojson'}: no column class: the classes are those of art" in capsys.readouterr().err
    )
    assert written(tmp_path / "one", "a")[1] == ["ship"]
    collection(data / "labels.geojson", feature(ring(BOX), id=1, art="ship", note="old"))
    assert message(data) == (
        f"{data / 'labels.geojson'}: expected the classes as text in a column class, got the columns id, "
        "art, note; name one by --column"
    )
    assert "expected the classes as text in a column typ, got the columns id, art" in message(
        data, column="typ"
    )
    out = tmp_path / "two"
    assert run(data, out, "--column", "note", "--classes", "old,ship") == 0
    assert written(out, "a")[1] == ["old"]
    assert run(data, out, "--column", "art", "--classes", "old,ship") == 2  # not the labels of before
    assert "with another --to or other classes (--column)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--from", "coco", "--data", str(data), "--out", str(out), "--column", "a"])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"type": "FeatureCollection",\n]', ":2: not JSON: "),
        ("[]", ": expected a FeatureCollection, got []; save the layer as GeoJSON"),
        ('{"type": "Feature"}', ": expected a FeatureCollection, got 'Feature'"),
        ({"features": 3}, ": expected features as a list, got 3"),
        ([3], ": feature 1: expected an object with geometry, got 3; save the layer as GeoJSON anew"),
        ([{"type": "Feature"}], ": feature 1: expected an object with geometry, got {'type': 'Feature'}"),
        ([named("a"), named(7)], ": feature 2: expected class as text, got 7; fill it in, or name another"),
        ([named("a"), feature(ring(BOX), typ="b")], ": feature 2: expected class as text, got nothing"),
        ([named(" ")], ": feature 1: expected class as text, got ' '"),
        ([named("a") | {"properties": []}], ": feature 1: expected properties as an object, got []"),
        ([named("a", type="Point")], ": feature 1: a Point: expected a polygon; 1 shapes of this file are"),
        ([named("a", coordinates=None)], ": feature 1: expected coordinates as a list, got nothing"),
        ([named("a") | {"geometry": "POLYGON"}], ": feature 1: expected an object with type, got 'POLYGON'"),
        (
            [named("a", [1, 2], [3])],
            ": feature 1: expected a polygon `[[[x, y], …], …]` of finite numbers, got",
        ),
        ([named("a", [1, 2], [3, None])], "of finite numbers, got [[[1, 2], [3, None]]]; save the layer as"),
        ([named("a", [1, 2], [3, math.nan])], "of finite numbers, got [[[1, 2], [3, nan]]]"),
        ([named("a", 1, 2, 3)], "of finite numbers, got [[1, 2, 3]]"),
        ([named("a", coordinates=[{}])], "of finite numbers, got [{}]"),
        ([named("a", *ring(BOX[:2]))], ": feature 1: expected a polygon of 3 or more points, got 2"),
        ({"crs": {"type": "link"}}, ": crs: expected properties as an object, got nothing"),
        ({"crs": {"properties": {"name": "EPSG:99999999"}}}, ": crs: expected a code such as urn:ogc:def:"),
        ({"crs": {"properties": {"name": "http://127.0.0.1:9/x"}}}, ": crs: expected a code such as"),
    ],
)
def test_errors_name_file_and_feature(content, expected, tmp_path, capfd):
    scene(tmp_path / "a.tif")
    path = tmp_path / "labels.geojson"
    if isinstance(content, str):
        path.write_text(content)
    else:
        more = {"features": content} if isinstance(content, list) else content
        crs = {"crs": {"properties": {"name": "EPSG:32632"}}}
        path.write_text(json.dumps({"type": "FeatureCollection", **crs, "features": [], **more}))
    said = message(tmp_path)
    assert said.startswith(str(path))
    assert expected in said
    assert capfd.readouterr().err == ""  # GDAL prints nothing of its own


def test_images_without_a_place_on_earth_are_named(tmp_path):
    collection(tmp_path / "labels.geojson", feature(ring(BOX), **{"class": "ship"}))
    assert "expected georeferenced images beside the .geojson files, got none" in message(tmp_path)
    scene(tmp_path / "a.tif")
    expected = (
        "expected an image on earth (GeoTIFF, or a world file and .prj beside it), got one without place or"
    )
    plain = scene(tmp_path / "b.tif", UTM, None)  # a place in no system
    assert f"{plain}: {expected} reference system, as 1 of 2 images are" in message(tmp_path)
    plain.with_suffix(".prj").write_text(rasterio.CRS.from_epsg(32632).to_wkt())
    assert len(read_geojson(tmp_path).items) == 2
    scene(tmp_path / "c.png", None, None, driver="PNG")
    assert f"{tmp_path / 'c.png'}: {expected}" in message(tmp_path)


def test_other_layers_are_told_with_the_way_to_geojson(tmp_path):
    assert "expected .geojson files beside the images" in message(tmp_path)
    scene(tmp_path / "a.tif")
    (tmp_path / "ships.gpkg").write_bytes(b"")
    hint = f"{tmp_path / 'ships.gpkg'}: not read; `ogr2ogr ships.geojson ships.gpkg` makes GeoJSON of it"
    assert message(tmp_path) == f"{tmp_path}: expected .geojson files; {hint}"
    collection(tmp_path / "planes.geojson", feature(ring(BOX), **{"class": "plane"}))
    assert read_geojson(tmp_path).notes == (hint,)


def test_a_conversion_within_the_data_goes_on(tmp_path, monkeypatch):
    """Its images are no images to label; and each change of a file, of many images too, is seen."""
    out = tmp_path / "out"
    for name in ("a", "b"):
        scene(tmp_path / f"{name}.tif")
    collection(tmp_path / "all.geojson", feature(ring(BOX), **{"class": "ship"}))
    collection(tmp_path / "b.geojson", feature(ring(BOX), **{"class": "ship"}))
    assert run(tmp_path, out) == 0
    worked = []
    original = convert._convert_image
    monkeypatch.setattr(
        convert, "_convert_image", lambda place, *rest: worked.append(place.key) or original(place, *rest)
    )
    assert run(tmp_path, out) == 0
    assert worked == []
    collection(tmp_path / "b.geojson", feature(ring(BOX[1:]), **{"class": "ship"}))
    assert run(tmp_path, out) == 0
    assert worked == ["/b"]
    collection(tmp_path / "all.geojson")
    assert run(tmp_path, out) == 0
    assert worked == ["/b", "/a", "/b"]
    assert len(written(out, "b")[0]) == 1
    assert len(written(out, "a")[0]) == 0


def test_many_objects_are_looked_at_near_their_images_only(tmp_path, monkeypatch):
    from rgfl.dota.formats import geojson

    count = 40
    for place in range(count):
        scene(tmp_path / f"{place}.tif", moved(UTM, place * WIDTH, 0))
    labels = [
        feature(ring([(x + dx, y) for x, y in BOX]), **{"class": "a"})
        for dx in range(0, count * WIDTH, WIDTH)
    ]
    collection(tmp_path / "labels.geojson", *labels)
    fitted = []
    original = geojson.polygon_corners
    monkeypatch.setattr(geojson, "polygon_corners", lambda *rest: fitted.append(0) or original(*rest))
    dataset = read_geojson(tmp_path)
    assert len(fitted) == count
    assert all(len(dataset.read(item, lambda: (WIDTH, HEIGHT))) == 1 for item in dataset.items)
