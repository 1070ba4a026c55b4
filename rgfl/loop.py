"""The training loop, to be read from top to bottom: set up, run, step, evaluate, save (`Training`).

Its command line is rgfl/train.py; its warnings and advice are in rgfl/advice.py.

A run is a function of (recipe, data): the sample order and every random choice about a tile come from
(seed, epoch, index), so the number of the step is all that a resume needs besides the state of the weights
and the optimiser. Killed at any moment, the same command repeats the steps since the last write of
last.pt, and log.jsonl ends up as if nothing had happened: on a CPU bit by bit, on a GPU up to the order in
which it adds.

Nor does it matter who computes a step. It may be cut into parts (--accumulate) and shared by processes
(torchrun): losses are sums over tiles divided by sums over the whole batch, and gradients add up. BatchNorm
that trains and --fake-int8 are the exceptions, and a warning says so.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from rgfl import advice, checkpoint, draw, page
from rgfl.advice import MEANS
from rgfl.detections import Detections
from rgfl.devices import choose_device, device_name, expect_own_gpu, mixed_precision, peak_memory_mb
from rgfl.errors import TrainingError, UserError
from rgfl.evenly import evenly
from rgfl.loader import Batch, Loader, batch_keys
from rgfl.nn.backbone import WeightsError
from rgfl.nn.batchnorm import statistics_kept, synchronise, training_batchnorms
from rgfl.nn.decode import Raw
from rgfl.nn.detector import Detector, build_detector
from rgfl.nn.fake_int8 import fake_int8
from rgfl.page_pictures import Evaluation
from rgfl.plan import make_plan
from rgfl.processes import usable_cores
from rgfl.ranks import Ranks, SharedError
from rgfl.recipes import Recipe, ScheduleConfig, learning_rate
from rgfl.run_folder import RunFolder, of_this_version, read_last
from rgfl.spec import DetectorSpec
from rgfl.stop import TIME_IS_UP, Stop, reason
from rgfl.tiles import Tile
from rgfl.validate import find, over_labels, score

# Under FP16 the scaler halves its factor at each gradient that is not finite, and skips the step. Where the
# gradients as they are do not fit either, the fault is another, and every further step would be skipped too.
LEAST_SCALE = 1.0
SHOWN_COLUMNS = 3  # and rows, of the picture of the first tiles

# What `main` prints as one line; anything else is a bug and shows its traceback.
ERRORS = (UserError, FileNotFoundError)


def train(
    recipe: Recipe,
    root: Path,
    out: Path,
    classes: str = "",
    resume: bool = True,
    ignore_unknown: bool = False,
) -> int:
    """Train to the end of the schedule, or until Ctrl-C, SIGTERM, SIGHUP or --max-minutes.

    Under torchrun every process calls this with the same arguments.

    Args:
        root, classes, ignore_unknown: as `read_dataset` takes them.
        out: folder of the run.
        resume: go on from its last.pt; else it is replaced.

    Returns:
        0 at the end of the schedule or of --max-minutes, or 128 + the signal that stopped the run; last.pt
        is up to date either way.
    """
    started = time.monotonic()
    device = choose_device(recipe.run.device)
    with Ranks(device) as ranks:
        expect_own_gpu(device, ranks)
        try:
            return Training(recipe, root, out, classes, resume, ignore_unknown, device, ranks, started).run()
        except torch.OutOfMemoryError as error:
            raise advice.out_of_memory(recipe) from error


class Training:
    """One run, on one of its ranks: what its steps share, and how far it is."""

    # ---- set up -----------------------------------------------------------------------------------------

    def __init__(
        self,
        recipe: Recipe,
        root: Path,
        out: Path,
        classes: str,
        resume: bool,
        ignore_unknown: bool,
        device: torch.device,
        ranks: Ranks,
        started: float,
    ) -> None:
        """Everything up to the first step: what cannot work is said here, and nothing is written before."""
        self.recipe, self.out, self.device, self.ranks = recipe, out, device, ranks
        self.say = tqdm.write if ranks.first else _say_nothing
        self.on_cuda = device.type == "cuda"
        schedule, run = recipe.schedule, recipe.run
        _expect_parts(recipe, ranks.size, self.on_cuda)
        if run.threads:
            torch.set_num_threads(run.threads)
        torch.manual_seed(schedule.seed)

        with ranks.together(ERRORS):
            self.plan = plan = make_plan(recipe, root, classes, ignore_unknown)
            self.amp = mixed_precision(schedule.amp, device)
            last = read_last(out, recipe, plan.dataset) if resume else None
            model, said = _build_model(recipe, plan.spec, last)

        # The model on its device, with what learns it and what is kept of it.
        if schedule.fake_int8:
            fake_int8(model)
        self.model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        # What is evaluated and deployed: the running mean of the weights, or these themselves.
        self.ema_model = copy.deepcopy(self.model).eval() if schedule.ema else self.model
        self.optimizer = _optimizer(self.model, schedule)
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.amp is torch.float16)
        if self.on_cuda:
            torch.backends.cudnn.benchmark = True

        # How far the run is.
        self.step, self.evaluated_at, self.best_map = 0, 0, -1.0
        self.without_better = 0  # evaluations since the best one
        self.sums: dict[str, float] = {}  # of the losses since the last line of the log
        with ranks.together(ERRORS):
            if last is not None:
                self._resume(last)
        del last
        self._expect_equal_ranks()

        # What computes the model's forward pass, with the gradients of all processes joined.
        batchnorm_trains = bool(training_batchnorms(self.model))
        if self.on_cuda and not ranks.alone and batchnorm_trains:
            synchronise(self.model)
        self.network, self.unsynchronised = self._joined()
        self.ema = _Ema(self.ema_model, self.model) if self.ema_model is not self.model else None

        self.workers = run.workers if run.workers >= 0 else _workers(self.on_cuda, ranks.local_size)
        warnings = advice.warnings(plan, batchnorm_trains, ranks.size, self.on_cuda)
        with ranks.together(ERRORS):
            path = out if ranks.first else None
            anew_but = None if resume else Path(schedule.start)
            self.folder = RunFolder(path, self.step, self.evaluated_at, anew_but)
        self._announce([*(f"warning: {warning}" for warning in warnings), *said])
        self.loader: Loader | None = None
        self.waiting = advice.Waiting(self.workers, plan.quicker_tiles)
        self.stop = Stop(run.max_minutes, started)
        self.bar = tqdm(
            total=plan.total_steps,
            initial=self.step,
            unit="step",
            dynamic_ncols=True,
            smoothing=0.1,
            disable=not ranks.first,
        )

    def _resume(self, last: dict[str, Any]) -> None:
        """Back to where last.pt was written."""
        with of_this_version(self.out / "last.pt"):
            self.step, self.evaluated_at, self.best_map = last["step"], last["evaluated"], last["best"]
            self.without_better = last["without_better"]
            self.sums = last["sums"]
            self.model.load_state_dict(last["model"])
            self.ema_model.load_state_dict(last["weights"])
            self.optimizer.load_state_dict(last["optimizer"])
            if last["scaler"]:  # {} after a device without fp16
                self.scaler.load_state_dict(last["scaler"])
            torch.set_rng_state(last["rng"])
            if self.on_cuda and last["cuda_rng"] is not None:
                torch.cuda.set_rng_state(last["cuda_rng"], self.device)

    def _expect_equal_ranks(self) -> None:
        run = self.recipe.run
        self.ranks.expect_equal(
            {
                "recipe": self.recipe.result_fields(),
                "data": self.plan.dataset.digest(),
                "step": self.step,
                # What follows decides when processes wait for each other, and what scales their gradients.
                "--accumulate": run.accumulate,
                "--checkpoint-activations": run.checkpoint_activations,
                "--compile": run.compile,
                "--log-every": run.log_every,
                "--patience": run.patience,
                "precision": str(self.amp),
            }
        )

    def _joined(self) -> tuple[Any, Any]:
        """The model as the steps call it, and the context of a part whose gradients stay in the process."""
        run, alone = self.recipe.run, self.ranks.alone
        if run.checkpoint_activations:
            self.model.checkpoint_activations()
        network: Any = self.model
        unsynchronised: Any = contextlib.nullcontext
        if not alone:
            network = DistributedDataParallel(self.model, [self.device] if self.on_cuda else None)
            network.broadcast_buffers = False  # here, as newer versions of torch warn of the argument
            unsynchronised = network.no_sync
        if run.compile:
            network = torch.compile(network)
        return network, unsynchronised

    def _announce(self, more: list[str]) -> None:
        """On screen and in the log: what is going to happen."""
        plan = self.plan
        for line in advice.announcement(plan, self.device, self.ranks.size, self.amp, self.workers) + more:
            self.say(line)
        if self.step:
            last = self.out / "last.pt"
            self.say(f"resuming {last} at step {self.step} of {plan.total_steps} (--no-resume starts anew)")
        self.folder.log(
            kind="run",
            step=self.step,
            data=plan.dataset.digest(),
            device=device_name(self.device),
            root=str(plan.root),
            train_images=len(plan.dataset.train),
            train_objects=plan.tiles.objects_by_class(),
            left_out=plan.dataset.left_out,
            total=plan.total_steps,
            **self.recipe.result_fields(),
        )

    # ---- run --------------------------------------------------------------------------------------------

    def run(self) -> int:
        """All steps that are left; the exit code (see `train`)."""
        try:
            with advice.told_errors(self.plan, self._worker_lost, self.ranks.lost):
                halt = self._steps()
        finally:
            if self.loader is not None:
                self.loader.close()
            self.bar.close()
            self.folder.close()
            self.stop.restore()
        if halt:
            return 128 + halt if halt != TIME_IS_UP else 0
        said = f", mAP {100 * self.best_map:.1f}" if self.best_map >= 0 else ""
        self.say(f"{self.step} of {self.plan.total_steps} steps done; detector: {self.out / 'best.pt'}{said}")
        return 0

    def _steps(self) -> int:
        """To the end (0), or to a halt: the signal, or `TIME_IS_UP`."""
        plan, run, ranks = self.plan, self.recipe.run, self.ranks
        if self.step == 0 and ranks.first:
            self._show_tiles()
        self._catch_up()
        size = self.recipe.schedule.batch
        keys = batch_keys(plan.tiles, size, self.step, plan.total_steps, ranks.rank, ranks.size)
        loader = self.loader = Loader(
            plan.tiles, keys, self.model.assigner, self.workers, pin_memory=self.on_cuda
        )
        interval = _Interval()
        saved = time.monotonic()
        halt = 0  # why to stop, once all processes have agreed on it
        while self.step < plan.total_steps and not self._out_of_patience():
            overdue = int(0 < run.checkpoint_minutes <= (time.monotonic() - saved) / 60)
            halt, overdue = ranks.greatest(self.stop.now(), overdue)
            if halt:
                break
            if overdue:
                self.save_last()
                saved = time.monotonic()
            with interval.waiting():
                batch = next(loader)
                with ranks.together(ERRORS):
                    if isinstance(batch, Exception):
                        raise batch
                assert isinstance(batch, Batch)
                batch = batch.to(self.device)
            shown = self._learn(batch)

            interval.steps += 1
            for name, value in shown.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
            self.sums["steps"] = self.sums.get("steps", 0.0) + 1
            self.bar.set_postfix(loss=f"{shown['loss']:.3f}", wait=f"{self.waiting.share:.0%}", refresh=False)
            self.bar.update()
            if self.step % run.log_every == 0 or self.step == plan.total_steps:
                self._log_steps(interval)
            due = self._evaluation_is_due()
            if due or self.step % plan.steps_per_epoch == 0 or self.step == plan.total_steps:
                self.save_last()  # and so before the first best.pt
                saved = time.monotonic()
            if due:
                self.evaluate()
                interval.restart()
        [halt] = ranks.greatest(halt or self.stop.now())
        unfinished = self.step < plan.total_steps or self._evaluation_is_due()
        return self._halt(halt) if halt and unfinished else self._end()

    def _show_tiles(self) -> None:
        """The first tiles with their labels, as they are learned from: wrong ones are seen there."""
        tiles = copy.copy(self.plan.tiles)  # with a cache of its own, which ends here
        chosen = [tiles[0, index] for index in tiles.order(0)[: SHOWN_COLUMNS**2].tolist()]
        seen = [(one.image, one.boxes, one.labels) for one in chosen if isinstance(one, Tile)]
        if seen:  # an error is told where the tile is due
            sheet = draw.sheet(seen, self.plan.spec.classes, SHOWN_COLUMNS)
            self.folder.keep("tiles.jpg", sheet)
            self.folder.show("train/tiles", sheet, 0)
            self.say(f"tiles as they are learned from, with their labels: {self.out / 'tiles.jpg'}")

    def _worker_lost(self) -> bool:
        return self.loader is not None and self.loader.lost()

    def _catch_up(self) -> None:
        """What a kill left undone after the last step that last.pt holds: its evaluation, or the page."""
        if self._evaluation_is_due():
            self.evaluate()
            return
        finished = self.plan.evaluating and self.step == self.plan.total_steps
        if finished and self.ranks.first and page.is_behind(self.out):
            self._draw_page()

    def _out_of_patience(self) -> bool:
        return 0 < self.recipe.run.patience <= self.without_better

    def _draw_page(self, evaluation: Evaluation | None = None) -> None:
        if self.ranks.first:
            self.say(page.draw(self.out, evaluation))

    def _halt(self, halt: int) -> int:
        """Save, so that the same command goes on from here."""
        self.save_last()
        self.bar.close()
        self._draw_page()
        self.say(
            f"stopped at step {self.step} of {self.plan.total_steps} by {reason(halt)}; "
            "the same command goes on from there"
        )
        return halt

    def _end(self) -> int:
        """All steps are done, or better ones are not to be expected."""
        if self._out_of_patience() and self.step < self.plan.total_steps:
            self.say(
                f"no better mAP in {self.without_better} evaluations (--patience); the same command without "
                "it goes on"
            )
        if not self.plan.evaluating:  # the last weights are the best known
            self._save("best.pt", result={"step": self.step})
            self._draw_page()
        return 0

    # ---- step -------------------------------------------------------------------------------------------

    def _learn(self, batch: Batch) -> dict[str, float]:
        """One step. The losses and the gradient's norm, over all processes."""
        recipe, ranks = self.recipe, self.ranks
        rate = learning_rate(self.step, self.plan.steps_per_epoch, recipe.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimizer.zero_grad(set_to_none=True)
        parts = batch.split(recipe.run.accumulate)
        normalisers = self._normalisers(parts) if len(parts) > 1 else None
        totals: dict[str, Tensor] = {}
        for number, part in enumerate(parts, 1):
            # Gradients add up here and meet those of the other processes with the last part.
            with self.unsynchronised() if number < len(parts) else contextlib.nullcontext():
                raw = self._forward(part)
                if normalisers is None and not ranks.alone:  # the other images are on other processes
                    normalisers = ranks.total(self.model.normalisers(raw, part.targets))
                losses = self.model.losses(raw, part.targets, normalisers)  # float32
                # Over the processes these add up to the losses of the batch, but of gradients
                # DistributedDataParallel takes the mean.
                losses = {name: value * ranks.size for name, value in losses.items()}
                loss = torch.stack(list(losses.values())).sum()
                with statistics_kept(self.model):  # checkpointed activations pass BatchNorm again
                    self.scaler.scale(loss).backward()
            for name, value in {"loss": loss, **{f"loss_{k}": v for k, v in losses.items()}}.items():
                totals[name] = totals[name] + value.detach() if name in totals else value.detach()
        self.scaler.unscale_(self.optimizer)
        limit = recipe.schedule.clip_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit, foreach=True)

        # Before the scaler moves it, and without the wait of `get_scale`. (FP16's scaler itself waits for the
        # gradients: it skips what overflows.)
        factor = self.scaler.scale(torch.ones_like(norm))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema:
            self.ema.move(min(recipe.schedule.ema, (self.step + 1) / (self.step + 11)))

        # One transfer from the device for everything that is looked at, after all of the step is launched.
        # What is not finite has then spoilt the weights, and the run ends here: these are never saved.
        # Gradients, and so their norm, are those of the whole batch already; of the losses each process has
        # its share, times their number.
        *values, scale = ranks.mean(torch.stack([*totals.values(), norm, factor])).tolist()
        shown = dict(zip([*totals, "grad_norm"], values, strict=True))
        self._expect_finite(shown, scale, rate, batch.names)
        self.step += 1
        return shown

    def _expect_finite(self, shown: dict[str, float], scale: float, rate: float, names: list[str]) -> None:
        """Stop before spoilt weights are saved. An infinite norm is none of them where FP16's scaler skipped
        the step and will take a smaller factor."""
        skipped = self.scaler.is_enabled() and scale >= LEAST_SCALE
        looked_at = {name: value for name, value in shown.items() if not (skipped and name == "grad_norm")}
        if bad := [name for name, value in looked_at.items() if not math.isfinite(value)]:
            values = ", ".join(f"{name} {value:g}" for name, value in shown.items())
            names = [name for share in self.ranks.gather(names) for name in share]  # all see the same values
            half = "give --amp off, " if self.amp == torch.float16 else ""
            raise (TrainingError if self.ranks.alone else SharedError)(
                f"step {self.step}: {', '.join(bad)} not finite ({values}) at learning rate {rate:g} on "
                f"images {', '.join(sorted(set(names)))}; lower --lr or --clip-norm, {half}or look at "
                "their labels"
            )

    def _forward(self, part: Batch) -> Raw:
        images = self.model.normalise(part.images).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None):
            return self.network(images)

    @torch.no_grad()
    def _normalisers(self, parts: list[Batch]) -> Tensor:
        """What the losses of all parts are divided by: sums over the whole batch, parts and processes."""
        with statistics_kept(self.model):
            sums = [
                self.model.normalisers(
                    # gfl weighs its points by their scores; counting points alone needs no network.
                    self._forward(part) if self.model.config.mode == "gfl" else None,
                    part.targets,
                )
                for part in parts
            ]
        return self.ranks.total(torch.stack(sums).sum(0))

    def _log_steps(self, interval: _Interval) -> None:
        """The means since the last line of the log."""
        steps = self.sums.pop("steps")
        averages = {name: value / steps for name, value in self.sums.items()}
        seconds = interval.seconds
        facts = {
            "step_s": round(seconds / interval.steps, 4),
            "data_wait_s": round(interval.waited / interval.steps, 4),
            "memory_mb": self.ranks.greatest(peak_memory_mb(self.device))[0],
        }
        per_epoch = self.plan.steps_per_epoch
        rate = learning_rate(self.step - 1, per_epoch, self.recipe.schedule)  # of the step just done
        epoch = round(self.step / per_epoch, 4)
        self.folder.log(kind="step", step=self.step, epoch=epoch, lr=rate, **averages, **facts)
        self.folder.plot("train", {"lr": rate, **averages, **facts}, self.step)
        if warning := self.waiting.warning(interval.waited, seconds, interval.steps):
            self.say(f"warning: {warning}")
        self.sums.clear()
        interval.restart()

    # ---- evaluate ---------------------------------------------------------------------------------------

    def _evaluation_is_due(self) -> bool:
        regular = self.step % self.plan.steps_between_evaluations == 0 or self.step == self.plan.total_steps
        return self.plan.evaluating and self.step > self.evaluated_at and regular

    def evaluate(self) -> None:
        """AP of the running mean at this step; keeps best.pt. Each process looks at its share of images."""
        plan, before = self.plan, time.monotonic()
        self.ranks.copy_buffers(self.ema_model)
        with self.ranks.together(ERRORS):
            share = self._found_in_share()
        if self.ranks.any(share is None) or share is None:
            return
        found = self.ranks.merge(share)
        measured: Evaluation | None = None
        with self.ranks.together(ERRORS):
            if self.ranks.first:
                result = score(found, plan.val, plan.spec, plan.dataset.left_out)
                measured = Evaluation(self.step, result, plan.val, found)
        values = self.ranks.gather(_means(measured))[0]
        self.without_better += 1
        if values["map"] > self.best_map:
            self.best_map, self.without_better = values["map"], 0
            self._save("best.pt", result={**values, "step": self.step})
        seconds = time.monotonic() - before
        if measured is not None:
            figures = page.figures(measured.result)
            self.folder.log(kind="eval", step=self.step, seconds=round(seconds, 2), **figures)
            self.folder.plot("val", values, self.step)
            self.folder.plot("val_ap50", figures["classes"], self.step)
            for picture in evenly(plan.val, self.recipe.run.pictures):
                drawn = over_labels(picture, found[picture.name], plan.spec.classes)
                self.folder.show(f"val/{picture.name}", drawn, self.step)
        self.evaluated_at = self.step
        self.save_last()
        if measured is not None:
            epoch = self.step / plan.steps_per_epoch
            line = advice.result_line(epoch, values, len(plan.val), measured.result.unit, seconds)
            self.say(line + ("  (best)" if self.best_map == values["map"] else ""))
            self._draw_page(measured)

    def _found_in_share(self) -> dict[str, Detections] | None:
        """What is found in this process's share of the images; None where a signal came in between."""
        config = self.recipe.evaluation
        try:
            spec, pictures = self.plan.spec, self.ranks.share(self.plan.val)
            return find(self.ema_model.predict, pictures, spec, config, lambda: bool(self.stop.signal))
        except torch.OutOfMemoryError as error:
            raise advice.out_of_memory_evaluating(config.test_batch) from error

    # ---- save -------------------------------------------------------------------------------------------

    def save_last(self) -> None:
        """last.pt, from which the same command goes on."""
        self._save(
            "last.pt",
            training={
                "recipe": self.recipe.result_fields(),
                "data": self.plan.dataset.digest(),
                "step": self.step,
                "evaluated": self.evaluated_at,
                "best": self.best_map,
                "without_better": self.without_better,
                "sums": self.sums,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state(self.device) if self.on_cuda else None,
            },
        )

    def _save(self, name: str, **more: Any) -> None:
        with self.ranks.together(ERRORS):
            self.folder.save(name, self.plan.spec, self.recipe, self.ema_model, **more)


