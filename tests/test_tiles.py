"""Which windows an epoch has, what a tile shows of them, in which order they come, and what is decoded."""

import dataclasses
import math
import pickle
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_dataset import (
    BUSY,
    PLAIN,
    SMALL,
    SQUARE,
    make_folder,
    many_pictures,
    pictures_of,
    squares,
    tiles_of,
    write_split,
)

from rgfl import boxes
from rgfl.dataset import DataError, Picture, read_dataset
from rgfl.dota.images import ImageError
from rgfl.dota.labels import Objects, read_labels, write_labels
from rgfl.dota.tiling import TileSettings, clip_objects, split, windows
from rgfl.recipes import AugmentConfig, DataConfig, RunConfig
from rgfl.tiles import GROUP_PIXELS, Tiles, Window, _visible, list_windows

GRID = DataConfig(tile_size=128, stride=64, windows="grid", empty_share=0.0)


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path)


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


def test_random_windows_are_placed_around_what_is_learned():
    """Not around the nine of ten objects that were cut when tiles were written."""
    objects = squares((3000, 3000), *[(10, y) for y in range(0, 180, 20)])
    objects.difficult[1:] = 2
    picture = Picture("P", Path("P.png"), 4000, 4000, objects)
    data = dataclasses.replace(SMALL, object_probability=1.0)
    tiles, rng = Tiles([picture], ("a",), data, PLAIN, 0), np.random.default_rng(0)
    centers = [tiles._random_center(rng, picture, 128, 1.0) for _ in range(50)]
    assert min(map(min, centers)) > 2900


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
    clipped = []

    def clip(objects, *place, **more):
        clipped.append(len(objects))
        return clip_objects(objects, *place, **more)

    monkeypatch.setattr("rgfl.tiles.clip_objects", clip)
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


def test_objects_longer_than_a_tile_are_counted_and_told_how_to_be_learned(folder):
    """They were trained without: a loss of 0 for as long as it took."""
    large = "20 20 320 20 320 120 20 120 ship 0\n"  # in an image of 400 × 300
    label = folder / "train/labelTxt/large.txt"
    small = label.read_text()
    label.write_text(small + large)
    tiles = tiles_of(folder)
    assert tiles.too_long == {"large": 1}
    assert "300 px long or more: learn from smaller pictures, by --scale 0.21,1 --test-scales 1,0.21, " in (
        tiles.fitting_scales()
    )
    smaller = AugmentConfig(scale=(0.5, 1.0))
    assert tiles_of(folder, augment=smaller).too_long == {}
    on_grid = tiles_of(folder, dataclasses.replace(SMALL, windows="grid"), augment=smaller)
    assert on_grid.too_long == {"large": 1}  # whose windows are chosen at the image's own size
    assert "by --windows random --scale 0.21,1 --test-scales" in on_grid.fitting_scales()
    assert tiles_of(folder, dataclasses.replace(SMALL, min_visible=0.3)).too_long == {}
    label.write_text(50 * large)
    with pytest.raises(
        DataError, match=r"--tile-size 128, got 50 of .* --scale 0.15,0.32 --test-scales 0.21,"
    ):
        tiles_of(folder)


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
    monkeypatch.setattr("rgfl.tiles.GROUP_PIXELS", 3 * 256 * 256)
    data = DataConfig(tile_size=128, stride=64, windows=kind, empty_share=1.0)
    tiles = Tiles(pictures_of(*[(256, 256)] * 12), ("a",), data, AugmentConfig(mosaic=mosaic), 0, cache_mb=1)
    for epoch in range(2):
        reads.clear()
        in_order(tiles, epoch)
        kept = 5 if epoch else 0  # 1 MB of the epoch before
        assert 12 - kept <= len(reads) <= 12
        assert len(set(reads)) == len(reads)


def test_a_picture_larger_than_a_group_is_decoded_once_an_epoch(reads, monkeypatch):
    monkeypatch.setattr("rgfl.tiles.GROUP_PIXELS", 300_000)
    tiles = Tiles(pictures_of((700, 700), (256, 256), (256, 256), (800, 800)), ("a",), SMALL, PLAIN, 0, 1)
    in_order(tiles, 0)
    assert sorted(reads) == ["P0", "P1", "P2", "P3"]


def picture_of(tiles, order):
    return [tiles.windows[index].picture for index in order]


def test_windows_are_mixed_within_groups_that_change_from_epoch_to_epoch(monkeypatch):
    monkeypatch.setattr("rgfl.tiles.GROUP_PIXELS", 3 * 256 * 256)
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
    monkeypatch.setattr("rgfl.tiles.GROUP_PIXELS", 256 * 256)
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
    monkeypatch.setattr("rgfl.tiles.GROUP_PIXELS", 256 * 256)
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
    monkeypatch.setattr("rgfl.tiles.GROUP_PIXELS", 300_000)
    assert one.cache_wanted() == 1
    assert Tiles(pictures_of((128, 128)), ("a",), SMALL, PLAIN, 0).cache_wanted() == 0


def test_how_many_pictures_are_mixed(monkeypatch):
    pictures = pictures_of(*[(300, 300)] * 8)
    tiles = Tiles(pictures, ("a",), SMALL, PLAIN, 0)
    assert tiles.pictures_mixed() == math.inf
    for pixels, mixed in ((50_000, 1), (200_000, 2), (400_000, 4)):
        monkeypatch.setattr("rgfl.tiles.GROUP_PIXELS", pixels)
        assert tiles.pictures_mixed() == mixed


# ----------------------------------------------------------------------------------- the way to a worker


def test_tiles_of_groups_are_the_same_in_a_worker(reads, monkeypatch):
    """A mosaic's partners come from the group of its window, which a worker finds by itself."""
    monkeypatch.setattr("rgfl.tiles.GROUP_PIXELS", 256 * 256)
    pictures = pictures_of((256, 256), (256, 256), (128, 128), (128, 256))
    mosaics = Tiles(pictures, ("a",), SMALL, AugmentConfig(mosaic=1.0), 4, cache_mb=1)
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


def test_a_large_data_set_is_a_small_pickle():
    tiles = many_pictures()
    numbers = 5000 * 4 * (8 * 8 + 4 + 4)
    assert len(pickle.dumps(tiles)) < numbers + 5000 * 100
