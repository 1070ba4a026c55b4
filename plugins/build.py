"""Compiles the CUDA kernel and the TensorRT plugin into plugins/lib/librgfl_plugins.so.

    python -m rgfl.plugins.build                        with the CUDA toolkit and TensorRT headers found
    python -m rgfl.plugins.build --fetch                what is missing comes from PyPI, into build/
    python -m rgfl.plugins.build --arch 90              for one GPU generation, in a few seconds
    python -m rgfl.plugins.build --tensorrt-include DIR

No GPU is needed. Nothing happens when the library is up to date with the sources and the compiler.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rgfl import atomic
from rgfl.errors import one_line
from rgfl.plugins import HERE, LIBRARY, LINUX_ONLY, recorded, sources, sources_digest

# Machine code for each generation since Turing; newer GPUs compile the PTX of the last one when they
# load it. Code for x.y also runs on x.z > x.y. The same list stands in CMakeLists.txt.
ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 103, 110, 120)

# A whole compiler and the headers of TensorRT 10.14 from PyPI. They are installed into a folder of their
# own, because PyTorch pins other versions of some of them.
COMPILER_PACKAGES = (
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
)
HEADER_PACKAGES = ("kernel-lens==2.0.1",)
FETCHED = HERE.parent / "build" / "plugin-compiler"

# --fmad=false: a fused multiply-add rounds once where the CPU rounds twice, and then a suppression that
# sits on the threshold could fall differently.
CODE_FLAGS = ("-std=c++17", "-O3", "--fmad=false")
# -z nodelete: TensorRT unloads plugin libraries that engines brought along when their registry goes, and CUDA
# still holds this one's kernels.
FLAGS = (
    *CODE_FLAGS,
    "-shared",
    "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra",
    "-Xlinker=--exclude-libs=ALL,-z,nodelete",
    "-cudart=static",
)


class BuildError(RuntimeError):
    """Something needed is missing, or the compiler failed; the message says what to do."""


@dataclass(frozen=True)
class Toolchain:
    """What compiles: nvcc, and the folder of NvInferRuntime.h."""

    nvcc: Path
    tensorrt_include: Path

    def version(self) -> str:
        """The last line of `nvcc --version`, which names the build."""
        return _output(self.nvcc, "--version").strip().splitlines()[-1]

    def architectures(self) -> tuple[int, ...]:
        """Those of ARCHITECTURES that this nvcc knows."""
        known = {int(code) for code in re.findall(r"sm_(\d+)\b", _output(self.nvcc, "--list-gpu-code"))}
        return tuple(arch for arch in ARCHITECTURES if arch in known)


def library_folders(nvcc: Path) -> list[Path]:
    """Where the static CUDA runtime lies, if not where nvcc looks by itself: PyPI's layout."""
    return [folder for folder in [nvcc.resolve().parent.parent / "lib"] if folder.is_dir()]


# ---- finding ---------------------------------------------------------------------------------------------


