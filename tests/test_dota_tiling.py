"""Windows, crops, clipped objects, and tiles on disk that survive a kill."""

import itertools
import json
import os
import shutil

import numpy as np
import pytest
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rgfl.boxes import to_quads
from rgfl.dota import tiling
from rgfl.dota.images import read_image
from rgfl.dota.labels import LabelWarning, Objects, read_labels, write_labels
from rgfl.dota.tiling import TileSettings, TilingError, clip_objects, crop, windows

NAMES = ("plane", "ship")


def objects(*quads, difficult=0):
    array = np.array(quads, np.float64).reshape(-1, 8)
    return Objects(array, np.zeros(len(array), np.int32), np.full(len(array), difficult, np.int32))


def rectangle(left, top, right, bottom):
    return [left, top, right, top, right, bottom, left, bottom]


def polygon(quad):
    return shapely.Polygon(np.reshape(quad, (4, 2)))


# ---- windows and pixels


@pytest.mark.parametrize(
    ("length", "size", "stride", "starts"),
    [
        (1, 1024, 824, [0]),
        (1024, 1024, 824, [0]),
        (1025, 1024, 824, [0, 1]),
        (1848, 1024, 824, [0, 824]),
        (1849, 1024, 824, [0, 824, 825]),
        (2000, 1024, 512, [0, 512, 976]),
        (2048, 1024, 1024, [0, 1024]),
    ],
)
def test_windows_along_one_side(length, size, stride, starts):
    assert windows(1, length, size, stride) == [(x, 0) for x in starts]
    assert windows(length, 1, size, stride) == [(0, y) for y in starts]


