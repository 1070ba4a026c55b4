"""Recipes: the published row against an independent table, schedules step by step, flags and their help."""

import argparse
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rgfl import recipes
from rgfl.dota.merge import MERGE_IOU
from rgfl.dota.tiling import default_stride
from rgfl.recipes import (
    RECIPES,
    RecipeError,
    ScheduleConfig,
    add_flags,
    find_recipe,
    learning_rate,
    schedule_warnings,
)
from rgfl.train import parse

# The published row, typed from its description and not from the code.
PUBLISHED = {
    "model": {
        "backbone": "resnet50.tv_in1k",
        "pretrained": True,
        "weights": "",
        "frozen_stages": 1,
        "norm_eval": True,
        "neck_channels": 256,
        "head_channels": 256,
        "head_convs": 4,
        "head_norm": "group",
        "mode": "integral",
        "reg_max": 8,
        "anchor_scale": 4,
        "atss_topk": 9,
        "quality": False,
        "cls_loss_weight": 1,
        "iou_loss_weight": 1,
    },
    "data": {
        "tile_size": 1024,
        "windows": "grid",
        "stride": 512,
        "empty_share": 0,
        "repeat_below": 0,
        "min_visible": 0.7,
        "cut": "clipped",
        "min_side": 2,
        "train_difficult": True,
        "boxes_from": "edges",
        "pad_value": (0, 0, 0),
        "mean": (123.675, 116.28, 103.53),
        "std": (58.395, 57.12, 57.375),
    },
    "augment": {
        "flip_horizontal": 0.5,
        "flip_vertical": 0,
        "right_angle": 0,
        "rotate": 0,
        "scale": (1, 1),
        "mosaic": 0,
        "brightness": 0,
        "contrast": 0,
        "saturation": 0,
        "hue": 0,
        "gray": 0,
    },
    "schedule": {
        "epochs": 12,
        "batch": 2,
        "optimizer": "sgd",
        "lr": 0.0025,
        "backbone_lr": 1,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "decay_norms": True,
        "clip_norm": 35,
        "policy": "step",
        "lr_steps": (8, 11),
        "lr_factor": 0.1,
        "warmup_steps": 500,
        "warmup_start": 0.001,
        "ema": 0,
        "amp": "off",
    },
    "evaluation": {
        "test_size": 1024,
        "score_threshold": 0.05,
        "nms_iou": 0.1,
        "level_topk": 2000,
        "max_detections": 2000,
    },
}


def test_published_row_is_what_was_published():
    assert MERGE_IOU == 0.1
    recipe = RECIPES["rgfl_r50_dota_1x"]()
    for group, values in PUBLISHED.items():
        ours = dataclasses.asdict(getattr(recipe, group))
        assert {name: ours[name] for name in values} == values


def test_published_trainval_row_differs_in_the_data_alone():
    row, twin = (RECIPES[f"rgfl_r50_dota_1x{name}"]().result_fields() for name in ("", "_trainval"))
    assert twin["stride"] == 824
    assert twin["train_splits"] == ["train", "val"]
    data = {"stride", "train_splits", "eval_every"}
    assert {name for name in row if row[name] != twin[name]} == {"recipe", *data}


# Full Generalized Focal Loss, typed from DESIGN §4 and its paper, and not from the code.
FULL = {
    "mode": "gfl",
    "backbone": "resnet50.tv_in1k",
    "neck_channels": 256,
    "head_channels": 256,
    "head_convs": 4,
    "head_norm": "group",
    "reg_max": 16,
    "anchor_scale": 8,
    "atss_topk": 9,
    "cls_loss_weight": 1,
    "iou_loss_weight": 2,
    "dfl_loss_weight": 0.25,
    "quality": True,
}


@pytest.mark.parametrize("name", ["gfl_r50_dota_1x", "gfl_r50_dota_3x"])
def test_full_loss_is_the_paper_s(name):
    recipe = RECIPES[name]()
    model = dataclasses.asdict(recipe.model)
    assert {key: model[key] for key in FULL} == FULL
    assert recipe.data.boxes_from == "min_area"
    for group in ("schedule", "evaluation"):
        ours = dataclasses.asdict(getattr(recipe, group))
        same = set(PUBLISHED[group]) - {"epochs", "policy", "lr_factor", "ema", "amp"}
        assert {key: ours[key] for key in same} == {key: PUBLISHED[group][key] for key in same}


