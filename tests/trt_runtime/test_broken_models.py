"""Files that are no models, through every command that runs one: one line, status 2, nothing written.
And models that find nothing, which are no error."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stand_ins import write_engine

from rgfl.export import graph, onnx_file, verify
from rgfl.trt_runtime import bench, eval_dota, pipeline

ROOT = Path(__file__).parents[2]


def foreign_onnx(path: Path) -> Path:
    """A graph of somebody else."""
    import onnx
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in ("x", "y")]
    made = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "other", ends[:1], ends[1:])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def broken_files(folder: Path, model: Path, checkpoint: Path) -> dict[Path, str]:
    """Each file, and what its error must say."""
    onnx, torch = model.read_bytes(), checkpoint.read_bytes()
    contents: dict[str, tuple[bytes | None, str]] = {
        "empty.onnx": (b"", "the file is empty; was its export interrupted?"),
        "half.onnx": (onnx[: len(onnx) // 2], "ONNX Runtime cannot load it"),
        "noise.onnx": (b"\x00\x01noise" * 100, "ONNX Runtime cannot load it"),
        "zip.onnx": (torch, "the suffix says onnx, the content torch; rename the file"),
        "half.pt": (torch[: len(torch) // 2], ""),
        "text.pt": (b"not a checkpoint\n" * 10, ""),
        "onnx.pt": (onnx, ""),
        "empty.engine": (b"", "the file is empty"),
        "onnx.engine": (onnx, "no TensorRT engine; build one with: python export/to_trt.py"),
        "short.engine": (b"ftrt\x00\x00", "no TensorRT engine; build one with: python export/to_trt.py"),
        "none.engine": (None, "no such file"),
        "notes.txt": (b"notes", "no model; expected one of .pt"),
    }
    for name, (data, _) in contents.items():
        if data is not None:
            (folder / name).write_bytes(data)
    found = {folder / name: reason for name, (_, reason) in contents.items()}
    found[foreign_onnx(folder / "foreign.onnx")] = "no rgfl spec in its metadata"
    nms = graph.add_nms(onnx_file.load(model))
    onnx_file.save(nms, folder / "nms.onnx")
    found[folder / "nms.onnx"] = "ONNX Runtime cannot load it"
    (folder / "folder.onnx").mkdir()
    found[folder / "folder.onnx"] = "a directory, expected a model file (.pt, .onnx or .engine)"
    return found


def commands(model: Path, scenes: SimpleNamespace, out: Path, good: Path) -> dict[str, tuple[Any, list[Any]]]:
    """Every command that runs `model`, writing to `out`."""
    return {
        "eval_dota": (
            eval_dota.main,
            [
                *("--model", model, "--images", scenes.images, "--labels", scenes.labels),
                *("--json", out / "e.json", "--submission", out / "s.zip", "--draw", out / "pictures"),
            ],
        ),
        "pipeline": (pipeline.main, ["--model", model, "--images", scenes.images, "--out", out / "found"]),
        "bench": (
            bench.main,
            [
                "--model",
                model,
                "--repeat",
                1,
                "--warmup",
                0,
                "--json",
                out / "b.json",
                "--markdown",
                out / "b.md",
            ],
        ),
        "verify": (verify.main, [model, "--reference", good, "--detections"]),
        "verify the reference": (verify.main, [good, "--reference", model]),
    }


def assert_one_line(
    command: str, main: Any, arguments: list[Any], expected: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(list(map(str, arguments))) == 2, command
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if ": error: " in line]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    assert lines[0].startswith(f"{command.split()[0]}: error: ")
    assert expected in lines[0], lines[0]


def test_no_command_takes_a_broken_file(
    tiny_onnx: Path,
    tiny_checkpoint: Path,
    tiny_scenes: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    models, out = tmp_path / "models", tmp_path / "out"
    models.mkdir()
    out.mkdir()
    broken = broken_files(models, tiny_onnx, tiny_checkpoint)
    before = {path: path.stat().st_mtime_ns for path in models.iterdir()}
    for path, reason in broken.items():
        for command, (main, arguments) in commands(path, tiny_scenes, out, tiny_onnx).items():
            assert_one_line(command, main, arguments, reason, capsys)
            assert list(out.iterdir()) == [], (command, path)
    assert {path: path.stat().st_mtime_ns for path in models.iterdir()} == before


def test_no_command_takes_a_broken_engine(
    machine: Callable[..., Any],
    tiny_onnx: Path,
    tiny_scenes: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    """With a GPU and TensorRT, which stand-ins are: damaged, of another version, of somebody else."""
    used = machine()
    models, out = tmp_path / "models", tmp_path / "out"
    models.mkdir()
    out.mkdir()
    whole = write_engine(models / "whole.engine", tiny_onnx).read_bytes()
    for name, data in (("half", whole[: len(whole) // 2]), ("last", whole[:-1])):
        (models / f"{name}.engine").write_bytes(data)
    write_engine(models / "old.engine", tiny_onnx, version=(10, 9, 0, 34))
    write_engine(models / "other.engine", tiny_onnx, name="Unnamed Network 0")
    reasons = {
        "half": "cannot make the engine from its file",
        "last": "cannot make the engine from its file",
        "old": "built with TensorRT 10.9.0.34",
        "other": "no rgfl spec in the engine's name",
    }
    for name, reason in reasons.items():
        path = models / f"{name}.engine"
        for command, (main, arguments) in commands(path, tiny_scenes, out, tiny_onnx).items():
            assert_one_line(command, main, arguments, reason, capsys)
            assert list(out.iterdir()) == [], (command, path)
    assert used.cuda.live == {}
    # Points before NMS do not leave this engine, and the command says what does.
    arguments = [models / "whole.engine", "--reference", tiny_onnx]
    assert_one_line(
        "verify", verify.main, arguments, "so only detections can be compared: --detections", capsys
    )
    assert used.cuda.live == {}


def test_without_a_gpu_an_engine_is_refused(
    tiny_onnx: Path, tiny_scenes: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from rgfl.trt_runtime.machine import find_gpu

    if find_gpu() is not None:
        pytest.skip("there is a GPU")
    out = tmp_path / "out"
    out.mkdir()
    path = write_engine(tmp_path / "m.engine", tiny_onnx)
    for command, (main, arguments) in commands(path, tiny_scenes, out, tiny_onnx).items():
        assert_one_line(command, main, arguments, "needs an NVIDIA GPU", capsys)
    assert list(out.iterdir()) == []


def test_the_files_of_an_engine_are_those_of_the_onnx_file(
    machine: Callable[..., Any], tiny_onnx: Path, tiny_scenes: SimpleNamespace, tmp_path: Path
) -> None:
    """The whole of eval_dota.py and pipeline.py on an engine."""
    machine("random")
    engine = write_engine(tmp_path / "m.engine", tiny_onnx)
    for name, model in (("engine", engine), ("onnx", tiny_onnx)):
        for command in ("eval_dota", "pipeline"):
            main, arguments = commands(model, tiny_scenes, tmp_path / name, tiny_onnx)[command]
            assert main([*map(str, arguments), "--batch", "1", "--threads", "1"]) == 0
    found = [json.loads((tmp_path / name / "e.json").read_text()) for name in ("engine", "onnx")]
    assert found[0]["map"] == found[1]["map"] > 0
    assert found[0]["classes"] == found[1]["classes"]
    assert found[0]["model"]["backend"] == "TensorRT"
    for part in (tmp_path / "onnx" / "found").glob("Task1_*.txt"):
        assert part.read_bytes() == (tmp_path / "engine" / "found" / part.name).read_bytes()


@pytest.mark.parametrize("kind", ["onnx", "engine"])
def test_a_model_that_finds_nothing_is_no_error(
    kind: str, machine: Callable[..., Any], tiny_onnx: Path, tiny_scenes: SimpleNamespace, tmp_path: Path
) -> None:
    machine()
    model = onnx_file.load(tiny_onnx)
    for entry in model.metadata_props:
        entry.value = entry.value.replace('"score_threshold":0.3', '"score_threshold":1.0')
    blind = tmp_path / "blind.onnx"
    onnx_file.save(model, blind)
    path = write_engine(tmp_path / "blind.engine", blind) if kind == "engine" else blind
    out = tmp_path / "out"
    for command, (main, arguments) in commands(path, tiny_scenes, out, blind).items():
        # verify has compared nothing, which must not pass; its points before NMS are there all the same.
        expected = (
            2 if command == "verify" else 2 if (command, kind) == ("verify the reference", "engine") else 0
        )
        assert main(list(map(str, arguments))) == expected, command
    record = json.loads((out / "e.json").read_text())
    assert (record["ap50"], record["map"]) == (0, 0)
    with zipfile.ZipFile(out / "s.zip") as submission:
        assert all(submission.read(name) == b"" for name in submission.namelist())
    detections = json.loads((out / "found" / "detections.json").read_text())
    assert detections["detections"] == {name: {} for name in tiny_scenes.names}
    assert json.loads((out / "b.json").read_text())["results"][0]["detections_per_tile"] == 0


def test_an_empty_folder_of_images_is_told_before_the_model_is_loaded(
    tiny_onnx: Path, tiny_scenes: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    scenes = SimpleNamespace(images=empty, labels=tiny_scenes.labels)
    missing = tmp_path / "none.onnx"
    for command in ("eval_dota", "pipeline"):
        main, arguments = commands(missing, scenes, tmp_path / "out", tiny_onnx)[command]
        assert_one_line(command, main, arguments, "no image in this folder", capsys)
    arguments = ["--model", tiny_onnx, "--images", empty, "--json", tmp_path / "out" / "b.json"]
    assert_one_line("bench", bench.main, arguments, "no image in this folder", capsys)
    arguments = [tiny_onnx, "--reference", tiny_onnx, "--images", empty]
    assert_one_line("verify", verify.main, arguments, "no image in this folder", capsys)
    assert not (tmp_path / "out").exists()
