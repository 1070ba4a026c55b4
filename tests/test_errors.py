"""What every command refuses in the same words: files that would take each other's place, missing extras."""

from __future__ import annotations

import argparse
import os
import signal
import warnings
from pathlib import Path

import pytest

from rgfl import checks, errors
from rgfl.errors import InputError
from rgfl.trt_runtime.scenes import find_scenes


def test_an_output_is_none_of_the_files_that_are_read(tmp_path: Path) -> None:
    model, folder = tmp_path / "m.onnx", tmp_path / "folder"
    model.write_bytes(b"weights")
    folder.mkdir()
    (tmp_path / "link.onnx").symlink_to(model)
    (tmp_path / "way").symlink_to(folder)
    os.link(model, tmp_path / "twin.onnx")
    same = ("m.onnx", "folder/../m.onnx", "link.onnx", "twin.onnx")
    for name in same:
        for check in (checks.new_file, checks.cache_file):
            with pytest.raises(InputError, match=r"--out .*: the same file as .*m\.onnx, which this command"):
                check(tmp_path / name, "--out", [model])
    # Two outputs, neither of which is there yet.
    with pytest.raises(InputError, match="the same file as"):
        checks.new_file(tmp_path / "way" / "a.json", "--json", [model, folder / "a.json"])
    for name in ("other.onnx", "folder/m.onnx"):
        assert checks.new_file(tmp_path / name, "--out", [model]) == tmp_path / name


def test_pictures_do_not_go_where_the_images_are(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "P1.jpg").touch()
    read = {"P1": images / "P1.jpg"}
    with pytest.raises(InputError, match=r"--draw .*: the images lie there"):
        checks.picture_directory(tmp_path / "images" / ".", "--draw", read)
    assert checks.picture_directory(tmp_path / "drawn", "--draw", read) == tmp_path / "drawn"


def test_a_package_of_an_extra_is_named_with_its_extra(capsys: pytest.CaptureFixture) -> None:
    def needs(name: str) -> int:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    assert errors.run("graph", lambda: needs("onnx")) == 2
    assert capsys.readouterr().err == "graph: error: onnx is not installed: pip install 'rgfl[export]'\n"
    assert errors.run("quantize", lambda: needs("onnxruntime")) == 2
    assert capsys.readouterr().err.endswith(" onnxruntime is not installed: pip install 'onnxruntime'\n")
    assert errors.run("graph", lambda: needs("onnx.helpers_of_tomorrow")) == 2
    assert capsys.readouterr().err == (
        "graph: error: onnx is too old, or does not fit what is installed beside it (No module named "
        "'onnx.helpers_of_tomorrow'): pip install -U onnx\n"
    )
    with pytest.raises(ModuleNotFoundError):  # of which nobody can say what to do
        errors.run("graph", lambda: needs("rgfl.grpah"))


def test_sigterm_leaves_no_temporary_file(tmp_path: Path) -> None:
    """A scheduler's SIGTERM left the hidden file of an export that was not done."""
    before = signal.getsignal(signal.SIGTERM)

    def export() -> int:
        partial = tmp_path / "partial"
        partial.touch()
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            partial.unlink()
        return 0

    with pytest.raises(SystemExit) as ended:
        errors.run("export", export)
    assert ended.value.code == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is before


def test_names_give_a_terminal_no_orders(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file's name wrote the clipboard."""
    monkeypatch.setattr(warnings, "formatwarning", None)
    (tmp_path / "a\x1b]52;c;aGk=\x07.gif").touch()
    (tmp_path / "b.png").touch()

    def command() -> int:
        find_scenes(tmp_path)
        raise InputError("b\x1b[2J\rc\td\ne, ü\u200c海")

    assert errors.run("x", command) == 2
    note, *error = capsys.readouterr().err.split("\n")
    assert r"such as a\x1b]52;c;aGk=\x07.gif" in note
    assert error == ["x: error: b\\x1b[2J\\x0dc\td", "e, ü\u200c海", ""]
    assert warnings.formatwarning("\x9b2J", UserWarning, "file", 1) == "x: warning: \\x9b2J\n"


@pytest.mark.parametrize(
    "command", ["rgfl.dota.tiling", "rgfl.dota.merge", "rgfl.dota.convert", "rgfl.checkpoint_commands"]
)
def test_a_bug_shows_its_traceback(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A broadcasting error of NumPy is a ValueError, and was told as if the user could mend it."""
    module = pytest.importorskip(command)
    first = {
        "tiling": "read_classes",
        "merge": "read_task1",
        "convert": "read_names",
        "checkpoint_commands": "foreign.import_detector",
    }

    def broken(*_: object, **__: object) -> None:
        raise ValueError("operands could not be broadcast together")

    monkeypatch.setattr(f"{command}.{first[command.rpartition('.')[2]]}", broken)
    arguments = {
        "rgfl.dota.tiling": ["--data", str(tmp_path), "--classes", "a"],
        "rgfl.dota.merge": ["--task1", str(tmp_path), "--classes", "a"],
        "rgfl.dota.convert": ["--from", "coco", "--data", str(tmp_path), "--classes", "a"],
        "rgfl.checkpoint_commands": ["import", str(tmp_path / "file.pth")],
    }[command]
    with pytest.raises(ValueError, match="broadcast"):
        module.main([*arguments, "--out", str(tmp_path / "out.pt")])


def test_a_percentage_is_no_share(capsys: pytest.CaptureFixture) -> None:
    """--score 30 found nothing, without a word."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--score", type=checks.zero_to_one)
    assert parser.parse_args(["--score", "0.3"]).score == 0.3
    for wrong in ("30", "-1", "nan", "x"):
        with pytest.raises(SystemExit):
            parser.parse_args([f"--score={wrong}"])
        assert f"--score: {wrong}: expected 0 to 1, such as 0.3" in capsys.readouterr().err
