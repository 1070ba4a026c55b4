"""A journal is read as far as it is whole, and gives back what was found."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiff_bytes import tiff_bytes

from rgfl.detections import Detections
from rgfl.dota.journal import failure, packed, read_journal, resume, stamp, unpacked

HEAD = {"settings": 1}
FIRST, SECOND = {"image": "a"}, {"image": "b"}


@pytest.mark.parametrize(
    "damage",
    [b"12", b"null", b"[1]", b"\xff", b'{"image": "\xff"}', b'{"image": "b', b"{}", b'{"image": 3}', b""],
)
def test_damage_ends_it(tmp_path: Path, damage: bytes) -> None:
    journal = tmp_path / "journal"
    lines = [json.dumps(entry).encode() for entry in (HEAD, FIRST, SECOND)]
    journal.write_bytes(b"\n".join([*lines, b""]))
    assert read_journal(journal) == [HEAD, FIRST, SECOND]
    journal.write_bytes(b"\n".join([*lines[:2], damage, lines[2], b""]))
    assert read_journal(journal) == [HEAD, FIRST]


def test_a_mosaic_is_another_when_its_scenes_are(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff_bytes(np.zeros((4, 6, 1), np.uint8), 1))
    source = '<SimpleSource><SourceFilename relativeToVRT="1">a.tif</SourceFilename></SimpleSource>'
    mosaic = tmp_path / "mosaic.vrt"
    mosaic.write_text(
        f'<VRTDataset rasterXSize="6" rasterYSize="4"><VRTRasterBand dataType="Byte" band="1">{source}'
        "</VRTRasterBand></VRTDataset>"
    )
    before = stamp(mosaic)
    assert stamp(mosaic) == before
    os.utime(tmp_path / "a.tif", (1, 1))
    assert stamp(mosaic) != before
    mosaic.write_text("nothing that GDAL reads")
    assert len(stamp(mosaic)) == 2


@pytest.mark.parametrize("damage", [{}, {"size": "3"}, {"size": None}])
def test_an_entry_that_lacks_what_it_needs_ends_it(tmp_path: Path, damage: dict[str, Any]) -> None:
    journal = tmp_path / "journal"
    lines = [HEAD, {**FIRST, "size": 3}, {**SECOND, **damage}, {"image": "c", "size": 3}]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_journal(journal, {"size": int}) == lines[:2]


@pytest.mark.parametrize(
    "damage", [{}, {"boxes": 3}, {"boxes": "AAAA"}, {"labels": "é"}, {"scores": "AAAAAA=="}]
)
def test_detections_that_cannot_be_read_are_not_gone_on_with(tmp_path: Path, damage: dict[str, Any]) -> None:
    journal = tmp_path / "journal"
    entry = {"image": "a", "state": 1, **(packed(Detections.empty()) if damage else {}), **damage}
    journal.write_text(f"{json.dumps(HEAD)}\n{json.dumps(entry)}\n")
    assert resume(journal, HEAD, {"a": 1}, lambda name: True) == {}


@pytest.mark.parametrize("damage", [b"12", b"\xff", b""])
def test_without_a_head_there_is_nothing(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "journal").write_bytes(damage + b'\n{"image": "a"}\n')
    assert read_journal(tmp_path / "journal") == []


def test_what_another_run_or_another_file_left_is_not_gone_on_with(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    entries = [{"image": name, "state": [1, 2.5], **packed(Detections.empty())} for name in "abcd"]
    lines = "".join(json.dumps(entry) + "\n" for entry in (HEAD, *entries))
    states = {"a": [1, 2.5], "b": [1, 3], "c": [1, 2.5]}
    for head, kept in ((HEAD, entries[:1]), ({"settings": 2}, [])):
        journal.write_text(lines)
        assert resume(journal, head, states, lambda name: name != "c") == {one["image"]: one for one in kept}
        assert read_journal(journal) == [head, *kept]
    journal.unlink()
    assert resume(journal, HEAD, states, lambda name: True) == {}
    assert read_journal(journal) == [HEAD]


@pytest.mark.parametrize("count", [0, 3])
def test_detections_come_back_bit_by_bit(count: int) -> None:
    values = np.random.default_rng(0).normal(size=(count, 7)).astype(np.float32)
    found = Detections(values[:, :5], values[:, 5], np.arange(count))
    again = unpacked(json.loads(json.dumps(packed(found))))
    for name, expected in vars(found).items():
        np.testing.assert_array_equal(getattr(again, name), expected)


def test_a_full_disk_is_not_the_images_fault() -> None:
    assert (
        failure(["a.png: broken"], 3)
        == "a.png: broken\n1 of 3 images failed; repair or replace them and run again"
    )
    full = f"a.png: {os.strerror(errno.ENOSPC)}"
    assert failure(["b.png: broken", full], 3).endswith("2 of 3 images failed; make room and run again")
