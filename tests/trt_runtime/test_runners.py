"""Which runner takes which file, and what a runner promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rgfl.trt_runtime import runners
from rgfl.trt_runtime.errors import ModelError
from rgfl.trt_runtime.runners import load_runner, recognise
from rgfl.trt_runtime.sample_tiles import patterned_tiles, sample_tiles


def test_the_suffix_decides_and_content_must_agree(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert recognise(tiny_checkpoint) == ("torch", "torch, by its suffix .pt")
    bare = tmp_path / "weights"
    bare.write_bytes(tiny_checkpoint.read_bytes())
    assert recognise(bare) == ("torch", "torch, by its content")
    wrong = tmp_path / "model.onnx"
    wrong.write_bytes(tiny_checkpoint.read_bytes())
    with pytest.raises(ModelError, match=r"suffix says onnx, the content torch"):
        recognise(wrong)
    (tmp_path / "x.plan").write_bytes(b"ftrt")
    assert recognise(tmp_path / "x.plan")[0] == "engine"


def test_backends_find_the_same(tiny_checkpoint: Path, tiny_onnx: Path) -> None:
    with load_runner(tiny_checkpoint, device="cpu") as first, load_runner(tiny_onnx, device="cpu") as second:
        assert first.spec == second.spec
        tiles = sample_tiles(first.spec, 2)
        for one, two in zip(first(tiles), second(tiles), strict=True):
            assert abs(len(one) - len(two)) <= 1
            top = slice(0, min(len(one), len(two), 5))
            np.testing.assert_allclose(one.scores[top], two.scores[top], atol=1e-5)
        facts = second.describe()
        assert facts["file"] == "tiny.onnx"
        assert facts["bytes"] == tiny_onnx.stat().st_size
        assert facts["backend"] == "ONNX Runtime"
        assert facts["spec_digest"] == first.spec.digest


def test_float_input_is_normalised_outside(tiny_checkpoint: Path, tiny_onnx: Path) -> None:
    """`prepare` of a float32 graph computes what the uint8 graph has inside."""
    from rgfl.trt_runtime.runners import OnnxRunner

    with load_runner(tiny_checkpoint, device="cpu") as torch_runner, load_runner(tiny_onnx) as onnx_runner:
        assert isinstance(onnx_runner, OnnxRunner)
        tiles = sample_tiles(torch_runner.spec, 1)
        onnx_runner._takes_uint8 = False
        np.testing.assert_allclose(onnx_runner.prepare(tiles), torch_runner.prepare(tiles).numpy(), atol=1e-6)


def test_tiles_of_another_shape_are_refused(tiny_onnx: Path) -> None:
    with load_runner(tiny_onnx) as runner:
        for tiles in (
            np.zeros((1, 64, 64, 3), np.uint8),
            np.zeros((1, 128, 128, 3), np.float32),
            np.zeros((0, 128, 128, 3), np.uint8),
            np.zeros((128, 128, 3), np.uint8),
        ):
            with pytest.raises(ValueError, match=r"takes uint8 tiles \(B, 128, 128, 3\)"):
                runner(tiles)


def test_cuda_is_refused_where_there_is_none(tiny_onnx: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has a CUDA provider")
    with pytest.raises(ModelError, match=r"--device cpu"):
        load_runner(tiny_onnx, device="cuda")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_cuda_provider_that_does_not_load_is_told(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As onnxruntime-gpu without cuDNN: it lists the provider, runs on the CPU, and only logs it."""
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has a CUDA provider")
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    with pytest.raises(ModelError, match=r"--device cuda: .* does not load here, for want of CUDA, cuDNN"):
        load_runner(tiny_onnx, device="cuda")
    with load_runner(tiny_onnx, device="auto") as runner:
        assert runner.device == "cpu"
        assert "on the CPU, as ONNX Runtime's CUDA provider does not load" in runner.reason
        assert runner.describe()["chosen"] == runner.reason
    with load_runner(tiny_onnx, device="cpu") as runner:
        assert runner.reason == "onnx, by its suffix .onnx"


