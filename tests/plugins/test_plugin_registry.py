"""TensorRT's own registry loads the library and creates the plugin; no GPU is needed for that.

TensorRT for RTX has no plugin layers, but the registry of TensorRT.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rgfl.plugins

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed (extra `rtx`)")


class Quiet(trt.ILogger):
    def __init__(self) -> None:
        super().__init__()

    def log(self, severity: Any, message: str) -> None:
        pass


GOOD = {
    "score_threshold": np.float32([0.05]),
    "iou_threshold": np.float32([0.1]),
    "pre_nms_topk": np.int32([3000]),
    "max_detections": np.int32([100]),
}


@pytest.fixture(scope="module")
def creator(built_library: Path) -> Any:
    builder = trt.Builder(Quiet())
    registry = builder.get_plugin_registry()
    registry.load_library(str(built_library))
    found = registry.get_creator(rgfl.plugins.NAME, rgfl.plugins.VERSION, rgfl.plugins.NAMESPACE)
    assert found is not None
    yield found
    del found, registry, builder  # in this order


def create(creator: Any, attributes: dict[str, np.ndarray], phase: Any = trt.TensorRTPhase.BUILD) -> Any:
    types = {
        "float32": trt.PluginFieldType.FLOAT32,
        "int32": trt.PluginFieldType.INT32,
        "int64": trt.PluginFieldType.INT64,
    }
    fields = [trt.PluginField(name, value, types[str(value.dtype)]) for name, value in attributes.items()]
    return creator.create_plugin("nms", trt.PluginFieldCollection(fields), phase)


def test_is_found_by_name_version_and_namespace(creator: Any) -> None:
    assert (creator.name, creator.plugin_version, creator.plugin_namespace) == ("RotatedNMS", "1", "")


def test_fields_are_those_that_python_writes_into_onnx(creator: Any) -> None:
    found = {field.name: field.type.name.lower() for field in creator.field_names}
    assert found == rgfl.plugins.attributes()


@pytest.mark.parametrize(
    "phase", [trt.TensorRTPhase.BUILD, trt.TensorRTPhase.RUNTIME], ids=["build", "runtime"]
)
def test_creates_a_plugin_with_all_capabilities(creator: Any, phase: Any) -> None:
    plugin = create(creator, GOOD, phase)
    for kind in (
        trt.PluginCapabilityType.CORE,
        trt.PluginCapabilityType.BUILD,
        trt.PluginCapabilityType.RUNTIME,
    ):
        assert plugin.get_capability_interface(kind) is not None


@pytest.mark.parametrize("name", GOOD)
def test_a_missing_field_is_refused(creator: Any, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert create(creator, {key: value for key, value in GOOD.items() if key != name}) is None
    assert f"attribute {name} is missing" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("pre_nms_topk", np.int32([-1]), "pre_nms_topk must lie in [0,"),
        ("max_detections", np.int32([0]), "max_detections must lie in [1,"),
        ("score_threshold", np.float32([np.nan]), "score_threshold must lie in"),
        ("iou_threshold", np.float32([np.nan]), "iou_threshold must lie in [0, 1], got nan"),
        ("iou_threshold", np.float32([1.01]), "iou_threshold must lie in [0, 1]"),
        ("iou_threshold", np.int32([1]), "iou_threshold must be one float32"),
        ("max_detections", np.int64([100]), "max_detections must be one int32"),
        ("max_detections", np.float32([100]), "max_detections must be one int32"),
    ],
)
def test_a_bad_field_is_refused_with_its_reason(
    creator: Any, name: str, value: np.ndarray, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert create(creator, {**GOOD, name: value}) is None
    assert message in capfd.readouterr().err


def test_needs_no_library_of_tensorrt_or_cuda(built_library: Path, dynamic_section: str) -> None:
    """One binary for TensorRT 10 and 11, on machines with the driver alone."""
    needed = [line.split("[")[1].rstrip("]") for line in dynamic_section.splitlines() if "(NEEDED)" in line]
    assert not [name for name in needed if "nvinfer" in name or "cuda" in name], needed
    symbols = subprocess.run(["nm", "-D", built_library], capture_output=True, text=True, check=True).stdout
    undefined = [line.split()[-1] for line in symbols.splitlines() if " U " in line]
    assert not [
        name for name in undefined if "nvinfer" in name or name.startswith(("cuda", "cu", "getInfer"))
    ]
    exported = {line.split()[-1] for line in symbols.splitlines() if " T " in line}
    assert exported == {
        "getCreators",
        "setLoggerFinder",
        "rgfl_rotated_nms",
        "rgfl_rotated_nms_workspace_size",
        "rgfl_cuda_error",
    }
