"""Libraries under test: the kernels and the plugin compiled for the CPU emulator, and the real build."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from plugin_libraries import PLUGINS, compile_cpp, compile_kernels, ptx_of_kernels
from ptx import PtxError

import rgfl.plugins
from rgfl.plugins.build import BuildError, Toolchain, find_nvcc, find_tensorrt_include

sys.path.append(str(Path(__file__).parents[1] / "trt_runtime"))  # stand_ins.py

KNOWN_RELEASE = "release 13.0"  # of nvcc, whose PTX the tests can translate


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
def ptx_kernels(tmp_path_factory: pytest.TempPathFactory, nvcc: Path) -> Callable[[int], Path]:
    """The kernels as nvcc compiles them for a generation of GPUs, translated for the CPU emulator."""

    @functools.cache
    def compiled(architecture: int) -> Path:
        folder = tmp_path_factory.mktemp("ptx")
        if architecture not in Toolchain(nvcc, folder).architectures():
            pytest.skip(f"{nvcc} knows no compute capability {architecture / 10}")
        ptx = ptx_of_kernels(folder, nvcc, architecture)
        try:
            return compile_kernels(folder, ptx=ptx)
        except PtxError as error:
            if KNOWN_RELEASE in ptx:
                raise
            pytest.skip(f"{nvcc} writes other instructions than {KNOWN_RELEASE}: {error}")

    return compiled


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
        if rgfl.plugins.LIBRARY.exists():  # of other sources
            pytest.fail(str(error))
        pytest.skip(str(error))
    return library


@pytest.fixture(scope="session")
def dynamic_section(built_library: Path) -> str:
    """What the library asks of the loader, as readelf prints it."""
    if sys.platform != "linux":
        pytest.skip("reads ELF files")
    return subprocess.run(["readelf", "-d", built_library], capture_output=True, text=True, check=True).stdout
