"""The contract that travels with every artifact: checkpoint, ONNX file and engine.

A field belongs here if a consumer of the engine, written in another language, would need it to
turn pixels into detections. Consumers read the spec; nobody repeats a threshold.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from rgfl.errors import UserError

HeadMode = Literal["integral", "gfl"]
ANGLE_CONVENTION = "le135"
SPEC_FORMAT = 1
METADATA_KEY = "rgfl_spec"  # under this key the spec lies in an ONNX file's metadata_props
# TensorRT takes 4096 bytes with the terminator as an engine's name, and only logs that it drops a longer one.
MAX_JSON_BYTES = 4095
LARGEST_SIDE = 16384  # pixels; the activations of more would not fit into memory
LONGEST_NAME = 200  # bytes of a class name; file systems take 255 for Task1_<class>.txt and its temporary


class SpecError(UserError):
    """The spec is missing, unreadable or asks for something this version does not do."""


Kind = type[int] | tuple[type[int], type[float]]


def unfit_name(name: str) -> str:
    """What keeps a class name out of label files, or out of the names of files; empty if nothing does."""
    if name.split() != [name]:
        return f"{'has white space' if name.strip() else 'is empty'}; labelTxt needs it in one word"
    if not name.replace("\u200c", "").replace("\u200d", "").isprintable():  # joiners: Persian, Hindi
        return "has characters that cannot be printed; files and terminals need it readable"
    if set(name) & set("/\\") or name in (".", ".."):
        return "has a slash or is a folder's name; Task1_<class>.txt could not be written"
    if len(name.encode()) > LONGEST_NAME:
        return f"is longer than {LONGEST_NAME} bytes; Task1_<class>.txt could not be written"
    return ""


def _number(value: Any, kind: Kind = (int, float)) -> bool:
    """Whether it is one, finite, and as the consumers' int32 and float32 can hold it."""
    return isinstance(value, kind) and not isinstance(value, bool) and abs(value) < 1 << 31


def _numbers(count: int, kind: Kind = (int, float)) -> Callable[[Any], bool]:
    def valid(value: Any) -> bool:
        return isinstance(value, tuple) and len(value) == count and all(_number(v, kind) for v in value)

    return valid


def _count(value: Any) -> bool:
    return _number(value, int) and value >= 0


def _share(value: Any) -> bool:
    return _number(value) and 0 <= value <= 1


_GREY = set(range(256))
# What a file may not get wrong: (field, what is expected, whether a value is that).
_FIELD_TYPES: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("classes", "a list of names", lambda v: isinstance(v, tuple) and all(isinstance(n, str) for n in v)),
    ("image_size", "two whole numbers", _numbers(2, int)),
    ("mean", "three finite numbers", _numbers(3)),
    ("std", "three finite numbers above 0", lambda v: _numbers(3)(v) and min(v) > 0),
    ("pad_value", "three whole numbers 0…255", lambda v: _numbers(3, int)(v) and set(v) <= _GREY),
    ("strides", "whole numbers above 0", lambda v: bool(v) and _numbers(len(v), int)(v) and min(v) > 0),
    ("reg_max", "a whole number", _count),
    ("angle_bins", "a whole number", _count),
    ("level_topk", "a whole number", _count),
    ("pre_nms_topk", "a whole number", _count),
    ("max_detections", "a whole number above 0", lambda v: _count(v) and v > 0),
    ("score_threshold", "a number from 0 to 1", _share),
    ("iou_threshold", "a number from 0 to 1", _share),
)


