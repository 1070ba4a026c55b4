"""Numbers to tables: the benchmark's record, and the report that joins it with evaluations."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from benchmark_scripts import imported
from stand_ins import write_engine

from rgfl.export import to_trt
from rgfl.trt_runtime import bench, report, tensorrt_api
from rgfl.trt_runtime import machine as hardware
from rgfl.trt_runtime.runners import load_runner


def test_the_host_is_timed_beside_an_engine_that_answers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with imported("bench_host") as script:
        monkeypatch.setattr(script, "REPEAT", 1)
        row = script.of_detect(script.InstantRunner(5), (1024, 1100), 2)
        assert sum(row[stage] for stage in (*script.STAGES, "merge")) == pytest.approx(row["whole"])
        assert min(row.values()) > 0
        text = script.markdown(
            {"date": "2026-01-01", "boxes": 5, "ms": {"x": row}, **hardware.circumstances()}
        )
        assert "| x | – |" in text


def test_bench_measures_every_model_and_batch(
    tiny_checkpoint: Path, tiny_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["--model", tiny_checkpoint, "--model", tiny_onnx, "--batch", "1,2", "--repeat", 3]
    command += ["--warmup", 1, "--threads", 1, "--json", tmp_path / "b.json", "--markdown", tmp_path / "b.md"]
    assert bench.main(list(map(str, command))) == 0
    record = json.loads((tmp_path / "b.json").read_text())
    cases = [(row["model"]["backend"], row["batch"]) for row in record["results"]]
    assert cases == [("PyTorch", 1), ("ONNX Runtime", 1), ("PyTorch", 2), ("ONNX Runtime", 2)]
    for row in record["results"]:
        latency = row["latency_ms"]
        assert 0 < latency["least"] <= latency["p50"] <= latency["p90"] <= latency["p99"]
        assert set(row["parts_ms"]) == {"preprocess", "network", "nms"}
        assert sum(part["mean"] for part in row["parts_ms"].values()) == pytest.approx(latency["mean"])
        assert row["images_per_second"] == pytest.approx(row["batch"] * 1e3 / latency["p50"])
        assert row["model"]["threads"] == 1
        assert row["calls"] == 3
    assert {"python", "torch", "onnxruntime"} <= set(record["versions"])
    assert {"cpu", "cores"} <= set(record["hardware"])
    table = (tmp_path / "b.md").read_text()
    assert table == capsys.readouterr().out
    assert table.count("| tiny.onnx (ONNX Runtime) | fp32 | cpu | 1 |") == 2


def test_a_compiled_row_finds_what_the_plain_one_does(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    compiler = torch.compile

    def without_code(network: Callable[..., Any], **options: Any) -> Any:  # which takes a minute
        return compiler(network, backend="aot_eager", dynamic=options["dynamic"])

    monkeypatch.setattr(torch, "compile", without_code)
    command = ["--model", tiny_checkpoint, "--compile", "--repeat", 1, "--warmup", 1, "--device", "cpu"]
    assert bench.main(list(map(str, [*command, "--json", tmp_path / "b.json"]))) == 0
    plain, compiled = json.loads((tmp_path / "b.json").read_text())["results"]
    backends = [row["model"]["backend"] for row in (plain, compiled)]
    assert backends == ["PyTorch", "PyTorch, compiled"]
    assert plain["detections_per_tile"] == compiled["detections_per_tile"] > 0


def test_a_compiler_that_fails_is_one_line(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    torch = pytest.importorskip("torch")
    compiler = torch.compile

    def broken(*_: Any) -> None:
        raise OSError("no g++")

    monkeypatch.setattr(torch, "compile", lambda network, **_: compiler(network, backend=broken))
    assert bench.main(["--model", str(tiny_checkpoint), "--compile", "--repeat", "1"]) == 2
    assert "torch.compile does not get through (" in (told := capsys.readouterr().err)
    assert "no g++" in told


def test_cpu_runs_name_their_threads(tiny_checkpoint: Path, tiny_onnx: Path) -> None:
    """A number, without --threads too: "all cores" says nothing on another machine."""
    for path in (tiny_checkpoint, tiny_onnx):
        with load_runner(path, device="cpu") as runner:
            assert isinstance(runner.describe()["threads"], int)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert 1 <= hardware.physical_cores() <= (cores or 1)


def test_engines_tell_what_the_gpu_did(
    machine: Callable[..., Any], tiny_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """On stand-ins, whose clock counts events: what is shown is that each part is told, and where."""
    machine()
    inside = write_engine(tmp_path / "inside.engine", tiny_onnx)
    behind = write_engine(tmp_path / "behind.engine", tiny_onnx, backend="rtx")
    command = ["--model", inside, "--model", behind, "--model", tiny_onnx, "--batch", "1,6", "--repeat", 3]
    command += ["--warmup", 1, "--streamed", "--json", tmp_path / "b.json"]
    assert bench.main(list(map(str, command))) == 0
    table = capsys.readouterr().out
    rows = json.loads((tmp_path / "b.json").read_text())["results"]
    parts = {"copy_in", "network", "copy_out"}
    for row, expected in zip(rows, [parts, parts | {"nms"}, None] * 2, strict=True):
        assert set(row["parts_ms"]) == {"preprocess", "network", "nms"}
        assert set(row.get("device_ms", {})) == (expected or set())
        assert row["streamed_images_per_second"] > 0
        if expected:
            assert all(0 < value["p50"] <= value["p99"] for value in row["device_ms"].values())
            assert row["model"]["batch_sizes"] == [1, 1, 4]
    # Six tiles are two runs of the engine.
    assert rows[3]["device_ms"]["copy_in"]["p50"] == 2 * rows[0]["device_ms"]["copy_in"]["p50"]
    assert re.search(r"\| inside.engine \| 1 \| [\d.]+ \| [\d.]+ \| – \| [\d.]+ \| [\d.]+ \|", table)
    assert re.search(r"\| tiny.onnx \| 6 \| – \| – \| – \| – \| [\d.]+ \|", table)


def test_streamed_calls_overlap_and_are_complete() -> None:
    """Stages that wait for each other across calls: one call after the other would never end."""
    import threading

    both = threading.Barrier(2, timeout=20)

    class Waiting:
        prepared = inferred = finished = 0

        def prepare(self, tiles: Any) -> int:
            self.prepared += 1
            if self.prepared == 2:
                both.wait()
            return self.prepared

        def infer(self, feed: int) -> int:
            self.inferred += 1
            if feed == 1:
                both.wait()
            return feed

        def finish(self, outputs: int) -> None:
            self.finished += 1

    runner = Waiting()
    assert bench._streamed_seconds(runner, None, 5) > 0  # type: ignore[arg-type]
    assert (runner.prepared, runner.inferred, runner.finished) == (5, 5, 5)


def test_the_first_gpu_is_asked_of_cudas_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its PCI address, too: CUDA puts the fastest GPU first, NVIDIA's library the one in the lowest slot."""

    class Driver:
        known = 0

        def cuInit(self, flags: int) -> int:
            return 0

        def cuDeviceGet(self, device: Any, index: int) -> int:
            return 0

        def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
            name.value = b"NVIDIA H200"
            return 0

        def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
            value._obj.value = {16: 132, 75: 9, 76: 0}[attribute]
            return 0

        def cuDeviceGetPCIBusId(self, place: Any, size: int, device: Any) -> int:
            assert size >= 13
            place.value = b"0000:3b:00.0"
            return self.known

    monkeypatch.setattr(tensorrt_api.ctypes, "CDLL", lambda name: Driver())
    assert hardware.find_gpu() == hardware.Gpu("NVIDIA H200", (9, 0), "0000:3b:00.0", 132)
    monkeypatch.setattr(Driver, "known", 1)
    assert hardware.find_gpu() == hardware.Gpu("NVIDIA H200", (9, 0), "", 132)


