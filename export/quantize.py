"""FP32 ONNX to INT8 ONNX: explicit Q/DQ, placed as TensorRT fuses it, calibrated on real tiles.

    python export/quantize.py model.onnx --calib train/images --out model-int8.onnx

What is quantised, and why there (TensorRT's explicit quantisation):

- The input and the weight of every convolution (or product with a constant) of the backbone, the
  neck and the head's towers. Symmetric int8: one scale a tensor, one an output channel for weights,
  zero points 0. Weights are stored as int8, a fourth of the file.
- Nothing at a convolution's output: it stays inside the fused kernel, and what follows quantises it.
- A residual addition: the shortcut only, so that convolution, addition and activation are one kernel.
- The pyramid's additions: both inputs. Resize repeats values, so it keeps the scale of its input.
- Never the output convolutions (head.cls, head.reg, head.quality), their inputs, decode and NMS:
  int8 logits cost degrees of angle and compress confidences. Squeeze-and-excitation stays in float
  too: its tensors are one pixel large.

Why this is not onnxruntime.quantization or nvidia-modelopt: the first places Q/DQ for its own
kernels, at every convolution's output, which TensorRT does not fuse, and holds the activations of all
tiles in memory; the second pins onnx and onnxruntime to old versions. Tests compare what they share.

ONNX Runtime's integer kernels want other places, and give integers only: `cpu_variant` (--cpu-variant) is
the same model for them, with a few roundings more.

Names in here: a *block* is the unit that stays in float or does not, such as `backbone.net.layer2.0`.
Where this does not hold the accuracy, let the weights learn to live with it first: `python -m rgfl.train
--start best.pt --fake-int8`, then export and quantise the new checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rgfl import atomic
from rgfl.spec import DetectorSpec
from rgfl.trt_runtime import errors

if TYPE_CHECKING:
    import onnx

Method = Literal["entropy", "percentile", "max"]
# Relative squared error of the logits, of `gfl_lite` on real tiles and of the demo's detector (48 images to
# calibrate, 12 tiles): percentile 99.999 .0072 and .0046, 99.99 .0087 and .0062, 99.9 .0079 and .0069,
# max .0089 and .0047, entropy .0266 and .0095 (it clips what the pyramid reads, which no ReLU bounds).
METHOD: Method = "percentile"
PERCENTILE = 99.999
IMAGES = 64
TILES_PER_IMAGE = 4
SCAN_TILES = 8
QUANTISED_MODULES = ("backbone.", "neck.", "head.cls_tower.", "head.reg_tower.")
OUTPUT_MODULES = ("head.cls", "head.reg")
ADDITION_MODULES = ("backbone", "neck")
LEVELS = 127  # steps from 0 to the threshold
UNSIGNED_LEVELS = 255  # the same for uint8 values that are never negative
BINS = 4096
LEAST_KEPT = 0.99  # of the values, by entropy calibration
CALIBRATION_FORMAT = 1  # raise it when histograms or tiles change: older caches are then collected anew
CPU_OFFSET = 128

EXAMPLES = """\
examples:
  python export/quantize.py model.onnx --calib train/images --out model-int8.onnx
  python export/quantize.py model.onnx --calib train/images --out int8.onnx --cpu-variant int8-cpu.onnx
  python export/quantize.py model.onnx --calib val/images --labels val/labelTxt \\
      --max-ap-drop 0.005 --out int8.onnx

exit status: 0 written, 1 --max-ap-drop cannot be held (nothing is written), 2 bad input
"""


class QuantizationFailed(Exception):
    """The accuracy that was asked for cannot be held with a single block in INT8."""


@dataclass(frozen=True)
class Block:
    """What one block costs.

    Attributes:
        name: of the module.
        layers: its quantised nodes.
        gain: how much smaller the relative squared error of the head's outputs gets without it.
    """

    name: str
    layers: int
    gain: float


@dataclass
class Report:
    """What was done, for people and for tests."""

    path: Path
    spec: DetectorSpec
    method: Method
    tiles: int = 0
    cached: bool = False
    quantised: tuple[str, ...] = ()  # names of nodes
    blocks: tuple[str, ...] = ()
    float_blocks: tuple[str, ...] = ()
    error: float | None = None  # relative squared error of the head's outputs, all blocks in INT8
    scan: list[Block] = field(default_factory=list)
    ap_float: float | None = None
    ap_int8: float | None = None
    bytes_before: int = 0
    bytes_after: int = 0

    def text(self) -> str:
        """A few lines; the scan as a table, the most sensitive block first."""
        source = "cached" if self.cached else "collected"
        lines = [
            f"{len(self.quantised)} layers in INT8, {self.method} over {self.tiles} tiles ({source}); "
            "in float: " + (", ".join(self.float_blocks) or "no block")
        ]
        if self.scan:
            lines.append(f"relative error of the head's outputs {self.error:.2e}; without a block in INT8:")
            lines += [f"  {block.gain:+.2e}  {block.layers:3d} layers  {block.name}" for block in self.scan]
        if self.ap_float is not None and self.ap_int8 is not None:
            lines.append(
                f"mAP on the calibration images {self.ap_float:.4f} -> {self.ap_int8:.4f} "
                f"({self.ap_int8 - self.ap_float:+.4f})"
            )
        ratio = self.bytes_after / max(self.bytes_before, 1)
        lines.append(f"{self.path}: {self.bytes_after / 1e6:.1f} MB, {ratio:.2f} of FP32")
        return "\n".join(lines)


# --- where ----------------------------------------------------------------------------------------------


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
            repeats = before.op_type == "Resize" and _attribute(before, "mode", b"nearest") == b"nearest"
            if repeats and before.input[0] in producer:
                found.activations[before.name, 0] = before.input[0]
                found.activations[node.name, index] = before.input[0]
            else:
                found.activations[node.name, index] = node.input[index]
        note(node)
    return found


def float_outputs(model: onnx.ModelProto, placement: Placement) -> list[str]:
    """What INT8 convolutions give that nobody quantises: in front of additions, normalisations, outputs.

    TensorRT's kernels give float there. ONNX Runtime has no integer kernel that does, and would compute
    these convolutions in float; `cpu_variant` gives them a grid.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    consumers = _consumers(model)
    found = []
    for node in model.graph.node:
        if node.op_type != "Conv" or node.name not in placement.weights:
            continue
        tensor = node.output[0]
        if len(consumers[tensor]) == 1 and _bounds(consumers[tensor][0], constants) is not None:
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


