"""Scenes streamed through a runner: the same as tile by tile, in bounded memory, errors and all."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rgfl.detections import Detections
from rgfl.dota.images import ImageError, read_image
from rgfl.dota.merge import detect
from rgfl.spec import DetectorSpec
from rgfl.trt_runtime import draw, pipeline
from rgfl.trt_runtime.pipeline import stream
from rgfl.trt_runtime.runners import Runner, load_runner


class BrightSpots(Runner):
    """A runner without a network: one box a tile, on its brightest pixel."""

    backend = "test"

    def __init__(self) -> None:
        super().__init__(Path("spots"), DetectorSpec(classes=("spot",), image_size=(128, 128)), "a test")
        self.seen: list[int] = []
        self.prepared = 0

    def prepare(self, tiles: np.ndarray) -> np.ndarray:
        self.prepared += 1
        return tiles.sum(axis=3)

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


@pytest.mark.parametrize("batch", [1, 3, 50])
def test_the_same_as_one_tile_after_the_other(batch: int, tmp_path: Path) -> None:
    images = write_scenes(tmp_path, [(300, 310), (40, 50), (128, 128), (129, 400)])
    runner = BrightSpots()
    timing = pipeline.Timing()
    scenes = list(stream(runner, images, stride=100, batch=batch, timing=timing))
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


def test_a_real_model_gives_the_same_as_detect(tiny_onnx: Path, tiny_scenes: SimpleNamespace) -> None:
    images = {name: tiny_scenes.images / f"{name}.png" for name in tiny_scenes.names}
    with load_runner(tiny_onnx, device="cpu") as runner:
        stride = pipeline.default_stride(128)
        for scene in stream(runner, images):
            expected = detect(scene.image, runner, size=128, stride=stride)
            assert equal(scene.detections, expected)


def test_the_reader_waits_for_the_network(tmp_path: Path) -> None:
    images = write_scenes(tmp_path, [(128, 128)] * 12)
    runner = BrightSpots()
    scenes = stream(runner, images)
    next(scenes)
    time.sleep(0.3)
    # in the queue, one that waits to enter it, one in NMS, one merged
    assert runner.prepared <= pipeline.WAITING_BATCHES + 4
    scenes.close()  # type: ignore[attr-defined]
    assert "rgfl-reader" not in {thread.name for thread in threading.enumerate()}


def test_a_bad_image_ends_the_stream_where_it_stands(tmp_path: Path) -> None:
    images = write_scenes(tmp_path, [(128, 128)] * 3)
    images["S1"].write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"S1\.png"):
        list(stream(BrightSpots(), images))
    assert "rgfl-reader" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize(("size", "stride"), [(1024, 824), (512, 412), (256, 206), (128, 103)])
def test_the_default_stride_keeps_the_published_overlap(size: int, stride: int) -> None:
    assert pipeline.default_stride(size) == stride


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


def test_the_command_writes_all_its_files(
    tiny_onnx: Path, tiny_scenes: SimpleNamespace, tmp_path: Path
) -> None:
    out = tmp_path / "found"
    command = ["--model", tiny_onnx, "--images", tiny_scenes.images / "P0003.png", "--out", out, "--batch", 2]
    assert pipeline.main(list(map(str, command))) == 0
    record = json.loads((out / "detections.json").read_text())
    collection = json.loads((out / "geojson" / "P0003.geojson").read_text())
    lines = sum(len(path.read_text().splitlines()) for path in out.glob("Task1_*.txt"))
    assert sum(record["detections"]["P0003"].values()) == len(collection["features"]) == lines > 0
    assert record["timing"]["tiles"] == 6
    assert (out / "pictures" / "P0003.jpg").stat().st_size > 1000


def test_wrong_paths_are_one_line(tiny_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "spaced").mkdir()
    (tmp_path / "spaced" / "two words.png").touch()
    for images, out, expected in (
        (tmp_path / "none", tmp_path / "out", "no such file or directory"),
        (tmp_path, tmp_path / "out", "no image in this folder"),
        (tmp_path / "file", tmp_path / "file", "is a file, expected a directory"),
        (tmp_path / "spaced", tmp_path / "out", "white space in an image's name"),
    ):
        assert pipeline.main(["--model", str(tiny_onnx), "--images", str(images), "--out", str(out)]) == 2
        message = capsys.readouterr().err
        assert message.startswith("pipeline: error: ")
        assert expected in message
