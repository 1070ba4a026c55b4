"""The plugin object does what TensorRT asks of it; plugin_harness.cpp asks in TensorRT's place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from plugin_libraries import compile_cpp, skip_without_gpu

from rgfl.plugins.build import library_folders

HARNESS = Path(__file__).parent / "plugin_harness.cpp"
CHECKS = ["identity", "shapes", "impossible_shapes", "types", "serialisation", "attributes", "workspace"]


def run(harness: Path, library: Path, check: str) -> None:
    done = subprocess.run([harness, library, check], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory, tensorrt_include: Path) -> Path:
    """On the CPU: memory and launches are the emulator's."""
    output = tmp_path_factory.mktemp("harness") / "harness"
    return compile_cpp(output, [HARNESS], "-isystem", str(tensorrt_include))


@pytest.mark.parametrize("check", CHECKS)
def test_library_as_it_ships(harness: Path, built_library: Path, check: str) -> None:
    run(harness, built_library, check)


@pytest.mark.parametrize("check", [*CHECKS, "enqueue"])
def test_emulated(harness: Path, emulated_plugin: Path, check: str) -> None:
    run(harness, emulated_plugin, check)


@pytest.fixture(scope="module")
def gpu_harness(tmp_path_factory: pytest.TempPathFactory, nvcc: Path, tensorrt_include: Path) -> Path:
    """On the GPU: memory and launches are CUDA's."""
    output = tmp_path_factory.mktemp("gpu_harness") / "harness"
    command = [nvcc, "-std=c++17", "-isystem", tensorrt_include, HARNESS, "-ldl", "-o", output]
    command += [f"-L{folder}" for folder in library_folders(nvcc)]
    subprocess.run(list(map(str, command)), check=True)
    return output


def test_the_harness_of_the_gpu_test_runs(gpu_harness: Path, built_library: Path) -> None:
    run(gpu_harness, built_library, "workspace")


@pytest.mark.gpu
def test_enqueue_on_the_gpu(gpu_harness: Path, built_library: Path) -> None:
    skip_without_gpu()
    run(gpu_harness, built_library, "enqueue")


@pytest.mark.parametrize(
    ("hidden", "reason"),
    [("_header_candidates", "no TensorRT headers"), ("_nvcc_candidates", "no CUDA compiler")],
)
def test_on_a_gpu_without_what_compiles_it_skips(hidden: str, reason: str) -> None:
    """It raised BuildError, on a machine with PyTorch and a GPU alone."""
    pytest.importorskip("torch", reason="needs PyTorch: pip install 'rgfl[train]'")
    program = (
        "import sys, pytest, torch\n"
        "from rgfl.plugins import build\n"
        f"build.{hidden} = lambda given: []\n"
        "torch.cuda.is_available = lambda: True\n"
        "sys.exit(pytest.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", program, "-m", "gpu", "-rs", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert reason in done.stdout
    assert "1 skipped" in done.stdout
