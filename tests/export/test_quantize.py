"""INT8: where Q/DQ goes, what the numbers become, and that nothing else changes."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'rgfl[export]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from rgfl import (  # noqa: E402
    atomic,
    draw,
    errors,
)
from rgfl.export import (  # noqa: E402
    calibration,
    cpu_int8,
    equalisation,
    gptq,
    onnx_file,
    placement,
    qdq,
    quantize,
    verify,
)
from rgfl.spec import DetectorSpec  # noqa: E402
from rgfl.trt_runtime.machine import has_vnni  # noqa: E402
from rgfl.trt_runtime.sample_tiles import patterned_tiles  # noqa: E402

ROOT = Path(__file__).parents[2]
SIZE = 64
CLASSES = ("plane", "ship")
SPEC = DetectorSpec(
    classes=CLASSES, image_size=(SIZE, SIZE), strides=(4, 8), angle_bins=4, level_topk=0, score_threshold=0.3
)
POINTS = sum((SIZE // stride) ** 2 for stride in SPEC.strides)
OUTPUT_CONVOLUTIONS = {
    f"{name}{suffix}" for name in ("head.cls/Conv", "head.reg/Conv") for suffix in ("", ".2")
}


def make_detector(path: Path, *, width: int = 96) -> Path:
    """A detector as the exporter names its layers, small enough to write out: a residual network with an
    pooled stem, an identity and a projected shortcut, squeeze and excitation, ReLU6, a pyramid of two
    levels, towers with weights a level (BatchNorm folded), and boxes that depend on the logits. Random
    weights that keep the variance."""
    random = np.random.default_rng(3)
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def constant(name: str, values: object, dtype: type = np.float32) -> str:
        constants.append(numpy_helper.from_array(np.array(values, dtype), name))
        return name

    def add(operator: str, name: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], name=name, **attributes))
        return output

    def weights(name: str, out: int, into: int, kernel: int) -> list[str]:
        scale = math.sqrt(2 / (into * kernel * kernel)) * random.uniform(0.5, 1.5, (out, 1, 1, 1))
        return [
            constant(f"{name}.weight", random.normal(size=(out, into, kernel, kernel)) * scale),
            constant(f"{name}.bias", random.normal(0, 0.1, out)),
        ]

    def convolution(name: str, x: str, parameters: list[str], kernel: int, stride: int = 1) -> str:
        return add(
            "Conv", name, [x, *parameters], f"{name}:0", strides=[stride] * 2, pads=[kernel // 2] * 4,
            kernel_shape=[kernel] * 2,
        )  # fmt: skip

    net = "backbone.net"
    six = [constant("zero", 0), constant("six", 6)]
    x = add("Cast", "Cast", ["images"], "cast", to=TensorProto.FLOAT)
    x = add("Transpose", "Transpose", [x], "nchw", perm=[0, 3, 1, 2])
    x = add("Sub", "Sub", [x, constant("mean", np.reshape(SPEC.mean, (3, 1, 1)))], "centred")
    x = add("Div", "Div", [x, constant("std", np.reshape(SPEC.std, (3, 1, 1)))], "normalised")
    x = convolution(f"{net}.bn1/Conv", x, weights("stem", width, 3, 3), 3, 2)
    x = add("Relu", f"{net}.act1/Relu", [x], "stem:relu")
    shortcut = x = add(
        "MaxPool", f"{net}.maxpool/MaxPool", [x], "stem", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4
    )
    x = convolution(f"{net}.layer1.0.bn1/Conv", x, weights("l1a", width, width, 3), 3)
    x = add("Clip", f"{net}.layer1.0.act1/Clip", [x, *six], "l1a:clip")
    x = convolution(f"{net}.layer1.0.bn2/Conv", x, weights("l1b", width, width, 3), 3)
    x = add("Add", f"{net}.layer1.0/Add", [x, shortcut], "l1:sum")
    shortcut = x = add("Relu", f"{net}.layer1.0.act2/Relu", [x], "l1")
    x = convolution(f"{net}.layer2.0.bn1/Conv", x, weights("l2a", width, width, 3), 3, 2)
    x = add("Relu", f"{net}.layer2.0.act1/Relu", [x], "l2a:relu")
    squeezed = add(
        "ReduceMean", f"{net}.layer2.0.se/ReduceMean", [x, constant("axes", [2, 3], np.int64)], "squeezed"
    )
    squeezed = convolution(f"{net}.layer2.0.se.fc1/Conv", squeezed, weights("se", width, width, 1), 1)
    gate = add("Sigmoid", f"{net}.layer2.0.se/Sigmoid", [squeezed], "gate")
    x = add("Mul", f"{net}.layer2.0.se/Mul", [x, gate], "l2a:gated")
    x = convolution(f"{net}.layer2.0.bn2/Conv", x, weights("l2b", width, width, 3), 3)
    shortcut = convolution(
        f"{net}.layer2.0.downsample.0/Conv", shortcut, weights("l2d", width, width, 1), 1, 2
    )
    x = add("Add", f"{net}.layer2.0/Add", [x, shortcut], "l2:sum")
    coarse = add("Relu", f"{net}.layer2.0.act2/Relu", [x], "l2")

    laterals = [
        convolution(f"neck.laterals.{i}/Conv", name, weights(f"lateral{i}", width, width, 1), 1)
        for i, name in enumerate(("l1", coarse))
    ]
    scales = constant("scales", [1, 1, 2, 2])
    up = add(
        "Resize", "neck/Resize", [laterals[1], "", scales], "up", mode="nearest",
        nearest_mode="floor", coordinate_transformation_mode="asymmetric",
    )  # fmt: skip
    merged = add("Add", "neck/Add", [laterals[0], up], "merged")
    levels = [
        convolution(f"neck.outputs.{i}/Conv", name, weights(f"output{i}", width, width, 3), 3)
        for i, name in enumerate((merged, laterals[1]))
    ]

    shared = {
        "head.cls": weights("cls", len(CLASSES), width, 3),
        "head.reg": weights("reg", 5, width, 3),
    }
    parts: dict[str, list[str]] = {"cls": [], "reg": []}
    places = []
    for index, level in enumerate(levels):
        suffix = f".{index + 1}" if index else ""
        side, stride = SIZE // SPEC.strides[index], SPEC.strides[index]
        for kind, wide in (("cls", len(CLASSES)), ("reg", 5)):
            tower = f"head.{kind}_tower"
            x = convolution(
                f"{tower}.convs.0/Conv{suffix}", level, weights(f"{kind}{index}", width, width, 3), 3
            )
            x = add("Relu", f"{tower}/Relu{suffix}", [x], f"{tower}{suffix}:relu")
            x = convolution(f"head.{kind}/Conv{suffix}", x, shared[f"head.{kind}"], 3)
            shape = constant(f"shape.{kind}{suffix}", [0, wide, side * side], np.int64)
            x = add("Reshape", f"decoder/Reshape.{kind}{suffix}", [x, shape], f"flat.{kind}{suffix}")
            x = add(
                "Transpose", f"decoder/Transpose.{kind}{suffix}", [x], f"t.{kind}{suffix}", perm=[0, 2, 1]
            )
            parts[kind].append(x)
        y, x_ = np.mgrid[:side, :side].reshape(2, -1) * stride
        places.append(np.stack([x_, y, np.full_like(y, 3 * stride), np.full_like(y, 2 * stride), 0 * y], 1))
    logits = add("Concat", "decoder/Concat.cls", parts["cls"], "logits", axis=1)
    lowered = add("Sub", "decoder/Sub", [logits, constant("prior", 2.0)], "lowered")
    add("Sigmoid", "decoder/Sigmoid", [lowered], "scores")
    deltas = add("Concat", "decoder/Concat.reg", parts["reg"], "deltas", axis=1)
    deltas = add("Tanh", "decoder/Tanh", [deltas], "bounded")
    moved = add("Mul", "decoder/Mul", [deltas, constant("reach", [4, 4, 3, 2, 0.5])], "moved")
    add("Add", "decoder/Add", [moved, constant("places", np.concatenate(places)[None])], "boxes")

    model = helper.make_model(
        helper.make_graph(
            nodes,
            "detector",
            [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", POINTS, wide])
                for name, wide in (("boxes", 5), ("scores", len(CLASSES)))
            ],
            constants,
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    model = qdq.checked(model)
    onnx_file.write_spec(model, SPEC, precision="fp32", version="0")
    onnx_file.save(model, path)
    return path


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_detector(tmp_path_factory.mktemp("float") / "model.onnx")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("calibration")
    for index, tile in enumerate(patterned_tiles((80, 100), 4)):
        draw.save(tile, directory / f"P{index:04d}.png")
    return directory


@pytest.fixture(scope="module")
def written(
    detector: Path, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[onnx.ModelProto, onnx.ModelProto, quantize.Report]:
    """The INT8 model, its CPU variant as far as that is exact, and the report."""
    out = tmp_path_factory.mktemp("int8") / "int8.onnx"
    report = quantize.quantize(detector, out, images, cpu_variant_path=out.with_name("cpu.onnx"))
    model = onnx_file.load(out)
    return model, cpu_int8.cpu_variant(model), report


@pytest.fixture(scope="module")
def quick(written: tuple) -> onnx.ModelProto:
    """The CPU variant that is written: with a grid behind every convolution."""
    return onnx_file.load(written[2].path.with_name("cpu.onnx"))


def constants_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def producers_of(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {output: node for node in model.graph.node for output in node.output}


def sources_of(model: onnx.ModelProto, name: str) -> list[str]:
    """For each input of the node: "q" + what was quantised if it comes through Q/DQ, else the tensor."""
    made = producers_of(model)
    node = next(node for node in model.graph.node if node.name == name)
    found = []
    for tensor in node.input:
        before = made.get(tensor)
        if before is None or before.op_type != "DequantizeLinear":
            found.append(tensor)
        elif before.input[0] in made:
            found.append(f"q {made[before.input[0]].input[0]}")
        else:
            found.append(f"q {before.input[0].removesuffix('.int8')}")
    return found


def run(
    model: onnx.ModelProto, tiles: np.ndarray, *, optimise: bool = True, exact: bool = False
) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(["boxes", "scores"], {"images": tiles})


# --- where -----------------------------------------------------------------------------------------------


def test_backbone_neck_and_towers_are_quantised_and_nothing_else(written: tuple) -> None:
    model, _, report = written
    convolutions = {node.name for node in model.graph.node if node.op_type == "Conv"}
    in_float = {"backbone.net.layer2.0.se.fc1/Conv"} | OUTPUT_CONVOLUTIONS
    assert set(report.quantised) == convolutions - in_float
    for name in report.quantised:
        data, weight, *bias = sources_of(model, name)
        assert data.startswith("q ")
        assert weight.startswith("q ")
        assert not any(name.startswith("q ") for name in bias)
    for name in in_float:
        assert not any(source.startswith("q ") for source in sources_of(model, name))
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert not node.name.startswith(("decoder", "boxes", "scores"))
    assert {output.name for output in model.graph.output} == {"boxes", "scores"}


def test_a_residual_addition_quantises_its_shortcut_only(written: tuple) -> None:
    model, _, _ = written
    assert sources_of(model, "backbone.net.layer1.0/Add") == ["backbone.net.layer1.0.bn2/Conv:0", "q stem"]
    assert sources_of(model, "backbone.net.layer2.0/Add") == [
        "backbone.net.layer2.0.bn2/Conv:0",
        "q backbone.net.layer2.0.downsample.0/Conv:0",
    ]


def test_a_projected_shortcut_is_found_whichever_side_it_is_on(detector: Path) -> None:
    model = onnx_file.load(detector)
    addition = next(node for node in model.graph.node if node.name == "backbone.net.layer2.0/Add")
    addition.input[0], addition.input[1] = addition.input[1], addition.input[0]
    placed = placement.place(model).activations
    assert ("backbone.net.layer2.0/Add", 0) in placed
    assert ("backbone.net.layer2.0/Add", 1) not in placed


def test_the_pyramid_adds_int8_and_resize_keeps_the_scale_of_its_input(written: tuple) -> None:
    model, _, _ = written
    assert sources_of(model, "neck/Add") == ["q neck.laterals.0/Conv:0", "q up"]
    assert sources_of(model, "neck/Resize")[0] == "q neck.laterals.1/Conv:0"
    quantisers = {node.name: node for node in model.graph.node if node.op_type == "QuantizeLinear"}
    before, after = quantisers["neck.laterals.1/Conv:0/QuantizeLinear"], quantisers["up/QuantizeLinear"]
    assert list(before.input[1:]) == list(after.input[1:])


def test_a_tensor_is_quantised_once_and_dequantised_for_each_reader(written: tuple) -> None:
    model, _, _ = written
    quantised = [node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantised) == len(set(quantised))
    readers = [name for node in model.graph.node for name in node.input]
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            assert readers.count(node.output[0]) == 1


def test_blocks_are_named_by_modules() -> None:
    for node, block in {
        "backbone.net.bn1/Conv": "backbone.net.bn1",
        "backbone.net.blocks.1.0.bn2/Conv": "backbone.net.blocks.1.0",
        "backbone.net.layer2.0.downsample.0/Conv": "backbone.net.layer2.0",
        "backbone.net.layer2.0/Add.3": "backbone.net.layer2.0",
        "head.cls_tower.convs.1/Conv.4": "head.cls_tower.convs.1",
        "neck/Add.2": "neck",
        "Cast": "",
    }.items():
        assert placement.block_of(node) == block


def test_a_block_kept_in_float_has_no_q_at_all(detector: Path, images: Path, tmp_path: Path) -> None:
    blocks = ["backbone.net.layer1.0", "neck"]
    report = quantize.quantize(
        detector, tmp_path / "out.onnx", images, keep_float=blocks, float_above=1, images=2
    )
    model = onnx_file.load(tmp_path / "out.onnx")
    assert report.float_blocks == tuple(blocks)
    for node in model.graph.node:
        if placement.block_of(node.name) in blocks and node.op_type in ("Conv", "Add"):
            assert not any(source.startswith("q ") for source in sources_of(model, node.name))
    assert sources_of(model, "backbone.net.layer2.0.bn1/Conv")[0] == "q l1"


# --- numbers -----------------------------------------------------------------------------------------------


def test_weights_are_int8_by_channel_and_everything_is_symmetric(
    written: tuple, detector: Path, images: Path
) -> None:
    model, _, report = written
    sample = calibration.spread_tiles(
        calibration.find_calibration_images(images, quantize.IMAGES), SPEC, gptq.TILES
    )
    equal = equalisation.equalise(onnx_file.load(detector), sample, SPEC)
    values, original = constants_of(model), constants_of(equal)
    made = producers_of(model)
    points = [
        values[node.input[2]]
        for node in model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    ]
    assert {point.dtype for point in points} == {np.dtype(np.int8)}
    assert not any(point.any() for point in points)
    for name in report.quantised:
        node = next(node for node in model.graph.node if node.name == name)
        steps, scale, _ = (values[part] for part in made[node.input[1]].input)
        assert {attribute.name: attribute.i for attribute in made[node.input[1]].attribute} == {"axis": 0}
        assert scale.shape == steps.shape[:1]
        weight = original[made[node.input[1]].input[0].removesuffix(".int8")]
        assert np.allclose(scale, np.abs(weight).max(axis=(1, 2, 3)) / 127)
        # Not the nearest step of each weight (gptq.py), and never far from it.
        away = np.abs(steps - weight / scale[:, None, None, None])
        assert steps.min() >= -127
        assert away.max() < 8
        assert away.mean() < 0.6


def test_weights_are_what_onnxruntimes_quantiser_makes_of_them() -> None:
    from onnxruntime.quantization.quant_utils import QuantType, quantize_data

    weight = np.random.default_rng(0).normal(size=(6, 4, 3, 3)).astype(np.float32)
    steps, scale = qdq.nearest(weight, 0).steps, qdq.weight_scale(weight, 0)
    for channel in range(6):
        *_, their_scale, theirs = quantize_data(weight[channel], QuantType.QInt8.tensor_type, symmetric=True)
        # ONNX Runtime spreads the symmetric range over 127 or 127.5 steps, depending on its version.
        assert abs(float(np.ravel(their_scale)[0]) / scale[channel] - 1) < 0.005
        assert np.abs(theirs.astype(int) - steps[channel]).max() <= 1


def test_a_channel_of_zeros_stays_zero() -> None:
    zeros = np.zeros((2, 1, 1, 1), np.float32)
    assert not qdq.nearest(zeros, 0).steps.any()
    assert (qdq.weight_scale(zeros, 0) > 0).all()
    tiny = np.float32([[5e-44], [1e-40], [1e-30]])
    np.testing.assert_array_equal(qdq.weight_scale(tiny, 0), np.float32([1, 1, 1e-30]) / np.float32(127))
    np.testing.assert_array_equal(qdq.nearest(tiny, 0).steps, [[0], [0], [127]])


def test_a_histogram_does_not_depend_on_the_order_of_tiles() -> None:
    random = np.random.default_rng(0)
    parts = [random.normal(0, size, 500).astype(np.float32) for size in (0.01, 3, 40, 0.5)]
    one, two = calibration.Histogram(), calibration.Histogram()
    for part in parts:
        one.add(part)
    for part in reversed(parts):
        two.add(part)
    assert one.peak == two.peak == float(np.abs(np.concatenate(parts)).max())
    np.testing.assert_array_equal(one.counts, two.counts)
    assert one.counts.sum() == 2000


def test_thresholds() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=200_000).astype(np.float32)
    values[0] = 30  # one outlier
    histogram = calibration.Histogram()
    histogram.add(values)
    assert histogram.threshold("max") == 30
    expected = float(np.quantile(np.abs(values), 0.999))
    assert histogram.threshold("percentile", 99.9) == pytest.approx(expected, abs=2 * histogram.width)
    assert 2 < histogram.threshold("entropy") < 6
    nothing = calibration.Histogram()
    nothing.add(np.zeros(10, np.float32))
    assert nothing.threshold("entropy") == nothing.threshold("max") == 1
    nothing.add(np.array([0, 1e-35, -1e-42], np.float32))  # as good as 0, and no reason to fail
    assert nothing.threshold("max") == 1
    assert nothing.counts[0] == 13
    with pytest.raises(ValueError, match="finite"):
        nothing.add(np.array([np.nan], np.float32))


def test_detections_stay_what_they_were(written: tuple, detector: Path) -> None:
    """Point by point: which of two neighbours with random scores survives NMS would be a matter of luck."""
    tiles = patterned_tiles((SIZE, SIZE), 4, seed=99)
    (boxes, scores), (other_boxes, other_scores) = (
        run(model, tiles, optimise=False) for model in (onnx_file.load(detector), written[0])
    )
    found = scores.max(2) > SPEC.score_threshold
    assert found.sum() > 100
    apart = verify.corner_distance(boxes[found], other_boxes[found])
    assert np.median(apart) < 0.5
    assert np.quantile(apart, 0.95) < 4  # px, of boxes about 12 to 24 long
    assert np.quantile(np.abs(scores - other_scores)[found], 0.95) < 0.1
    assert (scores.argmax(2) == other_scores.argmax(2))[found].mean() > 0.97


@pytest.mark.parametrize("method", ["entropy", "percentile", "max"])
def test_every_method_keeps_the_logits(method: str, detector: Path, images: Path, tmp_path: Path) -> None:
    report = quantize.quantize(
        detector, tmp_path / "out.onnx", images, images=2, method=method, scan_blocks=True
    )
    assert report.error is not None
    assert report.error < 0.05  # of the logits' variance
    assert {block.name for block in report.scan} == set(report.blocks)
    assert report.scan == sorted(report.scan, key=lambda block: -block.gain)
    assert report.scan[0].gain > 0


def test_the_real_exporters_names_are_understood(tiny_onnx: Path, tmp_path: Path, images: Path) -> None:
    report = quantize.quantize(tiny_onnx, tmp_path / "int8.onnx", images, images=2)
    assert {name.split(".")[0] for name in report.quantised} == {"backbone", "neck", "head"}
    assert not any(name.startswith(("head.cls/", "head.reg/")) for name in report.quantised)
    towers = [name for name in report.quantised if name.startswith("head.cls_tower")]
    assert len(towers) == 5  # one a level
    model = onnx_file.load(tmp_path / "int8.onnx")
    values = [name for name in constants_of(model) if "cls_tower" in name and name.endswith(".int8")]
    assert len(values) == 1  # GroupNorm: the levels share their weights, and still do
    run(model, patterned_tiles((128, 128), 2))


# --- files ------------------------------------------------------------------------------------------------


def test_weights_lie_in_the_file_as_bytes(written: tuple) -> None:
    report = written[2]
    assert report.bytes_after <= 0.3 * report.bytes_before


def test_the_spec_and_what_was_done_travel(written: tuple, quick: onnx.ModelProto) -> None:
    model, _, report = written
    assert onnx_file.read_spec(model) == onnx_file.read_spec(quick) == SPEC
    notes = {entry.key: entry.value for entry in model.metadata_props}
    assert notes["rgfl_precision"] == "int8"
    assert notes["rgfl_calibration"].startswith(f"{report.method}, {report.tiles} tiles, ")
    assert "rgfl_variant" in {entry.key for entry in quick.metadata_props}


def test_the_same_inputs_give_the_same_bytes(detector: Path, images: Path, tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        quantize.quantize(detector, tmp_path / name, images, images=2)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_cache_of_another_calibration_is_never_used(detector: Path, tmp_path: Path) -> None:
    directory, cache = tmp_path / "images", tmp_path / "cache.npz"
    for index, tile in enumerate(patterned_tiles((SIZE, SIZE), 2)):
        draw.save(tile, directory / f"{index}.png")

    def again(model: Path = detector) -> quantize.Report:
        return quantize.quantize(model, tmp_path / "out.onnx", directory, cache=cache)

    assert not again().cached
    first = (tmp_path / "out.onnx").read_bytes()
    assert again().cached
    assert (tmp_path / "out.onnx").read_bytes() == first
    draw.save(patterned_tiles((SIZE, SIZE), 1, seed=5)[0], directory / "1.png")
    assert not again().cached  # other pixels under the same name
    other = onnx_file.load(detector)
    other.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(
            constants_of(other)[other.graph.initializer[0].name] + 1, other.graph.initializer[0].name
        )
    )
    onnx_file.save(other, tmp_path / "other.onnx")
    assert not again(tmp_path / "other.onnx").cached  # another model
    onnx.save(other, tmp_path / "outside.onnx", save_as_external_data=True, location="weights.bin")
    again(tmp_path / "outside.onnx")
    assert again(tmp_path / "outside.onnx").cached
    weights = bytearray((tmp_path / "weights.bin").read_bytes())
    weights[0] ^= 1  # the last bit of a weight
    (tmp_path / "weights.bin").write_bytes(weights)
    assert not again(tmp_path / "outside.onnx").cached
    cache.write_bytes(cache.read_bytes()[:500])
    assert not again().cached
    for foreign in (b"my notes", detector.read_bytes()):
        cache.write_bytes(foreign)
        with pytest.raises(errors.InputError, match=r"no cache of export/quantize\.py"):
            again()
        assert cache.read_bytes() == foreign
    np.savez(cache, other=np.zeros(3))
    with pytest.raises(errors.InputError, match="no cache"):
        again()


def test_paths_are_looked_at_before_calibration(
    detector: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """Calibration took minutes, and then there was no folder for its cache, and no model."""
    command = [str(detector), "--calib", str(images), "--images", "1"]
    out, cache = tmp_path / "a" / "int8.onnx", tmp_path / "b" / "c" / "cache.npz"
    assert quantize.main([*command, "--out", str(out), "--cache", str(cache)]) == 0
    assert out.is_file()
    assert cache.is_file()
    with monkeypatch.context() as patch:
        patch.setattr(quantize, "collect", lambda *_, **__: pytest.fail("calibrated first"))
        patch.setattr(quantize, "read_float_model", lambda *_: pytest.fail("read the model first"))
        inside = out / "x.onnx"  # a file is no folder
        named = ["--out", tmp_path / "new" / "o.onnx"]
        for flags, reason in (
            (["--out", inside], f"--out {out}: {out} is a file"),
            ([*named, "--cpu-variant", inside], f"--cpu-variant {out}: {out} is a file"),
            ([*named, "--cache", inside], f"--cache {out}: {out} is a file"),
            ([*named, "--cache", tmp_path], f"--cache {tmp_path}: expected a file"),
        ):
            assert quantize.main([*command, *map(str, flags)]) == 2
            assert reason in capsys.readouterr().err
        assert not (tmp_path / "new").exists()

    honest = atomic.write_bytes

    def full(path: Path, data: bytes) -> None:
        if path.suffix == ".npz":
            raise OSError(28, "No space left on device", "cache.npz")
        honest(path, data)

    monkeypatch.setattr(atomic, "write_bytes", full)
    out.unlink()
    with pytest.warns(UserWarning, match="starts anew next time: cache.npz: No space left"):
        assert quantize.main([*command, "--out", str(out)]) == 0
    assert out.is_file()


# --- engines ----------------------------------------------------------------------------------------------


def test_nvidias_parser_and_builder_take_it_strongly_typed(written: tuple) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX: pip install tensorrt-rtx-cu13")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse(written[0].SerializeToString())
    assert parsed, [parser.get_error(index).desc() for index in range(parser.num_errors)]
    kinds = [network.get_layer(index).type for index in range(network.num_layers)]
    assert kinds.count(trt.LayerType.QUANTIZE) > 0
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("images", (1, SIZE, SIZE, 3), (1, SIZE, SIZE, 3), (2, SIZE, SIZE, 3))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    assert plan.nbytes > 0


def test_the_cpu_variant_computes_the_same_bits(written: tuple) -> None:
    """Operator by operator, without ONNX Runtime's fusions: the same floats reach every convolution."""
    model, variant, _ = written
    tiles = patterned_tiles((SIZE, SIZE), 3, seed=42)
    for one, two in zip(run(model, tiles, optimise=False), run(variant, tiles, optimise=False), strict=True):
        np.testing.assert_array_equal(one, two)


