"""The evaluation command: equal AP from every backend, its files, and its one-line errors."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rgfl.detections import Detections
from rgfl.dota import labels
from rgfl.trt_runtime import eval_dota, streaming
from rgfl.trt_runtime.runners import Runner
from rgfl.trt_runtime.streaming import Scene

ROOT = Path(__file__).parents[2]
CLASSES = ["plane", "ship", "harbor"]


@pytest.fixture(scope="module")
def evaluated(
    tiny_checkpoint: Path,
    tiny_onnx: Path,
    tiny_scenes: SimpleNamespace,
    tmp_path_factory: pytest.TempPathFactory,
) -> SimpleNamespace:
    """The command run on the checkpoint and on the ONNX file, with everything that it can write."""
    out = tmp_path_factory.mktemp("eval")
    records = {}
    for model, batch in ((tiny_checkpoint, 1), (tiny_onnx, 3)):
        kind = model.suffix[1:]
        command = ["--model", model, "--images", tiny_scenes.images, "--labels", tiny_scenes.labels]
        command += ["--json", out / f"{kind}.json", "--submission", out / f"{kind}.zip", "--batch", batch]
        command += ["--draw", out / kind, "--draw-limit", 2, "--device", "cpu"]
        assert eval_dota.main(list(map(str, command))) == 0
        records[kind] = json.loads((out / f"{kind}.json").read_text())
    return SimpleNamespace(out=out, **records)


def test_pytorch_and_onnx_score_alike(evaluated: SimpleNamespace) -> None:
    for key in ("ap50", "ap75", "map"):
        assert abs(evaluated.pt[key] - evaluated.onnx[key]) <= 2e-3  # a rank or two, by rounding
    assert 0.05 < evaluated.pt["map"] < 0.95  # or the test would prove nothing


def test_json_holds_the_contract(evaluated: SimpleNamespace) -> None:
    record = evaluated.onnx
    assert list(record["classes"]) == CLASSES
    assert list(record["classes"]["plane"]) == [f"{t / 100:.2f}" for t in range(50, 100, 5)]
    means = [record["classes"][name]["0.50"] for name in CLASSES]
    assert record["ap50"] == pytest.approx(np.mean(means))
    assert record["images"] == 4
    assert record["spec_digest"] == record["model"]["spec_digest"] == evaluated.pt["spec_digest"]
    assert record["precision"] == "fp32"
    assert record["model"]["file"] == "tiny.onnx"
    assert len(record["model"]["sha256"]) == 64
    assert record["settings"]["stride"] == 128 - 25
    assert record["settings"]["scales"] == [1.0]
    assert record["timing"]["tiles"] == 1 + 1 + 3 * 2 + 2
    assert {"python", "rgfl", "numpy", "onnxruntime"} <= set(record["versions"])
    assert {"cpu", "cores"} <= set(record["hardware"])


def test_submission_is_a_flat_zip_that_scores_the_same(
    evaluated: SimpleNamespace, tiny_scenes: SimpleNamespace, tmp_path: Path
) -> None:
    with zipfile.ZipFile(evaluated.out / "pt.zip") as archive:
        assert sorted(archive.namelist()) == sorted(f"Task1_{name}.txt" for name in labels.CLASSES["1.0"])
        archive.extractall(tmp_path / "task1")
    fields = (tmp_path / "task1" / "Task1_plane.txt").read_text().splitlines()[0].split()
    assert fields[0] in tiny_scenes.names
    assert len(fields) == 10
    for task1 in (tmp_path / "task1", evaluated.out / "pt.zip"):
        command = ["--task1", task1, "--labels", tiny_scenes.labels]
        command += ["--classes", ",".join(CLASSES), "--json", tmp_path / "scored.json"]
        assert eval_dota.main(list(map(str, command))) == 0
        scored = json.loads((tmp_path / "scored.json").read_text())
        assert scored["classes"] == evaluated.pt["classes"]
    assert eval_dota.main([*map(str, command), "--voc", "2012"]) == 0
    area = json.loads((tmp_path / "scored.json").read_text())
    assert area["counts"] == scored["counts"]
    assert area["rule"].startswith("VOC 2012")
    assert area["map"] != scored["map"]


def test_pictures_are_drawn_up_to_the_limit(evaluated: SimpleNamespace) -> None:
    import cv2

    pictures = sorted((evaluated.out / "onnx").iterdir())
    assert [path.name for path in pictures] == ["P0001.jpg", "P0002.jpg"]
    assert cv2.imread(str(pictures[1])).shape == (100, 90, 3)


def test_mistakes_are_listed(
    tiny_onnx: Path, tiny_scenes: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "new" / "mistakes.csv"
    command = ["--model", tiny_onnx, "--images", tiny_scenes.images, "--mistakes", out]
    assert eval_dota.main(list(map(str, command))) == 2
    assert "--mistakes needs --labels DIR" in capsys.readouterr().err
    command += ["--labels", tiny_scenes.labels, "--json", tmp_path / "all.json"]
    label = next(tiny_scenes.labels.glob("*.txt"))
    before = label.read_bytes()
    assert eval_dota.main([*map(str, command), "--mistakes", str(label)]) == 2
    assert "which this command reads" in capsys.readouterr().err
    assert label.read_bytes() == before
    assert eval_dota.main(list(map(str, command))) == 0
    rows = list(csv.DictReader(out.open()))
    scores = [float(row["score"]) for row in rows if row["mistake"] != "missed"]
    assert scores
    assert scores == sorted(scores, reverse=True)
    assert {row["image"] for row in rows} <= set(tiny_scenes.names)
    assert {row["detected"] for row in rows if row["score"]} <= set(CLASSES)


def test_without_labels_there_is_only_a_submission(
    tiny_onnx: Path, tiny_scenes: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["--model", tiny_onnx, "--images", tiny_scenes.images, "--submission", tmp_path / "s.zip"]
    command += ["--limit", 2, "--json", tmp_path / "s.json"]
    assert eval_dota.main(list(map(str, command))) == 0
    said = capsys.readouterr().out
    assert "nothing to score\n* tiles at stride 103, scales 1\n" in said
    assert "note: not what the server scores: --limit 2 leaves images out\n" in said
    assert zipfile.is_zipfile(tmp_path / "s.zip")
    record = json.loads((tmp_path / "s.json").read_text())
    assert record["images"] == 2
    assert "map" not in record


@pytest.mark.parametrize(
    ("names", "classes", "notes"),
    [
        (["P0001__1__0___0", "P0001__1__824___0"], ["plane"], "the images are tiles, by their names\n"),
        (["P0001"], labels.CLASSES["1.5"], "DOTA-v1.5's test set has 937 images\n"),
        (["P0001"], labels.CLASSES["2.0"], "DOTA-v2.0's test set has 2792 or 6053 images\n"),
        ([f"P{number}" for number in range(937)], labels.CLASSES["1.0"], ""),
        (["a"], ["plane", "boat"], ""),
    ],
)
def test_what_the_server_does_not_take_is_told(names, classes, notes, tmp_path: Path) -> None:
    nothing = Detections(np.zeros((0, 5)), np.zeros(0), np.zeros(0, int))
    arguments = SimpleNamespace(submission=tmp_path / "s.zip", version=None, limit=0)
    said = eval_dota._write_submission(dict.fromkeys(names, nothing), tuple(classes), arguments)
    assert (f"{said}\n".partition("note: not what the server scores: ")[2]) == notes


def test_files_of_a_later_version_are_not_passed_over(case: Case, capsys: pytest.CaptureFixture) -> None:
    """v1.5's files were scored by the rule of v1.0 for difficult objects."""
    nothing = {"P0001": Detections(np.zeros((0, 5)), np.zeros(0), np.zeros(0, int))}
    labels.write_task1(case.root / "t", nothing, labels.CLASSES["1.5"])
    labels.write_submission(case.root / "t.zip", nothing, labels.CLASSES["2.0"])
    with (case.labels / "P0003.txt").open("a") as file:
        file.write("1 1 9 1 9 9 1 9 container-crane 0\n")
    for name, file, version in (("t", "container-crane", "1.5"), ("t.zip", "airport", "2.0")):
        command = ["--task1", case.root / name, "--labels", case.labels, "--ignore-unknown"]
        assert eval_dota.main(list(map(str, command))) == 2
        assert f"Task1_{file}.txt is there: --version {version}? " in capsys.readouterr().err
        assert eval_dota.main(list(map(str, [*command, "--version", "1.0"]))) == 0


