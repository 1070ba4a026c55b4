"""FP32 ONNX to INT8 ONNX: explicit Q/DQ, placed as TensorRT fuses it, calibrated on real tiles.

    python export/quantize.py model.onnx --calib train/images --out model-int8.onnx

In the order of the work: placement.py chooses what is quantised, equalisation.py lets channels fill their
grids, calibration.py says how far those reach, gptq.py to which steps the weights go, qdq.py writes it
into the graph, and cpu_int8.py rewrites that for ONNX Runtime's integer kernels (--cpu-variant). Symmetric
int8: one scale a tensor, one an output channel for weights, zero points 0. Weights are stored as int8, a
fourth of the file. A block that alone causes much of the error stays in float (--float-above).

Why this is not onnxruntime.quantization or nvidia-modelopt: the first places Q/DQ for its own
kernels, at every convolution's output, which TensorRT does not fuse, and holds the activations of all
tiles in memory; the second pins onnx and onnxruntime to old versions. Tests compare what they share.

Where this does not hold the accuracy, let the weights learn to live with it first: `python -m rgfl.train
--start best.pt --fake-int8`, then export and quantise the new checkpoint.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from rgfl import __version__, checks, errors
from rgfl.dota.average_precision import evaluate_detections
from rgfl.dota.labels import read_labels, version_of
from rgfl.export import onnx_file
from rgfl.export.calibration import (
    METHOD,
    PERCENTILE,
    Method,
    calibration_key,
    collect,
    find_calibration_images,
    load_cache,
    save_cache,
    spread_tiles,
    tiles_of,
)
from rgfl.export.cpu_int8 import cpu_variant
from rgfl.export.equalisation import equalise
from rgfl.export.gptq import TILES, round_weights
from rgfl.export.network import Network
from rgfl.export.placement import OUTPUT_MODULES, QUANTISED_MODULES, float_outputs, module_of, place
from rgfl.export.qdq import WeightSteps, checked, insert
from rgfl.spec import DetectorSpec
from rgfl.trt_runtime.runners import load_runner
from rgfl.trt_runtime.streaming import stream

if TYPE_CHECKING:
    import onnx

IMAGES = 64
SCAN_TILES = 4
# Share of the error. The light detector's first depthwise convolution causes .4 to .6 of it: 127 steps are
# too few for its ReLU6.
FLOAT_ABOVE = 1 / 3

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


@dataclass(frozen=True)
class Report:
    """What was done, for people and for tests."""

    path: Path
    spec: DetectorSpec
    method: Method
    tiles: int
    cached: bool
    quantised: tuple[str, ...]  # names of nodes
    blocks: tuple[str, ...]
    float_blocks: tuple[str, ...]
    cpu_float_blocks: tuple[str, ...] | None  # of the CPU's variant, if one was asked for
    error: float | None  # relative squared error of the head's outputs, all blocks in INT8
    scan: Sequence[Block]
    ap_float: float | None
    ap_int8: float | None
    bytes_before: int
    bytes_after: int

    def text(self, with_scan: bool = False) -> str:
        """A few lines; the scan as a table if wanted, the most sensitive block first."""
        source = "cached" if self.cached else "collected"
        shares = {block.name: block.gain / (self.error or 1) for block in self.scan}
        in_float = [
            f"{name} (in INT8 {shares[name]:.0%} of the error)" if name in shares else name
            for name in self.float_blocks
        ]
        lines = [
            f"{len(self.quantised)} layers in INT8, {self.method} over {self.tiles} tiles ({source}); "
            "in float: " + (", ".join(in_float) or "no block")
        ]
        if self.cpu_float_blocks not in (None, self.float_blocks):
            lines.append(f"for ONNX Runtime, in float: {', '.join(self.cpu_float_blocks) or 'no block'}")
        if self.scan and with_scan:
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


# --- accuracy ----------------------------------------------------------------------------------------------


def head_outputs(model: onnx.ModelProto) -> list[str]:
    """The logits: outputs of the convolutions that stay in float, or none if the names are unknown."""
    return [
        node.output[0]
        for node in model.graph.node
        if node.op_type == "Conv" and module_of(node.name) in OUTPUT_MODULES
    ]


class Logits:
    """Outputs of the head of a float model on some tiles, to tell how far another model's are away."""

    def __init__(
        self, model: onnx.ModelProto, tiles: Sequence[NDArray[np.uint8]], spec: DetectorSpec
    ) -> None:
        self.names, self.tiles, self.spec = head_outputs(model), tiles, spec
        if not self.names:
            raise errors.ModelError(
                f"no layer is named {' or '.join(OUTPUT_MODULES)}; export the checkpoint anew"
            )
        network = Network(model, self.names, spec)
        self.values = [network(tile) for tile in tiles]

    def error(self, model: onnx.ModelProto) -> float:
        """Squared error over the variance, the mean over the tensors."""
        network = Network(model, self.names, self.spec)
        wrong, spread = np.zeros(len(self.names)), np.zeros(len(self.names))
        for tile, wanted in zip(self.tiles, self.values, strict=True):
            for index, (got, true) in enumerate(zip(network(tile), wanted, strict=True)):
                wrong[index] += float(np.mean(np.square(got - true, dtype=np.float64)))
                spread[index] += float(np.var(true, dtype=np.float64))
        return float(np.mean(wrong / np.maximum(spread, 1e-30)))