def test_long_schedule_sees_every_scale_and_angle_and_ends_low():
    recipe = RECIPES["gfl_r50_dota_3x"]()
    assert recipe.data.windows == "random"
    assert recipe.augment.scale == (0.5, 1.5)
    assert min(recipe.augment.rotate, recipe.augment.flip_horizontal, recipe.augment.flip_vertical) > 0
    schedule = recipe.schedule
    assert (schedule.epochs, schedule.policy, schedule.ema) == (72, "cosine", 0.9998)
    assert learning_rate(36 * 1000, 1000, schedule) == pytest.approx(0.0025 * (1 + 0.01) / 2)
    assert learning_rate(72 * 1000, 1000, schedule) == pytest.approx(0.0025 * 0.01)


def test_spec_of_the_published_row():
    spec = RECIPES["rgfl_r50_dota_1x"]().spec(["plane", "ship"])
    assert (spec.mode, spec.reg_max, spec.angle_bins) == ("integral", 8, 0)
    assert spec.image_size == (1024, 1024)
    assert spec.strides == (8, 16, 32, 64, 128)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_carries_its_name_and_its_spec(name):
    recipe = RECIPES[name]()
    assert recipe.name == name
    assert recipe.spec(["a"]).mode == recipe.model.mode
    assert RECIPES[name].__doc__


def test_step_schedule_with_warm_up():
    schedule = RECIPES["rgfl_r50_dota_1x"]().schedule
    rate = lambda step: learning_rate(step, 1000, schedule)  # noqa: E731
    assert rate(0) == pytest.approx(0.0025 * 0.001)
    assert rate(250) == pytest.approx(0.0025 * (0.001 + 0.999 / 2))
    assert rate(499) < 0.0025
    assert rate(500) == rate(7999) == 0.0025
    assert rate(8000) == rate(10999) == pytest.approx(0.00025)
    assert rate(11000) == rate(11999) == pytest.approx(0.000025)


def test_step_schedule_when_the_warm_up_outlasts_a_drop():
    schedule = ScheduleConfig(lr=1, lr_steps=(1,), warmup_steps=20, warmup_start=0)
    assert learning_rate(9, 10, schedule) == pytest.approx(9 / 20)
    assert learning_rate(10, 10, schedule) == pytest.approx(0.1 * 10 / 20)


def test_cosine_schedule_falls_from_the_rate_to_its_share():
    schedule = ScheduleConfig(lr=2, policy="cosine", epochs=10, lr_factor=0.1, warmup_steps=0)
    rates = [learning_rate(step, 10, schedule) for step in range(101)]
    assert rates[0] == 2
    assert rates[50] == pytest.approx((2 + 0.2) / 2)
    assert rates[100] == pytest.approx(0.2)
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": -1.0}, "--lr: expected a positive number, got -1"),
        ({"tile_size": 100}, "--tile-size: expected a positive multiple of 128, got 100"),
        ({"flip_vertical": 2.0}, "--flip-vertical: expected a probability in 0…1, got 2"),
        ({"scale": (2.0, 1.0)}, "--scale: expected two positive factors, the smaller first, got 2,1"),
        ({"windows": "all"}, "--windows: expected one of random, grid, got all"),
        ({"test_stride": 2000}, "--test-stride: expected no more than --test-size 1024, got 2000"),
        ({"test_stride": -1}, "--test-stride: expected 0 or more, got -1"),
        ({"tile_size": 256}, "--stride: expected no more than --tile-size 256 (0 follows it), got 512"),
        ({"head_channels": 80}, "--head-channels: expected a multiple of 32, or --head-norm batch, got 80"),
        ({"empty_share": 1.1}, "--empty-share: expected a share in 0…1, got 1.1"),
        ({"ema": 1.0}, "--ema: expected a decay in 0…1, below 1, got 1"),
    ],
)
def test_bad_values_are_refused_by_flag_and_value(changes, message):
    with pytest.raises(RecipeError) as error:
        RECIPES["gfl_r50_dota_1x"]().replace(**changes)
    assert str(error.value) == message


