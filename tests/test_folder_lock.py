"""Two processes do not write into one folder; what a dead one held is free."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from rgfl import atomic
from rgfl.dota import convert, tiling
from rgfl.folder_lock import LOCK, FolderInUse, lock_folder

pytest.importorskip("fcntl", reason="this system has no POSIX locks")

HOLD = """
import sys, pathlib
from rgfl.folder_lock import lock_folder
lock = lock_folder(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen]:
    """Another process has the folder until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_the_folder_is_free_when_its_process_is_dead(tmp_path: Path) -> None:
    with held(tmp_path) as process, pytest.raises(FolderInUse, match=rf"process {process.pid} on .* writes"):
        lock_folder(tmp_path)
    lock_folder(tmp_path).close()


def test_links_lead_to_no_file_elsewhere(tmp_path: Path) -> None:
    """Such as a folder that was downloaded may have them."""
    (mine := tmp_path / "mine").write_text("mine")
    (folder := tmp_path / "folder").mkdir()
    (folder / LOCK).symlink_to(mine)
    with pytest.raises(OSError, match=r"symbolic links: .*\.lock"):
        lock_folder(folder)
    (folder / f".a.{os.getpid()}{atomic.TEMPORARY_SUFFIX}").symlink_to(mine)
    atomic.write_text(folder / "a", "new")
    assert (mine.read_text(), (folder / "a").read_text()) == ("mine", "new")


def test_the_longest_name_that_a_file_can_have_is_written(tmp_path: Path) -> None:
    atomic.write_text(tmp_path / ("é" * 127), "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["new"]


def test_an_error_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()  # which no file can take the place of
    with pytest.raises(OSError, match="/a'") as caught:
        atomic.write_text(tmp_path / "a", "new")
    assert caught.value.filename == str(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="other"), atomic.whole(tmp_path / "new" / "b"):
        (tmp_path / "other").read_text()
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize("command", ["tiling", "convert"])
def test_commands_wait_for_no_one_and_touch_nothing(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    for kind in ("images", "labelTxt"):
        (data / "train" / kind).mkdir(parents=True)
    for name in ("a", "b"):
        cv2.imwrite(str(data / f"train/images/{name}.png"), np.zeros((40, 40, 3), np.uint8))
        (data / f"train/labelTxt/{name}.txt").write_text("1 1 9 1 9 9 1 9 plane 0\n")
    flags = ["--data", str(data), "--out", str(out), "--workers", "1"]
    if command == "tiling":
        run, place = lambda: tiling.main([*flags, "--size", "64", "--stride", "48"]), out / "train"
    else:
        run, place = lambda: convert.main([*flags, "--from", "dota", "--val-share", "0.5"]), out
    with held(place):
        assert run() == 2
        assert f"error: --out {place}: process " in (said := capsys.readouterr().err)
        assert "writes into it; wait for its end, or give another --out" in said
        assert [path.name for path in place.iterdir()] == [".lock"]
    assert run() == 0