def scan(
    blocks: Mapping[str, Sequence[str]], error: Callable[[Collection[str]], float]
) -> tuple[float, list[Block]]:
    """The error with every block in INT8, and what each block in float would take off it, greatest first.

    Args:
        blocks: block -> its quantised nodes.
        error: with these blocks in float.
    """
    from tqdm import tqdm

    whole = error(())
    found = []
    for name in tqdm(blocks, unit="block", desc="scan", leave=False, disable=None):
        found.append(Block(name, len(blocks[name]), whole - error([name])))
    return whole, sorted(found, key=lambda block: (-block.gain, block.name))


def cause_most(
    whole: float, blocks: Sequence[Block], share: float, error: Callable[[Collection[str]], float]
) -> list[str]:
    """Blocks that, one after the other in float, each take more than this share of the error off.

    Consecutive blocks carry the same error, so once the first is in float the next may gain nothing; each
    is measured again.

    Args:
        whole, blocks: of `scan`.
        error: with these blocks in float.
    """
    chosen: list[str] = []
    gains = {block.name: block.gain for block in blocks if block.gain > share * whole}
    rest = whole
    while gains:
        best = max(gains, key=lambda name: gains[name])
        if gains[best] <= share * whole:
            break
        chosen.append(best)
        rest -= gains.pop(best)
        gains = {name: rest - error([*chosen, name]) for name in gains}
    return chosen


def mean_ap(path: Path, images: Mapping[str, Path], truth: Mapping[str, Any]) -> float:
    """mAP (.50:.95) over the classes that occur in `truth`, tiled, merged and scored as eval_dota.py does."""
    from tqdm import tqdm

    with load_runner(path, device="cpu") as runner:
        classes = runner.spec.classes
        done = tqdm(
            stream(runner, images), total=len(images), unit="image", desc="AP", leave=False, disable=None
        )
        detections = {scene.name: scene.detections for scene in done}
    result = evaluate_detections(detections, truth, classes, version=version_of(classes))
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

    model = onnx_file.load(path)
    spec = onnx_file.read_spec(model)
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


@dataclass(frozen=True)
class _Calibrated:
    """A float model and all that makes it INT8, whichever blocks are left out.

    Attributes:
        model: in float, equalised.
        thresholds: magnitude of each activation that becomes 127.
        weights: their steps, by name.
        tiles: number of them that the thresholds come from.
        cached: whether those were histograms of the cache.
        note: how it was calibrated, for the file.
    """

    model: onnx.ModelProto
    spec: DetectorSpec
    thresholds: Mapping[str, float]
    weights: Mapping[str, WeightSteps]
    tiles: int
    cached: bool
    note: str

    def with_qdq(self, left_out: Collection[str]) -> onnx.ModelProto:
        """The graph with Q/DQ in all blocks but these."""
        return insert(self.model, place(self.model, left_out), self.thresholds, self.weights)

    def file(self, left_out: Sequence[str]) -> onnx.ModelProto:
        """What is written: the same, checked, with the spec and how it was made."""
        result = checked(self.with_qdq(left_out))
        onnx_file.write_spec(
            result,
            self.spec,
            precision="int8",
            version=__version__,
            calibration=self.note,
            float_blocks=",".join(left_out),
        )
        return result

    def for_cpu(self, left_out: Sequence[str]) -> onnx.ModelProto:
        """The same for ONNX Runtime's integer kernels."""
        open_ends = float_outputs(self.model, place(self.model, left_out))
        result = cpu_variant(self.file(left_out), {name: self.thresholds[name] for name in open_ends})
        onnx_file.write_spec(result, self.spec, variant="cpu")
        return result


