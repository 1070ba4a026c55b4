"""Names and types of the calls to cuda-bindings and TensorRT, as far as one gets without a GPU."""

from __future__ import annotations

import ast
import inspect
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from stand_ins import HostCuda

from rgfl.trt_runtime.cuda_calls import Cuda, CudaError, host_view
from rgfl.trt_runtime.machine import find_gpu
from rgfl.trt_runtime.tensorrt_api import new_runtime

ROOT = Path(__file__).parents[2]

CALLS: dict[str, Callable[[Cuda], object]] = {
    "cudaSetDevice": lambda cuda: cuda.start(),
    "cudaMalloc": lambda cuda: cuda.allocate(256),
    "cudaHostAlloc": lambda cuda: cuda.allocate_pinned(256),
    "cudaMemcpyAsync": lambda cuda: cuda.copy(4096, 8192, 16, 4711),
    "cudaPointerGetAttributes": lambda cuda: cuda.device_of(4096),
    "cudaStreamCreateWithFlags": lambda cuda: cuda.stream(),
    "cudaStreamDestroy": lambda cuda: cuda.destroy_stream(4711),
    "cudaStreamSynchronize": lambda cuda: cuda.synchronize(4711),
    "cudaEventCreateWithFlags": lambda cuda: cuda.event(),
    "cudaEventDestroy": lambda cuda: cuda.destroy_event(4711),
    "cudaEventRecord": lambda cuda: cuda.record(4711, 4712),
    "cudaStreamWaitEvent": lambda cuda: cuda.wait(4711, 4712),
    "cudaEventSynchronize": lambda cuda: cuda.wait_on_host(4711),
    "cudaEventElapsedTime": lambda cuda: cuda.milliseconds(4711, 4712),
    "cudaStreamBeginCapture": lambda cuda: cuda.begin_capture(4711),
    "cudaStreamEndCapture": lambda cuda: cuda.end_capture(4711),
    "cudaGraphLaunch": lambda cuda: cuda.launch(4711, 4712),
    "cudaGraphExecDestroy": lambda cuda: cuda.destroy_graph(4711),
    "cudaFree": lambda cuda: cuda.free(4096),
    "cudaFreeHost": lambda cuda: cuda.free_pinned(4096),
}


@pytest.mark.parametrize("name", CALLS)
def test_cuda_takes_the_call_and_refuses_for_want_of_a_driver(name: str) -> None:
    """A wrong name or type would be an AttributeError or TypeError. With a GPU these handles would crash."""
    pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings: pip install cuda-bindings")
    if find_gpu() is not None:
        pytest.skip("there is a GPU: tests/plugins/test_engine_without_tensorrt.py runs these calls there")
    with pytest.raises(CudaError, match=rf"^{name}: .+ \(cudaError\w+\)") as caught:
        CALLS[name](Cuda())
    assert "--max-batch" not in str(caught.value)


@pytest.mark.parametrize(
    ("version", "error", "remedy"),
    [
        ("13.5.0", "cudaErrorMemoryAllocation", "build the engine with a smaller --max-batch"),
        (
            "13.5.0",
            "cudaErrorInsufficientDriver",
            r"cuda-bindings 13.5.0 needs a driver of R580 or newer; .* pip install 'cuda-bindings<13'",
        ),
        ("12.9.4", "cudaErrorInsufficientDriver", r"cuda-bindings 12.9.4 needs a driver of R535 or newer"),
    ],
)
def test_an_error_that_can_be_put_right_says_how(
    version: str, error: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = pytest.importorskip(
        "cuda.bindings.runtime", reason="needs cuda-bindings: pip install cuda-bindings"
    )
    monkeypatch.setattr("cuda.bindings.__version__", version)
    cuda = Cuda()
    monkeypatch.setattr(runtime, "cudaMalloc", lambda size: (getattr(runtime.cudaError_t, error), None))
    with pytest.raises(CudaError, match=rf"^cudaMalloc: [^;]* \({error}\); {remedy}$"):
        cuda.allocate(1 << 50)


def test_every_call_is_in_the_list_above() -> None:
    text = (ROOT / "trt_runtime" / "cuda_calls.py").read_text(encoding="utf-8")
    called = {
        node.args[0].value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "_call"
        and isinstance(node.args[0], ast.Constant)
    }
    # What a graph is made of comes only behind a capture that worked.
    assert called - set(CALLS) == {"cudaGraphInstantiate", "cudaGraphDestroy"}


def test_the_stand_in_takes_what_the_real_class_takes() -> None:
    def face(kind: type) -> dict[str, list[str]]:
        methods = {name: method for name, method in vars(kind).items() if inspect.isfunction(method)}
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in methods.items()
            if not name.startswith("_")
        }

    real, stand_in = face(Cuda), face(HostCuda)
    assert {name: stand_in.get(name) for name in real} == real


