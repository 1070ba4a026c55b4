"""Weights rounded to int8 so that a layer's outputs change least (GPTQ, Frantar et al., arXiv 2210.17323).

Rounding each weight to its nearest step ignores that errors can cancel. Here the error of each rounded weight
is compensated by those not rounded yet, as far as their inputs are correlated. What remains as a shift of the
output's mean is taken out by the bias (Nagel et al., arXiv 1906.04721, §4.2). Layers, grids and sizes are
those of nearest rounding, so an engine is as fast.

Both need the mean and the covariance of a layer's inputs, quantised as they will be. They are taken from the
float network, so no layer corrects the errors of the layers before it: corrections of one error would add up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rgfl.export.network import Network
from rgfl.export.placement import Placement, attribute
from rgfl.export.qdq import LEVELS, WeightSteps, weight_scale
from rgfl.spec import DetectorSpec

if TYPE_CHECKING:
    import onnx


TILES = 64  # looked at
# Positions of a layer's output that are looked at, over all tiles: at least POSITIONS, and PER_WEIGHT for
# each weight of a row; of one node on one tile at most PER_TILE.
POSITIONS, PER_WEIGHT, PER_TILE = 4096, 4, 1024
EXACT = 1024  # products of two int8 that float32 adds up without rounding: 1024 · 2¹⁴ = 2²⁴
MEMORY = 2**30  # bytes of inputs kept at once; a network that needs more is run over the tiles several times
DAMPING = 0.01  # share of the mean variance added to each: inputs that hardly ever vary decide nothing
LEAST = 1e-9  # a variance below this share of the mean square counts as zero
BLOCK = 128  # weights of a row that are rounded between two products of matrices


@dataclass(frozen=True)
class _Layer:
    """A weight, with the nodes that share it. Its matrix has G groups of R rows of D weights."""

    weight: NDArray[np.float32]
    nodes: list[onnx.NodeProto]

    @property
    def is_conv(self) -> bool:
        return self.nodes[0].op_type == "Conv"

    @property
    def shape(self) -> tuple[int, int, int]:
        """G, R, D"""
        if not self.is_conv:
            return 1, self.weight.shape[1], self.weight.shape[0]
        groups = attribute(self.nodes[0], "group", 1)
        return groups, self.weight.shape[0] // groups, int(np.prod(self.weight.shape[1:]))

    @property
    def positions(self) -> int:
        """To be looked at, over all tiles."""
        return max(POSITIONS, PER_WEIGHT * self.shape[2])

    @property
    def bytes(self) -> int:
        """Of the inputs at these positions, in int8."""
        groups, _, length = self.shape
        return groups * self.positions * length

    def matrix(self) -> NDArray[np.float64]:
        """(G, R, D)"""
        weight = self.weight if self.is_conv else self.weight.T
        return weight.reshape(self.shape).astype(np.float64)

    def as_weight(self, matrix: NDArray) -> NDArray:
        """The inverse of `matrix`: (G, R, D) in the weight's own shape."""
        if self.is_conv:
            return matrix.reshape(self.weight.shape)
        return matrix.reshape(self.weight.shape[::-1]).T


def round_weights(
    model: onnx.ModelProto,
    placement: Placement,
    thresholds: Mapping[str, float],
    tiles: Sequence[NDArray[np.uint8]],
    spec: DetectorSpec,
) -> dict[str, WeightSteps]:
    """Every weight of `placement` by its name; the scales are those of `qdq.weight_scale`.

    Args:
        model: in float.
        thresholds: magnitude of each activation that becomes 127.
        tiles: (1, H, W, 3) each.
    """
    from tqdm import tqdm

    layers = _layers(model, placement)
    result = {}
    with tqdm(total=len(layers), unit="layer", desc="round", disable=None) as bar:
        for group in _in_memory(layers):
            inputs = _look_at(model, group, placement, thresholds, tiles, spec)
            for name, layer in group.items():
                result[name] = _round_layer(layer, *_moments(inputs.pop(name)))
                bar.update()
    return result


