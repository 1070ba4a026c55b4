"""What a training is going to do: its tiles, evaluations and steps, known once its labels are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rgfl.dataset import Dataset, Picture, read_dataset
from rgfl.evenly import evenly
from rgfl.loader import steps_per_epoch
from rgfl.recipes import Recipe
from rgfl.spec import DetectorSpec
from rgfl.tiles import Tiles


@dataclass(frozen=True)
class Plan:
    """A run, as its recipe and its data make it."""

    recipe: Recipe
    root: Path  # of the data
    dataset: Dataset
    spec: DetectorSpec
    tiles: Tiles  # to learn from
    val: list[Picture]  # to evaluate on
    steps_per_epoch: int
    total_steps: int
    steps_between_evaluations: int

    @property
    def evaluating(self) -> bool:
        """Whether there is any evaluation, and so a val/."""
        return self.recipe.evaluation.eval_every > 0

    @property
    def cut_train(self) -> str:
        """What helps where whole images are too much."""
        return (
            "cut train/ into tiles, not val/ (AP on tiles is not the official one): "
            + self.recipe.tiling_command(self.root.resolve())
        )

    @property
    def quicker_tiles(self) -> str:
        """What helps, besides more --workers, where the tiles come too slowly."""
        larger = "a larger --cache-mb, " if self.recipe.run.cache_mb < self.tiles.cache_wanted() else ""
        return f"{larger}or {self.cut_train}"


def make_plan(recipe: Recipe, root: Path, classes: str, ignore_unknown: bool) -> Plan:
    """The tiles to train on, the images to evaluate on, and the numbers of steps that follow."""
    evaluation, schedule = recipe.evaluation, recipe.schedule
    evaluating = evaluation.eval_every > 0
    dataset = read_dataset(
        root,
        classes,
        with_val=evaluating,
        ignore_unknown=ignore_unknown,
        train_splits=recipe.data.train_splits,
    )
    tiles = Tiles(
        dataset.train, dataset.classes, recipe.data, recipe.augment, schedule.seed, recipe.run.cache_mb
    )
    epoch = steps_per_epoch(len(tiles), schedule.batch)
    total = max(1, round(schedule.epochs * epoch))
    return Plan(
        recipe=recipe,
        root=root,
        dataset=dataset,
        spec=recipe.spec(dataset.classes),
        tiles=tiles,
        val=evenly(dataset.val, evaluation.eval_images or len(dataset.val)),
        steps_per_epoch=epoch,
        total_steps=total,
        steps_between_evaluations=max(1, round(evaluation.eval_every * epoch)) if evaluating else total,
    )