@given(data=st.data(), height=st.integers(1, 90), width=st.integers(1, 90), size=st.integers(1, 40))
@settings(deadline=None)
def test_windows_cover_every_pixel_and_nothing_else(data, height, width, size):
    stride = data.draw(st.integers(max(1, size // 3), size))
    places = windows(height, width, size, stride)
    assert places == sorted(set(places), key=lambda place: (place[1], place[0]))
    seen = np.zeros((height + size, width + size), int)
    for x, y in places:
        seen[y : y + size, x : x + size] += 1
    assert seen[:height, :width].min() >= 1
    outside = seen.sum() - seen[:height, :width].sum()
    assert (outside > 0) == (height < size or width < size)


@pytest.mark.parametrize("size", [1024, 512, 128])
def test_without_a_stride_windows_overlap_as_the_published_ones(size):
    assert windows(3000, 2000, size, 0) == windows(3000, 2000, size, tiling.default_stride(size))


@pytest.mark.parametrize("stride", [-1, 1025])
def test_strides_that_leave_gaps_are_refused(stride):
    with pytest.raises(TilingError, match=r"stride: expected 1…1024 \(the size\)"):
        windows(2000, 2000, 1024, stride)


def test_images_without_pixels_are_refused():
    with pytest.raises(TilingError, match="got 0 × 5"):
        windows(0, 5, 4, 4)


@given(height=st.integers(1, 30), width=st.integers(1, 30), size=st.integers(1, 20))
@settings(deadline=None)
def test_crops_put_the_image_together_again(height, width, size):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    again = np.zeros((height + size, width + size, 3), np.uint8)
    for x, y in windows(height, width, size, size):
        tile = crop(image, x, y, size, (1, 2, 3))
        assert tile.shape == (size, size, 3)
        assert (tile[height - y :] == (1, 2, 3)).all()
        assert (tile[:, width - x :] == (1, 2, 3)).all()
        again[y : y + size, x : x + size] = tile
    assert np.array_equal(again[:height, :width], image)


def test_crop_reads_only_its_window(tmp_path):
    class Scene:
        shape = (60_000, 60_000, 3)

        def __getitem__(self, place):
            rows, columns = place
            assert (rows.stop - rows.start, columns.stop - columns.start) == (64, 64)
            return np.full((64, 64, 3), 7, np.uint8)

    assert (crop(Scene(), 59_936, 59_936, 64) == 7).all()
    assert crop(Scene(), 0, 0, 64).flags.owndata


def test_crop_without_a_copy_is_a_view_where_nothing_is_padded():
    image = np.zeros((80, 90, 3), np.uint8)
    assert np.shares_memory(crop(image, 10, 16, 64, copy=False), image)
    assert not np.shares_memory(crop(image, 30, 16, 64, copy=False), image)
    assert not np.shares_memory(crop(image, 10, 16, 64), image)


@pytest.mark.parametrize(
    ("image", "x", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), 0, "expected uint8 pixels"),
        (np.zeros((4, 4), np.uint8), 0, "expected uint8 pixels"),
        (np.zeros((4, 4, 3), np.uint8), 4, "misses the 4 × 4 image"),
    ],
)
def test_crop_refuses(image, x, message):
    with pytest.raises(TilingError, match=message):
        crop(image, x, 0, 4)


# ---- objects

SIZE = 100.0
boxes = st.tuples(
    st.floats(-40, 140), st.floats(-40, 140), st.floats(2, 120), st.floats(2, 120), st.floats(-3, 3)
)


@given(box=boxes, cut=st.sampled_from(["clipped", "whole"]))
@settings(deadline=None)
def test_clipping_agrees_with_shapely(box, cut):
    quad = to_quads(np.array([box], np.float64))[0]
    part = shapely.intersection(polygon(quad), shapely.box(0, 0, SIZE, SIZE))
    visible = part.area / polygon(quad).area
    assume(abs(visible - 0.7) > 1e-6 and (visible == 0 or visible > 1e-6))
    seen = clip_objects(objects(quad + np.tile([1000.0, 2000.0], 4)), 1000, 2000, (100, 100), cut=cut)
    assert len(seen) == (visible > 0)
    if not len(seen):
        return
    assert seen.difficult.tolist() == [0 if visible > 0.7 else 2]
    corners = len(shapely.get_coordinates(shapely.simplify(part, 1e-7))) - 1
    if cut == "whole" or visible > 1 - 1e-12:
        assert np.abs(seen.quads[0] - quad).max() < 1e-9
    elif corners <= 4:
        assert shapely.symmetric_difference(polygon(seen.quads[0]), part).area < 1e-6 * polygon(quad).area
    elif corners == 5:  # reduced, within the window
        assert polygon(seen.quads[0]).area <= part.area * (1 + 1e-9)
        assert seen.quads.min() >= -1e-9
        assert seen.quads.max() <= SIZE + 1e-9
    else:
        assert np.abs(seen.quads[0] - quad).max() < 1e-9


@pytest.mark.parametrize(
    ("name", "quad", "expected", "difficult"),
    [
        ("inside", rectangle(10, 10, 30, 20), rectangle(10, 10, 30, 20), 0),
        ("fills the window", rectangle(0, 0, 100, 100), rectangle(0, 0, 100, 100), 0),
        ("0.7 is enough", rectangle(93, 10, 103, 20), rectangle(93, 10, 100, 20), 0),
        ("0.6 is not", rectangle(94, 10, 104, 20), rectangle(94, 10, 100, 20), 2),
        ("the window lies within it", rectangle(-100, -100, 200, 200), rectangle(0, 0, 100, 100), 2),
        ("touches only", rectangle(100, 10, 110, 20), None, 0),
        ("outside", rectangle(200, 10, 210, 20), None, 0),
        ("no area", rectangle(10, 10, 30, 10), None, 0),
        ("one point", rectangle(10, 10, 10, 10), None, 0),
        # the edge on the border, from (100, 43⅓) to (100, 60), is the shortest of five
        ("five corners", [50, 10, 110, 50, 70, 90, 10, 50], [50, 10, 100, 51 + 2 / 3, 70, 90, 10, 50], 0),
        # a diamond that leaves on all four sides: the part has eight corners
        ("eight corners", [50, -20, 120, 50, 50, 120, -20, 50], [50, -20, 120, 50, 50, 120, -20, 50], 0),
    ],
)
def test_clipped_objects(name, quad, expected, difficult):
    seen = clip_objects(objects(quad), 0, 0, (100, 100))
    if expected is None:
        assert len(seen) == 0
        return
    assert seen.difficult.tolist() == [difficult]
    np.testing.assert_allclose(seen.quads[0], expected, atol=1e-9)


def test_a_clipped_object_keeps_its_first_corner_and_turning_sense():
    for shift, sense in itertools.product(range(4), (1, -1)):
        quad = np.roll(np.reshape(rectangle(-2, 10, 28, 20), (4, 2)), shift, axis=0)[::sense].reshape(8)
        seen = clip_objects(objects(quad), 0, 0, (100, 100)).quads[0]
        assert np.array_equal(seen, np.maximum(quad, 0))


def test_objects_keep_order_labels_and_their_own_difficult():
    quads = [
        rectangle(10, 10, 20, 20),
        rectangle(200, 0, 210, 9),
        rectangle(-1, 0, 9, 9),
        rectangle(95, 0, 105, 9),
    ]
    marked = Objects(
        np.array(quads, float), np.array([3, 2, 1, 0], np.int32), np.array([1, 1, 1, 1], np.int32)
    )
    seen = clip_objects(marked, 0, 0, (100, 100))
    assert seen.labels.tolist() == [3, 1, 0]
    assert seen.difficult.tolist() == [1, 1, 2]
    assert np.array_equal(marked.quads, np.array(quads))  # the input is left alone


def test_a_triangle_stays_a_quad():
    corner = [-10, 20, 20, -10, -10, -40, -40, -10]  # a diamond that shows a tip of itself
    seen = clip_objects(objects(corner), 0, 0, (100, 100))
    assert seen.difficult.tolist() == [2]
    assert shapely.MultiPoint(seen.quads.reshape(4, 2)).convex_hull.area == pytest.approx(50)


def test_padding_shows_nothing():
    reaching_out = objects(rectangle(0, 0, 10, 100))
    assert clip_objects(reaching_out, 0, 0, (100, 100)).difficult.tolist() == [0]
    assert clip_objects(reaching_out, 0, 0, (100, 60)).difficult.tolist() == [2]


def test_no_objects():
    assert len(clip_objects(Objects.empty(), 5, 5, (100, 100))) == 0


# ---- on disk


@pytest.fixture
def data(tmp_path):
    """Three images with labels: one of 2 × 1 windows of 64, one smaller than a window, one empty."""
    rng = np.random.default_rng(0)
    sizes = {"P0001": (50, 100), "P0002": (30, 20), "P0003": (64, 64)}
    (tmp_path / "data/train/images").mkdir(parents=True)
    (tmp_path / "data/train/labelTxt").mkdir()
    for stem, (height, width) in sizes.items():
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        tiling._write_png(tmp_path / f"data/train/images/{stem}.png", pixels)
    label = tmp_path / "data/train/labelTxt"
    first = objects(rectangle(4, 4, 20, 10), rectangle(58, 4, 68, 14), rectangle(70, 30, 90, 40))
    write_labels(label / "P0001.txt", first, NAMES)
    write_labels(label / "P0002.txt", objects(rectangle(4, 4, 10, 10)), NAMES)
    (label / "P0003.txt").write_text("imagesource:x\ngsd:1\n")
    return tmp_path / "data"


def run(data, out, *flags):
    return tiling.main(
        ["--data", str(data), "--out", str(out), "--size", "64", "--stride", "48", "--workers", "1", *flags]
    )


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != tiling.JOURNAL
    }