def test_batch_norm_is_told_when_it_sees_other_sizes_than_it_was_trained_on():
    assert not any(recipe().warnings() for recipe in RECIPES.values())
    (warning,) = RECIPES["gfl_lite"]().replace(test_size=1024).warnings()
    assert warning.startswith("--test-size 1024 is not --tile-size 512: ")
    assert not RECIPES["gfl_r50_dota_1x"]().replace(tile_size=512, test_size=1024).warnings()


@pytest.mark.parametrize("name", RECIPES)
def test_tiles_overlap_while_training_as_they_do_afterwards(name):
    """gfl_lite and demo said 384: the AP in best.pt was not the one that eval_dota.py prints."""
    recipe = RECIPES[name]()
    assert recipe.evaluation.test_stride == 0
    assert recipe.result_fields()["test_stride"] == default_stride(recipe.evaluation.test_size)


def test_strides_follow_the_size_unless_a_recipe_or_flag_says_otherwise():
    assert {name: make().result_fields()["stride"] for name, make in RECIPES.items()} == {
        "rgfl_r50_dota_1x": 512,
        "rgfl_r50_dota_1x_trainval": 824,
        "gfl_r50_dota_1x": 512,
        "gfl_r50_dota_3x": 512,
        "gfl_lite": 412,  # of the grid, which it does not use
        "demo": 412,
    }
    fields = RECIPES["gfl_r50_dota_1x"]().replace(tile_size=512, test_size=512).result_fields()
    assert (fields["stride"], fields["test_stride"]) == (512, 412)
    small = RECIPES["gfl_lite"]().replace(tile_size=256, test_size=256, windows="grid")
    assert (small.result_fields()["stride"], small.result_fields()["test_stride"]) == (206, 206)


def test_strides_by_number_are_those_that_come_out():
    """A run that was begun when recipes said 824 goes on."""
    recipe = RECIPES["rgfl_r50_dota_1x"]()
    assert recipe.replace(test_stride=824).result_fields() == recipe.result_fields()


@pytest.mark.parametrize(
    ("changes", "total", "told"),
    [
        ({}, 12_000, []),
        ({"epochs": 36}, 36_000, ["--lr-steps 8,11 with --epochs 36: .* epoch 11; set --lr-steps 24,33, "]),
        ({"epochs": 8}, 8_000, ["--lr-steps 8,11 .* it never falls; set --lr-steps 5.33,7.33, or --policy"]),
        ({"epochs": 8, "policy": "cosine"}, 8_000, []),
        ({"epochs": 9}, 9_000, []),
        ({"epochs": 36, "lr_steps": ()}, 36_000, []),  # no slip: one rate all the time
        ({"warmup_steps": 2_999}, 12_000, []),
        ({"warmup_steps": 3_000}, 12_000, ["--warmup-steps 3000 in .* 12000 .* set --warmup-steps 600,"]),
        ({"epochs": 2, "lr_steps": (1,)}, 10, ["--warmup-steps 500 in a run of 10 .* set --warmup-steps 1,"]),
        ({"epochs": 1}, 1_000, ["--lr-steps 8,11 ", "--warmup-steps 500 "]),
        ({"epochs": 2, "lr_steps": (1,), "warmup_steps": 0}, 2, []),
    ],
)  # fmt: skip
def test_schedules_that_are_likely_not_meant_are_told(changes, total, told):
    schedule = dataclasses.replace(ScheduleConfig(), **changes)
    warnings = schedule_warnings(total, max(1, round(total / schedule.epochs)), schedule)
    assert len(warnings) == len(told)
    for warning, pattern in zip(warnings, told, strict=True):
        assert re.match(pattern, warning), warning


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        (
            "gfl_r50_dota_1x",
            {"batch": 16},
            "--batch is 16, but --lr 0.0025 .* batch 2; scaled linearly .* --lr 0.02$",
        ),
        ("gfl_r50_dota_1x", {"batch": 1}, ".* --lr 0.00125$"),
        ("gfl_lite", {"batch": 32}, "--batch is 32, .* batch 8; scaled by the square root .* --lr 0.002$"),
        ("gfl_lite", {"batch": 32, "lr": 0.004}, None),
        ("gfl_lite", {"lr": 0.004}, None),
    ],
)
def test_a_batch_of_another_size_is_told_which_rate_suits_it(name, changes, told):
    warnings = RECIPES[name]().replace(**changes).warnings()
    assert len(warnings) == (told is not None)
    assert all(re.match(told, warning) for warning in warnings)


