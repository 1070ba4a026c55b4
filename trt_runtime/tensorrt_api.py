"""TensorRT 10, TensorRT 11 and TensorRT for RTX behind one face: what differs between them is here.

    version          typed networks         NMS plugin    timing cache   needs a GPU to build
    TensorRT 10      flag STRONGLY_TYPED    in the graph  yes            yes
    TensorRT 11      always                 in the graph  yes            yes
    TensorRT-RTX 1   flag STRONGLY_TYPED    none          no-op          no

All of them lack, or deprecate, precision flags and the INT8 calibrator, so nothing here uses them.
Only TensorRT for RTX has run in this project's tests; the calls to 10 (from 10.3, JetPack 6.1's) and 11
are checked by name against their Python bindings (tests/export/test_to_trt.py, and those of engine.py in
tests/trt_runtime/test_cuda_calls.py).
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import platform
import re
import shlex
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import rgfl.plugins
from rgfl.errors import InputError, ModelError, one_line
from rgfl.spec import DetectorSpec
from rgfl.trt_runtime.machine import Gpu, file_facts

BackendName = Literal["tensorrt", "rtx"]
Compatibility = Literal["none", "ampere-plus", "same-compute-capability"]

MODULES: dict[BackendName, str] = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
NAMES: dict[BackendName, str] = {"tensorrt": "TensorRT", "rtx": "TensorRT for RTX"}
BUILD_PLUGIN = "python -m rgfl.plugins.build --force"  # what cannot be loaded may still be up to date
OLDEST = (10, 3)  # of the standard one: JetPack 6.1's, the first whose bindings are checked for every name
MAGIC: dict[bytes, BackendName] = {b"ftrt": "tensorrt", b"vtrt": "rtx"}
# In NVIDIA's support matrices of TensorRT for RTX 1.0 to 1.5: no data centre's GPU, such as A100 and H100.
RTX_CAPABILITIES = ((7, 5), (8, 6), (8, 9), (12, 0), (12, 1))
TURING = (7, 5)  # an engine for RTX runs there only if it was built for it alone
# Never freed: the first logger stays TensorRT's global one for as long as anybody's builder or runtime lives.
_LOGS: list[Any] = []


# --- which TensorRT --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Api:
    """A loaded TensorRT.

    Attributes:
        name: "tensorrt" or "rtx".
        trt: its Python module.
        version: (10, 16, 1) and the like.
        reason: why this one, in one line.
    """

    name: BackendName
    trt: Any
    version: tuple[int, ...]
    reason: str

    def __str__(self) -> str:
        return f"{NAMES[self.name]} {'.'.join(map(str, self.version))}"

    @property
    def has_plugins(self) -> bool:
        """Whether a network may hold a RotatedNMS layer."""
        return self.name == "tensorrt"

    def new_network(self, builder: Any) -> Any:
        """An empty strongly typed network; TensorRT 11 has no other kind and ignores the flag."""
        flag = self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        always = self.name == "tensorrt" and self.version[0] >= 11
        return builder.create_network(0 if always else 1 << int(flag))

    def new_logger(self, verbose: bool = False) -> Any:
        """A logger that keeps warnings and errors in `.messages`, and prints all of it if `verbose`."""
        severity = self.trt.ILogger.Severity
        kept = (severity.INTERNAL_ERROR, severity.ERROR, severity.WARNING)

        class Log(self.trt.ILogger):  # type: ignore[name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.messages: list[tuple[bool, str]] = []

            def log(self, level: Any, message: str) -> None:
                if level in kept:
                    self.messages.append((level != severity.WARNING, message))
                if verbose:
                    print(f"[{level.name.lower()}] {message}", file=sys.stderr)

            def errors(self) -> str:
                """The errors in one line, or that there are none."""
                found = [message for is_error, message in self.messages if is_error]
                nothing = "its log holds no error (RotatedNMS tells its reasons on stderr)"
                return "; ".join(dict.fromkeys(found)) or nothing

        log = Log()
        _LOGS.append(log)
        return log

    def new_progress(self) -> Any:
        """An IProgressMonitor with a bar for each phase on a terminal; `.cancelled = True` ends the build."""
        from tqdm import tqdm

        class Progress(self.trt.IProgressMonitor):  # type: ignore[name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.cancelled = False
                self.steps = 0
                self._bars: dict[str, Any] = {}

            def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
                self._bars[phase] = tqdm(total=steps, desc=phase, leave=False, disable=None, unit="step")

            def step_complete(self, phase: str, step: int) -> bool:
                self.steps += 1
                if phase in self._bars:
                    self._bars[phase].update(step + 1 - self._bars[phase].n)
                return not self.cancelled

            def phase_finish(self, phase: str) -> None:
                if phase in self._bars:
                    self._bars.pop(phase).close()

        return Progress()


def open_api(backend: Literal["auto", "tensorrt", "rtx"], gpu: Gpu | None) -> Api:
    """The TensorRT to build with.

    "auto" is the standard one where it and a GPU are, else TensorRT for RTX, which builds without a GPU.

    Raises:
        InputError: it is not installed, or it needs a GPU and there is none.
    """
    if backend != "auto":
        api = _load(backend, f"--backend {backend}")
        if backend == "tensorrt" and gpu is None:
            raise InputError(
                f"{api} builds engines on the GPU that will run them, and CUDA's driver finds none here; "
                "build on that machine, or with --backend rtx, which needs no GPU to build"
            )
        return api
    standard, rtx = _installed("tensorrt"), _installed("rtx")
    if standard and gpu is not None:
        return _load("tensorrt", "installed, and there is a GPU")
    if rtx:
        why = "there is no GPU" if standard else "TensorRT is not installed"
        return _load("rtx", why)
    if standard:
        raise InputError(
            "TensorRT needs a GPU to build, and CUDA's driver finds none here; TensorRT for RTX does not: "
            + install("rtx")
        )
    raise InputError(
        f"no TensorRT is installed; {install('tensorrt')}, or {install('rtx')} which builds without a GPU"
    )


def install(backend: BackendName) -> str:
    """The command that installs it. Of JetPack's TensorRT there is no wheel, and pip's is not for Jetson."""
    command = f"pip install 'rgfl[{backend}]'"
    if backend == "tensorrt":
        command += " (drivers before R580: tensorrt-cu12 'rgfl[cuda12]')"
    if backend == "tensorrt" and platform.machine() == "aarch64":
        return (
            "on a Jetson apt-get install python3-libnvinfer, then an environment that sees it, "
            f"python3 -m venv --system-site-packages; elsewhere {command}"
        )
    return command


def _installed(backend: BackendName) -> bool:
    return importlib.util.find_spec(MODULES[backend]) is not None


def _load(backend: BackendName, reason: str) -> Api:
    if not _installed(backend):
        raise InputError(f"{NAMES[backend]} is not installed: {install(backend)}")
    try:
        module = importlib.import_module(MODULES[backend])
    except (ImportError, OSError) as error:
        raise InputError(f"{NAMES[backend]} does not load ({error}); {install(backend)}") from error
    api = Api(backend, module, _numbers(module.__version__), reason)
    if backend == "tensorrt" and api.version < OLDEST:
        raise InputError(
            f"{api} is too old, expected 10.3 or newer; update it, on a Jetson by JetPack 6.1 or newer"
        )
    return api


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:4] if part.isdigit())


def create(api: Api, log: Any, what: str, make: Callable[[], Any]) -> Any:
    """What `make` gives; TensorRT throws or gives None where it cannot.

    Args:
        log: the logger that TensorRT tells the reason.
        what: with its article, "a builder" and the like.

    Raises:
        ModelError: it cannot, with the reason.
    """
    detail = ""
    try:
        result = make()
    except Exception as error:  # pybind11 raises TypeError where the C++ factory gave null
        result, detail = None, f" ({one_line(error)})"
    if result is None:
        raise ModelError(f"{api} cannot make {what}: {log.errors()}{detail}")
    return result


def map_plugin(library: Path) -> None:
    """Keep the plugin's library in this process: a registry that goes unloads its own, under threads that
    may still hold CUDA's state of it.

    Raises:
        ModelError: the system cannot load it.
    """
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        raise ModelError(
            f"{library}: it cannot be loaded ({one_line(error)}); run: {BUILD_PLUGIN}"
        ) from error


def load_plugin(api: Api, registry: Any, library: Path) -> None:
    """RotatedNMS for the builder or runtime of `registry`; each has a registry of its own.

    Raises:
        ModelError: TensorRT cannot load `library`.
    """
    map_plugin(library)
    names = (rgfl.plugins.NAME, rgfl.plugins.VERSION, rgfl.plugins.NAMESPACE)
    # None also means that the process has it already, from another engine.
    if registry.load_library(str(library)) is None and registry.get_creator(*names) is None:
        raise ModelError(f"{library}: {api} cannot load it; run: {BUILD_PLUGIN}")


def new_runtime(api: Api, log: Any, *, version_compatible: bool) -> Any:
    """A runtime for engines of ours, with RotatedNMS where they may need it.

    Args:
        log: the logger that TensorRT tells errors.
        version_compatible: the engines bring the plugin along, so code of theirs runs on this machine.

    Raises:
        FileNotFoundError: the plugin's library is not built.
        ModelError: TensorRT makes no runtime here, or cannot load the library.
    """
    runtime = create(api, log, "a runtime", lambda: api.trt.Runtime(log))
    if version_compatible:
        runtime.engine_host_code_allowed = True
    elif api.has_plugins:  # its registry knows nothing of the builder's
        load_plugin(api, runtime.get_plugin_registry(), rgfl.plugins.library())
    return runtime


def nms_outputs(spec: DetectorSpec) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape without the batch, and type, of each output of a RotatedNMS layer, in its order."""
    rows = spec.max_detections
    return {
        "num_detections": ((1,), "int32"),
        "boxes": ((rows, 5), "float32"),
        "scores": ((rows,), "float32"),
        "labels": ((rows,), "int32"),
    }