@dataclass(frozen=True)
class _Choice:
    """Blocks that stay in float, and what their choice is based on.

    Attributes:
        asked_for: by the caller.
        worst: those that cause most of the error besides.
        error, scan: as in `Report`.
    """

    asked_for: list[str]
    worst: list[str] = field(default_factory=list)
    error: float | None = None
    scan: Sequence[Block] = ()

    @property
    def blocks(self) -> list[str]:
        return self.asked_for + self.worst


def quantize(
    model_path: Path | str,
    out_path: Path | str,
    calibration_images: Path | str,
    *,
    method: Method = METHOD,
    percentile: float = PERCENTILE,
    images: int = IMAGES,
    keep_float: Sequence[str] = (),
    float_above: float = FLOAT_ABOVE,
    scan_blocks: bool = False,
    max_ap_drop: float | None = None,
    labels: Path | str | None = None,
    cache: Path | str | None = None,
    cpu_variant_path: Path | str | None = None,
) -> Report:
    """Write the INT8 form of `model_path` to `out_path`; the same inputs give the same bytes.

    Args:
        model_path: FP32, without NMS, with its spec: what export/to_onnx.py writes.
        calibration_images: a folder; `images` of them are used, evenly spaced over the names.
        method: how the greatest representable activation is chosen.
        percentile: of the method of that name.
        keep_float: blocks that stay in float.
        float_above: blocks that cause more than this share of the error of the head's outputs, each beside
            those before it, stay in float too; 1 for none.
        scan_blocks: report what each block costs, even if nothing else asks for it.
        max_ap_drop: put the most sensitive blocks into float until mAP on the calibration images is within
            this of FP32's. Needs `labels`.
        labels: DOTA label files of the calibration images.
        cache: file of histograms; used only if it belongs to this very model and these images.
        cpu_variant_path: write `cpu_variant` of the result there. It has fewer blocks in float where its own
            error allows it, unless `max_ap_drop` has chosen them.

    Raises:
        QuantizationFailed: `max_ap_drop` cannot be held.
        ModelError, InputError, SpecError, ImageError, LabelError: what the user can put right.
    """
    model_path, out_path = Path(model_path), Path(out_path)
    _check(method, percentile, images, float_above, max_ap_drop, labels)
    model, spec = read_float_model(model_path)
    chosen = find_calibration_images(Path(calibration_images), images)
    truth = _truth(Path(labels), chosen, spec) if labels is not None else None
    blocks = place(model).blocks
    if unknown := sorted(set(keep_float) - set(blocks)):
        raise errors.InputError(f"--float {unknown[0]}: no such block; there are {', '.join(blocks)}")
    asked_for = list(dict.fromkeys(keep_float))
    calibrated = _calibrate(
        model,
        spec,
        chosen,
        method,
        percentile,
        asked_for,
        Path(cache) if cache is not None else None,
    )

    choice = _Choice(asked_for)
    if scan_blocks or max_ap_drop is not None or (float_above < 1 and head_outputs(model)):
        logits = Logits(model, spread_tiles(chosen, spec, SCAN_TILES), spec)
        others = place(model, asked_for).blocks
        choice = _choose(logits, calibrated.with_qdq, others, asked_for, float_above)
    in_float, ap_float, ap_int8 = choice.blocks, None, None
    if max_ap_drop is not None and truth is not None:
        ap_float = mean_ap(model_path, chosen, truth)
        more, ap_int8 = _hold_ap(calibrated, choice, ap_float, max_ap_drop, chosen, truth)
        in_float = in_float + more

    onnx_file.save(calibrated.file(in_float), out_path)
    cpu_float = None
    if cpu_variant_path is not None:
        cpu_float = in_float
        if choice.worst and max_ap_drop is None:
            # Behind a ReLU its grids are twice as fine, so what is worst with 127 steps need not be here.
            worst = {name: blocks[name] for name in choice.worst}
            cpu_float = _choose(logits, calibrated.for_cpu, worst, asked_for, float_above).blocks
        onnx_file.save(calibrated.for_cpu(cpu_float), Path(cpu_variant_path))
    return Report(
        path=out_path,
        spec=spec,
        method=method,
        tiles=calibrated.tiles,
        cached=calibrated.cached,
        quantised=tuple(place(model, in_float).weights),
        blocks=tuple(blocks),
        float_blocks=tuple(in_float),
        cpu_float_blocks=None if cpu_float is None else tuple(cpu_float),
        error=choice.error,
        scan=choice.scan,
        ap_float=ap_float,
        ap_int8=ap_int8,
        bytes_before=model_path.stat().st_size,
        bytes_after=out_path.stat().st_size,
    )


