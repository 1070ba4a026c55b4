"""An INT8 model written for ONNX Runtime's integer kernels on CPUs with VNNI.

They want uint8 activations in and out of a convolution, where TensorRT's placement has float in many places.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from rgfl.export.placement import bounds_of, consumers_of
from rgfl.export.qdq import LEVELS, checked

if TYPE_CHECKING:
    import onnx

UNSIGNED_LEVELS = 255  # steps from 0 to the threshold of uint8 values that are never negative
CPU_OFFSET = 128


def cpu_variant(model: onnx.ModelProto, thresholds: Mapping[str, float] | None = None) -> onnx.ModelProto:
    """`model` written for ONNX Runtime's integer kernels, which want uint8 activations in and out.

    Three rewritings are exact: every value that a convolution reads is the same float as before.

    - Activations: zero point int8 0 becomes uint8 128. The grid is the same.
    - Conv (or Add), ReLU (or clip), Q becomes Conv, Q, clip of the integers: quantisation keeps order, so
      it may be done first, and Conv and Q are then one integer kernel.
    - MaxPool, Q becomes Q, MaxPool of the integers, for the same reason.

    That alone is slow: where TensorRT has Q only behind a residual addition, the convolution in front stays
    in float. With `thresholds` three more change the numbers, by at most one step of each tensor's grid; that
    is much where a clip behind cuts off most of the grid:

    - The output of a convolution that stayed float is quantised too.
    - What a ReLU gives is never negative: its grid has 255 steps above zero, not 127, and saturating does
      the ReLU's work.
    - Pixels stay on their own grid where the normalisation allows it: whole means, one deviation for all.

    Args:
        model: what `qdq.insert` gives.
        thresholds: of `float_outputs`; None: only what is exact.
    """
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(model)
    if thresholds is not None:
        _add_grids(result, thresholds)
    _quantise_before_pooling(result)
    if thresholds is not None:
        _saturate_at_zero(result)
        _keep_pixels(result)
    _quantise_before_clipping(result)
    _offset_activations(result)
    return checked(result)


def _add_grids(model: onnx.ModelProto, thresholds: Mapping[str, float]) -> None:
    """Q and DQ behind whatever gives each tensor of `thresholds`."""
    from onnx import helper

    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        tensor = node.output[0]
        if tensor not in thresholds:
            continue
        scale = _constant(model, f"{tensor}.scale", np.float32(thresholds[tensor] / LEVELS))
        node.output[0] = f"{tensor}.float"
        for operator, given, made in (
            ("QuantizeLinear", f"{tensor}.float", f"{tensor}.int8"),
            ("DequantizeLinear", f"{tensor}.int8", tensor),
        ):
            nodes.append(
                helper.make_node(operator, [given, scale, "int8.zero"], [made], name=f"{tensor}/{operator}")
            )
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _constant(model: onnx.ModelProto, name: str, value: np.generic) -> str:
    """A scalar in the graph under this name."""
    from onnx import numpy_helper

    if all(tensor.name != name for tensor in model.graph.initializer):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    return name


def _saturate_at_zero(model: onnx.ModelProto) -> None:
    """Conv|Add → ReLU|Clip from 0 → Q becomes Conv|Add → Q on a grid that begins at zero."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    producer = {output: node for node in model.graph.node for output in node.output}
    consumers = consumers_of(model)
    removed = []
    for node in model.graph.node:
        activation = producer.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        bounds = bounds_of(activation, constants) if activation is not None else None
        if activation is None or bounds is None or bounds[0] != 0:
            continue
        if len(consumers[activation.output[0]]) != 1 or len(consumers[activation.input[0]]) != 1:
            continue
        if producer[activation.input[0]].op_type not in ("Conv", "Add"):
            continue
        threshold = LEVELS * float(numpy_helper.to_array(constants[node.input[1]]))
        scale = _constant(
            model, f"{node.input[1]}.unsigned", np.float32(min(threshold, bounds[1]) / UNSIGNED_LEVELS)
        )
        zero = _constant(model, "uint8.0", np.uint8(0))
        grid = [node, *_integers(node.output[0], consumers)]
        node.input[0] = activation.input[0]
        for one in grid:
            one.input[1], one.input[2] = scale, zero
        removed.append(activation.name)
    kept = [node for node in model.graph.node if node.name not in removed]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _integers(tensor: str, consumers: Mapping[str, list[onnx.NodeProto]]) -> list[onnx.NodeProto]:
    """The DQ nodes that read an integer tensor, through pooling too."""
    found = []
    for node in consumers[tensor]:
        found += [node] if node.op_type == "DequantizeLinear" else _integers(node.output[0], consumers)
    return found


