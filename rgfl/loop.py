"""The training loop, to be read from top to bottom; its command line is rgfl/train.py.

A run is a function of (recipe, data): the sample order and every random choice about a tile come from
(seed, epoch, index), so the number of the step is all that a resume needs besides the state of the weights
and the optimiser. Killed at any moment, the same command repeats the steps since the last write of
last.pt, and log.jsonl ends up as if nothing had happened.
"""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from rgfl import checkpoint
from rgfl.atomic import write_text
from rgfl.checkpoint import CheckpointError
from rgfl.data import Batch, DataError, Dataset, Loader, Tiles, batches, read_dataset, steps_per_epoch
from rgfl.dota.images import ImageError
from rgfl.dota.labels import LabelError
from rgfl.nn.backbone import WeightsError
from rgfl.nn.detector import Detector, build_detector
from rgfl.recipes import Recipe, ScheduleConfig, learning_rate
from rgfl.spec import SpecError
from rgfl.validate import draw, validate


class TrainingError(ValueError):
    """The run cannot go on; one line that says why and what to do."""


# What `main` prints as one line; anything else is a bug and shows its traceback.
ERRORS = (
    TrainingError,
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

    Returns:
        0, or 128 + the signal that stopped the run; last.pt is up to date either way.
    """
    started = time.monotonic()
    schedule, run = recipe.schedule, recipe.run
    evaluating = recipe.evaluation.eval_every > 0

    # --- data
    dataset = read_dataset(root, classes, with_val=evaluating)
    spec = recipe.spec(dataset.classes)
    tiles = Tiles(dataset.train, dataset.classes, recipe.data, recipe.augment, schedule.seed, run.cache_mb)
    per_epoch = steps_per_epoch(len(tiles), schedule.batch)
    total = max(1, round(schedule.epochs * per_epoch))
    evaluation_steps = max(1, round(recipe.evaluation.eval_every * per_epoch)) if evaluating else total
    val = dataset.val[: recipe.evaluation.eval_images or None]

    # --- model
    if run.threads:
        torch.set_num_threads(run.threads)
    torch.manual_seed(schedule.seed)
    device = _device(run.device)
    on_cuda = device.type == "cuda"
    last = _read_last(out, recipe, dataset) if resume else None
    try:
        # A resumed run gets its weights from last.pt, so those of ImageNet need not be there any more.
        config = recipe.model if last is None else last["model_config"]
        model = build_detector(config, spec)
    except WeightsError:
        raise
    except ValueError as error:
        raise TrainingError(f"the model cannot be built: {error}") from error
    model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    mean = copy.deepcopy(model).eval() if schedule.ema else model  # what is evaluated and deployed
    optimizer = _optimizer(model, schedule)
    amp = _mixed_precision(schedule.amp) if on_cuda else None
    scaler = torch.amp.GradScaler("cuda", enabled=amp is torch.float16)
    if on_cuda:
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")

    # --- where to begin
    step, evaluated, best = 0, 0, -1.0
    sums: dict[str, float] = {}  # of the losses since the last line of the log
    if last is not None:
        step, evaluated, best, sums = last["step"], last["evaluated"], last["best"], last["sums"]
        model.load_state_dict(last["model"])
        mean.load_state_dict(last["weights"])
        optimizer.load_state_dict(last["optimizer"])
        scaler.load_state_dict(last["scaler"])
        torch.set_rng_state(last["rng"])
        if on_cuda and last["cuda_rng"] is not None:
            torch.cuda.set_rng_state(last["cuda_rng"], device)
        del last
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"--out {out}: cannot be made a folder: {error.strerror}") from error
    workers = run.workers if run.workers >= 0 else _workers(on_cuda)
    _say(
        f"{recipe.name}: {len(dataset.classes)} classes, {len(dataset.train)} + {len(dataset.val)} images, "
        f"{len(tiles)} windows of {recipe.data.tile_size}², batch {schedule.batch}: {total} steps of "
        f"{schedule.epochs:g} epochs on {_name(device)}, {str(amp or torch.float32)[6:]}, {workers} workers"
    )
    for warning in recipe.warnings():
        _say(f"warning: {warning}")
    if step:
        _say(f"resuming {out / 'last.pt'} at step {step} of {total} (--no-resume starts anew)")
    log = _open_log(out, step, evaluated)
    _write(log, kind="run", step=step, data=dataset.digest(), device=_name(device), **recipe.result_fields())
    board = SummaryWriter(out / "tensorboard", purge_step=step + 1)
    stop = _Stop(run.max_minutes, started)

    def save_last() -> None:
        checkpoint.save(
            out / "last.pt",
            spec,
            recipe.model,
            mean.state_dict(),
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
        """AP of the running mean at this step; keeps best.pt."""
        nonlocal evaluated, best
        before = time.monotonic()
        outcome = validate(mean.predict, val, spec, recipe.evaluation, lambda: bool(stop.signal))
        if outcome is None:
            return
        result, found = outcome
        values = {"ap50": result.ap50, "ap75": result.ap75, "map": result.map}
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        if result.map > best:
            best = result.map
            checkpoint.save(
                out / "best.pt", spec, recipe.model, mean.state_dict(), result={**values, "step": step}
            )
        by_class = dict(zip(result.classes, result.ap[:, 0].tolist(), strict=True))
        seconds = round(time.monotonic() - before, 2)
        _write(log, kind="eval", step=step, images=len(val), seconds=seconds, **values, classes=by_class)
        for name, value in values.items():
            board.add_scalar(f"val/{name}", value, step)
        for picture in val[: run.pictures]:
            image = draw(picture, found[picture.name], spec.classes)
            board.add_image(f"val/{picture.name}", image, step, dataformats="HWC")
        evaluated = step
        save_last()
        _say(
            f"epoch {step / per_epoch:g}: {shown} on {len(val)} full images in {seconds:.0f} s"
            f"{'  (best)' if best == result.map else ''}"
        )

    # --- the loop
    def due() -> bool:
        return evaluating and step > evaluated and (step % evaluation_steps == 0 or step == total)

    loader: Loader | None = None
    saved = time.monotonic()
    bar = tqdm(total=total, initial=step, unit="step", dynamic_ncols=True, smoothing=0.1)
    try:
        if due():  # killed between the last step of an epoch and its evaluation
            evaluate()
        keys = batches(len(tiles), schedule.batch, schedule.seed, step, total)
        loader = Loader(tiles, keys, workers, pin_memory=on_cuda)
        interval, waited, counted = time.monotonic(), 0.0, 0
        while step < total and not stop.now():
            before = time.monotonic()
            batch = next(loader)
            if isinstance(batch, Exception):
                raise batch
            assert isinstance(batch, Batch)
            batch = batch.to(device)
            waited += time.monotonic() - before

            rate = learning_rate(step, per_epoch, schedule)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            images = model.normalise(batch.images).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, dtype=amp, enabled=amp is not None):
                raw = model(images)
            losses = model.losses(raw, batch.boxes, batch.labels)  # float32
            loss = torch.stack(list(losses.values())).sum()
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(model.parameters(), schedule.clip_norm or math.inf, foreach=True)

            # One transfer from the device for everything that is looked at.
            values = torch.stack([loss.detach(), *(part.detach() for part in losses.values()), norm]).tolist()
            parts = dict(
                zip(["loss", *(f"loss_{name}" for name in losses), "grad_norm"], values, strict=True)
            )
            _check_finite(step, parts, rate, batch.names, scaler.is_enabled())
            scaler.step(optimizer)
            scaler.update()
            step += 1
            if mean is not model:
                _move_mean(mean, model, min(schedule.ema, step / (step + 10)))

            counted += 1
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + value
            sums["steps"] = sums.get("steps", 0.0) + 1
            bar.set_postfix(loss=f"{parts['loss']:.3f}", refresh=False)
            bar.update()
            if step % run.log_every == 0 or step == total:
                steps = sums.pop("steps")
                averages = {name: value / steps for name, value in sums.items()}
                timing = {
                    "step_s": round((time.monotonic() - interval) / counted, 4),
                    "data_wait_s": round(waited / counted, 4),
                }
                _write(
                    log,
                    kind="step",
                    step=step,
                    epoch=round(step / per_epoch, 4),
                    lr=rate,
                    **averages,
                    **timing,
                )
                for name, value in {"lr": rate, **averages, **timing}.items():
                    board.add_scalar(f"train/{name}", value, step)
                sums.clear()
                interval, waited, counted = time.monotonic(), 0.0, 0

            minutes = (time.monotonic() - saved) / 60
            if step % per_epoch == 0 or step == total or 0 < run.checkpoint_minutes <= minutes:
                save_last()
                saved = time.monotonic()
            if due():
                evaluate()
                interval, waited, counted = time.monotonic(), 0.0, 0
        if stop.now() and (step < total or due()):
            save_last()
            bar.close()
            _say(f"stopped at step {step} of {total} by {stop.reason()}; the same command goes on from there")
            return 128 + stop.signal if stop.signal else 0
        if not (out / "best.pt").is_file():  # never evaluated: the last weights are the best known
            checkpoint.save(out / "best.pt", spec, recipe.model, mean.state_dict())
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"out of GPU memory with --batch {schedule.batch} tiles of --tile-size {recipe.data.tile_size}; "
            "lower one of them"
        ) from error
    finally:
        if loader is not None:
            loader.close()
        bar.close()
        board.close()
        log.close()
        stop.restore()
    found = f", mAP {best:.4f}" if best >= 0 else ""
    _say(f"{step} steps done; detector: {out / 'best.pt'}{found}")
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
def _move_mean(mean: nn.Module, model: nn.Module, decay: float) -> None:
    """mean ← decay·mean + (1 − decay)·model; counters and the like are copied."""
    ours, theirs = mean.state_dict(), model.state_dict()
    floats = [name for name, value in ours.items() if value.is_floating_point()]
    torch._foreach_lerp_([ours[name] for name in floats], [theirs[name] for name in floats], 1 - decay)
    for name, value in ours.items():
        if not value.is_floating_point():
            value.copy_(theirs[name])


def _check_finite(step: int, parts: dict[str, float], rate: float, names: list[str], scaled: bool) -> None:
    """Stop before the weights are spoilt. (Under FP16 an infinite gradient is the scaler's business.)"""
    looked_at = {name: value for name, value in parts.items() if not (scaled and name == "grad_norm")}
    if bad := [name for name, value in looked_at.items() if not math.isfinite(value)]:
        values = ", ".join(f"{name} {value:g}" for name, value in parts.items())
        raise TrainingError(
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


def _open_log(out: Path, step: int, evaluated: int):
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


def _write(log, **record: Any) -> None:
    log.write(json.dumps({**record, "time": round(time.time(), 2)}, ensure_ascii=False) + "\n")


class _Stop:
    """Whether to stop after this step: Ctrl-C or SIGTERM (a second one stops at once), or the time is up."""

    def __init__(self, max_minutes: float, started: float) -> None:
        self.signal = 0
        self._until = started + 60 * max_minutes if max_minutes else math.inf
        self._before = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._on_signal)
            except ValueError:  # not in the main thread: the caller handles signals
                break

    def _on_signal(self, number: int, _frame: object) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number

    def now(self) -> bool:
        return bool(self.signal) or time.monotonic() > self._until

    def reason(self) -> str:
        return signal.Signals(self.signal).name if self.signal else "--max-minutes"

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _workers(on_cuda: bool) -> int:
    """A GPU needs as many tiles as half the cores make; a CPU that trains has one core to spare at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(1, cores // 2)) if on_cuda else min(1, cores - 1)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise TrainingError(f"--device: expected auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            f"--device {name}: torch {torch.__version__} sees no CUDA GPU here; use --device cpu"
        )
    return device


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.get_num_threads()} threads)"


def _mixed_precision(choice: str) -> torch.dtype | None:
    if choice == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[choice]


def _say(text: str) -> None:
    tqdm.write(text)
