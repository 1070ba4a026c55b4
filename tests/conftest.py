"""A tiny detector as every artifact, and scenes on which it finds something. Nothing here is trained:
labels are made of what the checkpoint finds, so that AP is far from 0 and 1."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings

# The same examples every time, so that a change is to blame for what fails; new ones are searched for with
# `pytest --hypothesis-profile=search`.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("search", max_examples=1000, deadline=None)
settings.load_profile("fixed")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Threads and processes that outlive their tests would be waited for at exit: name them and fail."""
    left = [thread.name for thread in threading.enumerate() if not thread.daemon]
    left.remove(threading.main_thread().name)
    for process in multiprocessing.active_children():
        left.append(process.name)
        process.kill()
    if left:
        print(f"\nleft behind by a test: {', '.join(left)}", file=sys.stderr)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    session.config.stash[EXIT_STATUS] = int(session.exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave without the interpreter's end: PyTorch, ONNX Runtime and TensorRT loaded into one process take
    their threads down in no order that anybody promises, and once a run with all tests passed hung there."""
    # compute-sanitizer sums up what it saw when a process ends in the usual way.
    if EXIT_STATUS in config.stash and "RGFL_PLAIN_EXIT" not in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[EXIT_STATUS])


EXIT_STATUS = pytest.StashKey[int]()


@pytest.hookimpl(tryfirst=True)  # pytest's own gives a report, after which no other is asked
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> None:
    """After an illegal address every call of CUDA fails, in later tests too: the first one is to blame."""
    torch = sys.modules.get("torch")
    if call.excinfo and item.get_closest_marker("gpu") and torch and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            item.session.shouldfail = f"CUDA is lost since {item.nodeid}: {str(error).splitlines()[0]}"


@pytest.fixture(autouse=True)
def torch_threads() -> Iterator[None]:
    """A command under test may set the number of torch's threads; the next test finds it as it was."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    yield
    if torch:
        torch.set_num_threads(before)


def make_checkpoint(
    path: Path, *, mode: str = "gfl", head_norm: str = "group", quality: bool = True, finest_stride: int = 8
) -> Path:
    """A checkpoint of random weights whose scores spread and whose boxes have sizes of objects."""
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'rgfl[train]'")
    from rgfl import checkpoint
    from rgfl.nn.config import ModelConfig
    from rgfl.nn.detector import build_detector
    from rgfl.spec import DetectorSpec

    bins = 12 if mode == "gfl" else 0
    config = ModelConfig(
        backbone="test_efficientnet",
        pretrained=False,
        neck_channels=32,
        head_channels=64,  # GroupNorm of 32 groups needs two values in each, also on the level of one cell
        head_convs=1,
        head_norm=head_norm,
        mode=mode,
        reg_max=8,
        angle_bins=bins,
        quality=quality,
        finest_stride=finest_stride,
    )
    spec = DetectorSpec(
        classes=("plane", "ship", "harbor"),
        image_size=(128, 128),
        strides=tuple(stride for stride in (4, *DetectorSpec.strides) if stride >= finest_stride),
        mode=mode,
        reg_max=8,
        angle_bins=bins,
        level_topk=100,  # fewer than the 256 points of the finest level
        score_threshold=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        detector = build_detector(config, spec).eval()
        for module in detector.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # so that folding it changes something
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        torch.nn.init.normal_(detector.head.cls.weight, std=0.3)
        torch.nn.init.normal_(detector.head.reg.weight, std=0.1)
        torch.nn.init.constant_(detector.head.cls.bias, -1.0)
        if (predictor := detector.decoder.box.quality_predictor) is not None:  # near 1, as after training
            torch.nn.init.normal_(predictor.hidden.weight)
            torch.nn.init.normal_(predictor.out.weight, std=0.2)
            torch.nn.init.constant_(predictor.out.bias, 3.0)
    checkpoint.save(path, spec, config, detector.state_dict())
    return path


@pytest.fixture(name="make_checkpoint", scope="session")
def make_checkpoint_fixture() -> Callable[..., Path]:
    """`make_checkpoint` itself: another conftest.py may answer to that name in an import."""
    return make_checkpoint


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "tiny.pt")


@pytest.fixture(scope="session")
def tiny_onnx(tiny_checkpoint: Path) -> Path:
    """The checkpoint as `export/to_onnx.py` writes it, verified on the way."""
    pytest.importorskip("onnxscript", reason="needs the exporter: pip install 'rgfl[export]'")
    pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install onnxruntime")
    from rgfl.export import to_onnx

    out = tiny_checkpoint.with_name("tiny.onnx")
    assert to_onnx.main([str(tiny_checkpoint), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def tiny_scenes(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """`.images` and `.labels` of four scenes, smaller and larger than a tile; `.names` in order."""
    import numpy as np

    from rgfl import draw
    from rgfl.boxes import to_quads
    from rgfl.dota.labels import Objects, write_labels
    from rgfl.trt_runtime.runners import load_runner
    from rgfl.trt_runtime.sample_tiles import patterned_tiles
    from rgfl.trt_runtime.streaming import stream

    root = tmp_path_factory.mktemp("scenes")
    images, labels = root / "images", root / "labelTxt"
    labels.mkdir()
    sizes = {"P0001": (128, 128), "P0002": (100, 90), "P0003": (300, 200), "P0004": (128, 190)}
    for seed, (name, size) in enumerate(sizes.items()):
        draw.save(patterned_tiles(size, 1, seed)[0], images / f"{name}.png")
    random = np.random.default_rng(0)
    with load_runner(tiny_checkpoint, device="cpu") as runner:
        for scene in stream(runner, {name: images / f"{name}.png" for name in sizes}):
            found = scene.detections[: max(2, len(scene.detections) // 2)]
            quads = to_quads(found.boxes.astype(np.float64)).reshape(-1, 8)
            quads += random.normal(0, 1.5, quads.shape)
            difficult = (random.random(len(found)) < 0.1).astype(np.int32)
            objects = Objects(quads, found.labels, difficult)
            write_labels(labels / f"{scene.name}.txt", objects, runner.spec.classes)
    return SimpleNamespace(images=images, labels=labels, names=list(sizes))


@pytest.fixture(scope="session")
def emulated_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The launcher of the CUDA kernels and these themselves, compiled to run on the CPU."""
    from plugin_libraries import compile_kernels

    return compile_kernels(tmp_path_factory.mktemp("emulated"))
