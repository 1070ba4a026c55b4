"""Checkpoints: weights together with what is needed to use them, read without running any code of theirs.

A checkpoint is one file of plain containers and tensors:

    format    "rgfl-checkpoint 1"
    spec      the DetectorSpec's JSON
    model     the ModelConfig as a dict
    parts     {part: its name} of those of one's own, without which it cannot be built: rgfl/nn/parts.py
    weights   state of the detector: what evaluation and export use (the running mean, if there is one)
    result    AP of these weights on the validation images, or {}
    training  last.pt only: everything that an exact resume needs; see rgfl/loop.py

`python -m rgfl.checkpoint` makes one of the original repository's, or of one with other settings:
rgfl/checkpoint_commands.py.
"""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rgfl import atomic
from rgfl.errors import UserError
from rgfl.nn.config import ModelConfig
from rgfl.nn.parts import PARTS
from rgfl.nn.state import listed, misfits, some, zip_fault
from rgfl.spec import DetectorSpec, SpecError

if TYPE_CHECKING:  # torch takes seconds to import: not for --help
    import torch

    from rgfl.nn.detector import Detector

FORMAT = "rgfl-checkpoint 1"


class CheckpointError(UserError):
    """The file is no checkpoint of this version; one line that says what it is and what to do."""


def save(
    path: Path | str,
    spec: DetectorSpec,
    model: ModelConfig,
    weights: dict[str, torch.Tensor],
    *,
    result: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint: it appears under its name whole, or not at all, also when killed in between.

    `training` may hold tensors, numbers, strings, None, and lists, tuples and dicts of them.
    """
    # The weights are here, so nobody who reads the file needs to fetch ImageNet's.
    model = dataclasses.replace(model, pretrained=False, weights="")
    record: dict[str, Any] = {
        "format": FORMAT,
        "spec": spec.to_json(),
        "model": dataclasses.asdict(model),
        "parts": PARTS.names(),
        "weights": weights,
        "result": result or {},
    }
    if training is not None:
        record["training"] = training
    write(path, record)


def write(path: Path | str, record: dict[str, Any]) -> None:
    """A record as `load` gives it, as a file: whole, or not at all."""
    import torch

    with atomic.whole(path) as hidden, open(hidden, "wb") as file:
        torch.save(record, file)
        file.flush()
        os.fsync(file.fileno())


def load(path: Path | str) -> dict[str, Any]:
    """The record of a checkpoint, as `save` wrote it, on the CPU, format and backbone's name checked.

    Raises:
        CheckpointError: no such file, not a checkpoint, cut off, damaged, foreign, or of another version.
    """
    import torch

    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder; expected a checkpoint such as {path / 'best.pt'}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not data:
        raise CheckpointError(f"{path}: the file is empty; copy or train it again")
    if data[:2] == b"PK" and not zipfile.is_zipfile(io.BytesIO(data)):
        raise CheckpointError(f"{path}: cut off after {len(data):,} bytes; copy it again")
    if data[:2] == b"PK" and (fault := zip_fault(io.BytesIO(data))):
        raise CheckpointError(f"{path}: {fault}")
    if data[:2] != b"PK" and data[:1] != b"\x80":
        raise CheckpointError(
            f"{path}: not a checkpoint (it begins with {data[:8]!r}); expected a .pt file of rgfl.train"
        )
    try:
        with warnings.catch_warnings():  # torch asks for a bug report on every foreign pickle
            warnings.simplefilter("ignore")
            record = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise CheckpointError(
            f"{path}: refused: it holds Python objects{what}, and reading those runs code of the file; "
            "only checkpoints of plain containers and tensors, as rgfl.train writes them, are read"
        ) from error
    except Exception as error:  # zip, storage and version errors of torch have no common type
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path}: not a checkpoint that torch reads: {reason}") from error
    if not isinstance(record, dict) or "spec" not in record or "weights" not in record:
        keys = (
            f"keys {', '.join(map(str, list(record)[:4]))}, …" if isinstance(record, dict) else type(record)
        )
        raise CheckpointError(
            f"{path}: no spec in it ({keys}), so its classes and scales are unknown; "
            "expected a checkpoint of rgfl.train. Weights of a backbone go by --weights"
        )
    if record.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format {record.get('format')!r}, this version reads {FORMAT!r}")
    model: dict[str, Any] = record["model"] if isinstance(record.get("model"), dict) else {}
    backbone = model.get("backbone")
    if not isinstance(backbone, str) or set(backbone) & set(":/"):  # timm would fetch or open what it names
        raise CheckpointError(
            f"{path}: damaged or foreign: expected the name of a timm model as backbone, got {backbone!r}"
        )
    weights = record["weights"]
    named = weights if isinstance(weights, dict) else {type(weights).__name__: None}
    if wrong := [str(name) for name, value in dict.items(named) if not _is_weight(name, value)]:
        raise CheckpointError(
            f"{path}: damaged or foreign: expected weights that are dense tensors of real numbers, got other "
            f"things: {some(wrong)}"
        )
    # Nor is anything fetched or opened for the weights: they are here.
    record["model"] = {**model, "pretrained": False, "weights": ""}
    parts = record.get("parts")
    record["parts"] = parts if isinstance(parts, dict) else {}
    return record


def _is_weight(name: object, value: Any) -> bool:
    """Whether it can be copied into a tensor of a detector, but for its shape."""
    import torch

    dense = isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    return isinstance(name, str) and dense and not (value.is_quantized or value.is_complex())


def load_detector(path: Path | str) -> Detector:
    """The detector of a checkpoint, on the CPU, in eval mode.

    Raises:
        CheckpointError: as `load`, other parts than `PARTS` has now, or weights that do not fit the model
            that the file describes.
    """
    from rgfl.nn.detector import build_detector

    record, own = load(path), PARTS.names()
    for part in ("neck", "head"):  # without weights of its own, another would load and detect otherwise
        there, here = record["parts"].get(part), own.get(part)
        if there != here:
            raise CheckpointError(
                f"{path}: trained with {part} {there or 'of rgfl'}, and here it is {here or 'that of rgfl'}; "
                f"set rgfl.nn.parts.PARTS.{part} to the former first, as CONTRIBUTING.md shows"
            )
    try:
        detector = build_detector(ModelConfig(**record["model"]), DetectorSpec.from_json(record["spec"]))
        if unfit := listed(misfits(detector.state_dict(), record["weights"])):
            raise CheckpointError(
                f"{path}: of another version of rgfl or another network: {unfit}; an ONNX file exported "
                "from it runs still, and rgfl.train --start takes what fits"
            )
        detector.load_state_dict(record["weights"])
    except (SpecError, TypeError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path}: not what this version of rgfl trains: {reason}") from error
    return detector.eval()


def start_from(detector: Detector, path: Path | str) -> tuple[list[str], DetectorSpec]:
    """Load what fits of a checkpoint into a detector that is about to be trained on something else.

    Class logits go by the names of the classes, so those that both know keep what they learnt, in whatever
    order; what each level has of its own goes by its stride, everything else by name and shape.

    Returns:
        Names of the tensors that begin anew, in whole or in part, and the spec of the checkpoint.

    Raises:
        CheckpointError: as `load`, or it has another backbone.
    """
    record = load(path)
    theirs, ours = record["model"].get("backbone", ""), detector.config.backbone
    if theirs.split(".")[0] != ours.split(".")[0]:  # the rest of the name says who trained it
        raise CheckpointError(
            f"{path}: of backbone {theirs!r}, and this recipe has {ours!r}; give --backbone {theirs}"
        )
    stored, spec = record["weights"], DetectorSpec.from_json(record["spec"])
    known = {name: row for row, name in enumerate(spec.classes)}
    state, anew = detector.state_dict(), []
    pairs = [(row, known[name]) for row, name in enumerate(detector.spec.classes) if name in known]
    own = r"neck\.(?:laterals|outputs)" + (
        r"|head\.\w+\.norms\.\d+" if detector.config.head_norm == "batch" else ""
    )
    for name, value in state.items():
        if level := re.fullmatch(rf"({own})\.(\d+)\.(.+)", name):
            stride = detector.spec.strides[int(level[2])]
            number = spec.strides.index(stride) if stride in spec.strides else "none"
            there = stored.get(f"{level[1]}.{number}.{level[3]}")
        else:
            there = stored.get(name)
        if name.startswith("head.cls.") and there is not None and there.shape[1:] == value.shape[1:]:
            for row, other in pairs:
                value[row] = there[other]
            if len(pairs) < len(value):
                anew.append(name)
        elif there is not None and there.shape == value.shape:
            value.copy_(there)
        else:
            anew.append(name)
    return anew, spec


if __name__ == "__main__":
    import sys

    from rgfl.checkpoint_commands import main

    sys.exit(main())
