"""A journal is read as far as it is whole."""

import json
from pathlib import Path

import pytest

from rgfl.dota.journal import read_journal

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


@pytest.mark.parametrize("damage", [b"12", b"\xff", b""])
def test_without_a_head_there_is_nothing(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "journal").write_bytes(damage + b'\n{"image": "a"}\n')
    assert read_journal(tmp_path / "journal") == []
