"""ONNX to a TensorRT engine: strongly typed, batch of any size in a range, spec in the engine's name.

    python export/to_trt.py model.onnx --fp16 --out model.fp16.engine

FP16 and INT8 are written into the graph before TensorRT sees it (export/fp16.py, export/quantize.py),
so the same flag means the same on TensorRT 10, 11 and RTX. Standard TensorRT gets RotatedNMS into the
engine; TensorRT for RTX has no plugin layers, so NMS runs behind it. Beside the engine lies
ENGINE.json: versions, GPU, batch sizes, layers and types, and the command that builds it anew.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import math
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rgfl.plugins
from rgfl import atomic, checks, errors
from rgfl.errors import InputError, ModelError
from rgfl.export import graph, onnx_file, quantize
from rgfl.export.fp16 import check_patterns, to_fp16, to_rounded
from rgfl.export.network import Network
from rgfl.spec import DetectorSpec, SpecError
from rgfl.trt_runtime import machine, tensorrt_api
from rgfl.trt_runtime.machine import Gpu, file_facts
from rgfl.trt_runtime.runners import INPUT_NAME
from rgfl.trt_runtime.sample_tiles import sample_tiles
from rgfl.trt_runtime.tensorrt_api import Api, BuildOptions, Layers, record_path

if TYPE_CHECKING:
    import onnx


LARGEST_K = 3840  # of TensorRT's ITopKLayer

EXAMPLES = """\
examples:
  python export/to_trt.py --fp16                                          the newest export below this folder
  python export/to_trt.py model.onnx --fp16 --max-batch 16
  python export/to_trt.py model.onnx --int8 --calib train/images          calibrate, quantise, build
  python export/to_trt.py model.onnx --backend rtx                        needs no GPU to build

not run yet: building with standard TensorRT 10 and 11 (it needs a GPU). Those calls follow NVIDIA's
documentation and are checked by name against the bindings of both; TensorRT for RTX builds in the tests.

exit status: 0 written, 2 refused, with the reason in one line; nothing is left half-written
"""


# --- from the model to a typed graph ---------------------------------------------------------------------


def newest_export(folder: Path) -> Path:
    """The FP32 file with a spec below `folder` that was written last."""

    def hidden(path: Path) -> bool:
        return any(part.startswith(".") for part in path.relative_to(folder).parts)

    found = [path for path in folder.rglob("*.onnx") if path.is_file() and not hidden(path)]
    for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            model = onnx_file.load(path, weights=False)
            onnx_file.read_spec(model)
        except (ModelError, SpecError, OSError):
            continue
        if onnx_file.precision(model) == onnx_file.FP32 and not graph.has_nms(model):
            return path
    raise InputError(
        f"no exported model below {folder}; name one, or export with: "
        "python export/to_onnx.py CHECKPOINT --out MODEL.onnx"
    )


def typed_model(
    path: Path, *, fp16: bool = False, calibration: Path | None = None, keep_fp32: Sequence[str] = ()
) -> onnx.ModelProto:
    """The graph that TensorRT gets, before NMS: quantised, then FP16, as asked and not done already.

    Args:
        path: from export/to_onnx.py, graph.py or quantize.py.
        fp16: FP16 where the file is FP32. INT8 engines want it too: what is not INT8 is then FP16.
        calibration: quantise on these images.
        keep_fp32: patterns of nodes that stay FP32 in spite of `fp16`.

    Raises:
        ModelError, SpecError: the file is no model of ours, or FP16 does not hold its numbers.
        InputError: `calibration` or `keep_fp32` do not fit the file; before anything slow.
    """
    model = onnx_file.load(path)
    onnx_file.read_spec(model)
    if onnx_file.ROUNDED in onnx_file.precision(model):
        raise ModelError(
            f"{path}: this file measures FP16 on a CPU; build from the file it was made of, with --fp16"
        )
    if onnx_file.read_note(model, "variant") == "cpu":
        raise ModelError(
            f"{path}: this INT8 file is written for ONNX Runtime's CPU kernels; build from the other"
        )
    if graph.has_nms(model):
        model = graph.cut_nms(model)
    if calibration is not None and onnx_file.precision(model) != onnx_file.FP32:
        raise InputError(f"--calib: {path} is {onnx_file.precision(model)} already; leave --calib out")
    narrow = fp16 and onnx_file.FP16 not in onnx_file.precision(model)
    if keep_fp32 and not narrow:
        raise InputError("--keep-fp32 goes with --fp16 or --int8, and a file that is not FP16 yet")
    check_patterns([node.name for node in model.graph.node], keep_fp32)
    if calibration is not None:
        model = _quantised(path, calibration)
    if narrow:
        _check_range(model, keep_fp32)
        model, report = to_fp16(model, keep_fp32)
        print(report.text())
    return model


def _quantised(path: Path, calibration: Path) -> onnx.ModelProto:
    """`path` with Q/DQ nodes, as export/quantize.py makes it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / path.name
        print(quantize.quantize(path, out, calibration_images=calibration).text())
        return onnx_file.load(out)


