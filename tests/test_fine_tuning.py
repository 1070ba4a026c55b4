"""Training that begins with a checkpoint, and training that rounds as INT8 does."""

import pytest
import torch
from tiny_training import make_data, records, run

from rgfl import checkpoint
from rgfl.nn.config import ModelConfig
from rgfl.nn.detector import build_detector
from rgfl.spec import DetectorSpec


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def first(data, tmp_path_factory):
    """A checkpoint of one epoch."""
    out = tmp_path_factory.mktemp("first")
    assert run(data, out, "--epochs", "1", "--eval-every", "0") == 0
    return out / "best.pt"


def fresh(classes, strides=DetectorSpec.strides, **changes):
    config = {
        "backbone": "test_efficientnet",
        "pretrained": False,
        "frozen_stages": 0,
        "neck_channels": 16,
        "head_channels": 16,
        "head_convs": 1,
        "head_norm": "batch",
        "reg_max": 8,
        "angle_bins": 8,
    }
    spec = DetectorSpec(classes=classes, image_size=(128, 128), strides=strides, reg_max=8, angle_bins=8)
    config["finest_stride"] = strides[0]
    return build_detector(ModelConfig(**{**config, **changes}), spec)


def test_everything_that_fits_is_taken_and_classes_go_by_name(first):
    stored = checkpoint.load(first)["weights"]
    detector = fresh(("harbor", "ship", "plane"))
    before = detector.head.cls.weight.detach().clone()
    assert checkpoint.start_from(detector, first)[0] == ["head.cls.weight", "head.cls.bias"]
    after = detector.head.cls.weight.detach()
    assert torch.equal(after[0], before[0])  # a class that nobody knew
    assert torch.equal(after[1], stored["head.cls.weight"][1])
    assert torch.equal(after[2], stored["head.cls.weight"][0])
    state = detector.state_dict()
    assert all(torch.equal(state[name], stored[name]) for name in state if not name.startswith("head.cls."))
    assert checkpoint.start_from(fresh(("ship", "plane")), first)[0] == []
    anew = checkpoint.start_from(fresh(("plane", "ship"), reg_max=8, head_channels=32), first)[0]
    assert "head.reg.weight" in anew
    assert not any(name.startswith(("backbone.", "neck.")) for name in anew)


@pytest.mark.parametrize("head_norm", ["batch", "group"])
def test_levels_go_by_their_strides(head_norm, tmp_path):
    """By their numbers, each level of a detector with a finer one began with what another had learnt."""
    eights, fours = ((8, 16, 32, 64, 128), (4, 8, 16, 32, 64, 128))
    made = {"head_norm": head_norm, "head_channels": 32}
    for there, here in ((eights, fours), (fours, eights)):
        old, new = (fresh(("plane",), strides, **made) for strides in (there, here))
        for number, parameter in enumerate(old.state_dict().values()):
            parameter.fill_(number)  # no two tensors are alike
        checkpoint.save(tmp_path / "old.pt", old.spec, old.config, old.state_dict())
        anew = checkpoint.start_from(new, tmp_path / "old.pt")[0]
        stored, state, kept = old.state_dict(), new.state_dict(), set()
        shift = len(there) - len(here)
        for name, value in state.items():
            source = name
            if name.startswith(("neck.laterals.", "neck.outputs.")) or (
                head_norm == "batch" and ".norms." in name
            ):
                words = name.split(".")
                words[-2] = str(int(words[-2]) + shift)
                source = ".".join(words)
            if source in stored and stored[source].shape == value.shape:
                assert torch.equal(value, stored[source]), name
                kept.add(name)
        assert sorted(anew) == sorted(set(state) - kept)
        assert "neck.extras.0.weight" in kept
        assert len(kept) > 0.9 * len(state) - 12


def test_another_backbone_is_refused(first):
    detector = fresh(("plane", "ship"), backbone="test_resnet")
    with pytest.raises(
        checkpoint.CheckpointError,
        match=r"of backbone 'test_efficientnet', and this recipe has 'test_resnet'",
    ):
        checkpoint.start_from(detector, first)


def test_fine_tuning_goes_on_from_the_checkpoint(data, first, tmp_path, capsys):
    assert run(data, tmp_path / "run", "--start", str(first), "--lr", "1e-9", "--epochs", "1") == 0
    assert f"starting from {first}" in capsys.readouterr().out
    before, after = (checkpoint.load(path)["weights"] for path in (first, tmp_path / "run/last.pt"))
    for name, value in after.items():
        if value.is_floating_point() and "running" not in name:
            torch.testing.assert_close(value, before[name], atol=1e-5, rtol=1e-4)
    # Resumed, it needs the checkpoint no more.
    start = first.rename(first.with_name("moved.pt"))
    try:
        assert run(data, tmp_path / "run", "--start", str(first), "--lr", "1e-9", "--epochs", "1") == 0
    finally:
        start.rename(first)


def test_a_checkpoint_that_is_none_is_told_in_one_line(data, tmp_path, capsys):
    assert run(data, tmp_path, "--start", str(tmp_path / "no.pt")) == 2
    assert f"error: {tmp_path / 'no.pt'}: cannot be read" in capsys.readouterr().err


def test_a_training_that_rounds_leaves_an_ordinary_checkpoint(data, first, tmp_path):
    flags = ["--start", str(first), "--epochs", "1", "--eval-every", "1"]
    assert run(data, tmp_path / "rounded", *flags, "--fake-int8") == 0
    assert run(data, tmp_path / "plain", *flags) == 0
    rounded, plain = (records(tmp_path / name, "step") for name in ("rounded", "plain"))
    assert rounded[0]["loss"] != plain[0]["loss"]
    assert rounded[0]["loss"] == pytest.approx(plain[0]["loss"], rel=0.2)
    stored = [checkpoint.load(tmp_path / name / "best.pt") for name in ("rounded", "plain")]
    assert stored[0]["weights"].keys() == stored[1]["weights"].keys()
    assert stored[0]["model"] == stored[1]["model"]
