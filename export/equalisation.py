"""Cross-layer equalisation: every channel of a tensor fills the grid that the tensor has.

A tensor has one scale, so a channel of small values gets few of the 127 steps. Between two convolutions each
channel may be multiplied by a factor and the next weights divided by it: the network computes what it did,
and the channel uses more steps (Nagel et al., arXiv 1906.04721, §4.1). There the ranges of weights are
balanced; here only activations count, since gptq.py leaves hardly any error in the weights. ReLU, pooling
and resizing may lie between, and additions whose terms get the same factors. The bound of a ReLU6 stays: for
a channel that is multiplied it cuts off more, but never a value that was seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rgfl import errors
from rgfl.export.network import Network
from rgfl.export.placement import attribute, bounds_of, consumers_of, float_outputs, place
from rgfl.spec import DetectorSpec

if TYPE_CHECKING:
    import onnx

GREATEST_FACTOR = 16.0  # for channels that hardly ever fire, of which calibration tells little
BY_CHANNEL = ("MaxPool", "AveragePool", "Resize")  # operators that keep a channel's factor


@dataclass
class _Group:
    """Tensors whose channels have the same factors, and the convolutions around them."""

    tensors: list[str] = field(default_factory=list)
    written_by: list[onnx.NodeProto] = field(default_factory=list)
    read_by: list[onnx.NodeProto] = field(default_factory=list)
    bounds: dict[str, float] = field(default_factory=dict)  # of tensors that a Clip gives


def equalise(
    model: onnx.ModelProto, tiles: Sequence[NDArray[np.uint8]], spec: DetectorSpec
) -> onnx.ModelProto:
    """A copy of the float `model` with other weights, whose outputs on `tiles` are the same.

    Args:
        tiles: (1, H, W, 3) each.

    Raises:
        ModelError: a tensor is not finite.
    """
    import onnx
    from onnx import numpy_helper

    placement = place(model)
    # Those of the CPU's variant too, which has a grid in front of residual additions.
    quantised = {*placement.tensors, *float_outputs(model, placement)}
    groups = [group for group in _groups(model) if quantised.intersection(group.tensors)]
    looked_at = [
        name for group in groups for name in group.tensors if name in quantised or name in group.bounds
    ]
    peaks = _peaks(model, looked_at, tiles, spec)

    result = onnx.ModelProto()
    result.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in result.graph.initializer}

    def multiply(name: str, factors: NDArray[np.float64]) -> None:
        values = numpy_helper.to_array(constants[name]).astype(np.float64)
        constants[name].CopyFrom(numpy_helper.from_array((values * factors).astype(np.float32), name))

    for group in groups:
        factor = _factors(group, peaks, quantised)
        for node in _one_a_weight(group.written_by):
            multiply(node.input[1], factor.reshape(-1, 1, 1, 1))
            if bias := _bias(node):
                multiply(bias, factor)
        for node in _one_a_weight(group.read_by):
            depthwise = attribute(node, "group", 1) > 1
            multiply(node.input[1], 1 / factor.reshape((-1, 1, 1, 1) if depthwise else (1, -1, 1, 1)))
    return result


def _factors(
    group: _Group, peaks: Mapping[str, NDArray[np.float32]], quantised: set[str]
) -> NDArray[np.float64]:
    """(C,) at least 1, the greatest with which no tensor needs a larger grid or exceeds its bound."""
    factors = []
    for name in group.tensors:
        limits = [group.bounds[name]] if name in group.bounds else []
        if name in quantised:
            limits.append(float(peaks[name].max()))
        if limits:
            free = np.full(peaks[name].shape, np.inf)
            factors.append(np.divide(min(limits), peaks[name], out=free, where=peaks[name] > 0))
    factor = np.min(factors, axis=0)
    return np.where(np.isinf(factor), 1.0, np.clip(factor, 1.0, GREATEST_FACTOR))


def _peaks(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    tiles: Sequence[NDArray[np.uint8]],
    spec: DetectorSpec,
) -> dict[str, NDArray[np.float32]]:
    """(C,) greatest magnitude of each channel of (1, C, H, W) tensors, over all tiles."""
    from tqdm import tqdm

    if not tensors:
        return {}
    network = Network(model, tensors, spec)
    peaks: dict[str, NDArray[np.float32]] = {}
    for tile in tqdm(tiles, unit="tile", desc="equalise", disable=None):
        for name, values in zip(tensors, network(tile), strict=True):
            greatest = np.maximum(values.max(axis=(0, 2, 3)), -values.min(axis=(0, 2, 3)))
            if not np.isfinite(greatest).all():
                raise errors.ModelError(f"tensor {name!r} is not finite: the FP32 model is broken")
            peaks[name] = np.maximum(peaks.get(name, 0), greatest)
    return peaks


# --- what shares its factors --------------------------------------------------------------------------------


def _groups(model: onnx.ModelProto) -> list[_Group]:
    """The groups that convolutions alone write and read, with weights that nothing else uses."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    tensors = _Sets()
    fixed = {value.name for value in [*model.graph.input, *model.graph.output]}
    convolutions = []
    bounds = {}
    for node in model.graph.node:
        changing = [name for name in node.input if name and name not in constants]
        limits = bounds_of(node, constants)
        if node.op_type == "Conv" and _is_scalable(node, constants):
            convolutions.append(node)
        elif node.op_type == "Add" and len(changing) == 2:
            tensors.join([*changing, *node.output])
        elif node.op_type in BY_CHANNEL or (limits and limits[0] == 0):
            tensors.join([node.input[0], node.output[0]])
            if limits and np.isfinite(limits[1]):
                bounds[node.output[0]] = limits[1]
        elif node.op_type != "Shape":
            fixed.update([*changing, *node.output])

    readers = consumers_of(model)
    for weight in dict.fromkeys(node.input[1] for node in convolutions):
        sharing = [node for node in convolutions if node.input[1] == weight]
        tensors.join([node.input[0] for node in sharing])
        tensors.join([node.output[0] for node in sharing])
        used = [name for node in sharing for name in node.input[1:] if name]
        if len({_bias(node) for node in sharing}) > 1 or any(
            reader not in sharing for name in used for reader in readers[name]
        ):
            fixed.update(name for node in sharing for name in (node.input[0], node.output[0]))

    groups: dict[str, _Group] = {}
    for name in tensors.members():
        groups.setdefault(tensors.of(name), _Group()).tensors.append(name)
    for node in convolutions:
        groups.setdefault(tensors.of(node.output[0]), _Group()).written_by.append(node)
        groups.setdefault(tensors.of(node.input[0]), _Group()).read_by.append(node)
    for name, bound in bounds.items():
        groups[tensors.of(name)].bounds[name] = bound
    return [
        group
        for group in groups.values()
        if group.written_by
        and group.read_by
        and not fixed.intersection(group.tensors)
        and len(_channels(group, constants)) == 1  # or an addition repeats a channel
    ]