def _check_range(model: onnx.ModelProto, keep_fp32: Sequence[str]) -> None:
    """Refuse a model whose activations leave FP16's range on a tile, where ONNX Runtime can tell."""
    if importlib.util.find_spec("onnxruntime") is None:
        print("ONNX Runtime is not installed, so whether FP16 overflows was not tried")
        return
    import numpy as np

    rounded, _ = to_rounded(model, keep_fp32)
    spec = onnx_file.read_spec(model)
    network = Network(rounded, [output.name for output in rounded.graph.output], spec)
    if not all(np.isfinite(values).all() for values in network(sample_tiles(spec, 1))):
        raise ModelError(
            "FP16 overflows in this model: its outputs are not finite where FP16 is rounded to; "
            "keep the layers with large values FP32, such as --keep-fp32 'backbone*'"
        )


# --- building --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Built:
    """What a build gives.

    Attributes:
        plan: the engine's bytes.
        layers: of the engine, or of the network where there is no GPU to read it back.
        timing_cache: for the next build, where one was asked for.
    """

    plan: bytes
    layers: Layers
    timing_cache: bytes | None = None


@dataclass(frozen=True)
class EngineBuilder:
    """TensorRT's objects for a build. They are made before anything slow, as options may be refused then.

    Attributes:
        api: the TensorRT that builds.
        options: batch sizes and switches.
        log, trt_builder, config: TensorRT's objects.
    """

    api: Api
    options: BuildOptions
    log: Any
    trt_builder: Any
    config: Any


def open_builder(
    api: Api,
    options: BuildOptions,
    input_shape: tuple[int, ...],
    *,
    plugin: Path | None = None,
    gpu: Gpu | None = None,
    verbose: bool = False,
) -> EngineBuilder:
    """What `build_plan` builds with.

    Args:
        api, options: as in `EngineBuilder`.
        input_shape: of the model's input, without the batch.
        plugin: library of RotatedNMS, for models with such a node.
        gpu: the one that will run the engine, where it is here.
        verbose: TensorRT's whole log to stderr.

    Raises:
        ModelError: TensorRT makes no builder here, or cannot load `plugin`.
        InputError: it does not take the options, such as a timing cache of another version.
    """
    log = api.new_logger(verbose)
    builder = tensorrt_api.create(api, log, "a builder", lambda: api.trt.Builder(log))
    if plugin is not None:
        tensorrt_api.load_plugin(api, builder.get_plugin_registry(), plugin)
    config = tensorrt_api.configure(api, builder, options, input_shape, plugin, gpu)
    return EngineBuilder(api, options, log, builder, config)