def _layers(model: onnx.ModelProto, placement: Placement) -> dict[str, _Layer]:
    """By the name of the weight, in the order of the graph."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    layers: dict[str, _Layer] = {}
    for node in model.graph.node:
        if node.name not in placement.weights:
            continue
        name = node.input[1]
        if name not in layers:
            layers[name] = _Layer(numpy_helper.to_array(constants[name]), [])
        layers[name].nodes.append(node)
    return layers


def _in_memory(layers: Mapping[str, _Layer]) -> Iterator[dict[str, _Layer]]:
    """Layers in runs whose inputs fit into MEMORY; a run has at least one."""
    run: dict[str, _Layer] = {}
    used = 0
    for name, layer in layers.items():
        if run and used + layer.bytes > MEMORY:
            yield run
            run, used = {}, 0
        run[name] = layer
        used += layer.bytes
    if run:
        yield run


# --- inputs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Inputs:
    """What a node reads, on the grid it will have."""

    scale: float  # of a step
    steps: list[NDArray[np.int8]] = field(default_factory=list)  # (G, N, D) of each tile


def _look_at(
    model: onnx.ModelProto,
    layers: Mapping[str, _Layer],
    placement: Placement,
    thresholds: Mapping[str, float],
    tiles: Sequence[NDArray[np.uint8]],
    spec: DetectorSpec,
) -> dict[str, list[_Inputs]]:
    """The inputs of each layer's nodes at some positions of every tile."""
    nodes = [node for layer in layers.values() for node in layer.nodes]
    network = Network(model, list(dict.fromkeys(node.input[0] for node in nodes)), spec)
    found = {
        name: [
            _Inputs(float(np.float32(thresholds[placement.activations[node.name, 0]] / LEVELS)))
            for node in layer.nodes
        ]
        for name, layer in layers.items()
    }
    for number, tile in enumerate(tiles):
        values = dict(zip(network.outputs, network(tile), strict=True))
        for name, layer in layers.items():
            each = min(-(-layer.positions // (len(tiles) * len(layer.nodes))), PER_TILE)
            for node, inputs in zip(layer.nodes, found[name], strict=True):
                rows = _rows(node, values[node.input[0]], layer, each, np.random.default_rng(number))
                steps = np.clip(np.rint(rows / np.float32(inputs.scale)), -LEVELS - 1, LEVELS)
                inputs.steps.append(steps.astype(np.int8, order="C"))
    return found


def _moments(nodes: Sequence[_Inputs]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means (G, D) and second moments (G, D, D) of what the nodes of a layer read."""
    groups, _, length = nodes[0].steps[0].shape
    mean, squares, count = np.zeros((groups, length)), np.zeros((groups, length, length)), 0
    for inputs in nodes:
        steps = np.concatenate(inputs.steps, axis=1)
        products = np.zeros_like(squares)  # of whole numbers, and exact
        for begin in range(0, steps.shape[1], EXACT):
            rows = steps[:, begin : begin + EXACT].astype(np.float32)
            products += rows.transpose(0, 2, 1) @ rows
        products *= inputs.scale**2
        squares += products
        mean += inputs.scale * steps.sum(1, dtype=np.int64)
        count += steps.shape[1]
    mean /= count
    squares /= count
    return mean, squares


def _rows(
    node: onnx.NodeProto, values: NDArray[np.float32], layer: _Layer, wanted: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """(G, N, D) inputs of the matrix at N ≤ `wanted` positions of the output, drawn at random."""
    groups, _, length = layer.shape
    if not layer.is_conv:
        rows = values.reshape(-1, length)
        return rng.choice(rows, min(wanted, len(rows)), replace=False)[None]
    kernel = layer.weight.shape[2:]
    step_y, step_x = attribute(node, "strides", [1, 1])
    apart_y, apart_x = attribute(node, "dilations", [1, 1])
    top, left, bottom, right = attribute(node, "pads", [0, 0, 0, 0])
    image = np.pad(values[0], ((0, 0), (top, bottom), (left, right)))
    height = (image.shape[1] - apart_y * (kernel[0] - 1) - 1) // step_y + 1
    width = (image.shape[2] - apart_x * (kernel[1] - 1) - 1) // step_x + 1
    chosen = rng.choice(height * width, min(wanted, height * width), replace=False)
    y = (chosen // width * step_y)[:, None] + apart_y * np.arange(kernel[0])  # (N, kernel height)
    x = (chosen % width * step_x)[:, None] + apart_x * np.arange(kernel[1])
    patches = image[:, y[:, :, None], x[:, None, :]]  # (C, N, kernel height, kernel width)
    patches = patches.reshape(groups, -1, len(chosen), kernel[0] * kernel[1])
    return patches.transpose(0, 2, 1, 3).reshape(groups, len(chosen), length)


# --- rounding -----------------------------------------------------------------------------------------------


def _round_layer(layer: _Layer, mean: NDArray[np.float64], squares: NDArray[np.float64]) -> WeightSteps:
    matrix = layer.matrix()
    groups, rows, _ = layer.shape
    scale = weight_scale(layer.weight, 0 if layer.is_conv else 1).astype(np.float64).reshape(groups, rows)
    if not layer.is_conv:  # a bias is another node's: means count as errors too
        return WeightSteps(layer.as_weight(round_rows(matrix, squares, scale)))
    covariance = squares - mean[:, :, None] * mean[:, None, :]
    # For constant inputs, squares − mean² is only rounding noise, possibly negative: treat it as zero.
    constant = np.diagonal(covariance, axis1=1, axis2=2).mean(1) < LEAST * np.square(mean).mean(1)
    covariance[constant] = 0
    steps = round_rows(matrix, covariance, scale)
    lost = matrix - steps * scale[:, :, None]
    shift = np.einsum("grd,gd->gr", lost, mean)
    return WeightSteps(layer.as_weight(steps), shift.ravel().astype(np.float32))


def round_rows(
    matrix: NDArray[np.float64], covariance: NDArray[np.float64], scale: NDArray[np.float64]
) -> NDArray[np.int8]:
    """Steps q for which dᵀ · covariance · d, d = w − q·scale, is small for each row w: the variance that
    rounding adds to its output.

    With covariance = L·Lᵀ that is Σⱼ (Σ_{i≥j} Lᵢⱼ dᵢ)². Weights are rounded from the last to the first, that
    of the greatest variance first, so when j is rounded all others of its term are known, and the term is 0
    where qⱼ·scale = wⱼ + Σ_{i>j} Lᵢⱼ dᵢ / Lⱼⱼ: that is what is rounded. These are the steps of GPTQ, without
    its inverse of the covariance (Chen et al., arXiv 2507.18553).

    Args:
        matrix: (G, R, D) weights.
        covariance: (G, D, D) of the inputs.
        scale: (G, R) of a step.
    """
    variance = np.diagonal(covariance, axis1=1, axis2=2)  # (G, D)
    # In float32, for equal variances to keep their order whatever rounding noise is in them.
    order = np.argsort(-variance.astype(np.float32), axis=1, kind="stable")[:, ::-1]
    groups, length = np.arange(len(matrix))[:, None, None], matrix.shape[2]
    in_order = covariance[groups, order[:, :, None], order[:, None, :]]
    level = variance.mean(1)
    in_order[:, np.arange(length), np.arange(length)] += np.where(level > 0, DAMPING * level, 1.0)[:, None]
    factor = np.linalg.cholesky(in_order)  # L, its columns then over their diagonal
    factor /= np.diagonal(factor, axis1=1, axis2=2)[:, None, :].copy()

    weights = np.take_along_axis(matrix, order[:, None, :], 2)
    steps, lost = np.empty(weights.shape, np.int8), np.empty_like(weights)
    for end in range(length, 0, -BLOCK):
        begin = max(0, end - BLOCK)
        wanted = weights[:, :, begin:end] + lost[:, :, end:] @ factor[:, end:, begin:end]
        for column in reversed(range(begin, end)):
            nearest = np.clip(np.rint(wanted[:, :, column - begin] / scale), -LEVELS, LEVELS)
            error = weights[:, :, column] - nearest * scale
            wanted[:, :, : column - begin] += error[:, :, None] * factor[:, None, column, begin:column]
            steps[:, :, column], lost[:, :, column] = nearest, error
    unsorted = np.empty_like(steps)
    np.put_along_axis(unsorted, np.broadcast_to(order[:, None, :], steps.shape), steps, 2)
    return unsorted
