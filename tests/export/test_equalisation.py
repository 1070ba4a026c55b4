"""Equalised networks compute what they did, with every channel at the height of its tensor."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'rgfl[export]'")
pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from rgfl import errors  # noqa: E402
from rgfl.export import calibration, qdq  # noqa: E402
from rgfl.export.equalisation import GREATEST_FACTOR, equalise  # noqa: E402
from rgfl.export.network import Network  # noqa: E402
from rgfl.export.placement import Placement, float_outputs, place  # noqa: E402
from rgfl.spec import DetectorSpec  # noqa: E402

SIZE = 16
SPEC = DetectorSpec(classes=("plane",), image_size=(SIZE, SIZE), strides=(8,))


class Graph:
    """A network under construction, its channels of very different sizes."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, values: NDArray) -> str:
        self.constants.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def node(self, operator: str, inputs: list[str], output: str, **attributes: object) -> str:
        name = f"backbone.{output}/{operator}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=name, **attributes))
        return output

    def conv(self, tensor: str, output: str, shape: tuple[int, ...], weight: str = "", **more: object) -> str:
        """A convolution that keeps the size, with its weight and bias or another's."""
        if not weight:
            weight = f"{output}.weight"
            size = self.random.lognormal(-1, 1.5, shape[0])
            values = self.random.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
            self.constant(weight, values * size[:, None, None, None])
            self.constant(f"{weight}.bias", self.random.normal(size=shape[0]) * size)
        pads = [shape[2] // 2, shape[3] // 2] * 2
        return self.node("Conv", [tensor, weight, f"{weight}.bias"], output, pads=pads, **more)

    def clip(self, tensor: str, output: str, top: float = 6.0, bottom: float = 0.0) -> str:
        bounds = [
            self.constant(f"{output}.low", np.array(bottom)),
            self.constant(f"{output}.high", np.array(top)),
        ]
        return self.node("Clip", [tensor, *bounds], output)

    def model(self, *outputs: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="module")
def tiles() -> list[NDArray[np.uint8]]:
    return list(np.random.default_rng(1).integers(0, 256, (6, 1, SIZE, SIZE, 3), np.uint8))


def values(model: onnx.ModelProto, names: list[str], tiles: list) -> list[NDArray[np.float64]]:
    network = Network(model, names, SPEC)
    parts = zip(*(network(tile) for tile in tiles), strict=True)
    return [np.concatenate(part).astype(np.float64) for part in parts]


def same(model: onnx.ModelProto, tiles: list, output: str = "end") -> bool:
    (before,), (after,) = (values(one, [output], tiles) for one in (model, equalise(model, tiles, SPEC)))
    return bool(np.abs(before - after).max() <= 1e-5 * np.abs(before).max())


def changed(model: onnx.ModelProto, tiles: list) -> set[str]:
    """Names of the weights and biases that equalisation touched."""
    after = {one.name: one for one in equalise(model, tiles, SPEC).graph.initializer}
    return {one.name for one in model.graph.initializer if one != after[one.name]}


def chain() -> Graph:
    """conv → ReLU6 → depthwise → ReLU6 → conv: an inverted bottleneck."""
    graph = Graph()
    graph.clip(graph.conv("images", "a", (12, 3, 3, 3)), "a6")
    graph.clip(graph.conv("a6", "b", (12, 1, 3, 3), group=12), "b6")
    graph.conv("b6", "end", (4, 12, 1, 1))
    return graph


def test_outputs_stay_and_channels_reach_the_top(tiles: list) -> None:
    model = chain().model("end")
    equal = equalise(model, tiles, SPEC)
    before, after = (values(one, ["a6", "b6", "end"], tiles) for one in (model, equal))
    np.testing.assert_allclose(after[2], before[2], rtol=0, atol=1e-5 * np.abs(before[2]).max())
    for old, new in zip(before[:2], after[:2], strict=True):
        old_peaks, new_peaks = old.max((0, 2, 3)), new.max((0, 2, 3))
        assert old_peaks.min() < 0.3 * old_peaks.max()  # or nothing is shown
        expected = np.minimum(old_peaks.max(), GREATEST_FACTOR * old_peaks)
        np.testing.assert_allclose(new_peaks, expected, rtol=1e-5)


def test_int8_errs_less(tiles: list) -> None:
    """Where small channels matter as much as large ones: the last weights make up for their size."""
    graph = chain()
    size = values(graph.model("b6"), ["b6"], tiles)[0].max((0, 2, 3))
    last = next(one for one in graph.constants if one.name == "end.weight")
    weight = numpy_helper.to_array(last) / np.maximum(size, 0.1).astype(np.float32)[:, None, None]
    last.CopyFrom(numpy_helper.from_array(weight, last.name))
    model = graph.model("end")
    wrong = []
    for one in (model, equalise(model, tiles, SPEC)):
        found, _ = calibration.collect(one, ["b6"], iter(tiles), SPEC)
        inputs = Placement({("backbone.end/Conv", 0): "b6"}, {}, {})
        quantised = qdq.checked(qdq.insert(one, inputs, {"b6": found["b6"].threshold("max")}))
        (true,), (got,) = values(model, ["end"], tiles), values(quantised, ["end"], tiles)
        wrong.append(np.square(got - true).mean())
    assert wrong[1] < 0.5 * wrong[0]


def test_the_grid_for_onnx_runtime_in_front_of_a_sum_is_not_stretched(tiles: list) -> None:
    """What ReLU leaves of a sum is small where its terms are large and negative: these have grids there."""
    graph = Graph(3)
    trunk = graph.node("Relu", [graph.conv("images", "trunk", (8, 3, 1, 1))], "t")
    branch = graph.conv(graph.node("Relu", [graph.conv(trunk, "in", (8, 8, 1, 1))], "r"), "out", (8, 8, 1, 1))
    bias = next(one for one in graph.constants if one.name == "out.weight.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) - 4, bias.name))
    graph.conv(graph.node("Relu", [graph.node("Add", [trunk, branch], "sum")], "s"), "end", (3, 8, 1, 1))
    model = graph.model("end")
    assert float_outputs(model, place(model)) == ["out", "end"]
    (before,), (after,) = (values(one, ["out"], tiles) for one in (model, equalise(model, tiles, SPEC)))
    assert np.abs(after).max() <= np.abs(before).max() * (1 + 1e-6)
    assert same(model, tiles)


def test_a_sum_that_repeats_a_channel_is_left_alone(tiles: list) -> None:
    graph = Graph()
    one, many = graph.conv("images", "a", (1, 3, 1, 1)), graph.conv("images", "b", (6, 3, 1, 1))
    graph.conv(graph.node("Relu", [graph.node("Add", [one, many], "sum")], "r"), "end", (2, 6, 1, 1))
    assert changed(graph.model("end"), tiles) == set()


def test_a_network_that_is_not_finite_is_refused(tiles: list) -> None:
    graph = chain()
    graph.constants[0].CopyFrom(
        numpy_helper.from_array(np.full((12, 3, 3, 3), np.nan, np.float32), graph.constants[0].name)
    )
    with pytest.raises(errors.ModelError, match=r"tensor '.*' is not finite"):
        equalise(graph.model("end"), tiles, SPEC)


def test_a_channel_that_never_fires_is_left_alone(tiles: list) -> None:
    graph = Graph()
    graph.node("Relu", [graph.conv("images", "a", (6, 3, 1, 1))], "r")
    graph.conv("r", "end", (2, 6, 1, 1))
    model = graph.model("end")
    weight, bias = (
        next(one for one in model.graph.initializer if one.name == name)
        for name in ("a.weight", "a.weight.bias")
    )
    for tensor, value in ((weight, 0.0), (bias, -1.0)):
        array = numpy_helper.to_array(tensor).copy()
        array[2] = value
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    after = equalise(model, tiles, SPEC)
    again = next(numpy_helper.to_array(one) for one in after.graph.initializer if one.name == "a.weight.bias")
    assert again[2] == -1
    assert same(model, tiles)


def test_terms_of_a_sum_get_the_same_factors(tiles: list) -> None:
    graph = Graph()
    trunk = graph.conv("images", "trunk", (8, 3, 1, 1))
    branch = graph.conv(graph.node("Relu", [graph.conv(trunk, "in", (5, 8, 1, 1))], "r"), "out", (8, 5, 1, 1))
    graph.conv(graph.node("Add", [trunk, branch], "sum"), "end", (3, 8, 1, 1))
    model = graph.model("end")
    assert same(model, tiles)
    assert changed(model, tiles) == {
        one.name for one in model.graph.initializer if one.name != "end.weight.bias"
    }


def test_relu6_in_front_of_a_sum_cuts_no_more_than_before(tiles: list) -> None:
    """The sum's peak says nothing about how far the term's own bound is away."""
    graph = Graph()
    term = graph.clip(graph.conv("images", "a", (8, 3, 1, 1)), "a6")
    other = graph.conv("images", "b", (8, 3, 1, 1))
    graph.conv(graph.node("Add", [term, other], "sum"), "end", (3, 8, 1, 1))
    model = graph.model("end")
    assert same(model, tiles)
    assert "a.weight" in changed(model, tiles)


def test_weights_that_several_nodes_share(tiles: list) -> None:
    """As the towers do with the pyramid's levels, here by pooling and resizing."""
    graph = Graph()
    first = graph.conv("images", "a", (6, 3, 1, 1))
    second = graph.node("MaxPool", [first], "pooled", kernel_shape=[2, 2], strides=[2, 2])
    for level, tensor in (("one", first), ("two", second)):
        tower = graph.node(
            "Relu",
            [graph.conv(tensor, level, (6, 6, 3, 3), "one.weight" if level == "two" else "")],
            f"{level}.r",
        )
        graph.conv(tower, f"{level}.end", (2, 6, 1, 1), "one.end.weight" if level == "two" else "")
    scales = graph.constant("scales", np.array([1, 1, 2, 2]))
    graph.node("Resize", ["two.end", "", scales], "larger", mode="nearest")
    graph.node("Add", ["one.end", "larger"], "end")
    model = graph.model("end")
    assert same(model, tiles)
    assert {"a.weight", "one.weight", "one.end.weight"} <= changed(model, tiles)


def test_pooling_may_lie_between(tiles: list) -> None:
    graph = Graph()
    first = graph.node("Relu", [graph.conv("images", "a", (6, 3, 1, 1))], "r")
    graph.conv(graph.node("AveragePool", [first], "mean", kernel_shape=[3, 3]), "end", (2, 6, 1, 1))
    model = graph.model("end")
    assert same(model, tiles)
    assert changed(model, tiles) == {"a.weight", "a.weight.bias", "end.weight"}


@pytest.mark.parametrize("operator", ["Sigmoid", "HardSwish", "Softplus", "Clip from -1", "Add a constant"])
def test_what_is_not_proportional_keeps_its_channels(operator: str, tiles: list) -> None:
    graph = Graph()
    first = graph.conv("images", "a", (6, 3, 1, 1))
    if operator == "Clip from -1":
        graph.clip(first, "curve", bottom=-1.0)
    elif operator == "Add a constant":
        graph.node("Add", [first, graph.constant("c", np.full((1, 6, 1, 1), 0.5))], "curve")
    else:
        graph.node(operator, [first], "curve")
    graph.conv("curve", "end", (2, 6, 1, 1))
    assert changed(graph.model("end"), tiles) == set()


def test_what_others_use_too_keeps_its_channels(tiles: list) -> None:
    outputs = Graph()
    outputs.conv(outputs.node("Relu", [outputs.conv("images", "a", (6, 3, 1, 1))], "r"), "end", (2, 6, 1, 1))
    assert changed(outputs.model("end", "r"), tiles) == set()

    shared = Graph()
    first = shared.node("Relu", [shared.conv("images", "a", (3, 3, 1, 1))], "r")
    shared.node("Conv", [first, "b.weight", "a.weight.bias"], "end")
    shared.constant("b.weight", shared.random.normal(size=(3, 3, 1, 1)))
    assert changed(shared.model("end"), tiles) == set()

    biases = Graph()
    twice = biases.conv("images", "a", (4, 3, 1, 1))
    biases.constant("other", np.ones(4))
    again = biases.node("Conv", ["images", "a.weight", "other"], "again")
    biases.conv(biases.node("Relu", [biases.node("Add", [twice, again], "sum")], "r"), "end", (2, 4, 1, 1))
    assert changed(biases.model("end"), tiles) == set()

    grouped = Graph()
    grouped.conv(
        grouped.node("Relu", [grouped.conv("images", "a", (6, 3, 1, 1))], "r"), "end", (4, 3, 1, 1), group=2
    )
    assert changed(grouped.model("end"), tiles) == set()