def build_plan(builder: EngineBuilder, model: onnx.ModelProto) -> Built:
    """The engine, which is yet to be written.

    Args:
        builder: opened for the shape of `model`'s input.
        model: typed; with a RotatedNMS node where the builder has the plugin.

    Raises:
        ModelError: TensorRT refuses the model, or the engine does not carry the spec.
    """
    api, log, config = builder.api, builder.log, builder.config
    spec = onnx_file.read_spec(model)
    network = api.new_network(builder.trt_builder)
    parser = api.trt.OnnxParser(network, log)
    if not parser.parse(model.SerializeToString()):
        raise ModelError(f"{api} cannot read the graph: {_parser_errors(parser)}")
    # setName only logs a name that is too long, so the name is read back.
    network.name = spec.to_json()
    if network.name != spec.to_json():
        raise ModelError(f"{api} does not take the spec as the network's name: {log.errors()}")
    progress = api.new_progress()
    config.progress_monitor = progress
    layers = tensorrt_api.network_layers(network)

    plan = _interruptible(progress, lambda: builder.trt_builder.build_serialized_network(network, config))
    if plan is None:
        raise ModelError(f"{api} cannot build the engine: {log.errors()}")
    data = bytes(plan)
    timing = None
    if builder.options.timing_cache is not None:
        timing = bytes(config.get_timing_cache().serialize())
    if api.name == "tensorrt":
        return Built(data, _read_back(builder, data, spec) or layers, timing)
    if spec.to_json().encode() not in data:  # reading it back through an engine needs a GPU
        raise ModelError(f"{api} left the spec out of the engine; nothing was written")
    layers.generated = tensorrt_api.generated_kernels(data)
    return Built(data, layers, timing)


def _interruptible(progress: Any, build: Any) -> Any:
    """The result of `build`, in a thread of its own so that Ctrl-C ends it at TensorRT's next step."""
    result: list[Any] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            result.append(build())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work, name="build", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.1)
    except KeyboardInterrupt:
        progress.cancelled = True
        thread.join()
        raise
    if failure:
        raise failure[0]
    return result[0]


def _parser_errors(parser: Any) -> str:
    found = [parser.get_error(index) for index in range(parser.num_errors)]
    return "; ".join(
        f"node {error.node()}: {errors.one_line(Exception(error.desc()))}" for error in found[:3]
    )


def _read_back(builder: EngineBuilder, data: bytes, spec: DetectorSpec) -> Layers | None:
    """The layers of the engine in `data`; None where the inspector's answer cannot be read. Needs a GPU.

    Raises:
        ModelError: the engine cannot be loaded, or its name or tensors are not as written.
    """
    api, log = builder.api, builder.log
    runtime = tensorrt_api.new_runtime(api, log, version_compatible=builder.options.version_compatible)
    engine = tensorrt_api.create(
        api, log, "the engine from its plan", lambda: runtime.deserialize_cuda_engine(data)
    )
    if engine.name != spec.to_json():
        raise ModelError(f"{api} changed the spec in the engine's name; nothing was written")
    names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    if names != {INPUT_NAME, *tensorrt_api.nms_outputs(spec)}:
        raise ModelError(f"the engine's tensors are {sorted(names)}; nothing was written")
    try:
        return tensorrt_api.engine_layers(api, engine)
    except ValueError:
        return None


