"""Surgery on exported graphs: where FP16 begins and ends, what its rounding is worth, and the NMS node."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rgfl.spec import DetectorSpec, SpecError

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'rgfl[export]'")
gs = pytest.importorskip("onnx_graphsurgeon", reason="needs onnx-graphsurgeon: pip install 'rgfl[export]'")
ort = pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install onnxruntime")

import rgfl.plugins  # noqa: E402
from rgfl.errors import InputError, ModelError  # noqa: E402
from rgfl.export import graph, onnx_file  # noqa: E402
from rgfl.export.fp16 import to_fp16, to_rounded  # noqa: E402
from rgfl.trt_runtime.sample_tiles import sample_tiles  # noqa: E402

SPEC = DetectorSpec(classes=("a",), image_size=(128, 128))


def small_model(**replaced: np.ndarray) -> onnx.ModelProto:
    """Nine operators named as an export names them. In float32 every result is exact, in float16 few are."""
    random = np.random.default_rng(0)
    values = {
        "first": random.integers(-31, 32, (8, 3, 3, 3)).astype(np.float32) / 8,
        "bias": random.integers(-99, 99, 8).astype(np.float32) / 4,
        "second": random.integers(-31, 32, (4, 8, 1, 1)).astype(np.float32) / 64,
        "scale": np.float32([0.375]),
        **replaced,
    }
    constants = {name: gs.Constant(name, array) for name, array in values.items()}
    images = gs.Variable("images", np.uint8, ("batch", 16, 16, 3))
    boxes = gs.Variable("boxes", np.float32, ("batch", 4, 256))
    tensors = {name: gs.Variable(name, np.float32) for name in ("cast", "nchw", "conv", "relu", "pool")}
    tensors |= {name: gs.Variable(name, np.float32) for name in ("lateral", "up", "sum", "scaled")}
    t, c = tensors, constants
    convolution = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    sizes = gs.Constant("sizes", np.float32([1, 1, 2, 2]))
    shape = gs.Constant("shape", np.int64([0, 4, -1]))
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        gs.Node("Cast", "Cast", {"to": onnx.TensorProto.FLOAT}, [images], [t["cast"]]),
        gs.Node("Transpose", "Transpose", {"perm": [0, 3, 1, 2]}, [t["cast"]], [t["nchw"]]),
        gs.Node("Conv", "backbone/Conv", convolution, [t["nchw"], c["first"], c["bias"]], [t["conv"]]),
        gs.Node("Relu", "backbone/Relu", {}, [t["conv"]], [t["relu"]]),
        gs.Node("MaxPool", "backbone/MaxPool", pool, [t["relu"]], [t["pool"]]),
        gs.Node("Conv", "neck/Conv", {"kernel_shape": [1, 1]}, [t["pool"], c["second"]], [t["lateral"]]),
        gs.Node(
            "Resize",
            "neck/Resize",
            {"mode": "nearest"},
            [t["lateral"], gs.Variable.empty(), sizes],
            [t["up"]],
        ),
        gs.Node("Mul", "neck/Mul", {}, [t["up"], c["scale"]], [t["scaled"]]),
        gs.Node("Add", "neck/Add", {}, [t["up"], t["scaled"]], [t["sum"]]),
        gs.Node("Reshape", "decoder/Reshape", {}, [t["sum"], shape], [boxes]),
    ]
    model = gs.export_onnx(gs.Graph(nodes, [images], [boxes], opset=18))
    model.ir_version = 10
    onnx_file.write_spec(model, SPEC, precision="fp32")
    return model


def run(model: onnx.ModelProto, images: np.ndarray, *, optimise: bool = True) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, {"images": images})


def stored_in_fp16(images: np.ndarray, model: onnx.ModelProto) -> np.ndarray:
    """`small_model` in NumPy: tensors of the region are stored in float16, operators compute wider."""
    weights = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}

    def half(values: np.ndarray) -> np.ndarray:
        return values.astype(np.float16)

    def wide(values: np.ndarray) -> np.ndarray:
        return values.astype(np.float64)

    first, bias, second, scale = (half(weights[name]) for name in ("first", "bias", "second", "scale"))
    x = wide(half(images.astype(np.float32).transpose(0, 3, 1, 2)))
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    conv = half(np.einsum("bchwij,ocij->bohw", windows, wide(first)) + wide(bias)[:, None, None])
    relu = np.maximum(conv, np.float16(0))
    pool = relu.reshape(len(x), 8, 8, 2, 8, 2).max((3, 5))
    lateral = half(np.einsum("bchw,oc->bohw", wide(pool), wide(second[:, :, 0, 0])))
    up = lateral.repeat(2, 2).repeat(2, 3)
    scaled = half(wide(up) * wide(scale))
    return half(wide(up) + wide(scaled)).astype(np.float32).reshape(len(x), 4, 256)


def test_the_rounding_graph_is_storage_in_fp16_bit_for_bit() -> None:
    model = small_model()
    images = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    rounded, _ = to_rounded(model)
    expected = stored_in_fp16(images, model)
    for optimise in (True, False):  # ONNX Runtime's optimiser must leave the rounding alone
        np.testing.assert_array_equal(run(rounded, images, optimise=optimise)[0], expected)
    full = run(model, images)[0]
    assert (full != expected).mean() > 0.3  # or there would have been nothing to round
    np.testing.assert_allclose(full, expected, rtol=4e-3, atol=1)


def test_the_rounding_graph_of_a_detector_is_storage_in_fp16_bit_for_bit(tiny_onnx: Path) -> None:
    """The typed file, node by node: float16 tensors, each operator computed in float32 by itself."""
    model = onnx_file.load(tiny_onnx)
    tiles = sample_tiles(onnx_file.read_spec(model), 2)
    typed, _ = to_fp16(model)
    rounded, _ = to_rounded(model)
    expected = one_by_one(typed, {"images": tiles})
    found = run(rounded, tiles, optimise=False)
    np.testing.assert_array_equal(found[0], expected["boxes"])
    # But for the quality, which float32 adds up in another order where its weights are an input.
    np.testing.assert_allclose(found[1], expected["scores"], rtol=1e-6)
    full = run(model, tiles, optimise=False)
    assert not np.array_equal(full[1], found[1])


def one_by_one(model: onnx.ModelProto, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every tensor of `model`, each node run by itself in float32, its result stored as the file says."""
    tensors = tensors | {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    for node in model.graph.node:
        inputs = {name: tensors[name] for name in node.input if name}
        if node.op_type == "Cast":
            to = onnx.helper.tensor_dtype_to_np_dtype(node.attribute[0].i)
            tensors[node.output[0]] = inputs[node.input[0]].astype(to)
            continue
        half = any(value.dtype == np.float16 for value in inputs.values())
        wide = {
            name: value.astype(np.float32) if half and value.dtype == np.float16 else value
            for name, value in inputs.items()
        }
        outputs = [name for name in node.output if name]
        for name, value in zip(outputs, run_node(node, wide, outputs), strict=True):
            tensors[name] = value.astype(np.float16) if half and value.dtype == np.float32 else value
    return tensors


def run_node(node: onnx.NodeProto, feed: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
    helper = onnx.helper
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in feed.items()
    ]
    results = [helper.make_empty_tensor_value_info(name) for name in outputs]
    single = helper.make_model(
        helper.make_graph([node], "one", inputs, results),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    single = onnx.shape_inference.infer_shapes(single, data_prop=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(single.SerializeToString(), options).run(outputs, feed)


# --- what TensorRT wants of the input -----------------------------------------------------------------------


def test_the_uint8_input_feeds_its_cast_alone(tiny_onnx: Path) -> None:
    """TensorRT takes no other reader of a UINT8 input; the exporter reads the batch size off it, too."""
    source = onnx_file.load(tiny_onnx)
    typed, rounded = to_fp16(source)[0], to_rounded(source)[0]
    for model in (source, typed, rounded, graph.add_nms(typed)):
        assert [node.op_type for node in model.graph.node if "images" in node.input] == ["Cast"]
    as_exported = onnx.ModelProto()
    as_exported.CopyFrom(source)
    (cast,) = [node for node in as_exported.graph.node if "images" in node.input]
    (shape,) = [n for n in as_exported.graph.node if n.op_type == "Shape" and cast.output[0] in n.input]
    shape.input[0] = "images"
    tiles = sample_tiles(onnx_file.read_spec(source), 2)
    for one, two in zip(run(source, tiles), run(as_exported, tiles), strict=True):
        np.testing.assert_array_equal(one, two)


# --- where FP16 is ---------------------------------------------------------------------------------------


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor of the graph, inferred anew."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=True)
    values = [*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input]
    return {value.name: value.type.tensor_type.elem_type for value in values}


def test_fp16_lies_between_normalisation_and_decode(tiny_onnx: Path) -> None:
    source = onnx_file.load(tiny_onnx)
    typed, report = to_fp16(source)
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    types = types_of(typed)
    casts = {node.output[0]: node for node in typed.graph.node if node.op_type == "Cast"}
    for node in typed.graph.node:
        floats = {types[name] for name in node.output} & {half, single}
        if node.op_type == "Cast" or not floats:
            continue
        module = node.name.split("/")[0] if "/" in node.name else ""
        expected = single if module.split(".")[0] in ("", "decoder") else half
        assert floats == {expected}, node.name
        assert (expected == half) == (node.name in report.fp16)
    convolutions = [node for node in typed.graph.node if node.op_type == "Conv"]
    weights = {item.name: item.data_type for item in typed.graph.initializer}
    assert {weights[name] for node in convolutions for name in node.input[1:]} == {half}
    # One cast in, one for each of the head's outputs; none that undoes another.
    assert not [node.name for node in casts.values() if node.input[0] in casts]
    assert sum(types[name] == half for name in casts) == 1
    assert report.refused == {}
    assert report.weights > 100_000


def test_the_border_spec_and_size_of_an_fp16_file(tiny_onnx: Path, tmp_path: Path) -> None:
    source = onnx_file.load(tiny_onnx)
    out = tmp_path / "typed.onnx"
    assert graph.main([str(tiny_onnx), "--fp16", "--out", str(out)]) == 0
    typed = onnx_file.load(out)
    assert [value.SerializeToString() for value in typed.graph.input] == [
        value.SerializeToString() for value in source.graph.input
    ]
    assert [value.name for value in typed.graph.output] == ["boxes", "scores"]
    assert {value.type.tensor_type.elem_type for value in typed.graph.output} == {onnx.TensorProto.FLOAT}
    assert onnx_file.read_spec(typed) == onnx_file.read_spec(source)
    assert onnx_file.precision(source) == "fp32"
    assert onnx_file.precision(typed) == "fp16"
    assert out.stat().st_size < 0.65 * tiny_onnx.stat().st_size
    again = tmp_path / "again.onnx"
    assert graph.main([str(tiny_onnx), "--fp16", "--out", str(again)]) == 0
    assert again.read_bytes() == out.read_bytes()


def test_constants_beyond_fp16_stay_fp32_and_are_told() -> None:
    typed, report = to_fp16(small_model(second=np.full((4, 8, 1, 1), 1e6, np.float32)))
    assert list(report.refused) == ["neck/Conv"]
    assert "65504" in report.text()
    assert "neck/Conv" in report.text()
    types = types_of(typed)
    assert types["lateral"] == onnx.TensorProto.FLOAT
    assert types["pool"] == onnx.TensorProto.FLOAT16
    assert types["up"] == onnx.TensorProto.FLOAT16


def test_weights_that_vanish_are_counted() -> None:
    weights = np.full((4, 8, 1, 1), 1e-9, np.float32)
    weights[0] = 0  # was nothing before
    _, report = to_fp16(small_model(second=weights))
    assert report.underflowed == 24
    assert "24 weights" in report.text()


def test_layers_stay_fp32_by_name() -> None:
    typed, report = to_fp16(small_model(), ["neck/*"])
    assert set(report.refused) == {"neck/Conv", "neck/Resize", "neck/Mul", "neck/Add"}
    types = types_of(typed)
    assert (types["pool"], types["sum"]) == (onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT)
    with pytest.raises(InputError, match=r"--keep-fp32 nick\*: no node has such a name"):
        to_fp16(small_model(), ["nick*"])


def quantised_model(scale_of_x: float) -> onnx.ModelProto:
    """`small_model` with Q/DQ before the neck's convolution, named as export/qdq.py names them."""
    surgeon = gs.import_onnx(small_model())
    convolution = next(node for node in surgeon.nodes if node.name == "neck/Conv")
    x = convolution.inputs[0]
    scale, zero = (
        gs.Constant("scale_x", np.array(scale_of_x, np.float32)),
        gs.Constant("zero_x", np.array(0, np.int8)),
    )
    q, dq = gs.Variable("q", np.int8), gs.Variable("dq", np.float32)
    surgeon.nodes += [
        gs.Node("QuantizeLinear", "pool/QuantizeLinear", {}, [x, scale, zero], [q]),
        gs.Node("DequantizeLinear", "neck/Conv.input0/DequantizeLinear", {}, [q, scale, zero], [dq]),
    ]
    convolution.inputs[0] = dq
    surgeon.toposort()
    model = gs.export_onnx(surgeon)
    model.ir_version = 10
    onnx_file.write_spec(model, SPEC, precision="int8")
    return model


def test_a_tensor_is_quantised_in_the_type_of_its_readers() -> None:
    """A pattern of a layer is none of the tensor's name, and the two had different scales."""
    model = quantised_model(0.1)
    typed, report = to_fp16(model, ["neck/Conv*"])
    assert {"pool/QuantizeLinear", "neck/Conv.input0/DequantizeLinear"} <= set(report.refused)
    scales = {
        node.input[1] for node in typed.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    }
    assert scales == {"scale_x"}
    assert "pool/QuantizeLinear" not in to_fp16(model, ["neck/Mul"])[1].refused


def test_quantised_graphs_get_fp16_scales_that_are_positive() -> None:
    """TensorRT types a DequantizeLinear by its scale, and refuses scales of 0."""
    model = quantised_model(2e-9)
    typed, report = to_fp16(model)
    assert onnx_file.precision(typed) == "int8-fp16"
    assert report.refused == {}
    assert types_of(typed)["dq"] == onnx.TensorProto.FLOAT16
    scales = [
        onnx.numpy_helper.to_array(item)
        for item in typed.graph.initializer
        if item.name.startswith("scale_x")
    ]
    assert [(item.dtype, item > 0) for item in scales] == [(np.float16, True)]
    assert onnx_file.precision(to_rounded(model)[0]) == "int8-fp16-rounded"


@pytest.mark.parametrize("make", [to_fp16, to_rounded])
def test_what_is_typed_already_is_refused(make: Callable[..., Any]) -> None:
    typed, _ = make(small_model())
    with pytest.raises(ModelError, match="already"):
        to_fp16(typed)


def test_a_foreign_graph_is_refused() -> None:
    model = small_model()
    for node in model.graph.node:
        node.name = node.op_type
    with pytest.raises(ModelError, match=r"no node of the module 'decoder'.*to_onnx"):
        to_fp16(model)


# --- NMS -------------------------------------------------------------------------------------------------


def test_the_nms_node_is_what_the_parser_expects(tiny_onnx: Path) -> None:
    source = onnx_file.load(tiny_onnx)
    spec = onnx_file.read_spec(source)
    model = graph.add_nms(source)
    node = next(node for node in model.graph.node if node.op_type == "RotatedNMS")
    values = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    assert values.pop("plugin_version") == b"1"
    assert values.pop("plugin_namespace") == b""
    assert {name: type(value) for name, value in values.items()} == {
        name: float if kind == "float32" else int for name, kind in rgfl.plugins.attributes().items()
    }
    assert values == {name: pytest.approx(getattr(spec, name)) for name in values}
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 18, "trt.plugins": 1}
    outputs = {
        value.name: (
            value.type.tensor_type.elem_type,
            [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim],
        )
        for value in model.graph.output
    }
    rows, int32, single = spec.max_detections, onnx.TensorProto.INT32, onnx.TensorProto.FLOAT
    assert outputs == {
        "num_detections": (int32, ["batch", 1]),
        "boxes": (single, ["batch", rows, 5]),
        "scores": (single, ["batch", rows]),
        "labels": (int32, ["batch", rows]),
    }
    assert graph.has_nms(model)
    with pytest.raises(ModelError, match="before NMS"):
        graph.add_nms(model)


def test_cutting_the_nms_node_gives_the_graph_back(tiny_onnx: Path) -> None:
    source = onnx_file.load(tiny_onnx)
    back = graph.cut_nms(graph.add_nms(source))
    assert {node.name for node in back.graph.node} == {node.name for node in source.graph.node}
    assert [value.SerializeToString() for value in back.graph.output] == [
        value.SerializeToString() for value in source.graph.output
    ]
    assert {entry.domain for entry in back.opset_import} == {""}
    tiles = sample_tiles(onnx_file.read_spec(source), 1)
    for one, two in zip(run(source, tiles), run(back, tiles), strict=True):
        np.testing.assert_array_equal(one, two)
    with pytest.raises(ModelError, match="found 0"):
        graph.cut_nms(source)


def test_fp16_and_nms_go_together_in_any_order(tiny_onnx: Path) -> None:
    source = onnx_file.load(tiny_onnx)
    one = graph.add_nms(to_fp16(source)[0])
    two = to_fp16(graph.add_nms(source))[0]
    for model in (one, two):
        types = types_of(model)
        assert types["boxes_before_nms"] == types["scores_before_nms"] == onnx.TensorProto.FLOAT
    assert {node.name for node in one.graph.node} == {node.name for node in two.graph.node}


PARSE = """
import ctypes, sys
import tensorrt_rtx as trt
class Log(trt.ILogger):
    def log(self, severity, message): print(message, flush=True)
    def __init__(self): super().__init__()
log = Log()
ctypes.CDLL(sys.argv[2])
builder = trt.Builder(log)
builder.get_plugin_registry().load_library(sys.argv[2])
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
trt.OnnxParser(network, log).parse(open(sys.argv[1], "rb").read())
"""


def test_nvidias_parser_makes_our_plugin_of_the_node(tiny_onnx: Path, tmp_path: Path) -> None:
    """TensorRT for RTX then ends the process, as it has no plugin layers: hence a process of its own."""
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX: pip install 'rgfl[rtx]'")
    try:
        library = rgfl.plugins.library()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    onnx_file.save(graph.add_nms(to_fp16(onnx_file.load(tiny_onnx))[0]), tmp_path / "nms.onnx")
    command = [sys.executable, "-c", PARSE, str(tmp_path / "nms.onnx"), str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Successfully created plugin: RotatedNMS" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]


# --- what a user may get wrong ---------------------------------------------------------------------------


def test_weights_in_another_file_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """It was a traceback of onnx's checker."""
    path, out = tmp_path / "outside.onnx", tmp_path / "out.onnx"
    onnx.save(small_model(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert onnx_file.load(path).graph.initializer[0].raw_data
    whole = (tmp_path / "weights.bin").read_bytes()
    for data, reason in (
        (None, f"{tmp_path / 'weights.bin'}, which is missing"),
        (whole[:8], "cannot be read"),
    ):
        (tmp_path / "weights.bin").unlink()
        if data is not None:
            (tmp_path / "weights.bin").write_bytes(data)
        assert graph.main([str(path), "--fp16", "--out", str(out)]) == 2
        message = capsys.readouterr().err
        assert message.startswith(f"graph: error: {path}: its weights ")
        assert reason in message
        assert message.count("\n") == 1
        onnx_file.read_spec(onnx_file.load(path, weights=False))
        (tmp_path / "weights.bin").touch()


def test_the_place_of_the_file_is_looked_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "model.onnx"
    onnx_file.save(small_model(), path)
    monkeypatch.setattr(graph, "load", lambda *_: pytest.fail("read the model first"))
    assert graph.main([str(path), "--fp16", "--out", str(path / "out.onnx")]) == 2
    assert f"--out {path}: {path} is a file" in capsys.readouterr().err


def test_the_model_itself_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """`--out` that was the model took its place, and the FP32 file was gone."""
    path, link = tmp_path / "model.onnx", tmp_path / "link.onnx"
    onnx_file.save(small_model(), path)
    before = path.read_bytes()
    link.symlink_to(path)
    (tmp_path / "folder").mkdir()
    for model, out in (
        (path, path),
        (path, tmp_path / "folder" / ".." / "model.onnx"),
        (path, link),
        (link, path),
    ):
        assert graph.main([str(model), "--fp16", "--out", str(out)]) == 2
        message = capsys.readouterr().err
        assert f"graph: error: --out {out}: the same file as {model}" in message
        assert message.count("\n") == 1
    assert path.read_bytes() == before
    assert link.is_symlink()


def test_the_weights_beside_a_model_are_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path, weights = tmp_path / "model.onnx", tmp_path / "weights.onnx"
    onnx.save(small_model(), path, save_as_external_data=True, location=weights.name, size_threshold=0)
    before = weights.read_bytes()
    assert graph.main([str(path), "--fp16", "--out", str(weights)]) == 2
    assert f"--out {weights}: the same file as {weights}" in capsys.readouterr().err
    assert weights.read_bytes() == before
    assert graph.main([str(path), "--fp16", "--out", str(tmp_path / "half.onnx")]) == 0
    assert weights.read_bytes() == before


def test_bad_input_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = small_model()
    good, bare = tmp_path / "good.onnx", tmp_path / "bare.onnx"
    onnx_file.save(model, good)
    del model.metadata_props[:]
    onnx_file.save(model, bare)
    (tmp_path / "noise.onnx").write_bytes(b"no protobuf at all")
    (tmp_path / "cut.onnx").write_bytes(good.read_bytes()[:-300])
    (tmp_path / "empty.onnx").touch()
    before = sorted(tmp_path.iterdir())
    out = str(tmp_path / "out.onnx")
    for name, reason in {
        "noise.onnx": "no ONNX model",
        "cut.onnx": "no ONNX model",
        "empty.onnx": "no ONNX model",
        "missing.onnx": "no such file",
        "bare.onnx": "no rgfl spec",
    }.items():
        assert graph.main([str(tmp_path / name), "--fp16", "--out", out]) == 2
        message = capsys.readouterr().err
        assert message.startswith("graph: error: ")
        assert name in message
        assert reason in message
        assert message.count("\n") == 1
    assert graph.main([str(good), "--out", out]) == 2
    assert "--fp16" in capsys.readouterr().err
    assert graph.main([str(good), "--nms", "--keep-fp32", "nick*", "--out", out]) == 2
    assert "--keep-fp32 goes with --fp16 or --rounding" in capsys.readouterr().err
    assert graph.main([str(good), "--fp16", "--out", str(tmp_path)]) == 2
    assert graph.main([str(good), "--nms", "--out", out]) == 2
    assert "before NMS" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(SpecError):
        onnx_file.read_spec(onnx_file.load(bare))


def test_constants_below_fp16_stay_fp32_too() -> None:
    _, report = to_fp16(small_model(second=np.full((4, 8, 1, 1), -1e6, np.float32)))
    assert list(report.refused) == ["neck/Conv"]


@pytest.mark.parametrize("read", ["by a second node", "as an output", "by nothing else"])
def test_batch_norm_folds_only_where_it_alone_reads_the_convolution(read: str) -> None:
    random = np.random.default_rng(0)
    x, y, z, other = (gs.Variable(name, np.float32, (1, 4, 8, 8)) for name in ("x", "y", "z", "other"))
    weight, bias, *norm = (
        gs.Constant(f"constant_{index}", random.uniform(0.5, 2, shape).astype(np.float32))
        for index, shape in enumerate(((4, 4, 1, 1), *[(4,)] * 5))
    )
    nodes = [
        gs.Node("Conv", "conv", {}, [x, weight, bias], [y]),
        gs.Node("BatchNormalization", "norm", {}, [y, *norm], [z]),
    ]
    outputs = [z]
    if read == "by a second node":
        nodes.append(gs.Node("Relu", "relu", {}, [y], [other]))
        outputs.append(other)
    elif read == "as an output":
        outputs.append(y)
    surgeon = gs.Graph(nodes, [x], outputs, opset=18)

    def results() -> list[np.ndarray]:
        model = gs.export_onnx(surgeon)
        model.ir_version = 10
        return ort.InferenceSession(model.SerializeToString()).run(
            None, {"x": np.ones((1, 4, 8, 8), np.float32)}
        )

    before = results()
    assert graph.fold_batch_norm(surgeon) == (read == "by nothing else")
    for one, two in zip(results(), before, strict=True):
        np.testing.assert_allclose(one, two, rtol=2e-5)


def test_a_new_spec_keeps_what_others_wrote_into_the_metadata() -> None:
    model = small_model()
    model.metadata_props.add(key="author", value="me")
    onnx_file.write_spec(model, SPEC, precision="fp16")
    kept = {prop.key: prop.value for prop in model.metadata_props}
    assert (kept["author"], kept["rgfl_precision"], len(kept)) == ("me", "fp16", len(model.metadata_props))
