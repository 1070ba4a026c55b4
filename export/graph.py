"""The exported graph as an object: spec, folding, names, files, types, and the NMS node.

    python export/graph.py model.onnx --fp16 --out model.fp16.onnx      for TensorRT 10, 11 and RTX
    python export/graph.py model.onnx --rounding --out rounded.onnx     measures FP16 on any CPU
    python export/graph.py model.onnx --nms --out model.nms.onnx        RotatedNMS as a node

What travels with the file is in `metadata_props`: the spec under rgfl.spec.METADATA_KEY (which
ONNX Runtime hands to consumers in any language), plus a few `rgfl_*` strings for people.

FP16 is written into the graph, because TensorRT 11 knows no other way: from the first convolution to
the head's outputs, weights and activations are float16; normalisation before and decode behind stay
float32. What GroupNorm reads is scaled at export so that it does not overflow. ONNX Runtime on a CPU
computes such a file in float32 and keeps the digits that FP16 drops, so it does not measure FP16.
`--rounding` does: the float32 graph with each constant and each operator's output of that region rounded
to float16 and back, which is what storing them in float16 means. An engine that fuses operators rounds
less often, never more.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rgfl import atomic, errors
from rgfl.errors import ModelError
from rgfl.spec import METADATA_KEY, DetectorSpec, SpecError

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import onnx_graphsurgeon

FP32, FP16, INT8, ROUNDED = "fp32", "fp16", "int8", "fp16-rounded"
FP16_MAX = 65504.0
QUANTISERS = ("QuantizeLinear", "DequantizeLinear")
QUANTISED_OPSET = 19
BEGINNINGS = ("Conv", "ConvTranspose", *QUANTISERS)  # the FP16 region starts at the first of them
ISLAND = "decoder"  # the module whose nodes stay float32: scores, top-k and boxes
# Between two Reshape: GroupNorm. It stays in FP16: of these and the ReLU behind TensorRT makes one kernel,
# which adds up in float32 (to be read in RTX's plans); casts to float32 around it break that up.
NORMALISATION = "InstanceNormalization"
# NVIDIA's domain for nodes that are TensorRT plugins; the parser looks under the namespace of the
# attribute first, and only then under the domain.
PLUGIN_DOMAIN = "trt.plugins"
BEFORE_NMS = "_before_nms"  # what boxes and scores are called where a RotatedNMS takes them

# Operators whose output holds only numbers of their inputs (and 0): in float16 they round nothing.
EXACT = {
    *("Concat", "Expand", "Flatten", "Gather", "GatherElements", "Identity", "Max", "MaxPool", "Min"),
    *("ReduceMax", "ReduceMin", "Relu", "Reshape", "Slice", "Split", "Squeeze", "Tile", "TopK"),
    *("Transpose", "Unsqueeze", "Where"),
}

EXAMPLES = """\
examples:
  python export/graph.py model.onnx --fp16 --out model.fp16.onnx
  python export/graph.py model.onnx --rounding --out model.rounded.onnx
  python trt_runtime/eval_dota.py --model model.rounded.onnx --images DIR --labels DIR    FP16's AP, on a CPU
  python export/graph.py model.onnx --fp16 --keep-fp32 'backbone.net.layer4*' --out model.fp16.onnx