def test_tiles_on_disk(data, tmp_path, capsys):
    out = tmp_path / "tiles"
    assert run(data, out) == 0
    assert "train: 3 tiles of 3 images, 5 objects, 1 of them cut (difficult 2)" in capsys.readouterr().out
    names = ["P0001__1__0___0", "P0001__1__36___0", "P0002__1__0___0"]
    assert list(files(out / "train/images")) == [f"{name}.png" for name in names]
    assert list(files(out / "train/labelTxt")) == [f"{name}.txt" for name in names]
    image = read_image(data / "train/images/P0001.png")
    tile = read_image(out / "train/images/P0001__1__36___0.png")
    assert np.array_equal(tile[:50], image[:, 36:])
    assert not tile[50:].any()
    seen = read_labels(out / "train/labelTxt/P0001__1__0___0.txt", NAMES)
    assert seen.quads.tolist() == [rectangle(4, 4, 20, 10), rectangle(58, 4, 64, 14)]
    assert seen.difficult.tolist() == [0, 2]


def test_one_split_alone(data, tmp_path, capsys):
    shutil.copytree(data / "train", data / "val")
    assert run(data, tmp_path / "tiles", "--splits", "train") == 0
    assert [path.name for path in (tmp_path / "tiles").iterdir() if path.is_dir()] == ["train"]
    assert run(data, tmp_path / "other", "--splits", "train", "tset") == 2
    assert f"--splits: no {data / 'tset/images'}; --data has train, val" in capsys.readouterr().err
    assert run(data / "train", tmp_path / "other", "--splits", "train") == 2
    assert f"--splits: no {data / 'train/train/images'}; --data has none" in capsys.readouterr().err


