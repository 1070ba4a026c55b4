"""The exported graph as an object: spec in the metadata, folding, names, files.

What travels with the file is in `metadata_props`: the spec under rgfl.spec.METADATA_KEY (which
ONNX Runtime hands to consumers in any language), plus a few `rgfl_*` strings for people.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from rgfl import atomic
from rgfl.spec import METADATA_KEY, DetectorSpec, SpecError
from rgfl.trt_runtime.errors import ModelError

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon

SCOPES_KEY = "pkg.torch.onnx.name_scopes"  # where torch says which module a node comes from


# --- spec and metadata ---------------------------------------------------------------------------------


def write_spec(model: onnx.ModelProto, spec: DetectorSpec, **notes: str) -> None:
    """Put `spec`, and each note under `rgfl_<name>`, into the metadata of `model`."""
    values = {METADATA_KEY: spec.to_json(), **{f"rgfl_{name}": text for name, text in notes.items()}}
    kept = [prop for prop in model.metadata_props if prop.key not in values]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    for key, value in values.items():
        model.metadata_props.add(key=key, value=value)


def read_spec(model: onnx.ModelProto) -> DetectorSpec:
    """The spec in the metadata of `model`.

    Raises:
        SpecError: there is none, or this version cannot read it.
    """
    for prop in model.metadata_props:
        if prop.key == METADATA_KEY:
            return DetectorSpec.from_json(prop.value)
    raise SpecError(
        "no rgfl spec in the model's metadata; export the checkpoint with: "
        "python export/to_onnx.py CHECKPOINT --out MODEL.onnx"
    )


# --- files -----------------------------------------------------------------------------------------------


def load(path: Path) -> onnx.ModelProto:
    """The model in `path`; ModelError where it is not ONNX."""
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    try:
        model = onnx.load(path)
    except (DecodeError, ValueError) as error:
        raise ModelError(f"{path}: no ONNX model ({' '.join(str(error).split())})") from error
    if not model.graph.node:
        raise ModelError(f"{path}: no ONNX model (it has no nodes)")
    return model


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write `model` to `path`, whole or not at all; equal models give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(path, model.SerializeToString(deterministic=True))


# --- surgery ---------------------------------------------------------------------------------------------


def tidy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Constants and BatchNorm folded, nodes named after their modules, traces of the exporter removed."""
    import onnx
    import onnx_graphsurgeon as gs

    name_nodes(model)
    strip(model)
    graph = gs.import_onnx(model)
    fold_batch_norm(graph)
    # ONNX Runtime does the folding; what it would blow up (large tiles of zeros) stays as it is.
    graph.fold_constants(size_threshold=1 << 20, error_ok=False).cleanup(remove_unused_graph_inputs=True)
    folded = gs.export_onnx(graph)
    folded.ir_version = model.ir_version
    folded.producer_name = "rgfl"
    folded.producer_version = ""
    folded = onnx.shape_inference.infer_shapes(folded, strict_mode=True, data_prop=True)
    onnx.checker.check_model(folded, full_check=True)
    return folded


def name_nodes(model: onnx.ModelProto) -> None:
    """Rename nodes to `module.path/Operator`, with a number where that is not unique.

    Later steps find layers by these names: the two output convolutions stay out of INT8.
    """
    taken: Counter[str] = Counter()
    for node in model.graph.node:
        scopes = next((prop.value for prop in node.metadata_props if prop.key == SCOPES_KEY), "")
        module = _module_path(scopes)
        name = f"{module}/{node.op_type}" if module else node.op_type
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}.{taken[name]}"


def _module_path(scopes: str) -> str:
    """`detector.head.cls` from torch's list "['', 'detector', …, 'detector.head.cls', 'conv2d_7']"."""
    import ast

    try:
        parts = ast.literal_eval(scopes)
    except (SyntaxError, ValueError):
        return ""
    path = str(parts[-2]) if len(parts) > 1 else ""
    return "" if path == "detector" or path.startswith("_") else path.removeprefix("detector.")


def strip(model: onnx.ModelProto) -> None:
    """Remove doc strings and the exporter's metadata, which hold source lines and local paths."""
    model.doc_string = ""
    model.graph.doc_string = ""
    groups = (
        model.graph.node,
        model.graph.input,
        model.graph.output,
        model.graph.value_info,
        model.graph.initializer,
    )
    for group in groups:
        for item in group:
            item.doc_string = ""
            del item.metadata_props[:]
    del model.graph.metadata_props[:]


def fold_batch_norm(graph: onnx_graphsurgeon.Graph) -> int:
    """Fold each BatchNormalization into the convolution before it, in float64; returns how many."""
    import numpy as np
    import onnx_graphsurgeon as gs

    folded = 0
    for norm in [node for node in graph.nodes if node.op == "BatchNormalization"]:
        convolution = norm.i(0) if norm.inputs[0].inputs else None
        constant = all(isinstance(tensor, gs.Constant) for tensor in norm.inputs[1:])
        if convolution is None or convolution.op != "Conv" or not constant:
            continue
        if len(convolution.outputs[0].outputs) != 1 or convolution.outputs[0] in graph.outputs:
            continue
        if not all(isinstance(tensor, gs.Constant) for tensor in convolution.inputs[1:]):
            continue
        scale, shift, mean, variance = (tensor.values.astype(np.float64) for tensor in norm.inputs[1:5])
        gain = scale / np.sqrt(variance + norm.attrs.get("epsilon", 1e-5))
        weight = convolution.inputs[1].values.astype(np.float64) * gain[:, None, None, None]
        bias = convolution.inputs[2].values.astype(np.float64) if len(convolution.inputs) > 2 else 0.0
        stem = convolution.name
        convolution.inputs = [
            convolution.inputs[0],
            gs.Constant(f"{stem}.folded_weight", weight.astype(np.float32)),
            gs.Constant(f"{stem}.folded_bias", (shift + (bias - mean) * gain).astype(np.float32)),
        ]
        convolution.outputs = [norm.outputs[0]]
        norm.outputs = []
        folded += 1
    graph.cleanup()
    return folded
