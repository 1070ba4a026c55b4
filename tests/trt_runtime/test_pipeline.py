"""Scenes streamed through a runner: the same as tile by tile, in bounded memory, errors and all."""

from __future__ import annotations

import dataclasses
import errno
import gc
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
import weakref
import zlib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiff_bytes import tiff_bytes

from rgfl import draw
from rgfl.detections import Detections
from rgfl.dota import convert, georeference
from rgfl.dota.formats.dota import read_dota
from rgfl.dota.images import ImageError, read_image
from rgfl.dota.labels import read_label_folder
from rgfl.dota.merge import detect, places_at_scales
from rgfl.errors import InputError
from rgfl.spec import DetectorSpec
from rgfl.trt_runtime import pipeline, scenes, streaming
from rgfl.trt_runtime.runners import Runner, TileArrays, load_runner
from rgfl.trt_runtime.streaming import stream


class BrightSpots(Runner):
    """A runner without a network: one box a tile, on its brightest pixel."""

    backend = "test"

    def __init__(self) -> None:
        super().__init__(Path(__file__), DetectorSpec(classes=("spot",), image_size=(128, 128)), "a test")
        self.seen: list[int] = []
        self.prepared = 0

    def prepare(self, tiles: TileArrays) -> np.ndarray:
        self.prepared += 1
        return np.stack(tiles).sum(axis=3)

    def infer(self, feed: np.ndarray) -> Any:
        self.seen.append(len(feed))
        return feed

    def finish(self, outputs: np.ndarray) -> list[Detections]:
        found = []
        for tile in outputs:
            y, x = np.unravel_index(tile.argmax(), tile.shape)
            box = np.array([[x, y, 12, 6, 0.2]], np.float32)
            score = np.array([tile.max() / 765], np.float32)
            found.append(Detections(box, score, np.zeros(1, np.int32)))
        return found


def write_scenes(folder: Path, sizes: list[tuple[int, int]]) -> dict[str, Path]:
    random = np.random.default_rng(3)
    for index, size in enumerate(sizes):
        draw.save(random.integers(0, 256, (*size, 3), np.uint8), folder / f"S{index}.png")
    return {f"S{index}": folder / f"S{index}.png" for index in range(len(sizes))}


def equal(first: Detections, second: Detections) -> bool:
    return all(
        np.array_equal(getattr(first, name), getattr(second, name)) for name in ("boxes", "scores", "labels")
    )


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 50])
def test_the_same_as_one_tile_after_the_other(batch: int, in_memory: bool, tmp_path: Path) -> None:
    images = write_scenes(tmp_path, [(300, 310), (40, 50), (128, 128), (129, 400)])
    runner = BrightSpots()
    timing = streaming.Timing()
    pixels = {name: read_image(path) for name, path in images.items()}
    scenes = list(stream(runner, pixels if in_memory else images, stride=100, batch=batch, timing=timing))
    assert [scene.name for scene in scenes] == list(images)
    for scene in scenes:
        expected = detect(read_image(images[scene.name]), runner, size=128, stride=100)
        assert len(expected) > 0
        assert equal(scene.detections, expected)
    windows = [9, 1, 1, 2 * 4]
    assert timing.tiles == sum(windows)
    assert timing.images == 4
    streamed = runner.seen[: -sum(windows)]
    assert set(streamed[:-1]) <= {batch}  # batches are filled across scenes
    assert sum(streamed) == sum(windows)


def test_what_is_no_scene_is_told_before_the_work() -> None:
    scenes = {"a": np.zeros((40, 50, 3), np.uint8), "b": np.zeros((40, 50), np.uint8)}
    with pytest.raises(ValueError, match="repeat the grey"):
        next(stream(BrightSpots(), scenes))
    with pytest.raises(
        ValueError, match=r"c: expected a Path or pixels, got 'c.png'; take pathlib\.Path\('c"
    ):
        next(stream(BrightSpots(), {"c": "c.png"}))  # type: ignore[dict-item]


@pytest.mark.parametrize("pad", [0, 9])
def test_tiles_of_zeros_are_left_out_and_counted(tmp_path: Path, pad: int) -> None:
    """Of a sparse mosaic of 20,000 × 20,000 pixels they took 164 of 171 seconds."""
    runner = BrightSpots()
    runner.spec = dataclasses.replace(runner.spec, pad_value=(pad, pad, pad))
    images = write_scenes(tmp_path, [(300, 310), (300, 310), (40, 50)])
    gaps = read_image(images["S0"]).copy()
    gaps[:, 100:] = gaps[100:] = 0
    draw.save(gaps, images["S0"])
    draw.save(np.zeros((300, 310, 3), np.uint8), images["S1"])
    timing, told = streaming.Timing(), []
    settings: Any = {"stride": 100, "scales": (1.0,)}
    for scene in stream(runner, images, **settings, batch=3, timing=timing, progress=told.append):
        assert equal(scene.detections, runner.detect(read_image(images[scene.name]), **settings))
        assert len(scene.detections) == 1
    assert (timing.tiles, timing.blank) == (1 + 1 + 1, 8 + 8)
    assert sum(told) == streaming.count_tiles(images.values(), 128, **settings) == 19
    assert streaming.count_tiles([tmp_path / "none.png"], 128, **settings) == 0


@pytest.mark.parametrize("scales", [(0.5, 1.0, 1.5), (2.0,)])
def test_scales_are_those_of_detect(scales: tuple[float, ...], tmp_path: Path) -> None:
    images = write_scenes(tmp_path, [(300, 310), (40, 50)])
    runner = BrightSpots()
    for scene in stream(runner, images, stride=100, scales=scales, batch=3):
        image = read_image(images[scene.name])
        expected = detect(image, runner, size=128, stride=100, scales=scales)
        assert len(expected) > 0
        assert equal(scene.detections, expected)
        assert not equal(scene.detections, detect(image, runner, size=128, stride=100))


def test_a_real_model_gives_the_same_as_detect(tiny_onnx: Path, tiny_scenes: SimpleNamespace) -> None:
    images = {name: tiny_scenes.images / f"{name}.png" for name in tiny_scenes.names}
    with load_runner(tiny_onnx, device="cpu") as runner:
        for scene in stream(runner, images):
            expected = detect(scene.image, runner, size=128, pad_value=runner.spec.pad_value)
            assert equal(scene.detections, expected)
            assert equal(runner.detect(scene.image, batch=2), expected)


def test_the_reader_waits_for_the_network(tmp_path: Path) -> None:
    images = write_scenes(tmp_path, [(128, 128)] * 20)
    runner = BrightSpots()
    scenes = stream(runner, images)
    next(scenes)
    time.sleep(0.3)
    # in the queues, one that waits to enter each, one merged
    assert runner.prepared <= streaming.WAITING_BATCHES + streaming.WAITING_RESULTS + 3
    scenes.close()  # type: ignore[attr-defined]
    assert not any(thread.name.startswith("rgfl-") for thread in threading.enumerate())