def test_empty_tiles_whole_objects_and_pad_value(data, tmp_path):
    out = tmp_path / "tiles"
    assert run(data, out, "--keep-empty", "--cut", "whole", "--pad-value", "1", "2", "3") == 0
    assert (out / "train/labelTxt/P0003__1__0___0.txt").read_bytes() == b""
    assert (read_image(out / "train/images/P0002__1__0___0.png")[30:] == (1, 2, 3)).all()
    seen = read_labels(out / "train/labelTxt/P0001__1__0___0.txt", NAMES)
    assert seen.quads[1].tolist() == rectangle(58, 4, 68, 14)


def test_scales_are_in_the_names_and_move_the_labels(data, tmp_path):
    out = tmp_path / "tiles"
    assert run(data, out, "--scales", "0.5", "2") == 0
    assert "P0001__0.5__0___0.png" in files(out / "train/images")
    assert "P0002__2__0___0.png" in files(out / "train/images")
    half = read_labels(out / "train/labelTxt/P0002__0.5__0___0.txt", NAMES)
    assert half.quads.tolist() == [rectangle(2, 2, 5, 5)]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_edges_that_cross_are_told_once_for_all_images(data, tmp_path, workers):
    """And not by each worker for each image; a run that goes on tells of what is finished, too."""
    label = data / "train/labelTxt"
    for name in ("P0002", "P0003"):
        (label / f"{name}.txt").write_text("gsd:1\n4 4 14 4 4 14 14 15 ship 0\n" + "2 2 9 2 9 9 2 9 ship 0\n")
    for _ in range(2):
        with pytest.warns(LabelWarning) as told:
            assert run(data, tmp_path / "tiles", "--workers", workers) == 0
        (warning,) = told
        assert f"{label}/P0002.txt:2: edges cross here, and in 1 more objects" in str(warning.message)
    journal = tmp_path / "tiles/train" / tiling.JOURNAL
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    old = [{key: value for key, value in entry.items() if "crossing" not in key} for entry in entries]
    journal.write_text("".join(json.dumps(entry) + "\n" for entry in old))
    assert run(data, tmp_path / "tiles") == 0  # a journal of before


def test_a_test_split_has_no_labels(data, tmp_path):
    for path in (data / "train/labelTxt").iterdir():
        path.unlink()
    (data / "train/labelTxt").rmdir()
    out = tmp_path / "tiles"
    assert run(data / "train", out) == 0
    assert len(files(out / "images")) == 4
    assert not (out / "labelTxt").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on_where_it_was(data, tmp_path, monkeypatch, workers):
    whole, out = tmp_path / "whole", tmp_path / "tiles"
    assert run(data, whole) == 0
    assert run(data, out) == 0
    train = out / "train"
    lines = (train / tiling.JOURNAL).read_text().split("\n")
    (train / tiling.JOURNAL).write_text("\n".join(lines[:2]) + "\n" + lines[2][:20])  # killed in P0002
    (train / "images/P0002__1__0___0.png").unlink()
    (train / "images/.P0002__1__0___0.png.7.partial").write_bytes(b"half")
    (train / "images/P0002__1__9___9.png").write_bytes(b"of labels that changed since")
    (train / "labelTxt/P0001__1__0___0.txt").write_text("kept: the image is finished")
    assert run(data, out, "--workers", str(workers)) == 0
    again = files(train)
    assert again.pop("labelTxt/P0001__1__0___0.txt") == b"kept: the image is finished"
    expected = files(whole / "train")
    del expected["labelTxt/P0001__1__0___0.txt"]
    assert again == expected
    monkeypatch.setattr(tiling, "_tile_image", lambda job: pytest.fail("nothing is left to do"))
    assert run(data, out) == 0


