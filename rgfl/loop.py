"""The training loop, to be read from top to bottom; its command line is rgfl/train.py.

A run is a function of (recipe, data): the sample order and every random choice about a tile come from
(seed, epoch, index), so the number of the step is all that a resume needs besides the state of the weights
and the optimiser. Killed at any moment, the same command repeats the steps since the last write of
last.pt, and log.jsonl ends up as if nothing had happened.

Nor does it matter who computes a step. It may be cut into parts (--accumulate) and shared by processes
(torchrun): losses are sums over tiles divided by sums over the whole batch, and gradients add up. BatchNorm
that trains and --fake-int8 are the exceptions, and a warning says so.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import errno
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from rgfl import checkpoint, page
from rgfl.atomic import write_text
from rgfl.checkpoint import CheckpointError
from rgfl.data import Batch, DataError, Dataset, Loader, Tiles, batches, read_dataset, steps_per_epoch
from rgfl.dota.images import ImageError
from rgfl.dota.labels import LabelError
from rgfl.nn.backbone import WeightsError
from rgfl.nn.batchnorm import statistics_kept, synchronise, training_batchnorms
from rgfl.nn.decode import Raw
from rgfl.nn.detector import Detector, build_detector
from rgfl.nn.fake_int8 import fake_int8
from rgfl.nn.loss import summed_over_replicas
from rgfl.ranks import Ranks, SharedError, local_rank
from rgfl.recipes import Recipe, ScheduleConfig, learning_rate
from rgfl.seen import Evaluation
from rgfl.spec import DetectorSpec, SpecError
from rgfl.validate import draw, find, score, without_truth

# A greater share of the time spent waiting for tiles is told once, with what helps.
WAITING_SHARE = 0.05
# Under FP16 the scaler halves its factor at each gradient that is not finite, and skips the step. Where the
# gradients as they are do not fit either, the fault is another, and every further step would be skipped too.
LEAST_SCALE = 1.0


class TrainingError(ValueError):
    """The run cannot go on; one line that says why and what to do."""


# What `main` prints as one line; anything else is a bug and shows its traceback.
ERRORS = (
    TrainingError,
    SharedError,
    DataError,
    LabelError,
    ImageError,
    CheckpointError,
    WeightsError,
    SpecError,
    FileNotFoundError,
)


def train(recipe: Recipe, root: Path, out: Path, classes: str = "", resume: bool = True) -> int:
    """Train to the end of the schedule, or until Ctrl-C, SIGTERM or --max-minutes.

    Under torchrun every process calls this with the same arguments.

    Returns:
        0, or 128 + the signal that stopped the run; last.pt is up to date either way.
    """
    started = time.monotonic()
    device = choose_device(recipe.run.device)
    with Ranks(device) as ranks:
        return _train(recipe, root, out, classes, resume, device, ranks, started)


def _train(
    recipe: Recipe,
    root: Path,
    out: Path,
    classes: str,
    resume: bool,
    device: torch.device,
    ranks: Ranks,
    started: float,
) -> int:
    schedule, run = recipe.schedule, recipe.run
    evaluating = recipe.evaluation.eval_every > 0
    on_cuda = device.type == "cuda"
    say = _say if ranks.first else _say_nothing
    if schedule.batch % (ranks.size * run.accumulate):
        raise TrainingError(
            f"--batch {schedule.batch}: tiles a step over all processes; expected a multiple of "
            f"{ranks.size * run.accumulate} for {ranks.size} processes and --accumulate {run.accumulate}"
        )
    if run.threads:
        torch.set_num_threads(run.threads)
    torch.manual_seed(schedule.seed)

    with ranks.together(ERRORS):
        # --- data
        dataset = read_dataset(root, classes, with_val=evaluating)
        spec = recipe.spec(dataset.classes)
        tiles = Tiles(
            dataset.train, dataset.classes, recipe.data, recipe.augment, schedule.seed, run.cache_mb
        )
        per_epoch = steps_per_epoch(len(tiles), schedule.batch)
        total = max(1, round(schedule.epochs * per_epoch))
        evaluation_steps = max(1, round(recipe.evaluation.eval_every * per_epoch)) if evaluating else total
        val = dataset.val[: recipe.evaluation.eval_images or None]

        # --- model
        amp = _mixed_precision(schedule.amp, device)
        last = _read_last(out, recipe, dataset) if resume else None
        try:
            # A resumed run gets its weights from last.pt, so those of ImageNet need not be there any more.
            config = recipe.model if last is None else last["model_config"]
            begins = schedule.start if last is None else ""
            if begins:
                config = dataclasses.replace(config, pretrained=False, weights="")
            model = build_detector(config, spec)
        except WeightsError:
            raise
        except ValueError as error:
            raise TrainingError(f"the model cannot be built: {error}") from error
        anew = checkpoint.start_from(model, begins) if begins else []
    if schedule.fake_int8:
        fake_int8(model)
    model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    mean = copy.deepcopy(model).eval() if schedule.ema else model  # what is evaluated and deployed
    optimizer = _optimizer(model, schedule)
    scaler = torch.amp.GradScaler("cuda", enabled=amp is torch.float16)
    if on_cuda:
        torch.backends.cudnn.benchmark = True

    # --- where to begin
    step, evaluated, best = 0, 0, -1.0
    sums: dict[str, float] = {}  # of the losses since the last line of the log
    if last is not None:
        step, evaluated, best, sums = last["step"], last["evaluated"], last["best"], last["sums"]
        model.load_state_dict(last["model"])
        mean.load_state_dict(last["weights"])
        optimizer.load_state_dict(last["optimizer"])
        if last["scaler"]:  # {} after a device without fp16
            scaler.load_state_dict(last["scaler"])
        torch.set_rng_state(last["rng"])
        if on_cuda and last["cuda_rng"] is not None:
            torch.cuda.set_rng_state(last["cuda_rng"], device)
        del last
    ranks.expect_equal(
        {
            "recipe": recipe.result_fields(),
            "data": dataset.digest(),
            "step": step,
            # What follows decides when processes wait for each other, and what their gradients are scaled by.
            "--accumulate": run.accumulate,
            "--checkpoint-activations": run.checkpoint_activations,
            "--compile": run.compile,
            "--log-every": run.log_every,
            "precision": str(amp),
        }
    )

    # --- how a step is computed
    warnings = recipe.warnings()
    if evaluating and (absent := without_truth(val, spec)):
        warnings.append(
            f"val has no object that counts of {', '.join(absent)}: AP 0 in the means, by the official rule"
        )
    if large := tiles.too_large_for_the_cache():
        size = 3e-6 * large[0].height * large[0].width
        warnings.append(
            f"{len(large)} of the images do not fit into --cache-mb {run.cache_mb}, such as {large[0].name} "
            f"with {size:.1f} MB: each is decoded anew for every window; cut them first, by rgfl.dota.tiling"
        )
    if training_batchnorms(model) and not ranks.alone:
        if on_cuda:
            synchronise(model)
        else:
            warnings.append(
                f"BatchNorm sees the {schedule.batch // ranks.size} tiles of one process, and on CPUs "
                "nothing joins their statistics: not the result of one process; --head-norm group with "
                "--norm-eval needs no joining"
            )
    if training_batchnorms(model) and run.accumulate > 1:
        warnings.append(
            f"BatchNorm sees one of --accumulate {run.accumulate} parts at a time: not the result of the "
            "whole batch at once; --head-norm group with --norm-eval has no such statistics"
        )
    if schedule.fake_int8 and (run.accumulate > 1 or not ranks.alone):
        warnings.append(
            "--fake-int8 rounds each part of a batch on a grid of its own: not quite the result of the whole "
            "batch at once"
        )
    if run.checkpoint_activations:
        model.checkpoint_activations()
    network: Any = model
    if not ranks.alone:
        network = DistributedDataParallel(model, [device] if on_cuda else None)
        network.broadcast_buffers = False  # here, as newer versions of torch warn of the argument
    unsynchronised = contextlib.nullcontext if ranks.alone else network.no_sync
    if run.compile:
        network = torch.compile(network)

    def forward(part: Batch) -> Raw:
        images = model.normalise(part.images).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=amp, enabled=amp is not None):
            return network(images)

    # --- what is written, by the first process alone
    log: TextIO | None = None
    with ranks.together(ERRORS):
        if ranks.first:
            try:
                out.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise TrainingError(f"--out {out}: cannot be made a folder: {error.strerror}") from error
            try:
                log = _open_log(out, step, evaluated)
            except OSError as error:
                raise TrainingError(f"--out {out}: cannot be written to: {error.strerror}") from error
    workers = run.workers if run.workers >= 0 else _workers(on_cuda, ranks.local_size)
    say(
        f"{recipe.name}: {len(dataset.classes)} classes, {len(dataset.train)} + {len(dataset.val)} images, "
        f"{len(tiles)} windows of {recipe.data.tile_size}², batch {schedule.batch}: {total} steps of "
        f"{schedule.epochs:g} epochs on {'' if ranks.alone else f'{ranks.size} × '}{_name(device)}, "
        f"{str(amp or torch.float32)[6:]}, {workers} workers"
    )
    for warning in warnings:
        say(f"warning: {warning}")
    if begins:
        more = f", and {len(anew) - 4} more" if len(anew) > 4 else ""
        said = f"; begin anew: {', '.join(anew[:4])}{more}" if anew else ""
        say(f"starting from {begins}, {len(model.state_dict()) - len(anew)} tensors{said}")
    if step:
        say(f"resuming {out / 'last.pt'} at step {step} of {total} (--no-resume starts anew)")
    facts = {"root": str(root), "train_images": len(dataset.train), "total": total}
    _write(
        log,
        kind="run",
        step=step,
        data=dataset.digest(),
        device=_name(device),
        **facts,
        **recipe.result_fields(),
    )
    board = SummaryWriter(out / "tensorboard", purge_step=step + 1) if ranks.first else None
    stop = _Stop(run.max_minutes, started)

    def save(name: str, **more: Any) -> None:
        with ranks.together(ERRORS):
            if ranks.first:
                _save(out / name, spec, recipe, mean, **more)

    def save_last() -> None:
        save(
            "last.pt",
            training={
                "recipe": recipe.result_fields(),
                "data": dataset.digest(),
                "step": step,
                "evaluated": evaluated,
                "best": best,
                "sums": sums,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict(),
                "rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state(device) if on_cuda else None,
            },
        )

    def evaluate() -> None:
        """AP of the running mean at this step; keeps best.pt. Each process looks at its share of images."""
        nonlocal evaluated, best
        before = time.monotonic()
        ranks.copy_buffers(mean)
        with ranks.together(ERRORS):
            share = find(mean.predict, ranks.share(val), spec, recipe.evaluation, lambda: bool(stop.signal))
        if ranks.any(share is None) or share is None:
            return
        found = ranks.merge(share)
        values: dict[str, float] = {}
        with ranks.together(ERRORS):
            if ranks.first:
                result = score(found, val, spec)
                values = {"ap50": result.ap50, "ap75": result.ap75, "map": result.map}
        values = ranks.gather(values)[0]
        if values["map"] > best:
            best = values["map"]
            save("best.pt", result={**values, "step": step})
        seconds = round(time.monotonic() - before, 2)
        if board is not None:
            _write(log, kind="eval", step=step, seconds=seconds, **page.figures(result))
            for name, value in values.items():
                board.add_scalar(f"val/{name}", value, step)
            for picture in val[: run.pictures]:
                image = draw(picture, found[picture.name], spec.classes)
                board.add_image(f"val/{picture.name}", image, step, dataformats="HWC")
        evaluated = step
        save_last()
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        say(
            f"epoch {step / per_epoch:g}: {shown} on {len(val)} full images in {seconds:.0f} s"
            f"{'  (best)' if best == values['map'] else ''}"
        )
        if ranks.first:
            say(page.draw(out, Evaluation(step, result, val, found)))

    # --- the loop
    def due() -> bool:
        return evaluating and step > evaluated and (step % evaluation_steps == 0 or step == total)

    loader: Loader | None = None
    halt = 0  # why to stop, once all processes have agreed on it
    saved = time.monotonic()
    waiting = _Waiting(workers)
    bar = tqdm(
        total=total, initial=step, unit="step", dynamic_ncols=True, smoothing=0.1, disable=not ranks.first
    )
    try:
        if due():  # killed between the last step of an epoch and its evaluation
            evaluate()
        keys = batches(len(tiles), schedule.batch, schedule.seed, step, total, ranks.rank, ranks.size)
        loader = Loader(tiles, keys, workers, pin_memory=on_cuda)
        interval, waited, counted = time.monotonic(), 0.0, 0
        while step < total:
            overdue = int(0 < run.checkpoint_minutes <= (time.monotonic() - saved) / 60)
            halt, overdue = ranks.greatest(stop.now(), overdue)
            if halt:
                break
            if overdue:
                save_last()
                saved = time.monotonic()
            before = time.monotonic()
            batch = next(loader)
            with ranks.together(ERRORS):
                if isinstance(batch, Exception):
                    raise batch
            assert isinstance(batch, Batch)
            batch = batch.to(device)
            waited += time.monotonic() - before

            rate = learning_rate(step, per_epoch, schedule)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            optimizer.zero_grad(set_to_none=True)
            parts = batch.split(run.accumulate)
            normalisers = _normalisers(model, forward, parts) if len(parts) > 1 else None
            totals: dict[str, Tensor] = {}
            for number, part in enumerate(parts, 1):
                # Gradients add up here and meet those of the other processes with the last part.
                with unsynchronised() if number < len(parts) else contextlib.nullcontext():
                    losses = model.losses(forward(part), part.boxes, part.labels, normalisers)  # float32
                    loss = torch.stack(list(losses.values())).sum()
                    with statistics_kept(model):  # checkpointed activations pass BatchNorm again
                        scaler.scale(loss).backward()
                for name, value in {"loss": loss, **{f"loss_{k}": v for k, v in losses.items()}}.items():
                    totals[name] = totals[name] + value.detach() if name in totals else value.detach()
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(model.parameters(), schedule.clip_norm or math.inf, foreach=True)

            # One transfer from the device for everything that is looked at. Gradients, and so their norm, are
            # those of the whole batch already; of the losses each process has its share.
            values = ranks.mean(torch.stack([*totals.values(), norm])).tolist()
            shown = dict(zip([*totals, "grad_norm"], values, strict=True))
            mending = scaler.is_enabled() and scaler.get_scale() >= LEAST_SCALE
            _check_finite(step, shown, rate, batch.names, mending, ranks)
            scaler.step(optimizer)
            scaler.update()
            step += 1
            if mean is not model:
                _move_mean(mean, model, min(schedule.ema, step / (step + 10)))

            counted += 1
            for name, value in shown.items():
                sums[name] = sums.get(name, 0.0) + value
            sums["steps"] = sums.get("steps", 0.0) + 1
            bar.set_postfix(loss=f"{shown['loss']:.3f}", wait=f"{waiting.share:.0%}", refresh=False)
            bar.update()
            if step % run.log_every == 0 or step == total:
                steps = sums.pop("steps")
                averages = {name: value / steps for name, value in sums.items()}
                seconds = time.monotonic() - interval
                facts = {
                    "step_s": round(seconds / counted, 4),
                    "data_wait_s": round(waited / counted, 4),
                    "memory_mb": ranks.greatest(_peak_memory_mb(device))[0],
                }
                epoch = round(step / per_epoch, 4)
                _write(log, kind="step", step=step, epoch=epoch, lr=rate, **averages, **facts)
                if board is not None:
                    for name, value in {"lr": rate, **averages, **facts}.items():
                        board.add_scalar(f"train/{name}", value, step)
                if warning := waiting.warning(waited, seconds, counted):
                    say(f"warning: {warning}")
                sums.clear()
                interval, waited, counted = time.monotonic(), 0.0, 0

            if step % per_epoch == 0 or step == total:
                save_last()
                saved = time.monotonic()
            if due():
                evaluate()
                interval, waited, counted = time.monotonic(), 0.0, 0
        [halt] = ranks.greatest(halt or stop.now())
        if halt and (step < total or due()):
            save_last()
            bar.close()
            if ranks.first:
                say(page.draw(out))
            say(f"stopped at step {step} of {total} by {_reason(halt)}; the same command goes on from there")
            return 128 + halt if halt != TIME_IS_UP else 0
        if not evaluating:  # the last weights are the best known
            save("best.pt", result={"step": step})
            if ranks.first:
                say(page.draw(out))
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"out of GPU memory with --batch {schedule.batch} tiles of --tile-size {recipe.data.tile_size}; "
            "try --accumulate, --checkpoint-activations or --amp bf16, or lower one of them"
        ) from error
    except (RuntimeError, ConnectionError, EOFError) as error:  # a worker's end is found in many ways
        if loader is not None and loader.lost():
            raise TrainingError(
                f"a process that prepares tiles has ended ({' '.join(str(error).split())}): was there no "
                "memory left? Use fewer --workers, a smaller --cache-mb, or cut the images with "
                "rgfl.dota.tiling; the same command goes on from last.pt"
            ) from error
        if not ranks.lost(error):
            raise
        raise TrainingError("another process of this run has ended; its own lines say why") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise TrainingError(
            f"{out}: {error.strerror}; with room made, the same command goes on from last.pt"
        ) from error
    finally:
        if loader is not None:
            loader.close()
        bar.close()
        for written in (board, log):
            with contextlib.suppress(OSError):  # what could not be written has been told
                if written is not None:
                    written.close()
        stop.restore()
    said = f", mAP {best:.4f}" if best >= 0 else ""
    say(f"{step} steps done; detector: {out / 'best.pt'}{said}")
    return 0


# -------------------------------------------------------------------------------------------- its parts


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


@torch.no_grad()
def _normalisers(model: Detector, forward: Callable[[Batch], Raw], parts: list[Batch]) -> Tensor:
    """What the losses of all parts are divided by: sums over the whole batch, parts and processes."""
    with statistics_kept(model):
        sums = [
            model.normalisers(
                # gfl weighs its points by their scores; counting points alone needs no network.
                forward(part) if model.config.mode == "gfl" else None,
                part.boxes,
                (part.images.shape[1], part.images.shape[2]),
            )
            for part in parts
        ]
    return summed_over_replicas(torch.stack(sums).sum(0))


@torch.no_grad()
def _move_mean(mean: nn.Module, model: nn.Module, decay: float) -> None:
    """mean ← decay·mean + (1 − decay)·model; counters and the like are copied."""
    ours, theirs = mean.state_dict(), model.state_dict()
    floats = [name for name, value in ours.items() if value.is_floating_point()]
    torch._foreach_lerp_([ours[name] for name in floats], [theirs[name] for name in floats], 1 - decay)
    for name, value in ours.items():
        if not value.is_floating_point():
            value.copy_(theirs[name])


def _check_finite(
    step: int, parts: dict[str, float], rate: float, names: list[str], mending: bool, ranks: Ranks
) -> None:
    """Stop before the weights are spoilt. (`mending`: FP16's scaler skips the step and takes less.)"""
    looked_at = {name: value for name, value in parts.items() if not (mending and name == "grad_norm")}
    if bad := [name for name, value in looked_at.items() if not math.isfinite(value)]:
        values = ", ".join(f"{name} {value:g}" for name, value in parts.items())
        names = [name for share in ranks.gather(names) for name in share]  # all see the same values
        raise (TrainingError if ranks.alone else SharedError)(
            f"step {step}: {', '.join(bad)} not finite ({values}) at learning rate {rate:g} on images "
            f"{', '.join(sorted(set(names)))}; lower --lr or --clip-norm, or look at these images' labels"
        )


def _read_last(out: Path, recipe: Recipe, dataset: Dataset) -> dict[str, Any] | None:
    """What last.pt holds for this run, or None where there is none.

    Raises:
        TrainingError: it is of another recipe or other data.
    """
    path = out / "last.pt"
    if not path.is_file():
        return None
    record = checkpoint.load(path)
    state = record.get("training")
    if not isinstance(state, dict):
        raise TrainingError(
            f"{path}: holds a detector but no training state; use another --out, or --no-resume"
        )
    here, there = recipe.result_fields(), state["recipe"]
    if changed := [name for name in {**here, **there} if here.get(name) != there.get(name)]:
        shown = ", ".join(
            f"{name} was {there.get(name)!r} and is {here.get(name)!r}" for name in changed[:4]
        ) + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")
        raise TrainingError(
            f"{path} is of another recipe ({shown}): give the same flags, another --out, or --no-resume"
        )
    if state["data"] != dataset.digest():
        raise TrainingError(
            f"{path} was trained on other images, labels or classes: give the same data, another --out, or "
            "--no-resume"
        )
    from rgfl.nn.config import ModelConfig

    return {**state, "weights": record["weights"], "model_config": ModelConfig(**record["model"])}


def _save(path: Path, spec: DetectorSpec, recipe: Recipe, model: Detector, **more: Any) -> None:
    """Write a checkpoint.

    Raises:
        TrainingError: it cannot be written; the one before it is as it was.
    """
    try:
        checkpoint.save(path, spec, recipe.model, model.state_dict(), **more)
    except (OSError, RuntimeError) as error:
        # torch's writer reports a disk that is full as an error of its own, on top of the system's.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise TrainingError(
            f"{path}: cannot be written: {cause.strerror or cause}; the one before it is whole, so with room "
            "made the same command goes on from there"
        ) from error


