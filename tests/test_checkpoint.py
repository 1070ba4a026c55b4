"""Checkpoints come back as they were written, and what is no checkpoint is named in one line."""

import argparse
import dataclasses
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import timm
import torch

from rgfl import checkpoint, checkpoint_commands, foreign
from rgfl.checkpoint import CheckpointError, load_detector, save
from rgfl.nn.config import ModelConfig
from rgfl.nn.detector import build_detector
from rgfl.nn.neck import FeaturePyramid
from rgfl.nn.parts import PARTS
from rgfl.spec import DetectorSpec

CONFIG = ModelConfig(
    backbone="test_efficientnet", pretrained=False, neck_channels=16, head_channels=16, head_convs=1,
    head_norm="batch", norm_eval=False,
)  # fmt: skip
SPEC = DetectorSpec(classes=("plane", "ship"), image_size=(128, 128), angle_bins=CONFIG.angle_bins)


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return build_detector(CONFIG, SPEC)


@pytest.fixture
def path(tmp_path, detector):
    save(tmp_path / "run/best.pt", SPEC, CONFIG, detector.state_dict(), result={"map": 0.5})
    return tmp_path / "run/best.pt"


def test_a_detector_comes_back(path, detector):
    loaded = load_detector(path)
    assert not loaded.training
    assert (loaded.spec, loaded.config) == (SPEC, CONFIG)
    images = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        expected = detector.eval().decode(detector(images))
        for ours, theirs in zip(loaded.decode(loaded(images)), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert checkpoint.load(path)["result"] == {"map": 0.5}


def test_loading_needs_neither_the_hub_nor_the_backbone_s_weights(tmp_path, detector):
    from dataclasses import replace

    config = replace(CONFIG, pretrained=True, weights="/no/such/file.pth")
    save(tmp_path / "c.pt", SPEC, config, detector.state_dict())
    assert load_detector(tmp_path / "c.pt").config == CONFIG


@pytest.mark.parametrize(
    "claims", [{"pretrained": True}, {"weights": "/no/such/file.pth"}, {"weights": "antigravity"}]
)
def test_what_the_file_names_is_neither_fetched_nor_opened(path, detector, claims, monkeypatch):
    record = checkpoint.load(path)
    torch.save(record | {"model": record["model"] | claims}, path)
    made = []
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: made.append(k) or create(*a, **k))
    assert load_detector(path).config == CONFIG
    assert not any(options.get("pretrained") for options in made)
    assert checkpoint.start_from(detector, path) == ([], SPEC)


@pytest.mark.parametrize("name", ["hf-hub:who/what", "hf_hub:who/what", "local-dir:/etc", "who/what", 1])
def test_a_backbone_elsewhere_is_refused(path, detector, name):
    record = checkpoint.load(path)
    torch.save(record | {"model": record["model"] | {"backbone": name}}, path)
    for use in (load_detector, lambda file: checkpoint.start_from(detector, file)):
        with pytest.raises(CheckpointError, match=rf"damaged or foreign: .* as backbone, got '?{name}"):
            use(path)


