"""Q/DQ nodes in a graph: symmetric int8, one scale a tensor, one an output channel for weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rgfl.export.placement import Placement

if TYPE_CHECKING:
    import onnx


LEVELS = 127  # steps from 0 to the threshold
LEAST = LEVELS * np.finfo(np.float32).tiny  # weights below are 0: denormal scales are not everywhere allowed


def weight_scale(weight: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Of each channel along `axis`: its greatest magnitude becomes 127. 1/127 where all are LEAST or less."""
    others = tuple(index for index in range(weight.ndim) if index != axis)
    greatest = np.abs(weight).max(axis=others)
    return (np.where(greatest > LEAST, greatest, 1.0) / LEVELS).astype(np.float32)


class WeightSteps(NamedTuple):
    """A weight on its grid."""

    steps: NDArray[np.int8]  # -127…127, in the weight's shape
    shift: NDArray[np.float32] | None = None  # (O,) to be added to the bias; None: nothing


def nearest(weight: NDArray[np.float32], axis: int) -> WeightSteps:
    """Each weight at the nearest step of the grid of `weight_scale`."""
    scale = weight_scale(weight, axis).astype(np.float64)
    steps = np.rint(weight / scale.reshape([-1 if index == axis else 1 for index in range(weight.ndim)]))
    return WeightSteps(np.clip(steps, -LEVELS, LEVELS).astype(np.int8))


def insert(
    model: onnx.ModelProto,
    placement: Placement,
    thresholds: Mapping[str, float],
    weights: Mapping[str, WeightSteps] | None = None,
) -> onnx.ModelProto:
    """A copy of `model` with Q/DQ at `placement`; a tensor has one Q, each of its readers its own DQ.

    Args:
        model: in float.
        thresholds: magnitude of each activation that becomes 127.
        weights: of layers, by name; None: each weight at its nearest step.
    """
    import onnx
    from onnx import helper, numpy_helper

    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    fresh: dict[str, onnx.TensorProto] = {}
    nodes: list[onnx.NodeProto] = []
    quantised: set[tuple[str, str]] = set()

    def constant(name: str, values: NDArray) -> str:
        if name not in fresh:
            fresh[name] = numpy_helper.from_array(values, name)
        return name

    def dequantise(inputs: list[str], output: str, axis: int | None = None) -> str:
        name = f"{output}/DequantizeLinear"
        nodes.append(helper.make_node("DequantizeLinear", inputs, [output], name=name, axis=axis))
        return output

    def activation(node: onnx.NodeProto, index: int, source: str) -> str:
        """An input of a node, through int8 and back on the grid of `source`."""
        tensor = node.input[index]
        scale = constant(f"{source}.scale", np.array(thresholds[source] / LEVELS, np.float32))
        zero = constant("int8.zero", np.array(0, np.int8))
        if (tensor, source) not in quantised:
            quantised.add((tensor, source))
            name = f"{tensor}/QuantizeLinear"
            inputs = [tensor, scale, zero]
            nodes.append(helper.make_node("QuantizeLinear", inputs, [f"{tensor}.int8"], name=name))
        return dequantise([f"{tensor}.int8", scale, zero], f"{node.name}.input{index}")

    def weight(node: onnx.NodeProto) -> str:
        """The weight of a node, stored as int8; what that shifts, its bias takes back."""
        axis, name = placement.weights[node.name], node.input[1]
        values = numpy_helper.to_array(constants[name])
        steps, shift = nearest(values, axis) if weights is None else weights[name]
        inputs = [
            constant(f"{name}.int8", steps),
            constant(f"{name}.scale", weight_scale(values, axis)),
            constant(f"{name}.zero", np.zeros(values.shape[axis], np.int8)),
        ]
        if shift is not None:
            if len(node.input) < 3:
                node.input.append("")
            bias = node.input[2]
            before = numpy_helper.to_array(constants[bias]) if bias else np.float32(0)
            node.input[2] = constant(f"{name}.shifted.{bias}", before + shift)
        return dequantise(inputs, f"{node.name}.weight", axis=axis)

    for node in graph.node:
        for index in range(len(node.input)):
            source = placement.activations.get((node.name, index))
            if source is not None:
                node.input[index] = activation(node, index, source)
            elif index == 1 and node.name in placement.weights:
                node.input[1] = weight(node)
        nodes.append(node)
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.initializer[:]
    graph.initializer.extend([*kept, *fresh.values()])
    return result


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with its shapes inferred anew, after ONNX's checker has passed it."""
    import onnx

    del model.graph.value_info[:]
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    onnx.checker.check_model(model, full_check=True)
    return model
