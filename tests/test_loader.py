"""Which tiles make a batch, what it holds, and who makes it."""

import multiprocessing
import pickle
import time
import warnings
from multiprocessing import resource_sharer
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from tiny_dataset import BUSY, PLAIN, SMALL, make_folder, many_pictures, pictures_of, tiles_of
from tiny_training import PATIENCE

from rgfl.dataset import DataError
from rgfl.dota.images import ImageError
from rgfl.loader import Batch, Loader, _Sent, batch_keys, collate, steps_per_epoch
from rgfl.nn.assign import Assigner, Targets
from rgfl.recipes import DataConfig
from rgfl.tiles import Tiles

ASSIGN = Assigner(strides=(8, 16, 32, 64, 128), offset=0.5, anchor_scale=8.0, topk=9)


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path)


def one_each(count, seed):
    """Tiles of so many windows."""
    return Tiles(pictures_of(*[(128, 128)] * count), ("a",), SMALL, PLAIN, seed)


@pytest.fixture
def grouped(monkeypatch):
    """Tiles of 11 windows in groups of some."""
    monkeypatch.setattr("rgfl.tiles.GROUP_PIXELS", 256 * 256)
    return Tiles(pictures_of((256, 256), (256, 256), (128, 128), (128, 256)), ("a",), SMALL, PLAIN, 4)


def test_each_epoch_sees_every_window_once_in_a_new_order():
    keys = list(batch_keys(one_each(10, seed=0), 5, start=0, stop=4))
    for epoch in range(2):
        seen = [key for batch in keys[2 * epoch : 2 * epoch + 2] for key in batch]
        assert sorted(seen) == [(epoch, index) for index in range(10)]
    assert [index for _, index in keys[0]] != [index for _, index in keys[2]]


def test_batches_from_the_middle_are_those_of_the_whole(grouped):
    for tiles in (one_each(11, seed=4), grouped):
        assert len(tiles) == 11
        whole = list(batch_keys(tiles, 3, start=0, stop=20))
        for start in (1, 3, 7, 19):
            there = pickle.loads(pickle.dumps(tiles))
            assert list(batch_keys(there, 3, start=start, stop=20)) == whole[start:]


def test_fewer_windows_than_a_batch_repeat():
    assert steps_per_epoch(3, 8) == 1
    (keys,) = batch_keys(one_each(3, seed=0), 8, start=5, stop=6)
    assert len(keys) == 8
    assert {index % 3 for _, index in keys} == {0, 1, 2}
    assert {epoch for epoch, _ in keys} == {5}
    assert len(set(keys)) == 8  # each a tile of its own


def test_a_window_that_repeats_is_drawn_anew(folder):
    """With fewer windows than --batch, a batch held equal tiles."""
    tiles = tiles_of(folder, augment=BUSY)
    (keys,) = batch_keys(tiles, 2 * len(tiles), start=0, stop=1)
    drawn = [tiles[key] for key in keys]
    for index, (first, again) in enumerate(zip(drawn[: len(tiles)], drawn[len(tiles) :], strict=True)):
        assert keys[index + len(tiles)] == (0, keys[index][1] + len(tiles))
        assert first.name == again.name
        assert (first.image != again.image).any()
        np.testing.assert_array_equal(again.image, tiles[keys[index + len(tiles)]].image)


@pytest.mark.parametrize("count", [11, 3])
def test_ranks_see_together_what_one_sees(count, grouped):
    for tiles in (one_each(count, seed=4), grouped):
        whole = list(batch_keys(tiles, 6, start=2, stop=9))
        shares = [list(batch_keys(tiles, 6, start=2, stop=9, rank=rank, ranks=3)) for rank in range(3)]
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


def test_a_batch_of_tiles_without_objects(folder):
    tiles = tiles_of(folder, DataConfig(tile_size=128, object_probability=0.0))
    empty = [tile for tile in (tiles.tile(e, 0) for e in range(20)) if not len(tile.boxes)]
    assert empty
    targets = collate(empty[:2], ASSIGN).targets
    assert targets.box.shape == (0, 5)
    assert targets.label.dtype == torch.int64
    assert targets.counts == (0, 0)


def test_an_image_that_cannot_be_read_takes_the_place_of_its_batch(folder):
    path = folder / "train/images/tile.png"
    tiles = tiles_of(folder)
    path.write_bytes(path.read_bytes()[:9999])
    error = collate([tiles[0, index] for index in range(len(tiles))], ASSIGN)
    assert isinstance(error, ImageError)
    assert "tile.png: the image is cut off" in str(error)


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
    monkeypatch.setattr("rgfl.loader.get_worker_info", lambda: object())
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
    """Tiles of which the first comes with a warning and the second never."""

    def __init__(self, folder):
        self.folder = folder

    def __len__(self):
        return 2

    def __getitem__(self, key):
        if key[1] == 1:
            (self.folder / "stuck").touch()
            while True:
                time.sleep(3600)
        warnings.warn("dark", stacklevel=1)
        return tiles_of(self.folder)[0, 0]


def test_a_worker_warns_in_a_line_and_where_it_hangs_is_killed_at_the_end(folder, capfd):
    loader = Loader(Stuck(folder), [[(0, 0)], [(0, 1)]], ASSIGN, workers=1)
    try:
        assert isinstance(next(loader), Batch)
        assert "\nwarning: dark\n" in capfd.readouterr().err  # below the bar
        deadline = time.monotonic() + PATIENCE
        while not (folder / "stuck").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        loader.close()
    assert not multiprocessing.active_children()
    loader.close()  # a second time has nothing to do