def test_the_cpu_variant_has_the_same_grids(written: tuple) -> None:
    model, variant, _ = written
    values = constants_of(variant)
    made = producers_of(variant)
    for node in variant.graph.node:
        if node.op_type == "QuantizeLinear" or (node.op_type == "DequantizeLinear" and node.input[0] in made):
            point = values[node.input[2]]
            assert (point.dtype, int(point)) == (np.uint8, 128)
        elif node.op_type == "DequantizeLinear":
            assert values[node.input[0]].dtype == np.int8
    scales = [
        {name: v.tolist() for name, v in constants_of(m).items() if name.endswith(".scale")}
        for m in (model, variant)
    ]
    assert scales[0] == scales[1]
    operators = [node.op_type for node in variant.graph.node if node.name.startswith(("backbone", "head"))]
    # Stem, a first convolution, both additions… ReLU in front of an output or of excitation stays.
    assert operators.count("Clip") == 4
    assert {node.name for node in variant.graph.node if node.op_type == "Relu"} == {
        "backbone.net.layer2.0.act1/Relu",
        "head.cls_tower/Relu",
        "head.cls_tower/Relu.2",
        "head.reg_tower/Relu",
        "head.reg_tower/Relu.2",
    }


def optimised(model: onnx.ModelProto, path: Path) -> list[str]:
    """The operators that ONNX Runtime makes of a model."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(path).graph.node]


def test_integer_kernels_take_every_quantised_convolution(
    written: tuple, quick: onnx.ModelProto, tmp_path: Path
) -> None:
    quantised, outputs, excitation = len(written[2].quantised), len(OUTPUT_CONVOLUTIONS), 1
    operators = optimised(quick, tmp_path / "quick.onnx")
    assert operators.count("QLinearConv") == quantised
    assert operators.count("QLinearAdd") == 3  # two shortcuts and the pyramid
    assert operators.count("Conv") + operators.count("FusedConv") == outputs + excitation
    assert not {"Relu", "Clip"} & set(operators)  # saturation does their work
    # What is exact leaves more of them in float: those in front of an addition or an output.
    assert 6 <= optimised(written[1], tmp_path / "exact.onnx").count("QLinearConv") < quantised - 4


def test_values_that_are_never_negative_have_all_steps_above_zero(
    written: tuple, quick: onnx.ModelProto
) -> None:
    """Half the step of int8 for a ReLU; ReLU6 reaches 6 at most."""
    before, after = constants_of(written[0]), constants_of(quick)
    unsigned = {name for name in after if name.endswith(".unsigned")}
    assert {"stem.scale.unsigned", "l1.scale.unsigned", "l1a:clip.scale.unsigned"} <= unsigned
    for name in unsigned & {f"{old}.unsigned" for old in before}:
        top = before[name.removesuffix(".unsigned")] * 127
        assert after[name] * 255 == pytest.approx(min(top, 6.0) if "clip" in name else top, rel=1e-6)
    made = producers_of(quick)
    for node in quick.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[1] in unsigned:
            assert after[node.input[2]].dtype == np.uint8
            assert int(after[node.input[2]]) == 0
        if node.op_type == "QuantizeLinear" and node.input[1] in unsigned:
            assert made[node.input[0]].op_type in ("Conv", "Add")
    assert "MaxPool" in {node.op_type for node in quick.graph.node}


def test_what_is_pooled_and_read_as_it_is_keeps_two_grids() -> None:
    """As the features in front of VGG's pools: a lateral reads them, and behind the pool the next stage."""
    nodes = [
        helper.make_node("MaxPool", ["x"], ["pooled"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("QuantizeLinear", ["x", "fine", "int8.zero"], ["x.int8"], name="q1"),
        helper.make_node("DequantizeLinear", ["x.int8", "fine", "int8.zero"], ["whole"], name="dq1"),
        helper.make_node("QuantizeLinear", ["pooled", "coarse", "int8.zero"], ["pooled.int8"], name="q2"),
        helper.make_node("DequantizeLinear", ["pooled.int8", "coarse", "int8.zero"], ["half"], name="dq2"),
    ]
    shapes = {"x": [1, 2, 8, 8], "whole": [1, 2, 8, 8], "half": [1, 2, 4, 4]}
    infos = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, side) for name, side in shapes.items()
    }
    constants = {"fine": np.float32(0.01), "coarse": np.float32(0.05), "int8.zero": np.int8(0)}
    initializers = [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()]
    made = helper.make_graph(nodes, "pooled", [infos["x"]], [infos["whole"], infos["half"]], initializers)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    variant = cpu_int8.cpu_variant(model)
    x = np.random.default_rng(0).normal(size=shapes["x"]).astype(np.float32)
    for one, two in zip(*(run_graph(each, x) for each in (model, variant)), strict=True):
        np.testing.assert_array_equal(one, two)
    pool = next(node for node in variant.graph.node if node.op_type == "MaxPool")
    assert producers_of(variant)[pool.input[0]].op_type == "QuantizeLinear"