def test_scoring_files_needs_no_torch(tiny_scenes: SimpleNamespace, tmp_path: Path) -> None:
    for name in CLASSES:
        (tmp_path / f"Task1_{name}.txt").write_text("P0001 0.9 10 10 40 10 40 30 10 30\n")
    code = (
        "import sys\n"
        "from rgfl.trt_runtime import eval_dota\n"
        f"assert eval_dota.main(['--task1', {str(tmp_path)!r}, '--labels', {str(tiny_scenes.labels)!r}, "
        f"'--classes', '{','.join(CLASSES)}']) == 0\n"
        "assert not {'torch', 'onnxruntime', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "all classes" in done.stdout


@pytest.mark.parametrize("script", ["eval_dota", "bench", "pipeline", "report"])
def test_help_is_quick_and_has_examples(script: str) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'trt_runtime')!r}); sys.argv = ['x', '--help']\n"
        f"from rgfl.trt_runtime import {script}\n"
        f"try: {script}.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'onnxruntime', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"python trt_runtime/{script}.py" in done.stdout


# --- what a user may get wrong -----------------------------------------------------------------------------


class Case(SimpleNamespace):
    """Good arguments in a copy that a test may spoil."""

    def fails(self, capsys: pytest.CaptureFixture, **changes: object) -> str:
        flags = {"model": self.model, "images": self.images, "labels": self.labels, **changes}
        command = []
        for name, value in flags.items():
            if value is not None:
                command += [f"--{name}", str(value)]
        assert eval_dota.main(command) == 2
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if line.startswith("eval_dota: error: ")]
        assert len(lines) == 1
        assert "Traceback" not in captured.err
        return lines[0]