def _attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    import onnx

    for attribute in node.attribute:
        if attribute.name == name:
            return onnx.helper.get_attribute_value(attribute)
    return default


# --- how far: calibration ---------------------------------------------------------------------------------


class Histogram:
    """Counts of |x| in BINS equal bins over [0, 2^e), with the least e that holds all values seen.

    As the range is a power of two, the result is exactly the same in whatever order tiles come.
    """

    def __init__(self, counts: NDArray[np.int64] | None = None, peak: float = 0.0) -> None:
        self.counts = np.zeros(BINS, np.int64) if counts is None else counts
        self.peak = peak

    @property
    def width(self) -> float:
        """Of a bin."""
        return 2.0 ** _exponent(self.peak) / BINS

    def add(self, values: NDArray[np.floating]) -> None:
        """Count `values`, which must be finite."""
        size = np.abs(values.ravel())
        peak = float(size.max(initial=0.0))
        if not math.isfinite(peak):
            raise ValueError("not finite")
        if peak > self.peak:
            if self.peak > 0:
                for _ in range(min(_exponent(peak) - _exponent(self.peak), 64)):
                    merged = self.counts.reshape(-1, 2).sum(1)
                    self.counts = np.concatenate((merged, np.zeros(BINS // 2, np.int64)))
            self.peak = peak
        if self.peak == 0:
            self.counts[0] += size.size
            return
        places = (size * np.float32(1 / self.width)).astype(np.int32)
        self.counts += np.bincount(places, minlength=BINS)

    def threshold(self, method: Method, percentile: float = PERCENTILE) -> float:
        """The magnitude that becomes 127; never above the greatest seen."""
        if self.peak == 0:
            return 1.0  # all zeros: any scale is exact
        if method == "max":
            return self.peak
        if method == "percentile":
            share = np.cumsum(self.counts) / self.counts.sum()
            edge = int(np.searchsorted(share, percentile / 100)) + 1
        else:
            edge = entropy_edge(self.counts)
        return min(edge * self.width, self.peak)


def _exponent(peak: float) -> int:
    """The least e with peak < 2^e."""
    return math.frexp(peak)[1]


def entropy_edge(counts: NDArray[np.int64], levels: int = LEVELS + 1, stride: int = 8) -> int:
    """The number of bins to keep so that `levels` equal steps over them lose the least information.

    For each candidate, P is the histogram with what lies beyond in its last bin, Q what is left of it after
    quantisation; the least Kullback-Leibler divergence of Q from P wins, the greater of equals. The
    first bin counts as its neighbour: after ReLU it holds mostly zeros, which any scale keeps. At least
    LEAST_KEPT of the values are kept: where few lie near 0, P and Q agree on a histogram of outliers.
    """
    histogram = counts.astype(np.float64)
    histogram[0] = histogram[1]
    last = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 0
    if last <= levels or not histogram.any():
        return max(last, 1)
    best, best_edge = math.inf, last
    kept = int(np.searchsorted(np.cumsum(counts), LEAST_KEPT * counts.sum())) + 1
    for edge in [*range(max(levels, kept), last, stride), last]:
        inside = histogram[:edge]
        p = inside.copy()
        p[-1] += histogram[edge:].sum()
        group = np.arange(edge) * levels // edge
        occupied = inside > 0
        mass = np.bincount(group, inside, levels)
        members = np.bincount(group, occupied, levels)
        q = np.where(occupied, (mass / np.maximum(members, 1))[group], 0.0)
        if not q.any():
            continue
        p, q = p / p.sum(), q / q.sum()
        known = p > 0
        q = np.maximum(q, 1e-12)  # outliers alone in the last bin: Q has nothing there
        divergence = float(np.sum(p[known] * np.log(p[known] / q[known])))
        if divergence <= best:
            best, best_edge = divergence, edge
    return best_edge


def find_calibration_images(directory: Path, count: int) -> dict[str, Path]:
    """At most `count` images, evenly spaced over the sorted names."""
    from rgfl.dota.images import find_images

    found = list(find_images(errors.existing_directory(directory, "--calib")).items())
    if not found:
        raise errors.InputError(f"--calib {directory}: no image in it (png, jpg, bmp, tif)")
    chosen = np.unique(np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int))
    return dict(found[index] for index in chosen)


def tiles_of(
    images: Mapping[str, Path], spec: DetectorSpec, per_image: int = TILES_PER_IMAGE
) -> Iterator[NDArray[np.uint8]]:
    """(1, H, W, 3) tiles, at most `per_image` of an image, evenly spaced over its windows."""
    from rgfl.dota.images import read_image
    from rgfl.dota.tiling import crop, windows
    from rgfl.trt_runtime.pipeline import tile_side

    side = tile_side(spec)
    for path in images.values():
        image = read_image(path)
        places = windows(image.shape[0], image.shape[1], side, side)
        chosen = np.unique(np.linspace(0, len(places) - 1, min(per_image, len(places))).round().astype(int))
        for index in chosen:
            yield crop(image, places[index][0], places[index][1], side, spec.pad_value)[None]


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
            mean, std = (np.array(values, np.float32) for values in (self.spec.mean, self.spec.std))
            feed = np.ascontiguousarray(((tiles.astype(np.float32) - mean) / std).transpose(0, 3, 1, 2))
        values: list[NDArray[np.float32]] = self.session.run(
            self.outputs, {self.session.get_inputs()[0].name: feed}
        )
        return values


def collect(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    tiles: Iterator[NDArray[np.uint8]],
    spec: DetectorSpec,
    *,
    total: int | None = None,
    progress: bool = True,
) -> tuple[dict[str, Histogram], int]:
    """Histograms of `tensors` over `tiles`, and how many tiles those were; one tile in memory at a time."""
    from tqdm import tqdm

    network = Network(model, tensors, spec)
    histograms = {name: Histogram() for name in tensors}
    count = 0
    with tqdm(total=total, unit="tile", desc="calibrate", disable=None if progress else True) as bar:
        for tile in tiles:
            for name, values in zip(tensors, network(tile), strict=True):
                try:
                    histograms[name].add(values)
                except ValueError as error:
                    raise errors.ModelError(
                        f"tensor {name!r} is not finite on tile {count}: the FP32 model is broken"
                    ) from error
            count += 1
            bar.update()
    return histograms, count


# --- the cache ----------------------------------------------------------------------------------------------


def calibration_key(model_bytes: bytes, images: Mapping[str, Path], tensors: Sequence[str]) -> str:
    """Digest of all that decides the histograms: model, image files, tensors, rule."""
    from rgfl.dota.images import ImageError

    digest = hashlib.sha256(f"{CALIBRATION_FORMAT} {BINS} {TILES_PER_IMAGE} {list(tensors)}".encode())
    digest.update(hashlib.sha256(model_bytes).digest())
    for name, path in images.items():
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from error
        digest.update(name.encode() + hashlib.sha256(content).digest())
    return digest.hexdigest()


def load_cache(path: Path, key: str) -> tuple[dict[str, Histogram], int] | None:
    """Histograms of exactly this calibration, or None: another one, damaged or absent."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["key"]) != key:
                return None
            rows = zip(stored["names"], stored["counts"], stored["peaks"], strict=True)
            return {str(n): Histogram(c, float(p)) for n, c, p in rows}, int(stored["tiles"])
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def save_cache(path: Path, key: str, histograms: Mapping[str, Histogram], tiles: int) -> None:
    """Write what `load_cache` reads."""
    import io

    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        key=np.array(key),
        names=np.array(list(histograms)),
        counts=np.array([one.counts for one in histograms.values()]),
        peaks=np.array([one.peak for one in histograms.values()]),
        tiles=np.array(tiles),
    )
    atomic.write_bytes(path, buffer.getvalue())


# --- surgery ---------------------------------------------------------------------------------------------


def _consumers(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    found: dict[str, list[onnx.NodeProto]] = {
        name: [] for node in model.graph.node for name in [*node.input, *node.output]
    }
    for node in model.graph.node:
        for name in node.input:
            found[name].append(node)
    return found


def quantise_weight(weight: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 in -127…127 and the scale of each channel along `axis`."""
    others = tuple(index for index in range(weight.ndim) if index != axis)
    greatest = np.abs(weight).max(axis=others)
    scale = (np.where(greatest > 0, greatest, 1.0) / LEVELS).astype(np.float32)
    shape = [-1 if index == axis else 1 for index in range(weight.ndim)]
    steps = np.rint(weight.astype(np.float64) / scale.astype(np.float64).reshape(shape))
    return np.clip(steps, -LEVELS, LEVELS).astype(np.int8), scale


def insert(model: onnx.ModelProto, placement: Placement, thresholds: Mapping[str, float]) -> onnx.ModelProto:
    """A copy of `model` with Q/DQ at `placement`; a tensor has one Q, each of its readers its own DQ."""
    import onnx
    from onnx import helper, numpy_helper

    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    fresh: dict[str, onnx.TensorProto] = {}

    def constant(name: str, values: NDArray) -> str:
        if name not in fresh:
            fresh[name] = numpy_helper.from_array(values, name)
        return name

    nodes: list[onnx.NodeProto] = []
    quantised: dict[tuple[str, str], str] = {}
    zero = np.array(0, np.int8)
    original = list(graph.node)
    for node in original:
        for index in range(len(node.input)):
            source = placement.activations.get((node.name, index))
            if source is not None:
                tensor = node.input[index]
                scale = constant(f"{source}.scale", np.array(thresholds[source] / LEVELS, np.float32))
                point = constant("int8.zero", zero)
                if (tensor, source) not in quantised:
                    quantised[tensor, source] = f"{tensor}.int8"
                    nodes.append(
                        helper.make_node(
                            "QuantizeLinear",
                            [tensor, scale, point],
                            [f"{tensor}.int8"],
                            name=f"{tensor}/QuantizeLinear",
                        )
                    )
                output = f"{node.name}.input{index}"
                nodes.append(
                    helper.make_node(
                        "DequantizeLinear",
                        [quantised[tensor, source], scale, point],
                        [output],
                        name=f"{output}/DequantizeLinear",
                    )
                )
                node.input[index] = output
            elif index == 1 and node.name in placement.weights:
                axis, name = placement.weights[node.name], node.input[1]
                if f"{name}.int8" not in fresh:
                    steps, scales = quantise_weight(numpy_helper.to_array(constants[name]), axis)
                    constant(f"{name}.int8", steps)
                    constant(f"{name}.scale", scales)
                    constant(f"{name}.zero", np.zeros(len(scales), np.int8))
                output = f"{node.name}.weight"
                nodes.append(
                    helper.make_node(
                        "DequantizeLinear",
                        [f"{name}.int8", f"{name}.scale", f"{name}.zero"],
                        [output],
                        name=f"{output}/DequantizeLinear",
                        axis=axis,
                    )
                )
                node.input[1] = output
        nodes.append(node)
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.initializer[:]
    graph.initializer.extend([*kept, *fresh.values()])
    return result


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with its shapes inferred anew, after ONNX's checker has passed it."""
    import onnx

    del model.graph.value_info[:]
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    onnx.checker.check_model(model, full_check=True)
    return model


# --- the CPU's variant -----------------------------------------------------------------------------------


def cpu_variant(model: onnx.ModelProto, thresholds: Mapping[str, float] | None = None) -> onnx.ModelProto:
    """`model` written for ONNX Runtime's integer kernels, which want uint8 activations in and out.

    Three rewritings are exact: every value that a convolution reads is the same float as before.

    - Activations: zero point int8 0 becomes uint8 128. The grid is the same.
    - Conv (or Add), ReLU (or clip), Q becomes Conv, Q, clip of the integers: quantisation keeps order, so
      it may be done first, and Conv and Q are then one integer kernel.
    - MaxPool, Q becomes Q, MaxPool of the integers, for the same reason.

    That alone is slow: where TensorRT has Q only behind a residual addition, the convolution in front stays
    in float. With `thresholds` three more change the numbers, as little as a step of a grid:

    - Convolutions that nobody quantises behind get a grid of their own.
    - What a ReLU gives is never negative: its grid has 255 steps above zero, not 127, and saturating does
      the ReLU's work.
    - Pixels stay on their own grid where the normalisation allows it: whole means, one deviation for all.

    Args:
        model: what `insert` gives.
        thresholds: of `float_outputs`; None: only what is exact.
    """
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(model)
    if thresholds is not None:
        _add_grids(result, thresholds)
    _quantise_before_pooling(result)
    if thresholds is not None:
        _saturate_at_zero(result)
        _keep_pixels(result)
    _quantise_before_clipping(result)
    _offset_activations(result)
    return checked(result)


def _add_grids(model: onnx.ModelProto, thresholds: Mapping[str, float]) -> None:
    """Q and DQ behind whatever gives each tensor of `thresholds`."""
    from onnx import helper

    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        tensor = node.output[0]
        if tensor not in thresholds:
            continue
        scale = _constant(model, f"{tensor}.scale", np.float32(thresholds[tensor] / LEVELS))
        node.output[0] = f"{tensor}.float"
        for operator, given, made in (
            ("QuantizeLinear", f"{tensor}.float", f"{tensor}.int8"),
            ("DequantizeLinear", f"{tensor}.int8", tensor),
        ):
            nodes.append(
                helper.make_node(operator, [given, scale, "int8.zero"], [made], name=f"{tensor}/{operator}")
            )
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _constant(model: onnx.ModelProto, name: str, value: np.generic) -> str:
    """A scalar in the graph under this name."""
    from onnx import numpy_helper

    if all(tensor.name != name for tensor in model.graph.initializer):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    return name


def _saturate_at_zero(model: onnx.ModelProto) -> None:
    """Conv|Add → ReLU|Clip from 0 → Q becomes Conv|Add → Q on a grid that begins at zero."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    producer = {output: node for node in model.graph.node for output in node.output}
    consumers = _consumers(model)
    removed = []
    for node in model.graph.node:
        activation = producer.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        bounds = _bounds(activation, constants) if activation is not None else None
        if activation is None or bounds is None or bounds[0] != 0:
            continue
        if len(consumers[activation.output[0]]) != 1 or len(consumers[activation.input[0]]) != 1:
            continue
        if producer[activation.input[0]].op_type not in ("Conv", "Add"):
            continue
        threshold = LEVELS * float(numpy_helper.to_array(constants[node.input[1]]))
        scale = _constant(
            model, f"{node.input[1]}.unsigned", np.float32(min(threshold, bounds[1]) / UNSIGNED_LEVELS)
        )
        zero = _constant(model, "uint8.0", np.uint8(0))
        grid = [node, *_integers(node.output[0], consumers)]
        node.input[0] = activation.input[0]
        for one in grid:
            one.input[1], one.input[2] = scale, zero
        removed.append(activation.name)
    kept = [node for node in model.graph.node if node.name not in removed]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _integers(tensor: str, consumers: Mapping[str, list[onnx.NodeProto]]) -> list[onnx.NodeProto]:
    """The DQ nodes that read an integer tensor, through pooling too."""
    found = []
    for node in consumers[tensor]:
        found += [node] if node.op_type == "DequantizeLinear" else _integers(node.output[0], consumers)
    return found


def _keep_pixels(model: onnx.ModelProto) -> None:
    """Cast → Transpose → Sub → Div → Q → DQ becomes Transpose → DQ where that is the same, unrounded.

    (x − mean) / std is what DQ computes of a pixel if the means are whole numbers and the same for all
    channels, as are the deviations.
    """
    from onnx import numpy_helper

    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    producer = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear":
            continue
        chain, tensor = [], node.input[0]
        for operator in ("Div", "Sub", "Transpose", "Cast"):
            before = producer.get(tensor)
            if before is None or before.op_type != operator:
                break
            chain.append(before)
            tensor = before.input[0]
        if len(chain) != 4 or tensor != "images":
            continue
        divide, subtract, transpose, _ = chain
        std, mean = (constants[one.input[1]].ravel() for one in (divide, subtract))
        if len({*std.tolist()}) > 1 or len({*mean.tolist()}) > 1 or mean[0] != round(float(mean[0])):
            continue
        transpose.input[0] = "images"
        scale = _constant(model, "images.scale", np.float32(1 / std[0]))
        zero = _constant(model, f"uint8.{int(mean[0])}", np.uint8(mean[0]))
        for reader in model.graph.node:
            if reader.op_type == "DequantizeLinear" and reader.input[0] == node.output[0]:
                reader.input[:] = [transpose.output[0], scale, zero]
    _remove_unread(model)


def _remove_unread(model: onnx.ModelProto) -> None:
    """Nodes whose outputs nobody reads, the last first."""
    outputs = {output.name for output in model.graph.output}
    while True:
        read = {name for node in model.graph.node for name in node.input} | outputs
        kept = [node for node in model.graph.node if read.intersection(node.output)]
        if len(kept) == len(model.graph.node):
            return
        del model.graph.node[:]
        model.graph.node.extend(kept)


def _quantise_before_pooling(model: onnx.ModelProto) -> None:
    """MaxPool → Q becomes Q → MaxPool of integers."""
    producer = {output: node for node in model.graph.node for output in node.output}
    consumers = _consumers(model)
    for node in model.graph.node:
        pool = producer.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        if pool is None or pool.op_type != "MaxPool" or len(pool.output) > 1:
            continue
        if len(consumers[pool.output[0]]) != 1:
            continue
        # The two nodes change places in the list and between their tensors. (What is pooled may have a Q of
        # its own, on another grid.)
        first, integers = pool.input[0], f"{pool.output[0]}.unpooled"
        pool.input[0], pool.output[0], node.output[0] = integers, node.output[0], integers
        node.input[0] = first
        quantise, pooling = type(node)(), type(pool)()
        quantise.CopyFrom(node)
        pooling.CopyFrom(pool)
        pool.CopyFrom(quantise)
        node.CopyFrom(pooling)


def _quantise_before_clipping(model: onnx.ModelProto) -> int:
    """Conv|Add → ReLU|Clip → Q becomes Conv|Add → Q → Clip of int8; returns how many."""
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    producer = {output: node for node in model.graph.node for output in node.output}
    consumers = _consumers(model)
    outputs = {output.name for output in model.graph.output}
    fresh: dict[str, onnx.TensorProto] = {}
    removed, after = [], {}
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear":
            continue
        activation = producer.get(node.input[0])
        bounds = _bounds(activation, constants) if activation is not None else None
        if activation is None or bounds is None or activation.output[0] in outputs:
            continue
        before = producer.get(activation.input[0])
        if before is None or before.op_type not in ("Conv", "Add"):
            continue
        if len(consumers[activation.output[0]]) != 1 or len(consumers[before.output[0]]) != 1:
            continue
        scale = numpy_helper.to_array(constants[node.input[1]]).astype(np.float32)
        names = []
        for bound in bounds:
            # As the operator does it: divide in float32, round half to even, saturate.
            steps = np.rint(np.float32(bound) / scale) if math.isfinite(bound) else math.copysign(128, bound)
            step = np.array(np.clip(steps, -128, 127), np.int8)
            name = f"int8.{int(step)}"
            fresh[name] = numpy_helper.from_array(step, name)
            names.append(name)
        clipped, unclipped = node.output[0], f"{node.output[0]}.unclipped"
        node.input[0], node.output[0] = activation.input[0], unclipped
        after[node.name] = helper.make_node(
            "Clip", [unclipped, *names], [clipped], name=f"{activation.name}.int8"
        )
        removed.append(activation.name)
    nodes = []
    for node in model.graph.node:
        if node.name not in removed:
            nodes.append(node)
        if node.name in after:
            nodes.append(after[node.name])
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(tensor for name, tensor in fresh.items() if name not in constants)
    return len(removed)


def _bounds(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> tuple[float, float] | None:
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


def _offset_activations(model: onnx.ModelProto) -> None:
    """Zero points of activations, and integers compared with them: int8 x becomes uint8 x + 128."""
    from onnx import TensorProto, numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    producer = {output: node for node in model.graph.node for output in node.output}
    fresh: dict[str, onnx.TensorProto] = {}

    def offset(name: str) -> str:
        if constants[name].data_type == TensorProto.UINT8:
            return name
        value = int(numpy_helper.to_array(constants[name])) + CPU_OFFSET
        other = f"uint8.{value}"
        fresh[other] = numpy_helper.from_array(np.array(value, np.uint8), other)
        return other

    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" or (
            node.op_type == "DequantizeLinear" and node.input[0] in producer
        ):
            node.input[2] = offset(node.input[2])
        elif node.op_type == "Clip" and producer[node.input[0]].op_type == "QuantizeLinear":
            for index in (1, 2):
                node.input[index] = offset(node.input[index])
    read = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    names = {tensor.name for tensor in kept}
    model.graph.initializer.extend([*kept, *(one for name, one in fresh.items() if name not in names)])


# --- accuracy ----------------------------------------------------------------------------------------------


def head_outputs(model: onnx.ModelProto) -> list[str]:
    """The logits: outputs of the convolutions that stay in float, or none if the names are unknown."""
    return [
        node.output[0]
        for node in model.graph.node
        if node.op_type == "Conv" and module_of(node.name) in OUTPUT_MODULES
    ]


def relative_error(
    network: Network, tiles: Sequence[NDArray], expected: Sequence[Sequence[NDArray]]
) -> float:
    """Squared error of the logits over their variance, the mean over the tensors."""
    wrong = np.zeros(len(network.outputs))
    spread = np.zeros(len(network.outputs))
    for tile, wanted in zip(tiles, expected, strict=True):
        for index, (got, true) in enumerate(zip(network(tile), wanted, strict=True)):
            wrong[index] += float(np.mean(np.square(got - true, dtype=np.float64)))
            spread[index] += float(np.var(true, dtype=np.float64))
    return float(np.mean(wrong / np.maximum(spread, 1e-30)))


def scan(
    model: onnx.ModelProto,
    thresholds: Mapping[str, float],
    tiles: Sequence[NDArray[np.uint8]],
    spec: DetectorSpec,
    keep_float: Collection[str] = (),
    progress: bool = True,
) -> tuple[float, list[Block]]:
    """The error with every block in INT8, and what each block in float would take off it, greatest first."""
    from tqdm import tqdm

    outputs = head_outputs(model)
    if not outputs:
        raise errors.ModelError(
            f"no layer is named {' or '.join(OUTPUT_MODULES)}; export the checkpoint anew"
        )
    reference = Network(model, outputs, spec)
    expected = [reference(tile) for tile in tiles]

    def error(left_out: Collection[str]) -> float:
        quantised = insert(model, place(model, left_out), thresholds)
        return relative_error(Network(quantised, outputs, spec), tiles, expected)

    whole = error(keep_float)
    blocks = place(model, keep_float).blocks
    found = []
    for name in tqdm(blocks, unit="block", desc="scan", disable=None if progress else True):
        gain = whole - error({*keep_float, name})
        found.append(Block(name, len(blocks[name]), gain))
    return whole, sorted(found, key=lambda block: (-block.gain, block.name))


def mean_ap(path: Path, images: Mapping[str, Path], truth: Mapping[str, Any], progress: bool) -> float:
    """mAP (.50:.95) over the classes that occur in `truth`, on whole images."""
    from tqdm import tqdm

    from rgfl.dota import average_precision, merge
    from rgfl.dota.images import read_image
    from rgfl.trt_runtime.pipeline import default_stride, tile_side
    from rgfl.trt_runtime.runners import load_runner

    detections = {}
    with load_runner(path, device="cpu") as runner:
        spec, side = runner.spec, tile_side(runner.spec)
        for name, file in tqdm(
            images.items(), unit="image", desc="AP", leave=False, disable=None if progress else True
        ):
            detections[name] = merge.detect(
                read_image(file),
                runner,
                size=side,
                stride=default_stride(side),
                pad_value=spec.pad_value,
                iou_threshold=spec.iou_threshold,
            )
    result = average_precision.evaluate_detections(detections, truth, spec.classes)
    present = [row for row, one in enumerate(result.by_class) if one.ground_truth]
    if not present:
        raise errors.InputError("--labels: no object of the model's classes on the calibration images")
    return float(result.ap[present].mean())


def fewest_in_float(ranking: Sequence[str], drop: Callable[[Sequence[str]], float], allowed: float) -> int:
    """The least k for which the first k blocks of `ranking` in float keep `drop` within `allowed`.

    By doubling and halving, so it supposes that more float is no worse; both k and k − 1 are measured.
    """
    low, high = -1, 0  # low does not hold, high is tried
    while drop(ranking[:high]) > allowed:
        low = high
        if high == len(ranking) - 1:
            raise QuantizationFailed
        high = min(max(1, 2 * high), len(ranking) - 1)
    while high - low > 1:
        middle = (low + high) // 2
        if drop(ranking[:middle]) > allowed:
            low = middle
        else:
            high = middle
    return high


# --- the whole ---------------------------------------------------------------------------------------------


def read_float_model(path: Path) -> tuple[onnx.ModelProto, DetectorSpec]:
    """The FP32 model in `path`, ready to be quantised, and its spec; ModelError where it cannot be."""
    import onnx

    from rgfl.export import graph

    model = graph.load(path)
    spec = graph.read_spec(model)
    operators = {node.op_type for node in model.graph.node}
    domains = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    if operators & {"QuantizeLinear", "DequantizeLinear"}:
        raise errors.ModelError(f"{path}: it is quantised already; give the FP32 file of export/to_onnx.py")
    if domains or "RotatedNMS" in operators:
        raise errors.ModelError(
            f"{path}: NMS is inside this graph; give the file of export/to_onnx.py, NMS comes after"
        )
    halves = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    if any(tensor.data_type in halves for tensor in model.graph.initializer):
        raise errors.ModelError(f"{path}: its weights are FP16; give the FP32 file of export/to_onnx.py")
    if not place(model).weights:
        raise errors.ModelError(
            f"{path}: no layer to quantise: none is named {', '.join(QUANTISED_MODULES)}…; "
            "write the file anew with export/to_onnx.py"
        )
    return model, spec


def quantize(
    model_path: Path | str,
    out_path: Path | str,
    calibration_images: Path | str,
    *,
    method: Method = METHOD,
    percentile: float = PERCENTILE,
    images: int = IMAGES,
    keep_float: Sequence[str] = (),
    scan_blocks: bool = False,
    max_ap_drop: float | None = None,
    labels: Path | str | None = None,
    cache: Path | str | None = None,
    cpu_variant_path: Path | str | None = None,
    cpu_exact: bool = False,
    progress: bool = True,
) -> Report:
    """Write the INT8 form of `model_path` to `out_path`; the same inputs give the same bytes.

    Args:
        model_path: FP32, without NMS, with its spec: what export/to_onnx.py writes.
        calibration_images: a folder; `images` of them are used, evenly spaced over the names.
        method: how the greatest representable activation is chosen.
        percentile: of the method of that name.
        keep_float: blocks that stay in float.
        scan_blocks: measure what each block costs, for the report.
        max_ap_drop: put the most sensitive blocks into float until mAP on the calibration images is within
            this of FP32's. Needs `labels`.
        labels: DOTA label files of the calibration images.
        cache: file of histograms; used only if it belongs to this very model and these images.
        cpu_variant_path: write `cpu_variant` of the result there.
        cpu_exact: of its rewritings only those that change no bit.

    Raises:
        QuantizationFailed: `max_ap_drop` cannot be held.
        ModelError, InputError, SpecError, ImageError, LabelError: what the user can put right.
    """
    from itertools import islice

    from rgfl import __version__
    from rgfl.export import graph

    model_path, out_path = Path(model_path), Path(out_path)
    _check(method, percentile, images, max_ap_drop, labels)
    model, spec = read_float_model(model_path)
    chosen = find_calibration_images(Path(calibration_images), images)
    truth = _truth(Path(labels), chosen, spec) if labels is not None else None
    everything = place(model)
    if unknown := sorted(set(keep_float) - set(everything.blocks)):
        raise errors.InputError(
            f"--float {unknown[0]}: no such block; there are {', '.join(everything.blocks)}"
        )

    # Those of the CPU's variant always: reading more tensors turns off fusions, and a last digit with them.
    tensors = [*everything.tensors, *float_outputs(model, everything)]
    key = calibration_key(model_path.read_bytes(), chosen, tensors)
    stored = load_cache(Path(cache), key) if cache is not None else None
    report = Report(out_path, spec, method, cached=stored is not None)
    if stored is None:
        stored = collect(model, tensors, tiles_of(chosen, spec), spec, progress=progress)
        if cache is not None:
            save_cache(Path(cache), key, *stored)
    histograms, report.tiles = stored
    thresholds = {name: one.threshold(method, percentile) for name, one in histograms.items()}

    def build(left_out: Sequence[str]) -> onnx.ModelProto:
        result = checked(insert(model, place(model, left_out), thresholds))
        graph.write_spec(
            result,
            spec,
            precision="int8",
            version=__version__,
            calibration=f"{method}, {report.tiles} tiles, {key[:12]}",
            float_blocks=",".join(left_out),
        )
        return result

    left_out = list(dict.fromkeys(keep_float))
    if scan_blocks or max_ap_drop is not None:
        tiles = list(islice(tiles_of(chosen, spec, 1), SCAN_TILES))
        report.error, report.scan = scan(model, thresholds, tiles, spec, left_out, progress)
    if max_ap_drop is not None and truth is not None:
        reference = report.ap_float = mean_ap(model_path, chosen, truth, progress)
        measured: dict[int, float] = {}

        def drop(blocks: Sequence[str]) -> float:
            with tempfile.TemporaryDirectory() as folder:
                trial = Path(folder) / "trial.onnx"
                graph.save(build([*left_out, *blocks]), trial)
                measured[len(blocks)] = mean_ap(trial, chosen, truth, progress)
            return reference - measured[len(blocks)]

        ranking = [block.name for block in report.scan]
        count = fewest_in_float(ranking, drop, max_ap_drop)
        report.ap_int8 = measured[count]
        left_out += ranking[:count]

    result = build(left_out)
    graph.save(result, out_path)
    placement = place(model, left_out)
    if cpu_variant_path is not None:
        open_ends = {name: thresholds[name] for name in float_outputs(model, placement)}
        other = cpu_variant(result, None if cpu_exact else open_ends)
        graph.write_spec(other, spec, variant="cpu")
        graph.save(other, Path(cpu_variant_path))
    report.quantised = tuple(placement.weights)
    report.blocks = tuple(everything.blocks)
    report.float_blocks = tuple(left_out)
    report.bytes_before, report.bytes_after = model_path.stat().st_size, out_path.stat().st_size
    return report


def _check(
    method: str, percentile: float, images: int, max_ap_drop: float | None, labels: Path | str | None
) -> None:
    if method not in get_args(Method):
        raise errors.InputError(f"--method {method}: expected one of {', '.join(get_args(Method))}")
    if not 50 < percentile <= 100:
        raise errors.InputError(f"--percentile {percentile}: expected more than 50, at most 100")
    if images < 1:
        raise errors.InputError(f"--images {images}: expected 1 or more")
    if (max_ap_drop is None) != (labels is None):
        raise errors.InputError("--max-ap-drop and --labels go together: AP needs both")
    if max_ap_drop is not None and not 0 <= max_ap_drop < 1:
        raise errors.InputError(f"--max-ap-drop {max_ap_drop}: expected a difference of mAP, such as 0.005")


def _truth(labels: Path, images: Mapping[str, Path], spec: DetectorSpec) -> dict[str, Any]:
    """Objects on the calibration images."""
    from rgfl.dota.labels import read_labels

    errors.existing_directory(labels, "--labels")
    found = {}
    for name, path in images.items():
        file = labels / f"{name}.txt"
        if not file.is_file():
            raise errors.InputError(f"--labels {labels}: no {file.name} for the image {path}")
        found[name] = read_labels(file, spec.classes, "ignore")
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="quantize",
        description=(__doc__ or "").split("\n\n", maxsplit=1)[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="FP32, as export/to_onnx.py writes it")
    parser.add_argument("--calib", type=Path, required=True, metavar="DIR", help="images of the domain")
    parser.add_argument("--out", type=Path, required=True, metavar="INT8.onnx", help="the file to write")
    parser.add_argument(
        "--method", choices=get_args(Method), default=METHOD, help="of calibration (default: %(default)s)"
    )
    parser.add_argument(
        "--percentile", type=float, default=PERCENTILE, metavar="P", help="of that method (%(default)s)"
    )
    parser.add_argument(
        "--images",
        type=int,
        default=IMAGES,
        metavar="N",
        help="images to calibrate on (default: %(default)s)",
    )
    parser.add_argument(
        "--float", action="append", default=[], metavar="BLOCK", help="keep this block in float"
    )
    parser.add_argument("--scan", action="store_true", help="print what each block costs")
    parser.add_argument(
        "--max-ap-drop", type=float, metavar="X", help="put blocks into float until mAP drops by X at most"
    )
    parser.add_argument("--labels", type=Path, metavar="DIR", help="label files of the calibration images")
    parser.add_argument(
        "--cpu-variant", type=Path, metavar="FILE", help="also write it for ONNX Runtime's integer kernels"
    )
    parser.add_argument(
        "--cpu-exact", action="store_true", help="of its rewritings only those that change no bit (slower)"
    )
    parser.add_argument("--cache", type=Path, metavar="FILE", help="histograms (default: beside --out)")
    arguments = parser.parse_args(argv)
    return errors.run("quantize", lambda: command(arguments))


def command(arguments: argparse.Namespace) -> int:
    """The command behind `main`, with parsed arguments."""
    for flag, path in (("--out", arguments.out), ("--cpu-variant", arguments.cpu_variant)):
        if path is not None and (path.suffix.lower() != ".onnx" or path.is_dir()):
            raise errors.InputError(f"{flag} {path}: expected the name of a file that ends in .onnx")
        if path is not None and path.resolve() == arguments.model.resolve():
            raise errors.InputError(f"{flag} {path}: this is the FP32 model; choose another name")
    if arguments.cpu_variant is not None and arguments.cpu_variant.resolve() == arguments.out.resolve():
        raise errors.InputError(f"--cpu-variant {arguments.cpu_variant}: the same file as --out")
    if arguments.cpu_exact and arguments.cpu_variant is None:
        raise errors.InputError("--cpu-exact goes with --cpu-variant FILE")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        report = quantize(
            arguments.model,
            arguments.out,
            arguments.calib,
            method=arguments.method,
            percentile=arguments.percentile,
            images=arguments.images,
            keep_float=arguments.float,
            scan_blocks=arguments.scan,
            max_ap_drop=arguments.max_ap_drop,
            labels=arguments.labels,
            cache=arguments.cache or arguments.out.with_suffix(".calibration.npz"),
            cpu_variant_path=arguments.cpu_variant,
            cpu_exact=arguments.cpu_exact,
        )
    except QuantizationFailed:
        print(
            f"quantize: mAP drops by more than {arguments.max_ap_drop} with any block in INT8, nothing was "
            "written; allow more, or give more --images",
            file=sys.stderr,
        )
        return 1
    print(report.text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
