"""The build finds its tools or says what is missing, and does nothing when nothing changed."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import rgfl.plugins
from rgfl.plugins import LIBRARY, attributes, build, library
from rgfl.plugins.build import ARCHITECTURES, BuildError, Toolchain
from rgfl.spec import DetectorSpec


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with neither a CUDA compiler nor TensorRT headers."""
    for name in ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "TENSORRT_ROOT", "TENSORRT_DIR", "TRT_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build, "FETCHED", tmp_path / "fetched")
    monkeypatch.setattr(build, "_site_folders", lambda package: [])
    return tmp_path


def write_nvcc(folder: Path, body: str) -> Path:
    """A compiler of three lines, which answers as nvcc does."""
    folder.mkdir(parents=True, exist_ok=True)
    nvcc = folder / "nvcc"
    nvcc.write_text(
        "#!/bin/sh\n"
        'case "$1" in --version) echo "Build fake";; --list-gpu-code) echo sm_80; echo sm_90;;\n'
        f"*) {body};; esac\n"
    )
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IXUSR)
    return nvcc


def write_headers(folder: Path, major: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "NvInferRuntime.h").touch()
    (folder / "NvInferVersion.h").write_text(f"#define TRT_MAJOR_ENTERPRISE {major}\n")
    return folder


def test_a_missing_compiler_is_named_with_the_places_and_the_remedies(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(bare / "cuda"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(BuildError) as error:
        build.find_nvcc()
    for part in ("nvcc", str(bare / "cuda" / "bin" / "nvcc"), "CUDA_HOME", "--nvcc", "--fetch"):
        assert part in str(error.value)


def test_a_file_of_that_name_in_the_current_folder_is_no_compiler(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nvcc(bare / "here", "true")
    write_nvcc(build.FETCHED / "nvidia" / "cu13" / "bin", "true")
    monkeypatch.chdir(bare / "here")
    assert build.find_nvcc().is_absolute()


def test_missing_headers_are_named_with_the_places_and_the_remedies(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_tensorrt_major", lambda folder: None)
    monkeypatch.setenv("TENSORRT_ROOT", str(bare / "sdk"))
    with pytest.raises(BuildError) as error:
        build.find_tensorrt_include()
    for part in ("NvInferRuntime.h", str(bare / "sdk" / "include"), "--tensorrt-include", "--fetch"):
        assert part in str(error.value)


def test_headers_of_tensorrt_8_are_refused_by_name(bare: Path) -> None:
    old = write_headers(bare / "old", 8)
    with pytest.raises(BuildError, match="holds those of TensorRT 8"):
        build.find_tensorrt_include(old)


def test_headers_are_found_in_an_sdk_root(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    include = write_headers(bare / "sdk" / "include", 10)
    monkeypatch.setenv("TENSORRT_ROOT", str(bare / "sdk"))
    assert build.find_tensorrt_include() == include


@pytest.mark.parametrize("linked", [False, True])
def test_the_systems_own_folder_of_headers_is_not_put_before_those_of_cpp(bare: Path, linked: bool) -> None:
    """C++'s math.h includes the system's as the next one behind its own: "math.h not found"."""
    folder = Path("/usr/include")
    if linked:
        folder = bare / "include"
        folder.symlink_to("/usr/include")
    tools = Toolchain(write_nvcc(bare / "bin", "true"), folder)
    assert "-isystem" not in build.compile_command(tools, (90,), bare / "x.so", strict=False)
    other = Toolchain(tools.nvcc, Path("/usr/include/x86_64-linux-gnu"))
    assert "/usr/include/x86_64-linux-gnu" in build.compile_command(other, (90,), bare / "x.so", strict=False)


@pytest.mark.parametrize("flags", [[], ["--fetch"]])
def test_elsewhere_than_on_linux_one_line_says_so(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """On Windows nvcc failed at flags of GCC."""
    monkeypatch.setattr(build, "fetch", lambda *_: pytest.fail("fetched first"))
    monkeypatch.setattr(sys, "platform", "win32")
    assert build.main(flags) == 1
    assert capsys.readouterr().err == "error: the plugin builds on Linux only\n"
    with pytest.raises(FileNotFoundError, match="the plugin builds on Linux only"):
        library()


def test_fetches_only_what_is_missing(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []

    def fetch(packages: list[str]) -> None:
        fetched.extend(packages)
        write_headers(build.FETCHED / "kernel_lens" / "include" / "tensorrt", 10)

    monkeypatch.setattr(build, "fetch", fetch)
    monkeypatch.setattr(
        build,
        "_header_candidates",
        lambda given: [("--fetch", build.FETCHED / "kernel_lens/include/tensorrt")],
    )
    nvcc = write_nvcc(bare / "bin", "true")
    tools = build.find_toolchain(nvcc, may_fetch=True)
    assert fetched == list(build.HEADER_PACKAGES)
    assert tools.nvcc == nvcc


def test_what_is_fetched_runs_no_code_of_its_own(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip would build a package that has no wheel."""
    ran: list[list[str]] = []
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: ran.append(command) or SimpleNamespace(returncode=0)
    )
    build.fetch(build.HEADER_PACKAGES)
    assert "--only-binary=:all:" in ran[0]


def test_builds_once_and_again_when_a_source_changed(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    calls = bare / "calls"
    body = f'echo "$@" >> {calls}; for last; do :; done; echo library > "$last"'
    tools = Toolchain(write_nvcc(bare / "bin", body), write_headers(bare / "include", 10))
    output = bare / "out" / "plugin.so"
    source = bare / "one.cu"
    source.write_text("1")
    for module in (build, rgfl.plugins):
        monkeypatch.setattr(module, "sources", lambda: [source])
    monkeypatch.setattr(rgfl.plugins, "LIBRARY", output)
    for _ in range(2):
        build.build(tools, output=output)
    assert len(calls.read_text().splitlines()) == 1
    assert library() == output
    source.write_text("2")
    with pytest.raises(
        FileNotFoundError, match=r"is of another rgfl, .*; run: python -m rgfl\.plugins\.build"
    ):
        library()
    build.build(tools, output=output)
    assert library() == output
    assert len(calls.read_text().splitlines()) == 2
    # This compiler knows two of the architectures; PTX of the newest goes along.
    assert re.findall(r"code=(\w+)", calls.read_text().splitlines()[0]) == ["sm_80", "sm_90", "compute_90"]


def test_a_record_that_was_cut_off_is_no_record(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill while it was written made every later build end in JSONDecodeError."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    tools = Toolchain(
        write_nvcc(bare / "bin", 'for last; do :; done; echo library > "$last"'),
        write_headers(bare / "include", 10),
    )
    output = bare / "out" / "plugin.so"
    build.build(tools, output=output)
    record = output.with_suffix(".json")
    whole = record.read_text()
    for text in (whole[: len(whole) // 2], "", "[]", "{}"):
        record.write_text(text)
        build.build(tools, output=output)
        assert record.read_text() == whole

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        build.build(tools, output=output, force=True)
    assert not record.exists()
    assert [path.name for path in output.parent.iterdir()] == [output.name]


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (PermissionError(13, "Permission denied", "lib/x.so"), 1, "error: lib/x.so: Permission denied"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_the_command_ends_with_one_line(
    error: BaseException,
    status: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(build, "find_toolchain", fails)
    assert build.main([]) == status
    assert capsys.readouterr().err.strip() == line


def test_a_failed_build_leaves_the_old_library(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    output = bare / "out" / "plugin.so"
    output.parent.mkdir()
    output.write_text("old")
    tools = Toolchain(
        write_nvcc(bare / "bin", "echo broken >&2; exit 2"), write_headers(bare / "include", 10)
    )
    with pytest.raises(BuildError, match="broken"):
        build.build(tools, output=output)
    assert output.read_text() == "old"
    assert [file.name for file in output.parent.iterdir()] == ["plugin.so"]


def test_built_for_every_architecture_without_a_warning(built_library: Path) -> None:
    record = json.loads(LIBRARY.with_suffix(".json").read_text())
    if "release" not in record["compiler"] and "cuda_13" not in record["compiler"]:
        pytest.skip(f"the complete list is CUDA 13's; this library is of {record['compiler']}")
    if tuple(record["architectures"]) != ARCHITECTURES:
        pytest.skip(f"this library was built with --arch {record['architectures']}")
    assert record["messages"] == ""


def test_no_kernel_spills_registers(nvcc: Path, tmp_path: Path) -> None:
    """`suppress` is held to 64, so that four blocks fit a multiprocessor."""
    known = build.Toolchain(nvcc, tmp_path).architectures()
    for arch in [arch for arch in (75, 86, 90, 120) if arch in known]:
        command = [nvcc, "-cubin", *build.CODE_FLAGS, "-Xptxas=-v", f"-arch=sm_{arch}"]
        command += [f"-I{build.HERE}", build.HERE / "cuda" / "rotated_nms.cu", "-o", tmp_path / "kernels"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
        report = done.stdout + done.stderr
        assert len(re.findall("Compiling entry function", report)) == 6  # collect for two types of scores
        assert set(re.findall(r"(\d+) bytes spill", report)) == {"0"}, f"sm_{arch}: {report}"


def test_no_unload_unmaps_the_library(built_library: Path, dynamic_section: str) -> None:
    """An engine that brings it along has it unloaded with TensorRT's registry, under CUDA's state of it."""
    assert re.search(r"\(FLAGS_1\).*\bNODELETE\b", dynamic_section), dynamic_section
    program = (
        "import ctypes, sys, _ctypes\n"
        "_ctypes.dlclose(ctypes.CDLL(sys.argv[1])._handle)\n"
        "assert sys.argv[1] in open('/proc/self/maps').read(), 'unmapped'\n"
    )
    subprocess.run([sys.executable, "-c", program, built_library], check=True)


def test_cmake_builds_the_same_architectures_with_the_same_rounding() -> None:
    text = (build.HERE / "CMakeLists.txt").read_text()
    listed = re.search(r"RGFL_ARCHITECTURES ([\d ]+) CACHE", text)
    assert listed is not None
    assert tuple(map(int, listed[1].split())) == ARCHITECTURES
    assert "--fmad=false" in text
    assert "--fmad=false" in build.FLAGS


def run_cmake(*words: object, error: str = "") -> None:
    """It succeeds, or ends with `error`."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("CMake is not installed")
    done = subprocess.run([cmake, *map(str, words)], capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == bool(error), done.stdout + done.stderr
    assert error in " ".join(done.stderr.split())


def configure(
    folder: Path, compiler: Path, nvcc: Path, include: Path, *options: str, error: str = ""
) -> None:
    """`nvcc` is what `compiler` is or calls: CMake tries it, and PyPI's needs its folder of libraries."""
    settings: dict[str, object] = {"TENSORRT_INCLUDE_DIR": include, "CMAKE_CUDA_COMPILER": compiler}
    settings["CMAKE_CUDA_FLAGS"] = " ".join(f"-L{path}" for path in build.library_folders(nvcc))
    defined = [f"-D{name}={value}" for name, value in settings.items()]
    run_cmake("-G", "Unix Makefiles", "-S", build.HERE, "-B", folder, *defined, *options, error=error)


def test_cmake_refuses_the_headers_of_tensorrt_8(tmp_path: Path, nvcc: Path) -> None:
    """The compiler's errors named a base class that was not there."""
    error = "holds the headers of TensorRT 8; the plugin interface V3 came with 10"
    configure(tmp_path / "build", nvcc, nvcc, write_headers(tmp_path / "old", 8), error=error)


def test_cmake_leaves_out_what_the_compiler_does_not_know(
    tmp_path: Path, nvcc: Path, tensorrt_include: Path
) -> None:
    """CUDA 12 knows no 11.0, and the list as it stands is an error there."""
    older = tmp_path / "nvcc"
    older.write_text(
        "#!/bin/sh\n"
        f'if [ "$1" = --list-gpu-code ]; then echo sm_75; echo sm_90; else exec {nvcc.resolve()} "$@"; fi\n'
    )
    older.chmod(0o755)
    configure(tmp_path / "build", older, nvcc, tensorrt_include)
    folder = tmp_path / "build" / "CMakeFiles" / "rgfl_plugins.dir"
    flags = (folder / "flags.make").read_text()
    assert set(re.findall(r"code=\[?(\w+_\d+)", flags)) == {"sm_75", "compute_90", "sm_90"}, flags
    assert "-Wl,-z,nodelete" in (folder / "link.txt").read_text()


def test_a_library_that_is_only_opened_registers_itself(
    tmp_path: Path, nvcc: Path, tensorrt_include: Path
) -> None:
    """As Triton and DeepStream open it. TensorRT for RTX stands for the standard one: its registry is that of
    headers without the functions of TensorRT 8."""
    trt_libs = pytest.importorskip(
        "tensorrt_rtx_libs", reason="needs TensorRT for RTX: pip install 'rgfl[rtx]'"
    )
    (library,) = Path(next(iter(trt_libs.__path__))).glob("libtensorrt_rtx.so.*")
    include = shutil.copytree(tensorrt_include, tmp_path / "include")
    header = include / "NvInferRuntimeCommon.h"
    header.write_text(re.sub(r"TRT_DEPRECATED virtual [^;]*;", "", header.read_text(encoding="utf-8")))
    options = ["-DRGFL_REGISTERING=ON", f"-DTENSORRT_LIBRARY={library}", "-DRGFL_ARCHITECTURES=90"]
    configure(tmp_path / "build", nvcc, nvcc, include, *options)
    run_cmake("--build", tmp_path / "build", "--parallel", 2)
    program = (
        "import ctypes, sys\n"
        "import tensorrt_rtx as trt\n"
        "log = trt.Logger()\n"
        "runtime = trt.Runtime(log)\n"
        "for name, registers in (('librgfl_plugins.so', False), ('librgfl_plugins_registering.so', True)):\n"
        "    ctypes.CDLL(f'{sys.argv[1]}/{name}')\n"
        "    for registry in (trt.get_plugin_registry(), runtime.get_plugin_registry()):\n"
        "        assert (registry.get_creator('RotatedNMS', '1', '') is not None) == registers, name\n"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "build"], check=True)


# ---- the Makefile ----------------------------------------------------------------------------------------


def run_make(folder: Path, *words: str) -> str:
    """What `make` prints in a folder that holds the Makefile and what the test put there."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    shutil.copy(build.HERE.parent / "Makefile", folder)
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    done = subprocess.run([make, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_make_passes_flags_to_venv(tmp_path: Path) -> None:
    """So that it sees JetPack's TensorRT."""
    for name in ("pyproject.toml", "setup.py"):
        (tmp_path / name).touch()
    printed = run_make(tmp_path, "-n", "setup", "VENV_FLAGS=--system-site-packages")
    assert "python3 -m venv --system-site-packages .venv" in printed


@pytest.mark.parametrize("flags", ["", "--system-site-packages"])
def test_make_installs_by_pip_alone_where_the_systems_packages_count(flags: str, tmp_path: Path) -> None:
    """uv does not see JetPack's PyTorch, and put PyPI's in front of it."""
    called = tmp_path / "called"
    for name in ("python", "uv"):
        tool = tmp_path / ".venv" / "bin" / name
        tool.parent.mkdir(parents=True, exist_ok=True)
        tool.write_text(f'#!/bin/sh\necho {name} "$@" >> {called}\n')
        tool.chmod(0o755)
    for name in ("pyproject.toml", "setup.py"):
        (tmp_path / name).touch()
    run_make(tmp_path, "setup", f"PYTHON={sys.executable}", f"VENV_FLAGS={flags}")
    words = "--no-build-isolation --editable .[train,export,rtx,test,dev]"
    by_uv, by_pip = f"uv pip install --python .venv/bin/python {words}", f"python -m pip install {words}"
    lines = called.read_text().splitlines()
    assert [line for line in lines if "--editable" in line] == [by_pip if flags else by_uv]


PLUGIN = "plugins/lib/librgfl_plugins.so"


def commands_of_make(folder: Path, script: str, made: list[str], *targets: str) -> list[str]:
    """What make asks of the environment's Python, played by `script`, where all up to `made` exists."""
    python, called = folder / ".venv" / "bin" / "python", folder / "called"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\n{script}\necho "$@" >> {called}; mkdir -p plugins/lib; touch {PLUGIN}\n')
    python.chmod(0o755)
    inputs = ["pyproject.toml", "setup.py", ".venv/.installed", ".venv/.built", "plugins/build.py", *made]
    for second, name in enumerate(inputs):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (1e9 + second, 1e9 + second))
    run_make(folder, *targets)
    return called.read_text().splitlines()


@pytest.mark.parametrize("module", ["", "import tensorrt", "find_gpu"])
def test_make_builds_the_plugin_where_tensorrt_or_a_gpu_is(module: str, tmp_path: Path) -> None:
    """It looked for a folder in the environment: JetPack's TensorRT lies elsewhere."""
    installed = bool(module)
    script = f'if [ "$1" = -c ]; then case "$2" in *"{module or "never"}"*) exit 0;; *) exit 1;; esac; fi'
    made = ["demo/data/classes.txt", "demo/run/best.pt", "demo/model.onnx"]
    lines = commands_of_make(tmp_path, script, made, "demo/model.engine", "demo/model.fp16.engine")
    built = "-m rgfl.plugins.build --fetch --strict"
    assert lines[: len(lines) - 2] == [built] * installed  # once, before the engines
    assert [line.split()[0] for line in lines[-2:]] == ["export/to_trt.py"] * 2


@pytest.mark.parametrize("gpu", [False, True])
def test_make_demo_runs_the_engines_where_a_gpu_is(gpu: bool, tmp_path: Path) -> None:
    """One that fails has no AP and no latency; the others have."""
    script = (
        f'if [ "$1" = -c ]; then exit {int(not gpu)}; fi\n'
        'case "$*" in *eval_dota*fp16.engine*) exit 2;; esac\n'
        'for file; do test "$last" = --json -o "$last" = --out && touch "$file"; last=$file; done'
    )
    models = [
        "run/best.pt",
        "model.onnx",
        "model-fp16-rounded.onnx",
        "model-int8.onnx",
        "model-int8-cpu.onnx",
    ]
    engines = ["model.engine", "model.fp16.engine", "model-int8.engine"]
    made = [f"demo/{name}" for name in ("data/classes.txt", *models)] + [PLUGIN]
    made += [f"demo/{name}" for name in engines]
    lines = commands_of_make(tmp_path, script, made, "demo/report.md")
    ran = [f"demo/{name}" for name in ("model.engine", "model-int8.engine") if gpu]
    evaluated = [line for line in lines if "eval_dota" in line and ".engine" in line]
    assert [line.split("--json ")[1] for line in evaluated] == [f"{name}.eval.json" for name in ran]
    timed, reported = (next(line for line in lines if f"{name}.py" in line) for name in ("bench", "report"))
    assert [word for word in timed.split() if word.endswith(".engine")] == ran
    assert [word for word in reported.split() if word.endswith("engine.eval.json")] == (
        [f"{name}.eval.json" for name in ran]
    )
    before = len(lines)
    run_make(tmp_path, "demo/report.md")
    assert len((tmp_path / "called").read_text().splitlines()) == before  # nothing is left to do


def test_attributes_are_fields_of_the_spec() -> None:
    spec = DetectorSpec(classes=("plane",))
    python_types = {"float32": float, "int32": int}
    assert len(attributes()) == 4
    for name, kind in attributes().items():
        assert isinstance(getattr(spec, name), python_types[kind])