def be_killed(_):
    os._exit(9)


def test_a_killed_worker_is_told_in_one_line(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tiling, "_tile_image", be_killed)
    assert run(data, tmp_path / "tiles", "--workers", "2") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    told = "tiling: error: a worker was killed, most likely because memory ran out; run again with"
    assert error.startswith(told)


@pytest.mark.parametrize("lost", ["images/P0001__1__36___0.png", "labelTxt/P0001__1__0___0.txt"])
def test_tiles_that_are_gone_are_written_again(data, tmp_path, monkeypatch, lost):
    """A run after the first believed its journal."""
    out = tmp_path / "tiles"
    assert run(data, out, "--keep-empty") == 0
    whole = files(out)
    (out / "train" / lost).unlink()
    done = []
    honest = tiling._tile_image
    monkeypatch.setattr(tiling, "_tile_image", lambda job: done.append(job.image.stem) or honest(job))
    assert run(data, out, "--keep-empty") == 0
    assert done == ["P0001"]
    assert files(out) == whole


def test_files_beside_the_tiles_stay(data, tmp_path):
    out = tmp_path / "tiles"
    assert run(data, out) == 0
    beside = [out / "train/images/notes.txt", out / "train/images/P0009__1__0___0.npy"]
    for path in beside:
        path.write_text("mine")
    assert run(data, out) == 0
    assert all(path.is_file() for path in beside)


@pytest.mark.parametrize(
    ("names", "tiles"),
    [
        (["P0000__1__0___0", "P0000__0.5__824___1648"], True),
        (["a__b__1.5__0___0"], True),
        (["P0000__1__0___0", "P0001"], False),
        (["P0000__1__0__0"], False),
        (["__1__0___0"], False),
        ([], False),
    ],
)
def test_names_of_tiles(names, tiles):
    assert tiling.are_tiles(iter(names)) is tiles


def test_changed_and_removed_sources_are_done_anew(data, tmp_path):
    out = tmp_path / "tiles"
    assert run(data, out) == 0
    write_labels(data / "train/labelTxt/P0001.txt", objects(rectangle(4, 4, 20, 10)), NAMES)
    (data / "train/images/P0002.png").unlink()
    assert run(data, out) == 0
    assert list(files(out / "train/images")) == ["P0001__1__0___0.png"]
    journal = [json.loads(line) for line in (out / "train" / tiling.JOURNAL).read_text().splitlines()]
    assert sorted(entry["image"] for entry in journal[1:]) == ["P0001", "P0003"]


def test_an_entry_without_its_counts_is_done_anew(data, tmp_path):
    out = tmp_path / "tiles"
    assert run(data, out) == 0
    before, journal = files(out / "train"), out / "train" / tiling.JOURNAL
    head, *entries = journal.read_text().splitlines()
    for key in ("source", "tiles", "objects", "cut_objects"):
        damaged = json.loads(entries[0])
        del damaged[key]
        journal.write_text("\n".join([head, json.dumps(damaged), *entries[1:], ""]))
        assert run(data, out) == 0
        assert files(out / "train") == before


def test_links_in_a_tiled_folder_remove_nothing_elsewhere(data, tmp_path, capsys):
    out, mine = tmp_path / "tiles", tmp_path / "mine"
    assert run(data, out) == 0
    (out / "train/images").rename(mine)
    (mine / "a__1__0___0.png").write_bytes(b"mine")
    before = files(mine)
    (out / "train/images").symlink_to(mine)
    assert run(data, out) == 2
    told = f"{out}/train/images: expected a folder in {out}/train, got a link to {mine}; link {out}/train "
    assert told in capsys.readouterr().err
    assert files(mine) == before