def run_graph(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def with_normalisation(
    model: onnx.ModelProto, mean: float | np.ndarray, std: float | np.ndarray
) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name in ("mean", "std"):
            values = np.full((3, 1, 1), mean if tensor.name == "mean" else std, np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return changed


def test_pixels_stay_on_their_own_grid_where_the_normalisation_allows_it(written: tuple) -> None:
    tiles = patterned_tiles((SIZE, SIZE), 2, seed=1)
    model = with_normalisation(written[0], 127.0, 128.0)
    variant = cpu_int8.cpu_variant(model, {})
    stem = next(node for node in variant.graph.node if node.name == "backbone.net.bn1/Conv")
    variant.graph.output.append(helper.make_tensor_value_info(stem.input[0], TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(variant.SerializeToString(), providers=["CPUExecutionProvider"])
    seen = session.run([stem.input[0]], {"images": tiles})[0]
    expected = (tiles.astype(np.float32) - np.float32(127)) / np.float32(128)
    np.testing.assert_array_equal(seen, expected.transpose(0, 3, 1, 2))
    assert not {"Cast", "Div"} & {node.op_type for node in variant.graph.node}
    for mean, std in ((127.5, 128.0), (123.675, 58.0)):  # no uint8 is its zero
        other = cpu_int8.cpu_variant(with_normalisation(written[0], mean, std), {})
        assert "Div" in {node.op_type for node in other.graph.node}


def test_a_grid_behind_every_convolution_costs_little(
    written: tuple, quick: onnx.ModelProto, detector: Path
) -> None:
    tiles = patterned_tiles((SIZE, SIZE), 3, seed=42)
    fp32, int8 = run(onnx_file.load(detector), tiles), run(written[0], tiles, optimise=False)
    for mine, its, true in zip(run(quick, tiles, exact=True), int8, fp32, strict=True):
        assert np.abs(mine - true).mean() < 1.5 * np.abs(its - true).mean()


def test_integer_kernels_compute_what_the_floats_did(written: tuple, detector: Path) -> None:
    """To a step of the grid here and there: a sum of integers is exact, one of floats rounds."""
    if not has_vnni():
        pytest.skip("this CPU has no VNNI: its uint8 × int8 products saturate at 16 bits")
    tiles = patterned_tiles((SIZE, SIZE), 3, seed=42)
    float_model = onnx_file.load(detector)
    as_good(run(written[1], tiles), run(written[0], tiles, optimise=False), run(float_model, tiles))


def test_without_vnni_the_precise_mode_does(written: tuple, detector: Path) -> None:
    """`session.x64quantprecision`: ONNX Runtime then takes uint8 × uint8 kernels, which cannot saturate."""
    tiles = patterned_tiles((SIZE, SIZE), 3, seed=42)
    float_model = onnx_file.load(detector)
    found = run(written[1], tiles, exact=True)
    as_good(found, run(written[0], tiles, optimise=False), run(float_model, tiles))


def as_good(found: list[np.ndarray], int8: list[np.ndarray], fp32: list[np.ndarray]) -> None:
    """No further from FP32 than INT8 with Q/DQ computed as written, though steps may flip."""
    for mine, its, true in zip(found, int8, fp32, strict=True):
        assert np.abs(mine - true).mean() < 1.25 * np.abs(its - true).mean()


# --- as much INT8 as the accuracy allows --------------------------------------------------------------------


@pytest.mark.parametrize("needed", range(8))
def test_no_more_blocks_in_float_than_needed(needed: int) -> None:
    ranking = [f"b{index}" for index in range(9)]
    tried: list[int] = []

    def drop(blocks: list[str]) -> float:
        tried.append(len(blocks))
        return 0.0 if len(blocks) >= needed else 0.1

    assert quantize.fewest_in_float(ranking, drop, 0.01) == needed
    assert len(tried) == len(set(tried)) <= 7


def test_what_cannot_be_held_is_said() -> None:
    with pytest.raises(quantize.QuantizationFailed):
        quantize.fewest_in_float(["a", "b", "c"], lambda _: 1.0, 0.01)


def test_blocks_that_pass_on_the_same_error_are_not_all_in_float() -> None:
    """b is most of a's error seen again further on, c another's."""
    errors = {"": 1.0, "a": 0.55, "b": 0.6, "c": 0.65, "ab": 0.52, "ac": 0.2, "abc": 0.18}
    _, blocks = quantize.scan(
        {"a": ["1"], "b": ["2"], "c": ["3"]}, lambda names: errors["".join(sorted(names))]
    )
    chosen = quantize.cause_most(1.0, blocks, 0.3, lambda names: errors["".join(sorted(names))])
    assert chosen == ["a", "c"]
    assert quantize.cause_most(1.0, blocks, 0.5, lambda names: errors["".join(sorted(names))]) == []


def test_blocks_that_cause_most_of_the_error_stay_in_float(
    detector: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, cpu = tmp_path / "out.onnx", tmp_path / "cpu.onnx"
    first, second, third = "backbone.net.layer1.0", "backbone.net.layer2.0", "neck"
    costs = [quantize.Block(first, 1, 0.5), quantize.Block(second, 1, 0.34), quantize.Block(third, 1, 0.3)]
    scan = quantize.scan
    monkeypatch.setattr(
        quantize,
        "scan",
        lambda blocks, error: (1.0, costs) if len(blocks) > 2 else scan(blocks, error),
    )

    def error(_: quantize.Logits, model: onnx.ModelProto) -> float:
        """For ONNX Runtime the second block alone is worse than its share."""
        if "variant" in {entry.key.removeprefix("rgfl_") for entry in model.metadata_props}:
            return 0.5 if second in float_blocks(model) else 1.0
        quantised = {
            placement.block_of(node.name)
            for node in model.graph.node
            if node.op_type == "Conv"
            and any(source.startswith("q ") for source in sources_of(model, node.name))
        }
        return 1 - sum(block.gain for block in costs if block.name not in quantised)

    monkeypatch.setattr(quantize.Logits, "error", error)

    def float_blocks(model: onnx.ModelProto) -> list[str]:
        notes = {entry.key: entry.value for entry in model.metadata_props}
        return [name for name in notes["rgfl_float_blocks"].split(",") if name]

    def run(**more: object) -> tuple[quantize.Report, list[str], list[str]]:
        report = quantize.quantize(detector, out, images, images=2, cpu_variant_path=cpu, **more)
        return report, float_blocks(onnx_file.load(out)), float_blocks(onnx_file.load(cpu))

    report, in_engine, on_cpu = run()
    assert in_engine == list(report.float_blocks) == [first, second]
    assert on_cpu == list(report.cpu_float_blocks or ()) == [second]
    assert "layer1.0 (in INT8 50% of the error)" in report.text()
    assert f"for ONNX Runtime, in float: {second}" in report.text()
    written = onnx_file.load(out)
    for block in (first, second):
        convolutions = [
            n for n in written.graph.node if n.op_type == "Conv" and placement.block_of(n.name) == block
        ]
        assert convolutions
        for node in convolutions:
            assert not any(source.startswith("q ") for source in sources_of(written, node.name))
    assert run(float_above=1)[1:] == ([], [])
    assert run(float_above=0.32, keep_float=[third])[1] == [third, first, second]


def test_ap_is_held(
    detector: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """With labels made of what FP32 finds, mAP falls; then with figures that only some blocks hold."""
    from rgfl.boxes import to_quads
    from rgfl.dota import merge
    from rgfl.dota.images import find_images, read_image
    from rgfl.dota.labels import Objects, write_labels
    from rgfl.trt_runtime.runners import load_runner

    labels = tmp_path / "labelTxt"
    labels.mkdir()
    with load_runner(detector, device="cpu") as runner:
        for name, path in find_images(images).items():
            found = merge.detect(read_image(path), runner, size=SIZE, stride=SIZE)[:20]
            quads = to_quads(found.boxes.astype(np.float64)).reshape(-1, 8)
            write_labels(
                labels / f"{name}.txt", Objects(quads, found.labels, np.zeros(len(found), np.int32)), CLASSES
            )
    report = quantize.quantize(
        detector, tmp_path / "a.onnx", images, images=3, labels=labels, max_ap_drop=0.9
    )
    assert report.float_blocks == ()
    assert report.ap_float is not None
    assert report.ap_int8 is not None
    assert report.ap_float > 0.5
    assert report.ap_float - 0.9 <= report.ap_int8
    assert "mAP on the calibration images" in report.text()

    # Fixed figures, so that the search has something to find.
    ranked = [quantize.Block(name, 1, 0.1) for name in report.blocks]
    monkeypatch.setattr(quantize, "scan", lambda *_: (0.5, ranked))
    monkeypatch.setattr(quantize, "mean_ap", lambda path, *_: 0.8 if path == detector else 0.7)
    command = [str(detector), "--calib", str(images), "--images", "2", "--labels", str(labels)]
    out = tmp_path / "b.onnx"
    assert quantize.main([*command, "--max-ap-drop", "0.01", "--out", str(out)]) == 1
    assert "nothing was written" in capsys.readouterr().err
    assert not out.exists()
    answers = iter([0.8, 0.7, 0.7, 0.795])
    monkeypatch.setattr(quantize, "mean_ap", lambda *_: next(answers))
    assert quantize.main([*command, "--max-ap-drop", "0.01", "--out", str(out)]) == 0
    notes = {entry.key: entry.value for entry in onnx_file.load(out).metadata_props}
    assert len(notes["rgfl_float_blocks"].split(",")) == 2


def test_ap_is_that_of_eval_dota(
    detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Tiles were merged at the threshold of NMS within a tile, and difficult objects always left out."""
    from rgfl.boxes import to_quads
    from rgfl.dota import labels as dota
    from rgfl.dota.images import find_images
    from rgfl.trt_runtime import eval_dota
    from rgfl.trt_runtime.runners import load_runner
    from rgfl.trt_runtime.streaming import stream

    monkeypatch.setitem(dota.CLASSES, "1.0", CLASSES[:1])
    monkeypatch.setitem(dota.CLASSES, "1.5", CLASSES)  # where difficult objects count
    model = onnx_file.load(detector)
    onnx_file.write_spec(model, dataclasses.replace(SPEC, iou_threshold=0.5))
    path, images, labels = tmp_path / "model.onnx", tmp_path / "images", tmp_path / "labelTxt"
    onnx_file.save(model, path)
    labels.mkdir()
    for index, scene in enumerate(patterned_tiles((110, 150), 2)):
        draw.save(scene, images / f"P{index}.png")
    random = np.random.default_rng(0)
    with load_runner(path, device="cpu") as runner:
        for done in stream(runner, find_images(images)):
            quads = to_quads(done.detections.boxes.astype(np.float64)).reshape(-1, 8)
            quads += random.normal(0, 1.5, quads.shape)
            difficult = (random.random(len(quads)) < 0.3).astype(np.int32)
            objects = dota.Objects(quads, done.detections.labels, difficult)
            dota.write_labels(labels / f"{done.name}.txt", objects, CLASSES)
    record = tmp_path / "eval.json"
    command = ["--model", path, "--images", images, "--labels", labels, "--json", record, "--device", "cpu"]
    assert eval_dota.main(list(map(str, command))) == 0
    scored = json.loads(record.read_text())
    assert scored["version"] == "1.5"
    assert 0.2 < scored["map"] < 0.9
    truth = dota.read_label_folder(labels, CLASSES)
    assert quantize.mean_ap(path, find_images(images), truth) == scored["map"]


# --- what a user may get wrong -----------------------------------------------------------------------------


def test_bad_input_is_one_line_and_status_2(
    detector: Path, written: tuple, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "P1.png").write_bytes(b"no image")
    (tmp_path / "noise.onnx").write_bytes(b"\x00noise")

    model = onnx_file.load(detector)
    del model.metadata_props[:]
    onnx_file.save(model, tmp_path / "foreign.onnx")
    onnx_file.save(written[0], tmp_path / "done.onnx")
    model = onnx_file.load(detector)
    model.graph.node.append(helper.make_node("RotatedNMS", ["boxes", "scores"], ["kept"], domain="rgfl"))
    onnx_file.save(model, tmp_path / "nms.onnx")
    model = onnx_file.load(detector)
    for node in model.graph.node:
        node.name = ""
    onnx_file.save(model, tmp_path / "nameless.onnx")

    def fails(words: str, *flags: str, model: Path = detector, calib: Path = images) -> None:
        out = tmp_path / "out.onnx"
        assert quantize.main([str(model), "--calib", str(calib), "--out", str(out), *flags]) == 2
        message = capsys.readouterr().err
        assert message.startswith("quantize: error: ")
        assert words in message
        assert message.count("\n") == 1
        assert not out.exists()

    fails("no image in this folder", calib=tmp_path / "empty")
    fails("no such directory", calib=tmp_path / "none")
    fails("P1.png", calib=tmp_path / "broken")
    fails("no rgfl spec", model=tmp_path / "foreign.onnx")
    fails("quantised already", model=tmp_path / "done.onnx")
    fails("NMS is inside", model=tmp_path / "nms.onnx")
    fails("no layer to quantise", model=tmp_path / "nameless.onnx")
    fails("no ONNX model", model=tmp_path / "noise.onnx")
    fails("no such file", model=tmp_path / "absent.onnx")
    fails("go together", "--max-ap-drop", "0.1")
    fails("no P0000.txt", "--max-ap-drop", "0.1", "--labels", str(tmp_path / "empty"))
    fails("no such block", "--float", "backbone.net.layer9.0")
    fails("--images 0", "--images", "0")
    fails("--percentile", "--percentile", "3")
    assert quantize.main([str(detector), "--calib", str(images), "--out", str(detector)]) == 2
    assert "this is the FP32 model" in capsys.readouterr().err


def test_help_is_quick_and_has_examples() -> None:
    code = (
        f"import sys; sys.argv = ['quantize', '--help']; sys.path.insert(0, {str(ROOT / 'export')!r})\n"
        "from rgfl.export import quantize\n"
        "try: quantize.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "python export/quantize.py" in done.stdout


@pytest.mark.parametrize(("mean", "std"), [((120, 121, 122), (128,) * 3), ((127,) * 3, (58, 57, 57))])
def test_channels_that_are_normalised_each_its_own_way_keep_their_floats(
    written: tuple, mean: tuple[int, ...], std: tuple[int, ...]
) -> None:
    model = with_normalisation(written[0], np.reshape(mean, (3, 1, 1)), np.reshape(std, (3, 1, 1)))
    assert "Div" in {node.op_type for node in cpu_int8.cpu_variant(model, {}).graph.node}


def test_a_clip_between_two_steps_cuts_where_rounding_puts_it() -> None:
    """6 / 0.0596 = 100.67: the floats that are cut at 6 lie on step 101."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], name="conv"),
        helper.make_node("Clip", ["y", "low", "high"], ["z"], name="clip"),
        helper.make_node("QuantizeLinear", ["z", "scale", "int8.zero"], ["z.int8"], name="q"),
        helper.make_node("DequantizeLinear", ["z.int8", "scale", "int8.zero"], ["out"], name="dq"),
    ]
    x, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 8, 8]) for name in ("x", "out"))
    constants = {"w": np.ones((1, 1, 1, 1), np.float32), "low": np.float32(0), "high": np.float32(6)}
    constants |= {"scale": np.float32(0.0596), "int8.zero": np.int8(0)}
    initializers = [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()]
    made = helper.make_graph(nodes, "clipped", [x], [out], initializers)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    values = np.linspace(-2, 9, 64, dtype=np.float32).reshape(1, 1, 8, 8)
    variant = cpu_int8.cpu_variant(model)
    np.testing.assert_array_equal(*(run_graph(each, values)[0] for each in (model, variant)))
    clip = next(node for node in variant.graph.node if node.op_type == "Clip")
    assert clip.input[0] == "z.int8.unclipped"