def _calibrate(
    model: onnx.ModelProto,
    spec: DetectorSpec,
    images: Mapping[str, Path],
    method: Method,
    percentile: float,
    keep_float: Sequence[str],
    cache: Path | None,
) -> _Calibrated:
    """All that is looked at in the float network: peaks, histograms (or those of the cache), moments."""
    placement = place(model)
    # The CPU variant's tensors are read even if it is not asked for: each tensor that is read keeps ONNX
    # Runtime from fusing operators, which changes last digits, and --out must not depend on --cpu-variant.
    tensors = [*placement.tensors, *float_outputs(model, placement)]
    # Not of the file's bytes: weights may lie in another.
    key = calibration_key(model.SerializeToString(deterministic=True), images, tensors)
    stored = load_cache(cache, key) if cache is not None else None
    cached = stored is not None
    sample = spread_tiles(images, spec, TILES)
    model = equalise(model, sample, spec)
    if stored is None:
        stored = collect(model, tensors, tiles_of(images, spec), spec)
        if cache is not None:
            save_cache(cache, key, *stored)
    histograms, tiles = stored
    thresholds = {name: one.threshold(method, percentile) for name, one in histograms.items()}
    # A layer's steps depend on no other layer's, so they hold whatever is left in float further on.
    weights = round_weights(model, place(model, keep_float), thresholds, sample, spec)
    note = f"{method}, {tiles} tiles, {key[:12]}"
    return _Calibrated(model, spec, thresholds, weights, tiles, cached, note)


def _choose(
    logits: Logits,
    insert_qdq: Callable[[list[str]], onnx.ModelProto],
    blocks: Mapping[str, Sequence[str]],
    asked_for: list[str],
    share: float,
) -> _Choice:
    """`asked_for`, and those of `blocks` that cause more than this share of the error.

    Args:
        logits: of the float model.
        insert_qdq: the INT8 model with these blocks in float.
        blocks: block -> its quantised nodes; of these is chosen.
    """

    def error(more: Collection[str]) -> float:
        return logits.error(insert_qdq([*asked_for, *more]))

    whole, costs = scan(blocks, error)
    return _Choice(asked_for, cause_most(whole, costs, share, error), whole, costs)


def _hold_ap(
    calibrated: _Calibrated,
    choice: _Choice,
    ap_float: float,
    max_ap_drop: float,
    images: Mapping[str, Path],
    truth: Mapping[str, Any],
) -> tuple[list[str], float]:
    """The fewest blocks that, in float besides those of `choice`, hold mAP; and mAP with them.

    Raises:
        QuantizationFailed: even with all but one it is not held.
    """
    ranking = [block.name for block in choice.scan if block.name not in choice.worst]
    measured: dict[int, float] = {}

    def drop(more: Sequence[str]) -> float:
        with tempfile.TemporaryDirectory() as folder:
            trial = Path(folder) / "trial.onnx"
            onnx_file.save(calibrated.file([*choice.blocks, *more]), trial)
            measured[len(more)] = mean_ap(trial, images, truth)
        return ap_float - measured[len(more)]

    count = fewest_in_float(ranking, drop, max_ap_drop)
    return ranking[:count], measured[count]