# --- options ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BuildOptions:
    """What a build may be told, the same for every TensorRT."""

    batch: tuple[int, int, int] = (1, 1, 8)  # least, most frequent, greatest
    compatibility: Compatibility = "none"
    version_compatible: bool = False
    tf32: bool = False
    workspace: float = 0.0  # GiB, 0: all
    optimization_level: int | None = None
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        least, usual, greatest = self.batch
        if not 1 <= least <= usual <= greatest:
            raise InputError(
                f"expected 1 ≤ --min-batch ≤ --opt-batch ≤ --max-batch, got {least}, {usual}, {greatest}"
            )
        if self.workspace < 0:
            raise InputError(f"--workspace {self.workspace:g}: expected GiB > 0")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise InputError(f"--optimization-level {self.optimization_level}: expected 0 to 5")

    def refuse_what_rtx_lacks(self) -> None:
        asked = {
            "--hardware-compatibility": self.compatibility != "none",
            "--version-compatible": self.version_compatible,
            "--timing-cache": self.timing_cache is not None,
        }
        if names := [name for name, given in asked.items() if given]:
            raise InputError(
                f"{', '.join(names)}: TensorRT for RTX has no such thing, as it compiles for the GPU when it "
                "loads an engine; leave it out, or use --backend tensorrt"
            )