def test_results_of_a_jetson_name_its_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPUs of all of them are called alike."""
    monkeypatch.setattr(hardware, "BOARD", tmp_path / "model")
    monkeypatch.setattr(hardware, "find_gpu", lambda: hardware.Gpu("Orin", (8, 7)))
    assert "board" not in hardware.hardware()
    (tmp_path / "model").write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit\0")
    facts = hardware.hardware()
    assert (facts["board"], facts["gpu"]) == ("NVIDIA Jetson Orin Nano Developer Kit", "Orin")
    path = hardware.write_record(tmp_path, "latency", {"date": "2026-11-29", "hardware": facts})
    assert path.name == "2026-11-29-latency-nvidia-jetson-orin-nano-developer-kit.json"


def test_the_state_of_the_gpu_is_what_the_library_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    def refuse(*_: Any) -> None:
        raise NVMLError

    library = SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByPciBusId=lambda which: f"GPU at {which}",
        nvmlSystemGetDriverVersion=lambda: "580.1",
        nvmlDeviceGetClockInfo=lambda gpu, clock: {1: 1755, 2: 2619}[clock],
        nvmlDeviceGetMaxClockInfo=lambda gpu, clock: 1980,
        nvmlDeviceGetTemperature=lambda gpu, sensor: 41 if gpu == "GPU at 0000:3b:00.0" else 42,
        nvmlDeviceGetPowerUsage=lambda gpu: 512_500,
        nvmlDeviceGetEnforcedPowerLimit=refuse,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda gpu: 4,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    first = hardware.Gpu("NVIDIA H200", (9, 0), "0000:3b:00.0")
    monkeypatch.setattr(hardware, "find_gpu", lambda: first)
    assert hardware.gpu_state() == {
        "driver": "580.1",
        "sm_mhz": 1755,
        "sm_mhz_most": 1980,
        "memory_mhz": 2619,
        "celsius": 41,
        "watts": 512.5,
        "held_down_by": "0x4",
    }
    monkeypatch.setattr(hardware, "find_gpu", lambda: None)
    assert hardware.gpu_state() == {}
    monkeypatch.setattr(hardware, "find_gpu", lambda: first)
    library.nvmlDeviceGetHandleByPciBusId = refuse
    assert hardware.gpu_state() == {}
    library.nvmlInit = refuse
    assert hardware.gpu_state() == {}
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert hardware.gpu_state() == {}


def test_bench_refuses_what_cannot_be(tiny_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for flags, expected in (
        (["--batch", "0"], "--batch 0"),
        (["--repeat", "0"], "--repeat 0"),
        (["--images", str(tmp_path / "none")], "no such directory"),
    ):
        assert bench.main(["--model", str(tiny_onnx), *flags]) == 2
        assert expected in capsys.readouterr().err
    assert bench.main(["--model", str(tmp_path / "none.onnx")]) == 2


def model(name: str, backend: str = "ONNX Runtime") -> dict[str, Any]:
    facts = {"file": name, "sha256": name * 8, "bytes": 2_500_000, "backend": backend, "device": "cpu"}
    return {**facts, "precision": "fp32", "spec_digest": "0123456789ab"}


def write(path: Path, record: dict[str, Any]) -> str:
    path.write_text(json.dumps(record))
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    def evaluation(name: str, score: float) -> dict[str, Any]:
        means = {"ap50": score, "ap75": score / 2, "map": score / 3}
        return {**means, "model": model(name), "version": "1.0", "images": 60}

    def speed(name: str, batch: int, p50: float) -> dict[str, Any]:
        latency = {"p50": p50, "p90": p50 + 1, "p99": p50 + 2}
        return {"model": model(name), "batch": batch, "latency_ms": latency, "images_per_second": 1e3 / p50}

    timed = {"hardware": {"cpu": "a CPU"}, "date": "2026-11-22T12:00:00+00:00"}
    timed["results"] = [speed("a.onnx", 1, 10.0), speed("a.onnx", 4, 32.0), speed("c.onnx", 1, 7.0)]
    return {
        "a": write(tmp_path / "a.json", evaluation("a.onnx", 0.75)),
        "b": write(tmp_path / "b.json", evaluation("b.onnx", 0.5)),
        "bench": write(tmp_path / "bench.json", timed),
    }


def test_results_do_not_take_the_place_of_the_model(
    tiny_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """`--json model.onnx` left three lines of JSON of it."""
    model = Path(shutil.copy(tiny_onnx, tmp_path / "model.onnx"))
    command = ["--model", str(model), "--repeat", "1", "--warmup", "0"]
    both = str(tmp_path / "both")
    for flags in (["--json", str(model)], ["--json", both, "--markdown", both]):
        assert bench.main([*command, *flags]) == 2
        message = capsys.readouterr().err
        assert message.startswith("bench: error: --")
        assert "the same file as" in message
        assert message.count("\n") == 1
    assert model.read_bytes() == tiny_onnx.read_bytes()
    assert not (tmp_path / "both").exists()


def test_report_joins_files_of_the_same_model(files: dict[str, str], tmp_path: Path) -> None:
    out, plot = tmp_path / "out" / "report.md", tmp_path / "out" / "pareto.png"
    command = ["--eval", files["a"], "--eval", files["b"], "--bench", files["bench"], "--out", str(out)]
    assert report.main([*command, "--plot", str(plot)]) == 0
    lines = out.read_text().splitlines()
    assert lines[2:6] == [
        "| a.onnx (ONNX Runtime) | fp32 | 75.00 | 37.50 | 25.00 | – | – | 1 | 10.0 | 11.0 | 100.00 | 2.5 |",
        "| a.onnx (ONNX Runtime) | fp32 | 75.00 | 37.50 | 25.00 | – | – | 4 | 32.0 | 33.0 | 31.25 | 2.5 |",
        "| b.onnx (ONNX Runtime) | fp32 | 50.00 | 25.00 | 16.67 | -25.00 | -8.33 | – | – | – | – | 2.5 |",
        "| c.onnx (ONNX Runtime) | fp32 | – | – | – | – | – | 1 | 7.0 | 8.0 | 142.86 | 2.5 |",
    ]
    assert "![mAP over latency](pareto.png)" in out.read_text()
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_what_a_file_is_called_is_text(files: dict[str, str], tmp_path: Path) -> None:
    record = json.loads(Path(files["a"]).read_text())
    record["model"]["file"] = "a|b<script>\n\n# c ![d](http://e)"
    out = tmp_path / "report.md"
    assert report.main(["--eval", write(tmp_path / "x.json", record), "--out", str(out)]) == 0
    row = out.read_text().splitlines()[2]
    assert row.startswith(r"| a\|b\<script> # c !\[d](http://e) (ONNX Runtime) | fp32 | 75.00 |")


def test_several_scales_are_named_and_have_no_speed(files: dict[str, str], tmp_path: Path) -> None:
    """AP of three times as many calls beside the time of one would be a wrong row."""
    several = json.loads(Path(files["a"]).read_text()) | {"settings": {"scales": [0.5, 1.0, 1.5]}}
    path = write(tmp_path / "several.json", several)
    out = tmp_path / "report.md"
    assert report.main(["--eval", path, "--bench", files["bench"], "--out", str(out)]) == 0
    first, second = out.read_text().splitlines()[2:4]
    assert first.startswith("| a.onnx (ONNX Runtime), scales 0.5 1 1.5 | fp32 | 75.00 |")
    assert first.endswith("| – | – | – | – | 2.5 |")
    assert second.startswith("| a.onnx (ONNX Runtime) | fp32 | – |")


def test_result_files_of_any_detector_are_rows(files: dict[str, str], tmp_path: Path) -> None:
    record = json.loads(Path(files["b"]).read_text())
    del record["model"]
    path, out = write(tmp_path / "s.json", record | {"source": "theirs/s2anet"}), tmp_path / "report.md"
    assert report.main(["--eval", files["a"], "--eval", path, "--out", str(out)]) == 0
    row = "| theirs/s2anet (Task 1 files) | – | 50.00 | 25.00 | 16.67 | -25.00 | -8.33 | – | – | – | – | – |"
    assert out.read_text().splitlines()[3] == row
    assert "different specs" not in out.read_text()


def test_engines_that_were_only_built_are_rows_that_say_so(
    files: dict[str, str], tiny_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX: pip install 'rgfl[rtx]'")
    engine, out = tmp_path / "tiny.fp16.engine", tmp_path / "r.md"
    assert to_trt.main([str(tiny_onnx), "--fp16", "--backend", "rtx", "--out", str(engine)]) == 0
    command = ["--eval", files["a"], "--engine", str(engine), "--out", str(out)]
    assert report.main(command) == 0
    size = f"{engine.stat().st_size / 1e6:.1f}"
    assert f"| tiny.fp16.engine (TensorRT for RTX) | fp16 {'| – ' * 9}| {size} |" in out.read_text()
    assert "built here and did not run" in out.read_text()

    engine.with_name(f"{engine.name}.json").unlink()
    capsys.readouterr()
    assert report.main(command) == 2
    assert "no tiny.fp16.engine.json of this engine" in capsys.readouterr().err


def test_report_says_what_is_wrong(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = ["--out", str(tmp_path / "r.md")]
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    (deep := tmp_path / "deep.json").write_text("[" * 100_000)

    def without(name: str, *way: str) -> str:
        holder = record = json.loads(Path(files[name]).read_text())
        for key in way[:-1]:
            holder = holder[key]
        del holder[way[-1]]
        return write(tmp_path / f"{name}_without_{way[-1]}.json", record)

    for flags, expected in (
        ([], "nothing to report"),
        (["--eval", str(tmp_path / "none.json")], "none.json: No such file"),
        (["--eval", str(broken)], "no JSON"),
        (["--eval", str(deep)], "no JSON"),
        (["--eval", without("a", "map")], "eval_dota.py --json writes (KeyError: 'map')"),
        (["--eval", without("a", "model", "bytes")], "--json writes (KeyError: 'bytes')"),
        (["--bench", without("bench", "date")], "bench.py --json writes (KeyError: 'date')"),
        (["--eval", files["bench"]], "eval_dota.py --json writes"),
        (["--eval", files["b"], "--plot", str(tmp_path / "p.png")], "both evaluated and timed"),
        (["--eval", files["a"], "--plot", str(tmp_path / "p")], "ends in .png, .svg or .pdf"),
        (["--eval", files["a"], "--plot", str(tmp_path / "p.xyz")], "ends in .png, .svg or .pdf"),
        (["--eval", files["a"], "--plot", str(tmp_path)], "expected a file, this is a directory"),
        (["--eval", files["a"], "--plot", str(tmp_path / "r.md")], "the same file as"),
        (["--eval", files["a"], "--out", files["a"]], "the same file as"),
    ):
        assert report.main([*out, *flags]) == 2
        message = capsys.readouterr().err
        assert message.startswith("report: error: ")
        assert expected in message
    assert not (tmp_path / "r.md").exists()


def test_report_says_where_its_numbers_come_from(files: dict[str, str], tmp_path: Path) -> None:
    rounded = json.loads(Path(files["b"]).read_text())
    rounded["model"] |= {"precision": "fp16-rounded", "spec_digest": "another"}
    out = tmp_path / "report.md"
    command = ["--eval", files["a"], "--eval", write(tmp_path / "c.json", rounded), "--bench", files["bench"]]
    assert report.main([*command, "--out", str(out)]) == 0
    text = out.read_text()
    for note in (
        "AP in percent: DOTA-v1.0 Task 1, official 11-point rule, 60 full images",
        "fp16-rounded: FP32 arithmetic",
        "The models carry different specs: 0123456789ab, another.",
        "Latency of a whole call, pixels to detections, 2026-11-22: cpu a CPU.",
    ):
        assert f"\n* {note}" in text


def test_speeds_of_another_device_are_rows_of_their_own(files: dict[str, str], tmp_path: Path) -> None:
    timed = json.loads(Path(files["bench"]).read_text())
    timed["results"][0]["model"]["device"] = "another"
    path, out = write(tmp_path / "other.json", timed), tmp_path / "report.md"
    assert report.main(["--eval", files["a"], "--bench", path, "--out", str(out)]) == 0
    rows = [line.split(" | ")[2:9:5] for line in out.read_text().splitlines()[2:5]]  # AP50, batch
    assert rows == [["75.00", "4"], ["–", "1"], ["–", "1"]]


def test_the_plot_joins_what_nothing_beats_at_its_smallest_batch(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib import pyplot

    figures: list[Any] = []
    monkeypatch.setattr(pyplot, "close", figures.append)
    timed = json.loads(Path(files["bench"]).read_text())
    first, larger_batch, _ = timed["results"]
    slower = {**first, "model": model("b.onnx"), "latency_ms": {**first["latency_ms"], "p50": 20.0}}
    timed["results"] = [larger_batch, first, slower]  # b is worse, too
    command = ["--eval", files["a"], "--eval", files["b"], "--bench", write(tmp_path / "t.json", timed)]
    assert report.main([*command, "--out", str(tmp_path / "r.md"), "--plot", str(tmp_path / "p.png")]) == 0
    axes = figures[0].axes[0]
    names = [f"{name}.onnx (ONNX Runtime), fp32, batch 1" for name in "ab"]
    assert axes.get_legend_handles_labels()[1] == names
    assert [points.get_offsets().tolist() for points in axes.collections] == [
        [[10.0, 25.0]],
        [[20.0, pytest.approx(50 / 3)]],
    ]
    assert axes.lines[0].get_xydata().tolist() == [[10.0, 25.0]]
