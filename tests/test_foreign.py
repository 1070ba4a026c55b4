"""Files of the original repository become checkpoints, number by number, and nothing in them runs."""

import dataclasses
import functools
import os
import pickle
import re
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch

from rgfl import checkpoint, checkpoint_commands, foreign
from rgfl.checkpoint import CheckpointError
from rgfl.dota.labels import CLASSES
from rgfl.nn.detector import build_detector
from rgfl.recipes import RECIPES


def theirs(key):
    """Their name of one of our keys, written down from their modules' attributes."""
    if key.startswith("backbone.net."):
        return "backbone." + key.removeprefix("backbone.net.")
    if match := re.fullmatch(r"neck\.laterals\.(\d)\.(\w+)", key):
        return f"neck.lateral_convs.{match[1]}.conv.{match[2]}"
    if match := re.fullmatch(r"neck\.(outputs|extras)\.(\d)\.(\w+)", key):
        level = int(match[2]) + (3 if match[1] == "extras" else 0)
        return f"neck.fpn_convs.{level}.conv.{match[3]}"
    if match := re.fullmatch(r"head\.(cls|reg)_tower\.convs\.(\d)\.weight", key):
        return f"bbox_head.{match[1]}_convs.{match[2]}.conv.weight"
    if match := re.fullmatch(r"head\.(cls|reg)_tower\.norms\.(\d)\.0\.(\w+)", key):
        return f"bbox_head.{match[1]}_convs.{match[2]}.gn.{match[3]}"
    match = re.fullmatch(r"head\.(cls|reg)\.(\w+)", key)
    return f"bbox_head.gfl_{match[1]}.{match[2]}"


def their_state(detector):
    named = OrderedDict((theirs(key), value) for key, value in detector.state_dict().items())
    named["bbox_head.integral.project"] = torch.linspace(-2, 2, 9)
    named["bbox_head.integral_angle.project"] = torch.linspace(-5, 2, 9)
    return named


def build(recipe):
    torch.manual_seed(0)
    model = dataclasses.replace(recipe.model, pretrained=False)
    built = build_detector(model, recipe.spec(CLASSES["1.0"])).eval()
    torch.nn.init.normal_(built.head.reg.weight, std=0.1)  # so that the boxes are not all alike
    return built


@pytest.fixture
def small(monkeypatch):
    """The published network with everything narrow, in its recipe's place: a second instead of ten."""
    recipe = RECIPES["rgfl_r50_dota_1x"]().replace(backbone="test_resnet", neck_channels=32, head_channels=64)
    monkeypatch.setitem(RECIPES, "rgfl_r50_dota_1x", lambda: recipe)
    return recipe


@pytest.fixture
def detector(small):
    return build(small)


@pytest.fixture
def state(detector):
    return their_state(detector)


def write(path, state, meta=None, **options):
    meta = {"epoch": 12, "CLASSES": CLASSES["1.0"]} if meta is None else meta
    torch.save({"meta": meta, "state_dict": state, "optimizer": {}}, path, **options)
    return path


def assert_same_outputs(first, second):
    images = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for ours, expected in zip(first.decode(first(images)), second.decode(second(images)), strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_outputs_of_the_published_network_are_equal_through_the_command(tmp_path, capsys):
    detector = build(RECIPES["rgfl_r50_dota_1x"]())
    extra = {
        **their_state(detector),
        "backbone.fc.weight": torch.zeros(1000, 2048),
        "bbox_head.other": torch.zeros(1),
    }
    file = write(tmp_path / "epoch_12.pth", {f"module.{key}": value for key, value in extra.items()})
    assert checkpoint_commands.main(["import", str(file), "--out", str(tmp_path / "best.pt")]) == 0
    shown = capsys.readouterr().out
    assert "2 keys without a place here: backbone.fc.weight, bbox_head.other\n" in shown
    loaded = checkpoint.load_detector(tmp_path / "best.pt")
    assert loaded.spec == detector.spec
    assert loaded.config == detector.config
    assert_same_outputs(loaded, detector)


def test_projection_and_channels_are_theirs(detector, state, tmp_path):
    """Their decoding of a point, in NumPy from their description, against ours on the imported network."""
    loaded = foreign.import_detector(write(tmp_path / "a.pth", state)).detector
    logits = np.random.default_rng(0).normal(0, 2, 45)

    def integral(row, project):
        weights = np.exp(logits.reshape(5, 9)[row])
        return (weights * project).sum() / weights.sum()

    dx, dy, dw, dh = (integral(row, np.linspace(-2, 2, 9)) for row in range(4))
    turn = integral(4, np.linspace(-5, 2, 9)) * np.pi
    expected = [
        64 + dx * 32, 72 + dy * 32, 32 * np.exp(dw), 32 * np.exp(dh), (turn + np.pi / 4) % np.pi - np.pi / 4,
    ]  # fmt: skip
    point, stride = torch.tensor([64.0, 72.0]), torch.tensor([8.0])
    ours = loaded.decoder.box(torch.from_numpy(logits).float(), point, stride)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=2e-5, atol=1e-5)


