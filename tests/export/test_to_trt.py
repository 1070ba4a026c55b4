"""Engines: built for real by TensorRT for RTX on the CPU; refusals; names of TensorRT 10 and 11."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'rgfl[export]'")
trt = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX: pip install 'rgfl[rtx]'")

import rgfl._core  # noqa: E402
import rgfl.plugins  # noqa: E402
from rgfl import atomic, draw  # noqa: E402
from rgfl.errors import InputError, ModelError  # noqa: E402
from rgfl.export import graph, onnx_file, quantize, to_trt  # noqa: E402
from rgfl.spec import MAX_JSON_BYTES  # noqa: E402
from rgfl.trt_runtime import machine, tensorrt_api  # noqa: E402
from rgfl.trt_runtime.machine import Gpu, file_facts  # noqa: E402
from rgfl.trt_runtime.sample_tiles import patterned_tiles  # noqa: E402
from rgfl.trt_runtime.tensorrt_api import Api, BuildOptions, open_api  # noqa: E402

ROOT = Path(__file__).parents[2]
RTX = open_api("rtx", None)
# The module of TensorRT for RTX has the classes of the standard one: enough to run the Python around them.
STANDARD = Api("tensorrt", trt, (10, 16, 1, 11), "stands in")
H200, A10 = Gpu("NVIDIA H200", (9, 0)), Gpu("NVIDIA A10", (8, 6))


@pytest.fixture
def model(tiny_onnx: Path, tmp_path: Path) -> Path:
    """A copy in a folder of its own."""
    return Path(shutil.copy(tiny_onnx, tmp_path / "model.onnx"))


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    for index, tile in enumerate(patterned_tiles((128, 128), 2)):
        draw.save(tile, folder / f"{index}.png")
    return folder


def error_of(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    """The one line of a refused command."""
    capsys.readouterr()
    assert to_trt.main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("to_trt: error: ")
    assert message.count("\n") == 1, message
    return message


# --- engines, for real -----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_engine_is_built_on_the_cpu(
    precision: str, model: Path, calibration: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = {"fp32": [], "fp16": ["--fp16"], "int8": ["--int8", "--calib", str(calibration)]}[precision]
    assert to_trt.main([str(model), "--backend", "rtx", "--max-batch", "4", *flags]) == 0
    engine = model.with_name("model.engine" if precision == "fp32" else f"model.{precision}.engine")
    printed = capsys.readouterr().out
    assert "NMS behind the engine" in printed
    assert str(engine) in printed

    spec = onnx_file.read_spec(onnx_file.load(model))
    assert spec.to_json().encode() in engine.read_bytes()
    assert str(tensorrt_api.read_plan(engine)) == str(RTX)
    record = tensorrt_api.read_record(engine)
    assert record["bytes"] == engine.stat().st_size > model.stat().st_size
    assert record["precision"] == ("int8-fp16" if precision == "int8" else precision)
    assert record["batch"] == [1, 1, 4]
    assert record["spec_digest"] == spec.digest
    assert record["command"].startswith(f"python export/to_trt.py {model} --out {engine}")

    kernels = record["layers"]["generated_kernels"]
    assert kernels > 0
    assert f"{kernels} kernels generated" in printed
    types = record["layers"]["types"]
    wide = "FP32" if precision == "fp32" else "FP16"
    assert set(types["CONVOLUTION"]) == {wide}
    assert set(types["NORMALIZATION"]) == {wide}
    assert types["SOFTMAX"] == {"FP32": 2}  # of decode, in every precision
    assert ("QUANTIZE" in types) == (precision == "int8")
    if precision == "int8":
        assert set(types["QUANTIZE"]) == {"INT8"}
        assert set(types["DEQUANTIZE"]) == {"FP16"}
    assert {path.name for path in model.parent.iterdir()} == {model.name, engine.name, f"{engine.name}.json"}


def test_the_uint8_input_of_an_int8_graph_feeds_its_cast_alone(model: Path, calibration: Path) -> None:
    typed = to_trt.typed_model(model, fp16=True, calibration=calibration)
    assert onnx_file.precision(typed) == "int8-fp16"
    assert [node.op_type for node in typed.graph.node if "images" in node.input] == ["Cast"]


def test_turing_gets_an_engine_of_its_own(model: Path) -> None:
    """It is not among the GPUs that an engine for RTX is for."""
    log = RTX.new_logger(False)
    builder = RTX.trt.Builder(log)
    chosen = []
    for capability in ((7, 5), (8, 6)):
        config = tensorrt_api.configure(
            RTX, builder, BuildOptions(), (128, 128, 3), None, Gpu("a GPU", capability)
        )
        count = config.num_compute_capabilities
        chosen.append([config.get_compute_capability(index).name for index in range(count)])
    assert chosen[0] == ["SM75"] != chosen[1]


def test_notes_on_rtx_are_for_whom_they_concern() -> None:
    assert tensorrt_api.rtx_notes(None, False) == []
    assert tensorrt_api.rtx_notes(Gpu("RTX 4090", (8, 9)), False) == []
    [unlisted] = tensorrt_api.rtx_notes(Gpu("H100", (9, 0)), False)
    assert "not the GPU here, H100 (compute capability 9.0)" in unlisted
    [int8] = tensorrt_api.rtx_notes(None, True)
    assert "compare with --fp16" in int8


def test_a_typed_or_nms_file_builds_too(model: Path, tmp_path: Path) -> None:
    """What graph.py writes; NMS is cut again, as TensorRT for RTX has no plugins."""
    typed = tmp_path / "typed.onnx"
    assert graph.main([str(model), "--fp16", "--nms", "--out", str(typed)]) == 0
    assert to_trt.main([str(typed), "--backend", "rtx"]) == 0
    assert tensorrt_api.read_record(tmp_path / "typed.engine")["precision"] == "fp16"


WITHOUT = """
import sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None  # as if it were not installed
from rgfl.export import graph, to_trt
sys.exit((to_trt if "--backend" in sys.argv else graph).main(sys.argv[2:]))
"""
NOT_IN_BUILD = "torch,torchvision,timm,onnxscript,onnxruntime,polygraphy,PIL,matplotlib,tensorboard"


def run_without(names: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT, names, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_machine_that_only_builds_needs_only_the_extra_for_it(model: Path, calibration: Path) -> None:
    quantised = model.with_name("quantised.onnx")
    quantize.quantize(model, quantised, calibration_images=calibration)
    typed = model.with_name("typed.onnx")
    for words in (
        (model, "--fp16", "--backend", "rtx"),
        (quantised, "--int8", "--backend", "rtx"),
        (model, "--fp16", "--nms", "--out", typed),
    ):
        done = run_without(NOT_IN_BUILD, *words)
        assert done.returncode == 0, done.stderr
    assert tensorrt_api.read_record(model.with_name("model.fp16.engine"))["precision"] == "fp16"
    assert tensorrt_api.read_record(model.with_name("quantised.int8.engine"))["precision"] == "int8-fp16"
    assert graph.has_nms(onnx_file.load(typed))


@pytest.mark.parametrize("name", ["onnx", "onnx_graphsurgeon"])
def test_a_package_that_is_missing_is_named_with_the_least_extra(
    name: str, model: Path, calibration: Path
) -> None:
    build = [model, "--fp16", "--backend", "rtx"]
    for words, extra in (
        (build, "build"),
        ([model, "--fp16", "--out", model.with_name("typed.onnx")], "build"),
        ([model, "--int8", "--calib", calibration, "--backend", "rtx"], "export"),
    ):
        done = run_without(name, *words)
        assert done.returncode == 2
        assert done.stderr.endswith(f": error: {name} is not installed: pip install 'rgfl[{extra}]'\n")
    assert list(model.parent.iterdir()) == [model]


def test_without_a_model_the_newest_export_is_taken_and_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    older, newer = tmp_path / "a" / "older.onnx", tmp_path / "b" / "newer.onnx"
    rounded = tmp_path / "b" / "rounded.onnx"
    for path in (older, newer):
        path.parent.mkdir()
        shutil.copy(model, path)
    graph.main([str(model), "--rounding", "--out", str(rounded)])
    (tmp_path / "b" / "foreign.onnx").write_bytes(b"something else")
    split = onnx_file.load(model)  # of another project: its weights were not copied along
    del split.metadata_props[:]
    onnx.save(split, tmp_path / "b" / "split.onnx", save_as_external_data=True, location="split.bin")
    (tmp_path / "b" / "split.bin").unlink()
    (tmp_path / ".hidden.onnx").write_bytes(model.read_bytes())
    strange = [tmp_path / "b" / name for name in ("foreign.onnx", "split.onnx")]
    for second, path in enumerate((model, older, newer, rounded, *strange)):
        os.utime(path, (1e9 + second, 1e9 + second))
    assert to_trt.newest_export(tmp_path) == newer
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out.engine"
    assert to_trt.main(["--backend", "rtx", "--out", str(out)]) == 0
    assert f"model: {newer}" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path / "a")
    older.unlink()
    assert "python export/to_onnx.py CHECKPOINT" in error_of([], capsys)


def test_ctrl_c_ends_a_build_and_leaves_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = RTX.new_progress()
    monkeypatch.setattr(progress, "cancelled", True)
    monkeypatch.setattr(Api, "new_progress", lambda self: progress)
    with pytest.raises(
        ModelError, match="cannot build the engine"
    ):  # TensorRT gives no plan where it was cancelled
        to_trt.build_plan(to_trt.open_builder(RTX, BuildOptions(), (128, 128, 3)), onnx_file.load(model))
    assert progress.steps > 0
    assert list(model.parent.iterdir()) == [model]


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGKILL")
def test_a_killed_build_leaves_the_old_engine(model: Path) -> None:
    engine = model.with_suffix(".engine")
    engine.write_bytes(b"the old one")
    code = (
        "import os, signal\n"
        "from rgfl.export import to_trt\n"
        "whole = to_trt.build_plan\n"
        "def killed(*arguments, **options):\n"
        "    whole(*arguments, **options)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "to_trt.build_plan = killed\n"
        f"to_trt.main([{str(model)!r}, '--fp16', '--backend', 'rtx', '--out', {str(engine)!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert engine.read_bytes() == b"the old one"
    assert {path.name for path in model.parent.iterdir()} == {model.name, engine.name}


# --- refusals --------------------------------------------------------------------------------------------


def test_files_that_are_no_models_of_ours(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = model.read_bytes()
    bare = onnx_file.load(model)
    del bare.metadata_props[:]
    onnx_file.save(bare, tmp_path / "bare.onnx")
    (tmp_path / "half.onnx").write_bytes(data[: len(data) // 2])
    (tmp_path / "last.onnx").write_bytes(data[:-1])
    (tmp_path / "flipped.onnx").write_bytes(bytes(byte ^ 0x5A for byte in data[:4000]) + data[4000:])
    (tmp_path / "noise.onnx").write_bytes(b"\x00\x01noise" * 100)
    (tmp_path / "empty.onnx").touch()
    graph.main([str(model), "--rounding", "--out", str(tmp_path / "rounded.onnx")])
    other = onnx_file.load(model)
    onnx_file.write_spec(other, onnx_file.read_spec(other), precision="int8", variant="cpu")
    onnx_file.save(other, tmp_path / "cpu.onnx")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    for name, reason in {
        "bare.onnx": "no rgfl spec in the model's metadata; export the checkpoint with: python export/",
        "half.onnx": "no ONNX model",
        "last.onnx": "no ONNX model",
        "flipped.onnx": "no ONNX model",
        "noise.onnx": "no ONNX model",
        "empty.onnx": "no ONNX model",
        "missing.onnx": "no such file",
        "rounded.onnx": "measures FP16 on a CPU",
        "cpu.onnx": "written for ONNX Runtime's CPU kernels",
    }.items():
        message = error_of([str(tmp_path / name), "--fp16", "--backend", "rtx"], capsys)
        assert str(tmp_path / name) in message
        assert reason in message
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--min-batch", "0"], "expected 1 ≤ --min-batch ≤ --opt-batch ≤ --max-batch, got 0, 0, 8"),
        (["--min-batch", "4", "--opt-batch", "2"], "got 4, 2, 8"),
        (["--opt-batch", "4", "--max-batch", "2"], "got 1, 4, 2"),
        (["--max-batch", "-1"], "got 1, 1, -1"),
        (["--workspace", "-1"], "--workspace -1: expected GiB > 0"),
        (["--optimization-level", "9"], "expected 0 to 5"),
        (["--int8"], "give training images to calibrate on: --calib DIR"),
        (["--fp16", "--calib", "."], "--calib goes with --int8"),
        (["--int8", "--calib", "nowhere"], "--calib nowhere: no such directory"),
        (["--keep-fp32", "neck*"], "--keep-fp32 goes with --fp16"),
        (["--fp16", "--keep-fp32", "nick*"], "no node has such a name"),
        (["--out", "engine.onnx"], "ends in .engine"),
        (["--version-compatible"], "TensorRT for RTX has no such thing"),
        (["--hardware-compatibility", "ampere-plus"], "--hardware-compatibility"),
        (["--timing-cache", "cache"], "--timing-cache"),
    ],
)
def test_flags_that_make_no_sense(
    flags: list[str], reason: str, model: Path, capsys: pytest.CaptureFixture
) -> None:
    assert reason in error_of([str(model), "--backend", "rtx", *flags], capsys)
    assert list(model.parent.iterdir()) == [model]


def test_what_can_be_refused_is_refused_before_calibration(
    model: Path, calibration: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(to_trt, "_quantised", lambda *_: pytest.fail("calibrated first"))
    command = [str(model), "--int8", "--calib", str(calibration)]
    rtx = [*command, "--backend", "rtx"]
    assert f"{model} is a file" in error_of([*rtx, "--out", str(model / "out.engine")], capsys)
    assert "no node has such a name" in error_of([*rtx, "--keep-fp32", "neck*,nick*"], capsys)
    typed = model.with_name("typed.onnx")
    assert graph.main([str(model), "--fp16", "--out", str(typed)]) == 0
    with pytest.raises(InputError, match=r"--keep-fp32 goes with .* not FP16 yet"):
        to_trt.typed_model(typed, fp16=True, keep_fp32=["neck*"])

    use_standard(monkeypatch, H200)
    timing = ["--timing-cache", str(model / "t.cache")]
    assert f"--timing-cache {model}: {model} is a file" in error_of([*command, *timing], capsys)
    library = model.with_name("plugin.so")
    library.write_bytes(b"no library")
    monkeypatch.setattr(rgfl.plugins, "LIBRARY", library)
    message = error_of(command, capsys)
    assert f"{library}: it cannot be loaded (" in message
    assert "run: python -m rgfl.plugins.build --force" in message
    monkeypatch.setattr(rgfl.plugins, "LIBRARY", Path(rgfl._core.__file__))
    wide = onnx_file.load(model)
    wide.graph.output.append(onnx.helper.make_tensor_value_info("uncertainty", 1, ["batch", 185, 5]))
    onnx_file.save(wide, model)
    assert "without --uncertainty" in error_of(command, capsys)


@pytest.mark.parametrize(
    ("side", "topk", "reason"),
    [
        (512, 3841, "level_topk is 3841, and TensorRT's TopK takes 3840 at most; train with --level-topk"),
        (512, 3840, "not quantised yet"),
        (512, 0, "not quantised yet"),
        (256, 3841, "not quantised yet"),  # its finest level has 1024 points, and no TopK
    ],
)
def test_a_topk_that_tensorrt_does_not_build_is_refused_first(
    side: int, topk: int, reason: str, model: Path, capsys: pytest.CaptureFixture
) -> None:
    """The build failed, behind the calibration."""
    changed = onnx_file.load(model)
    spec = dataclasses.replace(onnx_file.read_spec(changed), image_size=(side, side), level_topk=topk)
    onnx_file.write_spec(changed, spec, precision="fp32")
    onnx_file.save(changed, model)
    assert reason in error_of([str(model), "--int8", "--backend", "rtx"], capsys)


@pytest.mark.parametrize("damaged", [True, False])
def test_a_timing_cache_of_another_version_is_refused_before_calibration(
    damaged: bool,
    model: Path,
    calibration: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """The builder alone knows, and it was made when all else was done."""
    use_standard(monkeypatch, H200)
    config = Mock(**{"add_optimization_profile.return_value": 0, "set_timing_cache.return_value": False})
    config.create_timing_cache.return_value = None if damaged else object()
    builder = Mock(**{"create_builder_config.return_value": config})
    monkeypatch.setattr(tensorrt_api, "create", lambda *_: builder)
    monkeypatch.setattr(tensorrt_api, "load_plugin", lambda *_: None)
    monkeypatch.setattr(rgfl.plugins, "library", lambda: Path(rgfl._core.__file__))
    monkeypatch.setattr(to_trt, "_quantised", lambda *_: pytest.fail("calibrated first"))
    cache = model.with_name("t.cache")
    cache.write_bytes(b"timed by TensorRT 10.9")
    command = [str(model), "--int8", "--calib", str(calibration), "--timing-cache", str(cache)]
    assert f"--timing-cache {cache}: TensorRT 10.16.1.11 cannot use it" in error_of(command, capsys)
    assert cache.read_bytes() == b"timed by TensorRT 10.9"


def test_an_engine_replaces_no_file_of_its_own_command(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    before = model.read_bytes()
    strange = model.with_suffix(".plan")  # a model under an engine's name
    model.rename(strange)
    assert "the same file as" in error_of([str(strange), "--backend", "rtx", "--out", str(strange)], capsys)
    use_standard(monkeypatch, H200)
    out = model.with_suffix(".engine")
    timing = ["--out", str(out), "--timing-cache", str(out)]
    assert f"--timing-cache {out}: the same file as {out}" in error_of([str(strange), *timing], capsys)
    assert strange.read_bytes() == before
    assert list(model.parent.iterdir()) == [strange]


def test_a_plugin_that_tensorrt_cannot_load_is_named(tmp_path: Path) -> None:
    """What came of it was an error of the parser, about a node that it did not know."""
    registry = trt.Builder(RTX.new_logger()).get_plugin_registry()
    library = Path(rgfl._core.__file__)  # the system loads it, and it has no plugin
    with pytest.raises(ModelError, match=r"_core.*: TensorRT for RTX .* cannot load it; run: python -m rgfl"):
        tensorrt_api.load_plugin(RTX, registry, library)
    (tmp_path / "noise.so").write_bytes(b"no library")
    with pytest.raises(ModelError, match=r"noise\.so: it cannot be loaded \(.*\); run: python -m rgfl"):
        tensorrt_api.load_plugin(RTX, registry, tmp_path / "noise.so")


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops")
@pytest.mark.parametrize("writable", [True, False])
def test_the_engine_is_written_before_the_timing_cache(
    writable: bool, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its folder was missing there was no engine, after half an hour of building."""
    use_standard(monkeypatch, H200)
    # TensorRT for RTX builds in place of the standard one, without the plugin layer.
    monkeypatch.setattr(graph, "add_nms", lambda given: given)
    monkeypatch.setattr(tensorrt_api, "load_plugin", lambda *_: None, raising=False)
    monkeypatch.setattr(tensorrt_api, "map_plugin", lambda *_: None, raising=False)
    monkeypatch.setattr(rgfl.plugins, "library", lambda: Path(rgfl._core.__file__))
    monkeypatch.setattr(to_trt, "_read_back", lambda *_: tensorrt_api.Layers("engine"))
    out, cache = model.parent / "a" / "m.engine", model.parent / "b" / "t.cache"
    write, order = atomic.write_bytes, []

    def write_bytes(path: Path, data: bytes) -> None:
        order.append(path.name)
        if path == cache and not writable:
            raise OSError(28, "No space left on device", str(path))
        write(path, data)

    monkeypatch.setattr(atomic, "write_bytes", write_bytes)
    expected: Any = nullcontext()
    if not writable:
        expected = pytest.warns(UserWarning, match="timed anew by the next build: .*t.cache: No space left")
    with expected:
        assert to_trt.main([str(model), "--timing-cache", str(cache), "--out", str(out)]) == 0
    assert order == ["m.engine", "m.engine.json", "t.cache"]
    assert tensorrt_api.read_record(out)["bytes"] == out.stat().st_size
    assert cache.is_file() == writable


