"""Checkpoint to one FP32 ONNX file: decode in the graph, dynamic batch, spec in the metadata.

    python export/to_onnx.py runs/a/best.pt --out model.onnx

The file takes `images`, uint8 (B, H, W, 3) RGB with normalisation inside, and gives `boxes`
(B, P, 5) and `scores` (B, P, C) before NMS; P holds at most the spec's level_topk points a level.
Before it appears under its name it is run beside PyTorch (export/verify.py) at several batch sizes.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rgfl import __version__, checks, errors
from rgfl.checkpoint import CheckpointError, load_detector
from rgfl.export import graph, onnx_file, verify
from rgfl.trt_runtime.runners import recognise
from rgfl.trt_runtime.scenes import find_scenes

if TYPE_CHECKING:
    import onnx

    from rgfl.nn.detector import Detector

OPSET = 18  # every operator of the graph at a version that TensorRT 10 and 11 and ONNX Runtime read

EXAMPLES = """\
examples:
  python export/to_onnx.py runs/demo/best.pt --out demo.onnx
  python export/to_onnx.py best.pt --out model.onnx --images val/images   verify on real tiles
  python export/to_onnx.py best.pt --out model.onnx --float-input         float32 (B, 3, H, W), normalised
  python export/to_onnx.py best.pt --out model.onnx --uncertainty         also how sure each side and angle is

exit status: 0 written and verified, 1 PyTorch and ONNX differ (nothing is written), 2 bad input
"""


def export(detector: Detector, *, float_input: bool = False, uncertainty: bool = False) -> onnx.ModelProto:
    """The graph of `detector` with its decode.

    Args:
        detector: in eval mode.
        float_input: take float32 (B, 3, H, W), already normalised, in place of uint8 (B, H, W, 3).
        uncertainty: a third output `uncertainty` (B, P, 5): spread of cx, cy, w, h in pixels, of θ in radians
            (Detector.decode_with_uncertainty). It is not for graphs with NMS inside; runners ignore it.
    """
    import torch
    from torch import nn

    class Deployed(nn.Module):
        """What leaves Python: pixels in, decoded boxes and scores out."""

        def __init__(self) -> None:
            super().__init__()
            self.detector = detector

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            if not float_input:
                images = self.detector.normalise(images)
            raw = self.detector(images)
            return self.detector.decode_with_uncertainty(raw) if uncertainty else self.detector.decode(raw)

    height, width = detector.spec.image_size
    device = next(detector.parameters()).device
    if float_input:
        example = torch.zeros(2, 3, height, width, device=device)
    else:
        example = torch.zeros(2, height, width, 3, dtype=torch.uint8, device=device)
    program = torch.onnx.export(
        Deployed().to(device).eval(),
        (example,),
        input_names=["images"],
        output_names=["boxes", "scores", *(["uncertainty"] if uncertainty else [])],
        dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = graph.tidy(program.model_proto)
    onnx_file.write_spec(model, detector.spec, precision="fp32", version=__version__)
    return model


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="to_onnx",
        description=__doc__.split("\n\n", maxsplit=1)[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a .pt file of rgfl.train")
    parser.add_argument("--out", type=Path, required=True, metavar="MODEL.onnx", help="the file to write")
    parser.add_argument("--float-input", action="store_true", help="input float32 (B, 3, H, W), normalised")
    parser.add_argument(
        "--uncertainty", action="store_true", help="a third output: spread of cx, cy, w, h (px) and θ (rad)"
    )
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare with PyTorch before the file gets its name (default: yes)",
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="verify on tiles of these images")
    arguments = parser.parse_args(argv)
    return errors.run("to_onnx", lambda: convert(arguments))


def convert(arguments: argparse.Namespace) -> int:
    """The command behind `main`, with parsed arguments."""
    if arguments.out.suffix.lower() != ".onnx":
        raise errors.InputError(f"--out {arguments.out}: expected a name that ends in .onnx")
    checks.new_file(arguments.out, "--out", [arguments.checkpoint])

    kind, _ = recognise(arguments.checkpoint)
    if kind != "torch":
        raise errors.ModelError(f"{arguments.checkpoint}: expected a checkpoint (.pt), this is {kind}")
    images = checks.existing_directory(arguments.images, "--images") if arguments.images else None
    if images:
        find_scenes(images)  # an empty folder is told now, not after the export

    try:
        detector = load_detector(arguments.checkpoint)
    except CheckpointError as error:
        raise errors.ModelError(str(error)) from error
    if arguments.uncertainty and detector.spec.mode != "gfl":
        raise errors.InputError(
            f"--uncertainty: {arguments.checkpoint} has mode {detector.spec.mode!r}, whose training sees "
            "only the means of its distributions; their spread says nothing"
        )
    started = time.perf_counter()
    model = export(detector, float_input=arguments.float_input, uncertainty=arguments.uncertainty)
    print(f"exported in {time.perf_counter() - started:.0f} s: {len(model.graph.node)} nodes, opset {OPSET}")

    unverified = arguments.out.with_name(f".{arguments.out.stem}.unverified.onnx")
    try:
        onnx_file.save(model, unverified)
        if arguments.verify:
            report = verify.compare_files(arguments.checkpoint, unverified, images=images)
            print(report.text())
            if not report.passed:
                print(
                    "to_onnx: PyTorch and ONNX differ by more than the tolerance, nothing was written; "
                    "look at the file with --no-verify",
                    file=sys.stderr,
                )
                return 1
        unverified.replace(arguments.out)
    finally:
        unverified.unlink(missing_ok=True)
    size = arguments.out.stat().st_size / 1e6
    print(
        f"{arguments.out}: {size:.1f} MB, spec {detector.spec.digest}, {len(detector.spec.classes)} classes"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
