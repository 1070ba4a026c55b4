"""The benchmark on a GPU that is not there: what counts as time, and what is on disk when it is killed."""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from benchmark_scripts import imported

from rgfl.plugins.build import BuildError
from rgfl.plugins.launcher import RotatedNms

torch = pytest.importorskip("torch", reason="the benchmark needs PyTorch: pip install 'rgfl[train]'")


class Gpu:
    """A queue of work behind a host, both with clocks in microseconds."""

    def __init__(self) -> None:
        self.host = self.done = 0.0

    def enqueue(self, gpu_us: float, host_us: float = 1.0) -> None:
        self.host += host_us
        self.done = max(self.done, self.host) + gpu_us

    def synchronize(self) -> None:
        self.host = max(self.host, self.done)

    def event(self, enable_timing: bool) -> Any:
        event = SimpleNamespace(at=0.0)
        event.record = lambda: (self.enqueue(0), setattr(event, "at", self.done))
        event.query = lambda: self.host >= event.at
        event.elapsed_time = lambda end: (end.at - event.at) / 1e3
        return event


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """In PyTorch's place."""
    gpu = Gpu()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "synchronize", gpu.synchronize)
    monkeypatch.setattr(torch.cuda, "Event", gpu.event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: gpu.enqueue(cycles / 1800))
    return gpu


@pytest.fixture
def benchmark(gpu: Gpu) -> Iterator[Any]:
    with imported("bench_rotated_nms") as module:
        yield module