exit status: 0 written, 2 bad input
"""

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


def precision(model: onnx.ModelProto) -> str:
    """FP32, FP16, INT8 or ROUNDED, as whoever wrote the file noted it."""
    return read_note(model, "precision") or FP32


def read_note(model: onnx.ModelProto, name: str) -> str:
    """The metadata string `rgfl_<name>`, or nothing."""
    return next((prop.value for prop in model.metadata_props if prop.key == f"rgfl_{name}"), "")


def write_note(model: onnx.ModelProto, name: str, text: str) -> None:
    """Set the metadata string `rgfl_<name>`."""
    for prop in model.metadata_props:
        if prop.key == f"rgfl_{name}":
            prop.value = text
            return
    model.metadata_props.add(key=f"rgfl_{name}", value=text)


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
    scale_before_norms(graph)
    read_shapes_behind_the_cast(graph)
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


def read_shapes_behind_the_cast(graph: onnx_graphsurgeon.Graph) -> None:
    """Let each Shape of `images` read its Cast: TensorRT wants a UINT8 input to feed nothing else."""
    (images,) = graph.inputs
    for cast in [node for node in images.outputs if node.op == "Cast"]:
        graph.nodes.insert(0, graph.nodes.pop(graph.nodes.index(cast)))  # nodes stay sorted
        for shape in [node for node in images.outputs if node.op == "Shape"]:
            shape.inputs = [cast.outputs[0]]


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


def scale_before_norms(graph: onnx_graphsurgeon.Graph) -> int:
    """Scale the weights of convolutions that only GroupNorm reads, for FP16 to hold their outputs; how many.

    Nothing else bounds them: a tower's first convolution, shared by all levels, was seen to reach 59,500 on
    the coarsest. GroupNorm takes any factor out again, if ε is multiplied by its square. With a power of
    two not a bit of the float32 outputs changes. The factor is the greatest for which no output can exceed
    the greatest input: the sum of a filter's magnitudes is 1 at most.
    """
    import numpy as np
    import onnx_graphsurgeon as gs

    readers: dict[str, list[list[onnx_graphsurgeon.Node]]] = {}  # of each weight: the norms behind each node
    for node in graph.nodes:
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant):
                readers.setdefault(tensor.name, []).append(_norms_behind(node))
    weights = {node.inputs[1].name: node.inputs[1] for node in graph.nodes if node.op == "Conv"}
    scaled = 0
    for name, weight in weights.items():
        if not isinstance(weight, gs.Constant) or not all(readers[name]):
            continue
        greatest = np.abs(weight.values).sum((1, 2, 3), dtype=np.float64).max()
        exponent = int(np.ceil(np.log2(max(greatest, 1.0))))
        weight.values = np.ldexp(weight.values, -exponent)
        for norm in (norm for norms in readers[name] for norm in norms):
            norm.attrs["epsilon"] = float(np.ldexp(norm.attrs.get("epsilon", 1e-5), -2 * exponent))
        scaled += exponent > 0
    return scaled


def _norms_behind(node: onnx_graphsurgeon.Node) -> list[onnx_graphsurgeon.Node]:
    """The normalisations that read a convolution without bias; none if anything else reads it."""
    if node.op != "Conv" or len(node.inputs) > 2:
        return []
    readers = [reader for reader in node.outputs[0].outputs if reader.op != "Shape"]
    behind = [norm for reader in readers for norm in reader.outputs[0].outputs]
    grouped = all(reader.op == "Reshape" for reader in readers)
    return behind if grouped and all(norm.op == NORMALISATION for norm in behind) else []


# --- types -----------------------------------------------------------------------------------------------


@dataclass
class Typing:
    """What became of the nodes when a graph was typed.

    Attributes:
        fp16: names of the nodes that compute in float16.
        refused: name of each node that stays float32 although it lies in the region, and why.
        vanished: weights that were not 0 and are in float16.
        weights: weights in float16.
    """

    fp16: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    vanished: int = 0
    weights: int = 0

    def text(self) -> str:
        lines = [f"{len(self.fp16)} nodes and {self.weights:,} weights in FP16"]
        if self.vanished:
            lines.append(f"{self.vanished:,} weights are below FP16's least number and became 0")
        for reason, count in Counter(self.refused.values()).items():
            first = next(name for name, value in self.refused.items() if value == reason)
            lines.append(f"{count} nodes stay FP32, {reason}: {first}{', …' if count > 1 else ''}")
        return "\n".join(lines)


def to_fp16(model: onnx.ModelProto, keep_fp32: Sequence[str] = ()) -> tuple[onnx.ModelProto, Typing]:
    """A copy of `model` whose region is float16: FP16 as TensorRT 10, 11 and RTX build it.

    Args:
        model: float32, as export/to_onnx.py writes it, with or without a RotatedNMS node.
        keep_fp32: glob patterns of node names that stay float32.

    Raises:
        ModelError: the file is typed already, or is not one of ours.
    """
    return _retype(model, keep_fp32, FP16)


def to_rounded(model: onnx.ModelProto, keep_fp32: Sequence[str] = ()) -> tuple[onnx.ModelProto, Typing]:
    """A float32 copy of `model` that rounds where `to_fp16` stores float16; see the module's text."""
    return _retype(model, keep_fp32, ROUNDED)