def test_one_bad_image_does_not_stop_the_others(data, tmp_path, capsys):
    out = tmp_path / "tiles"
    (data / "train/images/P0001.png").write_bytes(b"")
    (data / "train/labelTxt/P0002.txt").write_text("0 0 1 0 1 x 0 1 ship 0\n")
    assert run(data, out, "--keep-empty", "--classes", "plane,ship") == 2
    errors = capsys.readouterr().err
    assert "P0001.png: the file is empty" in errors
    assert "P0002.txt:1: y3 must be a finite number, got 'x'" in errors
    assert "2 of 3 images failed; repair or replace them and run again" in errors
    assert list(files(out / "train/images")) == ["P0003__1__0___0.png"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--stride", "65"], "--stride: expected 1…64 (--size), got 65"),
        (["--size", "0"], "--size: expected 1…16384 pixels, got 0"),
        (["--size", "-5"], "--size: expected 1…16384 pixels, got -5"),
        (["--size", "1000000"], "--size: expected 1…16384 pixels, got 1000000"),
        (["--scales", "0.01"], "P0001.png: nothing is left of 100 × 50 pixels at scale 0.01"),
        (["--scales", "0"], "--scales: expected positive factors, got [0.0]"),
        (["--scales", "1", "1.0"], "names a scale twice"),
        (["--pad-value", "0", "0", "256"], "--pad-value: expected three grey levels"),
        (["--min-visible", "0"], "--min-visible: expected a share in (0, 1], got 0.0"),
        (["--classes", "ship"], "P0001.txt:1: unknown class 'plane'"),
        (["--data", "nowhere"], "--data: no such folder: nowhere"),
    ],
)
def test_command_line_errors(data, tmp_path, capsys, flags, message):
    assert run(data, tmp_path / "tiles", *flags) == 2
    assert message in capsys.readouterr().err


def test_folders_that_are_not_ours_are_left_alone(data, tmp_path, capsys):
    assert run(data, data) == 2
    assert "--out: must not be the folder of --data" in capsys.readouterr().err
    assert run(data / "train", data / "train") == 2
    out = tmp_path / "tiles"
    (out / "train/images").mkdir(parents=True)
    (out / "train/images/mine.png").write_bytes(b"")
    assert run(data, out) == 2
    assert "holds images or labels that were not tiled here" in capsys.readouterr().err
    assert (out / "train/images/mine.png").exists()
    assert run(tmp_path / "tiles/train/images", out) == 2
    assert "train/images, val/images …, found neither" in capsys.readouterr().err


def test_the_stride_follows_the_size_unless_given(data, tmp_path, capsys):
    flags = ["--data", str(data), "--out", str(tmp_path / "tiles"), "--size", "64", "--workers", "1"]
    assert tiling.main(flags) == 0
    head = json.loads((tmp_path / "tiles/train" / tiling.JOURNAL).read_text().splitlines()[0])
    assert head["stride"] == 52
    assert tiling.default_stride(1024) == 824


