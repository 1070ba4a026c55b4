"""Which runner takes which file, and what a runner promises."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rgfl.errors import ModelError
from rgfl.trt_runtime import runners
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


def test_a_list_of_tiles_is_as_good_as_an_array(tiny_checkpoint: Path, tiny_onnx: Path) -> None:
    scene = np.random.default_rng(0).integers(0, 256, (200, 150, 3), np.uint8)
    views = [scene[y : y + 128, 10:138] for y in (0, 40)]
    for path in (tiny_checkpoint, tiny_onnx):
        with load_runner(path, device="cpu") as runner:
            for one, two in zip(runner(views), runner(np.stack(views)), strict=True):
                assert np.array_equal(one.boxes, two.boxes)
                assert np.array_equal(one.scores, two.scores)


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
            [],
            [np.zeros((128, 128, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)],
            [np.zeros((128, 128, 3), np.float32)],
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
    with pytest.raises(ModelError, match=r"--device cuda: .* does not load here: CUDA, cuDNN"):
        load_runner(tiny_onnx, device="cuda")
    with load_runner(tiny_onnx, device="auto") as runner:
        assert runner.device == "cpu"
        assert "on the CPU, as ONNX Runtime's CUDA provider does not load" in runner.reason
        assert runner.describe()["chosen"] == runner.reason
    with load_runner(tiny_onnx, device="cpu") as runner:
        assert runner.reason == "onnx, by its suffix .onnx"


def test_a_graph_with_other_outputs_is_refused(tiny_onnx: Path, tmp_path: Path) -> None:
    from rgfl.export import onnx_file

    model = onnx_file.load(tiny_onnx)
    del model.graph.output[1]
    onnx_file.save(model, tmp_path / "half.onnx")
    with pytest.raises(ModelError, match=r"expected input 'images' and outputs"):
        load_runner(tmp_path / "half.onnx")


def test_a_spec_of_other_classes_than_the_graphs_is_refused(tiny_onnx: Path, tmp_path: Path) -> None:
    from rgfl.export import onnx_file

    model = onnx_file.load(tiny_onnx)
    for entry in model.metadata_props:
        entry.value = entry.value.replace('"plane","ship","harbor"', '"plane","ship"')
    onnx_file.save(model, tmp_path / "two.onnx")
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


TWO_TILES = np.zeros((2, 128, 128, 3), np.uint8)


def test_what_onnx_runtime_cannot_run_is_told(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail

    def run(*_: Any) -> None:
        raise Fail("Failed to allocate memory\nfor requested buffer of size 40000000000")

    told = r"tiny\.onnx: .* cannot run a batch of 2 \(Failed to .* size 40000000000\); give a smaller --batch"
    with load_runner(tiny_onnx) as runner:
        monkeypatch.setattr(runner, "_session", SimpleNamespace(run=run))
        with pytest.raises(ModelError, match=told):
            runner(TWO_TILES)


@pytest.mark.parametrize(
    ("boxes", "scores"),
    [
        ((2, 7, 4), (2, 7, 3)),
        ((3, 7, 5), (3, 7, 3)),
        ((2, 7, 5), (2, 8, 3)),
        ((2, 7, 5), (2, 7, 6)),
        ((7, 5), (7, 3)),
        ((2, 7, 5), (2, 3)),
        ((), ()),
    ],
)
def test_outputs_of_another_shape_are_refused(
    tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch, boxes: tuple[int, ...], scores: tuple[int, ...]
) -> None:
    def run(*_: Any) -> list[np.ndarray]:
        return [np.ones(boxes, np.float32), np.ones(scores, np.float32)]

    told = r"tiny\.onnx: expected boxes \(2, P, 5\) and scores \(2, P, 3\), got"
    with load_runner(tiny_onnx) as runner:
        monkeypatch.setattr(runner, "_session", SimpleNamespace(run=run))
        with pytest.raises(ModelError, match=told):
            runner(TWO_TILES)


def test_int8_with_fp16_scales_is_computed_as_written(tiny_onnx: Path, tmp_path: Path) -> None:
    """ONNX Runtime's integer kernels get such scales wrong; engines are built from these very files."""
    from rgfl.export import calibration, fp16, onnx_file, placement, qdq

    model = onnx_file.load(tiny_onnx)
    spec = onnx_file.read_spec(model)
    tiles = patterned_tiles(spec.image_size, 2)
    place = placement.place(model)
    found, _ = calibration.collect(model, place.tensors, iter([tiles[:1], tiles[1:]]), spec)
    limits = {name: one.threshold("max") for name, one in found.items()}
    int8 = qdq.insert(model, place, limits)
    onnx_file.write_spec(int8, spec, precision="int8")
    onnx_file.save(int8, tmp_path / "int8.onnx")
    onnx_file.save(fp16.to_fp16(int8)[0], tmp_path / "mixed.onnx")
    onnx_file.save(fp16.to_rounded(int8)[0], tmp_path / "rounded.onnx")
    with load_runner(tmp_path / "mixed.onnx") as mixed, load_runner(tmp_path / "rounded.onnx") as rounded:
        assert mixed.precision == "int8-fp16"
        options = [one._session.get_session_options() for one in (mixed, rounded)]  # type: ignore[attr-defined]
        assert options[0].get_session_config_entry("session.disable_quant_qdq") == "1"
        best = [runner.infer(runner.prepare(tiles))[1].max(-1) for runner in (mixed, rounded)]
    # In order of size, as TopK exchanges points whose scores are nearly equal. Where a rounding decides
    # between two values of int8, a few scores move by more.
    difference = np.abs(np.sort(best[0]) - np.sort(best[1]))
    assert difference.mean() < 0.02
    assert np.percentile(difference, 95) < 0.05


