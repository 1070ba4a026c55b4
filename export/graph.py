"""Edits of an exported graph: folding and names at export, FP16 types, and the NMS node.

    python export/graph.py model.onnx --fp16 --out model.fp16.onnx      for TensorRT 10, 11 and RTX
    python export/graph.py model.onnx --rounding --out rounded.onnx     measures FP16 on any CPU
    python export/graph.py model.onnx --nms --out model.nms.onnx        RotatedNMS as a node

Types are fp16.py's; files and their metadata onnx_file.py's.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import rgfl.plugins
from rgfl import checks, errors
from rgfl.errors import ModelError
from rgfl.export.fp16 import to_fp16, to_rounded
from rgfl.export.onnx_file import (
    check_packages,
    load,
    load_weights,
    precision,
    read_spec,
    save,
    to_model,
    weight_files,
)
from rgfl.spec import SpecError
from rgfl.trt_runtime.tensorrt_api import nms_outputs

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon

NORMALISATION = "InstanceNormalization"  # between two Reshape it is how GroupNorm is exported
# NVIDIA's domain for nodes that are TensorRT plugins; the parser looks under the namespace of the
# attribute first, and only then under the domain.
PLUGIN_DOMAIN = "trt.plugins"
BEFORE_NMS = "_before_nms"  # added to the names of boxes and scores where a RotatedNMS takes them
SCOPES_KEY = "pkg.torch.onnx.name_scopes"  # where torch says which module a node comes from

EXAMPLES = """\
examples:
  python export/graph.py model.onnx --fp16 --out model.fp16.onnx
  python export/graph.py model.onnx --rounding --out model.rounded.onnx
  python trt_runtime/eval_dota.py --model model.rounded.onnx --images DIR --labels DIR    FP16's AP, on a CPU
  python export/graph.py model.onnx --fp16 --keep-fp32 'backbone.net.layer4*' --out model.fp16.onnx

exit status: 0 written, 2 bad input
"""


# --- surgery ---------------------------------------------------------------------------------------------


def tidy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Constants and BatchNorm folded, nodes named after their modules, traces of the exporter removed."""
    import onnx
    import onnx_graphsurgeon as gs

    name_nodes(model)
    strip(model)
    graph = gs.import_onnx(model)
    fold_batch_norm(graph)
    scale_before_norms(graph)
    read_shapes_behind_the_cast(graph)
    # ONNX Runtime does the folding; results above 1 MiB, such as tiles of zeros, stay computed.
    graph.fold_constants(size_threshold=1 << 20, error_ok=False).cleanup(remove_unused_graph_inputs=True)
    folded = gs.export_onnx(graph)
    folded.ir_version = model.ir_version
    folded.producer_name = "rgfl"
    folded.producer_version = ""
    folded = onnx.shape_inference.infer_shapes(folded, strict_mode=True, data_prop=True)
    onnx.checker.check_model(folded, full_check=True)
    return folded


def name_nodes(model: onnx.ModelProto) -> None:
    """Rename nodes to `module.path/Operator`, with a number where that is not unique.

    Later steps find layers by these names: the two output convolutions stay out of INT8.
    """
    taken: Counter[str] = Counter()
    for node in model.graph.node:
        scopes = next((prop.value for prop in node.metadata_props if prop.key == SCOPES_KEY), "")
        module = _module_path(scopes)
        name = f"{module}/{node.op_type}" if module else node.op_type
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}.{taken[name]}"


def _module_path(scopes: str) -> str:
    """`detector.head.cls` from torch's list "['', 'detector', …, 'detector.head.cls', 'conv2d_7']"."""
    import ast

    try:
        parts = ast.literal_eval(scopes)
    except (SyntaxError, ValueError):
        return ""
    path = str(parts[-2]) if len(parts) > 1 else ""
    return "" if path == "detector" or path.startswith("_") else path.removeprefix("detector.")


def strip(model: onnx.ModelProto) -> None:
    """Remove doc strings and the exporter's metadata, which hold source lines and local paths."""
    model.doc_string = ""
    model.graph.doc_string = ""
    groups = (
        model.graph.node,
        model.graph.input,
        model.graph.output,
        model.graph.value_info,
        model.graph.initializer,
    )
    for group in groups:
        for item in group:
            item.doc_string = ""
            del item.metadata_props[:]
    del model.graph.metadata_props[:]


def read_shapes_behind_the_cast(graph: onnx_graphsurgeon.Graph) -> None:
    """Let each Shape of `images` read its Cast: TensorRT wants a UINT8 input to feed nothing else."""
    (images,) = graph.inputs
    for cast in [node for node in images.outputs if node.op == "Cast"]:
        graph.nodes.insert(0, graph.nodes.pop(graph.nodes.index(cast)))  # nodes stay sorted
        for shape in [node for node in images.outputs if node.op == "Shape"]:
            shape.inputs = [cast.outputs[0]]


