"""Checkpoint to ONNX: the numbers, the border, the spec, and what happens when something is wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rgfl.spec import METADATA_KEY, DetectorSpec, SpecError

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'rgfl[export]'")
pytest.importorskip("onnxscript", reason="needs the exporter: pip install 'rgfl[export]'")

from onnx import numpy_helper  # noqa: E402

from rgfl.checkpoint import load_detector  # noqa: E402
from rgfl.export import graph, onnx_file, to_onnx, verify  # noqa: E402
from rgfl.export.fp16 import to_rounded  # noqa: E402
from rgfl.trt_runtime.runners import load_runner  # noqa: E402
from rgfl.trt_runtime.sample_tiles import sample_tiles  # noqa: E402

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_onnx_gives_what_pytorch_gives(batch: int, tiny_checkpoint: Path, tiny_onnx: Path) -> None:
    with load_runner(tiny_checkpoint, device="cpu") as first, load_runner(tiny_onnx, device="cpu") as second:
        tiles = sample_tiles(first.spec, batch)
        one, two = first.raw(tiles), second.raw(tiles)
        assert one[0].shape == two[0].shape == (batch, 100 + 64 + 16 + 4 + 1, 5)
        found = verify.compare(one, two, verify.level_sizes(first.spec))
    assert found.worst_corner <= 1e-2
    assert found.worst_score <= 1e-5


def test_a_tile_gives_the_same_alone_and_in_a_batch(tiny_onnx: Path) -> None:
    with load_runner(tiny_onnx, device="cpu") as runner:
        tiles = sample_tiles(runner.spec, 3)
        together = runner.raw(tiles)
        alone = [runner.raw(tiles[index : index + 1]) for index in range(3)]
        levels = verify.level_sizes(runner.spec)
    for index in range(3):
        found = verify.compare(alone[index], tuple(part[index : index + 1] for part in together), levels)
        assert found.worst_corner <= 1e-3
        assert found.worst_score <= 1e-6


@pytest.mark.parametrize(
    ("head", "float_input"),
    [
        ({"mode": "integral", "head_norm": "batch"}, False),
        ({"head_norm": "batch"}, True),
        ({"finest_stride": 4, "quality": False}, False),
    ],
)
def test_every_head_exports(
    head: dict, float_input: bool, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    checkpoint = make_checkpoint(tmp_path / "model.pt", **head)
    flags = ["--float-input"] if float_input else []
    out = tmp_path / "model.onnx"
    assert to_onnx.main([str(checkpoint), "--out", str(out), *flags]) == 0  # verified inside
    model = onnx_file.load(out)
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    tensor = model.graph.input[0].type.tensor_type
    sizes = [dim.dim_value or dim.dim_param for dim in tensor.shape.dim]
    if float_input:
        assert tensor.elem_type == onnx.TensorProto.FLOAT
        assert sizes == ["batch", 3, 128, 128]
    else:
        assert tensor.elem_type == onnx.TensorProto.UINT8
        assert sizes == ["batch", 128, 128, 3]
        assert [node.op_type for node in model.graph.node if "images" in node.input] == ["Cast"]


def test_the_border_is_the_contract(tiny_onnx: Path) -> None:
    model = onnx_file.load(tiny_onnx)
    assert [node.name for node in model.graph.input] == ["images"]
    shapes = {
        node.name: [dim.dim_value or dim.dim_param for dim in node.type.tensor_type.shape.dim]
        for node in model.graph.output
    }
    assert shapes == {"boxes": ["batch", 185, 5], "scores": ["batch", 185, 3]}
    assert {node.type.tensor_type.elem_type for node in model.graph.output} == {onnx.TensorProto.FLOAT}
    operators = [node.op_type for node in model.graph.node]
    assert operators.index("Cast") < operators.index("Transpose")  # the parser refuses the other order
    assert "Constant" not in operators  # folded
    assert {entry.domain for entry in model.opset_import} == {""}


def test_the_file_holds_no_local_paths(tiny_onnx: Path) -> None:
    data = tiny_onnx.read_bytes()
    for trace in (b"stack_trace", b"site-packages", str(ROOT).encode()):
        assert trace not in data


def test_layers_are_named_after_their_modules(tiny_onnx: Path) -> None:
    names = [node.name for node in onnx_file.load(tiny_onnx).graph.node]
    assert len(set(names)) == len(names)
    for module in ("head.cls/Conv", "head.reg/Conv"):
        assert sum(name == module or name.startswith(f"{module}.") for name in names) == 5  # a level each


def test_the_spec_travels(tiny_checkpoint: Path, tiny_onnx: Path) -> None:
    with load_runner(tiny_checkpoint, device="cpu") as runner:
        spec = runner.spec
    model = onnx_file.load(tiny_onnx)
    assert onnx_file.read_spec(model) == spec
    assert {prop.key for prop in model.metadata_props} >= {METADATA_KEY, "rgfl_precision", "rgfl_version"}
    other = DetectorSpec(classes=("a", "ü"), image_size=(256, 256))
    onnx_file.write_spec(model, other)
    assert onnx_file.read_spec(model) == other
    assert sum(prop.key == METADATA_KEY for prop in model.metadata_props) == 1


def test_a_model_without_a_spec_is_refused() -> None:
    empty = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []))
    with pytest.raises(SpecError, match=r"export the checkpoint with"):
        onnx_file.read_spec(empty)


def test_batch_norm_folds_into_the_convolution_before_it() -> None:
    import onnx_graphsurgeon as gs
    import onnxruntime

    random = np.random.default_rng(0)
    weight = random.normal(size=(4, 3, 3, 3)).astype(np.float32)
    norm = [random.uniform(0.5, 2, 4).astype(np.float32) for _ in range(4)]
    x, y, z = (
        gs.Variable(name, np.float32, shape)
        for name, shape in (("x", (1, 3, 8, 8)), ("y", (1, 4, 6, 6)), ("z", (1, 4, 6, 6)))
    )
    nodes = [
        gs.Node("Conv", "conv", inputs=[x, gs.Constant("w", weight)], outputs=[y]),
        gs.Node(
            "BatchNormalization",
            "norm",
            {"epsilon": 1e-3},
            [y, *(gs.Constant(f"n{i}", values) for i, values in enumerate(norm))],
            [z],
        ),
    ]
    surgeon = gs.Graph(nodes, [x], [z], opset=18)

    def outputs() -> np.ndarray:
        model = gs.export_onnx(surgeon)
        model.ir_version = 10
        session = onnxruntime.InferenceSession(model.SerializeToString())
        return session.run(
            None, {"x": np.random.default_rng(1).normal(size=(1, 3, 8, 8)).astype(np.float32)}
        )[0]

    before = outputs()
    assert graph.fold_batch_norm(surgeon) == 1
    assert [node.op for node in surgeon.nodes] == ["Conv"]
    np.testing.assert_allclose(outputs(), before, rtol=2e-5, atol=2e-5)


def test_nvidias_parser_takes_the_graph(tiny_onnx: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX: pip install tensorrt-rtx-cu13")
    logger = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(logger).create_network(0)
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse(tiny_onnx.read_bytes())
    assert parsed, [parser.get_error(index).desc() for index in range(parser.num_errors)]
    images = network.get_input(0)
    assert (images.name, images.dtype, tuple(images.shape)) == ("images", trt.uint8, (-1, 128, 128, 3))
    outputs = {
        network.get_output(i).name: tuple(network.get_output(i).shape) for i in range(network.num_outputs)
    }
    assert outputs == {"boxes": (-1, 185, 5), "scores": (-1, 185, 3)}


# --- what a user may get wrong -----------------------------------------------------------------------------


def test_what_is_no_checkpoint_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "noise.pt").write_bytes(b"not a checkpoint at all")
    (tmp_path / "empty.pt").touch()
    for name in ("noise.pt", "empty.pt", "missing.pt"):
        assert to_onnx.main([str(tmp_path / name), "--out", str(tmp_path / "out.onnx")]) == 2
        message = capsys.readouterr().err
        assert message.startswith("to_onnx: error: ")
        assert name in message
        assert message.count("\n") == 1
    assert to_onnx.main([str(tmp_path / "noise.pt"), "--out", str(tmp_path / "out.engine")]) == 2
    assert "ends in .onnx" in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))


def test_images_are_looked_for_before_the_export(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(to_onnx, "export", lambda *_, **__: pytest.fail("exported first"))
    command = [str(tiny_checkpoint), "--out", str(tmp_path / "out.onnx"), "--images", str(tmp_path)]
    assert to_onnx.main(command) == 2
    assert "no image in this folder" in capsys.readouterr().err


def test_the_place_of_the_file_is_looked_at_before_the_export(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(to_onnx, "export", lambda *_, **__: pytest.fail("exported first"))
    out = tiny_checkpoint / "out.onnx"
    assert to_onnx.main([str(tiny_checkpoint), "--out", str(out)]) == 2
    assert f"--out {tiny_checkpoint}: {tiny_checkpoint} is a file" in capsys.readouterr().err


def test_a_graph_that_differs_is_not_written(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    broken = verify.Report()
    broken.batches[1] = verify.Differences(np.array([3.0]), np.array([0.0]), np.array([False]), np.ones(1))
    monkeypatch.setattr(verify, "compare_files", lambda *_, **__: broken)
    monkeypatch.setattr(to_onnx, "export", lambda *_, **__: onnx.ModelProto())
    assert to_onnx.main([str(tiny_checkpoint), "--out", str(tmp_path / "out.onnx")]) == 1
    assert "DIFFERENT" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", ["to_onnx", "verify"])
def test_help_is_quick_and_has_examples(script: str) -> None:
    code = (
        f"import sys; sys.argv = ['{script}', '--help']; sys.path.insert(0, {str(ROOT / 'export')!r})\n"
        f"from rgfl.export import {script}\n"
        f"try: {script}.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"python export/{script}.py" in done.stdout


def outputs_of(model: onnx.ModelProto, tiles: np.ndarray) -> list[np.ndarray]:
    import onnxruntime

    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"images": tiles})


def test_what_group_norm_reads_is_bounded_and_nothing_changes(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large filters in front of GroupNorm: float32 does not care, and FP16 as plainly exported overflows."""
    detector = load_detector(tiny_checkpoint)
    for tower in (detector.head.cls_tower, detector.head.reg_tower):
        tower.convs[0].weight.data *= 2.0**20
    scaled = to_onnx.export(detector)
    with monkeypatch.context() as patch:
        patch.setattr(graph, "scale_before_norms", lambda _: 0)
        plain = to_onnx.export(detector)

    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in scaled.graph.initializer}
    towers = [weight for name, weight in weights.items() if "tower.convs" in name]
    assert len(towers) == 2
    for weight in towers:
        assert 0.5 < np.abs(weight).sum((1, 2, 3)).max() <= 1

    tiles = sample_tiles(detector.spec, 2)
    expected = outputs_of(plain, tiles)
    for one, two in zip(outputs_of(scaled, tiles), expected, strict=True):
        np.testing.assert_array_equal(one, two)
    assert np.isnan(outputs_of(to_rounded(plain)[0], tiles)[1]).any()
    boxes, scores = outputs_of(to_rounded(scaled)[0], tiles)
    found = verify.compare(expected, (boxes, scores), verify.level_sizes(detector.spec))
    assert found.worst_score < 0.02


