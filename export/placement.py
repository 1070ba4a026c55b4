"""Where INT8 goes in an exported graph: the inputs of convolutions and additions, as TensorRT fuses them.

- The input and the weight of every convolution (or product with a constant) of the backbone, the neck and
  the head's towers.
- Nothing at a convolution's output: it stays inside the fused kernel, and what follows quantises it.
- A residual addition: the shortcut only, so that convolution, addition and activation are one kernel.
- The pyramid's additions: both inputs. Resize repeats values, so it keeps the scale of its input.
- Never the output convolutions (head.cls, head.reg), their inputs, decode and NMS: int8 logits cost degrees
  of angle and compress confidences. Squeeze-and-excitation stays in float too: its tensors are
  one pixel large.

A *block* is the unit that stays in float or does not, such as `backbone.net.layer2.0`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

QUANTISED_MODULES = ("backbone.", "neck.", "head.cls_tower.", "head.reg_tower.")
OUTPUT_MODULES = ("head.cls", "head.reg")
ADDITION_MODULES = ("backbone", "neck")


@dataclass(frozen=True)
class Placement:
    """Which inputs become int8.

    Attributes:
        activations: (node, input index) -> the tensor whose scale it takes.
        weights: node -> axis of its weight (input 1) along which the output channels lie.
        blocks: block -> its quantised nodes.
    """

    activations: dict[tuple[str, int], str]
    weights: dict[str, int]
    blocks: dict[str, list[str]]

    @property
    def tensors(self) -> list[str]:
        """The tensors to calibrate, in order of first use."""
        return list(dict.fromkeys(self.activations.values()))


def module_of(name: str) -> str:
    """`head.cls` of `head.cls/Conv.2`."""
    return name.rsplit("/", 1)[0] if "/" in name else ""


def block_of(name: str) -> str:
    """The block of a node: its module up to the first run of numbers, `backbone.net.blocks.1.0`."""
    kept: list[str] = []
    for part in module_of(name).split("."):
        if kept and kept[-1].isdigit() and not part.isdigit():
            break
        kept.append(part)
    return ".".join(kept)


def place(model: onnx.ModelProto, keep_float: Collection[str] = ()) -> Placement:
    """Choose the inputs to quantise; blocks of `keep_float` are left out."""
    nodes = list(model.graph.node)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    producer = {output: node for node in nodes for output in node.output}
    pixels = _one_pixel_tensors(nodes, constants)
    depth = _depths(nodes)
    found = Placement({}, {}, {})

    def note(node: onnx.NodeProto) -> None:
        names = found.blocks.setdefault(block_of(node.name), [])
        if node.name not in names:
            names.append(node.name)

    for node in nodes:
        if node.op_type not in ("Conv", "MatMul") or not node.name.startswith(QUANTISED_MODULES):
            continue
        if block_of(node.name) in keep_float or node.input[0] in pixels or node.input[0] in constants:
            continue
        weight = constants.get(node.input[1])
        if weight is None or len(weight.dims) != (4 if node.op_type == "Conv" else 2):
            continue
        found.activations[node.name, 0] = node.input[0]
        found.weights[node.name] = 0 if node.op_type == "Conv" else 1
        note(node)

    for node in nodes:
        module = module_of(node.name)
        if node.op_type != "Add" or block_of(node.name) in keep_float or len(node.input) != 2:
            continue
        if any(name in constants or name not in producer for name in node.input):
            continue
        if not any(module == scope or module.startswith(f"{scope}.") for scope in ADDITION_MODULES):
            continue
        fused = [producer[name].name in found.weights for name in node.input]
        if not any(fused):
            continue  # nothing in front that this addition could be fused into
        if module.split(".")[0] == "neck":
            wanted = [0, 1]
        elif all(fused):  # a projected shortcut: the shorter path is the shortcut
            wanted = [0 if depth[node.input[0]] < depth[node.input[1]] else 1]
        else:
            wanted = [fused.index(False)]
        for index in wanted:
            before = producer[node.input[index]]
            repeats = before.op_type == "Resize" and attribute(before, "mode", b"nearest") == b"nearest"
            if repeats and before.input[0] in producer:
                found.activations[before.name, 0] = before.input[0]
                found.activations[node.name, index] = before.input[0]
            else:
                found.activations[node.name, index] = node.input[index]
        note(node)
    return found


def float_outputs(model: onnx.ModelProto, placement: Placement) -> list[str]:
    """Outputs of INT8 convolutions that stay float: before additions, normalisations, the model's outputs.

    TensorRT's kernels give float there. ONNX Runtime has no integer kernel that does, and would compute
    these convolutions in float; `cpu_variant` gives them a grid.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    consumers = consumers_of(model)
    found = []
    for node in model.graph.node:
        if node.op_type != "Conv" or node.name not in placement.weights:
            continue
        tensor = node.output[0]
        if len(consumers[tensor]) == 1 and bounds_of(consumers[tensor][0], constants) is not None:
            tensor = consumers[tensor][0].output[0]
        if len(consumers[tensor]) == 1 and consumers[tensor][0].op_type == "MaxPool":
            tensor = consumers[tensor][0].output[0]
        readers = consumers[tensor]
        quantised = any(
            (reader.name, index) in placement.activations
            for reader in readers
            for index, name in enumerate(reader.input)
            if name == tensor
        )
        if not quantised:
            found.append(tensor)
    return found


def _one_pixel_tensors(nodes: Sequence[onnx.NodeProto], constants: Collection[str]) -> set[str]:
    """Tensors of the backbone that are one pixel large: means over the image, and what follows from them."""
    pixels: set[str] = set()
    for node in nodes:
        inputs = [name for name in node.input if name and name not in constants]
        pooled = node.op_type in ("ReduceMean", "GlobalAveragePool") and node.name.startswith("backbone.")
        if pooled or (inputs and all(name in pixels for name in inputs)):
            pixels.update(node.output)
    return pixels


def _depths(nodes: Sequence[onnx.NodeProto]) -> dict[str, int]:
    """Convolutions and products on the longest way to each tensor."""
    depth: dict[str, int] = {}
    for node in nodes:
        own = max((depth.get(name, 0) for name in node.input), default=0)
        for output in node.output:
            depth[output] = own + (node.op_type in ("Conv", "MatMul"))
    return depth


# --- of any graph ---------------------------------------------------------------------------------------


def consumers_of(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """The readers of every tensor."""
    found: dict[str, list[onnx.NodeProto]] = {
        name: [] for node in model.graph.node for name in [*node.input, *node.output]
    }
    for node in model.graph.node:
        for name in node.input:
            found[name].append(node)
    return found


def bounds_of(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> tuple[float, float] | None:
    """What a ReLU or Clip keeps values within; None for any other node."""
    from onnx import numpy_helper

    if node.op_type == "Relu":
        return 0.0, math.inf
    if node.op_type != "Clip":
        return None
    bounds = [-math.inf, math.inf]
    for index in (1, 2):
        if len(node.input) > index and node.input[index]:
            if node.input[index] not in constants:
                return None
            bounds[index - 1] = float(numpy_helper.to_array(constants[node.input[index]]))
    return bounds[0], bounds[1]


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Of a node, or `default`."""
    import onnx

    for found in node.attribute:
        if found.name == name:
            return onnx.helper.get_attribute_value(found)
    return default