def fold_batch_norm(graph: onnx_graphsurgeon.Graph) -> int:
    """Fold each BatchNormalization into the convolution before it, in float64; returns how many."""
    import numpy as np
    import onnx_graphsurgeon as gs

    folded = 0
    for norm in [node for node in graph.nodes if node.op == "BatchNormalization"]:
        convolution = norm.i(0) if norm.inputs[0].inputs else None
        constant = all(isinstance(tensor, gs.Constant) for tensor in norm.inputs[1:])
        if convolution is None or convolution.op != "Conv" or not constant:
            continue
        if len(convolution.outputs[0].outputs) != 1 or convolution.outputs[0] in graph.outputs:
            continue
        if not all(isinstance(tensor, gs.Constant) for tensor in convolution.inputs[1:]):
            continue
        scale, shift, mean, variance = (tensor.values.astype(np.float64) for tensor in norm.inputs[1:5])
        gain = scale / np.sqrt(variance + norm.attrs.get("epsilon", 1e-5))
        weight = convolution.inputs[1].values.astype(np.float64) * gain[:, None, None, None]
        bias = convolution.inputs[2].values.astype(np.float64) if len(convolution.inputs) > 2 else 0.0
        stem = convolution.name
        convolution.inputs = [
            convolution.inputs[0],
            gs.Constant(f"{stem}.folded_weight", weight.astype(np.float32)),
            gs.Constant(f"{stem}.folded_bias", (shift + (bias - mean) * gain).astype(np.float32)),
        ]
        convolution.outputs = [norm.outputs[0]]
        norm.outputs = []
        folded += 1
    graph.cleanup()
    return folded


def scale_before_norms(graph: onnx_graphsurgeon.Graph) -> int:
    """Scale down convolutions that only GroupNorm reads, so that FP16 holds their outputs; returns how many.

    Nothing else bounds them: a tower's first convolution, shared by all levels, was seen to reach 59,500 on
    the coarsest. GroupNorm takes any factor out again, if ε is multiplied by its square. With a power of
    two not a bit of the float32 outputs changes. The factor is the greatest for which no output can exceed
    the greatest input: the sum of a filter's magnitudes is 1 at most.
    """
    import numpy as np
    import onnx_graphsurgeon as gs

    readers: dict[str, list[list[onnx_graphsurgeon.Node]]] = {}  # of each weight: the norms behind each node
    for node in graph.nodes:
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant):
                readers.setdefault(tensor.name, []).append(_norms_behind(node))
    weights = {node.inputs[1].name: node.inputs[1] for node in graph.nodes if node.op == "Conv"}
    scaled = 0
    for name, weight in weights.items():
        if not isinstance(weight, gs.Constant) or not all(readers[name]):
            continue
        greatest = np.abs(weight.values).sum((1, 2, 3), dtype=np.float64).max()
        exponent = int(np.ceil(np.log2(max(greatest, 1.0))))
        weight.values = np.ldexp(weight.values, -exponent)
        for norm in (norm for norms in readers[name] for norm in norms):
            norm.attrs["epsilon"] = float(np.ldexp(norm.attrs.get("epsilon", 1e-5), -2 * exponent))
        scaled += exponent > 0
    return scaled


def _norms_behind(node: onnx_graphsurgeon.Node) -> list[onnx_graphsurgeon.Node]:
    """The normalisations that read a convolution without bias; none if anything else reads it."""
    if node.op != "Conv" or len(node.inputs) > 2:
        return []
    readers = [reader for reader in node.outputs[0].outputs if reader.op != "Shape"]
    behind = [norm for reader in readers for norm in reader.outputs[0].outputs]
    grouped = all(reader.op == "Reshape" for reader in readers)
    return behind if grouped and all(norm.op == NORMALISATION for norm in behind) else []


# --- the NMS node ----------------------------------------------------------------------------------------


def has_nms(model: onnx.ModelProto) -> bool:
    """Whether a RotatedNMS node gives the outputs."""
    return any(node.op_type == rgfl.plugins.NAME for node in model.graph.node)


def check_outputs(model: onnx.ModelProto) -> None:
    """ModelError where the outputs are not those that a RotatedNMS node takes."""
    found = sorted(tensor.name for tensor in model.graph.output)
    if found != ["boxes", "scores"]:
        raise ModelError(
            f"expected the outputs boxes and scores before NMS, found {found}; "
            "write the file anew with export/to_onnx.py, without --uncertainty"
        )