def rtx_notes(gpu: Gpu | None, int8: bool) -> list[str]:
    """What one should know of an engine for RTX before relying on it."""
    notes = []
    if gpu is not None and gpu.capability not in RTX_CAPABILITIES:
        listed = ", ".join(f"{major}.{minor}" for major, minor in RTX_CAPABILITIES)
        notes.append(f"TensorRT for RTX supports compute capabilities {listed}; not the GPU here, {gpu}")
    if int8:
        notes.append(
            "TensorRT for RTX lists INT8 for the weights of matrix products alone; whether your GPU gains by "
            "INT8 convolutions, compare with --fp16"
        )
    return notes


def configure(
    api: Api,
    builder: Any,
    options: BuildOptions,
    input_shape: tuple[int, ...],
    plugin: Path | None,
    gpu: Gpu | None = None,
) -> Any:
    """An IBuilderConfig for one input `images` of `input_shape` (without batch)."""
    trt = api.trt
    config = builder.create_builder_config()
    # TensorFloat-32 keeps ten bits: decode would place boxes of coarse levels a pixel off.
    (config.set_flag if options.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace * 2**30))
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    profile = builder.create_optimization_profile()
    profile.set_shape("images", *((size, *input_shape) for size in options.batch))
    if config.add_optimization_profile(profile) < 0:
        raise ModelError(f"{api} refuses the batch sizes {options.batch}")
    if api.name == "rtx":
        options.refuse_what_rtx_lacks()
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)  # a CUDA graph may then hold all of it
        if gpu is not None and gpu.capability == TURING:
            config.num_compute_capabilities = 1
            config.set_compute_capability(trt.ComputeCapability.SM75, 0)
        return config
    if options.compatibility != "none":
        level = options.compatibility.replace("-", "_").upper()
        if not hasattr(trt.HardwareCompatibilityLevel, level):
            raise InputError(f"--hardware-compatibility {options.compatibility}: {api} is too old for it")
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if plugin is not None:  # the engine then brings the plugin along
            config.plugins_to_serialize = [str(plugin)]
    if options.timing_cache is not None:
        data = options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""
        cache = config.create_timing_cache(data)
        if cache is None or not config.set_timing_cache(cache, False):
            raise InputError(
                f"--timing-cache {options.timing_cache}: {api} cannot use it, it comes from another version "
                "or GPU; delete the file or name another"
            )
    return config


