"""Numbers to tables: the benchmark's record, and the report that joins it with evaluations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rgfl.export import to_trt
from rgfl.trt_runtime import bench, report


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
    assert "built here and not run" in out.read_text()

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
    for flags, expected in (
        ([], "nothing to report"),
        (["--eval", str(tmp_path / "none.json")], "none.json: No such file"),
        (["--eval", str(broken)], "no JSON"),
        (["--eval", files["bench"]], "eval_dota.py --model --json writes"),
        (["--eval", files["b"], "--plot", str(tmp_path / "p.png")], "both evaluated and timed"),
    ):
        assert report.main([*flags, *out]) == 2
        message = capsys.readouterr().err
        assert message.startswith("report: error: ")
        assert expected in message
    assert not (tmp_path / "r.md").exists()
