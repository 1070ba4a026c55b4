"""Tensors inside an ONNX graph, computed on the CPU: what calibration, rounding and scans look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rgfl.spec import DetectorSpec
from rgfl.trt_runtime.runners import normalised

if TYPE_CHECKING:
    import onnx


class Network:
    """An ONNX graph that gives chosen tensors for tiles, on the CPU."""

    def __init__(self, model: onnx.ModelProto, outputs: Sequence[str], spec: DetectorSpec) -> None:
        import onnx
        import onnxruntime

        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        del copy.graph.output[:]
        copy.graph.output.extend(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs
        )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # Q/DQ as written: the integer kernels of CPUs without VNNI saturate, which TensorRT's do not.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        self.session = onnxruntime.InferenceSession(
            copy.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.spec = spec
        self.outputs = list(outputs)
        self.takes_uint8 = self.session.get_inputs()[0].type == "tensor(uint8)"

    def __call__(self, tiles: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        feed: NDArray = tiles
        if not self.takes_uint8:
            feed = normalised(tiles, self.spec)
        values: list[NDArray[np.float32]] = self.session.run(
            self.outputs, {self.session.get_inputs()[0].name: feed}
        )
        return values