@dataclass(frozen=True, kw_only=True)
class DetectorSpec:
    """What a detector was trained to see and how its outputs are to be read.

    Attributes:
        classes: class names; a label is an index into them.
        image_size: (height, width) in pixels of the tile the network takes.
        mean, std: per-channel normalisation in RGB order, in grey levels 0…255.
        pad_value: RGB grey levels of the border where a tile leaves the image.
        strides: pixels per feature cell, level by level, finest first.
        mode: "integral" (the published rgfl row) or "gfl" (full Generalized Focal Loss).
        reg_max: last bin of the distance distributions; there are reg_max + 1 bins.
        angle_bins: bins of the angle distribution over one period of π (`gfl`); 0 in `integral`.
        score_threshold: detections need a score strictly greater than this.
        iou_threshold: NMS suppresses strictly above this rotated IoU, within a class.
        level_topk: points kept per level before NMS, by best class score (0: all; TensorRT: at most 3840).
        pre_nms_topk: candidates kept per image before NMS (0: all).
        max_detections: detections kept per tile.
        angle_convention: always "le135"; present so that a foreign model is refused, not guessed at.
    """

    classes: tuple[str, ...]
    image_size: tuple[int, int] = (1024, 1024)
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    pad_value: tuple[int, int, int] = (0, 0, 0)
    strides: tuple[int, ...] = (8, 16, 32, 64, 128)
    mode: HeadMode = "gfl"
    reg_max: int = 16
    angle_bins: int = 0
    score_threshold: float = 0.05
    iou_threshold: float = 0.1
    level_topk: int = 2000
    pre_nms_topk: int = 0
    max_detections: int = 2000
    angle_convention: str = ANGLE_CONVENTION

    def __post_init__(self) -> None:
        for name, expected, valid in _FIELD_TYPES:
            value = getattr(self, name)
            if not valid(value):
                raise SpecError(f"{name}: expected {expected}, got {value!r}")
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise SpecError(f"classes: expected distinct names, got {list(self.classes)}")
        for name in self.classes:
            if wrong := unfit_name(name):
                raise SpecError(f"classes: {name!r} {wrong}")
        if self.mode not in get_args(HeadMode):
            raise SpecError(f"mode: expected one of {get_args(HeadMode)}, got {self.mode!r}")
        if self.angle_convention != ANGLE_CONVENTION:
            raise SpecError(
                f"angle_convention: this version reads {ANGLE_CONVENTION!r} only, got "
                f"{self.angle_convention!r}; convert the model where it was made"
            )
        if any(not 0 < size <= LARGEST_SIDE or size % self.strides[-1] for size in self.image_size):
            raise SpecError(
                f"image_size: expected positive multiples of the coarsest stride {self.strides[-1]} up to "
                f"{LARGEST_SIDE}, got {self.image_size}"
            )
        if len(self.to_json().encode()) > MAX_JSON_BYTES:
            raise SpecError(
                f"the spec takes {len(self.to_json().encode())} bytes of JSON, an engine's name holds "
                f"{MAX_JSON_BYTES}: shorten the {len(self.classes)} class names"
            )

    def to_json(self) -> str:
        """Compact JSON with sorted keys: equal specs give equal bytes."""
        record = {"rgfl_spec": SPEC_FORMAT, **dataclasses.asdict(self)}
        return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> DetectorSpec:
        """Inverse of `to_json`.

        Raises:
            SpecError: not JSON, not a spec, another format, or unknown or missing fields.
        """
        try:
            record: dict[str, Any] = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise SpecError(f"the spec is not JSON: {error}") from error
        if not isinstance(record, dict) or "rgfl_spec" not in record:
            raise SpecError("the JSON is no rgfl spec: key 'rgfl_spec' is missing")
        found = record.pop("rgfl_spec")
        if found != SPEC_FORMAT:
            raise SpecError(f"spec format {found!r}, this version reads {SPEC_FORMAT}: export the model anew")
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(record) - known):
            raise SpecError(f"unknown spec fields {unknown}: the file comes from a newer rgfl")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in record.items()
        }
        try:
            return cls(**values)
        except TypeError as error:
            raise SpecError(f"incomplete spec: {error}") from error

    @property
    def tile_side(self) -> int:
        """Side in pixels of the square tiles that a scene is cut into.

        Raises:
            SpecError: the network takes no square.
        """
        height, width = self.image_size
        if height != width:
            raise SpecError(f"the model takes {height} × {width}; scenes are cut into square tiles")
        return height

    @property
    def digest(self) -> str:
        """Twelve hex digits that identify the spec in result files."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]
