"""What a training says: what it is going to do, what is likely not meant, and what to do where it stops.

rgfl/loop.py trains and prints these sentences; nothing here changes a run.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch

from rgfl.dataset import Picture
from rgfl.devices import device_name
from rgfl.dota.labels import version_of
from rgfl.errors import TrainingError
from rgfl.plan import Plan
from rgfl.recipes import Recipe, schedule_warnings
from rgfl.spec import DetectorSpec
from rgfl.tiles import as_shown
from rgfl.validate import without_truth

LISTED = 40  # classes, of which the number of objects is said at the start
# Fewer pictures than these in a group, and the tiles of a batch are much alike.
LEAST_MIXED = 8
# Labels so many times as far out as an image is long are no slip of a hand.
FAR_OUTSIDE = 10
# A greater share of the time spent waiting for tiles is told once, with what helps.
WAITING_SHARE = 0.05

MEANS = {"ap50": "AP50", "ap75": "AP75", "map": "mAP"}  # over the classes; shown in percent


# ---- at the start -----------------------------------------------------------------------------------------


def announcement(
    plan: Plan, device: torch.device, processes: int, precision: torch.dtype | None, workers: int
) -> list[str]:
    """What is going to happen, a line each."""
    recipe, dataset, tiles = plan.recipe, plan.dataset, plan.tiles
    lines = [
        f"{recipe.name}: {len(dataset.classes)} classes, {len(dataset.train)} + {len(dataset.val)} "
        f"images, {len(tiles)} windows of {recipe.data.tile_size}², batch {recipe.schedule.batch}: "
        f"{plan.total_steps} steps of {recipe.schedule.epochs:g} epochs on "
        f"{f'{processes} × ' if processes > 1 else ''}{device_name(device)}, "
        f"{str(precision or torch.float32)[6:]}, {workers} workers"
    ]
    if len(dataset.classes) <= LISTED:
        lines.append(f"train holds {_counted(tiles.objects_by_class())}")
    images, windows = tiles.without_objects()
    if images:
        lines.append(
            f"{images:,} of {len(dataset.train):,} images hold no object to learn; {windows:,} of "
            f"{len(tiles):,} windows an epoch are of them (--empty-share)"
        )
    if dataset.left_out:
        version = version_of([*dataset.classes, *dataset.left_out])
        lines.append(
            f"left out, as their classes are not asked for: {_counted(dataset.left_out)}. AP is by DOTA "
            f"{version}'s rule for difficult objects (eval_dota --version {version})"
        )
    return lines


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def warnings(plan: Plan, batchnorm_trains: bool, processes: int, on_cuda: bool) -> list[str]:
    """What works and is likely not meant, one sentence each."""
    recipe, tiles, run = plan.recipe, plan.tiles, plan.recipe.run
    told = [
        *recipe.warnings(),
        *schedule_warnings(plan.total_steps, plan.steps_per_epoch, recipe.schedule),
    ]
    if plan.evaluating and (absent := without_truth(plan.val, plan.spec, plan.dataset.left_out)):
        told.append(
            f"val has no object of {', '.join(absent)} (difficult ones do not count): by DOTA's rule "
            "their AP is 0, which pulls the means down; --classes a,b --ignore-unknown leaves classes out"
        )
    if missing := [name for name, count in tiles.objects_by_class().items() if not count]:
        told.append(f"train has no object of {', '.join(missing)}: the detector will not find any")
    told += _outside("train left out", plan.dataset.train, tiles.outside)
    lost = {one.name: len(one.objects) - len(as_shown(one).objects) for one in plan.val}
    told += _outside("val that nothing can find", plan.val, lost)
    if tiles.too_small:
        name, number = next(iter(tiles.too_small.items()))
        told.append(
            f"objects of train never learned, as a side is below --min-side {recipe.data.min_side:g}: "
            f"{sum(tiles.too_small.values()):,} ({number} of them in {name}.txt)"
        )
    if tiles.too_long:
        told.append(
            f"objects of train hardly ever learned, as they are too long for a tile of --tile-size "
            f"{recipe.data.tile_size}: {sum(tiles.too_long.values()):,}; {tiles.fitting_scales()}"
        )
    if (mixed := tiles.pictures_mixed()) < LEAST_MIXED:
        told.append(
            f"training images are so large that a batch's tiles come from only {mixed:.0f} of them; "
            f"{plan.cut_train}"
        )
    if 0 < run.cache_mb < (wanted := tiles.cache_wanted()):
        told.append(
            f"--cache-mb {run.cache_mb} is too small, so images are decoded again and again; {wanted} is "
            "enough (each of the --workers has its own cache)"
        )
    if batchnorm_trains and processes > 1 and not on_cuda:
        told.append(
            "on CPUs BatchNorm is not synchronised between processes, so results differ from one process; "
            "use --head-norm group --norm-eval to avoid it"
        )
    if batchnorm_trains and run.accumulate > 1:
        told.append(
            f"with --accumulate {run.accumulate} BatchNorm sees one part of the batch at a time, so results "
            "differ from the whole batch at once; use --head-norm group --norm-eval to avoid it"
        )
    if recipe.schedule.fake_int8 and (run.accumulate > 1 or processes > 1):
        told.append(
            "--fake-int8 rounds each part of a batch on a grid of its own: not quite the result of the "
            "whole batch at once"
        )
    return told


def _outside(which: str, pictures: Sequence[Picture], lost: Mapping[str, int]) -> list[str]:
    """A warning of `which` objects, if any are lost: so many of a picture, by its name."""
    first = next((picture for picture in pictures if lost.get(picture.name)), None)
    if first is None:
        return []
    far = np.abs(first.objects.quads).max() > FAR_OUTSIDE * max(first.height, first.width)
    return [
        f"objects of {which}, as they lie outside their images or have no area: {sum(lost.values()):,} "
        f"({lost[first.name]} of them in {first.name}.txt)"
        f"{'; map coordinates? labels are pixels of the image' if far else ''}"
    ]


def seen_otherwise(path: str, before: DetectorSpec, now: DetectorSpec) -> list[str]:
    """A warning if what to start from was trained on other input values than this detector gets."""
    names = [
        name
        for name in ("mean", "std", "pad_value")
        # EfficientNet-Lite saw 127.5 ± 127.5, and its recipe says 127 ± 128.
        if any(abs(a - b) >= 1 for a, b in zip(getattr(before, name), getattr(now, name), strict=True))
    ]
    if not names:
        return []
    flags = " ".join(
        f"--{name.replace('_', '-')} {','.join(f'{value:g}' for value in getattr(before, name))}"
        for name in names
    )
    return [f"warning: {path} was trained with {flags}; give them too, or its weights see unfamiliar values"]


# ---- on the way -------------------------------------------------------------------------------------------


def result_line(epoch: float, values: Mapping[str, float], images: int, unit: str, seconds: float) -> str:
    """An evaluation: `values` by the names of `MEANS`, on so many of a unit (image or tile)."""
    shown = "  ".join(f"{title} {100 * values[key]:.1f}" for key, title in MEANS.items())
    units = "unmerged tiles (not the official AP)" if unit == "tile" else "full images"
    return f"epoch {epoch:g}: {shown} on {images} {units} in {seconds:.0f} s"


class Waiting:
    """How much of the time goes into waiting for tiles; says once if it is too much."""

    SETTLED = 20  # steps: the first tiles wait for the workers to start

    def __init__(self, workers: int, helps: str) -> None:
        self.share = 0.0
        self._workers, self._helps = workers, helps
        self._steps, self._told = 0, False
        self._waited, self._seconds = 0.0, 0.0

    def warning(self, waited: float, seconds: float, steps: int) -> str:
        """Take in an interval of the log. What to say, or nothing."""
        self._steps += steps
        if self._steps <= self.SETTLED:
            return ""
        self._waited, self._seconds = self._waited + waited, self._seconds + seconds
        self.share = self._waited / max(self._seconds, 1e-9)
        if self._told or self.share <= WAITING_SHARE:
            return ""
        self._told = True
        return (
            f"{self.share:.0%} of the time goes into waiting for tiles (data_wait_s in log.jsonl): use more "
            f"--workers (now {self._workers}), {self._helps}"
        )


# ---- where it stops ---------------------------------------------------------------------------------------


def out_of_memory(recipe: Recipe) -> TrainingError:
    """A GPU without memory, in a step."""
    return TrainingError(
        f"out of GPU memory with --batch {recipe.schedule.batch} tiles of --tile-size "
        f"{recipe.data.tile_size}; add --accumulate N or --checkpoint-activations, and the same command goes "
        "on; or start a new run with a smaller batch or tile (--start keeps the weights)"
    )


def out_of_memory_evaluating(test_batch: int) -> TrainingError:
    """A GPU without memory, in an evaluation."""
    return TrainingError(
        f"out of GPU memory in the evaluation, with --test-batch {test_batch}; give fewer, or "
        "end what else uses this GPU, and the same command goes on from last.pt"
    )


@contextlib.contextmanager
def told_errors(
    plan: Plan, worker_lost: Callable[[], bool], rank_lost: Callable[[Exception], bool]
) -> Iterator[None]:
    """What may befall a run from outside, as a line that says what to do. Raises TrainingError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise  # see `out_of_memory`
    except (RuntimeError, ConnectionError, EOFError) as error:  # a worker's end is found in many ways
        if worker_lost():
            raise TrainingError(
                f"a process that prepares tiles has ended ({' '.join(str(error).split())}): was there no "
                "memory left? Use fewer --workers or a smaller --cache-mb, and the same command goes on "
                f"from last.pt; or {plan.cut_train}"
            ) from error
        if not rank_lost(error):
            raise
        raise TrainingError(
            "another process of this run has ended, or cannot be reached; its own lines say why. Here: "
            + " ".join(str(error).split())
        ) from error
    except ValueError as error:
        if "Expected more than 1 value per channel" not in str(error):
            raise
        model, batch = plan.recipe.model, plan.recipe.schedule.batch
        raise TrainingError(
            f"--batch {batch}: one tile at a time gives a BatchNorm of --backbone {model.backbone} a single "
            "value of each channel; use a larger --batch, a smaller --accumulate, fewer processes, or "
            "--norm-eval"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # Not in --out, of whose files `RunFolder` tells: queues of processes need shared memory too.
        raise TrainingError(
            f"{error.filename or 'shared memory (/dev/shm)'}: {error.strerror}; use fewer --workers, or "
            "give the container more (docker run --shm-size 16g), and the same command goes on"
        ) from error