@pytest.mark.parametrize(
    ("name", "changes", "flags"),
    [
        ("rgfl_r50_dota_1x", {}, "--splits train --size 1024 --stride 512 --cut clipped"),
        ("rgfl_r50_dota_1x_trainval", {}, "--splits train val --size 1024 --cut clipped"),
        ("gfl_r50_dota_1x", {}, "--splits train --size 1024 --stride 512 --cut whole"),
        ("gfl_r50_dota_3x", {}, "--splits train --size 2048 --cut whole --keep-empty"),
        ("gfl_lite", {"empty_share": 0.0}, "--splits train --size 1024 --cut whole"),
        ("gfl_lite", {"rotate": 0, "scale": (1, 1)}, "--splits train --size 512 --cut whole --keep-empty"),
    ],
)  # fmt: skip
def test_the_tiles_that_fit_a_recipe(name, changes, flags):
    """Those of the defaults, clipped and of a tile's size, were another training, a quarter of it black."""
    recipe = RECIPES[name]().replace(**changes)
    command = f"python -m rgfl.dota.tiling --data '/a b' --out '/a b_tiles' {flags}"
    link = "" if "val" in flags.split() else " && ln -sfT '/a b/val' '/a b_tiles/val'"
    assert recipe.tiling_command(Path("/a b")) == command + link


def test_a_recipe_of_one_s_own_comes_from_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside.py").write_text("EPOCHS = 3\n")
    (tmp_path / "own_recipes.py").write_text(
        "import dataclasses\nfrom beside import EPOCHS\nfrom rgfl.recipes import ModelConfig, demo\n"
        "def short(): return demo().replace(epochs=EPOCHS)\nready = short()\nnumber = 3\n"
        "@dataclasses.dataclass(frozen=True)\nclass Mine(ModelConfig):\n    tau: float = 1.0\n"
        "def subclassed(): return dataclasses.replace(demo(), model=Mine())\n"
    )
    (tmp_path / "own.recipes.py").write_text("")
    monkeypatch.chdir(tmp_path)
    for name in ("short", "ready"):
        recipe, _ = parse(["--recipe", f"own_recipes.py:{name}", "--data", "d", "--out", "o", "--lr", "1"])
        assert (recipe.name, recipe.schedule.epochs, recipe.schedule.lr) == (name, 3, 1)
    for text, message in (
        ("dmeo", "--recipe dmeo: expected one of rgfl_r50_dota_1x, .*, demo, or FILE.py:NAME"),
        ("own_recipes.py", "expected one of .* or FILE.py:NAME"),
        ("none.py:short", f"--recipe none.py:short: no file {tmp_path / 'none.py'}"),
        ("own_recipes.py:shrot", "no recipe 'shrot' in .*own_recipes.py: a Recipe, or a function"),
        ("own_recipes.py:number", "no recipe 'number' in "),
        ("own_recipes.py:Mine", "no recipe 'Mine' in "),
        ("own.recipes.py:short", "expected a name that Python can import, got own.recipes.py"),
        ("own_recipes.py:subclassed", "model: expected ModelConfig, got Mine: no checkpoint keeps fields of"),
    ):
        with pytest.raises(RecipeError, match=message):
            find_recipe(text)
    (tmp_path / "json.py").write_text("")
    with pytest.raises(RecipeError, match="Python has another module 'json'; rename the file"):
        find_recipe("json.py:short")


def test_unknown_field_is_refused():
    with pytest.raises(RecipeError, match="unknown field 'learning_rate'"):
        RECIPES["demo"]().replace(learning_rate=1)