def test_the_same_weights_with_other_settings(path, tmp_path, detector, capsys):
    """Their advice was to train or export with others, and no flag did."""
    record = checkpoint.load(path)
    torch.save(record | {"training": {"step": 3}, "parts": {"neck": "a.B"}}, path)
    out = tmp_path / "other.pt"
    flags = [
        "--score-threshold",
        "0.01",
        "--nms-iou",
        "0.3",
        "--max-detections",
        "5000",
        "--test-size",
        "256",
    ]
    assert checkpoint_commands.main(["spec", str(path), *flags, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "iou_threshold: 0.1 before, 0.3 now\n" in shown
    assert "warning: trained on tiles of 128 px; BatchNorm's" in shown
    changed = checkpoint.load(out)
    assert DetectorSpec.from_json(changed["spec"]) == dataclasses.replace(
        SPEC, score_threshold=0.01, iou_threshold=0.3, max_detections=5000, image_size=(256, 256)
    )
    assert (changed["result"], changed["parts"], "training" in changed) == ({}, {"neck": "a.B"}, False)
    assert {name: changed["weights"][name].tolist() for name in changed["weights"]} == {
        name: value.tolist() for name, value in detector.state_dict().items()
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "is like this already; change something by --score-threshold, --nms-iou"),
        (["--max-detections", "2000"], "is like this already"),
        (["--test-size", "200"], "expected positive multiples of the coarsest stride 128"),
        (["--max-detections", "0"], "max_detections: expected a whole number above 0, got 0"),
        (["--nms-iou", "1.5"], "iou_threshold: expected a number from 0 to 1, got 1.5"),
    ],
)
def test_settings_that_cannot_be(path, tmp_path, flags, message, capsys):
    assert checkpoint_commands.main(["spec", str(path), *flags, "--out", str(tmp_path / "o.pt")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o.pt").exists()


def test_one_line_that_says_what_came(path, tmp_path):
    def refused(file):
        with pytest.raises(CheckpointError) as error:
            load_detector(file)
        message = str(error.value)
        assert message.startswith(f"{file}: ")
        assert "\n" not in message
        return message

    data = path.read_bytes()
    file = tmp_path / "x.pt"
    assert "cannot be read: No such file" in refused(tmp_path / "missing.pt")
    assert "is a folder; expected a checkpoint such as" in refused(path.parent)
    file.write_bytes(b"")
    assert "the file is empty" in refused(file)
    file.write_bytes(data[: len(data) // 2])
    assert f"cut off after {len(data) // 2:,} bytes" in refused(file)
    file.write_bytes(b"\x89PNG and so on")
    assert "not a checkpoint (it begins with b'\\x89PNG" in refused(file)
    middle = len(data) // 2  # among the weights
    file.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    assert "damaged: not the bytes that were written; copy or train it again" in refused(file)
    torch.save({"a": torch.zeros(1)}, file)
    assert "no spec in it (keys a, …)" in refused(file)
    torch.save(torch.zeros(3), file)
    assert "no spec in it" in refused(file)
    torch.save({**checkpoint.load(path), "format": "rgfl-checkpoint 9"}, file)
    assert "format 'rgfl-checkpoint 9', this version reads" in refused(file)
    torch.save({**checkpoint.load(path), "model": None}, file)
    assert "as backbone, got None" in refused(file)
    broken = checkpoint.load(path)
    broken["weights"].pop("head.cls.weight")
    torch.save(broken, file)
    assert "head.cls.weight" in refused(file)


def test_compressed_entries_are_refused_before_they_are_unpacked(path, tmp_path, monkeypatch):
    """3 MB became 3 GB. zipfile reads no entry here, nor does torch."""
    file = tmp_path / "x.pt"
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(file, "w") as packed:
        for entry in stored.infolist():
            kind = zipfile.ZIP_DEFLATED if "/data/" in entry.filename else zipfile.ZIP_STORED
            packed.writestr(entry.filename, stored.read(entry), kind)
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda _: pytest.fail("unpacked"))
    for read in (checkpoint.load, foreign.read_tensors):
        with pytest.raises(CheckpointError, match=r"x\.pt: compressed, so a few megabytes may become many"):
            read(file)


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        (lambda one: [one], "list"),
        (lambda one: one, "Tensor"),
        (lambda one: {"a": one, "b": 5}, "b"),
        (lambda one: {5: one}, "5"),
        (lambda one: {"a": one.to_sparse()}, "a"),
        (lambda one: {"a": torch.quantize_per_tensor(one, 0.1, 0, torch.qint8)}, "a"),
        (lambda one: {"a": one.to("meta")}, "a"),
        (lambda one: {"a": one.to(torch.complex64)}, "a"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*quantize")
def test_weights_of_another_kind_are_refused(path, detector, weights, told):
    torch.save({**checkpoint.load(path), "weights": weights(torch.ones(3))}, path)
    for use in (load_detector, lambda file: checkpoint.start_from(detector, file)):
        with pytest.raises(CheckpointError, match=rf"expected weights that are dense .* things: {told}$"):
            use(path)


class Neck(FeaturePyramid):
    """Of the same weights, so that either loads into the other."""


def test_a_detector_with_a_part_of_one_s_own_comes_back_with_that_alone(path, detector, monkeypatch):
    own = path.with_name("own.pt")
    monkeypatch.setattr(PARTS, "neck", Neck)
    monkeypatch.setattr(PARTS, "losses", lambda: {})  # which no detection needs
    save(own, SPEC, CONFIG, detector.state_dict())
    assert type(load_detector(own).neck) is Neck
    name = f"{__name__}.Neck"
    with pytest.raises(CheckpointError, match=rf"trained with neck of rgfl, and here it is {name}; set"):
        load_detector(path)
    monkeypatch.undo()
    assert type(load_detector(path).neck) is FeaturePyramid
    with pytest.raises(
        CheckpointError,
        match=rf"own.pt: trained with neck {name}, and here it is that of rgfl; set rgfl.nn.parts.PARTS.neck",
    ):
        load_detector(own)
    for parts in (None, []):  # before there were any, and foreign
        torch.save(checkpoint.load(path) | {"parts": parts}, path)
        assert load_detector(path)


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/rgfl-was-here",)


@pytest.mark.parametrize("zipped", [True, False])
def test_files_with_objects_are_refused_and_run_nothing(tmp_path, zipped):
    file, trace = tmp_path / "x.pt", "/tmp/rgfl-was-here"
    torch.save({"model": Evil()}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"refused: it holds Python objects.*runs code"):
        load_detector(file)
    assert not os.path.exists(trace)
    torch.save({"args": argparse.Namespace(lr=1)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"refused: it holds Python objects \(argparse.Namespace\)"):
        load_detector(file)
    file.write_bytes(pickle.dumps({"a": np.float64(1)}))
    with pytest.raises(CheckpointError):
        load_detector(file)


def test_a_save_that_fails_leaves_the_old_file(path, detector):
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        save(path, SPEC, CONFIG, detector.state_dict(), result={"function": lambda: 0})
    assert path.read_bytes() == before
    assert load_detector(path)
    assert list(path.parent.iterdir()) == [path]  # no half of a new one


def test_a_link_leads_to_no_file_elsewhere(path, detector, tmp_path):
    (mine := tmp_path / "mine").write_text("mine")
    path.with_name(f".{path.name}.{os.getpid()}.partial").symlink_to(mine)
    save(path, SPEC, CONFIG, detector.state_dict())
    assert mine.read_text() == "mine"
    assert not path.is_symlink()


def test_a_kill_while_saving_leaves_a_whole_file(path):
    code = (
        "import sys, torch\nfrom pathlib import Path\nfrom rgfl import checkpoint\n"
        "path = Path(sys.argv[1]); record = checkpoint.load(path)\n"
        "from rgfl.spec import DetectorSpec\nfrom rgfl.nn.config import ModelConfig\n"
        "spec, model = DetectorSpec.from_json(record['spec']), ModelConfig(**record['model'])\n"
        "print('ready', flush=True)\n"
        "while True: checkpoint.save(path, spec, model, record['weights'])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.kill()
    process.wait()
    assert load_detector(path)
    assert len(list(path.parent.iterdir())) <= 2  # one hidden leftover at most