def test_a_convolution_that_others_read_too_keeps_its_weights() -> None:
    import onnx_graphsurgeon as gs

    weight = np.full((4, 3, 1, 1), 1e3, np.float32)
    names = ("x", "conv", "grouped", "normed", "wide")
    x, conv, grouped, normed, wide = (gs.Variable(name, np.float32) for name in names)
    ones, zeros = gs.Constant("ones", np.ones(2, np.float32)), gs.Constant("zeros", np.zeros(2, np.float32))
    nodes = [
        gs.Node("Conv", "conv", inputs=[x, gs.Constant("w", weight)], outputs=[conv]),
        gs.Node("Reshape", "group", inputs=[conv, gs.Constant("s", np.int64([1, 2, -1]))], outputs=[grouped]),
        gs.Node("InstanceNormalization", "norm", inputs=[grouped, ones, zeros], outputs=[normed]),
        gs.Node("Relu", "relu", inputs=[conv], outputs=[wide]),
    ]
    surgeon = gs.Graph(nodes, [x], [normed, wide], opset=18)
    assert graph.scale_before_norms(surgeon) == 0
    assert (surgeon.nodes[0].inputs[1].values == weight).all()
    surgeon.nodes.pop().inputs.clear()
    assert graph.scale_before_norms(surgeon) == 1
    assert surgeon.nodes[0].inputs[1].values.max() == np.float32(1e3 / 4096)
    assert surgeon.nodes[2].attrs["epsilon"] == 1e-5 / 4096**2
