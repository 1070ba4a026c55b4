"""What a run leaves in its folder: last.pt to go on from, best.pt, log.jsonl and tensorboard/.

Every file is whole after a kill at any moment, and a log that is continued ends up as if nothing had
happened.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from rgfl import checkpoint
from rgfl.atomic import write_text
from rgfl.data import Dataset
from rgfl.nn.config import ModelConfig
from rgfl.nn.detector import Detector
from rgfl.recipes import Recipe
from rgfl.spec import DetectorSpec
from rgfl.training_error import TrainingError

# Fields that recipes had once, with the value that is the rule now: a run with it goes on.
RETIRED = {"merge_iou": 0.1}

try:
    import fcntl
except ImportError:  # Windows: there nothing keeps two runs apart
    fcntl = None  # type: ignore[assignment]


def read_last(out: Path, recipe: Recipe, dataset: Dataset) -> dict[str, Any] | None:
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
    here = recipe.result_fields()
    there = {name: value for name, value in state["recipe"].items() if (name, value) not in RETIRED.items()}
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
    return {**state, "weights": record["weights"], "model_config": ModelConfig(**record["model"])}


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
            self._lock = _locked(path)
            if anew_but is not None:
                # At once: killed before its first save, the run would else go on from the one before it.
                for name in ("last.pt", "best.pt"):
                    if (path / name).resolve() != anew_but.resolve():
                        (path / name).unlink(missing_ok=True)
            self._log = _continued(path / "log.jsonl", step, evaluated)
            self._board = SummaryWriter(path / "tensorboard", purge_step=step + 1)
        except OSError as error:
            told = error.strerror or error
            raise TrainingError(f"--out {path}: cannot be written to: {told}") from error

    def log(self, **record: Any) -> None:
        """A line of log.jsonl. JSON knows no infinity, which FP16's gradients may have."""
        if self._log is not None:
            for name, value in record.items():
                if isinstance(value, float) and not math.isfinite(value):
                    record[name] = None
            line = json.dumps({**record, "time": round(time.time(), 2)}, ensure_ascii=False)
            self._log.write(line + "\n")

    def plot(self, group: str, values: Mapping[str, float], step: int) -> None:
        """A point of each value in TensorBoard."""
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{group}/{name}", value, step)

    def show(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """An (H, W, 3) RGB picture in TensorBoard."""
        if self._board is not None:
            self._board.add_image(name, picture, step, dataformats="HWC")

    def save(self, name: str, spec: DetectorSpec, recipe: Recipe, model: Detector, **more: Any) -> None:
        """Write a checkpoint.

        Raises:
            TrainingError: it cannot be written; the one before it is as it was.
        """
        if self._path is None:
            return
        path = self._path / name
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
                f"{path}: cannot be written: {cause.strerror or cause}; the one before it is whole, so with "
                "room made the same command goes on from there"
            ) from error

    def close(self) -> None:
        """Let go of the folder."""
        for written in (self._board, self._log, self._lock):
            with contextlib.suppress(OSError):  # what could not be written has been told
                if written is not None:
                    written.close()


def _locked(folder: Path) -> TextIO:
    """The folder's lock file, this process's until it closes it or ends, in whatever way.

    It keeps other processes out; a second run of the same process POSIX lets in.
    """
    lock = open(folder / ".lock", "a+")  # noqa: SIM115
    if fcntl is not None:
        try:
            # POSIX's lock, not flock's: processes that prepare tiles and outlive a killed run do not hold it.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            lock.close()
            raise TrainingError(
                f"--out {folder}: {holder} trains into it; wait for its end, or give another --out (several "
                "processes of one training are started by torchrun)"
            ) from error
        except OSError:
            pass  # a file system without locks
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()
    return lock


def _continued(path: Path, step: int, evaluated: int) -> TextIO:
    """log.jsonl for appending, without what came after the step from which we go on."""
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
