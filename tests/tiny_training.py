"""A training of seconds: its flags, its data, and how to run it here or in a process of its own."""

import contextlib
import json
import subprocess
import sys
import time

import cv2
import numpy as np

from rgfl.train import main

CLASSES = ("plane", "ship")
FLAGS = """
    --recipe gfl_lite --backbone test_efficientnet --weights= --no-pretrained --frozen-stages 0 --no-norm-eval
    --neck-channels 16 --head-channels 16 --head-convs 1 --reg-max 8 --angle-bins 8 --tile-size 128
    --test-size 128 --test-stride 64 --batch 2 --epochs 4 --warmup-steps 3 --log-every 1 --eval-every 2
    --threads 1 --workers 0 --level-topk 50 --device cpu --pictures 1
"""
TINY = FLAGS.split()
PATIENCE = 300  # seconds for a process on a machine that is busy with something else


def make_data(root):
    """Bright bars and squares on dark ground; 8 training images of several sizes, 2 for validation."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for kind in ("images", "labelTxt"):
            (root / split / kind).mkdir(parents=True)
        for index in range(count):
            image = np.full((128 + 16 * (index % 2), 128, 3), 60, np.uint8)
            lines = ["imagesource:test"]
            for x in (34, 94):
                size = [(40, 16), (26, 26)][kind_of := int(rng.integers(2))]
                corners = cv2.boxPoints(((x, 40 + rng.uniform(0, 50)), size, rng.uniform(0, 180)))
                cv2.fillPoly(image, [np.round(corners).astype(int)], (230, 120, 200 * kind_of))
                lines.append(" ".join(f"{v:.1f}" for v in corners.ravel()) + f" {CLASSES[kind_of]} 0")
            assert cv2.imwrite(str(root / split / f"images/{index}.png"), image)
            (root / split / f"labelTxt/{index}.txt").write_text("\n".join(lines))
    return root


def run(data, out, *flags):
    return main([*TINY, "--data", str(data), "--out", str(out), *flags])


@contextlib.contextmanager
def running(data, out, *flags, until_step):
    """A training in a process and group of its own, once it has logged so many steps; dead afterwards."""
    command = [sys.executable, "-m", "rgfl.train", *TINY, "--data", str(data), "--out", str(out), *flags]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        log, deadline = out / "log.jsonl", time.monotonic() + PATIENCE
        while not log.is_file() or log.read_text().count('"step_s"') < until_step:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def records(out, kind=None):
    """The log without what depends on the clock and the place."""
    found = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    for record in found:
        for name in ("time", "step_s", "data_wait_s", "memory_mb", "seconds"):
            record.pop(name, None)
    return [record for record in found if kind is None or record["kind"] == kind]


def curve(out):
    return [record for record in records(out) if record["kind"] != "run"]
