"""Detectors of the original rgfl repository, as checkpoints of this one.

    python -m rgfl.checkpoint import epoch_12.pth --out best.pt

Its files (mmcv's runner wrote them) hold the state of RGFL with a torchvision-style ResNet-50, a feature
pyramid and the head RGFLHeadVanilla: the network of the recipe `rgfl_r50_dota_1x`, under other names.

They are pickles: torch's safe reader (`weights_only`) reads them, and runs nothing.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rgfl.checkpoint import CheckpointError
from rgfl.dota.labels import CLASSES
from rgfl.nn.config import ModelConfig
from rgfl.nn.state import listed, misfits, some, zip_fault
from rgfl.recipes import RECIPES
from rgfl.spec import DetectorSpec

if TYPE_CHECKING:  # torch takes seconds to import: not for --help
    from torch import Tensor

    from rgfl.nn.detector import Detector

RECIPE = "rgfl_r50_dota_1x"
LEVELS_OF_THE_BACKBONE = 3  # the pyramid's first outputs; those after them are strided, on the last one
_NAMES: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"backbone\.(.+)", lambda m: f"backbone.net.{m[1]}"),
    (r"neck\.lateral_convs\.(\d+)\.conv\.(\w+)", lambda m: f"neck.laterals.{m[1]}.{m[2]}"),
    (r"neck\.fpn_convs\.(\d+)\.conv\.(\w+)", lambda m: _pyramid_output(int(m[1]), m[2])),
    (
        r"bbox_head\.(cls|reg)_convs\.(\d+)\.conv\.(\w+)",
        lambda m: f"head.{m[1]}_tower.convs.{m[2]}.{m[3]}",
    ),
    (
        r"bbox_head\.(cls|reg)_convs\.(\d+)\.gn\.(\w+)",
        lambda m: f"head.{m[1]}_tower.norms.{m[2]}.0.{m[3]}",
    ),
    (r"bbox_head\.gfl_(cls|reg)\.(\w+)", lambda m: f"head.{m[1]}.{m[2]}"),
)
# The constants of the projections are buffers there: not weights, but they must be ours.
PROJECTIONS = {"bbox_head.integral.project": 0, "bbox_head.integral_angle.project": 4}
CLASSIFIER = ("backbone.fc.weight", "backbone.fc.bias")


@dataclass(frozen=True)
class Imported:
    """A detector made of a foreign file; `unused` keys have no place here."""

    detector: Detector
    unused: list[str]


def import_detector(path: Path | str, classes: Sequence[str] | None = None) -> Imported:
    """The detector of a file of the original repository, in eval mode.

    Args:
        path: a .pth file.
        classes: names in the model's order; None takes the file's own, else DOTA's by their number.

    Raises:
        CheckpointError: unreadable, another architecture (with the keys that are missing or of another
            shape), or class names that do not fit.
    """
    path = Path(path)
    record = read_tensors(path)
    state = _state(path, record)
    renamed: dict[str, Tensor] = {}
    unused = []
    for key, value in state.items():
        if (name := rename(key)) is not None:
            renamed[name] = value
        elif key not in PROJECTIONS:
            unused.append(key)
    for key in ("head.cls.bias", "head.reg.bias"):
        if key not in renamed:
            raise CheckpointError(
                f"{path}: no bbox_head.gfl_{key.split('.')[1]} in it ({some(list(state))}); expected a "
                "model of the original rgfl repository. Weights of a backbone go by --weights"
            )
        if renamed[key].ndim != 1:
            raise CheckpointError(f"{path}: {key}: expected one axis, got {tuple(renamed[key].shape)}")
    recipe = RECIPES[RECIPE]()
    channels, remainder = divmod(len(renamed["head.reg.bias"]), 5)
    if remainder:
        raise CheckpointError(
            f"{path}: bbox_head.gfl_reg has {len(renamed['head.reg.bias'])} channels, no multiple of 5 deltas"
        )
    config = replace(recipe.model, pretrained=False, reg_max=channels - 1)
    names = _classes(path, record, classes, len(renamed["head.cls.bias"]))
    spec = replace(recipe.spec(names), reg_max=channels - 1)
    _check_projections(path, config, state)
    detector = _load(path, config, spec, renamed, unused)
    ours = detector.state_dict()
    return Imported(detector, [*unused, *(key for key in renamed if key not in ours)])


def rename(key: str) -> str | None:
    """Our name of one of their keys; None where there is none."""
    if key in CLASSIFIER:
        return None
    for pattern, name in _NAMES:
        if match := re.fullmatch(pattern, key):
            return name(match)
    return None


def _pyramid_output(level: int, kind: str) -> str:
    extra = level - LEVELS_OF_THE_BACKBONE
    return f"neck.extras.{extra}.{kind}" if extra >= 0 else f"neck.outputs.{level}.{kind}"


def _load(
    path: Path, config: ModelConfig, spec: DetectorSpec, renamed: Mapping[str, Tensor], unused: Sequence[str]
) -> Detector:
    from rgfl.nn.detector import build_detector

    try:
        detector = build_detector(config, spec)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    wanted = detector.state_dict()
    problems = misfits(wanted, renamed)
    if any(problems.values()):
        told = listed({**problems, "left over": unused})
        raise CheckpointError(f"{path}: not the network of recipe {RECIPE}: {told}")
    detector.load_state_dict(
        {key: renamed[key].to(value.dtype) if key in renamed else value for key, value in wanted.items()}
    )
    return detector.eval()


def _state(path: Path, record: Any) -> dict[str, Tensor]:
    import torch

    for key in ("state_dict", "model"):
        if isinstance(record, dict) and isinstance(dict.get(record, key), dict):
            record = dict.get(record, key)
            break
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: holds {type(record).__name__}, expected a dictionary of tensors")
    found = {
        key.removeprefix("module."): value
        for key, value in dict.items(record)
        if isinstance(key, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided
    }
    if not found:
        raise CheckpointError(f"{path}: no tensors in it, neither in `state_dict` nor at the top")
    return found


def _classes(path: Path, record: Any, classes: Sequence[str] | None, count: int) -> tuple[str, ...]:
    source = "--classes"
    if classes is None:
        meta = dict.get(record, "meta") if isinstance(record, dict) else None
        own = dict.get(meta, "CLASSES") if isinstance(meta, dict) else None
        if isinstance(own, (list, tuple)) and own and all(isinstance(name, str) for name in own):
            classes, source = ["-".join(name.split()) for name in own], "its meta"
        else:
            classes = next((names for names in CLASSES.values() if len(names) == count), None)
    if classes is None:
        raise CheckpointError(
            f"{path}: {count} classes without names; name them by --classes, in their order"
        )
    if len(classes) != count:
        raise CheckpointError(
            f"{path}: {count} classes, but {source} names {len(classes)}: {', '.join(classes)}"
        )
    return tuple(classes)


def _check_projections(path: Path, config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    import torch

    from rgfl.nn.decode import BoxDecoder

    project = BoxDecoder(config).project
    for key, row in PROJECTIONS.items():
        theirs = state.get(key)
        if theirs is None:
            continue
        if theirs.shape != project[row].shape or not torch.allclose(theirs.float(), project[row], atol=1e-5):
            ours = project[row]
            raise CheckpointError(
                f"{path}: {key} is {float(theirs.min()):g} to {float(theirs.max()):g} in "
                f"{len(theirs)} bins, ours {float(ours.min()):g} to {float(ours.max()):g} in {len(ours)}: "
                "its boxes would be decoded wrongly"
            )


class _PassedOver:
    """In place of NumPy's numbers, which mmcv keeps in `meta` and nobody needs: what NumPy has to read them
    follows whatever addresses a file holds."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def read_tensors(path: Path) -> Any:
    """What a torch file holds: tensors and plain values.

    Raises:
        CheckpointError: no such file, not as torch wrote it, or one with other objects in it.
    """
    import torch

    if zipfile.is_zipfile(path) and (fault := zip_fault(path)):
        raise CheckpointError(f"{path}: {fault}")
    names = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    try:
        with torch.serialization.safe_globals([(_PassedOver, name) for name in names]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise _unreadable(path, error) from error
        raise CheckpointError(
            f"{path}: holds {found[1]}, which is no tensor and could run code. If you trust the file, keep "
            "its tensors alone: "
            "torch.save({'state_dict': torch.load(FILE, weights_only=False)['state_dict']}, NEW)"
        ) from error
    except Exception as error:  # zip, storage and version errors of torch have no common type
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return CheckpointError(f"{path}: not a file of tensors that torch reads: {reason}")
