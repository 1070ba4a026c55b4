"""Where a result was measured: hardware, threads and versions, for every result file."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import re
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from rgfl import atomic
from rgfl.processes import usable_cores

# module name -> distribution names under which its version may be found
DISTRIBUTIONS = {
    "rgfl": ("rgfl",),
    "numpy": ("numpy",),
    "cv2": ("opencv-python-headless", "opencv-python"),
    "torch": ("torch",),
    "timm": ("timm",),
    "onnx": ("onnx",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "cuda.bindings": ("cuda-bindings",),
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
}
BOARD = Path("/proc/device-tree/model")  # its name, where the system has one: Jetson and other boards


@dataclass(frozen=True)
class Gpu:
    """The first GPU; `capability` is (8, 6) and the like, `bus_id` its PCI address, "" if unknown."""

    name: str
    capability: tuple[int, int]
    bus_id: str = ""
    multiprocessors: int = 0  # 0: unknown

    def __str__(self) -> str:
        size = f", {self.multiprocessors} multiprocessors" if self.multiprocessors else ""
        return f"{self.name} (compute capability {self.capability[0]}.{self.capability[1]}{size})"


def find_gpu() -> Gpu | None:
    """The first GPU that CUDA's driver sees; asks the driver alone, no CUDA package is needed."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    device, major, minor, size = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, bus_id = ctypes.create_string_buffer(256), ctypes.create_string_buffer(32)
    calls = (
        lambda: driver.cuInit(0),
        lambda: driver.cuDeviceGet(ctypes.byref(device), 0),
        lambda: driver.cuDeviceGetName(name, len(name), device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(size), 16, device),
    )
    if any(call() != 0 for call in calls):
        return None
    known = driver.cuDeviceGetPCIBusId(bus_id, len(bus_id), device) == 0
    place = bus_id.value.decode() if known else ""
    return Gpu(name.value.decode(errors="replace"), (major.value, minor.value), place, size.value)


def versions() -> dict[str, str]:
    """Python and those of the packages above that this process has loaded: the ones that matter."""
    found = {"python": platform.python_version()}
    for module, distributions in DISTRIBUTIONS.items():
        if module not in sys.modules:
            continue
        for distribution in distributions:
            try:
                found[module] = metadata.version(distribution)
                break
            except metadata.PackageNotFoundError:
                continue
        else:
            found[module] = str(getattr(sys.modules[module], "__version__", "unknown"))
    return found


def hardware() -> dict[str, Any]:
    """CPU model, usable cores, the load when asked, and the board and the GPU where there is such a thing."""
    record: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if hasattr(os, "getloadavg"):
        record["load_average"] = round(os.getloadavg()[0], 2)

    if BOARD.exists():  # a Jetson's GPU is called "Orin", on every board
        record["board"] = BOARD.read_text(errors="replace").rstrip("\0")
    if gpu := find_gpu():
        record["gpu"] = gpu.name
    return record


def now() -> str:
    """In UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def circumstances() -> dict[str, Any]:
    """When, on what and with which versions: asked behind the measurement, when all packages are loaded."""
    return {"date": now(), "hardware": hardware(), "versions": versions()}


def has_vnni() -> bool:
    """Whether this CPU multiplies uint8 by int8 without saturating in between; yes where nobody can tell."""
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine() not in ("x86_64", "AMD64") or not cpuinfo.exists():
        return True
    flags = next((line for line in cpuinfo.read_text(errors="replace").splitlines() if "flags" in line), "")
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(flags.split())


def physical_cores() -> int:
    """Cores that this process may use, two threads of one core counted once: what CPU networks gain from."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    topology = "/sys/devices/system/cpu/cpu{}/topology/{}"
    places = set()
    for index in allowed:
        try:
            names = ("physical_package_id", "core_id")
            places.add(tuple(Path(topology.format(index, name)).read_text() for name in names))
        except OSError:  # another system than Linux, or a container that hides it
            return len(allowed)
    return len(places)


def gpu_state() -> dict[str, Any]:
    """Clocks (MHz), temperature (°C), power and its limit (W), what holds the clocks down, and the driver.

    Of the GPU that CUDA sees first, by NVIDIA's management library, which numbers GPUs in another order, so
    that it is asked by PCI address; {} where there is no GPU, or that library or pynvml (the package
    nvidia-ml-py) is missing. Not run on a GPU yet.
    """
    try:
        import pynvml
    except ImportError:
        return {}
    first = find_gpu()
    if first is None:
        return {}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {}
    try:
        gpu = pynvml.nvmlDeviceGetHandleByPciBusId(first.bus_id)
        asked: dict[str, Any] = {
            "driver": lambda: pynvml.nvmlSystemGetDriverVersion(),
            "sm_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM),
            "sm_mhz_most": lambda: pynvml.nvmlDeviceGetMaxClockInfo(gpu, pynvml.NVML_CLOCK_SM),
            "memory_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_MEM),
            "celsius": lambda: pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU),
            "watts": lambda: pynvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
            "watts_most": lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1e3,
            "held_down_by": lambda: hex(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)),
        }
        state = {}
        for name, ask in asked.items():
            try:
                state[name] = ask()
            except pynvml.NVMLError:  # no GPU answers everything
                continue
        return state
    except pynvml.NVMLError:
        return {}
    finally:
        pynvml.nvmlShutdown()


def file_facts(path: Path) -> dict[str, Any]:
    """Name, size and digest: what ties an evaluation to a benchmark of the same file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def write_record(folder: Path, kind: str, record: dict[str, Any], text: str = "") -> Path:
    """Write a benchmark's numbers to DATE-KIND-HARDWARE.json, and `text` to the .md beside it.

    Args:
        folder: made if missing.
        kind: what was measured, in a word.
        record: with `date` (ISO) and `hardware` (as `hardware()` gives it).
        text: Markdown; none is written without it.

    Returns:
        The JSON file.
    """
    facts = record["hardware"]
    name = facts.get("board") or facts.get("gpu") or f"{facts['cpu']} {facts['cores']} cores"
    slug = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", name.lower())).strip("-")
    path = folder / f"{record['date'][:10]}-{kind}-{slug}.json"
    atomic.write_text(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    if text:
        atomic.write_text(path.with_suffix(".md"), text.rstrip("\n") + "\n")
    return path


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