@pytest.mark.parametrize("batch", [1, 40])  # scenes of 16 tiles
def test_of_large_scenes_four_are_held(batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 20,000 × 20,000 pixels is 1.2 GB; where drawing took longest 26 lay side by side."""
    monkeypatch.setattr(streaming, "AHEAD", 400 * 400 * 3)
    images = write_scenes(tmp_path, [(400, 400)] * 8)
    seen: list[weakref.ref] = []
    held = []

    def counted(path: Path) -> np.ndarray:
        gc.collect()
        held.append(sum(one() is not None for one in seen))
        pixels = np.array(read_image(path))
        seen.append(weakref.ref(pixels))
        return pixels

    monkeypatch.setattr(streaming, "read_image", counted)
    for scene in stream(BrightSpots(), images, stride=100, batch=batch):
        assert scene.image.shape == (400, 400, 3)
        time.sleep(0.05)
    assert len(held) == 8
    assert max(held) <= 3


def test_images_are_decoded_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_scenes(tmp_path, [(128, 128)] * 4)
    together = threading.Barrier(2)

    def in_pairs(path: Path) -> np.ndarray:
        together.wait(timeout=20)
        return read_image(path)

    monkeypatch.setattr(streaming, "read_image", in_pairs)
    monkeypatch.setattr(streaming, "usable_cores", lambda: 2)
    assert [scene.name for scene in stream(BrightSpots(), images)] == list(images)


def test_pictures_are_drawn_side_by_side(
    tiny_onnx: Path, tiny_scenes: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, plain = threading.Barrier(3), draw.picture

    def in_threes(*given: Any, **named: Any) -> np.ndarray:
        together.wait(timeout=20)
        return plain(*given, **named)

    monkeypatch.setattr(draw, "picture", in_threes)
    monkeypatch.setattr(streaming, "usable_cores", lambda: 3)
    images = [str(tiny_scenes.images / f"{name}.png") for name in tiny_scenes.names[:3]]
    out = tmp_path / "found"
    assert pipeline.main(["--model", str(tiny_onnx), "--images", *images, "--out", str(out)]) == 0
    assert len(list((out / "pictures").iterdir())) == 3


def test_an_error_of_a_writer_is_told_at_once_and_ends_every_thread(
    tiny_onnx: Path,
    tiny_scenes: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """The network's thread went on with a runner that was closed, and the process was aborted."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "a.geojson")

    monkeypatch.setattr(pipeline, "geojson", full)
    monkeypatch.setattr(streaming, "usable_cores", lambda: 16)
    read, plain = [], read_image
    monkeypatch.setattr(streaming, "read_image", lambda path: read.append(path) or plain(path))
    monkeypatch.setattr(streaming, "AHEAD", 1)
    images = tmp_path / "images"
    images.mkdir()
    for number in range(40):
        shutil.copy(tiny_scenes.images / f"{tiny_scenes.names[0]}.png", images / f"{number}.png")
    command = ["--model", str(tiny_onnx), "--images", str(images), "--out", str(tmp_path / "found")]
    assert pipeline.main([*command, "--no-pictures"]) == 2
    assert capsys.readouterr().err.endswith("a.geojson: No space left on device\n")
    assert len(read) < 20
    assert not any(thread.name.startswith("rgfl-") for thread in threading.enumerate())


def test_the_time_of_a_run_holds_its_writing(
    tiny_onnx: Path, tiny_scenes: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = draw.picture

    def slow(*given: Any, **named: Any) -> np.ndarray:
        time.sleep(0.5)
        return plain(*given, **named)

    monkeypatch.setattr(draw, "picture", slow)
    image = str(tiny_scenes.images / f"{tiny_scenes.names[0]}.png")
    out = tmp_path / "found"
    assert pipeline.main(["--model", str(tiny_onnx), "--images", image, "--out", str(out)]) == 0
    assert json.loads((out / "detections.json").read_text())["timing"]["total"] > 0.5


@pytest.mark.parametrize(("size", "at_once"), [(streaming.AHEAD, 1), (streaming.AHEAD // 3, 3), (0, 4)])
def test_what_is_done_side_by_side_holds_no_more_than_it_may(
    size: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "usable_cores", lambda: 2)
    asked: list[int] = []
    may_end = [threading.Event() for _ in range(8)]

    def job(number: int) -> int:
        assert may_end[number].wait(timeout=20)
        return number

    def jobs() -> Any:
        for number in range(8):
            asked.append(number)
            yield size, lambda number=number: job(number)

    for done, future in enumerate(streaming.side_by_side(jobs(), "rgfl-test")):
        assert len(asked) == min(done + at_once + 1, 8)  # one more is asked for, and waits
        may_end[done].set()
        assert future.result() == done


def test_what_has_not_begun_is_not_done_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "usable_cores", lambda: 1)
    begun: list[int] = []
    may_end = threading.Event()

    def job(number: int) -> None:
        begun.append(number)
        may_end.wait(timeout=20)

    jobs = ((0, lambda number=number: job(number)) for number in range(8))
    some = streaming.side_by_side(jobs, "rgfl-test")
    next(some)
    threading.Timer(0.1, may_end.set).start()
    some.close()
    assert begun == [0]


def test_a_bad_image_ends_the_stream_where_it_stands(tmp_path: Path) -> None:
    images = write_scenes(tmp_path, [(128, 128)] * 3)
    images["S1"].write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"S1\.png"):
        list(stream(BrightSpots(), images))
    assert "rgfl-reader" not in {thread.name for thread in threading.enumerate()}


def test_geojson_is_closed_polygons_in_pixels() -> None:
    found = Detections(
        np.array([[20, 10, 8, 4, 0]], np.float32), np.array([0.5], np.float32), np.array([1], np.int32)
    )
    record = json.loads(json.dumps(pipeline.geojson("scene", found, ("plane", "ship"))))
    assert record["type"] == "FeatureCollection"
    (feature,) = record["features"]
    assert feature["geometry"]["type"] == "Polygon"
    (ring,) = feature["geometry"]["coordinates"]
    assert ring == [[16, 8], [24, 8], [24, 12], [16, 12], [16, 8]]
    assert feature["properties"]["class"] == "ship"
    assert feature["properties"]["score"] == 0.5


# ----------------------------------------------------------------------------------------- georeference

UTM = (3, [1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32631])
SCALE = {33550: (12, [0.5, 0.25, 0]), 33922: (12, [0, 0, 0, 500000, 4600000, 0])}
# A pixel goes 3 east and 4 south along x, 4 east and 3 north along y.
TURNED = {34264: (12, [3, 4, 0, 500000, -4, 3, 0, 4600000, 0, 0, 0, 0, 0, 0, 0, 1])}
POINT = (3, [1, 1, 0, 2, 1025, 0, 1, 2, 3072, 0, 1, 32631])


def geotiff(folder: Path, tags: dict, name: str = "scene.tif", **layout: Any) -> Path:
    (folder / name).write_bytes(tiff_bytes(np.zeros((40, 50, 3), np.uint8), 1, tags=tags, **layout))
    return folder / name


def world(place: georeference.Georeference | None, x: float, y: float) -> list[float]:
    assert place is not None
    (corner,) = (place.affine @ [x, y, 1]).reshape(1, 2).tolist()
    return corner


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("big", [False, True])
def test_a_pixel_of_a_geotiff_has_known_coordinates(tmp_path: Path, order: str, big: bool) -> None:
    cases = [
        (SCALE | {34735: UTM}, (0, 0), (500000, 4600000)),
        (SCALE | {34735: UTM}, (10, 20), (500005, 4599995)),
        ({**SCALE, 33922: (12, [10, 20, 0, 500000, 4600000, 0]), 34735: UTM}, (10, 20), (500000, 4600000)),
        ({**SCALE, 33550: (12, [0.5, -0.25, 0]), 34735: UTM}, (10, 20), (500005, 4599995)),
        (TURNED | {34735: UTM}, (10, 20), (500110, 4600020)),
        # the tie point is the middle of the first pixel, not its corner
        (SCALE | {34735: POINT}, (0.5, 0.5), (500000, 4600000)),
        (TURNED | {34735: POINT}, (10.5, 20.5), (500110, 4600020)),
    ]
    for tags, (x, y), expected in cases:
        place = georeference.find(geotiff(tmp_path, tags, order=order, big=big))
        assert world(place, x, y) == pytest.approx(expected, abs=1e-9)
        assert place is not None
        assert place.code == "EPSG:32631"


@pytest.mark.parametrize(
    ("name", "world_name"),
    [("a.tif", "a.tfw"), ("a.tiff", "a.tfw"), ("a.png", "a.pgw"), ("a.jpg", "a.jgw"), ("a.jpeg", "a.JGW"),
     ("a.bmp", "a.bpw"), ("a.jpg", "a.jpgw"), ("a.png", "a.wld")],
)  # fmt: skip
def test_a_world_file_is_for_the_middles_of_pixels(tmp_path: Path, name: str, world_name: str) -> None:
    draw.save(np.zeros((40, 50, 3), np.uint8), tmp_path / f"b{Path(name).suffix}")
    (tmp_path / f"b{Path(name).suffix}").rename(tmp_path / name)
    assert georeference.find(tmp_path / name) is None
    (tmp_path / world_name).write_text("3\n-4\n4\n3\n500000\n4600000\n")
    place = georeference.find(tmp_path / name)
    assert world(place, 0.5, 0.5) == pytest.approx([500000, 4600000])
    assert world(place, 10.5, 20.5) == pytest.approx([500110, 4600020])
    assert place is not None
    assert (place.code, place.member()) == ("", {})


@pytest.mark.parametrize("kind", ["jpg", "png"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_an_image_that_exif_turns_has_no_coordinates(tmp_path: Path, kind: str, orientation: int) -> None:
    import cv2

    path = tmp_path / f"a.{kind}"
    image = np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8)
    data = cv2.imencode(f".{kind}", image)[1].tobytes()
    path.write_bytes(data)
    plain = read_image(path)
    block = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([orientation]) + bytes(6)
    if kind == "jpg":
        exif = b"Exif\0\0" + block
        data = data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]
    else:
        chunk = b"eXIf" + block
        check = zlib.crc32(chunk).to_bytes(4, "big")
        data = data[:33] + len(block).to_bytes(4, "big") + chunk + check + data[33:]
    path.write_bytes(data)
    (tmp_path / "a.wld").write_text("1\n0\n0\n-1\n0\n0\n")
    turned = {1: plain, 3: plain[::-1, ::-1], 6: np.rot90(plain, -1)}[orientation]
    np.testing.assert_array_equal(read_image(path), turned)
    if orientation == 1:
        assert georeference.find(path) is not None
        return
    with pytest.warns(UserWarning, match="its orientation tag turns the image but not its georeference"):
        assert georeference.find(path) is None


def test_tags_go_before_a_world_file_and_name_the_system_without_a_map(tmp_path: Path) -> None:
    (tmp_path / "scene.tfw").write_text("1\n0\n0\n-1\n0.5\n-0.5\n")
    assert world(georeference.find(geotiff(tmp_path, SCALE)), 0, 0) == [500000, 4600000]
    place = georeference.find(geotiff(tmp_path, {34735: UTM}))
    assert world(place, 3, 4) == [3, -4]
    assert place is not None
    assert place.crs == "EPSG:32631"


@pytest.mark.parametrize("text", ["", "1 0 0 -1 5", "1 0 0 -1 5 six", "0 0 0 0 5 5", "nan 0 0 1 5 5"])
def test_a_broken_world_file_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "scene.tfw").write_text(text)
    with pytest.warns(UserWarning, match=r"scene.tfw: expected a world file of six numbers, one a line; m"):
        assert georeference.find(geotiff(tmp_path, {})) is None


@pytest.mark.parametrize(
    ("keys", "text", "crs", "member"),
    [
        ([1024, 0, 1, 2, 2048, 0, 1, 4326], "", "EPSG:4326", "urn:ogc:def:crs:OGC:1.3:CRS84"),
        ([1024, 0, 1, 2, 2048, 0, 1, 4258], "", "EPSG:4258", "urn:ogc:def:crs:EPSG::4258"),
        ([1024, 0, 1, 1, 2048, 0, 1, 4326, 3072, 0, 1, 3857], "", "EPSG:3857", "urn:ogc:def:crs:EPSG::3857"),
        # a projection of the file's own: the code is that of the datum below it
        ([1024, 0, 1, 1, 1026, 34737, 5, 2, 2048, 0, 1, 4326, 3072, 0, 1, 32767], "a|Mine |b|",
         "an unknown reference system (Mine)", None),
        ([1024, 0, 1, 1, 2048, 0, 1, 4326], "", "an unknown reference system", None),
        ([1024, 0, 1, 3], "", "an unknown reference system", None),
    ],
)  # fmt: skip
def test_the_reference_system(tmp_path: Path, keys: list, text: str, crs: str, member: str | None) -> None:
    tags = SCALE | {34735: (3, [1, 1, 0, len(keys) // 4, *keys]), 34737: (2, text)}
    place = georeference.find(geotiff(tmp_path, tags))
    assert place is not None
    assert place.crs == crs
    assert place.member() == ({"crs": {"type": "name", "properties": {"name": member}}} if member else {})


def test_what_gdal_writes_beside_an_image_is_read(tmp_path: Path) -> None:
    """A GeoTIFF converted to PNG has its place in .aux.xml; other programs write .prj beside a world file."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.shutil import copy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        copy(geotiff(tmp_path, SCALE | {34735: UTM}), tmp_path / "a.png", driver="PNG")
        place = georeference.find(tmp_path / "a.png")
        assert place is not None
        assert place.code == "EPSG:32631"
        assert world(place, 10, 20) == [500005, 4599995]
        copy(geotiff(tmp_path, {}), tmp_path / "b.png", driver="PNG")
    (tmp_path / "b.pgw").write_text("0.5\n0\n0\n-0.25\n500000.25\n4599999.875\n")
    (tmp_path / "b.prj").write_text(rasterio.CRS.from_epsg(32631).to_wkt())
    assert (place := georeference.find(str(tmp_path / "b.png"))) is not None
    assert (place.code, world(place, 10, 20)) == ("EPSG:32631", [500005, 4599995])
    (tmp_path / "b.prj").write_text("nothing")
    with pytest.warns(UserWarning, match=r"b.prj: expected a reference system as WKT; mend it"):
        assert (place := georeference.find(tmp_path / "b.png")) is not None
    assert (place.code, world(place, 10, 20)) == ("", [500005, 4599995])


# Without a code; at GDAL's default of 70 per cent it becomes EPSG:24879, of which it lies 9 m off.
OWN_UTM = "+proj=utm +zone=19 +south +ellps=intl +towgs84=-288,175,-376 +units=m"
QUAD = np.array([[[0.0, 0], [200, 0], [200, 80], [0, 80]]])


def own_system(folder: Path, name: str = "own.png") -> Path:
    import rasterio

    path = folder / name
    draw.save(np.zeros((40, 50, 3), np.uint8), path)
    path.with_suffix(".prj").write_text(rasterio.CRS.from_string(OWN_UTM).to_wkt())
    path.with_suffix(".wld").write_text("0.5\n0\n0\n-0.5\n500000.25\n8999999.75\n")
    return path


def test_a_system_without_a_code_gets_no_similar_one_but_degrees(tmp_path: Path) -> None:
    place = georeference.find(own_system(tmp_path))
    assert place is not None
    assert place.code == ""
    assert place.crs.startswith("OGC:CRS84, longitude and latitude, as ")
    assert place.crs.endswith(" has no code")
    assert place.member()["crs"] == {"type": "name", "properties": {"name": georeference.LONGITUDE_LATITUDE}}
    (ring,) = place.rings(QUAD)
    assert ring[0] == pytest.approx([-69.001875114, -9.049941479], abs=2e-9)
    assert ring[2] == pytest.approx([-69.0009, -9.0503], abs=1e-4)
    assert np.linalg.det(ring[1:3] - ring[:2]) > 0  # counterclockwise
    np.testing.assert_array_equal(place.degrees(QUAD), [ring])


def test_metres_are_those_on_the_ground() -> None:
    """UTM shrinks by 0.9996 on its central meridian, Web Mercator stretches about twofold at 60°."""
    from rasterio.crs import CRS

    for code, corner, scale in (
        (32631, (500000, 4600000), [0.9996, 0.9996]),
        (32731, (500000, 7000000), [0.9996, 0.9996]),
        (3857, (20037508, 8399737.889818), [1.994973, 1.998335]),  # 60° N, on both sides of 180° E
    ):
        affine = np.array([[0.5, 0, corner[0]], [0, -0.5, corner[1]]])
        place = georeference.Georeference(affine, "", system=CRS.from_epsg(code).to_wkt())
        rings = place.degrees(QUAD)
        assert np.ptp(rings[..., 0]) < 0.01
        np.testing.assert_allclose(georeference.metres(rings), [np.array([100, 40]) / scale], rtol=2e-5)
    assert place.degrees(QUAD[:0]).shape == (0, 4, 2)
    assert georeference.metres(QUAD[:0]).shape == (0, 2)


def test_a_point_beyond_the_earth_takes_no_other_with_it() -> None:
    from rasterio.crs import CRS

    wkt = CRS.from_string("+proj=ortho +lat_0=0 +lon_0=0").to_wkt()
    place = georeference.Georeference(np.array([[1.0, 0, 0], [0, -1, 0]]), "", system=wkt)
    rings = place.degrees(np.concatenate([QUAD, QUAD + 1e8]))
    assert np.isfinite(rings).all((1, 2)).tolist() == [True, False]


def test_the_horizontal_part_of_a_compound_system_counts(tmp_path: Path) -> None:
    keys = [1024, 0, 1, 1, 3072, 0, 1, 32631, 4096, 0, 1, 5773]
    tags = SCALE | {34735: (3, [1, 1, 0, 3, *keys])}
    place = georeference.find(geotiff(tmp_path, tags))
    assert place is not None
    assert place.code == "EPSG:32631"


def test_control_points_alone_are_told(tmp_path: Path) -> None:
    points = {33922: (12, [0, 0, 0, 5, 5, 0, 9, 9, 0, 8, 8, 0, 9, 0, 0, 5, 8, 0]), 34735: UTM}
    with pytest.warns(UserWarning, match="ground control points or rational polynomials alone: no coord"):
        assert georeference.find(geotiff(tmp_path, points)) is None


@pytest.mark.filterwarnings("ignore:.*ground control points")  # a scale of 0 leaves the tie point alone
def test_what_is_not_georeferenced(tmp_path: Path) -> None:
    for tags in ({}, {33550: (12, [0, 0, 0]), 33922: SCALE[33922]}, {34264: (12, [0] * 16)}):
        assert georeference.find(geotiff(tmp_path, tags)) is None
    (tmp_path / "broken.tif").write_bytes(b"II*\0\xff\xff\xff\xff")
    assert georeference.find(tmp_path / "broken.tif") is None
    with pytest.warns(UserWarning, match="orientation tag turns the image but not its georeference"):
        assert georeference.find(geotiff(tmp_path, SCALE | {274: (3, [6])})) is None


def test_geojson_in_coordinates_is_the_same_polygons_on_earth() -> None:
    found = Detections(
        np.array([[20, 10, 8, 4, 0]], np.float32), np.array([0.5], np.float32), np.array([1], np.int32)
    )
    classes = ("plane", "ship")
    affine = np.array([[0.5, 0, 500000], [0, -0.5, 4600000]])
    place = georeference.Georeference(affine, "EPSG:32631")
    pixels, record = (
        pipeline.geojson("scene", found, classes),
        pipeline.geojson("scene", found, classes, place),
    )
    assert "crs" not in pixels
    assert record["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32631"
    (feature,), (in_pixels,) = record["features"], pixels["features"]
    assert feature["properties"] == in_pixels["properties"]
    (ring,) = feature["geometry"]["coordinates"]
    # counterclockwise, from the corner that is the first in pixels
    assert ring == [
        [500008, 4599996], [500008, 4599994], [500012, 4599994], [500012, 4599996], [500008, 4599996]
    ]  # fmt: skip
    degrees = georeference.Georeference(affine * 1e-5, "")
    (feature,) = pipeline.geojson("scene", found, classes, degrees)["features"]
    assert feature["geometry"]["coordinates"][0][0] == pytest.approx([5.00008, 45.99996], abs=1e-9)


def test_the_command_writes_coordinates_of_a_geotiff(
    tiny_onnx: Path, tiny_scenes: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Pixels in GeoJSON are taken for longitude and latitude by whoever opens it."""
    images, out = tmp_path / "images", tmp_path / "found"
    images.mkdir()
    pixels = read_image(tiny_scenes.images / "P0003.png")
    (images / "earth.tif").write_bytes(tiff_bytes(pixels, 1, tags=SCALE | {34735: UTM}))
    draw.save(pixels, images / "plain.png")
    assert pipeline.main(["--model", str(tiny_onnx), "--images", str(images), "--out", str(out)]) == 0
    assert "earth.tif in EPSG:32631: polygons" in capsys.readouterr().out
    names = ["geojson/earth.geojson", "geojson/plain.geojson", "map/earth.geojson"]
    pictures = ["pictures/earth.jpg", "pictures/plain.jpg"]
    assert written(out) == ["detections.json", *names[:2], "map.geojson", names[2], *pictures]
    earth, plain, there = (features(out / name) for name in names)
    assert earth == plain
    assert len(there) == len(earth) > 0
    for feature, on_earth in zip(earth, there, strict=True):
        x, y = np.array(feature["geometry"]["coordinates"][0][0])
        expected = [500000 + 0.5 * x, 4600000 - 0.25 * y]
        assert on_earth["geometry"]["coordinates"][0][0] == pytest.approx(expected, abs=1e-3)


def features(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["features"]


def test_all_scenes_are_one_layer_in_degrees(
    tiny_onnx: Path, tiny_scenes: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from rasterio.warp import transform

    images, out = tmp_path / "images", tmp_path / "found"
    images.mkdir()
    pixels = read_image(tiny_scenes.images / "P0003.png")
    (images / "a.tif").write_bytes(tiff_bytes(pixels, 1, tags=SCALE | {34735: UTM}))
    draw.save(pixels, own_system(images, "b.png"))
    draw.save(pixels, images / "plain.png")
    draw.save(pixels, images / "unknown.png")
    (images / "unknown.wld").write_text("0.5\n0\n0\n-0.5\n500000.25\n4599999.75\n")
    draw.save(pixels, images / "broken.png")
    (images / "broken.wld").write_text("0.5\n")
    command = ["--model", tiny_onnx, "--images", images, "--out", out, "--no-pictures"]
    with pytest.warns(UserWarning, match=r"broken.wld: expected a world file"):
        assert pipeline.main(list(map(str, command))) == 0
    told = capsys.readouterr()
    assert f"2 scenes as one layer, in longitude and latitude: {out / 'map.geojson'}" in told.out
    assert "b.png in OGC:CRS84, longitude and latitude, as " in told.out
    assert "unknown.png in an unknown reference system: polygons in these coordinates" in told.out
    assert "note: GIS will take such a layer for EPSG:4326: set its reference system by hand" in told.err
    assert told.err.count(f"again: gdal_edit.py -a_srs EPSG:… {images / 'unknown.png'}\n") == 1
    assert sorted(path.name for path in (out / "map").iterdir()) == [
        "a.geojson", "b.geojson", "unknown.geojson"
    ]  # fmt: skip
    collection = json.loads((out / "map.geojson").read_text())
    assert sorted(collection) == ["features", "type"]  # RFC 7946 knows no other reference system
    one, other = features(out / "map/a.geojson"), features(out / "map/b.geojson")
    assert len(collection["features"]) == len(one) + len(other) > 2
    for feature, scene in zip(collection["features"], [*one, *other], strict=True):
        (ring,), (own,) = feature["geometry"]["coordinates"], scene["geometry"]["coordinates"]
        assert ring[0] == ring[4]
        known = feature["properties"]
        assert list(known) == ["image", "class", "score", "length", "width"]
        assert all(known[key] == scene["properties"][key] for key in ("class", "score"))
        if known["image"] == "a":
            expected = np.transpose(transform("EPSG:32631", "OGC:CRS84", *np.transpose(own)))
            np.testing.assert_allclose(ring, expected, atol=1e-8)
            assert (np.array(own) @ [1, 1]).min() > 5e6
            edges = np.linalg.norm(np.diff(own, axis=0)[:2], axis=1) / 0.9996
            np.testing.assert_allclose([known["length"], known["width"]], sorted(edges)[::-1], atol=0.01)
        else:
            assert ring == own
            sides = [scene["properties"][key] * 0.5 / 0.9996 for key in ("width", "height")]
            np.testing.assert_allclose([known["length"], known["width"]], sides, atol=0.01)
    # of an earlier run nothing is left that this one does not write
    (images / "a.tif").unlink()
    draw.save(pixels, images / "a.png")
    (images / "b.prj").unlink()
    (images / "broken.wld").unlink()
    assert pipeline.main(list(map(str, command))) == 0
    assert sorted(path.name for path in (out / "map").iterdir()) == ["b.geojson", "unknown.geojson"]
    assert not (out / "map.geojson").exists()


def test_what_lies_beyond_the_earth_is_counted(tmp_path: Path) -> None:
    from rasterio.crs import CRS

    wkt = CRS.from_string("+proj=ortho +lat_0=0 +lon_0=0").to_wkt()
    place = georeference.Georeference(np.array([[1.0, 0, 0], [0, -1, 0]]), "", system=wkt)
    found = Detections([[20, 10, 8, 4, 0], [1e8, 10, 8, 4, 0]], [0.5, 0.5], [0, 0])
    assert len(pipeline.geojson("a", found, ("spot",), place)["features"]) == 1
    assert pipeline.write_map(tmp_path / "map.geojson", [("a", found)], {"a": place}, ("spot",)) == 1
    assert len(features(tmp_path / "map.geojson")) == 1
    assert pipeline.write_map(tmp_path / "map.geojson", [], {}, ("spot",)) == 0
    assert features(tmp_path / "map.geojson") == []


def test_the_command_writes_all_its_files(
    tiny_onnx: Path, tiny_scenes: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "found"
    command = ["--model", tiny_onnx, "--images", tiny_scenes.images / "P0003.png", "--out", out, "--batch", 2]
    assert pipeline.main(list(map(str, [*command, "--score", 0]))) == 0
    told = capsys.readouterr()
    assert "| 6/6 [" in told.err
    assert "tile/s, 1 of 1 scenes]" in told.err
    assert "(6 tiles, " in told.out
    record = json.loads((out / "detections.json").read_text())
    collection = json.loads((out / "geojson" / "P0003.geojson").read_text())
    lines = sum(len(path.read_text().splitlines()) for path in out.glob("Task1_*.txt"))
    assert sum(record["detections"]["P0003"].values()) == len(collection["features"]) == lines > 0
    assert record["timing"]["tiles"] == 6
    assert (out / "pictures" / "P0003.jpg").stat().st_size > 1000
    scores = [feature["properties"]["score"] for feature in collection["features"]]
    middle = float(np.mean(scores))
    assert pipeline.main(list(map(str, [*command, "--score", middle]))) == 0
    likely = json.loads((out / "geojson" / "P0003.geojson").read_text())["features"]
    assert len(likely) == sum(score >= middle for score in scores) < len(scores)
    assert lines == sum(len(path.read_text().splitlines()) for path in out.glob("Task1_*.txt"))


def test_names_with_white_space_are_in_no_task_1_file(
    tiny_onnx: Path, tiny_scenes: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Whoever wants GeoJSON need not rename a thousand files."""
    images, out = tmp_path / "images", tmp_path / "out"
    (images / "more").mkdir(parents=True)
    for name in ("my scene.png", "b.png"):
        shutil.copy(tiny_scenes.images / "P0003.png", images / name)
    command = ["--model", str(tiny_onnx), "--images", str(images), "--out", str(out)]
    assert pipeline.main(command) == 0
    told = capsys.readouterr().err
    assert "note: 1 names with white space, such as 'my scene', are not in the Task 1 files" in told
    assert f"note: subfolders of {images} are not looked into: more" in told
    assert (out / "geojson" / "my scene.geojson").is_file()
    lines = [line for path in out.glob("Task1_*.txt") for line in path.read_text().splitlines()]
    assert {line.split()[0] for line in lines} == {"b"}


def written(out: Path) -> list[str]:
    """What lies below `out`, but for Task 1 files and hidden ones."""
    return sorted(
        str(path.relative_to(out)) for path in out.rglob("*.*") if not path.name.startswith(("Task1_", "."))
    )


def test_files_and_folders_together(tiny_onnx: Path, tiny_scenes: SimpleNamespace, tmp_path: Path) -> None:
    """As the shell makes of --images *.png; one of them is there twice."""
    for name in ("north/a.png", "south/b.png", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(tiny_scenes.images / "P0003.png", tmp_path / name)
    paths = [tmp_path / "c.png", tmp_path / "north", tmp_path / "south/b.png", tmp_path / "south/../c.png"]
    command = ["--model", tiny_onnx, "--images", *paths, "--out", tmp_path / "out", "--no-pictures"]
    assert pipeline.main(list(map(str, command))) == 0
    names = ["geojson/a.geojson", "geojson/b.geojson", "geojson/c.geojson"]
    assert written(tmp_path / "out") == ["detections.json", *names]


def test_pictures_replace_no_image_of_any_path(
    tiny_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("a/pictures/x.jpg", "b/y.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    for paths in (["b", "a/pictures"], ["b/y.jpg", "a/pictures/x.jpg"]):
        images = [str(tmp_path / path) for path in paths]
        command = ["--model", str(tiny_onnx), "--images", *images, "--out", str(tmp_path / "a")]
        assert pipeline.main(command) == 2
        assert "the images lie there, and pictures could replace them" in capsys.readouterr().err


def test_pictures_replace_no_image_of_a_subfolder(
    tiny_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for first, second in (("x.jpg", "pictures/x.jpg"), ("far/x.jpg", "pictures/far/x.jpg")):
        trip = tmp_path / first.replace("/", "-")
        for name in (first, second):
            (trip / name).parent.mkdir(parents=True, exist_ok=True)
            (trip / name).touch()
        command = ["--model", str(tiny_onnx), "--images", str(trip), "--recursive", "--out", str(trip)]
        assert pipeline.main(command) == 2
        assert "the images lie there, and pictures could replace them" in capsys.readouterr().err


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("north/a.png", "south/a.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    for paths in (["north/a.png", "south/a.jpg"], ["north", "south"], ["north/a.png", "south"]):
        told = r"south/a\.jpg: .*north/a\.png has the same name, and so would their results"
        with pytest.raises(InputError, match=told):
            scenes.find_scenes(*(tmp_path / path for path in paths))


def test_subfolders_keep_their_names(
    tiny_onnx: Path, tiny_scenes: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    images = tmp_path / "images"
    for name in ("a.png", "north/a.png", "north/far/b.png", ".hidden/c.png"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny_scenes.images / "P0003.png", images / name)
    (images / "north" / "a.wld").write_text("3\n-4\n4\n3\n500000\n4600000\n")
    (images / "circle").symlink_to(images)
    out = images / "found"
    command = ["--model", str(tiny_onnx), "--images", str(images), "--out", str(out), "--score", "0.4"]
    for _ in range(2):  # the images that the first run writes are no scenes of the second
        assert pipeline.main([*command, "--recursive", "--labels"]) == 0
        assert "not looked into" not in capsys.readouterr().err
    assert [name for name in written(out) if not name.startswith("labelled/")] == [
        "detections.json",
        "geojson/a.geojson",
        "geojson/north/a.geojson",
        "geojson/north/far/b.geojson",
        "map/north/a.geojson",
        "pictures/a.jpg",
        "pictures/north/a.jpg",
        "pictures/north/far/b.jpg",
    ]
    scenes = ["a", "north/a", "north/far/b"]
    collection = json.loads((out / "geojson/north/far/b.geojson").read_text())
    assert collection["name"] == "north/far/b"
    assert list(json.loads((out / "detections.json").read_text())["detections"]) == scenes
    lines = [line for path in out.glob("Task1_*.txt") for line in path.read_text().splitlines()]
    assert {line.split()[0] for line in lines} == set(scenes)
    assert pipeline.main(command) == 2  # a.png alone: of north/ there are results already
    told = capsys.readouterr().err
    assert "subfolders of" in told
    assert "; --recursive does it" in told
    assert "holds results of other scenes, such as north/a" in told


def test_a_folder_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(bytes(tmp_path) + b"/s\xfcd"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes text only")
    (folder / "a.png").touch()
    with pytest.raises(InputError, match=r"the name 's\\udcfcd/a' is not UTF-8; rename it"):
        scenes.find_scenes(tmp_path, recursive=True)


def test_what_a_folder_leaves_out_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "more").mkdir()
    for name in ("x.png", "x.txt", "e.GIF", ".f.gif", "g.heic", "more/y.png", "more/z.MP4"):
        (tmp_path / name).touch()
    assert list(scenes.find_scenes(tmp_path)) == ["x"]
    told = f"note: 2 files in {tmp_path} are left out, such as e.GIF; convert to one of png, jpg, "
    assert told in capsys.readouterr().err
    assert list(scenes.find_scenes(tmp_path, recursive=True)) == ["x", "more/y"]
    assert f"note: 3 files in {tmp_path} are left out, such as e.GIF" in capsys.readouterr().err
    scenes.find_scenes(tmp_path / "more")
    assert f"such as z.MP4; take frames of it, here two a second: {FFMPEG}" in capsys.readouterr().err


FFMPEG = "mkdir frames && ffmpeg -i "


@pytest.mark.parametrize("name", ["a.mp4", "a b.MOV", "a.avi", "a.mkv", "a.m4v", "a.webm"])
def test_a_video_is_told_how_to_cut(name: str, tmp_path: Path) -> None:
    video = tmp_path / name
    video.touch()
    with pytest.raises(InputError) as told:
        scenes.find_scenes(video)
    quoted = f"'{video}'" if " " in name else str(video)
    assert str(told.value).startswith(f"--images {video}: a video, expected images; ")
    assert str(told.value).endswith(f"{FFMPEG}{quoted} -vf fps=2 frames/%06d.png")


def test_a_score_below_the_models_threshold_is_told(
    tiny_onnx: Path, tiny_scenes: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """It said 9 detections of score ≥ 0.01, of which none could be below 0.05."""
    command = ["--model", tiny_onnx, "--images", tiny_scenes.images / "P0003.png", "--out", tmp_path / "out"]
    command += ["--no-pictures", "--score"]
    assert pipeline.main(list(map(str, [*command, 0.01]))) == 0
    told = capsys.readouterr()
    assert "note: --score 0.01: this model keeps scores above 0.3 only" in told.err
    assert "python -m rgfl.checkpoint spec best.pt --score-threshold 0.01 --out other.pt" in told.err
    assert " detections of score ≥ 0.3 in 1 scenes" in told.out
    assert json.loads((tmp_path / "out" / "detections.json").read_text())["score"] == 0.3
    assert pipeline.main(list(map(str, [*command, 0.3]))) == 0
    assert "note: --score" not in capsys.readouterr().err


def test_classes_have_scores_of_their_own(
    tiny_onnx: Path, tiny_scenes: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["--model", str(tiny_onnx), "--images", str(tiny_scenes.images), "--out", str(tmp_path / "out")]

    def found(*scores: str) -> Counter[str]:
        assert pipeline.main([*command, "--no-pictures", "--score", *scores]) == 0
        files = (tmp_path / "out" / "geojson").glob("*.geojson")
        layers = [json.loads(file.read_text())["features"] for file in files]
        return Counter(feature["properties"]["class"] for layer in layers for feature in layer)

    every = found("0.3")
    first, *others = every
    assert others
    assert found("0.3", f"{first}=1") == {name: every[name] for name in others}
    assert " detections of score ≥ 0.3 to 1, by class, in " in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "detections.json").read_text())["score"][first] == 1
    assert found("1", f"{first}=0.3") == {first: every[first]}


def test_an_object_of_two_classes_is_shown_once(
    tiny_onnx: Path, tiny_scenes: SimpleNamespace, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["--model", tiny_onnx, "--images", tiny_scenes.images / "P0003.png", "--out", out]

    def found(*flags: str) -> tuple[list[dict[str, Any]], str, Any]:
        assert pipeline.main(list(map(str, [*command, "--no-pictures", *flags]))) == 0
        task1 = "".join(path.read_text() for path in sorted(out.glob("Task1_*.txt")))
        record = json.loads((out / "detections.json").read_text())
        shown = features(out / "geojson" / "P0003.geojson")
        assert sum(record["detections"]["P0003"].values()) == len(shown)
        return shown, task1, record["across"]

    every, task1, across = found()
    assert across is None
    best, same, across = found("--across", "0.2")
    assert (same, across) == (task1, 0.2)  # what is evaluated has every class by itself
    assert 0 < len(best) < len(every)
    assert all(feature in every for feature in best)


# ------------------------------------------------------------------------------------------------ labels


def test_labels_are_a_data_set_that_converts_back(
    tiny_onnx: Path, tiny_scenes: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    for name in ("north/a.png", "my scene.png"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny_scenes.images / "P0003.png", images / name)
    draw.save(np.zeros((128, 128, 3), np.uint8), images / "nothing.png")
    with load_runner(tiny_onnx) as runner:
        classes = runner.spec.classes
        every, none = (runner.detect(read_image(images / name)) for name in ("my scene.png", "nothing.png"))
    ship = classes.index("ship")
    best = none.scores[none.labels == ship].max()
    expected = every[(every.labels == ship) & (every.scores > best + 0.01)]
    assert ship > 0
    assert 0 < len(expected) < len(every)
    command = ["--model", str(tiny_onnx), "--images", str(images), "--recursive", "--out", str(out)]
    command += ["--labels", "--no-pictures", "--score", "1", f"ship={best + 0.01}"]
    assert pipeline.main(command) == 0
    data = out / "labelled"
    assert f"labels to correct and train with, which no run replaces: {data}\n" in capsys.readouterr().out
    assert written(data) == [
        "classes.txt",
        "images/my_scene.png",
        "images/north/north__a.png",
        "images/nothing.png",
        "labelTxt/my_scene.txt",
        "labelTxt/north__a.txt",
        "labelTxt/nothing.txt",
    ]
    assert (data / "images/north/north__a.png").samefile(images / "north/a.png")
    assert read_dota(data).classes == classes
    found = read_label_folder(data / "labelTxt", classes)
    quads = pipeline.to_quads(expected.boxes.astype(np.float64)).reshape(-1, 8)
    for name in ("north__a", "my_scene"):
        np.testing.assert_allclose(found[name].quads, quads, atol=0.00501)
        assert found[name].labels.tolist() == expected.labels.tolist()
        assert not found[name].difficult.any()
    assert len(found["nothing"]) == 0
    yolo = tmp_path / "yolo"
    flags = ["--from", "dota", "--to", "yolo-obb", "--data", str(data), "--out", str(yolo)]
    assert convert.main(flags) == 0
    lines = (yolo / "labels" / "north__a.txt").read_text().splitlines()
    assert {line.split()[0] for line in lines} == {str(ship)}  # though no plane was found
    assert f'  0: "{classes[0]}"' in (yolo / "data.yaml").read_text()


@pytest.mark.parametrize(
    ("paths", "told"),
    [
        (["a.png", "a b.vrt"], r"--labels: a b\.vrt: expected one of \.png, .*; convert it, or leave"),
        (["a b.png", "a_b.jpg"], r"a b\.png and .*a_b\.jpg: both would be called a_b; rename one"),
        (["a/b.png", "a__b.png"], r"a/b\.png and .*a__b\.png: both would be called a__b; rename one"),
    ],
)
def test_what_has_no_place_among_labels_is_told(paths: list[str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        pipeline.expect_labels_fit({path[:-4]: Path(path) for path in paths})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["30"], "--score 30: 30: expected 0 to 1, such as 0.3"),
        (["shop=.3"], "--score shop=.3: no such class; this model knows "),
        (["ship="], "--score ship=: : expected 0 to 1"),
        ([".3", ".4"], "--score .4: a score for all classes is named twice"),
    ],
)
def test_what_is_no_score(words: list[str], message: str) -> None:
    with pytest.raises(InputError) as told:
        pipeline.class_scores(words, ["plane", "ship"])
    assert str(told.value).startswith(message)


def test_wrong_paths_are_one_line(tiny_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "out" / "pictures").mkdir(parents=True)
    (tmp_path / "out" / "pictures" / "a.jpg").touch()
    for images, out, expected in (
        (tmp_path / "none", tmp_path / "out", "no such file or directory"),
        (tmp_path, tmp_path / "out", "no image in this folder"),
        (tmp_path / "file", tmp_path / "file", "is a file, expected a directory"),
        (tmp_path / "out" / "pictures", tmp_path / "out", "the images lie there"),
        (tmp_path / "out" / "pictures", tmp_path / "none", "a.jpg: the file is empty"),
    ):
        assert pipeline.main(["--model", str(tiny_onnx), "--images", str(images), "--out", str(out)]) == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert message.startswith("pipeline: error: ")
        assert expected in message
    assert written(tmp_path / "none") == []


def test_a_scene_that_cannot_be_read_does_not_stop_the_others(
    tiny_onnx: Path, tiny_scenes: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for name in ("a.png", "c.png"):
        shutil.copy(tiny_scenes.images / "P0003.png", images / name)
    (images / "b.png").write_bytes((images / "a.png").read_bytes()[:60])
    command = ["--model", str(tiny_onnx), "--images", str(images), "--out", str(out), "--no-pictures"]
    assert pipeline.main(command) == 2
    assert f"pipeline: error: left out: {images / 'b.png'}: " in capsys.readouterr().err
    assert sorted(path.stem for path in (out / "geojson").iterdir()) == ["a", "c"]
    record = json.loads((out / "detections.json").read_text())
    assert list(record["detections"]) == ["a", "c"]
    assert list(record["unreadable"]) == ["b"]
    text = "".join(path.read_text() for path in out.glob("Task1_*.txt"))
    assert {line.split()[0] for line in text.splitlines()} == {"a", "c"}


def test_a_run_that_ends_early_leaves_no_record_of_the_one_before(
    tiny_onnx: Path, tiny_scenes: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--model", str(tiny_onnx), "--images", str(tiny_scenes.images / "P0003.png")]
    command += ["--out", str(tmp_path), "--no-pictures"]
    assert pipeline.main(command) == 0
    assert (tmp_path / "detections.json").is_file()
    monkeypatch.setattr(pipeline, "geojson", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipeline.main([*command, "--score", "0.9"])
    assert not (tmp_path / "detections.json").exists()


# --------------------------------------------------------------------------------------------- going on


class Run:
    """The command over scenes a to d, of which a lies on earth; it notes which scenes it looks at."""

    def __init__(self, folder: Path, model: Path, pixels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images, self.out = folder / "images", folder / "out"
        self.images.mkdir()
        for name in "abcd":
            draw.save(pixels, self.images / f"{name}.png")
        self.place("500000")
        self.command = ["--model", str(model), "--images", str(self.images)]
        self.looked_at: list[str] = []
        plain = streaming.read_image
        monkeypatch.setattr(
            streaming, "read_image", lambda path: self.looked_at.append(path.stem) or plain(path)
        )
        self.monkeypatch = monkeypatch

    def place(self, east: str) -> None:
        (self.images / "a.wld").write_text(f"0.5\n0\n0\n-0.5\n{east}\n4600000\n")

    def __call__(self, *flags: str, out: Path | None = None) -> int:
        self.looked_at.clear()
        status = pipeline.main([*self.command, "--out", str(out or self.out), *flags])
        self.looked_at.sort()
        return status

    def stop(self) -> None:
        """A run that Ctrl-C ends when the files of c are written."""
        plain = pipeline.geojson

        def interrupted(name: str, *rest: Any) -> dict[str, Any]:
            if name == "c":
                raise KeyboardInterrupt
            return plain(name, *rest)

        with self.monkeypatch.context() as patch:
            patch.setattr(pipeline, "geojson", interrupted)
            assert self() == 130
        assert not (self.out / "detections.json").exists()


@pytest.fixture
def interrupted(
    tiny_onnx: Path,
    tiny_scenes: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> Run:
    """A run of which a and b are done."""
    run = Run(tmp_path, tiny_onnx, read_image(tiny_scenes.images / "P0002.png"), monkeypatch)
    run.stop()
    assert capsys.readouterr().err.endswith("\npipeline: stopped; the same command goes on from here\n")
    return run


def test_the_same_command_goes_on(interrupted: Run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert interrupted() == 0
    assert interrupted.looked_at == ["c", "d"]
    told = capsys.readouterr()
    assert f"pipeline: 2 of 4 scenes are done, by {interrupted.out / '.journal'}" in told.err
    assert " in 4 scenes (2 tiles, " in told.out
    assert "| 2/2 [" in told.err
    assert "4 of 4 scenes]" in told.err
    whole = tmp_path / "whole"
    assert interrupted(out=whole) == 0
    assert interrupted.looked_at == list("abcd")
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert files == sorted(
        path.relative_to(interrupted.out) for path in interrupted.out.rglob("*") if path.is_file()
    )
    records = [json.loads((out / "detections.json").read_text()) for out in (whole, interrupted.out)]
    assert records[0]["detections"] == records[1]["detections"]
    for file in files:
        if file.name not in ("detections.json", ".lock"):
            same = (whole / file).read_bytes() == (interrupted.out / file).read_bytes()
            assert same or file.name == ".journal", file  # which lists scenes as they were done


def test_of_a_finished_run_scenes_that_came_later_are_done(
    interrupted: Run, capsys: pytest.CaptureFixture
) -> None:
    assert interrupted() == 0
    before = (interrupted.out / "Task1_ship.txt").read_text()
    shutil.copy(interrupted.images / "a.png", interrupted.images / "e.png")
    for half in ("geojson/.e.geojson.7.partial", ".map.geojson.7.partial"):
        (interrupted.out / half).write_text("of a run that was killed")
    assert interrupted() == 0
    assert interrupted.looked_at == ["e"]
    assert (interrupted.out / "Task1_ship.txt").read_text().startswith(before)
    assert list(json.loads((interrupted.out / "detections.json").read_text())["detections"]) == list("abcde")
    assert not list(interrupted.out.rglob("*.partial"))
    assert interrupted() == 0  # nothing is left to do
    assert interrupted.looked_at == []
    assert "is replaced" not in capsys.readouterr().err
    assert interrupted("--no-pictures") == 0
    assert f"note: what was in {interrupted.out} is replaced" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "looked_at"),
    [
        (lambda run: os.utime(run.images / "b.png", (1, 1)), "bcd"),
        (lambda run: run.place("600000"), "acd"),
        (lambda run: (run.out / "pictures" / "a.jpg").unlink(), "acd"),
        (lambda run: (run.out / "map" / "a.geojson").unlink(), "acd"),
        (lambda run: (run.out / "map" / "a.geojson").write_bytes(b""), "acd"),  # as a crash leaves it
        (lambda run: (run.images / "a.wld").unlink(), "acd"),
    ],
)
def test_scenes_that_changed_are_done_again(interrupted: Run, change: Any, looked_at: str) -> None:
    change(interrupted)
    assert interrupted() == 0
    assert interrupted.looked_at == list(looked_at)
    assert (interrupted.out / "map" / "a.geojson").exists() == (interrupted.images / "a.wld").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["--score", "0.5"],
        ["--across", "0.5"],
        ["--stride", "99"],
        ["--scales", "0.5"],
        ["--batch", "2"],
        ["--no-pictures"],
    ],
)
def test_other_settings_begin_anew(interrupted: Run, flags: list[str]) -> None:
    assert interrupted(*flags) == 0
    assert interrupted.looked_at == list("abcd")


def test_labels_that_were_corrected_stay(interrupted: Run, capsys: pytest.CaptureFixture) -> None:
    assert interrupted("--labels") == 0
    assert interrupted.looked_at == ["c", "d"]
    labels, journal = interrupted.out / "labelled" / "labelTxt", interrupted.out / ".journal"
    assert sorted(path.stem for path in labels.iterdir()) == list("abcd")
    made = (labels / "b.txt").read_text()
    assert made
    (labels / "a.txt").write_text("corrected")
    (labels / "b.txt").unlink()  # as a kill would leave it
    (labels / ".b.txt.7.partial").touch()
    shutil.copy(interrupted.images / "a.png", interrupted.images / "e.png")
    assert interrupted("--labels") == 0
    assert interrupted.looked_at == ["e"]
    assert (labels / "b.txt").read_text() == made
    assert sorted(path.name for path in labels.iterdir()) == [f"{name}.txt" for name in "abcde"]
    before = journal.read_bytes()
    for flags in (["--labels", "--score", "0.4"], ["--no-pictures"]):
        assert interrupted(*flags) == 2
        told = (
            "labels of an earlier run, which may have been corrected, are not replaced by new ones (another"
        )
        assert f"{labels / 'a.txt'}: {told}" in capsys.readouterr().err
    os.utime(interrupted.images / "b.png", (1, 1))
    assert interrupted() == 2
    told = capsys.readouterr().err
    assert f"{labels / 'b.txt'}: labels of an earlier run" in told
    assert "are not replaced by new ones (its image has changed, or its results are missing); move" in told
    assert interrupted.looked_at == []
    assert (labels / "a.txt").read_text() == "corrected"
    assert set(journal.read_bytes().splitlines()) < set(before.splitlines())  # but b's
    (labels / "b.txt").unlink()
    assert interrupted("--labels") == 0
    assert interrupted.looked_at == ["b"]
    names = labels.parent / "classes.txt"
    right = names.read_text()
    for path in (names, labels / "a.txt"):
        path.write_text("of another model")
    assert interrupted("--labels") == 0
    assert names.read_text() == "of another model"  # the numbers of labels that stay
    for path in labels.iterdir():
        path.unlink()
    assert interrupted("--labels") == 0
    assert names.read_text() == right


def test_labels_of_what_is_done_are_written_without_looking_again(interrupted: Run) -> None:
    assert interrupted() == 0
    assert interrupted("--labels") == 0
    assert interrupted.looked_at == []
    assert len(list((interrupted.out / "labelled" / "images").iterdir())) == 4


def test_pictures_of_a_run_that_was_killed_do_not_stay_beside_one_without(interrupted: Run) -> None:
    (interrupted.out / "pictures" / "mine.jpg").touch()
    assert interrupted("--no-pictures") == 0
    assert [path.name for path in (interrupted.out / "pictures").iterdir()] == ["mine.jpg"]


def test_a_mended_scene_is_all_that_is_done_again(interrupted: Run) -> None:
    whole = (interrupted.images / "d.png").read_bytes()
    (interrupted.images / "d.png").write_bytes(whole[:60])
    assert interrupted() == 2
    record = json.loads((interrupted.out / "detections.json").read_text())
    assert (list(record["detections"]), list(record["unreadable"])) == (list("abc"), ["d"])
    (interrupted.images / "d.png").write_bytes(whole)
    assert interrupted() == 0
    assert interrupted.looked_at == ["d"]
    record = json.loads((interrupted.out / "detections.json").read_text())
    assert (list(record["detections"]), record["unreadable"]) == (list("abcd"), {})


def test_two_runs_into_one_folder_are_kept_apart(
    tiny_onnx: Path, tiny_scenes: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("fcntl", reason="this system has no POSIX locks")
    hold = (
        "import pathlib, sys; from rgfl.folder_lock import lock_folder\n"
        "lock = lock_folder(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    command = ["--model", str(tiny_onnx), "--images", str(tiny_scenes.images), "--out", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-c", hold, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert pipeline.main(command) == 2
        other.kill()
    told = capsys.readouterr().err
    assert f"pipeline: error: --out {tmp_path}: process {other.pid} on " in told
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_what_this_run_does_not_write_is_not_left_of_the_one_before(
    tiny_onnx: Path, tiny_scenes: SimpleNamespace, tmp_path: Path
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    shutil.copy(tiny_scenes.images / "P0003.png", images / "a.png")
    (images / "a.wld").write_text("3\n0\n0\n-3\n500000\n4600000\n")
    command = ["--model", str(tiny_onnx), "--images", str(images), "--out", str(out)]
    assert pipeline.main(command) == 0
    mine = out / "pictures" / "b.jpg"
    mine.touch()
    results = ["detections.json", "geojson/a.geojson"]
    assert written(out) == [*results, "map/a.geojson", "pictures/a.jpg", "pictures/b.jpg"]
    (out / "Task1_tank.txt").touch()  # a class that this model lacks
    (images / "a.wld").unlink()
    assert pipeline.main([*command, "--no-pictures"]) == 0
    assert written(out) == [*results, "pictures/b.jpg"]
    assert not (out / "Task1_tank.txt").exists()
    mine.rename(out / "pictures" / "a.jpg")
    assert pipeline.main([*command, "--no-pictures"]) == 0  # no run has drawn that
    assert written(out) == [*results, "pictures/a.jpg"]


def test_results_of_other_scenes_are_not_mixed_with_these(
    tiny_onnx: Path, tiny_scenes: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    shutil.copy(tiny_scenes.images / "P0003.png", images / "a.png")
    command = ["--model", str(tiny_onnx), "--images", str(images), "--out", str(out), "--no-pictures"]
    assert pipeline.main(command) == 0
    shutil.copy(images / "a.png", images / "b.png")
    assert pipeline.main(command) == 0  # the same and one more
    (images / "a.png").unlink()
    before = {path: path.read_bytes() for path in out.glob("Task1_*.txt")}
    assert any(before.values())
    assert pipeline.main(command) == 2
    assert "holds results of other scenes, such as a; choose another folder" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in out.glob("Task1_*.txt")}


def test_task_1_files_of_another_program_stay(
    tiny_onnx: Path, tiny_scenes: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["--model", str(tiny_onnx), "--images", str(tiny_scenes.images), "--out", str(tmp_path)]
    for name in ("Task1_helicopter.txt", "map.geojson"):
        (tmp_path / name).write_text("a 0.9 1 1 9 1 9 9 1 9\n")
        assert pipeline.main(command) == 2
        assert f"holds results of others, such as {name}; choose" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()


def test_geojson_properties_are_the_box_in_pixels() -> None:
    box = [20.125, 10.5, 8, 4, 0.25]
    found = Detections(np.array([box], np.float32), np.array([0.5], np.float32), np.array([1], np.int32))
    (feature,) = pipeline.geojson("scene", found, ("plane", "ship"))["features"]
    names = ("cx", "cy", "width", "height", "angle")
    assert feature["properties"] == {"class": "ship", "score": 0.5, **dict(zip(names, box, strict=True))}
    assert feature["geometry"]["coordinates"][0][0] == [16.744, 7.573]


def test_the_command_cuts_as_it_is_told(
    tiny_onnx: Path, tiny_scenes: SimpleNamespace, tmp_path: Path
) -> None:
    image = tiny_scenes.images / "P0003.png"
    command = ["--model", tiny_onnx, "--images", image, "--out", tmp_path, "--no-pictures"]
    for flags, stride, scales in (
        ([], 0, [1]),
        (["--stride", 64], 64, [1]),
        (["--scales", 0.5, 1], 0, [0.5, 1]),
    ):
        assert pipeline.main(list(map(str, [*command, *flags]))) == 0
        tiles = places_at_scales(*read_image(image).shape[:2], size=128, stride=stride, scales=scales)
        record = json.loads((tmp_path / "detections.json").read_text())
        assert record["timing"]["tiles"] == len(tiles), flags


def test_a_stride_that_does_not_fit_leaves_what_is_there(
    tiny_onnx: Path, tiny_scenes: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["--model", str(tiny_onnx), "--images", str(tiny_scenes.images / "P0003.png")]
    command += ["--out", str(tmp_path), "--no-pictures"]
    assert pipeline.main(command) == 0
    assert pipeline.main([*command, "--stride", "129"]) == 2
    assert "--stride 129: expected 0…128, the side of the model's tile" in capsys.readouterr().err
    assert written(tmp_path) == ["detections.json", "geojson/P0003.geojson"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scales", "0.04"], "--scales 0.04: expected factors from 0.05 to 20"),
        (["--scales", "21"], "--scales 21: expected factors from 0.05 to 20"),
        (["--scales", "1", "1"], "--scales: a factor is named twice"),
        (["--batch", "0"], "--batch 0: expected 1 or more"),
        (["--threads", "-1"], "--threads -1: expected 0 or more"),
    ],
)
def test_flags_that_cannot_be(
    flags: list[str], message: str, tiny_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    images = write_scenes(tmp_path, [(8, 8)])
    command = ["--model", str(tiny_onnx), "--images", str(images["S0"]), "--out", str(tmp_path / "out")]
    assert pipeline.main([*command, *flags]) == 2
    assert message in capsys.readouterr().err
