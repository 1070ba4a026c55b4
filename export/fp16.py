"""FP16 written into an exported graph, and its rounding measured in float32.

TensorRT 11 takes precision from the graph alone, so FP16 is written there: from the first convolution to the
head's outputs, weights and activations are float16; normalisation before and decode behind stay float32.
What GroupNorm reads is scaled at export so that it does not overflow (graph.scale_before_norms). GroupNorm
itself stays FP16: TensorRT fuses it with the following ReLU into one kernel that accumulates in FP32, and
casts around it would prevent the fusion.

ONNX Runtime on a CPU computes such a file in float32 and keeps the digits that FP16 drops, so it does not
measure FP16. The file of `to_rounded` does: the float32 graph with each constant and each operator's output
of that region rounded to float16 and back, which is what storing them in float16 means. An engine that
fuses operators rounds less often, never more.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import rgfl.plugins
from rgfl import errors
from rgfl.errors import ModelError
from rgfl.export.onnx_file import FP16, FP32, INT8, ROUNDED, precision, to_model, write_notes

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import onnx_graphsurgeon

FP16_MAX = 65504.0
QUANTISERS = ("QuantizeLinear", "DequantizeLinear")
QUANTISED_OPSET = 19
FP16_STARTS = ("Conv", "ConvTranspose", *QUANTISERS)  # the FP16 region starts at the first of them
FP32_MODULE = "decoder"  # its nodes stay float32: scores, top-k and boxes

# Operators whose output holds only numbers of their inputs (and 0): in float16 they round nothing.
EXACT = {
    *("Concat", "Expand", "Flatten", "Gather", "GatherElements", "Identity", "Max", "MaxPool", "Min"),
    *("ReduceMax", "ReduceMin", "Relu", "Reshape", "Slice", "Split", "Squeeze", "Tile", "TopK"),
    *("Transpose", "Unsqueeze", "Where"),
}


@dataclass
class Fp16Report:
    """What became of the nodes when a graph was typed.

    Attributes:
        fp16: names of the nodes that compute in float16.
        refused: name of each node that stays float32 although it lies in the region, and why.
        underflowed: how many weights are 0 in float16 that were not before.
        weights: how many are in float16.
    """

    fp16: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    underflowed: int = 0
    weights: int = 0

    def text(self) -> str:
        lines = [f"{len(self.fp16)} nodes and {self.weights:,} weights in FP16"]
        if self.underflowed:
            lines.append(f"{self.underflowed:,} weights are below FP16's least number and became 0")
        for reason, count in Counter(self.refused.values()).items():
            first = next(name for name, value in self.refused.items() if value == reason)
            lines.append(f"{count} nodes stay FP32, {reason}: {first}{', …' if count > 1 else ''}")
        return "\n".join(lines)


def to_fp16(model: onnx.ModelProto, keep_fp32: Sequence[str] = ()) -> tuple[onnx.ModelProto, Fp16Report]:
    """A copy of `model` whose region is float16: FP16 as TensorRT 10, 11 and RTX build it.

    Args:
        model: float32, as export/to_onnx.py writes it, with or without a RotatedNMS node.
        keep_fp32: glob patterns of node names that stay float32.

    Raises:
        ModelError: the file is typed already, or is not one of ours.
    """
    return _retype(model, keep_fp32, FP16)


def to_rounded(model: onnx.ModelProto, keep_fp32: Sequence[str] = ()) -> tuple[onnx.ModelProto, Fp16Report]:
    """A float32 copy of `model` that rounds where `to_fp16` stores float16; see the module's text."""
    return _retype(model, keep_fp32, ROUNDED)


def _retype(
    model: onnx.ModelProto, keep_fp32: Sequence[str], target: str
) -> tuple[onnx.ModelProto, Fp16Report]:
    import numpy as np
    import onnx
    import onnx_graphsurgeon as gs

    if precision(model) not in (FP32, INT8):
        raise ModelError(f"the model is {precision(model)} already, expected an FP32 file")
    graph = gs.import_onnx(
        onnx.shape_inference.infer_shapes(_with_half_scales(model), strict_mode=True, data_prop=True)
    )
    nodes, report = _region(graph, keep_fp32)
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
    report.fp16 = [node.name for node in nodes]
    report.weights, report.underflowed = casts.weights, casts.underflowed
    typed = to_model(graph, model)
    before = precision(model)
    write_notes(typed, precision=target if before == FP32 else f"{before}-{target}")
    return typed, report


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
) -> tuple[list[onnx_graphsurgeon.Node], Fp16Report]:
    """The nodes behind the first convolution that are neither decode nor NMS, and why others are not."""
    import onnx_graphsurgeon as gs

    graph.toposort()
    modules = {node.name.rpartition("/")[0].partition(".")[0] for node in graph.nodes}
    if FP32_MODULE not in modules:
        raise ModelError(
            f"no node of the module {FP32_MODULE!r}, so that decode cannot stay FP32; "
            "export the checkpoint with: python export/to_onnx.py CHECKPOINT --out MODEL.onnx"
        )
    check_patterns([node.name for node in graph.nodes], keep_fp32)

    def asked(node: onnx_graphsurgeon.Node) -> bool:
        names = [node.name]
        if node.op == "QuantizeLinear":  # goes with its readers: named after a tensor, and of the same scale
            names += [reader.name for reader in node.outputs[0].outputs]
        return any(fnmatch.fnmatch(name, pattern) for name in names for pattern in keep_fp32)

    report = Fp16Report()
    nodes = []
    behind: set[int] = set()
    for node in graph.nodes:
        started = node.op in FP16_STARTS or any(id(tensor) in behind for tensor in node.inputs)
        if not started:
            continue
        behind.update(id(tensor) for tensor in node.outputs)
        if node.name.rpartition("/")[0].partition(".")[0] == FP32_MODULE or node.op == rgfl.plugins.NAME:
            continue
        if asked(node):
            report.refused[node.name] = "as asked"
        elif not any(_half_ports(node, graph.opset)):
            if any(tensor.dtype == "float32" for tensor in (*node.inputs, *node.outputs)):
                report.refused[node.name] = f"as {node.op} of opset {graph.opset} knows no FP16"
        elif any(isinstance(tensor, gs.Constant) and _overflows(tensor.values) for tensor in node.inputs):
            report.refused[node.name] = f"as they hold constants beyond {FP16_MAX:.0f}"
        else:
            nodes.append(node)
    return nodes, report


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
        self.weights = self.underflowed = 0
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
            self.underflowed += int(((values == 0) & (tensor.values != 0)).sum())
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