def test_a_graph_with_other_outputs_is_refused(tiny_onnx: Path, tmp_path: Path) -> None:
    from rgfl.export import graph

    model = graph.load(tiny_onnx)
    del model.graph.output[1]
    graph.save(model, tmp_path / "half.onnx")
    with pytest.raises(ModelError, match=r"expected input 'images' and outputs"):
        load_runner(tmp_path / "half.onnx")


def test_a_spec_of_other_classes_than_the_graphs_is_refused(tiny_onnx: Path, tmp_path: Path) -> None:
    from rgfl.export import graph

    model = graph.load(tiny_onnx)
    for entry in model.metadata_props:
        entry.value = entry.value.replace('"plane","ship","harbor"', '"plane","ship"')
    graph.save(model, tmp_path / "two.onnx")
    with pytest.raises(ModelError, match=r"the graph scores 3 classes, its spec names 2"):
        load_runner(tmp_path / "two.onnx")


@pytest.mark.parametrize("what", ["scores", "boxes"])
def test_nan_is_an_error_and_not_an_empty_picture(what: str, tiny_onnx: Path) -> None:
    with load_runner(tiny_onnx) as runner:
        boxes, scores = np.ones((1, 4, 5), np.float32), np.full((1, 4, 3), 0.1, np.float32)
        assert len(runner.finish((boxes, scores))[0]) == 0
        boxes[0, 0] = np.nan  # of a point that no detection comes from: no harm
        assert len(runner.finish((boxes, scores))[0]) == 0
        scores[0, 0 if what == "boxes" else 1] = 0.9 if what == "boxes" else np.nan
        with pytest.raises(ModelError, match=r"tiny.onnx: the model gives NaN"):
            runner.finish((boxes, scores))


@pytest.mark.parametrize("vnni", [True, False])
def test_precise_integer_kernels_only_where_the_others_saturate(
    tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch, vnni: bool
) -> None:
    monkeypatch.setattr(runners, "has_vnni", lambda: vnni)
    with load_runner(tiny_onnx, device="cpu") as runner:
        options = runner._session.get_session_options()  # type: ignore[attr-defined]
        if vnni:
            with pytest.raises(RuntimeError, match="x64quantprecision"):
                options.get_session_config_entry("session.x64quantprecision")
        else:
            assert options.get_session_config_entry("session.x64quantprecision") == "1"


def test_a_graph_of_a_fixed_batch_is_refused(tiny_onnx: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(tiny_onnx)
    axis = model.graph.input[0].type.tensor_type.shape.dim[0]
    axis.Clear()
    axis.dim_value = 1
    onnx.save(model, tmp_path / "fixed.onnx")
    with pytest.raises(ModelError, match="its batch is fixed at 1"):
        load_runner(tmp_path / "fixed.onnx")


def test_int8_with_fp16_scales_is_computed_as_written(tiny_onnx: Path, tmp_path: Path) -> None:
    """ONNX Runtime's integer kernels get such scales wrong; engines are built from these very files."""
    from rgfl.export import calibration, graph, placement, qdq

    model = graph.load(tiny_onnx)
    spec = graph.read_spec(model)
    tiles = patterned_tiles(spec.image_size, 2)
    place = placement.place(model)
    found, _ = calibration.collect(model, place.tensors, iter([tiles[:1], tiles[1:]]), spec, progress=False)
    limits = {name: one.threshold("max") for name, one in found.items()}
    int8 = qdq.insert(model, place, limits)
    graph.write_spec(int8, spec, precision="int8")
    graph.save(int8, tmp_path / "int8.onnx")
    graph.save(graph.to_fp16(int8)[0], tmp_path / "mixed.onnx")
    graph.save(graph.to_rounded(int8)[0], tmp_path / "rounded.onnx")
    with load_runner(tmp_path / "mixed.onnx") as mixed, load_runner(tmp_path / "rounded.onnx") as rounded:
        assert mixed.precision == "int8-fp16"
        options = [one._session.get_session_options() for one in (mixed, rounded)]  # type: ignore[attr-defined]
        assert options[0].get_session_config_entry("session.disable_quant_qdq") == "1"
        best = [runner.infer(runner.prepare(tiles))[1].max(-1) for runner in (mixed, rounded)]
    # In order of size, as TopK exchanges points whose scores are nearly equal.
    np.testing.assert_allclose(np.sort(best[0]), np.sort(best[1]), atol=0.05)