def _check(
    method: str,
    percentile: float,
    images: int,
    float_above: float,
    max_ap_drop: float | None,
    labels: Path | str | None,
) -> None:
    if method not in get_args(Method):
        raise errors.InputError(f"--method {method}: expected one of {', '.join(get_args(Method))}")
    if not 50 < percentile <= 100:
        raise errors.InputError(f"--percentile {percentile}: expected more than 50, at most 100")
    if images < 1:
        raise errors.InputError(f"--images {images}: expected 1 or more")
    if not 0 < float_above <= 1:
        raise errors.InputError(f"--float-above {float_above}: expected a share, more than 0 and at most 1")
    if (max_ap_drop is None) != (labels is None):
        raise errors.InputError("--max-ap-drop and --labels go together: AP needs both")
    if max_ap_drop is not None and not 0 <= max_ap_drop < 1:
        raise errors.InputError(f"--max-ap-drop {max_ap_drop}: expected a difference of mAP, such as 0.005")


def _truth(labels: Path, images: Mapping[str, Path], spec: DetectorSpec) -> dict[str, Any]:
    """Objects on the calibration images."""
    checks.existing_directory(labels, "--labels")
    found = {}
    for name, path in images.items():
        file = labels / f"{name}.txt"
        if not file.is_file():
            raise errors.InputError(f"--labels {labels}: no {file.name} for the image {path}")
        found[name] = read_labels(file, spec.classes, ignore_unknown=True)
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
        "--method", choices=get_args(Method), default=METHOD, help="how to calibrate (default: %(default)s)"
    )
    parser.add_argument(
        "--percentile",
        type=float,
        default=PERCENTILE,
        metavar="P",
        help="with --method percentile (default: %(default)s)",
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
    parser.add_argument(
        "--float-above",
        type=float,
        default=FLOAT_ABOVE,
        metavar="S",
        help="keep blocks in float that cause more than this share of the error; 1 for none (%(default).2f)",
    )
    parser.add_argument("--scan", action="store_true", help="print what each block costs")
    parser.add_argument(
        "--max-ap-drop",
        type=float,
        metavar="X",
        help="put blocks into float until mAP on the calibration images drops by X at most (0.005: half a "
        "point)",
    )
    parser.add_argument(
        "--labels", type=Path, metavar="DIR", help="label files of the calibration images, for --max-ap-drop"
    )
    parser.add_argument(
        "--cpu-variant", type=Path, metavar="FILE", help="also write it for ONNX Runtime's integer kernels"
    )
    parser.add_argument("--cache", type=Path, metavar="FILE", help="histograms (default: beside --out)")
    arguments = parser.parse_args(argv)
    return errors.run("quantize", lambda: command(arguments))


def command(arguments: argparse.Namespace) -> int:
    """The command behind `main`, with parsed arguments."""
    cache = arguments.cache or arguments.out.with_suffix(".calibration.npz")
    written = {"--out": arguments.out, "--cpu-variant": arguments.cpu_variant, "--cache": cache}
    keep = [arguments.model]
    for flag, path in written.items():
        if path is None:
            continue
        if flag != "--cache" and path.suffix.lower() != ".onnx":
            raise errors.InputError(f"{flag} {path}: expected the name of a file that ends in .onnx")
        if path.resolve() == arguments.model.resolve():
            raise errors.InputError(f"{flag} {path}: this is the FP32 model; choose another name")
        check = checks.cache_file if flag == "--cache" else checks.new_file
        keep.append(check(path, flag, keep))
    try:
        report = quantize(
            arguments.model,
            arguments.out,
            arguments.calib,
            method=arguments.method,
            percentile=arguments.percentile,
            images=arguments.images,
            keep_float=arguments.float,
            float_above=arguments.float_above,
            scan_blocks=arguments.scan,
            max_ap_drop=arguments.max_ap_drop,
            labels=arguments.labels,
            cache=cache,
            cpu_variant_path=arguments.cpu_variant,
        )
    except QuantizationFailed:
        print(
            f"quantize: mAP drops by more than {arguments.max_ap_drop} with any block in INT8, nothing was "
            "written; allow more, or give more --images",
            file=sys.stderr,
        )
        return 1
    print(report.text(with_scan=arguments.scan))
    return 0


if __name__ == "__main__":
    sys.exit(main())
