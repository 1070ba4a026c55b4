"""The plugin object does what TensorRT asks of it; plugin_harness.cpp asks in TensorRT's place."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from plugin_libraries import compile_cpp, skip_without_gpu

from rgfl.plugins.build import find_toolchain, library_folders

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


@pytest.mark.gpu
def test_enqueue_on_the_gpu(tmp_path: Path, built_library: Path) -> None:
    skip_without_gpu()
    tools = find_toolchain()
    command = [tools.nvcc, "-std=c++17", "-isystem", tools.tensorrt_include, HARNESS, "-ldl"]
    command += [*(f"-L{folder}" for folder in library_folders(tools.nvcc)), "-o", tmp_path / "harness"]
    subprocess.run(list(map(str, command)), check=True)
    run(tmp_path / "harness", built_library, "enqueue")