def _site_folders(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    return [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []


def _nvcc_candidates(given: Path | None) -> Iterator[tuple[str, Path]]:
    if given is not None:
        yield "--nvcc", given
        return
    if "CUDACXX" in os.environ:
        yield "CUDACXX", Path(os.environ["CUDACXX"])
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if name in os.environ:
            yield name, Path(os.environ[name]) / "bin" / "nvcc"
    if on_path := shutil.which("nvcc"):
        yield "PATH", Path(on_path)
    yield "the system", Path("/usr/local/cuda/bin/nvcc")
    for folder in _site_folders("nvidia"):
        yield "this Python", folder / "cu13" / "bin" / "nvcc"
    yield "--fetch", FETCHED / "nvidia" / "cu13" / "bin" / "nvcc"


def _header_candidates(given: Path | None) -> Iterator[tuple[str, Path]]:
    if given is not None:
        yield "--tensorrt-include", given
        return
    for name in ("TENSORRT_ROOT", "TENSORRT_DIR", "TRT_ROOT"):
        if name in os.environ:
            yield name, Path(os.environ[name]) / "include"
    for folder in (
        "include/x86_64-linux-gnu",
        "include/aarch64-linux-gnu",
        "include",
        "local/tensorrt/include",
    ):
        yield "the system", Path("/usr") / folder
    yield "the system", Path("/opt/tensorrt/include")
    for package in _site_folders("kernel_lens"):
        yield "this Python", package / "include" / "tensorrt"
    yield "--fetch", FETCHED / "kernel_lens" / "include" / "tensorrt"


def _tensorrt_major(include: Path) -> int | None:
    """The major version of the headers in a folder; None where there are none."""
    version = include / "NvInferVersion.h"
    if not (include / "NvInferRuntime.h").is_file() or not version.is_file():
        return None
    text = version.read_text(encoding="utf-8", errors="replace")
    found = re.search(r"#define (?:NV_TENSORRT_MAJOR|TRT_MAJOR_ENTERPRISE) (\d+)", text)
    return int(found[1]) if found else None


def find_nvcc(given: Path | None = None) -> Path:
    """The CUDA compiler, from the option, the environment, the system, this Python, or `--fetch`.

    Raises:
        BuildError: there is none; the message lists the places and the remedies.
    """
    looked = list(_nvcc_candidates(given))
    for _, path in looked:
        if path.is_file() and os.access(path, os.X_OK):
            return path
    raise BuildError(
        _missing(
            "the CUDA compiler (nvcc)",
            looked,
            "install the CUDA toolkit 12 or newer and put its nvcc on PATH, or name it with --nvcc or "
            "CUDA_HOME, or add --fetch to take a compiler from PyPI (270 MB unpacked)",
        )
    )


def find_tensorrt_include(given: Path | None = None) -> Path:
    """The folder with TensorRT's headers, 10 or newer.

    Raises:
        BuildError: there is none; the message lists the places and the remedies.
    """
    looked = list(_header_candidates(given))
    too_old = []
    for _, path in looked:
        major = _tensorrt_major(path)
        if major is not None and major >= 10:
            return path
        if major is not None:
            too_old.append(f"{path} holds those of TensorRT {major}; the plugin interface V3 came with 10")
    raise BuildError(
        _missing(
            "the headers of TensorRT 10 or newer (NvInferRuntime.h)",
            looked,
            "name their folder with --tensorrt-include or an SDK root with TENSORRT_ROOT, or add --fetch to "
            "take the headers from PyPI (TensorRT's own wheels have none)",
            too_old,
        )
    )


def _missing(what: str, looked: Sequence[tuple[str, Path]], remedy: str, notes: Sequence[str] = ()) -> str:
    lines = [f"cannot find {what}", "looked at:"]
    lines += [f"  {path}  ({source})" for source, path in looked]
    lines += [f"note: {note}" for note in notes]
    lines.append(f"to do: {remedy}")
    return "\n".join(lines)


def fetch(packages: Sequence[str]) -> None:
    """Installs packages from PyPI into `FETCHED`, beside whatever it already holds."""
    if importlib.util.find_spec("pip") is None:
        raise BuildError(
            "this environment has no pip to fetch with: python -m ensurepip, or uv pip install pip"
        )
    print(f"fetching {', '.join(packages)} into {FETCHED}", flush=True)
    FETCHED.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FETCHED.parent) as temporary:
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--only-binary=:all:",  # building a source package runs its code
        ]
        done = subprocess.run([*command, "--target", temporary, *packages], check=False)
        if done.returncode != 0:
            raise BuildError(f"pip could not install {', '.join(packages)}; see its message above")
        shutil.copytree(temporary, FETCHED, dirs_exist_ok=True, symlinks=True)