def _retype(model: onnx.ModelProto, keep_fp32: Sequence[str], target: str) -> tuple[onnx.ModelProto, Typing]:
    import numpy as np
    import onnx
    import onnx_graphsurgeon as gs

    if precision(model) not in (FP32, INT8):
        raise ModelError(f"the model is {precision(model)} already, expected an FP32 file")
    graph = gs.import_onnx(
        onnx.shape_inference.infer_shapes(_with_half_scales(model), strict_mode=True, data_prop=True)
    )
    nodes, typing = _region(graph, keep_fp32)
    ports = {id(node): _half_ports(node, graph.opset) for node in nodes}
    half = {  # tensors that float16 nodes give
        id(node.outputs[index])
        for node in nodes
        for index in ports[id(node)][1]
        if node.outputs[index].dtype == np.float32
    }
    casts = _Casts(graph, rounded=target == ROUNDED)
    inside = {id(node) for node in nodes}
    for node in list(graph.nodes):
        halves = ports[id(node)][0] if id(node) in inside else ()
        for index, tensor in enumerate(node.inputs):
            if tensor.dtype != np.float32:
                continue
            if index in halves:
                if isinstance(tensor, gs.Constant):
                    node.inputs[index] = casts.constant(tensor, is_scale=node.op in QUANTISERS)
                elif id(tensor) not in half:
                    node.inputs[index] = casts.narrow(tensor)
            elif id(tensor) in half:
                node.inputs[index] = casts.widen(tensor)
    for index, tensor in enumerate(graph.outputs):
        if id(tensor) in half:  # a network without decode behind it
            wide = casts.widen(tensor)
            wide.name, tensor.name = tensor.name, f"{tensor.name}.{FP16}"
            wide.shape, wide.dtype = tensor.shape, np.dtype(np.float32)
            graph.outputs[index] = wide
    casts.finish(half)
    typing.fp16 = [node.name for node in nodes]
    typing.weights, typing.vanished = casts.weights, casts.vanished
    typed = _finished(graph, model)
    before = precision(model)
    write_note(typed, "precision", target if before == FP32 else f"{before}-{target}")
    return typed, typing