def _keep_pixels(model: onnx.ModelProto) -> None:
    """Cast → Transpose → Sub → Div → Q → DQ becomes Transpose → DQ where that is the same, unrounded.

    (x − mean) / std is what DQ computes of a pixel if the means are whole numbers and the same for all
    channels, as are the deviations.
    """
    from onnx import numpy_helper

    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    producer = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear":
            continue
        chain, tensor = [], node.input[0]
        for operator in ("Div", "Sub", "Transpose", "Cast"):
            before = producer.get(tensor)
            if before is None or before.op_type != operator:
                break
            chain.append(before)
            tensor = before.input[0]
        if len(chain) != 4 or tensor != "images":
            continue
        divide, subtract, transpose, _ = chain
        std, mean = (constants[one.input[1]].ravel() for one in (divide, subtract))
        if len({*std.tolist()}) > 1 or len({*mean.tolist()}) > 1 or mean[0] != round(float(mean[0])):
            continue
        transpose.input[0] = "images"
        scale = _constant(model, "images.scale", np.float32(1 / std[0]))
        zero = _constant(model, f"uint8.{int(mean[0])}", np.uint8(mean[0]))
        for reader in model.graph.node:
            if reader.op_type == "DequantizeLinear" and reader.input[0] == node.output[0]:
                reader.input[:] = [transpose.output[0], scale, zero]
    _remove_unread(model)


def _remove_unread(model: onnx.ModelProto) -> None:
    """Nodes whose outputs nobody reads, the last first."""
    outputs = {output.name for output in model.graph.output}
    while True:
        read = {name for node in model.graph.node for name in node.input} | outputs
        kept = [node for node in model.graph.node if read.intersection(node.output)]
        if len(kept) == len(model.graph.node):
            return
        del model.graph.node[:]
        model.graph.node.extend(kept)


def _quantise_before_pooling(model: onnx.ModelProto) -> None:
    """MaxPool → Q becomes Q → MaxPool of integers."""
    producer = {output: node for node in model.graph.node for output in node.output}
    consumers = consumers_of(model)
    for node in model.graph.node:
        pool = producer.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        if pool is None or pool.op_type != "MaxPool" or len(pool.output) > 1:
            continue
        if len(consumers[pool.output[0]]) != 1:
            continue
        # The two nodes change places in the list and between their tensors. (What is pooled may have a Q of
        # its own, on another grid.)
        first, integers = pool.input[0], f"{pool.output[0]}.unpooled"
        pool.input[0], pool.output[0], node.output[0] = integers, node.output[0], integers
        node.input[0] = first
        quantise, pooling = type(node)(), type(pool)()
        quantise.CopyFrom(node)
        pooling.CopyFrom(pool)
        pool.CopyFrom(quantise)
        node.CopyFrom(pooling)


def _quantise_before_clipping(model: onnx.ModelProto) -> None:
    """Conv|Add → ReLU|Clip → Q becomes Conv|Add → Q → Clip of int8."""
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    producer = {output: node for node in model.graph.node for output in node.output}
    consumers = consumers_of(model)
    outputs = {output.name for output in model.graph.output}
    removed, after = [], {}
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear":
            continue
        activation = producer.get(node.input[0])
        bounds = bounds_of(activation, constants) if activation is not None else None
        if activation is None or bounds is None or activation.output[0] in outputs:
            continue
        before = producer.get(activation.input[0])
        if before is None or before.op_type not in ("Conv", "Add"):
            continue
        if len(consumers[activation.output[0]]) != 1 or len(consumers[before.output[0]]) != 1:
            continue
        scale = numpy_helper.to_array(constants[node.input[1]]).astype(np.float32)
        names = []
        for bound in bounds:
            # As the operator does it: divide in float32, round half to even, saturate.
            steps = np.rint(np.float32(bound) / scale) if math.isfinite(bound) else math.copysign(128, bound)
            step = np.int8(np.clip(steps, -128, 127))
            names.append(_constant(model, f"int8.{step}", step))
        clipped, unclipped = node.output[0], f"{node.output[0]}.unclipped"
        node.input[0], node.output[0] = activation.input[0], unclipped
        after[node.name] = helper.make_node(
            "Clip", [unclipped, *names], [clipped], name=f"{activation.name}.int8"
        )
        removed.append(activation.name)
    nodes = []
    for node in model.graph.node:
        if node.name not in removed:
            nodes.append(node)
        if node.name in after:
            nodes.append(after[node.name])
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _offset_activations(model: onnx.ModelProto) -> None:
    """Zero points of activations, and integers compared with them: int8 x becomes uint8 x + 128."""
    from onnx import TensorProto, numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    producer = {output: node for node in model.graph.node for output in node.output}

    def offset(name: str) -> str:
        if constants[name].data_type == TensorProto.UINT8:
            return name
        value = int(numpy_helper.to_array(constants[name])) + CPU_OFFSET
        return _constant(model, f"uint8.{value}", np.uint8(value))

    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" or (
            node.op_type == "DequantizeLinear" and node.input[0] in producer
        ):
            node.input[2] = offset(node.input[2])
        elif node.op_type == "Clip" and producer[node.input[0]].op_type == "QuantizeLinear":
            for index in (1, 2):
                node.input[index] = offset(node.input[index])
    read = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
