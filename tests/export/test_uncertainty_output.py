"""`--uncertainty`: a third output of the ONNX file, which consumers of the other two do not notice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'rgfl[export]'")
pytest.importorskip("onnxscript", reason="needs the exporter: pip install 'rgfl[export]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install onnxruntime")
torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'rgfl[train]'")

from rgfl import checkpoint  # noqa: E402
from rgfl.export import to_onnx  # noqa: E402
from rgfl.trt_runtime.runners import load_runner  # noqa: E402
from rgfl.trt_runtime.sample_tiles import sample_tiles  # noqa: E402


def test_third_output_is_pytorch_s_and_runners_ignore_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "u.onnx"
    assert to_onnx.main([str(tiny_checkpoint), "--out", str(out), "--uncertainty"]) == 0
    detector = checkpoint.load_detector(tiny_checkpoint)
    tiles = sample_tiles(detector.spec, 2)
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    boxes, scores, spread = session.run(["boxes", "scores", "uncertainty"], {"images": tiles})
    assert spread.dtype == np.float32
    assert spread.shape == boxes.shape
    with torch.no_grad():
        raw = detector(detector.normalise(torch.from_numpy(tiles)))
        expected = [part.numpy() for part in detector.decode_with_uncertainty(raw)]
    # TopK may order equal scores differently: rows are compared in the order of their scores and places.
    for image in range(2):
        order = [np.lexsort(np.round(part[image], 1).T) for part in (boxes, expected[0])]
        ours, theirs = spread[image][order[0]], expected[2][image][order[1]]
        assert np.quantile(np.abs(ours - theirs), 0.99) < 1e-3
    with load_runner(out, device="cpu") as runner:
        for ours, plain in zip(runner.raw(tiles), (boxes, scores), strict=True):
            np.testing.assert_array_equal(ours, plain)
        assert len(runner(tiles)) == 2


def test_published_row_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rgfl.nn.config import ModelConfig
    from rgfl.nn.detector import build_detector
    from rgfl.spec import DetectorSpec

    config = ModelConfig(
        backbone="test_efficientnet", pretrained=False, neck_channels=32, head_channels=32, head_convs=0,
        mode="integral", reg_max=8,
    )  # fmt: skip
    spec = DetectorSpec(classes=("a",), image_size=(128, 128), mode="integral", reg_max=8)
    path = tmp_path / "integral.pt"
    checkpoint.save(path, spec, config, build_detector(config, spec).state_dict())
    assert to_onnx.main([str(path), "--out", str(tmp_path / "o.onnx"), "--uncertainty"]) == 2
    assert "--uncertainty: " in (shown := capsys.readouterr().err)
    assert "has mode 'integral', whose training sees only the means" in shown
    assert not (tmp_path / "o.onnx").exists()