def test_messages_name_the_folder_that_is_wrong(data, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(data, tmp_path / "file") == 2
    assert capsys.readouterr().err.startswith(f"tiling: error: {tmp_path / 'file'}")
    shutil.rmtree(data / "train/labelTxt")
    assert run(data, tmp_path / "unlabelled") == 2
    assert f"{data / 'train/labelTxt'}: no such folder, so the tiles would have no labels" in (
        capsys.readouterr().err
    )
    assert run(data, tmp_path / "unlabelled", "--no-labels") == 0
    assert f"{data / 'train'} has no labelTxt/" in capsys.readouterr().err
    for path in (data / "train/images").iterdir():
        path.unlink()
    assert run(data, tmp_path / "tiles") == 2
    assert f"{data / 'train/images'}: no image in this folder" in capsys.readouterr().err


def test_the_class_list_goes_along(data, tmp_path, capsys):
    assert run(data, tmp_path / "without") == 0
    assert not (tmp_path / "without/classes.txt").exists()
    (data / "classes.txt").write_text("# mine\nship\nplane\n")
    assert run(data, tmp_path / "tiles") == 0
    assert (tmp_path / "tiles/classes.txt").read_text() == "ship\nplane\n"
    assert run(data, tmp_path / "named", "--classes", "plane,ship") == 0
    assert (tmp_path / "named/classes.txt").read_text() == "plane\nship\n"
    (data / "classes.txt").write_text("ship\n")
    assert run(data, tmp_path / "fewer") == 2
    assert "P0001.txt:1: unknown class 'plane'" in capsys.readouterr().err


def test_other_settings_need_another_folder(data, tmp_path, capsys):
    out = tmp_path / "tiles"
    assert run(data, out) == 0
    assert run(data, out, "--stride", "32") == 2
    assert "was tiled with other settings (stride 48, now 32)" in capsys.readouterr().err


def test_images_need_label_files(data, tmp_path, capsys):
    (data / "train/labelTxt/P0003.txt").unlink()
    assert run(data, tmp_path / "tiles") == 2
    assert "no label file for 1 of 3 images, the first is P0003.txt" in capsys.readouterr().err
    with pytest.raises(TilingError, match="no images to tile"):
        tiling.split({}, None, tmp_path / "tiles", TileSettings())


def test_tiles_of_another_data_set_are_not_replaced(data, tmp_path, capsys):
    out, other = tmp_path / "tiles", tmp_path / "other"
    assert run(data, out) == 0
    before = files(out)
    shutil.copytree(data, other)
    for kind in ("images", "labelTxt"):
        for path in sorted((other / "train" / kind).iterdir()):
            if path.stem != "P0001":  # a name that both have, of another image
                path.rename(path.with_name(f"other_{path.name}"))
    os.utime(other / "train/images/P0001.png", (1, 1))
    capsys.readouterr()
    assert run(other, out) == 2
    assert "holds the tiles of 2 other images, such as P0002; name another --out" in capsys.readouterr().err
    assert files(out) == before
    (other / "train").rename(other / "val")
    assert run(other, out) == 0  # beside the other split
    assert before.items() <= files(out).items()


def test_min_visible_is_the_callers(data, tmp_path):
    assert run(data, tmp_path / "tiles", "--min-visible", "0.5") == 0
    seen = read_labels(tmp_path / "tiles/train/labelTxt/P0001__1__0___0.txt", NAMES)
    assert seen.quads[1].tolist() == rectangle(58, 4, 64, 14)  # 0.6 of it
    assert seen.difficult.tolist() == [0, 0]


def test_what_lies_beyond_the_image_is_not_seen_in_the_padding(data, tmp_path):
    write_labels(data / "train/labelTxt/P0002.txt", objects(rectangle(4, 20, 10, 60)), NAMES)  # 30 px high
    assert run(data, tmp_path / "tiles", "--keep-empty") == 0
    seen = read_labels(tmp_path / "tiles/train/labelTxt/P0002__1__0___0.txt", NAMES)
    assert seen.quads.tolist() == [rectangle(4, 20, 10, 30)]
    assert seen.difficult.tolist() == [2]


def test_val_needs_labels_as_train_does(data, tmp_path, capsys):
    shutil.copytree(data / "train/images", data / "val/images")
    assert run(data, tmp_path / "tiles") == 2
    assert f"{data / 'val/labelTxt'}: no such folder" in capsys.readouterr().err


def test_scaled_tiles_show_the_averaged_image(data, tmp_path):
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, ::4] = 200
    tiling._write_png(data / "train/images/P0003.png", image)
    assert run(data, tmp_path / "tiles", "--keep-empty", "--scales", "0.25", "2") == 0
    tile = read_image(tmp_path / "tiles/train/images/P0003__0.25__0___0.png")
    assert (tile[:16, :16] == 50).all()
    assert not tile[16:].any()


def test_settings_may_reach_their_bounds():
    TileSettings(size=64, stride=64, min_visible=1, pad_value=(0, 255, 0))