class Evil:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("core", ["core", "_core"])  # of NumPy 1 and 2
def test_numbers_of_numpy_in_the_meta_are_read(detector, state, tmp_path, zipped, core):
    meta = {
        "CLASSES": [name.replace("-", " ") for name in CLASSES["1.0"]],
        "loss": np.float64(0.5),
        "seed": np.int64(3),
        "best_score": {"mAP": np.float32(0.7)},
    }
    file = write(tmp_path / "a.pth", state, meta, _use_new_zipfile_serialization=zipped)
    module = b"numpy._core.multiarray" if np.__version__ >= "2" else b"numpy.core.multiarray"
    assert module in file.read_bytes()
    if not zipped:  # a zip has a checksum
        file.write_bytes(file.read_bytes().replace(module, f"numpy.{core}.multiarray".encode()))
    assert checkpoint_commands.main(["import", str(file), "--out", str(tmp_path / "best.pt")]) == 0
    assert_same_outputs(checkpoint.load_detector(tmp_path / "best.pt"), detector)


class Forged:
    """A number of NumPy's whose bytes NumPy takes for the address of an object."""

    def __reduce__(self):
        return np.float64(0).__reduce__()[0], (np.dtype([("a", "O")]), b"ABCDEFGH")


def test_numbers_of_numpy_are_not_built(state, tmp_path):
    """NumPy followed the address, and the process ended."""
    file = write(tmp_path / "a.pth", state, {"loss": Forged()})
    assert isinstance(foreign.read_tensors(file)["meta"]["loss"], foreign._PassedOver)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_hostile_files_end_in_one_line_and_run_nothing(state, tmp_path, capsys):
    trace = tmp_path / "ran"
    torch.save({"state_dict": Evil(trace)}, tmp_path / "a.pth")
    torch.save(Evil(trace), tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "c.pth").write_bytes(pickle.dumps(Evil(trace)))
    (tmp_path / "d.pth").write_bytes(pickle.dumps({"state_dict": {"a": getattr}}))
    (tmp_path / "e.pth").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "f.pth").write_bytes(b"")
    write(tmp_path / "h.pth", state, {"evil": Evil(trace)})
    for name in "abcdefgh":
        assert (
            checkpoint_commands.main(
                ["import", str(tmp_path / f"{name}.pth"), "--out", str(tmp_path / "o.pt")]
            )
            == 2
        )
        shown = capsys.readouterr().err
        assert shown.startswith(f"import: error: {tmp_path / name}.pth: ")
        assert shown.count("\n") == 1
    assert f"holds {os.system.__module__}.system, which is no tensor" in shown
    assert not trace.exists()
    assert not (tmp_path / "o.pt").exists()


def test_names_in_a_file_give_a_terminal_no_orders(state, tmp_path, capsys):
    file = write(tmp_path / "a.pth", {**state, "\x1b]52;c;aGk=\x07extra": torch.zeros(1)})
    assert checkpoint_commands.main(["import", str(file), "--out", str(tmp_path / "o.pt")]) == 0
    assert r"1 keys without a place here: \x1b]52;c;aGk=\x07extra" in capsys.readouterr().out