def add_nms(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` that ends in a RotatedNMS node with the thresholds of its spec."""
    import numpy as np
    import onnx_graphsurgeon as gs

    check_outputs(model)
    spec = read_spec(model)
    graph = gs.import_onnx(model)
    outputs = {tensor.name: tensor for tensor in graph.outputs}
    for name, tensor in outputs.items():
        tensor.name = name + BEFORE_NMS
    batch = outputs["boxes"].shape[0]
    types = {"float32": float, "int32": int}
    attributes = {name: types[kind](getattr(spec, name)) for name, kind in rgfl.plugins.attributes().items()}
    given = [
        gs.Variable(name, np.dtype(dtype), (batch, *shape))
        for name, (shape, dtype) in nms_outputs(spec).items()
    ]
    node = gs.Node(
        rgfl.plugins.NAME,
        rgfl.plugins.NAME,
        {**attributes, "plugin_version": rgfl.plugins.VERSION, "plugin_namespace": rgfl.plugins.NAMESPACE},
        [outputs["boxes"], outputs["scores"]],
        given,
        domain=PLUGIN_DOMAIN,
    )
    graph.nodes.append(node)
    graph.outputs = given
    graph.import_domains = [*model.opset_import, _opset(PLUGIN_DOMAIN, 1)]
    return to_model(graph, model)


def cut_nms(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` without its RotatedNMS node: outputs boxes and scores before NMS."""
    import onnx_graphsurgeon as gs

    graph = gs.import_onnx(model)
    found = [node for node in graph.nodes if node.op == rgfl.plugins.NAME]
    if len(found) != 1:
        raise ModelError(f"expected one {rgfl.plugins.NAME} node to cut, found {len(found)}")
    boxes, scores = found[0].inputs
    for tensor in found[0].outputs:
        tensor.name = f"{tensor.name}.cut"
    found[0].outputs = []
    boxes.name, scores.name = "boxes", "scores"
    graph.outputs = [boxes, scores]
    graph.import_domains = [entry for entry in model.opset_import if entry.domain != PLUGIN_DOMAIN]
    return to_model(graph, model)


def _opset(domain: str, version: int) -> onnx.OperatorSetIdProto:
    import onnx

    return onnx.helper.make_opsetid(domain, version)


# --- command ---------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="graph",
        description="Types and nodes of an exported model, written to another file.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="FP32, from export/to_onnx.py")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT.onnx", help="the file to write")
    types = parser.add_mutually_exclusive_group()
    types.add_argument(
        "--fp16", action="store_true", help="FP16 body, FP32 decode: what an engine is built of"
    )
    types.add_argument(
        "--rounding", action="store_true", help="FP32 that rounds as FP16 does: measures it on a CPU"
    )
    parser.add_argument(
        "--keep-fp32", default="", metavar="GLOB,…", help="nodes that stay FP32, by name, such as 'neck*'"
    )
    nodes = parser.add_mutually_exclusive_group()
    nodes.add_argument(
        "--nms", action="store_true", help="end in a RotatedNMS node (TensorRT with the plugin)"
    )
    nodes.add_argument("--no-nms", action="store_true", help="cut the RotatedNMS node")
    arguments = parser.parse_args(argv)
    return errors.run("graph", lambda: edit(arguments))


def edit(arguments: argparse.Namespace) -> int:
    """The command behind `main`, with parsed arguments."""
    check_packages()
    if not (arguments.fp16 or arguments.rounding or arguments.nms or arguments.no_nms):
        raise errors.InputError("nothing to do; give --fp16, --rounding, --nms or --no-nms")
    if arguments.keep_fp32 and not (arguments.fp16 or arguments.rounding):
        raise errors.InputError("--keep-fp32 goes with --fp16 or --rounding")
    if arguments.out.suffix.lower() != ".onnx":
        raise errors.InputError(f"--out {arguments.out}: expected a file name that ends in .onnx")
    checks.new_file(arguments.out, "--out", [arguments.model])
    model = load(arguments.model, weights=False)
    checks.none_of(arguments.out, "--out", weight_files(model, arguments.model))
    load_weights(model, arguments.model)
    try:
        read_spec(model)
        keep = [pattern for pattern in arguments.keep_fp32.split(",") if pattern]
        if arguments.no_nms:
            model = cut_nms(model)
        if arguments.fp16 or arguments.rounding:
            model, report = (to_fp16 if arguments.fp16 else to_rounded)(model, keep)
            print(report.text())
        if arguments.nms:
            model = add_nms(model)
    except (ModelError, SpecError) as error:
        raise ModelError(f"{arguments.model}: {error}") from error
    save(model, arguments.out)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.1f} MB, {precision(model)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