# ---- the parts of the set-up ------------------------------------------------------------------------------


def _expect_parts(recipe: Recipe, processes: int, on_cuda: bool) -> None:
    """Raise where a batch has no equal parts, or BatchNorm would get a single value of each channel."""
    model, batch, size = recipe.model, recipe.schedule.batch, recipe.data.tile_size
    accumulate = recipe.run.accumulate
    if batch % (processes * accumulate):
        raise TrainingError(
            f"--batch {batch}: tiles a step over all processes; expected a multiple of "
            f"{processes * accumulate} for {processes} processes and --accumulate {accumulate}"
        )
    tiles = batch // accumulate // (1 if on_cuda else processes)
    cells = size // DetectorSpec.strides[-1]
    if model.head_norm == "batch" and model.head_convs and tiles * cells**2 == 1:
        raise TrainingError(
            f"--batch {batch}: one tile of --tile-size {size} at a time gives the coarsest level a single "
            "cell, too little for BatchNorm; use a larger --batch or --tile-size, a smaller --accumulate, "
            "fewer processes, or --head-norm group"
        )


def _build_model(
    recipe: Recipe, spec: DetectorSpec, last: dict[str, Any] | None
) -> tuple[Detector, list[str]]:
    """The detector with the weights it begins with, and what to say about them."""
    try:
        # A resumed run gets its weights from last.pt, so those of ImageNet need not be there any more.
        config = recipe.model if last is None else last["model_config"]
        begins = recipe.schedule.start if last is None else ""
        if begins:
            config = dataclasses.replace(config, pretrained=False, weights="")
        model = build_detector(config, spec)
    except WeightsError:
        raise
    except ValueError as error:
        raise TrainingError(f"the model cannot be built: {error}") from error
    if not begins:
        if not (config.pretrained or config.weights):
            return model, []
        seen = dataclasses.replace(spec, **model.backbone.normalisation())
        return model, advice.seen_otherwise(f"backbone {config.backbone}", seen, spec)
    anew, before = checkpoint.start_from(model, begins)
    more = f", and {len(anew) - 4} more" if len(anew) > 4 else ""
    said = f"; begin anew: {', '.join(anew[:4])}{more}" if anew else ""
    return model, [
        f"starting from {begins}, {len(model.state_dict()) - len(anew)} tensors{said}",
        *advice.seen_otherwise(begins, before, spec),
    ]