# --- engines ---------------------------------------------------------------------------------------------


@dataclass
class Layers:
    """How many layers of each kind give each type: of the engine if it can be read, else of the network."""

    of: Literal["engine", "network"]
    types: dict[str, Counter[str]] = field(default_factory=dict)
    generated: int = 0  # kernels whose source TensorRT for RTX generated, for what it fuses into no other

    def add(self, kind: str, type_name: str) -> None:
        self.types.setdefault(kind, Counter())[type_name] += 1

    @property
    def total(self) -> int:
        return sum(sum(counts.values()) for counts in self.types.values())

    def by_type(self) -> Counter[str]:
        return sum(self.types.values(), Counter())

    def text(self) -> str:
        def listed(counts: Counter[str]) -> str:
            return ", ".join(f"{count} {name}" for name, count in counts.most_common())

        lines = [f"{self.total} layers of the {self.of}: {listed(self.by_type())}"]
        order = sorted(self.types, key=lambda kind: -sum(self.types[kind].values()))
        lines += [f"  {kind.lower():28s} {listed(self.types[kind])}" for kind in order[:12]]
        if self.generated:
            lines.append(f"{self.generated} kernels generated, whose source is part of the engine")
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        types = {kind: dict(counts) for kind, counts in sorted(self.types.items())}
        return {"of": self.of, "types": types, "generated_kernels": self.generated}


TYPE_NAMES = {"FLOAT": "FP32", "HALF": "FP16", "BF16": "BF16"}


def network_layers(network: Any) -> Layers:
    """Layers and the types of their first outputs, before TensorRT fuses them."""
    layers = Layers("network")
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.num_outputs:
            name = layer.get_output(0).dtype.name
            layers.add(layer.type.name, TYPE_NAMES.get(name, name))
    return layers


def engine_layers(api: Api, engine: Any) -> Layers:
    """Layers and the types of their first outputs as the engine runs them."""
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(api.trt.LayerInformationFormat.JSON)
    return parse_inspection(text)


def generated_kernels(plan: bytes) -> int:
    """How many kernels TensorRT for RTX wrote itself, by the CUDA source in its plan; 0 if there is none.

    Its layers cannot be inspected without a GPU; this tells how much stands between the convolutions. INT8
    has many: scale, bias, clipping and rounding are kernels of their own there (RTX 1.7, any GPU).
    """
    return len(set(re.findall(rb"__myl_\w*?_0x[0-9a-f]{32}", plan)))


def parse_inspection(text: str) -> Layers:
    """Layers in an engine inspector's JSON: "Format/Datatype" in TensorRT 10, two fields since 11."""
    layers = Layers("engine")
    for layer in json.loads(text).get("Layers", []):
        if not isinstance(layer, dict):  # an engine built with layer names only
            layers.add("unknown", "unknown")
            continue
        outputs = layer.get("Outputs") or [{}]
        keys = ("DataType", "Datatype", "Format/Datatype", "Format")
        described = next((str(outputs[0][key]) for key in keys if key in outputs[0]), "unknown")
        layers.add(str(layer.get("LayerType", "unknown")), _type_in(described))
    return layers