@pytest.fixture
def case(tiny_onnx: Path, tiny_scenes: SimpleNamespace, tmp_path: Path) -> Case:
    shutil.copytree(tiny_scenes.images, tmp_path / "images")
    shutil.copytree(tiny_scenes.labels, tmp_path / "labels")
    return Case(model=tiny_onnx, images=tmp_path / "images", labels=tmp_path / "labels", root=tmp_path)


def test_a_file_that_is_no_model(case: Case, capsys: pytest.CaptureFixture) -> None:
    for name in ("noise.onnx", "noise.pt", "noise.txt"):
        (case.root / name).write_bytes(b"this is not a model")
        assert name in case.fails(capsys, model=case.root / name)
    assert "no such file" in case.fails(capsys, model=case.root / "none.onnx")
    assert "directory" in case.fails(capsys, model=case.root)
    (case.root / "x.engine").write_bytes(b"ftrt....")
    assert "TensorRT" in case.fails(capsys, model=case.root / "x.engine")


def test_a_model_without_a_spec(case: Case, capsys: pytest.CaptureFixture) -> None:
    from rgfl.export import onnx_file

    model = onnx_file.load(case.model)
    del model.metadata_props[:]
    onnx_file.save(model, case.root / "foreign.onnx")
    message = case.fails(capsys, model=case.root / "foreign.onnx")
    assert "no rgfl spec" in message
    assert "export/to_onnx.py" in message


def test_classes_that_are_not_the_models(case: Case, capsys: pytest.CaptureFixture) -> None:
    with (case.labels / "P0003.txt").open("a") as file:
        file.write("1 1 9 1 9 9 1 9 bicycle 0\n")
    message = case.fails(capsys)
    assert "P0003.txt:" in message
    assert "'bicycle'" in message
    assert "plane, ship, harbor" in message
    assert "--ignore-unknown" in message
    command = ["--model", case.model, "--images", case.images, "--labels", case.labels, "--ignore-unknown"]
    assert eval_dota.main(list(map(str, command))) == 0
    shown = capsys.readouterr()
    assert "note: left out, as their classes are not evaluated: 1 bicycle\n" in shown.err
    assert "DOTA-v1.0" in shown.out
    labels = case.labels / "P0003.txt"
    text = labels.read_text()
    labels.write_text(
        text.replace("bicycle", "container-crane")
    )  # labels of 1.5 have its rule, as in training
    assert eval_dota.main(list(map(str, command))) == 0
    assert "DOTA-v1.5" in capsys.readouterr().out
    labels.write_text(text)
    message = case.fails(capsys, model=None, images=None, task1=case.root, version="1.0")
    assert "--classes" in message
    assert "bicycle" in message