# --- command ---------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="to_trt",
        description=__doc__.split("\n\n", maxsplit=1)[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        type=Path,
        nargs="?",
        metavar="MODEL.onnx",
        help="default: the newest export below this folder",
    )
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--fp16", action="store_true", help="FP16 body, FP32 decode and NMS")
    precision.add_argument("--int8", action="store_true", help="INT8 by Q/DQ nodes, the rest FP16")
    parser.add_argument(
        "--calib", type=Path, metavar="DIR", help="images to calibrate INT8 on; not for a quantised file"
    )
    parser.add_argument("--keep-fp32", default="", metavar="GLOB,…", help="nodes to keep in FP32, by name")
    parser.add_argument(
        "--out", type=Path, metavar="MODEL.engine", help="default: beside the model, by precision"
    )
    parser.add_argument(
        "--backend",
        choices=("auto", "tensorrt", "rtx"),
        default="auto",
        help="auto: TensorRT where it and a GPU are, else TensorRT for RTX",
    )
    batch = parser.add_argument_group("batch sizes the engine takes")
    batch.add_argument("--min-batch", type=int, default=1, metavar="N", help="default: %(default)s")
    batch.add_argument("--opt-batch", type=int, metavar="N", help="tuned for this one; default: --min-batch")
    batch.add_argument(
        "--max-batch", type=int, metavar="N", help="default: 8, or --opt-batch if that is more"
    )
    tuning = parser.add_argument_group("building (switches marked * are for standard TensorRT, not run yet)")
    tuning.add_argument(
        "--timing-cache", type=Path, metavar="FILE", help="* read before, written after the build"
    )
    tuning.add_argument(
        "--hardware-compatibility",
        choices=("none", "ampere-plus", "same-compute-capability"),
        default="none",
        help="* let the engine run on other GPUs than this one (default: %(default)s)",
    )
    tuning.add_argument(
        "--version-compatible",
        action="store_true",
        help="* let newer versions run it; the plugin goes inside, so commands want --trust-engine",
    )
    tuning.add_argument(
        "--tf32",
        action="store_true",
        help="allow TensorFloat-32 in FP32 layers: faster, boxes up to a pixel off",
    )
    tuning.add_argument("--workspace", type=float, default=0.0, metavar="GiB", help="scratch memory at most")
    tuning.add_argument("--optimization-level", type=int, metavar="0-5", help="TensorRT's default is 3")
    tuning.add_argument("--verbose", action="store_true", help="TensorRT's whole log")
    arguments = parser.parse_args(argv)
    return errors.run("to_trt", lambda: convert(arguments))


