"""Files of exported models: reading and writing them, and what travels in their metadata.

The spec lies in `metadata_props` under rgfl.spec.METADATA_KEY, which ONNX Runtime hands to consumers in any
language; beside it are notes under `rgfl_<name>`, such as the precision.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from rgfl import atomic, errors
from rgfl.errors import ModelError
from rgfl.spec import METADATA_KEY, DetectorSpec, SpecError

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon

FP32, FP16, INT8, ROUNDED = "fp32", "fp16", "int8", "fp16-rounded"


# --- spec and metadata ---------------------------------------------------------------------------------


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    """The metadata strings of `model`."""
    return {prop.key: prop.value for prop in model.metadata_props}


def write_notes(model: onnx.ModelProto, **notes: str) -> None:
    """Set the metadata string `rgfl_<name>` for each note."""
    import onnx

    onnx.helper.set_model_props(
        model, metadata(model) | {f"rgfl_{name}": text for name, text in notes.items()}
    )


def write_spec(model: onnx.ModelProto, spec: DetectorSpec, **notes: str) -> None:
    """Put `spec` and the notes into the metadata of `model`; METADATA_KEY is "rgfl_spec"."""
    write_notes(model, spec=spec.to_json(), **notes)


def read_spec(model: onnx.ModelProto) -> DetectorSpec:
    """The spec in the metadata of `model`.

    Raises:
        SpecError: there is none, or this version cannot read it.
    """
    if METADATA_KEY not in metadata(model):
        raise SpecError(
            "no rgfl spec in the model's metadata; export the checkpoint with: "
            "python export/to_onnx.py CHECKPOINT --out MODEL.onnx"
        )
    return DetectorSpec.from_json(metadata(model)[METADATA_KEY])


def read_note(model: onnx.ModelProto, name: str) -> str:
    """The metadata string `rgfl_<name>`, or nothing."""
    return metadata(model).get(f"rgfl_{name}", "")


def precision(model: onnx.ModelProto) -> str:
    """FP32, FP16, INT8 or ROUNDED, as whoever wrote the file noted it; or two of them: "int8-fp16"."""
    return read_note(model, "precision") or FP32


# --- files -----------------------------------------------------------------------------------------------


def check_packages(extra: str = "build") -> None:
    """InputError, with the `extra` to install, where what reads and edits graphs is missing."""
    for name in ("onnx", "onnx_graphsurgeon"):
        if importlib.util.find_spec(name) is None:
            raise errors.InputError(f"{name} is not installed: pip install 'rgfl[{extra}]'")


def load(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """The model in `path`.

    Args:
        weights: also those that lie in files of their own (never so in files that are written here).

    Raises:
        ModelError: it is not ONNX, or a file with its weights is missing or too short.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise ModelError(f"{path}: no ONNX model ({errors.one_line(error)})") from error
    if not model.graph.node:
        raise ModelError(f"{path}: no ONNX model (it has no nodes)")
    if weights:
        load_weights(model, path)
    return model


def weight_files(model: onnx.ModelProto, path: Path) -> list[Path]:
    """Files beside `path` that hold weights which are not yet loaded into `model`; by name."""
    from onnx import external_data_helper as external

    outside = [tensor for tensor in model.graph.initializer if external.uses_external_data(tensor)]
    return [
        path.parent / name
        for name in sorted({external.ExternalDataInfo(tensor).location for tensor in outside})
    ]


def load_weights(model: onnx.ModelProto, path: Path) -> None:
    """Read weights that lie beside `path` into `model`; ModelError as in `load`."""
    import onnx
    from onnx import external_data_helper as external

    for file in weight_files(model, path):
        if not file.is_file():
            raise ModelError(f"{path}: its weights lie in {file}, which is missing; copy it there")
    try:
        external.load_external_data_for_model(model, str(path.parent))
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ModelError(f"{path}: its weights cannot be read ({errors.one_line(error)})") from error


def input_shape(model: onnx.ModelProto) -> tuple[int, ...]:
    """Of `images`, without the batch: (H, W, 3) of uint8, or (3, H, W) of float32."""
    return tuple(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim)[1:]


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write `model` to `path`, whole or not at all; equal models give equal bytes."""
    atomic.write_bytes(path, model.SerializeToString(deterministic=True))


def to_model(graph: onnx_graphsurgeon.Graph, source: onnx.ModelProto) -> onnx.ModelProto:
    """The model of `graph`, checked; what graphsurgeon does not keep comes from `source`."""
    import onnx
    import onnx_graphsurgeon as gs

    graph.cleanup().toposort()
    model = gs.export_onnx(graph)
    model.ir_version = source.ir_version
    model.producer_name, model.producer_version = source.producer_name, source.producer_version
    onnx.helper.set_model_props(model, metadata(source))
    onnx.checker.check_model(model, full_check=True)
    return model
