"""The emulator's checker finds what compute-sanitizer would: each fault is put into a copy of the kernels."""

from __future__ import annotations

import dataclasses
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from plugin_libraries import PLUGINS, compile_kernels, ptx_of_kernels
from ptx import PtxError, translate
from test_rotated_nms import CASES, USUAL, Emulated, check


@dataclass(frozen=True)
class Fault:
    file: str
    right: str
    wrong: str
    finding: str
    max_detections: int = 300  # more than are kept
    case: str = "tied"
    translated: bool = False  # seen in what nvcc makes of it alone


FAULTS = {
    "a warp's meeting too few": Fault(
        "rotated_nms_kernels.cuh",
        "pairs_[count_ + lane_id()] : -1;\n        __syncwarp();",
        "pairs_[count_ + lane_id()] : -1;",
        "suppress: .* race, a write to shared memory",
    ),
    "a barrier too few": Fault(
        "rotated_nms_kernels.cuh",
        "        __syncthreads();\n        const unsigned kept = ",
        "        const unsigned kept = ",
        "suppress: .* race, a .* shared memory",
    ),
    "two lanes write one word": Fault(
        "rotated_nms_kernels.cuh",
        "if (thread == 0) {\n                tiles = all;",
        "if (thread <= 1) {\n                tiles = all;",
        "sort: .* race, a write to workspace",
    ),
    "two warps write one word": Fault(
        "rotated_nms_kernels.cuh",
        "if (warp == 0) {\n            decide_within",
        "if (lane == 0) {\n            problem.winners[segment.begin] = begin;\n        }\n"
        "        if (warp == 0) {\n            decide_within",
        "suppress: .* race, a write to workspace",
    ),
    "two blocks write one word": Fault(
        "rotated_nms_kernels.cuh",
        "if (warp == 0) {\n            decide_within",
        "if (thread == 0) {\n            problem.winners[segment.begin] = begin;\n        }\n"
        "        if (warp == 0) {\n            decide_within",
        "suppress: .* race, a write to workspace",
        case="lists of several tiles",
    ),
    "a decision told by a plain write": Fault(
        "rotated_nms_kernels.cuh",
        "*static_cast<volatile unsigned long long*>(word) = (",
        "*word = (",
        "suppress: .* race, a .* workspace",
        case="lists of several tiles",
    ),
    "one point too many": Fault(
        "rotated_nms_kernels.cuh",
        "if (point < P)",
        "if (point <= P)",
        "collect.* out of bounds, a read of scores",
    ),
    "one class too many": Fault(
        "rotated_nms_kernels.cuh",
        "score[i] = first + i < C ?",
        "score[i] = first + i <= C ?",
        "collect.* out of bounds, a read of scores",
    ),
    "one row too many": Fault(
        "rotated_nms_kernels.cuh",
        "if (rank >= K)",
        "if (rank > K)",
        "emit: .* out of bounds, a write to output",
        max_detections=20,
    ),
    "memory that is zero by chance": Fault(
        "rotated_nms.cu",
        "launcher.clear(workspace, layout.zeroed)",
        "launcher.clear(workspace, 0 * layout.zeroed)",
        "not initialised, a read of workspace",
    ),
    "rows that keep what they held": Fault(
        "rotated_nms_kernels.cuh", "problem.outputs.labels[row] = 0;", "", "output labels: .* not written"
    ),
    "shared memory that is zero by chance": Fault(
        "rotated_nms_kernels.cuh",
        "tile.lost[warp] = ~lanes_before(clamp(within - warp * 32, 0, 32));",
        "",
        "suppress: .* not initialised, a read of shared memory",
        translated=True,
    ),
    "memory far beyond every array": Fault(
        "rotated_nms_kernels.cuh",
        "problem.winners[segment.begin + before",
        "problem.winners[(1 << 28) + before",
        "suppress: .* out of bounds, a write to memory of no array",
        translated=True,
    ),
    "shared memory beyond its end": Fault(
        "rotated_nms_kernels.cuh",
        "chunk[place] = mine;",
        "chunk[place + 2 * tile_size] = mine;",
        "sort: .* out of bounds, a write to shared memory",
        translated=True,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_checker_finds(request: pytest.FixtureRequest, tmp_path: Path, fault: str) -> None:
    it = FAULTS[fault]
    shutil.copytree(PLUGINS / "cuda", tmp_path / "cuda")
    text = (tmp_path / "cuda" / it.file).read_text()
    assert text.count(it.right) == 1
    (tmp_path / "cuda" / it.file).write_text(text.replace(it.right, it.wrong))
    ptx = None
    if it.translated:
        ptx = ptx_of_kernels(tmp_path, request.getfixturevalue("nvcc"), 75, tmp_path / "cuda")
    emulated = Emulated(compile_kernels(tmp_path, tmp_path / "cuda", ptx))
    boxes, scores = CASES[it.case](1)
    settings = dataclasses.replace(USUAL, max_detections=it.max_detections)
    _, findings = emulated.checked(boxes, scores, settings, poison=0)
    assert re.search(it.finding, findings), findings


def test_a_tile_that_closes_up_while_it_waits_keeps_the_same(tmp_path: Path) -> None:
    """Here it never has to wait long, on a GPU often: a copy that closes up at once, and loses more later."""
    shutil.copytree(PLUGINS / "cuda", tmp_path / "cuda")
    kernels = tmp_path / "cuda/rotated_nms_kernels.cuh"
    text, waits = kernels.read_text(), "__syncthreads_or(decided.before < 0)"
    assert text.count(waits) == 1
    kernels.write_text(text.replace(waits, "true"))
    emulated = Emulated(compile_kernels(tmp_path, tmp_path / "cuda"))
    for name in ("lists of several tiles", "chain"):
        boxes, scores = CASES[name](2)
        check(emulated(boxes, scores, USUAL), boxes, scores, USUAL)


KERNEL = """
.visible .entry k(.param .align 8 .b8 p[16]) {
.reg .f32 %f<3>;
BODY
}
"""


@pytest.mark.parametrize(
    "instruction",
    [
        "add.f32 %f0, %f1, %f2;",  # ptxas may fuse it
        "fma.rn.f32 %f0, %f1, %f2, %f0;",
        "div.full.f32 %f0, %f1, %f2;",
        "cvt.sat.u32.s32 %f0, %f1;",
        "brev.b64 %f0, %f1;",
        "setp.lt.s32 %f0|%f1, %f1, %f2;",
        "bar.red.or.pred %f0, 0, 128, %f1;",
        "atom.global.add.u64 %f0, [%f1], %f2;",
    ],
)
def test_the_translation_refuses_what_it_does_not_know(instruction: str) -> None:
    assert "run_k" in translate(KERNEL.replace("BODY", "add.rn.f32 %f0, %f1, %f2;"))
    with pytest.raises(PtxError, match=instruction.split(".")[0]):
        translate(KERNEL.replace("BODY", instruction))