def _optimizer(model: Detector, schedule: ScheduleConfig) -> torch.optim.Optimizer:
    """One group for each pair of learning-rate factor and weight decay that occurs."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = schedule.backbone_lr if name.startswith("backbone.") else 1.0
            decay = schedule.weight_decay if schedule.decay_norms or parameter.ndim > 1 else 0.0
            groups.setdefault((factor, decay), []).append(parameter)
    settings = [
        {"params": parameters, "factor": factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]
    if schedule.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=schedule.lr, momentum=schedule.momentum)
    return torch.optim.AdamW(settings, lr=schedule.lr, betas=(schedule.momentum, 0.999))


def _workers(on_cuda: bool, processes: int) -> int:
    """A GPU needs as many tiles as half the cores make; a CPU that trains has one core to spare at most."""
    cores = max(1, usable_cores() // processes)  # all processes of a machine share its cores
    return min(8, max(1, cores // 2)) if on_cuda else min(1, cores - 1)


# ---- the parts of a step ----------------------------------------------------------------------------------


class _Ema:
    """mean ← decay·mean + (1 − decay)·model of all weights and statistics; counters and the like are copied.

    Its tensors are found once: asking both modules for them takes milliseconds, while a GPU waits.
    """

    def __init__(self, mean: nn.Module, model: nn.Module) -> None:
        ours, theirs = mean.state_dict(), model.state_dict()
        floats = [name for name, value in ours.items() if value.is_floating_point()]
        others = [name for name in ours if name not in floats]
        self._floats = [ours[name] for name in floats], [theirs[name] for name in floats]
        self._others = [ours[name] for name in others], [theirs[name] for name in others]

    @torch.no_grad()
    def move(self, decay: float) -> None:
        torch._foreach_lerp_(*self._floats, 1 - decay)
        if self._others[0]:
            torch._foreach_copy_(*self._others)


def _means(measured: Evaluation | None) -> dict[str, float]:
    if measured is None:
        return {}
    result = measured.result
    return {key: getattr(result, key) for key in MEANS}


# ---- time -------------------------------------------------------------------------------------------------


class _Interval:
    """The time between two lines of the log."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._began = time.monotonic()
        self.waited = 0.0  # seconds, for tiles
        self.steps = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """What passes inside is time spent waiting for tiles."""
        before = time.monotonic()
        yield
        self.waited += time.monotonic() - before


def _say_nothing(_text: str) -> None:
    pass