def _with_half_scales(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` in an opset whose Q/DQ nodes take float16: 19 only adds types to the operators of 18."""
    import onnx

    if not any(node.op_type in QUANTISERS for node in model.graph.node):
        return model
    raised = onnx.ModelProto()
    raised.CopyFrom(model)
    for entry in raised.opset_import:
        if entry.domain == "":
            entry.version = max(entry.version, QUANTISED_OPSET)
    return raised


def _region(
    graph: onnx_graphsurgeon.Graph, keep_fp32: Sequence[str]
) -> tuple[list[onnx_graphsurgeon.Node], Typing]:
    """The nodes behind the first convolution that are neither decode nor NMS, and why others are not."""
    import onnx_graphsurgeon as gs

    import rgfl.plugins

    graph.toposort()
    modules = {node.name.rpartition("/")[0].partition(".")[0] for node in graph.nodes}
    if ISLAND not in modules:
        raise ModelError(
            f"no node of the module {ISLAND!r}, so that decode cannot stay FP32; "
            "export the checkpoint with: python export/to_onnx.py CHECKPOINT --out MODEL.onnx"
        )
    check_patterns([node.name for node in graph.nodes], keep_fp32)
    typing = Typing()
    nodes = []
    behind: set[int] = set()
    for node in graph.nodes:
        started = node.op in BEGINNINGS or any(id(tensor) in behind for tensor in node.inputs)
        if not started:
            continue
        behind.update(id(tensor) for tensor in node.outputs)
        if node.name.rpartition("/")[0].partition(".")[0] == ISLAND or node.op == rgfl.plugins.NAME:
            continue
        if any(fnmatch.fnmatch(node.name, pattern) for pattern in keep_fp32):
            typing.refused[node.name] = "as asked"
        elif not any(_half_ports(node, graph.opset)):
            if any(tensor.dtype == "float32" for tensor in (*node.inputs, *node.outputs)):
                typing.refused[node.name] = f"as {node.op} of opset {graph.opset} knows no FP16"
        elif any(isinstance(tensor, gs.Constant) and _overflows(tensor.values) for tensor in node.inputs):
            typing.refused[node.name] = f"as they hold constants beyond {FP16_MAX:.0f}"
        else:
            nodes.append(node)
    return nodes, typing


def check_patterns(names: Sequence[str], keep_fp32: Sequence[str]) -> None:
    """InputError for a glob of `keep_fp32` that is none of the nodes' `names`."""
    for pattern in keep_fp32:
        if not fnmatch.filter(names, pattern):
            raise errors.InputError(f"--keep-fp32 {pattern}: no node has such a name; one is {names[-1]}")


def _overflows(values: np.ndarray) -> bool:
    import numpy as np

    return values.dtype == np.float32 and bool((np.abs(values) > FP16_MAX).any())


def _half_ports(node: onnx_graphsurgeon.Node, opset: int) -> tuple[list[int], list[int]]:
    """Which inputs and which outputs of `node` its operator allows to be float16."""
    import onnx

    try:
        schema = onnx.defs.get_schema(node.op, opset, node.domain or "")
    except onnx.defs.SchemaError:
        return [], []
    allowed = {item.type_param_str: item.allowed_type_strs for item in schema.type_constraints}

    def ports(formal: Sequence[onnx.defs.OpSchema.FormalParameter], count: int) -> list[int]:
        found = []
        for index in range(count):
            item = formal[min(index, len(formal) - 1)]
            if "tensor(float16)" in allowed.get(item.type_str, [item.type_str]):
                found.append(index)
        return found

    if node.op == "Cast":  # its type is written in the node, whoever reads it
        return [], []
    return ports(schema.inputs, len(node.inputs)), ports(schema.outputs, len(node.outputs))


class _Casts:
    """Casts at the border of the float16 region, one a tensor; or rounding in place of them."""

    def __init__(self, graph: onnx_graphsurgeon.Graph, *, rounded: bool) -> None:
        self.graph = graph
        self.rounded = rounded
        self.weights = self.vanished = 0
        self._done: dict[tuple[str, int], onnx_graphsurgeon.Tensor] = {}

    def constant(self, tensor: onnx_graphsurgeon.Constant, is_scale: bool) -> onnx_graphsurgeon.Tensor:
        """The constant as float16, or rounded to it; scales of Q/DQ stay positive, as TensorRT demands."""
        import numpy as np
        import onnx_graphsurgeon as gs

        key = ("constant", id(tensor))
        if key not in self._done:
            values = np.asarray(tensor.values, np.float16)
            if is_scale:
                values = np.asarray(np.maximum(values, np.finfo(np.float16).smallest_subnormal))
            self.weights += values.size
            self.vanished += int(((values == 0) & (tensor.values != 0)).sum())
            if self.rounded:
                values = values.astype(np.float32)
            self._done[key] = gs.Constant(f"{tensor.name}.{FP16}", values)
        return self._done[key]

    def narrow(self, tensor: onnx_graphsurgeon.Tensor) -> onnx_graphsurgeon.Tensor:
        """`tensor` of a float32 node for a float16 node."""
        key = ("narrow", id(tensor))
        if key not in self._done:
            cast = self._cast(tensor, FP16, f"{tensor.name}.{FP16}")
            self._done[key] = self._cast(cast, FP32, f"{tensor.name}.{ROUNDED}") if self.rounded else cast
        return self._done[key]

    def widen(self, tensor: onnx_graphsurgeon.Tensor) -> onnx_graphsurgeon.Tensor:
        """`tensor` of a float16 node for a float32 node."""
        if self.rounded:
            return tensor
        key = ("widen", id(tensor))
        if key not in self._done:
            self._done[key] = self._cast(tensor, FP32, f"{tensor.name}.{FP32}")
        return self._done[key]

    def finish(self, half: set[int]) -> None:
        """Mark what float16 nodes give as float16, or round it there."""
        import numpy as np
        import onnx_graphsurgeon as gs

        for node in list(self.graph.nodes):
            for index, tensor in enumerate(node.outputs):
                if id(tensor) not in half:
                    continue
                if not self.rounded:
                    tensor.dtype = np.dtype(np.float16)
                    continue
                if node.op in EXACT:
                    continue
                raw = gs.Variable(f"{tensor.name}.raw", np.float32, tensor.shape)
                node.outputs[index] = raw
                short = self._cast(raw, FP16, f"{tensor.name}.{FP16}")
                self.graph.nodes.append(
                    gs.Node("Cast", f"{tensor.name}/Round", {"to": _onnx_type(FP32)}, [short], [tensor])
                )

    def _cast(self, tensor: onnx_graphsurgeon.Tensor, to: str, name: str) -> onnx_graphsurgeon.Variable:
        import numpy as np
        import onnx_graphsurgeon as gs

        output = gs.Variable(name, np.float16 if to == FP16 else np.float32, tensor.shape)
        self.graph.nodes.append(
            gs.Node("Cast", f"{tensor.name}/To{to.upper()}", {"to": _onnx_type(to)}, [tensor], [output])
        )
        return output


def _onnx_type(name: str) -> int:
    import onnx

    return int(onnx.TensorProto.FLOAT16 if name == FP16 else onnx.TensorProto.FLOAT)


def _finished(graph: onnx_graphsurgeon.Graph, source: onnx.ModelProto) -> onnx.ModelProto:
    """The model of `graph`, with what gs does not keep taken from `source`; checked."""
    import onnx
    import onnx_graphsurgeon as gs

    graph.cleanup().toposort()
    model = gs.export_onnx(graph)
    model.ir_version = source.ir_version
    model.producer_name, model.producer_version = source.producer_name, source.producer_version
    del model.metadata_props[:]
    model.metadata_props.extend(source.metadata_props)
    onnx.checker.check_model(model, full_check=True)
    return model


# --- the NMS node ----------------------------------------------------------------------------------------


def has_nms(model: onnx.ModelProto) -> bool:
    """Whether a RotatedNMS node gives the outputs."""
    import rgfl.plugins

    return any(node.op_type == rgfl.plugins.NAME for node in model.graph.node)


def check_outputs(model: onnx.ModelProto) -> None:
    """ModelError where the outputs are not those that a RotatedNMS node takes."""
    found = sorted(tensor.name for tensor in model.graph.output)
    if found != ["boxes", "scores"]:
        raise ModelError(
            f"expected the outputs boxes and scores before NMS, found {found}; "
            "write the file anew with export/to_onnx.py, without --uncertainty"
        )


def add_nms(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` that ends in a RotatedNMS node with the thresholds of its spec."""
    import numpy as np
    import onnx_graphsurgeon as gs

    import rgfl.plugins

    check_outputs(model)
    spec = read_spec(model)
    graph = gs.import_onnx(model)
    outputs = {tensor.name: tensor for tensor in graph.outputs}
    for name, tensor in outputs.items():
        tensor.name = name + BEFORE_NMS
    batch, rows = outputs["boxes"].shape[0], spec.max_detections
    types = {"float32": float, "int32": int}
    attributes = {name: types[kind](getattr(spec, name)) for name, kind in rgfl.plugins.attributes().items()}
    given = [
        gs.Variable("num_detections", np.int32, (batch, 1)),
        gs.Variable("boxes", np.float32, (batch, rows, 5)),
        gs.Variable("scores", np.float32, (batch, rows)),
        gs.Variable("labels", np.int32, (batch, rows)),
    ]
    node = gs.Node(
        rgfl.plugins.NAME,
        rgfl.plugins.NAME,
        {**attributes, "plugin_version": rgfl.plugins.VERSION, "plugin_namespace": rgfl.plugins.NAMESPACE},
        [outputs["boxes"], outputs["scores"]],
        given,
        domain=PLUGIN_DOMAIN,
    )
    graph.nodes.append(node)
    graph.outputs = given
    graph.import_domains = [*model.opset_import, _opset(PLUGIN_DOMAIN, 1)]
    return _finished(graph, model)


def cut_nms(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` without its RotatedNMS node: outputs boxes and scores before NMS."""
    import onnx_graphsurgeon as gs

    import rgfl.plugins

    graph = gs.import_onnx(model)
    found = [node for node in graph.nodes if node.op == rgfl.plugins.NAME]
    if len(found) != 1:
        raise ModelError(f"expected one {rgfl.plugins.NAME} node to cut, found {len(found)}")
    boxes, scores = found[0].inputs
    for tensor in found[0].outputs:
        tensor.name = f"{tensor.name}.cut"
    found[0].outputs = []
    boxes.name, scores.name = "boxes", "scores"
    graph.outputs = [boxes, scores]
    graph.import_domains = [entry for entry in model.opset_import if entry.domain != PLUGIN_DOMAIN]
    return _finished(graph, model)


def _opset(domain: str, version: int) -> onnx.OperatorSetIdProto:
    import onnx

    return onnx.helper.make_opsetid(domain, version)


# --- command ---------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="graph",
        description="Types and nodes of an exported model, written to another file.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="FP32, from export/to_onnx.py")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT.onnx", help="the file to write")
    types = parser.add_mutually_exclusive_group()
    types.add_argument(
        "--fp16", action="store_true", help="FP16 body, FP32 decode: what an engine is built of"
    )
    types.add_argument(
        "--rounding", action="store_true", help="FP32 that rounds as FP16 does: measures it on a CPU"
    )
    parser.add_argument(
        "--keep-fp32", default="", metavar="GLOB,…", help="nodes that stay FP32, by name, such as 'neck*'"
    )
    nodes = parser.add_mutually_exclusive_group()
    nodes.add_argument(
        "--nms", action="store_true", help="end in a RotatedNMS node (TensorRT with the plugin)"
    )
    nodes.add_argument("--no-nms", action="store_true", help="cut the RotatedNMS node")
    arguments = parser.parse_args(argv)
    return errors.run("graph", lambda: edit(arguments))


