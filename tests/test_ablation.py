"""The ablation script: its variants are recipes, its table arithmetic; what is done is not repeated."""

import json

import pytest
from benchmark_scripts import imported

from rgfl import train
from rgfl.recipes import RECIPES

FLAGS = """
    --backbone test_efficientnet --weights= --no-pretrained --frozen-stages 0 --no-norm-eval
    --neck-channels 16 --head-channels 16 --head-convs 1 --tile-size 128 --test-size 128 --test-stride 64
    --batch 2 --epochs 1 --log-every 1 --threads 1 --workers 0 --level-topk 50 --device cpu
"""
TINY = FLAGS.split()


@pytest.fixture(scope="module")
def ablation():
    with imported("ablation") as module:
        yield module


OWN = {"gfl": set(), "gfl-quality": {"quality"}, "gfl-no-dfl": {"dfl_loss_weight", "angle_loss_weight"}}


@pytest.mark.parametrize("base", RECIPES)
def test_the_variants_do_not_depend_on_the_base_recipe_s_own_mode(ablation, base):
    for variant, (_, changes) in ablation.VARIANTS.items():
        flags = [flag for name, value in changes.items() for flag in ablation.as_flag(name, value)]
        recipe, _ = train.parse(["--recipe", base, "--data", "D", "--out", "O", *flags])
        assert {name: getattr(recipe.model, name) for name in changes} == changes
        assert recipe.spec(("plane",)).mode == changes["mode"]
        if variant != "integral":  # each differs from gfl by what it is named after, and in nothing else
            other = {name for name, value in changes.items() if ablation.GFL[name] != value}
            assert other == OWN[variant]
    assert {name: getattr(RECIPES["rgfl_r50_dota_1x"]().model, name) for name in ablation.INTEGRAL} == (
        ablation.INTEGRAL
    )


def outcome(variant, seed, value, seconds=1.0):
    return {
        "variant": variant, "seed": seed, "ap50": value, "ap75": value, "map": value, "step_seconds": seconds
    }  # fmt: skip


def test_the_table_is_mean_and_spread_and_a_paired_difference(ablation):
    rows = ablation.summarise([
        outcome("integral", 0, 0.10), outcome("gfl", 0, 0.15),
        outcome("integral", 1, 0.30), outcome("gfl", 1, 0.37),
        outcome("gfl", 2, 0.90),  # the other variant has no third seed yet
    ])  # fmt: skip
    assert [row["variant"] for row in rows] == ["integral", "gfl"]
    assert rows[0]["map"] == pytest.approx({"mean": 0.2, "spread": 0.02**0.5})
    assert "against" not in rows[0]
    assert rows[1]["seeds"] == [0, 1, 2]
    assert rows[1]["against"] == pytest.approx({"mean": 0.06, "spread": 0.0002**0.5})
    assert ablation.shown(rows[1]["against"], "+") == "+6.00 ± 1.41"
    [row] = ablation.summarise([outcome("gfl", 0, 0.5)])
    assert ablation.shown(row["ap50"]) == "50.00"
    assert ablation.shown({"mean": None, "spread": None}) == "–"


def test_trained_once_told_twice(ablation, tiny_scenes, tmp_path, monkeypatch, capsys):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "images").symlink_to(tiny_scenes.images)
        (tmp_path / split / "labelTxt").symlink_to(tiny_scenes.labels)
    begun = []

    def here(command):
        begun.append(command[command.index("--out") + 1])
        return 128 + 15 if len(begun) == 2 else train.main(command)

    monkeypatch.setattr(ablation, "_train", here)
    runs = tmp_path / "runs"
    command = ["--recipe", "gfl_lite", "--data", str(tmp_path), "--out", str(runs), "--variants"]
    command += ["integral,gfl", "--remark", "A small one.", "--", *TINY]
    assert ablation.main(command) == 143  # the second is stopped by a signal
    assert "gfl, seed 0: ended with status 143; the same command goes on" in capsys.readouterr().err
    assert not list(runs.glob("*.md"))
    assert ablation.main(command) == 0
    assert ablation.main(command) == 0  # reads
    assert begun == [str(runs / f"{name}-seed0") for name in ("integral", "gfl", "gfl")]

    report = json.loads(next(runs.glob("*-ablation-*.json")).read_text())
    logged = [json.loads(line) for line in (runs / "gfl-seed0" / "log.jsonl").read_text().splitlines()]
    assert report["rows"][1]["map"]["mean"] == next(r["map"] for r in logged if r["kind"] == "eval")
    text = next(runs.glob("*-ablation-*.md")).read_text()
    assert "| mAP − integral | seeds |" in text
    assert "One seed: how far another seed would move a number is not known" in text
    assert "It is a small run: 3 steps" in text
    assert "A small one." in text
    assert str(tmp_path) not in text

    capsys.readouterr()
    assert ablation.main([*command, "--lr", "0.5"]) == 1
    assert "integral-seed0: a training of other lr; give the same flags and data" in capsys.readouterr().err


def test_wrong_flags_are_told_before_any_work(ablation, tmp_path, capsys):
    command = ["--recipe", "demo", "--data", str(tmp_path), "--out", str(tmp_path / "runs")]
    for flags, message in (
        (["--variants", "gfl,glf"], "--variants: 'glf' is none of integral, gfl"),
        (["--recipe", "no.py:mine"], "--recipe no.py:mine: no file"),
        (["--seeds", "0"], "--seeds: expected 1 or more, got 0"),
        (["--", "--lr", "-1"], "--lr: expected a positive number, got -1"),
    ):
        with pytest.raises(SystemExit):
            ablation.main([*command, *flags])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
