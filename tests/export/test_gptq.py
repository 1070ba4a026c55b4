"""Weights on their grid: outputs change less than with nearest steps, and their means not at all."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'rgfl[export]'")
pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from rgfl.export import calibration, gptq, qdq  # noqa: E402
from rgfl.export.gptq import round_rows, round_weights  # noqa: E402
from rgfl.export.network import Network  # noqa: E402
from rgfl.export.placement import place  # noqa: E402
from rgfl.spec import DetectorSpec  # noqa: E402

SIZE = 24
SPEC = DetectorSpec(classes=("plane",), image_size=(SIZE, SIZE), strides=(8,))


def correlated(groups: int, length: int, seed: int = 0) -> NDArray[np.float64]:
    """(G, D, D) covariances of inputs that go together, with very different variances."""
    random = np.random.default_rng(seed)
    mix = random.normal(size=(groups, length, max(1, length // 3))) * random.lognormal(
        0, 1, (groups, length, 1)
    )
    return mix @ mix.transpose(0, 2, 1) + 1e-3 * np.eye(length)


def nearest(matrix: NDArray, scale: NDArray) -> NDArray:
    return np.clip(np.rint(matrix / scale[:, :, None]), -127, 127)


def cost(matrix: NDArray, steps: NDArray, scale: NDArray, covariance: NDArray) -> NDArray:
    """(G, R) variance of what rounding adds to each output."""
    wrong = matrix - steps * scale[:, :, None]
    return np.einsum("grd,gde,gre->gr", wrong, covariance, wrong)


@pytest.mark.parametrize(("groups", "rows", "length"), [(1, 16, 72), (1, 8, 300), (12, 1, 9), (3, 4, 25)])
def test_outputs_change_less_than_with_nearest_steps(groups: int, rows: int, length: int) -> None:
    matrix = np.random.default_rng(1).normal(size=(groups, rows, length))
    scale = np.abs(matrix).max(2) / 127
    covariance = correlated(groups, length)
    steps = round_rows(matrix, covariance, scale)
    assert steps.dtype == np.int8
    assert np.abs(steps.astype(int)).max() <= 127
    ours = cost(matrix, steps, scale, covariance).sum()
    assert ours < 0.5 * cost(matrix, nearest(matrix, scale), scale, covariance).sum()


def published(matrix: NDArray, covariance: NDArray, scale: NDArray) -> NDArray:
    """GPTQ (arXiv 2210.17323, algorithm 1) of (R, D) weights, one column after the other."""
    order = np.argsort(-np.diagonal(covariance), kind="stable")
    damped = covariance + gptq.DAMPING * np.diagonal(covariance).mean() * np.eye(len(covariance))
    factor = np.linalg.cholesky(np.linalg.inv(damped[order][:, order])).T
    rest, steps = matrix[:, order], np.empty(matrix.shape)
    for column in range(len(order)):
        steps[:, column] = np.clip(np.rint(rest[:, column] / scale), -127, 127)
        error = (rest[:, column] - steps[:, column] * scale) / factor[column, column]
        rest = rest - error[:, None] * factor[column]
    unsorted = np.empty(matrix.shape)
    unsorted[:, order] = steps
    return unsorted


@pytest.mark.parametrize(("groups", "rows", "length"), [(1, 16, 72), (1, 8, 300), (12, 1, 9), (3, 4, 25)])
def test_steps_are_those_of_the_published_algorithm(groups: int, rows: int, length: int) -> None:
    matrix = np.random.default_rng(1).normal(size=(groups, rows, length))
    scale = np.abs(matrix).max(2) / 127
    covariance = correlated(groups, length)
    expected = [published(*of_group) for of_group in zip(matrix, covariance, scale, strict=True)]
    np.testing.assert_array_equal(round_rows(matrix, covariance, scale), expected)


def test_noise_of_the_sums_decides_nothing_between_equal_variances() -> None:
    """The same pixels in another order: on a level of few cells, 1 in 200 steps was decided so."""
    random = np.random.default_rng(9)
    matrix, mixed = random.normal(size=(1, 16, 60)), correlated(1, 60)
    deviation = np.sqrt(np.diagonal(mixed, axis1=1, axis2=2))
    covariance = mixed / deviation[:, :, None] / deviation[:, None, :]  # every variance is 1
    scale = np.abs(matrix).max(2) / 127
    noise = 1 + 1e-15 * random.normal(size=covariance.shape)
    noisy = covariance * (noise + noise.transpose(0, 2, 1)) / 2
    np.testing.assert_array_equal(round_rows(matrix, noisy, scale), round_rows(matrix, covariance, scale))


def test_moments_are_those_of_all_positions() -> None:
    random = np.random.default_rng(10)
    nodes = [
        gptq._Inputs(scale, [random.integers(-128, 128, (2, count, 5)).astype(np.int8) for count in counts])
        for scale, counts in ((0.5, (700, 900, 1)), (0.03, (40,)))
    ]
    mean, squares = gptq._moments(nodes)
    rows = np.concatenate([node.scale * steps.astype(float) for node in nodes for steps in node.steps], 1)
    np.testing.assert_allclose(mean, rows.mean(1), rtol=1e-12)
    np.testing.assert_allclose(squares, rows.transpose(0, 2, 1) @ rows / 1641, rtol=1e-12)


def test_few_weights_come_near_the_best_of_all_steps() -> None:
    random = np.random.default_rng(2)
    matrix, covariance = random.normal(size=(1, 40, 3)), correlated(1, 3, seed=3)
    scale = np.abs(matrix).max(2) / 127
    floor = np.floor(matrix / scale[:, :, None])
    around = np.stack(np.meshgrid(*[np.arange(-2, 4)] * 3), -1).reshape(-1, 1, 1, 3)
    best = np.min([cost(matrix, floor + by, scale, covariance) for by in around], 0)
    ours = cost(matrix, round_rows(matrix, covariance, scale), scale, covariance)
    rounded = cost(matrix, nearest(matrix, scale), scale, covariance)
    assert ours.sum() < best.sum() + 0.2 * (rounded - best).sum()


def test_inputs_that_have_nothing_in_common_round_to_the_nearest() -> None:
    matrix = np.random.default_rng(4).normal(size=(2, 5, 40))
    scale = np.abs(matrix).max(2) / 127
    for covariance in (np.eye(40) * np.arange(1, 41), np.zeros((40, 40))):
        both = np.stack([covariance, covariance])
        np.testing.assert_array_equal(round_rows(matrix, both, scale), nearest(matrix, scale))


# --- in a graph -------------------------------------------------------------------------------------------

LAYERS = {
    # name: (attributes, weight shape, bias)
    "backbone.plain": ({"pads": [1, 1, 1, 1], "strides": [2, 2]}, (8, 3, 3, 3), True),
    "backbone.depthwise": ({"pads": [1, 1, 1, 1], "group": 8}, (8, 1, 3, 3), True),
    "backbone.groups": ({"group": 2, "pads": [2, 0, 2, 1], "dilations": [2, 1]}, (6, 4, 3, 2), False),
    "backbone.last": ({}, (4, 6, 1, 1), True),
}


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    """Convolutions of every kind behind each other, then a product with a constant."""
    random = np.random.default_rng(5)
    nodes, constants, tensor = [], [], "images"
    for name, (attributes, shape, biased) in LAYERS.items():
        inputs = [tensor, f"{name}.weight", *([f"{name}.bias"] if biased else [])]
        weight = random.normal(0, 2 / np.sqrt(np.prod(shape[1:])), shape)
        constants.append(numpy_helper.from_array(weight.astype(np.float32), f"{name}.weight"))
        if biased:
            bias = random.normal(size=shape[0]).astype(np.float32)
            constants.append(numpy_helper.from_array(bias, f"{name}.bias"))
        nodes.append(helper.make_node("Conv", inputs, [f"{name}.sum"], name=f"{name}/Conv", **attributes))
        nodes.append(helper.make_node("Relu", [f"{name}.sum"], [f"{name}.out"], name=f"{name}/Relu"))
        tensor = f"{name}.out"
    nodes.append(helper.make_node("Transpose", [tensor], ["rows"], name="backbone/T", perm=[0, 2, 3, 1]))
    product = random.normal(size=(4, 5)).astype(np.float32)
    constants.append(numpy_helper.from_array(product, "backbone.linear.weight"))
    nodes.append(
        helper.make_node("MatMul", ["rows", "backbone.linear.weight"], ["end"], name="backbone.linear/MatMul")
    )
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("end", TensorProto.FLOAT, None)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="module")
def tiles() -> list[NDArray[np.uint8]]:
    """Smooth, as images are, so that neighbouring pixels go together."""
    random = np.random.default_rng(6)
    coarse = random.integers(0, 256, (6, 1, 4, 4, 3), np.uint8)
    return list(
        coarse.repeat(6, 2).repeat(6, 3) // 2 + random.integers(0, 40, (6, 1, SIZE, SIZE, 3), np.uint8)
    )


@pytest.fixture(scope="module")
def thresholds(model: onnx.ModelProto, tiles: list) -> dict[str, float]:
    found, _ = calibration.collect(model, place(model).tensors, iter(tiles), SPEC)
    return {name: histogram.threshold("max") for name, histogram in found.items()}


@pytest.fixture(scope="module")
def rounded(model: onnx.ModelProto, tiles: list, thresholds: dict) -> dict[str, qdq.WeightSteps]:
    return round_weights(model, place(model), thresholds, tiles, SPEC)


def test_every_weight_is_rounded_and_biases_are_shifted(rounded: dict) -> None:
    assert list(rounded) == [*(f"{name}.weight" for name in LAYERS), "backbone.linear.weight"]
    for name, (_, shape, _) in LAYERS.items():
        steps, shift = rounded[f"{name}.weight"]
        assert steps.shape == shape
        assert shift is not None
        assert shift.shape == (shape[0],)
    assert rounded["backbone.linear.weight"].steps.shape == (4, 5)
    assert rounded["backbone.linear.weight"].shift is None


@pytest.mark.parametrize("name", [*LAYERS, "backbone.linear"])
def test_one_layer_after_the_other(
    model: onnx.ModelProto, tiles: list, thresholds: dict, rounded: dict, name: str
) -> None:
    """Means stay, and variances of the errors fall, at ALL positions, of which some were looked at."""
    everything = place(model)
    node = next(node for node in model.graph.node if node.name.startswith(f"{name}/"))
    output, weight = node.output[0], node.input[1]
    # The layer's input is on its grid in both; only the weight differs.
    activations = {(node.name, 0): node.input[0]}
    alone = type(everything)(activations, {node.name: everything.weights[node.name]}, {})
    inputs_only = type(everything)(activations, {}, {})

    def outputs(graph: onnx.ModelProto) -> NDArray[np.float64]:
        network = Network(graph, [output], SPEC)
        values = np.concatenate([network(tile)[0] for tile in tiles]).astype(np.float64)
        return (
            values.reshape(-1, values.shape[-1])
            if name == "backbone.linear"
            else np.moveaxis(values, 1, -1).reshape(-1, values.shape[1])
        )

    true = outputs(qdq.insert(model, inputs_only, thresholds))
    ours = outputs(qdq.insert(model, alone, thresholds, {weight: rounded[weight]})) - true
    plain = outputs(qdq.insert(model, alone, thresholds)) - true
    assert np.square(ours).mean() < 0.8 * np.square(plain).mean()
    if name != "backbone.linear":
        assert (np.abs(ours.mean(0)) < 0.2 * ours.std(0) + 1e-5).all()


def test_the_memory_for_inputs_changes_nothing(
    model: onnx.ModelProto, tiles: list, thresholds: dict, rounded: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gptq, "MEMORY", 5000)
    again = round_weights(model, place(model), thresholds, tiles, SPEC)
    for name, (steps, shift) in rounded.items():
        np.testing.assert_array_equal(again[name].steps, steps)
        np.testing.assert_array_equal(again[name].shift, shift)


def test_inputs_that_never_change_are_no_reason_to_fail() -> None:
    """Their covariance is the rounding error of squares: of any sign, and with no inverse."""
    random = np.random.default_rng(8)
    for _ in range(40):
        length = int(random.integers(2, 40))
        weight = random.normal(size=(5, length, 1, 1)).astype(np.float32)
        node = helper.make_node("Conv", ["x", "w"], ["y"], name="backbone.a/Conv")
        mean = random.lognormal(0, 2, (1, length))
        noise = 1e-15 * random.normal(size=(1, length, length)) * mean[:, :, None] * mean[:, None, :]
        squares = mean[:, :, None] * mean[:, None, :] + (noise + noise.transpose(0, 2, 1)) / 2
        steps, shift = gptq._round_layer(gptq._Layer(weight, [node]), mean, squares)
        np.testing.assert_array_equal(steps, qdq.nearest(weight, 0).steps)
        assert shift is not None
        lost = (weight[:, :, 0, 0] - steps[:, :, 0, 0] * qdq.weight_scale(weight, 0)[:, None]) @ mean[0]
        np.testing.assert_allclose(shift, lost, rtol=1e-3, atol=1e-4)


def test_nodes_that_share_a_weight_share_its_steps(tiles: list) -> None:
    weight = np.random.default_rng(7).normal(size=(3, 3, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["first"], name="backbone.a/Conv"),
        helper.make_node("Conv", ["first", "w"], ["end"], name="backbone.a/Conv.2"),
    ]
    graph = helper.make_graph(
        nodes,
        "shared",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("end", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    limits = {"images": 2.0, "first": 5.0}
    rounded = round_weights(model, place(model), limits, tiles, SPEC)
    assert list(rounded) == ["w"]
    written = qdq.checked(qdq.insert(model, place(model), limits, rounded))
    convolutions = [node for node in written.graph.node if node.op_type == "Conv"]
    assert convolutions[0].input[2] == convolutions[1].input[2] != ""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in written.graph.initializer}
    np.testing.assert_array_equal(values[convolutions[0].input[2]], rounded["w"].shift)