def test_what_does_not_match_is_listed(state, tmp_path):
    def refused(changed, meta=None, **options):
        with pytest.raises(CheckpointError) as error:
            foreign.import_detector(write(tmp_path / "x.pth", changed, meta), **options)
        return str(error.value)

    changed = dict(state)
    wide = state["neck.lateral_convs.0.conv.weight"].shape[1]
    changed["neck.lateral_convs.0.conv.weight"] = torch.zeros(32, 9, 1, 1)
    del changed["bbox_head.cls_convs.3.gn.bias"]
    message = refused(changed)
    assert "1 missing: head.cls_tower.norms.3.0.bias" in message
    assert f"neck.laterals.0.weight (32, 9, 1, 1) instead of (32, {wide}, 1, 1)" in message
    assert "no bbox_head.gfl_cls in it (backbone.conv1.weight" in refused(
        {"backbone.conv1.weight": torch.zeros(1)}
    )
    assert "no tensors in it" in refused({})
    other = {**state, "bbox_head.integral_angle.project": torch.linspace(-2, 2, 9)}
    assert "is -2 to 2 in 9 bins, ours -5 to 2 in 9" in refused(other)
    assert "15 classes, but --classes names 2: a, b" in refused(state, classes=["a", "b"])
    assert "15 classes, but its meta names 1: ship" in refused(state, {"CLASSES": ["ship"]})
    assert "without names" in refused({**state, "bbox_head.gfl_cls.bias": torch.zeros(3)}, {})


@pytest.mark.parametrize(
    ("shape", "message"), [((5,), "reg_max: expected 1 or more"), ((), "expected one axis")]
)
def test_a_head_of_an_impossible_shape_is_one_line(shape, message, state, tmp_path, capsys):
    odd = {key: value for key, value in state.items() if "integral" not in key}
    path = write(tmp_path / "odd.pth", {**odd, "bbox_head.gfl_reg.bias": torch.zeros(shape)})
    assert checkpoint_commands.main(["import", str(path), "--out", str(tmp_path / "out.pt")]) == 2
    assert f"{path}: " in (told := capsys.readouterr().err)
    assert message in told


def test_a_sparse_tensor_is_no_weight(state, tmp_path):
    sparse = torch.linspace(-2, 2, 9).to_sparse()
    imported = foreign.import_detector(
        write(tmp_path / "x.pth", {**state, "bbox_head.integral.project": sparse})
    )
    assert imported.unused == []


def test_classes_are_dota_s_where_the_file_is_silent(state, tmp_path):
    imported = foreign.import_detector(write(tmp_path / "x.pth", state, {}))
    assert imported.detector.spec.classes == CLASSES["1.0"]
    assert imported.unused == []


def test_what_keeps_a_checkpoint_from_being_written_is_one_line(detector, tmp_path, capsys):
    file = write(tmp_path / "a.pth", their_state(detector))
    (tmp_path / "folder.pt").mkdir()
    before = sorted(tmp_path.iterdir())
    for source, out, message in (
        (file, tmp_path / "folder.pt", "expected a file, this is a directory"),
        (tmp_path / "none.pth", tmp_path / "folder.pt" / "o.pt", "none.pth: cannot be read"),
        (file, file / "o.pt", str(file)),
    ):
        assert checkpoint_commands.main(["import", str(source), "--out", str(out)]) == 2
        shown = capsys.readouterr().err
        assert message in shown
        assert shown.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_ctrl_c_is_one_line(tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(foreign, "import_detector", interrupted)
    assert checkpoint_commands.main(["import", "a.pth", "--out", str(tmp_path / "o.pt")]) == 130
    assert capsys.readouterr().err == "\nimport: interrupted; nothing was written\n"


def test_help_needs_no_torch():
    """It took seconds, and without torch it was a traceback."""
    code = (
        "import runpy, sys\n"
        "sys.modules['torch'] = None\n"
        "sys.argv = ['rgfl.checkpoint', 'import', {}]\n"
        "runpy.run_module('rgfl.checkpoint', run_name='__main__')\n"
    )
    run = functools.partial(subprocess.run, capture_output=True, text=True, check=False)
    done = run([sys.executable, "-c", code.format("'--help'")])
    assert done.returncode == 0, done.stderr
    assert "best.pt" in done.stdout
    done = run([sys.executable, "-c", code.format("'a.pth', '--out', 'o.pt'")])
    assert done.returncode == 2
    assert done.stderr == "import: error: torch is not installed: pip install 'rgfl[train]'\n"
