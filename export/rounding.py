"""Weights to int8 so that a layer's outputs change least, and not each weight by itself.

Rounding to the nearest step treats weights as if their errors could not make up for each other. They can:
what rounding one weight does to the output, those not yet rounded take back as far as the inputs go together
(GPTQ, Frantar et al., arXiv 2210.17323). What is left of a shift of the output's mean goes into the bias
(Nagel et al., arXiv 1906.04721, §4.2). Layers, grids and sizes stay as they are with nearest steps, so an
engine is as fast.

Both need the mean and the covariance of what a layer reads, on the grid it will have. They are taken from the
float network, so no layer makes up for what those in front of it do: corrections of one error add up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rgfl.export.calibration import Network
from rgfl.export.placement import attribute
from rgfl.export.qdq import LEVELS, Rounded, weight_scale

if TYPE_CHECKING:
    import onnx

    from rgfl.export.placement import Placement
    from rgfl.spec import DetectorSpec

TILES = 64  # looked at
# Positions of a layer's output that are looked at, over all tiles: so many at least, and a weight of a row.
POSITIONS, PER_WEIGHT = 4096, 4
EXACT = 1024  # so many products of two int8 add up in float32 without rounding
MEMORY = 2**30  # bytes of covariances at once; a network that needs more looks at the tiles several times
DAMPING = 0.01  # of the mean variance, added to each: what hardly occurs decides nothing
LEAST = 1e-9  # of the mean square, that a variance must reach to be one
BLOCK = 128  # weights of a row that are rounded between two updates of all others


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
    def bytes(self) -> int:
        """Of the covariances."""
        groups, _, length = self.shape
        return 8 * groups * length * length

    def matrix(self) -> NDArray[np.float64]:
        """(G, R, D)"""
        weight = self.weight if self.is_conv else self.weight.T
        return weight.reshape(self.shape).astype(np.float64)

    def as_weight(self, matrix: NDArray) -> NDArray:
        """What `matrix` took apart."""
        if self.is_conv:
            return matrix.reshape(self.weight.shape)
        return matrix.reshape(self.weight.shape[::-1]).T


def round_weights(
    model: onnx.ModelProto,
    placement: Placement,
    thresholds: Mapping[str, float],
    tiles: Sequence[NDArray[np.uint8]],
    spec: DetectorSpec,
    progress: bool = True,
) -> dict[str, Rounded]:
    """Every weight of `placement` by its name; the scales are those of `qdq.weight_scale`.

    Args:
        model: in float.
        thresholds: magnitude of each activation that becomes 127.
        tiles: (1, H, W, 3) each.
    """
    from tqdm import tqdm

    layers = _layers(model, placement)
    result = {}
    with tqdm(total=len(layers), unit="layer", desc="round", disable=None if progress else True) as bar:
        for group in _in_memory(layers):
            sums = _look_at(model, group, placement, thresholds, tiles, spec)
            for name, layer in group.items():
                result[name] = _round_layer(layer, *sums.pop(name))
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
    """Layers in runs whose covariances fit into MEMORY; a run has one at least."""
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


# --- moments ------------------------------------------------------------------------------------------------


def _look_at(
    model: onnx.ModelProto,
    layers: Mapping[str, _Layer],
    placement: Placement,
    thresholds: Mapping[str, float],
    tiles: Sequence[NDArray[np.uint8]],
    spec: DetectorSpec,
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Means (G, D) and second moments (G, D, D) of the rounded inputs of each layer."""
    nodes = [node for layer in layers.values() for node in layer.nodes]
    network = Network(model, list(dict.fromkeys(node.input[0] for node in nodes)), spec)
    sums = {}
    for name, layer in layers.items():
        groups, _, length = layer.shape
        sums[name] = np.zeros((groups, length)), np.zeros((groups, length, length))
    count = dict.fromkeys(layers, 0)
    for number, tile in enumerate(tiles):
        values = dict(zip(network.outputs, network(tile), strict=True))
        for name, layer in layers.items():
            wanted = max(POSITIONS, PER_WEIGHT * layer.shape[2])
            each = min(-(-wanted // (len(tiles) * len(layer.nodes))), EXACT)
            for node in layer.nodes:
                rng = np.random.default_rng(number)
                rows = _rows(node, values[node.input[0]], layer, each, rng)
                scale = np.float32(thresholds[placement.activations[node.name, 0]] / LEVELS)
                steps = np.clip(np.rint(rows / scale), -LEVELS - 1, LEVELS)
                total, squares = sums[name]
                total += np.float64(scale) * steps.sum(1)
                squares += np.float64(scale) ** 2 * (steps.transpose(0, 2, 1) @ steps)
                count[name] += steps.shape[1]
    for name, moments in sums.items():
        for moment in moments:
            moment /= count[name]  # in place: they may be all the memory there is
    return sums


def _rows(
    node: onnx.NodeProto, values: NDArray[np.float32], layer: _Layer, wanted: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """(G, N, D) what the rows of the matrix meet at N ≤ `wanted` positions of the output, drawn at random."""
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


def _round_layer(layer: _Layer, mean: NDArray[np.float64], squares: NDArray[np.float64]) -> Rounded:
    matrix = layer.matrix()
    groups, rows, _ = layer.shape
    scale = weight_scale(layer.weight, 0 if layer.is_conv else 1).astype(np.float64).reshape(groups, rows)
    if not layer.is_conv:  # a bias is another node's: means count as errors too
        return Rounded(layer.as_weight(round_rows(matrix, squares, scale)))
    covariance = squares - mean[:, :, None] * mean[:, None, :]
    # What is constant leaves rounding errors of its square, of either sign: as little as that is nothing.
    constant = np.diagonal(covariance, axis1=1, axis2=2).mean(1) < LEAST * np.square(mean).mean(1)
    covariance[constant] = 0
    steps = round_rows(matrix, covariance, scale)
    lost = matrix - steps * scale[:, :, None]
    shift = np.einsum("grd,gd->gr", lost, mean)
    return Rounded(layer.as_weight(steps), shift.ravel().astype(np.float32))


def round_rows(
    matrix: NDArray[np.float64], covariance: NDArray[np.float64], scale: NDArray[np.float64]
) -> NDArray[np.int8]:
    """Steps q, for which (w − q·scale)ᵀ · covariance · (w − q·scale) of each row w is small.

    One weight of all rows after the other, that of the greatest variance first. The error of each is spread
    over those still to come, as far as they predict its input: GPTQ, with the Cholesky factor of the inverse.

    Args:
        matrix: (G, R, D) weights.
        covariance: (G, D, D) of the inputs.
        scale: (G, R) of a step.
    """
    variance = np.diagonal(covariance, axis1=1, axis2=2)  # (G, D)
    order = np.argsort(-variance, axis=1, kind="stable")
    groups = np.arange(len(matrix))[:, None, None]
    sorted_covariance = covariance[groups, order[:, :, None], order[:, None, :]]
    level = variance.mean(1)
    damping = np.where(level > 0, DAMPING * level, 1.0)
    sorted_covariance = sorted_covariance + damping[:, None, None] * np.eye(variance.shape[1])
    # covariance = R·Rᵀ with R upper triangular, so its inverse is UᵀU with U = R⁻¹.
    factor = np.linalg.inv(np.linalg.cholesky(sorted_covariance[:, ::-1, ::-1])[:, ::-1, ::-1])

    rest = np.take_along_axis(matrix, order[:, None, :], 2)
    length = rest.shape[2]
    steps = np.empty(rest.shape, np.int8)
    for begin in range(0, length, BLOCK):
        end = min(begin + BLOCK, length)
        errors = np.empty((*rest.shape[:2], end - begin))
        for column in range(begin, end):
            nearest = np.clip(np.rint(rest[:, :, column] / scale), -LEVELS, LEVELS)
            steps[:, :, column] = nearest
            error = (rest[:, :, column] - nearest * scale) / factor[:, None, column, column]
            rest[:, :, column + 1 : end] -= error[:, :, None] * factor[:, None, column, column + 1 : end]
            errors[:, :, column - begin] = error
        rest[:, :, end:] -= errors @ factor[:, begin:end, end:]
    unsorted = np.empty_like(steps)
    np.put_along_axis(unsorted, np.broadcast_to(order[:, None, :], steps.shape), steps, 2)
    return unsorted
