"""What befalls a run from outside: output that breaks, files that are damaged, gone or of another version."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_training import PATIENCE, TINY, curve, make_data, records, run

from rgfl import checkpoint, loop, page
from rgfl.errors import TrainingError
from rgfl.run_folder import RunFolder, of_this_version
from rgfl.stop import Stop

SHORT = ["--epochs", "1", "--eval-every", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    assert run(data, out, *SHORT) == 0
    return out


@pytest.fixture
def out(finished, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(finished, tmp_path / "out")


def error_of(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1].removeprefix("error: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk is Linux's /dev/full here")
def test_without_a_screen_it_is_the_same_run(data, finished, tmp_path):
    command = [sys.executable, "-m", "rgfl.train", *TINY, *SHORT, "--data", str(data), "--out", str(tmp_path)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=full, timeout=PATIENCE)
    assert done.returncode == 0
    assert curve(tmp_path) == curve(finished)


def test_a_damaged_log_is_resumed(data, out):
    before = curve(out)
    with open(out / "log.jsonl", "ab") as file:
        file.write(b'12\n\xff\n{"kind": "x"}\n{"kind": "run", "root": "\xc3\n{"kind": "eval"}\n')
    assert run(data, out, *SHORT) == 0
    assert curve(out) == before
    assert [record["step"] for record in records(out, "run")] == [0, 4]


def test_the_log_is_ascii(data, tmp_path):
    named = shutil.copytree(data, tmp_path / "データ")
    assert run(named, tmp_path / "out", *SHORT) == 0
    assert (tmp_path / "out" / "log.jsonl").read_bytes().isascii()
    assert records(tmp_path / "out", "run")[0]["root"] == str(named)


def test_a_best_without_a_last_is_not_overwritten(data, out, capsys):
    (out / "last.pt").unlink()
    log = (out / "log.jsonl").read_bytes()
    assert run(data, out, *SHORT) == 2
    told = f"{out / 'best.pt'} is there, but no last.pt to continue from: start a new run from its weights"
    assert error_of(capsys).startswith(told)
    assert (out / "log.jsonl").read_bytes() == log
    assert run(data, out, *SHORT, "--no-resume") == 0


def test_there_is_a_last_before_there_is_a_best(data, tmp_path, monkeypatch):
    """Else a kill between the two would leave a best.pt alone, from which the same command does not go on."""
    honest, saved = RunFolder.save, []

    def save(self, name, *others, **more):
        saved.append(name)
        honest(self, name, *others, **more)

    monkeypatch.setattr(RunFolder, "save", save)
    assert run(data, tmp_path, "--epochs", "1", "--eval-every", "0.5") == 0
    assert saved[:2] == ["last.pt", "best.pt"]


def changed(record, what):
    training = record["training"]
    if what == "field":
        record["model"]["a_field_to_come"] = 1
    elif what == "weight":
        training["model"]["neck.renamed"] = training["model"].pop(next(iter(training["model"])))
    elif what == "groups":
        training["optimizer"]["param_groups"].pop()
    else:
        del training[what]
    return record


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("field", "a_field_to_come"),
        ("recipe", "KeyError: 'recipe'"),
        ("data", "KeyError: 'data'"),
        ("sums", "KeyError: 'sums'"),
        ("weight", "neck.renamed"),
        ("groups", "parameter group"),
    ],
)
def test_the_last_of_another_version_is_told_in_one_line(data, out, capsys, what, named):
    torch.save(changed(checkpoint.load(out / "last.pt"), what), out / "last.pt")
    assert run(data, out, *SHORT) == 2
    error = error_of(capsys)
    assert error.startswith(f"{out / 'last.pt'}: of another version of rgfl (")
    assert named in error
    assert error.endswith(f"); give another --out, where --start {out / 'best.pt'} begins with its weights")


def test_what_is_not_there_is_not_advised(tmp_path):
    told = pytest.raises(TrainingError, match=r"\(KeyError: 'sums'\); give another --out$")
    with told, of_this_version(tmp_path / "last.pt"):
        raise KeyError("sums")


def test_an_error_of_the_device_is_not_told_of_the_file(tmp_path):
    told = pytest.raises(RuntimeError, match=r"^CUDA error: an illegal memory access")
    with told, of_this_version(tmp_path / "last.pt"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_a_damaged_last_is_not_trained_on(data, out, capsys):
    content = bytearray((out / "last.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (out / "last.pt").write_bytes(content)
    assert run(data, out, *SHORT) == 2
    assert error_of(capsys).startswith(f"{out / 'last.pt'}: damaged: ")


@pytest.mark.parametrize("left", ["none", "old", "new"])
def test_killed_before_its_last_page_it_draws_that_when_resumed(data, out, capsys, left):
    file = out / page.PAGE
    if left == "none":
        file.unlink()
    else:
        evaluated = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
        assert evaluated["kind"] == "eval"
        drawn = evaluated["time"] + (1 if left == "new" else -1)
        os.utime(file, (drawn, drawn))
    assert run(data, out, *SHORT) == 0
    assert ("page: " in capsys.readouterr().out) == (left != "new")
    assert file.is_file()


def test_nohup_is_heeded():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = Stop(0, time.monotonic())
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.now() == 0
        stop.restore()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_no_room_for_the_queues_of_the_loader_is_not_told_of_the_folder(data, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(loop, "Loader", full)
    assert run(data, tmp_path, *SHORT) == 2
    assert error_of(capsys).startswith(
        "shared memory (/dev/shm): No space left on device; use fewer --workers"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk is Linux's /dev/full here")
def test_no_room_for_the_first_checkpoint_is_not_told_as_if_there_were_one(
    data, tmp_path, capsys, monkeypatch
):
    with open("/dev/full", "wb") as full:
        monkeypatch.setattr(checkpoint, "open", lambda *_: full, raising=False)
        assert run(data, tmp_path, *SHORT) == 2
    told = "cannot be written: No space left on device; with room made, the same command begins anew"
    assert error_of(capsys) == f"{tmp_path / 'last.pt'}: {told}"