def edit(arguments: argparse.Namespace) -> int:
    """The command behind `main`, with parsed arguments."""
    check_packages()
    if not (arguments.fp16 or arguments.rounding or arguments.nms or arguments.no_nms):
        raise errors.InputError("nothing to do; give --fp16, --rounding, --nms or --no-nms")
    if arguments.keep_fp32 and not (arguments.fp16 or arguments.rounding):
        raise errors.InputError("--keep-fp32 goes with --fp16 or --rounding")
    if arguments.out.suffix.lower() != ".onnx":
        raise errors.InputError(f"--out {arguments.out}: expected a file name that ends in .onnx")
    errors.new_file(arguments.out, "--out", [arguments.model])
    model = load(arguments.model, weights=False)
    errors.none_of(arguments.out, "--out", weight_files(model, arguments.model))
    load_weights(model, arguments.model)
    try:
        read_spec(model)
        keep = [pattern for pattern in arguments.keep_fp32.split(",") if pattern]
        if arguments.no_nms:
            model = cut_nms(model)
        if arguments.fp16 or arguments.rounding:
            model, typing = (to_fp16 if arguments.fp16 else to_rounded)(model, keep)
            print(typing.text())
        if arguments.nms:
            model = add_nms(model)
    except (ModelError, SpecError) as error:
        raise ModelError(f"{arguments.model}: {error}") from error
    save(model, arguments.out)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.1f} MB, {precision(model)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
