"""Libraries under test: the kernels and the plugin compiled for the CPU emulator, and the real build."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from plugin_libraries import PLUGINS, compile_cpp

import rgfl.plugins
from rgfl.plugins.build import BuildError, find_nvcc, find_tensorrt_include, is_current

sys.path.append(str(Path(__file__).parents[1] / "trt_runtime"))  # stand_ins.py


@pytest.fixture(scope="session")
def tensorrt_include() -> Path:
    """TensorRT's headers."""
    try:
        return find_tensorrt_include()
    except BuildError as error:
        pytest.skip(f"no TensorRT headers; run `python -m rgfl.plugins.build --fetch`: {error}")


@pytest.fixture(scope="session")
def nvcc() -> Path:
    """The CUDA compiler."""
    try:
        return find_nvcc()
    except BuildError as error:
        pytest.skip(f"no CUDA compiler; run `python -m rgfl.plugins.build --fetch`: {error}")


@pytest.fixture(scope="session")
def emulated_plugin(
    tmp_path_factory: pytest.TempPathFactory, tensorrt_include: Path, emulated_kernels: Path
) -> Path:
    """The plugin library, on kernels that run on the CPU."""
    sources = sorted(PLUGINS.glob("tensorrt/*.cpp"))
    output = tmp_path_factory.mktemp("emulated") / "libplugin.so"
    arguments = ["-shared", "-isystem", str(tensorrt_include)]
    return compile_cpp(output, sources, *arguments, libraries=[emulated_kernels])


@pytest.fixture(scope="session")
def built_library() -> Path:
    """The library as it ships, with machine code for GPUs."""
    try:
        library = rgfl.plugins.library()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    if not is_current(library):
        pytest.fail(f"{library} is older than its sources: python -m rgfl.plugins.build")
    return library


@pytest.fixture(scope="session")
def dynamic_section(built_library: Path) -> str:
    """What the library asks of the loader, as readelf prints it."""
    if sys.platform != "linux":
        pytest.skip("reads ELF files")
    return subprocess.run(["readelf", "-d", built_library], capture_output=True, text=True, check=True).stdout
