"""Rounding in training is the rounding of the export, and leaves no trace in the weights."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rgfl.nn.config import ModelConfig
from rgfl.nn.detector import build_detector
from rgfl.nn.fake_int8 import fake_int8, round_input, round_weight
from rgfl.spec import DetectorSpec


@pytest.fixture
def detector():
    config = ModelConfig(
        backbone="test_efficientnet",
        pretrained=False,
        frozen_stages=0,
        norm_eval=False,
        neck_channels=16,
        head_channels=16,
        head_convs=1,
        head_norm="batch",
        reg_max=8,
        angle_bins=8,
    )
    spec = DetectorSpec(classes=("a", "b"), image_size=(128, 128), reg_max=8, angle_bins=8)
    torch.manual_seed(0)
    return build_detector(config, spec)


def test_weights_are_rounded_as_the_export_rounds_them():
    qdq = pytest.importorskip("rgfl.export.qdq")
    weight = torch.randn(6, 4, 3, 3) * torch.tensor([1e-3, 0.1, 1.0, 5.0, 0.0, 40.0])[:, None, None, None]
    steps, scale = qdq.nearest(weight.numpy(), 0).steps, qdq.weight_scale(weight.numpy(), 0)
    np.testing.assert_allclose(
        round_weight(weight).numpy(), steps * scale[:, None, None, None], rtol=1e-6, atol=1e-12
    )


def test_batchnorm_folded_in_changes_no_step():
    weight, gain = torch.randn(5, 3, 3, 3), torch.tensor([0.2, 3.0, -1.0, 7.0, 1e-3])[:, None, None, None]
    torch.testing.assert_close(round_weight(weight * gain), round_weight(weight) * gain)


def test_inputs_lie_on_255_steps_around_zero():
    x = torch.randn(2, 3, 8, 8)
    step = x.abs().max() / 127
    rounded = round_input(x) / step
    torch.testing.assert_close(rounded, rounded.round(), atol=1e-3, rtol=0)
    assert (round_input(x) - x).abs().max() <= 0.501 * step
    assert round_input(torch.zeros(1, 3, 4, 4)).abs().max() == 0
    assert round_input(x.bfloat16()).dtype == torch.bfloat16


def test_backbone_neck_and_towers_round_and_the_outputs_do_not(detector):
    plain = copy.deepcopy(detector)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    rounded = fake_int8(detector)
    assert "head.cls_tower.convs.0" in rounded
    assert "neck.laterals.0" in rounded
    assert any(name.startswith("backbone.net.") for name in rounded)
    assert type(detector.head.cls) is type(detector.head.reg) is torch.nn.Conv2d
    assert before.keys() == detector.state_dict().keys()
    for name, value in detector.state_dict().items():
        assert torch.equal(value, before[name])

    conv, twin = detector.neck.outputs[0], plain.neck.outputs[0]
    x = torch.randn(1, 16, 6, 6)
    expected = F.conv2d(round_input(x), round_weight(twin.weight), twin.bias, padding=1)
    torch.testing.assert_close(conv(x), expected)
    assert not torch.equal(conv(x), twin(x))
    one_pixel = torch.randn(1, 16, 1, 1)
    assert torch.equal(conv(one_pixel), twin(one_pixel))


def test_gradients_pass_and_a_copy_rounds_too(detector):
    fake_int8(detector)
    images = torch.randn(2, 3, 128, 128)
    boxes = [torch.tensor([[64.0, 64.0, 50.0, 30.0, 0.4]])] * 2
    targets = detector.assigner(boxes, [torch.tensor([0]), torch.tensor([1])], (128, 128))
    losses = detector.losses(detector(images), targets)
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    detector.eval()
    twin = copy.deepcopy(detector)
    for one, two in zip(detector(images).reg, twin(images).reg, strict=True):
        assert torch.equal(one, two)


def test_the_host_looks_at_no_weight():
    """On a GPU each look is a wait, and a step has a hundred roundings. (At inputs the CPU kernel looks.)"""
    with torch.profiler.profile() as seen:
        round_weight(torch.randn(8, 4, 3, 3))
    names = {event.name for event in seen.events()}
    assert any("fake_quantize" in name for name in names)
    assert not names & {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero"}