def test_without_cuda_bindings_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(CudaError, match=r"pip install cuda-bindings; JetPack 6 .* 'cuda-bindings<13'$"):
        Cuda()


def test_a_view_of_host_memory_is_that_memory() -> None:
    memory = np.arange(24, dtype=np.float32)
    view = host_view(memory.ctypes.data, (2, 3, 4), np.float32)
    view[1, 2, 3] = -1
    assert memory[23] == -1


# Methods and attributes of TensorRT's objects that the engine runner uses.
TENSORRT = {
    "Runtime": {"deserialize_cuda_engine", "engine_host_code_allowed", "get_plugin_registry"},
    "IPluginRegistry": {"load_library", "get_creator"},
    "ICudaEngine": {
        *("name", "num_io_tensors", "get_tensor_name", "get_tensor_shape", "get_tensor_dtype"),
        *("get_tensor_profile_shape", "device_memory_size_v2", "create_execution_context"),
    },
    "IExecutionContext": {
        *("set_input_shape", "set_tensor_address", "set_device_memory", "execute_async_v3"),
    },
    "ExecutionContextAllocationStrategy": {"USER_MANAGED"},
}
RTX_ALONE = {
    "ICudaEngine": {"create_runtime_config"},
    "IExecutionContext": {"is_stream_capturable"},
    "IRuntimeConfig": {
        *("create_runtime_cache", "set_runtime_cache", "set_execution_context_allocation_strategy"),
        "dynamic_shapes_kernel_specialization_strategy",
    },
    "IRuntimeCache": {"serialize", "deserialize"},
    "DynamicShapesKernelSpecializationStrategy": {"EAGER"},
}


def test_tensorrt_for_rtx_has_every_name_that_is_used() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX: pip install 'rgfl[rtx]'")
    for table in (TENSORRT, RTX_ALONE):
        for owner, names in table.items():
            assert names <= set(dir(getattr(trt, owner)))
    assert {"UINT8", "FLOAT", "INT32"} <= set(dir(trt.DataType))


def test_the_tables_hold_what_the_runner_uses() -> None:
    """Every name of the bindings that engine.py, and the runtime that it asks for, use is in a table."""
    trt = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX: pip install 'rgfl[rtx]'")
    parts = ((ROOT / "trt_runtime" / "engine.py").read_text(encoding="utf-8"), inspect.getsource(new_runtime))
    nodes = [node for part in parts for node in ast.walk(ast.parse(part))]
    mentioned = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    mentioned |= {"is_stream_capturable", "load_library", "get_creator"}  # by getattr, and in load_plugin
    owners = {*TENSORRT, *RTX_ALONE}
    known = {name for owner in owners for name in dir(getattr(trt, owner)) if not name.startswith("_")}
    listed = {name for table in (TENSORRT, RTX_ALONE) for names in table.values() for name in names}
    assert listed <= mentioned
    # Dictionaries, tensors and arrays have members of these names, too.
    assert mentioned & known - listed <= {"engine", "value"}


@pytest.mark.parametrize("version", ["10.3", "10", "11"])
def test_tensorrt_10_and_11_have_every_name_that_is_used(version: str) -> None:
    """As in tests/export/test_to_trt.py: without TensorRT's libraries its binary is searched."""
    folder = os.environ.get("RGFL_TENSORRT_BINDINGS")
    found = list((Path(folder) / version).glob("tensorrt_bindings/tensorrt.*")) if folder else []
    if not found:
        pytest.skip(f"set RGFL_TENSORRT_BINDINGS to a folder with the bindings of TensorRT {version}")
    binary = found[0].read_bytes()
    names = {*TENSORRT, *(name for group in TENSORRT.values() for name in group)}
    assert not {name for name in names if name.encode() + b"\0" not in binary}