def test_an_unreadable_image(case: Case, capsys: pytest.CaptureFixture) -> None:
    whole = (case.images / "P0002.png").read_bytes()
    (case.images / "P0002.png").write_bytes(whole[: len(whole) // 2])
    assert "P0002.png" in case.fails(capsys)


def test_an_error_on_the_way_ends_every_thread(
    case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    held: list[Any] = []

    def full(entries: Iterator[Any], *_: object, **__: object) -> None:
        held.extend([entries, next(entries)])
        raise OSError(errno.ENOSPC, "No space left on device", ".F.json.journal")

    monkeypatch.setattr(eval_dota, "follow", full)
    assert "No space left on device" in case.fails(capsys)
    assert not any(thread.name.startswith("rgfl-") for thread in threading.enumerate())


def test_all_unreadable_images_are_named_and_the_rest_is_kept(
    case: Case, evaluated: SimpleNamespace, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, journal = case.root / "F.json", case.root / ".F.json.journal"
    looked_at: list[str] = []

    def stream(runner: Runner, images: dict[str, Path], **settings: object) -> Iterator[Scene]:
        looked_at.extend(images)
        return streaming.stream(runner, images, **settings)

    monkeypatch.setattr(eval_dota, "stream", stream)
    whole = {name: (case.images / f"{name}.png").read_bytes() for name in ("P0001", "P0003")}
    for name, content in whole.items():
        (case.images / f"{name}.png").write_bytes(content[: len(content) // 2])
    command = list(map(str, ["--model", case.model, "--images", case.images, "--labels", case.labels]))
    assert eval_dota.main([*command, "--json", str(out)]) == 2
    told = capsys.readouterr().err
    for name in whole:
        assert f"eval_dota: cannot be read: {case.images / name}.png: " in told
    assert f"eval_dota: error: 2 of 4 images cannot be read (first: {case.images / 'P0001.png'}: " in told
    assert not out.exists()

    for name, content in whole.items():
        (case.images / f"{name}.png").write_bytes(content)
    with journal.open("a") as file:
        file.write('{"image": "P0001", "sta')  # a kill may cut a line
    looked_at.clear()
    assert eval_dota.main([*command, "--json", str(out)]) == 0
    assert looked_at == list(whole)
    assert json.loads(out.read_text())["classes"] == evaluated.onnx["classes"]
    assert not journal.exists()


def test_a_submission_that_cannot_be_written_takes_nothing_with_it(
    case: Case, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    out, zipped = case.root / "F.json", case.root / "s.zip"
    command = ["--model", case.model, "--images", case.images, "--labels", case.labels, "--json", out]
    command = list(map(str, [*command, "--submission", zipped]))
    with monkeypatch.context() as patch:
        patch.setattr(eval_dota, "write_submission", full)
        assert eval_dota.main(command) == 2
    captured = capsys.readouterr()
    assert f"eval_dota: error: {zipped}: No space left on device\n" in captured.err
    assert "all classes" in captured.out
    assert json.loads(out.read_text())["images"] == 4
    # What was found is still there, but for an image that was replaced.
    (case.images / "P0002.png").touch()
    capsys.readouterr()
    assert eval_dota.main(command) == 0
    assert f"eval_dota: 3 of 4 images are done, by {case.root / '.F.json.journal'}" in capsys.readouterr().err
    assert zipfile.is_zipfile(zipped)


def test_other_flags_do_not_take_what_is_kept(case: Case, capsys: pytest.CaptureFixture) -> None:
    image = case.images / "P0004.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:-30])
    case.fails(capsys, json=case.root / "F.json")
    image.write_bytes(whole)
    command = ["--model", case.model, "--images", case.images, "--labels", case.labels, "--stride", 100]
    assert eval_dota.main(list(map(str, [*command, "--json", case.root / "F.json"]))) == 0
    assert "images are done" not in capsys.readouterr().err


def test_an_image_is_as_old_as_before_it_was_read(
    case: Case, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is replaced while the network looks at it is looked at again."""

    def stream(*arguments: Any, **settings: Any) -> Iterator[Scene]:
        for scene in streaming.stream(*arguments, **settings):
            os.utime(case.images / f"{scene.name}.png", (1, 1))
            yield scene

    whole = (case.images / "P0004.png").read_bytes()
    (case.images / "P0004.png").write_bytes(whole[:-30])
    with monkeypatch.context() as patch:
        patch.setattr(eval_dota, "stream", stream)
        case.fails(capsys, json=case.root / "F.json")
    (case.images / "P0004.png").write_bytes(whole)
    command = ["--model", case.model, "--images", case.images, "--labels", case.labels]
    assert eval_dota.main(list(map(str, [*command, "--json", case.root / "F.json"]))) == 0
    assert "images are done" not in capsys.readouterr().err


def test_pictures_that_are_missing_or_of_other_labels_are_drawn(
    case: Case, capsys: pytest.CaptureFixture
) -> None:
    drawn, label = case.root / "drawn", case.labels / "P0001.txt"
    (case.images / "P0004.png").write_bytes((case.images / "P0004.png").read_bytes()[:-30])

    def again() -> str:
        flags = {"model": case.model, "images": case.images, "labels": case.labels, "draw": drawn}
        flags |= {"json": case.root / "F.json", "draw-limit": 2}
        assert (
            eval_dota.main([word for name, value in flags.items() for word in (f"--{name}", str(value))]) == 2
        )
        return capsys.readouterr().err

    assert "images are done" not in again()
    assert "3 of 4 images are done" in again()
    (drawn / "P0002.jpg").unlink()
    assert "2 of 4 images are done" in again()
    assert (drawn / "P0002.jpg").is_file()
    label.write_text(label.read_text() + "1 1 9 1 9 9 1 9 ship 0\n")
    assert "images are done" not in again()


@pytest.mark.parametrize("flag", ["json", "mistakes"])
def test_two_with_one_result_file_are_kept_apart(
    flag: str, case: Case, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("fcntl", reason="this system has no POSIX locks")
    out, lock = case.root / "F", case.root / ".F.lock"
    hold = (
        "import pathlib, sys; from rgfl.folder_lock import lock_file\n"
        "lock = lock_file(pathlib.Path(sys.argv[1]), None, '')\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        error = case.fails(capsys, **{flag: out})
        other.kill()
    assert error.startswith(f"eval_dota: error: --{flag} {out}: process {other.pid} on ")
    assert error.endswith(f" writes into it; wait for its end, or give another --{flag}")
    assert not (case.root / ".F.journal").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk is Linux's /dev/full here")
def test_standard_output_that_breaks_is_named_with_what_is_written(
    case: Case, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in CLASSES:
        (case.root / f"Task1_{name}.txt").write_text("P0001 0.9 10 10 40 10 40 30 10 30\n")
    for command in (
        {"model": None, "images": None, "task1": case.root, "classes": ",".join(CLASSES)},
        {"submission": case.root / "s.zip"},
    ):
        out = case.root / "F.json"
        with open("/dev/full", "w") as full, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", full)
            error = case.fails(capsys, json=out, **command)
        written = ", ".join(map(str, [out, *([command["submission"]] if "submission" in command else [])]))
        assert error == (f"eval_dota: error: standard output: No space left on device (written: {written})")
        assert json.loads(out.read_text())["images"] == 4
        out.unlink()


def test_empty_and_missing_folders(case: Case, capsys: pytest.CaptureFixture) -> None:
    empty = case.root / "empty"
    empty.mkdir()
    assert "no image in this folder" in case.fails(capsys, images=empty)
    assert "no .txt file" in case.fails(capsys, labels=empty)
    assert "no such" in case.fails(capsys, images=case.root / "none")
    assert "no such" in case.fails(capsys, labels=case.root / "none")
    assert "Task1_" in case.fails(capsys, model=None, images=None, task1=empty, classes="plane,ship,harbor")


def test_images_and_labels_that_do_not_match(case: Case, capsys: pytest.CaptureFixture) -> None:
    (case.images / "P0001.png").unlink()
    message = case.fails(capsys)
    assert "no image for 1 of 4 label files (first: P0001.txt)" in message
    (case.labels / "P0001.txt").unlink()
    (case.labels / "P0002.txt").unlink()
    command = ["--model", case.model, "--images", case.images, "--labels", case.labels]
    assert eval_dota.main(list(map(str, command))) == 0
    assert "1 images without a label file are left out (first: P0002)" in capsys.readouterr().err
    for path in case.labels.iterdir():
        path.rename(path.with_name(f"Q{path.name}"))
    assert "no label file belongs to an image" in case.fails(capsys)


def test_where_to_write_is_asked_before_the_work(case: Case, capsys: pytest.CaptureFixture) -> None:
    (case.root / "file").touch()
    assert "expected a file, this is a directory" in case.fails(capsys, json=case.root)
    assert "expected a file, this is a directory" in case.fails(capsys, submission=case.root)
    assert "is a file, expected a directory" in case.fails(capsys, json=case.root / "file" / "F.json")
    assert "is a file, expected a directory" in case.fails(capsys, draw=case.root / "file")
    task1 = {"model": None, "images": None, "task1": case.root}
    assert f"--json {case.root}: expected a file" in case.fails(capsys, json=case.root, **task1)


def test_results_do_not_take_the_place_of_what_is_read(case: Case, capsys: pytest.CaptureFixture) -> None:
    """Pictures are called after images, and replaced them where these were JPEG."""
    model = shutil.copy(case.model, case.root / "model.onnx")
    assert "the same file as" in case.fails(capsys, model=model, json=model)
    both = case.root / "both.zip"
    assert "the same file as" in case.fails(capsys, json=both, submission=both)
    assert "--draw" in (message := case.fails(capsys, draw=case.images))
    assert "the images lie there" in message
    assert {path.suffix for path in case.images.iterdir()} == {".png"}


def test_an_image_name_of_two_words(
    case: Case, evaluated: SimpleNamespace, capsys: pytest.CaptureFixture
) -> None:
    """Only a submission cannot hold it."""
    (case.images / "P0001.png").rename(case.images / "P 1.png")
    (case.labels / "P0001.txt").rename(case.labels / "P 1.txt")
    message = case.fails(capsys, submission=case.root / "s.zip")
    assert "P 1.png: white space in an image's name, which --submission cannot hold; rename it" in message
    assert message == case.fails(capsys, labels=None, submission=case.root / "s.zip")
    outputs = {"json": case.root / "F.json", "mistakes": case.root / "F.csv", "draw": case.root / "drawn"}
    flags = {"model": case.model, "images": case.images, "labels": case.labels, **outputs}
    assert eval_dota.main([word for name, value in flags.items() for word in (f"--{name}", str(value))]) == 0
    assert json.loads(outputs["json"].read_text())["classes"] == evaluated.onnx["classes"]
    assert "P 1" in {row["image"] for row in csv.DictReader(outputs["mistakes"].open())}
    assert (outputs["draw"] / "P 1.jpg").is_file()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"stride": 500}, "--stride 500"),
        ({"scales": 0}, "--scales 0: expected factors from 0.05 to 20"),
        ({"scales": "nan"}, "--scales nan"),
        ({"batch": 0}, "--batch 0"),
        ({"limit": -1}, "--limit -1"),
        ({"draw-limit": -1}, "--draw-limit -1"),
        ({"submission": "x.tar"}, "ends in .zip"),
        ({"labels": None}, "nothing to do"),
        ({"images": None}, "--images"),
        ({"classes": "plane"}, "--classes goes with --task1"),
        ({"model": None, "task1": "."}, "--images goes with --model"),
        ({"model": None, "images": None, "task1": ".", "scales": 2}, "--scales goes with --model"),
        ({"model": None, "images": None, "task1": ".", "classes": "none.txt"}, "--classes"),
        ({"model": None, "images": None, "labels": None, "task1": "."}, "--task1 needs --labels"),
    ],
)
def test_flags_that_do_not_fit(flags: dict, expected: str, case: Case, capsys: pytest.CaptureFixture) -> None:
    assert expected in case.fails(capsys, **flags)