# ------------------------------------------------------------------------------------------------ scenes


def test_detections_of_a_scene_from_a_score_on(tiny_onnx: Path) -> None:
    scene = patterned_tiles((300, 200), 1)[0]
    with load_runner(tiny_onnx) as runner:
        found = runner.detect(scene)
        middle = float(np.median(found.scores))
        likely = runner.detect(scene, score=middle)
        assert likely.scores.tolist() == [score for score in found.scores.tolist() if score >= middle]
        assert 0 < len(likely) < len(found)
        assert len(runner.detect(scene, score=0)) == len(found)
        of_first = runner.detect(scene, score=[0, 1, 1])  # a score for each class
        assert of_first.scores.tolist() == found.scores[found.labels == 0].tolist()
        assert 0 < len(of_first) < len(found)
        for score in (30, float("nan"), [0.5, 0.5]):
            with pytest.raises(ValueError, match="score: expected a number from 0 to 1, or 3 of them"):
                runner.detect(scene, score=score)
        runner.spec = dataclasses.replace(runner.spec, score_threshold=0.2)
        assert runner.detect(scene).scores.min() < 0.3  # the threshold of the file


def test_detections_of_a_scene_across_classes(tiny_onnx: Path) -> None:
    scene = patterned_tiles((300, 200), 1)[0]
    with load_runner(tiny_onnx) as runner:
        found = runner.detect(scene)
        alone = runner.detect(scene, across=0.2)
        assert 0 < len(alone) < len(found)
        assert alone.boxes.tolist() == found.across(0.2).boxes.tolist()
        # what is below its class's score takes nothing away
        least = [1.0 if label == alone.labels[0] else 0.0 for label in range(3)]
        expected = found.at_least(least).across(0.2).boxes.tolist()
        assert runner.detect(scene, score=least, across=0.2).boxes.tolist() == expected
        for iou in (50, float("nan")):
            with pytest.raises(ValueError, match="across: expected an IoU from 0 to 1, got"):
                runner.detect(scene, across=iou)


SCENE = np.zeros((40, 50, 3), np.uint8)