def _open_log(out: Path, step: int, evaluated: int) -> TextIO:
    """log.jsonl for appending, without what came after the step from which we go on."""
    path = out / "log.jsonl"
    kept = []
    if step and path.is_file():
        for line in path.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line that was being written when the run was killed
            if record["step"] <= (evaluated if record["kind"] == "eval" else step):
                kept.append(line + "\n")
    write_text(path, "".join(kept))
    return open(path, "a", buffering=1)


def _write(log: TextIO | None, **record: Any) -> None:
    """A line; JSON knows no infinity, which FP16's gradients may have."""
    if log is not None:
        for name, value in record.items():
            if isinstance(value, float) and not math.isfinite(value):
                record[name] = None
        log.write(json.dumps({**record, "time": round(time.time(), 2)}, ensure_ascii=False) + "\n")


class _Waiting:
    """How much of the time goes into waiting for tiles; says once if it is too much."""

    SETTLED = 20  # steps: the first tiles wait for the workers to start

    def __init__(self, workers: int) -> None:
        self.share = 0.0
        self._workers, self._steps, self._told = workers, 0, False
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
            f"--workers (now {self._workers}), a larger --cache-mb, or cut the images with rgfl.dota.tiling"
        )


TIME_IS_UP = 1  # in place of a signal's number


