"""What a run leaves in its folder: last.pt to go on from, best.pt, log.jsonl, tensorboard/ and tiles.jpg.

Every file is whole after a kill at any moment, and a log that is continued ends up as if nothing had
happened.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from rgfl import atomic, checkpoint, draw
from rgfl.dataset import Dataset
from rgfl.errors import TrainingError
from rgfl.folder_lock import FolderInUse, lock_folder
from rgfl.nn.config import ModelConfig
from rgfl.nn.detector import Detector
from rgfl.recipes import Recipe
from rgfl.run_log import read_records
from rgfl.spec import DetectorSpec

# Fields that only say how to evaluate and how often. (No evaluation at all needs no val/: other data.)
FREE = ("test_batch", "eval_every")


def read_last(out: Path, recipe: Recipe, dataset: Dataset) -> dict[str, Any] | None:
    """What last.pt holds for this run, or None where there is none.

    Raises:
        TrainingError: it is of another recipe, other data or another version, or best.pt is there without it.
    """
    path, best = out / "last.pt", out / "best.pt"
    if not path.is_file():
        if best.is_file():
            raise TrainingError(
                f"{best} is there, but no last.pt to continue from: start a new run from its weights with "
                f"--out NEW --start {best}, or replace it with --no-resume"
            )
        return None
    record = checkpoint.load(path)
    state = record.get("training")
    if not isinstance(state, dict):
        raise TrainingError(
            f"{path}: holds a detector but no training state; use another --out, or --no-resume"
        )
    here = recipe.result_fields()
    with of_this_version(path):
        there = {**Recipe(name="").result_fields(), **state["recipe"]}  # fields of later versions
        there |= {name: here[name] for name in FREE if here[name] and there[name]}
        data, weights, config = state["data"], record["weights"], ModelConfig(**record["model"])
    if changed := [name for name in {**here, **there} if here.get(name) != there.get(name)]:
        shown = ", ".join(
            f"{name} was {there.get(name)!r} and is {here.get(name)!r}" for name in changed[:4]
        ) + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")
        raise TrainingError(
            f"{path} is of another recipe ({shown}): give the same flags; or train on from its weights, by "
            f"another --out and --start {path}; or begin anew, by --no-resume"
        )
    if data != dataset.digest():
        raise TrainingError(
            f"{path} was trained on other images, labels or classes: give the same data, another --out, or "
            "--no-resume"
        )
    return {**state, "weights": weights, "model_config": config}


@contextlib.contextmanager
def of_this_version(path: Path) -> Iterator[None]:
    """The use of what last.pt holds. Raises TrainingError: it is not what this version writes and reads."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if "CUDA error" in str(error):  # of the device, not of the file
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        best = path.with_name("best.pt")
        start = f", where --start {best} begins with its weights" if best.is_file() else ""
        raise TrainingError(
            f"{path}: of another version of rgfl ({reason}); give another --out{start}"
        ) from error


class RunFolder:
    """The folder of a run that writes; for the other ranks of a run, one without a path, which does not."""

    def __init__(self, path: Path | None, step: int, evaluated: int, anew_but: Path | None = None) -> None:
        """Takes possession of the folder, to go on from a step.

        anew_but: what a run left there before is removed, but for this file.

        Raises:
            TrainingError: it cannot be written to, or another process trains into it.
        """
        self._path = path
        self._log: TextIO | None = None
        self._board: SummaryWriter | None = None
        self._lock: TextIO | None = None
        if path is None:
            return
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"--out {path}: cannot be made a folder: {error.strerror}") from error
        try:
            self._lock = lock_folder(path)
            for hidden in path.glob(f".*{atomic.TEMPORARY_SUFFIX}"):  # of a save that was killed
                hidden.unlink()
            if anew_but is not None:
                # At once: killed before its first save, the run would else go on from the one before it.
                for name in ("last.pt", "best.pt"):
                    if (path / name).resolve() != anew_but.resolve():
                        (path / name).unlink(missing_ok=True)
            self._log = _continued(path / "log.jsonl", step, evaluated)
            self._board = SummaryWriter(path / "tensorboard", purge_step=step + 1)
        except FolderInUse as error:
            raise TrainingError(f"{error} (several processes of one training: torchrun)") from error
        except OSError as error:
            told = error.strerror or error
            raise TrainingError(f"--out {path}: cannot be written to: {told}") from error

    def log(self, **record: Any) -> None:
        """A line of log.jsonl. JSON knows no infinity, which FP16's gradients may have."""
        if self._log is not None:
            for name, value in record.items():
                if isinstance(value, float) and not math.isfinite(value):
                    record[name] = None
            line = json.dumps({**record, "time": round(time.time(), 2)})
            with self._told("log.jsonl"):
                self._log.write(line + "\n")

    def plot(self, group: str, values: Mapping[str, float], step: int) -> None:
        """A point of each value in TensorBoard."""
        if self._board is not None:
            with self._told("tensorboard"):
                for name, value in values.items():
                    self._board.add_scalar(f"{group}/{name}", value, step)

    def show(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """An (H, W, 3) RGB picture in TensorBoard."""
        if self._board is not None:
            with self._told("tensorboard"):
                self._board.add_image(name, picture, step, dataformats="HWC")

    def keep(self, name: str, picture: NDArray[np.uint8]) -> None:
        """An (H, W, 3) RGB picture as a file."""
        if self._path is not None:
            with self._told(name):
                draw.save(picture, self._path / name)

    def save(self, name: str, spec: DetectorSpec, recipe: Recipe, model: Detector, **more: Any) -> None:
        """Write a checkpoint.

        Raises:
            TrainingError: it cannot be written; the one before it is as it was.
        """
        if self._path is None:
            return
        path = self._path / name
        with self._told(name, "; the one before it is whole" if path.exists() else ""):
            checkpoint.save(path, spec, recipe.model, model.state_dict(), **more)

    @contextlib.contextmanager
    def _told(self, name: str, kept: str = "") -> Iterator[None]:
        """The writing of a file of the folder. Raises TrainingError: it fails; `kept` is part of the line."""
        assert self._path is not None
        try:
            yield
        except (OSError, RuntimeError) as error:
            # torch's writer reports a disk that is full as an error of its own, on top of the system's.
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__cause__ or cause.__context__
            if cause is None:
                raise
            goes_on = "goes on from last.pt" if (self._path / "last.pt").exists() else "begins anew"
            raise TrainingError(
                f"{self._path / name}: cannot be written: {cause.strerror or cause}{kept}; with room made, "
                f"the same command {goes_on}"
            ) from error

    def close(self) -> None:
        """Let go of the folder."""
        for written in (self._board, self._log, self._lock):
            with contextlib.suppress(OSError):  # what could not be written has been told
                if written is not None:
                    written.close()


def _continued(path: Path, step: int, evaluated: int) -> TextIO:
    """log.jsonl for appending, without what came after the step from which we go on."""
    records = read_records(path) if step and path.is_file() else []
    kept = [
        json.dumps(record) + "\n"
        for record in records
        if record["step"] <= (evaluated if record["kind"] == "eval" else step)
    ]
    atomic.write_text(path, "".join(kept))
    return open(path, "a", encoding="utf-8", buffering=1)