@pytest.mark.parametrize(
    ("scene", "told"),
    [
        ("a.png", r"a path; read the file: rgfl\.dota\.images\.read_image\('a\.png'\)"),
        (Path("a.png"), r"a path; read the file: rgfl\.dota\.images\.read_image\('a\.png'\)"),
        (None, "None; OpenCV gives None for what it cannot read"),
        (SCENE.tolist(), r"builtins\.list; take np\.asarray\(scene\)"),
        (Image.fromarray(SCENE), r"PIL\.Image\.Image; take np\.asarray\(scene\.convert\('RGB'\)\)"),
        (SCENE[:, :, 0], r"uint8 \(40, 50\); repeat the grey: np\.stack\(\[scene\] \* 3, axis=2\)"),
        (SCENE[:, :, :1], r"uint8 \(40, 50, 1\); repeat the grey: np\.repeat\(scene, 3, axis=2\)"),
        (np.zeros((40, 50, 4), np.uint8), r"uint8 \(40, 50, 4\); drop the fourth .*: scene\[:, :, :3\]"),
        (np.zeros((40, 50, 8), np.uint8), r"uint8 \(40, 50, 8\); choose its red, green and blue channels"),
        (SCENE.transpose(2, 0, 1), r"uint8 \(3, 40, 50\); put the channels last: scene\.transpose\(1, 2"),
        (SCENE[None], r"uint8 \(1, 40, 50, 3\); pass one image at a time"),
        (SCENE[:0], r"uint8 \(0, 50, 3\); there are no pixels in it"),
        (SCENE / 255, r"float64 \(40, 50, 3\); if its values are 0…1: \(scene \* 255\)\.round\(\)\.astype"),
        (SCENE.astype(np.uint16), r"uint16 \(40, 50, 3\); take \(scene >> 8\)\.astype\(np\.uint8\), as read"),
        (SCENE.astype(np.int16), r"int16 \(40, 50, 3\); bring its values to 0…255"),
    ],
)  # fmt: skip
def test_a_scene_that_is_none_is_told_with_the_remedy(tiny_onnx: Path, scene: Any, told: str) -> None:
    with load_runner(tiny_onnx) as runner, pytest.raises(ValueError, match=rf"^scene: .*, got {told}"):
        runner.detect(scene)


def test_an_open_raster_is_told_what_reads_it(tiny_onnx: Path, tmp_path: Path) -> None:
    """It was taken for a grey image, by its shape."""
    import rasterio

    Image.fromarray(SCENE).save(tmp_path / "a.tif")
    told = r"got an open raster; read it with rgfl\.dota\.images\.read_image\(path\)"
    with (
        pytest.warns(rasterio.errors.NotGeoreferencedWarning),
        rasterio.open(tmp_path / "a.tif") as scene,
        load_runner(tiny_onnx) as runner,
        pytest.raises(ValueError, match=told),
    ):
        runner.detect(scene)


@pytest.mark.parametrize("which", ["tiny_checkpoint", "tiny_onnx"])
def test_a_closed_runner_says_so(which: str, request: pytest.FixtureRequest) -> None:
    with load_runner(request.getfixturevalue(which), device="cpu") as runner:
        runner.detect(SCENE)
    with pytest.raises(ValueError, match=r"tiny\.\w+: this runner is closed; use it inside its with block"):
        runner.detect(SCENE)
    with pytest.raises(ValueError, match="this runner is closed"):
        runner.infer(np.zeros((1, 3, 128, 128), np.float32))
    runner.close()  # twice is no error


def test_a_runner_tells_of_the_file_that_it_was_loaded_from(tiny_onnx: Path, tmp_path: Path) -> None:
    (path := tmp_path / "model.onnx").write_bytes(tiny_onnx.read_bytes())
    with load_runner(path) as runner:
        before = runner.describe()
        path.unlink()  # as a deployment replaces it
        assert runner.describe() == before


@pytest.mark.parametrize(("which", "survives"), [("tiny_checkpoint", False), ("tiny_onnx", True)])
def test_a_fork_is_refused_where_it_would_hang(
    which: str, survives: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load_runner(request.getfixturevalue(which), device="cpu") as runner:
        found = runner.detect(SCENE)
        monkeypatch.setattr(runners.os, "getpid", lambda: -1)
        if survives:
            assert len(runner.detect(SCENE)) == len(found)
            runner.close()
            assert runner._session is not None  # type: ignore[attr-defined]  # its end would wait for threads
        else:
            with pytest.raises(ValueError, match="forked; load runners after that alone"):
                runner.detect(SCENE)


@pytest.mark.parametrize("wrong", [{"device": "cuda:1"}, {"device": "CPU"}, {"threads": -1}])
def test_devices_are_those_that_there_are(wrong: dict[str, Any], tiny_onnx: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a device of .*'auto', 'cpu', 'cuda'.* and threads ≥ 0"):
        load_runner(tiny_onnx, **wrong)


def test_where_best_pt_is_not_yet_there_last_pt_is_named(tmp_path: Path) -> None:
    """The second command of the README, after a training that was stopped before its first evaluation."""
    with pytest.raises(ModelError, match=r"best\.pt: no such file$"):
        load_runner(tmp_path / "best.pt")
    (tmp_path / "last.pt").touch()
    with pytest.raises(ModelError, match=r"best\.pt: no such file; .*--eval-every\); there is .*last\.pt"):
        load_runner(tmp_path / "best.pt")
