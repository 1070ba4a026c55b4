"""Examples of Python, in README.md and in the packages' docstrings, run as they stand."""

from __future__ import annotations

import doctest
import re
import shutil
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

import rgfl
import rgfl.dota
from rgfl.boxes import to_quads
from rgfl.dota.labels import Objects, write_labels

README = Path(__file__).parent.parent / "README.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory, with the files that examples name, but for models."""
    monkeypatch.chdir(tmp_path)
    Path("val/labelTxt").mkdir(parents=True)
    quad = to_quads([[60, 50, 40, 20, 0.5]])
    truth = Objects(quad, np.zeros(1, np.int32), np.zeros(1, np.int32))
    write_labels("val/labelTxt/P0001.txt", truth, ("plane", "ship"))
    scene = np.full((1024, 1848, 3), 90, np.uint8)
    assert cv2.imwrite("scene.tif", scene)
    video = cv2.VideoWriter("flight.mp4", cv2.VideoWriter.fourcc(*"mp4v"), 5, (160, 128))
    video.write(scene[:128, :160])
    video.release()


@pytest.mark.parametrize("code", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_of_the_readme_runs(code: str, folder: None, request: pytest.FixtureRequest) -> None:
    names = {"cv2": cv2}  # named in the text
    if "model.onnx" in code:
        from rgfl.trt_runtime.runners import load_runner

        names["load_runner"] = load_runner  # by the example before
        shutil.copy(request.getfixturevalue("tiny_onnx"), "model.onnx")
    exec(code, names)


@pytest.mark.parametrize("module", [rgfl, rgfl.dota])
def test_the_examples_of_a_docstring_give_what_they_say(module: ModuleType, folder: None) -> None:
    failed, tried = doctest.testmod(module)
    assert (failed, tried > 9) == (0, True)