def test_every_field_has_a_flag_with_help_and_names_are_unique():
    names = [entry.name for group in recipes.GROUPS.values() for entry in dataclasses.fields(group)]
    assert len(names) == len(set(names))
    parser = argparse.ArgumentParser()
    add_flags(parser, RECIPES["gfl_lite"]())
    actions = {action.dest: action for action in parser._actions}
    for name in names:
        text, default = actions[name].help.rsplit(" [", 1)
        assert len(text) > 4, name
        assert default.endswith("]")


def test_a_finer_level_is_one_more():
    assert parsed("--finest-stride", "4").spec(("a",)).strides == (4, 8, 16, 32, 64, 128)
    assert parsed().spec(("a",)).strides == (8, 16, 32, 64, 128)


def parsed(*flags):
    return parse(["--recipe", "demo", "--data", "d", "--out", "o", *flags])[0]


def test_flags_replace_fields():
    recipe = parsed(
        "--lr", "0.5", "--scale", "0.5,2", "--no-quality", "--no-decay-norms", "--optimizer", "sgd"
    )
    assert (recipe.schedule.lr, recipe.augment.scale, recipe.model.quality) == (0.5, (0.5, 2.0), False)
    assert (recipe.schedule.decay_norms, recipe.schedule.optimizer) == (False, "sgd")
    assert parsed("--lr-steps", "1,2,3").schedule.lr_steps == (1.0, 2.0, 3.0)
    assert parsed("--round-classes", "tank").augment.round_classes == ("tank",)
    assert parsed("--round-classes", "").augment.round_classes == ()
    assert parsed() == RECIPES["demo"]()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learning-rate", "1"], "unrecognized arguments: --learning-rate"),
        (["--lr", "fast"], "argument --lr: invalid float value: 'fast'"),
        (["--scale", "1"], "argument --scale: expected 2 numbers with commas, got '1'"),
        (["--lr", "0"], "--lr: expected a positive number, got 0"),
        (["--epoch", "3"], "unrecognized arguments: --epoch"),
        (["--recipe", "dmeo"], "rgfl.train: error: --recipe dmeo: expected one of"),
    ],
)
def test_wrong_flags_end_with_one_line(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parsed(*flags)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_help_names_values_of_the_recipe_and_imports_no_torch():
    code = (
        "import sys\nfrom rgfl.train import parse\n"
        "try: parse(['--recipe', 'gfl_lite', '--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert 'torch' not in sys.modules and 'cv2' not in sys.modules\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    text = " ".join(shown.split())
    for phrase in (
        *RECIPES,
        "timm model name [tf_efficientnet_lite0]",
        "over all processes and --accumulate parts [8]",
        "--no-resume",
        "torchrun --nproc-per-node 8 -m rgfl.train",
        "--splits train --size 1024 --cut whole --keep-empty ln -sfT /DIR/val",
        "on a CPU bit by bit",
    ):
        assert phrase in text
    for group in recipes.GROUPS:
        assert f"{group}: " in shown


def test_result_fields_leave_out_what_does_not_change_the_result():
    recipe = RECIPES["demo"]()
    assert recipe.replace(workers=3, log_every=1, device="cpu").result_fields() == recipe.result_fields()
    parts = recipe.replace(accumulate=2, checkpoint_activations=True, compile=True)
    assert parts.result_fields() == recipe.result_fields()
    assert recipe.replace(seed=1).result_fields() != recipe.result_fields()


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", float("inf")), ("eval_every", float("inf")), ("seed", 1 << 63), ("threads", 2000)],
)
def test_numbers_that_no_run_can_have_are_refused(field, value):
    with pytest.raises(RecipeError, match=field.replace("_", "-")):
        RECIPES["demo"]().replace(**{field: value})


def test_the_tiling_command_fits_the_recipe():
    command = RECIPES["demo"]().replace(min_visible=0.3).tiling_command(Path("/d"))
    assert "--min-visible 0.3" in command
    assert "--size 16384" in RECIPES["gfl_r50_dota_3x"]().replace(tile_size=16384).tiling_command(Path("/d"))
    assert RECIPES["demo"]().tiling_command(Path("/"))