def convert(arguments: argparse.Namespace) -> int:
    """The command behind `main`, with parsed arguments."""
    # Everything that can be refused is refused before the first slow step.
    if arguments.calib is not None and not arguments.int8:
        raise InputError("--calib goes with --int8")
    if arguments.calib is not None:
        checks.existing_directory(arguments.calib, "--calib")
    onnx_file.check_packages("build" if arguments.calib is None else "export")  # the least that does it
    options = _options(arguments)
    path: Path = arguments.model or newest_export(Path.cwd())
    if arguments.model is None:
        print(f"model: {path} (the newest export below {Path.cwd()})")
    out = arguments.out or _default_out(path, arguments)
    if out.suffix.lower() not in (".engine", ".plan"):
        raise InputError(f"--out {out}: expected a file name that ends in .engine")
    checks.new_file(out, "--out", [path])
    if options.timing_cache is not None:
        checks.cache_file(options.timing_cache, "--timing-cache", [path, out])
    try:
        model = onnx_file.load(path, weights=False)
        spec = onnx_file.read_spec(model)
    except ValueError as error:
        raise ModelError(_named(path, error)) from error
    finest = math.prod(side // spec.strides[0] for side in spec.image_size)
    if LARGEST_K < spec.level_topk < finest:
        raise InputError(
            f"{path}: level_topk is {spec.level_topk}, and TensorRT's TopK takes {LARGEST_K} at most; "
            f"train with --level-topk {LARGEST_K}, or save the checkpoint with that in its spec "
            "(rgfl.checkpoint.save), and export it again"
        )
    quantised = onnx_file.precision(model).startswith(onnx_file.INT8)
    if arguments.int8 and arguments.calib is None and not quantised:
        raise InputError(
            f"--int8: {path} is not quantised yet; give training images to calibrate on: --calib DIR"
        )
    gpu = machine.find_gpu()
    api = tensorrt_api.open_api(arguments.backend, gpu)
    print(f"backend: {api} ({api.reason}); NMS {'inside' if api.has_plugins else 'behind'} the engine")
    if api.name == "rtx":
        options.refuse_what_rtx_lacks()
        for note in tensorrt_api.rtx_notes(gpu, arguments.int8):
            print(f"note: {note}")
    plugin = rgfl.plugins.library() if api.has_plugins else None

    keep = [pattern for pattern in arguments.keep_fp32.split(",") if pattern]
    try:
        if api.has_plugins and not graph.has_nms(model):
            graph.check_outputs(model)
        builder = open_builder(
            api, options, onnx_file.input_shape(model), plugin=plugin, gpu=gpu, verbose=arguments.verbose
        )
        model = typed_model(
            path, fp16=arguments.fp16 or arguments.int8, calibration=arguments.calib, keep_fp32=keep
        )
        if api.has_plugins:
            model = graph.add_nms(model)
        started = time.perf_counter()
        built = build_plan(builder, model)
    except ModelError as error:
        raise ModelError(_named(path, error)) from error
    seconds = time.perf_counter() - started
    record = _record(api, gpu, path, model, options, built, _command(path, out, arguments))
    _write(out, built.plan, record)
    if options.timing_cache is not None and built.timing_cache is not None:
        cost = "kernels are timed anew by the next build"
        errors.write_cache(options.timing_cache, built.timing_cache, cost)
    print(built.layers.text())
    print(
        f"{out}: {len(built.plan) / 1e6:.1f} MB, {onnx_file.precision(model)}, built in {seconds:.0f} s, "
        f"batch {'/'.join(map(str, options.batch))}, spec {spec.digest}"
    )
    return 0


def _options(arguments: argparse.Namespace) -> BuildOptions:
    usual = arguments.min_batch if arguments.opt_batch is None else arguments.opt_batch
    greatest = max(8, usual) if arguments.max_batch is None else arguments.max_batch
    return BuildOptions(
        batch=(arguments.min_batch, usual, greatest),
        compatibility=arguments.hardware_compatibility,
        version_compatible=arguments.version_compatible,
        tf32=arguments.tf32,
        workspace=arguments.workspace,
        optimization_level=arguments.optimization_level,
        timing_cache=arguments.timing_cache,
    )


def _named(path: Path, error: Exception) -> str:
    text = str(error)
    return text if text.startswith(str(path)) else f"{path}: {text}"


def _default_out(path: Path, arguments: argparse.Namespace) -> Path:
    """model.onnx → model.fp16.engine; a file that names its precision keeps its name."""
    flag = "fp16" if arguments.fp16 else "int8" if arguments.int8 else ""
    name = f"{path.stem}.{flag}" if flag and not path.stem.endswith(flag) else path.stem
    return path.with_name(f"{name}.engine")


def _command(path: Path, out: Path, arguments: argparse.Namespace) -> str:
    """The command line that builds this engine again, with the model named."""
    words = ["python", "export/to_trt.py", str(path), "--out", str(out)]
    for name, value in vars(arguments).items():
        flag = f"--{name.replace('_', '-')}"
        unset = value is None or value is False or value in ("", "auto", "none")
        if unset or name in ("model", "out", "verbose") or (name == "workspace" and not value):
            continue
        words += [flag] if value is True else [flag, str(value)]
    return shlex.join(words)


def _facts(gpu: Gpu) -> dict[str, Any]:
    """What `tensorrt_api.check_engine` compares."""
    return {"name": gpu.name, "capability": list(gpu.capability), "multiprocessors": gpu.multiprocessors}


def _record(
    api: Api,
    gpu: Gpu | None,
    path: Path,
    model: onnx.ModelProto,
    options: BuildOptions,
    built: Built,
    command: str,
) -> dict[str, Any]:
    """What lies beside the engine."""
    spec = onnx_file.read_spec(model)
    return {
        "sha256": hashlib.sha256(built.plan).hexdigest(),
        "bytes": len(built.plan),
        "backend": api.name,
        "version": list(api.version),
        "gpu": _facts(gpu) if gpu else {},
        "precision": onnx_file.precision(model),
        "nms": "inside" if graph.has_nms(model) else "behind",
        "batch": list(options.batch),
        "hardware_compatibility": options.compatibility,
        "version_compatible": options.version_compatible,
        "tf32": options.tf32,
        "spec_digest": spec.digest,
        "source": file_facts(path),
        "layers": built.layers.record(),
        "command": command,
    }


def _write(out: Path, data: bytes, record: dict[str, Any]) -> None:
    """The engine, then its record; the record names its engine by digest, so a kill between is harmless."""
    atomic.write_bytes(out, data)
    atomic.write_text(record_path(out), json.dumps(record, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
