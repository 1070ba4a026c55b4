"""How the tests compile the plugins for a machine without a GPU, and when they skip."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rgfl.plugins.build import CODE_FLAGS
from rgfl.plugins.build import HERE as PLUGINS

EMULATOR = Path(__file__).parent / "plugins" / "emulator"
sys.path.append(str(EMULATOR))  # ptx.py
# As the core on the CPU: no contraction, so that sums round as on the GPU.
COMPILE = ["c++", "-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-pthread"]
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]

CHECKED = ["-fsanitize=thread", "--param", "tsan-distinguish-volatile=1"]


def compile_cpp(
    output: Path, sources: list[Path], *arguments: str, libraries: list[Path] | None = None
) -> Path:
    """Compiles .cpp and .cu files against the emulated CUDA runtime."""
    command = [*COMPILE, *WARNINGS, *arguments, f"-I{EMULATOR}", f"-I{PLUGINS}"]
    command += ["-x", "c++", *map(str, sources), "-x", "none", "-ldl", "-o", str(output)]
    for library in libraries or []:
        command += [str(library), f"-Wl,-rpath,{library.parent}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return output


def compile_kernels(folder: Path, sources: Path = PLUGINS / "cuda", ptx: str | None = None) -> Path:
    """The launcher of the CUDA kernels and these themselves, to run on the CPU with every access checked.

    With PTX, what runs are its kernels.
    """
    objects = [
        # A call before each access, which emulator/checker.cpp answers: so the linker hears nothing of it.
        compile_cpp(folder / f"{name}.o", [sources / name], f"-I{sources.parent}", "-c", *CHECKED)
        for name in ("rotated_nms.cu", "c_api.cpp")
    ]
    if ptx is not None:
        from ptx import translate

        translated = folder / "translated.cpp"
        translated.write_text(translate(ptx))
        # One memory is read as several types, and many registers are read by nobody.
        quiet = ("-fno-strict-aliasing", "-Wno-unused-variable", "-Wno-unused-but-set-variable")
        objects.append(compile_cpp(folder / "translated.o", [translated], "-c", *quiet))
    emulator = [EMULATOR / "emulator.cpp", EMULATOR / "checker.cpp"]
    return compile_cpp(folder / "libkernels.so", emulator, "-shared", libraries=objects)


def ptx_of_kernels(folder: Path, nvcc: Path, architecture: int, sources: Path = PLUGINS / "cuda") -> str:
    """What nvcc makes of the kernels for GPUs of this generation and later ones."""
    command = [
        nvcc,
        "-ptx",
        *CODE_FLAGS,
        f"-arch=compute_{architecture}",
        f"-I{sources.parent}",
        f"-I{PLUGINS}",
    ]
    command += [sources / "rotated_nms.cu", "-o", folder / "kernels.ptx"]
    subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    return (folder / "kernels.ptx").read_text()


def skip_without_gpu(count: int = 1) -> None:
    """Skips the running test where PyTorch sees no GPU, or fewer than it needs."""
    torch = pytest.importorskip("torch", reason="the GPU tests allocate with PyTorch")
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU; this machine has none")
    if torch.cuda.device_count() < count:
        pytest.skip(f"needs {count} NVIDIA GPUs; this machine has {torch.cuda.device_count()}")