def _reason(halt: int) -> str:
    return "--max-minutes" if halt == TIME_IS_UP else signal.Signals(halt).name


class _Stop:
    """Whether to stop after this step: Ctrl-C or SIGTERM (a second one stops at once), or the time is up."""

    def __init__(self, max_minutes: float, started: float) -> None:
        self.signal, self._received = 0, 0.0
        self._until = started + 60 * max_minutes if max_minutes else math.inf
        self._before = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._on_signal)
            except ValueError:  # not in the main thread: the caller handles signals
                break

    def _on_signal(self, number: int, _frame: object) -> None:
        # One Ctrl-C may come twice: from the terminal, and from torchrun, which passes it on.
        if self.signal and time.monotonic() > self._received + 1:
            raise KeyboardInterrupt
        if not self.signal:
            self.signal, self._received = number, time.monotonic()

    def now(self) -> int:
        """0 to go on, the signal, or `TIME_IS_UP`."""
        return self.signal or (TIME_IS_UP if time.monotonic() > self._until else 0)

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _workers(on_cuda: bool, processes: int) -> int:
    """A GPU needs as many tiles as half the cores make; a CPU that trains has one core to spare at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(1, cores // processes)  # all processes of a machine share its cores
    return min(8, max(1, cores // 2)) if on_cuda else min(1, cores - 1)


def choose_device(name: str) -> torch.device:
    """The device of this process: with several on a machine, each has a GPU of its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise TrainingError(f"--device: expected auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise TrainingError(
            f"--device {name}: torch {torch.__version__} sees no CUDA GPU here; use --device cpu"
        )
    if local_rank() and device.index is not None:
        raise TrainingError(f"--device {name}: several processes need a GPU each; use --device cuda")
    index = local_rank() if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise TrainingError(
            f"--device {name}: GPU {index} of a machine that has {torch.cuda.device_count()}; start no more "
            "processes than GPUs"
        )
    return torch.device("cuda", index)


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.get_num_threads()} threads)"


def _peak_memory_mb(device: torch.device) -> int:
    """On CUDA the tensors' peak since the last call; else this process's so far, workers not counted. MB."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return round(peak / 1e6)
    if sys.platform == "win32":
        return 0
    import resource  # Unix only

    unit = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)


def _mixed_precision(choice: str, device: torch.device) -> torch.dtype | None:
    if choice == "fp16" and device.type != "cuda":
        raise TrainingError("--amp fp16 needs a CUDA GPU; on CPUs use bf16 or off")
    if choice == "auto":
        if device.type != "cuda":
            return None
        # Not torch's `is_bf16_supported`: it says yes to older GPUs too, for which cuDNN has no convolution.
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[choice]


def _say(text: str) -> None:
    tqdm.write(text)


def _say_nothing(_text: str) -> None:
    pass