def _is_scalable(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """A convolution of images with constant weights, dense or depthwise with one output a channel."""
    weight = constants.get(node.input[1])
    if weight is None or len(weight.dims) != 4 or _bias(node) not in {"", *constants}:
        return False
    groups = attribute(node, "group", 1)
    return bool(groups == 1 or list(weight.dims[:2]) == [groups, 1])


def _channels(group: _Group, constants: Mapping[str, onnx.TensorProto]) -> set[int]:
    """Numbers of channels that its writers give and its readers expect."""
    given = {constants[node.input[1]].dims[0] for node in group.written_by}
    expected = {constants[node.input[1]].dims[1] * attribute(node, "group", 1) for node in group.read_by}
    return given | expected


def _bias(node: onnx.NodeProto) -> str:
    """Name of a convolution's bias, "" if it has none."""
    return node.input[2] if len(node.input) > 2 else ""


def _one_a_weight(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    return list({node.input[1]: node for node in nodes}.values())


class _Sets:
    """Disjoint sets of names."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def of(self, name: str) -> str:
        """The name that stands for the set of `name`."""
        above = self._above.setdefault(name, name)
        while above != self._above[above]:
            above = self._above[above]
        self._above[name] = above
        return above

    def join(self, names: Sequence[str]) -> None:
        for name in names:
            self._above[self.of(name)] = self.of(names[0])

    def members(self) -> list[str]:
        """All names, in the order in which they came."""
        return list(self._above)