def find_toolchain(
    nvcc: Path | None = None, tensorrt_include: Path | None = None, *, may_fetch: bool = False
) -> Toolchain:
    """Compiler and headers; with `may_fetch`, what is not there comes from PyPI.

    Raises:
        BuildError: one of them is missing, or this is not Linux.
    """
    if sys.platform != "linux":
        raise BuildError(LINUX_ONLY)
    if may_fetch:
        missing: list[str] = []
        for find, given, packages in (
            (find_nvcc, nvcc, COMPILER_PACKAGES),
            (find_tensorrt_include, tensorrt_include, HEADER_PACKAGES),
        ):
            try:
                find(given)
            except BuildError:
                if given is not None:
                    raise
                missing += packages
        if missing:
            fetch(missing)
    return Toolchain(find_nvcc(nvcc), find_tensorrt_include(tensorrt_include))


# ---- compiling -------------------------------------------------------------------------------------------


def compile_command(
    tools: Toolchain, architectures: Sequence[int], output: Path, *, strict: bool
) -> list[str]:
    """The one command that makes the library."""
    command = [str(tools.nvcc), *FLAGS, f"-I{HERE}"]
    # The compiler looks there by itself, after the C++ headers: before them, these do not find math.h.
    if tools.tensorrt_include.resolve() != Path("/usr/include"):
        command += ["-isystem", str(tools.tensorrt_include)]
    for arch in architectures:
        command += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
    newest = max(architectures)
    command += ["-gencode", f"arch=compute_{newest},code=compute_{newest}"]
    command += [f"-L{folder}" for folder in library_folders(tools.nvcc)]
    if strict:
        command += ["-Werror=all-warnings", "-Xcompiler=-Werror"]
    command += [f"--threads={min(os.cpu_count() or 1, len(architectures))}"]
    return [*command, *map(str, sources()), "-o", str(output)]


def _digest(tools: Toolchain, command: Sequence[str]) -> str:
    parts = (" ".join(command), tools.version(), sources_digest())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def build(
    tools: Toolchain,
    architectures: Sequence[int] | None = None,
    *,
    output: Path = LIBRARY,
    strict: bool = False,
    force: bool = False,
) -> Path:
    """Makes the library where it is missing or older than its sources. It appears whole or not at all.

    Raises:
        BuildError: the compiler failed.
    """
    archs = tuple(architectures) if architectures else tools.architectures()
    digest = _digest(tools, compile_command(tools, archs, output, strict=strict))
    if not force and output.exists() and recorded(output, "digest") == digest:
        print(f"{output} is up to date")
        return output
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        temporary = Path(folder) / output.name
        command = compile_command(tools, archs, temporary, strict=strict)
        print(
            f"compiling for {', '.join(f'{a // 10}.{a % 10}' for a in archs)} with {tools.version()}",
            flush=True,
        )
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        messages = (done.stdout + done.stderr).strip()
        if done.returncode != 0:
            raise BuildError(f"the compiler failed:\n{' '.join(command)}\n{messages}")
        if messages:
            print(messages)
        output.with_suffix(".json").unlink(missing_ok=True)
        temporary.replace(output)
    record = {
        "digest": digest,
        "sources": sources_digest(),
        "architectures": archs,
        "compiler": tools.version(),
        "messages": messages,
    }
    atomic.write_text(output.with_suffix(".json"), json.dumps(record, indent=1))
    print(f"wrote {output}")
    return output


def _output(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(map(str, command))} failed: {(done.stdout + done.stderr).strip()}")
    return done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see the top of the file."""
    parser = argparse.ArgumentParser(
        prog="python -m rgfl.plugins.build", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--nvcc", type=Path, help="the CUDA compiler to use")
    parser.add_argument(
        "--tensorrt-include", type=Path, help="folder with NvInferRuntime.h, version 10 or newer"
    )
    parser.add_argument("--fetch", action="store_true", help="take what is missing from PyPI, into build/")
    parser.add_argument(
        "--arch", type=int, action="append", metavar="N", help="compute capability, as 90 for 9.0; repeatable"
    )
    parser.add_argument("--strict", action="store_true", help="treat warnings as errors")
    parser.add_argument("--force", action="store_true", help="build even if up to date")
    options = parser.parse_args(arguments)
    try:
        tools = find_toolchain(options.nvcc, options.tensorrt_include, may_fetch=options.fetch)
        build(tools, options.arch, strict=options.strict, force=options.force)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