@pytest.mark.parametrize("host_us", [1.0, 45.0, 400.0])
def test_gaps_in_which_the_gpu_waits_for_the_host_do_not_count(
    host_us: float, benchmark: Any, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven launches of a few microseconds each take the host longer than the GPU."""
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: gpu.host / 1e6)
    clock = benchmark.GpuClock()
    assert clock.with_host(lambda: gpu.enqueue(8, 45)) > 45
    assert clock(lambda: gpu.enqueue(8, host_us)) == pytest.approx((8, host_us))


def test_a_call_that_waits_for_the_gpu_has_no_such_time(benchmark: Any, gpu: Gpu) -> None:
    def call() -> None:
        gpu.enqueue(8)
        gpu.synchronize()

    with pytest.raises(RuntimeError, match="the calls wait for the GPU"):
        benchmark.GpuClock()(call)


class HostTorch:
    """PyTorch, whose device is the host."""

    def __init__(self, gpu: Gpu) -> None:
        stream = SimpleNamespace(cuda_stream=0, synchronize=lambda: None)
        self.cuda = SimpleNamespace(
            Event=gpu.event,
            synchronize=gpu.synchronize,
            _sleep=torch.cuda._sleep,
            current_stream=lambda: stream,
            Stream=lambda: stream,
            stream=lambda stream: nullcontext(),
            CUDAGraph=lambda: SimpleNamespace(replay=lambda: gpu.enqueue(5)),
            graph=lambda graph, stream: nullcontext(),
        )
        events = [
            SimpleNamespace(
                key=f"void rgfl::kernels::{name}(rgfl::kernels::Problem)", self_device_time_total=us
            )
            for name, us in (("collect<float>", 30), ("suppress", 120))
        ]
        events.append(SimpleNamespace(key="Memset (Device)", self_device_time_total=9))
        profile = nullcontext(SimpleNamespace(key_averages=lambda: events))
        self.profiler = SimpleNamespace(
            profile=lambda activities: profile, ProfilerActivity=SimpleNamespace(CUDA="cuda")
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, *sizes: Any, device: str = "cpu", **others: Any) -> Any:
        return torch.empty(*sizes, **others)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_row_is_measured_of_the_kernels_on_the_emulator(
    batch: int, benchmark: Any, gpu: Gpu, emulated_kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it but CUDA: what runs for the first time on a machine that one has for half an hour."""
    monkeypatch.setattr(benchmark, "torch", HostTorch(gpu))
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(benchmark, "RotatedNms", lambda: RotatedNms(emulated_kernels))
    monkeypatch.setattr(benchmark, "ROUNDS", 1)

    def walk(count: int, mask: Any, removed: Any, kept: Any) -> int:
        ctypes.memset(kept, 0, 4 * count)
        return count

    reference = SimpleNamespace(reference_mask=lambda *_: 0, reference_walk=walk)
    scene = benchmark.Scene("small", 160, 60, objects=12, target_us=60)
    row = benchmark.measure(scene, batch, reference, repeats=1)
    assert row["indices_equal_cpu"]
    assert 0 < row["kept"] < row["mask_kept"] == 60 * batch
    assert 0 < row["probiou_kept"] < 60 * batch
    assert row["target_us"] == (60 if batch == 1 else None)
    assert row["ours_graph_us"] == pytest.approx(5)
    assert all(row[f"{name}_us"] is not None for name in ("ours", "host", "mask", "probiou"))
    enqueue, _ = benchmark.ours(*scene.tensors(batch))
    assert benchmark.by_kernel(enqueue) == {"collect": 3.0, "suppress": 12.0}
    json.dumps(row)


def row(scene: Any, batch: int, **changed: Any) -> dict[str, Any]:
    """As `measure` gives it."""
    times = {"ours_us": 60.0 * batch, "ours_graph_us": 50.0 * batch, "host_us": 40.0, "host_graph_us": 9.0}
    return {
        "scene": scene.name,
        "points": scene.points,
        "survivors": scene.survivors,
        "batch": batch,
        "kept": 120,
        "indices_equal_cpu": True,
        **times,
        "mask_us": 9000.0,
        "probiou_us": None,
        "target_us": scene.target_us if batch == 1 else None,
        **changed,
    }


@pytest.fixture
def run(benchmark: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Runs the command with rows from `measure`, whose process ends with `ending`."""
    (tmp_path / "library.so").touch()
    monkeypatch.setattr(benchmark, "library", lambda: tmp_path / "library.so")

    def command(measure: Any, tests: Any, ending: Sequence[str] = ("exit code 0",)) -> bool:
        def lines(command: list[str], limit_s: float) -> Iterator[str]:
            assert command[1:5] == [benchmark.__file__, "--rows", "--repeats", "1"]
            for scene, batch in itertools.product(benchmark.SCENES, (1, 8)):
                yield json.dumps(measure(scene, batch))
            yield json.dumps({"scene": "first", "batch": 1, "kernels_us": {"collect": 3.0}})
            yield from ending

        monkeypatch.setattr(benchmark, "run", lines)
        monkeypatch.setattr(benchmark, "pytest", tests)
        options = argparse.Namespace(out=tmp_path / "out", batch=None, repeats=1, no_tests=False)
        return bool(benchmark.benchmark(options))

    return command


def written(folder: Path) -> tuple[dict[str, Any], str]:
    (record,) = folder.glob("*-rotated-nms-*.json")
    return json.loads(record.read_text()), record.with_suffix(".md").read_text()


def test_each_row_is_on_disk_before_the_next_is_measured(run: Callable[..., Any], tmp_path: Path) -> None:
    """A command that was killed in its tests left nothing."""
    scenes = []

    def measure(scene: Any, batch: int, *_: Any) -> dict[str, Any]:
        if scenes:
            record, text = written(tmp_path / "out")
            assert [one["scene"] for one in record["rows"]] == scenes
            assert text.count("| yes |") == len(scenes)
        scenes.append(scene.name)
        return row(scene, batch)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(measure, killed)
    record, _ = written(tmp_path / "out")
    assert len(record["rows"]) == len(scenes) == 8
    assert record["tests"]["result"] == "not run"
    assert {"date", "hardware", "versions", "gpu_state", "command", "library"} <= set(record)
    assert {"before", "after"} == set(record["gpu_state"])
    assert not list((tmp_path / "out").glob(".*"))


def test_rows_that_would_begin_too_late_are_left_out_and_told(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    now = itertools.count(0, 0.4 * benchmark.ROWS_S)
    monkeypatch.setattr(benchmark.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(benchmark, "compile_reference", lambda: None)
    monkeypatch.setattr(benchmark, "measure", lambda scene, batch, *_: row(scene, batch))
    monkeypatch.setattr(benchmark, "ours", lambda *_: (None, None))
    monkeypatch.setattr(benchmark, "by_kernel", lambda _: {"collect": 3.0})
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    benchmark.measure_rows(argparse.Namespace(batch=None, repeats=1))
    said = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [list(line) == ["left_out"] for line in said] == [False] * 2 + [True] * 6 + [False] * 2
    assert all(line["kernels_us"] for line in said[-2:])


def test_where_a_row_ends_the_process_the_tests_still_run_and_the_file_says_what_came(
    run: Callable[..., Any], benchmark: Any, tmp_path: Path
) -> None:
    """An illegal address takes the process's CUDA with it; the tests then name the case."""
    passed = {"passed": True, "result": "60 passed", "details": []}
    ending = ("Traceback", "AcceleratorError: an illegal memory access was encountered", "exit code 1")
    assert not run(lambda scene, batch: row(scene, batch), lambda *_: passed, ending)
    record, text = written(tmp_path / "out")
    assert len(record["rows"]) == 8
    assert record["tests"]["result"] == "60 passed"
    assert "the rows ended early: AcceleratorError: an illegal memory access was encountered" in text


def test_tests_come_last_and_get_what_is_left_of_the_time(
    run: Callable[..., Any], benchmark: Any, tmp_path: Path
) -> None:
    def tests(arguments: list[str], limit_s: float) -> dict[str, Any]:
        assert len(written(tmp_path / "out")[0]["rows"]) == 8
        assert arguments[:4] == ["-m", "gpu", "-k", "not sanitizer"]
        assert all((benchmark.HERE.parent / path).exists() for path in arguments[4:])
        assert 0 < limit_s < benchmark.LIMIT_S
        return {"passed": False, "result": "1 failed in 2 s", "details": ["FAILED a::b - wrong"]}

    assert not run(lambda scene, batch, *_: row(scene, batch), tests)
    record, text = written(tmp_path / "out")
    assert record["tests"]["result"] == "1 failed in 2 s"
    assert "Tests on the GPU: 1 failed in 2 s\n- FAILED a::b - wrong" in text


def test_what_was_aimed_at_is_told_with_its_outcome(benchmark: Any) -> None:
    first, second = benchmark.SCENES[:2]
    rows = [row(first, 1), row(first, 8, ours_graph_us=149.0), row(second, 1, ours_graph_us=310.0)]
    assert list(benchmark.targets(rows)) == [
        "deployed graph, 1024², batch 1: 50.0 µs, aim ≤ 60: met",
        "deployed graph, 1024², batch 8 / batch 1: 3.0 times, aim ≤ 3: met",
        "all points, 1024², batch 1: 310.0 µs, aim ≤ 300: MISSED",
    ]


@pytest.mark.parametrize(
    ("body", "limit_s", "passed", "result"),
    [
        ("def test(): pass", 60, True, "1 passed"),
        ("def test(): assert 0", 60, False, "1 failed"),
        ("import time\ndef test(): time.sleep(600)", 3, False, "stopped after 3 s"),
    ],
)
def test_pytest_is_heard_and_stopped_in_time(
    body: str, limit_s: float, passed: bool, result: str, benchmark: Any, tmp_path: Path
) -> None:
    (tmp_path / "test_it.py").write_text(body)
    heard = benchmark.pytest(["-p", "no:cacheprovider", str(tmp_path)], limit_s)
    assert (heard["passed"], heard["result"].startswith(result)) == (passed, True), heard
    assert len(heard["details"]) == (not passed)
    if result.startswith("stopped"):
        assert "test_it.py::test" in heard["details"][0]  # a hang has a name


def test_the_sanitizer_has_a_file_of_its_own(
    benchmark: Any, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def tests(arguments: list[str], limit_s: float) -> dict[str, Any]:
        asked.append(arguments[3])
        if len(asked) == 3:
            raise KeyboardInterrupt
        return {"passed": True, "result": "1 passed in 60 s", "details": []}

    monkeypatch.setattr(benchmark, "pytest", tests)
    with pytest.raises(KeyboardInterrupt):
        benchmark.sanitize(tmp_path / "out")
    assert asked[:2] == ["sanitizer and memcheck", "sanitizer and racecheck"]
    record, text = written(tmp_path / "out")
    assert set(record["tools"]) == {"memcheck", "racecheck"}
    assert "racecheck: 1 passed in 60 s" in text


def test_without_a_gpu_it_says_so(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench_rotated_nms.py"])
    assert benchmark.main() == 1
    assert "needs an NVIDIA GPU" in capsys.readouterr().err


def write_nvcc(folder: Path, body: str) -> Path:
    folder.mkdir(parents=True)
    nvcc = folder / "nvcc"
    nvcc.write_text(f"#!/bin/sh\n{body}\n")
    nvcc.chmod(0o755)
    return nvcc


def test_the_cuda_runtime_is_found_in_pypi_s_layout(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It failed to link there."""
    calls = tmp_path / "calls"
    nvcc = write_nvcc(tmp_path / "cu13" / "bin", f'echo "$@" > {calls}')
    (tmp_path / "cu13" / "lib").mkdir()
    monkeypatch.setattr(benchmark, "find_nvcc", lambda: nvcc)
    monkeypatch.setattr(benchmark.ctypes, "CDLL", str)
    benchmark.compile_reference()
    assert {"-arch=sm_90", f"-L{tmp_path / 'cu13' / 'lib'}"} <= set(calls.read_text().split())


def test_without_a_compiler_the_rest_is_measured(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def no_nvcc() -> Path:
        raise BuildError("cannot find the CUDA compiler (nvcc)\nlooked at: nowhere")

    monkeypatch.setattr(benchmark, "find_nvcc", no_nvcc)
    assert benchmark.compile_reference() is None
    assert capsys.readouterr().err == "the mask is not measured: cannot find the CUDA compiler (nvcc)\n"
    nvcc = write_nvcc(tmp_path / "bin", "exit 2")
    monkeypatch.setattr(benchmark, "find_nvcc", lambda: nvcc)
    assert benchmark.compile_reference() is None
    record = {
        **dict.fromkeys(("cuda", "command")),
        "date": "2026-01-01",
        "hardware": {"gpu": "H"},
        "compute_capability": "9.0",
        "versions": {"torch": "2"},
        "gpu_state": {"before": {"driver": "580", "watts": 90.5}},
        "tests": {"result": "not run", "details": []},
        "rows": [row(benchmark.SCENES[0], 1, mask_us=None)],
        "by_kernel": [{"scene": "first", "batch": 1, "kernels_us": {"collect": 3.0, "suppress": 12.5}}],
        "left_out": ["last, batch 8"],
        "ended_early": [],
    }
    text = benchmark.table(record)
    assert "| 50.0 | 60.0 | 40.0 | no nvcc | out of memory | yes |" in text
    assert "- last, batch 8: left out for want of time" in text
    assert "GPU before: driver 580, watts 90.5" in text
    assert "| first | 1 | 3.0 | 12.5 |" in text
