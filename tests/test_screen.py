"""Output that breaks stops no work, and changes no exit code."""

import subprocess
import sys
from pathlib import Path

import pytest

from rgfl import screen

WORK = """
import sys
from tqdm import tqdm
from rgfl.screen import lasting

@lasting()
def work():
    for number in tqdm(range(30), mininterval=0):
        tqdm.write(f"{number}²" + 500 * ".")
    return 7

sys.exit(work())
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk is Linux's /dev/full here")
@pytest.mark.parametrize(
    "way", [">/dev/full", "2>/dev/full", ">/dev/full 2>&1", "| head -1 >/dev/null", ">&-", "2>&-"]
)
def test_the_work_goes_on(way):
    command = ["bash", "-c", f'set -o pipefail; "$0" -c "$1" {way}', sys.executable, WORK]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 7
    assert "Error" not in done.stderr
    assert "Error" not in done.stdout


def test_what_cannot_be_encoded_is_a_question_mark():
    done = subprocess.run(
        [sys.executable, "-c", WORK], capture_output=True, text=True, env={"PYTHONIOENCODING": "ascii"}
    )
    assert done.returncode == 7
    assert "\n29?..." in done.stdout


def test_the_streams_are_given_back_and_say_why_they_are_silent(monkeypatch, tmp_path):
    with open(tmp_path / "closed", "w") as file:
        monkeypatch.setattr(sys, "stdout", file)
    with screen.lasting():
        ours = sys.stdout
        print("for nobody")
        print("nor this")
    assert sys.stdout is file
    assert ours.error == "I/O operation on closed file."