def test_fp16_that_overflows_is_refused(model: Path, capsys: pytest.CaptureFixture) -> None:
    loaded = onnx_file.load(model)
    first = next(node for node in loaded.graph.node if node.op_type == "Conv")
    for item in loaded.graph.initializer:
        if item.name == first.input[1]:
            weights = onnx.numpy_helper.to_array(item) * 1e5
            item.CopyFrom(onnx.numpy_helper.from_array(weights.clip(-6e4, 6e4), item.name))
    onnx_file.save(loaded, model)
    assert "FP16 overflows in this model" in error_of([str(model), "--fp16", "--backend", "rtx"], capsys)
    assert list(model.parent.iterdir()) == [model]


def use_standard(monkeypatch: pytest.MonkeyPatch, gpu: Gpu | None) -> None:
    """As if TensorRT 10 were installed on a machine with `gpu`."""
    monkeypatch.setattr(tensorrt_api, "_installed", lambda backend: True)
    monkeypatch.setattr(
        tensorrt_api, "_load", lambda backend, reason: STANDARD if backend == "tensorrt" else RTX
    )
    monkeypatch.setattr(machine, "find_gpu", lambda: gpu)


def test_standard_tensorrt_without_a_gpu(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    use_standard(monkeypatch, None)
    message = error_of([str(model), "--backend", "tensorrt"], capsys)
    assert "TensorRT 10.16.1.11 builds engines on the GPU that will run them" in message
    assert "--backend rtx" in message
    assert open_api("auto", None).name == "rtx"
    assert open_api("auto", H200).name == "tensorrt"


def test_standard_tensorrt_without_the_plugin(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    use_standard(monkeypatch, H200)
    monkeypatch.setattr(rgfl.plugins, "LIBRARY", tmp_path / "none.so")
    assert "run: python -m rgfl.plugins.build" in error_of([str(model)], capsys)


def test_no_tensorrt_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_api, "_installed", lambda backend: False)
    with pytest.raises(InputError, match=r"no TensorRT is installed; pip install .*rgfl\[tensorrt\]"):
        open_api("auto", H200)
    with pytest.raises(InputError, match=r"TensorRT for RTX is not installed: pip install"):
        open_api("rtx", None)


def test_a_tensorrt_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """JetPack 6.0's ended in an AttributeError."""
    monkeypatch.setattr(tensorrt_api, "_installed", lambda backend: True)
    module = SimpleNamespace(__version__="10.3.0")
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    assert open_api("auto", H200).version == (10, 3, 0)
    for module.__version__ in ("8.6.2", "10.2.0.post1"):
        expected = r"TensorRT (8\.6\.2|10\.2\.0) is too old, expected 10\.3 or newer; .*JetPack 6\.1 or newer"
        with pytest.raises(InputError, match=expected):
            open_api("auto", H200)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_on_a_jetson_tensorrt_is_jetpacks(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip's is not built for it, and would hide JetPack's."""
    monkeypatch.setattr(tensorrt_api, "_installed", lambda backend: False)
    monkeypatch.setattr(tensorrt_api.platform, "machine", lambda: machine)
    for backend in ("auto", "tensorrt"):
        with pytest.raises(InputError) as caught:
            open_api(backend, H200)
        message = str(caught.value)
        for part in ("apt-get install python3-libnvinfer", "python3 -m venv --system-site-packages"):
            assert (part in message) == (machine == "aarch64")
        assert "pip install 'rgfl[tensorrt]' (drivers before R580: tensorrt-cu12 'rgfl[cuda12]')" in message


# --- an engine of another version or GPU -----------------------------------------------------------------


def fake_engine(path: Path, version: tuple[int, ...], magic: bytes = b"ftrt", **record: Any) -> Path:
    """The head of an engine file, and a record beside it."""
    path.write_bytes(magic + bytes(20) + bytes(version) + b"and so on")
    record = {
        "sha256": file_facts(path)["sha256"],
        "command": f"python export/to_trt.py m.onnx --out {path}",
        **record,
    }
    tensorrt_api.record_path(path).write_text(json.dumps(record))
    return path


def on(gpu: Gpu) -> dict[str, Any]:
    return to_trt._facts(gpu)


def test_engines_of_other_versions_and_gpus_are_refused_with_the_command(tmp_path: Path) -> None:
    here = (10, 16, 1, 11)
    engine = tmp_path / "a.engine"
    cases = [
        (here, b"ftrt", {"gpu": on(H200)}, H200, ""),
        (here, b"ftrt", {}, H200, ""),
        ((10, 16, 1, 9), b"ftrt", {"gpu": on(H200)}, H200, ""),  # a build of the same version
        (
            (10, 9, 0, 34),
            b"ftrt",
            {"gpu": on(H200)},
            H200,
            "built with TensorRT 10.9.0.34, and this is TensorRT 10",
        ),
        ((10, 9, 0, 34), b"ftrt", {"gpu": on(H200), "version_compatible": True}, H200, ""),
        ((11, 4, 0, 106), b"ftrt", {"version_compatible": True}, H200, "built with TensorRT 11.4.0.106"),
        ((1, 7, 1, 116), b"vtrt", {}, H200, "an engine of TensorRT for RTX 1.7.1.116"),
        (
            here,
            b"ftrt",
            {"gpu": on(A10)},
            H200,
            r"built for NVIDIA A10 \(compute capability 8.6\), and this is NVIDIA H200",
        ),
        (here, b"ftrt", {"gpu": on(A10), "hardware_compatibility": "ampere-plus"}, H200, ""),
        (
            here,
            b"ftrt",
            {"gpu": on(A10), "hardware_compatibility": "same-compute-capability"},
            H200,
            "built for",
        ),
    ]
    for version, magic, record, gpu, reason in cases:
        fake_engine(engine, version, magic, **record)
        if not reason:
            assert tensorrt_api.check_engine(engine, STANDARD, gpu)["command"]
            continue
        with pytest.raises(ModelError, match=reason) as caught:
            tensorrt_api.check_engine(engine, STANDARD, gpu)
        assert str(caught.value).endswith(
            f"build it anew with: python export/to_trt.py m.onnx --out {engine}"
        )


def test_an_engine_of_another_gpu_of_the_same_capability_is_told(tmp_path: Path) -> None:
    """TensorRT said it to a log that nobody saw. Jetson's GPUs differ in their size alone."""
    nano, agx = Gpu("Orin", (8, 7), "0000:00:00.0", 8), Gpu("Orin", (8, 7), "", 16)
    l4, rtx_4090 = Gpu("NVIDIA L4", (8, 9), "", 58), Gpu("NVIDIA GeForce RTX 4090", (8, 9), "", 128)
    engine = tmp_path / "a.engine"
    for here, built_for in ((nano, agx), (l4, rtx_4090)):
        fake_engine(engine, (10, 16, 1, 11), gpu=on(built_for))
        with pytest.warns(UserWarning, match="may be slower here, or fail; build it anew with") as caught:
            tensorrt_api.check_engine(engine, STANDARD, here)
        assert f"built for {built_for}, and this is {here}" in str(caught[0].message)
    assert str(nano) == "Orin (compute capability 8.7, 8 multiprocessors)"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fake_engine(engine, (10, 16, 1, 11), gpu=on(nano))
        tensorrt_api.check_engine(engine, STANDARD, dataclasses.replace(nano, bus_id="0000:01:00.0"))
        fake_engine(engine, (10, 16, 1, 11), gpu=on(agx), hardware_compatibility="same-compute-capability")
        tensorrt_api.check_engine(engine, STANDARD, nano)


def test_a_version_compatible_engine_without_its_record(tmp_path: Path) -> None:
    """The record alone says that a newer TensorRT may run it."""
    engine = tmp_path / "a.engine"
    for version, magic, helps in (
        ((10, 9, 0, 34), b"ftrt", True),
        ((11, 4, 0, 106), b"ftrt", False),  # an older TensorRT never runs it
        ((1, 6, 0, 1), b"vtrt", False),
    ):
        tensorrt_api.record_path(fake_engine(engine, version, magic)).unlink()
        api = STANDARD if magic == b"ftrt" else RTX
        with pytest.raises(ModelError, match="built with TensorRT") as caught:
            tensorrt_api.check_engine(engine, api, H200)
        end = "; or, if it was built with --version-compatible, copy a.engine.json along"
        assert str(caught.value).endswith(end) == helps


def test_a_record_of_another_engine_is_not_believed(tmp_path: Path) -> None:
    engine = fake_engine(tmp_path / "a.engine", (10, 16, 1, 11), gpu=on(A10))
    engine.write_bytes(engine.read_bytes() + b"!")
    assert tensorrt_api.check_engine(engine, STANDARD, H200) == {}
    for data in (b"", b"ftrt", b"something else that is long enough"):
        engine.write_bytes(data)
        with pytest.raises(ModelError, match=r"no TensorRT engine; build one with: python export/to_trt.py"):
            tensorrt_api.read_plan(engine)


# --- several at once -------------------------------------------------------------------------------------


def test_a_logger_outlives_the_runtime_it_was_made_for() -> None:
    """TensorRT goes on writing to the first one while another runtime lives, and crashed when it was gone."""
    code = (
        "import gc, tensorrt_rtx\n"
        "from rgfl.trt_runtime.tensorrt_api import open_api\n"
        "api = open_api('rtx', None)\n"
        "first = tensorrt_rtx.Runtime(api.new_logger())\n"
        "second = tensorrt_rtx.Runtime(api.new_logger())\n"
        "del first\n"
        "gc.collect()\n"
        "others = [bytearray(200) for _ in range(2000)]\n"
        "tensorrt_rtx.get_plugin_registry().load_library('none.so')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- standard TensorRT: as far as one gets without it ----------------------------------------------------


def test_the_switches_of_standard_tensorrt_are_set(tmp_path: Path) -> None:
    builder = trt.Builder(STANDARD.new_logger())
    library = tmp_path / "plugin.so"
    options = BuildOptions((1, 2, 4), "ampere-plus", True, False, 1.5, 4)
    config = tensorrt_api.configure(STANDARD, builder, options, (128, 128, 3), library)
    assert not config.get_flag(trt.BuilderFlag.TF32)  # on by default, and decode would lose bits
    assert config.get_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    assert config.plugins_to_serialize == [str(library)]
    assert config.builder_optimization_level == 4
    assert config.num_optimization_profiles == 1
    tf32 = tensorrt_api.configure(STANDARD, builder, BuildOptions(tf32=True), (128, 128, 3), None)
    assert tf32.get_flag(trt.BuilderFlag.TF32)


@pytest.mark.parametrize(("version", "flags"), [((10, 9), 1), ((11, 4), 0)])
def test_networks_are_strongly_typed_by_flag_until_version_11(version: tuple[int, ...], flags: int) -> None:
    class Builder:
        def create_network(self, given: int) -> int:
            return given

    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert Api("tensorrt", trt, version, "").new_network(Builder()) == flags * strongly_typed


def test_an_engines_name_holds_the_longest_spec() -> None:
    """A longer name TensorRT only logs, and the build ended there."""
    network = RTX.new_network(trt.Builder(RTX.new_logger()))
    for length in (MAX_JSON_BYTES, MAX_JSON_BYTES + 1):
        network.name = "x" * length
        assert len(network.name) == MAX_JSON_BYTES


def test_the_inspectors_answer_is_read_in_both_forms() -> None:
    ten = {
        "Layers": [
            {
                "LayerType": "CaskConvolution",
                "Outputs": [{"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}],
            },
            {"LayerType": "PluginV3", "Outputs": [{"Format/Datatype": "Row major Int32 format"}]},
        ],
        "Bindings": ["images"],
    }
    eleven = {
        "Layers": [
            {
                "LayerType": "CaskConvolution",
                "Outputs": [{"Format": "Channel major (kHWC8)", "DataType": "Half"}],
            },
            {"LayerType": "PluginV3", "Outputs": [{"Format": "Row major (kLINEAR)", "DataType": "Int32"}]},
        ],
        "I/O Tensors": [{"Name": "images"}],
    }
    for answer in (ten, eleven):
        layers = tensorrt_api.parse_inspection(json.dumps(answer))
        assert layers.types == {"CaskConvolution": {"FP16": 1}, "PluginV3": {"INT32": 1}}
        assert "2 layers of the engine" in layers.text()
    assert tensorrt_api.parse_inspection('{"Layers": ["conv1", "conv2"]}').total == 2


def names_used() -> set[str]:
    """Every attribute in the two files that is a name of TensorRT's Python module."""
    known = set(dir(trt))
    for item in vars(trt).values():
        if isinstance(item, type):
            known.update(name for name in dir(item) if not name.startswith("_"))
    used = {"AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"}  # looked up by getattr
    used |= {"phase_start", "step_complete", "phase_finish"}  # overridden
    for file in ("export/to_trt.py", "trt_runtime/tensorrt_api.py"):
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        used |= {node.attr for node in attributes if ast.unparse(node.value) not in OURS} & known
    return {name for name in used if not name.startswith("_")}


RTX_ALONE = {"ComputeCapability", "SM75", "num_compute_capabilities", "set_compute_capability"}
RTX_ALONE |= {"REQUIRE_USER_ALLOCATION"}
SINCE_10_3 = {"SAME_COMPUTE_CAPABILITY"}  # asked for by hasattr
# Objects of ours whose attributes have names that TensorRT uses too.
OURS = ("graph", "onnx_file", "arguments", "layers", "self", "api", "plan", "options", "gpu", "node")
OURS += ("tensor", "self._bars[phase]")  # of tqdm


@pytest.mark.parametrize("version", ["10.3", "10", "11"])
def test_tensorrt_10_and_11_have_every_name_that_is_used(version: str) -> None:
    """RGFL_TENSORRT_BINDINGS names a folder with `10.3`, `10` and `11`, each from

        pip install --no-deps --target FOLDER/10 'tensorrt-cu12-bindings==10.*'

    Without TensorRT's libraries it cannot be imported, so its binary is searched.
    """
    folder = os.environ.get("RGFL_TENSORRT_BINDINGS")
    found = list((Path(folder) / version).glob("tensorrt_bindings/tensorrt.*")) if folder else []
    if not found:
        pytest.skip(f"set RGFL_TENSORRT_BINDINGS to a folder with the bindings of TensorRT {version}")
    binary = found[0].read_bytes()
    used = names_used()
    assert {"STRONGLY_TYPED", "plugins_to_serialize", "set_timing_cache", "IProgressMonitor"} <= used
    # The linker keeps a string that ends another one only once, so names are looked for as ends of strings.
    missing = {name for name in used if name.encode() + b"\0" not in binary}
    assert missing <= RTX_ALONE | (SINCE_10_3 if version == "10.3" else set())


def test_no_precision_flag_and_no_calibrator_is_used() -> None:
    assert not names_used() & {
        "FP16",
        "INT8",
        "BF16",
        "int8_calibrator",
        "set_calibration_profile",
        "platform_has_fast_fp16",
    }


def test_help_is_quick_has_examples_and_says_what_was_not_run() -> None:
    code = (
        "import sys\n"
        "from rgfl.export import {script}\n"
        "try: {script}.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {{'torch', 'onnx', 'onnxruntime', 'tensorrt', 'tensorrt_rtx'}} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    for script in ("to_trt", "graph"):
        started = time.perf_counter()
        command = [sys.executable, "-c", code.format(script=script)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert time.perf_counter() - started < 20
        assert f"python export/{script}.py" in done.stdout
        assert script == "graph" or "not run yet" in done.stdout