def _type_in(described: str) -> str:
    """FP16 from "Channel major FP16 format where channel % 8 == 0", "Half" and the like."""
    upper = described.upper()
    for name in ("FP32", "FP16", "BF16", "FP8", "INT8", "INT32", "INT64", "UINT8", "BOOL"):
        if name in upper.split() or name == upper:
            return name
    return TYPE_NAMES.get(upper, described)


@dataclass(frozen=True)
class Plan:
    """What the head of an engine file says."""

    backend: BackendName
    version: tuple[int, int, int, int]

    def __str__(self) -> str:
        return f"{NAMES[self.backend]} {'.'.join(map(str, self.version))}"


def read_plan(path: Path) -> Plan:
    """Backend and version that wrote the engine in `path`.

    Raises:
        ModelError: it is no engine.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    with path.open("rb") as file:
        head = file.read(28)
    if len(head) < 28 or head[:4] not in MAGIC:
        raise ModelError(f"{path}: no TensorRT engine; build one with: {rebuild_command(path)}")
    major, minor, patch, build = head[24:28]
    return Plan(MAGIC[head[:4]], (major, minor, patch, build))


def record_path(engine: Path) -> Path:
    """Where the build record of `engine` lies: beside it."""
    return engine.with_name(f"{engine.name}.json")


def read_record(engine: Path) -> dict[str, Any]:
    """How `engine` was built, from the file beside it; {} where there is none of this very engine."""
    try:
        record = json.loads(record_path(engine).read_text(encoding="utf-8"))
        return record if record["sha256"] == file_facts(engine)["sha256"] else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def rebuild_command(engine: Path, record: dict[str, Any] | None = None) -> str:
    """What builds `engine` anew: its own command where it is known.

    The record may be anybody's, and people run what a message advises: it is told only if it is one command
    of export/to_trt.py.
    """
    command = str((record or {}).get("command"))
    with suppress(ValueError):  # quotes that do not close
        plain = command.isprintable() and shlex.join(shlex.split(command)) == command
        if plain and command.startswith("python export/to_trt.py "):
            return command
    return f"python export/to_trt.py MODEL.onnx --out {engine}"


def missing_record(engine: Path, record: dict[str, Any]) -> str:
    """How a message on a TensorRT engine goes on where the record that could explain it is not there."""
    if record:
        return ""
    return f"; or, if it was built with --version-compatible, copy {record_path(engine).name} along"


def check_engine(path: Path, api: Api, gpu: Gpu) -> dict[str, Any]:
    """The build record of the engine in `path`, if `api` and `gpu` can run it; TensorRT is not asked.

    Warns:
        of another GPU of the same compute capability, for which TensorRT promises nothing.

    Raises:
        ModelError: they cannot; one line with the reason and the command that builds it anew.
    """
    plan, record = read_plan(path), read_record(path)
    again = f"; build it anew with: {rebuild_command(path, record)}"
    if plan.backend != api.name:
        raise ModelError(f"{path}: an engine of {plan}, and this is {api}{again}")
    same = plan.version[:3] == api.version[:3]
    older = plan.version[:3] < api.version[:3]
    if not same and not (record.get("version_compatible") and older):
        copied = missing_record(path, record) if older and api.has_plugins else ""
        raise ModelError(f"{path}: built with {plan}, and this is {api}{again}{copied}")
    level = record.get("hardware_compatibility", "none")
    facts = record.get("gpu")
    if plan.backend == "rtx" or not facts or (level == "ampere-plus" and gpu.capability >= (8, 0)):
        return record
    # Jetson's GPUs are all called alike, and differ in the number of multiprocessors.
    size = facts.get("multiprocessors", gpu.multiprocessors)
    built_for = Gpu(facts["name"], tuple(facts["capability"]), gpu.bus_id, size)
    if built_for.capability != gpu.capability:
        raise ModelError(f"{path}: built for {built_for}, and this is {gpu}{again}")
    if level == "none" and built_for != gpu:
        warnings.warn(
            f"{path}: built for {built_for}, and this is {gpu}: it may be slower here, or fail{again}",
            stacklevel=2,
        )
    return record
